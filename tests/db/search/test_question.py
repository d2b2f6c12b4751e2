"""Questions keep the meaning that web searches taught everybody."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgcorpus.db.errors import EmptyQuestion
from pgcorpus.db.search.corpora import KNOWLEDGE
from pgcorpus.db.search.question import MAX_CHARACTERS, MAX_DEMANDS, Question, Term
from pgcorpus.db.uow import UnitOfWork
from tests.db.search.shelves import SHELVES, Passage
from tests.db.search.test_contract import ask


def titles(work: UnitOfWork, question: str) -> set[str]:
    """Return the titles that the text leg finds."""
    hits = work.searches.answer(KNOWLEDGE, ask(question, legs={"text": 1.0})).hits
    return {hit.title for hit in hits}


@pytest.fixture(autouse=True)
def _passages(work: UnitOfWork) -> None:
    SHELVES[0].fill(
        work,
        [
            Passage("Phrase", "the value equation in full"),
            Passage("Apart", "an equation of some value"),
            Passage("Cheap", "cheap value"),
        ],
    )


def test_a_plain_word_may_be_missing(work: UnitOfWork) -> None:
    """Any word finds; words add to the score."""
    assert titles(work, "value equation") == {"Phrase", "Apart", "Cheap"}


def test_a_phrase_must_stand_as_it_is(work: UnitOfWork) -> None:
    """Quoted words stand next to each other, in this order."""
    assert titles(work, '"value equation"') == {"Phrase"}


def test_an_excluded_word_is_nowhere(work: UnitOfWork) -> None:
    """A minus keeps passages out, whatever else they hold."""
    assert titles(work, "value -cheap") == {"Phrase", "Apart"}
    assert titles(work, 'value -"value equation"') == {"Apart", "Cheap"}


def test_or_joins_alternatives(work: UnitOfWork) -> None:
    """Either side is enough."""
    assert titles(work, '"value equation" or cheap') == {"Phrase", "Cheap"}


def test_an_excluded_word_is_nowhere_in_the_vector_leg_either(work: UnitOfWork) -> None:
    """Exclusions hold for the whole search, not for one leg."""
    answer = work.searches.answer(KNOWLEDGE, ask("value -cheap", legs={"fuzzy": 1.0}))

    assert "Cheap" not in {hit.title for hit in answer.hits}


def test_an_excluded_stop_word_excludes_nothing(work: UnitOfWork) -> None:
    """A minus before "the" is empty to PostgreSQL, and must not empty the page."""
    assert titles(work, "value -the") == {"Phrase", "Apart", "Cheap"}


def test_the_first_demands_of_many_bind(work: UnitOfWork) -> None:
    """Whatever stands behind them, on one side of an "or" or on many."""
    many = range(5 * MAX_DEMANDS)

    assert titles(work, "value -cheap " + " ".join(f"-a{n}" for n in many)) == {"Phrase", "Apart"}
    assert titles(work, '"value equation" or ' + " or ".join(f'"a{n}"' for n in many)) == {"Phrase"}
    assert titles(work, '"cheap value" ' + " ".join(f'-"a {n}"' for n in many)) == {"Cheap"}


def test_words_with_signs_of_their_own_are_only_words(work: UnitOfWork) -> None:
    """Quotes, backslashes and operators inside words reach no parser."""
    for question in ("it's", "a\\b value", "value:*", "value & !cheap", "http://x.y/?a=1&b='2'"):
        assert titles(work, question) <= {"Phrase", "Apart", "Cheap"}


def test_a_question_is_taken_apart() -> None:
    """The grammar, seen from inside."""
    parsed = Question.parse('how "value equation" -cheap OR follow-up')

    assert parsed.alternatives == (
        (
            Term("how"),
            Term("value equation", phrase=True),
            Term("cheap", excluded=True),
        ),
        (Term("follow-up"),),
    )
    assert parsed.words == "how value equation follow-up"


@pytest.mark.parametrize("question", ["", "  ", '""', "-", "?!", "\0", "or", "-price"])
def test_a_question_without_a_word_is_refused(question: str) -> None:
    """There is nothing to search for, and the error says so."""
    with pytest.raises(EmptyQuestion, match="at least one"):
        Question.parse(question)


def test_what_no_text_can_hold_is_left_out_and_said() -> None:
    """NUL characters and halves of surrogate pairs cannot reach PostgreSQL."""
    parsed = Question.parse("price\0 \ud800 anchor")

    assert "\0" not in parsed.text
    assert parsed.text.encode()
    assert parsed.note is not None


def test_a_book_is_cut_and_said() -> None:
    """A question of a million characters is read as far as is sensible."""
    parsed = Question.parse("word " * 300_000)

    assert len(parsed.text) <= MAX_CHARACTERS
    assert "first 100,000 characters" in (parsed.note or "")


@pytest.mark.parametrize(
    ("term", "joined"), [("-a{}", " "), ('"a{}"', " "), ('-"a {}"', " "), ('"a{}"', " or ")]
)
def test_only_so_many_demands_bind_and_it_is_said(term: str, joined: str) -> None:
    """Up to 64 all do, and nothing is said; of ten thousand 64 do."""
    few, many = (
        Question.parse("price " + joined.join(term.format(n) for n in range(count)))
        for count in (MAX_DEMANDS, 10_000)
    )

    assert MAX_DEMANDS == 64
    assert few.note is None
    assert f"first {MAX_DEMANDS}" in (many.note or "")
    for parsed in (few, many):
        binding = [term for terms in parsed.alternatives for term in terms if term.binding]
        assert len(binding) == MAX_DEMANDS
        assert len(parsed.alternatives) <= MAX_DEMANDS


@given(st.text())
def test_any_text_is_a_question_or_is_refused(text: str) -> None:
    """Parsing never fails in another way, and what remains can be encoded."""
    try:
        parsed = Question.parse(text)
    except EmptyQuestion:
        assert "-" in text or "or" in text.lower() or not any(c.isalnum() for c in text)
    else:
        assert parsed.text.encode()
