"""A circuit breaker: a service that does not answer is not asked again at once."""

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
    of a minute at most, have passed; the first success lets everything through again. Before that
    the first probe need not wait.

    Attributes:
        proven: Whether anything has succeeded so far.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures = 0
        self._closed_until = 0.0
        self._prober: int | None = None
        self.proven = False

    def admits(self, jobs: int) -> int:
        """Return how many of so many jobs may begin: all, one as a probe, or none.

        A probe keeps all others out until ``note_success``, ``note_failure`` or ``pass_on`` reports
        its result, or for a minute if none does.
        """
        with self._lock:
            if not self._failures:
                return jobs
            if time.monotonic() < self._closed_until:
                return 0
            self._closed_until = time.monotonic() + LONGEST_PAUSE_SECONDS
            self._prober = threading.get_ident()
            return 1

    def pass_on(self) -> None:
        """Let another thread probe, if this one was to and has no result."""
        with self._lock:
            if self._prober == threading.get_ident():
                self._prober = None
                self._closed_until = 0.0

    def note_success(self) -> None:
        """Let everything through."""
        with self._lock:
            self._failures = 0
            self._prober = None
            self.proven = True

    def note_failure(self) -> tuple[bool, float]:
        """Keep work out for a while.

        Returns:
            Whether the work itself may be to blame, since there was an answer the time before, and
            for how many seconds it is kept out.
        """
        with self._lock:
            pause = min(FIRST_PAUSE_SECONDS * 2**self._failures, LONGEST_PAUSE_SECONDS)
            pause *= random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
            suspect = self.proven and not self._failures
            self._failures += 1
            self._prober = None
            # Where nothing has succeeded yet, one more may try at once: it may have been the work.
            fresh = self._failures == 1 and not self.proven
            self._closed_until = time.monotonic() + (0.0 if fresh else pause)
            return suspect, pause
