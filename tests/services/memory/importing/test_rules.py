"""Each rule for memories and episodes, and that no JSON gets past all of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgcorpus.db.models import memory_id
from pgcorpus.db.repositories.imports import Change
from pgcorpus.db.repositories.memory.imports import EPISODES, NODES
from pgcorpus.db.scope import Scope
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.importers.draft import Rule, Unacceptable
from pgcorpus.services.memory.importing.rules import (
    EPISODE_FIELDS,
    NODE_FIELDS,
    Normalised,
    episode,
    node,
)
from tests import factories

NODE = {
    "id": "mem_1",
    "conversation_id": "talk",
    "sequence_index": 3,
    "human_content": "How is a price set?",
    "source": "openai",
    "created_at": "2025-03-04T05:06:07Z",
}
EPISODE = {
    "id": "ep_1",
    "title": "Prices",
    "messages": [{"role": "user", "content": "How is a price set?"}],
    "message_count": 1,
    "source": "openai",
    "created_at": "2025-03-04T05:06:07Z",
    "updated_at": "2025-03-04T05:06:07Z",
}


def a_node(name: str | None = None, **fields: object) -> Normalised:
    """A memory with other fields."""
    return node(NODE | fields, name=name, strict=False, language="english")


def an_episode(name: str | None = None, **fields: object) -> Normalised:
    """An episode with other fields."""
    return episode(EPISODE | fields, name=name, strict=False, language="english")


@pytest.mark.parametrize(
    ("field", "raw", "stored", "rule"),
    [
        ("assistant_content", None, "", None),
        ("assistant_content", 5, "5", "text"),
        ("assistant_content", ["ä"], '["ä"]', "text"),
        ("human_content", "a\0b\ud800", "ab\ufffd", "characters"),
        ("conversation_id", 17, "17", "text"),
        ("conversation_id", None, "unknown", "default"),
        ("conversation_id", "c" * 300, "c" * 255, "cut"),
        ("source", " ", "unknown", "default"),
        ("source", "s" * 51, "s" * 50, "cut"),
        ("sequence_index", None, 0, None),
        ("sequence_index", "4", 4, "integer"),
        ("sequence_index", 4.0, 4, "integer"),
        ("sequence_index", -1, 0, "range"),
        ("sequence_index", 2**40, 2**31 - 1, "range"),
        ("sequence_index", True, 0, "unreadable"),
        ("created_at", 1_741_064_767, datetime(2025, 3, 4, 5, 6, 7, tzinfo=UTC), None),
        ("created_at", 1_741_064_767_000, datetime(2025, 3, 4, 5, 6, 7, tzinfo=UTC), None),
        ("created_at", "yesterday", None, "time"),
        ("created_at", None, None, "default"),
        ("intent_type", None, "statement", None),
        ("intent_type", " Request ", "request", "choice"),
        ("intent_type", "musing", "statement", "choice"),
        ("complexity", ["simple"], "simple", "choice"),
        ("technical_depth", 7.4, 7, "integer"),
        ("technical_depth", 11, 10, "range"),
        ("technical_depth", "deep", 0, "unreadable"),
        ("technical_depth", float("nan"), 0, "number"),
        ("action_required", "yes", True, "boolean"),
        ("action_required", 0, False, "boolean"),
        ("has_error", "perhaps", False, "unreadable"),
        ("cluster_id", -1, -1, None),
        ("cluster_id", -7, -1, "range"),
        ("cluster_id", None, None, None),
        ("cluster_label", " ", None, None),
        ("cluster_confidence", 1.2, 1.0, "range"),
        ("cluster_confidence", "0.5", 0.5, "number"),
        ("cluster_confidence", {}, None, "unreadable"),
        ("access_count", -3, 0, "range"),
        ("last_accessed", "1066-01-01", None, "time"),
        ("tags", None, {}, None),
        ("tags", {"domains": None, "x": 1}, {"x": 1}, None),
        ("tags", {"domains": ["a", " b ", "a", 1, {}]}, {"domains": ["a", "b", "1"]}, "tags"),
        ("tags", "a, b", {"topics": ["a", "b"]}, "tags"),
        ("tags", ["a"], {"topics": ["a"]}, None),
        ("tags", 5, {}, "shape"),
    ],
)
def test_a_value_of_a_memory_is_made_valid(
    field: str, raw: object, stored: object, rule: str | None
) -> None:
    """Each change is recorded under the name of its rule."""
    normalised = a_node(**{field: raw})

    assert getattr(normalised.record, field) == stored
    assert [(each.field, each.rule) for each in normalised.changes] == (
        [(field, rule)] if rule else []
    )


@pytest.mark.parametrize(
    ("field", "raw", "stored", "rule"),
    [
        ("message_count", None, 1, "derived"),
        ("message_count", 7, 7, None),
        ("duration_minutes", -1, 0.0, "range"),
        ("duration_minutes", "12.5", 12.5, "number"),
        ("avg_complexity", "moderate", None, "unreadable"),
        ("avg_technical_depth", 12, 10.0, "range"),
        ("dominant_intent", None, None, None),
        ("dominant_intent", "musing", None, "choice"),
        ("urgency_max", "HIGH", "high", "choice"),
        ("emotional_arc", "up", "up", None),
        ("llm_tags", {"key_entities": "a; b"}, {"key_entities": ["a", "b"]}, "tags"),
        ("llm_tags", [], {}, "shape"),
        ("memory_node_ids", ["mem_1", None], ["mem_1"], "tags"),
        ("related_episode_ids", None, [], None),
        ("updated_at", None, None, "default"),
    ],
)
def test_a_value_of_an_episode_is_made_valid(
    field: str, raw: object, stored: object, rule: str | None
) -> None:
    """The same rules, for its fields."""
    normalised = an_episode(**{field: raw})

    assert getattr(normalised.record, field) == stored
    assert [(each.field, each.rule) for each in normalised.changes] == (
        [(field, rule)] if rule else []
    )


def test_tags_at_the_top_join_those_in_the_object() -> None:
    """Each name once, in order."""
    tags = a_node(tags={"topics": ["a"], "x": 1}, topics=["b", "a"], domains=["c"]).record.tags

    assert tags == {"x": 1, "domains": ["c"], "topics": ["a", "b"]}


def test_what_a_model_said_may_stand_beside_its_object() -> None:
    """The object wins."""
    tags = an_episode(
        llm_tags={"summary": "inside"}, summary="beside", outcome="done", domains=["a"]
    ).record.llm_tags

    assert tags == {"summary": "inside", "outcome": "done", "domains": ["a"]}


@pytest.mark.parametrize(
    ("given_id", "name", "stored"),
    [
        ("mem_x", None, "mem_x"),
        ("mem_x", "mem_y", "mem_x"),
        (None, None, memory_id("talk", 3, "How is a price set?")),
        ("", None, memory_id("talk", 3, "How is a price set?")),
        ("i" * 256, None, memory_id("talk", 3, "How is a price set?")),
        (17, None, "17"),
    ],
)
def test_an_id_is_kept_or_made(given_id: object, name: str | None, stored: str) -> None:
    """By the formula of the system before."""
    assert a_node(name, id=given_id).record.id == stored


def test_the_name_of_a_member_is_the_id_of_what_has_none() -> None:
    """In a file that is an object of memories."""
    raw = {key: value for key, value in NODE.items() if key != "id"}

    assert node(raw, name="mem_y", strict=False, language="english").record.id == "mem_y"


def test_an_episode_without_an_id_has_the_same_each_time() -> None:
    """Made of what was said."""
    first, second, other = (
        an_episode(id=None),
        an_episode(id=None),
        an_episode(id=None, title="Other"),
    )

    assert first.record.id == second.record.id != other.record.id
    assert first.record.id.startswith("ep_")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (None, "an object"),
        (["a"], "an object"),
        ({}, "neither a human_content"),
        (NODE | {"human_content": " \n"}, "neither a human_content"),
        (NODE | {"id": None, "conversation_id": None}, "it has no id"),
        (NODE | {"id": None, "sequence_index": None}, "it has no id"),
    ],
)
def test_what_is_no_memory_is_not_made_one(raw: object, said: str) -> None:
    """The reason says what it lacks."""
    with pytest.raises(Unacceptable, match=said):
        node(raw, name=None, strict=False, language="english")


@pytest.mark.parametrize("raw", [5, {}, {"messages": []}, {"messages": "a", "title": " "}])
def test_an_episode_in_which_nothing_is_said_is_none(raw: object) -> None:
    """Neither messages, nor a title, nor a summary."""
    with pytest.raises(Unacceptable, match=r"object|no messages"):
        episode(raw, name=None, strict=False, language="english")


def test_too_deep_is_refused() -> None:
    """As in every import."""
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]

    with pytest.raises(Unacceptable, match="nested deeper"):
        a_node(tags={"x": deep})


def test_the_history_has_what_would_be_lost_otherwise() -> None:
    """The originals of replaced values; what was said stands in the row."""
    changes = a_node(
        intent_type="Question", urgency="secret", technical_depth=12, assistant_content=["secret"]
    ).changes

    assert changes == [
        Change("assistant_content", None, None, Rule.TEXT),
        Change("intent_type", "Question", "question", Rule.CHOICE),
        Change("technical_depth", 12, 10, Rule.RANGE),
        Change("urgency", "secret", "low", Rule.CHOICE),
    ]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(st.characters(), max_size=300)
    | st.sampled_from(["question", "high", "yes", "2025-03-04", "\0", "\ud800", "a,b;c"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["domains", "topics", "summary", "x", "\0"]), inner)
    ),
    max_leaves=6,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_passes_the_rules_can_be_stored(work: UnitOfWork, data: st.DataObject) -> None:
    """Any JSON in any field is stored, or refused with a reason."""
    kind, normalise, fields, base = data.draw(
        st.sampled_from(
            [(NODES, node, NODE_FIELDS, NODE), (EPISODES, episode, EPISODE_FIELDS, EPISODE)]
        )
    )
    raw = base | data.draw(st.dictionaries(st.sampled_from(sorted(fields)), JSON))
    try:
        record = normalise(raw, name=None, strict=False, language="english").record
    except Unacceptable:
        return
    work.enter(Scope.tenant(factories.TenantFactory().id))

    (merged,) = work.memory_imports.merge(kind, [record], model_name="bge-m3", replace=False)
    (again,) = work.memory_imports.merge(kind, [record], model_name="bge-m3", replace=True)

    assert (merged.outcome, merged.same_text) == ("added", True)
    assert (again.outcome, again.key) == ("unchanged", merged.key)
