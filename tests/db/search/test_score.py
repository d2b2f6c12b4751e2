"""The score of the text leg is BM25's, computed here from its definition."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from math import log

import pytest
from sqlalchemy import text

from pgcorpus.db.search.ask import Ask
from pgcorpus.db.search.corpora import KNOWLEDGE
from pgcorpus.db.search.page import Hit
from pgcorpus.db.search.question import Question
from pgcorpus.db.search.words import ADDED_WORDS
from pgcorpus.db.uow import UnitOfWork
from tests.db.search.shelves import SHELVES, Passage

OFF_BY = 0.08
"""The error of a score, at most, relative to its definition: ts_rank gives tf to within 6 %."""

TITLE = 2
"""Occurrences in the text that one in the title is worth."""


def bm25(passages: Sequence[Passage], question: str) -> dict[str, float]:
    """Content → share of the question's information that the passage holds.

    A word that no passage holds is taken to be in half of one.
    """
    texts = [(Counter(p.title.split()), Counter(p.content.split())) for p in passages]
    average = sum(len(title | content) for title, content in texts) / len(texts)
    scores = dict.fromkeys((p.content for p in passages), 0.0)
    total = 0.0
    for word, times in Counter(question.split()).items():
        holding = sum(word in title or word in content for title, content in texts) or 0.5
        weight = times * log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
        total += weight
        for passage, (title, content) in zip(passages, texts, strict=True):
            tf = TITLE * title[word] + content[word]
            norm = (title.total() + content.total() + ADDED_WORDS) / (average + ADDED_WORDS)
            scores[passage.content] += weight * tf / (tf + norm)
    return {content: score / total for content, score in scores.items() if score}


def passage(title: str, *content: str, **times: int) -> Passage:
    """A passage whose words are left as they are."""
    repeated = [word for word, n in times.items() for _ in range(n)]
    return Passage(title, " ".join([*content, *repeated]), language="simple")


def filler(count: int, start: int = 0) -> list[str]:
    """Words that nobody asks for."""
    return [f"filler{n}" for n in range(start, start + count)]


def search(work: UnitOfWork, passages: Sequence[Passage], question: str) -> tuple[Hit, ...]:
    """Analyse the passages, and return what the text leg finds."""
    SHELVES[0].fill(work, passages)
    work.session.execute(text("ANALYZE framework_documents"))
    return find(work, question)


def find(work: UnitOfWork, question: str) -> tuple[Hit, ...]:
    """Return what the text leg finds."""
    asked = Ask(question=Question.parse(question), legs={"text": 1.0}, limit=30)
    return work.searches.answer(KNOWLEDGE, asked).hits


def assert_as_defined(hits: Sequence[Hit], defined: Mapping[str, float]) -> None:
    """The same passages in the same order, and each score within ``OFF_BY``."""
    expected = [defined[hit.content] for hit in hits]
    assert len(hits) == len(defined)
    assert expected == sorted(expected, reverse=True)
    assert [hit.scores["text"] for hit in hits] == pytest.approx(expected, rel=OFF_BY)


COLLECTIONS = {
    "how often a word occurs": [
        passage("T", *filler(30), kettle=1, one=1),
        passage("T", *filler(28), kettle=3, two=1),
        passage("T", *filler(24), kettle=7, three=1),
        passage("T", *filler(30), four=2),
    ],
    "how rare words are": [
        passage("T", "kettle", *filler(9)),
        passage("T", "teapot", *filler(9)),
        passage("T", "teapot", *filler(9, start=20)),
        passage("T", "teapot", *filler(9, start=40)),
        passage("T", "saucer", *filler(9, start=60)),
    ],
    "how long passages are": [
        passage("T", "kettle", *filler(5)),
        passage("T", "kettle", *filler(25)),
        passage("T", "kettle", *filler(100)),
        passage("T", "kettle", "kettle", *filler(300)),
        passage("T", *filler(50)),
    ],
    "all of it": [
        passage("T", *filler(12), kettle=2, teapot=1),
        passage("T", *filler(40), kettle=4, saucer=1),
        passage("T", *filler(5), teapot=1, saucer=2),
        passage("T", *filler(80), kettle=1, teapot=6, saucer=1),
        passage("T", *filler(20), kettle=1),
        passage("T", *filler(33)),
        passage("T", *filler(21, start=100), saucer=9),
    ],
}


@pytest.mark.parametrize("collection", COLLECTIONS)
@pytest.mark.parametrize("question", ["kettle", "kettle teapot saucer", "teapot kettle kettle"])
def test_the_score_is_that_of_bm25(work: UnitOfWork, collection: str, question: str) -> None:
    """Frequency, rarity and length, each alone and together."""
    passages = COLLECTIONS[collection]

    hits = search(work, passages, question)

    assert_as_defined(hits, bm25(passages, question))


@pytest.mark.parametrize("times", [*range(1, 11), 20, 40, 60])
def test_each_further_occurrence_counts_less(work: UnitOfWork, times: int) -> None:
    """It is tf / (tf + norm) for every tf up to sixty."""
    passages = [passage("T", *filler(20), kettle=times), passage("T", *filler(20, start=50))]

    hits = search(work, passages, "kettle")

    assert_as_defined(hits, bm25(passages, "kettle"))


def test_beyond_sixty_occurrences_count_as_sixty(work: UnitOfWork) -> None:
    """Whoever repeats a word ninety times gains nothing over sixty-one."""
    passages = [
        passage("T", *filler(90 - times), kettle=times) for times in (61, 90)
    ]  # of equal length

    some, many = search(work, passages, "kettle")

    assert some.scores["text"] == pytest.approx(many.scores["text"], rel=0.01)


def test_a_word_in_the_title_is_worth_two_in_the_text(work: UnitOfWork) -> None:
    """To the last digit that ts_rank has; the title's length counts like the text's."""
    passages = [
        passage("kettle", *filler(20)),
        passage("T", *filler(18, start=50), kettle=2),
        passage("T", *filler(19, start=100), kettle=1),
    ]

    hits = search(work, passages, "kettle")

    scores = {hit.content: hit.scores["text"] for hit in hits}
    title, twice, once = (scores[each.content] for each in passages)
    assert title == pytest.approx(twice, rel=1e-3)
    assert title > once


def test_a_long_passage_is_scored_like_a_short_one(work: UnitOfWork) -> None:
    """Rows beyond 8 kB are compressed, and a ``tsvector`` that cannot be is stored apart."""
    passages = [
        passage("T", *filler(900), kettle=9, teapot=1),
        passage("T", *filler(250), kettle=2, saucer=1),
        passage("T", *filler(150), teapot=4),
        passage("T", *filler(30), kettle=1),
    ]
    search(work, passages, "kettle teapot")
    noise = random.Random(1).randbytes(4000).hex()  # noqa: S311 - no secret
    work.session.execute(
        text("UPDATE framework_documents SET description = :noise WHERE content ~ 'saucer'"),
        {"noise": noise},
    )

    hits = find(work, "kettle teapot")
    stored = work.session.execute(
        text(
            "SELECT pg_column_compression(search_vector), pg_column_size(search_vector) > 8000"
            " FROM framework_documents ORDER BY length(search_vector)"
        )
    )

    assert [tuple(row) for row in stored] == [
        (None, False),
        (None, False),
        ("pglz", False),
        (None, True),
    ]
    assert_as_defined(hits, bm25(passages, "kettle teapot"))


def test_the_score_does_not_depend_on_what_else_was_found(work: UnitOfWork) -> None:
    """No hit is the measure of another: with or without the better one, it scores the same."""
    passages = [
        passage("Best", "kettle kettle teapot", *filler(8)),
        passage("Weak", "teapot", *filler(10)),
        passage("None", *filler(11)),
    ]
    search(work, passages, "kettle teapot")
    narrow = Ask(
        question=Question.parse("kettle teapot -best"), legs={"text": 1.0}, language="simple"
    )

    both = work.searches.answer(
        KNOWLEDGE, Ask(question=Question.parse("kettle teapot"), legs={"text": 1.0})
    )
    alone = work.searches.answer(KNOWLEDGE, narrow)

    assert [hit.title for hit in both.hits] == ["Best", "Weak"]
    assert [hit.score for hit in alone.hits] == [both.hits[1].score]


def test_a_weak_hit_alone_has_a_weak_score(work: UnitOfWork) -> None:
    """One frequent word of many is little of a question, even where nothing else is found."""
    passages = [passage("T", "teapot", *filler(9, start=n * 9)) for n in range(20)]
    passages.append(passage("T", *filler(10)))

    hits = search(work, passages, "zeugma chiasmus litotes teapot")

    assert len(hits) == 20
    assert all(hit.scores["text"] < 0.05 for hit in hits)
