"""Training of the confidence estimator: a Lightning module, and one call that trains, picks and calibrates."""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.nn.functional as nnf
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader

from infill_aug.confidence.estimator import ConfidenceEstimator
from infill_aug.confidence.training import (
    TrainingSet,
    change_pairs,
    confidence_loss,
    draw_pair_changes,
    fit_calibration,
)
from infill_aug.functional.masking import masking_loss
from infill_aug.functional.quality import average_precision
from infill_aug.lit.averaging import averaged

# Validations in one training: enough to find the best checkpoint, too few to cost time.
_VALIDATIONS = 12
# Weight of the masking-model objective against the maps.
_MASKING = 0.2


class EstimatorModule(pl.LightningModule):
    """Trains an estimator on pictures and maps; logs ``train_loss``, and ``val_ap`` of the averaged weights.

    Args:
        estimator: what is trained, in place.
        steps: optimiser steps of the whole training.
        learning_rate: peak of the one-cycle schedule of AdamW.
        freeze_trunk: train the heads alone.
        classifier: for the masking-model objective of the head in use, on pictures in 0..1; a frozen copy of it runs
            here. ``None`` leaves it out.
    """

    def __init__(
        self,
        estimator: ConfidenceEstimator,
        steps: int,
        learning_rate: float = 3e-3,
        *,
        freeze_trunk: bool = False,
        classifier: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.estimator, self.steps, self.learning_rate = estimator, steps, learning_rate
        estimator.trunk.requires_grad_(not freeze_trunk)
        self.freeze_trunk = freeze_trunk
        # In a tuple: no submodule, so that it is neither trained, nor moved to training mode, nor checkpointed.
        self._classifier = (copy.deepcopy(classifier).eval().requires_grad_(False),) if classifier is not None else ()
        # Few steps and a high rate leave noise in the weights; their moving average is what is validated and kept.
        self.average = averaged(estimator, 0.99)

    @property
    def averaged(self) -> ConfidenceEstimator:
        """The estimator with averaged weights: what is validated and kept."""
        return cast(ConfidenceEstimator, self.average.module)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Loss of one augmented batch."""
        images, targets, known = batch
        if self.freeze_trunk:
            self.estimator.trunk.eval()
        with torch.no_grad():
            pictures, wanted = change_pairs(images.float() / 255, targets.float() / 255, draw_pair_changes(len(images)))
        logits = self.estimator.logits(pictures)
        loss = confidence_loss(logits, wanted, known)
        for classifier in self._classifier:
            loss = loss + _MASKING * self._masking(classifier.to(self.device), pictures, logits)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def _masking(self, classifier: nn.Module, pictures: Tensor, logits: Tensor) -> Tensor:
        head = self.estimator.heads.index(self.estimator.head)
        confidence = nnf.interpolate(
            logits[:, head : head + 1], size=pictures.shape[-2:], mode="bilinear", align_corners=False
        )
        with torch.no_grad():
            labels = classifier(pictures).argmax(dim=1)
        return masking_loss(classifier, pictures, confidence.sigmoid(), labels).total

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Follow the weights after each step."""
        self.average.update_parameters(self.estimator)

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Average precision of each picture, over the heads that it knows."""
        images, targets, known = batch
        logits = self.averaged.logits(images.float() / 255)
        found = nnf.interpolate(logits, size=targets.shape[-2:], mode="bilinear", align_corners=False).sigmoid()
        truth = targets > 127
        each = average_precision(found.flatten(0, 1)[:, None], truth.flatten(0, 1)[:, None])
        # Pictures with nothing in them have no precision.
        each = each[known.flatten() & torch.isfinite(each)]
        if len(each):
            self.log("val_ap", each.mean(), on_epoch=True, prog_bar=True, batch_size=len(each), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """AdamW with a one-cycle schedule."""
        # Decay would change the heads that no picture teaches, which have no gradient to hold them.
        trained = [{"params": list(self.estimator.logit.parameters()), "weight_decay": 0.0}]
        if not self.freeze_trunk:
            trained.append({"params": list(self.estimator.trunk.parameters())})
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.learning_rate, total_steps=self.steps + 1, pct_start=0.1
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit_estimator(
    estimator: ConfidenceEstimator,
    training: TrainingSet,
    validation: TrainingSet,
    *,
    steps: int = 1500,
    batch_size: int = 16,
    learning_rate: float = 3e-3,
    seed: int = 0,
    freeze_trunk: bool = False,
    classifier: nn.Module | None = None,
    accelerator: str = "cpu",
    progress: bool = True,
    logger: Any = False,
) -> ConfidenceEstimator:
    """Train, keep the best weights by average precision on the validation pictures, and calibrate on them.

    Where no validation map reaches a half anywhere, there is no precision to choose by, and the last weights are kept.

    Args:
        estimator: where to start, with one head for each channel of the targets; it is left as it is.
        training: pictures and maps, see ``read_training_set``.
        validation: others, for the choice of the checkpoint and the calibration.
        steps: optimiser steps; 1500 take one to two minutes on two cores at 128 px.
        batch_size: pictures a step.
        learning_rate: peak of the schedule.
        seed: of the order and the augmentation.
        freeze_trunk: train the heads alone, so that the scores of other heads on the same trunk stay.
        classifier: of pictures in 0..1, for the masking-model objective of the estimator's ``head`` beside the maps; it
            is left as it is.
        accelerator: as Lightning's trainer takes it.
        progress: show a progress bar.
        logger: as Lightning's trainer takes it.

    Returns:
        A new estimator with the same ``head``, calibrated, in evaluation mode, on the CPU. Heads that no picture
        teaches keep their temperature, and with ``freeze_trunk`` their scores.

    Raises:
        ValueError: heads and targets do not fit, or a set is empty.

    Example:
        >>> import torch
        >>> pair = torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(4, 1, 32, 32, dtype=torch.uint8)
        >>> pair[1][:, :, :16] = 255
        >>> data = TrainingSet(*pair, torch.ones(4, 1, dtype=torch.bool))
        >>> start = ConfidenceEstimator(("sky",), input_size=32)
        >>> fit_estimator(start, data, data, steps=2, batch_size=2, progress=False).heads
        ('sky',)
    """
    for name, part in (("training", training), ("validation", validation)):
        if not len(part):
            raise ValueError(f"the {name} set is empty")
        if part.targets.shape[1] != len(estimator.heads):
            raise ValueError(
                f"{len(estimator.heads)} heads, but the {name} targets have {part.targets.shape[1]} channels"
            )
    trained = estimator.with_heads(estimator.heads)
    trained.head = estimator.head
    module = EstimatorModule(
        trained.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        steps,
        learning_rate,
        freeze_trunk=freeze_trunk,
        classifier=classifier,
    )
    size = min(batch_size, len(training))
    order = torch.Generator().manual_seed(seed)
    loader: DataLoader[Any] = DataLoader(training, batch_size=size, shuffle=True, drop_last=True, generator=order)
    held: DataLoader[Any] = DataLoader(validation, batch_size=64)
    measured = bool((validation.known & (validation.targets > 127).flatten(2).any(dim=2)).any())
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch, isolate_rng():
        torch.manual_seed(seed)  # of the augmentation; the caller's own draws go on as they were
        # Pictures are in memory: workers would only copy them.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*number of training batches.*")
        # Lightning calls a function of torch that is deprecated; not ours to act on.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        best = ModelCheckpoint(scratch, monitor="val_ap", mode="max", save_top_k=1, save_weights_only=True)
        quiet = logging.getLogger("lightning.pytorch")
        level = quiet.level
        quiet.setLevel(logging.ERROR)
        try:
            trainer = pl.Trainer(
                accelerator=accelerator,
                devices=1,
                max_steps=steps,
                max_epochs=-1,
                val_check_interval=max(1, steps // _VALIDATIONS),
                check_val_every_n_epoch=None,
                num_sanity_val_steps=0,
                callbacks=[best] if measured else [],
                enable_checkpointing=measured,
                logger=logger,
                enable_progress_bar=progress,
                enable_model_summary=False,
                log_every_n_steps=10,
            )
            trainer.fit(module, loader, held)
        finally:
            quiet.setLevel(level)
        if best.best_model_path:
            module.load_state_dict(
                torch.load(best.best_model_path, weights_only=True, map_location="cpu")["state_dict"]
            )
    fitted = module.averaged.cpu()
    result = fitted.with_heads(fitted.heads).eval()
    result.head = estimator.head
    # What was measured of other weights says nothing of these.
    taught = (training.known.any(dim=0) | (not freeze_trunk)).tolist()
    result.quality = {
        name: value for name, value in estimator.quality.items() if not taught[estimator.heads.index(name)]
    }
    _calibrate(result, validation)
    return result


@torch.inference_mode()
def _calibrate(estimator: ConfidenceEstimator, validation: TrainingSet) -> None:
    logits = torch.cat([estimator.logits(chunk.float() / 255) for chunk in validation.images.split(64)])
    targets = nnf.adaptive_avg_pool2d(validation.targets.float() / 255, (logits.shape[-2], logits.shape[-1]))
    for head in range(len(estimator.heads)):
        rows = validation.known[:, head]
        matters = targets[rows, head] > 0.5
        if matters.any() and not matters.all():  # else nothing is known of where a half lies
            temperature, offset = fit_calibration(logits[rows, head], targets[rows, head])
            estimator.temperature[head] = temperature
            # The bias is divided by the temperature too.
            estimator.logit.bias[head] += offset * temperature  # type: ignore[index]
