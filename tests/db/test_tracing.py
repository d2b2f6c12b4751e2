"""Spans of statements: by the conventions, for both ways to the database, and none by default."""

from __future__ import annotations

import subprocess
import sys
import timeit
from collections.abc import Iterator
from time import process_time
from typing import Any

import opentelemetry.semconv._incubating.attributes.gen_ai_attributes as gen_ai
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv.attributes import db_attributes, error_attributes, server_attributes
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy import text

from pgcorpus.db import tracing
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DataLayerError
from pgcorpus.db.tracing import start_tracing, stop_tracing

NOT_YET_NAMED = {"search_memory", "update_memory", "delete_memory"}
"""Operations of the conventions for generative AI that the package of constants does not have."""

MOST_NANOSECONDS = 10_000
"""The bound of what a search pays for traces that are off; some 1,400 ns were measured."""


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """The spans that have ended, while everything is traced."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    start_tracing(provider)
    yield exporter
    stop_tracing()


def find(spans: InMemorySpanExporter, name: str) -> ReadableSpan:
    """The one span of that name."""
    (found,) = [each for each in spans.get_finished_spans() if each.name == name]
    return found


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    """The attributes of a span."""
    return dict(span.attributes or {})


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (tracing.DB_SYSTEM_NAME, db_attributes.DB_SYSTEM_NAME),
        (tracing.DB_SYSTEM, db_attributes.DbSystemNameValues.POSTGRESQL.value),
        (tracing.DB_NAMESPACE, db_attributes.DB_NAMESPACE),
        (tracing.DB_QUERY_TEXT, db_attributes.DB_QUERY_TEXT),
        (tracing.DB_QUERY_SUMMARY, db_attributes.DB_QUERY_SUMMARY),
        (tracing.DB_BATCH_SIZE, db_attributes.DB_OPERATION_BATCH_SIZE),
        (tracing.DB_STATUS_CODE, db_attributes.DB_RESPONSE_STATUS_CODE),
        (tracing.ERROR_TYPE, error_attributes.ERROR_TYPE),
        (tracing.SERVER_ADDRESS, server_attributes.SERVER_ADDRESS),
        (tracing.SERVER_PORT, server_attributes.SERVER_PORT),
        (tracing.OPERATION_NAME, gen_ai.GEN_AI_OPERATION_NAME),
        (tracing.PROVIDER_NAME, gen_ai.GEN_AI_PROVIDER_NAME),
        (tracing.REQUEST_MODEL, gen_ai.GEN_AI_REQUEST_MODEL),
        (tracing.TOP_K, gen_ai.GEN_AI_REQUEST_TOP_K),
        (tracing.DATA_SOURCE, gen_ai.GEN_AI_DATA_SOURCE_ID),
        (tracing.DIMENSIONS, gen_ai.GEN_AI_EMBEDDINGS_DIMENSION_COUNT),
        (tracing.INPUT_TOKENS, gen_ai.GEN_AI_USAGE_INPUT_TOKENS),
        (tracing.QUERY_TEXT, gen_ai.GEN_AI_RETRIEVAL_QUERY_TEXT),
        (tracing.RETRIEVAL, gen_ai.GenAiOperationNameValues.RETRIEVAL.value),
        (tracing.EMBEDDINGS, gen_ai.GenAiOperationNameValues.EMBEDDINGS.value),
    ],
)
def test_names_are_those_of_the_conventions(ours: str, theirs: str) -> None:
    """They are written down, or a process would need the package of constants."""
    assert ours == theirs


def test_operations_of_memories_are_compared_once_the_constants_have_them() -> None:
    """A failure says that the package has got them: move them to the test above."""
    known = {each.value for each in gen_ai.GenAiOperationNameValues}
    ours = {tracing.SEARCH_MEMORY, tracing.UPDATE_MEMORY, tracing.DELETE_MEMORY}

    assert ours - known == NOT_YET_NAMED


def test_a_statement_of_a_unit_of_work_is_a_span(
    database: Database, spans: InMemorySpanExporter
) -> None:
    """A client's, with its class, its text and where it went, and no value."""
    with database.unit_of_work() as work:
        work.session.execute(
            text("SELECT title FROM framework_documents WHERE title = :title"), {"title": "Secret"}
        )

    span = find(spans, "SELECT framework_documents")
    told = attributes_of(span)
    assert span.kind is SpanKind.CLIENT
    assert told[db_attributes.DB_SYSTEM_NAME] == "postgresql"
    assert told[db_attributes.DB_NAMESPACE] == database.url.database
    assert told[db_attributes.DB_QUERY_SUMMARY] == span.name
    assert "WHERE title = %(title)s" in told[db_attributes.DB_QUERY_TEXT]
    assert "Secret" not in span.to_json()
    assert (database.url.password or "-") not in span.to_json()


def test_a_literal_is_no_part_of_a_span(database: Database, spans: InMemorySpanExporter) -> None:
    """Whatever quotes it is in, and whatever stands before it."""
    statements = [
        "SELECT 'secret'",
        "SELECT 1 AS \"o'clock\", 'secret'",
        "SELECT E'it\\'s secret'",
        "SELECT $x$secret$x$, $$secret$$",
        "/* secret */ SELECT 'it''s secret' -- secret",
    ]
    with database.unit_of_work() as work:
        for statement in statements:
            work.session.connection().exec_driver_sql(statement)

    found = [each for each in spans.get_finished_spans() if each.name == "SELECT"]
    assert len(found) >= len(statements)
    assert not [each for each in spans.get_finished_spans() if "secret" in each.to_json()]


@pytest.mark.parametrize(
    ("statement", "summary"),
    [
        (
            "SELECT * FROM jobs JOIN tenants ON true JOIN jobs AS again ON true",
            "SELECT jobs tenants",
        ),
        ("WITH near AS MATERIALIZED \n(SELECT 1 FROM jobs) SELECT * FROM near", "SELECT jobs"),
        ("WITH one(n) AS (SELECT 1) INSERT INTO jobs SELECT * FROM one", "INSERT jobs"),
        ("DELETE FROM ONLY jobs", "DELETE jobs"),
        ("UPDATE jobs SET kind = 'x'", "UPDATE jobs"),
        ("SELECT count(*) FROM jobs FOR UPDATE SKIP LOCKED", "SELECT jobs"),
        ("-- FROM elsewhere\nSELECT 'FROM elsewhere'", "SELECT"),
        ("", "postgresql"),
    ],
)
def test_the_class_of_a_statement_is_its_operation_and_its_tables(
    statement: str, summary: str
) -> None:
    """Names of queries within it are none."""
    assert tracing._describe(statement).summary == summary


def test_the_class_of_a_statement_is_short_however_many_tables_it_names() -> None:
    """As the convention wants it."""
    many = "SELECT 1 " + " ".join(f"JOIN table_{n} ON true" for n in range(200))

    assert len(tracing._describe(many).summary) == tracing.LONGEST_SUMMARY


def test_a_statement_that_fails_says_why_by_its_code(
    database: Database, spans: InMemorySpanExporter
) -> None:
    """By SQLSTATE: messages of the server quote values."""
    with pytest.raises(DataLayerError), database.unit_of_work() as work:
        work.session.execute(text("INSERT INTO tenants (id, name) VALUES (:id, 'x')"), {"id": "no"})

    span = find(spans, "INSERT tenants")
    told = attributes_of(span)
    assert span.status.status_code is StatusCode.ERROR
    assert told[db_attributes.DB_RESPONSE_STATUS_CODE] == "22P02"
    assert told[error_attributes.ERROR_TYPE] == "22P02"
    assert span.status.description is None
    assert not span.events


def test_engines_that_were_made_before_are_traced_too(database: Database) -> None:
    """Switching on and off needs no new pool."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with database.unit_of_work() as work:
        work.session.execute(text("SELECT 1"))
        start_tracing(provider)
        work.session.execute(text("SELECT 2"))
        start_tracing(provider)  # again: still one span for each
        work.session.execute(text("SELECT 3"))
        stop_tracing()
        work.session.execute(text("SELECT 4"))

    texts = [attributes_of(each)["db.query.text"] for each in exporter.get_finished_spans()]
    assert texts == ["SELECT 2", "SELECT 3"]


def test_nothing_of_opentelemetry_is_imported_before(tmp_path: object) -> None:
    """Neither by the database nor by searches and memories."""
    code = (
        "import sys, pgcorpus; pgcorpus.Database; pgcorpus.SearchService; pgcorpus.MemoryService;"
        "from pgcorpus.services import logs; logs.describe_context();"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert done.stdout == "[]\n"


def test_without_opentelemetry_it_is_said_how_to_install_it() -> None:
    """And nothing else fails."""
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from pgcorpus.db.tracing import start_tracing, span\n"
        "with span('retrieval', 'knowledge', {}) as current: print(current)\n"
        "try: start_tracing()\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert done.stdout.startswith("None\nSettingsError traces need OpenTelemetry")
    assert "pip install 'pgcorpus[otel]'" in done.stdout


def test_a_search_pays_nanoseconds_for_traces_that_are_off(database: Database) -> None:
    """A span of the search, one of the question's vector, two of exchanges."""
    engine, statements = database.engine, [("SELECT 1", None)]

    def pay() -> None:
        for _ in range(2):
            with tracing.span("retrieval", "knowledge", {"a": 1, "b": 2, "c": 3}):
                pass
        for _ in range(2):
            with tracing.span_exchange(engine, statements):
                pass

    seconds = min(timeit.repeat(pay, number=1000, repeat=5, timer=process_time)) / 1000
    assert seconds * 1e9 < MOST_NANOSECONDS
