"""The application: over WSGI and ASGI, with a database and without."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, MutableMapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families

from pgcorpus.db.engine import Database
from pgcorpus.services.ops.metrics.app import Metrics
from pgcorpus.services.ops.metrics.server import CannotListen, serve
from tests.services.ops.metrics.scraped import find, read_samples, scrape


@pytest.fixture
def metrics(database: Database) -> Iterator[Metrics]:
    """Metrics of a database."""
    metrics = Metrics(database)
    yield metrics
    metrics.close()


def ask_wsgi(app: Any, path: str, method: str = "GET") -> tuple[str, dict[str, str], bytes]:
    """Call an application of WSGI, held to its rules."""
    environ: dict[str, Any] = {
        "PATH_INFO": path,
        "REQUEST_METHOD": method,
        "QUERY_STRING": "",
        "SCRIPT_NAME": "" if path else "/mounted",
    }
    setup_testing_defaults(environ)
    told: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], _: Any = None) -> Any:
        told.extend((status, dict(headers)))
        return lambda _written: None

    body = validator(app)(environ, start_response)
    content = b"".join(body)
    body.close()
    return told[0], told[1], content


async def ask_asgi(app: Any, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """Call an application of ASGI."""
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    headers = [(b"accept", b"application/openmetrics-text; version=1.0.0")]
    await app({"type": "http", "method": method, "path": path, "headers": headers}, receive, send)
    start, body = sent
    told = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], told, body["body"]


def test_a_scrape_can_be_read(metrics: Metrics) -> None:
    """With the database up, and the version told."""
    samples = read_samples(metrics)

    assert find(samples, "pgcorpus_up") == 1
    assert [name for name, _ in samples if name == "pgcorpus_info"]
    assert [name for name, _ in samples if name == "process_resident_memory_bytes"] == []
    assert "process_resident_memory_bytes" in scrape(metrics)


def test_every_name_has_the_prefix_and_a_base_unit(metrics: Metrics) -> None:
    """No milliseconds, no percent; counters end in _total."""
    names = {
        each.name
        for each in text_string_to_metric_families(scrape(metrics))
        if not each.name.startswith("process_")
    }

    assert len(names) > 20
    assert all(name.startswith("pgcorpus_") or name == "pgcorpus" for name in names)
    assert not [name for name in names if name.endswith(("_ms", "_percent", "_minutes", "_kb"))]


@pytest.mark.parametrize("path", ["/metrics", "/", "", "/internal/metrics"])
def test_wsgi_gives_the_metrics(metrics: Metrics, path: str) -> None:
    """At the usual place, or wherever it is mounted."""
    status, headers, body = ask_wsgi(metrics.wsgi, path)

    assert status == "200 OK"
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert headers["Content-Length"] == str(len(body))
    assert b"pgcorpus_up 1.0" in body


def test_asgi_gives_the_metrics_and_openmetrics_to_who_asks(metrics: Metrics) -> None:
    """A strict parser holds it to the rules of OpenMetrics."""
    status, headers, body = asyncio.run(ask_asgi(metrics.asgi, "/metrics"))

    assert status == 200
    assert headers["content-type"].startswith("application/openmetrics-text")
    assert "pgcorpus_up" in {each.name for each in parse_open(body.decode())}


def test_asgi_does_not_stop_the_event_loop(metrics: Metrics) -> None:
    """While the database is asked, other requests are served."""

    async def both() -> float:
        scraping = asyncio.create_task(ask_asgi(metrics.asgi, "/metrics"))
        longest, last = 0.0, time.perf_counter()
        while not scraping.done():
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        await scraping
        return longest

    assert asyncio.run(both()) < 0.5


def test_asgi_lives_with_its_server(metrics: Metrics) -> None:
    """Servers wait for an answer to their start and stop."""
    sent: list[str] = []

    async def live() -> None:
        messages = iter(["lifespan.startup", "lifespan.shutdown"])

        async def receive() -> dict[str, Any]:
            return {"type": next(messages)}

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message["type"])

        await metrics.asgi({"type": "lifespan"}, receive, send)

    asyncio.run(live())
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/-/healthy", HTTPStatus.OK),
        ("HEAD", "/metrics", HTTPStatus.OK),
        ("GET", "/etc/passwd", HTTPStatus.NOT_FOUND),
        ("POST", "/metrics", HTTPStatus.METHOD_NOT_ALLOWED),
    ],
)
def test_other_requests_are_answered_as_http_wants(
    metrics: Metrics, method: str, path: str, status: HTTPStatus
) -> None:
    """By either interface."""
    told, _, body = ask_wsgi(metrics.wsgi, path, method)
    code, _, also = asyncio.run(ask_asgi(metrics.asgi, path, method))

    assert (told.split()[0], code) == (str(status.value), status)
    assert (body, also) == (b"", b"") if method == "HEAD" else body == also


def test_a_database_that_is_down_is_told_and_in_time(database: Database) -> None:
    """The scrape succeeds: what this process counts is there, figures of the database are not."""
    settings = database.settings
    gone = replace(settings, database_url=database.url.set(host="127.0.0.1", port=1))
    metrics = Metrics(Database(gone))
    began = time.monotonic()

    samples = read_samples(metrics)

    assert time.monotonic() - began < 8
    assert find(samples, "pgcorpus_up") == 0
    assert find(samples, "pgcorpus_pool_connections_max") is not None
    assert not [name for name, _ in samples if name.startswith(("pgcorpus_jobs", "pgcorpus_audit"))]
    metrics.close()


def test_health_asks_no_database(database: Database) -> None:
    """The process is alive whatever the database does."""
    gone = replace(database.settings, database_url=database.url.set(port=1))
    metrics = Metrics(Database(gone))
    began = time.monotonic()

    assert metrics.answer("GET", "/-/healthy", "").body == b"healthy\n"
    assert time.monotonic() - began < 1
    metrics.close()


def test_the_server_serves_over_a_socket_and_ends(metrics: Metrics) -> None:
    """It takes a free port where it is told to; afterwards nothing listens."""
    with serve(metrics.wsgi, "127.0.0.1", 0) as address:
        told = httpx.get(f"{address}/metrics", timeout=30)
        missing = httpx.get(f"{address}/nothing", timeout=30)

    assert (told.status_code, missing.status_code) == (200, 404)
    assert "pgcorpus_up 1.0" in told.text
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/-/healthy", timeout=5)


def test_an_address_that_is_taken_is_named(metrics: Metrics) -> None:
    """With the options that choose another."""
    with serve(metrics.wsgi, "127.0.0.1", 0) as address:
        port = int(address.rpartition(":")[2])
        with (
            pytest.raises(CannotListen, match=f"port {port}.*--port"),
            serve(metrics.wsgi, "127.0.0.1", port),
        ):
            pass
    with (
        pytest.raises(CannotListen, match="--host"),
        serve(metrics.wsgi, "203.0.113.1", 0),
    ):
        pass


def test_the_connections_of_a_scrape_are_apart(database: Database) -> None:
    """A pool that is used up is seen from outside, and is not used by who watches it."""
    metrics = Metrics(database)
    most = database.settings.pool_size + database.settings.max_overflow
    with database.engine.connect(), database.engine.connect():
        samples = read_samples(metrics)

    assert find(samples, "pgcorpus_up") == 1
    assert find(samples, "pgcorpus_pool_connections", state="used") == 2
    assert find(samples, "pgcorpus_pool_connections", state="idle") == 0
    assert find(samples, "pgcorpus_pool_connections_max") == most
    assert find(read_samples(metrics), "pgcorpus_pool_connections", state="idle") == 2
    metrics.close()
