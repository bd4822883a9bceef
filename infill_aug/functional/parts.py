"""A large batch in parts that a CPU works on one after the other."""

from __future__ import annotations

from torch import Tensor

# Parts of this size, in float32, stay in the cache, and their memory is used again and again: of anything over 32 MB
# the system takes back and clears every page.
PART_BYTES = 8 * 2**20


def parts_of(images: Tensor) -> list[slice]:
    """Slices of a batch on a CPU that are of a good size to work on; on other devices one of everything.

    Args:
        images: ``(B, C, H, W)``, not looked at.

    Example:
        >>> import torch
        >>> parts_of(torch.empty(20, 3, 224, 224))
        [slice(0, 13, None), slice(13, 26, None)]
    """
    count = max(1, len(images))
    if images.device.type == "cpu":
        numbers = images.shape[1] * images.shape[2] * images.shape[3]
        count = min(count, max(1, PART_BYTES // max(1, 4 * numbers)))
    return [slice(first, first + count) for first in range(0, max(1, len(images)), count)]
