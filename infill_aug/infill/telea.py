"""Telea's fast marching inpainting, from OpenCV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infill_aug.checks import is_number
from infill_aug.infill.backend import InfillBackend, ModelConfig, SampleContext


class TeleaBackend(InfillBackend):
    """Fast marching inpainting: continues edges a little way in; deterministic, CPU, one image at a time.

    A. Telea, An image inpainting technique based on the fast marching method, 2004, as ``cv2.inpaint``.

    Args:
        radius: neighbourhood in pixels that a filled pixel is computed from, above 0.

    Raises:
        ImportError: OpenCV is not installed.
        ValueError: ``radius`` is not above 0.

    Example:
        >>> import torch
        >>> from infill_aug.descriptor import TaskDescriptor
        >>> image, mask = torch.rand(1, 3, 8, 8), torch.zeros(1, 1, 8, 8)
        >>> mask[..., 2:6] = 1
        >>> TeleaBackend().generate_infill(image, mask, TaskDescriptor("demo", "cat")).shape
        torch.Size([1, 3, 8, 8])
    """

    name = "telea"
    may_be_flat = True

    def __init__(self, radius: float = 3.0) -> None:
        try:
            import cv2  # noqa: F401 - fail here, with the remedy, not in the middle of a build
        except ImportError as error:
            raise ImportError("backend 'telea' needs OpenCV: pip install 'infill-aug[opencv]'") from error
        super().__init__(radius=radius)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """The radius is a number above 0."""
        radius = options["radius"]
        if not is_number(radius, above=0):
            raise ValueError(f"radius must be a number of pixels above 0, got {radius!r}")

    def _generate(self, image: Tensor, mask: Tensor, config: ModelConfig, samples: Sequence[SampleContext]) -> Tensor:
        import cv2

        radius = float(dict(config.options)["radius"])
        pixels = (image * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        holes = mask[:, 0].to(torch.uint8).cpu().numpy()
        fills = [
            cv2.inpaint(np.ascontiguousarray(picture), hole, radius, cv2.INPAINT_TELEA)
            for picture, hole in zip(pixels, holes, strict=True)
        ]
        return torch.from_numpy(np.stack(fills)).permute(0, 3, 1, 2).to(image.device).float() / 255
