"""Weights of a question's words, and the passages that are looked up for them."""

from __future__ import annotations

from math import log

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.orm import Session

from pgcorpus.db.search.words import (
    BUDGET,
    COMPOUND_WEIGHT,
    ENOUGH_PAIRED,
    FETCH,
    MAX_WORDS,
    SIZES,
    Lexicon,
    look_up,
    quote,
)
from tests.db.search.crowd import ROWS, WORD, Crowd

lexemes = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
some_words = st.dictionaries(lexemes, st.integers(1, 9), min_size=1, max_size=100)
lexicons = st.builds(
    Lexicon,
    version=st.just("1"),
    frequencies=st.dictionaries(lexemes, st.floats(1e-6, 1.0), max_size=100),
)


def lexicon(**frequencies: float) -> Lexicon:
    """Return words as ANALYZE would have found them."""
    return Lexicon(version="1", frequencies=frequencies)


def weights(asked: dict[str, int], known: Lexicon, passages: float = 1000) -> dict[str, float]:
    """Return the weight of each word of a question."""
    found = look_up({"english": asked}, known, passages)
    assert found is not None
    return {word.lexeme: word.weight for word in found.words}


def test_a_word_weighs_its_idf() -> None:
    """Held by 100 of 1,000 passages: ln(1 + (1000 - 100 + 0.5) / (100 + 0.5)), as in BM25."""
    assert weights({"kettle": 1}, lexicon(kettle=0.1)) == {
        "kettle": pytest.approx(log(1 + 900.5 / 100.5))
    }


def test_a_repeated_word_weighs_as_often_as_it_is_asked() -> None:
    """Three times the idf; the others' weights do not change."""
    known = lexicon(kettle=0.1, teapot=0.1)

    once = weights({"kettle": 1, "teapot": 1}, known)
    thrice = weights({"kettle": 3, "teapot": 1}, known)

    assert thrice == {"kettle": pytest.approx(3 * once["kettle"]), "teapot": once["teapot"]}


def test_a_compound_weighs_less_than_its_idf() -> None:
    """Its parts are words of the question, too, and say much of the same."""
    known = lexicon(**{"x-ray": 0.1, "x": 0.1, "ray": 0.1})

    weighed = weights({"x-ray": 2, "x": 2, "ray": 2}, known)

    assert weighed["x"] == weighed["ray"]
    assert weighed["x-ray"] == pytest.approx(COMPOUND_WEIGHT * weighed["ray"])


@pytest.mark.parametrize("lexeme", ["ray", "-14", "x-ray.org", "example.org/x-ray", "a_b"])
def test_what_has_no_parts_in_the_question_is_no_compound(lexeme: str) -> None:
    """PostgreSQL keeps numbers, names of hosts and paths whole."""
    (weight,) = weights({lexeme: 1}, lexicon(**{lexeme: 0.1})).values()

    assert [weight] == [*weights({"kettle": 1}, lexicon(kettle=0.1)).values()]


def test_a_word_that_is_not_listed_is_rarer_than_any_that_is() -> None:
    """ANALYZE drops only words rarer than those it keeps."""
    weighed = weights({"zeugma": 1, "kettle": 1}, lexicon(kettle=0.01, the=0.9))

    assert weighed["zeugma"] > weighed["kettle"]


def test_without_statistics_words_weigh_as_often_as_they_are_asked() -> None:
    """Nobody knows which are rare; all passages that hold one are looked up."""
    found = look_up({"english": {"kettle": 2, "the": 1}}, Lexicon(), 10_000_000)

    assert found is not None
    assert {word.lexeme: word.weight for word in found.words} == {"kettle": 2, "the": 1}
    assert found.complete


def test_a_question_without_words_looks_nothing_up() -> None:
    """All were stop words."""
    assert look_up({}, lexicon(kettle=0.1), 1000) is None
    assert look_up({"english": {}}, lexicon(kettle=0.1), 1000) is None


def test_all_that_hold_a_word_are_looked_up_when_they_are_few() -> None:
    """Then the search is exact."""
    found = look_up({"english": {"kettle": 1, "tea": 1}}, lexicon(kettle=0.1, tea=0.5), 1000)

    assert found is not None
    assert found.complete
    assert found.candidates == "'kettle' | 'tea'"


def test_of_frequent_words_the_rarest_is_looked_up_and_the_others_together() -> None:
    """A passage with one frequent word alone is hardly ever among the best."""
    known = lexicon(rare=0.001, often=0.04, usual=0.05, everywhere=0.9)

    found = look_up({"english": dict.fromkeys(known.frequencies, 1)}, known, 100_000)

    assert found is not None
    assert not found.complete
    assert found.candidates == "'rare' | 'often' & ('usual')"
    assert len(found.words) == 4


def test_where_the_rarest_word_is_frequent_pairs_do_without_it() -> None:
    """A passage that holds but one of them cannot be among the best of so many."""
    known = lexicon(rarest=0.03, often=0.04)
    asked = {"english": dict.fromkeys(known.frequencies, 1)}

    many = look_up(asked, known, 500_000)
    few_kept = look_up(asked, known, 500_000, share=0.2)
    fewer = look_up(asked, known, 150_000)

    assert many is not None
    assert few_kept is not None
    assert fewer is not None
    assert (many.candidates, many.complete) == ("'rarest' & ('often')", False)
    assert (few_kept.candidates, fewer.candidates) == ("'rarest'", "'rarest'")


def test_a_pair_is_looked_up_before_a_word_that_is_in_more_passages() -> None:
    """Even where the pair is beyond the budget: the word alone is further beyond."""
    known = lexicon(often=0.2, usual=0.3)

    found = look_up({"english": dict.fromkeys(known.frequencies, 1)}, known, 500_000)

    assert found is not None
    assert found.candidates == "'often' & ('usual')"


def test_no_passage_is_looked_up_by_words_of_two_languages() -> None:
    """It is read in one: together they are in none."""
    known = lexicon(kubernet=0.03, kubernetes=0.03)

    found = look_up({"english": {"kubernet": 1}, "german": {"kubernetes": 1}}, known, 500_000)

    assert found is not None
    assert found.candidates == "'kubernet'"


def test_who_wants_more_candidates_is_not_given_pairs_alone() -> None:
    """A page far down would run out of them."""
    known = lexicon(rarest=0.03, often=0.04)
    asked = {"english": dict.fromkeys(known.frequencies, 1)}

    found = look_up(asked, known, 500_000, depth=1000)

    assert found is not None
    assert found.candidates == "'rarest'"


def test_filters_that_keep_little_leave_more_of_the_budget() -> None:
    """Passages that they refuse are not scored."""
    known = lexicon(often=0.2, everywhere=0.9)
    asked = {"english": {"often": 1, "everywhere": 1}}

    all_kept = look_up(asked, known, 10_000)
    few_kept = look_up(asked, known, 10_000, share=0.01)

    assert all_kept is not None
    assert few_kept is not None
    assert (all_kept.complete, few_kept.complete) == (False, True)


def test_a_word_of_two_languages_counts_once() -> None:
    """A passage is in one language: its share is of the question as that language reads it."""
    known = lexicon(hand=0.1, shoe=0.1, schuh=0.1)

    found = look_up(
        {"english": {"hand": 1, "shoe": 1}, "german": {"hand": 1, "schuh": 1}}, known, 1000
    )

    assert found is not None
    assert len(found.words) == 3
    assert found.total == pytest.approx(2 * found.words[0].weight)


@given(asked=some_words, known=lexicons, passages=st.floats(1, 1e8), share=st.floats(1e-6, 1))
def test_any_question_is_looked_up_by_its_rarest_word_at_least(
    asked: dict[str, int], known: Lexicon, passages: float, share: float
) -> None:
    """Whatever the words and however many the passages, there is something to look up and score."""
    found = look_up({"simple": asked}, known, passages, share=share)

    assert found is not None
    rarest = min(asked, key=lambda lexeme: (known.frequency(lexeme) * passages, lexeme))
    assert found.words[0].lexeme == rarest
    assert found.candidates.startswith(quote(rarest))
    assert len(found.words) == min(len(asked), MAX_WORDS)
    assert found.total > 0
    assert all(word.weight > 0 for word in found.words)


@given(asked=some_words, known=lexicons)
def test_a_question_is_filled_up_to_a_size_that_has_a_statement(
    asked: dict[str, int], known: Lexicon
) -> None:
    """Each place has a word and a weight; the spare ones count nothing, the others sum to 1."""
    found = look_up({"simple": asked}, known, 1000)

    assert found is not None
    values = found.values()
    assert found.size in SIZES
    assert found.size >= len(found.words)
    queries = [values[f"word_{n}"] for n in range(found.size)]
    shares = [values[f"weight_{n}"] for n in range(found.size)]
    assert queries == [quote(word.lexeme) for word in found.words] + [""] * queries.count("")
    assert shares[len(found.words) :] == [0.0] * (found.size - len(found.words))
    assert sum(shares) == pytest.approx(1.0)
    assert sum(map(bool, queries)) == len(found.words)


@pytest.mark.parametrize(
    "numbers",
    [(0, 1, 2), (0, 5, 10, 20, 40), tuple(range(3, 40)), (0, 3999), tuple(range(0, 3000, 50))],
    ids=["all frequent", "mixed", "many", "one rare", "sixty"],
)
def test_what_is_looked_up_stays_within_the_budget(crowd: Crowd, numbers: tuple[int, ...]) -> None:
    """Counted, not estimated: half for the rarest words, half for pairs, or all for pairs."""
    frequencies = dict(zip(WORD, (crowd.holding / ROWS).tolist(), strict=True))
    known = Lexicon(version="1", frequencies=frequencies)
    found = look_up({"simple": {WORD[n]: 1 for n in numbers}}, known, ROWS)
    assert found is not None

    with crowd.database.engine.connect() as connection:
        looked_up = connection.scalar(
            text(
                "SELECT count(*) FROM framework_documents"
                " WHERE search_vector @@ CAST(:candidates AS tsquery)"
            ),
            {"candidates": found.candidates},
        )

    half = BUDGET / (FETCH + len(numbers)) / 2
    rarest = min(crowd.holding[n] for n in numbers)
    assert min(rarest, ENOUGH_PAIRED * 100) <= looked_up <= max(half, rarest) + half


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lexeme=lexemes | st.text("'\\ &|!:*<>()\"%", min_size=1, max_size=20))
def test_any_lexeme_is_quoted_as_itself(session: Session, lexeme: str) -> None:
    """Quotes, backslashes and operators find the word that is written with them, and no other."""
    read = session.execute(
        text(
            "SELECT numnode(query), array_to_tsvector(ARRAY[:lexeme]) @@ query,"
            " array_to_tsvector(ARRAY['another']) @@ query"
            " FROM (SELECT CAST(:query AS tsquery) AS query) AS quoted"
        ),
        {"lexeme": lexeme, "query": quote(lexeme)},
    ).one()

    assert tuple(read) == (1, True, lexeme == "another")
