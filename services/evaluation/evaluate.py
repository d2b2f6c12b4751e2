"""The quality of rankings, measured on a test collection in a schema of its own."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import Any, Final

import numpy as np

from pgcorpus.db.choices import FUSIONS
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import (
    DatabaseNotReady,
    EmbeddingError,
    EmptyQuestion,
    ImportFailed,
    InvalidSearch,
    StatementTimeout,
    TextsRefused,
)
from pgcorpus.db.models.embeddings import EmbeddingModel
from pgcorpus.db.scratch import analyze, scratch_database
from pgcorpus.db.search.page import SearchPage
from pgcorpus.db.search.question import Question
from pgcorpus.services.choices import MODES, Mode
from pgcorpus.services.embedding.embed import EmbeddingService
from pgcorpus.services.embedding.embedder import Embedder, Embedders, unit_rows
from pgcorpus.services.embedding.usage import embed_documents
from pgcorpus.services.evaluation.beir import Collection, Document, Query
from pgcorpus.services.evaluation.loading import (
    CORPUS,
    PATH,
    Loaded,
    load_collection,
    loading_of,
    scopes_of,
)
from pgcorpus.services.evaluation.metrics import ndcg, recall, reciprocal_rank
from pgcorpus.services.importers.language import AUTO, configuration_of, postgresql_of
from pgcorpus.services.ops.switch import ModelSwitch
from pgcorpus.services.search.service import LEGS_OF, Request, SearchOptions, SearchService

DEPTH: Final = 100
"""Hits that the measures of quality are taken from."""

PAGE: Final = 10
"""Hits of the searches that are timed: a usual page."""

MAX_TIMED: Final = 500
WARM_UP: Final = 20
SAMPLE_DOCUMENTS: Final = 200
SAMPLE_CHARACTERS: Final = 500
"""Characters that a collection's language is told from."""

GIVEN: Final = "given"
"""Provider of models that are known by vectors alone."""

KNOWN_LENGTHS: Final = {384: "all-MiniLM-L6-v2"}
"""Length → the model that unnamed vectors are taken to be of; the name changes no figure."""

DEFAULT: Final = "default"
"""The fusion that a caller gets who names none."""

SCRATCH: Final = "scratch schema"
"""The first stage, which begins when all that was asked is known to be possible."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Result:
    """The figures of one mode and fusion, means over all queries.

    Attributes:
        mode: As ``SearchService`` names it.
        fusion: ``default``, or the fusion that was asked for.
        ndcg: nDCG@10.
        recall_10: Recall@10.
        recall_100: Recall@100.
        mrr: Mean reciprocal rank, among the first 100.
        p50_ms: Median time of a search for 10 hits.
        p95_ms: 95th percentile of the same.
    """

    mode: str
    fusion: str
    ndcg: float
    recall_10: float
    recall_100: float
    mrr: float
    p50_ms: float
    p95_ms: float

    def as_json(self) -> dict[str, Any]:
        """Return the figures under their usual names."""
        return {
            "mode": self.mode,
            "fusion": self.fusion,
            "ndcg@10": self.ndcg,
            "recall@10": self.recall_10,
            "recall@100": self.recall_100,
            "mrr": self.mrr,
            "p50_ms": round(self.p50_ms, 3),
            "p95_ms": round(self.p95_ms, 3),
        }


@dataclass(kw_only=True)
class Evaluation:
    """The measurements of a collection.

    Attributes:
        collection: Its name.
        corpus: What it was loaded as.
        documents: How many.
        queries: How many were asked: those with a relevant document.
        language: Text search configuration of the documents.
        model: Whose vectors, or None where no mode needed any.
        results: One per mode and fusion.
        notes: What a reader should know, a sentence each.
    """

    collection: str
    corpus: str
    documents: int
    queries: int
    language: str
    model: str | None
    results: list[Result] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the evaluation as the command line prints it."""
        return vars(self) | {"results": [result.as_json() for result in self.results]}


class GivenVectors:
    """Vectors of texts that are known in advance, as an embedder.

    Args:
        model_name: Name in the registry.
        texts: The texts; of equal ones the last counts.
        vectors: float of shape ``(len(texts), dimensions)``, no row all zeros.
    """

    def __init__(self, model_name: str, texts: Sequence[str], vectors: np.ndarray) -> None:
        self.model_name = model_name
        self.dimensions = int(vectors.shape[1])
        self.batch_size = max(1, len(texts))
        self._vectors = dict(zip(texts, unit_rows(vectors), strict=True))

    def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of *texts*, float32 of shape ``(len(texts), dimensions)``.

        Raises:
            TextsRefused: One of the texts has no vector.
        """
        try:
            vectors = [self._vectors[text] for text in texts]
        except KeyError as error:
            raise TextsRefused(f"no vector was given for the text {error}") from error
        return np.reshape(vectors, (len(texts), self.dimensions))

    def embed_question(self, text: str) -> np.ndarray:
        """Return the vector of *text*, float32 of shape ``(dimensions,)``.

        Raises:
            TextsRefused: It has none.
        """
        return np.asarray(self.embed_documents([text])[0])


class EvaluationService:
    """Loads a collection into a scratch schema, and asks all its questions.

    Args:
        database: As its owner. It lends its settings, and its registry the models that a new schema
            has not; its tables are not changed.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def evaluate(
        self,
        collection: Collection,
        *,
        corpus: str = "scratch",
        modes: Sequence[Mode] = (),
        language: str = AUTO,
        model: str | None = None,
        progress: Progress = lambda _stage, _done, _total: None,
    ) -> Evaluation:
        """Measure how well searches rank, and how long they take.

        Documents are cut as the importer of documentation cuts files, whatever their length, and
        questions go through ``SearchService``: their text has the meaning it has there, quotes and
        minus signs included.

        Args:
            collection: Documents, questions and judgments.
            corpus: How its texts are cut into passages; one of ``LOADINGS``.
            modes: Modes of search; by default all.
            language: A text search configuration, in which documents are stored and queries read,
                or ``auto``: documents are stored in that of most of them, and queries name none, so
                that they are read in those of the corpus.
            model: Whose vectors those of the collection are; where it has none, what to embed with.
            progress: Called with a stage's name, what is done of it and what it has in all. What it
                raises ends the evaluation.

        Returns:
            One result per mode, for ``hybrid`` one per fusion. Modes that need vectors are left
            out, with a note, where there are none.

        Raises:
            UnknownCorpus: A collection cannot be loaded as that.
            InvalidSearch: A mode is not known or none is left, or the vectors are not as long as
                the model's.
            UnknownModel: The model is not registered.
            ImportFailed: No query holds a word.
            NotPermitted: The login may make no scratch schema.
            EmbeddingError: The model could not be asked.
        """
        loading = loading_of(corpus)
        unused = []
        if not loading.takes_vectors and collection.vectors is not None:
            collection = replace(collection, vectors=None)
            unused = ["the collection's vectors are of whole documents, and not used for chunks"]
        asked, left_out = _modes(modes, vectors=collection.vectors is not None or model is not None)
        words = [_words(query) for query in collection.queries]
        if not any(words):
            raise ImportFailed("none of the queries holds a word to search for")
        if not any("vector" in LEGS_OF[mode] for mode in asked):
            collection, model = replace(collection, vectors=None), None
        asked_in = None if language == AUTO else language
        progress(SCRATCH, 0, 1)
        with scratch_database(self._database) as scratch:
            progress(SCRATCH, 1, 1)
            found = self._model(scratch, collection, model)
            embedder = None if found is None else self._embedder(found, collection)
            if language == AUTO:
                language = _language_of(scratch, collection.documents)
            evaluation = Evaluation(
                collection=collection.name,
                corpus=CORPUS,
                documents=len(collection.documents),
                queries=len(collection.queries),
                language=language,
                model=None if found is None else found.name,
                notes=[*collection.notes, *unused, *left_out],
            )
            loaded = load_collection(
                scratch,
                collection,
                loading.config,
                language=language,
                model_name=evaluation.model,
                progress=partial(progress, "importing"),
            )
            if loaded.is_cut:
                evaluation.notes.append(
                    f"{len(collection.documents)} documents were cut into {loaded.passages} "
                    "passages; the best of each counts"
                )
            if embedder is not None and collection.vectors is None:
                _embed(scratch, embedder, partial(progress, "embedding documents"))
                embedder = _questions(embedder, words, partial(progress, "embedding queries"))
            analyze(scratch)
            run = _Run(
                SearchService(scratch, embedder=embedder),
                loaded,
                collection,
                [query for query, said in zip(collection.queries, words, strict=True) if said],
                asked_in,
            )
            for mode in asked:
                for fusion in _fusions(mode):
                    evaluation.results.append(run.measure(mode, fusion, progress))
            evaluation.notes += run.notes()
        return evaluation

    def _model(
        self, scratch: Database, collection: Collection, named: str | None
    ) -> EmbeddingModel | None:
        """Return the model of the documents' vectors, registered where it is not yet."""
        if collection.vectors is None and named is None:
            return None
        length = None if collection.vectors is None else collection.vectors.dimensions
        name = named or KNOWN_LENGTHS.get(length or 0, f"{GIVEN}-{length}")
        with scratch.unit_of_work() as work:
            seeded = work.models.find_model(name)
            model = seeded or self._own_model(name)
            if length is None:
                model = model or work.models.get_model(name)  # raises, with the names there are
                length = model.dimensions
        if model is None:
            return ModelSwitch(scratch).add(name, dimensions=length, provider=GIVEN)
        if model.dimensions != length:
            raise InvalidSearch(
                f"the collection's vectors have {length} dimensions and those of {name} have "
                f"{model.dimensions}; name the model that made them, with any new name"
            )
        if seeded is not None:
            return seeded
        return ModelSwitch(scratch).add(
            name,
            dimensions=length,
            provider=model.provider,
            index_kind=model.index_kind,
            languages=model.languages,
        )

    def _own_model(self, name: str) -> EmbeddingModel | None:
        """Return a model that the database has registered, and a new one has not."""
        try:
            with self._database.unit_of_work() as work:
                return work.models.find_model(name)
        except DatabaseNotReady:  # it has no schema, and so no models of its own
            return None

    def _embedder(self, model: EmbeddingModel, collection: Collection) -> Embedder:
        """Make the embedder early, as it may lack its key or its package."""
        if collection.vectors is None:
            return Embedders(self._database.settings).of(model)
        words = [_words(query) or "" for query in collection.queries]
        return GivenVectors(model.name, words, collection.vectors.queries)


class _Run:
    """The searches of one evaluation."""

    def __init__(
        self,
        service: SearchService,
        loaded: Loaded,
        collection: Collection,
        askable: Sequence[Query],
        language: str | None,
    ) -> None:
        self._service = service
        self._loaded = loaded
        self._collection = collection
        self._askable = askable
        self._language = language
        self._scopes = scopes_of(collection.documents)
        self._failures: Counter[str] = Counter()

    def measure(self, mode: Mode, fusion: str, progress: Progress) -> Result:
        """Ask every question for its quality, then some of them for their time."""
        name = mode if fusion == DEFAULT else f"{mode} ({fusion})"
        rankings: dict[str, list[str]] = {}
        for done, query in enumerate(self._askable):
            progress(name, done, len(self._askable))
            rankings[query.id] = self._ranking(self._ask(query, mode, fusion, DEPTH))
        progress(name, len(self._askable), len(self._askable))
        times = self._times(mode, fusion, partial(progress, f"{name}, timed"))
        judged = [
            (rankings.get(query.id, []), self._collection.judgments[query.id])
            for query in self._collection.queries
        ]
        return Result(
            mode=mode,
            fusion=fusion,
            ndcg=fmean(ndcg(*each, depth=10) for each in judged),
            recall_10=fmean(recall(*each, depth=10) for each in judged),
            recall_100=fmean(recall(*each, depth=DEPTH) for each in judged),
            mrr=fmean(reciprocal_rank(*each) for each in judged),
            p50_ms=float(np.percentile(times, 50)),
            p95_ms=float(np.percentile(times, 95)),
        )

    def notes(self) -> Iterator[str]:
        """Yield the failures, and the questions that were not asked."""
        if silent := len(self._collection.queries) - len(self._askable):
            yield f"queries without a word to search for, which score 0: {silent}"
        for failure, count in self._failures.items():
            yield f"searches that failed: {count}; {failure}"

    def _times(self, mode: Mode, fusion: str, progress: Callable[[int, int], None]) -> list[float]:
        """Measure the milliseconds of searches for a page, for at most ``MAX_TIMED`` questions."""
        chosen = [self._askable[row] for row in _spread(len(self._askable), MAX_TIMED)]
        for query in chosen[:WARM_UP]:
            self._ask(query, mode, fusion, PAGE)
        times = []
        for done, query in enumerate(chosen, start=1):
            start = time.perf_counter()
            self._ask(query, mode, fusion, PAGE)
            times.append((time.perf_counter() - start) * 1000)
            progress(done, len(chosen))
        return times

    def _ask(self, query: Query, mode: Mode, fusion: str, limit: int) -> SearchPage | None:
        options: SearchOptions = {"mode": mode, "limit": limit}
        if self._language is not None:
            options["language"] = self._language
        if fusion != DEFAULT:
            options["fusion"] = fusion  # type: ignore[typeddict-item]
        if query.scope is not None:
            scope = self._scopes.get(query.scope, "")  # no document has it
            options["filters"] = {"collection": scope}
        if self._loaded.is_cut:
            options |= {"group_by": PATH, "group_size": 1}
        try:
            page = self._service.search(query.text, corpus=CORPUS, **options)
        except StatementTimeout as error:
            self._failures[f"{mode}: {error}"] += 1
            return None
        for leg in page.legs:
            if leg.status in {"failed", "timed_out"}:
                self._failures[f"{mode}: the {leg.name} leg {leg.status}: {leg.reason}"] += 1
        return page

    def _ranking(self, page: SearchPage | None) -> list[str]:
        hits = page.hits if page is not None else ()
        places = [int(hit.metadata[PATH]) for hit in hits]
        return [self._collection.documents[place].id for place in places]


def _modes(asked: Sequence[Mode], *, vectors: bool) -> tuple[list[Mode], list[str]]:
    """Return the modes that can run, each once, and a note on those that cannot."""
    if unknown := set(asked) - set(MODES):
        raise InvalidSearch(f"there is no mode {min(unknown)!r}; known: {', '.join(MODES)}")
    wanted = [mode for mode in MODES if mode in asked or not asked]
    able = [mode for mode in wanted if vectors or "vector" not in LEGS_OF[mode]]
    if able == wanted:
        return able, []
    unable = ", ".join(mode for mode in wanted if mode not in able)
    cure = "the collection has no vectors; name a model to embed with: --model hashing"
    if not able:
        raise InvalidSearch(f"{unable} cannot be evaluated: {cure}")
    return able, [f"{unable} left out: {cure}"]


def _fusions(mode: Mode) -> list[str]:
    """List the fusions measured of a mode: only where legs are joined does the fusion matter."""
    if len(LEGS_OF[mode]) == 1:
        return [DEFAULT]
    return [DEFAULT, *(fusion for fusion in FUSIONS if fusion != Request.fusion)]


def _words(query: Query) -> str | None:
    """Return the text to embed for a question, or None for a question without a word."""
    try:
        return Question.parse(query.text).words
    except EmptyQuestion:
        return None


def _language_of(database: Database, documents: Sequence[Document]) -> str:
    sample = (documents[row] for row in _spread(len(documents), SAMPLE_DOCUMENTS))
    text = "\n".join(f"{each.title} {each.text}"[:SAMPLE_CHARACTERS] for each in sample)
    return configuration_of(text, postgresql=postgresql_of(database.engine.dialect))


def _spread(count: int, most: int) -> list[int]:
    """Choose at most *most* of the numbers below *count*, evenly apart."""
    return [int(row) for row in np.linspace(0, count - 1, min(count, most))]


def _embed(database: Database, embedder: Embedder, progress: Callable[[int, int], None]) -> None:
    """Embed the documents.

    Raises:
        EmbeddingError: The model refused one.
    """
    done = total = 0

    def start(_choice: object, count: int) -> None:
        nonlocal total
        total = count
        progress(0, total)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    report = EmbeddingService(database, embedder=embedder).embed(
        CORPUS, on_start=start, on_progress=advance
    )
    if report.failed:
        raise EmbeddingError(
            f"{report.failed} documents could not be embedded, such as: {report.failures[0][1]}"
        )


def _questions(
    embedder: Embedder, words: Sequence[str | None], progress: Callable[[int, int], None]
) -> GivenVectors:
    """Return the vectors of all questions, made before the clock runs."""
    texts = [said for said in words if said]
    batches = []
    for start in range(0, len(texts), embedder.batch_size):
        batches.append(embed_documents(embedder, texts[start : start + embedder.batch_size]))
        progress(min(start + embedder.batch_size, len(texts)), len(texts))
    return GivenVectors(embedder.model_name, texts, np.concatenate(batches))
