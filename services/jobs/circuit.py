"""A circuit breaker: who does not answer is not asked again at once."""

from __future__ import annotations

import random
import threading
import time
from typing import Final

FIRST_PAUSE_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 60.0


class Circuit:
    """Lets work through until it fails for a reason outside of it, then single probes.

    After n failures in a row the next probe is let through when half to all of 2^(n-1) seconds,
    of a minute at most, have passed; the first success lets everything through again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures = 0
        self._closed_until = 0.0

    def admits(self) -> bool:
        """Whether work may begin. A probe keeps all others out until what it does is known."""
        with self._lock:
            if not self._failures:
                return True
            if time.monotonic() < self._closed_until:
                return False
            self._closed_until = time.monotonic() + LONGEST_PAUSE_SECONDS
            return True

    def pass_on(self) -> None:
        """There was nothing to probe with: let the next try."""
        with self._lock:
            self._closed_until = 0.0

    def succeeded(self) -> None:
        """Let everything through."""
        with self._lock:
            self._failures = 0

    def failed(self) -> tuple[bool, float]:
        """Keep work out for a while.

        Returns:
            Whether this is the first failure in a row, and for how many seconds.
        """
        with self._lock:
            pause = min(FIRST_PAUSE_SECONDS * 2**self._failures, LONGEST_PAUSE_SECONDS)
            pause *= random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
            self._failures += 1
            self._closed_until = time.monotonic() + pause
            return self._failures == 1, pause
