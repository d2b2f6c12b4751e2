"""PgBouncer before the test server: transactions take turns on its connections.

``python -m tests.pooler`` runs the contract of the corpora and the tests of workers, imports and
memories behind it; further arguments are pytest's.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

from pgcorpus.db.embedded import HOST, EmbeddedServer, _free_port
from pgcorpus.db.settings import Settings

PROJECT: Final = Path(__file__).parents[1]
PROGRAMS: Final = (os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin")
"""Debian has it where only root's PATH leads."""

PROGRAM: Final = shutil.which("pgbouncer", path=os.pathsep.join(PROGRAMS))
NEEDED: Final = "pgbouncer is not installed; on Debian: apt-get install pgbouncer"

SUITES: Final = sorted(
    {
        str(path.relative_to(PROJECT))
        for pattern in (
            "db/search/test_contract.py",
            "db/repositories/memory/test_nodes.py",
            "services/chat/importing/test_*.py",
            "services/cli/test_*import*.py",
            "services/cli/test_memory.py",
            "services/importers/test_*.py",
            "services/jobs/test_*.py",
            "services/knowledge/test_*.py",
            "services/memory/**/test_*.py",
        )
        for path in (PROJECT / "tests").glob(pattern)
    }
)
"""The tests of searches, jobs, imports and memories."""

CONFIGURATION: Final = """
[databases]
* = host={host} port={port}

[pgbouncer]
listen_addr = {host}
listen_port = {own_port}
unix_socket_dir =
pidfile = {folder}/pid
logfile = {folder}/log
auth_type = scram-sha-256
auth_file = {folder}/users
auth_user = {user}
auth_query = SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1 AND rolcanlogin
admin_users = {user}
pool_mode = transaction
default_pool_size = {pool_size}
server_round_robin = 1
max_client_conn = 1000
ignore_startup_parameters = {ignored}
"""
"""Debian's configuration, but for the mode; one transaction after the other goes to another
connection."""


def variables_of(settings: Settings) -> dict[str, str]:
    """Return the environment of a process that reaches the database by the same way."""
    addresses = {"DATABASE_URL": settings.database_url, "DATABASE_ADMIN_URL": settings.admin_url}
    return {"DB_POOLER": settings.pooler} | {
        name: url.render_as_string(hide_password=False)
        for name, url in addresses.items()
        if url is not None
    }


def install() -> bool:
    """Install PgBouncer from Debian's package: as root, where there is apt-get."""
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        return False
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", "pgbouncer"]):
        done = subprocess.run([apt, "--quiet", *arguments], check=False, env=environment)
    return done.returncode == 0


def main() -> int:
    """Run the suites, or say what they need; pytest's exit code, and 0 without PgBouncer."""
    if PROGRAM is None:
        sys.stdout.write(f"behind a transaction pooler: not tested: {NEEDED}\n")
        return 0
    command = [sys.executable, "-m", "pytest", "--pooler", *sys.argv[1:], *SUITES]
    ours = {name: value for name, value in os.environ.items() if name != "PROVE_DATABASE_URL"}
    return subprocess.run(command, check=False, cwd=PROJECT, env=ours).returncode


class PgBouncer:
    """A pooler of transactions, for whoever may log in to a server.

    Args:
        server: What it stands before.
        pool_size: Connections that it opens for each database and login.
        ignored: Parameter of a start-up that it passes over instead of refusing it.
    """

    def __init__(self, server: EmbeddedServer, *, pool_size: int = 10, ignored: str = "") -> None:
        self._server = server
        self._ignored = ignored
        self._pool_size = pool_size
        self.port = _free_port()

    def __enter__(self) -> Self:
        url, account = self._server.url, self._server._account
        self._folder = Path(tempfile.mkdtemp(prefix="pgcorpus-pooler-"))
        configuration = CONFIGURATION.format(
            host=HOST,
            port=url.port,
            own_port=self.port,
            folder=self._folder,
            user=url.username,
            pool_size=self._pool_size,
            ignored=self._ignored,
        )
        (self._folder / "ini").write_text(configuration)
        (self._folder / "users").write_text(f'"{url.username}" "{url.password}"\n')
        for path in (self._folder, *self._folder.iterdir()):
            self._server._give(path)
        assert PROGRAM is not None, NEEDED
        self._process = subprocess.Popen(
            [PROGRAM, "--quiet", self._folder / "ini"],
            user=account and account.uid,
            group=account and account.gid,
            extra_groups=account and [],
        )
        self._wait_until_it_listens()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self._folder)

    def settings(self, settings: Settings) -> Settings:
        """Return *settings* with the pooler before their database, where it is the server's."""
        url = settings.database_url
        if url is None or url.port != self._server.url.port:
            return settings
        through = url.set(port=self.port)
        return replace(settings, database_url=through, admin_url=url, pooler="transaction")

    def _wait_until_it_listens(self) -> None:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex((HOST, self.port)) == 0:
                    return
            assert self._process.poll() is None, (self._folder / "log").read_text()
            time.sleep(0.05)
        raise AssertionError((self._folder / "log").read_text())


if __name__ == "__main__":
    sys.exit(main())
