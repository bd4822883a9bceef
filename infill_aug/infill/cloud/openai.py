"""Fills from OpenAI's image models, or a service that speaks their protocol."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from infill_aug.descriptor import TaskDescriptor
from infill_aug.infill.cloud.base import CloudBackend, FillRequest
from infill_aug.infill.cloud.failure import RequestFailedError
from infill_aug.infill.cloud.limits import Limits
from infill_aug.infill.prompts import edit_prompt

_QUALITIES = ("low", "medium", "high", "xhigh", "max", "auto")
# US dollars for a million tokens of text, of pictures sent, of pictures drawn; and tokens drawn for 1024 x 1024 pixels
# by quality. As published in September 2026.
_PRICES: dict[str, tuple[float, float, float, dict[str, int]]] = {
    "gpt-image-1.5": (5.0, 8.0, 32.0, {"low": 272, "medium": 1056, "high": 4160}),
    "gpt-image-2": (5.0, 8.0, 30.0, {"low": 196, "medium": 1756, "high": 7024}),
    "gpt-image-2.5-flare": (5.0, 8.0, 30.0, {"low": 196, "medium": 439, "high": 1756, "xhigh": 3122, "max": 7024}),
    "gpt-image-2.5-sunburst": (5.0, 8.0, 30.0, {"low": 196, "medium": 439, "high": 1756, "xhigh": 3122, "max": 7024}),
}
_STANDARD_SIZES = ((1024, 1024), (1024, 1536), (1536, 1024))
_STEP = 16
_LEAST, _MOST = 655_360, 8_294_400  # pixels
_LONGEST = 3840


class OpenAIBackend(CloudBackend):
    """Edits by OpenAI's image models through the ``openai`` client: the best at following a text, and paid.

    The service takes no seed, and its mask is a hint: it draws all of the picture anew. The negative prompt goes into
    the prompt, as there is nothing else for it.

    Args:
        model: a GPT image model.
        quality: ``"low"``, ``"medium"``, ``"high"``, ``"xhigh"``, ``"max"`` or ``"auto"``; prices differ 36-fold.
        size: size of the picture that is sent and drawn, such as ``"1024x1024"``, width first; ``None``: the smallest
            that the model takes and the picture fits in.
        base_url: address of another service with the same protocol.
        api_key_env: see ``CloudBackend``.
        concurrency: most requests at once; see ``Limits``, as for all further arguments.
        timeout: seconds.
        retries: repetitions of a request, by the client itself: ``requests_per_minute`` does not count them.
        requests_per_minute: most requests a minute.
        budget: most US dollars to spend.
        price_per_image: US dollars for one fill; ``None``: as published for the model, and of an answer as many as its
            tokens cost.

    Raises:
        ImportError: the client is not installed.
        ValueError: an argument out of range.

    Example:
        >>> from infill_aug.descriptor import TaskDescriptor
        >>> backend = OpenAIBackend(quality="low", budget=5.0)
        >>> backend.price(TaskDescriptor("pets", "cat"), 1024, 1024)
        0.00588
    """

    name = "openai"
    retries_itself = True

    def __init__(
        self,
        model: str = "gpt-image-2.5-flare",
        quality: str = "low",
        size: str | None = None,
        base_url: str | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        concurrency: int = 4,
        timeout: float = 180.0,
        retries: int = 4,
        requests_per_minute: float | None = None,
        budget: float | None = None,
        price_per_image: float | None = None,
    ) -> None:
        try:
            import openai  # noqa: F401 - fail here, with the remedy, not in the middle of a build
        except ImportError as error:
            raise ImportError("backend 'openai' needs its client: pip install 'infill-aug[cloud]'") from error
        super().__init__(
            Limits(concurrency, timeout, retries, requests_per_minute, budget, price_per_image),
            api_key_env,
            model=model,
            quality=quality,
            size=size,
            base_url=base_url,
        )

    def check_options(self, options: Mapping[str, Any]) -> None:
        """The quality is one of the service's, the size reads ``WIDTHxHEIGHT``."""
        if not isinstance(options["model"], str) or not options["model"]:
            raise ValueError(f"model must be the name of an image model, got {options['model']!r}")
        if options["quality"] not in _QUALITIES:
            raise ValueError(f"quality must be one of {_QUALITIES}, got {options['quality']!r}")
        if options["size"] is not None:
            _parsed(options["size"])
        if options["base_url"] is not None and not str(options["base_url"]).startswith(("http://", "https://")):
            raise ValueError(f"base_url must be an address such as https://host/v1, got {options['base_url']!r}")

    def texts(self, descriptor: TaskDescriptor) -> tuple[str, str]:
        """One instruction, which says both what to draw and what not."""
        return edit_prompt(descriptor, "the area that the mask marks", negative=True)

    def service_size(self, options: Mapping[str, Any], height: int, width: int) -> tuple[int, int]:
        """The size that was asked for, or the smallest that the model takes and the picture fits in."""
        if options["size"] is not None:
            return _parsed(options["size"])
        return openai_size(options["model"], height, width)

    def known_price(self, options: Mapping[str, Any], height: int, width: int) -> float:
        """What the picture drawn costs, as published; the one sent comes on top, when the service has counted it."""
        prices = _prices(options)
        if prices is None:
            return math.nan
        dollars, tokens = prices[2], prices[3]
        count = tokens.get(options["quality"], max(tokens.values()))  # "auto" may be anything
        sent_height, sent_width = self.service_size(options, height, width)
        return dollars * count * sent_height * sent_width / 1024**2 / 1e6

    def _connect(self, options: Mapping[str, Any]) -> AbstractContextManager[Any]:
        import openai

        client: AbstractContextManager[Any] = openai.OpenAI(
            api_key=self.secret(self.api_key_env),
            base_url=options["base_url"],
            timeout=self.limits.timeout,
            max_retries=self.limits.retries,
        )
        return client

    def _request(self, client: Any, request: FillRequest) -> tuple[bytes, float | None]:
        height, width = request.image.shape[-2:]
        answer = client.images.edit(
            model=request.options["model"],
            image=("image.png", request.image_png(), "image/png"),
            mask=("mask.png", request.mask_png("alpha"), "image/png"),
            prompt=request.prompt,
            n=1,
            size=f"{width}x{height}",
            quality=request.options["quality"],
            background="opaque",
            output_format="png",
        )
        data = answer.data[0].b64_json if answer.data else None
        if not data:
            raise RequestFailedError("refused", "the service sent no picture back", charged=True)
        return base64.b64decode(data), _cost(_prices(request.options), answer.usage)


def openai_size(model: str, height: int, width: int) -> tuple[int, int]:
    """Height and width that a model takes for a picture of this size.

    Models of the first generation take three sizes. Later ones take multiples of 16 pixels between 655,360 and
    8,294,400 in all, at most 3840 a side and 3 times as long as wide; pictures beyond that are squeezed.

    Example:
        >>> openai_size("gpt-image-1.5", 300, 400), openai_size("gpt-image-2", 300, 400)
        ((1024, 1536), (704, 944))
    """
    if model.startswith(("gpt-image-1", "chatgpt-image", "dall-e")):
        aspect = math.log(height / width)
        return min(_STANDARD_SIZES, key=lambda size: abs(math.log(size[0] / size[1]) - aspect))
    aspect = min(max(height / width, 1 / 3), 3.0)
    pixels = min(max(height * width, _LEAST), _MOST)
    if pixels * max(aspect, 1 / aspect) > _LONGEST**2:
        pixels = int(_LONGEST**2 / max(aspect, 1 / aspect))
    tall, wide = math.sqrt(pixels * aspect), math.sqrt(pixels / aspect)
    if pixels <= 2 * _LEAST:  # rounding must not lead out of the range
        short = math.ceil(min(tall, wide) / _STEP) * _STEP
        long = min(math.ceil(max(tall, wide) / _STEP) * _STEP, 3 * short)
    else:
        short = math.floor(min(tall, wide) / _STEP) * _STEP
        long = min(math.floor(max(tall, wide) / _STEP) * _STEP, 3 * short)
    return (long, short) if tall >= wide else (short, long)


def _parsed(size: object) -> tuple[int, int]:
    """Height and width of a text such as ``"1536x1024"``, which has the width first."""
    width, _, height = size.partition("x") if isinstance(size, str) else ("", "", "")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise ValueError(f"size must read WIDTHxHEIGHT, such as '1536x1024', or be null, got {size!r}")
    return int(height), int(width)


def _prices(options: Mapping[str, Any]) -> tuple[float, float, float, dict[str, int]] | None:
    """Prices of OpenAI's own service; what another one asks for is not known."""
    return None if options["base_url"] else _PRICES.get(options["model"].split("-2026-")[0])


def _cost(prices: tuple[float, float, float, dict[str, int]] | None, usage: Any) -> float | None:
    """US dollars that an answer's tokens cost, where both are known."""
    if prices is None or usage is None:
        return None
    text, sent, drawn, _ = prices
    details = usage.input_tokens_details
    return (details.text_tokens * text + details.image_tokens * sent + usage.output_tokens * drawn) / 1e6
