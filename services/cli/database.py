"""pgcorpus db: the schema's versions."""

from __future__ import annotations

from typing import Annotated

import typer

from db import migrations
from db.engine import Database
from services.cli.output import AsJson, out, print_json, say, table

app = typer.Typer(help="Upgrade, roll back and inspect the schema.", no_args_is_help=True)

Revision = Annotated[str, typer.Argument(help="A revision, -1, +1, head or base.")]


@app.command()
def upgrade(revision: Revision = "head") -> None:
    """Bring the schema up to a revision; two at once queue."""
    database = Database.from_env()
    migrations.upgrade(database, revision)
    _say_version(database)


@app.command(context_settings={"ignore_unknown_options": True})
def downgrade(revision: Annotated[str, typer.Argument(help="A revision, -1 or base.")]) -> None:
    """Take the schema back. Tables that the revision does not have are dropped with their rows."""
    database = Database.from_env()
    migrations.downgrade(database, revision)
    _say_version(database)


@app.command()
def current(as_json: AsJson = False) -> None:
    """Show the newest revision the database has."""
    version = migrations.current(Database.from_env())
    if as_json:
        print_json(
            {"revision": version and version.revision, "subject": version and version.subject}
        )
    else:
        out.print(f"{version.revision}  {version.subject}" if version else "no revision: empty")


@app.command()
def history(as_json: AsJson = False) -> None:
    """Show all revisions, and which of them the database has."""
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
def check() -> None:
    """Fail if the schema is not the one that the models describe."""
    difference = migrations.drift(Database.from_env())
    if difference is not None:
        say(difference)
        raise typer.Exit(1)
    say("the schema is the one that the models describe")


def _say_version(database: Database) -> None:
    version = migrations.current(database)
    say(f"the schema is at revision {version.revision}" if version else "the database is empty")
