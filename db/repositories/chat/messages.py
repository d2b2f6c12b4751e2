"""Messages of the chat archive: read, edited, and deleted."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from sqlalchemy import Select, delete, select, text, update

from pgcorpus.db.errors import NotFound, TransactionConflict
from pgcorpus.db.models.chat import Message
from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.repositories.chat.conversations import ConversationRepository, require_words
from pgcorpus.db.repositories.pages import Page, check_limit, decode, page_of

MAIN: Final = 0
"""The branch that is the conversation as it stands."""

CLOSE_THE_GAP: Final = text("""
    UPDATE messages SET position = position - 1
    WHERE conversation_id = :conversation AND position > :position AND branch >= :branch
      AND branch < coalesce(
          (SELECT min(other.branch) FROM messages AS other
           WHERE other.conversation_id = :conversation
             AND other.branch > :branch AND other.position <= :position),
          2147483648)
""")
"""Moves up the messages that followed a deleted one. By the numbering of branches (see
``Message.branch``) those that fork after it are the next ones, up to the first that began earlier:
what followed the deleted message follows the one before it, on every branch."""

BRANCHES: Final = text("""
    SELECT count(*) AS total,
           coalesce(array_agg(conversation_id::text ORDER BY conversation_id, branch)
                    FILTER (WHERE turns <= last - first OR (first > 0 AND NOT follows)), '{}')
               AS broken
    FROM (SELECT conversation_id, branch, min(position) AS first, max(position) AS last,
                 count(*) AS turns
          FROM messages GROUP BY conversation_id, branch) AS branches
    CROSS JOIN LATERAL (
        SELECT EXISTS (SELECT FROM messages AS before
                       WHERE before.conversation_id = branches.conversation_id
                         AND before.branch < branches.branch AND before.position = first - 1)
    ) AS parent (follows)
""")
"""The number of branches, and the conversations of those that have a gap or follow no turn."""


class MessageRepository(Repository):
    """Messages, one at a time and by the page."""

    def get(self, message_id: UUID) -> Message:
        """Return the message of that key.

        Raises:
            NotFound: There is none.
        """
        message = self.find(message_id)
        if message is None:
            raise _no_message(message_id)
        return message

    def find(self, message_id: UUID) -> Message | None:
        """Return the message of that key, or None."""
        return self.session.get(Message, message_id)

    def tally_branches(self) -> tuple[int, list[str]]:
        """Count the branches of all conversations, and find those with a gap.

        The positions of a branch follow one another, and its first turn begins the conversation or
        follows a turn of an earlier branch. Plain SQL can leave a gap, nothing else.

        Returns:
            The number of branches; for each with a gap the id of its conversation, in order.
        """
        total, broken = self.session.execute(BRANCHES).one()
        return total, list(broken)

    def list_messages(self, conversation_id: UUID, *, branch: int | None = MAIN) -> list[Message]:
        """List the messages of a conversation.

        Args:
            conversation_id: Which; one that does not exist has no messages.
            branch: Which branch, from where it forks; None for all.

        Returns:
            By branch and position.
        """
        turns: Select[Message] = (
            select(Message)
            .where(Message.conversation_id == conversation_id)
            .order_by(Message.branch, Message.position)
        )
        if branch is not None:
            turns = turns.where(Message.branch == branch)
        return list(self.session.scalars(turns))

    def list_page(
        self,
        conversation_id: UUID,
        *,
        branch: int = MAIN,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[Message]:
        """List a long conversation from its beginning, page by page.

        Args:
            conversation_id: Which.
            branch: Which branch, from where it forks.
            limit: At most this many, 1 to 1,000.
            cursor: ``next_cursor`` of the page before.

        Raises:
            InvalidCursor: It is of no page of this branch.
            InvalidValue: The limit is out of range.
        """
        listing = f"messages of {conversation_id}, {branch}"
        turns: Select[Message] = (
            select(Message)
            .where(Message.conversation_id == conversation_id, Message.branch == branch)
            .order_by(Message.position)
            .limit(check_limit(limit) + 1)
        )
        if cursor is not None:
            (position,) = decode(listing, cursor)
            turns = turns.where(Message.position > int(position))
        return page_of(
            self.session.scalars(turns).all(), limit, listing, lambda last: (last.position,)
        )

    def edit(
        self, message_id: UUID, content: str, *, expected_version: int | None = None
    ) -> Message:
        """Change a message's content; its version is incremented and its embedding enqueued.

        Args:
            message_id: Which.
            content: Not empty, nor white space alone.
            expected_version: The version that the change was made to; None overwrites any.

        Raises:
            NotFound: There is none of that key.
            TransactionConflict: Someone else changed it in the meantime; read it again.
            InvalidValue: The content is empty, or no text can hold it.
        """
        changed = (
            update(Message)
            .where(Message.id == message_id)
            .values(content=require_words(content))
            .returning(Message)
        )
        if expected_version is not None:
            changed = changed.where(Message.version == expected_version)
        self._touch_conversation_of(message_id)
        message = self.session.scalar(changed, execution_options={"populate_existing": True})
        if message is None:
            raise TransactionConflict(
                f"the message {message_id} is no longer at version {expected_version}; "
                "read it again, and edit what it says now"
            )
        return message

    def delete(self, message_id: UUID) -> None:
        """Delete a message; what followed it follows the one before it, on every branch.

        Raises:
            NotFound: There is none of that key.
        """
        self._touch_conversation_of(message_id)
        gone = self.session.execute(
            delete(Message)
            .where(Message.id == message_id)
            .returning(Message.conversation_id, Message.branch, Message.position)
        ).one_or_none()
        if gone is None:  # someone else was faster
            raise _no_message(message_id)
        self.session.execute(
            CLOSE_THE_GAP,
            {
                "conversation": gone.conversation_id,
                "branch": gone.branch,
                "position": gone.position,
            },
        )
        for each in self.session:
            if isinstance(each, Message):
                self.session.expire(each, ["position"])

    def _touch_conversation_of(self, message_id: UUID) -> None:
        conversation_id = self.session.scalar(
            select(Message.conversation_id).where(Message.id == message_id)
        )
        if conversation_id is None:
            raise _no_message(message_id)
        ConversationRepository(self.session).touch(conversation_id)


def _no_message(message_id: UUID) -> NotFound:
    return NotFound(f"there is no message {message_id}")
