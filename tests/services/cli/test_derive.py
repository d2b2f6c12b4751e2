"""Commands are made from what the services of a corpus declare, in their order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import pytest
import typer
from typer.testing import CliRunner

from pgcorpus.db.engine import Database
from pgcorpus.db.scope import Scope
from pgcorpus.db.settings import Settings
from pgcorpus.services.chat.corpus import CHAT_SERVICES
from pgcorpus.services.cli import export, imports
from pgcorpus.services.corpora import SERVICES
from pgcorpus.services.corpus import (
    CorpusServices,
    Exported,
    ExportService,
    ImportService,
    Paths,
    RetryService,
)
from pgcorpus.services.importers.options import STRICT, Option
from pgcorpus.services.importers.report import FileReport, ImportReport, Reject
from pgcorpus.services.knowledge.corpus import KNOWLEDGE_SERVICES
from pgcorpus.services.memory.corpus import MEMORY_SERVICES

TENANT = "11111111-1111-1111-1111-111111111111"
QUEUE = Option(name="queue", kind=Literal["all", "open"], default="all", help="The tickets.")


class Tickets:
    """An importer and an exporter that note what they are asked."""

    asked: list[Any]

    def __init__(self, _database: Database, *scope: Any, **options: Any) -> None:
        self.asked.append((*scope, options))

    def run(self, paths: Sequence[Path], **_: Any) -> ImportReport:
        """Refuse one more than is shown."""
        self.asked.append(paths)
        refused = [Reject("a.json", f"$[{n}]", "closed") for n in range(imports.MAX_SHOWN + 1)]
        return ImportReport("tickets", [FileReport("a.json")], refused)

    def retry(self) -> ImportReport:
        """Refuse nothing."""
        return ImportReport("tickets")

    def export(self, reference: str, to: str) -> Exported:
        """Export what was asked."""
        return Exported(f"{reference} as {to}", "ticket.txt")


@pytest.fixture(autouse=True)
def _no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    Tickets.asked = []
    monkeypatch.setattr(Database, "from_env", classmethod(lambda _: None))


@pytest.fixture
def tickets() -> CorpusServices:
    """A corpus of an application, with all services."""
    return CorpusServices(
        name="tickets",
        importer=ImportService(
            make=Tickets,  # type: ignore[arg-type]
            help="Import tickets.\n\n    In two lines,\n    which flow.",
            paths=Paths(help="Files of tickets."),
            options=(QUEUE, STRICT),
        ),
        retry=RetryService(
            make=Tickets,  # type: ignore[arg-type]
            options=(STRICT,),
        ),
        exporter=ExportService(
            make=Tickets,
            help="Export a ticket.",
            reference="Its number.",
            format=Option(name="to", kind=str, default="text", flags=("--format",), help="How."),
        ),
    )


def names(app: typer.Typer) -> list[str | None]:
    """Names of the commands, in the order of the help; functions of that name have none."""
    return [each.name for each in app.registered_commands if each.name is not None]


def run(app: typer.Typer, *arguments: str) -> Any:
    """Run a command."""
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)


def test_the_order_of_the_corpora_is_that_of_the_help(tickets: CorpusServices) -> None:
    """Commands for all corpora stand behind those of one."""
    apps: Iterable[CorpusServices] = (tickets, *SERVICES.values())

    assert names(imports.make_app(apps)) == [
        *("tickets", "knowledge", "documentation", "chat", "memory", "retry")
    ]
    assert names(export.make_app((tickets, *SERVICES.values()))) == [
        *("tickets", "documentation", "chat", "memory")
    ]


def test_what_a_corpus_has_not_has_no_command(tickets: CorpusServices) -> None:
    """Neither an importer, nor an exporter, nor a way to try again."""
    bare = CorpusServices(name=tickets.name)

    assert names(export.make_app([KNOWLEDGE_SERVICES, bare])) == []
    assert names(imports.make_app([MEMORY_SERVICES, bare])) == ["memory"]


def test_an_import_takes_the_options_of_its_corpus_and_no_others(tickets: CorpusServices) -> None:
    """With their defaults; a flag has no opposite."""
    app = imports.make_app([tickets])

    run(app, "tickets", "a.json", "b.json", "--queue", "open")
    assert Tickets.asked == [
        ({"queue": "open", "strict": False},),
        [Path("a.json"), Path("b.json")],
    ]
    for wrong in (["--dry-run"], ["--no-strict"], ["--queue", "none"], ["--tenant-id", TENANT]):
        assert run(app, "tickets", "a.json", *wrong).exit_code == 2


def test_a_corpus_with_scopes_is_imported_into_one(tickets: CorpusServices) -> None:
    """The options that name it come from the corpus, not from its importer."""
    scoped = replace(tickets, scoping="required", retry=None)
    app = imports.make_app([scoped])

    assert "--user-id or --tenant-id" in run(app, "tickets", "a.json").stderr
    run(app, "tickets", "a.json", "--tenant-id", TENANT)
    assert str(Tickets.asked[0][0]) == f"tenant:{TENANT}"


def test_the_report_names_its_corpus(tickets: CorpusServices) -> None:
    """The report ends with the command that shows the rest of the rejects."""
    done = run(imports.make_app([tickets]), "tickets", "a.json")

    assert done.exit_code == 1
    assert "and 1 more; see: pgcorpus import rejects --corpus tickets" in done.stderr


def test_retry_takes_what_any_corpus_takes_and_refuses_what_the_asked_one_does_not(
    tickets: CorpusServices,
) -> None:
    """With the reason that the corpus gives, if it gives one."""
    app = imports.make_app([KNOWLEDGE_SERVICES, CHAT_SERVICES, tickets])

    for corpus, reason in (("chat", "the newer wins"), ("tickets", "tickets has no such option")):
        refused = run(app, "retry", "--corpus", corpus, "--on-conflict", "update")
        assert (refused.exit_code, reason in refused.stderr) == (2, True)
    assert run(app, "retry", "--corpus", "memory").exit_code == 2
    assert run(app, "retry", "--corpus", "tickets", "--strict").exit_code == 0
    assert Tickets.asked == [({"strict": True},)]


def test_an_export_takes_the_formats_of_its_corpus(tickets: CorpusServices, tmp_path: Path) -> None:
    """On stdout, or in a folder under the name that the exporter gives it."""
    app = export.make_app([tickets, CHAT_SERVICES])

    assert run(app, "tickets", "7").stdout == "7 as text"
    run(app, "tickets", "8", "--format", "wood", "--output", str(tmp_path))
    assert (tmp_path / "ticket.txt").read_text() == "8 as wood"


def test_help_flows(tickets: CorpusServices) -> None:
    """A paragraph is broken where the terminal ends, not where the source does."""
    shown = run(imports.make_app([tickets]), "tickets", "--help").stdout

    assert "In two lines, which flow." in shown
    assert "Files of tickets." in shown


@pytest.mark.parametrize("services", SERVICES.values(), ids=SERVICES)
def test_importers_take_the_options_that_are_declared(services: CorpusServices) -> None:
    """With the declared defaults, and fill the corpus that declares them."""
    database = Database(Settings(environment="test"))
    scope = [] if services.scoping == "none" else [Scope.tenant(UUID(TENANT))]

    for each in filter(None, (services.importer, services.retry)):
        importer = each.make(database, *scope, **{one.name: one.default for one in each.options})
        assert importer.corpus == services.name
