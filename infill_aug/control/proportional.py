"""The law that is used by default: hold performance near a share of its reference."""

from __future__ import annotations

import math

from infill_aug.checks import check_interval, check_within, clip
from infill_aug.control.law import Decision, Direction, FeedbackLaw, side_of

# Chosen by a random search over simulated training runs; tests/test_control_plant.py checks them on such runs, and on
# others whose parameters were not part of the search.
INTEGRAL = 0.4  # strength per interval and unit of error
PROPORTIONAL = 0.4  # strength per unit of change of the error
REVEAL_FASTER = 1.5  # too much masking harms the model, too little only wastes time
TRUST_AFTER_REVERSAL, TRUST_REGAINED, LEAST_TRUST = 0.5, 1.1, 0.2  # a change of sign means that steps were too large
CRASH, CRASH_STEP = 0.15, 0.25  # this far under the target, at least a quarter of the strength goes
ACCURACY_VARIANCE = 0.16  # of one prediction that is right 80 % of the time


class ProportionalLaw(FeedbackLaw):
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
        patience: number of intervals that the performance has to stay above the target before more is masked, at least
            0; to reveal never waits.
        bounds: lowest and highest strength, within 0..1.
        gain: factor on all steps, 0..10; the largest step of an interval stays as it is.
        smoothing: share of the past in the moving average of the retention, 0..0.99.
        slew: largest steps of an interval, down and up, each 0..1.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> law = ProportionalLaw(target=0.9, warmup=0)
        >>> law.observe(0.80, reference=0.80).reason
        'Retention 1.000 is above the target 0.900: mask more, strength 0.050.'
        >>> law.observe(0.40, reference=0.80).reason
        'Retention 0.667 is below the target 0.900: reveal more, strength 0.000.'
    """

    _memory = (*FeedbackLaw._memory, "smooth_retention", "pull", "direction", "streak", "trust")

    def __init__(
        self,
        target: float = 0.8,
        *,
        mode: Direction = "max",
        dead_band: float = 0.01,
        samples: int | None = None,
        warmup: int = 3,
        patience: int = 0,
        bounds: tuple[float, float] = (0.0, 0.95),
        gain: float = 1.0,
        smoothing: float = 0.5,
        slew: tuple[float, float] = (0.08, 0.05),
    ) -> None:
        super().__init__(mode, smoothing)
        self.target = check_within("target", target, 0.0, 1.0, "0.8 holds 80 % of the reference")
        self.dead_band = check_within("dead_band", dead_band, 0.0, 1.0, "0.01 is the default")
        if samples is not None:
            independent = check_within("samples", samples, 1, math.inf, "leave it out where the number is unknown")
            independent *= (1 + smoothing) / ((1 - smoothing) * (1 + target**2))
            self.dead_band = max(self.dead_band, math.sqrt(ACCURACY_VARIANCE / independent))
        self.warmup = int(check_within("warmup", warmup, 0, math.inf, "it counts intervals"))
        self.patience = int(check_within("patience", patience, 0, math.inf, "it counts intervals"))
        self.bounds = check_interval("bounds", bounds)
        self.gain = check_within("gain", gain, 0.0, 10.0, "1.0 is the default")
        self.slew = tuple(check_within("slew", step, 0.0, 1.0, "(0.08, 0.05) is the default") for step in slew)
        self.smooth_retention = 1.0
        self.pull = 0.0
        self.direction = 0
        self.streak = 0
        self.trust = 1.0

    def observe(self, metric: float, reference: float | None = None) -> Decision:
        """Take in the metric of one interval and move the strength.

        Args:
            metric: performance, as a rule on *masked* pictures: masking may raise performance on clean ones.
            reference: what ``target`` is a share of, such as performance on clean pictures; its best smoothed value so
                far where that is better. None: the best smoothed metric before this interval.

        Returns:
            The new strength, within ``bounds``, and the smoothed retention that led to it.

        Raises:
            ValueError: a number is not finite; nothing was taken in.
        """
        nothing = self.best == 0 if reference is None else reference == 0 and not self.best
        unlearned = self.mode == "max" and metric == 0 and nothing  # all of nothing is left
        seen = self._retention(metric, reference)
        self.smooth_retention = self._smooth(self.smooth_retention, seen)
        error = self.smooth_retention - self.target
        pull = math.copysign(max(0.0, abs(error) - self.dead_band), error)
        step = self.gain * (INTEGRAL * pull + PROPORTIONAL * (pull - self.pull))
        down, up = self.slew
        step = self.trust * clip(step * REVEAL_FASTER if step < 0 else step, -down, up)
        if error < -CRASH:
            step = min(step, -CRASH_STEP * self.strength)
        self.streak = self.streak + 1 if pull > 0 else 0
        self.pull = pull
        trend = (", but falling" if step < 0 else ", but rising") if step * pull < 0 else ""
        why = f"Retention {self.smooth_retention:.3f} is {side_of(pull)} the target {self.target:.3f}{trend}"
        if self.intervals <= self.warmup:
            return self._hold(f"Warm-up interval {self.intervals} of {self.warmup}", self.smooth_retention)
        if unlearned and step > 0:
            why, step = "Nothing is learned yet", 0.0
        elif step > 0 and self.patience and self.streak <= self.patience:
            why, step = f"{why}, for {self.streak} of more than {self.patience} intervals", 0.0
        elif pull:
            self._learn_trust(1 if pull > 0 else -1)
        return self._move(self.strength + step, self.bounds, self.smooth_retention, why)

    def aim(self) -> str:
        """What the law is after, as a clause for people."""
        trusted = "" if self.trust == 1 else f", with steps at {self.trust:.0%} since the error changed its sign"
        return f"holds a retention of {self.target:.3f}, give or take {self.dead_band:.3f}{trusted}"

    def _learn_trust(self, direction: int) -> None:
        """Halve the steps that *follow* a reversal; halving the reversal itself would slow down revealing."""
        factor = TRUST_AFTER_REVERSAL if direction == -self.direction else TRUST_REGAINED
        self.trust = clip(self.trust * factor, LEAST_TRUST, 1.0)
        self.direction = direction
