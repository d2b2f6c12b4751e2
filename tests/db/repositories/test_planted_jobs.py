"""The queue as a way in: what a login of the application can write there steers nobody's work."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from pgcorpus import SearchService, Worker
from pgcorpus.db.engine import Database
from pgcorpus.db.repositories.jobs import JobRepository
from pgcorpus.db.scope import Scope
from pgcorpus.services.jobs.handler import COMPLETED, Finish
from tests import factories
from tests.logins import logged_in

ENQUEUE = "INSERT INTO jobs (kind, dedupe_key) VALUES ('test', 'k')"


@pytest.fixture
def intruder(database: Database) -> Iterator[Database]:
    """A login of the application, and SQL of its own."""
    with logged_in(database, "rag_read_write") as intruder:
        yield intruder


def attempt(database: Database, statement: str, scope: Scope | None = None) -> int | str:
    """Return the number of rows that a statement wrote, or the constraint or SQLSTATE it met."""
    try:
        with database.engine.begin() as connection:
            for name, value in ({} if scope is None else scope.settings).items():
                connection.execute(text("SELECT set_config(:n, :v, true)"), {"n": name, "v": value})
            return connection.exec_driver_sql(statement).rowcount
    except DBAPIError as error:
        diag = error.orig.diag  # type: ignore[union-attr]
        return diag.constraint_name or diag.sqlstate


@pytest.mark.parametrize(
    ("column", "value", "refused"),
    [
        ("scope", "'tenant:not-a-uuid'", "valid_scope"),
        ("scope", "'tenant:11111111-1111-4111-8111-11111111111A'", "valid_scope"),
        ("scope", "'user:11111111-1111-4111-8111-111111111111' || chr(10)", "valid_scope"),
        ("payload", "'[]'", "valid_payload"),
        ("payload", "jsonb_build_object('item', 10::numeric ^ 4400)", "valid_payload"),
        (
            "payload",
            "('{\"a\":' || repeat('[', 1000) || repeat(']', 1000) || '}')::jsonb",
            "valid_",
        ),
        ("payload", "jsonb_build_object('corpus', repeat('x', 201))", "valid_payload"),
        ("dedupe_key", "repeat('x', 1001)", "valid_dedupe_key"),
        ("attempts", "2147483647", "valid_attempts"),
        ("max_attempts", "2147483647", "valid_attempts"),
        ("repeat_every", "interval '170000000 years'", "valid_repetition"),
        ("not_before", "'infinity'", "readable_times"),
        ("not_before", "'-infinity'", "readable_times"),
        ("created_at", "'0044-03-15 BC'", "readable_times"),
        ("finished_at", "'290000-01-01'", "readable_times"),
    ],
)
def test_rows_that_no_worker_could_read_are_refused(
    database: Database, column: str, value: str, refused: str
) -> None:
    """Whoever writes them: each stopped the claims, or the listings, of everybody."""
    statement = f"INSERT INTO jobs (kind, {column}) VALUES ('test', {value})"  # noqa: S608 - from above

    assert str(attempt(database, statement)).startswith(refused)


def test_a_scope_that_is_none_reaches_no_table(intruder: Database) -> None:
    """A setting may be anything: the policy lets it through, the constraint does not."""
    with intruder.engine.connect() as connection:
        connection.execute(text("SELECT set_config('app.tenant_id', 'not-a-uuid', true)"))
        for statement in (
            "INSERT INTO jobs (kind, scope) VALUES ('test', app_scope())",
            "INSERT INTO import_runs (corpus, scope) VALUES ('memory', app_scope())",
        ):
            with pytest.raises(DBAPIError) as refused, connection.begin_nested():
                connection.execute(text(statement))
            assert refused.value.orig.diag.constraint_name == "valid_scope"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM jobs WHERE kind IN ('maintenance', 'log_flush')",
        "UPDATE jobs SET status = 'completed' WHERE kind IN ('maintenance', 'log_flush')",
        "UPDATE jobs SET not_before = '9000-01-01' WHERE kind = 'maintenance'",
        "SELECT FROM jobs WHERE kind = 'maintenance' FOR UPDATE",
    ],
)
def test_maintenance_is_not_the_applications(intruder: Database, statement: str) -> None:
    """It seals the audit log: its jobs are seen, and neither ended, put off, deleted nor locked."""
    assert attempt(intruder, "SELECT FROM jobs WHERE kind = 'maintenance'") == 1
    assert attempt(intruder, statement) == 0


@pytest.mark.parametrize("kind", ["maintenance", "log_flush", "embed"])
def test_what_the_database_enqueues_nobody_else_does(intruder: Database, kind: str) -> None:
    """A forged job would come first, again and again, or stand for one that is needed."""
    assert attempt(intruder, f"INSERT INTO jobs (kind) VALUES ('{kind}')") == "42501"  # noqa: S608
    assert attempt(intruder, ENQUEUE) == 1
    for changed in (f"kind = '{kind}'", "payload = '{}'", "dedupe_key = 'x'", "max_attempts = 1"):
        assert attempt(intruder, f"UPDATE jobs SET {changed} WHERE kind = 'test'") == "42501"  # noqa: S608
    assert attempt(intruder, "UPDATE jobs SET status = 'failed' WHERE kind = 'test'") == 1


def test_a_job_of_another_kind_does_not_inherit_the_maintenance(
    database: Database, intruder: Database
) -> None:
    """It had the same key while the maintenance ran: that gave way to it, for ever."""
    planted = "INSERT INTO jobs (kind, dedupe_key) VALUES ('planted', 'maintenance')"
    assert attempt(intruder, planted) == 1

    class Planting:
        kind, corpus, batch_size = "maintenance", "", 1

        def handle(self, jobs: list[object]) -> Finish:
            attempt(intruder, planted)
            return lambda _work: [COMPLETED] * len(jobs)

    assert Worker(database, [Planting()]).run(once=True).counts == {"completed": 1}
    with database.unit_of_work() as work:
        (job,) = work.jobs.list_jobs(kind="maintenance")
        assert (job.status, job.last_error, job.repeat_every is not None) == ("pending", None, True)


@pytest.mark.parametrize("scope", [None, "own", "same"])
def test_a_planted_row_keeps_no_passage_from_its_vector(
    database: Database, scope: str | None
) -> None:
    """Whoever planted it, in whatever scope, put off for ever and about something else."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        tenants = [factories.TenantFactory().id for _ in range(2)]
        work.models.use_model("memory", "hashing")
        work.commit()
    key = uuid4()
    planted_in = {None: None, "own": Scope.tenant(tenants[1]), "same": Scope.tenant(tenants[0])}
    victim = Scope.tenant(tenants[0])
    values = "NULL" if scope is None else f"'{planted_in[scope]}'"
    # As the owner, for the application is refused.
    assert attempt(
        database,
        "INSERT INTO jobs (kind, dedupe_key, scope, payload, not_before, priority, attempts,"  # noqa: S608
        f" max_attempts, repeat_every) VALUES ('embed', 'embed:memory:{victim}:{key}', {values},"
        " '{}', '9000-01-01', -32768, 9, 1, '1 year')",
    ) == 1  # fmt: skip
    with database.unit_of_work() as work:
        work.enter(victim)
        node = f"'{key}', '{tenants[0]}', 'm', 'c', 0, 'said', 'openai'"
        work.session.execute(
            text(
                "INSERT INTO memory_nodes (key, tenant_id, id, conversation_id, sequence_index,"  # noqa: S608
                f" human_content, source) VALUES ({node})"
            )
        )
        work.commit()

    assert Worker(database, kinds={"embed"}).run(once=True).counts["completed"] >= 1
    with database.unit_of_work() as work:
        work.enter(victim)
        vectors = text("SELECT count(*) FROM memory_embeddings WHERE node_key = :key")
        assert work.session.scalar(vectors, {"key": key}) == 1


def test_a_key_that_is_none_breaks_no_search(database: Database, intruder: Database) -> None:
    """Searches look up what is still to be embedded, and met a key that they could not read."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        factories.FrameworkDocumentFactory(title="pricing", content="raise the price")
        work.models.use_model("knowledge", "hashing")
        work.commit()
    for planter, kind in ((intruder, "test"), (database, "embed")):
        planted = f"INSERT INTO jobs (kind, dedupe_key) VALUES ('{kind}', 'embed:knowledge:none')"  # noqa: S608
        assert attempt(planter, planted) == 1

    page = SearchService(intruder).search("price", corpus="knowledge", mode="hybrid")

    assert {leg.status for leg in page.legs} <= {"ok", "skipped"}
    assert page.hits


def test_a_job_that_cannot_be_read_fails_alone(database: Database) -> None:
    """Were there one nevertheless: as before the constraints, or after somebody dropped them."""
    with database.engine.begin() as connection:
        for name in ("valid_scope", "valid_payload"):
            connection.execute(text(f"ALTER TABLE jobs DROP CONSTRAINT {name}"))
        connection.execute(
            text(
                "INSERT INTO jobs (kind, scope, payload) VALUES ('test', 'tenant:nobody', '{}'),"
                " ('test', NULL, '[]'),"
                " ('test', NULL, jsonb_build_object('item', trunc(CAST(10 AS numeric) ^ 4400))),"
                " ('test', NULL, CAST(repeat('[', 2000) || repeat(']', 2000) AS jsonb)),"
                " ('test', NULL, '{}')"
            )
        )
    with database.unit_of_work() as work:
        claimed = work.jobs.claim("test", worker_id="w", limit=50, lease_seconds=60)
        work.commit()
    with database.engine.connect() as connection:
        ended = connection.execute(
            text("SELECT status, last_error FROM jobs WHERE kind = 'test' ORDER BY id")
        ).all()

    assert [job.scope for job in claimed] == [None]
    assert [row.status for row in ended] == ["failed"] * 4 + ["running"]
    assert all(row.last_error.startswith("cannot be read: ") for row in ended[:4])


def test_jobs_of_no_corpus_fail_in_the_maintenance(database: Database) -> None:
    """No worker would ever take them, and they would be the oldest that is due."""
    with database.unit_of_work() as work:
        of_none = [work.jobs.enqueue("embed", {"corpus": each}) for each in ("nonsense", "")]
        left = work.jobs.enqueue("embed", {"corpus": "documentation"})  # has no handler yet
        work.commit()
    with logged_in(database, "rag_admin") as administrator:
        Worker(administrator, kinds={"maintenance"}).run(once=True)

    with database.unit_of_work() as work:
        assert [work.jobs.get(each).status for each in of_none] == ["failed"] * 2
        assert "names no corpus" in (work.jobs.get(of_none[0]).last_error or "")
        assert work.jobs.get(left).status == "pending"


def test_an_error_in_one_lane_leaves_the_others_running(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, and the lane is tried again by and by."""
    tried = 0
    claim = JobRepository.claim

    def failing(self: JobRepository, kind: str, **more: object) -> object:
        nonlocal tried
        if kind == "broken":
            tried += 1
            raise ValueError("no such thing")
        return claim(self, kind, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(JobRepository, "claim", failing)
    done: list[int] = []

    class Doing:
        corpus, batch_size = "", 1

        def __init__(self, kind: str) -> None:
            self.kind = kind

        def handle(self, jobs: list[object]) -> Finish:
            done.append(len(jobs))
            if len(done) == 3:
                worker.stop()
            return lambda _work: [COMPLETED] * len(jobs)

    with database.unit_of_work() as work:
        for _ in range(3):
            work.jobs.enqueue("sound")
        work.commit()
    worker = Worker(database, [Doing("broken"), Doing("sound")], concurrency=1, poll_seconds=0.3)
    report = worker.run()

    assert report.counts == {"completed": 3}
    assert tried >= 1
    assert len([each for each in caplog.records if "others are" in each.message]) == 1

    with database.unit_of_work() as work:
        work.jobs.enqueue("sound")
        work.commit()
    again = Worker(database, [Doing("broken"), Doing("sound")], concurrency=1)
    with pytest.raises(ValueError, match="no such thing"):
        again.run(once=True)
    assert len(done) == 4


def test_listings_read_every_time_that_there_can_be(database: Database, intruder: Database) -> None:
    """Infinity, and years that Python has not, are refused where callers write them."""
    for table, column, more in (
        ("users", "created_at", "auth_provider, external_id"),
        ("conversations", "created_at", "title, source_type"),
        ("conversations", "source_updated_at", "title, source_type"),
    ):
        for time in ("infinity", "-infinity", "12000-01-01", "0001-01-01 BC"):
            statement = f"INSERT INTO {table} ({column}, {more}) VALUES ('{time}', 'a', 'b')"  # noqa: S608
            assert attempt(database, statement) == "readable_times"
