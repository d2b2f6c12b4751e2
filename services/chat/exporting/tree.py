"""The order of turns: the tree that branches and positions stand for."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from uuid import UUID

from pgcorpus.db.models.chat import Message


def turns_before(messages: Sequence[Message]) -> dict[UUID, Message | None]:
    """Return the turn before each turn of a conversation.

    It is at the position before, and of the greatest branch that is not above the turn's own (see
    ``Message.branch``). Where rows were deleted behind the repository's back, the nearest earlier
    position stands in.

    Args:
        messages: All of one conversation, in any order.

    Returns:
        Key → the message before, or None for a first one.
    """
    before: dict[UUID, Message | None] = {}
    # Branch by branch: what was last at a position is of the greatest branch so far.
    last_at: dict[int, Message] = {}
    positions: list[int] = []
    for message in sorted(messages, key=lambda each: (each.branch, each.position)):
        place = bisect_left(positions, message.position)
        before[message.id] = last_at[positions[place - 1]] if place else None
        if message.position not in last_at:
            positions.insert(place, message.position)
        last_at[message.position] = message
    return before
