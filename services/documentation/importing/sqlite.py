"""The import of the old system's SQLite files: documents, chunks as stored, vectors and clicks."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import tzinfo
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import NAMESPACE_URL, UUID, uuid5
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from pgcorpus.db.errors import ConstraintViolated, ImportFailed, Misuse
from pgcorpus.db.models.embeddings import EmbeddingModel
from pgcorpus.db.repositories.documentation.documents import DocumentRecord
from pgcorpus.db.repositories.embeddings import list_faults
from pgcorpus.db.repositories.imports import Change, Changed
from pgcorpus.db.repositories.imports import Refused as Reject
from pgcorpus.db.search.corpora import DOCUMENTATION
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.documentation.drafting import Drafting
from pgcorpus.services.documentation.identity import chunk_ids
from pgcorpus.services.documentation.importing.report import DocumentationReport
from pgcorpus.services.documentation.reading.document import Unreadable
from pgcorpus.services.documentation.reading.formats import read_document
from pgcorpus.services.documentation.sqlite.mapping import (
    build_chunk,
    build_click,
    build_record,
    build_session,
    draft_document,
    rename_chunk,
)
from pgcorpus.services.documentation.sqlite.reading import MAGIC, SQLiteDatabase, open_database
from pgcorpus.services.documentation.sqlite.records import (
    Refused,
    SQLiteChunk,
    SQLiteClick,
    SQLiteDocument,
    SQLiteSession,
    SQLiteTime,
)
from pgcorpus.services.importers.draft import Rule
from pgcorpus.services.importers.files import key_of, printable
from pgcorpus.services.importers.importer import Bar, Run, ahead, merge_apart
from pgcorpus.services.importers.report import FileReport, Tally
from pgcorpus.services.importers.text import MAX_NAME

CORPUS: Final = DOCUMENTATION.name

T = TypeVar("T")

SUFFIXES: Final = frozenset((".db", ".sqlite", ".sqlite3"))

BATCH: Final = 3000
"""Chunks of a transaction: while one batch is written, the next is read."""

MANY_ROWS: Final = 5000
"""Clicks or sessions of a transaction."""

CRAWLED_NAME: Final = "page.md"
"""The format of what the crawler stored: Markdown, or text, which is read in the same way."""

NAMESPACE: Final = uuid5(NAMESPACE_URL, "https://pgcorpus.invalid/documentation/sqlite")
"""Namespace of keys that are made of what a row says: the same row is stored once."""


def is_database(path: Path) -> bool:
    """Return whether a file is SQLite's, by its first bytes, or is named like one."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC or path.suffix.lower() in SUFFIXES
    except OSError:
        return False


def read_zone(name: str) -> tzinfo:
    """Return the time zone of that name.

    Raises:
        Misuse: There is none.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise Misuse(f"there is no time zone {name!r}; one is named like Europe/Vienna") from error


@dataclass(slots=True)
class _Candidate:
    """A document of a file, or rows that are refused.

    Attributes:
        stored: As its file has it, without its chunks; None where rows are refused.
        record: As it is to be stored here, unless other documents have chunks of these names.
        chunks: Its chunks as the file has them.
        refused: Rows that are refused.
    """

    stored: SQLiteDocument | None = None
    record: DocumentRecord | None = None
    chunks: Sequence[SQLiteChunk] = ()
    refused: Sequence[Refused] = ()

    def refuse_for(self, error: ConstraintViolated) -> _Candidate:
        """Return the document as a refused row; raise *error* if it was refused before."""
        if self.stored is None:
            raise error
        # Some messages of the database quote what they are about.
        reason = str(error) if error.constraint else "the database refuses one of its values"
        return _Candidate(refused=[Refused("documents", _find_rowid(self.stored), reason)])


@dataclass(slots=True)
class _Batch:
    """Documents that are written in one transaction.

    Attributes:
        candidates: In the order of the file.
        rows: How many rows they are, for the progress.
    """

    candidates: list[_Candidate] = field(default_factory=list)
    rows: int = 0
    chunks: int = 0

    @property
    def is_full(self) -> bool:
        """True if it is written before more is added."""
        return self.chunks >= BATCH or self.rows >= BATCH


@dataclass
class DatabaseFilling:
    """The import of one file, under way.

    Attributes:
        run: The call of the importer.
        drafting: How texts are cut and named.
        path: The file.
        zone: Zone of times of clicks that name none.
    """

    run: Run[DocumentationReport]
    drafting: Drafting
    path: Path
    zone: tzinfo
    _report: FileReport = field(init=False)
    _models: dict[str, EmbeddingModel | None] = field(default_factory=dict)
    _repeated: set[str] = field(default_factory=set)
    _clicked: set[int] = field(default_factory=set)
    _names: dict[int, str] = field(default_factory=dict)
    _paths: set[str] = field(default_factory=set)
    _assumed: Counter[tuple[str, str]] = field(default_factory=Counter)
    _counts_from_0: bool = False
    _done: int = 0

    def __post_init__(self) -> None:
        self._file = key_of(self.path)
        self._report = FileReport(printable(self.path))

    def take_all(self, bar: Bar) -> None:
        """Import the file; what stands before an error in it is imported."""
        size = self.path.stat().st_size
        failure: ImportFailed | None = None
        try:
            with open_database(self.path, zone=self.zone) as found:
                total = sum(found.count_rows().values())
                show = partial(self._show, bar, size, total)
                self._repeated = found.list_repeated_names()
                self._clicked = found.list_clicked()
                with closing(ahead(self._batch(found))) as batches:
                    for batch in batches:
                        self._keep(batch.candidates)
                        show(batch.rows)
                for clicks in _split_rows(found.read_clicks()):
                    self._keep_clicks(clicks)
                    show(len(clicks))
                for sessions in _split_rows(found.read_sessions()):
                    self._keep_sessions(sessions)
                    show(len(sessions))
        except ImportFailed as error:
            failure = error
        self._finish(failure)
        bar.finish(size)

    def _show(self, bar: Bar, size: int, total: int, rows: int) -> None:
        self._done += rows
        bar.part(size, self._done, total)

    def _finish(self, failure: ImportFailed | None) -> None:
        self._report.error = None if failure is None else str(failure)
        changed = list(self._list_readings())
        with self.run.transaction() as work:
            work.imports.lock(CORPUS)
            if failure is None:
                work.imports.forget_refusals(self.run.id, CORPUS, self._file)
            if changed:
                work.imports.record_changes(self.run.id, self._file, changed)
            self.run.add_file(work, self._file, self._report.counts, error=self._report.error)
        self.run.report.files.append(self._report)

    def _list_readings(self) -> Iterator[Changed]:
        """Yield how columns of the whole file were read: once, not for each row."""
        for (name, zone), count in sorted(self._assumed.items()):
            table, _, column = name.partition(".")
            told = f"{count} times without a zone"
            change = Change(column, told, zone, Rule.ZONE.value)
            yield Changed(table, table, [change], once=True)
        if self._counts_from_0:
            change = Change("position", "from 0", "from 1", Rule.POSITION.value)
            yield Changed("click_events", "click_events", [change], once=True)

    def _batch(self, found: SQLiteDatabase) -> Iterator[_Batch]:
        """Yield the documents in batches, and what is refused of them."""
        batch = _Batch()
        for each in found.read_documents():
            candidate = self._draft(each)
            batch.candidates.append(candidate)
            chunks = len(candidate.record.chunks) if candidate.record else 0
            batch.chunks += chunks
            batch.rows += 1 + len(candidate.chunks)
            if batch.is_full:
                yield batch
                batch = _Batch()
        yield batch

    def _draft(self, stored: SQLiteDocument | Refused) -> _Candidate:
        """Make the record of a document."""
        if isinstance(stored, Refused):
            return _Candidate(refused=[stored])
        if stored.content is not None:
            return self._draft_crawled(stored, stored.content)
        record = build_record(stored, self.drafting.collection)
        chunks = [
            build_chunk(
                each,
                name=self._find_name(each),
                position=position,
                language=self.drafting.find_language(each.text, each.lang or stored.language),
                metadata=record.metadata,
            )
            for position, each in enumerate(stored.chunks)
        ]
        record = _rename_chunks(replace(record, chunks=chunks), {""})
        return _Candidate(stored, record, stored.chunks)

    def _find_name(self, chunk: SQLiteChunk) -> str:
        """Return the name that a chunk has in the file; nothing where it can be no key."""
        name = chunk.chunk_id or ""
        return "" if len(name) > MAX_NAME or name in self._repeated else name

    def _draft_crawled(self, stored: SQLiteDocument, content: str) -> _Candidate:
        """Cut what the crawler stored in one piece."""
        if stored.path in self._paths:
            reason = "its url is that of another row of the file"
            return _Candidate(refused=[Refused("documents", _find_rowid(stored), reason)])
        self._paths.add(stored.path)
        try:
            document = read_document(content.encode(), name=CRAWLED_NAME, base=stored.path)
        except Unreadable as error:
            refused = Refused("documents", _find_rowid(stored), str(error))
            return _Candidate(refused=[refused])
        record = self.drafting.draft(
            document,
            path=stored.path,
            digest=stored.hash or sha256(content.encode()).hexdigest(),
            title=stored.title,
            source_url=stored.source_url,
            metadata={**document.metadata, **stored.metadata},
        )
        captured = stored.captured_at
        record = replace(record, captured_at=None if captured is None else captured.at)
        return _Candidate(stored, draft_document(stored, record))

    def _keep(self, candidates: Sequence[_Candidate]) -> None:
        """Keep documents together; where one of them cannot be kept, the others."""
        for tally in merge_apart(candidates, self._merge, _Candidate.refuse_for):
            tally.add_to(self._report, self.run.report)

    def _merge(self, candidates: Sequence[_Candidate]) -> Tally:
        """Write documents, chunks and vectors in one transaction."""
        tally = Tally()
        for each in candidates:
            for row in each.refused:
                tally.refuse(_reject(row))
        taken = [each for each in candidates if each.record is not None]
        with self.run.transaction() as work:
            work.imports.lock(CORPUS)
            records = self._name_chunks(work, taken)
            written = work.documentation.write(records) if records else {}
            self._store_vectors(work, taken, records, tally)
            changed: list[Changed] = []
            for candidate, record in zip(taken, records, strict=True):
                counts = written[record.collection, record.path]
                for name in ("added", "updated", "unchanged"):
                    tally.counts[name] += getattr(counts, name)
                is_new = counts.added + counts.updated > 0
                changed += _list_changed(candidate, record, once=not is_new)
            if changed:
                transformed = work.imports.record_changes(self.run.id, self._file, changed)
                tally.counts["transformed"] = transformed
            if tally.refused:
                work.imports.record_refusals(self.run.id, CORPUS, self._file, tally.refused)
        self.run.report.documents += len(records)
        for candidate, record in zip(taken, records, strict=True):
            self._remember(candidate, record)
        return tally

    def _name_chunks(
        self, work: UnitOfWork, candidates: Sequence[_Candidate]
    ) -> list[DocumentRecord]:
        """Name the chunks as the file does, where no chunk of another document has that name."""
        records = [each.record for each in candidates if each.record is not None]
        given = [
            (record.path, chunk.chunk_id)
            for candidate, record in zip(candidates, records, strict=True)
            for stored, chunk in zip(candidate.chunks, record.chunks, strict=False)
            if stored.chunk_id == chunk.chunk_id
        ]
        if not given:
            return records
        collection = self.drafting.collection
        taken = work.documentation_imports.list_taken(given, collection=collection)
        return [_rename_chunks(each, taken) for each in records]

    def _store_vectors(
        self,
        work: UnitOfWork,
        candidates: Sequence[_Candidate],
        records: Sequence[DocumentRecord],
        tally: Tally,
    ) -> None:
        """Store the vectors of registered models, and count the others by the reason."""
        given: dict[tuple[str | None, int], list[tuple[str, np.ndarray]]] = defaultdict(list)
        for candidate, record in zip(candidates, records, strict=True):
            for chunk, stored in zip(candidate.chunks, record.chunks, strict=False):
                if chunk.vector is not None:
                    kind = chunk.model, len(chunk.vector)
                    given[kind].append((stored.chunk_id, chunk.vector))
        rows: list[tuple[str, str, np.ndarray]] = []
        for (name, dimensions), vectors in given.items():
            model = self._find_model(work, name, dimensions)
            if isinstance(model, str):
                tally.left_out[model] += len(vectors)
                continue
            faults = list_faults(np.stack([vector for _, vector in vectors]), model.index_kind)
            tally.left_out.update(f"one {fault.reason}" for fault in faults)
            unusable = {fault.row for fault in faults}
            rows += [
                (chunk_id, model.name, vector)
                for row, (chunk_id, vector) in enumerate(vectors)
                if row not in unusable
            ]
        if rows:
            collection = self.drafting.collection
            tally.embedded = work.documentation_imports.store_vectors(rows, collection=collection)

    def _find_model(
        self, work: UnitOfWork, name: str | None, dimensions: int
    ) -> EmbeddingModel | str:
        """Return the model of vectors, or why these cannot be stored."""
        if name is None:
            return f"nothing says which model made vectors of {dimensions} dimensions"
        if name not in self._models:
            self._models[name] = work.models.find_model(name)
        model = self._models[name]
        if model is None:
            return f"{name} is not registered; do it with: pgcorpus models add {name}"
        if model.dimensions != dimensions:
            return f"they have {dimensions} dimensions, and {name} has {model.dimensions}"
        return model

    def _remember(self, candidate: _Candidate, record: DocumentRecord) -> None:
        """Remember the names of clicked chunks, and which times named no zone."""
        assert candidate.stored is not None  # noqa: S101 - it has a record
        self._count_assumed("documents", [candidate.stored])
        self._count_assumed("chunks", candidate.chunks)
        for chunk, stored in zip(candidate.chunks, record.chunks, strict=False):
            if chunk.id in self._clicked:
                self._names[chunk.id] = stored.chunk_id

    def _count_assumed(self, table: str, rows: Iterable[Any]) -> None:
        for row in rows:
            for name in _TIMES[type(row)]:
                time: SQLiteTime | None = getattr(row, name)
                if time is not None and time.assumed is not None:
                    self._assumed[f"{table}.{name}", time.assumed] += 1

    def _keep_clicks(self, rows: Sequence[SQLiteClick | Refused]) -> None:
        """Store clicks; one that is stored already stays as it is."""
        tally = Tally()
        kept = []
        for row in rows:
            if isinstance(row, Refused):
                tally.refuse(_reject(row))
            elif (name := self._names.get(row.chunk_id)) is None:
                reason = f"its chunk {row.chunk_id} is refused"
                tally.refuse(_reject(Refused(row.table, row.id, reason)))
            else:
                id_ = self._make_key(row.table, row.id, name, row)
                record = build_click(row, id_=id_, chunk_id=name, now=self.drafting.moment)
                kept.append((row, record))
                self._count_assumed(row.table, [row])
                self._counts_from_0 |= row.table == "click_events"
        with self.run.transaction() as work:
            work.imports.lock(CORPUS)
            records = [record for _, record in kept]
            stored = work.feedback.write_clicks(records, collection=self.drafting.collection)
            self._tell(work, [row for row, _ in kept], tally)
        tally.add_to(self._report, self.run.report)
        self.run.report.clicks += stored

    def _keep_sessions(self, rows: Sequence[SQLiteSession | Refused]) -> None:
        """Store sessions; one that is stored already stays as it is."""
        tally = Tally()
        kept: list[SQLiteSession] = []
        for row in rows:
            if isinstance(row, Refused):
                tally.refuse(_reject(row))
            else:
                kept.append(row)
        self._count_assumed("search_sessions", kept)
        with self.run.transaction() as work:
            work.imports.lock(CORPUS)
            stored = work.feedback.write_sessions(
                [
                    build_session(
                        row,
                        id_=self._make_key("search_sessions", row.id, row.session_id, row),
                        collection=self.drafting.collection,
                        now=self.drafting.moment,
                    )
                    for row in kept
                ]
            )
            self._tell(work, kept, tally)
        tally.add_to(self._report, self.run.report)
        self.run.report.sessions += stored

    def _tell(
        self, work: UnitOfWork, rows: Sequence[SQLiteClick | SQLiteSession], tally: Tally
    ) -> None:
        """Write changes and refusals into the history."""
        changed = []
        for row in rows:
            if row.changes:
                table = row.table if isinstance(row, SQLiteClick) else "search_sessions"
                place = f"{table}[{row.id}]"
                changed.append(Changed(place, place, row.changes, once=True))
        if changed:
            work.imports.record_changes(self.run.id, self._file, changed)
        if tally.refused:
            work.imports.record_refusals(self.run.id, CORPUS, self._file, tally.refused)

    def _make_key(
        self, table: str, rowid: int, name: str, row: SQLiteClick | SQLiteSession
    ) -> UUID:
        """Make the key of a row of what it says, so that it is stored once."""
        said = [
            (key, _as_written(value) if isinstance(value, SQLiteTime) else value)
            for key, value in sorted(vars(row).items())
            if key not in {"chunk_id", "changes"}
        ]
        whose = (self.drafting.collection, table, rowid, name)
        return uuid5(NAMESPACE, json.dumps([whose, said]))


_TIMES: Final[Mapping[type, tuple[str, ...]]] = {
    SQLiteDocument: ("captured_at", "last_crawled"),
    SQLiteChunk: ("processing_timestamp", "retrieved_at"),
    SQLiteClick: ("timestamp", "created_at"),
    SQLiteSession: ("start_time", "end_time"),
}


def _as_written(time: SQLiteTime) -> str:
    """Return a time as its row has it, in whichever zone it was read."""
    if time.assumed is None:
        return time.at.isoformat()
    return time.at.astimezone(ZoneInfo(time.assumed)).replace(tzinfo=None).isoformat()


def _split_rows(rows: Iterator[T]) -> Iterator[Sequence[T]]:
    """Yield rows in batches, of which none is empty."""
    while batch := list(islice(rows, MANY_ROWS)):
        yield batch


def _rename_chunks(record: DocumentRecord, taken: Collection[str]) -> DocumentRecord:
    """Name chunks after what they say where their names are taken."""
    if all(each.chunk_id not in taken for each in record.chunks):
        return record
    made = chunk_ids(record.path, record.chunks)
    return replace(
        record,
        chunks=[
            rename_chunk(chunk, name) if chunk.chunk_id in taken else chunk
            for chunk, name in zip(record.chunks, made, strict=True)
        ],
    )


def _list_changed(
    candidate: _Candidate, record: DocumentRecord, *, once: bool
) -> Iterator[Changed]:
    stored = candidate.stored
    if stored is not None and stored.changes:
        yield Changed(f"documents[{stored.id}]", stored.path, stored.changes, once)
    for chunk, made in zip(candidate.chunks, record.chunks, strict=False):
        if chunk.changes:
            yield Changed(f"chunks[{chunk.id}]", made.chunk_id, chunk.changes, once)


def _reject(row: Refused) -> Reject:
    place = {"table": row.table, "rowid": row.rowid}
    return Reject(f"{row.table}[{row.rowid}]", row.reason, place, None)


def _find_rowid(stored: SQLiteDocument) -> Any:
    """Return what names the document's row: of the crawler's, its text id."""
    return stored.id
