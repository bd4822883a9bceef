"""How different two colours look: CIELAB and CIEDE2000."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# sRGB (IEC 61966-2-1) to XYZ over the D65 white, so that white becomes (1, 1, 1) and grey has no colour.
_TO_XYZ = ((0.4338786, 0.3762161, 0.1899053), (0.2126390, 0.7151687, 0.0721923), (0.0177506, 0.1094724, 0.8727770))


def srgb_to_lab(picture: Tensor) -> Tensor:
    """CIELAB (D65) of sRGB pictures.

    Args:
        picture: ``(..., 3, H, W)`` floating point in 0..1, or ``uint8``; any device.

    Returns:
        ``(..., 3, H, W)`` float32 (float64 for float64): lightness in 0..100, and red against green and yellow against
        blue in about -110..110.

    Example:
        >>> import torch
        >>> srgb_to_lab(torch.full((3, 1, 1), 1.0)).round().flatten().abs().tolist()
        [100.0, 0.0, 0.0]
    """
    if picture.dtype == torch.uint8:
        # Powers are slow, and 8 bits have only 256 of them.
        table = _linear(torch.arange(256, device=picture.device, dtype=torch.float32) / 255)
        linear = table[picture.int()]
    else:
        linear = _linear(picture if picture.dtype == torch.float64 else picture.float())
    x, y, z = (
        _lab_curve(sum(weight * linear[..., i, :, :] for i, weight in enumerate(row)))  # type: ignore[arg-type]
        for row in _TO_XYZ
    )
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-3)


def _linear(value: Tensor) -> Tensor:
    return torch.where(value <= 0.04045, value / 12.92, ((value.clamp(min=0) + 0.055) / 1.055) ** 2.4)


def _lab_curve(value: Tensor) -> Tensor:
    edge = 6 / 29
    return torch.where(value > edge**3, value.clamp(min=1e-8) ** (1 / 3), value / (3 * edge**2) + 4 / 29)


def ciede2000(first: Tensor, second: Tensor) -> Tensor:
    """CIEDE2000 difference of colours; 1 is about the least that a person sees.

    Source: G. Sharma, W. Wu, E. N. Dalal, "The CIEDE2000 color-difference formula" (2005), with all weights 1.

    Args:
        first: ``(..., 3, H, W)`` floating point CIELAB.
        second: likewise, of a shape that fits.

    Returns:
        ``(..., 1, H, W)``, 0 or more, in the dtype of the two.

    Example:
        >>> import torch
        >>> one, other = torch.tensor([[50.0, 2.6772, -79.7751], [50.0, 0.0, -82.7485]]).view(2, 3, 1, 1)
        >>> round(ciede2000(one, other).item(), 4)
        2.0425
    """
    (l1, a1, b1), (l2, a2, b2) = (lab.unbind(dim=-3) for lab in (first, second))
    grey = 1 + 0.5 * (1 - _of_seventh((torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2))
    a1, a2 = a1 * grey, a2 * grey
    c1, c2 = torch.hypot(a1, b1), torch.hypot(a2, b2)
    h1, h2 = (torch.remainder(torch.atan2(b, a), 2 * math.pi) for a, b in ((a1, b1), (a2, b2)))
    turn, coloured = h2 - h1, c1 * c2 > 0
    far = turn.abs() > math.pi  # the other way around is shorter
    hue = torch.where(coloured, (h1 + h2) / 2 + math.pi * far, h1 + h2)  # a grey has none, and counts for nothing
    turn = torch.where(coloured, turn - 2 * math.pi * far * turn.sign(), 0.0)
    chroma, light = (c1 + c2) / 2, (l1 + l2) / 2
    weight_h = (
        1
        - 0.17 * torch.cos(hue - math.radians(30))
        + 0.24 * torch.cos(2 * hue)
        + 0.32 * torch.cos(3 * hue + math.radians(6))
        - 0.20 * torch.cos(4 * hue - math.radians(63))
    )
    square = (light - 50) ** 2
    scale_l = 1 + 0.015 * square / torch.sqrt(20 + square)
    scale_c, scale_h = 1 + 0.045 * chroma, 1 + 0.015 * chroma * weight_h
    from_blue = torch.remainder(hue, 2 * math.pi) - math.radians(275)
    blue = math.radians(30) * torch.exp(-((from_blue / math.radians(25)) ** 2))
    rotation = -2 * _of_seventh(chroma) * torch.sin(2 * blue)
    delta_l = (l2 - l1) / scale_l
    delta_c = (c2 - c1) / scale_c
    delta_h = 2 * torch.sqrt(c1 * c2) * torch.sin(turn / 2) / scale_h
    total = delta_l**2 + delta_c**2 + delta_h**2 + rotation * delta_c * delta_h
    return total.clamp(min=0).sqrt().unsqueeze(-3)


def _of_seventh(chroma: Tensor) -> Tensor:
    power = chroma**7
    return torch.sqrt(power / (power + 25.0**7))
