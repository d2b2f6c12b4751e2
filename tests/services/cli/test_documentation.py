"""The commands that bring an old SQLite file in, and write one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pgcorpus.db.engine import Database
from tests.command import run_command
from tests.pooler import variables_of
from tests.services.documentation.sqlite.library import make_library


@pytest.fixture
def environment(database: Database) -> dict[str, str]:
    """Variables of a command."""
    return {"PATH": os.defpath, "COLUMNS": "200"} | variables_of(database.settings)


def test_a_file_goes_in_and_out(environment: dict[str, str], tmp_path: Path) -> None:
    """With what it held in the report, for people and for scripts."""
    make_library(tmp_path / "old.db", "full")
    import_ = ("import", "documentation", "old.db", "--collection", "old")
    export = ("export", "documentation", "new.db", "--collection", "old")

    told = run_command(environment, tmp_path, *import_, "--time-zone", "Europe/Vienna")
    again = run_command(environment, tmp_path, *import_, "--json")
    written = run_command(environment, tmp_path, *export)
    refused = run_command(environment, tmp_path, *export)
    replaced = run_command(environment, tmp_path, *export, "--replace", "--json")

    assert told.returncode == 0, told.stderr
    assert "new clicks: 5; new sessions of searches: 2" in told.stderr + told.stdout
    report = json.loads(again.stdout)
    assert (report["unchanged"], report["added"]) == (5, 0)
    counts = "5 documents, 5 chunks, 4 vectors, 5 clicks, 2 sessions"
    assert f"exported {counts} to new.db" in written.stderr
    assert (refused.returncode, "--replace" in refused.stderr) == (2, True)
    assert json.loads(replaced.stdout) == {
        "file": "new.db",
        "documents": 5,
        "chunks": 5,
        "vectors": 4,
        "clicks": 5,
        "sessions": 2,
    }


def test_a_collection_without_documents_is_told(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """And no file is made; nor for a time zone that does not exist."""
    done = run_command(environment, tmp_path, "export", "documentation", "a.db")
    zone = ("import", "documentation", "a.db", "--time-zone", "Mars")
    wrong = run_command(environment, tmp_path, *zone)

    assert (done.returncode, wrong.returncode) == (1, 2)
    assert "there is no document in the collection 'default'" in done.stderr
    assert "there is no time zone 'Mars'" in wrong.stderr
    assert list(tmp_path.iterdir()) == []
