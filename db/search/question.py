"""A question as a caller types it, taken apart: words to score, and what a passage must hold."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Text,
    and_,
    bindparam,
    case,
    cast,
    column,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import REGCONFIG, TSQUERY

from db.errors import EmptyQuestion

MAX_CHARACTERS: Final = 100_000
"""PostgreSQL makes a tsvector of at most 1 MiB of text; no real question comes near."""

SENTENCE_WORDS: Final = 8
"""A question with so many words outside of quotes is a sentence that cites, and demands nothing."""

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
        """Whether a passage is refused for it; a plain word only adds to the score."""
        return self.phrase or self.excluded


@dataclass(frozen=True)
class Question:
    """What was asked, in the grammar of web searches: ``"a phrase"``, ``-word``, ``or``.

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
        """Take a question apart.

        Raises:
            EmptyQuestion: Nothing but spaces, signs and exclusions.
        """
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
        question = cls(text.strip(), tuple(tuple(each) for each in alternatives if each))
        plain = sum(not term.binding for each in alternatives for term in each)
        if plain >= SENTENCE_WORDS and question.relaxed != question:
            question = question.relaxed
            notes.append("the question is a sentence: what it quotes need not occur as it stands")
        return replace(question, note="; ".join(notes) or None)

    @property
    def relaxed(self) -> Question:
        """The same, its phrases as plain words: they add to the score, and need not occur."""
        return replace(
            self,
            alternatives=tuple(
                tuple(term if term.excluded else replace(term, phrase=False) for term in terms)
                for terms in self.alternatives
            ),
        )

    @property
    def words(self) -> str:
        """Everything that is to be found, for scoring: phrases as their words, no exclusions."""
        return " ".join(
            term.text for each in self.alternatives for term in each if not term.excluded
        )

    @property
    def demands(self) -> Demands:
        """What a passage must hold or must not: phrases and exclusions, on every leg.

        Nothing when the question has only plain words: these add to the score, and a passage may
        lack some.
        """
        if not any(term.binding for each in self.alternatives for term in each):
            return Demands()
        # One side of an "or": all its binding terms, or any of its words when none binds.
        return Demands(
            tuple(tuple(term.excluded for term in _deciding(terms)) for terms in self.alternatives),
            tuple(any(term.binding for term in terms) for terms in self.alternatives),
        )

    @property
    def demanded(self) -> dict[str, str]:
        """The parameters of ``demands``, by name."""
        if not self.demands.alternatives:
            return {}
        return {
            f"demand_{n}_{m}": term.text
            for n, terms in enumerate(self.alternatives)
            for m, term in enumerate(_deciding(terms))
        }

    @property
    def unspaced(self) -> bool:
        """Whether most of its letters are of a script that puts no spaces between words."""
        letters = [c for c in self.words if c.isalpha()]
        return 2 * len(UNSPACED.findall("".join(letters))) > len(letters)


@dataclass(frozen=True)
class Demands:
    """The shape of what a question demands, without its words.

    Attributes:
        alternatives: For each side of an ``or``, for each of its terms, whether it is excluded.
        binding: For each side, whether all of its terms must be met, or any.
    """

    alternatives: tuple[tuple[bool, ...], ...] = ()
    binding: tuple[bool, ...] = ()

    def query(self) -> ColumnElement[str]:
        """As one ``tsquery``, with parameters ``demand_…`` and ``languages``; null for nothing."""
        sides = [self._side(n, excluded) for n, excluded in enumerate(self.alternatives)]
        whole = sides[0]
        for side in sides[1:]:
            whole = whole.op("||")(side)
        # A side of stop words alone is empty, and matches nothing: it asks for nothing instead.
        return case((and_(*(func.numnode(side) > 0 for side in sides)), whole))

    def _side(self, side: int, excluded: tuple[bool, ...]) -> ColumnElement[str]:
        queries = []
        for place, out in enumerate(excluded):
            query = _in_any_language(f"demand_{side}_{place}")
            queries.append(func.tsquery_not(query, type_=TSQUERY) if out else query)
        whole = queries[0]
        for query in queries[1:]:
            whole = whole.op("&&" if self.binding[side] else "||")(query)
        return whole


def _deciding(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    return tuple(term for term in terms if term.binding) or terms


def _in_any_language(parameter: str) -> ColumnElement[str]:
    """A phrase as each of the languages reads it, joined by "or"."""
    language = (
        func.unnest(bindparam("languages", type_=ARRAY(Text())))
        .table_valued(column("name", Text))
        .render_derived()
    )
    read = func.phraseto_tsquery(
        cast(language.c.name, REGCONFIG), cast(bindparam(parameter, type_=Text()), Text)
    )
    several = select(cast(func.string_agg(cast(read, Text), " | "), TSQUERY)).where(
        func.numnode(read) > 0
    )
    return func.coalesce(several.scalar_subquery(), cast(literal_column("''"), TSQUERY))
