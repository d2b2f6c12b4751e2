"""Memories and episodes as records of an import, and how they are written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from functools import cached_property
from operator import attrgetter
from typing import Any, Final, Literal
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb
from sqlalchemy import (
    ARRAY,
    Boolean,
    ColumnElement,
    DateTime,
    Double,
    Integer,
    Row,
    SmallInteger,
    String,
    TableClause,
    Text,
    Uuid,
    and_,
    any_,
    cast,
    delete,
    func,
    literal,
    or_,
    select,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB, REGCONFIG, insert
from sqlalchemy.sql.selectable import LateralFromClause
from sqlalchemy.types import TypeEngine

from pgcorpus.db.choices import Complexity, ConversationMode, EmotionalValence, IntentType, Urgency
from pgcorpus.db.errors import DatabaseNotReady, InvalidValue, TransactionConflict
from pgcorpus.db.models.jobs import Job
from pgcorpus.db.repositories.embeddings import text_hash
from pgcorpus.db.repositories.first_load import FirstLoad
from pgcorpus.db.repositories.imports import fresh_ids
from pgcorpus.db.repositories.jobs import EMBED, PENDING, embed_key
from pgcorpus.db.search import corpora
from pgcorpus.db.search.corpus import Corpus


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """One exchange, normalised; the fields are named as the columns.

    Attributes:
        created_at: When it was said, or None where nobody knows.
        language: Name of a text search configuration.
        extra: JSON object of the fields that have no column.
    """

    id: str
    conversation_id: str
    sequence_index: int
    human_content: str
    assistant_content: str
    source: str
    created_at: datetime | None
    intent_type: IntentType
    complexity: Complexity
    technical_depth: int
    emotional_valence: EmotionalValence
    urgency: Urgency
    conversation_mode: ConversationMode
    action_required: bool
    has_code: bool
    has_error: bool
    tags: dict[str, Any]
    cluster_id: int | None
    cluster_label: str | None
    cluster_confidence: float | None
    access_count: int
    last_accessed: datetime | None
    duplicate_of: str | None
    language: str
    extra: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeRecord:
    """One conversation, normalised; the fields are named as the columns.

    Attributes:
        created_at: When it began, or None where nobody knows.
        updated_at: When it ended, or None where nobody knows.
        language: Name of a text search configuration.
        extra: JSON object of the fields that have no column.
    """

    id: str
    title: str
    messages: list[Any]
    message_count: int
    source: str
    created_at: datetime | None
    updated_at: datetime | None
    duration_minutes: float | None
    llm_tags: dict[str, Any]
    dominant_intent: IntentType | None
    avg_complexity: float | None
    avg_technical_depth: float | None
    emotional_arc: str | None
    has_code: bool
    has_errors: bool
    urgency_max: Urgency | None
    memory_node_ids: list[str]
    related_episode_ids: list[str]
    access_count: int
    last_accessed: datetime | None
    language: str
    extra: dict[str, Any]


Record = NodeRecord | EpisodeRecord


@dataclass(frozen=True)
class Kind:
    """The tables that records of one kind are stored in.

    Attributes:
        corpus: Where.
        record: Their class.
        said: The columns that the embedded text is made of.
        moments: Columns that a record may lack a value for; each then becomes what is stored
            already, the one before it, or the present.
    """

    corpus: Corpus
    record: type[Record]
    said: tuple[str, ...]
    moments: tuple[str, ...]

    @cached_property
    def columns(self) -> dict[str, str]:
        """The types of the columns as they are staged, in the order of the record's fields."""
        columns = self.corpus.passages.c
        return {
            field.name: STAGED_TYPES[type(columns[field.name].type)]
            for field in fields(self.record)
        }

    def row(self, record: Record) -> list[Any]:
        """Return the values to be staged."""
        values = list(self._values(record))
        for place in self._json:
            values[place] = Jsonb(values[place])
        return values

    @cached_property
    def _values(self) -> Callable[[Record], tuple[Any, ...]]:
        return attrgetter(*self.columns)

    @cached_property
    def _json(self) -> list[int]:
        return [place for place, kind in enumerate(self.columns.values()) if kind == "jsonb"]


STAGED_TYPES: Final[Mapping[type[TypeEngine[Any]], str]] = {
    ARRAY: "text[]",
    Boolean: "bool",
    DateTime: "timestamptz",
    Double: "float8",
    Integer: "int4",
    JSONB: "jsonb",
    REGCONFIG: "text",
    SmallInteger: "int2",
    String: "text",
    Text: "text",
}

NODES: Final = Kind(
    corpora.MEMORY, NodeRecord, said=("human_content", "assistant_content"), moments=("created_at",)
)
EPISODES: Final = Kind(
    corpora.EPISODES,
    EpisodeRecord,
    said=("title", "messages", "llm_tags"),
    moments=("created_at", "updated_at"),
)

OF_USE: Final = frozenset({"access_count", "last_accessed", "duplicate_of"})
"""Columns that record what became of a memory here; an import never replaces them."""

TABLES: Final = tuple(
    table for kind in (NODES, EPISODES) for table in (kind.corpus.passages, kind.corpus.vectors)
)

EXISTS: Final = text("SELECT to_regclass('memory_nodes') IS NOT NULL")

Outcome = Literal["added", "updated", "unchanged"]


@dataclass(frozen=True, slots=True)
class Merged:
    """The outcome of a record.

    Attributes:
        key: Of its row.
        outcome: Whether the row is new, was replaced, or was left as it was.
        same_text: Whether the stored text is what the record says.
        content_hash: SHA-256 of the stored text.
        is_embedded: Whether the stored text has its vector.
    """

    key: UUID
    outcome: Outcome
    same_text: bool
    content_hash: bytes
    is_embedded: bool


class MemoryImportRepository(FirstLoad):
    """Writes memories by the thousand, into the scope of the unit of work."""

    corpora = tuple(kind.corpus for kind in (NODES, EPISODES))
    tables = TABLES

    def require_tables(self) -> None:
        """Raise if the tables to import into do not exist.

        Raises:
            DatabaseNotReady: There is not.
        """
        if not self.session.scalar(EXISTS):
            raise DatabaseNotReady(
                "memory_nodes table does not exist; make it with: pgcorpus db upgrade"
            )

    def count(self) -> int:
        """Count the memories and episodes that the role sees."""
        counts = (
            select(func.count())
            .select_from(passages)
            .where(*self.in_scope(kind.corpus, passages))
            .scalar_subquery()
            for kind in (NODES, EPISODES)
            for passages in (kind.corpus.passages,)
        )
        return self.session.scalar(select(sum(counts, start=literal(0)))) or 0

    def analyze(self) -> None:
        """Renew the planner's statistics of every table that an import fills."""
        self.renew_statistics(*(table.name for table in TABLES))

    def merge(
        self, kind: Kind, records: Sequence[Record], *, model_name: str, replace: bool
    ) -> list[Merged]:
        """Add records to the scope, and keep or replace those whose id exists.

        Args:
            kind: Of which kind they are.
            records: No two with the same id.
            model_name: Whose vectors are looked for.
            replace: Whether a stored record that differs becomes the new one; how often it was
                recalled, and who wrote it, stays.

        Returns:
            What became of each, in their order.

        Raises:
            MissingScope: The unit of work has none.
            InvalidValue: A value of one of them cannot be sent to PostgreSQL.
            TransactionConflict: Another process has just deleted one of them.
            IntegrityError: The unit of work turns it into ``ConstraintViolated``.
        """
        columns = {"place": "int4", "key": "uuid"} | kind.columns
        keyed = zip(fresh_ids(len(records)), records, strict=True)
        rows = ((place, key, *kind.row(record)) for place, (key, record) in enumerate(keyed))
        try:
            with self.stage(f"staged_{kind.corpus.name}", columns, rows) as staged:
                written = self._write(kind, staged, replace=replace)
                found = self._read_stored(kind, staged, model_name)
        except (psycopg.DataError, UnicodeEncodeError, RecursionError) as error:  # from COPY
            raise InvalidValue("one of its values cannot be sent to PostgreSQL") from error
        if len(found) != len(records):
            raise TransactionConflict
        return [
            Merged(
                row.key,
                "unchanged" if row.id not in written else "added" if row.is_new else "updated",
                row.same_text,
                row.content_hash,
                row.is_embedded,
            )
            for row in found
        ]

    def forget_jobs(self, kind: Kind, keys: Collection[UUID]) -> None:
        """Delete the jobs of rows that this transaction wrote together with their vectors.

        Nobody else has seen the rows, or can change them before the transaction ends: no job of a
        later text is lost.
        """
        waiting = [embed_key(kind.corpus, self.scope, key) for key in keys]
        self.session.execute(
            delete(Job).where(
                Job.status == PENDING,
                Job.kind == EMBED,
                Job.dedupe_key == any_(literal(waiting, ARRAY(Text()))),
                Job.scope == str(self.scope),
            ),
            execution_options={"synchronize_session": False},
        )

    def _write(self, kind: Kind, staged: TableClause, *, replace: bool) -> set[str]:
        """Add and replace rows; return the ids of those replaced."""
        kind.corpus.refuse_without(self.scope)
        former = self._one_by_one(kind, staged)
        values: dict[str, ColumnElement[Any]] = {name: staged.c[name] for name in kind.columns}
        values["language"] = cast(staged.c.language, REGCONFIG)
        before: list[ColumnElement[Any]] = []
        for name in kind.moments:
            given = staged.c[name]
            values[name] = func.coalesce(given, former.c[name], *before, func.now())
            before.insert(0, given)
        content = [name for name in values if name not in {"id", *OF_USE}]
        same = and_(*(former.c[name].is_not_distinct_from(values[name]) for name in content))
        values["key"] = staged.c.key
        for name in ("tenant_id", "user_id"):
            values[name] = literal(getattr(self.scope, name), Uuid())
        values["scope"] = literal(str(self.scope), Text())
        fresh = (
            select(*values.values())
            .select_from(staged)
            .outerjoin(former, true())
            .where(or_(former.c.key.is_(None), ~same) if replace else former.c.key.is_(None))
            .order_by(staged.c.id)  # so that two writers take their locks in the same order
        )
        merge = insert(kind.corpus.passages).from_select(list(values), fresh)
        identity = ["scope", "id"]
        merge = (
            merge.on_conflict_do_update(
                index_elements=identity, set_={name: merge.excluded[name] for name in content}
            )
            if replace
            else merge.on_conflict_do_nothing(index_elements=identity)
        )
        return set(self.session.scalars(merge.returning(kind.corpus.passages.c.id)))

    def _read_stored(self, kind: Kind, staged: TableClause, model_name: str) -> Sequence[Row[Any]]:
        """Read the stored row of each staged record."""
        stored, vectors = self._one_by_one(kind, staged), kind.corpus.vectors
        found = (
            select(
                stored.c.id,
                stored.c.key,
                (stored.c.key == staged.c.key).label("is_new"),
                and_(*(stored.c[name] == staged.c[name] for name in kind.said)).label("same_text"),
                stored.c.content_hash,
                vectors.c.content_hash.is_not_distinct_from(stored.c.content_hash).label(
                    "is_embedded"
                ),
            )
            .select_from(staged)
            .join(stored, true())
            .outerjoin(
                vectors,
                and_(
                    vectors.c.scope == stored.c.scope,
                    kind.corpus.item == stored.c.key,
                    vectors.c.model_name == model_name,
                ),
            )
            .order_by(staged.c.place)
        )
        return self.session.execute(found).all()

    def _one_by_one(self, kind: Kind, staged: TableClause) -> LateralFromClause:
        """Look up the stored row of each staged record by its id.

        Where the statistics do not know the scope yet, a join would read all that is in it, for
        every batch.
        """
        passages = kind.corpus.passages
        return (
            select(passages, text_hash(kind.corpus).label("content_hash"))
            .where(passages.c.scope == str(self.scope), passages.c.id == staged.c.id)
            .limit(1)
            .lateral("stored")
        )
