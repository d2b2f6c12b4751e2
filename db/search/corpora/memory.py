"""Agent memory, within a scope: exchanges, and episodes of many of them."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    Column,
    ColumnElement,
    Double,
    Text,
    bindparam,
    cast,
    column,
    extract,
    func,
    literal_column,
    select,
)

from pgcorpus.db.base import table_of
from pgcorpus.db.models.memory import (
    COMPLEXITIES,
    CONVERSATION_MODES,
    EMOTIONAL_VALENCES,
    INTENT_TYPES,
    NOISE,
    URGENCIES,
    EpisodeEmbedding,
    EpisodicMemory,
    MemoryEmbedding,
    MemoryNode,
)
from pgcorpus.db.search.corpus import Corpus, Filter, Order

RECENCY_SHARE: Final = 0.7
"""The share of recency in the boost of a memory; the rest is how often it was recalled."""

OFTEN: Final = 5
"""The number of recalls that counts half as much as infinitely many."""


def _rate_use(
    since: ColumnElement[Any], last_accessed: Column[Any], access_count: Column[Any]
) -> ColumnElement[float]:
    """Rate a passage's freshness and use.

    It is 1 for a new passage that is always recalled, and 0 for a forgotten one.
    """
    age = extract("epoch", func.now() - func.greatest(since, last_accessed)) / 86_400.0
    half_life: ColumnElement[float] = bindparam("half_life_days", type_=Double())
    recency = func.power(0.5, func.greatest(age, 0, type_=Double) / half_life, type_=Double)
    recalled = cast(access_count, Double)
    return RECENCY_SHARE * recency + (1 - RECENCY_SHARE) * recalled / (recalled + OFTEN)


def _filter_list(of: Column[Any], name: str) -> Filter:
    """Build a filter on the names that a JSON object has in a list."""
    names = func.jsonb_array_elements_text(of[name]).table_valued(column("name", Text))
    each = names.render_derived(f"of_{name}")
    return Filter(column=each.c.name, through=each.c.name.is_not(None))


_nodes = table_of(MemoryNode)
_node_vectors = table_of(MemoryEmbedding)
_exchange = _nodes.c.human_content + literal_column("E'\\n'") + _nodes.c.assistant_content

MEMORY: Final = Corpus(
    name="memory",
    passages=_nodes,
    key=_nodes.c.key,
    text=_exchange,
    words=_nodes.c.memory_search,
    language=_nodes.c.language,
    shown=_nodes.c.human_content + literal_column("' '") + _nodes.c.assistant_content,
    vectors=_node_vectors,
    item=_node_vectors.c.node_key,
    scope=_nodes.c.scope,
    filters={
        "action_required": Filter(column=_nodes.c.action_required),
        "cluster_id": Filter(column=_nodes.c.cluster_id),
        "cluster_label": Filter(column=_nodes.c.cluster_label),
        "complexity": Filter(column=_nodes.c.complexity, choices=COMPLEXITIES),
        "conversation": Filter(column=_nodes.c.conversation_id),
        "conversation_mode": Filter(column=_nodes.c.conversation_mode, choices=CONVERSATION_MODES),
        "date": Filter(column=_nodes.c.created_at),
        "domain": _filter_list(_nodes.c.tags, "domains"),
        "emotional_valence": Filter(column=_nodes.c.emotional_valence, choices=EMOTIONAL_VALENCES),
        "entity": _filter_list(_nodes.c.tags, "entities"),
        "has_code": Filter(column=_nodes.c.has_code),
        "has_error": Filter(column=_nodes.c.has_error),
        "intent_type": Filter(column=_nodes.c.intent_type, choices=INTENT_TYPES),
        "memory_id": Filter(column=_nodes.c.id),
        "noise": Filter(column=_nodes.c.cluster_id.is_not_distinct_from(NOISE)),
        "process": _filter_list(_nodes.c.tags, "processes"),
        "source": Filter(column=_nodes.c.source),
        "technical_depth": Filter(column=_nodes.c.technical_depth),
        "topic": _filter_list(_nodes.c.tags, "topics"),
        "urgency": Filter(column=_nodes.c.urgency, choices=URGENCIES),
    },
    # What belongs to no cluster was mostly said in passing.
    defaults={"noise": False},
    hits=select(
        _nodes.c.key.label("id"),
        func.left(_nodes.c.human_content, 100).label("title"),
        _exchange.label("content"),
        _nodes.c.id.label("memory_id"),
        _nodes.c.conversation_id.label("conversation"),
        _nodes.c.sequence_index.label("position"),
        _nodes.c.created_at.label("date"),
        _nodes.c.human_content,
        _nodes.c.assistant_content,
        _nodes.c.source,
        _nodes.c.intent_type,
        _nodes.c.complexity,
        _nodes.c.technical_depth,
        _nodes.c.emotional_valence,
        _nodes.c.urgency,
        _nodes.c.conversation_mode,
        _nodes.c.action_required,
        _nodes.c.has_code,
        _nodes.c.has_error,
        _nodes.c.tags,
        _nodes.c.cluster_id,
        _nodes.c.cluster_label,
        _nodes.c.access_count,
        _nodes.c.last_accessed,
        _nodes.c.duplicate_of,
    ),
    order=Order(
        within=_nodes.c.conversation_id, place=_nodes.c.sequence_index, time=_nodes.c.created_at
    ),
    labels=("memory_id", "date", "source"),
    boost=_rate_use(_nodes.c.created_at, _nodes.c.last_accessed, _nodes.c.access_count),
)

_episodes = table_of(EpisodicMemory)
_episode_vectors = table_of(EpisodeEmbedding)

EPISODES: Final = Corpus(
    name="episodes",
    passages=_episodes,
    key=_episodes.c.key,
    text=_episodes.c.title + literal_column("E'\\n'") + _episodes.c.content,
    words=_episodes.c.episode_search,
    language=_episodes.c.language,
    shown=_episodes.c.title + literal_column("' '") + _episodes.c.content,
    vectors=_episode_vectors,
    item=_episode_vectors.c.episode_key,
    scope=_episodes.c.scope,
    filters={
        "date": Filter(column=_episodes.c.created_at),
        "domain": _filter_list(_episodes.c.llm_tags, "domains"),
        "dominant_intent": Filter(column=_episodes.c.dominant_intent, choices=INTENT_TYPES),
        "entity": _filter_list(_episodes.c.llm_tags, "key_entities"),
        "episode_id": Filter(column=_episodes.c.id),
        "has_code": Filter(column=_episodes.c.has_code),
        "has_errors": Filter(column=_episodes.c.has_errors),
        "outcome": Filter(column=_episodes.c.llm_tags["outcome"].as_string()),
        "source": Filter(column=_episodes.c.source),
        "urgency_max": Filter(column=_episodes.c.urgency_max, choices=URGENCIES),
    },
    hits=select(
        _episodes.c.key.label("id"),
        _episodes.c.title,
        _episodes.c.content,
        _episodes.c.id.label("episode_id"),
        _episodes.c.created_at.label("date"),
        _episodes.c.updated_at.label("ended"),
        _episodes.c.source,
        _episodes.c.message_count,
        _episodes.c.duration_minutes,
        _episodes.c.llm_tags,
        _episodes.c.dominant_intent,
        _episodes.c.emotional_arc,
        _episodes.c.urgency_max,
        _episodes.c.has_code,
        _episodes.c.has_errors,
        _episodes.c.memory_node_ids,
        _episodes.c.related_episode_ids,
        _episodes.c.access_count,
        _episodes.c.last_accessed,
    ),
    labels=("episode_id", "date", "source"),
    boost=_rate_use(_episodes.c.updated_at, _episodes.c.last_accessed, _episodes.c.access_count),
)
