"""Random style: of painters and printers, of weather and light."""

from __future__ import annotations

import functools
import math
import re

import torch
import torch.nn.functional as F
from kornia.color import rgb_to_grayscale
from torch import Tensor

from infill_aug.variation.color import grid
from infill_aug.variation.operation import Operation, column, constant, uniform
from infill_aug.variation.texture import blur, enlarged, smaller

# Words of a descriptor's free-text style. One that several styles share counts for those of them that are named by
# another word too, or for all of them where none is: a "watercolour painting" is no oil painting.
STYLE_WORDS: dict[str, tuple[str, ...]] = {
    "photorealistic": (),
    "oil": ("oil", "impasto", "impressionist", "painterly", "painting", "painted"),
    "watercolour": ("watercolour", "watercolor", "aquarelle", "gouache", "wash", "painting", "painted"),
    "pencil_sketch": ("pencil", "sketch", "graphite", "charcoal", "drawing", "drawn"),
    "poster": ("poster", "posterised", "posterized", "screenprint", "silkscreen", "flat", "pop"),
    "comic": ("comic", "cartoon", "manga", "anime", "halftone", "pop", "drawing", "drawn"),
    "mosaic": ("mosaic", "tiles", "tiled", "tesserae"),
    "emboss": ("emboss", "embossed", "relief", "engraved"),
    "night": ("night", "nocturnal", "midnight", "moonlight", "moonlit", "dark"),
    "fog": ("fog", "foggy", "mist", "misty", "haze", "hazy"),
    "snow": ("snow", "snowy", "winter", "blizzard", "stormy"),
    "rain": ("rain", "rainy", "drizzle", "wet", "stormy"),
    "sunset": ("sunset", "sunrise", "dusk", "dawn", "twilight", "golden"),
    "film": ("film", "analog", "analogue", "cinematic", "retro", "vintage"),
    "sepia": ("sepia", "antique", "victorian", "daguerreotype", "vintage"),
    "thermal": ("thermal", "infrared", "heat"),
    "neon": ("neon", "cyberpunk", "synthwave", "glowing"),
}
# False colours of thermal cameras, from cold to hot ("ironbow"): lightness rises all along.
_IRON = torch.tensor(
    [[0.03, 0.02, 0.16], [0.22, 0.02, 0.48], [0.52, 0.04, 0.58], [0.80, 0.17, 0.38], [0.95, 0.42, 0.10],
     [1.00, 0.70, 0.08], [1.00, 0.92, 0.40], [1.00, 1.00, 0.92]]
)  # fmt: skip


def styles_in(text: str) -> dict[str, float]:
    """Weights of the styles whose words occur in a text.

    Args:
        text: any, such as a descriptor's ``style``.

    Returns:
        Names of operations, each with how many of its words occur; empty where none does.

    Example:
        >>> styles_in("Oil painting, at night"), styles_in("photorealistic")
        ({'oil': 2.0, 'night': 1.0}, {})
    """
    words = set(re.findall(r"[a-z]+", text.lower()))
    found = {style: words.intersection(known) for style, known in STYLE_WORDS.items()}
    shared = {word for word in words if sum(word in each for each in found.values()) > 1}
    sure = {style for style, each in found.items() if each - shared}
    taken = {word for style in sure for word in found[style]}
    weights = {style: float(len(each if style in sure else each - taken)) for style, each in found.items()}
    return {style: weight for style, weight in weights.items() if weight > 0}


# --- strokes, edges and fields that several styles share ---


def kuwahara(image: Tensor, radius: int) -> Tensor:
    """Mean of the quietest of the four squares that meet in a pixel (Kuwahara et al., 1976), weighed smoothly.

    Args:
        image: ``(n, 3, H, W)`` float32 in 0..1.
        radius: sides of the squares less one, pixels.

    Returns:
        ``(n, 3, H, W)``.
    """
    height, width = image.shape[-2:]
    luma = rgb_to_grayscale(image)
    padded = F.pad(torch.cat([image, luma * luma], dim=1), [radius] * 4, mode="replicate")
    # The same means serve all four squares, seen from their corners.
    means = _sums(_sums(padded, radius, 3), radius, 2) / (radius + 1) ** 2
    spread = means[:, 3:] - rgb_to_grayscale(means[:, :3]).square()
    weight = (spread.clamp(min=0) + 1e-4).reciprocal().square()
    weight = weight * weight
    both = torch.cat([means[:, :3] * weight, weight], dim=1)
    rows = both[:, :, :height] + both[:, :, radius:]
    total = rows[..., :width] + rows[..., radius:]
    return total[:, :3] / total[:, 3:]


def _flattened(image: Tensor, reach: float, passes: int = 1) -> Tensor:
    """Patches of one colour with smooth outlines; of pictures that are not small found at half the size."""
    unit = _unit(image)
    flat = smaller(image) if unit > 0.6 else image
    for _ in range(passes):
        flat = kuwahara(flat, max(1, round(reach * unit / 2)))
    return enlarged(flat, image)


def _sums(image: Tensor, reach: int, dim: int) -> Tensor:
    """Sums of ``reach + 1`` neighbours along a side."""
    parts = [image.narrow(dim, start, image.shape[dim] - reach) for start in range(reach + 1)]
    total = parts[0] + parts[1]
    for part in parts[2:]:
        total += part
    return total


def _soft(field: Tensor, sigma: float) -> Tensor:
    """Blurred, all alike."""
    return blur(field, field.new_full((len(field),), sigma), sigma)


def _slopes(field: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences to the right and down, ``(n, C, H, W)`` each."""
    padded = F.pad(field, (1, 1, 1, 1), mode="replicate")
    return (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2, (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2


def _lines(luma: Tensor) -> Tensor:
    """Dark lines as of ink, 1 on paper (difference of Gaussians, Winnemöller et al., 2012)."""
    fine, wide = (_soft(luma, sigma * _pattern_unit(luma)) for sigma in (0.7, 1.6))
    return 1 + torch.tanh(30 * (fine - 0.97 * wide - 0.005).clamp(max=0))


def colour_of(image: Tensor, *channels: float) -> Tensor:
    """A colour as ``(3, 1, 1)`` on the picture's device."""
    return constant(_colour(channels), image.device)


@functools.cache
def _colour(channels: tuple[float, ...]) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(channels).view(-1, 1, 1)


def _unit(image: Tensor) -> float:
    """Sizes are given for pictures of 224 pixels; in others they are this many times as large."""
    return math.sqrt(image.shape[-2] * image.shape[-1]) / 224


def _pattern_unit(image: Tensor) -> float:
    """The same for lines, dots and flakes: smaller yet, they would fall between the pixels."""
    return max(_unit(image), 0.6)


def _vivid(image: Tensor, chroma: float | Tensor) -> Tensor:
    """Chroma times a factor."""
    luma = rgb_to_grayscale(image)
    return luma + (image - luma) * chroma


def _cells(u: Tensor, v: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Place within its cell, 0..1, of each pixel, and what was drawn for that cell.

    Args:
        u: ``(n or 1, 1, H, W)``, across, in cells.
        v: down, same shape.
        table: ``(n, C, g, g)``, repeated over and over.

    Returns:
        As ``u`` and ``v``, and ``(n, C, H, W)``.
    """
    across, down, size = u.floor(), v.floor(), table.shape[-1]
    index = ((down % size) * size + across % size).long().flatten(2)
    found = table.flatten(2).gather(2, index.expand(len(table), table.shape[1], -1))
    return u - across, v - down, found.view(*table.shape[:2], *u.shape[2:])


def _pixels(image: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns, counted in pixels of a picture of 224."""
    y, x = grid(image)
    unit = _pattern_unit(image)
    return y * (image.shape[-2] / 2 / unit), x * (image.shape[-1] / 2 / unit)


def _vignette(image: Tensor, depth: Tensor) -> Tensor:
    """1 in the middle, ``1 - depth`` in the corners."""
    y, x = grid(image)
    return 1 - column(depth) * (x * x + y * y) / 2


class _Style(Operation):
    """A picture on its way to a style: ``strength`` of the way."""

    group = "style"

    def draw(self, strength: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """How far to go, and what the style draws."""
        return {"weight": strength, **self.sketch(strength, height, width)}

    def vary(self, image: Tensor, **params: Tensor) -> Tensor:
        """Between the picture and its styled twin."""
        return torch.lerp(image, self.restyle(image, **params), column(params["weight"]))

    def sketch(self, like: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """Parameters of the style at its fullest, one of each for each of ``like``, ``(n,)``."""
        return {}

    def restyle(self, image: Tensor, **params: Tensor) -> Tensor:
        """The style at its fullest, ``(n, 3, H, W)``."""
        raise NotImplementedError


# --- paint, ink and stone ---


class Oil(_Style):
    """Oil paint: dabs by a Kuwahara filter (Kuwahara et al., 1976) over scattered colours, lit from a side."""

    def sketch(self, like: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """Where the brush went, and where the light comes from."""
        return {"dabs": uniform(like, -0.16, 0.16, 1, height, width), "light": uniform(like, 0, 2 * math.pi)}

    def restyle(self, image: Tensor, **params: Tensor) -> Tensor:
        """Two passes; dabs catch light on their edges."""
        radius = max(1, round(4 * _unit(image)))
        painted = kuwahara(kuwahara(image + params["dabs"], radius), max(1, radius // 2))
        right, down = _slopes(rgb_to_grayscale(painted))
        relief = column(params["light"].cos()) * right + column(params["light"].sin()) * down
        return _vivid(painted, 1.35) + 0.9 * relief.clamp(-0.12, 0.12)


class Watercolour(_Style):
    """Watercolour: smooth washes, pigment gathered at their edges and in the paper (Bousseau et al., 2006)."""

    def sketch(self, like: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """Grain of the paper, and how thick the wash lies where."""
        return {
            "paper": uniform(like, -1, 1, 1, (height + 1) // 2, (width + 1) // 2),
            "wash": uniform(like, -1, 1, 1, 7, 7),
        }

    def restyle(self, image: Tensor, **params: Tensor) -> Tensor:
        """Where there is more pigment, ``c - (c - c²) (density - 1)``: paper stays white, dark stays dark."""
        flat = _flattened(image, 4, passes=2)
        right, down = _slopes(rgb_to_grayscale(flat))
        edges = (right.square() + down.square() + 1e-8).sqrt()
        sheet = 0.3 * params["paper"] + 0.55 * enlarged(params["wash"], params["paper"], "bicubic")
        density = 5 * edges.clamp(max=0.12) + enlarged(sheet, image)
        pale = 1 - 0.78 * (1 - _vivid(flat, 1.3)).clamp(0, 1)
        return pale - (pale - pale * pale) * density


class PencilSketch(_Style):
    """Pencil on paper: grey, dodged by its blurred inverse."""

    def sketch(self, like: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """Grain of the paper, how wide the lines are, and how they hatch."""
        return {
            "paper": uniform(like, -1, 1, 1, height, width),
            "width": uniform(like, 3, 6),
            "hatch": uniform(like, 0, math.pi),
        }

    def restyle(self, image: Tensor, **params: Tensor) -> Tensor:
        """Dodged: ``grey / blurred grey``."""
        unit = _unit(image)
        luma = rgb_to_grayscale(image)
        soft = enlarged(blur(smaller(luma), params["width"] * unit / 2, 3 * unit), luma)
        line = ((luma + 0.02) / (soft + 0.02)).clamp(0, 1)
        y, x = _pixels(image)
        strokes = torch.sin(1.5 * (column(params["hatch"].cos()) * x + column(params["hatch"].sin()) * y))
        shade = (0.85 - soft).clamp(min=0) * (0.45 + 0.12 * strokes + 0.2 * params["paper"])
        return (line * 0.97 - shade + 0.025 * params["paper"]).clamp(0.05, 1).expand_as(image)


class Poster(_Style):
    """Screen print: few levels of strong colours without detail."""

    def sketch(self, like: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """How many levels, 4 to 6, and where they part."""
        return {"levels": uniform(like, 4, 7).floor(), "shift": uniform(like, -0.2, 0.2, 3)}

    def restyle(self, image: Tensor, **params: Tensor) -> Tensor:
        """Smoothed first, so that levels part along lines."""
        flat = _vivid(_flattened(image, 2), 1.6).clamp(0, 1)
        top = column(params["levels"]) - 1
        return 0.05 + 0.92 * (flat * top + column(params["shift"])).round().clamp(min=0).minimum(top) / top


class Comic(_Style):
    """Printed comic: few tones, ink lines (Winnemöller et al., 2012) and halftone dots in the shades."""

    def sketch(self, like: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """Distance and angle of the dots."""
        return {"pitch": uniform(like, 4, 6), "angle": uniform(like, 0, math.pi / 2)}

    def restyle(self, image: Tensor, **params: Tensor) -> Tensor:
        """Tones first, then dots, then ink."""
        flat = _flattened(image, 2)
        luma = rgb_to_grayscale(flat)
        tone = (luma * 3.5).round() / 3.5
        inked = (_vivid(flat, 1.7) + tone - luma).clamp(0, 1) * 0.85 + 0.15
        y, x = _pixels(image)
        turn = math.pi / column(params["pitch"])
        sine, cosine = column(params["angle"].sin()) * turn, column(params["angle"].cos()) * turn
        dots = (x * cosine + y * sine).sin() * (y * cosine - x * sine).sin()
        shaded = (3 * (dots.abs() - 0.35 - 1.1 * luma)).clamp(0, 1)
        return inked * (1 - 0.45 * shaded) * (0.1 + 0.9 * _lines(luma))


class Mosaic(_Style):
    """Mosaic: tiles of one colour each, set in grout."""

    group = "style"
    moves = True  # a tile on the border of a mask would show the colours of what lies outside

    def sketch(self, like: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """Size and place of the tiles, how they differ, and the grout."""
        return {
            "size": uniform(like, 6, 11),
            "start": uniform(like, 0, 1, 2),
            "tint": uniform(like, -0.1, 0.1, 1, 48, 48),
            "grout": uniform(like, 0.2, 0.6),
        }

    def restyle(self, image: Tensor, **params: Tensor) -> Tensor:
        """Means of tiles are products with matrices, whatever the size of each sample's tiles."""
        size = (params["size"] * _unit(image)).clamp(min=4)[:, None]
        places, joints, means = [], [], []
        for axis, length in enumerate(image.shape[-2:]):
            place = torch.arange(length, device=image.device) / size + params["start"][:, axis, None]
            tile = place.floor()
            same = (tile[:, :, None] == tile[:, None]).float()
            means.append(same / same.sum(dim=2, keepdim=True))
            places.append(tile.long() % 48)
            joints.append((place - tile) * size < (0.13 * size).clamp(min=1))
        flat = means[0][:, None] @ image @ means[1][:, None].transpose(2, 3)
        tints = params["tint"].flatten(1).gather(1, (places[0][:, :, None] * 48 + places[1][:, None]).flatten(1))
        tiles = _vivid(flat, 1.2) + tints.view(len(image), 1, *image.shape[2:])
        joint = joints[0][:, None, :, None] | joints[1][:, None, None]
        return torch.where(joint, column(params["grout"]), tiles)


class Emboss(_Style):
    """Relief in grey stone, lit from a side."""

    def sketch(self, like: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """Where the light comes from."""
        return {"light": uniform(like, 0, 2 * math.pi)}

    def restyle(self, image: Tensor, **params: Tensor) -> Tensor:
        """The slope towards the light, on grey."""
        luma = rgb_to_grayscale(image)
        right, down = _slopes(_soft(luma, 1.2 * _unit(image)))
        relief = column(params["light"].cos()) * right + column(params["light"].sin()) * down
        return 0.52 + (4.5 * _unit(image) * relief).clamp(-0.45, 0.45) + 0.1 * (_vivid(image, 0.3) - 0.5)


# --- light and weather ---


class Night(_Style):
    """Night as in films shot by day: dark, blue, little colour."""

    def sketch(self, like: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """Grain, and how dark."""
        return {"grain": uniform(like, -0.03, 0.03, 1, height, width), "light": uniform(like, 0.65, 0.85)}

    def restyle(self, image: Tensor, **params: Tensor) -> Tensor:
        """Shades get deeper than lights; the corners are dark."""
        moon = _vivid(image, 0.35) * colour_of(image, 0.55, 0.72, 1.1) * column(params["light"])
        moon = moon * (0.4 + 0.9 * moon) * _vignette(image, moon.new_full((len(moon),), 0.6))
        return moon + params["grain"] + colour_of(image, 0.015, 0.03, 0.07)


class Fog(_Style):
    """Fog, thicker towards the top, where a picture is far away (as in Koschmieder, 1924)."""

    def sketch(self, like: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """How thick, in banks, and how light."""
        return {
            "thick": uniform(like, 1.3, 2.2),
            "banks": uniform(like, -1, 1, 1, 4, 4),
            "light": uniform(like, 0.74, 0.88, 1) + uniform(like, -0.015, 0.015, 3),
        }

    def restyle(self, image: Tensor, **params: Tensor) -> Tensor:
        """What comes through falls off with distance; the rest is fog."""
        y, _ = grid(image)
        far = 0.65 - 0.4 * y + 0.22 * enlarged(params["banks"], image, "bicubic")
        through = (-column(params["thick"]) * far.clamp(min=0.1)).exp()
        return torch.lerp(column(params["light"]), image, through)


class Snow(_Style):
    """Snowfall: flakes of three sizes before a pale, cold picture."""

    def sketch(self, like: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """Place of a flake in each cell of each layer, and 1 / radius², which is huge where there is none."""
        full = column(uniform(like, 0.45, 0.75))[:, None]
        radius = 0.08 + 0.16 * uniform(like, 0, 1, 3, 1, 24, 24).square()
        there = uniform(like, 0, 1, 3, 1, 24, 24) < full
        small = torch.where(there, 1 / radius.square(), 1e6)
        return {"flakes": torch.cat([uniform(like, 0.25, 0.75, 3, 2, 24, 24), small], dim=2)}

    def restyle(self, image: Tensor, **params: Tensor) -> Tensor:
        """Soft discs, one a cell, over each other."""
        y, x = _pixels(image)
        clear = torch.ones_like(image[:, :1])
        for layer, (size, dense) in enumerate(((7.0, 0.95), (12.0, 0.75), (26.0, 0.55))):
            # Layers are turned against each other, so that no two share their rows.
            sine, cosine = math.sin(0.4 + 0.5 * layer) / size, math.cos(0.4 + 0.5 * layer) / size
            u, v, drawn = _cells(x * cosine + y * sine, y * cosine - x * sine, params["flakes"][:, layer])
            off = (u - drawn[:, :1]).square() + (v - drawn[:, 1:2]).square()
            clear = clear * (1 - dense / 0.75 * (1 - off * drawn[:, 2:]).clamp(0, 0.75))
        pale = 0.3 + 0.62 * _vivid(image, 0.5) + colour_of(image, -0.02, 0.0, 0.03)
        return 1 - (1 - pale) * clear


class Rain(_Style):
    """Rain: slanting streaks before a grey, dull picture."""

    def sketch(self, like: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """Place and light of a streak in each cell of both layers, and slant; where there is none it has no light."""
        hard = column(uniform(like, 0.5, 0.85))[:, None]
        there = uniform(like, 0, 1, 2, 1, 32, 32) < hard
        place = uniform(like, 0.3, 0.7, 2, 1, 32, 32)
        light = uniform(like, 0.2, 0.6, 2, 1, 32, 32) * there
        return {"streaks": torch.cat([place, light], dim=2), "slant": uniform(like, -0.35, 0.35)}

    def restyle(self, image: Tensor, **params: Tensor) -> Tensor:
        """Near streaks over far ones."""
        y, x = _pixels(image)
        clear = torch.ones_like(image[:, :1])
        across = x + column(params["slant"]) * y
        for layer, (wide, tall) in enumerate(((5.0, 34.0), (11.0, 62.0))):
            u = across / wide
            # Each column of cells begins elsewhere.
            u, v, drawn = _cells(u, y / tall + (0.618 * u.floor()) % 1, params["streaks"][:, layer])
            beside = (u - drawn[:, :1]).abs() * (wide / (0.9 + 0.3 * layer))
            along = 1.2 * (1 - (2.2 * v - 1.1).square()).clamp(min=0)
            clear = clear * (1 - (1 - beside).clamp(min=0) * along * drawn[:, 1:])
        dull = 0.62 * _vivid(image, 0.5) + colour_of(image, 0.09, 0.105, 0.125)
        return 0.95 - (0.95 - dull) * clear


class Sunset(_Style):
    """Low sun: warm light from the horizon, violet above and below it."""

    def sketch(self, like: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """Place of the sun."""
        return {"sun": torch.stack([uniform(like, -0.7, 0.7), uniform(like, -0.35, 0.25)], dim=1)}

    def restyle(self, image: Tensor, **params: Tensor) -> Tensor:
        """Tinted by height, then lit."""
        y, x = grid(image)
        right, up = x - column(params["sun"][:, 0]), y - column(params["sun"][:, 1])
        band = (-3 * up * up).exp()
        halo = (-5 * (right * right + up * up)).exp()
        away, warm = colour_of(image, 0.66, 0.48, 0.66), colour_of(image, 1.05, 0.72, 0.42)
        light = colour_of(image, 1.0, 0.52, 0.16)
        lit = (image * torch.lerp(away, warm, band)).clamp(0, 1)
        return 1 - (1 - lit) * (1 - light * (0.22 * band + 0.55 * halo))


# --- camera ---


class Film(_Style):
    """Colour film: lifted blacks, soft lights, teal shades, warm lights, grain and a vignette."""

    def sketch(self, like: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """Grain, tone of the shades, and vignette."""
        return {
            "grain": uniform(like, -0.065, 0.065, 1, height, width),
            "tone": uniform(like, -0.02, 0.02, 3),
            "vignette": uniform(like, 0.3, 0.55),
        }

    def restyle(self, image: Tensor, **params: Tensor) -> Tensor:
        """A curve for each channel, from a lifted black to a dimmed white."""
        black = colour_of(image, 0.06, 0.12, 0.15) + column(params["tone"])
        white = colour_of(image, 1.0, 0.93, 0.78)
        toned = image * image * (3 - 2 * image)
        toned = _vivid(torch.lerp(image, toned, 0.6), 0.75) * _vignette(image, params["vignette"])
        return black + (white - black) * toned + params["grain"] * (1.1 - toned)


class Sepia(_Style):
    """Old print: brown tones, faded, darker towards the corners."""

    def sketch(self, like: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """How faded, and vignette."""
        return {"faded": uniform(like, 0.0, 0.12), "vignette": uniform(like, 0.2, 0.5)}

    def restyle(self, image: Tensor, **params: Tensor) -> Tensor:
        """Browner in the shades than in the lights."""
        luma = rgb_to_grayscale(image)
        shade, light = colour_of(image, 1.15, 0.78, 0.52), colour_of(image, 1.08, 0.92, 0.7)
        faded = column(params["faded"])
        return (faded + (1 - faded) * luma) * torch.lerp(shade, light, luma) * _vignette(image, params["vignette"])


class Thermal(_Style):
    """False colours of a thermal camera, from violet to white."""

    def sketch(self, like: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """Range of the camera."""
        return {"low": uniform(like, 0, 0.1), "high": uniform(like, 0.85, 1)}

    def restyle(self, image: Tensor, **params: Tensor) -> Tensor:
        """Lightness, as coarse as such cameras see, through a table."""
        luma = rgb_to_grayscale(image)
        heat = _soft(luma, 1.3 * _unit(image))
        heat = ((heat - column(params["low"])) / column(params["high"] - params["low"])).clamp(0, 1)
        table = F.interpolate(constant(_IRON, image.device).T[None], size=256, mode="linear", align_corners=True)[0]
        index = (heat * 255).nan_to_num().long().flatten(1)
        return table[:, index].transpose(0, 1).reshape(image.shape)


class Neon(_Style):
    """Neon signs: edges that glow in two colours, on dark."""

    def sketch(self, like: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """Hue of the first colour, how far off the second is, and the way from one to the other."""
        return {"hue": uniform(like, 0, 1), "apart": uniform(like, 0.25, 0.5), "way": uniform(like, 0, 2 * math.pi)}

    def restyle(self, image: Tensor, **params: Tensor) -> Tensor:
        """Edges, and their light around them."""
        unit = _unit(image)
        luma = rgb_to_grayscale(image)
        right, down = _slopes(_soft(luma, 0.9 * unit))
        edges = (right.square() + down.square() + 1e-8).sqrt()
        # Measured by the picture's own edges: a flat picture has signs too.
        edges = edges / (4 * edges.mean(dim=(2, 3), keepdim=True) + 0.02)
        line = (1.6 * edges - 0.25).clamp(0, 1)
        glow = enlarged(_soft(smaller(smaller(line)), 1.6 * unit), line)
        y, x = grid(image)
        way = column(params["way"].cos()) * x + column(params["way"].sin()) * y
        first, second = (_hue(params["hue"] + off) for off in (0.0, params["apart"]))
        colour = torch.lerp(column(first), column(second), (0.5 + 0.7 * way).clamp(0, 1))
        dark = luma * colour_of(image, 0.13, 0.09, 0.22) + 0.035
        return dark + colour * (line + 0.9 * glow) + 0.35 * line * line


def _hue(hue: Tensor) -> Tensor:
    """Full colours ``(n, 3)`` of hues in 0..1."""
    third = colour_of(hue, 0.0, 2 / 3, 1 / 3).view(3)
    return (((hue[:, None] + third) % 1 * 6 - 3).abs() - 1).clamp(0, 1)
