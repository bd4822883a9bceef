"""Batches for a ``Trainer``: augmented for training, only normalised for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from infill_aug.batch import InfillAugment
from infill_aug.samples import label_of, split_sample
from infill_aug.types import CONFIDENCE, IMAGE, INFILL, TARGET

PIXELS, LABELS = "pixel_values", "labels"  # what vision models of transformers call them


class InfillCollator:
    """Makes ``{"pixel_values": ..., "labels": ...}`` of samples, for ``Trainer(data_collator=...)``.

    Samples of an ``InfillDataset`` are augmented, wherever they come from. Any others, as a rule those of the
    evaluation set, are only normalised: pairs or mappings, with the picture as PIL, array or tensor, in the size that
    the model takes.

    The ``Trainer`` needs ``remove_unused_columns=False``; else it takes the pictures out of the samples before they
    come here. With workers the augmentation runs in them, and follows a ``ThresholdState`` there too.

    Args:
        augment: the batch step, which normalises last.
        label: what of a sample's target goes under ``"labels"``; by default its class. ``None`` as its result leaves
            the labels out.
        image_key: key or position of the image in a sample that is not of an ``InfillDataset``.
        defer: leave training batches as they are, on the way to ``augmented``, which a ``Trainer`` calls on its device.

    Raises:
        KeyError: samples without a picture.
        ValueError: pictures of several sizes, or labels that are no integers.

    Example:
        >>> samples = [{"image": torch.zeros(3, 8, 8, dtype=torch.uint8), "label": label} for label in (0, 1)]
        >>> batch = InfillCollator(InfillAugment(0.5, normalize=((0.5,) * 3, (0.5,) * 3)))(samples)
        >>> batch["pixel_values"].shape, batch["pixel_values"].min(), batch["labels"]
        (torch.Size([2, 3, 8, 8]), tensor(-1.), tensor([0, 1]))
    """

    def __init__(
        self,
        augment: InfillAugment,
        *,
        label: Callable[[Any], Any] = label_of,
        image_key: str | int | None = None,
        defer: bool = False,
    ) -> None:
        self.augment, self.label, self.image_key, self.defer = augment, label, image_key, defer

    def __call__(self, samples: Sequence[Any]) -> dict[str, Any]:
        """A batch of samples that are all of one kind."""
        if isinstance(samples[0], Mapping) and INFILL in samples[0]:
            batch = {key: _stack([sample[key] for sample in samples]) for key in (IMAGE, INFILL, CONFIDENCE)}
            inputs = {PIXELS: batch.pop(IMAGE), **batch, **self._labels([sample[TARGET] for sample in samples])}
            return inputs if self.defer else self.augmented(inputs)
        try:
            pairs = [split_sample(sample, self.image_key) for sample in samples]
        except KeyError as error:
            raise KeyError(f"{error.args[0]}. A Trainer needs TrainingArguments(remove_unused_columns=False)") from None
        pixels = self.augment.normalize(_stack([image for image, _ in pairs]))
        return {PIXELS: pixels, **self._labels([target for _, target in pairs])}

    def augmented(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What the model takes, of a training batch that was deferred; any other batch as it is.

        Args:
            inputs: a batch of this collator, on any device; the augmentation is moved there.
        """
        if INFILL not in inputs:
            return dict(inputs)
        batch = dict(inputs)
        batch[IMAGE] = batch.pop(PIXELS)
        if LABELS in batch:
            batch[TARGET] = batch[LABELS]
        done = self.augment.to(batch[IMAGE].device).train()(batch)
        return {PIXELS: done[IMAGE], **{key: inputs[key] for key in (LABELS,) if key in inputs}}

    def _labels(self, targets: list[Any]) -> dict[str, Tensor]:
        labels = [self.label(target) for target in targets]
        if any(label is None for label in labels):
            return {}
        if any(isinstance(label, str) for label in labels):
            raise ValueError(f"labels must be numbers, got {labels[0]!r}; pass InfillCollator(label=...) to map them")
        return {LABELS: default_collate(labels)}


def _stack(pictures: list[Tensor]) -> Tensor:
    sizes = {tuple(picture.shape[-2:]) for picture in pictures}
    if len(sizes) > 1:
        raise ValueError(
            f"the pictures of a batch must have one size, got {sorted(sizes)}; resize them in the dataset: "
            "InfillDataset(transforms=...) for training, a transform of its own for evaluation"
        )
    return torch.stack([picture.as_subclass(Tensor) for picture in pictures])
