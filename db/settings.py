"""Settings from the environment and ``.env``, checked once, with errors that name the cure."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import psycopg
from dotenv import dotenv_values, find_dotenv
from psycopg.conninfo import make_conninfo
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from pgcorpus.db.errors import SettingsError

ENVIRONMENTS: Final = ("development", "test", "production")
LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
LOG_FORMATS: Final = ("text", "json")
SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
ENCRYPTED_SSL_MODES: Final = ("require", "verify-ca", "verify-full")
TLS_VERSIONS: Final = ("TLSv1.2", "TLSv1.3")
POOLERS: Final = ("none", "transaction")
DATABASE_TYPES: Final = ("postgresql", "postgres", "sqlite")
DRIVER: Final = "postgresql+psycopg"

SEVERAL_HOSTS: Final = re.compile(
    r"(?P<login>[\w+]+://(?:[^@]*@)?)(?P<hosts>[^/?@]*,[^/?@]*)(?P<rest>(?:[/?].*)?)", re.DOTALL
)
BETWEEN_ADDRESSES: Final = re.compile(r"[\s,]+(?=[\w+]+://)")
HOST_AND_PORT: Final = re.compile(r"(\[.*\]|[^:]*):([^:]*)")


class Address(URL):
    """An address of a database whose text hides its secrets, the password of a key included."""

    def render_as_string(self, hide_password: bool = True) -> str:
        """Return it as text; see ``sqlalchemy.URL``."""
        shown: URL = URL._make(self)
        if hide_password and "sslpassword" in self.query:
            shown = shown.update_query_dict({"sslpassword": "***"})
        return shown.render_as_string(hide_password)

    def __repr__(self) -> str:
        return self.render_as_string()

    def __str__(self) -> str:
        return self.render_as_string()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of the environment, typed and checked.

    The pool's figures are those of the knowledge base's engineering specification.

    Attributes:
        database_url: Where the database is, or None: the embedded server is used. Never printed:
            its options may hold secrets, too.
        admin_url: The server's own address, for what needs a session: upgrades, model switches,
            workers that listen. None: ``database_url``. Never printed, either.
        read_urls: Addresses of standbys that searches read from. Never printed, either.
        read_max_lag_seconds: Lag of a standby up to which it is read from.
        pooler: ``transaction`` when ``database_url`` is a pooler's that lends its connections for
            one transaction each.
        home: Folder of the embedded server.
        pool_size: Connections kept open.
        max_overflow: Connections opened beyond these under load.
        processes: How many processes connect with these settings; ``doctor`` multiplies.
        pool_timeout_seconds: How long a caller waits for a free connection.
        pool_recycle_seconds: Age at which a connection is replaced.
        connect_timeout_seconds: How long one attempt to connect may take.
        connect_retry_seconds: How long attempts are repeated before ``DatabaseUnavailable``.
        keepalives_idle_seconds: Silence on a connection after which TCP asks whether the other side
            is there; and, without an answer, how often after how long again:
        keepalives_interval_seconds: Between two such questions.
        keepalives_count: Questions without an answer after which the connection is lost.
        tcp_user_timeout_ms: How long data that was sent may stay unacknowledged; 0 leaves it to the
            system (Linux: a quarter of an hour).
        statement_timeout_ms: PostgreSQL ends a statement that runs longer; 0 is never.
        application_name: Shown in ``pg_stat_activity``.
        ssl_mode: libpq's ``sslmode``.
        ssl_ca_cert: File of the certificate authority, for ``verify-ca`` and ``verify-full``.
        ssl_min_protocol_version: Oldest TLS version that is spoken.
        openai_api_key: Secret; never printed.
        openai_base_url: Endpoint that speaks OpenAI's protocol, or None for OpenAI's own. Never
            printed: it may hold a password.
        embedding_model: Overrides each corpus's active model, or None.
        environment: In production nothing falls back to an offline substitute.
        log_level: Threshold of the loggers of ``db`` and ``services``.
        log_format: ``text``, ``json``, or None: JSON in production, else text.
        metrics_enabled: Whether searches are timed into ``query_performance_log``.
        metrics_sample_percent: Which share of them.
        metrics_slow_ms: Duration from which a search is slow. The specification's alert is 500 ms.
        metrics_questions: Whether the log keeps the questions of slow searches, those of a tenant
            or a user excepted: ``pgcorpus performance --plan`` then need not be told them.
        disk_gb: Size of the disk that the server keeps its data on, or 0 where it is not known.
        recall_percent: Which share of the searches by vectors ``Metrics`` repeats exactly.
        tracing_enabled: Whether commands make spans of OpenTelemetry.
        audit_key: Secret; signs the seals of the audit log. Never printed.
        audit_former_keys: Secrets that signed them before, the last one first. Never printed.
        backup_folder: Where backups are.
        backup_retention_days: Age in days from which ``backup prune`` deletes them.
        backup_key: Secret; encrypts backups, or None. Never printed.
        programs: Folder of ``pg_dump`` and ``pg_restore``, or None for the embedded server's or
            those on the PATH.
        database_type: ``postgresql``, or ``sqlite``: what ``make_adapter`` makes an adapter of.
        sqlite_path: The file of SQLite's.
    """

    database_url: URL | None = field(default=None, repr=False)
    admin_url: URL | None = field(default=None, repr=False)
    read_urls: tuple[URL, ...] = field(default=(), repr=False)
    read_max_lag_seconds: int = 10
    pooler: str = "none"
    home: Path = Path(".pgcorpus")
    pool_size: int = 20
    max_overflow: int = 30
    processes: int = 1
    pool_timeout_seconds: int = 30
    pool_recycle_seconds: int = 3600
    connect_timeout_seconds: int = 10
    connect_retry_seconds: int = 30
    keepalives_idle_seconds: int = 30
    keepalives_interval_seconds: int = 10
    keepalives_count: int = 3
    tcp_user_timeout_ms: int = 30_000
    statement_timeout_ms: int = 30_000
    application_name: str = "pgcorpus"
    ssl_mode: str = "prefer"
    ssl_ca_cert: Path | None = None
    ssl_min_protocol_version: str = "TLSv1.2"
    openai_api_key: str | None = field(default=None, repr=False)
    openai_base_url: str | None = field(default=None, repr=False)
    embedding_model: str | None = None
    environment: str = "development"
    log_level: str = "INFO"
    log_format: str | None = None
    metrics_enabled: bool = True
    metrics_sample_percent: int = 100
    metrics_slow_ms: int = 500
    metrics_questions: bool = False
    disk_gb: int = 0
    recall_percent: int = 1
    tracing_enabled: bool = False
    audit_key: str | None = field(default=None, repr=False)
    audit_former_keys: tuple[str, ...] = field(default=(), repr=False)
    backup_folder: Path = Path(".pgcorpus/backups")
    backup_retention_days: int = 30
    backup_key: str | None = field(default=None, repr=False)
    programs: Path | None = None
    database_type: str = "postgresql"
    sqlite_path: Path = Path("docfoundry.db")

    def __post_init__(self) -> None:
        if self.database_url is not None:
            object.__setattr__(self, "database_url", Address._make(self.database_url))
        object.__setattr__(self, "read_urls", tuple(map(Address._make, self.read_urls)))

    @property
    def production(self) -> bool:
        """True if this is a production deployment."""
        return self.environment == "production"

    @property
    def logs_json(self) -> bool:
        """True if log lines are JSON."""
        return (self.log_format or ("json" if self.production else "text")) == "json"

    @property
    def is_pooled(self) -> bool:
        """True if a transaction pooler stands before the database; never before the embedded."""
        return self.pooler == "transaction" and self.database_url is not None

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read and check every variable.

        Args:
            environ: The variables; by default those of the process over those of the nearest
                ``.env`` at or above the working directory.

        Returns:
            The settings. Variables that are absent or empty have their defaults.

        Raises:
            SettingsError: A value cannot be used. The message names the variable, the kind of
                value it takes and what is allowed, and never shows a secret.
        """
        if environ is None:
            environ = environment()
        given = {name: value.strip() for name, value in environ.items() if value.strip()}
        values = {
            name: parse(variable, given[variable])
            for variable, (name, parse) in VARIABLES.items()
            if variable in given
        }
        url, admin_url = _database_url(given), _admin_url(given)
        weigh = (values.get("ssl_mode"), values.get("ssl_ca_cert"))
        mode = _ssl_mode(given, url, *weigh)
        read_urls = _read_urls(given)

        def weigh_own(other: URL) -> URL:
            own = _ssl_mode(given, other, *weigh) if "sslmode" in other.query else mode
            return other.update_query_dict({"sslmode": own})

        addresses = {
            "database_url": url,
            "admin_url": None if admin_url is None else weigh_own(admin_url),
            "read_urls": tuple(map(weigh_own, read_urls)),
        }
        settings = cls(**(values | addresses | {"ssl_mode": mode}))
        _refuse_unusable_pooler(settings)
        if settings.production and url is None:
            raise SettingsError(
                "DATABASE_URL environment variable not set. "
                "DATABASE_URL must be set when ENVIRONMENT is production: "
                "the embedded server is for development"
            )
        return settings


def text(variable: str, value: str) -> str:  # noqa: ARG001 - every parser has this shape
    """Accept any text."""
    return value


def boolean(variable: str, value: str) -> bool:
    """Read ``true`` or ``false``, and the usual other spellings."""
    if value.lower() in {"true", "1", "yes", "on"}:
        return True
    if value.lower() in {"false", "0", "no", "off"}:
        return False
    raise SettingsError(f"{variable}={value!r} is not a boolean; allowed: true, false")


def integer(low: int, high: int) -> Callable[[str, str], int]:
    """Build a reader of whole numbers in a range, ends included."""

    def parse(variable: str, value: str) -> int:
        if re.fullmatch("[0-9]{1,18}", value) and low <= int(value) <= high:
            return int(value)
        raise SettingsError(
            f"{variable}={value!r} is not a usable whole number; allowed: {low} to {high}"
        )

    return parse


def choice(allowed: tuple[str, ...]) -> Callable[[str, str], str]:
    """Build a reader of one of a few words, in any case."""

    def parse(variable: str, value: str) -> str:
        for word in allowed:
            if word.lower() == value.lower():
                return word
        raise SettingsError(
            f"{variable}={value!r} is not a known choice; allowed: {', '.join(allowed)}"
        )

    return parse


def database_type(variable: str, value: str) -> str:
    """Read the kind of database, of which PostgreSQL has two names."""
    word = choice(DATABASE_TYPES)(variable, value)
    return "sqlite" if word == "sqlite" else "postgresql"


def path(variable: str, value: str) -> Path:
    """Read the path of a file, which may not exist yet."""
    if Path(value).is_dir():
        raise SettingsError(f"{variable}={value!r} is a folder; allowed: the path of a file")
    return Path(value)


def file(variable: str, value: str) -> Path:
    """Read the path of a file that exists."""
    if not Path(value).is_file():
        raise SettingsError(f"{variable}={value!r} is not a file; allowed: the path of a PEM file")
    return Path(value)


def folder(variable: str, value: str) -> Path:
    """Read the path of a folder, which may not exist yet."""
    if Path(value).exists() and not Path(value).is_dir():
        raise SettingsError(f"{variable}={value!r} is not a folder; allowed: the path of a folder")
    return Path(value)


def existing_folder(variable: str, value: str) -> Path:
    """Read the path of a folder that exists."""
    if not Path(value).is_dir():
        raise SettingsError(f"{variable}={value!r} is not a folder; allowed: a folder that exists")
    return Path(value)


def http_url(variable: str, value: str) -> str:
    """Read the address of a web service."""
    try:
        parts = urlsplit(value)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an unclosed bracket, a port that is none; the value may hold a password
        usable = False
    if not usable:
        raise SettingsError(f"{variable} is not a web address; allowed: http://... or https://...")
    return value


def secret(least: int) -> Callable[[str, str], str]:
    """Build a reader of secrets of a least length, which no message shows."""

    def parse(variable: str, value: str) -> str:
        if len(value) < least:
            raise SettingsError(
                f"{variable} is too short to keep a secret; allowed: {least} characters or more, "
                "as from: openssl rand -hex 32"
            )
        return value

    return parse


def secrets(least: int) -> Callable[[str, str], tuple[str, ...]]:
    """Build a reader of secrets with commas between them."""
    parse = secret(least)
    return lambda variable, value: tuple(parse(variable, each) for each in value.split(","))


MAX_PORT: Final = 65_535
PORT = integer(1, MAX_PORT)
POSTGRES_VARIABLES: Final = (
    "POSTGRES_PORT",
    "POSTGRES_DB",
    "POSTGRES_USER",
    "POSTGRES_PASSWORD",
)
"""Variables that mean nothing without ``POSTGRES_HOST``."""
VARIABLES: Final[Mapping[str, tuple[str, Callable[[str, str], Any]]]] = {
    "PGCORPUS_HOME": ("home", folder),
    "DB_POOL_SIZE": ("pool_size", integer(1, 1000)),
    "DB_MAX_OVERFLOW": ("max_overflow", integer(0, 1000)),
    "DB_PROCESSES": ("processes", integer(1, 10_000)),
    "DB_READ_MAX_LAG": ("read_max_lag_seconds", integer(2, 3600)),
    "DB_POOLER": ("pooler", choice(POOLERS)),
    "DB_POOL_TIMEOUT": ("pool_timeout_seconds", integer(1, 3600)),
    "DB_POOL_RECYCLE": ("pool_recycle_seconds", integer(1, 86_400)),
    "DB_CONNECT_TIMEOUT": ("connect_timeout_seconds", integer(1, 600)),
    "DB_CONNECT_RETRY": ("connect_retry_seconds", integer(0, 3600)),
    "DB_KEEPALIVES_IDLE": ("keepalives_idle_seconds", integer(1, 32_767)),
    "DB_KEEPALIVES_INTERVAL": ("keepalives_interval_seconds", integer(1, 32_767)),
    "DB_KEEPALIVES_COUNT": ("keepalives_count", integer(1, 127)),
    "DB_TCP_USER_TIMEOUT_MS": ("tcp_user_timeout_ms", integer(0, 3_600_000)),
    "DB_STATEMENT_TIMEOUT_MS": ("statement_timeout_ms", integer(0, 86_400_000)),
    "DB_APPLICATION_NAME": ("application_name", text),
    "SSL_MODE": ("ssl_mode", choice(SSL_MODES)),
    "SSL_CA_CERT": ("ssl_ca_cert", file),
    "SSL_MIN_PROTOCOL_VERSION": ("ssl_min_protocol_version", choice(TLS_VERSIONS)),
    "OPENAI_API_KEY": ("openai_api_key", text),
    "OPENAI_BASE_URL": ("openai_base_url", http_url),
    "EMBEDDING_MODEL": ("embedding_model", text),
    "ENVIRONMENT": ("environment", choice(ENVIRONMENTS)),
    "LOG_LEVEL": ("log_level", choice(LOG_LEVELS)),
    "LOG_FORMAT": ("log_format", choice(LOG_FORMATS)),
    "METRICS_ENABLED": ("metrics_enabled", boolean),
    "METRICS_SAMPLE_PERCENT": ("metrics_sample_percent", integer(1, 100)),
    "METRICS_SLOW_MS": ("metrics_slow_ms", integer(1, 3_600_000)),
    "METRICS_QUESTIONS": ("metrics_questions", boolean),
    "DB_DISK_GB": ("disk_gb", integer(0, 1_000_000)),
    "METRICS_RECALL_PERCENT": ("recall_percent", integer(0, 100)),
    "TRACING_ENABLED": ("tracing_enabled", boolean),
    "PGCORPUS_AUDIT_KEY": ("audit_key", secret(32)),
    "PGCORPUS_AUDIT_FORMER_KEYS": ("audit_former_keys", secrets(32)),
    "BACKUP_DIR": ("backup_folder", folder),
    "BACKUP_RETENTION_DAYS": ("backup_retention_days", integer(1, 36_500)),
    "BACKUP_KEY": ("backup_key", secret(32)),
    "PGCORPUS_PROGRAMS": ("programs", existing_folder),
    "DOCFOUNDRY_DB_TYPE": ("database_type", database_type),
    "DATABASE_TYPE": ("database_type", database_type),  # goes before the older name above
    "SQLITE_PATH": ("sqlite_path", path),
}
"""Variable → the setting it fills and how its value is read.

The addresses (``DATABASE_URL``, ``DATABASE_ADMIN_URL``, ``DATABASE_READ_URLS``, ``POSTGRES_*``)
and ``SSL_REQUIRE`` are read together, below.
"""


def environment() -> dict[str, str]:
    """Return the process's variables, over those of the nearest ``.env``."""
    return _dotenv() | dict(os.environ)


def _dotenv() -> dict[str, str]:
    """Read the variables of the nearest ``.env`` at or above the working directory."""
    try:
        found = dotenv_values(find_dotenv(usecwd=True))
    except UnicodeDecodeError:  # it holds what was read, perhaps a secret: not chained
        raise SettingsError(".env is not a text file in UTF-8; save it as one") from None
    except OSError as error:
        raise SettingsError(
            f"the working directory or its .env cannot be read: {error.strerror}"
        ) from error
    return {name: value for name, value in found.items() if value}


def _database_url(given: Mapping[str, str]) -> URL | None:
    """Return ``DATABASE_URL``, else the address of the ``POSTGRES_*`` variables, else None."""
    if "DATABASE_URL" in given:
        return _address("DATABASE_URL", given["DATABASE_URL"])
    if "POSTGRES_HOST" in given:
        return URL.create(
            DRIVER,
            username=given.get("POSTGRES_USER", "postgres"),
            password=given.get("POSTGRES_PASSWORD"),
            host=given["POSTGRES_HOST"],
            port=PORT("POSTGRES_PORT", given.get("POSTGRES_PORT", "5432")),
            database=given.get("POSTGRES_DB", "pgcorpus"),
        )
    if ignored := sorted(name for name in given if name in POSTGRES_VARIABLES):
        raise SettingsError(
            f"{', '.join(ignored)} would be ignored: set POSTGRES_HOST, too (or DATABASE_URL), or "
            "unset them all to use the embedded server"
        )
    return None


def _admin_url(given: Mapping[str, str]) -> URL | None:
    """Return ``DATABASE_ADMIN_URL``, which stands beside an address of the database."""
    if "DATABASE_ADMIN_URL" not in given:
        return None
    if not given.keys() & {"DATABASE_URL", "POSTGRES_HOST"}:
        raise SettingsError(
            "DATABASE_ADMIN_URL would be ignored: set DATABASE_URL or POSTGRES_HOST, too"
        )
    return _address("DATABASE_ADMIN_URL", given["DATABASE_ADMIN_URL"])


def _read_urls(given: Mapping[str, str]) -> list[URL]:
    """Return the addresses of ``DATABASE_READ_URLS``, which stand beside that of the primary."""
    if "DATABASE_READ_URLS" not in given:
        return []
    if not given.keys() & {"DATABASE_URL", "POSTGRES_HOST"}:
        raise SettingsError(
            "DATABASE_READ_URLS would be ignored: set DATABASE_URL or POSTGRES_HOST to the address "
            "of the primary, too"
        )
    written = BETWEEN_ADDRESSES.split(given["DATABASE_READ_URLS"].strip(", "))
    return [_address("DATABASE_READ_URLS", each) for each in written]


def _address(variable: str, value: str) -> URL:
    """Read the address of a database, and hide its password from every repr."""
    try:
        url = _list_hosts(make_url(_move_hosts(value)))
        backend = url.get_backend_name()
    except (ArgumentError, ValueError):
        backend = ""  # the value may hold a password: it is neither chained nor shown
    if backend not in {"postgresql", "postgres"}:
        raise SettingsError(
            f"{variable} is not a database address; "
            "allowed: postgresql://user:password@host:port/database"
        )
    _refuse_unusable_options(variable, url)
    if "password" in url.query:  # libpq allows it there, but a repr would show it
        url = url.set(password=url.normalized_query["password"][-1])
    return url.set(drivername=DRIVER).difference_update_query(["password"])


def _move_hosts(value: str) -> str:
    """Write libpq's list of hosts, ``//user@one:5432,two:5432/database``, as SQLAlchemy has it."""
    found = SEVERAL_HOSTS.fullmatch(value)
    if found is None:
        return value
    hosts = "&".join(f"host={quote(each, safe=':[]')}" for each in found["hosts"].split(","))
    path, _, query = found["rest"].partition("?")
    return f"{found['login']}{path or '/'}?{hosts}&{query}".removesuffix("&")


def _list_hosts(url: URL) -> URL:
    """Write several hosts of an address as libpq's parameters have them: ``host=a,b&port=1,2``."""
    hosts = url.query.get("host", "")
    if isinstance(hosts, str):
        return url
    named = [(each, HOST_AND_PORT.fullmatch(each)) for each in hosts]
    names = ",".join((found[1] if found else each).strip("[]") for each, found in named)
    ports = ",".join((found[2] if found else "") or "5432" for _, found in named)
    return url.update_query_dict({"host": names, "port": url.query.get("port", ports)})


def _refuse_unusable_pooler(settings: Settings) -> None:
    """Raise for settings that a transaction pooler would refuse.

    Raises:
        SettingsError: The address has options of a session.
    """
    if not settings.is_pooled:
        return
    urls = {"DATABASE_URL": [settings.database_url], "DATABASE_READ_URLS": settings.read_urls}
    for variable, addresses in urls.items():
        if any(url is not None and "options" in url.query for url in addresses):
            raise SettingsError(
                f"{variable} has options= after its '?', which a transaction pooler does not pass "
                "on; leave them out, or set them for the role: ALTER ROLE ... SET ..."
            )


def _refuse_unusable_options(variable: str, url: URL) -> None:
    """Raise for options that would fail on the first connection, without showing any of them.

    Raises:
        SettingsError: A port that is none, or an option that libpq does not know.
    """
    ports = ["" if url.port is None else str(url.port), *url.normalized_query.get("port", ())]
    for port in ",".join(ports).split(","):
        if port and not (re.fullmatch("[0-9]{1,5}", port) and 1 <= int(port) <= MAX_PORT):
            raise SettingsError(f"{variable} has an unusable port; allowed: 1 to {MAX_PORT}")
    try:
        make_conninfo("", **dict.fromkeys(url.query, ""))
    except psycopg.ProgrammingError:
        raise SettingsError(
            f"{variable} has an unknown option after its '?'; "
            "allowed: libpq's connection parameters, such as sslmode or connect_timeout"
        ) from None


def _ssl_mode(
    given: Mapping[str, str], url: URL | None, mode: str | None, ca_cert: Path | None
) -> str:
    """Return ``SSL_MODE``, else the address's own, else the least that ``SSL_REQUIRE`` asks for."""
    required = "SSL_REQUIRE" in given and boolean("SSL_REQUIRE", given["SSL_REQUIRE"])
    of_url = str(url.query["sslmode"]) if url is not None and "sslmode" in url.query else None
    least = "prefer" if not required else "verify-full" if ca_cert else "require"
    chosen = mode or of_url or least
    if required and chosen not in ENCRYPTED_SSL_MODES:
        raise SettingsError(
            f"sslmode {chosen!r} allows a plain connection, but SSL_REQUIRE is true; "
            f"allowed: {', '.join(ENCRYPTED_SSL_MODES)}"
        )
    return chosen
