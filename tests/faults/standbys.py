"""Real servers in pairs: a primary with the samples of every corpus, and standbys that stream."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import URL

from pgcorpus.db.choices import Group
from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.migrations import upgrade
from pgcorpus.db.scope import Scope
from pgcorpus.db.settings import Settings
from pgcorpus.services import samples
from pgcorpus.services.chat.importing.importer import ChatImporter
from pgcorpus.services.jobs.worker import Worker
from pgcorpus.services.knowledge.importer import KnowledgeImporter
from pgcorpus.services.memory.importing.importer import MemoryImporter
from tests.conftest import settings_for
from tests.faults.servers import ask, home_of

CORPORA = ("knowledge", "chat", "memory", "episodes")
LOGINS: Mapping[str, Group] = {
    "app": "rag_read_write",
    "reader": "rag_read_only",
    "keeper": "rag_admin",
}
PASSWORD = "invented"

KEPT_LOG = {"wal_keep_size": "512MB"}
"""Setting of a primary: a base backup begins with a checkpoint, which would remove what a slow
standby still needs."""


@dataclass(frozen=True)
class Pair:
    """A primary with the samples of every corpus, and a standby that follows it.

    Attributes:
        primary: The one server.
        standby: The other.
        scope: The tenant whose memories there are.
    """

    primary: EmbeddedServer
    standby: EmbeddedServer
    scope: Scope

    def follow(self) -> None:
        """Wait until the standby has all that the primary has."""
        follow(self.primary, self.standby)

    @contextmanager
    def opened(self, server: EmbeddedServer, login: str | None = None) -> Iterator[Database]:
        """The database of one of the two, for a login or the owner of the tables."""
        database = Database(settings_for(address(server, login)))
        database.on_wait = pytest.fail
        try:
            yield database
        finally:
            database.close()

    def errors(self) -> int:
        """Count the errors in the standby's log."""
        return self.standby.status().log.read_text().count("ERROR:")


def address(server: EmbeddedServer, login: str | None = None) -> URL:
    """Return the address of the samples, for a login or the owner of the tables."""
    return server.url if login is None else server.url.set(username=login, password=PASSWORD)


def follow(primary: EmbeddedServer, standby: EmbeddedServer) -> None:
    """Wait until a standby has all that its primary has."""
    # A commit writes all that came before it, which a VACUUM leaves to others for seconds.
    ask(primary, "SELECT pg_logical_emit_message(true, 'tests', 'a commit')")
    written = ask(primary, "SELECT CAST(pg_current_wal_lsn() AS text)")
    deadline = time.monotonic() + 60
    while not ask(standby, "SELECT pg_last_wal_replay_lsn() >= CAST(:lsn AS pg_lsn)", lsn=written):
        assert time.monotonic() < deadline, standby.status().log.read_text()[-1000:]
        time.sleep(0.02)


@contextmanager
def standby_of(primary: EmbeddedServer, **settings: str) -> Iterator[EmbeddedServer]:
    """A streaming standby of a server, up to date."""
    with home_of(primary, **KEPT_LOG | settings) as standby:
        shutil.copy(primary._password, standby._password)
        standby._data.mkdir(mode=0o700)
        standby._give(standby._data)
        source = primary.url.set(drivername="postgresql", database="postgres")
        # fmt: off
        primary._run(
            primary.bin / "pg_basebackup", "--pgdata", standby._data, "--write-recovery-conf",
            "--dbname", source.render_as_string(hide_password=False),
            "--checkpoint=fast", "--no-sync",
            home=primary._files,
        )
        # fmt: on
        standby.start()
        follow(primary, standby)
        yield standby


def fill(database: Database) -> Scope:
    """Import the samples of every corpus, with their vectors; return whose the memories are."""
    upgrade(database)
    with database.unit_of_work() as work:
        scope = Scope.tenant(work.tenancy.create_tenant("Ours").id)
        for corpus in CORPORA:
            work.models.use_model(corpus, "hashing")
        for name, group in LOGINS.items():
            work.roles.create_login(name, group, PASSWORD)
        work.commit()
    KnowledgeImporter(database).run([samples.folder("knowledge")])
    ChatImporter(database).run([samples.folder("chat")])
    MemoryImporter(database, scope).run([samples.folder("memory")])
    report = Worker(database).run(once=True)
    assert report.counts.keys() == {"completed"}
    return scope


def kill(server: EmbeddedServer) -> None:
    """End every process of a server as a failing machine does."""
    pid = server.status().pid
    assert pid is not None, "the server does not run"
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for each in (pid, *map(int, children)):
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def promote(server: EmbeddedServer) -> None:
    """Make a standby the primary, and wait until it is."""
    assert ask(server, "SELECT pg_promote()")


def either(*servers: EmbeddedServer, login: str | None = None) -> URL:
    """Return one address of several servers, which leads to the one that takes writes."""
    hosts = ",".join(f"{url.host}:{url.port}" for url in map(address, servers))
    given = address(servers[0], login)
    written = (
        f"postgresql://{given.username}:{given.password}@{hosts}/{given.database}"
        "?target_session_attrs=read-write"
    )
    url = Settings.from_env({"DATABASE_URL": written}).database_url
    assert url is not None
    return url


def remove_rows(primary: EmbeddedServer, standby: EmbeddedServer) -> None:
    """Remove rows of a primary for good, which its standby does too as soon as it may."""
    ask(
        primary,
        "INSERT INTO query_performance_log (query_type, corpus, duration, hits, degraded)"
        " VALUES ('gone', 'chat', 1, 1, false)",
    )
    ask(primary, "DELETE FROM query_performance_log WHERE query_type = 'gone'")
    ask(primary, "VACUUM query_performance_log")
    follow(primary, standby)
