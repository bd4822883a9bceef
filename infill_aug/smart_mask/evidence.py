"""How much each pixel changed, against the noise that this pair of pictures has everywhere."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

from infill_aug.functional.blur import gaussian_blur
from infill_aug.functional.difference import ciede2000, srgb_to_lab

# Standard deviations in pixels. The finest sees edges and texture, the coarsest sees a faint change of a whole object
# through the noise.
_SCALES = (0.7, 1.5, 3.0)
_REACH = 2.5  # of the blurs, in standard deviations
_LEAST = 1.0  # CIEDE2000 units: what nobody sees is no edit, however little noise there is
# The noise is read from a low quantile of the differences, which an edit of most of the picture does not reach, and
# brought up to the level that noise of two dimensions has at its quantile of 0.3.
_QUANTILE, _LEVEL = 0.15, 1.48
_FIT_STEPS = 12
_FIT_PIXELS = 20_000


def change_evidence(original: Tensor, edited: Tensor, usable: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """How many times larger than the noise the difference of two pictures is.

    The difference is CIEDE2000 of both pictures after equal blurs. Compression, a decoder, and a shift of less than a
    pixel change edges and texture far more than plain areas; so the noise of a pixel is taken to be a constant and a
    share of the contrast around it, both fitted to this pair, to a low quantile, which an edit does not reach.

    Args:
        original: ``(3, H, W)`` floating point in 0..1.
        edited: likewise, motion and drift undone.
        usable: ``(1, H, W)`` bool, where nothing should have changed, to read the noise from; ``None``: anywhere.

    Returns:
        ``(H, W)`` float32, 0 or more: about 1 is noise, several times that an edit; and the same difference in
        CIEDE2000 units at the coarsest scale.

    Example:
        >>> picture = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(0))
        >>> edited = picture.clone()
        >>> edited[:, 6:18, 6:18] = 1 - edited[:, 6:18, 6:18]
        >>> ratio, _ = change_evidence(picture, edited)
        >>> bool(ratio[12, 12] > 2 > ratio[2, 2])
        True
    """
    first, second = srgb_to_lab(original), srgb_to_lab(edited)
    total = torch.zeros_like(first[0])
    for sigma in _SCALES:
        a, b = gaussian_blur(first, sigma, _REACH), gaussian_blur(second, sigma, _REACH)
        difference = ciede2000(a, b)[0]
        # Where one of the two is plain, the other's detail is no noise.
        contrast = gaussian_blur(torch.minimum(_slope(a), _slope(b))[None], sigma, _REACH)[0]
        constant, share = _noise(difference, contrast, usable)
        total += (difference / (_LEVEL * (constant + share * contrast)).clamp(min=_LEAST)).clamp(min=1e-3).log()
    return (total / len(_SCALES)).exp(), difference


def _noise(difference: Tensor, contrast: Tensor, usable: Tensor | None) -> tuple[float, float]:
    """Constant and share of the contrast that make up the noise: a linear quantile regression, neither below 0."""
    picked = torch.ones_like(difference, dtype=torch.bool) if usable is None else usable[0]
    y, x = difference[picked].double(), contrast[picked].double()
    if len(y) < 64:
        y, x = difference.flatten().double(), contrast.flatten().double()
    step = max(1, len(y) // _FIT_PIXELS)
    y, x = y[::step], x[::step]
    weight = torch.ones_like(y)
    constant, share = 0.0, 0.0
    for _ in range(_FIT_STEPS):
        sums = torch.stack([weight.sum(), (weight * x).sum(), (weight * x * x).sum(), (weight * y).sum(),
                            (weight * x * y).sum()]).tolist()  # fmt: skip
        n, sx, sxx, sy, sxy = sums
        determinant = n * sxx - sx * sx + 1e-9 * n * n
        constant, share = (sxx * sy - sx * sxy) / determinant, (n * sxy - sx * sy) / determinant
        if share < 0:
            constant, share = sy / n, 0.0
        elif constant < 0:
            constant, share = 0.0, sxy / max(sxx, 1e-12)
        left = y - constant - share * x
        weight = torch.where(left > 0, _QUANTILE, 1 - _QUANTILE) / left.abs().clamp(min=0.05)
    return constant, share


def _slope(lab: Tensor) -> Tensor:
    """``(H, W)``: how far colours change from pixel to pixel."""
    across = nnf.pad(lab[:, :, 2:] - lab[:, :, :-2], (1, 1)) / 2 if lab.shape[2] > 2 else torch.zeros_like(lab)
    down = nnf.pad(lab[:, 2:] - lab[:, :-2], (0, 0, 1, 1)) / 2 if lab.shape[1] > 2 else torch.zeros_like(lab)
    return (across.square() + down.square()).sum(dim=0).sqrt()
