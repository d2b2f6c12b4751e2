"""pgcorpus metrics serve and the metrics of a worker, as processes."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from pgcorpus.db.engine import Database
from tests.command import PGCORPUS, Command
from tests.logins import logged_in
from tests.pooler import variables_of


@contextmanager
def running(
    environment: Mapping[str, str], folder: Path, *arguments: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A command that serves metrics, and the address that it says."""
    process = subprocess.Popen(
        [PGCORPUS, *arguments], env=environment, cwd=folder, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.fullmatch(r"serving (http://\S+)/metrics\n", line)
        assert found, line + process.stderr.read()
        yield process, found[1]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_stopped(
    variables: Mapping[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    """On loopback, and ends with exit code 0."""
    with running(variables, tmp_path, "metrics", "serve", "--port", "0") as (process, address):
        scraped = httpx.get(f"{address}/metrics", timeout=30)
        healthy = httpx.get(f"{address}/-/healthy", timeout=30)
        process.send_signal(number)
        code = process.wait(timeout=30)

    assert address.startswith("http://127.0.0.1:")
    assert "pgcorpus_up 1.0" in scraped.text
    assert "pgcorpus_jobs_due" in scraped.text
    assert "pgcorpus_search_duration_seconds" not in scraped.text
    assert (healthy.status_code, code) == (200, 0)


@pytest.mark.parametrize("group", ["rag_read_only", "rag_admin"])
def test_a_login_that_only_reads_is_enough(
    database: Database, tmp_path: Path, variables: Mapping[str, str], group: str
) -> None:
    """The rest is left out."""
    with logged_in(database, group) as login:  # type: ignore[arg-type]
        environment = {**variables, **variables_of(login.settings)}
        with running(environment, tmp_path, "metrics", "serve", "--port", "0") as (_, address):
            scraped = httpx.get(f"{address}/metrics", timeout=30).text

    assert "pgcorpus_up 1.0" in scraped
    whole = 'pgcorpus_figures_complete{figures="queue"} ' in scraped
    assert whole
    assert ("pgcorpus_audit_chain_intact" in scraped) is (group == "rag_admin")


def test_a_database_that_comes_later_is_told_then(tmp_path: Path) -> None:
    """It does not end with the database, which would hide the outage."""
    environment = {"PATH": "/usr/bin", "DATABASE_URL": "postgresql://x@127.0.0.1:1/x"}
    with running(environment, tmp_path, "metrics", "serve", "--port", "0") as (process, address):
        first = httpx.get(f"{address}/metrics", timeout=30).text
        second = httpx.get(f"{address}/metrics", timeout=30).text

        assert process.poll() is None
    assert "pgcorpus_up 0.0" in first
    assert "pgcorpus_up 0.0" in second


def test_a_port_that_is_taken_is_an_error_in_a_sentence(pgcorpus: Command) -> None:
    """With the option that chooses another."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = pgcorpus("metrics", "serve", "--port", port)
        worker = pgcorpus("worker", "--once", "--metrics-port", port)

    for each in (done, worker):
        assert each.returncode == 1
        assert each.stderr.startswith(f"error: cannot listen on 127.0.0.1, port {port}: ")
        assert "Traceback" not in each.stderr


@pytest.mark.parametrize("wrong", [("--port", "70000"), ("--port", "x"), ("--nothing",)])
def test_wrong_use_is_told(pgcorpus: Command, wrong: tuple[str, ...]) -> None:
    """Exit code 2."""
    assert pgcorpus("metrics", "serve", *wrong).returncode == 2


def test_a_worker_serves_what_it_does(variables: Mapping[str, str], tmp_path: Path) -> None:
    """Its jobs and its use of embedders, while it runs."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with running(variables, tmp_path, "worker", "--metrics-port", port) as (process, address):
        scraped = ""
        for _ in range(100):
            scraped = httpx.get(f"{address}/metrics", timeout=30).text
            if 'pgcorpus_worker_jobs_total{corpus="",kind="log_flush"' in scraped:
                break
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=30)

    assert 'pgcorpus_worker_jobs_total{corpus="",kind="log_flush",outcome="completed"}' in scraped
    assert "pgcorpus_up" not in scraped
    assert code == 0
