"""Confidence from labelled points: clicks, keypoints, centres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infill_aug.confidence.sources import Key, _config
from infill_aug.functional.grading import grade, spread
from infill_aug.samples import pick


@dataclass(frozen=True)
class PointConfidence:
    """Confidence from labelled points: full on a disc around each, falling off around the discs.

    A point outside of the picture counts as far as its disc reaches into it, as a box does. An image without points, or
    with none that reaches into it, gets full confidence everywhere: with nothing known of its object, nothing of it may
    be regenerated.

    Args:
        key: where the points are in the target: ``(N, 2)`` numbers, ``x`` and ``y`` in pixels, where ``(0, 0)`` is the
            top left pixel and fractions are rounded down. A ``KeyPoints`` is one too.
        radius: of the discs, as a share of ``sqrt(H * W)``, 0..1; a disc has at least its own pixel.
        falloff: reach of the ring around the discs as a share of ``sqrt(H * W)``, 0..2; 0: the discs alone.
        edges: how much an edge of the picture holds the ring back, 0 or more; 0 grades by distance alone.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> import torch
        >>> source = PointConfidence(radius=0, falloff=0)
        >>> source(torch.zeros(3, 2, 4, dtype=torch.uint8), torch.tensor([[1.0, 0.0]])).tolist()
        [[[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]
    """

    key: Key = None
    radius: float = 0.05
    falloff: float = 0.2
    edges: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.radius <= 1:
            raise ValueError(f"radius must lie in 0..1, a share of sqrt(H * W), got {self.radius}")
        if not 0 <= self.falloff <= 2:
            raise ValueError(f"falloff must lie in 0..2, got {self.falloff}")
        if not 0 <= self.edges < float("inf"):
            raise ValueError(f"edges must be 0 or more, finite, got {self.edges}")

    def __call__(self, image: Tensor, target: Any) -> Tensor:
        """``(1, H, W)`` float32 map in 0..1 of one ``(3, H, W)`` ``uint8`` image.

        Raises:
            KeyError: no points at ``key``.
            ValueError: points that are not ``(N, 2)``, or not finite.
        """
        height, width = image.shape[-2:]
        discs = point_discs(pick(target, self.key), self.radius * (height * width) ** 0.5, height, width).float()
        if not discs.any():
            return torch.ones_like(discs)
        if self.edges > 0:
            return spread(discs[None], self.falloff, image[None].cpu().float() / 255, self.edges)[0]
        return grade(discs[None], self.falloff)[0]

    def config(self) -> dict[str, Any]:
        """Fields that enter the cache key."""
        return _config(self)


def point_discs(points: Any, radius: float, height: int, width: int) -> Tensor:
    """``(1, H, W)`` bool: within ``radius`` pixels of the pixel of any point.

    Args:
        points: ``(N, 2)`` numbers, ``x`` and ``y`` in pixels; none is fine.
        radius: pixels, 0 or more.
        height: of the picture.
        width: of the picture.

    Raises:
        ValueError: points that are not ``(N, 2)``, or not finite.

    Example:
        >>> point_discs([[1, 0]], 1, 1, 4).tolist()
        [[[True, True, True, False]]]
    """
    try:
        tensor = torch.as_tensor(points, dtype=torch.float32).as_subclass(Tensor).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"points must be numbers of shape (N, 2), got {type(points).__name__}: {points!r:.80}"
        ) from None
    if tensor.numel() and (tensor.ndim not in (1, 2) or tensor.shape[-1] != 2):
        raise ValueError(
            f"points must be (N, 2), x and y in pixels, got shape {tuple(tensor.shape)}; leave out other columns, such "
            "as whether a keypoint is visible, and put the objects of a picture into one list"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"points must be finite, got {tensor.tolist()}; leave out those that are not known")
    x, y = tensor.reshape(-1, 2).floor()[:, :, None, None].unbind(dim=1)
    rows, columns = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    inside = torch.zeros(1, height, width, dtype=torch.bool)
    for column, row in zip(x, y, strict=True):  # one at a time: all together they would not fit for a large picture
        inside |= (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
    return inside
