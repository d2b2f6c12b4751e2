"""The command: its parts together, and the exit codes of their errors."""

from __future__ import annotations

import io
import logging
import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer
from sqlalchemy.exc import DBAPIError

from pgcorpus.db.errors import DataLayerError, Misuse
from pgcorpus.db.settings import Settings, environment
from pgcorpus.services.cli import (
    audit,
    chat,
    database,
    demo,
    doctor,
    embedding,
    evaluate,
    export,
    imports,
    isolation,
    jobs,
    memory,
    roles,
    search,
    server,
    tenancy,
    validate,
)
from pgcorpus.services.cli.output import LogFormatter, fail, put, say
from pgcorpus.services.corpora import SERVICES

FAILED = 1
USED_WRONGLY = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
PATIENCE_SECONDS = 5
"""A person watches a command, and a wrong address is seen at once. A worker waits for ever."""


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


app.command("demo")(demo.demo)
app.command("search")(search.search)
app.add_typer(imports.make_app(SERVICES.values()), name="import")
app.add_typer(export.make_app(SERVICES.values()), name="export")
app.add_typer(chat.app, name="chat")
app.add_typer(memory.app, name="memory")
app.command("embed")(embedding.embed)
app.add_typer(embedding.models, name="models")
app.command("worker")(jobs.worker)
app.add_typer(jobs.app, name="jobs")
app.command("validate")(validate.validate)
app.command("doctor")(doctor.doctor)
app.command("verify-isolation")(isolation.verify_isolation)
app.command("eval")(evaluate.evaluate)
app.add_typer(tenancy.tenants, name="tenants")
app.add_typer(tenancy.users, name="users")
app.add_typer(roles.app, name="roles")
app.add_typer(audit.app, name="audit")
app.add_typer(database.app, name="db")
app.add_typer(server.app, name="server")


def main() -> None:
    """Run a command. Errors of use and of the data layer are told in a sentence, not a trace."""
    for stream in (sys.stdout, sys.stderr):  # what a terminal cannot show is escaped, not an error
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        _refuse_undecodable(sys.argv[1:])
        _have_less_patience()
        _log(Settings.from_env().log_level)
        app()
    except Misuse as error:
        fail(str(error))
        sys.exit(USED_WRONGLY)
    except DataLayerError as error:
        fail(str(error))
        sys.exit(FAILED)
    except DBAPIError as error:  # what slipped through the data layer is no trace either
        fail(f"the database refused: {error.orig}")
        sys.exit(FAILED)
    except KeyboardInterrupt:  # before a command began
        _say_stopped()
        sys.exit(INTERRUPTED)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # typer's answer to Ctrl-C, which it does not pass on
            _say_stopped()
        raise


def _refuse_undecodable(arguments: list[str]) -> None:
    """Raise for an argument whose bytes are no text: no message, row or JSON can hold it."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            fail(f"the argument {argument!a} is not text in UTF-8")
            sys.exit(USED_WRONGLY)


def _have_less_patience() -> None:
    """Let a command give up sooner than a service does, unless DB_CONNECT_RETRY is set."""
    if not environment().get("DB_CONNECT_RETRY", "").strip():
        os.environ["DB_CONNECT_RETRY"] = str(PATIENCE_SECONDS)


def _say_stopped() -> None:
    say("stopped; what was committed stays: run the same command again to finish")


def _log(level: str) -> None:
    """Log our own loggers at the level asked for; of others only warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter(logging.BASIC_FORMAT))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("pgcorpus").setLevel(level)
