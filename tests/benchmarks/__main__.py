"""Measures searches, loads and memory beside floors and two peers: ``python -m tests.benchmarks``.

What is measured, and how: docs/reference/benchmarks.md.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from pgcorpus.db.errors import DataLayerError
from pgcorpus.services.cli.output import AsJson, fail, print_json, say
from tests.benchmarks.plot import plot
from tests.benchmarks.processes import HOME, PEERS, ROOT, ContenderFailed, python_of
from tests.benchmarks.report import list_failed_checks, print_tables
from tests.benchmarks.run import measure

FAILED = 1
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

RELEASED: Final = ROOT / "docs" / "reference" / "benchmarks.json"
"""The figures of the last release."""


def bench(  # noqa: PLR0917 - options are its parameters
    rows: Annotated[
        int, typer.Option(envvar="BENCH_ROWS", min=100, max=1_000_000, help="Passages.")
    ] = 10_000,
    dimensions: Annotated[
        int, typer.Option(envvar="BENCH_DIMENSIONS", min=8, max=4000, help="Length of the vectors.")
    ] = 384,
    peers: Annotated[
        str,
        typer.Option(
            default_factory=lambda: os.environ.get("BENCH_PEERS", ",".join(PEERS)),
            show_default="BENCH_PEERS, else all",
            help=f"Peers, separated by commas: {', '.join(PEERS)}; '' for none.",
        ),
    ] = ...,  # type: ignore[assignment] - typer's mark for the factory
    seconds: Annotated[
        float,
        typer.Option(
            envvar="BENCH_SECONDS", min=0.1, help="Seconds that a throughput is measured."
        ),
    ] = 1.0,
    output: Annotated[
        Path,
        typer.Option(
            envvar="BENCH_OUTPUT",
            file_okay=False,
            help="Folder of benchmarks.json and benchmarks.png.",
        ),
    ] = HOME,
    as_json: AsJson = False,
) -> None:
    """Measure this project, the floors of PostgreSQL and two peers on the same server and data.

    The server is the run's own, and gone at the end. A peer that cannot be installed is reported
    and left out. Figures belong to the machine and the moment: compare those of one run only.

    Exit codes: 0 done, 1 failed or a check failed, 2 used wrongly, 130 stopped by Ctrl-C.
    """
    wanted = [name.strip() for name in peers.split(",") if name.strip()]
    if unknown := set(wanted) - set(PEERS):
        raise typer.BadParameter(
            f"there is no peer {', '.join(sorted(unknown))}; known: {', '.join(PEERS)}",
            param_hint="--peers",
        )
    output.mkdir(parents=True, exist_ok=True)
    HOME.mkdir(exist_ok=True)
    pythons, left_out = {}, {}
    for name in wanted:
        say(f"preparing {name}")
        try:
            pythons[name] = python_of(name)
        except ContenderFailed as error:
            left_out[name] = str(error)
            fail(f"{error}; going on without it")
    with tempfile.TemporaryDirectory(prefix="run-", dir=HOME) as folder:
        result = measure(
            Path(folder),
            rows=rows,
            dimensions=dimensions,
            seconds=seconds,
            peers=pythons,
            released=json.loads(RELEASED.read_text()),
        )
    result["left_out"] |= left_out
    _write(output, result)
    if as_json:
        print_json(result)
    else:
        print_tables(result)
    for check in list_failed_checks(result):
        fail(f"{check['name']}: {check['found']}")
    if list_failed_checks(result):
        raise typer.Exit(FAILED)


def _write(output: Path, result: dict[str, Any]) -> None:
    file = output / "benchmarks.json"
    file.write_text(json.dumps(result, indent=2) + "\n")
    plot(result, output / "benchmarks.png")
    say(f"written: {file} and {output / 'benchmarks.png'}")


def main() -> None:
    """Run; whatever ends the run, the server and the processes end with it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up, as Ctrl-C does
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(bench)
    try:
        app(prog_name="python -m tests.benchmarks")
    except (ContenderFailed, DataLayerError) as error:
        fail(str(error))
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
