"""Conversations by the thousand: what is written, and what is left alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from pgcorpus.db import models
from pgcorpus.db.errors import InvalidValue
from pgcorpus.db.repositories.chat.imports import (
    ConversationRecord,
    ConversationWrite,
    Former,
    MessageRecord,
    Written,
    message_id,
)
from pgcorpus.db.uow import UnitOfWork
from tests.factories import ConversationFactory, MessageFactory

KEY = ("claude", "c1")
BEGAN = datetime(2024, 5, 1, 10, tzinfo=UTC)


def make_turns(*contents: str) -> tuple[MessageRecord, ...]:
    """Make messages whose identifiers are their first letters."""
    return tuple(
        MessageRecord(source_id=content[0], branch=0, position=n, role="user", content=content)
        for n, content in enumerate(contents)
    )


RECORD = ConversationRecord(
    source_type="claude",
    source_id="c1",
    title="About prices",
    created_at=BEGAN,
    source_updated_at=None,
    messages=make_turns("a one", "b two"),
)


def write(work: UnitOfWork, record: ConversationRecord) -> tuple[UUID, Written]:
    """Write one conversation, new or known."""
    known = work.chat_imports.list_known({KEY}).get(KEY)
    planned = ConversationWrite(
        id=known.id if known else uuid4(),
        known=known,
        record_hash=b"hash",
        imported_from="f.json",
        languages=["simple"] * len(record.messages),
        record=record,
    )
    return planned.id, work.chat_imports.write([planned])


def messages(session: Session, conversation_id: UUID) -> Sequence[models.Message]:
    """As they are stored, in order."""
    session.expire_all()
    return session.scalars(
        select(models.Message)
        .where(models.Message.conversation_id == conversation_id)
        .order_by(models.Message.branch, models.Message.position)
    ).all()


def test_a_conversation_is_known_by_its_source_and_identifier(work: UnitOfWork) -> None:
    """Both: providers do not agree on identifiers. Nothing asked for is nothing found."""
    row = ConversationFactory(source_type="claude", source_id="c1", title="T")
    ConversationFactory(source_type="chatgpt", source_id="c1")

    found = work.chat_imports.list_known({KEY, ("claude", "other")})

    assert {key: (known.id, known.title) for key, known in found.items()} == {KEY: (row.id, "T")}
    assert work.chat_imports.list_known(set()) == {}


def test_a_new_conversation_is_written_whole(session: Session, work: UnitOfWork) -> None:
    """Its messages have keys made of their identifiers, and its times where they have none."""
    key, result = write(work, RECORD)

    one, two = messages(session, key)
    assert (result.messages, result.former) == (2, [])
    assert one.id == message_id(key, "a")
    assert (one.content, one.details, one.language) == ("a one", {"source_id": "a"}, "simple")
    assert (one.created_at, two.created_at, two.position) == (BEGAN, BEGAN, 1)
    assert work.chat_imports.count() == 2


def test_a_conversation_without_times_began_with_its_first_message(
    session: Session, work: UnitOfWork
) -> None:
    """Or now, where no message has a time either."""
    one, two = RECORD.messages
    spoken = (one, replace(two, created_at=BEGAN))

    key, _ = write(work, replace(RECORD, created_at=None, messages=spoken))

    assert session.get_one(models.Conversation, key).created_at == BEGAN


def test_what_is_the_same_is_not_written(session: Session, work: UnitOfWork) -> None:
    """Times that were made up once are not made up again."""
    record = replace(RECORD, created_at=None)
    key, _ = write(work, record)
    before = [row.updated_at for row in messages(session, key)]

    _, result = write(work, replace(record, title="Another"))

    assert result == Written(messages=0, former=[])
    assert [row.updated_at for row in messages(session, key)] == before
    assert session.get_one(models.Conversation, key).title == "Another"


def test_what_differs_is_removed_changed_and_added(session: Session, work: UnitOfWork) -> None:
    """In one go, although every place but one is another's now; what was there is told."""
    key, _ = write(work, replace(RECORD, messages=make_turns("a one", "b two", "c three")))

    _, result = write(work, replace(RECORD, messages=make_turns("c 3", "d four", "a one")))

    assert [row.content for row in messages(session, key)] == ["c 3", "d four", "a one"]
    assert [row.version for row in messages(session, key)] == [2, 1, 1]
    assert result.messages == 3
    assert result.former == [
        Former(key, "c", {"content": "c three"}, {"content": "c 3"}),
        Former(
            key,
            "b",
            {"role": "user", "content": "b two", "created_at": BEGAN, "metadata": {}},
            None,
        ),
    ]


def test_messages_of_no_import_follow_the_imported_ones(session: Session, work: UnitOfWork) -> None:
    """In their order; those of a branch that is gone are on the main one, too."""
    key, _ = write(work, RECORD)
    MessageFactory(conversation_id=key, content="here")
    MessageFactory(conversation_id=key, content="aside", branch=3)

    _, result = write(work, replace(RECORD, messages=make_turns("a one", "b two", "c three")))

    assert [(row.branch, row.content) for row in messages(session, key)] == [
        (0, "a one"), (0, "b two"), (0, "c three"), (0, "here"), (0, "aside"),
    ]  # fmt: skip
    assert result.messages == 1


@pytest.mark.parametrize("bad", ["\0", "\ud800"])
def test_what_cannot_be_sent_is_an_error_of_this_layer(work: UnitOfWork, bad: str) -> None:
    """Readers take such characters out; one that forgets does not end the import."""
    with pytest.raises(InvalidValue):
        write(work, replace(RECORD, messages=make_turns(f"a {bad}")))
