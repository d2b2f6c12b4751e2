"""The old documentation system's interface on this project's database and search."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final, ParamSpec, TypeVar
from uuid import UUID

import numpy as np

from pgcorpus.db.base import as_uuid
from pgcorpus.db.choices import DEFAULT_COLLECTION
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import (
    DatabaseNotReady,
    DataLayerError,
    EmbeddingError,
    MissingReference,
    NotFound,
)
from pgcorpus.db.models.documentation import KEPT, Chunk, Document
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.corpora import DOCUMENTATION
from pgcorpus.db.search.page import Hit as FoundHit
from pgcorpus.db.search.page import SearchPage
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.choices import MAX_LIMIT, MAX_RRF_K
from pgcorpus.services.documentation.adapters.checks import (
    as_vector,
    has_word,
    refuse_blank,
    refuse_unstorable,
)
from pgcorpus.services.documentation.adapters.protocol import (
    ClickStatistics,
    DatabaseStatistics,
    DocumentationAdapter,
    Hit,
    HybridHit,
    SemanticHit,
)
from pgcorpus.services.documentation.drafting import Drafting
from pgcorpus.services.documentation.sqlite.mapping import split_headings
from pgcorpus.services.embedding.choice import choose
from pgcorpus.services.embedding.embedder import Embedder, Embedders
from pgcorpus.services.importers.text import clean
from pgcorpus.services.search.service import SearchService

P = ParamSpec("P")
T = TypeVar("T")

MAX_QUESTION: Final = 100_000
"""Characters of a question that are read."""

_OPERATORS: Final = re.compile(r'"|(?<!\S)[-+]+')
"""The operators of a search here: the old system's users type words alone."""

_RECENT_DAYS: Final = 7


class PostgresAdapter(DocumentationAdapter):
    """A ``DocumentationAdapter`` on a collection of PostgreSQL's. Ids are texts: UUIDs.

    Without a scope it reads and writes what is everybody's, which only administrators may write.
    A word that no chunk holds is taken for a typo: what is spelt alike is found instead.

    Args:
        database: Where the documents are.
        embedder: Embeds questions, and its model is that of the chunks' vectors; by default that of
            the corpus's active model when it is initialized.
        scope: The tenant whose documents are written, and read beside the shared ones.
        collection: The collection that is read and written.
    """

    def __init__(
        self,
        database: Database,
        embedder: Embedder | None = None,
        *,
        scope: Scope | None = None,
        collection: str = DEFAULT_COLLECTION,
    ) -> None:
        self._database = database
        self._embedders = Embedders(database.settings, embedder)
        self._scope = scope
        self._collection = collection
        self._search_service = SearchService(database, embedder=embedder)
        self._model_name: str | None = None

    async def initialize(self) -> None:
        """Look whether the database answers and has the tables.

        Raises:
            DatabaseUnavailable: It does not answer.
            DatabaseNotReady: It lacks the tables, or the embedder's model.
        """
        self._model_name = await self._database.run(self._find_model_name)

    async def close(self) -> None:
        """Close the connections. It may be initialized again."""
        self._model_name = None
        await self._database.aclose()

    async def insert_document(
        self,
        path: str,
        title: str | None = None,
        source_url: str | None = None,
        content_type: str = "text/markdown",
        language: str | None = None,
        word_count: int | None = None,
    ) -> str:
        values = {
            "title": title,
            "source_url": source_url,
            "content_type": content_type,
            "language": language,
            "word_count": word_count,
        }
        refuse_unstorable(path, *values.values())

        def insert(work: UnitOfWork) -> str:
            put = work.documentation_parts.put_document
            return str(put(path, values, collection=self._collection))

        return await self._write(insert)

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
    ) -> str:
        refuse_unstorable(chunk_id, text, heading, anchor, h_path, url, lang)
        refuse_blank(text)
        vector = None if embedding is None else as_vector(embedding)
        if (document := as_uuid(str(document_id))) is None:
            raise MissingReference(f"there is no document {str(document_id)[:60]!r}")
        values = {
            "text": text,
            "heading": heading,
            "anchor": anchor,
            "heading_path": list(split_headings(h_path, heading)),
            "url": url,
            "token_count": token_len,
            "language": Drafting().find_language(text, lang),
        }

        def insert(work: UnitOfWork) -> str:
            key = work.documentation_parts.put_chunk(document, chunk_id, values)
            if vector is not None:
                work.embeddings.store(DOCUMENTATION, self._get_model_name(), [key], vector[None])
            return str(key)

        return await self._write(insert)

    async def search_fulltext(self, query: str, k: int) -> list[Hit]:
        page = await self._search(query, k, mode="text")
        return [_show(hit) for hit in page.hits] if page else []

    async def search_semantic(
        self, query: str, k: int, min_similarity: float = 0.3
    ) -> list[SemanticHit]:
        page = await self._search(query, k, mode="vector", **_build_bound(min_similarity))
        return [
            {**_show(hit), "similarity_score": hit.scores["vector"]}
            for hit in (page.hits if page else ())
            if "vector" in hit.ranks and hit.scores["vector"] >= min_similarity
        ]

    async def search_hybrid(
        self, query: str, k: int, rrf_k: int = 60, min_similarity: float = 0.3
    ) -> list[HybridHit]:
        page = await self._search(
            query,
            k,
            mode="hybrid",
            fusion="rrf",
            rrf_k=min(max(rrf_k, 0), MAX_RRF_K),
            **_build_bound(min_similarity),
        )
        return [
            {
                **_show(hit),
                "fts_score": hit.scores.get("text", hit.scores.get("fuzzy")),
                "similarity_score": hit.scores.get("vector"),
                "rrf_score": hit.score,
            }
            for hit in (page.hits if page else ())
        ]

    async def get_chunk_by_id(self, chunk_id: int | str) -> Hit | None:
        def get(work: UnitOfWork) -> Hit | None:
            find = work.documentation_parts.find_chunk
            found = find(clean(str(chunk_id)), collection=self._collection)
            return None if found is None else _show_chunk(*found)

        return await self._read(get)

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
        refuse_unstorable(session_id, user_id, query)

        def record(work: UnitOfWork) -> UUID:
            return work.feedback.record_click(
                clean(str(chunk_id)),
                query=query,
                position=position + 1,
                session_id=session_id,
                user_id=user_id,
                dwell_time=dwell_time,
                clicked=clicked,
            )

        try:
            await self._write(record)
        except NotFound as error:
            raise MissingReference(str(error)) from error

    async def get_click_feedback_stats(
        self, query: str | None = None, days: int = 30
    ) -> ClickStatistics:
        found = await self._read(
            lambda work: work.feedback.get_statistics(
                None if query is None else clean(query), days=days
            )
        )
        position = found.avg_click_position
        return {
            "total_clicks": found.total_clicks,
            "unique_sessions": found.unique_sessions,
            "avg_click_position": None if position is None else position - 1,
            "avg_dwell_time": found.avg_dwell_time,
        }

    async def get_database_stats(self) -> DatabaseStatistics:
        def get(work: UnitOfWork) -> DatabaseStatistics:
            counts = work.documentation_parts.count(self._collection, self._get_model_name())
            return {
                "document_count": counts.documents,
                "chunk_count": counts.chunks,
                "embedded_chunk_count": counts.embedded,
                "recent_clicks": work.feedback.get_statistics(days=_RECENT_DAYS).total_clicks,
            }

        return await self._read(get)

    async def health_check(self) -> bool:
        try:
            await self._read(lambda work: work.documentation.list_page(limit=1))
        except DataLayerError:
            return False
        return True

    def _find_model_name(self) -> str:
        with self._database.unit_of_work(self._scope) as work:
            work.documentation.list_page(limit=1)
            settings, name = self._database.settings, self._embedders.model_name
            return choose(work, DOCUMENTATION, settings, name).name

    def _get_model_name(self) -> str:
        """Return the model of the vectors.

        Raises:
            DatabaseNotReady: The adapter is not open.
        """
        if self._model_name is None:
            raise DatabaseNotReady("the database is not open; call initialize() first")
        return self._model_name

    async def _read(self, read: Callable[[UnitOfWork], T]) -> T:
        """Read in one transaction."""
        return await self._run(self._work, read, commits=False)

    async def _write(self, write: Callable[[UnitOfWork], T]) -> T:
        """Write in one transaction."""
        return await self._run(self._work, write, commits=True)

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        self._get_model_name()
        return await self._database.run(function, *args, **kwargs)

    def _work(self, function: Callable[[UnitOfWork], T], *, commits: bool) -> T:
        with self._database.unit_of_work(self._scope) as work:
            done = function(work)
            if commits:
                work.commit()
            return done

    async def _search(self, query: str, k: int, **options: Any) -> SearchPage | None:
        """Search the collection; None for a question without a word.

        Raises:
            EmbeddingError: The question cannot be embedded, and no vectors can be compared.
        """
        question = _OPERATORS.sub(" ", clean(query)[:MAX_QUESTION])
        if not has_word(question) or k <= 0:
            return None
        page = await self._run(
            self._search_service.search,
            question,
            corpus=DOCUMENTATION.name,
            limit=min(k, MAX_LIMIT),
            filters={"collection": self._collection},
            scope=self._scope,
            **options,
        )
        for leg in page.legs:
            if leg.name == "vector" and leg.status == "failed":
                raise EmbeddingError(leg.reason or "the question cannot be embedded")
        return page


def _build_bound(min_similarity: float) -> dict[str, float]:
    """Return the option of a search: cosines below 0 count as 0 here."""
    return {"min_similarity": min(max(min_similarity, 0.0), 1.0)}


def _show(hit: FoundHit) -> Hit:
    of = hit.metadata
    return {
        "id": str(hit.id),
        "chunk_id": of["metadata"].get(KEPT, {}).get("chunk_id") or of["chunk_id"],
        "text": hit.content,
        "heading": of["heading"],
        "anchor": of["anchor"],
        "url": of["url"],
        "path": of["path"],
        "title": of["document_title"],
        "source_url": of["source"],
    }


def _show_chunk(chunk: Chunk, document: Document) -> Hit:
    return {
        "id": str(chunk.id),
        "chunk_id": chunk.details.get(KEPT, {}).get("chunk_id") or chunk.chunk_id,
        "text": chunk.text,
        "heading": chunk.heading,
        "anchor": chunk.anchor,
        "url": chunk.url,
        "path": document.path,
        "title": document.title,
        "source_url": document.source_url,
    }
