"""The import of files of chunks: nothing is lost, and nothing changes silently."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import ConstraintViolated, ImportFailed
from pgcorpus.db.repositories.imports import Changed, Refused, fresh_ids
from pgcorpus.db.repositories.knowledge.chunks import Known, Write
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.choices import OnConflict
from pgcorpus.services.importers.draft import Rule, Unacceptable
from pgcorpus.services.importers.files import Found, find_files, printable, read_json
from pgcorpus.services.importers.importer import (
    Bar,
    Passages,
    RetryingImporter,
    Run,
    ahead,
)
from pgcorpus.services.importers.language import DEFAULT_LANGUAGE
from pgcorpus.services.importers.report import FileReport, ImportReport, Skipped, Tally
from pgcorpus.services.knowledge.chunks import Context, Layout, Place, layout_of
from pgcorpus.services.knowledge.conflicts import Stored, decide
from pgcorpus.services.knowledge.rules import Normalised, identifier_of, normalise
from pgcorpus.services.knowledge.vectors import (
    Arrival,
    VectorSet,
    check_sets,
    read_vectors,
    store_vectors,
)

CORPUS: Final = "knowledge"

FIRST: Final = 1000
BATCH: Final = 5000
"""Chunks that are merged first, and at most at a time. While the database merges one batch, the
next is made: it begins soon, and each batch is up to twice as large as the one before."""

KEPT_BYTES: Final = 16 * 1024**2
"""Files up to this size together are read once, and larger ones once more for their vectors:
parsed, they take some eight times their size in memory."""

NO_CHUNKS: Final = "its list of chunks is empty"


class KnowledgeImporter(RetryingImporter[ImportReport]):
    """Imports files of chunks, and folders of ``.json`` files; each file in a transaction.

    Args:
        database: Where to.
        strict: Reject a chunk instead of changing a value that it gives, or making up one that is
            required.
        dry_run: Report what would be done, and write nothing.
        on_conflict: What becomes of a chunk whose identifier is stored with a different text.
        language: The text search configuration of chunks that name no language, one of
            ``language.NAMES``; ``auto`` finds it for each from its content.
        embeddings: A file of vectors that come along; see ``pgcorpus.services.knowledge.vectors``.
        embeddings_model: The model that made them, where the file does not say.
    """

    corpus = CORPUS

    def __init__(
        self,
        database: Database,
        *,
        strict: bool = False,
        dry_run: bool = False,
        on_conflict: OnConflict = "reject",
        language: str = DEFAULT_LANGUAGE,
        embeddings: Path | None = None,
        embeddings_model: str | None = None,
    ) -> None:
        super().__init__(database, strict=strict, dry_run=dry_run, language=language)
        self._on_conflict = on_conflict
        self._embeddings = embeddings
        self._embeddings_model = embeddings_model

    def _run(self, paths: Sequence[Path], bar: Bar) -> ImportReport:
        files = list(find_files(paths))
        bar.total = sum(found.size_bytes for found in files)
        path = self._embeddings
        kept = [*map(_read, files)] if path is not None and bar.total <= KEPT_BYTES else None

        def read() -> Iterator[_Content]:
            return map(_read, files) if kept is None else iter(kept)

        vectors = [] if path is None else self._vectors(path, read())
        with self._start_run(paths=[printable(path) for path in paths]) as (run, filling):
            with closing(ahead(read())) as contents:
                for content in contents:
                    with frozen():
                        filling.take(content, bar)
                    bar.finish(content.found.size_bytes)
            if vectors:
                filling.store(vectors)
        return run.report

    def _vectors(self, path: Path, contents: Iterable[_Content]) -> list[VectorSet]:
        """Read and check the vectors that come along with the contents of the files."""
        places = [place for content in contents for place in content.layout.places]
        vectors = read_vectors(path, chunks=len(places), model_name=self._embeddings_model)
        coming: set[str] = set()
        if any(each.keys is not None for each in vectors):
            coming = {key for place in places if (key := identifier_of(place.raw)) is not None}
        with self._database.unit_of_work() as work:
            check_sets(work, path, vectors, coming)
        return vectors

    def _passages(self, work: UnitOfWork) -> Passages:
        return work.knowledge

    @contextmanager
    def _start_run(self, **options: Any) -> Iterator[tuple[Run[ImportReport], _Run]]:
        options |= {
            "on_conflict": self._on_conflict,
            "embeddings": None if self._embeddings is None else printable(self._embeddings),
        }
        with self._record_run(ImportReport(CORPUS), **options) as run:
            yield run, _Run(run, strict=self._strict, on_conflict=self._on_conflict)


class _Content(NamedTuple):
    """The content of a file, or the reason why it could not be read."""

    found: Found
    layout: Layout
    sha256: bytes | None = None
    error: str | None = None


class _Candidate(NamedTuple):
    """A chunk after the rules were applied to it."""

    place: Place
    normalised: Normalised | None
    reason: str | None


@dataclass
class _Tally(Tally):
    """A transaction's chunks, in order, and where each of them was met first."""

    arrivals: list[Arrival] = field(default_factory=list)
    first: dict[str, str] = field(default_factory=dict)


class _Run:
    """One call of the importer, under way."""

    def __init__(self, run: Run[ImportReport], *, strict: bool, on_conflict: OnConflict) -> None:
        self.report = run.report
        self._run = run
        self._transaction = run.transaction
        self._language = run.language
        self._strict = strict
        self._on_conflict = on_conflict
        self._first: dict[str, str] = {}
        self._arrivals: list[Arrival] = []

    def take(self, content: _Content, bar: Bar) -> None:
        """Import one file."""
        size, total = content.found.size_bytes, len(content.layout.places)
        self._take(
            content.found.key,
            content.found.name,
            content.layout.places,
            lambda done: bar.part(size, done, total),
            error=content.error,
            sha256=content.sha256,
            header=content.layout.header,
        )

    def take_refused(self, file: str, refused: Sequence[Refused]) -> None:
        """Try again what was refused of one file."""
        places = [
            Place(each.locator, Context(**(each.context or {})), each.payload) for each in refused
        ]
        self._take(file, file, places, lambda _done: None)

    def store(self, vectors: Sequence[VectorSet]) -> None:
        """Store the vectors that came along."""
        with self._transaction() as work:
            work.imports.lock(CORPUS)
            for each in vectors:
                embedded, left_out = store_vectors(work, each, self._arrivals)
                self.report.embedded += embedded
                self.report.left_out += left_out

    def _take(
        self,
        file: str,
        name: str,
        places: Sequence[Place],
        show: Callable[[int], None],
        *,
        error: str | None = None,
        **more: Any,
    ) -> None:
        """Import what one file holds; it is *name* in reports, and *file* in the tables."""
        tally = _Tally()
        try:
            with self._transaction() as work:
                work.imports.lock(CORPUS)
                with (
                    work.knowledge.loading(len(places)),
                    closing(ahead(self._candidates(places))) as batches,
                ):
                    for batch in batches:
                        self._merge(work, file, name, batch, tally)
                        show(len(tally.arrivals))
                if error is None:
                    work.imports.forget_refusals(self._run.id, CORPUS, file)
                self._run.add_file(work, file, tally.counts, error=error, **more)
        except ConstraintViolated as violation:
            # Nothing of the file went in. All of it can be tried again; the others still go in.
            error = str(violation)
            tally = _Tally(
                arrivals=[Arrival(identifier_of(place.raw), same_text=False) for place in places]
            )
            with self._transaction() as work:
                work.imports.lock(CORPUS)
                self._refuse(work, file, [_refusal(each, error) for each in places], tally)
                work.imports.forget_refusals(self._run.id, CORPUS, file)
                self._run.add_file(work, file, tally.counts, error=error, **more)
        report = FileReport(name, error=error)
        tally.add_to(report, self.report)
        if error is None and not places:
            self.report.skipped.append(Skipped(name, NO_CHUNKS))
        self.report.files.append(report)
        self._arrivals += tally.arrivals
        self._first |= tally.first

    def _candidates(self, places: Sequence[Place]) -> Iterator[list[_Candidate]]:
        start, size = 0, min(FIRST, BATCH)
        while start < len(places):
            yield [self._candidate(place) for place in places[start : start + size]]
            start, size = start + size, min(2 * size, BATCH)

    def _candidate(self, place: Place) -> _Candidate:
        try:
            normalised = normalise(
                place.raw, place.context, strict=self._strict, language=self._language
            )
        except Unacceptable as refusal:
            return _Candidate(place, None, str(refusal))
        return _Candidate(place, normalised, None)

    def _merge(
        self,
        work: UnitOfWork,
        file: str,
        name: str,
        batch: Sequence[_Candidate],
        tally: _Tally,
    ) -> None:
        """Decide on each chunk in order, then write all of them at once."""
        stored = _read_stored(work, batch)
        existed = set(stored)
        kept = self._list_kept(work, batch)
        writes: dict[str, Write] = {}
        fresh = fresh_ids(len(batch))
        changed: list[Changed] = []
        refused: list[Refused] = []
        for place, incoming, reason in batch:
            if incoming is None:
                refused.append(_refusal(place, reason))
                tally.arrivals.append(Arrival(identifier_of(place.raw), same_text=False))
                continue
            chunk_id = incoming.record.chunk_id
            at = f"{name} {place.locator}"
            decision = decide(
                incoming,
                stored.get(chunk_id),
                file=file,
                place=at,
                first=self._first.get(chunk_id) or tally.first.get(chunk_id),
                on_conflict=self._on_conflict,
                kept=kept,
            )
            if chunk_id not in self._first:
                tally.first.setdefault(chunk_id, at)
            tally.arrivals.append(Arrival(chunk_id, decision.same_text))
            if decision.outcome == "rejected":
                refused.append(_refusal(place, decision.reason))
                continue
            tally.counts[decision.outcome] += 1
            stays = decision.outcome == "unchanged"
            if decision.changes:
                changed.append(Changed(place.locator, chunk_id, decision.changes, once=stays))
            if not stays:
                id_ = stored[chunk_id].known.id if chunk_id in stored else next(fresh)
                known = Known(id_, incoming.record_hash, file)
                stored[chunk_id] = Stored(known, incoming.record)
                writes[chunk_id] = Write(
                    id_, chunk_id in existed, incoming.record_hash, file, incoming.record
                )
        if writes:
            work.knowledge.write(list(writes.values()))
        if changed:
            transformed = work.imports.record_changes(self._run.id, file, changed)
            tally.counts["transformed"] += transformed
        if refused:
            self._refuse(work, file, refused, tally)

    def _list_kept(
        self, work: UnitOfWork, batch: Sequence[_Candidate]
    ) -> set[tuple[str, str, str]]:
        """List earlier decisions on the identifiers of a batch, where they are asked for."""
        if self._on_conflict != "reject":
            return set()
        incoming = {each.normalised.record.chunk_id for each in batch if each.normalised}
        return work.imports.list_text_changes(CORPUS, incoming, Rule.KEPT)

    def _refuse(
        self, work: UnitOfWork, file: str, refused: Sequence[Refused], tally: _Tally
    ) -> None:
        work.imports.record_refusals(self._run.id, CORPUS, file, refused)
        for each in refused:
            tally.refuse(each)


@contextmanager
def frozen() -> Iterator[None]:
    """Exempt all present objects from the walks of the garbage collector.

    A file is a million objects that live until it is imported.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _read(found: Found) -> _Content:
    nothing = Layout(None, [])
    if found.error is not None:
        return _Content(found, nothing, error=found.error)
    sha256 = None
    try:
        loaded = read_json(found.path)
        sha256 = loaded.sha256
        return _Content(found, layout_of(loaded.document), sha256)
    except ImportFailed as error:
        return _Content(found, nothing, sha256, str(error))


def _read_stored(work: UnitOfWork, batch: Sequence[_Candidate]) -> dict[str, Stored]:
    """Read the stored chunks with the identifiers of a batch; complete, where they differ."""
    incoming = [candidate.normalised for candidate in batch if candidate.normalised is not None]
    known = work.knowledge.list_known({each.record.chunk_id for each in incoming})
    others = {
        chunk_id
        for each in incoming
        if (chunk_id := each.record.chunk_id) in known
        and known[chunk_id].record_hash != each.record_hash
    }
    records = work.knowledge.list_records(others) if others else {}
    return {
        chunk_id: Stored(each, records.get(chunk_id))
        for chunk_id, each in known.items()
        if chunk_id not in others or chunk_id in records  # else it was deleted a moment ago
    }


def _refusal(place: Place, reason: str | None) -> Refused:
    return Refused(place.locator, reason or "", place.raw, place.context.as_json())
