"""Episodes: whole conversations, found again, and told as a context."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgcorpus.db.errors import AlreadyExists, InvalidCursor, InvalidValue, NotFound, UnknownFilter
from pgcorpus.db.models.memory import EpisodicMemory
from pgcorpus.db.repositories.memory.episodes import episode_id
from pgcorpus.db.repositories.memory.nodes import Exchange
from pgcorpus.db.scope import Scope
from pgcorpus.services.jobs.worker import Worker
from tests.logins import logged_in
from tests.services.memory.setting import Setting, setting

__all__ = ["setting"]

NOON = datetime(2025, 1, 31, 12, tzinfo=UTC)
TAGS = {
    "summary": "They chose the copper kettle.",
    "outcome": "Ordered.",
    "key_entities": ["kettle"],
    "domains": ["kitchen"],
}


def talk(setting: Setting, conversation: str = "kettles") -> list[str]:
    """Two exchanges, ten minutes apart; their ids."""
    results = setting.service.remember_many(
        [
            Exchange(
                human="What does the kettle cost?",
                assistant="Nine coins.",
                conversation_id=conversation,
                source="openai",
                created_at=NOON,
                intent_type="question",
                complexity="moderate",
                technical_depth=2,
                emotional_valence="neutral",
                has_code=True,
            ),
            Exchange(
                human="I take it!",
                assistant="",
                conversation_id=conversation,
                source="openai",
                created_at=NOON + timedelta(minutes=10),
                intent_type="question",
                technical_depth=5,
                emotional_valence="positive",
                urgency="high",
            ),
        ],
        scope=setting.ours,
        duplicates="keep",
    )
    return [each.id for each in results]


def test_a_conversation_becomes_an_episode_of_its_memories(setting: Setting) -> None:
    """It has the turns, their first and last time, and what the memories say of it together."""
    ids = talk(setting)
    told = setting.service.store_episode("kettles", scope=setting.ours, title="Kettles")

    with setting.owner.unit_of_work() as work:
        work.enter(setting.ours)
        row = work.session.query(EpisodicMemory).one()
    assert told.id == episode_id("kettles")
    assert (told.memory_ids, told.source, told.message_count) == (tuple(ids), "openai", 3)
    assert row.messages == [
        {"role": "user", "content": "What does the kettle cost?"},
        {"role": "assistant", "content": "Nine coins."},
        {"role": "user", "content": "I take it!"},
    ]
    assert (told.created_at, told.updated_at, told.duration_minutes) == (
        NOON, NOON + timedelta(minutes=10), 10.0
    )  # fmt: skip
    assert (row.dominant_intent, row.avg_complexity, row.avg_technical_depth) == (
        "question", 1.5, 3.5
    )  # fmt: skip
    assert (row.emotional_arc, row.has_code, row.has_errors, row.urgency_max) == (
        "neutral → positive", True, False, "high"
    )  # fmt: skip


def test_an_episode_is_found_by_words_and_by_meaning_at_once(setting: Setting) -> None:
    """No job is left to make its vector; told again it is replaced, and its vector is."""
    talk(setting)
    setting.service.store_episode("kettles", scope=setting.ours, llm_tags=TAGS)
    recall = setting.service.recall_episodes("copper kettle", scope=setting.ours)
    again = setting.service.store_episode(
        "kettles", scope=setting.ours, llm_tags=TAGS | {"summary": "They left."}
    )
    asked = len(setting.embedder.asked)
    setting.service.store_episode(
        "kettles", scope=setting.ours, llm_tags=TAGS | {"summary": "They left."}
    )

    assert [each.llm_tags["outcome"] for each in recall.episodes] == ["Ordered."]
    assert recall.page.hits[0].ranks.keys() == {"vector", "text"}
    assert again.content.startswith("They left.\nuser: What does")
    assert len(setting.embedder.asked) == asked  # the same text has its vector
    assert setting.counts(setting.ours)["episode_embeddings"] == 1
    assert {job["status"] for job in setting.rows("jobs")} == {"completed"}


def test_a_silent_embedder_keeps_no_episode_from_being_stored(setting: Setting) -> None:
    """A worker makes its vector."""
    talk(setting)
    setting.embedder.silent = True
    setting.service.store_episode("kettles", scope=setting.ours)
    before = setting.counts(setting.ours)["episode_embeddings"]
    with logged_in(setting.owner, "rag_admin") as administrator:
        Worker(administrator).run(once=True)

    assert (before, setting.counts(setting.ours)["episode_embeddings"]) == (0, 1)


def test_an_episode_can_be_of_messages_alone_and_of_named_memories(setting: Setting) -> None:
    """Given fields stand; the rest is of the memories, in the order in which they are named."""
    first, second = talk(setting)
    alone = setting.service.store_episode(
        scope=setting.ours,
        id="ep_alone",
        title="Alone",
        messages=[{"role": "user", "content": "Hello."}],
        created_at=NOON,
        updated_at=NOON + timedelta(minutes=1),
        llm_tags={"emotional_arc": "flat"},
        language="simple",
    )
    named = setting.service.store_episode(
        scope=setting.ours, id="ep_named", memory_ids=[second, first]
    )

    assert (alone.memory_ids, alone.dominant_intent, alone.emotional_arc) == ((), None, "flat")
    assert (alone.duration_minutes, alone.source) == (1.0, "native")
    assert named.memory_ids == (second, first)
    assert named.content.startswith("user: I take it!")


def test_an_episode_that_is_replaced_keeps_nothing_of_the_old_sums(setting: Setting) -> None:
    """Without memories it has the defaults, as if it were new."""
    talk(setting)
    setting.service.store_episode("kettles", scope=setting.ours)
    again = setting.service.store_episode(
        scope=setting.ours,
        id=episode_id("kettles"),
        messages=[{"role": "user", "content": "Hello."}],
        created_at=NOON,
    )

    (row,) = setting.rows("episodic_memories")
    assert (again.dominant_intent, again.emotional_arc, again.urgency_max) == (None, None, None)
    assert (row["avg_complexity"], row["avg_technical_depth"]) == (None, None)
    assert (again.has_code, again.has_errors, again.memory_ids) == (False, False, ())


def test_only_whose_episode_it_is_replaces_it(setting: Setting) -> None:
    """Another user of the tenant keeps their own beside it, under an id of their own."""
    tenant = setting.ours.tenant_id
    assert tenant is not None
    talk(setting)
    ann, bob = (Scope.tenant(tenant, user_id=user) for user in (setting.ann, setting.bob))
    kept = setting.service.store_episode("kettles", scope=ann, title="Ann's")

    for scope in (bob, setting.ours):
        with pytest.raises(AlreadyExists, match=f"{kept.id} is another user's of the tenant"):
            setting.service.store_episode("kettles", scope=scope, title="Bob's")
    beside = setting.service.store_episode("kettles", scope=bob, id="ep_bob", title="Bob's")
    again = setting.service.store_episode("kettles", scope=ann, title="Ann's, again")

    titles = {
        row["id"]: (row["user_id"], row["title"]) for row in setting.rows("episodic_memories")
    }
    assert titles == {
        again.id: (setting.ann, "Ann's, again"), beside.id: (setting.bob, "Bob's")
    }  # fmt: skip


def test_episodes_are_listed_page_by_page_and_narrowed(setting: Setting) -> None:
    """The last to begin comes first; a cursor is of its list alone."""
    for number in range(5):
        setting.service.store_episode(
            scope=setting.ours,
            id=f"ep_{number}",
            messages=[{"role": "user", "content": str(number)}],
            created_at=NOON + timedelta(days=number),
            source="openai" if number % 2 else "grok",
        )
    first = setting.service.episodes(scope=setting.ours, limit=2)
    second = setting.service.episodes(scope=setting.ours, limit=2, cursor=first.next_cursor)
    third = setting.service.episodes(scope=setting.ours, limit=2, cursor=second.next_cursor)
    openai = setting.service.episodes(scope=setting.ours, filters={"source": "openai"})

    pages = [[each.id for each in page.items] for page in (first, second, third)]
    assert pages == [["ep_4", "ep_3"], ["ep_2", "ep_1"], ["ep_0"]]
    assert third.next_cursor is None
    assert [each.id for each in openai.items] == ["ep_3", "ep_1"]
    assert setting.service.episodes(scope=setting.theirs).items == ()
    with pytest.raises(InvalidCursor):
        setting.service.episodes(scope=setting.theirs, limit=2, cursor=first.next_cursor)
    with pytest.raises(UnknownFilter):
        setting.service.episodes(scope=setting.ours, filters={"colour": "red"})
    with pytest.raises(InvalidValue):
        setting.service.episodes(scope=setting.ours, limit=0)


def test_related_episodes_are_named_by_either_or_share_a_memory(setting: Setting) -> None:
    """The named ones first; none of another scope, whatever its ids."""
    first, second = talk(setting)

    def store(name: str, **more: Any) -> None:
        days = len(setting.rows("episodic_memories"))
        setting.service.store_episode(
            **{"scope": setting.ours, "id": name, "created_at": NOON + timedelta(days=days)}
            | {"messages": [{"role": "user", "content": name}]}
            | more
        )

    store("ep_middle", memory_ids=[first], related_episode_ids=["ep_named"])
    store("ep_named")
    store("ep_naming", related_episode_ids=["ep_middle"])
    store("ep_sharing", memory_ids=[second, first])
    store("ep_stranger", memory_ids=[second])
    store("ep_named", scope=setting.theirs)

    related = setting.service.related_episodes("ep_middle", scope=setting.ours)
    of_second = setting.service.episodes_of(second, scope=setting.ours)

    assert [each.id for each in related] == ["ep_naming", "ep_named", "ep_sharing"]
    assert [each.id for each in of_second] == ["ep_stranger", "ep_sharing"]
    assert setting.service.episodes_of(second, scope=setting.theirs) == ()
    for ask in (setting.service.episode, setting.service.related_episodes):
        with pytest.raises(NotFound, match="in this scope"):
            ask("ep_middle", scope=setting.theirs)


IMPOSSIBLE: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"conversation_id": "nowhere"}, NotFound),
    ({"messages": [{"role": "user", "content": "x"}]}, InvalidValue),
    ({"id": "mem_0", "messages": [{"role": "user", "content": "x"}]}, InvalidValue),
    ({"id": "ep_0", "memory_ids": ["mem_none"]}, NotFound),
    ({"id": "ep_0", "messages": ["x"]}, InvalidValue),
    ({"id": "ep_" + "0" * 255, "messages": [{"content": "x"}]}, InvalidValue),
    ({"id": "ep_0", "messages": [{"content": "x"}], "source": "s" * 60}, InvalidValue),
    ({"id": "ep_0", "messages": [{"role": "user", "content": "a\0b"}]}, InvalidValue),
    ({"id": "ep_0", "messages": [{"content": {1, 2}}]}, InvalidValue),
    (
        {"id": "ep_0", "messages": [{"content": "x"}], "llm_tags": {"domains": "kitchen"}},
        InvalidValue,
    ),
]


def test_an_episode_that_cannot_be_is_refused_in_words(setting: Setting) -> None:
    """And none is kept."""
    for details, error in IMPOSSIBLE:
        with pytest.raises(error):
            setting.service.store_episode(scope=setting.ours, **details)
    assert setting.rows("episodic_memories") == []
