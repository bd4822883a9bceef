"""One of several operations for each sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from infill_aug.checks import is_number
from infill_aug.variation.foreign import ForeignOperation, make_operation
from infill_aug.variation.operation import GROUPS, Operation, list_operations, strength_range

# How many operations one call draws: each touches a run of samples, at a random place of the batch. A sample's chances
# are those of a draw of its own, nothing is gathered, and few operations are launched.
_AT_ONCE = 4
# Samples that share an operation, where there are as many: fewer cost nearly as much.
_TOGETHER = 4
# Share of the samples that a group touches, where nobody says.
_SHARE = {"style": 0.25, "color": 0.8, "texture": 0.5}
# Weights of the operations where they are not 1: what is cheap and natural more often, what takes apart less.
_WEIGHTS = {"jitter": 4.0, "palette": 2.0, "greyscale": 0.5, "gamma": 0.5, "gaussian_noise": 2.0, "blur": 2.0}
_WEIGHTS |= {"median": 0.5, "patch_shuffle": 0.5, "tile": 0.5, "jpeg": 0.5, "oil": 0.5, "fourier_mix": 2.0}


class Change(NamedTuple):
    """What happens to the samples ``start`` to ``stop`` of a batch.

    Args:
        operation: place in the group's list.
        start: first sample.
        stop: one after the last.
        params: what was drawn for them.
    """

    operation: int
    start: int
    stop: int
    params: dict[str, Any]


class OperationChoice(nn.Module):
    """Operations of one kind, of which a sample gets one, or none.

    Args:
        group: ``"style"``, ``"color"`` or ``"texture"``: whose operations there are where none are named.
        operations: names or objects, as ``make_operation`` takes them, evenly; or a mapping from name to weight; an
            object with a weight is a pair. ``None``: all of the group, natural and cheap ones more often.
        strength: 0..1, the range that strengths are drawn from; a number s stands for s / 4 to s. Of operations of
            this package that come by name; others have their own.
        p: 0..1, share of the samples that get one; ``None``: a quarter for style, 0.8 for colour, half for texture.
        same_on_batch: one draw for the whole batch.

    Raises:
        ValueError: a group, a name, a strength, a weight or a probability that does not exist.

    Example:
        >>> choice = OperationChoice("color", {"jitter": 3, "greyscale": 1}, strength=0.5)
        >>> len(choice.operations), choice.p
        (2, 0.8)
    """

    def __init__(
        self,
        group: str,
        operations: Iterable[Any] | Mapping[str, float] | None = None,
        strength: float | Sequence[float] = 0.5,
        p: float | None = None,
        same_on_batch: bool = False,
    ) -> None:
        super().__init__()
        if group not in GROUPS:
            raise ValueError(f"group must be one of {GROUPS}, got {group!r}")
        if p is not None and not is_number(p, 0, 1):
            raise ValueError(f"p must lie in 0..1, got {p!r}")
        self.strength = strength_range(strength)
        self.group, self.same_on_batch = group, same_on_batch
        self.p = float(_SHARE[group] if p is None else p)
        if operations is None:
            operations = {name: _WEIGHTS.get(name, 1.0) for name in list_operations(group)}
        named = _weighted(operations)
        for what, weight in named:
            if not is_number(weight, 0):
                raise ValueError(f"the weight of {what!r} must be a number of 0 or more, got {weight!r}")
        named = [(what, weight) for what, weight in named if weight > 0]
        if not named:
            raise ValueError(f"{group} has no operation with a weight above 0; set its p to 0 to leave it out")
        self.operations = nn.ModuleList(make_operation(what, self.strength) for what, _ in named)
        self.weights = tuple(float(weight) for _, weight in named)
        if same_on_batch:
            for operation in self.operations:
                if isinstance(operation, ForeignOperation) and operation.batched:
                    operation.module.same_on_batch = True  # kornia draws for all of them itself

    @property
    def idle(self) -> bool:
        """Whether nothing can come of it."""
        own = all(isinstance(each, Operation) and each.strength[1] == 0 for each in self.operations)
        return self.p == 0 or own

    def make_params(self, count: int, height: int, width: int, device: torch.device) -> list[Change]:
        """Draw what happens to a batch.

        Which operations, and to how many samples, comes from the CPU's generator, since shapes must be known there
        without waiting for the device; everything else from the device's.

        Args:
            count: samples.
            height: of the pictures, pixels.
            width: of the pictures, pixels.
            device: of the pictures.
        """
        if self.same_on_batch:
            touched = count if float(torch.rand(())) < self.p else 0
        else:
            touched = int((torch.rand(count) < self.p).sum())
        if touched == 0 or count == 0:
            return []
        first = int(torch.randint(count, ())) if touched < count else 0
        parts = 1 if self.same_on_batch else min(_AT_ONCE, -(-touched // _TOGETHER))
        weights = torch.tensor(self.weights)
        if count == 1:
            # Alone a sample has no other to mix with.
            able = torch.tensor([not each.needs_others for each in self.operations])
            weights = weights * able if able.any() else weights
        which = torch.multinomial(weights, parts, replacement=True).tolist()
        changes = []
        for part, index in enumerate(which):
            start, stop = first + part * touched // parts, first + (part + 1) * touched // parts
            # A run that goes over the end goes on at the beginning: every place is as likely as every other.
            for low, high in ((start, min(stop, count)), (max(start, count) - count, stop - count)):
                if low < high:
                    params = self._draw(self.operations[index], high - low, height, width, device)
                    changes.append(Change(index, low, high, params))
        return changes

    def _draw(self, operation: Any, count: int, height: int, width: int, device: torch.device) -> dict[str, Any]:
        low, high = operation.strength if isinstance(operation, Operation) else self.strength
        # Kornia's parameters are not all one a sample.
        one = self.same_on_batch and not getattr(operation, "batched", False)
        strength = low + (high - low) * torch.rand(1 if one else count, device=device)
        params: dict[str, Any] = operation.draw(strength, height, width)
        return {name: value.expand(count, *value.shape[1:]) for name, value in params.items()} if one else params

    def extra_repr(self) -> str:
        """What is printed of this module."""
        return f"group={self.group!r}, strength={self.strength}, p={self.p}"


def _weighted(operations: Iterable[Any] | Mapping[str, float]) -> list[tuple[Any, Any]]:
    if isinstance(operations, Mapping):
        return list(operations.items())
    if isinstance(operations, str):
        operations = [name.strip() for name in operations.split(",")]
    operations = list(operations)
    pairs = (isinstance(each, Sequence) and not isinstance(each, str) and len(each) == 2 for each in operations)
    return [(each[0], each[1]) if pair else (each, 1.0) for each, pair in zip(operations, pairs, strict=True)]
