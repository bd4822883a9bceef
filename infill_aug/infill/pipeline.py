"""The small inpainting diffusion model as a pipeline of diffusers: a UNet on patches of pixels, and few steps."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from diffusers import DiffusionPipeline, LCMScheduler, UNet2DModel
from torch import Tensor

# Steps that the scheduler's time is divided into before a few of them are chosen.
_FINE = 50
# Standard deviation of pictures in -1..1.
_SPREAD = 0.5


class InfillPipeline(DiffusionPipeline):
    """Fills holes at the network's own resolution; saved and loaded as every pipeline of diffusers.

    The network sees the visible pixels, the noisy hole and the mask, scaled as by Karras et al. (2022), section 5;
    noise is added to the clean picture again for the next step, as latent consistency models do (Luo et al., 2023).

    Args:
        unet: takes ``(B, 4 * p * p, S / p, S / p)``, gives ``(B, 3 * p * p, S / p, S / p)`` for patches of p pixels.
        scheduler: its noise schedule and timesteps are used.

    Example:
        >>> pipeline = InfillPipeline(*new_infiller(size=16, channels=(8, 8)))
        >>> hole = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
        >>> hole[..., 4:8] = True
        >>> pipeline(torch.rand(1, 3, 16, 16), hole, [torch.Generator().manual_seed(0)]).shape
        torch.Size([1, 3, 16, 16])
    """

    def __init__(self, unet: UNet2DModel, scheduler: LCMScheduler) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @property
    def size(self) -> int:
        """Side in pixels of the square that the network was trained on."""
        return int(self.unet.config.sample_size) * patch_of(self.unet)

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
            image: ``(B, 3, H, W)`` floating point in 0..1, H and W multiples of the network's smallest cell.
            mask: ``(B, 1, H, W)`` bool; true = fill.
            generators: one on the CPU for each sample: the only source of randomness.
            steps: network evaluations at full strength, 1 or more.
            start: ``(B, 3, H, W)`` in 0..1, a picture to begin with instead of noise.
            strength: above 0 and up to 1: how much of ``start`` is turned into noise first; fewer steps follow.

        Returns:
            ``(B, 3, H, W)`` float32 in 0..1; visible pixels unchanged.
        """
        scheduler = self.scheduler
        begin = 0 if start is None else min(steps - 1, steps - math.ceil(steps * strength))
        scheduler.set_timesteps(steps, device=image.device, original_inference_steps=max(_FINE, steps))
        known = image.float() * 2 - 1
        noise = _noise(known, generators)
        if start is None:
            state = noise
        else:
            scheduler.set_begin_index(begin)
            first = scheduler.timesteps[begin : begin + 1].expand(len(known))
            state = scheduler.add_noise(start.float() * 2 - 1, noise, first)
        clean = state
        for time in scheduler.timesteps[begin:]:
            alpha = scheduler.alphas_cumprod[time.cpu()].expand(len(known))
            clean = predict(self.unet, state, known, mask, time.expand(len(known)), alpha.to(known))
            state = _renoised(scheduler, clean, time, generators)
        return torch.where(mask, (clean / 2 + 0.5).clamp(0, 1), image.float())


def new_infiller(
    size: int = 64, patch: int = 2, channels: Sequence[int] = (48, 96, 144, 192)
) -> tuple[UNet2DModel, LCMScheduler]:
    """An untrained network and its scheduler.

    Args:
        size: side in pixels of the pictures to train on.
        patch: side of the patches that the network works on.
        channels: of each level; attention at the last.

    Example:
        >>> unet, scheduler = new_infiller(size=16, channels=(8, 8))
        >>> patch_of(unet), scheduler.config.prediction_type
        (2, 'sample')
    """
    plain = len(channels) - 1
    unet = UNet2DModel(
        sample_size=size // patch,
        in_channels=4 * patch * patch,
        out_channels=3 * patch * patch,
        block_out_channels=tuple(channels),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
        norm_num_groups=8,
        attention_head_dim=8 if channels[-1] < 64 else 32,
    )
    scheduler = LCMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample=False)
    return unet, scheduler


def patch_of(unet: Any) -> int:
    """Side of a network's patches in pixels."""
    return math.isqrt(unet.config.out_channels // 3)


def predict(unet: Any, state: Tensor, known: Tensor, mask: Tensor, times: Tensor, alpha: Tensor) -> Tensor:
    """The clean picture that a network sees in a noisy hole.

    Args:
        unet: the network.
        state: ``(B, 3, H, W)`` in -1..1 and beyond: noisy; looked at in the hole only.
        known: ``(B, 3, H, W)`` in -1..1; looked at outside of the hole only.
        mask: ``(B, 1, H, W)`` bool; true = hole.
        times: ``(B,)`` integer timesteps.
        alpha: ``(B,)`` share of the picture in the state at those times, 0..1 (``alphas_cumprod``).

    Returns:
        ``(B, 3, H, W)``, of use in the hole.
    """
    alpha = alpha[:, None, None, None]
    scale = (alpha * _SPREAD**2 + 1 - alpha).sqrt()
    seen = torch.cat([torch.where(mask, state / scale, known / _SPREAD), mask.to(known.dtype)], dim=1)
    patch = patch_of(unet)
    change = nnf.pixel_shuffle(unet(nnf.pixel_unshuffle(seen, patch), times).sample, patch)
    return alpha.sqrt() * (_SPREAD / scale) ** 2 * state + _SPREAD * (1 - alpha).sqrt() / scale * change


def _renoised(scheduler: Any, clean: Tensor, time: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """The next noisy state; after the last step the clean picture itself."""
    place = int((scheduler.timesteps == time).nonzero()[0])
    if place + 1 == len(scheduler.timesteps):
        return clean
    following = scheduler.timesteps[place + 1 : place + 2].expand(len(clean))
    return scheduler.add_noise(clean, _noise(clean, generators), following)


def _noise(like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Noise from each sample's own generator, drawn on the CPU so that every device gets the same."""
    return torch.stack([torch.randn(like.shape[1:], generator=g) for g in generators]).to(like.device)


def load_infiller(folder: str | Path, device: torch.device | str = "cpu") -> InfillPipeline:
    """A saved pipeline, frozen, in float32, whatever precision it was saved in.

    Args:
        folder: as ``save_pretrained`` wrote it.
        device: where to.

    Raises:
        OSError: no such folder, or a file is missing.
        ValueError: another kind of pipeline.
    """
    folder = Path(folder)
    if not (folder / "model_index.json").is_file():
        raise OSError(f"no model_index.json in {str(folder)!r}.")
    kind = json.loads((folder / "model_index.json").read_text()).get("_class_name")
    if kind != InfillPipeline.__name__:
        raise ValueError(f"{str(folder)!r} is a {kind}, not an {InfillPipeline.__name__}.")
    # Part by part: the pipeline's own loader shows a progress bar for two files.
    unet = UNet2DModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False).float().to(device)
    scheduler = LCMScheduler.from_pretrained(folder / "scheduler")
    return InfillPipeline(unet.eval().requires_grad_(False), scheduler)
