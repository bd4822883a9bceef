"""Which fills are not fit to train on: black, flat, cut off, the object drawn again, or a copy of what was there."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from infill_aug.checks import is_integer, is_number
from infill_aug.confidence.network import NetworkConfidence
from infill_aug.confidence.sources import ConfidenceSource
from infill_aug.functional.composite import composite
from infill_aug.functional.masks import dilate
from infill_aug.infill.backend import InfillBackend
from infill_aug.infill.push_pull import push_pull

# Pixels on each side of a hole's rim that say how rough a picture is there.
_RIM = 4
# Below this deviation of its fine structure a region is too smooth to tell a copy from a likeness.
_TEXTURE = 0.02


class QualityGate:
    """Says of every fill why it should not be trained on, or nothing; used by ``build_cache(gate=...)``.

    Each reason begins with one of ``reasons``, so that they can be counted.

    Args:
        seam: least jump across the hole's rim, in 0..1, that is a fault, beyond the roughness beside it and the jump
            that the original has there; ``None`` does not look, for fills that are cut out of elsewhere by intent.
        copy: least correlation of fine structure with what was removed that is a fault, 0..1; ``None`` does not look.
        finder: finds the object: a network as confidence source, or your own model, pictures ``(B, 3, H, W)`` in 0..1
            -> scores ``(B, 1, H, W)`` in 0..1, or a classifier's logits ``(B, classes)``, which is shown the fill
            without what was kept; ``None`` does not look.
        finder_name: names your own model and its weights, as text; needed for a build, whose keys depend on it.
        found_above: score of ``finder``, or probability of the sample's own class, above which it is the object.
        found_share: least share of the fill, away from what is kept, that has to be found to be a fault.

    Raises:
        ValueError: an argument out of range; a finder that reads labels.

    Example:
        >>> image, mask = torch.rand(1, 3, 16, 16), torch.zeros(1, 1, 16, 16, dtype=torch.bool)
        >>> mask[..., 4:12, 4:12] = True
        >>> QualityGate()(image, image.masked_fill(mask, 0.0), mask)
        ['black: ...']
    """

    reasons = ("not finite", "black", "constant", "seam", "copy", "regrown", "flagged")

    def __init__(
        self,
        *,
        seam: float | None = 0.15,
        copy: float | None = 0.9,
        finder: NetworkConfidence | Callable[[Tensor], Tensor] | None = None,
        finder_name: str = "",
        found_above: float = 0.75,
        found_share: float = 0.35,
    ) -> None:
        for name, value in (("seam", seam), ("copy", copy), ("found_above", found_above), ("found_share", found_share)):
            if not (is_number(value, 0, 1) or (value is None and name in ("seam", "copy"))):
                raise ValueError(f"{name} must lie in 0..1, got {value!r}")
        if finder is not None and not isinstance(finder, NetworkConfidence) and hasattr(finder, "config"):
            raise ValueError(f"the finder must look at the picture; {type(finder).__name__} reads labels")
        if isinstance(finder, NetworkConfidence) and finder.reads_target:
            raise ValueError(f"the finder must look at the picture alone; {type(finder).__name__} reads labels too")
        self.seam, self.copy, self.finder, self.finder_name = seam, copy, finder, finder_name
        self.found_above, self.found_share = found_above, found_share
        self._classifies = False  # the finder gave logits, once it has been asked

    @classmethod
    def of_build(cls, backend: InfillBackend, source: ConfidenceSource) -> QualityGate:
        """The gate of ``build_cache(gate=True)``: no seams for cut-outs, and the source as finder where it is one.

        Args:
            backend: whose fills it judges.
            source: what the maps come from.

        Example:
            >>> from infill_aug.confidence import CentreConfidence
            >>> from infill_aug.infill.donor import DonorBackend
            >>> QualityGate.of_build(DonorBackend(), CentreConfidence()).seam is None
            True
        """
        sees = isinstance(source, NetworkConfidence) and not source.reads_target
        gate = cls(finder=source if sees else None)  # type: ignore[arg-type]
        if backend.cut_out:
            gate.seam = None
        return gate

    def identity(self) -> dict[str, Any]:
        """What its verdicts depend on, as JSON values: part of the key of a fill that went through it.

        Raises:
            ValueError: a finder of your own has no name.
        """
        found: Any = None
        if isinstance(self.finder, NetworkConfidence):
            found = self.finder.ungraded().config()
        elif self.finder is not None:
            if not self.finder_name:
                raise ValueError("the keys of a store depend on the finder: pass finder_name='model and weights'")
            found = self.finder_name
        return {
            "seam": self.seam, "copy": self.copy, "finder": found,
            "found_above": self.found_above, "found_share": self.found_share, "version": 1,
        }  # fmt: skip

    def __call__(
        self, images: Tensor, fills: Tensor, masks: Tensor, labels: Sequence[Hashable | None] | None = None
    ) -> list[str | None]:
        """Judge a batch.

        Args:
            images: ``(B, 3, H, W)`` the originals, whole; ``uint8`` or floating point in 0..1.
            fills: ``(B, 3, H, W)`` the same with the hole filled.
            masks: ``(B, 1, H, W)`` bool; true = filled.
            labels: class of each sample, read where the finder is a classifier: its place among the logits; samples
                without one pass.

        Returns:
            A reason for each, or ``None`` where the fill is fit; the same alone and in a batch.
        """
        images, fills = (part.float() / 255 if part.dtype == torch.uint8 else part.float() for part in (images, fills))
        known = labels if labels is not None else [None] * len(images)
        return [self._judge(*each) for each in zip(images, fills, masks, known, strict=True)]

    @torch.no_grad()
    def _judge(self, image: Tensor, fill: Tensor, mask: Tensor, label: Hashable | None) -> str | None:
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
            share = self._found(composite(image, fill, mask), mask, label)
            if share >= self.found_share:
                return f"regrown: {share:.0%} of the fill looks like the object, {self.found_share:.0%} is a fault"
        return None

    def _found(self, picture: Tensor, mask: Tensor, label: Hashable | None) -> float:
        """Share of the fill that the finder takes for the object, of the pixels away from what is kept."""
        assert self.finder is not None
        far = mask[0] & ~dilate(~mask[None], max(2, max(mask.shape[-2:]) // 12))[0, 0]
        if int(far.sum()) < 16:  # next to what is kept, its own halo cannot be told from another object
            return 0.0
        if isinstance(self.finder, NetworkConfidence):
            score = self.finder.ungraded().maps([(picture * 255).round().to(torch.uint8).cpu()])[0][None]
        else:
            if not self._classifies:
                score = self.finder(picture[None])
                self._classifies = score.ndim == 2
            if self._classifies:
                return self._recognised(self.finder, picture, mask, label)
        if score.shape != (1, 1, *picture.shape[1:]):
            raise ValueError(
                f"the finder must give scores {(1, 1, *picture.shape[1:])} or logits (1, classes), "
                f"got {tuple(score.shape)}"
            )
        return float((score[0, 0] > self.found_above)[far.to(score.device)].float().mean())

    def _recognised(
        self, classifier: Callable[[Tensor], Tensor], picture: Tensor, mask: Tensor, label: Hashable | None
    ) -> float:
        """1 where a classifier sees the sample's own class in the fill alone, else 0."""
        if label is None:
            return 0.0
        logits = classifier(push_pull(picture[None], ~mask[None]))[0]
        if not is_integer(label, 0, len(logits) - 1):
            raise ValueError(f"the finder has {len(logits)} classes: labels must be their numbers, got {label!r}")
        return float(logits.softmax(dim=0)[label] > self.found_above)


def kind_of(reason: str) -> str | None:
    """The word by which a fault of a fill is counted; ``None`` where there is no fill, as without a network.

    Example:
        >>> kind_of("seam: a jump of 0.62"), kind_of("the fill is not finite (NaN or infinity)"), kind_of("timeout")
        ('seam', 'not finite', None)
    """
    # What backends say of a fill themselves: "the fill is one constant colour", "the safety checker flagged the fill".
    if "flagged the fill" in reason:
        return "flagged"
    said = reason.removeprefix("the fill is ").removeprefix("one ")
    return next((word for word in QualityGate.reasons if said.startswith(word)), None)


def _flat_fault(image: Tensor, inside: Tensor, mask: Tensor) -> str | None:
    """Black or constant where neither the surroundings nor what was removed are."""
    ring = (dilate(mask[None], 2)[0] & ~mask)[0]
    others = [part for part in (image[:, ring], image[:, mask[0]]) if part.shape[1]]
    if inside.shape[1] < 16:
        return None
    if float(inside.mean()) < 0.03 and float((inside.amax(dim=0) < 0.08).float().mean()) >= 0.95:
        if min(float(part.mean()) for part in others) > 0.1:
            return f"black: mean {float(inside.mean()):.3f} where the picture has {float(others[0].mean()):.2f}"
    elif float(inside.std(dim=1).max()) < 0.004:
        colour = inside.median(dim=1).values
        if min(float((part.median(dim=1).values - colour).abs().max()) for part in others) > 0.05:
            return "constant: one flat colour that the picture does not have there"
    return None


def seam_jump(image: Tensor, fill: Tensor, mask: Tensor) -> float:
    """How much more a picture jumps across the rim of a hole than beside it.

    Args:
        image: ``(3, H, W)`` floating point in 0..1.
        fill: ``(3, H, W)``.
        mask: ``(1, H, W)`` bool; true = filled.

    Returns:
        Median jump between neighbours on different sides, less what excuses it: twice the median jump of neighbours on
        the same side within four pixels of the rim, or that of the original at the same place, where an object's
        contour may run. 0 or below where nothing stands out, 1 at most.

    Example:
        >>> mask = torch.zeros(1, 8, 8, dtype=torch.bool)
        >>> mask[..., 4:] = True
        >>> seam_jump(torch.zeros(3, 8, 8), torch.ones(3, 8, 8), mask)
        1.0
    """
    picture, hole = torch.where(mask, fill, image), mask[0]
    near = dilate(hole[None, None], _RIM)[0, 0] & dilate(~hole[None, None], _RIM)[0, 0]
    across, before, beside = [], [], []
    for axis in (-1, -2):
        jumps = picture.diff(dim=axis).abs().mean(dim=0)
        length = hole.shape[axis] - 1
        first, second = (hole.narrow(axis, start, length) for start in (0, 1))
        close = near.narrow(axis, 0, length) & near.narrow(axis, 1, length)
        across.append(jumps[first != second])
        before.append(image.diff(dim=axis).abs().mean(dim=0)[first != second])
        beside.append(jumps[(first == second) & close])
    rim, calm = torch.cat(across), torch.cat(beside)
    if not len(rim):
        return 0.0
    excuse = torch.cat(before).median()
    return float(rim.median() - (torch.maximum(excuse, 2 * calm.median()) if len(calm) else excuse))


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
    fine, inside = [], mask[None].float()
    share = nnf.avg_pool2d(inside, 5, stride=1, padding=2)
    for part in (image, fill):
        # Means of the hole's own pixels: the contour of what is kept is the same in both.
        grey = part.mean(dim=0)[None, None] * inside
        smooth = nnf.avg_pool2d(grey, 5, stride=1, padding=2) / share.clamp(min=0.01)
        fine.append((grey - smooth)[0, 0][mask[0]])
    first, second = (values - values.mean() for values in fine)
    deviations = [float(values.square().mean().sqrt()) for values in (first, second)]
    # A fainter copy is a copy.
    if len(first) < 16 or deviations[0] < _TEXTURE or deviations[1] < _TEXTURE / 2:
        return 0.0
    return float((first * second).mean()) / (deviations[0] * deviations[1])
