"""Drop-in for a training script: the first transform of an unchanged ``v2.Compose``."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import Any

import torch
from PIL import Image as PILImage
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from infill_aug.cache.reader import InfillReader
from infill_aug.cache.store import InfillStore
from infill_aug.confidence.sources import protect_labelled
from infill_aug.functional.composite import composite, vary_in_eight_bits
from infill_aug.functional.masks import feather_mask, threshold_mask
from infill_aug.samples import to_uint8_image
from infill_aug.threshold import ThresholdState


class InfillTransform(v2.Transform):
    """Replaces what does not matter in an image with a stored infill: put it first in a ``v2.Compose``.

    The image is found in the store by its pixels, so nothing else of a script changes. Everything happens in the
    worker, one sample at a time; ``InfillDataset`` with ``InfillAugment`` does the same on the device, in batches.

    Convention:
        * PIL in, PIL out; ``uint8`` tensor in, ``uint8`` tensor out; kept pixels are those of the input, bit for bit
        * randomness from torch's global generator
        * a ``ThresholdState`` is shared memory: workers see its changes at once, samples already prefetched do not

    Args:
        store: an ``InfillStore`` or the folder of one.
        threshold: 0..1, higher masks more, or a ``ThresholdState`` that training moves.
        mode: ``"quantile"`` or ``"absolute"``; a ``ThresholdState`` brings its own.
        p: probability that an image is changed at all.
        feather: width in pixels of the soft rim, on the masked side.
        variation: module ``(infill, mask) -> infill`` on ``(1, 3, H, W)`` floating point in 0..1.
        protect: ``"boxes"`` or ``"masks"``: labelled objects among the inputs that are never regenerated.
        recipe: fingerprint of the recipe to read; by default the one that was built last.
        on_miss: ``"error"``, or ``"original"`` to leave images without infill as they are.

    Raises:
        FileNotFoundError: no store there.
        ValueError: an argument out of range.

    Example:
        >>> import tempfile, torch
        >>> from infill_aug.cache.build import build_cache
        >>> picture, folder = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8), tempfile.mkdtemp()
        >>> report = build_cache([(picture, 0)], folder, profile="centre_prior", progress=False)
        >>> transform = v2.Compose([InfillTransform(folder, threshold=0.5), v2.RandomHorizontalFlip()])
        >>> transform(picture).shape
        torch.Size([3, 16, 16])
    """

    def __init__(
        self,
        store: InfillStore | str | PathLike[str],
        *,
        threshold: float | ThresholdState = 0.5,
        mode: str = "quantile",
        p: float = 0.5,
        feather: int = 2,
        variation: Callable[[Tensor, Tensor], Tensor] | None = None,
        protect: str | None = None,
        recipe: str | None = None,
        on_miss: str = "error",
    ) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p must lie in 0..1, got {p}")
        if feather < 0:
            raise ValueError(f"feather must be 0 pixels or more, got {feather}")
        self.reader = InfillReader(store, recipe=recipe, threshold=threshold, on_miss=on_miss)
        self.threshold, self.mode, self.p, self.feather = threshold, mode, p, feather
        self.variation, self.protect = variation, protect

    def check_inputs(self, flat_inputs: list[Any]) -> None:
        """Raise a ``ValueError`` where more than one image is among the inputs."""
        images = [leaf for leaf in flat_inputs if isinstance(leaf, PILImage.Image | tv_tensors.Image)]
        if len(images) > 1:
            raise ValueError(
                f"InfillTransform needs exactly one image in a sample, got {len(images)}; "
                "wrap masks as tv_tensors.Mask, or pass the image alone"
            )

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw whether this sample is changed, and read its infill."""
        if self.p < 1 and float(torch.rand(())) >= self.p:
            return {}
        image = to_uint8_image(next(leaf for leaf in flat_inputs if _is_image(leaf)))
        infill, confidence = self.reader.read(image)
        if self.protect:
            confidence = protect_labelled(confidence, flat_inputs, self.protect)
        state = self.threshold
        value, mode = (state.threshold, state.mode) if isinstance(state, ThresholdState) else (state, self.mode)
        mask = threshold_mask(confidence[None], value, mode=mode, protect_above=self.reader.recipe.protect_above)
        if self.variation is not None:
            with torch.no_grad():
                infill = vary_in_eight_bits(infill[None], mask, self.variation)[0]
        soft = feather_mask(mask, self.feather) if self.feather else mask
        return {"result": composite(image[None], infill[None], soft)[0]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """The image with its infill, in the type that it came in."""
        if not params or not _is_image(inpt):
            return inpt
        result = params["result"]
        if isinstance(inpt, PILImage.Image):
            return F.to_pil_image(result)
        if inpt.is_floating_point():
            result = F.to_dtype(result, inpt.dtype, scale=True)
        return tv_tensors.wrap(result, like=inpt) if isinstance(inpt, tv_tensors.TVTensor) else result


def _is_image(leaf: Any) -> bool:
    plain = isinstance(leaf, Tensor) and not isinstance(leaf, tv_tensors.TVTensor)
    return plain or isinstance(leaf, PILImage.Image | tv_tensors.Image)
