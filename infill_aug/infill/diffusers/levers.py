"""What makes pipelines of diffusers faster and leaves their pictures as they are."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any

import torch
from torch import Tensor

from infill_aug.infill.diffusers.differential import sees_latents_only

_PLAIN = (str, bool, int, float, torch.device, torch.dtype, type(None))
# Families that encode the masked picture and take its latents; only networks with channels for them look at those.
_SPARING = ("StableDiffusion", "Flux", "Chroma")


def remember_texts(pipeline: Any, most: int = 8) -> None:
    """Let a pipeline encode each text once: the same prompts in a later call cost nothing.

    Works for every family, since what is kept is the result of its own method.

    Args:
        pipeline: of diffusers; changed in place.
        most: calls with different texts that are kept, each with the embeddings of a whole batch.
    """
    name = "encode_prompt" if hasattr(pipeline, "encode_prompt") else "_encode_prompt"
    encode = getattr(pipeline, name, None)
    if encode is None:
        return
    kept: OrderedDict[Any, Any] = OrderedDict()

    def remembered(*arguments: Any, **named: Any) -> Any:
        key = _key((arguments, sorted(named.items())))
        if key is None:  # pictures or tensors among them
            return encode(*arguments, **named)
        if key not in kept:
            kept[key] = encode(*arguments, **named)
            if len(kept) > most:
                kept.popitem(last=False)
        kept.move_to_end(key)
        return kept[key]

    setattr(pipeline, name, remembered)


def remember_pictures(pipeline: Any, most: int) -> None:
    """Let a pipeline encode the same picture once: variants of a picture differ in their noise alone.

    Args:
        pipeline: of diffusers; changed in place.
        most: encodings that are kept.
    """
    vae = getattr(pipeline, "vae", None)
    if vae is None:
        return
    encode = vae.encode
    kept: deque[tuple[Tensor, tuple[Any, ...], Any]] = deque(maxlen=most)

    def remembered(x: Tensor, *arguments: Any, **named: Any) -> Any:
        key = (arguments, tuple(sorted(named.items())), x.dtype, x.stride(), x.device)
        for picture, options, result in kept:
            if options == key and torch.equal(picture, x):
                return result
        result = encode(x, *arguments, **named)
        kept.append((x.clone(), key, result))
        return result

    vae.encode = remembered


def compile_parts(pipeline: Any) -> None:
    """Compile the network that runs in every step, and the decoder; the first call of each size takes minutes.

    Args:
        pipeline: of diffusers; changed in place.
    """
    for network in (getattr(pipeline, "unet", None), getattr(getattr(pipeline, "vae", None), "decoder", None)):
        if network is not None:
            network.compile()
    transformer = getattr(pipeline, "transformer", None)
    if transformer is not None:
        # One block stands for all: a tenth of the time to compile.
        try:
            transformer.compile_repeated_blocks()
        except ValueError:  # the class does not name its blocks
            transformer.compile()


def spare_latents(pipeline: Any, count: int, height: int, width: int) -> dict[str, Tensor]:
    """Latents to pass for the masked picture, where a pipeline would encode it and look at nothing of it.

    Args:
        pipeline: of diffusers.
        count: pictures in the call.
        height: at which the pipeline works, in pixels.
        width: the same.

    Returns:
        Arguments of the call; empty where the pipeline needs the real ones.
    """
    # By these counts of channels the pipelines tell latents from pictures.
    channels = 4 if getattr(pipeline, "unet", None) is not None else 16
    drawn = getattr(getattr(pipeline, "vae", None), "config", {}).get("latent_channels")
    if not type(pipeline).__name__.startswith(_SPARING) or not sees_latents_only(pipeline) or drawn != channels:
        return {}
    cells = (height // pipeline.vae_scale_factor, width // pipeline.vae_scale_factor)
    return {"masked_image_latents": torch.zeros(count, channels, *cells)}


def _key(value: Any) -> Any:
    """A value that can be looked up by what it says, or ``None`` where it holds more than texts and numbers."""
    if isinstance(value, list | tuple):
        parts = tuple(_key(part) for part in value)
        return None if None in parts else parts
    return (type(value).__name__, value) if isinstance(value, _PLAIN) else None
