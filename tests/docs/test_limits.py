"""The limits of docs/reference/limits.md are those of the code, and its SQL runs."""

from __future__ import annotations

import re
from typing import Final

import pytest
from sqlalchemy import text

from pgcorpus.db.choices import HALFVEC_MAX_DIMENSIONS, MAX_PAGE
from pgcorpus.db.engine import Database
from pgcorpus.db.models.documentation import MAX_PATH_BYTES
from pgcorpus.db.search import metadata, question, ranker, words
from pgcorpus.services import choices
from pgcorpus.services.documentation.reading import formats, pdf
from pgcorpus.services.documentation.rules import MAX_METADATA_CHARACTERS
from pgcorpus.services.embedding.openai import MAX_TOKENS_PER_TEXT
from pgcorpus.services.importers import archives, files, stream, vectors
from pgcorpus.services.knowledge import rules
from tests.docs.pages import list_blocks, read_page

PAGE: Final = "reference/limits.md"

LIMITS: Final = {
    "hits of a page (`limit`)": choices.MAX_LIMIT,
    "hits or groups passed over (`offset`)": choices.MAX_OFFSET,
    "hits of a group": choices.MAX_GROUP_SIZE,
    "characters of a question": question.MAX_CHARACTERS,
    "words of a question that are scored, the rarest first; others only match": words.MAX_WORDS,
    "phrases and excluded words of a question": question.MAX_DEMANDS,
    "languages that a question is read in, the most frequent of the corpus": ranker.MAX_LANGUAGES,
    "comparisons and operators of a filter on free metadata": metadata.MAX_TESTS,
    "levels of a filter on free metadata": metadata.MAX_DEPTH,
    "values in one list of a filter on free metadata": metadata.MAX_LISTED,
    "passages of context on each side of a hit": choices.MAX_NEIGHBOURS,
    "rows of a page of a list": MAX_PAGE,
    "dimensions of a vector": vectors.MAX_DIMENSIONS,
    "dimensions with an index of kind halfvec; above, binary": HALFVEC_MAX_DIMENSIONS,
    "tokens of a text for a hosted model; the rest is cut off, with a warning": MAX_TOKENS_PER_TEXT,
    "passages of a scope that are compared without an index": ranker.MOST_COMPARED,
    "characters of a chunk of the knowledge base": rules.MAX_CHARACTERS,
    "words of a chunk of the knowledge base": rules.MAX_WORDS,
    "tokens of a chunk of a document (`max_tokens`)": choices.MAX_CHUNK_TOKENS,
    "bytes of a document's path": MAX_PATH_BYTES,
    "characters of a document's metadata, as JSON": MAX_METADATA_CHARACTERS,
    "MiB of a JSON file of an import": files.MAX_FILE_BYTES / 2**20,
    "MiB of a conversation in an export of chats": stream.MAX_BYTES / 2**20,
    "MiB of a document": formats.MAX_DOCUMENT_BYTES / 2**20,
    "pages of a PDF": pdf.MAX_PAGES,
    "GiB of a zip, unpacked": archives.MAX_UNPACKED_BYTES / 2**30,
}
"""Row of the page → the constant."""


def test_every_limit_of_the_page_is_that_of_the_code() -> None:
    """And the page has no other."""
    _, built_in = read_page(PAGE).split("## Built-in limits")
    rows = re.findall(r"^\| (.+) \| ([\d,]+) \|$", built_in, re.MULTILINE)

    assert {name: int(limit.replace(",", "")) for name, limit in rows} == LIMITS


def test_the_measured_times_are_those_of_the_page_that_explains_them() -> None:
    """Both are renewed at once, or neither."""
    times = r"[\d.]+ / [\d.]+"
    row = re.compile(rf"^\| ([\d,]+) \| [\d.]+ \| {times} \| {times} \| ({times}) \|", re.MULTILINE)
    measured = dict(row.findall(read_page("explanation/isolation.md")))

    for memories in ("500,510", "38,547", "77"):
        assert measured[memories] in read_page(PAGE), memories


def test_the_sizes_of_graphs_follow_the_formulas_of_the_page() -> None:
    """Sizes beyond the table are reckoned with them."""
    rows = re.findall(
        r"^\| ([\d,]+) \| ([\d,]+) \| [\d,]+ \| ([\d,]+) \| ([\d,]+) \|$",
        read_page(PAGE),
        re.MULTILINE,
    )
    assert len(rows) == 4
    for row in rows:
        dimensions, vector, halfvec, binary = (int(each.replace(",", "")) for each in row)
        assert halfvec == pytest.approx(8192 / (8150 // (2 * dimensions + 330)), rel=0.01)
        assert binary == pytest.approx(dimensions / 8 + 310, rel=0.1)
        on_a_page = 8160 // (4 * dimensions + 130)
        in_table = 8192 / on_a_page if on_a_page else 4.6 * dimensions
        assert vector == pytest.approx(in_table, rel=0.03)


def test_the_statements_of_the_page_tell_sizes(database: Database) -> None:
    """Of every table with rows, and of the largest indexes: no other test's are larger."""
    with database.unit_of_work() as work:
        conversation = work.chat.create()
        work.chat.append(conversation.id, role="user", content="Hello.")
        work.session.flush()
        work.session.execute(text("ANALYZE messages"))

        tables, indexes = (
            work.session.execute(text(each)).mappings().all() for each in list_blocks(PAGE, "sql")
        )

    assert {row["name"]: row["rows"] for row in tables}["messages"] == 1
    assert "messages" in {row["table"] for row in indexes}
