"""Any inpainting, editing or image-to-image pipeline of diffusers as a backend."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from infill_aug.checkpoint import Checkpoint, file_digest
from infill_aug.checks import is_integer, is_number
from infill_aug.descriptor import TaskDescriptor
from infill_aug.infill.backend import ModelConfig, PartialInfillError, SampleContext
from infill_aug.infill.diffusers.differential import DifferentialDiffusion, soft_mask_trouble
from infill_aug.infill.diffusers.families import call_arguments, family_of, instruction, working_size
from infill_aug.infill.diffusers.levers import compile_parts, remember_pictures, remember_texts, spare_latents
from infill_aug.infill.diffusers.loading import Source, load_pipeline
from infill_aug.infill.diffusers.structure import STRUCTURES
from infill_aug.infill.network import NetworkBackend
from infill_aug.infill.prompts import fill_prompt
from infill_aug.infill.push_pull import push_pull
from infill_aug.infill.visible import resize_visible
from infill_aug.smart_mask.smart_mask import SmartMask

_DTYPES = ("auto", "float32", "float16", "bfloat16")
_FLAG = "the model's safety checker flagged the fill; use another seed or prompt, or safety_checker=False"


class DiffusersBackend(NetworkBackend):
    """Pretrained diffusion models: Stable Diffusion, SDXL, SD3, Flux, Qwen-Image, Z-Image and what else diffusers has.

    The class of the pipeline is found by the model: one that takes a mask where there is one, else one that edits or
    changes pictures. The hole is first filled smoothly, the picture is resized to the model's own size with its aspect
    kept, and the result is resized back.

    Args:
        model: id on the hub, or a folder that ``save_pretrained`` wrote.
        revision: commit, tag or branch on the hub; pin a commit where stores shall outlive updates.
        variant: of the weights' files, such as ``"fp16"``.
        pipeline: name of a pipeline class of diffusers; by default found by the model.
        dtype: ``"auto"`` (half precision on a GPU, float32 on a CPU), ``"float32"``, ``"float16"`` or ``"bfloat16"``.
        lora: adapter that is fused into the weights: id on the hub, a folder, or a ``.safetensors`` file.
        scheduler: ``"lcm"`` for adapters with few steps, or the name of a scheduler class; by default the model's.
        steps: denoising steps that are run, 1 or more; by default by the descriptor's complexity.
        guidance: how closely the prompt is followed, 0 or more; 1 switches it off. By default the model family's.
        strength: above 0 and up to 1, how far the fill departs from a smooth continuation, for pipelines that take it.
        size: side in pixels of the square whose area the model works at; by default the one that it was trained on.
            Qwen-Image-Edit works at 1024 whatever is said here.
        safety_checker: keep the model's own where it has one; pictures that it flags are failures.
        vae: another autoencoder than the model's: id on the hub, or folder; a tiny one such as
            ``"madebyollin/taesd"`` takes a tenth of the time, which is most of it when there are few steps.
        controlnet: ControlNet that makes fills follow what is visible: id on the hub, or folder; for Stable Diffusion,
            SDXL and Flux.
        structure: what the ControlNet is shown: ``"edges"`` of the visible part, ``"depth"`` of the smoothly continued
            picture, or the visible ``"picture"`` itself.
        structure_scale: 0 or more, how closely the ControlNet is followed.
        depth_model: checkpoint of transformers that estimates inverse depth, for ``structure="depth"``.
        max_batch: most pictures in one call, on a GPU.
        offload: keep the parts that are not at work in the main memory, for GPUs that the model does not fit on.
        compile: compile the network and the decoder: minutes at the first picture, faster afterwards.

    Where the model blends latents, a mask may hold values between 0 and 1, which say how much a pixel may change;
    models made for inpainting see the mask, and take 0 and 1 only.

    Raises:
        BackendUnavailableError: the model is not there, or cannot fill; raised by the first fill.
        ImportError: diffusers is not installed; raised by the first fill.
        ValueError: an option out of range.

    Example:
        >>> backend = DiffusersBackend("stable-diffusion-v1-5/stable-diffusion-inpainting", steps=20)
        >>> dict(backend.model_config(TaskDescriptor("demo", "cat", prompt="a beach")).options)["prompt"]
        'a beach'
    """

    name = "diffusers"
    version = 2  # what pipelines without masks did to the whole picture is undone
    remedy = "Where memory is short, use offload=True, or a smaller model."
    stochastic = True
    soft_masks = True

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        variant: str | None = None,
        pipeline: str | None = None,
        dtype: str = "auto",
        lora: str | None = None,
        scheduler: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        strength: float | None = None,
        size: int | None = None,
        safety_checker: bool = True,
        vae: str | None = None,
        controlnet: str | None = None,
        structure: str = "edges",
        structure_scale: float = 0.7,
        depth_model: str = "depth-anything/Depth-Anything-V2-Small-hf",
        max_batch: int = 4,
        offload: bool = False,
        compile: bool = False,  # noqa: A002
    ) -> None:
        if dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {_DTYPES}, got {dtype!r}")
        if not is_integer(max_batch, 1):
            raise ValueError(f"max_batch must be an integer of 1 or more, got {max_batch!r}")
        if structure not in STRUCTURES:
            raise ValueError(f"structure must be one of {STRUCTURES}, got {structure!r}")
        if not is_number(structure_scale, 0):
            raise ValueError(f"structure_scale must be 0 or more, got {structure_scale!r}")
        super().__init__(steps=steps, guidance=guidance, strength=strength, size=size)
        self.source = Source(
            model, revision, variant, pipeline, dtype, lora, scheduler, safety_checker, vae, controlnet, structure,
            float(structure_scale), depth_model,
        )  # fmt: skip
        self.max_batch = max_batch  # type: ignore[misc]
        self.offload = offload
        self.compile = compile
        self._checkpoint = Checkpoint(model, revision)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """``steps`` is 1 or more, ``guidance`` 0 or more, ``strength`` in 0..1, ``size`` 16 or more; or null."""
        steps, guidance, strength, size = (options[name] for name in ("steps", "guidance", "strength", "size"))
        if steps is not None and not is_integer(steps, 1):
            raise ValueError(f"steps must be an integer of 1 or more, or null, got {steps!r}")
        if size is not None and not is_integer(size, 16):
            raise ValueError(f"size must be an integer of 16 or more, or null, got {size!r}")
        if guidance is not None and not is_number(guidance, 0):
            raise ValueError(f"guidance must be a number of 0 or more, or null, got {guidance!r}")
        if strength is not None and not is_number(strength, most=1, above=0):
            raise ValueError(f"strength must lie above 0 and up to 1, or be null, got {strength!r}")

    def model_config(self, descriptor: TaskDescriptor) -> ModelConfig:
        """Options and prompts; the model with its revision, or a hash of the files of its folder. Loads nothing.

        What the options leave open follows from the model and the complexity, which are both part of it.
        """
        config = super().model_config(descriptor)
        prompt, negative = fill_prompt(descriptor)
        source = dataclasses.asdict(self.source)
        for name in ("model", "revision", "safety_checker"):  # the identity has them; a checker changes no fill
            source.pop(name)
        if self.source.controlnet is None:
            source |= dict.fromkeys(("structure", "structure_scale", "depth_model"))
        elif self.source.structure != "depth":
            source["depth_model"] = None
        for name in ("lora", "vae", "controlnet", "depth_model"):
            source[name] = _part_identity(source[name])
        options = {
            **dict(config.options),
            **source,
            "complexity": descriptor.complexity,
            "prompt": prompt,
            "negative_prompt": negative,
            "own_prompt": descriptor.prompt is not None,
        }
        identity = self._checkpoint.identity
        return dataclasses.replace(
            config,
            options=tuple(sorted(options.items())),
            model=identity["checkpoint"],
            revision=identity["revision"] or "",
        )

    def load(self, device: torch.device) -> Any:
        """The pipeline, on the device."""
        pipeline = load_pipeline(self.source, device)
        if self.offload and device.type != "cpu":
            pipeline.enable_model_cpu_offload(device=device)
        else:
            pipeline.to(device)
        remember_texts(pipeline)
        # Two for each picture of a call: itself, and without the hole.
        remember_pictures(pipeline, most=2 * self.max_batch)
        if self.compile:
            compile_parts(pipeline)
        return pipeline

    def check_soft_masks(self, device: torch.device) -> None:
        """A model that sees the mask as channels cannot take soft ones."""
        trouble = soft_mask_trouble(self.network(device))
        if trouble:
            raise ValueError(trouble)

    def _fill(
        self, network: Any, image: Tensor, mask: Tensor, config: ModelConfig, samples: Sequence[SampleContext]
    ) -> Tensor:
        return run_pipeline(network, image, mask, dict(config.options), [sample.seed for sample in samples])


def run_pipeline(
    pipeline: Any, image: Tensor, mask: Tensor, options: Mapping[str, Any], seeds: Sequence[int]
) -> Tensor:
    """Fill a batch with one call of a pipeline.

    Args:
        pipeline: of diffusers, one that takes pictures.
        image: ``(B, 3, H, W)`` float32 in 0..1, 0 where the mask is 1.
        mask: ``(B, 1, H, W)`` bool, true = fill; or float32 in 0..1, how much a pixel may change.
        options: those of ``DiffusersBackend.model_config``.
        seeds: one for each sample.

    Returns:
        ``(B, 3, H, W)`` float32 in 0..1.

    Raises:
        PartialInfillError: the pipeline's safety checker flagged some pictures, and gave black ones instead.
    """
    family = family_of(type(pipeline).__name__)
    if family.pil and len(image) > 1:
        fills = [
            run_pipeline(pipeline, image[i : i + 1], mask[i : i + 1], options, seeds[i : i + 1])
            for i in range(len(image))
        ]
        return torch.cat(fills)
    parameters = inspect.signature(pipeline.__call__).parameters
    side = options["size"] or native_side(pipeline)
    height, width = working_size(image.shape[-2], image.shape[-1], side, size_multiple(pipeline))
    # Pixels next to the hole stay clean; what is half hole is drawn anew.
    picture, _ = resize_visible(image, mask == 1, (height, width))
    hidden = F.resize((mask == 1).float(), [height, width], antialias=True) > 0
    change = F.resize(mask.float(), [height, width], antialias=True).clamp(0, 1).masked_fill(hidden, 1.0)
    hole = (change > 0).float()
    picture = push_pull(picture, hidden).clamp(0, 1)
    arguments = call_arguments(family, parameters, options, _few_steps(pipeline, options), _sees_mask(pipeline))
    count = len(image)
    arguments |= {
        "prompt": [instruction(family, options["prompt"], options["own_prompt"])] * count,
        "negative_prompt": [options["negative_prompt"]] * count,
        "image": _pictures(picture) if family.pil else picture,
        "mask_image": _pictures(hole) if family.pil else hole,
        "height": height,
        "width": width,
        "max_area": height * width,
        "_auto_resize": False,
        # One generator a sample: a shared one would make a picture depend on those before it.
        "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        "output_type": "pt",
        **spare_latents(pipeline, count, height, width),
    }
    if "control_image" in parameters and hasattr(pipeline, "control_pictures"):
        arguments["control_image"] = pipeline.control_pictures(picture, hidden)
        arguments["controlnet_conditioning_scale"] = options["structure_scale"]
    watching: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if mask.dtype != torch.bool:
        soft = DifferentialDiffusion(change)
        arguments["callback_on_step_end"] = soft
        watching = soft.watching(pipeline)
    with watching:
        result = pipeline(**{name: value for name, value in arguments.items() if name in parameters})
    fill = F.resize(result.images.float(), list(image.shape[-2:]), antialias=True).clamp(0, 1)
    if "mask_image" not in parameters:
        # It drew the whole picture anew, and may have moved and coloured all of it.
        started = push_pull(image, mask == 1).clamp(0, 1).to(fill.device)
        fill = SmartMask(whole_hint=True)(started, fill, mask_hint=mask > 0).composite
    flagged = [i for i, flag in enumerate(getattr(result, "nsfw_content_detected", None) or []) if flag]
    if flagged:
        raise PartialInfillError(fill.to(image.device), dict.fromkeys(flagged, _FLAG))
    return fill.to(image.device)


def native_side(pipeline: Any) -> int:
    """Side in pixels of the square that a pipeline's model was trained on; 1024 where its config does not say."""
    unet = getattr(pipeline, "unet", None)
    cells = (
        getattr(unet.config, "sample_size", None)
        if unet is not None
        else getattr(pipeline, "default_sample_size", None)
    )
    if isinstance(cells, list | tuple):
        cells = cells[0]
    return int(cells * pipeline.vae_scale_factor) if cells else 1024


def size_multiple(pipeline: Any) -> int:
    """Sides that a pipeline takes are multiples of this many pixels."""
    factor = int(getattr(pipeline, "vae_scale_factor", 8))
    # Transformers see patches of two cells; most pipelines ask for multiples of 8 whatever their factor is.
    return math.lcm(8, factor if getattr(pipeline, "transformer", None) is None else 2 * factor)


def _few_steps(pipeline: Any, options: Mapping[str, Any]) -> bool:
    """Whether a model was distilled to a few steps: by an adapter for LCM, or as Flux schnell."""
    if options["scheduler"] in ("lcm", "LCMScheduler"):
        return True
    transformer = getattr(pipeline, "transformer", None)
    if transformer is None or type(transformer).__name__ != "FluxTransformer2DModel":
        return False
    return not transformer.config.guidance_embeds


def _sees_mask(pipeline: Any) -> bool:
    """Whether a UNet gets the mask beside the latents: 4 + 4 + 1 channels."""
    unet = getattr(pipeline, "unet", None)
    return unet is not None and unet.config.in_channels == 9


def _pictures(batch: Tensor) -> list[Any]:
    return [F.to_pil_image((each * 255).round().to(torch.uint8).cpu()) for each in batch]


def _part_identity(part: str | None) -> str | None:
    """The id on the hub of an adapter or another part; of files a hash, so that a new one is not taken for an older."""
    if part is None:
        return None
    return file_digest(part) if Path(part).is_file() else str(Checkpoint(part).identity["checkpoint"])
