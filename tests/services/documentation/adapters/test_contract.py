"""The one interface of both databases: every adapter passes every test here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DataLayerError, InvalidValue, MissingReference
from pgcorpus.db.models.embeddings import EmbeddingModel
from pgcorpus.services.documentation.adapters.postgres import PostgresAdapter
from pgcorpus.services.documentation.adapters.protocol import (
    DocumentationAdapter,
    Hit,
    HybridHit,
    SemanticHit,
)
from pgcorpus.services.documentation.adapters.sqlite import SQLiteAdapter
from pgcorpus.services.embedding.hashing import HashingEmbedder

Id = int | str
Use = Callable[[DocumentationAdapter], Awaitable[Any]]

TEXTS = {
    "pricing": "How to price a premium offer without losing customers",
    "install": "Install the server with apt and create the extension",
    "backup": "Backups are restored with pg_restore, price of storage aside",
}


EMBEDDER = HashingEmbedder("hashing-64", dimensions=64)


@pytest.fixture(params=["sqlite", "postgresql"])
def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> DocumentationAdapter:
    """An adapter of each kind on a database without documents, not initialized."""
    if request.param == "sqlite":
        return SQLiteAdapter(tmp_path / "docfoundry.db", EMBEDDER)
    database: Database = request.getfixturevalue("database")
    with database.unit_of_work() as work:
        model = EmbeddingModel(name=EMBEDDER.model_name, dimensions=64, provider="hashing")
        work.session.add(model)
        work.commit()
    return PostgresAdapter(database, EMBEDDER)


def use(adapter: DocumentationAdapter, work: Use) -> Any:
    """Initialize an adapter, work with it, and close it."""

    async def run() -> Any:
        await adapter.initialize()
        try:
            return await work(adapter)
        finally:
            await adapter.close()

    return asyncio.run(run())


async def insert_three(db: DocumentationAdapter) -> dict[str, Id]:
    """Insert a document of three chunks, of which the last has no vector; their ids by name."""
    document = await db.insert_document(
        "guide.md", title="Guide", source_url="https://a.example/guide", language="en"
    )
    ids = {}
    for name, text in TEXTS.items():
        vector = None if name == "backup" else EMBEDDER.embed_documents([text])[0]
        ids[name] = await db.insert_chunk(
            document,
            name,
            text,
            heading=name.title(),
            anchor=name,
            url=f"u/{name}",
            embedding=vector,
        )
    return ids


def test_chunks_are_found_by_words(adapter: DocumentationAdapter) -> None:
    """By stems, in the text and in the heading; rarer words count for more."""

    async def work(db: DocumentationAdapter) -> tuple[dict[str, Id], list[Hit], list[Hit]]:
        ids = await insert_three(db)
        return (
            ids,
            await db.search_fulltext("premium prices", 5),
            await db.search_fulltext("backup", 1),
        )

    ids, found, by_heading = use(adapter, work)

    assert [each["id"] for each in found] == [ids["pricing"], ids["backup"]]
    assert [each["chunk_id"] for each in by_heading] == ["backup"]
    assert found[0] == {
        "id": ids["pricing"],
        "chunk_id": "pricing",
        "text": TEXTS["pricing"],
        "heading": "Pricing",
        "anchor": "pricing",
        "url": "u/pricing",
        "path": "guide.md",
        "title": "Guide",
        "source_url": "https://a.example/guide",
    }


def test_chunks_are_found_by_vectors(adapter: DocumentationAdapter) -> None:
    """Above the least similarity alone, with their cosine."""

    async def work(db: DocumentationAdapter) -> tuple[list[SemanticHit], ...]:
        await insert_three(db)
        return (
            await db.search_semantic(TEXTS["pricing"], 5, -1.0),
            await db.search_semantic(TEXTS["pricing"], 5, 0.9),
            await db.search_semantic(TEXTS["pricing"], 1, -1.0),
        )

    every, near, first = use(adapter, work)

    assert [each["chunk_id"] for each in every] == ["pricing", "install"]
    assert every[0]["similarity_score"] == pytest.approx(1, abs=1e-5)
    assert near == first == every[:1]
    assert set(every[0]) == {*Hit.__annotations__, "similarity_score"}


def test_both_searches_are_fused_by_rank(adapter: DocumentationAdapter) -> None:
    """A chunk that both find is first; one that only one finds is there, too."""

    async def work(db: DocumentationAdapter) -> tuple[list[HybridHit], list[HybridHit]]:
        await insert_three(db)
        question = "price of a premium offer"
        return (
            await db.search_hybrid(question, 5, min_similarity=0.2),
            await db.search_hybrid(question, 5, rrf_k=10, min_similarity=0.2),
        )

    found, other = use(adapter, work)

    assert [each["chunk_id"] for each in found[:2]] == ["pricing", "backup"]
    assert found[0]["rrf_score"] == pytest.approx(2 / 61)
    assert other[0]["rrf_score"] == pytest.approx(2 / 11)
    assert found[0]["fts_score"] is not None
    assert found[0]["similarity_score"] is not None
    assert found[1]["similarity_score"] is None
    assert set(found[0]) == {*Hit.__annotations__, "similarity_score", "fts_score", "rrf_score"}


@pytest.mark.parametrize(
    "question",
    [
        *(
            "",
            "  ",
            "?!",
            '"',
            '"unclosed',
            "a OR",
            "AND NOT",
            "NEAR(",
            "text:",
            "* -",
            "pri*",
            "(",
        ),
        *("{a b}", "a\0b", "\ud800", "price " * 10_000, "x" * 100_000),
        " ".join(f"w{n}" for n in range(10_000)),
    ],
    ids=lambda question: repr(question[:12]),
)
def test_no_question_is_an_error(adapter: DocumentationAdapter, question: str) -> None:
    """Users type words, and no language of queries."""

    async def work(db: DocumentationAdapter) -> None:
        await insert_three(db)
        for search in (db.search_fulltext, db.search_semantic, db.search_hybrid):
            assert isinstance(await search(question, 3), list)

    use(adapter, work)


@pytest.mark.parametrize("question", ["", "  ", "?!"])
def test_a_question_without_a_word_finds_nothing(
    adapter: DocumentationAdapter, question: str
) -> None:
    """In no way of searching."""

    async def work(db: DocumentationAdapter) -> list[Sequence[Any]]:
        await insert_three(db)
        return [
            await db.search_fulltext(question, 3),
            await db.search_semantic(question, 3, -1.0),
            await db.search_hybrid(question, 3, min_similarity=-1.0),
        ]

    assert use(adapter, work) == [[], [], []]


def test_as_many_hits_are_returned_as_are_asked_for(adapter: DocumentationAdapter) -> None:
    """None for none."""

    async def work(db: DocumentationAdapter) -> list[int]:
        await insert_three(db)
        return [
            len(hits)
            for k in (0, 1, 2)
            for hits in (
                await db.search_fulltext("price", k),
                await db.search_semantic("price", k, -1.0),
                await db.search_hybrid("price", k, min_similarity=-1.0),
            )
        ]

    assert use(adapter, work) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_chunk_is_found_by_its_id_and_by_its_name(adapter: DocumentationAdapter) -> None:
    """An id may be a text of digits."""

    async def work(db: DocumentationAdapter) -> list[Any]:
        ids = await insert_three(db)
        install = ids["install"]
        asked = (install, str(install), "install", "nothing", 10**6, 10**30, -1, "", "\ud800")
        return [await db.get_chunk_by_id(each) for each in asked]

    found = use(adapter, work)

    assert [each and each["text"] for each in found] == [TEXTS["install"]] * 3 + [None] * 6


def test_a_path_that_is_inserted_again_is_the_same_document(adapter: DocumentationAdapter) -> None:
    """With what is known of it now."""

    async def work(db: DocumentationAdapter) -> tuple[Id, Id, Any, Any]:
        first = await db.insert_document("a.md", title="Old")
        chunk = await db.insert_chunk(first, "c", "some words")
        again = await db.insert_document("a.md", title="New")
        return first, again, await db.get_chunk_by_id(chunk), await db.get_database_stats()

    first, again, chunk, stats = use(adapter, work)

    assert first == again
    assert chunk["title"] == "New"
    assert (stats["document_count"], stats["chunk_count"]) == (1, 1)


def test_a_chunk_that_is_inserted_again_is_replaced(adapter: DocumentationAdapter) -> None:
    """No search finds it by its old words, and it is there once."""

    async def work(db: DocumentationAdapter) -> tuple[Any, ...]:
        document = await db.insert_document("a.md")
        await db.insert_chunk(document, "c", "ancient words", embedding=np.eye(64)[0])
        await db.insert_chunk(document, "c", "modern words", embedding=np.eye(64)[1])
        return (
            await db.search_fulltext("ancient", 5),
            await db.search_fulltext("words", 5),
            await db.get_database_stats(),
        )

    ancient, words, stats = use(adapter, work)

    assert ancient == []
    assert [each["text"] for each in words] == ["modern words"]
    assert (stats["chunk_count"], stats["embedded_chunk_count"]) == (1, 1)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"document_id": 99}, MissingReference),
        ({"text": ""}, InvalidValue),
        ({"text": "a\0b"}, InvalidValue),
        ({"heading": "\ud800"}, InvalidValue),
        ({"embedding": [float("nan")] * 64}, InvalidValue),
        ({"embedding": [0.0] * 64}, InvalidValue),
        ({"embedding": [[1.0]]}, InvalidValue),
    ],
)
def test_a_chunk_that_cannot_be_stored_is_refused(
    adapter: DocumentationAdapter, values: dict[str, Any], error: type[DataLayerError]
) -> None:
    """And nothing of it is kept."""

    async def work(db: DocumentationAdapter) -> Any:
        document = await db.insert_document("a.md")
        with pytest.raises(error):
            await db.insert_chunk(
                **{"document_id": document, "chunk_id": "c", "text": "some words"} | values
            )
        return await db.get_database_stats()

    assert use(adapter, work)["chunk_count"] == 0


def test_clicks_are_counted(adapter: DocumentationAdapter) -> None:
    """Of one query or of all; what was only shown is no click."""

    async def work(db: DocumentationAdapter) -> tuple[Any, ...]:
        ids = await insert_three(db)
        empty = await db.get_click_feedback_stats()
        await db.record_click_feedback("s", "u", "price", ids["pricing"], 0, dwell_time=4.0)
        await db.record_click_feedback("s", None, "price", "backup", 2)
        await db.record_click_feedback(None, None, "other", str(ids["install"]), 1)
        await db.record_click_feedback("t", None, "price", ids["install"], 7, clicked=False)
        return (
            empty,
            await db.get_click_feedback_stats(),
            await db.get_click_feedback_stats("price", days=1),
            await db.get_click_feedback_stats("nothing", days=10**12),
            await db.get_database_stats(),
        )

    empty, every, price, nothing, stats = use(adapter, work)

    assert empty == nothing
    assert empty == {
        "total_clicks": 0,
        "unique_sessions": 0,
        "avg_click_position": None,
        "avg_dwell_time": None,
    }
    assert (every["total_clicks"], every["unique_sessions"]) == (3, 1)
    assert price == {
        "total_clicks": 2,
        "unique_sessions": 1,
        "avg_click_position": 1.0,
        "avg_dwell_time": 4.0,
    }
    assert stats == {
        "document_count": 1,
        "chunk_count": 3,
        "embedded_chunk_count": 2,
        "recent_clicks": 3,
    }


@pytest.mark.parametrize("chunk_id", [99, "99", "nothing", 10**30])
def test_a_click_on_no_chunk_is_refused(adapter: DocumentationAdapter, chunk_id: Any) -> None:
    """It would count for nothing."""

    async def work(db: DocumentationAdapter) -> None:
        with pytest.raises(MissingReference):
            await db.record_click_feedback("s", None, "q", chunk_id, 0)

    use(adapter, work)


def test_many_calls_at_once_are_all_answered(adapter: DocumentationAdapter) -> None:
    """Reading and writing."""

    async def work(db: DocumentationAdapter) -> tuple[Any, list[Any]]:
        await insert_three(db)
        document = await db.insert_document("b.md")
        answers = await asyncio.gather(
            *(db.insert_chunk(document, f"c{n}", f"number {n}") for n in range(20)),
            *(db.search_hybrid("price", 3) for _ in range(20)),
        )
        return await db.get_database_stats(), answers

    stats, answers = use(adapter, work)

    assert stats["chunk_count"] == 23
    assert len(set(answers[:20])) == 20
    assert all(answers[20:])


def test_health_is_told_and_never_raised(adapter: DocumentationAdapter) -> None:
    """Before, while and after it is open; it may be opened again, as often as one likes."""

    async def run() -> list[bool]:
        told = [await adapter.health_check()]
        for _ in range(2):
            await adapter.initialize()
            await adapter.initialize()
            told.append(await adapter.health_check())
            await adapter.close()
            await adapter.close()
            told.append(await adapter.health_check())
        return told

    assert asyncio.run(run()) == [False, True, False, True, False]


def test_what_was_stored_is_there_after_closing(adapter: DocumentationAdapter) -> None:
    """In the database, that is."""
    use(adapter, insert_three)

    assert len(use(adapter, lambda db: db.search_fulltext("price", 5))) == 2


@given(st.text(max_size=40), st.integers(-1, 3))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_text_is_a_question(adapter: DocumentationAdapter, question: str, k: int) -> None:
    """Every answer is a list."""

    async def work(db: DocumentationAdapter) -> None:
        for search in (db.search_fulltext, db.search_semantic, db.search_hybrid):
            assert len(await search(question, k)) <= max(k, 0)

    use(adapter, work)
