"""A decision drawn at full size: the mask, and the composite, in parts that stay small whatever the picture is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from infill_aug.functional.alignment import Alignment, aligned_part
from infill_aug.functional.composite import composite
from infill_aug.functional.drift import coloured
from infill_aug.functional.motion import moved_part
from infill_aug.smart_mask.decision import Decision
from infill_aug.smart_mask.outline import difference_of, outline_mask
from infill_aug.smart_mask.pictures import Pair

_PART = 1 << 19  # pixels that are worked on at a time
_FULL = {torch.uint8: 255.0, torch.uint16: 65535.0}


def apply_decision(
    pair: Pair, place: int, decision: Decision, allowed: Tensor | None, hole: Tensor | None, harmonize: bool
) -> tuple[Tensor, Tensor]:
    """Mask and composite of one picture of a pair.

    Args:
        pair: the pictures.
        place: which of the batch.
        decision: what to take.
        allowed: ``(1, H, W)`` floating point in 0..1, which the mask is multiplied by; ``None``: all is allowed.
        hole: ``(1, H, W)`` bool, the mask itself, whatever was decided; ``None``: as decided.
        harmonize: take the edit with motion and drift undone, else as it is.

    Returns:
        Mask ``(1, H, W)`` float32 and composite ``(C, H, W)`` like the pair's planes.
    """
    original, edited, alignment = pair.original[place], pair.edited[place], decision.alignment
    height, width = original.shape[-2:]
    mask = torch.zeros(1, height, width, device=original.device)
    mixed = original.clone()
    reach = hole if hole is not None else None if decision.outline is None else decision.outline.reach[0]
    if reach is None or not bool(reach.any()):
        return mask, mixed
    top, bottom, left, right = _box(reach[0] > 0, (height, width))
    rows = max(1, _PART // max(1, right - left))
    harmonize = harmonize and (alignment.moves or alignment.drifts)
    for start in range(top, bottom, rows):
        stop = min(start + rows, bottom)
        # A pixel more on each side, for the smoothing of the difference.
        above, below, before, after = max(0, start - 1), min(height, stop + 1), max(0, left - 1), min(width, right + 1)
        inner = (slice(None), slice(start - above, stop - above), slice(left - before, right - before))
        outer, place_in_whole = (above, below, before, after), (slice(None), slice(start, stop), slice(left, right))
        there = None
        if hole is not None:
            part = hole[place_in_whole].float()
        else:
            assert decision.outline is not None
            here = unit(pair.rgb(original[:, above:below, before:after]))
            there = aligned_part(lambda cut: unit(pair.rgb(edited[cut])), (height, width), alignment, *outer)
            part = outline_mask(decision.outline, difference_of(here, there), above, before, (height, width))[inner]
        if allowed is not None:
            part = part * allowed[place_in_whole]
        mask[place_in_whole] = part
        if not harmonize:
            fresh = edited[place_in_whole]
        elif there is not None and pair.plain and original.shape[0] == 3:
            fresh = _native(there[inner], original.dtype)
        else:
            fresh = _native(_harmonized(pair, edited, alignment, start, stop, left, right), original.dtype)
        mixed[place_in_whole] = composite_planes(original[place_in_whole], fresh, part)
    return mask, mixed


def _box(near: Tensor, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Rows and columns of the full size that a mask ``(h, w)`` may reach."""
    bounds: list[int] = []
    for axis in (0, 1):
        places = near.any(dim=1 - axis).nonzero()[:, 0]
        scale = size[axis] / near.shape[axis]
        bounds += [
            max(0, math.floor((int(places[0]) - 1) * scale)),
            min(size[axis], math.ceil((int(places[-1]) + 2) * scale)),
        ]
    return bounds[0], bounds[1], bounds[2], bounds[3]


def unit(planes: Tensor) -> Tensor:
    """Float32 in 0..1."""
    return planes.float() / _FULL.get(planes.dtype, 1.0)


def _native(unit: Tensor, dtype: torch.dtype) -> Tensor:
    """0..1 as planes of ``dtype``."""
    return (unit * _FULL[dtype]).round().to(dtype) if dtype in _FULL else unit.to(dtype)


def _harmonized(
    pair: Pair, edited: Tensor, alignment: Alignment, top: int, bottom: int, left: int, right: int
) -> Tensor:
    """Planes of the edited picture with motion undone, and the drift of the colours where they are grey or RGB."""
    moved = moved_part(lambda cut: unit(edited[cut]), edited.shape[-2:], alignment.motion, top, bottom, left, right)
    if not alignment.drifts or not pair.plain:
        return moved
    mended = coloured(moved[: pair.colours].expand(3, -1, -1), alignment.colours)
    mended = mended.mean(dim=0, keepdim=True) if pair.colours == 1 else mended
    return torch.cat([mended, moved[pair.colours :]])


def composite_planes(original: Tensor, edited: Tensor, mask: Tensor) -> Tensor:
    """``composite`` of planes ``(C, H, W)``, also of 16 bits, which torch's own choice does not take."""
    if original.dtype == torch.uint16:
        return composite_planes(original.int(), edited.int(), mask).to(torch.uint16)
    return composite(original, edited, mask)
