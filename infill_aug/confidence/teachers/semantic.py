"""Confidence from semantic segmenters of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from infill_aug.checkpoint import Checkpoint
from infill_aug.confidence.teachers._shared import Teacher, check_weights, prepare, weigh

# Those that score queries; others need a task as text, or pictures in tiles.
_QUERIES = ("maskformer", "mask2former")


class SemanticConfidence(Teacher):
    """Confidence from classes: each pixel's class probabilities, summed by what the classes are worth.

    Takes checkpoints for ``AutoModelForSemanticSegmentation`` (SegFormer, UperNet, DPT, BEiT, face parsing), and
    MaskFormer and Mask2Former, whose queries are put together to classes.

    Args:
        checkpoint: id on the hub, or a folder.
        class_weights: confidence 0..1 by class name, as the checkpoint's ``id2label`` has them; classes that are left
            out do not matter. The names are checked when the first picture is scored.
        revision: commit, tag or branch on the hub; pin a commit where stores shall outlive updates.
        input_size: side in pixels of the square at which pictures are looked at, instead of the checkpoint's own size.
        grading: arguments of ``NetworkConfidence``.

    Raises:
        ImportError: transformers is not installed; raised when the first picture is scored.
        ValueError: a weight outside 0..1; when the first picture is scored, a class that the model does not have.

    Example:
        >>> face = SemanticConfidence("jonathandinu/face-parsing", class_weights={"skin": 1.0, "hair": 0.5})
        >>> face.maps([torch.zeros(3, 20, 30, dtype=torch.uint8)])[0].shape  # doctest: +SKIP
        torch.Size([1, 20, 30])
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        class_weights: Mapping[str, float],
        revision: str | None = None,
        input_size: int | None = None,
        **grading: Any,
    ) -> None:
        super().__init__(**grading)
        if input_size is not None and input_size < 1:
            raise ValueError(f"input_size must be 1 or more, got {input_size}")
        self.checkpoint, self.input_size = Checkpoint(checkpoint, revision), input_size
        self.class_weights = check_weights(class_weights)

    @cached_property
    def classes(self) -> list[str]:
        """Names of the model's classes, in the order of its channels; reads the checkpoint's configuration only."""
        return [name for _, name in sorted(self._config.id2label.items())]

    def score(self, images: Tensor, prompts: Sequence[Any]) -> Tensor:
        """Weighted class probabilities, at the model's resolution."""
        model, processor = self.network
        output = model(pixel_values=prepare(images, processor))
        shares = _from_queries(output) if self._config.model_type in _QUERIES else output.logits.softmax(dim=1)
        return weigh(shares, self.classes, self.class_weights)

    def identity(self) -> dict[str, Any]:
        """Checkpoint and revision (of a folder, a hash), class weights and input size."""
        return {**self.checkpoint.identity, "class_weights": self.class_weights, "input_size": self.input_size}

    @cached_property
    def _config(self) -> Any:
        return self.checkpoint.read("AutoConfig")

    def load(self) -> tuple[Any, dict[str, Any]]:
        """Model and image processor's values."""
        # Before the weights, which may be large: a misspelt class costs no download.
        check_weights(self.class_weights, self.classes)
        kind = "Universal" if self._config.model_type in _QUERIES else "Semantic"
        processor = self.checkpoint.read("AutoImageProcessor").to_dict()
        if self.input_size is not None:
            processor |= {"do_resize": True, "size": {"height": self.input_size, "width": self.input_size}}
        return self.checkpoint.model(f"AutoModelFor{kind}Segmentation", self.device), processor


def _from_queries(output: Any) -> Tensor:
    """``(B, C, h, w)`` shares of the classes, of ``(B, Q, C + 1)`` class logits and ``(B, Q, h, w)`` mask logits."""
    kinds = output.class_queries_logits.softmax(dim=-1)[..., :-1]  # the last is "nothing"
    shares = torch.einsum("bqc,bqhw->bchw", kinds, output.masks_queries_logits.sigmoid())
    # Queries may overlap: their sum is brought to 1, but never up to it, since a pixel may belong to none.
    return shares / shares.sum(dim=1, keepdim=True).clamp(min=1)
