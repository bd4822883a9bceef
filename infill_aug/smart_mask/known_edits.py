"""Edits whose true mask is known, with the side effects of AI editors: what a smart mask is measured on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torchvision.io import decode_jpeg, encode_jpeg
from torchvision.transforms.v2 import functional as F

from infill_aug.functional.blur import gaussian_blur

EDITS = ("recolour", "retexture", "relight", "replace")
ARTEFACTS = ("decoder", "drift", "jpeg", "distractors", "shift")


@dataclass(frozen=True)
class KnownEdit:
    """A picture, an edited copy, and where it was meant to change.

    Args:
        original: ``(3, H, W)`` uint8.
        edited: ``(3, H, W)`` uint8.
        mask: ``(1, H, W)`` bool, true where the edit is, in the coordinates of the original.
    """

    original: Tensor
    edited: Tensor
    mask: Tensor


def known_edit(
    picture: Tensor,
    mask: Tensor,
    donor: Tensor,
    edit: str,
    artefacts: tuple[str, ...] = (),
    *,
    strength: float = 1.0,
    seed: int = 0,
) -> KnownEdit:
    """Edit a picture inside a mask, then disturb all of it as editors do.

    Args:
        picture: ``(3, H, W)`` uint8.
        mask: ``(1, H, W)`` bool, what to edit.
        donor: ``(3, H, W)`` uint8, another picture of any size, for texture and content.
        edit: ``"recolour"``: another hue and chroma, none where it is dark or bright, as paint has; ``"retexture"``:
            the donor's detail over the picture's own shading; ``"relight"``: a slope of light; ``"replace"``: the
            donor's content.
        artefacts: ``"decoder"``: the detail is redrawn, with blotches of colour; ``"drift"``: gain, offset, gamma and
            saturation; ``"distractors"``: two to four small things change far from the edit; ``"shift"``: one to three
            pixels; ``"jpeg"``: quality 70 to 95, always last.
        strength: of the artefacts, 0 or more; 1 is the range said above.
        seed: of all that is drawn.

    Returns:
        The pair with its true mask.

    Raises:
        ValueError: an unknown edit or artefact.

    Example:
        >>> picture = torch.full((3, 32, 32), 90, dtype=torch.uint8)
        >>> mask = torch.zeros(1, 32, 32, dtype=torch.bool)
        >>> mask[:, 8:16, 8:16] = True
        >>> known = known_edit(picture, mask, picture + 60, "replace")
        >>> bool((known.edited == picture)[:, ~mask[0]].all())
        True
    """
    if edit not in EDITS or not set(artefacts) <= set(ARTEFACTS):
        raise ValueError(f"edit must be one of {EDITS} and artefacts of {ARTEFACTS}, got {edit!r} and {artefacts}")
    draw = _Draw(seed)
    image = picture.float() / 255
    other = _cover(donor.float() / 255, image.shape[-2:], draw)
    changed = {"recolour": _recolour, "retexture": _retexture, "relight": _relight, "replace": _replace}[edit](
        image, mask, other, draw
    )
    alpha = gaussian_blur(mask.float(), 0.5) * mask  # an edge as a drawing has it
    edited = torch.lerp(image, changed.clamp(0, 1), alpha)
    # In this order: the model redraws, the service colours, moves and stores.
    if "distractors" in artefacts:
        edited = _distract(edited, mask, other, draw, strength)
    if "decoder" in artefacts:
        edited = _decode(edited, draw, strength)
    if "drift" in artefacts:
        edited = _drift(edited, draw, strength)
    if "shift" in artefacts:
        edited = _shift(edited, draw, strength)
    eight = (edited.clamp(0, 1) * 255).round().to(torch.uint8)
    if "jpeg" in artefacts:
        eight = decode_jpeg(encode_jpeg(eight, quality=max(5, round(100 - strength * draw.between(5, 30)))))
    return KnownEdit(picture, eight, mask)


class _Draw:
    """Random numbers of one case."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def sign(self) -> float:
        return 1.0 if self.between(0, 1) < 0.5 else -1.0

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)


def _cover(donor: Tensor, size: torch.Size, draw: _Draw) -> Tensor:
    """A part of the donor that fills ``size``."""
    height, width = size
    factor = max(height / donor.shape[-2], width / donor.shape[-1]) * draw.between(1.0, 1.3)
    large = [max(height, round(donor.shape[-2] * factor)), max(width, round(donor.shape[-1] * factor))]
    donor = F.resize(donor, large, antialias=True)
    top, left = (int(draw.between(0, 1) * (a - b + 1)) for a, b in zip(large, size, strict=True))
    return donor[:, top : top + height, left : left + width]


def _chroma_split(picture: Tensor) -> tuple[Tensor, Tensor]:
    """Luma ``(1, H, W)`` and what colours have more than it ``(3, H, W)``."""
    luma = (picture * picture.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=0, keepdim=True)
    return luma, picture - luma


def _recolour(image: Tensor, mask: Tensor, other: Tensor, draw: _Draw) -> Tensor:
    luma, chroma = _chroma_split(image)
    mean = chroma[:, mask[0]].mean(dim=1)
    while True:  # a colour that is another one
        hue, amount = draw.between(0, 2 * math.pi), draw.between(0.15, 0.35)
        wanted = torch.tensor([math.cos(hue - turn * 2 * math.pi / 3) for turn in range(3)]) * amount
        wanted = wanted - (wanted * torch.tensor([0.299, 0.587, 0.114])).sum()
        if float((wanted - mean).norm()) > 0.2:
            break
    strength = (4 * luma * (1 - luma)).clamp(0, 1).sqrt()  # paint is not seen in the dark or in a highlight
    return luma * draw.between(0.85, 1.15) + 0.3 * chroma + strength * wanted.view(3, 1, 1)


def _retexture(image: Tensor, mask: Tensor, other: Tensor, draw: _Draw) -> Tensor:
    sigma = 0.02 * max(image.shape[-2:])
    smooth, rough = gaussian_blur(image, sigma), other - gaussian_blur(other, sigma)
    rough = rough * (draw.between(0.08, 0.14) / rough[:, mask[0]].std().clamp(min=0.02))
    return smooth + rough + 0.4 * (gaussian_blur(other, sigma) - smooth) * draw.between(0.5, 1)


def _relight(image: Tensor, mask: Tensor, other: Tensor, draw: _Draw) -> Tensor:
    # What is bright already cannot be seen to get brighter.
    up, angle = float(image[:, mask[0]].mean()) < 0.45, draw.between(0, 2 * math.pi)
    ends = (draw.between(1.35, 1.5), draw.between(1.5, 1.9)) if up else (draw.between(0.6, 0.7), draw.between(0.4, 0.6))
    rows, columns = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in image.shape[-2:]), indexing="ij")
    way = math.cos(angle) * columns + math.sin(angle) * rows
    inside = way[mask[0]]
    way = ((way - inside.min()) / (inside.max() - inside.min()).clamp(min=1e-3)).clamp(0, 1)
    tint = torch.tensor([draw.between(0.95, 1.05) for _ in range(3)]).view(3, 1, 1)
    return (image + 0.02) * torch.lerp(torch.tensor(ends[0]), torch.tensor(ends[1]), way) * tint


def _replace(image: Tensor, mask: Tensor, other: Tensor, draw: _Draw) -> Tensor:
    return other


def _distract(edited: Tensor, mask: Tensor, other: Tensor, draw: _Draw, strength: float) -> Tensor:
    height, width = edited.shape[-2:]
    free = nnf.max_pool2d(mask.float()[None], 41, 1, 20)[0, 0] == 0  # farther than 20 pixels
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for _ in range(int(draw.between(2, 5))):
        places = free.nonzero()
        if not len(places):
            break
        row, column = places[int(draw.between(0, 1) * len(places))].tolist()
        area = strength * draw.between(0.002, 0.01) * height * width
        ratio, angle = draw.between(1.0, 2.0), draw.between(0, math.pi)
        long, short = math.sqrt(area * ratio / math.pi), math.sqrt(area / ratio / math.pi)
        x, y = columns - column, rows - row
        along, across = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
        inside = (area > 0) & ((along / max(long, 0.5)) ** 2 + (across / max(short, 0.5)) ** 2 <= 1) & free
        new = other if draw.between(0, 1) < 0.5 else edited.roll((int(2 * short) + 3, int(2 * long) + 3), (-2, -1))
        edited = torch.where(inside, new, edited)
    return edited


def _decode(edited: Tensor, draw: _Draw, strength: float) -> Tensor:
    height, width = edited.shape[-2:]
    small = F.resize(edited, [max(1, height // 2), max(1, width // 2)], antialias=True)
    low = F.resize(small, [height, width], interpolation=F.InterpolationMode.BICUBIC)
    high = edited - low
    spread = gaussian_blur((high**2).mean(dim=0, keepdim=True), 2.0).sqrt()
    grain = gaussian_blur(draw.noise(1, height, width), 0.7)
    redrawn = low + 0.5 * high + 0.8 * spread * grain / grain.std(correction=0).clamp(min=1e-6)
    blotches = F.resize(draw.noise(3, max(1, height // 16), max(1, width // 16)), [height, width])
    return edited + strength * draw.between(0.5, 1) * (redrawn - edited + 0.006 * blotches)


def _drift(edited: Tensor, draw: _Draw, strength: float) -> Tensor:
    luma, chroma = _chroma_split(edited)
    edited = luma + (1 + strength * draw.between(-0.15, 0.15)) * chroma
    edited = edited.clamp(min=0) ** math.exp(strength * draw.between(-0.1, 0.1))
    gain, offset = strength * draw.between(-0.06, 0.06), strength * draw.between(-0.02, 0.02)
    own = [[strength * draw.between(-0.03, 0.03), strength * draw.between(-0.01, 0.01)] for _ in range(3)]
    gains, offsets = torch.tensor(own).T.reshape(2, 3, 1, 1)
    return edited * (1 + gain + gains) + offset + offsets


def _shift(edited: Tensor, draw: _Draw, strength: float) -> Tensor:
    length, angle = strength * draw.between(1, 3), draw.between(0, 2 * math.pi)
    move = [length * math.cos(angle), length * math.sin(angle)]
    if draw.between(0, 1) < 0.5:
        move = [float(round(part)) for part in move]
    height, width = edited.shape[-2:]
    theta = torch.tensor([[1, 0, -2 * move[0] / width], [0, 1, -2 * move[1] / height]])
    grid = nnf.affine_grid(theta[None], [1, 3, height, width], align_corners=False)
    return nnf.grid_sample(edited[None], grid, "bicubic", "border", align_corners=False)[0]
