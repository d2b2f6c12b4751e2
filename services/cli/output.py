"""The output of commands: results on stdout, everything else on stderr.

Stored text never commands a terminal. What is printed through ``out`` and ``err`` is made visible
last of all, whatever was printed; ``write`` and ``print_json`` do the same for whole texts.

Sentences are not broken into lines: a command in one can be copied, and a script can search for it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from typing import Annotated, Any, Final

import typer
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

CONTROLS: Final = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in b"\t\n"
}
"""Controls of a terminal: what can move its cursor, change its title, or ask it something."""

DIRECTIONS: Final = {
    code: f"\\u{code:04x}"
    for code in (0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
}
"""Characters that make a line end or read otherwise than it is stored (Unicode, annex 9)."""

_VISIBLE: Final = CONTROLS | DIRECTIONS
_IN_JSON: Final = {code: f"\\u{code:04x}" for code in _VISIBLE if code >= 127}  # noqa: PLR2004 - ASCII

BAR_CHARACTERS: Final = 20
"""Length of a bar: what is done and the two times read beside it at 80 columns."""

LEAST_CELL: Final = 16
"""Characters of a word that a column has room for at least; what is longer goes on below."""

BESIDE_CELL: Final = 3
"""Characters that the frame of a table takes for each column."""

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for scripts.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show everything that was found out.")
]
Limit = Annotated[int, typer.Option(min=1, max=10_000, help="Rows to show, at most.")]
CorpusName = Annotated[str, typer.Option("--corpus", "-c", help="The corpus.")]


def print_json(result: Any) -> None:
    """Print a result for scripts: one JSON document on stdout, nothing else."""
    document = json.dumps(result, default=_convert, ensure_ascii=False, indent=2)
    typer.echo(document.translate(_IN_JSON))  # json escapes the others itself


def _convert(value: object) -> str:
    """Convert what JSON has no form for; times as ISO 8601."""
    return value.isoformat() if isinstance(value, date) else str(value)  # a datetime is a date


def visible(text: str) -> str:
    """Escape the characters of a text that a terminal would obey, whoever wrote it."""
    return text.translate(_VISIBLE)


class _Visible:
    """A renderable of rich with its text made visible."""

    def __init__(self, shown: ConsoleRenderable) -> None:
        self._shown = shown

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._shown, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self._shown)


class _VisibleAlways(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Visible(each) for each in renderables]


out = Console()
err = Console(stderr=True)
for _console in (out, err):
    _console.push_render_hook(_VisibleAlways())


def write(text: str) -> None:
    """Print a stored text: as it is into a file or a pipe, made visible at a terminal."""
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def put(line: str) -> None:
    """Print a line of a result as it is: unbroken, and nothing in it is markup."""
    out.print(visible(line), markup=False, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """Print a message on stderr."""
    err.print(Text(visible(message)), soft_wrap=True)


def warn(message: str) -> None:
    """Print a warning on stderr: the work was done but may not be what is wanted."""
    err.print(Text.assemble(("warning: ", "bold yellow"), visible(message)), soft_wrap=True)


def fail(message: str) -> None:
    """Print an error on stderr."""
    err.print(Text.assemble(("error: ", "bold red"), visible(message)), soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows; text of users is shown as it is, never read as markup.

    Nothing is cut: a long name goes on in the next line of its cell. Where even the shortest lines
    would not fit beside each other, each row is a block.
    """
    cells = [[_as_text(cell) for cell in row] for row in rows]
    if not _fits(columns, cells):
        _print_blocks(title, columns, cells)
        return
    grid = Table(title=Text(visible(title)), title_justify="left", header_style="bold")
    for name in columns:  # an id is there to be copied: the other columns give way
        grid.add_column(name, no_wrap=name == "id", overflow="fold")
    for row in cells:
        grid.add_row(*row)
    out.print(grid)


def _fits(columns: Sequence[str], rows: Iterable[Sequence[Text]]) -> bool:
    """Return whether every column has room for its words, or for so much of them."""
    words = [
        [name, *(word for row in rows for word in row[n].plain.split())]
        for n, name in enumerate(columns)
    ]
    widths = [
        max(map(len, of)) if name == "id" else min(LEAST_CELL, max(map(len, of)))
        for name, of in zip(columns, words, strict=True)
    ]
    return sum(widths) + BESIDE_CELL * len(columns) + 1 <= out.width


def _print_blocks(title: str, columns: Sequence[str], rows: Iterable[Sequence[Text]]) -> None:
    """Print each row under its first cell, with the name of the column before each other cell."""
    out.print(Text(visible(title), style="italic"))
    for first, *others in rows:
        first.stylize("bold")
        out.print(first, overflow="fold")
        for name, cell in zip(columns[1:], others, strict=True):
            if cell.plain:
                out.print(Text.assemble(f"  {name}: " if name else "  ", cell), overflow="fold")


def _as_text(cell: object) -> Text:
    if isinstance(cell, Text):
        return cell
    return Text("" if cell is None else visible(str(cell)))


class _LateBar(Progress):
    """A bar that is shown when work begins: what is refused before leaves none behind."""

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Change a task, and show the bar once something is done or to do."""
        super().update(task_id, **changes)
        if any(changes.get(name) for name in ("total", "completed", "advance")):
            self.start()

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Count what was done, and show the bar."""
        super().advance(task_id, advance)
        self.start()


@contextmanager
def progress_bar(*stages: str) -> Iterator[Progress]:
    """Provide a bar with percent and times for each stage of long work, on stderr.

    It is shown once there is something to do; work that cannot count what there is calls ``start``.
    """
    bar = _LateBar(
        TextColumn("{task.description}"),
        BarColumn(BAR_CHARACTERS),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("so far,"),
        TimeRemainingColumn(),
        TextColumn("to go"),
        console=err,
    )
    for stage in stages:
        bar.add_task(stage, total=None)
    try:
        yield bar
    finally:
        if bar.live.is_started:
            bar.stop()


def cut(text: str, characters: int) -> str:
    """Return the beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= characters else f"{line[: characters - 1]}…"


def cut_json(value: object, characters: int) -> str:
    """Shorten a value, written as JSON, to *characters*."""
    return cut(json.dumps(value, ensure_ascii=False), characters)
