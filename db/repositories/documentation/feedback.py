"""Pages that users were shown, and the clicks on their hits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID, uuid4

from psycopg.types.json import Jsonb
from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Row,
    Select,
    Table,
    Text,
    Uuid,
    and_,
    any_,
    func,
    literal,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import insert

from pgcorpus.db.base import as_uuid, table_of
from pgcorpus.db.errors import NotFound
from pgcorpus.db.models.documentation import KEPT, Chunk, ClickFeedback, Document, SearchSession
from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.search.corpora import DOCUMENTATION

_chunks = table_of(Chunk)
_documents = table_of(Document)
_clicks = table_of(ClickFeedback)
_pages = table_of(SearchSession)

MAX_DAYS: Final = 365_000
"""A thousand years: longer ago is never."""

READ_AT_ONCE: Final = 1000
"""Pages or clicks that one statement reads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClickRecord:
    """A click as it is to be stored; the fields are named as the columns.

    Attributes:
        chunk_id: The chunk's ``chunk_id``, not its key.
        position: Place on the page, from 1.
        clicked: False for a hit that was shown and passed over.
        dwell_time: In seconds.
    """

    id: UUID
    query: str
    chunk_id: str
    position: int
    session_id: str | None
    user_id: str | None
    dwell_time: float | None
    clicked: bool
    created_at: datetime
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionRecord:
    """A session of searches as it is to be stored; the fields are named as the columns."""

    id: UUID
    session_id: str
    user_id: str | None
    created_at: datetime
    metadata: Mapping[str, Any] = field(default_factory=dict)


class ClickStatistics(NamedTuple):
    """Figures of clicks; the averages are None where there are none.

    Attributes:
        total_clicks: What was only shown is no click.
        unique_sessions: Different sessions among them.
        avg_click_position: From 1.
        avg_dwell_time: In seconds, of the clicks that have a duration.
    """

    total_clicks: int
    unique_sessions: int
    avg_click_position: float | None
    avg_dwell_time: float | None


_CLICK: Final = {
    "id": "uuid",
    "query": "text",
    "chunk_id": "text",
    "position": "int4",
    "session_id": "text",
    "user_id": "text",
    "dwell_time": "float8",
    "clicked": "bool",
    "created_at": "timestamptz",
    "metadata": "jsonb",
}
_SESSION: Final = {
    "id": "uuid",
    "session_id": "text",
    "user_id": "text",
    "created_at": "timestamptz",
    "metadata": "jsonb",
}


class FeedbackRepository(Repository):
    """Pages and clicks of the scope, or without one those of searches without one."""

    def record_page(
        self,
        session_id: str,
        *,
        shown: Sequence[Mapping[str, Any]],
        query: str,
        mode: str | None = None,
        fusion: str | None = None,
        weights: Mapping[str, float] | None = None,
        user_id: str | None = None,
        key: UUID | None = None,
        shown_at: datetime | None = None,
    ) -> UUID:
        """Record a page of results as a user was shown it; return its key.

        Args:
            session_id: The visit that it belongs to.
            shown: Of each hit: ``id`` of the chunk, ``position`` from 1, ``scores`` of the legs.
            query: As asked.
            mode: Of the search.
            fusion: Of its legs.
            weights: Leg → weight.
            user_id: Who searched, if that is known.
            key: Of the row; by default a new one.
            shown_at: By default now.
        """
        page = SearchSession(
            id=key or uuid4(),
            tenant_id=self._tenant_id,
            scope=self._scope_name,
            session_id=session_id,
            user_id=user_id,
            query=query,
            mode=mode,
            fusion=fusion,
            weights=dict(weights or {}),
            shown=[dict(each) for each in shown],
            created_at=shown_at or func.now(),
        )
        self.session.add(page)
        self.session.flush()
        return page.id

    def record_click(
        self,
        chunk_id: str | UUID,
        *,
        query: str,
        position: int,
        session_id: str | None = None,
        user_id: str | None = None,
        dwell_time: float | None = None,
        clicked: bool = True,
    ) -> UUID:
        """Record that a hit was clicked, or shown and passed over; return the click's key.

        Args:
            chunk_id: The chunk's key, or its ``chunk_id``.
            query: The question that it was found by.
            position: Place on the page, from 1.
            session_id: The visit.
            user_id: Who clicked, if that is known.
            dwell_time: Seconds until the user came back.
            clicked: False for what was passed over.

        Raises:
            NotFound: The transaction may read no such chunk.
            ConstraintViolated: The position or the duration is none.
        """
        scope, key = self.get_chunk_key(chunk_id)
        click = ClickFeedback(
            tenant_id=self._tenant_id,
            scope=self._scope_name,
            query=query,
            chunk_scope=scope,
            chunk_id=key,
            position=position,
            session_id=session_id,
            user_id=user_id,
            dwell_time=dwell_time,
            clicked=clicked,
        )
        self.session.add(click)
        self.session.flush()
        return click.id

    def get_chunk_key(
        self, chunk_id: str | UUID, *, collection: str | None = None
    ) -> tuple[str, UUID]:
        """Return scope and key of a chunk, as ``find_chunk_key`` finds it.

        Raises:
            NotFound: The transaction may read none.
        """
        found = self.find_chunk_key(chunk_id, collection=collection)
        if found is None:
            raise NotFound(f"there is no chunk {str(chunk_id)[:60]!r} in this scope")
        return found

    def find_chunk_key(
        self, chunk_id: str | UUID, *, collection: str | None = None
    ) -> tuple[str, UUID] | None:
        """Return scope and key of a chunk that the transaction may read, or None.

        Args:
            chunk_id: Its key, else its ``chunk_id``, else the name or the number that an old SQLite
                file gave it. Of several the scope's own goes before those that are shared.
            collection: Only of this collection.
        """
        scopes = literal(DOCUMENTATION.bind_scope(self.scope)["scopes"], ARRAY(Text()))
        # Each collection by its name: so the keys of the tables' indexes are complete.
        known = select(_documents.c.collection).distinct().where(_documents.c.scope == any_(scopes))
        within = (
            _chunks.c.collection.in_(known)
            if collection is None
            else (_chunks.c.collection == collection)
        )
        readable = (_chunks.c.scope == any_(scopes), within)
        name = str(chunk_id)
        ways: list[ColumnElement[bool]] = [_chunks.c.chunk_id == name]
        if (key := as_uuid(name)) is not None:
            ways.insert(0, _chunks.c.id == key)
        ways.append(_chunks.c.metadata.contains({KEPT: {"chunk_id": name}}))
        if name.isdecimal() and name.isascii():
            ways.append(_chunks.c.metadata.contains({KEPT: {"id": int(name)}}))
        for way in ways:
            found = self.session.execute(
                select(_chunks.c.scope, _chunks.c.id)
                .where(*readable, way)
                .order_by(
                    _chunks.c.scope.is_distinct_from(self._scope_name),
                    _chunks.c.collection,
                    _chunks.c.chunk_id,
                )
                .limit(1)
            ).first()
            if found is not None:
                return found[0], found[1]
        return None

    def get_statistics(self, query: str | None = None, *, days: int = 30) -> ClickStatistics:
        """Return figures of the clicks of the last *days*, of one query or of all."""
        since = func.now() - func.make_interval(0, 0, 0, min(max(days, 0), MAX_DAYS))
        counted = select(
            func.count(),
            func.count(_clicks.c.session_id.distinct()),
            func.avg(_clicks.c.position),
            func.avg(_clicks.c.dwell_time),
        ).where(*self._in_scope(_clicks), _clicks.c.clicked, _clicks.c.created_at >= since)
        if query is not None:
            same = func.left(_clicks.c.query, 200) == func.left(query, 200)
            counted = counted.where(same, _clicks.c.query == query)
        total, sessions, position, dwell = self.session.execute(counted).one()
        return ClickStatistics(
            total, sessions, None if position is None else float(position), dwell
        )

    def list_clicks(
        self, *, limit: int, after: tuple[str, UUID] | None = None, all_scopes: bool = False
    ) -> Sequence[ClickFeedback]:
        """List clicks by scope and key, page by page.

        Args:
            limit: Clicks of the page.
            after: Scope and key of the last one of the page before.
            all_scopes: Also those of other scopes, as far as the role may see them.
        """
        return self._list_page(ClickFeedback, _clicks, limit, after, all_scopes=all_scopes)

    def list_pages(
        self, *, limit: int, after: tuple[str, UUID] | None = None, all_scopes: bool = False
    ) -> Sequence[SearchSession]:
        """List pages that were shown, as ``list_clicks`` does clicks."""
        return self._list_page(SearchSession, _pages, limit, after, all_scopes=all_scopes)

    def read_latest_pages(
        self, *, fusion: str, mode: str, since: datetime | None, limit: int
    ) -> Iterator[Row[Any]]:
        """Read the latest pages with at least one hit, the newest first, some at a time.

        Args:
            fusion: Of the searches.
            mode: Of the searches.
            since: Only pages that were shown from then on.
            limit: Pages, at most.

        Yields:
            ``created_at``, ``id``, ``session_id``, ``user_id``, ``query``, ``weights``, ``shown``.
        """
        columns = ("session_id", "user_id", "query", "weights", "shown")
        asked = select(
            _pages.c.created_at, _pages.c.id, *(_pages.c[each] for each in columns)
        ).where(
            _pages.c.fusion == fusion,
            _pages.c.mode == mode,
            _pages.c.query.is_not(None),
            func.jsonb_array_length(_pages.c.shown) > 0,
        )
        yield from self._read(_pages, asked, since, limit)

    def count_pages(self, *, since: datetime | None) -> int:
        """Count the pages of any search that were shown since then."""
        return self._count(_pages, since)

    def read_clicks(self, *, since: datetime | None) -> Iterator[Row[Any]]:
        """Read clicks, the newest first, some at a time; what was passed over is none.

        Yields:
            ``created_at``, ``id``, ``session_id``, ``query``, ``chunk_id``, ``dwell_time``.
        """
        columns = ("session_id", "query", "chunk_id", "dwell_time")
        asked = select(
            _clicks.c.created_at, _clicks.c.id, *(_clicks.c[each] for each in columns)
        ).where(_clicks.c.clicked)
        yield from self._read(_clicks, asked, since, None)

    def count_clicks(self, *, since: datetime | None) -> int:
        """Count the rows that ``read_clicks`` reads, and those of what was passed over."""
        return self._count(_clicks, since)

    def _read(
        self, table: Table, asked: Select[Any], since: datetime | None, limit: int | None
    ) -> Iterator[Row[Any]]:
        order = (table.c.created_at, table.c.id)
        asked = asked.where(*self._in_scope(table), *_from(table, since))
        asked = asked.order_by(*(each.desc() for each in order))
        left, after = limit, None
        while left is None or left > 0:
            some = asked.limit(READ_AT_ONCE if left is None else min(READ_AT_ONCE, left))
            if after is not None:
                some = some.where(tuple_(*order) < tuple_(*after))
            rows = self.session.execute(some).all()
            yield from rows
            if len(rows) < READ_AT_ONCE:
                return
            left, after = None if left is None else left - len(rows), rows[-1][:2]

    def _count(self, table: Table, since: datetime | None) -> int:
        counted = select(func.count()).where(*self._in_scope(table), *_from(table, since))
        return self.session.scalar(counted) or 0

    def write_clicks(self, records: Sequence[ClickRecord], *, collection: str) -> int:
        """Store clicks on the scope's own chunks of a collection; return how many are new.

        A click whose key is stored stays as it is; one whose chunk is not stored is passed over.
        """
        rows = ([_value_of(each, name) for name in _CLICK] for each in records)
        with self.stage("staged_clicks", _CLICK, rows) as staged:
            names = [name for name in _CLICK if name != "chunk_id"]
            found = select(
                literal(self._tenant_id, Uuid()),
                literal(self._scope_name, Text()),
                _chunks.c.scope,
                _chunks.c.id,
                *(staged.c[name] for name in names),
            ).join_from(
                staged,
                _chunks,
                and_(
                    *self._in_scope(_chunks),
                    _chunks.c.collection == collection,
                    _chunks.c.chunk_id == staged.c.chunk_id,
                ),
            )
            merge = insert(_clicks).from_select(
                ["tenant_id", "scope", "chunk_scope", "chunk_id", *names], found
            )
            return self._count_new(merge.on_conflict_do_nothing())

    def write_sessions(self, records: Sequence[SessionRecord]) -> int:
        """Store sessions; return how many are new. One whose key is stored stays as it is."""
        rows = ([_value_of(each, name) for name in _SESSION] for each in records)
        with self.stage("staged_sessions", _SESSION, rows) as staged:
            found = select(
                literal(self._tenant_id, Uuid()),
                literal(self._scope_name, Text()),
                *(staged.c[name] for name in _SESSION),
            )
            merge = insert(_pages).from_select(["tenant_id", "scope", *_SESSION], found)
            return self._count_new(merge.on_conflict_do_nothing())

    def _count_new(self, merge: Any) -> int:
        result = self.session.connection().execute(
            merge, execution_options={"preserve_rowcount": True}
        )
        return int(result.rowcount)

    def _list_page(
        self,
        kind: Any,
        table: Table,
        limit: int,
        after: tuple[str, UUID] | None,
        *,
        all_scopes: bool,
    ) -> Sequence[Any]:
        order = (table.c.scope, table.c.id)
        found: Select[Any] = select(kind).order_by(*order).limit(limit)
        if not all_scopes:
            found = found.where(*self._in_scope(table))
        if after is not None:
            found = found.where(tuple_(*order) > tuple_(*after))
        return self.session.scalars(found).all()

    @property
    def _scope_name(self) -> str:
        return DOCUMENTATION.name_scope(self.scope)

    @property
    def _tenant_id(self) -> UUID | None:
        return None if self.scope is None else self.scope.tenant_id

    def _in_scope(self, table: Table) -> tuple[ColumnElement[bool], ...]:
        """Restrict *table* to the rows of the one scope."""
        return (table.c.scope == literal(self._scope_name, Text()),)


def _value_of(record: ClickRecord | SessionRecord, name: str) -> Any:
    value = getattr(record, name)
    return Jsonb(dict(value)) if isinstance(value, Mapping) else value


def _from(table: Table, since: datetime | None) -> tuple[ColumnElement[bool], ...]:
    """Restrict *table* to what was recorded from then on."""
    return () if since is None else (table.c.created_at >= since,)
