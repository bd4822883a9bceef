"""How a service may be asked: how much at once, how fast, how often in vain, and for how much money."""

from __future__ import annotations

import math
import threading
import time
from typing import Any

from infill_aug.checks import is_integer, is_number
from infill_aug.infill.cloud.failure import RequestFailedError


class Limits:
    """What one backend may ask of its service; counts its requests, dollars and failures, for all its threads.

    Args:
        concurrency: most requests at once, 1 or more.
        timeout: seconds to wait for an answer, above 0.
        retries: how often a request that may go better next time is repeated, 0 or more.
        requests_per_minute: most requests a minute, above 0, evenly spaced; ``None``: no limit.
        budget: most US dollars that may be spent, 0 or more; ``None``: no limit.
        price_per_image: US dollars for one fill, 0 or more; ``None``: what is known of the model, if anything.

    Raises:
        ValueError: a limit out of range.

    Example:
        >>> limits = Limits(budget=0.05)
        >>> limits.pay(0.03)
        >>> limits.refund(0.03)
        >>> limits.spent
        0.0
    """

    def __init__(
        self,
        concurrency: int = 4,
        timeout: float = 180.0,
        retries: int = 4,
        requests_per_minute: float | None = None,
        budget: float | None = None,
        price_per_image: float | None = None,
    ) -> None:
        for name, value, least in (("concurrency", concurrency, 1), ("retries", retries, 0)):
            if not is_integer(value, least):
                raise ValueError(f"{name} must be an integer of {least} or more, got {value!r}")
        for name, number in (("timeout", timeout), ("requests_per_minute", requests_per_minute)):
            if not is_number(number, above=0) and (number is not None or name == "timeout"):
                raise ValueError(f"{name} must be a number above 0, got {number!r}")
        for name, number in (("budget", budget), ("price_per_image", price_per_image)):
            if not is_number(number, 0) and number is not None:
                raise ValueError(f"{name} must be US dollars of 0 or more, got {number!r}")
        self.concurrency = concurrency
        self.timeout = timeout
        self.retries = retries
        self.requests_per_minute = requests_per_minute
        self.budget = budget
        self.price_per_image = price_per_image
        self.spent = 0.0
        self.in_vain = 0  # requests in a row that failed for no reason of their own
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self, stop: threading.Event) -> None:
        """Return when the next request may go out, or at once when ``stop`` is set."""
        if self.requests_per_minute is None:
            return
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + 60 / self.requests_per_minute
        stop.wait(turn - now)

    def pay(self, price: float) -> None:
        """Set money aside before a request goes out; an unknown price, NaN, counts nothing.

        Raises:
            RequestFailedError: of kind ``gone``, where the budget does not allow it.
        """
        with self._lock:
            if self.budget is not None and self.spent + price > self.budget + 1e-9:
                raise RequestFailedError(
                    "gone",
                    f"the budget of {self.budget:.2f} US dollars is spent: {self.spent:.4f} went into fills and the "
                    f"next costs {price:.4f}. What was filled is kept; raise budget and run again to go on, or name a "
                    "fallback for the rest",
                )
            self.spent += 0.0 if math.isnan(price) else price

    def refund(self, price: float) -> None:
        """Give money back for a request that the service does not charge."""
        with self._lock:
            self.spent -= 0.0 if math.isnan(price) else price

    def count(self, failure: RequestFailedError | None) -> int:
        """Note how a request went, ``None`` for well; how many in a row failed for no reason of their own."""
        with self._lock:
            if failure is None or failure.kind == "refused":
                self.in_vain = 0
            elif failure.kind in ("offline", "invalid"):
                self.in_vain += 1
            return self.in_vain

    def __getstate__(self) -> dict[str, Any]:
        """Without the lock, which belongs to this process."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_next")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _next=0.0)
