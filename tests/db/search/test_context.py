"""Turns around hits: read from the database in one statement, along the hit's own branch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Final
from uuid import UUID, uuid4

import pytest
from sqlalchemy import URL, create_engine, event, text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import InvalidSearch
from pgcorpus.db.models import Message
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.context import Window, surroundings
from pgcorpus.db.search.corpora import CHAT, DOCUMENTATION, KNOWLEDGE
from pgcorpus.db.search.corpus import Corpus, Order
from pgcorpus.db.search.driver import in_drivers_words
from pgcorpus.db.uow import UnitOfWork
from tests.conftest import Databases
from tests.factories import (
    ChunkFactory,
    ConversationFactory,
    DocumentFactory,
    MessageFactory,
    TenantFactory,
    in_scope,
)

Tree = dict[tuple[int, int], UUID]
"""(branch, position) → message."""

FORKED: Final = [(0, p) for p in range(6)] + [(1, 4), (1, 5), (2, 2), (2, 3), (3, 3)]
"""A path of six turns, forked after the fourth and after the second, there twice."""

LONG: Final = 50_000
"""Turns of the first conversation."""

OTHERS: Final = (500, 100)
"""Further conversations, and turns of each."""

FILL: Final = (
    # A superuser may do without checks of keys and without jobs: these are tested elsewhere, and
    # take long.
    "SET LOCAL session_replication_role = replica",
    "SET LOCAL statement_timeout = 0",
    """
    INSERT INTO conversations (id, title)
    SELECT lpad(n::text, 32, '0')::uuid, 'Conversation ' || n FROM generate_series(0, :others) n
    """,
    """
    INSERT INTO messages (conversation_id, position, role, content)
    SELECT lpad(n::text, 32, '0')::uuid, place, 'user', 'turn ' || place
    FROM generate_series(0, :others) n,
         generate_series(1, CASE n WHEN 0 THEN :long ELSE :turns END) place
    """,
    """
    INSERT INTO messages (conversation_id, branch, position, role, content)
    SELECT lpad('0', 32, '0')::uuid, branch, place, 'user', 'alternative'
    FROM generate_series(1, 30) branch, generate_series(:long - branch, :long) place
    """,
    """
    INSERT INTO documents (id, path) SELECT lpad(n::text, 32, '0')::uuid, 'long-' || n
    FROM generate_series(0, :others) n
    """,
    """
    INSERT INTO chunks (document_id, chunk_id, position, text)
    SELECT lpad(n::text, 32, '0')::uuid, n || '-' || place, place, 'chunk ' || place
    FROM generate_series(0, 1) n, generate_series(1, :long / 5) place
    """,
    "ANALYZE",
)


OF_LONG: Final = {
    "chat": (
        "SELECT id FROM messages WHERE conversation_id = lpad('0', 32, '0')::uuid"
        " AND position IN (7, 100, 24999, 25001, 49990, 49998) AND branch IN (0, 20)"
    ),
    "documentation": (
        "SELECT id FROM chunks WHERE document_id = lpad('0', 32, '0')::uuid"
        " AND position IN (1, 7, 100, 4999, 5001, 9990, 9998, 10000)"
    ),
}
"""Eight passages of the longest conversation, or document."""


def plant(places: list[tuple[int, int]]) -> Tree:
    """Store messages of one conversation at these (branch, position)."""
    conversation = ConversationFactory(title="Prices")
    return {
        (branch, position): MessageFactory(
            conversation=conversation, branch=branch, position=position
        ).id
        for branch, position in places
    }


def around(work: UnitOfWork, hit: UUID, *, before: int = 2, after: int = 2) -> Window:
    """The window of one hit."""
    return work.searches.surroundings(CHAT, [hit], before=before, after=after)[hit]


def at(window: Window) -> list[tuple[int, int]]:
    """(branch, position) of each turn, in their order."""
    assert list(window) == sorted(window)
    return [(turn.branch, turn.place) for turn in window.values()]


def test_a_window_is_the_turns_around_a_hit_in_their_order(work: UnitOfWork) -> None:
    """So many before, the hit, so many after; each says who spoke, when, and what."""
    tree = plant([(0, place) for place in range(9)])

    window = around(work, tree[0, 4], before=2, after=1)

    assert [turn.id for turn in window.values()] == [tree[0, place] for place in (2, 3, 4, 5)]
    assert [turn.is_hit for turn in window.values()] == [False, False, True, False]
    stored = work.session.get_one(Message, tree[0, 4])
    turn = window[4]
    assert (turn.within, turn.role, turn.time) == (
        stored.conversation_id,
        "user",
        stored.created_at,
    )
    assert (turn.title, turn.content) == ("Prices", stored.content)


@pytest.mark.parametrize(("place", "expected"), [(0, [0, 1, 2]), (8, [6, 7, 8])])
def test_a_window_ends_where_the_conversation_does(
    work: UnitOfWork, place: int, expected: list[int]
) -> None:
    """There is nothing before the first turn, and nothing after the last."""
    tree = plant([(0, place) for place in range(9)])

    assert list(around(work, tree[0, place])) == expected


@pytest.mark.parametrize(
    ("hit", "expected"),
    [
        ((0, 3), [(0, 1), (0, 2), (0, 3), (0, 4), (0, 5)]),
        ((1, 4), [(0, 2), (0, 3), (1, 4), (1, 5)]),
        ((1, 5), [(0, 3), (1, 4), (1, 5)]),
        ((2, 2), [(0, 0), (0, 1), (2, 2), (2, 3)]),
        ((3, 3), [(0, 1), (2, 2), (3, 3)]),
    ],
)
def test_the_past_of_an_abandoned_turn_is_that_of_its_branch(
    work: UnitOfWork, hit: tuple[int, int], expected: list[tuple[int, int]]
) -> None:
    """Before the fork it is the path it was forked from, never the turns that took its place."""
    tree = plant(FORKED)

    assert at(around(work, tree[hit])) == expected


@pytest.mark.parametrize("seed", range(8))
def test_windows_are_what_the_numbering_of_branches_says(work: UnitOfWork, seed: int) -> None:
    """Of any turns, missing ones included: the reference reads the contract word for word."""
    drawn = random.Random(seed)  # noqa: S311 - no secret
    places = [
        (branch, position)
        for branch in range(5)
        for begin in [drawn.randrange(6) if branch else 0]
        for position in range(begin, begin + drawn.randrange(1, 7))
        if drawn.random() < 0.85
    ]
    tree = plant(places)
    before, after = drawn.randrange(4), drawn.randrange(4)

    windows = work.searches.surroundings(CHAT, list(tree.values()), before=before, after=after)

    for (branch, position), hit in tree.items():
        past = {q: max(b for b, p in places if p == q and b <= branch)
                for b, q in places if q < position and b <= branch}  # fmt: skip
        later = sorted(q for b, q in places if b == branch and q > position)[:after]
        expected = [(past[q], q) for q in sorted(past)[len(past) - min(before, len(past)) :]]
        expected += [(branch, position)] + [(branch, q) for q in later]
        assert sorted((t.place, t.branch) for t in windows[hit].values()) == [
            (q, b) for b, q in expected
        ]


def test_a_turn_that_was_deleted_leaves_its_neighbours(work: UnitOfWork) -> None:
    """Two turns before are the two that there are."""
    tree = plant([(0, place) for place in (0, 1, 4, 6, 7)])

    assert list(around(work, tree[0, 6])) == [1, 4, 6, 7]


def test_a_hit_that_is_gone_has_no_window(work: UnitOfWork) -> None:
    """The others have theirs, in the order of the hits."""
    tree = plant([(0, place) for place in range(4)])

    windows = work.searches.surroundings(CHAT, [tree[0, 3], uuid4(), tree[0, 0]], before=1, after=1)

    assert list(windows) == [tree[0, 3], tree[0, 0]]


def test_windows_of_many_hits_take_one_statement(work: UnitOfWork) -> None:
    """However many there are."""
    tree = plant([(0, place) for place in range(30)])
    ran: list[str] = []

    def note(*sent: Any) -> None:
        ran.append(sent[2])

    connection = work.session.connection()
    event.listen(connection, "before_cursor_execute", note)
    windows = work.searches.surroundings(CHAT, list(tree.values()), before=3, after=3)
    event.remove(connection, "before_cursor_execute", note)

    assert len(windows) == 30
    assert len(ran) == 1


def test_row_security_hides_neighbours_as_it_hides_hits(work: UnitOfWork) -> None:
    """The statement reads the tables in the caller's transaction, as the caller."""
    tree = plant([(0, place) for place in range(5)])
    role = f"reader_{uuid4().hex}"
    hidden = work.session.get_one(Message, tree[0, 3]).content
    for statement in (
        f"CREATE ROLE {role}",
        f"GRANT {role} TO CURRENT_USER",
        f"GRANT SELECT ON messages, conversations TO {role}",
        "ALTER TABLE messages ENABLE ROW LEVEL SECURITY",
        f"CREATE POLICY visible ON messages TO {role} USING (content <> '{hidden}')",
        f"SET LOCAL ROLE {role}",
    ):
        work.session.execute(text(statement))

    windows = work.searches.surroundings(CHAT, [tree[0, 2], tree[0, 3]], before=1, after=1)

    assert list(windows) == [tree[0, 2]]
    assert list(windows[tree[0, 2]]) == [1, 2, 4]


def test_a_corpus_without_an_order_has_no_context(work: UnitOfWork) -> None:
    """The error says why, and what to do."""
    with pytest.raises(InvalidSearch, match="knowledge has no context"):
        work.searches.surroundings(KNOWLEDGE, [uuid4()], before=1, after=1)


def test_an_order_needs_no_branches_speakers_or_times(work: UnitOfWork) -> None:
    """A corpus of chunks of documents would name two columns."""
    tree = plant([(0, place) for place in range(5)])
    columns = CHAT.passages.c
    plain = replace(CHAT, order=Order(within=columns.conversation_id, place=columns.position))

    (window,) = work.searches.surroundings(plain, [tree[0, 2]], before=1, after=1).values()

    assert [(turn.place, turn.branch) for turn in window.values()] == [(1, 0), (2, 0), (3, 0)]
    assert {(turn.role, turn.time) for turn in window.values()} == {(None, None)}


def test_a_window_of_a_document_is_of_its_own_scope(work: UnitOfWork) -> None:
    """Shared and own ones have theirs, though ids agree; what is another tenant's has none."""
    own, other = Scope.tenant(UUID(int=7)), Scope.tenant(UUID(int=8))
    work.session.execute(text("SET LOCAL ROLE rag_admin"))
    tenants = {scope: TenantFactory(id=scope.tenant_id) for scope in (own, other)}
    work.session.execute(text("RESET ROLE"))
    id_ = uuid4()
    chunks = {}
    for scope in (None, own, other):
        with nullcontext() if scope is None else in_scope(work.session, scope):
            document = DocumentFactory(
                id=id_, tenant=None if scope is None else tenants[scope], title=f"Guide of {scope}"
            )
            chunks[scope] = [
                ChunkFactory(
                    document=document, position=n, heading_path=["Prices"], anchor="prices"
                ).id
                for n in range(5)
            ]
    hits = [ids[2] for ids in chunks.values()]

    shared = work.searches.surroundings(DOCUMENTATION, hits, before=1, after=1)
    work.enter(own)
    windows = work.searches.surroundings(DOCUMENTATION, hits, before=1, after=1)

    assert list(shared) == hits[:1]
    assert list(windows) == hits[:2]
    for scope in (None, own):
        window = windows[chunks[scope][2]]
        assert [turn.id for turn in window.values()] == chunks[scope][1:4]
        assert {turn.title for turn in window.values()} == {f"Guide of {scope}"}
        assert {turn.heading for turn in window.values()} == {"Prices"}
        assert {(turn.citation or "").partition("#")[2] for turn in window.values()} == {"prices"}


@pytest.fixture(scope="module")
def archive(databases: Databases, hosted: URL) -> Iterator[Database]:
    """A hundred thousand messages, half of them in one conversation, which was forked thirty times.

    No test changes it.
    """
    with databases.opened(hosted.database or "", owner=hosted) as database:
        sizes = {"long": LONG, "others": OTHERS[0], "turns": OTHERS[1]}
        superuser = create_engine(databases.superuser_of(database.url))
        with superuser.begin() as connection:
            for statement in FILL:
                connection.execute(text(statement), sizes)
        superuser.dispose()
        yield database


def explain(work: UnitOfWork, corpus: Corpus, hits: list[UUID], *, generic: bool) -> dict[str, Any]:
    """Return the plan of the statement, with what it took."""
    sql = in_drivers_words(surroundings(corpus))
    for place, name in enumerate(("hits", "before", "after", "scopes"), start=1):
        sql = sql.replace(f"%({name})s", f"${place}")
    connection = work.session.connection()
    mode = "force_generic_plan" if generic else "force_custom_plan"
    array = "{" + ",".join(map(str, hits)) + "}"
    for statement in (
        f"SET LOCAL plan_cache_mode = {mode}",
        f"PREPARE around (uuid[], integer, integer, text[]) AS {sql}",
    ):
        connection.exec_driver_sql(statement)
    try:
        plan: dict[str, Any] = connection.exec_driver_sql(
            f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE around('{array}', 2, 2, '{{shared}}')"
        ).scalar_one()[0]
    finally:
        connection.exec_driver_sql("DEALLOCATE around")
    return plan


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """All nodes of a plan."""
    found = [plan["Plan"]]
    for node in found:
        found += node.get("Plans", [])
    return found


@pytest.mark.parametrize("generic", [False, True], ids=["these values", "any values"])
@pytest.mark.parametrize(
    ("corpus", "index"),
    [
        (CHAT, "uq_messages_conversation_id_branch_position"),
        (DOCUMENTATION, "chunks_document_id_idx"),
    ],
    ids=["chat", "documentation"],
)
def test_a_window_reads_a_few_pages_however_long_the_conversation(
    archive: Database, corpus: Corpus, index: str, generic: bool
) -> None:
    """Every step is a short scan of an index: no table, and no conversation, is read whole."""
    with archive.unit_of_work() as work:
        hits = list(work.session.scalars(text(OF_LONG[corpus.name])))
        plan = explain(work, corpus, hits, generic=generic)

    assert len(hits) == 8
    assert not any(node["Node Type"] == "Seq Scan" for node in nodes(plan))
    indexes = {node["Index Name"] for node in nodes(plan) if "Index Name" in node}
    assert index in indexes
    blocks = plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
    assert blocks < 1500
