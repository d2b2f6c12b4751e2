"""The cost of the audit log for bulk loads: ``python -m tests.benchmarks.audit_cost``.

The same loads, with and without the triggers by turns, on one server and each in a new database.
Figures belong to the machine and the moment: only their ratio says something.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final
from uuid import UUID

import numpy as np
import typer
from sqlalchemy import text

from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.migrations import upgrade
from pgcorpus.db.search.corpora import KNOWLEDGE
from pgcorpus.db.settings import Settings
from pgcorpus.services.cli.output import AsJson, print_json, progress_bar, table
from pgcorpus.services.knowledge.importer import KnowledgeImporter
from tests.benchmarks import data

DIMENSIONS: Final = 384
MESSAGES_PER_CONVERSATION: Final = 20
MODEL: Final = "hashing"
SOME: Final = 5000
"""Vectors: entering all into an index would take minutes."""
ALLOWED: Final = 1.5
"""The time of an audited load, at most, as a multiple of one without (issue 5)."""

TRIGGERS: Final = text("""
    SELECT format('ALTER TABLE %s DISABLE TRIGGER %I', tgrelid::regclass, tgname)
    FROM pg_trigger WHERE tgfoid = 'audit_rows'::regproc
""")


def audit_cost(
    rows: Annotated[int, typer.Option(min=100, help="Rows of each load.")] = 100_000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each load.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Time bulk loads with and without the audit log; exit code 1 where it costs too much."""
    seconds: dict[str, dict[bool, list[float]]] = defaultdict(lambda: {True: [], False: []})
    with (
        tempfile.TemporaryDirectory() as folder,
        _server() as template,
        progress_bar("runs") as bar,
    ):
        data.make(Path(folder), rows=rows, dimensions=DIMENSIONS)
        bar.update(bar.task_ids[0], total=2 * rounds)
        for number in range(2 * rounds):
            audited = number % 4 in {0, 3}  # neither is always the first of a pair
            for name, took in _run(template, Path(folder), rows, audited=audited).items():
                seconds[name][audited].append(took)
            bar.advance(bar.task_ids[0])
    found = [_compare(name, of[True], of[False]) for name, of in seconds.items()]
    if as_json:
        print_json({"rows": rows, "rounds": rounds, "loads": found})
    else:
        table(f"{rows:,} rows", list(found[0]), [tuple(each.values()) for each in found])
    if any(each["ratio"] > ALLOWED for each in found):
        raise typer.Exit(1)


def _compare(name: str, with_log: list[float], without: list[float]) -> dict[str, Any]:
    # Whatever else the machine does only ever adds.
    audited, plain = min(with_log), min(without)
    return {
        "load": name,
        "with_s": round(audited, 2),
        "without_s": round(plain, 2),
        "ratio": round(audited / plain, 2),
    }


@contextmanager
def _server() -> Iterator[Database]:
    """A server of the run's own, with a migrated database to copy."""
    with tempfile.TemporaryDirectory(prefix="pgcorpus-audit-") as home:
        Path(home).chmod(0o755)
        server = EmbeddedServer(Path(home))
        try:
            template = Database(Settings(database_url=server.start(), environment="test"))
            upgrade(template)
            template.close()
            yield template
        finally:
            server.destroy()


def _run(template: Database, folder: Path, rows: int, *, audited: bool) -> dict[str, float]:
    """Seconds of each load."""
    _administer(template, "CREATE DATABASE load TEMPLATE pgcorpus")
    database = Database(
        Settings(
            database_url=template.url.set(database="load"),
            environment="test",
            statement_timeout_ms=0,
        )
    )
    with database.schema_engine().begin() as connection:
        if not audited:
            for disable in connection.scalars(TRIGGERS).all():
                connection.execute(text(disable))
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    loads: dict[str, Callable[[], None]] = {
        "knowledge, by the importer": lambda: _import(database, folder),
        f"{SOME:,} vectors, with their index": lambda: _store(database, vectors),
        "messages, by COPY": lambda: _copy(database, rows),
    }
    seconds = {}
    for name, load in loads.items():
        started = time.perf_counter()
        load()
        seconds[name] = time.perf_counter() - started
    database.close()
    _administer(template, "DROP DATABASE load WITH (FORCE)")
    return seconds


def _administer(template: Database, statement: str) -> None:
    url = template.url.set(database="postgres")
    administrator = Database(Settings(database_url=url, environment="test"))
    with administrator.schema_engine().connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(text(statement))


def _import(database: Database, folder: Path) -> None:
    report = KnowledgeImporter(database).run([folder / "chunks"])
    if report.failed:
        raise RuntimeError(f"{len(report.rejects)} chunks were rejected: {report.rejects[:1]}")


def _store(database: Database, vectors: np.ndarray) -> None:
    with database.unit_of_work() as work:
        documents = text("SELECT id FROM framework_documents LIMIT :some")
        keys = work.session.scalars(documents, {"some": SOME}).all()
        for start in range(0, len(keys), data.BATCH):
            some = keys[start : start + data.BATCH]
            work.embeddings.store(KNOWLEDGE, MODEL, some, vectors[start : start + len(some)])
        work.commit()


def _copy(database: Database, rows: int) -> None:
    sentence = "What a customer asked, and what was answered, in some twenty words of text "
    with database.engine.begin() as connection:
        driver: Any = connection.connection.driver_connection
        with driver.cursor() as cursor:
            with cursor.copy("COPY conversations (id, title) FROM STDIN") as copy:
                for number in range(rows // MESSAGES_PER_CONVERSATION + 1):
                    copy.write_row((UUID(int=number), f"Conversation {number}"))
            with cursor.copy(
                "COPY messages (conversation_id, position, role, content) FROM STDIN"
            ) as copy:
                for number in range(rows):
                    within, place = divmod(number, MESSAGES_PER_CONVERSATION)
                    copy.write_row((UUID(int=within), place, "user", f"{sentence * 3}{number}"))


if __name__ == "__main__":
    typer.run(audit_cost)
