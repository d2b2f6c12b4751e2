"""Documents and their chunks: written in batches, read one by one or page by page."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import attrgetter
from typing import Any, Final, NamedTuple
from uuid import UUID

from psycopg.types.json import Jsonb
from sqlalchemy import (
    ARRAY,
    Boolean,
    ColumnElement,
    Select,
    Table,
    Text,
    Uuid,
    and_,
    any_,
    cast,
    delete,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import REGCONFIG, insert
from sqlalchemy.sql.expression import TableClause

from pgcorpus.db.base import as_uuid, table_of
from pgcorpus.db.choices import ADMINISTRATORS_ROLE
from pgcorpus.db.errors import InvalidCursor, MissingScope, NotFound, NotPermitted
from pgcorpus.db.models.documentation import Chunk, Document, DocumentationEmbedding
from pgcorpus.db.repositories.first_load import FirstLoad
from pgcorpus.db.repositories.pages import Page, check_limit, decode, page_of
from pgcorpus.db.search.corpora import DOCUMENTATION

_documents = table_of(Document)
_chunks = table_of(Chunk)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkRecord:
    """A chunk as it is to be stored; the fields are named as the columns."""

    chunk_id: str
    position: int
    heading: str | None
    anchor: str | None
    heading_path: Sequence[str]
    text: str
    url: str | None
    language: str
    token_count: int | None
    hash: str | None
    start_offset: int | None
    end_offset: int | None
    page: int | None
    metadata: Mapping[str, Any]
    chunker_version: str | None
    chunker_config: Mapping[str, Any]
    processing_timestamp: datetime | None
    lineage_id: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentRecord:
    """A document as it is to be stored, with its chunks; the fields are named as the columns."""

    collection: str
    path: str
    title: str | None = None
    source_url: str | None = None
    captured_at: datetime | None = None
    hash: str | None = None
    content_type: str = "text/markdown"
    language: str | None = None
    word_count: int | None = None
    etag: str | None = None
    last_modified: str | None = None
    last_crawled: datetime | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    chunks: Sequence[ChunkRecord] = ()


class DocumentState(NamedTuple):
    """The state of a stored document, by which an import sees what has changed.

    Attributes:
        id: Its key.
        path: Within the collection.
        hash: SHA-256 of the file, in hex.
        chunks: How many chunks it has.
        chunker: Version and limits of the chunker that cut it; None where it has no chunk.
        source_url: Its address, or None.
    """

    id: UUID
    path: str
    hash: str | None
    chunks: int
    chunker: tuple[str | None, Mapping[str, Any]] | None
    source_url: str | None = None


class Move(NamedTuple):
    """A document that is to have another path.

    Attributes:
        id: Its key.
        path: Its new path.
        former_prefix: Beginning of the names of its chunks; chunks of other names keep them.
        prefix: What these begin with from now on.
    """

    id: UUID
    path: str
    former_prefix: str
    prefix: str


class Tally(NamedTuple):
    """Counts of the documents of a scope, for validation.

    Attributes:
        documents: How many have chunks.
        disordered: Paths of those whose chunks are not numbered from 0 without a gap.
        strayed: ``chunk_id`` of the chunks that are of another collection than their document.
        versions: Version of the chunker → chunks that it cut.
    """

    documents: int
    disordered: Sequence[str]
    strayed: Sequence[str]
    versions: Mapping[str | None, int]


class Written(NamedTuple):
    """The chunks of a document after a write.

    Attributes:
        id: The document's key.
        added: Chunks that are new.
        updated: Chunks that have changed.
        unchanged: Chunks that were stored so already.
        deleted: Chunks that the document has no more.
    """

    id: UUID
    added: int
    updated: int
    unchanged: int
    deleted: int


_DOCUMENT: Final = {
    "collection": "text",
    "path": "text",
    "title": "text",
    "source_url": "text",
    "captured_at": "timestamptz",
    "hash": "text",
    "content_type": "text",
    "language": "text",
    "word_count": "int4",
    "etag": "text",
    "last_modified": "text",
    "last_crawled": "timestamptz",
    "metadata": "jsonb",
}
_CHUNK: Final = {
    "chunk_id": "text",
    "position": "int4",
    "heading": "text",
    "anchor": "text",
    "heading_path": "text[]",
    "text": "text",
    "url": "text",
    "language": "text",
    "token_count": "int4",
    "hash": "text",
    "start_offset": "int4",
    "end_offset": "int4",
    "page": "int4",
    "metadata": "jsonb",
    "chunker_version": "text",
    "chunker_config": "jsonb",
    "processing_timestamp": "timestamptz",
    "lineage_id": "text",
}
_OF_RUN: Final = frozenset(("processing_timestamp", "lineage_id"))
"""Columns of a chunk that differ with every run: alone they are no change."""

LISTED: Final = "documents by path"

ASIDE: Final = "~"
"""Mark in the name of a chunk while another takes its place."""

WRITES_SHARED: Final = text("""
    SELECT NOT row_security_active('documents') OR EXISTS (
        SELECT FROM pg_class
        WHERE oid = 'documents'::regclass AND pg_has_role(relowner, 'USAGE')
    ) OR EXISTS (
        SELECT FROM pg_roles WHERE rolname = :role AND pg_has_role(oid, 'USAGE'))
""").bindparams(role=ADMINISTRATORS_ROLE)
"""True for the owner, a superuser, or a member of ``rag_admin``, as row security has it."""


class DocumentRepository(FirstLoad):
    """Documents of the scope, or without one those that are everybody's.

    Everything that is written is of that one scope; what is read by key or path, too.
    """

    corpora = (DOCUMENTATION,)
    tables = (_documents, _chunks, table_of(DocumentationEmbedding))

    def require_writable(self) -> None:
        """Raise where the role may not write documents of the scope.

        Row security would refuse what it adds, and pass over what it deletes.

        Raises:
            MissingScope: The scope is a single user's, who has no documents.
            NotPermitted: They are everybody's, and the role is no administrator.
        """
        if self._tenant_id is None and not self.session.scalar(WRITES_SHARED):
            raise NotPermitted(
                f"only a member of {ADMINISTRATORS_ROLE} writes shared documents; name a tenant "
                "(--tenant-id) to write its documents, or log in as such a member, made "
                f"with: pgcorpus roles create-user NAME --role {ADMINISTRATORS_ROLE}"
            )

    def write(self, records: Sequence[DocumentRecord]) -> dict[tuple[str, str], Written]:
        """Store documents with all their chunks, by path; what a document has no more is deleted.

        A chunk keeps its key, and so its vectors, for as long as it keeps its ``chunk_id``.

        Args:
            records: Of different paths within each collection.

        Returns:
            (collection, path) → what became of the chunks.

        Raises:
            NotPermitted: They are everybody's, and the role is no administrator.
        """
        with (
            self.stage("staged_documents", _DOCUMENT, map(_row_of_document, records)) as documents,
            self.stage("staged_chunks", _STAGED_CHUNK, _rows_of_chunks(records)) as chunks,
        ):
            self._merge_documents(documents)
            deleted = self._delete_missing(documents, chunks)
            merged = self._merge_chunks(chunks)
            counted = self.session.execute(
                select(
                    _documents.c.collection,
                    _documents.c.path,
                    _documents.c.id,
                    func.count(chunks.c.chunk_id),
                )
                .join_from(documents, _documents, self._is_stored(documents))
                .outerjoin(chunks, _same_document(chunks, documents))
                .group_by(_documents.c.collection, _documents.c.path, _documents.c.id)
            ).all()
        return {
            (collection, path): _count(id_, staged, merged.get(id_, ()), deleted.get(id_, 0))
            for collection, path, id_, staged in counted
        }

    def move(self, moves: Sequence[Move], *, collection: str) -> None:
        """Give documents other paths, and their chunks the names of these; vectors and clicks stay.

        Args:
            moves: Two documents may change places. One that stands in the way and is not moved
                itself is deleted: another has taken its path.
            collection: The collection that they belong to.
        """
        columns = {"id": "uuid", "path": "text", "former_prefix": "text", "prefix": "text"}
        with self.stage("moved", columns, moves) as moved:
            is_moved = _documents.c.id == moved.c.id
            is_chunk_moved = and_(
                *self._in_scope(_chunks),
                _chunks.c.document_id == moved.c.id,
                func.starts_with(_chunks.c.chunk_id, moved.c.former_prefix),
            )
            in_the_way = and_(
                *self._in_scope(_documents),
                _documents.c.collection == collection,
                _documents.c.path.in_(select(moved.c.path)),
            )
            self.session.execute(
                delete(_documents).where(in_the_way, _documents.c.id.not_in(select(moved.c.id)))
            )
            # Keys are compared row by row: what stands in the way of another steps aside first.
            aside = self.session.scalars(
                update(_documents)
                .where(in_the_way)
                .values(path=func.concat("moved ", _documents.c.id))
                .returning(_documents.c.id)
            ).all()
            if aside:
                self.session.execute(
                    update(_chunks)
                    .where(is_chunk_moved, _is_any(_chunks.c.document_id, aside))
                    .values(
                        chunk_id=func.concat(moved.c.former_prefix, ASIDE, _rest_of_name(moved))
                    )
                )
            self.session.execute(
                update(_documents)
                .where(*self._in_scope(_documents), is_moved)
                .values(path=moved.c.path)
            )
            rest = func.ltrim(_rest_of_name(moved), ASIDE)
            self.session.execute(
                update(_chunks)
                .where(is_chunk_moved)
                .values(chunk_id=func.concat(moved.c.prefix, rest))
            )

    def has_any(self, collection: str) -> bool:
        """Return whether the collection has a document."""
        of_collection = select(_documents.c.id).where(
            *self._in_scope(_documents), _documents.c.collection == collection
        )
        return bool(self.session.scalar(select(exists(of_collection))))

    def list_stored(self, collection: str) -> list[DocumentState]:
        """Return the state of every document of a collection, by path."""
        first = func.array_agg(
            func.jsonb_build_array(_chunks.c.chunker_version, _chunks.c.chunker_config)
        )[1]
        of_document = and_(
            _chunks.c.scope == _documents.c.scope, _chunks.c.document_id == _documents.c.id
        )
        rows = self.session.execute(
            select(
                _documents.c.id,
                _documents.c.path,
                _documents.c.hash,
                func.count(_chunks.c.id),
                first,
                _documents.c.source_url,
            )
            .outerjoin_from(_documents, _chunks, of_document)
            .where(*self._in_scope(_documents), _documents.c.collection == collection)
            .group_by(_documents.c.scope, _documents.c.id)
            .order_by(_documents.c.path)
        )
        return [
            DocumentState(id_, path, hash_, chunks, tuple(chunker) if chunks else None, url)
            for id_, path, hash_, chunks, chunker, url in rows
        ]

    def get(self, document_id: UUID) -> Document:
        """Return a document.

        Raises:
            NotFound: There is none with this key in the scope.
        """
        found = self.session.scalar(
            select(Document).where(*self._readable(_documents), Document.id == document_id)
        )
        if found is None:
            raise NotFound(f"there is no document {document_id} in this scope")
        return found

    def find(self, path: str, *, collection: str) -> Document | None:
        """Return the document of that path in a collection, or None."""
        return self.session.scalar(
            select(Document).where(
                *self._in_scope(_documents),
                Document.collection == collection,
                Document.path == path,
            )
        )

    def find_readable(self, path: str, *, collection: str) -> Document | None:
        """Return the scope's own document of that path, else the one that is shared, or None."""
        own_first = Document.scope.is_distinct_from(self._scope_name)
        return self.session.scalar(
            select(Document)
            .where(
                *self._readable(_documents),
                Document.collection == collection,
                Document.path == path,
            )
            .order_by(own_first)
            .limit(1)
        )

    def read_record(self, document: Document) -> DocumentRecord:
        """Return a stored document as ``write`` takes it."""
        return DocumentRecord(
            chunks=[ChunkRecord(**_values(e, _CHUNK)) for e in self.list_chunks(document.id)],
            **_values(document, _DOCUMENT),
        )

    def list_matching(self, filters: Mapping[str, Any], *, collection: str) -> Sequence[UUID]:
        """Return the keys of a collection's documents with a chunk that meets filters of a search.

        Raises:
            UnknownFilter: There is no such filter.
            InvalidFilter: A value is of the wrong kind.
        """
        conditions, values = DOCUMENTATION.parse_filters(filters)
        found = (
            select(_chunks.c.document_id)
            .distinct()
            .where(
                *self._in_scope(_chunks),
                _chunks.c.collection == collection,
                *map(DOCUMENTATION.holds, conditions),
            )
        )
        return self.session.scalars(found, values).all()

    def count_unembedded(self, document_ids: Collection[UUID], model_name: str) -> dict[UUID, int]:
        """Count the chunks of each document that have no vector of a model's.

        Returns:
            Key of a document → chunks; a document that lacks none is absent.
        """
        vectors = DOCUMENTATION.vectors
        has_vector = exists().where(DOCUMENTATION.vector_join, vectors.c.model_name == model_name)
        keys = literal(list(document_ids), ARRAY(Uuid()))
        lacking = (
            select(_chunks.c.document_id, func.count())
            .where(*self._in_scope(_chunks), _chunks.c.document_id == any_(keys), ~has_vector)
            .group_by(_chunks.c.document_id)
        )
        return {row[0]: row[1] for row in self.session.execute(lacking)}

    def list_chunks(self, document_id: UUID) -> Sequence[Chunk]:
        """Return the chunks of a document, in its order."""
        return self.session.scalars(
            select(Chunk)
            .where(*self._readable(_chunks), Chunk.document_id == document_id)
            .order_by(Chunk.position)
        ).all()

    def list_page(
        self,
        *,
        collection: str | None = None,
        path_prefix: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[Document]:
        """List documents by collection and path, page by page; shared ones too.

        Args:
            collection: Only those of this collection.
            path_prefix: Only those whose path begins so.
            limit: Documents of the page.
            cursor: Of the page before.

        Raises:
            InvalidCursor: It is not of this list.
            InvalidValue: The limit is none.
        """
        check_limit(limit)
        listing = f"{LISTED} {collection!r} {path_prefix!r} {self.scope}"
        order = (Document.collection, Document.path, Document.id)
        found: Select[Document] = (
            select(Document).where(*self._readable(_documents)).order_by(*order).limit(limit + 1)
        )
        if collection is not None:
            found = found.where(Document.collection == collection)
        if path_prefix is not None:
            found = found.where(func.starts_with(Document.path, path_prefix))
        if cursor is not None:
            after = decode(listing, cursor)
            if len(after) != len(order) or (key := as_uuid(after[2])) is None:
                raise InvalidCursor
            found = found.where(tuple_(*order) > tuple_(after[0], after[1], key))
        rows = self.session.scalars(found).all()
        return page_of(rows, limit, listing, lambda row: (row.collection, row.path, row.id))

    def list_collections(self) -> dict[str, int]:
        """Return the name of each collection, and how many documents it has."""
        counted = (
            select(Document.collection, func.count())
            .where(*self._readable(_documents))
            .group_by(Document.collection)
            .order_by(Document.collection)
        )
        return {row[0]: row[1] for row in self.session.execute(counted)}

    def delete(self, document_ids: Collection[UUID]) -> int:
        """Delete documents of the scope with their chunks; return how many there were."""
        keys = literal(list(document_ids), ARRAY(Uuid()))
        result = self.session.connection().execute(
            delete(_documents).where(*self._in_scope(_documents), _documents.c.id == any_(keys)),
            execution_options={"preserve_rowcount": True},
        )
        return result.rowcount

    def delete_paths(self, paths: Collection[str], *, collection: str) -> int:
        """Delete the documents of these paths with their chunks; return how many there were."""
        given = literal(list(paths), ARRAY(Text()))
        result = self.session.connection().execute(
            delete(_documents).where(
                *self._in_scope(_documents),
                _documents.c.collection == collection,
                _documents.c.path == any_(given),
            ),
            execution_options={"preserve_rowcount": True},
        )
        return result.rowcount

    def list_chunk_names(self, document_ids: Collection[UUID]) -> list[tuple[UUID, str]]:
        """Return the document and the ``chunk_id`` of each chunk of documents of the scope."""
        of_documents = _is_any(_chunks.c.document_id, document_ids)
        rows = self.session.execute(
            select(_chunks.c.document_id, _chunks.c.chunk_id)
            .where(*self._in_scope(_chunks), of_documents)
            .order_by(_chunks.c.document_id)
        )
        return [(row[0], row[1]) for row in rows]

    def list_chunk_keys(self, document_ids: Collection[UUID]) -> Sequence[UUID]:
        """Return the keys of the chunks of documents of the scope."""
        keys = literal(list(document_ids), ARRAY(Uuid()))
        return self.session.scalars(
            select(_chunks.c.id).where(
                *self._in_scope(_chunks), _chunks.c.document_id == any_(keys)
            )
        ).all()

    def count(self) -> int:
        """Count the chunks that are shared and, within a scope, its own."""
        counted = select(func.count()).select_from(_chunks).where(*self._readable(_chunks))
        return self.session.scalar(counted) or 0

    def tally(self) -> Tally:
        """Count the documents of the scope, or those that are everybody's, and what is wrong."""
        position = _chunks.c.position
        in_order = and_(
            func.min(position) == 0,
            func.max(position) == func.count() - 1,
            func.count(position.distinct()) == func.count(),
        )
        of_document = and_(
            _documents.c.scope == _chunks.c.scope, _documents.c.id == _chunks.c.document_id
        )
        numbered = self.session.execute(
            select(_documents.c.path, in_order)
            .join_from(_chunks, _documents, of_document)
            .where(*self._in_scope(_chunks))
            .group_by(_documents.c.scope, _documents.c.id)
            .order_by(_documents.c.path)
        ).all()
        strayed = self.session.scalars(
            select(_chunks.c.chunk_id)
            .join_from(_chunks, _documents, of_document, isouter=True)
            .where(
                *self._in_scope(_chunks),
                _chunks.c.collection.is_distinct_from(_documents.c.collection),
            )
            .order_by(_chunks.c.chunk_id)
        ).all()
        versions = self.session.execute(
            select(_chunks.c.chunker_version, func.count())
            .where(*self._in_scope(_chunks))
            .group_by(_chunks.c.chunker_version)
        )
        return Tally(
            documents=len(numbered),
            disordered=[path for path, is_ordered in numbered if not is_ordered],
            strayed=strayed,
            versions={row[0]: row[1] for row in versions},
        )

    def analyze(self) -> None:
        """Renew the planner's statistics."""
        self.renew_statistics(
            *(table_of(each).name for each in (Document, Chunk, DocumentationEmbedding))
        )

    # Parts of a write.

    def _merge_documents(self, staged: TableClause) -> None:
        columns = list(_DOCUMENT)
        merge = insert(_documents).from_select(
            ["id", "tenant_id", "scope", *columns],
            select(
                func.gen_random_uuid(),
                literal(self._tenant_id, Uuid()),
                literal(self._scope_name, Text()),
                *(staged.c[name] for name in columns),
            ),
        )
        values = {name: merge.excluded[name] for name in columns}
        self.session.execute(
            merge.on_conflict_do_update(
                index_elements=["scope", "collection", "path"],
                set_=values,
                where=_differs(_documents, values),
            )
        )

    def _delete_missing(self, documents: TableClause, chunks: TableClause) -> dict[UUID, int]:
        kept = exists().where(
            chunks.c.collection == _chunks.c.collection, chunks.c.chunk_id == _chunks.c.chunk_id
        )
        gone = (
            delete(_chunks)
            .where(
                *self._in_scope(_chunks),
                _chunks.c.document_id == _documents.c.id,
                *self._in_scope(_documents),
                _documents.c.collection == documents.c.collection,
                _documents.c.path == documents.c.path,
                ~kept,
            )
            .returning(_chunks.c.document_id)
            .cte("gone")
        )
        counted = select(gone.c.document_id, func.count()).group_by(gone.c.document_id)
        return {row[0]: row[1] for row in self.session.execute(counted)}

    def _merge_chunks(self, staged: TableClause) -> dict[UUID, Sequence[bool]]:
        """Insert and update chunks; return of each document, for every chunk written: is it new?"""
        columns = list(_CHUNK)
        values = {
            name: cast(staged.c[name], REGCONFIG) if name == "language" else staged.c[name]
            for name in columns
        }
        merge = insert(_chunks).from_select(
            ["tenant_id", "scope", "collection", "document_id", *columns],
            select(
                literal(self._tenant_id, Uuid()),
                literal(self._scope_name, Text()),
                staged.c.collection,
                _documents.c.id,
                *values.values(),
            ).join_from(
                staged,
                _documents,
                and_(
                    *self._in_scope(_documents),
                    _documents.c.collection == staged.c.collection,
                    _documents.c.path == staged.c.path,
                ),
            ),
        )
        changed = {name: merge.excluded[name] for name in ("document_id", *columns)}
        told = {name: value for name, value in changed.items() if name not in _OF_RUN}
        written = (
            merge.on_conflict_do_update(
                index_elements=["scope", "collection", "chunk_id"],
                set_=changed,
                where=_differs(_chunks, told),
            )
            .returning(
                _chunks.c.document_id,
                literal_column("(xmax = 0)", Boolean).label("added"),
            )
            .cte("written")
        )
        counted = select(written.c.document_id, func.array_agg(written.c.added))
        return {
            row[0]: row[1] for row in self.session.execute(counted.group_by(written.c.document_id))
        }

    def _is_stored(self, staged: TableClause) -> ColumnElement[bool]:
        return and_(
            *self._in_scope(_documents),
            _documents.c.collection == staged.c.collection,
            _documents.c.path == staged.c.path,
        )

    @property
    def _scope_name(self) -> str:
        return DOCUMENTATION.name_scope(self.scope)

    @property
    def _tenant_id(self) -> UUID | None:
        """The tenant whose documents are written, or None where they are everybody's.

        Raises:
            MissingScope: The scope is a single user's, who has no documents.
        """
        if self.scope is not None and self.scope.tenant_id is None:
            raise MissingScope(
                "documents are shared or a tenant's, not a single user's: name a tenant"
            )
        return None if self.scope is None else self.scope.tenant_id

    def _in_scope(self, table: Table) -> tuple[ColumnElement[bool], ...]:
        """Restrict *table* to the rows of the one scope that is written."""
        return (table.c.scope == literal(self._scope_name, Text()),)

    def _readable(self, table: Table) -> tuple[ColumnElement[bool], ...]:
        """Restrict *table* to what is shared and, within a scope, its own."""
        scopes = DOCUMENTATION.bind_scope(self.scope)["scopes"]
        return (table.c.scope == any_(literal(scopes, ARRAY(Text()))),)


def _is_any(column: ColumnElement[UUID], keys: Collection[UUID]) -> ColumnElement[bool]:
    return column == any_(literal(list(keys), ARRAY(Uuid())))


def _rest_of_name(moved: TableClause) -> ColumnElement[str]:
    """Return what follows in a chunk's name after the part that its document's path makes."""
    return func.substr(_chunks.c.chunk_id, func.length(moved.c.former_prefix) + 1)


_STAGED_CHUNK: Final = {"collection": "text", "path": "text", **_CHUNK}


def _values(row: Document | Chunk, names: Iterable[str]) -> dict[str, Any]:
    """Return the values of a row's columns, by the names of the columns."""
    return {name: getattr(row, "details" if name == "metadata" else name) for name in names}


_read_document: Final = attrgetter(*_DOCUMENT)
_read_chunk: Final = attrgetter(*_CHUNK)


def _row_of_document(record: DocumentRecord) -> list[Any]:
    return [*map(_as_sent, _read_document(record))]


def _rows_of_chunks(records: Iterable[DocumentRecord]) -> Iterator[list[Any]]:
    for record in records:
        for chunk in record.chunks:
            yield [record.collection, record.path, *map(_as_sent, _read_chunk(chunk))]


def _as_sent(value: Any) -> Any:
    """Return a value as COPY takes it."""
    if value is None or isinstance(value, str | int):  # nearly all are, and the others take longer
        return value
    if isinstance(value, Mapping):
        return Jsonb(dict(value))
    return list(value) if isinstance(value, tuple) else value


def _same_document(one: TableClause, other: TableClause) -> ColumnElement[bool]:
    return and_(one.c.collection == other.c.collection, one.c.path == other.c.path)


def _differs(table: Table, values: Mapping[str, ColumnElement[Any]]) -> ColumnElement[bool]:
    """Build the condition that a row has other values: else nothing is written."""
    return or_(*(table.c[name].is_distinct_from(value) for name, value in values.items()))


def _count(id_: UUID, staged: int, written: Sequence[bool], deleted: int) -> Written:
    added = sum(written)
    return Written(id_, added, len(written) - added, staged - len(written), deleted)
