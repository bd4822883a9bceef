"""The user's own data module, with infill augmentation on its training batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from itertools import islice
from os import PathLike
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
    default_convert,
)

from infill_aug.batch import InfillAugment
from infill_aug.cache.store import InfillStore
from infill_aug.datasets import InfillDataset, stack_samples
from infill_aug.prefetch import pin, prefetch
from infill_aug.samples import image_place, join_sample
from infill_aug.threshold import ThresholdState
from infill_aug.types import IMAGE, INFILL, MASK, TARGET

_CONTROL_BATCH = 64  # whatever the training's: what is measured must not depend on it
_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


class InfillDataModule(pl.LightningDataModule):
    """Wraps the training set of another data module and augments its batches on the device.

    The model's ``training_step`` gets what it always got: images and targets, in the inner module's own structure. A
    ``collate_fn`` of the inner module's own gets its samples as it always did, pairs as lists, with their images
    augmented and on the device: then pictures may differ in size, and targets be of any kind. Validation, test and
    prediction are the inner module's.

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
        control_split: pictures for ``AdaptiveThreshold`` to measure the model on, which the model must not train on.
            How many of the training set to hold out, always the same ones, 256 is enough; or a dataset of your own,
            whose pictures have infills in the store too. Not the test set: what the threshold follows has steered the
            training. 0: none.
        with_mask: hand on what was regenerated, ``(B, 1, H, W)`` bool, as the last part of the batch or under ``mask``:
            what ``KeepTokens`` needs.
        prefetch: on a GPU copy and augment the next training batch while the network trains on this one, see
            ``Prefetcher`` for what that means. It costs the memory of one batch more, a threshold set within an epoch
            comes a batch later, and the inner module's transfer hooks run before the step that is under way has ended;
            hence it is asked for. On a CPU all is done in order, with the same result.

    Raises:
        TypeError: the inner training loader is not a single ``DataLoader`` over a map-style dataset; or it draws its
            samples in its own way, so that none can be held out; or ``prefetch``
            cannot be right: with a loader that keeps a state or is not torch's own, with a strategy that moves batches
            its own way, a ``training_step`` that takes a ``dataloader_iter``, or a subclass that overrides the hooks.
        ValueError: ``control_split`` leaves nothing to train on; or there is none, and it is asked for.
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
        control_split: Any = 0,
        with_mask: bool = False,
        prefetch: bool = False,
    ) -> None:
        super().__init__()
        self.inner, self.augment, self.store = inner, augment, store
        self.transforms, self.protect, self.recipe = transforms, protect, recipe
        self.on_miss, self.image_key, self.prefetch = on_miss, image_key, prefetch
        self.control_split, self.with_mask = control_split, with_mask
        self._collate: Callable[[list[Any]], Any] | None = None
        self._control: Any = None
        self._place: str | tuple[int, int] | None = None

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
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            raise TypeError(
                f"InfillDataModule needs one DataLoader over a map-style dataset from {type(self.inner).__name__}."
                f"train_dataloader(), got {type(loader).__name__} over {type(getattr(loader, 'dataset', 0)).__name__}"
            )
        if isinstance(getattr(loader.dataset, "dataset", None), InfillDataset):
            raise TypeError(
                f"the training set is a {type(loader.dataset).__name__} of an InfillDataset, whose samples would be "
                "wrapped a second time; make the InfillDataset of the part, or pass the plain part"
            )
        dataset, sampler = self._hold_out(loader)
        wrapped = isinstance(dataset, InfillDataset)  # by the user, whose collate function knows its samples
        if not wrapped:
            dataset = self._with_infills(dataset, self.augment.threshold)
            if loader.collate_fn not in (default_collate, default_convert):
                self._collate = loader.collate_fn
        with isolate_rng():  # a look at one sample must not change what is drawn
            self._place = image_place(dataset.base[0], dataset.image_key)
        if not self.prefetch:
            return loader if wrapped else rebuild_loader(loader, dataset, sampler, collate=list)
        self._check_prefetch(loader)
        ahead = rebuild_loader(loader, dataset, sampler, _AheadLoader, None if wrapped else list)
        assert isinstance(ahead, _AheadLoader)
        ahead.start = self._ahead
        return ahead

    def control_dataloader(self) -> DataLoader[Any]:
        """This rank's share of the control split, as many pictures as the others have, each with its widest infill.

        Raises:
            ValueError: there is none.
        """
        if self._control is None:
            self.train_dataloader()
        if self._control is None:
            raise ValueError("there is no control split; hold pictures out with InfillDataModule(control_split=256)")
        dataset = self._control
        if not isinstance(dataset, InfillDataset):
            dataset = self._with_infills(dataset, None)
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        # In random order: the signal `swapped` takes backgrounds from within a batch.
        shuffled = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
        order = shuffled[rank : len(dataset) - len(dataset) % world : world].tolist()
        if self._collate is None:
            return DataLoader(Subset(dataset, order), batch_size=_CONTROL_BATCH)
        # Whose pictures may differ in size, and whose targets may fit nowhere else.
        return DataLoader(Subset(dataset, order), batch_size=1, collate_fn=stack_samples)

    @property
    def control_size(self) -> int:
        """How many pictures the control split has."""
        return self.control_split if isinstance(self.control_split, int) else len(self.control_split)

    def _with_infills(self, dataset: Any, threshold: float | ThresholdState | None) -> InfillDataset:
        return InfillDataset(
            dataset,
            self.store,
            transforms=self.transforms,
            threshold=threshold,
            protect=self.protect,
            recipe=self.recipe,
            on_miss=self.on_miss,
            image_key=self.image_key,
        )

    def _hold_out(self, loader: DataLoader[Any]) -> tuple[Any, Any]:
        """What is left to train on, and what draws from it."""
        dataset: Any = loader.dataset
        if not isinstance(self.control_split, int) or self.control_split == 0:
            self._control = self.control_split or None
            return dataset, loader.sampler
        if not 0 < self.control_split < len(dataset):
            raise ValueError(
                f"control_split must leave something of the {len(dataset)} training pictures, got {self.control_split}"
            )
        known = loader.batch_size is not None and type(loader.sampler) in (RandomSampler, SequentialSampler)
        if isinstance(dataset, InfillDataset) or not known:
            source = loader.sampler if loader.batch_size is not None else loader.batch_sampler
            raise TypeError(
                f"control_split={self.control_split} can't be held out of {type(dataset).__name__} drawn by "
                f"{type(source).__name__}; hold pictures out in your data module, and pass them as a dataset"
            )
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
        self._control = Subset(dataset, order[: self.control_split])
        left = Subset(dataset, sorted(order[self.control_split :]))
        if isinstance(loader.sampler, RandomSampler):
            drawn = {name: getattr(loader.sampler, name) for name in ("replacement", "generator")}
            return left, RandomSampler(left, num_samples=loader.sampler._num_samples, **drawn)
        return left, SequentialSampler(left)

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
        if isinstance(batch, dict) and _has_infill(batch):
            batch = self._restored(self._augmented(batch))
        elif self._collate is not None and _has_infill(batch):
            device = batch[0][IMAGE].device
            alike = len({sample[IMAGE].shape for sample in batch}) == 1
            groups = [batch] if alike else [[sample] for sample in batch]
            batch = self._collate([sample for group in groups for sample in self._augmented_samples(group)])
            # What that function has made is where it made it.
            batch = self.inner.transfer_batch_to_device(batch, device, dataloader_idx)
        return self.inner.on_after_batch_transfer(batch, dataloader_idx)

    def _augmented(self, batch: dict[str, Any]) -> dict[str, Any]:
        # A data module is no nn.Module: nothing else moves the augmentation to the device.
        self.augment = self.augment.to(batch[IMAGE].device)
        self.augment.train(bool(self.trainer and self.trainer.training))
        return self.augment(batch)

    def _augmented_samples(self, samples: list[dict[str, Any]]) -> list[Any]:
        """Samples of one size as the base dataset would have given them, with augmented images."""
        batch = stack_samples(samples)
        done = self._augmented(batch)
        return [
            self._restored({**sample, **{key: done[key][i] for key in (IMAGE, MASK) if key in done}})
            for i, sample in enumerate(samples)
        ]

    def _restored(self, augmented: dict[str, Any]) -> Any:
        """In the structure of the inner module's batches, or samples."""
        restored = join_sample(augmented[IMAGE], augmented[TARGET], self._place)
        if not self.with_mask or MASK not in augmented:
            return restored
        if isinstance(restored, dict):
            return {**restored, MASK: augmented[MASK]}
        return [*(restored if isinstance(restored, list) else [restored]), augmented[MASK]]

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
    """Whether this is a batch of ours: collated, or a list of samples for a collate function of the user's."""
    if isinstance(batch, list):
        return bool(batch) and all(isinstance(sample, dict) and _has_infill(sample) for sample in batch)
    return isinstance(batch, dict) and INFILL in batch and IMAGE in batch


def rebuild_loader(
    loader: DataLoader[Any],
    dataset: Any,
    sampler: Any = None,
    kind: type[DataLoader[Any]] = DataLoader,
    collate: Callable[[list[Any]], Any] | None = None,
) -> DataLoader[Any]:
    """A loader with the settings of ``loader`` over another dataset: of the same length, or with a sampler for it.

    Args:
        loader: whose settings are taken over.
        dataset: map-style.
        sampler: of ``dataset``; None: the loader's own.
        kind: class of the new loader.
        collate: in place of a collate function of the user's own; None keeps that. The default one stays.

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
        sampler = loader.sampler if sampler is None else sampler
        settings |= {"batch_size": loader.batch_size, "sampler": sampler, "drop_last": loader.drop_last}
    if loader.collate_fn not in (default_collate, default_convert):
        settings["collate_fn"] = loader.collate_fn if collate is None else collate
    return kind(dataset, **settings)
