"""Searches while vectors are missing: words answer, and the page says so."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.db.models import Message
from pgcorpus.db.search.corpora import CHAT
from pgcorpus.db.search.page import SearchPage
from pgcorpus.services.search.service import AsyncSearchService, SearchService
from tests import factories
from tests.db.search.shelves import SHELVES, Passage, Shelf
from tests.factories import MessageFactory, axis
from tests.services.search.test_limits import READ_BY_SEARCHES, guest
from tests.services.search.test_service import AxisEmbedder, SilentEmbedder, leg

MESSAGES = ("The kettle costs nine coins.", "A refund moves the risk.", "Nobody asked.")
AWAITED = "vectors of some passages are still being made"

every_shelf = pytest.mark.parametrize(
    "shelf",
    [shelf for shelf in SHELVES if shelf.corpus.scope is None],  # a superuser has no scope
    ids=lambda shelf: shelf.name,
)


def fill(database: Database, shelf: Shelf, *, vectors: bool = False) -> list[Any]:
    """The messages in a corpus, with their vectors or without; their keys."""
    passages = [
        Passage("Title", content, axis(n, length=384) if vectors else None)
        for n, content in enumerate(MESSAGES)
    ]
    with database.unit_of_work() as work:
        factories.bind(work.session)
        keys = shelf.fill(work, passages)
        work.commit()
    return keys


@pytest.fixture
def service(database: Database) -> SearchService:
    """A service whose every question means axis 0."""
    return SearchService(database, embedder=AxisEmbedder())


def chat(service: SearchService, mode: str = "vector", **options: Any) -> SearchPage:
    """A search of the archive for a word that one message holds."""
    return service.search("refunds", corpus="chat", mode=mode, **options)


@every_shelf
def test_words_answer_alone_while_nothing_is_embedded(
    database: Database, service: SearchService, shelf: Shelf
) -> None:
    """With all of the weight; the page names the model, and the commands that make vectors."""
    keys = fill(database, shelf)

    page = service.search("refunds", corpus=shelf.corpus.name)

    assert page.degraded
    assert leg(page, "vector").status == "skipped"
    reason = leg(page, "vector").reason or ""
    assert "no vectors of the model 'hashing'" in reason
    assert f"pgcorpus embed --corpus {shelf.corpus.name}" in reason
    assert "pgcorpus worker" in reason
    assert [hit.id for hit in page.hits] == [keys[1]]
    assert page.hits[0].score == pytest.approx(page.hits[0].scores["text"])


@every_shelf
def test_words_stand_in_for_vectors_that_nobody_made(
    database: Database, service: SearchService, shelf: Shelf
) -> None:
    """A search by meaning alone is one by words, and says so."""
    fill(database, shelf)

    page = service.search("refunds", corpus=shelf.corpus.name, mode="vector")
    by_words = service.search("refunds", corpus=shelf.corpus.name, mode="text")

    assert page.hits == by_words.hits != ()
    assert (page.mode, page.degraded) == ("vector", True)
    assert [(each.name, each.status) for each in page.legs] == [
        ("vector", "skipped"),
        ("text", "ok"),
    ]
    assert "the text leg stood in for the vector leg" in (page.note or "")


def test_what_stands_in_for_words_stands_in_for_vectors(
    database: Database, service: SearchService
) -> None:
    """A typo, and a script without spaces between words, are answered by the fuzzy leg."""
    fill(database, SHELVES[1])
    with database.unit_of_work() as work:
        factories.bind(work.session)
        MessageFactory(content="高价锚定让第二个价格显得便宜。")
        work.commit()

    typo = service.search("refudn", corpus="chat", mode="vector")
    unspaced = service.search("第二个价格为什么便宜", corpus="chat", mode="vector")

    assert [each.name for each in typo.legs] == ["vector", "text", "fuzzy"]
    assert typo.hits[0].content == MESSAGES[1]
    assert [each.name for each in unspaced.legs] == ["vector", "fuzzy"]
    assert "the fuzzy leg stood in for the vector leg" in (unspaced.note or "")
    assert unspaced.hits[0].content.startswith("高价")


def test_vectors_answer_as_soon_as_there_is_one(database: Database, service: SearchService) -> None:
    """From the next search on; nothing is remembered of the time without."""
    keys = fill(database, SHELVES[1])
    before = chat(service)
    with database.unit_of_work() as work:
        work.embeddings.store(CHAT, "hashing", keys[:1], axis(0, length=384)[None])
        work.commit()

    after = chat(service)

    assert leg(before, "vector").status == "skipped"
    assert leg(after, "vector").status == "ok"
    assert [hit.id for hit in after.hits] == keys[:1]
    assert not after.degraded


def test_an_embedder_that_does_not_answer_is_no_reason_for_another_search(
    database: Database,
) -> None:
    """The vectors are there: who asks for them alone can ask again, and is told that it failed."""
    fill(database, SHELVES[1], vectors=True)

    page = chat(SearchService(database, embedder=SilentEmbedder()))

    assert page.hits == ()
    assert leg(page, "vector").status == "failed"


@pytest.mark.parametrize("mode", ["vector", "hybrid"])
def test_a_page_says_that_vectors_are_still_to_come(
    database: Database, service: SearchService, mode: str
) -> None:
    """From the message that was written to the vector that was stored, and no longer."""
    fill(database, SHELVES[1], vectors=True)
    before = chat(service, mode)
    with database.unit_of_work() as work:
        factories.bind(work.session)
        written = MessageFactory(content="Refunds, at last.").id
        work.commit()
    awaited = chat(service, mode)
    with database.unit_of_work() as work:
        work.embeddings.store(CHAT, "hashing", [written], axis(3, length=384)[None])
        work.commit()

    after = chat(service, mode)

    assert AWAITED not in (before.note or "")
    assert AWAITED in (awaited.note or "")
    assert not awaited.degraded
    assert AWAITED not in (after.note or "")


def test_searches_by_words_wait_for_no_vectors(database: Database, service: SearchService) -> None:
    """They find every message as soon as it is written."""
    fill(database, SHELVES[1])

    assert chat(service, "text").note == chat(service, "fuzzy").note
    assert AWAITED not in (chat(service, "text").note or "")


def test_only_passages_that_are_there_are_waited_for(
    database: Database, service: SearchService
) -> None:
    """Neither those of another corpus, nor one that was deleted, nor one whose job is done."""
    fill(database, SHELVES[1], vectors=True)
    fill(database, SHELVES[0])
    with database.unit_of_work() as work:
        factories.bind(work.session)
        deleted, done = MessageFactory().id, MessageFactory().id
        work.session.delete(work.session.get_one(Message, deleted))
        work.session.flush()
        work.session.execute(
            text("UPDATE jobs SET status = 'completed' WHERE payload ->> 'item' = :done"),
            {"done": str(done)},
        )
        work.commit()

    page = chat(service)

    assert leg(page, "vector").status == "ok"
    assert AWAITED not in (page.note or "")


def test_a_role_that_may_not_read_jobs_searches_without_the_note(database: Database) -> None:
    """It is told nothing of them, and refused nothing."""
    fill(database, SHELVES[1], vectors=True)
    with database.unit_of_work() as work:
        factories.bind(work.session)
        MessageFactory()
        work.commit()
    rights = f"{READ_BY_SEARCHES}, corpus_settings, messages, conversations, message_embeddings"

    with guest(database, rights) as seen:
        narrow = chat(SearchService(seen, embedder=AxisEmbedder()))
    with guest(database, f"{rights}, jobs") as seen:
        wide = chat(SearchService(seen, embedder=AxisEmbedder()))

    assert [hit.id for hit in narrow.hits] == [hit.id for hit in wide.hits] != []
    assert leg(narrow, "vector").status == "ok"
    assert AWAITED not in (narrow.note or "")
    assert AWAITED in (wide.note or "")


def test_a_queue_of_any_length_costs_a_search_a_few_pages(database: Database) -> None:
    """Pending jobs are found through the index of pending jobs."""
    many = text("""
        INSERT INTO jobs (kind, status, dedupe_key)
        SELECT 'embed', status, concat('embed:', corpus, ':', gen_random_uuid())
        FROM generate_series(1, 5000), unnest(ARRAY['pending', 'completed']) status,
             unnest(ARRAY['chat', 'chatter', 'knowledge']) corpus
    """)
    asked = text("""
        EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT passages_to_embed('chat', 20)
    """)
    with database.unit_of_work() as work:
        work.session.execute(many)
        work.session.execute(text("ANALYZE jobs"))
        work.session.scalar(asked)  # reads the catalog
        plan = work.session.execute(asked).scalar_one()[0]["Plan"]
        items = list(work.session.scalars(text("SELECT passages_to_embed('chat', 20)")))
        known = set(
            work.session.scalars(
                text("SELECT dedupe_key FROM jobs WHERE status = 'pending'"
                     " AND dedupe_key LIKE 'embed:chat:%'")
            )
        )  # fmt: skip

    assert plan["Actual Rows"] == 20
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 60
    assert {f"embed:chat:{item}" for item in items} <= known


def test_async_searches_fall_back_too(database: Database, service: SearchService) -> None:
    """The same page."""
    fill(database, SHELVES[1])

    async def search() -> SearchPage:
        try:
            return await AsyncSearchService(database, embedder=AxisEmbedder()).search(
                "refunds", corpus="chat", mode="vector"
            )
        finally:
            await database.aclose()

    page = asyncio.run(search())

    assert page.hits == chat(service).hits != ()
    assert page.note == chat(service).note


@every_shelf
def test_an_empty_corpus_is_called_empty(service: SearchService, shelf: Shelf) -> None:
    """And nobody is sent to make vectors of nothing."""
    page = service.search("kettle", corpus=shelf.corpus.name, mode="hybrid")

    assert (page.hits, leg(page, "vector").status) == ((), "skipped")
    assert leg(page, "vector").reason == f"nothing is stored in {shelf.corpus.name} yet"
