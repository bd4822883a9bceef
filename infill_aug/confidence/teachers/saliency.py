"""Confidence from salient-object segmenters."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from infill_aug.checkpoint import IMAGENET_MEAN, IMAGENET_STD, Checkpoint, frozen
from infill_aug.confidence.estimator import weights_digest
from infill_aug.confidence.teachers._shared import Teacher, logits_of, prepare


class SaliencyConfidence(Teacher):
    """Confidence of the object that stands out: no classes, no prompts.

    Args:
        checkpoint: id on the hub, or a folder; such models bring their own Python code.
        model: a module instead of a checkpoint: it maps normalised ``(B, 3, s, s)`` to one channel of logits (not
            probabilities): a tensor, an object with ``.logits``, or a list whose last is the finest. A copy of it runs
            here, in evaluation mode, so that nothing trains it on.
        revision: commit, tag or branch on the hub; pin the commit whose code you have read.
        trust_remote_code: run the checkpoint's own code on this machine.
        input_size: side in pixels of the square at which pictures are looked at.
        mean: of the pictures that the model was trained on, by channel, for values in 0..1.
        std: their standard deviation.
        grading: arguments of ``NetworkConfidence``.

    Raises:
        ImportError: transformers, or a library of the checkpoint's code, is not installed.
        ValueError: a checkpoint without ``trust_remote_code``, or an argument out of range.

    Example:
        >>> import torch
        >>> source = SaliencyConfidence(model=torch.nn.Conv2d(3, 1, 3, padding=1), input_size=32)
        >>> source(torch.zeros(3, 20, 30, dtype=torch.uint8), None).shape
        torch.Size([1, 20, 30])
    """

    def __init__(
        self,
        checkpoint: str = "ZhengPeng7/BiRefNet",
        *,
        model: nn.Module | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        input_size: int = 1024,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        **grading: Any,
    ) -> None:
        super().__init__(**grading)
        if input_size < 1:
            raise ValueError(f"input_size must be 1 or more, got {input_size}")
        if model is None and trust_remote_code is not True:
            raise ValueError(
                f"checkpoint {checkpoint!r} brings Python code that would run on this machine; read it, then pass "
                "trust_remote_code=True and the revision that you read, or pass a module as model="
            )
        self.checkpoint = Checkpoint(checkpoint, revision)
        self.model = None if model is None else frozen(lambda: copy.deepcopy(model), self.device)
        self.input_size, self.mean, self.std = input_size, list(mean), list(std)

    def score(self, images: Tensor, prompts: Sequence[Any]) -> Tensor:
        """How much each pixel belongs to the object, at the model's resolution."""
        size = {"height": self.input_size, "width": self.input_size}
        look = {"size": size, "image_mean": self.mean, "image_std": self.std}
        logits = logits_of(self.network(prepare(images, look))).float()
        return (logits[:, None] if logits.ndim == 3 else logits).sigmoid()

    @cached_property
    def _identity(self) -> dict[str, Any]:
        if self.model is None:
            return self.checkpoint.identity
        return {"model": type(self.model).__name__, "weights": weights_digest(self.model)}

    def identity(self) -> dict[str, Any]:
        """Checkpoint and revision, or a hash of the module's weights, and how it looks at pictures."""
        return {**self._identity, "input_size": self.input_size, "mean": self.mean, "std": self.std}

    def load(self) -> Any:
        """The module, or the checkpoint's model."""
        if self.model is not None:
            return self.model
        return self.checkpoint.model("AutoModelForImageSegmentation", self.device, trust_remote_code=True)
