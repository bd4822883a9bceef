"""From evidence of change to an outline: a threshold of the picture's own, and the cheapest outline."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

from infill_aug.functional.difference import srgb_to_lab

_BINS = 128
LEAST = 1.5  # times the noise: a threshold below it would cut the noise itself in two
_STEP = 0.35  # of the primal and of the dual side; their product must stay below 1/8
_ROUNDS = 100


def change_threshold(ratio: Tensor, least: float = LEAST) -> float:
    """The ratio of difference to noise that parts changed from unchanged pixels: Otsu's (1979), of its logarithm.

    Args:
        ratio: ``(H, W)``, of ``change_evidence``.
        least: lowest threshold.

    Returns:
        The threshold.

    Example:
        >>> ratio = torch.cat([torch.full((90,), 0.5), torch.full((10,), 8.0)]).view(10, 10)
        >>> 1.5 <= change_threshold(ratio) < 8
        True
    """
    values = ratio.clamp(min=0.05).log().flatten()
    low, high = (float(v) for v in values.aminmax())
    if high - low < 1e-6:
        return least
    counts = torch.histc(values.float().cpu(), _BINS, low, high).double()
    width = (high - low) / _BINS
    centres = low + (torch.arange(_BINS, dtype=torch.float64) + 0.5) * width
    below, total = counts.cumsum(0), counts.sum()
    sums = (counts * centres).cumsum(0)
    mean = sums[-1] / total
    between = (mean * below - sums).square() / (below * (total - below)).clamp(min=1e-9)
    edges = centres + width / 2
    between[(edges < torch.tensor(least).log()) | (below >= total)] = 0
    best = int(between.argmax())
    return float(edges[best].exp()) if float(between[best]) > 0 else least


def cheapest_outline(cost: Tensor, ease: Tensor) -> Tensor:
    """The area of least cost, where its outline costs too: a global optimum, whatever one starts from.

    Minimises ``sum(cost * u) + sum(ease * |grad u|)`` over ``u`` in 0..1, the convex form of a binary segmentation
    (Chan, Esedoglu and Nikolova, 2006), by the primal-dual method of Chambolle and Pock (2011). Specks and gaps cost
    more outline than they are worth, and an outline runs where it is cheap, along edges.

    Args:
        cost: ``(H, W)`` floating point: below 0 where a pixel belongs inside.
        ease: ``(H, W)``, 0 or more: what a pixel's length of outline costs there.

    Returns:
        ``(H, W)`` like ``cost``, in 0..1; cut at one half.

    Example:
        >>> cost = torch.full((16, 16), 1.0)
        >>> cost[4:12, 4:12] = -1.0
        >>> cost[7, 7] = 1.0  # a gap of one pixel
        >>> (cheapest_outline(cost, torch.ones_like(cost)) > 0.5).sum().item()
        64
    """
    inside = (cost < 0).to(cost.dtype)
    ahead, spare = inside.clone(), torch.empty_like(inside)
    across, down = torch.zeros_like(inside), torch.zeros_like(inside)  # the dual, zero in its last column and row
    for _ in range(_ROUNDS):
        across[:, :-1].add_(ahead[:, 1:] - ahead[:, :-1], alpha=_STEP)
        down[:-1].add_(ahead[1:] - ahead[:-1], alpha=_STEP)
        torch.minimum(torch.maximum(across, -ease, out=across), ease, out=across)
        torch.minimum(torch.maximum(down, -ease, out=down), ease, out=down)
        torch.add(across, down, out=spare)
        spare[:, 1:].sub_(across[:, :-1])
        spare[1:].sub_(down[:-1])
        spare.sub_(cost).mul_(_STEP).add_(inside).clamp_(0, 1)
        torch.mul(spare, 2, out=ahead).sub_(inside)
        inside, spare = spare, inside
    return inside


def outline_ease(original: Tensor, edited: Tensor, price: float) -> Tensor:
    """What an outline costs: ``price`` where both pictures are plain, less the stronger their edges are.

    Args:
        original: ``(3, H, W)`` floating point in 0..1.
        edited: likewise.
        price: of a pixel's length of outline where there is no edge.

    Returns:
        ``(H, W)`` float32.

    Example:
        >>> outline_ease(torch.zeros(3, 4, 4), torch.zeros(3, 4, 4), 2.0).mean().item()
        2.0
    """
    edge = torch.maximum(_edge(original), _edge(edited))
    return price * (1 / (1 + edge / 4)).clamp(min=0.05)


def _edge(picture: Tensor) -> Tensor:
    """``(H, W)``: by how many units of CIELAB colours change to the next pixel, right or below."""
    smooth = nnf.avg_pool2d(picture[None], 3, 1, 1, count_include_pad=False)[0]
    lab = srgb_to_lab(smooth)
    across = nnf.pad(lab[:, :, 1:] - lab[:, :, :-1], (0, 1))
    down = nnf.pad(lab[:, 1:] - lab[:, :-1], (0, 0, 0, 1))
    return (across.square() + down.square()).sum(dim=0).sqrt()
