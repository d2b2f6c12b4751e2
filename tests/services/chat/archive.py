"""A small archive whose keys and times never change, so that what is made of it can be compared."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from pgcorpus.db.engine import Database
from pgcorpus.db.models.chat import Conversation, Message, Role

BEGAN: Final = datetime(2025, 1, 15, 14, 30, 22, 123456, tzinfo=UTC)

QUESTION: Final = (
    "## How should I **price** a _premium_ offer?\n\n> See [my notes](https://example.com/notes)"
    " and `price_list`.\n\n- By the hour\n- By the outcome\n\nI have sold consulting by the hour"
    " for years, and every invoice turns into a discussion about minutes instead of results."
    " What would you put into the offer instead, and how would you explain it?"
)
ANSWER: Final = (
    "Charge for the outcome:\n\n```python\n# price\nprice = value * 0.1\n```\n\nNot *hours*."
)
LEFT_OPEN: Final = "By the hour, then:\n\n~~~~\nprice = hours * rate\n~~~"

Turn = tuple[int, int, Role, str]
"""Branch, position, role and content."""


def turn_key(conversation: int, place: int) -> UUID:
    """The key of the n-th message of a conversation."""
    return UUID(int=(0x4000 << 64) + 100 * conversation + place + (0x8000 << 48))


def conversation_key(number: int) -> UUID:
    """The key of a conversation, from 1."""
    return turn_key(number, 0)


TURNS: Final[dict[int, tuple[Turn, ...]]] = {
    1: (
        (0, 0, "system", "Answer briefly."),
        (0, 1, "user", QUESTION),
        (0, 2, "assistant", ANSWER),
        (0, 3, "tool", "calculator: 0.1 * 50000 = 5000"),
        (0, 4, "assistant", "So charge 5000 for a result worth 50000."),
        (0, 5, "user", "And a retainer?"),
        (1, 3, "user", "Why not by the hour?"),
        (1, 4, "assistant", LEFT_OPEN),
        (2, 2, "assistant", "Ask what the outcome is worth."),
        (2, 3, "user", "To whom?"),
        (3, 3, "user", "Worth it in which currency?"),
    ),
    2: (
        (0, 0, "user", "Why do customers leave after the first month?"),
        (0, 1, "assistant", "Most churn happens before a customer sees a first result."),
    ),
    3: (),
    4: ((0, 0, "user", "我们应该如何定价。" * 30),),
}  # fmt: skip


def fill(database: Database) -> None:
    """Put the archive into a database of the newest schema."""
    rows: list[Conversation | Message] = [
        Conversation(
            id=conversation_key(1),
            title='Pricing: a *premium* offer/with "quotes"',
            created_at=BEGAN,
            updated_at=BEGAN + timedelta(days=3),
            source_type="chatgpt",
            source_id="6797-price:1",
            source_updated_at=BEGAN + timedelta(days=2),
            is_saved=True,
            record_hash=b"\x01\x02",
            imported_from="/exports/conversations.json",
        ),
        Conversation(
            id=conversation_key(2),
            title="Churn",
            created_at=BEGAN + timedelta(days=1),
            updated_at=BEGAN + timedelta(days=1),
            source_type="claude",
            source_id="c-2",
        ),
        Conversation(
            id=conversation_key(3),
            created_at=BEGAN + timedelta(days=2),
            updated_at=BEGAN + timedelta(days=2),
        ),
        Conversation(
            id=conversation_key(4),
            title="定价",
            created_at=BEGAN + timedelta(days=3),
            updated_at=BEGAN + timedelta(days=3),
            source_type="openwebui",
            source_id="w-4",
        ),
    ]
    for number, turns in TURNS.items():
        rows += [
            Message(
                id=turn_key(number, place),
                conversation_id=conversation_key(number),
                branch=branch,
                position=position,
                role=role,
                content=content,
                details={"model": "gpt-4o", "parts": [1, None]} if role == "assistant" else {},
                created_at=BEGAN + timedelta(days=number - 1, minutes=place),
                updated_at=BEGAN + timedelta(days=number),
            )
            for place, (branch, position, role, content) in enumerate(turns, start=1)
        ]
    with database.unit_of_work() as work:
        work.session.add_all(rows)
        work.session.flush()
        work.models.use_model("chat", "hashing")
        work.commit()
