"""Documents as rows: written whole, moved with their chunks, listed page by page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import InvalidCursor, MissingScope, NotFound, NotPermitted
from pgcorpus.db.repositories.documentation.documents import ChunkRecord, DocumentRecord, Move
from pgcorpus.db.scope import Scope
from pgcorpus.db.uow import UnitOfWork
from tests.logins import logged_in

NOBODY = UUID(int=0)


def chunk(name: str, position: int = 0, **more: Any) -> ChunkRecord:
    """A chunk whose text is its name."""
    return replace(
        ChunkRecord(
            chunk_id=name,
            position=position,
            heading=None,
            anchor=None,
            heading_path=(),
            text=name,
            url=None,
            language="english",
            token_count=1,
            hash=name,
            start_offset=0,
            end_offset=1,
            page=None,
            metadata={},
            chunker_version="1",
            chunker_config={},
            processing_timestamp=None,
            lineage_id="run 1",
        ),
        **more,
    )


def document(path: str, *names: str, **more: Any) -> DocumentRecord:
    """A document of chunks with these names."""
    chunks = [chunk(name, position) for position, name in enumerate(names)]
    return DocumentRecord(collection="default", path=path, hash=path, chunks=chunks, **more)


def write(work: UnitOfWork, *records: DocumentRecord) -> dict[str, UUID]:
    """Store documents; path → key."""
    return {path: each.id for (_, path), each in work.documentation.write(records).items()}


def list_stored(work: UnitOfWork) -> list[tuple[str, Sequence[str]]]:
    """Paths, each with the names of its chunks in order."""
    statement = text("""
        SELECT path, array_agg(chunk_id ORDER BY position) FILTER (WHERE chunk_id IS NOT NULL)
        FROM documents LEFT JOIN chunks ON document_id = documents.id GROUP BY path ORDER BY path
    """)
    return [(row[0], row[1]) for row in work.session.execute(statement)]


def test_a_write_counts_what_became_of_the_chunks(work: UnitOfWork) -> None:
    """Added, updated, unchanged, deleted; the same again writes no row."""
    first = work.documentation.write([document("a", "x", "y"), document("b")])
    changed = replace(document("a", "y", "z"), title="New")
    state = "SELECT xmin::text, ctid::text FROM chunks UNION SELECT xmin, ctid::text FROM documents"

    second = work.documentation.write([changed])
    before = set(work.session.execute(text(state.replace("SELECT xmin,", "SELECT xmin::text,"))))
    third = work.documentation.write([changed])

    assert [tuple(each[1:]) for each in first.values()] == [(2, 0, 0, 0), (0, 0, 0, 0)]
    assert tuple(second["default", "a"][1:]) == (1, 1, 0, 1)
    assert tuple(third["default", "a"][1:]) == (0, 0, 2, 0)
    after = set(work.session.execute(text(state.replace("SELECT xmin,", "SELECT xmin::text,"))))
    assert after == before
    assert first["default", "a"].id == second["default", "a"].id


def test_another_run_alone_is_no_change(work: UnitOfWork) -> None:
    """The time and the run of a chunk stay those of the first."""
    work.documentation.write([document("a", "x")])
    again = replace(document("a"), chunks=[chunk("x", lineage_id="run 2")])

    written = work.documentation.write([again])

    assert tuple(written["default", "a"][1:]) == (0, 0, 1, 0)
    assert work.session.scalar(text("SELECT lineage_id FROM chunks")) == "run 1"


def test_moved_documents_change_places_with_the_names_of_their_chunks(work: UnitOfWork) -> None:
    """Keys stay; chunks whose names are not made of the path keep these."""
    keys = write(work, document("a", "aa-x", "aa-y"), document("b", "bb-x", "other"))

    work.documentation.move(
        [Move(keys["a"], "b", "aa", "bb"), Move(keys["b"], "a", "bb", "aa")], collection="default"
    )

    assert list_stored(work) == [("a", ["aa-x", "other"]), ("b", ["bb-x", "bb-y"])]
    assert work.documentation.find("b", collection="default").id == keys["a"]  # type: ignore[union-attr]


def test_a_document_in_the_way_of_a_moved_one_is_deleted(work: UnitOfWork) -> None:
    """Only in its collection."""
    keys = write(work, document("a", "aa-x"), document("b", "bb-x"))
    other = replace(document("b", "bb-x"), collection="other")
    write(work, other)

    work.documentation.move([Move(keys["a"], "b", "aa", "bb")], collection="default")

    assert [row[0] for row in list_stored(work)] == ["b", "b"] or len(list_stored(work)) == 1
    assert work.documentation.find("b", collection="default").id == keys["a"]  # type: ignore[union-attr]
    assert work.documentation.find("b", collection="other") is not None


def test_the_state_of_a_collection_says_how_its_documents_were_cut(work: UnitOfWork) -> None:
    """One without chunks was cut by nothing."""
    write(work, document("a", "x", source_url="https://example.org"), document("b"))

    a, b = work.documentation.list_stored("default")

    assert (a.path, a.hash, a.chunks, a.chunker) == ("a", "a", 1, ("1", {}))
    assert a.source_url == "https://example.org"
    assert (b.path, b.chunks, b.chunker) == ("b", 0, None)
    assert work.documentation.list_stored("other") == []
    assert work.documentation.has_any("default")
    assert not work.documentation.has_any("other")


def test_a_record_is_read_as_it_was_written(work: UnitOfWork) -> None:
    """So that writing it again changes nothing."""
    write(work, document("a", "x", "y", metadata={"n": [1, None]}, title="A"))
    found = work.documentation.find("a", collection="default")
    assert found is not None

    written = work.documentation.write([work.documentation.read_record(found)])

    assert tuple(written["default", "a"][1:]) == (0, 0, 2, 0)


def test_pages_follow_one_another_and_take_no_others_cursor(work: UnitOfWork) -> None:
    """By collection and path."""
    write(work, *(document(f"{n}") for n in range(5)))
    page = work.documentation.list_page(limit=3)
    rest = work.documentation.list_page(limit=3, cursor=page.next_cursor)

    assert [each.path for each in (*page.items, *rest.items)] == list("01234")
    assert rest.next_cursor is None
    with pytest.raises(InvalidCursor):
        work.documentation.list_page(collection="default", cursor=page.next_cursor)


def test_filters_find_documents_within_a_collection(work: UnitOfWork) -> None:
    """Documents with a chunk that meets them are found."""
    here = replace(document("a"), chunks=[chunk("x", metadata={"n": 1}), chunk("y", 1)])
    there = replace(here, collection="other")
    keys = write(work, here)
    write(work, there)

    found = work.documentation.list_matching({"metadata": {"n": 1}}, collection="default")

    assert list(found) == [keys["a"]]


def test_what_is_not_there_is_told(work: UnitOfWork) -> None:
    """By key it must exist; by path it may."""
    with pytest.raises(NotFound, match=str(NOBODY)):
        work.documentation.get(NOBODY)
    assert work.documentation.find("a", collection="default") is None
    assert work.documentation.delete([NOBODY]) == 0
    assert work.documentation.delete_paths(["a"], collection="default") == 0


def test_deleted_documents_take_their_chunks_with_them(work: UnitOfWork) -> None:
    """By key or by path."""
    keys = write(work, document("a", "x"), document("b", "y"), document("c", "z"))

    assert work.documentation.delete([keys["a"]]) == 1
    assert work.documentation.delete_paths(["b", "nothing"], collection="default") == 1
    assert list_stored(work) == [("c", ["z"])]


def test_only_administrators_may_write_for_everybody(database: Database) -> None:
    """The owner, and members of rag_admin; a single user has no documents."""
    with database.unit_of_work() as work:
        work.documentation.require_writable()
    with logged_in(database, "rag_admin") as admin, admin.unit_of_work() as work:
        work.documentation.require_writable()
    with logged_in(database, "rag_read_write") as application:
        with application.unit_of_work() as work, pytest.raises(NotPermitted, match="rag_admin"):
            work.documentation.require_writable()
        with application.unit_of_work(Scope.tenant(NOBODY)) as work:
            work.documentation.require_writable()
        with application.unit_of_work(Scope.user(NOBODY)) as work, pytest.raises(MissingScope):
            work.documentation.require_writable()
