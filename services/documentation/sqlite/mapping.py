"""Rows of old SQLite files as rows of the tables here, and back without a loss.

Each value goes into the column that is made for it. What the columns would not give back is kept
under the key ``sqlite`` of the row's metadata: the row's number, and every value that differs from
what is derived from the columns. So a row is written back as it was read, and one that was changed
here is written as it is now.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import numpy as np

from pgcorpus.db.models.documentation import KEPT
from pgcorpus.db.repositories.documentation.documents import ChunkRecord, DocumentRecord
from pgcorpus.db.repositories.documentation.feedback import ClickRecord, SessionRecord
from pgcorpus.services.documentation.sqlite.records import (
    ClickTable,
    SQLiteChunk,
    SQLiteClick,
    SQLiteDocument,
    SQLiteSession,
    SQLiteTime,
)
from pgcorpus.services.documentation.sqlite.schema import DEFAULT_MODEL
from pgcorpus.services.importers.text import MAX_NAME

MODEL: Final = DEFAULT_MODEL.rpartition("/")[2]
"""The model of vectors whose row names no other, by its name in the registry."""

MARKDOWN: Final = "text/markdown"
SEPARATOR: Final = " > "
MAX_LANGUAGE: Final = 100
MAX_VERSION: Final = 50

_OF_WHOLE: Final = frozenset(("id", "text", "vector", "changes", "chunks"))
"""Fields that are never kept: they stand in rows of their own, or under a name of their own."""

_KEPT: Final = {
    kind: {each.name: None for each in fields(kind) if each.name not in _OF_WHOLE}.keys()
    for kind in (SQLiteDocument, SQLiteChunk, SQLiteClick, SQLiteSession)
}
"""The fields that may be kept, in their order."""

S = TypeVar("S", SQLiteDocument, SQLiteChunk, SQLiteClick, SQLiteSession)


def draft_document(stored: SQLiteDocument, record: DocumentRecord) -> DocumentRecord:
    """Complete the record of a document by the values that no column gives back.

    Args:
        stored: As its file has it.
        record: With the values that columns have.
    """
    kept = {"document": stored.id, "of": record.hash} | _find_differences(
        stored, _derive_document(record, stored.id)
    )
    return replace(record, metadata={**record.metadata, KEPT: kept})


def build_record(stored: SQLiteDocument, collection: str) -> DocumentRecord:
    """Build the record of a document whose chunks are stored, without these."""
    record = DocumentRecord(
        collection=collection,
        path=stored.path,
        title=stored.title,
        source_url=stored.source_url,
        captured_at=_moment(stored.captured_at),
        hash=stored.hash,
        content_type=(stored.content_type or MARKDOWN)[:MAX_NAME],
        language=stored.language and stored.language[:MAX_LANGUAGE],
        word_count=stored.word_count,
        etag=stored.etag,
        last_modified=stored.last_modified,
        last_crawled=_moment(stored.last_crawled),
        metadata={key: value for key, value in stored.metadata.items() if key != KEPT},
    )
    return draft_document(stored, record)


def build_chunk(
    stored: SQLiteChunk,
    *,
    name: str,
    position: int,
    language: str,
    metadata: Mapping[str, Any],
) -> ChunkRecord:
    """Build the record of a stored chunk.

    Args:
        stored: As its file has it.
        name: Its ``chunk_id`` here; empty where ``rename_chunk`` gives it one.
        position: In the document, from 0.
        language: Its text search configuration.
        metadata: Of its document.
    """
    details = {key: value for key, value in metadata.items() if key != KEPT}
    record = ChunkRecord(
        chunk_id=name,
        position=position,
        heading=stored.heading,
        anchor=stored.anchor,
        heading_path=split_headings(stored.h_path, stored.heading),
        text=stored.text,
        url=stored.url,
        language=language,
        token_count=stored.token_len,
        hash=stored.hash,
        start_offset=None,
        end_offset=None,
        page=None,
        metadata=details,
        chunker_version=stored.chunker_version and stored.chunker_version[:MAX_VERSION],
        chunker_config=_read_object(stored.chunker_config),
        processing_timestamp=_moment(stored.processing_timestamp),
        lineage_id=stored.lineage_id and stored.lineage_id[:MAX_NAME],
    )
    derived = _derive_chunk(vars_of(record), stored.id, None)
    kept = {"id": stored.id} | _find_differences(stored, derived)
    if stored.model == MODEL:  # as every vector is taken to be
        del kept["model"]
    details[KEPT] = kept
    return record


def rename_chunk(record: ChunkRecord, name: str) -> ChunkRecord:
    """Give a chunk a name that is not its file's, which is kept."""
    kept = record.metadata[KEPT]
    if record.chunk_id:
        kept = {**kept, "chunk_id": record.chunk_id}
    return replace(record, chunk_id=name, metadata={**record.metadata, KEPT: kept})


def build_click(stored: SQLiteClick, *, id_: Any, chunk_id: str, now: datetime) -> ClickRecord:
    """Build the record of a click.

    Args:
        stored: As its file has it.
        id_: Its key here.
        chunk_id: The name of its chunk here.
        now: Its time where the file has none.
    """
    at = stored.timestamp or stored.created_at
    position = stored.position + 1 if stored.table == "click_events" else max(stored.position, 1)
    record = ClickRecord(
        id=id_,
        query=stored.query,
        chunk_id=chunk_id,
        position=position,
        session_id=stored.session_id and stored.session_id[:MAX_NAME],
        user_id=stored.user_id and stored.user_id[:MAX_NAME],
        dwell_time=stored.dwell_time,
        clicked=stored.clicked,
        created_at=now if at is None else at.at,
    )
    derived = _derive_click(record, stored.table, stored.id, stored.chunk_id)
    kept = {"table": stored.table, "id": stored.id} | _find_differences(stored, derived)
    return replace(record, metadata={KEPT: kept})


def build_session(
    stored: SQLiteSession, *, id_: Any, collection: str, now: datetime
) -> SessionRecord:
    """Build the record of a session of searches.

    Args:
        stored: As its file has it.
        id_: Its key here.
        collection: The collection that its file was imported into.
        now: Its time where the file has none.
    """
    at = stored.start_time or stored.end_time
    kept = {"id": stored.id, "collection": collection} | _find_differences(
        stored, SQLiteSession(id=stored.id, session_id=stored.session_id[:MAX_NAME])
    )
    return SessionRecord(
        id=id_,
        session_id=stored.session_id[:MAX_NAME],
        user_id=stored.user_id and stored.user_id[:MAX_NAME],
        created_at=now if at is None else at.at,
        metadata={KEPT: kept},
    )


def restore_document(
    row: Mapping[str, Any], number: int | str, chunks: Sequence[SQLiteChunk] = ()
) -> SQLiteDocument:
    """Restore a document as a file has it.

    Args:
        row: Its columns by name.
        number: Its ``id`` in the file.
        chunks: In their order.
    """
    record = DocumentRecord(**{name: row[name] for name in _DOCUMENT_COLUMNS})
    derived = replace(_derive_document(record, number), chunks=tuple(chunks))
    kept = dict(record.metadata.get(KEPT, {}))
    # Of another hash, it is another text than the one that the values were kept of.
    return _restore(derived, kept) if kept.get("of", record.hash) == record.hash else derived


def restore_chunk(row: Mapping[str, Any], number: int, vector: np.ndarray | None) -> SQLiteChunk:
    """Restore a chunk as a file has it.

    Args:
        row: Its columns by name.
        number: Its ``id`` in the file.
        vector: Its vector of the model that the chunk came with, or of ``MODEL``.
    """
    kept = row["metadata"].get(KEPT, {})
    if "id" not in kept:  # what a document has kept is inherited by the chunks that are cut of it
        kept = {}
    restored = _restore(_derive_chunk(row, number, vector), kept)
    return restored if vector is not None else replace(restored, model=None)


def restore_click(record: ClickRecord, table: ClickTable, number: int, chunk: int) -> SQLiteClick:
    """Restore a click as a file has it: in *table*, under *number*, on the chunk of that id."""
    derived = _derive_click(record, table, number, chunk)
    return _restore(derived, record.metadata.get(KEPT, {}))


def restore_session(row: Mapping[str, Any], number: int) -> SQLiteSession:
    """Restore a session as a file has it.

    Args:
        row: ``session_id``, ``user_id``, ``started``, ``ended``, ``queries`` and ``clicks`` of the
            pages that were shown here; ``kept`` of the session that was imported, or None.
        number: Its ``id`` in the file.
    """
    kept = row["kept"]
    imported = None if kept is None else _restore(SQLiteSession(id=number, session_id=""), kept)
    start, end = (None if row[name] is None else _utc(row[name]) for name in ("started", "ended"))
    queries, clicks = row["queries"], row["clicks"]
    if imported is not None:
        start, end = imported.start_time or start, end or imported.end_time
        queries = _add(imported.query_count, queries)
        clicks = _add(imported.click_count, clicks)
    return SQLiteSession(
        id=number,
        session_id=(imported and imported.session_id) or row["session_id"],
        user_id=(imported and imported.user_id) or row["user_id"],
        start_time=start,
        end_time=end,
        query_count=queries,
        click_count=clicks,
    )


def split_headings(h_path: str | None, heading: str | None) -> tuple[str, ...]:
    """Return the headings of a chunk from the highest level down to its own.

    Args:
        h_path: As the old system wrote it: a list in JSON, or headings with `` > `` between them.
        heading: The chunk's own; it is the last, whether the path names it or not.
    """
    headings: list[str] = []
    if h_path is not None:
        listed = _read_list(h_path)
        parts = h_path.split(">") if listed is None else listed
        headings = [part.strip() for part in parts if part.strip()]
    if heading is not None and headings[-1:] != [heading.strip()]:
        headings.append(heading)
    return tuple(headings)


def vars_of(record: ChunkRecord) -> dict[str, Any]:
    """Return the columns of a chunk by name."""
    return {name: getattr(record, name) for name in _CHUNK_COLUMNS}


_CHUNK_COLUMNS: Final = tuple(each.name for each in fields(ChunkRecord))
_DOCUMENT_COLUMNS: Final = tuple(
    each.name for each in fields(DocumentRecord) if each.name != "chunks"
)


def _derive_document(record: DocumentRecord, number: int | str) -> SQLiteDocument:
    """Return what the columns of a document say of it."""
    return SQLiteDocument(
        id=number,
        path=record.path,
        title=record.title,
        source_url=record.source_url,
        captured_at=_utc(record.captured_at),
        hash=record.hash,
        etag=record.etag,
        last_modified=record.last_modified,
        last_crawled=_utc(record.last_crawled),
        content_type=record.content_type,
        language=record.language,
        word_count=record.word_count,
        metadata={key: value for key, value in record.metadata.items() if key != KEPT},
    )


def _derive_chunk(row: Mapping[str, Any], number: int, vector: np.ndarray | None) -> SQLiteChunk:
    headings, heading = tuple(row["heading_path"]), row["heading"]
    config = row["chunker_config"]
    return SQLiteChunk(
        id=number,
        text=row["text"],
        heading=heading,
        anchor=row["anchor"],
        vector=vector,
        model=None if vector is None else MODEL,
        chunker_version=row["chunker_version"],
        chunker_config=json.dumps(config, sort_keys=True) if config else None,
        processing_timestamp=_utc(row["processing_timestamp"]),
        lineage_id=row["lineage_id"],
        chunk_id=row["chunk_id"],
        h_path=None if headings in {(), (heading,)} else SEPARATOR.join(headings),
        url=row["url"],
        token_len=row["token_count"],
        hash=row["hash"],
    )


def _derive_click(record: ClickRecord, table: ClickTable, number: int, chunk: int) -> SQLiteClick:
    at = _utc(record.created_at)
    is_event = table == "click_events"
    return SQLiteClick(
        table=table,
        id=number,
        query=record.query,
        chunk_id=chunk,
        position=record.position - 1 if is_event else record.position,
        session_id=record.session_id,
        user_id=record.user_id,
        timestamp=at,
        dwell_time=record.dwell_time,
        clicked=record.clicked,
        created_at=at if is_event else None,
    )


def _find_differences(stored: S, derived: S) -> dict[str, Any]:
    """Return the values of a row that its columns would give back otherwise, as JSON has them."""
    return {
        name: _encode(value)
        for name in _KEPT[type(stored)]
        if (value := getattr(stored, name)) != getattr(derived, name)
    }


def _restore(derived: S, kept: Mapping[str, Any]) -> S:
    known = _KEPT[type(derived)] & kept.keys()
    return replace(derived, **{name: _decode(kept[name]) for name in known})


def _encode(value: Any) -> Any:
    match value:
        case SQLiteTime():
            return {"at": value.at.isoformat(), "assumed": value.assumed}
        case Mapping():
            return {"object": dict(value)}
        case _:
            return value


def _decode(value: Any) -> Any:
    match value:
        case {"at": str(at), "assumed": assumed}:
            return SQLiteTime(datetime.fromisoformat(at), assumed)
        case {"object": dict(found)}:
            return found
        case _:
            return value


def _moment(time: SQLiteTime | None) -> datetime | None:
    return None if time is None else time.at


def _utc(at: datetime | None) -> SQLiteTime | None:
    """Return a time as the old system writes it: in UTC, without saying so."""
    return None if at is None else SQLiteTime(at.astimezone(UTC), str(UTC))


def _add(one: int | None, other: int) -> int | None:
    """Add what happened here to a figure of the file's, which may be unknown."""
    return other or None if one is None else one + other


def _read_object(text: str | None) -> dict[str, Any]:
    found = _read_json(text)
    return found if isinstance(found, dict) else {}


def _read_list(text: str) -> list[str] | None:
    found = _read_json(text) if text.startswith("[") else None
    return [str(each) for each in found] if isinstance(found, list) else None


def _read_json(text: str | None) -> Any:
    """Return a value of JSON; None where it is none, or one that PostgreSQL cannot hold."""
    if text is None:
        return None
    try:
        found = _DECODER.decode(text)
        storable = "\\u0000" not in text and _ENCODER.encode(found).encode()
    except (ValueError, RecursionError):
        return None
    return found if storable else None


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant)
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
