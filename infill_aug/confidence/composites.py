"""More training pictures from few masks: known objects, and made-up ones, on other backgrounds."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torchvision.transforms import v2

from infill_aug.confidence.training import TrainingSet
from infill_aug.functional.composite import composite
from infill_aug.samples import to_uint8_image


def paste_objects(
    objects: TrainingSet, backgrounds: Tensor, count: int, generator: torch.Generator, *, head: int = 0
) -> TrainingSet:
    """Objects cut out by their maps, on other backgrounds, at random places and sizes.

    Args:
        objects: pictures whose channel ``head`` tells object from background.
        backgrounds: ``(M, 3, S, S)`` ``uint8``.
        count: pictures to make.
        generator: source of all draws.
        head: channel of the targets that the objects are cut out by.

    Returns:
        ``count`` pictures; all targets move with the object.

    Example:
        >>> import torch
        >>> images, targets = torch.full((1, 3, 16, 16), 255), torch.zeros(1, 1, 16, 16)
        >>> targets[..., 4:12, 4:12] = 255
        >>> data = TrainingSet(images.byte(), targets.byte(), torch.ones(1, 1, dtype=torch.bool))
        >>> made = paste_objects(data, torch.zeros(1, 3, 16, 16, dtype=torch.uint8), 3, torch.Generator())
        >>> len(made), bool(made.images[made.targets.expand(-1, 3, -1, -1) == 0].float().mean() < 30)
        (3, True)
    """
    chosen = torch.randint(len(objects), (count,), generator=generator)
    parts = []
    for rows in chosen.split(64):
        behind = backgrounds[torch.randint(len(backgrounds), (len(rows),), generator=generator)]
        stack = torch.cat([objects.images[rows], objects.targets[rows]], dim=1).float()
        moved = _move(stack, objects.targets[rows, head : head + 1], generator)
        images, targets = moved[:, :3], moved[:, 3:]
        soft = targets[:, head : head + 1] / 255
        made = composite(behind, images.round().to(torch.uint8), soft)
        parts.append(TrainingSet(made, targets.round().to(torch.uint8), objects.known[rows]))
    return TrainingSet.join(parts)


def paste_shapes(
    textures: Tensor, count: int, generator: torch.Generator, known: Tensor, *, head: int = 0
) -> TrainingSet:
    """Made-up objects: smooth random shapes with the content of one picture, on another.

    Args:
        textures: ``(M, 3, S, S)`` ``uint8``, two or more.
        count: pictures to make.
        generator: source of all draws.
        known: ``(P,)`` bool, the heads that these pictures teach; the targets of all but ``head`` are empty.
        head: channel of the targets that the shape is.

    Returns:
        ``count`` pictures.
    """
    size = textures.shape[-1]
    first = torch.randint(len(textures), (count,), generator=generator)
    second = (first + torch.randint(1, len(textures), (count,), generator=generator)) % len(textures)
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    centre = torch.rand(count, 2, 1, 1, generator=generator) * 0.8 - 0.4
    dx, dy = x - centre[:, 0], y - centre[:, 1]
    angle = torch.atan2(dy, dx)
    # A circle whose radius changes with the angle: a few random harmonics make a closed, smooth outline.
    radius = torch.rand(count, 1, 1, generator=generator) * 0.35 + 0.2
    for order in range(1, 6):
        swing = torch.rand(count, 1, 1, generator=generator) * 0.5 / order
        phase = torch.rand(count, 1, 1, generator=generator) * 2 * torch.pi
        radius = radius * (1 + swing * torch.cos(order * angle + phase))
    soft = ((radius - (dx.square() + dy.square()).sqrt()) * size / 4).clamp(0, 1)[:, None]
    rows = zip(first.split(64), second.split(64), soft.split(64), strict=True)
    images = torch.cat([composite(textures[b], textures[a], shape) for a, b, shape in rows])
    targets = torch.zeros(count, len(known), size, size, dtype=torch.uint8)
    targets[:, head : head + 1] = (soft * 255).round().to(torch.uint8)
    return TrainingSet(images, targets, known[None].expand(count, -1))


def _move(stack: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture's object at another size and place, still inside; empty around it."""
    count, _, size, _ = stack.shape
    grid = torch.linspace(-1, 1, size)
    weight = mask.float() / mask.float().sum(dim=(1, 2, 3), keepdim=True).clamp(min=1)
    middle = torch.stack([(weight * grid).sum(dim=(1, 2, 3)), (weight * grid[:, None]).sum(dim=(1, 2, 3))], dim=1)
    share = (mask.float().mean(dim=(1, 2, 3)) / 255).clamp(min=1e-3)
    # From small to large, evenly in the side of the object.
    wanted = 0.2 + 0.5 * torch.rand(count, generator=generator)
    zoom = (share.sqrt() / wanted).clamp(0.5, 3.0)
    flip = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    place = (torch.rand(count, 2, generator=generator) * 2 - 1) * (1 - wanted)[:, None] * 0.7
    zero = torch.zeros(count)
    # Output to input: the place goes to the middle of the object.
    right = middle[:, 0] - zoom * flip * place[:, 0]
    down = middle[:, 1] - zoom * place[:, 1]
    affine = torch.stack([torch.stack([zoom * flip, zero, right], 1), torch.stack([zero, zoom, down], 1)], dim=1)
    return nnf.grid_sample(stack, nnf.affine_grid(affine, list(stack.shape), align_corners=False), align_corners=False)


def random_crops(pictures: Any, size: int, each: int) -> Tensor:
    """Random crops of large pictures, of any scale, as backgrounds; drawn from torch's own generator.

    Args:
        pictures: map-style, of pictures as ``to_uint8_image`` takes them.
        size: side of the crops in pixels.
        each: crops of each picture.

    Returns:
        ``(N, 3, size, size)`` ``uint8``.

    Example:
        >>> random_crops([torch.zeros(3, 40, 60, dtype=torch.uint8)], 16, 2).shape
        torch.Size([2, 3, 16, 16])
    """
    crop = v2.RandomResizedCrop(size, scale=(0.02, 1.0), ratio=(0.7, 1.4), antialias=True)
    crops = []
    for i in range(len(pictures)):
        picture = to_uint8_image(pictures[i])
        crops += [crop(picture) for _ in range(each)]
    return torch.stack(crops)


def empty(images: Tensor, known: Tensor) -> TrainingSet:
    """Pictures in which nothing matters.

    Args:
        images: ``(N, 3, S, S)`` ``uint8``.
        known: ``(P,)`` bool, the heads that they teach.
    """
    count, _, size, _ = images.shape
    return TrainingSet(
        images, torch.zeros(count, len(known), size, size, dtype=torch.uint8), known[None].expand(count, -1)
    )
