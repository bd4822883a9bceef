"""Backgrounds of other training images, to fill from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from infill_aug.functional.masks import dilate
from infill_aug.infill.backend import InfillError, PoolSample, SampleContext
from infill_aug.infill.push_pull import push_pull
from infill_aug.key import digest, image_digest

# Longest side of a plate in the pool: 256 plates of this size in 4:3 are 150 MB.
_PLATE_SIDE = 512
# Crops that are looked at before the best is taken: paint over an object shows, and so does a crop that is enlarged.
_TRIES = 8


@dataclass(frozen=True)
class DonorPool:
    """Training images with their objects removed, by key and label.

    Args:
        plates: key, label, ``(3, h, w)`` ``uint8`` picture of each, and ``(1, h, w)`` bool where it is painted over.
        object_above: confidence, 0..1, above which a pixel counted as the object's.

    Example:
        >>> bool(DonorPool())
        False
    """

    plates: tuple[tuple[str, object, Tensor, Tensor], ...] = ()
    object_above: float = 0.75

    @classmethod
    def of(cls, samples: Iterable[PoolSample], object_above: float = 0.75) -> DonorPool:
        """The pool of all samples that have any background.

        Args:
            samples: training images.
            object_above: confidence, 0..1, above which a pixel counts as the object's and is removed.
        """
        made = ((each, make_plate(each.image, each.confidence, object_above)) for each in samples)
        return cls(tuple((each.key, each.label, *plate) for each, plate in made if plate is not None), object_above)

    def __bool__(self) -> bool:
        return bool(self.plates)

    @cached_property
    def digest(self) -> str:
        """32 hex digits that change with the plates: the same pictures with other objects cut out are another pool."""
        if not self.plates:
            return ""
        plates = [
            [key, str(label), image_digest(torch.cat([plate, painted.to(torch.uint8)]))]
            for key, label, plate, painted in self.plates
        ]
        return digest([float(self.object_above), plates])

    def draw(
        self, random: np.random.Generator, sample: SampleContext, height: int, width: int, other_class: bool = False
    ) -> Tensor:
        """A crop of some donor, never of the sample itself: of a few, one with little paint and fine detail.

        Args:
            random: the only source of randomness.
            sample: its key and label are looked at.
            height: of the crop, pixels.
            width: of the crop, pixels.
            other_class: donors of another label only.

        Returns:
            ``(3, height, width)`` float32 in 0..1.

        Raises:
            InfillError: there is none.
        """
        donors = self._others(sample, other_class)
        least, best = 3.0, None
        for _ in range(_TRIES):
            plate, painted = donors[int(random.integers(len(donors)))]
            window = _window(random, plate, height, width)
            flaw = float(painted[window].float().mean()) + _missing(painted[window], height, width)
            flip = random.random() < 0.5
            if flaw < least:
                least, best = flaw, plate[window].flip(-1) if flip else plate[window]
            if flaw == 0:
                break
        assert best is not None
        # Floating point: torchvision's uint8 kernel fails on pictures of one column.
        return F.resize(best.float() / 255, [height, width], antialias=True)

    def _others(self, sample: SampleContext, other_class: bool) -> list[tuple[Tensor, Tensor]]:
        if not self.plates:
            raise InfillError("there are no donors; call prepare(), or fill through build_cache")
        if other_class and sample.label is None:
            raise InfillError("other_class=True needs a label for every sample; this one has none")
        donors = [
            (plate, painted)
            for key, label, plate, painted in self.plates
            if key != sample.key and not (other_class and label == sample.label)
        ]
        if not donors:
            kind = f"of another class than {sample.label!r}" if other_class else "other than the image itself"
            raise InfillError(
                f"none of the {len(self.plates)} donors is {kind}; "
                "fill from a dataset that has such images, or raise pool_size"
            )
        return donors


def make_plate(image: Tensor, confidence: Tensor, object_above: float = 0.75) -> tuple[Tensor, Tensor] | None:
    """The background of an image with its object removed and continued smoothly.

    Args:
        image: ``(3, H, W)`` ``uint8``.
        confidence: ``(1, H, W)`` ``uint8``.
        object_above: confidence, 0..1, above which a pixel is the object's.

    Returns:
        ``(3, h, w)`` ``uint8``, at most 512 pixels on the longer side, and ``(1, h, w)`` bool, true where it is painted
        over; ``None`` where nothing is background.

    Example:
        >>> import torch
        >>> make_plate(torch.zeros(3, 4, 4, dtype=torch.uint8), torch.full((1, 4, 4), 255, dtype=torch.uint8)) is None
        True
    """
    scale = min(1.0, _PLATE_SIDE / max(image.shape[-2:]))
    size = [max(1, round(side * scale)) for side in image.shape[-2:]]
    small = F.resize(image.float() / 255, size, antialias=True)
    inside = F.resize(confidence.float(), size, antialias=True) > object_above * 255
    # A margin against the object's rim, which a mask that is a pixel off would leave standing.
    inside = dilate(inside[None], max(1, max(size) // 64))
    if bool(inside.all()):
        return None
    return (push_pull(small[None], inside)[0] * 255).round().to(torch.uint8), inside[0]


def _missing(crop: Tensor, height: int, width: int) -> float:
    """Share of the wanted detail that a crop has to be enlarged for, 0..1."""
    return 1 - min(1.0, crop.shape[-2] / height, crop.shape[-1] / width)


def _window(random: np.random.Generator, plate: Tensor, height: int, width: int) -> tuple[slice, slice, slice]:
    """A window of the plate with the wanted aspect, 60 to 100 % of the largest one."""
    full_height, full_width = plate.shape[-2:]
    scale = min(full_height / height, full_width / width) * random.uniform(0.6, 1.0)
    crop_height = min(full_height, max(1, round(height * scale)))
    crop_width = min(full_width, max(1, round(width * scale)))
    top = int(random.integers(full_height - crop_height + 1))
    left = int(random.integers(full_width - crop_width + 1))
    return slice(None), slice(top, top + crop_height), slice(left, left + crop_width)
