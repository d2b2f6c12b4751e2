"""Servers of a test's own: crowded, filled, killed, or with another clock."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text

from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.migrations import upgrade
from tests.conftest import settings_for

SMALL = {"fsync": "off", "shared_buffers": "32MB", "max_connections": "40"}
"""Settings of a server that little is asked of."""

LITTLE_LOG = {"max_wal_size": "32MB", "min_wal_size": "32MB"}


@contextmanager
def home_of(programs: EmbeddedServer, **settings: str) -> Iterator[EmbeddedServer]:
    """A server that shares the files of another's programs, and is gone at the end."""
    home = Path(tempfile.mkdtemp(prefix="pgcorpus-faults-"))
    home.chmod(0o755)  # PostgreSQL runs as another account when the tests run as root
    server = EmbeddedServer(home, settings=SMALL | settings)
    shutil.copytree(programs._programs, server._programs, symlinks=True, copy_function=os.link)
    try:
        yield server
    finally:
        server.destroy()
        shutil.rmtree(home, ignore_errors=True)  # of a server that never was started


@contextmanager
def server_of(programs: EmbeddedServer, **settings: str) -> Iterator[EmbeddedServer]:
    """Start a server with the newest schema. It has the programs of another, and ends here."""
    with home_of(programs, **LITTLE_LOG | settings) as server:
        database = Database(settings_for(server.start()))
        upgrade(database)
        database.close()
        yield server


def ask(server: EmbeddedServer, statement: str, **values: Any) -> Any:
    """The one value of a statement, which is outside of any transaction."""
    engine = create_engine(server.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        result = connection.execute(text(statement), values)
        value = result.scalar() if result.returns_rows else None
    engine.dispose()
    return value
