"""Sample keys, and the confidence map that moves with its image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image as PILImage
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

IMAGE, INFILL, CONFIDENCE, TARGET, MASK = "image", "infill", "confidence", "target", "mask"


class ConfidenceMap(tv_tensors.TVTensor):
    """How much each pixel matters to the task, as a tensor that follows its image through torchvision v2.

    Convention:
        * shape ``(1, H, W)`` or ``(..., 1, H, W)``; a plain ``(H, W)`` gets its channel added
        * ``uint8`` 0..255 or floating point 0..1; 1 (255) = matters, 0 = does not
        * full confidence is *sticky*: wherever a pixel of full confidence contributes to an interpolated pixel,
          that pixel has full confidence too, so that a protected object stays protected after a resize or a rotation
        * all geometric v2 transforms move it, always bilinearly; what comes in from outside the picture gets 0;
          photometric transforms leave it alone

    Args:
        data: tensor, array or greyscale PIL picture.
        dtype: wanted dtype, with the values brought to its range; by default the one that ``data`` has.
        device: wanted device; by default the one that ``data`` has.

    Raises:
        ValueError: values outside the range, NaN, or a shape that is no map.

    Example:
        >>> import torch
        >>> from torchvision.transforms import v2
        >>> confidence = ConfidenceMap(torch.eye(4))
        >>> v2.functional.horizontal_flip(confidence)[0, 0].tolist()
        [0.0, 0.0, 0.0, 1.0]
    """

    def __new__(
        cls, data: Any, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> ConfidenceMap:
        """Check and wrap ``data``."""
        if isinstance(data, PILImage.Image):
            data = F.pil_to_tensor(data.convert("L"))
        tensor = torch.as_tensor(data, device=device)
        if tensor.ndim == 2:
            tensor = tensor.unsqueeze(0)
        check_confidence(tensor)
        if dtype == torch.uint8:
            tensor = quantise_confidence(tensor)
        elif dtype is not None:
            tensor = (tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor).to(dtype)
        return tensor.as_subclass(cls)


def check_confidence(confidence: Tensor) -> None:
    """Raise a ``ValueError`` that names what keeps ``confidence`` from being a map.

    Args:
        confidence: ``(..., 1, H, W)``, ``uint8`` or floating point.

    Raises:
        ValueError: wrong shape, wrong dtype, NaN, or values outside 0..1.

    Example:
        >>> import torch
        >>> check_confidence(torch.rand(1, 2, 2))
    """
    if confidence.ndim < 3 or confidence.shape[-3] != 1:
        raise ValueError(
            f"confidence must have shape (1, H, W) or (B, 1, H, W), got {tuple(confidence.shape)}; "
            "reduce the channels to one, for example with .amax(-3, keepdim=True)"
        )
    if confidence.dtype == torch.uint8 or confidence.numel() == 0:
        return
    if not confidence.is_floating_point():
        raise ValueError(
            f"confidence must be uint8 (0..255) or floating point (0..1), got {confidence.dtype}; "
            "turn a label map into confidence with MaskConfidence(class_weights=...)"
        )
    low, high = (float(v) for v in torch.aminmax(confidence.detach()))
    if low != low or high != high:
        raise ValueError("confidence contains NaN; use torch.nan_to_num, or mend the model that made it")
    if low < 0.0 or high > 1.0:
        raise ValueError(
            f"confidence must lie in 0..1, got values from {low:.4g} to {high:.4g}; "
            "divide by the largest value, or pass logits through a sigmoid"
        )


def quantise_confidence(confidence: Tensor) -> Tensor:
    """Confidence as ``uint8``, where 255 is kept for full confidence alone.

    Args:
        confidence: any shape, floating point 0..1, or ``uint8`` (returned as it is).

    Returns:
        ``uint8`` of the same shape; values below 1 map to 0..254, so that "never touch this" survives rounding and
        nothing else turns into it.

    Example:
        >>> import torch
        >>> quantise_confidence(torch.tensor([0.0, 0.5, 0.999, 1.0])).tolist()
        [0, 128, 254, 255]
    """
    if confidence.dtype == torch.uint8:
        return confidence
    scaled = (confidence.float() * 255).round()
    return torch.where(confidence >= 1, scaled, scaled.clamp(max=254)).to(torch.uint8)


def _interpolated(kernel: Callable[..., Tensor]) -> Callable[..., ConfidenceMap]:
    """``kernel`` for maps: bilinear, empty outside, sticky at full confidence."""

    def move(inpt: ConfidenceMap, *args: Any, **kwargs: Any) -> ConfidenceMap:
        kwargs["interpolation"] = InterpolationMode.BILINEAR
        if "fill" in kwargs:
            kwargs["fill"] = None
        plain = inpt.as_subclass(Tensor)
        full = 255 if plain.dtype == torch.uint8 else 1
        # The indicator rides along as a second channel: one pass, and the same geometry by construction. It stays in
        # the map's dtype, since torchvision's uint8 kernels are several times faster than its floating point ones.
        indicator = (plain == full).to(plain.dtype) * full
        moved = kernel(torch.cat([plain, indicator], dim=-3), *args, **kwargs)
        values, sticky = moved[..., :1, :, :], moved[..., 1:, :, :]
        if kwargs.get("antialias") is False:
            # Without antialiasing a kernel looks at a few pixels only; the image, moved by nearest neighbour, may take
            # its pixel from one of the others.
            sticky = torch.maximum(sticky, kernel(indicator, *args, **{**kwargs, "antialias": True}))
        # Maximum, not masked_fill, which took as long as the resize itself.
        protected = (sticky > full / 512).to(plain.dtype) * full
        return tv_tensors.wrap(torch.maximum(values.clamp(0, full), protected), like=inpt)

    return move


def _exact(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """``kernel`` for maps where it only moves pixels."""

    def move(inpt: ConfidenceMap, *args: Any, **kwargs: Any) -> Any:
        if "fill" in kwargs:
            kwargs["fill"] = None
        moved = kernel(inpt.as_subclass(Tensor), *args, **kwargs)
        if isinstance(moved, tuple | list):
            return type(moved)(tv_tensors.wrap(m, like=inpt) for m in moved)
        return tv_tensors.wrap(moved, like=inpt)

    return move


for _name in ("resize", "resized_crop", "affine", "rotate", "perspective", "elastic"):
    F.register_kernel(getattr(F, _name), ConfidenceMap)(_interpolated(getattr(F, f"{_name}_image")))
for _name in ("horizontal_flip", "vertical_flip", "crop", "center_crop", "pad", "five_crop", "ten_crop"):
    F.register_kernel(getattr(F, _name), ConfidenceMap)(_exact(getattr(F, f"{_name}_image")))
