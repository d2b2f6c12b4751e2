"""Spans of searches, memories and embeddings: nested, by the conventions, without texts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import SearchError
from pgcorpus.db.tracing import start_tracing, stop_tracing
from pgcorpus.services.embedding.hashing import HashingEmbedder
from pgcorpus.services.embedding.openai import OpenAIEmbedder
from pgcorpus.services.embedding.usage import embed_documents
from pgcorpus.services.memory.service import MemoryService
from pgcorpus.services.search.service import AsyncSearchService, SearchService
from tests.logins import logged_in
from tests.services.embedding.loopback_api import LoopbackAPI
from tests.tenancy import make_scope

QUESTION = "whatdoesthesecretplansay"


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    """The spans that have ended, while everything is traced."""
    exporter = InMemorySpanExporter()
    start_tracing(make_provider(exporter))
    yield exporter
    stop_tracing()


def make_provider(exporter: InMemorySpanExporter) -> TracerProvider:
    """A provider whose spans go to memory."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


def list_spans(exporter: InMemorySpanExporter, operation: str) -> list[ReadableSpan]:
    """The spans of one operation of generative AI."""
    return [
        each
        for each in exporter.get_finished_spans()
        if (each.attributes or {}).get("gen_ai.operation.name") == operation
    ]


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    """The attributes of a span."""
    return dict(span.attributes or {})


def list_within(exporter: InMemorySpanExporter, outer: ReadableSpan) -> list[str]:
    """The names of the spans whose parent is this one."""
    context = outer.get_span_context()
    return [
        each.name
        for each in exporter.get_finished_spans()
        if each.parent is not None and each.parent.span_id == context.span_id
    ]


def test_a_search_is_a_retrieval_around_its_statements_and_its_embedding(
    database: Database, exporter: InMemorySpanExporter
) -> None:
    """Each round trip of the pipeline is a span."""
    SearchService(database, embedder=HashingEmbedder()).search(QUESTION, corpus="knowledge")

    (span,) = list_spans(exporter, "retrieval")
    told = attributes_of(span)
    assert span.name == "retrieval knowledge"
    assert span.kind is SpanKind.CLIENT
    assert told["gen_ai.data_source.id"] == "knowledge"
    assert told["gen_ai.request.top_k"] == 10
    assert told["gen_ai.request.model"] == "hashing"
    assert told["pgcorpus.search.mode"] == "hybrid"
    within = list_within(exporter, span)
    assert "embeddings hashing" in within
    exchanges = [
        each
        for each in exporter.get_finished_spans()
        if "framework_documents" in each.name and each.parent is not None
    ]
    assert exchanges
    assert all(attributes_of(each)["db.system.name"] == "postgresql" for each in exchanges)
    assert {each.context.trace_id for each in exporter.get_finished_spans() if each.context} == {
        span.get_span_context().trace_id
    }


def test_a_search_in_an_event_loop_is_traced_the_same(
    database: Database, exporter: InMemorySpanExporter
) -> None:
    """Two at once: each statement is within its own search."""

    async def search() -> None:
        service = AsyncSearchService(database, embedder=HashingEmbedder())
        await asyncio.gather(
            service.search(QUESTION, corpus="knowledge", mode="text"),
            service.search(QUESTION, corpus="chat", mode="text"),
        )
        await database.aclose()

    asyncio.run(search())

    found = {span.name: list_within(exporter, span) for span in list_spans(exporter, "retrieval")}
    assert found.keys() == {"retrieval knowledge", "retrieval chat"}
    assert any("framework_documents" in each for each in found["retrieval knowledge"])
    assert any("messages" in each for each in found["retrieval chat"])
    assert not any("messages" in each for each in found["retrieval knowledge"])


def test_memories_are_searched_updated_and_deleted(
    database: Database, exporter: InMemorySpanExporter
) -> None:
    """By the operations that the conventions have for them."""
    with database.unit_of_work() as work:
        scope = make_scope(work, tenant=True)
        work.commit()
    with logged_in(database, "rag_read_write") as service:
        memory = MemoryService(service, HashingEmbedder())
        made = memory.remember(QUESTION, "It says nothing.", scope=scope, conversation_id="c")
        memory.recall(QUESTION, scope=scope, touch=False)
        memory.forget(scope=scope, ids=[made.id])

    for operation in ("update_memory", "search_memory", "delete_memory"):
        (span,) = list_spans(exporter, operation)
        assert span.name == f"{operation} memory"
        assert attributes_of(span)["pgcorpus.corpus"] == "memory"
        assert list_within(exporter, span)
    (recall,) = list_spans(exporter, "search_memory")
    assert "retrieval memory" in list_within(exporter, recall)
    told = "".join(each.to_json() for each in exporter.get_finished_spans())
    assert QUESTION not in told
    assert str(scope.tenant_id) not in told


def test_embeddings_tell_model_provider_and_tokens(exporter: InMemorySpanExporter) -> None:
    """All requests of a call together, from whatever threads."""
    with LoopbackAPI(dimensions=8) as api:
        embedder = OpenAIEmbedder("m", 8, api_key="k", base_url=api.base_url, texts_per_request=1)
        embed_documents(embedder, [QUESTION, "b", "c"])

    (span,) = list_spans(exporter, "embeddings")
    assert span.name == "embeddings m"
    assert attributes_of(span) == {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "m",
        "gen_ai.embeddings.dimension.count": 8,
        "gen_ai.usage.input_tokens": 3,
    }


def test_no_span_holds_a_text_unless_that_was_asked_for(database: Database) -> None:
    """Neither of a question, nor of an error that quotes it."""
    service = SearchService(database, embedder=HashingEmbedder())

    def search(*, texts: bool) -> str:
        exporter = InMemorySpanExporter()
        start_tracing(make_provider(exporter), texts=texts)
        service.search(QUESTION, corpus="knowledge")
        with pytest.raises(SearchError, match="klingon"):
            service.search(QUESTION, corpus="knowledge", language="klingon")
        stop_tracing()
        return "".join(each.to_json() for each in exporter.get_finished_spans())

    without, with_texts = search(texts=False), search(texts=True)

    assert QUESTION not in without
    assert "klingon" not in without
    assert "InvalidSearch" in without
    assert f'"gen_ai.retrieval.query.text": "{QUESTION}"' in with_texts
