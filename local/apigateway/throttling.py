"""Token buckets: how many requests of a kind are let through.

https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-request-throttling.html
"""

import threading
import time
from collections.abc import Hashable


class Throttles:
    """A bucket for each key: it holds `burst` tokens, and `rate` more come in every second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buckets: dict[tuple[Hashable, float, int], tuple[float, float]] = {}

    def allow(self, key: Hashable, rate: float, burst: int) -> bool:
        """Take a token, if there is one. Other limits than before start with a full bucket."""
        now = time.monotonic()
        with self._lock:
            tokens, since = self._buckets.get((key, rate, burst), (float(burst), now))
            tokens = min(float(burst), tokens + (now - since) * rate)
            allowed = tokens >= 1
            self._buckets[key, rate, burst] = (tokens - 1 if allowed else tokens, now)
            return allowed
