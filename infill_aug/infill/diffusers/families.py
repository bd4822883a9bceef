"""How each family of diffusers pipelines is called: what changes between them, as data, and pure functions on it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

# A picture longer than this, in its shorter sides, is squeezed: no model has seen such.
_MOST_ASPECT = 3.0
_INSTRUCTION = "Replace the blurred area with: {}"


@dataclass(frozen=True)
class Family:
    """What a family of pipelines is called with where the user says nothing.

    Args:
        prefix: how the names of its classes begin.
        steps: denoising steps by the descriptor's complexity.
        guidance: strength of the prompt.
        guidance_name: argument that takes it.
        strength: 0..1, how much noise the continued surroundings get; 1 = nothing of them is left. For pipelines that
            take one.
        strength_with_mask: the same for models that were trained to fill, with the mask as an input.
        half: floating point type on a GPU.
        pil: takes PIL pictures only, one in each call.
        edits: follows instructions, where the others draw what a prompt describes.
        flow: a flow model, which rounds the steps that a strength leaves up, where the others round down.
    """

    prefix: str
    steps: tuple[int, int, int] = (20, 28, 50)
    guidance: float = 7.0
    guidance_name: str = "guidance_scale"
    strength: float = 0.9
    strength_with_mask: float = 1.0
    half: str = "bfloat16"
    pil: bool = False
    edits: bool = False
    flow: bool = True

    def steps_for(self, complexity: str) -> int:
        """Steps for a descriptor's complexity."""
        return self.steps[("low", "medium", "high").index(complexity)]


# The first whose prefix fits; steps and guidance are those of each model's card.
_SD = {"half": "float16", "flow": False, "guidance": 7.5, "steps": (20, 30, 50)}
FAMILIES = (
    Family("StableDiffusionInstructPix2Pix", edits=True, **_SD),  # type: ignore[arg-type]
    Family("StableDiffusionXLInstructPix2Pix", edits=True, **_SD),  # type: ignore[arg-type]
    Family("StableDiffusion3", strength=0.9),
    # At 1 the published SDXL for inpainting loses contrast, as its card says.
    Family("StableDiffusionXL", strength_with_mask=0.99, **_SD),  # type: ignore[arg-type]
    Family("StableDiffusion", **_SD),  # type: ignore[arg-type]
    Family("LatentConsistencyModel", steps=(4, 6, 8), guidance=8.0, half="float16", flow=False),
    Family("FluxFill", guidance=30.0, strength=1.0),
    Family("FluxKontext", guidance=2.5, strength=1.0, edits=True),
    Family("Flux2Klein", steps=(4, 4, 8), guidance=1.0, edits=True),
    Family("Flux2", guidance=4.0, edits=True),
    Family("Flux", guidance=3.5),
    Family("Chroma", guidance=5.0),
    Family("QwenImageEdit", guidance=4.0, guidance_name="true_cfg_scale", pil=True, edits=True),
    Family("QwenImage", guidance=4.0, guidance_name="true_cfg_scale"),
    Family("ZImage", guidance=5.0),
)
_OTHER = Family("", flow=False, half="float16")


def family_of(pipeline: str) -> Family:
    """The family of a pipeline class, by its name; a plain one where it is none that is listed.

    Example:
        >>> family_of("FluxFillPipeline").guidance, family_of("FluxInpaintPipeline").guidance
        (30.0, 3.5)
    """
    return next((family for family in FAMILIES if pipeline.startswith(family.prefix)), _OTHER)


def working_size(height: int, width: int, side: int, multiple: int) -> tuple[int, int]:
    """Size at which a picture is filled: the area of a square of ``side`` pixels, with the picture's aspect.

    Args:
        height: of the picture in pixels.
        width: of the picture in pixels.
        side: of the square that the model was trained on, in pixels.
        multiple: both sides are multiples of this many pixels.

    Returns:
        Height and width in pixels. Pictures longer than three of their shorter sides are squeezed.

    Example:
        >>> working_size(300, 400, 512, 8), working_size(1, 1000, 512, 8)
        ((440, 592), (296, 888))
    """
    aspect = min(max(width / height, 1 / _MOST_ASPECT), _MOST_ASPECT)
    sides = side / math.sqrt(aspect), side * math.sqrt(aspect)
    tall, wide = (max(multiple, round(each / multiple) * multiple) for each in sides)
    return tall, wide


def schedule_length(steps: int, strength: float, flow: bool) -> int:
    """Steps to ask a pipeline for, so that a strength below 1, which skips the first ones, leaves ``steps`` of them.

    Args:
        steps: to be run, 1 or more.
        strength: above 0, at most 1.
        flow: the pipeline rounds what is left up, and not down.

    Example:
        >>> schedule_length(4, 0.5, flow=False), schedule_length(4, 0.9, flow=False), schedule_length(4, 0.9, flow=True)
        (8, 5, 4)
    """
    asked = steps
    while True:
        left = min(asked * strength, asked)
        run = asked - int(asked - left) if flow else int(left)
        if run >= steps:
            return asked
        asked += 1


def call_arguments(
    family: Family,
    parameters: Collection[str],
    options: Mapping[str, Any],
    few_steps: bool = False,
    sees_mask: bool = False,
) -> dict[str, Any]:
    """What a pipeline is called with besides pictures, prompts and generators.

    Args:
        family: the pipeline's.
        parameters: names that the pipeline's call takes.
        options: ``steps``, ``guidance`` and ``strength``, null where the family's own are wanted, and ``complexity``.
        few_steps: the model was distilled to a few steps without guidance.
        sees_mask: the model was trained to fill, with the mask as an input: it needs no smooth start, which would only
            blur its fills.

    Example:
        >>> options = {"steps": None, "guidance": None, "strength": None, "complexity": "low"}
        >>> call_arguments(family_of("FluxFillPipeline"), {"guidance_scale", "num_inference_steps"}, options)
        {'num_inference_steps': 20, 'guidance_scale': 30.0}
    """
    usual = {"low": 4, "medium": 4, "high": 8}[options["complexity"]] if few_steps else None
    steps = options["steps"] or usual or family.steps_for(options["complexity"])
    guidance = options["guidance"]
    if guidance is None:
        guidance = 1.0 if few_steps else family.guidance
    arguments: dict[str, Any] = {"num_inference_steps": steps}
    if family.guidance_name in parameters:
        arguments[family.guidance_name] = float(guidance)
    if "strength" in parameters:
        usual_strength = family.strength
        if sees_mask:  # of few steps, a strength below 1 would skip a large part
            usual_strength = 1.0 if few_steps else family.strength_with_mask
        strength = float(usual_strength if options["strength"] is None else options["strength"])
        arguments |= {"strength": strength, "num_inference_steps": schedule_length(steps, strength, family.flow)}
    return arguments


def instruction(family: Family, prompt: str, own: bool) -> str:
    """The prompt for a pipeline: of one that edits, an instruction, unless the prompt is the user's ``own``.

    Example:
        >>> instruction(family_of("FluxKontextPipeline"), "a beach", own=False)
        'Replace the blurred area with: a beach'
    """
    return _INSTRUCTION.format(prompt) if family.edits and not own else prompt
