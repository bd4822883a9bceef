"""A small inpainting network of one pass, in the form that the backend ``gan`` reads."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

# Side of the patches that the network works on, and what the last layers see them as.
_PATCH, _LAST = 4, 2
# Spacing of each block's kernel: with the first layer they see 31 patches to each side.
_SPACING = (1, 2, 4, 8, 8, 4, 2, 1)


class SinglePassInfiller(nn.Module):
    """Convolutions of growing spacing on patches of 4 pixels, and two on patches of 2, after Iizuka et al. (2017).

    Called like LaMa: ``network(image, mask)``.

    Args:
        channels: of all blocks, a multiple of 8.

    Example:
        >>> SinglePassInfiller(16)(torch.rand(2, 3, 16, 24), torch.ones(2, 1, 16, 24)).shape
        torch.Size([2, 3, 16, 24])
    """

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        self.first = nn.Conv2d(4 * _PATCH**2, channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(8, channels),
                nn.SiLU(),
                nn.Conv2d(channels, channels, 3, padding=spacing, dilation=spacing),
                nn.SiLU(),
                nn.Conv2d(channels, channels, 1),
            )
            for spacing in _SPACING
        )
        # After the patches are taken apart: their borders would show.
        self.last = nn.Sequential(
            nn.Conv2d(channels // _LAST**2 + 4 * _LAST**2, channels // 2, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels // 2, 3 * _LAST**2, 3, padding=1),
        )

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Fill the holes of a batch.

        Args:
            image: ``(B, 3, H, W)`` floating point in 0..1, H and W multiples of 4; not looked at in the hole.
            mask: ``(B, 1, H, W)`` floating point, 1 = hole.

        Returns:
            ``(B, 3, H, W)``, of use in the hole; in 0..1 in evaluation mode, and in training about that, for gradients.
        """
        seen = torch.cat([(image * 2 - 1) * (1 - mask), mask], dim=1)
        x = self.first(nnf.pixel_unshuffle(seen, _PATCH))
        for block in self.blocks:
            x = x + block(x)
        x = torch.cat([nnf.pixel_shuffle(x, _LAST), nnf.pixel_unshuffle(seen, _PATCH // _LAST)], dim=1)
        fill = nnf.pixel_shuffle(self.last(x), _LAST) / 2 + 0.5
        return fill if self.training else fill.clamp(0, 1)


def save_single_pass(network: SinglePassInfiller, file: str | Path) -> None:
    """Write a network as a program of ``torch.export``, for any number of pictures whose sides are multiples of 4.

    Args:
        network: on the CPU.
        file: where to; its name ends in ``.pt2``.

    Raises:
        ValueError: another ending, by which the backend would take it for TorchScript.
    """
    if Path(file).suffix != ".pt2":
        raise ValueError(f"the file of an exported network must end in .pt2, got {str(file)!r}")
    batch, rows, columns = (torch.export.Dim(name, min=1, max=4096) for name in ("batch", "rows", "columns"))
    sides = {0: batch, 2: _PATCH * rows, 3: _PATCH * columns}
    example = torch.rand(2, 3, 8 * _PATCH, 12 * _PATCH), torch.ones(2, 1, 8 * _PATCH, 12 * _PATCH)
    program = torch.export.export(network.eval(), example, dynamic_shapes=(sides, sides))
    torch.export.save(program, file)
