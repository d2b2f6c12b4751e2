"""pgcorpus import: files in, and what became of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal

import typer

from db.engine import Database
from services.cli.output import AsJson, cut, fail, print_json, progress_bar, say, table
from services.importers.chat.candidates import ChatFormat
from services.importers.chat.importer import ChatImporter
from services.importers.conflicts import OnConflict
from services.importers.importer import Importer
from services.importers.knowledge import KnowledgeImporter
from services.importers.language import AUTO, NAMES
from services.importers.report import COUNTS, FileReport, ImportReport, Skipped
from services.importers.rules import DEFAULT_LANGUAGE

app = typer.Typer(
    help="Import files; see what was changed, and try again what was rejected.",
    no_args_is_help=True,
)

MAX_SHOWN = 50
VALUE_CHARACTERS = 60


Imported = Annotated[
    Literal["knowledge", "chat"], typer.Option("--corpus", "-c", help="Of which corpus.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Reject what would have to be changed.")]
OnConflictOption = Annotated[
    OnConflict,
    typer.Option(
        "--on-conflict", help="What becomes of a stored chunk_id that comes with another text."
    ),
]


def language_name(value: str) -> str:
    """A language that rows can be stored in, or ``auto``; for ``--language``."""
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
def retry(
    corpus: Imported = "knowledge",
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
        typer.Option(help="Only those of this chunk_id, or conversation by its provider's id."),
    ] = None,
    file: Annotated[str | None, typer.Option(help="Only those of this file.")] = None,
    rule: Annotated[str | None, typer.Option(help="Only those by this rule.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = MAX_SHOWN,
    as_json: AsJson = False,
) -> None:
    """Show every change that imports made to a value, the newest first."""
    importer = ChatImporter if corpus == "chat" else KnowledgeImporter
    changes = importer(Database.from_env()).history(item=item, file=file, rule=rule, limit=limit)
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
    """What became of every file, then every reject."""
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
        corpus = "knowledge" if report.messages is None else "chat"
        more = len(report.rejects) - MAX_SHOWN
        say(f"and {more} more: pgcorpus import rejects --corpus {corpus}")
    for reason, files in groupby(sorted(report.skipped, key=_reason), _reason):
        places = [" ".join(filter(None, (each.file, each.locator))) for each in files]
        say(f"skipped {len(places)} ({places[0]}{', ...' if len(places) > 1 else ''}): {reason}")
    if report.messages is not None:
        say(f"{report.messages} messages were written")
    if report.embedded:
        say(f"{report.embedded} vectors came along")


def show_left_out(report: ImportReport) -> None:
    """Vectors that came along and were not stored, by reason; on stderr, beside JSON too."""
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
    """Files by name and what they are in, a zip or a folder; whole where that is not enough."""
    ends = [_end(each.file) for each in files]
    return ends if len(set(ends)) == len(ends) else [each.file for each in files]


def _end(file: str) -> str:
    return str(Path(*Path(file).parts[-2:]))


def _reason(skipped: Skipped) -> str:
    return skipped.reason


def _short(value: object) -> str:
    return cut(json.dumps(value, ensure_ascii=False), VALUE_CHARACTERS)
