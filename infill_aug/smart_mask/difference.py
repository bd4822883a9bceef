"""The known way to find what an editor changed: where the colours differ enough, the largest patch. The baseline."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from infill_aug.functional.difference import ciede2000, srgb_to_lab
from infill_aug.functional.masks import dilate, erode
from infill_aug.smart_mask.result import Region

_FEATHER_SIDE = 2100  # long side that the feather is given for
_MOST_REPORTED = 16  # noise makes regions by the thousand
_MOST_SAMPLED = 4096  # pixels that tell a region's strength


def difference_mask(
    original: Tensor,
    edited: Tensor,
    *,
    threshold: float = 0.10,
    least_share: float = 0.03,
    erosion: int = 2,
    dilation: int = 3,
    feather: float = 30.0,
) -> tuple[Tensor, tuple[Region, ...]]:
    """Soft mask of the largest patches of pixels whose colour changed by a tenth or more.

    In this order: mean absolute difference of red, green and blue; threshold; connected regions (8 neighbours), of
    which the largest stays and every one above a share of the picture; erosion; holes filled; dilation (both with
    squares); a Gaussian. The picture's border shrinks nothing and is no edge to be softened.

    The method does not know what is global: colour drift, compression and shifts count as change. What is thinner than
    the erosion is lost, and the feather lies on both sides of the edge. It is what ``SmartMask()`` is compared with.

    Args:
        original: ``(3, H, W)`` ``uint8``, or floating point in 0..1.
        edited: likewise, same shape, dtype and device.
        threshold: difference from which a pixel counts as changed, above 0 and up to 1, in units of the full range.
        least_share: share of the picture above which a region stays beside the largest, 0..1.
        erosion: pixels, 0 or more.
        dilation: pixels, 0 or more.
        feather: pixels to either side of the edge over which the mask falls, in a picture with a long side of 2100; it
            grows with the long side. The Gaussian's sigma is half of it, so that at its end 2 % are left. 0 for none.

    Returns:
        The mask, ``(1, H, W)`` float32 in 0..1 on the device of the pictures, 1 = the edit is taken; all 0 for pictures
        that are the same. And the regions as they were after the threshold, the largest first: all that are taken and
        at least the first 16. Their evidence is their share of the changed pixels; of their strength nothing is taken
        out, and it is read off 4096 pixels.

    Raises:
        ValueError: shapes or dtypes that do not fit, or a number out of range.

    Example:
        >>> import torch
        >>> original = torch.zeros(3, 40, 40, dtype=torch.uint8)
        >>> edited = original.clone()
        >>> edited[:, 10:30, 10:30] = 200
        >>> mask, regions = difference_mask(original, edited, feather=0)
        >>> mask.sum().item(), regions[0].box, regions[0].taken  # dilated by one more than eroded
        (484.0, (10, 10, 30, 30), True)
    """
    _check(original, edited)
    for name, value, most in (("threshold", threshold, 1.0), ("least_share", least_share, 1.0),
                              ("erosion", erosion, math.inf), ("dilation", dilation, math.inf),
                              ("feather", feather, math.inf)):  # fmt: skip
        if not 0 <= value <= most or (name == "threshold" and value == 0):
            raise ValueError(f"{name} must lie in 0..{most} (threshold above 0), got {value}")
    changed = _difference_at_least(original, edited, threshold)
    height, width = changed.shape
    mask = torch.zeros(1, height, width, device=original.device)
    labels, areas, kept = _largest(changed.cpu().numpy(), least_share)
    if not kept:
        return mask, ()
    regions = _regions(original, edited, labels, areas, kept)

    sigma = feather / 2 * max(height, width) / _FEATHER_SIDE
    # What is far from the regions stays 0: most of the picture, as a rule. One pixel more, since an edge of the part
    # that is none of the picture must not be taken for one.
    margin = dilation + math.ceil(4 * sigma) + 1
    boxes = [region.box for region in regions if region.taken]
    left, top = (max(0, min(box[i] for box in boxes) - margin) for i in (0, 1))
    right, bottom = (max(box[i] for box in boxes) + margin for i in (2, 3))
    part = labels[top:bottom, left:right]
    chosen = torch.from_numpy((part > 0) & (part <= kept))
    shrunk = erode(chosen[None, None], erosion)[0, 0]
    filled = torch.from_numpy(_without_holes(shrunk.numpy())).to(mask.device)
    grown = dilate(filled[None, None].float(), dilation)[0, 0]
    mask[0, top:bottom, left:right] = _blurred(_blurred(grown, sigma).T, sigma).T if sigma else grown
    return mask, regions


def _check(original: Tensor, edited: Tensor) -> None:
    fits = original.shape == edited.shape and original.dtype == edited.dtype
    if not fits or original.ndim != 3 or original.shape[0] != 3 or not original.numel():
        raise ValueError(
            "original and edited must both be (3, H, W) of one dtype, got "
            f"{tuple(original.shape)} {original.dtype} and {tuple(edited.shape)} {edited.dtype}; resize or convert one"
        )
    if original.dtype != torch.uint8 and not original.is_floating_point():
        raise ValueError(f"pictures must be uint8, or floating point in 0..1, got {original.dtype}; convert them first")


def _difference_at_least(original: Tensor, edited: Tensor, threshold: float) -> Tensor:
    """``(H, W)`` bool; 8 bits stay integers, since at millions of pixels the passes over memory count."""
    if original.dtype != torch.uint8:
        return (original.float() - edited.float()).abs().sum(dim=0) >= 3 * threshold - 1e-5
    total = torch.zeros_like(original[0], dtype=torch.int16)
    for one, other in zip(original, edited, strict=True):
        total += torch.maximum(one, other) - torch.minimum(one, other)
    return total >= math.ceil(3 * 255 * threshold - 1e-6)


def _largest(changed: Any, least_share: float) -> tuple[Any, Any, int]:
    """Regions numbered by size from 1, the small ones 0; their areas, and how many of them belong to the mask."""
    import numpy as np
    from scipy import ndimage

    labels, count = ndimage.label(changed, np.ones((3, 3)))
    if not count:
        return labels, np.zeros(0, int), 0
    areas = np.bincount(labels[changed])[1:]
    order = np.argsort(-areas, kind="stable")
    kept = max(1, int((areas > least_share * changed.size).sum()))
    order = order[: max(kept, _MOST_REPORTED)]
    rank = np.zeros(count + 1, np.int32)
    rank[order + 1] = np.arange(1, len(order) + 1)
    return rank[labels], areas[order] / areas.sum(), kept


def _regions(original: Tensor, edited: Tensor, labels: Any, shares: Any, kept: int) -> tuple[Region, ...]:
    from scipy import ndimage

    regions = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        y, x = (labels[rows, columns] == number).nonzero()
        step = -(-len(y) // _MOST_SAMPLED)
        place = [torch.from_numpy(v[::step] + part.start) for v, part in ((y, rows), (x, columns))]
        colours = (srgb_to_lab(picture[:, place[0], place[1]][:, None]) for picture in (original, edited))
        regions.append(
            Region(
                box=(columns.start, rows.start, columns.stop, rows.stop),
                area=len(y),
                strength=float(ciede2000(*colours).mean()),
                evidence=float(shares[number - 1]),
                taken=number <= kept,
            )
        )
    return tuple(regions)


def _without_holes(mask: Any) -> Any:
    """The mask with all that it encloses: what is off the mask and not joined to the border by 4 neighbours."""
    import numpy as np
    from scipy import ndimage

    labels, count = ndimage.label(~mask)
    outside = np.zeros(count + 1, bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        outside[edge] = True
    outside[0] = False
    return ~outside[labels]


def _blurred(mask: Tensor, sigma: float) -> Tensor:
    """Gaussian along the last axis, cut off at four sigma; blocks times a band matrix, ten times as fast as taps."""
    reach, side = math.ceil(4 * sigma), mask.shape[-1]
    block = max(64, 2 * reach)
    tap = torch.arange(block + 2 * reach, device=mask.device)[:, None] - torch.arange(block, device=mask.device) - reach
    band = torch.exp(-0.5 * (tap / sigma) ** 2) * (tap.abs() <= reach)
    wide = nnf.pad(mask[None], (reach, reach + -side % block), mode="replicate")[0]
    soft = (wide.unfold(-1, block + 2 * reach, block) @ (band / band.sum(dim=0))).flatten(1)[:, :side]
    return torch.where(soft > 1 - 1e-5, 1.0, soft)  # rounding must not take a level from the edit's inside
