"""pgcorpus demo: all steps once, on the embedded server and the samples."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from pgcorpus.services.cli.embedding import embed_with_bar
from pgcorpus.services.cli.hits import show_context, show_page
from pgcorpus.services.cli.imports import import_with_bar, show_report
from pgcorpus.services.cli.output import out, say
from pgcorpus.services.cli.validate import show as show_validation

if TYPE_CHECKING:
    from pgcorpus.services.search.service import SearchOptions


DOCUMENTATION_QUESTION = "how do I roll back an upgrade?"

SEARCHES: tuple[tuple[str, SearchOptions], ...] = (
    ("raise prices on existing customers without losing them", {"mode": "hybrid"}),
    ("how many extra sales make up for a 10% discount", {"mode": "hybrid", "fusion": "rrf"}),
    ("guarantee that takes the risk away from the buyer", {"mode": "vector"}),
    ('"acquisition cost" or referrals -discount', {"mode": "text"}),
    ("scarcty and urgancy", {"mode": "fuzzy"}),
    (
        "price anchoring",
        {"mode": "hybrid", "filters": {"section": "Pricing structures"}},
    ),
)
HITS = 3
DOCS = "documentation"
CHAT_QUESTION = "how do I tell customers about higher prices"


def demo() -> None:
    """Import, embed, search and validate the samples, on the embedded server."""
    from pgcorpus.db import migrations
    from pgcorpus.db.engine import Database
    from pgcorpus.db.settings import Settings
    from pgcorpus.services import samples
    from pgcorpus.services.chat.importing.importer import ChatImporter
    from pgcorpus.services.documentation.importing.importer import DocumentationImporter
    from pgcorpus.services.jobs.worker import Worker
    from pgcorpus.services.knowledge.importer import KnowledgeImporter
    from pgcorpus.services.ops.validation import ValidationService
    from pgcorpus.services.search.service import SearchService

    # Never on a database of the user's: the samples are not theirs.
    database = Database(replace(Settings.from_env(), database_url=None))
    _step("1. An embedded PostgreSQL, with the schema of the revisions")
    database.make_server()
    url = database.url
    migrations.upgrade(database)
    version = migrations.current(database)
    say(f"PostgreSQL on {url.host}:{url.port}, schema at revision {version and version.revision}")

    _step("2. This project's own documentation, cut into chunks by its headings")
    show_report(import_with_bar(DocumentationImporter(database), [samples.folder(DOCS)]))
    report = embed_with_bar(database, DOCS, None)
    say(f"{report.embedded} embedded, {report.failed} failed")
    service = SearchService(database)
    page = service.search(DOCUMENTATION_QUESTION, corpus=DOCS, limit=HITS)
    show_page(page)
    say(f"read it in {page.hits[0].metadata['citation']}")

    _step("3. A knowledge base: files of three shapes, and every change recorded")
    show_report(import_with_bar(KnowledgeImporter(database), [samples.folder("knowledge")]))
    report = embed_with_bar(database, "knowledge", None)
    say(f"{report.embedded} embedded, {report.failed} failed")

    _step("4. Searches in every mode; each leg's numbers are shown by: search -v")
    for question, options in SEARCHES:
        few: SearchOptions = {**options, "limit": HITS}
        show_page(service.search(question, corpus="knowledge", **few))

    _step("5. A chat archive: exports of two providers, embedded by a worker")
    show_report(import_with_bar(ChatImporter(database), [samples.folder("chat")]))
    done = Worker(database).run(once=True)
    say(f"{done.counts['completed']} jobs done, {done.counts['failed']} failed")
    page = service.search(CHAT_QUESTION, corpus="chat", limit=2, group_by="conversation")
    show_page(page)
    show_context(service.context(page.hits[:1], before=1, after=1))

    _step("6. Is it whole?")
    validation = ValidationService(database).validate("knowledge")
    show_validation(validation)

    say("The server goes on running. Index your own:  .venv/bin/pgcorpus import documentation DIR")
    say("Ask it more:  .venv/bin/pgcorpus search 'your question' --corpus documentation")
    say("Stop it:  .venv/bin/pgcorpus server stop     Delete it:  make clean")
    if not validation.passed:
        raise typer.Exit(1)


def _step(title: str) -> None:
    out.rule(title, align="left")
