"""How results and long work are shown: results on stdout, everything else on stderr.

Sentences are not broken into lines: a command in one can be copied, and a script can search for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

out = Console()
err = Console(stderr=True)

CONTROLS: Final = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in b"\t\n"
}
"""Of a terminal: what can move its cursor, change its title, or ask it something."""

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for scripts.")]
CorpusName = Annotated[str, typer.Option("--corpus", "-c", help="Which corpus.")]


def print_json(result: Any) -> None:  # noqa: ANN401 - whatever a result is made of
    """Print a result for scripts: one JSON document on stdout, nothing else."""
    typer.echo(json.dumps(result, default=_plain, ensure_ascii=False, indent=2))


def _plain(value: object) -> str:
    """What JSON has no form for; times as ISO 8601."""
    return value.isoformat() if isinstance(value, date) else str(value)  # a datetime is a date


def visible(text: str) -> str:
    """A text that a terminal shows and does not obey, whoever wrote it."""
    return text.translate(CONTROLS)


def put(line: str) -> None:
    """Print a line of a result as it is: unbroken, and nothing in it is markup."""
    out.print(visible(line), markup=False, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """Tell a person what is going on."""
    err.print(Text(visible(message)), soft_wrap=True)


def warn(message: str) -> None:
    """Tell a person what was done but may not be what they want."""
    err.print(Text.assemble(("warning: ", "bold yellow"), visible(message)), soft_wrap=True)


def fail(message: str) -> None:
    """Tell a person what went wrong."""
    err.print(Text.assemble(("error: ", "bold red"), visible(message)), soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows; text of users is shown as it is, never read as markup."""
    grid = Table(title=Text(visible(title)), title_justify="left", header_style="bold")
    for name in columns:  # an id is there to be copied: the other columns give way
        grid.add_column(name, no_wrap=name == "id")
    for row in rows:
        grid.add_row(*(Text("" if cell is None else visible(str(cell))) for cell in row))
    out.print(grid)


@contextmanager
def progress_bar(*stages: str) -> Iterator[Progress]:
    """A bar with percent and times for each stage of long work, on stderr."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
    )
    with bar:
        for stage in stages:
            bar.add_task(stage, total=None)
        yield bar


def cut(text: str, characters: int) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= characters else f"{line[: characters - 1]}…"
