"""The first searches of a newcomer, in the samples and without a key: all find what is obvious."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import URL

from pgcorpus.services import samples
from pgcorpus.services.chat.importing.importer import ChatImporter
from pgcorpus.services.cli import demo
from pgcorpus.services.documentation.importing.importer import DocumentationImporter
from pgcorpus.services.embedding.embed import EmbeddingService
from pgcorpus.services.knowledge.importer import KnowledgeImporter
from pgcorpus.services.search.service import SearchService
from tests.conftest import Databases

FIRST_SEARCHES = {
    # The tutorial's and the demo's.
    "why do subscribers quit": ("knowledge", "churn_diagnosis_01"),
    "raise prices on existing customers without losing them": ("knowledge", "raising_prices_04"),
    "how many extra sales make up for a 10% discount": ("knowledge", "discount_arithmetic_01"),
    "guarantee that takes the risk away from the buyer": ("knowledge", "guarantees_04"),
    '"acquisition cost" or referrals -discount': ("knowledge", "ltv_cac_04"),
    "scarcty and urgancy": ("knowledge", "urgency_02"),
    "price anchoring": ("knowledge", "price_anchoring_01"),
    demo.DOCUMENTATION_QUESTION: ("documentation", "docs/how-to/upgrade-and-roll-back.md"),
    demo.CHAT_QUESTION: ("chat", "Raising prices for the bakery"),
    # The README's.
    "how do I raise prices?": ("knowledge", "raising_prices_04"),
    "how do I roll back?": ("documentation", "docs/how-to/upgrade-and-roll-back.md"),
    "losing regulars": ("chat", "Raising prices for the bakery"),
    # Others of that kind.
    "why do customers leave": ("knowledge", "churn_diagnosis_01"),
    "money back guarantee": ("knowledge", "guarantees_04"),
    "what does it cost to win a customer": ("knowledge", "ltv_cac_04"),
    "the customer says it is too expensive": ("knowledge", "objection_price_01"),
    "should I charge by the hour": ("knowledge", "project_fees_03"),
    "how do I import PDF files": ("documentation", "docs/how-to/import-documents.md"),
    "how do I switch the embedding model": ("documentation", "docs/how-to/switch-models.md"),
    "why does my sourdough not rise": ("chat", "Sourdough that will not rise"),
}
"""Question → the corpus, and what the obvious passage is called."""


@pytest.fixture(scope="module")
def service(databases: Databases, hosted: URL) -> Iterator[SearchService]:
    """All samples, with vectors of the offline model."""
    with databases.opened(hosted.database or "", owner=hosted) as database:
        KnowledgeImporter(database).run([samples.folder("knowledge")])
        DocumentationImporter(database).run([samples.folder("documentation")])
        ChatImporter(database).run([samples.folder("chat")])
        for corpus in ("knowledge", "documentation", "chat"):
            assert EmbeddingService(database).embed(corpus).model == "hashing"
        yield SearchService(database)


def test_there_are_twenty() -> None:
    """So many that a weight that helps one and harms another is seen."""
    assert len(FIRST_SEARCHES) == 20


@pytest.mark.parametrize("question", FIRST_SEARCHES)
def test_a_first_search_finds_the_obvious_passage(service: SearchService, question: str) -> None:
    """Among the first three, in the default mode."""
    corpus, wanted = FIRST_SEARCHES[question]

    page = service.search(question, corpus=corpus, limit=3)

    found = [
        str(hit.metadata.get("citation") or hit.metadata.get("chunk_id") or hit.title)
        for hit in page.hits
    ]
    assert any(name.startswith(wanted) for name in found), found


@pytest.mark.parametrize(("question", "options"), demo.SEARCHES)
def test_the_demo_shows_the_obvious_passage_first(
    service: SearchService, question: str, options: dict[str, object]
) -> None:
    """In the modes that it shows them in."""
    _, wanted = FIRST_SEARCHES[question]

    page = service.search(question, corpus="knowledge", limit=3, **options)  # type: ignore[arg-type]

    assert wanted in [hit.metadata["chunk_id"] for hit in page.hits]
