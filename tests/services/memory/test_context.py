"""Memories and episodes as a text for a prompt, within a number of tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgcorpus.db.errors import InvalidValue
from pgcorpus.db.search.page import Leg, SearchPage
from pgcorpus.services.embedding.tokens import estimate
from pgcorpus.services.memory.context import EPISODE_TOKENS, MemoryContext, assemble
from pgcorpus.services.memory.records import Episode, EpisodeRecall, Memory, Recall
from pgcorpus.services.search.context import OMITTED
from tests.services.memory.setting import Setting, setting

__all__ = ["setting"]

NOON: Final = datetime(2025, 1, 31, 12, tzinfo=UTC)
PLENTY: Final = 100_000


def page(corpus: str, *legs: Leg) -> SearchPage:
    """A search that found something; degraded where a leg failed."""
    return SearchPage(
        corpus=corpus,
        mode="hybrid",
        fusion="calibrated",
        question="?",
        degraded=any(leg.status != "ok" for leg in legs),
        legs=legs,
        hits=(),
    )


def memory(number: int, human: str = "", assistant: str = "", **more: Any) -> Memory:
    """A memory of a conversation."""
    plain = Memory(
        id=f"mem_{number}",
        human=human or f"What is {number}?",
        assistant=assistant or f"It is number {number}.",
        conversation_id="talk",
        sequence_index=number,
        source="openai",
        created_at=NOON,
        intent_type="question",
        complexity="simple",
        technical_depth=0,
        emotional_valence="neutral",
        urgency="low",
        conversation_mode="chat",
        action_required=False,
        has_code=False,
        has_error=False,
        tags={},
        cluster_id=None,
        cluster_label=None,
        access_count=0,
        last_accessed=None,
        duplicate_of=None,
        score=1 / (number + 1),
    )
    return replace(plain, **more)


def episode(number: int, **more: Any) -> Episode:
    """An episode that a model has summed up."""
    plain = Episode(
        id=f"ep_{number}",
        title=f"Episode {number}",
        content=f"Summary {number}.\nuser: words\nassistant: more words",
        source="openai",
        created_at=NOON,
        updated_at=NOON,
        message_count=2,
        duration_minutes=None,
        llm_tags={"summary": f"Summary {number}.", "outcome": "Solved."},
        dominant_intent=None,
        emotional_arc=None,
        urgency_max=None,
        has_code=False,
        has_errors=False,
        memory_ids=(),
        related_episode_ids=(),
        access_count=0,
        last_accessed=None,
        score=1 / (number + 1),
    )
    return replace(plain, **more)


def context(
    memories: list[Memory], episodes: list[Episode] | None = None, max_tokens: int = PLENTY
) -> MemoryContext:
    """Return what is told of these, found in this order."""
    return assemble(
        Recall(page=page("memory"), memories=tuple(memories)),
        EpisodeRecall(page=page("episodes"), episodes=tuple(episodes or ())),
        max_tokens=max_tokens,
    )


def ids(told: MemoryContext) -> list[str]:
    """Of the parts, in their order."""
    return [part.id for part in told.parts]


def test_each_part_has_its_source_and_says_what_was_said() -> None:
    """A line in brackets with id, date, conversation or title; the format is documented."""
    told = context([memory(3, assistant=" ")], [episode(1, title="Two\nkettles")])

    assert told.text == (
        "[mem_3, 2025-01-31 12:00 UTC, conversation talk, exchange 3, openai]\n"
        "human: What is 3?\n"
        "\n"
        "[ep_1, 2025-01-31 12:00 UTC, episode Two kettles, openai]\n"
        "Summary 1.\n"
        "Outcome: Solved."
    )
    assert told.tokens == estimate(told.text)
    assert (told.left_out, told.repeated, told.note) == ((), (), None)


def test_memories_and_episodes_take_turns_by_rank() -> None:
    """A memory first; scores of the two cannot be compared."""
    told = context([memory(1), memory(2), memory(3)], [episode(1), episode(2)])

    assert ids(told) == ["mem_1", "ep_1", "mem_2", "ep_2", "mem_3"]


def test_memories_stand_below_the_episode_that_they_are_part_of() -> None:
    """In its order, where the better of them would have stood; each says to which it belongs."""
    told = context(
        [memory(2), memory(9), memory(1)], [episode(1, memory_ids=("mem_1", "mem_0", "mem_2"))]
    )

    assert ids(told) == ["ep_1", "mem_1", "mem_2", "mem_9"]
    assert [part.episode_id for part in told.parts] == [None, "ep_1", "ep_1", None]


def test_what_an_episode_quotes_is_not_told_again() -> None:
    """An episode without a summary is told as it was said, and its memories are in that."""
    quoting = episode(
        1,
        llm_tags={},
        memory_ids=("mem_1",),
        content="user: What is 1?\nassistant: It is number 1.",
    )
    before = context([memory(1), memory(2)], [quoting])
    after = context([memory(2), memory(1)], [quoting])

    assert (ids(before), before.repeated) == (["ep_1", "mem_2"], ("mem_1",))
    assert (ids(after), after.repeated) == (["mem_2", "ep_1"], ("mem_1",))


def test_a_few_words_in_a_strange_episode_are_no_quotation() -> None:
    """A few words of a memory that is no part of it may stand there by chance; many may not."""
    long = "The password of the kettle was changed on Tuesday."
    strange = episode(1, llm_tags={}, content=f"user: yes, no matter.\nassistant: {long}")
    told = context([memory(1, "yes", "no"), memory(2, long, "no matter.")], [strange])

    assert (ids(told), told.repeated) == (["mem_1", "ep_1"], ("mem_2",))


def test_duplicates_are_told_once() -> None:
    """The better one: the same words, or linked to what is told."""
    told = context(
        [
            memory(1),
            memory(2, "What is  1?", "It is number 1."),
            memory(3, duplicate_of="mem_1"),
            memory(4, duplicate_of="mem_gone"),
        ]
    )

    assert (ids(told), told.repeated) == (["mem_1", "mem_4"], ("mem_2", "mem_3"))


def test_what_does_not_fit_makes_room_for_what_does() -> None:
    """And is named, best first."""
    long = memory(1, assistant="words " * 200)
    told = context([memory(0), long, memory(2)], [episode(1)], max_tokens=120)

    assert ids(told) == ["mem_0", "ep_1", "mem_2"]
    assert told.left_out == ("mem_1",)
    assert told.note == "max_tokens left no room for mem_1"
    assert told.tokens <= 120


def test_an_episode_makes_room_by_what_it_quotes() -> None:
    """It may take the place of its memory, where both together have none."""
    words = "The kettle that was ordered is of copper and holds nine cups."
    quoting = episode(
        1, llm_tags={}, memory_ids=("mem_1",), content=f"user: {words}\nassistant: no"
    )
    tight = estimate(context([], [quoting]).text) + 1
    told = context([memory(1, words, "no")], [quoting], max_tokens=tight)

    assert (ids(told), told.repeated, told.left_out) == (["ep_1"], ("mem_1",), ())


def test_the_best_memory_is_cut_where_it_alone_is_too_long() -> None:
    """Between words, and it says so; where nothing fits the text is empty."""
    long = memory(1, assistant=" ".join(f"word{n}" for n in range(1000)))
    told = context([long], max_tokens=100)
    nothing = context([long], max_tokens=20)

    (part,) = told.parts
    assert part.is_cut
    assert part.content.endswith(f" {OMITTED}")
    assert 90 < told.tokens <= 100
    assert "the best memory alone was too long, and is cut" in (told.note or "")
    assert (nothing.text, nothing.left_out) == ("", ("mem_1",))


def test_a_long_episode_leaves_room_for_others() -> None:
    """It is cut to what one may take, however much room there is."""
    long = episode(1, llm_tags={"summary": "words " * 5000})
    told = context([], [long, episode(2)])

    assert [part.is_cut for part in told.parts] == [True, False]
    assert estimate(told.parts[0].content) <= EPISODE_TOKENS


def test_a_leg_that_did_not_answer_is_told() -> None:
    """Its hits are missing from the text."""
    failed = Leg(name="vector", status="failed", reason="the provider did not answer")
    told = assemble(
        Recall(page=page("memory", failed), memories=(memory(1),)),
        EpisodeRecall(page=page("episodes"), episodes=()),
        max_tokens=PLENTY,
    )

    assert told.degraded
    assert told.note == ("memory: the vector leg did not answer (the provider did not answer)")
    assert told.as_json()["degraded"] is True


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=80)


@settings(max_examples=200, deadline=None)
@given(
    said=st.lists(st.tuples(texts, texts), max_size=8),
    told=st.lists(st.tuples(texts, st.lists(st.integers(0, 8), unique=True)), max_size=4),
    max_tokens=st.integers(1, 400),
)
def test_a_context_keeps_its_bound_and_accounts_for_everything(
    said: list[tuple[str, str]], told: list[tuple[str, list[int]]], max_tokens: int
) -> None:
    """Whatever is found: each is told once, repeated or left out; the same again is the same."""
    memories = [memory(n, *words) for n, words in enumerate(said)]
    episodes = [
        episode(n, llm_tags={}, content=content, memory_ids=tuple(f"mem_{each}" for each in of))
        for n, (content, of) in enumerate(told)
    ]
    made = context(memories, episodes, max_tokens)

    accounted = [*ids(made), *made.left_out, *made.repeated]
    assert sorted(accounted) == sorted(each.id for each in (*memories, *episodes))
    assert made.tokens == estimate(made.text) <= max_tokens
    assert context(memories, episodes, max_tokens) == made
    json.dumps(made.as_json())


def test_a_context_is_of_one_scope_and_counts_what_it_tells(setting: Setting) -> None:
    """Memories that were left out are not counted; another scope's are not told."""
    for scope, words in ((setting.ours, "copper"), (setting.theirs, "silver")):
        for topic in ("kettle", "teapot"):
            setting.service.remember(
                f"The {topic} is of {words}.", scope=scope, conversation_id="metals"
            )
        setting.service.store_episode("metals", scope=scope, title=f"On {words}")
    told = setting.service.context("kettle", scope=setting.ours)
    none = setting.service.context("kettle", scope=setting.person)
    tight = setting.service.context("teapot", scope=setting.ours, max_tokens=40, touch=False)
    setting.service.flush()

    counts = {row["human_content"]: row["access_count"] for row in setting.rows("memory_nodes")}
    assert "The kettle is of copper." in told.text
    assert "silver" not in told.text
    assert (none.text, none.left_out) == ("", ())
    assert tight.tokens <= 40
    assert counts["The kettle is of copper."] == 1
    assert counts["The kettle is of silver."] == 0
    assert [row["access_count"] for row in setting.rows("episodic_memories", setting.ours)] == [1]


def test_a_bound_that_is_none_is_refused(setting: Setting) -> None:
    """Before anything is searched."""
    with pytest.raises(InvalidValue, match="max_tokens must be 1 to"):
        setting.service.context("kettle", scope=setting.ours, max_tokens=0)
    assert setting.embedder.asked == []
