"""Adaptive threshold for Lightning: mask more while the model does well, reveal more when its performance drops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, get_args

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from infill_aug.batch import InfillAugment
from infill_aug.checks import check_interval
from infill_aug.control.controller import ThresholdController, on_all_ranks
from infill_aug.control.law import Decision, Direction, Law
from infill_aug.control.per_class import PerClassLaw
from infill_aug.control.proportional import ProportionalLaw
from infill_aug.lit.loggers import log_text
from infill_aug.lit.randomness import random_state, set_random_state
from infill_aug.probe import ControlProbe, Score, Signal
from infill_aug.threshold import ThresholdState

_SIGNALS = {f"infill/{signal}": signal for signal in get_args(Signal)}
_RANDOM = "infill_aug_random"  # in the checkpoint


class AdaptiveThreshold(Callback):
    """Let the masking threshold follow the model's performance.

    After every validation a law, ``ProportionalLaw`` as a rule, sees the metric and moves the ``ThresholdState``. All
    ranks see the mean of the metric over ranks and get the same threshold, also where it was logged without
    ``sync_dist``. The threshold, the law's memory and the random streams are part of the checkpoint: a training that is
    resumed at the end of an epoch goes on as if it had not stopped, if its loader has neither persistent workers nor a
    generator of its own. One callback goes with one training.

    Three metrics are measured by this callback itself, on the control split of the data module (see ``ControlProbe``
    for what they are), by calling the LightningModule with images, which gives logits: ``infill/retention``,
    ``infill/confidence`` and ``infill/swapped``. Anything else is the name of a metric that you log. The metric steers
    the training, so take it from a split that neither training nor the final test uses, and remember that accuracy on
    ordinary pictures rewards use of the background: masking may lower it for a good reason, and the loop then reveals
    what it should hide.

    Logs at the end of an epoch ``infill/threshold`` and ``infill/strength`` (those in force, means over its batches),
    ``infill/masked_share``, which is what the threshold really came to where objects are protected,
    ``infill/retention`` of the last decision, and ``infill/control`` and ``infill/control_clean`` where it measures
    itself; and the reason of each decision as a text, where the logger takes texts. Silent in the sanity check and with
    ``fast_dev_run``.

    Args:
        monitor: name of the metric to follow.
        mode: ``"max"`` where a higher metric is better, ``"min"`` where a lower is.
        target: share of the reference performance to hold, 0..1.
        reference: name of the logged metric that ``target`` is a share of, such as the accuracy on clean pictures.
            None: the best value of ``monitor`` so far.
        min_delta: distance from the target, as a share of the reference, that changes nothing, 0..1.
        patience: number of validations that the metric has to stay above the target before more is masked; to reveal
            never waits.
        bounds: lowest and highest threshold; None: the state's own.
        rule: the control law, see ``infill_aug.control``; it has its own target, dead band and patience, and those
            given here are not used. None: ``ProportionalLaw``.
        state: what to move. None: ``trainer.datamodule.augment.threshold_state``, or the ``threshold_state`` of a
            submodule of the LightningModule.
        score: ``(output, target) -> (B,)`` for the metrics that are measured here, where accuracy of a classification
            is not the right one.
        strict: raise where a validation did not log the metric; otherwise the threshold stays.
        check_finite: raise where the metric is NaN or infinite; otherwise the threshold stays.
        verbose: print each decision, on rank zero.
        name: of this loop, where a training has several, say one for each task profile: goes into its key in the
            checkpoint, and into what it logs, ``infill/NAME/threshold``.

    Attributes:
        controller: what moves the threshold, from ``setup`` on; ``controller.explain()`` says where it stands and why.
        history: one entry per decision: ``epoch, step, metric, reference, retention, strength, threshold, reason``.

    Raises:
        MisconfigurationException: ``mode`` is wrong or differs from the law's, or there is no state to move, or no
            control split, or no validation.
        RuntimeError: ``strict``, and the metric was not logged.
        ValueError: ``check_finite``, and the metric is not finite; or an argument is out of range.

    Example:
        >>> callback = AdaptiveThreshold("val_acc", target=0.9, patience=1)
        >>> callback.history
        []
    """

    def __init__(
        self,
        monitor: str = "infill/retention",
        *,
        mode: Direction = "max",
        target: float = 0.8,
        reference: str | None = None,
        min_delta: float = 0.01,
        patience: int = 0,
        bounds: tuple[float, float] | None = None,
        rule: Law | PerClassLaw | None = None,
        state: ThresholdState | None = None,
        score: Score | None = None,
        strict: bool = True,
        check_finite: bool = True,
        verbose: bool = False,
        name: str = "",
    ) -> None:
        super().__init__()
        if mode not in ("max", "min"):
            raise MisconfigurationException(f"`mode` can be 'max' or 'min', got {mode!r}")
        if monitor.startswith("infill/") and (monitor not in _SIGNALS or mode == "min" or reference is not None):
            raise MisconfigurationException(
                f"AdaptiveThreshold measures {list(_SIGNALS)} itself, with mode='max' and no `reference`; got "
                f"{monitor!r}, mode={mode!r}, reference={reference!r}"
            )
        law_mode = getattr(rule, "mode", mode)
        if law_mode != mode:
            raise MisconfigurationException(f"`mode` is {mode!r} but the law's is {law_mode!r}; give both the same")
        self.monitor, self.mode, self.reference = monitor, mode, reference
        self.target, self.min_delta, self.patience = target, min_delta, patience
        self.bounds = None if bounds is None else check_interval("bounds", bounds)
        self.state, self.score = state, score
        self.strict, self.check_finite, self.verbose = strict, check_finite, verbose
        self.name = name
        self.rule = rule
        self._rule: Law | PerClassLaw | None = rule
        self.controller: ThresholdController | None = None
        self.history: list[dict[str, Any]] = []
        self._find_state = state is None
        self._holders: list[Any] = []
        self._resumes = True
        self._in_force: list[tuple[float, float]] = []
        self._probe: ControlProbe | None = None

    @property
    def state_key(self) -> str:
        """Key in the checkpoint; callbacks on other metrics, or of other names, keep their own."""
        more = {"name": self.name} if self.name else {}
        return self._generate_state_key(monitor=self.monitor, mode=self.mode, **more)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find what to move and what to measure; runs before a checkpoint is restored."""
        if stage != "fit":
            return
        holders = [getattr(trainer.datamodule, "augment", None), *pl_module.modules()]
        self._in_force = []
        if self._find_state:
            self.state = _shared_state(holders)
        assert self.state is not None
        # Once, since a step must not search the whole model.
        self._holders = [holder for holder in holders if getattr(holder, "threshold_state", None) is self.state]
        if self.bounds is not None:
            self.state.bounds = self.bounds
            self.state.set(self.state.strength)
        samples = None
        if self.monitor in _SIGNALS:
            self._probe, samples = self._make_probe(trainer, pl_module)
        elif self.state.classes:
            raise MisconfigurationException(
                f"{self.monitor!r} is one number, and the ThresholdState has {self.state.classes} classes: follow "
                "'infill/retention' or 'infill/confidence', or leave out `classes`"
            )
        if self._rule is None:
            self._rule = self._default_rule(samples)
        self.controller = ThresholdController(self.state, self._rule, self.check_finite)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a training in which nothing would ever be decided."""
        if not (trainer.enable_validation or trainer.fast_dev_run):
            raise MisconfigurationException(
                "AdaptiveThreshold decides after validations, and there are none: give the trainer a validation loader "
                "and the module a validation_step, and leave limit_val_batches above 0"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Note what this batch is masked with; to log it here would wait for the device."""
        assert self.state is not None
        self._in_force.append((self.state.threshold, self.state.strength))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what was in force in this epoch, and what the last decision was taken on."""
        last = self.history[-1] if self.history else {}
        means = [sum(values) / len(values) for values in zip(*self._in_force, strict=True)]
        values = dict(zip(("threshold", "strength"), means, strict=False))
        values["retention"] = last.get("retention", math.nan)
        if "clean" in last and isinstance(last["metric"], float):
            values |= {"control": last["metric"], "control_clean": last["clean"]}
        finite = {self._tag(key): value for key, value in values.items() if math.isfinite(value)}
        pl_module.log_dict(finite, on_step=False, on_epoch=True, sync_dist=True, batch_size=1)
        self._in_force = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Log the share of pixels that was regenerated, without waiting for the device."""
        shares = [getattr(holder, "masked_share", None) for holder in self._holders]
        share = next((share for share in shares if isinstance(share, Tensor)), None)
        if share is not None:
            pl_module.log(self._tag("masked_share"), share, on_step=False, on_epoch=True, sync_dist=True, batch_size=1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide on the validation that has just ended, alike on all ranks."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or trainer.fast_dev_run:
            return
        assert self.controller is not None
        if self._probe is not None:
            with trainer.precision_plugin.forward_context():
                reading = self._probe(pl_module)
            decision = self._observe(self.controller.follow, reading)
            seen = {"metric": reading.metric, "reference": reading.reference, "clean": reading.clean}
        else:
            values = self._logged(trainer)
            if values is None:
                return
            decision = self._observe(self.controller.observe, *values)
            seen = dict(zip(("metric", "reference"), self.controller.seen, strict=True))
        self._record(trainer, seen, decision)

    def _observe(self, call: Callable[..., Decision], *seen: Any) -> Decision:
        try:
            return call(*seen)
        except ValueError as error:
            raise ValueError(f"{self.monitor}: {error}") from error

    def _record(self, trainer: Trainer, seen: dict[str, Any], decision: Decision) -> None:
        """Keep the decision, and say it where it is wanted."""
        entry = {"epoch": trainer.current_epoch, "step": trainer.global_step, **seen, "retention": decision.retention}
        entry |= {"strength": decision.strength, "threshold": decision.threshold, "reason": decision.reason}
        self.history.append(entry)
        line = f"{decision.reason} Threshold {decision.threshold:.3f}."
        log_text(trainer.loggers if trainer.is_global_zero else [], self._tag("reason"), line, trainer.global_step)
        if self.verbose:
            rank_zero_info(f"{self.name or self.monitor}: {line}")

    def _tag(self, key: str) -> str:
        return f"infill/{self.name}/{key}" if self.name else f"infill/{key}"

    def _logged(self, trainer: Trainer) -> tuple[float, float | None] | None:
        """Metric and reference as this rank logged them; None where a rank lacks one and ``strict`` is off."""
        logged = trainer.callback_metrics
        names = [name for name in (self.monitor, self.reference) if name is not None]
        # Asked together, since a rank that raised alone would leave the others waiting for it.
        if not trainer.strategy.reduce_boolean_decision(all(name in logged for name in names), all=True):
            if self.strict:
                raise RuntimeError(
                    f"AdaptiveThreshold needs {names}, and logged were {sorted(logged)}. Check the spelling, call "
                    "self.log in validation_step or on_validation_epoch_end on every rank, or pass strict=False."
                )
            return None
        return float(logged[self.monitor]), None if self.reference is None else float(logged[self.reference])

    def _default_rule(self, samples: int | None) -> Law | PerClassLaw:
        options: dict[str, Any] = {"dead_band": self.min_delta, "patience": self.patience, "samples": samples}
        rule = ProportionalLaw(self.target, mode=self.mode, **options)
        apart = self.state is not None and self.state.classes and _SIGNALS.get(self.monitor) != "swapped"
        return PerClassLaw(rule, self.state.classes) if apart and self.state is not None else rule

    def _make_probe(self, trainer: Trainer, pl_module: LightningModule) -> tuple[ControlProbe, int | None]:
        """What measures, and on how many pictures, where that is known."""
        augment = next((holder for holder in self._holders if isinstance(holder, InfillAugment)), None)
        owners = [owner for owner in (trainer.datamodule, pl_module) if getattr(owner, "control_size", 1) > 0]
        owner = next((owner for owner in owners if hasattr(owner, "control_dataloader")), None)
        if augment is None or owner is None or not is_overridden("forward", pl_module):
            raise MisconfigurationException(
                f"AdaptiveThreshold measures {self.monitor} on a control split, by calling the module with images: "
                "InfillDataModule(control_split=256) holds one out; or give your module a `forward`, the InfillAugment "
                "of this threshold, and a `control_dataloader` of InfillDataset samples; or name a metric that you "
                'log: AdaptiveThreshold(monitor="val_acc")'
            )
        probe = ControlProbe(owner.control_dataloader, augment, _SIGNALS[self.monitor], self.score)
        return probe, getattr(owner, "control_size", None)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the random streams of all ranks."""
        # While one rank handles an exception the others do not come here.
        alone = trainer.state.status == TrainerStatus.INTERRUPTED
        checkpoint[_RANDOM] = [random_state()] if alone else on_all_ranks(random_state())

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on with the random streams that the training had."""
        # A validation or a test with a checkpoint is no training that goes on.
        self._resumes = trainer.state.fn == TrainerFn.FITTING
        states = checkpoint.get(_RANDOM, [])
        if self._resumes and len(states) == trainer.world_size:
            set_random_state(states[trainer.global_rank])

    def state_dict(self) -> dict[str, Any]:
        """Law, threshold and history, as plain numbers and strings."""
        return {"controller": self.controller and self.controller.state_dict(), "history": list(self.history)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken, and set the threshold that the run had then."""
        if not self._resumes:
            return
        self.history = list(state_dict["history"])
        if self.controller is not None and state_dict["controller"] is not None:
            self.controller.load_state_dict(state_dict["controller"])


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
