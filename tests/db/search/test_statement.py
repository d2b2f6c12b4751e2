"""The statement of a search: compiled once, sent at once, and without a word of the question."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import UnknownFilter
from pgcorpus.db.search.answer import Answer, Statement
from pgcorpus.db.search.ask import Ask
from pgcorpus.db.search.corpora import KNOWLEDGE
from pgcorpus.db.search.legs import AskedModel
from pgcorpus.db.search.prelude import compile_prelude
from pgcorpus.db.search.question import Question
from pgcorpus.db.search.ranking import compile_search
from pgcorpus.db.uow import UnitOfWork
from tests.db.search.crowd import WORD, Crowd
from tests.db.search.crowd import ask as ask_crowd
from tests.db.search.shelves import DIMENSIONS, SHELVES, Passage
from tests.db.search.test_contract import PASSAGES, ask
from tests.factories import axis

SENT = re.compile(r'\tF\t\d+\t(Query|Sync|Parse\t "" "BEGIN")')
"""Calls that end a message to the server. After BEGIN in a pipeline nobody waits for an answer."""

HOSTILE = (
    "price's \"x",
    "100% %s %(x)s %(word_0)s %%",
    "back\\slash \\' '; DROP TABLE framework_documents; --",
    "${HOME} $1 $$ :name {0} {word}",
    "nul\0byte price",
    "price & !cheap | (low <-> high):*A",
    "-'\" price -'; SELECT 1",
    "\"%(x)s ' \\ \" price or '%'",
)

same_shape = pytest.mark.parametrize(
    "changes",
    [
        {"question": Question.parse("refund subscribers")},
        {"question": Question.parse("refund refund anchoring")},
        {"vector": axis(3, length=DIMENSIONS)},
        {"legs": {"vector": 0.9, "text": 0.1}},
        {"limit": 7, "offset": 3},
        {"filters": {"section": "Sales", "created_at": {"gte": "2021-05-06"}}},
        {"language": "english"},
    ],
    ids=["words", "repeated", "vector", "weights", "page", "values", "language"],
)

other_shape = pytest.mark.parametrize(
    "changes",
    [
        {"question": Question.parse("refund subscribers anchoring")},
        {"question": Question.parse('"high price" refund')},
        {"legs": {"vector": 1.0}},
        {"fusion": "rrf"},
        {"limit": 200},
        {"group_by": "section"},
        {"filters": {"section": ["Sales"], "created_at": {"gte": "2021-05-06"}}},
        {"filters": {"section": "Sales"}},
        {"model": AskedModel("bge-m3", DIMENSIONS)},
    ],
    ids=["size", "demand", "legs", "fusion", "depth", "groups", "comparison", "filters", "model"],
)

NARROWED = ask("price anchoring", filters={"section": "x", "created_at": {"gte": "2020-01-01"}})


def prepare(work: UnitOfWork, asked: Ask) -> Statement:
    """The statement of a search, compiled."""
    statement = work.searches.prepare(KNOWLEDGE, asked)
    assert statement.sql
    return statement


@same_shape
def test_searches_of_one_shape_share_a_statement(work: UnitOfWork, changes: dict[str, Any]) -> None:
    """Another question, page, weight or value of a filter compiles nothing."""
    SHELVES[0].fill(work, PASSAGES)
    first = prepare(work, NARROWED)
    before = compile_search.cache_info(), compile_prelude.cache_info()

    second = prepare(work, replace(NARROWED, **changes))

    assert compile_search.cache_info().misses == before[0].misses
    assert compile_prelude.cache_info().misses == before[1].misses
    assert second.sql is first.sql


@other_shape
def test_searches_of_another_shape_have_another_statement(
    work: UnitOfWork, changes: dict[str, Any]
) -> None:
    """Every option that is no parameter is in the shape."""
    SHELVES[0].fill(work, PASSAGES)

    first, second = prepare(work, NARROWED), prepare(work, replace(NARROWED, **changes))

    assert second.shape != first.shape
    assert second.sql != first.sql


@pytest.mark.parametrize("question", HOSTILE)
def test_no_word_of_a_question_is_in_the_statement(work: UnitOfWork, question: str) -> None:
    """It is the statement of any tame question of its shape, to the letter; and it runs."""
    SHELVES[0].fill(work, [*PASSAGES, Passage("Hostile", question.replace("\0", ""))])
    asked = ask(question, legs={"vector": 0.4, "text": 0.3, "fuzzy": 0.3})

    statement = prepare(work, asked)
    answer = work.searches.answer(KNOWLEDGE, asked)

    assert statement.sql == compile_search.__wrapped__(statement.shape)
    assert not any(hostile in statement.sql for hostile in ("DROP", "${HOME}", "(x)s", "cheap"))
    assert answer.hits


@pytest.mark.parametrize("value", HOSTILE[:-5] + HOSTILE[5:])
def test_no_value_of_a_filter_is_in_the_statement(work: UnitOfWork, value: str) -> None:
    """A value is equal to itself alone."""
    SHELVES[0].fill(work, PASSAGES)
    work.session.execute(text("UPDATE framework_documents SET section = :value"), {"value": value})
    asked = ask("price", filters={"section": value})

    assert len(work.searches.answer(KNOWLEDGE, asked).hits) == len(PASSAGES)
    assert value not in prepare(work, asked).sql
    assert (
        work.searches.answer(KNOWLEDGE, replace(asked, filters={"section": f"{value}'"})).hits == ()
    )


@pytest.mark.parametrize("name", ["section = section OR", "section'", "%(x)s", "title", "", "\0"])
def test_no_unknown_name_of_a_filter_reaches_the_statement(work: UnitOfWork, name: str) -> None:
    """Only the corpus's own names are known."""
    with pytest.raises(UnknownFilter, match="known: "):
        work.searches.prepare(KNOWLEDGE, ask("price", filters={name: "x"}))


@contextmanager
def round_trips(work: UnitOfWork) -> Iterator[list[int]]:
    """Counts how often libpq waits, by its own trace of the protocol; one number, at the end."""
    raw: Any = work.session.connection().connection.driver_connection
    counted: list[int] = []
    with tempfile.TemporaryFile("w+") as traced:
        raw.pgconn.trace(traced.fileno())
        try:
            yield counted
        finally:
            raw.pgconn.untrace()
        traced.seek(0)
        sent = [message[:5] for message in SENT.findall(traced.read())]
        counted.append(sent.count("Query") + sent.count("Sync"))


def count_round_trips(database: Database, asked: Ask, before: Ask) -> tuple[Answer, list[int]]:
    """Run a search and count its messages, after others: the corpus is learned, then its words."""
    for _ in range(2):
        with database.unit_of_work() as work:
            work.searches.answer(KNOWLEDGE, before)
    with database.unit_of_work() as work, round_trips(work) as counted:
        return work.searches.answer(KNOWLEDGE, asked), counted


def count_awaited_round_trips(
    database: Database, asked: Ask, before: Ask
) -> tuple[Answer, list[int]]:
    """The same under asyncio."""

    async def count() -> tuple[Answer, list[int]]:
        own = Database(database.settings)
        try:
            return await own.run(count_round_trips, own, asked, before)
        finally:
            await own.aclose()

    return asyncio.run(count())


@pytest.mark.parametrize("legs", [{"vector": 1.0}, {"text": 1.0}, {"vector": 0.5, "text": 0.5}])
@pytest.mark.parametrize("way", [count_round_trips, count_awaited_round_trips])
@pytest.mark.parametrize("word", [WORD[40], "unheard"])
def test_a_search_of_a_large_corpus_takes_as_few_round_trips_as_it_can(
    crowd: Crowd,
    way: Callable[[Database, Ask, Ask], tuple[Answer, list[int]]],
    legs: dict[str, float],
    word: str,
) -> None:
    """BEGIN, the settings and the statement travel together; new words are looked up before."""
    asked = ask_crowd(f"{WORD[900]} {WORD[40]}", legs)
    own = Database(crowd.database.settings)
    try:
        answer, counted = way(own, asked, ask_crowd(f"{WORD[900]} {word}", {**legs, "text": 1.0}))
    finally:
        own.close()

    assert counted == [2 if word == "unheard" and "text" in legs else 1]
    assert len(answer.hits) == 10
