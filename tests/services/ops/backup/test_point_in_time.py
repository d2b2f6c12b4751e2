"""Recovery to a moment before an accident, from a base backup and the archived WAL.

What is run here is what docs/how-to/recover-to-a-point-in-time.md says.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import select

from pgcorpus.db import migrations
from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.models.knowledge import FrameworkDocument
from pgcorpus.services.search.service import SearchService
from tests import factories
from tests.conftest import settings_for
from tests.faults.servers import ask, home_of

pytestmark = pytest.mark.direct("a pooler stands before one server, and these are two others")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """A stack that is closed at the end."""
    with ExitStack() as stack:
        yield stack


def write(server: EmbeddedServer, title: str) -> None:
    """Write a passage, and commit."""
    database = Database(settings_for(server.url))
    with database.unit_of_work() as work:
        factories.bind(work.session)
        factories.FrameworkDocumentFactory(title=title, content=f"{title}, told at length.")
        work.commit()
    database.close()


def archive_wal(server: EmbeddedServer) -> None:
    """Switch to a new file of WAL, and wait until the one before is in the archive."""
    written = ask(server, "SELECT pg_walfile_name(pg_switch_wal())")
    deadline = time.monotonic() + 60
    while (ask(server, "SELECT last_archived_wal FROM pg_stat_archiver") or "") < written:
        assert time.monotonic() < deadline, "nothing was archived"
        time.sleep(0.1)


@pytest.mark.parametrize("target", ["recovery_target_time", "recovery_target_name"])
def test_a_database_is_recovered_to_the_moment_before_an_accident(
    server: EmbeddedServer, stack: ExitStack, target: str
) -> None:
    """Rows that were committed before are there, the accident is not, and searches work."""
    archiving = stack.enter_context(home_of(server))
    archive = archiving.home / "archive"
    archive.mkdir()
    archive.chmod(0o777)  # the server runs as another account
    archiving.settings |= {
        "archive_mode": "on",
        "archive_command": f"test ! -f {archive}/%f && cp %p {archive}/%f",
    }
    archiving.start()
    database = Database(settings_for(archiving.url))
    migrations.upgrade(database)
    database.close()
    write(archiving, "Kettle before")

    recovered = stack.enter_context(home_of(server))
    shutil.copy(archiving._password, recovered._password)
    recovered._data.mkdir(mode=0o700)
    recovered._give(recovered._data)
    source = archiving.url.set(drivername="postgresql", database="postgres")
    # fmt: off
    archiving._run(
        archiving.bin / "pg_basebackup", "--pgdata", recovered._data, "--checkpoint=fast",
        "--dbname", source.render_as_string(hide_password=False), "--no-sync",
        home=archiving._files,
    )
    # fmt: on

    write(archiving, "Lantern after")
    moment = ask(archiving, "SELECT CAST(clock_timestamp() AS text)")
    ask(archiving, "SELECT pg_create_restore_point('before the accident')")
    time.sleep(0.1)
    ask(archiving, "DELETE FROM framework_documents")
    write(archiving, "Anvil too late")
    archive_wal(archiving)
    archiving._halt(archiving.bin, archiving._data, "immediate")  # as if its machine were gone

    signal_file = recovered._data / "recovery.signal"
    signal_file.write_text("")
    recovered._give(signal_file)
    recovered.settings |= {
        "restore_command": f"cp {archive}/%f %p",
        target: moment if target.endswith("time") else "before the accident",
        "recovery_target_action": "promote",
    }
    recovered.start()
    deadline = time.monotonic() + 60
    while ask(recovered, "SELECT pg_is_in_recovery()"):
        assert time.monotonic() < deadline, "the recovery does not end"
        time.sleep(0.1)

    database = Database(settings_for(recovered.url))
    stack.callback(database.close)
    with database.unit_of_work() as work:
        titles = set(work.session.scalars(select(FrameworkDocument.title)))
    assert titles == {"Kettle before", "Lantern after"}
    assert migrations.drift(database) == []
    page = SearchService(database).search("lantern", corpus="knowledge", mode="text")
    assert page.hits[0].title == "Lantern after"
