"""Where fills come from: one interface, one file per backend."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from infill_aug.descriptor import TaskDescriptor
from infill_aug.infill.backend import BackendUnavailableError as BackendUnavailableError
from infill_aug.infill.backend import InfillBackend as InfillBackend
from infill_aug.infill.backend import InfillError as InfillError
from infill_aug.infill.backend import ModelConfig as ModelConfig
from infill_aug.infill.backend import PartialInfillError as PartialInfillError
from infill_aug.infill.backend import SampleContext as SampleContext
from infill_aug.infill.backend import contexts_of as contexts_of

# Paths, not classes: a backend's libraries are loaded when it is, and not before.
_BACKENDS = {
    "diffusers": "infill_aug.infill.diffusers.backend:DiffusersBackend",
    "diffusion": "infill_aug.infill.diffusion:DiffusionBackend",
    "donor": "infill_aug.infill.donor:DonorBackend",
    "gan": "infill_aug.infill.gan:GANBackend",
    "http": "infill_aug.infill.cloud.http:HTTPBackend",
    "huggingface": "infill_aug.infill.cloud.huggingface:HuggingFaceBackend",
    "mae": "infill_aug.infill.mae:MAEBackend",
    "noise": "infill_aug.infill.noise:NoiseBackend",
    "openai": "infill_aug.infill.cloud.openai:OpenAIBackend",
    "push_pull": "infill_aug.infill.push_pull:PushPullBackend",
    "telea": "infill_aug.infill.telea:TeleaBackend",
}


def list_backends() -> list[str]:
    """Names of the backends that ship with the package.

    Example:
        >>> list_backends()[:4]
        ['diffusers', 'diffusion', 'donor', 'gan']
    """
    return sorted(_BACKENDS)


def load_backend(name: str, **options: Any) -> InfillBackend:
    """Make a backend by name.

    Args:
        name: one of ``list_backends()``, or ``"package.module:Class"`` for your own.
        options: that backend's arguments.

    Raises:
        ImportError: a library that the backend needs is missing; the message says what to install.
        ValueError: an unknown name, or options that the backend does not have.

    Example:
        >>> load_backend("push_pull").name
        'push_pull'
    """
    path = _BACKENDS.get(name, name)
    module, _, attribute = path.partition(":")
    if not attribute:
        raise ValueError(
            f"unknown backend {name!r}; there are {list_backends()}, or 'package.module:Class' for your own"
        )
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except AttributeError:
        raise ValueError(f"module {module!r} has no class {attribute!r}") from None
    if not (inspect.isclass(cls) and issubclass(cls, InfillBackend)):
        raise ValueError(f"{name!r} is no InfillBackend but {cls!r}; a backend is a subclass of InfillBackend")
    try:
        inspect.signature(cls).bind(**options)
    except TypeError as error:
        allowed = list(inspect.signature(cls).parameters)
        raise ValueError(f"backend {name!r}: {error}; its options are {allowed}") from None
    return cls(**options)


def choose_backend(
    backend: InfillBackend | str | None, descriptor: TaskDescriptor | None = None, **options: Any
) -> InfillBackend:
    """The backend that is to fill: the caller's choice, else the descriptor's, else push-pull.

    Args:
        backend: a backend, its name, or ``None``.
        descriptor: task descriptor, if there is one.
        options: arguments of a backend that is made by its name.

    Raises:
        ImportError: a library that the backend needs is missing.
        ValueError: an unknown name, or options that the backend does not have.

    Example:
        >>> from infill_aug.descriptor import TaskDescriptor
        >>> choose_backend(None, TaskDescriptor("pets", "cat", backend="noise")).name, choose_backend(None).name
        ('noise', 'push_pull')
    """
    if isinstance(backend, InfillBackend):
        return backend
    return load_backend(backend or (descriptor.backend if descriptor else None) or "push_pull", **options)
