"""Words of questions that the database has read before, with their lexemes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final

from sqlalchemy import ARRAY, Text, bindparam, column, func, select, true

from pgcorpus.db.scope import Scope
from pgcorpus.db.search.driver import Sent, in_drivers_words
from pgcorpus.db.search.pipeline import Rows
from pgcorpus.db.search.question import list_languages, read_lexemes

PLAIN: Final = re.compile(r"([^\W\d_]{1,100})[?!,;.:]?")
"""A word that PostgreSQL's parser reads alone as it does among others: letters, and at most a mark
behind them. It takes ``e.g``, ``x-ray`` or ``v2`` apart by what stands around them."""

MOST_WORDS: Final = 50_000
"""Words that are kept, in each of their languages: some 10 MB."""

KEPT_SECONDS: Final = 600.0
"""The time after which the database is asked again: its dictionaries may have been changed."""


def split_words(words: str) -> list[str]:
    """Split the words of a question into parts that are read one by one.

    Returns:
        Plain words; or the question as one part, where any of them is not plain.
    """
    read = [PLAIN.fullmatch(each) for each in words.split()]
    return [each[1] for each in read if each] if all(read) else [words]


_Lexemes = dict[tuple[Scope | None, str, str], list[tuple[str, int]]]
"""Scope, language and word → lexemes, each with how often it occurs."""


class Vocabulary:
    """The lexemes of words, as the database read them a while ago.

    Each scope has its own: by the time that a search takes, one could else tell what others asked.
    """

    def __init__(self) -> None:
        self._lexemes: _Lexemes = {}
        self._began = time.monotonic()

    def read(
        self,
        words: str,
        languages: Sequence[str],
        scope: Scope | None,
        ask: Callable[[Sent], Rows],
    ) -> dict[str, dict[str, int]]:
        """Read the words of a question in each of *languages*.

        Args:
            words: Of the question.
            languages: Text search configurations.
            scope: The search's own.
            ask: Sends a statement to the database: of words that it has not read lately.

        Returns:
            Language → lexeme → how often it occurs; a language of which none occurs is absent.
        """
        known = self._recall()
        parts = split_words(words)
        asked = [(scope, language, part) for language in languages for part in parts]
        if unread := [*dict.fromkeys(key[-1] for key in asked if key not in known)]:
            read: _Lexemes = {(scope, of, part): [] for of in languages for part in unread}
            for row in ask((compile_reading(), {"parts": unread, "languages": [*languages]})):
                read[scope, row["language"], row["part"]].append((row["lexeme"], row["times"]))
            known |= read
        times: dict[str, dict[str, int]] = {}
        for key in asked:
            for lexeme, count in known[key]:
                of_language = times.setdefault(key[1], {})
                of_language[lexeme] = of_language.get(lexeme, 0) + count
        return times

    def _recall(self) -> _Lexemes:
        if time.monotonic() - self._began > KEPT_SECONDS or len(self._lexemes) > MOST_WORDS:
            # A new one: other threads still read from the one before.
            self._lexemes, self._began = {}, time.monotonic()
        return self._lexemes


@cache
def compile_reading() -> str:
    """Compile the statement that reads the parts of a question.

    Parameters: ``parts`` and ``languages``. A row has ``language``, ``part``, ``lexeme`` and
    ``times``; there is none for a part that is a stop word.
    """
    language = list_languages()
    part = (
        func.unnest(bindparam("parts", type_=ARRAY(Text())))
        .table_valued(column("text", Text))
        .render_derived("part")
    )
    read = read_lexemes(language, part.c.text)
    each = select(
        language.c.name.label("language"),
        part.c.text.label("part"),
        read.c.lexeme,
        func.cardinality(read.c.positions).label("times"),
    )
    return in_drivers_words(each.select_from(language).join(part, true()).join(read, true()))
