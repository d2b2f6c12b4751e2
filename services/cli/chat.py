"""pgcorpus chat: the archive, looked at and kept in order."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from db.engine import Database
from db.models.chat import Conversation
from db.repositories.chat import Order
from db.repositories.pages import MAX_PAGE
from services.cli.output import AsJson, cut, out, print_json, say, table
from services.export.chat import ChatExporter, as_json

app = typer.Typer(help="Look through the chat archive.", no_args_is_help=True)

TITLE_CHARACTERS = 40
PREVIEW_CHARACTERS = 50
DATES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]

Reference = Annotated[
    str,
    typer.Argument(metavar="ID", help="A conversation's id, or SOURCE_TYPE:SOURCE_ID."),
]
Since = Annotated[
    datetime | None, typer.Option(formats=DATES, help="From then on, in UTC.", metavar="DATE")
]
Before = Annotated[
    datetime | None, typer.Option(formats=DATES, help="Until then, in UTC.", metavar="DATE")
]


@app.command("list")
def list_(
    source: Annotated[
        str | None, typer.Option(help="Only those from this source: chatgpt, claude, ...")
    ] = None,
    saved: Annotated[
        bool | None, typer.Option("--saved/--not-saved", help="Only those that are (not) saved.")
    ] = None,
    since: Since = None,
    before: Before = None,
    order: Annotated[
        Order, typer.Option(help="Newest first, by when they began or were last changed.")
    ] = "created",
    limit: Annotated[
        int, typer.Option(min=1, max=MAX_PAGE, help="Conversations on the page.")
    ] = 20,
    cursor: Annotated[
        str | None, typer.Option(help="Where to go on, as the page before said.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List conversations, newest first, page by page.

    Example: pgcorpus chat list --source chatgpt --since 2025-01-01
    """
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
        ["id", "began", "source", "", "messages", "title", "preview"],
        [
            (
                each.id,
                f"{each.created_at.astimezone(UTC):%Y-%m-%d}",
                each.source_type,
                "saved" if each.is_saved else "",
                each.message_count,
                cut(each.title, TITLE_CHARACTERS),
                cut(each.preview, PREVIEW_CHARACTERS),
            )
            for each in page.items
        ],
    )
    if page.next_cursor is not None:
        say(f"there are more: add --cursor {page.next_cursor}")


@app.command()
def show(reference: Reference, as_json_: AsJson = False) -> None:
    """Show a conversation: what was said, in order, and what was abandoned."""
    if as_json_:
        print_json(_whole(reference))
    else:
        typer.echo(ChatExporter(Database.from_env()).export(reference).text, nl=False)


@app.command()
def save(reference: Reference) -> None:
    """Put a conversation among the saved ones."""
    say(f"saved: {_name(_marked(reference, saved=True))}")


@app.command()
def unsave(reference: Reference) -> None:
    """Take a conversation out of the saved ones; it stays in the archive."""
    say(f"no longer saved: {_name(_marked(reference, saved=False))}")


@app.command()
def stats(since: Since = None, before: Before = None, as_json: AsJson = False) -> None:
    """Count the archive: by source, role and day, per conversation, on disk, with vectors."""
    with Database.from_env().unit_of_work() as work:
        found = work.chat.statistics(since=since, before=before)
    if as_json:
        days = {day.isoformat(): count for day, count in found.messages_by_day.items()}
        print_json(asdict(found) | {"messages_by_day": days})
        return
    spoken, disk, coverage = found.messages_per_conversation, found.storage_bytes, found.coverage
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
            (f"vectors of {coverage.model_name}", f"{coverage.percent:.1f} %"),
            ("  of older texts", f"{coverage.stale:,}"),
        ],
    )  # fmt: skip
    table(
        "Messages by day (UTC)",
        ["day", "messages"],
        [(day, f"{count:,}") for day, count in found.messages_by_day.items()],
    )
    if coverage.embedded < coverage.total:
        out.print("  make the missing vectors with: pgcorpus embed --corpus chat", highlight=False)


def _whole(reference: str) -> dict[str, Any]:
    with Database.from_env().unit_of_work() as work:
        conversation = work.chat.get_by_reference(reference)
        messages = work.messages.list_messages(conversation.id, branch=None)
    return as_json(conversation, messages)


def _marked(reference: str, *, saved: bool) -> Conversation:
    with Database.from_env().unit_of_work() as work:
        found = work.chat.get_by_reference(reference).id
        conversation = work.chat.save(found) if saved else work.chat.unsave(found)
        work.commit()
    return conversation


def _name(conversation: Conversation) -> str:
    return f"{cut(conversation.title, TITLE_CHARACTERS)} ({conversation.id})"


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"
