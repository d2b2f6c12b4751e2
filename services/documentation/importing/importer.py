"""The import of documents: what is unchanged costs nothing, and what moved keeps its vectors."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Final
from urllib.parse import quote
from uuid import UUID

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import ConstraintViolated, ImportFailed
from pgcorpus.db.models.documentation import DEFAULT_COLLECTION
from pgcorpus.db.repositories.documentation.documents import (
    DocumentRecord,
    StoredDocument,
    Written,
)
from pgcorpus.db.scope import Scope
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.documentation.chunker import DEFAULT_CONFIG, ChunkerConfig
from pgcorpus.services.documentation.drafting import Drafting
from pgcorpus.services.documentation.importing.report import DocumentationReport
from pgcorpus.services.documentation.importing.sources import Root, Source, find_roots
from pgcorpus.services.documentation.importing.sqlite import DatabaseFilling, is_database, read_zone
from pgcorpus.services.documentation.reading.document import Unreadable
from pgcorpus.services.documentation.reading.formats import read_document
from pgcorpus.services.importers.files import printable
from pgcorpus.services.importers.importer import (
    Bar,
    Importer,
    Passages,
    Run,
    ahead,
    merge_apart,
)
from pgcorpus.services.importers.language import DEFAULT_LANGUAGE
from pgcorpus.services.importers.report import COUNTS, FileReport, Skipped

CORPUS: Final = "documentation"

BATCH: Final = 1000
"""Chunks of a transaction: while one batch is written, the next is read."""


class DocumentationImporter(Importer[DocumentationReport]):
    """Imports files, folders, zips and patterns; a thousand chunks in a transaction.

    A file that is stored with the same content is not read. Of a changed one only the chunks that
    changed are embedded anew. A document whose file was moved keeps its vectors; one whose file is
    gone stays, unless it is pruned. A run that is stopped is finished by the next.

    Args:
        database: Where to.
        scope: The tenant whose documents they are; None: they are everybody's.
        collection: The collection that they belong to.
        base_url: Address of the folder, for relative links and citations; its files are below it.
        prune: Delete documents whose files are gone from the folders that are imported.
        max_tokens: Tokens of a chunk at most, 8 to 8192.
        overlap_tokens: Tokens at most that a chunk repeats from the one before it.
        time_zone: Zone of the times of clicks in old SQLite files, which name none.
        dry_run: Report what would be done, and write nothing.
        language: The text search configuration of what names no language; ``auto`` finds it.
    """

    corpus = CORPUS

    def __init__(
        self,
        database: Database,
        scope: Scope | None = None,
        *,
        collection: str = DEFAULT_COLLECTION,
        base_url: str | None = None,
        prune: bool = False,
        max_tokens: int = DEFAULT_CONFIG.max_tokens,
        overlap_tokens: int = DEFAULT_CONFIG.overlap_tokens,
        time_zone: str = "UTC",
        dry_run: bool = False,
        language: str = DEFAULT_LANGUAGE,
    ) -> None:
        super().__init__(database, strict=False, dry_run=dry_run, language=language)
        self.scope = scope
        self._collection = collection
        self._base_url = base_url
        self._prune = prune
        self._zone = read_zone(time_zone)
        self._config = ChunkerConfig(max_tokens=max_tokens, overlap_tokens=overlap_tokens)

    def _run(self, paths: Sequence[Path], bar: Bar) -> DocumentationReport:
        started = time.monotonic()
        databases = [path for path in paths if is_database(path)]
        files = [path for path in paths if path not in databases]
        with ExitStack() as zips:
            roots = find_roots(files, zips) if files else []
            bar.total = sum(source.size_bytes for root in roots for source in root.sources)
            bar.total += sum(path.stat().st_size for path in databases)
            with self._record_run(
                DocumentationReport(CORPUS),
                paths=[printable(path) for path in paths],
                scope=None if self.scope is None else str(self.scope),
                collection=self._collection,
                prune=self._prune,
            ) as run:
                drafting = Drafting(
                    collection=self._collection,
                    config=self._config,
                    language=run.language,
                    lineage_id=str(run.id),
                )
                filling = _DocumentationRun(run, roots, drafting, self._base_url)
                filling.take_all(bar)
                filling.end(prune=self._prune)
                for path in databases:
                    DatabaseFilling(run, drafting, path, self._zone).take_all(bar)
        run.report.duration_s = round(time.monotonic() - started, 3)
        return run.report

    def _passages(self, work: UnitOfWork) -> Passages:
        return work.documentation


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A file after it was read.

    Attributes:
        source: The file.
        digest: SHA-256 of its content, in hexadecimal digits; empty where it could not be read.
        record: Its document; None where it is stored already, or refused.
        stored: The document that is stored at its path.
        error: Why it is refused, or None.
    """

    source: Source
    digest: str = ""
    record: DocumentRecord | None = None
    stored: StoredDocument | None = None
    error: str | None = None

    @property
    def chunks(self) -> int:
        """The number of chunks that are written for it."""
        return 0 if self.record is None else len(self.record.chunks)

    def refuse_for(self, error: ConstraintViolated) -> _Candidate:
        """Return the same file, refused; raise *error* if it was refused before."""
        if self.record is None:
            raise error
        # Some messages of the database quote what they are about.
        reason = str(error) if error.constraint else "the database refuses one of its values"
        return _Candidate(self.source, self.digest, error=reason)


@dataclass
class _DocumentationRun:
    """One call of the importer, under way."""

    run: Run[DocumentationReport]
    roots: Sequence[Root]
    drafting: Drafting
    base_url: str | None
    _stored: dict[str, StoredDocument] = field(default_factory=dict)
    _missing: dict[str, StoredDocument] = field(default_factory=dict)

    def take_all(self, bar: Bar) -> None:
        """Import every file, in batches."""
        with self.run.transaction() as work:
            stored = work.documentation.list_stored(self.drafting.collection)
        self._stored = {each.path: each for each in stored}
        self._missing = self._find_missing()
        batch: list[_Candidate] = []
        with closing(ahead(self._read_all())) as candidates:
            for candidate in candidates:
                batch.append(candidate)
                if sum(each.chunks for each in batch) >= BATCH or len(batch) >= BATCH:
                    self._merge(batch, bar)
                    batch = []
        self._merge(batch, bar)

    def end(self, *, prune: bool) -> None:
        """Delete the documents whose files are gone, or count them."""
        self.run.report.missing = len(self._missing)
        if prune and self._missing:
            with self.run.transaction() as work:
                work.imports.lock(CORPUS)
                ids = [each.id for each in self._missing.values()]
                self.run.report.pruned = work.documentation.delete(ids)
            self.run.report.missing = 0
            self.run.renews_statistics = True

    def _find_missing(self) -> dict[str, StoredDocument]:
        """Return the stored documents of the given folders whose files are gone, by path."""
        present = {source.path for root in self.roots for source in root.sources}
        prefixes = tuple(root.prefix for root in self.roots if root.prefix is not None)
        # Where something could not be looked at, nothing is known to be gone.
        if any(source.error for root in self.roots for source in root.sources):
            return {}
        return {
            path: each
            for path, each in self._stored.items()
            if path not in present and path.startswith(prefixes or ("\0",))
        }

    def _read_all(self) -> Iterator[_Candidate]:
        seen: dict[str, str] = {}
        for root in self.roots:
            for source in root.sources:
                if source.skipped is not None:
                    self.run.report.skipped.append(Skipped(source.name, source.skipped))
                elif source.path in seen:
                    other = seen[source.path]
                    yield _Candidate(source, error=f"its path in the collection is that of {other}")
                else:
                    seen[source.path] = source.name
                    yield self._read(source)

    def _read(self, source: Source) -> _Candidate:
        """Read a file, unless it is stored as it is."""
        if source.error is not None:
            return _Candidate(source, error=source.error)
        stored = self._stored.get(source.path)
        try:
            content = source.read()
            digest = sha256(content).hexdigest()
            if stored is not None and stored.hash == digest and self._is_cut_so(stored):
                return _Candidate(source, digest, stored=stored)
            base = None if self.base_url is None else _join(self.base_url, source.inner)
            document = read_document(content, name=source.path, base=base)
        except (ImportFailed, Unreadable) as error:
            return _Candidate(source, error=str(error))
        record = self.drafting.draft(
            document,
            path=source.path,
            digest=digest,
            source_url=document.source_url or base,
        )
        return _Candidate(source, digest, record, stored)

    def _is_cut_so(self, stored: StoredDocument) -> bool:
        return stored.chunker is None or stored.chunker == self.drafting.chunker

    def _merge(self, batch: Sequence[_Candidate], bar: Bar) -> None:
        for written in merge_apart(batch, self._write, _Candidate.refuse_for):
            for candidate, chunks in written:
                self._report(candidate, chunks)
                bar.finish(candidate.source.size_bytes)

    def _write(self, batch: Sequence[_Candidate]) -> list[tuple[_Candidate, Written | None]]:
        """Write a batch in a transaction of its own."""
        records = [each.record for each in batch if each.record is not None]
        with self.run.transaction() as work:
            if records or any(each.error for each in batch):
                work.imports.lock(CORPUS)
            if moved := self._find_moved(batch):
                work.documentation.move(moved)
            written = work.documentation.write(records) if records else {}
            for each in batch:
                if each.stored is None or each.record is not None:
                    counts = _count(written.get((self.drafting.collection, each.source.path)))
                    digest = bytes.fromhex(each.digest) or None
                    self.run.add_file(
                        work, each.source.key, counts, error=each.error, sha256=digest
                    )
        return [(each, written.get((self.drafting.collection, each.source.path))) for each in batch]

    def _find_moved(self, batch: Sequence[_Candidate]) -> dict[UUID, tuple[str, Sequence[str]]]:
        """Return the documents whose files have moved to a path of the batch."""
        by_hash: dict[str, StoredDocument] = {}
        for each in self._missing.values():
            if each.hash is not None and self._is_cut_so(each):
                by_hash.setdefault(each.hash, each)
        moved: dict[UUID, tuple[str, Sequence[str]]] = {}
        for candidate in batch:
            if candidate.record is None or candidate.stored is not None:
                continue
            former = by_hash.pop(candidate.digest, None)
            if former is not None and former.chunks == candidate.chunks:
                names = [chunk.chunk_id for chunk in candidate.record.chunks]
                moved[former.id] = (candidate.source.path, names)
        return moved

    def _report(self, candidate: _Candidate, written: Written | None) -> None:
        """Report a file, now that its transaction was kept."""
        report, source = self.run.report, candidate.source
        counts = _count(written)
        if candidate.record is None and candidate.stored is not None:
            counts["unchanged"] = candidate.stored.chunks
            report.unchanged_documents += 1
        report.files.append(FileReport(source.name, Counter(counts), candidate.error))
        report.documents += candidate.error is None
        if written is not None:
            report.deleted += written.deleted
            for path, former in list(self._missing.items()):
                if former.id == written.id:
                    del self._missing[path]
                    report.moved += 1


def _count(written: Written | None) -> dict[str, int]:
    counts = dict.fromkeys(COUNTS, 0)
    if written is not None:
        counts |= {name: getattr(written, name) for name in ("added", "updated", "unchanged")}
    return counts


def _join(base: str, path: str) -> str:
    return f"{base.rstrip('/')}/{quote(path)}"
