"""The import of a test collection into a corpus."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import ImportFailed, UnknownCorpus
from pgcorpus.services.documentation.drafting import Drafting
from pgcorpus.services.documentation.reading.document import Block, ReadDocument
from pgcorpus.services.documentation.reading.plain import read_plain
from pgcorpus.services.evaluation.beir import Collection, Document
from pgcorpus.services.importers.files import MAX_FILE_BYTES
from pgcorpus.services.importers.report import ImportReport
from pgcorpus.services.knowledge.importer import KnowledgeImporter
from pgcorpus.services.knowledge.rules import MIN_CHARACTERS_PER_WORD

BYTES_PER_FILE: Final = MAX_FILE_BYTES // 8
MAX_SHOWN: Final = 5

BATCH: Final = 500
"""Documents of a transaction."""

_UNSTORED: Final = re.compile("[\ud800-\udfff\0]")
"""Characters that JSON can escape and PostgreSQL does not store."""

Progress = Callable[[int, int], None]

NOTHING: Final = "\u200b"
"""The text of a passage whose document has none. A zero-width space is neither a blank to the rules
nor a part of a word to parsers, trigrams or tokenizers."""


class Load(NamedTuple):
    """The options of loading a collection.

    Attributes:
        language: Text search configuration of its documents.
        vectors: File of their vectors, or None.
        model_name: The model that made these, or None.
    """

    language: str
    vectors: Path | None
    model_name: str | None


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """The functions that load a collection into a corpus, and find a hit's document again.

    A document goes by its place in the collection: identifiers and scopes of any length and kind
    stay clear of the import's rules for names.

    Attributes:
        corpus: What is searched.
        load: Imports the documents, in order, with what is done and what there is in all reported;
            returns what a reader should know, a sentence each. It raises ``ImportFailed`` where a
            document or a vector of one was not stored.
        key: The metadata of a hit that holds the document's place.
        scope: The filter that keeps one scope.
        is_chunked: Whether a document may be several passages. Then its best one counts, and
            vectors of whole documents are of no use.
    """

    corpus: str
    load: Callable[[Database, Collection, Load, Progress], list[str]]
    key: str
    scope: str
    is_chunked: bool = False


def load_knowledge(
    database: Database, collection: Collection, load: Load, progress: Progress
) -> list[str]:
    """Import a collection as chunk files of the knowledge base."""
    importer = KnowledgeImporter(
        database,
        language=load.language,
        embeddings=load.vectors,
        embeddings_model=load.model_name,
    )
    with TemporaryDirectory(prefix="pgcorpus-eval-") as folder:
        _write_chunks(Path(folder), collection.documents)
        report = importer.run([Path(folder)], progress)
    return check_import(report, collection)


def load_documentation(
    database: Database, collection: Collection, load: Load, progress: Progress
) -> list[str]:
    """Store a collection as documents with chunks, each scope as a collection of its own.

    They are cut as files are that say the same: a heading, and the paragraphs of a plain text. One
    without a word is a document without chunks.
    """
    scopes = scopes_of(collection.documents)
    of_scope = {
        scope: Drafting(collection=name, language=load.language) for scope, name in scopes.items()
    }
    total, chunks = len(collection.documents), 0
    for start in range(0, total, BATCH):
        batch = enumerate(collection.documents[start : start + BATCH], start)
        records = [
            of_scope[document.scope].draft(_read(document), path=str(place), digest="")
            for place, document in batch
        ]
        with database.unit_of_work() as work:
            work.documentation.write(records)
            work.commit()
        chunks += sum(len(record.chunks) for record in records)
        progress(min(start + BATCH, total), total)
    return [f"{total} documents were cut into {chunks} chunks; the best of each counts"]


_KNOWLEDGE: Final = Adapter(
    corpus="knowledge", load=load_knowledge, key="chunk_id", scope="section"
)
_DOCUMENTATION: Final = Adapter(
    corpus="documentation",
    load=load_documentation,
    key="path",
    scope="collection",
    is_chunked=True,
)
ADAPTERS: Final[Mapping[str, Adapter]] = {
    "scratch": _KNOWLEDGE,
    "knowledge": _KNOWLEDGE,
    "documentation": _DOCUMENTATION,
}
"""Name → what it means. ``scratch`` is whichever corpus asks least of a collection; today that is
the knowledge base's tables."""


def adapter_of(corpus: str) -> Adapter:
    """Return the adapter of that name.

    Raises:
        UnknownCorpus: A collection cannot be loaded as that; the message lists what it can be.
    """
    try:
        return ADAPTERS[corpus]
    except KeyError:
        raise UnknownCorpus(
            f"a collection cannot be loaded as {corpus!r}; known: {', '.join(sorted(ADAPTERS))}"
        ) from None


def scopes_of(documents: Sequence[Document]) -> dict[str | None, str]:
    """Map the scope of each document to the value it is stored as.

    The scope None is that of documents without one.
    """
    scopes = dict.fromkeys(document.scope for document in documents)
    return {scope: f"scope {number}" for number, scope in enumerate(scopes)}


def check_import(report: ImportReport, collection: Collection) -> list[str]:
    """Check the report of an import, and list what the import changed.

    Raises:
        ImportFailed: A document or a vector of one was not stored.
    """
    documents, stored = collection.documents, report.total("added")
    if report.failed or stored != len(documents):
        refused = [
            f"{documents[int(Path(each.file).stem) + int(each.locator[2:-1])].id}: {each.reason}"
            for each in report.rejects
        ] or [f"{each.file}: {each.error}" for each in report.files if each.error]
        more = f"\nand {len(refused) - MAX_SHOWN} more" if len(refused) > MAX_SHOWN else ""
        raise ImportFailed(
            f"{stored} of {len(documents)} documents could be stored, and figures of a part "
            "would be of another collection. Refused:\n" + "\n".join(refused[:MAX_SHOWN]) + more
        )
    if collection.vectors is not None and report.embedded != len(documents):
        raise ImportFailed(f"{report.embedded} of {len(documents)} vectors were stored")
    changed = report.total("transformed")
    return [f"documents that the import's rules changed: {changed}"] if changed else []


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
    if heading:
        first = Block(
            kind="heading", text=heading, start=0, end=len(heading), level=1, title=heading
        )
        blocks.insert(0, first)
    return replace(body, text=before + body.text, blocks=tuple(blocks), title=heading or None)


def _write_chunks(folder: Path, documents: Sequence[Document]) -> None:
    """Write chunk files whose names sort in the order of the documents.

    A file is named after its first document, so that a locator leads to the document.
    """
    scopes = scopes_of(documents)
    start = 0
    while start < len(documents):
        lines: list[str] = []
        size = 0
        for place, document in islice(enumerate(documents), start, None):
            lines.append(json.dumps(_chunk(place, document, scopes[document.scope])))
            size += len(lines[-1])
            if size > BYTES_PER_FILE:
                break
        (folder / f"{start:012}.json").write_text(f"[{','.join(lines)}]")
        start += len(lines)


def _chunk(place: int, document: Document, scope: str) -> dict[str, Any]:
    """Return a document as a chunk that no rule has to change, and none refuses for being terse."""
    text = document.text if document.text.strip() else NOTHING * MIN_CHARACTERS_PER_WORD
    words = len(text.split())
    content = text.ljust(words * MIN_CHARACTERS_PER_WORD)
    return {
        "chunk_id": str(place),
        "source_file": "corpus.jsonl",
        "section": scope,
        "title": document.title if document.title.strip() else NOTHING,
        "content": content,
        "character_count": len(content),
        "word_count": words,
        "chunk_type": "supporting",
        "preserves_complete_concept": True,
        "business_logic_intact": True,
        "validation_passed": True,
    }
