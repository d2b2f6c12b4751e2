"""Measures import and search on the embedded server: python -m tests.benchmarks.

BENCH_ROWS sets how many chunks are imported (default 100,000). Figures belong to the machine and
the moment; compare those of one run only.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np

from db.embedded import EmbeddedServer
from db.engine import Database
from db.migrations import downgrade, upgrade
from db.settings import Settings
from services import EmbeddingService, KnowledgeImporter, SearchService, samples
from services.cli.output import out, table
from services.search import MODES, Mode
from tests.benchmarks.import_rate import import_rate

QUESTIONS = (
    "raise prices on existing customers without losing them",
    "how many extra sales make up for a 10% discount",
    "LTV CAC payback period",
    "scarcity and urgency",
    "guarantee that takes the risk from the buyer",
)
ROUNDS = 40


def latencies_ms(service: SearchService, mode: Mode) -> np.ndarray:
    """How long each search took, the first round left out: it compiles and prepares."""
    taken = []
    for round_ in range(ROUNDS + 1):
        for question in QUESTIONS:
            started = time.perf_counter()
            page = service.search(question, corpus="knowledge", mode=mode)
            if not page.hits:
                raise AssertionError(f"{mode} found nothing for {question!r}")
            if round_:
                taken.append((time.perf_counter() - started) * 1000)
    return np.array(taken)


def main() -> None:
    """Run everything once, on a server of its own."""
    home = Path(tempfile.mkdtemp(prefix="pgcorpus-bench-"))
    home.chmod(0o755)
    server = EmbeddedServer(home)
    database = Database(Settings(database_url=server.start()))
    try:
        upgrade(database)
        KnowledgeImporter(database).run([samples.folder()])
        EmbeddingService(database).embed("knowledge")
        service = SearchService(database)
        rows = []
        for mode in MODES:
            taken = latencies_ms(service, mode)
            p50, p95 = np.percentile(taken, [50, 95])
            rows.append((mode, len(taken), f"{p50:.1f}", f"{p95:.1f}"))
        table("Search on the samples, question embedded", ["mode", "n", "p50 ms", "p95 ms"], rows)

        downgrade(database, "base")
        upgrade(database)
        rate = import_rate(database, rows=int(os.environ.get("BENCH_ROWS", "100000")))
        table("Import without vectors", ["", ""], rate.items())
        out.print("all indexes in place, each file one transaction")
    finally:
        database.close()
        server.destroy()


if __name__ == "__main__":
    main()
