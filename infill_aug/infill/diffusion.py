"""The small diffusion model that ships with the package, or one that you trained on your pictures."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from infill_aug.checkpoint import Checkpoint
from infill_aug.checks import is_integer, is_number
from infill_aug.descriptor import TaskDescriptor
from infill_aug.infill.backend import BackendUnavailableError, ModelConfig, PoolSample, SampleContext
from infill_aug.infill.donor_pool import DonorPool
from infill_aug.infill.network import NetworkBackend
from infill_aug.infill.push_pull import push_pull
from infill_aug.infill.visible import resize_visible

# Network evaluations by the descriptor's complexity.
_STEPS = {"low": 2, "medium": 4, "high": 8}
# How much of a coarse fill, at most, is turned into noise when the next finer size takes it over.
_REFINE = 0.4
# The weights that ship with the package.
BUNDLED = Path(__file__).parents[1] / "weights" / "infiller"
# A picture longer than this, in its shorter sides, is squeezed.
_MOST_ASPECT = 2


class DiffusionBackend(NetworkBackend):
    """Small diffusion model on pixels: no text, no downloads, one to a few steps on a CPU.

    It begins with a donor, the background of another training picture, and makes it go with what is kept, where the
    donor has structure; as image-to-image diffusion does (Meng et al., SDEdit, 2022), with little or no noise. It works
    at its own size and at twice that; what is finer comes from the donor. Where the build offers no other pictures, it
    begins with a smooth continuation of what is kept, and shows it.

    Args:
        weights: folder that ``recipes/train_infiller.py`` wrote, or any ``InfillPipeline``; or a ``DDPMPipeline`` or
            ``DDIMPipeline`` of diffusers that makes pictures of pixels without classes, whose network then runs three
            times a step, see ``RePaint``. ``None``: the bundled ones, of pets and scenery.
        steps: network evaluations from noise, 1..50, of which the share ``strength`` is made, at least one; by
            default 2, 4 or 8 by the descriptor's complexity.
        strength: 0..1, how much of what a fill begins with is turned into noise; at 1 it begins with noise.
            ``None``: 1 for a model that never saw holes; for others 0, and 0.1 without donors.
        detail: 0..1, how much of the donor's fine detail is added at sizes that the network does not reach.
        pool_size: training pictures to take donors from, 0 or more.

    Example:
        >>> backend = DiffusionBackend(steps=1)
        >>> config = backend.model_config(TaskDescriptor("demo", "cat"))
        >>> dict(config.options)["steps"]
        1
    """

    name = "diffusion"
    version = 2  # donors are drawn in another way
    may_be_flat = True  # as a donor may
    cut_out = True
    stochastic = True
    max_batch = 32

    def __init__(
        self,
        weights: str | None = None,
        steps: int | None = None,
        strength: float | None = None,
        detail: float = 1.0,
        pool_size: int = 256,
    ) -> None:
        if not is_integer(pool_size, 0):
            raise ValueError(f"pool_size must be an integer of 0 or more, got {pool_size!r}")
        super().__init__(steps=steps, strength=strength, detail=detail)
        self.weights = Checkpoint(str(BUNDLED) if weights is None else weights)
        self.pool_size = pool_size
        self._pool = DonorPool()

    def check_options(self, options: Mapping[str, Any]) -> None:
        """``steps`` is in 1..50 or null, ``strength`` in 0..1 or null, ``detail`` in 0..1."""
        if options["steps"] is not None and not is_integer(options["steps"], 1, 50):
            raise ValueError(f"steps must be an integer in 1..50 or null, got {options['steps']!r}")
        if options["strength"] is not None and not is_number(options["strength"], 0, 1):
            raise ValueError(f"strength must lie in 0..1 or be null, got {options['strength']!r}")
        if not is_number(options["detail"], 0, 1):
            raise ValueError(f"detail must lie in 0..1, got {options['detail']!r}")

    def prepare(self, pool: Iterable[PoolSample]) -> None:
        """Keep the backgrounds of training pictures as donors."""
        donors = DonorPool.of(pool)
        # A picture is no donor for itself.
        self._pool = donors if len({key for key, *_ in donors.plates}) > 1 else DonorPool()

    def model_config(self, descriptor: TaskDescriptor) -> ModelConfig:
        """Options with the steps that the complexity stands for; weights and donors as model and revision."""
        config = super().model_config(descriptor)
        options = dict(config.options)
        options["steps"] = options["steps"] or _STEPS[descriptor.complexity]
        return dataclasses.replace(
            config,
            options=tuple(sorted(options.items())),
            model=str(self.weights.identity["checkpoint"]),
            revision=self._pool.digest,
        )

    def load(self, device: torch.device) -> Any:
        """The pipeline, in float32.

        Raises:
            BackendUnavailableError: the folder holds no such pipeline.
        """
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
        default = network.unaided if donors is None else network.strength
        strength = default if options["strength"] is None else float(options["strength"])
        # Generators of their own: the donor's crop and the noise must not go together.
        generators = [torch.Generator().manual_seed(sample.seed) for sample in samples]
        fill = None
        for size in sizes(height, width, network.size, network.cell):
            small, hole = resize_visible(image, mask, size)
            if fill is None:
                start = None if strength == 1 else push_pull(small, hole) if donors is None else _to(donors, size)
            else:
                start, strength = _enlarge(fill, size, donors, options["detail"]), min(strength, _REFINE)
            fill = network(small, hole, generators, steps=options["steps"], start=start, strength=strength)
            fill = _outward(fill, hole, start)
        assert fill is not None
        return _enlarge(fill, (height, width), donors, options["detail"]).clamp(0, 1)

    def _donors(self, samples: Sequence[SampleContext], height: int, width: int, device: torch.device) -> Tensor | None:
        if not self._pool:
            return None
        crops = [self._pool.draw(np.random.default_rng(sample.seed), sample, height, width) for sample in samples]
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


def _outward(fill: Tensor, hole: Tensor, start: Tensor | None) -> Tensor:
    """A fill with its change of the start continued over what is visible, whose colours would bleed when enlarged."""
    base = torch.zeros_like(fill) if start is None else start
    # A hole too thin for this size has nothing to continue: what is visible is the fill.
    return torch.where(hole.any(dim=(2, 3), keepdim=True), base + push_pull(fill - base, ~hole), fill)


def _enlarge(fill: Tensor, size: tuple[int, int], donors: Tensor | None, detail: float) -> Tensor:
    larger = _to(fill, size)
    return larger if donors is None else add_detail(larger, _to(donors, size), fill.shape[-2:], detail)


def _to(image: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return nnf.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False)
