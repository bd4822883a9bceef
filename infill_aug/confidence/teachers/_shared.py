"""What teachers share: lazy loading, and their pictures' preparation."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from infill_aug.confidence.network import NetworkConfidence

# A strip one pixel high would otherwise become a picture of a million columns.
_LONGEST, _SHORTEST = 4, 32


class Teacher(NetworkConfidence):
    """A source whose network is loaded when the first picture is scored, and left behind when it is pickled."""

    @cached_property
    def network(self) -> Any:
        """What ``load`` gave, kept."""
        return self.load()

    @abstractmethod
    def load(self) -> Any:
        """The network, and what else scoring needs."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "network"}


def check_weights(class_weights: Mapping[str, float], classes: Sequence[str] | None = None) -> dict[str, float]:
    """Class weights as numbers.

    Raises:
        ValueError: none at all, one outside 0..1, or one for a class that is not among ``classes``.
    """
    if not class_weights:
        raise ValueError("class_weights is empty; name the classes that matter, such as {'dog': 1.0}")
    for name, weight in class_weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
            raise ValueError(f"class weight of {name!r} must lie in 0..1, got {weight!r}")
    unknown = sorted(set(class_weights) - set(classes)) if classes is not None else []
    if unknown:
        raise ValueError(f"class_weights names {unknown}, which the model does not know; it has {list(classes or ())}")
    return {str(name): float(weight) for name, weight in class_weights.items()}


def weigh(shares: Tensor, classes: Sequence[str], class_weights: Mapping[str, float]) -> Tensor:
    """``(B, C, h, w)`` shares of classes -> ``(B, 1, h, w)``: their sum, weighted, within 0..1."""
    if shares.shape[1] != len(classes):
        raise ValueError(f"the model scores {shares.shape[1]} classes, but {len(classes)} are named: {list(classes)}")
    weights = torch.tensor([class_weights.get(name, 0.0) for name in classes], device=shares.device)
    return torch.einsum("bchw,c->bhw", shares, weights)[:, None].clamp(0, 1)


def frame(height: int, width: int, size: Mapping[str, int | None]) -> tuple[int, int]:
    """Height and width at which a model looks at a picture, by the ``size`` of its image processor.

    Example:
        >>> frame(60, 80, {"shortest_edge": 30}), frame(60, 80, {"longest_edge": 40})
        ((30, 40), (30, 40))
    """
    if size.get("height") and size.get("width"):
        return int(size["height"] or 0), int(size["width"] or 0)
    shortest, longest = size.get("shortest_edge"), size.get("longest_edge")
    if not (shortest or longest):
        raise ValueError(f"size must have height and width, shortest_edge or longest_edge, got {dict(size)}")
    scale = min(
        shortest / min(height, width) if shortest else math.inf, longest / max(height, width) if longest else math.inf
    )
    # Where only the shortest edge is given, extreme shapes are squeezed.
    most, least = longest or _LONGEST * (shortest or 0), min(_SHORTEST, shortest) if shortest else 1
    high, wide = (min(most, max(least, int(side * scale + 0.5))) for side in (height, width))
    return high, wide


def prepare(images: Tensor, processor: Mapping[str, Any]) -> Tensor:
    """Resize and normalise on the device, as the values of an image processor say.

    Args:
        images: ``(B, 3, H, W)`` floating point in 0..1.
        processor: ``size`` (see ``frame``), ``image_mean``, ``image_std``, and the switches of transformers.

    Returns:
        ``(B, 3, h, w)``.
    """
    if processor.get("do_resize", True):
        size = frame(images.shape[-2], images.shape[-1], processor["size"])
        if size != images.shape[-2:]:
            images = nnf.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
    if processor.get("do_flip_channel_order"):
        images = images.flip(1)
    # Pictures come in 0..1; a processor counts from 0..255.
    images = images * (255 * processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 255)
    if processor.get("do_normalize", True):
        mean, std = (
            torch.as_tensor(processor[key], dtype=images.dtype, device=images.device).reshape(-1, 1, 1)
            for key in ("image_mean", "image_std")
        )
        images = (images - mean) / std
    return images


def logits_of(output: Any) -> Tensor:
    """Logits in what segmenters return: a tensor, an object with ``logits``, a mapping with ``out``, a list's last."""
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, Mapping) and "out" in output:
        return output["out"]
    if isinstance(output, tuple | list) and output:
        return logits_of(output[-1])
    raise ValueError(
        f"the model gave {type(output).__name__}; needed is a tensor of logits, an object with .logits, a mapping "
        "with 'out', or a list of them with the finest last"
    )
