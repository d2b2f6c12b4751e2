"""Commands whose modules are imported when they are run."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

import pytest

from pgcorpus.services.cli.lazy import LazyCommand
from pgcorpus.services.cli.main import COMMANDS

HEAVY: Final = [
    "alembic",
    "chromadb",
    "numpy",
    "openai",
    "pg0",
    "pgcorpus.db",
    "pgcorpus.services.search",
    "pgvector",
    "psycopg",
    "py3langid",
    "pydantic",
    "sqlalchemy",
]
"""Packages that take most of a second to import; no help text needs them."""

PRINT_IMPORTED = f"""
import sys
from pgcorpus.services.cli import main
try:
    main()
finally:
    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), (), ("--version",)])
def test_the_list_of_commands_needs_none_of_them(arguments: tuple[str, ...]) -> None:
    """The answer takes a third of a second of CPU instead of more than one."""
    done = subprocess.run(
        [sys.executable, "-c", PRINT_IMPORTED, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.stderr.splitlines()[-1] == "[]"
    assert "pgcorpus" in done.stdout


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_summary_is_the_first_paragraph_of_the_help(command: LazyCommand) -> None:
    """The list of commands and the command's own help say the same."""
    loaded = command.load()

    assert loaded.name == command.name
    assert " ".join(loaded.help.split("\n\n")[0].split()) == command.help
