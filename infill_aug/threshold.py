"""How hard training masks: one shared number, a *strength* in 0..1, and the *threshold* that it stands for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from infill_aug.checks import check_interval, check_within, clip

ThresholdMode = Literal["quantile", "absolute"]


def strength_to_threshold(strength: float, mode: ThresholdMode = "quantile", keep_min: float = 0.02) -> float:
    """Threshold that a strength stands for.

    Args:
        strength: what a law moves, 0..1; 0 masks nothing.
        mode: ``"quantile"``: the threshold is the share of pixels to mask, ``1 - keep_min ** strength``, so that equal
            steps of strength take away equal *ratios* of what is still visible. ``"absolute"``: the threshold is a
            confidence and equals the strength.
        keep_min: share of pixels that full strength keeps, strictly between 0 and 1; for ``"quantile"`` only.

    Returns:
        The threshold, 0..1; it rises with the strength.
    """
    return strength if mode == "absolute" else 1.0 - keep_min**strength


def threshold_to_strength(threshold: float, mode: ThresholdMode = "quantile", keep_min: float = 0.02) -> float:
    """Strength that gives a threshold; the inverse of ``strength_to_threshold``.

    Args:
        threshold: 0..1; in mode ``"quantile"`` everything from ``1 - keep_min`` on is full strength.
        mode: see ``strength_to_threshold``.
        keep_min: see ``strength_to_threshold``.

    Returns:
        The strength, 0..1.
    """
    if mode == "absolute":
        return threshold
    return math.log(1.0 - threshold) / math.log(keep_min) if threshold < 1.0 - keep_min else 1.0


class ThresholdState:
    """The one threshold that a training run shares: augmentation reads it, a law or its user sets it.

    The number lies in shared memory: ``DataLoader`` workers see a change at once under fork, spawn and forkserver, with
    persistent workers too, but batches that they had prefetched were cut with the old one. Let one process set it.
    ``copy.deepcopy`` and what ``multiprocessing`` sends to a worker stay linked to it; a plain pickle becomes a copy of
    its own. Ranks of a distributed run share no memory: each has its own state and must set it alike.

    Args:
        strength: where to start, 0..1; moved into ``bounds`` where it lies outside them.
        mode: meaning of the threshold, see ``strength_to_threshold``.
        bounds: lowest and highest *threshold* that may be set, within 0..1.
        keep_min: share of pixels that full strength keeps, 0.0001..0.99; for mode ``"quantile"`` only.
        classes: how many classes have an offset of their own to the strength, see ``of_classes``; 0: none has.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> state = ThresholdState.from_threshold(0.5)
        >>> state.set(state.strength + 0.1)
        >>> round(state.threshold, 3)
        0.662
    """

    def __init__(
        self,
        strength: float = 0.0,
        *,
        mode: ThresholdMode = "quantile",
        bounds: tuple[float, float] = (0.0, 1.0),
        keep_min: float = 0.02,
        classes: int = 0,
    ) -> None:
        if mode not in ("quantile", "absolute"):
            raise ValueError(f"mode must be 'quantile' or 'absolute', got {mode!r}")
        self.mode: ThresholdMode = mode
        self.keep_min = check_within("keep_min", keep_min, 1e-4, 0.99, "0.02 is the default")
        self.bounds = check_interval("bounds", bounds)
        self.classes = int(check_within("classes", classes, 0, math.inf, "leave it out for one threshold for all"))
        self._shared = torch.zeros(1 + self.classes, dtype=torch.float64).share_memory_()
        self._table: tuple[tuple[float, ...], torch.Tensor] | None = None
        self.set(check_within("strength", strength, 0.0, 1.0, "for a threshold use ThresholdState.from_threshold"))

    @classmethod
    def from_threshold(
        cls,
        threshold: float,
        *,
        mode: ThresholdMode = "quantile",
        bounds: tuple[float, float] = (0.0, 1.0),
        keep_min: float = 0.02,
        classes: int = 0,
    ) -> ThresholdState:
        """State that starts at a threshold instead of a strength.

        Args:
            threshold: within ``bounds``, and at most ``1 - keep_min`` in mode ``"quantile"``.
            mode: as for the class, like all that follow.
            bounds: lowest and highest threshold.
            keep_min: share of pixels that full strength keeps.
            classes: how many classes have an offset.

        Raises:
            ValueError: an argument is out of range.
        """
        state = cls(mode=mode, bounds=bounds, keep_min=keep_min, classes=classes)
        highest = min(state.bounds[1], strength_to_threshold(1.0, mode, keep_min))
        check_within("threshold", threshold, state.bounds[0], highest, "widen bounds, or lower keep_min")
        state.set(threshold_to_strength(threshold, mode, keep_min))
        return state

    @property
    def strength(self) -> float:
        """What a law moves, 0..1."""
        return self._shared[0].item()

    @property
    def threshold(self) -> float:
        """What masks are cut with, within ``bounds``; higher masks more."""
        return self._threshold_at(self.strength)

    @property
    def offsets(self) -> tuple[float, ...]:
        """What each class adds to the strength."""
        return tuple(self._shared[1:].tolist())

    def of_classes(self, labels: torch.Tensor) -> torch.Tensor:
        """Thresholds of samples by their classes, within ``bounds``.

        Args:
            labels: ``(B,)`` integers in ``0..classes - 1``.

        Returns:
            ``(B,)`` float32 on the device of ``labels``.

        Raises:
            ValueError: ``labels`` are no ``(B,)`` integers, or this state has no classes.
        """
        if not self.classes or labels.ndim != 1 or labels.is_floating_point():
            raise ValueError(
                f"thresholds of classes need (B,) integer labels and a state with classes, got {tuple(labels.shape)} "
                f"{labels.dtype} and {self.classes} classes; ThresholdState(classes=...) has them"
            )
        numbers = (self.strength, *self.offsets)
        if self._table is None or self._table[0] != numbers or self._table[1].device != labels.device:
            # Kept, since bringing it to a GPU waits for it.
            table = [self._threshold_at(clip(numbers[0] + offset, 0.0, 1.0)) for offset in numbers[1:]]
            self._table = numbers, torch.tensor(table, device=labels.device)
        return self._table[1][labels]

    def set(self, strength: float, offsets: Sequence[float] | None = None) -> None:
        """Set the strength for every process that shares this state, moved into the bounds where it lies outside them.

        Args:
            strength: 0..1.
            offsets: what each class adds to it, ``classes`` numbers; None leaves them as they are.

        Raises:
            ValueError: a number is not finite, or their count is wrong; the old ones were kept.
        """
        numbers = [strength, *(self.offsets if offsets is None else offsets)]
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"strength must be a finite number in 0..1, got {numbers!r}; the old one was kept")
        if len(numbers) != len(self._shared):
            raise ValueError(f"this state has {self.classes} classes, got {len(numbers) - 1} offsets; see `classes`")
        low, high = (threshold_to_strength(bound, self.mode, self.keep_min) for bound in self.bounds)
        self._shared.copy_(torch.tensor([clip(strength, low, high), *numbers[1:]], dtype=torch.float64))

    def _threshold_at(self, strength: float) -> float:
        return clip(strength_to_threshold(strength, self.mode, self.keep_min), *self.bounds)

    def state_dict(self) -> dict[str, Any]:
        """The strength and its unit, as plain numbers and strings."""
        offsets = {"offsets": list(self.offsets)} if self.classes else {}
        return {"strength": self.strength, "mode": self.mode, "keep_min": self.keep_min, **offsets}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a saved strength, within this state's own bounds.

        Raises:
            ValueError: it was saved under another mode or ``keep_min``, so that its strength means another threshold.
        """
        saved, own = ((source["mode"], source["keep_min"]) for source in (state_dict, self.state_dict()))
        if saved != own:
            raise ValueError(f"saved with (mode, keep_min) {saved}, this state has {own}; build it with the saved ones")
        self.set(state_dict["strength"], state_dict.get("offsets"))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.__dict__.update(attributes)
        self._shared.share_memory_()  # a detached copy is shared with its own workers all the same

    def __deepcopy__(self, memo: dict[int, Any]) -> ThresholdState:
        return self  # frameworks deepcopy datasets and modules, and a copy would silently stop following

    def __repr__(self) -> str:
        return f"ThresholdState(threshold={self.threshold:.4f}, strength={self.strength:.4f}, mode={self.mode!r})"
