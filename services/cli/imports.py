"""pgcorpus import: files in, and what became of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import SettingsError
from pgcorpus.db.models.memory import NOISE
from pgcorpus.db.scope import Scope
from pgcorpus.services.chat.importing.candidates import ChatFormat
from pgcorpus.services.chat.importing.importer import ChatImporter
from pgcorpus.services.cli.output import AsJson, cut, fail, print_json, progress_bar, say, table
from pgcorpus.services.cli.scope import TenantId, UserId, uuid_of
from pgcorpus.services.importers.files import key_of
from pgcorpus.services.importers.importer import Importer
from pgcorpus.services.importers.language import AUTO, DEFAULT_LANGUAGE, NAMES
from pgcorpus.services.importers.report import (
    COUNTS,
    FileReport,
    ImportReport,
    MemoryStatistics,
    Outcome,
    Skipped,
)
from pgcorpus.services.knowledge.conflicts import OnConflict
from pgcorpus.services.knowledge.importer import KnowledgeImporter
from pgcorpus.services.memory.importing.importer import MODEL, MemoryImporter
from pgcorpus.services.memory.importing.importer import OnConflict as MemoryConflict

app = typer.Typer(
    help="Import files; see what was changed, and try again what was rejected.",
    no_args_is_help=True,
)

DATA = Path("data")
MAX_SHOWN = 50
MAX_GROUPS = 10
VALUE_CHARACTERS = 60


Imported = Annotated[
    Literal["knowledge", "chat", "memory"], typer.Option("--corpus", "-c", help="Of which corpus.")
]
Kept = Annotated[
    Literal["knowledge", "chat"],
    typer.Option(
        "--corpus",
        "-c",
        help="Of which corpus. Of a rejected memory nothing is kept: mend its file and import it.",
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Reject what would have to be changed.")]
OnConflictOption = Annotated[
    OnConflict,
    typer.Option(
        "--on-conflict", help="What becomes of a stored chunk_id that comes with another text."
    ),
]


def language_name(value: str) -> str:
    """Check a language that rows can be stored in, or ``auto``; for ``--language``."""
    if value not in {AUTO, *NAMES}:
        raise typer.BadParameter(f"known: {', '.join((AUTO, *NAMES))}")
    return value


LanguageOption = Annotated[
    str,
    typer.Option(
        metavar="auto|NAME",
        callback=language_name,
        help="Text search configuration of what names no language; auto finds it for each chunk "
        "or message.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Report what would be done; write nothing.")
]


@app.command()
def knowledge(
    paths: Annotated[list[Path], typer.Argument(help="Files, or folders of .json files.")],
    strict: Strict = False,
    dry_run: DryRun = False,
    on_conflict: OnConflictOption = "reject",
    language: LanguageOption = DEFAULT_LANGUAGE,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            help="Vectors that come along: a JSON list of {chunk_id | document_id, model_name, "
            "embedding}, or .npy in the order of the chunks."
        ),
    ] = None,
    embeddings_model: Annotated[
        str | None, typer.Option(help="The model that made the vectors of an .npy file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Import chunk files into the knowledge base. Importing again changes nothing.

    Values that break a rule are made valid where docs/reference/import-rules.md says how, and each
    change is kept (pgcorpus import history). What cannot be made valid is rejected whole and kept
    (pgcorpus import rejects); the exit code is then 1.
    """
    importer = KnowledgeImporter(
        Database.from_env(),
        strict=strict,
        dry_run=dry_run,
        on_conflict=on_conflict,
        language=language,
        embeddings=embeddings,
        embeddings_model=embeddings_model,
    )
    _finish(import_with_bar(importer, paths), as_json, dry_run=dry_run)


@app.command()
def chat(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Exports (.json, .jsonl, .zip), folders of them, ChromaDB folders."),
    ],
    format: Annotated[  # noqa: A002 - as the option is called
        ChatFormat,
        typer.Option("--format", help="What to take; auto tells each conversation by its content."),
    ] = "auto",
    strict: Strict = False,
    dry_run: DryRun = False,
    language: LanguageOption = DEFAULT_LANGUAGE,
    embeddings_model: Annotated[
        str | None,
        typer.Option(help="The model that made the vectors of a ChromaDB store, if it is silent."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Import chats from ChatGPT, Claude, OpenWebUI, ChromaDB or pgcorpus; again, only what is new.

    A zip stays packed: give it as the provider sent it. A conversation is known by its identifier
    at its provider; messages that are the same keep their vectors, and what was saved or written
    here stays. Each change of a value is kept (pgcorpus import history --corpus chat). What cannot
    be read is rejected and kept (pgcorpus import rejects --corpus chat), and the exit code is 1;
    conversations in which nobody said anything are skipped. Stopped, the same command goes on.
    """
    importer = ChatImporter(
        Database.from_env(),
        format=format,
        strict=strict,
        dry_run=dry_run,
        language=language,
        embeddings_model=embeddings_model,
    )
    _finish(import_with_bar(importer, paths), as_json, dry_run=dry_run)


def import_with_bar(importer: Importer, paths: Sequence[Path]) -> ImportReport:
    """Import under a progress bar."""
    with progress_bar("importing") as bar:
        task = bar.task_ids[0]
        return importer.run(
            paths, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )


@app.command()
def memory(
    directory: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR",
            help="A folder with corpus/nodes.json, vectors/nodes.npy, corpus/episodes.json and "
            "vectors/episodes.npy; each is optional.  [default: data]",
            show_default=False,
        ),
    ] = None,
    user_id: UserId = None,
    tenant_id: TenantId = None,
    data_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Another way to name the folder.")
    ] = None,
    on_conflict: Annotated[
        MemoryConflict,
        typer.Option(
            help="What becomes of an id that is stored: skip leaves it, update makes it what the "
            "file says."
        ),
    ] = "skip",
    strict: Strict = False,
    dry_run: DryRun = False,
    language: LanguageOption = DEFAULT_LANGUAGE,
    embeddings_model: Annotated[str, typer.Option(help="The model that made the vectors.")] = MODEL,
    require_database_url: Annotated[
        bool,
        typer.Option("--require-database-url", help="Never use the embedded server."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Import an agent's memories for a user or a tenant; again, only what is new.

    All files are looked through before anything is written, and stay as they are. Vectors come
    along, so that nothing has to be embedded again. What breaks a rule is made valid where
    docs/reference/import-rules.md says how, or rejected (pgcorpus import rejects --corpus memory);
    the exit code is then 1. Stopped, the same command goes on.

    Example: pgcorpus import memory data --user-id 11111111-1111-1111-1111-111111111111
    """
    user, tenant = uuid_of(user_id), uuid_of(tenant_id)
    if user is None and tenant is None:
        raise typer.BadParameter(
            "whose memories are they? give --user-id or --tenant-id; see: pgcorpus users list, "
            "pgcorpus tenants list"
        )
    if directory is not None and data_dir is not None:
        raise typer.BadParameter("the folder is given twice", param_hint="--data-dir")
    database = Database.from_env()
    if require_database_url and database.settings.database_url is None:
        raise SettingsError(
            "DATABASE_URL environment variable not set: export "
            "DATABASE_URL=postgresql://user:password@host:port/database"
        )
    importer = MemoryImporter(
        database,
        Scope(tenant, user),
        on_conflict=on_conflict,
        strict=strict,
        dry_run=dry_run,
        language=language,
        embeddings_model=embeddings_model,
    )
    with progress_bar("importing") as bar:
        task = bar.task_ids[0]
        report = importer.run(
            [directory or data_dir or DATA],
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            on_build=lambda: bar.add_task("building the indexes", total=None),
        )
    _finish(report, as_json, dry_run=dry_run)


@app.command()
def retry(
    corpus: Kept = "knowledge",
    strict: Strict = False,
    on_conflict: OnConflictOption = "reject",
    language: LanguageOption = DEFAULT_LANGUAGE,
    as_json: AsJson = False,
) -> None:
    """Try the rejected chunks or conversations again, from what was kept of them."""
    database = Database.from_env()
    if corpus == "chat":
        if on_conflict != "reject":
            raise typer.BadParameter(
                "conversations have no conflicts: the newer wins", param_hint="--on-conflict"
            )
        chats = ChatImporter(database, strict=strict, language=language)
        _finish(chats.retry(), as_json)
        return
    chunks = KnowledgeImporter(database, strict=strict, on_conflict=on_conflict, language=language)
    _finish(chunks.retry(), as_json)


@app.command()
def history(
    corpus: Imported = "knowledge",
    item: Annotated[
        str | None,
        typer.Option(
            help="Only those of this chunk_id, memory, or conversation by its provider's id."
        ),
    ] = None,
    file: Annotated[str | None, typer.Option(help="Only those of this file.")] = None,
    rule: Annotated[str | None, typer.Option(help="Only those by this rule.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = MAX_SHOWN,
    as_json: AsJson = False,
) -> None:
    """Show every change that imports made to a value, the newest first."""
    file = None if file is None else key_of(Path(file))
    with Database.from_env().unit_of_work() as work:
        changes = work.imports.list_changes(corpus, item=item, file=file, rule=rule, limit=limit)
    shown = ("id", "file", "locator", "item", "field", "original", "stored", "rule", "created_at")
    if as_json:
        print_json([{name: getattr(change, name) for name in shown} for change in changes])
        return
    table(
        f"The newest {len(changes)} changes",
        ["item", "field", "original", "stored", "rule", "where"],
        [
            (
                change.item,
                change.field,
                _short(change.original),
                _short(change.stored),
                change.rule,
                f"{_end(change.file)} {change.locator}",
            )
            for change in changes
        ],
    )


@app.command()
def rejects(
    corpus: Imported = "knowledge",
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = MAX_SHOWN,
    as_json: AsJson = False,
) -> None:
    """Show what was rejected and still is not imported."""
    with Database.from_env().unit_of_work() as work:
        found = [
            {
                "file": reject.file,
                "locator": reject.locator,
                "reason": reject.reason,
                "payload": reject.payload,
            }
            for reject in work.imports.list_rejects(corpus, limit=limit)
        ]
    if as_json:
        print_json(found)
    else:
        table(
            f"{len(found)} rejected",
            ["file", "where", "reason", "payload"],
            [(r["file"], r["locator"], r["reason"], _short(r["payload"])) for r in found],
        )


def show_report(report: ImportReport) -> None:
    """Print the counts of every file, then every reject."""
    table(
        "Import",
        ["file", *COUNTS],
        [
            (name, *(getattr(file, count) for count in COUNTS))
            for name, file in zip(_names(report.files), report.files, strict=True)
            if file.error is None
        ]
        + [("all", *(report.total(count) for count in COUNTS))],
    )
    for file in report.files:
        if file.error is not None:
            fail(f"{file.file}: {file.error}")
    for reject in report.rejects[:MAX_SHOWN]:
        fail(f"{reject.file} {reject.locator}: {reject.reason}")
    if len(report.rejects) > MAX_SHOWN:
        chat = "knowledge" if report.messages is None else "chat"
        corpus = chat if report.memory is None else "memory"
        more = len(report.rejects) - MAX_SHOWN
        say(f"and {more} more: pgcorpus import rejects --corpus {corpus}")
    for reason, files in groupby(sorted(report.skipped, key=_reason), _reason):
        places = [" ".join(filter(None, (each.file, each.locator))) for each in files]
        say(f"skipped {len(places)} ({places[0]}{', ...' if len(places) > 1 else ''}): {reason}")
    if report.messages is not None:
        say(f"{report.messages} messages were written")
    if report.embedded:
        say(f"{report.embedded} vectors came along")
    if report.memory is not None:
        _show_memory(report, report.memory)


def _show_memory(report: ImportReport, found: MemoryStatistics) -> None:
    """Print the counts of memories, and why some of them were left alone."""
    for of, counts in (
        ("source", found.nodes_by_source),
        ("intent", found.nodes_by_intent),
        ("cluster", {_cluster(key): count for key, count in found.nodes_by_cluster.items()}),
    ):
        ranked = Counter[object](counts).most_common()
        if others := sum(count for _, count in ranked[MAX_GROUPS:]):
            ranked[MAX_GROUPS:] = [(f"{len(ranked) - MAX_GROUPS} others", others)]
        if ranked:
            table(f"Nodes by {of}", [of, "nodes"], ranked)
    for reason, count in found.left_alone.items():
        say(f"{count} left as they were: {reason}")
    for name, count in found.unknown_fields.most_common(MAX_GROUPS):
        say(f"the field {cut(name, VALUE_CHARACTERS)!r} is not stored; {count} records have it")
    records = sum(report.total(outcome) for outcome in get_args(Outcome))
    rate = records / found.duration_s if found.duration_s else 0
    say(f"{records} records in {found.duration_s:.1f} s, {rate:.0f}/s")


def _cluster(number: int | None) -> object:
    return {NOISE: "noise", None: "not clustered"}.get(number, number)


def show_left_out(report: ImportReport) -> None:
    """Print the vectors that came along and were not stored, by reason.

    On stderr, beside JSON too.
    """
    for reason, vectors in report.left_out.items():
        say(f"{vectors} vectors were not stored: {reason}")


def _finish(report: ImportReport, as_json: bool, *, dry_run: bool = False) -> None:
    if as_json:
        print_json(report.as_json())
    else:
        show_report(report)
    show_left_out(report)
    if dry_run:
        say("dry run: nothing was written")
    if report.failed:
        raise typer.Exit(1)


def _names(files: Sequence[FileReport]) -> list[str]:
    """Name files with the zip or folder they are in; in full where that is not enough."""
    ends = [_end(each.file) for each in files]
    return ends if len(set(ends)) == len(ends) else [each.file for each in files]


def _end(file: str) -> str:
    return str(Path(*Path(file).parts[-2:]))


def _reason(skipped: Skipped) -> str:
    return skipped.reason


def _short(value: object) -> str:
    return cut(json.dumps(value, ensure_ascii=False), VALUE_CHARACTERS)
