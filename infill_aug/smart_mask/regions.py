"""Which of the areas that differ are the edit: by evidence, not by size alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_SHARE = 0.2  # of the strongest region's evidence: what has less is a side effect
_NEAR_SHARE = 0.05  # enough where a region lies close to one that is taken
_NEAR = 0.03  # of the longer side
_HOLE = 0.15  # of a region's area: smaller holes are parts that kept their colour, larger ones are holes


@dataclass(frozen=True)
class Selection:
    """Areas that differ, the strongest first, and the mask of those that are taken.

    Args:
        mask: ``(H, W)`` bool on the CPU.
        labels: ``(H, W)`` int64 on the CPU: 0, or 1 + the place of the region in the lists below.
        evidence: shares of all evidence.
        taken: which regions the mask has.
    """

    mask: Tensor
    labels: Tensor
    evidence: tuple[float, ...]
    taken: tuple[bool, ...]


def select_regions(inside: Tensor, weight: Tensor, most: int | None = None) -> Selection:
    """Choose connected areas by their evidence: size times strength.

    Taken are the strongest, all with a fifth of its evidence or more, and what lies close to those with a twentieth:
    objects come in parts, side effects of an editor are small and elsewhere. Small holes are filled.

    Args:
        inside: ``(H, W)`` bool.
        weight: ``(H, W)`` floating point, 0 or more: evidence of each pixel.
        most: at most so many regions; ``None``: as many as the evidence says.

    Returns:
        The selection.

    Example:
        >>> inside = torch.zeros(20, 20, dtype=torch.bool)
        >>> inside[2:10, 2:10] = True
        >>> inside[18, 18] = True
        >>> select_regions(inside, inside.float()).taken
        (True, False)
    """
    from scipy import ndimage

    eight = torch.ones(3, 3, dtype=torch.int64).numpy()
    filled = _without_small_holes(inside.cpu(), ndimage)
    labels, count = ndimage.label(filled.numpy(), eight)
    if not count:
        return Selection(torch.zeros_like(filled), torch.zeros(filled.shape, dtype=torch.int64), (), ())
    labels = torch.from_numpy(labels).long()
    sums = torch.zeros(count + 1, dtype=torch.float64)
    sums.index_add_(0, labels.flatten(), weight.cpu().double().flatten())
    order = sums[1:].argsort(descending=True)
    rank = torch.zeros(count + 1, dtype=torch.int64)
    rank[order + 1] = torch.arange(1, count + 1)
    labels, sums = rank[labels], sums[1:][order]
    taken = (sums >= _SHARE * sums[0]) & (sums > 0)
    reach = max(2, round(_NEAR * max(inside.shape)))
    near = [int(i) for i in (~taken & (sums >= _NEAR_SHARE * sums[0]) & (sums > 0)).nonzero()[:, 0]]
    if near:
        away = torch.from_numpy(ndimage.distance_transform_edt(~_members(labels, taken).numpy()))
        for i in near:
            taken[i] = bool(away[labels == i + 1].min() <= reach)
    if most is not None:
        # The number that was asked for is known better than evidence can tell.
        taken = (torch.arange(count) < most) & (sums > 0)
    total = float(sums.sum()) or 1.0
    return Selection(
        _members(labels, taken), labels, tuple(v / total for v in sums.tolist()), tuple(bool(v) for v in taken)
    )


def _members(labels: Tensor, taken: Tensor) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.bool), taken])[labels]


def _without_small_holes(inside: Tensor, ndimage: Any) -> Tensor:
    """Fill what is enclosed and small against what encloses it."""
    filled = torch.from_numpy(ndimage.binary_fill_holes(inside.numpy()))
    holes, count = ndimage.label((filled & ~inside).numpy())
    if not count:
        return inside
    outer, _ = ndimage.label(filled.numpy(), torch.ones(3, 3, dtype=torch.int64).numpy())
    areas = ndimage.sum_labels(torch.ones(1).expand(inside.shape).numpy(), outer, range(int(outer.max()) + 1))
    keep = torch.zeros(count + 1, dtype=torch.bool)
    for i, place in enumerate(ndimage.find_objects(holes), start=1):
        hole = holes[place] == i
        around = int(outer[place][hole][0])
        keep[i] = bool(hole.sum() <= _HOLE * areas[around])
    return inside | keep[torch.from_numpy(holes).long()]
