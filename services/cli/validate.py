"""pgcorpus validate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pgcorpus.db.text import count_of
from pgcorpus.services.cli.output import AsJson, out, print_json, say, table

if TYPE_CHECKING:
    from pgcorpus.services.ops.validation import ValidationReport


def validate(
    corpus: Annotated[str, typer.Argument(help="The corpus.")] = "knowledge",
    expected_chunks: Annotated[
        int | None,
        typer.Option(min=0, help="Passages that there must be, exactly."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The model of the vectors; by default the corpus's active one."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that a corpus is whole; exit code 1 if it is not."""
    from pgcorpus.db.engine import Database
    from pgcorpus.services.ops.validation import ValidationService

    report = ValidationService(Database.from_env()).validate(
        corpus, model=model, expected_chunks=expected_chunks
    )
    if as_json:
        print_json(report.as_json())
    else:
        show(report)
    if not report.passed:
        raise typer.Exit(1)


def show(report: ValidationReport) -> None:
    """Print a report as a table."""
    if report.reason:
        say(report.reason)
    table(
        "Validation",
        ["check", "", "expected", "found", "where"],
        [
            (check.name, "pass" if check.passed else "FAIL", check.expected, check.found,
             check.detail)
            for check in report.checks
        ],
    )  # fmt: skip
    failed = sum(not check.passed for check in report.checks)
    if failed:
        say(f"{failed} of {count_of(len(report.checks), 'check')} failed")
    else:
        out.print(f"all {count_of(len(report.checks), 'check')} passed")
