"""The tests of docs/how-to/test-your-service.md pass in a project that has nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from sqlalchemy import URL, create_engine, text

from tests.docs.pages import list_blocks


def test_the_tests_of_the_page_pass(administrator: URL, tmp_path: Path) -> None:
    """On the server of these tests: no database and no login of theirs is left."""
    for code in list_blocks("how-to/test-your-service.md", "python"):
        name = re.match(r"# (\S+)\n", code)
        assert name is not None
        (tmp_path / name[1]).write_text(code)
    before = list_databases_and_logins(administrator)

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:randomly"],
        cwd=tmp_path,
        env=os.environ | {"TEST_DATABASE_URL": administrator.render_as_string(hide_password=False)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert "4 passed" in done.stdout, done.stdout + done.stderr
    assert list_databases_and_logins(administrator) == before


def list_databases_and_logins(administrator: URL) -> list[str]:
    """Name what the tests of the page make on a server."""
    engine = create_engine(administrator)
    with engine.connect() as connection:
        found = connection.scalars(
            text(
                "SELECT datname::text FROM pg_database UNION ALL"
                " SELECT rolname::text FROM pg_roles WHERE rolname LIKE 'service\\_%' ORDER BY 1"
            )
        )
        names = list(found)
    engine.dispose()
    return names
