"""The masking-model objective: what a map of what matters does to a frozen classifier."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.func import functional_call

_FILLS = ("blur", "noise", "other")
# Cells a side to which a picture is blurred: its colours stay roughly where they were, its shapes and textures go.
_BLUR_CELLS = 6


class MaskingLoss(NamedTuple):
    """What ``masking_loss`` gives: the weighted sum, and its parts before weighting; scalars, differentiable."""

    total: Tensor
    preserve: Tensor
    destroy: Tensor
    area: Tensor
    variation: Tensor


def masking_loss(
    classifier: nn.Module,
    images: Tensor,
    confidence: Tensor,
    labels: Tensor,
    *,
    area: float | tuple[float, float] | Tensor = (0.05, 0.5),
    fills: Sequence[str] = _FILLS,
    preserve: float = 1.0,
    destroy: float = 1.0,
    shape: float = 4.0,
    smooth: float = 0.5,
    generator: torch.Generator | None = None,
) -> MaskingLoss:
    """How far a confidence map is from the smallest region that a classifier needs; low is good.

    Four parts, from Dabkowski and Gal (2017), Phang et al. (2020) and Fong et al. (2019):

    * ``preserve``: cross entropy of the label where all but the relevant pixels are replaced
    * ``destroy``: ``log C`` minus the entropy of the prediction where the relevant pixels are replaced
    * ``area``: mean squared difference between the sorted map and that of a binary mask of a given area; areas that are
      drawn anew at each call make a map whose levels are nested regions
    * ``variation``: mean absolute difference between neighbouring pixels

    Gradients reach ``confidence`` alone: the classifier runs in evaluation mode with its weights detached, and is left
    as it was. What replaces a pixel is drawn for each sample, so that the map cannot fit one kind of replacement.

    Args:
        classifier: frozen; takes ``(B, 3, H, W)`` in 0..1 and gives ``(B, C)`` logits. One that needs normalised
            pictures goes behind ``torchvision.transforms.v2.Normalize`` in an ``nn.Sequential``.
        images: ``(B, 3, H, W)`` floating point in 0..1.
        confidence: ``(B, 1, H, W)`` floating point in 0..1, same device.
        labels: ``(B,)`` int64, 0..C-1.
        area: shares of the picture, 0..1: one for all, a range from which each sample draws, or ``(B,)`` of them.
        fills: what may replace pixels: ``"blur"`` (the picture, blurred), ``"noise"`` (around a random colour),
            ``"other"`` (another picture of the batch, blurred and with noise; like ``"blur"`` in a batch of one).
        preserve: weight of that part.
        destroy: weight of that part.
        shape: weight of the area.
        smooth: weight of the variation.
        generator: source of all draws, on the device of ``images``.

    Returns:
        The weighted sum and the four parts, unweighted; scalars.

    Raises:
        ValueError: shapes that do not fit, an area outside 0..1, or an unknown fill.

    Example:
        >>> import torch
        >>> classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))
        >>> confidence = torch.rand(4, 1, 8, 8, requires_grad=True)
        >>> loss = masking_loss(classifier, torch.rand(4, 3, 8, 8), confidence, torch.tensor([0, 1, 0, 1]))
        >>> loss.total.backward()
        >>> confidence.grad.shape, classifier[1].weight.grad
        (torch.Size([4, 1, 8, 8]), None)
    """
    _check(images, confidence, labels, fills)
    areas = _areas(area, images, generator)
    fill = random_fill(images, fills, generator)
    mask = confidence.to(images.dtype)
    kept, emptied = fill + mask * (images - fill), images + mask * (fill - images)
    logits = frozen_logits(classifier, torch.cat([kept, emptied])).float()
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"the classifier must give (B, C) logits of two classes or more, got {tuple(logits.shape)}; give a "
            "single-logit classifier two columns: torch.cat([-logit, logit], dim=1)"
        )
    log_p = logits[len(images) :].log_softmax(dim=1)
    entropy = -(log_p.exp() * log_p).sum(dim=1)
    parts = (
        nnf.cross_entropy(logits[: len(images)], labels),
        (math.log(logits.shape[1]) - entropy).mean(),
        area_loss(confidence, areas),
        total_variation(confidence),
    )
    total = sum(w * part for w, part in zip((preserve, destroy, shape, smooth), parts, strict=True))
    return MaskingLoss(torch.as_tensor(total), *parts)


def area_loss(confidence: Tensor, areas: Tensor) -> Tensor:
    """Mean squared difference between a sorted map and a sorted binary mask of a given area: ``|sort(m) - r_a|^2``.

    Zero for a binary map of just that area, and for nothing else (Fong, Patrick and Vedaldi, 2019).

    Args:
        confidence: ``(B, 1, H, W)`` floating point in 0..1.
        areas: ``(B,)`` shares in 0..1; rounded to whole pixels.

    Returns:
        Scalar.

    Example:
        >>> import torch
        >>> mask = torch.tensor([[[[0.0, 1.0, 0.0, 0.0]]]])
        >>> area_loss(mask, torch.tensor([0.25])).item(), area_loss(mask, torch.tensor([0.5])).item()
        (0.0, 0.25)
    """
    values = confidence.flatten(1).sort(dim=1, descending=True).values
    ranks = torch.arange(values.shape[1], device=values.device)
    wanted = ranks < (areas.to(values.device) * values.shape[1]).round()[:, None]
    return (values - wanted.to(values.dtype)).square().mean()


def total_variation(confidence: Tensor) -> Tensor:
    """Mean absolute difference between neighbouring pixels, along rows plus along columns.

    Args:
        confidence: ``(B, 1, H, W)`` floating point.

    Returns:
        Scalar; 0 along a side of one pixel.

    Example:
        >>> import torch
        >>> total_variation(torch.tensor([[[[0.0, 1.0, 1.0]]]])).item()
        0.5
    """
    steps = [confidence.diff(dim=axis).abs() for axis in (-1, -2)]
    return torch.stack([step.mean() if step.numel() else confidence.new_zeros(()) for step in steps]).sum()


def random_fill(images: Tensor, fills: Sequence[str] = _FILLS, generator: torch.Generator | None = None) -> Tensor:
    """Something to replace pixels with, of a kind that is drawn for each sample.

    Args:
        images: ``(B, 3, H, W)`` floating point in 0..1.
        fills: kinds, as in ``masking_loss``.
        generator: on the device of ``images``.

    Returns:
        Tensor like ``images``, detached.

    Raises:
        ValueError: an unknown kind, or none.

    Example:
        >>> import torch
        >>> random_fill(torch.rand(2, 3, 8, 8), ("blur",)).shape
        torch.Size([2, 3, 8, 8])
    """
    _check_fills(fills)
    images = images.detach()
    count, device = len(images), images.device
    height, width = images.shape[-2:]
    cells = min(height, _BLUR_CELLS), min(width, _BLUR_CELLS)
    blurred = nnf.interpolate(nnf.adaptive_avg_pool2d(images, cells), size=(height, width), mode="bilinear")
    # A step of 1..B-1 through the batch: never the picture itself.
    step = torch.randint(1, max(count, 2), (), generator=generator, device=device)
    at = (torch.arange(count, device=device) + step) % count
    noise = 0.2 * torch.randn(images.shape, generator=generator, device=device, dtype=images.dtype)
    colour = torch.rand(count, 3, 1, 1, generator=generator, device=device, dtype=images.dtype)
    kinds = {"blur": blurred, "noise": colour + noise, "other": blurred[at] + noise}
    chosen = torch.randint(len(fills), (count, 1, 1, 1), generator=generator, device=device)
    result = torch.zeros_like(images)
    for i, name in enumerate(fills):
        result = torch.where(chosen == i, kinds[name], result)
    return result.clamp(0, 1)


def frozen_logits(classifier: nn.Module, images: Tensor) -> Tensor:
    """Output of a classifier in evaluation mode, through which gradients reach the pictures and no weight.

    Args:
        classifier: any module that maps pictures to a tensor; left as it was.
        images: ``(B, 3, H, W)`` floating point.
    """
    weights = {name: weight.detach() for name, weight in classifier.named_parameters()}
    with evaluating(classifier):
        return functional_call(classifier, weights, (images,))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards each submodule is in the mode that it was in, mixed ones too."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, mode in modes:
            each.training = mode


def _check(images: Tensor, confidence: Tensor, labels: Tensor, fills: Sequence[str]) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape or not images.is_floating_point():
        raise ValueError(f"images must be (B, 3, H, W) floating point, got {tuple(images.shape)} {images.dtype}")
    wanted = (len(images), 1, *images.shape[-2:])
    if tuple(confidence.shape) != wanted or not confidence.is_floating_point():
        raise ValueError(
            f"confidence must be {wanted} floating point in 0..1, got {tuple(confidence.shape)} {confidence.dtype}; "
            "bring it to the size of the images, after the sigmoid"
        )
    low, high = (float(v) for v in torch.aminmax(confidence.detach()))
    if not (low >= 0 and high <= 1):
        raise ValueError(f"confidence must lie in 0..1, got {low:.4g} to {high:.4g}; take the sigmoid of logits")
    if labels.shape != (len(images),) or labels.is_floating_point():
        raise ValueError(f"labels must be ({len(images)},) int64, got {tuple(labels.shape)} {labels.dtype}")
    _check_fills(fills)


def _check_fills(fills: Sequence[str]) -> None:
    if isinstance(fills, str) or not fills or set(fills) - set(_FILLS):
        raise ValueError(f"fills must be one or more of {_FILLS}, as a sequence, got {fills!r}")


def _areas(area: float | tuple[float, float] | Tensor, images: Tensor, generator: torch.Generator | None) -> Tensor:
    count = len(images)
    if isinstance(area, Tensor):
        areas = area.detach().to(images.device, torch.float32)
    elif isinstance(area, int | float):
        areas = torch.full((count,), float(area), device=images.device)
    else:
        low, high = (float(end) for end in area)
        if not 0 <= low <= high <= 1:
            raise ValueError(f"a range of areas must have 0 <= low <= high <= 1, got {area}")
        areas = low + (high - low) * torch.rand(count, generator=generator, device=images.device)
    if areas.shape != (count,) or not bool(((areas >= 0) & (areas <= 1)).all()):
        raise ValueError(f"area must be a share in 0..1, a range of them, or ({count},) of them, got {area}")
    return areas
