"""The floor: the same rankings by bare psycopg. ``python -m tests.benchmarks.floor``.

What is left of a search without this project's Python: one round trip, binary parameters, a
prepared statement, rows as dictionaries. The vector statement is written by hand, as lean as the
ranking allows; for words and fusion it is the one that ``SearchService`` sends, recorded from it.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import psycopg
from pgvector.psycopg import register_vector
from psycopg import Connection, Cursor
from psycopg.rows import dict_row
from sqlalchemy import event
from sqlalchemy.engine import make_url

from pgcorpus.db.engine import Database
from pgcorpus.db.search.ask import FIRST_DEPTH
from pgcorpus.db.search.corpora import KNOWLEDGE
from pgcorpus.db.settings import DRIVER, Settings
from pgcorpus.services.search.service import Mode, SearchService
from tests.benchmarks.contender import HITS, Contender, Job, serve
from tests.benchmarks.ours import MODEL, GivenVectors

BATCH = 10_000

NEAREST = """
    WITH candidates AS MATERIALIZED (
        SELECT document_id, embedding FROM chunk_embeddings WHERE model_name = '{model}'
        ORDER BY embedding::halfvec({dimensions}) <=> %(question)s::halfvec({dimensions})
        LIMIT {depth}
    ), nearest AS (
        SELECT document_id, embedding <=> %(question)s AS distance FROM candidates
        ORDER BY distance, document_id LIMIT {hits}
    )
    SELECT document.id, 1 - distance AS score, title, content, chunk_id, source_file, section,
           description, document.created_at, chunk_type, framework_name, validation_passed
    FROM nearest
    JOIN framework_documents document ON document.id = nearest.document_id
    LEFT JOIN framework_metadata details ON details.document_id = document.id
    ORDER BY distance, document.id
"""

SETS = re.compile(r"\bset_config\b|\bSET LOCAL\b", re.IGNORECASE)
"""The part of SQL that makes settings for the transaction."""

RANKS = re.compile(r"^WITH \w+_(near|found) AS")
"""The beginning of the statement that ranks; what is found out before it has settings, too."""

IN_FORCE = """
    SELECT name, current_setting(name, true) AS setting
    FROM unnest(ARRAY['hnsw.ef_search', 'hnsw.iterative_scan', 'hnsw.max_scan_tuples']) AS name
"""


class Statement(NamedTuple):
    """A statement as a cursor was given it."""

    query: Any
    params: Any


class Floor(Contender):
    """Searches the tables of ``ours``; it loads into one plain table in a database of its own."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._local = threading.local()
        self._opened: list[Connection[dict[str, Any]]] = []
        self._rankings: dict[str, list[Statement]] = {}
        self._settings: dict[str, Statement] = {}

    def prepare(self) -> dict[str, Any]:
        """Learn what ``SearchService`` sends, and say with which settings."""
        recorder = Recorder(self.job)
        for mode in self.modes:
            asked = range(1 if mode == "vector" else len(self.job.questions))
            recorded = [last_ranking(recorder.record(mode, number)) for number in asked]
            self._settings[mode] = recorded[0][0]
            self._rankings[mode] = [ranking for _, ranking in recorded]
        recorder.close()
        connection = self._connection()
        with connection.transaction():
            connection.execute(*self._settings["vector"])
            settings = {row["name"]: row["setting"] for row in connection.execute(IN_FORCE)}
        nearest = NEAREST.format(
            model=MODEL,
            dimensions=self.job.dimensions,
            depth=FIRST_DEPTH,
            hits=HITS,
        )
        self._rankings["vector"] = [
            Statement(nearest, {"question": vector}) for vector in self.job.question_vectors
        ]
        return {"settings": settings, "vector_statement": nearest}

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
        settings, ranking = connection.cursor(), connection.cursor(binary=True)
        with connection.pipeline(), connection.transaction():
            settings.execute(*self._settings[mode], prepare=True)
            ranking.execute(*self._rankings[mode][number], prepare=True)
        return [row["chunk_id"] for row in ranking.fetchall() if row["chunk_id"] is not None]

    def close(self) -> None:
        """Close the connections of all threads."""
        for connection in self._opened:
            connection.close()

    def _connection(self) -> Connection[dict[str, Any]]:
        """The thread's own."""
        if not hasattr(self._local, "connection"):
            connection = psycopg.connect(self.job.url, autocommit=True, row_factory=dict_row)
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            register_vector(connection)
            self._local.connection = connection
            self._opened.append(connection)
        found: Connection[dict[str, Any]] = self._local.connection
        return found


def last_ranking(statements: list[Statement]) -> tuple[Statement, Statement]:
    """The settings of a search, and the ranking that follows them."""
    places = [
        n
        for n, each in enumerate(statements[:-1])
        if SETS.search(str(each.query)) and RANKS.search(str(statements[n + 1].query))
    ]
    if not places:
        raise RuntimeError("SearchService makes no settings before it ranks: adapt the floor")
    return statements[places[-1]], statements[places[-1] + 1]


class Recorder:
    """Runs ``SearchService`` and keeps what it sends to psycopg."""

    def __init__(self, job: Job) -> None:
        self.job = job
        sent = self.sent = list[Statement]()

        class Recording(Cursor[Any]):
            """Notes every statement."""

            def execute(self, query: Any, params: Any = None, **options: Any) -> Recording:
                sent.append(Statement(query, params))
                super().execute(query, params, **options)
                return self

        def use_recording(connection: Connection[Any], _record: object) -> None:
            connection.cursor_factory = Recording

        url = make_url(job.url).set(drivername=DRIVER)
        # The log of searches would be recorded, too.
        self.database = Database(Settings(database_url=url, metrics_enabled=False))
        event.listen(self.database.engine, "connect", use_recording)
        self.embedder = GivenVectors(job.dimensions)
        self.service = SearchService(self.database, embedder=self.embedder)

    def record(self, mode: Mode, number: int) -> list[Statement]:
        """The statements of one search."""
        self.sent.clear()
        self.embedder.next.vector = self.job.question_vectors[number]
        question = self.job.questions[number]
        self.service.search(question, corpus=KNOWLEDGE.name, mode=mode, limit=HITS)
        return list(self.sent)

    def close(self) -> None:
        """Give the connections back."""
        self.database.close()


if __name__ == "__main__":
    serve(Floor)
