"""Fills from the inference providers of the Hugging Face hub, or an endpoint of one's own."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from infill_aug.descriptor import TaskDescriptor
from infill_aug.infill.backend import BackendUnavailableError
from infill_aug.infill.cloud.base import CloudBackend, FillRequest, encoded
from infill_aug.infill.cloud.failure import RequestFailedError, failure_of
from infill_aug.infill.cloud.limits import Limits
from infill_aug.infill.cloud.sizes import check_sizes, fitted_size
from infill_aug.infill.cloud.template import render
from infill_aug.infill.prompts import edit_prompt


class HuggingFaceBackend(CloudBackend):
    """Edits through ``InferenceClient.image_to_image`` of ``huggingface_hub``.

    The task has no mask: by default the service gets the picture with a blurred area and is told to fill it. Where a
    provider or an endpoint takes a mask under a name of its own, say so in ``parameters``, for example
    ``{"mask_url": "data:image/png;base64,{mask}"}``.

    Args:
        model: id on the hub.
        provider: name of an inference provider; ``"auto"``: the first that has the model.
        base_url: address of an endpoint of one's own, instead of model and provider.
        parameters: further parameters of the provider by name. Their strings may hold ``{mask}`` (base64 PNG, white =
            fill), ``{seed}``, ``{width}`` and ``{height}``.
        multiple: sides of the picture that is sent are multiples of this many pixels, 1 or more.
        min_side: smaller pictures are enlarged to this many pixels on their shorter side, 1 or more.
        api_key_env: see ``CloudBackend``. ``None``: no key, or the one that the client has saved.
        concurrency: most requests at once; see ``Limits``, as for all further arguments.
        timeout: seconds.
        retries: repetitions of a request.
        requests_per_minute: most requests a minute.
        budget: most US dollars to spend.
        price_per_image: US dollars for one fill; providers differ, none is known.

    Raises:
        ImportError: the client is not installed.
        ValueError: an argument out of range.

    Example:
        >>> HuggingFaceBackend(parameters={"guidance_scale": 3.0}).options["provider"]
        'auto'
    """

    name = "huggingface"
    nested_options = frozenset({"parameters"})

    def __init__(
        self,
        model: str | None = "black-forest-labs/FLUX.1-Kontext-dev",
        provider: str = "auto",
        base_url: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        multiple: int = 16,
        min_side: int = 512,
        api_key_env: str | None = "HF_TOKEN",
        concurrency: int = 4,
        timeout: float = 180.0,
        retries: int = 4,
        requests_per_minute: float | None = None,
        budget: float | None = None,
        price_per_image: float | None = None,
    ) -> None:
        try:
            import huggingface_hub  # noqa: F401 - fail here, with the remedy, not in the middle of a build
        except ImportError as error:
            raise ImportError("backend 'huggingface' needs its client: pip install 'infill-aug[cloud]'") from error
        super().__init__(
            Limits(concurrency, timeout, retries, requests_per_minute, budget, price_per_image),
            api_key_env,
            model=model,
            provider=provider,
            base_url=base_url,
            parameters={"seed": "{seed}"} if parameters is None else dict(parameters),
            multiple=multiple,
            min_side=min_side,
        )

    def check_options(self, options: Mapping[str, Any]) -> None:
        """There is a model or an address; parameters are an object; sizes are whole numbers."""
        if not options["model"] and not options["base_url"]:
            raise ValueError("model must be an id on the hub, or base_url an address; both are missing")
        if not isinstance(options["parameters"], Mapping):
            raise ValueError(f"parameters must be an object of names and values, got {options['parameters']!r}")
        check_sizes(options)

    def texts(self, descriptor: TaskDescriptor) -> tuple[str, str]:
        """An instruction, since models of this task edit pictures; and what must not be drawn."""
        return edit_prompt(descriptor, "the blurred area")

    def service_size(self, options: Mapping[str, Any], height: int, width: int) -> tuple[int, int]:
        """The picture's own size, large enough and a multiple of what the model needs."""
        return fitted_size(options, height, width)

    def _connect(self, options: Mapping[str, Any]) -> AbstractContextManager[Any]:
        from huggingface_hub import InferenceClient

        try:
            return contextlib.nullcontext(
                InferenceClient(
                    model=options["base_url"] or options["model"],
                    # An address of one's own speaks the hub's own protocol.
                    provider="hf-inference" if options["base_url"] else options["provider"],
                    token=self.secret(self.api_key_env),
                    timeout=self.limits.timeout,
                )
            )
        except ValueError as error:
            raise BackendUnavailableError(f"backend 'huggingface': {error}") from None

    def _request(self, client: Any, request: FillRequest) -> tuple[bytes, float | None]:
        height, width = request.image.shape[-2:]
        values = {
            "mask": lambda: encoded(request.mask_png("white")),
            "seed": lambda: request.seed,
            "width": lambda: width,
            "height": lambda: height,
        }
        parameters = render(request.options["parameters"], values)
        if request.negative_prompt:
            parameters.setdefault("negative_prompt", request.negative_prompt)
        try:
            picture = client.image_to_image(request.image_png(), prompt=request.prompt, **parameters)
        except Exception as error:
            failure = failure_of(error)
            if failure.kind == "invalid" and getattr(error, "response", None) is None:
                if isinstance(error, OSError):  # of the imaging library, which the client hands the answer to
                    raise RequestFailedError("busy", f"the answer is no picture ({error})", charged=True) from None
                if isinstance(error, ValueError):  # nothing was sent: no provider has the model
                    raise RequestFailedError("gone", str(error)) from None
            raise failure from None
        file = io.BytesIO()
        try:  # the client has looked at the head of the file only
            picture.convert("RGB").save(file, "PNG", compress_level=1)
        except Exception as error:
            raise RequestFailedError("busy", f"the answer is no whole picture ({error})", charged=True) from None
        return file.getvalue(), None
