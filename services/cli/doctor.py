"""pgcorpus doctor."""

from __future__ import annotations

from collections import Counter

import typer

from pgcorpus.db.engine import Database
from pgcorpus.services.cli.output import AsJson, out, print_json, put, say, table
from pgcorpus.services.ops.doctor import Diagnosis, DoctorService

SHOWN: dict[str, str] = {"ok": "ok", "warning": "warning", "failure": "FAIL"}


def doctor(as_json: AsJson = False) -> None:
    """Check that searches use their indexes, and print the SQL that mends them.

    Explains every kind of search of every corpus on the live database, without running any, and
    looks at indexes, statistics, versions and the role that is connected. Nothing is changed.

    Exit code 1 if a check fails; warnings alone leave it 0.
    """
    diagnosis = DoctorService(Database.from_env()).examine()
    if as_json:
        print_json(diagnosis.as_json())
    else:
        show(diagnosis)
    if not diagnosis.healthy:
        raise typer.Exit(1)


def show(diagnosis: Diagnosis) -> None:
    """Print a diagnosis as a table, and after it the SQL that mends the faults, to be copied."""
    table(
        "Diagnosis",
        ["", "corpus", "check", "of", "what was found"],
        [
            (SHOWN[each.status], each.corpus, each.check, each.subject, each.detail)
            for each in diagnosis.findings
        ],
    )
    if diagnosis.remedies:
        out.print("\nWhat mends it (SQL is for the owner of the tables, outside a transaction):\n")
        for remedy in diagnosis.remedies:
            put(remedy)
        out.print()
    count = Counter(finding.status for finding in diagnosis.findings)
    say(f"failures: {count['failure']}, warnings: {count['warning']}, ok: {count['ok']}")
