"""Whether a classifier looks where the confidence is high: pixels are taken out or left in by their confidence.

Pixels that are taken out show a substrate in their place: ``"blur"``, the picture blurred until no detail is left, or
``"mean"``, its mean colour. A classifier may react to the substrate itself (missingness bias: Jain et al., 2022), so
that these numbers say something only next to those of another map, such as a random one, on the same pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from infill_aug.functional.blur import gaussian_blur

Classifier = Callable[[Tensor], Tensor]
SUBSTRATES = ("blur", "mean")

# Standard deviation of the blur as a share of sqrt(H * W): 11 pixels at 224, as in Dabkowski and Gal (2017).
_BLUR = 0.05


def substrate_of(images: Tensor, substrate: str = "blur") -> Tensor:
    """What shows where pixels are taken out.

    Args:
        images: ``(B, 3, H, W)`` floating point, of any range.
        substrate: ``"blur"``: a Gaussian of deviation ``0.05 * sqrt(H * W)``; ``"mean"``: each picture's mean colour.

    Returns:
        Same shape, dtype and device.

    Raises:
        ValueError: another substrate.

    Example:
        >>> import torch
        >>> substrate_of(torch.tensor([0.0, 1.0]).expand(1, 3, 4, 2), "mean").unique().item()
        0.5
    """
    if substrate not in SUBSTRATES:
        raise ValueError(f"substrate must be one of {SUBSTRATES}, got {substrate!r}")
    if substrate == "mean":
        return images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    return gaussian_blur(images, _BLUR * math.sqrt(images.shape[-2] * images.shape[-1]))


def deletion_auc(
    classifier: Classifier,
    images: Tensor,
    confidence: Tensor,
    labels: Tensor | None = None,
    *,
    steps: int = 16,
    substrate: str = "blur",
    generator: torch.Generator | None = None,
    batch_size: int = 64,
) -> Tensor:
    """Mean probability of the class while pixels are taken out, those of highest confidence first.

    RISE's deletion metric (Petsiuk et al., 2018): the area under the probability against the share that is gone, by the
    trapezoid rule. Low is good: the class goes with the first pixels.

    Args:
        classifier: ``(B, 3, H, W) -> (B, K)`` logits; a module in evaluation mode, on the device of ``images``.
        images: ``(B, 3, H, W)`` floating point, as the classifier takes them.
        confidence: ``(B, 1, H, W)`` floating point in 0..1.
        labels: ``(B,)`` integer classes to follow; ``None``: those that the classifier gives the whole pictures.
        steps: equal shares of the pixels, taken out one after the other, 1 or more.
        substrate: ``"blur"`` or ``"mean"``, see ``substrate_of``.
        generator: orders pixels of equal confidence; ``None``: a new one of seed 0.
        batch_size: pictures that the classifier sees at once.

    Returns:
        ``(B,)`` float32 in 0..1 on the device of ``images``.

    Raises:
        ValueError: shapes, dtypes or values that are not as said, or a classifier in training mode.

    Example:
        >>> import torch
        >>> def first_pixel_is_bright(images):
        ...     return torch.stack([20 * images[:, 0, 0, 0] - 10, torch.zeros(len(images))], dim=1)
        >>> images = torch.zeros(1, 3, 1, 4)
        >>> images[..., 0] = 1
        >>> deletion_auc(first_pixel_is_bright, images, images[:, :1], steps=4, substrate="mean").item() < 0.2
        True
    """
    return _auc(classifier, images, confidence, labels, steps, substrate, generator, batch_size, insert=False)


def insertion_auc(
    classifier: Classifier,
    images: Tensor,
    confidence: Tensor,
    labels: Tensor | None = None,
    *,
    steps: int = 16,
    substrate: str = "blur",
    generator: torch.Generator | None = None,
    batch_size: int = 64,
) -> Tensor:
    """Mean probability of the class while pixels come back, those of highest confidence first.

    RISE's insertion metric (Petsiuk et al., 2018), the reverse of ``deletion_auc``. High is good: the first pixels
    bring the class.

    Args:
        classifier: ``(B, 3, H, W) -> (B, K)`` logits; a module in evaluation mode, on the device of ``images``.
        images: ``(B, 3, H, W)`` floating point, as the classifier takes them.
        confidence: ``(B, 1, H, W)`` floating point in 0..1.
        labels: ``(B,)`` integer classes to follow; ``None``: those that the classifier gives the whole pictures.
        steps: equal shares of the pixels, put back one after the other, 1 or more.
        substrate: ``"blur"`` or ``"mean"``, see ``substrate_of``.
        generator: orders pixels of equal confidence; ``None``: a new one of seed 0.
        batch_size: pictures that the classifier sees at once.

    Returns:
        ``(B,)`` float32 in 0..1 on the device of ``images``.

    Raises:
        ValueError: shapes, dtypes or values that are not as said, or a classifier in training mode.

    Example:
        >>> import torch
        >>> def first_pixel_is_bright(images):
        ...     return torch.stack([20 * images[:, 0, 0, 0] - 10, torch.zeros(len(images))], dim=1)
        >>> images = torch.zeros(1, 3, 1, 4)
        >>> images[..., 0] = 1
        >>> insertion_auc(first_pixel_is_bright, images, images[:, :1], steps=4, substrate="mean").item() > 0.8
        True
    """
    return _auc(classifier, images, confidence, labels, steps, substrate, generator, batch_size, insert=True)


@torch.inference_mode()
def kept_accuracy(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    confidence: Tensor,
    keep: float = 0.5,
    *,
    substrate: str = "blur",
    generator: torch.Generator | None = None,
    batch_size: int = 64,
) -> Tensor:
    """Whether the classifier is right on the share of pixels with the highest confidence alone.

    Args:
        classifier: ``(B, 3, H, W) -> (B, K)`` logits; a module in evaluation mode, on the device of ``images``.
        images: ``(B, 3, H, W)`` floating point, as the classifier takes them.
        labels: ``(B,)`` integer classes.
        confidence: ``(B, 1, H, W)`` floating point in 0..1.
        keep: share of the pixels that is kept, 0..1; the substrate takes the place of the others.
        substrate: ``"blur"`` or ``"mean"``, see ``substrate_of``.
        generator: orders pixels of equal confidence; ``None``: a new one of seed 0.
        batch_size: pictures that the classifier sees at once.

    Returns:
        ``(B,)`` float32, 1 where right and 0 where wrong, on the device of ``images``; its mean is the accuracy.

    Raises:
        ValueError: shapes, dtypes or values that are not as said, or a classifier in training mode.

    Example:
        >>> import torch
        >>> images = torch.rand(4, 3, 8, 8)
        >>> kept_accuracy(lambda x: x.mean((2, 3)), images, images.mean((2, 3)).argmax(1), images[:, :1], 1.0).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    _check(classifier, images, confidence, labels)
    if not 0 <= keep <= 1:
        raise ValueError(f"keep must lie in 0..1, got {keep}")
    shown = _ranks(confidence, generator) < round(keep * confidence[0].numel())
    pictures = torch.where(shown, images, substrate_of(images, substrate))
    found = [_logits(classifier, chunk).argmax(dim=1) for chunk in pictures.split(batch_size)]
    return (torch.cat(found) == labels.to(images.device)).float()


def check_classifier(classifier: Classifier) -> None:
    """Raise a ``ValueError`` for a classifier in training mode, in which it would learn from what it is shown.

    Args:
        classifier: anything callable; only modules have a mode.

    Example:
        >>> from torch import nn
        >>> check_classifier(nn.Linear(1, 1).eval())
    """
    if isinstance(classifier, nn.Module) and classifier.training:
        raise ValueError("the classifier is in training mode; call classifier.eval() first")


@torch.inference_mode()
def _auc(
    classifier: Classifier, images: Tensor, confidence: Tensor, labels: Tensor | None, steps: int, substrate: str,
    generator: torch.Generator | None, batch_size: int, *, insert: bool,
) -> Tensor:  # fmt: skip
    _check(classifier, images, confidence, labels)
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}; 16 is usual")
    if labels is None:
        labels = torch.cat([_logits(classifier, chunk).argmax(dim=1) for chunk in images.split(batch_size)])
    labels = labels.to(images.device)
    ranks, empty, count = _ranks(confidence, generator), substrate_of(images, substrate), confidence[0].numel()
    # Every picture at every step, in one list that is cut into batches: changed pictures exist a batch at a time.
    jobs = torch.arange((steps + 1) * len(images), device=images.device)
    curve = []
    for job in jobs.split(batch_size):
        at, step = job % len(images), job // len(images)
        first = ranks[at] < (step * count / steps).round().reshape(-1, 1, 1, 1)
        top, rest = (images, empty) if insert else (empty, images)
        probabilities = _logits(classifier, torch.where(first, top[at], rest[at])).float().softmax(dim=1)
        curve.append(probabilities.gather(1, labels[at][:, None])[:, 0])
    return torch.trapezoid(torch.cat(curve).reshape(steps + 1, len(images)), dim=0) / steps


def _ranks(confidence: Tensor, generator: torch.Generator | None) -> Tensor:
    """``(B, 1, H, W)``: 0 for the pixel of highest confidence, and so on; equal ones in random order."""
    generator = generator or torch.Generator().manual_seed(0)
    score = confidence.float().flatten(1)
    # Drawn where the generator lives, so that a device gives the order that the CPU gives.
    shuffled = torch.rand(score.shape, generator=generator, device=generator.device).argsort(dim=1).to(score.device)
    order = shuffled.gather(1, score.gather(1, shuffled).argsort(dim=1, descending=True, stable=True))
    places = torch.arange(score.shape[1], device=score.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).reshape(confidence.shape)


def _logits(classifier: Classifier, images: Tensor) -> Tensor:
    logits = classifier(images)
    if logits.ndim != 2 or len(logits) != len(images):
        raise ValueError(
            f"the classifier gave shape {tuple(logits.shape)} for {len(images)} pictures; (B, K) logits are needed"
        )
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("the classifier gave logits that are not finite; run it in float32, or mend its weights")
    return logits


def _check(classifier: Classifier, images: Tensor, confidence: Tensor, labels: Tensor | None) -> None:
    check_classifier(classifier)
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape or not images.is_floating_point():
        raise ValueError(
            f"images must be (B, 3, H, W) floating point and not empty, got {images.dtype} {tuple(images.shape)}"
        )
    wanted = (len(images), 1, *images.shape[-2:])
    if confidence.shape != wanted:
        raise ValueError(f"confidence has shape {tuple(confidence.shape)}, these images need {wanted}; resize it")
    if not bool(torch.isfinite(confidence).all()):
        raise ValueError("confidence contains NaN or infinity, which has no order; mend the model that made it")
    if labels is not None and (labels.shape != (len(images),) or labels.is_floating_point()):
        raise ValueError(
            f"labels must be one integer class for each of the {len(images)} images, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}"
        )
