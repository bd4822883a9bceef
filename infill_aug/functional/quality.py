"""How well a confidence map agrees with what is known to matter: one number a picture, means are the caller's.

Every function takes ``confidence`` ``(B, 1, H, W)`` floating point in 0..1 and ``truth`` ``(B, 1, H, W)`` bool of the
same shape and device. Pictures without any true pixel have no score where a score would need one: NaN, which
``torch.nanmean`` leaves out. Pictures that are true all over have one, but any map reaches it in the scores that look
at the order of pixels alone (``average_precision``, ``iou_at_area``, ``pointing_game`` are 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from infill_aug.types import check_confidence, quantise_confidence

# Weight of recall against precision in the F-measure of salient objects.
_BETA2 = 0.3


def iou(confidence: Tensor, truth: Tensor, threshold: float = 0.5) -> Tensor:
    """Intersection over union (Jaccard, 1901) of what is true and what lies above a threshold.

    A graded ring around the object that rises above the threshold lowers it; ``average_precision`` is not touched.

    Args:
        confidence: ``(B, 1, H, W)`` floating point in 0..1.
        truth: ``(B, 1, H, W)`` bool.
        threshold: 0 or more and below 1; pixels with more confidence are found.

    Returns:
        ``(B,)`` float32 in 0..1; NaN without a true pixel.

    Raises:
        ValueError: shapes, dtypes or values that are not as said.

    Example:
        >>> import torch
        >>> iou(torch.tensor([[[[0.9, 0.8, 0.1]]]]), torch.tensor([[[[True, False, False]]]])).tolist()
        [0.5]
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be 0 or more and below 1, got {threshold}; at 1 nothing can be found")
    score, true = _flat(confidence, truth)
    found = score > threshold
    return _or_nan((found & true).sum(dim=1) / (found | true).sum(dim=1), true)


def iou_at_area(confidence: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union where as many pixels are found as are true: those of highest confidence.

    It looks at the order of pixels alone, so that the map's scale does not matter. Of pixels that are tied at the limit
    each counts as found in part, which is the intersection to be expected when ties are broken at random.

    Args:
        confidence: ``(B, 1, H, W)`` floating point in 0..1.
        truth: ``(B, 1, H, W)`` bool.

    Returns:
        ``(B,)`` float32 in 0..1; NaN without a true pixel.

    Raises:
        ValueError: shapes, dtypes or values that are not as said.

    Example:
        >>> import torch
        >>> iou_at_area(torch.tensor([[[[0.3, 0.2, 0.1]]]]), torch.tensor([[[[True, True, False]]]])).tolist()
        [1.0]
    """
    score, true = _flat(confidence, truth)
    area = true.sum(dim=1, keepdim=True)
    limit = score.sort(dim=1, descending=True).values.gather(1, (area - 1).clamp(min=0))
    above, tied = score > limit, score == limit
    part = (area - above.sum(dim=1, keepdim=True)) / tied.sum(dim=1, keepdim=True)
    common = (above & true).sum(dim=1) + part[:, 0] * (tied & true).sum(dim=1)
    return _or_nan(common / (2 * area[:, 0] - common), true)


def average_precision(confidence: Tensor, truth: Tensor) -> Tensor:
    """Area under the precision-recall curve as a sum of steps, over all pixels of each picture.

    ``sum over distinct confidences of (recall - recall before) * precision``, without interpolation; pixels of equal
    confidence are found together, as in ``sklearn.metrics.average_precision_score``. A map without any information
    has the share of true pixels for its score.

    Args:
        confidence: ``(B, 1, H, W)`` floating point in 0..1.
        truth: ``(B, 1, H, W)`` bool.

    Returns:
        ``(B,)`` float32 in 0..1; NaN without a true pixel.

    Raises:
        ValueError: shapes, dtypes or values that are not as said.

    Example:
        >>> import torch
        >>> average_precision(torch.tensor([[[[0.9, 0.5, 0.5]]]]), torch.tensor([[[[True, True, False]]]])).item()
        0.8333...
    """
    score, true = _flat(confidence, truth)
    score, order = score.sort(dim=1, descending=True)
    true = true.gather(1, order)
    count = score.shape[1]
    place = torch.arange(count, device=score.device).expand_as(order)
    precision = true.cumsum(dim=1) / (place + 1)
    # Tied pixels are found together: the precision of each is that of the last of them.
    last = torch.ones_like(true)
    last[:, :-1] = score[:, 1:] != score[:, :-1]
    end = torch.where(last, place, count).flip(1).cummin(dim=1).values.flip(1)
    return _or_nan((precision.gather(1, end) * true).sum(dim=1) / true.sum(dim=1), true)


def precision_recall_curve(confidence: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Precision and recall at all thresholds of 8 bits, as the field of salient objects draws them.

    Pixels are found at threshold ``t / 255`` where their confidence, rounded to 8 bits, is ``t`` or more. Where none is
    found, precision is 0. Maps are taken as they are, and not stretched to 0..1 first, as some toolboxes do.

    Args:
        confidence: ``(B, 1, H, W)`` floating point in 0..1.
        truth: ``(B, 1, H, W)`` bool.

    Returns:
        Precision and recall, ``(B, 256)`` float32 in 0..1 each, by rising threshold; NaN without a true pixel.

    Raises:
        ValueError: shapes, dtypes or values that are not as said.

    Example:
        >>> import torch
        >>> truth = torch.tensor([[[[True, False]]]])
        >>> precision, recall = precision_recall_curve(truth.float(), truth)
        >>> precision[0, :2].tolist(), recall[0, -1].item()
        ([0.5, 1.0], 1.0)
    """
    score, true = _flat(confidence, truth)
    level = quantise_confidence(score).long()
    hits, found = (
        torch.zeros(len(level), 256, dtype=torch.int64, device=level.device)
        .scatter_add_(1, level, weight.long())
        .flip(1)
        .cumsum(dim=1)
        .flip(1)
        for weight in (true, torch.ones_like(true))
    )
    return _or_nan(hits / found.clamp(min=1), true), _or_nan(hits / true.sum(dim=1, keepdim=True), true)


def max_f_from_curve(precision: Tensor, recall: Tensor, beta2: float = _BETA2) -> float:
    """Highest F-measure over the thresholds, of precision and recall averaged over the pictures first.

    The convention of published figures on ECSSD and its like (Achanta et al., 2009, for ``beta2 = 0.3``). Join the
    curves of several batches with ``torch.cat``.

    Args:
        precision: ``(B, T)`` floating point in 0..1, as ``precision_recall_curve`` gives it.
        recall: the same.
        beta2: weight of recall, above 0.

    Returns:
        0..1; NaN where no picture has a true pixel.

    Raises:
        ValueError: curves of other shapes, or a ``beta2`` that is not above 0.

    Example:
        >>> import torch
        >>> round(max_f_from_curve(torch.tensor([[0.5, 1.0]]), torch.tensor([[1.0, 0.5]])), 3)
        0.812
    """
    if precision.ndim != 2 or precision.shape != recall.shape:
        raise ValueError(
            f"precision and recall must both be (B, T), got {tuple(precision.shape)} and {tuple(recall.shape)}; "
            "take them from precision_recall_curve"
        )
    if not beta2 > 0:
        raise ValueError(f"beta2 must be above 0, got {beta2}; 0.3 is usual")
    p, r = precision.float().nanmean(dim=0), recall.float().nanmean(dim=0)
    measure = (1 + beta2) * p * r / (beta2 * p + r).clamp(min=1e-12)
    return float(measure.max())


def max_f(confidence: Tensor, truth: Tensor, beta2: float = _BETA2) -> float:
    """``max_f_from_curve`` of the pictures of one batch, as one set.

    Args:
        confidence: ``(B, 1, H, W)`` floating point in 0..1.
        truth: ``(B, 1, H, W)`` bool.
        beta2: weight of recall, above 0.

    Returns:
        0..1; NaN where no picture has a true pixel.

    Raises:
        ValueError: shapes, dtypes or values that are not as said.

    Example:
        >>> import torch
        >>> truth = torch.eye(3)[None, None] > 0
        >>> max_f(truth.float(), truth)
        1.0
    """
    return max_f_from_curve(*precision_recall_curve(confidence, truth), beta2)


def mean_absolute_error(confidence: Tensor, truth: Tensor) -> Tensor:
    """Mean over the pixels of how far confidence is from 1 where it is true and from 0 where not.

    Args:
        confidence: ``(B, 1, H, W)`` floating point in 0..1.
        truth: ``(B, 1, H, W)`` bool; may be empty.

    Returns:
        ``(B,)`` float32 in 0..1, lower is better.

    Raises:
        ValueError: shapes, dtypes or values that are not as said.

    Example:
        >>> import torch
        >>> mean_absolute_error(torch.tensor([[[[0.75, 0.25]]]]), torch.tensor([[[[True, False]]]])).tolist()
        [0.25]
    """
    score, true = _flat(confidence, truth)
    return (score - true.float()).abs().mean(dim=1)


def pointing_game(confidence: Tensor, truth: Tensor) -> Tensor:
    """Whether the pixel of highest confidence is true (Zhang et al., 2016, without their tolerance of 15 pixels).

    Args:
        confidence: ``(B, 1, H, W)`` floating point in 0..1.
        truth: ``(B, 1, H, W)`` bool.

    Returns:
        ``(B,)`` float32: 1 or 0, the true share of them where several pixels are highest; NaN without a true pixel.

    Raises:
        ValueError: shapes, dtypes or values that are not as said.

    Example:
        >>> import torch
        >>> pointing_game(torch.tensor([[[[0.9, 0.9, 0.1]]]]), torch.tensor([[[[True, False, False]]]])).tolist()
        [0.5]
    """
    score, true = _flat(confidence, truth)
    highest = score == score.amax(dim=1, keepdim=True)
    return _or_nan((highest & true).sum(dim=1) / highest.sum(dim=1), true)


def calibration_bins(confidence: Tensor, truth: Tensor, bins: int = 15) -> Tensor:
    """What a reliability plot shows: pixels by their confidence, in bins of equal width.

    Args:
        confidence: ``(B, 1, H, W)`` floating point in 0..1.
        truth: ``(B, 1, H, W)`` bool; may be empty.
        bins: 1 or more.

    Returns:
        ``(B, 3, bins)`` float32: for each bin the sum over its pixels of 1, of their confidence and of their truth, as
        shares of all pixels of the picture. Their mean over pictures is that of the set, where each picture counts
        the same; confidence or truth over the first row is a bin's mean.

    Raises:
        ValueError: shapes, dtypes or values that are not as said.

    Example:
        >>> import torch
        >>> calibration_bins(torch.tensor([[[[0.1, 0.9]]]]), torch.tensor([[[[False, True]]]]), 2)[0]
        tensor([[0.5000, 0.5000],
                [0.0500, 0.4500],
                [0.0000, 0.5000]])
    """
    if bins < 1:
        raise ValueError(f"bins must be 1 or more, got {bins}; 15 is usual")
    score, true = _flat(confidence, truth)
    index = (score * bins).long().clamp(max=bins - 1)
    values = torch.stack([torch.ones_like(score), score, true.float()], dim=1)
    sums = [values.masked_fill((index != each)[:, None], 0).sum(dim=2) for each in range(bins)]
    return torch.stack(sums, dim=2) / score.shape[1]


def calibration_error_from_bins(bins: Tensor) -> Tensor:
    """Expected calibration error of ``calibration_bins``, of one picture or of a mean over many.

    Args:
        bins: ``(..., 3, bins)``.

    Returns:
        ``(...)`` float32 in 0..1.

    Example:
        >>> import torch
        >>> calibration_error_from_bins(torch.tensor([[1.0], [0.75], [0.5]])).item()
        0.25
    """
    return (bins[..., 1, :] - bins[..., 2, :]).abs().sum(dim=-1)


def calibration_error(confidence: Tensor, truth: Tensor, bins: int = 15) -> Tensor:
    """Expected calibration error of each picture (Guo et al., 2017): confidence against the true share, bin by bin.

    The mean of it over pictures is not that of the set, in which over- and under-confident pictures make up for each
    other: for that, average ``calibration_bins`` first.

    Args:
        confidence: ``(B, 1, H, W)`` floating point in 0..1.
        truth: ``(B, 1, H, W)`` bool; may be empty.
        bins: 1 or more.

    Returns:
        ``(B,)`` float32 in 0..1, lower is better.

    Raises:
        ValueError: shapes, dtypes or values that are not as said.

    Example:
        >>> import torch
        >>> calibration_error(torch.full((1, 1, 2, 2), 0.75), torch.eye(2)[None, None] > 0).tolist()
        [0.25]
    """
    return calibration_error_from_bins(calibration_bins(confidence, truth, bins))


def _flat(confidence: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Checked maps as ``(B, H * W)`` float32 and bool."""
    if confidence.ndim != 4 or confidence.shape[1] != 1 or 0 in confidence.shape[1:]:
        raise ValueError(f"confidence must be (B, 1, H, W) and not empty, got shape {tuple(confidence.shape)}")
    if not confidence.is_floating_point():
        raise ValueError(f"confidence must be floating point in 0..1, got {confidence.dtype}; divide uint8 by 255")
    if truth.shape != confidence.shape:
        raise ValueError(
            f"truth has shape {tuple(truth.shape)}, confidence {tuple(confidence.shape)}; resize one of them"
        )
    if truth.dtype != torch.bool:
        raise ValueError(f"truth must be bool, got {truth.dtype}; compare it first, for example truth > 0.5")
    check_confidence(confidence)
    return confidence.detach().float().flatten(1), truth.flatten(1)


def _or_nan(value: Tensor, true: Tensor) -> Tensor:
    """``value`` as float32, and NaN for pictures without a true pixel."""
    some = true.any(dim=1).reshape(-1, *[1] * (value.ndim - 1))
    return value.float().masked_fill(~some, torch.nan)
