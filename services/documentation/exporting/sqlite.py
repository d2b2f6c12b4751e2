"""A collection written as an SQLite file of the old system: the way back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import NotFound
from pgcorpus.db.models.documentation import DEFAULT_COLLECTION, KEPT
from pgcorpus.db.repositories.documentation.feedback import ClickRecord
from pgcorpus.db.scope import Scope
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.documentation.sqlite.mapping import (
    MODEL,
    restore_chunk,
    restore_click,
    restore_document,
    restore_session,
)
from pgcorpus.services.documentation.sqlite.records import (
    StoredClick,
    StoredDocument,
    StoredSession,
)
from pgcorpus.services.documentation.sqlite.writing import Written, write_database

_UTC: Final = ZoneInfo("UTC")


class SQLiteExporter:
    """Writes a collection as a file of the old system.

    What was imported from such a file is written as it stood there; what was changed or added here
    is written as it is now. Documents that are whole as the crawler stored them make a file of the
    crawler. A document at a time is in memory, and all is of one moment.

    Args:
        database: Where from.
        scope: The tenant whose documents they are; None: everybody's.
        collection: The collection that is written.
        replace: Whether a file that is there is replaced.
    """

    def __init__(
        self,
        database: Database,
        scope: Scope | None = None,
        *,
        collection: str = DEFAULT_COLLECTION,
        replace: bool = False,
    ) -> None:
        self._database = database
        self._scope = scope
        self._collection = collection
        self._replace = replace

    def write(self, path: Path) -> Written:
        """Write the file; it is there when it is whole, or not at all.

        Returns:
            The numbers of rows.

        Raises:
            NotFound: The collection has no document.
            Misuse: There is such a file already.
            DataLayerError: It cannot be written.
        """
        with self._database.unit_of_work() as work:
            if self._scope is not None:
                work.enter(self._scope)
            work.documentation_exports.begin()
            total, crawled = work.documentation_exports.count_documents(self._collection)
            if not total:
                raise NotFound(
                    f"there is no document in the collection {self._collection!r}; see: "
                    "pgcorpus documents list"
                )
            if total == crawled:
                whole = self._read_crawled(work)
                return write_database(path, whole, replace=self._replace)
            zones = work.documentation_exports.list_zones(self._collection)
            return write_database(
                path,
                self._read_documents(work),
                self._read_clicks(work),
                self._read_sessions(work),
                # Times that were read in several zones are written with them.
                zone=ZoneInfo(zones[0]) if len(zones) == 1 else _UTC,
                replace=self._replace,
            )

    def _read_crawled(self, work: UnitOfWork) -> Iterator[StoredDocument]:
        for row in work.documentation_exports.stream_documents(self._collection):
            yield restore_document(row, row["metadata"][KEPT]["document"])

    def _read_documents(self, work: UnitOfWork) -> Iterator[StoredDocument]:
        documents = work.documentation_exports.stream_documents(self._collection)
        rows = work.documentation_exports.stream_chunks(self._collection, MODEL)
        groups = groupby(rows, key=itemgetter("document"))
        number, group = next(groups, (None, iter(())))
        for document in documents:
            chunks: list[dict[str, Any]] = []
            if number == document["number"]:
                chunks = list(group)
                number, group = next(groups, (None, iter(())))
            restored = (restore_chunk(row, row["number"], row["embedding"]) for row in chunks)
            stored = restore_document(document, document["number"], tuple(restored))
            yield replace(stored, content=None)  # one of the crawler's among others has chunks

    def _read_clicks(self, work: UnitOfWork) -> Iterator[StoredClick]:
        for row in work.documentation_exports.stream_clicks(self._collection):
            record = ClickRecord(**{name: row[name] for name in ClickRecord.__slots__})
            yield restore_click(record, row["table"], row["number"], row["chunk"])

    def _read_sessions(self, work: UnitOfWork) -> Iterator[StoredSession]:
        for row in work.documentation_exports.stream_sessions(self._collection):
            yield restore_session(row, row["number"])
