"""A drop of performance on purpose: to see that the threshold answers to it."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn


class PlantedDrop(pl.Callback):
    """Forget what the last layers have learned, once, just before a validation.

    Args:
        epoch: whose validation sees the drop, from 0.
        layers: how many of the last modules that have parameters of their own are set back.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> before = layer.weight.clone()
        >>> PlantedDrop(epoch=3).forget(layer)
        >>> torch.equal(layer.weight, before)
        False
    """

    def __init__(self, epoch: int, layers: int = 1) -> None:
        super().__init__()
        for name, value, least in (("epoch", epoch, 0), ("layers", layers, 1)):
            if value < least:
                raise ValueError(f"{name} must be {least} or more, got {value}")
        self.epoch, self.layers = epoch, layers
        self._done = False

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget, at the epoch."""
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if fitting and trainer.current_epoch == self.epoch and not self._done:
            self._done = True
            self.forget(pl_module)

    def forget(self, model: torch.nn.Module) -> None:
        """Set the last layers back to random weights, the same on every rank."""
        own = [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))]
        with torch.random.fork_rng():
            torch.manual_seed(self.epoch)
            for module in own[-self.layers :]:
                reset: Any = module.reset_parameters  # every layer of torch with parameters has it
                reset()
