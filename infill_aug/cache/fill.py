"""Filling a batch for a build: tries, the gate, and the fallback for what is left."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from infill_aug.descriptor import TaskDescriptor
from infill_aug.infill.backend import BackendUnavailableError, InfillBackend, PartialInfillError, SampleContext
from infill_aug.infill.gate import QualityGate, kind_of
from infill_aug.key import seed_from


class Filled(NamedTuple):
    """What became of a batch.

    Args:
        fills: ``(B, 3, H, W)`` ``uint8`` on the CPU.
        failed: what went wrong, by position.
        fell_back: why the fallback filled it, by position.
        rejected: position and reason of every fill that the gate turned down, in the order of the tries.
    """

    fills: Tensor
    failed: dict[int, str]
    fell_back: dict[int, str]
    rejected: list[tuple[int, str]]


class Filler:
    """A backend, the gate that judges its fills, and the fallback for what they give up.

    Args:
        backend: fills.
        descriptor: what to fill with; its options are the backend's.
        device: of the backend's tensors.
        gate: judges; ``None`` takes every fill.
        tries: how often a fill is tried that the gate turns down, 1 or more.
        fallback: fills what is left, unjudged.
    """

    def __init__(
        self, backend: InfillBackend, descriptor: TaskDescriptor, device: torch.device,
        gate: QualityGate | None = None, tries: int = 1, fallback: InfillBackend | None = None,
    ) -> None:  # fmt: skip
        self.backend, self.descriptor, self.device = backend, descriptor, device
        self.gate, self.tries, self.fallback = gate, tries, fallback
        self._gone = False  # the backend can fill nothing more

    def __call__(
        self, pictures: Sequence[Tensor], holes: Sequence[Tensor], contexts: Sequence[SampleContext]
    ) -> Filled:
        """Fill a batch.

        Args:
            pictures: ``(3, H, W)`` ``uint8`` each, of one size.
            holes: ``(1, H, W)`` bool each; true = fill.
            contexts: one for each picture.

        Raises:
            BackendUnavailableError: nothing can be filled, and there is no fallback that could.
        """
        images = torch.stack(list(pictures)).to(self.device).float() / 255
        masks = torch.stack(list(holes)).to(self.device)
        result, reasons, rejected = images.clone(), dict[int, str](), list[tuple[int, str]]()
        waiting = list(range(len(images)))
        for attempt in range(self.tries):
            asked = [_again(contexts[i], attempt) for i in waiting]
            fills, failed = self._ask(self.backend, images[waiting], masks[waiting], asked)
            verdicts: list[str | None] = [None] * len(waiting)
            if self.gate is not None:
                # What is stored is judged: 8 bits.
                labels = [context.label for context in asked]
                verdicts = self.gate(images[waiting], (fills * 255).round() / 255, masks[waiting], labels)
            turned_down = []
            for place, i in enumerate(waiting):
                # A backend looks at its fills too, and a fault of a fill is a fault, whoever finds it.
                verdict = failed[place] if place in failed else verdicts[place]
                if verdict is None:
                    reasons.pop(i, None)
                    result[i] = fills[place]
                elif self.gate is not None and kind_of(verdict) is not None:
                    rejected.append((i, verdict))
                    reasons[i] = f"rejected {attempt + 1} times, at last {verdict}"
                    turned_down.append(i)
                else:
                    reasons[i] = verdict
            waiting = turned_down
            if not waiting:
                break
        fell_back: dict[int, str] = {}
        if reasons and self.fallback is not None:
            left = sorted(reasons)
            fills, failed = self._ask(self.fallback, images[left], masks[left], [contexts[i] for i in left])
            for place, i in enumerate(left):
                if place in failed:
                    reasons[i] += f"; the fallback {self.fallback.name!r}: {failed[place]}"
                else:
                    fell_back[i] = reasons.pop(i)
                    result[i] = fills[place]
        return Filled((result * 255).round().to(torch.uint8).cpu(), reasons, fell_back, rejected)

    def _ask(
        self, backend: InfillBackend, images: Tensor, masks: Tensor, contexts: Sequence[SampleContext]
    ) -> tuple[Tensor, Mapping[int, str]]:
        """Fills of a backend, and what went wrong by position; everything, where it is gone and there is a fallback."""
        descriptor = self.descriptor
        if backend is self.fallback:
            descriptor = without_options(descriptor)
        elif self._gone:
            return images, dict.fromkeys(range(len(images)), f"{backend.name} is unavailable")
        try:
            return backend.generate_infill(images.masked_fill(masks, 0.0), masks, descriptor, samples=contexts), {}
        except PartialInfillError as error:
            return error.images, error.reasons
        except (BackendUnavailableError, ImportError) as error:
            if self.fallback is None or backend is self.fallback:
                raise BackendUnavailableError(
                    f"{error} (what was stored stays stored: the same build goes on from there"
                    + (")" if self.fallback else "; one with fallback='push_pull' fills the rest without it)")
                ) from error
            self._gone = True
            warnings.warn(
                f"{backend.name} is unavailable, the fallback {self.fallback.name!r} fills the rest: {error}",
                stacklevel=2,
            )
            return images, dict.fromkeys(range(len(images)), f"{backend.name} is unavailable: {error}")


def without_options(descriptor: TaskDescriptor) -> TaskDescriptor:
    """The descriptor as a fallback reads it: the options in it are the backend's."""
    return dataclasses.replace(descriptor, options={})


def _again(context: SampleContext, attempt: int) -> SampleContext:
    """The context of the next try: its own seed, the same whatever the batch."""
    return dataclasses.replace(context, seed=seed_from(context.seed, "again", attempt)) if attempt else context
