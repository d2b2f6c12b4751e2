"""Values that a thread of its own reads anew when they are asked for and old."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final, Generic, NamedTuple, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

BUSY_SHARE: Final = 0.05
"""The most of the time that is spent on reading a value: what takes long is read less often."""


class Reading(NamedTuple, Generic[T]):
    """A value, and how it was read.

    Attributes:
        value: None if the last try to read it has failed.
        read_at: Moment of the last try that succeeded, in seconds since the epoch; 0 before it.
        seconds: Duration of that try.
    """

    value: T | None
    read_at: float
    seconds: float


class Refreshed(Generic[T]):
    """A value that is read at most every so many seconds, never twice at once.

    Who asks waits for a limited time; a read that takes longer goes on, and who asks later finds
    its value.

    Args:
        name: Of the value, for the thread and the log.
        read: Reads it; may raise.
        keep_seconds: How long it is kept.
    """

    def __init__(self, name: str, read: Callable[[], T], keep_seconds: float) -> None:
        self._name = name
        self._read = read
        self._keep_seconds = keep_seconds
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._reading = False
        self._last: Reading[T] | None = None
        self._due = 0.0
        self._failure: str | None = None

    def get(self, timeout_seconds: float) -> Reading[T] | None:
        """Return the value, read anew if it is old.

        Args:
            timeout_seconds: Longest wait for that.

        Returns:
            The last reading where a new one takes longer; None before the first.
        """
        with self._lock:
            if not self._reading and time.monotonic() >= self._due:
                self._reading = True
                self._done.clear()
                threading.Thread(target=self._refresh, name=self._name, daemon=True).start()
            waits = self._reading
        if waits:
            self._done.wait(timeout_seconds)
        return self._last

    @property
    def is_late(self) -> bool:
        """True while a value is being read."""
        return self._reading

    def _refresh(self) -> None:
        began = time.monotonic()
        value: T | None = None
        try:
            value = self._read()
        except Exception as error:  # noqa: BLE001 - a scrape has no caller to tell
            self._tell(error)
        else:
            self._failure = None
        seconds = time.monotonic() - began
        with self._lock:
            before = 0.0 if self._last is None else self._last.read_at
            self._last = Reading(value, before if value is None else time.time(), seconds)
            self._due = time.monotonic() + max(self._keep_seconds, seconds / BUSY_SHARE)
            self._reading = False
            self._done.set()

    def _tell(self, error: Exception) -> None:
        """Log a failure, once until it is another or has passed."""
        failure = f"{type(error).__name__}: {error}"
        if failure != self._failure:
            logger.warning("%s cannot be read: %s", self._name, failure.splitlines()[0])
        self._failure = failure
