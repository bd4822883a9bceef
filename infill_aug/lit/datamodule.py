"""The user's own data module, with infill augmentation on its training batches."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader, default_collate, default_convert

from infill_aug.batch import InfillAugment
from infill_aug.cache.store import InfillStore
from infill_aug.datasets import InfillDataset, restore_structure
from infill_aug.types import IMAGE, INFILL, TARGET


class InfillDataModule(pl.LightningDataModule):
    """Wraps the training set of another data module and augments its batches on the device.

    The model's ``training_step`` gets what it always got: ``(images, targets)``, or a mapping with ``image``.
    Validation, test and prediction are the inner module's, untouched.

    Args:
        inner: the user's data module. Its training set gives images before any transform, in pairs or mappings; its
            training loader is rebuilt with the same settings around ``InfillDataset``.
        augment: the batch step, which normalises last; ``AdaptiveThreshold`` finds its ``ThresholdState`` here.
        store: an ``InfillStore`` or the folder of one.
        transforms: v2 transforms for the training samples: geometric, image, infill and confidence in lockstep.
        protect: ``"boxes"`` or ``"masks"``: labelled objects that are never regenerated.
        recipe: fingerprint of the recipe to read; by default the one that was built last.
        on_miss: ``"error"``, or ``"original"`` to train on images without infill as they are.
        image_key: key or position of the image in a sample of the inner training set.

    Raises:
        TypeError: the inner training loader is not a single ``DataLoader`` over a map-style dataset.
        InfillMissError: a training image has no infill in the store, and ``on_miss`` is ``"error"``.
    """

    def __init__(
        self,
        inner: pl.LightningDataModule,
        augment: InfillAugment,
        store: InfillStore | str | PathLike[str],
        *,
        transforms: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        protect: str | None = None,
        recipe: str | None = None,
        on_miss: str = "error",
        image_key: str | int | None = None,
    ) -> None:
        super().__init__()
        self.inner, self.augment, self.store = inner, augment, store
        self.transforms, self.protect, self.recipe = transforms, protect, recipe
        self.on_miss, self.image_key = on_miss, image_key

    def prepare_data(self) -> None:
        """The inner module's."""
        self.inner.prepare_data()

    def setup(self, stage: str) -> None:
        """The inner module's, which is given the trainer first."""
        self.inner.trainer = self.trainer
        self.inner.setup(stage)

    def teardown(self, stage: str) -> None:
        """The inner module's."""
        self.inner.teardown(stage)

    def train_dataloader(self) -> DataLoader[Any]:
        """The inner module's training loader around ``InfillDataset``."""
        loader = self.inner.train_dataloader()
        if not isinstance(loader, DataLoader) or not hasattr(loader.dataset, "__getitem__"):
            raise TypeError(
                f"InfillDataModule needs one DataLoader over a map-style dataset from {type(self.inner).__name__}."
                f"train_dataloader(), got {type(loader).__name__}"
            )
        if isinstance(loader.dataset, InfillDataset):
            return loader
        dataset = InfillDataset(
            loader.dataset,
            self.store,
            transforms=self.transforms,
            threshold=self.augment.threshold,
            protect=self.protect,
            recipe=self.recipe,
            on_miss=self.on_miss,
            image_key=self.image_key,
        )
        return rebuild_loader(loader, dataset)

    def val_dataloader(self) -> Any:
        """The inner module's."""
        return self.inner.val_dataloader()

    def test_dataloader(self) -> Any:
        """The inner module's."""
        return self.inner.test_dataloader()

    def predict_dataloader(self) -> Any:
        """The inner module's."""
        return self.inner.predict_dataloader()

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """The inner module's."""
        return self.inner.transfer_batch_to_device(batch, device, dataloader_idx)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """The inner module's, on its own batches; a batch with infills goes to the device as it is."""
        return batch if _has_infill(batch) else self.inner.on_before_batch_transfer(batch, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment a training batch, give it the inner module's structure, and hand it to the inner module."""
        if _has_infill(batch):
            # A data module is no nn.Module: nothing else moves the augmentation to the device.
            self.augment = self.augment.to(batch[IMAGE].device)
            self.augment.train(bool(self.trainer and self.trainer.training))
            augmented = self.augment(batch)
            batch = restore_structure(augmented[IMAGE], augmented[TARGET])
        return self.inner.on_after_batch_transfer(batch, dataloader_idx)

    def state_dict(self) -> dict[str, Any]:
        """The inner module's; the threshold is kept by ``AdaptiveThreshold``."""
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inner module's."""
        self.inner.load_state_dict(state_dict)


def _has_infill(batch: Any) -> bool:
    return isinstance(batch, dict) and INFILL in batch and IMAGE in batch


def rebuild_loader(loader: DataLoader[Any], dataset: Any) -> DataLoader[Any]:
    """A loader with the settings of ``loader`` over another dataset of the same length.

    Example:
        >>> loader = rebuild_loader(DataLoader([1, 2, 3], batch_size=2, drop_last=True), ["a", "b", "c"])
        >>> list(loader)
        [['a', 'b']]
    """
    settings: dict[str, Any] = {
        "num_workers": loader.num_workers,
        "pin_memory": loader.pin_memory,
        "timeout": loader.timeout,
        "worker_init_fn": loader.worker_init_fn,
        "multiprocessing_context": loader.multiprocessing_context,
        "generator": loader.generator,
        "persistent_workers": loader.persistent_workers,
        "pin_memory_device": loader.pin_memory_device,
    }
    if loader.num_workers:
        settings["prefetch_factor"] = loader.prefetch_factor
    # A custom batch sampler excludes batch_size and friends; the collate function stays only where it is the user's,
    # since the default one is picked by the mode of batching.
    if loader.batch_size is None and loader.batch_sampler is not None:
        settings["batch_sampler"] = loader.batch_sampler
    else:
        settings |= {"batch_size": loader.batch_size, "sampler": loader.sampler, "drop_last": loader.drop_last}
    if loader.collate_fn not in (default_collate, default_convert):
        settings["collate_fn"] = loader.collate_fn
    return DataLoader(dataset, **settings)
