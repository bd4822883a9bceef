"""Base of the backends that are networks: loaded with the first fill, run in batches of one size."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from infill_aug.infill.backend import (
    BackendUnavailableError,
    InfillBackend,
    ModelConfig,
    PartialInfillError,
    SampleContext,
)


class NetworkBackend(InfillBackend):
    """A backend with weights: loaded when the first batch is filled, and left behind when it is pickled or copied.

    In batches of different sizes a network's last bits differ, and cached bytes must not. So every batch has the same
    size, short ones padded with their last sample: ``max_batch`` on an accelerator, one sample on a CPU, which gains
    little from more. Fills are rounded to 8 bits.
    """

    # Ends the error of a load that fails.
    remedy: ClassVar[str] = "Check the weights that its options name; where memory is short, use another device."

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._network: tuple[torch.device, Any] | None = None

    @abstractmethod
    def load(self, device: torch.device) -> Any:
        """The network, frozen, on the device; whatever it raises ends the backend."""

    @abstractmethod
    def _fill(
        self, network: Any, image: Tensor, mask: Tensor, config: ModelConfig, samples: Sequence[SampleContext]
    ) -> Tensor:
        """``_generate`` for one batch of the fixed size; raises what that raises."""

    def network(self, device: torch.device) -> Any:
        """What ``load`` gave, kept until another device is asked for.

        Raises:
            BackendUnavailableError: it could not be loaded.
            ImportError: a library is missing.
        """
        if self._network is None or self._network[0] != device:
            self._network = None  # free the old one first
            try:
                # Weights made in inference mode could not be used outside of it.
                with torch.inference_mode(False):
                    self._network = (device, self.load(device))
            except (BackendUnavailableError, ImportError):
                raise
            except Exception as error:  # a smaller batch would not load any better
                raise BackendUnavailableError(
                    f"backend {self.name!r} cannot be loaded on {device}: {type(error).__name__}: {error} {self.remedy}"
                ) from error
        return self._network[1]

    def _generate(self, image: Tensor, mask: Tensor, config: ModelConfig, samples: Sequence[SampleContext]) -> Tensor:
        network = self.network(image.device)
        size = 1 if image.device.type == "cpu" else min(config.max_batch, self._fits or config.max_batch)
        fills, reasons = [], dict[int, str]()
        for start in range(0, len(image), size):
            stop = min(start + size, len(image))
            # Positions of a full batch; those behind the end repeat the last sample.
            places = [min(i, stop - 1) for i in range(start, start + size)]
            try:
                # Nor may they depend on the precision of whoever calls: each backend has its own.
                with torch.autocast(image.device.type, enabled=False):
                    fill = self._fill(network, image[places], mask[places], config, [samples[i] for i in places])
            except PartialInfillError as error:
                fill = error.images
                reasons |= {start + i: why for i, why in error.reasons.items() if start + i < stop}
            fills.append(fill[: stop - start])
        result = (torch.cat(fills).float() * 255).round() / 255
        if reasons:
            raise PartialInfillError(result, reasons)
        return result

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_network": None}
