"""Pages and clicks are of the scope in which they were recorded, on chunks that it may read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import update

from pgcorpus.db.errors import ConstraintViolated, NotFound
from pgcorpus.db.models.documentation import ClickFeedback
from pgcorpus.db.models.memory import Tenant
from pgcorpus.db.repositories.documentation.documents import ChunkRecord, DocumentRecord
from pgcorpus.db.repositories.documentation.feedback import ClickRecord, SessionRecord
from pgcorpus.db.scope import Scope
from pgcorpus.db.uow import UnitOfWork

NOW = datetime(2025, 1, 1, tzinfo=UTC)


def make_chunk(name: str, text: str = "some words", **kept: Any) -> ChunkRecord:
    """A chunk of a name."""
    return ChunkRecord(
        **dict.fromkeys(ChunkRecord.__slots__)
        | {"chunk_id": name, "position": 0, "text": text, "heading_path": (), "hash": ""}
        | {"language": "english", "metadata": {"sqlite": kept}, "chunker_config": {}}
    )


def write_chunk(work: UnitOfWork, name: str, path: str = "a.md", **kept: Any) -> None:
    """Store a document with a chunk."""
    chunks = [make_chunk(name, **kept)]
    work.documentation.write([DocumentRecord(collection="default", path=path, chunks=chunks)])


def make_tenant(work: UnitOfWork) -> Scope:
    """Make a tenant, and enter its scope."""
    scope = Scope(uuid4(), None)
    work.enter(scope)
    work.session.add(Tenant(id=scope.tenant_id, name="t", slug=str(scope.tenant_id)))
    work.session.flush()
    return scope


def make_click(id_: UUID, **values: Any) -> ClickRecord:
    """A click on the chunk c1."""
    return ClickRecord(
        **{
            "id": id_,
            "query": "how",
            "chunk_id": "c1",
            "position": 1,
            "session_id": None,
            "user_id": None,
            "dwell_time": None,
            "clicked": True,
            "created_at": NOW,
        }
        | values
    )


def test_a_chunk_is_found_by_its_key_its_name_and_its_old_number(work: UnitOfWork) -> None:
    """In this order: what is a name is no number."""
    write_chunk(work, "c1", id=7, chunk_id="old")
    write_chunk(work, "7", "b.md")
    _, first = work.feedback.get_chunk_key("c1")

    assert work.feedback.get_chunk_key(first)[1] == first
    assert work.feedback.get_chunk_key(str(first))[1] == first
    assert work.feedback.get_chunk_key("old")[1] == first
    assert work.feedback.get_chunk_key("7")[1] != first
    for unknown in ("nothing", "8", str(uuid4()), ""):
        with pytest.raises(NotFound, match="there is no chunk"):
            work.feedback.get_chunk_key(unknown)


def test_a_tenant_clicks_on_its_own_and_on_shared_chunks(work: UnitOfWork) -> None:
    """Its own goes before the shared one of the same name; another's is not found."""
    write_chunk(work, "shared")
    write_chunk(work, "both", "b.md")
    scope = make_tenant(work)
    write_chunk(work, "both", "b.md")
    for name in ("shared", "both"):
        work.feedback.record_click(name, query="how", position=1)

    clicks = work.feedback.list_clicks(limit=10)
    assert {each.scope for each in clicks} == {str(scope)}
    assert {each.chunk_scope for each in clicks} == {"shared", str(scope)}
    make_tenant(work)
    assert work.feedback.list_clicks(limit=10) == []
    write_chunk(work, "theirs")
    work.enter(scope)
    with pytest.raises(NotFound):
        work.feedback.record_click("theirs", query="how", position=1)


def test_statistics_are_of_clicks_of_the_last_days(work: UnitOfWork) -> None:
    """A hit that was only shown is no click, and one of long ago does not count."""
    write_chunk(work, "c1")
    record = work.feedback.record_click
    record("c1", query="how", position=1, session_id="s", dwell_time=3.0)
    record("c1", query="how", position=4, session_id="t")
    record("c1", query="other", position=1, session_id="s")
    record("c1", query="how", position=9, session_id="u", clicked=False)
    old = record("c1", query="how", position=9)
    work.session.execute(
        update(ClickFeedback)
        .where(ClickFeedback.id == old)
        .values(created_at=datetime.now(UTC) - timedelta(days=40))
    )

    assert work.feedback.get_statistics() == (3, 2, 2.0, 3.0)
    assert work.feedback.get_statistics("how") == (2, 2, 2.5, 3.0)
    assert work.feedback.get_statistics("how", days=10**9).total_clicks == 3
    assert work.feedback.get_statistics("nothing") == (0, 0, None, None)


@pytest.mark.parametrize("values", [{"position": 0}, {"dwell_time": -1.0}])
def test_a_click_that_cannot_be_is_refused(work: UnitOfWork, values: dict[str, Any]) -> None:
    """By the table."""
    write_chunk(work, "c1")

    with pytest.raises(ConstraintViolated), work.savepoint():
        work.feedback.record_click("c1", **{"query": "how", "position": 1, **values})


def test_rows_of_a_key_are_stored_once(work: UnitOfWork) -> None:
    """Of a chunk that is not there, not at all."""
    write_chunk(work, "c1")
    one, two = uuid4(), uuid4()
    write = work.feedback.write_clicks

    assert write([make_click(one), make_click(two, chunk_id="x")], collection="default") == 1
    assert write([make_click(one, query="other")], collection="default") == 0
    assert [each.query for each in work.feedback.list_clicks(limit=9)] == ["how"]
    session = SessionRecord(id=one, session_id="s", user_id=None, created_at=NOW)
    assert work.feedback.write_sessions([session]) == 1
    assert work.feedback.write_sessions([session]) == 0


def test_clicks_and_pages_are_read_page_by_page(work: UnitOfWork) -> None:
    """Rows of the scope, or of all scopes that the role may see."""
    write_chunk(work, "c1")
    for n in range(5):
        work.feedback.record_click("c1", query=f"q{n}", position=1)
        work.feedback.record_page(f"s{n}", shown=[], query="how", weights={"text": 1.0})
    scope = make_tenant(work)
    work.feedback.record_click("c1", query="own", position=1)

    assert [each.query for each in work.feedback.list_clicks(limit=9)] == ["own"]
    work.leave()
    for read, count in ((work.feedback.list_clicks, 6), (work.feedback.list_pages, 5)):
        found: list[Any] = []
        while page := read(
            limit=2, after=(found[-1].scope, found[-1].id) if found else None, all_scopes=True
        ):
            found += page
        assert len({each.id for each in found}) == count
    assert str(scope) not in {each.scope for each in work.feedback.list_clicks(limit=9)}
