"""Whether a value from a script, a config or a descriptor is a number within bounds."""

from __future__ import annotations

import math
from typing import TypeGuard


def is_number(
    value: object, least: float = -math.inf, most: float = math.inf, *, above: float = -math.inf
) -> TypeGuard[float]:
    """Whether a value is a finite number within bounds; ``True`` and ``False`` are none.

    Args:
        value: anything.
        least: smallest number allowed.
        most: largest number allowed.
        above: a number that it has to exceed.

    Example:
        >>> is_number(0.5, 0, 1), is_number(True, 0, 1), is_number(0, above=0), is_number(math.nan), is_number("1")
        (True, False, False, False, False)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return least <= value <= most and above < value < math.inf


def is_integer(value: object, least: float = -math.inf, most: float = math.inf) -> TypeGuard[int]:
    """Whether a value is an ``int`` within bounds; ``True``, ``False`` and ``1.0`` are none.

    Example:
        >>> is_integer(3, 1), is_integer(3, 1, 2), is_integer(3.0, 1), is_integer(True, 0)
        (True, False, False, False)
    """
    return isinstance(value, int) and is_number(value, least, most)
