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

from infill_aug.infill.repaint import RePaint, load_repaint, load_unet

# Standard deviation of pictures in -1..1.
_SPREAD = 0.5
# Variance of what a network may change where there is no noise: a donor's rim and light.
_MEND = 0.3
# Mean fine structure, of pictures in -1..1, at which half of a network's change is taken over.
_STRUCTURE = 0.04


class InfillPipeline(DiffusionPipeline):
    """Fills holes at the network's own resolution; saved and loaded as every pipeline of diffusers.

    The network sees the visible pixels, the noisy hole and the mask, scaled as by Karras et al. (2022), section 5;
    noise is added to the clean picture again for the next step, as latent consistency models do (Luo et al., 2023).

    Args:
        unet: takes ``(B, 4 * p * p, S / p, S / p)``, gives ``(B, 3 * p * p, S / p, S / p)`` for patches of p pixels.
        scheduler: its noise schedule and timesteps are used.

    Example:
        >>> pipeline = new_infiller(size=16, channels=(8, 8))
        >>> hole = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
        >>> hole[..., 4:8] = True
        >>> pipeline(torch.rand(1, 3, 16, 16), hole, [torch.Generator().manual_seed(0)]).shape
        torch.Size([1, 3, 16, 16])
    """

    # Best with a donor to start from: it was trained to mend one as it is.
    strength = 0.0
    # A smooth continuation has no detail to keep, and noise becomes some.
    unaided = 0.1

    def __init__(self, unet: UNet2DModel, scheduler: LCMScheduler) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @property
    def size(self) -> int:
        """Side in pixels of the square that the network was trained on."""
        return int(self.unet.config.sample_size) * patch_of(self.unet)

    @property
    def cell(self) -> int:
        """Sides that the network takes are multiples of this many pixels."""
        return patch_of(self.unet) * 2 ** (len(self.unet.config.block_out_channels) - 1)

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
            strength: 0..1: share of the timesteps at which ``start`` is turned into noise, and of the
                steps that follow; at 0 ``start`` is mended, and stays as it is where it is smooth.

        Returns:
            ``(B, 3, H, W)`` float32 in 0..1; visible pixels unchanged.
        """
        known = image.float() * 2 - 1
        first, clean = (1.0, torch.zeros_like(known)) if start is None else (strength, start.float() * 2 - 1)
        for time in _times(first, max(1, math.ceil(steps * first - 1e-6)), self.scheduler.config.num_train_timesteps):
            times = torch.full((len(known),), time, device=known.device)
            alpha = self.scheduler.alphas_cumprod[time].expand(len(known)).to(known)
            state = self.scheduler.add_noise(clean, _noise(known, generators), times)
            clean = predict(self.unet, state, known, mask, times, alpha)
        if start is not None and strength == 0:
            clean = mended(start.float() * 2 - 1, clean)
        return torch.where(mask, (clean / 2 + 0.5).clamp(0, 1), image.float())


def new_infiller(size: int = 64, patch: int = 2, channels: Sequence[int] = (24, 48, 96, 144)) -> InfillPipeline:
    """An untrained pipeline.

    Args:
        size: side in pixels of the pictures to train on.
        patch: side of the patches that the network works on.
        channels: of each level; attention at the last.

    Example:
        >>> pipeline = new_infiller(size=16, channels=(8, 8))
        >>> pipeline.size, patch_of(pipeline.unet)
        (16, 2)
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
    # Begins by changing nothing, so that a donor is as good as it was from the first step on.
    for parameter in unet.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    scheduler = LCMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample=False)
    return InfillPipeline(unet, scheduler)


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
    return alpha.sqrt() * (_SPREAD / scale) ** 2 * state + _SPREAD * (1 - alpha + _MEND).sqrt() / scale * change


def mended(start: Tensor, clean: Tensor) -> Tensor:
    """A start with the network's change where there is fine structure for it to hide in.

    In a clear sky a network of this size would print its grid.

    Args:
        start: ``(B, 3, H, W)`` in -1..1.
        clean: ``(B, 3, H, W)``, what the network made of it.

    Example:
        >>> smooth = torch.zeros(1, 3, 16, 16)
        >>> bool((mended(smooth, smooth + 0.1) == smooth).all())
        True
    """
    fine = (start - _mean(start, 3)).abs().mean(dim=1, keepdim=True)
    around = _mean(fine, 7)
    return start + around / (around + _STRUCTURE) * (clean - start)


def _mean(image: Tensor, side: int) -> Tensor:
    edge = side // 2
    return nnf.avg_pool2d(nnf.pad(image, (edge, edge, edge, edge), mode="reflect"), side, stride=1)


def _times(strength: float, steps: int, count: int) -> list[int]:
    """Evenly spaced timesteps, from ``strength`` of all of them down towards the clean picture."""
    return [max(0, round(strength * (1 - step / steps) * count) - 1) for step in range(steps)]


def _noise(like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Noise from each sample's own generator, drawn on the CPU so that every device gets the same."""
    return torch.stack([torch.randn(like.shape[1:], generator=g) for g in generators]).to(like.device)


def load_infiller(folder: str | Path, device: torch.device | str = "cpu") -> InfillPipeline | RePaint:
    """A saved pipeline, frozen, in float32, whatever precision it was saved in.

    Args:
        folder: as ``save_pretrained`` wrote it: an ``InfillPipeline``; or a ``DDPMPipeline`` or ``DDIMPipeline`` on
            pixels without classes, which comes as ``RePaint``.
        device: where to.

    Raises:
        OSError: no such folder, or a file is missing.
        ValueError: another kind of pipeline, or of its parts; weights are missing.
    """
    folder = Path(folder)
    if not (folder / "model_index.json").is_file():
        raise OSError(f"no model_index.json in {str(folder)!r}.")
    kind = json.loads((folder / "model_index.json").read_text()).get("_class_name")
    if kind in ("DDPMPipeline", "DDIMPipeline"):
        return load_repaint(folder, device)
    if kind != InfillPipeline.__name__:
        raise ValueError(
            f"{str(folder)!r} is a {kind}, not an {InfillPipeline.__name__}, DDPMPipeline or DDIMPipeline."
        )
    # Part by part: the pipeline's own loader shows a progress bar for two files.
    unet = load_unet(folder / "unet", device)
    scheduler = LCMScheduler.from_pretrained(folder / "scheduler")
    return InfillPipeline(unet, scheduler)
