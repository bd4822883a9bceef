"""Large networks whose maps are used as they are, or distilled into the small estimator."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from infill_aug.confidence.network import NetworkConfidence

# Paths, not classes: a teacher's libraries are loaded when it is, and not before.
_TEACHERS = {
    "cam": "infill_aug.confidence.teachers.cam:CamConfidence",
    "grabcut": "infill_aug.confidence.teachers.grabcut:GrabCutConfidence",
    "prompted": "infill_aug.confidence.teachers.prompted:PromptedConfidence",
    "saliency": "infill_aug.confidence.teachers.saliency:SaliencyConfidence",
    "semantic": "infill_aug.confidence.teachers.semantic:SemanticConfidence",
    "text": "infill_aug.confidence.teachers.text:TextConfidence",
    "torchvision": "infill_aug.confidence.teachers.torchvision:TorchvisionConfidence",
}


def list_teachers() -> list[str]:
    """Names of the teachers that ship with the package.

    Example:
        >>> list_teachers()
        ['cam', 'grabcut', 'prompted', 'saliency', 'semantic', 'text', 'torchvision']
    """
    return sorted(_TEACHERS)


def load_teacher(name: str, *, class_weights: Mapping[str, float] | None = None, **options: Any) -> NetworkConfidence:
    """Make a teacher by name; its weights are loaded when it first scores a picture.

    Args:
        name: one of ``list_teachers()``, or ``"package.module:Class"`` for your own subclass of ``NetworkConfidence``.
        class_weights: confidence 0..1 by class name (by text for ``"text"``), for teachers that know classes.
        options: that teacher's arguments.

    Raises:
        ImportError: a library that the teacher needs is missing.
        ValueError: an unknown name, options that the teacher does not have or lacks, or class weights for a teacher
            that knows no classes.

    Example:
        >>> load_teacher("torchvision", class_weights={"dog": 1.0, "person": 0.5}, falloff=0.2).config()["falloff"]
        0.2
    """
    module, _, attribute = _TEACHERS.get(name, name).partition(":")
    if not attribute:
        raise ValueError(
            f"unknown teacher {name!r}; there are {list_teachers()}, or 'package.module:Class' for your own"
        )
    cls = getattr(importlib.import_module(module), attribute, None)
    if not (inspect.isclass(cls) and issubclass(cls, NetworkConfidence)):
        raise ValueError(f"{name!r} is no teacher but {cls!r}; a teacher is a subclass of NetworkConfidence")
    allowed = _options(cls)
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise ValueError(f"teacher {name!r} has no options {unknown}; it has {sorted(allowed)}")
    if class_weights:
        if "class_weights" not in allowed:
            raise ValueError(
                f"teacher {name!r} knows no classes, got class_weights for {sorted(class_weights)}; leave them out"
            )
        options["class_weights"] = class_weights
    missing = [key for key, option in allowed.items() if option.default is option.empty and key not in options]
    if missing:
        raise ValueError(f"teacher {name!r} needs the options {missing}; it has {sorted(allowed)}")
    return cls(**options)


def _options(cls: type) -> dict[str, inspect.Parameter]:
    """Arguments of a class, with those of its bases as far as ``**kwargs`` hands them on."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]  # type: ignore[misc]
        named = {p.name: p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        found = named | found
        if len(named) == len(parameters):
            break
    return found
