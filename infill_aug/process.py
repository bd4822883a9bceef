"""The whole pipeline on one image or batch, in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from infill_aug.descriptor import TaskDescriptor
from infill_aug.dynamic_mask import generate_dynamic_mask
from infill_aug.functional.composite import composite
from infill_aug.functional.masks import feather_mask
from infill_aug.infill import InfillBackend, choose_backend, contexts_of
from infill_aug.profile import TaskProfile
from infill_aug.samples import to_batch


class ProcessedImage(NamedTuple):
    """What ``process_image`` made; all batched, on the CPU.

    Args:
        image: ``(B, 3, H, W)`` float32 in 0..1: kept pixels of the original, varied infill elsewhere.
        confidence: ``(B, 1, H, W)`` float32 in 0..1.
        mask: ``(B, 1, H, W)`` bool; true = regenerated.
        infill: ``(B, 3, H, W)`` float32 in 0..1, before variation.
        threshold: the threshold used, 0..1.
    """

    image: Tensor
    confidence: Tensor
    mask: Tensor
    infill: Tensor
    threshold: float


def process_image(
    image: Any,
    descriptor: TaskDescriptor | str | Path | Mapping[str, Any],
    profile: TaskProfile | str | Path | Mapping[str, Any] | None = None,
    backend: InfillBackend | str | None = None,
    threshold: float | None = None,
    variation: Callable[[Tensor, Tensor], Tensor] | None = None,
    *,
    target: Any = None,
    confidence: Tensor | None = None,
    feather: int = 2,
) -> ProcessedImage:
    """Confidence, mask, infill, variation and composite of one image or batch.

    Args:
        image: PIL picture, array, ``(3, H, W)`` or ``(B, 3, H, W)`` tensor; ``uint8`` or in 0..1.
        descriptor: task descriptor, JSON text, path or mapping.
        profile: task profile, its name, file or fields; by default ``"salient_object"``, which needs no labels.
        backend: infill backend or its name; by default the descriptor's, else ``"push_pull"``.
        threshold: 0..1, higher masks more; by default the profile's.
        variation: ``(infill, mask) -> infill`` on floating point in 0..1.
        target: annotation that the profile's source reads; one for each image of a batch.
        confidence: map to use instead of the profile's source.
        feather: width in pixels of the soft rim, on the masked side.

    Returns:
        A ``ProcessedImage``; kept pixels equal the original's bit for bit.

    Raises:
        ValueError: an argument out of range; the message names it.
        PartialInfillError: the backend could not fill some sample.

    Example:
        >>> import torch
        >>> result = process_image(torch.rand(3, 32, 32), {"task": "pets", "object": "cat", "seed": 1})
        >>> result.image.shape
        torch.Size([1, 3, 32, 32])
    """
    if not isinstance(descriptor, TaskDescriptor):
        descriptor = TaskDescriptor.from_json(descriptor)
    backend = choose_backend(backend, descriptor)
    if feather < 0:
        raise ValueError(f"feather must be 0 pixels or more, got {feather}")
    pictures, unit = to_batch(image)
    found = generate_dynamic_mask(
        image, profile if profile is not None else "salient_object", threshold, target=target, confidence=confidence
    )
    # Known by the whole picture, so that a backend that fills from other pictures can tell it from them.
    samples = contexts_of(pictures, descriptor.seed)
    infill = backend.generate_infill(found.masked_image, found.mask, descriptor, samples=samples)
    varied = infill
    if variation is not None:
        with torch.no_grad():
            varied = variation(infill, found.mask.float()).clamp(0, 1)
    result = composite(unit, varied, feather_mask(found.mask, feather))
    return ProcessedImage(result, found.confidence, found.mask, infill, found.threshold)
