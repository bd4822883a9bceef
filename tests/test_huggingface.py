import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torchvision.transforms.v2 import functional as F

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from tests_support import picture
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)  # fmt: skip

from infill_aug import ControlProbe, InfillAugment, InfillDataset, ThresholdState, Variation, build_cache
from infill_aug.control.controller import ThresholdController
from infill_aug.control.proportional import ProportionalLaw
from infill_aug.control.schedule import ScheduleLaw
from infill_aug.huggingface.callback import ThresholdCallback
from infill_aug.huggingface.collator import InfillCollator

SIZE = 16
MEAN_STD = ((0.5,) * 3, (0.25,) * 3)


class Pictures:
    """As ``datasets`` gives them: mappings with a PIL picture and a label."""

    def __init__(self, seed, count):
        self.rows = [{"image": F.to_pil_image(picture(seed + i, SIZE, SIZE)), "label": i % 2} for i in range(count)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    train, val, store = Pictures(0, 24), Pictures(100, 12), tmp_path_factory.mktemp("store")
    assert not build_cache(train, store, profile="centre_prior", levels=(0.5, 1.0), progress=False).failed
    return train, val, store


def vit():
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=SIZE, patch_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        num_labels=2,
    )  # fmt: skip
    return ViTForImageClassification(config)


def resnet():
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=4, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=2)
    return ResNetForImageClassification(config)


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


def settings(folder, **changed):
    chosen = {
        "output_dir": str(folder), "use_cpu": True, "report_to": "none", "disable_tqdm": True, "num_train_epochs": 3,
        "per_device_train_batch_size": 8, "eval_strategy": "epoch", "save_strategy": "no", "logging_steps": 1,
        "remove_unused_columns": False, "seed": 0, "dataloader_pin_memory": False, "learning_rate": 1e-2,
    }  # fmt: skip
    return TrainingArguments(**chosen | changed)


def training(
    folder, data, *, start=0.2, law=None, monitor="eval_accuracy", reference=None, kind=Trainer, model=vit, **changed
):
    """Trainer, callback and threshold of a small training."""
    train, val, store = data
    state = ThresholdState(start)
    augment = InfillAugment(state, p=0.5, variation=Variation(), normalize=MEAN_STD)
    controller = ThresholdController(state, law or ScheduleLaw(0.8, 5, start=start))
    callback = ThresholdCallback(controller, monitor, reference)
    trainer = kind(
        model(),
        settings(folder, **changed),
        data_collator=InfillCollator(augment),
        train_dataset=InfillDataset(train, store, threshold=state),
        eval_dataset=val,
        compute_metrics=accuracy,
    )
    callback.attach(trainer)
    return trainer, callback, state


def thresholds(trainer):
    return [entry["infill_threshold"] for entry in trainer.state.log_history if "infill_threshold" in entry]


# --- batches ---


def test_training_samples_are_augmented_and_their_kept_pixels_are_the_normalised_originals(data):
    train, _, store = data
    dataset = InfillDataset(train, store)
    samples = [dataset[i] for i in range(8)]
    augment = InfillAugment(0.5, p=1.0, feather=0, normalize=MEAN_STD)
    batch = InfillCollator(augment)(samples)
    assert set(batch) == {"pixel_values", "labels"}
    assert batch["labels"].tolist() == [i % 2 for i in range(8)]
    plain = augment.normalize(torch.stack([torch.as_tensor(sample["image"]) for sample in samples]))
    same = (batch["pixel_values"] == plain).all(1).flatten(1).float().mean(1)
    assert ((same > 0.3) & (same < 0.7)).all()


@pytest.mark.parametrize("form", ["mapping with PIL", "pair with PIL", "pair with tensor", "bare tensor"])
def test_samples_without_infills_are_only_normalised(form, data):
    _, val, _ = data
    samples = [val[i] for i in range(3)]
    plain = torch.stack([F.pil_to_tensor(row["image"]) for row in samples])
    if form != "mapping with PIL":
        change = F.pil_to_tensor if form.endswith("tensor") else lambda image: image
        samples = [(change(row["image"]), row["label"]) for row in samples]
    if form == "bare tensor":
        samples = [image for image, _ in samples]
    augment = InfillAugment(0.9, p=1.0, normalize=MEAN_STD)
    batch = InfillCollator(augment)(samples)
    assert batch["pixel_values"].equal(augment.normalize(plain))
    assert batch.get("labels", torch.tensor([])).tolist() == ([] if form == "bare tensor" else [0, 1, 0])


def test_what_is_deferred_becomes_the_batch_that_the_collator_would_have_given(data):
    train, _, store = data
    dataset = InfillDataset(train, store)
    samples = [dataset[i] for i in range(8)]
    augment = InfillAugment(0.5, variation=Variation(), normalize=MEAN_STD)
    torch.manual_seed(1)
    at_once = InfillCollator(augment)(samples)
    later = InfillCollator(augment, defer=True)
    raw = later(samples)
    assert raw["pixel_values"].dtype == torch.uint8
    torch.manual_seed(1)
    done = later.augmented(raw)
    assert done.keys() == at_once.keys()
    assert done["pixel_values"].equal(at_once["pixel_values"])
    assert later.augmented(at_once)["pixel_values"].equal(at_once["pixel_values"])


def test_a_target_of_another_kind_is_what_label_makes_of_it(data):
    _, val, _ = data
    samples = [{"image": val[i]["image"], "mask": torch.full((2, 2), i)} for i in range(3)]
    augment = InfillAugment(0.5)
    assert "labels" not in InfillCollator(augment)(samples)
    batch = InfillCollator(augment, label=lambda target: target["mask"])(samples)
    assert batch["labels"][:, 0, 0].tolist() == [0, 1, 2]


def test_mistakes_in_samples_are_named():
    collate = InfillCollator(InfillAugment(0.5))
    with pytest.raises(KeyError, match="remove_unused_columns=False"):
        collate([{}, {}])
    with pytest.raises(KeyError, match="remove_unused_columns=False"):
        collate([{"label": 1}])
    with pytest.raises(ValueError, match=r"one size, got \[\(4, 4\), \(8, 4\)\]"):
        collate([(picture(0, 4, 4), 0), (picture(0, 8, 4), 0)])
    with pytest.raises(ValueError, match="labels must be numbers, got 'cat'"):
        collate([(picture(0, 4, 4), "cat")])


# --- trainings ---


def test_each_evaluation_moves_the_threshold_and_is_logged_for_every_reporter(tmp_path, data):
    class Reporter(TrainerCallback):
        def __init__(self):
            self.seen = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.seen.append(dict(logs))

    trainer, callback, state = training(tmp_path, data)
    reporter = Reporter()
    trainer.add_callback(reporter)
    trainer.train()
    assert thresholds(trainer) == [entry["infill_threshold"] for entry in reporter.seen if "infill_threshold" in entry]
    assert len(thresholds(trainer)) == 3
    assert thresholds(trainer)[-1] == state.threshold > thresholds(trainer)[0]
    (first, *_) = [entry for entry in reporter.seen if "infill_reason" in entry]
    assert "strength" in first["infill_reason"]
    assert callback.controller.last.strength == state.strength
    after = state.threshold
    trainer.evaluate()  # by hand, of a test set say
    assert state.threshold == after


def test_without_attach_the_decisions_are_in_the_history_all_the_same(tmp_path, data):
    trainer, callback, state = training(tmp_path, data)
    trainer.remove_callback(callback)
    alone = ThresholdCallback(callback.controller, "eval_accuracy")
    trainer.add_callback(alone)
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "infill_threshold" in entry] == [3, 6, 9]
    assert thresholds(trainer)[-1] == state.threshold


@pytest.mark.parametrize("restore", [False, True], ids=["as by default", "with callbacks restored"])
def test_a_training_that_was_stopped_goes_on_with_thresholds_and_weights_of_the_undisturbed_one(
    restore, tmp_path, data
):
    class Stop(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            if state.epoch >= 2:
                raise KeyboardInterrupt

    def law():
        return ProportionalLaw(0.5, warmup=0)

    # No ViT: transformers 5.24 saves its weights under names that it does not find when a Trainer resumes.
    changed = {"model": resnet, "save_strategy": "epoch", "num_train_epochs": 4}
    changed["restore_callback_states_from_checkpoint"] = restore
    whole, _, state = training(tmp_path / "whole", data, law=law(), **changed)
    whole.train()
    broken, _, _ = training(tmp_path / "broken", data, law=law(), **changed)
    broken.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    assert [path.name for path in (tmp_path / "broken").glob("checkpoint-*")] == ["checkpoint-3"]
    saved = json.loads((tmp_path / "broken" / "checkpoint-3" / "trainer_state.json").read_text())
    assert saved["stateful_callbacks"]["infill_threshold"]["rule"]["intervals"] == 1
    again, _, resumed = training(tmp_path / "broken", data, law=law(), start=0.7, **changed)
    again.train(resume_from_checkpoint=True)
    assert len(set(thresholds(whole))) == 4
    assert thresholds(again) == thresholds(whole)
    assert resumed.strength == state.strength
    for (name, one), other in zip(whole.model.named_parameters(), again.model.parameters(), strict=True):
        assert one.equal(other), name


@pytest.mark.slow
def test_workers_that_stay_follow_the_threshold(tmp_path, data):
    class Watching(Trainer):
        shares = ()

        def compute_loss(self, model, inputs, *args, **kwargs):
            if model.training:
                self.shares = (*self.shares, float((inputs["pixel_values"] == 0).float().mean()))
            return super().compute_loss(model, inputs, *args, **kwargs)

    trainer, _, state = training(
        tmp_path, data, kind=Watching, start=0.0, law=ScheduleLaw(1.0, 1), num_train_epochs=2, dataloader_num_workers=1,
        dataloader_persistent_workers=True, dataloader_prefetch_factor=1,
    )  # fmt: skip
    grey = InfillAugment(state, p=1.0, feather=0, variation=_blank, protect_above=None)
    trainer.data_collator = InfillCollator(grey)
    trainer.train()
    assert max(trainer.shares[:3]) < 0.1  # nothing is masked at first
    assert trainer.shares[-1] > 0.8


def _blank(infill, mask):
    return infill * 0


def test_on_its_device_a_trainer_augments_in_four_lines(tmp_path, data):
    class DeviceTrainer(Trainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            return super().compute_loss(model, self.data_collator.augmented(inputs), *args, **kwargs)

    trainer, *_ = training(tmp_path, data, kind=DeviceTrainer, num_train_epochs=2)
    trainer.data_collator.defer = True
    trainer.train()
    assert trainer.data_collator.augment.masked_share is not None
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 6
    assert len(thresholds(trainer)) == 2


def test_metric_and_reference_may_come_from_two_evaluation_sets(tmp_path, data):
    names = {"monitor": "eval_hard_accuracy", "reference": "eval_clean_accuracy"}
    trainer, callback, _ = training(tmp_path, data, law=ProportionalLaw(0.9, warmup=0), **names)
    trainer.eval_dataset = {"hard": data[0], "clean": data[1], "more": data[1]}
    trainer.train()
    last = {key: value for entry in trainer.state.log_history for key, value in entry.items()}
    assert callback.controller.seen == (last["eval_hard_accuracy"], last["eval_clean_accuracy"])
    assert len(thresholds(trainer)) == 3


def test_a_probe_is_measured_in_place_of_a_metric_and_chance_moves_nothing(tmp_path, data):
    train, _, store = data
    trainer, callback, _ = training(tmp_path, data, law=ProportionalLaw(0.5, warmup=0))
    augment = trainer.data_collator.augment
    control = torch.utils.data.DataLoader(InfillDataset(train, store), batch_size=12)
    callback.monitor = ControlProbe(control, augment)
    trainer.train()
    reasons = [entry["infill_reason"] for entry in trainer.state.log_history if "infill_reason" in entry]
    assert len(reasons) == 3
    assert "not above chance" in reasons[0]


@pytest.mark.slow
def test_two_ranks_measure_their_own_pictures_and_come_to_one_threshold(tmp_path):
    script = """
        import json, os, sys
        from pathlib import Path

        sys.path.insert(0, sys.argv[2])
        import torch
        from test_huggingface import InfillDataset, Pictures, ProportionalLaw, build_cache, training
        from infill_aug import ControlProbe

        rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
        train, val = Pictures(0, 24), Pictures(100, 12)
        store = folder / f"store{rank}"
        build_cache(train, store, profile="centre_prior", levels=(0.5, 1.0), progress=False)
        law = ProportionalLaw(0.5, warmup=0)
        trainer, callback, state = training(folder / "out", (train, val, store), law=law, num_train_epochs=2)
        own = torch.utils.data.Subset(InfillDataset(train, store), range(rank, 24, 2))
        loader = torch.utils.data.DataLoader(own, batch_size=12)
        # Not accuracy, which may stay at chance: the ranks have to measure something, and not the same.
        callback.monitor = ControlProbe(loader, trainer.data_collator.augment, "confidence")
        trainer.train()
        assert trainer.args.world_size == 2
        decided = [entry["infill_threshold"] for entry in trainer.state.log_history if "infill_threshold" in entry]
        (folder / f"{rank}.json").write_text(json.dumps([decided, state.strength]))
    """
    (tmp_path / "ranks.py").write_text(textwrap.dedent(script))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    here = str(Path(__file__).parent)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*launch, "ranks.py", str(tmp_path), here], cwd=tmp_path, env=environment, check=True, timeout=240)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert len(first[0]) == 2


def test_a_metric_that_was_not_evaluated_is_an_error_that_lists_those_that_were(tmp_path, data):
    trainer, _, state = training(tmp_path, data, monitor="accuracy")
    before = state.strength
    with pytest.raises(RuntimeError, match=r"needs \['accuracy'\], and evaluated were .*'eval_accuracy', 'eval_loss'"):
        trainer.train()
    assert state.strength == before


def test_a_metric_that_is_not_finite_is_an_error_unless_it_is_to_be_sat_out(tmp_path, data):
    def broken(prediction):
        return {"accuracy": float("nan")}

    trainer, *_ = training(tmp_path, data, num_train_epochs=1)
    trainer.compute_metrics = broken
    with pytest.raises(ValueError, match="metric is nan"):
        trainer.train()
    trainer, callback, state = training(tmp_path, data, num_train_epochs=1)
    trainer.compute_metrics, callback.controller.check_finite = broken, False
    before = state.strength
    trainer.train()
    assert state.strength == before
    assert "hold" in trainer.state.log_history[-2]["infill_reason"]


def test_a_loss_is_refused_by_a_law_that_takes_higher_for_better():
    with pytest.raises(ValueError, match="give the law mode='min', it has 'max'"):
        ThresholdCallback(ThresholdController(ThresholdState()), "eval_loss")
    ThresholdCallback(ThresholdController(ThresholdState(), ProportionalLaw(mode="min")), "eval_loss")


def test_a_training_that_never_evaluates_is_refused(tmp_path, data):
    trainer, *_ = training(tmp_path, data, eval_strategy="no")
    with pytest.raises(ValueError, match="eval_strategy='epoch'"):
        trainer.train()


def test_columns_that_the_trainer_would_remove_are_told_of(tmp_path, data):
    trainer, *_ = training(tmp_path, data, remove_unused_columns=True)
    with pytest.raises(KeyError, match="remove_unused_columns=False"):
        trainer.train()
