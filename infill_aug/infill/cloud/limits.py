"""How fast a service may be asked, for how much money, and how often in vain."""

from __future__ import annotations

import math
import threading
import time
from typing import Any

from infill_aug.infill.cloud.failure import RequestFailedError


class Limits:
    """Counts requests, dollars and failures of one backend, for all its threads.

    Args:
        requests_per_minute: most requests, evenly spaced; ``None``: no limit.
        budget: most US dollars that may be spent; ``None``: no limit.

    Example:
        >>> limits = Limits(budget=0.05)
        >>> limits.pay(0.03)
        >>> limits.refund(0.03)
        >>> limits.spent
        0.0
    """

    def __init__(self, requests_per_minute: float | None = None, budget: float | None = None) -> None:
        self.requests_per_minute = requests_per_minute
        self.budget = budget
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
