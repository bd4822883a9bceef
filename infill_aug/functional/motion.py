"""A small motion of a whole picture: found, and undone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torchvision.transforms.v2 import functional as F

Cut = tuple[slice, slice, slice]

_LUMA = (0.299, 0.587, 0.114)
_SIDES = (100, 200, 400)  # longer sides of the copies that a motion is looked for on, one after the other
_ROUNDS = 6
_LEAST_SIDE = 32  # pixels; smaller pictures tell too little
_WHOLE = 0.12  # pixels from whole ones that count as whole
_WORTH = 0.01  # of the picture that a motion has to explain beyond a simpler one
_MOST = 0.05  # of the longer side: what would have moved farther is not the same picture
_TILE, _TILES, _SETTLING = 192, 6, 3  # side in pixels, number, and steps
_SCALE_PIXELS = 10_000  # that tell how well a motion fits


def no_motion() -> Tensor:
    """``(2, 3)`` float64: everything is where it was."""
    return torch.eye(2, 3, dtype=torch.float64)


def moved_part(
    picture: Callable[[Cut], Tensor],
    size: Sequence[int],
    motion: Tensor,
    top: int,
    bottom: int,
    left: int,
    right: int,
) -> Tensor:
    """What lies where ``motion`` says, for one part; bicubic, or a copy where the motion is one of whole pixels."""
    height, width = size
    m = motion.tolist()
    if m[0][:2] == [1, 0] and m[1][:2] == [0, 1]:
        across, down = m[0][2] * width, m[1][2] * height
        if abs(across - round(across)) < 1e-6 and abs(down - round(down)) < 1e-6:
            rows = (torch.arange(top, bottom) + round(down)).clamp(0, height - 1)
            columns = (torch.arange(left, right) + round(across)).clamp(0, width - 1)
            part = picture((slice(None), slice(int(rows[0]), int(rows[-1]) + 1),
                            slice(int(columns[0]), int(columns[-1]) + 1)))  # fmt: skip
            rows, columns = (rows - rows[0]).to(part.device), (columns - columns[0]).to(part.device)
            return part.index_select(1, rows).index_select(2, columns)
    at_x, at_y = _looked_up(size, m, range(top, bottom), range(left, right))
    cut, places = [slice(None)], []
    for at, side in ((at_y, height), (at_x, width)):
        low, high = (float(v) for v in ((at + 0.5) * side - 0.5).aminmax())
        # Three pixels around are looked at; a fourth, so that the rim of the cut is not taken for the picture's.
        first, last = max(0, min(side - 1, math.floor(low) - 4)), min(side, max(1, math.ceil(high) + 5))
        cut.append(slice(first, last))
        places.append(2 * ((at + 0.5) * side - first) / (last - first) - 1)
    part = picture((cut[0], cut[1], cut[2]))
    grid = torch.stack(places[::-1], dim=-1).to(part.device, torch.float32)
    return nnf.grid_sample(part[None], grid[None], "bicubic", "border", align_corners=False)[0].clamp_(0, 1)


def _looked_up(size: Sequence[int], motion: list[list[float]], rows: range, columns: range) -> tuple[Tensor, Tensor]:
    """``(r, c)`` float64 twice, where ``motion`` says, to the right and down: shares of the sides from the centre."""
    height, width = size
    y = (torch.arange(rows.start, rows.stop, dtype=torch.float64) + 0.5) / height - 0.5
    x = (torch.arange(columns.start, columns.stop, dtype=torch.float64) + 0.5) / width - 0.5
    return tuple((m[0] * x)[None, :] + (m[1] * y + m[2])[:, None] for m in motion)  # type: ignore[return-value]


def moved(picture: Tensor, motion: Tensor) -> Tensor:
    """All of a picture ``(C, H, W)``, looked up where ``motion`` says."""
    height, width = picture.shape[-2:]
    return moved_part(lambda cut: picture[cut], (height, width), motion, 0, height, 0, width)


def has_source(size: Sequence[int], motion: Tensor, device: torch.device) -> Tensor:
    """``(1, H, W)`` bool: whether ``motion`` looks up what lies in the picture, and nothing beyond its rim."""
    height, width = size
    at_x, at_y = _looked_up(size, motion.tolist(), range(height), range(width))
    # Bicubic interpolation looks two pixels around.
    return ((at_x.abs() <= 0.5 - 1.5 / width) & (at_y.abs() <= 0.5 - 1.5 / height))[None].to(device)


def fit_motion(original: Tensor, edited: Tensor, usable: Tensor | None, size: Sequence[int]) -> Tensor:
    """Find a small motion of a whole picture: a shift, with a little scale, rotation and shear where there is any.

    Gauss and Newton's method on brightness, coarse to fine (Lucas and Kanade, 1981), weighted anew so that what an edit
    changed weighs nothing.

    Args:
        original: ``(3, H, W)`` float32 in 0..1.
        edited: likewise, of the same colours.
        usable: ``(1, H, W)`` bool, where nothing else should have changed; ``None``: anywhere.
        size: height and width of the pictures that these are small copies of.

    Returns:
        ``(2, 3)`` float64 on the CPU; exactly ``no_motion()`` where it explains nothing, is too small to tell, or so
        large that these are two pictures. Close to whole pixels of ``size`` it is exactly that.

    Example:
        >>> picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> picture = F.resize(picture, [64, 64], antialias=True)
        >>> motion = fit_motion(picture, picture.roll(2, dims=2), None, (64, 64))
        >>> (motion[:, 2] * 64).tolist()
        [2.0, 0.0]
    """
    height, width = original.shape[-2:]
    if min(height, width) < _LEAST_SIDE:
        return no_motion()
    weight = original.new_tensor(_LUMA).view(3, 1, 1)
    grey, other = ((weight * p).sum(dim=0, keepdim=True) for p in (original, edited))
    free = torch.ones_like(grey) if usable is None else usable.float()
    motion = no_motion()
    for side in _SIDES:
        factor = min(1.0, side / max(height, width))
        small = [max(16, round(height * factor)), max(16, round(width * factor))]
        first, second = (F.gaussian_blur(F.resize(p, small, antialias=True), [5, 5], [1.0, 1.0]) for p in (grey, other))
        use = F.resize(free, small, antialias=True)[0] > 0.99
        use[:4], use[-4:], use[:, :4], use[:, -4:] = False, False, False, False
        if int(use.sum()) < 64:
            return no_motion()
        for _ in range(_ROUNDS):
            step = _step(first, second, motion, use, affine=side > _SIDES[0])
            motion = motion + step
            if float(step.abs().max()) * max(small) < 0.01:
                break
        if factor == 1.0:
            break
    sides = torch.tensor([size[1], size[0]], dtype=torch.float64)
    corners = torch.tensor([[-0.5, 0.5, -0.5, 0.5], [-0.5, -0.5, 0.5, 0.5], [1, 1, 1, 1]], dtype=torch.float64)
    path = ((motion - no_motion()) @ corners) * sides[:, None]  # of the corners, in pixels
    if not bool(path.isfinite().all()) or float(path.abs().max()) > _MOST * max(size):
        return no_motion()
    shift = no_motion()
    shift[:, 2] = path.mean(dim=1) / sides
    # The simplest that explains as much as any.
    candidates = [no_motion(), _whole(shift, size), shift, motion]
    scores = [_explained(first, second, each, use) for each in candidates]
    return next(each for each, score in zip(candidates, scores, strict=True) if score >= max(scores) - _WORTH)


def steepness(picture: Tensor) -> Tensor:
    """``(H, W)``: how much there is in a picture ``(3, H, W)`` to tell a motion by."""
    return torch.hypot(*_slopes(_grey(picture)))


def _slopes(picture: Tensor) -> tuple[Tensor, Tensor]:
    """``(H, W)`` twice: change of brightness by pixel, to the right and down."""
    across = nnf.pad(picture[0, :, 2:] - picture[0, :, :-2], (1, 1)) / 2
    return across, nnf.pad(picture[0, 2:] - picture[0, :-2], (0, 0, 1, 1)) / 2


def _apart(first: Tensor, now: Tensor, slope: Tensor) -> Tensor:
    """By how many pixels brightness is out of place; what is out by far is no matter of motion."""
    return (first[0] - now[0]).abs() / (slope + 0.02)


def _explained(first: Tensor, second: Tensor, motion: Tensor, use: Tensor) -> float:
    """0..1: how much of the picture fits within a quarter of a pixel, where there is something to tell by."""
    now = moved(second, motion)
    slope = torch.hypot(*_slopes(first))
    near = 1 / (1 + (_apart(first, now, slope) / 0.25) ** 2)
    weight = slope.clamp(max=0.1) * use
    return float((near * weight).double().sum() / weight.double().sum().clamp(min=1e-9))


def _step(first: Tensor, second: Tensor, motion: Tensor, use: Tensor, affine: bool) -> Tensor:
    """One step of the Gauss-Newton method, to be added to the motion."""
    found = _solved(*_equations(first, moved(second, motion), use, affine))
    step = torch.zeros(2, 3, dtype=torch.float64)
    step[:, 2] = found[:2]
    if affine:
        step[:, :2] = found[2:].view(2, 2)
    return step


def _equations(first: Tensor, now: Tensor, use: Tensor, affine: bool) -> tuple[Tensor, Tensor]:
    """Normal equations of a step, in shares of the sides; of a shift, or of all six parameters."""
    height, width = first.shape[-2:]
    across, down = _slopes(now)
    slope = torch.hypot(across, down)
    apart = _apart(first, now, slope)
    # Plain pixels tell nothing.
    steep = slope[use]
    steep = steep[:: max(1, len(steep) // _SCALE_PIXELS)].quantile(0.5)
    pick = (use & (slope >= steep)).flatten().nonzero()[:, 0]
    gx, gy, away, steepness = (v.flatten()[pick].double() for v in (across, down, apart, slope))
    error = (first - now).flatten()[pick].double()
    y = ((pick // width).double() + 0.5) / height - 0.5
    x = ((pick % width).double() + 0.5) / width - 0.5
    gx, gy = gx * width, gy * height
    jacobian = torch.stack([gx, gy] + ([gx * x, gx * y, gy * x, gy * y] if affine else []))
    scale = away[:: max(1, len(away) // _SCALE_PIXELS)].quantile(0.5).clamp(min=0.05)
    weight = 1 / (1 + (away / (1.5 * scale)) ** 2) ** 2 / (steepness + 0.02)
    weighted = jacobian * weight
    return weighted @ jacobian.T, weighted @ error


def _solved(gram: Tensor, right: Tensor) -> Tensor:
    ridge = 1e-4 * gram.diagonal().mean() + 1e-12
    return torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), right).cpu()


def settle_shift(
    original: Callable[[Cut], Tensor],
    edited: Callable[[Cut], Tensor],
    size: Sequence[int],
    motion: Tensor,
    worth: Tensor,
) -> Tensor:
    """Measure a shift that was found on small copies again, on some parts of the pictures themselves.

    Args:
        original: gives a cut of the original, ``(3, r, c)`` float32 in 0..1.
        edited: of the edited picture, likewise, of the same colours.
        size: height and width of the pictures.
        motion: ``(2, 3)``, of ``fit_motion``.
        worth: ``(h, w)``, how much there is to tell by, of any size.

    Returns:
        ``(2, 3)`` float64; ``motion`` itself where it is more than a shift.
    """
    height, width = size
    if not torch.equal(motion[:, :2], no_motion()[:, :2]) or min(size) < _TILE:
        return motion
    rows, columns = height // _TILE, width // _TILE
    cells = nnf.adaptive_avg_pool2d(worth[None, None].float(), (rows, columns)).flatten()
    tiles = []
    for place in cells.topk(min(_TILES, len(cells))).indices.tolist():
        top, left = place // columns * height // rows, place % columns * width // columns
        cut = (slice(None), slice(top, top + _TILE), slice(left, left + _TILE))
        tiles.append((_grey(original(cut)), (top, top + _TILE, left, left + _TILE)))
    use = torch.zeros(_TILE, _TILE, dtype=torch.bool, device=worth.device)
    use[4:-4, 4:-4] = True
    shares = torch.tensor([_TILE / width, _TILE / height], dtype=torch.float64)
    found = motion.clone()
    for _ in range(_SETTLING):
        equations = [
            _equations(first, _grey(moved_part(edited, size, found, *tile)), use, affine=False) for first, tile in tiles
        ]
        found[:, 2] += _solved(*(torch.stack(each).sum(dim=0) for each in zip(*equations, strict=True))) * shares
    off = (found - motion)[:, 2] * torch.tensor([width, height], dtype=torch.float64)
    if not bool((off.abs() < max(size) / 256).all()):  # farther than the small copies could be wrong
        return motion
    return _whole(found, size)


def _grey(picture: Tensor) -> Tensor:
    """Brightness ``(1, H, W)``, a little smoothed."""
    grey = (picture.new_tensor(_LUMA).view(3, 1, 1) * picture).sum(dim=0, keepdim=True)
    return F.gaussian_blur(grey, [5, 5], [1.0, 1.0])


def _whole(motion: Tensor, size: Sequence[int]) -> Tensor:
    """A shift of whole pixels where it is about that: it needs no interpolation, and editors that crop make such."""
    sides = torch.tensor([size[1], size[0]], dtype=torch.float64)
    pixels = motion[:, 2] * sides
    whole = no_motion()
    whole[:, 2] = torch.where((pixels - pixels.round()).abs() < _WHOLE, pixels.round(), pixels) / sides
    return whole
