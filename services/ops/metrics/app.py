"""The metrics of a process and its database, as an application of a web server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Final, NamedTuple

from prometheus_client import CollectorRegistry, Info, ProcessCollector
from prometheus_client.exposition import choose_encoder

from pgcorpus.db.engine import Database
from pgcorpus.services.jobs.worker import BatchReport
from pgcorpus.services.ops.metrics.figures import DatabaseFigures
from pgcorpus.services.ops.metrics.process import ProcessFigures, WorkerMetrics
from pgcorpus.services.ops.metrics.recall import RecallSampler
from pgcorpus.services.ops.metrics.searches import SearchMetrics
from pgcorpus.services.search.observer import SearchObserver

APPLICATION_NAME: Final = "pgcorpus metrics"
"""The name of the connections in ``pg_stat_activity``."""

PLAIN: Final = "text/plain; charset=utf-8"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Start = Callable[[str, list[tuple[str, str]]], object]


class Answer(NamedTuple):
    """The answer to a request."""

    status: HTTPStatus
    headers: list[tuple[str, str]]
    body: bytes


class Metrics:
    """Watches a database and what this process does with it, for Prometheus.

    Make one for each ``Database`` of a process, and serve ``wsgi`` or ``asgi`` at ``/metrics``; or
    hand ``registry`` to what serves the process's other metrics. No label holds a tenant, a user or
    a text. The numbers are for whoever can reach the address: bind it to where only Prometheus is.

    Args:
        database: Its searches, its pool, and the queue, coverage, backups and audit log in it.
        figures: Whether the figures of the whole database are told, too. They are the same from
            every process: one that tells them is enough, such as ``pgcorpus metrics serve``.
        searches: Whether this process searches.
        worker: Whether it works off jobs; then hand ``note_batch`` to the worker.
        kinds: Kinds of jobs of an application that are told by name, beside ours.

    Attributes:
        registry: The metrics.
    """

    def __init__(
        self,
        database: Database,
        *,
        figures: bool = True,
        searches: bool = True,
        worker: bool = False,
        kinds: Sequence[str] = (),
    ) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._database = database
        # The connections of a scrape and of a sample are apart: a pool that is used up must be
        # seen, and must not be used up by who watches it.
        self._aside = Database(
            replace(
                database.settings,
                pool_size=2,
                max_overflow=1,
                connect_retry_seconds=0,
                application_name=APPLICATION_NAME,
            )
        )
        Info("pgcorpus", "The version of pgcorpus", registry=self.registry).info(
            {"version": version("pgcorpus")}
        )
        ProcessCollector(registry=self.registry)
        self.registry.register(ProcessFigures(database))
        self._recall: RecallSampler | None = None
        self._observers: tuple[SearchObserver, ...] = ()
        if searches:
            percent = database.settings.recall_percent
            self._recall = RecallSampler(self._aside, self.registry, percent)
            self._observers = (SearchMetrics(self.registry), self._recall)
            database.observers = (*database.observers, *self._observers)
        self._worker = WorkerMetrics(self.registry) if worker else None
        if figures:
            self.registry.register(DatabaseFigures(self._aside, kinds))

    def note_batch(self, report: BatchReport) -> None:
        """Count a batch of a worker: its ``on_batch``."""
        if self._worker is not None:
            self._worker.note_batch(report)

    def close(self) -> None:
        """Watch no more, and close the connections of the metrics; the database stays open."""
        watching = self._database.observers
        self._database.observers = tuple(each for each in watching if each not in self._observers)
        if self._recall is not None:
            self._recall.close()
        self._aside.close()

    def answer(self, method: str, path: str, accept: str) -> Answer:
        """Answer a request: ``/metrics``, or ``/-/healthy``, which asks no database.

        Args:
            method: GET or HEAD.
            path: Of the request; where the application is mounted below a path, its end counts.
            accept: The header ``Accept``: OpenMetrics for who asks for it.
        """
        place = path.rstrip("/")
        if method not in {"GET", "HEAD"}:
            headers = [("Content-Type", PLAIN), ("Allow", "GET, HEAD")]
            return Answer(HTTPStatus.METHOD_NOT_ALLOWED, headers, b"use GET\n")
        if place.endswith("/-/healthy"):
            return Answer(HTTPStatus.OK, [("Content-Type", PLAIN)], b"healthy\n")
        if place and not place.endswith("/metrics"):
            found = b"there are /metrics and /-/healthy\n"
            return Answer(HTTPStatus.NOT_FOUND, [("Content-Type", PLAIN)], found)
        encode, content_type = choose_encoder(accept)
        body: bytes = encode(self.registry)
        return Answer(HTTPStatus.OK, [("Content-Type", content_type)], body)

    def wsgi(self, environ: MutableMapping[str, Any], start_response: Start) -> Iterable[bytes]:
        """Serve WSGI; a scrape waits for the database for a few seconds at most."""
        answer = self.answer(
            environ["REQUEST_METHOD"], environ.get("PATH_INFO", ""), environ.get("HTTP_ACCEPT", "")
        )
        headers = [*answer.headers, ("Content-Length", str(len(answer.body)))]
        start_response(f"{answer.status.value} {answer.status.phrase}", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [answer.body]

    async def asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve ASGI; the event loop goes on while the database is asked."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"metrics are served over HTTP, not {scope['type']}")
        accept = ",".join(
            value.decode("latin-1") for name, value in scope["headers"] if name == b"accept"
        )
        answer = await asyncio.to_thread(self.answer, scope["method"], scope["path"], accept)
        headers = [
            (name.lower().encode(), value.encode())
            for name, value in [*answer.headers, ("Content-Length", str(len(answer.body)))]
        ]
        await send(
            {"type": "http.response.start", "status": answer.status.value, "headers": headers}
        )
        body = b"" if scope["method"] == "HEAD" else answer.body
        await send({"type": "http.response.body", "body": body})


async def _live(receive: Receive, send: Send) -> None:
    """Answer the server's start and stop; there is nothing to do at either."""
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return
