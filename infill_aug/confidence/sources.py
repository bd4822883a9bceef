"""Confidence from what a dataset already has: masks, boxes, a centre prior, or any callable."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_convert

from infill_aug.functional.grading import centre_prior, grade, spread
from infill_aug.functional.masks import erode
from infill_aug.samples import pick
from infill_aug.types import check_confidence

Key = str | int | Sequence[str | int] | None


class ConfidenceSource(Protocol):
    """Anything that gives the confidence map of an image and its target."""

    def __call__(self, image: Tensor, target: Any) -> Tensor:
        """``(3, H, W)`` ``uint8`` image and its target -> ``(1, H, W)`` floating point map in 0..1."""
        ...

    def config(self) -> dict[str, Any]:
        """What the map depends on besides image and target, as JSON values: part of every cache key."""
        ...


def _config(source: Any) -> dict[str, Any]:
    """Class name and fields of a source as JSON values; mapping keys as text, since JSON has no others."""
    fields = {}
    for field in dataclasses.fields(source):
        value = getattr(source, field.name)
        if isinstance(value, Mapping):
            value = {str(k): v for k, v in value.items()}
        fields[field.name] = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
    return {"source": type(source).__name__, **fields}


@dataclass(frozen=True)
class MaskConfidence:
    """Confidence from a labelled mask: semantic, trimap, binary or instance masks.

    An image with no labelled pixel gets full confidence everywhere: with nothing known of its object, nothing of it
    may be regenerated.

    Args:
        key: where the mask is in the target: a key, a position, a path of them, or ``None`` for the target itself.
        foreground: values of the mask that matter; ``None``: every value but 0.
        class_weights: confidence 0..1 by value of the mask, instead of 1 for every foreground value.
        falloff: reach of the ring around the object as a share of ``sqrt(H * W)``.
        edges: how much an edge of the picture holds that ring back, 0 or more; 0 grades by distance alone.
        inset: pixels by which objects are made smaller all around: their outermost pixels hold some of the background,
            and what is labelled is kept. An object that would vanish stays as it is.

    Raises:
        ValueError: a class weight outside 0..1, or edges or inset below 0.

    Example:
        >>> import torch
        >>> trimap = torch.tensor([[1, 3, 2, 2]])
        >>> source = MaskConfidence(foreground=(1, 3), falloff=0.5)
        >>> [round(v, 2) for v in source(torch.zeros(3, 1, 4, dtype=torch.uint8), trimap).flatten().tolist()]
        [1.0, 1.0, 0.33, 0.12]
    """

    key: Key = None
    foreground: Sequence[int] | None = None
    class_weights: Mapping[int, float] | None = None
    falloff: float = 0.2
    edges: float = 0.0
    inset: int = 0

    def __post_init__(self) -> None:
        _check_edges(self.edges)
        if self.inset < 0:
            raise ValueError(f"inset must be 0 pixels or more, got {self.inset}")
        wrong = {k: w for k, w in (self.class_weights or {}).items() if not 0 <= float(w) <= 1}
        if wrong:
            raise ValueError(f"class_weights must lie in 0..1, got {wrong}")

    def __call__(self, image: Tensor, target: Any) -> Tensor:
        """Map of one sample.

        Raises:
            KeyError: no mask at ``key``.
            ValueError: a mask of another size than the image.
        """
        labels = _label_map(pick(target, self.key))
        if labels.shape[-2:] != image.shape[-2:]:
            raise ValueError(
                f"mask at {self.key!r} has size {tuple(labels.shape[-2:])}, its image {tuple(image.shape[-2:])}; "
                "resize both together, or neither"
            )
        weights = torch.zeros(labels.shape, dtype=torch.float32)
        if self.class_weights is not None:
            for value, weight in self.class_weights.items():
                weights[labels == int(value)] = float(weight)
        elif self.foreground is not None:
            weights[torch.isin(labels, torch.tensor(list(self.foreground)))] = 1.0
        else:
            weights[labels != 0] = 1.0
        if self.inset:
            tight = erode(weights[None], self.inset)[0]
            gone = ~(tight > 0).flatten(1).any(dim=1)
            weights = torch.where(gone[:, None, None], weights, tight)
        return _graded(weights.amax(dim=0, keepdim=True), self.falloff, image, self.edges)

    def config(self) -> dict[str, Any]:
        """Fields that enter the cache key."""
        return _config(self)


@dataclass(frozen=True)
class BoxConfidence:
    """Confidence from labelled boxes: full inside, falling off around them.

    An image without boxes gets full confidence everywhere.

    Args:
        key: where the boxes are in the target.
        format: ``"xyxy"``, ``"xywh"`` or ``"cxcywh"``, absolute pixels; a ``BoundingBoxes`` brings its own.
        falloff: reach of the ring around the boxes as a share of ``sqrt(H * W)``.
        edges: how much an edge of the picture holds that ring back, 0 or more; 0 grades by distance alone.

    Raises:
        ValueError: edges below 0.

    Example:
        >>> import torch
        >>> source = BoxConfidence(falloff=0)
        >>> source(torch.zeros(3, 2, 4, dtype=torch.uint8), torch.tensor([[1.0, 0.0, 3.0, 2.0]]))[0, 0].tolist()
        [0.0, 1.0, 1.0, 0.0]
    """

    key: Key = None
    format: str = "xyxy"
    falloff: float = 0.2
    edges: float = 0.0

    def __post_init__(self) -> None:
        _check_edges(self.edges)

    def __call__(self, image: Tensor, target: Any) -> Tensor:
        """Map of one sample.

        Raises:
            KeyError: no boxes at ``key``.
            ValueError: boxes that are not ``(N, 4)``.
        """
        height, width = image.shape[-2:]
        inside = _box_mask(pick(target, self.key), self.format, height, width)
        return _graded(inside.float(), self.falloff, image, self.edges)

    def config(self) -> dict[str, Any]:
        """Fields that enter the cache key."""
        return _config(self)


@dataclass(frozen=True)
class CentreConfidence:
    """The middle of the picture matters: no labels needed.

    Args:
        falloff: standard deviation of the bell as a share of ``sqrt(H * W)``, above 0.

    Example:
        >>> import torch
        >>> CentreConfidence()(torch.zeros(3, 5, 5, dtype=torch.uint8), None).shape
        torch.Size([1, 5, 5])
    """

    falloff: float = 0.3

    def __call__(self, image: Tensor, target: Any) -> Tensor:
        """Map of one sample; the target is not looked at."""
        return centre_prior(image.shape[-2], image.shape[-1], self.falloff)[0]

    def config(self) -> dict[str, Any]:
        """Fields that enter the cache key."""
        return _config(self)


@dataclass(frozen=True)
class CallableConfidence:
    """Confidence from your own function.

    Args:
        function: ``(image, target) -> (1, H, W)`` or ``(H, W)`` map in 0..1; image is ``(3, H, W)`` ``uint8``.
        name: enters the cache key in the function's place, since a function has no stable content: change it whenever
            the function's result changes.

    Example:
        >>> import torch
        >>> source = CallableConfidence(lambda image, target: image.float().mean(0) / 255, name="brightness-v1")
        >>> source(torch.full((3, 1, 2), 255, dtype=torch.uint8), None).tolist()
        [[[1.0, 1.0]]]
    """

    function: Callable[[Tensor, Any], Tensor]
    name: str

    def __call__(self, image: Tensor, target: Any) -> Tensor:
        """Map of one sample.

        Raises:
            ValueError: a map of wrong size or range; the message names ``name``.
        """
        confidence = torch.as_tensor(self.function(image, target))
        confidence = confidence[None] if confidence.ndim == 2 else confidence
        if confidence.shape != (1, *image.shape[-2:]):
            raise ValueError(
                f"confidence of {self.name!r} has shape {tuple(confidence.shape)}, "
                f"its image needs {(1, *image.shape[-2:])}"
            )
        try:
            check_confidence(confidence)
        except ValueError as error:
            raise ValueError(f"{self.name!r}: {error}") from None
        return confidence.float() / 255 if confidence.dtype == torch.uint8 else confidence.float()

    def config(self) -> dict[str, Any]:
        """Name that enters the cache key."""
        return {"source": "CallableConfidence", "name": self.name}


def protect_labelled(confidence: Tensor, target: Any, protect: str) -> Tensor:
    """Full confidence on labelled objects, so that no pixel of theirs is ever regenerated.

    Args:
        confidence: ``(1, H, W)`` ``uint8`` map.
        target: any nesting with a ``BoundingBoxes`` or ``Mask`` leaf, or with the key ``boxes`` or ``masks``.
        protect: ``"boxes"`` or ``"masks"``.

    Returns:
        A new ``(1, H, W)`` ``uint8`` map.

    Raises:
        ValueError: an unknown ``protect``.
        KeyError: the target has no such annotation.

    Example:
        >>> import torch
        >>> boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        >>> protect_labelled(torch.zeros(1, 1, 2, dtype=torch.uint8), {"boxes": boxes}, "boxes").tolist()
        [[[255, 0]]]
    """
    if protect not in ("boxes", "masks"):
        raise ValueError(f"protect must be 'boxes' or 'masks', got {protect!r}")
    height, width = confidence.shape[-2:]
    wanted = tv_tensors.BoundingBoxes if protect == "boxes" else tv_tensors.Mask
    keys = ("boxes",) if protect == "boxes" else ("masks", "mask")
    found = list(_annotations(target, wanted, keys))
    if not found:
        raise KeyError(f"protect={protect!r}: the target has no {wanted.__name__} and none of the keys {keys}")
    inside = torch.zeros((1, height, width), dtype=torch.bool)
    for leaf in found:
        if protect == "boxes":
            inside |= _box_mask(leaf, "xyxy", height, width)
        else:
            labels = _label_map(leaf)
            if labels.shape[-2:] != (height, width):
                raise ValueError(f"protect='masks': mask {tuple(labels.shape[-2:])} but image {(height, width)}")
            inside |= (labels != 0).any(dim=0, keepdim=True)
    return confidence.masked_fill(inside, 255)


def _annotations(target: Any, wanted: type, keys: tuple[str, ...]) -> Any:
    """Leaves of ``target`` of the wanted type or under one of the keys."""
    if isinstance(target, wanted):
        yield target
    elif isinstance(target, Mapping):
        for key, value in target.items():
            if key in keys:
                yield value
            else:
                yield from _annotations(value, wanted, keys)
    elif isinstance(target, tuple | list):
        for value in target:
            yield from _annotations(value, wanted, keys)


def _graded(weights: Tensor, falloff: float, image: Tensor, edges: float) -> Tensor:
    """``(1, H, W)`` weights as a graded map; full confidence where there is no object."""
    if not (weights > 0).any():
        return torch.ones_like(weights)
    if edges > 0:
        return spread(weights[None], falloff, image[None].cpu().float() / 255, edges)[0]
    return grade(weights[None], falloff)[0]


def _check_edges(edges: float) -> None:
    if not 0 <= edges < float("inf"):
        raise ValueError(f"edges must be 0 or more, finite, got {edges}")


def _label_map(mask: Any) -> Tensor:
    """``(N, H, W)`` integer labels of a PIL picture, array or tensor."""
    if isinstance(mask, PILImage.Image):
        mask = np.array(mask.convert("L") if mask.mode not in ("L", "P", "1", "I", "I;16") else mask)
    if isinstance(mask, np.ndarray):
        mask = torch.from_numpy(mask if mask.dtype.kind in "bf" else mask.astype(np.int64))
    if not isinstance(mask, Tensor):
        raise TypeError(f"a mask must be a PIL picture, an array or a tensor, got {type(mask).__name__}")
    mask = mask.as_subclass(Tensor)
    if mask.is_floating_point() and not bool((mask == mask.round()).all()):
        mask = mask > 0.5  # a soft mask; whole numbers are labels that went through a floating point transform
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3:
        raise ValueError(f"a mask must be (H, W) or (N, H, W), got shape {tuple(mask.shape)}")
    if mask.shape[0] == 0:  # no instances: an empty mask of the right size
        return torch.zeros((1, *mask.shape[1:]), dtype=torch.int64)
    return mask.to(torch.int64)


def _box_mask(boxes: Any, box_format: str, height: int, width: int) -> Tensor:
    """``(1, H, W)`` bool: inside any box, rounded outwards."""
    if isinstance(boxes, tv_tensors.BoundingBoxes):
        box_format = boxes.format.value.lower()
    if box_format not in ("xyxy", "xywh", "cxcywh"):
        raise ValueError(f"boxes must be in format xyxy, xywh or cxcywh, got {box_format}; convert them first")
    try:
        tensor = torch.as_tensor(boxes, dtype=torch.float32).as_subclass(Tensor)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"boxes must be numbers of shape (N, 4), got {type(boxes).__name__}: {boxes!r:.80}") from None
    if tensor.numel() and (tensor.ndim > 2 or tensor.shape[-1] != 4):
        raise ValueError(f"boxes must be (N, 4), got shape {tuple(tensor.shape)}")
    tensor = tensor.reshape(-1, 4)
    if box_format != "xyxy":
        tensor = box_convert(tensor, box_format, "xyxy")
    y = torch.arange(height)[None, :, None]
    x = torch.arange(width)[None, None, :]
    left, top, right, bottom = (side[:, None, None] for side in tensor.unbind(dim=1))
    inside = (x >= left.floor()) & (x < right.ceil()) & (y >= top.floor()) & (y < bottom.ceil())
    return inside.any(dim=0, keepdim=True)
