"""From a task profile and pictures to trained weights, a profile that uses them, and a report that judges them."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.utils.data import Subset

from infill_aug.confidence.estimator import ConfidenceEstimator, EstimatorConfidence, list_weights, weights_path
from infill_aug.confidence.evaluation import evaluate_confidence
from infill_aug.confidence.from_profile import source_from_profile, teacher_from_profile
from infill_aug.confidence.profile_report import save_report
from infill_aug.confidence.quality_report import QualityReport
from infill_aug.confidence.sources import ConfidenceSource
from infill_aug.confidence.training import read_training_set
from infill_aug.functional.faithfulness import check_classifier
from infill_aug.lit.estimator import fit_estimator
from infill_aug.profile import TaskProfile

# Bundled weights whose trunk a training starts from, where the profile names none.
_START = "base"
_HELD = 0.2


@dataclass(frozen=True)
class LearnedProfile:
    """What ``learn_profile`` made.

    Args:
        profile: the profile, with its new weights.
        estimator: the estimator, in evaluation mode.
        quality: measured on pictures that were held out.
        folder: where weights, profile, report and pictures lie.
        seconds: wall clock, reading included.
    """

    profile: TaskProfile
    estimator: ConfidenceEstimator
    quality: QualityReport
    folder: Path
    seconds: float


def learn_profile(
    profile: TaskProfile | str | Path | Mapping[str, Any],
    dataset: Any,
    output: str | Path,
    *,
    source: ConfidenceSource | None = None,
    truth: ConfidenceSource | None = None,
    start: str | Path | None = _START,
    steps: int = 1500,
    batch_size: int = 16,
    limit: int = 4000,
    seed: int = 0,
    freeze_trunk: bool = False,
    classifier: nn.Module | None = None,
    device: torch.device | str = "cpu",
    image_key: str | int | None = None,
    progress: bool = True,
    logger: Any = False,
) -> LearnedProfile:
    """Train the estimator of a profile on your pictures, and measure it on some that it did not see.

    One way for every kind of teaching: ``source`` says what matters in the training pictures, from masks, boxes or
    points, from a large network, or from where a classifier looks. The estimator then needs no such thing.

    Args:
        profile: task profile, its name, file or fields.
        dataset: map-style, with samples as ``build_cache`` takes them.
        output: folder for ``NAME.safetensors``, ``NAME.yaml``, ``report.md`` and its pictures.
        source: what is learned, ungraded; by default the profile's teacher.
        truth: what the result is measured against on held-out pictures; by default ``source``.
        start: weights whose trunk to start from, a bundled name or a file; ``None`` starts from nothing.
        steps: optimiser steps; 1500 take one to two minutes on two cores at 128 px.
        batch_size: pictures a step.
        limit: at most so many pictures, evenly spaced; the rest is not looked at.
        seed: of the split, the weights of a new head, the order and the augmentation.
        freeze_trunk: train the head alone, and keep the other heads of ``start`` beside it.
        classifier: of pictures in 0..1, in evaluation mode, for the masking-model objective beside the maps, and for
            the scores of faithfulness; it is left as it is.
        device: where maps are computed and the estimator is trained.
        image_key: key or position of the image in a sample.
        progress: show progress bars.
        logger: as Lightning's trainer takes it.

    Returns:
        A ``LearnedProfile``; ``str(result.quality)`` is its table.

    Raises:
        ValueError: fewer than four pictures, no steps, a classifier in training mode, or a profile without a teacher
            where ``source`` is none.
    """
    profile = TaskProfile.load(profile)
    if steps < 1:  # Lightning takes -1 for a training without end
        raise ValueError(f"steps must be 1 or more, got {steps}")
    if find_spec("matplotlib") is None:  # the report would fail when the training is over
        raise ImportError("the report needs matplotlib: pip install 'infill-aug[demo]'")
    if classifier is not None:
        check_classifier(classifier)  # it would be refused when the training is over
    source = source or teacher_from_profile(profile, device)
    started = time.perf_counter()
    if min(len(dataset), limit) < 4:
        raise ValueError(
            f"the dataset has {len(dataset)} pictures, and limit is {limit}; four are the least, fifty are a start"
        )
    training, held = split_indices(len(dataset), limit, seed)
    # Some choose the checkpoint and calibrate it, the others measure: what was chosen by pictures looks good on them.
    choosing, measuring = held[::2], held[1::2]
    parts = [
        read_training_set(dataset, source, profile.input_size, indices=part, image_key=image_key, progress=progress)
        for part in (training, choosing)
    ]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        begin = _beginning(profile, start, freeze_trunk)
    # The other heads are kept as they are: no picture here teaches them.
    parts = [part.widen(len(begin.heads), begin.heads.index(begin.head)) for part in parts]
    estimator = fit_estimator(
        begin, *parts, steps=steps, batch_size=batch_size, seed=seed, freeze_trunk=freeze_trunk, classifier=classifier,
        accelerator="cpu" if torch.device(device).type == "cpu" else "auto", progress=progress, logger=logger,
    )  # fmt: skip
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    notes: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "seed": seed,
        "steps": steps,
        "pictures": len(training),
        "pictures to choose by": len(choosing),
        "pictures to measure on": len(measuring),
        "learned from": getattr(source, "config", dict)(),
        "torch": str(torch.__version__),
    }
    weights = f"{profile.name}.safetensors"
    estimator.save(folder / weights, **notes)  # before anything else can go wrong
    held_out = Subset(dataset, measuring)
    quality = evaluate_confidence(
        EstimatorConfidence(estimator, device=device),
        held_out,
        truth or source,
        classifier=classifier,
        labels=classifier is None,  # the dataset's classes need not be the classifier's
        image_key=image_key,
        seed=seed,
        progress=progress,
    )
    estimator.quality[estimator.head] = quality.to_dict()
    estimator.save(folder / weights, **notes)
    fields = dataclasses.replace(profile, source="estimator", weights=weights).to_dict()
    kept = {name: value for name, value in profile.source_options.items() if name in ("falloff", "edges")}
    fields["source_options"] = {**kept, "head": estimator.head}
    text = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
    (folder / f"{profile.name}.yaml").write_text(text, encoding="utf-8")
    made = TaskProfile.load(folder / f"{profile.name}.yaml")
    save_report(
        folder, made, source_from_profile(made, device), held_out, truth or source, quality, notes, image_key=image_key
    )
    return LearnedProfile(made, estimator, quality, folder, time.perf_counter() - started)


def split_indices(count: int, limit: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train with and to hold out: evenly spaced, then shuffled; at least two are held out.

    Example:
        >>> [len(part) for part in split_indices(1000, 100, 0)]
        [80, 20]
    """
    chosen = [i * count // min(count, limit) for i in range(min(count, limit))]
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed)).tolist()
    held = max(2, round(_HELD * len(chosen)))
    return sorted(chosen[i] for i in order[held:]), sorted(chosen[i] for i in order[:held])


def _beginning(profile: TaskProfile, start: str | Path | None, keep_heads: bool) -> ConfidenceEstimator:
    """The estimator before training: its trunk from ``start``, its head the profile's."""
    head = str(profile.source_options.get("head", profile.name))
    if start is None or (start == _START and _START not in list_weights()):
        return ConfidenceEstimator((head,), profile.input_size)
    other = ConfidenceEstimator.load(weights_path(str(start)))
    kept = [name for name in other.heads if name != head] if keep_heads else []
    begin = other.with_heads((*kept, head))
    begin.head, begin.input_size = head, profile.input_size
    return begin
