"""Query plans are tests: with enough rows, every leg of every corpus uses its index."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text

from pgcorpus.db.search.ask import FIRST_DEPTH, Ask
from pgcorpus.db.search.corpora import KNOWLEDGE
from pgcorpus.db.search.estimates import explain_matching
from pgcorpus.db.uow import UnitOfWork
from tests.db.search.crowd import INDEX, MODEL, WORD, Crowd, ask

HYBRID = {"vector": 0.3, "text": 0.7}
TWO_WORDS = f"{WORD[900]} {WORD[40]}"


def plan(work: UnitOfWork, asked: Ask) -> str:
    """The plan of a search, as JSON."""
    statement = work.searches.prepare(KNOWLEDGE, asked)
    return json.dumps(work.searches.explain(statement, analyze=False))


def scans(plan: str, table: str) -> bool:
    """Return whether the plan reads a whole table."""
    nodes = [json.loads(plan)["Plan"]]
    for node in nodes:
        nodes += node.get("Plans", [])
    return any((n["Node Type"], n.get("Relation Name")) == ("Seq Scan", table) for n in nodes)


@pytest.mark.parametrize(
    ("leg", "index"),
    [
        ("vector", INDEX),
        ("text", "idx_documents_content_fts"),
        ("fuzzy", "idx_documents_trigram"),
    ],
)
def test_each_leg_uses_its_index(crowd: Crowd, leg: str, index: str) -> None:
    """No leg reads its whole table."""
    with crowd.database.unit_of_work() as work:
        shown = plan(work, ask("hippopotamus", {leg: 1.0}))

    assert index in shown
    assert not scans(shown, "framework_documents")
    assert not scans(shown, "chunk_embeddings")


@pytest.mark.parametrize("fusion", ["calibrated", "weighted", "rrf"])
def test_both_legs_use_their_index_in_one_statement(crowd: Crowd, fusion: str) -> None:
    """Hybrid is no slower a plan than its parts; what completes a leg is looked up by key."""
    with crowd.database.unit_of_work() as work:
        shown = plan(work, ask(TWO_WORDS, HYBRID, fusion=fusion))

    assert INDEX in shown
    assert "idx_documents_content_fts" in shown
    assert not scans(shown, "framework_documents")
    assert not scans(shown, "chunk_embeddings")


def test_a_broad_filter_leaves_the_index_in_use(crowd: Crowd) -> None:
    """Half of the passages are too many to be compared one by one."""
    with crowd.database.unit_of_work() as work:
        shown = plan(work, ask(TWO_WORDS, {"vector": 1.0}, filters={"section": "50 %"}))

    assert INDEX in shown


def test_a_narrow_filter_compares_what_it_keeps(crowd: Crowd) -> None:
    """The comparison is exact, and needs no vector index."""
    asked = ask(TWO_WORDS, {"vector": 1.0}, filters={"section": "0.5 %"})
    with crowd.database.unit_of_work() as work:
        statement = work.searches.prepare(KNOWLEDGE, asked)
        shown = plan(work, asked)

    assert statement.kept == 150
    assert INDEX not in shown
    assert "idx_documents_section" in shown


@pytest.mark.parametrize(
    "asked",
    [
        {"share": "0.05 %"},
        {"share": {"$in": ["0.05 %", "one"]}},
        {"tags": {"$contains": ["0.05 %", "a"]}},
        {"$or": [{"share": "0.05 %"}, {"tags": {"$contains": ["one"]}}]},
        {"$and": [{"share": "0.05 %"}, {"number": {"$gt": 5}}, {"share": {"$ne": None}}]},
    ],
    ids=["equal", "any", "contains", "or", "and"],
)
@pytest.mark.parametrize("leg", ["vector", "text", "fuzzy"])
def test_an_index_serves_equality_and_containment_of_metadata(
    crowd: Crowd, leg: str, asked: dict[str, Any]
) -> None:
    """Every leg reads what is kept, and the passages are counted by it, too."""
    narrowed = ask(TWO_WORDS, {leg: 1.0}, filters={"metadata": asked})
    with crowd.database.unit_of_work() as work:
        statement = work.searches.prepare(KNOWLEDGE, narrowed)
        shown = plan(work, narrowed)
        counted = work.session.connection().exec_driver_sql(
            explain_matching(KNOWLEDGE, statement.shape.conditions, False),
            dict(statement.values),
        )
        count_plan = str(list(counted.scalars()))

    assert statement.kept in (15, 16)
    assert "idx_documents_extra" in shown
    assert "idx_documents_extra" in count_plan
    assert not scans(shown, "framework_documents")


def test_a_generic_plan_uses_the_indexes_too(crowd: Crowd) -> None:
    """After five executions psycopg prepares, and PostgreSQL may plan without the values."""
    with crowd.database.unit_of_work() as work:
        work.session.execute(text("SET LOCAL plan_cache_mode = force_generic_plan"))
        shown = plan(work, ask(TWO_WORDS, HYBRID))

    assert INDEX in shown
    assert "idx_documents_content_fts" in shown


def test_a_plan_can_be_had_with_what_it_took(crowd: Crowd) -> None:
    """It is the search that is run, with its settings of the transaction."""
    with crowd.database.unit_of_work() as work:
        statement = work.searches.prepare(KNOWLEDGE, ask(TWO_WORDS, HYBRID))
        explained = work.searches.explain(statement)

    assert explained["Execution Time"] > 0
    assert explained["Plan"]["Actual Rows"] == 10
    assert explained["Settings"]["jit"] == "off"


@pytest.mark.parametrize("limit", [10, 100, 300])
@pytest.mark.parametrize("legs", [{"vector": 1.0}, HYBRID], ids=["vector", "hybrid"])
def test_a_search_returns_as_many_as_asked_for(
    crowd: Crowd, legs: dict[str, float], limit: int
) -> None:
    """Pgvector's default of 40 candidates would return fewer without a word."""
    with crowd.database.unit_of_work() as work:
        answer = work.searches.answer(KNOWLEDGE, ask(TWO_WORDS, legs, limit=limit))

    assert len(answer.hits) == limit


def test_rare_words_that_find_too_little_are_followed_by_the_others(crowd: Crowd) -> None:
    """A page is filled with passages that hold the frequent words alone, exactly ranked."""
    question = f"{WORD[crowd.holding.argmin()]} {WORD[0]} {WORD[1]}"
    asked = ask(question, {"text": 1.0}, filters={"section": "50 %"}, limit=20)
    with crowd.database.unit_of_work() as work:
        first = work.searches.prepare(KNOWLEDGE, asked)
        answer = work.searches.answer(KNOWLEDGE, asked)

    assert first.look_up is not None
    assert answer.statement.look_up is not None
    assert (first.look_up.complete, answer.statement.look_up.complete) == (False, True)
    scores = np.where(crowd.sections == "50 %", crowd.bm25(question), 0)
    places = [crowd.keys.index(hit.id) for hit in answer.hits]
    assert len(places) == 20
    assert (scores[places] >= np.sort(scores)[-20] * 0.99).all()


def test_demands_are_met_under_every_leg_of_a_large_corpus(crowd: Crowd) -> None:
    """A phrase and an exclusion hold for the vectors' candidates as for the words'."""
    wanted, unwanted = WORD[0], WORD[2]
    asked = ask(f'"{wanted}" -{unwanted}', HYBRID)
    with crowd.database.unit_of_work() as work:
        hits = work.searches.answer(KNOWLEDGE, asked).hits
        near = work.searches.answer(KNOWLEDGE, replace(asked, legs={"vector": 1.0})).hits

    assert len(hits) == len(near) == 10
    for hit in (*hits, *near):
        assert wanted in hit.content.split()
        assert unwanted not in hit.content.split()


def test_a_vector_travels_as_binary(crowd: Crowd) -> None:
    """A stored vector comes back to the last bit of a float32."""
    vector = np.random.default_rng(9).normal(size=MODEL.dimensions).astype(np.float32)
    with crowd.database.unit_of_work() as work:
        work.embeddings.store(KNOWLEDGE, MODEL.name, crowd.keys[:1], vector[None])
        stored = work.session.scalar(
            KNOWLEDGE.vectors.select()
            .with_only_columns(KNOWLEDGE.vectors.c.embedding)
            .where(KNOWLEDGE.item == crowd.keys[0])
        )

    np.testing.assert_array_equal(stored, vector)


@pytest.mark.parametrize("legs", [{"fuzzy": 1.0}, {"vector": 0.3, "fuzzy": 0.7}])
def test_pages_of_the_fuzzy_leg_fit_together(crowd: Crowd, legs: dict[str, float]) -> None:
    """Less alike passages are looked for until a page is full, and no hit moves for it."""
    asked = ask(WORD[600][:-1] + "x", legs, filters={"section": "50 %"})
    with crowd.database.unit_of_work() as work:
        whole = work.searches.answer(KNOWLEDGE, replace(asked, limit=FIRST_DEPTH)).hits
        paged = [
            hit.id
            for offset in range(0, FIRST_DEPTH, 10)
            for hit in work.searches.answer(KNOWLEDGE, replace(asked, offset=offset)).hits
        ]

    assert len(whole) > 10
    assert paged == [hit.id for hit in whole]


def test_the_most_alike_are_found_whatever_is_looked_for(crowd: Crowd) -> None:
    """A word as it is written is found by words; a misspelt one by what it is like."""
    with crowd.database.unit_of_work() as work:
        exact = work.searches.answer(KNOWLEDGE, ask(WORD[20], {"fuzzy": 1.0}))
        typo = work.searches.answer(KNOWLEDGE, ask(WORD[20][:-1] + "x", {"fuzzy": 1.0}))

    assert exact.compared == ""
    assert typo.compared == WORD[20][:-1] + "x"
    assert len(exact.hits) == 10
    assert all(WORD[20] in hit.content for hit in exact.hits)
    assert len(typo.hits) == 10
    assert all(WORD[20][:-1] in hit.content for hit in typo.hits)
