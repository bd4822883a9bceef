"""Random style, colour and texture of the infill, each sample in its own way."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from infill_aug.checks import is_number
from infill_aug.descriptor import TaskDescriptor
from infill_aug.functional.parts import parts_of
from infill_aug.infill.push_pull import push_pull
from infill_aug.variation.choice import Change, OperationChoice
from infill_aug.variation.operation import GROUPS

# Strength of the texture by a descriptor's complexity.
_BUSY = {"low": 0.15, "medium": 0.3, "high": 0.6}
# For each of style, colour and texture that there is, what happens to which samples.
VariationParams = tuple[list[Change], ...]


class Variation(nn.Module):
    """Changes style, colour and texture of the infill and of nothing else, drawn anew for every sample.

    Convention:
        * infill ``(B, 3, H, W)`` floating point in 0..1, or ``uint8``; mask ``(B, 1, H, W)``, 1 = infill; same shape
          and, unless another is asked for, dtype out
        * outside the mask the result equals the input bit for bit
        * a sample gets at most one style, then one change of colour, then one of texture; only the samples and
          operations that were drawn are computed, and nothing waits for the device
        * randomness from torch's global generators: which operations, and for how many samples, from the CPU's, all
          else from the device's; ``params=`` replays a draw

    Args:
        style: an artistic style, or statistics of another picture: strength 0..1; or names of operations, as a list
            or text; or a mapping with ``operations``, ``strength``, ``p``, as ``OperationChoice`` takes them; or one of
            these. ``None`` or 0: none.
        color: the same for colour.
        texture: the same for texture.
        same_on_batch: one draw for the whole batch; an ``OperationChoice`` has its own.

    Raises:
        ValueError: a strength outside 0..1, or an unknown operation.

    Example:
        >>> infill, mask = torch.rand(2, 3, 8, 8), torch.ones(2, 1, 8, 8)
        >>> Variation()(infill, mask).shape
        torch.Size([2, 3, 8, 8])
        >>> Variation(style=["night", "fog"], color={"operations": {"jitter": 2, "RandomInvert": 1}, "p": 1.0}).style.p
        0.25
    """

    takes_uint8 = True

    def __init__(
        self,
        style: Any = 0.5,
        color: Any = 0.5,
        texture: Any = 0.3,
        *,
        same_on_batch: bool = False,
    ) -> None:
        super().__init__()
        self.style = _choice("style", style, same_on_batch)
        self.color = _choice("color", color, same_on_batch)
        self.texture = _choice("texture", texture, same_on_batch)
        if not self.choices:
            warnings.warn("this Variation changes nothing: style, color and texture are all 0", stacklevel=2)

    @classmethod
    def from_descriptor(cls, descriptor: TaskDescriptor, **more: Any) -> Variation:
        """The variation that a task descriptor asks for.

        Args:
            descriptor: words of its ``style`` that name styles pick and weight them; a style without any, such as
                ``"photorealistic"``, gets none. ``complexity`` is the strength of the texture.
            more: arguments of ``Variation``, which win.

        Example:
            >>> variation = Variation.from_descriptor(TaskDescriptor("demo", "cat", style="oil painting at night"))
            >>> sorted(operation.name for operation in variation.style.operations)
            ['night', 'oil']
        """
        from infill_aug.variation.style import styles_in

        named = styles_in(descriptor.style)
        # Whoever asks for oil wants to see it.
        style = {"operations": named, "p": 0.8, "strength": (0.5, 1.0)} if named else None
        return cls(**{"style": style, "texture": _BUSY[descriptor.complexity], **more})

    @property
    def choices(self) -> list[OperationChoice]:
        """Those of style, colour and texture that there are, in the order in which they are applied."""
        return [choice for name in GROUPS if (choice := getattr(self, name)) is not None]

    def make_params(self, count: int, height: int, width: int, device: torch.device | str = "cpu") -> VariationParams:
        """Draw for a batch.

        Args:
            count: samples.
            height: of the pictures, pixels.
            width: of the pictures, pixels.
            device: of the pictures.
        """
        return tuple(each.make_params(count, height, width, torch.device(device)) for each in self.choices)

    @torch.no_grad()
    def forward(
        self, infill: Tensor, mask: Tensor, params: VariationParams | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """The varied infill.

        Args:
            infill: ``(B, 3, H, W)`` floating point in 0..1, or ``uint8``.
            mask: ``(B, 1, H, W)`` bool or floating point, 1 = infill.
            params: from ``make_params`` for as many pictures of that size; ``None``: a new draw, on a CPU one for each
                part of a large batch.
            dtype: of the result, floating point in 0..1, or ``uint8``; ``None``: the infill's.

        Raises:
            ValueError: shapes or dtypes that do not fit.
        """
        _check(infill, mask, params)
        result = torch.empty_like(infill, dtype=dtype)
        whole = params is not None or any(each.same_on_batch for each in self.choices)
        with torch.autocast(infill.device.type, enabled=False):
            for part in [slice(None)] if whole else parts_of(infill):
                region = mask[part] if mask.dtype == torch.bool else mask[part] > 0
                self._vary(infill[part], region, params, result[part])
        return result

    def _vary(self, infill: Tensor, region: Tensor, params: VariationParams | None, result: Tensor) -> None:
        if params is None:
            params = self.make_params(len(infill), infill.shape[-2], infill.shape[-1], infill.device)
        unit = infill.float().div_(255) if infill.dtype == torch.uint8 else infill
        varied = unit.to(torch.float32, copy=True)
        for choice, changes in zip(self.choices, params, strict=True):
            for change in changes:
                _change(choice.operations[change.operation], varied, region, change)
        if result.dtype == torch.uint8:
            unit = infill if infill.dtype == torch.uint8 else (infill * 255).round()
            varied.mul_(255).round_()
        torch.where(region, varied.to(result.dtype), unit.to(result.dtype), out=result)


def _check(infill: Tensor, mask: Tensor, params: VariationParams | None) -> None:
    if infill.ndim != 4 or infill.shape[1] != 3 or not (infill.is_floating_point() or infill.dtype == torch.uint8):
        raise ValueError(
            f"infill must be (B, 3, H, W), floating point in 0..1 or uint8, got {tuple(infill.shape)} {infill.dtype}"
        )
    if mask.shape != (len(infill), 1, *infill.shape[2:]):
        raise ValueError(f"mask must be {(len(infill), 1, *infill.shape[2:])} to fit, got {tuple(mask.shape)}")
    last = max((change.stop for changes in params or () for change in changes), default=0)
    if last > len(infill):
        raise ValueError(f"params were drawn for {last} pictures or more, and there are {len(infill)}; draw again")


def _change(operation: Any, batch: Tensor, region: Tensor, change: Change) -> None:
    """Vary some samples of a batch in place."""
    part = batch[change.start : change.stop]
    # What is outside of the mask, often the object itself, must not be moved into it.
    seen = push_pull(part, ~region[change.start : change.stop]) if operation.moves else part
    more = {"donors": batch} if operation.mixes else {}
    torch.clamp(operation.vary(seen, **change.params, **more), 0, 1, out=part)


def _choice(group: str, given: Any, same_on_batch: bool) -> OperationChoice | None:
    if given is None:
        return None
    settings: dict[str, Any] = {"same_on_batch": same_on_batch}
    if isinstance(given, OperationChoice):
        made = given
    elif isinstance(given, Mapping):
        allowed = ("operations", "strength", "p", "same_on_batch")
        if unknown := sorted(str(key) for key in given if key not in allowed):
            raise ValueError(f"{group} has no {unknown}; allowed: {allowed}. Weights go under 'operations'")
        made = OperationChoice(group, **settings | {str(key): value for key, value in given.items()})
    elif isinstance(given, str | Sequence):
        made = OperationChoice(group, given, **settings)
    elif is_number(given, 0, 1):
        made = OperationChoice(group, strength=given, **settings)
    else:
        raise ValueError(f"{group} must lie in 0..1, or be names of operations or a mapping, got {given!r}")
    return None if made.idle else made
