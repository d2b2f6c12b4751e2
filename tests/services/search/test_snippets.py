"""Snippets on a page: cut to a line, with the caller's markers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import InvalidSearch
from pgcorpus.db.search.page import Hit
from pgcorpus.db.search.snippets import START, STOP
from pgcorpus.services.search.service import SearchService
from pgcorpus.services.search.snippets import MAX_CHARACTERS, shorten
from tests import factories
from tests.command import Command
from tests.services.search.test_service import AxisEmbedder

LONG = "Nothing in particular is told here. " * 30
TEXTS: dict[str, str] = {
    "refund": f"{LONG}\n\nA refund takes\ta day.\n{LONG}",
    "short": "Refunds are <b>quick</b>.",
    "other": f"The kettle. {LONG}",
}


@pytest.fixture
def service(database: Database) -> SearchService:
    """A service of a knowledge base with three passages."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        for title, content in TEXTS.items():
            factories.FrameworkDocumentFactory(title=title, content=content)
        work.commit()
    return SearchService(database, embedder=AxisEmbedder())


def snippets(service: SearchService, question: str, **options: Any) -> dict[str, str | None]:
    """Title → snippet of each hit."""
    options = {"mode": "text", "snippets": True} | options
    return {
        hit.title: hit.snippet
        for hit in service.search(question, corpus="knowledge", **options).hits
    }


def test_the_words_of_the_question_are_marked(service: SearchService) -> None:
    """On one line, with an ellipsis where the text begins before or goes on."""
    found = snippets(service, "refunding")

    assert found["short"] == "**Refunds** are <b>quick</b>."
    assert "A **refund** takes a day. Nothing" in (found["refund"] or "")
    assert (found["refund"] or "").startswith("… ")
    assert (found["refund"] or "").endswith(" …")


def test_a_hit_without_a_word_of_the_question_shows_its_beginning(service: SearchService) -> None:
    """Such as one that only the fuzzy or the vector leg found."""
    found = snippets(service, "ketle", mode="fuzzy")

    assert (found["other"] or "").startswith("The kettle. Nothing in particular")
    assert (found["other"] or "").endswith(" …")
    assert len(found["other"] or "") <= MAX_CHARACTERS + 4


def test_markers_are_the_callers(service: SearchService) -> None:
    """Whatever stands in them."""
    assert snippets(service, "quick", markers=("<mark>", '"]\\1'))["short"] == (
        'Refunds are <b><mark>quick"]\\1</b>.'
    )


def test_groups_and_reranked_hits_have_snippets(service: SearchService) -> None:
    """The hits of groups are those of the page; only what is shown is marked."""

    def shortest_first(_: str, hits: list[Hit]) -> list[float]:
        assert all(hit.snippet is None for hit in hits)
        return [-float(len(hit.content)) for hit in hits]

    asked: dict[str, Any] = {"corpus": "knowledge", "mode": "text", "snippets": True}
    page = service.search("refund", group_by="section", group_size=3, **asked)
    reranked = service.search("refund", rerank=shortest_first, limit=1, **asked)

    assert page.groups is not None
    assert [hit for group in page.groups for hit in group.hits] == list(page.hits)
    assert all("**" in (hit.snippet or "") for hit in page.hits)
    assert [hit.snippet for hit in reranked.hits] == ["**Refunds** are <b>quick</b>."]


def test_without_being_asked_for_there_are_none(service: SearchService) -> None:
    """Neither on a hit nor in JSON."""
    page = service.search("refund", corpus="knowledge", mode="text")

    assert {hit.snippet for hit in page.hits} == {None}
    assert all("snippet" not in hit for hit in page.as_json()["hits"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"snippets": "yes"}, "True or False, not 'yes'"),
        ({"markers": "**"}, "markers are two texts"),
        ({"markers": ("a", 1)}, "markers are two texts"),
        ({"markers": ("a", "b", "c")}, "markers are two texts"),
    ],
)
def test_what_is_no_marker_is_refused(
    service: SearchService, options: dict[str, Any], says: str
) -> None:
    """The error says what is one."""
    with pytest.raises(InvalidSearch, match=says):
        service.search("refund", corpus="knowledge", mode="text", **options)


def test_a_snippet_is_cut_around_its_first_mark() -> None:
    """Between words, and no mark is left open."""
    snippet = f"{'before ' * 30}{START}kettle{STOP} {'after ' * 30}".strip()
    all_marked = " ".join([f"{START}kettle{STOP}"] * 50)

    for characters in (20, 40, 90):
        cut = shorten(snippet, characters)
        assert f"{START}kettle{STOP}" in cut
        assert set(cut.replace(START, "").replace(STOP, "").split()) <= {
            "before",
            "kettle",
            "after",
            "…",
        }
        assert len(cut) <= characters + 6
        assert shorten(all_marked, characters).count(START) == shorten(
            all_marked, characters
        ).count(STOP)
    assert shorten(snippet, 1000) == snippet
    assert shorten(snippet[: snippet.index(STOP) + 1], 20) == f"… before {START}kettle{STOP}"
    assert shorten("x" * 100, 20) == "x" * 20 + " …"


def test_a_script_gets_snippets_on_request(pgcorpus: Command, service: SearchService) -> None:
    """A pipe has the beginning of the content unless it asks for more."""
    asked = ("search", "refund", "--mode", "text")

    plain, marked = pgcorpus(*asked), pgcorpus(*asked, "--snippets")
    shown = json.loads(pgcorpus(*asked, "--snippets", "--json").stdout)

    assert "Nothing" in plain.stdout
    assert "**" not in plain.stdout
    assert "**Refunds**" in marked.stdout
    assert {hit["title"]: hit["snippet"] for hit in shown["hits"]} == snippets(service, "refund")
