"""pgcorpus verify-isolation."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Final

import typer

from pgcorpus.db.choices import APPLICATION_ROLE
from pgcorpus.services.choices import ISOLATION_TIME_LIMIT_SECONDS
from pgcorpus.services.cli.output import AsJson, print_json, progress_bar, put, say, table

if TYPE_CHECKING:
    from pgcorpus.services.ops.isolation import IsolationReport, Tried, Verdict


EXIT_CODES: Final[dict[Verdict, int]] = {"isolated": 0, "failed": 1, "incomplete": 3}


def verify_isolation(
    role: Annotated[
        str,
        typer.Option("--as", metavar="ROLE", help="The attacker: a group, or a service's login."),
    ] = APPLICATION_ROLE,
    time_limit: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0, help="Time after which nothing further is tried."),
    ] = ISOLATION_TIME_LIMIT_SECONDS,
    as_json: AsJson = False,
) -> None:
    """Attack every scoped table and every search: no row may cross between tenants.

    Two tenants and two people are made, in a transaction that is rolled back. Each tries to read,
    change and write what is another's, with every kind of statement, by every search, under their
    own name and under malformed ones; and nothing that others write may change what views,
    functions and statistics tell. Guards that are missing are told with the SQL that mends them.

    Log in as a superuser, or as a member of rag_admin that may become ROLE. What is tried is
    explained in docs/explanation/isolation.md. No table is read whole: how long it takes does not
    depend on how much is in them.

    Exit code 1 if a row crosses, or a guard is missing; 3 if neither, but time did not suffice for
    all attacks.
    """
    from pgcorpus.db.engine import Database
    from pgcorpus.services.ops.isolation import IsolationService

    service = IsolationService(Database.from_env())
    with ExitStack() as stack:
        bar = None if as_json else stack.enter_context(progress_bar("attacking"))

        def tell(what: str, done: int, total: int) -> None:
            if bar is not None:
                bar.update(bar.task_ids[0], description=what, completed=done, total=total)

        report = service.verify(role, tell, seconds=time_limit)
    if as_json:
        print_json(report.as_json())
    else:
        show(report)
    if code := EXIT_CODES[report.verdict]:
        raise typer.Exit(code)


def show(report: IsolationReport) -> None:
    """Print the attacks, the missing guards, the rows that crossed, and the sum."""
    targets: dict[str, list[Tried]] = {}
    for each in report.attacks:
        targets.setdefault(each.target, []).append(each)
    table(
        "Attacks",
        ["target", "by", "tried", "refused", "crossed", "not tried"],
        [
            (
                target,
                tried[0].kind if len(tried) == 1 else f"{len(tried)} kinds",
                *(
                    f"{sum(getattr(each, count) for each in tried):,}"
                    for count in ("tried", "refused", "crossed", "untried")
                ),
            )
            for target, tried in targets.items()
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
            put(remedy)
    for each in report.attacks:
        if each.crossed:
            what = "secrets" if each.kind.startswith("by ") else "rows"
            say(f"CROSSED: {each.kind} on {each.target}, as {each.by}: {each.crossed} {what}")
    for target, tried in targets.items():
        if left := [f"{each.kind} ({each.untried:,})" for each in tried if each.untried]:
            say(f"NOT TRIED, for lack of time: {target}: {', '.join(left)}")
    if report.untried:
        say("of these nothing is known; give them more time: --time-limit SECONDS")
    say(
        f"{report.verdict}: as {report.role}: tried {report.tried:,}, crossed {report.crossed:,}, "
        f"not tried {report.untried:,}; "
        f"guards: {len(report.layers) - len(missing)} stand, {len(missing)} are missing"
    )
