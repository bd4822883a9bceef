"""The whole batch step on the device: threshold, soft mask, variation, composite, normalise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from infill_aug.functional.composite import composite, vary_in_eight_bits
from infill_aug.functional.masks import feather_mask, masked_share, threshold_mask
from infill_aug.functional.parts import parts_of
from infill_aug.samples import label_of_batch
from infill_aug.threshold import ThresholdState
from infill_aug.types import CONFIDENCE, IMAGE, INFILL, MASK, TARGET


class AugmentParams(NamedTuple):
    """One draw of an ``InfillAugment``.

    Args:
        threshold: ``(B,)`` float32 in 0..1.
        changed: ``(B,)`` bool, true where a sample is changed at all.
        rows: ``(N,)`` which samples those are, in random order.
    """

    threshold: Tensor
    changed: Tensor
    rows: Tensor


class InfillAugment(nn.Module):
    """Puts image and infill together at the threshold in force, and normalises.

    Convention:
        * in: ``image`` and ``infill`` ``(B, 3, H, W)`` ``uint8``, or floating point in 0..1; ``confidence``
          ``(B, 1, H, W)`` ``uint8``; every other key passes through
        * out: ``image`` in ``dtype``, normalised; ``mask`` ``(B, 1, H, W)`` bool, true where pixels were regenerated;
          ``infill`` and ``confidence`` are consumed
        * kept pixels equal the normalised original's bit for bit; the feather lies on the masked side
        * draws come from torch's global generators, how many samples are changed from the CPU's, all else from the
          device's, and never look at label or confidence: else "filled" would itself become a clue to the class; only a
          ``ThresholdState`` with ``classes`` reads the label, and says what that costs
        * only the samples that are changed are varied; nothing waits for the device, and nothing grows over the steps
        * in ``eval`` mode the image is only normalised
        * runs under ``no_grad``; ``compile()`` fuses what has one shape: mask, composite and normalisation

    Args:
        threshold: 0..1, higher masks more; or a ``ThresholdState`` that a feedback loop moves.
        mode: ``"quantile"`` (share of pixels to mask) or ``"absolute"`` (confidence up to which a pixel is masked); a
            ``ThresholdState`` brings its own.
        p: probability that a sample is changed at all.
        jitter: half width of a uniform draw that is added to each sample's threshold, 0..1; the sum stays within the
            bounds of the ``ThresholdState``.
        feather: width in pixels of the soft rim.
        protect_above: confidence above which a pixel is never masked; ``None``: only full confidence is kept, which is
            what labelled objects have that ``protect`` names.
        variation: module ``(infill, mask) -> infill`` on floating point in 0..1.
        normalize: mean and standard deviation, three numbers each, or ``None``.
        dtype: floating point dtype of the output image.
        channels_last: lay the output image out with channels last, for a model that wants it so.

    Attributes:
        masked_share: mean share of regenerated pixels over the changed samples of the last batch, a scalar tensor on
            its device; it stays below the threshold where protected pixels leave nothing more to mask.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> import torch
        >>> batch = {
        ...     "image": torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        ...     "infill": torch.full((2, 3, 4, 4), 255, dtype=torch.uint8),
        ...     "confidence": torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4).expand(2, -1, -1, -1),
        ... }
        >>> InfillAugment(threshold=0.5, p=1.0, feather=0)(batch)["image"].mean().item()
        0.5
    """

    def __init__(
        self,
        threshold: float | ThresholdState = 0.5,
        *,
        mode: str = "quantile",
        p: float = 0.5,
        jitter: float = 0.0,
        feather: int = 2,
        protect_above: float | None = 0.95,
        variation: nn.Module | Callable[[Tensor, Tensor], Tensor] | None = None,
        normalize: tuple[Sequence[float], Sequence[float]] | None = None,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        ranges = {"p": p, "jitter": jitter, "protect_above": protect_above or 0.0}
        if not isinstance(threshold, ThresholdState):
            ranges["threshold"] = threshold
        for name, value in ranges.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in 0..1, got {value}")
        if mode not in ("quantile", "absolute"):
            raise ValueError(f"mode must be 'quantile' or 'absolute', got {mode!r}")
        if feather < 0:
            raise ValueError(f"feather must be 0 pixels or more, got {feather}")
        if not dtype.is_floating_point:
            raise ValueError(f"dtype must be floating point, got {dtype}")
        self.threshold = threshold
        self.mode = threshold.mode if isinstance(threshold, ThresholdState) else mode
        self.p, self.jitter, self.feather, self.protect_above = p, jitter, feather, protect_above
        self.variation = variation
        self.dtype = dtype
        self.channels_last = channels_last
        self.masked_share: Tensor | None = None
        mean, std = normalize if normalize is not None else ((0.0,) * 3, (1.0,) * 3)
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"normalize must be (mean, std) of three numbers each, std above 0, got {normalize}")
        # No buffer: a model that is moved to half precision must not take the statistics along.
        self._statistics = torch.tensor([[float(v) for v in mean], [float(v) for v in std]]).view(2, 1, 3, 1, 1)

    @property
    def threshold_state(self) -> ThresholdState | None:
        """The shared threshold, where one was given: what ``AdaptiveThreshold`` looks for."""
        return self.threshold if isinstance(self.threshold, ThresholdState) else None

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Augment a batch.

        Raises:
            KeyError: a key is missing.
            ValueError: sizes that do not fit.
        """
        missing = [key for key in (IMAGE, INFILL, CONFIDENCE) if key not in batch]
        if missing and not (IMAGE in batch and not self.training):
            raise KeyError(
                f"the batch lacks {missing}; it has {list(batch)}. Wrap the dataset in InfillDataset and keep the "
                "default collate"
            )
        image = batch[IMAGE]
        sizes = {key: tuple(batch[key].shape) for key in (IMAGE, INFILL, CONFIDENCE) if key in batch}
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"{sizes} do not fit: image must be (B, 3, H, W); repeat the channel of grey pictures")
        rest = {key: value for key, value in batch.items() if key not in (IMAGE, INFILL, CONFIDENCE)}
        if not self.training:
            return {**rest, IMAGE: self.normalize(image)}
        infill, confidence = batch[INFILL], batch[CONFIDENCE]
        if infill.shape != image.shape or confidence.shape != (image.shape[0], 1, *image.shape[2:]):
            raise ValueError(
                f"{sizes} do not fit; give all three to the same geometric transforms, as v2 does with a dictionary"
            )
        params = self.make_params(image.shape[0], image.device, self.labels_of(batch.get(TARGET)))
        mixed, mask = self.compose(image, infill, confidence, params)
        self.masked_share = masked_share(mask).sum() / params.changed.sum().clamp(min=1)
        return {**rest, IMAGE: mixed, MASK: mask}

    def compose(
        self, image: Tensor, infill: Tensor, confidence: Tensor, params: AugmentParams
    ) -> tuple[Tensor, Tensor]:
        """What one draw makes of a batch: the image that ``forward`` returns, and the mask."""
        mask = self.make_mask(confidence, params.threshold, params.changed)
        if self.variation is not None and len(params.rows):
            infill = self.vary(infill, mask, params.rows)
        mixed = [self.mix(image[part], infill[part], mask[part]) for part in parts_of(image)]
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed), mask

    def make_params(self, count: int, device: torch.device, labels: Tensor | None = None) -> AugmentParams:
        """Draw each sample's threshold and whether it is changed.

        Args:
            count: samples.
            device: of the batch.
            labels: ``(B,)`` classes, for a ``ThresholdState`` that tells them apart; ``None`` for any other.
        """
        threshold = self._thresholds(count, device, labels)
        if self.jitter > 0:
            bounds = self.threshold.bounds if isinstance(self.threshold, ThresholdState) else (0.0, 1.0)
            threshold = (threshold + (2 * torch.rand(count, device=device) - 1) * self.jitter).clamp(*bounds)
        # A draw for each sample would have its sum on the device only. How many is drawn here, which ones there: the
        # same distribution, and the shapes are known without waiting.
        wanted = int((torch.rand(count) < self.p).sum())
        rows = torch.rand(count, device=device).argsort()[:wanted]
        changed = torch.zeros(count, dtype=torch.bool, device=device).index_fill(0, rows, True)
        return AugmentParams(threshold, changed, rows)

    def everything(self, count: int, device: torch.device, labels: Tensor | None = None) -> AugmentParams:
        """The parameters that change every sample, at the threshold in force: what a picture or a measurement shows.

        Args:
            count: samples.
            device: of the batch.
            labels: as in ``make_params``.
        """
        changed = torch.ones(count, dtype=torch.bool, device=device)
        return AugmentParams(self._thresholds(count, device, labels), changed, torch.arange(count, device=device))

    def _thresholds(self, count: int, device: torch.device, labels: Tensor | None) -> Tensor:
        """``(B,)`` thresholds in force."""
        state = self.threshold
        if labels is not None and isinstance(state, ThresholdState):
            return state.of_classes(labels.to(device))
        value = state.threshold if isinstance(state, ThresholdState) else state
        return torch.full((count,), float(value), device=device)

    def labels_of(self, target: Any) -> Tensor | None:
        """Classes of a batch's samples, where each has its threshold; else ``None``.

        Raises:
            KeyError: they can't be told from the target.
        """
        if self.threshold_state is None or not self.threshold_state.classes:
            return None
        labels = label_of_batch(target)
        if labels is None:
            raise KeyError(
                "a threshold of its own for each class needs (B,) integer labels under 'target', alone, first or as "
                f"'label'; got {type(target).__name__}. Give the ThresholdState no classes, or add labels"
            )
        return labels

    def make_mask(self, confidence: Tensor, threshold: Tensor, changed: Tensor) -> Tensor:
        """What is regenerated: ``(B, 1, H, W)`` bool."""
        protect_above = 1.0 if self.protect_above is None else self.protect_above
        mask = threshold_mask(confidence, threshold, mode=self.mode, protect_above=protect_above)
        return mask & changed[:, None, None, None]

    def vary(self, infill: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
        """The infill with some samples varied, in its own dtype."""
        assert self.variation is not None
        plain, where = infill.index_select(0, rows), mask.index_select(0, rows)
        if infill.dtype == torch.uint8:
            return infill.index_copy(0, rows, vary_in_eight_bits(plain, where, self.variation))
        return infill.index_copy(0, rows, self.variation(plain.float(), where.float()).to(infill.dtype))

    def mix(self, image: Tensor, infill: Tensor, mask: Tensor) -> Tensor:
        """Composite and normalise; tensors in, a tensor out."""
        if not image.dtype == infill.dtype == torch.uint8:
            image, infill = _unit(image), _unit(infill)
        # In 8 bits where both come in them: a third of the bytes, and what is kept is only copied.
        soft = feather_mask(mask, self.feather) if self.feather else mask
        return self.normalize(composite(image, infill, soft))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile what has one shape, with the arguments of ``torch.compile``; the variation stays as it is."""
        self.__dict__["make_mask"] = torch.compile(self.make_mask, *args, **kwargs)
        self.__dict__["mix"] = torch.compile(self.mix, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was compiled, which no process can hand to another."""
        return {name: value for name, value in self.__dict__.items() if name not in ("make_mask", "mix")}

    def normalize(self, image: Tensor) -> Tensor:
        """``(B, 3, H, W)`` image, ``uint8`` or in 0..1, as normalised ``dtype``."""
        if self._statistics.device != image.device:
            self._statistics = self._statistics.to(image.device)
        mean, std = self._statistics
        unit = image.float().div_(255) if image.dtype == torch.uint8 else image.to(torch.float32, copy=True)
        layout = torch.channels_last if self.channels_last else torch.preserve_format
        return unit.sub_(mean).div_(std).to(self.dtype, memory_format=layout)

    def extra_repr(self) -> str:
        """What is printed of this module."""
        names = ("threshold", "mode", "p", "jitter", "feather", "protect_above")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


def _unit(image: Tensor) -> Tensor:
    """Float32 in 0..1."""
    return image.float().div_(255) if image.dtype == torch.uint8 else image.float()
