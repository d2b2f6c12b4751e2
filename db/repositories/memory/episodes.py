"""Episodes: whole conversations and their outcomes, within the scope of the unit of work."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from itertools import groupby
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, Select, Text, any_, literal, or_, select, tuple_
from sqlalchemy.dialects.postgresql import ARRAY, insert

from pgcorpus.db.base import in_utc
from pgcorpus.db.choices import NATIVE, IntentType
from pgcorpus.db.errors import MEANINGS, AlreadyExists, InvalidValue, NotFound
from pgcorpus.db.models.memory import COMPLEXITIES, URGENCIES, EpisodicMemory, MemoryNode
from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.repositories.memory.nodes import refuse_too_long
from pgcorpus.db.repositories.pages import Page, check_limit, decode, page_of
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.corpora import EPISODES
from pgcorpus.db.text import storable

MAX_RELATED: Final = 100


@dataclass(frozen=True, kw_only=True)
class Told:
    """A conversation that is to be stored as an episode.

    Attributes:
        id: ``ep_...``; storing an episode of the same id again replaces it.
        messages: Its turns in their order: mappings with ``role`` and ``content``.
        title: What it was about.
        source: Whose assistant.
        created_at: When it began.
        updated_at: When it ended.
        llm_tags: What a model said of it: ``summary``, ``primary_intent``, ``outcome``,
            ``interruption_reason``, ``key_entities``, ``emotional_arc``, ``domains``,
            ``time_context``.
        related_episode_ids: Others that it has to do with.
        members: The memories it is made of, in their order.
        language: Text search configuration; by default english.

    Raises:
        InvalidValue: The table would refuse it.
    """

    id: str
    messages: Sequence[Mapping[str, Any]]
    title: str = ""
    source: str = NATIVE
    created_at: datetime
    updated_at: datetime
    llm_tags: Mapping[str, Any] = field(default_factory=dict)
    related_episode_ids: Sequence[str] = ()
    members: Sequence[MemoryNode] = ()
    language: str | None = None

    def __post_init__(self) -> None:
        if not self.id.startswith("ep_"):
            raise InvalidValue(f"an episode's id begins with ep_, unlike {self.id!r}")
        refuse_too_long(EpisodicMemory, id=self.id, source=self.source)
        for name in ("key_entities", "domains"):
            if not isinstance(self.llm_tags.get(name, []), list | tuple):
                raise InvalidValue(f"llm_tags: {name} must be a list", constraint="valid_llm_tags")
        for turn in self.messages:
            if not isinstance(turn, Mapping):
                raise InvalidValue(MEANINGS["valid_messages"], constraint="valid_messages")
        for name, value in (("title", self.title), ("messages", self.messages)):
            _refuse_unstorable(name, value)
        _refuse_unstorable("llm_tags", self.llm_tags)

    @property
    def columns(self) -> dict[str, Any]:
        """The values of a row's columns, except its scope."""
        began, ended = in_utc(self.created_at), in_utc(self.updated_at)
        assert began is not None  # noqa: S101 - neither is
        assert ended is not None  # noqa: S101
        given = {
            "title": self.title,
            "messages": [dict(turn) for turn in self.messages],
            "message_count": len(self.messages),
            "source": self.source,
            "created_at": began,
            "updated_at": ended,
            "duration_minutes": max((ended - began).total_seconds(), 0) / 60,
            "llm_tags": dict(self.llm_tags),
            "memory_node_ids": [node.id for node in self.members],
            "related_episode_ids": list(self.related_episode_ids),
            **_summarize(self.members),
        }
        if arc := self.llm_tags.get("emotional_arc"):
            given["emotional_arc"] = str(arc)
        return given if self.language is None else {**given, "language": self.language}


class EpisodeRepository(Repository):
    """The episodes of one scope."""

    @property
    def owner(self) -> Scope:
        """The scope that owns the episodes.

        Raises:
            MissingScope: The unit of work has no scope.
        """
        return self.get_scope(EPISODES)

    def put(self, told: Told) -> EpisodicMemory:
        """Store an episode, in place of the one of its id; the outbox enqueues its embedding.

        Only its author replaces it: what another user of the tenant wrote would outlive their
        erasure, or go with that of another.

        Raises:
            AlreadyExists: Another user of the tenant keeps one of this id.
            IntegrityError: The unit of work turns it into ``MissingReference`` where there is no
                such tenant or user, else into ``InvalidValue``.
        """
        owner = self.owner
        new = insert(EpisodicMemory).values(
            id=told.id,
            user_id=owner.user_id,
            tenant_id=owner.tenant_id,
            scope=str(owner),
            **told.columns,
        )
        kept = new.on_conflict_do_update(
            index_elements=["scope", "id"],
            set_={name: new.excluded[name] for name in told.columns},
            where=EpisodicMemory.user_id.is_not_distinct_from(new.excluded.user_id),
        ).returning(EpisodicMemory)
        episode: EpisodicMemory | None = self.session.scalars(
            kept, execution_options={"populate_existing": True}
        ).one_or_none()
        if episode is None:
            raise AlreadyExists(
                f"the episode {told.id} is another user's of the tenant, who alone may replace it; "
                "give yours an id of its own (ep_...)"
            )
        return episode

    def get(self, episode_id: str) -> EpisodicMemory:
        """Return the episode of that id.

        Raises:
            NotFound: There is none in this scope.
        """
        episode = self.session.scalar(self._episodes().where(EpisodicMemory.id == episode_id))
        if episode is None:
            raise NotFound(f"there is no episode {episode_id} in this scope")
        return episode

    def list_episodes(
        self,
        filters: Mapping[str, Any] | None = None,
        *,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[EpisodicMemory]:
        """List episodes, those that began last first, page by page.

        Args:
            filters: As a search of the corpus ``episodes`` takes them.
            limit: At most this many, 1 to 1,000.
            cursor: ``next_cursor`` of the page before, with the same filters.

        Raises:
            UnknownFilter: There is no filter of that name.
            InvalidFilter: A filter's value is of the wrong kind.
            InvalidCursor: It is of no page of this list.
            InvalidValue: The limit is out of range.
        """
        conditions, values = EPISODES.parse_filters(filters or {})
        listing = f"episodes of {self.owner}, {sorted((k, str(v)) for k, v in values.items())}"
        order = (EpisodicMemory.created_at, EpisodicMemory.key)
        found = (
            self._episodes()
            .where(*(EPISODES.holds(each) for each in conditions))
            .order_by(*(column.desc() for column in order))
            .limit(check_limit(limit) + 1)
        )
        if cursor is not None:
            moment, last = decode(listing, cursor)
            found = found.where(tuple_(*order) < tuple_(datetime.fromisoformat(moment), UUID(last)))
        rows = self.session.scalars(found, values).all()
        return page_of(rows, limit, listing, lambda row: (row.created_at.isoformat(), row.key))

    def list_of(self, memory_id: str) -> Sequence[EpisodicMemory]:
        """List the episodes that a memory is part of, those that began last first."""
        of_it = self._episodes().where(
            EpisodicMemory.memory_node_ids.bool_op("@>")(_texts([memory_id]))
        )
        return self.session.scalars(
            of_it.order_by(EpisodicMemory.created_at.desc(), EpisodicMemory.key)
        ).all()

    def list_related(self, episode: EpisodicMemory) -> Sequence[EpisodicMemory]:
        """List episodes related to one: it names them, they name it, or they share memories.

        Those that are named come first, in either group those that began last.
        """
        table = EpisodicMemory
        named = or_(
            table.id == any_(_texts(episode.related_episode_ids)),
            table.related_episode_ids.bool_op("@>")(_texts([episode.id])),
        )
        shares = table.memory_node_ids.bool_op("&&")(_texts(episode.memory_node_ids))
        related = (
            self._episodes()
            .where(table.key != episode.key, or_(named, shares))
            .order_by(named.desc(), table.created_at.desc(), table.key)
            .limit(MAX_RELATED)
        )
        return self.session.scalars(related).all()

    def _episodes(self) -> Select[EpisodicMemory]:
        EPISODES.refuse_without(self.scope)
        episodes: Select[EpisodicMemory] = select(EpisodicMemory).where(
            *EPISODES.of_scope(EPISODES.passages, self.scope)
        )
        return episodes


def episode_id(conversation_id: str) -> str:
    """Return the id of a conversation's episode: the same each time it is stored."""
    return f"ep_{sha256(conversation_id.encode()).hexdigest()[:16]}"


def _summarize(members: Sequence[MemoryNode]) -> dict[str, Any]:
    """Summarise the memories of an episode; without any, return the defaults of the columns."""
    if not members:
        return {
            **dict.fromkeys(("dominant_intent", "avg_complexity", "avg_technical_depth")),
            **dict.fromkeys(("emotional_arc", "urgency_max")),
            "has_code": False,
            "has_errors": False,
        }
    intents: Counter[IntentType] = Counter(node.intent_type for node in members)
    valences = [valence for valence, _ in groupby(node.emotional_valence for node in members)]
    complexities = [COMPLEXITIES.index(node.complexity) + 1 for node in members]
    return {
        "dominant_intent": intents.most_common(1)[0][0],
        "avg_complexity": sum(complexities) / len(members),
        "avg_technical_depth": sum(node.technical_depth for node in members) / len(members),
        "emotional_arc": " → ".join(valences),
        "has_code": any(node.has_code for node in members),
        "has_errors": any(node.has_error for node in members),
        "urgency_max": max((node.urgency for node in members), key=URGENCIES.index),
    }


def _texts(values: Sequence[str]) -> ColumnElement[Any]:
    return literal(list(values), ARRAY(Text()))


def _refuse_unstorable(name: str, value: Any) -> None:
    try:
        json.dumps(value, default=dict, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidValue(f"{name} must be JSON: {error}") from error
    if not all(map(storable, _strings(value))):
        raise InvalidValue(f"{name} holds a character that no text can hold")


def _strings(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case Mapping():
            yield from (text for each in value.items() for text in _strings(each))
        case list() | tuple():
            yield from (text for each in value for text in _strings(each))
