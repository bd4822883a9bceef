"""Adaptive threshold for Lightning: mask more while the model does well, reveal more when its performance drops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from infill_aug.threshold import Decision, Direction, Law, ProportionalLaw, ThresholdState


class AdaptiveThreshold(Callback):
    """Let the masking threshold follow a validation metric.

    After every validation a law, ``ProportionalLaw`` as a rule, sees the metric and moves the ``ThresholdState``. All
    ranks see the mean of the metric over ranks and get the same threshold, also where it was logged without
    ``sync_dist``. The threshold and the law's memory are part of the checkpoint.

    The metric steers the training, so take it from a split that neither training nor the final test uses. Measure it
    on *masked* pictures if you can: masking may raise it on clean ones, and the loop then pushes the wrong way.

    Logs ``infill/threshold`` and ``infill/strength`` at the start of each training epoch, ``infill/retention`` once
    there is one, and ``infill/masked_share``, which is what the threshold really came to where objects are protected.

    Args:
        monitor: name of the logged validation metric to follow.
        mode: ``"max"`` where a higher metric is better, ``"min"`` where a lower is.
        target: share of the reference performance to hold, 0..1. Not used with a ``law``, which has its own.
        reference: name of the logged metric that ``target`` is a share of, such as the accuracy on clean pictures.
            None: the best value of ``monitor`` so far.
        state: what to move. None: ``trainer.datamodule.augment.threshold_state``, or the ``threshold_state`` of a
            submodule of the LightningModule.
        law: how to move it, see ``infill_aug.threshold``. None: ``ProportionalLaw(target, mode=mode)``.
        strict: raise where a validation did not log the metric; otherwise the threshold stays.
        check_finite: raise where the metric is NaN or infinite; otherwise the threshold stays.
        verbose: print each decision, on rank zero.

    Attributes:
        history: one entry per decision: ``epoch, step, metric, reference, retention, strength, threshold, reason``.

    Raises:
        MisconfigurationException: ``mode`` is wrong or differs from the law's, or there is no state to move.
        RuntimeError: ``strict``, and the metric was not logged.
        ValueError: ``check_finite``, and the metric is not finite.

    Example:
        >>> state = ThresholdState.from_threshold(0.3)
        >>> callback = AdaptiveThreshold("val_acc", target=0.9, state=state)
        >>> callback.decide(0.8).reason
        'Warm-up interval 1 of 3: hold, strength 0.091.'
    """

    def __init__(
        self,
        monitor: str = "val_acc",
        *,
        mode: Direction = "max",
        target: float = 0.95,
        reference: str | None = None,
        state: ThresholdState | None = None,
        law: Law | None = None,
        strict: bool = True,
        check_finite: bool = True,
        verbose: bool = False,
    ) -> None:
        super().__init__()
        if mode not in ("max", "min"):
            raise MisconfigurationException(f"`mode` can be 'max' or 'min', got {mode!r}")
        self.law: Law = ProportionalLaw(target, mode=mode) if law is None else law
        law_mode = getattr(law, "mode", mode)
        if law_mode != mode:
            raise MisconfigurationException(f"`mode` is {mode!r} but the law's is {law_mode!r}; give both the same")
        self.monitor = monitor
        self.mode = mode
        self.reference = reference
        self.state = state
        self.strict = strict
        self.check_finite = check_finite
        self.verbose = verbose
        self.history: list[dict[str, Any]] = []
        self._find_state = state is None
        self._holders: list[Any] = []

    @property
    def state_key(self) -> str:
        """Key in the checkpoint; callbacks on other metrics keep their own."""
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    def decide(self, metric: float, reference: float | None = None) -> Decision:
        """Show one interval to the law; needs no trainer and moves no threshold.

        Args:
            metric: value of ``monitor``.
            reference: value of ``reference``; None: the best metric so far.

        Returns:
            The law's decision, from where the state stands now.

        Raises:
            ValueError: ``check_finite``, and a value is not finite.
        """
        if self.state is not None:
            self.law.strength = self.state.strength
        for name, value in ((self.monitor, metric), (self.reference, reference)):
            if value is not None and not math.isfinite(value):
                if self.check_finite:
                    raise ValueError(f"{name} is {value}: find out why, or pass check_finite=False to sit it out")
                return Decision(self.law.strength, f"{name} is {value}: hold.", math.nan, changed=False)
        return self.law.observe(metric, reference)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the state to move; runs before a checkpoint is restored."""
        if stage != "fit":
            return
        self._holders = [getattr(trainer.datamodule, "augment", None), *pl_module.modules()]
        if self._find_state:
            self.state = _shared_state(self._holders)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what this epoch trains with; Lightning allows no logging where the decision is taken."""
        assert self.state is not None
        values = {"infill/threshold": self.state.threshold, "infill/strength": self.state.strength}
        if self.history and math.isfinite(self.history[-1]["retention"]):
            values["infill/retention"] = self.history[-1]["retention"]
        pl_module.log_dict(values, on_step=False, on_epoch=True, sync_dist=True, batch_size=1)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Log the share of pixels that was regenerated, without waiting for the device."""
        shares = [getattr(holder, "masked_share", None) for holder in self._holders]
        share = next((share for share in shares if isinstance(share, torch.Tensor)), None)
        if share is not None:
            pl_module.log("infill/masked_share", share, on_step=False, on_epoch=True, batch_size=1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide on the validation that has just ended, alike on all ranks."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or trainer.fast_dev_run:
            return
        values = self._metrics(trainer)
        if values is None:
            return
        assert self.state is not None
        decision = trainer.strategy.broadcast(self.decide(*values))
        self.state.set(decision.strength)
        self.history.append(
            {
                "epoch": trainer.current_epoch,
                "step": trainer.global_step,
                "metric": values[0],
                "reference": values[1] if self.reference else None,
                "retention": decision.retention,
                "strength": self.state.strength,
                "threshold": self.state.threshold,
                "reason": decision.reason,
            }
        )
        if self.verbose:
            rank_zero_info(f"{self.monitor} {values[0]:.4f}. {decision.reason} Threshold {self.state.threshold:.3f}.")

    def _metrics(self, trainer: Trainer) -> list[float] | None:
        """Metric and reference, averaged over ranks; None where a rank lacks one and ``strict`` is off."""
        logged = trainer.callback_metrics
        names = [name for name in (self.monitor, self.reference) if name is not None]
        # Asked together, since a rank that raised alone would leave the others waiting in the reduction.
        if not trainer.strategy.reduce_boolean_decision(all(name in logged for name in names), all=True):
            if self.strict:
                raise RuntimeError(
                    f"AdaptiveThreshold needs {names}, and logged were {sorted(logged)}. Check the spelling, call "
                    "self.log in validation_step or on_validation_epoch_end on every rank, or pass strict=False."
                )
            return None
        own = [float(logged[name]) for name in names]
        values = torch.tensor(own, dtype=torch.float32, device=trainer.strategy.root_device)
        return trainer.strategy.reduce(values, reduce_op="mean").tolist()

    def state_dict(self) -> dict[str, Any]:
        """Law, threshold and history, as plain numbers and strings."""
        state = None if self.state is None else self.state.state_dict()
        return {"law": self.law.state_dict(), "state": state, "history": list(self.history)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken, and set the threshold that the run had then."""
        self.law.load_state_dict(state_dict["law"])
        self.history = list(state_dict["history"])
        if self.state is not None and state_dict["state"] is not None:
            self.state.load_state_dict(state_dict["state"])


def _shared_state(holders: Sequence[Any]) -> ThresholdState:
    held = [getattr(holder, "threshold_state", None) for holder in holders]
    states = {id(state): state for state in held if isinstance(state, ThresholdState)}
    if len(states) != 1:
        raise MisconfigurationException(
            f"AdaptiveThreshold found {len(states) or 'no'} thresholds to move. Pass the one of your augmentation, "
            "AdaptiveThreshold(state=augment.threshold_state), or keep one InfillAugment as `augment` on the data "
            "module or as a submodule of the LightningModule."
        )
    return next(iter(states.values()))
