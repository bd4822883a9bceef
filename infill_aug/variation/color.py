"""Random colour: of light, of pigments, of the camera."""

from __future__ import annotations

import math

import torch
from kornia.augmentation import RandomPlanckianJitter
from torch import Tensor

from infill_aug.variation.operation import Operation, column, constant, uniform

# Oklab (Ottosson, 2020), linearised at mid-grey: lightness and two opponent colours of sRGB as it is stored. Hue turns
# at nearly constant lightness, as in Oklab itself, and every change of hue, chroma, lightness and contrast together is
# one matrix, without a power of any pixel.
_TO_CONE = torch.tensor(
    [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]], dtype=torch.float64,
)  # fmt: skip
_FROM_CONE = torch.tensor(
    [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]], dtype=torch.float64,
)  # fmt: skip
_TO_OPPONENT = _FROM_CONE @ _TO_CONE
_FROM_OPPONENT = torch.linalg.inv(_TO_OPPONENT)
# Mean and deviation in that space of palettes that people know: forest, sea, desert, snow, dusk, autumn, neon, ash.
_PALETTES = torch.tensor(
    [
        [[0.35, -0.035, 0.035], [0.14, 0.02, 0.025]], [[0.50, -0.025, -0.045], [0.17, 0.015, 0.03]],
        [[0.66, 0.020, 0.050], [0.14, 0.015, 0.025]], [[0.84, -0.004, -0.012], [0.10, 0.006, 0.010]],
        [[0.38, 0.045, -0.010], [0.18, 0.030, 0.035]], [[0.48, 0.045, 0.060], [0.17, 0.025, 0.030]],
        [[0.42, 0.060, -0.060], [0.24, 0.070, 0.070]], [[0.45, 0.002, 0.004], [0.19, 0.006, 0.006]],
    ]
)  # fmt: skip
# Red and blue against green at 3,000 to 15,000 K, by 500.
_PLANCKIAN = RandomPlanckianJitter(mode="blackbody").pl
_LUMA = torch.tensor([0.3, 0.6, 0.1])


def affine(image: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Each picture's colours through a matrix of its own.

    Args:
        image: ``(n, 3, H, W)`` float32.
        matrix: ``(n, 3, 3)``.
        offset: ``(n, 3)``.

    Returns:
        ``(n, 3, H, W)``.
    """
    # contiguous(): of a picture with channels last this would be a copy anyway, and a slower product.
    flat = image.contiguous().flatten(2)
    return torch.baddbmm(offset[:, :, None], matrix, flat).view(image.shape)


def opponent_change(image: Tensor, change: Tensor, shift: Tensor) -> Tensor:
    """A linear change of lightness and opponent colours, about each picture's mean lightness.

    Args:
        image: ``(n, 3, H, W)`` float32 in 0..1.
        change: ``(n, 3, 3)``, of lightness and the two colours.
        shift: ``(n, 3)``, added to them.

    Returns:
        ``(n, 3, H, W)``.
    """
    to, back = opponent_matrices(image)
    middle = image.mean(dim=(2, 3)) @ to[0]
    pivot = torch.zeros_like(shift)
    pivot[:, 0] = middle
    moved = pivot - (change @ pivot[:, :, None])[:, :, 0] + shift
    return affine(image, back @ change @ to, moved @ back.T)


def opponent_matrices(image: Tensor) -> tuple[Tensor, Tensor]:
    """From RGB to lightness and opponent colours, and back: ``(3, 3)`` each, on the picture's device."""
    return constant(_TO_OPPONENT, image.device), constant(_FROM_OPPONENT, image.device)


class Jitter(Operation):
    """Hue, chroma, lightness and contrast at once, in a perceptual opponent space (Oklab, linearised at mid-grey)."""

    group = "color"

    def draw(self, strength: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """Angle in radians, up to half a turn; factors of chroma and contrast; shift of lightness."""
        return {
            "hue": math.pi * strength * uniform(strength, -1, 1),
            "chroma": (0.9 * strength * uniform(strength, -1, 1)).exp(),
            "contrast": (0.6 * strength * uniform(strength, -1, 1)).exp(),
            "lightness": 0.3 * strength * uniform(strength, -1, 1),
        }

    def vary(self, image: Tensor, **params: Tensor) -> Tensor:
        """One matrix a picture."""
        hue, contrast = params["hue"], params["contrast"]
        sine, cosine = hue.sin(), hue.cos()
        turned = torch.stack([torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)], -2)
        change = torch.zeros(len(image), 3, 3, device=image.device)
        change[:, 0, 0] = contrast
        change[:, 1:, 1:] = turned * (params["chroma"] * contrast)[:, None, None]
        shift = torch.zeros(len(image), 3, device=image.device)
        shift[:, 0] = params["lightness"]
        return opponent_change(image, change, shift)


class WhiteBalance(Operation):
    """Light of another temperature, along the Planckian locus (Zini et al., 2022)."""

    group = "color"

    def draw(self, strength: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """Gains of red and blue against green."""
        table = constant(_PLANCKIAN, strength.device)
        neutral = 7.0  # 6,500 K: above it the light changes slowly, so that blue has more steps
        # Not below 4,000 K: there is no blue left to see by.
        side = torch.where(uniform(strength) < 0.5, 2 - neutral, len(table) - 1 - neutral)
        place = neutral + side * strength * uniform(strength, 0.3, 1)
        low = place.floor().long().clamp(0, len(table) - 2)
        at = torch.lerp(table[low], table[low + 1], (place - low)[:, None])
        return {"gains": at / table[int(neutral)]}

    def vary(self, image: Tensor, **params: Tensor) -> Tensor:
        """Red and blue by their gains, at the lightness that was."""
        gains = params["gains"]
        all_three = torch.stack([gains[:, 0], torch.ones_like(gains[:, 0]), gains[:, 1]], dim=1)
        weight = opponent_matrices(image)[0][0]
        return image * column(all_three / (all_three @ weight)[:, None])


class Palette(Operation):
    """Mean and deviation of another picture's colours, or of a known palette (Reinhard et al., 2001)."""

    group = "color"
    mixes = True

    def draw(self, strength: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """Which donor, or which palette instead of one, and how far to go."""
        known = constant(_PALETTES, strength.device)[(uniform(strength) * 8).long()]
        return {"weight": strength, "donor": uniform(strength), "instead": uniform(strength) < 0.5, "palette": known}

    def vary(self, image: Tensor, **params: Tensor) -> Tensor:
        """Statistics moved, in the same space as ``Jitter``; deviations change by at most 2.5 times."""
        to, _ = opponent_matrices(image)
        palette, weight = params["palette"], params["weight"]
        if len(params["donors"]) > 1:
            mean, deviation = _statistics(pick(params["donors"], params["donor"]), to)
            wanted = torch.stack([mean, deviation], dim=1)
            palette = torch.where(params["instead"][:, None, None], palette, wanted)
        mean, deviation = _statistics(image, to)
        gain = (palette[:, 1] / deviation.clamp(min=1e-4)).clamp(0.4, 2.5)
        gain = torch.lerp(torch.ones_like(gain), gain, weight[:, None])
        wanted = torch.lerp(mean, palette[:, 0], weight[:, None])
        shift = wanted - mean * gain
        shift[:, 0] = wanted[:, 0] - mean[:, 0]  # lightness turns about its mean already
        return opponent_change(image, torch.diag_embed(gain), shift)


def _statistics(image: Tensor, to: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of lightness and opponent colours, ``(n, 3)`` each, from sums alone."""
    flat = image.flatten(2)
    mean = flat.mean(dim=2)
    covariance = flat @ flat.transpose(1, 2) / flat.shape[2] - mean[:, :, None] * mean[:, None]
    variance = torch.diagonal(to @ covariance @ to.T, dim1=1, dim2=2)
    return mean @ to.T, variance.clamp(min=0).sqrt()


def pick(donors: Tensor, which: Tensor) -> Tensor:
    """For numbers in 0..1 a donor each, finite everywhere: what is broken in one must not reach another."""
    return donors[(which * len(donors)).long().clamp(max=len(donors) - 1)].nan_to_num(0.5, 1, 0)


class Curves(Operation):
    """A tone curve for each channel that stays rising, as in film and raw converters."""

    group = "color"

    def draw(self, strength: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """Bend and S-shape, of all channels and of each."""
        bend = strength[:, None] * (uniform(strength, -0.5, 0.5, 1) + uniform(strength, -0.4, 0.4, 3))
        shape = strength[:, None] * (uniform(strength, -0.6, 0.9, 1) + uniform(strength, -0.3, 0.3, 3))
        # With more than this a curve would fall somewhere.
        room = 0.95 / (bend.abs() + shape.abs()).clamp(min=0.95)
        return {"bend": bend * room, "shape": shape * room}

    def vary(self, image: Tensor, **params: Tensor) -> Tensor:
        """``x + x (1 - x) (bend + shape (2 x - 1))``: ends stay where they are."""
        low, slope = column(params["bend"] - params["shape"]), 2 * column(params["shape"])
        # By Horner's rule in one buffer: on a CPU a new one costs more than the arithmetic.
        return (image * -slope).add_(slope - low).mul_(image).add_(1 + low).mul_(image)


class Gamma(Operation):
    """Brighter or darker middle tones, by a power."""

    group = "color"

    def draw(self, strength: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """The power."""
        return {"gamma": (0.9 * strength * uniform(strength, -1, 1)).exp()}

    def vary(self, image: Tensor, **params: Tensor) -> Tensor:
        """Through the logarithm: a third of the time of a power."""
        return image.clamp(min=1e-6).log_().mul_(column(params["gamma"])).exp_()


class Greyscale(Operation):
    """Towards grey, weighted as by a coloured filter before the lens, sometimes toned."""

    group = "color"

    def draw(self, strength: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """Weights of the channels, tone, and how far to go."""
        weights = constant(_LUMA, strength.device) * uniform(strength, 0.3, 1.7, 3)
        toned = (uniform(strength) < 0.5)[:, None]
        return {
            "weights": weights / weights.sum(dim=1, keepdim=True),
            "tone": torch.where(toned, strength[:, None] * uniform(strength, -0.06, 0.06, 3), 0.0),
            "weight": (3 * strength).clamp(max=1),
        }

    def vary(self, image: Tensor, **params: Tensor) -> Tensor:
        """One matrix a picture."""
        far = params["weight"][:, None, None]
        grey = params["weights"][:, None].expand(-1, 3, -1)
        return affine(image, far * grey + (1 - far) * torch.eye(3, device=image.device), params["tone"])


class Illumination(Operation):
    """Light that falls off over the picture, from a side or from a lamp, with a colour of its own."""

    group = "color"

    def draw(self, strength: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """Direction, place and width of the lamp, and tint."""
        angle = uniform(strength, 0, 2 * math.pi)
        return {
            "weight": strength,
            "slope": torch.stack([angle.cos(), angle.sin()], dim=1) * uniform(strength, 0.2, 1, 1),
            "lamp": uniform(strength, -1, 1, 2),
            "bulge": uniform(strength, -0.6, 0.6),
            "tint": 1 + strength[:, None] * uniform(strength, -0.25, 0.25, 3),
        }

    def vary(self, image: Tensor, **params: Tensor) -> Tensor:
        """Times a field about 1."""
        y, x = grid(image)
        slope, lamp = params["slope"], params["lamp"]
        far = (x - column(lamp[:, 0])) ** 2 + (y - column(lamp[:, 1])) ** 2
        field = column(slope[:, 0]) * x + column(slope[:, 1]) * y + column(params["bulge"]) * (1 - far)
        return (image * (1 + 0.6 * column(params["weight"]) * field)).mul_(column(params["tint"]))


def grid(image: Tensor) -> tuple[Tensor, Tensor]:
    """Places of rows ``(1, 1, H, 1)`` and columns ``(1, 1, 1, W)``, in -1..1."""
    height, width = image.shape[-2:]
    y = (torch.arange(height, device=image.device) + 0.5) * (2 / height) - 1
    x = (torch.arange(width, device=image.device) + 0.5) * (2 / width) - 1
    return y[None, None, :, None], x[None, None, None, :]
