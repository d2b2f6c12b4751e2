"""langchain-postgres, through its documented store: ``python -m tests.benchmarks.peers.langchain``.

It runs in an environment that ``langchain.txt`` describes. Its store has no search by words alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from langchain_core.embeddings import Embeddings
from langchain_postgres import PGEngine, PGVectorStore
from langchain_postgres.v2.hybrid_search_config import HybridSearchConfig
from langchain_postgres.v2.indexes import HNSWIndex, HNSWQueryOptions

from tests.benchmarks.contender import HITS, Contender, Job, serve

TABLE = "passages"
BATCH = 1000
VECTOR_INDEX_MAX_DIMENSIONS = 2000
"""pgvector's bound for an HNSW index on ``vector``, the only type that the store makes."""


class NoEmbeddings(Embeddings):
    """All vectors are given."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Nobody asks."""
        raise NotImplementedError(texts)

    def embed_query(self, text: str) -> list[float]:
        """Nobody asks."""
        raise NotImplementedError(text)


class LangChain(Contender):
    """``PGVectorStore`` with a tsvector column, psycopg as in its documentation."""

    modes = ("vector", "hybrid")

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        url = job.url.replace("postgresql://", "postgresql+psycopg://", 1)
        self.engine = PGEngine.from_connection_string(url=url)
        self.vectors = job.question_vectors.tolist()  # as an embedder of this framework gives them
        self._opened: PGVectorStore | None = None

    @property
    def store(self) -> PGVectorStore:
        """The store; it looks for its table when it is made."""
        if self._opened is None:
            self._opened = PGVectorStore.create_sync(
                self.engine,
                NoEmbeddings(),
                TABLE,
                index_query_options=HNSWQueryOptions(ef_search=self.job.ef_search),
                hybrid_search_config=hybrid(),
            )
        return self._opened

    def facts(self) -> dict[str, Any]:
        """Its version, and what it offers."""
        return {
            "package": f"langchain-postgres {version('langchain-postgres')}",
            "driver": "psycopg, asynchronous, behind a thread",
            "text": "not offered",
            "hybrid": "plainto_tsquery (every word must match), weighted sum of scaled scores",
        }

    def load(self, progress: Callable[[int], None]) -> float:
        """``add_embeddings``, a batch at a time."""
        self.engine.init_vectorstore_table(
            TABLE, self.job.dimensions, hybrid_search_config=hybrid()
        )
        store, done, started = self.store, 0, time.perf_counter()
        for passages, vectors in self.job.batches(BATCH):
            store.add_embeddings(
                [f"{passage['title']}\n{passage['content']}" for passage in passages],
                vectors.tolist(),
                [{k: v for k, v in passage.items() if k != "content"} for passage in passages],
            )
            progress(done := done + len(passages))
        store.apply_hybrid_search_index()  # of words: the other stores keep theirs while they load
        return time.perf_counter() - started

    def index(self) -> str:
        """HNSW where it can be had."""
        if self.job.dimensions > VECTOR_INDEX_MAX_DIMENSIONS:
            return "none: the store has no halfvec, and vector is indexed up to 2,000 dimensions"
        self.store.apply_vector_index(HNSWIndex(m=16, ef_construction=64))
        return "hnsw (embedding vector_cosine_ops)"

    def search(self, mode: str, number: int) -> list[str]:
        """A fresh configuration for each question: the store keeps the first question in one."""
        configuration = hybrid(self.job.questions[number]) if mode == "hybrid" else None
        hits = self.store.similarity_search_by_vector(
            self.vectors[number], k=HITS, hybrid_search_config=configuration
        )
        return [hit.metadata["chunk_id"] for hit in hits]

    def close(self) -> None:
        """Give the connections back."""
        asyncio.run(self.engine.close())


def hybrid(question: str = "") -> HybridSearchConfig:
    """The default fusion, with as many candidates as hits instead of 4."""
    return HybridSearchConfig(
        tsv_column="content_tsv", fts_query=question, primary_top_k=HITS, secondary_top_k=HITS
    )


if __name__ == "__main__":
    serve(LangChain)
