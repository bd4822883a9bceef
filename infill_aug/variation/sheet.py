"""A picture of what operations do, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from infill_aug.functional.composite import composite
from infill_aug.variation.choice import OperationChoice
from infill_aug.variation.operation import GROUPS, find_operation, list_operations
from infill_aug.variation.variation import Variation

_LABEL, _GAP = 130, 3


def variation_sheet(
    infills: Tensor,
    masks: Tensor,
    images: Tensor | None = None,
    operations: Sequence[str] | None = None,
    columns: int = 6,
    seed: int = 0,
) -> Tensor:
    """One row an operation, with its name; along it other draws, at strengths that rise to 1.

    Args:
        infills: ``(B, 3, S, S)`` floating point in 0..1; the rows show them in turn, and they mix with each other.
        masks: ``(B, 1, S, S)``, 1 = infill.
        images: ``(B, 3, S, S)`` floating point in 0..1, shown where the mask is 0; ``None``: the infills.
        operations: names; ``None``: all there are.
        columns: draws of each.
        seed: of the draws; the global generator stays as it is.

    Returns:
        ``(3, H, W)`` ``uint8``; the first column has the names, the second the infills as they are.

    Raises:
        ValueError: a name that does not exist.

    Example:
        >>> sheet = variation_sheet(torch.rand(2, 3, 32, 32), torch.ones(2, 1, 32, 32), operations=["blur"], columns=2)
        >>> sheet.shape
        torch.Size([3, 35, 235])
    """
    names = list(operations) if operations is not None else [n for group in GROUPS for n in list_operations(group)]
    images = infills if images is None else images
    side = infills.shape[-1]
    rows = []
    with torch.random.fork_rng(devices=[]):
        for row, name in enumerate(names):
            torch.manual_seed(seed + row)
            which = row % len(infills)
            tiles = [_tile(images, infills, masks, which)]
            for column in range(columns):
                strength = (column + 1) / columns
                varied = _only(name, strength)(infills, masks)
                tiles.append(_tile(images, varied, masks, which))
            rows.append(_row(name, tiles, side))
    return torch.cat(rows, dim=1)


def _only(name: str, strength: float) -> Variation:
    kind = find_operation(name)
    group = GROUPS[0] if kind is None else kind.group
    choice = OperationChoice(group, [name], (strength, strength), p=1.0)
    parts: dict[str, Any] = {each: choice if each == group else None for each in GROUPS}
    return Variation(**parts)


def _tile(images: Tensor, fills: Tensor, masks: Tensor, which: int) -> Tensor:
    one = slice(which, which + 1)
    mixed = composite(images[one], fills[one].to(images.dtype), masks[one] > 0)
    return (mixed[0] * 255).round().to(torch.uint8)


def _row(name: str, tiles: Sequence[Tensor], side: int) -> Tensor:
    label = Image.new("RGB", (_LABEL, side + _GAP), "white")
    ImageDraw.Draw(label).text((6, side // 2 - 6), name.replace("_", " "), fill="black")
    cells = [torch.from_numpy(np.array(label)).permute(2, 0, 1)]
    cells += [torch.nn.functional.pad(tile, (_GAP, 0, _GAP, 0), value=255) for tile in tiles]
    return torch.cat(cells, dim=2)
