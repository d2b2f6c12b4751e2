"""pgcorpus memory: the memories of agents, for a person to look at and keep in order."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from uuid import UUID

import typer
from rich.text import Text

from pgcorpus.db.choices import (
    MAX_PAGE,
    NATIVE,
    TAGS,
    Complexity,
    ConversationMode,
    EmotionalValence,
    IntentType,
    Urgency,
)
from pgcorpus.db.text import count_of
from pgcorpus.services.choices import (
    BOOST,
    LIKENESS,
    MAX_CONTEXT_TOKENS,
    MAX_HALF_LIFE_DAYS,
    MAX_LIMIT,
    Handling,
    Mode,
)
from pgcorpus.services.cli.hits import could_not_answer
from pgcorpus.services.cli.output import (
    AsJson,
    cut,
    fail,
    out,
    print_json,
    progress_bar,
    say,
    table,
    visible,
    write,
)
from pgcorpus.services.cli.scope import TenantId, UserId, require_scope, uuid_of
from pgcorpus.services.cli.search import read_filters

if TYPE_CHECKING:
    from pgcorpus.services.memory.options import Choosing, EpisodeDetails
    from pgcorpus.services.memory.records import Episode, Erasure, Memory


app = typer.Typer(
    help="Agents' memories: of a tenant, or of a user without one.", no_args_is_help=True
)
episodes = typer.Typer(
    help="Episodes: whole conversations with summary and outcome.", no_args_is_help=True
)
app.add_typer(episodes, name="episodes")

STDIN: Final = "-"
DATES: Final = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]
TEXT_CHARACTERS: Final = 60

Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="mem_... or ep_...")]
MemoryId = Annotated[str, typer.Argument(metavar="ID", help="mem_...")]
EpisodeId = Annotated[str, typer.Argument(metavar="ID", help="ep_...")]
Filters = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        metavar="NAME=VALUE",
        help="A filter as of pgcorpus search: NAME=A,B any of them, NAME=A..B a range, NAME= no "
        "value. For memories source, date, conversation, topic, entity, intent_type, urgency, ...",
    ),
]
Noise = Annotated[bool, typer.Option("--include-noise", help="Include memories of no cluster.")]
Touch = Annotated[bool, typer.Option("--touch/--no-touch", help="Count what is shown as recalled.")]


@app.command()
def remember(
    human: Annotated[
        str, typer.Argument(metavar="TEXT", help="The words of the human; - reads them from stdin.")
    ],
    answer: Annotated[str, typer.Option(help="The answer of the assistant.")] = "",
    tenant_id: TenantId = None,
    user_id: UserId = None,
    conversation: Annotated[
        str, typer.Option(metavar="ID", help="The conversation it belongs to.")
    ] = "notes",
    place: Annotated[
        int | None,
        typer.Option(min=0, help="The number of the exchange, from 0; by default the next one."),
    ] = None,
    source: Annotated[
        str, typer.Option(help="The provider of the assistant: openai, anthropic, ...")
    ] = NATIVE,
    at: Annotated[
        datetime | None,
        typer.Option(
            formats=DATES, metavar="DATE", help="Time when it was said, in UTC; by default now."
        ),
    ] = None,
    intent: Annotated[IntentType | None, typer.Option(help="The intent of the human.")] = None,
    complexity: Annotated[Complexity | None, typer.Option()] = None,
    depth: Annotated[int | None, typer.Option(min=0, max=10, help="Technical depth.")] = None,
    valence: Annotated[EmotionalValence | None, typer.Option(help="The mood.")] = None,
    urgency: Annotated[Urgency | None, typer.Option()] = None,
    mode: Annotated[
        ConversationMode | None, typer.Option(help="The mode of the conversation.")
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND=NAME", help=f"KIND is one of {', '.join(TAGS)}."),
    ] = None,
    duplicates: Annotated[
        Handling,
        typer.Option(
            help="Policy where a memory says the same: link keeps both, merge one, refuse "
            "is an error, keep does not look."
        ),
    ] = "link",
    threshold: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Cosine from which on two say the same; more than 0."),
    ] = LIKENESS,
    as_json: AsJson = False,
) -> None:
    """Remember an exchange, so that it is recalled from the next question on.

    Example: pgcorpus memory remember "We deploy on Tuesdays." --user-id UUID --tag topics=deploys
    """
    from pgcorpus.db.engine import Database
    from pgcorpus.db.errors import InvalidValue
    from pgcorpus.db.repositories.memory.nodes import Exchange
    from pgcorpus.services.memory.remembering import Duplicates
    from pgcorpus.services.memory.service import MemoryService

    database = Database.from_env()
    scope = require_scope(database, tenant_id, user_id)
    try:
        Duplicates(handling=duplicates, threshold=threshold)
        exchange = Exchange(
            human=_read_stdin() if human == STDIN else human,
            assistant=answer,
            conversation_id=conversation,
            sequence_index=place,
            source=source,
            created_at=at,
            intent_type=intent,
            complexity=complexity,
            technical_depth=depth,
            emotional_valence=valence,
            urgency=urgency,
            conversation_mode=mode,
            tags=_read_tags(tag or []),
        )
    except InvalidValue as error:
        raise typer.BadParameter(str(error)) from error
    (kept,) = MemoryService(database).remember_many(
        [exchange], scope=scope, duplicates=duplicates, threshold=threshold
    )
    if as_json:
        print_json(asdict(kept))
        return
    alike = "" if kept.similarity is None else f" (similarity {kept.similarity:.3f})"
    like = {
        "new": "remembered",
        "same": "remembered before",
        "merged": f"merged into an older memory{alike}",
        "linked": f"remembered, and linked to {kept.like}{alike}",
    }[kept.outcome]
    say(f"{kept.id}: {like}")
    if kept.note:
        say(f"  note: {kept.note}")


@app.command()
def recall(
    question: Annotated[
        str, typer.Argument(help='Words, "a phrase", -word, or: the grammar of web searches.')
    ],
    tenant_id: TenantId = None,
    user_id: UserId = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_LIMIT, help="Memories, at most.")] = 10,
    mode: Annotated[Mode, typer.Option(help="The legs to search with.")] = "hybrid",
    narrow: Filters = None,
    boost: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of its score by which a fresh or often recalled memory rises, at most.",
        ),
    ] = BOOST,
    half_life_days: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=MAX_HALF_LIFE_DAYS,
            help="Days after which the freshness of a memory is halved; more than 0.",
        ),
    ] = 30.0,
    include_noise: Noise = False,
    touch: Touch = True,
    as_json: AsJson = False,
) -> None:
    """Find the memories that answer a question best, the fresh and often recalled first.

    The exit code is 1 where nothing was found and a leg failed, timed out or had no vectors.

    Example: pgcorpus memory recall "when do we deploy?" --user-id UUID --filter urgency=high
    """
    from pgcorpus.db.engine import Database
    from pgcorpus.services.memory.service import MemoryService

    database = Database.from_env()
    service = MemoryService(database)
    found = service.recall(
        question,
        scope=require_scope(database, tenant_id, user_id),
        limit=limit,
        mode=mode,
        filters=read_filters(narrow or []),
        boost=boost,
        half_life_days=half_life_days,
        include_noise=include_noise,
        touch=touch,
    )
    service.flush()  # the command may end before the thread would
    if as_json:
        print_json(found.as_json())
    else:
        _show_memories(question, found.memories)
        for leg in found.page.legs:
            if leg.reason:
                say(f"  {leg.name}: {leg.status} ({leg.reason})")
        if found.page.note:
            say(f"  note: {found.page.note}")
    if not found.memories and any(map(could_not_answer, found.page.legs)):
        raise typer.Exit(1)


@app.command()
def context(
    question: Annotated[str, typer.Argument(help="The question that a model is to answer.")],
    tenant_id: TenantId = None,
    user_id: UserId = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, max=MAX_CONTEXT_TOKENS, help="Tokens of the text, at most.")
    ] = 2000,
    memories: Annotated[
        int, typer.Option(min=1, max=MAX_LIMIT, help="Memories that are looked for.")
    ] = 20,
    told: Annotated[
        int, typer.Option("--episodes", min=1, max=MAX_LIMIT, help="Episodes that are looked for.")
    ] = 3,
    narrow: Filters = None,
    include_noise: Noise = False,
    touch: Touch = True,
    as_json: AsJson = False,
) -> None:
    """Tell memories and the episodes around them as a text for a prompt, each with its source.

    The text alone is on stdout.

    Example: pgcorpus memory context "when do we deploy?" --tenant-id UUID --max-tokens 500
    """
    from pgcorpus.db.engine import Database
    from pgcorpus.services.memory.service import MemoryService

    database = Database.from_env()
    service = MemoryService(database)
    found = service.context(
        question,
        scope=require_scope(database, tenant_id, user_id),
        max_tokens=max_tokens,
        memories=memories,
        episodes=told,
        filters=read_filters(narrow or []),
        include_noise=include_noise,
        touch=touch,
    )
    service.flush()  # the command may end before the thread would
    if as_json:
        print_json(found.as_json())
    else:
        if found.text:
            write(f"{found.text}\n")
        say(f"about {found.tokens} tokens")
        if found.note:
            say(f"note: {found.note}")
    if not found.parts and any(could_not_answer(leg) for page in found.pages for leg in page.legs):
        raise typer.Exit(1)


@app.command()
def show(
    memory_id: MemoryId,
    tenant_id: TenantId = None,
    user_id: UserId = None,
    as_json: AsJson = False,
) -> None:
    """Show all there is to know of one memory, and the episodes that it is part of."""
    from pgcorpus.db.engine import Database
    from pgcorpus.services.memory.service import MemoryService

    database = Database.from_env()
    scope = require_scope(database, tenant_id, user_id)
    service = MemoryService(database)
    fields = asdict(service.get(memory_id, scope=scope))
    del fields["score"]
    fields["episode_ids"] = [each.id for each in service.episodes_of(memory_id, scope=scope)]
    if as_json:
        print_json(fields)
    else:
        table(memory_id, ["", ""], list(fields.items()))


@app.command()
def touch(
    ids: Ids, tenant_id: TenantId = None, user_id: UserId = None, as_json: AsJson = False
) -> None:
    """Count memories and episodes as recalled. The exit code is 1 where one is not there."""
    from pgcorpus.db.engine import Database
    from pgcorpus.services.memory.service import MemoryService

    given = tuple(dict.fromkeys(ids))
    database = Database.from_env()
    scope = require_scope(database, tenant_id, user_id)
    touched = MemoryService(database).touch(given, scope=scope)
    if as_json:
        print_json({"touched": touched})
    else:
        say(f"{touched} touched")
    if touched < len(given):
        fail(f"{len(given) - touched} of them are not in this scope")
        raise typer.Exit(1)


@app.command()
def forget(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID...]", help="mem_... or ep_...")
    ] = None,
    tenant_id: TenantId = None,
    user_id: UserId = None,
    narrow: Filters = None,
    corpus: Annotated[
        Literal["memory", "episodes"], typer.Option(help="The kind that the filters select.")
    ] = "memory",
    everything: Annotated[
        bool, typer.Option("--everything", help="All memories and episodes of the scope.")
    ] = False,
    all_of: Annotated[
        str | None,
        typer.Option(
            "--all-of", metavar="UUID", help="All that this user wrote, of a tenant or alone."
        ),
    ] = None,
    account: Annotated[
        bool, typer.Option("--account", help="With --all-of: the user's own row, too.")
    ] = False,
    with_episodes: Annotated[
        bool,
        typer.Option(
            "--with-episodes",
            help="Episodes that were made of the memories, too, whoever made them: they may quote "
            "them.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and forget nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Erase memories and episodes with their vectors and jobs, for good.

    What is to be forgotten is counted first, and asked for. A filter also finds what a search hides
    by default. Ctrl-C leaves whole memories; the same command goes on. The exit code is 1 where an
    id is not there.

    Examples:
    pgcorpus memory forget mem_0123456789abcdef --user-id UUID --with-episodes

    pgcorpus memory forget --filter source=openai --filter date=..2024-01-01 --tenant-id UUID

    pgcorpus memory forget --all-of UUID --account --tenant-id UUID
    """
    from pgcorpus.db.engine import Database
    from pgcorpus.services.memory.service import MemoryService

    user, database = uuid_of(all_of), Database.from_env()
    scope = require_scope(database, tenant_id, user_id)
    choosing: Choosing = {
        **_choose(ids or [], read_filters(narrow or []), everything, user),
        "corpus": corpus,
        "with_episodes": with_episodes,
    }
    if account and user is None:
        raise typer.BadParameter("--account goes with --all-of")
    service = MemoryService(database)
    forget_it: Callable[..., Erasure] = (
        partial(service.forget, scope=scope, **choosing)
        if user is None
        else partial(
            service.forget_user, user, scope=scope, account=account, with_episodes=with_episodes
        )
    )
    erasure = forget_it(dry_run=True)
    nothing = not (erasure.memories or erasure.episodes or erasure.user)
    if not (yes or dry_run or nothing):
        typer.confirm(f"Forget {_format_counts(erasure)} for good?", abort=True, err=True)
    if nothing:  # nor is what may have come since: nobody was asked for that
        erasure = replace(erasure, dry_run=dry_run)
    elif not dry_run:
        with progress_bar("forgetting") as bar:
            bar.update(bar.task_ids[0], total=erasure.memories + erasure.episodes)
            erasure = forget_it(on_progress=partial(bar.advance, bar.task_ids[0]))
    if as_json:
        print_json(asdict(erasure))
    elif nothing:
        say("there is nothing to forget")
    else:
        say(f"{_format_counts(erasure)} {'would be forgotten' if dry_run else 'forgotten'}")
        if erasure.told_by:
            say(
                f"  note: they may still be quoted by {', '.join(erasure.told_by)}; to forget "
                "these: pgcorpus memory forget ID..."
            )
    if erasure.missing:
        fail(f"not in this scope: {', '.join(erasure.missing)}")
        raise typer.Exit(1)


@episodes.command("list")
def list_(
    tenant_id: TenantId = None,
    user_id: UserId = None,
    narrow: Filters = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_PAGE, help="Episodes on the page.")] = 20,
    cursor: Annotated[
        str | None, typer.Option(help="The cursor that the page before ended with.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List episodes, those that began last first, page by page.

    Example: pgcorpus memory episodes list --tenant-id UUID --filter outcome=Solved.
    """
    from pgcorpus.db.engine import Database
    from pgcorpus.services.memory.service import MemoryService

    database = Database.from_env()
    page = MemoryService(database).episodes(
        scope=require_scope(database, tenant_id, user_id),
        filters=read_filters(narrow or []),
        limit=limit,
        cursor=cursor,
    )
    if as_json:
        print_json(
            {"episodes": [_fields(each) for each in page.items], "next_cursor": page.next_cursor}
        )
        return
    _show_episodes("Episodes", page.items)
    if page.next_cursor is not None:
        say(f"there are more: add --cursor {page.next_cursor}")


@episodes.command("show")
def show_episode(
    episode_id: EpisodeId,
    tenant_id: TenantId = None,
    user_id: UserId = None,
    as_json: AsJson = False,
) -> None:
    """Show what was said in an episode, what came of it, and which others have to do with it."""
    from pgcorpus.db.engine import Database
    from pgcorpus.services.memory.service import MemoryService

    database = Database.from_env()
    scope = require_scope(database, tenant_id, user_id)
    service = MemoryService(database)
    episode = service.episode(episode_id, scope=scope)
    related = service.related_episodes(episode_id, scope=scope)
    if as_json:
        print_json(_fields(episode) | {"related": [each.id for each in related]})
        return
    fields = _fields(episode)
    content = fields.pop("content")
    table(episode.title or episode.id, ["", ""], list(fields.items()))
    out.print(Text(visible(content)))
    if related:
        _show_episodes("Related", related)


@episodes.command("store")
def store(
    conversation: Annotated[
        str,
        typer.Argument(
            metavar="CONVERSATION",
            help="The conversation of the memories that the episode is made of.",
        ),
    ],
    tenant_id: TenantId = None,
    user_id: UserId = None,
    title: Annotated[str, typer.Option(help="The subject of the conversation.")] = "",
    summary: Annotated[str | None, typer.Option(help="A summary, in a few words.")] = None,
    outcome: Annotated[str | None, typer.Option(help="The outcome.")] = None,
    named: Annotated[
        str | None,
        typer.Option(
            "--id", metavar="ID", help="ep_...; by default one of the conversation's, for all."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make an episode of a conversation's memories; again, it is replaced by who made it.

    An episode of another user of the tenant stays theirs: yours needs an --id of its own.

    Example: pgcorpus memory episodes store notes --user-id UUID --title "How we deploy"
    """
    from pgcorpus.db.engine import Database
    from pgcorpus.services.memory.service import MemoryService

    if named is not None and not named.startswith("ep_"):
        raise typer.BadParameter(f"an id begins with ep_, unlike {named!r}", param_hint="--id")
    said = {"summary": summary, "outcome": outcome}
    details: EpisodeDetails = {
        "id": named,
        "title": title,
        "llm_tags": {key: value for key, value in said.items() if value is not None},
    }
    database = Database.from_env()
    episode = MemoryService(database).store_episode(
        conversation, scope=require_scope(database, tenant_id, user_id), **details
    )
    if as_json:
        print_json(_fields(episode))
    else:
        say(
            f"{episode.id}: {count_of(episode.message_count, 'message')}, "
            f"{count_of(len(episode.memory_ids), 'memory', 'memories')}"
        )


def _read_stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"stdin is not text in UTF-8: {error.reason}") from error


def _choose(
    ids: list[str], filters: dict[str, Any], everything: bool, all_of: UUID | None
) -> Choosing:
    """Return the choice of what to forget, if it is one; of a user's account it is everything."""
    if [bool(ids), bool(filters), everything, all_of is not None].count(True) != 1:
        raise typer.BadParameter("give exactly one of: ids, --filter, --everything, --all-of")
    if ids:
        return {"ids": ids}
    return {"filters": filters} if filters else {"everything": True}


def _read_tags(pairs: list[str]) -> dict[str, list[str]]:
    tags: dict[str, list[str]] = {}
    for pair in pairs:
        kind, equals, name = pair.partition("=")
        if kind not in TAGS or not equals or not name:
            raise typer.BadParameter(
                f"{pair!r} is not KIND=NAME with one of {', '.join(TAGS)}", param_hint="--tag"
            )
        tags.setdefault(kind, []).append(name)
    return tags


def _show_memories(title: str, memories: tuple[Memory, ...]) -> None:
    table(
        title,
        ["id", "score", "said", "conversation", "memory"],
        [
            (
                each.id,
                f"{each.score:.4f}" if each.score is not None else "",
                _day(each.created_at),
                f"{each.conversation_id} #{each.sequence_index}",
                cut(f"{each.human} → {each.assistant}".rstrip(" →"), TEXT_CHARACTERS),
            )
            for each in memories
        ],
    )


def _show_episodes(title: str, shown: tuple[Episode, ...]) -> None:
    table(
        title,
        ["id", "began", "episode"],
        [
            (
                each.id,
                _day(each.created_at),
                (
                    f"{cut(each.title or each.content, TEXT_CHARACTERS)} ({each.source}, "
                    f"{count_of(each.message_count, 'message')})"
                ),
            )
            for each in shown
        ],
    )


def _fields(episode: Episode) -> dict[str, Any]:
    fields = asdict(episode)
    del fields["score"]
    return fields


def _format_counts(erasure: Erasure) -> str:
    told = [
        f"{number} {one if number == 1 else several}"
        for number, one, several in (
            (erasure.memories, "memory", "memories"),
            (erasure.episodes, "episode", "episodes"),
        )
    ]
    return " and ".join([*told, *(["the user"] if erasure.user else [])])


def _day(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d}"
