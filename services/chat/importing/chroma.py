"""The legacy archive: a ChromaDB folder whose documents are the texts of conversations.

Its records have the metadata ``id``, ``title``, ``source``, ``earliest_ts``, ``latest_ts``,
``message_count`` and ``is_chunk``; a long conversation is several records. Who said what stands in
the text, in lines such as ``**You said**:`` or ``assistant:``.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import numpy as np

from pgcorpus.db.base import as_uuid
from pgcorpus.db.errors import ImportFailed
from pgcorpus.db.models.chat import Role
from pgcorpus.db.repositories.chat.imports import MessageRecord
from pgcorpus.services.chat.importing.rules import MAX_SOURCE, ConversationDraft, Parsed
from pgcorpus.services.importers.draft import Rule
from pgcorpus.services.importers.stream import Element, StoredVectors

SOURCE: Final = "chroma"

SQLITE: Final = b"SQLite format 3\0"
"""First bytes of a store's file, ``chroma.sqlite3``."""

TABLES: Final = frozenset({"collections", "embeddings", "embedding_metadata", "segments"})
"""Tables by which Chroma's store is known."""

RECORDS: Final = 500
"""Records that are read at a time."""

DEFAULT_MODELS: Final = {384: "all-MiniLM-L6-v2"}
"""The model of Chroma's default embedding function, by its dimensions."""

MODEL_KEYS: Final = ("embedding_model", "model_name", "model")
"""Keys under which the metadata of a collection may name its model."""

SPEAKERS: Final[dict[str, Role]] = {
    "you": "user",
    "user": "user",
    "human": "user",
    "chatgpt": "assistant",
    "claude": "assistant",
    "assistant": "assistant",
    "ai": "assistant",
    "system": "system",
    "tool": "tool",
}
NOBODY: Final[Role] = "user"
"""The speaker of what stands before the first turn, or in a text without turns."""

_SPEAKER = rf"^[ \t]*\**({'|'.join(SPEAKERS)})"
_TURNS: Final = tuple(
    re.compile(_SPEAKER + said + r"\**[ \t]*:\**", re.IGNORECASE | re.MULTILINE)
    for said in (r"[ \t]+said", "")
)
"""Beginnings of a turn, the surer way first: a text with one of it is not searched for the
other."""

_NUMBER = re.compile(r"(\d{1,9})$")
_CHUNK = re.compile(r"[_:-]+chunk[_:-]*\d+$", re.IGNORECASE)


def recognises(raw: Any) -> bool:
    """Return whether the value is a conversation as ``open_store`` gives it."""
    return isinstance(raw, dict) and raw.keys() == {"collection", "metadata", "documents"}


def read(raw: Any, *, strict: bool = False) -> Parsed:
    """Read one conversation of a legacy store.

    Args:
        raw: ``{"collection": its name, "metadata": of the first record, "documents": [text]}``.
        strict: Refuse instead of changing a value that is given.

    Raises:
        Unacceptable: It cannot be stored, or ``strict`` forbids how.
    """
    draft = ConversationDraft(strict)
    raw = draft.open(raw)
    metadata = draft.as_object("metadata", raw.get("metadata"))
    documents = [each for each in raw.get("documents") or () if isinstance(each, str)]
    begun = draft.time("earliest_ts", _number(metadata.get("earliest_ts")))
    return draft.finish(
        source_type=_source(metadata.get("source")),
        source_id=draft.conversation_id("id", metadata),
        title=draft.title("title", metadata.get("title")),
        created_at=begun,
        updated_at=draft.time("latest_ts", _number(metadata.get("latest_ts"))),
        is_saved=False,
        messages=_turns(draft, "\n".join(documents)),
    )


def _turns(draft: ConversationDraft, text: str) -> list[MessageRecord]:
    """Return the turns of a text as messages, and record it if the first has no speaker."""
    turns = _split_speakers(text)
    if turns and turns[0][0] is None:
        draft.change("documents", None, NOBODY, Rule.ROLE)
    return [
        MessageRecord(source_id=str(n), branch=0, position=n, role=role or NOBODY, content=said)
        for n, (role, said) in enumerate(turns)
    ]


def _split_speakers(text: str) -> list[tuple[Role | None, str]]:
    """Split a text into speakers and their words without blanks around.

    The speaker of text before the first turn is None.
    """
    pattern = next((each for each in _TURNS if each.search(text)), _TURNS[0])
    before, *pieces = pattern.split(text)
    speakers = [None, *(SPEAKERS[who.lower()] for who in pieces[::2])]
    told = zip(speakers, (before, *pieces[1::2]), strict=True)
    return [(role, said.strip()) for role, said in told if said.strip()]


def _source(given: Any) -> str:
    """Return the source that the conversation had before it was in the store."""
    name = given.strip().lower() if isinstance(given, str) else ""
    return name[:MAX_SOURCE] or SOURCE


def _number(value: Any) -> Any:
    """Convert a time that is a text of digits to the number that it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


@contextmanager
def open_store(path: Path) -> Iterator[Iterator[Element]]:
    """Provide the conversations of a store, in the order of their identifiers.

    Chroma writes into what it opens: a copy is opened, and deleted.

    Args:
        path: Its SQLite file.

    Raises:
        ImportFailed: It is no store, or ``chromadb`` is not installed or cannot read it.
    """
    _refuse_others(path)
    try:
        import chromadb  # noqa: PLC0415 - an extra, and slow to load
        from chromadb.config import Settings  # noqa: PLC0415 - as above
    except ImportError as error:
        raise ImportFailed(
            "a ChromaDB store is read with its own client; install it with: "
            "pip install 'pgcorpus[chroma]'"
        ) from error
    with tempfile.TemporaryDirectory(prefix="pgcorpus-chroma-") as folder:
        _copy(path, Path(folder))
        client: Any  # its types lack close()
        try:
            client = chromadb.PersistentClient(folder, Settings(anonymized_telemetry=False))
        except Exception as error:
            raise ImportFailed(f"ChromaDB cannot read it: {error}") from error
        try:
            yield _conversations(client)
        finally:
            client.close()


def _refuse_others(path: Path) -> None:
    """Refuse an SQLite file that is not Chroma's, leaving no trace beside it.

    Raises:
        ImportFailed: It is another's.
    """
    try:
        address = f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1"
        with closing(sqlite3.connect(address, uri=True)) as connection:
            found = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    except sqlite3.Error as error:
        raise ImportFailed(f"it cannot be read: {error}") from error
    if not found >= TABLES:
        raise ImportFailed("it is an SQLite file, but not of a ChromaDB store")


def _copy(path: Path, folder: Path) -> None:
    """Copy what belongs to a store: its SQLite file and the folders of its indexes."""
    for beside in path.parent.iterdir():
        if beside.name.startswith(path.name):
            shutil.copy(beside, folder / beside.name.replace(path.name, "chroma.sqlite3", 1))
        elif beside.is_dir() and as_uuid(beside.name) is not None:
            shutil.copytree(beside, folder / beside.name)


def _conversations(client: Any) -> Iterator[Element]:
    """Yield every conversation as an object of ``read``'s shape, with its vectors."""
    offset = 0
    try:
        for collection in client.list_collections():
            for batch in _batches(_groups(collection)):
                for element in _readable(collection, batch, offset):
                    yield element
                    offset += element.size_bytes
    except Exception as error:  # whatever a client of another's format meets
        raise ImportFailed(f"ChromaDB cannot read it: {error}") from error


def _groups(collection: Any) -> list[list[str]]:
    """Return the keys of the records of each conversation, in order."""
    groups: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for start in range(0, collection.count(), RECORDS):
        page = collection.get(limit=RECORDS, offset=start, include=["metadatas"])
        for key, metadata in zip(page["ids"], page["metadatas"], strict=True):
            said = metadata or {}
            groups[_identifier(key, said)].append((_place(key, said), key))
    return [[key for _, key in sorted(keys)] for keys in groups.values()]


def _place(key: str, metadata: dict[str, Any]) -> int:
    """Return the number of a record among its conversation's chunks.

    The end of its key may say it, too.
    """
    for said in (metadata.get("chunk_index"), key):
        if number := _NUMBER.search(str(said)):
            return int(number[1])
    return 0


def _identifier(key: str, metadata: dict[str, Any]) -> str:
    """Return the conversation of a record: chunks may number the identifier, too."""
    identifier = str(metadata.get("id") or key)
    return _CHUNK.sub("", identifier) if metadata.get("is_chunk") else identifier


def _batches(groups: Sequence[list[str]]) -> Iterator[list[list[str]]]:
    """Yield conversations of together about ``RECORDS`` records."""
    batch: list[list[str]] = []
    for keys in groups:
        batch.append(keys)
        if sum(map(len, batch)) >= RECORDS:
            yield batch
            batch = []
    if batch:
        yield batch


def _readable(collection: Any, batch: Sequence[list[str]], offset: int) -> Iterator[Element]:
    """Yield the conversations of a batch, one by one where the client stumbles over one of them."""
    try:
        yield from list(_elements(collection, batch, offset))
    except Exception as error:  # noqa: BLE001 - it is kept, and the others go in
        if len(batch) > 1:
            for keys in batch:
                yield from _readable(collection, [keys], offset)
            return
        ((key, *_),) = batch
        fault = f"ChromaDB cannot read it: {error}"
        yield Element(f"$[{json.dumps(key)}]", offset, 0, text=None, fault=fault)


def _elements(collection: Any, batch: Sequence[list[str]], offset: int) -> Iterator[Element]:
    asked = [key for keys in batch for key in keys]
    page = collection.get(ids=asked, include=["documents", "metadatas", "embeddings"])
    rows = {key: n for n, key in enumerate(page["ids"])}
    for keys in batch:
        chosen = [rows[key] for key in keys]
        metadata = dict(page["metadatas"][chosen[0]] or {})
        metadata["id"] = _identifier(keys[0], metadata)
        documents = [page["documents"][row] or "" for row in chosen]
        raw = {"collection": collection.name, "metadata": metadata, "documents": documents}
        text = json.dumps(raw).encode()
        yield Element(
            locator=f"$[{json.dumps(metadata['id'])}]",
            offset=offset,
            size_bytes=len(text),
            text=text,
            vectors=_vectors(collection, page["embeddings"], chosen, documents),
        )
        offset += len(text)


def _vectors(
    collection: Any,
    embeddings: Any,
    chosen: Sequence[int],
    documents: Sequence[str],
) -> StoredVectors | None:
    """Return the vectors of a conversation's records, if the store has one for each."""
    if embeddings is None or any(embeddings[row] is None for row in chosen):
        return None
    rows = np.asarray([embeddings[row] for row in chosen], dtype=np.float32)
    texts = [_only_turn(document) for document in documents]
    return StoredVectors(_model(collection, rows.shape[1]), texts, rows)


def _only_turn(document: str) -> str:
    """Return the words of the only turn of a document; else the document."""
    turns = _split_speakers(document)
    return turns[0][1] if len(turns) == 1 else document


def _model(collection: Any, dimensions: int) -> str | None:
    """Return the model of a collection's vectors, as it or its embedding function says."""
    function = (getattr(collection, "configuration_json", None) or {}).get("embedding_function")
    for said in (collection.metadata or {}, (function or {}).get("config") or {}):
        for key in MODEL_KEYS:
            if isinstance(name := said.get(key), str):
                return name.rsplit("/", 1)[-1]  # without the organisation that published it
    return DEFAULT_MODELS.get(dimensions)
