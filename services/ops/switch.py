"""The switch from one embedding model to another while searches run.

Add, backfill, use, roll back, drop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Literal

from pgcorpus.db.choices import HALFVEC_MAX_DIMENSIONS, IndexKind
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import (
    AlreadyExists,
    DataLayerError,
    InvalidValue,
    ModelInUse,
    ModelNotReady,
)
from pgcorpus.db.models.embeddings import EmbeddingModel
from pgcorpus.db.repositories.embeddings import Coverage
from pgcorpus.db.search import corpora
from pgcorpus.db.search.corpora import list_corpora
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.embedding.choice import list_in_use
from pgcorpus.services.embedding.embed import EmbeddingService, EmbedReport, count_covered
from pgcorpus.services.embedding.embedder import Embedder, Embedders

BULK_PASSAGES: Final = 5_000
"""Passages from which on an index is built after a first backfill instead of kept up row by row."""

GRACE_SECONDS: Final = 90.0
"""Seconds that a model's vectors stay after the switch to another. A search that chose the model
before embeds its question (10 s at most), waits for a connection (30 s) and for the statement that
prepares it (30 s) before it reads them, with the default settings."""

DELETED_AT_ONCE: Final = 5_000
"""Vectors that one transaction deletes: it is over in a moment, and a stop loses no more."""

POLL_SECONDS: Final = 0.5

OnBuild = Callable[[str, str, float], None]
"""Reports the corpus, the phase of its index build and the share of the phase done."""


@dataclass(frozen=True)
class Backfill:
    """The report of a backfill in one corpus.

    Attributes:
        report: Of the vectors.
        index: ``built`` after the vectors, or anew; ``kept`` where it was ready.
    """

    report: EmbedReport
    index: Literal["built", "kept"]

    def as_json(self) -> dict[str, Any]:
        """Return the report as the command line prints it."""
        shown = self.report.as_json() | {"index": self.index}
        return {name: value for name, value in shown.items() if name != "model"}


@dataclass(frozen=True)
class Switch:
    """The model that a corpus uses from now on.

    Attributes:
        corpus: Its name.
        model: The model in use.
        coverage: Of that model, when it was taken into use.
    """

    corpus: str
    model: str
    coverage: Coverage

    def as_json(self) -> dict[str, Any]:
        """Return the switch as the command line prints it."""
        counts = {"embedded": self.coverage.embedded, "total": self.coverage.total}
        return {"corpus": self.corpus, "model": self.model} | counts


@dataclass(frozen=True)
class Drop:
    """The report of dropping a model.

    Attributes:
        model: Its name.
        vectors: How many were deleted.
        registered: Whether the registry keeps the model, because the revisions own it.
    """

    model: str
    vectors: int
    registered: bool


class ModelSwitch:
    """Brings a model into use, or takes it out of use, while searches run.

    Every step can be stopped or killed and run again. A search sees the vectors of one model: the
    choice is one row, and a model's vectors outlive the searches that chose it.

    Args:
        database: Where the models and the passages are.
        embedder: Makes the vectors of a backfill; by default that of the model.
    """

    def __init__(self, database: Database, *, embedder: Embedder | None = None) -> None:
        self._database = database
        self._embedders = Embedders(database.settings, embedder)

    def add(
        self,
        name: str,
        *,
        dimensions: int,
        provider: str,
        index_kind: IndexKind | None = None,
        languages: Sequence[str] | None = None,
        on_build: OnBuild | None = None,
    ) -> EmbeddingModel:
        """Register a model, and make its index on the vectors of every corpus.

        The index is built beside running work. Where a run before this one was stopped in between,
        the indexes that are missing or invalid are made.

        Args:
            name: As its provider calls it.
            dimensions: Length of its vectors.
            provider: One of ``PROVIDERS``.
            index_kind: By default ``halfvec``, or ``binary`` beyond ``HALFVEC_MAX_DIMENSIONS``.
            languages: Text search configurations that it knows; None for all. Questions in others
                weigh its leg less.
            on_build: See ``OnBuild``.

        Returns:
            The model.

        Raises:
            AlreadyExists: The name is taken by another model, or by this one and it is whole.
            InvalidValue: The index cannot hold so many dimensions, or the name has signs that no
                model has.
            TransactionConflict: Another process indexes or drops the model.
        """
        if index_kind == "halfvec" and dimensions > HALFVEC_MAX_DIMENSIONS:
            raise InvalidValue(
                f"a halfvec index holds at most {HALFVEC_MAX_DIMENSIONS} dimensions, not "
                f"{dimensions}; use the kind binary",
                constraint="valid_index_kind",
            )
        usual: IndexKind = "halfvec" if dimensions <= HALFVEC_MAX_DIMENSIONS else "binary"
        with self._alone_with(name) as work:
            model = work.models.find_model(name)
            known = model is not None
            if model is None:
                model = work.models.add_model(
                    name,
                    dimensions=dimensions,
                    provider=provider,
                    index_kind=index_kind or usual,
                    languages=languages,
                )
            asked = (dimensions, provider, index_kind or model.index_kind)
            known_languages = model.languages if languages is None else list(languages)
            if (*asked, known_languages) != (
                *(model.dimensions, model.provider, model.index_kind),
                model.languages,
            ):
                raise AlreadyExists(
                    f"there is a model {name!r} already, with {model.dimensions} dimensions, the "
                    f"provider {model.provider}, a {model.index_kind} index and "
                    + ("all languages" if model.languages is None else ", ".join(model.languages))
                )
            built = self._mend_indexes(work, model, list_corpora(), on_build)
        if known and not built:
            raise AlreadyExists(f"there is a model {name!r} already; see: pgcorpus models list")
        return model

    def backfill(
        self,
        name: str,
        *,
        among: Sequence[str] = (),
        on_start: Callable[[str, int], None] | None = None,
        on_progress: Callable[[int], None] | None = None,
        on_build: OnBuild | None = None,
    ) -> list[Backfill]:
        """Make the vectors a model lacks, and its index where that is missing or invalid.

        Where a model that is not in use has no vectors yet and a corpus is large, its index is
        dropped and built after the vectors: that is several times faster than keeping it up.

        Args:
            name: The model.
            among: Names of corpora; by default all that have passages.
            on_start: Called with each corpus and the number of its passages to embed.
            on_progress: Called with the number of passages done since the last call.
            on_build: See ``OnBuild``.

        Returns:
            One report for each corpus.

        Raises:
            UnknownModel: There is no such model.
            UnknownCorpus: There is no such corpus.
            TransactionConflict: Another process embeds with the model, indexes or drops it.
            EmbeddingError: The provider did not answer, or refused. What was stored stays, and the
                next run goes on from there.
        """
        with self._database.unit_of_work() as work:
            chosen = choose_corpora(work, name, among)
            model = work.models.get_model(name)  # after it: scopes forget what was read before
        service = EmbeddingService(self._database, embedder=self._embedders.of(model))
        done = []
        for corpus in chosen:
            with self._alone_with(name) as work:
                if self._fills_faster_without_index(work, corpus, model):
                    for index in work.vector_indexes.list_indexes(corpus, model):
                        work.vector_indexes.drop_index(index)
            report = service.embed(
                corpus.name,
                model=name,
                on_start=on_start and _adapt_start(on_start, corpus),
                on_progress=on_progress,
            )
            with self._alone_with(name) as work:
                built = self._mend_indexes(work, model, [corpus], on_build)
                if built and not report.embedded:  # embedding ends with it
                    work.vector_indexes.analyze_vectors(corpus)
            done.append(Backfill(report, "built" if built else "kept"))
        return done

    def use(self, corpus: str, name: str, *, force: bool = False) -> Switch:
        """Make searches of a corpus use a model, from the next one on.

        One transaction: the coverage is counted and the model taken into use, or nothing happens.
        Passages that arrive later are embedded for the model that is active then.

        Args:
            corpus: Its name.
            name: The model's.
            force: Take it as it is.

        Returns:
            The switch.

        Raises:
            UnknownCorpus: There is no such corpus.
            UnknownModel: There is no such model.
            ModelNotReady: A passage lacks its vector, or the index is not usable. Searches go on
                with the model they had.
            TransactionConflict: Another process indexes or drops the model.
        """
        of = corpora.get_corpus(corpus)
        with self._database.unit_of_work() as work:
            work.models.keep_model(name)
            model = work.models.get_model(name)
            work.models.lock_setting(of.name)
            coverage = count_covered(work, of, name)
            if not force:
                _refuse_unready(work, of, model, coverage)
            work.models.measure_spread(of, name)  # vectors may have come with an import
            work.models.use_model(of.name, name)
            work.commit()
        return Switch(of.name, name, coverage)

    def rollback(self, corpus: str) -> Switch:
        """Make searches of a corpus use the model before, whatever it lacks by now.

        Rolling back twice is where one was.

        Raises:
            UnknownCorpus: There is no such corpus.
            NotFound: There was no model before, or it was dropped.
            TransactionConflict: Another process indexes or drops that model.
        """
        of = corpora.get_corpus(corpus)
        with self._database.unit_of_work() as work:
            name = work.models.roll_back(of.name)
            work.commit()
            return Switch(of.name, name, count_covered(work, of, name))

    def count_droppable(self, name: str) -> int:
        """Count the vectors that a drop would delete.

        Raises:
            UnknownModel: There is no such model.
            ModelInUse: Searches use it.
        """
        with self._database.unit_of_work() as work:
            work.models.get_model(name)
            self._refuse_used(work, name)
            return _count_vectors(work, name)

    def drop(
        self,
        name: str,
        *,
        grace_seconds: float = GRACE_SECONDS,
        on_wait: Callable[[float], None] | None = None,
        on_start: Callable[[int], None] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> Drop:
        """Delete a model: its indexes, its vectors in batches, its row; nobody can roll back to it.

        A search that chose the model before the last switch may still be about to read its vectors,
        so a model that was in use until lately is dropped after the grace.

        Of a seeded model only the vectors are deleted: its row and its indexes are the revisions'.

        Args:
            name: The model.
            grace_seconds: Least time between the switch to another model and the drop.
            on_wait: Called every now and then with the seconds left to wait.
            on_start: Called with the number of vectors to delete.
            on_progress: Called with the number deleted since the last call.

        Returns:
            What was dropped.

        Raises:
            UnknownModel: There is no such model.
            ModelInUse: Searches use it.
            TransactionConflict: Another process embeds with the model, indexes or drops it.
        """
        with ExitStack() as alone:
            work = alone.enter_context(self._alone_with(name))
            model = work.models.get_model(name)
            self._refuse_used(work, name)
            for corpus in list_corpora():
                embedding = f"embedding {corpus.name} with {name}"
                alone.enter_context(self._database.exclusively(embedding))
            work.models.forget_previous(name)
            while left := max(0.0, grace_seconds - _seconds_retired(work, name)):
                if on_wait is not None:
                    on_wait(left)
                time.sleep(min(POLL_SECONDS, left))
            # First: vacuuming deleted rows out of the graph takes long.
            for corpus in list_corpora():
                for index in work.vector_indexes.list_indexes(corpus, model):
                    of_one_scope = corpus.scope is not None and not index.shared
                    if not model.is_seeded or of_one_scope:
                        work.vector_indexes.drop_index(index)
            vectors = self._delete_vectors(name, on_start, on_progress)
            if not model.is_seeded:
                work.models.delete_model(name)
            return Drop(name, vectors, registered=model.is_seeded)

    @contextmanager
    def _alone_with(self, name: str) -> Iterator[UnitOfWork]:
        """Work outside of transactions and without a statement timeout, alone with a model."""
        with self._database.autocommitting() as work, work.models.alone_with(name):
            yield work

    def _mend_indexes(
        self,
        work: UnitOfWork,
        model: EmbeddingModel,
        among: Iterable[Corpus],
        on_build: OnBuild | None,
    ) -> bool:
        """Build the indexes that are not there, drop those that no search can use."""
        built = False
        for corpus in among:
            indexes = work.vector_indexes.list_indexes(corpus, model)
            for index in indexes:
                if not index.usable:
                    work.vector_indexes.drop_index(index)
            if corpus.scope is not None:
                for large in work.vector_indexes.list_unindexed_scopes(corpus, model):
                    with self._watch_build(corpus, on_build):
                        work.vector_indexes.build_scope_index(large)
                    built = True
            if work.vector_indexes.index_state(corpus, model) != "ready":
                with self._watch_build(corpus, on_build):
                    work.vector_indexes.build_index(corpus, model)
                built = True
        return built

    @contextmanager
    def _watch_build(self, corpus: Corpus, on_build: OnBuild | None) -> Iterator[None]:
        """Report the progress of an index build from another connection, while it runs."""
        if on_build is None:
            yield
            return
        ended = threading.Event()

        def watch() -> None:
            with suppress(DataLayerError):  # the build itself will say what is wrong
                while not ended.wait(POLL_SECONDS):
                    with self._database.unit_of_work() as work:
                        found = work.vector_indexes.find_index_build(corpus)
                    if found is not None:
                        on_build(corpus.name, *found)

        watcher = threading.Thread(target=watch, name="index-build")
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()

    def _delete_vectors(
        self,
        name: str,
        on_start: Callable[[int], None] | None,
        on_progress: Callable[[int], None] | None,
    ) -> int:
        """Delete the vectors of a model, each batch in a transaction.

        Return their number.
        """
        with self._database.unit_of_work() as work:
            if on_start is not None:
                on_start(_count_vectors(work, name))
            deleted = 0
            for corpus in list_corpora():
                for _ in work.scopes_of(corpus):
                    while n := work.embeddings.delete_vectors(corpus, name, limit=DELETED_AT_ONCE):
                        work.commit()
                        deleted += n
                        if on_progress is not None:
                            on_progress(n)
        return deleted

    def _refuse_used(self, work: UnitOfWork, name: str) -> None:
        """Raise for a model that searches need."""
        using = [corpus.name for corpus in list_corpora() if self._searches(work, corpus, name)]
        if using:
            raise ModelInUse(
                f"searches of {', '.join(using)} use {name}; give them another model first: "
                f"pgcorpus models use {using[0]} NAME"
            )

    def _searches(self, work: UnitOfWork, corpus: Corpus, name: str) -> bool:
        """Return whether searches of the corpus use the model; it may stand in (see ``choose``)."""
        in_use = list_in_use(work, corpus, self._database.settings)
        return any(model.name == name for model in in_use)

    def _fills_faster_without_index(
        self, work: UnitOfWork, corpus: Corpus, model: EmbeddingModel
    ) -> bool:
        if corpus.scope is not None or self._searches(work, corpus, model.name):
            return False  # they need it
        coverage = count_covered(work, corpus, model.name)
        return coverage.missing == coverage.total >= BULK_PASSAGES


def choose_corpora(work: UnitOfWork, model: str, among: Sequence[str]) -> list[Corpus]:
    """Return the corpora of these names; of none, all that have passages.

    Who sees no scope but its own looks into each, and rows that were read before are read anew.

    Raises:
        UnknownCorpus: There is no corpus of a name.
    """
    if among:
        return [corpora.get_corpus(name) for name in dict.fromkeys(among)]
    return [each for each in list_corpora() if count_covered(work, each, model).total]


def _refuse_unready(
    work: UnitOfWork, corpus: Corpus, model: EmbeddingModel, coverage: Coverage
) -> None:
    """Raise for a model with which a search would miss passages or take long."""
    lacks = []
    if coverage.embedded < coverage.total:
        lacks.append(
            f"has vectors for {coverage.embedded} of {coverage.total} passages of {corpus.name}"
            + (f" ({coverage.stale} more are of older texts)" if coverage.stale else "")
        )
    if (state := work.vector_indexes.index_state(corpus, model)) != "ready":
        lacks.append(f"its index is {state}")
    if lacks:
        raise ModelNotReady(
            f"{model.name} {', and '.join(lacks)}; mend it with: pgcorpus models backfill "
            f"{model.name} --corpus {corpus.name}, or take it as it is with --force"
        )


def _count_vectors(work: UnitOfWork, name: str) -> int:
    """Count the vectors of a model, over all corpora and scopes."""
    return sum(
        work.embeddings.count_vectors(corpus, name)
        for corpus in list_corpora()
        for _ in work.scopes_of(corpus)
    )


def _seconds_retired(work: UnitOfWork, name: str) -> float:
    found = work.models.seconds_retired(name)
    return float("inf") if found is None else found


def _adapt_start(
    on_start: Callable[[str, int], None], corpus: Corpus
) -> Callable[[object, int], None]:
    """Adapt ``on_start`` of a backfill to one corpus."""
    return lambda _, total: on_start(corpus.name, total)
