"""No filter starves a search: every leg finds what is there, whatever share of it is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import text

from pgcorpus.db.search import known, ranker
from pgcorpus.db.search.ask import Ask
from pgcorpus.db.search.corpora import KNOWLEDGE
from pgcorpus.db.search.likeness import LEAST
from pgcorpus.db.uow import UnitOfWork
from tests.db.search.crowd import KEPT, ROWS, WORD, Crowd, ask, near, undo_all

MODES: dict[str, dict[str, float]] = {
    "vector": {"vector": 1.0},
    "text": {"text": 1.0},
    "fuzzy": {"fuzzy": 1.0},
    "hybrid": {"vector": 0.3, "text": 0.7},
}
QUESTIONS = (
    f"{WORD[0]} {WORD[2]} {WORD[3]}",
    f"{WORD[1]} {WORD[30]} {WORD[900]}",
    " ".join(WORD[n] for n in (4, 9, 17, 60, 250)),
)
"""Questions of frequent words, of one that is rare, and a longer one."""

LIMIT = 10
RECALL = 0.95
SAME = 1e-2
"""Scores that differ by less, relative to them, are a tie: ts_rank gives tf to within 6 %."""

LIKENESS = text("""
    SELECT word_similarity(:question, title || ' ' || content)
    FROM framework_documents ORDER BY chunk_id
""")


def exact(crowd: Crowd, asked: Ask, kept: np.ndarray) -> np.ndarray:
    """Score of every passage, -inf where no leg finds it; shape ``(ROWS,)``."""
    found, score = np.zeros(ROWS, dtype=bool), np.zeros(ROWS)
    for leg, weight in asked.legs.items():
        of_leg = np.where(kept, LEGS[leg](crowd, asked, kept), -np.inf)
        deepest = np.sort(of_leg)[-asked.depth]
        found |= (of_leg >= deepest) & (of_leg > -np.inf)
        score += weight * np.maximum(of_leg, 0)
    return np.where(found, score, -np.inf)


def by_vector(crowd: Crowd, asked: Ask, kept: np.ndarray) -> np.ndarray:
    """The cosine of every passage."""
    assert asked.vector is not None
    return crowd.cosines(asked.vector)


def by_words(crowd: Crowd, asked: Ask, kept: np.ndarray) -> np.ndarray:
    """BM25 of every passage that holds a word."""
    scores = crowd.bm25(asked.question.text)
    return np.where(scores > 0, scores, -np.inf)


def by_likeness(crowd: Crowd, asked: Ask, kept: np.ndarray) -> np.ndarray:
    """Word similarity of every passage that is like enough."""
    scores = _likeness(crowd, asked.question.text)
    return np.where(scores >= LEAST, scores, -np.inf)


@cache
def _likeness(crowd: Crowd, question: str) -> np.ndarray:
    with crowd.database.engine.connect() as connection:
        return np.array(connection.scalars(LIKENESS, {"question": question}).all())


LEGS = {"vector": by_vector, "text": by_words, "fuzzy": by_likeness}


def recall(crowd: Crowd, asked: Ask, filters: Mapping[str, Any], kept: np.ndarray) -> float:
    """Share of the exact search's hits that the search finds.

    Any of equally good passages will do; the number of hits must be that of the exact search.
    """
    places = {key: place for place, key in enumerate(crowd.keys)}
    scores = exact(crowd, asked, kept)
    existing = min(LIMIT, int(np.isfinite(scores).sum()))
    with crowd.database.unit_of_work() as work:
        hits = work.searches.answer(KNOWLEDGE, replace(asked, filters=filters, limit=LIMIT)).hits
    assert len(hits) == existing
    assert all(kept[places[hit.id]] for hit in hits)
    if not existing:
        return 1.0
    least = np.sort(scores)[-existing] * (1 - SAME)
    return float(np.mean([scores[places[hit.id]] >= least for hit in hits]))


def list_questions(mode: str) -> list[Ask]:
    """List the questions, each with a vector of its own; the fuzzy leg takes a misspelt word."""
    if mode == "fuzzy":
        return [ask(WORD[n][:-1] + "x", MODES[mode]) for n in (6, 70)]
    return [ask(each, MODES[mode], vector=near(n)) for n, each in enumerate(QUESTIONS)]


@pytest.mark.parametrize("share", KEPT)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["section", "framework_name", "metadata"])
def test_a_filter_starves_no_search(crowd: Crowd, mode: str, share: str, name: str) -> None:
    """By a column of the passage, of another table, or a key: all hits there are, none else."""
    kept = crowd.sections == share
    assert kept.sum() == KEPT[share]
    filters = {name: {"share": share} if name == "metadata" else share}

    recalls = [recall(crowd, asked, filters, kept) for asked in list_questions(mode)]

    assert np.mean(recalls) >= RECALL


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "asked",
    [
        {"number": {"$gt": 5000, "$lte": 5003}},
        {"number": {"$in": [5001, 5002, 5003]}},
        {"$or": [{"number": 5001}, {"number": {"$eq": 5002}}, {"number": 5003.0}]},
        {"$not": {"$or": [{"number": {"$lt": 5001}}, {"number": {"$gt": 5003}}]}},
    ],
    ids=["range", "any", "or", "not"],
)
def test_three_passages_that_metadata_keep_are_all_found(
    crowd: Crowd, mode: str, asked: dict[str, Any]
) -> None:
    """Of thirty thousand, by an index or without: each mode gives what its legs can find."""
    kept = np.isin(np.arange(1, ROWS + 1), [5001, 5002, 5003])

    for question in list_questions(mode):
        assert recall(crowd, question, {"metadata": asked}, kept) == 1.0


@pytest.mark.parametrize("share", ["50 %", "5 %", "0.5 %"])
@pytest.mark.parametrize("mode", ["vector", "hybrid"])
def test_an_index_scan_goes_on_under_a_filter(
    crowd: Crowd, mode: str, share: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a corpus so large that even few of it are too many to be compared one by one."""
    for module in (known, ranker):
        monkeypatch.setattr(module, "FEW", 100)
    kept = crowd.sections == share

    recalls = [recall(crowd, asked, {"section": share}, kept) for asked in list_questions(mode)]

    assert np.mean(recalls) >= RECALL


def test_what_a_filter_keeps_is_found_far_from_the_question(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The question is near what the filter refuses: thousands are passed over, none is missed."""
    for module in (known, ranker):
        monkeypatch.setattr(module, "FEW", 100)
    asked = ask("x", MODES["vector"])
    nearest = np.argsort(-crowd.cosines(asked.vector))
    names = sorted({f"{place:05}" for place in nearest[6_000:6_200] + 1})
    kept = np.isin(np.arange(ROWS), nearest[6_000:6_200])

    assert recall(crowd, asked, {"chunk_id": names}, kept) >= RECALL


HELD = 6
"""The word of which all passages that pass validation hold one."""


@contextmanager
def validate(crowd: Crowd, count: int, *, analysed: bool, known: bool) -> Iterator[UnitOfWork]:
    """A unit of work in which *count* passages passed validation; rolled back at the end.

    They hold the word ``HELD``, and of those that do they are the farthest from the question.

    Args:
        crowd: Of which all passed before.
        count: How many still do.
        analysed: Whether statistics tell.
        known: Whether there was a search before, of which the engine remembers what it found out.
    """
    holding = np.flatnonzero((crowd.words == HELD).any(axis=1))
    farthest = holding[np.argsort(crowd.cosines(near(0))[holding])[:count]]
    failed = text("""
        UPDATE framework_metadata SET validation_passed = false
        WHERE document_id <> ALL (CAST(:kept AS uuid[]))
    """)
    with undo_all(crowd) as work:
        if known:
            work.searches.answer(KNOWLEDGE, ask(WORD[HELD], MODES["text"]))
        work.session.execute(failed, {"kept": [crowd.keys[place] for place in farthest]})
        if analysed:
            work.session.execute(text("ANALYZE framework_metadata"))
        yield work


@pytest.mark.parametrize("analysed", [True, False], ids=["analysed", "not analysed"])
@pytest.mark.parametrize("known", [True, False], ids=["searched before", "new"])
def test_a_default_filter_starves_no_search_either(
    crowd: Crowd, analysed: bool, known: bool
) -> None:
    """Nobody named the filter, and it keeps one in a thousand: the page is as if it were named."""
    asked = {
        "vector": ask("x", MODES["vector"]),
        "text": ask(f"{WORD[HELD]} {WORD[0]}", MODES["text"]),
        # Half of the word: of a large corpus, only what is more alike would be looked for.
        "fuzzy": ask(WORD[HELD][:3] + "xxx", MODES["fuzzy"]),
        "hybrid": ask(WORD[HELD], MODES["hybrid"]),
    }
    with validate(crowd, 30, analysed=analysed, known=known) as work:
        for mode, question in asked.items():
            named = replace(question, filters={"validation_passed": True})
            by_default, as_named = (
                [hit.id for hit in work.searches.answer(KNOWLEDGE, each).hits]
                for each in (question, named)
            )
            assert (mode, len(as_named)) == (mode, LIMIT)
            assert (mode, by_default) == (mode, as_named)


@pytest.mark.parametrize("mode", ["vector", "text", "hybrid"])
def test_a_default_filter_that_keeps_nearly_all_is_asked_of_the_hits_alone(
    crowd: Crowd, mode: str
) -> None:
    """Refused passages are not shown, whether few of the best are refused, or all of them."""
    question = ask(WORD[HELD], MODES[mode])
    named = replace(question, filters={"validation_passed": True})
    failed = text("UPDATE framework_metadata SET validation_passed = false WHERE document_id = :id")
    with undo_all(crowd) as work:
        refused: list[UUID] = []
        for more in (2, 1, 30, 0):
            answer = work.searches.answer(KNOWLEDGE, question)
            found = [hit.id for hit in answer.hits]

            assert work.searches.prepare(KNOWLEDGE, question).shape.late
            assert answer.statement.shape.late == (len(refused) <= 2)
            assert len(found) == LIMIT
            assert not {*found} & {*refused}
            if len(refused) != 2:  # with these, each leg has up to two candidates fewer
                as_named = work.searches.answer(KNOWLEDGE, named)
                assert found == [hit.id for hit in as_named.hits]
            deep = replace(question, limit=more or 1)
            for hit in work.searches.answer(KNOWLEDGE, deep).hits[:more]:
                work.session.execute(failed, {"id": hit.id})
                refused.append(hit.id)


def test_a_page_of_few_hits_is_not_searched_for_twice(crowd: Crowd) -> None:
    """Fewer than a page hold a word, and all of them pass: there is nothing else to look for."""
    rarest = int(np.argmin(np.where(crowd.holding > 0, crowd.holding, ROWS)))
    rare = replace(ask(WORD[rarest], MODES["text"]), limit=30)
    with undo_all(crowd) as work:
        work.searches.answer(KNOWLEDGE, rare)
        answer = work.searches.answer(KNOWLEDGE, rare)

    assert 0 < len(answer.hits) == crowd.holding[rarest] < rare.limit
    assert answer.statement.shape.late
