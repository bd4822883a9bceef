"""Fractal noise with the colours of the visible pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor

from infill_aug.descriptor import TaskDescriptor
from infill_aug.infill.backend import InfillBackend, ModelConfig, SampleContext

# Finest cell of the noise in pixels, by the descriptor's complexity.
_FINEST = {"low": 16, "medium": 4, "high": 1}


def fractal_noise(height: int, width: int, seed: int, finest: int = 1) -> Tensor:
    """Sum of octaves of bilinear noise, each half as strong as the coarser one; mean 0, deviation 1 per channel.

    Args:
        height: pixels.
        width: pixels.
        seed: the only source of randomness; drawn on the CPU, so that every device gets the same noise.
        finest: cell of the finest octave in pixels.

    Returns:
        ``(3, height, width)`` float32.

    Example:
        >>> fractal_noise(8, 8, seed=1).shape
        torch.Size([3, 8, 8])
    """
    generator = torch.Generator().manual_seed(seed)
    # Double precision: torch's kernels round differently with the number of threads, and a cached fill must not depend
    # on that.
    total = torch.zeros(1, 3, height, width, dtype=torch.float64)
    cell, strength = max(height, width) / 2, 1.0
    while True:  # one octave at least, however small the picture
        size = (max(1, round(height / cell)) + 1, max(1, round(width / cell)) + 1)
        octave = torch.randn(1, 3, *size, generator=generator, dtype=torch.float64)
        total += strength * nnf.interpolate(octave, size=(height, width), mode="bilinear", align_corners=True)
        cell, strength = cell / 2, strength / 2
        if cell < finest:
            break
    total -= total.mean(dim=(2, 3), keepdim=True)
    return (total / total.std(dim=(2, 3), keepdim=True, correction=0).clamp(min=1e-6))[0].float()


class NoiseBackend(InfillBackend):
    """Fractal noise with mean and deviation of the visible pixels: carries no structure of the picture at all.

    The descriptor's ``complexity`` sets how fine it is.

    Example:
        >>> import torch
        >>> from infill_aug.descriptor import TaskDescriptor
        >>> image, mask = torch.rand(1, 3, 8, 8), torch.ones(1, 1, 8, 8)
        >>> NoiseBackend().generate_infill(image, mask, TaskDescriptor("demo", "cat")).shape
        torch.Size([1, 3, 8, 8])
    """

    name = "noise"
    cut_out = True
    stochastic = True
    needs_visible = False

    def __init__(self) -> None:
        super().__init__()

    def model_config(self, descriptor: TaskDescriptor) -> ModelConfig:
        """Options and the finest cell that the complexity stands for."""
        config = super().model_config(descriptor)
        return dataclasses.replace(config, options=(*config.options, ("finest", _FINEST[descriptor.complexity])))

    def _generate(self, image: Tensor, mask: Tensor, config: ModelConfig, samples: Sequence[SampleContext]) -> Tensor:
        height, width = image.shape[-2:]
        finest = dict(config.options)["finest"]
        noise = torch.stack([fractal_noise(height, width, sample.seed, finest) for sample in samples])
        dtype = torch.float64 if image.device.type == "cpu" else torch.float32
        image, visible = image.to(dtype), (~mask).to(dtype)
        count = visible.sum(dim=(2, 3), keepdim=True)
        mean = (image * visible).sum(dim=(2, 3), keepdim=True) / count.clamp(min=1)
        square = (image.square() * visible).sum(dim=(2, 3), keepdim=True) / count.clamp(min=1)
        deviation = (square - mean.square()).clamp(min=0).sqrt()
        # With nothing visible, mid-grey with the spread of an average photograph.
        mean = torch.where(count > 0, mean, 0.5)
        deviation = torch.where(count > 0, deviation, 0.25).clamp(min=0.02)
        return (mean + deviation * noise.to(image.device)).clamp(0, 1).float()
