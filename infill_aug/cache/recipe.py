"""Everything that a build was asked for, as declared values: what keys and resumption rest on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from infill_aug.key import digest, image_digest

# Raised whenever the same request would be read or generated differently by this package's own code.
_VERSION = 1


@dataclass(frozen=True)
class Recipe:
    """What a store's infills were generated for.

    Args:
        source: configuration of the confidence source.
        levels: rising thresholds that one infill each was generated for.
        mode: how thresholds are read, ``"quantile"`` or ``"absolute"``.
        protect_above: confidence above which nothing is ever masked.
        clean: radius of specks removed from the masks.
        protect: ``"boxes"``, ``"masks"`` or ``None``.
        descriptor: the task descriptor's fields.
        backend: name of the backend, for people.
        fingerprint_of_backend: the model configuration's fingerprint.
        variants: fills of each mask.
        checks: gate, retries and fallback of the build; empty where there were none.

    Example:
        >>> recipe = Recipe({"source": "CentreConfidence"}, (0.5, 1.0), "quantile", 0.95, 0, None, {}, "noise", "", 2)
        >>> Recipe.from_dict(recipe.to_dict()) == recipe
        True
    """

    source: Mapping[str, Any]
    levels: tuple[float, ...]
    mode: str
    protect_above: float
    clean: int
    protect: str | None
    descriptor: Mapping[str, Any]
    backend: str
    fingerprint_of_backend: str
    variants: int
    checks: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values; without checks there is no word of them, so that older stores stay valid."""
        data = {**self.__dict__, "levels": list(self.levels), "version": _VERSION}
        return data if self.checks else {name: value for name, value in data.items() if name != "checks"}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Read a recipe back.

        Raises:
            ValueError: it was written by another version of this package.
        """
        fields = dict(data)
        version = fields.pop("version", None)
        if version != _VERSION:
            raise ValueError(
                f"the recipe has version {version}, this package reads {_VERSION}; build the store again, "
                "or use the version of infill_aug that built it"
            )
        return cls(**{**fields, "levels": tuple(fields["levels"])})

    def fingerprint(self) -> str:
        """32 hex digits that change with every field."""
        return digest(self.to_dict())


def entry_key(recipe: str, image: str) -> str:
    """Key of the entry that lists an image's map and infills under one recipe."""
    return digest(["entry", recipe, image])


def map_key(confidence: Tensor) -> str:
    """Key of a confidence map: its own content, so that equal maps are stored once."""
    return digest(["map", image_digest(confidence)])


def score_key(source: Mapping[str, Any], image: str, prompt: Any = None) -> str:
    """Key of the note that says which map a network gave an image: the network, the image, and what prompted it."""
    return digest(["score", _VERSION, dict(source), image, prompt])


def infill_key(
    image: str,
    mask: str,
    backend: str,
    descriptor: Mapping[str, Any],
    variant: int,
    label: object = None,
    gate: Mapping[str, Any] | None = None,
) -> str:
    """Key of one infill: everything that changes its pixels, and nothing else.

    The level is not part of it: two levels that give one mask share one infill. Of the checks only the gate is: with
    more retries or another fallback, what passed stays as it is.
    """
    request = {
        "image": image,
        "mask": mask,
        "backend": backend,
        "descriptor": dict(descriptor),
        "variant": variant,
        "label": None if label is None else str(label),
        **({"gate": dict(gate)} if gate else {}),
    }
    return digest(["infill", _VERSION, request])
