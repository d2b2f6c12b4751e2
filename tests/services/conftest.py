"""Fixtures that the tests of services share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from pgcorpus.db.engine import Database
from tests.command import Command, run_command
from tests.pooler import variables_of


@pytest.fixture
def variables(database: Database) -> Mapping[str, str]:
    """The environment of the command: a wide terminal, and a database of the test's own."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME"}}
    return kept | variables_of(database.settings) | {"COLUMNS": "200"}


@pytest.fixture
def pgcorpus(variables: Mapping[str, str], tmp_path: Path) -> Command:
    """Runs the installed command; keywords are further variables of its environment."""

    def run(*arguments: str | bytes, **more: str) -> subprocess.CompletedProcess[str]:
        return run_command({**variables, **more}, tmp_path, *arguments)

    return run
