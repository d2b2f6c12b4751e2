"""Figures of the database: what each login is told, and what is left out with a note."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine, text

from pgcorpus.db.engine import Database
from pgcorpus.db.models import QueryPerformance
from pgcorpus.services.audit import AuditService
from pgcorpus.services.ops.metrics import figures
from pgcorpus.services.ops.metrics.app import Metrics
from tests import factories
from tests.logins import logged_in
from tests.services.ops.metrics.scraped import (
    Samples,
    find,
    note_backup,
    read_samples,
    scrape,
)
from tests.tenancy import MEMORIES, make_scope, settled


@contextmanager
def watch(database: Database) -> Iterator[Metrics]:
    """Metrics of a database, closed at the end."""
    metrics = Metrics(database, searches=False)
    try:
        yield metrics
    finally:
        metrics.close()


def read(database: Database) -> Samples:
    """One scrape."""
    with watch(database) as metrics:
        return read_samples(metrics)


def complete(samples: Samples) -> dict[str, bool]:
    """Part → whether the login reads all of it."""
    return {
        dict(labels)["figures"]: bool(value)
        for (name, labels), value in samples.items()
        if name == "pgcorpus_figures_complete"
    }


def fail_a_job(database: Database, kind: str) -> None:
    """Leave a dead letter of a kind."""
    with database.unit_of_work() as work:
        work.jobs.enqueue(kind, {}, max_attempts=1)
        (job,) = work.jobs.claim(kind, corpus="", worker_id="w", limit=1, lease_seconds=60)
        work.jobs.fail([job.id], worker_id="w", error="no", final=True)
        work.commit()


def test_the_queue_is_told_by_kind_and_status(database: Database) -> None:
    """Due jobs, their age, dead letters; kinds that anybody may invent are one."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        factories.MessageFactory()
        work.session.execute(text("UPDATE jobs SET not_before = now() - interval '1 hour'"))
        work.commit()
    fail_a_job(database, "invented\nby anybody")
    fail_a_job(database, "greet")

    metrics = Metrics(database, searches=False, kinds=["greet"])
    samples = read_samples(metrics)
    metrics.close()

    assert find(samples, "pgcorpus_jobs", kind="embed", status="pending") == 1
    assert find(samples, "pgcorpus_jobs", kind="greet", status="failed") == 1
    assert find(samples, "pgcorpus_jobs", kind="other", status="failed") == 1
    assert find(samples, "pgcorpus_jobs", kind="embed", status="failed") == 0
    age = find(samples, "pgcorpus_jobs_oldest_due_age_seconds")
    assert age is not None
    assert 3600 <= age < 3700
    kinds = {dict(labels)["kind"] for name, labels in samples if name == "pgcorpus_jobs"}
    assert kinds == {"embed", "greet", "log_flush", "maintenance", "other"}


def test_coverage_counts_what_is_embedded_stale_and_missing(database: Database) -> None:
    """As pgcorpus models list does."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        work.models.use_model("chat", "hashing")
        messages = [factories.MessageFactory(content=f"text {n}") for n in range(3)]
        vectors = [factories.MessageEmbeddingFactory(message=each) for each in messages[:2]]
        assert len(vectors) == 2
        work.session.flush()
        work.session.execute(
            text("UPDATE message_embeddings SET content_hash = sha256(convert_to("
                 "(SELECT content FROM messages WHERE id = message_id), 'UTF8'))")
        )  # fmt: skip
        messages[1].content = "another text"
        work.commit()

    samples = read(database)

    states = {
        state: find(
            samples, "pgcorpus_embedding_passages", corpus="chat", model="hashing", state=state
        )
        for state in figures.PASSAGE_STATES
    }
    assert states == {"embedded": 1, "stale": 1, "missing": 1}


def test_an_administrator_reads_all_figures(database: Database) -> None:
    """A member of rag_admin; before the first backup its time is 0."""
    with logged_in(database, "rag_admin") as admin:
        without = read(admin)
        note_backup(database)
        with_backup = read(admin)

    assert all(complete(without).values())
    assert find(without, "pgcorpus_backup_last_success_timestamp_seconds") == 0
    assert all(complete(with_backup).values())
    succeeded = find(with_backup, "pgcorpus_backup_last_success_timestamp_seconds")
    assert succeeded is not None
    assert abs(succeeded - time.time()) < 60
    assert find(with_backup, "pgcorpus_backup_last_failed") == 0


def test_a_reader_is_told_what_it_may_read_and_what_is_left_out(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """No error and no number of what is closed to it; a line in the log, once."""
    caplog.set_level(logging.INFO, "pgcorpus")
    with (
        settled(database),
        logged_in(database, "rag_read_only") as reader,
        watch(reader) as metrics,
    ):
        samples = read_samples(metrics)
        scrape(metrics)

    assert find(samples, "pgcorpus_up") == 1
    assert {name for name, whole in complete(samples).items() if not whole} == {
        "audit",
        "audit_chain",
        "embedding_coverage",
        "queue",
        "recent_searches",
        "tokens",
    }
    told = {name for name, _ in samples}
    assert "pgcorpus_audit_chain_intact" not in told
    assert "pgcorpus_audit_last_seal_timestamp_seconds" not in told
    assert {"pgcorpus_audit_unrecorded_changes", "pgcorpus_jobs_due"} <= told
    notes = [each for each in caplog.messages if each.startswith("figures of audit_chain are")]
    assert len(notes) == 1


def test_counts_of_tenants_are_for_who_may_read_them(database: Database) -> None:
    """A login of the application learns nothing of memories and jobs of tenants."""
    with settled(database) as tenancy:
        with logged_in(database, "rag_read_write") as service:
            theirs = read(service)
        with logged_in(database, "rag_admin") as admin:
            ours = read(admin)
        scraped = repr((theirs, ours))
        names = [str(each) for each in (*tenancy.user_ids, *tenancy.user_ids.values())]

    def count(samples: Samples, corpus: str) -> float | None:
        found = [
            value
            for (name, labels), value in samples.items()
            if name == "pgcorpus_embedding_passages" and dict(labels)["corpus"] == corpus
        ]
        return sum(found) if found else None

    assert count(theirs, "memory") is None
    assert count(theirs, "documentation") is None
    assert count(theirs, "knowledge") == 0
    assert count(ours, "memory") == 3 * MEMORIES
    seen, all_of = (
        find(each, "pgcorpus_jobs", kind="embed", status="pending") for each in (theirs, ours)
    )
    assert seen is not None
    assert all_of is not None
    assert seen < all_of
    assert not [name for name in names if name.rpartition(":")[2] in scraped]


def test_a_vector_index_that_no_search_can_use_is_seen(database: Database) -> None:
    """The specification's alert asks for it."""
    with database.unit_of_work() as work:
        work.models.use_model("knowledge", "hashing")
        work.commit()
    before = read(database)
    with database.engine.begin() as connection:
        for name in connection.scalars(
            text("SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid ="
                 " 'chunk_embeddings'::regclass AND pg_get_indexdef(indexrelid) LIKE '%hnsw%'")
        ).all():  # fmt: skip
            connection.execute(text(f"DROP INDEX {name}"))
    after = read(database)

    labels = {"corpus": "knowledge", "model": "hashing"}
    assert find(before, "pgcorpus_vector_index_usable", **labels) == 1
    assert find(after, "pgcorpus_vector_index_usable", **labels) == 0


def test_recent_searches_are_told_whichever_process_made_them(database: Database) -> None:
    """From the log; old ones and invented names are not."""
    now = datetime.now(UTC)
    with database.unit_of_work() as work:
        rows = [("hybrid_search", "knowledge", 10.0 * n, n == 1) for n in range(1, 101)]
        rows += [("invented", "knowledge", 1.0, False), ("text_search", "invented", 1.0, False)]
        work.performance.log(
            [
                {
                    "timestamp": now,
                    "query_type": kind,
                    "corpus": corpus,
                    "duration": duration,
                    "hits": 1,
                    "degraded": degraded,
                }
                for kind, corpus, duration, degraded in rows
            ]
        )
        work.session.add(
            QueryPerformance(
                timestamp=datetime(2020, 1, 1, tzinfo=UTC),
                query_type="hybrid_search",
                corpus="knowledge",
                duration=99_999.0,
                hits=0,
                degraded=False,
            )
        )
        work.commit()

    samples = read(database)

    labels = {"corpus": "knowledge", "mode": "hybrid"}
    assert find(samples, "pgcorpus_recent_searches", **labels) == 100
    assert find(samples, "pgcorpus_recent_searches_degraded", **labels) == 1
    median = find(samples, "pgcorpus_recent_search_duration_seconds", **labels, quantile="0.5")
    assert median == pytest.approx(0.505)
    assert sum(name == "pgcorpus_recent_searches" for name, _ in samples) == 1


def test_an_audit_log_that_was_tampered_with_is_seen(database: Database, superuser: Engine) -> None:
    """Also by who owns the server; and entries without a seal have their age told."""
    with database.unit_of_work() as work:
        make_scope(work, tenant=True)
        work.commit()
    before = read(database)
    AuditService(database).seal()
    sealed = read(database)
    with superuser.begin() as connection:
        connection.execute(text("SET session_replication_role = replica"))
        connection.execute(text("UPDATE audit_seals SET last_position = last_position + 1"))
    after = read(database)

    assert find(before, "pgcorpus_audit_last_seal_timestamp_seconds") == 0
    age = find(before, "pgcorpus_audit_oldest_unsealed_age_seconds")
    assert age is not None
    assert age > 0
    assert find(sealed, "pgcorpus_audit_oldest_unsealed_age_seconds") == 0
    assert find(sealed, "pgcorpus_audit_chain_intact") == 1
    assert find(after, "pgcorpus_audit_chain_intact") == 0


def test_a_part_that_fails_leaves_the_others(database: Database) -> None:
    """A table of backups in another shape, say."""
    with database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE backup_log RENAME COLUMN finished_at TO ended"))
    samples = read(database)

    assert find(samples, "pgcorpus_up") == 1
    assert complete(samples)["backup"] is False
    assert complete(samples)["queue"] is True
    assert find(samples, "pgcorpus_server_connections") is not None


def test_a_database_without_the_schema_is_up(empty: Database) -> None:
    """Figures of tables that are not there are left out."""
    samples = read(empty)

    assert find(samples, "pgcorpus_up") == 1
    assert complete(samples)["server"] is True
    assert complete(samples)["queue"] is False


def test_figures_are_kept_for_some_seconds(database: Database) -> None:
    """However often they are asked for; and no scrape writes."""
    with watch(database) as metrics:
        first = read_samples(metrics)
        with database.unit_of_work() as work:
            work.jobs.enqueue("embed", {})
            work.commit()
        second = read_samples(metrics)

    name = "pgcorpus_jobs_due"
    assert find(first, name) == find(second, name)
    stamp = "pgcorpus_figures_read_timestamp_seconds"
    assert find(first, stamp, figures="database") == find(second, stamp, figures="database")
