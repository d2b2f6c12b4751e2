"""Passages are read in their own language, and questions in those of the passages."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import text

from pgcorpus.db.search.ask import Ask
from pgcorpus.db.search.corpora import KNOWLEDGE
from pgcorpus.db.search.question import Question
from pgcorpus.db.uow import UnitOfWork
from tests.db.search.shelves import SHELVES, Passage

HOUSES = Passage("Häuser", "Die Häuser am Fluss wurden verkauft.", language="german")
KETTLES = Passage("Kettles", "Boiling kettles on the stoves.")
LLAVES = Passage("Llaves", "Las llaves de las ventanas están cerradas.", language="spanish")

OF_ONE_PASSAGE = (
    "arabic", "danish", "dutch", "english", "finnish", "french", "german", "hungarian", "italian",
)  # fmt: skip
"""More than are read, and all before Spanish in the alphabet."""

MANY = (
    """
    INSERT INTO framework_documents (chunk_id, source_file, section, title, content, language)
    SELECT 'many_' || n, 'f.md', 'Keys', :title, :content, CAST(:language AS regconfig)
    FROM generate_series(1, :count) AS n
    """,
    """
    INSERT INTO framework_metadata
        (document_id, character_count, word_count, chunk_type, framework_name, validation_passed)
    SELECT id, length(content), 7, 'supporting', 'Keys', true
    FROM framework_documents WHERE section = 'Keys'
    """,
)

analysed = pytest.mark.parametrize("analysed", [True, False], ids=["analysed", "not analysed"])


def titles(
    work: UnitOfWork, question: str, language: str | None = None, **changes: object
) -> set[str]:
    """Return the titles that the text leg finds."""
    asked = Ask(question=Question.parse(question), legs={"text": 1.0}, language=language, **changes)
    return {hit.title for hit in work.searches.answer(KNOWLEDGE, asked).hits}


def fill(work: UnitOfWork, *passages: Passage, analysed: bool) -> None:
    """Put passages in, with or without what ANALYZE knows of them."""
    SHELVES[0].fill(work, passages)
    if analysed:
        work.session.execute(text("ANALYZE framework_documents"))


@analysed
def test_a_question_is_read_in_the_language_of_the_passages(
    work: UnitOfWork, analysed: bool
) -> None:
    """A German form finds another German form, and nobody named a language."""
    fill(work, HOUSES, analysed=analysed)

    assert titles(work, "Häusern") == {"Häuser"}
    assert titles(work, "verkaufter Häuser") == {"Häuser"}


@analysed
def test_a_corpus_in_several_languages_is_searched_in_all_of_them(
    work: UnitOfWork, analysed: bool
) -> None:
    """Each passage is found by the forms of its own language."""
    fill(work, HOUSES, KETTLES, LLAVES, analysed=analysed)

    assert titles(work, "Häusern") == {"Häuser"}
    assert titles(work, "boils") == {"Kettles"}
    assert titles(work, "llave cerrada") == {"Llaves"}
    assert titles(work, "Häusern kettle ventana") == {"Häuser", "Kettles", "Llaves"}


@analysed
def test_a_language_of_a_single_passage_is_read_too(work: UnitOfWork, analysed: bool) -> None:
    """ANALYZE lists as common only what it saw twice."""
    others = [replace(KETTLES, title=f"Kettles {n}") for n in range(3)]
    fill(work, HOUSES, *others, analysed=analysed)

    assert titles(work, "Häusern") == {"Häuser"}


@analysed
def test_a_named_language_reads_the_question_alone(work: UnitOfWork, analysed: bool) -> None:
    """It overrules those of the passages."""
    fill(work, HOUSES, KETTLES, analysed=analysed)

    assert titles(work, "Häuser", "german") == {"Häuser"}
    assert titles(work, "Häuser", "english") == set()
    assert titles(work, "kettles", "english") == {"Kettles"}
    assert titles(work, "kettles", "simple") == set()


@analysed
def test_a_stop_word_of_one_language_is_a_word_of_another(work: UnitOfWork, analysed: bool) -> None:
    """The English "die" is the German article: it finds the one and not the other."""
    fill(
        work,
        HOUSES,
        Passage("Habits", "Habits die slowly, customers stay."),
        analysed=analysed,
    )

    assert titles(work, "die") == {"Habits"}


@analysed
def test_a_phrase_may_stand_in_any_of_the_languages(work: UnitOfWork, analysed: bool) -> None:
    """And an exclusion holds in all of them."""
    fill(work, HOUSES, KETTLES, LLAVES, analysed=analysed)

    assert titles(work, '"häuser am fluss"') == {"Häuser"}
    assert titles(work, '"boiling kettle"') == {"Kettles"}
    assert titles(work, "häusern kettle llave -häuser") == {"Kettles", "Llaves"}


@analysed
def test_of_many_languages_the_most_frequent_are_read(work: UnitOfWork, analysed: bool) -> None:
    """Nine of one passage each do not hide the language of five hundred."""
    alone = [Passage(f"Only {name}", "nothing to see", language=name) for name in OF_ONE_PASSAGE]
    SHELVES[0].fill(work, alone)
    work.session.execute(
        text(MANY[0]),
        {
            "title": LLAVES.title,
            "content": LLAVES.content,
            "language": LLAVES.language,
            "count": 500,
        },
    )
    work.session.execute(text(MANY[1]))
    fill(work, analysed=analysed)

    assert titles(work, "cerrado") == {"Llaves"}  # "cerr" in Spanish alone, of "cerradas" too


def test_a_language_that_comes_after_analyze_is_read_after_the_next(work: UnitOfWork) -> None:
    """The statistics say which languages there are; an import renews them."""
    fill(work, KETTLES, analysed=True)
    assert titles(work, "kettle") == {"Kettles"}

    fill(work, HOUSES, analysed=True)

    assert titles(work, "Häusern") == {"Häuser"}


def test_an_empty_corpus_has_no_language_and_no_hits(work: UnitOfWork) -> None:
    """And no error."""
    assert titles(work, "anything") == set()
