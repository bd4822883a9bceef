"""What a build does with each sample before anything is generated: read it, score it, cut its masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from infill_aug.confidence.sources import ConfidenceSource, protect_labelled
from infill_aug.functional.masks import level_masks
from infill_aug.infill.backend import PoolSample
from infill_aug.key import image_digest
from infill_aug.profile import TaskProfile
from infill_aug.samples import label_of, split_sample
from infill_aug.types import quantise_confidence


@dataclass
class PlannedSample:
    """One image, its map and its nested masks; or why there are none."""

    index: int
    digest: str = ""
    image: Tensor = field(default_factory=lambda: torch.empty(0))
    confidence: Tensor = field(default_factory=lambda: torch.empty(0))
    masks: Tensor = field(default_factory=lambda: torch.empty(0))
    label: Any = None
    error: str = ""


class Planner(Dataset[PlannedSample]):
    """Reads a sample and computes its map and masks: the part of a build that worker processes do."""

    def __init__(
        self, dataset: Any, source: ConfidenceSource, profile: TaskProfile, levels: Sequence[float],
        protect: str | None, image_key: str | int | None,
    ) -> None:  # fmt: skip
        self.dataset, self.source, self.profile = dataset, source, profile
        self.levels, self.protect, self.image_key = levels, protect, image_key

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> PlannedSample:
        try:
            image, target = split_sample(self.dataset[index], self.image_key)
            confidence = quantise_confidence(self.source(image, target))
            if self.protect:
                confidence = protect_labelled(confidence, target, self.protect)
        except Exception as error:  # an unreadable image is a record in the report, not the end of a long build
            return PlannedSample(index, error=f"{type(error).__name__}: {error}")
        masks = level_masks(
            confidence[None],
            self.levels,
            mode=self.profile.mode,
            protect_above=self.profile.protect_above,
            clean=self.profile.clean,
        )[0]
        return PlannedSample(index, image_digest(image), image, confidence, masks, label_of(target))


def spread(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` indices, evenly spaced from first to last."""
    wanted = min(wanted, count)
    return [round(i * (count - 1) / max(1, wanted - 1)) for i in range(wanted)]


def pool(plan: Planner, size: int) -> Iterator[PoolSample]:
    """Evenly spaced samples, for a backend that fills from other images; unreadable ones are left out."""
    for index in spread(len(plan), size):
        sample = plan[index]
        if not sample.error:
            yield PoolSample(sample.digest, sample.image, sample.confidence, sample.label)
