"""The user's own data module, with infill augmentation on its training batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from itertools import islice
from os import PathLike
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import Strategy
from torch.utils.data import DataLoader, default_collate, default_convert

from infill_aug.batch import InfillAugment
from infill_aug.cache.store import InfillStore
from infill_aug.datasets import InfillDataset, restore_structure
from infill_aug.prefetch import pin, prefetch
from infill_aug.types import IMAGE, INFILL, TARGET

_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


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
        prefetch: on a GPU copy and augment the next training batch while the network trains on this one, see
            ``Prefetcher`` for what that means. It costs the memory of one batch more, a threshold set within an epoch
            comes a batch later, and the inner module's transfer hooks run before the step that is under way has ended;
            hence it is asked for. On a CPU all is done in order, with the same result.

    Raises:
        TypeError: the inner training loader is not a single ``DataLoader`` over a map-style dataset; or ``prefetch``
            cannot be right: with a loader that keeps a state or is not torch's own, with a strategy that moves batches
            its own way, a ``training_step`` that takes a ``dataloader_iter``, or a subclass that overrides the hooks.
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
        prefetch: bool = False,
    ) -> None:
        super().__init__()
        self.inner, self.augment, self.store = inner, augment, store
        self.transforms, self.protect, self.recipe = transforms, protect, recipe
        self.on_miss, self.image_key, self.prefetch = on_miss, image_key, prefetch

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
        dataset: Any = loader.dataset
        if not isinstance(dataset, InfillDataset):
            dataset = InfillDataset(
                dataset,
                self.store,
                transforms=self.transforms,
                threshold=self.augment.threshold,
                protect=self.protect,
                recipe=self.recipe,
                on_miss=self.on_miss,
                image_key=self.image_key,
            )
        elif not self.prefetch:
            return loader
        if not self.prefetch:
            return rebuild_loader(loader, dataset)
        self._check_prefetch(loader)
        ahead = rebuild_loader(loader, dataset, _AheadLoader)
        assert isinstance(ahead, _AheadLoader)
        ahead.start = self._ahead
        return ahead

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
        """The inner module's; a batch that came ahead is there."""
        if isinstance(batch, _Ready):
            return batch
        return self.inner.transfer_batch_to_device(batch, device, dataloader_idx)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """The inner module's, on its own batches; a batch with infills goes to the device as it is."""
        if _has_infill(batch) or isinstance(batch, _Ready):
            return batch
        return self.inner.on_before_batch_transfer(batch, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment a training batch, give it the inner module's structure, and hand it to the inner module."""
        if isinstance(batch, _Ready):  # has been here
            return batch.batch
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

    def _ahead(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Do to each batch what Lightning's loop would, before it asks for it."""
        trainer = self.trainer
        if trainer is None or not trainer.training:  # iterated by hand
            yield from batches
            return
        device = trainer.strategy.root_device

        def prepare(batch: Any) -> Any:
            batch = trainer.precision_plugin.convert_input(batch)
            batch = self.on_before_batch_transfer(batch, 0)
            batch = self.transfer_batch_to_device(pin(batch, device), device, 0)
            return self.on_after_batch_transfer(batch, 0)

        # None beyond the last one that the loop asks for in this epoch, which counts from where a training was resumed:
        # nothing else would make its draws.
        left = trainer.num_training_batches - (trainer.fit_loop.batch_idx + 1)
        batches = islice(batches, None if left == float("inf") else int(left))
        yield from map(_Ready, prefetch(batches, prepare, device, self.augment))

    def _check_prefetch(self, loader: DataLoader[Any]) -> None:
        """Refuse what would lose, repeat or leave out work."""
        strategy = getattr(self.trainer, "strategy", None)
        step = getattr(getattr(self.trainer, "lightning_module", None), "training_step", None)
        own = [name for name in _HOOKS if getattr(type(self), name) is not getattr(InfillDataModule, name)]
        why = None
        if hasattr(loader, "state_dict"):
            why = f"{type(loader).__name__} keeps a state, which would count the batch ahead as trained on"
        elif isinstance(loader.dataset, InfillDataset) and type(loader) is not DataLoader:
            why = f"{type(loader).__name__} is not torch's DataLoader, and its own way of iterating would be lost"
        elif own:
            why = f"{type(self).__name__} overrides {own}, which would run twice; move them to the inner data module"
        elif step is not None and "dataloader_iter" in inspect.signature(step).parameters:
            why = "training_step takes a dataloader_iter and moves batches itself; it can use infill_aug.Prefetcher"
        elif strategy is not None and any(
            getattr(type(strategy), name) is not getattr(Strategy, name)
            for name in ("batch_to_device", "process_dataloader")
        ):
            why = f"{type(strategy).__name__} moves batches in its own way"
        if why is not None:
            raise TypeError(f"prefetch=True cannot be right here: {why}. Or pass prefetch=False")


class _Ready:
    """A batch that has been through all hooks; nothing on its way to the training step looks inside."""

    __slots__ = ("batch",)

    def __init__(self, batch: Any) -> None:
        self.batch = batch


class _AheadLoader(DataLoader[Any]):
    """A ``DataLoader`` in all that Lightning does to it, new samplers included, whose batches come ready.

    It has no ``__init__`` and gets ``start`` as an attribute, which Lightning gives to the loaders that it makes anew.
    """

    start: Callable[[Iterator[Any]], Iterator[Any]]

    def __iter__(self) -> Any:
        return self.start(super().__iter__())


def _has_infill(batch: Any) -> bool:
    return isinstance(batch, dict) and INFILL in batch and IMAGE in batch


def rebuild_loader(loader: DataLoader[Any], dataset: Any, kind: type[DataLoader[Any]] = DataLoader) -> DataLoader[Any]:
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
    return kind(dataset, **settings)
