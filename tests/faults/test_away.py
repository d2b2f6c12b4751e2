"""Commands and workers while the database is away: what they say, and how soon they end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from sqlalchemy import URL, text

from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.migrations import upgrade
from tests.conftest import settings_for
from tests.prove import proofs

AT_ONCE_SECONDS = 1 + 2
"""A second, and what a machine may take on top that is busy with other tests."""


class Running:
    """A command under way, and the lines of its stderr with the moment when each came."""

    def __init__(self, url: URL, *arguments: str, **more: str) -> None:
        kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME"}}
        address = url.render_as_string(hide_password=False)
        self.process = subprocess.Popen(
            [proofs.PGCORPUS, *arguments],
            env=kept | {"DATABASE_URL": address, "COLUMNS": "160"} | more,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[tuple[float, str]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self.lines.append((time.monotonic(), line.rstrip()))

    def read_output(self) -> str:
        """Return all that the process has written."""
        return "\n".join(line for _, line in self.lines)

    def wait_for(self, words: str, seconds: float = 60) -> float:
        """Wait until it has said something; the moment when it did."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for moment, line in self.lines:
                if words in line:
                    return moment
            time.sleep(0.02)
        raise AssertionError(f"{words!r} was not said: {self.read_output()}")

    def end(self, seconds: float = 60) -> int:
        """Wait for its end; the exit code."""
        code = self.process.wait(seconds)
        self._reader.join(seconds)
        return code

    def kill(self) -> None:
        """Leave nothing behind."""
        self.process.kill()
        self.end()


@contextmanager
def running(url: URL, *arguments: str, **more: str) -> Iterator[Running]:
    """A command that is gone at the end."""
    command = Running(url, *arguments, **more)
    try:
        yield command
    finally:
        command.kill()


@pytest.fixture
def nowhere() -> URL:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return URL.create("postgresql", "nobody", "none", "127.0.0.1", port, "pgcorpus")


@pytest.fixture
def silent() -> Iterator[URL]:
    """An address that takes connections and never says a word, as behind a stalled proxy."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield URL.create(
            "postgresql", "nobody", "none", "127.0.0.1", listener.getsockname()[1], "pgcorpus"
        )


@pytest.fixture
def own() -> Iterator[EmbeddedServer]:
    """A server that may be stopped and killed, with the newest schema."""
    home = Path(tempfile.mkdtemp(prefix="pgcorpus-away-"))
    home.chmod(0o755)  # PostgreSQL runs as another account when the tests run as root
    server = EmbeddedServer(home, settings={"fsync": "off"})
    server.start()
    database = Database(settings_for(server.url))
    upgrade(database)
    database.close()
    yield server
    server.destroy()


@pytest.mark.parametrize("where", ["nowhere", "silent"])
def test_a_command_says_what_it_waits_for_and_gives_up(
    where: str, request: pytest.FixtureRequest
) -> None:
    """After 2 s and after 5 s, with one line for each."""
    url: URL = request.getfixturevalue(where)
    with running(url, "jobs", "stats") as command:
        told = command.wait_for(f"waiting for 127.0.0.1:{url.port} …")
        assert command.end() == 1
        gave_up = command.wait_for("gave up after 5 s (DB_CONNECT_RETRY)")

    assert 1 < gave_up - told < AT_ONCE_SECONDS + AT_ONCE_SECONDS
    assert command.read_output().count("waiting for") == 1
    assert "Traceback" not in command.read_output()


def test_a_patience_that_is_set_wins(nowhere: URL) -> None:
    """For services and scripts that know better."""
    with running(nowhere, "jobs", "stats", DB_CONNECT_RETRY="1") as command:
        assert command.end() == 1

    assert "gave up after 1 s (DB_CONNECT_RETRY)" in command.read_output()


@pytest.mark.parametrize("where", ["nowhere", "silent"])
def test_ctrl_c_ends_a_command_that_connects(where: str, request: pytest.FixtureRequest) -> None:
    """At once, whatever it is waiting for."""
    url: URL = request.getfixturevalue(where)
    with running(url, "jobs", "stats", DB_CONNECT_RETRY="60") as command:
        command.wait_for("waiting for")
        sent = time.monotonic()
        command.process.send_signal(signal.SIGINT)
        said = command.wait_for("stopped", 10)
        assert command.end(60) == 130

    assert said - sent < AT_ONCE_SECONDS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("where", ["nowhere", "silent"])
def test_a_worker_waits_for_a_database_and_can_be_stopped(
    where: str, number: signal.Signals, request: pytest.FixtureRequest
) -> None:
    """Beyond the patience of a command, and within a second."""
    url: URL = request.getfixturevalue(where)
    with running(url, "worker", DB_CONNECT_RETRY="1") as command:
        told = command.wait_for("the database is away")
        time.sleep(4)
        assert command.process.poll() is None
        sent = time.monotonic()
        command.process.send_signal(number)
        said = command.wait_for("0 completed", 10)
        assert command.end() == 0

    assert said - sent < AT_ONCE_SECONDS
    assert told < sent
    assert command.read_output().count("\n") == 1, command.read_output()


def test_a_worker_that_may_not_log_in_says_so_at_once(own: EmbeddedServer) -> None:
    """A wrong password does not become right by waiting."""
    with running(own.url.set(password="guessed"), "worker") as command:
        assert command.end() == 1

    assert "password authentication failed" in command.read_output()
    assert "Traceback" not in command.read_output()


@pytest.mark.parametrize("how", ["restarted", "killed"])
def test_an_outage_is_one_line_and_its_end_another(own: EmbeddedServer, how: str) -> None:
    """Of a worker with five threads and a listener; and what is written afterwards is done."""
    with running(own.url, "worker", "--concurrency", "4", "--kinds", "embed") as command:
        enqueue(own.url, "embed")
        command.wait_for("1 failed")
        if how == "killed":
            for pid in postmaster_and_children(own):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        else:
            own.stop()
        command.wait_for("the database is away")
        time.sleep(3)
        own.start()
        command.wait_for("the database is back, after")
        enqueue(own.url, "embed")
        deadline = time.monotonic() + 30
        while command.read_output().count("1 failed") < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        command.process.send_signal(signal.SIGTERM)
        command.end()

    shown = command.read_output()
    assert shown.count("1 failed") == 2, shown
    assert len(re.findall("the database is (away|back)", shown)) == 2, shown
    assert "Traceback" not in shown
    assert not re.search("sqlalchemy|psycopg", shown), shown


def enqueue(url: URL, kind: str) -> None:
    """A job that fails at once, as it names no passage."""
    database = Database(settings_for(url))
    with database.unit_of_work() as work:
        work.session.execute(
            text(
                "INSERT INTO jobs (kind, payload, max_attempts)"
                ' VALUES (:kind, \'{"corpus": "chat"}\', 1)'
            ),
            {"kind": kind},
        )
        work.commit()
    database.close()


def postmaster_and_children(server: EmbeddedServer) -> list[int]:
    """The processes of a server, which are ours."""
    database = Database(settings_for(server.url))
    with database.engine.connect() as connection:
        data = Path(connection.scalar(text("SHOW data_directory")) or "")
    database.close()
    postmaster = int((data / "postmaster.pid").read_text().splitlines()[0])
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    return [postmaster, *map(int, children)]
