"""Training of the small infiller: a Lightning module, and one call that trains and averages."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import lightning.pytorch as pl
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler
from torchvision.utils import save_image

from infill_aug.functional.masks import erode
from infill_aug.infill.infiller_training import (
    Discriminator,
    InfillerBatch,
    InfillerSet,
    answer,
    detail_loss,
    draw_batch,
    feature_loss,
    hinge,
    patch_weights,
    reconstruction_loss,
    size_of,
)
from infill_aug.infill.pipeline import InfillPipeline, predict
from infill_aug.infill.push_pull import push_pull
from infill_aug.infill.single_pass import SinglePassInfiller
from infill_aug.lit.averaging import averaged

Model = TypeVar("Model", InfillPipeline, SinglePassInfiller)

# Share of the steps that learn to reconstruct alone, before a discriminator has its say, and of those that slow down.
_WARM, _DECAY = 0.01, 0.3
_DECAY_OF_AVERAGE = 0.998
# Weights of the distance of a discriminator's features, and of a donor's detail.
_FEATURES, _DETAIL = 0.4, 0.5


class InfillerModule(pl.LightningModule):
    """Trains a pipeline's network to see the clean picture in a noisy hole, and a discriminator against it.

    The network learns from a donor's background and from a smooth continuation, with little or no noise, and from the
    picture itself with more. Its loss is that of adversarial diffusion distillation (Sauer et al., 2023) without a
    teacher: reconstruction and the distance of a discriminator's features where the right answer is known, the distance
    to a donor's own detail, and the discriminator's verdict.

    Args:
        model: what is trained, in place.
        steps: optimiser steps of the whole training.
        size: side in pixels of the pictures that it learns from.
        learning_rate: of AdamW, both networks'; linear decay over the last 30 %.
        width: channels of the discriminator's first level.
    """

    adversarial = 0.2

    def __init__(self, model: Any, steps: int, size: int, learning_rate: float = 4e-4, width: int = 32) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = (model,)  # in a tuple: no submodule of its own
        self.network, self.discriminator = self.trained(model), Discriminator(width)
        self.steps, self.learning_rate, self.size = steps, learning_rate, size
        self.average = averaged(self.network, _DECAY_OF_AVERAGE).requires_grad_(False)
        self._draw = torch.Generator().manual_seed(0)

    @staticmethod
    def trained(model: Any) -> nn.Module:
        """The part of a model that learns."""
        return cast(nn.Module, model.unet)

    @property
    def averaged(self) -> Any:
        """The model with averaged weights."""
        return InfillPipeline(cast(Any, self.average.module), self.model[0].scheduler)

    def drawn(self, batch: Sequence[Tensor]) -> InfillerBatch:
        """What one step learns from."""
        images, objects, cores, plates = batch
        return draw_batch(images, objects, cores, plates, self.size, self._draw)

    def clean(self, drawn: InfillerBatch) -> Tensor:
        """What the network makes of a batch, ``(B, 3, S, S)`` in about -1..1."""
        shares = self.model[0].scheduler.alphas_cumprod.to(drawn.image)[drawn.times]
        alpha = shares[:, None, None, None]
        noise = torch.randn(drawn.image.shape, generator=self._draw).to(drawn.image)
        state = alpha.sqrt() * drawn.start + (1 - alpha).sqrt() * noise
        return predict(self.network, state, drawn.image, drawn.mask, drawn.times, shares)

    def samples(self, image: Tensor, hole: Tensor, donors: Tensor) -> list[Tensor]:
        """Fills to look at, ``(B, 3, S, S)`` in 0..1 each: from noise, a smooth continuation, and donors."""
        rows = []
        network = self.averaged
        for start, strength in ((None, 1.0), (push_pull(image, hole), network.unaided), (donors, network.strength)):
            seeds = [torch.Generator().manual_seed(i) for i in range(len(image))]
            rows.append(network(image, hole, seeds, start=start, strength=strength))
        return rows

    @property
    def done(self) -> int:
        """Steps so far, also of earlier runs; Lightning counts each optimiser's."""
        return int(self.average.n_averaged)

    def on_fit_start(self) -> None:
        """Another seed on every rank and after every resume; the same in the same run."""
        self._draw.manual_seed(torch.initial_seed() + 1_000_000 * self.global_rank + self.done)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """One step of the discriminator and one of the network."""
        drawn = self.drawn(batch)
        ahead, behind = cast(Any, self.optimizers())
        done = self.done / self.steps
        clean = self.clean(drawn)
        fill = torch.where(drawn.mask, clean, drawn.image)
        taught, paired = drawn.taught.float(), drawn.paired[:, None, None, None].float()
        # A donor is to stay what it is, but for its rim, which has to go with what is visible, and for smooth paint.
        inner = erode(drawn.mask, max(1, self.size // 16)) & ~drawn.painted
        detail = detail_loss(clean, drawn.start, inner * (1 - paired))
        if done < _WARM:
            loss = reconstruction_loss(clean, drawn.image, taught * paired, 1.0, 1.0) + detail
        else:
            loss = self._against(drawn, fill, taught, behind) + _DETAIL * detail
            loss = loss + reconstruction_loss(clean, drawn.image, taught * paired)
        self._step(ahead, loss, self.network)
        self.log("detail", detail.detach(), prog_bar=True)
        self.average.update_parameters(self.network)

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
            right = answer(drawn, fill.detach()) * change[:, :1] + change[:, 1:]
            _, wanted = self.discriminator(right, mask)
        score, features = self.discriminator(fake_image, mask)
        self.discriminator.requires_grad_(True)
        weights = weights * drawn.judged[:, None, None, None]
        adversarial = -(score.float() * weights).sum() / weights.sum().clamp(min=1)
        return self.adversarial * adversarial + _FEATURES * feature_loss(features, wanted, drawn.paired)

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
            torch.optim.AdamW(self.network.parameters(), self.learning_rate, betas=(0.8, 0.99), weight_decay=1e-2),
            torch.optim.AdamW(self.discriminator.parameters(), self.learning_rate, betas=(0.0, 0.99)),
        ]


class SinglePassModule(InfillerModule):
    """The same for a network of one pass, which learns from the picture itself alone, and whose fills are all judged.

    Args:
        model: what is trained, in place.
        steps: optimiser steps of the whole training.
        size: side in pixels of the pictures that it learns from.
        learning_rate: of AdamW, both networks'; linear decay over the last 30 %.
        width: channels of the discriminator's first level.
    """

    adversarial = 0.12

    @staticmethod
    def trained(model: Any) -> nn.Module:
        """All of it learns."""
        return cast(nn.Module, model)

    @property
    def averaged(self) -> Any:
        """The network with averaged weights."""
        return self.average.module

    def drawn(self, batch: Sequence[Tensor]) -> InfillerBatch:
        """Pictures and holes; no donors."""
        drawn = super().drawn(batch)
        every = torch.ones_like(drawn.paired)
        return dataclasses.replace(drawn, start=drawn.image, paired=every, judged=every)

    def clean(self, drawn: InfillerBatch) -> Tensor:
        """What the network makes of a batch, ``(B, 3, S, S)`` in about -1..1."""
        return cast(Tensor, self.network(drawn.image / 2 + 0.5, drawn.mask.float())) * 2 - 1

    @torch.no_grad()
    def samples(self, image: Tensor, hole: Tensor, donors: Tensor) -> list[Tensor]:
        """The fill to look at, ``(B, 3, S, S)`` in 0..1."""
        return [torch.where(hole, self.averaged(image, hole.float()).clamp(0, 1), image)]


def _tint(count: int, generator: torch.Generator) -> Tensor:
    """A gain and three offsets each, ``(B, 4, 1, 1)``: few pictures then last longer (Zhao et al., 2020)."""
    gain = 1 + 0.3 * (torch.rand(count, 1, 1, 1, generator=generator) - 0.5)
    shift = 0.3 * (torch.rand(count, 3, 1, 1, generator=generator) - 0.5)
    return torch.cat([gain, shift], dim=1)


class SampleGrids(pl.Callback):
    """Saves the rows of ``sample_rows`` as PNG on the way.

    Args:
        folder: where to.
        held: pictures to fill.
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
            rows = sample_rows(pl_module, self.held, self.count)
            save_image(torch.cat(rows), self.folder / f"{step:06d}.png", nrow=self.count)


class Saves(pl.Callback):
    """Saves the training every so many steps; Lightning's own counts the steps of each optimiser.

    Args:
        file: where to.
        every: steps between two.
    """

    def __init__(self, file: Path, every: int) -> None:
        self.file, self.every = file, every

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save where it is time to."""
        if pl_module.done % self.every == 0 or pl_module.done == pl_module.steps:
            trainer.save_checkpoint(self.file)


class Draws(pl.LightningDataModule):
    """Random pictures of a set, others on every device.

    Args:
        pictures: the set.
        steps: batches.
        batch_size: pictures in a batch.
        seed: of the choice.
    """

    def __init__(self, pictures: InfillerSet, steps: int, batch_size: int, seed: int) -> None:
        super().__init__()
        self.pictures, self.steps, self.batch_size, self.seed = pictures, steps, batch_size, seed

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of images, objects, cores and plates."""
        generator = torch.Generator().manual_seed(self.seed + cast(Any, self.trainer).global_rank)
        count = self.steps * self.batch_size
        sampler = RandomSampler(self.pictures, replacement=True, num_samples=count, generator=generator)
        return DataLoader(self.pictures, self.batch_size, sampler=sampler, drop_last=True)


def sample_rows(module: InfillerModule, held: InfillerSet, count: int) -> list[Tensor]:
    """Pictures, their holes, and the module's fills: ``(count, 3, S, S)`` in 0..1 each."""
    images, things, plates = (
        nnf.interpolate(part[:count].float().to(module.device), size=module.size, mode="bilinear", antialias=True)
        for part in (held.images, held.cores, held.plates)
    )
    images, hole, donors = images / 255, things < 0.9, plates.roll(1, dims=0) / 255
    # Something has to be visible, where there are no objects too.
    middle = torch.zeros_like(hole)
    low, high = module.size // 4, module.size - module.size // 4
    middle[..., low:high, low:high] = True
    hole = torch.where(hole.all(dim=(2, 3), keepdim=True), middle, hole)
    return [images, images.masked_fill(hole, 0.5), *module.samples(images, hole, donors)]


def fit_infiller(
    model: Model,
    training: InfillerSet,
    *,
    steps: int = 10_000,
    batch_size: int = 16,
    learning_rate: float = 4e-4,
    width: int = 32,
    held: InfillerSet | None = None,
    output: str | Path = "outputs/infiller",
    resume: bool = False,
    seed: int = 0,
    **trainer: Any,
) -> Model:
    """Train a pipeline of diffusers, or a network of one pass, to fill holes in pictures like those of a set.

    Args:
        model: untrained, or to be trained on.
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
        The model with averaged weights, on the CPU, in evaluation mode.

    Raises:
        ValueError: fewer pictures than a batch; pictures read for another size than the pipeline's.
    """
    if len(training) < batch_size:
        raise ValueError(f"{len(training)} pictures are fewer than a batch of {batch_size}; lower batch_size")
    size = size_of(training.images.shape[-1])
    if isinstance(model, InfillPipeline) and model.size != size:
        raise ValueError(
            f"the pictures were read for {size} px, and the pipeline fills {model.size}; read them for that size"
        )
    pl.seed_everything(seed)
    kind = SinglePassModule if isinstance(model, SinglePassInfiller) else InfillerModule
    module = kind(model, steps, size, learning_rate, width)
    module.train()  # a loaded model is in evaluation mode
    folder = Path(output)
    last = folder / "last.ckpt"
    callbacks: list[Any] = [Saves(last, max(1, min(500, steps // 5)))]
    if held is not None:
        callbacks.append(SampleGrids(folder / "grids", held))
    settings = {"accelerator": "auto", "devices": 1, "logger": False, "enable_model_summary": False, **trainer}
    if settings["devices"] != 1:
        # Each step has a pass for either network, which leaves the other's weights out.
        settings.setdefault("strategy", "ddp_find_unused_parameters_true")
    runner = pl.Trainer(
        max_epochs=1, callbacks=callbacks, default_root_dir=folder, enable_checkpointing=False,
        use_distributed_sampler=False, **cast(Any, settings),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning calls a deprecated torch function
        # Draws are independent: any are as good as those that would have come.
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")
        runner.fit(
            module, datamodule=Draws(training, steps, batch_size, seed),
            ckpt_path=str(last) if resume and last.exists() else None, weights_only=False,
        )  # fmt: skip
    trained = module.averaged
    module.trained(trained).requires_grad_(True).cpu().eval()
    return cast(Model, trained)
