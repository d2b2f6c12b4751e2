"""``pgcorpus backup`` as it is typed, and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from sqlalchemy import select, text

from pgcorpus.db.engine import Database
from pgcorpus.db.models.operations import BackupLog
from tests.command import PGCORPUS, run_command
from tests.tenancy import settled

pytestmark = pytest.mark.direct("commands are given the address of the server")

KEY = "a key of more than 32 characters for tests"


@pytest.fixture
def environment(
    database: Database, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[dict[str, str]]:
    """The variables of an operator: the owner's login, and programs that fit the server."""
    with settled(database):
        found = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "DATABASE_URL": database.url.render_as_string(hide_password=False),
            "BACKUP_DIR": str(tmp_path / "backups"),
            "COLUMNS": "80",
        }
        if not os.environ.get("PROVE_DATABASE_URL"):
            found["PGCORPUS_PROGRAMS"] = str(request.getfixturevalue("server").bin)
        yield found


def statuses(database: Database) -> list[str]:
    """The status of each backup in the log."""
    with database.unit_of_work() as work:
        return list(work.session.scalars(select(BackupLog.status).order_by(BackupLog.id)))


def test_a_backup_is_made_encrypted_listed_and_pruned(
    environment: Mapping[str, str], tmp_path: Path
) -> None:
    """Results are on stdout, and the key is in no output."""
    with_key = {**environment, "BACKUP_KEY": KEY}
    made = run_command(with_key, tmp_path, "backup", "create", "--json")
    assert made.returncode == 0, made.stderr
    found = json.loads(made.stdout)
    assert found["encrypted"]
    listed = run_command(environment, tmp_path, "backup", "list")
    assert listed.returncode == 0, listed.stderr
    assert found["name"] in listed.stdout
    assert max(map(len, listed.stdout.splitlines())) <= 80
    refused = run_command(environment, tmp_path, "backup", "restore", "latest", "--into", "any")
    assert refused.returncode != 0
    assert "BACKUP_KEY" in refused.stderr
    pruned = run_command(with_key, tmp_path, "backup", "prune", "--days", "1", "--yes", "--json")
    assert json.loads(pruned.stdout) == {"deleted": [], "dry_run": False}
    for each in (made, listed, refused, pruned):
        assert KEY not in each.stdout + each.stderr
        assert "Traceback" not in each.stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_backup_that_is_stopped_leaves_nothing_that_looks_complete(
    environment: Mapping[str, str], database: Database, tmp_path: Path, how: signal.Signals
) -> None:
    """Neither a folder with a manifest, nor the role of backups lent for longer than it must be."""
    folder = tmp_path / "backups"
    with database.engine.begin() as connection:  # whose dump takes some seconds
        connection.execute(
            text("""
                CREATE TABLE slow AS
                SELECT (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 40)
                        WHERE n > 0) AS x
                FROM generate_series(1, 40000) AS n
            """)
        )
    process = subprocess.Popen(
        [PGCORPUS, "backup", "create"],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _wait_for(lambda: any(folder.glob(".unfinished-*/database.dump")))
        shown = subprocess.run(
            ["/bin/ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True
        ).stdout
        dumping = [line for line in shown.splitlines() if "pg_dump" in line]
        assert any("--format=custom" in line for line in dumping)
        assert not any(str(database.url.password) in line for line in dumping)
        process.send_signal(how)
        _, complaint = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0
    assert "Traceback" not in complaint
    assert not list(folder.glob("pgcorpus_*"))
    if how is not signal.SIGKILL:
        assert list(folder.iterdir()) == []
        assert statuses(database) == ["failed"]
    again = run_command(environment, tmp_path, "backup", "create", "--json")
    assert again.returncode == 0, again.stderr
    assert [path.name for path in folder.iterdir()] == [json.loads(again.stdout)["name"]]
    assert statuses(database) == ["failed", "complete"]


def test_programs_that_are_older_than_the_server_are_refused(
    environment: Mapping[str, str], tmp_path: Path
) -> None:
    """The message says where newer ones come from."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("pg_dump", "pg_restore"):
        script = programs / name
        script.write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) 9.6.24'\n")
        script.chmod(0o755)
    old = {**environment, "PGCORPUS_PROGRAMS": str(programs)}
    refused = run_command(old, tmp_path, "backup", "create")
    assert refused.returncode == 1
    assert "postgresql-client-" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert list((tmp_path / "backups").iterdir()) == []


def test_wrong_use_is_told(environment: Mapping[str, str], tmp_path: Path) -> None:
    """In a sentence, with an exit code."""
    for arguments, code, said in (
        (("list", "--json"), 0, ""),
        (("verify",), 1, "pgcorpus backup create"),
        (("restore", "nothing"), 1, "there is no backup"),
        (("restore", "/etc"), 1, "no complete backup"),
        (("create", "--questions", "missing.txt"), 2, "missing.txt"),
        (("prune", "--days", "0"), 2, "--days"),
    ):
        done = run_command(environment, tmp_path, "backup", *arguments)
        assert done.returncode == code, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def _wait_for(happened: object, seconds: float = 60) -> None:
    """Wait until a function says that something happened."""
    assert callable(happened)
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
