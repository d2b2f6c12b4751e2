"""The rate at which chunks go in without vectors: all checks, all indexes of words."""

from __future__ import annotations

import time
from pathlib import Path

from pgcorpus.db.engine import Database
from pgcorpus.services.knowledge.importer import KnowledgeImporter


def import_rate(database: Database, chunks: Path) -> dict[str, float]:
    """Import a folder of chunks.

    Args:
        database: With the newest schema and no chunks; what is imported stays in it.
        chunks: The folder.

    Returns:
        ``rows``, ``seconds`` and ``rows_per_second``.

    Raises:
        RuntimeError: A chunk was rejected.
    """
    started = time.perf_counter()
    report = KnowledgeImporter(database).run([chunks])
    seconds = time.perf_counter() - started
    rows = report.total("added")
    if report.rejects:
        raise RuntimeError(f"{len(report.rejects)} chunks were rejected: {report.rejects[0]}")
    return {"rows": rows, "seconds": seconds, "rows_per_second": rows / seconds}
