"""Random colour and texture of the infill, per sample, with kornia."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from infill_aug.functional.composite import composite


class Variation(nn.Module):
    """Changes colour and texture of the infill and of nothing else, drawn anew for every sample.

    Convention:
        * infill ``(B, 3, H, W)`` floating point in 0..1, mask ``(B, 1, H, W)``, 1 = infill; same shapes out
        * outside the mask the result equals the input bit for bit
        * randomness from torch's global generators, as kornia does

    Args:
        color: 0..1, strength of brightness, contrast, saturation and hue changes.
        texture: 0..1, strength of Gaussian noise and blur; each touches half of the samples.

    Raises:
        ValueError: a strength outside 0..1.

    Example:
        >>> import torch
        >>> Variation()(torch.rand(2, 3, 8, 8), torch.ones(2, 1, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """

    def __init__(self, color: float = 0.5, texture: float = 0.3) -> None:
        super().__init__()
        import kornia.augmentation as K

        for name, value in (("color", color), ("texture", texture)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in 0..1, got {value}")
        if color == texture == 0:
            warnings.warn("Variation(color=0, texture=0) changes nothing", stacklevel=2)
        self.color, self.texture = color, texture
        operations: list[nn.Module] = []
        if color > 0:
            spread = (1 - 0.6 * color, 1 + 0.6 * color)
            operations.append(
                K.ColorJiggle(brightness=spread, contrast=spread, saturation=spread, hue=(-color / 2, color / 2), p=1.0)
            )
        if texture > 0:
            operations.append(K.RandomGaussianBlur((5, 5), (0.1, 0.1 + 2 * texture), p=0.5))
            operations.append(K.RandomGaussianNoise(std=0.2 * texture, p=0.5))
        self.operations = nn.ModuleList(operations)

    @torch.no_grad()
    def forward(self, infill: Tensor, mask: Tensor) -> Tensor:
        """The varied infill."""
        varied = infill
        for operation in self.operations:
            varied = operation(varied).clamp(0, 1)
        return composite(infill, varied.to(infill.dtype), mask > 0)

    def extra_repr(self) -> str:
        """What is printed of this module."""
        return f"color={self.color}, texture={self.texture}"
