"""Contextual retrieval: what was said around a hit, ready for a prompt."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import InvalidSearch
from pgcorpus.db.models import Message
from pgcorpus.db.search.context import Turn, Window
from pgcorpus.db.search.page import Hit
from pgcorpus.services.embedding.tokens import cut, estimate
from pgcorpus.services.search.context import OMITTED, Context, assemble
from pgcorpus.services.search.service import AsyncSearchService, SearchService
from tests import factories
from tests.command import Command
from tests.factories import ConversationFactory, FrameworkDocumentFactory, MessageFactory
from tests.services.search.test_service import AxisEmbedder

NOON: Final = datetime(2025, 1, 31, 12, tzinfo=UTC)
TALK: Final = (
    ("user", "What does the kettle cost?"),
    ("assistant", "Nine coins."),
    ("user", "And the larger one?"),
    ("assistant", "Twelve: it is copper."),
    ("user", "I want a refund."),
    ("assistant", "Within thirty days, yes."),
    ("user", "Thanks."),
)


def turn(place: int, *, branch: int = 0, within: str = "talk", content: str = "words") -> Turn:
    """A turn of a conversation, a hit to nobody."""
    return Turn(
        id=(within, branch, place),
        within=within,
        place=place,
        branch=branch,
        role="user",
        time=NOON,
        title=within,
        content=content,
        is_hit=False,
    )


def windows(*around: list[Turn], hits: list[int]) -> dict[Any, Window]:
    """Windows of these turns, each with its hit at a place among them."""
    found = {each[hit].id for each, hit in zip(around, hits, strict=True)}
    return {
        each[hit].id: {t.place: replace(t, is_hit=t.id in found) for t in each}
        for each, hit in zip(around, hits, strict=True)
    }


def places(context: Context) -> list[list[tuple[int, int]]]:
    """(branch, place) of the turns of each excerpt."""
    return [[(turn.branch, turn.place) for turn in each.turns] for each in context.excerpts]


def test_windows_that_overlap_or_touch_are_one() -> None:
    """A turn is told once; where turns lie between two windows, they stay apart."""
    overlapping = windows([turn(n) for n in (1, 2, 3)], [turn(n) for n in (3, 4, 5)], hits=[1, 1])
    touching = windows([turn(n) for n in (4, 5, 6)], [turn(n) for n in (1, 2, 3)], hits=[1, 1])
    apart = windows([turn(n) for n in (5, 6)], [turn(n) for n in (1, 2, 3)], hits=[0, 0])

    assert places(assemble(overlapping)) == [[(0, n) for n in range(1, 6)]]
    assert places(assemble(touching)) == [[(0, n) for n in range(1, 7)]]
    assert places(assemble(apart)) == [[(0, 5), (0, 6)], [(0, 1), (0, 2), (0, 3)]]


def test_a_third_window_joins_two() -> None:
    """Whatever their order."""
    three = windows(
        [turn(n) for n in (1, 2)],
        [turn(n) for n in (5, 6)],
        [turn(n) for n in (3, 4)],
        hits=[0] * 3,
    )

    assert places(assemble(three)) == [[(0, n) for n in range(1, 7)]]


def test_alternatives_are_never_told_as_one_conversation() -> None:
    """Two turns at one place exclude each other; a shared past alone joins them."""
    answer, other = [turn(3), turn(4)], [turn(3), turn(4, branch=1)]
    later = [turn(4, branch=1), turn(5, branch=1)]

    parted = assemble(windows(answer, other, hits=[1, 1]))
    followed = assemble(windows([turn(2), turn(3)], other, hits=[0, 1]))
    elsewhere = assemble(windows([turn(2), turn(3)], later, hits=[0, 0]))

    assert places(parted) == [[(0, 3), (0, 4)], [(0, 3), (1, 4)]]
    assert places(followed) == [[(0, 2), (0, 3), (1, 4)]]
    assert places(elsewhere) == [[(0, 2), (0, 3)], [(1, 4), (1, 5)]]


def test_excerpts_are_in_the_order_of_their_best_hits() -> None:
    """As the page has them, not as the database does."""
    two = windows([turn(9, within="b")], [turn(1, within="a")], [turn(8, within="b")], hits=[0] * 3)

    context = assemble(two)

    assert [(each.within, len(each.turns)) for each in context.excerpts] == [("b", 2), ("a", 1)]


def list_places(context: Context) -> list[list[int]]:
    """List the places of the turns of each excerpt."""
    return [[place for _, place in each] for each in places(context)]


@pytest.mark.parametrize(
    ("turns", "expected"),
    [(1, [[4]]), (2, [[4], [12]]), (3, [[3, 4], [12]]), (5, [[3, 4, 5], [11, 12]]), (99, None)],
)
def test_hits_come_first_and_then_what_is_nearest(turns: int, expected: list[list[int]]) -> None:
    """The better hit's neighbours before those of the other, at the same distance."""
    around = [turn(n) for n in range(1, 8)], [turn(n) for n in range(9, 16)]
    asked = windows(*around, hits=[3, 3])
    of_one = assemble(windows([turn(4)], hits=[0])).tokens
    of_turn = estimate("user (2025-01-31 12:00 UTC):\nwords\n\n")
    title = of_one - of_turn + 1

    context = assemble(asked, max_tokens=turns * of_turn + min(turns, 2) * (title + 1))

    assert list_places(context) == (expected or [list(range(1, 8)), list(range(9, 16))])
    assert context.left_out == 14 - sum(map(len, list_places(context)))
    assert context.truncated is (context.left_out > 0)


def test_what_is_left_out_between_two_hits_is_marked() -> None:
    """A reader must not take the answer for one to the question above it."""
    long = [turn(n, content="words " * (40 if n == 3 else 1)) for n in range(1, 6)]
    whole = {
        long[0].id: {t.place: replace(t, is_hit=t.place in (1, 5)) for t in long},
        long[4].id: {t.place: replace(t, is_hit=t.place in (1, 5)) for t in long},
    }

    context = assemble(whole, max_tokens=100)

    assert list_places(context) == [[1, 2, 4, 5]]
    assert context.text.count(f"\n\n{OMITTED}\n\n") == 1
    assert context.note == "max_tokens left no room for 1 turn"


def test_a_hit_that_does_not_fit_makes_room_for_one_that_does() -> None:
    """Only the best is cut; a later one that is too long is left out, and counted."""
    three = windows(
        [turn(1, within="a")],
        [turn(1, within="b", content="words " * 100)],
        [turn(1, within="c")],
        hits=[0] * 3,
    )

    context = assemble(three, max_tokens=60)

    assert [each.within for each in context.excerpts] == ["a", "c"]
    assert context.note == "max_tokens left no room for 1 turn, 1 hit among them"


def test_the_best_hit_is_cut_between_words_where_it_alone_is_too_long() -> None:
    """The rest says that it was cut, and holds nothing that was not there."""
    content = " ".join(f"word{n}" for n in range(1000))
    lone = windows([turn(1), turn(2, content=content), turn(3)], hits=[1])

    context = assemble(lone, max_tokens=100)

    (kept,) = context.excerpts[0].turns
    assert kept.is_cut
    assert content.startswith(f"{kept.content} ")
    assert context.text.endswith(f" {OMITTED}")
    assert 90 < context.tokens <= 100
    assert "the best hit alone was too long, and is cut" in (context.note or "")
    assert context.left_out == 2


def test_a_hit_without_spaces_is_cut_between_characters() -> None:
    """There is no word to end with."""
    lone = windows([turn(1, content="价" * 1000)], hits=[0])

    context = assemble(lone, max_tokens=100)

    assert set(context.excerpts[0].turns[0].content) == {"价"}
    assert 90 < context.tokens <= 100


def test_no_room_for_a_word_is_an_empty_context_that_says_so() -> None:
    """Not an error: a caller may have used up its prompt."""
    context = assemble(windows([turn(1)], hits=[0]), max_tokens=3)

    assert (context.text, context.tokens, context.excerpts) == ("", 0, ())
    assert context.truncated
    assert context.note == "max_tokens left no room for 1 turn, 1 hit among them"


def test_a_turn_without_speaker_and_time_is_its_content() -> None:
    """As a corpus has them that names neither."""
    plain = replace(turn(1), role=None, time=None, title=" ", is_hit=True)

    assert assemble({plain.id: {1: plain}}).text == "# (untitled)\n\nwords"


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_an_estimate_is_what_a_cut_counts(text: str) -> None:
    """One measure for what is sent to an embedder and to a prompt."""
    assert cut(text, 10**9) == (text, estimate(text))


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    hits=st.lists(st.integers(0, 29), min_size=1, max_size=5, unique=True),
    gap=st.integers(0, 29),
    side=st.integers(0, 4),
    max_tokens=st.integers(1, 900),
    words=st.sampled_from(["ab ", "价 ", "価"]),
)
def test_no_context_is_longer_than_it_may_be(
    *,
    lengths: list[int],
    hits: list[int],
    gap: int,
    side: int,
    max_tokens: int,
    words: str,
) -> None:
    """Whatever is asked for; with more room nothing that was there is lost."""
    turns = {n: turn(n, content=words * size) for n, size in enumerate(lengths) if n != gap}
    asked = [n for n in hits if n in turns]
    marked = {n: replace(each, is_hit=n in asked) for n, each in turns.items()}
    around = {
        turns[n].id: {p: marked[p] for p in range(n - side, n + side + 1) if p in marked}
        for n in asked
    }

    context = assemble(around, max_tokens=max_tokens)
    whole = assemble(around)

    assert context.tokens == estimate(context.text) <= max_tokens
    assert context.left_out + sum(len(each.turns) for each in context.excerpts) == sum(
        len(each.turns) for each in whole.excerpts
    )
    if whole.tokens * 1.5 + 50 < max_tokens:
        assert context == whole


@pytest.fixture
def talk(database: Database) -> list[UUID]:
    """A conversation; the ids of its messages."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        conversation = ConversationFactory(title="Kettles\nand their prices")
        ids = [
            MessageFactory(
                conversation=conversation,
                role=role,
                content=content,
                created_at=NOON + timedelta(minutes=n),
            ).id
            for n, (role, content) in enumerate(TALK)
        ]
        work.commit()
    return ids


@pytest.fixture
def service(database: Database) -> SearchService:
    """A service whose every question means axis 0."""
    return SearchService(database, embedder=AxisEmbedder())


def find_hits(service: SearchService, word: str) -> tuple[Hit, ...]:
    """Return the hits for a word."""
    return service.search(word, corpus="chat", mode="text").hits


def test_a_context_is_a_text_for_a_prompt(service: SearchService, talk: list[UUID]) -> None:
    """The title, and each turn with who spoke, when, and what, as documented."""
    context = service.context(find_hits(service, "refund")[0], before=1, after=1)

    assert context.text == (
        "# Kettles and their prices\n\n"
        "assistant (2025-01-31 12:03 UTC):\nTwelve: it is copper.\n\n"
        "user (2025-01-31 12:04 UTC):\nI want a refund.\n\n"
        "assistant (2025-01-31 12:05 UTC):\nWithin thirty days, yes."
    )
    assert context.tokens == estimate(context.text)
    (excerpt,) = context.excerpts
    assert [(t.id, t.is_hit) for t in excerpt.turns] == [
        (talk[3], False),
        (talk[4], True),
        (talk[5], False),
    ]
    assert (context.missing, context.left_out, context.note) == ((), 0, None)


def test_two_turns_on_either_side_are_the_default(service: SearchService, talk: list[UUID]) -> None:
    """Of one hit as of a page's."""
    hits = find_hits(service, "copper")

    assert service.context(hits) == service.context(hits[0])
    assert [turn.id for turn in service.context(hits).excerpts[0].turns] == talk[1:6]


def test_the_hits_of_a_page_share_their_context(service: SearchService, talk: list[UUID]) -> None:
    """Their windows touch: the conversation is told once, though three of its turns were found."""
    hits = find_hits(service, "kettle or copper or thanks")

    context = service.context(hits, before=1, after=1)

    assert len(hits) == 3
    (excerpt,) = context.excerpts
    assert [turn.id for turn in excerpt.turns] == talk
    assert {turn.id for turn in excerpt.turns if turn.is_hit} == {hit.id for hit in hits}


def test_a_hit_that_was_deleted_meanwhile_is_named(
    database: Database, service: SearchService, talk: list[UUID]
) -> None:
    """The others have their context."""
    hits = find_hits(service, "refund or copper")
    with database.unit_of_work() as work:
        work.session.delete(work.session.get_one(Message, talk[4]))
        work.commit()

    context = service.context(hits, before=0, after=0)
    nothing = service.context([hit for hit in hits if hit.id == talk[4]])

    assert context.missing == nothing.missing == (talk[4],)
    assert context.note == nothing.note == "1 hit gone meanwhile"
    assert [turn.id for turn in context.excerpts[0].turns] == [talk[3]]
    assert (nothing.excerpts, nothing.text) == ((), "")


def test_no_hits_have_no_context(service: SearchService) -> None:
    """An empty page is handed on like any other."""
    assert service.context(()) == Context()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"before": -1}, "before must be 0 to 1000"),
        ({"before": 1001}, "before must be 0 to 1000"),
        ({"after": "2"}, "after must be 0 to 1000"),
        ({"after": True}, "after must be 0 to 1000"),
        ({"max_tokens": 0}, "max_tokens must be 1"),
        ({"max_tokens": 2.5}, "max_tokens must be 1"),
    ],
)
def test_a_wrong_number_is_named(
    service: SearchService, talk: list[UUID], options: Mapping[str, Any], says: str
) -> None:
    """Every error says what is allowed."""
    with pytest.raises(InvalidSearch, match=says):
        service.context(find_hits(service, "refund"), **options)


def test_only_hits_have_a_context(
    database: Database, service: SearchService, talk: list[UUID]
) -> None:
    """They must be of a corpus whose passages follow one another, and of one corpus at a time."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        FrameworkDocumentFactory(content="A refund moves the risk.")
        work.commit()
    of_knowledge = service.search("refund", corpus="knowledge", mode="text").hits

    with pytest.raises(InvalidSearch, match="knowledge has no context"):
        service.context(of_knowledge)
    with pytest.raises(InvalidSearch, match="of one corpus, not of chat, knowledge"):
        service.context([*of_knowledge, *find_hits(service, "refund")])
    with pytest.raises(InvalidSearch, match="a context is of hits"):
        service.context([talk[0]])  # type: ignore[list-item] - that is the point


def test_the_async_service_gives_the_same_context(
    database: Database, service: SearchService, talk: list[UUID]
) -> None:
    """The same statement, awaited."""
    hits = find_hits(service, "refund")

    async def context() -> Context:
        try:
            return await AsyncSearchService(database).context(hits, max_tokens=60)
        finally:
            await database.aclose()

    assert asyncio.run(context()) == service.context(hits, max_tokens=60)


def test_a_person_sees_the_turns_around_each_hit(pgcorpus: Command, talk: list[UUID]) -> None:
    """Under the table, and how many tokens they take."""
    done = pgcorpus("search", "refund", "-c", "chat", "--context", "1", "--max-tokens", "60")

    assert done.returncode == 0, done.stderr
    assert "# Kettles and their prices" in done.stdout
    assert "user (2025-01-31 12:04 UTC):\nI want a refund." in done.stdout
    assert "tokens" in done.stderr


def test_a_script_gets_context_and_groups_in_one_document(
    pgcorpus: Command, talk: list[UUID]
) -> None:
    """Nothing but JSON is on stdout."""
    done = pgcorpus(
        "search", "refund", "-c", "chat", "--context", "1", "--group-by", "conversation", "--json"
    )

    shown = json.loads(done.stdout)
    assert shown["context"]["text"].startswith("# Kettles and their prices\n\n")
    (excerpt,) = shown["context"]["excerpts"]
    assert [turn["id"] for turn in excerpt["turns"]] == [str(id_) for id_ in talk[3:6]]
    assert [turn["is_hit"] for turn in excerpt["turns"]] == [False, True, False]
    assert shown["groups"] == [
        {"key": excerpt["within"], "hits": [str(talk[4])], "found": 1},
    ]


def test_a_person_sees_groups(pgcorpus: Command, talk: list[UUID]) -> None:
    """The number and the key of a group stand at its first hit."""
    done = pgcorpus("search", "refund or copper", "-c", "chat", "--group-by", "role")

    assert done.returncode == 0, done.stderr
    assert "assistant" in done.stdout
    assert done.stdout.count("Kettles and their prices") == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["-c", "knowledge", "--context", "2"], "knowledge has no context"),
        (["-c", "chat", "--max-tokens", "9"], "give --context"),
        (["-c", "chat", "--context", "-1"], "--context"),
        (["-c", "chat", "--group-by", "colour"], "known: conversation, branch"),
    ],
)
def test_a_context_that_cannot_be_is_misuse(
    pgcorpus: Command, options: list[str], says: str
) -> None:
    """Exit code 2, the reason on stderr, and nothing on stdout."""
    done = pgcorpus("search", "refund", *options)

    assert done.returncode == 2
    assert says in done.stderr
    assert done.stdout == ""
