"""A collection written as an SQLite file of the old system: the way back."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

from pgcorpus.db.choices import DEFAULT_COLLECTION
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import NotFound
from pgcorpus.db.models.documentation import KEPT
from pgcorpus.db.repositories.documentation.exports import Rows
from pgcorpus.db.repositories.documentation.feedback import ClickRecord
from pgcorpus.db.scope import Scope
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.corpus import Progress
from pgcorpus.services.documentation.sqlite.mapping import (
    MODEL,
    restore_chunk,
    restore_click,
    restore_document,
    restore_session,
)
from pgcorpus.services.documentation.sqlite.records import (
    SQLiteChunk,
    SQLiteClick,
    SQLiteDocument,
    SQLiteSession,
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

    def write(self, path: Path, *, progress: Progress = lambda _done, _total: None) -> Written:
        """Write the file; it is there when it is whole, or not at all.

        Args:
            path: Where it will be.
            progress: Is told how many documents are written, of how many.

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
            zones = work.documentation_exports.list_zones(self._collection)
            with (
                closing(self._read_documents(work, crawled=total == crawled)) as documents,
                closing(self._read_clicks(work)) as clicks,
                closing(self._read_sessions(work)) as sessions,
            ):
                others = () if total == crawled else (clicks, sessions)
                # Times that were read in several zones are written with them.
                zone = ZoneInfo(zones[0]) if len(zones) == 1 else _UTC
                counted = _count(documents, total, progress)
                return write_database(path, counted, *others, zone=zone, replace=self._replace)

    def _read_documents(self, work: UnitOfWork, *, crawled: bool) -> Generator[SQLiteDocument]:
        with work.documentation_exports.stream_documents(self._collection) as documents:
            if crawled:
                yield from (restore_document(e, e["metadata"][KEPT]["document"]) for e in documents)
                return
            chunks = work.documentation_exports.stream_chunks(self._collection, MODEL)
            with chunks as rows:
                yield from _join(documents, rows)

    def _read_clicks(self, work: UnitOfWork) -> Generator[SQLiteClick]:
        with work.documentation_exports.stream_clicks(self._collection) as rows:
            for row in rows:
                record = ClickRecord(**{name: row[name] for name in ClickRecord.__slots__})
                yield restore_click(record, row["table"], row["number"], row["chunk"])

    def _read_sessions(self, work: UnitOfWork) -> Generator[SQLiteSession]:
        with work.documentation_exports.stream_sessions(self._collection) as rows:
            yield from (restore_session(row, row["number"]) for row in rows)


def _count(
    documents: Iterable[SQLiteDocument], total: int, progress: Progress
) -> Iterator[SQLiteDocument]:
    """Yield documents, and tell how many of them are written."""
    for done, document in enumerate(documents):
        progress(done, total)
        yield document
    progress(total, total)


def _join(documents: Rows, rows: Rows) -> Iterator[SQLiteDocument]:
    """Yield documents with their chunks; both are in the order of the documents' numbers."""
    groups = groupby(rows, key=itemgetter("document"))
    number, group = next(groups, (None, iter(())))
    for document in documents:
        chunks: list[SQLiteChunk] = []
        if number == document["number"]:
            chunks = [restore_chunk(each, each["number"], each["embedding"]) for each in group]
            number, group = next(groups, (None, iter(())))
        stored = restore_document(document, document["number"], chunks)
        yield replace(stored, content=None)  # one of the crawler's among others has chunks
