import lightning.pytorch as pl
import pytest
import torch
from tests_support import picture
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
from torchvision.transforms import v2

from infill_aug.batch import InfillAugment
from infill_aug.cache.build import build_cache
from infill_aug.cache.reader import InfillMissError
from infill_aug.lit.callback import AdaptiveThreshold
from infill_aug.lit.datamodule import InfillDataModule, rebuild_loader
from infill_aug.threshold import ProportionalLaw, ThresholdState

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
    callback = AdaptiveThreshold("val_acc", law=ProportionalLaw(0.8, warmup=0))
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
