"""Conversations: made, found, listed page by page, appended to by several at once, counted."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta, timezone
from uuid import UUID, uuid4

import pytest
from sqlalchemy import URL, create_engine, func, select, text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session

from pgcorpus.db import models
from pgcorpus.db.choices import ConversationOrder
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import (
    AlreadyExists,
    InvalidCursor,
    InvalidReference,
    InvalidValue,
    NotFound,
    UnknownFilter,
)
from pgcorpus.db.repositories.chat.conversations import ConversationFilters
from pgcorpus.db.uow import UnitOfWork
from tests.conftest import Databases
from tests.factories import ConversationFactory, MessageEmbeddingFactory, MessageFactory
from tests.plans import plan_of, scans

# The jobs are another test's: without the triggers the archive is there in seconds.
FILL = (
    "SET LOCAL statement_timeout = 0",
    "SET LOCAL session_replication_role = replica",
    """
    INSERT INTO conversations (title, source_type, created_at, updated_at, is_saved)
    SELECT 'Conversation ' || n, (ARRAY['chatgpt', 'claude', 'native'])[1 + n % 3],
           CAST('2024-01-01' AS timestamptz) + n * interval '1 hour',
           CAST('2024-06-01' AS timestamptz) + n * interval '1 hour', n % 100 = 0
    FROM generate_series(1, 5000) AS n
    """,
    """
    INSERT INTO messages (conversation_id, position, role, content, created_at)
    SELECT id, n, CASE n % 2 WHEN 0 THEN 'user' ELSE 'assistant' END,
           'Message ' || n || ' of ' || title, created_at + n * interval '1 minute'
    FROM conversations CROSS JOIN generate_series(0, 19) AS n
    """,
    "ANALYZE conversations, messages",
)
DAY = timedelta(days=1)
NEW_YEAR = datetime(2025, 1, 1, tzinfo=UTC)


def test_a_conversation_is_found_by_its_key(work: UnitOfWork) -> None:
    """``find`` may come back empty-handed, ``get`` raises."""
    made = work.chat.create("Prices", created_at=NEW_YEAR)

    assert work.chat.get(made.id) is made
    assert (made.source_type, made.is_saved, made.created_at) == ("native", False, NEW_YEAR)
    assert work.chat.find(uuid4()) is None
    with pytest.raises(NotFound, match="there is no conversation"):
        work.chat.get(uuid4())


def test_a_conversation_is_found_by_its_source(work: UnitOfWork) -> None:
    """By the identifier it has there, which another source may use for another one."""
    made = work.chat.create(source_type="chatgpt", source_id="a")
    work.chat.create(source_type="claude", source_id="a")

    assert work.chat.find_by_source("chatgpt", "a") is made
    assert work.chat.find_by_source("openwebui", "a") is None


def test_a_person_names_a_conversation_by_key_or_source(work: UnitOfWork) -> None:
    """The identifier of the source may hold colons itself."""
    made = work.chat.create(source_type="chatgpt", source_id="a:b")

    assert work.chat.get_by_reference(str(made.id)) is made
    assert work.chat.get_by_reference("chatgpt:a:b") is made
    assert work.chat.get_by_reference("a:b") is made
    for unknown in (str(uuid4()), "chatgpt:c"):
        with pytest.raises(NotFound, match="there is no conversation"):
            work.chat.get_by_reference(unknown)


def test_the_id_of_a_source_alone_names_a_conversation(work: UnitOfWork) -> None:
    """Also where it looks like a key of ours; of two sources that have it one must be named."""
    raw = str(uuid4())
    made = work.chat.create(source_type="chatgpt", source_id=raw)
    assert work.chat.get_by_reference(raw) is made
    work.chat.create(source_type="claude", source_id=raw)

    with pytest.raises(InvalidReference, match=f"chatgpt:{raw} or claude:{raw}"):
        work.chat.get_by_reference(raw)


@pytest.mark.parametrize(
    "reference", ["", "prices", ":", "chatgpt:", ":a", " : ", "a:\0", "a:\ud800"]
)
def test_a_reference_that_names_nothing_is_refused(work: UnitOfWork, reference: str) -> None:
    """The message says what would."""
    with pytest.raises(InvalidReference, match="SOURCE_TYPE:SOURCE_ID"):
        work.chat.get_by_reference(reference)


@pytest.mark.parametrize("unwritable", ["a\0b", "x\ud800"])
def test_what_no_text_can_hold_names_no_conversation(work: UnitOfWork, unwritable: str) -> None:
    """Neither where it is looked for nor where one is begun or lists are narrowed."""
    for attempt in (
        lambda: work.chat.find_by_source("chatgpt", unwritable),
        lambda: work.chat.find_by_source(unwritable, "a"),
        lambda: work.chat.create(source_type=unwritable),
        lambda: work.chat.create(source_type="chatgpt", source_id=unwritable),
        lambda: work.chat.count(source_type=unwritable),
    ):
        with pytest.raises(InvalidValue, match="no text can hold"):
            attempt()


def test_a_source_has_each_conversation_once(database: Database) -> None:
    """The second is refused, in words."""

    def twice() -> None:
        with database.unit_of_work() as work:
            work.chat.create(source_type="chatgpt", source_id="a")
            work.chat.create(source_type="chatgpt", source_id="a")

    with pytest.raises(AlreadyExists, match="this source_id is stored already"):
        twice()


def test_a_conversation_is_renamed_saved_and_unsaved(work: UnitOfWork) -> None:
    """The call returns what is stored, the time of the change included."""
    made = ConversationFactory(updated_at=NEW_YEAR)

    renamed = work.chat.rename(made.id, "Prices")
    saved = work.chat.save(made.id)

    assert renamed is saved is made
    assert (made.title, made.is_saved) == ("Prices", True)
    assert made.updated_at > NEW_YEAR
    assert work.chat.unsave(made.id).is_saved is False


@pytest.mark.parametrize("change", ["rename", "save", "unsave", "delete"])
def test_what_does_not_exist_is_not_changed(work: UnitOfWork, change: str) -> None:
    """Silence would look like success."""
    arguments = [uuid4(), "title"] if change == "rename" else [uuid4()]

    with pytest.raises(NotFound):
        getattr(work.chat, change)(*arguments)


def test_a_deleted_conversation_takes_its_messages_along(
    session: Session, work: UnitOfWork
) -> None:
    """And their vectors; other conversations stay."""
    made = MessageEmbeddingFactory()
    other = MessageFactory()
    gone = session.get_one(models.Message, made.message_id).conversation_id

    work.chat.delete(gone)

    assert session.scalars(select(models.Message.id)).all() == [other.id]
    assert session.scalar(select(func.count()).select_from(models.MessageEmbedding)) == 0


def test_the_archive_is_cleared(work: UnitOfWork) -> None:
    """The call returns the number of conversations that there were."""
    MessageFactory()
    MessageFactory()

    assert work.chat.clear() == 2
    assert work.chat.count() == 0


def test_messages_are_not_read_by_accident(work: UnitOfWork) -> None:
    """A relation that nobody asked for is an error, not a statement per row."""
    made = MessageFactory()
    conversation = work.chat.get(made.conversation_id)

    with pytest.raises(InvalidRequestError, match="raise"):
        _ = conversation.messages


def test_what_is_appended_stands_at_the_end(work: UnitOfWork) -> None:
    """The position is the database's; the embedding is enqueued by the same statement."""
    conversation = work.chat.create()

    first = work.chat.append(conversation.id, role="user", content="How much?")
    second = work.chat.append(
        conversation.id,
        role="assistant",
        content="A lot.",
        details={"model": "gpt-4o"},
        created_at=NEW_YEAR.replace(tzinfo=None),
    )

    assert (first.branch, first.position, first.version, first.details) == (0, 0, 1, {})
    assert (second.position, second.details) == (1, {"model": "gpt-4o"})
    assert second.created_at == NEW_YEAR
    jobs = work.session.scalars(select(models.Job).where(models.Job.kind == "embed")).all()
    assert {job.payload["item"] for job in jobs} == {str(first.id), str(second.id)}


def test_appending_is_activity(work: UnitOfWork) -> None:
    """A conversation that goes on is the newest by its last change."""
    old, new = (
        ConversationFactory(updated_at=NEW_YEAR),
        ConversationFactory(updated_at=NEW_YEAR + DAY),
    )
    before = work.chat.list_conversations(order="updated").items

    work.chat.append(old.id, role="user", content="One more thing.")

    assert before == (new, old)
    assert work.chat.list_conversations(order="updated").items == (old, new)


def test_nothing_is_appended_to_what_does_not_exist(work: UnitOfWork) -> None:
    """The key is named."""
    with pytest.raises(NotFound, match=str(UUID(int=7))):
        work.chat.append(UUID(int=7), role="user", content="Hello?")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"role": "robot"}, "user, assistant, system or tool"),
        ({"content": "  "}, "must not be empty"),
        ({"content": "\n\t "}, "must not be empty"),
        ({"content": "a\0b"}, "no text can hold"),
        ({"content": "\ud83d"}, "no text can hold"),
        ({"details": {"a": "\0"}}, "Unicode"),
        ({"details": {"a": object()}}, "details must be a JSON object"),
        ({"details": {"a": float("nan")}}, "json"),
        ({"details": ["a"]}, "details must be a JSON object"),
    ],
)
def test_a_bad_message_is_refused_in_words(
    database: Database, values: dict[str, str], says: str
) -> None:
    """Nothing of the transaction is kept."""
    message = {"role": "user", "content": "Hello."} | values

    def speak() -> None:
        with database.unit_of_work() as work:
            work.chat.append(work.chat.create().id, **message)

    with pytest.raises(InvalidValue, match=says):
        speak()
    with database.unit_of_work() as work:
        assert work.chat.count() == 0


def test_appending_at_once_gives_each_a_place_of_its_own(database: Database) -> None:
    """Eight threads, one conversation: no position twice, none left out, all in order of commit."""
    with database.unit_of_work() as work:
        conversation = work.chat.create().id
        work.commit()

    def speak(thread: int) -> list[int]:
        said = []
        for n in range(10):
            with database.unit_of_work() as work:
                message = work.chat.append(conversation, role="user", content=f"{thread}, {n}")
                work.commit()
            said.append(message.position)
        return said

    with ThreadPoolExecutor(8) as threads:
        positions = list(threads.map(speak, range(8)))

    assert sorted(itertools.chain(*positions)) == list(range(80))
    assert all(said == sorted(said) for said in positions)
    with database.unit_of_work() as work:
        stored = work.messages.list_messages(conversation)
    assert [each.position for each in stored] == list(range(80))


def test_appending_is_awaited_under_asyncio(database: Database) -> None:
    """The same repositories, through the asynchronous unit of work."""

    async def speak() -> tuple[int, int]:
        async with database.async_unit_of_work() as work:
            conversation = await work.run(lambda sync: sync.chat.create("Prices"))
            message = await work.run(
                lambda sync: sync.chat.append(conversation.id, role="user", content="How much?")
            )
            page = await work.run(lambda sync: sync.chat.list_summaries())
            await work.commit()
        await database.aclose()
        return message.position, page.items[0].message_count

    assert asyncio.run(speak()) == (0, 1)


@pytest.mark.parametrize("order", ["created", "updated"])
def test_pages_join_to_the_whole_list(work: UnitOfWork, order: ConversationOrder) -> None:
    """Newest first; those of the same moment are neither repeated nor left out."""
    for number in range(11):
        moment = NEW_YEAR + DAY * (number // 4)
        ConversationFactory(created_at=moment, updated_at=moment)
    whole = work.chat.list_conversations(order=order)
    paged, cursor, pages = [], None, 0
    while pages == 0 or cursor:
        page = work.chat.list_conversations(order=order, limit=3, cursor=cursor)
        paged += page.items
        cursor, pages = page.next_cursor, pages + 1

    assert (len(whole.items), whole.next_cursor, pages) == (11, None, 4)
    assert tuple(paged) == whole.items
    times = [each.created_at for each in paged]
    assert times == sorted(times, reverse=True)


def test_what_comes_in_meanwhile_moves_no_page(work: UnitOfWork) -> None:
    """An offset would show the last conversation of the first page again."""
    for number in range(4):
        ConversationFactory(title=str(number), created_at=NEW_YEAR + DAY * number)
    first = work.chat.list_summaries(limit=2)
    ConversationFactory(created_at=NEW_YEAR + DAY * 9)

    second = work.chat.list_summaries(limit=2, cursor=first.next_cursor)

    assert [each.title for each in (*first.items, *second.items)] == ["3", "2", "1", "0"]


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({}, "abc"),
        ({"source_type": "claude"}, "b"),
        ({"saved": True}, "c"),
        ({"saved": False}, "ab"),
        ({"since": NEW_YEAR + DAY}, "bc"),
        ({"before": (NEW_YEAR + DAY).replace(tzinfo=None)}, "a"),
        ({"since": NEW_YEAR, "before": NEW_YEAR + 2 * DAY, "saved": False}, "ab"),
        ({"source_type": "nowhere"}, ""),
        ({"source_type": None, "saved": None}, "abc"),
    ],
)
def test_filters_narrow_lists_and_counts_alike(
    work: UnitOfWork, filters: ConversationFilters, kept: str
) -> None:
    """By source, by being saved, by when it began."""
    ConversationFactory(title="a", created_at=NEW_YEAR)
    ConversationFactory(title="b", created_at=NEW_YEAR + DAY, source_type="claude")
    ConversationFactory(title="c", created_at=NEW_YEAR + 2 * DAY, is_saved=True)

    listed = work.chat.list_conversations(**filters).items
    summaries = work.chat.list_summaries(**filters).items

    assert "".join(sorted(each.title for each in listed)) == kept
    assert [each.id for each in summaries] == [each.id for each in listed]
    assert work.chat.count(**filters) == len(kept)


@pytest.mark.parametrize("listing", ["list_conversations", "list_summaries", "count"])
def test_a_filter_that_does_not_exist_is_refused(work: UnitOfWork, listing: str) -> None:
    """Rather than everything listed; the message names those there are."""
    with pytest.raises(UnknownFilter, match=r"no filter role; known: before, saved, since, source"):
        getattr(work.chat, listing)(role="user")


def test_an_order_that_does_not_exist_is_refused(work: UnitOfWork) -> None:
    """On the first page already; the message names those there are."""
    with pytest.raises(InvalidValue, match="known: created, updated"):
        work.chat.list_summaries(order="title")  # type: ignore[arg-type]


def test_saved_conversations_are_listed(work: UnitOfWork) -> None:
    """Page by page, like all."""
    saved = [ConversationFactory(is_saved=True, created_at=NEW_YEAR + DAY * n) for n in range(3)]
    ConversationFactory()

    first = work.chat.list_saved(limit=2)
    second = work.chat.list_saved(limit=2, cursor=first.next_cursor)

    assert [*first.items, *second.items] == saved[::-1]


def cursors(work: UnitOfWork) -> Iterator[str]:
    """Cursors that are none of the list by ``created``."""
    cursor = work.chat.list_conversations(limit=1).next_cursor or ""
    yield from ("", "x", "é", "=" * 9, cursor[:-1], cursor + "A", cursor + "=", " " + cursor)
    yield cursor[:20] + ("A" if cursor[20] != "A" else "B") + cursor[21:]
    yield work.chat.list_conversations(order="updated", limit=1).next_cursor or ""
    yield work.chat.list_conversations(limit=1, source_type="native").next_cursor or ""


def test_a_cursor_that_is_none_of_the_list_is_refused(work: UnitOfWork) -> None:
    """Changed, cut off, made up, or of another order or filter: never silently another page."""
    ConversationFactory()
    ConversationFactory()

    tried = list(cursors(work))
    for cursor in tried:
        with pytest.raises(InvalidCursor, match="begin again"):
            work.chat.list_conversations(cursor=cursor)
    assert len(tried) == 11


@pytest.mark.parametrize("limit", [0, -1, 1001])
def test_a_page_has_one_to_a_thousand_rows(work: UnitOfWork, limit: int) -> None:
    """Any other number is refused before the database sees it."""
    with pytest.raises(InvalidValue, match="1 to 1000"):
        work.chat.list_summaries(limit=limit)


def test_a_summary_is_of_the_main_branch(work: UnitOfWork) -> None:
    """It has the count, the times and the beginning of its messages, abandoned ones left out."""
    spoken = ConversationFactory(title="Prices")
    MessageFactory(conversation=spoken, role="system", content="Be brief.", created_at=NEW_YEAR)
    MessageFactory(conversation=spoken, content="p" * 300, created_at=NEW_YEAR + DAY)
    MessageFactory(
        conversation=spoken, branch=1, position=1, content="Else.", created_at=NEW_YEAR + 5 * DAY
    )
    silent = ConversationFactory()

    found = work.chat.summarize([spoken.id, silent.id, uuid4()])

    assert found.keys() == {spoken.id, silent.id}
    summary = found[spoken.id]
    assert (summary.title, summary.message_count, summary.preview) == ("Prices", 2, "p" * 200)
    assert (summary.first_message_at, summary.last_message_at) == (NEW_YEAR, NEW_YEAR + DAY)
    empty = found[silent.id]
    assert (empty.message_count, empty.last_message_at, empty.preview) == (0, None, "")


def test_statistics_count_the_archive(work: UnitOfWork) -> None:
    """By source, role and day in UTC; per conversation; on disk; and what has vectors."""
    long = ConversationFactory(source_type="chatgpt", is_saved=True)
    evening = datetime(2025, 1, 1, 23, tzinfo=timezone(timedelta(hours=-5)))  # the 2nd in UTC
    for role in ("user", "assistant", "user"):
        MessageFactory(conversation=long, role=role, created_at=NEW_YEAR)
    MessageFactory(conversation=long, branch=1, position=1, role="tool", created_at=evening)
    MessageFactory(conversation__source_type="claude", created_at=NEW_YEAR - 9 * DAY)
    ConversationFactory(source_type="claude")

    found = work.chat.statistics(since=NEW_YEAR)

    assert (found.conversations, found.saved, found.messages) == (3, 1, 5)
    assert list(found.conversations_by_source.items()) == [("claude", 2), ("chatgpt", 1)]
    assert found.messages_by_source == {"chatgpt": 4, "claude": 1}
    assert found.messages_by_role == {"user": 3, "assistant": 1, "tool": 1}
    assert found.messages_by_day == {date(2025, 1, 1): 3, date(2025, 1, 2): 1}
    spoken = found.messages_per_conversation
    assert (spoken.minimum, spoken.median, spoken.maximum) == (0, 1, 3)
    assert spoken.mean == pytest.approx(4 / 3)
    assert spoken.p95 == pytest.approx(2.8)
    assert found.storage_bytes.tables > 0
    assert found.storage_bytes.indexes > 0
    assert found.storage_bytes.toast > 0
    assert (found.coverage.total, found.coverage.embedded, found.coverage.percent) == (5, 0, 0)


def test_statistics_of_nothing_are_zeros(work: UnitOfWork) -> None:
    """An empty archive is no error."""
    found = work.chat.statistics()

    assert (found.conversations, found.messages, found.messages_by_day) == (0, 0, {})
    assert found.messages_per_conversation.p95 == 0
    assert (found.coverage.total, found.coverage.percent) == (0, 100)


def test_storage_is_what_postgresql_says_of_the_tables(session: Session, work: UnitOfWork) -> None:
    """The three figures sum to the tables' whole size."""
    found = work.chat.statistics().storage_bytes
    whole = session.scalar(
        text(
            "SELECT CAST(sum(pg_total_relation_size(name::regclass)) AS bigint) FROM"
            " unnest(ARRAY['conversations', 'messages', 'message_embeddings']) AS name"
        )
    )

    assert found.tables + found.indexes + found.toast == whole


@pytest.fixture(scope="module")
def archive(databases: Databases, hosted: URL) -> Iterator[Database]:
    """5,000 conversations of 20 messages each. No test commits a change."""
    with databases.opened(hosted.database or "", owner=hosted) as database:
        superuser = create_engine(databases.superuser_of(database.url))  # leaves triggers out
        with superuser.begin() as connection:
            for statement in FILL:
                connection.execute(text(statement))
        superuser.dispose()
        yield database


@pytest.mark.parametrize(
    ("order", "index"),
    [("created", "idx_conversations_created_at"), ("updated", "idx_conversations_updated_at")],
)
def test_a_page_of_summaries_reads_what_it_shows(
    archive: Database, order: ConversationOrder, index: str
) -> None:
    """The first and later ones of 100,000 messages: indexes give the order and the messages."""
    with archive.unit_of_work() as work:
        first = work.chat.list_summaries(order=order, limit=50)
        later = plan_of(
            work, lambda: work.chat.list_summaries(order=order, cursor=first.next_cursor)
        )
        start = plan_of(work, lambda: work.chat.list_summaries(order=order, limit=50))
        far = plan_of(work, lambda: work.chat.list_summaries(order=order, offset=4000))

    assert len(first.items) == 50
    for plan in (start, later, far):
        assert index in str(plan)
        assert not scans(plan, "conversations")
        assert not scans(plan, "messages")
        assert plan["Actual Rows"] == 51
        # 51 conversations of 20 messages, which the view reads twice, and the indexes
        assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 3000


@pytest.mark.parametrize("filters", [{"source_type": "claude"}, {"saved": True}])
def test_a_narrowed_page_uses_an_index_too(archive: Database, filters: ConversationFilters) -> None:
    """However far it has to pass over what the filter refuses, messages are read for the page."""
    with archive.unit_of_work() as work:
        page = work.chat.list_summaries(**filters)
        plan = plan_of(work, lambda: work.chat.list_summaries(**filters))

    assert len(page.items) == 50
    assert not scans(plan, "messages")
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 3000


def test_summaries_of_hits_are_looked_up_by_key(archive: Database) -> None:
    """A page of hits needs those of its conversations, not all."""
    with archive.unit_of_work() as work:
        keys = [each.id for each in work.chat.list_summaries(limit=10).items]
        plan = plan_of(work, lambda: work.chat.summarize(keys))

    assert "pk_conversations" in str(plan)
    assert not scans(plan, "messages")


def test_a_page_of_messages_reads_what_it_shows(archive: Database) -> None:
    """By the index that keeps positions unique, from the cursor on."""
    with archive.unit_of_work() as work:
        conversation = work.chat.list_conversations(limit=1).items[0].id
        first = work.messages.list_page(conversation, limit=5)
        plan = plan_of(
            work,
            lambda: work.messages.list_page(conversation, limit=5, cursor=first.next_cursor),
        )

    assert "uq_messages_conversation_id_branch_position" in str(plan)
    assert not scans(plan, "messages")
    assert plan["Actual Rows"] == 6
