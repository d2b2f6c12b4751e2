"""Fusion is arithmetic, on geometry that a reader can check by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from db.search.corpora import KNOWLEDGE
from db.uow import UnitOfWork
from tests.factories import axis
from tests.search.shelves import SHELVES, Passage
from tests.search.test_contract import ask

SHELF = SHELVES[0]


def test_a_weighted_score_is_the_sum_of_weight_times_score(work: UnitOfWork) -> None:
    """Cosine 0.6 at weight 0.7 adds 0.42; the words leg adds 0.3 times its own score."""
    SHELF.fill(work, [Passage("Kettle", "boil water", axis(1, lean=0.6, length=384))])

    hit = work.searches.answer(KNOWLEDGE, ask("kettle", near=0)).hits[0]

    assert hit.contributions["vector"] == pytest.approx(0.42, abs=1e-3)
    assert hit.contributions["text"] == pytest.approx(0.3 * hit.scores["text"])
    assert hit.score == pytest.approx(sum(hit.contributions.values()))


def test_rrf_adds_one_over_sixty_plus_the_place(work: UnitOfWork) -> None:
    """First on both legs is 2/61; first on one alone is 1/61; scores do not count."""
    both, near, worded = SHELF.fill(
        work,
        [
            Passage("Kettle", "kettle", axis(1, lean=0.9, length=384)),
            Passage("Other", "nothing of the sort", axis(2, lean=0.8, length=384)),
            Passage("Word", "one kettle in a very long sentence about other things entirely"),
        ],
    )
    asked = ask("kettle", near=0, fusion="rrf", legs={"vector": 1.0, "text": 1.0})

    scores = {hit.id: hit.score for hit in work.searches.answer(KNOWLEDGE, asked).hits}

    assert scores == {
        both: pytest.approx(1 / 61 + 1 / 61),
        near: pytest.approx(1 / 62),
        worded: pytest.approx(1 / 62),
    }


def test_agreement_between_legs_beats_a_single_first_place(work: UnitOfWork) -> None:
    """A passage second on both legs outranks ones that are first on only one."""
    first_by_vector, first_by_words, second = SHELF.fill(
        work,
        [
            Passage("A", "nothing of the sort", axis(1, lean=0.9, length=384)),
            Passage("Kettle kettle", "kettle"),
            Passage("C", "a kettle", axis(2, lean=0.8, length=384)),
        ],
    )
    asked = ask("kettle", near=0, fusion="rrf", legs={"vector": 1.0, "text": 1.0})

    hits = work.searches.answer(KNOWLEDGE, asked).hits

    assert hits[0].id == second
    assert {hit.id for hit in hits[1:]} == {first_by_vector, first_by_words}


def test_a_negative_cosine_counts_as_nothing(work: UnitOfWork) -> None:
    """The vector leg's score never takes away from another leg's."""
    SHELF.fill(work, [Passage("Kettle", "boil water", -axis(0, length=384))])

    hit = work.searches.answer(KNOWLEDGE, ask("kettle", near=0)).hits[0]

    assert hit.scores["vector"] == 0
    assert hit.score == pytest.approx(hit.contributions["text"])


def test_the_offset_is_applied_once_after_fusion(work: UnitOfWork) -> None:
    """The second hit of a page is the first of the page that starts one later."""
    SHELF.fill(
        work,
        [Passage(f"Kettle {n}", "kettle", axis(1, lean=n / 10, length=384)) for n in range(9)],
    )
    asked = ask("kettle", near=0)

    whole = work.searches.answer(KNOWLEDGE, asked).hits
    later = work.searches.answer(KNOWLEDGE, replace(asked, offset=1)).hits

    assert later == whole[1:]


def test_a_rare_word_outweighs_a_frequent_one(work: UnitOfWork) -> None:
    """With statistics, the passage that holds the rare word of the question comes first."""
    common = [Passage(f"Price {n}", f"the price of item {n}") for n in range(60)]
    keys = SHELF.fill(work, [*common, Passage("Odd", "the zeugma of item x")])
    work.session.connection().exec_driver_sql("ANALYZE framework_documents")

    answer = work.searches.answer(KNOWLEDGE, ask("price zeugma", legs={"text": 1.0}))

    assert answer.hits[0].id == keys[-1]
    assert answer.words_known == answer.words_asked == 2


def test_a_word_asked_twice_counts_twice(work: UnitOfWork) -> None:
    """A question's repeated words count as often as they occur."""
    a, b = SHELF.fill(work, [Passage("x", "kettle one"), Passage("y", "teapot one")])

    once = work.searches.answer(KNOWLEDGE, ask("teapot kettle kettle", legs={"text": 1.0})).hits
    other = work.searches.answer(KNOWLEDGE, ask("teapot teapot kettle", legs={"text": 1.0})).hits

    assert [hit.id for hit in once] == [a, b]
    assert [hit.id for hit in other] == [b, a]


def test_without_statistics_all_words_weigh_the_same(work: UnitOfWork) -> None:
    """Before the first ANALYZE the leg answers, and says that it knows no rarity."""
    SHELF.fill(work, [Passage("x", "kettle one")])

    answer = work.searches.answer(KNOWLEDGE, ask("kettle", legs={"text": 1.0}))

    assert len(answer.hits) == 1
    assert (answer.words_asked, answer.words_known) == (1, 0)
