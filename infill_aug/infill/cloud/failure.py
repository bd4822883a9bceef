"""What went wrong with a request to a service, from the errors of any of the clients."""

from __future__ import annotations

import datetime
import email.utils
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from infill_aug.infill.backend import InfillError

Kind = Literal["refused", "invalid", "busy", "offline", "gone"]

_MODERATION = re.compile(r"moderat|content.?polic|safety|nsfw|content.?filter", re.IGNORECASE)
_NO_MONEY = re.compile(r"insufficient.?(quota|credit|balance)|billing.?hard.?limit", re.IGNORECASE)
# Names, since each client brings its own classes: a library that is not installed cannot be asked for them.
_OFFLINE = {
    "ConnectError", "ConnectTimeout", "ConnectTimeoutError", "ConnectionRefusedError", "NameResolutionError",
    "NewConnectionError", "OfflineModeIsEnabled", "ProxyError", "SSLError", "gaierror",
}  # fmt: skip
_BROKEN = {
    "APIConnectionError", "APIResponseValidationError", "ChunkedEncodingError", "ConnectionError", "IncompleteRead",
    "JSONDecodeError", "NetworkError", "ProtocolError", "RemoteProtocolError", "Timeout", "TimeoutError",
    "TimeoutException",
}  # fmt: skip
_REMEDY = {
    401: "the key is wrong",
    402: "the account has no credit",
    403: "the key may not do this",
    404: "there is no such model or address",
}


class RequestFailedError(InfillError):
    """One request to a service failed.

    Args:
        kind: ``refused``: this picture or its text, for good. ``invalid``: the service calls the request wrong.
            ``busy``: it may go better next time. ``offline``: the service cannot be reached. ``gone``: no request of
            this backend can succeed.
        reason: what happened, for people.
        wait: seconds that the service wants to be left alone, where it said so.
        charged: whether the service may ask money for it.
    """

    def __init__(self, kind: Kind, reason: str, wait: float | None = None, charged: bool = False) -> None:
        super().__init__(reason)
        self.kind = kind
        self.wait = wait
        self.charged = charged


def status_failure(status: int, text: str, headers: Mapping[str, str]) -> RequestFailedError:
    """What an HTTP status other than success means.

    Example:
        >>> status_failure(429, "slow down", {"retry-after": "7"}).wait
        7.0
        >>> status_failure(400, '{"code": "moderation_blocked"}', {}).kind
        'refused'
    """
    reason = f"HTTP {status}: {' '.join(text.split())[:300]}"
    if _NO_MONEY.search(text):
        return RequestFailedError("gone", f"{_REMEDY[402]} ({reason})")
    if status in (400, 403, 422, 451) and _MODERATION.search(text):
        return RequestFailedError("refused", f"the service refused the picture or its text ({reason})")
    if status in _REMEDY:
        return RequestFailedError("gone", f"{_REMEDY[status]} ({reason})")
    if status in (408, 409, 425, 429) or status >= 500:
        return RequestFailedError("busy", f"the service is busy or out of order ({reason})", wait=_retry_after(headers))
    return RequestFailedError("invalid", f"the service calls the request wrong ({reason})")


def failure_of(error: Exception) -> RequestFailedError:
    """What an exception of a client means: of ``openai``, ``huggingface_hub`` or ``requests``.

    Example:
        >>> failure_of(ConnectionRefusedError("no")).kind
        'offline'
    """
    if isinstance(error, RequestFailedError):
        return error
    response = getattr(error, "response", None)
    if response is not None and getattr(response, "status_code", 200) >= 300:
        return status_failure(response.status_code, response.text, response.headers)
    names = {cls.__name__ for each in _chain(error) for cls in type(each).__mro__}
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if names & _OFFLINE:
        return RequestFailedError("offline", f"the service cannot be reached ({reason})")
    if names & _BROKEN:
        # The service may have drawn the picture all the same.
        return RequestFailedError("busy", f"no complete answer came ({reason})", charged=True)
    return RequestFailedError("invalid", reason)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those it stands for; requests and urllib3 hide them in arguments."""
    waiting: list[Any] = [error]
    for _ in range(20):
        if not waiting:
            return
        each = waiting.pop()
        if isinstance(each, BaseException):
            yield each
            waiting += [each.__cause__, each.__context__, getattr(each, "reason", None), *each.args]


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a ``Retry-After`` header, which holds seconds or a date."""
    value = headers.get("retry-after") or headers.get("Retry-After")
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (date - datetime.datetime.now(datetime.UTC)).total_seconds())
