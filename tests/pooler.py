"""PgBouncer before the test server: transactions take turns on its connections."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

from db.embedded import HOST, EmbeddedServer, _free_port
from db.settings import Settings

PROGRAM: Final = shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
NEEDED: Final = "pgbouncer is not installed; on Debian: apt-get install pgbouncer"

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
"""As Debian's, but for the mode; one transaction after the other goes to another connection."""


def variables_of(settings: Settings) -> dict[str, str]:
    """Return the environment of a process that reaches the database by the same way."""
    addresses = {"DATABASE_URL": settings.database_url, "DATABASE_ADMIN_URL": settings.admin_url}
    return {"DB_POOLER": settings.pooler} | {
        name: url.render_as_string(hide_password=False)
        for name, url in addresses.items()
        if url is not None
    }


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
