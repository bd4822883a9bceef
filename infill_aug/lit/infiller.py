"""Training of the small infiller: a Lightning module, and one call that trains and averages."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.nn.functional as nnf
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler
from torchvision.utils import save_image

from infill_aug.functional.masks import erode
from infill_aug.infill.infiller_training import (
    Discriminator,
    InfillerBatch,
    InfillerSet,
    draw_batch,
    feature_loss,
    hinge,
    patch_weights,
    reconstruction_loss,
)
from infill_aug.infill.pipeline import InfillPipeline, predict
from infill_aug.lit.averaging import averaged

# Share of the steps that learn to reconstruct alone, before a discriminator has its say, and of those that slow down.
_WARM, _DECAY = 0.06, 0.3
_DECAY_OF_AVERAGE = 0.998
# Weights of the adversarial loss and of the discriminator's features.
_ADVERSARIAL, _FEATURES = 0.2, 0.6
# Weight of what a donor has against what a picture has.
_DONOR = 0.5


class InfillerModule(pl.LightningModule):
    """Trains a pipeline's network to see the clean picture in a noisy hole, and a discriminator against it.

    The network learns at all noise levels, from the picture itself, from a donor's background and from a blurred copy,
    so that a few steps do from noise, from a donor, and to add detail to a coarse fill. Its loss is that of adversarial
    diffusion distillation (Sauer et al., 2023) without a teacher: reconstruction, a discriminator on the predicted
    clean picture, and the distance of its features.

    Args:
        pipeline: what is trained, in place.
        steps: optimiser steps of the whole training.
        learning_rate: of AdamW, both networks'; linear decay over the last 30 %.
        width: channels of the discriminator's first level.
    """

    def __init__(self, pipeline: InfillPipeline, steps: int, learning_rate: float = 4e-4, width: int = 48) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.pipeline = (pipeline,)  # in a tuple: no submodule of its own
        self.unet, self.discriminator = pipeline.unet, Discriminator(width)
        self.steps, self.learning_rate, self.size = steps, learning_rate, pipeline.size
        self.average = averaged(self.unet, _DECAY_OF_AVERAGE)
        self._draw = torch.Generator().manual_seed(0)

    @property
    def averaged(self) -> InfillPipeline:
        """The pipeline with averaged weights."""
        return InfillPipeline(cast(Any, self.average.module), self.pipeline[0].scheduler)

    @property
    def done(self) -> int:
        """Steps so far, also of earlier runs; Lightning counts each optimiser's."""
        return int(self.average.n_averaged)

    def on_fit_start(self) -> None:
        """Another seed on every rank and after every resume; the same in the same run."""
        self._draw.manual_seed(torch.initial_seed() + 1_000_000 * self.global_rank + self.done)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """One step of the discriminator and one of the network."""
        images, objects, plates = batch
        drawn = draw_batch(images, objects, plates, self.size, self._draw)
        ahead, behind = cast(Any, self.optimizers())
        done = self.done / self.steps
        shares = self.pipeline[0].scheduler.alphas_cumprod.to(drawn.image)[drawn.times]
        alpha = shares[:, None, None, None]
        noise = torch.randn(drawn.image.shape, generator=self._draw).to(drawn.image)
        state = alpha.sqrt() * drawn.start + (1 - alpha).sqrt() * noise
        clean = predict(self.unet, state, drawn.image, drawn.mask, drawn.times, shares)
        fill = torch.where(drawn.mask, clean, drawn.image)
        taught = drawn.taught.float()
        # A donor is to stay what it is, but for its rim, which has to go with what is visible.
        inner = erode(drawn.mask, max(1, self.size // 16)).float() * _DONOR
        wanted = torch.where(drawn.paired[:, None, None, None], drawn.image, drawn.start)
        where = torch.where(drawn.paired[:, None, None, None], taught, inner)
        if done < _WARM:
            loss = reconstruction_loss(clean, wanted, where, 1.0, 1.0)
            self._step(ahead, loss, self.unet)
        else:
            loss = self._against(drawn, fill, taught, behind)
            self._step(ahead, loss + reconstruction_loss(clean, wanted, where), self.unet)
        self.log("reconstruction", reconstruction_loss(clean.detach(), wanted, where, 1.0, 0.0), prog_bar=True)
        self.average.update_parameters(self.unet)

    def _against(self, drawn: InfillerBatch, fill: Tensor, taught: Tensor, behind: Any) -> Tensor:
        """Train the discriminator, and give the loss that it means for the network."""
        mask = drawn.mask.float()
        change = _tint(len(fill), self._draw).to(fill)
        real_image = drawn.image * change[:, :1] + change[:, 1:]
        fake_image = fill * change[:, :1] + change[:, 1:]
        both, _ = self.discriminator(torch.cat([real_image, fake_image.detach()]), torch.cat([mask, mask]))
        real, fake = both.float().chunk(2)
        weights = patch_weights(taught, real)
        loss = hinge(real, weights, True) + hinge(fake, weights, False)
        self._step(behind, loss, self.discriminator)
        self.log("discriminator", loss.detach(), prog_bar=True)
        self.discriminator.requires_grad_(False)
        with torch.no_grad():
            _, wanted = self.discriminator(real_image, mask)
        score, features = self.discriminator(fake_image, mask)
        self.discriminator.requires_grad_(True)
        adversarial = -(score.float() * weights).sum() / weights.sum().clamp(min=1)
        return _ADVERSARIAL * adversarial + _FEATURES * feature_loss(features, wanted, drawn.paired)

    def _step(self, optimizer: Any, loss: Tensor, network: nn.Module) -> None:
        # Rising over the first steps, falling to nothing over the last.
        rate = min(1.0, (self.done + 1) / 100, (1 - self.done / self.steps) / _DECAY)
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate * max(rate, 1e-3)
        optimizer.zero_grad()
        self.manual_backward(loss)
        nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimizer.step()

    def configure_optimizers(self) -> Any:
        """AdamW for each network."""
        return [
            torch.optim.AdamW(self.unet.parameters(), self.learning_rate, betas=(0.8, 0.99), weight_decay=1e-2),
            torch.optim.AdamW(self.discriminator.parameters(), self.learning_rate, betas=(0.0, 0.99)),
        ]


def _tint(count: int, generator: torch.Generator) -> Tensor:
    """A gain and three offsets each, ``(B, 4, 1, 1)``: few pictures then last longer (Zhao et al., 2020)."""
    gain = 1 + 0.3 * (torch.rand(count, 1, 1, 1, generator=generator) - 0.5)
    shift = 0.3 * (torch.rand(count, 3, 1, 1, generator=generator) - 0.5)
    return torch.cat([gain, shift], dim=1)


class SampleGrids(pl.Callback):
    """Saves fills of held-out pictures as PNG: the picture, its hole, from noise, from a donor.

    Args:
        folder: where to.
        held: pictures that are not trained on.
        every: steps between two grids.
        count: pictures in a grid.
    """

    def __init__(self, folder: str | Path, held: InfillerSet, every: int = 500, count: int = 8) -> None:
        self.folder, self.held, self.every, self.count = Path(folder), held, every, count

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Draw a grid where one is due."""
        step = pl_module.done
        if trainer.is_global_zero and (step % self.every == 0 or step == pl_module.steps):
            self.folder.mkdir(parents=True, exist_ok=True)
            rows = sample_rows(pl_module.averaged, self.held, self.count)
            save_image(torch.cat(rows), self.folder / f"{step:06d}.png", nrow=self.count)


def sample_rows(pipeline: InfillPipeline, held: InfillerSet, count: int) -> list[Tensor]:
    """Pictures, their holes, fills from noise and from a donor: ``(count, 3, S, S)`` in 0..1 each."""
    size = pipeline.size
    images, things, plates = (
        nnf.interpolate(part[:count].float().to(pipeline.device), size=size, mode="bilinear", antialias=True)
        for part in (held.images, held.objects, held.plates)
    )
    images, hole, donors = images / 255, things < 0.02, plates.roll(1, dims=0) / 255
    rows = [images, images.masked_fill(hole, 0.5)]
    for start, strength in ((None, 1.0), (donors, 0.6)):
        seeds = [torch.Generator().manual_seed(i) for i in range(len(images))]
        rows.append(pipeline(images, hole, seeds, start=start, strength=strength))
    return rows


def fit_infiller(
    pipeline: InfillPipeline,
    training: InfillerSet,
    *,
    steps: int = 10_000,
    batch_size: int = 16,
    learning_rate: float = 4e-4,
    width: int = 48,
    held: InfillerSet | None = None,
    output: str | Path = "outputs/infiller",
    resume: bool = False,
    seed: int = 0,
    **trainer: Any,
) -> InfillPipeline:
    """Train a pipeline of diffusers to fill holes in pictures like those of a set.

    Args:
        pipeline: untrained, or to be trained on.
        training: pictures, larger than the network's square.
        steps: optimiser steps.
        batch_size: pictures in a step, on each device.
        learning_rate: of AdamW.
        width: channels of the discriminator's first level.
        held: pictures of which grids are drawn on the way.
        output: folder of checkpoints and grids.
        resume: go on from the last checkpoint in ``output``, where there is one.
        seed: of weights, order and draws.
        trainer: arguments of Lightning's ``Trainer``: accelerator, devices, precision.

    Returns:
        The pipeline with averaged weights, on the CPU, in evaluation mode.

    Raises:
        ValueError: fewer pictures than a batch.
    """
    if len(training) < batch_size:
        raise ValueError(f"{len(training)} pictures are fewer than a batch of {batch_size}; lower batch_size")
    pl.seed_everything(seed)
    module = InfillerModule(pipeline, steps, learning_rate, width)
    sampler = RandomSampler(training, replacement=True, num_samples=steps * batch_size)
    loader = DataLoader(training, batch_size, sampler=sampler, drop_last=True)
    folder = Path(output)
    callbacks: list[Any] = [
        ModelCheckpoint(folder, save_last=True, every_n_train_steps=max(1, min(1000, steps // 5)), save_top_k=0)
    ]
    if held is not None:
        callbacks.append(SampleGrids(folder / "grids", held))
    settings = {"accelerator": "auto", "devices": 1, "logger": False, "enable_model_summary": False, **trainer}
    runner = pl.Trainer(max_epochs=1, callbacks=callbacks, default_root_dir=folder, **cast(Any, settings))
    last = folder / "last.ckpt"
    with warnings.catch_warnings():
        # The weights after the step are the ones to keep.
        warnings.filterwarnings("ignore", "Using ModelCheckpoint with manual optimization")
        # Draws are independent: any are as good as those that would have come.
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")
        runner.fit(module, loader, ckpt_path=str(last) if resume and last.exists() else None, weights_only=False)
    unet = copy.deepcopy(cast(Any, module.average.module)).cpu().eval()
    return InfillPipeline(unet, pipeline.scheduler)
