import csv
import hashlib
import json
import math
import os
import signal

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

pytest.importorskip("lightning")

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tests_support import launch, launch_ranks, picture
from torchvision.transforms import v2

from infill_aug.batch import InfillAugment
from infill_aug.cache.build import build_cache
from infill_aug.control.per_class import PerClassLaw
from infill_aug.control.proportional import ProportionalLaw
from infill_aug.control.schedule import ConstantLaw
from infill_aug.lit.callback import AdaptiveThreshold
from infill_aug.lit.datamodule import InfillDataModule
from infill_aug.threshold import ThresholdState
from infill_aug.variation import Variation

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


def followed(monitor="val_acc", **options):
    return AdaptiveThreshold(monitor, **options)


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
    seen = thresholds(trained(Planted(val_acc=GOOD_THEN_BAD), followed(target=0.9, state=state)))
    good, bad = seen[:8], seen[8:]
    assert good[:3] == [0.0] * 3
    assert good[3:] == sorted(set(good[3:]))
    assert bad == sorted(bad, reverse=True)
    assert bad[0] < good[-1]
    assert bad[-1] < good[-1] / 2
    assert state.threshold == bad[-1]


def test_a_loss_and_a_reference_metric_steer_too():
    losses = trained(Planted(val_loss=[0.5] * 6 + [2.0] * 3), followed("val_loss", mode="min", state=ThresholdState()))
    assert thresholds(losses)[5] > thresholds(losses)[8]
    rule = ProportionalLaw(0.9, warmup=0)
    masked = followed("masked", reference="clean", rule=rule, state=ThresholdState())
    trained(Planted(masked=[0.8, 0.8, 0.3], clean=[0.8, 0.9, 0.9]), masked)
    assert [entry["reference"] for entry in masked.history] == pytest.approx([0.8, 0.9, 0.9])
    assert thresholds(masked)[1] > thresholds(masked)[2]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # resuming is the point
def test_resume_from_a_checkpoint_is_the_undisturbed_run(tmp_path):
    def train(ckpt_path=None):
        callback = followed(target=0.9, state=ThresholdState.from_threshold(0.2))
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
    first = trainer(followed(), max_epochs=5)
    first.fit(module, datamodule=data)
    reached = state.threshold
    assert reached > 0.3
    first.save_checkpoint(tmp_path / "last.ckpt")
    state.set(0.0)
    again = trainer(followed(), max_epochs=5, num_sanity_val_steps=0)  # nothing is left to run
    again.fit(module, datamodule=data, ckpt_path=tmp_path / "last.ckpt")
    assert state.threshold == reached


def test_a_reused_callback_follows_the_augmentation_of_the_next_training():
    callback, states = followed(rule=ProportionalLaw(warmup=0)), [ThresholdState(), ThresholdState()]
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
        trained(module, followed())


def test_sanity_check_fast_dev_run_and_validate_are_not_decided_on():
    callback = followed(rule=ConstantLaw(0.5), state=ThresholdState())
    trained(Planted(val_acc=[0.8] * 2), callback, epochs=1, num_sanity_val_steps=2)
    assert len(callback.history) == 1
    trained(Planted(val_acc=[0.8]), callback, fast_dev_run=True)
    trainer(callback).validate(Planted(val_acc=[0.8]), verbose=False)
    assert len(callback.history) == 1


def test_a_metric_that_was_not_logged_is_an_error_that_lists_what_was():
    with pytest.raises(RuntimeError, match=r"needs \['val_acc'\].*'val_accuracy'.*spelling.*strict=False"):
        trained(Planted(val_accuracy=[0.8]), followed(state=ThresholdState()))
    lenient = trained(Planted(val_accuracy=[0.8]), followed(state=ThresholdState(0.3), strict=False))
    assert lenient.history == []
    assert lenient.state.strength == 0.3


def test_a_metric_that_is_not_finite_is_an_error_or_sat_out():
    with pytest.raises(ValueError, match=r"val_acc: metric is nan.*check_finite=False"):
        trained(Planted(val_acc=[math.nan]), followed(state=ThresholdState()))
    patient = followed(rule=ProportionalLaw(warmup=0), state=ThresholdState(), check_finite=False)
    trained(Planted(val_acc=[0.8, math.nan, 0.8]), patient)
    rising = [entry["strength"] for entry in patient.history]
    assert 0 < rising[0] == rising[1] < rising[2]
    assert patient.history[1]["reason"] == "metric is nan: hold."


def test_bounds_of_the_state_hold_and_the_law_goes_on_from_there():
    state = ThresholdState(bounds=(0.0, 0.2))
    callback = trained(Planted(val_acc=GOOD_THEN_BAD), followed(target=0.9, state=state))
    seen = thresholds(callback)
    assert max(seen) == seen[7] == pytest.approx(0.2)
    assert seen[8] < seen[7]  # nothing was wound up beyond the bound


def test_threshold_strength_and_retention_reach_the_logger(tmp_path):
    logger = CSVLogger(tmp_path)
    callback = followed(target=0.9, rule=ProportionalLaw(warmup=0), state=ThresholdState(), verbose=True)
    trained(Planted(val_acc=[0.8] * 3), callback, logger=logger)
    with open(os.path.join(logger.log_dir, "metrics.csv")) as file:
        rows = [row for row in csv.DictReader(file) if row["infill/threshold"]]
    assert [float(row["infill/threshold"]) for row in rows] == pytest.approx([0.0, *thresholds(callback)[:2]])
    assert [float(row["infill/strength"]) > 0 for row in rows] == [False, True, True]
    assert [row["infill/retention"] for row in rows] == ["1.0"] * 3


def test_two_validations_an_epoch_are_two_decisions():
    callback = trained(
        Planted(val_acc=[0.8]), followed(rule=ConstantLaw(0.5), state=ThresholdState()), val_check_interval=0.5
    )
    assert [entry["step"] for entry in callback.history] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "up"}, "can be 'max' or 'min', got 'up'"),
        ({"mode": "min", "rule": ProportionalLaw()}, "the law's is 'max'"),
    ],
)
def test_a_wrong_mode_is_refused(arguments, message):
    with pytest.raises(MisconfigurationException, match=message):
        followed(**arguments)


def test_callbacks_on_two_metrics_keep_their_own_checkpoint_entries():
    assert followed("val_acc").state_key != followed("val_iou").state_key


TWO_RANKS = """
    import json, os, pathlib, sys, torch
    sys.path.insert(0, sys.argv[2])
    from test_lit_callback import Planted, ProportionalLaw, ThresholdState, Trainer, followed

    class Ranked(Planted):
        def on_validation_epoch_end(self):
            planted = self.metrics["val_acc"][self.current_epoch]
            self.log("val_acc", planted + (0.1 if self.global_rank else -0.1))

    state = ThresholdState(0.1 if "LOCAL_RANK" in os.environ else 0.0)  # launched ranks start elsewhere
    callback = followed(rule=ProportionalLaw(0.9, warmup=0), state=state)
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


# What it measures itself: a control split, under InfillDataModule


class Learner(LightningModule):
    """A classifier of tiny pictures that remembers what it was given."""

    def __init__(self, right=True):
        super().__init__()
        self.layer = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 2))
        self.right, self.samples, self.applied, self.logged = right, [], [], []

    def forward(self, images):
        if self.training or not self.right:
            return self.layer(images)
        bright = images[:, :, 8:16, 8:16].mean((1, 2, 3)) - 0.5  # reads the middle, which is kept
        return torch.stack([-bright, bright], dim=1)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        self.samples.append(hashlib.sha1(images.numpy().tobytes()).hexdigest()[:12])
        return nn.functional.cross_entropy(self(images), labels)

    def on_train_epoch_end(self):
        self.logged.append(float(self.trainer.callback_metrics["infill/threshold"]))

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", 0.8 if self.current_epoch < 4 else 0.3, batch_size=1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Watched(InfillAugment):
    """Remembers the thresholds that batches were masked with."""

    def make_params(self, count, device, labels=None):
        params = super().make_params(count, device, labels)
        self.__dict__.setdefault("applied", []).append(params.threshold.tolist())
        return params


class Pictures(LightningDataModule):
    def __init__(self, workers=0, method=None, persistent=False):
        super().__init__()
        self.loading = {"num_workers": workers, "multiprocessing_context": method, "persistent_workers": persistent}

    @staticmethod
    def samples():
        shades = [(picture(i) // 4 + 180 * (i % 2), i % 2) for i in range(24)]
        return [(image.to(torch.uint8), label) for image, label in shades]

    def train_dataloader(self):
        return DataLoader(self.samples(), batch_size=4, shuffle=True, drop_last=True, **self.loading)

    def val_dataloader(self):
        return DataLoader(self.samples()[:4], batch_size=4)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    build_cache(Pictures.samples(), folder, profile="centre_prior", backend="noise", progress=False)
    return folder


def flip():
    return v2.RandomHorizontalFlip()


def steered(
    store, callback, *others, epochs=4, inner=None, learner=None, control=8, state=None, ckpt_path=None, **options
):
    augment = Watched(state or ThresholdState(), p=0.7, variation=Variation())
    data = InfillDataModule(inner or Pictures(), augment, store, transforms=flip(), control_split=control)
    learner = learner or Learner()
    fitted = trainer(callback, *others, max_epochs=epochs, **options)
    fitted.fit(learner, datamodule=data, ckpt_path=ckpt_path)
    return learner, data, fitted


def test_by_default_it_follows_retention_on_the_control_split(store):
    callback = AdaptiveThreshold(rule=ProportionalLaw(warmup=0))
    learner, data, _ = steered(store, callback)
    assert [entry["metric"] for entry in callback.history] == [1.0] * 4  # it reads what is kept
    assert thresholds(callback) == sorted(set(thresholds(callback)))
    assert len(learner.samples) == 4 * 4  # 16 pictures are left of 24
    assert "holds a retention of 0.800" in callback.controller.explain()
    assert data.control_size == 8


def test_the_dead_band_is_as_wide_as_the_noise_of_the_control_split(store):
    callback = AdaptiveThreshold(min_delta=0.02, patience=1)
    steered(store, callback, epochs=1, control=8)
    rule = callback.controller.rule
    assert rule.dead_band == ProportionalLaw(samples=8).dead_band > 0.02
    assert rule.patience == 1


def test_a_model_that_is_not_above_chance_yet_is_not_masked_more_and_one_that_falls_back_to_it_is_revealed(store):
    clueless = AdaptiveThreshold(rule=ProportionalLaw(warmup=0))

    class Clueless(Learner):  # what it learns in training it has forgotten when it is measured
        def forward(self, images):
            return super().forward(images) * (1.0 if self.training else 0.0)

    learner = Clueless(right=False)
    steered(store, clueless, learner=learner, state=ThresholdState(0.3))
    assert {entry["strength"] for entry in clueless.history} == {0.3}
    assert "is not above chance, 0." in clueless.history[0]["reason"]

    class Breaks(Learner):
        def forward(self, images):
            return super().forward(images) * (1.0 if self.training or self.current_epoch < 2 else 0.0)

    fallen = AdaptiveThreshold(rule=ProportionalLaw(warmup=0, smoothing=0))
    steered(store, fallen, learner=Breaks(), epochs=3)
    assert fallen.history[2]["strength"] < fallen.history[1]["strength"]


@pytest.mark.parametrize("monitor", ["infill/confidence", "infill/swapped"])
def test_the_other_signals_steer_too(store, monitor):
    callback = AdaptiveThreshold(monitor, rule=ProportionalLaw(warmup=0))
    steered(store, callback, epochs=2)
    assert len(callback.history) == 2
    assert 0.5 <= callback.history[0]["metric"] <= 1


def test_bounds_given_to_the_callback_hold(store):
    callback = AdaptiveThreshold(rule=ConstantLaw(0.9), bounds=(0.1, 0.3))
    _, data, _ = steered(store, callback, epochs=1)
    assert data.augment.threshold_state.threshold == pytest.approx(0.3)
    with pytest.raises(ValueError, match="bounds must be"):
        AdaptiveThreshold(bounds=(0.5, 0.1))


def test_classes_have_their_thresholds_where_the_state_tells_them_apart(store):
    callback = AdaptiveThreshold()
    _, data, _ = steered(store, callback, epochs=2, state=ThresholdState(0.5, classes=2))
    assert isinstance(callback.controller.rule, PerClassLaw)
    assert all(len(entry["metric"]) == 2 for entry in callback.history)
    assert len(data.augment.threshold_state.offsets) == 2


def test_without_a_control_split_or_with_a_wrong_name_it_says_what_to_do(store):
    with pytest.raises(MisconfigurationException, match=r"control split.* InfillDataModule\(control_split=256\) holds"):
        steered(store, AdaptiveThreshold(), epochs=1, control=0)
    module = Planted(val_acc=[0.8])
    module.augment = Holder(ThresholdState())
    with pytest.raises(MisconfigurationException, match=r"on a control split, .*monitor=\"val_acc\""):
        trained(module, AdaptiveThreshold())
    with pytest.raises(MisconfigurationException, match=r"measures \['infill/retention', .* got 'infill/loss'"):
        AdaptiveThreshold("infill/loss")
    with pytest.raises(MisconfigurationException, match="mode='max'"):
        AdaptiveThreshold("infill/retention", mode="min")


def test_the_reason_reaches_tensorboard(store, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(tmp_path)
    callback = AdaptiveThreshold()
    steered(store, callback, epochs=2, logger=logger, log_every_n_steps=1)
    events = accumulator.EventAccumulator(logger.log_dir)
    events.Reload()
    texts = events.Tensors("infill/reason/text_summary")
    assert [text.tensor_proto.string_val[0].decode() for text in texts] == [
        f"{entry['reason']} Threshold {entry['threshold']:.3f}." for entry in callback.history
    ]
    assert {"infill/threshold", "infill/masked_share", "infill/control", "infill/control_clean"} <= set(
        events.Tags()["scalars"]
    )


def test_a_validation_or_test_with_a_checkpoint_leaves_threshold_and_history_alone(store, tmp_path):
    callback, keep = (
        AdaptiveThreshold(rule=ProportionalLaw(warmup=0)),
        ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1),
    )
    learner, data, fitted = steered(store, callback, keep, epochs=3, enable_checkpointing=True)
    reached = data.augment.threshold_state.threshold
    fitted.validate(learner, datamodule=data, ckpt_path=tmp_path / "epoch=0.ckpt", verbose=False)
    assert data.augment.threshold_state.threshold == reached
    assert len(callback.history) == 3


def test_a_training_without_validation_and_a_module_without_forward_are_refused(store):
    with pytest.raises(MisconfigurationException, match="decides after validations, and there are none"):
        steered(store, AdaptiveThreshold(), limit_val_batches=0)

    class NoForward(Planted):
        pass

    module = NoForward(val_acc=[0.8])
    module.augment = InfillAugment(ThresholdState())
    module.control_dataloader = lambda: []
    with pytest.raises(MisconfigurationException, match="give your module a `forward`"):
        trained(module, AdaptiveThreshold())


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # resuming is the point
def test_two_profiles_have_a_loop_each_that_measures_logs_and_resumes_its_own(store, tmp_path):
    states = {"hair": ThresholdState(), "face": ThresholdState(0.5)}

    class Two(Learner):
        def __init__(self):
            super().__init__()
            self.other = InfillAugment(states["face"], p=1.0)

        def on_train_epoch_end(self):
            metrics = self.trainer.callback_metrics.items()
            self.logged.append({name: float(value) for name, value in metrics if name.startswith("infill")})

    def loops():
        laws = {"hair": ProportionalLaw(warmup=0), "face": ConstantLaw(0.3)}
        return [AdaptiveThreshold(state=states[name], rule=law, name=name) for name, law in laws.items()]

    first, learner = loops(), Two()
    keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    steered(store, *first, keep, learner=learner, state=states["hair"], epochs=2, enable_checkpointing=True)
    assert states["hair"].strength > 0
    assert states["face"].strength == 0.3
    assert first[0]._probe.augment is not first[1]._probe.augment
    assert {"infill/hair/threshold", "infill/face/threshold", "infill/hair/masked_share"} <= set(learner.logged[0])
    assert "infill/face/masked_share" not in learner.logged[0]  # it had no batch
    again, keep = loops(), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    resumed = {"epochs": 3, "enable_checkpointing": True, "ckpt_path": tmp_path / "epoch=1.ckpt"}
    steered(store, *again, keep, learner=Two(), state=states["hair"], **resumed)
    assert [len(loop.history) for loop in again] == [3, 3]
    assert again[0].history[:2] == first[0].history


def test_a_threshold_for_each_class_needs_a_metric_for_each(store):
    with pytest.raises(
        MisconfigurationException, match=r"'val_acc' is one number, and the ThresholdState has 2 classes"
    ):
        steered(store, followed(), state=ThresholdState(0.5, classes=2))
    callback = AdaptiveThreshold("infill/swapped")
    steered(store, callback, epochs=1, state=ThresholdState(0.5, classes=2))
    assert isinstance(callback.controller.rule, ProportionalLaw)


def test_what_is_measured_is_the_augmentation_whose_threshold_moves(store):
    state = ThresholdState()
    learner = Learner()
    learner.other = InfillAugment(ThresholdState(0.9))
    callback = AdaptiveThreshold(state=state)
    steered(store, callback, learner=learner, epochs=1, state=state)
    assert callback._probe.augment.threshold_state is state


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_with_persistent_workers_the_value_in_force_is_the_value_logged(store, method):
    callback = followed(rule=ProportionalLaw(0.5, warmup=0, smoothing=0))
    inner = Pictures(workers=1, method=method, persistent=True)
    learner, data, _ = steered(store, callback, epochs=4, inner=inner, control=0)
    in_force = [0.0, *thresholds(callback)[:-1]]
    assert len(set(in_force)) == 4
    assert learner.logged == pytest.approx(in_force)
    steps = len(data.augment.applied) // 4
    assert [batch[0] for batch in data.augment.applied] == pytest.approx(
        [value for value in in_force for _ in range(steps)]
    )


KILLED = """
    import json, os, pathlib, signal, sys, warnings
    import torch
    sys.path.insert(0, sys.argv[2])
    warnings.simplefilter("ignore")
    from test_lit_callback import AdaptiveThreshold, ModelCheckpoint, Pictures, ProportionalLaw, steered
    from lightning.pytorch import Callback, seed_everything

    folder, role, workers, method = pathlib.Path(sys.argv[1]), *sys.argv[3:]

    class Kill(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if role == "killed" and trainer.current_epoch == 4:
                os.kill(os.getpid(), signal.SIGKILL)

    seed_everything(3 if role != "resumed" else 77)
    keep = ModelCheckpoint(folder / role, filename="{epoch}", save_top_k=-1)
    callback = AdaptiveThreshold(rule=ProportionalLaw(0.9, warmup=0))
    path = folder / "killed" / "epoch=3.ckpt" if role == "resumed" else None
    learner, data, _ = steered(
        folder / "store", callback, keep, Kill(), epochs=7, inner=Pictures(int(workers), method or None),
        enable_checkpointing=True, ckpt_path=path,
    )
    weights = [value.tolist() for value in learner.state_dict().values()]
    record = {"history": callback.history, "samples": learner.samples, "weights": weights}
    (folder / f"{role}.json").write_text(json.dumps(record))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "method"), [("0", ""), ("1", "fork")])
def test_killed_after_epoch_3_and_resumed_thresholds_decisions_samples_and_weights_are_the_undisturbed_run(
    tmp_path, workers, method
):
    build_cache(Pictures.samples(), tmp_path / "store", profile="centre_prior", backend="noise", progress=False)
    codes = [launch(KILLED, tmp_path, role, workers, method) for role in ("whole", "killed", "resumed")]
    assert codes == [0, -signal.SIGKILL, 0]
    whole, resumed = (json.loads((tmp_path / f"{role}.json").read_text()) for role in ("whole", "resumed"))
    assert resumed["history"] == whole["history"]
    assert len({entry["threshold"] for entry in whole["history"]}) > 4
    assert resumed["samples"] == whole["samples"][4 * 4 :]
    assert resumed["weights"] == whole["weights"]


TWO_RANKS_MEASURE = """
    import json, pathlib, sys, warnings, torch
    sys.path.insert(0, sys.argv[2])
    warnings.simplefilter("ignore")
    from test_lit_callback import AdaptiveThreshold, Learner, Pictures, ProportionalLaw, steered

    class Ranked(Learner):  # each rank's model reads other things, so that the ranks measure other accuracies
        def forward(self, images):
            return super().forward(images) if self.training or self.global_rank == 0 else self.layer(images)

    callback = AdaptiveThreshold(rule=ProportionalLaw(0.9, warmup=0))
    ranks = {"devices": 2, "strategy": "ddp"}
    store = pathlib.Path(sys.argv[1], "store")
    learner, data, trainer = steered(store, callback, epochs=4, learner=Ranked(), **ranks)
    own = [int(label) for batch in data.control_dataloader() for label in batch["target"]]
    record = {"history": callback.history, "control": own, "samples": learner.samples}
    pathlib.Path(sys.argv[1], f"rank{trainer.global_rank}.json").write_text(json.dumps(record))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_ranks_measure_their_share_of_the_control_split_and_decide_alike_at_every_epoch(tmp_path):
    build_cache(Pictures.samples(), tmp_path / "store", profile="centre_prior", backend="noise", progress=False)
    launch_ranks(TWO_RANKS_MEASURE, tmp_path)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first["history"] == second["history"]
    assert len(first["history"]) == 4
    assert 0.5 < first["history"][0]["clean"] < 1  # the mean of a rank that is right and one that guesses
    assert len(first["control"]) == len(second["control"]) == 4
    assert first["samples"] != second["samples"]
