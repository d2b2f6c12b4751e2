"""pgcorpus health."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pgcorpus.services.cli.output import AsJson, print_json, put, say, table

if TYPE_CHECKING:
    from pgcorpus.services.ops.health import Health


TIME_LIMIT_SECONDS = 3.0
"""The time for all checks. The rest of 5 s is for Python, which takes a second or two to start."""

SHOWN: dict[str, str] = {"ok": "ok", "warning": "warning", "critical": "FAIL", "unknown": "?"}
WORDS: dict[str, str] = {
    "healthy": "healthy",
    "degraded": "degraded: searches are served, and something needs an operator now",
    "not_ready": "not ready: the database cannot serve searches now",
    "not_live": "not live: this process must be restarted",
}


def health(
    probe: Annotated[
        Literal["live", "ready"] | None,
        typer.Option(
            help="Only this: live looks at the process alone, ready also at whether searches can "
            "be served. By default every check is run."
        ),
    ] = None,
    writes: Annotated[
        bool, typer.Option("--writes", help="Ready means that the database takes writes, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Tell within 5 s whether the database can serve, and what needs an operator.

    The checks end within 3 s, also where the database is down or its connections stall; the rest
    is for Python to start.

    Exit code 0 if healthy, 1 if degraded, not ready or not live. Warnings, and what could not be
    seen, leave it 0. With --probe it is about that alone.

    Example: pgcorpus health --probe ready
    """
    from pgcorpus.db.engine import Database
    from pgcorpus.services.ops.health import HealthService

    if writes and probe == "live":
        raise typer.BadParameter(
            "it is about the database, which --probe live does not ask", param_hint="--writes"
        )
    service = HealthService(Database.from_env(), time_limit_seconds=TIME_LIMIT_SECONDS)
    match probe:
        case "live":
            found = service.check_liveness()
        case "ready":
            found = service.check_readiness(writes=writes)
        case _:
            found = service.check(writes=writes)
    if as_json:
        print_json(found.as_json())
    else:
        show(found)
    if found.verdict != "healthy":
        raise typer.Exit(1)


def show(found: Health) -> None:
    """Print the checks as a table, then the commands that help, and the verdict."""
    from pgcorpus.services.ops.health import NOT_REACHED

    table(
        "Health",
        ["", "about", "check", "what was found"],
        [
            (SHOWN[each.status], each.kind, each.check, each.detail)
            for each in found.checks
            if each.detail != NOT_REACHED
        ],
    )
    if left := [each.check for each in found.checks if each.detail == NOT_REACHED]:
        say(f"  {NOT_REACHED}: {', '.join(left)}")
    for each in found.checks:
        if each.remedy is not None:
            put(f"  {each.check}: {each.remedy}")
    say(f"{WORDS[found.verdict]} ({found.duration_ms:.0f} ms)")
