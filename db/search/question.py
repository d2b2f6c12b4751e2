"""A question as a caller types it, taken apart: words to score, and what a passage must hold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, cast, func, literal, or_
from sqlalchemy.dialects.postgresql import REGCONFIG, TSQUERY

from db.errors import EmptyQuestion

MAX_CHARACTERS: Final = 100_000
"""PostgreSQL makes a tsvector of at most 1 MiB of text; no real question comes near."""

TOKEN: Final = re.compile(r'(?P<no>-?)(?:"(?P<phrase>[^"]*)"?|(?P<word>[^\s"]+))')


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
        return cls(
            text.strip(),
            tuple(tuple(each) for each in alternatives if each),
            "; ".join(notes) or None,
        )

    @property
    def words(self) -> str:
        """Everything that is to be found, for scoring: phrases as their words, no exclusions."""
        return " ".join(
            term.text for each in self.alternatives for term in each if not term.excluded
        )

    def demands(self, words: ColumnElement[str], language: str) -> list[ColumnElement[bool]]:
        """What a passage must hold or must not: phrases and exclusions, on every leg.

        Args:
            words: The passage's ``tsvector``.
            language: The text search configuration that reads the question.

        Returns:
            No condition when the question has only plain words: these add to the score, and a
            passage may lack some.
        """
        if not any(term.binding for each in self.alternatives for term in each):
            return []
        queries = [_query(each, language) for each in self.alternatives]
        # A query of stop words alone is empty, and matches nothing: it asks for nothing instead.
        return [or_(*(or_(words.op("@@")(q), func.numnode(q) == 0) for q in queries))]


def _query(terms: tuple[Term, ...], language: str) -> ColumnElement[str]:
    """One side of an ``or``: all its binding terms, or any of its words when none binds."""
    configuration = cast(literal(language), REGCONFIG)
    binding = [term for term in terms if term.binding]
    joined = "&&" if binding else "||"
    queries = []
    for term in binding or terms:
        query: ColumnElement[str] = func.phraseto_tsquery(configuration, term.text, type_=TSQUERY)
        queries.append(func.tsquery_not(query, type_=TSQUERY) if term.excluded else query)
    whole = queries[0]
    for query in queries[1:]:
        whole = whole.op(joined)(query)
    return whole
