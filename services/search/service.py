"""Searches: vector, text, fuzzy and hybrid, over any corpus, with honest results."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Unpack

import numpy as np
from psycopg.errors import QueryCanceled, UndefinedObject
from sqlalchemy.exc import DBAPIError

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import (
    DataLayerError,
    EmbeddingError,
    InvalidSearch,
    NotPermitted,
    SearchError,
    StatementTimeout,
    WrongDimensions,
    translate,
    translate_errors,
)
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.answer import Answer, ModelState, Statement
from pgcorpus.db.search.ask import Ask
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.search.legs import AskedModel
from pgcorpus.db.search.page import Explainer, Explanation, Hit, Leg, SearchPage, Status
from pgcorpus.db.standbys import Reader
from pgcorpus.db.tracing import (
    DATA_SOURCE,
    DEGRADED,
    MODE,
    QUERY_TEXT,
    REQUEST_MODEL,
    RETRIEVAL,
    TOP_K,
    shows_texts,
    span,
)
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.awaited import Awaited, awaited
from pgcorpus.services.choices import MODES, Mode
from pgcorpus.services.embedding.choice import Choice, choose
from pgcorpus.services.embedding.embedder import Embedder, Embedders
from pgcorpus.services.embedding.usage import embed_question
from pgcorpus.services.search.context import Context, ContextRequest
from pgcorpus.services.search.log import SearchLog
from pgcorpus.services.search.page import find_deeper, finish_page, page_of
from pgcorpus.services.search.request import (
    LEGS_OF,
    RERANKED,
    Chosen,
    Prepared,
    Request,
    Reranker,
    SearchOptions,
)
from pgcorpus.services.search.snippets import add_snippets

if TYPE_CHECKING:
    from opentelemetry.trace import Span

__all__ = [
    "LEGS_OF",
    "MODES",
    "RERANKED",
    "AsyncSearchService",
    "Mode",
    "Request",
    "Reranker",
    "SearchOptions",
    "SearchService",
]

REFERENCE_SPREAD: Final = 0.13
"""Standard deviation of the cosine between two passages with all-MiniLM-L6-v2: the mean over seven
collections, of which the weights of ``calibrated`` were found on four."""

FOREIGN: Final = 1 / 3
"""Factor of the vector leg's weight for questions in no language that its model knows. Chosen on
two collections: docs/decisions/0006-fusion.md has the figures."""

MOST_STRETCHED: Final = 3.0
"""A spread measured on unusual passages does not turn the weights over."""

MOST_SWITCHES: Final = 5
"""The number of times that a search begins anew because its corpus was given another model
meanwhile."""

SWITCHING: Final = "the corpus changed its model again and again during the search; try again"


class _ModelChanged(Exception):
    """The corpus was given another model, or the model was measured, since it was chosen."""


class SearchService:
    """Searches any corpus.

    Args:
        database: Where the passages are.
        embedder: Makes the question's vector; by default that of the corpus's active model.

    Attributes:
        embedders: Make the vectors of questions.
    """

    def __init__(self, database: Database, *, embedder: Embedder | None = None) -> None:
        self.embedders = Embedders(database.settings, embedder)
        self._database = database
        self._chosen: dict[str, Chosen] = {}
        self._log = SearchLog(database)

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
        request = Request.of(question, corpus, options)
        attributes = {DATA_SOURCE: request.corpus.name, TOP_K: request.limit, MODE: request.mode}
        with span(RETRIEVAL, request.corpus.name, attributes) as current:
            try:
                prepared, page = self._answer_request(request)
            except DataLayerError as error:
                for observer in self._database.observers:
                    observer.note_failure(request, error)
                raise
            if current is not None:
                _describe(current, prepared, page)
        seconds = time.perf_counter() - started
        self._log.note(page, seconds * 1000, request)
        for observer in self._database.observers:
            observer.note_search(prepared, page, seconds)
        return page

    def _answer_request(self, request: Request) -> tuple[Prepared, SearchPage]:
        """Answer a request by the model that its corpus has when the database answers."""
        reader = self._database.reader(after=request.after)
        for _ in range(MOST_SWITCHES):
            prepared = self._prepare(request, self._choose(request, reader))
            try:
                with translate_errors():
                    page = self._run(reader, prepared)
            except _ModelChanged:
                self._chosen.pop(request.corpus.name, None)
                continue
            if request.cuts_windows:
                page = self._database.call(finish_page, page, request)
            if request.snippets and page.hits:
                page = self._with_snippets(reader, page, request)
            return prepared, page
        raise SearchError(SWITCHING)

    def plan(
        self,
        question: str,
        *,
        corpus: str,
        analyze: bool = False,
        **options: Unpack[SearchOptions],
    ) -> Explanation:
        """Plan a search again: return its statement and PostgreSQL's plan of it.

        Args:
            question: As of ``search``.
            corpus: As of ``search``.
            analyze: Run the statement, too, and tell times and buffers.
            options: As of ``search``.

        Raises:
            SearchError: As of ``search``; or no leg can answer, so that there is no statement.
            DatabaseUnavailable: The database did not answer.
        """
        request = Request.of(question, corpus, options)
        reader = self._database.reader(after=request.after)
        prepared = self._prepare(request, self._choose(request, reader))
        with translate_errors():
            ranker = reader.ranker(request.scope)
            statement = ranker.prepare(request.corpus, prepared.ask)
        if not statement.shape.legs:
            raise SearchError("there is nothing to explain: no leg can answer")
        return self._explain(statement, request.scope, analyze=analyze)

    def context(
        self,
        hits: Hit | Iterable[Hit],
        *,
        before: int = 2,
        after: int = 2,
        max_tokens: int | None = None,
        scope: Scope | None = None,
    ) -> Context:
        """Collect the passages around hits, ready for a prompt.

        Args:
            hits: One hit, or several of one corpus, best first: a page's ``hits``.
            before: Passages before each hit, 0 to 1,000.
            after: Passages after each hit, 0 to 1,000.
            max_tokens: Of ``Context.text``, at most, estimated by
                ``pgcorpus.services.embedding.tokens``. Hits come first, then the
                passages nearest to one.
            scope: As of the search.

        Returns:
            Windows that overlap or touch are one; hits that are gone meanwhile are named.

        Raises:
            InvalidSearch: The corpus's passages do not follow one another, hits are of several
                corpora, or a number is not allowed.
            MissingScope: The corpus has a scope, and none was given.
            DatabaseUnavailable: The database did not answer.
        """
        request = ContextRequest.of(hits, before, after, max_tokens)
        # Of the primary, which has whatever the search found.
        with self._database.unit_of_work(scope) as work:
            context = request.answer(work)
            work.commit()  # a rollback would make psycopg forget prepared statements
        return context

    def flush_log(self) -> None:
        """Write the timings of searches that are not yet in ``query_performance_log``."""
        self._database.call(self._log.flush)

    def _choose(self, request: Request, reader: Reader) -> Chosen | NotPermitted | None:
        """Choose the model of the vector leg, or say why the role may not know the models.

        It is kept from search to search: that it is still the corpus's is seen in the snapshot of
        each search.
        """
        corpus = request.corpus
        if "vector" not in LEGS_OF[request.mode]:
            return None
        if (kept := self._chosen.get(corpus.name)) is not None:
            return kept
        try:
            chosen = reader.read(partial(self._find_chosen, corpus))
        except NotPermitted as refused:
            return refused
        self._chosen[corpus.name] = chosen
        return chosen

    def _find_chosen(self, corpus: Corpus, work: UnitOfWork) -> Chosen:
        active = work.models.find_active_model(corpus.name)
        choice = choose(work, corpus, self._database.settings, self.embedders.model_name)
        state = ModelState(active.name if active else None, choice.index_kind, choice.cosine_spread)
        return Chosen(choice, state)

    def _prepare(self, request: Request, chosen: Chosen | NotPermitted | None) -> Prepared:
        """Embed the question, outside of any transaction.

        Args:
            request: The search.
            chosen: The model of its vector leg, or why none could be chosen.
        """
        legs: Mapping[str, float] = request.legs
        notes: list[str] = []
        if request.words_leg == "fuzzy" and "text" in legs:
            notes.append(
                "the question is in a script without spaces between words: "
                "the fuzzy leg answered instead of the text leg"
            )
            legs = {("fuzzy" if name == "text" else name): w for name, w in legs.items()}
        limit, offset = request.window
        options = {
            **request.options,
            "limit": limit,
            "offset": offset,
            "learned": request.uses_learned,
        }
        options |= {"group_by": None} if request.cuts_windows else {}
        ask = Ask(question=request.question, legs=legs, **options)
        prepared = Prepared(request=request, ask=ask, notes=tuple(notes))
        if chosen is None:
            return prepared
        if isinstance(chosen, NotPermitted):
            return prepared.having(Leg(name="vector", status="failed", reason=str(chosen)))
        choice = chosen.choice
        prepared = replace(prepared, stand_in=choice.reason)
        try:
            vector = self._database.call(self._embed, choice, request.question.words)
        except EmbeddingError as error:
            return prepared.having(Leg(name="vector", status="failed", reason=str(error)))
        if vector.shape != (choice.dimensions,):
            raise WrongDimensions(
                f"the question's vector has shape {vector.shape}, but the vectors of "
                f"{choice.name!r} have {choice.dimensions} dimensions"
            )
        model = AskedModel(choice.name, choice.dimensions, choice.index_kind, choice.languages)
        ask = replace(ask, model=model, vector=vector)
        if request.fusion == "calibrated":
            foreign = 1.0 if request.weights else FOREIGN
            ask = replace(ask, stretch=stretch(choice), foreign=foreign)
        return replace(prepared, ask=ask, chosen=chosen)

    def _embed(self, choice: Choice, words: str) -> np.ndarray:
        return embed_question(self.embedders.of(choice), words)

    def _run(self, reader: Reader, prepared: Prepared) -> SearchPage:
        """Search; when a leg fails or finds nothing, search again in the way that is left.

        Raises:
            _ModelChanged: The question's vector is of a model that is no longer the corpus's.
        """
        prepared, answer = self._search_legs(reader, prepared)
        if answer is None:
            return page_of(prepared, None)
        prepared, answer = self._without_quotes(reader, prepared, answer)
        prepared, answer = self._with_words(reader, prepared, answer)
        prepared, answer = self._with_more_groups(reader, prepared, answer)
        explainer = Explainer(partial(self._explain, answer.statement, prepared.request.scope))
        return page_of(prepared, answer, explainer if answer.statement.shape.legs else None)

    def _with_words(
        self, reader: Reader, prepared: Prepared, answer: Answer
    ) -> tuple[Prepared, Answer]:
        """Say why the text leg found nothing, and let the fuzzy leg stand in for it."""
        if "text" not in prepared.ask.legs or answer.candidates.get("text") or answer.kept == 0:
            return prepared, answer
        if not answer.words_asked:
            reason = "the question has only words too common or too long to be looked up"
            return prepared.having(Leg(name="text", status="skipped", reason=reason)), answer
        return self._fuzzy_instead(reader, prepared, answer)

    def _fuzzy_instead(
        self, reader: Reader, prepared: Prepared, answer: Answer
    ) -> tuple[Prepared, Answer]:
        """No passage holds a word, so it was a typo; what was found stays if this fails."""
        reason = "no passage holds a word of the question"
        legs = {("fuzzy" if n == "text" else n): w for n, w in prepared.ask.legs.items()}
        prepared = prepared.having(Leg(name="text", status="ok", reason=reason))
        instead = prepared.asking(replace(prepared.ask, legs=legs), f"{reason}: fuzzy stood in")
        try:
            instead, found = self._search_legs(reader, instead)
        except DataLayerError as error:
            status: Status = "timed_out" if isinstance(error, StatementTimeout) else "failed"
            return prepared.having(Leg(name="fuzzy", status=status, reason=str(error))), answer
        return (prepared, answer) if found is None else (instead, found)

    def _with_more_groups(
        self, reader: Reader, prepared: Prepared, answer: Answer
    ) -> tuple[Prepared, Answer]:
        """Search deeper while the candidates are of too few groups; keep these if that fails."""
        while (depth := find_deeper(prepared.ask, answer)) is not None:
            ask = replace(prepared.ask, least_depth=depth)
            if answer.groups < ask.limit:  # so does the first page
                ask = replace(ask, least_first_depth=depth)
            try:
                deeper, found = self._search_legs(reader, replace(prepared, ask=ask))
            except DataLayerError as error:
                note = f"the best {prepared.ask.depth} hits alone were grouped: {error}"
                return prepared.asking(prepared.ask, note), answer
            if found is None:
                break
            prepared, answer = deeper, found
        return prepared, answer

    def _with_snippets(self, reader: Reader, page: SearchPage, request: Request) -> SearchPage:
        """Mark the words of the question in the hits that are shown, and in no others."""
        ids = [hit.id for hit in page.hits]

        def find(work: UnitOfWork) -> dict[Any, str]:
            return work.searches.find_snippets(request.corpus, ids, request.question.words)

        marked = reader.read(find, request.scope)
        return add_snippets(page, marked, request.markers)

    def _search_legs(self, reader: Reader, prepared: Prepared) -> tuple[Prepared, Answer | None]:
        """Search with the legs that can; no answer where there are none."""
        if not prepared.ask.legs:
            return prepared, None
        try:
            answer = self._answer(reader, prepared)
        except DBAPIError as error:
            for leg in self._find_failed_legs(reader, prepared, error):
                prepared = prepared.having(leg)
            answer = self._again(reader, prepared)
        if prepared.chosen is None or "vector" not in prepared.ask.legs:
            return prepared, answer
        if answer.model != prepared.chosen.state:
            raise _ModelChanged
        name, corpus = prepared.chosen.choice.name, prepared.request.corpus
        if answer.candidates.get("vector"):
            return prepared, answer
        find = partial(self._find_lack_of_vectors, corpus, name)
        reason = reader.read(find, prepared.request.scope)
        if reason is None:
            return prepared, answer
        prepared = prepared.having(Leg(name="vector", status="skipped", reason=reason))
        if not prepared.ask.legs:
            instead = prepared.request.words_leg
            prepared = prepared.asking(
                replace(prepared.ask, legs={instead: 1.0}),
                f"the {instead} leg stood in for the vector leg",
            )
        return self._search_legs(reader, prepared)

    @staticmethod
    def _find_lack_of_vectors(corpus: Corpus, model: str, work: UnitOfWork) -> str | None:
        """Say why no vector was found, where the model has none."""
        if work.embeddings.has_vectors(corpus, model):
            return None
        if work.searches.is_empty(corpus):
            return f"nothing is stored in {corpus.name} yet"
        active = work.models.find_active_model(corpus.name)
        name = model if active is None else active.name
        if name != model and work.embeddings.has_vectors(corpus, name):
            # Nobody is sent to make others beside them; the page's note says why not these.
            return f"there are no vectors of the model {model!r}; there are of {name!r}"
        return (
            f"there are no vectors of the model {model!r}; "
            f"make them with: pgcorpus embed --corpus {corpus.name}; "
            "from then on they are made as texts are written, by: pgcorpus worker"
        )

    def _without_quotes(
        self, reader: Reader, prepared: Prepared, answer: Answer
    ) -> tuple[Prepared, Answer]:
        """Search for the words of a quotation that no passage holds."""
        question = prepared.ask.question
        if answer.kept != 0 or question.as_plain_words == question:
            return prepared, answer
        relaxed = prepared.asking(
            replace(prepared.ask, question=question.as_plain_words),
            "no passage holds what the question quotes: its words were searched for",
        )
        relaxed, by_words = self._search_legs(reader, relaxed)
        # Where nothing is left nevertheless, it was the filters.
        if by_words is None or by_words.kept == 0:
            return prepared, answer
        return relaxed, by_words

    def _explain(
        self, statement: Statement, scope: Scope | None, *, analyze: bool = True
    ) -> Explanation:
        with translate_errors():
            plan = self._database.reader().ranker(scope).explain(statement, analyze=analyze)
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

    def _find_failed_legs(
        self, reader: Reader, prepared: Prepared, error: DBAPIError
    ) -> tuple[Leg, ...]:
        """Find the legs that made a search fail; raise the failure where no other leg is left."""
        ask = prepared.ask
        if error.connection_invalidated:
            raise error
        if isinstance(error.orig, UndefinedObject):  # the caller's mistake, not a leg's
            raise _as_search_error(error, prepared.request) from error
        failed = self._failures(reader, prepared.request, ask) if len(ask.legs) > 1 else ()
        if len(ask.legs) == 1 or len(failed) == len(ask.legs):
            raise _as_search_error(error, prepared.request) from error
        return failed

    def _answer(self, reader: Reader, prepared: Prepared) -> Answer:
        request = prepared.request
        return reader.ranker(request.scope).answer(request.corpus, prepared.ask)

    def _again(self, reader: Reader, prepared: Prepared) -> Answer:
        try:
            return self._answer(reader, prepared)
        except DBAPIError as error:
            raise _as_search_error(error, prepared.request) from error

    def _failures(self, reader: Reader, request: Request, ask: Ask) -> tuple[Leg, ...]:
        """Run each leg alone, to see which of them fails."""
        failed = []
        ranker = reader.ranker(request.scope)
        for name, weight in ask.legs.items():
            try:
                ranker.answer(request.corpus, replace(ask, legs={name: weight or 1.0}))
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
        return tuple(failed)


class AsyncSearchService(Awaited[SearchService]):
    """Searches any corpus, for asyncio."""

    def __init__(self, database: Database, *, embedder: Embedder | None = None) -> None:
        super().__init__(database, SearchService(database, embedder=embedder))

    search = awaited(SearchService.search)
    plan = awaited(SearchService.plan)
    context = awaited(SearchService.context)
    flush_log = awaited(SearchService.flush_log)


def _describe(current: Span, prepared: Prepared, page: SearchPage) -> None:
    """Say on the span of a search what it was, and of texts only what may be shown."""
    current.set_attribute(DEGRADED, page.degraded)
    if prepared.chosen is not None:
        current.set_attribute(REQUEST_MODEL, prepared.chosen.choice.name)
    if shows_texts():
        current.set_attribute(QUERY_TEXT, page.question)


def stretch(choice: Choice) -> float:
    """Return the factor that spreads a model's cosines like those the weights were found with."""
    if choice.cosine_spread is None:
        return 1.0
    return min(max(REFERENCE_SPREAD / choice.cosine_spread, 1 / MOST_STRETCHED), MOST_STRETCHED)


def _as_search_error(error: DBAPIError, request: Request) -> DataLayerError:
    """Translate the failure of a search for its caller."""
    if isinstance(error.orig, UndefinedObject):
        return InvalidSearch(
            f"there is no text search configuration {request.language!r}; psql lists them with \\dF"
        )
    return translate(error) or SearchError(str(error.orig))
