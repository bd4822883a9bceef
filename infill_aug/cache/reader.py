"""Reading infills by the content of an image: what datasets and transforms share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike
from typing import NamedTuple

import torch
from torch import Tensor

from infill_aug.cache.codec import decode_infill, decode_map
from infill_aug.cache.recipe import Recipe, entry_key
from infill_aug.cache.store import InfillStore
from infill_aug.key import image_digest
from infill_aug.threshold import ThresholdState

ON_MISS = ("error", "original")


class InfillMissError(LookupError):
    """An image has no infill in the store."""


class StoredInfill(NamedTuple):
    """One infill of an image, and the image's confidence map.

    Args:
        infill: ``(3, H, W)`` ``uint8``: generated where the level's mask was, the image's own pixels elsewhere.
        confidence: ``(1, H, W)`` ``uint8``; full where nothing was generated, so that no step takes an original pixel
            for a fill.
    """

    infill: Tensor
    confidence: Tensor


def _untouched(image: Tensor) -> StoredInfill:
    """A sample that no step changes."""
    return StoredInfill(image, torch.full((1, *image.shape[-2:]), 255, dtype=torch.uint8))


class InfillReader:
    """Finds an image's infills by the image's own content, so that order, subsets and file names do not matter.

    Args:
        store: an ``InfillStore`` or the folder of one.
        recipe: fingerprint of the recipe to read; by default the one that was built last.
        threshold: the threshold in force, 0..1, or a ``ThresholdState``: the narrowest stored level that covers it is
            read. ``None`` reads the widest, which covers every threshold.
        on_miss: ``"error"``, or ``"original"`` to give the image itself with full confidence, which no step changes.

    Raises:
        FileNotFoundError: no store there.
        ValueError: an unknown recipe or ``on_miss``, or a store without a build.

    Example:
        >>> import tempfile, torch
        >>> from infill_aug.cache.build import build_cache
        >>> picture, folder = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8), tempfile.mkdtemp()
        >>> report = build_cache([(picture, 0)], folder, profile="centre_prior", progress=False)
        >>> InfillReader(folder).read(picture).infill.shape
        torch.Size([3, 16, 16])
    """

    def __init__(
        self,
        store: InfillStore | str | PathLike[str],
        *,
        recipe: str | None = None,
        threshold: float | ThresholdState | None = None,
        on_miss: str = "error",
    ) -> None:
        self.store = store if isinstance(store, InfillStore) else InfillStore(store, create=False)
        if on_miss not in ON_MISS:
            raise ValueError(f"on_miss must be one of {ON_MISS}, got {on_miss!r}")
        if isinstance(threshold, int | float) and not 0 <= threshold <= 1:
            raise ValueError(f"threshold must lie in 0..1, got {threshold}")
        built = [name.removeprefix("recipe-") for name in self.store.documents("recipe-")]
        if not built:
            raise ValueError(f"the store at {self.store.path} holds no build yet; run build_cache or infill-aug build")
        if recipe is None:
            recipe = self.store.read_document("latest")["recipe"]
        if recipe not in built:
            raise ValueError(f"the store at {self.store.path} has no recipe {recipe!r}; it has {built}")
        self.recipe = Recipe.from_dict(self.store.read_document(f"recipe-{recipe}"))
        self.fingerprint = recipe
        self.threshold = threshold
        self.on_miss = on_miss

    def read(self, image: Tensor) -> StoredInfill:
        """A random variant at the level in force, drawn from torch's global generator.

        Args:
            image: ``(3, H, W)`` ``uint8``, as it was when the store was built: before any transform.

        Raises:
            InfillMissError: the store has nothing for this image, and ``on_miss`` is ``"error"``.
        """
        entry = self.store.get(entry_key(self.fingerprint, image_digest(image)))
        payload = None
        if entry is not None:
            listed = json.loads(entry)
            payload = self.store.get(listed["map"])
        if payload is None:
            if self.on_miss == "original":
                return _untouched(image)
            raise InfillMissError(
                f"no infill for this image of {tuple(image.shape)} in {self.store.path}: build it with "
                "infill-aug build; put the infill before every other transform, since images are found by their "
                "pixels; or pass on_miss='original' to train on images without infill as they are"
            )
        confidence = decode_map(payload)
        key = self._choose(listed["infills"])
        stored = self.store.get(key) if key else None
        if stored is None:
            return _untouched(image)
        infill, generated = decode_infill(stored, image)
        return StoredInfill(infill, confidence | ~generated)

    def level(self) -> int:
        """Index of the narrowest stored level that covers the threshold in force; the widest where none does."""
        value = self.threshold
        if isinstance(value, ThresholdState):
            value = value.threshold if value.mode == self.recipe.mode else None
        if value is None:
            return len(self.recipe.levels) - 1
        return next((i for i, level in enumerate(self.recipe.levels) if level >= value), len(self.recipe.levels) - 1)

    def _choose(self, infills: Sequence[Sequence[str | None]]) -> str | None:
        """A random variant of the level in force; of a wider or narrower one where all its fills have failed.

        An empty key says that the level masks nothing.
        """
        wanted = self.level()
        for level in sorted(range(len(infills)), key=lambda i: (abs(i - wanted), -i)):
            there = [key for key in infills[level] if key is not None]
            if there:
                return there[int(torch.randint(len(there), ()))]
        return None
