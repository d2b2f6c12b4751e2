"""Notes that are buffered and written in batches, off the request path."""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DatabaseReadOnly, DataLayerError, NotPermitted

logger = logging.getLogger(__name__)

BATCH: Final = 200
FLUSH_SECONDS: Final = 5.0
MAX_BUFFERED: Final = 10_000
"""Notes that are kept while the database does not take them; then some are dropped."""


class WriteBehind(ABC):
    """Calls ``flush`` every few seconds from a thread of its own, once something was noted.

    Noting never waits, and notes that cannot be written are a warning, not an error. A login that
    may not write them is told so once, and nothing is noted from then on. A standby takes none,
    which is no fault: they are dropped, and each flush asks again, as it may have been promoted.
    Neither the thread nor the hook at the exit keeps a service alive that is no longer used.

    Args:
        name: Of the thread.
        database: Where to. What was noted is written before it is closed.
    """

    def __init__(self, name: str, database: Database) -> None:
        self._name = name
        self._database = database
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._writer: threading.Thread | None = None
        self._refused = False

    def flush(self) -> None:
        """Write the buffered notes now; wait for those that another thread is writing."""
        with self._lock:
            self._write_noted()

    @abstractmethod
    def _write_noted(self) -> None:
        """Write the buffered notes, within ``_warning``; ask first whether that is possible."""

    @contextmanager
    def _warning(self, lost: str) -> Iterator[None]:
        """Turn a failure to write notes into a warning.

        Args:
            lost: What is not written then: "3 searches were not logged".
        """
        try:
            yield
        except NotPermitted as error:  # a login that only reads: said once, not every flush
            if not self._refused:
                logger.warning("%s, nor will any more be: %s", lost, error)
            self._refused = True
        except DatabaseReadOnly as error:
            logger.debug("%s: %s", lost, error)
        except (DataLayerError, SQLAlchemyError) as error:
            logger.warning("%s: %s", lost, error)

    def _schedule_flush(self, buffered: int) -> None:
        """Make sure that notes are written, at once where there is a batch of them."""
        if self._writer is None:
            self._start()
        if buffered >= BATCH:
            self._wake.set()

    def _start(self) -> None:
        with self._lock:
            if self._writer is None:
                log = weakref.ref(self)
                self._writer = threading.Thread(
                    target=_write, args=(log, self._wake), name=self._name, daemon=True
                )
                self._writer.start()
                atexit.register(_flush, log)
                self._database.flush_before_close(self)
                weakref.finalize(self, self._wake.set)


def _write(log: weakref.ref[WriteBehind], wake: threading.Event) -> None:
    while log() is not None:
        wake.wait(FLUSH_SECONDS)
        wake.clear()
        _flush(log)


def _flush(log: weakref.ref[WriteBehind]) -> None:
    if (found := log()) is not None:
        found.flush()
