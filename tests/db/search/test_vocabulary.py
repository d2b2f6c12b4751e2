"""Words that were read before mean what the database says of the whole question."""

from __future__ import annotations

from collections import Counter
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from pgcorpus.db.scope import Scope
from pgcorpus.db.search import vocabulary as module
from pgcorpus.db.search.driver import Sent
from pgcorpus.db.search.pipeline import Rows
from pgcorpus.db.search.vocabulary import KEPT_SECONDS, Vocabulary, split_words
from pgcorpus.db.uow import UnitOfWork

LANGUAGES = ("english", "german", "simple")

PIECES = (
    *("the", "Running", "runs", "ran", "x-ray", "e.g.", "v2", "C++", "node.js", "a/b", "3.5e8"),
    *(
        "user@host.de",
        "https://example.org/a?b=c",
        "don't",
        "naïve",
        "Straße",
        "Ärzte",
        "Ⅷ",
        "東京",
    ),
    *(
        "İstanbul",
        "한국어",
        "e\u0301t\u00e9",
        "-",
        "--",
        "&",
        "<b>",
        "</b>",
        "&amp;",
        "42",
        "what?",
    ),
    *("why!", "so:", "a,", "b;", "end.", "...", "/usr/bin", "(see)", '"quoted"', "word.word"),
    *("what?", "Ⅷ", "ﬁne", "ᾳ", "don\u2019t"),
)


def read_whole(work: UnitOfWork, words: str) -> dict[str, dict[str, int]]:
    """Let the database read the question as it stands."""
    read = text(
        "SELECT lexeme, cardinality(positions) FROM unnest(to_tsvector(CAST(:of AS regconfig), :w))"
    )
    each = {
        language: dict(
            tuple(row) for row in work.session.execute(read, {"of": language, "w": words})
        )
        for language in LANGUAGES
    }
    return {language: found for language, found in each.items() if found}


def asking(work: UnitOfWork, asked: list[list[str]]) -> Any:
    """Send a statement within the unit of work, and note the parts that it reads."""

    def ask(statement: Sent) -> Rows:
        asked.append((statement[1] or {})["parts"])
        (rows,) = work.searches.exchange([statement])
        return rows

    return ask


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(st.characters(codec="utf-8"), max_size=6)))
def test_parts_mean_what_the_question_means(work: UnitOfWork, pieces: list[str]) -> None:
    """Whatever is asked, in each language, the first time and the second."""
    words = " ".join(pieces).replace("\0", " ")
    vocabulary, asked = Vocabulary(), list[list[str]]()

    first = vocabulary.read(words, LANGUAGES, None, asking(work, asked))
    second = vocabulary.read(words, LANGUAGES, None, asking(work, asked))

    assert first == second == read_whole(work, words)
    assert len(asked) <= 1


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("how do cats run?", ["how", "do", "cats", "run"]),
        ("Über Größe, bitte!", ["Über", "Größe", "bitte"]),
        ("an x-ray of it", ["an x-ray of it"]),
        ("node.js", ["node.js"]),
        ("v2 of it", ["v2 of it"]),
        ("end. Of", ["end", "Of"]),
        ("what?!", ["what?!"]),
        ("", []),
    ],
)
def test_only_plain_words_are_read_one_by_one(words: str, parts: list[str]) -> None:
    """Words that the parser may take apart, or join, are read as a whole."""
    assert split_words(words) == parts


def test_the_database_is_asked_for_new_words_alone(work: UnitOfWork) -> None:
    """Once for each word and language."""
    vocabulary, asked = Vocabulary(), list[list[str]]()
    for words, languages in (
        ("cats run", ["english"]),
        ("cats and dogs run, cats", ["english"]),
        ("dogs", ["english", "german"]),
        ("dogs run", ["german"]),
        ("cats", ["english"]),
    ):
        read = vocabulary.read(words, languages, None, asking(work, asked))

    assert asked == [["cats", "run"], ["and", "dogs"], ["dogs"], ["run"]]
    assert read == {"english": Counter({"cat": 1})}


def test_a_scope_does_not_tell_what_others_asked(work: UnitOfWork) -> None:
    """A word that another scope asked is as new as any."""
    vocabulary, asked = Vocabulary(), list[list[str]]()
    scopes = [None, Scope.tenant(UUID(int=1)), Scope.tenant(UUID(int=2))]
    for _ in range(2):
        for scope in scopes:
            vocabulary.read("merger", ["english"], scope, asking(work, asked))

    assert asked == [["merger"]] * 3


def test_words_are_read_again_after_a_while(
    work: UnitOfWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dictionary may have been changed."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    vocabulary, asked = Vocabulary(), list[list[str]]()
    for now[0] in (0, KEPT_SECONDS / 2, KEPT_SECONDS + 1, KEPT_SECONDS + 2):
        vocabulary.read("cats", ["english"], None, asking(work, asked))

    assert len(asked) == 2


def test_no_more_words_are_kept_than_fit(work: UnitOfWork, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question that fills the vocabulary is answered; the next begins a new one."""
    monkeypatch.setattr(module, "MOST_WORDS", 2)
    vocabulary, asked = Vocabulary(), list[list[str]]()
    read = [
        vocabulary.read(words, ["simple"], None, asking(work, asked))
        for words in ("a b c", "a", "a")
    ]

    assert read == [{"simple": dict.fromkeys("abc", 1)}, *[{"simple": {"a": 1}}] * 2]
    assert asked == [["a", "b", "c"], ["a"]]
