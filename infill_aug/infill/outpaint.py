"""Outpainting: a picture on a larger canvas, with any backend."""

from __future__ import annotations

import torch
from torch import Tensor

from infill_aug.descriptor import TaskDescriptor
from infill_aug.infill.backend import InfillBackend, contexts_of


def outpaint(
    image: Tensor,
    size: tuple[int, int],
    backend: InfillBackend,
    descriptor: TaskDescriptor,
    *,
    offset: tuple[int, int] | None = None,
) -> Tensor:
    """Lay a picture on a larger canvas and fill what is around it.

    Args:
        image: ``(3, H, W)`` or ``(B, 3, H, W)``, ``uint8`` or floating point in 0..1.
        size: height and width of the canvas in pixels, not below the picture's.
        backend: what fills; its device is the picture's.
        descriptor: what to fill with.
        offset: row and column of the canvas where the picture's first pixel lies; by default it lies in the middle.

    Returns:
        ``(3, *size)`` or ``(B, 3, *size)`` of the dtype and on the device of ``image``, whose pixels are in it bit for
        bit.

    Raises:
        ValueError: the image is no picture, the canvas is too small, or the picture does not lie on it.
        PartialInfillError: the backend could not fill some sample.

    Example:
        >>> import torch
        >>> from infill_aug.infill import load_backend
        >>> image = torch.rand(3, 16, 16)
        >>> wide = outpaint(image, (16, 24), load_backend("push_pull"), TaskDescriptor("demo", "cat"), offset=(0, 8))
        >>> wide.shape, torch.equal(wide[:, :, 8:], image)
        (torch.Size([3, 16, 24]), True)
    """
    if image.ndim not in (3, 4) or image.shape[-3] != 3 or 0 in image.shape[-2:]:
        raise ValueError(f"image must be (3, H, W) or (B, 3, H, W), got {tuple(image.shape)}")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise ValueError(f"image must be uint8 or floating point in 0..1, got {image.dtype}")
    height, width = image.shape[-2:]
    if size[0] < height or size[1] < width:
        raise ValueError(f"size must be at least the picture's ({height}, {width}), got {tuple(size)}; crop it first")
    free = (size[0] - height, size[1] - width)
    top, left = (free[0] // 2, free[1] // 2) if offset is None else offset
    if not (0 <= top <= free[0] and 0 <= left <= free[1]):
        raise ValueError(f"offset must lie in (0, 0)..{free} for the picture to be on the canvas, got {(top, left)}")
    batch = image if image.ndim == 4 else image[None]
    place = (..., slice(top, top + height), slice(left, left + width))
    canvas = torch.zeros(len(batch), 3, *size, device=image.device)
    canvas[place] = batch / 255 if batch.dtype == torch.uint8 else batch.float()
    around = torch.ones(len(batch), 1, *size, dtype=torch.bool, device=image.device)
    around[place] = False
    # Known by the picture, so that a backend that fills from other pictures can tell it from them.
    samples = contexts_of((canvas[place] * 255).round().to(torch.uint8), descriptor.seed)
    fill = backend.generate_infill(canvas, around, descriptor, samples=samples)
    result = (fill * 255).round() if image.dtype == torch.uint8 else fill
    result = result.to(image.dtype)
    result[place] = batch  # exact in every dtype
    return result if image.ndim == 4 else result[0]
