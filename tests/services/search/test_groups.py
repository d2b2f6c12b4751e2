"""Hits in groups: the conversations that answer a question, each with its best messages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import InvalidSearch
from pgcorpus.db.search.ask import DEPTHS
from pgcorpus.db.search.corpora import CHAT
from pgcorpus.db.search.page import Hit, SearchPage
from pgcorpus.services.search.service import AsyncSearchService, SearchService
from tests import factories
from tests.factories import ConversationFactory, FrameworkDocumentFactory, MessageFactory, axis
from tests.services.search.test_limits import guest
from tests.services.search.test_service import AxisEmbedder

GROUPED: dict[str, Any] = {
    "corpus": "chat",
    "mode": "vector",
    "group_by": "conversation",
    "group_size": 3,
}


def archive(database: Database, sizes: Sequence[int]) -> list[str]:
    """Conversations with so many messages, their ids; every message less like than those before."""
    ids, leans = [], []
    with database.unit_of_work() as work:
        factories.bind(work.session)
        conversations = [ConversationFactory(title=f"Talk {n}") for n in range(len(sizes))]
        keys = []
        for conversation, size in zip(conversations, sizes, strict=True):
            ids.append(str(conversation.id))
            for _ in range(size):
                keys.append(MessageFactory(conversation=conversation, content="kettle").id)
                leans.append(1 - len(leans) / (2 * sum(sizes)))
        vectors = np.stack([axis(1, lean=lean, length=384) for lean in leans])
        work.embeddings.store(CHAT, "hashing", keys, vectors)
        work.commit()
    return ids


def keys(page: SearchPage) -> list[str]:
    """Of its groups."""
    return [str(group.key) for group in page.groups or ()]


@pytest.fixture
def service(database: Database) -> SearchService:
    """A service whose every question means axis 0."""
    return SearchService(database, embedder=AxisEmbedder())


def test_groups_are_ordered_by_their_best_hit(database: Database, service: SearchService) -> None:
    """Each has its best hits, the best first, and says how many of the hits it holds."""
    ids = archive(database, [5, 2, 1])

    page = service.search("kettle", **GROUPED)

    assert page.groups is not None
    assert keys(page) == ids
    assert [group.found for group in page.groups] == [5, 2, 1]
    assert [len(group.hits) for group in page.groups] == [3, 2, 1]
    assert [hit.ranks["vector"] for hit in page.hits] == [1, 2, 3, 6, 7, 8]
    assert page.hits == tuple(hit for group in page.groups for hit in group.hits)
    assert all(hit.metadata["conversation"] == g.key for g in page.groups for hit in g.hits)


def test_limit_and_offset_count_groups(database: Database, service: SearchService) -> None:
    """Pages of two are the whole, however many hits each group has."""
    ids = archive(database, [9, 1, 4, 2, 30])

    pages = [service.search("kettle", limit=2, offset=n, **GROUPED) for n in (0, 2, 4)]

    assert [keys(page) for page in pages] == [ids[:2], ids[2:4], ids[4:]]
    assert [page.note is None for page in pages] == [True, True, False]
    assert "fewer groups than asked for: the legs found no more" in (pages[2].note or "")


def test_a_group_has_as_many_hits_as_asked_for(database: Database, service: SearchService) -> None:
    """One is the best message of each conversation."""
    archive(database, [5, 5])

    page = service.search("kettle", **GROUPED | {"group_size": 1})

    assert [hit.ranks["vector"] for hit in page.hits] == [1, 6]


def test_more_hits_are_looked_at_where_the_best_are_of_few_groups(
    database: Database, service: SearchService
) -> None:
    """A conversation that fills what a search finds at first does not hide the others."""
    ids = archive(database, [DEPTHS[0] + 20, 1, 1])

    page = service.search("kettle", limit=3, **GROUPED)

    assert keys(page) == ids
    assert page.groups is not None
    assert page.groups[0].found == DEPTHS[0] + 20
    assert page.note is None


def test_pages_of_one_depth_say_nothing_and_others_that_hits_may_repeat(
    database: Database, service: SearchService
) -> None:
    """Pages fit together, without a note, if the first one looked as deep as the second."""
    ids = archive(database, [1, DEPTHS[0] + 20, 1, 1])

    near, both_deep, deeper = (
        service.search("kettle", limit=limit, offset=offset, **GROUPED)
        for limit, offset in ((2, 0), (3, 1), (2, 2))
    )

    assert [keys(near), keys(both_deep), keys(deeper)] == [ids[:2], ids[1:], ids[2:]]
    assert (near.note, both_deep.note) == (None, None)
    assert f"ranked among {DEPTHS[1]} candidates" in (deeper.note or "")


def test_a_page_says_that_there_may_be_more_groups(
    database: Database, service: SearchService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is that the hits that are looked at are of too few groups."""
    monkeypatch.setattr("pgcorpus.services.search.page.MOST_GROUPED", DEPTHS[0])
    ids = archive(database, [DEPTHS[0] + 20, 1, 1])

    page = service.search("kettle", limit=3, **GROUPED)

    assert keys(page) == ids[:1]
    assert f"the best {DEPTHS[0]} hits are of no more" in (page.note or "")


def test_a_reranker_orders_the_groups(database: Database, service: SearchService) -> None:
    """It sees all hits that are grouped, and the best by its scores is first."""
    ids = archive(database, [3, 3])

    def last_first(_question: str, hits: Sequence[Hit]) -> list[float]:
        return [float(hit.ranks["vector"]) for hit in hits]

    page = service.search("kettle", rerank=last_first, **GROUPED | {"group_size": 2})

    assert keys(page) == ids[::-1]
    assert [hit.score for hit in page.hits] == [6, 5, 3, 2]


def test_a_filter_narrows_before_hits_are_grouped(
    database: Database, service: SearchService
) -> None:
    """A group has only what the filter keeps, and the page says why there are no more."""
    ids = archive(database, [3, 3])

    page = service.search("kettle", filters={"conversation": ids[1]}, **GROUPED)

    assert keys(page) == ids[1:]
    assert "fewer groups than asked for: the filters keep 3 passages" in (page.note or "")


@pytest.mark.parametrize("column", ["title", "concept", "", "id", 7, ["conversation"]])
def test_an_unknown_column_lists_the_known(service: SearchService, column: object) -> None:
    """The message lists the columns that hits of the corpus show beside title and content."""
    known = "conversation, branch, position, role, date, source_type, saved"

    with pytest.raises(InvalidSearch, match=f"to be grouped by; known: {known}"):
        service.search("kettle", corpus="chat", group_by=column)


@pytest.mark.parametrize("size", [0, 101, "3", 2.5, True])
def test_a_group_size_out_of_range_is_refused(service: SearchService, size: object) -> None:
    """The error says what is allowed."""
    with pytest.raises(InvalidSearch, match="a group has 1 to 100 hits"):
        service.search("kettle", **GROUPED | {"group_size": size})


def test_every_corpus_can_be_grouped(database: Database, service: SearchService) -> None:
    """By any column: one without a value is a group, and one that is a list is compared whole."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        for name in ("Pricing", "Pricing", "Sales"):
            FrameworkDocumentFactory(content="a kettle", details__framework_name=name)
        FrameworkDocumentFactory(content="a kettle", details=False)
        work.commit()

    by_name = service.search(
        "kettle",
        corpus="knowledge",
        mode="text",
        group_by="framework_name",
        filters={"validation_passed": [True, None]},
    )
    by_list = service.search("kettle", corpus="knowledge", mode="text", group_by="concepts")

    assert {group.key: group.found for group in by_name.groups or ()} == {
        "Pricing": 2,
        "Sales": 1,
        None: 1,
    }
    assert [(group.key, group.found) for group in by_list.groups or ()] == [((), 3)]


def test_a_page_without_groups_has_none(database: Database, service: SearchService) -> None:
    """Nothing changes for those who did not ask for any."""
    archive(database, [2])

    page = service.search("kettle", corpus="chat", mode="vector")

    assert page.groups is None
    assert "groups" not in page.as_json()


def test_groups_are_in_the_json_by_the_ids_of_their_hits(
    database: Database, service: SearchService
) -> None:
    """Each hit is there once, in the order of the groups."""
    archive(database, [2, 1])

    shown = json.loads(json.dumps(service.search("kettle", **GROUPED).as_json(), default=str))

    assert [hit["id"] for hit in shown["hits"]] == [n for g in shown["groups"] for n in g["hits"]]
    assert [group["found"] for group in shown["groups"]] == [2, 1]


def test_async_searches_are_grouped_too(database: Database, service: SearchService) -> None:
    """The same page."""
    archive(database, [DEPTHS[0] + 5, 1])

    async def search() -> SearchPage:
        try:
            return await AsyncSearchService(database, embedder=AxisEmbedder()).search(
                "kettle", **GROUPED
            )
        finally:
            await database.aclose()

    page, same = asyncio.run(search()), service.search("kettle", **GROUPED)

    assert replace(page, legs=()) == replace(same, legs=())


def test_a_deeper_look_that_fails_leaves_the_groups_that_are_there(database: Database) -> None:
    """The page says what was not looked at, and why."""
    ids = archive(database, [DEPTHS[0] + 20, 1])
    spoilt = (
        """
        CREATE FUNCTION readable(title text) RETURNS boolean LANGUAGE plpgsql AS
        $$ BEGIN IF title = 'Talk 1' THEN RAISE 'out of ink'; END IF; RETURN true; END $$
        """,
        "ALTER TABLE conversations ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY readable ON conversations USING (readable(title))",
    )
    with database.engine.begin() as connection:
        for statement in spoilt:
            connection.execute(text(statement))
    # The conversations of hits are looked up one by one: the first hundred are all of the first.
    looked_up = " ".join(f"-c enable_{way}=off" for way in ("seqscan", "hashjoin", "mergejoin"))
    with guest(database, "GRANT SELECT ON ALL TABLES IN SCHEMA public") as seen:
        url = seen.url.update_query_dict({"options": looked_up})
        narrow = Database(replace(seen.settings, database_url=url))
        try:
            page = SearchService(narrow, embedder=AxisEmbedder()).search("kettle", **GROUPED)
        finally:
            narrow.close()

    assert keys(page) == ids[:1]
    assert "hits alone were grouped: " in (page.note or "")
    assert "out of ink" in (page.note or "")
