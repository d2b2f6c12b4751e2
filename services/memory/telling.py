"""The making of an episode from a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from pgcorpus.db.choices import NATIVE
from pgcorpus.db.errors import InvalidValue, NotFound
from pgcorpus.db.models.memory import MemoryNode
from pgcorpus.db.repositories.memory.episodes import Told, episode_id
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.memory.options import EpisodeDetails


def tell(work: UnitOfWork, conversation_id: str | None, details: EpisodeDetails) -> Told:
    """Make an episode of the details given, and of its memories for the rest.

    Args:
        work: To read the memories.
        conversation_id: Whose memories, unless these are named.
        details: What is given.

    Raises:
        NotFound: Memories that are named are not there, or there is nothing to tell.
        InvalidValue: There is nothing to name the episode by.
    """
    named = details.get("id") or (conversation_id and episode_id(conversation_id))
    if not named:
        raise InvalidValue("an episode needs an id, or the conversation it is made of")
    members = _members(work, conversation_id, details.get("memory_ids"))
    messages = details.get("messages")
    if messages is None:
        messages = [turn for node in members for turn in _turns(node)]
    if not messages:
        raise NotFound(
            "there are no messages, and no memories to take them from; name a conversation that "
            "has some"
        )
    times = [node.created_at for node in members] or [datetime.now(UTC)]
    began = details.get("created_at") or min(times)
    return Told(
        id=named,
        messages=messages,
        title=details.get("title", ""),
        source=details.get("source") or (members[0].source if members else NATIVE),
        created_at=began,
        updated_at=details.get("updated_at") or max(began, *times),
        llm_tags=details.get("llm_tags", {}),
        related_episode_ids=details.get("related_episode_ids", ()),
        members=members,
        language=details.get("language"),
    )


def _members(
    work: UnitOfWork, conversation_id: str | None, ids: Sequence[str] | None
) -> Sequence[MemoryNode]:
    if ids is None:
        return () if conversation_id is None else work.memory.list_conversation(conversation_id)
    members = work.memory.list_memories(ids)
    if missing := sorted(set(ids) - {node.id for node in members}):
        raise NotFound(f"there are no memories {', '.join(missing)} in this scope")
    return members


def _turns(node: MemoryNode) -> list[dict[str, str]]:
    said = (("user", node.human_content), ("assistant", node.assistant_content))
    return [{"role": role, "content": content} for role, content in said if content.strip()]
