"""A coarse map, such as a classifier's, brought to the outlines of what is in the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from infill_aug.confidence.network import NetworkConfidence
from infill_aug.confidence.teachers.grabcut import grab_cut
from infill_aug.functional.grading import centre_prior

# Side of the square at which colours are modelled: coarse maps hold no more, and the cut's time grows with the pixels.
_SIDE = 96
# Shares of the pixels that are taken for background and for object before the colours are asked.
_BACKGROUND, _OBJECT, _SPLIT = 0.15, 0.08, 0.6
# Relative differences below this are rounding.
_FLAT = 1e-4


class SnappedConfidence(NetworkConfidence):
    """Another source's maps, smoothed, weighted by the centre prior, and cut out along the picture's colours.

    Where a classifier looks tells which part of a picture matters, not where it ends: some spots of an object are lit,
    and some beside it. The lowest and the highest part of the map become seeds, and GrabCut (Rother et al., 2004)
    finds the border between their colours. A student that learns such maps from many pictures evens out their faults.

    Args:
        source: where the coarse maps come from.
        centre: weight of the centre prior in the geometric mean with the map, 0..1.
        grading: arguments of ``NetworkConfidence``.

    Raises:
        ImportError: OpenCV is missing; raised when the first picture is scored.
        ValueError: ``centre`` is out of range.

    Example:
        >>> from infill_aug.confidence import ConfidenceEstimator, EstimatorConfidence
        >>> coarse = EstimatorConfidence(ConfidenceEstimator(input_size=32))
        >>> SnappedConfidence(coarse)(torch.zeros(3, 20, 30, dtype=torch.uint8), None).shape
        torch.Size([1, 20, 30])
    """

    def __init__(self, source: NetworkConfidence, *, centre: float = 0.5, **grading: Any) -> None:
        super().__init__(**{"device": source.device, "batch_size": source.batch_size, **grading})
        if not 0 <= centre <= 1:
            raise ValueError(f"centre must lie in 0..1, got {centre}")
        self.source, self.centre = source, float(centre)

    @property
    def reads_target(self) -> bool:  # type: ignore[override]
        """As the source does."""
        return self.source.reads_target

    def prompt(self, target: Any) -> Any:
        """What the source reads."""
        return self.source.prompt(target)

    def score(self, images: Tensor, prompts: Sequence[Any]) -> Tensor:
        """Cut-out of each picture, its edge softened."""
        size = (_SIDE, _SIDE)
        coarse = nnf.interpolate(
            self.source.score(images, prompts).float(), size=size, mode="bilinear", align_corners=False
        )
        smooth = nnf.avg_pool2d(coarse, 13, stride=1, padding=6, count_include_pad=False).clamp(1e-4, 1)
        prior = smooth ** (1 - self.centre) * centre_prior(*size).to(smooth) ** self.centre
        pictures = nnf.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        cut = torch.stack(
            [self._cut(picture, one[0]) for picture, one in zip(pictures.cpu(), prior.cpu(), strict=True)]
        )
        return nnf.avg_pool2d(cut, 5, stride=1, padding=2, count_include_pad=False).to(images.device)

    @staticmethod
    def _cut(picture: Tensor, prior: Tensor) -> Tensor:
        flat = prior.flatten()
        low, middle, high = (float(flat.quantile(q)) for q in (_BACKGROUND, _SPLIT, 1 - _OBJECT))
        if not low < high * (1 - _FLAT):  # a flat map says nothing, and has no seeds
            return prior[None]
        # Where many pixels share the highest value, none lies beyond it.
        first = prior > middle if middle < float(flat.max()) else prior >= middle
        likely = grab_cut(picture, background=prior < low, foreground=prior > high, likely=first)
        return likely.float()[None]

    def identity(self) -> dict[str, Any]:
        """The source's configuration, and the weight of the centre."""
        import cv2

        return {"of": self.source.config(), "centre": self.centre, "opencv": cv2.__version__}
