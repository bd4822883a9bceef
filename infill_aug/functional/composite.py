"""Kept pixels from the image, bit for bit; masked ones from the infill."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def vary_in_eight_bits(infill: Tensor, mask: Tensor, variation: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """An infill in 8 bits through a variation on floating point; where the result is not finite, the infill stays.

    Args:
        infill: ``(B, 3, H, W)`` ``uint8``.
        mask: ``(B, 1, H, W)`` bool; 1 = infill.
        variation: ``(infill, mask) -> infill`` on floating point in 0..1; or on ``uint8``, where it says so by a true
            ``takes_uint8``.

    Returns:
        Tensor like ``infill``.

    Example:
        >>> import torch
        >>> infill, mask = torch.full((1, 3, 1, 2), 255, dtype=torch.uint8), torch.ones(1, 1, 1, 2, dtype=torch.bool)
        >>> vary_in_eight_bits(infill, mask, lambda infill, mask: infill / 5)[0, 0].tolist()
        [[51, 51]]
    """
    if getattr(variation, "takes_uint8", False):
        return variation(infill, mask)
    varied = variation(infill.float().div_(255), mask.float())
    eight = (varied.clamp(0, 1) * 255).round().to(torch.uint8)
    return torch.where(varied.isfinite(), eight, infill)


def composite(image: Tensor, infill: Tensor, mask: Tensor) -> Tensor:
    """Lay ``infill`` over ``image`` where ``mask`` says so.

    Where the mask is 0 the result equals ``image`` bit for bit, whatever the infill holds there. Where the infill is
    not finite, the image shows.

    Args:
        image: ``(B, 3, H, W)`` or ``(3, H, W)``, ``uint8`` or floating point.
        infill: same shape, dtype and device.
        mask: ``(B, 1, H, W)`` or ``(1, H, W)``, bool or floating point 0..1; 1 = infill; between the two, a blend.

    Returns:
        Tensor like ``image``.

    Raises:
        ValueError: shapes or dtypes that do not fit.

    Example:
        >>> import torch
        >>> image, infill = torch.zeros(3, 1, 2), torch.ones(3, 1, 2)
        >>> composite(image, infill, torch.tensor([[[False, True]]]))[0]
        tensor([[0., 1.]])
    """
    if image.shape != infill.shape or image.dtype != infill.dtype:
        raise ValueError(
            f"image and infill must have the same shape and dtype, got {tuple(image.shape)} {image.dtype} and "
            f"{tuple(infill.shape)} {infill.dtype}; resize or convert the infill first"
        )
    wanted = (*image.shape[:-3], 1, *image.shape[-2:])
    if mask.shape != wanted:
        raise ValueError(f"mask must have shape {wanted} to fit the image, got {tuple(mask.shape)}")
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(f"mask must be bool or floating point in 0..1, got {mask.dtype}; compare it: mask > 0")
    if mask.dtype == torch.bool:
        take = mask if not infill.is_floating_point() else mask & infill.isfinite()
        return torch.where(take, infill, image)
    exact = torch.promote_types(image.dtype, torch.float32)  # 8 bits and halves in single precision
    blend = torch.lerp(image.to(exact), infill.to(exact), mask.to(exact))
    take = mask > 0
    if infill.is_floating_point():
        take = take & blend.isfinite()
    else:
        blend = blend.round()  # keeps a weight of exactly 1 exact
    return torch.where(take, blend.to(image.dtype), image)
