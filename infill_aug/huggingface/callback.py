"""Adaptive threshold for the ``Trainer`` of Hugging Face."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from transformers import Trainer, TrainerCallback

from infill_aug.control.controller import ThresholdController
from infill_aug.probe import ControlProbe

_KEPT = "infill_threshold"  # among the callbacks' states in trainer_state.json


class ThresholdCallback(TrainerCallback):
    """Let the masking threshold follow what a ``Trainer`` evaluates, or what a ``ControlProbe`` measures then.

    After each evaluation during a training the controller sees the metric, and moves the threshold. It does on every
    rank, and all come to the same. An evaluation that you call yourself, of a test set say, moves nothing.

    Threshold and law are part of ``trainer_state.json``: a training that goes on from a checkpoint at the end of an
    epoch has the thresholds that it would have had. That needs no ``restore_callback_states_from_checkpoint``.

    Each decision is an entry of ``trainer.state.log_history``, with ``infill_threshold``, ``infill_strength``,
    ``infill_reason`` and, once there is one, ``infill_retention``. A callback is not given its trainer, so the
    reporters (TensorBoard, Weights & Biases, ...) get them only with ``attach(trainer)`` in place of
    ``Trainer(callbacks=[...])``.

    Args:
        controller: what moves the threshold.
        monitor: name of the metric, as in the logs; or a ``ControlProbe``, which measures the model on pictures of its
            own.
        reference: name of the metric that the law's target is a share of, such as the accuracy on clean pictures where
            ``monitor`` is that on masked ones; the two may come from several evaluation sets. None: the best value of
            ``monitor`` so far. A ``ControlProbe`` brings its own.

    Raises:
        RuntimeError: evaluated was, and the metric was not there.
        ValueError: nothing is ever evaluated; a loss is followed by a law that takes higher for better; or the
            controller has ``check_finite``, and the metric is not finite.

    Example:
        >>> from infill_aug.control.proportional import ProportionalLaw
        >>> from infill_aug.threshold import ThresholdState
        >>> controller = ThresholdController(ThresholdState(), ProportionalLaw(0.95))
        >>> callback = ThresholdCallback(controller, "eval_accuracy")
    """

    def __init__(
        self, controller: ThresholdController, monitor: str | ControlProbe, reference: str | None = None
    ) -> None:
        mode = getattr(controller.rule, "mode", None)
        if isinstance(monitor, str) and monitor.endswith("loss") and mode != "min":
            raise ValueError(f"{monitor!r} is better where it is lower: give the law mode='min', it has {mode!r}")
        self.controller, self.monitor, self.reference = controller, monitor, reference
        self._log: Callable[[dict[str, Any]], None] | None = None
        self._training = self._decided = False
        self._metrics: dict[str, float] = {}  # of the evaluation sets since the last step

    def attach(self, trainer: Trainer) -> None:
        """Add this callback to a trainer, whose reporters then get its numbers."""
        self._log = trainer.log
        trainer.add_callback(self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Go on where the checkpoint was, if the training goes on from one."""
        if str(getattr(args.eval_strategy, "value", args.eval_strategy)) == "no":
            raise ValueError("ThresholdCallback follows evaluations: pass TrainingArguments(eval_strategy='epoch')")
        if _KEPT in state.stateful_callbacks:
            self.controller.load_state_dict(state.stateful_callbacks[_KEPT])
        else:
            state.stateful_callbacks[_KEPT] = self.controller.state_dict()
        self._training, self._decided, self._metrics = True, False, {}

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, float], model: Any = None, **kwargs: Any
    ) -> None:
        """Decide, once all that is looked at is there."""
        if not self._training or self._decided:
            return
        if isinstance(self.monitor, ControlProbe):
            decision = self.controller.follow(self.monitor(model))
        else:
            self._metrics |= metrics
            if not set(self._names()) <= set(self._metrics):
                return
            metric, *reference = (float(self._metrics[name]) for name in self._names())
            decision = self.controller.observe(metric, reference[0] if reference else None)
        self._decided = True
        state.stateful_callbacks[_KEPT] = self.controller.state_dict()
        entry: dict[str, Any] = {"infill_threshold": decision.threshold, "infill_strength": decision.strength}
        if math.isfinite(decision.retention):
            entry["infill_retention"] = decision.retention
        entry["infill_reason"] = decision.reason
        if self._log is not None:
            self._log(entry)
        else:
            state.log_history.append({**entry, "epoch": state.epoch, "step": state.global_step})

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait for the next evaluation."""
        self._next()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stand still from now on."""
        self._next()
        self._training = False

    def _next(self) -> None:
        if self._metrics and not self._decided:
            raise RuntimeError(
                f"ThresholdCallback needs {self._names()}, and evaluated were {sorted(self._metrics)}. Names "
                "start with 'eval_'; compute_metrics makes more of them"
            )
        self._decided, self._metrics = False, {}

    def _names(self) -> list[str]:
        return [str(name) for name in (self.monitor, self.reference) if name is not None]
