"""How hard training masks: one shared number, and the laws that move it by the model's own performance.

``ThresholdState`` holds the number, a *strength* in 0..1, and turns it into the *threshold* that masks are cut with.
A *law* sees a metric after each validation and answers with a new strength: lower performance, lower threshold, more of
the picture revealed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch

ThresholdMode = Literal["quantile", "absolute"]
Direction = Literal["max", "min"]

# Chosen by a random search over simulated training runs; tests/test_threshold.py checks them on such runs, and on
# others whose parameters were not part of the search.
SMOOTHING = 0.5  # share of the past in the moving average of the retention
INTEGRAL = 0.4  # strength per interval and unit of error
PROPORTIONAL = 0.4  # strength per unit of change of the error
REVEAL_FASTER = 1.5  # too much masking harms the model, too little only wastes time
LARGEST_STEPS = (-0.08, 0.05)  # strength per interval
TRUST_AFTER_REVERSAL, TRUST_REGAINED, LEAST_TRUST = 0.5, 1.1, 0.2  # a change of sign means that steps were too large
CRASH, CRASH_STEP = 0.15, 0.25  # this far under the target, at least a quarter of the strength goes
ACCURACY_VARIANCE = 0.16  # of one prediction that is right 80 % of the time


def strength_to_threshold(strength: float, mode: ThresholdMode = "quantile", keep_min: float = 0.02) -> float:
    """Threshold that a strength stands for.

    Args:
        strength: what a law moves, 0..1; 0 masks nothing.
        mode: ``"quantile"``: the threshold is the share of pixels to mask, ``1 - keep_min ** strength``, so that equal
            steps of strength take away equal *ratios* of what is still visible. ``"absolute"``: the threshold is a
            confidence and equals the strength.
        keep_min: share of pixels that full strength keeps, strictly between 0 and 1; for ``"quantile"`` only.

    Returns:
        The threshold, 0..1; it rises with the strength.
    """
    return strength if mode == "absolute" else 1.0 - keep_min**strength


def threshold_to_strength(threshold: float, mode: ThresholdMode = "quantile", keep_min: float = 0.02) -> float:
    """Strength that gives a threshold; the inverse of ``strength_to_threshold``.

    Args:
        threshold: 0..1; in mode ``"quantile"`` everything from ``1 - keep_min`` on is full strength.
        mode: see ``strength_to_threshold``.
        keep_min: see ``strength_to_threshold``.

    Returns:
        The strength, 0..1.
    """
    if mode == "absolute":
        return threshold
    return math.log(1.0 - threshold) / math.log(keep_min) if threshold < 1.0 - keep_min else 1.0


class ThresholdState:
    """The one threshold that a training run shares: augmentation reads it, a law or its user sets it.

    The number lies in shared memory: ``DataLoader`` workers see a change at once under fork, spawn and forkserver, with
    persistent workers too, but batches that they had prefetched were cut with the old one. Let one process set it.
    ``copy.deepcopy`` and what ``multiprocessing`` sends to a worker stay linked to it; a plain pickle becomes a copy of
    its own. Ranks of a distributed run share no memory: each has its own state and must set it alike.

    Args:
        strength: where to start, 0..1; moved into ``bounds`` where it lies outside them.
        mode: meaning of the threshold, see ``strength_to_threshold``.
        bounds: lowest and highest *threshold* that may be set, within 0..1.
        keep_min: share of pixels that full strength keeps, 0.0001..0.99; for mode ``"quantile"`` only.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> state = ThresholdState.from_threshold(0.5)
        >>> state.set(state.strength + 0.1)
        >>> round(state.threshold, 3)
        0.662
    """

    def __init__(
        self,
        strength: float = 0.0,
        *,
        mode: ThresholdMode = "quantile",
        bounds: tuple[float, float] = (0.0, 1.0),
        keep_min: float = 0.02,
    ) -> None:
        if mode not in ("quantile", "absolute"):
            raise ValueError(f"mode must be 'quantile' or 'absolute', got {mode!r}")
        self.mode: ThresholdMode = mode
        self.keep_min = _within("keep_min", keep_min, 1e-4, 0.99, "0.02 is the default")
        self.bounds = _interval("bounds", bounds)
        self._shared = torch.zeros(1, dtype=torch.float64).share_memory_()
        self.set(_within("strength", strength, 0.0, 1.0, "for a threshold use ThresholdState.from_threshold"))

    @classmethod
    def from_threshold(
        cls,
        threshold: float,
        *,
        mode: ThresholdMode = "quantile",
        bounds: tuple[float, float] = (0.0, 1.0),
        keep_min: float = 0.02,
    ) -> ThresholdState:
        """State that starts at a threshold instead of a strength.

        Args:
            threshold: within ``bounds``, and at most ``1 - keep_min`` in mode ``"quantile"``.
            mode: as for the class, like ``bounds`` and ``keep_min``.
            bounds: lowest and highest threshold.
            keep_min: share of pixels that full strength keeps.

        Raises:
            ValueError: an argument is out of range.
        """
        state = cls(mode=mode, bounds=bounds, keep_min=keep_min)
        highest = min(state.bounds[1], strength_to_threshold(1.0, mode, keep_min))
        _within("threshold", threshold, state.bounds[0], highest, "widen bounds, or lower keep_min")
        state.set(threshold_to_strength(threshold, mode, keep_min))
        return state

    @property
    def strength(self) -> float:
        """What a law moves, 0..1."""
        return self._shared.item()

    @property
    def threshold(self) -> float:
        """What masks are cut with, within ``bounds``; higher masks more."""
        return _clip(strength_to_threshold(self.strength, self.mode, self.keep_min), *self.bounds)

    def set(self, strength: float) -> None:
        """Set the strength for every process that shares this state, moved into the bounds where it lies outside them.

        Args:
            strength: 0..1.

        Raises:
            ValueError: the strength is not finite.
        """
        if not math.isfinite(strength):
            raise ValueError(f"strength must be a finite number in 0..1, got {strength!r}; the old one was kept")
        low, high = (threshold_to_strength(bound, self.mode, self.keep_min) for bound in self.bounds)
        self._shared[0] = _clip(strength, low, high)

    def state_dict(self) -> dict[str, Any]:
        """The strength and its unit, as plain numbers and strings."""
        return {"strength": self.strength, "mode": self.mode, "keep_min": self.keep_min}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a saved strength, within this state's own bounds.

        Raises:
            ValueError: it was saved under another mode or ``keep_min``, so that its strength means another threshold.
        """
        saved, own = ((source["mode"], source["keep_min"]) for source in (state_dict, self.state_dict()))
        if saved != own:
            raise ValueError(f"saved with (mode, keep_min) {saved}, this state has {own}; build it with the saved ones")
        self.set(state_dict["strength"])

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.__dict__.update(attributes)
        self._shared.share_memory_()  # a detached copy is shared with its own workers all the same

    def __deepcopy__(self, memo: dict[int, Any]) -> ThresholdState:
        return self  # frameworks deepcopy datasets and modules, and a copy would silently stop following

    def __repr__(self) -> str:
        return f"ThresholdState(threshold={self.threshold:.4f}, strength={self.strength:.4f}, mode={self.mode!r})"


@dataclass(frozen=True)
class Decision:
    """What a law answers to one metric.

    Args:
        strength: the new strength, 0..1.
        reason: a sentence for people.
        retention: share of the reference performance that the law saw left, 0..2; NaN where nothing could be seen.
        changed: whether the strength moved.
    """

    strength: float
    reason: str
    retention: float
    changed: bool


class Law(Protocol):
    """What moves the strength: plain memory and one method, no I/O.

    ``strength`` is where the law starts from. Whoever applies decisions sets it to where the ``ThresholdState`` stands
    before each observation, since its bounds may have stopped short of what the law asked for.
    """

    strength: float

    def observe(self, metric: float, reference: float | None = None) -> Decision:
        """Take in the metric of one interval, say one validation, and decide."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next decision depends on, as plain numbers."""

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
    return _clip(1.0 + (gain if mode == "max" else -gain), 0.0, 2.0)


class _Feedback:
    """Memory that the laws share: where they stand, and the best performance so far."""

    _memory: ClassVar[tuple[str, ...]] = ("strength", "intervals", "smooth_metric", "best")

    def __init__(self, mode: Direction) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"mode must be 'max' (higher is better) or 'min' (lower is better), got {mode!r}")
        self.mode: Direction = mode
        self.strength = 0.0
        self.intervals = 0
        self.smooth_metric = 0.0
        self.best: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next decision depends on, as plain numbers."""
        return {name: getattr(self, name) for name in self._memory}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        for name in self._memory:
            setattr(self, name, state_dict[name])

    def _retention(self, metric: float, reference: float | None) -> float:
        """Retention of this interval; the best so far is a smoothed one, since a lucky draw would stay for ever."""
        for name, value in (("metric", metric), ("reference", reference)):
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value!r}; skip this interval, or see why it diverged")
        if reference is None:
            reference = metric if self.best is None else self.best
        self.intervals += 1
        self.smooth_metric = self._smooth(self.smooth_metric, metric)
        pick = max if self.mode == "max" else min
        self.best = self.smooth_metric if self.best is None else pick(self.best, self.smooth_metric)
        return retention(metric, reference, self.mode)

    def _smooth(self, past: float, new: float) -> float:
        """Moving average with the bias correction of Adam, so that the first value counts in full."""
        weight = (1.0 - SMOOTHING) / (1.0 - SMOOTHING**self.intervals)
        return (1.0 - weight) * past + weight * new

    def _move(self, strength: float, bounds: tuple[float, float], seen: float, why: str) -> Decision:
        before, self.strength = self.strength, _clip(strength, *bounds)
        step = self.strength - before
        action = "mask more" if step > 0 else "reveal more" if step < 0 else "hold"
        return Decision(self.strength, f"{why}: {action}, strength {self.strength:.3f}.", seen, step != 0)


class ProportionalLaw(_Feedback):
    """Hold performance near a share of its reference by masking as much as that share allows.

    A proportional-integral controller in velocity form. It smooths, ignores errors that noise explains, halves its own
    steps after the error changed sign, reveals faster than it masks, and drops a quarter of its strength when
    performance collapses. It keeps no sum, so that standing at a bound winds nothing up. From any state, a lower
    performance never leads to a higher strength.

    Args:
        target: share of the reference performance to hold, 0..1. The distance to 1 is also the speed: at full
            performance the strength rises by ``0.4 * gain * (1 - target - dead_band)`` an interval.
        mode: ``"max"`` where a higher metric is better, ``"min"`` where a lower is.
        dead_band: errors of retention up to this size are ignored, 0..1.
        samples: how many samples the metric is an average of; widens ``dead_band`` to the noise of an accuracy over
            that many. None: ``dead_band`` as it is.
        warmup: number of first intervals in which the strength stays, at least 0.
        bounds: lowest and highest strength, within 0..1.
        gain: factor on all steps, 0..10; the largest step of an interval stays as it is.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> law = ProportionalLaw(target=0.9, warmup=0)
        >>> law.observe(0.80, reference=0.80).reason
        'Retention 1.000 is above the target 0.900: mask more, strength 0.050.'
        >>> law.observe(0.40, reference=0.80).reason
        'Retention 0.667 is below the target 0.900: reveal more, strength 0.000.'
    """

    _memory = (*_Feedback._memory, "smooth_retention", "pull", "direction", "trust")

    def __init__(
        self,
        target: float = 0.9,
        *,
        mode: Direction = "max",
        dead_band: float = 0.01,
        samples: int | None = None,
        warmup: int = 3,
        bounds: tuple[float, float] = (0.0, 0.95),
        gain: float = 1.0,
    ) -> None:
        super().__init__(mode)
        self.target = _within("target", target, 0.0, 1.0, "0.9 holds 90 % of the reference")
        self.dead_band = _within("dead_band", dead_band, 0.0, 1.0, "0.01 is the default")
        if samples is not None:
            independent = _within("samples", samples, 1, math.inf, "leave it out where the number is unknown")
            independent *= (1 + SMOOTHING) / ((1 - SMOOTHING) * (1 + target**2))
            self.dead_band = max(self.dead_band, math.sqrt(ACCURACY_VARIANCE / independent))
        self.warmup = int(_within("warmup", warmup, 0, math.inf, "it counts intervals"))
        self.bounds = _interval("bounds", bounds)
        self.gain = _within("gain", gain, 0.0, 10.0, "1.0 is the default")
        self.smooth_retention = 1.0
        self.pull = 0.0
        self.direction = 0
        self.trust = 1.0

    def observe(self, metric: float, reference: float | None = None) -> Decision:
        """Take in the metric of one interval and move the strength.

        Args:
            metric: performance, as a rule on *masked* pictures: masking may raise performance on clean ones.
            reference: what ``target`` is a share of, such as performance on clean pictures. None: the best smoothed
                metric before this interval.

        Returns:
            The new strength, within ``bounds``, and the smoothed retention that led to it.

        Raises:
            ValueError: a number is not finite; nothing was taken in.
        """
        seen = self._retention(metric, reference)
        self.smooth_retention = self._smooth(self.smooth_retention, seen)
        error = self.smooth_retention - self.target
        pull = math.copysign(max(0.0, abs(error) - self.dead_band), error)
        step = self.gain * (INTEGRAL * pull + PROPORTIONAL * (pull - self.pull))
        step = self.trust * _clip(step * REVEAL_FASTER if step < 0 else step, *LARGEST_STEPS)
        if error < -CRASH:
            step = min(step, -CRASH_STEP * self.strength)
        self.pull = pull
        why = f"Retention {self.smooth_retention:.3f} is {_side(pull)} the target {self.target:.3f}"
        if self.intervals <= self.warmup:
            why, step = f"Warm-up interval {self.intervals} of {self.warmup}", 0.0
        elif pull:
            self._learn_trust(1 if pull > 0 else -1)
        return self._move(self.strength + step, self.bounds, self.smooth_retention, why)

    def _learn_trust(self, direction: int) -> None:
        """Halve the steps that *follow* a reversal; halving the reversal itself would slow down revealing."""
        factor = TRUST_AFTER_REVERSAL if direction == -self.direction else TRUST_REGAINED
        self.trust = _clip(self.trust * factor, LEAST_TRUST, 1.0)
        self.direction = direction


class SignLaw(_Feedback):
    """Move by a fixed step towards the target, whatever the distance; a baseline to compare with.

    After the adaptive augmentation of StyleGAN2-ADA (Karras et al., "Training Generative Adversarial Networks with
    Limited Data", NeurIPS 2020), with retention in place of the discriminator's overfitting.

    Args:
        target: share of the reference performance to hold, 0..1.
        step: change of strength per interval, 0..1.
        mode: ``"max"`` where a higher metric is better, ``"min"`` where a lower is.
        bounds: lowest and highest strength, within 0..1.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> SignLaw(step=0.01).observe(0.8, reference=0.8).strength
        0.01
    """

    def __init__(
        self,
        target: float = 0.9,
        step: float = 0.01,
        *,
        mode: Direction = "max",
        bounds: tuple[float, float] = (0.0, 0.95),
    ) -> None:
        super().__init__(mode)
        self.target = _within("target", target, 0.0, 1.0, "0.9 holds 90 % of the reference")
        self.step = _within("step", step, 0.0, 1.0, "0.01 is the default")
        self.bounds = _interval("bounds", bounds)

    def observe(self, metric: float, reference: float | None = None) -> Decision:
        """Take in the metric of one interval and move one step; see ``ProportionalLaw.observe``."""
        seen = self._retention(metric, reference)
        error = seen - self.target
        step = math.copysign(self.step, error) if error else 0.0
        why = f"Retention {seen:.3f} is {_side(error)} the target {self.target:.3f}"
        return self._move(self.strength + step, self.bounds, seen, why)


class ConstantLaw(_Feedback):
    """Always the same strength; the open-loop baseline.

    Args:
        constant: strength, 0..1.
        mode: direction of the metric whose retention is reported.

    Example:
        >>> ConstantLaw(0.3).observe(0.8).strength
        0.3
    """

    def __init__(self, constant: float, *, mode: Direction = "max") -> None:
        super().__init__(mode)
        self.constant = _within("constant", constant, 0.0, 1.0, "it is a strength, not a threshold")

    def observe(self, metric: float, reference: float | None = None) -> Decision:
        """Take in the metric of one interval and report its retention."""
        seen = self._retention(metric, reference)
        return self._move(self.constant, (0.0, 1.0), seen, f"Retention is {seen:.3f}, strength is constant")


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _side(error: float) -> str:
    return "above" if error > 0 else "below" if error < 0 else "at"


def _within(name: str, value: float, low: float, high: float, hint: str) -> float:
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in {low:g}..{high:g}, got {value!r}; {hint}")
    return float(value)


def _interval(name: str, bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    if not 0 <= low <= high <= 1:
        raise ValueError(f"{name} must be (low, high) with 0 <= low <= high <= 1, got {bounds!r}; (0, 1) allows all")
    return float(low), float(high)
