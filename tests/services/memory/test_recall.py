"""Recall of memories, counted without waiting for it."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, Unpack

import pytest
from sqlalchemy import text

from pgcorpus.db.errors import InvalidFilter, InvalidSearch, NotFound, UnknownFilter
from pgcorpus.db.repositories.memory.nodes import Exchange
from pgcorpus.db.search.corpora import MEMORY
from pgcorpus.services.choices import MODES, Mode
from pgcorpus.services.memory.access import AccessLog
from pgcorpus.services.memory.options import Recalling
from pgcorpus.services.memory.service import MemoryService
from tests.factories import axis
from tests.logins import logged_in
from tests.services.memory.setting import Setting, setting

__all__ = ["setting"]

NOW = datetime.now(UTC)

PATIENCE_SECONDS = 30.0


@pytest.fixture
def filled(setting: Setting) -> Setting:
    """Three memories of ours that differ in everything one can ask for, and one of theirs."""
    setting.service.remember_many(
        [
            Exchange(
                human="The kettle leaks.",
                conversation_id="kettles",
                source="openai",
                created_at=NOW - timedelta(days=400),
                intent_type="complaint",
                technical_depth=2,
                has_error=True,
                tags={"domains": ["kitchen"], "topics": ["leaks"], "entities": ["kettle"]},
                cluster_id=3,
                cluster_label="kettles",
            ),
            Exchange(
                human="The kettle sings.",
                conversation_id="kettles",
                source="grok",
                created_at=NOW - timedelta(days=1),
                technical_depth=8,
                tags={"domains": ["music"], "processes": ["brewing"]},
            ),
            Exchange(human="The kettle, anyway.", conversation_id="small talk", cluster_id=-1),
        ],
        scope=setting.ours,
    )
    setting.service.remember("The kettle is theirs.", scope=setting.theirs, conversation_id="k")
    return setting


NARROWED: list[tuple[dict[str, Any], list[str]]] = [
    ({"source": "grok"}, ["sings"]),
    ({"intent_type": "complaint"}, ["leaks"]),
    ({"technical_depth": {"gte": 5}}, ["sings"]),
    ({"has_error": True}, ["leaks"]),
    ({"domain": ["kitchen", "garden"]}, ["leaks"]),
    ({"topic": "leaks"}, ["leaks"]),
    ({"entity": "kettle"}, ["leaks"]),
    ({"process": "brewing"}, ["sings"]),
    ({"process": None}, ["leaks"]),
    ({"cluster_label": "kettles"}, ["leaks"]),
    ({"conversation": "kettles"}, ["leaks", "sings"]),
    ({"date": {"gte": NOW - timedelta(days=30)}}, ["sings"]),
    ({"noise": True}, ["anyway"]),
    ({"source": "nobody"}, []),
]


@pytest.mark.parametrize("mode", MODES)
def test_recall_is_narrowed_by_whatever_is_known(filled: Setting, mode: Mode) -> None:
    """In every mode; what is another's is never among it."""
    for filters, found in NARROWED:
        recall = filled.service.recall("kettle", scope=filled.ours, filters=filters, mode=mode)
        last_words = sorted(each.human.split()[-1].strip(".") for each in recall.memories)

        assert last_words == found, filters


def test_what_belongs_to_no_cluster_is_recalled_on_request(filled: Setting) -> None:
    """By default it is not."""
    without = filled.service.recall("kettle", scope=filled.ours)
    with_noise = filled.service.recall("kettle", scope=filled.ours, include_noise=True)

    assert {each.cluster_id for each in without.memories} == {3, None}
    assert {each.cluster_id for each in with_noise.memories} == {3, None, -1}


def test_the_fresh_and_the_often_recalled_rise_within_bounds(filled: Setting) -> None:
    """By at most their share of the score; a long half-life makes the old as good as new."""
    same = axis(5, length=384)
    filled.embedder.vectors = {"The kettle": same, "The old kettle.": same, "The new kettle.": same}
    for words, days in (("The old kettle.", 300), ("The new kettle.", 0)):
        filled.service.remember(
            words, scope=filled.person, conversation_id=words, created_at=NOW - timedelta(days=days)
        )

    def scores(**options: Unpack[Recalling]) -> dict[str, float]:
        options = {"mode": "vector", "touch": False, **options}
        recall = filled.service.recall("The kettle", scope=filled.person, **options)
        return {each.human: each.score or 0 for each in recall.memories}

    plain, boosted = scores(boost=0), scores(boost=0.5)
    patient = scores(boost=0.5, half_life_days=100_000)
    by_default = filled.service.recall("The kettle", scope=filled.person, mode="vector")

    assert plain["The old kettle."] == plain["The new kettle."] == pytest.approx(1)
    assert boosted["The new kettle."] > boosted["The old kettle."] >= 1
    assert boosted["The new kettle."] <= 1.5
    assert patient["The old kettle."] == pytest.approx(patient["The new kettle."], rel=0.01)
    assert by_default.memories[0].human == "The new kettle."
    assert 1 < (by_default.memories[0].score or 0) <= 1.2


def test_an_unknown_filter_or_value_is_refused_in_words(filled: Setting) -> None:
    """As by a search; the known ones are listed."""
    for options, error in (
        ({"filters": {"colour": "red"}}, UnknownFilter),
        ({"filters": {"urgency": "very"}}, InvalidFilter),
        ({"boost": 2}, InvalidSearch),
        ({"limit": 0}, InvalidSearch),
    ):
        with pytest.raises(error):
            filled.service.recall("kettle", scope=filled.ours, **options)  # type: ignore[arg-type]


def accesses(setting: Setting) -> dict[str, int]:
    """Return the number of recalls of each memory of ours, as it is written."""
    return {
        row["human_content"]: row["access_count"]
        for row in setting.rows("memory_nodes", setting.ours)
    }


def test_what_is_recalled_is_counted_once_it_is_flushed(filled: Setting) -> None:
    """Not in the request path; what was not recalled, or not to be touched, is not counted."""
    for _ in range(3):
        filled.service.recall("sings", scope=filled.ours, mode="text")
    filled.service.recall("leaks", scope=filled.ours, mode="text", touch=False)
    before = accesses(filled)
    filled.service.flush()

    assert set(before.values()) == {0}
    assert accesses(filled) == {
        "The kettle leaks.": 0, "The kettle sings.": 3, "The kettle, anyway.": 0
    }  # fmt: skip
    (row,) = (r for r in filled.rows("memory_nodes", filled.ours) if r["access_count"])
    assert abs(row["last_accessed"] - datetime.now(UTC)) < timedelta(minutes=1)
    filled.service.flush()
    assert accesses(filled)["The kettle sings."] == 3


def test_counts_of_several_services_add_up(filled: Setting) -> None:
    """Flushed at the same moment, over the same memories in different orders."""
    services = [MemoryService(filled.application, filled.embedder) for _ in range(6)]
    for service in services:
        for words in ("leaks", "sings"):
            service.recall(words, scope=filled.ours, mode="text")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda service: service.flush(), services))

    assert accesses(filled) == {
        "The kettle leaks.": 6, "The kettle sings.": 6, "The kettle, anyway.": 0
    }  # fmt: skip


def test_a_thread_writes_what_was_recalled(
    filled: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without anybody asking for it; the thread ends with its service."""
    monkeypatch.setattr("pgcorpus.services.search.write_behind.BATCH", 0)
    service = MemoryService(filled.application, filled.embedder)
    service.recall("sings", scope=filled.ours, mode="text")
    service.recall("sings", scope=filled.ours, mode="text")
    writer = service._access._writer
    assert writer is not None
    while accesses(filled)["The kettle sings."] < 2:
        writer.join(0.01)
    del service
    writer.join(10)

    assert not writer.is_alive()


def test_a_flush_that_fails_is_a_warning(filled: Setting, caplog: pytest.LogCaptureFixture) -> None:
    """It loses counts and nothing else; the next one is written."""
    log = AccessLog(filled.owner)  # a login that is refused
    (key,) = (row["key"] for row in filled.rows("memory_nodes", filled.theirs))
    with caplog.at_level(logging.WARNING, "pgcorpus.services.search.write_behind"):
        log.note(filled.theirs, MEMORY, [key])
        log.flush()

    assert "1 recalled memories were not counted" in caplog.text
    assert filled.rows("memory_nodes", filled.theirs)[0]["access_count"] == 0


def test_a_login_that_only_reads_is_told_once_that_nothing_is_counted(
    filled: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    """Then nothing is noted any more; its recalls are answered all the same."""
    with logged_in(filled.owner, "rag_read_only") as reader:
        service = MemoryService(reader, filled.embedder)
        for _ in range(3):
            assert service.recall("sings", scope=filled.ours, mode="text").memories
            service.flush()

    counts = [r.message for r in caplog.records if "recalled memories were not" in r.message]
    assert len(counts) == 1
    assert "no right" in counts[0]
    assert set(accesses(filled).values()) == {0}


@pytest.mark.direct("a session has told its numbers when it ends, and the pooler keeps it")
def test_touching_rewrites_no_index(filled: Setting) -> None:
    """Every update is a heap-only one: pages have room, and no index has an access column."""
    ids = [row["id"] for row in filled.rows("memory_nodes", filled.ours)]
    counters = text(
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_get_tuples_updated('memory_nodes'::regclass)"
        " AS n_tup_upd, pg_stat_get_tuples_hot_updated('memory_nodes'::regclass) AS n_tup_hot_upd"
    )

    def updates() -> tuple[int, int]:
        with filled.owner.engine.connect() as connection:
            return tuple(connection.execute(counters).one())  # type: ignore[return-value]

    before = updates()
    for _ in range(20):
        assert filled.service.touch(ids, scope=filled.ours) == 3
    filled.application.close()  # a session that ends tells its numbers, after it is gone for us
    deadline = time.monotonic() + PATIENCE_SECONDS
    while updates()[0] - before[0] < 60 and time.monotonic() < deadline:
        time.sleep(0.01)
    after = updates()

    assert after[0] - before[0] == 60
    assert after[1] - before[1] == 60
    assert set(accesses(filled).values()) == {20}
    assert [job["status"] for job in filled.rows("jobs", filled.ours)] == ["completed"] * 3


def test_touching_and_getting_reach_no_further_than_the_scope(filled: Setting) -> None:
    """The id of another's memory is one that is not there."""
    (row,) = filled.rows("memory_nodes", filled.theirs)

    assert filled.service.touch([row["id"], "mem_none"], scope=filled.ours) == 0
    assert filled.service.touch([], scope=filled.ours) == 0
    assert filled.rows("memory_nodes", filled.theirs)[0]["access_count"] == 0
    with pytest.raises(NotFound, match="in this scope"):
        filled.service.get(row["id"], scope=filled.ours)
