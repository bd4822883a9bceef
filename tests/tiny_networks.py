"""Checkpoints small enough to make in a test: real files of the libraries, with random weights."""

import warnings

import torch
from torch import nn


def tiny_vitmae(folder, seed=0, steps=0, draw=None, **config):
    """A ViTMAE checkpoint for pictures of 32 pixels, 16 patches; trained for some steps on what ``draw(count)`` gives.

    The global random state stays as it is.
    """
    from transformers import ViTMAEConfig, ViTMAEForPreTraining
    from transformers import logging as hf_logging

    small = {
        "image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2, "decoder_intermediate_size": 64, "initializer_range": 0.15,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ViTMAEForPreTraining(ViTMAEConfig(**{**small, **config}))
        # transformers 5 leaves the positions of new decoders at 0, where hidden patches can't be told apart.
        model.decoder.initialize_weights(model.vit.embeddings.patch_embeddings.num_patches)
        optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
        schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1, 0.05, max(1, steps))
        for _ in range(steps):
            loss = model(pixel_values=(draw(16) - mean) / std).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    hf_logging.disable_progress_bar()  # it would draw on the screen of every test
    model.save_pretrained(folder)
    return str(folder)


class TinyInpainter(nn.Module):
    """The mean of the visible pixels with some texture, called like LaMa; the right answer is known by hand."""

    def __init__(self, strength: float = 0.1, scale: float = 1.0) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(strength))
        self.scale = scale

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        visible = 1 - mask
        mean = (image * visible).sum(dim=(2, 3), keepdim=True) / visible.sum(dim=(2, 3), keepdim=True).clamp(min=1)
        rows = torch.arange(image.shape[2], device=image.device).float()
        columns = torch.arange(image.shape[3], device=image.device).float()
        texture = torch.sin(rows[:, None] + 2 * columns[None, :]) * self.strength
        return (image * visible + (mean + texture).clamp(0, 1) * mask) * self.scale


def save_script(module, path):
    """A module as a TorchScript file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(module), str(path))
    return str(path)


def tiny_inpainter(path, **options):
    """A TorchScript file of ``TinyInpainter``."""
    return save_script(TinyInpainter(**options), path)


def tiny_exported(path, **options):
    """``TinyInpainter`` as a file of ``torch.export``, for every batch and size."""
    images = torch.rand(2, 3, 16, 24), torch.zeros(2, 1, 16, 24)
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(TinyInpainter(**options), images, dynamic_shapes=(free, free))
    torch.export.save(program, str(path))
    return str(path)


def tiny_infiller(seed=0, channels=(8, 16)):
    """An infiller of 16 pixels with random weights, the last layer's too, which are zero in a new one."""
    from infill_aug.infill.pipeline import new_infiller

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = new_infiller(size=16, channels=channels)
        pipeline.unet.conv_out.reset_parameters()
    return pipeline
