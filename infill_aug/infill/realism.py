"""How well filled pictures can be told from real ones, without any downloaded network: a two-sample test."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

_STEPS, _BATCH, _LEARNING_RATE = 300, 32, 2e-3


class TwoSampleResult(NamedTuple):
    """What ``two_sample_auc`` found.

    Args:
        auc: 0.5 where nothing tells filled from real, 1 where everything does; mean over halves and seeds.
        deviation: standard deviation over the halves and seeds.
        scores: ``(N,)`` of the filled pictures: higher looks more filled; mean over the seeds.
    """

    auc: float
    deviation: float
    scores: Tensor


def two_sample_auc(real: Tensor, filled: Tensor, *, seeds: int = 2) -> TwoSampleResult:
    """Area under the ROC curve of a small classifier that has learned to tell filled pictures from real ones.

    A classifier two-sample test (Lopez-Paz and Oquab, 2017). The pictures are halved; a classifier learns from one
    half, real and filled, and is tested on the other, which it never saw in either form; then the other way round.

    Args:
        real: ``(N, 3, S, S)`` ``uint8``, N 8 or more, S 32 or more.
        filled: the same pictures, filled.
        seeds: classifiers for each half.

    Returns:
        A ``TwoSampleResult``.

    Raises:
        ValueError: shapes or dtypes that do not fit.

    Example:
        >>> real = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
        >>> 0.9 < two_sample_auc(real, real // 4, seeds=1).auc <= 1
        True
    """
    if real.shape != filled.shape or real.ndim != 4 or real.shape[1] != 3 or len(real) < 8:
        raise ValueError(
            f"real and filled must both be (N, 3, S, S) with 8 pictures or more, got {tuple(real.shape)} and "
            f"{tuple(filled.shape)}"
        )
    if real.dtype != torch.uint8 or filled.dtype != torch.uint8:
        raise ValueError(f"pictures must be uint8, got {real.dtype} and {filled.dtype}")
    areas, scores = [], torch.zeros(len(real))
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        halves = torch.randperm(len(real), generator=generator).chunk(2)
        for train, test in (halves, halves[::-1]):
            model = _trained(real[train], filled[train], generator)
            found = [_scores(model, part[test]) for part in (real, filled)]
            areas.append(_area(*found))
            scores[test] += found[1] / seeds
    values = torch.tensor(areas)
    return TwoSampleResult(float(values.mean()), float(values.std(correction=0)), scores)


def _trained(real: Tensor, filled: Tensor, generator: torch.Generator) -> nn.Module:
    """A small classifier of the filled ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        widths = (3, 24, 48, 96)
        blocks: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            blocks += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        model = nn.Sequential(*blocks, nn.Conv2d(96, 96, 3, padding=1), nn.ReLU(), _Pool(), nn.Linear(192, 1))
    optimizer = torch.optim.AdamW(model.parameters(), _LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=_STEPS)
    half = min(_BATCH // 2, len(real))
    for _ in range(_STEPS):
        # Both forms of the same pictures: content alone tells nothing.
        picks = torch.randperm(len(real), generator=generator)[:half]
        images = torch.cat([real[picks], filled[picks]]).float() / 127.5 - 1
        if torch.rand((), generator=generator) < 0.5:
            images = images.flip(-1)
        wanted = torch.arange(2).repeat_interleave(half).float()
        loss = nnf.binary_cross_entropy_with_logits(model(images)[:, 0], wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


class _Pool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)


@torch.no_grad()
def _scores(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(part.float() / 127.5 - 1)[:, 0] for part in images.split(64)])


def _area(real: Tensor, filled: Tensor) -> float:
    """Share of pairs in which the filled one scores higher; ties count half."""
    difference = filled[:, None] - real[None, :]
    return float(((difference > 0).float() + 0.5 * (difference == 0).float()).mean())
