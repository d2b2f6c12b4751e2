"""The recalls of memories, counted off the request path."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import islice
from typing import Final
from uuid import UUID

from pgcorpus.db.engine import Database
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.services.search.write_behind import MAX_BUFFERED, WriteBehind

MOST_TOUCHED: Final = 1000
"""Rows that one statement touches."""


class AccessLog(WriteBehind):
    """Buffers recalls of memories; one UPDATE for each scope and corpus writes them.

    What was recalled often in the meantime is one row to write. A flush that fails loses counts and
    nothing else. Recalls on a standby are not counted.

    Args:
        database: Where the memories are.
    """

    def __init__(self, database: Database) -> None:
        super().__init__("memory-access", database)
        self._noting = threading.Lock()
        self._recalled: dict[tuple[Scope, Corpus], Counter[UUID]] = defaultdict(Counter)

    def note(self, scope: Scope, corpus: Corpus, keys: Iterable[UUID]) -> None:
        """Note that memories or episodes were recalled.

        Args:
            scope: Whose they are.
            corpus: ``MEMORY`` or ``EPISODES``.
            keys: Their primary keys.
        """
        if self._refused:
            return
        with self._noting:
            buffered = sum(map(len, self._recalled.values()))
            if buffered < MAX_BUFFERED:
                self._recalled[scope, corpus].update(keys)
        self._schedule_flush(buffered)

    def _write_noted(self) -> None:
        with self._noting:
            recalled, self._recalled = self._recalled, defaultdict(Counter)
        moment = datetime.now(UTC)
        lost = f"up to {sum(map(len, recalled.values()))} recalled memories were not counted"
        with self._warning(lost):
            for (scope, corpus), times in recalled.items():
                counted = iter(times.items())
                while some := dict(islice(counted, MOST_TOUCHED)):
                    with self._database.unit_of_work(scope) as work:
                        work.operations.require_writable()
                        work.memory.touch(corpus, some, moment)
                        work.commit()
