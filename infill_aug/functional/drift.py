"""The colour shift that a generator gives a whole picture, measured where nothing should change and taken back."""

from __future__ import annotations

import torch
from torch import Tensor

_STEPS = 20  # of reweighting
_MIN_PIXELS = 64  # kept pixels that a fit needs
_MAX_GAIN = 2.0
_MAX_OFFSET = 0.25


def remove_drift(original: Tensor, edited: Tensor, keep: Tensor) -> Tensor:
    """Undo the shift of colours between a picture and its edited copy.

    Services that edit a picture draw all of it anew, a little brighter or flatter. For each channel a gain and an
    offset are fitted where nothing should have changed, and inverted everywhere. Least absolute deviations, by
    reweighting, find which pixels the fit describes, since the generator redraws some of them; of those, the gain is
    the ratio of deviations, which noise on both sides does not bias. Gains beyond 0.5..2 and offsets beyond 0.25 are
    cut off there.

    Args:
        original: ``(B, 3, H, W)`` floating point in 0..1.
        edited: ``(B, 3, H, W)`` floating point in 0..1, the same pictures with another content where ``keep`` is false.
        keep: ``(B, 1, H, W)`` bool, true where nothing should have changed.

    Returns:
        ``(B, 3, H, W)`` like ``edited``, in 0..1; as it is where fewer than 64 kept pixels tell of a shift.

    Example:
        >>> import torch
        >>> picture, keep = torch.rand(1, 3, 16, 16), torch.ones(1, 1, 16, 16, dtype=torch.bool)
        >>> back = remove_drift(picture, 0.8 * picture + 0.1, keep)
        >>> bool(torch.allclose(back, picture, atol=1e-3))
        True
    """
    if original.shape != edited.shape or keep.shape != (original.shape[0], 1, *original.shape[2:]):
        raise ValueError(
            "original and edited must be (B, 3, H, W) and keep (B, 1, H, W) of the same size, got "
            f"{tuple(original.shape)}, {tuple(edited.shape)} and {tuple(keep.shape)}"
        )
    # Double precision, as in push_pull: a cached fill must not depend on the number of threads.
    x, y = (picture.flatten(2).double() for picture in (original, edited))
    # A colour at the end of the range was cut off there, and tells nothing of the shift.
    known = keep.flatten(2) & (y > 0.5 / 255) & (y < 1 - 0.5 / 255)
    weight = known.double()
    for _ in range(_STEPS):
        gain, offset = _fit(x, y, weight)
        error = (y - gain * x - offset).abs()
        weight = known / error.clamp(min=1e-3)
    spread = error.masked_fill(~known, torch.nan).nanmedian(dim=2, keepdim=True).values
    weight = (known & (error <= (3 * spread).clamp(min=1 / 255))).double()
    gain, offset = _fit(x, y, weight, symmetric=True)
    enough = weight.sum(dim=2, keepdim=True) >= _MIN_PIXELS
    back = ((y - offset) / gain).clamp(0, 1)
    return torch.where(enough, back, y).to(edited.dtype).reshape(edited.shape)


def _fit(x: Tensor, y: Tensor, weight: Tensor, symmetric: bool = False) -> tuple[Tensor, Tensor]:
    """Gain and offset ``(B, 3, 1)`` of y over x: weighted least squares, or the ratio of deviations."""
    total = weight.sum(dim=2, keepdim=True).clamp(min=1e-12)
    mean_x, mean_y = ((weight * v).sum(dim=2, keepdim=True) / total for v in (x, y))
    over_x, over_y = x - mean_x, y - mean_y
    square = (weight * over_x.square()).sum(dim=2, keepdim=True) / total
    if symmetric:
        gain = ((weight * over_y.square()).sum(dim=2, keepdim=True) / total / square.clamp(min=1e-12)).sqrt()
    else:
        gain = (weight * over_x * over_y).sum(dim=2, keepdim=True) / total / square.clamp(min=1e-12)
    # One flat colour has no contrast to compare: the shift is an offset then.
    gain = torch.where(square > 1e-5, gain, 1.0).clamp(1 / _MAX_GAIN, _MAX_GAIN)
    return gain, (mean_y - gain * mean_x).clamp(-_MAX_OFFSET, _MAX_OFFSET)
