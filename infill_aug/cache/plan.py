"""What a build does with each sample before anything is generated: read it, score it, cut its masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from infill_aug.cache.codec import decode_map, encode_map
from infill_aug.cache.recipe import map_key, score_key
from infill_aug.cache.store import InfillStore, InfillStoreWriter
from infill_aug.confidence.network import NetworkConfidence
from infill_aug.confidence.sources import ConfidenceSource, protect_labelled
from infill_aug.functional.masks import level_masks
from infill_aug.infill.backend import PoolSample
from infill_aug.key import image_digest
from infill_aug.profile import TaskProfile
from infill_aug.samples import label_of, split_sample, spread
from infill_aug.types import quantise_confidence


@dataclass
class PlannedSample:
    """One image, its map and its nested masks; or why there are none.

    Where the source is a network, the map and the masks come later, and ``target`` is kept until then. ``score`` is
    the key of the note in the store that says which map the network gave.
    """

    index: int
    digest: str = ""
    image: Tensor = field(default_factory=lambda: torch.empty(0))
    confidence: Tensor = field(default_factory=lambda: torch.empty(0))
    masks: Tensor = field(default_factory=lambda: torch.empty(0))
    label: Any = None
    error: str = ""
    target: Any = None
    score: str = ""


class Planner(Dataset[PlannedSample]):
    """Reads a sample and computes its map and masks: the part of a build that worker processes do.

    A source that is a network stays in the main process, where a ``Scorer`` runs it.
    """

    def __init__(
        self, dataset: Any, source: ConfidenceSource, profile: TaskProfile, levels: Sequence[float],
        protect: str | None, image_key: str | int | None,
    ) -> None:  # fmt: skip
        self.dataset, self.profile = dataset, profile
        self.levels, self.protect, self.image_key = levels, protect, image_key
        self.source = None if isinstance(source, NetworkConfidence) else source

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> PlannedSample:
        try:
            image, target = split_sample(self.dataset[index], self.image_key)
            sample = PlannedSample(index, image_digest(image), image, label=label_of(target), target=target)
            return sample if self.source is None else self.complete(sample, self.source(image, target))
        except Exception as error:  # an unreadable image is a record in the report, not the end of a long build
            return _failed(index, error)

    def complete(self, sample: PlannedSample, confidence: Tensor) -> PlannedSample:
        """The sample with its map, protected where that is asked for, and its masks."""
        confidence = quantise_confidence(confidence)
        if self.protect:
            confidence = protect_labelled(confidence, sample.target, self.protect)
        masks = level_masks(
            confidence[None],
            self.levels,
            mode=self.profile.mode,
            protect_above=self.profile.protect_above,
            clean=self.profile.clean,
        )[0]
        return replace(sample, confidence=confidence, masks=masks, target=None)


# Pictures that a network may fail on before it has given any map.
_PATIENCE = 4


class Scorer:
    """Completes the samples of a plan whose source is a network: from the store where it can.

    Pictures are scored one by one: in a batch the last bits of a score depend on its neighbours, and keys on the bits.

    Args:
        plan: reads the samples.
        source: what the maps come from; other sources than networks leave nothing to do.
        store: holds maps of earlier builds.
    """

    def __init__(self, plan: Planner, source: ConfidenceSource, store: InfillStore) -> None:
        self.plan, self.store = plan, store
        self.network = source if isinstance(source, NetworkConfidence) else None
        self.config = source.config() if self.network else {}
        self.computed = 0
        self.written: set[str] = set()  # the store's index learns of them at the next refresh only
        self._unwritten: dict[str, Tensor] = {}  # computed for the pool, before there was a writer
        self._failed_first = 0  # failures before the network has given any map

    def __call__(
        self, samples: Iterable[PlannedSample], writer: InfillStoreWriter | None = None
    ) -> Iterator[PlannedSample]:
        """Completed samples, in their order.

        Args:
            samples: as ``Planner`` gives them.
            writer: takes new maps; ``None`` keeps none.
        """
        for sample in samples:
            yield sample if self.network is None or sample.error else self._score(self.network, sample, writer)

    def _score(
        self, network: NetworkConfidence, sample: PlannedSample, writer: InfillStoreWriter | None
    ) -> PlannedSample:
        try:
            key = score_key(self.config, sample.digest, network.prompt(sample.target))
            confidence = self._known(key)
            if confidence is None:
                (confidence,) = network.quantised([sample.image], [sample.target])
                self._unwritten[key] = confidence
                self.computed += 1
            self._failed_first = -_PATIENCE  # it works: from now on a failure is the picture's
            completed = self.plan.complete(replace(sample, score=key), confidence)
        except (ImportError, OSError):  # a library or weights are missing: no picture will go better
            raise
        except Exception as error:  # one odd picture must not end a long build, a broken network must
            self._failed_first += 0 if self._failed_first < 0 else 1
            if self._failed_first >= _PATIENCE:
                raise
            return _failed(sample.index, error)
        if writer is not None:
            self._write(writer)
        return completed

    def _known(self, key: str) -> Tensor | None:
        if key in self._unwritten:
            return self._unwritten[key]
        if key in self.written and key not in self.store:
            self.store.refresh()  # written by this build; kept in the store, not in memory
        note = self.store.get(key)
        payload = self.store.get(note.decode()) if note is not None else None
        try:
            return decode_map(payload) if payload is not None else None
        except (RuntimeError, OSError):  # a damaged record is as good as none
            return None

    def _write(self, writer: InfillStoreWriter) -> None:
        for score, confidence in self._unwritten.items():
            key = map_key(confidence)
            if key not in self.store and key not in self.written:
                writer.put(key, *encode_map(confidence))
            if score not in self.written and self.store.get(score) != key.encode():
                writer.put(score, key.encode(), "map")
            self.written |= {key, score}
        self._unwritten.clear()


def _failed(index: int, error: Exception) -> PlannedSample:
    return PlannedSample(index, error=f"{type(error).__name__}: {error}")


def pool(plan: Planner, scorer: Scorer, size: int) -> Iterator[PoolSample]:
    """Evenly spaced samples, for a backend that fills from other images; unreadable ones are left out."""
    for sample in scorer(plan[index] for index in spread(len(plan), size)):
        if not sample.error:
            yield PoolSample(sample.digest, sample.image, sample.confidence, sample.label)
