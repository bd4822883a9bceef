"""From an image and a profile to what is kept and what is masked, in one call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from infill_aug.confidence.from_profile import source_from_profile
from infill_aug.functional.masks import threshold_mask
from infill_aug.profile import TaskProfile
from infill_aug.samples import to_batch
from infill_aug.types import check_confidence, quantise_confidence


class DynamicMask(NamedTuple):
    """What ``generate_dynamic_mask`` found.

    Args:
        confidence: ``(B, 1, H, W)`` float32 in 0..1.
        threshold: the threshold used, 0..1.
        mask: ``(B, 1, H, W)`` bool; true = regenerate.
        masked_image: ``(B, 3, H, W)`` float32 in 0..1, masked pixels at ``fill``.
    """

    confidence: Tensor
    threshold: float
    mask: Tensor
    masked_image: Tensor


def generate_dynamic_mask(
    image: Any,
    profile: TaskProfile | str | Path | Mapping[str, Any],
    threshold: float | None = None,
    fill: float = 0.0,
    *,
    target: Any = None,
    confidence: Tensor | None = None,
) -> DynamicMask:
    """Score every pixel, and mask those under the threshold.

    Args:
        image: PIL picture, array, ``(3, H, W)`` tensor, or ``(B, 3, H, W)`` tensor; ``uint8`` or in 0..1.
        profile: task profile, its name, file or fields.
        threshold: 0..1, higher masks more; by default the profile's.
        fill: value of the masked pixels, 0..1.
        target: the annotation that the profile's source reads, for one image; a sequence of them for a batch.
        confidence: ``(B, 1, H, W)`` or ``(1, H, W)`` map to use instead of the profile's source.

    Returns:
        A ``DynamicMask``, batched, on the CPU.

    Raises:
        KeyError: the profile's source needs an annotation that the target does not have.
        ValueError: a threshold or confidence out of range, or sizes that do not fit.

    Example:
        >>> import torch
        >>> result = generate_dynamic_mask(torch.rand(3, 32, 32), "centre_prior", threshold=0.5)
        >>> round(result.mask.float().mean().item(), 1)
        0.5
    """
    profile = TaskProfile.load(profile)
    threshold = profile.threshold if threshold is None else threshold
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in 0..1, got {threshold}")
    if not 0 <= fill <= 1:
        raise ValueError(f"fill must lie in 0..1, got {fill}")
    pictures, unit = to_batch(image)
    if confidence is None:
        source = source_from_profile(profile)
        targets = list(target) if getattr(image, "ndim", 3) == 4 and target is not None else [target] * len(pictures)
        if len(targets) != len(pictures):
            raise ValueError(f"{len(targets)} targets for {len(pictures)} images; give one for each")
        maps = torch.stack([source(one, its) for one, its in zip(pictures, targets, strict=True)])
    else:
        maps = confidence[None] if confidence.ndim == 3 else confidence
        check_confidence(maps)
        if maps.shape != (len(pictures), 1, *pictures.shape[2:]):
            raise ValueError(
                f"confidence has shape {tuple(confidence.shape)}, the image needs "
                f"{(len(pictures), 1, *pictures.shape[2:])}"
            )
        maps = maps.float() / 255 if maps.dtype == torch.uint8 else maps.float()
    levels = quantise_confidence(maps)
    mask = threshold_mask(
        levels, threshold, mode=profile.mode, protect_above=profile.protect_above, clean=profile.clean
    )
    return DynamicMask(maps, float(threshold), mask, unit.masked_fill(mask, fill))
