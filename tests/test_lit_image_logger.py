import io
import json
import random

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("lightning")

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image as PILImage
from tests_support import launch_ranks, picture
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from infill_aug.batch import InfillAugment
from infill_aug.cache.build import build_cache
from infill_aug.datasets import InfillDataset
from infill_aug.functional.masks import threshold_mask
from infill_aug.lit.callback import AdaptiveThreshold
from infill_aug.lit.datamodule import InfillDataModule
from infill_aug.lit.image_logger import ImageLogger
from infill_aug.lit.loggers import log_image, log_text
from infill_aug.threshold import ThresholdState
from infill_aug.variation import Variation

# Lightning's own advice and its use of a deprecated torch function; neither is ours to act on.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*treespec.*"),
]
QUIET = {
    "accelerator": "cpu",
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 1,
}
SIDE, COUNT = 24, 8


class Inner(pl.LightningDataModule):
    workers = 0

    def train_dataloader(self):
        samples = [(picture(i), i % 2) for i in range(COUNT)]
        more = {"num_workers": self.workers, "persistent_workers": self.workers > 0}
        return DataLoader(samples, batch_size=4, shuffle=True, **more)

    def val_dataloader(self):
        images = torch.stack([picture(i) for i in range(4)]).float() / 255
        return DataLoader(TensorDataset(images, torch.tensor([0, 1, 0, 1])), batch_size=4)


class Model(pl.LightningModule):
    """Draws random numbers of its own."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 2))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        right = self.layer(batch[0]).argmax(dim=1) == batch[1]
        self.log("val_acc", 0.5 + right.float().mean() / 2, batch_size=4)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class AnyRandom(nn.Module):
    """A transform that draws from every generator there is."""

    def forward(self, sample):
        if (random.random() + np.random.rand() + torch.rand(()).item()) / 3 > 0.5:
            return {key: F.horizontal_flip(part) if key != "target" else part for key, part in sample.items()}
        return sample


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    data = [(picture(i), i % 2) for i in range(COUNT)]
    build_cache(data, folder, profile="centre_prior", backend="noise", progress=False)
    return folder


def fit(store, *callbacks, augment=None, transforms=None, epochs=3, inner=None, prefetch=False, **options):
    pl.seed_everything(5, verbose=False)
    augment = InfillAugment(0.6, feather=0) if augment is None else augment
    module = InfillDataModule(inner or Inner(), augment, store, transforms=transforms, prefetch=prefetch)
    trainer = pl.Trainer(max_epochs=epochs, callbacks=list(callbacks), **{"logger": False, **QUIET, **options})
    model = Model()
    trainer.fit(model, datamodule=module)
    return model, trainer


def cells(path_or_bytes, side=SIDE):
    """A grid's pictures: ``(rows, columns, 3, side, side)``."""
    source = io.BytesIO(path_or_bytes) if isinstance(path_or_bytes, bytes) else path_or_bytes
    grid = F.pil_to_tensor(PILImage.open(source))
    inside = grid[:, 2:, 2:]
    return inside.unfold(1, side, side + 2).unfold(2, side, side + 2).permute(1, 2, 0, 3, 4)


def pngs(folder):
    return sorted(path.name for path in folder.rglob("*.png"))


def test_each_row_is_a_sample_and_its_columns_fit_together(store, tmp_path):
    normalize = ((0.4, 0.5, 0.6), (0.2, 0.3, 0.1))
    augment = InfillAugment(0.6, p=0.1, feather=0, normalize=normalize, variation=lambda infill, mask: 1 - infill)
    fit(store, ImageLogger(folder=tmp_path), augment=augment, epochs=1)
    shown = cells(tmp_path / "epoch_000.png")
    assert shown.shape[:2] == (4, 5)
    samples = InfillDataset([(picture(i), 0) for i in (0, 2, 5, 7)], store, threshold=0.6)
    for row, sample in zip(shown, samples, strict=True):
        image, confidence, mask, infill, mixed = row
        assert torch.equal(image, sample["image"])
        assert torch.equal(confidence, sample["confidence"].expand(3, -1, -1))
        assert set(mask.unique().tolist()) == {0, 255}
        wanted = threshold_mask(sample["confidence"][None], 0.6, protect_above=0.95)[0].expand(3, -1, -1)
        assert torch.equal(mask == 255, wanted)
        assert torch.equal(mixed[~wanted], image[~wanted]), "what is kept is kept bit for bit"
        assert torch.equal(mixed[wanted], infill[wanted])
        assert torch.equal(infill, 255 - sample["infill"]), "as varied"


def test_the_feathered_composite_is_the_one_that_the_network_gets(store):
    dataset = InfillDataset([(picture(i), i) for i in range(2)], store)
    augment = InfillAugment(0.6, p=1.0, feather=4)
    drawn = ImageLogger().draw(DataLoader(dataset), augment)
    batch = next(iter(DataLoader(dataset, batch_size=2)))
    for row, mixed in enumerate(augment(batch)["image"]):
        top, left = 2 + row * (SIDE + 2), 2 + 4 * (SIDE + 2)
        assert torch.equal(drawn[:, top : top + SIDE, left : left + SIDE].float() / 255, mixed)


@pytest.mark.parametrize("logger", [False, "tensorboard"])
@pytest.mark.parametrize("prefetch", [False, True])
def test_a_training_that_is_looked_at_is_the_one_that_is_not_bit_for_bit(store, tmp_path, logger, prefetch):
    ends = []
    for watched in (True, False):
        state = ThresholdState.from_threshold(0.3)
        augment = InfillAugment(state, p=0.5, jitter=0.2, variation=Variation())
        adaptive = AdaptiveThreshold("val_acc", target=0.7)
        log = TensorBoardLogger(tmp_path, name=str(watched)) if logger else False
        callbacks = [ImageLogger(folder=tmp_path / "grids")] if watched else []
        transforms = v2.Compose([v2.RandomCrop(20), AnyRandom()])
        more = {"augment": augment, "transforms": transforms, "prefetch": prefetch, "logger": log, "epochs": 5}
        model, _ = fit(store, *callbacks, adaptive, **more)
        draws = (random.random(), np.random.rand(), torch.rand(()).item())
        ends.append((model.state_dict(), adaptive.history, augment.masked_share, draws))
    (weights, history, share, draws), (other, *rest) = ends
    assert all(torch.equal(weights[name], other[name]) for name in weights)
    assert len({entry["threshold"] for entry in history}) > 1
    assert [history, share, draws] == rest
    assert len(pngs(tmp_path)) == 5


def test_the_augmentation_and_the_dataset_are_left_as_they_were(store):
    calls = []
    augment = InfillAugment(0.6, p=0.25, normalize=((0.5,) * 3, (0.5,) * 3)).eval()
    augment.register_forward_hook(lambda *_: calls.append(1))
    augment.masked_share = torch.tensor(0.125)
    dataset = InfillDataset([(picture(i), i) for i in range(COUNT)], store, p=0.0)
    before = {name: value for name, value in vars(augment).items() if name != "_modules"}
    grid = ImageLogger(max_images=2).draw(DataLoader(dataset), augment)
    assert (grid[:, 2:-2, 2 + 2 * (SIDE + 2) :][:, :, :SIDE] == 255).float().mean() > 0.3, "masked, whatever p is"
    assert {name: value for name, value in vars(augment).items() if name != "_modules"} == before
    assert augment.masked_share == 0.125
    assert (augment.training, augment.p, dataset.p, calls) == (False, 0.25, 0.0, [])


def test_grids_come_at_the_chosen_epochs_at_the_threshold_in_force(store, tmp_path):
    state = ThresholdState.from_threshold(0.2)

    class Raise(pl.Callback):
        def on_validation_end(self, trainer, *_):
            if not trainer.sanity_checking:
                state.set(state.strength + 0.05)

    augment = InfillAugment(state, p=0.5, feather=0, protect_above=None)
    shown = ImageLogger(every_n_epochs=2, folder=tmp_path)
    fit(store, shown, Raise(), augment=augment, epochs=5)
    assert pngs(tmp_path) == ["epoch_000.png", "epoch_002.png", "epoch_004.png"]
    shares = []
    for name in pngs(tmp_path):
        caption = PILImage.open(tmp_path / name).text["Description"]
        threshold = float(caption.split("threshold ")[1].split(":")[0])
        assert caption.startswith(f"epoch {int(name[6:9])}, threshold ")
        shares.append((cells(tmp_path / name)[:, 2] == 255).float().mean().item())
        assert shares[-1] == pytest.approx(threshold, abs=0.02)
    assert shares == sorted(set(shares))


def test_a_sample_is_shown_at_the_threshold_of_its_class(store):
    state = ThresholdState(0.1, classes=2)
    state.set(0.1, offsets=(0.0, 0.15))
    dataset = InfillDataset([(picture(i), i % 2) for i in range(4)], store)
    grid = ImageLogger().draw(DataLoader(dataset), InfillAugment(state, feather=0, protect_above=None))
    masks = grid[0, 2:, 2 + 2 * (SIDE + 2) :][:, :SIDE].unfold(0, SIDE, SIDE + 2)
    shares = (masks == 255).float().mean(dim=(1, 2)).tolist()
    assert shares == pytest.approx(state.of_classes(torch.tensor([0, 1, 0, 1])).tolist(), abs=0.02)


def test_a_training_with_workers_is_shown_too(store, tmp_path):
    inner = Inner()
    inner.workers = 1
    fit(store, ImageLogger(max_images=2, folder=tmp_path), inner=inner, epochs=2)
    assert pngs(tmp_path) == ["epoch_000.png", "epoch_001.png"]


def test_a_training_with_a_collate_function_of_its_own_is_shown_too(store, tmp_path):
    class Own(Inner):
        def train_dataloader(self):
            def collate(pairs):
                return torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])

            return DataLoader([(picture(i), i % 2) for i in range(COUNT)], batch_size=4, collate_fn=collate)

    fit(store, ImageLogger(folder=tmp_path), inner=Own(), epochs=1)
    assert cells(tmp_path / "epoch_000.png").shape[:2] == (4, 5)


def test_tensorboard_gets_the_picture_and_its_caption(store, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    fit(store, ImageLogger(max_images=3), logger=logger, epochs=2, augment=InfillAugment(0.6, jitter=0.1))
    assert pngs(tmp_path) == [], "a logger takes pictures"
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0, "tensors": 0}).Reload()
    first, second = events.Images("infill/samples")
    assert (first.step, second.step) == (0, 2)
    shown = cells(first.encoded_image_string)
    assert torch.equal(shown[:, 0], torch.stack([picture(0), picture(4), picture(7)]))
    texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("infill/samples/text_summary")]
    columns = ": image, confidence, mask, infill, composite"
    assert texts == [f"epoch {epoch}, threshold 0.600 ± 0.1{columns}" for epoch in (0, 1)]


def test_pictures_go_to_the_disk_where_no_logger_takes_them(store, tmp_path):
    fit(store, ImageLogger(), default_root_dir=tmp_path, epochs=1)
    assert (tmp_path / "infill" / "epoch_000.png").exists()
    logger = CSVLogger(tmp_path, name="csv")
    fit(store, ImageLogger(), logger=logger, epochs=1)
    assert (tmp_path / "csv" / "version_0" / "infill" / "epoch_000.png").exists()


def test_a_fast_dev_run_draws_nothing(store, tmp_path):
    fit(store, ImageLogger(folder=tmp_path), fast_dev_run=True)
    assert pngs(tmp_path) == []


def test_samples_of_other_sizes_or_in_floating_point_are_shown(tmp_path):
    pictures = [(picture(1, 16, 20), 0), (picture(2, 24, 12), 1)]
    build_cache(pictures, tmp_path, profile="centre_prior", backend="noise", progress=False)
    unit = v2.ToDtype(torch.float32, scale=True)
    for transforms in (None, lambda sample: {**sample, **{key: unit(sample[key]) for key in ("image", "infill")}}):
        dataset = InfillDataset(pictures, tmp_path, transforms=transforms)
        grid = ImageLogger().draw(DataLoader(dataset), InfillAugment(0.5))
        assert grid.shape == (3, 2 * 26 + 2, 5 * 22 + 2)
        assert torch.equal(grid[:, 2:18, 2:22], pictures[0][0])
        assert torch.equal(grid[:, 28:52, 2:14], pictures[1][0])
        assert (grid[:, 28:52, 14:24] == 128).all()


def test_a_training_without_one_augmentation_or_without_infills_is_told(store):
    def train(model, data):
        pl.Trainer(max_epochs=1, callbacks=[ImageLogger()], logger=False, **QUIET).fit(model, datamodule=data)

    with pytest.raises(MisconfigurationException, match=r"found no InfillAugment.*Keep one as `augment`"):
        train(Model(), Inner())
    twice = Model()
    twice.augment = InfillAugment()
    with pytest.raises(MisconfigurationException, match=r"found 2 InfillAugment"):
        train(twice, InfillDataModule(Inner(), InfillAugment(), store))
    with pytest.raises(MisconfigurationException, match=r"the training loader's dataset is list. Wrap it"):
        train(twice, Inner())


@pytest.mark.parametrize("arguments", [{"every_n_epochs": 0}, {"max_images": -1}])
def test_numbers_that_mean_nothing_are_refused(arguments):
    with pytest.raises(ValueError, match=r"(every_n_epochs|max_images) must be 1 or more, got (0|-1)"):
        ImageLogger(**arguments)


def test_text_and_pictures_reach_only_loggers_that_take_them(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board, table = TensorBoardLogger(tmp_path / "board"), CSVLogger(tmp_path / "table")
    log_text([table, board], "infill/reason", "Warm-up: hold.", 3)
    assert log_image([table, board], "one", picture(0), 3, "noise")
    assert not log_image([table], "one", picture(0), 3, "noise")
    assert not log_image([], "one", picture(0), 3, "noise")
    board.finalize("success")
    events = EventAccumulator(board.log_dir, size_guidance={"tensors": 0}).Reload()
    (text,) = events.Tensors("infill/reason/text_summary")
    assert (text.step, text.tensor_proto.string_val[0]) == (3, b"Warm-up: hold.")
    assert events.Images("one")[0].step == 3


def test_weights_and_biases_get_the_picture_with_its_caption_and_the_text(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    assert log_image([logger], "infill/samples", picture(0), 3, "noise at step 3")
    log_text([logger], "infill/reason", "Warm-up: hold.", 3)
    logger.experiment.finish()
    (stored,) = tmp_path.rglob("samples_*.png")
    assert torch.equal(F.pil_to_tensor(PILImage.open(stored)), picture(0))
    (table,) = tmp_path.rglob("reason_*.table.json")
    assert json.loads(table.read_text())["data"] == [["Warm-up: hold."]]
    (run,) = tmp_path.rglob("*.wandb")
    assert b"noise at step 3" in run.read_bytes()


TWO_RANKS = """
    import os, pathlib, sys, torch
    sys.path.insert(0, sys.argv[2])
    from test_lit_image_logger import ImageLogger, fit

    folder = pathlib.Path(sys.argv[1])
    grids, found = folder / ("grids" + os.environ.get("LOCAL_RANK", "0")), {}
    for watched in (False, True):
        callbacks = [ImageLogger(folder=grids)] if watched else []
        model, trainer = fit(folder / "store", *callbacks, devices=2, strategy="ddp", num_sanity_val_steps=0)
        found[watched] = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save(found, folder / f"rank{trainer.global_rank}.pt")
    # Lightning leaves the group to the end of the process, where gloo's threads have been seen to abort it.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_of_two_ranks_the_first_alone_draws_and_both_train_as_without(store, tmp_path):
    (tmp_path / "store").symlink_to(store)
    launch_ranks(TWO_RANKS, tmp_path)
    assert pngs(tmp_path / "grids0") == [f"epoch_00{epoch}.png" for epoch in range(3)]
    assert pngs(tmp_path / "grids1") == []
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    for found in ranks:
        assert all(torch.equal(value, found[False][name]) for name, value in found[True].items())
