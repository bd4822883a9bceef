"""What every variation is: a change of pictures whose parameters are drawn in one place and applied in another."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from kornia.augmentation import IntensityAugmentationBase2D
from torch import Tensor

from infill_aug.checks import is_number

GROUPS = ("style", "color", "texture")
# Name of a group: its operations by name.
_REGISTRY: dict[str, dict[str, type[Operation]]] = {group: {} for group in GROUPS}


class Operation(IntensityAugmentationBase2D):
    """Base of the package's operations: random change of pictures, each sample in its own way.

    Works alone, in kornia's ``AugmentationSequential``, and, much faster where few samples are changed, in
    ``Variation``, which calls ``draw`` and ``vary`` for the samples that it picked and no others.

    Convention:
        * pictures ``(B, 3, H, W)`` floating point in 0..1, any device; the result is clamped into 0..1, same dtype
        * one strength for each sample, uniform in the range; 1 is as far as a picture still looks like one
        * randomness from torch's global generator of the device; the drawn parameters replay:
          ``operation(image, params=operation._params)``

    Args:
        strength: 0..1, the range that each sample's strength is drawn from; a number s stands for s / 4 to s.
        p: probability of a sample to be changed, where the operation is used alone.
        same_on_batch: one draw for all samples.
        keepdim: whether a picture without batch dimension comes back without.

    Attributes:
        group: ``"style"``, ``"color"`` or ``"texture"``.
        name: by which ``Variation`` and Hydra know it.
        moves: whether content moves: within a mask it must then not see what lies outside.
        mixes: whether it takes something over from other pictures of the batch.
        needs_others: whether it does nothing without them.

    Raises:
        ValueError: a strength outside 0..1, or a range that falls.

    Example:
        >>> from infill_aug.variation.color import Jitter
        >>> Jitter(strength=0.5)(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """

    group: ClassVar[str]
    name: ClassVar[str]
    moves: ClassVar[bool] = False
    mixes: ClassVar[bool] = False
    needs_others = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__name__.startswith("_"):
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
            # The package's own alone: what others define must not join everybody's defaults by being imported.
            if cls.__module__.startswith("infill_aug."):
                _REGISTRY[cls.group][cls.name] = cls

    def __init__(
        self,
        strength: float | Sequence[float] = (0.25, 1.0),
        p: float = 1.0,
        same_on_batch: bool = False,
        keepdim: bool = False,
    ) -> None:
        super().__init__(p=p, same_on_batch=same_on_batch, keepdim=keepdim)
        self.strength = strength_range(strength)

    def draw(self, strength: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """Parameters of one change each, on the device of the strengths.

        Args:
            strength: ``(n,)`` float32 in 0..1.
            height: of the pictures, pixels.
            width: of the pictures, pixels.

        Returns:
            Tensors whose first dimension is n: what ``vary`` takes by name.
        """
        raise NotImplementedError

    def vary(self, image: Tensor, **params: Tensor) -> Tensor:
        """Apply what was drawn: a pure function.

        Args:
            image: ``(n, 3, H, W)`` float32 in 0..1.
            params: from ``draw``; also ``donors``, ``(m, 3, H, W)``, where the operation mixes.

        Returns:
            ``(n, 3, H, W)`` float32, not yet clamped.
        """
        raise NotImplementedError

    # --- what kornia calls ---

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Draw for a batch of that shape."""
        count = 1 if self.same_on_batch else batch_shape[0]
        low, high = self.strength
        strength = low + (high - low) * torch.rand(count, device=self.device)
        drawn = self.draw(strength, batch_shape[-2], batch_shape[-1])
        return {name: value.expand(batch_shape[0], *value.shape[1:]) for name, value in drawn.items()}

    def apply_transform(self, image: Tensor, params: Mapping[str, Any], flags: Any, transform: Any = None) -> Tensor:
        """Apply to a whole batch."""
        dtype, image = image.dtype, image.float()
        drawn = {
            name: value.to(image.device)
            for name, value in params.items()
            if isinstance(value, Tensor) and name not in ("batch_prob", "forward_input_shape")
        }
        more = {"donors": image} if self.mixes else {}
        return self.vary(image, **drawn, **more).clamp(0, 1).to(dtype)


def list_operations(group: str | None = None) -> list[str]:
    """Names of the operations that come with the package.

    Args:
        group: ``"style"``, ``"color"`` or ``"texture"``; ``None``: all of them.

    Raises:
        ValueError: another group.

    Example:
        >>> "jitter" in list_operations("color")
        True
    """
    return sorted(_classes(group))


def find_operation(name: str) -> type[Operation] | None:
    """The operation of that name, or ``None``.

    Example:
        >>> find_operation("jitter").group
        'color'
    """
    return _classes(None).get(name)


def _classes(group: str | None) -> dict[str, type[Operation]]:
    # Imported here: each of them imports this module.
    from infill_aug.variation import color, style_transfer, texture  # noqa: F401

    if group is not None and group not in GROUPS:
        raise ValueError(f"group must be one of {GROUPS}, got {group!r}")
    return {name: kind for one in GROUPS if group in (None, one) for name, kind in _REGISTRY[one].items()}


def strength_range(strength: float | Sequence[float]) -> tuple[float, float]:
    """A range in 0..1 from a range, or from its upper end.

    Raises:
        ValueError: neither, or outside 0..1.

    Example:
        >>> strength_range(0.5), strength_range((0.1, 0.2))
        ((0.125, 0.5), (0.1, 0.2))
    """
    if is_number(strength, 0, 1):
        high = float(strength)
        return high / 4, high
    ends = list(strength) if isinstance(strength, Sequence) and not isinstance(strength, str) else []
    if len(ends) != 2 or not all(is_number(end, 0, 1) for end in ends) or ends[0] > ends[1]:
        raise ValueError(f"strength must be a number in 0..1 or two that rise, got {strength!r}")
    return float(ends[0]), float(ends[1])


def uniform(like: Tensor, low: float = 0.0, high: float = 1.0, *more: int) -> Tensor:
    """Uniform numbers, ``(n, *more)``, on the device of ``like``, ``(n,)``."""
    return low + (high - low) * torch.rand(len(like), *more, device=like.device)


def column(values: Tensor) -> Tensor:
    """``(n, 1, 1, 1)`` from ``(n,)``, ``(n, 3, 1, 1)`` from ``(n, 3)``."""
    return values.reshape(len(values), -1, 1, 1)


@functools.cache
def constant(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of a module in float32 on a device: copied there once, since a copy in every step would hold it up."""
    # One that was made in inference mode could never again take part in a gradient.
    with torch.inference_mode(False):
        return tensor.float().to(device)
