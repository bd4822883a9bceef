"""Fills from other training images: their background, or their plate."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infill_aug.checks import is_integer, is_number
from infill_aug.descriptor import TaskDescriptor
from infill_aug.functional.masks import dilate
from infill_aug.infill.backend import InfillBackend, InfillError, ModelConfig, PoolSample, SampleContext
from infill_aug.infill.donor_pool import DonorPool


class DonorBackend(InfillBackend):
    """Backgrounds of other training images, their own object removed first: real texture, no generator at all.

    Each sample's seed picks a donor and a random crop of it, never of the image itself: of at most eight, one in which
    little of the donor's own object was painted over and that need not be enlarged. The pool of donors is part of the
    fingerprint: another pool gives other fills.

    Args:
        other_class: take donors of another class than the image's only, so that a background that goes with a class
            is broken up; needs labels.
        color_match: 0..1, how far mean and deviation of the donor's colours are moved to those of the pixels next to
            the hole. 1 hides the seam and keeps the scene's light, which may itself give the class away.
        pool_size: how many training images are kept as donors, evenly spaced over the dataset.
        object_above: confidence, 0..1, above which a donor's pixel counts as its object and is removed.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> import torch
        >>> from infill_aug.descriptor import TaskDescriptor
        >>> backend = DonorBackend()
        >>> plain = torch.zeros(1, 8, 8, dtype=torch.uint8)
        >>> backend.prepare([PoolSample("a", torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8), plain)])
        >>> image, mask = torch.rand(1, 3, 8, 8), torch.zeros(1, 1, 8, 8)
        >>> mask[..., 2:6] = 1
        >>> backend.generate_infill(image, mask, TaskDescriptor("demo", "cat")).shape
        torch.Size([1, 3, 8, 8])
    """

    name = "donor"
    version = 3
    may_be_flat = True
    cut_out = True
    stochastic = True
    needs_visible = False

    def __init__(
        self,
        other_class: bool = False,
        color_match: float = 0.0,
        pool_size: int = 256,
        object_above: float = 0.75,
    ) -> None:
        if not is_number(object_above, 0, 1):
            raise ValueError(f"object_above must lie in 0..1, got {object_above!r}")
        if not is_integer(pool_size, 1):
            raise ValueError(f"pool_size must be 1 or more, got {pool_size!r}")
        super().__init__(other_class=other_class, color_match=color_match)
        self.pool_size = pool_size
        self.object_above = object_above
        self._pool = DonorPool()

    def check_options(self, options: Mapping[str, Any]) -> None:
        """``other_class`` is true or false, ``color_match`` lies in 0..1."""
        match, other = options["color_match"], options["other_class"]
        if not is_number(match, 0, 1):
            raise ValueError(f"color_match must lie in 0..1, got {match!r}")
        if not isinstance(other, bool):
            raise ValueError(f"other_class must be true or false, got {other!r}")

    def prepare(self, pool: Iterable[PoolSample]) -> None:
        """Turn training images into plates.

        Raises:
            InfillError: no image of the pool has any background.
        """
        self._pool = DonorPool.of(pool, self.object_above)
        if not self._pool:
            raise InfillError("no image of the donor pool has any background: its maps protect every pixel")

    def model_config(self, descriptor: TaskDescriptor) -> ModelConfig:
        """Options, and the digest of the pool as revision."""
        return dataclasses.replace(super().model_config(descriptor), revision=self._pool.digest)

    def _generate(self, image: Tensor, mask: Tensor, config: ModelConfig, samples: Sequence[SampleContext]) -> Tensor:
        options = dict(config.options)
        fills = []
        for picture, hole, sample in zip(image.cpu(), mask.cpu(), samples, strict=True):
            random = np.random.default_rng(sample.seed)
            fill = self._pool.draw(random, sample, picture.shape[-2], picture.shape[-1], options["other_class"])
            fills.append(match_colors(fill, picture, hole, options["color_match"]))
        return torch.stack(fills).to(image.device)


def match_colors(fill: Tensor, picture: Tensor, hole: Tensor, strength: float) -> Tensor:
    """Move mean and deviation of the fill's colours towards those of the visible pixels next to the hole.

    Args:
        fill: ``(3, H, W)`` float32 in 0..1.
        picture: ``(3, H, W)`` float32 in 0..1.
        hole: ``(1, H, W)`` bool.
        strength: 0 leaves the fill alone, 1 moves it all the way.

    Returns:
        ``(3, H, W)`` float32 in 0..1.

    Example:
        >>> import torch
        >>> hole = torch.tensor([[[True, True, False, False]]])
        >>> match_colors(torch.rand(3, 1, 4), torch.full((3, 1, 4), 0.5), hole, 1.0)[:, 0, :2].mean().round(decimals=1)
        tensor(0.5000)
    """
    margin = max(2, max(hole.shape[-2:]) // 32)
    ring = (dilate(hole[None], margin)[0] & ~hole)[0]
    if strength <= 0 or int(ring.sum()) < 2:
        return fill
    inside, around = fill[:, hole[0]], picture[:, ring]
    spread, wanted = (v.std(dim=1, correction=0)[:, None, None] for v in (inside, around))
    # Bounded: a flat ring must not flatten the fill, a busy one must not blow it up.
    gain = (wanted / spread.clamp(min=1e-4)).clamp(0.5, 2.0)
    moved = (fill - inside.mean(dim=1)[:, None, None]) * gain + around.mean(dim=1)[:, None, None]
    return torch.lerp(fill, moved, strength).clamp(0, 1)
