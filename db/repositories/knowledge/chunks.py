"""The curated knowledge base: single chunks for callers, thousands at a time for importers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from operator import attrgetter
from typing import Any, Final
from uuid import UUID

from psycopg.types.json import Jsonb
from sqlalchemy import (
    Select,
    TableClause,
    Text,
    Uuid,
    any_,
    cast,
    delete,
    func,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY, REGCONFIG, TEXT, insert

from pgcorpus.db.base import Base, set_local
from pgcorpus.db.errors import AlreadyExists, NotFound
from pgcorpus.db.models.knowledge import (
    DocumentConcept,
    FrameworkDocument,
    FrameworkMetadata,
    KeyConcept,
    SourceLines,
)
from pgcorpus.db.repositories.base import Repository


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRecord:
    """A chunk with all its columns in all tables; the fields are named as the columns.

    Attributes:
        language: Name of a text search configuration.
        extra: JSON object of the fields that have no column.
        concepts: Names of its concepts, without repetition; a chunk's concepts have no order.
        start_line: First line of the source, or None when the lines are not known.
        end_line: Last line of the source, or None when the lines are not known.
    """

    chunk_id: str
    source_file: str
    section: str
    title: str
    description: str | None
    content: str
    language: str
    extra: dict[str, Any]
    character_count: int | None
    word_count: int | None
    chunk_type: str | None
    framework_name: str | None
    preserves_complete_concept: bool | None
    overlap_with_previous: str | None
    contains_formula: bool | None
    contains_list: bool | None
    contains_example: bool | None
    business_logic_intact: bool | None
    validation_passed: bool | None
    processing_date: date | None
    guidelines_compliance: str | None
    concepts: frozenset[str]
    start_line: int | None
    end_line: int | None


@dataclass(frozen=True, slots=True)
class Known:
    """The stored state of a chunk, by which an importer knows what has changed.

    Attributes:
        id: The row's key.
        record_hash: SHA-256 of the record that was imported; None when no importer made the row.
        imported_from: Full path of the file that last wrote the row; None when none did.
    """

    id: UUID
    record_hash: bytes | None
    imported_from: str | None


@dataclass(frozen=True, slots=True)
class Write:
    """A chunk to be stored.

    Attributes:
        id: Key of the row to replace, or a fresh one.
        replaces: Whether there is such a row.
        record_hash: SHA-256 of the record as imported.
        imported_from: Full path of the file.
        record: The chunk.
    """

    id: UUID
    replaces: bool
    record_hash: bytes
    imported_from: str
    record: ChunkRecord


_RECORD: Final[Mapping[str, str]] = {
    "chunk_id": "text",
    "source_file": "text",
    "section": "text",
    "title": "text",
    "description": "text",
    "content": "text",
    "language": "text",
    "extra": "jsonb",
    "character_count": "int4",
    "word_count": "int4",
    "chunk_type": "text",
    "framework_name": "text",
    "preserves_complete_concept": "bool",
    "overlap_with_previous": "text",
    "contains_formula": "bool",
    "contains_list": "bool",
    "contains_example": "bool",
    "business_logic_intact": "bool",
    "validation_passed": "bool",
    "processing_date": "date",
    "guidelines_compliance": "text",
    "concepts": "text[]",
    "start_line": "int4",
    "end_line": "int4",
}
"""Columns of the staging table, in the order of ``ChunkRecord``'s fields."""

_STAGED: Final = {
    "id": "uuid",
    "replaces": "bool",
    "record_hash": "bytea",
    "imported_from": "text",
} | dict(_RECORD)

_DOCUMENT: Final = FrameworkDocument.__table__.columns
_METADATA: Final = FrameworkMetadata.__table__.columns
_LINES: Final = SourceLines.__table__.columns

# Everything but the language, which is staged as text and stored as regconfig.
_PLAIN: Final = tuple(name for name in _STAGED if name in _DOCUMENT and name != "language")
_DETAILS: Final = tuple(name for name in _RECORD if name in _METADATA)

_TABLES: Final = tuple(
    Base.metadata.tables[model.__tablename__]
    for model in (FrameworkDocument, FrameworkMetadata, KeyConcept, DocumentConcept, SourceLines)
)

BULK: Final = 10_000
"""Chunks from which on building the indexes anew takes less time than keeping them up."""

PENDING: Final = "32MB"
"""Words and trigrams that are sorted into the indexes of a filled corpus at once, in a load. With
PostgreSQL's 4 MB they took a tenth longer; with more, no less, and searches read them meanwhile."""

_EXTRA, _CONCEPTS = (list(_RECORD).index(name) for name in ("extra", "concepts"))
_values_of_record = attrgetter(*_RECORD)


class KnowledgeRepository(Repository):
    """Chunks of the knowledge base."""

    def add(self, document: FrameworkDocument) -> FrameworkDocument:
        """Store a chunk, with its metadata, lines and concepts.

        Raises:
            IntegrityError: The unit of work turns it into ``AlreadyExists`` or ``InvalidValue``.
        """
        self.session.add(document)
        self.session.flush()
        return document

    def get(self, chunk_id: str) -> FrameworkDocument:
        """Return the chunk of that identifier.

        Raises:
            NotFound: There is none.
        """
        document = self.find(chunk_id)
        if document is None:
            raise NotFound(f"there is no chunk {chunk_id!r}")
        return document

    def find(self, chunk_id: str) -> FrameworkDocument | None:
        """Return the chunk of that identifier, or None."""
        return self.session.scalar(
            select(FrameworkDocument).where(FrameworkDocument.chunk_id == chunk_id)
        )

    def list_documents(
        self,
        *,
        section: str | None = None,
        source_file: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> Sequence[FrameworkDocument]:
        """List chunks by identifier, page by page.

        Args:
            section: Only those of this section.
            source_file: Only those cut from this text.
            limit: At most this many.
            after: The last identifier of the page before.
        """
        chunks: Select[FrameworkDocument] = (
            select(FrameworkDocument).order_by(FrameworkDocument.chunk_id).limit(limit)
        )
        if section is not None:
            chunks = chunks.where(FrameworkDocument.section == section)
        if source_file is not None:
            chunks = chunks.where(FrameworkDocument.source_file == source_file)
        if after is not None:
            chunks = chunks.where(FrameworkDocument.chunk_id > after)
        return self.session.scalars(chunks).all()

    def delete(self, chunk_id: str) -> None:
        """Delete a chunk with its parts; concepts stay, for other chunks.

        Raises:
            NotFound: There is none.
        """
        removed = self.session.scalar(
            delete(FrameworkDocument)
            .where(FrameworkDocument.chunk_id == chunk_id)
            .returning(FrameworkDocument.id)
        )
        if removed is None:
            raise NotFound(f"there is no chunk {chunk_id!r}")

    def count(self) -> int:
        """Count the chunks."""
        return self.session.scalar(select(func.count()).select_from(FrameworkDocument)) or 0

    def list_existing(self, ids: Collection[UUID]) -> Sequence[UUID]:
        """Return the given keys that chunks have."""
        keys = literal(list(ids), ARRAY(Uuid()))
        return self.session.scalars(
            select(FrameworkDocument.id).where(FrameworkDocument.id == any_(keys))
        ).all()

    def list_known(self, chunk_ids: Collection[str]) -> dict[str, Known]:
        """Return the stored state of the chunks that exist, by identifier."""
        found = select(
            FrameworkDocument.chunk_id,
            FrameworkDocument.id,
            FrameworkDocument.record_hash,
            FrameworkDocument.imported_from,
        ).where(FrameworkDocument.chunk_id == any_(literal(list(chunk_ids), ARRAY(TEXT))))
        return {row.chunk_id: Known(*row[1:]) for row in self.session.execute(found)}

    def list_records(self, chunk_ids: Collection[str]) -> dict[str, ChunkRecord]:
        """Return the complete records of the chunks that exist, by identifier.

        The rows are locked until the transaction ends: what is decided from them stays true.
        """
        columns: dict[str, Any] = {**_LINES, **_METADATA, **_DOCUMENT} | {
            "language": cast(FrameworkDocument.language, Text),
            "concepts": func.array(
                select(KeyConcept.concept_name)
                .join_from(DocumentConcept, KeyConcept)
                .where(DocumentConcept.document_id == FrameworkDocument.id)
                .scalar_subquery(),
                type_=ARRAY(TEXT),
            ),
        }
        found = (
            select(*(columns[name].label(name) for name in _RECORD))
            .select_from(FrameworkDocument)
            .outerjoin(FrameworkMetadata)
            .outerjoin(SourceLines)
            .where(FrameworkDocument.chunk_id == any_(literal(list(chunk_ids), ARRAY(TEXT))))
            .with_for_update(of=FrameworkDocument)
        )
        return {
            row["chunk_id"]: ChunkRecord(**(row | {"concepts": frozenset(row["concepts"])}))
            for row in map(dict, self.session.execute(found).mappings())
        }

    @contextmanager
    def loading(self, chunks: int) -> Iterator[None]:
        """Prepare the tables for *chunks* to be written: a first load is made without indexes."""
        if chunks < BULK:
            yield
            return
        self.session.execute(set_local({"gin_pending_list_limit": PENDING}))
        with self.first_load(*_TABLES):
            yield
        self.merge_pending_entries(FrameworkDocument.__tablename__)

    def write(self, chunks: Sequence[Write]) -> None:
        """Add and replace chunks: one COPY, then one upsert per table.

        Args:
            chunks: No two with the same ``chunk_id``.

        Raises:
            AlreadyExists: Someone else stored one of the chunks in the meantime.
        """
        with self.stage("staged_chunks", _STAGED, map(_row_of, chunks)) as staged:
            self._write_documents(staged, len(chunks))
            replaces = any(chunk.replaces for chunk in chunks)
            self._write_details(staged, replaces=replaces)
            if replaces:
                self._forget_parts(staged)
            self._write_concepts(staged)
            self._write_lines(staged)

    def analyze(self) -> None:
        """Renew the planner's statistics of every table that an import fills."""
        self.renew_statistics(*(table.name for table in _TABLES))

    def _write_documents(self, staged: TableClause, expected: int) -> None:
        names = [*_PLAIN, "language"]
        merge = insert(FrameworkDocument).from_select(
            names,
            select(*(staged.c[name] for name in _PLAIN), cast(staged.c.language, REGCONFIG)),
        )
        result = self.session.connection().execute(
            # A row of another key came after the importer looked: it is left alone, and missed.
            merge.on_conflict_do_update(
                index_elements=[FrameworkDocument.chunk_id],
                set_={name: merge.excluded[name] for name in names if name != "id"},
                where=FrameworkDocument.id == merge.excluded.id,
            ),
            execution_options={"preserve_rowcount": True},
        )
        if result.rowcount != expected:
            raise AlreadyExists(
                f"{expected - result.rowcount} chunks were stored by someone else at the same "
                "time; import the file again"
            )

    def _write_details(self, staged: TableClause, *, replaces: bool) -> None:
        merge = insert(FrameworkMetadata).from_select(
            ["document_id", *_DETAILS], select(staged.c.id, *(staged.c[name] for name in _DETAILS))
        )
        if replaces:
            merge = merge.on_conflict_do_update(
                index_elements=[FrameworkMetadata.document_id],
                set_={name: merge.excluded[name] for name in _DETAILS},
            )
        self.session.execute(merge)

    def _forget_parts(self, staged: TableClause) -> None:
        replaced = select(staged.c.id).where(staged.c.replaces)
        for part in (DocumentConcept, SourceLines):
            self.session.execute(
                delete(part).where(part.document_id.in_(replaced)),
                execution_options={"synchronize_session": False},
            )

    def _write_concepts(self, staged: TableClause) -> None:
        given = select(
            staged.c.id.label("document_id"), func.unnest(staged.c.concepts).label("name")
        ).subquery()
        # Ordered, so that two writers take their locks in the same order.
        names = select(given.c.name).distinct().order_by(given.c.name)
        self.session.execute(
            insert(KeyConcept).from_select(["concept_name"], names).on_conflict_do_nothing()
        )
        links = select(given.c.document_id, KeyConcept.id).join_from(
            given, KeyConcept, KeyConcept.concept_name == given.c.name
        )
        self.session.execute(
            insert(DocumentConcept).from_select(["document_id", "concept_id"], links)
        )

    def _write_lines(self, staged: TableClause) -> None:
        lines = select(staged.c.id, staged.c.start_line, staged.c.end_line).where(
            staged.c.start_line.is_not(None)
        )
        self.session.execute(
            insert(SourceLines).from_select(["document_id", "start_line", "end_line"], lines)
        )


def _row_of(chunk: Write) -> tuple[Any, ...]:
    record = chunk.record
    values = list(_values_of_record(record))
    values[_EXTRA] = Jsonb(record.extra)
    values[_CONCEPTS] = list(record.concepts)
    return (chunk.id, chunk.replaces, chunk.record_hash, chunk.imported_from, *values)
