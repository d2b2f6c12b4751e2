"""The machinery of all importers: a recorded run, its transactions, progress and statistics."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar
from uuid import UUID, uuid4

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import ConstraintViolated, TransactionConflict
from pgcorpus.db.models.embeddings import EmbeddingModel
from pgcorpus.db.models.imports import ImportFile, ImportTransformation
from pgcorpus.db.repositories.first_load import FirstLoad
from pgcorpus.db.repositories.imports import Refused
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.corpora import get_corpus
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.importers.files import key_of
from pgcorpus.services.importers.language import AUTO, Language, configuration_of, postgresql_of
from pgcorpus.services.importers.report import COUNTS, Changed, ImportReport

MANY: Final = 1000
SHARE: Final = 10
"""A run that stored one in ``SHARE`` of all passages renews the statistics at once and does not
wait for autovacuum: plans, and the ranking of words, follow them. So does one that stored ``MANY``
in a scope, which may be new. Fewer change little, and to read 110,000 takes 2 s."""

TRIES: Final = 6
FIRST_PAUSE_SECONDS: Final = 0.05
"""Half the longest first pause before a transaction that another stood in the way of is tried
again: pauses are random, of up to 0.1 s, 0.2 s and so on. Deadlocks are over when one of the two
is, and a longer wait has another cause."""

C = TypeVar("C")
T = TypeVar("T")
R = TypeVar("R", bound=ImportReport)
Progress = Callable[[int, int], None]
Transaction = Callable[[], AbstractContextManager[UnitOfWork]]


class Passages(Protocol):
    """The repository that an importer fills."""

    def count(self) -> int:
        """Count the passages."""

    def analyze(self) -> None:
        """Renew the planner's statistics."""

    def merge_pending_entries(self, *tables: str) -> None:
        """Sort what was written last into the GIN indexes of tables."""


@dataclass
class Run(Generic[R]):
    """One call of an importer, under way.

    Attributes:
        id: Its key.
        corpus: What is filled.
        transaction: Makes transactions that are kept when they end without an error.
        language: The configuration of passages that name none, or what finds it.
        report: What was done so far.
        renews_statistics: Whether they are renewed at the end, however little was stored.
    """

    id: UUID
    corpus: str
    transaction: Transaction
    language: Language
    report: R
    renews_statistics: bool = False

    def list_refused(self) -> Iterator[tuple[str, list[Refused]]]:
        """Yield each file with refused records, and these."""
        with self.transaction() as work:
            files = work.imports.list_refused_files(self.corpus)
        for file in files:
            with self.transaction() as work:
                refused = work.imports.list_refused(self.corpus, file)
            yield file, refused

    def add_file(
        self,
        work: UnitOfWork,
        file: str,
        counts: Mapping[str, int],
        *,
        error: str | None = None,
        **more: Any,
    ) -> None:
        """Record a file and its counts; *more* are columns of ``ImportFile``."""
        row = ImportFile(id=uuid4(), run_id=self.id, file=file, error=error, **more)
        for name in COUNTS:
            setattr(row, name, counts[name])
        work.imports.add_file(row)


class Filling(Protocol):
    """A run of one corpus's importer."""

    def take_refused(self, file: str, refused: Sequence[Refused]) -> None:
        """Try again what was refused of one file."""


class Importer(ABC, Generic[R]):
    """Brings files into one corpus.

    Args:
        database: Where to.
        strict: Reject what would have to be changed.
        dry_run: Report what would be done, and write nothing.
        language: The text search configuration of what names none; ``auto`` finds it.
    """

    corpus: ClassVar[str]
    scope: Scope | None = None
    """The scope that the records are imported into; None in a corpus without scopes."""

    def __init__(self, database: Database, *, strict: bool, dry_run: bool, language: str) -> None:
        self._database = database
        self._strict = strict
        self._dry_run = dry_run
        self._language = language

    def run(
        self,
        paths: Sequence[Path],
        progress: Progress | None = None,
        on_build: Callable[[], object] | None = None,
    ) -> R:
        """Import files and folders. What is imported again changes nothing.

        Args:
            paths: Files and folders.
            progress: Called with the bytes done and the bytes in all. What it raises ends the run;
                what was kept before stays.
            on_build: Called when all is loaded and indexes are built, which may take as long.

        Returns:
            What was done. A file that cannot be imported is in it with its error.

        Raises:
            ImportFailed: The files cannot be used; nothing was written.
            UnknownModel: Vectors that come along are of a model that is not registered; nothing
                was written.
        """
        return self._run(paths, Bar(progress or _ignore, on_build or _ignore))

    @abstractmethod
    def _run(self, paths: Sequence[Path], bar: Bar) -> R:
        """Import files and folders, and show the progress."""

    def history(
        self,
        *,
        item: str | None = None,
        file: str | None = None,
        rule: str | None = None,
        limit: int = 100,
        before: int | None = None,
    ) -> Sequence[ImportTransformation]:
        """List the changes that imports made to values, the newest first.

        Args:
            item: Only those of this item, by its author's identifier.
            file: Only those of this file, by any path to it.
            rule: Only those by this rule.
            limit: At most this many.
            before: The last ``id`` of the page before.
        """
        file = None if file is None else key_of(Path(file))
        with self._database.unit_of_work() as work:
            return work.imports.list_changes(
                self.corpus, item=item, file=file, rule=rule, limit=limit, before=before
            )

    @abstractmethod
    def _passages(self, work: UnitOfWork) -> Passages:
        """Return the repository that is filled."""

    def _corpora(self) -> Sequence[Corpus]:
        """Return the corpora whose passages, and vectors, may have come."""
        return (get_corpus(self.corpus),)

    @contextmanager
    def _record_run(self, report: R, **options: Any) -> Iterator[Run[R]]:
        """Record a run in the history, begun and ended, and leave tables as searches like them."""
        options |= {"strict": self._strict, "language": self._language}
        with self._transactions() as transaction:
            with transaction() as work:
                run_id = work.imports.start_run(self.corpus, options)
                language = self._language_on(work)
            run = Run(run_id, self.corpus, transaction, language, report)
            yield run
            with transaction() as work:
                work.imports.finish_run(run_id)
                if self._dry_run:  # or nobody could read them, for nothing stays
                    shown = [each.name for each in fields(Changed)]
                    report.changes = [
                        Changed(**{name: getattr(change, name) for name in shown})
                        for change in work.imports.list_run_changes(run_id)
                    ]
            if report.embedded and not self._dry_run:  # how far they spread weighs in searches
                with transaction() as work:
                    for corpus in self._corpora():
                        work.models.measure_spreads(corpus)
            # ANALYZE writes past the transaction that a dry run rolls back.
            stored = report.stored
            if (stored or run.renews_statistics) and not self._dry_run:
                with transaction() as work:
                    work.leave()  # the statistics are of all scopes
                    passages = self._passages(work)
                    if stored:
                        searched = (corpus.passages.name for corpus in self._corpora())
                        passages.merge_pending_entries(*searched)
                    many = run.renews_statistics or (self.scope is not None and stored >= MANY)
                    if many or stored * SHARE >= passages.count():
                        passages.analyze()

    @contextmanager
    def _build_indexes_last(
        self,
        run: Run[R],
        bar: Bar,
        filled: Callable[[UnitOfWork], FirstLoad],
        models: Collection[EmbeddingModel] = (),
    ) -> Iterator[None]:
        """Load without the indexes of searches where that is faster, and build them at the end.

        They are what a run that is stopped leaves to the next: searches do without them, slowly.

        Args:
            run: The run.
            bar: Shows that they are built.
            filled: Gives the repository that is filled.
            models: Whose vectors are coming.
        """
        with run.transaction() as work:
            leaves_out = filled(work).leaves_indexes_out(models)
        if not leaves_out:
            yield
            return
        # Who brings as much meanwhile waits until all is built.
        with self._database.exclusively(f"loading {run.corpus} without indexes", wait=True):
            with run.transaction() as work:
                filled(work).drop_search_indexes(models)
                if filled(work).lacks_statistics():
                    run.transaction = self._renew_statistics_early(run, filled)
            yield
            with run.transaction() as work:
                unbuilt = filled(work).list_unbuilt(models)
            if unbuilt:
                bar.on_build()
            run.renews_statistics = bool(unbuilt)  # a run that was stopped did not
            for index in unbuilt:
                with run.transaction() as work:
                    filled(work).build_search_index(index, models)

    def _renew_statistics_early(
        self, run: Run[R], filled: Callable[[UnitOfWork], FirstLoad]
    ) -> Transaction:
        """Return transactions that renew the statistics, until one has kept a row.

        Without any the planner takes each table for a tiny one: it checks a foreign key by reading
        the keys of a whole scope, which takes longer for each row the more there are.
        """
        transaction = run.transaction

        @contextmanager
        def begin() -> Iterator[UnitOfWork]:
            with transaction() as work:
                yield work
            with transaction() as work:
                work.leave()  # the statistics are of all scopes
                self._passages(work).analyze()
                if not filled(work).lacks_statistics():
                    run.transaction = transaction

        return begin

    def _language_on(self, work: UnitOfWork) -> Language:
        """Return the language of passages that name none, among the server's configurations."""
        if self._language != AUTO:
            return self._language
        version = postgresql_of(work.session.connection().dialect)
        return partial(configuration_of, postgresql=version)

    @contextmanager
    def _transactions(self) -> Iterator[Transaction]:
        """Provide transactions: real ones, or savepoints of a single one that is rolled back."""
        if not self._dry_run:
            yield self._commit_each
            return
        with self._open_work() as work:
            yield work.savepoint

    @contextmanager
    def _commit_each(self) -> Iterator[UnitOfWork]:
        with self._open_work() as work:
            yield work
            work.commit()

    @contextmanager
    def _open_work(self) -> Iterator[UnitOfWork]:
        with self._database.unit_of_work() as work:
            if self.scope is not None:
                work.enter(self.scope)
            yield work


class RetryingImporter(Importer[R]):
    """An importer that keeps what it refuses, whole."""

    def retry(self) -> R:
        """Try what was rejected again, from the payloads that were kept.

        What goes in now is no longer among the rejects; the rest stays.

        Returns:
            What was done, by the full paths of the files that it came from.
        """
        with self._start_run(retry=True) as (run, filling):
            for file, refused in run.list_refused():
                filling.take_refused(file, refused)
        return run.report

    @abstractmethod
    def _start_run(self, **options: Any) -> AbstractContextManager[tuple[Run[R], Filling]]:
        """Begin a run in the history; give it, and the object that fills the corpus."""


@dataclass
class Bar:
    """A progress bar in bytes.

    Attributes:
        show: Called with the bytes done and the bytes in all.
        on_build: Called when all is loaded and indexes are built.
        total: Bytes in all.
        done: Bytes of what is finished.
    """

    show: Progress
    on_build: Callable[[], object]
    total: int = 0
    done: int = 0

    def part(self, size: int, done: int, total: int) -> None:
        """Show that *done* of *total* parts of a file of *size* bytes are finished."""
        self.show(self.done + (size * done // total if total else 0), self.total)

    def finish(self, size: int) -> None:
        """Show that a file of *size* bytes is finished."""
        self.done += size
        self.show(self.done, self.total)


def ahead(items: Iterator[T], *, alone: Callable[[T], bool] = lambda _item: False) -> Generator[T]:
    """Yield *items*, making the next in a thread while the caller works on the last.

    Args:
        items: What is made one by one.
        alone: Whether an item is so large that the next is not made before the caller is done.
    """
    end: Any = object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            if alone(item):
                yield item
                coming = thread.submit(next, items, end)
            else:
                coming = thread.submit(next, items, end)
                yield item


def persist(transaction: Callable[[], T]) -> T:
    """Run a transaction, again after each conflict with another.

    Raises:
        TransactionConflict: After ``TRIES`` there was one again.
    """
    for tried in range(1, TRIES):
        try:
            return transaction()
        except TransactionConflict:
            time.sleep(random.uniform(0, FIRST_PAUSE_SECONDS * 2**tried))  # noqa: S311 - jitter
    return transaction()


def merge_apart(
    candidates: Sequence[C],
    merge: Callable[[Sequence[C]], T],
    refuse: Callable[[C, ConstraintViolated], C],
) -> Iterator[T]:
    """Merge candidates in one transaction; where one of them cannot be stored, the others alone.

    Args:
        candidates: In order.
        merge: The transaction.
        refuse: Makes of a candidate that cannot be stored one that is merged as refused.

    Yields:
        The result of each transaction that was kept; none where there are no candidates.
    """
    if not candidates:
        return
    try:
        done = persist(lambda: merge(candidates))
    except ConstraintViolated as error:
        if len(candidates) > 1:
            middle = len(candidates) // 2
            yield from merge_apart(candidates[:middle], merge, refuse)
            yield from merge_apart(candidates[middle:], merge, refuse)
            return
        refused = refuse(candidates[0], error)
        done = persist(lambda: merge([refused]))
    yield done


def _ignore(*_: object) -> None:
    """Show nothing."""
