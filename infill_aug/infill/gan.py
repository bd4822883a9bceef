"""Fills from a single pass of an inpainting network that comes as one file, such as LaMa."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from infill_aug.checkpoint import file_digest
from infill_aug.checks import is_integer
from infill_aug.descriptor import TaskDescriptor
from infill_aug.infill.backend import BackendUnavailableError, ModelConfig, SampleContext
from infill_aug.infill.network import NetworkBackend
from infill_aug.infill.visible import resize_visible

# Side in pixels of the picture that a network is tried with.
_TRIAL = 64
_CALL = "network(image (B, 3, H, W) float32 in 0..1, mask (B, 1, H, W) float32, 1 = hole) -> (B, 3, H, W)"


class GANBackend(NetworkBackend):
    """One pass of an inpainting network in a TorchScript file, or one of ``torch.export``: fast, deterministic.

    Made for LaMa (Suvorov et al., Resolution-robust Large Mask Inpainting with Fourier Convolutions, WACV 2022), and
    fit for all that is called like it: ``forward(image, mask)`` with the image ``(B, 3, H, W)`` float32 in 0..1, empty
    in the hole, and the mask ``(B, 1, H, W)`` float32, 1 = hole; it returns ``(B, 3, H, W)``. Always in float32.

    A network of fixed size is fed with ``size`` and ``multiple`` both set to that size: pictures are shrunk to it and
    padded. One of fixed batch size 1 needs ``backend.max_batch = 1`` on a GPU.

    Args:
        weights: the file; the name of one of ``torch.export`` ends in ``.pt2``.
        multiple: sides that the network takes are multiples of this many pixels, 1 or more; pictures are mirrored at
            the right and the bottom up to the next one.
        size: larger pictures are shrunk until their longest side has this many pixels; ``None``: as they are.
        scale: 1 where the network returns 0..1, 255 where it returns 0..255.

    Raises:
        BackendUnavailableError: the file is not there, is of another kind, or its network is called otherwise.
        ValueError: an option out of range.

    Example:
        >>> import torch
        >>> backend = GANBackend("big-lama.pt", size=512)
        >>> image, mask = torch.rand(1, 3, 60, 80), torch.zeros(1, 1, 60, 80)
        >>> mask[..., 20:40, 20:40] = 1
        >>> backend.generate_infill(image, mask, TaskDescriptor("demo", "cat")).shape  # doctest: +SKIP
        torch.Size([1, 3, 60, 80])
    """

    name = "gan"
    max_batch = 8

    def __init__(self, weights: str, multiple: int = 8, size: int | None = None, scale: int = 1) -> None:
        super().__init__(multiple=multiple, size=size, scale=scale)
        self.weights = str(weights)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """``multiple`` and ``size`` are whole numbers above 0, ``scale`` is 1 or 255."""
        for name in ("multiple", "size"):
            value = options[name]
            if not is_integer(value, 1) and not (name == "size" and value is None):
                raise ValueError(f"{name} must be a whole number of pixels above 0, got {value!r}")
        if isinstance(options["scale"], bool) or options["scale"] not in (1, 255):
            raise ValueError(f"scale must be 1 or 255, the brightest value of the output, got {options['scale']!r}")

    @cached_property
    def revision(self) -> str:
        """Hash of the file's content."""
        try:
            return file_digest(self.weights)
        except OSError as error:
            raise BackendUnavailableError(
                f"backend 'gan': cannot read weights={self.weights!r}: {error.strerror}. Name a TorchScript file of an "
                "inpainting network, such as LaMa's big-lama.pt; nothing is downloaded."
            ) from error

    def model_config(self, descriptor: TaskDescriptor) -> ModelConfig:
        """Options, and the hash of the file as revision: where it lies doesn't matter."""
        return dataclasses.replace(super().model_config(descriptor), revision=self.revision)

    def load(self, device: torch.device) -> tuple[Any, float]:
        """The network, and the brightest value that it returned for a grey picture.

        Raises:
            BackendUnavailableError: the file holds no network, or one that is called otherwise.
        """
        try:
            network = _read(self.weights, device)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise BackendUnavailableError(
                f"backend 'gan': weights={self.weights!r} cannot be loaded: {_first_line(error)} "
                "It must be a file of torch.jit.save, or one of torch.export.save that ends in .pt2; a state dict "
                "is not enough."
            ) from error
        multiple = self.options["multiple"]
        side = math.ceil(min(_TRIAL, self.options["size"] or _TRIAL) / multiple) * multiple
        image, mask = (torch.full((1, n, side, side), value, device=device) for n, value in ((3, 0.5), (1, 0.0)))
        mask[..., side // 4 : side // 2, side // 4 : side // 2] = 1
        try:
            with torch.no_grad():
                result = _call(network, image * (1 - mask), mask)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise BackendUnavailableError(
                f"backend 'gan': the network of {self.weights!r} failed on a picture of {side} x {side} pixels: "
                f"{_first_line(error)} It must be called as {_CALL}; change multiple={multiple} where it needs "
                "larger pictures or other sides."
            ) from error
        return network, float(result.max())

    def _fill(
        self, network: Any, image: Tensor, mask: Tensor, config: ModelConfig, samples: Sequence[SampleContext]
    ) -> Tensor:
        options = dict(config.options)
        call, brightest = network
        # A wrong scale would store black pictures.
        if (brightest > 2) != (options["scale"] == 255):
            raise BackendUnavailableError(
                f"backend 'gan': scale={options['scale']}, but the network of {self.weights!r} returns values up to "
                f"{brightest:.4g} for a grey picture; set scale={256 - options['scale']}"
            )
        height, width = image.shape[-2:]
        shrink = min(1.0, (options["size"] or math.inf) / max(height, width))
        size = max(1, round(height * shrink)), max(1, round(width * shrink))
        picture, hole = resize_visible(image, mask, size)
        rows, columns = (_mirrored(side, options["multiple"], image.device) for side in size)
        padded, hole = (each[..., rows[:, None], columns] for each in (picture, hole.float()))
        fill = _call(call, padded, hole)[..., : size[0], : size[1]] / options["scale"]
        return fill if size == (height, width) else F.resize(fill, [height, width], antialias=True)


def _read(path: str, device: torch.device) -> Any:
    """The network of a file, on the device."""
    with warnings.catch_warnings():
        # Torch's own business: TorchScript is deprecated, but what published networks come as; a buffer is read-only.
        warnings.filterwarnings("ignore", message=".*torch.jit.load", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)
        if Path(path).suffix == ".pt2":
            from torch.export.passes import move_to_device_pass

            return move_to_device_pass(torch.export.load(path), device).module()
        network = torch.jit.load(path, map_location=device)
    # Float32 whatever the file was saved in: Fourier transforms in half precision fail for sides that are no power of
    # two, and give black pictures where they don't.
    return network.float().eval()


def _call(network: Any, image: Tensor, mask: Tensor) -> Tensor:
    """The network's picture.

    Raises:
        TypeError: it returned something else.
    """
    # Not optimised: the second and third call of a TorchScript network would round differently from the first, and each
    # new size would be compiled again.
    with torch.autocast(image.device.type, enabled=False), torch.jit.optimized_execution(False):
        result = network(image, mask)
    if not isinstance(result, Tensor) or result.shape != image.shape:
        got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise TypeError(f"it returned {got} for a picture of shape {tuple(image.shape)}.")
    return result.float()


def _mirrored(side: int, multiple: int, device: torch.device) -> Tensor:
    """Positions of a side's pixels, mirrored behind its end up to the next multiple."""
    places = torch.arange(math.ceil(side / multiple) * multiple, device=device) % (2 * side)
    return torch.minimum(places, 2 * side - 1 - places)


def _first_line(error: Exception) -> str:
    """What went wrong, without the network's own stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = next((line for line in reversed(lines) if "Error" in line), lines[0] if lines else "")
    return f"{type(error).__name__}: {text.rstrip('.')}."
