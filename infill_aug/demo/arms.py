"""The ways of training that the demo compares, with equal models and equal optimiser steps."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from infill_aug.batch import InfillAugment
from infill_aug.cache.store import InfillStore
from infill_aug.control.proportional import ProportionalLaw
from infill_aug.demo.data import DemoData, Split
from infill_aug.lit.callback import AdaptiveThreshold
from infill_aug.lit.datamodule import InfillDataModule
from infill_aug.threshold import ThresholdState
from infill_aug.variation import Variation

ARMS = ("plain", "RandomErasing", "RandAugment", "infill_aug", "oracle")
# Those that read infills: with the confidence that the demo learns, and with that of all the labelled masks.
INFILL_ARMS = ("infill_aug", "oracle")
NORMALIZE = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@dataclass(frozen=True)
class ArmResult:
    """One training: accuracies in percent, and how it went.

    Args:
        arm: name.
        seed: seed.
        tied: accuracy on test pictures like the training's.
        swapped: accuracy on swapped backgrounds.
        threshold: threshold reached; ``None`` where there is none.
        seconds: wall clock of the training.
        history: one record an epoch.
    """

    arm: str
    seed: int
    tied: float
    swapped: float
    threshold: float | None
    seconds: float
    history: list[dict[str, float]]


class SmallConvNet(nn.Sequential):
    """Four convolutions and a linear layer, about 0.24 M parameters."""

    def __init__(self, classes: int) -> None:
        layers: list[nn.Module] = []
        previous = 3
        for width in (32, 64, 128, 128):
            layers += [nn.Conv2d(previous, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            previous = width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(previous, classes))


class DemoClassifier(pl.LightningModule):
    """Cross entropy, AdamW, one cycle: an ordinary training."""

    def __init__(self, classes: int, learning_rate: float = 3e-3) -> None:
        super().__init__()
        self.model = SmallConvNet(classes)
        self.learning_rate = learning_rate

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.model(images)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch."""
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Accuracy on the validation split, which the threshold follows."""
        images, labels = batch
        accuracy = (self(images).argmax(dim=1) == labels).float().mean()
        self.log("val_acc", accuracy, on_epoch=True, batch_size=len(labels), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """AdamW with a one-cycle schedule."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=1e-2)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _Transformed(Dataset[tuple[Any, int]]):
    """A split under a per-sample transform."""

    def __init__(self, split: Split, transform: Callable[[Tensor], Tensor] | None) -> None:
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.split[index]
        return (image if self.transform is None else self.transform(image)), label


class DemoDataModule(pl.LightningDataModule):
    """Training under a transform, validation plain."""

    def __init__(self, data: DemoData, transform: Callable[[Tensor], Tensor] | None, batch_size: int) -> None:
        super().__init__()
        self.data, self.transform, self.batch_size = data, transform, batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled, full batches only."""
        dataset = _Transformed(self.data.train, self.transform)
        return DataLoader(dataset, batch_size=min(self.batch_size, len(dataset)), shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """In order."""
        return DataLoader(_Transformed(self.data.val, _to_input()), batch_size=256)


def _to_input() -> v2.Transform:
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(*NORMALIZE)])


def geometry(data: DemoData) -> list[v2.Transform]:
    """What every arm does: small shifts, and mirroring where that keeps the class."""
    size = data.train.images.shape[-1]
    shift: list[v2.Transform] = [v2.RandomCrop(size, padding=size // 12, padding_mode="reflect")]
    return [*shift, v2.RandomHorizontalFlip()] if data.mirror else shift


def train_arm(
    arm: str,
    data: DemoData,
    store: InfillStore,
    *,
    seed: int,
    epochs: int,
    batch_size: int,
    start: float,
    target: float,
    p: float,
    feather: int = 0,
    recipe: str | None = None,
) -> ArmResult:
    """Train one arm with one seed, and test it.

    Args:
        arm: one of ``ARMS``.
        data: pictures.
        store: infills of the training pictures; read by ``INFILL_ARMS`` only.
        seed: of weights, order and augmentation.
        epochs: passes over the training pictures; equal for all arms, and so are the optimiser steps.
        batch_size: pictures a step.
        start: threshold that those arms start at.
        target: share of the best validation accuracy that its threshold must not cost.
        p: share of pictures that they change.
        feather: width in pixels of the soft rim of their fills.
        recipe: which of the store's infills they read; by default the ones built last.

    Raises:
        ValueError: an unknown arm.
    """
    if arm not in ARMS:
        raise ValueError(f"arm must be one of {ARMS}, got {arm!r}")
    pl.seed_everything(seed, verbose=False)
    shared = geometry(data)
    extra: dict[str, list[v2.Transform]] = {
        "RandomErasing": [v2.RandomErasing(p=0.5, value=0.0)],
        "RandAugment": [v2.RandAugment()],
    }
    callbacks: list[pl.Callback] = []
    module: pl.LightningDataModule
    adaptive = None
    if arm in INFILL_ARMS:
        state = ThresholdState.from_threshold(start)
        augment = InfillAugment(state, p=p, jitter=0.05, feather=feather, variation=Variation(), normalize=NORMALIZE)
        module = InfillDataModule(
            DemoDataModule(data, None, batch_size), augment, store, transforms=v2.Compose(shared), recipe=recipe
        )
        adaptive = AdaptiveThreshold("val_acc", rule=ProportionalLaw(target, samples=len(data.val)))
        callbacks.append(adaptive)
    else:
        early, late = (extra[arm], []) if arm == "RandAugment" else ([], extra.get(arm, []))
        transform = v2.Compose([*early, *shared, *_to_input().transforms, *late])
        module = DemoDataModule(data, transform, batch_size)
    recorder = _Recorder(adaptive)
    started = time.perf_counter()
    model = fit_classifier(module, len(data.classes), epochs, [*callbacks, recorder])
    seconds = time.perf_counter() - started
    return ArmResult(
        arm=arm,
        seed=seed,
        tied=accuracy(model, data.tied),
        swapped=accuracy(model, data.swapped),
        threshold=adaptive.state.threshold if adaptive is not None and adaptive.state is not None else None,
        seconds=seconds,
        history=recorder.history,
    )


def fit_classifier(
    module: pl.LightningDataModule, classes: int, epochs: int, callbacks: Sequence[pl.Callback] = ()
) -> DemoClassifier:
    """An ordinary training on the CPU, without files or output."""
    model = DemoClassifier(classes)
    with warnings.catch_warnings():
        # Lightning's advice on more workers: pictures of this size are faster without.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*number of training batches.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning calls a deprecated torch function
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            callbacks=list(callbacks),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(model, datamodule=module)
    return model


class _Recorder(pl.Callback):
    """Validation accuracy and threshold of each epoch; comes after the callback that moves the threshold."""

    def __init__(self, adaptive: AdaptiveThreshold | None) -> None:
        self.adaptive = adaptive
        self.history: list[dict[str, float]] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        record = {"epoch": float(trainer.current_epoch), "val_acc": float(trainer.callback_metrics["val_acc"])}
        if self.adaptive is not None and self.adaptive.state is not None:
            record["threshold"] = self.adaptive.state.threshold
        self.history.append(record)


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """Accuracy in percent on plain, normalised pictures."""
    model.eval()
    correct = 0
    transform = _to_input()
    for start in range(0, len(split), 256):
        images = transform(split.images[start : start + 256])
        correct += int((model(images).argmax(dim=1) == split.labels[start : start + 256]).sum())
    return 100 * correct / len(split)
