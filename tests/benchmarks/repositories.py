"""This project's repositories without the importer: a bulk load by a program that trusts its data.

It only loads: ``python -m tests.benchmarks.repositories``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from hashlib import sha256
from uuid import uuid4

from pgcorpus.db.repositories.knowledge.chunks import ChunkRecord, Write
from pgcorpus.db.search.corpora import KNOWLEDGE
from pgcorpus.db.uow import UnitOfWork
from tests.benchmarks.contender import serve
from tests.benchmarks.ours import MODEL, Ours, register_model

BATCH = 5000


class Repositories(Ours):
    """Loads by COPY: the tables, constraints and indexes of words are the importer's."""

    def load(self, progress: Callable[[int], None]) -> float:
        """One transaction."""
        self.definition = register_model(self.database, self.job)
        rows = len(self.job.passages)
        started = time.perf_counter()
        with self.database.unit_of_work() as work:
            with work.knowledge.loading(rows):
                self._write(work, progress)
            work.commit()
            work.knowledge.analyze()
            work.commit()
        return time.perf_counter() - started

    def _write(self, work: UnitOfWork, progress: Callable[[int], None]) -> None:
        done = 0
        for passages, vectors in self.job.batches(BATCH):
            writes = [write(passage) for passage in passages]
            work.knowledge.write(writes)
            work.embeddings.store(KNOWLEDGE, MODEL, [each.id for each in writes], vectors)
            progress(done := done + len(writes))


def write(passage: dict[str, str]) -> Write:
    """A passage as the repository takes it."""
    content = passage["content"]
    record = ChunkRecord(
        **passage,
        description=passage["title"],
        language="english",
        extra={},
        character_count=len(content),
        word_count=len(content.split()),
        chunk_type="atomic_framework",
        framework_name=passage["section"],
        preserves_complete_concept=True,
        overlap_with_previous=None,
        contains_formula=False,
        contains_list=False,
        contains_example=False,
        business_logic_intact=True,
        validation_passed=True,
        processing_date=None,
        guidelines_compliance=None,
        concepts=frozenset({passage["section"]}),
        start_line=None,
        end_line=None,
    )
    digest = sha256(content.encode()).digest()
    return Write(uuid4(), False, digest, passage["source_file"], record)


if __name__ == "__main__":
    serve(Repositories)
