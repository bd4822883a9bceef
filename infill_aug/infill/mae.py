"""Fills by masked modelling: a masked autoencoder of transformers draws the patches that it does not see."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from infill_aug.checkpoint import IMAGENET_MEAN, IMAGENET_STD, Checkpoint
from infill_aug.descriptor import TaskDescriptor
from infill_aug.infill.backend import ModelConfig, SampleContext
from infill_aug.infill.network import NetworkBackend
from infill_aug.infill.push_pull import push_pull
from infill_aug.infill.visible import resize_visible

# Share of the patches that is shown where none is free of holes: that of the published training.
_SHOWN = 0.25


class MAEBackend(NetworkBackend):
    """Masked autoencoders: one deterministic pass, plausible layout, blurred texture.

    He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022, as ``ViTMAEForPreTraining`` of transformers.
    The picture is squeezed into the model's square (224 pixels for the published ones), every patch with a pixel of the
    hole is drawn anew, and the result is resized back. So fills are blurred: by the model, which predicts a mean, and
    once more in pictures larger than its square. Where no patch is free of holes, the quarter with the least hole is
    shown, its holes continued smoothly.

    Checkpoints with ``norm_pix_loss`` predict patches without their brightness and contrast; these are continued from
    the visible patches around.

    Args:
        checkpoint: a ViTMAE checkpoint with its decoder: id on the hub, or a folder.
        revision: commit, tag or branch on the hub; pin a commit where stores shall outlive updates.

    Raises:
        BackendUnavailableError: the checkpoint is not there, or lacks its decoder; raised by the first fill.
        ImportError: transformers is not installed; raised by the first fill.

    Example:
        >>> import torch
        >>> backend = MAEBackend("facebook/vit-mae-base")
        >>> image, mask = torch.rand(1, 3, 60, 80), torch.zeros(1, 1, 60, 80)
        >>> mask[..., 20:40, 20:40] = 1
        >>> backend.generate_infill(image, mask, TaskDescriptor("demo", "cat")).shape  # doctest: +SKIP
        torch.Size([1, 3, 60, 80])
    """

    name = "mae"
    remedy = "It takes checkpoints of ViTMAEForPreTraining, such as 'facebook/vit-mae-base'."
    # The model shows equally many patches of all pictures of a call, and each mask leaves another number.
    max_batch = 1

    def __init__(self, checkpoint: str = "facebook/vit-mae-base", revision: str | None = None) -> None:
        super().__init__()
        self.checkpoint = Checkpoint(checkpoint, revision)

    def model_config(self, descriptor: TaskDescriptor) -> ModelConfig:
        """The checkpoint and its revision; of a folder, a hash of its files."""
        identity = self.checkpoint.identity
        return dataclasses.replace(
            super().model_config(descriptor), model=identity["checkpoint"], revision=identity["revision"] or ""
        )

    def load(self, device: torch.device) -> tuple[Any, Tensor, Tensor]:
        """The model, and mean and deviation of its normalisation, ``(3, 1, 1)``."""
        model = self.checkpoint.model("ViTMAEForPreTraining", device)
        values = self._processor()
        mean, std = values.get("image_mean") or IMAGENET_MEAN, values.get("image_std") or IMAGENET_STD
        if values.get("do_normalize") is False:
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        return model, *(torch.tensor(each, device=device)[:, None, None] for each in (mean, std))

    def _processor(self) -> dict[str, Any]:
        """Values of the image processor; none where a folder holds the model alone."""
        folder = Path(self.checkpoint.name)
        if folder.is_dir() and not (folder / "preprocessor_config.json").is_file():
            return {}
        return dict(self.checkpoint.read("AutoImageProcessor").to_dict())

    def _fill(
        self, network: Any, image: Tensor, mask: Tensor, config: ModelConfig, samples: Sequence[SampleContext]
    ) -> Tensor:
        return draw_hidden_patches(network[0], image, mask, network[1], network[2])


def draw_hidden_patches(model: Any, image: Tensor, mask: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Fill one picture with what a masked autoencoder sees in the patches that the hole touches.

    Args:
        model: ``ViTMAEForPreTraining``.
        image: ``(1, 3, H, W)`` float32 in 0..1, 0 in the hole.
        mask: ``(1, 1, H, W)`` bool; true = hole.
        mean: ``(3, 1, 1)``, subtracted from each channel before the model sees it.
        std: ``(3, 1, 1)``, which each channel is divided by.

    Returns:
        ``(1, 3, H, W)`` float32 in 0..1.
    """
    size = model.config.image_size
    side = size if isinstance(size, int) else size[0]
    grid = side // model.config.patch_size
    hidden = hidden_patches(mask, grid)
    square = push_pull(*resize_visible(image, mask, (side, side)))
    pixels = (square - mean) / std
    # It shows int(patches * (1 - mask_ratio)) patches, those with the least noise.
    patches, shown = grid * grid, int((~hidden).sum())
    model.config.mask_ratio = 1 - (shown + 0.5) / patches
    noise = hidden.flatten(1) + torch.linspace(0, 0.5, patches, device=hidden.device)
    drawn = model(pixel_values=pixels, noise=noise).logits
    if model.config.norm_pix_loss:
        drawn = _with_contrast(drawn, model.patchify(pixels), hidden)
    drawn = (model.unpatchify(drawn) * std + mean).clamp(0, 1)
    result = torch.where(nnf.interpolate(hidden.float(), (side, side)) > 0, drawn, square)
    return F.resize(result, list(image.shape[-2:]), antialias=True)


def hidden_patches(mask: Tensor, grid: int) -> Tensor:
    """The patches of a square grid that the hole touches.

    Args:
        mask: ``(1, 1, H, W)`` bool; true = hole.
        grid: patches along each side.

    Returns:
        ``(1, 1, grid, grid)`` bool. Where the hole touches all, the quarter that it takes least of is not hidden.

    Example:
        >>> mask = torch.zeros(1, 1, 6, 6, dtype=torch.bool)
        >>> mask[..., 3, 1] = True
        >>> hidden_patches(mask, 2)[0, 0]
        tensor([[False, False],
                [ True, False]])
    """
    share = nnf.adaptive_avg_pool2d(mask.float(), grid)
    hidden = share > 0
    if not bool(hidden.all()):
        return hidden
    clearest = share.flatten().argsort(stable=True)[: max(1, int(grid * grid * _SHOWN))]
    # Patches that are all hole stay hidden, clearest or not.
    hidden.view(-1)[clearest] = share.flatten()[clearest] == 1
    return hidden


def _with_contrast(drawn: Tensor, pixels: Tensor, hidden: Tensor) -> Tensor:
    """Patches ``(1, L, D)`` of mean 0 and deviation 1, with both continued from the visible patches of the picture."""
    grid = hidden.shape[-1]
    moments = torch.stack([pixels.mean(dim=-1), (pixels.var(dim=-1) + 1e-6).sqrt()], dim=1)
    mean, deviation = push_pull(moments.unflatten(-1, (grid, grid)), hidden).flatten(2).unsqueeze(-1).unbind(dim=1)
    return drawn * deviation + mean
