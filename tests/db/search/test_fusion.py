"""Fusion is arithmetic, on geometry that a reader can check by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pgcorpus.db.search.ask import FIRST_DEPTH, Ask
from pgcorpus.db.search.corpora import KNOWLEDGE
from pgcorpus.db.search.page import Hit
from pgcorpus.db.uow import UnitOfWork
from tests.db.search.shelves import SHELVES, Passage
from tests.db.search.test_contract import ask
from tests.factories import axis

SHELF = SHELVES[0]


@pytest.fixture
def three(work: UnitOfWork) -> dict[str, Any]:
    """A passage that both legs find, one that only the vector leg finds, one without a vector."""
    passages = [
        Passage("Kettle", "boil water", axis(1, lean=0.6, length=384)),
        Passage("Other", "nothing of the sort", axis(2, lean=0.8, length=384)),
        Passage("Kettle alone", "no vector"),
    ]
    keys = SHELF.fill(work, passages)
    return dict(zip(("both", "near", "worded"), keys, strict=True))


def find_hits(work: UnitOfWork, asked: Ask) -> dict[Any, Hit]:
    """Return key → hit."""
    return {hit.id: hit for hit in work.searches.answer(KNOWLEDGE, asked).hits}


@pytest.mark.parametrize("fusion", ["calibrated", "weighted"])
def test_a_score_is_the_sum_of_weight_times_score(
    work: UnitOfWork, three: dict[str, Any], fusion: str
) -> None:
    """Cosine 0.6 at weight 0.7 adds 0.42; the words leg adds 0.3 times its own score."""
    asked = ask("kettle", near=0, fusion=fusion, legs={"vector": 0.7, "text": 0.3})

    hits = find_hits(work, asked)

    both = hits[three["both"]]
    assert both.ranks.keys() == {"vector", "text"}
    assert both.contributions["vector"] == pytest.approx(0.42, abs=1e-3)
    assert both.contributions["text"] == pytest.approx(0.3 * both.scores["text"])
    for hit in hits.values():
        assert hit.score == pytest.approx(sum(hit.contributions.values()))
        assert hit.contributions == {
            leg: pytest.approx(asked.legs[leg] * score) for leg, score in hit.scores.items()
        }


def test_weighted_gives_nothing_for_a_leg_that_did_not_find(
    work: UnitOfWork, three: dict[str, Any]
) -> None:
    """A passage that a leg did not find has neither place nor score there."""
    hits = find_hits(work, ask("kettle", near=0, fusion="weighted"))

    assert hits[three["near"]].scores.keys() == {"vector"}
    assert hits[three["worded"]].scores.keys() == {"text"}


def plant_crowd(work: UnitOfWork) -> tuple[Any, Any]:
    """Store one passage too far and one too poor in words for the hundred of the other leg."""
    crowd = [Passage(f"Near {n}", "of no use", axis(1, lean=0.9, length=384)) for n in range(110)]
    crowd += [Passage(f"Words {n}", "two kettle kettle") for n in range(110)]
    SHELF.fill(work, crowd)
    far, poor = SHELF.fill(
        work,
        [
            Passage("Kettle", "kettle", axis(2, lean=0.5, length=384)),
            Passage("Poor", "one kettle among other things", axis(3, lean=0.95, length=384)),
        ],
    )
    return far, poor


def test_calibrated_has_every_leg_score_what_any_leg_found(work: UnitOfWork) -> None:
    """The leg that was crowded out gives no place and its score all the same."""
    far, poor = plant_crowd(work)

    hits = find_hits(work, ask("kettle", near=0, limit=100))

    assert hits[far].ranks == {"text": 1}
    assert hits[far].scores["vector"] == pytest.approx(0.5, abs=1e-3)
    assert hits[far].contributions["vector"] == pytest.approx(0.3 * 0.5, abs=1e-3)
    assert hits[poor].ranks == {"vector": 1}
    assert hits[poor].scores["text"] > 0
    assert hits[poor].contributions["text"] == pytest.approx(0.7 * hits[poor].scores["text"])
    for key in (far, poor):
        assert hits[key].score == pytest.approx(sum(hits[key].contributions.values()))


@pytest.mark.parametrize("fusion", ["weighted", "rrf"])
def test_the_other_fusions_leave_out_what_was_crowded_out(work: UnitOfWork, fusion: str) -> None:
    """They count places, or scores of what was found, and no more."""
    far, poor = plant_crowd(work)

    by_words = find_hits(work, ask("kettle", near=0, fusion=fusion, legs={"vector": 1, "text": 9}))
    by_vector = find_hits(work, ask("kettle", near=0, fusion=fusion, legs={"vector": 9, "text": 1}))

    assert (by_words[far].ranks, by_words[far].scores.keys()) == ({"text": 1}, {"text"})
    assert (by_vector[poor].ranks, by_vector[poor].scores.keys()) == ({"vector": 1}, {"vector"})


def test_what_another_leg_completes_is_no_candidate_of_its(work: UnitOfWork) -> None:
    """A leg reports what it found itself."""
    plant_crowd(work)

    answer = work.searches.answer(KNOWLEDGE, ask("kettle", near=0))

    assert answer.candidates == {"vector": FIRST_DEPTH, "text": FIRST_DEPTH}


def test_three_legs_complete_each_other(work: UnitOfWork, three: dict[str, Any]) -> None:
    """Each scores what either of the others found, once."""
    asked = ask("kettle", near=0, legs={"vector": 0.5, "text": 0.25, "fuzzy": 0.25})

    hits = find_hits(work, asked)

    assert hits.keys() == set(three.values())
    assert hits[three["both"]].scores.keys() == {"vector", "text", "fuzzy"}
    for hit in hits.values():
        assert hit.score == pytest.approx(
            sum(asked.legs[leg] * score for leg, score in hit.scores.items())
        )


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


@pytest.mark.parametrize("constant", [0, 10, 10_000])
def test_the_constant_of_rrf_is_an_option(
    work: UnitOfWork, three: dict[str, Any], constant: int
) -> None:
    """A passage adds the shares of its places on both legs."""
    asked = ask("kettle", near=0, fusion="rrf", rrf_k=constant, legs={"vector": 1.0, "text": 1.0})

    hits = find_hits(work, asked)

    for hit in hits.values():
        expected = sum(1 / (constant + place) for place in hit.ranks.values())
        assert hit.score == pytest.approx(expected)
    assert hits[three["near"]].score == pytest.approx(1 / (constant + 1))


@pytest.mark.parametrize("fusion", ["calibrated", "weighted", "rrf"])
def test_what_is_less_similar_than_asked_for_gets_nothing_from_the_vector_leg(
    work: UnitOfWork, three: dict[str, Any], fusion: str
) -> None:
    """Cosine 0.6 is below 0.7 and 0.8 is above; the words leg still finds the former."""
    asked = ask("kettle", near=0, fusion=fusion, min_similarity=0.7)

    answer = work.searches.answer(KNOWLEDGE, asked)

    hits = {hit.id: hit for hit in answer.hits}
    assert hits.keys() == set(three.values())
    assert hits[three["both"]].scores.keys() == {"text"}
    assert "vector" in hits[three["near"]].ranks
    assert (answer.candidates["vector"], answer.dropped) == (1, 1)


def test_a_vector_search_has_no_hit_that_is_less_similar_than_asked_for(
    work: UnitOfWork, three: dict[str, Any]
) -> None:
    """However few are left; without a bound all are there."""
    asked = ask("kettle", near=0, legs={"vector": 1.0})

    bounded = work.searches.answer(KNOWLEDGE, replace(asked, min_similarity=0.7))
    none = work.searches.answer(KNOWLEDGE, replace(asked, min_similarity=1.0))

    assert [hit.id for hit in bounded.hits] == [three["near"]]
    assert (none.hits, none.dropped) == ((), 2)
    assert work.searches.answer(KNOWLEDGE, asked).dropped == 0


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
