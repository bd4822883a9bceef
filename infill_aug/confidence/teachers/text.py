"""Confidence from words: CLIPSeg finds what texts describe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from infill_aug.checkpoint import Checkpoint
from infill_aug.confidence.teachers._shared import Teacher, check_weights, prepare


class TextConfidence(Teacher):
    """Confidence from texts: at each pixel the text that fits best, by what it is worth.

    Args:
        checkpoint: a CLIPSeg checkpoint: id on the hub, or a folder.
        class_weights: confidence 0..1 by text, such as ``{"a dog": 1.0, "a ball": 0.5}``.
        revision: commit, tag or branch on the hub; pin a commit where stores shall outlive updates.
        grading: arguments of ``NetworkConfidence``; memory grows with ``batch_size`` times the number of texts.

    Raises:
        ImportError: transformers is not installed; raised when the first picture is scored.
        ValueError: no texts or empty ones, a weight outside 0..1; when the first picture is scored, a text that is too
            long for the model.

    Example:
        >>> dogs = TextConfidence(class_weights={"a dog": 1.0, "a leash": 0.3})
        >>> dogs.maps([torch.zeros(3, 20, 30, dtype=torch.uint8)])[0].shape  # doctest: +SKIP
        torch.Size([1, 20, 30])
    """

    def __init__(
        self,
        checkpoint: str = "CIDAS/clipseg-rd64-refined",
        *,
        class_weights: Mapping[str, float],
        revision: str | None = None,
        **grading: Any,
    ) -> None:
        super().__init__(**grading)
        self.checkpoint, self.class_weights = Checkpoint(checkpoint, revision), check_weights(class_weights)
        if not all(text.strip() for text in self.class_weights):
            raise ValueError(f"class_weights has an empty text among {list(self.class_weights)}; describe what matters")

    def score(self, images: Tensor, prompts: Sequence[Any]) -> Tensor:
        """The best fit among the texts, weighted, at the model's resolution."""
        model, processor, texts = self.network
        pixels = prepare(images, processor)
        logits = model(
            pixel_values=pixels.repeat_interleave(len(texts), dim=0),
            conditional_embeddings=texts.repeat(len(images), 1),
        ).logits
        fits = logits.reshape(len(images), len(texts), *logits.shape[-2:]).sigmoid()
        weights = torch.tensor(list(self.class_weights.values()), device=fits.device)
        return (fits * weights[:, None, None]).amax(dim=1, keepdim=True)

    def identity(self) -> dict[str, Any]:
        """Checkpoint and revision (of a folder, a hash), and the texts with their weights."""
        return {**self.checkpoint.identity, "class_weights": self.class_weights}

    def load(self) -> tuple[Any, dict[str, Any], Tensor]:
        """Model, image processor's values, and an embedding of each text, ``(P, D)``."""
        processor = self.checkpoint.read("AutoImageProcessor").to_dict()
        tokens = self.checkpoint.read("AutoTokenizer")(list(self.class_weights), padding=True, return_tensors="pt")
        model = self.checkpoint.model("CLIPSegForImageSegmentation", self.device)
        most = model.config.text_config.max_position_embeddings
        lengths = tokens["attention_mask"].sum(dim=1).tolist()
        long = [text for text, length in zip(self.class_weights, lengths, strict=True) if length > most]
        if long:
            raise ValueError(f"texts of class_weights must have at most {most} tokens, shorten {long}")
        inputs = {key: tokens[key].to(self.device) for key in ("input_ids", "attention_mask")}
        with torch.inference_mode(False), torch.no_grad():
            texts = model.get_conditional_embeddings(batch_size=len(lengths), **inputs)
        return model, processor, texts
