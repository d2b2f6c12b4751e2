"""The options of remembering, recalling and forgetting; every key has a default."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypedDict

from pgcorpus.db.choices import Complexity, ConversationMode, EmotionalValence, IntentType, Urgency
from pgcorpus.services.search.request import RankingOptions

Progress = Callable[[int], None]


class Details(TypedDict, total=False):
    """The details of an exchange; every key has a default, see ``Exchange``."""

    sequence_index: int | None
    source: str
    created_at: datetime | None
    intent_type: IntentType | None
    complexity: Complexity | None
    technical_depth: int | None
    emotional_valence: EmotionalValence | None
    urgency: Urgency | None
    conversation_mode: ConversationMode | None
    action_required: bool
    has_code: bool
    has_error: bool
    tags: Mapping[str, Sequence[str]]
    cluster_id: int | None
    cluster_label: str | None
    cluster_confidence: float | None
    language: str | None


class Recalling(RankingOptions, total=False):
    """The options of a recall: those of a search within the scope, and two of memory.

    ``boost`` is 0.2 by default: fresh memories, and those recalled often, rise.

    Attributes:
        include_noise: Recall what belongs to no cluster, too.
        touch: Count what is recalled, by default; written later, off the request path.
    """

    include_noise: bool
    touch: bool


class EpisodeDetails(TypedDict, total=False):
    """The details of an episode; every key has a default.

    Attributes:
        id: ``ep_...``; by default made of the conversation's id.
        title: What it was about.
        messages: Its turns, ``role`` and ``content`` each; by default those of the memories.
        source: By default that of its first memory.
        created_at: When it began; by default with its first memory.
        updated_at: When it ended; by default with its last memory.
        llm_tags: What a model said of it; see ``Told``.
        memory_ids: Of the memories it is made of; by default those of the conversation.
        related_episode_ids: Others that it has to do with.
        language: Text search configuration; by default english.
    """

    id: str | None
    title: str
    messages: Sequence[Mapping[str, Any]] | None
    source: str | None
    created_at: datetime | None
    updated_at: datetime | None
    llm_tags: Mapping[str, Any]
    memory_ids: Sequence[str] | None
    related_episode_ids: Sequence[str]
    language: str | None


class Choosing(TypedDict, total=False):
    """The choice of what is forgotten: exactly one of the first three.

    Attributes:
        ids: Of memories (``mem_...``) and episodes (``ep_...``).
        filters: As a search takes them, of *corpus*. What a search hides by default is forgotten,
            too.
        everything: All memories and episodes of the scope.
        corpus: Whose filters: ``memory`` (the default) or ``episodes``.
        with_episodes: Forget episodes that were made of the memories, too: they may quote them.
        dry_run: Count, and write nothing.
        on_progress: Called with the number forgotten since the last call.
    """

    ids: Sequence[str] | None
    filters: Mapping[str, Any] | None
    everything: bool
    corpus: str
    with_episodes: bool
    dry_run: bool
    on_progress: Progress | None
