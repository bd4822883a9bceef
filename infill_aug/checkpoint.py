"""Checkpoints of transformers on the hub or in a folder: what they are, without loading them, and loading them."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

# Normalisation of ImageNet, which most published checkpoints were trained with.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Files of a checkpoint folder that its results can depend on.
_CONTENT = {".bin", ".json", ".model", ".pt", ".pth", ".py", ".safetensors", ".txt"}


@dataclass(frozen=True)
class Checkpoint:
    """A model on the Hugging Face hub or in a local folder, of which nothing is read before it is asked for."""

    name: str
    revision: str | None = None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Name and revision; of a folder a hash of its files, so that trained weights are not taken for older ones."""
        if not Path(self.name).is_dir():
            return {"checkpoint": self.name, "revision": self.revision}
        content = hashlib.blake2b(digest_size=16)
        folder = Path(self.name)
        for path in sorted(p for p in folder.rglob("*") if p.suffix in _CONTENT and p.is_file()):
            content.update(f"{path.relative_to(folder).as_posix()}:{file_digest(path)}".encode())
        return {"checkpoint": content.hexdigest(), "revision": None}

    def read(self, auto: str, **options: Any) -> Any:
        """What a class of transformers reads from it, such as ``"AutoConfig"``.

        Raises:
            OSError: it is not there, or there is no network to fetch it.
        """
        revision = {} if self.revision is None else {"revision": self.revision}
        cls = getattr(transformers(), auto)
        try:
            return cls.from_pretrained(self.name, **revision, **options)
        except OSError as error:
            raise OSError(
                f"checkpoint {self.name!r}, revision {self.revision!r}: {error} Where there is no network, name a "
                "folder that holds the checkpoint."
            ) from error

    def model(self, auto: str, device: torch.device, **options: Any) -> Any:
        """Its model, frozen, in float32.

        Raises:
            ValueError: weights of the model are not in the checkpoint, as with a backbone without its head: they would
                be random.
        """

        def load() -> nn.Module:
            model, notes = self.read(auto, output_loading_info=True, **options)
            if notes["missing_keys"]:
                raise ValueError(
                    f"checkpoint {self.name!r} lacks weights of {type(model).__name__}: "
                    f"{sorted(notes['missing_keys'])[:4]}; name a checkpoint that was trained for this task"
                )
            return model

        return frozen(load, device)


def transformers() -> Any:
    """The library; typed ``Any``, since its own types change with every version."""
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise ImportError("transformers is missing: pip install 'infill-aug[teachers]'") from error


def frozen(load: Callable[[], nn.Module], device: torch.device) -> Any:
    """The model that ``load`` makes: on the device, in float32, in evaluation mode, without gradients."""
    # Weights made in inference mode, where the first picture may be scored, could not be used outside of it.
    with torch.inference_mode(False):
        return load().float().to(device).eval().requires_grad_(False)


def file_digest(path: str | Path) -> str:
    """32 hex digits that change with the content of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
