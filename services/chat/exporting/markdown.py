"""A conversation in Markdown, for people to read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Final

from pgcorpus.db.models.chat import Conversation, Message, Role
from pgcorpus.services.chat.exporting.tree import turns_before

ASSISTANTS: Final[Mapping[str, str]] = {"chatgpt": "ChatGPT", "claude": "Claude"}
"""Source → the name of its assistant."""

ROLE_NAMES: Final[Mapping[Role, str]] = {
    "user": "User",
    "assistant": "Assistant",
    "system": "System",
    "tool": "Tool",
}

FENCE: Final = re.compile(r" {0,3}(?P<fence>`{3,}(?=[^`]*$)|~{3,})(?P<info>.*)")
"""A line that opens or closes a block of code (CommonMark 0.31, section 4.5)."""


def as_markdown(conversation: Conversation, messages: Sequence[Message]) -> str:
    """Return the conversation as Markdown: title, details, turns, and abandoned branches.

    What was said stands as it is. A block of code that it leaves open is closed after it, or the
    turns that follow would be read as code.

    Args:
        conversation: Which.
        messages: All of it, by branch and position.
    """
    return "\n\n".join(_parts(conversation, messages)) + "\n"


def iso(moment: datetime) -> str:
    """Format a time as ISO 8601 in UTC, to the second: ``2025-01-15T14:30:22Z``."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _parts(conversation: Conversation, messages: Sequence[Message]) -> Iterator[str]:
    main = [each for each in messages if each.branch == 0]
    abandoned = [each for each in messages if each.branch != 0]
    yield f"# {' '.join(conversation.title.split()) or 'Untitled conversation'}"
    yield "\n".join(
        f"- {name}: {value}" for name, value in _list_details(conversation, main, abandoned)
    )
    names = ROLE_NAMES
    if assistant := ASSISTANTS.get(conversation.source_type):
        names = {**ROLE_NAMES, "assistant": assistant}
    for message in main:
        yield from _turn("##", message, names)
    if not abandoned:
        return
    yield "## Abandoned branches"
    before = turns_before(messages)
    for branch, turns in groupby(abandoned, key=lambda each: each.branch):
        for number, message in enumerate(turns):
            if number == 0:
                yield f"### Branch {branch}, {_fork(before[message.id])}"
            yield from _turn("####", message, names)


def _list_details(
    conversation: Conversation, main: Sequence[Message], abandoned: Sequence[Message]
) -> Iterator[tuple[str, object]]:
    yield "Id", f"`{conversation.id}`"
    if conversation.source_id is None:
        yield "Source", conversation.source_type
    else:
        yield "Source", f"`{conversation.source_type}:{conversation.source_id}`"
    yield "Began", iso(conversation.created_at)
    if conversation.source_updated_at is not None:
        yield "Last changed there", iso(conversation.source_updated_at)
    yield "Messages", len(main)
    if abandoned:
        yield "Messages of abandoned branches", len(abandoned)
    if conversation.is_saved:
        yield "Saved", "yes"


def _turn(heading: str, message: Message, names: Mapping[Role, str]) -> Iterator[str]:
    """Yield the lines of a turn; turns are counted from 1."""
    yield (f"{heading} {message.position + 1}. {names[message.role]} ({iso(message.created_at)})")
    fence = _find_open_fence(message.content)
    yield message.content if fence is None else f"{message.content}\n{fence}"


def _fork(before: Message | None) -> str:
    if before is None:
        return "from the beginning"
    after = f"after turn {before.position + 1}"
    return after if before.branch == 0 else f"{after} of branch {before.branch}"


def _find_open_fence(content: str) -> str | None:
    """Return the fence of a block of code that the content does not close, or None."""
    left_open: str | None = None
    for line in content.splitlines():
        found = FENCE.fullmatch(line)
        if found is None:
            continue
        if left_open is None:
            left_open = found["fence"]
        elif found["fence"].startswith(left_open) and not found["info"].strip():
            left_open = None
    return left_open
