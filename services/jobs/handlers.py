"""The handlers: embedding for the outbox, and periodic maintenance."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

import numpy as np

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import AuditError, DatabaseNotReady, NotPermitted
from pgcorpus.db.repositories.embeddings import Pending
from pgcorpus.db.repositories.jobs import EMBED, ClaimedJob
from pgcorpus.db.repositories.usage import Verdict
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.corpora import list_corpora
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.audit import AuditService
from pgcorpus.services.embedding.budget import embed_within
from pgcorpus.services.embedding.choice import Choice, choose
from pgcorpus.services.embedding.embedder import Embedder, Embedders
from pgcorpus.services.jobs.handler import COMPLETED, Finish, Handler, Outcome
from pgcorpus.services.search.log import SearchLog

logger = logging.getLogger(__name__)

DAY_SECONDS: Final = 86_400.0

FIRST_BATCH: Final = 64
"""Jobs that are claimed before the model, and with it the size of its batches, is known."""

COMPLETED_KEPT_SECONDS: Final = 7 * DAY_SECONDS
"""Dead letters are kept until they are purged or requeued by hand."""

SEARCHES_KEPT: Final = timedelta(days=30)
"""Age from which timings are moved to the archive: the specification's retention."""

ARCHIVED_SEARCHES_KEPT: Final = timedelta(days=365)

OUTDATED_ROWS: Final = 1000
OUTDATED_SHARE: Final = 0.05
"""A table is analysed when more rows than this, and more than this share of it, were changed:
before autovacuum does, which waits for 10 %. The ranking of words reads these statistics."""

RESERVED_SECONDS: Final = 5.0
"""The time after which a job is tried again whose tokens others have reserved: their calls then
have told how much they took."""

PUT_OFF: Final[Mapping[Verdict, Outcome]] = {
    "waits": Outcome("released", delay_seconds=RESERVED_SECONDS),
    "full": Outcome("released"),  # its scope is passed over by claims until the next day
}

NO_PASSAGE: Final = "its payload names no passage under 'item'"
CHANGED: Final = "its text or the corpus's model changed while it was embedded"


def all_handlers(database: Database, *, search_log: SearchLog | None = None) -> list[Handler]:
    """Make one handler of every kind; passages of each corpus have one of their own.

    Args:
        database: Whose queue.
        search_log: What this process buffers of its searches, if it makes any.
    """
    embedders = Embedders(database.settings)
    embedding: list[Handler] = [
        EmbedHandler(database, corpus, embedders=embedders) for corpus in list_corpora()
    ]
    return [*embedding, MaintenanceHandler(database), LogFlushHandler(database, search_log)]


class EmbedHandler:
    """Makes the vectors of one corpus's passages.

    Args:
        database: Where the passages are.
        corpus: Whose jobs.
        embedder: Makes the vectors; by default that of the corpus's model, asked for each batch.
        embedders: Those that corpora share, so that a model of several is loaded once.
    """

    kind = EMBED

    def __init__(
        self,
        database: Database,
        corpus: Corpus,
        *,
        embedder: Embedder | None = None,
        embedders: Embedders | None = None,
    ) -> None:
        self._database = database
        self._of = corpus
        self.corpus = corpus.name
        self._embedders = embedders or Embedders(database.settings, embedder)
        self._embedder = embedder

    @property
    def batch_size(self) -> int:
        """The number of texts worth one call of the embedder."""
        return FIRST_BATCH if self._embedder is None else self._embedder.batch_size

    def handle(self, jobs: Sequence[ClaimedJob]) -> Finish:
        """Embed the texts whose vectors are missing or stale."""
        items = [self._item(job) for job in jobs]
        named: dict[Scope | None, list[Any]] = {}
        for job, item in zip(jobs, items, strict=True):
            if item is not None:
                named.setdefault(job.scope, []).append(item)
        with self._database.unit_of_work() as work:
            choice = self._choose(work)
            pending = {scope: self._pending(work, choice, scope, named[scope]) for scope in named}
        texts = {scope: [each.text for each in some] for scope, some in pending.items() if some}
        made = embed_within(self._database, self._embedder_of(choice), texts) if texts else None

        def finish(work: UnitOfWork) -> Sequence[Outcome]:
            outcomes = {None: Outcome("failed", NO_PASSAGE)}
            if self._choose(work).name != choice.name:
                outcomes |= dict.fromkeys(items, Outcome("released", CHANGED))
            elif made is not None:
                granted = {
                    scope: some[: len(made.vectors[scope])]
                    for scope, some in pending.items()
                    if some
                }
                changed = self._store_all(work, choice, granted, made.vectors)
                outcomes |= dict.fromkeys(changed, Outcome("released", CHANGED))
                for scope, verdicts in made.verdicts.items():
                    for each, verdict in zip(pending[scope], verdicts, strict=True):
                        if verdict != "granted":
                            outcomes[each.id] = PUT_OFF[verdict]
            if made is not None:
                made.settle(work)
            return [outcomes.get(item, COMPLETED) for item in items]

        return finish

    def _pending(
        self, work: UnitOfWork, choice: Choice, scope: Scope | None, among: Sequence[Any]
    ) -> Sequence[Pending]:
        """List the passages of a scope that are to be embedded."""
        self._enter(work, scope)
        return work.embeddings.list_pending(self._of, choice.name, limit=len(among), among=among)

    def _store_all(
        self,
        work: UnitOfWork,
        choice: Choice,
        pending: Mapping[Scope | None, Sequence[Pending]],
        vectors: Mapping[Scope | None, np.ndarray],
    ) -> list[Any]:
        """Store the vectors of each scope within it; returns the passages that changed."""
        changed: list[Any] = []
        for scope, some in pending.items():
            self._enter(work, scope)
            changed += self._store(work, choice, some, vectors[scope])
            if choice.cosine_spread is None:
                work.models.measure_spread(self._of, choice.name)
        if self._of.scope is not None:
            work.leave()
        return changed

    def _enter(self, work: UnitOfWork, scope: Scope | None) -> None:
        self._of.refuse_without(scope)
        if scope is not None:
            work.enter(scope)
        elif self._of.scope is not None:
            work.leave()

    def _item(self, job: ClaimedJob) -> Any:
        """Return the passage of a job, or None if the job names none."""
        if self._of.needs_scope and job.scope is None:
            return None
        try:
            return self._of.key.type.python_type(job.payload["item"])
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def _store(
        self, work: UnitOfWork, choice: Choice, pending: Sequence[Pending], vectors: np.ndarray
    ) -> Sequence[Any]:
        """Store the vectors of texts that are still the same; return the passages that changed."""
        if not pending:
            return ()
        ids = [each.id for each in pending]
        hashes = [each.content_hash for each in pending]
        stored = work.embeddings.store(self._of, choice.name, ids, vectors, hashes)
        if stored == len(ids):
            return ()
        left = work.embeddings.list_pending(self._of, choice.name, limit=len(ids), among=ids)
        return [each.id for each in left]  # the others are gone

    def _choose(self, work: UnitOfWork) -> Choice:
        return choose(work, self._of, self._database.settings, self._embedders.model_name)

    def _embedder_of(self, choice: Choice) -> Embedder:
        embedder = self._embedders.of(choice)
        if choice.reason and embedder is not self._embedder:
            logger.warning("%s: %s", self._of.name, choice.reason)
        self._embedder = embedder
        return embedder


class MaintenanceHandler:
    """Purges, renews statistics, seals the audit log.

    Jobs of dead workers are taken back by every heartbeat.

    Args:
        database: What is maintained.
    """

    kind = "maintenance"
    corpus = ""
    batch_size = 1

    def __init__(self, database: Database) -> None:
        self._database = database

    def handle(self, jobs: Sequence[ClaimedJob]) -> Finish:
        """Run the maintenance, each part in transactions of its own."""
        delete_all(
            self._database,
            lambda work: work.jobs.purge(older_than_seconds=COMPLETED_KEPT_SECONDS),
        )
        with self._database.unit_of_work() as work:
            if unknown := work.jobs.fail_unknown_corpora():
                logger.warning("%d embedding jobs are of no corpus, and failed", unknown)
            work.usage.purge()
            work.commit()
        self._audit()
        self._analyze()
        return lambda _work: [COMPLETED] * len(jobs)

    def _analyze(self) -> None:
        with self._database.unit_of_work() as work:
            outdated = work.operations.list_outdated_statistics(
                least=OUTDATED_ROWS, share=OUTDATED_SHARE
            )
        for table in outdated:
            logger.info("renewing the statistics of %s", table)
            with self._database.unit_of_work() as work:
                work.operations.analyze(table)
                work.commit()
        for corpus in list_corpora():
            try:
                with self._database.unit_of_work() as work:
                    work.models.measure_spreads(corpus)
                    work.commit()
            except DatabaseNotReady as error:  # its application's revision is still to come
                logger.warning("%s: %s", corpus.name, error)

    def _audit(self) -> None:
        """Maintain the audit log; a worker without the right to seal says so in its log."""
        try:
            AuditService(self._database).maintain()
        except (AuditError, NotPermitted) as error:
            logger.error("the audit log was not sealed: %s", error)  # noqa: TRY400 - no trace


class LogFlushHandler:
    """Writes the timings of searches that this process buffers, and archives old ones.

    Every process that searches also flushes its own buffer, every few seconds and at its end: a
    worker cannot reach the memory of another process.

    Args:
        database: Where they are.
        search_log: This process's buffer; None where it does not search, as ``pgcorpus worker``.
    """

    kind = "log_flush"
    corpus = ""
    batch_size = 1

    def __init__(self, database: Database, search_log: SearchLog | None = None) -> None:
        self._database = database
        self._search_log = search_log

    def handle(self, jobs: Sequence[ClaimedJob]) -> Finish:
        """Write, archive and delete timings, in transactions of their own."""
        if self._search_log is not None:
            self._search_log.flush()
        delete_all(
            self._database,
            lambda work: work.performance.archive(older_than=SEARCHES_KEPT),
        )
        delete_all(
            self._database,
            lambda work: work.performance.delete_archived(older_than=ARCHIVED_SEARCHES_KEPT),
        )
        return lambda _work: [COMPLETED] * len(jobs)


def delete_all(database: Database, delete: Callable[[UnitOfWork], int]) -> int:
    """Delete or move rows in batches, each a transaction of its own, until none is left.

    Returns:
        How many they were.
    """
    deleted, in_all = 1, 0
    while deleted:
        with database.unit_of_work() as work:
            deleted = delete(work)
            work.commit()
        in_all += deleted
    return in_all
