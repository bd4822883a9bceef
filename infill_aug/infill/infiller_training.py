"""What the small infiller learns from: pictures and their backgrounds in memory, holes, starts, and its losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from infill_aug.confidence.network import NetworkConfidence
from infill_aug.confidence.sources import ConfidenceSource
from infill_aug.functional.masks import dilate
from infill_aug.infill.push_pull import push_pull
from infill_aug.samples import split_sample, spread

# Pictures are kept this much larger than the network's square, so that crops differ.
_SPARE = 1.5
# Share of the holes that are the background; the others are all but another picture's object, or boxes.
_BACKGROUND, _BORROWED = 0.85, 0.7
# Gain of the fine structure that a discriminator is shown.
_AMPLIFY = 2.0
# Shares of a batch that begin with a donor and with a smooth continuation; the rest begins with the picture itself.
_FROM_DONOR, _FROM_SMOOTH = 0.6, 0.25
# Timesteps of the latter, and of the others, of which half have no noise at all: those are to be mended, not dreamt.
_OWN_TIMES, _TIMES, _CLEAN = (100, 999), (0, 200), 0.5
# Crops of other plates of which the one with the least painted over is the donor, as the backend chooses.
_TRIES = 4


@dataclass(frozen=True)
class InfillerSet(Dataset[tuple[Tensor, Tensor, Tensor, Tensor]]):
    """Pictures with what is their object, and the same with the object painted over.

    Args:
        images: ``(N, 3, S, S)`` ``uint8``.
        objects: ``(N, 1, S, S)`` bool, grown by a margin; all false where nothing is known of objects.
        cores: ``(N, 1, S, S)`` bool, what is surely the objects': holes begin here.
        plates: ``(N, 3, S, S)`` ``uint8``: the pictures without their objects.
    """

    images: Tensor
    objects: Tensor
    cores: Tensor
    plates: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.images[index], self.objects[index], self.cores[index], self.plates[index]

    def take(self, indices: Sequence[int] | Tensor) -> InfillerSet:
        """Some of the pictures."""
        return InfillerSet(*(part[indices] for part in (self.images, self.objects, self.cores, self.plates)))

    @staticmethod
    def join(parts: Sequence[InfillerSet]) -> InfillerSet:
        """All the pictures of several sets of one size."""
        fields = ("images", "objects", "cores", "plates")
        return InfillerSet(*(torch.cat([getattr(part, field) for part in parts]) for field in fields))

    @staticmethod
    def of(images: Tensor, objects: Tensor, cores: Tensor | None = None) -> InfillerSet:
        """A set with its plates made.

        Args:
            images: ``(N, 3, S, S)`` ``uint8``.
            objects: ``(N, 1, S, S)`` bool.
            cores: ``(N, 1, S, S)`` bool; ``None``: the objects.

        Example:
            >>> InfillerSet.of(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 8, 8) > 0).plates.shape
            torch.Size([2, 3, 8, 8])
        """
        grown = torch.cat([dilate(part, max(1, part.shape[-1] // 48)) for part in objects.split(64)])
        filled = [
            push_pull(part.float() / 255, hole) for part, hole in zip(images.split(64), grown.split(64), strict=True)
        ]
        return InfillerSet(
            images, grown, objects if cores is None else cores, (torch.cat(filled) * 255).round().to(torch.uint8)
        )


@dataclass(frozen=True)
class InfillerBatch:
    """One drawn batch, all of the network's size.

    Args:
        image: ``(B, 3, S, S)`` in -1..1.
        mask: ``(B, 1, S, S)`` bool: the hole.
        taught: ``(B, 1, S, S)`` bool: the hole without the object, in which a fill has to look real.
        start: ``(B, 3, S, S)`` in -1..1: what is turned into noise.
        painted: ``(B, 1, S, S)`` bool: where a donor's own object was painted over.
        paired: ``(B,)`` bool: whether ``image`` is what should come out of ``start``.
        judged: ``(B,)`` bool: whether a fill has to look real, not only be right.
        times: ``(B,)`` timesteps in 0..999.
    """

    image: Tensor
    mask: Tensor
    taught: Tensor
    start: Tensor
    painted: Tensor
    paired: Tensor
    judged: Tensor
    times: Tensor


def draw_batch(
    images: Tensor, objects: Tensor, cores: Tensor, plates: Tensor, size: int, generator: torch.Generator
) -> InfillerBatch:
    """Crops, holes, starts and timesteps of one batch.

    Args:
        images: ``(B, 3, S, S)`` ``uint8``, S at least ``size``.
        objects: ``(B, 1, S, S)`` bool.
        cores: ``(B, 1, S, S)`` bool.
        plates: ``(B, 3, S, S)`` ``uint8``.
        size: side in pixels of the result.
        generator: on the CPU.
    """
    count = len(images)
    together = torch.cat([images.float() / 127.5 - 1, objects.float(), cores.float()], dim=1)
    cut = _crops(together, size, generator)
    image, thing, core = cut[:, :3], cut[:, 3:4] > 0.02, cut[:, 4:] > 0.9
    donor, painted = _donors(objects, plates, size, generator)
    mask = _free_holes(count, size, generator).to(image.device)
    share = core.float().mean(dim=(1, 2, 3), keepdim=True)
    shaped = (share > 0.02) & (share < 0.85)
    for whose, often in ((1, _BORROWED), (0, _BACKGROUND)):
        wanted = (torch.rand(count, 1, 1, 1, generator=generator) < often).to(image.device)
        mask = torch.where(wanted & shaped.roll(whose, dims=0), ~core.roll(whose, dims=0), mask)
    kind = torch.rand(count, generator=generator)
    from_donor, own = kind < _FROM_DONOR, kind >= _FROM_DONOR + _FROM_SMOOTH
    low, high = torch.where(own[:, None], torch.tensor(_OWN_TIMES), torch.tensor(_TIMES)).unbind(1)
    times = low + torch.rand(count, generator=generator) * (high - low)
    chance = torch.rand(count, generator=generator)
    times = torch.where(~own & (chance < _CLEAN), 0.0, times)
    # Noise alone, of which a fill can be made too, gets a share of its own.
    times = torch.where(own & (chance < 0.3), 999.0, times)
    from_donor, own, times = (part.to(image.device) for part in (from_donor, own, times.long()))
    smooth = torch.where(own[:, None, None, None], image, push_pull(image, mask))
    start = torch.where(from_donor[:, None, None, None], donor, smooth)
    return InfillerBatch(image, mask, mask & ~thing, start, painted, ~from_donor, ~own, times)


def _donors(objects: Tensor, plates: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """For each picture, of a few crops of other plates the one with the least painted over, and where it is."""
    both = torch.cat([plates.float() / 127.5 - 1, objects.float()], dim=1)
    others = [both.roll(shift, dims=0) for shift in range(1, 1 + min(_TRIES, len(both) - 1))]
    drawn = torch.stack([_crops(each, size, generator) for each in others or [both]])
    best = (drawn[:, :, 3] > 0.02).float().mean(dim=(2, 3)).argmin(dim=0)
    chosen = drawn[best, torch.arange(len(both), device=best.device)]
    return chosen[:, :3], chosen[:, 3:] > 0.02


def _crops(pictures: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Random squares of 60 to 100 % of the side, half of them mirrored, resized to ``size``."""
    count = len(pictures)
    scale = 0.6 + 0.4 * torch.rand(count, generator=generator)
    shift = (torch.rand(count, 2, generator=generator) * 2 - 1) * (1 - scale)[:, None]
    flip = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale * flip, scale, shift
    grid = nnf.affine_grid(theta, [count, pictures.shape[1], size, size], align_corners=False).to(pictures.device)
    return nnf.grid_sample(pictures, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _free_holes(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Boxes, or all but boxes, ``(B, 1, S, S)`` bool."""
    place = torch.arange(size) / size
    holes = torch.zeros(count, size, size, dtype=torch.bool)
    for _ in range(3):
        low = torch.rand(count, 2, generator=generator) * 0.8
        side = 0.1 + 0.5 * torch.rand(count, 2, generator=generator)
        inside = [(place >= low[:, i, None]) & (place < low[:, i, None] + side[:, i, None]) for i in range(2)]
        holes |= inside[0][:, :, None] & inside[1][:, None, :]
    outside = torch.rand(count, 1, 1, generator=generator) < 0.4
    return (holes ^ outside)[:, None]


class Discriminator(nn.Module):
    """Tells patches of real pictures from patches of fills; spectral norm keeps it smooth (Miyato et al., 2018).

    It is shown the picture's fine structure too, amplified: of the picture alone it takes ten times as long to see that
    fills are blurred, and then it is too late.

    Args:
        width: channels of the first level.

    Example:
        >>> scores, features = Discriminator(8)(torch.rand(2, 3, 32, 32), torch.ones(2, 1, 32, 32))
        >>> scores.shape, len(features)
        (torch.Size([2, 1, 4, 4]), 4)
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        sides = [(7, width, 1), (width, width, 2), (width, 2 * width, 2), (2 * width, 4 * width, 2)]
        self.levels = nn.ModuleList(spectral_norm(nn.Conv2d(i, o, 4 if s == 2 else 3, s, 1)) for i, o, s in sides)
        self.score = spectral_norm(nn.Conv2d(4 * width, 1, 3, 1, 1))

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scores of patches ``(B, 1, S / 8, S / 8)``, and the features on the way."""
        smooth = nnf.avg_pool2d(nnf.pad(image, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
        x, features = torch.cat([image, (image - smooth) * _AMPLIFY, mask], dim=1), []
        for level in self.levels:
            x = nnf.leaky_relu(level(x), 0.2)
            features.append(x)
        return self.score(x), features


def reconstruction_loss(
    clean: Tensor, image: Tensor, where: Tensor, pixel: float = 0.15, pooled: float = 0.5
) -> Tensor:
    """Absolute error of pixels and of means of 4 x 4 pixels, within ``where``.

    Args:
        clean: ``(B, 3, S, S)``.
        image: ``(B, 3, S, S)``.
        where: ``(B, 1, S, S)`` floating point weights.
        pixel: weight of the pixels.
        pooled: weight of the means.
    """
    error = (clean - image) * where
    total = where.sum().clamp(min=1) * 3
    coarse = nnf.avg_pool2d(error, 4).abs().sum() * 16
    return (pixel * error.abs().sum() + pooled * coarse) / total


def detail_loss(clean: Tensor, donor: Tensor, where: Tensor, kept: float = 0.1) -> Tensor:
    """Absolute error of what is finer than 8 pixels, within ``where``: light and tint may change, things stay.

    Args:
        clean: ``(B, 3, S, S)``.
        donor: ``(B, 3, S, S)``.
        where: ``(B, 1, S, S)`` floating point weights.
        kept: weight of the coarser rest.
    """
    change = clean - donor
    coarse = nnf.interpolate(nnf.avg_pool2d(change, 8), size=change.shape[-2:], mode="bilinear", align_corners=False)
    error = (change - coarse).abs() + kept * coarse.abs()
    return (error * where).sum() / (where.sum().clamp(min=1) * 3)


def answer(drawn: InfillerBatch, fill: Tensor) -> Tensor:
    """The picture with the fill where an object hides what is behind it: there nobody knows what is right.

    Args:
        drawn: the batch.
        fill: ``(B, 3, S, S)`` in -1..1.
    """
    return torch.where(drawn.mask & ~drawn.taught, fill, drawn.image)


def feature_loss(fake: Sequence[Tensor], real: Sequence[Tensor], paired: Tensor) -> Tensor:
    """Mean absolute difference of a discriminator's features, of the paired samples (Wang et al., 2018)."""
    weight = paired.float()[:, None, None, None]
    total = weight.sum().clamp(min=1)
    parts = [
        ((f - r.detach()).abs() * weight).mean(dim=(1, 2, 3)).sum() / total for f, r in zip(fake, real, strict=True)
    ]
    return torch.stack(parts).mean()


def patch_weights(where: Tensor, like: Tensor) -> Tensor:
    """Share of ``where`` in each patch that a discriminator scores, for patches with some of it at all."""
    share = nnf.adaptive_avg_pool2d(where.float(), (like.shape[-2], like.shape[-1]))
    return torch.where(share > 0.1, share, 0.0)


def hinge(scores: Tensor, weights: Tensor, real: bool) -> Tensor:
    """Hinge loss of a discriminator (Lim and Ye, 2017), weighted by patch."""
    loss = nnf.relu(1 - scores) if real else nnf.relu(1 + scores)
    return (loss * weights).sum() / weights.sum().clamp(min=1)


def side_of(size: int) -> int:
    """Side at which pictures are kept for a network of ``size``."""
    return round(size * _SPARE)


def size_of(side: int) -> int:
    """The network's size for which pictures are kept at a side."""
    return round(side / _SPARE)


def square(picture: Tensor, side: int) -> Tensor:
    """The centre square of a picture or mask at another size.

    Args:
        picture: ``(C, H, W)`` ``uint8``.
        side: of the result, pixels.

    Returns:
        ``(C, side, side)`` ``uint8``.

    Example:
        >>> square(torch.zeros(3, 20, 30, dtype=torch.uint8), 8).shape
        torch.Size([3, 8, 8])
    """
    edge = min(picture.shape[-2:])
    top, left = ((length - edge) // 2 for length in picture.shape[-2:])
    cut = picture[None, :, top : top + edge, left : left + edge].float()
    small = nnf.interpolate(cut, size=side, mode="bilinear", antialias=True, align_corners=False)
    return small.round().clamp(0, 255).to(torch.uint8)[0]


def read_infiller_set(
    dataset: Any,
    source: ConfidenceSource | None,
    size: int,
    *,
    object_above: float = 0.3,
    core_above: float = 0.85,
    limit: int = 20_000,
    image_key: str | int | None = None,
    progress: bool = True,
) -> InfillerSet:
    """Pictures of a dataset, and where their objects are.

    Args:
        dataset: map-style, with samples as ``build_cache`` takes them.
        source: says where objects are, which are not learned; ``None`` where there are none, as in textures.
        size: side of the network's square.
        object_above: confidence, 0..1, above which a pixel is the object's; low, so that no rim of it is learned.
        core_above: confidence, 0..1, above which it surely is.
        limit: at most so many pictures, evenly spaced.
        image_key: key or position of the image in a sample.
        progress: show a progress bar.

    Raises:
        ValueError: no pictures, or one that cannot be read, which is named.

    Example:
        >>> len(read_infiller_set([torch.rand(3, 20, 30)] * 2, None, 16, progress=False))
        2
    """
    if not len(dataset):
        raise ValueError("there is no picture to learn from: the dataset is empty; check its folder and split")
    side, images, objects, cores = side_of(size), [], [], []
    for index in tqdm(spread(len(dataset), limit), unit="picture", desc="reading", disable=not progress):
        try:
            image, target = split_sample(dataset[index], image_key)
            if source is None:
                found = torch.zeros(1, *image.shape[1:])
            elif isinstance(source, NetworkConfidence):
                found = source.quantised([image], [target])[0].float() / 255
            else:
                found = source(image, target).float()
        except Exception as error:
            raise ValueError(f"cannot read sample {index}: {type(error).__name__}: {error}") from error
        images.append(square(image, side))
        objects.append(square((found > object_above).to(torch.uint8) * 255, side) > 32)
        cores.append(square((found > core_above).to(torch.uint8) * 255, side) > 224)
    return InfillerSet.of(torch.stack(images), torch.stack(objects), torch.stack(cores))
