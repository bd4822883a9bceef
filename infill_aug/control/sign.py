"""A fixed step towards the target: the baseline of feedback laws."""

from __future__ import annotations

import math

from infill_aug.checks import check_interval, check_within
from infill_aug.control.law import Decision, Direction, FeedbackLaw, side_of


class SignLaw(FeedbackLaw):
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
        target: float = 0.8,
        step: float = 0.01,
        *,
        mode: Direction = "max",
        bounds: tuple[float, float] = (0.0, 0.95),
    ) -> None:
        super().__init__(mode)
        self.target = check_within("target", target, 0.0, 1.0, "0.8 holds 80 % of the reference")
        self.step = check_within("step", step, 0.0, 1.0, "0.01 is the default")
        self.bounds = check_interval("bounds", bounds)

    def observe(self, metric: float, reference: float | None = None) -> Decision:
        """Take in the metric of one interval and move one step; see ``ProportionalLaw.observe``."""
        seen = self._retention(metric, reference)
        error = seen - self.target
        step = math.copysign(self.step, error) if error else 0.0
        why = f"Retention {seen:.3f} is {side_of(error)} the target {self.target:.3f}"
        return self._move(self.strength + step, self.bounds, seen, why)

    def aim(self) -> str:
        """What the law is after, as a clause for people."""
        return f"goes {self.step:g} an interval towards a retention of {self.target:.3f}"
