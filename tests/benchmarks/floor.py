"""The floor: the same statements by bare psycopg. ``python -m tests.benchmarks.floor``.

It shows the cost of a search without this project's Python: one round trip, a prepared statement,
values as bytes both ways, rows as dictionaries. Statements and values are recorded from
``SearchService``.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import psycopg
from pgvector.psycopg import register_vector
from psycopg import Connection, RawCursor
from psycopg.rows import dict_row
from sqlalchemy.engine import make_url

from pgcorpus.db.engine import Database
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.corpora import KNOWLEDGE
from pgcorpus.db.search.driver import Sent, _number, make_settings
from pgcorpus.db.search.pipeline import Rows
from pgcorpus.db.settings import DRIVER, Settings
from pgcorpus.services.choices import Mode
from pgcorpus.services.search.service import SearchService
from tests.benchmarks.contender import HITS, Contender, Job, serve
from tests.benchmarks.ours import GivenVectors

BATCH = 10_000

IN_FORCE = """
    SELECT name, current_setting(name, true) AS setting
    FROM unnest(ARRAY['hnsw.ef_search', 'hnsw.iterative_scan', 'hnsw.max_scan_tuples']) AS name
"""

Numbered = tuple[str, list[Any]]
"""A statement with ``$1`` for its first parameter, and the values in this order."""


class Search(NamedTuple):
    """The two statements of a search: its settings, and its ranking."""

    settings: Sent
    ranking: Sent


class Floor(Contender):
    """Searches the tables of ``ours``; it loads into one plain table in a database of its own."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._local = threading.local()
        self._opened: list[Connection[dict[str, Any]]] = []
        self._searches: dict[str, list[tuple[Numbered, Numbered]]] = {}

    def prepare(self) -> dict[str, Any]:
        """Record what ``SearchService`` sends, and report the settings of a vector search."""
        recorder = Recorder(self.job)
        for mode in self.modes:
            searches = [
                self.restate(mode, recorder.record(mode, number))
                for number in range(len(self.job.questions))
            ]
            self._searches[mode] = [(_number(s), _number(r)) for s, r in searches]
        recorder.close()
        connection = self._connection()
        with connection.transaction():
            connection.cursor().execute(*self._searches["vector"][0][0])
            settings = {
                row["name"]: row["setting"] for row in connection.cursor().execute(IN_FORCE)
            }
        _, (nearest, _) = self._searches["vector"][0]
        return {"settings": settings, "vector_statement": nearest}

    def restate(self, mode: str, search: Search) -> Search:
        """Return the statements to send where ``SearchService`` sent *search*."""
        return search

    def load(self, progress: Callable[[int], None]) -> float:
        """Binary COPY into a table without constraints."""
        connection = self._connection()
        connection.execute(
            "CREATE TABLE passages (chunk_id text, title text, content text, details jsonb, "
            f"embedding vector({self.job.dimensions}))"
        )
        done, started = 0, time.perf_counter()
        with connection.cursor().copy("COPY passages FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["text", "text", "text", "jsonb", "vector"])
            for passages, vectors in self.job.batches(BATCH):
                for passage, vector in zip(passages, vectors, strict=True):
                    details = {key: passage[key] for key in ("section", "source_file")}
                    columns = (passage["chunk_id"], passage["title"], passage["content"])
                    copy.write_row((*columns, json.dumps(details), vector))
                progress(done := done + len(passages))
        return time.perf_counter() - started

    def index(self) -> str:
        """None: searches run on the tables of ``ours``."""
        raise NotImplementedError

    def search(self, mode: str, number: int) -> list[str]:
        """BEGIN, the settings, the ranking and COMMIT in one round trip."""
        connection = self._connection()
        settings, ranking = self._searches[mode][number]
        cursor = connection.cursor()
        with connection.pipeline(), connection.transaction():
            connection.cursor().execute(*settings, prepare=True)
            cursor.execute(*ranking, prepare=True, binary=True)
        return [row["chunk_id"] for row in cursor.fetchall() if row["chunk_id"] is not None]

    def close(self) -> None:
        """Close the connections of all threads."""
        for connection in self._opened:
            connection.close()

    def _connection(self) -> Connection[dict[str, Any]]:
        """The thread's own."""
        if not hasattr(self._local, "connection"):
            connection = psycopg.connect(
                self.job.url,
                autocommit=True,
                row_factory=dict_row,
                cursor_factory=RawCursor,  # which parses nothing
            )
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            register_vector(connection)
            self._local.connection = connection
            self._opened.append(connection)
        found: Connection[dict[str, Any]] = self._local.connection
        return found


class RecordingDatabase(Database):
    """Keeps what searches send to it."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.sent: list[tuple[Sent, ...]] = []

    def _exchange(
        self,
        scope: Scope | None,
        statements: Sequence[Sent],
        settings: Mapping[str, str] | None = None,
    ) -> list[Rows]:
        self.sent.append((*make_settings(settings), *statements))
        return super()._exchange(scope, statements, settings)


class Recorder:
    """Runs ``SearchService`` and keeps what it sends."""

    def __init__(self, job: Job) -> None:
        self.job = job
        url = make_url(job.url).set(drivername=DRIVER)
        # The log of searches would take part in the measurements.
        self.database = RecordingDatabase(Settings(database_url=url, metrics_enabled=False))
        self.embedder = GivenVectors(job)
        self.service = SearchService(self.database, embedder=self.embedder)

    def record(self, mode: Mode, number: int) -> Search:
        """Return the statements of a search that gave its hits: the last ones.

        Raises:
            RuntimeError: They are not settings and a ranking.
        """
        self.embedder.number.set(number)
        question = self.job.questions[number]
        self.service.search(question, corpus=KNOWLEDGE.name, mode=mode, limit=HITS)
        settings, (ranking, values) = self.database.sent[-1]
        self.database.sent.clear()
        if values is None or "page_limit" not in values:
            raise RuntimeError("a search does not end with its ranking: adapt the floor")
        return Search(settings, (ranking, values))

    def close(self) -> None:
        """Give the connections back."""
        self.database.close()


if __name__ == "__main__":
    serve(Floor)
