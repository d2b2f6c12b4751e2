"""Conversations of the chat archive: found, listed, appended to, and counted."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final, TypedDict, Unpack
from uuid import UUID

from sqlalchemy import (
    Boolean,
    ColumnElement,
    DateTime,
    Select,
    String,
    Text,
    Uuid,
    any_,
    column,
    delete,
    func,
    literal,
    select,
    table,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from pgcorpus.db.base import as_uuid, in_utc
from pgcorpus.db.choices import NATIVE, ConversationOrder
from pgcorpus.db.errors import MEANINGS, InvalidReference, InvalidValue, NotFound, UnknownFilter
from pgcorpus.db.models.chat import Conversation, Message, Role
from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.repositories.chat.statistics import ChatStatistics, count_all
from pgcorpus.db.repositories.pages import Page, check_limit, decode, page_of
from pgcorpus.db.text import storable


class ConversationFilters(TypedDict, total=False):
    """The filters of lists and counts; a filter that is absent or None keeps all.

    Attributes:
        source_type: Those from this source.
        saved: Those that are saved, or those that are not.
        since: Those that began then or later. A time without a zone is in UTC.
        before: Those that began earlier.
    """

    source_type: str | None
    saved: bool | None
    since: datetime | None
    before: datetime | None


@dataclass(frozen=True, kw_only=True)
class ConversationSummary:
    """A row of the view ``conversation_summaries``. Counts and times are of the main branch.

    Attributes:
        message_count: Messages.
        first_message_at: None where there is no message.
        last_message_at: None where there is no message.
        preview: The first 200 characters of the first user's or assistant's message, or ``""``.
    """

    id: UUID
    title: str
    source_type: str
    source_id: str | None
    is_saved: bool
    created_at: datetime
    updated_at: datetime
    message_count: int
    first_message_at: datetime | None
    last_message_at: datetime | None
    preview: str


_SUMMARIES: Final = table(
    "conversation_summaries",
    column("id", Uuid()),
    column("title", Text()),
    column("source_type", String()),
    column("source_id", String()),
    column("is_saved", Boolean()),
    column("created_at", DateTime(timezone=True)),
    column("updated_at", DateTime(timezone=True)),
    column("message_count"),
    column("first_message_at", DateTime(timezone=True)),
    column("last_message_at", DateTime(timezone=True)),
    column("preview", Text()),
)

_CONVERSATION: Final = Conversation.__table__.columns
_ORDERED_BY: Final[Mapping[ConversationOrder, str]] = {
    "created": "created_at",
    "updated": "updated_at",
}


class ConversationRepository(Repository):
    """Conversations; messages are added by ``append``."""

    def create(
        self,
        title: str = "",
        *,
        source_type: str = NATIVE,
        source_id: str | None = None,
        created_at: datetime | None = None,
        is_saved: bool = False,
    ) -> Conversation:
        """Begin a conversation.

        Args:
            title: May be empty.
            source_type: Where it comes from.
            source_id: Its identifier there, unique within the source.
            created_at: When it began, by default now. A time without a zone is in UTC.
            is_saved: Whether it is among the saved ones.

        Raises:
            InvalidValue: No text can hold the title, or what names the source.
            IntegrityError: The unit of work turns it into ``AlreadyExists`` or ``InvalidValue``.
        """
        conversation = Conversation(
            title=_storable("title", title),
            source_type=_storable("source_type", source_type),
            source_id=source_id if source_id is None else _storable("source_id", source_id),
            created_at=in_utc(created_at),
            is_saved=is_saved,
        )
        self.session.add(conversation)
        self.session.flush()
        return conversation

    def get(self, conversation_id: UUID) -> Conversation:
        """Return the conversation of that key. Its messages are listed by ``MessageRepository``.

        Raises:
            NotFound: There is none.
        """
        conversation = self.find(conversation_id)
        if conversation is None:
            raise _no_conversation(conversation_id)
        return conversation

    def find(self, conversation_id: UUID) -> Conversation | None:
        """Return the conversation of that key, or None."""
        return self.session.get(Conversation, conversation_id)

    def find_by_source(self, source_type: str, source_id: str) -> Conversation | None:
        """Return the conversation that has this identifier in its source, or None.

        Raises:
            InvalidValue: No text can hold what names it.
        """
        return self.session.scalar(
            select(Conversation).where(
                Conversation.source_type == _storable("source_type", source_type),
                Conversation.source_id == _storable("source_id", source_id),
            )
        )

    def get_by_reference(self, reference: str) -> Conversation:
        """Return the conversation that a person names.

        Args:
            reference: Its key, ``source_type:source_id``, or the source's identifier alone, as the
                old system had it.

        Raises:
            InvalidReference: It is none of these, or several sources have the identifier.
            NotFound: There is none.
        """
        conversation_id = as_uuid(reference)
        if conversation_id is not None and (found := self.find(conversation_id)) is not None:
            return found
        source_type, _, source_id = reference.partition(":")
        is_named = bool(source_type.strip() and source_id.strip() and storable(reference))
        if is_named and (found := self.find_by_source(source_type, source_id)) is not None:
            return found
        if (found := self._find_by_source_id(reference)) is not None:
            return found
        if conversation_id is not None:
            raise _no_conversation(conversation_id)
        if is_named:
            raise NotFound(f"there is no conversation {source_id!r} from {source_type!r}")
        raise InvalidReference(
            f"{reference!r} names no conversation; give its id, or SOURCE_TYPE:SOURCE_ID"
        )

    def _find_by_source_id(self, source_id: str) -> Conversation | None:
        """Return the conversation that has this identifier in whatever source, or None.

        Raises:
            InvalidReference: Conversations of several sources have it.
        """
        if not (source_id.strip() and storable(source_id)):
            return None
        named = select(Conversation).where(Conversation.source_id == source_id)
        found = self.session.scalars(named.order_by(Conversation.source_type).limit(2)).all()
        if len(found) > 1:
            names = " or ".join(f"{each.source_type}:{source_id}" for each in found)
            raise InvalidReference(f"several conversations have the id {source_id!r}; give {names}")
        return found[0] if found else None

    def rename(self, conversation_id: UUID, title: str) -> Conversation:
        """Give a conversation another title.

        Raises:
            NotFound: There is none of that key.
            InvalidValue: No text can hold the title.
        """
        return self._change(conversation_id, title=_storable("title", title))

    def save(self, conversation_id: UUID) -> Conversation:
        """Mark a conversation as saved.

        Raises:
            NotFound: There is none of that key.
        """
        return self._change(conversation_id, is_saved=True)

    def unsave(self, conversation_id: UUID) -> Conversation:
        """Remove the mark of a saved conversation; it stays in the archive.

        Raises:
            NotFound: There is none of that key.
        """
        return self._change(conversation_id, is_saved=False)

    def delete(self, conversation_id: UUID) -> None:
        """Remove a conversation with its messages and their vectors.

        Raises:
            NotFound: There is none of that key.
        """
        gone = delete(Conversation).where(Conversation.id == conversation_id)
        if self.session.scalar(gone.returning(Conversation.id)) is None:
            raise _no_conversation(conversation_id)

    def clear(self) -> int:
        """Delete every conversation, without a statement timeout.

        Returns:
            How many there were.
        """
        self.lift_timeout()
        result = self.session.connection().execute(
            delete(Conversation), execution_options={"preserve_rowcount": True}
        )
        self.session.expire_all()
        return result.rowcount

    def append(
        self,
        conversation_id: UUID,
        *,
        role: Role,
        content: str,
        details: Mapping[str, Any] | None = None,
        created_at: datetime | None = None,
    ) -> Message:
        """Append a message to a conversation; its embedding is enqueued with it.

        Those who append to the same conversation wait for each other, until their transactions end.

        Args:
            conversation_id: Where.
            role: Who speaks.
            content: Not empty, nor white space alone.
            details: For the ``metadata`` column, any JSON object.
            created_at: When it was said, by default now. A time without a zone is in UTC.

        Returns:
            The message, with its position.

        Raises:
            NotFound: There is no such conversation.
            InvalidValue: The content is empty, or no text can hold it; the details are no JSON.
            IntegrityError: The unit of work turns it into ``InvalidValue``.
        """
        self.touch(conversation_id)
        message = Message(
            conversation_id=conversation_id,
            role=role,
            content=require_words(content),
            details=_json_object("details", details or {}),
            created_at=in_utc(created_at),
        )
        self.session.add(message)
        self.session.flush()
        return message

    def touch(self, conversation_id: UUID) -> None:
        """Note a change of a conversation; until the transaction ends, other writers wait.

        Raises:
            NotFound: There is none of that key.
        """
        touched = (
            update(Conversation)
            .where(Conversation.id == conversation_id)
            .values(updated_at=func.now())
            .returning(Conversation.id)
        )
        if self.session.scalar(touched) is None:
            raise _no_conversation(conversation_id)

    def list_conversations(
        self,
        *,
        order: ConversationOrder = "created",
        limit: int = 50,
        cursor: str | None = None,
        **filters: Unpack[ConversationFilters],
    ) -> Page[Conversation]:
        """List conversations, newest first, page by page.

        What is added or changed between two pages neither repeats nor hides what was there; ordered
        by ``updated``, what changes meanwhile moves to the front.

        Args:
            order: Newest by what.
            limit: At most this many, 1 to 1,000.
            cursor: ``next_cursor`` of the page before, with the same order and filters.
            filters: See ``ConversationFilters``.

        Raises:
            InvalidCursor: It is of no page of this list.
            InvalidValue: The limit is out of range, or there is no such order.
            UnknownFilter: There is no filter of that name.
        """
        found: Select[Conversation] = _select_page(
            select(Conversation), order, limit, cursor, filters
        )
        rows = self.session.scalars(found).all()
        return page_of(rows, limit, _listing(order, filters), partial(_key, order))

    def list_saved(
        self, *, order: ConversationOrder = "created", limit: int = 50, cursor: str | None = None
    ) -> Page[Conversation]:
        """List the saved conversations, as ``list_conversations`` lists all."""
        return self.list_conversations(order=order, limit=limit, cursor=cursor, saved=True)

    def list_summaries(
        self,
        *,
        order: ConversationOrder = "created",
        limit: int = 50,
        cursor: str | None = None,
        offset: int = 0,
        **filters: Unpack[ConversationFilters],
    ) -> Page[ConversationSummary]:
        """List summaries of conversations; paged as ``list_conversations``.

        Args:
            order: Newest by what.
            limit: At most this many, 1 to 1,000.
            cursor: ``next_cursor`` of the page before, with the same order and filters.
            offset: Conversations that are passed over, for callers that number their pages; it
                takes the longer the more there are.
            filters: See ``ConversationFilters``.

        Raises:
            InvalidCursor: It is of no page of this list.
            InvalidValue: The limit is out of range, or there is no such order.
            UnknownFilter: There is no filter of that name.
        """
        shown: Select[Any] = _select_page(select(Conversation.id), order, limit, cursor, filters)
        # The view counts messages for each of its rows: those that are passed over are none.
        found = (
            select(_SUMMARIES)
            .where(_SUMMARIES.c.id.in_(shown.offset(offset)))
            .order_by(*_newest_first(_SUMMARIES.c, order))
        )
        rows = [ConversationSummary(**row) for row in self.session.execute(found).mappings()]
        return page_of(rows, limit, _listing(order, filters), partial(_key, order))

    def summarize(self, conversation_ids: Collection[UUID]) -> dict[UUID, ConversationSummary]:
        """Return the summaries of the conversations that exist, by key."""
        keys = literal(list(conversation_ids), ARRAY(Uuid()))
        found = select(_SUMMARIES).where(_SUMMARIES.c.id == any_(keys))
        return {
            row["id"]: ConversationSummary(**row) for row in self.session.execute(found).mappings()
        }

    def count(self, **filters: Unpack[ConversationFilters]) -> int:
        """Count the conversations that the filters keep.

        Raises:
            UnknownFilter: There is no filter of that name.
        """
        kept = select(func.count()).select_from(Conversation)
        return self.session.scalar(kept.where(*_build_conditions(filters))) or 0

    def statistics(
        self, *, since: datetime | None = None, before: datetime | None = None
    ) -> ChatStatistics:
        """Count the archive. It reads all messages: for dashboards, not for each request.

        Args:
            since: Days are counted from then on; a time without a zone is in UTC.
            before: Days are counted until then.
        """
        return count_all(self.session, _within(Message.created_at, since, before))

    def _change(self, conversation_id: UUID, **values: object) -> Conversation:
        conversation: Conversation | None = self.session.scalar(
            update(Conversation)
            .where(Conversation.id == conversation_id)
            .values(values)
            .returning(Conversation),
            execution_options={"populate_existing": True},
        )
        if conversation is None:
            raise _no_conversation(conversation_id)
        return conversation


def require_words(content: str) -> str:
    """Return the content of a message, or raise if it is blank, as the table's constraint does.

    Raises:
        InvalidValue: It is empty or white space alone, or no text can hold it.
    """
    if not content.strip():
        raise InvalidValue(MEANINGS["non_empty_message"], constraint="non_empty_message")
    return _storable("content", content)


def _select_page(
    rows: Select[Any],
    order: ConversationOrder,
    limit: int,
    cursor: str | None,
    filters: ConversationFilters,
) -> Select[Any]:
    """Select one row more than the page shows; both columns of the order are in one index."""
    listing = _listing(order, filters)
    found = (
        rows.where(*_build_conditions(filters))
        .order_by(*_newest_first(_CONVERSATION, order))
        .limit(check_limit(limit) + 1)
    )
    if cursor is None:
        return found
    moment, last = decode(listing, cursor)
    place = tuple_(_CONVERSATION[_ORDERED_BY[order]], Conversation.id)
    return found.where(place < tuple_(datetime.fromisoformat(moment), UUID(last)))


def _newest_first(
    columns: ReadOnlyColumnCollection[str, Any], order: ConversationOrder
) -> tuple[ColumnElement[Any], ...]:
    return columns[_ORDERED_BY[order]].desc(), columns["id"].desc()


def _key(order: ConversationOrder, row: Conversation | ConversationSummary) -> tuple[str, UUID]:
    moment: datetime = getattr(row, _ORDERED_BY[order])
    return moment.isoformat(), row.id


def _listing(order: ConversationOrder, filters: ConversationFilters) -> str:
    """Return the name of a list of conversations, for its cursors."""
    if order not in _ORDERED_BY:
        raise InvalidValue(f"there is no order {order!r}; known: {', '.join(_ORDERED_BY)}")
    given = sorted((name, str(value)) for name, value in filters.items() if value is not None)
    return f"conversations by {order}, {given}"


def _build_conditions(filters: ConversationFilters) -> list[ColumnElement[bool]]:
    known = ConversationFilters.__annotations__
    if unknown := filters.keys() - known.keys():
        raise UnknownFilter(
            f"conversations have no filter {', '.join(sorted(unknown))}; "
            f"known: {', '.join(sorted(known))}"
        )
    narrowed = _within(Conversation.created_at, filters.get("since"), filters.get("before"))
    if (source_type := filters.get("source_type")) is not None:
        narrowed.append(Conversation.source_type == _storable("source_type", source_type))
    if (saved := filters.get("saved")) is not None:
        is_saved = _CONVERSATION["is_saved"]
        narrowed.append(is_saved if saved else ~is_saved)
    return narrowed


def _within(
    moment: InstrumentedAttribute[datetime],
    since: datetime | None,
    before: datetime | None,
) -> list[ColumnElement[bool]]:
    within = []
    if since is not None:
        within.append(moment >= in_utc(since))
    if before is not None:
        within.append(moment < in_utc(before))
    return within


def _storable(name: str, value: str) -> str:
    if not storable(value):
        raise InvalidValue(f"{name} holds a character that no text can hold")
    return value


def _json_object(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value as the driver will write it, or raise for what it could not write."""
    try:
        json.dumps(written := dict(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidValue(f"{name} must be a JSON object: {error}") from error
    return written


def _no_conversation(conversation_id: UUID) -> NotFound:
    return NotFound(f"there is no conversation {conversation_id}")
