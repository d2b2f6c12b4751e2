"""Which turn came before which: the tree that branches and positions stand for."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from uuid import UUID

from db.models.chat import Message


def turns_before(messages: Sequence[Message]) -> dict[UUID, Message | None]:
    """The turn before each turn of a conversation.

    It is at the position before, and of the greatest branch that is not above the turn's own (see
    ``Message.branch``). Where rows were deleted behind the repository's back, the nearest earlier
    position stands in.

    Args:
        messages: All of one conversation, in any order.

    Returns:
        Key → the message before, or None for a first one.
    """
    at: defaultdict[int, list[Message]] = defaultdict(list)
    for message in sorted(messages, key=lambda each: each.branch):
        at[message.position].append(message)
    positions = sorted(at)

    def before(message: Message) -> Message | None:
        for position in reversed(positions[: bisect_left(positions, message.position)]):
            standing = [each for each in at[position] if each.branch <= message.branch]
            if standing:
                return standing[-1]
        return None

    return {message.id: before(message) for message in messages}
