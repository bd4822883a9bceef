"""A strength that depends on the time alone: open loop, to compare feedback with, or where no metric is to be had."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from infill_aug.checks import check_within
from infill_aug.control.law import Decision, Direction, FeedbackLaw

Shape = Literal["linear", "cosine", "curriculum"]

# From 0 to 1 as the time goes from 0 to 1.
_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda time: time,
    "cosine": lambda time: (1.0 - math.cos(math.pi * time)) / 2.0,
    "curriculum": math.sqrt,
}


class ScheduleLaw(FeedbackLaw):
    """Go from one strength to another in a number of intervals, whatever the performance; it is only reported.

    Args:
        end: strength from the last interval on, 0..1; below ``start`` it reveals more and more.
        intervals: how many lead there, at least 1; a validation is one.
        start: strength that it comes from, 0..1; what is in force before the first validation is the state's own.
        shape: ``"linear"``; ``"cosine"``, slow at both ends; or ``"curriculum"``, the root of the time: a learner gains
            competence ever more slowly (Platanios et al., "Competence-based Curriculum Learning for Neural Machine
            Translation", NAACL 2019).
        mode: direction of the metric whose retention is reported.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> law = ScheduleLaw(0.8, intervals=4)
        >>> [round(law.observe(0.5).strength, 2) for _ in range(5)]
        [0.2, 0.4, 0.6, 0.8, 0.8]
    """

    open_loop = True

    def __init__(
        self,
        end: float,
        intervals: int,
        *,
        start: float = 0.0,
        shape: Shape = "linear",
        mode: Direction = "max",
    ) -> None:
        super().__init__(mode)
        if shape not in _SHAPES:
            raise ValueError(f"shape must be one of {list(_SHAPES)}, got {shape!r}")
        self.end = check_within("end", end, 0.0, 1.0, "it is a strength, not a threshold")
        self.start = check_within("start", start, 0.0, 1.0, "it is a strength, not a threshold")
        self.length = int(check_within("intervals", intervals, 1, math.inf, "for one strength use ConstantLaw"))
        self.shape: Shape = shape

    def observe(self, metric: float, reference: float | None = None) -> Decision:
        """Take in the metric of one interval, and go on to the next strength."""
        seen = self._retention(metric, reference)
        done = _SHAPES[self.shape](min(1.0, self.intervals / self.length))
        why = f"Interval {self.intervals} of {self.length} of the {self.shape} schedule, retention {seen:.3f}"
        return self._move(self.start + (self.end - self.start) * done, (0.0, 1.0), seen, why)

    def aim(self) -> str:
        """What the law is after, as a clause for people."""
        return f"goes from strength {self.start:g} to {self.end:g} in {self.length} intervals, {self.shape}"


class ConstantLaw(FeedbackLaw):
    """Always the same strength; the performance is only reported.

    Args:
        constant: strength, 0..1.
        mode: direction of the metric whose retention is reported.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> ConstantLaw(0.3).observe(0.8).strength
        0.3
    """

    open_loop = True

    def __init__(self, constant: float, *, mode: Direction = "max") -> None:
        super().__init__(mode)
        self.constant = check_within("constant", constant, 0.0, 1.0, "it is a strength, not a threshold")

    def observe(self, metric: float, reference: float | None = None) -> Decision:
        """Take in the metric of one interval and report its retention."""
        seen = self._retention(metric, reference)
        return self._move(self.constant, (0.0, 1.0), seen, f"Retention is {seen:.3f}, strength is constant")

    def aim(self) -> str:
        """What the law is after, as a clause for people."""
        return f"stays at strength {self.constant:g}"
