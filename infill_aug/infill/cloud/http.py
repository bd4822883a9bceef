"""Fills from any service that takes a picture by HTTP, described by data."""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, cast
from urllib.parse import urljoin, urlsplit

from infill_aug.checks import is_number
from infill_aug.infill.cloud.base import CloudBackend, FillRequest, encoded
from infill_aug.infill.cloud.failure import RequestFailedError, failure_of, status_failure
from infill_aug.infill.cloud.limits import Limits
from infill_aug.infill.cloud.sizes import check_sizes, fitted_size
from infill_aug.infill.cloud.template import look_up, render

_MASKS = ("white", "black", "alpha")
_POLL = {"url", "status", "done", "refused"}
_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")
_SECRET_HEADER = re.compile(r"auth|key|token|secret", re.IGNORECASE)


class HTTPBackend(CloudBackend):
    """A service that is described instead of programmed, through ``requests``.

    In ``body``, ``{image}`` and ``{mask}`` stand for PNG files (base64 in JSON), ``{prompt}``, ``{negative_prompt}``,
    ``{seed}``, ``{width}`` and ``{height}`` for what they say. Three services, as an example each:

    * FLUX fill of Black Forest Labs: ``url="https://api.bfl.ai/v1/flux-pro-1.0-fill"``,
      ``headers={"x-key": "$BFL_API_KEY"}``, ``body={"image": "{image}", "mask": "{mask}", "prompt": "{prompt}",
      "seed": "{seed}", "output_format": "png"}``, ``poll={"url": "polling_url", "status": "status", "done": ["Ready"],
      "refused": ["Request Moderated", "Content Moderated"]}``, ``result="result.sample"``.
    * Inpainting of Stability AI, priced in credits: ``url="https://api.stability.ai/v2beta/stable-image/edit/inpaint"``,
      ``encoding="multipart"``, ``headers={"authorization": "Bearer $STABILITY_API_KEY", "accept": "image/*"}``,
      ``body={"image": "{image}", "mask": "{mask}", "prompt": "{prompt}", "negative_prompt": "{negative_prompt}",
      "seed": "{seed}", "output_format": "png"}``, ``result=None``.
    * Automatic1111 on a machine of one's own: ``url="http://127.0.0.1:7860/sdapi/v1/img2img"``, ``body={"init_images":
      ["{image}"], "mask": "{mask}", "prompt": "{prompt}", "negative_prompt": "{negative_prompt}", "seed": "{seed}",
      "width": "{width}", "height": "{height}", "denoising_strength": 0.9, "inpainting_fill": 1}``,
      ``result="images.0"``, ``price_per_image=0``.

    Args:
        url: where the request goes. Keys do not belong here, addresses are logged; they belong into ``headers``.
        body: JSON object with placeholders.
        result: where in the JSON answer the picture is, as base64 text or as an address, such as ``"images.0"``;
            ``None``: the answer is the picture.
        method: ``"POST"`` or ``"PUT"``.
        encoding: ``"json"``, or ``"multipart"`` for a form with files.
        mask: what fills in ``{mask}``: ``"white"`` or ``"black"``, or ``"alpha"`` for the picture, transparent there.
        poll: for services that draw in the background: where in the answer the address to ask is (``url``), where in
            what it says the state is (``status``), the states that mean success (``done``), and those that mean that
            the picture was refused (``refused``). States with "error" or "fail" in them are failures.
        multiple: sides of the picture that is sent are multiples of this many pixels, 1 or more.
        min_side: smaller pictures are enlarged to this many pixels on their shorter side, 1 or more.
        headers: HTTP headers by name. ``$NAME`` or ``${NAME}`` in a value stands for an environment variable, read for
            each batch and kept nowhere. They are not part of the fingerprint.
        poll_interval: seconds between two questions, above 0.
        concurrency: most requests at once; see ``Limits``, as for all further arguments.
        timeout: seconds for an answer, and for a picture that is drawn in the background.
        retries: repetitions of a request.
        requests_per_minute: most requests a minute; questions whether a picture is ready are not counted.
        budget: most US dollars to spend.
        price_per_image: US dollars for one fill; 0 for a service of one's own.

    Raises:
        ImportError: ``requests`` is not installed.
        ValueError: an argument out of range, or a key where a variable's name belongs.

    Example:
        >>> from infill_aug.descriptor import TaskDescriptor
        >>> backend = HTTPBackend("http://127.0.0.1:7860/fill", {"image": "{image}", "mask": "{mask}"}, "image")
        >>> len(backend.model_config(TaskDescriptor("pets", "cat")).fingerprint())
        32
    """

    name = "http"
    nested_options = frozenset({"body", "poll"})

    def __init__(
        self,
        url: str,
        body: Mapping[str, Any],
        result: str | None = None,
        method: str = "POST",
        encoding: str = "json",
        mask: str = "white",
        poll: Mapping[str, Any] | None = None,
        multiple: int = 8,
        min_side: int = 256,
        headers: Mapping[str, str] | None = None,
        poll_interval: float = 0.5,
        concurrency: int = 4,
        timeout: float = 180.0,
        retries: int = 4,
        requests_per_minute: float | None = None,
        budget: float | None = None,
        price_per_image: float | None = None,
    ) -> None:
        try:
            import requests  # noqa: F401 - fail here, with the remedy, not in the middle of a build
        except ImportError as error:
            raise ImportError("backend 'http' needs requests: pip install 'infill-aug[cloud]'") from error
        self.headers = dict(headers or {})
        for name, value in self.headers.items():
            if not isinstance(value, str):
                raise ValueError(f"header {name!r} must be a string")
            if _SECRET_HEADER.search(name) and not _VARIABLE.search(value):
                raise ValueError(
                    f"header {name!r} holds a key: put the key into an environment variable, and $ITS_NAME here"
                )
        if not is_number(poll_interval, above=0):
            raise ValueError(f"poll_interval must be seconds above 0, got {poll_interval!r}")
        self.poll_interval = poll_interval
        super().__init__(
            Limits(concurrency, timeout, retries, requests_per_minute, budget, price_per_image),
            url=url,
            body=body,
            result=result,
            method=method,
            encoding=encoding,
            mask=mask,
            poll=poll,
            multiple=multiple,
            min_side=min_side,
        )

    def check_options(self, options: Mapping[str, Any]) -> None:
        """The description is one that a request can be made of."""
        if not isinstance(options["url"], str) or urlsplit(options["url"]).scheme not in ("http", "https"):
            raise ValueError(f"url must be an address with http:// or https://, got {options['url']!r}")
        if _VARIABLE.search(options["url"]):
            raise ValueError("url must hold no variable: keys belong into headers, since addresses are logged")
        for name, allowed in (("method", ("POST", "PUT")), ("encoding", ("json", "multipart")), ("mask", _MASKS)):
            if options[name] not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {options[name]!r}")
        body = options["body"]
        picture = "{image}" in str(body) or (options["mask"] == "alpha" and "{mask}" in str(body))
        if not isinstance(body, Mapping) or not picture:
            raise ValueError(f"body must be an object with {{image}} somewhere in it, got {body!r}")
        poll = options["poll"]
        if poll is not None and (not isinstance(poll, Mapping) or not {"url", "status", "done"} <= set(poll) <= _POLL):
            raise ValueError(f"poll must have 'url', 'status' and 'done', and may have 'refused', got {poll!r}")
        if poll is not None and options["result"] is None:
            raise ValueError("poll needs result: where in the last answer the picture is")
        check_sizes(options)

    def service_size(self, options: Mapping[str, Any], height: int, width: int) -> tuple[int, int]:
        """The picture's own size, large enough and a multiple of what the service needs."""
        return fitted_size(options, height, width)

    def secret_names(self) -> list[str]:
        """Variables that the headers name."""
        return [match[1] or match[2] for value in self.headers.values() for match in _VARIABLE.finditer(value)]

    def _connect(self, options: Mapping[str, Any]) -> AbstractContextManager[Any]:
        import requests

        session = requests.Session()
        session.headers.update(
            {
                name: _VARIABLE.sub(lambda match: cast(str, self.secret(match[1] or match[2])), value)
                for name, value in self.headers.items()
            }
        )
        return session

    def _request(self, client: Any, request: FillRequest) -> tuple[bytes, float | None]:
        options = request.options
        height, width = request.image.shape[-2:]
        values = {
            "image": request.image_png,
            "mask": lambda: request.mask_png(options["mask"]),
            "prompt": lambda: request.prompt,
            "negative_prompt": lambda: request.negative_prompt,
            "seed": lambda: request.seed,
            "width": lambda: width,
            "height": lambda: height,
        }
        if options["encoding"] == "json":
            files = {name: (lambda make=values[name]: encoded(make())) for name in ("image", "mask")}
            sent: dict[str, Any] = {"json": render(options["body"], {**values, **files})}
        else:
            parts = render(options["body"], values)
            sent = {
                "files": [
                    (name, (f"{name}.png", value, "image/png") if isinstance(value, bytes) else (None, str(value)))
                    for name, value in parts.items()
                ]
            }
        answer = self._send(client, options["method"], options["url"], **sent)
        if options["result"] is None:
            return answer.content, None
        data = _json(answer)
        if options["poll"] is not None:
            data = self._polled(client, options["url"], data, options["poll"])
        try:
            found = look_up(data, options["result"])
        except KeyError as error:
            raise RequestFailedError("invalid", f"no picture in the answer: {error}", charged=True) from None
        return self._picture(found), None

    def _send(self, client: Any, method: str, url: str, **content: Any) -> Any:
        # A redirect would take the key to wherever the service says.
        answer = client.request(method, url, timeout=self.limits.timeout, allow_redirects=False, **content)
        if answer.status_code >= 300:
            raise status_failure(answer.status_code, answer.text, answer.headers)
        return answer

    def _polled(self, client: Any, url: str, data: Any, poll: Mapping[str, Any]) -> Any:
        """What the service says when the picture is ready."""
        try:
            address = urljoin(url, look_up(data, poll["url"]))
        except KeyError as error:
            raise RequestFailedError("invalid", f"no address to ask in the answer: {error}", charged=True) from None
        if not _related(address, url):
            raise RequestFailedError(
                "gone",
                f"the service wants to be asked at {urlsplit(address).netloc}, which is not its own: no key goes there",
            )
        deadline = time.monotonic() + self.limits.timeout
        while True:
            state = "unknown"
            try:
                data = _json(self._send(client, "GET", address))
                state = str(look_up(data, poll["status"]))
            except KeyError as error:
                raise RequestFailedError("invalid", f"no state in the answer: {error}", charged=True) from None
            except Exception as error:  # the picture is being drawn all the same: asking again costs nothing
                failure = failure_of(error)
                if failure.kind not in ("busy", "offline"):
                    raise failure from None
            if state in poll["done"]:
                return data
            if state in poll.get("refused", ()):
                raise RequestFailedError("refused", f"the service refused the picture or its text ({state})")
            if re.search("error|fail", state, re.IGNORECASE):
                raise RequestFailedError("busy", f"the service failed ({state})")
            if time.monotonic() > deadline:
                raise RequestFailedError(
                    "busy", f"not ready after {self.limits.timeout:g} s (state {state}); raise timeout", charged=True
                )
            time.sleep(self.poll_interval)

    def _picture(self, found: Any) -> bytes:
        """The file that base64 text, a data address or an address stands for."""
        import requests

        if not isinstance(found, str):
            raise RequestFailedError("invalid", f"the result is no text but {type(found).__name__}", charged=True)
        if found.startswith(("http://", "https://")):
            # Without the session: results lie elsewhere, often under a signed address, and no key belongs there.
            answer = requests.get(found, timeout=self.limits.timeout)
            if answer.status_code >= 300:
                raise RequestFailedError("busy", f"no result at its address: HTTP {answer.status_code}", charged=True)
            return cast(bytes, answer.content)
        try:
            return base64.b64decode(found.partition(",")[2] if found.startswith("data:") else found, validate=True)
        except binascii.Error as error:
            raise RequestFailedError("busy", f"the result is no base64 ({error})", charged=True) from None


def _related(address: str, url: str) -> bool:
    """Whether two addresses belong to one service: the same host, or hosts of one domain, and no less secure."""
    there, here = urlsplit(address), urlsplit(url)
    domains = [(part.hostname or "").split(".")[-2:] for part in (there, here)]
    same = there.netloc == here.netloc or (domains[0] == domains[1] and not domains[0][-1].isdigit())
    return same and (there.scheme == "https" or there.scheme == here.scheme)


def _json(answer: Any) -> Any:
    try:
        return answer.json()
    except ValueError as error:
        raise RequestFailedError("busy", f"the answer is no JSON ({error})", charged=True) from None
