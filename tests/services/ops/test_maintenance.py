"""Maintenance of a real database: under load, killed, refused, and only where it is worth it."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

import pytest
from sqlalchemy import Engine, text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DatabaseReadOnly, Misuse, NotPermitted, TransactionConflict
from pgcorpus.db.repositories.operations.maintenance import IndexState
from pgcorpus.services.audit import AuditService
from pgcorpus.services.choices import LEAST_RECALL
from pgcorpus.services.embedding.hashing import HashingEmbedder
from pgcorpus.services.ops.maintenance import steps as steps_of_maintenance
from pgcorpus.services.ops.maintenance.report import MaintenanceReport, Operation, StepReport
from pgcorpus.services.ops.maintenance.service import MaintenanceService
from pgcorpus.services.ops.maintenance.steps import MONTHLY, WEEKLY, Request, Step
from pgcorpus.services.ops.maintenance.worth import LEAST_BYTES, estimate_bytes, find_reason
from pgcorpus.services.search.service import SearchService
from tests.command import PGCORPUS
from tests.conftest import Databases
from tests.logins import logged_in

PATIENCE_SECONDS = 60
PASSAGES = 6000
MODEL, DIMENSIONS = "small", 64
INDEX = "chunk_embeddings_hnsw_small"

FILL = (
    """
    INSERT INTO framework_documents (chunk_id, source_file, section, title, content)
    SELECT 'c' || n, 'f.md', 's', 'Title ' || n,
           'price w' || (hashint8(n) & 255) || ' offer w' || (hashint8(n * 7) & 255)
    FROM generate_series(1, :passages) n
    """,
    """
    INSERT INTO framework_metadata
        (document_id, character_count, word_count, chunk_type, validation_passed)
    SELECT id, 300, 20, 'supporting', true FROM framework_documents
    """,
    """
    INSERT INTO embedding_models (name, dimensions, provider, index_kind)
    VALUES ('small', 64, 'hashing', 'halfvec')
    """,
    """
    INSERT INTO chunk_embeddings (document_id, model_name, embedding, content_hash)
    SELECT document.id, 'small', (
               SELECT array_agg(hashint8(d::bigint * 1000003 + hashtext(chunk_id)) / 2147483648.0)
               FROM generate_series(1, 64) AS d
           )::vector, sha256(convert_to(title || E'\\n' || content, 'UTF8'))
    FROM framework_documents AS document
    """,
    "UPDATE corpus_settings SET active_model = 'small' WHERE corpus = 'knowledge'",
    "UPDATE jobs SET status = 'completed', finished_at = now() WHERE kind = 'embed'",
)

MAKE_INDEX = """
    CREATE INDEX chunk_embeddings_hnsw_small ON chunk_embeddings
    USING hnsw ((embedding::halfvec(64)) halfvec_cosine_ops) WITH (m={m}, ef_construction={ef})
    WHERE model_name = 'small'
"""


def run(database: Database, *statements: str, **values: object) -> None:
    """Run statements in one transaction."""
    with database.engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement), values)


def ask(database: Database, question: str, **values: object) -> Any:
    """Return the first value of the first row."""
    with database.engine.connect() as connection:
        return connection.scalar(text(question), values)


@pytest.fixture
def filled(database: Database) -> Database:
    """Enough passages that searches use the index of the vectors."""
    run(database, *FILL, MAKE_INDEX.format(m=16, ef=64), passages=PASSAGES)
    run(database, "ANALYZE framework_documents, chunk_embeddings, framework_metadata")
    return database


def maintain(database: Database, *operations: Operation, **options: Any) -> list[StepReport]:
    """Do some operations; all must succeed."""
    report = MaintenanceService(database).run(Request(operations, **options))
    assert report.counts["failed"] == 0, [each for each in report.steps if each.error]
    return list(report.steps)


def only(steps: list[StepReport], subject: str) -> StepReport:
    """Return the step of one table or index."""
    (step,) = [each for each in steps if each.subject == subject]
    return step


def list_log(database: Database, limit: int = 1000) -> list[Mapping[str, Any]]:
    """Return the rows of the log, the oldest first."""
    with database.unit_of_work() as work:
        return [
            {"operation": each.operation, "subject": each.subject, "status": each.status,
             "duration": each.duration, "detail": each.detail, "login": each.login}
            for each in reversed(work.maintenance.list_entries(limit=limit))
        ]  # fmt: skip


def filenode(database: Database, relation: str) -> int:
    """Return the number of the file of an index: another one after each rebuild."""
    return int(ask(database, "SELECT pg_relation_filenode(CAST(:name AS regclass))", name=relation))


def wait_until(happened: Callable[[], bool]) -> None:
    """Come back as soon as it has happened."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def searching(database: Database, threads: int = 3) -> Iterator[Counter[str]]:
    """Search without a pause, by vectors, words and both; count whole pages and others."""
    stop, counts, errors = threading.Event(), Counter[str](), list[BaseException]()

    def search(mode: Any) -> None:
        service = SearchService(database, embedder=HashingEmbedder(MODEL, DIMENSIONS))
        number = 0
        while not stop.is_set():
            number += 1
            try:
                page = service.search(
                    f"price w{number % 200} offer", corpus="knowledge", mode=mode, limit=10
                )
            except BaseException as error:  # noqa: BLE001 - told to the test
                errors.append(error)
                return
            whole = len(page.hits) == 10 and not page.degraded
            counts["whole" if whole else "poor"] += 1
            counts[mode] += 1

    modes = ("vector", "text", "hybrid")[:threads]
    running = [threading.Thread(target=search, args=(mode,)) for mode in modes]
    for thread in running:
        thread.start()
    try:
        wait_until(lambda: bool(errors) or all(counts[mode] > 2 for mode in modes))
        yield counts
    finally:
        stop.set()
        for thread in running:
            thread.join(PATIENCE_SECONDS)
    assert errors == []


def test_searches_under_load_are_whole_while_everything_is_maintained(filled: Database) -> None:
    """Each index is built anew, each table vacuumed and analysed: no search fails or lacks hits."""
    before = filenode(filled, INDEX), filenode(filled, "idx_documents_content_fts")
    with searching(filled) as counts:
        at_first = Counter(counts)
        for name in (INDEX, "idx_documents_content_fts"):
            step = only(maintain(filled, "reindex", only=name), name)
            assert (step.status, step.detail["reason"]) == ("completed", "it was asked for")
        during = counts - at_first
        maintain(filled, *MONTHLY)

    after = filenode(filled, INDEX), filenode(filled, "idx_documents_content_fts")
    assert all(new != old for new, old in zip(after, before, strict=True))
    assert all(during[mode] > 0 for mode in ("vector", "text", "hybrid"))
    assert counts["poor"] == 0
    assert counts["whole"] == sum(counts[mode] for mode in ("vector", "text", "hybrid"))


def test_a_week_and_a_month_are_logged_step_by_step(filled: Database) -> None:
    """In order, with duration and login; a month has the updates of extensions, too."""
    maintain(filled, *WEEKLY, all_indexes=False)
    week = list_log(filled)
    maintain(filled, *MONTHLY)
    month = list_log(filled)[len(week) :]

    for log, operations in ((week, WEEKLY), (month, MONTHLY)):
        assert tuple(dict.fromkeys(each["operation"] for each in log)) == operations
        assert {each["status"] for each in log} <= {"completed", "skipped"}
        assert all(each["duration"] >= 0 for each in log)
        assert {each["login"] for each in log} == {filled.url.username}
    assert set(get_args(Operation)) == {each["operation"] for each in month}
    analysed = {each["subject"] for each in week if each["operation"] == "statistics_update"}
    assert {"framework_documents", "chunk_embeddings", "key_concepts", "jobs"} <= analysed
    judged = {each["subject"] for each in week if each["operation"] == "reindex"}
    assert INDEX in judged
    assert "idx_documents_content_fts" not in judged
    assert "idx_documents_content_fts" in {
        each["subject"] for each in month if each["operation"] == "reindex"
    }
    # Nothing was bloated: nothing was built anew.
    assert not [e for e in week + month if e["operation"] == "reindex" and e["status"] != "skipped"]


def test_statistics_are_renewed(filled: Database) -> None:
    """Rows that were deleted since the last ANALYZE are no longer counted."""
    run(filled, "DELETE FROM framework_documents WHERE chunk_id LIKE '%7'")
    maintain(filled, "statistics_update")

    left = ask(filled, "SELECT count(*) FROM framework_documents")
    known = ask(
        filled, "SELECT reltuples::bigint FROM pg_class WHERE relname = 'framework_documents'"
    )
    assert known == left


def test_a_bloated_index_is_built_anew_once(filled: Database) -> None:
    """Of a B-tree and a graph most entries go; both shrink, and are left alone the next time."""
    run(
        filled,
        "INSERT INTO query_performance_log (query_type, corpus, duration, hits, degraded)"
        " SELECT 'text_search', 'knowledge', 1, 1, false FROM generate_series(1, 800000)",
    )
    steps = maintain(filled, "statistics_update", "reindex")
    name = "pk_query_performance_log"
    assert only(steps, name).status == "skipped"
    assert only(steps, name).detail["bloat"] < 0.1
    run(filled, "DELETE FROM query_performance_log WHERE id % 10 > 0")

    steps = maintain(filled, "vacuum", "statistics_update", "reindex")
    again = maintain(filled, "reindex")

    step = only(steps[-len(again) :], name)
    assert step.status == "completed"
    assert "can be given back" in step.detail["reason"]
    assert step.detail["bytes_after"] < step.detail["bytes"] / 5
    assert only(again, name).status == "skipped"


@pytest.mark.parametrize(
    ("dimensions", "kind", "bytes_per_row"), [(3072, "halfvec", 8192), (3072, "bit", 683)]
)
def test_the_expected_size_of_a_graph_is_what_was_measured(
    dimensions: int, kind: str, bytes_per_row: float
) -> None:
    """781 MB and 66 MB at 100,000 vectors: docs/reference/benchmarks.md's machine."""
    graph = make_index(type=kind, dimensions=dimensions, entries=100_000)

    expected = estimate_bytes(graph)

    assert expected is not None
    assert expected / 100_000 == pytest.approx(bytes_per_row, rel=0.01)


@pytest.mark.parametrize("dimensions", [64, 384, 1500])
def test_the_expected_size_of_a_graph_is_that_of_a_new_one(
    database: Database, dimensions: int
) -> None:
    """Within a twentieth, whatever the length of the vectors."""
    run(
        database,
        "CREATE TABLE probe AS SELECT (SELECT array_agg(hashint8(n * 5000 + d) / 2147483648.0)"
        " FROM generate_series(1, CAST(:dimensions AS integer)) AS d)::vector AS v"
        " FROM generate_series(1, 2000) AS n",
        dimensions=dimensions,
    )
    run(
        database,
        f"CREATE INDEX probed ON probe USING hnsw ((v::halfvec({dimensions})) halfvec_cosine_ops)",
    )
    graph = make_index(dimensions=dimensions, entries=2000)

    assert estimate_bytes(graph) == pytest.approx(
        ask(database, "SELECT pg_relation_size('probed')"), rel=0.05
    )


def make_index(**different: Any) -> IndexState:
    """An index of vectors that is as it should be."""
    usual: dict[str, Any] = {
        "schema": "public", "name": "i", "table": "t", "whole": "t", "method": "hnsw",
        "valid": True, "oid": 1,
        "bytes": 8192, "entries": 1.0, "links": 16, "key_bytes": None, "dimensions": 64,
        "type": "halfvec", "scans": 0, "condition": None,
    }  # fmt: skip
    return IndexState(**(usual | different))


def test_a_rebuild_is_worth_its_while_or_not() -> None:
    """By what it gives back, what searches find, and what the rebuild before gained."""
    small = make_index(bytes=LEAST_BYTES - 1)
    bloated = make_index(bytes=LEAST_BYTES)
    poor = LEAST_RECALL - 0.05

    assert find_reason(small, recall=None, rebuilt=None) is None
    assert "100% of its 8 MB" in (find_reason(bloated, recall=1.0, rebuilt=None) or "")
    assert find_reason(small, recall=LEAST_RECALL, rebuilt=None) is None
    assert "90.0% of the ten best" in (find_reason(small, recall=poor, rebuilt=None) or "")
    assert find_reason(small, recall=poor, rebuilt={"recall_after": poor}) is None
    assert find_reason(small, recall=poor, rebuilt={"recall_after": 0.99}) is not None
    assert "invalid" in (find_reason(make_index(valid=False), recall=None, rebuilt=None) or "")
    gin = make_index(method="gin", type="tsvector", bytes=10 * LEAST_BYTES)
    assert find_reason(gin, recall=None, rebuilt=None) is None


def test_searches_that_find_too_little_have_their_index_built_anew_once(database: Database) -> None:
    """A graph of few links finds little; where the rebuild does not help it is not repeated."""
    run(database, *FILL, MAKE_INDEX.format(m=2, ef=4), passages=PASSAGES)
    run(database, "ANALYZE framework_documents, chunk_embeddings, framework_metadata")

    first = only(maintain(database, "reindex", all_indexes=False), INDEX)
    second = only(maintain(database, "reindex", all_indexes=False), INDEX)

    assert first.detail["recall"] < LEAST_RECALL
    assert (first.status, "of the ten best" in first.detail["reason"]) == ("completed", True)
    assert 0 < first.detail["recall_after"] < LEAST_RECALL
    assert second.status == "skipped"
    assert second.detail["recall"] < LEAST_RECALL


def test_the_recall_of_a_whole_graph_is_measured(filled: Database) -> None:
    """It is in the log, so that a drift can be seen over the weeks."""
    step = only(maintain(filled, "reindex", all_indexes=False), INDEX)

    assert step.status == "skipped"
    assert step.detail["recall"] >= LEAST_RECALL


@contextmanager
def old_transaction(engine: Engine) -> Iterator[None]:
    """A transaction with a snapshot, for which a rebuild waits at its end."""
    with engine.connect() as connection:
        connection.execution_options(isolation_level="REPEATABLE READ")
        connection.execute(text("SELECT count(*) FROM chunk_embeddings"))
        yield


def is_waiting(database: Database) -> bool:
    """Return whether a rebuild has built its index, and waits."""
    phase = "SELECT phase FROM pg_stat_progress_create_index WHERE datname = current_database()"
    return "waiting" in (ask(database, phase) or "")


def list_left(database: Database) -> list[str]:
    """Return the invalid indexes."""
    with database.engine.connect() as connection:
        found = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"
        return list(connection.scalars(text(found)))


def start(variables: Mapping[str, str], *arguments: str) -> subprocess.Popen[str]:
    """Start the command."""
    return subprocess.Popen(
        [PGCORPUS, "maintenance", *arguments],
        env=variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_stopped_is_cleaned_up_by_the_next(
    filled: Database, superuser: Engine, variables: Mapping[str, str], how: signal.Signals
) -> None:
    """Meanwhile no other run begins; the server gives the statement of a killed client up."""
    with old_transaction(superuser):
        process = start(variables, "now", "reindex", "--only", INDEX)
        try:
            wait_until(lambda: is_waiting(filled))
            with pytest.raises(TransactionConflict, match="pgcorpus maintenance log"):
                MaintenanceService(filled).run(Request(WEEKLY))
            process.send_signal(how)
            _, complaint = process.communicate(timeout=PATIENCE_SECONDS)
        finally:
            process.kill()
        assert "Traceback" not in complaint
        assert (process.returncode, complaint[-500:] if process.returncode == 1 else "") == (
            130 if how == signal.SIGINT else -signal.SIGKILL,
            "",
        )
        wait_until(lambda: not is_waiting(filled))
    assert list_left(filled) == [f"{INDEX}_ccnew"]
    left = list_log(filled)[-1]
    assert (left["operation"], left["subject"]) == ("reindex", INDEX)
    assert left["status"] == ("interrupted" if how == signal.SIGINT else "running")

    wait_until(lambda: ask(filled, LOCKS) == 0)
    report = MaintenanceService(filled).run(Request(("leftover_indexes",)))

    assert list(report.interrupted) == ([] if how == signal.SIGINT else [f"reindex {INDEX}"])
    assert report.steps[0].detail == {"dropped": [f"{INDEX}_ccnew"]}
    assert list_left(filled) == []
    assert "interrupted" in {each["status"] for each in list_log(filled)}
    assert only(maintain(filled, "reindex", only=INDEX), INDEX).status == "completed"


LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"


def test_a_rebuild_that_fails_leaves_nothing_and_the_other_steps_are_done(
    filled: Database, superuser: Engine
) -> None:
    """An administrator cancels it; the log has the reason."""
    reports: list[MaintenanceReport] = []

    def rebuild() -> None:
        request = Request(("reindex", "bloat_report"), all_indexes=False)
        reports.append(MaintenanceService(filled).run(request))

    with superuser.begin() as connection:  # as a stopped build leaves it
        connection.execute(
            text("UPDATE pg_index SET indisvalid = false WHERE indexrelid = CAST(:i AS regclass)"),
            {"i": INDEX},
        )
    with old_transaction(superuser):
        thread = threading.Thread(target=rebuild)
        thread.start()
        wait_until(lambda: is_waiting(filled))
        with superuser.begin() as connection:
            connection.execute(
                text("SELECT pg_cancel_backend(pid) FROM pg_stat_progress_create_index")
            )
        wait_until(lambda: not is_waiting(filled))
    thread.join(PATIENCE_SECONDS)

    (report,) = reports
    assert report.counts["failed"] == 1
    failed = only(list(report.steps), INDEX)
    assert failed.status == "failed"
    assert "cancel" in (failed.error or "")
    assert report.steps[-1].operation == "bloat_report"
    assert report.steps[-1].status == "completed"
    assert list_left(filled) == [INDEX]
    step = only(maintain(filled, "reindex", all_indexes=False), INDEX)
    assert "invalid" in step.detail["reason"]
    assert list_left(filled) == []


def test_retention_deletes_what_is_old_and_keeps_the_rest(filled: Database) -> None:
    """Timings after 30 days, completed jobs after 7, entries of the log after a year."""
    run(
        filled,
        "INSERT INTO query_performance_log"
        " (timestamp, query_type, corpus, duration, hits, degraded)"
        " SELECT now() - make_interval(days => n), 'text_search', 'knowledge', 1, 1, false"
        " FROM generate_series(1, 60) AS n",
        "INSERT INTO jobs (kind, status, finished_at)"
        " SELECT 'greet', 'completed', now() - make_interval(days => n)"
        " FROM generate_series(1, 20) AS n",
        "INSERT INTO maintenance_log (operation, timestamp, status)"
        " SELECT 'vacuum', now() - make_interval(days => n * 100), 'completed'"
        " FROM generate_series(1, 6) AS n",
    )
    steps = maintain(filled, "retention")

    assert only(steps, "query_performance_log").detail == {"rows": 31}
    assert only(steps, "jobs").detail == {"rows": 14}
    assert only(steps, "maintenance_log").detail == {"rows": 3}
    oldest = "SELECT extract(day FROM now() - min(timestamp))::int FROM query_performance_log"
    assert ask(filled, oldest) == 29
    assert ask(filled, "SELECT count(*) FROM jobs WHERE kind = 'greet'") == 6
    assert {each.status for each in maintain(filled, "retention")} == {"skipped"}


def test_vacuum_makes_room_and_gives_it_back_only_where_it_is_asked_to(filled: Database) -> None:
    """Rows that come later fill the space of dead ones; VACUUM FULL shrinks one table."""
    run(filled, "DELETE FROM framework_metadata WHERE document_id::text < '8'")
    size = "SELECT pg_relation_size('framework_metadata')"
    before = ask(filled, size)
    first = only(maintain(filled, "vacuum"), "framework_metadata")
    free = ask(filled, size)
    visible = "SELECT relallvisible FROM pg_class WHERE relname = 'framework_metadata'"
    assert ask(filled, visible) > 0
    full = only(
        maintain(filled, "vacuum", only="framework_metadata", full=True), "framework_metadata"
    )

    assert (first.status, full.status) == ("completed", "completed")
    assert first.detail["bytes_after"] == free > before * 0.9
    assert full.detail["bytes_after"] < before * 0.6


def test_what_others_build_is_left_alone(
    filled: Database, superuser: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step waits for an index that another session builds, and none drops it half made."""
    monkeypatch.setattr(steps_of_maintenance, "BUSY_SECONDS", 0.1)
    with filled.engine.connect() as builder:
        connection = builder.execution_options(isolation_level="AUTOCOMMIT")
        built: list[BaseException | None] = []

        def build() -> None:
            try:
                connection.execute(text(f"REINDEX INDEX CONCURRENTLY {INDEX}"))
                built.append(None)
            except BaseException as error:  # noqa: BLE001 - told to the test
                built.append(error)

        thread = threading.Thread(target=build)
        with old_transaction(superuser):
            thread.start()
            wait_until(lambda: is_waiting(filled))
            steps = maintain(filled, *WEEKLY, all_indexes=False)
            of_table = [each for each in steps if each.subject in ("chunk_embeddings", INDEX)]
            left = list_left(filled)
        thread.join(PATIENCE_SECONDS)

    assert {each.operation for each in of_table} == {"statistics_update", "reindex", "vacuum"}
    assert {each.status for each in of_table} == {"skipped"}
    assert all("others build an index" in each.detail["reason"] for each in of_table)
    assert left == [f"{INDEX}_ccnew"]
    assert steps[0].detail == {"dropped": [], "in_use": left}
    assert built == [None]
    assert list_left(filled) == []


def test_partitions_are_made_ahead(database: Database) -> None:
    """Partitions of the next months, as the worker makes them."""
    gone = ask(
        database,
        "SELECT relname FROM pg_class WHERE relname ~ '^security_audit_log_2' AND relkind = 'r'"
        " ORDER BY relname DESC LIMIT 1",
    )
    run(database, f"DROP TABLE {gone}")
    (step,) = maintain(database, "partitions")

    assert step.detail == {"made": [gone]}
    assert maintain(database, "partitions")[0].status == "skipped"
    AuditService(database).maintain()


def test_updates_of_extensions_are_offered_and_not_done(
    database: Database, superuser: Engine
) -> None:
    """Extensions of which the server has a newer version, with the statement."""
    (step,) = maintain(database, "extension_updates")
    assert (step.status, step.detail) == ("skipped", {"offered": []})
    with superuser.begin() as connection:
        installed = connection.scalar(
            text("SELECT extversion FROM pg_extension WHERE extname = 'pg_trgm'")
        )
        connection.execute(
            text("UPDATE pg_extension SET extversion = '1.5' WHERE extname = 'pg_trgm'")
        )
    (step,) = maintain(database, "extension_updates")

    assert step.detail["offered"] == [
        {"name": "pg_trgm", "installed": "1.5", "available": installed,
         "statement": "ALTER EXTENSION pg_trgm UPDATE;"}
    ]  # fmt: skip
    assert ask(database, "SELECT extversion FROM pg_extension WHERE extname = 'pg_trgm'") == "1.5"


def test_sizes_are_reported_with_what_can_be_given_back(filled: Database) -> None:
    """Tables by size, indexes by waste."""
    (step,) = maintain(filled, "bloat_report")
    tables = {each["table"]: each for each in step.detail["tables"]}
    indexes = {each["index"]: each for each in step.detail["indexes"]}

    assert tables["framework_documents"]["live_rows"] == PASSAGES
    assert tables["security_audit_log"]["bytes"] > 0
    assert indexes[INDEX]["bytes"] == ask(filled, f"SELECT pg_relation_size('{INDEX}')")
    assert indexes[INDEX]["bloat"] < 0.1
    assert indexes["idx_documents_content_fts"]["bloat"] is None


def test_who_may_maintain(database: Database, databases: Databases) -> None:
    """The owner; from PostgreSQL 17 on rag_admin too, but for what is the owner's alone."""
    for group in ("rag_read_only", "rag_read_write", None):
        with logged_in(database, group) as login, pytest.raises(NotPermitted) as refused:
            MaintenanceService(login).run(Request(WEEKLY))
        assert f"as their owner, {database.url.username}" in str(refused.value)
        assert ("--role rag_admin" in str(refused.value)) == (databases.version >= 17)
    assert list_log(database) == []
    with logged_in(database, "rag_admin") as login:
        if databases.version < 17:
            with pytest.raises(NotPermitted, match="before PostgreSQL 17 nobody else may"):
                MaintenanceService(login).run(Request(WEEKLY))
            return
        steps = maintain(login, *MONTHLY)
    of_log = [each for each in steps if (each.subject or "").startswith("security_audit_log")]
    assert {each.operation for each in of_log} == {"statistics_update", "reindex", "vacuum"}
    assert {each.status for each in of_log} == {"skipped"}
    assert all(database.url.username in each.detail["reason"] for each in of_log)
    assert "completed" in {each.status for each in steps if each.operation == "statistics_update"}


def test_what_is_not_there_is_misuse(database: Database) -> None:
    """A table or index of another name, also one that belongs to others."""
    run(database, 'CREATE TABLE "others" (n integer)')
    for name in ("others", "nothing", 'x"; DROP TABLE jobs; --'):
        with pytest.raises(Misuse, match="no table or index of pgcorpus"):
            maintain(database, "vacuum", only=name)


def test_progress_is_told_step_by_step(filled: Database, superuser: Engine) -> None:
    """With the phase that the server reports of a long one."""
    told: list[tuple[int, int, str | None, str | None]] = []
    waiting = threading.Event()

    def note(done: int, total: int, step: Step, phase: tuple[str, float] | None) -> None:
        told.append((done, total, step.subject, phase and phase[0]))
        if phase is not None and "waiting" in phase[0]:
            waiting.set()

    def rebuild() -> None:
        MaintenanceService(filled).run(Request(("reindex",), only=INDEX), on_step=note)

    with old_transaction(superuser):
        thread = threading.Thread(target=rebuild)
        thread.start()
        assert waiting.wait(PATIENCE_SECONDS)
    thread.join(PATIENCE_SECONDS)

    assert told[0] == (0, 1, INDEX, None)
    assert any(phase and "waiting" in phase for *_, phase in told)


def test_the_function_of_the_specification_is_for_pg_cron(database: Database) -> None:
    """``update_vector_statistics`` analyses and logs, as owner and as rag_admin; nobody else."""
    run(database, "SELECT update_vector_statistics()")
    with logged_in(database, "rag_admin") as login:
        run(login, "SELECT update_vector_statistics()")
    with logged_in(database, "rag_read_write") as login, pytest.raises(Exception, match="denied"):
        run(login, "SELECT update_vector_statistics()")

    log = list_log(database)
    assert [(e["operation"], e["status"]) for e in log] == [("statistics_update", "completed")] * 2
    assert log[0]["detail"]["tables"] > 20
    assert ask(database, "SELECT count(*) FROM pg_stats WHERE tablename = 'corpus_settings'") > 0


def test_a_standby_is_refused(database: Database) -> None:
    """As any database that may not be written to."""
    run(
        database, f'ALTER DATABASE "{database.url.database}" SET default_transaction_read_only = on'
    )
    database.close()
    with pytest.raises(DatabaseReadOnly):
        MaintenanceService(database).run(Request(WEEKLY))


def test_the_statements_for_pg_cron_can_be_run(database: Database) -> None:
    """Each is one statement that the owner may run; VACUUM outside of a transaction."""
    run(
        database,
        "CREATE SCHEMA cron",
        "CREATE TABLE cron.job (name text PRIMARY KEY, schedule text, command text)",
        "CREATE FUNCTION cron.schedule(text, text, text) RETURNS void LANGUAGE sql"
        " AS 'INSERT INTO cron.job VALUES ($1, $2, $3)'",
    )
    with database.unit_of_work() as work:
        statements = work.maintenance.list_cron_statements()
    run(database, *(each.replace(":", "\\:") for each in statements))
    with database.autocommitting() as work:
        commands = work.session.execute(text("SELECT name, schedule, command FROM cron.job")).all()
        for _, _, command in commands:
            work.session.connection().exec_driver_sql(command)

    assert ("update-stats", "0 2 * * *") in {(name, when) for name, when, _ in commands}
    assert len(commands) == len(statements) == 3
    assert ask(database, "SELECT last_vacuum IS NOT NULL FROM pg_stat_user_tables"
                         " WHERE relname = 'jobs'")  # fmt: skip
