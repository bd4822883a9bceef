"""Fills from a diffusion model that makes whole pictures and was never taught to fill: RePaint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as nnf
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

# Times that a step is made before the next one. Lugmayr et al. make 250 steps ten times; with few and long steps the
# third visit still brings the hole nearer to its surroundings, and a fourth one hardly does.
_VISITS = 3
# Share of the picture in the noise to begin with. Below it a network's small errors are large in the picture.
_FAINTEST = 1e-2
_PREDICTIONS = ("epsilon", "sample", "v_prediction")


class RePaint:
    """Fills holes by an unconditional diffusion model on pixels, after RePaint (Lugmayr et al., 2022).

    Before each step the visible pixels are pasted with the noise of that step, and each step is undone and made
    again, so that the hole follows its surroundings. Called like ``InfillPipeline``.

    Args:
        unet: gives and takes ``(B, 3, H, W)``, without classes.
        scheduler: the model's own, with betas: its noise schedule and its kind of prediction are used.

    Raises:
        ValueError: a network with other channels, with classes or of no size; another kind of prediction.

    Example:
        >>> unet = UNet2DModel(16, block_out_channels=(8, 8), norm_num_groups=4, down_block_types=("DownBlock2D",) * 2,
        ...                    up_block_types=("UpBlock2D",) * 2)
        >>> hole = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
        >>> hole[..., 4:8] = True
        >>> RePaint(unet, DDPMScheduler())(torch.rand(1, 3, 16, 16), hole, [torch.Generator().manual_seed(0)]).shape
        torch.Size([1, 3, 16, 16])
    """

    # Never trained on holes: what a donor lacks it only adds with much noise.
    strength = unaided = 1.0
    # Pictures are enlarged to whole cells of the network here, whatever the size.
    cell = 16

    def __init__(self, unet: UNet2DModel, scheduler: DDPMScheduler) -> None:
        config = unet.config
        if (config.in_channels, config.out_channels) != (3, 3):
            raise ValueError(
                f"the network takes {config.in_channels} and gives {config.out_channels} channels; only 3 and 3 are "
                "allowed: RGB in, RGB out."
            )
        if config.class_embed_type is not None or config.num_class_embeds is not None:
            raise ValueError("the network wants a class for each picture; only models without classes are allowed.")
        if config.sample_size is None:
            raise ValueError("the network's config has no sample_size; write its side in pixels there.")
        prediction = scheduler.config.prediction_type
        if prediction not in _PREDICTIONS:
            raise ValueError(f"prediction_type must be one of {_PREDICTIONS}, got {prediction!r}.")
        self.unet = unet
        # Long steps leave the range of pictures unless they are clipped; the larger variances are for many steps.
        self.scheduler = DDPMScheduler.from_config(scheduler.config, clip_sample=True, variance_type="fixed_small")

    @property
    def size(self) -> int:
        """Side in pixels of the square that the network was trained on; the shorter one of a rectangle."""
        side = self.unet.config.sample_size
        return int(side if isinstance(side, int) else min(side))

    @torch.no_grad()
    def __call__(
        self,
        image: Tensor,
        mask: Tensor,
        generators: Sequence[torch.Generator],
        *,
        steps: int = 4,
        start: Tensor | None = None,
        strength: float = 1.0,
    ) -> Tensor:
        """Fill the holes of a batch.

        Args:
            image: ``(B, 3, H, W)`` floating point in 0..1, of any size.
            mask: ``(B, 1, H, W)`` bool; true = fill.
            generators: one on the CPU for each sample: the only source of randomness.
            steps: steps at full strength, 1 or more; the network runs three times for each.
            start: ``(B, 3, H, W)`` in 0..1, a picture to begin with instead of noise.
            strength: 0..1: share of the timesteps at which ``start`` is turned into noise, and of the
                steps that follow.

        Returns:
            ``(B, 3, H, W)`` float32 in 0..1; visible pixels unchanged.
        """
        scheduler = self.scheduler
        scheduler.set_timesteps(timesteps=_times(scheduler.alphas_cumprod, 1.0 if start is None else strength, steps))
        known, hole = self._whole(image.float() * 2 - 1), self._whole(mask)

        def noise() -> Tensor:
            return randn_tensor(known.shape, generator=list(generators), device=known.device, dtype=known.dtype)

        state = noise()
        if start is not None:
            state = scheduler.add_noise(self._whole(start.float() * 2 - 1), state, scheduler.timesteps[0])
        for time in scheduler.timesteps:
            below = int(scheduler.previous_timestep(time))
            share = scheduler.alphas_cumprod[time] / (scheduler.alphas_cumprod[below] if below >= 0 else 1)
            for left in reversed(range(_VISITS)):
                state = torch.where(hole, state, scheduler.add_noise(known, noise(), time))
                guess = self.unet(state, time).sample
                state = scheduler.step(guess, time, state, generator=list(generators)).prev_sample
                if left:
                    state = share.sqrt() * state + (1 - share).sqrt() * noise()
        fill = (state[..., : image.shape[-2], : image.shape[-1]] / 2 + 0.5).clamp(0, 1)
        return torch.where(mask, fill, image.float())

    def _whole(self, image: Tensor) -> Tensor:
        """Enlarged to whole cells of the network, down and to the right: a mask by holes, a picture by its edge."""
        cell = 2 ** (len(self.unet.config.block_out_channels) - 1)
        edges = (0, -image.shape[-1] % cell, 0, -image.shape[-2] % cell)
        if image.dtype == torch.bool:
            return nnf.pad(image, edges, value=True)
        return nnf.pad(image, edges, mode="replicate")


def _times(alphas: Tensor, strength: float, steps: int) -> list[int]:
    """Timesteps at even distances, from a share of those that are of use; the last step ends at the clean picture."""
    noisiest = strength * (int((alphas > _FAINTEST).sum()) - 1)
    count = max(1, math.ceil(steps * strength - 1e-6))
    return sorted({round(noisiest * step / count) for step in range(1, count + 1)}, reverse=True)


def load_repaint(folder: Path, device: torch.device | str = "cpu") -> RePaint:
    """A saved ``DDPMPipeline`` or ``DDIMPipeline``, frozen, in float32.

    Args:
        folder: as ``save_pretrained`` wrote it; early ones have all files at the top.
        device: where to.

    Raises:
        OSError: a file is missing.
        ValueError: a scheduler without betas, weights that are missing, or what ``RePaint`` refuses.
    """
    unet, schedule = (folder / part if (folder / part).is_dir() else folder for part in ("unet", "scheduler"))
    config = DDPMScheduler.load_config(schedule)
    if "beta_schedule" not in config:
        raise ValueError(
            f"its scheduler is a {config.get('_class_name')}, which has no betas; allowed are DDPMScheduler, "
            "DDIMScheduler and others with a beta_schedule."
        )
    return RePaint(load_unet(unet, device), DDPMScheduler.from_config(config))


def load_unet(folder: Path, device: torch.device | str = "cpu") -> UNet2DModel:
    """A saved network, frozen, in float32.

    Args:
        folder: as ``save_pretrained`` wrote it.
        device: where to.

    Raises:
        OSError: a file is missing.
        ValueError: weights are missing.
    """
    network, notes = UNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False, output_loading_info=True)
    missing = sorted(notes["missing_keys"])
    if missing:
        raise ValueError(f"weights of its network are missing and would be random: {missing[:4]}.")
    return network.float().to(device).eval().requires_grad_(False)
