"""pgcorpus db: the schema's versions."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from pgcorpus.services.cli.output import AsJson, fail, print_json, put, say, table

if TYPE_CHECKING:
    from pgcorpus.db import migrations
    from pgcorpus.db.engine import Database


app = typer.Typer(help="Upgrade, roll back and inspect the schema.", no_args_is_help=True)


@app.command()
def upgrade(
    revision: Annotated[str, typer.Argument(help="A revision, +1 or head.")] = "head",
    as_json: AsJson = False,
) -> None:
    """Bring the schema up to a revision; two at once queue.

    Where no database is named, the embedded PostgreSQL of this folder is made first.
    """
    from pgcorpus.db import migrations
    from pgcorpus.db.engine import Database

    if revision == "base" or revision.startswith("-"):
        raise typer.BadParameter(
            f"{revision} leads down; use: pgcorpus db downgrade {revision}", param_hint="REVISION"
        )
    database = Database.from_env()
    migrations.upgrade(database, revision)
    _show_version(database, as_json)


def check_revision(value: str) -> str:
    """Refuse an option that there is none of: only -1, -2 and so on are revisions."""
    if value.startswith("--"):
        raise typer.BadParameter(f"no such option: {value}")
    return value


@app.command(context_settings={"ignore_unknown_options": True})
def downgrade(
    revision: Annotated[
        str, typer.Argument(callback=check_revision, help="A revision, -1 or base.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take the schema back. Tables that the revision does not have are dropped with their rows.

    Which rows would go is counted first, and asked for. Where objects of others depend on what
    would be dropped, they are named and nothing is changed.

    Example: pgcorpus db downgrade 0005 --yes
    """
    from pgcorpus.db import migrations
    from pgcorpus.db.engine import Database

    database = Database.from_env()
    migrations.downgrade(database, revision, agree=None if yes else partial(_ask, revision))
    _show_version(database, as_json)


@app.command()
def current(as_json: AsJson = False) -> None:
    """Show the newest revision the database has."""
    from pgcorpus.db import migrations
    from pgcorpus.db.engine import Database

    version = migrations.current(Database.from_env())
    if as_json:
        print_json(
            {"revision": version and version.revision, "subject": version and version.subject}
        )
    else:
        put(f"{version.revision}  {version.subject}" if version else "no revision: empty")


@app.command()
def history(as_json: AsJson = False) -> None:
    """Show all revisions, and which of them the database has."""
    from pgcorpus.db import migrations
    from pgcorpus.db.engine import Database

    versions = migrations.history(Database.from_env())
    if as_json:
        print_json([vars(version) for version in versions])
    else:
        table(
            "Revisions",
            ["revision", "subject", "applied"],
            [(v.revision, v.subject, "yes" if v.applied else "no") for v in versions],
        )


@app.command()
def check(as_json: AsJson = False) -> None:
    """Fail if the schema is not the one that the models describe."""
    from pgcorpus.db import migrations
    from pgcorpus.db.engine import Database

    differences = migrations.drift(Database.from_env())
    if as_json:
        print_json({"passed": not differences, "differences": differences})
    elif differences:
        for difference in differences:
            put(difference)
    else:
        say("the schema is the one that the models describe")
    if differences:
        raise typer.Exit(1)


def _ask(revision: str, loss: migrations.Loss) -> None:
    """Let a person agree to what a downgrade deletes; a script agrees with --yes."""
    if not sys.stdin.isatty():
        fail(f"{loss}\nTo agree: pgcorpus db downgrade {revision} --yes")
        raise typer.Exit(2)
    say(str(loss))
    typer.confirm("Delete these rows?", abort=True, err=True)


def _show_version(database: Database, as_json: bool) -> None:
    from pgcorpus.db import migrations

    version = migrations.current(database)
    if as_json:
        print_json({"revision": version and version.revision})
    else:
        say(f"the schema is at revision {version.revision}" if version else "the database is empty")
