"""Sizes of pictures that services take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def multiple_of(options: Mapping[str, Any]) -> Callable[[int, int], tuple[int, int]]:
    """What makes a size that is large enough, and a multiple of so many pixels on both sides.

    Args:
        options: ``multiple`` and ``min_side``, pixels, 1 or more.

    Raises:
        ValueError: one of them is something else.

    Example:
        >>> multiple_of({"multiple": 16, "min_side": 256})(100, 150)
        (256, 384)
    """
    for name in ("multiple", "min_side"):
        value = options[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a number of pixels, 1 or more, got {value!r}")
    multiple, min_side = options["multiple"], options["min_side"]

    def size(height: int, width: int) -> tuple[int, int]:
        scale = max(1.0, min_side / min(height, width))
        tall, wide = (max(multiple, -(-round(side * scale) // multiple) * multiple) for side in (height, width))
        return tall, wide

    return size
