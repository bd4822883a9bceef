"""What a control law is: it sees the performance of an interval, and answers with the strength of the next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from infill_aug.checks import check_within, clip

Direction = Literal["max", "min"]
COLLAPSE = 0.15  # share of a performance whose loss is no noise


@dataclass(frozen=True)
class Decision:
    """What a law answers to one metric.

    Args:
        strength: the new strength, 0..1.
        reason: a sentence for people.
        retention: share of the reference performance that the law saw left, 0..2; NaN where nothing could be seen.
        changed: whether the strength moved.
        threshold: what the strength came to, 0..1; NaN until a ``ThresholdController`` has applied it.
        offsets: what each class adds to the strength; empty where classes are not told apart.
    """

    strength: float
    reason: str
    retention: float
    changed: bool
    threshold: float = math.nan
    offsets: tuple[float, ...] = ()


class Law(Protocol):
    """What moves the strength: plain memory and one method, no I/O.

    ``strength`` is where the law starts from. Whoever applies decisions sets it to where the ``ThresholdState`` stands
    before each observation, since its bounds may have stopped short of what the law asked for.
    """

    strength: float

    def observe(self, metric: float, reference: float | None = None) -> Decision:
        """Take in the metric of one interval, say one validation, and decide."""

    def explain(self) -> str:
        """What the law is after, and what it did last, in a sentence or two for people."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next decision depends on, as plain numbers and strings."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""


def retention(metric: float, reference: float, mode: Direction = "max") -> float:
    """Share of a reference performance that is left.

    ``1 - shortfall / max(|metric|, |reference|)``. For positive numbers that are no better than their reference this is
    the plain ratio, ``metric / reference`` for accuracies and ``reference / metric`` for losses; unlike the ratio it
    also holds for zero and negative numbers, and an outlier can't exceed its range.

    Args:
        metric: any finite number.
        reference: any finite number.
        mode: ``"max"`` where higher is better, ``"min"`` where lower is.

    Returns:
        0..2; 1 is as good as the reference. It never falls when the metric improves.

    Example:
        >>> retention(0.75, 1.0), retention(1.25, 1.0, mode="min")
        (0.75, 0.8)
    """
    scale = max(abs(metric), abs(reference))
    gain = metric / scale - reference / scale if scale else 0.0
    return clip(1.0 + (gain if mode == "max" else -gain), 0.0, 2.0)


class FeedbackLaw:
    """Memory that the laws of this package share: where they stand, and the best performance so far.

    Args:
        mode: ``"max"`` where a higher metric is better, ``"min"`` where a lower is.
        smoothing: share of the past in moving averages, 0..0.99; 0 smooths nothing.

    Attributes:
        open_loop: whether the law goes its way whatever the performance.
    """

    open_loop: ClassVar[bool] = False

    _memory: ClassVar[tuple[str, ...]] = ("strength", "intervals", "smooth_yardstick", "best", "reason")

    def __init__(self, mode: Direction, smoothing: float = 0.5) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"mode must be 'max' (higher is better) or 'min' (lower is better), got {mode!r}")
        self.mode: Direction = mode
        self.smoothing = check_within("smoothing", smoothing, 0.0, 0.99, "0.5 is the default, 0 smooths nothing")
        self.strength = 0.0
        self.intervals = 0
        self.smooth_yardstick = 0.0
        self.best: float | None = None
        self.reason = "Nothing was observed yet."

    def aim(self) -> str:
        """What the law is after, as a clause for people."""
        raise NotImplementedError

    def explain(self) -> str:
        """What the law is after, and what it did last, in a sentence or two for people."""
        return f"{type(self).__name__} {self.aim()}. After {self.intervals} intervals: {self.reason}"

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next decision depends on, as plain numbers and strings."""
        return {name: getattr(self, name) for name in self._memory}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        for name in self._memory:
            setattr(self, name, state_dict[name])

    def _retention(self, metric: float, reference: float | None) -> float:
        """Retention of this interval.

        Without a reference the metric is compared with its best so far, a smoothed one, since a lucky draw would stay
        for ever. A reference that has itself collapsed is replaced by its best: a model that loses the clean pictures
        too has kept nothing.
        """
        for name, value in (("metric", metric), ("reference", reference)):
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value!r}; skip this interval, or see why it diverged")
        better = max if self.mode == "max" else min
        yardstick = metric if reference is None else reference
        best = yardstick if self.best is None else self.best
        standard = best if reference is None or retention(reference, best, self.mode) < 1 - COLLAPSE else reference
        self.intervals += 1
        self.smooth_yardstick = self._smooth(self.smooth_yardstick, yardstick)
        self.best = self.smooth_yardstick if self.best is None else better(self.best, self.smooth_yardstick)
        return retention(metric, standard, self.mode)

    def _smooth(self, past: float, new: float) -> float:
        """Moving average with the bias correction of Adam, so that the first value counts in full."""
        weight = (1.0 - self.smoothing) / (1.0 - self.smoothing**self.intervals)
        return (1.0 - weight) * past + weight * new

    def _hold(self, why: str, seen: float) -> Decision:
        self.reason = f"{why}: hold, strength {self.strength:.3f}."
        return Decision(self.strength, self.reason, seen, changed=False)

    def _move(self, strength: float, bounds: tuple[float, float], seen: float, why: str) -> Decision:
        before, self.strength = self.strength, clip(strength, *bounds)
        step = self.strength - before
        action = "mask more" if step > 0 else "reveal more" if step < 0 else "hold"
        self.reason = f"{why}: {action}, strength {self.strength:.3f}."
        return Decision(self.strength, self.reason, seen, step != 0)


def side_of(error: float) -> str:
    """Where an error lies, in a word."""
    return "above" if error > 0 else "below" if error < 0 else "at"
