"""Which fills are not fit to train on: black, flat, cut off, the object drawn again, or a copy of what was there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from infill_aug.confidence.network import NetworkConfidence
from infill_aug.functional.composite import composite
from infill_aug.functional.masks import dilate

# Pixels on each side of a hole's rim that say how rough a picture is there.
_RIM = 4
# Below this deviation of its fine structure a region is too smooth to tell a copy from a likeness.
_TEXTURE = 0.02


class QualityGate:
    """Says of every fill why it should not be trained on, or nothing; used by ``build_cache(gate=...)``.

    Each reason begins with one of ``reasons``, so that they can be counted.

    Args:
        seam: least jump across the hole's rim, in 0..1, and beyond the roughness beside it, that is a fault; ``None``
            does not look. An object's contour is a seam of its own: the default leaves those of photographs alone.
        copy: least correlation of fine structure with what was removed that is a fault, 0..1; ``None`` does not look.
        finder: finds the object: a network as confidence source, or your own model, as pictures ``(B, 3, H, W)`` in
            0..1 -> ``(B, 1, H, W)`` in 0..1; ``None`` does not look.
        found_above: score of ``finder`` above which a pixel is the object's.
        found_share: least share of the fill, away from what is kept, that has to be found to be a fault.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> image, mask = torch.rand(1, 3, 16, 16), torch.zeros(1, 1, 16, 16, dtype=torch.bool)
        >>> mask[..., 4:12, 4:12] = True
        >>> QualityGate()(image, image.masked_fill(mask, 0.0), mask)
        ['black: ...']
    """

    reasons = ("not finite", "black", "constant", "seam", "copy", "regrown")

    def __init__(
        self,
        *,
        seam: float | None = 0.4,
        copy: float | None = 0.9,
        finder: NetworkConfidence | Callable[[Tensor], Tensor] | None = None,
        found_above: float = 0.75,
        found_share: float = 0.35,
    ) -> None:
        for name, value in (("seam", seam), ("copy", copy), ("found_above", found_above), ("found_share", found_share)):
            if value is not None and (isinstance(value, bool) or not 0 <= value <= 1):
                raise ValueError(f"{name} must lie in 0..1, got {value!r}")
        self.seam, self.copy, self.finder = seam, copy, finder
        self.found_above, self.found_share = found_above, found_share

    def identity(self) -> dict[str, Any]:
        """What its verdicts depend on, as JSON values: part of the key of a fill that went through it."""
        found: Any = None
        if isinstance(self.finder, NetworkConfidence):
            found = self.finder.config()
        elif self.finder is not None:
            found = getattr(self.finder, "__qualname__", type(self.finder).__qualname__)
        return {
            "seam": self.seam, "copy": self.copy, "finder": found,
            "found_above": self.found_above, "found_share": self.found_share, "version": 1,
        }  # fmt: skip

    def __call__(self, images: Tensor, fills: Tensor, masks: Tensor) -> list[str | None]:
        """Judge a batch.

        Args:
            images: ``(B, 3, H, W)`` the originals, whole; ``uint8`` or floating point in 0..1.
            fills: ``(B, 3, H, W)`` the same with the hole filled.
            masks: ``(B, 1, H, W)`` bool; true = filled.

        Returns:
            A reason for each, or ``None`` where the fill is fit; the same alone and in a batch.
        """
        images, fills = (part.float() / 255 if part.dtype == torch.uint8 else part.float() for part in (images, fills))
        return [self._judge(*each) for each in zip(images, fills, masks, strict=True)]

    @torch.no_grad()
    def _judge(self, image: Tensor, fill: Tensor, mask: Tensor) -> str | None:
        inside = fill[:, mask[0]]
        if inside.shape[1] == 0:
            return None
        if not bool(inside.isfinite().all()):
            return "not finite: NaN or infinity in the fill"
        fault = _flat_fault(image, inside, mask)
        if fault:
            return fault
        if self.seam is not None:
            jump = seam_jump(image, fill, mask)
            if jump >= self.seam:
                return f"seam: a jump of {jump:.2f} across the rim, {self.seam} or more is a fault"
        if self.copy is not None:
            alike = copy_correlation(image, fill, mask)
            if alike >= self.copy:
                return f"copy: correlation {alike:.2f} with what was removed, {self.copy} or more is a fault"
        if self.finder is not None:
            share = self._found(composite(image[None], fill[None], mask[None]), mask)
            if share >= self.found_share:
                return f"regrown: {share:.0%} of the fill looks like the object, {self.found_share:.0%} is a fault"
        return None

    def _found(self, picture: Tensor, mask: Tensor) -> float:
        assert self.finder is not None
        far = mask[0] & ~dilate(~mask[None], max(2, max(mask.shape[-2:]) // 12))[0, 0]
        if int(far.sum()) < 16:  # next to what is kept, its own halo cannot be told from another object
            return 0.0
        if isinstance(self.finder, NetworkConfidence):
            score = self.finder.ungraded().maps([(picture[0] * 255).round().to(torch.uint8).cpu()])[0][None]
        else:
            score = self.finder(picture)
        if score.shape != (1, 1, *picture.shape[2:]):
            raise ValueError(f"the finder must give {(1, 1, *picture.shape[2:])}, got {tuple(score.shape)}")
        return float((score[0, 0] > self.found_above)[far.to(score.device)].float().mean())


def _flat_fault(image: Tensor, inside: Tensor, mask: Tensor) -> str | None:
    """Black or constant where the surroundings are not."""
    around = image[:, (dilate(mask[None], 2)[0] & ~mask)[0]]
    if inside.shape[1] < 16 or around.shape[1] == 0:
        return None
    if float(inside.mean()) < 0.03 and float(inside.amax(dim=0).float().quantile(0.95)) < 0.08:
        if float(around.mean()) > 0.1:
            return f"black: mean {float(inside.mean()):.3f} where the surroundings have {float(around.mean()):.2f}"
    elif float(inside.std(dim=1).max()) < 0.004:
        difference = (around.median(dim=1).values - inside.median(dim=1).values).abs().max()
        if float(difference) > 0.05:
            return "constant: one flat colour that the surroundings do not have"
    return None


def seam_jump(image: Tensor, fill: Tensor, mask: Tensor) -> float:
    """How much more a picture jumps across the rim of a hole than beside it.

    Args:
        image: ``(3, H, W)`` floating point in 0..1.
        fill: ``(3, H, W)``.
        mask: ``(1, H, W)`` bool; true = filled.

    Returns:
        Median jump between neighbours on different sides, less twice the median jump of neighbours on the same side
        within four pixels of the rim; 0 or below where nothing stands out, 1 at most.

    Example:
        >>> mask = torch.zeros(1, 8, 8, dtype=torch.bool)
        >>> mask[..., 4:] = True
        >>> seam_jump(torch.zeros(3, 8, 8), torch.ones(3, 8, 8), mask)
        1.0
    """
    picture = torch.where(mask, fill, image)
    hole = mask[0]
    near = dilate(hole[None, None], _RIM)[0, 0] & dilate(~hole[None, None], _RIM)[0, 0]
    across, beside = [], []
    for axis in (-1, -2):
        jumps = picture.diff(dim=axis).abs().mean(dim=0)
        length = hole.shape[axis] - 1
        first, second = (hole.narrow(axis, start, length) for start in (0, 1))
        close = near.narrow(axis, 0, length) & near.narrow(axis, 1, length)
        across.append(jumps[first != second])
        beside.append(jumps[(first == second) & close])
    rim, calm = torch.cat(across), torch.cat(beside)
    if not len(rim):
        return 0.0
    return float(rim.median() - (2 * calm.median() if len(calm) else 0))


def copy_correlation(image: Tensor, fill: Tensor, mask: Tensor) -> float:
    """Correlation of a fill's fine structure with that of what was removed.

    Args:
        image: ``(3, H, W)`` floating point in 0..1, whole.
        fill: ``(3, H, W)``.
        mask: ``(1, H, W)`` bool; true = filled.

    Returns:
        -1..1; 0 where either is too smooth to say.

    Example:
        >>> image, mask = torch.rand(3, 8, 8), torch.ones(1, 8, 8, dtype=torch.bool)
        >>> round(copy_correlation(image, image, mask), 3)
        1.0
    """
    fine = []
    for part in (image, fill):
        grey = part.mean(dim=0)[None, None]
        smooth = nnf.avg_pool2d(nnf.pad(grey, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
        fine.append((grey - smooth)[0, 0][mask[0]])
    first, second = (values - values.mean() for values in fine)
    deviations = [float(values.square().mean().sqrt()) for values in (first, second)]
    # A fainter copy is a copy.
    if len(first) < 16 or deviations[0] < _TEXTURE or deviations[1] < _TEXTURE / 2:
        return 0.0
    return float((first * second).mean()) / (deviations[0] * deviations[1])
