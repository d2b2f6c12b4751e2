"""pgcorpus export."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from pgcorpus.services.cli.derive import AS_JSON, build_command, flow, parameter, parameter_of
from pgcorpus.services.cli.output import fail, print_json, progress_bar, say, write
from pgcorpus.services.cli.scope import read_scope, scope_parameters
from pgcorpus.services.corpora import SERVICES
from pgcorpus.services.corpus import CorpusServices, Exported, ExportService, FileExportService

OUTPUT = parameter(
    "output",
    Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="A file, replaced once the export is whole, or a folder, where files are named by "
            "their titles. By default stdout.",
        ),
    ],
)


def make_app(services: Iterable[CorpusServices]) -> typer.Typer:
    """Make the command, with one below it for each corpus that has an exporter."""
    app = typer.Typer(help="Write a corpus to files.", no_args_is_help=True)
    for each in services:
        if each.exporter is not None:
            command = (
                build_export(each.exporter)
                if isinstance(each.exporter, ExportService)
                else build_file_export(each, each.exporter)
            )
            app.command(each.name, help=flow(each.exporter.help))(command)
    return app


def build_export(service: ExportService) -> Callable[..., None]:
    """Build the command that exports one item of a corpus."""

    def run(*, reference: str, output: Path | None, to: str) -> None:
        from pgcorpus.db.engine import Database

        exported = service.make(Database.from_env()).export(reference, to)
        if output is None:
            write(exported.text)
        else:
            save(exported, output)

    argument = Annotated[str, typer.Argument(metavar="ID", help=service.reference)]
    reference = parameter("reference", argument, Parameter.empty)
    return build_command(run, reference, parameter_of(service.format), OUTPUT)


def build_file_export(services: CorpusServices, service: FileExportService) -> Callable[..., None]:
    """Build the command that writes a part of a corpus as one file."""

    def run(*, path: Path, as_json: bool, **given: Any) -> None:
        from pgcorpus.db.engine import Database

        scope = read_scope(services, given)
        options = {option.name: given[option.name] for option in service.options}
        exporter = service.make(Database.from_env(), *scope, **options)
        with progress_bar("exporting") as bar:
            task = bar.task_ids[0]

            def tell(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            counts = exporter.write(path, progress=tell).count_rows()
        if as_json:
            print_json({"file": str(path), **counts})
        else:
            told = ", ".join(f"{count} {name}" for name, count in counts.items())
            say(f"exported {told} to {path}")

    argument = typer.Argument(metavar=service.metavar, help=service.path)
    path = parameter("path", Annotated[Path, argument], Parameter.empty)
    return build_command(
        run, path, *scope_parameters(services.scoping), *map(parameter_of, service.options), AS_JSON
    )


def save(exported: Exported, output: Path) -> None:
    """Write an export into a file, or into a folder under a name of its own."""
    path = output / exported.file_name if output.is_dir() else output
    try:
        _replace(path, exported.text)
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror}; name another place with --output")
        raise typer.Exit(1) from error
    say(f"exported to {path}")


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all: stopped in the middle, what was there is there."""
    if path.exists() and not path.is_file():  # a pipe or a device, which cannot be replaced
        path.write_text(text, encoding="utf-8")
        return
    path = path.resolve()  # what a link leads to is replaced, not the link
    unfinished = path.with_name(f".{os.getpid()}.part")
    try:
        unfinished.write_text(text, encoding="utf-8", newline="")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


app = make_app(SERVICES.values())
