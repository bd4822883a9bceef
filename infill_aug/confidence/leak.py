"""Whether confidence maps give the class away: a small network that sees the maps alone tries to tell it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from infill_aug.types import check_confidence

# How far above chance the probe may be.
LEAK_MARGIN = 0.15
# Samples that each class needs: below it, an accuracy says nothing.
LEAK_SAMPLES = 5
# Side of the maps that the probe sees.
LEAK_SIDE = 32

_STEPS, _BATCH, _RATE = 120, 64, 5e-3


@dataclass(frozen=True)
class LeakReport:
    """What a probe could tell from maps alone.

    Args:
        accuracy: of the probe on maps that it did not learn from, mean over the classes, 0..1.
        chance: accuracy without looking, 1 / number of classes.
        margin: ``accuracy - chance``.
        leaks: the margin is above 0.15, and above two standard errors of guessing, so that few samples raise no alarm.
    """

    accuracy: float
    chance: float
    margin: float
    leaks: bool


def leak_probe(confidence: Tensor, labels: Sequence[Hashable] | Tensor, *, seed: int = 0, folds: int = 3) -> LeakReport:
    """Try to tell the class from the confidence map alone.

    A model that is trained on masked pictures can read a class off the shape of the mask and need not look at the
    picture at all, as learned explainers do (Jethani et al., 2021, who call it encoding the prediction). Objects
    of other classes do have other shapes, so that an honest map may leak too: compare with the probe on the labelled
    masks. Classes count the same however many samples they have, in training as in the accuracy.

    The probe is a network of about 24 k parameters on maps of 32 x 32, learned anew for each fold, on the CPU.

    Args:
        confidence: ``(N, 1, H, W)`` floating point in 0..1.
        labels: a class for each map; 5 samples or more of each class, two classes or more.
        seed: of folds, weights and batches; the same seed gives the same report. torch's own draws are left alone.
        folds: 2..5 parts, each tested by a probe that learned from the others.

    Returns:
        A ``LeakReport``.

    Raises:
        ValueError: maps that are none, labels that do not fit them, or too few samples.

    Example:
        >>> import torch
        >>> maps = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)) / 2
        >>> maps[10:, :, :, 4:] += 0.5
        >>> leak_probe(maps, [0] * 10 + [1] * 10).leaks
        True
    """
    if confidence.ndim != 4 or not confidence.is_floating_point():
        raise ValueError(
            f"confidence must be (N, 1, H, W) floating point, got {confidence.dtype} of shape {tuple(confidence.shape)}"
        )
    check_confidence(confidence)
    classes, numbers = _numbered(labels)
    if len(numbers) != len(confidence):
        raise ValueError(f"there are {len(confidence)} maps and {len(numbers)} labels; give one label for each map")
    if not 2 <= folds <= LEAK_SAMPLES:
        raise ValueError(f"folds must lie in 2..{LEAK_SAMPLES}, got {folds}")
    # Not inference tensors, which could not be learned from, even if the caller's are.
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach other devices too
        maps = confidence.detach().to("cpu", torch.float32).clone()
        if maps.shape[-2:] != (LEAK_SIDE, LEAK_SIDE):
            maps = nnf.interpolate(maps, (LEAK_SIDE, LEAK_SIDE), mode="bilinear", align_corners=False, antialias=True)
        maps = (maps - maps.mean()) / maps.std().clamp(min=1e-6)
        fold = _folds(numbers, folds)
        found = torch.empty_like(numbers)
        for each in range(folds):
            learned = fold != each
            found[~learned] = _learn(maps[learned], numbers[learned], len(classes))(maps[~learned]).argmax(dim=1)
    right = (found == numbers).float()
    accuracy = float(torch.stack([right[numbers == c].mean() for c in range(len(classes))]).mean())
    chance = 1 / len(classes)
    margin = accuracy - chance
    guessing = float((chance * (1 - chance) / numbers.bincount()).sum().sqrt()) / len(classes)
    return LeakReport(accuracy, chance, margin, margin > max(LEAK_MARGIN, 2 * guessing))


def _numbered(labels: Sequence[Hashable] | Tensor) -> tuple[list[Hashable], Tensor]:
    """The classes, in the order of their first sample, and each sample's number of its class."""
    names: Sequence[Hashable] = labels.tolist() if isinstance(labels, Tensor) else labels
    counts = Counter(names)
    rare = {name: count for name, count in counts.items() if count < LEAK_SAMPLES}
    if rare:
        raise ValueError(
            f"each class needs {LEAK_SAMPLES} samples or more, got {dict(list(rare.items())[:5])}; "
            "leave rare classes out, or give more samples"
        )
    if len(counts) < 2:
        raise ValueError(f"two classes or more are needed to tell one from another, got {list(counts)}")
    number = {name: i for i, name in enumerate(counts)}
    return list(counts), torch.tensor([number[name] for name in names])


def _folds(numbers: Tensor, folds: int) -> Tensor:
    """``(N,)`` number of each sample's fold: every class is spread evenly over them."""
    fold = torch.empty_like(numbers)
    for each in numbers.unique():
        own = (numbers == each).nonzero()[:, 0]
        fold[own[torch.randperm(len(own))]] = torch.arange(len(own)) % folds
    return fold


@torch.enable_grad()
def _learn(maps: Tensor, numbers: Tensor, classes: int) -> nn.Module:
    probe = _Probe(classes)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=_STEPS)
    weights = 1 / numbers.bincount(minlength=classes).float()[numbers]
    for _ in range(_STEPS):
        chosen = torch.multinomial(weights, _BATCH, replacement=True)
        loss = nnf.cross_entropy(probe(maps[chosen]), numbers[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return probe.eval().requires_grad_(False)


class _Probe(nn.Sequential):
    """Three strided convolutions, and a linear layer that still knows which quarter of the picture it looks at."""

    def __init__(self, classes: int) -> None:
        layers: list[nn.Module] = []
        for inside, outside in ((1, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(inside, outside, 3, 2, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
        super().__init__(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64 * 4, classes))
