"""What a smart mask says of a pair of pictures: the mask, the composite, and why."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from infill_aug.smart_mask.decision import Decision


@dataclass(frozen=True)
class Region:
    """A connected area that differs.

    Args:
        box: left, top, right and bottom in pixels; the last two are exclusive.
        area: pixels.
        strength: mean CIEDE2000 difference inside, drift and shift taken out; 1 is barely visible.
        evidence: share of the picture's evidence of change, 0..1.
        taken: whether it belongs to the edit.
    """

    box: tuple[int, int, int, int]
    area: int
    strength: float
    evidence: float
    taken: bool


@dataclass(frozen=True)
class PictureReport:
    """How the mask of one picture came about.

    Args:
        threshold: difference (in the unit of ``unit``) from which a pixel counts as changed.
        unit: what the threshold is measured in.
        regions: areas that differ, the strongest first, whether or not they were taken.
        confidence: 0..1, how far the mask can be trusted; reject what lies under one half.
        share: of the picture that is taken from the edited one, 0..1.
        gain: what the editor multiplied red, green and blue by, all over the picture.
        offset: what it added to them, in 0..1.
        shift: by how many pixels it moved the picture to the right and down.
        note: what a person should know, one sentence; empty where there is nothing to say.
    """

    threshold: float
    unit: str
    regions: tuple[Region, ...]
    confidence: float
    share: float
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shift: tuple[float, float] = (0.0, 0.0)
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The report as values that JSON has."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class SmartMaskResult:
    """Mask and composite of one pair of pictures, or of a batch.

    Args:
        mask: ``(1, H, W)``, of a batch ``(B, 1, H, W)``, float32 in 0..1, on the device of the pictures; 1 = the edit
            is taken, 0 = the original's pixel, bit for bit; in between, a blend.
        composite: the result, of the type and range that the original had.
        reports: one for each picture.
        decisions: one for each picture, to be used again at another size.
    """

    mask: Tensor
    composite: Any
    reports: tuple[PictureReport, ...]
    decisions: tuple[Decision, ...] = ()

    def _each(self, name: str) -> Any:
        values = tuple(getattr(report, name) for report in self.reports)
        return values if self.mask.ndim == 4 else values[0]

    @property
    def threshold(self) -> Any:
        """``PictureReport.threshold``; of a batch, one for each picture."""
        return self._each("threshold")

    @property
    def regions(self) -> Any:
        """``PictureReport.regions``; of a batch, those of each picture."""
        return self._each("regions")

    @property
    def confidence(self) -> Any:
        """``PictureReport.confidence``; of a batch, one for each picture."""
        return self._each("confidence")

    @property
    def note(self) -> Any:
        """``PictureReport.note``; of a batch, one for each picture."""
        return self._each("note")

    @property
    def decision(self) -> Any:
        """What ``SmartMask`` takes as ``decision``; of a batch, one for each picture."""
        return self.decisions if self.mask.ndim == 4 else self.decisions[0]
