"""The import of agent memory: memories, episodes and vectors, into a tenant's or a user's scope."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

import numpy as np

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import ConstraintViolated, ImportFailed
from pgcorpus.db.models.embeddings import EmbeddingModel
from pgcorpus.db.repositories.embeddings import list_faults
from pgcorpus.db.repositories.imports import Change, Changed, Refused
from pgcorpus.db.repositories.memory.imports import (
    EPISODES,
    NODES,
    Kind,
    Merged,
    Record,
)
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.choices import MEMORY_MODEL, OnConflict
from pgcorpus.services.importers.draft import Rule, Unacceptable
from pgcorpus.services.importers.files import key_of, printable, refuse_special
from pgcorpus.services.importers.importer import (
    Bar,
    Importer,
    Passages,
    Run,
    ahead,
    merge_apart,
)
from pgcorpus.services.importers.language import DEFAULT_LANGUAGE
from pgcorpus.services.importers.report import FileReport
from pgcorpus.services.importers.stream import Element, Records
from pgcorpus.services.importers.text import MAX_NAME, clean
from pgcorpus.services.importers.vectors import batches, map_vectors
from pgcorpus.services.memory.importing.report import STORED_OTHERWISE, MemoryReport, MemoryTally
from pgcorpus.services.memory.importing.rules import Normalised, episode, node

CORPUS: Final = "memory"

BATCH: Final = 2000
BATCH_BYTES: Final = 8 * 1024**2
"""A transaction ends with the record that reaches one of these. While it is written the next is
read."""

BULK: Final = 1000
"""Vectors from which on building an index anew takes less time than keeping it up."""

MAX_UNKNOWN_FIELDS: Final = 100
"""Names that are counted: files with more have values for names."""

TWICE: Final = "twice in the file"
OTHER_TEXT: Final = "the stored text is not the one it came with"


@dataclass(frozen=True)
class _Part:
    """The files of one kind of record in a folder.

    Attributes:
        kind: How it is stored.
        name: Of one record, in messages.
        records: The file of records, below the folder.
        vectors: The file of vectors, in the same order.
        holder: The field of the file's outermost object that may have the list.
        normalise: What a record as it stands becomes.
    """

    kind: Kind
    name: str
    records: str
    vectors: str
    holder: str
    normalise: Callable[..., Normalised]


PARTS: Final = (
    _Part(NODES, "Node", "corpus/nodes.json", "vectors/nodes.npy", "nodes", node),
    _Part(EPISODES, "Episode", "corpus/episodes.json", "vectors/episodes.npy", "episodes", episode),
)


@dataclass(frozen=True)
class _Source:
    """A file of records after a first look through it.

    Attributes:
        part: What it holds.
        path: Where it is.
        size_bytes: How long it is.
        count: How many records it has.
        is_listed: Whether they are a list; else they are the members of an object.
        vectors: float32 of shape ``(count, dimensions)``, or None where there are none.
        faults: Numbers of vectors that cannot be compared, and why: the embedders of old wrote
            zeros wherever a batch failed.
    """

    part: _Part
    path: Path
    size_bytes: int
    count: int
    is_listed: bool
    vectors: np.ndarray | None
    faults: Mapping[int, str] = field(default_factory=dict)

    @property
    def vectors_bytes(self) -> int:
        """The size of the file of vectors."""
        return 0 if self.vectors is None else self.vectors.nbytes


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A record of a file after the rules were applied to it.

    Attributes:
        locator: Where in the file.
        place: The number of its vector.
        id: What it is known by, as far as that can be told.
        record: Or None when it is refused.
        changes: What the rules changed.
        reason: Why it is refused.
    """

    locator: str
    place: int
    id: str | None
    record: Record | None
    changes: Sequence[Change] = ()
    reason: str = ""

    def refuse(self, reason: str) -> _Candidate:
        """Return the same candidate, refused."""
        return _Candidate(self.locator, self.place, self.id, None, reason=reason)

    def refuse_for(self, error: ConstraintViolated) -> _Candidate:
        """Return the same candidate, refused; raise *error* if it was refused before."""
        if self.record is None:
            raise error
        # Some messages of the database quote what they are about.
        return self.refuse(
            str(error) if error.constraint else "the database refuses one of its values"
        )


@dataclass
class _Batch:
    """The candidates of one transaction, each id once.

    Attributes:
        candidates: In the order of the file.
        size_bytes: Of them all, as they stand.
        twice: How many were left out because the file has the same before.
        unknown: Names of fields that have no column.
    """

    candidates: list[_Candidate] = field(default_factory=list)
    size_bytes: int = 0
    twice: int = 0
    unknown: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Options:
    """The options of an import; see ``MemoryImporter``."""

    scope: Scope
    on_conflict: OnConflict
    strict: bool
    dry_run: bool
    embeddings_model: str


class MemoryImporter(Importer[MemoryReport]):
    """Imports what an agent remembered, for one tenant or one user.

    A folder has ``corpus/nodes.json``, ``vectors/nodes.npy`` and so on; each file is optional, but
    not all are. All files are looked through before anything is written. Then some thousand records
    at a time are kept, with their vectors: a run that is stopped is finished by the next. The first
    load of an empty database is made without the indexes that only searches use.

    It works as an operator does, over row security's own condition and not around it: whoever logs
    in enters the scope.

    Args:
        database: Where to.
        scope: Whose the memories are to be.
        on_conflict: What becomes of a stored id: ``keep`` leaves it, ``reject`` refuses another
            text, ``update`` makes it what the file says; how often it was recalled stays.
        strict: Reject a record instead of changing a value that it gives.
        dry_run: Report what would be done, and write nothing.
        language: The text search configuration of the records, one of ``language.NAMES``; ``auto``
            finds it for each.
        embeddings_model: The model that made the vectors.
    """

    corpus = CORPUS

    def __init__(
        self,
        database: Database,
        scope: Scope,
        *,
        on_conflict: OnConflict = "keep",
        strict: bool = False,
        dry_run: bool = False,
        language: str = DEFAULT_LANGUAGE,
        embeddings_model: str = MEMORY_MODEL,
    ) -> None:
        super().__init__(database, strict=strict, dry_run=dry_run, language=language)
        self.scope = scope
        self._options = _Options(scope, on_conflict, strict, dry_run, embeddings_model)

    def _run(self, paths: Sequence[Path], bar: Bar) -> MemoryReport:
        started = time.monotonic()
        model = self._check_database()
        found = [each for path in paths for each in _find(path)]
        total = sum(_size(path) for _, records, vectors in found for path in (records, vectors))
        bar.total = 2 * total
        sources = [self._look_through(*each, model, bar) for each in found]
        with self._record_run(
            MemoryReport(CORPUS),
            paths=[printable(path) for path in paths],
            scope=str(self._options.scope),
            on_conflict=self._options.on_conflict,
            embeddings_model=self._options.embeddings_model,
        ) as run:
            filling = _MemoryRun(run, self._options)
            with self._room(run, sources, model, bar):
                for source in sources:
                    filling.take(source, bar)
        run.report.duration_s = round(time.monotonic() - started, 3)
        return run.report

    def _check_database(self) -> EmbeddingModel:
        """Raise if there are no tables to import into; return the model of the vectors."""
        with self._open_work() as work:
            work.memory_imports.require_tables()
            work.tenancy.require_scope()
            return work.models.get_model(self._options.embeddings_model)

    def _look_through(
        self, part: _Part, path: Path, vectors_path: Path, model: EmbeddingModel, bar: Bar
    ) -> _Source:
        """Read a file of records and its vectors once, and raise for what cannot be imported."""
        size = _size(path)
        try:
            refuse_special(path)
            with path.open("rb") as file:
                records = Records(file, part.holder)
                names = Counter(name is None for name, _ in records)
        except OSError as error:
            raise ImportFailed(f"{printable(path)} cannot be read: {error.strerror}") from error
        except ImportFailed as error:
            raise ImportFailed(f"{printable(path)}: {error}") from error
        bar.finish(size)
        count = names[True] if records.listed else names[False]
        vectors, faults = None, dict[int, str]()
        if vectors_path.exists():
            vectors = map_vectors(vectors_path, dimensions=model.dimensions, model_name=model.name)
            if len(vectors) != count:
                raise ImportFailed(
                    f"{part.name} count mismatch: {count} in {printable(path)}, but {len(vectors)} "
                    f"vectors in {printable(vectors_path)}; run again what made them"
                )
            for start, rows in batches(vectors):
                for fault in list_faults(rows, model.index_kind):
                    faults[start + fault.row] = fault.reason
                bar.finish(rows.nbytes)
        return _Source(part, path, size, count, records.listed, vectors, faults)

    @contextmanager
    def _room(
        self,
        run: Run[MemoryReport],
        sources: Sequence[_Source],
        model: EmbeddingModel,
        bar: Bar,
    ) -> Iterator[None]:
        """Load without the indexes of searches where that is faster, and build them at the end.

        They are what a run that is stopped leaves to the next: searches do without them, slowly.
        """
        bulk = not self._dry_run and sum(source.count for source in sources) >= BULK
        if not bulk:
            yield
            return
        with self._build_indexes_last(run, bar, attrgetter("memory_imports"), [model]):
            yield
        self._index_large_scope(run, model, bar)

    def _index_large_scope(self, run: Run[MemoryReport], model: EmbeddingModel, bar: Bar) -> None:
        """Build the vector index of the scope where it has become large, beside running work.

        Only who owns the tables can; ``pgcorpus doctor`` tells others what is missing.
        """
        with run.transaction() as work:
            large = [
                each
                for kind in (NODES, EPISODES)
                if work.memory_imports.owns_tables()
                for each in work.vector_indexes.list_unindexed_scopes(kind.corpus, model)
                if str(each.scope) == str(self.scope)
            ]
        if large:
            bar.on_build()
        for each in large:
            with self._database.autocommitting() as work:
                work.vector_indexes.build_scope_index(each)

    def _passages(self, work: UnitOfWork) -> Passages:
        return work.memory_imports

    def _corpora(self) -> Sequence[Corpus]:
        return (NODES.corpus, EPISODES.corpus)


class _MemoryRun:
    """A call of the importer while it runs.

    Args:
        run: As it is recorded.
        options: What was asked for.
    """

    def __init__(self, run: Run[MemoryReport], options: _Options) -> None:
        self._run = run
        self._options = options
        self._statistics = run.report.statistics

    def take(self, source: _Source, bar: Bar) -> None:
        """Import one file of records with its vectors."""
        report = FileReport(printable(source.path))
        file = key_of(source.path)
        end = bar.done + source.size_bytes + source.vectors_bytes
        with closing(ahead(self._batches(source))) as batches:
            for batch in batches:
                merge = partial(self._merge, source, file)
                for tally in merge_apart(batch.candidates, merge, _Candidate.refuse_for):
                    tally.add_to(report, self._run.report)
                    self._statistics.add(tally.statistics)
                report.counts["unchanged"] += batch.twice
                self._statistics.left_alone += Counter({TWICE: batch.twice})
                self._count_unknown(batch.unknown)
                records = len(batch.candidates) + batch.twice
                vectors = source.vectors_bytes * records // max(source.count, 1)
                bar.finish(min(batch.size_bytes + vectors, end - bar.done))
        with self._run.transaction() as work:
            work.imports.forget_refusals(self._run.id, CORPUS, file)
            self._run.add_file(work, file, report.counts)
        self._run.report.files.append(report)
        bar.finish(end - bar.done)

    def _batches(self, source: _Source) -> Iterator[_Batch]:
        """Yield the records of a file, normalised; each id once."""
        seen: dict[str, tuple[str, int]] = {}
        batch = _Batch()
        with source.path.open("rb") as file:
            records = (
                each
                for each in Records(file, source.part.holder)
                if (each[0] is None) == source.is_listed
            )
            for place, (name, element) in enumerate(records):
                candidate = self._candidate(source, place, name, element, batch.unknown)
                if candidate.record is not None:
                    digest = hash(repr(candidate.record))
                    first, same = seen.setdefault(candidate.record.id, (candidate.locator, digest))
                    if first != candidate.locator and same == digest:
                        batch.twice += 1
                        batch.size_bytes += element.size_bytes
                        continue
                    if first != candidate.locator:
                        candidate = candidate.refuse(f"{first} has the same id, and differs")
                batch.candidates.append(candidate)
                batch.size_bytes += element.size_bytes
                if len(batch.candidates) >= BATCH or batch.size_bytes >= BATCH_BYTES:
                    yield batch
                    batch = _Batch()
        yield batch

    def _candidate(
        self,
        source: _Source,
        place: int,
        name: str | None,
        element: Element,
        unknown: Counter[str],
    ) -> _Candidate:
        locator = clean(element.locator)
        raw: Any = None
        try:
            raw, damage = element.read()
            normalised = source.part.normalise(
                raw, name=name, strict=self._options.strict, language=self._run.language
            )
        except (ImportFailed, Unacceptable) as error:
            given = raw.get("id", name) if isinstance(raw, dict) else name
            id_ = clean(given)[:MAX_NAME] if isinstance(given, str) else None
            return _Candidate(locator, place, id_, None, reason=str(error))
        unknown.update(normalised.unknown)
        changes = normalised.changes
        if damage is not None:
            changes.append(Change("bytes", damage.offset, damage.count, Rule.ENCODING))
        if (fault := source.faults.get(place)) is not None:
            changes.append(Change("embedding", fault, None, Rule.EMPTY))
        return _Candidate(locator, place, normalised.record.id, normalised.record, changes)

    def _merge(self, source: _Source, file: str, candidates: Sequence[_Candidate]) -> MemoryTally:
        """Write a batch at once, with its vectors, its changes and what was refused of it."""
        kind = source.part.kind
        accepted = [each for each in candidates if each.record is not None]
        refused = [each for each in candidates if each.record is None]
        tally = MemoryTally()
        with self._run.transaction() as work:
            work.imports.lock(f"{CORPUS} of {self._options.scope}")
            merged = work.memory_imports.merge(
                kind,
                [each.record for each in accepted if each.record is not None],
                model_name=self._options.embeddings_model,
                replace=self._options.on_conflict == "update",
            )
            for candidate, each in zip(accepted, merged, strict=True):
                if not each.same_text and self._options.on_conflict == "reject":
                    refused.append(candidate.refuse(STORED_OTHERWISE))
                else:
                    tally.count(candidate.record, each)
            if source.vectors is not None:
                self._store_vectors(work, source, accepted, merged, tally)
            changed = [
                Changed(candidate.locator, candidate.record.id, candidate.changes, once=False)
                for candidate, each in zip(accepted, merged, strict=True)
                if candidate.record and candidate.changes and each.outcome != "unchanged"
            ]
            if changed:
                tally.counts["transformed"] = work.imports.record_changes(
                    self._run.id, file, changed
                )
            for candidate in sorted(refused, key=attrgetter("place")):
                # The history outlives what it tells of: a refused memory is not kept in it.
                payload = {"id": candidate.id}
                tally.refuse(Refused(candidate.locator, candidate.reason, payload, None))
            if tally.refused:
                work.imports.record_refusals(self._run.id, CORPUS, file, tally.refused)
        return tally

    def _store_vectors(
        self,
        work: UnitOfWork,
        source: _Source,
        accepted: Sequence[_Candidate],
        merged: Sequence[Merged],
        tally: MemoryTally,
    ) -> None:
        """Store the vectors of records that are stored as they came and lack theirs.

        Where a vector cannot be compared, the job of the record stays, and a worker makes another.
        """
        corpus, model = source.part.kind.corpus, self._options.embeddings_model
        lacking = []
        for candidate, each in zip(accepted, merged, strict=True):
            if not each.same_text:
                tally.left_out[OTHER_TEXT] += 1
            elif each.is_embedded:
                continue
            elif (fault := source.faults.get(candidate.place)) is not None:
                tally.left_out[f"one {fault}"] += 1
            else:
                lacking.append((candidate.place, each))
        tally.embedded = len(lacking)
        if not lacking or self._options.dry_run or source.vectors is None:
            return
        keys = [each.key for _, each in lacking]
        rows = source.vectors[[place for place, _ in lacking]]
        hashes = [each.content_hash for _, each in lacking]
        tally.embedded = work.embeddings.store(corpus, model, keys, rows, hashes)
        active = work.models.find_active_model(corpus.name)
        if active is not None and active.name == model:
            written = [each.key for _, each in lacking if each.outcome != "unchanged"]
            work.memory_imports.forget_jobs(source.part.kind, written)
            others = [each.key for _, each in lacking if each.outcome == "unchanged"]
            work.jobs.settle(corpus, model, others)

    def _count_unknown(self, unknown: Counter[str]) -> None:
        known = self._statistics.unknown_fields
        for name, count in unknown.items():
            if name in known or len(known) < MAX_UNKNOWN_FIELDS:
                known[name] += count


def _find(folder: Path) -> list[tuple[_Part, Path, Path]]:
    """Find the parts of a folder: each with its file of records and the place of its vectors.

    Raises:
        ImportFailed: It has nothing to import, or vectors of nothing.
    """
    if not folder.is_dir():
        raise ImportFailed(f"there is no folder {printable(folder)}")
    found = []
    for part in PARTS:
        records, vectors = folder / part.records, folder / part.vectors
        if records.exists():
            found.append((part, records, vectors))
        elif vectors.exists():
            raise ImportFailed(
                f"{printable(vectors)} has vectors of what is not there: {printable(records)}"
            )
    if not found:
        wanted = " nor ".join(part.records for part in PARTS)
        raise ImportFailed(f"the folder {printable(folder)} has neither {wanted}")
    return found


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
