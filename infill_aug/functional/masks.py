"""Masks from confidence: thresholds, nested levels, clean-up, one-sided feather. 1 = regenerate, 0 = keep."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor

from infill_aug.types import quantise_confidence

# The quantile of a map is read off a grid of at most this many points a side: sorting every pixel of a batch costs
# more than the whole composite, and a 64 x 64 grid is off by well under one percent of the share.
_QUANTILE_GRID = 64


def threshold_mask(
    confidence: Tensor,
    threshold: float | Tensor,
    *,
    mode: str = "quantile",
    protect_above: float | None = None,
    clean: int = 0,
) -> Tensor:
    """Mask of the pixels that matter too little: true = regenerate.

    Masks are nested: a lower threshold gives a subset. Equal confidence is ordered from the border inwards, so that a
    flat or binary map still gives the share that was asked for, in one piece.

    Args:
        confidence: ``(B, 1, H, W)``, ``uint8`` or floating point 0..1 (read to 8 bits).
        threshold: 0..1, one number, or ``(B,)``, which is clamped and not checked, to spare a wait for the device. In
            quantile mode the share of pixels to mask, in absolute mode the confidence up to which a pixel is masked.
        mode: ``"quantile"`` or ``"absolute"``.
        protect_above: pixels with more confidence than this, and those with full confidence, are never masked; ``None``
            protects nothing.
        clean: radius of the specks that are removed, see ``clean_mask``; what is protected stays so.

    Returns:
        ``(B, 1, H, W)`` bool on the device of ``confidence``.

    Raises:
        ValueError: an unknown mode, or a number outside 0..1.

    Example:
        >>> import torch
        >>> confidence = torch.tensor([[0.1, 0.2], [0.3, 0.4]])[None, None]
        >>> threshold_mask(confidence, 0.5)[0, 0]
        tensor([[ True,  True],
                [False, False]])
    """
    if mode not in ("quantile", "absolute"):
        raise ValueError(f"mode must be 'quantile' or 'absolute', got {mode!r}")
    if not isinstance(threshold, Tensor) and not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in 0..1, got {threshold}")
    levels = quantise_confidence(confidence).float()
    if isinstance(threshold, Tensor):
        limit = threshold.to(levels.device, torch.float32).reshape(-1, 1, 1, 1).clamp(0, 1)
    else:
        limit = torch.full((1, 1, 1, 1), float(threshold), device=levels.device)
    if mode == "absolute":
        mask = levels <= limit * 255 + 1e-3
    else:
        score = levels + _inwards(levels.shape[-2], levels.shape[-1], levels.device)
        mask = score <= _score_at(score, limit)
    free = None if protect_above is None else levels <= min(protect_above * 255, 254)
    if free is not None:
        mask = mask & free
    if clean:
        mask = clean_mask(mask, clean)
        # The closing may have reached into what is protected.
        mask = mask if free is None else mask & free
    return mask


def _inwards(height: int, width: int, device: torch.device) -> Tensor:
    """``(H, W)`` in [0, 1): rises from the corners to the centre; orders pixels of equal confidence."""
    y = torch.linspace(-1, 1, height, device=device) if height > 1 else torch.zeros(1, device=device)
    x = torch.linspace(-1, 1, width, device=device) if width > 1 else torch.zeros(1, device=device)
    return (1 - (y[:, None] ** 2 + x[None, :] ** 2) / 2) * 0.998


def _score_at(score: Tensor, share: Tensor) -> Tensor:
    """``(B, 1, 1, 1)``: the score up to which ``share`` of the pixels lie; below every score where share is 0."""
    rows, columns = (_spaced(side, score.device) for side in score.shape[-2:])
    ordered = score[..., rows[:, None], columns[None, :]].flatten(1).sort(dim=1).values
    count = ordered.shape[1]
    rank = (share * count).round().to(torch.int64).flatten().expand(score.shape[0])
    limit = ordered.gather(1, (rank - 1).clamp(min=0)[:, None])
    limit = torch.where((rank >= count)[:, None], torch.inf, limit)  # 1 means all, also off the grid
    return torch.where((rank <= 0)[:, None], -1.0, limit)[..., None, None]


def _spaced(side: int, device: torch.device) -> Tensor:
    """At most ``_QUANTILE_GRID`` positions, each in the middle of an equal part of the side."""
    count = min(side, _QUANTILE_GRID)
    return ((torch.arange(count, device=device) + 0.5) * (side / count)).long()


def level_masks(
    confidence: Tensor,
    levels: Sequence[float],
    *,
    mode: str = "quantile",
    protect_above: float | None = None,
    clean: int = 0,
) -> Tensor:
    """Nested masks of one map at rising thresholds: what an infill is generated for.

    Args:
        confidence: ``(B, 1, H, W)``, ``uint8`` or floating point 0..1.
        levels: rising thresholds in 0..1.
        mode: as in ``threshold_mask``.
        protect_above: as in ``threshold_mask``; holds after the clean-up too.
        clean: radius of the specks that are removed, see ``clean_mask``.

    Returns:
        ``(B, L, H, W)`` bool, each level a superset of the one before.

    Raises:
        ValueError: levels that are empty, out of range or not rising.

    Example:
        >>> import torch
        >>> confidence = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> level_masks(confidence, (0.25, 0.5, 1.0)).float().mean((2, 3))[0].tolist()
        [0.25, 0.5, 1.0]
    """
    masks = [
        threshold_mask(confidence, level, mode=mode, protect_above=protect_above, clean=clean)
        for level in check_levels(levels)
    ]
    return torch.cat(masks, dim=1)


def check_levels(levels: Sequence[float]) -> tuple[float, ...]:
    """Levels as a tuple of rising thresholds.

    Raises:
        ValueError: none at all, out of range, or not rising.

    Example:
        >>> check_levels([0.5, 1])
        (0.5, 1.0)
    """
    checked = tuple(float(level) for level in levels)
    if not checked or any(not 0 < level <= 1 for level in checked) or list(checked) != sorted(set(checked)):
        raise ValueError(f"levels must be one or more rising thresholds, above 0 and up to 1, got {checked}")
    return checked


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Grow the masked area by ``radius`` pixels (square neighbourhood).

    Args:
        mask: ``(B, C, H, W)`` bool or floating point.
        radius: pixels, 0 or more.

    Returns:
        Same shape and dtype.

    Example:
        >>> import torch
        >>> dilate(torch.tensor([[[[0.0, 0.0, 1.0, 0.0]]]]), 1).flatten().tolist()
        [0.0, 1.0, 1.0, 1.0]
    """
    if radius <= 0:
        return mask
    grown = mask.float()
    for axis in (2, 3):  # separable: 2k instead of k * k comparisons a pixel
        size = [1, 1]
        pad = [0, 0]
        size[axis - 2] = 2 * radius + 1
        pad[axis - 2] = radius
        grown = nnf.max_pool2d(nnf.pad(grown, (pad[1], pad[1], pad[0], pad[0])), size, stride=1)
    return grown.to(mask.dtype) if mask.dtype != torch.bool else grown > 0.5


def erode(mask: Tensor, radius: int) -> Tensor:
    """Shrink the masked area by ``radius`` pixels (square neighbourhood); the picture's border does not shrink it.

    Args:
        mask: ``(B, C, H, W)`` bool or floating point in 0..1.
        radius: pixels, 0 or more.

    Returns:
        Same shape and dtype.

    Example:
        >>> import torch
        >>> erode(torch.ones(1, 1, 3, 3, dtype=torch.bool), 1).all().item()
        True
    """
    inverse = ~mask if mask.dtype == torch.bool else 1 - mask
    shrunk = dilate(inverse, radius)
    return ~shrunk if mask.dtype == torch.bool else 1 - shrunk


def clean_mask(mask: Tensor, radius: int) -> Tensor:
    """Remove masked specks, then kept specks, of up to ``2 * radius`` pixels across.

    An opening followed by a closing. Both are increasing, so that nested masks stay nested.

    Args:
        mask: ``(B, C, H, W)`` bool or floating point in 0..1.
        radius: pixels, 0 or more.

    Returns:
        Same shape and dtype.

    Example:
        >>> import torch
        >>> speck = torch.zeros(1, 1, 7, 7, dtype=torch.bool)
        >>> speck[..., 3, 3] = True
        >>> clean_mask(speck, 1).any().item()
        False
    """
    if radius <= 0:
        return mask
    opened = dilate(erode(mask, radius), radius)
    return erode(dilate(opened, radius), radius)


def feather_mask(mask: Tensor, radius: int) -> Tensor:
    """Soft mask that rises from 0 at the kept side to 1 over about ``radius`` pixels inside the masked side.

    The ramp lies on the masked side only: where ``mask`` is 0 the result is exactly 0.

    Args:
        mask: ``(B, 1, H, W)`` bool, or floating point in 0..1.
        radius: pixels, 0 or more; 0 gives a hard mask.

    Returns:
        ``(B, 1, H, W)`` float32 in 0..1.

    Example:
        >>> import torch
        >>> row = torch.tensor([0, 0, 1, 1, 1, 1.0]).expand(1, 1, 6, 6)
        >>> [round(v, 2) for v in feather_mask(row, 2)[0, 0, 0].tolist()]
        [0.0, 0.0, 0.33, 0.78, 1.0, 1.0]
    """
    mask = mask.float()
    if radius <= 0:
        return mask
    # Two box blurs make a tent: smooth enough for the eye and far cheaper than a Gaussian. Borders count their own
    # pixels only, so that the picture's edge is not taken for a kept side.
    reach = max(1, radius // 2)
    soft = mask
    for _ in range(2):
        soft = _box_mean(_box_mean(soft, reach, 2), reach, 3)
    return (2 * soft - 1).clamp(0, 1) * mask


def _box_mean(mask: Tensor, reach: int, axis: int) -> Tensor:
    """Mean of the pixels up to ``reach`` away along an axis; by sums of shifted views, ten times as fast as pooling."""
    side = mask.shape[axis]
    wide = nnf.pad(mask, (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0))
    total = wide.narrow(axis, 0, side).clone()
    for shift in range(1, 2 * reach + 1):
        total += wide.narrow(axis, shift, side)
    place = torch.arange(side, device=mask.device)
    count = (place + reach).clamp(max=side - 1) - (place - reach).clamp(min=0) + 1
    return total / (count[:, None] if axis == 2 else count)


def masked_share(mask: Tensor) -> Tensor:
    """Share of masked pixels of each sample, ``(B,)`` float32 in 0..1.

    Args:
        mask: ``(B, 1, H, W)`` bool, or floating point in 0..1.

    Example:
        >>> import torch
        >>> masked_share(torch.eye(4)[None, None]).tolist()
        [0.25]
    """
    return mask.float().mean(dim=(1, 2, 3))
