"""Text for the backends that read it, made from a task descriptor."""

from __future__ import annotations

from infill_aug.descriptor import TaskDescriptor

# What a complexity asks of the fill, in words.
_DETAIL = {"low": "plain and simple", "medium": "natural", "high": "rich in detail"}


def fill_prompt(descriptor: TaskDescriptor) -> tuple[str, str]:
    """What is to be drawn, and what is not: the descriptor's own texts, or ones made of its style and object.

    A generator that fills around an object tends to continue it, or to draw a second one, which would be a wrong label
    for a detector: the object is named in the negative text alone, where no prompt can draw it.

    Args:
        descriptor: its ``prompt`` and ``negative_prompt`` win wherever they are given, the empty text included.

    Returns:
        Prompt and negative prompt.

    Example:
        >>> fill_prompt(TaskDescriptor("pets", "cat"))
        ('photorealistic empty background scene, natural, seamless continuation of the surroundings',
         'cat, second cat, part of a cat, text, watermark, frame')
        >>> fill_prompt(TaskDescriptor("pets", "cat", prompt="a beach", negative_prompt=""))
        ('a beach', '')
    """
    detail, thing = _DETAIL[descriptor.complexity], descriptor.object
    prompt = f"{descriptor.style} empty background scene, {detail}, seamless continuation of the surroundings"
    negative = f"{thing}, second {thing}, part of a {thing}, text, watermark, frame"
    return (
        prompt if descriptor.prompt is None else descriptor.prompt,
        negative if descriptor.negative_prompt is None else descriptor.negative_prompt,
    )


def edit_prompt(descriptor: TaskDescriptor, place: str, negative: bool = False) -> tuple[str, str]:
    """The same for models that follow instructions instead of captions.

    Args:
        descriptor: its ``prompt`` wins, and is passed on as it is.
        place: how the prompt calls what is to be filled.
        negative: whether the prompt itself has to say what must not be drawn, the negative prompt being empty.

    Returns:
        Prompt and negative prompt.

    Example:
        >>> edit_prompt(TaskDescriptor("pets", "cat"), "the blurred area", negative=True)[0]
        'Fill the blurred area with: photorealistic empty background scene, natural, seamless continuation of the
         surroundings. Keep everything else exactly as it is, with the same framing and colours. Do not draw: cat,
         second cat, part of a cat, text, watermark, frame.'
    """
    prompt, unwanted = fill_prompt(descriptor)
    if descriptor.prompt is None:
        prompt = (
            f"Fill {place} with: {prompt}. Keep everything else exactly as it is, with the same framing and colours."
        )
    if not negative:
        return prompt, unwanted
    return f"{prompt} Do not draw: {unwanted}." if unwanted else prompt, ""
