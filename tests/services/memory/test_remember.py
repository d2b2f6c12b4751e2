"""Memories that agents store: at once, once, and in whose name."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Barrier
from typing import Any

import pytest

from pgcorpus.db.errors import (
    AlreadyExists,
    InvalidValue,
    MissingReference,
    MissingScope,
    NotFound,
    UnsafeRole,
)
from pgcorpus.db.models.memory import memory_id
from pgcorpus.db.repositories.memory.nodes import Exchange
from pgcorpus.db.scope import Scope
from pgcorpus.services.jobs.worker import Worker
from pgcorpus.services.memory.service import AsyncMemoryService, MemoryService
from tests.factories import axis
from tests.logins import logged_in
from tests.services.memory.setting import ObedientEmbedder, Setting, setting

__all__ = ["setting"]

SAID = "We deploy on Tuesdays at noon."


def alike(words: str, similarity: float) -> dict[str, Any]:
    """A memory and other *words* whose vectors have this cosine."""
    return {
        SAID: axis(0, length=384),
        words: axis(1, length=384, lean=similarity),
    }


def test_what_is_remembered_is_recalled_from_the_next_question_on(setting: Setting) -> None:
    """Its vector is stored with it, and no job is left to make another."""
    kept = setting.service.remember(
        SAID, "Noted.", scope=setting.ours, conversation_id="deploys", source="openai"
    )
    found = setting.service.recall("when do we deploy?", scope=setting.ours)

    assert kept.outcome == "new"
    assert kept.id == memory_id("deploys", 0, SAID)
    assert (kept.embedded, kept.note, kept.like) == (True, None, None)
    assert [(each.id, each.human, each.assistant) for each in found.memories] == [
        (kept.id, SAID, "Noted.")
    ]
    assert found.page.hits[0].ranks.keys() == {"vector", "text"}
    assert [job["status"] for job in setting.rows("jobs", setting.ours)] == ["completed"]


def test_every_field_is_kept_and_given_back(setting: Setting) -> None:
    """As it was given; what was not given has the defaults of the table."""
    given = Exchange(
        human="It crashed again!",
        assistant="A null pointer.",
        conversation_id="crash",
        sequence_index=7,
        source="grok",
        created_at=datetime(2025, 1, 31, 12),  # noqa: DTZ001 - taken as UTC
        intent_type="complaint",
        complexity="complex",
        technical_depth=9,
        emotional_valence="negative",
        urgency="high",
        conversation_mode="debug",
        action_required=True,
        has_code=True,
        has_error=True,
        tags={"topics": ["crashes"], "entities": ["parser"]},
        cluster_id=4,
        cluster_label="parser",
        cluster_confidence=0.5,
        language="simple",
    )
    (kept,) = setting.service.remember_many([given], scope=setting.ours)
    memory = setting.service.get(kept.id, scope=setting.ours)
    plain = setting.service.remember("Plain.", scope=setting.ours, conversation_id="c")
    default = setting.service.get(plain.id, scope=setting.ours)

    for name in ("human", "assistant", "sequence_index", "source", "intent_type", "complexity",
                 "technical_depth", "emotional_valence", "urgency", "conversation_mode",
                 "action_required", "has_code", "has_error", "tags", "cluster_id",
                 "cluster_label"):  # fmt: skip
        assert getattr(memory, name) == getattr(given, name), name
    assert memory.created_at == datetime(2025, 1, 31, 12, tzinfo=UTC)
    row = setting.node(kept.id)
    assert (row["language"], row["cluster_confidence"]) == ("simple", 0.5)
    assert (default.intent_type, default.urgency, default.source) == ("statement", "low", "native")
    assert (default.sequence_index, default.tags, default.cluster_id) == (0, {}, None)


def test_exchanges_without_a_place_follow_one_another(setting: Setting) -> None:
    """In their conversation; another conversation has its own places."""
    for words, conversation in (("One.", "a"), ("Two.", "a"), ("Else.", "b"), ("Three.", "a")):
        setting.service.remember(words, scope=setting.ours, conversation_id=conversation)

    places = sorted(
        (row["conversation_id"], row["sequence_index"], row["human_content"])
        for row in setting.rows("memory_nodes")
    )
    assert places == [("a", 0, "One."), ("a", 1, "Two."), ("a", 2, "Three."), ("b", 0, "Else.")]


def test_the_same_exchange_again_is_no_second_memory(setting: Setting) -> None:
    """However duplicates are handled, unless they are refused: an agent may repeat a call."""
    place: Any = {"scope": setting.ours, "conversation_id": "c", "sequence_index": 0}
    first = setting.service.remember(SAID, **place)
    again = [
        setting.service.remember(SAID, **place, duplicates=each)
        for each in ("keep", "link", "merge")
    ]

    assert {(each.id, each.outcome) for each in again} == {(first.id, "same")}
    assert len(setting.rows("memory_nodes")) == 1
    with pytest.raises(AlreadyExists, match=first.id):
        setting.service.remember(SAID, **place, duplicates="refuse")


def test_the_same_place_with_another_answer_is_refused_and_can_be_merged(
    setting: Setting,
) -> None:
    """The id is made of the question alone: the answer would be lost without a word."""
    place: Any = {"scope": setting.ours, "conversation_id": "c", "sequence_index": 0}
    kept = setting.service.remember(SAID, "Noted.", **place)

    with pytest.raises(AlreadyExists, match="exchange 0 of the conversation 'c'"):
        setting.service.remember(SAID, "Noted, and announced.", **place)
    merged = setting.service.remember(SAID, "Noted, and announced.", **place, duplicates="merge")

    assert (merged.id, merged.outcome, merged.replaced) == (kept.id, "merged", True)
    assert setting.node(kept.id)["assistant_content"] == "Noted, and announced."


def test_the_same_words_elsewhere_are_linked_to_the_first(setting: Setting) -> None:
    """Both are kept, and a third names the first, not the second."""
    ids = []
    for conversation in ("a", "b", "c"):
        kept = setting.service.remember(SAID, scope=setting.ours, conversation_id=conversation)
        ids.append((kept.id, kept.outcome, kept.like, kept.similarity))

    first = ids[0][0]
    assert [each[1:] for each in ids] == [
        ("new", None, None), ("linked", first, 1.0), ("linked", first, 1.0)
    ]  # fmt: skip
    assert [setting.node(each[0])["duplicate_of"] for each in ids] == [None, first, first]


@pytest.mark.parametrize(("similarity", "outcome"), [(0.97, "linked"), (0.93, "new")])
def test_other_words_of_one_meaning_are_found_above_the_threshold(
    setting: Setting, similarity: float, outcome: str
) -> None:
    """The cosine decides, and the result says how alike they are."""
    setting.embedder.vectors = alike("Tuesday noon is when we ship.", similarity)
    first = setting.service.remember(SAID, scope=setting.ours, conversation_id="a")
    second = setting.service.remember(
        "Tuesday noon is when we ship.", scope=setting.ours, conversation_id="b"
    )

    assert second.outcome == outcome
    if outcome == "linked":
        assert (second.like, second.similarity) == (first.id, pytest.approx(similarity, abs=1e-3))


def test_a_merge_keeps_the_older_memory_and_joins_what_is_known(setting: Setting) -> None:
    """Id, place and time are of the older one; tags and flags of both; the longer text stays."""
    setting.embedder.vectors = alike("We ship on Tuesday.", 0.97)
    older = setting.service.remember(
        SAID, scope=setting.ours, conversation_id="a", tags={"topics": ["deploys"]}
    )
    newer = setting.service.remember(
        "We ship on Tuesday.",
        scope=setting.ours,
        conversation_id="b",
        duplicates="merge",
        action_required=True,
        tags={"topics": ["tuesday", "deploys"], "entities": ["ops"]},
    )

    (row,) = setting.rows("memory_nodes")
    assert (newer.id, newer.outcome, newer.replaced) == (older.id, "merged", False)
    assert (row["human_content"], row["conversation_id"]) == (SAID, "a")
    assert row["tags"] == {"topics": ["deploys", "tuesday"], "entities": ["ops"]}
    assert (row["action_required"], row["access_count"]) == (True, 1)
    assert row["last_accessed"] is not None


def test_a_merge_takes_the_newer_text_where_it_says_no_less(setting: Setting) -> None:
    """With its vector, so that the memory is found by what it says now."""
    longer = "We deploy on Tuesdays at noon, after the release notes are out."
    setting.embedder.vectors = alike(longer, 0.97)
    older = setting.service.remember(SAID, scope=setting.ours, conversation_id="a")
    merged = setting.service.remember(
        longer, scope=setting.ours, conversation_id="b", duplicates="merge", urgency="high"
    )
    page = setting.service.recall(longer, scope=setting.ours, mode="vector").page

    assert (merged.id, merged.replaced, merged.embedded) == (older.id, True, True)
    assert (setting.node(older.id)["human_content"], setting.node(older.id)["urgency"]) == (
        longer, "high"
    )  # fmt: skip
    assert page.hits[0].scores["vector"] == pytest.approx(1)
    assert {job["status"] for job in setting.rows("jobs")} == {"completed"}


def of_tenant(setting: Setting) -> tuple[Scope, Scope]:
    """Ann and Bob, who write for one tenant."""
    tenant = setting.ours.tenant_id
    assert tenant is not None
    return Scope.tenant(tenant, user_id=setting.ann), Scope.tenant(tenant, user_id=setting.bob)


def test_what_two_users_of_a_tenant_say_is_linked_and_never_merged(setting: Setting) -> None:
    """Merged, the words of one would be erased with the other, or not at all."""
    longer = "We deploy on Tuesdays at noon, after the release notes are out."
    setting.embedder.vectors = alike(longer, 0.97)
    ann, bob = of_tenant(setting)
    first = setting.service.remember(SAID, scope=ann, conversation_id="a")
    second = setting.service.remember(longer, scope=bob, conversation_id="b", duplicates="merge")
    nobody = setting.service.remember(
        SAID, scope=setting.ours, conversation_id="c", duplicates="merge"
    )

    for kept in (second, nobody):
        assert (kept.outcome, kept.like) == ("linked", first.id)
        assert f"not merged: another user wrote {first.id}" in (kept.note or "")
    assert setting.node(first.id)["human_content"] == SAID
    assert [setting.node(each.id)["user_id"] for each in (first, second, nobody)] == [
        setting.ann, setting.bob, None
    ]  # fmt: skip


def test_a_merge_prefers_what_the_same_user_wrote(setting: Setting) -> None:
    """By words as by meaning, though another's is older or more alike."""
    ann, bob = of_tenant(setting)
    setting.embedder.vectors = alike("Tuesday noon it is.", 0.97)
    setting.service.remember(SAID, scope=ann, conversation_id="a")
    own = setting.service.remember("Tuesday noon it is.", scope=bob, conversation_id="b")
    setting.embedder.vectors = {**alike("Tuesday noon it is.", 0.97), "Noon.": axis(0, length=384)}

    by_meaning = setting.service.remember(
        "Noon.", scope=bob, conversation_id="c", duplicates="merge"
    )
    said = setting.service.remember(SAID, scope=bob, conversation_id="d")
    by_words = setting.service.remember(SAID, scope=bob, conversation_id="e", duplicates="merge")

    assert (by_meaning.outcome, by_meaning.id) == ("merged", own.id)
    assert (by_words.outcome, by_words.id) == ("merged", said.id)


def test_a_place_that_another_user_took_is_not_merged_into(setting: Setting) -> None:
    """The same words are the same memory, and whose it is is told."""
    ann, bob = of_tenant(setting)
    place: Any = {"conversation_id": "c", "sequence_index": 0, "duplicates": "merge"}
    first = setting.service.remember(SAID, "Noted.", scope=ann, **place)

    again = setting.service.remember(SAID, "Noted.", scope=bob, **place)
    with pytest.raises(AlreadyExists, match="another user wrote that: give no sequence_index"):
        setting.service.remember(SAID, "Noted, and announced.", scope=bob, **place)

    assert (again.id, again.outcome) == (first.id, "same")
    assert "it is theirs" in (again.note or "")
    assert setting.node(first.id)["assistant_content"] == "Noted."


def test_a_duplicate_can_be_refused_and_is_not_looked_for_where_all_are_kept(
    setting: Setting,
) -> None:
    """Refusing names what is there; keeping asks no questions."""
    kept = setting.service.remember(SAID, scope=setting.ours, conversation_id="a")

    with pytest.raises(AlreadyExists, match=rf"{kept.id} says the same \(similarity 1.000\)"):
        setting.service.remember(SAID, scope=setting.ours, conversation_id="b", duplicates="refuse")
    second = setting.service.remember(
        SAID, scope=setting.ours, conversation_id="b", duplicates="keep"
    )

    assert (second.outcome, setting.node(second.id)["duplicate_of"]) == ("new", None)


def test_noise_is_looked_through_for_duplicates(setting: Setting) -> None:
    """Memories that recall hides by default are remembered all the same."""
    setting.embedder.vectors = alike("Ship on Tuesday at noon.", 0.99)
    noise = setting.service.remember(SAID, scope=setting.ours, conversation_id="a", cluster_id=-1)
    again = setting.service.remember(
        "Ship on Tuesday at noon.", scope=setting.ours, conversation_id="b"
    )

    assert again.like == noise.id


def test_duplicates_are_found_among_those_of_one_call(setting: Setting) -> None:
    """Also by meaning: their vectors are not stored yet."""
    setting.embedder.vectors = alike("Ship on Tuesday.", 0.99)
    results = setting.service.remember_many(
        [
            Exchange(human=SAID, conversation_id="a"),
            Exchange(human="Ship on Tuesday.", conversation_id="a"),
            Exchange(human=SAID, conversation_id="b"),
        ],
        scope=setting.ours,
    )

    assert [each.outcome for each in results] == ["new", "linked", "linked"]
    assert {each.like for each in results[1:]} == {results[0].id}


def test_many_are_remembered_in_batches_and_repeated_without_a_second_row(
    setting: Setting,
) -> None:
    """A run that was stopped is repeated, and finds what is done."""
    said = [
        Exchange(human=f"Fact number {n} is {n * n}.", conversation_id="c", sequence_index=n)
        for n in range(230)
    ]
    done: list[int] = []

    first = setting.service.remember_many(
        said, scope=setting.ours, duplicates="keep", on_progress=done.append
    )
    again = setting.service.remember_many(said, scope=setting.ours, duplicates="keep")

    assert done == [100, 100, 30]
    assert {each.outcome for each in first} == {"new"}
    assert [each.id for each in again] == [each.id for each in first]
    assert {each.outcome for each in again} == {"same"}
    assert setting.counts(setting.ours) == {
        "memory_nodes": 230, "memory_embeddings": 230, "jobs": 230,
        "episodic_memories": 0, "episode_embeddings": 0,
    }  # fmt: skip


def test_a_silent_embedder_keeps_nobody_from_remembering(setting: Setting) -> None:
    """The memory is found by its words, the result says why, and a worker makes the vector."""
    setting.embedder.silent = True
    kept = setting.service.remember(SAID, scope=setting.ours, conversation_id="a")
    by_words = setting.service.recall("deploy", scope=setting.ours, mode="text")
    before = setting.counts(setting.ours)["memory_embeddings"]
    with logged_in(setting.owner, "rag_admin") as administrator:
        Worker(administrator).run(once=True)

    assert (kept.outcome, kept.embedded) == ("new", False)
    assert "the provider did not answer" in (kept.note or "")
    assert [memory.id for memory in by_words.memories] == [kept.id]
    assert (before, setting.counts(setting.ours)["memory_embeddings"]) == (0, 1)


def test_a_text_that_is_refused_leaves_the_others_their_vectors(setting: Setting) -> None:
    """It is kept, without one."""
    setting.embedder.refused = ("unspeakable",)
    results = setting.service.remember_many(
        [Exchange(human=each, conversation_id="c") for each in ("One.", "unspeakable", "Three.")],
        scope=setting.ours,
    )

    assert [each.embedded for each in results] == [True, False, True]
    assert "too long for the model" in (results[1].note or "")
    assert setting.counts(setting.ours)["memory_embeddings"] == 2


def test_the_same_thing_remembered_by_many_at_once_is_one_memory(setting: Setting) -> None:
    """Whoever comes later sees what was there a moment before."""
    threads = 8
    barrier = Barrier(threads)

    def remember(number: int) -> str:
        barrier.wait()
        kept = MemoryService(setting.application, ObedientEmbedder()).remember(
            SAID, scope=setting.ours, conversation_id=f"agent {number}", duplicates="merge"
        )
        return kept.outcome

    with ThreadPoolExecutor(threads) as pool:
        outcomes = list(pool.map(remember, range(threads)))

    (row,) = setting.rows("memory_nodes")
    assert sorted(outcomes) == ["merged"] * (threads - 1) + ["new"]
    assert row["access_count"] == threads - 1


def test_two_who_write_to_one_conversation_at_once_get_two_places(setting: Setting) -> None:
    """Even where duplicates are not looked for."""
    barrier = Barrier(4)

    def remember(number: int) -> None:
        barrier.wait()
        for turn in range(5):
            setting.service.remember(
                f"{number} says {turn}.",
                scope=setting.ours,
                conversation_id="c",
                duplicates="keep",
            )

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(remember, range(4)))

    places = sorted(row["sequence_index"] for row in setting.rows("memory_nodes"))
    assert places == list(range(20))


def test_the_same_id_in_two_scopes_is_two_memories_that_know_nothing_of_each_other(
    setting: Setting,
) -> None:
    """Neither as a duplicate, nor by an error, nor by its number in the conversation."""
    scopes = (setting.ours, setting.theirs, setting.person)
    kept = [
        setting.service.remember(
            SAID, scope=scope, conversation_id="c", duplicates="refuse", tags={"topics": [str(n)]}
        )
        for n, scope in enumerate(scopes)
    ]

    assert len({each.id for each in kept}) == 1
    assert {each.outcome for each in kept} == {"new"}
    for n, scope in enumerate(scopes):
        (memory,) = setting.service.recall("deploy", scope=scope).memories
        assert memory.tags == {"topics": [str(n)]}
        assert setting.counts(scope)["memory_nodes"] == 1


def test_a_memory_says_who_of_a_tenant_wrote_it(setting: Setting) -> None:
    """The tenant sees it; a user of another tenant could not have written it."""
    tenant = setting.ours.tenant_id
    assert tenant is not None
    setting.service.remember(
        SAID, scope=Scope.tenant(tenant, user_id=setting.ann), conversation_id="a"
    )
    stranger = setting.person.user_id

    (row,) = setting.rows("memory_nodes", setting.ours)
    assert row["user_id"] == setting.ann
    assert len(setting.service.recall("deploy", scope=setting.ours).memories) == 1
    with pytest.raises(MissingReference, match="pgcorpus users list"):
        setting.service.remember(
            "Else.", scope=Scope.tenant(tenant, user_id=stranger), conversation_id="a"
        )


def test_nothing_is_done_without_a_scope(setting: Setting) -> None:
    """Before anything is embedded or asked of the database."""
    nobody: Any = None
    calls = [
        lambda: setting.service.remember(SAID, scope=nobody, conversation_id="a"),
        lambda: setting.service.remember_many([], scope=nobody),
        lambda: setting.service.recall("deploy", scope=nobody),
        lambda: setting.service.recall_episodes("deploy", scope=nobody),
        lambda: setting.service.context("deploy", scope=nobody),
        lambda: setting.service.touch(["mem_0"], scope=nobody),
        lambda: setting.service.get("mem_0", scope=nobody),
        lambda: setting.service.store_episode("a", scope=nobody),
        lambda: setting.service.episodes(scope=nobody),
        lambda: setting.service.episode("ep_0", scope=nobody),
        lambda: setting.service.related_episodes("ep_0", scope=nobody),
        lambda: setting.service.episodes_of("mem_0", scope=nobody),
        lambda: setting.service.forget(scope=nobody, everything=True),
        lambda: setting.service.forget_user(setting.ann, scope=nobody),
    ]

    for call in calls:
        with pytest.raises(MissingScope):
            call()
    assert setting.embedder.asked == []


def test_a_login_that_sees_everything_is_refused(setting: Setting) -> None:
    """The error says how to make one that does not."""
    with pytest.raises(UnsafeRole, match="pgcorpus roles create-user"):
        MemoryService(setting.owner, setting.embedder).remember(
            SAID, scope=setting.ours, conversation_id="a"
        )


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"human": " ", "assistant": "\n"}, "what was said or what was answered"),
    ({"human": "a\0b"}, "human holds a character"),
    ({"intent_type": "guess"}, "intent_type must be question"),
    ({"technical_depth": 11}, "between 0 and 10"),
    ({"sequence_index": -1}, "count from 0"),
    ({"cluster_id": -2}, "cluster_id must be -1"),
    ({"cluster_confidence": 1.5}, "between 0 and 1"),
    ({"tags": {"colours": ["red"]}}, "there are no tags colours; known: domains"),
    ({"tags": {"topics": "red"}}, "must be lists"),
    ({"language": "klingon"}, "no text search configuration 'klingon'"),
    ({"conversation_id": "c" * 300}, "conversation_id is too long: 300 characters, and 255 are"),
    ({"source": "s" * 60}, "source is too long: 60 characters, and 50 are the most"),
    ({"cluster_label": "l" * 256}, "cluster_label is too long"),
    ({"duplicates": "drop"}, "no handling 'drop' of duplicates; known: keep"),
    ({"threshold": 0}, "threshold must be above 0"),
]


def test_what_the_table_would_refuse_is_refused_in_words(setting: Setting) -> None:
    """Nothing is kept."""
    for wrong, told in REFUSED:
        given: Any = {"human": SAID, "conversation_id": "c"} | wrong
        with pytest.raises(InvalidValue, match=told):
            setting.service.remember(given.pop("human"), scope=setting.ours, **given)
    assert setting.rows("memory_nodes") == []


def test_memory_under_asyncio_is_the_same(setting: Setting) -> None:
    """Remembered, recalled, told and forgotten; two scopes at once do not mix."""

    async def live(scope: Scope, word: str) -> list[Any]:
        kept = await service.remember(f"The word is {word}.", scope=scope, conversation_id="c")
        (again,) = await service.remember_many(
            [Exchange(human=f"The word is {word}.", conversation_id="d")], scope=scope
        )
        told = await service.store_episode("c", scope=scope, title=f"About {word}")
        recalled = await service.recall("which word?", scope=scope)
        context = await service.context("which word?", scope=scope)
        listed = await service.episodes(scope=scope)
        touched = await service.touch([kept.id, told.id], scope=scope)
        erased = await service.forget(scope=scope, everything=True)
        with pytest.raises(NotFound):
            await service.get(kept.id, scope=scope)
        return [
            again.like == kept.id,
            {memory.human for memory in recalled.memories} == {f"The word is {word}."},
            f"The word is {word}." in context.text,
            [each.title for each in listed.items] == [f"About {word}"],
            (touched, erased.memories, erased.episodes) == (2, 2, 1),
        ]

    async def both() -> list[list[Any]]:
        results = await asyncio.gather(live(setting.ours, "kettle"), live(setting.theirs, "teapot"))
        await service.flush()
        await setting.application.aclose()
        return list(results)

    service = AsyncMemoryService(setting.application, ObedientEmbedder())

    assert asyncio.run(both()) == [[True] * 5] * 2
