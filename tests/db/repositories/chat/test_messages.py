"""Messages: read, edited with nobody's change lost, deleted with the tree kept whole, found."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from pgcorpus.db import models
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import (
    EmptyQuestion,
    InvalidCursor,
    InvalidFilter,
    InvalidValue,
    NotFound,
    TransactionConflict,
    UnknownFilter,
    translate,
)
from pgcorpus.db.search.ask import Ask
from pgcorpus.db.search.corpora import CHAT
from pgcorpus.db.search.legs import AskedModel
from pgcorpus.db.search.page import Hit
from pgcorpus.db.search.question import Question
from pgcorpus.db.uow import UnitOfWork
from tests.factories import ConversationFactory, MessageFactory, axis


def tree(work: UnitOfWork, conversation_id: UUID) -> list[str]:
    """Return the place of each message, as ``content branch.position``."""
    return [
        f"{each.content} {each.branch}.{each.position}"
        for each in work.messages.list_messages(conversation_id, branch=None)
    ]


@pytest.fixture
def forked(work: UnitOfWork) -> UUID:
    r"""A conversation with three abandoned branches, numbered as importers number them.

    ::

        a - b - c - d - e      0
             \   \- x          1
              \- y - z         2
                  \- w         3
    """
    conversation = ConversationFactory()
    for places in ("a00 b01 c02 d03 e04", "x13", "y22 z23", "w33"):
        for place in places.split():
            content, branch, position = place
            MessageFactory(
                conversation=conversation,
                content=content,
                branch=int(branch),
                position=int(position),
            )
    return conversation.id


def test_a_message_is_found_by_its_key(work: UnitOfWork) -> None:
    """``find`` may come back empty-handed, ``get`` raises."""
    made = MessageFactory()

    assert work.messages.get(made.id) is made
    assert work.messages.find(uuid4()) is None
    with pytest.raises(NotFound, match="there is no message"):
        work.messages.get(uuid4())


def test_a_conversation_is_read_by_branch(work: UnitOfWork, forked: UUID) -> None:
    """The main one unless another is named; an abandoned one from where it forks."""

    def read(branch: int | None) -> str:
        return "".join(each.content for each in work.messages.list_messages(forked, branch=branch))

    assert "".join(each.content for each in work.messages.list_messages(forked)) == "abcde"
    assert [read(branch) for branch in (1, 2, None, 9)] == ["x", "yz", "abcdexyzw", ""]
    assert work.messages.list_messages(uuid4()) == []


def test_a_long_conversation_is_read_page_by_page(work: UnitOfWork) -> None:
    """From its beginning, and no message twice though others are appended meanwhile."""
    conversation = ConversationFactory()
    made = [MessageFactory(conversation=conversation) for _ in range(5)]
    first = work.messages.list_page(conversation.id, limit=3)
    made.append(work.chat.append(conversation.id, role="user", content="More."))

    second = work.messages.list_page(conversation.id, limit=3, cursor=first.next_cursor)

    assert [*first.items, *second.items] == made
    assert second.next_cursor is None
    with pytest.raises(InvalidCursor):
        work.messages.list_page(uuid4(), limit=3, cursor=first.next_cursor)
    with pytest.raises(InvalidValue, match="1 to 1000"):
        work.messages.list_page(conversation.id, limit=0)


def test_an_edit_increments_the_version(work: UnitOfWork) -> None:
    """The call returns what is stored, and the conversation has changed with it."""
    made = MessageFactory(conversation__updated_at=datetime(2025, 1, 1, tzinfo=UTC))
    conversation = work.chat.get(made.conversation_id)
    before = conversation.updated_at

    edited = work.messages.edit(made.id, "Something else.", expected_version=1)

    assert edited is made
    assert (edited.content, edited.version) == ("Something else.", 2)
    assert work.messages.edit(made.id, "Something else.").version == 2  # no change, no version
    assert work.messages.edit(made.id, "Else.").version == 3
    assert conversation.updated_at > before


def test_an_edit_enqueues_the_embedding(work: UnitOfWork) -> None:
    """Once, however often it is edited before a worker comes."""
    made = MessageFactory()
    work.session.query(models.Job).delete()

    work.messages.edit(made.id, "Else.")
    work.messages.edit(made.id, "And else.")

    (job,) = work.session.scalars(select(models.Job)).all()
    assert job.payload == {"corpus": "chat", "item": str(made.id)}


def test_an_edit_of_an_older_version_is_refused(database: Database) -> None:
    """Of two who read the same version, the second is told; the first one's change stays."""
    with database.unit_of_work() as work:
        message = work.chat.append(work.chat.create().id, role="user", content="First.").id
        work.commit()

    def edit(content: str) -> None:
        with database.unit_of_work() as work:
            work.messages.edit(message, content, expected_version=1)
            work.commit()

    edit("Second.")
    with pytest.raises(TransactionConflict, match="no longer at version 1"):
        edit("Third.")

    with database.unit_of_work() as work:
        assert work.messages.get(message).content == "Second."


def test_what_does_not_exist_is_neither_edited_nor_deleted(work: UnitOfWork) -> None:
    """With or without a version."""
    with pytest.raises(NotFound):
        work.messages.edit(uuid4(), "Else.", expected_version=1)
    with pytest.raises(NotFound):
        work.messages.delete(uuid4())


@pytest.mark.parametrize("content", ["", " ", "\n\t ", "\u2003", "\xa0"])
def test_an_edit_to_nothing_is_refused(work: UnitOfWork, content: str) -> None:
    """A message says something, and white space of any kind does not."""
    message = MessageFactory().id

    with pytest.raises(InvalidValue, match="must not be empty") as refused:
        work.messages.edit(message, content)

    assert refused.value.constraint == "non_empty_message"
    assert work.messages.get(message).version == 1


@pytest.mark.parametrize("content", ["", " ", "\n\t "])
def test_nobody_writes_an_empty_message(session: Session, content: str) -> None:
    """Whoever goes past the repository meets the table's own rule, under the same name."""
    with pytest.raises(IntegrityError) as refused:
        MessageFactory(content=content)

    error = translate(refused.value)
    assert isinstance(error, InvalidValue)
    assert error.constraint == "non_empty_message"
    assert "white space" in str(error)


@pytest.mark.parametrize(
    ("gone", "left"),
    [
        ("a", "b 0.0, c 0.1, d 0.2, e 0.3, x 1.2, y 2.1, z 2.2, w 3.2"),
        ("b", "a 0.0, c 0.1, d 0.2, e 0.3, x 1.2, y 2.1, z 2.2, w 3.2"),
        ("c", "a 0.0, b 0.1, d 0.2, e 0.3, x 1.2, y 2.2, z 2.3, w 3.3"),
        ("d", "a 0.0, b 0.1, c 0.2, e 0.3, x 1.3, y 2.2, z 2.3, w 3.3"),
        ("e", "a 0.0, b 0.1, c 0.2, d 0.3, x 1.3, y 2.2, z 2.3, w 3.3"),
        ("x", "a 0.0, b 0.1, c 0.2, d 0.3, e 0.4, y 2.2, z 2.3, w 3.3"),
        ("y", "a 0.0, b 0.1, c 0.2, d 0.3, e 0.4, x 1.3, z 2.2, w 3.2"),
        ("z", "a 0.0, b 0.1, c 0.2, d 0.3, e 0.4, x 1.3, y 2.2, w 3.3"),
        ("w", "a 0.0, b 0.1, c 0.2, d 0.3, e 0.4, x 1.3, y 2.2, z 2.3"),
    ],
)
def test_a_deleted_message_leaves_no_gap(
    work: UnitOfWork, forked: UUID, gone: str, left: str
) -> None:
    """The messages after it follow the one before it, on every branch; nothing else moves."""
    messages = {each.content: each for each in work.messages.list_messages(forked, branch=None)}

    work.messages.delete(messages[gone].id)

    assert ", ".join(tree(work, forked)) == left


def test_a_deletion_embeds_nothing_anew(work: UnitOfWork, forked: UUID) -> None:
    """Messages that move up still say the same."""
    first = work.messages.list_messages(forked)[0]
    work.session.query(models.Job).delete()

    work.messages.delete(first.id)

    assert work.session.scalars(select(models.Job)).all() == []


@pytest.fixture
def spoken(work: UnitOfWork) -> dict[str, UUID]:
    """Three messages with vectors, one of them abandoned: content → key."""
    conversation = ConversationFactory(source_type="claude")
    keys = {
        content: MessageFactory(conversation=conversation, content=content, **values).id
        for content, values in (
            ("How do I price a subscription?", {}),
            ("Charge for the outcome.", {"role": "assistant"}),
            ("Charge by the hour.", {"role": "assistant", "branch": 1, "position": 1}),
        )
    }
    vectors = np.stack([axis(n, length=384) for n in range(3)])
    work.embeddings.store(CHAT, "hashing", list(keys.values()), vectors)
    return keys


def search(
    work: UnitOfWork,
    question: str = "",
    *,
    mode: str = "text",
    vector: np.ndarray | None = None,
    **options: Any,
) -> tuple[Hit, ...]:
    """Search the archive, as the ranking of every corpus does, and no more."""
    ask = Ask(
        question=Question("", ()) if mode == "vector" else Question.parse(question),
        legs={"vector": 0.7, "text": 0.3} if mode == "hybrid" else {mode: 1.0},
        fusion="weighted",
        model=AskedModel("hashing", 384),
        vector=vector,
        **options,
    )
    return work.searches.answer(CHAT, ask).hits


def test_messages_are_found_by_their_words(work: UnitOfWork, spoken: dict[str, UUID]) -> None:
    """On the main branch, unless the caller asks for another."""
    (hit,) = search(work, "charge")
    (abandoned,) = search(work, "charge", filters={"branch": 1})

    assert (hit.id, abandoned.id) == (
        spoken["Charge for the outcome."],
        spoken["Charge by the hour."],
    )
    assert hit.metadata["role"] == "assistant"
    assert search(work, "charge", filters={"source_type": "chatgpt"}) == ()


def test_messages_are_found_by_words_spelt_alike(work: UnitOfWork, spoken: dict[str, UUID]) -> None:
    """A typo finds what was meant."""
    (hit,) = search(work, "subscribtion", mode="fuzzy")

    assert hit.id == spoken["How do I price a subscription?"]
    assert 0 < hit.score < 1


def test_messages_are_found_by_vectors(work: UnitOfWork, spoken: dict[str, UUID]) -> None:
    """The score is the cosine."""
    near, far = search(work, mode="vector", vector=axis(1, lean=0.6, length=384))

    assert (near.id, far.id) == tuple(spoken.values())[1::-1]
    assert near.score == pytest.approx(0.8, abs=1e-6)
    assert far.score == pytest.approx(0.6, abs=1e-6)


def test_messages_are_found_by_words_and_vectors(work: UnitOfWork, spoken: dict[str, UUID]) -> None:
    """Either is enough to be found; 70 % is the vector's and 30 % the words'."""
    best, other = search(work, "subscription", mode="hybrid", vector=axis(1, length=384))

    assert (best.id, other.id) == tuple(spoken.values())[1::-1]
    assert best.contributions["vector"] == pytest.approx(0.7)
    assert other.contributions["text"] == pytest.approx(0.3 * other.scores["text"])


def test_pages_of_hits_fit_together(work: UnitOfWork, spoken: dict[str, UUID]) -> None:
    """The second page begins where the first ends."""
    vector = axis(1, lean=0.6, length=384)

    hits = [
        hit.id
        for offset in (0, 1, 2)
        for hit in search(work, mode="vector", vector=vector, limit=1, offset=offset)
    ]

    assert hits == list(spoken.values())[1::-1]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"question": " "}, EmptyQuestion),
        ({"question": "a", "mode": "fuzzy", "filters": {"colour": "red"}}, UnknownFilter),
        ({"question": "a", "filters": {"role": "robot"}}, InvalidFilter),
        ({"mode": "hybrid", "vector": axis(0, length=384)}, EmptyQuestion),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(
    work: UnitOfWork, arguments: dict[str, Any], error: type[Exception]
) -> None:
    """As every search of this layer is."""
    with pytest.raises(error):
        search(work, **arguments)
