"""What the task is and how its background is to be filled, as JSON."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Complexity = Literal["low", "medium", "high"]
COMPLEXITIES = ("low", "medium", "high")


@dataclass(frozen=True)
class TaskDescriptor:
    """What the task is, what its object is, and how to fill what is not the object.

    Args:
        task: name of the task, for people and for the cache, for example ``"hair_color_classification"``.
        object: what the task looks at, for example ``"hair"``; backends that read text keep it out of the fill.
        style: look of the fill, for example ``"photorealistic"``.
        complexity: ``"low"``, ``"medium"`` or ``"high"``: how much effort and detail goes into the fill.
        seed: 0 or more; another seed gives other fills.
        prompt: text for the backend instead of the one it would make itself.
        negative_prompt: text of what must not be drawn, instead of the backend's own.
        backend: name of the backend that this task wants; the caller's choice wins.
        options: backend options by name, JSON values only; they win over what the backend derives.

    Raises:
        ValueError: an unknown field, a wrong type or a wrong value; the message names it.

    Example:
        >>> TaskDescriptor.from_json('{"task": "hair_color", "object": "hair", "seed": 12345}').style
        'photorealistic'
    """

    task: str
    object: str
    style: str = "photorealistic"
    complexity: Complexity = "medium"
    seed: int = 0
    prompt: str | None = None
    negative_prompt: str | None = None
    backend: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("task", "object", "style"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"descriptor field {name!r} must be a non-empty string, got {value!r}")
        if self.complexity not in COMPLEXITIES:
            raise ValueError(f"descriptor field 'complexity' must be one of {COMPLEXITIES}, got {self.complexity!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"descriptor field 'seed' must be an integer of 0 or more, got {self.seed!r}")
        for name in ("prompt", "negative_prompt", "backend"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise ValueError(f"descriptor field {name!r} must be a string or null, got {value!r}")
        if not isinstance(self.options, Mapping) or not all(isinstance(key, str) for key in self.options):
            raise ValueError(f"descriptor field 'options' must be an object with string keys, got {self.options!r}")
        try:
            # A private copy: nobody can change what the fingerprint stands for behind its back.
            frozen = json.loads(json.dumps(dict(self.options), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"descriptor field 'options' must hold JSON values only: {error}") from error
        object.__setattr__(self, "options", frozen)

    @classmethod
    def from_json(cls, source: str | Path | Mapping[str, Any]) -> TaskDescriptor:
        """Read a descriptor from JSON text, a path to a JSON file, or a mapping.

        Args:
            source: text that begins with ``{``, a path, or a mapping.

        Raises:
            FileNotFoundError: the path does not exist.
            ValueError: no JSON object, or a field that is unknown, missing or wrong.
        """
        data: Any = source
        if not isinstance(source, Mapping):
            text = str(source)
            if not text.lstrip().startswith("{"):
                try:
                    text = Path(text).read_text(encoding="utf-8")
                except OSError as error:  # also a text too long to be a path
                    raise FileNotFoundError(
                        f"no descriptor file at {text[:80]!r}; pass a path, a mapping, or JSON text with its braces"
                    ) from error
            try:
                data = json.loads(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"the descriptor is not valid JSON: {error}") from error
            if not isinstance(data, dict):
                raise ValueError(f"the descriptor must be a JSON object, got {type(data).__name__}")
        fields = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(str(key) for key in data if key not in fields)
        if unknown:
            raise ValueError(f"unknown descriptor fields {unknown}; allowed: {sorted(fields)}")
        missing = [name for name in ("task", "object") if name not in data]
        if missing:
            raise ValueError(f"missing descriptor fields {missing}; required: ['task', 'object']")
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """All fields that say something, as plain JSON values."""
        data = {f.name: copy.deepcopy(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {key: value for key, value in data.items() if value is not None and value != {}}

    def to_json(self) -> str:
        """The descriptor as JSON text that ``from_json`` reads back to an equal descriptor."""
        return json.dumps(self.to_dict(), indent=2)
