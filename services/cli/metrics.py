"""pgcorpus metrics."""

from __future__ import annotations

import signal
import threading
from contextlib import closing
from typing import Annotated, Final

import typer

from pgcorpus.services.cli.output import say

HOST: Final = "127.0.0.1"
PORT: Final = 9464
"""The port that OpenTelemetry's exporters for Prometheus use by default."""

app = typer.Typer(
    help=(
        "Metrics for Prometheus: queue, coverage, searches, backups and the audit log.\n\n"
        "What each one means: docs/reference/metrics.md"
    ),
    no_args_is_help=True,
)


@app.callback()
def metrics() -> None:
    """Keep the name of the command, although there is one."""


@app.command("serve")
def serve_metrics(
    host: Annotated[
        str,
        typer.Option(help="Address to listen on. The port asks for no password."),
    ] = HOST,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = PORT,
) -> None:
    """Serve the figures of the whole database at /metrics until it is stopped.

    They are read when Prometheus asks, at most every 5 seconds. While the database is down the
    answer is pgcorpus_up 0. /-/healthy answers without asking the database.

    Any login will do; a member of rag_admin reads all figures. What the login may not read is left
    out, and pgcorpus_figures_complete says so.

    SIGTERM and Ctrl-C end it with exit code 0.

    Example: pgcorpus metrics serve --port 9464
    """
    # Here, or --help would import the database's layer.
    from pgcorpus.db.engine import Database
    from pgcorpus.services.ops.metrics.app import Metrics
    from pgcorpus.services.ops.metrics.server import serve

    database = Database.from_env()
    database.url  # noqa: B018 - an address that is missing is said now, and not at each scrape
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stopping.set())
    served = Metrics(database, searches=False)
    with closing(served), serve(served.wsgi, host, port) as address:
        say(f"serving {address}/metrics")
        stopping.wait()
