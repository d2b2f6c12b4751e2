"""The import of chat exports: conversation by conversation, whatever the file's length."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import ConstraintViolated, ImportFailed
from pgcorpus.db.repositories.chat.imports import ConversationWrite, KnownConversation
from pgcorpus.db.repositories.imports import Change, Changed, Refused
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.chat.exporting.exporter import as_json
from pgcorpus.services.chat.importing import pgcorpus
from pgcorpus.services.chat.importing.candidates import (
    LEGACY,
    Batch,
    Candidate,
    Key,
    NoConversations,
    Reading,
    batches,
)
from pgcorpus.services.chat.importing.decisions import (
    Decision,
    decide,
    describe_time,
    list_replacements,
)
from pgcorpus.services.chat.importing.report import ChatReport, ChatTally
from pgcorpus.services.chat.importing.sources import NO_JSON, Opened, Source, find, sources_of
from pgcorpus.services.chat.importing.vectors import store_vectors
from pgcorpus.services.choices import ChatFormat
from pgcorpus.services.importers.draft import Unacceptable
from pgcorpus.services.importers.files import Found, printable
from pgcorpus.services.importers.importer import (
    Bar,
    Passages,
    RetryingImporter,
    Run,
    ahead,
    merge_apart,
)
from pgcorpus.services.importers.language import DEFAULT_LANGUAGE
from pgcorpus.services.importers.report import FileReport, Skipped
from pgcorpus.services.importers.stream import Element
from pgcorpus.services.importers.text import clean

CORPUS: Final = "chat"


class ChatImporter(RetryingImporter[ChatReport]):
    """Imports exports of conversations: files, zips, folders of them, and legacy stores.

    Conversations are kept some thousand messages at a time, whole: a run that is stopped is
    finished by the next. One that cannot be stored does not stop the others, and what stands before
    an error in a file is imported.

    Args:
        database: Where to.
        format: The only format to take, or ``auto``: each conversation says by its content what it
            is.
        strict: Reject a conversation instead of changing anything that it gives.
        dry_run: Report what would be done, and write nothing.
        language: The text search configuration of the messages, one of ``language.NAMES``;
            ``auto`` finds it for each.
        embeddings_model: The model that made the vectors of a legacy store; None: what the store
            says.
    """

    corpus = CORPUS

    def __init__(
        self,
        database: Database,
        *,
        format: ChatFormat = "auto",  # noqa: A002 - as the option is called
        strict: bool = False,
        dry_run: bool = False,
        language: str = DEFAULT_LANGUAGE,
        embeddings_model: str | None = None,
    ) -> None:
        super().__init__(database, strict=strict, dry_run=dry_run, language=language)
        self._format = format
        self._embeddings_model = embeddings_model

    def _run(self, paths: Sequence[Path], bar: Bar) -> ChatReport:
        files, others = find(paths)
        bar.total = sum(each.size_bytes for each in files)
        with self._start_run(paths=[printable(path) for path in paths]) as (run, filling):
            for found in files:
                filling.take(found, asked=found.path in paths, bar=bar)
            filling.refuse_barren(paths)
            run.report.skipped += [Skipped(printable(path), NO_JSON) for path in others]
        return run.report

    def _passages(self, work: UnitOfWork) -> Passages:
        return work.chat_imports

    @contextmanager
    def _start_run(self, **options: Any) -> Iterator[tuple[Run[ChatReport], _ChatRun]]:
        if self._embeddings_model is not None:
            with self._database.unit_of_work() as work:
                work.models.get_model(self._embeddings_model)
        options |= {"format": self._format, "embeddings_model": self._embeddings_model}
        with self._record_run(ChatReport(CORPUS), **options) as run:
            reading = Reading(self._format, strict=self._strict, language=run.language)
            yield run, _ChatRun(run, reading, self._embeddings_model)


class _ChatRun:
    """One call of the importer, under way."""

    def __init__(
        self, run: Run[ChatReport], reading: Reading, embeddings_model: str | None
    ) -> None:
        self.report = run.report
        self._run = run
        self._transaction = run.transaction
        self._reading = reading
        self._embeddings_model = embeddings_model
        self._first: dict[Key, str] = {}
        self._fruitful: list[Path] = []

    def take(self, found: Found, *, asked: bool, bar: Bar) -> None:
        """Import a file, or what is in a zip."""
        end = bar.done + found.size_bytes
        reports = len(self.report.files)
        with closing(sources_of(found, asked=asked)) as sources:
            for source in sources:
                if source.skipped is None:
                    self._take_source(source, bar)
                else:
                    self.report.skipped.append(Skipped(source.name, source.skipped))
                bar.finish(source.size_bytes)
        if len(self.report.files) > reports:
            self._fruitful.append(found.path)
        elif asked:  # a zip of which everything was skipped
            self.report.files.append(FileReport(found.name, error=str(NoConversations())))
        bar.finish(end - bar.done)

    def refuse_barren(self, folders: Sequence[Path]) -> None:
        """Report the folders of which everything was skipped.

        A named folder should hold something.
        """
        fruits = [fruit for path in self._fruitful for fruit in (path, path.resolve())]
        for folder in folders:
            if folder.is_dir() and not any(
                fruit.is_relative_to(root)
                for fruit in fruits
                for root in (folder, folder.resolve())
            ):
                error = str(NoConversations())
                self.report.files.append(FileReport(printable(folder), error=error))

    def take_refused(self, file: str, refused: Sequence[Refused]) -> None:
        """Try again what was refused of one file."""
        self._take(file, FileReport(file), map(self._again, refused), lambda _done: None)

    def _again(self, refused: Refused) -> Candidate:
        """Read a refused value again, together with the place that it was refused at."""
        candidate = self._reading.candidate(_rebuild_element(refused))
        return replace(candidate, stands_at=(refused.context or {}).get("stands_at"))

    def _take_source(self, source: Source, bar: Bar) -> None:
        def show(done: int) -> None:
            bar.part(source.size_bytes, min(done, source.length), source.length)

        report = FileReport(source.name)
        try:
            with self._way_into(source)() as elements:
                self._take(source.key, report, map(self._reading.candidate, elements), show)
        except NoConversations as error:
            if not source.asked:
                self.report.skipped.append(Skipped(source.name, str(error)))
                return
            self._finish(source.key, report, error)
        except ImportFailed as error:  # of what comes before the first conversation
            self._finish(source.key, report, error)

    def _way_into(self, source: Source) -> Opened:
        """Return the opener of a source with which a conversation is found in it.

        Raises:
            NoConversations: There is no way.
            ImportFailed: It cannot be read as far as its first conversation.
        """
        if source.format is not None and not self._reading.takes(source.format):
            raise NoConversations
        if source.whole is None:
            return source.open
        failure = None
        for opened in (source.open, source.whole):
            try:
                with opened() as elements:
                    # What is too long to be read may be a conversation in a list, but as a whole
                    # it is only a list of something else.
                    known = (
                        self._reading.knows(each)
                        for each in elements
                        if each.text is not None or opened is source.open
                    )
                    # In a thread, as all is read afterwards: each has memory of its own, which it
                    # does not give back at once.
                    with closing(ahead(known, alone=bool)) as answers:
                        if any(answers):
                            return opened
            except ImportFailed as error:
                failure = failure or error
        raise failure or NoConversations

    def _take(
        self,
        file: str,
        report: FileReport,
        candidates: Iterator[Candidate],
        show: Callable[[int], None],
    ) -> None:
        """Import one file; what stands before an error in it is imported."""
        failure: ImportFailed | None = None
        with closing(ahead(batches(candidates), alone=Batch.is_long)) as read:
            try:
                for batch in read:
                    self._keep_or_skip(file, report, batch.candidates)
                    batch.candidates.clear()
                    show(batch.end)
            except ImportFailed as error:
                failure = error
        self._finish(file, report, failure)

    def _finish(self, file: str, report: FileReport, error: ImportFailed | None) -> None:
        report.error = None if error is None else str(error)
        with self._transaction() as work:
            if error is None:
                work.imports.forget_refusals(self._run.id, CORPUS, file)
            self._run.add_file(work, file, report.counts, error=report.error)
        self.report.files.append(report)

    def _keep_or_skip(self, file: str, report: FileReport, candidates: Sequence[Candidate]) -> None:
        self.report.skipped += [
            Skipped(report.file, each.reason, each.element.locator)
            for each in candidates
            if each.is_skipped
        ]
        if kept := [each for each in candidates if not each.is_skipped]:
            self._keep(file, report, kept)

    def _keep(self, file: str, report: FileReport, candidates: Sequence[Candidate]) -> None:
        """Keep conversations together; where one of them cannot be kept, the others."""
        for tally in merge_apart(candidates, partial(self._merge, file), _refuse):
            tally.add_to(report, self.report)
            self.report.messages += tally.messages
        for each in candidates:
            if each.key is not None:
                self._first.setdefault(each.key, f"{report.file} {each.element.locator}")

    def _merge(self, file: str, candidates: Sequence[Candidate]) -> ChatTally:
        """Decide for each conversation, then write what was decided at once."""
        tally = ChatTally()
        with self._transaction() as work:
            work.imports.lock(CORPUS)
            keys = {each.key for each in candidates if each.key is not None}
            known = work.chat_imports.list_known(keys)
            same = _list_same(work, candidates, known)
            decisions = [self._decide(each, known, same, file) for each in candidates]
            written = work.chat_imports.write(
                [
                    ConversationWrite(
                        id=decision.id,
                        known=known.get(each.key),
                        record_hash=each.record_hash,
                        imported_from=file,
                        languages=each.languages,
                        record=each.record,
                    )
                    for each, decision in zip(candidates, decisions, strict=True)
                    if decision.writes and each.record and each.key and decision.id
                ]
            )
            tally.messages = written.messages
            former: dict[UUID | None, list[Change]] = defaultdict(list)
            for each in written.former:
                former[each.conversation_id] += list_replacements(each)
            for timed in written.timed:
                former[timed.conversation_id].append(describe_time(timed))
            changed = []
            for candidate, decision in zip(candidates, decisions, strict=True):
                locator = candidate.element.locator
                if candidate.record is None or decision.id is None:
                    payload = candidate.element.as_json()
                    context = decision.stands_at and {"stands_at": decision.stands_at}
                    reason = clean(decision.reason)
                    tally.refuse(Refused(locator, reason, payload, context or None))
                    continue
                tally.counts[decision.outcome] += 1
                own = candidate.changes if decision.writes else ()
                changes = [*own, *decision.changes, *former[decision.id]]
                if changes:
                    once = decision.outcome == "unchanged"
                    changed.append(Changed(locator, candidate.record.source_id, changes, once))
                self._store_vectors(work, candidate, decision.id, tally)
            if changed:
                transformed = work.imports.record_changes(self._run.id, file, changed)
                tally.counts["transformed"] = transformed
            if tally.refused:
                work.imports.record_refusals(self._run.id, CORPUS, file, tally.refused)
        return tally

    def _store_vectors(
        self, work: UnitOfWork, candidate: Candidate, conversation_id: UUID, tally: ChatTally
    ) -> None:
        vectors, record = candidate.element.vectors, candidate.record
        if vectors is not None and record is not None:
            embedded, left_out = store_vectors(
                work, vectors, record, conversation_id, model_name=self._embeddings_model
            )
            tally.embedded += embedded
            tally.left_out += left_out

    def _decide(
        self,
        candidate: Candidate,
        known: Mapping[Key, KnownConversation],
        same: Collection[Key],
        file: str,
    ) -> Decision:
        if candidate.record is None or candidate.key is None:
            return Decision("rejected", reason=candidate.reason)
        return decide(
            candidate.record,
            candidate.record_hash,
            known.get(candidate.key),
            file=file,
            first=self._first.get(candidate.key, candidate.stands_at),
            legacy=candidate.format == LEGACY,
            same=candidate.key in same,
        )


def _list_same(
    work: UnitOfWork, candidates: Sequence[Candidate], known: Mapping[Key, KnownConversation]
) -> set[Key]:
    """List the exports of this archive that are what is stored.

    Their hash is another where a provider's export was stored: it lacked what the archive made up,
    and what was done here since then.
    """
    same = set()
    for each in candidates:
        if each.format != pgcorpus.SOURCE or each.key is None or each.key not in known:
            continue
        stored = known[each.key]
        if stored.record_hash != each.record_hash:
            conversation = work.chat.get(stored.id)
            messages = work.messages.list_messages(stored.id, branch=None)
            with suppress(Unacceptable):  # plain SQL may have stored what no export is
                if pgcorpus.read(as_json(conversation, messages)).record == each.record:
                    same.add(each.key)
    return same


def _refuse(candidate: Candidate, error: ConstraintViolated) -> Candidate:
    """Return the candidate, refused; raise *error* if it was refused before."""
    if candidate.record is None:
        raise error
    return replace(candidate, record=None, reason=str(error))


def _rebuild_element(refused: Refused) -> Element:
    """Return a refused value as it stood; a text is one that JSON could not hold."""
    payload = refused.payload
    text = payload if isinstance(payload, str) else json.dumps(payload)
    fault = refused.reason if payload is None else None
    return Element(refused.locator, 0, len(text), text.encode(errors="replace"), fault)
