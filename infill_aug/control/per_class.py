"""A threshold for each class: those that bear more masking get more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from infill_aug.checks import check_within, clip
from infill_aug.control.law import Decision, Direction, Law, retention

REACH = 0.15  # of an offset: further apart, the masked share would itself tell the class
INTEGRAL = 0.1  # offset per interval and unit of retention
SHRINKAGE = 64  # samples at which a class's error counts half


class PerClassLaw:
    """One law for all, and a small offset for each class that keeps more or less than the others under it.

    The law moves the strength by the mean over all samples. Each class's offset integrates how far its smoothed
    retention lies above or below the mean, shrunk for classes of few samples, within 0.15 of the common strength.

    A threshold that depends on the class makes the masked share a clue to the class, which a model can learn in place
    of the object; the narrow reach and a ``jitter`` of about as much keep that clue weak. Use it where classes differ a
    lot in how much masking they bear, and look at the leak before you trust it.

    Args:
        rule: the law of the common strength.
        classes: how many, at least 2; the ``ThresholdState`` has as many.

    Raises:
        ValueError: too few classes, or a metric of another length.

    Example:
        >>> from infill_aug.control.schedule import ConstantLaw
        >>> law = PerClassLaw(ConstantLaw(0.5), classes=2)
        >>> decision = law.observe([0.9, 0.5], [1.0, 1.0], [64, 64])
        >>> [round(offset, 3) for offset in decision.offsets]
        [0.01, -0.01]
    """

    def __init__(self, rule: Law, classes: int) -> None:
        self.rule = rule
        self.classes = int(check_within("classes", classes, 2, float("inf"), "for one class use the rule itself"))
        self.mode: Direction = getattr(rule, "mode", "max")
        self.offsets = [0.0] * self.classes
        self.smooth_retention: list[float] = []

    @property
    def strength(self) -> float:
        """Of the common law."""
        return self.rule.strength

    @strength.setter
    def strength(self, strength: float) -> None:
        self.rule.strength = strength

    @property
    def open_loop(self) -> bool:
        """Whether the common law goes its way whatever the performance."""
        return bool(getattr(self.rule, "open_loop", False))

    def observe(
        self, metric: Sequence[float], reference: Sequence[float] | None, counts: Sequence[int] | None = None
    ) -> Decision:
        """Take in the metrics of one interval, and move the strength and the offsets.

        Args:
            metric: performance of each class on masked pictures.
            reference: performance of each class on the same pictures as they are: classes differ in that too.
            counts: samples of each class; None: as many for each, and plenty.

        Returns:
            The common law's decision, with the offsets.

        Raises:
            ValueError: no reference, or a wrong number of numbers.
        """
        if reference is None:
            raise ValueError("PerClassLaw needs a reference for each class; the signal 'retention' has one")
        lengths = {len(values) for values in (metric, reference, counts) if values is not None}
        if lengths != {self.classes}:
            raise ValueError(f"metric, reference and counts must have {self.classes} numbers each, got {lengths}")
        weights = [1.0] * self.classes if counts is None else [float(count) for count in counts]
        decision = self.rule.observe(weighted_mean(metric, weights), weighted_mean(reference, weights))
        seen = [retention(own, clean, self.mode) for own, clean in zip(metric, reference, strict=True)]
        past = self.smooth_retention or seen
        self.smooth_retention = [(before + now) / 2 for before, now in zip(past, seen, strict=True)]
        if decision.strength > 0:  # where nothing is masked, differences are noise
            mean = weighted_mean(self.smooth_retention, weights)
            trust = [1.0 if counts is None else count / (count + SHRINKAGE) for count in weights]
            self.offsets = [
                clip(offset + INTEGRAL * share * (own - mean), -REACH, REACH)
                for offset, share, own in zip(self.offsets, trust, self.smooth_retention, strict=True)
            ]
        spread = f"Offsets of the classes {min(self.offsets):+.3f} to {max(self.offsets):+.3f}."
        return replace(decision, reason=f"{decision.reason} {spread}", offsets=tuple(self.offsets))

    def explain(self) -> str:
        """What the law is after, and what it did last, in a sentence or two for people."""
        offsets = ", ".join(f"{offset:+.3f}" for offset in self.offsets)
        return f"{self.rule.explain()} On top of it each class has an offset: {offsets}."

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next decision depends on, as plain numbers and strings."""
        own = {"offsets": list(self.offsets), "smooth_retention": list(self.smooth_retention)}
        return {"rule": self.rule.state_dict(), **own}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        self.rule.load_state_dict(state_dict["rule"])
        self.offsets, self.smooth_retention = (list(state_dict[key]) for key in ("offsets", "smooth_retention"))


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Mean of the classes' values, by their numbers of samples."""
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / (sum(weights) or 1.0)
