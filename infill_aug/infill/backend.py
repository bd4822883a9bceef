"""The one interface of everything that fills, and the checks that no backend has to repeat."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from infill_aug.descriptor import TaskDescriptor
from infill_aug.functional.composite import composite
from infill_aug.functional.masks import dilate
from infill_aug.key import digest, image_digest, seed_from


class InfillError(RuntimeError):
    """A backend cannot do what it was asked for."""


class BackendUnavailableError(InfillError):
    """A backend can fill nothing at all: weights, a library, the network, a key or the money for it is missing."""


class PartialInfillError(InfillError):
    """Some samples of a batch could not be filled; the others were.

    Args:
        images: ``(B, 3, H, W)`` with the fills that worked; the failed samples hold their masked image.
        reasons: what went wrong, by position in the batch.
    """

    def __init__(self, images: Tensor, reasons: Mapping[int, str]) -> None:
        self.images = images
        self.reasons = dict(reasons)
        self.ok = torch.tensor([i not in self.reasons for i in range(len(images))])
        listed = "; ".join(f"sample {i}: {reason}" for i, reason in sorted(self.reasons.items()))
        super().__init__(f"{len(self.reasons)} of {len(images)} samples could not be filled: {listed}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the arguments: an error has to survive the way from a worker process."""
        return type(self), (self.images, self.reasons)


@dataclass(frozen=True)
class ModelConfig:
    """What a backend's result depends on besides the sample: pure data, made without loading weights.

    Args:
        backend: name of the backend.
        version: raised by the backend's author whenever the same options give other pictures.
        options: sorted ``(name, JSON value)`` pairs.
        model: identifier of the weights, where there are any.
        revision: immutable revision or checksum of the weights.
        stochastic: whether the seed changes the result; where not, all variants of a sample are one.
        max_batch: most samples in one call; not part of the fingerprint, since it does not change the result.

    Example:
        >>> ModelConfig("push_pull").fingerprint() == ModelConfig("push_pull", max_batch=2).fingerprint()
        True
    """

    backend: str
    version: int = 1
    options: tuple[tuple[str, Any], ...] = ()
    model: str = ""
    revision: str = ""
    stochastic: bool = False
    max_batch: int = 64

    def fingerprint(self) -> str:
        """32 hex digits that change with everything that changes the result."""
        return digest(
            {
                "backend": self.backend,
                "version": self.version,
                "options": dict(self.options),
                "model": self.model,
                "revision": self.revision,
            }
        )


@dataclass(frozen=True)
class SampleContext:
    """What a backend may know of a sample besides its pixels.

    Args:
        key: identity of the original image, see ``image_digest``.
        seed: the only source of randomness for this sample.
        label: its class, where one is known.
    """

    key: str
    seed: int
    label: Hashable | None = None


def contexts_of(pictures: Iterable[Tensor], seed: int) -> list[SampleContext]:
    """Contexts by the pictures alone: the same for a sample by itself and in any batch.

    Args:
        pictures: ``(3, H, W)`` ``uint8`` each, on any device.
        seed: the descriptor's.

    Example:
        >>> [one] = contexts_of([torch.zeros(3, 2, 2, dtype=torch.uint8)], seed=1)
        >>> len(one.key)
        32
    """
    keys = [image_digest(picture.cpu()) for picture in pictures]
    return [SampleContext(key=key, seed=seed_from(seed, key)) for key in keys]


@dataclass(frozen=True)
class PoolSample:
    """A training image offered to a backend that fills from other images.

    Args:
        key: identity of the image.
        image: ``(3, H, W)`` ``uint8``.
        confidence: ``(1, H, W)`` ``uint8``.
        label: its class, where one is known.
    """

    key: str
    image: Tensor
    confidence: Tensor
    label: Hashable | None = None


class InfillBackend(ABC):
    """Base of everything that fills. A backend implements ``_generate`` and names its ``defaults``.

    Args:
        options: values for the names in ``defaults``; the descriptor's ``options`` win over them.

    Convention:
        * images ``(B, 3, H, W)`` RGB float32 in 0..1, masks ``(B, 1, H, W)``, 1 = fill
        * the same request gives the same fill alone or in any batch: all randomness comes from each sample's seed
        * result on the device of the input, kept pixels equal to the input's
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    stochastic: ClassVar[bool] = False
    needs_visible: ClassVar[bool] = True  # cannot fill a picture of which nothing is left
    may_be_flat: ClassVar[bool] = False  # one flat colour is a fill like any other, not the sign of a failed model
    cut_out: ClassVar[bool] = False  # fills are not meant to go on with the picture: a seam is no fault of theirs
    soft_masks: ClassVar[bool] = False  # takes masks between 0 and 1, which say how much a pixel may change
    pool_size: int = 0  # how many training images ``prepare`` wants to see
    max_batch: ClassVar[int] = 64

    def __init__(self, **options: Any) -> None:
        self.check_options(options)
        self.options = options
        self._fits: int | None = None  # most samples that went through memory at once, after one call did not

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise a ``ValueError`` that names an option out of range; sees arguments and a descriptor's options alike."""
        return

    def prepare(self, pool: Iterable[PoolSample]) -> None:
        """Take in training images before the first fill; called only where ``pool_size`` is above 0."""
        return

    def model_config(self, descriptor: TaskDescriptor) -> ModelConfig:
        """What the result for ``descriptor`` depends on; loads no weights.

        Raises:
            ValueError: the descriptor has options that this backend does not know.
        """
        unknown = sorted(set(descriptor.options) - set(self.options))
        if unknown:
            raise ValueError(
                f"descriptor options {unknown} are unknown to backend {self.name!r}; it has {sorted(self.options)}"
            )
        options = {**self.options, **descriptor.options}
        self.check_options(options)
        return ModelConfig(
            backend=self.name,
            version=self.version,
            options=tuple((name, _frozen(value)) for name, value in sorted(options.items())),
            stochastic=self.stochastic,
            max_batch=self.max_batch,
        )

    def check_soft_masks(self, device: torch.device) -> None:
        """Raise a ``ValueError`` where ``soft_masks`` is set, but the model that is loaded cannot take any."""
        return

    def price(self, descriptor: TaskDescriptor, height: int, width: int) -> float:
        """US dollars that one fill of this size costs; 0 for what runs on the user's own machine."""
        return 0.0

    @abstractmethod
    def _generate(self, image: Tensor, mask: Tensor, config: ModelConfig, samples: Sequence[SampleContext]) -> Tensor:
        """Fill a batch that has been checked: float32 image with an empty hole, bool mask with no empty sample.

        Where ``soft_masks`` is set, the mask may be float32 in 0..1, and the image is empty only where it is 1. Raise a
        ``PartialInfillError`` where some samples failed for good, a ``BackendUnavailableError`` where all would; what
        else is raised is tried again with half of the batch, down to single samples.
        """

    def generate_infill(
        self,
        masked_image: Tensor,
        mask: Tensor,
        descriptor: TaskDescriptor,
        *,
        samples: Sequence[SampleContext] | None = None,
    ) -> Tensor:
        """Fill the masked pixels of a batch.

        Samples with an empty mask come back as they are. A batch that does not fit in memory is halved until it does.

        Args:
            masked_image: ``(B, 3, H, W)`` RGB floating point in 0..1; what lies under the mask is not looked at.
            mask: ``(B, 1, H, W)``, bool or 0 / 1; 1 = fill. Backends with ``soft_masks`` also take values in between:
                how much a pixel may change; those see the pixels under them.
            descriptor: what to fill with.
            samples: identity, seed and label of each sample; by default derived from the visible pixels and the
                descriptor's seed.

        Returns:
            ``(B, 3, H, W)`` float32 in 0..1 on the device of ``masked_image``.

        Raises:
            ValueError: shapes, dtypes or ranges that do not fit.
            PartialInfillError: some samples failed; it carries the others, and says why for each.
            BackendUnavailableError: none can be filled; the message says what is missing.
        """
        image, soft = _checked(masked_image, mask, self.soft_masks)
        if soft.dtype != torch.bool:
            self.check_soft_masks(image.device)
        hole = soft > 0
        if samples is None:
            samples = contexts_of((image * 255).round().to(torch.uint8), descriptor.seed)
        elif len(samples) != len(image):
            raise ValueError(f"{len(samples)} sample contexts for a batch of {len(image)}; give one for each")
        config = self.model_config(descriptor)
        result, reasons = image.clone(), dict[int, str]()
        todo = []
        for i, sample_hole in enumerate(hole):
            if self.needs_visible and bool((soft[i] == 1).all()):
                reasons[i] = f"nothing is visible for {self.name!r} to fill from; use a lower level, or protect a part"
            elif sample_hole.any():
                todo.append(i)
        step = max(1, min(config.max_batch, self._fits or config.max_batch))
        waiting = [todo[start : start + step] for start in range(0, len(todo), step)][::-1]
        while waiting:
            part = waiting.pop()
            refused: Mapping[int, str] = {}
            try:
                with torch.no_grad():
                    fills = self._generate(image[part], soft[part], config, [samples[i] for i in part])
                if not isinstance(fills, Tensor) or fills.shape != image[part].shape:
                    got = tuple(fills.shape) if isinstance(fills, Tensor) else type(fills).__name__
                    raise InfillError(f"{self.name} returned {got} for {tuple(image[part].shape)}")
            except (BackendUnavailableError, ImportError):  # no other sample would go better
                raise
            except PartialInfillError as error:
                fills, refused = error.images, error.reasons
            except Exception as error:  # one bad sample must not cost the others their fill
                if len(part) > 1:
                    middle = len(part) // 2
                    if _out_of_memory(error):
                        warnings.warn(
                            f"{self.name}: a batch of {len(part)} does not fit in memory; halving it",
                            ResourceWarning,
                            stacklevel=2,
                        )
                        self._fits = middle
                    waiting += [part[middle:], part[:middle]]
                else:
                    reasons[part[0]] = f"{type(error).__name__}: {error}"
                continue
            for place, (i, fill) in enumerate(zip(part, fills.to(image.device, torch.float32), strict=True)):
                fault = refused.get(place) or _fault(fill, image[i], hole[i], self.may_be_flat)
                if fault:
                    reasons[i] = fault
                else:
                    result[i] = composite(image[i], fill.clamp(0, 1), hole[i])
        if reasons:
            raise PartialInfillError(result, reasons)
        return result


def _checked(image: Tensor, mask: Tensor, soft_masks: bool) -> tuple[Tensor, Tensor]:
    """Float32 image with an empty hole and bool mask, or a ``ValueError`` that says what does not fit.

    The mask is float32 where it has values between 0 and 1 and may have them.
    """
    if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point():
        raise ValueError(
            f"masked_image must be (B, 3, H, W) floating point in 0..1, got {tuple(image.shape)} {image.dtype}"
        )
    if mask.shape != (image.shape[0], 1, *image.shape[2:]):
        raise ValueError(
            f"mask must be {(image.shape[0], 1, *image.shape[2:])} to fit the image, got {tuple(mask.shape)}"
        )
    if mask.device != image.device:
        raise ValueError(f"mask is on {mask.device}, masked_image on {image.device}; move one of them")
    hole = mask
    if mask.dtype != torch.bool:
        if bool(((mask == 0) | (mask == 1)).all()):
            hole = mask.bool()
        elif not soft_masks:
            raise ValueError("mask must be bool, or hold 0 and 1 only; cut a soft mask at 0.5 first")
        elif not (mask.is_floating_point() and bool(((mask >= 0) & (mask <= 1)).all())):
            raise ValueError("a soft mask must be floating point in 0..1; divide uint8 by 255")
        else:
            hole = mask.float()
    image = image.detach().float().masked_fill(hole == 1, 0.0)
    if image.numel() and not bool(((image >= 0) & (image <= 1)).all()):
        low, high = (float(v) for v in torch.aminmax(image))
        raise ValueError(f"visible pixels of masked_image must lie in 0..1, got values from {low:.4g} to {high:.4g}")
    return image, hole


def _frozen(value: Any) -> Any:
    """A JSON value that can be hashed; its canonical JSON stays the same for lists."""
    if isinstance(value, Mapping):
        return tuple((name, _frozen(part)) for name, part in sorted(value.items()))
    return tuple(_frozen(part) for part in value) if isinstance(value, list | tuple) else value


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in str(error).lower()


def _fault(fill: Tensor, image: Tensor, hole: Tensor, may_be_flat: bool) -> str | None:
    """What makes a fill unusable as training data, or ``None``."""
    inside = fill[:, hole[0]]
    if not bool(inside.isfinite().all()):
        return "the fill is not finite (NaN or infinity)"
    low, high = (float(v) for v in torch.aminmax(inside))
    if low < -0.05 or high > 1.05:
        return f"the fill must lie in 0..1, got values from {low:.4g} to {high:.4g}"
    if not may_be_flat and inside.shape[1] >= 64 and float((inside.amax(dim=1) - inside.amin(dim=1)).max()) == 0:
        # One flat colour is what a failed model gives, unless it simply goes on with flat surroundings.
        ring = (dilate(hole[None], 2)[0] & ~hole)[0]
        around = image[:, ring]
        if around.shape[1] == 0 or float((around - inside[:, :1]).abs().max()) > 0.02:
            colour = [round(float(v), 3) for v in inside[:, 0]]
            return f"the fill is one constant colour {colour} that its surroundings do not have"
    return None
