"""Base of the backends that ask a service: many requests at once, within limits, and what to do when one fails."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import json
import logging
import math
import os
import random
import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as nnf
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from infill_aug.descriptor import TaskDescriptor
from infill_aug.infill.backend import (
    BackendUnavailableError,
    InfillBackend,
    ModelConfig,
    PartialInfillError,
    SampleContext,
)
from infill_aug.infill.cloud.failure import RequestFailedError, failure_of
from infill_aug.infill.cloud.limits import Limits
from infill_aug.infill.prompts import fill_prompt
from infill_aug.infill.push_pull import push_pull
from infill_aug.smart_mask.smart_mask import SmartMask

_log = logging.getLogger(__name__)

_PATIENCE = 4  # requests in a row without a connection, or called wrong, after which the rest is not tried
_FIRST_WAIT = 0.5  # seconds before the first repetition; each further one waits twice as long
_NOT_SENT = "not sent, since another request showed that nothing goes any more"
_LONGEST_WAIT = 120.0  # seconds; a service that wants to be left alone for longer has failed


@dataclass(frozen=True)
class FillRequest:
    """One fill as a service is asked for it.

    Args:
        image: ``(3, h, w)`` uint8, the hole filled with the colours around it.
        mask: ``(1, h, w)`` bool, true = fill.
        prompt: what to draw.
        negative_prompt: what not to draw.
        seed: 1 to 2**31 - 2, since some services take 0 for "any".
        options: the backend's, by name.
    """

    image: Tensor
    mask: Tensor
    prompt: str
    negative_prompt: str
    seed: int
    options: Mapping[str, Any]

    def image_png(self) -> bytes:
        """The picture, opaque."""
        return _png(self.image)

    def mask_png(self, convention: Literal["white", "black", "alpha"]) -> bytes:
        """The mask as services want it: white or black where to fill, or the picture, transparent there."""
        if convention == "alpha":
            return _png(torch.cat([self.image, torch.where(self.mask, 0, 255).to(torch.uint8)]))
        inside, outside = (255, 0) if convention == "white" else (0, 255)
        return _png(torch.where(self.mask, inside, outside).to(torch.uint8))


class CloudBackend(InfillBackend):
    """A backend that asks a service, some samples at once.

    The service gets the picture with the colours around the hole continued into it, never what was there. It draws
    the whole picture anew: a ``SmartMask`` takes back what it did to colours and position of the whole, and throws its
    other changes outside of the hole away. Its answers are not reproducible, a cache makes them so.

    Waits before a repetition grow from half a second, at random, or last as long as the service asks for.

    Args:
        limits: how the service may be asked, and for how much money in this process; not part of the fingerprint.
        api_key_env: name of the environment variable with the key, which is read for each batch and kept nowhere; not
            part of the fingerprint.
        options: what changes the fill.

    Raises:
        ValueError: an option out of range, or a key where the name of its variable belongs.
    """

    version = 2  # motion is undone, and drifts that mix channels
    stochastic = True
    max_batch = 64
    retries_itself: ClassVar[bool] = False  # the client repeats requests on its own
    nested_options: ClassVar[frozenset[str]] = frozenset()  # options that are objects or lists

    def __init__(self, limits: Limits, api_key_env: str | None = None, **options: Any) -> None:
        if api_key_env is not None and not api_key_env.replace("_", "").isalnum():
            # Not quoted: what stands here by mistake is the key.
            raise ValueError("api_key_env must be the name of an environment variable, not the key itself")
        super().__init__(**options)
        self.limits = limits
        self.api_key_env = api_key_env

    @property
    def spent(self) -> float:
        """US dollars that this object has spent, as far as prices are known."""
        return self.limits.spent

    def known_price(self, options: Mapping[str, Any], height: int, width: int) -> float:
        """US dollars of one fill, as published; NaN where unknown."""
        return math.nan

    def price(self, descriptor: TaskDescriptor, height: int, width: int) -> float:
        """US dollars of one fill of this size; NaN where unknown, which ``price_per_image`` mends."""
        return self._price({**self.options, **descriptor.options}, height, width)

    def _price(self, options: Mapping[str, Any], height: int, width: int) -> float:
        if self.limits.price_per_image is not None:
            return float(self.limits.price_per_image)
        return self.known_price(options, height, width)

    def model_config(self, descriptor: TaskDescriptor) -> ModelConfig:
        """Options and texts; objects among the options as JSON.

        Raises:
            ValueError: as in the base class, or there is a budget, and no price to hold against it.
        """
        config = super().model_config(descriptor)
        if self.limits.budget is not None and math.isnan(self.price(descriptor, 512, 512)):
            raise ValueError(f"budget needs a price, and none is known for this {self.name} model: set price_per_image")
        options = {**self.options, **descriptor.options}
        for name in self.nested_options:
            options[name] = json.dumps(options[name], sort_keys=True)
        options["prompt"], options["negative_prompt"] = self.texts(descriptor)
        return dataclasses.replace(config, options=tuple(sorted(options.items())))

    def texts(self, descriptor: TaskDescriptor) -> tuple[str, str]:
        """Prompt and negative prompt as the service gets them."""
        return fill_prompt(descriptor)

    def service_size(self, options: Mapping[str, Any], height: int, width: int) -> tuple[int, int]:
        """Height and width of the picture that is sent."""
        return height, width

    @abstractmethod
    def _connect(self, options: Mapping[str, Any]) -> AbstractContextManager[Any]:
        """The client, with the key, for one batch."""

    @abstractmethod
    def _request(self, client: Any, request: FillRequest) -> tuple[bytes, float | None]:
        """The answer's picture as a file, and its price in US dollars where the service tells; called by threads."""

    def secret(self, name: str | None) -> str | None:
        """The value of an environment variable.

        Raises:
            BackendUnavailableError: it is not set.
        """
        if name is None:
            return None
        if not os.environ.get(name):
            raise BackendUnavailableError(
                f"backend {self.name!r} needs a key in the environment variable {name}, which is not set; set it, or "
                "name another one"
            )
        return os.environ[name]

    def secret_names(self) -> list[str]:
        """Environment variables whose values must not appear anywhere."""
        return [self.api_key_env] if self.api_key_env else []

    def _generate(self, image: Tensor, mask: Tensor, config: ModelConfig, samples: Sequence[SampleContext]) -> Tensor:
        options = dict(config.options)
        for name in self.nested_options:
            options[name] = json.loads(options[name])
        height, width = image.shape[-2:]
        price = self._price(options, height, width)
        started = push_pull(image.cpu(), mask.cpu())
        result = started.clone()
        stop, reasons = _End(), dict[int, str]()
        clean = SmartMask(whole_hint=True)
        with self._connect(options) as client, _threads(min(self.limits.concurrency, len(samples)), stop) as pool:
            places: dict[Future[Tensor], int] = {
                pool.submit(self._answer, client, self._prepared(picture, hole, options, sample), price, stop): place
                for place, (picture, hole, sample) in enumerate(zip(started, mask.cpu(), samples, strict=True))
            }
            for future in as_completed(places):
                place = places[future]
                try:
                    answer = future.result()
                except RequestFailedError as error:
                    reasons[place] = self._without_secrets(str(error))
                    continue
                fill = F.resize(answer.float() / 255, [height, width], antialias=True).clamp(0, 1)
                fill = clean(started[place].clamp(0, 1), fill, mask_hint=mask[place].cpu()).composite
                result[place] = (fill * 255).round() / 255
        end = self._without_secrets(stop.reason)
        if end and len(reasons) == len(samples):
            raise BackendUnavailableError(f"backend {self.name!r} cannot go on: {end}")
        reasons = {place: f"not sent: {end}" if why == _NOT_SENT else why for place, why in reasons.items()}
        if reasons:  # what was paid for is kept, also where the next batch will say that nothing goes any more
            raise PartialInfillError(result.to(image.device), reasons)
        return result.to(image.device)

    def _prepared(
        self, picture: Tensor, hole: Tensor, options: Mapping[str, Any], sample: SampleContext
    ) -> FillRequest:
        """The request for one sample, at a size that the service takes."""
        height, width = self.service_size(options, *picture.shape[-2:])
        image = (F.resize(picture, [height, width], antialias=True).clamp(0, 1) * 255).round().to(torch.uint8)
        # Of several pixels that become one, one in the hole is enough.
        mask = nnf.adaptive_max_pool2d(hole.float(), (height, width)) > 0
        seed = 1 + sample.seed % (2**31 - 2)
        return FillRequest(image, mask, options["prompt"], options["negative_prompt"], seed, options)

    def _answer(self, client: Any, request: FillRequest, price: float, stop: _End) -> Tensor:
        """``_ask``, and the end of the batch where its failure says so; called by threads."""
        try:
            answer = self._ask(client, request, price, stop)
        except RequestFailedError as error:
            in_vain = self.limits.count(error)
            if error.kind == "gone":
                stop.because(str(error))
            elif in_vain >= _PATIENCE:
                stop.because(
                    f"{error}; {in_vain} requests in a row failed so: check the network, the address and the options"
                )
            raise
        self.limits.count(None)
        return answer

    def _ask(self, client: Any, request: FillRequest, price: float, stop: _End) -> Tensor:
        """The service's picture ``(3, h, w)`` uint8, after as many attempts as it takes and is allowed."""
        attempts = 1 if self.retries_itself else 1 + self.limits.retries
        for attempt in range(attempts):
            if not stop.is_set():
                self.limits.wait(stop)
            if stop.is_set():
                raise RequestFailedError("busy", _NOT_SENT)
            self.limits.pay(price)
            try:
                data, cost = self._request(client, request)
                if cost is not None and self.limits.price_per_image is None:
                    self.limits.refund(price - cost if not math.isnan(price) else -cost)
                return _decoded(data)
            except Exception as error:
                # Anything else that got through here would have the base class send the whole batch again.
                failure = failure_of(error)
            if not failure.charged:
                self.limits.refund(price)
            wait = failure.wait
            if wait is None:
                wait = _FIRST_WAIT * 2**attempt * random.SystemRandom().uniform(0.5, 1.0)
            again = failure.kind in ("busy", "offline") and attempt + 1 < attempts and wait <= _LONGEST_WAIT
            _log.debug("%s: attempt %d failed: %s", self.name, attempt + 1, self._without_secrets(str(failure)))
            if not again:
                break
            if stop.wait(wait):
                break
        raise failure from None

    def _without_secrets(self, text: str) -> str:
        """A text without keys, which some services send back."""
        for name in self.secret_names():
            if os.environ.get(name):
                text = text.replace(os.environ[name], f"<{name}>")
        return text


class _End(threading.Event):
    """Set where no further request of a batch is to go out, and why."""

    reason = ""

    def because(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.set()


def encoded(data: bytes) -> str:
    """Bytes as base64 text."""
    return base64.b64encode(data).decode("ascii")


@contextlib.contextmanager
def _threads(count: int, stop: threading.Event) -> Any:
    """A thread pool that an interruption does not keep waiting for what has not begun."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _png(pixels: Tensor) -> bytes:
    """``(C, h, w)`` uint8 with 1, 3 or 4 channels as a PNG file."""
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _decoded(data: bytes) -> Tensor:
    """A picture file as ``(3, h, w)`` uint8."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            pixels = np.array(picture.convert("RGB"))
    except Exception as error:  # every format fails in ways of its own
        raise RequestFailedError(
            "busy", f"the service's answer of {len(data)} bytes is no whole picture ({error})", charged=True
        ) from None
    return torch.from_numpy(pixels).permute(2, 0, 1)
