"""Sizes of pictures that services take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infill_aug.checks import is_integer


def check_sizes(options: Mapping[str, Any]) -> None:
    """Refuse a ``multiple`` or ``min_side`` that is no number of pixels.

    Raises:
        ValueError: the message names it.
    """
    for name in ("multiple", "min_side"):
        if not is_integer(options[name], 1):
            raise ValueError(f"{name} must be a number of pixels, 1 or more, got {options[name]!r}")


def fitted_size(options: Mapping[str, Any], height: int, width: int) -> tuple[int, int]:
    """A picture's own size, large enough, and a multiple of so many pixels on both sides.

    Args:
        options: ``multiple`` and ``min_side``, pixels, 1 or more.
        height: pixels.
        width: pixels.

    Example:
        >>> fitted_size({"multiple": 16, "min_side": 256}, 100, 150)
        (256, 384)
    """
    multiple, min_side = options["multiple"], options["min_side"]
    scale = max(1.0, min_side / min(height, width))
    tall, wide = (max(multiple, -(-round(side * scale) // multiple) * multiple) for side in (height, width))
    return tall, wide
