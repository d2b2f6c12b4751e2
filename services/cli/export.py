"""pgcorpus export."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pgcorpus.db.engine import Database
from pgcorpus.services.chat.exporting.exporter import ChatExporter, Format
from pgcorpus.services.cli.output import fail, say, write

app = typer.Typer(help="Get out what was put in.", no_args_is_help=True)


@app.command()
def chat(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="A conversation's id, or SOURCE_TYPE:SOURCE_ID (chatgpt:6797-...)."
        ),
    ],
    to: Annotated[
        Format,
        typer.Option(
            "--format",
            "-f",
            help="markdown to be read; json with all that is stored; openwebui for OpenWebUI.",
        ),
    ] = "markdown",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Where to; a file is replaced once the export is whole, in a folder one is named "
            "after the title. By default stdout.",
        ),
    ] = None,
) -> None:
    """Export a conversation with all its branches.

    The exit code is 1 where there is no such conversation, 2 where ID is of neither form.

    Example: pgcorpus export chat chatgpt:6797 --format openwebui --output .
    """
    exported = ChatExporter(Database.from_env()).export(reference, to)
    if output is None:
        write(exported.text)
        return
    path = output / exported.file_name if output.is_dir() else output
    try:
        _replace(path, exported.text)
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror}; name another place with --output")
        raise typer.Exit(1) from error
    say(f"exported to {path}")


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all: stopped in the middle, what was there is there."""
    if path.exists() and not path.is_file():  # a pipe or a device, which cannot be replaced
        path.write_text(text, encoding="utf-8")
        return
    path = path.resolve()  # what a link leads to is replaced, not the link
    unfinished = path.with_name(f".{os.getpid()}.part")
    try:
        unfinished.write_text(text, encoding="utf-8", newline="")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
