"""The rate at which an old SQLite file goes in, with its vectors.

``python -m tests.benchmarks.sqlite_import`` measures reading alone; the first import, loading and
the building of indexes apart; the same file again; a second file, whose rows the indexes take one
by one; and a third, before which the graph of the vectors is dropped, so that its import builds it.
Seconds are told by the clock, and of processors by what this process and the server's took.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.services.documentation.importing.importer import DocumentationImporter
from pgcorpus.services.documentation.sqlite.reading import open_database
from pgcorpus.services.documentation.sqlite.records import SQLiteDocument
from tests.benchmarks import data
from tests.benchmarks.own_database import open_own_database, print_found
from tests.services.documentation.sqlite.files import (
    FULL,
    Row,
    chunk,
    document,
    make_file,
    make_pickle,
)

DOCUMENTS: Final = 2_000
CHUNKS: Final = 10
"""Chunks of a document."""
DIMENSIONS: Final = 384
TICKS: Final = os.sysconf("SC_CLK_TCK")
GRAPH: Final = "documentation_embeddings_hnsw_all_minilm_l6_v2"

_Moment = tuple[float, float, float]
"""Seconds of the clock, of this process and of the server's."""


def make(path: Path, *, documents: int, first: int = 1) -> int:
    """Write a file of the fullest layout; return its bytes.

    Args:
        path: Where to.
        documents: How many; of ``CHUNKS`` chunks each, of some 60 words, with a vector, of which
            every second is pickled and the others are raw numbers.
        first: Number of the first: files with other numbers have other documents.
    """
    rng = np.random.default_rng([data.SEED, first])
    topics = rng.integers(data.TOPICS, size=documents * CHUNKS)
    vectors = path.with_suffix(".npy")
    data.vectors(vectors, rng, topics, DIMENSIONS, np.arange(0))
    make_file(path, FULL, *_list_rows(data.texts(rng, topics), np.load(vectors), first))
    vectors.unlink()
    return path.stat().st_size


def _list_rows(texts: list[np.ndarray], vectors: np.ndarray, first: int) -> Iterator[Row]:
    for number, (words, vector) in enumerate(zip(texts, vectors, strict=True), first * CHUNKS):
        page, place = divmod(number, CHUNKS)
        url = f"https://docs.example/part-{page % 40}/page-{page}"
        if place == 0:
            yield document(
                page,
                f"part-{page % 40}/page-{page}.md",
                title=f"Page {page}",
                source_url=url,
                captured_at="2025-03-01T10:00:00Z",
                hash=f"{page:064x}",
                content_type="text/markdown",
                language="en",
                word_count=data.WORDS * CHUNKS,
            )
        heading = " ".join(words[:3])
        yield chunk(
            number,
            page,
            " ".join(words),
            heading=heading,
            anchor="-".join(words[:3]),
            embedding=vector.tobytes() if place % 2 else make_pickle(vector, 4),
            processing_timestamp="2025-03-01T10:00:01",
            lineage_id="run-1",
            chunk_id=f"page-{page}-{place}",
            h_path=f"Page {page} > {heading}",
            url=f"{url}#{'-'.join(words[:3])}",
            token_len=len(words) * 4 // 3,
            lang="en",
            hash=f"{number:064x}",
        )


@dataclass(frozen=True)
class Meter:
    """A measure of what work takes.

    Attributes:
        postmaster: The server's first process.
    """

    postmaster: int

    def read(self, path: Path) -> dict[str, float]:
        """Measure the reading of a file, without a database."""
        began = self._look()
        with open_database(path) as found:
            chunks = sum(
                len(each.chunks)
                for each in found.read_documents()
                if isinstance(each, SQLiteDocument)
            )
        return _tell(chunks, began, self._look())

    def load(self, database: Database, path: Path) -> dict[str, Any]:
        """Measure the import of a file: all of it, and where indexes were built, both parts.

        Raises:
            RuntimeError: A row was refused, or a vector left out.
        """
        built: list[_Moment] = []
        began = self._look()
        report = DocumentationImporter(database).run(
            [path], on_build=lambda: built.append(self._look())
        )
        ended = self._look()
        if report.failed or report.left_out:
            raise RuntimeError(f"not all of the file was taken: {report}")
        chunks = report.total("added") + report.total("unchanged")
        parts = {"loading": (began, built[0]), "building": (built[0], ended)} if built else {}
        return _tell(chunks, began, ended) | {
            name: _tell(chunks, *moments) for name, moments in parts.items()
        }

    def _look(self) -> _Moment:
        return time.perf_counter(), time.process_time(), _count_server_seconds(self.postmaster)


def _tell(chunks: int, began: _Moment, ended: _Moment) -> dict[str, float]:
    seconds, client, backends = (after - before for before, after in zip(began, ended, strict=True))
    return {
        "chunks": chunks,
        "seconds": round(seconds, 2),
        "chunks_per_second": round(chunks / seconds),
        "client_cpu_us_per_chunk": round(1e6 * client / chunks),
        "server_cpu_us_per_chunk": round(1e6 * backends / chunks),
    }


def _find_postmaster(database: Database) -> int:
    """Return the server's first process, the parent of all others."""
    with database.engine.connect() as connection:
        folder = Path(connection.scalar(text("SHOW data_directory")) or "")
    return int((folder / "postmaster.pid").read_text().splitlines()[0])


def _count_server_seconds(postmaster: int) -> float:
    """Return the seconds of processors that the server took, its ended processes included."""
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    ticks = 0
    for process in (str(postmaster), *children):
        # After the name in brackets: utime, stime, and those of children that were waited for.
        times = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:15]
        ticks += sum(map(int, times))
    return ticks / TICKS


def main() -> int:
    """Measure on a server of its own, and print what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=DOCUMENTS)
    given = parser.parse_args()
    found: dict[str, Any] = {}
    with open_own_database("sqlite") as (database, home):
        first, second, third = (home / f"{name}.db" for name in ("first", "second", "third"))
        found["bytes"] = make(first, documents=given.documents)
        more = given.documents // 10
        make(second, documents=more, first=given.documents + 1)
        make(third, documents=more, first=given.documents + more + 1)
        meter = Meter(_find_postmaster(database))
        found["reading"] = meter.read(first)
        for name, path in (("first", first), ("unchanged", first), ("second", second)):
            found[name] = meter.load(database, path)
        with database.engine.begin() as connection:
            connection.execute(text(f"DROP INDEX {GRAPH}"))
        found["third"] = meter.load(database, third)
    print_found(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
