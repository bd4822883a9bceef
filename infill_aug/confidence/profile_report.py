"""The report of a profile: its figures as Markdown, and pictures of its maps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PILImage
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.utils import make_grid

from infill_aug.confidence.network import NetworkConfidence
from infill_aug.confidence.quality_report import QualityReport
from infill_aug.confidence.report import save_case_grid, save_reliability, save_share_curve
from infill_aug.confidence.sources import ConfidenceSource
from infill_aug.functional.masks import threshold_mask
from infill_aug.functional.quality import iou
from infill_aug.profile import TaskProfile
from infill_aug.samples import split_sample

# Pictures that are drawn from: enough for a band of 10..90 %.
_SHOWN = 60
_SIDE = 256
_TILE = 144


def save_report(
    folder: Path,
    profile: TaskProfile,
    source: ConfidenceSource,
    dataset: Any,
    truth: ConfidenceSource,
    quality: QualityReport,
    notes: Mapping[str, Any],
    *,
    image_key: str | int | None = None,
) -> None:
    """Write ``report.md``, and draw the share curve, the reliability of the scores, and good, typical and bad cases.

    Args:
        folder: where the files go; must exist.
        profile: task profile.
        source: its graded source.
        dataset: pictures that it was not trained on.
        truth: what is true of them.
        quality: what was measured of it.
        notes: how it was made, JSON values.
        image_key: key or position of the image in a sample.

    Raises:
        ImportError: no matplotlib.
    """
    images, maps, truths = _pictures(dataset, source, truth, image_key)
    # The reliability is that of the scores: a ring around the object is no claim about its pixels.
    whole = isinstance(source, NetworkConfidence) and not source.reads_target
    plain = source.ungraded().maps(images) if whole else maps  # type: ignore[attr-defined]
    save_share_curve(maps, folder / "share_curve.png", mode=profile.mode, protect_above=profile.protect_above)
    save_reliability(plain, truths, folder / "reliability.png")
    scores = [float(iou(one[None], true[None])) for one, true in zip(plain, truths, strict=True)]
    drawn = "\n\n![good, typical and bad cases](cases.png)"
    if any(score == score for score in scores):
        save_case_grid(
            images, maps, truths, scores, folder / "cases.png",
            threshold=profile.threshold, mode=profile.mode, protect_above=profile.protect_above,
        )  # fmt: skip
    else:
        drawn = ""
    text = (
        f"# {profile.name}\n\n{profile.description}\n\n{quality.verdict}\n\n{quality}\n\n"
        f"Masked share against the threshold, graded with a falloff of {profile.falloff:g}:\n\n"
        "![masked share](share_curve.png)\n\nOf the pixels with a given score, how many matter:\n\n"
        f"![reliability](reliability.png){drawn}\n\n```json\n{json.dumps(dict(notes), indent=2)}\n```\n"
    )
    (folder / "report.md").write_text(text, encoding="utf-8")


def save_maps(dataset: Any, source: ConfidenceSource, profile: TaskProfile, path: Path, count: int = 8) -> int:
    """A PNG with rows of some pictures, their maps, and what the profile's starting threshold keeps of them.

    Args:
        dataset: pictures; labels are needed only by a source that reads them.
        source: the profile's source.
        profile: says the threshold.
        path: file to write.
        count: at most so many pictures, evenly spaced.

    Returns:
        How many it shows.
    """
    images, maps, _ = _pictures(dataset, source, None, None, count)
    rows: list[list[Tensor]] = [[], [], []]
    for image, one in zip(images, maps, strict=True):
        mask = threshold_mask(
            one[None], profile.threshold, mode=profile.mode, protect_above=profile.protect_above, clean=profile.clean
        )[0]
        grey = (one * 255).round().to(torch.uint8).expand(3, -1, -1)
        for row, tile in zip(rows, (image, grey, image.masked_fill(mask, 128)), strict=True):
            row.append(F.resize(tile, [_TILE, _TILE], antialias=True))
    grid = make_grid(torch.stack([tile for row in rows for tile in row]), nrow=len(images), padding=2, pad_value=255)
    PILImage.fromarray(grid.permute(1, 2, 0).numpy()).save(path)
    return len(images)


def _pictures(
    dataset: Any, source: ConfidenceSource, truth: ConfidenceSource | None, image_key: str | int | None,
    count: int = _SHOWN,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:  # fmt: skip
    """Images, maps and truths of some samples, evenly spaced, with their longer side at 256 pixels at most."""
    wanted = min(count, len(dataset))
    if wanted < 1:
        raise ValueError(f"there is no picture to draw: the dataset has {len(dataset)}, and count is {count}")
    samples = [split_sample(dataset[i * len(dataset) // wanted], image_key) for i in range(wanted)]
    images, targets = zip(*samples, strict=True)
    maps = source.maps(images, targets) if isinstance(source, NetworkConfidence) else [source(*one) for one in samples]
    trues = [truth(*one) for one in samples] if truth is not None else maps
    small = []
    for image, one, true in zip(images, maps, trues, strict=True):
        scale = min(1.0, _SIDE / max(image.shape[-2:]))
        size = [max(1, round(side * scale)) for side in image.shape[-2:]]
        nearest = F.InterpolationMode.NEAREST_EXACT
        small.append((F.resize(image, size), F.resize(one, size).clamp(0, 1), F.resize(true, size, nearest) > 0.5))
    drawn, shown, known = zip(*small, strict=True)
    return list(drawn), list(shown), list(known)
