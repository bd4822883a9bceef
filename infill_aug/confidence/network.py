"""Confidence that a network reads off the picture: in batches, on a device, without looking at labels."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as nnf
from torch import Tensor

from infill_aug.functional.grading import spread
from infill_aug.types import quantise_confidence

# What half precision may make of a score of exactly 0 or 1.
_ROUNDING = 0.01


class NetworkConfidence(ABC):
    """Base of the confidence sources that run a network: the estimator, and every teacher.

    A subclass says how pictures are scored and what its scores depend on. This class makes it a confidence source
    like any other: it batches pictures of one size, checks the scores, brings them to the picture's size and grades
    them. A build runs such a source in its main process, and keeps the maps with the infills.

    Args:
        falloff: reach of the graded ring around what matters, as a share of ``sqrt(H * W)``; 0 leaves the scores.
        edges: how much an edge of the picture holds the ring back, 0 or more, finite; 0 grades by distance alone.
        device: where the network runs.
        batch_size: pictures at once, where maps are not stored.

    Raises:
        ValueError: an argument out of range.
    """

    # Whether a map depends on the target, as with the boxes that prompt a segmenter.
    reads_target = False

    def __init__(
        self, *, falloff: float = 0.0, edges: float = 0.0, device: torch.device | str = "cpu", batch_size: int = 16
    ) -> None:
        if not 0 <= falloff <= 2:
            raise ValueError(f"falloff must lie in 0..2, got {falloff}")
        if not 0 <= edges < float("inf"):
            raise ValueError(f"edges must be 0 or more, and finite, got {edges}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        self.falloff, self.edges = float(falloff), float(edges)
        self.device, self.batch_size = torch.device(device), batch_size

    @abstractmethod
    def score(self, images: Tensor, prompts: Sequence[Any]) -> Tensor:
        """Scores of a batch, before grading.

        Args:
            images: ``(B, 3, H, W)`` float32 in 0..1 on ``self.device``.
            prompts: what ``prompt`` read from each target; ``None`` for a source that reads none.

        Returns:
            ``(B, 1, h, w)`` floating point in 0..1, of any size: it is brought to that of the pictures.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What the scores depend on besides the picture, as JSON values; known without loading any weights."""

    def prompt(self, target: Any) -> Any:
        """The part of the target that is read, as JSON values; it is part of the map's key in a store."""
        return None

    def config(self) -> dict[str, Any]:
        """Fields that enter the cache key."""
        own = type(self)
        # Two of your sources in different modules may have one name.
        name = own.__name__ if own.__module__.startswith("infill_aug.") else f"{own.__module__}.{own.__qualname__}"
        return {"source": name, "falloff": self.falloff, "edges": self.edges, **self.identity()}

    def __call__(self, image: Tensor, target: Any) -> Tensor:
        """``(1, H, W)`` float32 map in 0..1 of one ``(3, H, W)`` ``uint8`` image.

        Raises:
            ValueError: the network gave something that is no map; the message says what.
        """
        return self.maps([image], [target])[0]

    @torch.no_grad()  # not inference_mode: its tensors can neither be changed in place nor be part of a loss
    def maps(self, images: Sequence[Tensor], targets: Sequence[Any] | None = None) -> list[Tensor]:
        """Maps of many pictures, which may differ in size.

        Args:
            images: ``(3, H, W)`` ``uint8``.
            targets: one for each image; may be left out where ``reads_target`` is false.

        Returns:
            A ``(1, H, W)`` float32 map in 0..1 for each image, on the CPU, in their order.

        Raises:
            ValueError: the network gave something that is no map; the message says what.
        """
        prompts = [self.prompt(target) for target in targets] if targets is not None else [None] * len(images)
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, image in enumerate(images):
            if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
                raise ValueError(
                    f"images must be (3, H, W) uint8, got {tuple(image.shape)} {image.dtype}; see to_uint8_image"
                )
            groups[tuple(image.shape)].append(i)
        found: list[Tensor] = [torch.empty(0)] * len(images)
        for indices in groups.values():
            for start in range(0, len(indices), self.batch_size):
                chunk = indices[start : start + self.batch_size]
                batch = torch.stack([images[i] for i in chunk]).to(self.device).float() / 255
                graded = self._grade(self.score(batch, [prompts[i] for i in chunk]), batch).cpu()
                for i, one in zip(chunk, graded, strict=True):
                    found[i] = one.clone()
        return found

    def _grade(self, scores: Tensor, images: Tensor) -> Tensor:
        size = images.shape[-2:]
        if scores.ndim != 4 or scores.shape[:2] != (len(images), 1):
            raise ValueError(
                f"{type(self).__name__} gave scores of shape {tuple(scores.shape)} for {len(images)} images; "
                f"(B, 1, h, w) is needed"
            )
        scores = scores.float()
        if not bool(torch.isfinite(scores).all()):
            raise ValueError(
                f"{type(self).__name__} gave scores that are not finite; run it in float32, or mend its weights"
            )
        low, high = (float(value) for value in torch.aminmax(scores))
        if low < -_ROUNDING or high > 1 + _ROUNDING:
            raise ValueError(
                f"{type(self).__name__} gave scores from {low:.4g} to {high:.4g}; they must lie in 0..1: pass logits "
                "through a sigmoid"
            )
        if scores.shape[-2:] != size:
            scores = nnf.interpolate(scores, size=size, mode="bilinear", align_corners=False)
        scores = scores.clamp(0, 1)
        return spread(scores, self.falloff, images if self.edges else None, self.edges)

    def ungraded(self) -> Self:
        """The same source without its ring: the network's own scores, which is what can be measured."""
        plain = copy.copy(self)
        plain.falloff = 0.0
        return plain

    def quantised(self, images: Sequence[Tensor], targets: Sequence[Any] | None = None) -> list[Tensor]:
        """The maps as ``uint8``, as stores keep them; each picture is scored alone.

        In a batch the last bits of a score depend on the pictures beside it, and with them, now and then, a rounded
        value, a mask, and the key of an infill.
        """
        known = targets if targets is not None else [None] * len(images)
        return [quantise_confidence(self(image, target)) for image, target in zip(images, known, strict=True)]
