"""The request of a search, checked as far as that needs no database, and as prepared for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, Self, TypedDict

from pgcorpus.db.choices import FUSIONS, Fusion
from pgcorpus.db.errors import InvalidFilter, InvalidSearch
from pgcorpus.db.scope import Scope
from pgcorpus.db.search import corpora
from pgcorpus.db.search.answer import ModelState
from pgcorpus.db.search.ask import DEPTHS, Ask
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.search.options import Options
from pgcorpus.db.search.page import Hit, Leg, LegName
from pgcorpus.db.search.question import Question
from pgcorpus.services.choices import (
    MAX_GROUP_SIZE,
    MAX_HALF_LIFE_DAYS,
    MAX_LIMIT,
    MAX_OFFSET,
    MAX_RRF_K,
    MODES,
    Mode,
)
from pgcorpus.services.embedding.choice import Choice

LEGS_OF: Final[Mapping[str, tuple[LegName, ...]]] = {
    "vector": ("vector",),
    "text": ("text",),
    "fuzzy": ("fuzzy",),
    "hybrid": ("vector", "text"),
}

WEIGHTS_OF: Final[Mapping[str, Mapping[str, float]]] = {
    "calibrated": {"vector": 0.3, "text": 0.7, "fuzzy": 0.7},
    "weighted": {"vector": 0.7, "text": 0.3, "fuzzy": 0.3},
    "rrf": {"vector": 1.0, "text": 1.0, "fuzzy": 1.0},
}
"""Fusion → the weights of its legs. docs/explanation/search.md tells how they were found. 70 %
vector and 30 % text are the specification's (FR2); RRF's own paper weighs all alike."""

LANGUAGE: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)?")
"""A name, with or without its schema; a number would be read as an object's identifier."""

MAX_WEIGHT: Final = 1_000_000
"""The greatest weight of a leg; beyond, sums of scores lose their digits."""


MARKERS: Final = ("**", "**")
"""The marks before and after a word of the question in a snippet."""


Reranker = Callable[[str, Sequence[Hit]], Sequence[float]]

RERANKED: Final = DEPTHS[0]
"""Hits that a reranker sees at least, where so many are found: all that a leg finds. It does not
grow from page to page, or hits would move between them."""


class RankingOptions(TypedDict, total=False):
    """The options of a search that order its hits. Every key has a default.

    Attributes:
        mode: ``vector``, ``text``, ``fuzzy``, or ``hybrid`` (the default): the union of vector and
            text.
        fusion: ``calibrated`` (the default) has every leg score what any leg found, and adds
            weight · score; ``weighted`` adds weight · score over the legs that found a passage;
            ``rrf`` adds weight / (``rrf_k`` + rank).
        weights: Leg → weight, not negative; by default 0.3 vector and 0.7 text, 0.7 and 0.3 for
            ``weighted``, all alike for ``rrf``.
        limit: Hits on the page, 1 to 1,000; by default 10.
        offset: Hits before the page, 0 to 10,000; applied once, after fusion.
        filters: Name → value, list, None or range; see ``Corpus.parse_filters``.
        language: Text search configuration that reads the question; by default those of the
            corpus's passages.
        rerank: Called with the question and the best hits, at least ``RERANKED`` of them where so
            many were found; gives a score to each, the higher the better, and the page is in that
            order. When it fails, the page is as it was and says so.
        min_similarity: 0 (the default) to 1: the vector leg drops passages whose cosine with the
            question is below. What another leg found of them stays.
        rrf_k: Constant of ``rrf``, a whole number from 0 to 10,000; by default 60. The greater, the
            less the first places count for.
        boost: 0 (the default) to 1: the share of its score that a passage's freshness and use may
            add, in a corpus that has such a boost.
        half_life_days: Days after which the freshness is halved; by default 30.
        learned: True (the default) to rank by what clicks have taught, where a ranking is active
            and the search is ``hybrid`` and ``calibrated``. *weights* switch it off.
        after: The token of a commit that the search must see, with ``DATABASE_READ_URLS``: what
            ``UnitOfWork.commit`` or ``Database.token`` returned. None asks for nothing.
    """

    mode: Mode
    fusion: Fusion
    weights: Mapping[str, float]
    limit: int
    offset: int
    filters: Mapping[str, Any]
    language: str | None
    rerank: Reranker | None
    min_similarity: float
    rrf_k: int
    boost: float
    half_life_days: float
    learned: bool
    after: str | None


class SearchOptions(RankingOptions, total=False):
    """The options of a search: those that order its hits, groups, and the scope.

    Attributes:
        group_by: A column of the hits' metadata, such as ``document`` or ``conversation``: the page
            has its values with their best hits, that of the best hit first, and ``limit`` and
            ``offset`` count values.
        group_size: Hits of each value, 1 to 100; by default 1, the best.
        snippets: Whether each hit has a snippet, in which the words of the question are marked; by
            default none has. HTML in it is text as it was stored, and not escaped.
        markers: The marks before and after a word of the question; by default ``**`` for both.
        scope: The tenant or user whose passages are searched; a scoped corpus needs it.
    """

    group_by: str | None
    group_size: int
    snippets: bool
    markers: tuple[str, str]
    scope: Scope | None


@dataclass(frozen=True, kw_only=True)
class Request(Options):
    """A request for a search, checked as far as that needs no database."""

    asked: str
    question: Question
    corpus: Corpus
    mode: Mode = "hybrid"
    learned: bool = True
    weights: Mapping[str, float] = field(default_factory=dict)
    rerank: Reranker | None = None
    snippets: bool = False
    markers: tuple[str, str] = MARKERS
    scope: Scope | None = None
    after: str | None = None

    @classmethod
    def of(cls, question: str, corpus: str, options: SearchOptions) -> Self:
        """Make a request from a caller's options; None is the default of an option.

        Raises:
            SearchError: Something of it is not allowed; see ``SearchService.search``.
        """
        given: Any = {name: value for name, value in options.items() if value is not None}
        parsed = Question.parse(question)
        return cls(asked=question, question=parsed, corpus=corpora.get_corpus(corpus), **given)

    def __post_init__(self) -> None:
        self._refuse_wrong_types()
        self.corpus.refuse_without(self.scope)
        self._refuse_impossible_boost()
        self._refuse_impossible_bounds()
        if self.mode not in MODES:
            raise InvalidSearch(f"there is no mode {self.mode!r}; known: {', '.join(MODES)}")
        if self.fusion not in FUSIONS:
            raise InvalidSearch(f"there is no fusion {self.fusion!r}; known: {', '.join(FUSIONS)}")
        if self.language is not None and not LANGUAGE.fullmatch(self.language):
            raise InvalidSearch(f"there is no text search configuration {self.language!r}")
        if not is_whole(self.limit, 1, MAX_LIMIT) or not is_whole(self.offset, 0, MAX_OFFSET):
            raise InvalidSearch(
                f"limit must be 1 to {MAX_LIMIT} and offset 0 to {MAX_OFFSET}, "
                f"not {self.limit!r} and {self.offset!r}"
            )
        if unknown := self.weights.keys() - WEIGHTS_OF[self.fusion].keys():
            raise InvalidSearch(
                f"there is no leg {', '.join(sorted(map(str, unknown)))}; known: "
                f"{', '.join(WEIGHTS_OF[self.fusion])}"
            )
        if not all(
            _number(weight) and 0 <= weight <= MAX_WEIGHT for weight in self.weights.values()
        ):
            raise InvalidSearch(f"a leg's weight must be a number from 0 to {MAX_WEIGHT:,}")
        if not sum(self.legs.values()) > 0:
            raise InvalidSearch(f"the weights leave {self.mode} no leg; one must be above 0")
        if self.group_by is not None and self.group_by not in self.corpus.metadata:
            raise InvalidSearch(
                f"hits of {self.corpus.name} have no column {self.group_by!r} to be grouped by; "
                f"known: {', '.join(self.corpus.metadata)}"
            )
        if not is_whole(self.group_size, 1, MAX_GROUP_SIZE):
            raise InvalidSearch(f"a group has 1 to {MAX_GROUP_SIZE} hits, not {self.group_size!r}")
        self.corpus.parse_filters(self.filters)

    def _refuse_impossible_bounds(self) -> None:
        if not _number(self.min_similarity) or not 0 <= self.min_similarity <= 1:
            raise InvalidSearch(
                f"min_similarity must be a number from 0 to 1, not {self.min_similarity!r}"
            )
        if not is_whole(self.rrf_k, 0, MAX_RRF_K):
            raise InvalidSearch(
                f"rrf_k must be a whole number from 0 to {MAX_RRF_K:,}, not {self.rrf_k!r}"
            )

    def _refuse_impossible_boost(self) -> None:
        if not _number(self.boost) or not 0 <= self.boost <= 1:
            raise InvalidSearch(f"boost must be a number from 0 to 1, not {self.boost!r}")
        if self.boost and self.corpus.boost is None:
            raise InvalidSearch(f"{self.corpus.name} has no boost; search with boost=0")
        if not _number(self.half_life_days) or not 0 < self.half_life_days <= MAX_HALF_LIFE_DAYS:
            raise InvalidSearch(
                f"half_life_days must be above 0 and at most {MAX_HALF_LIFE_DAYS:,}, "
                f"not {self.half_life_days!r}"
            )

    def _refuse_wrong_types(self) -> None:
        if not isinstance(self.scope, Scope | None):
            raise InvalidSearch(f"a scope is a pgcorpus.db.scope.Scope, not {self.scope!r}")
        if not isinstance(self.filters, Mapping):
            raise InvalidFilter(f"filters are name → value, not {self.filters!r}")
        if not isinstance(self.weights, Mapping):
            raise InvalidSearch(f"weights are leg → number, not {self.weights!r}")
        if not isinstance(self.language, str | None):
            raise InvalidSearch(f"there is no text search configuration {self.language!r}")
        if not isinstance(self.snippets, bool):
            raise InvalidSearch(f"snippets are asked for by True or False, not {self.snippets!r}")
        match self.markers:
            case (str(), str()):
                pass
            case _:
                raise InvalidSearch(f"markers are two texts, not {self.markers!r}")
        if not isinstance(self.learned, bool):
            raise InvalidSearch(f"learned must be True or False, not {self.learned!r}")
        if self.rerank is not None and not callable(self.rerank):
            raise InvalidSearch(f"a reranker is a function, not {self.rerank!r}")

    @property
    def cuts_windows(self) -> bool:
        """True if pages are cut from windows of hits, reranked, and then grouped, before."""
        return self.rerank is not None

    @property
    def window(self) -> tuple[int, int]:
        """The limit and offset that the database is asked for.

        A reranker orders before groups are made and pages are cut.
        """
        if not self.cuts_windows:
            return self.limit, self.offset
        return next(window for window in DEPTHS if window >= self.end), 0

    @property
    def legs(self) -> dict[str, float]:
        """The legs of the mode, with their weights."""
        weights = {**WEIGHTS_OF[self.fusion], **self.weights}
        legs = LEGS_OF[self.mode]
        return {leg: weights[leg] if len(legs) > 1 else 1.0 for leg in legs}

    @property
    def uses_learned(self) -> bool:
        """True if an active learned ranking is used: one is learned for hybrid searches alone."""
        return (
            self.learned
            and self.mode == "hybrid"
            and self.fusion == "calibrated"
            and not self.weights
        )

    @property
    def words_leg(self) -> LegName:
        """The leg that reads the question's words."""
        return "fuzzy" if self.question.is_unspaced else "text"


class Chosen(NamedTuple):
    """The model of a vector leg, and its state when it was chosen."""

    choice: Choice
    state: ModelState


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A search ready to run, with the reports of legs that were skipped or failed."""

    request: Request
    ask: Ask
    chosen: Chosen | None = None
    silent: tuple[Leg, ...] = ()
    notes: tuple[str, ...] = ()
    stand_in: str | None = None

    def having(self, leg: Leg) -> Prepared:
        """Add the report of a leg; one that failed or was skipped is left out of the search."""
        legs = (
            self.ask.legs
            if leg.status == "ok"
            else {name: weight for name, weight in self.ask.legs.items() if name != leg.name}
        )
        return replace(self, ask=replace(self.ask, legs=legs), silent=(*self.silent, leg))

    def asking(self, ask: Ask, note: str) -> Prepared:
        """Return the same search with another question to the database, and the reason."""
        return replace(self, ask=ask, notes=(*self.notes, note))


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(number: object, low: int, high: int) -> bool:
    """Return whether a value is a whole number in that range; True and False are none."""
    return isinstance(number, int) and not isinstance(number, bool) and low <= number <= high
