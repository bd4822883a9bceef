"""Push-pull: smooth continuation of the visible pixels, in pure torch, batched, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor

from infill_aug.infill.backend import InfillBackend, ModelConfig, SampleContext


def push_pull(image: Tensor, mask: Tensor) -> Tensor:
    """Fill the mask with what a pyramid of weighted means knows of the visible pixels.

    Gortler et al., The Lumigraph, SIGGRAPH 1996, section 3.4.

    Args:
        image: ``(B, 3, H, W)`` float32.
        mask: ``(B, 1, H, W)`` bool; true = fill. A sample with nothing visible is filled with 0.

    Returns:
        ``(B, 3, H, W)`` float32; visible pixels unchanged.

    Example:
        >>> import torch
        >>> mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
        >>> mask[..., 1:3, 1:3] = True
        >>> bool(torch.allclose(push_pull(torch.full((1, 3, 4, 4), 0.5), mask), torch.tensor(0.5)))
        True
    """
    # Double precision where it is at hand: torch's kernels round differently with the number of threads, and a cached
    # fill must not depend on that.
    dtype = torch.float64 if image.device.type == "cpu" else torch.float32
    weight = (~mask).to(dtype)
    colour = image.to(dtype) * weight
    pyramid = [(colour, weight)]
    while max(colour.shape[-2:]) > 1:
        pad = (0, colour.shape[-1] % 2, 0, colour.shape[-2] % 2)
        colour, weight = nnf.pad(colour * weight, pad), nnf.pad(weight, pad)
        kernel = (min(2, colour.shape[-2]), min(2, colour.shape[-1]))
        total = nnf.avg_pool2d(weight, kernel)
        colour = nnf.avg_pool2d(colour, kernel) / total.clamp(min=1e-8)
        # Saturate: a cell with one visible pixel in four is known well enough.
        weight = (total * kernel[0] * kernel[1]).clamp(max=1)
        pyramid.append((colour, weight))
    fill = pyramid[-1][0]
    for colour, weight in reversed(pyramid[:-1]):
        height, width = colour.shape[-2:]
        even = (height + height % 2, width + width % 2)
        finer = nnf.interpolate(fill, size=even, mode="bilinear", align_corners=False)[..., :height, :width]
        fill = weight * colour + (1 - weight) * finer
    return torch.where(mask, fill.to(image.dtype), image)


class PushPullBackend(InfillBackend):
    """Smooth continuation of what is visible: deterministic, no weights, the fastest of all.

    Example:
        >>> import torch
        >>> from infill_aug.descriptor import TaskDescriptor
        >>> image, mask = torch.rand(1, 3, 8, 8), torch.zeros(1, 1, 8, 8)
        >>> mask[..., 2:6] = 1
        >>> PushPullBackend().generate_infill(image, mask, TaskDescriptor("demo", "cat")).shape
        torch.Size([1, 3, 8, 8])
    """

    name = "push_pull"
    may_be_flat = True

    def __init__(self) -> None:
        super().__init__()

    def _generate(self, image: Tensor, mask: Tensor, config: ModelConfig, samples: Sequence[SampleContext]) -> Tensor:
        return push_pull(image, mask)
