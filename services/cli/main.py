"""The command: its parts together, and the exit codes of their errors."""

from __future__ import annotations

import errno
import io
import os
import sys
from importlib.metadata import version
from itertools import chain, repeat
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup
from typer.main import get_command

from pgcorpus.services.cli.lazy import LazyCommand
from pgcorpus.services.cli.misuse import Misused, describe_misuse
from pgcorpus.services.cli.output import fail, put, say

FAILED = 1
USED_WRONGLY = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

COMMANDS: Final = tuple(
    LazyCommand(*each)
    for each in (
        (
            "demo",
            "demo:demo",
            "Import, embed, search and validate the samples, on the embedded server.",
        ),
        ("search", "search:search", "Find the passages that answer a question best."),
        ("filters", "filters:filters", "List what searches of a corpus can be narrowed by."),
        (
            "import",
            "imports:app",
            "Import files; see what was changed, and try again what was rejected.",
        ),
        ("export", "export:app", "Write a corpus to files."),
        ("chat", "chat:app", "Look through the chat archive."),
        ("memory", "memory:app", "Agents' memories: of a tenant, or of a user without one."),
        (
            "embed",
            "embedding:embed",
            "Make missing and stale vectors. Stopped, it goes on where it was.",
        ),
        ("models", "embedding:models", "Embedding models, and which corpus uses which."),
        (
            "worker",
            "jobs:worker",
            "Do what is in the job queue: embed what was written, and maintain the database.",
        ),
        ("jobs", "jobs:app", "The job queue: what waits, what failed and why."),
        (
            "validate",
            "validate:validate",
            "Check that a corpus is whole; exit code 1 if it is not.",
        ),
        (
            "doctor",
            "doctor:doctor",
            "Check that searches use their indexes, and print the SQL that mends them.",
        ),
        (
            "health",
            "health:health",
            "Tell within 5 s whether the database can serve, and what needs an operator.",
        ),
        (
            "performance",
            "performance:performance",
            "Show how long searches took; list slow ones, and plan one of them again.",
        ),
        (
            "verify-isolation",
            "isolation:verify_isolation",
            "Attack every scoped table and every search: no row may cross between tenants.",
        ),
        (
            "eval",
            "evaluate:evaluate",
            "Measure how well searches rank, on a test collection in BEIR layout.",
        ),
        ("learn", "learn:app", "Learn from clicks how to rank; apply it, and take it back."),
        (
            "tune",
            "tune:app",
            "Tune fusion weights to judged questions; apply them, and take them back.",
        ),
        (
            "tenants",
            "tenancy:tenants",
            "Tenants: users of one share its memories, and no other user sees them.",
        ),
        (
            "users",
            "tenancy:users",
            "Users: each has memories of their own, or shares those of their tenant.",
        ),
        ("roles", "roles:app", "Logins for applications and people, and who may do what."),
        ("audit", "audit:app", "The audit log: who changed what, with seals that show tampering."),
        (
            "backup",
            "backup:app",
            "Make, verify, restore and prune backups of the whole database.",
        ),
        (
            "maintenance",
            "maintenance:app",
            "Maintain the database while searches run, and see what was done.",
        ),
        (
            "metrics",
            "metrics:app",
            "Metrics for Prometheus: queue, coverage, searches, backups and the audit log.",
        ),
        ("db", "database:app", "Upgrade, roll back and inspect the schema."),
        ("server", "server:app", "The embedded PostgreSQL of this folder."),
    )
)


class Commands(TyperGroup):
    """The group of all commands."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.commands.update({str(command.name): command for command in COMMANDS})


def show_version(asked: bool) -> None:
    """Print the version and end, where it was asked for."""
    if asked:
        put(f"pgcorpus {version('pgcorpus')}")
        raise typer.Exit


app = typer.Typer(
    name="pgcorpus",
    help=(
        "One PostgreSQL database for everything an AI backend retrieves.\n\n"
        "The database is DATABASE_URL (or POSTGRES_*) in the environment or .env, else the "
        "embedded PostgreSQL in .pgcorpus/, which demo, server start and db upgrade make.\n\n"
        "Exit codes: 0 done, 1 failed, 2 used wrongly, 130 stopped by Ctrl-C."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version, and exit.", callback=show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Take the options that belong to no command."""


def main() -> None:
    """Run a command. Errors of use and of the data layer are told in a sentence, not a trace."""
    for stream in (sys.stdout, sys.stderr):  # what a terminal cannot show is escaped, not an error
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        _refuse_undecodable(sys.argv[1:])
        # Not as a program of its own, or typer would print errors in another style than ours.
        code = get_command(app).main(prog_name="pgcorpus", standalone_mode=False)
        sys.stdout.flush()  # here, where a full disk is still told in a sentence
    except Misused as error:
        for sentence, show in zip(describe_misuse(error), chain([fail], repeat(say)), strict=False):
            show(sentence)
        sys.exit(USED_WRONGLY)
    except typer.Abort:
        fail("nothing was done: it was not agreed to")
        sys.exit(FAILED)
    except KeyboardInterrupt:  # before a command began
        code = INTERRUPTED
    except Exception as error:
        if (code := _tell(error)) is None:
            raise
        sys.exit(code)
    if code == INTERRUPTED:  # typer's answer to Ctrl-C, which it does not pass on
        _say_stopped()
    sys.exit(code or 0)


def _tell(error: Exception) -> int | None:
    """Tell an error of use or of the data layer; return the exit code, None for any other error."""
    from sqlalchemy.exc import DBAPIError

    from pgcorpus.db.errors import DataLayerError, Misuse

    match error:
        case Misuse():
            code, sentence = USED_WRONGLY, str(error)
        case DataLayerError():
            code, sentence = FAILED, str(error)
        case OSError() if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            code, sentence = FAILED, _describe_full_disk(error)
        case DBAPIError():  # one that slipped through the data layer is no trace either
            code, sentence = FAILED, f"the database refused: {error.orig}"
        case _:
            return None
    fail(sentence)
    return code


def _describe_full_disk(error: OSError) -> str:
    """Say which disk is full; what has no file's name was written to stdout."""
    where = error.filename
    if where is None:
        where = "the disk that stdout is written to"
        # Or Python would try once more when it ends, and print a trace.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return f"no space left on {where}; free some, and run the same command again"


def _refuse_undecodable(arguments: list[str]) -> None:
    """Raise for an argument whose bytes are no text: no message, row or JSON can hold it."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            fail(f"the argument {argument!a} is not text in UTF-8")
            sys.exit(USED_WRONGLY)


def _say_stopped() -> None:
    say("stopped; what was committed stays: run the same command again to finish")
