"""The knowledge that searches keep of each corpus from one to the next: its size, its words."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from pgcorpus.db.scope import Scope
from pgcorpus.db.search.ask import Ask
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.search.prelude import SURELY_LARGE, Prelude
from pgcorpus.db.search.vocabulary import Vocabulary
from pgcorpus.db.search.words import Lexicon

FEW: Final = 2000
"""Passages up to which all are compared one by one: that is exact, and cheaper than an index that
passes over what a filter refuses."""

NEARLY_ALL: Final = 0.95
"""The share of the passages from which on they are ranked before it is asked which of them meet a
condition: of thirty candidates enough are left for a page of ten, and ten or eleven are asked."""

MAX_KNOWN: Final = 10_000
"""Scopes of which a database remembers the languages and sizes."""

ESTIMATE_SECONDS: Final = 60.0
"""Seconds for which it will do how large a corpus or a scope was: a plan that is made for another
size finds the same, more slowly."""


class Known(NamedTuple):
    """A database's knowledge of a corpus, or of a scope of it, from the last search."""

    lexicon: Lexicon = Lexicon()
    languages: tuple[str, ...] = ()
    passages: float = 0.0
    default_share: float | None = None  # of the passages, what the corpus's defaults keep
    plenty: bool = False  # the scope was counted without filters, and has more than are few
    estimated: float = 0.0  # passages of the scope, by the planner
    estimated_at: float | None = None  # by time.monotonic()
    last: Prelude | None = None  # of a search without filters, but for its question
    looked_at: float | None = None
    ranking_read: bool = False  # by that prelude

    @property
    def is_fresh(self) -> bool:
        """True if the planner was asked a moment ago how large the scope is."""
        return _is_recent(self.estimated_at)

    @property
    def recent(self) -> Prelude | None:
        """The prelude of a moment ago, but for its words; else None."""
        return self.last if _is_recent(self.looked_at) else None

    @property
    def surely_large(self) -> bool:
        """True if there are so many passages that they are not few, by the statistics."""
        return self.passages > SURELY_LARGE * FEW

    @property
    def may_read_words_alone(self) -> bool:
        """True if the corpus is so large that a moment changes neither its words nor its size."""
        return self.surely_large and self.lexicon.is_known and bool(self.languages)

    def narrows(self, ask: Ask) -> bool:
        """Return whether a search may be left with few passages of many.

        The defaults of a corpus mostly keep most of it: then a large one is not counted.
        """
        kept = self.passages * (1.0 if self.default_share is None else self.default_share)
        return bool(ask.filters or ask.question.demands) or (
            self.surely_large and kept <= SURELY_LARGE * FEW
        )

    def keeps_nearly_all(self, ask: Ask) -> bool:
        """Return whether only the corpus's defaults narrow a search, and these hardly do."""
        kept = 0.0 if self.default_share is None else self.default_share
        narrowed = ask.filters or ask.question.demands or ask.group_by is not None
        return not narrowed and kept >= NEARLY_ALL

    def must_count(self, corpus: Corpus, ask: Ask) -> bool:
        """Return whether only a count tells that few passages are left to search."""
        in_doubt = corpus.needs_scope and not (self.plenty and self.surely_large)
        return in_doubt or self.narrows(ask)


def _is_recent(moment: float | None) -> bool:
    return moment is not None and time.monotonic() - moment < ESTIMATE_SECONDS


class KnownCorpora:
    """The knowledge of earlier searches of each corpus, and of each scope of it.

    Attributes:
        vocabulary: The words of their questions.
    """

    def __init__(self) -> None:
        self.vocabulary = Vocabulary()
        self._of: dict[tuple[str, str | None], Known] = {}

    def recall(self, corpus: Corpus, scope: Scope | None) -> Known:
        """Return what the last search within the scope knew of a corpus."""
        of_all = self._of.get((corpus.name, None), Known())
        if not corpus.is_scoped(scope):
            return of_all
        own = self._of.get((corpus.name, str(scope)), Known())
        return own._replace(lexicon=of_all.lexicon)

    def remember(self, corpus: Corpus, scope: Scope | None, known: Known) -> None:
        """Keep what a search knows: words that are shared for all, the rest for its scope."""
        if len(self._of) >= MAX_KNOWN:
            self._of.clear()
        if not corpus.is_scoped(scope):
            self._of[corpus.name, None] = known
            return
        # The words of a scope are counted for each question, and kept from the next.
        self._of[corpus.name, str(scope)] = known._replace(lexicon=Lexicon())
        if not corpus.needs_scope:
            of_all = self._of.get((corpus.name, None), Known())
            self._of[corpus.name, None] = of_all._replace(lexicon=known.lexicon)

    def look_again(self, corpus: Corpus, scope: Scope | None) -> None:
        """Let the next search within the scope send its whole prelude."""
        self.remember(corpus, scope, self.recall(corpus, scope)._replace(last=None))
