"""How confidence is read for a task: parameters, bundled or from a file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

ThresholdMode = Literal["quantile", "absolute"]
SOURCES = ("mask", "boxes", "points", "centre", "estimator", "teacher")


@dataclass(frozen=True)
class TaskProfile:
    """Where a task's confidence comes from, how it is graded, and how far the threshold may go.

    Args:
        name: name of the profile.
        source: ``"mask"``, ``"boxes"`` or ``"points"`` (labels of those kinds), ``"centre"`` (a centre prior),
            ``"estimator"`` (the small network with ``weights``) or ``"teacher"`` (a large network, ``teacher``).
        source_options: arguments of that source, see ``infill_aug.confidence``.
        falloff: reach of the graded ring around what matters, as a share of ``sqrt(H * W)``, 0..2; 0 is a hard edge.
        threshold: where training starts, 0..1; higher masks more.
        bounds: lowest and highest threshold that the feedback may reach.
        mode: ``"quantile"``: the threshold is the share of pixels to mask; ``"absolute"``: it is a confidence.
        protect_above: confidence, 0..1, above which a pixel is never masked, whatever the threshold.
        clean: radius in pixels of the specks that are removed from a mask; 0 leaves masks as they are.
        description: one line for people.
        weights: of the estimator: name of bundled weights, or path of a ``.safetensors`` file, relative to the
            profile's own file.
        input_size: side in pixels of the square at which the estimator looks at a picture, 32..512, a multiple of 16.
        class_weights: confidence 0..1 of the teacher's classes, by name; classes that are left out do not matter.
        teacher: the large network that the estimator learns from: its ``name``, see ``list_teachers()``, and options.
        edges: how much an edge of the picture holds the ring back, 0 or more; 0 grades by distance alone.

    Raises:
        ValueError: a field that is unknown, of a wrong type or out of range; the message names it.

    Example:
        >>> TaskProfile.load("centre_prior").source
        'centre'
    """

    name: str
    source: str = "centre"
    source_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    falloff: float = 0.2
    threshold: float = 0.5
    bounds: tuple[float, float] = (0.0, 1.0)
    mode: ThresholdMode = "quantile"
    protect_above: float = 0.95
    clean: int = 1
    description: str = ""
    weights: str | None = None
    input_size: int = 112
    class_weights: Mapping[str, float] = field(default_factory=dict, hash=False)
    teacher: Mapping[str, Any] | None = field(default=None, hash=False)
    edges: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"profile field 'name' must be a non-empty string, got {self.name!r}")
        if self.source not in SOURCES:
            raise ValueError(f"profile {self.name!r}: 'source' must be one of {SOURCES}, got {self.source!r}")
        if self.mode not in ("quantile", "absolute"):
            raise ValueError(f"profile {self.name!r}: 'mode' must be 'quantile' or 'absolute', got {self.mode!r}")
        for key in ("source_options", "class_weights", "teacher"):
            value = getattr(self, key)
            if value is None and key == "teacher":
                continue
            if not isinstance(value, Mapping):
                raise ValueError(f"profile {self.name!r}: {key!r} must be a mapping, got {value!r}")
            try:
                # A private copy in plain JSON: a profile reads back from its own file to an equal profile.
                copied = json.loads(json.dumps(dict(value), default=_listed))
            except TypeError as error:
                raise ValueError(f"profile {self.name!r}: {key!r} must hold JSON values only: {error}") from error
            object.__setattr__(self, key, copied)
        self._check_network()
        try:
            low, high = (float(bound) for bound in self.bounds)
        except (TypeError, ValueError):
            raise ValueError(f"profile {self.name!r}: 'bounds' must be two numbers, got {self.bounds!r}") from None
        object.__setattr__(self, "bounds", (low, high))
        if not 0 <= low <= high <= 1:
            raise ValueError(f"profile {self.name!r}: 'bounds' must satisfy 0 <= low <= high <= 1, got {self.bounds}")
        ranges = {"falloff": (0, 2), "edges": (0, 1000), "threshold": (low, high), "protect_above": (0, 1)}
        for key, (least, most) in ranges.items():
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
                raise ValueError(f"profile {self.name!r}: {key!r} must lie in {least}..{most}, got {value!r}")
        if isinstance(self.clean, bool) or not isinstance(self.clean, int) or not 0 <= self.clean <= 64:
            raise ValueError(f"profile {self.name!r}: 'clean' must be an integer in 0..64, got {self.clean!r}")

    def _check_network(self) -> None:
        if self.weights is not None and not (isinstance(self.weights, str) and self.weights):
            raise ValueError(f"profile {self.name!r}: 'weights' must be a name or a path, got {self.weights!r}")
        size = self.input_size
        if isinstance(size, bool) or not isinstance(size, int) or not 32 <= size <= 512 or size % 16:
            raise ValueError(f"profile {self.name!r}: 'input_size' must be a multiple of 16 in 32..512, got {size!r}")
        for name, weight in self.class_weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
                raise ValueError(
                    f"profile {self.name!r}: 'class_weights' must lie in 0..1, got {weight!r} for class {name!r}"
                )
        if self.teacher is not None and not isinstance(self.teacher.get("name"), str):
            raise ValueError(f"profile {self.name!r}: 'teacher' must say its 'name', got {self.teacher!r}")
        if self.source == "teacher" and self.teacher is None:
            raise ValueError(
                f"profile {self.name!r}: source 'teacher' needs the field 'teacher', such as {{name: ...}}"
            )

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any] | TaskProfile) -> TaskProfile:
        """Read a bundled profile by name, or a YAML or JSON file, or a mapping.

        Args:
            source: name (see ``list_profiles``), path ending in .yaml, .yml or .json, or mapping.

        Raises:
            FileNotFoundError: no bundled profile of that name, and no such file.
            ValueError: the file does not parse, or a field is wrong.
        """
        if isinstance(source, TaskProfile):
            return source
        data: Any = source
        if not isinstance(source, Mapping):
            text, where = _read(str(source))
            try:
                data = json.loads(text) if where.endswith(".json") else yaml.safe_load(text)
            except (json.JSONDecodeError, yaml.YAMLError) as error:
                raise ValueError(f"profile {where} does not parse: {error}") from error
            if not isinstance(data, dict):
                raise ValueError(f"profile {where} must be a mapping of fields, got {type(data).__name__}")
            data.setdefault("name", Path(where).stem)
            weights = data.get("weights")
            if isinstance(weights, str) and weights.endswith(".safetensors"):
                data["weights"] = str(Path(where).parent / weights)  # an absolute path stays as it is
        allowed = [f.name for f in dataclasses.fields(cls)]
        unknown = sorted(str(key) for key in data if key not in allowed)
        if unknown:
            raise ValueError(f"unknown profile fields {unknown}; allowed: {allowed}")
        if "name" not in data:
            raise ValueError("missing profile field 'name'")
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values; ``load`` reads them back to an equal profile."""
        data = dataclasses.asdict(self)
        return data | {"bounds": list(self.bounds)}


def list_profiles() -> list[str]:
    """Names of the bundled profiles.

    Example:
        >>> "centre_prior" in list_profiles()
        True
    """
    folder = resources.files("infill_aug") / "profiles"
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _listed(value: Any) -> list[Any]:
    """Sequences that JSON does not know, such as a range or a list of OmegaConf."""
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{value!r} of type {type(value).__name__}")


def _read(source: str) -> tuple[str, str]:
    """Text of a profile and a name for it in messages."""
    if source.endswith((".yaml", ".yml", ".json")):
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"no profile file at {source!r}")
        return path.read_text(encoding="utf-8"), source
    if source not in list_profiles():
        raise FileNotFoundError(
            f"no bundled profile {source!r}; bundled: {list_profiles()}; your own is a path ending in .yaml or .json"
        )
    return (resources.files("infill_aug") / "profiles" / f"{source}.yaml").read_text(encoding="utf-8"), source + ".yaml"
