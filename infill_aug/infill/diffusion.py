"""The small diffusion model that ships with the package, or one that you trained on your pictures."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from infill_aug.checkpoint import Checkpoint
from infill_aug.descriptor import TaskDescriptor
from infill_aug.infill.backend import BackendUnavailableError, ModelConfig, PoolSample, SampleContext
from infill_aug.infill.donor_pool import DonorPool, random_crop
from infill_aug.infill.network import NetworkBackend
from infill_aug.infill.visible import resize_visible

# Network evaluations by the descriptor's complexity.
_STEPS = {"low": 2, "medium": 4, "high": 8}
# How much of a coarse fill is turned into noise when the next finer size takes it over.
_REFINE = 0.4
# A picture longer than this, in its shorter sides, is squeezed.
_MOST_ASPECT = 2


class DiffusionBackend(NetworkBackend):
    """Small diffusion model on pixels: no text, no downloads, a few steps on a CPU.

    It fills at its own size of 64 pixels, takes that over at twice the size, and adds the fine detail of a donor,
    another training picture. Where the build offers no other pictures, it begins with noise and adds no detail.

    Args:
        weights: folder that ``recipes/train_infiller.py`` wrote, or any ``InfillPipeline``. There are no bundled ones
            yet.
        steps: network evaluations, 1 or more; by default 2, 4 or 8 by the descriptor's complexity.
        strength: 0..1, how far a fill departs from the donor that it begins with; at 1 it begins with noise.
        detail: 0..1, how much of the donor's fine detail is added at sizes that the network does not reach.
        pool_size: training pictures to take donors from, 0 or more.

    Example:
        >>> backend = DiffusionBackend(steps=1)
        >>> config = backend.model_config(TaskDescriptor("demo", "cat"))
        >>> dict(config.options)["steps"]
        1
    """

    name = "diffusion"
    stochastic = True
    max_batch = 32

    def __init__(
        self,
        weights: str | None = None,
        steps: int | None = None,
        strength: float = 0.6,
        detail: float = 1.0,
        pool_size: int = 256,
    ) -> None:
        if isinstance(pool_size, bool) or not isinstance(pool_size, int) or pool_size < 0:
            raise ValueError(f"pool_size must be an integer of 0 or more, got {pool_size!r}")
        super().__init__(steps=steps, strength=strength, detail=detail)
        self.weights = Checkpoint(weights) if weights is not None else None
        self.pool_size = pool_size
        self._pool = DonorPool()

    def check_options(self, options: Mapping[str, Any]) -> None:
        """``steps`` is 1 or more or null, ``strength`` lies above 0 and up to 1, ``detail`` in 0..1."""
        steps, strength, detail = options["steps"], options["strength"], options["detail"]
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= 50):
            raise ValueError(f"steps must be an integer in 1..50 or null, got {steps!r}")
        if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 < strength <= 1:
            raise ValueError(f"strength must lie above 0 and up to 1, got {strength!r}; at 1 a fill begins with noise")
        if isinstance(detail, bool) or not isinstance(detail, int | float) or not 0 <= detail <= 1:
            raise ValueError(f"detail must lie in 0..1, got {detail!r}")

    def prepare(self, pool: Iterable[PoolSample]) -> None:
        """Keep the backgrounds of training pictures as donors."""
        self._pool = DonorPool.of(pool)

    def model_config(self, descriptor: TaskDescriptor) -> ModelConfig:
        """Options with the steps that the complexity stands for; weights and donors as model and revision."""
        config = super().model_config(descriptor)
        options = dict(config.options)
        options["steps"] = options["steps"] or _STEPS[descriptor.complexity]
        return dataclasses.replace(
            config,
            options=tuple(sorted(options.items())),
            model=str(self.weights.identity["checkpoint"]) if self.weights is not None else "",
            revision=self._pool.digest,
        )

    def load(self, device: torch.device) -> Any:
        """The pipeline, in float32.

        Raises:
            BackendUnavailableError: the folder holds no such pipeline.
        """
        if self.weights is None:
            raise BackendUnavailableError(
                "backend 'diffusion' has no bundled weights yet: train some on your pictures with "
                "recipes/train_infiller.py, and give their folder as option 'weights'"
            )
        try:
            pipelines = importlib.import_module("infill_aug.infill.pipeline")
        except ImportError as error:
            raise ImportError("backend 'diffusion' needs diffusers: pip install 'infill-aug[diffusers]'") from error
        try:
            return pipelines.load_infiller(self.weights.name, device)
        except (OSError, ValueError, KeyError) as error:
            raise BackendUnavailableError(
                f"{self.weights.name!r} holds no infiller: {error} Train one with recipes/train_infiller.py."
            ) from error

    def _fill(
        self, network: Any, image: Tensor, mask: Tensor, config: ModelConfig, samples: Sequence[SampleContext]
    ) -> Tensor:
        options = dict(config.options)
        height, width = image.shape[-2:]
        donors = self._donors(samples, height, width, image.device)
        # Seeds of their own: the donor's crop and the noise must not go together.
        generators = [torch.Generator().manual_seed(sample.seed) for sample in samples]
        fill, base = None, network.size
        for size in sizes(height, width, base):
            small, hole = resize_visible(image, mask, size)
            if fill is not None:
                begin, strength = _to(fill, size), _REFINE
            elif donors is not None and options["strength"] < 1:
                begin, strength = _to(donors, size), float(options["strength"])
            else:
                begin, strength = None, 1.0
            fill = network(small, hole, generators, steps=options["steps"], start=begin, strength=strength)
        assert fill is not None
        full = _to(fill, (height, width))
        if donors is not None and options["detail"] > 0:
            full = add_detail(full, donors, fill.shape[-2:], options["detail"])
        return full.clamp(0, 1)

    def _donors(self, samples: Sequence[SampleContext], height: int, width: int, device: torch.device) -> Tensor | None:
        if not self._pool:
            return None
        crops = []
        for sample in samples:
            random = np.random.default_rng(sample.seed)
            plate = self._pool.choose(random, sample, False)
            crops.append(random_crop(random, plate, height, width))
        return torch.stack(crops).to(device)


def sizes(height: int, width: int, base: int, cell: int = 16) -> list[tuple[int, int]]:
    """The sizes at which a picture is filled one after the other: the network's own, and twice that for larger ones.

    Args:
        height: of the picture, pixels.
        width: of the picture, pixels.
        base: side of the network's square.
        cell: sides are multiples of this.

    Example:
        >>> sizes(64, 64, 64), sizes(224, 300, 64)
        ([(64, 64)], [(64, 80), (128, 160)])
    """
    short = min(height, width)
    sides = [
        max(base, min(_MOST_ASPECT * base, cell * round(length * base / short / cell))) for length in (height, width)
    ]
    found = [(sides[0], sides[1])]
    if short >= 1.5 * base:
        found.append((2 * sides[0], 2 * sides[1]))
    return found


def add_detail(fill: Tensor, donors: Tensor, coarse: Sequence[int], strength: float) -> Tensor:
    """What a fill of few pixels lacks: the part of a donor that is finer than those pixels.

    Args:
        fill: ``(B, 3, H, W)`` float32 in 0..1, enlarged from ``coarse``.
        donors: ``(B, 3, H, W)`` float32 in 0..1.
        coarse: height and width at which the fill was made.
        strength: 0..1.

    Returns:
        ``(B, 3, H, W)`` float32, about 0..1; the same where nothing is finer.
    """
    size = (int(coarse[0]), int(coarse[1]))
    if size[0] >= fill.shape[-2] and size[1] >= fill.shape[-1]:
        return fill
    fine = donors - _to(_to(donors, size), (fill.shape[-2], fill.shape[-1]))
    return fill + strength * fine


def _to(image: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return nnf.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False)
