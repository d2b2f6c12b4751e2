"""pgcorpus chat: the archive, to look at and to keep in order."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from pgcorpus.db.choices import MAX_PAGE, ConversationOrder
from pgcorpus.db.text import count_of
from pgcorpus.services.cli.output import AsJson, cut, print_json, put, say, table, write

if TYPE_CHECKING:
    from pgcorpus.db.repositories.chat.conversations import ConversationSummary


app = typer.Typer(help="Look through the chat archive.", no_args_is_help=True)

TITLE_CHARACTERS = 40
DATES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]

Reference = Annotated[
    str,
    typer.Argument(metavar="ID", help="A conversation's id, or SOURCE_TYPE:SOURCE_ID."),
]
Since = Annotated[
    datetime | None,
    typer.Option(
        formats=DATES, help="Only conversations from this day on, in UTC.", metavar="DATE"
    ),
]
Before = Annotated[
    datetime | None,
    typer.Option(formats=DATES, help="Only conversations before this day, in UTC.", metavar="DATE"),
]


@app.command("list")
def list_(
    source: Annotated[
        str | None, typer.Option(help="Only conversations from this source: chatgpt, claude, ...")
    ] = None,
    saved: Annotated[
        bool | None,
        typer.Option("--saved/--not-saved", help="Only conversations that are (not) saved."),
    ] = None,
    since: Since = None,
    before: Before = None,
    order: Annotated[
        ConversationOrder,
        typer.Option(help="Newest first, by when they began or were last changed."),
    ] = "created",
    limit: Annotated[
        int, typer.Option(min=1, max=MAX_PAGE, help="Conversations on the page.")
    ] = 20,
    cursor: Annotated[
        str | None, typer.Option(help="The cursor that the page before ended with.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List conversations, newest first, page by page.

    Example: pgcorpus chat list --source chatgpt --since 2025-01-01
    """
    from pgcorpus.db.engine import Database

    with Database.from_env().unit_of_work() as work:
        page = work.chat.list_summaries(
            order=order,
            limit=limit,
            cursor=cursor,
            source_type=source,
            saved=saved,
            since=since,
            before=before,
        )
    if as_json:
        print_json(
            {
                "conversations": [asdict(each) for each in page.items],
                "next_cursor": page.next_cursor,
            }
        )
        return
    table(
        "Conversations",
        ["id", "began", "conversation"],
        [
            (
                each.id,
                f"{each.created_at.astimezone(UTC):%Y-%m-%d}",
                (
                    f"{cut(each.title or each.preview, TITLE_CHARACTERS)} ({each.source_type}, "
                    f"{count_of(each.message_count, 'message')}"
                    f"{', saved' if each.is_saved else ''})"
                ),
            )
            for each in page.items
        ],
    )
    if page.next_cursor is not None:
        say(f"there are more: add --cursor {page.next_cursor}")


@app.command()
def show(reference: Reference, as_json: AsJson = False) -> None:
    """Show a conversation: what was said, in order, and what was abandoned."""
    from pgcorpus.db.engine import Database
    from pgcorpus.services.chat.exporting.exporter import ChatExporter

    exported = ChatExporter(Database.from_env()).export(
        reference, "json" if as_json else "markdown"
    )
    write(exported.text)


@app.command()
def save(reference: Reference, as_json: AsJson = False) -> None:
    """Put a conversation among the saved ones."""
    _mark(reference, saved=True, as_json=as_json)


@app.command()
def unsave(reference: Reference, as_json: AsJson = False) -> None:
    """Take a conversation out of the saved ones; it stays in the archive."""
    _mark(reference, saved=False, as_json=as_json)


@app.command()
def stats(since: Since = None, before: Before = None, as_json: AsJson = False) -> None:
    """Count the archive: by source, role and day, per conversation, on disk, with vectors.

    Vectors are those of the model that the archive is set to and, where it has none and the offline
    model has, of that one too.
    """
    from pgcorpus.db.engine import Database
    from pgcorpus.db.repositories.chat.statistics import EmbeddingCoverage
    from pgcorpus.db.search.corpora import CHAT
    from pgcorpus.services.embedding.embed import advise_embedding, choose_counted

    database = Database.from_env()
    with database.unit_of_work() as work:
        found = work.chat.statistics(since=since, before=before)
        choice = choose_counted(work, CHAT)
        active = used = found.coverage
        if choice.name != active.model_name:
            used = EmbeddingCoverage.of(choice.name, work.embeddings.coverage(CHAT, choice.name))
    if as_json:
        days = {day.isoformat(): count for day, count in found.messages_by_day.items()}
        in_use = asdict(used) | {"reason": choice.reason}
        print_json(asdict(found) | {"messages_by_day": days, "coverage_in_use": in_use})
        return
    spoken, disk = found.messages_per_conversation, found.storage_bytes
    covered = [active] if used is active else [active, used]
    table(
        "Chat archive",
        ["", ""],
        [
            ("conversations", f"{found.conversations:,}"),
            ("  saved", f"{found.saved:,}"),
            *((f"  {name}", f"{n:,}") for name, n in found.conversations_by_source.items()),
            ("messages", f"{found.messages:,}"),
            *((f"  {name}", f"{n:,}") for name, n in found.messages_by_role.items()),
            ("messages per conversation", f"{spoken.mean:.1f} on average"),
            ("  least, median", f"{spoken.minimum:,}, {spoken.median:,.0f}"),
            ("  95 %, most", f"{spoken.p95:,.0f}, {spoken.maximum:,}"),
            ("tables, long values, indexes", ", ".join(
                _megabytes(size) for size in (disk.tables, disk.toast, disk.indexes)
            )),
            *(row for each in covered for row in (
                (f"vectors of {each.model_name}", f"{each.percent:.1f} %"),
                ("  of older texts", f"{each.stale:,}"),
            )),
        ],
    )  # fmt: skip
    table(
        "Messages by day (UTC)",
        ["day", "messages"],
        [(day, f"{count:,}") for day, count in found.messages_by_day.items()],
    )
    if choice.reason:
        put(f"  {choice.reason}")
    if used.embedded < used.total:
        advice = advise_embedding(CHAT, choice.name, others=bool(used.embedded or used.stale))
        put(f"  make the missing vectors with: {advice}")


def _mark(reference: str, *, saved: bool, as_json: bool) -> None:
    from pgcorpus.db.engine import Database

    with Database.from_env().unit_of_work() as work:
        key = work.chat.get_by_reference(reference).id
        if saved:
            work.chat.save(key)
        else:
            work.chat.unsave(key)
        marked = work.chat.summarize([key])[key]
        work.commit()
    if as_json:
        print_json(asdict(marked))
    else:
        say(f"{'saved' if saved else 'no longer saved'}: {_name(marked)}")


def _name(conversation: ConversationSummary) -> str:
    return f"{cut(conversation.title, TITLE_CHARACTERS)} ({conversation.id})"


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"
