"""The files of ``deploy/``, loaded by a real server: TLS alone, SCRAM, and who may log in."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL, create_engine, text

from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DatabaseUnavailable
from pgcorpus.db.migrations import upgrade
from pgcorpus.db.settings import Settings
from tests.db.test_embedded import share_programs

DEPLOY = Path(__file__).parents[2] / "deploy"
ADDRESSES = ("10.0.0.0/8", "10.0.1.0/24")
PASSWORD = "invented_with_a_'quote'_and_a_%"

FIGURES = {
    "ssl": "on",
    "ssl_min_protocol_version": "TLSv1.2",
    "password_encryption": "scram-sha-256",
    "authentication_timeout": "30s",
    "max_connections": "200",
    "superuser_reserved_connections": "3",
    "log_disconnections": "on",
    "log_statement": "ddl",
    "log_line_prefix": "%t [%p]: [%l-1] user=%u,db=%d,app=%a,client=%h ",
    "shared_buffers": "256MB",
    "effective_cache_size": "1GB",
    "work_mem": "32MB",
    "maintenance_work_mem": "256MB",
    "checkpoint_completion_target": "0.9",
    "wal_buffers": "16MB",
    "default_statistics_target": "100",
    "random_page_cost": "1.1",
    "effective_io_concurrency": "200",
}
"""Settings in the specification's "Infrastructure Setup Script" and "Connection Security"."""

SSL_REQUEST = struct.pack("!ii", 8, 80877103)
"""The first message of a client that wants TLS: "SSL Session Encryption" of the protocol."""


def openssl(*arguments: str | Path) -> None:
    """Run openssl."""
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)  # noqa: S607


def make_authority(folder: Path, name: str) -> Path:
    """Make a certificate authority of our own; its key lies beside it."""
    # fmt: off
    openssl(
        "req", "-x509", "-nodes", "-days", "2", "-subj", f"/CN={name}", "-newkey", "ec",
        "-pkeyopt", "ec_paramgen_curve:prime256v1",
        "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt",
    )
    # fmt: on
    return folder / f"{name}.crt"


def make_certificate(folder: Path, authority: Path) -> tuple[Path, Path]:
    """Make the certificate of 127.0.0.1, signed by the authority, and its key."""
    file, key, request = (folder / f"server.{kind}" for kind in ("crt", "key", "csr"))
    names = folder / "names"
    names.write_text("subjectAltName=IP:127.0.0.1")
    # fmt: off
    openssl(
        "req", "-nodes", "-subj", "/CN=database", "-newkey", "ec",
        "-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", key, "-out", request,
    )
    openssl(
        "x509", "-req", "-days", "2", "-in", request, "-CA", authority,
        "-CAkey", authority.with_suffix(".key"), "-CAcreateserial", "-extfile", names, "-out", file,
    )
    # fmt: on
    return file, key


@dataclass(frozen=True)
class Production:
    """A server that was set up as the page says.

    Attributes:
        owner: Address of the database for its owner.
        authority: The certificate of the authority that signed the server's.
        conf: Its copy of ``postgresql.conf``.
        server: The server.
    """

    owner: URL
    authority: Path
    conf: Path
    server: EmbeddedServer

    def over(self, url: URL | None = None, **variables: str) -> tuple[bool, str | None]:
        """Return whether a connection with these settings is encrypted, and its protocol."""
        address = (url or self.owner).render_as_string(hide_password=False)
        database = Database(
            Settings.from_env({"DATABASE_URL": address, "DB_CONNECT_RETRY": "0"} | variables)
        )
        try:
            with database.engine.connect() as connection:
                used = "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
                return tuple(connection.execute(text(used)).one())
        finally:
            database.close()

    @contextmanager
    def change_settings(self, line: str) -> Iterator[None]:
        """Add a line to the settings for a while."""
        before = self.conf.read_text()
        try:
            self.reload(f"{before}{line}\n")
            yield
        finally:
            self.reload(before)

    def reload(self, settings: str) -> None:
        """Let the server read other settings, and wait until it has."""
        self.conf.write_text(settings)
        data, read_at = self.server.status().data, self._find_load_time()
        self.server._run(self.server.bin / "pg_ctl", "reload", "--pgdata", data, home=data.parent)
        deadline = time.monotonic() + 30
        while self._find_load_time() == read_at:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def _find_load_time(self) -> object:
        """Return when the server read its settings last."""
        address = self.owner.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(address) as connection:
            return connection.execute("SELECT pg_conf_load_time()").fetchone()

    @property
    def trusted(self) -> dict[str, str]:
        """Settings of a client that trusts the authority."""
        return {"SSL_REQUIRE": "true", "SSL_CA_CERT": str(self.authority)}


@pytest.fixture(scope="module")
def production(server: EmbeddedServer) -> Iterator[Production]:
    """A server of its own with ``postgresql.conf`` and ``pg_hba.conf``, and the newest schema.

    Only what is of another machine is replaced: the addresses, and the place of the certificate.
    """
    if shutil.which("openssl") is None:
        pytest.skip("the certificates are made by openssl, which this machine does not have")
    home = Path(tempfile.mkdtemp(prefix="pgcorpus-tests-"))
    home.chmod(0o755)
    share_programs(server, home)
    first = EmbeddedServer(home)
    administrator = first.start()
    prepare(first, administrator)
    engine = create_engine(administrator)
    with engine.begin() as connection:  # for the test of the figures
        connection.execute(text("GRANT pg_read_all_settings TO pgcorpus_owner"))
    engine.dispose()
    first.stop()

    authority = make_authority(home, "authority")
    file, key = make_certificate(home, authority)
    hba = home / "pg_hba.conf"
    rules = (DEPLOY / "pg_hba.conf").read_text()
    for address in ADDRESSES:
        assert address in rules
        rules = rules.replace(address, "127.0.0.1/32")
    hba.write_text(rules)
    conf = home / "postgresql.conf"
    shutil.copy(DEPLOY / "postgresql.conf", conf)
    for path in (file, key, hba, conf):
        path.chmod(0o600)
        first._give(path)
    with (first._data / "postgresql.conf").open("a") as config:
        config.write(f"\ninclude '{conf}'\n")
    started = EmbeddedServer(
        home,
        settings={
            "ssl_cert_file": str(file),
            "ssl_key_file": str(key),
            "hba_file": str(hba),
        },
    )
    try:
        # The embedded server's own login is a superuser over TCP, which is refused here.
        launch(started)
        port = started.status().port
        assert port is not None
        owner = administrator.set(
            username="pgcorpus_owner", password=PASSWORD, port=port, database="pgcorpus"
        )
        yield Production(owner, authority, conf, started)
    finally:
        started.stop()
        started.destroy()
        shutil.rmtree(home, ignore_errors=True)


def launch(server: EmbeddedServer) -> None:
    """Start a server whose ``pg_hba.conf`` refuses the login that ``start`` ends with."""
    with server._hold_lock():
        server._launch()


def prepare(server: EmbeddedServer, administrator: URL) -> None:
    """Run ``prepare.sql`` by psql, as the administrator of a new server does.

    The embedded server has made a database of that name already.
    """
    engine = create_engine(administrator.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("DROP DATABASE pgcorpus WITH (FORCE)"))
    engine.dispose()
    without = run_psql(server, administrator)
    assert (without.returncode, "PGCORPUS_OWNER_PASSWORD is not set" in without.stderr) == (3, True)
    done = run_psql(server, administrator, PGCORPUS_OWNER_PASSWORD=PASSWORD)
    assert (done.returncode, done.stderr) == (0, "")


def run_psql(
    server: EmbeddedServer, administrator: URL, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run ``prepare.sql``."""
    return subprocess.run(
        [server.bin / "psql", "--no-psqlrc", "--quiet", "--file", DEPLOY / "prepare.sql"],
        env={
            "PATH": os.defpath,
            "PGHOST": str(administrator.host),
            "PGPORT": str(administrator.port),
            "PGUSER": str(administrator.username),
            "PGPASSWORD": str(administrator.password),
            "PGDATABASE": "postgres",
            "LD_LIBRARY_PATH": str(server.bin.parent / "lib"),
            **variables,
        },
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture(scope="module")
def upgraded(production: Production) -> Production:
    """The same with the schema, which its owner made over TLS, and a login of a service."""
    address = production.owner.render_as_string(hide_password=False)
    database = Database(Settings.from_env({"DATABASE_URL": address} | production.trusted))
    upgrade(database)
    with database.unit_of_work() as work:
        work.roles.create_login("service", "rag_read_write", PASSWORD)
        work.roles.create_login("worker", "rag_admin", PASSWORD)
        work.commit()
    with database.engine.begin() as connection:
        connection.execute(text("CREATE ROLE stranger LOGIN PASSWORD 'invented'"))
        connection.execute(text('GRANT CONNECT ON DATABASE "pgcorpus" TO stranger'))
    database.close()
    return production


def test_the_server_has_the_figures_of_the_specification(production: Production) -> None:
    """Each setting is taken, and none is unknown to the server."""
    engine = create_engine(
        production.owner.update_query_dict(
            {"sslmode": "verify-full", "sslrootcert": str(production.authority)}
        )
    )
    try:
        with engine.connect() as connection:
            found = {name: connection.scalar(text(f"SHOW {name}")) for name in FIGURES}
            faults = connection.scalar(
                text("SELECT count(*) FROM pg_settings WHERE pending_restart")
            )
    finally:
        engine.dispose()

    assert found == FIGURES
    assert faults == 0
    written = (DEPLOY / "postgresql.conf").read_text()
    names = {line.split(" = ")[0] for line in written.splitlines() if " = " in line[:50]}
    assert set(FIGURES) <= names


def test_tls_1_3_works_with_the_authority_of_ours(upgraded: Production) -> None:
    """Verified to the name; by the owner, a service and a worker."""
    for name in ("pgcorpus_owner", "service", "worker"):
        url = upgraded.owner.set(username=name)
        used = upgraded.over(url, SSL_MIN_PROTOCOL_VERSION="TLSv1.3", **upgraded.trusted)
        assert used == (True, "TLSv1.3")


def test_another_authority_is_refused(production: Production, tmp_path: Path) -> None:
    """By the client, before it sends a password."""
    stranger = make_authority(tmp_path, "stranger")
    with pytest.raises(DatabaseUnavailable, match="certificate verify failed"):
        production.over(SSL_REQUIRE="true", SSL_CA_CERT=str(stranger))


def test_a_plain_connection_is_refused(upgraded: Production) -> None:
    """By the server, whatever the login; by the client where it requires TLS."""
    for name in ("pgcorpus_owner", "service"):
        with pytest.raises(DatabaseUnavailable, match="no encryption"):
            upgraded.over(upgraded.owner.set(username=name), SSL_MODE="disable")


def test_logins_that_pg_hba_does_not_name_are_refused(upgraded: Production) -> None:
    """A superuser from elsewhere, a login of no group, another database, a wrong password."""
    stranger = upgraded.owner.set(username="stranger", password="invented")
    superuser = upgraded.owner.set(username="postgres")
    for url in (stranger, superuser, upgraded.owner.set(database="postgres")):
        with pytest.raises(DatabaseUnavailable, match=r"pg_hba\.conf rejects connection"):
            upgraded.over(url, **upgraded.trusted)
    with pytest.raises(DatabaseUnavailable, match="password authentication failed"):
        upgraded.over(upgraded.owner.set(password="wrong"), **upgraded.trusted)


def shake_hands(url: URL, newest: ssl.TLSVersion) -> str | None:
    """Offer the server no newer protocol than this; return the one that is spoken then."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")  # or the client would not even offer the old ones
    context.minimum_version = min(newest, ssl.TLSVersion.TLSv1)
    context.maximum_version = newest
    with closing(socket.create_connection((str(url.host), url.port or 0), timeout=10)) as plain:
        plain.sendall(SSL_REQUEST)
        assert plain.recv(1) == b"S"
        with context.wrap_socket(plain) as encrypted:
            return encrypted.version()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_an_old_protocol_is_refused(production: Production) -> None:
    """TLS 1.0 and 1.1 by the server; by a client that wants 1.3, a server that has not got it."""
    assert shake_hands(production.owner, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    for old in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
            shake_hands(production.owner, old)
    newest = {"SSL_MIN_PROTOCOL_VERSION": "TLSv1.3", **production.trusted}
    with production.change_settings("ssl_max_protocol_version = 'TLSv1.2'"):
        assert production.over(**production.trusted) == (True, "TLSv1.2")
        with pytest.raises(DatabaseUnavailable, match=r"(?i)protocol version"):
            production.over(**newest)
    assert production.over(**newest) == (True, "TLSv1.3")


def test_passwords_are_kept_as_scram_and_not_logged(upgraded: Production) -> None:
    """Neither that of the owner, nor those of the logins that it makes."""
    log = upgraded.server.status().log.read_text(errors="replace")
    assert "CREATE TABLE framework_documents" in log  # what is DDL is logged
    assert PASSWORD not in log
    address = upgraded.owner.update_query_dict({"sslmode": "require"})
    with psycopg.connect(
        address.set(drivername="postgresql").render_as_string(hide_password=False)
    ) as connection:
        assert connection.pgconn.used_password
        assert connection.info.parameter_status("server_encoding") == "UTF8"
        (hba,) = connection.execute("SHOW password_encryption").fetchone() or ("",)
    assert hba == "scram-sha-256"


def test_the_rules_are_those_of_the_specification() -> None:
    """No line lets anybody in by MD5, without a password, or without TLS."""
    rules = [
        line.split()
        for line in (DEPLOY / "pg_hba.conf").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    methods = {(kind, method) for kind, *_, method in rules}

    assert methods == {
        ("local", "peer"), ("local", "scram-sha-256"), ("hostssl", "scram-sha-256"),
        ("host", "reject"),
    }  # fmt: skip
    assert [rule[-1] for rule in rules[-2:]] == ["reject", "reject"]
