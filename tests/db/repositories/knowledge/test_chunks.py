"""Chunks, one at a time and by the page."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from pgcorpus.db import models
from pgcorpus.db.errors import AlreadyExists, NotFound
from pgcorpus.db.repositories.knowledge.chunks import ChunkRecord, Write
from pgcorpus.db.uow import UnitOfWork
from tests.factories import (
    DocumentConceptFactory,
    FrameworkDocumentFactory,
    KeyConceptFactory,
    SourceLinesFactory,
)


def test_a_chunk_is_found_by_its_identifier(work: UnitOfWork) -> None:
    """``find`` may come back empty-handed, ``get`` raises."""
    document = FrameworkDocumentFactory(chunk_id="a")

    assert work.knowledge.get("a") is document
    assert work.knowledge.find("b") is None
    with pytest.raises(NotFound, match="'b'"):
        work.knowledge.get("b")


def test_a_chunk_is_added(work: UnitOfWork) -> None:
    """It has its key at once, and what hangs on it is stored too."""
    document = models.FrameworkDocument(
        chunk_id="a", source_file="a.md", section="s", title="t", content="Some text."
    )
    document.lines = models.SourceLines(start_line=1, end_line=2)

    work.knowledge.add(document)

    assert document.id is not None
    assert document.lines.document_id == document.id


def test_a_deleted_chunk_takes_its_parts_along(session: Session, work: UnitOfWork) -> None:
    """Its metadata, lines and links; its concepts stay."""
    document = FrameworkDocumentFactory(chunk_id="a")
    SourceLinesFactory(document=document)
    DocumentConceptFactory(document=document, concept=KeyConceptFactory())

    work.knowledge.delete("a")

    for model, left in (
        (models.FrameworkDocument, 0),
        (models.FrameworkMetadata, 0),
        (models.SourceLines, 0),
        (models.DocumentConcept, 0),
        (models.KeyConcept, 1),
    ):
        assert session.scalar(select(func.count()).select_from(model)) == left
    with pytest.raises(NotFound):
        work.knowledge.delete("a")


def test_chunks_are_listed_page_by_page(work: UnitOfWork) -> None:
    """In the order of their identifiers, and only those asked for."""
    for number in range(5):
        FrameworkDocumentFactory(
            chunk_id=f"c{number}", section="odd" if number % 2 else "even", source_file="a.md"
        )
    FrameworkDocumentFactory(chunk_id="other", source_file="b.md")

    first = work.knowledge.list_documents(source_file="a.md", limit=3)
    second = work.knowledge.list_documents(source_file="a.md", limit=3, after=first[-1].chunk_id)

    assert [each.chunk_id for each in (*first, *second)] == ["c0", "c1", "c2", "c3", "c4"]
    assert [each.chunk_id for each in work.knowledge.list_documents(section="odd")] == ["c1", "c3"]
    assert work.knowledge.count() == 6


def test_a_record_is_the_chunk_whole(work: UnitOfWork) -> None:
    """With its concepts; without metadata and lines where it has none."""
    document = FrameworkDocumentFactory(chunk_id="a", details__framework_name="F")
    for name in ("one", "two"):
        DocumentConceptFactory(document=document, concept=KeyConceptFactory(concept_name=name))
    SourceLinesFactory(document=document, start_line=3, end_line=4)
    FrameworkDocumentFactory(chunk_id="bare", details=False)

    records = work.knowledge.list_records(["a", "bare", "missing"])

    assert records.keys() == {"a", "bare"}
    assert records["a"].concepts == {"one", "two"}
    assert (records["a"].framework_name, records["a"].start_line) == ("F", 3)
    assert (records["a"].language, records["a"].extra) == ("english", {})
    assert (records["bare"].word_count, records["bare"].end_line) == (None, None)
    assert records["bare"].concepts == frozenset()


def test_keys_are_told_from_what_only_looks_like_one(work: UnitOfWork) -> None:
    """Only keys that exist are returned."""
    one, two = FrameworkDocumentFactory.create_batch(2)
    work.knowledge.delete(two.chunk_id)

    assert work.knowledge.list_existing([one.id, two.id]) == [one.id]
    known = work.knowledge.list_known([one.chunk_id, two.chunk_id])
    assert {key: value.id for key, value in known.items()} == {one.chunk_id: one.id}


def test_a_row_that_came_in_between_is_not_overwritten(work: UnitOfWork) -> None:
    """A write names the row it replaces; another row under the identifier is an error."""
    stored = FrameworkDocumentFactory(chunk_id="a")
    other = FrameworkDocumentFactory(chunk_id="b")
    record: ChunkRecord = work.knowledge.list_records(["a"])["a"]
    work.knowledge.delete("b")

    work.knowledge.write([Write(stored.id, True, b"h", "f", record)])
    with pytest.raises(AlreadyExists, match="1 chunks"):
        work.knowledge.write([Write(other.id, False, b"h", "f", record)])
