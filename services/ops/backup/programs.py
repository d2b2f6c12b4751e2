"""PostgreSQL's own programs: where they are, whether they fit the server, and how they are run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Literal

from psycopg.pq import Conninfo

from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import ProgramFailed
from pgcorpus.db.settings import Settings

Program = Literal["pg_dump", "pg_restore"]

VERSION: Final = re.compile(r"\(PostgreSQL\) (\d+)")
PASSED_ON: Final = frozenset(("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "KRB5CCNAME"))
"""Variables that programs get beside libpq's own: neither DATABASE_URL nor a key is among them."""

ANSWER_SECONDS: Final = 30
LINES_SHOWN: Final = 5
END_SECONDS: Final = 10


@dataclass(frozen=True)
class Programs:
    """The programs of one installation of PostgreSQL.

    Attributes:
        folder: Where they are.
        major: Their major version.
    """

    folder: Path
    major: int

    @classmethod
    def find(cls, settings: Settings, server_major: int) -> Programs:
        """Find programs that fit a server: of its major version, else the next newer one.

        ``pg_dump`` refuses servers that are newer than itself. Looked at are the folder of
        ``PGCORPUS_PROGRAMS`` alone, or else those of the embedded server and on the ``PATH``.

        Raises:
            ProgramFailed: There are none, or only older ones.
        """
        if settings.programs is not None:
            folders = [settings.programs]
        else:
            on_path = shutil.which("pg_dump")
            folders = [EmbeddedServer(settings.home).bin]
            folders += [] if on_path is None else [Path(on_path).parent]
        found = [cls(folder, major) for folder in folders if (major := _find_major(folder))]
        fitting = [each for each in found if each.major >= server_major]
        if fitting:
            return min(fitting, key=lambda each: each.major)
        there = ", ".join(f"{each.folder / 'pg_dump'} is {each.major}" for each in found)
        raise ProgramFailed(
            f"the server is PostgreSQL {server_major}, and pg_dump and pg_restore of that version "
            f"or a newer one are needed ({there or 'there is no pg_dump'}). Install them (Debian: "
            f"apt-get install postgresql-client-{server_major}), or name their folder in "
            "PGCORPUS_PROGRAMS"
        )

    @contextmanager
    def running(
        self,
        program: Program,
        *arguments: str | Path,
        database: Database | None = None,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.PIPE,
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run a program, and wait for its end. It does not outlive what happens meanwhile.

        Args:
            program: Its name.
            arguments: Seen by everyone on the machine: no secret is among them.
            database: The one it connects to. The address and the password are in its environment,
                which its own account alone can read.
            stdin: What it reads.
            stdout: Where it writes.

        Raises:
            ProgramFailed: It ended with an error; the message has its last lines.
        """
        with tempfile.TemporaryFile() as complaint:
            process = subprocess.Popen(  # noqa: S603 - PostgreSQL's own programs, no shell
                [self.folder / program, *arguments],
                stdin=stdin,
                stdout=stdout,
                stderr=complaint,
                env=self._environment(database),
                start_new_session=True,  # Ctrl-C is for this process, which ends it
            )
            try:
                yield process
                if process.stdout is not None:
                    process.stdout.close()
                code = process.wait()
            except BaseException as error:
                _end(process)
                # What broke a pipe is said by the program that closed it.
                if isinstance(error, BrokenPipeError) and process.returncode != 0:
                    raise _failure(program, process.returncode, complaint) from error
                raise
            if code != 0:
                raise _failure(program, code, complaint)

    def _environment(self, database: Database | None) -> dict[str, str]:
        environment = {
            name: value
            for name, value in os.environ.items()
            if name in PASSED_ON or (name.startswith("PG") and not name.startswith("PGCORPUS"))
        }
        environment |= {"LC_ALL": "C", **_library_path(self.folder)}
        if database is not None:
            environment |= build_environment(database)
        return environment


def build_environment(database: Database) -> dict[str, str]:
    """Return the address of a database as libpq's variables, the password among them.

    It is the server's own address, past any pooler.
    """
    settings = database.settings
    url = settings.admin_url or database.url
    given = {
        "sslmode": settings.ssl_mode,
        "ssl_min_protocol_version": settings.ssl_min_protocol_version,
        "connect_timeout": str(settings.connect_timeout_seconds),
        "application_name": f"{settings.application_name} backup",
    }
    if settings.ssl_ca_cert is not None:
        given["sslrootcert"] = str(settings.ssl_ca_cert)
    given |= {key: ",".join(values) for key, values in url.normalized_query.items()}
    given |= {
        key: str(value)
        for key, value in url.translate_connect_args(username="user", database="dbname").items()
    }
    variables = {
        each.keyword.decode(): each.envvar.decode()
        for each in Conninfo.get_defaults()
        if each.envvar
    }
    return {variables[key]: value for key, value in given.items() if key in variables}


def _find_major(folder: Path) -> int | None:
    """Return the major version of the programs in a folder, or None where they do not run."""
    majors = set()
    for program in ("pg_dump", "pg_restore"):
        try:
            said = subprocess.run(  # noqa: S603 - as above
                [folder / program, "--version"],
                capture_output=True,
                text=True,
                check=False,
                timeout=ANSWER_SECONDS,
                env={"PATH": os.defpath, **_library_path(folder)},
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        if (found := VERSION.search(said.stdout)) is None:
            return None
        majors.add(int(found[1]))
    return min(majors)


def _library_path(folder: Path) -> dict[str, str]:
    """Return where programs find their libraries, if they brought them: the embedded server's."""
    libraries = folder.parent / "lib"
    if not any(libraries.glob("libpq.*")):
        return {}
    return {"LD_LIBRARY_PATH": str(libraries)}


def _end(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _failure(program: str, code: int | None, complaint: IO[bytes]) -> ProgramFailed:
    complaint.seek(0)
    lines: Sequence[str] = complaint.read().decode(errors="replace").strip().splitlines()
    return ProgramFailed(
        "\n".join((f"{program} failed (exit code {code}):", *lines[-LINES_SHOWN:]))
    )
