"""Confidence from labelled boxes or points, cut out along the colours of the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from infill_aug.confidence.network import NetworkConfidence
from infill_aug.confidence.points import point_discs
from infill_aug.confidence.sources import Key, _box_mask
from infill_aug.confidence.teachers.prompted import PromptedConfidence
from infill_aug.functional.grading import centre_prior

# A cut that leaves less than this of a region has lost the object to the background's colours.
_LEAST = 0.05
# Boxes that cover more than this leave too little background to learn its colours from.
_MOST = 0.98
# Radius of the disc around a point that surely belongs to the object, as a share of sqrt(H * W).
_DISC = 0.03
# Radius within which it is looked for at first: colours of so small a disc alone do not reach beyond it.
_NEAR = 0.25


def grab_cut(
    picture: Tensor,
    *,
    background: Tensor | None = None,
    foreground: Tensor | None = None,
    likely: Tensor | None = None,
    iterations: int = 4,
) -> Tensor:
    """GrabCut (Rother, Kolmogorov and Blake, 2004): object and background told apart by colour, from a first guess.

    The colours are clustered from the same random start in every call: OpenCV's generator is seeded for it.

    Args:
        picture: ``(3, h, w)`` floating point in 0..1 on the CPU.
        background: ``(h, w)`` bool, surely background; ``None``: nowhere.
        foreground: ``(h, w)`` bool, surely object; ``None``: nowhere.
        likely: ``(h, w)`` bool, object at first, may turn out to be background; the rest may turn out to be object.
        iterations: cuts, each with the colours that the one before found, 1 or more.

    Returns:
        ``(h, w)`` float32 in 0..1: share of the cuts that a pixel survives. The first guess where nothing can be cut,
        as where one side has no pixels to learn colours from.

    Raises:
        ImportError: OpenCV is missing.

    Example:
        >>> import torch
        >>> picture = torch.zeros(3, 20, 20)
        >>> picture[:, 5:15, 5:15] = 1
        >>> likely = torch.zeros(20, 20, dtype=torch.bool)
        >>> likely[2:18, 2:18] = True
        >>> grab_cut(picture, background=~likely, likely=likely).sum().item()
        100.0
    """
    cv2 = _opencv()
    pixels = np.ascontiguousarray((picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    labels = np.full(pixels.shape[:2], cv2.GC_PR_BGD, np.uint8)
    for where, kind in ((likely, cv2.GC_PR_FGD), (background, cv2.GC_BGD), (foreground, cv2.GC_FGD)):
        if where is not None:
            labels[where.numpy()] = kind
    first = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
    found, colours = np.zeros_like(first), (np.zeros((1, 65)), np.zeros((1, 65)))
    cv2.setRNGSeed(0)
    try:
        for i in range(iterations):
            cv2.grabCut(pixels, labels, None, *colours, 1, cv2.GC_EVAL if i else cv2.GC_INIT_WITH_MASK)
            found += np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))
    except cv2.error:
        return torch.from_numpy(first)
    return torch.from_numpy(found / iterations)


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ImportError("GrabCut needs OpenCV: pip install 'infill-aug[opencv]'") from error
    return cv2


class GrabCutConfidence(NetworkConfidence):
    """Confidence from GrabCut (Rother, Kolmogorov and Blake, 2004): boxes or points become the shape of the object.

    Outside of all boxes is background; what inside is the object is told by colour. A point is surely object, and so
    are, at first, its surroundings (a quarter of ``sqrt(H * W)``), from where the object may grow or shrink. The cut is
    repeated at two scales, and confidence is the share of the cuts that a pixel survives. A box, or the surroundings of
    a point, in which no object is found counts as a whole; boxes that cover the picture get a centre prior; a picture
    without boxes or points gets full confidence everywhere: with nothing known of its object, nothing of it may be
    regenerated. No network, no weights, and the same map in any batch and process.

    Args:
        key: where the boxes ``(N, 4)`` or points ``(N, 2)`` are in the target; ``None``: a ``BoundingBoxes`` or what is
            under the key ``boxes``, else what is under ``points``, else the target itself.
        format: of the boxes: ``"xyxy"``, ``"xywh"`` or ``"cxcywh"``, absolute pixels; a ``BoundingBoxes`` brings its
            own. Points are ``(x, y)`` in pixels.
        side: pixels of the longer side at which pictures are cut, 16 or more; larger ones are scaled down.
        iterations: cuts at each scale, 1 or more.
        grading: arguments of ``NetworkConfidence``; ``device`` says where maps are graded, cuts run on the CPU.

    Raises:
        ImportError: OpenCV is missing.
        ValueError: an argument out of range.

    Example:
        >>> import torch
        >>> image = torch.zeros(3, 40, 40, dtype=torch.uint8)
        >>> image[0, 15:25, 15:25] = 255
        >>> confidence = GrabCutConfidence()(image, {"boxes": torch.tensor([[10, 10, 30, 30]])})
        >>> [round(v, 2) for v in confidence[0, 20, [5, 12, 20]].tolist()]
        [0.0, 0.0, 1.0]
    """

    reads_target = True

    def __init__(
        self,
        *,
        key: Key = None,
        format: str = "xyxy",  # noqa: A002
        side: int = 256,
        iterations: int = 4,
        **grading: Any,
    ) -> None:
        _opencv()  # fail here, with the remedy, not in the middle of a build
        super().__init__(**grading)
        if side < 16:
            raise ValueError(f"side must be 16 pixels or more, got {side}")
        if iterations < 1:
            raise ValueError(f"iterations must be 1 or more, got {iterations}")
        self.side, self.iterations = side, iterations
        # Reads boxes and points; its segmenter is never loaded.
        self._reader = PromptedConfidence(key=key, format=format)

    def prompt(self, target: Any) -> dict[str, list[list[float]]]:
        """Boxes as left, top, right, bottom, and points as x, y, in pixels of the picture.

        Returns:
            ``{"boxes": [...]}``, ``{"points": [...]}``, or ``{}`` where there are none.

        Raises:
            KeyError: the target has no place for boxes or points.
            ValueError: something that is neither ``(N, 4)`` nor ``(N, 2)``, or not finite.
        """
        return self._reader.prompt(target)

    def score(self, images: Tensor, prompts: Sequence[Any]) -> Tensor:
        """Share of the cuts that each pixel survives, at the size at which they are made.

        Raises:
            ValueError: no targets were given.
        """
        if None in prompts:
            raise ValueError(f"{type(self).__name__} reads boxes or points: give the targets with the images")
        pictures = images.cpu()
        found = [self._cut(picture[None], prompt) for picture, prompt in zip(pictures, prompts, strict=True)]
        return torch.cat(found).to(images.device)

    def identity(self) -> dict[str, Any]:
        """Size and number of the cuts; what prompts them is in each picture's own key."""
        import cv2

        return {"side": self.side, "iterations": self.iterations, "opencv": cv2.__version__}

    def _cut(self, picture: Tensor, prompt: Mapping[str, Sequence[Sequence[float]]]) -> Tensor:
        """``(1, 1, h, w)`` map of one ``(1, 3, H, W)`` picture."""
        small = _shrink(picture, self.side)
        height, width = small.shape[-2:]
        regions, discs = _regions(prompt, picture.shape[-2:], (height, width))
        inside = regions.any(dim=0)
        if not inside.any():
            return small.new_ones(1, 1, height, width)
        if inside.float().mean() > _MOST:
            return centre_prior(height, width) * inside
        cuts = []
        for scale in (1, 2):
            scaled = _shrink(small, max(1, max(height, width) // scale))
            where, surely = _regions(prompt, picture.shape[-2:], scaled.shape[-2:])
            likely = where.any(dim=0)
            # Around boxes is background for sure; around points alone, only probably.
            rest = ~likely if prompt.get("boxes") else None
            found = grab_cut(scaled[0], background=rest, foreground=surely, likely=likely, iterations=self.iterations)
            cuts.append(nnf.interpolate(found[None, None], size=(height, width), mode="bilinear", align_corners=False))
        cut = torch.stack(cuts).mean(dim=0)
        if prompt.get("boxes"):  # coarse pixels reach over the rim of a box
            cut = cut * inside
        for region in regions:
            if cut[0, 0][region].mean() < _LEAST:
                cut[0, 0][region] = 1.0
        return cut.masked_fill(discs, 1.0)


def _shrink(images: Tensor, side: int) -> Tensor:
    """At most ``side`` pixels long."""
    height, width = images.shape[-2:]
    scale = side / max(height, width)
    if scale >= 1:
        return images
    size = max(1, round(height * scale)), max(1, round(width * scale))
    return nnf.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)


def _regions(
    prompt: Mapping[str, Sequence[Sequence[float]]], own: Sequence[int], size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """``(N, h, w)`` where objects may be, and ``(h, w)`` where they surely are, both bool, as far as in the picture."""
    height, width = size
    scale = torch.tensor([width / own[1], height / own[0]])
    boxes = [_box_mask(torch.tensor([box]) * scale.repeat(2), "xyxy", height, width) for box in prompt.get("boxes", ())]
    points = torch.tensor(list(prompt.get("points", ()))).reshape(-1, 2) * scale
    near = [point_discs(point, _NEAR * (height * width) ** 0.5, height, width) for point in points]
    discs = point_discs(points, _DISC * (height * width) ** 0.5, height, width)[0]
    regions = torch.cat([*boxes, *near, torch.zeros(0, height, width, dtype=torch.bool)])
    return regions[regions.flatten(1).any(dim=1)], discs
