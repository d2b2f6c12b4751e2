"""Test collections in the layout of the BEIR benchmark: documents, questions and judgments."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from pgcorpus.db.errors import ImportFailed
from pgcorpus.services.importers.files import refuse_special
from pgcorpus.services.importers.vectors import FLOATS, check_vectors, map_vectors

CORPUS: Final = "corpus.jsonl"
QUERIES: Final = "queries.jsonl"
QRELS: Final = ("qrels.tsv", "qrels/test.tsv")
"""Judgments, under the first of these names: beside the others, or where BEIR itself has them."""

VECTORS: Final = ("emb_docs.npy", "emb_queries.npy")
"""pgvector's longest vector."""

QREL_FIELDS: Final = 3


class Document(NamedTuple):
    """One passage of a collection.

    Attributes:
        id: The collection's own.
        title: Perhaps empty.
        text: Perhaps empty.
        scope: Which of several parts of the collection it belongs to, or None.
    """

    id: str
    title: str
    text: str
    scope: str | None = None


class Query(NamedTuple):
    """One question of a collection.

    Attributes:
        id: The collection's own.
        text: As asked.
        scope: The part of the collection that is searched, or None for all.
    """

    id: str
    text: str
    scope: str | None = None


@dataclass(frozen=True)
class Vectors:
    """Vectors that came with a collection.

    Attributes:
        path: File of those of the documents, in order.
        queries: float of shape ``(queries, dimensions)``: those of the judged queries, in order.
    """

    path: Path
    queries: np.ndarray

    @property
    def dimensions(self) -> int:
        """The length of each."""
        return int(self.queries.shape[1])


@dataclass(frozen=True, kw_only=True)
class Judgements:
    """Judged questions that were read and checked.

    Attributes:
        queries: Those with a relevant document; at least one, no two with the same ``id``.
        judgments: Query id → document id → grade.
        notes: What was left out, a sentence each.
    """

    queries: Sequence[Query]
    judgments: Mapping[str, Mapping[str, int]]
    notes: Sequence[str] = field(default_factory=tuple)


@dataclass(frozen=True, kw_only=True)
class Collection:
    """A collection that was read and checked.

    Attributes:
        name: Of its folder.
        documents: At least one, no two with the same ``id``.
        queries: Those with a relevant document; at least one, no two with the same ``id``.
        judgments: Query id → document id → grade.
        vectors: Those of its documents and queries, or None.
        notes: What was left out, a sentence each.
    """

    name: str
    documents: Sequence[Document]
    queries: Sequence[Query]
    judgments: Mapping[str, Mapping[str, int]]
    vectors: Vectors | None = None
    notes: Sequence[str] = field(default_factory=tuple)


def missing_files(folder: Path, names: Sequence[str] = (CORPUS, QUERIES)) -> list[str]:
    """Return the names of the files that a collection must have and *folder* has not.

    Args:
        folder: The collection.
        names: Those that it must have beside the judgments.
    """
    missing = [name for name in names if not (folder / name).exists()]
    judged = any((folder / name).exists() for name in QRELS)
    return missing if judged else [*missing, " or ".join(QRELS)]


def read_collection(folder: Path) -> Collection:
    """Read a collection.

    Args:
        folder: It holds ``corpus.jsonl`` (``_id``, ``title``, ``text``, perhaps ``scope``),
            ``queries.jsonl`` (``_id``, ``text``, perhaps ``scope``), ``qrels.tsv`` (query id,
            document id and grade, below a header) or ``qrels/test.tsv``, and perhaps
            ``emb_docs.npy`` and ``emb_queries.npy`` (floats, row i for line i).

    Raises:
        ImportFailed: A file is missing or is not what it should be; the message names the line.
    """
    if missing := missing_files(folder):
        raise ImportFailed(f"{folder} has no {', '.join(missing)}")
    documents = [
        Document(id_, _text(line, "title"), _text(line, "text"), _scope(line))
        for id_, line in _lines(folder / CORPUS)
    ]
    asked, judgments, judged = _read_questions(folder)
    if not documents:
        raise ImportFailed(f"{folder / CORPUS} is empty")
    return Collection(
        name=folder.resolve().name,
        documents=documents,
        queries=[asked[row] for row in judged],
        judgments=judgments,
        vectors=_vectors(folder, len(documents), len(asked), judged),
        notes=(
            *_note_questions(asked, judgments, len(judged)),
            *_note_documents(documents, judgments),
        ),
    )


def read_judgements(folder: Path) -> Judgements:
    """Read the judged questions of a collection; its documents are elsewhere.

    Args:
        folder: It holds ``queries.jsonl`` and ``qrels.tsv`` or ``qrels/test.tsv``, as for
            ``read_collection``.

    Raises:
        ImportFailed: A file is missing or is not what it should be; the message names the line.
    """
    if missing := missing_files(folder, (QUERIES,)):
        raise ImportFailed(f"{folder} has no {', '.join(missing)}")
    asked, judgments, judged = _read_questions(folder)
    return Judgements(
        queries=[asked[row] for row in judged],
        judgments=judgments,
        notes=tuple(_note_questions(asked, judgments, len(judged))),
    )


def _read_questions(
    folder: Path,
) -> tuple[Sequence[Query], dict[str, dict[str, int]], Sequence[int]]:
    """Read questions and judgments, and the rows of the questions with a relevant document."""
    asked = [
        Query(id_, _text(line, "text"), _scope(line)) for id_, line in _lines(folder / QUERIES)
    ]
    judgments = _judgments(next(path for name in QRELS if (path := folder / name).exists()))
    relevant = {id_ for id_, grades in judgments.items() if max(grades.values()) > 0}
    judged = [row for row, query in enumerate(asked) if query.id in relevant]
    if not judged:
        raise ImportFailed(f"{folder}: no query has a document that is judged relevant")
    return asked, judgments, judged


def _note_questions(
    asked: Sequence[Query], judgments: Mapping[str, Mapping[str, int]], judged: int
) -> Iterator[str]:
    if unknown := judgments.keys() - {query.id for query in asked}:
        yield f"judged queries that are not in {QUERIES}: {len(unknown)}, such as {min(unknown)!r}"
    if judged < len(asked):
        yield f"queries without a relevant document, left out: {len(asked) - judged}"


def _note_documents(
    documents: Sequence[Document], judgments: Mapping[str, Mapping[str, int]]
) -> Iterator[str]:
    known = {document.id for document in documents}
    if lost := {id_ for grades in judgments.values() for id_ in grades} - known:
        yield (
            f"judged documents that are not in {CORPUS}: {len(lost)}, such as {min(lost)!r}; "
            "those that are relevant count as not found"
        )


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a file of JSON lines, each with its ``_id``."""
    first: dict[str, int] = {}
    for number, line in _number_lines(path):
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ImportFailed(f"{where} is not JSON: {error}") from error
        id_ = value.get("_id") if isinstance(value, dict) else None
        if isinstance(id_, bool) or not isinstance(id_, str | int):
            raise ImportFailed(f"{where} is not an object with an '_id'")
        if str(id_) in first:
            raise ImportFailed(f"{where} has the '_id' {id_!r} of line {first[str(id_)]}")
        first[str(id_)] = number
        for name in ("title", "text"):
            if not isinstance(value.get(name), str | None):
                raise ImportFailed(f"{where}: {name!r} is not text")
        yield str(id_), value


def _text(line: Mapping[str, Any], name: str) -> str:
    return line.get(name) or ""


def _scope(line: Mapping[str, Any]) -> str | None:
    scope = line.get("scope")
    return None if scope is None else str(scope)


def _judgments(path: Path) -> dict[str, dict[str, int]]:
    judgments: dict[str, dict[str, int]] = {}
    for number, line in _number_lines(path):
        where = f"{path}, line {number}"
        values = line.rstrip("\r\n").split("\t")
        if len(values) != QREL_FIELDS:
            raise ImportFailed(f"{where} has not the three fields query-id, corpus-id and score")
        query, document, score = values
        try:
            grade = int(score)
        except ValueError as error:
            if number == 1:  # the header
                continue
            raise ImportFailed(f"{where}: the score {score!r} is not a whole number") from error
        if judgments.setdefault(query, {}).setdefault(document, grade) != grade:
            raise ImportFailed(f"{where} judges {document!r} for {query!r} again, and otherwise")
    return judgments


def _number_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file that are not blank, with their numbers."""
    try:
        refuse_special(path)
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise ImportFailed(f"{path}, line {number} is not UTF-8") from error
                if text.strip():
                    yield number, text
    except OSError as error:
        raise ImportFailed(f"{path} cannot be read: {error.strerror}") from error


def _vectors(folder: Path, documents: int, queries: int, judged: Sequence[int]) -> Vectors | None:
    paths = [folder / name for name in VECTORS]
    present = [path.exists() for path in paths]
    if not any(present):
        return None
    if not all(present):
        raise ImportFailed(f"{folder} has one of {' and '.join(VECTORS)}; it must have both")
    of_documents = _matrix(paths[0], documents)
    of_queries = _matrix(paths[1], queries)
    if of_documents.shape[1] != of_queries.shape[1]:
        raise ImportFailed(
            f"{folder}: the documents' vectors have {of_documents.shape[1]} dimensions and the "
            f"queries' {of_queries.shape[1]}; they must be of one model"
        )
    return Vectors(paths[0], np.array(of_queries[list(judged)], dtype=np.float32))


def _matrix(path: Path, lines: int) -> np.ndarray:
    """Return the rows of an untrusted ``.npy`` file, one per line of the file they belong to."""
    rows = map_vectors(path, widths=FLOATS)
    if len(rows) != lines:
        raise ImportFailed(f"{path} has {len(rows)} vectors for {lines} lines")
    for _ in check_vectors(path, rows):
        pass
    return rows
