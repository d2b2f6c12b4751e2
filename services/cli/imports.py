"""pgcorpus import: files in, and what became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from inspect import Parameter
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgcorpus.db.text import count_of
from pgcorpus.services.cli.derive import (
    AS_JSON,
    build_command,
    corpus_option,
    flag_of,
    flow,
    parameter,
    parameter_of,
)
from pgcorpus.services.cli.output import (
    AsJson,
    Limit,
    cut_json,
    fail,
    print_json,
    progress_bar,
    say,
    table,
)
from pgcorpus.services.cli.scope import read_scope, scope_parameters
from pgcorpus.services.corpora import SERVICES
from pgcorpus.services.corpus import CorpusServices, ImportService, Paths, RetryService

if TYPE_CHECKING:
    from pgcorpus.db.models.imports import ImportTransformation
    from pgcorpus.services.importers.importer import Importer, R
    from pgcorpus.services.importers.report import Changed, FileReport, ImportReport, Skipped


MAX_SHOWN = 50
MAX_FILES = 20
MAX_GROUPS = 10
VALUE_CHARACTERS = 60

IMPORTED = [name for name, each in SERVICES.items() if each.importer is not None]
Imported = Annotated[str, corpus_option(IMPORTED)]


def make_app(services: Iterable[CorpusServices]) -> typer.Typer:
    """Make the command, with one below it for each corpus that has an importer."""
    app = typer.Typer(
        help="Import files; see what was changed, and try again what was rejected.",
        no_args_is_help=True,
    )
    retries = {}
    for each in services:
        name = each.name
        if each.importer is not None:
            command = build_import(each, each.importer)
            app.command(name, help=flow(each.importer.help))(command)
        if each.retry is not None:
            retries[name] = each.retry
    if retries:
        about = "Try rejected items of a corpus again, from what was kept of them."
        app.command("retry", help=about)(build_retry(retries))
    app.command()(history)
    app.command()(rejects)
    return app


def build_import(services: CorpusServices, service: ImportService) -> Callable[..., None]:
    """Build the command that imports files into a corpus, perhaps for a tenant or a user."""

    def run(*, as_json: bool, **given: Any) -> None:
        from pgcorpus.db.engine import Database

        scope = read_scope(services, given)
        paths = read_paths(service.paths, given)
        options = {option.name: given[option.name] for option in service.options}
        report = import_with_bar(service.make(Database.from_env(), *scope, **options), paths)
        finish(report, as_json, dry_run=given.get("dry_run", False))

    scope = scope_parameters(services.scoping)
    options = map(parameter_of, service.options)
    first, *other = list_path_parameters(service.paths)
    return build_command(run, first, *scope, *other, *options, AS_JSON)


def list_path_parameters(paths: Paths) -> Iterator[Parameter]:
    """Yield the parameters that name the files of an import."""
    kind: Any = list[Path]
    about = paths.help
    default: Any = Parameter.empty
    if paths.default is not None:
        kind, about, default = list[Path] | None, f"{paths.help} By default {paths.default}.", None
    argument = typer.Argument(metavar=paths.metavar, help=about, show_default=False)
    yield parameter("paths", Annotated[kind, argument], default)
    if paths.flag is not None:
        option = typer.Option(paths.flag, metavar="DIR", help="Another way to name one.")
        yield parameter("named", Annotated[Path | None, option])


def read_paths(paths: Paths, given: Mapping[str, Any]) -> Sequence[Path]:
    """Read the files of an import.

    Raises:
        BadParameter: They are named in two ways.
    """
    named = given.get("named")
    if given["paths"] and named is not None:
        raise typer.BadParameter("the folder is given twice; name it once", param_hint=paths.flag)
    return given["paths"] or [named or paths.default]


def import_with_bar(importer: Importer[R], paths: Sequence[Path]) -> R:
    """Import under a progress bar."""
    with progress_bar("importing") as bar:
        task = bar.task_ids[0]
        return importer.run(
            paths,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            on_build=lambda: bar.add_task("building the indexes", total=None),
        )


def build_retry(services: Mapping[str, RetryService]) -> Callable[..., None]:
    """Build the command that tries again what was rejected of one of several corpora."""
    options = {option.name: option for each in services.values() for option in each.options}

    def run(*, corpus: str, as_json: bool, **given: Any) -> None:
        from pgcorpus.db.engine import Database

        service = services[corpus]
        taken = {option.name for option in service.options}
        for name, option in options.items():
            if name not in taken and given.pop(name) != option.default:
                reason = service.refused.get(name, f"{corpus} has no such option")
                raise typer.BadParameter(reason, param_hint=flag_of(option))
        finish(service.make(Database.from_env(), **given).retry(), as_json)

    known = corpus_option(services, " Of others nothing is kept: mend the file and import it.")
    corpus = parameter("corpus", Annotated[str, known], next(iter(services)))
    return build_command(run, corpus, *map(parameter_of, options.values()), AS_JSON)


def history(
    corpus: Imported = IMPORTED[0],
    item: Annotated[
        str | None,
        typer.Option(
            help="Only entries of this item, by its id in the file: a chunk_id, for example."
        ),
    ] = None,
    file: Annotated[str | None, typer.Option(help="Only entries of this file.")] = None,
    rule: Annotated[str | None, typer.Option(help="Only entries of this rule.")] = None,
    limit: Limit = MAX_SHOWN,
    as_json: AsJson = False,
) -> None:
    """Show every change that imports made to a value, the newest first."""
    from pgcorpus.db.engine import Database
    from pgcorpus.services.importers.files import key_of

    file = None if file is None else key_of(Path(file))
    with Database.from_env().unit_of_work() as work:
        changes = work.imports.list_changes(corpus, item=item, file=file, rule=rule, limit=limit)
    shown = ("id", "file", "locator", "item", "field", "original", "stored", "rule", "created_at")
    if as_json:
        print_json([{name: getattr(change, name) for name in shown} for change in changes])
        return
    show_changes(f"The newest {count_of(len(changes), 'change')}", changes)


def rejects(
    corpus: Imported = IMPORTED[0],
    limit: Limit = MAX_SHOWN,
    as_json: AsJson = False,
) -> None:
    """Show what was rejected and still is not imported."""
    from pgcorpus.db.engine import Database

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
            [
                (r["file"], r["locator"], r["reason"], cut_json(r["payload"], VALUE_CHARACTERS))
                for r in found
            ],
        )


def show_changes(title: str, changes: Iterable[ImportTransformation | Changed]) -> None:
    """Print changes of values, each in a row."""
    table(
        title,
        ["item", "field", "original", "stored", "rule", "where"],
        [
            (
                change.item,
                change.field,
                cut_json(change.original, VALUE_CHARACTERS),
                cut_json(change.stored, VALUE_CHARACTERS),
                change.rule,
                f"{_end(change.file)} {change.locator}",
            )
            for change in changes
        ],
    )


def show_report(report: ImportReport, *, dry_run: bool = False) -> None:
    """Print the counts of the files that changed most, then what was refused.

    Of a dry run also what it would change: nothing of it can be read anywhere else.
    """
    _show_counts(report)
    _show_refused(report, dry_run=dry_run)
    if report.changes:
        show_changes("Values that would be changed", report.changes[:MAX_SHOWN])
    if len(report.changes) > MAX_SHOWN:
        say(f"and {count_of(len(report.changes) - MAX_SHOWN, 'more change')}; see: --json")
    for reason, files in groupby(sorted(report.skipped, key=_reason), _reason):
        places = [" ".join(filter(None, (each.file, each.locator))) for each in files]
        say(f"skipped {len(places)} ({places[0]}{', ...' if len(places) > 1 else ''}): {reason}")
    for each in report.list_breakdowns():
        ranked = Counter[object](each.counts).most_common()
        if others := sum(count for _, count in ranked[MAX_GROUPS:]):
            ranked[MAX_GROUPS:] = [(f"{len(ranked) - MAX_GROUPS} others", others)]
        if ranked:
            title = f"{each.passages.capitalize()} by {each.feature}"
            table(title, [each.feature, each.passages], ranked)
    for remark in report.list_remarks():
        say(remark)


def _show_refused(report: ImportReport, *, dry_run: bool) -> None:
    """Print the first files and passages that did not go in, and where the others are listed."""
    failed = [file for file in report.files if file.error is not None]
    for file in failed[:MAX_SHOWN]:
        fail(f"{file.file}: {file.error}")
    if len(failed) > MAX_SHOWN:
        more = count_of(len(failed) - MAX_SHOWN, "more file")
        say(f"and {more} that could not be imported; see: --json")
    for reject in report.rejects[:MAX_SHOWN]:
        fail(f"{reject.file} {reject.locator}: {reject.reason}")
    if len(report.rejects) > MAX_SHOWN:
        others = len(report.rejects) - MAX_SHOWN
        whole = "--json" if dry_run else f"pgcorpus import rejects --corpus {report.corpus}"
        say(f"and {others} more; see: {whole}")


def _show_counts(report: ImportReport) -> None:
    """Print the counts of the files that were read; of none there is nothing to count."""
    from pgcorpus.services.importers.report import COUNTS

    if any(file.error is None for file in report.files):
        table("Import", ["file", *COUNTS], list_counts(report))


def list_counts(report: ImportReport) -> list[tuple[object, ...]]:
    """Return the counts of the files with most changes in their order, of the others, and of all.

    Args:
        report: Its files with an error are left out, but for those of which something went in
            before it.
    """
    from pgcorpus.services.importers.report import COUNTS

    files = [file for file in report.files if file.error is None or file.counts.total()]
    shown = files
    if len(files) > MAX_FILES:
        changed = sorted(files, key=_count_changes, reverse=True)[:MAX_FILES]
        kept = {id(file) for file in changed}
        shown = [file for file in files if id(file) in kept]
    rows: list[tuple[object, ...]] = [
        (name, *(file.counts[count] for count in COUNTS))
        for name, file in zip(_names(shown), shown, strict=True)
    ]
    if others := len(files) - len(shown):
        sums = (report.total(count) - sum(file.counts[count] for file in shown) for count in COUNTS)
        rows.append((f"{others} others", *sums))
    return [*rows, ("all", *(report.total(count) for count in COUNTS))]


def show_left_out(report: ImportReport) -> None:
    """Print the vectors that came along and were not stored, by reason.

    They are printed on stderr, beside JSON, too.
    """
    for reason, vectors in report.left_out.items():
        say(f"{count_of(vectors, 'vector was', 'vectors were')} not stored: {reason}")


def finish(report: ImportReport, as_json: bool, *, dry_run: bool = False) -> None:
    """Show what an import did, and fail where something did not go in."""
    if as_json:
        changes = {"changes": [asdict(each) for each in report.changes]}
        print_json(report.as_json() | (changes if dry_run else {}))
    else:
        show_report(report, dry_run=dry_run)
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


def _count_changes(file: FileReport) -> int:
    from pgcorpus.services.importers.report import COUNTS

    return sum(file.counts[count] for count in COUNTS if count != "unchanged")


def _reason(skipped: Skipped) -> str:
    return skipped.reason


app = make_app(SERVICES.values())
