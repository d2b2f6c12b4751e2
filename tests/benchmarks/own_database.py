"""A database on a server of its own, for the benchmarks of imports."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.migrations import upgrade
from tests.conftest import Databases


@contextmanager
def open_own_database(name: str) -> Iterator[tuple[Database, Path]]:
    """Provide a migrated database and a folder for files; both are gone afterwards.

    Args:
        name: Of the benchmark.
    """
    home = Path(tempfile.mkdtemp(prefix=f"pgcorpus-{name}-"))
    home.chmod(0o755)  # PostgreSQL runs as another account when this runs as root
    server = EmbeddedServer(home / "server")
    try:
        server.start()
        databases = Databases(server.url.set(database="postgres"))
        with databases.opened() as database:
            upgrade(database)
            yield database, home
        databases.close()
    finally:
        server.destroy()
        shutil.rmtree(home)


def print_found(found: Mapping[str, Any]) -> None:
    """Print what was found as JSON, and how busy the machine was."""
    print(json.dumps({**found, "load_average": os.getloadavg()[0]}, indent=2))  # noqa: T201
