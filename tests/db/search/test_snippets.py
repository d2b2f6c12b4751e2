"""Snippets: the words around those of a question, marked in each passage's own language."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from pgcorpus.db.scope import Scope
from pgcorpus.db.search.question import Question
from pgcorpus.db.search.snippets import LESS_THAN, MAX_CHARACTERS, START, STOP
from pgcorpus.db.uow import UnitOfWork
from tests.db.search.shelves import DOCUMENTS, SHELVES, Passage, Shelf
from tests.db.search.test_contract import PASSAGES, every_shelf
from tests.db.search.test_statement import HOSTILE

LONG = "Nothing in particular is told here. " * 20


def mark(word: str) -> str:
    """A word as a snippet has it."""
    return f"{START}{word}{STOP}"


def snippets(work: UnitOfWork, shelf: Shelf, keys: list[Any], question: str) -> dict[Any, str]:
    """Snippets of these passages."""
    words = Question.parse(question).words
    return work.searches.find_snippets(shelf.corpus, keys, words)


def one(work: UnitOfWork, content: str, question: str, **more: Any) -> str:
    """The snippet of a document's chunk with this content."""
    (key,) = DOCUMENTS.fill(work, [Passage("Heading", content, **more)])
    return snippets(work, DOCUMENTS, [key], question)[key]


@every_shelf
def test_the_words_of_a_question_are_marked_in_any_form(shelf: Shelf, work: UnitOfWork) -> None:
    """Of the hits asked for alone; one that holds no word of it has no snippet."""
    keys = shelf.fill(work, [*PASSAGES, Passage("Second", "Refunds take a day.")])

    found = snippets(work, shelf, keys[:3], "refunding or habits")

    assert found.keys() == set(keys[1:3])
    assert mark("habit") in found[keys[1]]
    assert mark("refund") in found[keys[2]]


def test_a_snippet_is_of_the_part_with_the_words(work: UnitOfWork) -> None:
    """Not the beginning; two parts that are far apart are both shown."""
    content = f"{LONG} The kettle is copper. {LONG} A refund takes a day. {LONG}"

    found = one(work, content, "kettle refund")

    assert mark("kettle") in found
    assert mark("refund") in found
    assert len(found) < 400


def test_html_is_text(work: UnitOfWork) -> None:
    """Tags and entities stay as they are stored, and words in them are found."""
    found = one(work, 'See: <b class="x">kettle</b> &amp; a List<Kettle> cost <i>coins', "kettle")

    assert found == (
        f'See: <b class="x">{mark("kettle")}</b> &amp; a List<{mark("Kettle")}> cost <i>coins'
    )


def test_a_passage_cannot_forge_a_mark(work: UnitOfWork) -> None:
    """The characters that mark are left out of it."""
    found = one(work, f"{START}copper{STOP}{LESS_THAN} kettle", "kettle")

    assert found == f"copper {mark('kettle')}"


def test_a_passage_is_read_in_its_own_language(work: UnitOfWork) -> None:
    """A question in several languages has the words of each."""
    found = one(work, "Die Häuser am Fluss sind alt.", "Haus", language="german")

    assert mark("Häuser") in found


@pytest.mark.parametrize("question", [each for each in HOSTILE if "price" in each])
def test_no_word_of_a_question_is_an_operator(work: UnitOfWork, question: str) -> None:
    """Whatever it holds."""
    assert mark("price") in one(work, "The price is high.", question)


def test_words_far_down_a_long_passage_are_not_looked_for(work: UnitOfWork) -> None:
    """The cost of marking is bounded."""
    found = one(work, "word " * (MAX_CHARACTERS // 5) + "kettle", "kettle")

    assert START not in found


def test_another_tenants_passage_has_no_snippet(work: UnitOfWork) -> None:
    """Not even for a caller who knows its key: the statement names the scope, too."""
    owned = next(shelf for shelf in SHELVES if shelf.name == "documentation of a tenant")
    (key,) = owned.fill(work, [PASSAGES[2]])
    assert snippets(work, owned, [key], "refund").keys() == {key}

    work.leave()
    assert snippets(work, owned, [key], "refund") == {}
    work.enter(Scope.tenant(uuid4()))
    assert snippets(work, owned, [key], "refund") == {}


def test_of_a_hit_that_is_gone_there_is_none(work: UnitOfWork) -> None:
    """No more than of a question without words."""
    keys = SHELVES[0].fill(work, PASSAGES)

    assert snippets(work, SHELVES[0], [uuid4()], "refund") == {}
    assert snippets(work, SHELVES[0], keys, "the") == {}
