"""Infills and confidence maps as bytes: ordinary picture files that any viewer opens."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

CODECS = ("webp", "jpeg", "raw")

# Lossless at the lowest effort: 20 times faster to write than the default effort, and no slower to read.
_LOSSLESS: dict[str, Any] = {"format": "WEBP", "lossless": True, "method": 0, "quality": 20, "exact": True}
_WEBP_SIDE = 16383
_JPEG = b"\xff\xd8"


def encode_infill(infill: Tensor, mask: Tensor, image: Tensor, codec: str = "webp") -> tuple[bytes, str]:
    """An infill as file bytes, with what is needed to lay it over its image again.

    ``webp`` (lossless) and ``raw`` keep the masked pixels only, with the mask as alpha channel; ``jpeg`` (quality 95,
    no chroma subsampling) keeps the whole composite, since blocks would smear a cut edge, and the mask behind the
    picture's end, where viewers don't look.

    Args:
        infill: ``(3, H, W)`` ``uint8``.
        mask: ``(1, H, W)`` bool.
        image: ``(3, H, W)`` ``uint8``, the original.
        codec: ``"webp"``, ``"jpeg"`` or ``"raw"``.

    Returns:
        File bytes and the file name's extension.

    Raises:
        ValueError: an unknown codec.

    Example:
        >>> import torch
        >>> pixels, mask = torch.full((3, 2, 2), 9, dtype=torch.uint8), torch.ones(1, 2, 2, dtype=torch.bool)
        >>> payload, extension = encode_infill(pixels, mask, torch.zeros_like(pixels))
        >>> infill, generated = decode_infill(payload, torch.zeros_like(pixels))
        >>> extension, infill.unique().tolist(), generated.unique().tolist()
        ('webp', [9], [255])
    """
    if codec not in CODECS:
        raise ValueError(f"codec must be one of {CODECS}, got {codec!r}")
    if codec == "jpeg":
        picture = _file(torch.where(mask, infill, image), format="JPEG", quality=95, subsampling=0)
        bits = zlib.compress(np.packbits(mask.numpy()).tobytes(), 1)
        return picture + bits + struct.pack("<I", len(bits)), "jpg"
    rgba = torch.cat([infill * mask, mask.to(torch.uint8) * 255])
    if codec == "raw":
        buffer = io.BytesIO()
        np.save(buffer, rgba.numpy())
        return buffer.getvalue(), "npy"
    if max(rgba.shape[-2:]) > _WEBP_SIDE:
        return _file(rgba, format="PNG", compress_level=1), "png"
    return _file(rgba, **_LOSSLESS), "webp"


def decode_infill(payload: bytes, image: Tensor) -> tuple[Tensor, Tensor]:
    """The infill over its image: stored pixels where it was masked, the image's own everywhere else.

    Args:
        payload: what ``encode_infill`` gave.
        image: ``(3, H, W)`` ``uint8``, the original.

    Returns:
        ``(3, H, W)`` ``uint8`` infill, and ``(1, H, W)`` ``uint8``: 255 where it was generated, 0 elsewhere.

    Raises:
        ValueError: the stored infill has another size than the image.
    """
    stored = decode_pixels(payload)
    if stored.shape[-2:] != image.shape[-2:]:
        raise ValueError(f"the stored infill is {tuple(stored.shape[-2:])}, its image {tuple(image.shape[-2:])}")
    if stored.shape[0] == 4:
        alpha = stored[3:]
    elif not payload.startswith(_JPEG):
        alpha = torch.full((1, *stored.shape[1:]), 255, dtype=torch.uint8)  # encoders drop an alpha that is all opaque
    else:
        (length,) = struct.unpack("<I", payload[-4:])
        bits = np.frombuffer(zlib.decompress(payload[-4 - length : -4]), np.uint8)
        mask = np.unpackbits(bits, count=stored.shape[1] * stored.shape[2]) * np.uint8(255)
        alpha = torch.from_numpy(mask).reshape(1, *stored.shape[1:])
    # Bitwise select, in place: many times faster than torch.where with a broadcast mask, and one allocation only.
    difference = image ^ stored[:3]
    difference &= alpha
    difference ^= image
    return difference, alpha


def encode_map(confidence: Tensor) -> tuple[bytes, str]:
    """A ``(1, H, W)`` ``uint8`` confidence map as file bytes, lossless.

    Example:
        >>> import torch
        >>> confidence = torch.arange(6, dtype=torch.uint8).reshape(1, 2, 3)
        >>> bool((decode_map(encode_map(confidence)[0]) == confidence).all())
        True
    """
    if max(confidence.shape[-2:]) > _WEBP_SIDE:
        return _file(confidence, format="PNG", compress_level=1), "png"
    return _file(confidence, **_LOSSLESS), "webp"


def decode_map(payload: bytes) -> Tensor:
    """A stored confidence map as ``(1, H, W)`` ``uint8``."""
    return decode_pixels(payload)[:1]


def _file(pixels: Tensor, **options: Any) -> bytes:
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    PILImage.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(buffer, **options)
    return buffer.getvalue()


def decode_pixels(payload: bytes) -> Tensor:
    """A stored file as it is: ``(3, H, W)``, or ``(4, H, W)`` with the mask as alpha, ``uint8``."""
    if payload.startswith(b"\x93NUMPY"):
        return torch.from_numpy(np.load(io.BytesIO(payload), allow_pickle=False))
    return decode_image(torch.frombuffer(bytearray(payload), dtype=torch.uint8), mode=ImageReadMode.UNCHANGED)
