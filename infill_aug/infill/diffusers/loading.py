"""Loading a pipeline that can fill, from the hub or a folder, with errors that say what to do."""

from __future__ import annotations

import importlib
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from infill_aug.infill.backend import BackendUnavailableError
from infill_aug.infill.diffusers.families import family_of
from infill_aug.infill.diffusers.structure import ControlPictures, controlnet_classes, load_controlnet


@dataclass(frozen=True)
class Source:
    """Where a pipeline comes from, and how it is put together.

    Args:
        model: id on the hub, or a folder.
        revision: commit, tag or branch on the hub.
        variant: of the weights' files, such as ``"fp16"``.
        pipeline: name of the pipeline class; null: by the model.
        dtype: floating point type, or ``"auto"``: half precision on a GPU.
        lora: adapter to fuse into the weights: id on the hub, folder or file.
        scheduler: name of a scheduler class, ``"lcm"`` for short; null: the model's.
        safety_checker: keep the model's own, where it has one.
        vae: another autoencoder than the model's: id on the hub, or folder.
        controlnet: ControlNet that steers the fill: id on the hub, or folder.
        structure: what the ControlNet is shown, one of ``STRUCTURES``.
        structure_scale: how closely the ControlNet is followed.
        depth_model: checkpoint that estimates depth.
    """

    model: str
    revision: str | None = None
    variant: str | None = None
    pipeline: str | None = None
    dtype: str = "auto"
    lora: str | None = None
    scheduler: str | None = None
    safety_checker: bool = True
    vae: str | None = None
    controlnet: str | None = None
    structure: str = "edges"
    structure_scale: float = 0.7
    depth_model: str = "depth-anything/Depth-Anything-V2-Small-hf"


def diffusers() -> Any:
    """The library.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module("diffusers")
    except ImportError as error:
        raise ImportError("backend 'diffusers' needs diffusers: pip install 'infill-aug[diffusers]'") from error


def load_pipeline(source: Source, device: torch.device) -> Any:
    """The pipeline, ready to be called; its weights are on the device or, with offloading, not yet.

    Raises:
        BackendUnavailableError: it cannot be loaded, or cannot fill; the message says what to do.
        ImportError: diffusers is not installed.
    """
    library = diffusers()
    cls, scheduler = pipeline_class(source), _scheduler_class(source)
    absent = _absent_parts(source)
    if absent:
        raise BackendUnavailableError(
            f"folder {source.model!r} cannot be loaded, its parts {absent} are missing; save or download it anew"
        )
    dtype = torch.float32
    if source.dtype != "auto":
        dtype = getattr(torch, source.dtype)
    elif device.type != "cpu":
        dtype = getattr(torch, family_of(cls.__name__).half)
    options: dict[str, Any] = {"dtype": dtype, **_of_hub(source)}
    if source.variant is not None:
        options["variant"] = source.variant
    if not source.safety_checker and "safety_checker" in inspect.signature(cls.__init__).parameters:
        options |= {"safety_checker": None, "requires_safety_checker": False}
    try:
        if source.vae is not None:
            options["vae"] = library.AutoModel.from_pretrained(source.vae, dtype=dtype)
    except Exception as error:
        raise BackendUnavailableError(_trouble(Source(source.vae or ""), error)) from error
    signed = False
    if source.controlnet is not None:
        network, _, signed = controlnet_classes(cls.__name__)
        options["controlnet"] = load_controlnet(source.controlnet, network, dtype)
    try:
        pipeline = cls.from_pretrained(source.model, **options)
    except Exception as error:  # whatever goes wrong here goes wrong for every sample
        raise BackendUnavailableError(_trouble(source, error)) from error
    missing = [name for name in _needed(cls) if getattr(pipeline, name, None) is None]
    if missing:
        raise BackendUnavailableError(
            f"pipeline {source.model!r} comes without {missing}, which {cls.__name__} needs; name a complete pipeline"
        )
    empty = [name for name, part in pipeline.components.items() if _lacks_weights(part)]
    if empty:
        raise BackendUnavailableError(
            f"pipeline {source.model!r} lacks weights of {empty}: files do not fit the configs beside them; save or "
            "download it anew"
        )
    if scheduler is not None:
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    if source.lora is not None:
        _fuse(pipeline, source.lora)
    if source.controlnet is not None:
        pipeline.control_pictures = ControlPictures(source.structure, source.depth_model, device, signed)
    if getattr(pipeline, "watermark", None) is not None:
        pipeline.watermark = None
    pipeline.set_progress_bar_config(disable=True)
    if device.type == "cuda" and getattr(pipeline, "unet", None) is not None:
        pipeline.unet.to(memory_format=torch.channels_last)
    return pipeline


def pipeline_class(source: Source) -> Any:
    """The class to load a model with: the one that takes a mask where there is one, or else one that takes pictures.

    Raises:
        BackendUnavailableError: there is no model, or none that can fill.
    """
    library = diffusers()
    if source.pipeline is not None:
        named = getattr(library, source.pipeline, None)
        if not (inspect.isclass(named) and takes(named, "image")):
            raise BackendUnavailableError(
                f"diffusers {library.__version__} has no pipeline {source.pipeline!r} that takes pictures; give the "
                "name of one, such as 'FluxFillPipeline', or null to choose it by the model"
            )
        return named
    kind = stored_class(source)
    if source.controlnet is not None:
        return getattr(library, controlnet_classes(kind)[1])
    own = getattr(library, kind, None)
    if own is not None and takes(own, "mask_image"):
        return own
    auto = importlib.import_module("diffusers.pipelines.auto_pipeline")
    choices = [
        auto._get_task_class(auto.AUTO_INPAINT_PIPELINES_MAPPING, kind, throw_error_if_not_exist=False),
        # Some families have a sibling with a mask that the library does not list.
        getattr(library, kind.removesuffix("Img2ImgPipeline").removesuffix("Pipeline") + "InpaintPipeline", None),
        own,
        auto._get_task_class(auto.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING, kind, throw_error_if_not_exist=False),
    ]
    if own is not None and family_of(kind).prefix.endswith("InstructPix2Pix"):
        choices.insert(0, own)  # its weights see the picture in a way of their own, which no sibling feeds
    for cls in choices:
        if cls is not None and takes(cls, "image"):
            return cls
    raise BackendUnavailableError(
        f"{source.model!r} is a {kind}, which cannot fill pictures in diffusers {library.__version__}; name a model "
        "for inpainting, or give a class with pipeline=..."
    )


def stored_class(source: Source) -> str:
    """Name of the pipeline class that a model was stored by.

    Raises:
        BackendUnavailableError: there is no such model, or it is no pipeline.
    """
    folder = Path(source.model)
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        raise BackendUnavailableError(
            f"folder {source.model!r} holds no diffusers pipeline: it has no model_index.json. Name the folder that "
            "save_pretrained wrote; a single .safetensors file has to be converted first, see "
            "StableDiffusionInpaintPipeline.from_single_file"
        )
    try:
        config = diffusers().DiffusionPipeline.load_config(source.model, **_of_hub(source))
        return str(config["_class_name"])
    except Exception as error:
        raise BackendUnavailableError(_trouble(source, error)) from error


def takes(cls: Any, name: str) -> bool:
    """Whether a pipeline's call has an argument of this name."""
    return name in inspect.signature(cls.__call__).parameters


def _scheduler_class(source: Source) -> Any:
    """The scheduler that takes the place of the model's own, where one does."""
    if source.scheduler is None:
        return None
    name = "LCMScheduler" if source.scheduler == "lcm" else source.scheduler
    kind = getattr(diffusers(), name, None)
    if kind is None or not name.endswith("Scheduler"):
        raise BackendUnavailableError(
            f"diffusers has no scheduler {source.scheduler!r}; give 'lcm', or the name of a class such as "
            "'DPMSolverMultistepScheduler'"
        )
    return kind


def _of_hub(source: Source) -> dict[str, Any]:
    return {} if source.revision is None else {"revision": source.revision}


def _needed(cls: Any) -> list[str]:
    """Parts without which a pipeline cannot run."""
    optional = set(getattr(cls, "_optional_components", ()))
    wanted = ("unet", "transformer", "vae", "text_encoder", "scheduler")
    return [name for name in wanted if name in inspect.signature(cls.__init__).parameters and name not in optional]


def _absent_parts(source: Source) -> list[str]:
    """Parts that a folder names and does not have: of a tokenizer without files an empty one would be made."""
    folder = Path(source.model)
    if not (folder / "model_index.json").is_file():
        return []
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    given = {"vae"} if source.vae is not None else set()
    given |= set() if source.safety_checker else {"safety_checker"}
    parts = [name for name, kind in index.items() if isinstance(kind, list) and kind[0] is not None]
    return [name for name in parts if name not in given and not (folder / name).is_dir()]


def _lacks_weights(part: Any) -> bool:
    """Whether a network has parameters that no file had a value for."""
    return isinstance(part, torch.nn.Module) and any(value.is_meta for value in part.parameters())


def _fuse(pipeline: Any, lora: str) -> None:
    """Make an adapter part of the weights: as fast as the model without it."""
    try:
        path = Path(lora)
        if path.is_file():
            pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
        else:
            pipeline.load_lora_weights(lora)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    except Exception as error:
        raise BackendUnavailableError(
            f"adapter {lora!r} cannot be used with {type(pipeline).__name__}: {error} Name an adapter that was trained "
            "for this model: an id on the hub, a folder or a .safetensors file"
        ) from error


def _trouble(source: Source, error: BaseException) -> str:
    """What went wrong with loading a model, and what to do about it."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    names = {cls.__name__ for each in chain for cls in type(each).__mro__}
    name = f"{source.model!r}" + ("" if source.revision is None else f" at revision {source.revision!r}")
    if isinstance(error, ImportError):
        return f"model {name} needs a library that is missing: {error}"
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return f"model {name} does not fit in memory: {error}; use offload=True, or a smaller model"
    if Path(source.model).is_dir():
        variant = "" if source.variant is None else f" or the variant {source.variant!r}"
        return (
            f"folder {name} cannot be loaded, a file{variant} is missing or broken: {error}; save or download it anew"
        )
    if "GatedRepoError" in names:
        return (
            f"model {name} is gated: accept its terms at https://huggingface.co/{source.model}, then log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    if "RevisionNotFoundError" in names:
        return f"model {source.model!r} has no revision {source.revision!r}; see its commits and tags on the hub"
    if names & {"RepositoryNotFoundError", "HFValidationError"}:
        return (
            f"there is no model {name}: neither a folder nor an id on the hub. Check its spelling; for a private one "
            "log in with `hf auth login` or set HF_TOKEN"
        )
    if names & {
        "LocalEntryNotFoundError",
        "OfflineModeIsEnabled",
        "ConnectionError",
        "ConnectError",
        "TimeoutException",
    }:
        return (
            f"model {name} is not in the local cache and the hub cannot be reached. Download it where there is a "
            f"network (`hf download {source.model}`), copy the folder here, and name the folder"
        )
    return f"model {name} cannot be loaded: {type(error).__name__}: {error}"
