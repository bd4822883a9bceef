"""Resizing of pictures with holes: what is visible stays clean, and nothing of the hole gets into it."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

# Share of a pixel that has to be visible before it counts as seen: anything that is no rounding error.
_SEEN = 1e-6


def resize_visible(image: Tensor, mask: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Resize a batch so that each pixel is the mean of the visible ones under it.

    A plain resize would mix the empty hole into its surroundings, as a dark rim.

    Args:
        image: ``(B, 3, H, W)`` float32 in 0..1, 0 in the hole.
        mask: ``(B, 1, H, W)`` bool; true = hole.
        size: new height and width in pixels.

    Returns:
        ``(B, 3, h, w)`` float32 in 0..1, 0 in the hole, and ``(B, 1, h, w)`` bool: the pixels under which nothing is
        visible.

    Example:
        >>> mask = torch.tensor([[[[False, False, True, True], [False, True, True, True]]]])
        >>> small, hole = resize_visible(torch.where(mask, 0.0, torch.full((1, 3, 2, 4), 0.5)), mask, (1, 2))
        >>> small[0, 0], hole[0, 0]
        (tensor([[0.5000, 0.5000]]), tensor([[False, False]]))
    """
    # Contiguous: kernels for other layouts round differently.
    image, mask = image.contiguous(), mask.contiguous()
    if size == tuple(image.shape[-2:]):
        return image, mask
    weighted = torch.cat([image, (~mask).to(image.dtype)], dim=1)
    small = F.resize(weighted, list(size), antialias=True)
    colour, weight = small[:, :3], small[:, 3:]
    hole = weight < _SEEN
    return (colour / weight.clamp(min=_SEEN)).clamp(0, 1).masked_fill(hole, 0.0), hole
