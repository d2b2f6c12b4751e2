"""The import of a test collection, as documents of a corpus."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import UnknownCorpus
from pgcorpus.db.repositories.documentation.documents import DocumentRecord
from pgcorpus.services.choices import MAX_CHUNK_TOKENS
from pgcorpus.services.documentation.chunker import ChunkerConfig
from pgcorpus.services.documentation.drafting import Drafting
from pgcorpus.services.documentation.reading.document import Block, ReadDocument
from pgcorpus.services.documentation.reading.plain import read_plain
from pgcorpus.services.evaluation.beir import Collection, Document
from pgcorpus.services.importers.vectors import FLOATS, map_vectors

CORPUS: Final = "documentation"
"""The corpus whose tables collections are loaded into: its texts may have any length."""

PATH: Final = "path"
"""The metadata of a hit that holds the place of its document in the collection: identifiers of any
length and kind stay clear of the rules for names."""

BATCH: Final = 500
"""Documents of a transaction."""

_UNSTORED: Final = re.compile("[\ud800-\udfff\0]")
"""Characters that JSON can escape and PostgreSQL does not store."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Loading:
    """The way in which the texts of a collection become passages.

    Attributes:
        config: Sizes of the passages. Where a text is several, its best one counts.
        takes_vectors: Whether each passage has the vector of its document; else those that came
            with a collection are of no use.
    """

    config: ChunkerConfig
    takes_vectors: bool


LOADINGS: Final[Mapping[str, Loading]] = {
    "scratch": Loading(
        config=ChunkerConfig(max_tokens=MAX_CHUNK_TOKENS, overlap_tokens=0), takes_vectors=True
    ),
    "documentation": Loading(config=ChunkerConfig(), takes_vectors=False),
}
"""Name → what it means: ``scratch`` cuts only what is longer than an embedder takes, and
``documentation`` as an import of files does."""


class Loaded(NamedTuple):
    """The passages that a collection was stored as.

    Attributes:
        passages: How many.
        is_cut: Whether a document is several.
    """

    passages: int
    is_cut: bool


def loading_of(name: str) -> Loading:
    """Return the loading of that name.

    Raises:
        UnknownCorpus: A collection cannot be loaded as that; the message lists what it can be.
    """
    try:
        return LOADINGS[name]
    except KeyError:
        raise UnknownCorpus(
            f"a collection cannot be loaded as {name!r}; known: {', '.join(sorted(LOADINGS))}"
        ) from None


def load_collection(
    database: Database,
    collection: Collection,
    config: ChunkerConfig,
    *,
    language: str,
    model_name: str | None,
    progress: Progress,
) -> Loaded:
    """Store a collection as documents with passages, each scope as a collection of its own.

    They are cut as files are that say the same: a heading, and the paragraphs of a plain text. One
    without a word is a document without passages.

    Args:
        database: Where to.
        collection: Its vectors, if it has any, become those of the passages of each document.
        config: Sizes of the passages.
        language: Text search configuration of all.
        model_name: The model of the vectors.
        progress: Called with the documents that are done and how many there are.
    """
    of_scope = {
        scope: Drafting(collection=name, config=config, language=language)
        for scope, name in scopes_of(collection.documents).items()
    }
    vectors = (
        None if collection.vectors is None else map_vectors(collection.vectors.path, widths=FLOATS)
    )
    total, passages, is_cut = len(collection.documents), 0, False
    for start in range(0, total, BATCH):
        batch = collection.documents[start : start + BATCH]
        records = [
            of_scope[document.scope].draft(_read(document), path=str(place), digest="")
            for place, document in enumerate(batch, start)
        ]
        with database.unit_of_work() as work:
            work.documentation.write(records)
            if vectors is not None and model_name is not None:
                for drafting in of_scope.values():
                    rows = _list_vectors(records, drafting.collection, model_name, vectors)
                    work.documentation_imports.store_vectors(rows, collection=drafting.collection)
            work.commit()
        passages += sum(len(record.chunks) for record in records)
        is_cut = is_cut or any(len(record.chunks) > 1 for record in records)
        progress(min(start + BATCH, total), total)
    return Loaded(passages, is_cut)


def scopes_of(documents: Sequence[Document]) -> dict[str | None, str]:
    """Map the scope of each document to the value it is stored as.

    The scope None is that of documents without one.
    """
    scopes = dict.fromkeys(document.scope for document in documents)
    return {scope: f"scope {number}" for number, scope in enumerate(scopes)}


def _list_vectors(
    records: Sequence[DocumentRecord], collection: str, model_name: str, vectors: np.ndarray
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield the vector of each passage of a collection: that of its document."""
    for record in records:
        if record.collection == collection:
            vector = np.asarray(vectors[int(record.path)], dtype=np.float32)
            yield from ((chunk.chunk_id, model_name, vector) for chunk in record.chunks)


def _read(document: Document) -> ReadDocument:
    """Return a document as the reader of a file would give it."""
    title, text = (_UNSTORED.sub("\ufffd", each) for each in (document.title, document.text))
    heading = " ".join(title.split())
    body = read_plain(text)
    before = f"{heading}\n\n" if heading else ""
    blocks = [
        replace(block, start=block.start + len(before), end=block.end + len(before))
        for block in body.blocks
    ]
    if heading and blocks:
        first = Block(
            kind="heading", text=heading, start=0, end=len(heading), level=1, title=heading
        )
        blocks.insert(0, first)
    elif heading:
        blocks = [Block(kind="paragraph", text=heading, start=0, end=len(heading))]
    return replace(body, text=before + body.text, blocks=tuple(blocks), title=heading or None)
