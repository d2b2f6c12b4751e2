"""Conversations as records of an import, and how they are written."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from operator import attrgetter
from typing import Any, Final, NamedTuple
from uuid import UUID, uuid5

import psycopg
from psycopg.types.json import Jsonb
from sqlalchemy import (
    ColumnElement,
    LargeBinary,
    TableClause,
    Text,
    Uuid,
    and_,
    any_,
    case,
    cast,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, REGCONFIG, TEXT
from sqlalchemy.dialects.postgresql import insert as upsert

from pgcorpus.db.base import as_uuid, table_of
from pgcorpus.db.choices import NATIVE
from pgcorpus.db.errors import InvalidValue
from pgcorpus.db.models.chat import Conversation, Message, Role
from pgcorpus.db.repositories.base import Repository


@dataclass(frozen=True, slots=True)
class MessageRecord:
    """One turn, normalised.

    Attributes:
        source_id: Its identifier in its source, unique within the conversation; the row's key is
            made of it, so that the same turn is known again.
        branch: 0 for the conversation as it stands; see ``Message.branch``.
        position: Distance from the first turn, from 0.
        role: Who spoke.
        content: Text, not empty, storable.
        created_at: When it was said, or None where the source does not say.
        details: What goes into the ``metadata`` column: storable JSON.
        language: The text search configuration, where its source says one.
        is_native: Whether it was written in an archive like this one: no provider's export takes it
            away. Where that is this archive, ``source_id`` is its key.
    """

    source_id: str
    branch: int
    position: int
    role: Role
    content: str
    created_at: datetime | None = None
    details: dict[str, Any] = field(default_factory=dict)
    language: str | None = None
    is_native: bool = False


@dataclass(frozen=True, slots=True)
class ConversationRecord:
    """One conversation, normalised.

    Attributes:
        source_type: ``chatgpt``, ``claude``, ``openwebui`` or what a legacy store says.
        source_id: Its identifier there.
        title: Storable text, perhaps empty.
        created_at: When it began, or None where the source does not say.
        source_updated_at: When it last changed there, or None.
        is_saved: Whether it was pinned or starred there.
        messages: Ordered by branch and position, not empty.
        id: The key of one that was written in an archive like this one and has no identifier of a
            source, or None; ``source_id`` is its text.
    """

    source_type: str
    source_id: str
    title: str
    created_at: datetime | None
    source_updated_at: datetime | None
    messages: tuple[MessageRecord, ...]
    is_saved: bool = False
    id: UUID | None = None


@dataclass(frozen=True, slots=True)
class KnownConversation:
    """The stored state of a conversation, by which an importer knows what has changed.

    Attributes:
        id: The row's key.
        record_hash: SHA-256 of the record that was imported; None when no importer made the row.
        source_updated_at: When it had last changed in its source.
        created_at: When it began.
        imported_from: The file that last wrote the row; None when none did.
        title: As it is stored.
    """

    id: UUID
    record_hash: bytes | None
    source_updated_at: datetime | None
    created_at: datetime
    imported_from: str | None
    title: str


@dataclass(frozen=True, slots=True)
class ConversationWrite:
    """A conversation to be stored.

    Attributes:
        id: Key of the row to bring up to date, or a fresh one.
        known: What is stored of it, or None for a new one.
        record_hash: SHA-256 of the record.
        imported_from: Full path of the file.
        languages: The text search configuration of each message, in order.
        record: The conversation.
    """

    id: UUID
    known: KnownConversation | None
    record_hash: bytes
    imported_from: str
    languages: Sequence[str]
    record: ConversationRecord


@dataclass(frozen=True, slots=True)
class Former:
    """The former values of a message that an import changed or removed.

    Attributes:
        conversation_id: Whose.
        source_id: Its identifier in its source.
        values: Column → what it was: ``role``, ``content``, ``created_at``, ``metadata``; those
            that are others now, or all where the message is gone.
        present: The same columns → what they are; None when the message is gone.
    """

    conversation_id: UUID
    source_id: str
    values: Mapping[str, Any]
    present: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Timed:
    """A new message whose source does not say when it was said.

    Attributes:
        conversation_id: Whose.
        source_id: Its identifier in its source.
        created_at: The time that it got: the conversation's beginning, or that of the import.
    """

    conversation_id: UUID
    source_id: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Written:
    """The counts and former values of the messages written.

    Attributes:
        messages: How many that came were added or changed.
        former: Those of which a value is another now, or that are gone.
        timed: New ones that came without a time.
    """

    messages: int
    former: list[Former]
    timed: list[Timed] = field(default_factory=list)


SOURCE_ID: Final = "source_id"
"""The key in ``metadata`` of a message's identifier in its source; a message without it was written
here."""

_CONVERSATION: Final = {
    "id": "uuid",
    "title": "text",
    "created_at": "timestamptz",
    "source_id": "text",
    "source_type": "text",
    "source_updated_at": "timestamptz",
    "is_saved": "bool",
    "record_hash": "bytea",
    "imported_from": "text",
}
_MESSAGE: Final = {
    "id": "uuid",
    "conversation_id": "uuid",
    "branch": "int4",
    "position": "int4",
    "role": "text",
    "content": "text",
    "metadata": "jsonb",
    "created_at": "timestamptz",
    "language": "text",
}
_MESSAGES: Final = table_of(Message)
_IDENTITY: Final = frozenset({"id", "source_id", "source_type"})
"""Columns of a conversation that an import does not change."""


class _Row(NamedTuple):
    """A message as it is stored, or is to be: the columns of ``_MESSAGE``.

    Of one that is stored, ``content`` is None where what comes says the same.
    """

    id: UUID
    conversation_id: UUID
    branch: int
    position: int
    role: str
    content: str | None
    details: dict[str, Any]
    created_at: datetime | None
    language: str


_DETAILS: Final = _Row._fields.index("details")


def message_id(conversation_id: UUID, source_id: str) -> UUID:
    """Return the key of an imported message: the same turn has the same key each time."""
    return uuid5(conversation_id, source_id)


class ChatImportRepository(Repository):
    """Writes and reads conversations by the thousand, for importers."""

    def count(self) -> int:
        """Count the messages."""
        return self.session.scalar(select(func.count()).select_from(Message)) or 0

    def analyze(self) -> None:
        """Renew the planner's statistics of every table that an import fills."""
        self.renew_statistics(Conversation.__tablename__, Message.__tablename__)

    def list_known(
        self, keys: Collection[tuple[str, str]]
    ) -> dict[tuple[str, str], KnownConversation]:
        """Return the stored state of the conversations that exist.

        Args:
            keys: Source types and source ids; the latter is the key of one that was written here.
        """
        types, ids = zip(*keys, strict=True) if keys else ((), ())
        asked = (
            func.unnest(literal(types, ARRAY(TEXT)), literal(ids, ARRAY(TEXT)))
            .table_valued("source_type", "source_id")
            .render_derived()
        )
        columns = (
            Conversation.id,
            Conversation.record_hash,
            Conversation.source_updated_at,
            Conversation.created_at,
            Conversation.imported_from,
            Conversation.title,
        )
        found = select(Conversation.source_type, Conversation.source_id, *columns).join(
            asked,
            and_(
                Conversation.source_type == asked.c.source_type,
                Conversation.source_id == asked.c.source_id,
            ),
        )
        written_here = (
            as_uuid(source_id) for source_type, source_id in keys if source_type == NATIVE
        )
        own = [each for each in written_here if each is not None]
        by_key = select(literal(NATIVE), cast(Conversation.id, Text), *columns).where(
            Conversation.id == any_(literal(own, ARRAY(Uuid())))
        )
        rows = [*self.session.execute(found), *(self.session.execute(by_key) if own else ())]
        return {(row[0], row[1]): KnownConversation(*row[2:]) for row in rows}

    def write(self, conversations: Sequence[ConversationWrite]) -> Written:
        """Add new conversations, and update known ones where they differ.

        A message that is the same keeps its row, and so its vectors and its version. One that was
        written here, and not imported, is kept behind the last imported one.

        Args:
            conversations: No two with the same key.

        Raises:
            InvalidValue: A value of one of them cannot be sent to PostgreSQL.
            IntegrityError: The unit of work turns it into ``ConstraintViolated``.
        """
        try:
            with self.stage(
                "staged_conversations", _CONVERSATION, map(_conversation_row, conversations)
            ) as staged:
                self._write_conversations(staged)
            now = self.session.scalar(select(func.now()))
            difference = self._difference(conversations, now)
            self._write_messages(difference)
        except (psycopg.DataError, UnicodeEncodeError, RecursionError) as error:  # from COPY
            raise InvalidValue(str(error)) from error
        return Written(difference.messages, difference.former, difference.timed)

    def _write_conversations(self, staged: TableClause) -> None:
        values: dict[str, ColumnElement[Any]] = {name: staged.c[name] for name in _CONVERSATION}
        values["created_at"] = func.coalesce(staged.c.created_at, func.now())
        # A list of what changed last begins with what was said last, not with what came in last.
        values["updated_at"] = func.coalesce(staged.c.source_updated_at, func.now())
        merge = upsert(Conversation).from_select(list(values), select(*values.values()))
        renewed: dict[str, ColumnElement[Any]] = {
            name: merge.excluded[name] for name in _CONVERSATION if name not in _IDENTITY
        }
        # Saved there or here: an import never takes back what a person decided here.
        renewed["is_saved"] = or_(Conversation.is_saved, merge.excluded.is_saved)
        self.session.execute(
            merge.on_conflict_do_update(index_elements=[Conversation.id], set_=renewed)
        )

    def _difference(
        self, conversations: Sequence[ConversationWrite], now: datetime | None
    ) -> _Difference:
        """Compare the messages with the stored ones, which are locked against appends."""
        known = [each.id for each in conversations if each.known is not None]
        stored: dict[UUID, dict[UUID, _Row]] = {each: {} for each in known}
        if known:
            # The conversations' rows were written to a moment ago, which locks them: whoever
            # appends a message waits for that lock, too.
            digests = _digests(conversations)
            coming = (
                func.unnest(
                    literal([*digests], ARRAY(Uuid())),
                    literal([*digests.values()], ARRAY(LargeBinary)),
                )
                .table_valued("id", "digest")
                .render_derived()
            )
            # What is the same does not come a second time: a conversation may be long.
            same = coming.c.digest == func.sha256(func.convert_to(Message.content, "UTF8"))
            found = (
                select(
                    Message.id,
                    Message.conversation_id,
                    Message.branch,
                    Message.position,
                    Message.role,
                    case((same, None), else_=Message.content),
                    Message.details,
                    Message.created_at,
                    cast(Message.language, Text),
                )
                .outerjoin(coming, coming.c.id == Message.id)
                .where(Message.conversation_id == any_(literal(known, ARRAY(Uuid()))))
            )
            for values in self.session.execute(found):
                row = _Row(*values)
                stored[row.conversation_id][row.id] = row
        difference = _Difference(now)
        for each in conversations:
            difference.add(each, stored.get(each.id, {}))
        return difference

    def _write_messages(self, difference: _Difference) -> None:
        """Remove, then change, then add: each statement leaves every place taken at most once."""
        if difference.gone:
            self.session.execute(
                delete(Message).where(Message.id == any_(literal(difference.gone, ARRAY(Uuid())))),
                execution_options={"synchronize_session": False},
            )
        if difference.changed:
            conversations = {row.conversation_id for row in difference.changed}
            with self._stage_messages(difference.changed) as staged:
                values = _cast_columns(staged)
                self.session.connection().execute(
                    update(_MESSAGES)
                    .values({name: values[name] for name in _MESSAGE if name != "id"})
                    .where(
                        _MESSAGES.c.id == staged.c.id,
                        _MESSAGES.c.conversation_id
                        == any_(literal(list(conversations), ARRAY(Uuid()))),
                    )
                )
        if difference.fresh:
            with self._stage_messages(difference.fresh) as staged:
                values = _cast_columns(staged)
                values["created_at"] = func.coalesce(staged.c.created_at, func.now())
                self.session.connection().execute(
                    insert(_MESSAGES).from_select(list(values), select(*values.values()))
                )

    def _stage_messages(self, rows: Sequence[_Row]) -> AbstractContextManager[TableClause]:
        values = ((*row[:_DETAILS], Jsonb(row.details), *row[_DETAILS + 1 :]) for row in rows)
        return self.stage("staged_messages", _MESSAGE, values)


class _Difference:
    """The changes that an import makes to the messages of some conversations.

    Args:
        now: Of the transaction: what was said nobody knows when has at least this time.
    """

    def __init__(self, now: datetime | None) -> None:
        self._now = now
        self.gone: list[UUID] = []
        self.changed: list[_Row] = []
        self.fresh: list[_Row] = []
        self.former: list[Former] = []
        self.timed: list[Timed] = []
        self.messages = 0

    def add(self, conversation: ConversationWrite, stored: Mapping[UUID, _Row]) -> None:
        """Compare a conversation with its stored messages, by key."""
        coming = set()
        end = 0
        for message, row in _message_rows(conversation, stored, self._now):
            coming.add(row.id)
            if row.branch == 0:
                end = max(end, row.position + 1)
            there = stored.get(row.id)
            if there is not None and there.content is None:
                there = there._replace(content=row.content)
            if there is None:
                self._add_fresh(message, row)
            elif there != row:
                self._add_changed(there, row)
        left = (row for row in stored.values() if row.id not in coming)
        for there in sorted(left, key=attrgetter("branch", "position")):
            if SOURCE_ID in there.details:
                self.gone.append(there.id)
                self.former.append(_former(there, None))
                continue
            row = there._replace(branch=0, position=end)
            end += 1
            if row != there:
                self.changed.append(row)

    def _add_fresh(self, message: MessageRecord, row: _Row) -> None:
        self.messages += 1
        self.fresh.append(row)
        if message.created_at is None and row.created_at is not None:
            self.timed.append(Timed(row.conversation_id, message.source_id, row.created_at))

    def _add_changed(self, there: _Row, row: _Row) -> None:
        self.messages += 1
        self.changed.append(row)
        if _list_values(there) != _list_values(row):
            self.former.append(_former(there, row))


def _conversation_row(conversation: ConversationWrite) -> tuple[Any, ...]:
    record, known = conversation.record, conversation.known
    return (
        conversation.id,
        record.title,
        _find_beginning(conversation),
        None if record.id is not None else record.source_id,
        record.source_type,
        record.source_updated_at or (known and known.source_updated_at),
        record.is_saved,
        conversation.record_hash,
        conversation.imported_from,
    )


def _message_rows(
    conversation: ConversationWrite, stored: Mapping[UUID, _Row], now: datetime | None
) -> Iterator[tuple[MessageRecord, _Row]]:
    record, begun = conversation.record, _find_beginning(conversation) or now
    for message, language in zip(record.messages, conversation.languages, strict=True):
        keys = _keys(conversation.id, message)
        key = next((key for key in keys if key in stored), keys[0])
        details = message.details
        if not message.is_native:
            details = {SOURCE_ID: message.source_id} | details
        there = stored.get(key)
        row = _Row(
            id=key,
            conversation_id=conversation.id,
            branch=message.branch,
            position=message.position,
            role=message.role,
            content=message.content,
            details=details,
            # Where the source does not say, what was made up once stays.
            created_at=message.created_at or (there.created_at if there else begun),
            language=language,
        )
        yield message, row


def _find_beginning(conversation: ConversationWrite) -> datetime | None:
    """Return the time when a conversation began.

    It is that of its source, the stored one, or that of its first message.
    """
    if conversation.record.created_at is not None:
        return conversation.record.created_at
    if conversation.known is not None:
        return conversation.known.created_at
    times = (message.created_at for message in conversation.record.messages)
    return min((time for time in times if time is not None), default=None)


def _keys(conversation_id: UUID, message: MessageRecord) -> list[UUID]:
    """Return the keys under which a message may be stored.

    These are the key of its import, and the key that it got when it was written here.
    """
    keys = [message_id(conversation_id, message.source_id)]
    if message.is_native and (own := as_uuid(message.source_id)) is not None:
        keys.append(own)
    return keys


def _digests(conversations: Sequence[ConversationWrite]) -> dict[UUID, bytes]:
    """Return the SHA-256 of the parts of known conversations, by the keys of their messages."""
    return {
        key: hashlib.sha256(message.content.encode()).digest()
        for each in conversations
        if each.known is not None
        for message in each.record.messages
        for key in _keys(each.id, message)
    }


def _former(there: _Row, row: _Row | None) -> Former:
    source_id = str(there.details.get(SOURCE_ID, there.id))
    values = _list_values(there)
    if row is None:
        return Former(there.conversation_id, source_id, values, None)
    present = _list_values(row)
    others = [name for name in values if values[name] != present[name]]
    return Former(
        there.conversation_id,
        source_id,
        {name: values[name] for name in others},
        {name: present[name] for name in others},
    )


def _list_values(row: _Row) -> dict[str, Any]:
    """List what a source says of a message, by column; its place follows from the others."""
    details = {name: value for name, value in row.details.items() if name != SOURCE_ID}
    return {
        "role": row.role,
        "content": row.content,
        "created_at": row.created_at,
        "metadata": details,
    }


def _cast_columns(staged: TableClause) -> dict[str, ColumnElement[Any]]:
    """Return the staged columns of messages by name, of the types that the table has."""
    values: dict[str, ColumnElement[Any]] = {name: staged.c[name] for name in _MESSAGE}
    return values | {"language": cast(staged.c.language, REGCONFIG)}
