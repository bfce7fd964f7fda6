"""Requests per second and caller: a token bucket each, in this process."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

MAX_CALLERS = 10_000
"""Buckets kept; the caller that was quiet longest is forgotten first, which gives it a full bucket again."""


class RateLimits:
    """Every caller may send `rate` requests per second on average, `burst` seconds' worth of them at once.

    Each web process counts for itself: behind a balancer a caller may send `rate` to every replica.
    """

    def __init__(self, *, burst: float = 2.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str, rate: float) -> int:
        """0 where the request may pass, otherwise whole seconds after which to ask again."""
        now = self._clock()
        full = max(1.0, rate * self._burst)
        tokens, filled = self._buckets.pop(caller, (full, now))
        tokens = min(full, tokens + (now - filled) * rate)
        passes = tokens >= 1.0
        if passes:
            tokens -= 1.0
        self._buckets[caller] = (tokens, now)
        if len(self._buckets) > MAX_CALLERS:
            self._buckets.popitem(last=False)
        return 0 if passes else max(1, math.ceil((1.0 - tokens) / rate))
