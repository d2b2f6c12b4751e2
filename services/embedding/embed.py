"""Vectors for every passage that lacks one: in batches, resumable, never inside a transaction."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import NotPermitted, TextsRefused
from pgcorpus.db.repositories.embeddings import Coverage, Pending
from pgcorpus.db.scope import Scope
from pgcorpus.db.search import corpora
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.embedding.budget import embed_within
from pgcorpus.services.embedding.choice import OFFLINE_MODEL, Choice, as_choice, choose
from pgcorpus.services.embedding.embedder import Embedder, Embedders


@dataclass(kw_only=True)
class EmbedReport:
    """The report of a run of the embedding service.

    Attributes:
        corpus: Whose passages.
        model: Whose vectors.
        embedded: Vectors stored.
        stale: How many of these took the place of a vector of an older text.
        failed: Passages whose text the embedder refused.
        waiting: Passages that were left, as the tokens of their owner are spent or reserved.
        duration_s: Seconds from start to end.
        reason: Why the model is another than the corpus is set to, or None.
        failures: For each passage that failed, its key and why.
    """

    corpus: str
    model: str
    reason: str | None = None
    embedded: int = 0
    stale: int = 0
    failed: int = 0
    waiting: int = 0
    duration_s: float = 0.0
    failures: list[tuple[str, str]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the report as the command line prints it."""
        shown = ("corpus", "model", "embedded", "stale", "failed", "waiting", "duration_s")
        return {name: getattr(self, name) for name in shown}


class EmbeddingService:
    """Embeds the passages whose vector is missing or stale.

    Args:
        database: Where the passages are.
        embedder: Makes the vectors; by default that of the chosen model.
    """

    def __init__(self, database: Database, *, embedder: Embedder | None = None) -> None:
        self._database = database
        self._embedders = Embedders(database.settings, embedder)

    def embed(
        self,
        corpus: str = "knowledge",
        *,
        model: str | None = None,
        on_start: Callable[[Choice, int], None] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> EmbedReport:
        """Embed every passage whose vector is missing or stale.

        Each batch is stored when it is there: a run that is stopped goes on where it was. A vector
        is stored only if its text is still the passage's.

        Args:
            corpus: Its name.
            model: Its name; by default as ``choose`` finds it.
            on_start: Called once with the model and the number of passages to embed.
            on_progress: Called with the number of passages done since the last call.

        Raises:
            UnknownCorpus: There is no such corpus.
            UnknownModel: There is no such model.
            TransactionConflict: Another run embeds the same corpus with the same model.
            EmbeddingError: The provider did not answer, or refused the key or the model. What was
                stored stays, and the next run goes on from there.
        """
        started = time.monotonic()
        of = corpora.get_corpus(corpus)
        with self._database.unit_of_work() as work:
            wanted = model or self._embedders.model_name
            choice = choose(work, of, self._database.settings, wanted)
        embedder = self._embedders.of(choice)
        report = EmbedReport(corpus=corpus, model=choice.name, reason=choice.reason)
        # Two runs would find the same passages, and pay for their vectors twice.
        with self._database.exclusively(f"embedding {corpus} with {choice.name}"):
            with self._database.unit_of_work() as work:
                coverage = count_covered(work, of, choice.name)
                scopes = list(work.scopes_of(of))
            if on_start is not None:
                on_start(choice, coverage.total - coverage.embedded)
            for scope in scopes:
                after = None
                while batch := self._pending(of, choice, embedder.batch_size, after, scope):
                    fits = self._embed(of, embedder, batch, report, scope)
                    if on_progress is not None:
                        on_progress(len(batch))
                    if not fits:
                        with self._within(scope) as work:
                            left = work.embeddings.coverage(of, choice.name)
                        report.waiting += left.total - left.embedded
                        break
                    after = batch[-1].id
            with self._database.unit_of_work() as work:
                if report.embedded:
                    work.vector_indexes.analyze_vectors(of)
                work.commit()
            for scope in scopes:
                with self._within(scope) as work:
                    is_known = work.models.measure_spread(of, choice.name)
                    work.commit()
                if is_known:
                    break
        report.duration_s = round(time.monotonic() - started, 3)
        return report

    def coverage(self, corpus: str, model: str | None = None) -> tuple[Choice, Coverage]:
        """Count the passages of a corpus that have vectors, and name the model."""
        of = corpora.get_corpus(corpus)
        with self._database.unit_of_work() as work:
            choice = choose(work, of, self._database.settings, model)
            return choice, count_covered(work, of, choice.name)

    @contextmanager
    def _within(self, scope: Scope | None) -> Iterator[UnitOfWork]:
        with self._database.unit_of_work() as work:
            if scope is not None:
                work.enter(scope)
            yield work

    def _pending(
        self, corpus: Corpus, choice: Choice, limit: int, after: object, scope: Scope | None
    ) -> list[Pending]:
        with self._within(scope) as work:
            return work.embeddings.list_pending(corpus, choice.name, limit=limit, after=after)

    def _embed(
        self,
        corpus: Corpus,
        embedder: Embedder,
        batch: Sequence[Pending],
        report: EmbedReport,
        scope: Scope | None,
    ) -> bool:
        """Embed and store a batch; one that fails is halved until the bad text is alone.

        Returns:
            Whether the tokens sufficed.
        """
        try:
            made = embed_within(
                self._database, embedder, {scope: [pending.text for pending in batch]}
            )
        except TextsRefused as error:
            if len(batch) == 1:
                report.failed += 1
                report.failures.append((str(batch[0].id), str(error)))
                return True
            middle = len(batch) // 2
            return self._embed(corpus, embedder, batch[:middle], report, scope) and self._embed(
                corpus, embedder, batch[middle:], report, scope
            )
        vectors = made.vectors[scope]
        granted = batch[: len(vectors)]
        if granted:
            report.embedded += self._store(corpus, embedder.model_name, granted, vectors, scope)
        report.stale += sum(pending.stale for pending in granted)
        with self._database.unit_of_work() as work:
            made.settle(work)
            work.commit()
        return len(granted) == len(batch)

    def _store(
        self,
        corpus: Corpus,
        model: str,
        batch: Sequence[Pending],
        vectors: np.ndarray,
        scope: Scope | None,
    ) -> int:
        ids = [pending.id for pending in batch]
        with self._within(scope) as work:
            stored = work.embeddings.store(
                corpus, model, ids, vectors, [pending.content_hash for pending in batch]
            )
            work.commit()
        # A role that may store vectors need not be one that may end jobs: a worker then finds the
        # vectors there. The jobs are for the model that is chosen where none is named.
        with suppress(NotPermitted), self._within(scope) as work:
            if choose(work, corpus, self._database.settings).name == model:
                work.jobs.settle(corpus, model, ids)
            work.commit()
        return stored


def count_covered(work: UnitOfWork, corpus: Corpus, model: str) -> Coverage:
    """Count the passages of a corpus that have vectors of a model, over all scopes."""
    if corpus.scope is None or work.embeddings.sees_all(corpus):
        return work.embeddings.coverage(corpus, model)
    scopes = work.scopes_of(corpus)
    return sum((work.embeddings.coverage(corpus, model) for _ in scopes), Coverage(0, 0, 0))


def choose_counted(work: UnitOfWork, corpus: Corpus, model_name: str | None = None) -> Choice:
    """Find the model whose vectors a corpus should have: the one named, else the active one.

    While the active one has no vectors at all, those that the offline model made in its place
    count. It follows from what is stored, and not from a key or a setting of who asks.

    Raises:
        UnknownModel: The model is not registered.
        NotPermitted: Row security hides from the role which scopes there are.
    """
    active = work.models.find_active_model(corpus.name)
    if model_name is not None or active is None:
        return as_choice(work.models.get_model(model_name or OFFLINE_MODEL))
    offline = work.models.get_model(OFFLINE_MODEL)
    if _has_none(work, corpus, active.name) and not _has_none(work, corpus, offline.name):
        return as_choice(
            offline,
            f"{active.name!r} has no vectors here, so those of the offline model {offline.name!r} "
            "are counted",
        )
    return as_choice(active)


def advise_embedding(corpus: Corpus, model_name: str, *, others: bool) -> str:
    """Return the command that makes the vectors that a corpus lacks.

    Args:
        corpus: The corpus.
        model_name: The model that is to have them.
        others: Whether it has some. Those of another model beside them would be of no use, and the
            command then names the model, so that none stands in for it.
    """
    command = f"pgcorpus embed --corpus {corpus.name}"
    return f"{command} --model {model_name}" if others else command


def _has_none(work: UnitOfWork, corpus: Corpus, model_name: str) -> bool:
    coverage = count_covered(work, corpus, model_name)
    return coverage.missing == coverage.total
