"""The feedback loop in one object: a metric goes in, the threshold moves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch.distributed as dist

from infill_aug.control.law import Decision, Law
from infill_aug.control.per_class import PerClassLaw, weighted_mean
from infill_aug.control.proportional import ProportionalLaw
from infill_aug.threshold import ThresholdState


class ThresholdController:
    """Moves a ``ThresholdState`` by a control law, for a training loop of your own.

    Call ``observe`` after each validation. Where ``torch.distributed`` runs, call it on *every* rank: the metric is
    averaged over them, and all end with the strength of rank zero's decision, whatever each had measured.

    Args:
        state: what ``InfillAugment`` or ``InfillTransform`` reads, and this moves.
        rule: the control law; by default a ``ProportionalLaw``.
        check_finite: raise where a metric is NaN or infinite; otherwise the threshold stays.

    Attributes:
        last: the last decision, or ``None``.
        seen: metric and reference, averaged over the ranks, of the last call.

    Raises:
        ValueError: ``check_finite``, and a number is not finite; nothing was taken in.

    Example:
        >>> controller = ThresholdController(ThresholdState(), ProportionalLaw(0.9, warmup=0))
        >>> decision = controller.observe(0.8)
        >>> round(decision.threshold, 3), decision.reason
        (0.178, 'Retention 1.000 is above the target 0.900: mask more, strength 0.050.')
    """

    def __init__(self, state: ThresholdState, rule: Law | PerClassLaw | None = None, check_finite: bool = True) -> None:
        self.state = state
        self.rule: Law | PerClassLaw = ProportionalLaw() if rule is None else rule
        self.check_finite = check_finite
        self.decided = False
        self.last: Decision | None = None
        self.seen: tuple[Any, Any] = (None, None)

    def observe(self, metric: Any, reference: Any = None, counts: Sequence[int] | None = None) -> Decision:
        """Take in the metric of one interval, and move the threshold.

        Args:
            metric: performance since the last call: a number, of torch or numpy too, or one for each class where the
                law is a ``PerClassLaw``.
            reference: what the law compares it with, of the same kind; or ``None``.
            counts: how many samples of each class, for a ``PerClassLaw``; else ``None``.

        Returns:
            The law's decision, with the threshold that it came to.
        """
        ranks = on_all_ranks((_plain(metric), _plain(reference), self.state.strength))
        metric, reference = self.seen = (_mean([rank[0] for rank in ranks]), _mean([rank[1] for rank in ranks]))
        self.rule.strength = ranks[0][2]
        for name, value in (("metric", metric), ("reference", reference)):
            if value is not None and not all(map(math.isfinite, value if isinstance(value, list) else [value])):
                if self.check_finite:
                    raise ValueError(f"{name} is {value}: find out why, or pass check_finite=False to sit it out")
                return self._apply(Decision(self.rule.strength, f"{name} is {value}: hold.", math.nan, changed=False))
        self.decided = True
        if isinstance(self.rule, PerClassLaw):
            return self._apply(self.rule.observe(metric, reference, counts))
        return self._apply(self.rule.observe(metric, reference))

    def follow(self, reading: Any) -> Decision:
        """Take in what a ``ControlProbe`` measured, and move the threshold; hold until the model is above chance.

        Args:
            reading: ``infill_aug.probe.Reading``.
        """
        # Only before the first decision: a model that falls back to chance later on has collapsed.
        if not (reading.learned or self.decided or getattr(self.rule, "open_loop", False)):
            return self.hold(f"Accuracy {reading.clean:.3f} is not above chance, {reading.chance:.3f}, yet")
        metric, reference = reading.metric, reading.reference
        if reading.counts is not None and not isinstance(self.rule, PerClassLaw):
            metric, reference = (values and weighted_mean(values, reading.counts) for values in (metric, reference))
        return self.observe(metric, reference, reading.counts)

    def hold(self, reason: str) -> Decision:
        """Leave the threshold where it is for an interval, for a reason that is kept; the law sees nothing of it."""
        return self._apply(Decision(self.state.strength, f"{reason}: hold.", math.nan, changed=False))

    def explain(self) -> str:
        """Where the threshold stands and why, in a few sentences for people."""
        unit = "of each picture's pixels are masked" if self.state.mode == "quantile" else "is the confidence to exceed"
        share = f"{self.state.threshold:.0%}" if self.state.mode == "quantile" else f"{self.state.threshold:.3f}"
        return f"Threshold {self.state.threshold:.3f}: {share} {unit}, protected ones aside. {self.rule.explain()}"

    def state_dict(self) -> dict[str, Any]:
        """Law and threshold, as plain numbers and strings."""
        law = {"law": type(self.rule).__name__, "rule": self.rule.state_dict()}
        return {**law, "state": self.state.state_dict(), "decided": self.decided}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was taken, with the threshold of then.

        Raises:
            ValueError: it was taken with another law, or the state has another unit.
        """
        if state_dict["law"] != type(self.rule).__name__:
            raise ValueError(
                f"saved with {state_dict['law']}, and this is {type(self.rule).__name__}; use the saved law"
            )
        self.rule.load_state_dict(state_dict["rule"])
        self.decided = state_dict["decided"]
        self.state.load_state_dict(state_dict["state"])

    def _apply(self, decision: Decision) -> Decision:
        before = self.state.strength
        self.state.set(decision.strength, decision.offsets or None)
        # What came of it, since the state's bounds may have stopped short of it.
        now, moved = self.state.strength, self.state.strength != before
        self.last = replace(decision, strength=now, threshold=self.state.threshold, changed=moved)
        return self.last


def on_all_ranks(own: Any) -> list[Any]:
    """What each rank passes, in the order of ranks; without ranks, the own alone. Call it on every rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    return gathered


def _plain(value: Any) -> Any:
    """A ``float``, or a list of them, of whatever holds one."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return value if value is None else list(map(float, value)) if isinstance(value, list | tuple) else float(value)


def _mean(values: list[Any]) -> Any:
    """Mean over ranks of numbers, or of sequences number by number."""
    if values[0] is None:
        return None
    if isinstance(values[0], float):
        return sum(values) / len(values)
    return [_mean(list(numbers)) for numbers in zip(*values, strict=True)]
