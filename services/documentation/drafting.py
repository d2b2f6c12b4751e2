"""Documents as they are to be stored: read, cut into chunks, and told where they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from uuid import uuid4

from pgcorpus.db.choices import DEFAULT_COLLECTION
from pgcorpus.db.repositories.documentation.documents import ChunkRecord, DocumentRecord
from pgcorpus.services.documentation.chunk import Chunk
from pgcorpus.services.documentation.chunker import (
    CHUNKER_VERSION,
    DEFAULT_CONFIG,
    ChunkerConfig,
    chunk_document,
)
from pgcorpus.services.documentation.identity import chunk_ids
from pgcorpus.services.documentation.reading.document import ReadDocument
from pgcorpus.services.documentation.rules import (
    MAX_COLLECTION_BYTES,
    MAX_PATH_BYTES,
    check_metadata,
    check_name,
)
from pgcorpus.services.importers.language import DEFAULT_LANGUAGE, LANGUAGES, Language

LANGUAGE_KEYS = ("language", "lang")
"""Keys of metadata under which documents name their language."""


@dataclass(frozen=True, kw_only=True)
class Drafting:
    """The way in which read documents become records.

    Attributes:
        collection: Of the documents.
        config: Sizes of chunks.
        language: The configuration of what names no language, or what finds it.
        lineage_id: Of all chunks that are cut together.
        moment: The time at which they are cut.
    """

    collection: str = DEFAULT_COLLECTION
    config: ChunkerConfig = DEFAULT_CONFIG
    language: Language = DEFAULT_LANGUAGE
    lineage_id: str = field(default_factory=lambda: str(uuid4()))
    moment: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def chunker(self) -> tuple[str, Mapping[str, Any]]:
        """Version and limits of the chunker, as chunks have them."""
        return CHUNKER_VERSION, self.config.as_json()

    def draft(
        self,
        document: ReadDocument,
        *,
        path: str,
        digest: str,
        captured_at: datetime | None = None,
        **more: Any,
    ) -> DocumentRecord:
        """Make the record of a document with its chunks.

        Args:
            document: As its reader gave it.
            path: In the collection.
            digest: SHA-256 of its source, in hexadecimal digits.
            captured_at: When the source was read; by default now.
            more: Further columns of the document.

        Raises:
            InvalidValue: The path, the collection or a value of the metadata cannot be stored.
        """
        check_name("path", path, MAX_PATH_BYTES)
        check_name("collection", self.collection, MAX_COLLECTION_BYTES)
        check_metadata(document.metadata)
        chunks = chunk_document(document, self.config)
        named = next((str(v) for k in LANGUAGE_KEYS if (v := document.metadata.get(k))), None)
        columns = {
            "title": document.title,
            "source_url": document.source_url,
            "language": named and named[:100],
            "metadata": document.metadata,
            "content_type": document.content_type,
            "word_count": len(document.text.split()),
        } | {name: value for name, value in more.items() if value is not None}
        return DocumentRecord(
            collection=self.collection,
            path=path,
            hash=digest,
            captured_at=captured_at or self.moment,
            chunks=[
                self._record(chunk, name, columns)
                for chunk, name in zip(chunks, chunk_ids(path, chunks), strict=True)
            ],
            **columns,
        )

    def _record(self, chunk: Chunk, name: str, columns: Mapping[str, Any]) -> ChunkRecord:
        url = columns["source_url"]
        return ChunkRecord(
            chunk_id=name,
            position=chunk.position,
            heading=chunk.heading,
            anchor=chunk.anchor,
            heading_path=chunk.heading_path,
            text=chunk.text,
            url=f"{url}#{chunk.anchor}" if url and chunk.anchor else url,
            language=self.find_language(chunk.text, columns["language"]),
            token_count=chunk.token_count,
            hash=sha256(chunk.text.encode()).hexdigest(),
            start_offset=chunk.start,
            end_offset=chunk.end,
            page=chunk.page,
            metadata=columns["metadata"],
            chunker_version=CHUNKER_VERSION,
            chunker_config=self.config.as_json(),
            processing_timestamp=self.moment,
            lineage_id=self.lineage_id,
        )

    def find_language(self, text: str, named: str | None) -> str:
        """Find the text search configuration of a text: of the named language, if that has one."""
        if named is not None and (known := LANGUAGES.get(named[:2].lower())) is not None:
            return known
        return self.language if isinstance(self.language, str) else self.language(text)
