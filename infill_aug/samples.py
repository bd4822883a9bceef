"""Reading the samples of any map-style dataset: which part is the image, which the target."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from infill_aug.types import IMAGE

# Names under which dictionaries in the wild carry their picture, in the order of looking.
_IMAGE_KEYS = (IMAGE, "img", "pixel_values")
_LABEL_KEYS = ("label", "labels", "category", "class", "target")


def to_uint8_image(image: Any) -> Tensor:
    """Any picture as a ``(3, H, W)`` ``uint8`` RGB tensor on the CPU.

    Args:
        image: PIL picture of any mode, array ``(H, W)`` or ``(H, W, 1 | 3 | 4)``, or tensor ``(1 | 3 | 4, H, W)`` or
            ``(H, W)``; ``uint8``, ``uint16``, or floating point in 0..1. Alpha is dropped.

    Raises:
        TypeError: something that is no picture.
        ValueError: a shape or range that is no picture's.

    Example:
        >>> import numpy as np
        >>> to_uint8_image(np.zeros((4, 5), np.uint8)).shape
        torch.Size([3, 4, 5])
    """
    tensor = _rgb(image)
    if tensor.is_floating_point():
        low, high = (float(v) for v in torch.aminmax(tensor))
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"a floating point image must lie in 0..1, got values from {low:.4g} to {high:.4g}; "
                "take Normalize out of the dataset's transform: InfillAugment normalises last"
            )
        tensor = (tensor.float() * 255).round().to(torch.uint8)
    elif tensor.dtype == torch.uint16:
        tensor = (tensor.to(torch.int32) >> 8).to(torch.uint8)
    elif tensor.dtype != torch.uint8:
        raise ValueError(f"an image must be uint8, uint16 or floating point, got {tensor.dtype}")
    return tensor.contiguous()


def _rgb(image: Any) -> Tensor:
    """Any picture as a ``(3, H, W)`` tensor on the CPU, in the dtype that it came in."""
    if isinstance(image, PILImage.Image):
        if image.mode.startswith("I"):  # 16 bits: convert("RGB") would clip nearly everything to white
            image = np.asarray(image).astype(np.uint16)
        elif image.mode == "F":
            image = np.asarray(image)
        else:
            return F.pil_to_tensor(image if image.mode == "RGB" else image.convert("RGB"))
    if isinstance(image, np.ndarray):
        array = image[..., None] if image.ndim == 2 else image
        if array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
            raise ValueError(f"an image array must be (H, W) or (H, W, 1 | 3 | 4), got shape {image.shape}")
        image = torch.from_numpy(np.array(array)).permute(2, 0, 1)
    if not isinstance(image, Tensor):
        raise TypeError(
            f"an image must be a PIL picture, an array or a tensor, got {type(image).__name__}; "
            "decode it in the dataset, or name the image's key or position"
        )
    tensor = image.detach().as_subclass(Tensor).cpu()
    if tensor.ndim == 2:
        tensor = tensor.unsqueeze(0)
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4) or 0 in tensor.shape:
        raise ValueError(f"an image tensor must be (1 | 3 | 4, H, W) and not empty, got shape {tuple(image.shape)}")
    return tensor.expand(3, -1, -1) if tensor.shape[0] == 1 else tensor[:3]


def to_batch(image: Any) -> tuple[Tensor, Tensor]:
    """One picture or a batch, as ``(B, 3, H, W)`` ``uint8`` and as float32 in 0..1, on the CPU.

    The float32 pixels are the caller's own where those are floating point, so that kept ones stay as they are.

    Args:
        image: what ``to_uint8_image`` takes, or a ``(B, 3, H, W)`` tensor.

    Example:
        >>> import torch
        >>> [tuple(t.shape) for t in to_batch(torch.rand(3, 4, 5))]
        [(1, 3, 4, 5), (1, 3, 4, 5)]
    """
    images = list(image) if isinstance(image, Tensor) and image.ndim == 4 else [image]
    if not images:
        raise ValueError(f"the batch is empty: shape {tuple(image.shape)}")
    pictures = torch.stack([to_uint8_image(one) for one in images])
    own = [_rgb(one) for one in images]
    if own[0].is_floating_point():
        return pictures, torch.stack(own).float()
    return pictures, pictures.float() / 255


def split_sample(sample: Any, image_key: str | int | None = None) -> tuple[Tensor, Any]:
    """Image and target of one sample of a map-style dataset.

    Args:
        sample: ``(image, target, ...)``, a mapping with an image, or a bare image.
        image_key: key or position of the image; by default position 0, or the first of image, img, pixel_values.

    Returns:
        ``(3, H, W)`` ``uint8`` image, and the rest: the target of a pair, a tuple of what follows the image, a mapping
        without the image, or ``None``.

    Raises:
        IndexError: no such position in the sample.
        KeyError: a mapping without an image.

    Example:
        >>> import numpy as np
        >>> split_sample((np.zeros((2, 2, 3), np.uint8), 7))[1]
        7
    """
    place = image_place(sample, image_key)
    if isinstance(place, str):
        return to_uint8_image(sample[place]), {k: v for k, v in sample.items() if k != place}
    if place is None:
        return to_uint8_image(sample), None
    rest = [part for i, part in enumerate(sample) if i != place[0]]
    return to_uint8_image(sample[place[0]]), (rest[0] if len(rest) == 1 else tuple(rest) or None)


def image_place(sample: Any, image_key: str | int | None = None) -> str | tuple[int, int] | None:
    """Where a sample has its image: a key, or a position and the number of parts; ``None``: it is the image.

    Raises:
        IndexError: no such position in the sample.
        KeyError: a mapping without an image.
    """
    if isinstance(sample, Mapping):
        key = image_key if image_key is not None else next((k for k in _IMAGE_KEYS if k in sample), None)
        if key not in sample:
            raise KeyError(f"the sample has no image under {image_key or _IMAGE_KEYS}; its keys are {list(sample)}")
        return str(key)
    if isinstance(sample, Sequence) and not isinstance(sample, str | bytes):
        position = int(image_key or 0)
        if not -len(sample) <= position < len(sample):
            raise IndexError(f"the sample has {len(sample)} parts and no image at position {position}")
        return position % len(sample), len(sample)
    return None


def join_sample(image: Any, target: Any, place: str | tuple[int, int] | None) -> Any:
    """The inverse of ``split_sample``, of one sample or of a batch of them.

    Args:
        image: what goes where the image was.
        target: the rest, as ``split_sample`` gave it.
        place: what ``image_place`` said of a sample.

    Example:
        >>> join_sample("image", {"label": 3}, "img"), join_sample("image", {"boxes": 3}, (0, 2))
        ({'label': 3, 'img': 'image'}, ['image', {'boxes': 3}])
    """
    if isinstance(place, str):
        return {**target, place: image}
    if place is None:
        return image
    position, count = place
    parts = [target] if count == 2 else list(target) if count > 2 else []
    return [*parts[:position], image, *parts[position:]]


def pick(target: Any, key: str | int | Sequence[str | int] | None) -> Any:
    """The part of a nested target at ``key``: a key, a position, or a path of them; ``None`` is the target itself.

    Raises:
        KeyError: the path does not exist; the message says what there is.

    Example:
        >>> pick((3, {"mask": "m"}), (1, "mask"))
        'm'
    """
    path = () if key is None else (key,) if isinstance(key, str | int) else tuple(key)
    part = target
    for step in path:
        try:
            part = part[step]
        except (KeyError, IndexError, TypeError):
            there = list(part) if isinstance(part, Mapping) else type(part).__name__
            raise KeyError(f"the target has nothing at {step!r} of path {path}; there: {there}") from None
    return part


def label_of(target: Any) -> Hashable | None:
    """The class label in a target, where one can be told: an integer, a string, or the first of them; else ``None``.

    Example:
        >>> label_of((2, "trimap")), label_of({"label": 5}), label_of(None)
        (2, 5, None)
    """
    if isinstance(target, bool | int | str):
        return target
    if isinstance(target, np.integer) or (isinstance(target, Tensor | np.ndarray) and target.ndim == 0):
        return int(target) if float(target).is_integer() else None
    if isinstance(target, Mapping):
        return next((label_of(target[key]) for key in _LABEL_KEYS if key in target), None)
    if isinstance(target, tuple | list) and target:
        return label_of(target[0])
    return None


def spread(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` indices, evenly spaced from first to last."""
    wanted = min(wanted, count)
    return [round(i * (count - 1) / max(1, wanted - 1)) for i in range(wanted)]


class SampleTargets(list[Any]):
    """Targets of a batch, sample by sample, where nothing could put them together."""


def label_of_batch(target: Any) -> Tensor | None:
    """The class labels in a collated target, ``(B,)`` integers, where they can be told; else ``None``.

    Example:
        >>> import torch
        >>> label_of_batch({"label": torch.tensor([2, 0])}), label_of_batch(torch.rand(2))
        (tensor([2, 0]), None)
    """
    if isinstance(target, Tensor):
        return target if target.ndim == 1 and not target.is_floating_point() else None
    if isinstance(target, Mapping):
        return next((label_of_batch(target[key]) for key in _LABEL_KEYS if key in target), None)
    if isinstance(target, SampleTargets) or not isinstance(target, tuple | list) or not target:
        return None
    return label_of_batch(target[0])
