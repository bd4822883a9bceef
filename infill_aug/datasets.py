"""The user's dataset, with an infill and a confidence map beside each image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from infill_aug.cache.reader import InfillReader
from infill_aug.cache.store import InfillStore
from infill_aug.confidence.sources import protect_labelled
from infill_aug.samples import SampleTargets, label_of, split_sample
from infill_aug.threshold import ThresholdState
from infill_aug.types import CONFIDENCE, IMAGE, INFILL, TARGET, ConfidenceMap


class InfillDataset(Dataset[dict[str, Any]]):
    """Map-style wrapper: each sample becomes ``{image, infill, confidence, target}``.

    Convention:
        * ``image`` and ``infill``: ``tv_tensors.Image`` ``(3, H, W)`` ``uint8``; ``confidence``: ``ConfidenceMap``
          ``(1, H, W)`` ``uint8``, full where nothing was generated; ``target``: the base dataset's own, whatever it is
        * geometric v2 transforms move all of them together; ``InfillAugment`` puts them together on the device
        * infills are found by the image's pixels: subsets, shuffles and renamed files need no new build
        * the variant is drawn from torch's generator, so that worker seeding works as usual

    Args:
        base: map-style dataset, with images before any transform: tuples or mappings, PIL, arrays or tensors.
        store: an ``InfillStore`` or the folder of one.
        transforms: v2 transforms for the whole sample; geometric, or photometric on 0..1, never ``Normalize``.
        threshold: the threshold in force, to read the narrowest stored level that covers it: the best infill is the
            one that was generated for nearly the mask it is used with. ``None`` reads the widest. So do samples with
            ``transforms``, since a share of a crop can be more than that share of the picture.
        p: probability that a sample's infill is read at all; a sample without gets its image as infill and full
            confidence, so that no step changes it. Where reading is the bottleneck, use this instead of the ``p`` of
            ``InfillAugment``, which leaves out what has been read.
        protect: ``"boxes"`` or ``"masks"``: labelled objects of the target that are never regenerated.
        recipe: fingerprint of the recipe to read; by default the one that was built last.
        on_miss: ``"error"``, or ``"original"`` to train on images without infill as they are.
        image_key: key or position of the image in a base sample.

    Raises:
        FileNotFoundError: no store there.
        ValueError: an argument out of range.

    Example:
        >>> import tempfile, torch
        >>> from infill_aug.cache.build import build_cache
        >>> pictures, folder = [(torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8), 7)], tempfile.mkdtemp()
        >>> report = build_cache(pictures, folder, profile="centre_prior", progress=False)
        >>> sample = InfillDataset(pictures, folder)[0]
        >>> sorted(sample), sample["target"]
        (['confidence', 'image', 'infill', 'target'], 7)
    """

    def __init__(
        self,
        base: Any,
        store: InfillStore | str | PathLike[str],
        *,
        transforms: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        threshold: float | ThresholdState | None = None,
        p: float = 1.0,
        protect: str | None = None,
        recipe: str | None = None,
        on_miss: str = "error",
        image_key: str | int | None = None,
    ) -> None:
        if protect not in (None, "boxes", "masks"):
            raise ValueError(f"protect must be None, 'boxes' or 'masks', got {protect!r}")
        if not 0 <= p <= 1:
            raise ValueError(f"p must lie in 0..1, got {p}")
        self.base = base
        self.p = p
        level = threshold if transforms is None else None
        self.reader = InfillReader(store, recipe=recipe, threshold=level, on_miss=on_miss)
        self.transforms = transforms
        self.protect = protect
        self.image_key = image_key

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Sample ``index``.

        Raises:
            InfillMissError: the store has nothing for this image, and ``on_miss`` is ``"error"``.
        """
        image, target = split_sample(self.base[index], self.image_key)
        target = target if target is not None else -1  # default_collate has no place for None
        transforms = self.transforms or _unchanged
        if self.p < 1 and float(torch.rand(())) >= self.p:
            sample = transforms({IMAGE: tv_tensors.Image(image), TARGET: target})
            image = sample[IMAGE]
            full = torch.full((1, *image.shape[-2:]), 255, dtype=torch.uint8)
            return {IMAGE: image, INFILL: image, CONFIDENCE: ConfidenceMap(full), TARGET: sample[TARGET]}
        infill, confidence = self.reader.read(image)
        if self.protect:
            confidence = protect_labelled(confidence, target, self.protect)
        return transforms(
            {
                IMAGE: tv_tensors.Image(image),
                INFILL: tv_tensors.Image(infill),
                CONFIDENCE: ConfidenceMap(confidence),
                TARGET: target,
            }
        )


def _unchanged(sample: dict[str, Any]) -> dict[str, Any]:
    return sample


def stack_samples(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch of ``InfillDataset`` samples of one size, whose targets need not fit together.

    Args:
        samples: at least one.

    Returns:
        ``image, infill, confidence`` stacked; ``target``: ``(B,)`` int64 where each is a label, else ``SampleTargets``.

    Example:
        >>> sample = {"image": torch.zeros(3, 2, 2), "infill": torch.zeros(3, 2, 2), "confidence": torch.zeros(1, 2, 2)}
        >>> stack_samples([{**sample, "target": 3}, {**sample, "target": 1}])["target"]
        tensor([3, 1])
    """
    batch: dict[str, Any] = {
        key: torch.stack([sample[key] for sample in samples]) for key in (IMAGE, INFILL, CONFIDENCE)
    }
    targets = [sample[TARGET] for sample in samples]
    labels = [label_of(target) for target in targets]
    whole = all(isinstance(label, int) for label in labels)
    return {**batch, TARGET: torch.tensor(labels) if whole else SampleTargets(targets)}
