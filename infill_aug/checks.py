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


def check_within(name: str, value: float, low: float, high: float, hint: str) -> float:
    """The value as a ``float``, if it lies in ``low..high``.

    Raises:
        ValueError: it does not; the message has the name, the value, the range and the hint.

    Example:
        >>> check_within("target", 1, 0, 1, "0.9 is usual")
        1.0
    """
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in {low:g}..{high:g}, got {value!r}; {hint}")
    return float(value)


def check_interval(name: str, bounds: tuple[float, float]) -> tuple[float, float]:
    """Lower and upper bound as ``float``, if they lie in 0..1 in that order.

    Raises:
        ValueError: they do not.

    Example:
        >>> check_interval("bounds", (0, 1))
        (0.0, 1.0)
    """
    low, high = bounds
    if not 0 <= low <= high <= 1:
        raise ValueError(f"{name} must be (low, high) with 0 <= low <= high <= 1, got {bounds!r}; (0, 1) allows all")
    return float(low), float(high)


def clip(value: float, low: float, high: float) -> float:
    """The nearest number within ``low..high``."""
    return min(max(value, low), high)
