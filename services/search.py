"""Searches: vector, text, fuzzy and hybrid, over any corpus, with honest results."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Literal, NamedTuple, TypedDict, Unpack, get_args

import numpy as np
from psycopg.errors import QueryCanceled, UndefinedObject
from sqlalchemy.exc import DBAPIError

from db.engine import Database
from db.errors import (
    DataLayerError,
    EmbeddingError,
    InvalidFilter,
    InvalidSearch,
    NotPermitted,
    SearchError,
    StatementTimeout,
    WrongDimensions,
    translate,
)
from db.repositories.search import DEPTHS, Answer, Ask, ModelState
from db.search import corpora
from db.search.corpus import Corpus
from db.search.legs import LARGE_FUZZY_THRESHOLD, AskedModel
from db.search.page import Explainer, Explanation, Hit, Leg, LegName, SearchPage, Status
from db.search.question import Question
from db.search.ranking import FUSIONS, Fusion
from db.search.words import MAX_WORDS
from db.uow import UnitOfWork
from services.embedding.choice import Choice, choose
from services.embedding.embedder import Embedder, embedder_for
from services.search_log import SearchLog

Mode = Literal["vector", "text", "fuzzy", "hybrid"]
MODES: Final = get_args(Mode)

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
"""How they were found is in docs/explanation/search.md. 70 % vector and 30 % text are the
specification's (FR2); RRF's own paper weighs all alike."""

REFERENCE_SPREAD: Final = 0.13
"""Standard deviation of the cosine between two passages with all-MiniLM-L6-v2: the mean over seven
collections, of which the weights of ``calibrated`` were found on four."""

MOST_STRETCHED: Final = 3.0
"""A spread measured on unusual passages does not turn the weights over."""

LANGUAGE: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)?")
"""A name, with or without its schema; a number would be read as an object's identifier."""

MOST_SWITCHES: Final = 5
"""So often a search begins anew because its corpus was given another model meanwhile."""

SWITCHING: Final = "the corpus changed its model again and again during the search; try again"

MAX_WEIGHT: Final = 1_000_000
"""Of a leg; beyond, sums of scores lose their digits."""

MAX_LIMIT: Final = 1000
MAX_OFFSET: Final = 10_000


Reranker = Callable[[str, Sequence[Hit]], Sequence[float]]

RERANKED: Final = DEPTHS[0]
"""Hits that a reranker sees at least, where so many are found: all that a leg finds. It does not
grow from page to page, or hits would move between them."""


class SearchOptions(TypedDict, total=False):
    """How a search is narrowed, joined and paged. Every key has a default.

    Attributes:
        mode: ``vector``, ``text``, ``fuzzy``, or ``hybrid`` (the default): the union of vector and
            text.
        fusion: ``calibrated`` (the default) has every leg score what any leg found, and adds
            weight · score; ``weighted`` adds weight · score over the legs that found a passage;
            ``rrf`` adds weight / (60 + rank).
        weights: Leg → weight, not negative; by default 0.3 vector and 0.7 text, 0.7 and 0.3 for
            ``weighted``, all alike for ``rrf``.
        limit: Hits on the page, 1 to 1,000; by default 10.
        offset: Hits before the page, 0 to 10,000; applied once, after fusion.
        filters: Name → value, list, None or range; see ``Corpus.narrowed``.
        language: Text search configuration that reads the question; by default those of the
            corpus's passages.
        rerank: Called with the question and the best hits, at least ``RERANKED`` of them where so
            many were found; gives a score to each, the higher the better, and the page is in that
            order. When it fails, the page is as it was and says so.
    """

    mode: Mode
    fusion: Fusion
    weights: Mapping[str, float]
    limit: int
    offset: int
    filters: Mapping[str, Any]
    language: str | None
    rerank: Reranker | None


@dataclass(frozen=True, kw_only=True)
class Request:
    """A search as asked, checked as far as that needs no database."""

    asked: str
    question: Question
    corpus: Corpus
    mode: Mode = "hybrid"
    fusion: Fusion = "calibrated"
    weights: Mapping[str, float] = field(default_factory=dict)
    limit: int = 10
    offset: int = 0
    filters: Mapping[str, Any] = field(default_factory=dict)
    language: str | None = None
    rerank: Reranker | None = None

    def __post_init__(self) -> None:
        self._refuse_wrong_types()
        if self.mode not in MODES:
            raise InvalidSearch(f"there is no mode {self.mode!r}; known: {', '.join(MODES)}")
        if self.fusion not in FUSIONS:
            raise InvalidSearch(f"there is no fusion {self.fusion!r}; known: {', '.join(FUSIONS)}")
        if self.language is not None and not LANGUAGE.fullmatch(self.language):
            raise InvalidSearch(f"there is no text search configuration {self.language!r}")
        if not _whole(self.limit, 1, MAX_LIMIT) or not _whole(self.offset, 0, MAX_OFFSET):
            raise InvalidSearch(
                f"limit must be 1 to {MAX_LIMIT} and offset 0 to {MAX_OFFSET}, "
                f"not {self.limit!r} and {self.offset!r}"
            )
        if unknown := self.weights.keys() - WEIGHTS_OF[self.fusion].keys():
            raise InvalidSearch(f"there is no leg {', '.join(sorted(map(str, unknown)))}")
        if not all(
            _number(weight) and 0 <= weight <= MAX_WEIGHT for weight in self.weights.values()
        ):
            raise InvalidSearch(f"a leg's weight must be a number from 0 to {MAX_WEIGHT:,}")
        if not sum(self.legs.values()) > 0:
            raise InvalidSearch(f"the weights leave {self.mode} no leg; one must be above 0")
        self.corpus.narrowed(self.filters)

    def _refuse_wrong_types(self) -> None:
        if not isinstance(self.filters, Mapping):
            raise InvalidFilter(f"filters are name → value, not {self.filters!r}")
        if not isinstance(self.weights, Mapping):
            raise InvalidSearch(f"weights are leg → number, not {self.weights!r}")
        if not isinstance(self.language, str | None):
            raise InvalidSearch(f"there is no text search configuration {self.language!r}")
        if self.rerank is not None and not callable(self.rerank):
            raise InvalidSearch(f"a reranker is a function, not {self.rerank!r}")

    @property
    def window(self) -> tuple[int, int]:
        """Limit and offset of what the database is asked for: a reranker orders before paging."""
        if self.rerank is None:
            return self.limit, self.offset
        wanted = self.limit + self.offset
        return next(window for window in DEPTHS if window >= wanted), 0

    @property
    def legs(self) -> dict[str, float]:
        """The legs of the mode, with their weights."""
        weights = {**WEIGHTS_OF[self.fusion], **self.weights}
        legs = LEGS_OF[self.mode]
        return {leg: weights[leg] if len(legs) > 1 else 1.0 for leg in legs}


class _Chosen(NamedTuple):
    """The model of a vector leg, and what was so when it was chosen."""

    choice: Choice
    state: ModelState


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A search ready to run, with what its legs have to say already."""

    request: Request
    ask: Ask
    chosen: _Chosen | None = None
    silent: tuple[Leg, ...] = ()
    notes: tuple[str, ...] = ()

    def having(self, leg: Leg) -> _Prepared:
        """The same, with what a leg has to say; one that failed or was skipped is left out."""
        legs = self.ask.legs if leg.status == "ok" else _without(self.ask.legs, leg.name)
        return replace(self, ask=replace(self.ask, legs=legs), silent=(*self.silent, leg))

    def asking(self, ask: Ask, note: str) -> _Prepared:
        """The same, asked otherwise, and why."""
        return replace(self, ask=ask, notes=(*self.notes, note))


class _ModelChanged(Exception):
    """The corpus was given another model, or the model was measured, since it was chosen."""


class _Searching:
    """What both services do; they differ in how they wait."""

    def __init__(self, database: Database, *, embedder: Embedder | None = None) -> None:
        self._database = database
        self._embedders: dict[str, Embedder] = {}
        self._given = embedder
        self._chosen: dict[str, _Chosen] = {}
        self._log = SearchLog(database)

    def flush_log(self) -> None:
        """Write the timings of searches that are not yet in ``query_performance_log``."""
        self._log.flush()

    def _needs_choice(self, request: Request) -> bool:
        """Whether the model is still to be chosen.

        It is kept from search to search: that it is still the corpus's is seen in the snapshot of
        each search.
        """
        return "vector" in LEGS_OF[request.mode] and request.corpus.name not in self._chosen

    def _choose(self, work: UnitOfWork, request: Request) -> NotPermitted | None:
        """Choose the model and keep it; or why the role may not know the models."""
        try:
            active = work.embeddings.find_active_model(request.corpus.name)
            choice = choose(work, request.corpus, self._database.settings, self._given_name())
        except DBAPIError as error:
            refused = translate(error)
            if isinstance(refused, NotPermitted):
                return refused
            raise
        state = ModelState(active.name if active else None, choice.index_kind, choice.cosine_spread)
        self._chosen[request.corpus.name] = _Chosen(choice, state)
        return None

    def _prepare(self, request: Request, refused: NotPermitted | None = None) -> _Prepared:
        """Embed the question, outside of any transaction.

        Args:
            request: The search.
            refused: Why the model could not be chosen, if so.
        """
        legs: Mapping[str, float] = request.legs
        notes: list[str] = []
        if request.question.unspaced and "text" in legs:
            notes.append(
                "the question is in a script without spaces between words: "
                "the fuzzy leg answered instead of the text leg"
            )
            legs = {("fuzzy" if name == "text" else name): w for name, w in legs.items()}
        limit, offset = request.window
        ask = Ask(
            question=request.question,
            language=request.language,
            legs=legs,
            fusion=request.fusion,
            limit=limit,
            offset=offset,
            filters=request.filters,
        )
        prepared = _Prepared(request=request, ask=ask, notes=tuple(notes))
        if "vector" not in legs:
            return prepared
        if refused is not None:
            return prepared.having(Leg(name="vector", status="failed", reason=str(refused)))
        chosen = self._chosen[request.corpus.name]
        choice = chosen.choice
        if choice.reason:
            prepared = prepared.asking(ask, choice.reason)
        try:
            vector = self._embedder(choice).embed_question(request.question.words)
        except EmbeddingError as error:
            return prepared.having(Leg(name="vector", status="failed", reason=str(error)))
        if vector.shape != (choice.dimensions,):
            raise WrongDimensions(
                f"the question's vector has shape {vector.shape}, but the vectors of "
                f"{choice.name!r} have {choice.dimensions} dimensions"
            )
        if request.fusion == "calibrated" and len(legs) > 1:
            legs = {**legs, "vector": legs["vector"] * _stretch(choice)}
        model = AskedModel(choice.name, choice.dimensions, choice.index_kind)
        ask = replace(ask, legs=legs, model=model, vector=vector)
        return replace(prepared, ask=ask, chosen=chosen)

    def _run(self, work: UnitOfWork, prepared: _Prepared) -> SearchPage:
        """Search; when a leg fails or finds nothing, search again in the way that is left.

        Raises:
            _ModelChanged: The question's vector is of a model that is no longer the corpus's.
        """
        prepared, answer = self._searched(work, prepared)
        if answer is None:
            return self._explainable(prepared, None)
        prepared, answer = self._without_quotes(work, prepared, answer)
        if "text" not in prepared.ask.legs or answer.candidates.get("text") or answer.kept == 0:
            return self._explainable(prepared, answer)
        if not answer.words_asked:
            reason = "the question has only words too common or too long to be looked up"
            return self._explainable(
                prepared.having(Leg(name="text", status="skipped", reason=reason)), answer
            )
        return self._fuzzy_instead(work, prepared, answer)

    def _fuzzy_instead(self, work: UnitOfWork, prepared: _Prepared, answer: Answer) -> SearchPage:
        """No passage holds a word, so it was a typo; what was found stays if this fails."""
        reason = "no passage holds a word of the question"
        legs = {("fuzzy" if n == "text" else n): w for n, w in prepared.ask.legs.items()}
        prepared = prepared.having(Leg(name="text", status="ok", reason=reason))
        instead = prepared.asking(replace(prepared.ask, legs=legs), f"{reason}: fuzzy stood in")
        try:
            instead, found = self._searched(work, instead)
        except DataLayerError as error:
            status: Status = "timed_out" if isinstance(error, StatementTimeout) else "failed"
            return self._explainable(
                prepared.having(Leg(name="fuzzy", status=status, reason=str(error))), answer
            )
        return self._explainable(instead, found)

    def _searched(self, work: UnitOfWork, prepared: _Prepared) -> tuple[_Prepared, Answer | None]:
        """Search with the legs that can; no answer where there are none."""
        if not prepared.ask.legs:
            return prepared, None
        try:
            answer = self._answer(work, prepared)
        except DBAPIError as error:
            for leg in self._diagnosed(work, prepared, error):
                prepared = prepared.having(leg)
            answer = self._again(work, prepared)
        if prepared.chosen is None or "vector" not in prepared.ask.legs:
            return prepared, answer
        if answer.model != prepared.chosen.state:
            raise _ModelChanged
        name, corpus = prepared.chosen.choice.name, prepared.request.corpus
        if answer.candidates.get("vector") or work.embeddings.has_vectors(corpus, name):
            return prepared, answer
        reason = (
            f"there are no vectors of the model {name!r}; "
            f"make them with: pgcorpus embed --corpus {corpus.name}"
        )
        prepared = prepared.having(Leg(name="vector", status="skipped", reason=reason))
        return prepared, self._answer(work, prepared) if prepared.ask.legs else None

    def _without_quotes(
        self, work: UnitOfWork, prepared: _Prepared, answer: Answer
    ) -> tuple[_Prepared, Answer]:
        """When no passage holds what the question quotes: search for its words."""
        question = prepared.ask.question
        if answer.kept != 0 or question.relaxed == question:
            return prepared, answer
        relaxed = prepared.asking(
            replace(prepared.ask, question=question.relaxed),
            "no passage holds what the question quotes: its words were searched for",
        )
        relaxed, by_words = self._searched(work, relaxed)
        # Where nothing is left nevertheless, it was the filters.
        if by_words is None or by_words.kept == 0:
            return prepared, answer
        return relaxed, by_words

    def _explainable(self, prepared: _Prepared, answer: Answer | None) -> SearchPage:
        """The page; where a statement was run, it can explain itself."""
        if answer is None or not answer.statement.shape.legs:
            return _page(prepared, answer)
        return _page(prepared, answer, Explainer(partial(self._explain, answer)))

    def _explain(self, answer: Answer) -> Explanation:
        with self._database.unit_of_work() as work:
            plan = work.searches.explain(answer.statement)
        statement = answer.statement
        return Explanation(
            statement=statement.sql,
            parameters={
                name: f"a vector of {len(value)}" if isinstance(value, np.ndarray) else value
                for name, value in statement.values.items()
                if f"%({name})s" in statement.sql
            },
            settings=statement.settings,
            plan=plan,
        )

    def _diagnosed(
        self, work: UnitOfWork, prepared: _Prepared, error: DBAPIError
    ) -> tuple[Leg, ...]:
        """The legs that made a search fail, when others are left; else the failure, raised."""
        ask = prepared.ask
        if error.connection_invalidated:
            raise error
        if isinstance(error.orig, UndefinedObject):  # the caller's mistake, not a leg's
            raise _as_search_error(error, prepared.request) from error
        work.rollback()
        failed = self._failures(work, prepared.request, ask) if len(ask.legs) > 1 else ()
        if len(ask.legs) == 1 or len(failed) == len(ask.legs):
            raise _as_search_error(error, prepared.request) from error
        return failed

    def _answer(self, work: UnitOfWork, prepared: _Prepared) -> Answer:
        return work.searches.answer(prepared.request.corpus, prepared.ask)

    def _again(self, work: UnitOfWork, prepared: _Prepared) -> Answer:
        try:
            return self._answer(work, prepared)
        except DBAPIError as error:
            raise _as_search_error(error, prepared.request) from error

    def _failures(self, work: UnitOfWork, request: Request, ask: Ask) -> tuple[Leg, ...]:
        """Each leg alone: which of them is it?"""
        failed = []
        for name, weight in ask.legs.items():
            try:
                work.searches.answer(request.corpus, replace(ask, legs={name: weight or 1.0}))
            except DBAPIError as error:
                if error.connection_invalidated:
                    raise
                late = isinstance(error.orig, QueryCanceled)
                failed.append(
                    Leg(
                        name=name,  # type: ignore[arg-type]
                        status="timed_out" if late else "failed",
                        reason=str(_as_search_error(error, request)),
                    )
                )
                work.rollback()
        return tuple(failed)

    def _embedder(self, choice: Choice) -> Embedder:
        if self._given is not None:
            return self._given
        if choice.name not in self._embedders:
            self._embedders[choice.name] = embedder_for(
                choice.name, choice.dimensions, choice.provider, self._database.settings
            )
        return self._embedders[choice.name]

    def _given_name(self) -> str | None:
        return None if self._given is None else self._given.model_name


class SearchService(_Searching):
    """Searches any corpus.

    Args:
        database: Where the passages are.
        embedder: Makes the question's vector; by default that of the corpus's active model.
    """

    def search(self, question: str, *, corpus: str, **options: Unpack[SearchOptions]) -> SearchPage:
        """Find the passages that answer a question best.

        Args:
            question: In the grammar of web searches: words, ``"a phrase"``, ``-word``, ``or``.
            corpus: Its name.
            options: See ``SearchOptions``.

        Returns:
            The page. A leg that could not answer is reported on it, and the others answer.

        Raises:
            SearchError: The question is empty, or the corpus, a filter, the mode, the language or
                another argument is not known.
            DatabaseUnavailable: The database did not answer.
        """
        started = time.perf_counter()
        request = _request(question, corpus, options)
        for _ in range(MOST_SWITCHES):
            refused = None
            if self._needs_choice(request):
                with self._database.unit_of_work() as work:
                    refused = self._choose(work, request)
            prepared = self._prepare(request, refused)
            try:
                with self._database.unit_of_work() as work:
                    page = self._run(work, prepared)
                    work.commit()  # a rollback would make psycopg forget prepared statements
            except _ModelChanged:
                self._chosen.pop(request.corpus.name, None)
                continue
            page = _reranked(page, request)
            self._log.note(page, (time.perf_counter() - started) * 1000)
            return page
        raise SearchError(SWITCHING)


class AsyncSearchService(_Searching):
    """Searches any corpus, for asyncio: the same statements, awaited."""

    async def search(
        self, question: str, *, corpus: str, **options: Unpack[SearchOptions]
    ) -> SearchPage:
        """As ``SearchService.search``. The question is embedded in a thread of its own."""
        started = time.perf_counter()
        request = _request(question, corpus, options)
        for _ in range(MOST_SWITCHES):
            refused = None
            if self._needs_choice(request):
                async with self._database.async_unit_of_work() as work:
                    refused = await work.run(self._choose, request)
            prepared = await asyncio.to_thread(self._prepare, request, refused)
            try:
                async with self._database.async_unit_of_work() as work:
                    page = await work.run(self._run, prepared)
                    await work.commit()
            except _ModelChanged:
                self._chosen.pop(request.corpus.name, None)
                continue
            page = await asyncio.to_thread(_reranked, page, request)
            self._log.note(page, (time.perf_counter() - started) * 1000)
            return page
        raise SearchError(SWITCHING)


def _request(question: str, corpus: str, options: SearchOptions) -> Request:
    given: Any = {name: value for name, value in options.items() if value is not None}
    return Request(
        asked=question, question=Question.parse(question), corpus=corpora.named(corpus), **given
    )


def _stretch(choice: Choice) -> float:
    """What makes a model's cosines spread like those that the weights were found with."""
    if choice.cosine_spread is None:
        return 1.0
    return min(max(REFERENCE_SPREAD / choice.cosine_spread, 1 / MOST_STRETCHED), MOST_STRETCHED)


def _without(legs: Mapping[str, float], *names: str) -> dict[str, float]:
    return {name: weight for name, weight in legs.items() if name not in names}


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(number: object, low: int, high: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and low <= number <= high


def _as_search_error(error: DBAPIError, request: Request) -> DataLayerError:
    """Why a search failed, for a caller."""
    if isinstance(error.orig, UndefinedObject):
        return InvalidSearch(
            f"there is no text search configuration {request.language!r}; psql lists them with \\dF"
        )
    return translate(error) or SearchError(str(error.orig))


def _reranked(page: SearchPage, request: Request) -> SearchPage:
    """The page in the order of the reranker, cut to what was asked for."""
    if request.rerank is None:
        return page
    cut = slice(request.offset, request.offset + request.limit)
    try:
        scores = [float(score) for score in request.rerank(page.question, page.hits)]
        if len(scores) != len(page.hits) or not all(map(math.isfinite, scores)):
            raise ValueError(  # noqa: TRY301 - one way out for all that a reranker can do wrong
                f"{len(page.hits)} hits need as many finite scores, not {scores[:10]}"
            )
    except Exception as error:  # noqa: BLE001 - whatever a caller's function raises
        note = f"the reranker failed, so hits are in the order of the legs: {error!r}"
        notes = "; ".join(each for each in (page.note, note) if each)
        return replace(page, hits=page.hits[cut], degraded=True, note=notes)
    scored = [
        replace(hit, score=score, scores={**hit.scores, "rerank": score})
        for hit, score in zip(page.hits, scores, strict=True)
    ]
    best = sorted(scored, key=lambda hit: hit.score, reverse=True)
    return replace(page, hits=tuple(best[cut]))


def _page(
    prepared: _Prepared,
    answer: Answer | None,
    explainer: Explainer | None = None,
) -> SearchPage:
    request, ask = prepared.request, prepared.ask
    notes = [request.question.note, *prepared.notes]
    legs = list(prepared.silent)
    if answer is not None:
        named = {leg.name for leg in legs}
        legs += [_leg(name, answer, ask) for name in ask.legs if name not in named]
        if len(answer.hits) < request.limit + request.offset - ask.offset:
            notes.append(_why_fewer(request, answer))
        if request.offset and ask.depth > DEPTHS[0]:
            notes.append(
                f"this far down, hits are ranked among {ask.depth} candidates of each leg; "
                "they may repeat hits of the first pages"
            )
        if request.offset and request.rerank and ask.limit > RERANKED:
            notes.append(
                f"this far down, {ask.limit} hits are reranked; they may repeat those of the first "
                "pages"
            )
    order = get_args(LegName)
    return SearchPage(
        corpus=request.corpus.name,
        mode=request.mode,
        fusion=request.fusion,
        question=request.asked,
        degraded=any(leg.status != "ok" for leg in legs),
        legs=tuple(sorted(legs, key=lambda leg: order.index(leg.name))),
        hits=() if answer is None else answer.hits,
        note="; ".join(note for note in notes if note) or None,
        explainer=explainer,
    )


def _leg(name: str, answer: Answer, ask: Ask) -> Leg:
    reasons = []
    if name == "text" and not answer.words_known:
        reasons.append(
            "no statistics of words that this role may read, so all weigh the same: run ANALYZE"
        )
    if name == "text" and answer.statement.look_up and answer.statement.look_up.left_out:
        reasons.append(f"scored by the {MAX_WORDS} rarest words of the question")
    if name == "fuzzy" and answer.statement.stops_early:
        reasons.append(
            f"of so many passages only those more alike than {LARGE_FUZZY_THRESHOLD} are found"
        )
    compared = answer.statement.values["fuzzy_question"]
    if name == "fuzzy" and compared != ask.question.words:
        reasons.append(f"compared by {compared!r} of the question")
    return Leg(
        name=name,  # type: ignore[arg-type]
        status="ok",
        candidates=answer.candidates.get(name, 0),
        duration_ms=answer.durations_ms.get(name),
        reason="; ".join(reasons) or None,
    )


def _why_fewer(request: Request, answer: Answer) -> str:
    """Why a page is not full."""
    found = sum(answer.candidates.values())
    if request.filters and answer.kept is not None:
        passages = "passage" if answer.kept == 1 else "passages"
        return f"fewer hits than asked for: the filters keep {answer.kept} {passages}"
    if not found:
        return "no passage was found"
    return "fewer hits than asked for: the legs found no more passages"
