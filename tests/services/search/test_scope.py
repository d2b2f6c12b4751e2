"""Searches of what is somebody's: within a scope, by its own words, with a bounded boost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import InvalidSearch, MissingScope, UnsafeRole
from pgcorpus.db.scope import Scope
from pgcorpus.services.embedding.hashing import HashingEmbedder
from pgcorpus.services.search.service import AsyncSearchService, SearchService
from tests import factories
from tests.logins import logged_in

SAID = ("The kettle whistles.", "The kettle is red.", "The harbour is far.")


@dataclass(frozen=True)
class House:
    """A database with a tenant's memories, and the login of a service."""

    owner: Database
    service: Database
    scope: Scope

    def remember(self, said: str, scope: Scope | None = None, **row: object) -> None:
        """Write a memory of the tenant, or of another."""
        with self.owner.unit_of_work() as work:
            factories.bind(work.session)
            tenant = (scope or self.scope).tenant_id
            factories.MemoryNodeFactory(
                tenant=None, tenant_id=tenant, human_content=said, assistant_content="", **row
            )
            work.commit()

    def tenant(self) -> Scope:
        """Another tenant."""
        with self.owner.unit_of_work() as work:
            factories.bind(work.session)
            scope = Scope.tenant(factories.TenantFactory().id)
            work.commit()
        return scope

    @property
    def search(self) -> SearchService:
        """As the service searches."""
        return SearchService(self.service, embedder=HashingEmbedder())


@pytest.fixture
def house(database: Database) -> Iterator[House]:
    """Three memories of one tenant."""
    with logged_in(database, "rag_read_write") as service:
        house = House(database, service, House(database, service, None).tenant())  # type: ignore[arg-type]
        for said in SAID:
            house.remember(said)
        yield house


def scores(house: House, question: str, **options: object) -> dict[str, float]:
    """Return the hits that were found by their words, each with its score."""
    page = house.search.search(question, corpus="memory", mode="text", scope=house.scope, **options)
    return {hit.title: hit.score for hit in page.hits}


def test_without_a_scope_nothing_is_searched(house: House) -> None:
    """The service refuses before it asks the database anything."""
    with pytest.raises(MissingScope, match="name a tenant or a user"):
        house.search.search("kettle", corpus="memory")
    with pytest.raises(MissingScope):
        asyncio.run(AsyncSearchService(house.service).search("kettle", corpus="episodes"))


def test_a_login_that_sees_everything_is_refused(house: House) -> None:
    """A superuser's search would be right, and the next statement of the service would not."""
    with pytest.raises(UnsafeRole, match="rag_read_write"):
        SearchService(house.owner).search("kettle", corpus="memory", mode="text", scope=house.scope)


def test_words_weigh_what_they_weigh_in_the_scope(house: House) -> None:
    """Another tenant's texts change no score, before and after ANALYZE."""
    before = scores(house, "kettle harbour")
    assert before["The harbour is far."] > before["The kettle is red."]

    other = house.tenant()
    for n in range(40):
        house.remember(f"The harbour of town {n}.", other)
    with house.owner.unit_of_work() as work:
        work.searches.renew_statistics("memory_nodes")
        work.commit()

    assert scores(house, "kettle harbour") == before


def test_a_boost_raises_what_is_fresh_or_often_recalled(house: House) -> None:
    """By its share of the score at most, and each hit says by how much."""
    long_ago = datetime.now(UTC) - timedelta(days=3650)
    house.remember("The ferry leaves at noon.", created_at=long_ago)
    house.remember("The ferry leaves at dawn.", created_at=long_ago, access_count=45)
    house.remember("The ferry leaves at dusk.")
    plain = scores(house, "ferry")

    page = house.search.search("ferry", corpus="memory", mode="text", scope=house.scope, boost=0.5)

    assert [hit.title for hit in page.hits] == [
        "The ferry leaves at dusk.",
        "The ferry leaves at dawn.",
        "The ferry leaves at noon.",
    ]
    rises = [hit.score / plain[hit.title] - 1 for hit in page.hits]
    assert rises == pytest.approx([0.5 * 0.7, 0.5 * 0.3 * 0.9, 0.0], abs=1e-3)
    for hit in page.hits:
        assert sum(hit.contributions.values()) == pytest.approx(hit.score)
        assert hit.contributions["boost"] == pytest.approx(hit.score - plain[hit.title])


def test_a_half_life_says_how_fast_a_boost_fades(house: House) -> None:
    """After a half-life half of it is left."""
    house.remember("The ferry was late.", created_at=datetime.now(UTC) - timedelta(days=10))
    plain = scores(house, "ferry")["The ferry was late."]

    fresh = scores(house, "ferry", boost=1.0, half_life_days=10)["The ferry was late."]

    assert fresh / plain == pytest.approx(1 + 0.7 / 2, abs=1e-3)


@pytest.mark.parametrize("boost", [-0.1, 1.1, float("nan"), True, "much"])
def test_an_impossible_boost_is_refused(house: House, boost: object) -> None:
    """It is a share of a score."""
    with pytest.raises(InvalidSearch, match="boost must be"):
        scores(house, "kettle", boost=boost)


@pytest.mark.parametrize("days", [0, -1, float("inf"), float("nan"), 100_001])
def test_an_impossible_half_life_is_refused(house: House, days: float) -> None:
    """It is a number of days."""
    with pytest.raises(InvalidSearch, match="half_life_days must be"):
        scores(house, "kettle", boost=0.1, half_life_days=days)


def test_a_corpus_that_nothing_speaks_for_has_no_boost(house: House) -> None:
    """The worth of a chat message does not fade."""
    with pytest.raises(InvalidSearch, match="chat"):
        house.search.search("kettle", corpus="chat", boost=0.1)


def test_noise_is_left_out_unless_it_is_asked_for(house: House) -> None:
    """And what was not clustered yet is no noise."""
    house.remember("The kettle hums.", cluster_id=-1)

    assert "The kettle hums." not in scores(house, "kettle")
    assert "The kettle hums." in scores(house, "kettle", filters={"noise": [True, False]})


def test_the_words_around_a_memory_are_of_its_scope(house: House) -> None:
    """Another tenant's conversation of the same name stands beside nobody's hit."""
    other = house.tenant()
    for n in range(3):
        house.remember(f"Lantern {n}.", conversation_id="talk", sequence_index=n)
        house.remember(f"Theirs {n}.", other, conversation_id="talk", sequence_index=n)
    page = house.search.search("lantern", corpus="memory", mode="text", scope=house.scope)

    context = house.search.context(page.hits[:1], before=2, after=2, scope=house.scope)

    assert "Lantern 0." in context.text
    assert "Lantern 2." in context.text
    assert "Theirs" not in context.text
    with pytest.raises(MissingScope):
        house.search.context(page.hits[:1])


def test_a_search_of_memories_explains_itself(house: House) -> None:
    """The plan is made in the same scope, and as the same role."""
    page = house.search.search("kettle", corpus="memory", mode="text", scope=house.scope)

    explanation = page.explain()

    assert str(house.scope) in str(explanation.plan)
    assert "InitPlan" in str(explanation.plan)
    assert explanation.parameters["scope"] == str(house.scope)
