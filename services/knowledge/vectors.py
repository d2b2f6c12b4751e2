"""The vectors that come along with an import, which are kept rather than made again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

import numpy as np

from pgcorpus.db.base import as_uuid
from pgcorpus.db.errors import ImportFailed
from pgcorpus.db.search.corpora import KNOWLEDGE
from pgcorpus.db.text import storable
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.importers.files import parse_json, printable, read_json
from pgcorpus.services.importers.vectors import FLOATS, batches, check_vectors, map_vectors
from pgcorpus.services.knowledge.rules import identifier_of

MAX_JSON_BYTES: Final = 1024**3
"""Vectors as JSON take some 20 bytes a number; what is larger had better be ``.npy``."""

BACKUP_OF_CHUNKS: Final = "framework_documents.json"
"""The name that backups of the old knowledge base have for the table of chunks. The keys in it are
what a ``document_id`` beside it means."""

OTHER_TEXT: Final = "the chunk's text in this import is not the one that is stored"
SECOND: Final = "the chunk has another vector in the file"


class Arrival(NamedTuple):
    """A chunk of the import, in order.

    Attributes:
        chunk_id: Its identifier, or None when it has none.
        same_text: Whether its title and content are what is stored afterwards.
    """

    chunk_id: str | None
    same_text: bool


@dataclass(frozen=True)
class VectorSet:
    """Vectors of one model.

    Attributes:
        model_name: The model that made them.
        keys: What each belongs to, a ``chunk_id`` or the database's own key; None: they are in
            the order of the chunks of all files.
        rows: float of shape ``(n, dimensions)``, perhaps mapped from the file.
    """

    model_name: str
    keys: Sequence[str] | None
    rows: np.ndarray


def read_vectors(path: Path, *, chunks: int, model_name: str | None) -> list[VectorSet]:
    """Read a file of vectors.

    Args:
        path: ``.npy``: floats of shape ``(chunks, dimensions)``. Else JSON: a list of
            ``{"chunk_id" or "document_id", "model_name", "embedding" or "embedding_data"}``. A
            ``document_id`` of a backup is that of the ``framework_documents.json`` beside it.
        chunks: How many chunks the imported files hold.
        model_name: The model of a ``.npy`` file, which does not name it.

    Raises:
        ImportFailed: The file is none of these.
    """
    if path.suffix.lower() == ".npy":
        return [_from_npy(path, chunks, model_name)]
    try:
        document = read_json(path, MAX_JSON_BYTES).document
    except ImportFailed as error:
        raise ImportFailed(f"{printable(path)}: {error}") from error
    if not isinstance(document, list):
        raise ImportFailed(f"{printable(path)}: vectors must be a list of objects")
    if not document:
        raise ImportFailed(
            f"{printable(path)}: the list of vectors is empty; make the file anew, or leave "
            "--embeddings out"
        )
    names = _read_backup(path.with_name(BACKUP_OF_CHUNKS))
    groups: dict[str, dict[str, Any]] = {}
    for index, entry in enumerate(document):
        try:
            model, key, vector = _entry(entry, names)
            if key in groups.setdefault(model, {}):
                raise ImportFailed(f"there is a second vector of {model} for {key!r}")  # noqa: TRY301
        except ImportFailed as error:
            raise ImportFailed(f"{printable(path)}, vector {index}: {error}") from error
        groups[model][key] = vector
    return [
        VectorSet(model, list(vectors), _matrix(path, model, list(vectors.values())))
        for model, vectors in groups.items()
    ]


def check_sets(
    work: UnitOfWork, path: Path, sets: Sequence[VectorSet], coming: Collection[str]
) -> None:
    """Raise for vectors that could not be stored, before anything is written.

    Args:
        work: For looking up models and chunks.
        path: The file, for messages.
        sets: What it holds.
        coming: Identifiers of the chunks that are about to be imported.

    Raises:
        ImportFailed: A vector is unusable, or of a chunk that neither exists nor is coming.
        UnknownModel: A model is not registered.
    """
    for vectors in sets:
        model = work.models.get_model(vectors.model_name)
        length = vectors.rows.shape[1]
        if length != model.dimensions:
            raise ImportFailed(
                f"{printable(path)}: the vectors of {model.name} have {model.dimensions} "
                f"dimensions, not {length}"
            )
        for _ in check_vectors(path, vectors.rows, model.index_kind):
            pass
        if vectors.keys is not None:
            missing = set(vectors.keys) - set(coming) - set(resolve_keys(work, vectors.keys))
            if missing:
                raise ImportFailed(
                    f"{printable(path)}: there is no chunk {min(missing)!r}, "
                    f"and {len(missing) - 1} more of its vectors have no chunk. If they are of a "
                    f"backup: its chunks are in {BACKUP_OF_CHUNKS}, which must lie beside it"
                )


def store_vectors(
    work: UnitOfWork, vectors: VectorSet, arrivals: Sequence[Arrival]
) -> tuple[int, Counter[str]]:
    """Store the vectors of chunks whose text is the stored one.

    A vector by a key may be of any text that came under it: when one of them is not the stored
    one, it is left out. Chunks that did not come in this import get theirs.

    Args:
        work: The unit of work; not committed.
        vectors: Checked.
        arrivals: Every chunk of the import.

    Returns:
        How many were stored, and how many were left out by reason.
    """
    keys: Sequence[str | None]
    barred: set[UUID] = set()
    if vectors.keys is None:
        keys = [each.chunk_id if each.same_text else None for each in arrivals]
    else:
        keys = vectors.keys
        others = {each.chunk_id for each in arrivals if not each.same_text and each.chunk_id}
        barred = {known.id for known in work.knowledge.list_known(others).values()}
    ids = resolve_keys(work, [key for key in keys if key is not None])
    stored, left_out, done = 0, Counter[str](), set[UUID]()
    for start, rows in batches(vectors.rows):
        chosen = {}
        for row, key in enumerate(keys[start : start + len(rows)]):
            id_ = None if key is None else ids.get(key)
            if id_ is None or id_ in barred:
                left_out[OTHER_TEXT] += 1
            elif id_ in done:
                left_out[SECOND] += 1
            else:
                chosen[row] = id_
                done.add(id_)
        stored += work.embeddings.store(
            KNOWLEDGE, vectors.model_name, list(chosen.values()), rows[list(chosen)]
        )
    return stored, left_out


def resolve_keys(work: UnitOfWork, keys: Collection[str]) -> dict[str, UUID]:
    """Return the database's keys of the chunks that exist, by their identifiers in the file."""
    uuids = {key: uuid for key in keys if (uuid := as_uuid(key)) is not None}
    existing = set(work.knowledge.list_existing(list(uuids.values())))
    return {key: uuid for key, uuid in uuids.items() if uuid in existing} | {
        chunk_id: known.id for chunk_id, known in work.knowledge.list_known(keys).items()
    }


def _from_npy(path: Path, chunks: int, model_name: str | None) -> VectorSet:
    name = printable(path)
    if model_name is None:
        raise ImportFailed(f"{name}: a .npy file does not say which model made it; name the model")
    rows = map_vectors(path, widths=FLOATS)
    if len(rows) != chunks:
        raise ImportFailed(
            f"{name}: there are {len(rows)} vectors and {chunks} chunks; in file order, each chunk "
            "must have one"
        )
    return VectorSet(model_name, None, rows)


def _entry(entry: Any, names: Mapping[str, str]) -> tuple[str, str, np.ndarray]:
    """Return the model of a vector, the identifier of its chunk, and the vector.

    Args:
        entry: As it stands in the file.
        names: Keys of a backup's chunks, and their identifiers.
    """
    if not isinstance(entry, dict):
        raise ImportFailed("it is not an object")
    key = entry.get("chunk_id")
    if key is None:
        key = entry.get("document_id")
        key = names.get(key, key) if isinstance(key, str) else None
    if not isinstance(key, str) or not isinstance(entry.get("model_name"), str):
        raise ImportFailed("it needs 'chunk_id' or 'document_id', and 'model_name', as text")
    if not (storable(key) and storable(entry["model_name"])):
        raise ImportFailed(
            f"{key!r} of {entry['model_name']!r} has NUL or half of a surrogate pair in it, which "
            "no text in the database has"
        )
    name = "embedding_data" if entry.get("embedding") is None else "embedding"
    numbers = entry.get(name)
    if isinstance(numbers, str):  # as pgvector writes a vector
        numbers = parse_json(numbers, f"its {name!r}")
    if not isinstance(numbers, list):
        raise ImportFailed("it has no 'embedding' or 'embedding_data', a list of numbers")
    try:
        vector = np.array(numbers)
    except ValueError as error:  # lists of unequal lengths
        raise ImportFailed(f"its {name!r} is not a list of numbers") from error
    if vector.ndim != 1 or vector.dtype.kind not in "fiu":
        raise ImportFailed(f"its {name!r} is not a list of numbers")
    return entry["model_name"], key, vector.astype(np.float64)


def _read_backup(path: Path) -> dict[str, str]:
    """Read the keys of a backup's chunks and their identifiers; none where there is no backup.

    Raises:
        ImportFailed: It is there and cannot be read.
    """
    if not path.exists():
        return {}
    try:
        rows = read_json(path).document
    except ImportFailed as error:
        raise ImportFailed(f"{printable(path)}: {error}") from error
    return {
        row["id"]: chunk_id
        for row in (rows if isinstance(rows, list) else ())
        if isinstance(row, dict)
        and isinstance(row.get("id"), str)
        and (chunk_id := identifier_of(row)) is not None
    }


def _matrix(path: Path, model: str, vectors: Sequence[np.ndarray]) -> np.ndarray:
    lengths = {len(vector) for vector in vectors}
    if len(lengths) > 1:
        raise ImportFailed(
            f"{printable(path)}: the vectors of {model} have different lengths: {sorted(lengths)}"
        )
    return np.stack(vectors)
