"""ControlNets: fills that follow edges or depth of what is visible."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from infill_aug.checkpoint import Checkpoint
from infill_aug.functional.masks import dilate
from infill_aug.infill.backend import BackendUnavailableError

STRUCTURES = ("depth", "edges", "picture")
_RANDOM = (
    "its ControlNets for inpainting draw from the global random state, and the same request would give other fills"
)
# By the beginning of the pipeline's name: class of the ControlNet, pipeline that fills with it, whether its pictures go
# from -1 to 1; or why there is none. The first that fits.
_KINDS: tuple[tuple[str, tuple[str, str, bool] | str], ...] = (
    ("StableDiffusionXL", ("ControlNetModel", "StableDiffusionXLControlNetInpaintPipeline", False)),
    ("StableDiffusion3", _RANDOM),
    ("StableDiffusion", ("ControlNetModel", "StableDiffusionControlNetInpaintPipeline", False)),
    ("Flux", ("FluxControlNetModel", "FluxControlNetInpaintPipeline", True)),
    ("QwenImage", _RANDOM),
    ("ZImage", "its ControlNets come as bare weights that diffusers cannot load from a folder or an id"),
)


def controlnet_classes(pipeline: str) -> tuple[str, str, bool]:
    """Classes of diffusers that let a ControlNet steer a model.

    Args:
        pipeline: class that the model was stored by.

    Returns:
        Class of the ControlNet, class of the pipeline, and whether that takes pictures in -1..1 instead of 0..1.

    Raises:
        BackendUnavailableError: the family has none that can be used here; the message says why.

    Example:
        >>> controlnet_classes("StableDiffusionXLInpaintPipeline")
        ('ControlNetModel', 'StableDiffusionXLControlNetInpaintPipeline', False)
    """
    for prefix, kind in _KINDS:
        if pipeline.startswith(prefix):
            if not isinstance(kind, str):
                return kind
            raise BackendUnavailableError(f"{pipeline} cannot be steered by a ControlNet: {kind}; use controlnet=None")
    raise BackendUnavailableError(
        f"{pipeline} cannot be steered by a ControlNet: diffusers has no inpainting pipeline for both; use "
        "controlnet=None, or Stable Diffusion, SDXL or Flux"
    )


def edges(picture: Tensor, hole: Tensor) -> Tensor:
    """White edges of what is visible, on black; none in the hole and on its rim, where no edge is known.

    J. Canny, A computational approach to edge detection, 1986, as ``kornia.filters.canny``, with the thresholds 100 and
    200 of 255 that ControlNets for edges were trained with.

    Args:
        picture: ``(B, 3, H, W)`` float32 in 0..1, its hole continued smoothly.
        hole: ``(B, 1, H, W)`` bool; true = nothing is visible.

    Returns:
        ``(B, 3, H, W)`` float32, 0 or 1.

    Example:
        >>> picture = torch.zeros(1, 3, 16, 16)
        >>> picture[..., 8:] = 1
        >>> hole = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
        >>> hole[..., :6, :] = True
        >>> found = edges(picture, hole)
        >>> found[..., :8, :].sum().item(), bool(found[..., 12, :].any())
        (0.0, True)
    """
    filters = importlib.import_module("kornia.filters")
    found = filters.canny(picture, 100 / 255, 200 / 255)[1] > 0
    return (found & ~dilate(hole, 2)).float().expand(-1, 3, -1, -1)


class ControlPictures:
    """What a ControlNet is shown: made of the visible pixels, and of their smooth continuation, which is all there is.

    Args:
        structure: ``"edges"`` of the visible part; ``"depth"`` of the continued picture, near = white; or
            ``"picture"``, the visible part itself with -1 in the hole, as ControlNets for inpainting take it.
        depth_model: checkpoint of transformers for depth estimation that predicts inverse depth.
        device: where the depth is estimated.
        signed: the pipeline takes pictures in -1..1.

    Raises:
        BackendUnavailableError: the depth model cannot be loaded.
    """

    def __init__(self, structure: str, depth_model: str, device: torch.device, signed: bool = False) -> None:
        self.structure = structure
        self.signed = signed
        if structure == "depth":
            checkpoint = Checkpoint(depth_model)
            try:
                self._processor = checkpoint.read("AutoImageProcessor")
                self._network = checkpoint.model("AutoModelForDepthEstimation", device)
            except (OSError, ValueError) as error:
                raise BackendUnavailableError(f"depth_model {depth_model!r} cannot be loaded: {error}") from error

    def __call__(self, picture: Tensor, hole: Tensor) -> Tensor:
        """The control picture of a batch in 0..1 whose hole has been continued, and of the hole."""
        if self.structure == "picture":
            shown = 2 * picture - 1 if self.signed else picture
            return shown.masked_fill(hole, -1.0)
        shown = edges(picture, hole) if self.structure == "edges" else self._depth(picture)
        return 2 * shown - 1 if self.signed else shown

    def _depth(self, picture: Tensor) -> Tensor:
        arrays = list((picture * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
        pixels = self._processor(images=arrays, return_tensors="pt")["pixel_values"]
        depth = self._network(pixels.to(picture.device)).predicted_depth[:, None].float()
        depth = F.resize(depth, list(picture.shape[-2:]), antialias=True)
        low, high = depth.amin((2, 3), keepdim=True), depth.amax((2, 3), keepdim=True)
        return ((depth - low) / (high - low).clamp(min=1e-6)).expand(-1, 3, -1, -1)


def load_controlnet(name: str, kind: str, dtype: torch.dtype) -> Any:
    """A ControlNet from the hub or a folder.

    Raises:
        BackendUnavailableError: it is not there, or is of another kind; the message says what to do.
    """
    library = importlib.import_module("diffusers")
    try:
        return getattr(library, kind).from_pretrained(name, dtype=dtype)
    except Exception as error:  # whatever goes wrong here goes wrong for every sample
        where = "the folder" if Path(name).is_dir() else "the local cache or on the hub"
        raise BackendUnavailableError(
            f"controlnet {name!r} cannot be loaded as {kind} from {where}: {error} Name one that was trained for this "
            "model: an id on the hub, or a folder that save_pretrained wrote"
        ) from error
