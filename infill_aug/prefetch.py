"""The next batch is copied and augmented while the network trains on this one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

Item = TypeVar("Item")


class Prefetcher:
    """Batches of a loader on the device and augmented; on CUDA the next one while this one is in use.

    Convention:
        * on CUDA one batch is ahead: copied from pinned memory and augmented on a stream of its own, which the training
          waits for on the device only. Elsewhere the same work is done in order, one batch at a time
        * tensors within dictionaries, lists and tuples are copied; other objects stay where they are
        * loader and augmentation draw from torch's generators in the order that they have without a ``Prefetcher``: a
          seed gives the same batches. Only what draws in between, such as dropout or a validation within the epoch,
          does so after the batch ahead on CUDA; the training is then another, though the same in every run
        * a batch ahead has read the ``ThresholdState`` a step early: one that is set within an epoch reaches the batch
          after the next. Nothing is fetched across the end of an epoch: the first batch of the next sees the new one
        * an error of the loader or of the augmentation is raised at the batch that it belongs to
        * after a ``break`` the batch ahead is dropped; its draws were made
        * not for an augmentation that is compiled with CUDA graphs (``mode="reduce-overhead"``): the batch ahead would
          be written over the one in use

    Args:
        loader: iterable of batches, a ``DataLoader`` as a rule. With ``pin_memory=True`` its own thread pins them.
        augment: the batch step, an ``InfillAugment`` or anything callable on a batch; a module is moved to ``device``.
        device: where batches go.

    Raises:
        TypeError: ``loader`` cannot be iterated, or ``augment`` cannot be called.
        ValueError: ``device`` is not there.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> loader = DataLoader([{"x": i} for i in range(4)], batch_size=2)
        >>> batches = Prefetcher(loader, lambda batch: batch["x"] * 10, "cpu")
        >>> len(batches), list(batches)
        (2, [tensor([ 0, 10]), tensor([20, 30])])
    """

    def __init__(self, loader: Iterable[Any], augment: Callable[[Any], Any], device: torch.device | str) -> None:
        if not hasattr(loader, "__iter__"):
            raise TypeError(f"loader must be an iterable of batches, a DataLoader say, got {type(loader).__name__}")
        if not callable(augment):
            raise TypeError(f"augment must be callable on a batch, an InfillAugment say, got {type(augment).__name__}")
        self.loader, self.augment, self.device = loader, augment, torch.device(device)
        if self.device.type == "cuda":
            if (self.device.index or 0) >= torch.cuda.device_count():
                raise ValueError(f"there is no {device}: torch sees {torch.cuda.device_count()} CUDA GPUs; try 'cpu'")
            if self.device.index is None:
                self.device = torch.device("cuda", torch.cuda.current_device())
        if isinstance(augment, nn.Module):
            augment.to(self.device)

    def __len__(self) -> int:
        """Batches of the loader."""
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        """One pass over the loader."""
        # The loader's workers start here and not at the first batch, as they do without a Prefetcher.
        return prefetch(iter(self.loader), self._prepare, self.device, self.augment)

    def _prepare(self, batch: Any) -> Any:
        # Only to a GPU without waiting: what is copied to the CPU could be read before it is there.
        free = self.device.type == "cuda"
        pinned = pin(batch, self.device)
        return self.augment(tree_map_only(torch.Tensor, lambda x: x.to(self.device, non_blocking=free), pinned))


def prefetch(
    batches: Iterator[Any],
    prepare: Callable[[Any], Any],
    device: torch.device,
    augment: Any = None,
    *,
    ahead: bool | None = None,
) -> Iterator[Any]:
    """Yield ``prepare(batch)`` of each batch, one ahead of the one in use and on a side stream.

    Args:
        batches: of the loader.
        prepare: copies a batch to the device and augments it.
        device: of the training.
        augment: where it has a ``masked_share``, that is kept in step with the batch in use.
        ahead: look ahead at all; by default on CUDA, the only device with streams that run side by side.
    """
    if not (device.type == "cuda" if ahead is None else ahead):
        yield from map(prepare, batches)
        return
    streams, side = torch.get_device_module(device), _side_stream(device)

    def start(batch: Any) -> tuple[Any, Any, Any]:
        # The batch ahead uses memory, weights and, where the loader gives tensors of the device, data of work that the
        # training has issued so far. It goes on from there, and still runs beside the step that is issued next.
        side.wait_stream(streams.current_stream(device))
        with streams.stream(side):
            _record(batch, side)
            prepared = prepare(batch)
            return prepared, getattr(augment, "masked_share", None), side.record_event()

    def hand_over(prepared: Any, share: Any, done: Any) -> Any:
        current = streams.current_stream(device)
        current.wait_event(done)
        _record((prepared, share), current)
        if share is not None:
            augment.masked_share = share
        return prepared

    for started in look_ahead(map(start, batches)):
        yield hand_over(*started)
        del started  # before the next is started, so that its memory can be used again


def look_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, each handed out when the next has been taken; an error waits until it is its item's turn.

    Example:
        >>> list(look_ahead(iter([1, 2, 3])))
        [1, 2, 3]
    """
    item, error = _take(items)
    while item:
        following, error = _take(items)
        yield item.pop()
        item = following
    if error is not None:
        raise error


def pin(batch: Any, device: torch.device) -> Any:
    """The batch in pinned memory where it goes to a GPU, which can copy from there only without being waited for."""
    if device.type != "cuda":
        return batch
    return tree_map_only(torch.Tensor, lambda x: x.pin_memory() if x.device.type == "cpu" else x, batch)


def _take(items: Iterator[Item]) -> tuple[list[Item], Exception | None]:
    """The next item in a list, which is empty at the end and at an error."""
    try:
        return [next(items)], None
    except StopIteration:
        return [], None
    except Exception as error:
        return [], error


def _record(batch: Any, stream: Any) -> None:
    """Keep the memory of a batch from being used again before what was issued on ``stream`` is done with it."""
    for tensor in tree_leaves(batch):
        if isinstance(tensor, torch.Tensor) and tensor.is_cuda:
            tensor.record_stream(stream)


@functools.cache
def _side_stream(device: torch.device) -> Any:
    """One for each device: memory is kept by stream, and one for each epoch would hold on to as much again."""
    return torch.get_device_module(device).Stream(device)
