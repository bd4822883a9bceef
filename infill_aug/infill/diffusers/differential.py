"""Differential diffusion: a soft mask says for each pixel how much it may change."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from infill_aug.infill.backend import InfillError


def change_of_latents(change: Tensor, latents: Tensor) -> Tensor:
    """Bring a soft mask to the size of latents: a cell may change as much as the pixel in it that may change most.

    So no hidden pixel, which may change altogether, is ever taken for part of the original.

    Args:
        change: ``(B, 1, H, W)`` floating point in 0..1.
        latents: ``(B, C, h, w)``, or ``(B, h * w, C)`` for cells in rows, as Flux and Qwen-Image have them.

    Returns:
        ``(B, 1, h, w)`` or ``(B, h * w, 1)`` float32 on the device of ``latents``.

    Raises:
        ValueError: latents of another form.

    Example:
        >>> change = torch.tensor([[[[0.0, 0.2, 0.0, 0.0], [0.5, 0.1, 0.0, 1.0]]]])
        >>> change_of_latents(change, torch.zeros(1, 4, 1, 2)).tolist()
        [[[[0.5, 1.0]]]]
        >>> change_of_latents(change, torch.zeros(1, 2, 16)).tolist()
        [[[0.5], [1.0]]]
    """
    change = change.to(latents.device, torch.float32)
    height, width = change.shape[-2:]
    if latents.ndim == 4:
        return nnf.adaptive_max_pool2d(change, tuple(latents.shape[-2:]))
    rows = round((latents.shape[1] * height / width) ** 0.5) if latents.ndim == 3 else 0
    if rows < 1 or latents.shape[1] % rows:
        raise ValueError(
            f"latents must be (B, C, h, w), or (B, h * w, C) for a picture of {(height, width)}, got "
            f"{tuple(latents.shape)}"
        )
    return nnf.adaptive_max_pool2d(change, (rows, latents.shape[1] // rows)).flatten(2).mT


def held(change: Tensor, step: int, steps: int) -> Tensor:
    """What is still the original after a step: all that may change less than the share of steps that are to come.

    The first share of the steps sets the layout and the last ones the detail, so that a pixel which may change by 0.3
    is free in the last 30 % of them. E. Levin and O. Fried, Differential Diffusion: Giving Each Pixel Its Strength,
    2023, arXiv 2306.00950, algorithm 1.

    Args:
        change: any shape, 0..1; 0 = never, 1 = from the first step on.
        step: 0 .. ``steps - 1``, the one that was just made.
        steps: how many are made.

    Returns:
        Bool, of the same shape.

    Example:
        >>> change = torch.tensor([0.0, 0.25, 0.5, 1.0])
        >>> [held(change, step, 4).tolist() for step in (0, 2, 3)]
        [[True, True, True, False], [True, True, False, False], [True, False, False, False]]
    """
    return change * steps <= steps - 1 - step


class DifferentialDiffusion:
    """Soft masks for pipelines that blend latents: ``callback_on_step_end`` of a call.

    Args:
        change: ``(B, 1, H, W)`` floating point in 0..1 at the size that the pipeline works at: how much each pixel may
            change. There are as many levels as steps.

    Example:
        >>> soft = DifferentialDiffusion(torch.rand(1, 1, 64, 64))  # doctest: +SKIP
        >>> with soft.watching(pipeline):  # doctest: +SKIP
        ...     pipeline(..., mask_image=(soft.change > 0).float(), callback_on_step_end=soft)
    """

    def __init__(self, change: Tensor) -> None:
        self.change = change
        self._start: tuple[Tensor, Tensor] | None = None  # noise and original, as the pipeline laid them out

    @contextmanager
    def watching(self, pipeline: Any) -> Iterator[None]:
        """Keep the noise and the original's latents that a call of ``pipeline`` prepares: one encoding, one noise.

        Raises:
            ValueError: the pipeline cannot take soft masks; the message says why.
        """
        trouble = soft_mask_trouble(pipeline)
        if trouble:
            raise ValueError(trouble)
        prepare = pipeline.prepare_latents

        def watched(*arguments: Any, **named: Any) -> Any:
            prepared = prepare(*arguments, **named)
            # All give latents, noise, original, ...; but this one family latents, original, ..., noise.
            order = (-1, 1) if type(pipeline).__name__.startswith("FluxKontext") else (1, 2)
            if len(prepared) < 3 or any(prepared[i].shape != prepared[0].shape for i in order):
                raise InfillError(f"{type(pipeline).__name__} does not keep the original's latents; use a hard mask")
            self._start = prepared[order[0]], prepared[order[1]]
            return prepared

        pipeline.prepare_latents = watched
        try:
            yield
        finally:
            del pipeline.prepare_latents  # the class's own shows again
            self._start = None

    def __call__(self, pipeline: Any, step: int, timestep: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Put the original, noised for the next step, where it is still held."""
        if self._start is None:
            raise InfillError("call the pipeline inside of `with soft.watching(pipeline):`")
        latents, (noise, original) = tensors["latents"], self._start
        steps = pipeline.num_timesteps
        if step + 1 < steps:
            scheduler = pipeline.scheduler
            # A strength below 1 leaves out the first entries of the schedule.
            following = scheduler.timesteps[step + 1 - steps].reshape(1)
            if hasattr(scheduler, "scale_noise"):
                original = scheduler.scale_noise(original, following, noise)
            else:
                original = scheduler.add_noise(original, noise, following)
        holding = held(change_of_latents(self.change, latents), step, steps)
        return {"latents": torch.where(holding, original.to(latents.dtype), latents)}


def sees_latents_only(pipeline: Any) -> bool:
    """Whether a pipeline's network is shown nothing but latents, and not the mask or the picture as channels."""
    network = getattr(pipeline, "unet", None)
    if network is None:
        network = getattr(pipeline, "transformer", None)
    config = getattr(network, "config", {})
    seen = config.get("in_channels")
    if seen is None:
        return False
    drawn, patch = config.get("out_channels") or seen, config.get("patch_size")
    # Some count the channels of a whole patch at one end only.
    return bool(seen == drawn or (isinstance(patch, int) and seen == drawn * patch**2))


def soft_mask_trouble(pipeline: Any) -> str | None:
    """Why a pipeline cannot take soft masks, or ``None`` where it can."""
    name = type(pipeline).__name__
    advice = (
        "cut the mask at 0.5, or use a model that blends latents, such as plain Stable Diffusion, SDXL, SD3 or Flux"
    )
    parameters = inspect.signature(pipeline.__call__).parameters
    if not sees_latents_only(pipeline):
        return f"{name}: this model sees the mask as input channels, which it knows with 0 and 1 only; {advice}"
    if "mask_image" not in parameters:
        return f"{name} takes no mask, and so no soft one; {advice}"
    if "callback_on_step_end" not in parameters or "latents" not in getattr(pipeline, "_callback_tensor_inputs", ()):
        return f"{name} lets nothing in between its steps; {advice}"
    return None
