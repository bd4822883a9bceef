"""What a smart mask takes and leaves, decided on a small copy of the pictures."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from infill_aug.functional.alignment import Alignment, align
from infill_aug.functional.difference import ciede2000, srgb_to_lab
from infill_aug.functional.drift import coloured
from infill_aug.functional.motion import has_source
from infill_aug.functional.motion import moved as moved_whole
from infill_aug.smart_mask.evidence import change_evidence
from infill_aug.smart_mask.outline import Outline, fit_outline
from infill_aug.smart_mask.regions import Selection, select_regions
from infill_aug.smart_mask.result import PictureReport, Region
from infill_aug.smart_mask.segmentation import LEAST, change_threshold, cheapest_outline, outline_ease

SIDE = 512  # longer side that decisions are taken at
_PRICE = 5.0  # of outline, in the unit of ``_INSIDE``
_INSIDE, _OUTSIDE = 2.5, 0.5  # how much one pixel can say for and against: what an edit leaves as it was says little
_HINTED = 0.3  # what a hint says for the pixels in it
_LOW = 0.15  # quantile that an edit of most of the picture does not reach
_REDRAWN = 4.0  # CIEDE2000 units: a noise of that size is no noise, the picture is another one
_TAIL = 4.0  # times a low quantile of the ratio
_CUT = 1.5 / 255
_MOST_REPORTED = 16
_HOPELESS = 0.05  # confidence
_REDRAWN_NOTE = "the whole picture was changed; no part is left to compare with"
_UNIT = "times the noise"


@dataclass(frozen=True, eq=False)
class Decision:
    """What to take, independent of the size of the pictures: what a preview showed can be had at full size.

    Args:
        alignment: what the editor did to the picture as a whole.
        outline: the mask, to be drawn at any size; ``None`` where nothing is taken.
        allowed: ``(1, h, w)`` bool, where the edit may be; ``None``: anywhere.
        report: of the picture, in pixels of ``size``.
        size: height and width of the pictures that were decided on.
        of_hint: whether all of a hint is the mask, so that there is no outline.
    """

    alignment: Alignment
    outline: Outline | None
    allowed: Tensor | None
    report: PictureReport
    size: tuple[int, int]
    of_hint: bool = False

    def at(self, size: tuple[int, int]) -> Decision:
        """The same decision on pictures of another size: its report is in their pixels."""
        if size == self.size:
            return self
        down, across = size[0] / self.size[0], size[1] / self.size[1]
        regions = tuple(
            dataclasses.replace(
                region,
                box=_scaled(region.box, across, down),
                area=round(region.area * across * down),
            )
            for region in self.report.regions
        )
        report = dataclasses.replace(self.report, regions=regions, shift=shift_of(self.alignment, size))
        return dataclasses.replace(self, report=report, size=size)


def _scaled(box: tuple[int, ...], across: float, down: float) -> tuple[int, int, int, int]:
    left, top, right, bottom = box
    return math.floor(left * across), math.floor(top * down), math.ceil(right * across), math.ceil(bottom * down)


def decide(
    original: Tensor,
    edited: Tensor,
    size: tuple[int, int],
    *,
    hint: Tensor | None = None,
    allowed: Tensor | None = None,
    regions: int | None = None,
) -> Decision:
    """Find the edit.

    Args:
        original: ``(3, h, w)`` float32 in 0..1.
        edited: likewise.
        size: height and width of the pictures that these are small copies of; the report is in their pixels.
        hint: ``(1, h, w)`` bool, where the editor was to change something.
        allowed: ``(1, h, w)`` bool, where the edit may be.
        regions: at most so many; ``None``: as many as are found.

    Returns:
        The decision.
    """
    outside = None if hint is None else ~(nnf.max_pool2d(hint.float()[None], 9, 1, 4)[0] > 0)
    if outside is not None and int(outside.sum()) < 0.05 * outside.numel():
        outside = None  # too little is known to be left alone
    alignment = align(original, edited, outside, size)
    edited = _comparable(original, edited, alignment)
    ratio, difference = change_evidence(original, edited, outside)
    # Noise has a tail: the more of the picture is noise that can be seen, the farther above it an edit has to stand.
    sample = ratio.flatten()[:: max(1, ratio.numel() // 20_000)]
    threshold = change_threshold(ratio, max(LEAST, _TAIL * float(sample.quantile(_LOW))))
    if float(difference.flatten()[:: max(1, difference.numel() // 20_000)].quantile(_LOW)) > _REDRAWN:
        # No part of the picture is left to tell noise from edit by.
        free = torch.ones_like(ratio, dtype=torch.bool) if allowed is None else allowed[0]
        selection = select_regions(free, difference, regions)
        confidence, note = _HOPELESS, _REDRAWN_NOTE
    else:
        says = ratio.div(threshold).log().clamp(-_OUTSIDE, _INSIDE)
        if hint is not None:
            says = says + _HINTED * hint[0]
        if allowed is not None:
            says = torch.where(allowed[0], says, -10.0)
        inside = cheapest_outline(-says, outline_ease(original, edited, _PRICE))
        area = inside > 0.5 if allowed is None else (inside > 0.5) & allowed[0]
        selection = select_regions(area, ratio.div(threshold).log1p(), regions)
        confidence = _confidence(selection, ratio, threshold, inside)
        note = _note(selection, alignment, ratio > threshold, allowed)
    mask = selection.mask.to(original.device)
    outline = fit_outline(mask, original, edited) if bool(mask.any()) else None
    report = PictureReport(
        threshold=round(threshold, 4),
        unit=_UNIT,
        regions=_described(selection, original, edited, size),
        confidence=round(confidence, 4),
        share=float(selection.mask.float().mean()),
        **_drift(alignment, size),  # type: ignore[arg-type]
        note=note,
    )
    return Decision(alignment, outline, allowed, report, size)


def decide_hinted(original: Tensor, edited: Tensor, size: tuple[int, int], hint: Tensor) -> Decision:
    """The decision where all of the hint is the edit: what is left is to undo motion and drift.

    Args:
        original: ``(3, h, w)`` float32 in 0..1.
        edited: likewise.
        size: height and width of the pictures that these are small copies of.
        hint: ``(1, h, w)`` bool.

    Returns:
        The decision; its confidence is high where the rest stayed what it was.
    """
    alignment = align(original, edited, ~hint, size)
    ratio, difference = change_evidence(original, _comparable(original, edited, alignment), ~hint)
    rest, seen = ratio[~hint[0]], difference[~hint[0]]
    confidence = float((rest <= 2 * LEAST).float().mean()) if len(rest) else 1.0
    if len(seen):  # in units of what is seen too: of another picture all would be noise
        confidence /= 1 + (float(seen.median()) / _REDRAWN) ** 2
    report = PictureReport(
        threshold=LEAST,
        unit=_UNIT,
        regions=(),
        confidence=round(confidence, 4),
        share=float(hint.float().mean()),
        **_drift(alignment, size),  # type: ignore[arg-type]
        note="" if confidence > 0.5 else "most of what is outside of the hint was changed too",
    )
    return Decision(alignment, None, None, report, size, of_hint=True)


def _comparable(original: Tensor, edited: Tensor, alignment: Alignment) -> Tensor:
    """The edited picture aligned, and equal to the original where it can't tell.

    That is where a motion brought in what lay outside of it, and where a drift cut off a channel: at the end of its
    range it says that it was there or beyond, and where the original was just so, nothing differs.
    """
    if alignment.moves:
        moved = moved_whole(edited, alignment.motion)
        moved = torch.where(has_source(moved.shape[-2:], alignment.motion, moved.device), moved, original)
    else:
        moved = edited
    if not alignment.drifts:
        return moved
    mended = coloured(moved, alignment.colours)
    # What lay outside is the original's already, and has no drift.
    mended = torch.where(moved == original, original, mended) if alignment.moves else mended
    cut = ((moved >= 1 - _CUT) & (original > mended)) | ((moved <= _CUT) & (original < mended))
    return torch.where(cut, original, mended)


def _confidence(selection: Selection, ratio: Tensor, threshold: float, inside: Tensor) -> float:
    """0..1: how clearly the edit stands out, how sure the outline is, and how far the other regions are behind."""
    mask = selection.mask.to(ratio.device)
    if not bool(mask.any()):
        return 1.0 if float((ratio > threshold).float().mean()) < 0.01 else 0.4
    strong = ratio > threshold
    filled = float(strong[mask].float().mean())
    leak = float(strong[~mask].float().mean()) if not bool(mask.all()) else 0.0
    near = nnf.max_pool2d(mask.float()[None, None], 9, 1, 4)[0, 0] > 0
    sure = float((2 * inside[near] - 1).abs().mean())
    share = float(mask.float().mean())
    kept = [e for e, t in zip(selection.evidence, selection.taken, strict=True) if t]
    left = [e for e, t in zip(selection.evidence, selection.taken, strict=True) if not t]
    ahead = 1 - max(left, default=0.0) / min(kept)
    wide = min(1.0, max(0.0, (0.9 - share) / 0.4))
    even = min(1.0, 5 * min(kept) / max(kept))  # a small region beside a large one may be a side effect
    factors = (filled, 1 - min(1.0, 3 * leak), sure, 0.7 + 0.3 * max(0.0, ahead), 0.85 + 0.15 * even, wide)
    return math.prod(factors)


def _note(selection: Selection, alignment: Alignment, strong: Tensor, allowed: Tensor | None) -> str:
    if selection.mask.any():
        return ""
    if allowed is not None and bool((strong & ~allowed[0]).any()):
        return "no edit was found where it may be: what changed lies outside of the hint, or is protected"
    if alignment.drifts or alignment.moves:
        return "no local edit was found: colours or position of the whole picture changed, and nothing else"
    return "no edit was found: what differs is noise"


def _described(selection: Selection, original: Tensor, edited: Tensor, size: tuple[int, int]) -> tuple[Region, ...]:
    from scipy import ndimage

    height, width = original.shape[-2:]
    across, down = size[1] / width, size[0] / height
    labels = selection.labels.numpy()
    apart = ciede2000(srgb_to_lab(original), srgb_to_lab(edited))[0].cpu()
    described: list[Region] = []
    boxes = ndimage.find_objects(labels)
    for place, (evidence, taken) in enumerate(zip(selection.evidence, selection.taken, strict=True)):
        if not taken and len(described) >= _MOST_REPORTED:
            continue
        rows, columns = boxes[place]
        member = torch.from_numpy(labels[rows, columns] == place + 1)
        described.append(
            Region(
                box=_scaled((columns.start, rows.start, columns.stop, rows.stop), across, down),
                area=round(int(member.sum()) * across * down),
                strength=round(float(apart[rows, columns][member].mean()), 3),
                evidence=round(evidence, 4),
                taken=taken,
            )
        )
    return tuple(described)


def _drift(alignment: Alignment, size: tuple[int, int]) -> dict[str, tuple[float, ...]]:
    """What the editor did, the other way around: gain and offset of mid tones, and shift in pixels of full size."""
    tones = torch.tensor([0.25, 0.75], dtype=torch.float64)
    matrix = alignment.colours
    # Of greys before the edit, the greys after it, by one step of Newton's method from the value itself.
    gains, offsets = [], []
    for own in range(3):
        sums = matrix[own, :3].sum()
        back = sums * tones + matrix[own, 3] * tones**2 + matrix[own, 4]
        slope = sums + 2 * matrix[own, 3] * tones
        forward = tones - (back - tones) / slope
        gain = float((forward[1] - forward[0]) / 0.5)
        gains.append(round(gain, 4))
        offsets.append(round(float(forward[0]) - gain * 0.25, 4))
    return {"gain": tuple(gains), "offset": tuple(offsets), "shift": shift_of(alignment, size)}


def shift_of(alignment: Alignment, size: tuple[int, int]) -> tuple[float, float]:
    """By how many pixels the editor moved the middle of the picture to the right and down."""
    right, down = (alignment.motion[:, 2] * torch.tensor([size[1], size[0]], dtype=torch.float64)).tolist()
    return round(right, 3) + 0.0, round(down, 3) + 0.0
