"""Memories that are forgotten are gone from every table, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, text

from pgcorpus.db.errors import AlreadyExists, InvalidFilter, InvalidValue, NotFound, UnknownFilter
from pgcorpus.db.repositories.memory.nodes import Exchange
from pgcorpus.db.scope import Scope
from pgcorpus.services.memory import erasing
from pgcorpus.services.memory.records import Erasure
from tests.factories import axis
from tests.services.memory.setting import SCOPED, Setting, setting

__all__ = ["setting"]

NOTHING = {
    "memory_nodes": 0,
    "memory_embeddings": 0,
    "episodic_memories": 0,
    "episode_embeddings": 0,
    "jobs": 0,
}


def remember(setting: Setting, scope: Scope, conversation: str = "kettles") -> list[str]:
    """Three memories of a conversation, and the episode that they are; ids of the memories."""
    results = setting.service.remember_many(
        [
            Exchange(human=f"{words} {conversation}.", conversation_id=conversation, **known)
            for words, known in (
                ("Of copper are", {"source": "openai"}),
                ("They leak, the", {"source": "openai", "cluster_id": -1}),
                ("They sing, the", {"source": "grok"}),
            )
        ],
        scope=scope,
        duplicates="keep",
    )
    setting.service.store_episode(conversation, scope=scope, title=f"About {conversation}")
    return [each.id for each in results]


TABLES = text("""
    SELECT oid::regclass::text FROM pg_class
    WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
      AND (:audit OR NOT relispartition)
""")
"""Every table; the audit log alone has partitions."""


def everywhere(superuser: Engine, *, audit: bool = False) -> str:
    """All rows of all tables as one text, as a superuser sees them.

    The audit log goes on naming what was erased: who did what to which row is its purpose.
    """
    with superuser.connect() as connection:
        tables = connection.scalars(TABLES, {"audit": audit}).all()
        return "\n".join(
            row
            for table in tables
            for row in connection.scalars(text(f"SELECT t::text FROM {table} AS t"))  # noqa: S608 - names of the catalog
        )


def test_a_memory_is_gone_with_its_vector_its_job_and_what_names_it(
    setting: Setting, superuser: Engine
) -> None:
    """Its neighbours stay; the episode no longer names it and may still quote it, which is told."""
    first, second, third = remember(setting, setting.ours)
    linked = setting.service.remember(
        "They sing, the kettles.", scope=setting.ours, conversation_id="elsewhere"
    )
    (episode,) = setting.service.episodes(scope=setting.ours).items
    key = str(setting.node(third)["key"])

    erasure = setting.service.forget(scope=setting.ours, ids=[third])

    assert erasure == Erasure(memories=1, vectors=1, jobs=1, told_by=(episode.id,))
    assert linked.like == third
    assert setting.node(linked.id)["duplicate_of"] is None
    assert setting.service.episode(episode.id, scope=setting.ours).memory_ids == (first, second)
    assert third not in everywhere(superuser)
    assert key not in everywhere(superuser)
    assert setting.counts(setting.ours)["memory_nodes"] == 3


def test_an_episode_that_tells_of_it_can_be_forgotten_with_it(
    setting: Setting, superuser: Engine
) -> None:
    """Then nothing quotes it any more."""
    *_, third = remember(setting, setting.ours)
    erasure = setting.service.forget(scope=setting.ours, ids=[third], with_episodes=True)

    assert (erasure.memories, erasure.episodes, erasure.told_by) == (1, 1, ())
    assert "They sing" not in everywhere(superuser, audit=True)
    assert setting.rows("episode_embeddings") == []


def test_ids_of_memories_and_episodes_are_forgotten_together(setting: Setting) -> None:
    """Ids that do not exist are named, and no error: forgetting twice is forgetting."""
    first, *_ = remember(setting, setting.ours)
    (episode,) = setting.service.episodes(scope=setting.ours).items
    related = setting.service.store_episode(
        scope=setting.ours,
        id="ep_other",
        messages=[{"role": "user", "content": "Later."}],
        related_episode_ids=[episode.id],
    )
    ids = [first, episode.id, "mem_none"]

    erasure = setting.service.forget(scope=setting.ours, ids=ids)
    again = setting.service.forget(scope=setting.ours, ids=ids)

    assert (erasure.memories, erasure.episodes, erasure.missing) == (1, 1, ("mem_none",))
    assert (again.memories, again.episodes, again.missing) == (0, 0, tuple(ids))
    assert setting.service.episode(related.id, scope=setting.ours).related_episode_ids == ()


def test_filters_forget_what_a_search_hides_by_default(setting: Setting) -> None:
    """Memories of the noise cluster go, too."""
    remember(setting, setting.ours)
    erasure = setting.service.forget(scope=setting.ours, filters={"source": "openai"})

    assert erasure.memories == 2
    assert [row["source"] for row in setting.rows("memory_nodes")] == ["grok"]


def test_filters_of_episodes_forget_episodes(setting: Setting) -> None:
    """And leave the memories that they were made of."""
    remember(setting, setting.ours)
    erasure = setting.service.forget(
        scope=setting.ours, corpus="episodes", filters={"source": "openai"}
    )

    assert (erasure.memories, erasure.episodes) == (0, 1)
    assert setting.counts(setting.ours)["memory_nodes"] == 3


def test_everything_of_a_scope_is_forgotten_and_nothing_of_another(setting: Setting) -> None:
    """In every table, jobs and vectors included."""
    for scope in (setting.ours, setting.theirs, setting.person):
        remember(setting, scope)
    others = [setting.counts(scope) for scope in (setting.theirs, setting.person)]

    erasure = setting.service.forget(scope=setting.ours, everything=True)

    assert (erasure.memories, erasure.episodes, erasure.vectors, erasure.jobs) == (3, 1, 4, 4)
    assert setting.counts(setting.ours) == NOTHING
    assert [setting.counts(scope) for scope in (setting.theirs, setting.person)] == others


def test_jobs_that_wait_are_forgotten_too(setting: Setting) -> None:
    """A worker that comes later finds nothing to read."""
    setting.embedder.silent = True
    remember(setting, setting.ours)
    assert {job["status"] for job in setting.rows("jobs", setting.ours)} == {"pending"}

    erasure = setting.service.forget(scope=setting.ours, everything=True)

    assert (erasure.vectors, erasure.jobs) == (0, 4)
    assert setting.counts(setting.ours) == NOTHING


def test_another_scope_cannot_forget_what_it_does_not_see(setting: Setting) -> None:
    """Neither by id, nor by filter, nor all of it."""
    ids = remember(setting, setting.ours)
    before = setting.counts(setting.ours)
    choices: list[Any] = [{"ids": ids}, {"filters": {"source": "openai"}}, {"everything": True}]

    for choice in choices:
        erasure = setting.service.forget(scope=setting.theirs, **choice)
        assert (erasure.memories, erasure.episodes) == (0, 0)
    assert setting.counts(setting.ours) == before


def test_a_dry_run_counts_and_keeps(setting: Setting) -> None:
    """The same numbers as the run that follows."""
    ids = remember(setting, setting.ours)
    (episode,) = setting.service.episodes(scope=setting.ours).items
    before = setting.counts(setting.ours)
    choices: list[Any] = [
        {"ids": ids[:2]},
        {"ids": [ids[0], episode.id]},
        {"ids": [ids[0], episode.id], "with_episodes": True},
        {"filters": {"conversation": "kettles", "source": "openai"}},
        {"filters": {"source": "openai"}, "with_episodes": True},
        {"everything": True},
    ]
    counted = [
        setting.service.forget(scope=setting.ours, dry_run=True, **choice) for choice in choices
    ]

    assert setting.counts(setting.ours) == before
    assert [(each.memories, each.episodes, len(each.told_by)) for each in counted] == [
        (2, 0, 1), (1, 1, 0), (1, 1, 0), (2, 0, 1), (2, 1, 0), (3, 1, 0)
    ]  # fmt: skip
    assert all(each.dry_run for each in counted)
    done = setting.service.forget(scope=setting.ours, everything=True)
    assert (done.memories, done.episodes) == (3, 1)


def test_much_is_forgotten_in_batches_and_goes_on_after_a_stop(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch is whole: no vector or job is left without its memory."""
    monkeypatch.setattr(erasing, "MOST_FORGOTTEN", 2)
    for conversation in ("a", "b", "c"):
        remember(setting, setting.ours, conversation)
    done: list[int] = []

    def stop(count: int) -> None:
        done.append(count)
        if len(done) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        setting.service.forget(scope=setting.ours, everything=True, on_progress=stop)
    left = setting.counts(setting.ours)
    rest = setting.service.forget(scope=setting.ours, everything=True)

    assert done == [2, 1, 2, 2]
    assert left == {**NOTHING, "memory_nodes": 5, "memory_embeddings": 5, "jobs": 5}
    assert rest.memories == 5
    assert setting.counts(setting.ours) == NOTHING


def test_a_user_of_a_tenant_is_forgotten_and_colleagues_are_not(
    setting: Setting, superuser: Engine
) -> None:
    """Memories and episodes that they wrote, and their own row on request."""
    tenant = setting.ours.tenant_id
    assert tenant is not None
    for user, conversation in ((setting.ann, "ann's"), (setting.bob, "bob's")):
        remember(setting, Scope.tenant(tenant, user_id=user), conversation)

    counted = setting.service.forget_user(setting.ann, scope=setting.ours, dry_run=True)
    erasure = setting.service.forget_user(setting.ann, scope=setting.ours, account=True)

    assert (counted.memories, counted.episodes, counted.dry_run) == (3, 1, True)
    assert (erasure.memories, erasure.episodes, erasure.user) == (3, 1, True)
    assert {row["user_id"] for row in setting.rows("memory_nodes")} == {setting.bob}
    assert setting.counts(setting.ours) == {
        "memory_nodes": 3, "memory_embeddings": 3, "jobs": 4,
        "episodic_memories": 1, "episode_embeddings": 1,
    }  # fmt: skip
    for trace in ("ann's", str(setting.ann)):
        assert trace not in everywhere(superuser)
    with pytest.raises(NotFound):
        setting.service.forget_user(setting.ann, scope=setting.ours)


def test_of_two_who_said_the_same_each_is_forgotten_alone(
    setting: Setting, superuser: Engine
) -> None:
    """Whatever was merged, linked or told again: the words of one go, and the other's all stay."""
    tenant = setting.ours.tenant_id
    assert tenant is not None
    ann, bob = (Scope.tenant(tenant, user_id=user) for user in (setting.ann, setting.bob))
    words = "The kettle is of copper."
    setting.embedder.vectors = {
        words: axis(0, length=384),
        f"{words} Bobsaid.": axis(1, length=384, lean=0.99),
        f"{words} Bobsaid, too.": axis(2, length=384, lean=0.98),
    }
    setting.service.remember(words, scope=ann, conversation_id="kettles")
    setting.service.store_episode("kettles", scope=ann, title="Ann's")
    hers = {table: setting.rows(table) for table in SCOPED}
    for conversation, more in (("kettles", " Bobsaid."), ("later", " Bobsaid, too.")):
        setting.service.remember(
            words + more, scope=bob, conversation_id=conversation, duplicates="merge",
            tags={"topics": ["bobsaid"]},
        )  # fmt: skip
    with pytest.raises(AlreadyExists):
        setting.service.store_episode("kettles", scope=bob, title="Bobsaid")
    setting.service.store_episode("kettles", scope=bob, id="ep_bob", title="Bobsaid")

    erasure = setting.service.forget_user(setting.bob, scope=setting.ours)

    assert (erasure.memories, erasure.episodes, erasure.told_by) == (1, 1, ())
    assert "bobsaid" not in everywhere(superuser, audit=True).lower()
    assert {table: setting.rows(table) for table in SCOPED} == hers


def test_an_episode_of_a_colleague_that_quotes_a_user_is_named_or_forgotten(
    setting: Setting,
    superuser: Engine,
) -> None:
    """It is the colleague's; whoever wants the last quotation gone says so."""
    tenant = setting.ours.tenant_id
    assert tenant is not None
    ann, bob = (Scope.tenant(tenant, user_id=user) for user in (setting.ann, setting.bob))
    setting.service.remember("Bobsaid.", scope=bob, conversation_id="kettles")
    told = setting.service.store_episode("kettles", scope=ann)

    counted = setting.service.forget_user(setting.bob, scope=setting.ours, dry_run=True)
    with_it = setting.service.forget_user(
        setting.bob, scope=setting.ours, with_episodes=True, dry_run=True
    )
    erasure = setting.service.forget_user(setting.bob, scope=setting.ours, with_episodes=True)

    assert (counted.memories, counted.episodes, counted.told_by) == (1, 0, (told.id,))
    for each in (with_it, erasure):
        assert (each.memories, each.episodes, each.told_by) == (1, 1, ())
    assert "Bobsaid" not in everywhere(superuser, audit=True)


def test_somebody_on_their_own_is_forgotten_with_their_account(
    setting: Setting, superuser: Engine
) -> None:
    """Nothing of them is left; a user of another scope is not there to be forgotten."""
    remember(setting, setting.person)
    user = setting.person.user_id
    assert user is not None
    with pytest.raises(NotFound):
        setting.service.forget_user(user, scope=setting.ours)
    with pytest.raises(NotFound):
        setting.service.forget_user(setting.ann, scope=setting.person)

    erasure = setting.service.forget_user(user, scope=setting.person, account=True)

    assert (erasure.memories, erasure.episodes, erasure.user) == (3, 1, True)
    assert str(user) not in everywhere(superuser)


UNCLEAR: list[tuple[dict[str, Any], type[Exception]]] = [
    ({}, InvalidValue),
    ({"filters": {}}, InvalidValue),
    ({"ids": ["mem_0"], "everything": True}, InvalidValue),
    ({"filters": {"source": "openai"}, "corpus": "chat"}, InvalidValue),
    ({"filters": {"colour": "red"}}, UnknownFilter),
    ({"filters": {"urgency": "very"}}, InvalidFilter),
]


def test_an_unclear_wish_forgets_nothing(setting: Setting) -> None:
    """An empty filter, above all, is not everything."""
    remember(setting, setting.ours)
    before = setting.counts(setting.ours)

    for choice, error in UNCLEAR:
        with pytest.raises(error):
            setting.service.forget(scope=setting.ours, **choice)
    assert setting.counts(setting.ours) == before
