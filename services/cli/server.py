"""pgcorpus server: the embedded PostgreSQL."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pgcorpus.services.cli.output import AsJson, print_json, say, table

if TYPE_CHECKING:
    from pgcorpus.db.embedded import EmbeddedServer


app = typer.Typer(help="The embedded PostgreSQL of this folder.", no_args_is_help=True)


def _server() -> EmbeddedServer:
    from pgcorpus.db.embedded import EmbeddedServer
    from pgcorpus.db.settings import Settings

    return EmbeddedServer(Settings.from_env().home)


@app.command()
def start() -> None:
    """Start the server; make it first if need be."""
    server = _server()
    if not server.exists:
        say(f"making an embedded PostgreSQL in {server.home}")
    url = server.start()
    say(f"running on {url.host}:{url.port}; stop it with: pgcorpus server stop")


@app.command()
def stop() -> None:
    """Stop the server. Its data stay."""
    say("stopped" if _server().stop() else "it was not running")


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show whether the server runs, and where."""
    found = asdict(_server().status())
    if as_json:
        print_json(found)
    else:
        table("Embedded PostgreSQL", ["", ""], found.items())
    if not found["running"]:
        raise typer.Exit(1)


@app.command()
def destroy(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Stop the server and delete its data."""
    if not yes:
        typer.confirm("Delete the embedded server with all its data?", abort=True, err=True)
    _server().destroy()
    say("deleted")
