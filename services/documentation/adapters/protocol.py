"""The interface of the old documentation system, the same for both of its databases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypedDict

import numpy as np


class Hit(TypedDict):
    """A chunk with what is shown of its document; ``id`` as its database has it."""

    id: int | str
    chunk_id: str | None
    text: str
    heading: str | None
    anchor: str | None
    url: str | None
    path: str
    title: str | None
    source_url: str | None


class SemanticHit(Hit):
    """A hit by its vector; ``similarity_score`` is the cosine, from -1 to 1."""

    similarity_score: float


class HybridHit(Hit):
    """A hit of both searches, fused by rank.

    The higher a score the better; that of a search which did not find the chunk is None.
    """

    fts_score: float | None
    similarity_score: float | None
    rrf_score: float


class ClickStatistics(TypedDict):
    """Clicks of some days; the averages are None where there are none."""

    total_clicks: int
    unique_sessions: int
    avg_click_position: float | None
    avg_dwell_time: float | None


class DatabaseStatistics(TypedDict):
    """Numbers of rows; ``recent_clicks`` are those of the last seven days."""

    document_count: int
    chunk_count: int
    embedded_chunk_count: int
    recent_clicks: int


class DocumentationAdapter(Protocol):
    """A database of documentation, as the old system calls it.

    Ids are opaque: whole numbers in an SQLite file, UUIDs as text in PostgreSQL. The old system had
    whole numbers in both.

    Searches take any text for a question: one without a word finds nothing. No more than *k* hits
    are returned, best first.
    """

    async def initialize(self) -> None:
        """Open the database, and make it ready for all other calls."""
        ...

    async def close(self) -> None:
        """Close the database. It may be initialized again."""
        ...

    async def insert_document(
        self,
        path: str,
        title: str | None = None,
        source_url: str | None = None,
        content_type: str = "text/markdown",
        language: str | None = None,
        word_count: int | None = None,
    ) -> int | str:
        """Store what is known of a document, in place of what was known of its path.

        Returns:
            Its id, which stays.
        """
        ...

    async def insert_chunk(
        self,
        document_id: int | str,
        chunk_id: str,
        text: str,
        heading: str | None = None,
        anchor: str | None = None,
        h_path: str | None = None,
        url: str | None = None,
        token_len: int | None = None,
        lang: str | None = None,
        embedding: Sequence[float] | np.ndarray | None = None,
    ) -> int | str:
        """Store a chunk, in place of the document's chunk of the same name.

        Args:
            document_id: Its document's id.
            chunk_id: Its name, unique within the document.
            text: Its words.
            heading: The heading that it stands under.
            anchor: The fragment of that heading.
            h_path: The headings above it, as one text.
            url: Where it can be read.
            token_len: Its length in tokens.
            lang: Its language.
            embedding: Its vector; None: none.

        Returns:
            Its id.

        Raises:
            MissingReference: There is no such document.
            InvalidValue: The text is empty, or the vector is not finite or all zeros.
        """
        ...

    async def search_fulltext(self, query: str, k: int) -> list[Hit]:
        """Find chunks by words."""
        ...

    async def search_semantic(
        self, query: str, k: int, min_similarity: float = 0.3
    ) -> list[SemanticHit]:
        """Find chunks whose cosine with the question is at least *min_similarity*.

        Raises:
            EmbeddingError: The question cannot be embedded.
        """
        ...

    async def search_hybrid(
        self, query: str, k: int, rrf_k: int = 60, min_similarity: float = 0.3
    ) -> list[HybridHit]:
        """Find chunks by words and by vectors, fused by ``1 / (rrf_k + rank)``.

        Raises:
            EmbeddingError: The question cannot be embedded.
        """
        ...

    async def get_chunk_by_id(self, chunk_id: int | str) -> Hit | None:
        """Return a chunk by its id, or by its name; None where there is none."""
        ...

    async def record_click_feedback(
        self,
        session_id: str | None,
        user_id: str | None,
        query: str,
        chunk_id: int | str,
        position: int,
        clicked: bool = True,
        dwell_time: float | None = None,
    ) -> None:
        """Record that a hit was clicked, or shown and passed over.

        Raises:
            MissingReference: There is no such chunk.
        """
        ...

    async def get_click_feedback_stats(
        self, query: str | None = None, days: int = 30
    ) -> ClickStatistics:
        """Return figures of the clicks of the last *days*, of one query or of all."""
        ...

    async def get_database_stats(self) -> DatabaseStatistics:
        """Return the numbers of rows."""
        ...

    async def health_check(self) -> bool:
        """Return whether the database answers. It raises nothing."""
        ...
