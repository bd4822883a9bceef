import functools

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy
from tests_support import launch_ranks, picture
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, Subset, TensorDataset, WeightedRandomSampler
from torchvision.transforms import v2

from infill_aug.batch import InfillAugment
from infill_aug.cache.build import build_cache
from infill_aug.cache.reader import InfillMissError
from infill_aug.control.proportional import ProportionalLaw
from infill_aug.datasets import InfillDataset
from infill_aug.lit import datamodule
from infill_aug.lit.callback import AdaptiveThreshold
from infill_aug.lit.datamodule import InfillDataModule, rebuild_loader
from infill_aug.prefetch import prefetch
from infill_aug.samples import label_of_batch
from infill_aug.threshold import ThresholdState

# Lightning's own advice and its use of a deprecated torch function; neither is ours to act on.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*treespec.*"),
]
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Inner(pl.LightningDataModule):
    """A user's data module; ``form`` is how its samples look."""

    def __init__(self, form="pair", count=8):
        super().__init__()
        self.form, self.count, self.calls = form, count, []

    def samples(self):
        if self.form == "pair":
            return [(picture(i), i % 2) for i in range(self.count)]
        return [{"image": picture(i), "label": i % 2, "id": i} for i in range(self.count)]

    def setup(self, stage):
        self.calls.append((str(stage), self.trainer is not None))

    def train_dataloader(self):
        return DataLoader(self.samples(), batch_size=4, shuffle=True, drop_last=True)

    def val_dataloader(self):
        images = torch.stack([picture(i) for i in range(4)]).float() / 255
        return DataLoader(TensorDataset(images, torch.tensor([0, 1, 0, 1])), batch_size=4)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.calls.append("after")
        return batch


class Model(pl.LightningModule):
    """Remembers what its steps are given."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 2))
        self.train_batches, self.val_batches = [], []

    def training_step(self, batch, batch_idx):
        self.train_batches.append(batch)
        images, labels = (batch["image"], batch["label"]) if isinstance(batch, dict) else batch
        return nn.functional.cross_entropy(self.layer(images), labels)

    def validation_step(self, batch, batch_idx):
        self.val_batches.append(batch)
        self.log("val_acc", torch.tensor(0.9), batch_size=4)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    data = [(picture(i), i % 2) for i in range(8)]
    build_cache(data, folder, profile="centre_prior", backend="noise", progress=False)
    return folder


def fit(store, form="pair", **options):
    augment = options.pop("augment", None) or InfillAugment(0.7, p=1.0, feather=0)
    inner, model = Inner(form), Model()
    module = InfillDataModule(inner, augment, store, **options)
    trainer = pl.Trainer(max_epochs=2, num_sanity_val_steps=1, **QUIET)
    trainer.fit(model, datamodule=module)
    return inner, model, module, trainer


def test_the_training_step_gets_pairs_as_before_with_infill_in_them(store):
    inner, model, *_ = fit(store)
    images, labels = model.train_batches[0]
    assert images.dtype == torch.float32
    assert images.shape == (4, 3, 24, 24)
    originals = torch.stack([picture(i) for i in range(8)]).float() / 255
    for image, label in zip(images, labels, strict=True):
        same = (originals == image).all(dim=1).float().mean(dim=(1, 2))  # share of kept pixels against each original
        assert 0.2 < same.max() < 0.4
        assert int(same.argmax()) % 2 == label
    assert inner.calls[0] == ("TrainerFn.FITTING", True)
    assert "after" in inner.calls


def test_the_training_step_gets_mappings_as_before(store):
    _, model, *_ = fit(store, form="mapping")
    assert set(model.train_batches[0]) == {"image", "label", "id"}


def test_validation_is_untouched(store):
    _, model, *_ = fit(store)
    images, _ = model.val_batches[-1]
    assert torch.equal(images, torch.stack([picture(i) for i in range(4)]).float() / 255)


def test_geometric_transforms_are_applied_to_training_samples(store):
    _, model, *_ = fit(store, transforms=v2.RandomCrop(16))
    assert model.train_batches[0][0].shape == (4, 3, 16, 16)


def test_the_callback_finds_the_threshold_and_moves_it(store):
    state = ThresholdState.from_threshold(0.3)
    augment = InfillAugment(state, p=1.0)
    callback = AdaptiveThreshold("val_acc", rule=ProportionalLaw(0.8, warmup=0))
    module = InfillDataModule(Inner(), augment, store)
    trainer = pl.Trainer(max_epochs=3, callbacks=[callback], **QUIET)
    trainer.fit(Model(), datamodule=module)
    assert callback.state is state
    assert state.threshold > 0.3
    assert len(callback.history) == 3
    assert 0 < float(trainer.callback_metrics["infill/masked_share"]) <= state.threshold + 0.02
    assert float(trainer.callback_metrics["infill/threshold"]) < state.threshold, "logged: what the epoch trained with"


def test_a_mixed_precision_training_gets_its_pictures_unharmed(store):
    model = Model()
    module = InfillDataModule(Inner(), InfillAugment(0.7, p=0.0), store)
    trainer = pl.Trainer(max_epochs=1, precision="bf16-mixed", num_sanity_val_steps=0, **QUIET)
    trainer.fit(model, datamodule=module)
    originals = torch.stack([picture(i) for i in range(8)]).float() / 255
    for image in model.train_batches[0][0]:
        assert (originals == image).flatten(1).all(dim=1).any()


def test_a_missing_infill_is_a_clear_error(store):
    inner = Inner()
    inner.samples = lambda: [(picture(100 + i), 0) for i in range(4)]
    module = InfillDataModule(inner, InfillAugment(), store)
    with pytest.raises(InfillMissError, match="no infill for this image"):
        pl.Trainer(max_epochs=1, num_sanity_val_steps=0, **QUIET).fit(Model(), datamodule=module)


def test_more_than_one_training_loader_is_refused(store):
    inner = Inner()
    loader = inner.train_dataloader()
    inner.train_dataloader = lambda: [loader, loader]
    with pytest.raises(TypeError, match=r"one DataLoader over a map-style dataset from Inner.*got list"):
        InfillDataModule(inner, InfillAugment(), store).train_dataloader()


def test_a_rebuilt_loader_keeps_its_settings():
    data = list(range(10))
    sampler = RandomSampler(data, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(data, batch_size=3, sampler=sampler, num_workers=1, prefetch_factor=4, drop_last=True)
    rebuilt = rebuild_loader(loader, data)
    for name in ("batch_size", "sampler", "num_workers", "prefetch_factor", "drop_last", "persistent_workers"):
        assert getattr(rebuilt, name) is getattr(loader, name)


def test_a_rebuilt_loader_keeps_batch_samplers_and_collate_functions():
    batches = [[0, 1], [2]]
    loader = DataLoader([1, 2, 3], batch_sampler=batches, collate_fn=sum)
    assert list(rebuild_loader(loader, [10, 20, 30])) == [30, 30]
    unbatched = DataLoader([1, 2, 3], batch_size=None)
    assert list(rebuild_loader(unbatched, [4, 5, 6])) == [4, 5, 6]


# --- prefetch ---


@pytest.fixture(params=["in_order", "ahead"])
def way(request, monkeypatch):
    """In order is what a CPU does; ahead is what a GPU does, here without its streams."""
    if request.param == "ahead":
        monkeypatch.setattr(datamodule, "prefetch", functools.partial(prefetch, ahead=True))
    return request.param


def train(store, form="pair", inner=None, model=None, module=InfillDataModule, checkpoint=None, **options):
    """Inner module and model after a training that starts from one seed."""
    pl.seed_everything(5, verbose=False)
    inner, model = inner or Inner(form, count=8), model or Model()
    augment = InfillAugment(0.6, p=0.5, jitter=0.2, dtype=options.pop("dtype", torch.float32))
    ours = {name: options.pop(name) for name in ("prefetch", "transforms") if name in options}
    trainer = pl.Trainer(**{"max_epochs": 3, "num_sanity_val_steps": 1, **QUIET, **options})
    trainer.fit(model, datamodule=module(inner, augment, store, **ours), ckpt_path=checkpoint)
    return inner, model


def same_training(one, two):
    one, two = (model for _, model in (one, two))
    assert len(one.train_batches) == len(two.train_batches) > 0
    for each, other in zip(one.train_batches, two.train_batches, strict=True):
        each, other = ((b["image"], b["label"]) if isinstance(b, dict) else b for b in (each, other))
        assert torch.equal(each[0], other[0])
        assert torch.equal(each[1], other[1])
    weights = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in weights)


@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train dataloader shuffling")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"form": "mapping"},
        {"transforms": v2.RandomCrop(16)},
        {"limit_train_batches": 1},
        {"overfit_batches": 1},
        {"accumulate_grad_batches": 2},
        {"max_steps": 3, "max_epochs": -1},
        {"precision": "bf16-mixed"},
        {"precision": "64-true", "dtype": torch.float64},
        {"reload_dataloaders_every_n_epochs": 1},
    ],
    ids=str,
)
def test_a_training_with_prefetch_is_the_one_without_bit_for_bit(store, way, options):
    assert same_training(train(store, prefetch=True, **options), train(store, **options))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_training_on_a_gpu_with_prefetch_is_the_one_without(store):
    assert same_training(*(train(store, prefetch=on, accelerator="gpu", devices=1) for on in (True, False)))


def test_validations_within_the_epoch_change_nothing_where_batches_are_prefetched_in_order(store):
    assert same_training(*(train(store, prefetch=on, val_check_interval=1) for on in (True, False)))


@pytest.mark.slow
def test_a_training_with_prefetch_and_workers_is_the_one_without(store, way):
    class Working(Inner):
        def train_dataloader(self):
            return DataLoader(self.samples(), 2, shuffle=True, num_workers=1, persistent_workers=True)

    assert same_training(*(train(store, inner=Working(), prefetch=on) for on in (True, False)))


@pytest.mark.parametrize("on", [False, True])
def test_the_precision_of_the_trainer_reaches_targets_with_prefetch_as_without(store, on):
    class Weighted(Inner):
        def samples(self):
            return [{**sample, "weight": torch.tensor(0.5)} for sample in super().samples()]

    options = {"precision": "64-true", "dtype": torch.float64, "max_epochs": 1, "prefetch": on}
    _, model = train(store, inner=Weighted("mapping"), **options)
    assert model.train_batches[0]["weight"].dtype == torch.float64


def test_prefetched_batches_are_augmented_once_and_go_through_each_hook_once(store, way):
    augment, inner = InfillAugment(0.7, p=1.0, feather=0), Inner()
    seen = []
    augment.register_forward_hook(lambda *_: seen.append(augment.training))
    pl.Trainer(max_epochs=2, num_sanity_val_steps=1, **QUIET).fit(
        Model(), datamodule=InfillDataModule(inner, augment, store, prefetch=True)
    )
    assert seen == [True] * 4
    assert inner.calls.count("after") == 4 + 3  # and validation batches


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_training_that_is_resumed_within_an_epoch_is_the_one_without(store, way, tmp_path):
    ends = []
    for on in (True, False):
        keep = ModelCheckpoint(tmp_path / str(on), every_n_train_steps=3, save_top_k=-1)
        options = {"enable_checkpointing": True, "callbacks": [keep], "prefetch": on}
        train(store, max_epochs=2, **options)
        (within,) = (tmp_path / str(on)).iterdir()
        ends.append(train(store, checkpoint=within, **options))
    assert same_training(*ends)


def test_the_first_batch_of_an_epoch_has_the_threshold_that_the_last_validation_set(store, way):
    state = ThresholdState.from_threshold(0.1)
    found = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            found.append((round(state.threshold, 3), round(float(augment.masked_share), 3)))

        def on_validation_end(self, trainer, *_):
            if not trainer.sanity_checking:
                state.set(state.strength + 0.1)

    augment = InfillAugment(state, p=1.0, feather=0, protect_above=None)
    trainer = pl.Trainer(max_epochs=3, num_sanity_val_steps=0, callbacks=[Watch()], **QUIET)
    trainer.fit(Model(), datamodule=InfillDataModule(Inner(), augment, store, prefetch=True))
    assert len(found) == 6
    assert len({threshold for threshold, _ in found}) == 3
    assert all(share == pytest.approx(threshold, abs=0.03) for threshold, share in found)


def test_the_training_loader_stays_a_loader_and_iterated_by_hand_gives_samples_as_without(store):
    inner = Inner()
    module = InfillDataModule(inner, InfillAugment(), store, prefetch=True)
    loader = module.train_dataloader()
    assert isinstance(loader, DataLoader)
    assert len(loader) == 2
    assert set(next(iter(loader))) == {"image", "infill", "confidence", "target"}
    inner.train_dataloader = lambda: loader
    with pytest.raises(TypeError, match="is not torch's DataLoader"):
        module.train_dataloader()


def test_a_ready_made_infill_dataset_is_prefetched_too(store):
    class Ready(Inner):
        def train_dataloader(self):
            return DataLoader(InfillDataset(self.samples(), store), batch_size=4, shuffle=True)

    assert same_training(*(train(store, inner=Ready(), prefetch=on) for on in (True, False)))


class Stateful(DataLoader):
    def state_dict(self):
        return {}

    def load_state_dict(self, state_dict):
        pass


class OwnLoader(DataLoader):
    pass


class OwnHook(InfillDataModule):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return super().on_after_batch_transfer(batch, dataloader_idx)


class OwnTransfer(SingleDeviceStrategy):
    def batch_to_device(self, batch, device=None, dataloader_idx=0):
        return super().batch_to_device(batch, device, dataloader_idx)


class OwnFetch(Model):
    def training_step(self, dataloader_iter):
        next(dataloader_iter)


def with_loader(kind, store):
    inner = Inner()
    inner.train_dataloader = lambda: kind(InfillDataset(inner.samples(), store), batch_size=4)
    return inner


@pytest.mark.filterwarnings("ignore:.*dataloader_iter.*")
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda store: {"inner": with_loader(Stateful, store)}, "Stateful keeps a state"),
        (lambda store: {"inner": with_loader(OwnLoader, store)}, "OwnLoader is not torch's DataLoader"),
        (lambda store: {"module": OwnHook}, r"OwnHook overrides \['on_after_batch_transfer'\]"),
        (lambda store: {"strategy": OwnTransfer("cpu")}, "OwnTransfer moves batches in its own way"),
        (lambda store: {"model": OwnFetch()}, "training_step takes a dataloader_iter"),
    ],
    ids=["state", "loader", "hook", "strategy", "fetch"],
)
def test_prefetch_is_refused_where_it_cannot_be_right_and_only_there(store, make, why):
    with pytest.raises(TypeError, match=f"prefetch=True cannot be right here: {why}.*prefetch=False"):
        train(store, prefetch=True, **make(store))
    if "model" not in make(store):
        train(store, max_epochs=1, **make(store))


TWO_RANKS = """
    import functools, pathlib, sys, torch, lightning.pytorch as pl
    sys.path.insert(0, sys.argv[2])
    from test_lit_datamodule import QUIET, train
    from infill_aug.lit import datamodule
    from infill_aug.prefetch import prefetch

    datamodule.prefetch = functools.partial(prefetch, ahead=True)
    store = pathlib.Path(sys.argv[1], "store")
    found = {}
    for on in (False, True):
        _, model = train(store, prefetch=on, devices=2, strategy="ddp", num_sanity_val_steps=0)
        images = torch.stack([images for images, _ in model.train_batches])
        found[on] = (images, {name: value.clone() for name, value in model.state_dict().items()})
        sampler = type(model.trainer.train_dataloader.sampler).__name__
        found["sampler"] = sampler
    torch.save(found, pathlib.Path(sys.argv[1], f"rank{model.global_rank}.pt"))
    # Lightning leaves the group to the end of the process, where gloo's threads have been seen to abort it.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_ranks_share_the_samples_with_prefetch_as_without(store, tmp_path):
    (tmp_path / "store").symlink_to(store)
    launch_ranks(TWO_RANKS, tmp_path)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    for found in ranks:
        assert found["sampler"] == "DistributedSampler"
        assert torch.equal(found[True][0], found[False][0])
        assert all(torch.equal(value, found[False][1][name]) for name, value in found[True][1].items())
    assert not torch.equal(ranks[0][True][0], ranks[1][True][0])
    assert all(torch.equal(value, ranks[1][True][1][name]) for name, value in ranks[0][True][1].items())


# The control split


def held(module):
    return {image.numpy().tobytes() for batch in module.control_dataloader() for image in batch["image"]}


def trained_on(module):
    dataset = module.train_dataloader().dataset
    return {dataset[i]["image"].numpy().tobytes() for i in range(len(dataset))}


def test_a_control_split_is_held_out_of_training_and_always_the_same(store):
    def made():
        return InfillDataModule(Inner(), InfillAugment(0.7), store, control_split=3)

    module = made()
    assert len(held(module)) == 3
    assert held(module) == held(made())
    assert len(trained_on(module)) == 5
    assert not held(module) & trained_on(module)
    assert module.control_size == 3


def test_training_draws_from_what_is_left_as_it_drew_before(store):
    class Drawn(Inner):
        def train_dataloader(self):
            sampler = RandomSampler(self.samples(), num_samples=6, replacement=True)
            return DataLoader(self.samples(), batch_size=4, sampler=sampler)

    loader = InfillDataModule(Drawn(), InfillAugment(0.7), store, control_split=3).train_dataloader()
    assert (len(loader.sampler), loader.sampler.replacement, loader.batch_size) == (6, True, 4)
    assert len({i for _ in range(50) for i in loader.sampler}) == 5
    shuffled = InfillDataModule(Inner(), InfillAugment(0.7), store, control_split=3).train_dataloader()
    assert sorted(shuffled.sampler) == [0, 1, 2, 3, 4]


def test_a_dataset_of_ones_own_is_a_control_split_too(store):
    own = [(picture(i), i % 2) for i in (6, 7)]
    module = InfillDataModule(Inner(count=6), InfillAugment(0.7), store, control_split=own)
    assert held(module) == {image.numpy().tobytes() for image, _ in own}
    assert len(trained_on(module)) == 6
    wrapped = InfillDataModule(
        Inner(count=6), InfillAugment(0.7), store, control_split=InfillDataset(own, store, transforms=v2.Identity())
    )
    assert held(wrapped) == held(module)


def test_control_pictures_come_with_their_widest_infill_whatever_the_threshold(store):
    narrow = InfillDataModule(Inner(), InfillAugment(0.05), store, control_split=2)
    wide = InfillDataModule(Inner(), InfillAugment(1.0), store, control_split=2)
    (first,), (second,) = narrow.control_dataloader(), wide.control_dataloader()
    changed = [(batch["infill"] != batch["image"]).any(1).float().mean().item() for batch in (first, second)]
    assert changed[0] == pytest.approx(changed[1], abs=0.02)
    assert changed[0] > 0.7


@pytest.mark.parametrize(
    ("inner", "control", "error", "message"),
    [
        (Inner, 8, ValueError, "must leave something of the 8 training pictures, got 8"),
        (Inner, -1, ValueError, "got -1"),
        (Inner, 0, ValueError, r"no control split; hold pictures out with InfillDataModule\(control_split=256\)"),
        (
            lambda: Batched(),
            2,
            TypeError,
            "can't be held out of list drawn by list; .* pass them as a dataset",
        ),
        (
            lambda: Weighted(),
            2,
            TypeError,
            "can't be held out of list drawn by WeightedRandomSampler; .* pass them as a dataset",
        ),
    ],
)
def test_a_control_split_that_cannot_be_is_refused(store, inner, control, error, message):
    with pytest.raises(error, match=message):
        InfillDataModule(inner(), InfillAugment(0.7), store, control_split=control).control_dataloader()


class Batched(Inner):
    def train_dataloader(self):
        return DataLoader(self.samples(), batch_sampler=[[0, 1], [2, 7]])


class Weighted(Inner):
    def train_dataloader(self):
        return DataLoader(self.samples(), batch_size=4, sampler=WeightedRandomSampler([1.0] * 8, 8))


# A collate function of the user's own, and the mask


def side_by_side(pairs):
    return tuple(zip(*pairs, strict=True))


class Detection(Inner):
    """Targets that only the usual collate function of detection puts together; ``sizes`` of the pictures."""

    def __init__(self, sizes=(24,)):
        super().__init__()
        self.sizes = sizes

    def samples(self):
        return [
            (picture(i, self.sizes[i % len(self.sizes)]), {"boxes": torch.ones(i % 3, 4), "id": i}) for i in range(8)
        ]

    def train_dataloader(self):
        return DataLoader(self.samples(), batch_size=4, shuffle=True, collate_fn=side_by_side)


class Detector(Model):
    def training_step(self, batch, batch_idx):
        self.train_batches.append(batch)
        images, _ = batch
        return sum(self.layer(image[None]).square().sum() for image in images)


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("sizes", [(24,), (24, 32)])
def test_the_users_collate_function_gets_its_samples_with_their_images_augmented(tmp_path, sizes, prefetch):
    inner, model = Detection(sizes), Detector()
    build_cache(inner.samples(), tmp_path / "store", profile="centre_prior", backend="noise", progress=False)
    augment = InfillAugment(0.7, p=1.0, feather=0)
    module = InfillDataModule(inner, augment, tmp_path / "store", prefetch=prefetch)
    pl.Trainer(max_epochs=1, num_sanity_val_steps=0, **QUIET).fit(model, datamodule=module)
    originals = [image.float() / 255 for image, _ in inner.samples()]
    for images, targets in model.train_batches:
        assert isinstance(images, tuple)
        for image, target in zip(images, targets, strict=True):
            assert len(target["boxes"]) == target["id"] % 3
            kept = (image == originals[target["id"]]).all(0).float().mean()
            assert 0.2 < kept < 0.4
    assert sorted(target["id"] for _, targets in model.train_batches for target in targets) == list(range(8))


@pytest.mark.parametrize("sizes", [(24,), (24, 32)])
def test_a_control_split_of_such_targets_comes_picture_by_picture(tmp_path, sizes):
    inner = Detection(sizes)
    build_cache(inner.samples(), tmp_path / "store", profile="centre_prior", backend="noise", progress=False)
    module = InfillDataModule(inner, InfillAugment(0.7), tmp_path / "store", control_split=3)
    batches = list(module.control_dataloader())
    assert [len(batch["image"]) for batch in batches] == [1, 1, 1]
    for batch in batches:
        (target,) = batch["target"]
        assert len(target["boxes"]) == target["id"] % 3
        assert label_of_batch(batch["target"]) is None


def test_labels_of_a_control_split_are_labels_whatever_the_collate_function(store):
    class Own(Inner):
        def train_dataloader(self):
            return DataLoader(self.samples(), batch_size=4, shuffle=True, collate_fn=side_by_side)

    module = InfillDataModule(Own(), InfillAugment(0.7), store, control_split=3)
    assert [int(batch["target"]) for batch in module.control_dataloader()] == [
        label for batch in module.control_dataloader() for label in batch["target"]
    ]


def test_what_a_collate_function_makes_goes_to_the_device_too(store):
    class Far(Inner):
        def train_dataloader(self):
            def collate(pairs):
                return torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])

            return DataLoader(self.samples(), batch_size=4, collate_fn=collate)

        def transfer_batch_to_device(self, batch, device, dataloader_idx):
            self.calls.append([str(part.device) for part in batch] if isinstance(batch, tuple) else "samples")
            return batch

    module = InfillDataModule(far := Far(), InfillAugment(0.7), store)
    module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
    assert far.calls == [["cpu", "cpu"], "after"]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (lambda store: Endless(), "over a map-style dataset .* over Endless"),
        (lambda store: Subset(InfillDataset([(picture(0), 0)], store), [0]), "Subset of an InfillDataset"),
    ],
)
def test_training_sets_that_cannot_be_wrapped_are_refused(store, dataset, message):
    inner = Inner()
    inner.train_dataloader = lambda: DataLoader(dataset(store))
    with pytest.raises(TypeError, match=message):
        InfillDataModule(inner, InfillAugment(0.7), store).train_dataloader()


class Endless(IterableDataset):
    def __iter__(self):
        yield picture(0), 0


@pytest.mark.parametrize("form", ["pair", "mapping"])
def test_the_mask_is_handed_on_where_it_is_asked_for(store, form):
    class Masked(Model):
        def training_step(self, batch, batch_idx):
            images, mask = (batch["image"], batch["mask"]) if isinstance(batch, dict) else (batch[0], batch[-1])
            labels = batch["label"] if isinstance(batch, dict) else batch[1]
            assert mask.shape == (4, 1, 24, 24)
            assert mask.dtype == torch.bool
            assert 0.6 < mask.float().mean() < 0.75
            return super().training_step({"image": images, "label": labels}, batch_idx)

    module = InfillDataModule(Inner(form), InfillAugment(0.7, p=1.0), store, with_mask=True)
    trainer = pl.Trainer(max_epochs=1, num_sanity_val_steps=0, **QUIET)
    trainer.fit(model := Masked(), datamodule=module)
    assert model.train_batches
