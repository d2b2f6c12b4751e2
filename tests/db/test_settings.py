"""Settings: every variable has a default, a good value, and an error that says what is allowed."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import SettingsError
from pgcorpus.db.settings import VARIABLES, Settings

URL = "postgresql://user:hunter2@db.example:5433/corpus"
FILE = Path(__file__)

# variable → (default, a good value, what it becomes, a wrong value, what the error says)
CASES = {
    "PGCORPUS_HOME": (Path(".pgcorpus"), "/srv/pg", Path("/srv/pg"), str(FILE), "not a folder"),
    "DB_POOL_SIZE": (20, "5", 5, "0", "not a usable whole number; allowed: 1 to 1000"),
    "DB_MAX_OVERFLOW": (30, "0", 0, "many", "not a usable whole number; allowed: 0 to 1000"),
    "DB_PROCESSES": (1, "4", 4, "0", "not a usable whole number; allowed: 1 to 10000"),
    "DB_READ_MAX_LAG": (10, "2", 2, "1", "not a usable whole number; allowed: 2 to 3600"),
    "DB_POOLER": ("none", "Transaction", "transaction", "session", "allowed: none, transaction"),
    "DB_POOL_TIMEOUT": (30, "1", 1, "0", "not a usable whole number; allowed: 1 to 3600"),
    "DB_POOL_RECYCLE": (3600, "60", 60, "-1", "not a usable whole number; allowed: 1 to 86400"),
    "DB_CONNECT_TIMEOUT": (10, "3", 3, "3.5", "not a usable whole number; allowed: 1 to 600"),
    "DB_CONNECT_RETRY": (30, "0", 0, "1e3", "not a usable whole number; allowed: 0 to 3600"),
    "DB_KEEPALIVES_IDLE": (30, "60", 60, "0", "not a usable whole number; allowed: 1 to 32767"),
    "DB_KEEPALIVES_INTERVAL": (10, "5", 5, "-", "not a usable whole number; allowed: 1 to 32767"),
    "DB_KEEPALIVES_COUNT": (3, "9", 9, "128", "not a usable whole number; allowed: 1 to 127"),
    "DB_TCP_USER_TIMEOUT_MS": (30_000, "0", 0, "30s", "not a usable whole number; allowed: 0 to"),
    "DB_STATEMENT_TIMEOUT_MS": (30_000, "0", 0, "30s", "not a usable whole number; allowed: 0 to"),
    "DB_APPLICATION_NAME": ("pgcorpus", "billing", "billing", None, None),
    "SSL_MODE": ("prefer", "REQUIRE", "require", "on", "not a known choice; allowed: disable, "),
    "SSL_CA_CERT": (
        None,
        str(FILE),
        FILE,
        "/no/such.pem",
        "not a file; allowed: the path of a PEM",
    ),
    "SSL_MIN_PROTOCOL_VERSION": (
        "TLSv1.2",
        "tlsv1.3",
        "TLSv1.3",
        "TLSv1",
        "not a known choice; allowed: TLSv1.2, TLSv1.3",
    ),
    "OPENAI_API_KEY": (None, "sk-invented", "sk-invented", None, None),
    "OPENAI_BASE_URL": (
        None,
        "http://127.0.0.1:8000/v1",
        "http://127.0.0.1:8000/v1",
        "ftp://x",
        "not a web address; allowed: http://... or https://...",
    ),
    "EMBEDDING_MODEL": (None, "hashing", "hashing", None, None),
    "ENVIRONMENT": (
        "development",
        "TEST",
        "test",
        "prod",
        "allowed: development, test, production",
    ),
    "LOG_LEVEL": ("INFO", "debug", "DEBUG", "LOUD", "allowed: DEBUG, INFO, WARNING, ERROR, CRIT"),
    "METRICS_ENABLED": (True, "off", False, "maybe", "not a boolean; allowed: true, false"),
    "METRICS_SLOW_MS": (500, "20", 20, "0", "not a usable whole number; allowed: 1 to 3600000"),
    "METRICS_QUESTIONS": (False, "on", True, "maybe", "not a boolean; allowed: true, false"),
    "DB_DISK_GB": (0, "500", 500, "-1", "not a usable whole number; allowed: 0 to 1000000"),
    "METRICS_SAMPLE_PERCENT": (100, "1", 1, "0", "not a usable whole number; allowed: 1 to 100"),
    "LOG_FORMAT": (None, "JSON", "json", "xml", "allowed: text, json"),
    "METRICS_RECALL_PERCENT": (1, "0", 0, "101", "not a usable whole number; allowed: 0 to 100"),
    "TRACING_ENABLED": (False, "on", True, "maybe", "not a boolean; allowed: true, false"),
    "DOCFOUNDRY_DB_TYPE": (
        "postgresql",
        "SQLite",
        "sqlite",
        "mysql",
        "postgresql, postgres, sqlite",
    ),
    "DATABASE_TYPE": ("postgresql", "postgres", "postgresql", "pg", "postgresql, postgres, sqlite"),
    "SQLITE_PATH": (Path("docfoundry.db"), "/srv/a.db", Path("/srv/a.db"), "/", "is a folder"),
    "PGCORPUS_AUDIT_KEY": (None, "k" * 32, "k" * 32, "k" * 31, "32 characters or more"),
    "PGCORPUS_AUDIT_FORMER_KEYS": (
        (),
        f"{'k' * 32},{'l' * 32}",
        ("k" * 32, "l" * 32),
        f"{'k' * 32},l",
        "32 characters or more",
    ),
    "BACKUP_DIR": (
        Path(".pgcorpus/backups"),
        "/srv/backups",
        Path("/srv/backups"),
        str(FILE),
        "not a folder",
    ),
    "BACKUP_RETENTION_DAYS": (30, "7", 7, "0", "not a usable whole number; allowed: 1 to 36500"),
    "BACKUP_KEY": (None, "k" * 32, "k" * 32, "k" * 31, "32 characters or more"),
    "PGCORPUS_PROGRAMS": (None, "/", Path("/"), "/no/such", "a folder that exists"),
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder without a ``.env``, at or above it."""
    monkeypatch.chdir(tmp_path)
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def test_every_variable_is_tested() -> None:
    """A new one is noticed."""
    assert set(CASES) == set(VARIABLES)


@pytest.mark.parametrize("variable", CASES)
def test_an_absent_or_empty_variable_has_its_default(variable: str) -> None:
    """Empty is what an unset variable of a compose file looks like."""
    default = CASES[variable][0]
    name = VARIABLES[variable][0]

    assert getattr(Settings.from_env({}), name) == default
    assert getattr(Settings.from_env({variable: "  "}), name) == default
    assert getattr(Settings(), name) == default


@pytest.mark.parametrize("variable", CASES)
def test_a_good_value_is_read(variable: str) -> None:
    """With its type, whatever the case of a choice and the space around it."""
    _, good, value, *_ = CASES[variable]

    settings = Settings.from_env({variable: f" {good} "})

    assert getattr(settings, VARIABLES[variable][0]) == value


@pytest.mark.parametrize("variable", [name for name, case in CASES.items() if case[3]])
def test_a_wrong_value_names_the_variable_and_what_is_allowed(variable: str) -> None:
    """So that nobody has to read the code to mend it."""
    *_, wrong, said = CASES[variable]

    with pytest.raises(SettingsError) as raised:
        Settings.from_env({variable: wrong})

    assert str(raised.value).startswith(variable)
    assert said in str(raised.value)


@pytest.mark.parametrize("number", ["9" * 5000, "0" * 20 + "9999", "²", "٣", "0x10", "1_000"])
def test_a_number_is_written_in_plain_digits(number: str) -> None:
    """And not longer than any number that is allowed."""
    with pytest.raises(SettingsError, match="DB_MAX_OVERFLOW"):
        Settings.from_env({"DB_MAX_OVERFLOW": number})


def test_the_pool_has_the_specification_s_figures() -> None:
    """The engineering specification of the knowledge base, "Connection Pool Settings"."""
    pool = Database(Settings.from_env({"DATABASE_URL": URL}))._pool()

    assert pool == {
        "pool_size": 20,
        "max_overflow": 30,
        "pool_recycle": 3600,
        "pool_timeout": 30,
    }


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_an_address_is_taken_with_any_postgresql_scheme(scheme: str) -> None:
    """Hosts hand out several; the driver is always psycopg 3."""
    url = Settings.from_env({"DATABASE_URL": URL.replace("postgresql", scheme)}).database_url

    assert url is not None
    assert url.drivername == "postgresql+psycopg"
    assert (url.username, url.password, url.host, url.port, url.database) == (
        "user",
        "hunter2",
        "db.example",
        5433,
        "corpus",
    )


def test_the_postgres_variables_make_an_address() -> None:
    """Special characters need no escaping in them, and DATABASE_URL goes before them."""
    variables = {"POSTGRES_HOST": "db.example", "POSTGRES_PASSWORD": "p@ss/word:1"}
    url = Settings.from_env(variables).database_url
    assert url is not None
    assert (url.username, url.password, url.port, url.database) == (
        "postgres",
        "p@ss/word:1",
        5432,
        "pgcorpus",
    )

    more = {"POSTGRES_PORT": "6000", "POSTGRES_DB": "rag", "POSTGRES_USER": "rag_user"}
    url = Settings.from_env(variables | more).database_url
    assert url is not None
    assert (url.username, url.port, url.database) == ("rag_user", 6000, "rag")

    url = Settings.from_env(variables | {"DATABASE_URL": URL}).database_url
    assert url is not None
    assert url.port == 5433
    with pytest.raises(SettingsError, match=r"POSTGRES_PORT='none' .* allowed: 1 to 65535"):
        Settings.from_env(variables | {"POSTGRES_PORT": "none"})


def test_without_an_address_the_embedded_server_is_meant() -> None:
    """Nothing at all is needed to begin."""
    assert Settings.from_env({}).database_url is None


@pytest.mark.parametrize("name", ["PORT", "DB", "USER", "PASSWORD"])
def test_half_an_address_is_refused(name: str) -> None:
    """Without a host it would be ignored, and an embedded server started in its place."""
    with pytest.raises(SettingsError, match="set POSTGRES_HOST") as raised:
        Settings.from_env({f"POSTGRES_{name}": "hunter2"})

    assert f"POSTGRES_{name}" in str(raised.value)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("postgresql://user:hunter2@host:99999/db", "port; allowed: 1 to 65535"),
        ("postgresql://user:hunter2@host:0/db", "port; allowed: 1 to 65535"),
        ("postgresql://user:hunter2@/db?host=a&host=b&port=5432,99999", "port; allowed: 1 to"),
        ("postgresql://user:hunter2@host/db?hunter2=bar", "unknown option"),
    ],
)
def test_an_address_that_could_never_connect_is_refused_at_once(address: str, said: str) -> None:
    """Not after the retries of the first connection, and without its secrets."""
    with pytest.raises(SettingsError, match=said) as raised:
        Settings.from_env({"DATABASE_URL": address})

    assert "hunter2" not in str(raised.value)


def test_every_option_of_libpq_may_stand_in_the_address() -> None:
    """Several hosts, too."""
    query = "host=a:1&host=b&connect_timeout=3&options=-c%20jit%3Doff&sslmode=require"

    url = Settings.from_env({"DATABASE_URL": f"postgresql:///db?{query}"}).database_url

    assert url is not None
    assert url.query["connect_timeout"] == "3"


@pytest.mark.parametrize("address", ["http://[::", "http://", "https:///v1", "http://h:99999"])
def test_a_web_address_names_a_host(address: str) -> None:
    """A scheme alone is not enough."""
    with pytest.raises(SettingsError, match="OPENAI_BASE_URL is not a web address"):
        Settings.from_env({"OPENAI_BASE_URL": address})


def test_a_file_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    """Its bytes, which may be a password, are not shown."""
    (tmp_path / ".env").write_bytes(b"POSTGRES_PASSWORD=hunter2\xff\n")

    with pytest.raises(SettingsError, match=r"\.env is not a text file in UTF-8") as raised:
        Settings.from_env()

    assert raised.value.__suppress_context__


def test_a_deleted_working_directory_is_an_error_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nowhere to look for ``.env``."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    try:
        with pytest.raises(SettingsError, match="working directory"):
            Settings.from_env()
    finally:
        monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "address",
    [
        "hunter2",
        "mysql://user:hunter2@host/db",
        "postgresql://user:hunter2@host:port/db",
        "postgresql:/user:hunter2@host",
        "//user:hunter2@host/db",
    ],
)
def test_an_address_that_cannot_be_read_is_not_shown(address: str) -> None:
    """It may hold a password: neither the message nor a traceback has any of it."""
    with pytest.raises(SettingsError, match="DATABASE_URL is not a database address") as raised:
        Settings.from_env({"DATABASE_URL": address})

    shown = raised.value
    while shown is not None:
        assert "hunter2" not in str(shown)
        shown = None if shown.__suppress_context__ else shown.__cause__ or shown.__context__


@pytest.mark.parametrize(
    "variables",
    [
        {"DATABASE_URL": URL},
        {"DATABASE_URL": "postgresql://db.example/corpus?user=user&password=hunter2"},
        {"POSTGRES_HOST": "db.example", "POSTGRES_PASSWORD": "hunter2"},
        {"OPENAI_API_KEY": "hunter2"},
    ],
    ids=["address", "query", "variable", "key"],
)
def test_secrets_are_not_printed(variables: dict[str, str]) -> None:
    """Neither by repr nor by str, of the settings and of the address."""
    settings = Settings.from_env(variables)
    url = settings.database_url

    assert "hunter2" not in repr(settings) + str(settings) + repr(url) + str(url)
    assert settings.openai_api_key == "hunter2" or (url is not None and url.password == "hunter2")


def test_secrets_among_the_options_of_the_address_are_not_printed() -> None:
    """Such as the passphrase of the client's key."""
    settings = Settings.from_env({"DATABASE_URL": f"{URL}?sslpassword=passphrase"})

    url = settings.database_url
    assert url is not None
    assert url.query["sslpassword"] == "passphrase"
    other, engine = url.set(database="other"), create_engine(url)
    shown = (settings, url, other, engine, engine.url, Database(settings).url)
    assert "passphrase" not in "".join(f"{each!r}{each}" for each in shown)
    _, arguments = engine.dialect.create_connect_args(engine.url)
    assert arguments["sslpassword"] == "passphrase"


def test_the_login_of_a_gateway_is_not_printed() -> None:
    """It is part of OPENAI_BASE_URL."""
    settings = Settings.from_env({"OPENAI_BASE_URL": "https://user:hunter2@gateway/v1"})

    assert "hunter2" not in f"{settings!r}{settings}"
    assert settings.openai_base_url == "https://user:hunter2@gateway/v1"


def test_a_web_address_with_a_password_is_not_shown() -> None:
    """The error of OPENAI_BASE_URL says what is allowed and not what was given."""
    with pytest.raises(SettingsError) as raised:
        Settings.from_env({"OPENAI_BASE_URL": "user:hunter2@gateway"})

    assert "hunter2" not in str(raised.value)


def test_the_file_is_read_and_the_environment_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ``.env`` in the working folder or above it fills what the environment does not say."""
    (tmp_path / ".env").write_text(f'DATABASE_URL="{URL}"\nDB_POOL_SIZE=7\nLOG_LEVEL=DEBUG\nX\n')
    below = tmp_path / "src"
    below.mkdir()
    monkeypatch.chdir(below)
    monkeypatch.setenv("DB_POOL_SIZE", "8")

    settings = Settings.from_env()

    assert settings.database_url is not None
    assert settings.database_url.host == "db.example"
    assert (settings.pool_size, settings.log_level) == (8, "DEBUG")


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({}, "prefer"),
        ({"SSL_REQUIRE": "false"}, "prefer"),
        ({"SSL_REQUIRE": "yes"}, "require"),
        ({"SSL_REQUIRE": "true", "SSL_CA_CERT": str(FILE)}, "verify-full"),
        ({"SSL_REQUIRE": "true", "SSL_MODE": "verify-ca"}, "verify-ca"),
        ({"DATABASE_URL": f"{URL}?sslmode=verify-full"}, "verify-full"),
        ({"DATABASE_URL": f"{URL}?sslmode=disable", "SSL_MODE": "require"}, "require"),
    ],
)
def test_tls_is_as_strict_as_asked(variables: dict[str, str], mode: str) -> None:
    """SSL_MODE, else the address's own, else the least that SSL_REQUIRE asks for."""
    assert Settings.from_env(variables).ssl_mode == mode


@pytest.mark.parametrize(
    "plain", [{"SSL_MODE": "prefer"}, {"DATABASE_URL": f"{URL}?sslmode=disable"}]
)
def test_required_tls_cannot_be_weakened(plain: dict[str, str]) -> None:
    """A mode that allows a plain connection contradicts SSL_REQUIRE."""
    with pytest.raises(SettingsError, match="SSL_REQUIRE is true; allowed: require, verify-ca"):
        Settings.from_env(plain | {"SSL_REQUIRE": "true"})
    with pytest.raises(SettingsError, match="SSL_REQUIRE='si' is not a boolean; allowed: true"):
        Settings.from_env({"SSL_REQUIRE": "si"})


def test_production_needs_an_address() -> None:
    """The embedded server is for development."""
    with pytest.raises(SettingsError, match="DATABASE_URL must be set when ENVIRONMENT is prod"):
        Settings.from_env({"ENVIRONMENT": "production"})

    assert Settings.from_env({"ENVIRONMENT": "production", "DATABASE_URL": URL}).production
    assert not Settings.from_env({}).production


def test_the_newer_name_of_the_kind_of_database_goes_before_the_older() -> None:
    """Whatever their order in the environment."""
    given = {"DATABASE_TYPE": "postgres", "DOCFOUNDRY_DB_TYPE": "sqlite"}

    assert Settings.from_env(given).database_type == "postgresql"
    assert Settings.from_env({"DOCFOUNDRY_DB_TYPE": "sqlite"}).database_type == "sqlite"


def test_every_setting_has_a_variable() -> None:
    """Nothing can be set in code alone."""
    assert {field.name for field in fields(Settings)} == {
        "database_url",
        "admin_url",
        "read_urls",
        *(name for name, _ in VARIABLES.values()),
    }


def test_an_address_past_the_pooler_is_read_as_the_other() -> None:
    """With its own TLS where it says so, and never shown."""
    admin = "postgresql://owner:hunter3@db.example/corpus"
    given = {"DATABASE_URL": URL, "DB_POOLER": "transaction", "DATABASE_ADMIN_URL": admin}

    settings = Settings.from_env(given | {"SSL_MODE": "require"})

    assert settings.is_pooled
    assert settings.admin_url is not None
    assert settings.admin_url.drivername == "postgresql+psycopg"
    assert settings.admin_url.query["sslmode"] == "require"
    assert "hunter3" not in repr(settings)
    own = Settings.from_env(given | {"DATABASE_ADMIN_URL": f"{admin}?sslmode=verify-full"})
    assert (own.ssl_mode, own.admin_url and own.admin_url.query["sslmode"]) == (
        "prefer",
        "verify-full",
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"DATABASE_ADMIN_URL": URL}, "DATABASE_ADMIN_URL would be ignored: set DATABASE_URL"),
        (
            {"DATABASE_URL": URL, "DATABASE_ADMIN_URL": "mysql://u:hunter2@h/d"},
            "DATABASE_ADMIN_URL is not a database address",
        ),
        (
            {"DATABASE_URL": f"{URL}?options=-csearch_path%3Dx", "DB_POOLER": "transaction"},
            "DATABASE_URL has options= after its",
        ),
    ],
    ids=["alone", "of another kind", "options"],
)
def test_what_cannot_work_with_a_pooler_is_refused(given: dict[str, str], said: str) -> None:
    """Before anybody connects, and without a secret."""
    with pytest.raises(SettingsError, match=said) as raised:
        Settings.from_env(given)

    assert "hunter2" not in str(raised.value)


SEVERAL = "postgresql://user:hun,ter@one:5433,two/corpus?target_session_attrs=read-write"


@pytest.mark.parametrize(
    ("written", "host", "port"),
    [
        (SEVERAL, "one,two", "5433,5432"),
        ("postgresql://one,two", "one,two", "5432,5432"),
        ("postgresql://one:1,[::1]:2/corpus", "one,::1", "1,2"),
        ("postgresql://user@/corpus?host=one:1&host=two:2", "one,two", "1,2"),
        ("postgresql://user@/corpus?host=one,two&port=1,2", "one,two", "1,2"),
    ],
)
def test_an_address_may_have_several_hosts(written: str, host: str, port: str) -> None:
    """As libpq writes them, and as SQLAlchemy does."""
    url = Settings.from_env({"DATABASE_URL": written}).database_url
    assert url is not None
    _, arguments = url.get_dialect()().create_connect_args(url)

    assert (arguments["host"], arguments["port"]) == (host, port)
    assert "hun,ter" not in repr(url)


@pytest.mark.parametrize("port", ["0", "x", "65536"])
def test_each_port_of_several_hosts_is_checked(port: str) -> None:
    """With the same words as of one."""
    with pytest.raises(SettingsError, match="unusable port; allowed: 1 to 65535"):
        Settings.from_env({"DATABASE_URL": f"postgresql://one:5432,two:{port}/corpus"})


def test_addresses_of_standbys_are_a_list() -> None:
    """Between commas or blanks, each with several hosts or one, and its own sslmode or ours."""
    given = {
        "DATABASE_URL": URL,
        "DATABASE_READ_URLS": "postgresql://u:hunter2@one,two:5433/corpus, "
        "postgresql://u:hunter2@three/corpus?sslmode=verify-full\npostgresql://u@four/corpus",
    }
    settings = Settings.from_env(given)

    hosts = [url.host or url.query["host"] for url in settings.read_urls]
    assert hosts == ["one,two", "three", "four"]
    modes = [url.query["sslmode"] for url in settings.read_urls]
    assert modes == ["prefer", "verify-full", "prefer"]
    assert "hunter2" not in f"{settings!r}{settings.read_urls!r}"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "DATABASE_READ_URLS would be ignored: set DATABASE_URL"),
        ({"DATABASE_URL": URL, "DATABASE_READ_URLS": "one"}, "DATABASE_READ_URLS is not a"),
        (
            {
                "DATABASE_URL": URL,
                "DB_POOLER": "transaction",
                "DATABASE_READ_URLS": f"{URL}?options=-c%20jit%3Doff",
            },
            "DATABASE_READ_URLS has options= after its",
        ),
        (
            {
                "DATABASE_URL": URL,
                "SSL_REQUIRE": "true",
                "DATABASE_READ_URLS": f"{URL}?sslmode=allow",
            },
            "allows a plain connection, but SSL_REQUIRE is true",
        ),
    ],
)
def test_addresses_of_standbys_that_cannot_be_used_are_told(
    given: dict[str, str], said: str
) -> None:
    """Without showing any of them."""
    with pytest.raises(SettingsError, match=said) as raised:
        Settings.from_env({"DATABASE_READ_URLS": URL, **given})
    assert "hunter2" not in str(raised.value)
