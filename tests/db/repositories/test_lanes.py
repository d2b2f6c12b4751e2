"""Lanes of the queue: scopes take turns, whatever each of them waits for."""

from __future__ import annotations

from collections import Counter
from uuid import UUID

import pytest
from sqlalchemy import text

from pgcorpus.db.repositories.jobs import ClaimedJob
from pgcorpus.db.scope import Scope
from pgcorpus.db.uow import UnitOfWork
from tests.db.repositories.test_jobs import plan

A, B, C = (Scope.tenant(UUID(int=number)) for number in (1, 2, 3))
ENQUEUE = text("""
    INSERT INTO jobs (kind, scope, payload, priority)
    SELECT :kind, :scope, jsonb_build_object('n', n), :priority
    FROM generate_series(1, :count) AS n
""")


def enqueue(
    work: UnitOfWork, scope: Scope | None, count: int, *, priority: int = 0, kind: str = "test"
) -> None:
    """Enqueue so many jobs of a scope."""
    values = {"kind": kind, "count": count, "priority": priority}
    work.session.execute(ENQUEUE, {"scope": None if scope is None else str(scope), **values})


def claim(work: UnitOfWork, limit: int, *, after: str = "", kind: str = "test") -> list[ClaimedJob]:
    """Claim jobs."""
    return work.jobs.claim(kind, worker_id="w", limit=limit, lease_seconds=60, after=after)


def count(jobs: list[ClaimedJob]) -> Counter[Scope | None]:
    """Count jobs by their scope."""
    return Counter(job.scope for job in jobs)


def test_each_lane_gives_the_first_before_any_gives_the_second(work: UnitOfWork) -> None:
    """And what has no scope is a lane, too."""
    enqueue(work, A, 100)
    enqueue(work, None, 100)
    enqueue(work, B, 1)

    jobs = claim(work, 6)

    assert [job.scope for job in jobs] == [A, B, None, A, None, A]


def test_a_batch_is_filled_from_lanes_that_have_more(work: UnitOfWork) -> None:
    """So that a call of an embedder is worth it."""
    enqueue(work, A, 100)
    enqueue(work, B, 3)
    enqueue(work, C, 100)

    assert count(claim(work, 64)) == {A: 31, B: 3, C: 30}
    assert count(claim(work, 64)) == {A: 32, C: 32}
    assert count(claim(work, 64, after=str(A))) == {A: 32, C: 32}
    assert count(claim(work, 64)) == {A: 5, C: 6}


def test_more_lanes_than_places_are_served_in_turn(work: UnitOfWork) -> None:
    """The next batch begins behind the last lane, and goes on at the first."""
    scopes = [Scope.user(UUID(int=number)) for number in range(1, 8)]
    for scope in scopes:
        enqueue(work, scope, 2)

    first = claim(work, 3, after=str(scopes[4]))
    second = claim(work, 3, after=str(scopes[0]))

    assert [job.scope for job in first] == [scopes[5], scopes[6], scopes[0]]
    assert [job.scope for job in second] == scopes[1:4]


def test_a_priority_counts_within_its_lane(work: UnitOfWork) -> None:
    """Whoever enqueues chooses it: it must not put a tenant before others."""
    enqueue(work, A, 2, priority=32_767)
    enqueue(work, B, 1)
    enqueue(work, B, 1, priority=1)

    jobs = claim(work, 3)

    assert [job.scope for job in jobs] == [A, B, A]
    (of_b,) = (job.id for job in jobs if job.scope == B)
    assert work.jobs.get(of_b).priority == 1


def test_lanes_that_are_put_off_or_locked_take_no_place(work: UnitOfWork) -> None:
    """However many there are before the one that is due."""
    for number in range(1, 20):
        enqueue(work, Scope.tenant(UUID(int=number)), 1)
    work.session.execute(text("UPDATE jobs SET not_before = now() + interval '1 hour'"))
    enqueue(work, Scope.tenant(UUID(int=20)), 1)

    assert len(claim(work, 2)) == 1


def test_a_job_that_killed_its_worker_is_alone_soon_and_stops_no_lane(work: UnitOfWork) -> None:
    """Its lane is the first of the batch after."""
    enqueue(work, A, 10)
    enqueue(work, B, 10)
    work.session.execute(
        text("UPDATE jobs SET attempts = 3 WHERE scope = :scope AND payload ->> 'n' = '1'"),
        {"scope": str(B)},
    )

    first = claim(work, 8)
    second = claim(work, 8, after=str(A))

    assert count(first) == {A: 1}
    assert [(job.scope, job.attempts) for job in second] == [(B, 4)]


def test_a_scope_whose_tokens_are_spent_is_passed_over_for_embedding(work: UnitOfWork) -> None:
    """Its jobs stay as they are, and are not told to be due."""
    for kind in ("embed", "test"):
        enqueue(work, A, 5, kind=kind)
        enqueue(work, B, 2, kind=kind)
    work.usage.set_ceiling(25_000, A)
    work.usage.reserve({A: [30_000], B: [30_000]})

    stats = work.jobs.stats()
    assert (stats.over_ceiling, stats.lanes, stats.largest_lane) == (5, 3, 5)
    assert {each.scope: (each.due, each.is_full) for each in work.jobs.list_longest_lanes()} == {
        str(A): (10, True), str(B): (4, False), None: (2, False),
    }  # fmt: skip
    assert count(claim(work, 8, kind="test")) == {A: 5, B: 2}
    assert count(claim(work, 8, kind="embed")) == {B: 2}
    work.usage.set_ceiling(30_000, A)
    assert count(claim(work, 8, kind="embed")) == {A: 5}


@pytest.mark.parametrize("scopes", [1, 5000])
def test_a_claim_jumps_from_lane_to_lane(work: UnitOfWork, scopes: int) -> None:
    """It reads an entry for each, whether one waits for thousands of jobs, or thousands for one."""
    work.session.execute(
        text("""
            INSERT INTO jobs (kind, scope)
            SELECT 'test', 'tenant:00000000-0000-0000-0000-' || lpad((n % :scopes)::text, 12, '0')
            FROM generate_series(1, 5000) AS n
        """),
        {"scopes": scopes},
    )
    enqueue(work, B, 1)
    work.session.execute(text("ANALYZE jobs"))

    shown = plan(work, lambda: claim(work, 16))

    assert "Seq Scan on jobs" not in shown
    assert "COALESCE(scope, ''::text) > ring.lane" in shown
    assert "COALESCE(scope, ''::text) = ring_1.lane" in shown
    assert "Join" not in shown.partition("CTE open")[2].partition("CTE share")[0]
