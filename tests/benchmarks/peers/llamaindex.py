"""LlamaIndex's store for PostgreSQL: ``python -m tests.benchmarks.peers.llamaindex``.

It runs in an environment that ``llamaindex.txt`` describes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode
from llama_index.vector_stores.postgres import PGVectorStore

from tests.benchmarks.contender import HITS, Contender, Job, serve

BATCH = 1000
VECTOR_INDEX_MAX_DIMENSIONS = 2000
"""pgvector's bound for an HNSW index on ``vector``; beyond it the store has halfvec."""

MODES = {
    "vector": VectorStoreQueryMode.DEFAULT,
    "text": VectorStoreQueryMode.TEXT_SEARCH,
    "hybrid": VectorStoreQueryMode.HYBRID,
}


class LlamaIndex(Contender):
    """``PGVectorStore`` with ``hybrid_search``."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.half = job.dimensions > VECTOR_INDEX_MAX_DIMENSIONS
        self.vectors = job.question_vectors.tolist()  # as an embedder of this framework gives them
        self._stores: list[PGVectorStore] = []
        self._opened: PGVectorStore | None = None

    @property
    def store(self) -> PGVectorStore:
        """The store for searches; made first, it builds the index."""
        if self._opened is None:
            hnsw = {
                "hnsw_m": 16,
                "hnsw_ef_construction": 64,
                "hnsw_ef_search": self.job.ef_search,
                "hnsw_dist_method": "halfvec_cosine_ops" if self.half else "vector_cosine_ops",
            }
            self._opened = self._open(hnsw)
        return self._opened

    def facts(self) -> dict[str, Any]:
        """Its version, and what it offers."""
        package = "llama-index-vector-stores-postgres"
        return {
            "package": f"{package} {version(package)}",
            "driver": "psycopg2",
            "text": "to_tsquery (any word may match), ts_rank",
            "hybrid": "the hits by vector, then those by words; not fused, up to 20",
        }

    def load(self, progress: Callable[[int], None]) -> float:
        """``add``, a batch at a time; the store makes its indexes of words with its table."""
        store = self._open(None)
        store.add([])  # makes the table
        done, started = 0, time.perf_counter()
        for passages, vectors in self.job.batches(BATCH):
            rows = zip(passages, vectors.tolist(), strict=True)
            store.add([node(passage, vector) for passage, vector in rows])
            progress(done := done + len(passages))
        return time.perf_counter() - started

    def index(self) -> str:
        """HNSW."""
        self.store.add([])  # the first use builds it
        return f"hnsw (embedding {'halfvec' if self.half else 'vector'}_cosine_ops)"

    def search(self, mode: str, number: int) -> list[str]:
        """As its documentation has it."""
        found = self.store.query(
            VectorStoreQuery(
                query_embedding=self.vectors[number],
                query_str=self.job.questions[number],
                similarity_top_k=HITS,
                mode=MODES[mode],
            )
        )
        return [hit.metadata["chunk_id"] for hit in found.nodes[:HITS]]

    def close(self) -> None:
        """Give the connections back."""
        for store in self._stores:
            asyncio.run(store.close())

    def _open(self, hnsw: dict[str, Any] | None) -> PGVectorStore:
        scheme = "postgresql://"
        store = PGVectorStore(
            connection_string=self.job.url.replace(scheme, "postgresql+psycopg2://", 1),
            async_connection_string=self.job.url.replace(scheme, "postgresql+asyncpg://", 1),
            table_name="passages",
            embed_dim=self.job.dimensions,
            hybrid_search=True,
            use_halfvec=self.half,
            hnsw_kwargs=hnsw,
            initialization_fail_on_error=True,
        )
        self._stores.append(store)
        return store


def node(passage: dict[str, str], vector: list[float]) -> TextNode:
    """A passage as the framework has it."""
    return TextNode(
        id_=passage["chunk_id"],
        text=f"{passage['title']}\n{passage['content']}",
        metadata={key: value for key, value in passage.items() if key != "content"},
        embedding=vector,
    )


if __name__ == "__main__":
    serve(LlamaIndex)
