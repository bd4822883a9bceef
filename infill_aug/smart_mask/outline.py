"""A coarse mask brought to a picture's full size, its outline along the edges of what changed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

_RADIUS = 5  # pixels of the coarse mask, half the side of the windows that are fitted
_SMOOTH = 0.015  # differences (0..1) that are no edge
_LOW, _HIGH = 0.2, 0.7  # of the refined mask, between which the blend rises


@dataclass(frozen=True)
class Outline:
    """A mask as a local function of the difference between two pictures, of any size.

    A guided filter (He, Sun and Tang, 2010) whose guide is the difference of the pictures: it is fitted where the mask
    is coarse, and applied where the pictures are large (He and Sun, 2015).

    Args:
        slope: ``(1, 1, h, w)`` float32.
        base: ``(1, 1, h, w)`` float32: the mask is ``slope * difference + base``.
        reach: ``(1, 1, h, w)`` float32, above 0 where the mask may be.
        core: ``(1, 1, h, w)`` float32, 1 where the mask is whatever the difference says.
    """

    slope: Tensor
    base: Tensor
    reach: Tensor
    core: Tensor


def difference_of(original: Tensor, edited: Tensor) -> Tensor:
    """How far colours are apart, ``(1, H, W)`` in 0..1, of ``(3, H, W)`` floating point in 0..1; a little smoothed."""
    apart = (original - edited).square_().mean(dim=0, keepdim=True).sqrt_()
    return nnf.avg_pool2d(apart[None], 3, 1, 1, count_include_pad=False)[0]


def fit_outline(inside: Tensor, original: Tensor, edited: Tensor) -> Outline:
    """Fit the outline of a coarse mask.

    Args:
        inside: ``(h, w)`` bool.
        original: ``(3, h, w)`` float32 in 0..1.
        edited: likewise, aligned.

    Returns:
        The outline, on the device of the pictures.

    Example:
        >>> inside = torch.zeros(16, 16, dtype=torch.bool)
        >>> inside[:, 8:] = True
        >>> outline = fit_outline(inside, torch.zeros(3, 16, 16), inside.float().expand(3, -1, -1))
        >>> (outline_mask(outline, inside[None].float(), 0, 0, (16, 16)) > 0.5)[0].equal(inside)
        True
    """
    mask = inside.float()[None, None].to(original.device)
    guide = difference_of(original, edited)[None]
    mean_g, mean_m = _mean(guide), _mean(mask)
    variance = _mean(guide * guide) - mean_g * mean_g
    slope = (_mean(guide * mask) - mean_g * mean_m).clamp(min=0) / (variance.clamp(min=0) + _SMOOTH**2)
    slope, base = _mean(slope), _mean(mean_m - slope * mean_g)
    near = nnf.max_pool2d(mask, 5, 1, 2)
    core = 1 - nnf.max_pool2d(1 - mask, 5, 1, 2)
    return Outline(slope, base, near, core)


def _mean(x: Tensor) -> Tensor:
    return nnf.avg_pool2d(x, 2 * _RADIUS + 1, 1, _RADIUS, count_include_pad=False)


def outline_mask(outline: Outline, difference: Tensor, top: int, left: int, size: tuple[int, int]) -> Tensor:
    """The mask of a part of the full-size pictures.

    Args:
        outline: of ``fit_outline``.
        difference: ``(1, r, c)``, of ``difference_of`` the part of the pictures.
        top: row of the part in the whole.
        left: column of the part in the whole.
        size: height and width of the whole.

    Returns:
        ``(1, r, c)`` float32: 0 outside, 1 inside, and between them a blend where the pictures show no edge.
    """
    rows, columns = difference.shape[-2:]
    height, width = size
    y = (torch.arange(top, top + rows, device=difference.device) + 0.5) * (2 / height) - 1
    x = (torch.arange(left, left + columns, device=difference.device) + 0.5) * (2 / width) - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)[None]
    coarse = torch.cat([outline.slope, outline.base, outline.reach, outline.core], dim=1)
    slope, base, reach, core = nnf.grid_sample(coarse, grid, "bilinear", "border", align_corners=False)[0].split(1)
    soft = ((slope * difference + base - _LOW) / (_HIGH - _LOW)).clamp_(0, 1)
    soft = torch.maximum(soft, (core > 0.99).to(soft.dtype))
    return soft * (reach > 0.01)
