"""The results of a memory service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final, Literal, Self

from pgcorpus.db.choices import Complexity, ConversationMode, EmotionalValence, IntentType, Urgency
from pgcorpus.db.models.memory import EpisodicMemory, MemoryNode
from pgcorpus.db.search.page import Hit, SearchPage

Outcome = Literal["new", "same", "merged", "linked"]

RENAMED: Final[Mapping[str, str]] = {
    "memory_id": "id",
    "human_content": "human",
    "assistant_content": "assistant",
    "conversation": "conversation_id",
    "position": "sequence_index",
    "date": "created_at",
}
EPISODE_RENAMED: Final[Mapping[str, str]] = {
    "episode_id": "id",
    "date": "created_at",
    "ended": "updated_at",
    "memory_node_ids": "memory_ids",
}


@dataclass(frozen=True, kw_only=True)
class Remembered:
    """The outcome of an exchange.

    Attributes:
        id: Of the memory that says it now.
        outcome: ``new``; ``same``: it was remembered before, to the letter and at this place;
            ``merged`` into an older memory; ``linked``: new, and said to be a duplicate.
        like: Id of the memory that says the same, or None.
        similarity: How alike the two are: 1 for the same words, else the cosine of their vectors;
            None where they were not compared.
        replaced: Whether a merge took the text of the exchange, in place of an older one.
        embedded: Whether it is found by meaning right away; else a worker makes its vector.
        note: What a reader should know: why there is no vector yet, which model stood in.
    """

    id: str
    outcome: Outcome
    like: str | None = None
    similarity: float | None = None
    replaced: bool = False
    embedded: bool = True
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Memory:
    """A remembered exchange; fields are described at ``Exchange``.

    Attributes:
        score: Of the search that recalled it, or None.
        access_count: How often it was recalled, as far as that is written.
        last_accessed: When it last was, or None.
        duplicate_of: Id of the memory that says the same, or None.
    """

    id: str
    human: str
    assistant: str
    conversation_id: str
    sequence_index: int
    source: str
    created_at: datetime
    intent_type: IntentType
    complexity: Complexity
    technical_depth: int
    emotional_valence: EmotionalValence
    urgency: Urgency
    conversation_mode: ConversationMode
    action_required: bool
    has_code: bool
    has_error: bool
    tags: Mapping[str, Sequence[str]]
    cluster_id: int | None
    cluster_label: str | None
    access_count: int
    last_accessed: datetime | None
    duplicate_of: str | None
    score: float | None = None

    @classmethod
    def of_hit(cls, hit: Hit) -> Self:
        """Make a memory of a hit."""
        return cls(score=hit.score, **_rename(hit.metadata, RENAMED))

    @classmethod
    def of_node(cls, node: MemoryNode) -> Self:
        """Make a memory of a row."""
        return cls(
            human=node.human_content,
            assistant=node.assistant_content,
            **{name: getattr(node, name) for name in _STORED},
        )


_STORED: Final = tuple(
    name for name in Memory.__dataclass_fields__ if name not in {"human", "assistant", "score"}
)


@dataclass(frozen=True, kw_only=True)
class Episode:
    """A remembered conversation; fields are described at ``Told``.

    Attributes:
        content: The summary and what was said.
        memory_ids: Of the memories it is made of, in their order.
        score: Of the search that recalled it, or None.
    """

    id: str
    title: str
    content: str
    source: str
    created_at: datetime
    updated_at: datetime
    message_count: int
    duration_minutes: float | None
    llm_tags: Mapping[str, Any]
    dominant_intent: IntentType | None
    emotional_arc: str | None
    urgency_max: Urgency | None
    has_code: bool
    has_errors: bool
    memory_ids: tuple[str, ...]
    related_episode_ids: tuple[str, ...]
    access_count: int
    last_accessed: datetime | None
    score: float | None = None

    @classmethod
    def of_hit(cls, hit: Hit) -> Self:
        """Make an episode of a hit."""
        values = _rename(hit.metadata, EPISODE_RENAMED)
        return cls(score=hit.score, title=hit.title, content=hit.content, **_with_tuples(values))

    @classmethod
    def of_row(cls, row: EpisodicMemory) -> Self:
        """Make an episode of a row."""
        named = {"memory_ids": "memory_node_ids"}
        stored = (name for name in cls.__dataclass_fields__ if name != "score")
        return cls(**_with_tuples({name: getattr(row, named.get(name, name)) for name in stored}))


@dataclass(frozen=True, kw_only=True)
class Recall:
    """The memories that answer a question.

    Attributes:
        page: The search: what each leg did, and why there are fewer than asked for.
        memories: Best first, as the page has them.
    """

    page: SearchPage
    memories: tuple[Memory, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the recall as the command line prints it.

        It has the page without its hits, and the memories.
        """
        shown = self.page.as_json()
        del shown["hits"]
        return shown | {"memories": [asdict(each) for each in self.memories]}


@dataclass(frozen=True, kw_only=True)
class EpisodeRecall:
    """The episodes that answer a question.

    Attributes:
        page: The search.
        episodes: Best first.
    """

    page: SearchPage
    episodes: tuple[Episode, ...]


@dataclass(frozen=True, kw_only=True)
class Erasure:
    """The counts of an erasure, or of a dry run.

    Attributes:
        memories: How many.
        episodes: How many.
        vectors: Theirs; 0 in a dry run.
        jobs: Embedding jobs about them; 0 in a dry run.
        told_by: Ids of episodes that are left and were made of what was forgotten: they no longer
            name it, and may still quote it.
        missing: Ids that were asked for and are not there.
        user: Whether the user's own row was erased.
        dry_run: Whether nothing was written.
    """

    memories: int = 0
    episodes: int = 0
    vectors: int = 0
    jobs: int = 0
    told_by: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    user: bool = False
    dry_run: bool = False


def _rename(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in values.items()}


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return values | {name: tuple(values[name]) for name in ("memory_ids", "related_episode_ids")}
