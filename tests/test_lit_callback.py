import csv
import json
import math
import os

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

pytest.importorskip("lightning")

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tests_support import launch_ranks

from infill_aug.lit.callback import AdaptiveThreshold
from infill_aug.threshold import ConstantLaw, ProportionalLaw, ThresholdState

pytestmark = [
    # Lightning 2.6 still asks torch for its pytree leaves in the old way.
    pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\). is deprecated:FutureWarning"),
    # The trainings here take two steps an epoch, with data that needs no workers.
    pytest.mark.filterwarnings("ignore:The '(train|val)_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging interval"),
]

GOOD_THEN_BAD = [0.80] * 8 + [0.40] * 6


class Planted(LightningModule):
    """Trains a line, and logs metrics that were written down beforehand."""

    def __init__(self, **metrics):
        super().__init__()
        self.metrics = metrics
        self.line = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.line(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        pass

    def on_validation_epoch_end(self):
        for name, values in self.metrics.items():
            self.log(name, values[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self):
        return DataLoader(torch.ones(4, 1), batch_size=2)

    val_dataloader = train_dataloader


class Holder(nn.Module):
    def __init__(self, state):
        super().__init__()
        self.threshold_state = state


def trainer(*callbacks, **options):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", callbacks=list(callbacks), **(quiet | options))


def trained(module, callback, epochs=None, **options):
    trainer(callback, max_epochs=epochs or len(next(iter(module.metrics.values()))), **options).fit(module)
    return callback


def thresholds(callback):
    return [entry["threshold"] for entry in callback.history]


def test_the_threshold_rises_while_the_metric_is_good_and_falls_when_it_drops():
    state = ThresholdState()
    seen = thresholds(trained(Planted(val_acc=GOOD_THEN_BAD), AdaptiveThreshold(target=0.9, state=state)))
    good, bad = seen[:8], seen[8:]
    assert good[:3] == [0.0] * 3
    assert good[3:] == sorted(set(good[3:]))
    assert bad == sorted(bad, reverse=True)
    assert bad[0] < good[-1]
    assert bad[-1] < good[-1] / 2
    assert state.threshold == bad[-1]


def test_a_loss_and_a_reference_metric_steer_too():
    losses = trained(
        Planted(val_loss=[0.5] * 6 + [2.0] * 3), AdaptiveThreshold("val_loss", mode="min", state=ThresholdState())
    )
    assert thresholds(losses)[5] > thresholds(losses)[8]
    law = ProportionalLaw(0.9, warmup=0)
    masked = AdaptiveThreshold("masked", reference="clean", law=law, state=ThresholdState())
    trained(Planted(masked=[0.8, 0.8, 0.3], clean=[0.8, 0.9, 0.9]), masked)
    assert [entry["reference"] for entry in masked.history] == pytest.approx([0.8, 0.9, 0.9])
    assert thresholds(masked)[1] > thresholds(masked)[2]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # resuming is the point
def test_resume_from_a_checkpoint_is_the_undisturbed_run(tmp_path):
    def train(ckpt_path=None):
        callback = AdaptiveThreshold(target=0.9, state=ThresholdState.from_threshold(0.2))
        keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        fresh = trainer(callback, keep, enable_checkpointing=True, max_epochs=14)
        fresh.fit(Planted(val_acc=GOOD_THEN_BAD), ckpt_path=ckpt_path)
        return callback

    whole = train()
    torch.load(tmp_path / "epoch=5.ckpt", weights_only=True)
    resumed = train(tmp_path / "epoch=5.ckpt")
    assert resumed.history == whole.history
    assert resumed.state.strength == whole.state.strength
    assert len({entry["strength"] for entry in whole.history}) > 8


@pytest.mark.parametrize("place", ["submodule", "datamodule"])
def test_the_state_is_found_on_the_augmentation_before_the_checkpoint_is_restored(place, tmp_path):
    state = ThresholdState.from_threshold(0.3)
    module, data = Planted(val_acc=[0.8] * 5), LightningDataModule()
    data.train_dataloader = data.val_dataloader = module.train_dataloader
    if place == "submodule":
        module.augment = Holder(state)
    else:
        data.augment = Holder(state)
    first = trainer(AdaptiveThreshold(), max_epochs=5)
    first.fit(module, datamodule=data)
    reached = state.threshold
    assert reached > 0.3
    first.save_checkpoint(tmp_path / "last.ckpt")
    state.set(0.0)
    again = trainer(AdaptiveThreshold(), max_epochs=5, num_sanity_val_steps=0)  # nothing is left to run
    again.fit(module, datamodule=data, ckpt_path=tmp_path / "last.ckpt")
    assert state.threshold == reached


def test_a_reused_callback_follows_the_augmentation_of_the_next_training():
    callback, states = AdaptiveThreshold(law=ProportionalLaw(warmup=0)), [ThresholdState(), ThresholdState()]
    for state in states:
        module = Planted(val_acc=[0.8])
        module.augment = Holder(state)
        trained(module, callback)
    assert [state.strength > 0 for state in states] == [True, True]


@pytest.mark.parametrize("found", [[], [ThresholdState(), ThresholdState()]], ids=["none", "two"])
def test_no_state_or_several_say_what_to_pass(found):
    module = Planted(val_acc=[0.8])
    module.holders = nn.ModuleList(Holder(state) for state in found)
    with pytest.raises(MisconfigurationException, match=r"found (no|2) thresholds.*AdaptiveThreshold\(state="):
        trained(module, AdaptiveThreshold())


def test_sanity_check_fast_dev_run_and_validate_are_not_decided_on():
    callback = AdaptiveThreshold(law=ConstantLaw(0.5), state=ThresholdState())
    trained(Planted(val_acc=[0.8] * 2), callback, epochs=1, num_sanity_val_steps=2)
    assert len(callback.history) == 1
    trained(Planted(val_acc=[0.8]), callback, fast_dev_run=True)
    trainer(callback).validate(Planted(val_acc=[0.8]), verbose=False)
    assert len(callback.history) == 1


def test_a_metric_that_was_not_logged_is_an_error_that_lists_what_was():
    with pytest.raises(RuntimeError, match=r"needs \['val_acc'\].*'val_accuracy'.*spelling.*strict=False"):
        trained(Planted(val_accuracy=[0.8]), AdaptiveThreshold(state=ThresholdState()))
    lenient = trained(Planted(val_accuracy=[0.8]), AdaptiveThreshold(state=ThresholdState(0.3), strict=False))
    assert lenient.history == []
    assert lenient.state.strength == 0.3


def test_a_metric_that_is_not_finite_is_an_error_or_sat_out():
    with pytest.raises(ValueError, match=r"val_acc is nan.*check_finite=False"):
        trained(Planted(val_acc=[math.nan]), AdaptiveThreshold(state=ThresholdState()))
    patient = AdaptiveThreshold(law=ProportionalLaw(warmup=0), state=ThresholdState(), check_finite=False)
    trained(Planted(val_acc=[0.8, math.nan, 0.8]), patient)
    rising = [entry["strength"] for entry in patient.history]
    assert 0 < rising[0] == rising[1] < rising[2]
    assert patient.history[1]["reason"] == "val_acc is nan: hold."


def test_bounds_of_the_state_hold_and_the_law_goes_on_from_there():
    state = ThresholdState(bounds=(0.0, 0.2))
    callback = trained(Planted(val_acc=GOOD_THEN_BAD), AdaptiveThreshold(target=0.9, state=state))
    seen = thresholds(callback)
    assert max(seen) == seen[7] == pytest.approx(0.2)
    assert seen[8] < seen[7]  # nothing was wound up beyond the bound


def test_threshold_strength_and_retention_reach_the_logger(tmp_path):
    logger = CSVLogger(tmp_path)
    callback = AdaptiveThreshold(target=0.9, law=ProportionalLaw(warmup=0), state=ThresholdState(), verbose=True)
    trained(Planted(val_acc=[0.8] * 3), callback, logger=logger)
    with open(os.path.join(logger.log_dir, "metrics.csv")) as file:
        rows = [row for row in csv.DictReader(file) if row["infill/threshold"]]
    assert [float(row["infill/threshold"]) for row in rows] == pytest.approx([0.0, *thresholds(callback)[:2]])
    assert [float(row["infill/strength"]) > 0 for row in rows] == [False, True, True]
    assert [row["infill/retention"] for row in rows] == ["", "1.0", "1.0"]


def test_two_validations_an_epoch_are_two_decisions():
    callback = trained(
        Planted(val_acc=[0.8]), AdaptiveThreshold(law=ConstantLaw(0.5), state=ThresholdState()), val_check_interval=0.5
    )
    assert [entry["step"] for entry in callback.history] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "up"}, "can be 'max' or 'min', got 'up'"),
        ({"mode": "min", "law": ProportionalLaw()}, "the law's is 'max'"),
    ],
)
def test_a_wrong_mode_is_refused(arguments, message):
    with pytest.raises(MisconfigurationException, match=message):
        AdaptiveThreshold(**arguments)


def test_callbacks_on_two_metrics_keep_their_own_checkpoint_entries():
    assert AdaptiveThreshold("val_acc").state_key != AdaptiveThreshold("val_iou").state_key


TWO_RANKS = """
    import json, os, pathlib, sys, torch
    sys.path.insert(0, sys.argv[2])
    from test_lit_callback import AdaptiveThreshold, Planted, ProportionalLaw, ThresholdState, Trainer

    class Ranked(Planted):
        def on_validation_epoch_end(self):
            planted = self.metrics["val_acc"][self.current_epoch]
            self.log("val_acc", planted + (0.1 if self.global_rank else -0.1))

    state = ThresholdState(0.1 if "LOCAL_RANK" in os.environ else 0.0)  # launched ranks start elsewhere
    callback = AdaptiveThreshold(law=ProportionalLaw(0.9, warmup=0), state=state)
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=6, callbacks=[callback], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(Ranked(val_acc=[0.8, 0.8, 0.8, 0.4, 0.4, 0.8]))
    pathlib.Path(sys.argv[1], f"rank{trainer.global_rank}.json").write_text(json.dumps(callback.history))
    # Lightning leaves the group to the end of the process, where gloo's threads have been seen to abort it.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_ranks_that_measured_different_metrics_end_with_the_same_threshold(tmp_path):
    launch_ranks(TWO_RANKS, tmp_path)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert [entry["metric"] for entry in first] == pytest.approx([0.8, 0.8, 0.8, 0.4, 0.4, 0.8])
    assert first[2]["threshold"] > first[4]["threshold"]
