"""Commands whose modules are imported when they are run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from pgcorpus.db.search.corpora import get_corpus
from pgcorpus.services import choices
from pgcorpus.services.cli.lazy import LazyCommand
from pgcorpus.services.cli.main import COMMANDS
from pgcorpus.services.corpora import SERVICES
from pgcorpus.services.corpus import CorpusServices
from pgcorpus.services.evaluation import loading
from tests.command import run_command

HEAVY: Final = [
    "alembic",
    "chromadb",
    "dotenv",
    "lxml",
    "numpy",
    "openai",
    "pg0",
    "pgcorpus.db.engine",
    "pgcorpus.db.errors",
    "pgvector",
    "psycopg",
    "py3langid",
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

ANSWER_ALL = f"""
import json, sys
from typer.main import get_command
from pgcorpus.services.cli.lazy import LazyCommand
from pgcorpus.services.cli.main import app
from pgcorpus.services.cli.misuse import Misused, describe_misuse

def list_paths(command, path=()):
    command = command.load() if isinstance(command, LazyCommand) else command
    yield path
    for name, each in getattr(command, "commands", {{}}).items():
        yield from list_paths(each, (*path, name))

answered = {{}}
for path in list_paths(get_command(app)):
    get_command(app).main([*path, "--help"], standalone_mode=False)
    try:
        get_command(app).main([*path, "--nosuch"], standalone_mode=False)
    except Misused as error:
        said = list(describe_misuse(error))
    answered[" ".join(path)] = [said[0], [name for name in {HEAVY} if name in sys.modules]]
json.dump(answered, sys.stderr)
"""


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process that has imported nothing yet."""
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), (), ("--version",)])
def test_the_list_of_commands_needs_none_of_them(arguments: tuple[str, ...]) -> None:
    """The answer takes a tenth of a second of CPU instead of a whole one."""
    done = run(PRINT_IMPORTED, *arguments)

    assert done.stderr.splitlines()[-1] == "[]"
    assert "pgcorpus" in done.stdout


def test_neither_help_nor_misuse_of_any_command_needs_them() -> None:
    """Each takes a quarter of a second of CPU: a command imports what it needs when it works."""
    done = run(ANSWER_ALL)

    assert done.returncode == 0, done.stderr
    answered = json.loads(done.stderr)
    assert {"", "search", "import knowledge", "memory remember", "db upgrade"} <= answered.keys()
    assert {name: found for name, (_, found) in answered.items() if found} == {}
    assert all("--nosuch" in said for said, _ in answered.values())


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("pgcorpus mem", ["memory"]),
        ("pgcorpus search --mod", ["--mode"]),
        ("pgcorpus search --mode h", ["hybrid"]),
        ("pgcorpus import retry --corpus k", ["knowledge"]),
    ],
)
def test_a_shell_completes_commands_options_and_values(
    words: str, completed: list[str], tmp_path: Path
) -> None:
    """As the function asks that ``pgcorpus --install-completion`` gives to bash."""
    asked = {"_PGCORPUS_COMPLETE": "complete_bash", "COMP_WORDS": words}
    environment = {"PATH": os.environ["PATH"], "COMP_CWORD": str(words.count(" "))} | asked

    assert run_command(environment, tmp_path).stdout.split() == completed


def test_what_is_wrong_in_the_environment_hides_no_help(tmp_path: Path) -> None:
    """The settings are read when a command works, and an error of one is told then."""
    environment = {"PATH": os.environ["PATH"], "DB_POOL_SIZE": "many"}

    helped = run_command(environment, tmp_path, "search", "--help")
    refused = run_command(environment, tmp_path, "search", "price")

    assert (helped.returncode, refused.returncode) == (0, 2)
    assert "DB_POOL_SIZE" in refused.stderr


def test_the_loadings_of_an_evaluation_are_those_that_help_lists() -> None:
    """Help names them without importing what loads."""
    assert sorted(loading.LOADINGS) == list(choices.LOADINGS)


@pytest.mark.parametrize("services", SERVICES.values(), ids=SERVICES)
def test_the_services_of_a_corpus_know_whether_it_has_scopes(services: CorpusServices) -> None:
    """They say it themselves: options are made from it without importing the corpus."""
    corpus = get_corpus(services.name)
    scoping = "none" if corpus.scope is None else "required" if corpus.needs_scope else "optional"

    assert services.scoping == scoping


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_summary_is_the_first_paragraph_of_the_help(command: LazyCommand) -> None:
    """The list of commands and the command's own help say the same."""
    loaded = command.load()

    assert loaded.name == command.name
    assert " ".join(loaded.help.split("\n\n")[0].split()) == command.help
