"""A drift of all colours of a picture: found, and undone."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor

_SAMPLES = 10_000  # pixels that a fit looks at
_PART_SAMPLES = 2_000  # of a part of the picture
_STEPS = 8
_LOW = 0.2  # quantile of the errors that an edit of most of the picture does not reach
_FINEST = 0.01  # differences (0..1) below it are all as good
# Beyond these a change of colours is none of the whole picture: channels mixed, gain, offset.
_MOST = (0.2, 0.5, 0.25)
_CLIPPED = 0.5 / 255
_NOTICEABLE = 0.6 / 255  # a drift smaller than rounding is none
# How far the data has to speak for a drift: of the own channel, of the others, the square and the offset. The channels
# of a picture with little colour are all alike, and an editor seldom mixes them.
_PRIOR = (5e-5, 1e-3, 3e-4, 1e-5)


def no_drift() -> Tensor:
    """``(3, 5)`` float64: every colour is what it was."""
    return torch.eye(3, 5, dtype=torch.float64)


def coloured(picture: Tensor, colours: Tensor) -> Tensor:
    """Undo a drift.

    Args:
        picture: ``(3, H, W)`` float32 in 0..1.
        colours: ``(3, 5)``, of ``fit_drift``.

    Returns:
        ``(3, H, W)`` float32 in 0..1.

    Example:
        >>> picture = torch.rand(3, 2, 2)
        >>> coloured(picture, no_drift()).allclose(picture)
        True
    """
    matrix = colours.to(picture.device, torch.float32)
    flat = picture.flatten(1)
    return (matrix[:, :3] @ flat + matrix[:, 3:4] * flat**2 + matrix[:, 4:]).clamp_(0, 1).view_as(picture)


def fit_drift(original: Tensor, edited: Tensor, usable: Tensor | None = None, start: Tensor | None = None) -> Tensor:
    """Find the drift of colours between a picture and its edited copy.

    Least squares, weighted anew until what the edit changed weighs nothing (Geman and McClure's weights). An edit of
    half of the picture could pull such a fit to itself; it is in one place, though, so that fits to parts of the
    picture are tried as well, and the one that explains most of the whole is refined.

    Args:
        original: ``(3, H, W)`` float32 in 0..1.
        edited: likewise.
        usable: ``(1, H, W)`` bool, where nothing else should have changed; ``None``: anywhere.
        start: ``(3, 5)``, a drift to begin with instead of trying parts.

    Returns:
        ``(3, 5)`` float64 on the CPU: a channel of the original is ``colours @ (r, g, b, own ** 2, 1)`` of the edited
        picture's; exactly ``no_drift()`` where it is less than rounding.

    Example:
        >>> picture = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> picture = picture.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
        >>> colours = fit_drift(picture, 0.8 * picture + 0.1)
        >>> bool(torch.allclose(coloured(0.8 * picture + 0.1, colours), picture, atol=0.01))
        True
    """
    height, width = original.shape[-2:]
    step = max(1, round(math.sqrt(height * width / _SAMPLES)))
    # Noise of the edited picture would flatten the fit; a mean over some pixels has less of it.
    window = max(3, 2 * (step // 2) + 1)
    x, y = (
        nnf.avg_pool2d(picture[None], window, step, window // 2, count_include_pad=False)[0].flatten(1).double()
        for picture in (edited, original)
    )
    places = _places(math.ceil(height / step), math.ceil(width / step), original.device)
    if usable is not None:
        known = nnf.max_pool2d((~usable).float()[None], window, step, window // 2)[0, 0].flatten() == 0
        x, y, places = x[:, known], y[:, known], places[:, known]
    if x.shape[1] < 64:
        return no_drift()
    data = _Data(x, y)
    same = _columns(no_drift().to(x.device))
    first = _likeliest(data, places, same) if start is None else _columns(start.to(x.device))
    fit = _refined(data, first, robust=False)
    if float(_unlikeliness(fit)) > 1:
        fit = first
    weight = 1 / (1 + (data.errors(fit) / 0.02) ** 2) ** 2
    change = (data.features @ fit - x.T).abs().mean(dim=1)
    noticeable = float((change * weight).sum() / weight.sum().clamp(min=1e-9)) > _NOTICEABLE
    return _rows(fit).cpu() if noticeable else no_drift()


class _Data:
    """Colours ``(3, N)`` before and after, as least squares want them: features r, g, b, their squares, and one."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.features = torch.cat([x, x**2, torch.ones_like(x[:1])]).T.contiguous()
        self.y = y.T.contiguous()
        # A colour at the end of the range was cut off there: what it was is known to lie beyond, and no more.
        self.low, self.high = (x <= _CLIPPED).T, (x >= 1 - _CLIPPED).T
        self.whole = ~(self.low | self.high).any(dim=1)

    def part(self, places: Tensor) -> _Data:
        part = object.__new__(_Data)
        for name, value in vars(self).items():
            setattr(part, name, value[places])
        return part

    def errors(self, fit: Tensor) -> Tensor:
        """``(N,)``: by how much a fit is off."""
        off = self.features @ fit - self.y
        off = torch.where(self.low, off.clamp(max=0), off)
        off = torch.where(self.high, off.clamp(min=0), off)
        return off.square().sum(dim=1).sqrt()


def _columns(colours: Tensor) -> Tensor:
    """``(7, 3)``, for the features of ``_Data``, of ``(3, 5)``."""
    return torch.cat([colours[:, :3].T, colours[:, 3].diag(), colours[:, 4:].T])


def _rows(fit: Tensor) -> Tensor:
    return torch.cat([fit[:3].T, fit[3:6].diagonal()[:, None], fit[6:].T], dim=1)


def _likeliest(data: _Data, places: Tensor, same: Tensor) -> Tensor:
    """The drift that explains most of the picture, of none at all and fits to parts of it."""
    fits = [same]
    for place in places:
        at = (place & data.whole).nonzero()[:, 0]
        if len(at) >= 64:
            fits.append(_refined(data.part(at[:: max(1, len(at) // _PART_SAMPLES)]), same, robust=True))
    some = data.part(torch.arange(0, len(data.y), max(1, len(data.y) // (2 * _PART_SAMPLES)), device=same.device))
    errors = torch.stack([some.errors(fit) for fit in fits])
    scale = errors.quantile(_LOW, dim=1).min().clamp(min=_FINEST)
    score = (1 / (1 + (errors / (1.5 * scale)) ** 2) ** 2).mean(dim=1)
    # What mixes channels a lot, and takes the colour out of what was painted, is no drift, however much it explains.
    return fits[int((score - torch.stack([_unlikeliness(fit) for fit in fits])).argmax())]


def _places(height: int, width: int, device: torch.device) -> Tensor:
    """``(N, height * width)`` bool: all, the rim, the middle, halves and quarters."""
    y = ((torch.arange(height, device=device) + 0.5) / height)[:, None].expand(-1, width)
    x = ((torch.arange(width, device=device) + 0.5) / width).expand(height, -1)
    rim = torch.minimum(torch.minimum(x, 1 - x), torch.minimum(y, 1 - y)) < 0.15
    middle = torch.maximum((x - 0.5).abs(), (y - 0.5).abs()) < 0.25
    parts = [torch.ones_like(rim), rim, middle, x < 0.5, x > 0.5, y < 0.5, y > 0.5]
    parts += [(x < 0.5) & (y < 0.5), (x > 0.5) & (y < 0.5), (x < 0.5) & (y > 0.5), (x > 0.5) & (y > 0.5)]
    return torch.stack(parts).flatten(1)


def _unlikeliness(fit: Tensor) -> Tensor:
    """Grows with what a fit does to colours: editors mix channels by less than a tenth."""
    departure = (fit - _columns(no_drift().to(fit.device))).abs()
    own = departure[:3].diagonal()
    mixed = (departure[:3] - own.diag()).max()
    beyond = [v > most for v, most in zip((mixed, own.max(), departure[6].max()), _MOST, strict=True)]
    return 0.5 * own.max() + 2 * mixed + torch.stack(beyond).any().double()


def _refined(data: _Data, fit: Tensor, robust: bool) -> Tensor:
    """Weighted least squares, again and again; ``robust``: from the data alone, not from the fit given."""
    alone, mixed, square, offset = _PRIOR
    priors = [[alone if channel == c else mixed for c in range(3)] + [square, offset] for channel in range(3)]
    prior = torch.tensor(priors, dtype=torch.float64, device=fit.device)
    own = no_drift().to(fit.device)
    error = None if robust else data.errors(fit)
    for step in range(_STEPS):
        if error is None:
            weight = data.whole.double()
        else:
            late = not robust or step >= _STEPS // 2
            scale = error.quantile(_LOW if late else 0.5).clamp(min=_FINEST)
            weight = data.whole / (1 + (error / (1.5 * scale)) ** 2) ** (2 if late else 1)
        # Of the number of pixels, not of the weights: where nothing is explained, the prior is what counts.
        weighted = data.features * (weight / len(weight))[:, None]
        gram, right = weighted.T @ data.features, weighted.T @ data.y
        rows = []
        for channel in range(3):
            used = [0, 1, 2, 3 + channel, 6]
            rows.append(
                torch.linalg.solve(
                    gram[used][:, used] + prior[channel].diag(), right[used, channel] + prior[channel] * own[channel]
                )
            )
        fit = _columns(torch.stack(rows))
        error = data.errors(fit)
    return fit
