"""Searches within a unit of work, and what is read of the passages that they find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import psycopg
from sqlalchemy import ColumnElement, func, select

from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.search.answer import Answer, Statement
from pgcorpus.db.search.ask import Ask
from pgcorpus.db.search.context import Turn, Window, surroundings
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.search.driver import Sent, as_sqlalchemy, make_settings, send
from pgcorpus.db.search.known import KnownCorpora
from pgcorpus.db.search.pipeline import Rows
from pgcorpus.db.search.ranker import Ranker
from pgcorpus.db.search.snippets import select_snippets

KNOWN: Final = "known of searches"
"""The key in a session's ``info`` of what the searches of its database know of each corpus."""


class SearchRepository(Repository):
    """Ranks the passages of any corpus in the transaction of the unit of work."""

    def answer(self, corpus: Corpus, ask: Ask) -> Answer:
        """Run a search; see ``Ranker``."""
        return self._ranker.answer(corpus, ask)

    def prepare(self, corpus: Corpus, ask: Ask) -> Statement:
        """Choose the statement of a search; see ``Ranker``."""
        return self._ranker.prepare(corpus, ask)

    def explain(self, statement: Statement, *, analyze: bool = True) -> dict[str, Any]:
        """Return the plan of a search; see ``Ranker``."""
        return self._ranker.explain(statement, analyze=analyze)

    def surroundings(
        self, corpus: Corpus, hits: Sequence[Any], *, before: int, after: int
    ) -> dict[Any, Window]:
        """Return the turns around hits, in one statement.

        Args:
            corpus: Of the hits.
            hits: Their ids.
            before: How many passages before each, at most.
            after: How many after each.

        Returns:
            Id → window, in the order of *hits*; those that are gone, or hidden, are absent.

        Raises:
            InvalidSearch: The corpus has no order.
            MissingScope: The corpus has a scope, and the unit of work has none.
        """
        corpus.refuse_without(self.scope)
        asked = {"hits": list(hits), "before": before, "after": after}
        asked |= corpus.bind_scope(self.scope)
        windows: dict[Any, dict[int, Turn]] = {}
        for row in self.session.execute(surroundings(corpus), asked).mappings():
            turn = Turn(
                is_hit=row["id"] in row["hits"],
                **{key: value for key, value in row.items() if key != "hits"},
            )
            for hit in row["hits"]:
                windows.setdefault(hit, {})[turn.place] = turn
        return {hit: windows[hit] for hit in hits if hit in windows}

    def find_snippets(self, corpus: Corpus, hits: Sequence[Any], words: str) -> dict[Any, str]:
        """Return snippets of hits, in which the words of a question are marked.

        Args:
            corpus: Of the hits.
            hits: Their ids.
            words: Of the question.

        Returns:
            Id → snippet with ``START`` and ``STOP`` around each word that matches, of those hits
            that hold any.

        Raises:
            MissingScope: The corpus has a scope, and the unit of work has none.
        """
        corpus.refuse_without(self.scope)
        asked = {"hits": list(hits), "words": words} | corpus.bind_scope(self.scope)
        found = self.session.execute(select_snippets(corpus), asked)
        return {row.id: row.snippet for row in found}

    def is_empty(self, corpus: Corpus) -> bool:
        """Return whether the corpus has no passage, within the scope."""
        some = select(corpus.key).where(*self._readable(corpus)).limit(1)
        return self.session.scalar(some, corpus.bind_scope(self.scope)) is None

    def count(self, corpus: Corpus) -> int:
        """Count the passages of the corpus, within the scope."""
        counted = select(func.count()).select_from(corpus.passages).where(*self._readable(corpus))
        return self.session.scalar(counted, corpus.bind_scope(self.scope)) or 0

    def _readable(self, corpus: Corpus) -> tuple[ColumnElement[bool], ...]:
        """Restrict the passages to what a search reads; without a needed scope, to all visible."""
        if corpus.needs_scope and self.scope is None:
            return ()
        return corpus.in_scope(corpus.passages)

    @property
    def _ranker(self) -> Ranker:
        known = self.session.info.setdefault(KNOWN, KnownCorpora())
        return Ranker(self.exchange, self.scope, known)

    def exchange(
        self, statements: Sequence[Sent], settings: Mapping[str, str] | None = None
    ) -> list[Rows]:
        """Send statements in one round trip, within the transaction.

        Args:
            statements: Their rows are returned.
            settings: Made first, for the transaction.

        Raises:
            DBAPIError: One failed.
        """
        before = make_settings(settings)
        connection = self.session.connection()
        try:
            with self.driver() as driver:
                return send(driver, [*before, *statements])[len(before) :]
        except psycopg.Error as error:
            gone = bool(driver.closed)
            if gone:
                connection.invalidate(error)
            raise as_sqlalchemy(error, statements[-1][0], connection.dialect, gone=gone) from error
