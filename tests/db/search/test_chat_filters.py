"""Filters of a chat archive: time, role, conversation, source, and saved."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
import pytest
from sqlalchemy import URL, text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import InvalidFilter
from pgcorpus.db.search.ask import Ask
from pgcorpus.db.search.corpora import CHAT, KNOWLEDGE
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.uow import UnitOfWork
from tests.conftest import Databases
from tests.db.search.crowd import BUILD, MODEL, ROWS, VOCABULARY, WORD, WORDS, Crowd, ask
from tests.db.search.test_filters import (
    LIMIT,
    MODES,
    QUESTIONS,
    RECALL,
    SAME,
    exact,
    list_questions,
)
from tests.db.search.test_plans import scans
from tests.factories import ConversationFactory, MessageFactory

TURNS: Final = 50
"""Turns of a conversation of the crowd; the last of them was abandoned."""

BEGINNING: Final = datetime(2025, 1, 1, tzinfo=UTC)
"""The time of the first message; each of the others is a minute later than the one before."""

SOURCES: Final = ("chatgpt", "claude", "native")

numbers = np.arange(ROWS)
conversations = numbers // TURNS
roles = np.where(numbers % 2 == 0, "user", "assistant")
roles[numbers % 100 == 9] = "system"
roles[numbers % 200 == 7] = "tool"
saved = conversations % 20 == 4
sources = np.array(SOURCES)[conversations % len(SOURCES)]
abandoned = numbers % TURNS == TURNS - 1


def minute(number: int) -> datetime:
    """Return the time when a message of the crowd was written."""
    return BEGINNING + timedelta(minutes=number)


def between(first: int, end: int) -> dict[str, datetime]:
    """The range of time from one message up to another, that not included."""
    return {"gte": minute(first), "lt": minute(end)}


NARROWED: Final[dict[str, tuple[dict[str, Any], np.ndarray]]] = {
    "a role": ({"role": "user"}, roles == "user"),
    "several roles": ({"role": ["system", "tool"]}, np.isin(roles, ("system", "tool"))),
    "a source": ({"source_type": "claude"}, sources == "claude"),
    "saved": ({"saved": True}, saved),
    "not saved": ({"saved": False}, ~saved),
    "a day": ({"date": between(5_000, 6_440)}, (numbers >= 5_000) & (numbers < 6_440)),
    "an hour": ({"date": between(5_000, 5_060)}, (numbers >= 5_000) & (numbers < 5_060)),
    "a conversation": ({"conversation": 77}, conversations == 77),
    "two conversations": ({"conversation": [77, 401]}, np.isin(conversations, (77, 401))),
    "saved tools": ({"saved": True, "role": "tool"}, saved & (roles == "tool")),
    "a saved week of a source": (
        {"saved": True, "source_type": "native", "date": between(0, 10_080)},
        saved & (sources == "native") & (numbers < 10_080),
    ),
}

FILL: Final = (
    "SET LOCAL statement_timeout = 0",
    """
    INSERT INTO conversations (id, title, source_type, is_saved)
    SELECT lpad(n::text, 32, '0')::uuid, 'Conversation', source, saved
    FROM unnest(CAST(:sources AS text[]), CAST(:saved AS boolean[]))
        WITH ORDINALITY AS each (source, saved, n)
    """,
    """
    INSERT INTO messages (conversation_id, branch, position, role, content, language, created_at)
    SELECT lpad((1 + (n - 1) / :turns)::text, 32, '0')::uuid, abandoned, (n - 1) % :turns,
           role, content, 'simple', CAST(:beginning AS timestamptz) + (n - 1) * interval '1 minute'
    FROM unnest(CAST(:roles AS text[]), CAST(:abandoned AS integer[]), CAST(:contents AS text[]))
        WITH ORDINALITY AS each (role, abandoned, content, n)
    """,
)


def key(number: int) -> str:
    """Of a conversation of the crowd."""
    return f"{number + 1:032}"


def filters(narrowed: str) -> dict[str, Any]:
    """The filters as a caller names them: conversations by their keys."""
    of = dict(NARROWED[narrowed][0])
    if "conversation" in of:
        asked = of["conversation"]
        of["conversation"] = [key(n) for n in asked] if isinstance(asked, list) else key(asked)
    return of


@pytest.fixture(scope="module")
def archive(databases: Databases, hosted: URL) -> Iterator[Crowd]:
    """Messages, vectors and statistics enough for indexes to be worth it. No test changes it."""
    random = np.random.default_rng(11)
    words = (VOCABULARY ** random.random((ROWS, WORDS[1]))).astype(int) - 1
    words[np.arange(WORDS[1]) >= random.integers(WORDS[0], WORDS[1] + 1, (ROWS, 1))] = -1
    vectors = random.normal(size=(ROWS, 8)).repeat(MODEL.dimensions // 8, axis=1).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    values = {
        "sources": sources[::TURNS].tolist(),
        "saved": saved[::TURNS].tolist(),
        "turns": TURNS,
        "beginning": BEGINNING,
        "roles": roles.tolist(),
        "abandoned": abandoned.astype(int).tolist(),
        # One word more, as long as the title is that the crowd of the other corpus has.
        "contents": ["passage " + " ".join(WORD[n] for n in row if n >= 0) for row in words],
    }
    with databases.opened(hosted.database or "", owner=hosted) as database:
        with database.unit_of_work() as work:
            for statement in FILL:
                work.session.execute(text(statement), values)
            keys = list(work.session.scalars(text("SELECT id FROM messages ORDER BY created_at")))
            work.models.add_model(MODEL.name, dimensions=MODEL.dimensions, provider="hashing")
            work.embeddings.store(CHAT, MODEL.name, keys, vectors)
            for statement in BUILD:
                work.session.execute(text(statement.replace("chunk_emb", "message_emb")))
            work.commit()
        yield Crowd(database, keys, sources, words, vectors)


@pytest.mark.parametrize("narrowed", NARROWED)
@pytest.mark.parametrize("mode", ["vector", "text", "hybrid"])
def test_no_filter_of_an_archive_starves_a_search(archive: Crowd, mode: str, narrowed: str) -> None:
    """As many messages as there are, and those that an exact search finds."""
    kept = NARROWED[narrowed][1] & ~abandoned
    places = {key: place for place, key in enumerate(archive.keys)}
    recalls = []
    for asked in list_questions(mode):
        scores = exact(archive, asked, kept)
        existing = min(LIMIT, int(np.isfinite(scores).sum()))
        with archive.database.unit_of_work() as work:
            hits = work.searches.answer(CHAT, replace(asked, filters=filters(narrowed))).hits
        assert len(hits) == existing
        assert all(kept[places[hit.id]] for hit in hits)
        least = np.sort(scores)[-existing] * (1 - SAME)
        recalls.append(np.mean([scores[places[hit.id]] >= least for hit in hits]))

    assert np.mean(recalls) >= RECALL


@pytest.mark.parametrize("mode", ["vector", "text", "hybrid"])
def test_what_was_abandoned_is_found_by_those_who_ask_for_it(archive: Crowd, mode: str) -> None:
    """Other branches are out of sight unless the filter is lifted."""
    asked = ask(QUESTIONS[0], MODES[mode], filters={"conversation": key(77)}, limit=100)
    with archive.database.unit_of_work() as work:
        standing = work.searches.answer(CHAT, asked).hits
        lifted = replace(asked, filters={**asked.filters, "branch": {"gte": 0}})
        every = work.searches.answer(CHAT, lifted).hits
        other = work.searches.answer(CHAT, replace(asked, filters={"branch": 1})).hits

    assert {hit.metadata["branch"] for hit in standing} == {0}
    assert {hit.metadata["branch"] for hit in other} == {1}
    assert len(every) >= len(standing)


def explain(database: Database, asked: Ask) -> str:
    """Return the plan of a search of the archive, as JSON."""
    with database.unit_of_work() as work:
        return json.dumps(work.searches.explain(work.searches.prepare(CHAT, asked), analyze=False))


@pytest.mark.parametrize(
    ("leg", "index"),
    [
        ("vector", "crowd_hnsw"),
        ("text", "idx_messages_search"),
        ("fuzzy", "idx_messages_content_trgm"),
    ],
)
@pytest.mark.parametrize("narrowed", [None, "a role", "a source", "not saved"])
def test_each_leg_uses_its_index_under_a_broad_filter(
    archive: Crowd, leg: str, index: str, narrowed: str | None
) -> None:
    """By the conversation, too: that is asked of what an index found."""
    misspelt = WORD[900][:-1] + "qx"  # trigrams look for what no message holds
    question = misspelt if leg == "fuzzy" else f"{WORD[900]} {WORD[40]}"
    asked = ask(question, {leg: 1.0}, filters=filters(narrowed) if narrowed else {})

    plan = explain(archive.database, asked)

    assert index in plan
    assert not scans(plan, "messages")
    assert not scans(plan, "message_embeddings")


@pytest.mark.parametrize(
    ("narrowed", "index"),
    [
        ("a conversation", "uq_messages_conversation_id_branch_position"),
        ("two conversations", "uq_messages_conversation_id_branch_position"),
        ("an hour", "idx_messages_created_at"),
        ("a day", "idx_messages_created_at"),
        ("saved tools", "idx_messages_role"),
    ],
)
@pytest.mark.parametrize("mode", ["vector", "hybrid"])
def test_a_narrow_filter_reads_what_it_keeps(
    archive: Crowd, mode: str, narrowed: str, index: str
) -> None:
    """All of it is compared, exactly, and nothing else is read."""
    asked = ask(f"{WORD[900]} {WORD[40]}", MODES[mode], filters=filters(narrowed))

    plan = explain(archive.database, asked)

    assert index in plan
    assert "crowd_hnsw" not in plan
    assert not scans(plan, "messages")
    assert not scans(plan, "message_embeddings")


def test_a_message_is_found_by_the_day_it_was_written(work: UnitOfWork) -> None:
    """A range takes dates as text, from the first up to the second, in UTC."""
    for day in (1, 2, 3):
        MessageFactory(content="price", created_at=datetime(2025, 5, day, 23, tzinfo=UTC))
    asked = ask("price", {"text": 1.0}, filters={"date": {"gte": "2025-05-02", "lt": "2025-05-03"}})

    hits = work.searches.answer(CHAT, asked).hits

    assert [hit.metadata["date"].day for hit in hits] == [2]


def test_saving_a_conversation_keeps_its_messages(work: UnitOfWork) -> None:
    """The filter reads the conversation as it is now."""
    conversation = ConversationFactory()
    MessageFactory(conversation=conversation, content="price")
    asked = ask("price", {"text": 1.0}, filters={"saved": True})
    before = work.searches.answer(CHAT, asked).hits
    conversation.is_saved = True
    work.session.flush()

    after = work.searches.answer(CHAT, asked).hits

    assert (len(before), len(after)) == (0, 1)
    assert after[0].metadata["saved"] is True


def test_a_conversation_is_named_by_its_id(work: UnitOfWork) -> None:
    """A text that is no id is refused, and not taken for a conversation that has nothing."""
    asked = ask("price", {"text": 1.0}, filters={"conversation": "the one about prices"})

    with pytest.raises(InvalidFilter, match="not a UUID"):
        work.searches.answer(CHAT, asked)


@pytest.mark.parametrize(
    ("corpus", "filters", "known"),
    [
        (CHAT, {"role": "bogus"}, "'bogus' is none of user, assistant, system, tool"),
        (CHAT, {"role": ["user", "bogus"]}, "none of user"),
        (KNOWLEDGE, {"chunk_type": "bogus"}, "none of atomic_framework, framework_section"),
    ],
)
def test_a_value_that_a_column_never_has_is_refused(
    work: UnitOfWork, corpus: Corpus, filters: dict[str, Any], known: str
) -> None:
    """It would find nothing, and leave unsaid that nothing could be found."""
    with pytest.raises(InvalidFilter, match=known):
        work.searches.answer(corpus, ask("price", {"text": 1.0}, filters=filters))


def test_every_choice_of_a_filter_is_what_the_database_takes() -> None:
    """The choices of a filter and the rule of its column are one list."""
    for corpus, name, rule in (
        (CHAT, "role", "valid_role"),
        (KNOWLEDGE, "chunk_type", "valid_chunk_type"),
    ):
        of = corpus.filters[name]
        (check,) = (each for each in of.column.table.constraints if each.name == rule)
        assert tuple(re.findall("'(.+?)'", str(check.sqltext))) == of.choices
