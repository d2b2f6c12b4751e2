"""A clock that goes back: of the server, as its time service corrects it, and of an application."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text

from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.search.corpora import CHAT
from pgcorpus.services.audit import AuditService
from pgcorpus.services.jobs.worker import Worker
from pgcorpus.services.ops.backup import create as making
from pgcorpus.services.ops.backup.store import Store
from pgcorpus.services.ops.health import HealthService
from pgcorpus.services.search.service import SearchService
from tests.conftest import settings_for
from tests.faults.servers import server_of

pytestmark = pytest.mark.direct("workers are started on the server itself")

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
DAYS_AHEAD = 40
"""Far enough for another month of the audit log, and for retention."""

Record = Callable[[str, object], None]

SHIFT = f"""
    SET LOCAL session_replication_role = replica;
    UPDATE jobs SET not_before = not_before + interval '{DAYS_AHEAD} days',
        lease_expires_at = lease_expires_at + interval '{DAYS_AHEAD} days',
        created_at = created_at + interval '{DAYS_AHEAD} days',
        updated_at = updated_at + interval '{DAYS_AHEAD} days';
    UPDATE security_audit_log SET timestamp = timestamp + interval '{DAYS_AHEAD} days';
    UPDATE conversations SET created_at = created_at + interval '{DAYS_AHEAD} days',
        updated_at = updated_at + interval '{DAYS_AHEAD} days';
    UPDATE messages SET created_at = created_at + interval '{DAYS_AHEAD} days'
"""  # noqa: S608 - a number of this module


@dataclass(frozen=True)
class Clock:
    """A server's clock, which is ahead at first.

    Attributes:
        database: The server's database.
        step_back: Sets the clock back; at once.
    """

    database: Database
    step_back: Callable[[], None]


@pytest.fixture(params=["rows", "server"])
def clock(request: pytest.FixtureRequest) -> Iterator[Clock]:
    """The clock of a real server; and rows that are dated as by one, for where none can be set."""
    if request.param == "rows":
        database: Database = request.getfixturevalue("database")
        yield Clock(database, partial(date_rows, database))
        return
    if FAKETIME is None:
        pytest.skip("libfaketime is not installed; on Debian: apt-get install faketime")
    with server_of(request.getfixturevalue("server")) as server, fake_time(server) as step_back:
        database = Database(settings_for(server.url))
        yield Clock(database, step_back)
        database.close()


def date_rows(database: Database) -> None:
    """Date the rows that there are as by a clock that was ahead."""
    with database.engine.begin() as connection:
        for statement in SHIFT.split(";"):
            connection.execute(text(statement))


@contextmanager
def fake_time(server: EmbeddedServer) -> Iterator[Callable[[], None]]:
    """Start the server anew with a clock that is read from a file."""
    server.stop()
    time_file = server.home / "time"
    time_file.write_text(f"+{DAYS_AHEAD}d")
    postgres = server.bin / "postgres"
    postgres.rename(server.bin / "postgres.real")  # a link of its own: the others keep theirs
    postgres.write_text(
        "#!/bin/bash\n"
        f"export LD_PRELOAD={FAKETIME} FAKETIME_TIMESTAMP_FILE={time_file} FAKETIME_NO_CACHE=1\n"
        "export DONT_FAKE_MONOTONIC=1 FAKETIME_DONT_FAKE_MONOTONIC=1 FAKETIME_DISABLE_SHM=1\n"
        f'exec -a "$0" {server.bin}/postgres.real "$@"\n'
    )
    postgres.chmod(0o755)
    server.start()

    def step_back() -> None:
        time_file.write_text("+0")

    yield step_back


def write(database: Database, content: str) -> UUID:
    """Write a conversation of one message, committed."""
    with database.unit_of_work() as work:
        talk = work.chat.create("a talk").id
        work.chat.append(talk, role="user", content=content)
        work.commit()
    return talk


def read_now(database: Database) -> datetime:
    """Read the server's clock."""
    with database.engine.connect() as connection:
        now = connection.scalar(text("SELECT clock_timestamp()"))
    assert isinstance(now, datetime)
    return now


@pytest.mark.superuser  # dates rows past the triggers that date them
def test_a_clock_of_the_server_that_goes_back_stops_nothing(
    clock: Clock, record_property: Record, caplog: pytest.LogCaptureFixture
) -> None:
    """Jobs, leases of the dead, the chain of seals, health and searches go on at once."""
    caplog.set_level(logging.INFO, "pgcorpus")
    database = clock.database
    with database.unit_of_work() as work:
        work.models.use_model("chat", "hashing")
        work.commit()
    write(database, "A plan in the hands of a worker that died")
    with database.unit_of_work() as work:
        taken = work.jobs.claim(
            "embed", worker_id="dead", limit=9, lease_seconds=60, corpus=CHAT.name
        )
        work.commit()
    write(database, "A plan that was written while the clock was ahead")
    ahead = read_now(database)
    clock.step_back()
    assert len(taken) == 1
    assert abs(read_now(database) - datetime.now(UTC)) < timedelta(hours=1)
    if ahead > datetime.now(UTC) + timedelta(days=1):
        record_property("step", str(ahead - read_now(database)))
    audit = AuditService(database)
    audit.seal()
    write(database, "A plan from after")

    began = time.monotonic()
    report = Worker(database, kinds=["embed"]).run(once=True)
    record_property("recovery_seconds", time.monotonic() - began)

    # The lease of the dead worker ends as it would have, at most a minute later.
    assert report.counts == {"completed": 2}
    assert re.search(r"the server's clock was set back: \d jobs were moved with it", caplog.text)
    with database.engine.begin() as connection:
        left = connection.scalar(
            text("SELECT lease_expires_at - now() FROM jobs WHERE status = 'running'")
        )
        assert timedelta(0) < left <= timedelta(seconds=60)
        connection.execute(
            text(
                "UPDATE jobs SET lease_expires_at = now() - interval '1 s' WHERE status = 'running'"
            )
        )  # the minute is over
    assert Worker(database, kinds=["embed"]).run(once=True).counts == {"completed": 1}
    audit.seal()
    found = audit.verify()
    assert (found.intact, found.unsealed) == (True, 0)
    audit.maintain()  # a partition for the month that was written ahead
    assert audit.verify().intact
    page = SearchService(database).search("plan", corpus="chat", mode="text")
    assert len(page.hits) == 3
    health = HealthService(database).check()
    assert {each.check for each in health.checks if each.status == "critical"} <= {"last_backup"}


def test_a_backup_by_a_clock_that_went_back_deletes_none(
    database: Database,
    server: EmbeddedServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The application's clock names backups and tells their age; a younger one is no older one."""
    own = Database(replace(database.settings, programs=server.bin))
    store = Store(tmp_path, None)
    made = []
    for moment in (datetime(2027, 1, 10, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)):
        monkeypatch.setattr(making, "datetime", StoppedClock(moment))
        made.append(making.create(own, store, no_progress))
    own.close()

    assert [each.name for each in store.list_backups()] == [made[1].name, made[0].name]
    assert store.list_old(30, datetime(2026, 12, 1, tzinfo=UTC), no_progress) == []


class StoppedClock:
    """Stands for ``datetime`` where only the present moment is asked for.

    Args:
        moment: The answer.
    """

    def __init__(self, moment: datetime) -> None:
        self._moment = moment

    def now(self, _zone: tzinfo) -> datetime:
        """Return the moment."""
        return self._moment


def no_progress(_stage: str, _done: int, _total: int | None) -> None:
    """Show no progress."""
