"""pgcorpus verify-isolation."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from db.engine import Database
from db.scope import APPLICATION_ROLE
from services.cli.output import AsJson, out, print_json, progress_bar, say, table
from services.ops.isolation import IsolationReport, IsolationService, Tried


def verify_isolation(
    role: Annotated[
        str,
        typer.Option("--as", metavar="ROLE", help="Who attacks: a group, or a service's login."),
    ] = APPLICATION_ROLE,
    as_json: AsJson = False,
) -> None:
    """Attack every scoped table and every search, and show that no row crosses between tenants.

    Two tenants and two people are made, in a transaction that is rolled back. Each tries to read,
    change and write what is another's, with every kind of statement, by every search, under their
    own name and under malformed ones; and nothing that others write may change what views,
    functions and statistics tell. Guards that are missing are told with the SQL that mends them.

    Log in as a superuser, or as a member of rag_admin that may become ROLE. What is tried is
    explained in docs/explanation/isolation.md.

    Exit code 1 if a row crosses, or a guard is missing.
    """
    service = IsolationService(Database.from_env())
    with progress_bar("attacking") as bar:
        task = bar.task_ids[0]

        def tell(what: str, done: int, total: int) -> None:
            bar.update(task, description=f"attacking {what}", completed=done, total=total)

        report = service.verify(role, tell)
    if as_json:
        print_json(report.as_json())
    else:
        show(report)
    if not report.isolated:
        raise typer.Exit(1)


def show(report: IsolationReport) -> None:
    """Attacks by kind and table, those on all else, the guards that are missing, and the sum."""
    tables = sorted({e.target for e in report.attacks if e.kind == "TRUNCATE"})
    grid = Table(title="Statements tried", title_justify="left", header_style="bold")
    grid.add_column("")
    for name in tables:
        grid.add_column(name, justify="right", overflow="fold")
    for kind in dict.fromkeys(each.kind for each in report.attacks if each.target in tables):
        of_kind = {each.target: each for each in report.attacks if each.kind == kind}
        grid.add_row(kind, *(_cell(of_kind.get(name)) for name in tables))
    out.print(grid)
    table(
        "Searches, views, functions and statistics",
        ["target", "kind", "tried", "crossed"],
        [
            (each.target, each.kind, each.tried, each.crossed)
            for each in report.attacks
            if each.target not in tables
        ],
    )
    missing = [each for each in report.layers if each.status != "ok"]
    if missing:
        table(
            "Guards that are missing",
            ["layer", "of", "what was found"],
            [(each.layer, each.subject, each.detail) for each in missing],
        )
        for remedy in dict.fromkeys(each.remedy for each in missing if each.remedy):
            out.print(remedy, markup=False, highlight=False, soft_wrap=True)
    for each in report.attacks:
        if each.crossed:
            say(f"CROSSED: {each.kind} on {each.target}, as {each.by}: {each.crossed} rows")
    say(
        f"as {report.role}: tried {report.tried:,}, crossed {report.crossed:,}; "
        f"guards: {len(report.layers) - len(missing)} stand, {len(missing)} are missing"
    )


def _cell(tried: Tried | None) -> Text:
    if tried is None:
        return Text("")
    if tried.crossed:
        return Text(f"{tried.crossed} of {tried.tried}", "bold red")
    return Text(str(tried.tried))
