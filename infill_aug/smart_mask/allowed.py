"""Where an edit may be: masks and boxes, in any form, at the size of the pictures."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from PIL import ImageOps
from torch import Tensor


def area_of(area: Any, count: int, size: tuple[int, int], device: torch.device, name: str) -> Tensor:
    """A mask, or boxes, as an area for each picture.

    Args:
        area: mask as a tensor or array ``(H, W)``, ``(1, H, W)`` or ``(B, 1, H, W)``, PIL picture or file: bool, 0 / 1,
            ``uint8`` up to 255 or floating point in 0..1, cut at one half; or a list of boxes ``(left, top, right,
            bottom)`` in pixels, the last two exclusive.
        count: pictures; one mask goes for all.
        size: height and width of the pictures.
        device: of the result.
        name: of the argument, for errors.

    Returns:
        ``(count, 1, H, W)`` bool.

    Raises:
        ValueError: another size, number or kind of values.

    Example:
        >>> area_of([(0, 0, 2, 1)], 1, (2, 3), torch.device("cpu"), "protect")[0, 0].tolist()
        [[True, True, False], [False, False, False]]
    """
    height, width = size
    if isinstance(area, list | tuple):
        mask = torch.zeros(1, 1, height, width, dtype=torch.bool, device=device)
        for box in area:
            numbers = isinstance(box, list | tuple | Tensor | np.ndarray) and len(box) == 4
            if not numbers or not all(math.isfinite(float(v)) for v in box):
                raise ValueError(
                    f"a box of {name} is (left, top, right, bottom) in pixels, and boxes come in a list, got {box!r}"
                )
            left, top, right, bottom = (float(v) for v in box)
            if left >= right or top >= bottom:
                raise ValueError(f"a box of {name} is (left, top, right, bottom), the last two larger, got {box!r}")
            mask[..., max(0, math.floor(top)) : max(0, math.ceil(bottom)),
                 max(0, math.floor(left)) : max(0, math.ceil(right))] = True  # fmt: skip
        return mask.expand(count, -1, -1, -1)
    if isinstance(area, str | os.PathLike):
        with PILImage.open(area) as picture:
            picture.load()
            area = ImageOps.exif_transpose(picture)
    if isinstance(area, PILImage.Image):
        if "A" in area.getbands():
            raise ValueError(f"{name} is a picture with alpha, of which none is 1 = change; pass one channel of it")
        area = np.array(area.convert("L"))
    mask = torch.as_tensor(area, device=device)
    deep = mask.dtype == torch.uint16
    mask = mask.int() if deep else mask  # torch has few operations for it
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim == 3 and mask.shape[0] == 1:
        mask = mask[None]
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[2:] != size or mask.shape[0] not in (1, count):
        raise ValueError(
            f"{name} must be (H, W), (1, H, W) or (B, 1, H, W) for {count} picture(s) of {width}x{height}, got "
            f"{tuple(mask.shape)}; resize it, or pass a list of boxes"
        )
    if mask.dtype != torch.bool:
        low, high = (float(v) for v in mask.aminmax())
        most = 1 if mask.is_floating_point() or high <= 1 else 65535 if deep and high > 255 else 255
        if not (low >= 0 and high <= most):  # also where there is NaN
            raise ValueError(f"{name} must hold 0..1, or 0..255 as integers, got values from {low:.4g} to {high:.4g}")
        mask = mask >= most / 2
    return mask.expand(count, -1, -1, -1)
