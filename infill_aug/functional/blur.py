"""Gaussian blur of pictures of any size, one direction after the other."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor


def gaussian_blur(picture: Tensor, sigma: float, reach: float = 3.0) -> Tensor:
    """Blur with a Gaussian; beyond its border a picture goes on as it ends.

    torchvision's own takes both directions at once, and no picture smaller than its kernel.

    Args:
        picture: ``(..., C, H, W)`` floating point.
        sigma: pixels, above 0.
        reach: half the kernel's width in units of ``sigma``.

    Returns:
        Same shape, dtype and device.

    Example:
        >>> gaussian_blur(torch.ones(3, 2, 5), 4.0).allclose(torch.ones(3, 2, 5))
        True
    """
    pad = math.ceil(reach * sigma)
    offsets = torch.arange(-pad, pad + 1, device=picture.device, dtype=torch.float32)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).to(picture.dtype)
    blurred = picture.reshape(-1, 1, *picture.shape[-2:])
    for shape, sides in (((1, 1, 1, -1), (pad, pad, 0, 0)), ((1, 1, -1, 1), (0, 0, pad, pad))):
        blurred = nnf.conv2d(nnf.pad(blurred, sides, mode="replicate"), kernel.reshape(shape))
    return blurred.reshape(picture.shape)
