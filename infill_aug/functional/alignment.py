"""Undo what an editor did to a picture as a whole: a small motion, and a drift of its colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infill_aug.functional.drift import coloured, fit_drift, no_drift
from infill_aug.functional.motion import Cut, fit_motion, moved, moved_part, no_motion, settle_shift


@dataclass(frozen=True)
class Alignment:
    """What turns an edited picture back into the original, where nothing else was changed.

    Args:
        motion: ``(2, 3)`` float64; where the original's point (x, y) is in the edited picture is
            ``motion @ (x, y, 1)``, in shares of the sides from the centre, -1/2 to 1/2; size does not matter.
        colours: ``(3, 5)`` float64; a channel of the original is ``colours @ (r, g, b, own ** 2, 1)``.
    """

    motion: Tensor
    colours: Tensor

    @staticmethod
    def none() -> Alignment:
        """Nothing to undo."""
        return Alignment(no_motion(), no_drift())

    @property
    def moves(self) -> bool:
        """Whether there is any motion."""
        return not torch.equal(self.motion, no_motion())

    @property
    def drifts(self) -> bool:
        """Whether there is any drift of colours."""
        return not torch.equal(self.colours, no_drift())


def aligned_part(
    edited: Callable[[Cut], Tensor],
    size: Sequence[int],
    alignment: Alignment,
    top: int,
    bottom: int,
    left: int,
    right: int,
) -> Tensor:
    """A part of an edited picture with motion and drift undone.

    Args:
        edited: gives a cut of the edited picture, by its slices, as ``(3, r, c)`` float32 in 0..1: what a part of it
            needs may lie beside it.
        size: height and width of the picture.
        alignment: see ``align``.
        top: first row.
        bottom: row after the last.
        left: first column.
        right: column after the last.

    Returns:
        ``(3, bottom - top, right - left)`` float32 in 0..1; what came in from outside of the picture repeats its rim.

    Example:
        >>> picture = torch.rand(3, 4, 4)
        >>> aligned_part(lambda cut: picture[cut], (4, 4), Alignment.none(), 0, 2, 0, 4).equal(picture[:, :2])
        True
    """
    if alignment.moves:
        part = moved_part(edited, size, alignment.motion, top, bottom, left, right)
    else:
        part = edited((slice(None), slice(top, bottom), slice(left, right)))
    return coloured(part, alignment.colours) if alignment.drifts else part


def aligned(edited: Tensor, alignment: Alignment) -> Tensor:
    """All of an edited picture ``(3, H, W)``, float32 in 0..1, with motion and drift undone."""
    height, width = edited.shape[-2:]
    return aligned_part(lambda cut: edited[cut], (height, width), alignment, 0, height, 0, width)


def align(
    original: Tensor, edited: Tensor, usable: Tensor | None = None, size: Sequence[int] | None = None
) -> Alignment:
    """Estimate motion and drift of colours between a picture and its edited copy.

    Both fits are robust: they describe what most of the picture did, whatever the edit itself changed.

    Args:
        original: ``(3, H, W)`` float32 in 0..1.
        edited: likewise.
        usable: ``(1, H, W)`` bool, where nothing should have changed; ``None``: anywhere.
        size: height and width of the pictures that these are small copies of; ``None``: they are no copies.

    Returns:
        The alignment; parts that are not significant are exactly none.

    Example:
        >>> picture = torch.rand(3, 48, 48, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.05
        >>> alignment = align(picture, 0.9 * picture + 0.05)
        >>> bool(torch.allclose(aligned(0.9 * picture + 0.05, alignment), picture, atol=0.01))
        True
    """
    size = original.shape[-2:] if size is None else size
    colours = fit_drift(original, edited, usable)
    motion = fit_motion(original, coloured(edited, colours), usable, size)
    if not torch.equal(motion, no_motion()):
        colours = fit_drift(original, moved(edited, motion), usable, start=colours)
    return Alignment(motion, colours)


def settled(
    original: Callable[[Cut], Tensor],
    edited: Callable[[Cut], Tensor],
    size: Sequence[int],
    alignment: Alignment,
    worth: Tensor,
) -> Alignment:
    """An alignment that was found on small copies, its shift measured again on the pictures themselves.

    Args:
        original: gives a cut of the original, ``(3, r, c)`` float32 in 0..1.
        edited: of the edited picture, likewise.
        size: height and width of the pictures.
        alignment: of ``align``.
        worth: ``(h, w)``, how much there is to tell by, of any size.

    Returns:
        The alignment.
    """
    if not alignment.moves:
        return alignment
    motion = settle_shift(original, lambda cut: coloured(edited(cut), alignment.colours), size, alignment.motion, worth)
    return Alignment(motion, alignment.colours)
