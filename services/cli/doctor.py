"""pgcorpus doctor."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import typer
from rich.text import Text

from pgcorpus.services.cli.output import AsJson, Verbose, out, print_json, put, say, visible

if TYPE_CHECKING:
    from pgcorpus.services.ops.doctor import Diagnosis


SHOWN: dict[str, str] = {"ok": "ok", "warning": "warning", "failure": "FAIL"}
STYLES: dict[str, str] = {"ok": "dim", "warning": "yellow", "failure": "bold red"}


def doctor(verbose: Verbose = False, as_json: AsJson = False) -> None:
    """Check that searches use their indexes, and print the SQL that mends them.

    Explains every kind of search of every corpus on the live database, without running any, and
    looks at indexes, statistics, versions and the role that is connected. Nothing is changed.

    Shows what is wrong; with --verbose also what is right. Exit code 1 if a check fails; warnings
    alone leave it 0.
    """
    from pgcorpus.db.engine import Database
    from pgcorpus.services.ops.doctor import DoctorService

    diagnosis = DoctorService(Database.from_env()).examine()
    if as_json:
        print_json(diagnosis.as_json())
    else:
        show(diagnosis, verbose=verbose)
    if not diagnosis.healthy:
        raise typer.Exit(1)


def show(diagnosis: Diagnosis, *, verbose: bool = False) -> None:
    """Print the findings, and after them the SQL that mends the faults, to be copied.

    Args:
        diagnosis: The findings.
        verbose: Print those that are no fault, too.
    """
    for each in diagnosis.findings:
        if each.status == "ok" and not verbose:
            continue
        what = " ".join(filter(None, (each.corpus, each.check, each.subject)))
        line = Text.assemble(
            (f"{SHOWN[each.status]:<8}", STYLES[each.status]), (visible(what), "bold")
        )
        out.print(line, overflow="fold")
        out.print(Text(f"        {visible(each.detail)}"), overflow="fold")
    if diagnosis.remedies:
        out.print("\nWhat mends it (SQL is for the owner of the tables, outside a transaction):\n")
        for remedy in diagnosis.remedies:
            put(remedy)
        out.print()
    count = Counter(finding.status for finding in diagnosis.findings)
    say(f"failures: {count['failure']}, warnings: {count['warning']}, ok: {count['ok']}")
    if count["ok"] and not verbose:
        say("what is ok is shown by: pgcorpus doctor -v")
