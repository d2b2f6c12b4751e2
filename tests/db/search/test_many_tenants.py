"""Sixty tenants of very different size: each finds what it would find alone, by the right plan."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import URL

from pgcorpus.db.engine import Database
from pgcorpus.db.repositories import vector_indexes
from pgcorpus.db.search import ranker
from pgcorpus.db.search.corpora import MEMORY
from pgcorpus.db.search.legs import AskedModel
from tests.conftest import Databases, settings_for
from tests.logins import logged_in
from tests.prove.isolation import LEGS, Population, fill, index_large_scopes, measure

POPULATION = Population(30_000, 60, AskedModel("tenants", 64))
"""Vectors that are short make a graph that is soon made."""

QUESTIONS = 20
LARGE, MIDDLING, SMALL, SMALLEST = 0, 1, 10, 59
OWN_WORDS = "idx_memory_nodes_scope_"
OWN_VECTORS = "idx_memory_embeddings_scope"


@pytest.fixture(scope="module")
def crowd(databases: Databases, hosted: URL) -> Iterator[Database]:
    """The population, as who owns it; a superuser loads it, as its keys need no check."""
    with databases.opened(hosted.database or "", owner=hosted) as owner:
        model = POPULATION.model
        with owner.unit_of_work() as work:
            work.models.add_model(model.name, dimensions=model.dimensions, provider="hashing")
            work.commit()
        superuser = Database(settings_for(databases.superuser_of(owner.url)))
        fill(superuser, POPULATION)
        superuser.close()
        index_large_scopes(owner, POPULATION)
        yield owner


@pytest.fixture(scope="module")
def application(crowd: Database) -> Iterator[Database]:
    """The same, as an application's login."""
    with logged_in(crowd, "rag_read_write") as application:
        yield application


def test_sizes_fall_as_those_of_customers_do() -> None:
    """One has half of all, the others follow Zipf's law, and nothing is lost."""
    sizes = Population(1_000_000, 1000).sizes

    assert sizes.sum() == 1_000_000
    assert [int(sizes[n]) for n in (1, 999)] == [38_547, 77]
    assert 500_000 <= sizes[0] < 501_000


@pytest.mark.parametrize("tenant", [LARGE, MIDDLING, SMALL, SMALLEST])
@pytest.mark.parametrize("mode", LEGS)
def test_every_tenant_finds_what_it_would_find_alone(
    application: Database, tenant: int, mode: str
) -> None:
    """All hits there are, and the ten nearest of its own, whatever is nearer and others'."""
    found = measure(application, POPULATION, tenant, mode, questions=QUESTIONS)

    assert found.full == QUESTIONS
    assert found.recall is None or found.recall >= 0.95
    assert "all of" not in found.plan, "reads what is others'"


@pytest.mark.parametrize(
    ("tenant", "mode", "index"),
    [
        (LARGE, "vector", "memory_embeddings_hnsw_tenants_"),
        (MIDDLING, "vector", OWN_VECTORS),
        (SMALL, "vector", OWN_VECTORS),
        (SMALLEST, "vector", OWN_VECTORS),
        (LARGE, "text", "memory_nodes_with_words"),
        (MIDDLING, "text", "memory_nodes_with_words"),
        (SMALLEST, "text", OWN_WORDS),
    ],
)
def test_row_security_keeps_no_search_from_its_index(
    application: Database, tenant: int, mode: str, index: str
) -> None:
    """A large scope uses an index of words, any reads rows of its own alone."""
    found = measure(application, POPULATION, tenant, mode, questions=1)

    assert index in found.plan


def test_a_large_scope_uses_the_index_of_its_own(
    crowd: Database, application: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``pgcorpus doctor`` asks for: the planner finds it, and passes over nothing of others'."""
    for module, limit in ((ranker, "MOST_COMPARED"), (vector_indexes, "LEAST_INDEXED")):
        monkeypatch.setattr(module, limit, 2_000)
    made = index_large_scopes(crowd, POPULATION)
    with crowd.unit_of_work() as work:
        model = next(m for m in work.models.list_models() if m.name == POPULATION.model.name)
        assert work.vector_indexes.list_unindexed_scopes(MEMORY, model) == []

    assert len(made) == 1  # the largest has one
    found = measure(application, POPULATION, MIDDLING, "vector", questions=QUESTIONS)
    assert found.full == QUESTIONS
    assert found.recall is None or found.recall >= 0.95
    assert "memory_embeddings_hnsw_tenants_" in found.plan
