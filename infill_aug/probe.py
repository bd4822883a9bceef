"""What the threshold follows, measured: the model on pictures that it does not train on, masked and as they are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from infill_aug.batch import InfillAugment
from infill_aug.control.controller import on_all_ranks
from infill_aug.samples import label_of_batch
from infill_aug.types import CONFIDENCE, IMAGE, INFILL, TARGET

Signal = Literal["retention", "confidence", "swapped"]
Score = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Reading:
    """What a ``ControlProbe`` measured, over all ranks.

    Args:
        metric: mean score of what the signal looks at; one for each class, where the threshold tells them apart.
        reference: mean score on the pictures as they are, or ``None`` where the signal is compared with its own best.
        counts: how many pictures of each class; ``None`` where the threshold does not tell classes apart.
        samples: how many pictures.
        clean: mean score on the pictures as they are, over all classes.
        chance: accuracy of always naming the most frequent class; ``None`` where the score is no accuracy.
    """

    metric: Any
    reference: Any
    counts: list[int] | None
    samples: int
    clean: float
    chance: float | None

    @property
    def learned(self) -> bool:
        """Whether the model does better than chance, by more than three standard errors, or has come half of the way.

        Before that, what is left of its accuracy says nothing: chance retains chance under any mask. A score that is no
        accuracy knows no chance, and counts as learned.
        """
        if self.chance is None or not math.isfinite(self.clean):
            return True
        noise = 3 * math.sqrt(self.chance * (1 - self.chance) / max(1, self.samples))
        return self.clean > self.chance + min(noise, (1 - self.chance) / 2)


class ControlProbe:
    """Measures a model on a control split: what a threshold can follow without rewarding the background.

    ``"retention"``: score on masked and filled pictures, at the threshold in force, with the score on the same pictures
    as they are for its reference. ``"confidence"``: the same with the largest softmax probability, which needs no
    labels. ``"swapped"``: score with all that may be masked taken from another picture, of another class where the
    batch has one; its reference is its own best, since here masking is what makes it better.

    Convention:
        * pictures that the model does not train on, never the test set: the metric steers the training
        * the batches are read once and kept, 7 bytes a pixel; each call masks and varies them with the same draws, so
          that two calls differ by the model and the threshold alone
        * no gradient, ``eval`` mode; both, and the random streams of CPU and GPU, are as they were afterwards
        * where ``torch.distributed`` runs, each rank measures its batches, and all get the sums: call it on every rank

    Args:
        batches: of ``InfillDataset`` samples, as a ``DataLoader`` gives them; or a function that makes them.
        augment: the training's own batch step.
        signal: ``"retention"``, ``"confidence"`` or ``"swapped"``.
        score: ``(output, target) -> (B,)``, higher is better, for tasks that are no classification; ``output`` is what
            ``model(images)`` gives. None: 1 where the largest logit is the label's.

    Raises:
        KeyError: the batches have no labels, and there is no ``score``.
        ValueError: an unknown signal, or no batches.

    Example:
        >>> import torch
        >>> batch = {"image": torch.rand(8, 3, 4, 4), "infill": torch.rand(8, 3, 4, 4), "target": torch.arange(8) % 2}
        >>> batch["confidence"] = torch.zeros(8, 1, 4, 4, dtype=torch.uint8)
        >>> probe = ControlProbe([batch], InfillAugment(threshold=0.5))
        >>> reading = probe(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2)))
        >>> reading.samples, reading.chance
        (8, 0.5)
    """

    def __init__(
        self,
        batches: Iterable[Mapping[str, Any]] | Callable[[], Iterable[Mapping[str, Any]]],
        augment: InfillAugment,
        signal: Signal = "retention",
        score: Score | None = None,
    ) -> None:
        if signal not in get_args(Signal):
            raise ValueError(f"signal must be one of {get_args(Signal)}, got {signal!r}")
        self.batches, self.augment, self.signal = batches, augment, signal
        self.score = score or (_certainty if signal == "confidence" else _hits)
        self._read: list[Mapping[str, Any]] | None = None
        self._chance: float | None = None

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> Reading:
        """Measure ``model``, which maps normalised images to what ``score`` takes."""
        like = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
        modes = [(module, module.training) for module in model.modules()]
        gpus = [like.device] if like.device.type == "cuda" else []
        with torch.random.fork_rng(gpus):
            # Not torch.manual_seed, which would seed streams that are not brought back.
            torch.default_generator.manual_seed(0)
            for gpu in gpus:
                with torch.cuda.device(gpu):
                    torch.cuda.manual_seed(0)
            batches = self._load()
            model.eval()
            try:
                sums = sum(self._sums(model, like, batch) for batch in batches)
            finally:
                for module, mode in modes:
                    module.training = mode
        assert isinstance(sums, Tensor)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        seen, clean, count = sums.unbind(1)
        total = float(count.sum())
        # A class without pictures has nothing to say: as good as its reference.
        per_class = [((s + (n == 0)) / n.clamp(min=1)).tolist() for s, n in ((seen, count), (clean, count))]
        metric, reference = per_class if len(count) > 1 else (per_class[0][0], per_class[1][0])
        return Reading(
            metric=metric,
            reference=None if self.signal == "swapped" else reference,
            counts=[int(n) for n in count] if len(count) > 1 else None,
            samples=int(total),
            clean=float(clean.sum()) / total,
            chance=self._chance,
        )

    def _load(self) -> list[Mapping[str, Any]]:
        """The batches, in memory from the first call on."""
        if self._read is None:
            self._read = list(self.batches() if callable(self.batches) else self.batches)
            if not self._read:
                raise ValueError("the control split gave no batch; it needs at least one picture on every rank")
            if self.score is _hits:
                labels = [label_of_batch(batch.get(TARGET)) for batch in self._read]
                counts = Counter(int(label) for batch in labels if batch is not None for label in batch)
                counts = sum(on_all_ranks(counts), Counter())
                self._chance = max(counts.values(), default=0) / max(1, counts.total())
        return self._read

    def _sums(self, model: nn.Module, like: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """``(C, 3)``: summed scores of what the signal looks at and of the clean pictures, and their count."""
        image, infill, confidence = (batch[key].to(like.device) for key in (IMAGE, INFILL, CONFIDENCE))
        target = tree_map_only(Tensor, lambda part: part.to(like.device), batch[TARGET])
        augment = self.augment.to(like.device)
        classes = augment.labels_of(target)
        if self.signal == "swapped":
            seen = _swapped(augment, image, infill, confidence, label_of_batch(target))
        else:
            params = augment.everything(len(image), like.device, classes)
            seen = augment.compose(image, infill, confidence, params)[0]
        views = [view.to(like.dtype) for view in (seen, augment.normalize(image))]
        scores = [self.score(model(view), target).float() for view in views]
        rows = torch.stack([*scores, torch.ones_like(scores[0])], dim=1)
        if classes is None or augment.threshold_state is None:
            return rows.sum(0, keepdim=True)
        return rows.new_zeros(augment.threshold_state.classes, 3).index_add(0, classes, rows)


def _swapped(
    augment: InfillAugment, image: Tensor, infill: Tensor, confidence: Tensor, labels: Tensor | None
) -> Tensor:
    """Images with everything that may be masked taken from another one."""
    count = len(image)
    everywhere = torch.ones(count, device=image.device)
    mask = augment.make_mask(confidence, everywhere, everywhere.bool())
    order = torch.arange(count, device=image.device) if labels is None else labels.to(image.device).argsort(stable=True)
    # Half a turn of the order of classes: another class, unless one has more than half of the batch.
    other = torch.empty_like(order).index_copy(0, order, order.roll(max(1, count // 2)))
    # Where the other image was kept its infill shows its object, so the own infill stays there.
    return augment.mix(image, torch.where(mask[other], infill[other], infill), mask)


def _logits(output: Any) -> Tensor:
    """Logits in what a model gives: a tensor, or an object or mapping that has them under that name."""
    if isinstance(output, Tensor):
        return output
    return output["logits"] if isinstance(output, Mapping) else output.logits


def _hits(output: Any, target: Any) -> Tensor:
    """1 where the largest logit is the label's."""
    labels = label_of_batch(target)
    if labels is None:
        raise KeyError(
            f"accuracy needs (B,) integer labels in the target, got {type(target).__name__}; for another task pass "
            "score=(output, target) -> (B,)"
        )
    logits = _logits(output)
    return logits.argmax(dim=1) == labels.to(logits.device)


def _certainty(output: Any, target: Any) -> Tensor:
    """The largest softmax probability."""
    return _logits(output).float().softmax(dim=1).amax(dim=1)
