"""Documents as applications keep them: added as texts or files, read, changed, deleted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from typing import Any, Final, Self
from uuid import UUID, uuid4

from pgcorpus.db.choices import DEFAULT_COLLECTION
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import InvalidValue, NotFound
from pgcorpus.db.models.documentation import Chunk, Document
from pgcorpus.db.repositories.documentation.documents import DocumentRecord
from pgcorpus.db.repositories.pages import Page
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.corpora import DOCUMENTATION
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.awaited import Awaited, awaited
from pgcorpus.services.documentation.chunker import DEFAULT_CONFIG, ChunkerConfig
from pgcorpus.services.documentation.drafting import Drafting
from pgcorpus.services.documentation.reading.document import Unreadable
from pgcorpus.services.documentation.reading.formats import read_document
from pgcorpus.services.documentation.rules import check_metadata
from pgcorpus.services.embedding.embedder import Embedder, Embedders
from pgcorpus.services.embedding.encoder import Encoder
from pgcorpus.services.importers.language import DEFAULT_LANGUAGE

BATCH: Final = 500
"""Chunks whose vectors are stored in one transaction."""


@dataclass(frozen=True, kw_only=True)
class StoredChunk:
    """A chunk as it is stored.

    Attributes:
        chunk_id: Its identifier within the collection.
        text: Without its headings.
        heading_path: The headings that it stands under.
        anchor: The fragment that leads to its heading, or None.
        page: The page on which it begins, from 1, or None.
        metadata: Of its document, and its own.
    """

    chunk_id: str
    text: str
    heading_path: tuple[str, ...]
    anchor: str | None
    page: int | None
    metadata: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class StoredDocument:
    """A document as it is stored.

    Attributes:
        id: Its key.
        path: Within the collection; of a text its id.
        collection: The collection that it belongs to.
        title: Or None.
        metadata: What its source says, and what the caller gave.
        source_url: Where it came from, or None.
        content_type: Such as ``text/markdown``.
        captured_at: When its source was read, or None.
        updated_at: When it was last changed.
        is_shared: Whether everybody may read it.
        chunks: Its chunks in their order; empty in a list of documents.
    """

    id: UUID
    path: str
    collection: str
    title: str | None
    metadata: Mapping[str, Any]
    source_url: str | None
    content_type: str
    captured_at: datetime | None
    updated_at: datetime
    is_shared: bool
    chunks: tuple[StoredChunk, ...] = ()

    @classmethod
    def of(cls, document: Document, chunks: Sequence[Chunk] = ()) -> Self:
        """Make it of rows."""
        return cls(
            id=document.id,
            path=document.path,
            collection=document.collection,
            title=document.title,
            metadata=document.details,
            source_url=document.source_url,
            content_type=document.content_type,
            captured_at=document.captured_at,
            updated_at=document.updated_at,
            is_shared=document.tenant_id is None,
            chunks=tuple(
                StoredChunk(
                    chunk_id=each.chunk_id,
                    text=each.text,
                    heading_path=tuple(each.heading_path),
                    anchor=each.anchor,
                    page=each.page,
                    metadata=each.details,
                )
                for each in chunks
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Added:
    """A document after it was added.

    Attributes:
        id: Its key.
        path: Within the collection.
        chunks: How many it has.
        embedded: How many of them have vectors of their present text; the others get theirs from a
            worker.
        note: Why some have none yet, or None.
    """

    id: UUID
    path: str
    chunks: int
    embedded: int
    note: str | None = None


class DocumentService:
    """Adds, reads, changes and deletes documents, of a tenant or everybody's.

    Without a scope a call is about the documents that everybody may read: only administrators
    write those. Within a tenant's scope it writes the tenant's, and reads both.

    Args:
        database: Where the documents are.
        embedder: Makes vectors; by default that of the corpus's active model.
        config: Sizes of chunks.
        language: The text search configuration of what names no language.
    """

    def __init__(
        self,
        database: Database,
        embedder: Embedder | None = None,
        *,
        config: ChunkerConfig = DEFAULT_CONFIG,
        language: str = DEFAULT_LANGUAGE,
    ) -> None:
        self._database = database
        self._encoder = Encoder(database, Embedders(database.settings, embedder))
        self._config = config
        self._language = language

    def add_texts(
        self,
        texts: Sequence[str],
        *,
        metadatas: Sequence[Mapping[str, Any]] | None = None,
        ids: Sequence[str] | None = None,
        collection: str = DEFAULT_COLLECTION,
        scope: Scope | None = None,
        embed: bool = True,
    ) -> list[str]:
        """Add texts in one transaction; a text whose id is stored replaces the one before.

        Args:
            texts: Plain texts. A long one is cut into chunks.
            metadatas: Of each text, values of JSON.
            ids: Of each text, as ``get`` and ``delete`` take them; by default new ones.
            collection: The collection that they belong to.
            scope: The tenant whose they are; None: they are everybody's.
            embed: Make the vectors at once; else a worker does.

        Returns:
            The ids, in the order of the texts.

        Raises:
            InvalidValue: A text is blank, an id is given twice, the lists differ in length, or a
                value cannot be stored. Nothing was added.
            NotPermitted: They are everybody's, and the role is no administrator.
        """
        names = [str(uuid4()) for _ in texts] if ids is None else [str(each) for each in ids]
        each_metadata = [{} for _ in texts] if metadatas is None else list(metadatas)
        if not len(names) == len(each_metadata) == len(texts):
            raise InvalidValue(
                f"{len(texts)} texts were given with {len(names)} ids and {len(each_metadata)} "
                "metadata: there must be as many of each"
            )
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise InvalidValue(f"the id {twice[0]!r} is given twice")
        if not texts:
            return []
        drafting = self._drafting(collection)
        records = [
            _draft(drafting, text, name, metadata, name_of_format=PLAIN)
            for text, name, metadata in zip(texts, names, each_metadata, strict=True)
        ]
        self._store(records, scope, embed=embed)
        return names

    def add_document(
        self,
        content: str | bytes,
        *,
        path: str,
        collection: str = DEFAULT_COLLECTION,
        metadata: Mapping[str, Any] | None = None,
        title: str | None = None,
        source_url: str | None = None,
        scope: Scope | None = None,
        embed: bool = True,
    ) -> Added:
        """Add a document; one that is stored at its path is replaced, and unchanged chunks stay.

        Args:
            content: Text, or the bytes of a file.
            path: Within the collection. Its suffix says the format, as of ``.md`` or ``.pdf``;
                without one it is Markdown.
            collection: The collection that it belongs to.
            metadata: Values of JSON, beside those that the document has itself.
            title: Instead of its own.
            source_url: Its address, for relative links and citations.
            scope: The tenant whose it is; None: it is everybody's.
            embed: Make the vectors at once; else a worker does.

        Raises:
            InvalidValue: It cannot be read, or is blank.
            NotPermitted: It is everybody's, and the role is no administrator.
        """
        drafting = self._drafting(collection)
        record = _draft(drafting, content, path, metadata or {}, title=title, source_url=source_url)
        (added,) = self._store([record], scope, embed=embed)
        return added

    def get(
        self,
        path: str,
        *,
        collection: str = DEFAULT_COLLECTION,
        scope: Scope | None = None,
    ) -> StoredDocument:
        """Return a document with its chunks: the tenant's own, else the one that is shared.

        Raises:
            NotFound: There is none at this path.
        """
        with self._database.unit_of_work(scope) as work:
            document = work.documentation.find_readable(path, collection=collection)
            if document is None:
                raise NotFound(f"there is no document {path!r} in the collection {collection!r}")
            return StoredDocument.of(document, work.documentation.list_chunks(document.id))

    def list_documents(
        self,
        *,
        collection: str | None = None,
        path_prefix: str | None = None,
        scope: Scope | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[StoredDocument]:
        """List documents by collection and path, without their chunks, page by page.

        Raises:
            InvalidCursor: The cursor is not of this list.
            InvalidValue: The limit is none.
        """
        with self._database.unit_of_work(scope) as work:
            page = work.documentation.list_page(
                collection=collection, path_prefix=path_prefix, limit=limit, cursor=cursor
            )
            return Page(tuple(map(StoredDocument.of, page.items)), page.next_cursor)

    def update(
        self,
        path: str,
        *,
        content: str | bytes | None = None,
        metadata: Mapping[str, Any] | None = None,
        title: str | None = None,
        collection: str = DEFAULT_COLLECTION,
        scope: Scope | None = None,
        embed: bool = True,
    ) -> Added:
        """Change a document of the scope; what is not given stays.

        Args:
            path: Within the collection.
            content: Its new text. Unchanged chunks keep their vectors.
            metadata: Replaces what is stored.
            title: Its new title.
            collection: The collection that it belongs to.
            scope: The tenant whose it is; None: it is everybody's.
            embed: Make missing vectors at once; else a worker does.

        Raises:
            NotFound: There is none at this path.
            InvalidValue: The content cannot be read, or is blank.
            NotPermitted: It is everybody's, and the role is no administrator.
        """
        with self._transaction(scope) as work:
            document = work.documentation.find(path, collection=collection)
            if document is None:
                raise NotFound(f"there is no document {path!r} in the collection {collection!r}")
            record = work.documentation.read_record(document)
            if content is not None:
                record = self._draft_again(record, content)
            if metadata is not None:
                check_metadata(metadata)
                chunks = [replace(each, metadata=metadata) for each in record.chunks]
                record = replace(record, metadata=metadata, chunks=chunks)
            if title is not None:
                record = replace(record, title=title)
            keys = self._write(work, [record])
        (added,) = self._embed_written([record], keys, scope, embed=embed)
        return added

    def delete(
        self,
        ids: Collection[str] = (),
        *,
        filters: Mapping[str, Any] | None = None,
        collection: str = DEFAULT_COLLECTION,
        scope: Scope | None = None,
    ) -> int:
        """Delete documents of the scope with their chunks and vectors, in one transaction.

        Args:
            ids: Their paths within the collection; of texts their ids. Those that are not there are
                passed over.
            filters: As a search takes them: every document with a chunk that meets them.
            collection: The collection that they are deleted from.
            scope: The tenant whose they are; None: they are everybody's.

        Returns:
            How many documents were deleted.

        Raises:
            InvalidValue: Neither ids nor filters are given.
            NotPermitted: They are everybody's, and the role is no administrator.
        """
        if not ids and not filters:
            raise InvalidValue("say what to delete: ids, or filters")
        deleted = 0
        with self._transaction(scope) as work:
            if ids:
                deleted += work.documentation.delete_paths(list(ids), collection=collection)
            if filters:
                matching = work.documentation.list_matching(filters, collection=collection)
                deleted += work.documentation.delete(matching)
        return deleted

    def _drafting(self, collection: str) -> Drafting:
        return Drafting(collection=collection, config=self._config, language=self._language)

    def _draft_again(self, record: DocumentRecord, content: str | bytes) -> DocumentRecord:
        """Make the record of a document's new content; what that does not say itself stays."""
        drafted = _draft(
            self._drafting(record.collection),
            content,
            record.path,
            {},
            name_of_format=PLAIN if record.content_type == PLAIN_TYPE else None,
            source_url=record.source_url,
        )
        metadata = {**record.metadata, **drafted.metadata}
        return replace(
            drafted,
            title=drafted.title or record.title,
            metadata=metadata,
            chunks=[replace(each, metadata=metadata) for each in drafted.chunks],
        )

    def _store(
        self, records: Sequence[DocumentRecord], scope: Scope | None, *, embed: bool
    ) -> list[Added]:
        """Store documents in one transaction, then make the vectors that they lack."""
        with self._transaction(scope) as work:
            keys = self._write(work, records)
        return self._embed_written(records, keys, scope, embed=embed)

    def _write(self, work: UnitOfWork, records: Sequence[DocumentRecord]) -> list[UUID]:
        """Write documents; return their keys, in their order."""
        written = work.documentation.write(records)
        return [written[each.collection, each.path].id for each in records]

    def _embed_written(
        self,
        records: Sequence[DocumentRecord],
        ids: Sequence[UUID],
        scope: Scope | None,
        *,
        embed: bool,
    ) -> list[Added]:
        """Make the vectors that written documents lack, and count what has none."""
        note = None
        if embed:
            with self._database.unit_of_work(scope) as work:
                keys = work.documentation.list_chunk_keys(ids)
            note = self._embed(keys, scope) if keys else None
        with self._database.unit_of_work(scope) as work:
            choice = self._encoder.choose(work, DOCUMENTATION)
            lacking = work.documentation.count_unembedded(ids, choice.name)
        return [
            Added(
                id=key,
                path=record.path,
                chunks=len(record.chunks),
                embedded=len(record.chunks) - lacking.get(key, 0),
                note=note if lacking.get(key) else None,
            )
            for key, record in zip(ids, records, strict=True)
        ]

    def _embed(self, keys: Sequence[UUID], scope: Scope | None) -> str | None:
        """Make the vectors that chunks lack; return why some could not be made, or None.

        A model is asked outside of any transaction. Where it does not answer, a worker asks later.
        """
        note = None
        with self._database.unit_of_work(scope) as work:
            choice = self._encoder.choose(work, DOCUMENTATION)
            pending = work.embeddings.list_pending(
                DOCUMENTATION, choice.name, limit=len(keys), among=keys
            )
        for start in range(0, len(pending), BATCH):
            batch = pending[start : start + BATCH]
            encoded = self._database.call(
                self._encoder.encode, choice, [each.text for each in batch]
            )
            made = [
                (each, vector)
                for each, vector in zip(batch, encoded.vectors, strict=True)
                if vector is not None
            ]
            note = next((reason for reason in encoded.reasons if reason), note)
            with self._database.unit_of_work(scope) as work:
                self._encoder.store(
                    work,
                    DOCUMENTATION,
                    choice,
                    {each.id: vector for each, vector in made},
                    [each.content_hash for each, _ in made],
                )
                work.commit()
        return note

    @contextmanager
    def _transaction(self, scope: Scope | None) -> Iterator[UnitOfWork]:
        """Write within a scope, or what is shared; what was done is kept at the end."""
        with self._database.unit_of_work(scope) as work:
            work.documentation.require_writable()
            yield work
            work.commit()


class AsyncDocumentService(Awaited[DocumentService]):
    """Adds, reads, changes and deletes documents, for asyncio."""

    def __init__(
        self,
        database: Database,
        embedder: Embedder | None = None,
        *,
        config: ChunkerConfig = DEFAULT_CONFIG,
        language: str = DEFAULT_LANGUAGE,
    ) -> None:
        service = DocumentService(database, embedder, config=config, language=language)
        super().__init__(database, service)

    add_texts = awaited(DocumentService.add_texts)
    add_document = awaited(DocumentService.add_document)
    get = awaited(DocumentService.get)
    list_documents = awaited(DocumentService.list_documents)
    update = awaited(DocumentService.update)
    delete = awaited(DocumentService.delete)


MARKDOWN: Final = "document.md"
"""The format of a document that names none."""

PLAIN: Final = "text.txt"
PLAIN_TYPE: Final = "text/plain"
"""The format of texts that are added as such."""


def _draft(
    drafting: Drafting,
    content: str | bytes,
    path: str,
    metadata: Mapping[str, Any],
    *,
    name_of_format: str | None = None,
    source_url: str | None = None,
    **columns: Any,
) -> DocumentRecord:
    """Read a document and make its record.

    Raises:
        InvalidValue: It cannot be read, or has no text.
    """
    source = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    has_suffix = "." in path.rpartition("/")[2]
    name = name_of_format or (path if has_suffix else MARKDOWN)
    try:
        document = read_document(source, name=name, base=source_url)
    except Unreadable as error:
        raise InvalidValue(f"{path!r} cannot be read: {error}") from error
    check_metadata(metadata)
    document = replace(document, metadata={**document.metadata, **metadata})
    record = drafting.draft(
        document,
        path=path,
        digest=sha256(source).hexdigest(),
        source_url=source_url or document.source_url,
        **columns,
    )
    if not record.chunks:
        raise InvalidValue(f"{path!r} has no text: nothing of it could be found")
    return record
