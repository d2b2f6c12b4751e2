"""A question as a caller types it, parsed into words to score and demands on a passage."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    Boolean,
    ColumnElement,
    FromClause,
    Integer,
    Select,
    Text,
    bindparam,
    case,
    cast,
    column,
    func,
    select,
)
from sqlalchemy.dialects.postgresql import REGCONFIG

from pgcorpus.db.errors import EmptyQuestion, InvalidSearch

MAX_CHARACTERS: Final = 100_000
"""PostgreSQL makes a tsvector of at most 1 MiB of text; no real question comes near."""

SENTENCE_WORDS: Final = 8
"""Words outside of quotes that make a question a sentence, which cites and demands nothing."""

MAX_DEMANDS: Final = 64
"""Phrases and exclusions of a question; no person types more, and PostgreSQL reads them nested."""

TOKEN: Final = re.compile(r'(?P<no>-?)(?:"(?P<phrase>[^"]*)"?|(?P<word>[^\s"]+))')


UNSPACED: Final = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]"
)
"""Letters of Thai, Lao, Burmese, Khmer, Chinese and Japanese (Unicode's blocks)."""


@dataclass(frozen=True)
class Term:
    """One word or quoted phrase of a question.

    Attributes:
        text: Without its quotes and minus.
        phrase: Whether it was quoted: its words must stand next to each other.
        excluded: Whether a passage must not hold it.
    """

    text: str
    phrase: bool = False
    excluded: bool = False

    @property
    def binding(self) -> bool:
        """True if a passage is refused for it; a plain word only adds to the score."""
        return self.phrase or self.excluded


@dataclass(frozen=True)
class Question:
    """A question in the grammar of web searches: ``"a phrase"``, ``-word``, ``or``.

    Attributes:
        text: As asked, without what no column can hold.
        alternatives: The terms on either side of each ``or``.
        note: What was changed of the question, or None.
    """

    text: str
    alternatives: tuple[tuple[Term, ...], ...]
    note: str | None = None

    @classmethod
    def parse(cls, asked: str) -> Question:
        """Parse a question.

        Raises:
            EmptyQuestion: Nothing but spaces, signs and exclusions.
            InvalidSearch: It is no text.
        """
        if not isinstance(asked, str):
            raise InvalidSearch(f"a question is a text, not {asked!r}")
        text = asked.replace("\0", " ").encode("utf-8", "replace").decode()
        notes = ["characters that no text can hold were left out"] if text != asked else []
        if len(text) > MAX_CHARACTERS:
            text = text[:MAX_CHARACTERS]
            notes.append(f"only the first {MAX_CHARACTERS:,} characters were read")
        alternatives: list[list[Term]] = [[]]
        for found in TOKEN.finditer(text):
            excluded, phrase, word = bool(found["no"]), found["phrase"], found["word"]
            if word is not None and word.lower() == "or" and not excluded:
                alternatives.append([])
            elif (phrase or word or "").strip():
                alternatives[-1].append(Term(phrase or word, phrase is not None, excluded))
        wanted = [term.text for each in alternatives for term in each if not term.excluded]
        if not any(c.isalnum() for each in wanted for c in each):
            raise EmptyQuestion(
                "the question holds no word or number to search for; ask with at least one"
            )
        plain = sum(not term.binding for each in alternatives for term in each)
        binding = [term for each in alternatives for term in each if term.binding]
        if len(binding) > MAX_DEMANDS or (binding and len(alternatives) > MAX_DEMANDS):
            alternatives, note = _within_bounds(alternatives)
            notes.append(note)
        question = cls(text.strip(), tuple(tuple(each) for each in alternatives if each))
        if plain >= SENTENCE_WORDS and question.as_plain_words != question:
            question = question.as_plain_words
            notes.append("the question is a sentence: what it quotes need not occur as it stands")
        return replace(question, note="; ".join(notes) or None)

    @property
    def as_plain_words(self) -> Question:
        """The same question with its phrases as plain words.

        They add to the score, and need not occur.
        """
        return replace(
            self,
            alternatives=tuple(
                tuple(term if term.excluded else replace(term, phrase=False) for term in terms)
                for terms in self.alternatives
            ),
        )

    @property
    def words(self) -> str:
        """All words to be found, for scoring: phrases as their words, no exclusions."""
        return " ".join(
            term.text for each in self.alternatives for term in each if not term.excluded
        )

    @property
    def demands(self) -> dict[str, list[Any]]:
        """The phrases that a passage must hold and those that it must not, on every leg.

        The parameters of ``select_demands``: of each term its text, the side of an ``or`` it is on,
        and whether it is excluded; of each side whether all its terms must be met, or any of them.
        Empty when the question has only plain words: these add to the score, and a passage may
        lack some.
        """
        if not any(term.binding for terms in self.alternatives for term in terms):
            return {}
        # One side of an "or": all its binding terms, or any of its words when none binds.
        terms = [
            (term, side)
            for side, terms in enumerate(self.alternatives)
            for term in (tuple(t for t in terms if t.binding) or terms)
        ]
        sides = [any(term.binding for term in terms) for terms in self.alternatives]
        return {
            "demand_texts": [term.text for term, _ in terms],
            "demand_sides": [side for _, side in terms],
            "demand_excluded": [term.excluded for term, _ in terms],
            "demand_all": [sides[side] for _, side in terms],
        }

    @property
    def is_unspaced(self) -> bool:
        """True if most of its letters are of a script that puts no spaces between words."""
        letters = [c for c in self.words if c.isalpha()]
        return 2 * len(UNSPACED.findall("".join(letters))) > len(letters)


def _within_bounds(alternatives: list[list[Term]]) -> tuple[list[list[Term]], str]:
    """Keep the first ``MAX_DEMANDS`` phrases and exclusions.

    Further ones are dropped, and sides of ``or`` beyond as many join the last.
    """
    heeded = 0
    kept: list[list[Term]] = [[]]
    for side, terms in enumerate(alternatives):
        if 0 < side < MAX_DEMANDS:
            kept.append([])
        for term in terms:
            heeded += term.binding
            if not term.binding or heeded <= MAX_DEMANDS:
                kept[-1].append(term)
    return kept, f"only the first {MAX_DEMANDS} phrases, exclusions and alternatives were heeded"


def list_languages() -> FromClause:
    """Build the rows of the parameter ``languages``, each with a ``name``."""
    return (
        func.unnest(bindparam("languages", type_=ARRAY(Text())))
        .table_valued(column("name", Text))
        .render_derived("language")
    )


def read_lexemes(language: FromClause, words: ColumnElement[str]) -> FromClause:
    """Build the lexemes of *words* in each language: ``lexeme`` and ``positions``."""
    return (
        func.unnest(func.to_tsvector(cast(language.c.name, REGCONFIG), words))
        .table_valued(column("lexeme", Text), "positions", "weights")
        .render_derived("read")
        .lateral()
    )


def select_demands() -> Select[Any]:
    """Select the demands of a question as one ``tsquery`` in text, from ``Question.demands``.

    A phrase is read in each of ``languages``, and may be met in any. Where a side of an ``or`` has
    only stop words it demands nothing, and so does the whole: null.
    """
    term = (
        func.unnest(
            bindparam("demand_texts", type_=ARRAY(Text())),
            bindparam("demand_sides", type_=ARRAY(Integer())),
            bindparam("demand_excluded", type_=ARRAY(Boolean())),
            bindparam("demand_all", type_=ARRAY(Boolean())),
        )
        .table_valued(
            column("text", Text),
            column("side", Integer),
            column("excluded", Boolean),
            column("all_of_side", Boolean),
        )
        .render_derived("term")
    )
    language = list_languages()
    query = func.phraseto_tsquery(cast(language.c.name, REGCONFIG), term.c.text)
    in_any = (
        select(func.string_agg(cast(query, Text), " | "))
        .where(func.numnode(query) > 0)
        .correlate(term)
        .scalar_subquery()
    )
    read = select(term, in_any.label("query")).subquery("read")
    signed = func.concat(case((read.c.excluded, "!("), else_="("), read.c.query, ")")
    # "All" and "any" differ from side to side, not within one.
    joined = case((read.c.all_of_side, " & "), else_=" | ")
    sides = (
        select(func.string_agg(signed, joined).filter(read.c.query.is_not(None)).label("query"))
        .group_by(read.c.side)
        .subquery("sides")
    )
    whole = func.string_agg(func.concat("(", sides.c.query, ")"), " | ")
    return select(case((func.count() == func.count(sides.c.query), whole)).label("demanded"))
