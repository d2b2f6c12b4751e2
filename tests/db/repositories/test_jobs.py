"""The queue: claimed once, ended only by whoever has it, and nothing lost on the way."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import event, func, select, text, update
from sqlalchemy.exc import ProgrammingError

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import LeaseLost, NotFound
from pgcorpus.db.models import Job, Message
from pgcorpus.db.repositories.jobs import SUPERSEDED, embed_key
from pgcorpus.db.search.corpora import CHAT
from pgcorpus.db.uow import UnitOfWork
from tests import factories


def claim(
    work: UnitOfWork, kind: str = "test", *, by: str = "one", limit: int = 10, corpus: str = ""
) -> list[int]:
    """Claim jobs; returns their ids."""
    jobs = work.jobs.claim(
        kind,
        corpus="chat" if kind == "embed" else corpus,
        worker_id=by,
        limit=limit,
        lease_seconds=60,
    )
    return [job.id for job in jobs]


def expire(work: UnitOfWork) -> None:
    """Every lease has run out."""
    past = func.clock_timestamp() - text("interval '1 s'")
    work.session.execute(
        update(Job).where(Job.status == "running").values(lease_expires_at=past),
        execution_options={"synchronize_session": False},
    )


def due(work: UnitOfWork) -> None:
    """Nothing waits for its next attempt any more."""
    work.session.execute(
        update(Job).where(Job.kind == "test").values(not_before=func.now()),
        execution_options={"synchronize_session": False},
    )


@contextmanager
def other(database: Database) -> Iterator[UnitOfWork]:
    """A second transaction beside the test's."""
    with database.unit_of_work() as work:
        yield work


def test_the_most_urgent_are_claimed_first_and_equals_in_order(work: UnitOfWork) -> None:
    """By priority, then by age."""
    jobs = [work.jobs.enqueue("test", priority=priority) for priority in (0, 5, 0, 5)]

    assert claim(work) == [jobs[1], jobs[3], jobs[0], jobs[2]]
    assert claim(work) == []


def test_what_is_claimed_is_what_was_asked_for(work: UnitOfWork) -> None:
    """Kind, corpus, time and number are all heeded."""
    work.jobs.enqueue("other")
    work.jobs.enqueue("test", {"corpus": "knowledge"})
    work.jobs.enqueue("test", {"corpus": "chat"}, delay_seconds=60)
    chat = [work.jobs.enqueue("test", {"corpus": "chat", "item": n}) for n in range(3)]

    work.jobs.enqueue("test", {"item": 9})
    jobs = work.jobs.claim("test", corpus="chat", worker_id="one", limit=2, lease_seconds=60)

    assert [job.id for job in jobs] == chat[:2]
    assert (jobs[1].payload, jobs[1].attempts) == ({"corpus": "chat", "item": 1}, 1)


def test_no_job_is_claimed_by_two(database: Database) -> None:
    """A claim that has not committed yet is passed over, not waited for."""
    with database.unit_of_work() as work:
        ids = [work.jobs.enqueue("test") for _ in range(4)]
        work.commit()

    with database.unit_of_work() as one, other(database) as two:
        first = claim(one, by="one", limit=3)
        second = claim(two, by="two", limit=3)

    assert (first, second) == (ids[:3], ids[3:])


def test_what_failed_before_shares_its_batch_with_fewer(work: UnitOfWork) -> None:
    """A job that kills its workers is soon alone, and takes no others with it."""
    for _ in range(64):
        work.jobs.enqueue("test")
    sizes = []
    for _ in range(4):
        sizes.append(len(claim(work, limit=64)))
        expire(work)
        work.jobs.reap()
        due(work)

    assert sizes == [64, 8, 1, 1]
    urgent = work.jobs.enqueue("test", priority=1)
    assert claim(work, limit=64)[0] == urgent


def test_a_completed_job_is_done_and_a_second_end_is_refused(work: UnitOfWork) -> None:
    """Nobody ends what is not in hand."""
    job = work.jobs.enqueue("test")
    claim(work)
    work.jobs.complete([job], worker_id="one", note="fine")

    done = work.jobs.get(job)
    assert (done.status, done.last_error, done.lease_expires_at) == ("completed", "fine", None)
    assert done.finished_at is not None
    with pytest.raises(LeaseLost):
        work.jobs.complete([job], worker_id="one")


@pytest.mark.parametrize("end", ["complete", "fail", "release"])
def test_only_the_worker_that_has_a_job_ends_it(work: UnitOfWork, end: str) -> None:
    """Neither another, nor the same one for a batch of which it lost a part."""
    jobs = [work.jobs.enqueue("test") for _ in range(2)]
    claim(work, by="one", limit=1)
    claim(work, by="two", limit=1)
    more = {"error": "no"} if end == "fail" else {}

    with pytest.raises(LeaseLost):
        getattr(work.jobs, end)(jobs, worker_id="one", **more)


def test_a_failed_job_waits_longer_each_time_and_is_given_up_at_last(work: UnitOfWork) -> None:
    """10 · 2^n seconds at most, any part of them; then it is a dead letter with its error."""
    job = work.jobs.enqueue("test", max_attempts=3)
    for attempt in (1, 2):
        claim(work)
        assert work.jobs.fail([job], worker_id="one", error="no luck") == []
        wait = work.session.scalar(
            select(func.extract("epoch", Job.not_before - func.clock_timestamp())).where(
                Job.id == job
            )
        )
        assert wait is not None
        assert wait <= 10 * 2 ** (attempt - 1)
        assert claim(work) == [] or wait <= 0
        due(work)
    claim(work)

    assert work.jobs.fail([job], worker_id="one", error="no luck") == [job]
    dead = work.jobs.get(job)
    assert (dead.status, dead.attempts, dead.last_error) == ("failed", 3, "no luck")
    assert claim(work) == []


def test_a_job_may_be_given_up_at_once(work: UnitOfWork) -> None:
    """The next attempt would fail for the same reason."""
    job = work.jobs.enqueue("test")
    claim(work)

    assert work.jobs.fail([job], worker_id="one", error="refused", final=True) == [job]
    assert work.jobs.get(job).status == "failed"


def test_an_error_that_no_column_holds_is_kept_as_well_as_can_be(work: UnitOfWork) -> None:
    """NUL, half a character, or a megabyte of it."""
    job = work.jobs.enqueue("test")
    claim(work)
    work.jobs.fail([job], worker_id="one", error="bad \0 \ud800" + "x" * 10**6)

    kept = work.jobs.get(job).last_error or ""
    assert kept.startswith("bad   ?xxx")
    assert len(kept) == 2000


def test_a_released_job_is_as_if_it_had_not_been_claimed(work: UnitOfWork) -> None:
    """The attempt does not count, and it is due again at once or when it is said to be."""
    job = work.jobs.enqueue("test")
    claim(work)
    work.jobs.release([job], worker_id="one")
    assert (work.jobs.get(job).status, work.jobs.get(job).attempts) == ("pending", 0)

    assert claim(work) == [job]
    work.jobs.release([job], worker_id="one", reason="provider down", delay_seconds=60)
    assert work.jobs.get(job).last_error == "provider down"
    assert claim(work) == []


def test_a_dead_workers_jobs_return_and_a_living_ones_do_not(work: UnitOfWork) -> None:
    """The lease decides; a heartbeat extends it."""
    dead, alive = work.jobs.enqueue("test"), work.jobs.enqueue("test")
    claim(work, by="dead", limit=1)
    claim(work, by="alive", limit=1)
    expire(work)
    assert work.jobs.extend([alive], worker_id="alive", lease_seconds=60) == 1

    assert work.jobs.reap().returned == 1
    assert (work.jobs.get(dead).status, work.jobs.get(alive).status) == ("pending", "running")
    assert "dead" in (work.jobs.get(dead).last_error or "")
    with pytest.raises(LeaseLost):
        work.jobs.complete([dead], worker_id="dead")


def test_a_job_that_outlives_none_of_its_workers_is_given_up(work: UnitOfWork) -> None:
    """And says so."""
    job = work.jobs.enqueue("test", max_attempts=1)
    claim(work, by="poor")
    expire(work)

    assert work.jobs.reap().failed == 1
    assert work.jobs.get(job).last_error == "each of its 1 workers died or hung, the last: poor"


def test_a_key_is_pending_once_and_running_beside_it(work: UnitOfWork) -> None:
    """The second enqueuing stands in line with the first, and makes it no later."""
    first = work.jobs.enqueue("test", dedupe_key="a", delay_seconds=60)
    assert work.jobs.enqueue("test", dedupe_key="a", priority=3) == first
    assert work.jobs.get(first).priority == 3
    assert claim(work) == [first]

    assert work.jobs.enqueue("test", dedupe_key="a") != first


@pytest.mark.parametrize("way", ["fail", "release", "reap", "requeue"])
def test_a_job_whose_key_is_pending_anew_gives_way(work: UnitOfWork, way: str) -> None:
    """However it would become pending again."""
    old = work.jobs.enqueue("test", dedupe_key="a")
    claim(work)
    if way == "requeue":
        work.jobs.fail([old], worker_id="one", error="no", final=True)
    new = work.jobs.enqueue("test", dedupe_key="a")
    match way:
        case "fail":
            work.jobs.fail([old], worker_id="one", error="no")
        case "release":
            work.jobs.release([old], worker_id="one")
        case "reap":
            expire(work)
            work.jobs.reap()
        case _:
            work.jobs.requeue(ids=[old])

    gone = work.jobs.get(old)
    assert (gone.status, gone.last_error) == ("completed", SUPERSEDED)
    assert work.jobs.get(new).status == "pending"


def test_of_two_dead_jobs_with_one_key_the_newer_returns(work: UnitOfWork) -> None:
    """Both cannot be pending."""
    ids = []
    for worker in ("one", "two"):
        ids.append(work.jobs.enqueue("test", dedupe_key="a"))
        claim(work, by=worker)
    expire(work)
    work.jobs.reap()

    assert [work.jobs.get(each).status for each in ids] == ["completed", "pending"]


def test_a_key_that_a_transaction_has_not_committed_yet_is_waited_for_later(
    database: Database,
) -> None:
    """The job stays running with a lease that has expired; the next reap decides."""
    with database.unit_of_work() as work:
        jobs = [work.jobs.enqueue("test", dedupe_key=key) for key in "abc"]
        claim(work)
        work.commit()
    with other(database) as writer:
        writer.jobs.enqueue("test", dedupe_key="b")
        writer.session.flush()
        with database.unit_of_work() as work:
            work.jobs.fail(jobs, worker_id="one", error="no")
            work.commit()
            assert [work.jobs.get(job).status for job in jobs] == ["pending", "running", "pending"]
            assert work.jobs.extend(jobs, worker_id="one", lease_seconds=60) == 0
        writer.commit()

    with database.unit_of_work() as work:
        work.jobs.reap()
        work.commit()
        assert [work.jobs.get(job).status for job in jobs] == ["pending", "completed", "pending"]


@pytest.mark.parametrize("way", ["release", "requeue"])
def test_a_job_that_waits_for_a_key_in_vain_returns_as_it_was_given_back(
    database: Database, way: str
) -> None:
    """The other transaction rolled back: nobody died, no attempt counts, the delay and why stay."""
    with database.unit_of_work() as work:
        job = work.jobs.enqueue("test", dedupe_key="a", max_attempts=1)
        claim(work)
        if way == "requeue":
            work.jobs.fail([job], worker_id="one", error="no")
        work.commit()
    with other(database) as writer:
        writer.jobs.enqueue("test", dedupe_key="a")
        writer.session.flush()
        with database.unit_of_work() as work:
            if way == "requeue":
                work.jobs.requeue(ids=[job])
            else:
                work.jobs.release([job], worker_id="one", reason="busy", delay_seconds=60)
            work.commit()
            assert work.jobs.get(job).status == "running"

    with database.unit_of_work() as work:
        assert (work.jobs.reap().returned, work.jobs.reap().returned) == (1, 0)
        row = work.jobs.get(job)
        assert (row.status, row.attempts, row.finished_at) == ("pending", 0, None)
        assert row.last_error == ("no" if way == "requeue" else "busy")
        assert claim(work) == ([job] if way == "requeue" else [])


def test_a_periodic_job_comes_again_whether_it_was_done_or_failed(work: UnitOfWork) -> None:
    """With all its attempts; a failure stays readable until the next success."""
    job = work.jobs.enqueue("test", repeat_every_seconds=3600, max_attempts=1)
    claim(work)
    work.jobs.fail([job], worker_id="one", error="no")
    row = work.jobs.get(job)
    assert (row.status, row.attempts, row.last_error) == ("pending", 0, "no")
    assert claim(work) == []

    due(work)
    claim(work)
    work.jobs.complete([job], worker_id="one")
    row = work.jobs.get(job)
    assert (row.status, row.last_error) == ("pending", None)
    assert claim(work) == []


def test_a_periodic_job_stays_periodic_where_it_gives_way(work: UnitOfWork) -> None:
    """The job that takes its place repeats in its stead."""
    old = work.jobs.enqueue("test", dedupe_key="a", repeat_every_seconds=60)
    claim(work)
    new = work.jobs.enqueue("test", dedupe_key="a")
    work.jobs.complete([old], worker_id="one")

    assert work.jobs.get(old).status == "completed"
    assert work.jobs.get(new).repeat_every is not None


def test_failed_jobs_can_be_requeued_all_or_by_name(work: UnitOfWork) -> None:
    """With all their attempts, now; what runs or is done is left alone."""
    dead = [work.jobs.enqueue("test") for _ in range(3)]
    claim(work)
    work.jobs.fail(dead, worker_id="one", error="no", final=True)
    done = work.jobs.enqueue("test")
    claim(work)
    work.jobs.complete([done], worker_id="one")
    later = work.jobs.enqueue("test", delay_seconds=60)

    assert work.jobs.requeue(ids=[dead[0], done, later]) == [dead[0], later]
    assert work.jobs.requeue(kind="other") == []
    assert work.jobs.requeue() == dead[1:]
    assert claim(work) == [*dead, later]
    assert work.jobs.get(dead[0]).attempts == 1


def test_old_jobs_are_purged_and_the_young_kept(work: UnitOfWork) -> None:
    """By how they ended and when; what has not ended is never deleted."""
    done, dead, pending = (work.jobs.enqueue("test") for _ in range(3))
    claim(work, limit=2)
    work.jobs.complete([done], worker_id="one")
    work.jobs.fail([dead], worker_id="one", error="no", final=True)

    assert work.jobs.purge(older_than_seconds=60) == 0
    assert work.jobs.purge(older_than_seconds=0) == 1
    assert work.jobs.purge(older_than_seconds=0, status="pending") == 0
    with pytest.raises(NotFound, match=f"no job {done}"):
        work.jobs.get(done)
    assert work.jobs.get(dead).status == "failed"
    assert work.jobs.get(pending).status == "pending"


def test_statistics_count_by_kind_and_status(work: UnitOfWork) -> None:
    """Depth, age, rate and failures."""
    jobs = [work.jobs.enqueue("test") for _ in range(5)]
    work.jobs.enqueue("test", delay_seconds=60)
    claim(work, limit=4)
    work.jobs.complete(jobs[:2], worker_id="one")
    work.jobs.fail(jobs[2:3], worker_id="one", error="no", final=True)

    stats = work.jobs.stats()

    assert stats.depth["test"] == {"completed": 2, "failed": 1, "running": 1, "pending": 2}
    assert stats.total("failed") == stats.failed_in_hour == 1
    assert (stats.completed_in_minute, stats.completed_in_hour) == (2, 2)
    assert stats.due >= 1
    assert stats.oldest_due_seconds is not None
    assert [job.id for job in work.jobs.list_jobs(kind="test", status="completed")] == [
        jobs[1],
        jobs[0],
    ]


def test_what_was_completed_long_ago_is_not_counted(work: UnitOfWork) -> None:
    """Nor read: monitoring asks every few seconds, and completed jobs stay for days."""
    jobs = [work.jobs.enqueue("test") for _ in range(3)]
    claim(work)
    work.jobs.complete(jobs[:2], worker_id="one")
    work.jobs.fail(jobs[2:], worker_id="one", error="no", final=True)
    past = func.now() - text("interval '2 hours'")
    work.session.execute(update(Job).where(Job.id.in_(jobs[1:])).values(finished_at=past))

    stats = work.jobs.stats()

    assert stats.depth["test"] == {"completed": 1, "failed": 1}
    assert (stats.completed_in_hour, stats.failed_in_hour) == (1, 0)


def test_the_job_that_failed_last_is_listed_first(work: UnitOfWork) -> None:
    """However long ago it was enqueued; others by when they were."""
    old, new = work.jobs.enqueue("test"), work.jobs.enqueue("test")
    assert [job.id for job in work.jobs.list_jobs(kind="test")] == [new, old]
    claim(work)
    for job in (new, old):
        work.jobs.fail([job], worker_id="one", error="no", final=True)

    assert [job.id for job in work.jobs.list_jobs(kind="test", status="failed")] == [old, new]


@pytest.fixture
def message(database: Database) -> UUID:
    """A message, committed, with its job."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        found: UUID = factories.MessageFactory(content="old").id
        work.commit()
    return found


def statuses(database: Database, item: UUID) -> list[str]:
    """Of the jobs of a message, in order."""
    with database.unit_of_work() as work:
        of_item = Job.dedupe_key == embed_key(CHAT, None, item)
        return list(work.session.scalars(select(Job.status).where(of_item).order_by(Job.id)))


def test_a_write_and_its_job_are_one_transaction(database: Database, message: UUID) -> None:
    """Unchanged texts enqueue nothing, a rollback neither; changed ones share a pending job."""
    assert statuses(database, message) == ["pending"]
    with database.unit_of_work() as work:
        work.session.execute(update(Message).values(role="assistant"))
        work.session.execute(update(Message).values(content="newer"))
        work.session.execute(update(Message).values(content="newest"))
        work.commit()
    assert statuses(database, message) == ["pending"]
    with database.unit_of_work() as work:
        claim(work, "embed")
        work.commit()
        work.session.execute(update(Message).values(role="user"))
        work.commit()
        assert statuses(database, message) == ["running"]
        work.session.execute(update(Message).values(content="lost"))
        work.rollback()
        assert statuses(database, message) == ["running"]
        work.session.execute(update(Message).values(content="kept"))
        work.commit()
    assert statuses(database, message) == ["running", "pending"]


def test_a_passage_that_gets_another_key_is_enqueued_under_it(
    database: Database, message: UUID
) -> None:
    """Its text is new under that key; the job of the old one finds nothing, and is done."""
    with database.unit_of_work() as work:
        other_key = work.session.scalar(
            update(Message).values(id=func.gen_random_uuid()).returning(Message.id)
        )
        work.commit()

    assert other_key is not None
    assert statuses(database, other_key) == ["pending"]


def test_a_new_text_forgets_what_failed_with_the_old(database: Database, message: UUID) -> None:
    """It is due at once, with all its attempts."""
    with database.unit_of_work() as work:
        (job,) = claim(work, "embed")
        work.jobs.fail([job], worker_id="one", error="no")
        work.session.execute(update(Message).values(content="another"))
        work.commit()

        row = work.jobs.get(job)
        assert (row.attempts, row.last_error) == (0, None)
        assert claim(work, "embed") == [job]


def test_writers_with_another_search_path_enqueue_too(database: Database) -> None:
    """Even where a temporary table is called jobs: bulk loads and psql need know nothing."""
    with database.engine.begin() as connection:
        schema = connection.scalar(text("SELECT current_schema()"))
        connection.execute(text("CREATE TEMPORARY TABLE jobs (id int) ON COMMIT DROP"))
        connection.execute(text("SET LOCAL search_path TO pg_temp"))
        key = connection.scalar(
            text(f"INSERT INTO {schema}.conversations DEFAULT VALUES RETURNING id")  # noqa: S608 - as found
        )
        cursor: Any = connection.connection.cursor()
        with cursor.copy(
            f"COPY {schema}.messages (conversation_id, position, role, content) FROM STDIN"
        ) as copy:
            for position in range(3):
                copy.write_row((key, position, "user", f"text {position}"))

    with database.unit_of_work() as work:
        assert work.jobs.stats().depth["embed"] == {"pending": 3}


def test_a_job_whose_writer_has_not_committed_is_not_claimed(
    database: Database, message: UUID
) -> None:
    """Else the text of before would be read, and its job called done."""
    with other(database) as writer:
        writer.session.execute(update(Message).values(content="new"))
        with database.unit_of_work() as work:
            assert claim(work, "embed") == []
        writer.commit()
    with database.unit_of_work() as work:
        assert claim(work, "embed")


def store(work: UnitOfWork, item: UUID) -> None:
    """A vector of the present text."""
    vector = np.ones((1, 384), dtype=np.float32)
    assert work.embeddings.store(CHAT, "hashing", [item], vector) == 1


def test_settling_completes_the_jobs_of_fresh_vectors(database: Database, message: UUID) -> None:
    """Of those alone: without a vector, or with one of an older text, the job stays."""
    with database.unit_of_work() as work:
        assert work.jobs.settle(CHAT, "hashing", [message]) == 0
        store(work, message)
        assert work.jobs.settle(CHAT, "all-MiniLM-L6-v2", [message]) == 0
        assert work.jobs.settle(CHAT, "hashing", [message]) == 1
        work.session.execute(update(Message).values(content="changed"))
        assert work.jobs.settle(CHAT, "hashing", [message]) == 0
        work.commit()
    assert statuses(database, message) == ["completed", "pending"]


def test_settling_leaves_the_job_of_a_text_that_is_being_written(
    database: Database, message: UUID
) -> None:
    """Its lock is passed over; whoever changes the text after settling enqueues anew."""
    with database.unit_of_work() as work:
        store(work, message)
        work.commit()
    with other(database) as writer:
        writer.session.execute(update(Message).values(content="changed"))
        with database.unit_of_work() as work:
            assert work.jobs.settle(CHAT, "hashing", [message]) == 0
            work.commit()
        writer.commit()
    assert statuses(database, message) == ["pending"]


def plan(work: UnitOfWork, act: Callable[[], object], table: str = "jobs") -> str:
    """Return the plan of the one statement on a table that a call sends, whatever its values.

    As after some repetitions, when the driver has prepared it.
    """
    sent: list[tuple[str, Any]] = []

    def note(_c: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        sent.append((statement, parameters))

    connection = work.session.connection()
    event.listen(connection, "before_cursor_execute", note)
    act()
    event.remove(connection, "before_cursor_execute", note)
    ((statement, parameters),) = [each for each in sent if table in each[0]]
    work.session.execute(text("SET LOCAL plan_cache_mode = force_generic_plan"))
    driver: Any = connection.connection.driver_connection
    rows = driver.execute(f"EXPLAIN {statement}", parameters, prepare=True).fetchall()
    work.session.execute(text("SET LOCAL plan_cache_mode = auto"))
    return "\n".join(row[0] for row in rows)


def crowd(work: UnitOfWork, columns: str, values: str) -> None:
    """Many jobs that others wait for, or that ended."""
    made = f"INSERT INTO jobs ({columns}) SELECT {values} FROM generate_series(1, 5000)"  # noqa: S608 - of this file
    work.session.execute(text(made))


def test_a_claim_reads_no_more_of_the_index_than_it_takes(work: UnitOfWork) -> None:
    """Neither what is done nor what other kinds and corpora wait for is in its way."""
    crowd(work, "kind, status, finished_at", "'test', 'completed', now()")
    crowd(work, "kind", "'other'")
    crowd(work, "kind, payload", "'test', '{\"corpus\": \"chat\"}'")
    work.jobs.enqueue("test", {"corpus": "knowledge"})
    work.session.execute(text("ANALYZE jobs"))

    shown = plan(work, lambda: claim(work, corpus="knowledge"))

    assert "Index Scan using idx_jobs_pending" in shown
    assert re.search(r"Index Cond: \(\(\(kind\)::text = .* AND \(COALESCE\(", shown), shown
    assert "Seq Scan" not in shown
    assert "Sort Key: jobs" not in shown


def test_failed_jobs_and_old_ones_are_found_by_their_indexes(work: UnitOfWork) -> None:
    """Among any number that were completed."""
    crowd(work, "kind, status, finished_at", "'test', 'completed', now()")
    work.session.execute(text("ANALYZE jobs"))

    assert "idx_jobs_failed" in plan(work, lambda: work.jobs.list_jobs(status="failed"))
    assert "idx_jobs_completed" in plan(work, lambda: work.jobs.purge(older_than_seconds=60))
    assert "idx_jobs_failed" in plan(
        work, lambda: work.jobs.purge(older_than_seconds=60, status="failed")
    )


def test_who_may_write_texts_needs_no_right_on_jobs(database: Database) -> None:
    """By INSERT, COPY or UPDATE, its jobs are there; but it cannot forge or complete any."""
    role = f"{database.url.database}_writer"
    schema = database.schema_engine()
    with schema.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role}"))
        connection.execute(text(f"GRANT {role} TO CURRENT_USER"))
        connection.execute(
            text(f"GRANT SELECT, INSERT, UPDATE, DELETE ON conversations, messages TO {role}")
        )
        connection.execute(text(f"GRANT CREATE ON SCHEMA public TO {role}"))
    try:
        with schema.begin() as connection:
            connection.execute(text(f"SET LOCAL ROLE {role}"))
            key = connection.scalar(text("INSERT INTO conversations DEFAULT VALUES RETURNING id"))
            connection.execute(
                text(
                    "INSERT INTO messages (conversation_id, role, content)"
                    " VALUES (:key, 'user', 'first')"
                ),
                {"key": key},
            )
            cursor: Any = connection.connection.cursor()
            with cursor.copy(
                "COPY messages (conversation_id, position, role, content) FROM STDIN"
            ) as copy:
                copy.write_row((key, 1, "user", "second"))
            connection.execute(text("UPDATE messages SET content = 'third' WHERE position = 1"))
        with database.unit_of_work() as work:
            assert work.jobs.stats().depth["embed"] == {"pending": 2}

        forge = (
            "CREATE TRIGGER forged AFTER INSERT ON own REFERENCING NEW TABLE AS current"
            " FOR EACH STATEMENT EXECUTE FUNCTION enqueue_embedding('chat', 'id')"
        )
        for forbidden in ("DELETE FROM jobs", forge):
            with schema.connect() as connection:
                connection.execute(text(f"SET LOCAL ROLE {role}"))
                connection.execute(text("CREATE TABLE own (id int)"))
                with pytest.raises(ProgrammingError, match="permission denied"):
                    connection.execute(text(forbidden))
    finally:
        with schema.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {role}"))
            connection.execute(text(f"DROP ROLE {role}"))
