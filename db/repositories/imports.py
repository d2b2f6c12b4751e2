"""The history of imports: runs and files, every change made to a value, and refused passages."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Final
from uuid import UUID

from psycopg.types.json import Json
from sqlalchemy import (
    ColumnElement,
    Select,
    Text,
    and_,
    any_,
    cast,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert

from pgcorpus.db.base import lock_key
from pgcorpus.db.models.imports import (
    PLACE,
    ImportFile,
    ImportReject,
    ImportRun,
    ImportTransformation,
    Scoped,
)
from pgcorpus.db.repositories.base import Repository


@dataclass(frozen=True, slots=True)
class Change:
    """A value that is stored otherwise than it was given.

    Attributes:
        field: The field's name in the file.
        original: What was given, any JSON; None when nothing was.
        stored: What is stored, any JSON; None when nothing is.
        rule: Name in docs/reference/import-rules.md.
    """

    field: str
    original: Any
    stored: Any
    rule: str


@dataclass(frozen=True, slots=True)
class Changed:
    """A passage with the changes made to it.

    Attributes:
        locator: Where in the file, as a JSON path.
        item: The author's identifier of the passage.
        changes: In the order in which they were made.
        once: Whether changes that the history already shows are left out. True for a passage that
            was not stored: importing it again would otherwise repeat them each time.
    """

    locator: str
    item: str
    changes: Sequence[Change]
    once: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """A passage that was refused.

    Attributes:
        locator: Where in the file, as a JSON path.
        reason: Why.
        payload: The passage as it stood, any JSON.
        context: What the file says of it and its neighbours.
    """

    locator: str
    reason: str
    payload: Any
    context: dict[str, Any] | None


_STAGED_CHANGES: Final = {
    "locator": "text",
    "item": "text",
    "once": "bool",
    "place": "int4",
    "field": "text",
    "original": "json",
    "stored": "json",
    "rule": "text",
}
_STAGED_REFUSALS: Final = {
    "locator": "text",
    "reason": "text",
    "payload": "json",
    "context": "json",
}


class ImportRepository(Repository):
    """The history of imports.

    Rows written within a scope belong to it, and all others to none.
    """

    def lock(self, corpus: str) -> None:
        """Wait for other imports into the corpus, and keep them waiting until the transaction ends.

        A transaction that imports is long, and so may the wait be: there is no timeout.
        """
        self.lift_timeout()
        key = lock_key(f"importing into {corpus}")
        self.session.execute(select(func.pg_advisory_xact_lock(key)))

    def start_run(self, corpus: str, options: dict[str, Any]) -> UUID:
        """Begin the record of one call of an importer.

        Returns:
            The run's key.
        """
        run = ImportRun(corpus=corpus, options=options, scope=self._scope)
        self.session.add(run)
        self.session.flush()
        return run.id

    def finish_run(self, run_id: UUID) -> None:
        """Note the end of a run."""
        self.session.execute(
            update(ImportRun).where(ImportRun.id == run_id).values(finished_at=func.now())
        )

    def add_file(self, file: ImportFile) -> None:
        """Record the counts of one file."""
        file.scope = self._scope
        self.session.add(file)

    def record_changes(self, run_id: UUID, file: str, changed: Sequence[Changed]) -> int:
        """Write changes into the history.

        Args:
            run_id: The run.
            file: The file's full path.
            changed: Passages and what was changed in each.

        Returns:
            For how many passages at least one change was written.
        """
        with self.stage("staged_changes", _STAGED_CHANGES, _change_rows(changed)) as staged:
            told = ImportTransformation
            already = exists().where(
                self._in_scope(told),
                told.item == staged.c.item,
                told.file == file,
                told.field == staged.c.field,
                told.rule == staged.c.rule,
                cast(told.original, Text).is_not_distinct_from(cast(staged.c.original, Text)),
                cast(told.stored, Text).is_not_distinct_from(cast(staged.c.stored, Text)),
            )
            names = ["locator", "item", "field", "original", "stored", "rule"]
            fresh = (
                select(
                    literal(run_id),
                    literal(file),
                    literal(self._scope, Text),
                    *(staged.c[name] for name in names),
                )
                .where(~and_(staged.c.once, already))
                .order_by(staged.c.place)
            )
            written = (
                insert(told)
                .from_select(["run_id", "file", "scope", *names], fresh)
                .returning(told.locator)
                .cte("written")
            )
            counted = self.session.scalar(select(func.count(written.c.locator.distinct())))
        return counted or 0

    def record_refusals(
        self, run_id: UUID, corpus: str, file: str, refused: Sequence[Refused]
    ) -> None:
        """Keep refused passages; those refused at the same place before are replaced."""
        rows = (
            (each.locator, each.reason, Json(each.payload), Json(each.context)) for each in refused
        )
        with self.stage("staged_refusals", _STAGED_REFUSALS, rows) as staged:
            merge = insert(ImportReject).from_select(
                ["run_id", "corpus", "file", "scope", *_STAGED_REFUSALS],
                select(
                    literal(run_id),
                    literal(corpus),
                    literal(file),
                    literal(self._scope, Text),
                    *(staged.c[name] for name in _STAGED_REFUSALS),
                ),
            )
            self.session.execute(
                merge.on_conflict_do_update(
                    index_elements=["scope", "corpus", *PLACE],
                    set_={
                        name: merge.excluded[name]
                        for name in ("run_id", "reason", "payload", "context")
                    },
                )
            )

    def forget_refusals(self, run_id: UUID, corpus: str, file: str) -> None:
        """Delete what earlier runs refused of the file and this one did not."""
        self.session.execute(
            delete(ImportReject).where(
                self._in_scope(ImportReject),
                ImportReject.corpus == corpus,
                ImportReject.file == file,
                ImportReject.run_id != run_id,
            ),
            execution_options={"synchronize_session": False},
        )

    def list_refused(self, corpus: str, file: str) -> list[Refused]:
        """List the refused passages of one file, in the order of the file."""
        found = (
            select(ImportReject)
            .where(
                self._in_scope(ImportReject),
                ImportReject.corpus == corpus,
                ImportReject.file == file,
            )
            .order_by(func.length(ImportReject.locator), ImportReject.locator)
        )
        return [
            Refused(row.locator, row.reason, row.payload, row.context)
            for row in self.session.scalars(found)
        ]

    def list_refused_files(self, corpus: str) -> Sequence[str]:
        """List the files with refused passages, by name."""
        return self.session.scalars(
            select(ImportReject.file)
            .where(self._in_scope(ImportReject), ImportReject.corpus == corpus)
            .distinct()
            .order_by(ImportReject.file)
        ).all()

    def list_changes(
        self,
        corpus: str,
        *,
        item: str | None = None,
        file: str | None = None,
        rule: str | None = None,
        limit: int = 100,
        before: int | None = None,
    ) -> Sequence[ImportTransformation]:
        """List the history of changes, the newest first.

        Args:
            corpus: Whose.
            item: Only those of this passage.
            file: Only those of this file.
            rule: Only those by this rule.
            limit: At most this many.
            before: The last ``id`` of the page before.
        """
        told = ImportTransformation
        changes: Select[ImportTransformation] = (
            select(told)
            .join(ImportRun, ImportRun.id == told.run_id)
            .where(ImportRun.corpus == corpus, self._in_scope_or_shared(told))
            .order_by(told.id.desc())
            .limit(limit)
        )
        if item is not None:
            changes = changes.where(told.item == item)
        if file is not None:
            changes = changes.where(told.file == file)
        if rule is not None:
            changes = changes.where(told.rule == rule)
        if before is not None:
            changes = changes.where(told.id < before)
        return self.session.scalars(changes).all()

    def list_run_changes(self, run_id: UUID) -> Sequence[ImportTransformation]:
        """List the changes that one run made, in their order."""
        told = ImportTransformation
        return self.session.scalars(
            select(told).where(told.run_id == run_id, self._in_scope(told)).order_by(told.id)
        ).all()

    def list_text_changes(
        self, corpus: str, items: Collection[str], rule: str
    ) -> set[tuple[str, str, str]]:
        """List the texts that a rule stored in the place of others.

        Args:
            corpus: Whose.
            items: Passages.
            rule: The rule.

        Returns:
            For each, the passage, the text that was given and the one that was stored.
        """
        told = ImportTransformation
        of_items = literal(list(items), ARRAY(Text))
        found = (
            select(told.item, told.original, told.stored)
            .join(ImportRun, ImportRun.id == told.run_id)
            .where(
                ImportRun.corpus == corpus,
                self._in_scope(told),
                told.rule == rule,
                told.item == any_(of_items),
                func.json_typeof(told.original) == "string",
                func.json_typeof(told.stored) == "string",
            )
        )
        return {(item, original, stored) for item, original, stored in self.session.execute(found)}

    def list_runs(self, corpus: str, *, limit: int = 20) -> Sequence[ImportRun]:
        """List the calls of the importer, the newest first."""
        return self.session.scalars(
            select(ImportRun)
            .where(ImportRun.corpus == corpus, self._in_scope_or_shared(ImportRun))
            .order_by(ImportRun.started_at.desc(), ImportRun.id)
            .limit(limit)
        ).all()

    def list_files(self, run_id: UUID) -> Sequence[ImportFile]:
        """List the files of one run with their counts, in their order."""
        return self.session.scalars(
            select(ImportFile)
            .where(ImportFile.run_id == run_id, self._in_scope_or_shared(ImportFile))
            .order_by(ImportFile.created_at, ImportFile.file)
        ).all()

    def list_rejects(self, corpus: str, *, limit: int = 100) -> Sequence[ImportReject]:
        """List the refused passages that can be tried again, by file."""
        return self.session.scalars(
            select(ImportReject)
            .where(ImportReject.corpus == corpus, self._in_scope_or_shared(ImportReject))
            .order_by(ImportReject.file, func.length(ImportReject.locator), ImportReject.locator)
            .limit(limit)
        ).all()

    @property
    def _scope(self) -> str | None:
        """The scope as the column has it."""
        return None if self.scope is None else str(self.scope)

    def _in_scope(self, table: type[Scoped]) -> ColumnElement[bool]:
        """Restrict *table* to rows of the scope or, without one, of none.

        Only these may be written.
        """
        return table.scope.is_not_distinct_from(self._scope)

    def _in_scope_or_shared(self, table: type[Scoped]) -> ColumnElement[bool]:
        """Restrict *table* to rows of the scope and of none.

        Without a scope, all rows are kept that the role may see.
        """
        if self.scope is None:
            return true()
        return or_(table.scope.is_(None), table.scope == self._scope)


def _change_rows(changed: Iterable[Changed]) -> Iterator[tuple[Any, ...]]:
    place = count()
    for passage in changed:
        for change in passage.changes:
            yield (
                passage.locator,
                passage.item,
                passage.once,
                next(place),
                change.field,
                _json(change.original),
                _json(change.stored),
                change.rule,
            )


def _json(value: Any) -> Json | None:
    """Convert a value for a column where nothing is NULL and not a JSON null."""
    return None if value is None else Json(value)


def fresh_ids(count: int) -> Iterator[UUID]:
    """Yield random keys, from one read of the system's randomness.

    ``uuid4()`` gives the interpreter's lock away each time, and then waits for the thread that
    makes the next batch: 40 µs a key.
    """
    randomness = os.urandom(16 * count)
    return (UUID(bytes=randomness[n : n + 16], version=4) for n in range(0, len(randomness), 16))
