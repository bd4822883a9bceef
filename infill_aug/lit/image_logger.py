"""Pictures of what an epoch trains with, for the loggers and the disk."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as nnf
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image as PILImage
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.utils import make_grid

from infill_aug.batch import InfillAugment
from infill_aug.datasets import InfillDataset, stack_samples
from infill_aug.lit.loggers import log_image
from infill_aug.samples import spread
from infill_aug.types import CONFIDENCE, IMAGE, MASK

_TAG = "infill/samples"
_COLUMNS = ("image", "confidence", "mask", "infill", "composite")
_GREY = 128  # between the pictures: masks and confidence are black and white at their edges


class ImageLogger(Callback):
    """Show what the training is given: image, confidence, mask, varied infill and composite of a few samples.

    At the start of every ``every_n_epochs``-th epoch, from the first on, the same samples of the training set are read
    with its transforms, and go through a copy of the training's own ``InfillAugment``, at the threshold in force. All
    of them are changed, whatever ``p`` is. Each is a row. White in the mask is regenerated, white in the confidence
    matters, and the composite is the network's input before it is normalised.

    A training with this callback is the one without, bit for bit: global random streams, augmentation and model stay as
    they were. Only a dataset notices that it is read more often. All is done on the CPU, in the main process of rank
    zero, also where workers read for the training. Nothing is shown in a ``fast_dev_run``.

    Goes to TensorBoard and Weights & Biases under ``infill/samples``, with epoch and threshold as its caption, and to
    ``folder`` as ``epoch_000.png``, with the caption as its description.

    Args:
        every_n_epochs: epochs from one grid to the next, 1 or more.
        max_images: at most so many samples, evenly spread over the training set, 1 or more.
        folder: where PNGs go. None: nowhere, as long as a logger takes pictures; if none does, to ``infill`` in the
            logger's folder, or in ``trainer.default_root_dir`` where the logger has none.

    Raises:
        ValueError: an argument out of range.
        MisconfigurationException: at the start of the training, if it has no ``InfillAugment`` or several, or its
            training set is no ``InfillDataset``.

    Example:
        >>> import tempfile
        >>> from infill_aug.cache.build import build_cache
        >>> pictures, folder = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8), tempfile.mkdtemp()
        >>> report = build_cache(pictures, folder, profile="centre_prior", progress=False)
        >>> ImageLogger(max_images=3).draw(DataLoader(InfillDataset(pictures, folder)), InfillAugment(0.5)).shape
        torch.Size([3, 56, 92])
    """

    def __init__(self, *, every_n_epochs: int = 1, max_images: int = 4, folder: str | Path | None = None) -> None:
        super().__init__()
        for name, value in (("every_n_epochs", every_n_epochs), ("max_images", max_images)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}; for no pictures leave the callback out")
        self.every_n_epochs, self.max_images, self.folder = every_n_epochs, max_images, folder

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw and log where a grid is due."""
        epoch = trainer.current_epoch
        if trainer.fast_dev_run or epoch % self.every_n_epochs:
            return
        # On every rank, since one that raised alone would leave the others waiting.
        augment = _only_augment([getattr(trainer.datamodule, "augment", None), *pl_module.modules()])
        loader = trainer.train_dataloader
        dataset = getattr(loader, "dataset", None)
        if not isinstance(dataset, InfillDataset):
            raise MisconfigurationException(
                f"ImageLogger shows samples of an InfillDataset; the training loader's dataset is "
                f"{type(dataset).__name__}. Wrap it in InfillDataset, or the data module in InfillDataModule."
            )
        if not trainer.is_global_zero:
            return
        grid = self.draw(loader, augment)
        caption = f"epoch {epoch}, threshold {_threshold(augment)}: {', '.join(_COLUMNS)}"
        taken = log_image(trainer.loggers, _TAG, grid, trainer.global_step, caption)
        if self.folder is not None:
            _save(grid, Path(self.folder), epoch, caption)
        elif not taken:
            home = getattr(trainer.logger, "log_dir", None) or trainer.default_root_dir
            _save(grid, Path(home, "infill"), epoch, caption)

    def draw(self, loader: DataLoader[Any], augment: InfillAugment) -> Tensor:
        """The grid, without a trainer; leaves random streams, dataset and augmentation as they are.

        Args:
            loader: of the training, over an ``InfillDataset``; only its dataset is used.
            augment: the training's own, on any device.

        Returns:
            ``(3, H, W)`` ``uint8`` on the CPU: a sample a row, each picture in its own size with 2 grey pixels around.
        """
        read = copy.copy(cast(InfillDataset, loader.dataset))
        read.p = 1.0
        with isolate_rng(include_cuda=False):
            samples = [read[index] for index in spread(len(read), self.max_images)]
            alike = len({sample[IMAGE].shape for sample in samples}) == 1
            parts = [samples] if alike else [[sample] for sample in samples]
            tiles = [tile for part in parts for tile in _tiles(stack_samples(part), augment)]
        height, width = (max(tile.shape[axis] for tile in tiles) for axis in (1, 2))
        padded = [nnf.pad(tile, (0, width - tile.shape[2], 0, height - tile.shape[1]), value=_GREY) for tile in tiles]
        return make_grid(torch.stack(padded), nrow=len(_COLUMNS), padding=2, pad_value=_GREY)


def _tiles(batch: Mapping[str, Any], augment: InfillAugment) -> list[Tensor]:
    """Pictures of each sample in the order of the columns: ``(3, H, W)`` ``uint8`` each."""
    shown = copy.deepcopy(augment).cpu().train()
    shown.p = 1.0
    fills: list[Tensor] = []
    mix = shown.mix

    def watched(image: Tensor, infill: Tensor, mask: Tensor) -> Tensor:
        fills.append(infill)  # as varied, which no batch has
        return mix(image, infill, mask)

    vars(shown).update(mix=watched, normalize=_unchanged)
    done = shown.forward(batch)  # past the user's hooks, which are there for the training's batches
    columns = (batch[IMAGE], batch[CONFIDENCE], done[MASK], torch.cat(fills), done[IMAGE])
    return [_eight_bits(column[row]) for row in range(len(batch[IMAGE])) for column in columns]


def _eight_bits(picture: Tensor) -> Tensor:
    """``(3, H, W)`` ``uint8`` from ``uint8``, bool, or floating point in 0..1, of one channel or three."""
    if picture.dtype != torch.uint8:
        picture = (picture.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return picture.expand(3, -1, -1)


def _unchanged(image: Tensor) -> Tensor:
    return image


def _only_augment(candidates: Iterable[Any]) -> InfillAugment:
    found = {id(one): one for one in candidates if isinstance(one, InfillAugment)}
    if len(found) != 1:
        raise MisconfigurationException(
            f"ImageLogger found {len(found) or 'no'} InfillAugment to show. Keep one as `augment` on the data module, "
            "as InfillDataModule does, or as a submodule of the LightningModule."
        )
    return next(iter(found.values()))


def _threshold(augment: InfillAugment) -> str:
    state = augment.threshold_state
    value = f"{augment.threshold if state is None else state.threshold:.3f}"
    return f"{value} ± {augment.jitter:g}" if augment.jitter else value


def _save(grid: Tensor, folder: Path, epoch: int, caption: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    description = PngInfo()
    description.add_itxt("Description", caption)
    PILImage.fromarray(grid.permute(1, 2, 0).numpy()).save(folder / f"epoch_{epoch:03d}.png", pnginfo=description)
