"""The choice of the fuzzy leg: which words are compared, and in how many passages."""

from __future__ import annotations

import re

import pytest

from pgcorpus.db.search.likeness import (
    FALLBACK_WEIGHT,
    LEAST,
    MAX_CHARACTERS,
    THRESHOLD,
    Look,
    choose_looks,
    count_alike,
    split_halves,
    stop_early,
)
from pgcorpus.db.search.question import Question
from pgcorpus.db.search.words import Lexicon, look_up

HELD = Lexicon(frequencies={"kettle": 0.1, "tea": 0.2, "back": 0.1, "end": 0.1})


def looks(asked: str, *, all_compared: bool = False, only_first: bool = False) -> tuple[Look, ...]:
    """Choose the looks of a question, with the words of ``HELD`` held."""
    question = Question.parse(asked)
    lexemes = dict.fromkeys(re.findall(r"\S+", question.words.lower()), 1)
    found = None if question.is_unspaced else look_up({"simple": lexemes}, HELD, 1000)
    return choose_looks(
        question,
        found,
        [lexemes, {"kettl": 1}],
        HELD.frequencies.__contains__,
        all_compared=all_compared,
        only_first=only_first,
    )


def test_words_that_passages_hold_are_not_compared() -> None:
    """The first look is for nothing; only to fill a page is the rarest word looked for."""
    first, fill = looks("kettle tea")

    assert (first.word, first.weight) == ("", 0.0)
    assert (fill.word, fill.halves, fill.threshold) == ("kettle", (), LEAST)
    assert fill.weight == FALLBACK_WEIGHT


def test_the_word_that_no_passage_holds_is_compared() -> None:
    """It may be a typo; its share is that of its information."""
    first, *others = looks("kettel tea")

    assert (first.word, first.compared, first.threshold) == ("kettel", "kettel", THRESHOLD)
    assert 0.5 < first.weight < 1
    assert [each.threshold for each in others] == [LEAST, LEAST]
    assert [each.halves for each in others] == [first.halves, ()]


def test_a_question_of_typos_is_compared_as_it_is() -> None:
    """There is nothing else to go by."""
    first, *_ = looks("Kettel Taea")

    assert (first.compared, first.weight) == ("Kettel Taea", 1.0)


def test_a_compound_of_words_that_passages_hold_is_no_typo() -> None:
    """Its parts are words of the question, too."""
    assert looks("back-end tea")[0].word == ""


def test_all_passages_are_compared_at_once() -> None:
    """No second look finds more."""
    assert [each.threshold for each in looks("kettel", all_compared=True)] == [LEAST]


def test_of_too_many_passages_only_the_most_alike_are_looked_for() -> None:
    """The page says so."""
    found = looks("kettel", only_first=True)

    assert [each.threshold for each in found] == [THRESHOLD]
    assert stop_early(found)
    assert not stop_early(looks("kettel"))


def translate(pattern: str) -> str:
    """Write a pattern of PostgreSQL in Python's words."""
    return pattern.replace(r"\m", r"\b").replace(r"\M", r"\b")


@pytest.mark.parametrize("typo", ["subscribxrs", "subscibers", "xubscribers", "subscriberss"])
def test_a_typo_leaves_one_half_whole(typo: str) -> None:
    """One letter that is missing, too many or another is in one of the halves."""
    assert any(half in "all subscribers pay" for half in split_halves(typo))


@pytest.mark.parametrize("word", ["a|b", "x" * 1000, "(", "a.b*c", "\\", "é"])
def test_a_word_is_no_regular_expression(word: str) -> None:
    """A sign stands for itself, and a long word is cut."""
    (look, *_) = looks(f"{word}q")

    values = look.values()
    assert re.search(translate(values["fuzzy_pattern"]), f"before {word}q after")
    assert len(values["fuzzy_word"]) <= MAX_CHARACTERS
    assert len(values["fuzzy_pattern"]) <= 4 * MAX_CHARACTERS


def test_long_passages_are_compared_less_often() -> None:
    """As many as have a number of words together, and as many as a leg has candidates."""
    assert count_alike(30, 60.0) == 128
    assert count_alike(30, 15.0) == 512
    assert count_alike(30, 1000.0) == 30
    assert count_alike(100, 1000.0) == 100
    assert count_alike(30, 0.0) == 2048


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("vairations", {"variations", "vibrations"}),
        ("variatoins", {"variations", "variational"}),
        ("asborpt", {"absorption", "absorptive"}),  # a stem
        ("c++x", {"c++xy"}),
        ("deisgn", set()),
    ],
)
def test_a_typo_leaves_the_beginning_or_the_end_of_a_word(typed: str, found: set[str]) -> None:
    """The pattern finds words that may be meant, and none that only ends alike."""
    words = {"variations", "vibrations", "variational", "stations", "solutions", "absorption"}
    words |= {"absorptive", "adaptive", "assumptions", "option", "c++xy", "excess", "void"}
    look = Look(typed, split_halves(typed), THRESHOLD, typed, 1.0)
    pattern = translate(look.values()["fuzzy_pattern"])

    assert {word for word in words if re.search(pattern, f"the {word} of it")} == found
