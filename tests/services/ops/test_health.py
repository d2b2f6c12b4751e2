"""Health is told in time whatever happens to the database, and each check sees its fault."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, text

from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import InvalidValue, SettingsError
from pgcorpus.db.repositories.operations.health import Component, HealthRepository
from pgcorpus.db.search.corpora.knowledge import KNOWLEDGE
from pgcorpus.db.settings import Settings
from pgcorpus.services.audit import AuditService
from pgcorpus.services.ops.health import COMPONENTS, AsyncHealthService, Health, HealthService
from tests import factories
from tests.conftest import settings_for
from tests.faults.proxy import Proxy
from tests.logins import logged_in

REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "health.md"
READINESS = ["database", "schema", "tables", "writes"]
IN_TIME_SECONDS = 5.0


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    """A proxy in front of the test's own database."""
    with Proxy(database.url) as proxy:
        yield proxy


@pytest.fixture
def stalled(database: Database) -> Iterator[Database]:
    """A database whose port takes connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        yield Database(settings_for(database.url.set(host="127.0.0.1", port=port)))


def status_of(found: Health, check: str) -> str:
    """The status of one check."""
    return next(each.status for each in found.checks if each.check == check)


def detail_of(found: Health, check: str) -> str:
    """The detail of one check."""
    return next(each.detail for each in found.checks if each.check == check)


def examine(database: Database, component: str) -> Component:
    """A component, as this login sees it."""
    with database.unit_of_work() as work:
        return work.health.examine(component)


def run(database: Database, statement: str, **values: object) -> None:
    """Run a statement for good."""
    with database.engine.begin() as connection:
        connection.execute(text(statement), values)


def test_a_fresh_database_is_healthy(database: Database) -> None:
    """Live, ready, and nothing for an operator but to back up; what is hidden is no fault."""
    found = HealthService(database).check()

    assert (found.verdict, found.live, found.ready) == ("healthy", True, True)
    assert [each.check for each in found.checks] == ["pool", *READINESS, *COMPONENTS]
    assert {each.check for each in found.checks if each.status == "unknown"} <= {"disk"}
    wanting = [each for each in found.checks if each.status in {"warning", "critical"}]
    assert [each.check for each in wanting] == ["last_backup"]
    assert all(each.duration_ms is not None for each in found.checks)


def test_the_function_of_the_seed_has_its_three_components_and_more(database: Database) -> None:
    """As the seed's restore script calls it."""
    with database.engine.connect() as connection:
        rows = connection.execute(text("SELECT * FROM system_health_check()")).all()

    assert [row.component for row in rows] == list(COMPONENTS)
    assert [tuple(row) for row in rows[:3]] == [
        ("pgvector_extension", "HEALTHY", rows[0].details),
        (
            "embedding_completeness",
            "HEALTHY",
            "; ".join(
                f"{c}: Documents: 0, Embeddings: 0" for c in ("chat", "documentation", "knowledge")
            ),
        ),
        (
            "vector_index_health",
            "HEALTHY",
            "the active model of each corpus has its vector index",
        ),
    ]
    with pytest.raises(InvalidValue, match="no component sound; known: pgvector_extension"):
        examine(database, "sound")


def test_every_check_is_in_the_reference(database: Database) -> None:
    """With its limits."""
    page = REFERENCE.read_text()

    assert [n for n in ("pool", *READINESS, *COMPONENTS) if f"| `{n}` |" not in page] == []


@pytest.mark.parametrize("ask", [HealthService.check, HealthService.check_readiness])
def test_a_server_that_says_nothing_is_answered_in_time(
    stalled: Database, ask: Callable[[HealthService], Health]
) -> None:
    """The process lives, and cannot serve."""
    began = time.monotonic()
    found = ask(HealthService(stalled))

    assert time.monotonic() - began < IN_TIME_SECONDS
    assert (found.verdict, found.live, found.ready) == ("not_ready", True, False)
    assert status_of(found, "database") == "critical"
    assert {each.status for each in found.checks[2:]} == {"unknown"}
    assert {each.detail for each in found.checks[2:]} == {"not reached"}


def test_a_server_that_is_down_is_answered_at_once(database: Database) -> None:
    """With what libpq says, and no attempt again: the next probe is one."""
    gone = Database(settings_for(database.url.set(port=1)))
    began = time.monotonic()
    found = HealthService(gone).check()

    assert time.monotonic() - began < 3
    assert found.verdict == "not_ready"
    assert "Check DATABASE_URL" in detail_of(found, "database")
    assert "invented" not in str(found)


def test_a_connection_that_stalls_between_two_checks_is_answered_in_time(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check that waits is named; those after it were not reached."""
    list_unreadable = HealthRepository.list_unreadable

    def stall(repository: HealthRepository) -> list[str]:
        proxy.stall()
        return list_unreadable(repository)

    monkeypatch.setattr(HealthRepository, "list_unreadable", stall)
    behind = Database(settings_for(proxy.url))
    began = time.monotonic()
    found = HealthService(behind).check()

    assert time.monotonic() - began < IN_TIME_SECONDS
    assert [each.status for each in found.checks[1:4]] == ["ok", "ok", "critical"]
    assert detail_of(found, "tables") == "there was no answer within 4.5 s"
    assert {each.status for each in found.checks[4:]} == {"unknown"}
    assert (found.live, found.ready) == (True, False)

    proxy.flow()
    monkeypatch.undo()
    assert HealthService(behind).check().verdict == "healthy"


def test_a_check_that_takes_too_long_is_ended_and_the_others_go_on(
    database: Database, superuser: Engine
) -> None:
    """A lock on one table says nothing of the rest."""
    with database.engine.connect() as connection:
        connection.execute(text("LOCK TABLE jobs"))
        found = HealthService(database).check()

    assert status_of(found, "queue_age") == "unknown"
    assert "longer than 1 s" in detail_of(found, "queue_age")
    assert status_of(found, "audit_chain") == "ok"
    assert found.duration_ms < IN_TIME_SECONDS * 1000


def test_a_database_that_goes_away_meanwhile_is_not_healthy(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was ready a moment ago; whatever was not seen since is no sign of health."""
    is_read_only = HealthRepository.is_read_only

    def cut(repository: HealthRepository) -> bool:
        found = is_read_only(repository)
        proxy.stall()
        proxy.cut()
        return found

    monkeypatch.setattr(HealthRepository, "is_read_only", cut)
    found = HealthService(Database(settings_for(proxy.url)), time_limit_seconds=3).check()

    assert (found.ready, found.verdict) == (True, "degraded")
    assert status_of(found, "pgvector_extension") == "critical"
    assert {each.detail for each in found.checks[6:]} == {"not reached"}


def test_checks_for_which_no_time_is_left_are_unknown(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They answered nothing, and have not failed."""
    ping = HealthRepository.ping

    def pause(repository: HealthRepository) -> None:
        ping(repository)
        time.sleep(0.3)

    monkeypatch.setattr(HealthRepository, "ping", pause)
    found = HealthService(database, time_limit_seconds=0.25).check()
    time.sleep(0.2)

    assert status_of(found, "database") == "critical"
    assert {each.status for each in found.checks[2:]} == {"unknown"}
    assert not found.ready


def test_a_loop_goes_on_while_health_is_waited_for(stalled: Database) -> None:
    """The asyncio face waits in another thread."""

    async def check() -> tuple[Health, int]:
        waiting = asyncio.create_task(AsyncHealthService(stalled, time_limit_seconds=1.0).check())
        ticks = 0
        while not waiting.done():
            await asyncio.sleep(0.05)
            ticks += 1
        return await waiting, ticks

    found, ticks = asyncio.run(check())

    assert found.verdict == "not_ready"
    assert ticks > 10


def test_liveness_asks_nothing_of_the_database(stalled: Database) -> None:
    """A restart does not mend a database that is down."""
    found = HealthService(stalled).check_liveness()

    assert (found.verdict, [each.check for each in found.checks]) == ("healthy", ["pool"])
    assert found.duration_ms < 100


def test_a_pool_of_which_nothing_comes_back_is_not_live(database: Database) -> None:
    """A leak of units of work; a pool in use for a moment is a warning, and readiness is told."""
    settings = replace(
        database.settings, pool_size=1, max_overflow=0, pool_timeout_seconds=1,
        statement_timeout_ms=1000,
    )  # fmt: skip
    leaking = Database(settings)
    with leaking.unit_of_work() as work:
        work.session.connection()
        busy = HealthService(leaking).check_readiness()
        leaking._places._returned -= 100  # type: ignore[operator]
        stuck = HealthService(leaking).check_readiness()
    freed = HealthService(leaking).check_readiness()
    leaking.close()

    assert (status_of(busy, "pool"), busy.verdict) == ("warning", "healthy")
    assert (status_of(stuck, "pool"), stuck.verdict, stuck.ready) == ("critical", "not_live", False)
    assert "1 of 1 connections" in detail_of(stuck, "pool")
    assert [each.status for each in stuck.checks[1:]] == ["ok"] * len(READINESS)
    assert (status_of(freed, "pool"), freed.verdict) == ("ok", "healthy")


def test_a_database_without_the_schema_is_not_ready(empty: Database) -> None:
    """And what mends it is named."""
    found = HealthService(empty).check()

    assert (found.verdict, status_of(found, "schema")) == ("not_ready", "critical")
    assert found.checks[2].remedy == "pgcorpus db upgrade"


@pytest.mark.parametrize(
    ("revision", "status", "ready"), [("0008", "critical", False), ("9999", "warning", True)]
)
def test_a_schema_behind_is_not_ready_and_one_ahead_is(
    database: Database, revision: str, status: str, ready: bool
) -> None:
    """A deployment upgrades the database first, while the release before still serves."""
    run(database, "UPDATE pgcorpus_version SET version_num = :revision", revision=revision)

    found = HealthService(database).check_readiness()

    assert (status_of(found, "schema"), found.ready) == (status, ready)
    assert revision in detail_of(found, "schema")


def test_a_login_without_rights_is_not_ready(database: Database) -> None:
    """Of no group, it reads nothing."""
    with logged_in(database, None) as nobody:
        found = HealthService(nobody).check_readiness()

    assert (found.ready, status_of(found, "tables")) == (False, "critical")
    assert "and " in detail_of(found, "tables")


@pytest.mark.parametrize("group", ["rag_read_only", "rag_read_write", "rag_admin"])
def test_every_group_is_told_what_it_may_see(database: Database, group: Any) -> None:
    """The chain of seals is for administrators alone; all else is for all."""
    with logged_in(database, group) as own:
        found = HealthService(own).check()

    hidden = {each.check for each in found.checks if "may not see" in each.detail}
    assert found.verdict == "healthy"
    assert hidden == (set() if group == "rag_admin" else {"audit_chain"})


def test_a_read_only_database_serves_reads_alone(database: Database) -> None:
    """As a standby does."""
    url = database.url.update_query_dict({"options": "-c default_transaction_read_only=on"})
    reading = HealthService(Database(settings_for(url)))

    assert reading.check_readiness().ready
    writing = reading.check_readiness(writes=True)
    assert (writing.ready, status_of(writing, "writes")) == (False, "critical")


def test_an_embedded_server_that_is_stopped_stays_stopped(tmp_path: Path) -> None:
    """Health makes and starts nothing; where none was made, that is a fault of the settings."""
    tmp_path.chmod(0o755)
    server = EmbeddedServer(tmp_path / "home", settings={"fsync": "off"})
    away = HealthService(Database(Settings(home=server.home, environment="test")))
    with pytest.raises(SettingsError, match="no embedded server was made"):
        away.check()
    server.start()
    server.stop()
    try:
        found = away.check()
        running = server.status().running
    finally:
        server.destroy()

    assert (found.verdict, running) == ("not_ready", False)
    assert "pgcorpus server start" in detail_of(found, "database")


def test_a_vector_index_that_is_invalid_is_critical(database: Database, superuser: Engine) -> None:
    """Searches compare every vector without it."""
    with superuser.begin() as connection:
        connection.execute(
            text("UPDATE pg_index SET indisvalid = false"
                 " WHERE indexrelid = 'idx_embeddings_vector'::regclass")
        )  # fmt: skip

    found = HealthService(database).check()

    assert found.verdict == "degraded"
    assert found.ready
    assert status_of(found, "vector_index_health") == "critical"
    assert "knowledge has no usable index" in detail_of(found, "vector_index_health")
    assert status_of(found, "invalid_indexes") == "warning"
    assert "idx_embeddings_vector" in detail_of(found, "invalid_indexes")


def test_passages_without_vectors_and_vectors_of_former_texts_are_warnings(
    database: Database,
) -> None:
    """Both by the active model."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        documents = [factories.FrameworkDocumentFactory() for _ in range(2)]
        keys = [each.id for each in documents]
        work.models.use_model("knowledge", "hashing")
        work.commit()
    assert examine(database, "embedding_completeness").status == "WARNING"
    assert (
        "knowledge: Documents: 2, Embeddings: 0"
        in examine(database, "embedding_completeness").details
    )
    with database.unit_of_work() as work:
        vectors = np.eye(2, 384, dtype=np.float32)
        work.embeddings.store(KNOWLEDGE, "hashing", keys, vectors)
        work.commit()
    assert examine(database, "embedding_completeness").status == "HEALTHY"
    assert examine(database, "embedding_staleness").status == "HEALTHY"
    run(database, "UPDATE framework_documents SET content = content || ' anew' WHERE id = :id",
        id=keys[0])  # fmt: skip

    stale = examine(database, "embedding_staleness")
    assert stale.status == "WARNING"
    assert stale.details.endswith("have changed since: knowledge: 1 of 2")


@pytest.mark.parametrize(
    ("kind", "status", "hours", "grade"),
    [
        ("embed", "pending", 0.1, "HEALTHY"),
        ("embed", "pending", 0.5, "WARNING"),
        ("embed", "pending", 2, "CRITICAL"),
        ("maintenance", "pending", 2, "HEALTHY"),
        ("maintenance", "pending", 25, "WARNING"),
        ("embed", "failed", 0.1, "WARNING"),
    ],
)
def test_jobs_that_wait_for_long_or_have_failed_are_found(
    database: Database, kind: str, status: str, hours: float, grade: str
) -> None:
    """Texts wait for their vectors; that maintenance is late harms less."""
    run(
        database,
        "INSERT INTO jobs (kind, status, not_before, finished_at)"
        " VALUES (:kind, CAST(:status AS text), now() - make_interval(secs => :seconds),"
        " CASE CAST(:status AS text) WHEN 'failed' THEN now() END)",
        kind=kind, status=status, seconds=hours * 3600,
    )  # fmt: skip

    assert examine(database, "queue_age").status == grade


@pytest.mark.parametrize(
    ("age", "status", "grade"),
    [
        ("1 hour", "complete", "HEALTHY"),
        ("1 hour", "failed", "WARNING"),
        ("27 hours", "verified", "WARNING"),
        ("8 days", "complete", "CRITICAL"),
    ],
)
def test_the_age_of_the_last_good_backup_is_told(
    database: Database, age: str, status: str, grade: str
) -> None:
    """Of a log of backups, where there is one."""
    run(database, "DROP TABLE IF EXISTS backup_log CASCADE")
    assert examine(database, "last_backup").status == "UNKNOWN"
    run(database, "CREATE TABLE backup_log (started_at timestamptz, finished_at timestamptz,"
        " status text)")  # fmt: skip
    run(
        database,
        "INSERT INTO backup_log VALUES (now() - CAST(:age AS interval),"
        " now() - CAST(:age AS interval), :status)",
        age=age, status=status,
    )  # fmt: skip

    assert examine(database, "last_backup").status == grade


def test_a_seal_that_was_changed_breaks_the_chain(database: Database, superuser: Engine) -> None:
    """An administrator sees it; a service is told that it may not."""
    for name in ("one", "two", "three"):
        run(database, "INSERT INTO key_concepts (concept_name) VALUES (:name)", name=name)
        AuditService(database).seal()
    sealed = examine(database, "audit_chain")
    assert sealed.status == "HEALTHY"
    with superuser.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("UPDATE audit_seals SET sealed_by = 'nobody' WHERE number = 2"))

    broken = examine(database, "audit_chain")
    assert (broken.status, broken.details[:41]) == (
        "CRITICAL",
        "the chain of seals is broken at seal 2"[:41],
    )
    with logged_in(database, "rag_read_write") as service:
        assert examine(service, "audit_chain").status == "UNKNOWN"


def test_entries_that_nobody_seals_are_a_warning(database: Database, superuser: Engine) -> None:
    """A worker seals them every day."""
    run(database, "INSERT INTO key_concepts (concept_name) VALUES ('one')")
    assert examine(database, "audit_chain").status == "HEALTHY"
    with superuser.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(
            text("UPDATE security_audit_log SET timestamp = timestamp - interval '2 days'")
        )

    assert examine(database, "audit_chain").details.startswith("entries older than 26 h")


def test_a_role_whose_connections_are_used_up_is_critical(
    database: Database, superuser: Engine
) -> None:
    """A role may have a limit of its own, which is met before the server's."""
    with logged_in(database, "rag_read_write") as own, own.engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        with superuser.begin() as administrator:
            administrator.execute(text(f"ALTER ROLE {own.url.username} CONNECTION LIMIT 2"))
        found = HealthService(own).check()

    assert (status_of(found, "connections"), found.verdict) == ("critical", "degraded")
    assert "2 of 2 of the role" in detail_of(found, "connections")


def test_an_old_transaction_id_is_measured_by_the_settings_of_the_server(
    database: Database,
) -> None:
    """``vacuum_failsafe_age`` is where PostgreSQL itself gives up all else."""
    assert examine(database, "transaction_id_age").status == "HEALTHY"
    with database.unit_of_work() as work:
        work.session.execute(text("SET LOCAL vacuum_failsafe_age = 0"))
        assert work.health.examine("transaction_id_age").status == "CRITICAL"


@pytest.mark.parametrize(
    ("version", "grade"),
    [("0.7.4", "CRITICAL"), ("0.8.3", "WARNING"), ("0.8.4", "HEALTHY"), ("0.10.0", "HEALTHY")],
)
def test_a_pgvector_that_damages_indexes_is_told(
    database: Database, superuser: Engine, version: str, grade: str
) -> None:
    """Before 0.8.4 a VACUUM could."""
    with superuser.begin() as connection:
        connection.execute(
            text("UPDATE pg_extension SET extversion = :version WHERE extname = 'vector'"),
            {"version": version},
        )

    assert examine(database, "pgvector_extension").status == grade


@pytest.mark.parametrize(("gb", "status"), [(1_000_000, "ok"), (1, "critical")])
def test_a_disk_whose_size_is_known_is_compared(
    database: Database, monkeypatch: pytest.MonkeyPatch, gb: int, status: str
) -> None:
    """Of another's server only the settings know the size; here a GB is very small."""
    monkeypatch.setattr("pgcorpus.services.ops.health.BYTES_OF_GB", 1_000_000)
    sized = Database(replace(database.settings, disk_gb=gb))

    found = HealthService(sized).check()

    assert (status_of(found, "disk"), detail_of(found, "disk")[:8]) == (status, "the data")
    assert found.verdict == ("healthy" if status == "ok" else "degraded")


def test_a_time_limit_out_of_range_is_refused(database: Database) -> None:
    """It bounds the answer, and must leave time for one."""
    with pytest.raises(InvalidValue, match=r"0\.1 to 60"):
        HealthService(database, time_limit_seconds=0)
