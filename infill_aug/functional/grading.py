"""From "this is the object" to confidence that falls off smoothly around it."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

# Distances are exact on a grid of at most this side and interpolated above it: the ring is smooth, and the cost of an
# exact transform grows with the cube of the side.
_DISTANCE_GRID = 128

# Soft maps are smooth, and their ring is wide: a coarser grid serves, and there are several transforms a map.
_SPREAD_GRID = 64
_SPREAD_LEVELS = (0.06, 0.125, 0.25, 0.5, 0.75, 0.9, 1.0)

# Rounds of row and column passes after which a geodesic distance has settled for all but maze-like pictures.
_GEODESIC_ROUNDS = 4

# Confidence just outside the object. Below every protecting threshold in use, so that the ring can be masked and the
# object cannot.
_RING = 0.9


def euclidean_distance(mask: Tensor) -> Tensor:
    """Distance of each pixel to the nearest true pixel, in pixels; infinite where a sample has none.

    Exact, by the separable lower envelope of Meijster et al. (2000), brute force along rows.

    Args:
        mask: ``(B, 1, H, W)`` bool.

    Returns:
        ``(B, 1, H, W)`` float32, 0 inside.

    Example:
        >>> import torch
        >>> mask = torch.zeros(1, 1, 1, 4, dtype=torch.bool)
        >>> mask[..., 0] = True
        >>> euclidean_distance(mask).flatten().tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    height, width = mask.shape[-2:]
    far = float(height + width) * 2
    rows = torch.arange(height, device=mask.device, dtype=torch.float32)[:, None]
    seen = torch.where(mask[:, 0], rows, -far)
    above = rows - seen.cummax(dim=1).values
    seen = torch.where(mask[:, 0], rows, far)
    below = seen.flip(1).cummin(dim=1).values.flip(1) - rows
    vertical = torch.minimum(above, below).square()  # (B, H, W)
    columns = torch.arange(width, device=mask.device, dtype=torch.float32)
    offsets = (columns[:, None] - columns[None, :]).square()  # (W, W')
    # One sample at a time bounds the memory of the (H, W, W') table.
    squared = torch.stack([(sample[:, None, :] + offsets).amin(dim=-1) for sample in vertical])
    distance = squared.sqrt()[:, None]
    return torch.where(mask.flatten(1).any(dim=1)[:, None, None, None], distance, torch.inf)


def grade(weights: Tensor, falloff: float) -> Tensor:
    """Confidence that is each object's weight on the object and falls off with the distance to it.

    ``confidence = max over weights w of w * 0.9 * exp(-distance / (falloff * sqrt(H * W)))`` outside objects of weight
    ``w``, and ``w`` inside.

    Args:
        weights: ``(B, 1, H, W)`` floating point 0..1; 0 = background. Few distinct values: one distance transform each.
        falloff: reach of the ring as a share of ``sqrt(H * W)``; 0 returns ``weights``.

    Returns:
        ``(B, 1, H, W)`` float32 in 0..1; all 0 where a sample has no object.

    Example:
        >>> import torch
        >>> weights = torch.zeros(1, 1, 1, 4)
        >>> weights[..., 0] = 1
        >>> [round(v, 2) for v in grade(weights, 0.5).flatten().tolist()]
        [1.0, 0.33, 0.12, 0.04]
    """
    weights = weights.float()
    if falloff <= 0:
        return weights
    height, width = weights.shape[-2:]
    reach = falloff * (height * width) ** 0.5
    scale = max(1.0, max(height, width) / _DISTANCE_GRID)
    small = (max(1, round(height / scale)), max(1, round(width / scale)))
    confidence = weights
    for weight in weights.unique().tolist():
        if weight <= 0:
            continue
        inside = weights == weight
        # Max, not mean: a thin object must not vanish on the way down.
        coarse = inside if scale == 1 else nnf.adaptive_max_pool2d(inside.float(), small) > 0
        ring = weight * _RING * torch.exp(-euclidean_distance(coarse) * scale / reach)
        if scale != 1:
            ring = nnf.interpolate(ring, size=(height, width), mode="bilinear", align_corners=False)
        confidence = torch.maximum(confidence, torch.where(inside, weight, ring))
    return confidence


def spread(confidence: Tensor, falloff: float, images: Tensor | None = None, edges: float = 0.0) -> Tensor:
    """A soft map with a ring around what it holds for relevant, so that its masked share is smooth in the threshold.

    ``max(confidence, 0.9 * max over pixels y of confidence(y) * exp(-distance(x, y) / (falloff * sqrt(H * W))))``, what
    ``grade`` does to labels. With ``images`` the distance is geodesic: a step between two pixels is longer by
    ``edges`` times their difference, so that the ring stays on its own side of an edge (as in the geodesic matting of
    Bai and Sapiro, 2007), found by alternating passes along rows and columns.

    Args:
        confidence: ``(B, 1, H, W)`` floating point in 0..1.
        falloff: reach of the ring as a share of ``sqrt(H * W)``; 0 returns the map.
        images: ``(B, 3, H, W)`` floating point in 0..1; ``None`` spreads by distance alone.
        edges: weight of the picture's edges, 0 or more; 30 makes a strong edge as long as thirty pixels.

    Returns:
        ``(B, 1, H, W)`` float32 in 0..1, nowhere below ``confidence``.

    Example:
        >>> import torch
        >>> confidence = torch.zeros(1, 1, 8, 8)
        >>> confidence[..., 0] = 1
        >>> [round(v, 2) for v in spread(confidence, 0.5)[0, 0, 0, :4].tolist()]
        [1.0, 0.7, 0.55, 0.43]
    """
    confidence = confidence.float()
    if falloff <= 0:
        return confidence
    height, width = confidence.shape[-2:]
    scale = max(1.0, max(height, width) / _SPREAD_GRID)
    small = (max(1, round(height / scale)), max(1, round(width / scale)))
    reach = falloff * (height * width) ** 0.5 / scale
    # Mean, not max: a soft map's lone bright pixel is noise.
    coarse = confidence if scale == 1 else nnf.adaptive_avg_pool2d(confidence, small)
    if images is None or edges <= 0:
        ring = torch.zeros_like(coarse)
        for level in _SPREAD_LEVELS:
            ring = torch.maximum(ring, level * torch.exp(-euclidean_distance(coarse >= level) / reach))
    else:
        guide = images.float() if scale == 1 else nnf.adaptive_avg_pool2d(images.float(), small)
        ring = _geodesic(coarse, guide, reach, edges)
    if scale != 1:
        ring = nnf.interpolate(ring, size=(height, width), mode="bilinear", align_corners=False)
    return torch.maximum(confidence, _RING * ring)


def _geodesic(confidence: Tensor, guide: Tensor, reach: float, edges: float) -> Tensor:
    """``max over y of confidence(y) * exp(-geodesic(x, y) / reach)``: exact along a line, rows and columns in turn."""
    score = confidence.clamp(min=1e-6).log()
    lengths = []
    for axis in (-1, -2):
        # City blocks are 4 / pi longer than straight lines, on the average over directions.
        step = (1 + edges * guide.diff(dim=axis).abs().amax(dim=1, keepdim=True)) * (torch.pi / 4) / reach
        start = torch.zeros_like(confidence.narrow(axis, 0, 1))
        lengths.append(torch.cat([start, step], dim=axis).cumsum(dim=axis))
    for _ in range(_GEODESIC_ROUNDS):
        for axis, length in zip((-1, -2), lengths, strict=True):
            forward = (score + length).cummax(dim=axis).values - length
            backward = (score - length).flip(axis).cummax(dim=axis).values.flip(axis) + length
            score = torch.maximum(forward, backward)
    return score.exp()


def centre_prior(height: int, width: int, falloff: float = 0.3) -> Tensor:
    """Gaussian bell over the picture, 1 at the centre.

    Args:
        height: pixels.
        width: pixels.
        falloff: standard deviation as a share of ``sqrt(height * width)``, above 0.

    Returns:
        ``(1, 1, height, width)`` float32 in 0..1.

    Raises:
        ValueError: ``falloff`` is not above 0.

    Example:
        >>> centre_prior(3, 3).argmax().item()
        4
    """
    if falloff <= 0:
        raise ValueError(f"falloff of a centre prior must be above 0, got {falloff}")
    reach = falloff * (height * width) ** 0.5
    y = torch.arange(height, dtype=torch.float32) - (height - 1) / 2
    x = torch.arange(width, dtype=torch.float32) - (width - 1) / 2
    return torch.exp(-(y[:, None] ** 2 + x[None, :] ** 2) / (2 * reach**2))[None, None]
