"""What the demo knows of its pictures: confidence learned from a few masks, from a classifier, or given."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn
from torchvision.transforms import v2

from infill_aug.confidence import (
    CentreConfidence,
    ConfidenceSource,
    EstimatorConfidence,
    MaskConfidence,
    source_from_profile,
)
from infill_aug.confidence.teachers.cam import CamConfidence
from infill_aug.confidence.teachers.snapped import SnappedConfidence
from infill_aug.demo.arms import NORMALIZE, DemoDataModule, fit_classifier, geometry
from infill_aug.demo.config import CONFIDENCE, DemoConfig
from infill_aug.demo.data import DemoData
from infill_aug.lit.learn import learn_profile
from infill_aug.profile import TaskProfile

# The estimator looks at the demo's pictures enlarged: their objects are a few pixels wide.
_PROFILE = TaskProfile("demo", source="estimator", input_size=96, falloff=0.2)
_STEPS = 800


def demo_confidence(config: DemoConfig, data: DemoData, folder: Path) -> tuple[ConfidenceSource, str]:
    """The confidence source of the ``infill_aug`` arm, and a line that says what it is.

    Args:
        config: settings; ``confidence`` says which.
        data: pictures.
        folder: where a learned estimator and its report go.

    Raises:
        ValueError: masks are asked for where there are none, or an unknown profile.
    """
    kind = config.confidence
    if kind == "auto":
        kind = "masks" if data.train.masks is not None else "salient_object"
    if kind == "centre":
        return CentreConfidence(), "centre prior"
    if kind not in CONFIDENCE:
        try:
            profile = TaskProfile.load(kind)
        except FileNotFoundError as error:
            raise ValueError(
                f"confidence must be one of {CONFIDENCE} or a task profile, got {kind!r}: {error}"
            ) from error
        return source_from_profile(profile), f"profile {kind}"
    truth = MaskConfidence(key="mask", falloff=0.0) if data.train.masks is not None else None
    if kind == "masks":
        if truth is None:
            raise ValueError("confidence=masks needs pictures with masks; use confidence=cam or salient_object")
        order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[: config.masks]
        learned = learn_profile(
            _PROFILE, data.train.subset(order.tolist()).labelled(), folder, source=truth, steps=_STEPS, progress=False
        )
        line = f"estimator, learned from {len(order)} masks in {learned.seconds:.0f} s"
    else:
        classifier = _classifier(data, config)
        source = SnappedConfidence(CamConfidence(classifier, normalize=NORMALIZE))
        learned = learn_profile(
            _PROFILE, data.train.labelled(), folder, source=source, truth=truth, steps=_STEPS, progress=False
        )
        line = f"estimator, learned without masks from where a plain classifier looks, in {learned.seconds:.0f} s"
    return EstimatorConfidence(learned.estimator, falloff=_PROFILE.falloff), f"{line}\n{learned.quality.verdict}"


def _classifier(data: DemoData, config: DemoConfig) -> nn.Module:
    """The plain arm's network, trained once more."""
    pl.seed_everything(0, verbose=False)
    transform = v2.Compose([*geometry(data), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*NORMALIZE)])
    module = DemoDataModule(data, transform, config.batch_size)
    return fit_classifier(module, len(data.classes), config.epochs).model.eval()
