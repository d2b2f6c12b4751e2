"""Memories and episodes as rows: of one scope, found by an index, and touched by many at once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from threading import Barrier
from uuid import uuid4

import pytest
from sqlalchemy import text

from pgcorpus.db.errors import InvalidValue, MissingScope, NotFound
from pgcorpus.db.repositories.memory.episodes import Told
from pgcorpus.db.repositories.memory.nodes import Exchange
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.corpora import EPISODES, MEMORY
from pgcorpus.db.uow import UnitOfWork
from tests.plans import plan_of
from tests.services.memory.setting import Setting, setting
from tests.tenancy import enter

__all__ = ["setting"]

NOON = datetime(2025, 1, 31, 12, tzinfo=UTC)
SAID = Exchange(human="We deploy on Tuesdays.", conversation_id="c", sequence_index=0)
TOLD = Told(
    id="ep_0",
    messages=[{"role": "user", "content": "Hello."}],
    created_at=NOON,
    updated_at=NOON,
)


@pytest.mark.parametrize(
    "call",
    [
        lambda work: work.memory.take_turns(),
        lambda work: work.memory.find("mem_0"),
        lambda work: work.memory.get_by_key(uuid4()),
        lambda work: work.memory.find_said(SAID),
        lambda work: work.memory.next_index("c"),
        lambda work: work.memory.list_conversation("c"),
        lambda work: work.memory.list_memories(["mem_0"]),
        lambda work: work.memory.add(SAID),
        lambda work: work.memory.touch(MEMORY, {uuid4(): 1}, NOON),
        lambda work: work.memory.list_keys(EPISODES, ["ep_0"]),
        lambda work: work.memory.count(MEMORY, {}),
        lambda work: work.memory.forget(MEMORY, {}, limit=1),
        lambda work: work.episodes.put(TOLD),
        lambda work: work.episodes.get("ep_0"),
        lambda work: work.episodes.list_episodes(),
        lambda work: work.episodes.list_of("mem_0"),
    ],
)
def test_no_statement_is_made_without_a_scope(
    work: UnitOfWork, call: Callable[[UnitOfWork], object]
) -> None:
    """Whoever has logged in: a superuser would be shown everything."""
    with pytest.raises(MissingScope):
        call(work)


@pytest.mark.superuser  # passes over row security
def test_who_passes_over_row_security_still_works_within_the_scope(setting: Setting) -> None:
    """An operator's program that entered one scope neither reads nor erases another's."""
    with setting.owner.unit_of_work() as work:
        for scope in (setting.ours, setting.theirs):
            work.enter(scope)
            assert work.memory.add(SAID) is not None
            work.episodes.put(TOLD)
        work.commit()
        work.enter(setting.ours)
        (kept,) = work.memory.list_conversation("c")
        work.memory.touch(MEMORY, {kept.key: 2}, NOON)
        assert work.memory.next_index("c") == 1
        assert work.memory.count(MEMORY, {}) == 1
        assert len(work.episodes.list_episodes().items) == 1
        work.memory.forget(MEMORY, {}, limit=10)
        work.memory.forget(EPISODES, {}, limit=10)
        work.commit()

    assert setting.counts(setting.ours)["memory_nodes"] == 0
    (theirs,) = setting.rows("memory_nodes", setting.theirs)
    assert theirs["access_count"] == 0
    assert setting.counts(setting.theirs)["episodic_memories"] == 1


def test_an_id_that_is_taken_adds_nothing(setting: Setting) -> None:
    """And is no error, which would end the transaction."""
    with setting.application.unit_of_work(setting.ours) as work:
        first, second = work.memory.add(SAID), work.memory.add(SAID)
        work.commit()

    assert first is not None
    assert second is None
    with setting.application.unit_of_work(setting.ours) as work, pytest.raises(NotFound):
        work.memory.get("mem_none")


def test_a_memory_of_somebody_else_is_not_merged_into(setting: Setting) -> None:
    """Whoever asks for it: the text would be erased with the wrong user."""
    tenant = setting.ours.tenant_id
    assert tenant is not None
    longer = replace(SAID, human="We deploy on Tuesdays, mostly.")
    with setting.application.unit_of_work(Scope.tenant(tenant, user_id=setting.ann)) as work:
        work.memory.add(SAID)
        work.commit()
    with setting.application.unit_of_work(setting.ours) as work:
        with pytest.raises(InvalidValue, match="another user wrote the memory"):
            work.memory.merge(work.memory.get(SAID.id), longer)
        work.commit()

    (row,) = setting.rows("memory_nodes")
    assert (row["human_content"], row["access_count"]) == (SAID.human, 0)


def test_many_who_touch_the_same_memories_lose_no_count(setting: Setting) -> None:
    """In whatever order each names them; nobody waits for somebody who waits."""
    said = [Exchange(human=f"Fact {n}.", conversation_id="c") for n in range(5)]
    setting.service.remember_many(said, scope=setting.ours, duplicates="keep")
    keys = [row["key"] for row in setting.rows("memory_nodes")]
    threads, rounds = 6, 10
    barrier = Barrier(threads)

    def touch(number: int) -> None:
        for _ in range(rounds):
            barrier.wait()
            with setting.application.unit_of_work(setting.ours) as work:
                order = keys if number % 2 else reversed(keys)
                assert work.memory.touch(MEMORY, dict.fromkeys(order, 2), NOON) == len(keys)
                work.commit()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(touch, range(threads)))

    assert {row["access_count"] for row in setting.rows("memory_nodes")} == {2 * threads * rounds}
    assert {row["last_accessed"] for row in setting.rows("memory_nodes")} == {NOON}


CROWD = text("""
    INSERT INTO memory_nodes (id, tenant_id, conversation_id, sequence_index, human_content, source)
    SELECT 'mem_' || n, :tenant, 'c', n, 'Fact number ' || n || '.', 'native'
    FROM generate_series(1, 3000) AS n
""")


def test_the_same_words_are_found_by_an_index_under_row_security(setting: Setting) -> None:
    """Among thousands of the scope only those with the same hash are read."""
    with setting.owner.engine.begin() as connection:
        for scope in (setting.ours, setting.theirs):
            enter(connection, scope)
            connection.execute(CROWD, {"tenant": scope.tenant_id})
        connection.execute(text("ANALYZE memory_nodes"))
    exchange = Exchange(human="Fact number 1234.", conversation_id="d")
    with setting.application.unit_of_work(setting.ours) as work:
        found = work.memory.find_said(exchange)
        plan = plan_of(work, lambda: work.memory.find_said(exchange))

    assert found is not None
    assert found.id == "mem_1234"
    assert "idx_memory_nodes_scope_said" in json.dumps(plan)
    assert not re.search(r"Rows Removed by Filter\": [1-9]", json.dumps(plan))


def test_the_memories_of_a_conversation_are_in_its_order(setting: Setting) -> None:
    """Whatever the order in which they were remembered; those named, as they are named."""
    for place in (2, 0, 1):
        setting.service.remember(
            f"Number {place}.", scope=setting.ours, conversation_id="c", sequence_index=place
        )
    with setting.application.unit_of_work(setting.ours) as work:
        nodes = work.memory.list_conversation("c")
        ids = [node.id for node in nodes]
        named = work.memory.list_memories([ids[2], "mem_none", ids[0]])

    assert [node.sequence_index for node in nodes] == [0, 1, 2]
    assert [node.id for node in named] == [ids[2], ids[0]]
    assert Scope.parse(nodes[0].scope) == setting.ours
