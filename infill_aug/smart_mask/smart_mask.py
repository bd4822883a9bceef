"""Keep what an editor was asked to change, and the original everywhere else."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from infill_aug.checks import is_integer
from infill_aug.functional.alignment import Alignment, settled
from infill_aug.functional.masks import feather_mask
from infill_aug.functional.motion import steepness
from infill_aug.smart_mask.allowed import area_of
from infill_aug.smart_mask.apply import apply_decision, composite_planes, unit
from infill_aug.smart_mask.decision import SIDE, Decision, decide, decide_hinted, shift_of
from infill_aug.smart_mask.difference import difference_mask
from infill_aug.smart_mask.pictures import Pair, pair_of
from infill_aug.smart_mask.result import PictureReport, SmartMaskResult

_PRESETS = ("default", "difference")
_DEFAULTS = {"regions": None, "whole_hint": False, "harmonize": True}


class SmartMask:
    """Find what an AI editor changed on purpose, and undo everything else that it did to the picture.

    Motion and drift of colours of the whole picture are undone first. What then differs by several times the noise of
    the pair (CIEDE2000, on several scales) is the edit; the threshold, the number of regions and the outline come from
    the pictures. All is decided on a small copy; the outline is drawn at full size, along the edges of what changed.
    A picture of a batch is treated as it would be alone.

    Args:
        regions: so many connected regions, the ones of most evidence, if so many differ; ``None``: as many as the
            evidence says.
        whole_hint: all of ``mask_hint`` is the edit, as where a service was to fill a hole; else it lies somewhere in
            it.
        harmonize: take the edit with motion and drift undone, so that it fits what is around it; ``False``: its pixels
            as the editor gave them.
        resize: bring an edited picture of another size to that of the original, instead of refusing it.

    Raises:
        ValueError: ``regions`` that is no integer above 0.

    Example:
        >>> import torch
        >>> original = torch.linspace(0.1, 0.8, 96).expand(3, 64, 96).contiguous()
        >>> edited = original * 0.9 + 0.05  # all colours drift, and
        >>> edited[0, 16:40, 16:56] += 0.2  # one part becomes red
        >>> result = SmartMask()(original, edited)
        >>> result.mask[0, 28, 36].item(), result.composite[:, :12].equal(original[:, :12])
        (1.0, True)
    """

    def __init__(
        self,
        *,
        regions: int | None = None,
        whole_hint: bool = False,
        harmonize: bool = True,
        resize: bool = False,
    ) -> None:
        if regions is not None and not is_integer(regions, 1):
            raise ValueError(
                f"regions must be an integer of 1 or more, or None for as many as are found, got {regions!r}"
            )
        self.regions = regions
        self.whole_hint = whole_hint
        self.harmonize = harmonize
        self.resize = resize

    @classmethod
    def preset(cls, name: str, **options: Any) -> SmartMask:
        """A smart mask by name.

        Args:
            name: ``"default"``, or ``"difference"``: the known method, see ``difference_mask``, to compare with.
            options: of ``SmartMask``.

        Raises:
            ValueError: another name.
        """
        if name not in _PRESETS:
            raise ValueError(f"preset must be one of {_PRESETS}, got {name!r}")
        if name == "difference" and not set(options) <= {"resize"}:
            options = {key: value for key, value in options.items() if value != _DEFAULTS.get(key)}
            if set(options) - {"resize"}:
                raise ValueError(f"the preset 'difference' takes resize only, got {sorted(options)}; use the default")
        return (_Difference if name == "difference" else cls)(**options)

    @torch.no_grad()
    def __call__(
        self,
        original: Any,
        edited: Any,
        *,
        mask_hint: Any = None,
        protect: Any = None,
        decision: Decision | Sequence[Decision] | None = None,
    ) -> SmartMaskResult:
        """Mask and composite of a pair of pictures, or of a batch.

        Args:
            original: tensor ``(3, H, W)`` or ``(B, 3, H, W)``, array, PIL picture or file; all forms: see ``pair_of``.
            edited: what the editor made of it, in any form.
            mask_hint: mask that the editor was given, 1 = change: the edit is inside. All forms: see ``area_of``.
            protect: what must stay: a mask, or a list of boxes ``(left, top, right, bottom)`` in pixels, such as those
                of ``face_boxes``.
            decision: of an earlier result, to have at this size what was seen at another, with its hint and protection.

        Returns:
            The result. Where its mask is 0, the composite is the original's, bit for bit.

        Raises:
            TypeError: something that is no picture.
            ValueError: pictures or masks that do not fit each other.
        """
        return self._run(pair_of(original, edited, resize=self.resize), mask_hint, protect, decision, None)

    @torch.no_grad()
    def preview(
        self, original: Any, edited: Any, *, mask_hint: Any = None, protect: Any = None, side: int = 800
    ) -> SmartMaskResult:
        """The result on pictures whose longer side is ``side`` pixels at most; its ``decision`` is good for full size.

        Args:
            original: as in ``__call__``.
            edited: as in ``__call__``.
            mask_hint: as in ``__call__``, at the full size.
            protect: as in ``__call__``, in pixels of the full size.
            side: pixels.

        Raises:
            TypeError: as in ``__call__``.
            ValueError: as in ``__call__``.
        """
        if not is_integer(side, 1):
            raise ValueError(f"side must be an integer of 1 or more, in pixels, got {side!r}")
        return self._run(pair_of(original, edited, resize=self.resize), mask_hint, protect, None, side)

    def _run(self, pair: Pair, mask_hint: Any, protect: Any, decision: Any, side: int | None) -> SmartMaskResult:
        count, size = len(pair.original), pair.size
        device = pair.original.device
        hint = None if mask_hint is None else area_of(mask_hint, count, size, device, "mask_hint")
        kept = None if protect is None else area_of(protect, count, size, device, "protect")
        if self.whole_hint and hint is None:
            raise ValueError("whole_hint=True needs the mask that the editor was given: pass mask_hint")
        if side is not None and side < max(size):
            small = _fitted(size, side)
            pair = _smaller_pair(pair, small)
            hint, kept = (None if a is None else _shrunk(a, small) for a in (hint, kept))
        given = _as_list(decision, count)
        results = [
            self._one(pair, place, None if hint is None else hint[place], None if kept is None else kept[place],
                      None if given is None else given[place])
            for place in range(count)
        ]  # fmt: skip
        masks, planes, decisions = zip(*results, strict=True)
        reports = tuple(
            dataclasses.replace(each.report, note="; ".join(filter(None, (each.report.note, *pair.notes))))
            for each in decisions
        )
        mask = torch.stack(masks) if count > 1 else masks[0][None] if pair.batched else masks[0]
        # Not stacked where there is one: of a hundred megapixels a copy is 300 MB.
        composite = pair.pack(torch.stack(planes) if count > 1 else planes[0][None])
        return SmartMaskResult(mask, composite, reports, tuple(decisions))

    def _one(
        self, pair: Pair, place: int, hint: Tensor | None, kept: Tensor | None, decision: Decision | None
    ) -> tuple[Tensor, Tensor, Decision]:
        """Mask, composite planes and decision of one picture."""
        allowed, soft = hint, None
        if kept is not None:
            allowed = ~kept if allowed is None else allowed & ~kept
        size = pair.size
        if decision is None:
            decision = self._decide(pair, place, hint, kept, allowed)
        else:
            if decision.report.unit == "%" or (decision.of_hint != self.whole_hint and decision.report.share > 0):
                raise ValueError("the decision is of a smart mask of another kind; use the one that made it")
            if decision.allowed is not None:
                soft = _grown(decision.allowed, pair.original.shape[-2:])
            if decision.size != size:
                decision = self._settled(pair, place, decision.at(size))
        if allowed is not None:
            soft = allowed.float() if soft is None else soft * allowed
        if kept is not None and not self.whole_hint:
            # A soft edge towards what is protected, on this side of it.
            soft = soft * feather_mask(~kept[None], max(2, max(kept.shape) // 200))[0]  # type: ignore[operator]
        hole = hint if self.whole_hint else None
        mask, planes = apply_decision(pair, place, decision, soft, hole, self.harmonize)
        report = dataclasses.replace(decision.report, share=round(float(mask.mean()), 6))
        return mask, planes, dataclasses.replace(decision, report=report)

    def _decide(
        self, pair: Pair, place: int, hint: Tensor | None, kept: Tensor | None, allowed: Tensor | None
    ) -> Decision:
        size = pair.size
        if torch.equal(pair.original[place], pair.edited[place]):
            report = PictureReport(0.0, "", (), 1.0, 0.0, note="the pictures are identical")
            return Decision(Alignment.none(), None, allowed, report, size)
        small = _fitted(size, SIDE)
        original, edited = (_small_unit(pair, planes[place], small) for planes in (pair.original, pair.edited))
        hint = None if hint is None else _shrunk(hint[None], small)[0]
        if self.whole_hint:
            assert hint is not None
            decision = decide_hinted(original, edited, size, hint)
        else:
            # A pixel of the small copy that is partly in the hint may be edit: the hint itself cuts at full size. At
            # another size there is only what is kept of it here, which is never too much.
            free = hint
            if kept is not None:
                spared = ~_shrunk(kept[None], small)[0]
                free = spared if free is None else free & spared
            decision = decide(original, edited, size, hint=hint, allowed=free, regions=self.regions)
            if allowed is not None:
                decision = dataclasses.replace(decision, allowed=~_shrunk(~allowed[None], small)[0])
        return decision if small == size else self._settled(pair, place, decision)

    def _settled(self, pair: Pair, place: int, decision: Decision) -> Decision:
        """The decision, its shift measured again at full size, where nothing was edited."""
        if not decision.alignment.moves:
            return decision
        size = pair.size
        worth = steepness(_small_unit(pair, pair.original[place], _fitted(size, SIDE)))
        if decision.outline is not None:
            reach = nnf.interpolate(decision.outline.reach, size=worth.shape, mode="nearest")[0, 0]
            worth = worth * (reach == 0)
        alignment = settled(
            lambda cut: unit(pair.rgb(pair.original[place][cut])), lambda cut: unit(pair.rgb(pair.edited[place][cut])),
            size, decision.alignment, worth,
        )  # fmt: skip
        report = dataclasses.replace(decision.report, shift=shift_of(alignment, size))
        return dataclasses.replace(decision, alignment=alignment, report=report)


class _Difference(SmartMask):
    """The known method, as a baseline: no alignment, no confidence."""

    def _one(
        self, pair: Pair, place: int, hint: Tensor | None, kept: Tensor | None, decision: Decision | None
    ) -> tuple[Tensor, Tensor, Decision]:
        if decision is not None:
            raise ValueError("the preset 'difference' decides at full size, and takes no decision; leave it out")
        mask, regions = difference_mask(pair.rgb(pair.original[place]), pair.rgb(pair.edited[place]))
        for area in (hint, None if kept is None else ~kept):
            mask = mask if area is None else mask * area
        report = PictureReport(10.0, "%", regions, math.nan, round(float(mask.mean()), 6))
        size = pair.size
        decision = Decision(Alignment.none(), None, None, report, size)
        return mask, composite_planes(pair.original[place], pair.edited[place], mask), decision


def _fitted(size: tuple[int, int], side: int) -> tuple[int, int]:
    factor = min(1.0, side / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _small_unit(pair: Pair, planes: Tensor, size: tuple[int, int]) -> Tensor:
    """``(3, h, w)`` float32 in 0..1."""
    return unit(pair.rgb(_resized(planes, size)))


def _resized(planes: Tensor, size: tuple[int, int]) -> Tensor:
    if planes.shape[-2:] == size:
        return planes
    if planes.dtype == torch.uint16:
        return F.resize(planes.float(), list(size), antialias=True).round().clamp(0, 65535).to(torch.uint16)
    return F.resize(planes, list(size), antialias=True)


def _smaller_pair(pair: Pair, size: tuple[int, int]) -> Pair:
    return dataclasses.replace(pair, original=_resized(pair.original, size), edited=_resized(pair.edited, size))


def _shrunk(area: Tensor, size: tuple[int, int]) -> Tensor:
    """``(B, 1, H, W)`` bool at a smaller size: true where any part of a pixel was."""
    return area if area.shape[-2:] == size else nnf.adaptive_max_pool2d(area.float(), size) > 0


def _grown(allowed: Tensor, size: torch.Size) -> Tensor:
    """``(1, H, W)`` float32: 1 where all that an interpolation looks at is allowed."""
    if allowed.shape[-2:] == size:
        return allowed.float()
    wide = nnf.interpolate(allowed.float()[None], size=list(size), mode="bilinear", align_corners=False)[0]
    return (wide >= 1 - 1e-6).float()


def _as_list(decision: Any, count: int) -> list[Decision] | None:
    if decision is None:
        return None
    given = [decision] if isinstance(decision, Decision) else list(decision)
    if len(given) != count:
        raise ValueError(f"{len(given)} decision(s) for {count} picture(s); pass one for each")
    return given
