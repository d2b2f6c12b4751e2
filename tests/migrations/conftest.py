"""PostgreSQL's own programs and Alembic's command line, on the test server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL

import pgcorpus
from pgcorpus.db.embedded import EmbeddedServer
from tests.db.test_embedded import share_programs

ROOT = Path(pgcorpus.__file__).parents[1]
Dump = Callable[[URL], str]


class Programs:
    """``pg_dump`` and ``psql`` of a server."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._bin = server.bin

    def schema(self, url: URL) -> str:
        """The schema as ``pg_dump`` writes it.

        Without the token that is random on each call, and the database's part in a role's name.
        """
        dump = re.sub(r"\brag_search_\w+", "rag_search", self.dump(url, "--schema-only"))
        return "\n".join(
            line
            for line in dump.splitlines()
            if not line.startswith(("\\restrict", "\\unrestrict"))
        )

    def dump(self, url: URL, *arguments: str) -> str:
        """Return what ``pg_dump`` writes, without the moment when each column was defined.

        PostgreSQL 15.20 keeps it among the options of the column, and a ``pg_dump`` of an older
        release does not know to leave it out.
        """
        written = self._run(url, "pg_dump", *arguments)
        return re.sub(r"(?m)^ALTER TABLE .* SET \(pg_attver=\d+\);\n", "", written)

    def execute(self, url: URL, script: str, **variables: str) -> str:
        """Run a script, which stops at its first error, with variables; return what it printed."""
        given = [f"--set={name}={value}" for name, value in variables.items()]
        return self._run(
            url, "psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", *given, script=script
        )

    def _run(self, url: URL, program: str, *arguments: str, script: str | None = None) -> str:
        done = subprocess.run(
            [self._bin / program, *arguments],
            input=script,
            env={
                "LD_LIBRARY_PATH": str(self._bin.parent / "lib"),
                "PGHOST": url.host or "",
                "PGPORT": str(url.port),
                "PGUSER": url.username or "",
                "PGPASSWORD": url.password or "",
                "PGDATABASE": url.database or "",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def programs(server: EmbeddedServer) -> Programs:
    """The programs of the test server."""
    return Programs(server)


@pytest.fixture
def schema_of(programs: Programs) -> Dump:
    """Return a database's schema, as ``pg_dump`` writes it."""
    return programs.schema


class Alembic:
    """Alembic's command line, called from a folder that is no checkout.

    Args:
        folder: Where it is called. No ``.env`` is found there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[subprocess.Popen[str]] = []

    def start(
        self, *arguments: str, url: URL | None = None, **variables: str
    ) -> subprocess.Popen[str]:
        """Begin a command, with DATABASE_URL and the *variables* alone."""
        if url is not None:
            variables["DATABASE_URL"] = url.render_as_string(hide_password=False)
        process = subprocess.Popen(
            [sys.executable, "-m", "alembic", "-c", ROOT / "alembic.ini", *arguments],
            cwd=self._folder,
            env={"PATH": os.defpath, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def run(self, *arguments: str, url: URL | None = None, **variables: str) -> str:
        """Run a command that succeeds; what it printed."""
        code, said, complaint = self.end(self.start(*arguments, url=url, **variables))
        assert code == 0, complaint
        return said

    def fail(self, *arguments: str, url: URL | None = None, **variables: str) -> str:
        """Run a command that fails; its complaint, which is no stack trace."""
        code, said, complaint = self.end(self.start(*arguments, url=url, **variables))
        assert code != 0
        assert "Traceback" not in complaint
        return said + complaint

    @staticmethod
    def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
        """Wait for a command; its exit code and what it printed."""
        with process:
            said, complaint = process.communicate()
        return process.returncode, said, complaint

    def kill(self) -> None:
        """End the commands that a failed test has left."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                self.end(process)


@pytest.fixture
def alembic(tmp_path: Path) -> Iterator[Alembic]:
    """Alembic's command line."""
    alembic = Alembic(tmp_path)
    yield alembic
    alembic.kill()


@contextmanager
def make_home(server: EmbeddedServer) -> Iterator[Path]:
    """Make the home of another server with the programs of *server*, and destroy it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="pgcorpus-tests-"))
    folder.chmod(0o755)
    share_programs(server, folder)
    try:
        yield folder
    finally:
        EmbeddedServer(folder).destroy()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def home(server: EmbeddedServer) -> Iterator[Path]:
    """The home of a second server: its programs are there, to be started or to be spoilt."""
    with make_home(server) as folder:
        yield folder


def python(*arguments: str | Path, folder: Path, **variables: str) -> str:
    """Run Python in another folder; what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The wheel, as a release makes it."""
    folder = tmp_path_factory.mktemp("wheel")
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, folder=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture
def environment(wheel: Path, tmp_path: Path) -> Path:
    """A virtual environment that has the wheel, and what it depends on, and no checkout."""
    folder = tmp_path / "environment"
    python("-m", "venv", "--without-pip", folder, folder=tmp_path)
    (packages,) = folder.glob("lib/python*/site-packages")
    # fmt: off
    python(
        "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index",
        "--no-deps", "--target", packages, wheel,
        folder=tmp_path,
    )
    # fmt: on
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder
