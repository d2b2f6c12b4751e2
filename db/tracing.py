"""Traces: spans of OpenTelemetry for statements, searches, memories and embeddings.

Nothing of OpenTelemetry is imported, and no span is made, before ``start_tracing``. The names of
attributes are those of OpenTelemetry's semantic conventions, for databases (stable) and for
generative AI (in development). No span holds a text of users or the value of a parameter, unless
``start_tracing(texts=True)`` asks for the questions of searches.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache, wraps
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, NamedTuple, ParamSpec, TypeVar
from weakref import WeakSet

from sqlalchemy import Engine, event
from sqlalchemy.exc import DBAPIError

from pgcorpus.db.errors import SettingsError
from pgcorpus.db.search.driver import SETTINGS, Sent

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer, TracerProvider

P = ParamSpec("P")
T = TypeVar("T")

DB_SYSTEM_NAME: Final = "db.system.name"
DB_NAMESPACE: Final = "db.namespace"
DB_QUERY_TEXT: Final = "db.query.text"
DB_QUERY_SUMMARY: Final = "db.query.summary"
DB_BATCH_SIZE: Final = "db.operation.batch.size"
DB_STATUS_CODE: Final = "db.response.status_code"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
ERROR_TYPE: Final = "error.type"
OPERATION_NAME: Final = "gen_ai.operation.name"
PROVIDER_NAME: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
TOP_K: Final = "gen_ai.request.top_k"
DATA_SOURCE: Final = "gen_ai.data_source.id"
DIMENSIONS: Final = "gen_ai.embeddings.dimension.count"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
QUERY_TEXT: Final = "gen_ai.retrieval.query.text"
"""Names of attributes in OpenTelemetry's semantic conventions."""

DB_SYSTEM: Final = "postgresql"
RETRIEVAL: Final = "retrieval"
EMBEDDINGS: Final = "embeddings"
SEARCH_MEMORY: Final = "search_memory"
UPDATE_MEMORY: Final = "update_memory"
DELETE_MEMORY: Final = "delete_memory"
"""Values of ``gen_ai.operation.name``."""

CORPUS: Final = "pgcorpus.corpus"
MODE: Final = "pgcorpus.search.mode"
DEGRADED: Final = "pgcorpus.search.degraded"
"""Names of attributes of our own, for which there is no convention."""

LONGEST_SUMMARY: Final = 255
"""The most characters of ``db.query.summary``, as its convention says."""

LITERAL: Final = re.compile(
    r"""(?P<kept>"(?:[^"]|"")*")|--[^\n]*|/\*.*?\*/|[eE]'(?:[^'\\]|''|\\.)*'|'(?:[^']|'')*'"""
    r"|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$",
    re.DOTALL,
)
"""Literals and comments, which may hold a text; identifiers in quotes, which may hold a quote."""

OPERATION: Final = re.compile(r"[\s?]*([A-Za-z]+)")
TABLE: Final = re.compile(
    r"\b(?:FROM|JOIN|INTO|UPDATE|TABLE)\s+(?:ONLY\s+)?([a-z_][\w.]*)(?!\w|\()"
)
NAMED_QUERY: Final = re.compile(
    r"\b([a-z_]\w*)(?:\s*\([^()]*\))?\s+AS\s+(?:(?:NOT\s+)?MATERIALIZED\s+)?\("
)
WRITES: Final = re.compile(r"\b(INSERT\s+INTO|UPDATE|DELETE\s+FROM)\s+(?:ONLY\s+)?[a-z_\"]")
KEPT: Final = "_pgcorpus_span"
"""The attribute in which a statement under way keeps its span."""

NOTHING: Final[AbstractContextManager[None]] = nullcontext()


class _State:
    """The tracer, or None while nothing is traced."""

    tracer: Tracer | None = None
    texts: bool = False


_state: Final = _State()
_engines: Final[WeakSet[Engine]] = WeakSet()


class _Described(NamedTuple):
    """A statement as a span shows it."""

    summary: str
    text: str


def start_tracing(provider: TracerProvider | None = None, *, texts: bool = False) -> None:
    """Make spans from now on, in all databases of the process.

    Args:
        provider: Makes the tracer; by default OpenTelemetry's global one.
        texts: Let spans of searches hold the question, which is a text of users.

    Raises:
        SettingsError: OpenTelemetry is not installed.
    """
    try:
        from opentelemetry import trace  # noqa: PLC0415 - an extra, and only for who traces
    except ImportError:
        raise SettingsError(
            "traces need OpenTelemetry, which is not installed; install it with: "
            "pip install 'pgcorpus[otel]', or unset TRACING_ENABLED"
        ) from None
    _state.texts = texts
    _state.tracer = trace.get_tracer("pgcorpus", version("pgcorpus"), provider)
    for engine in _engines:
        _listen(engine)


def stop_tracing() -> None:
    """Make no more spans."""
    _state.tracer = None


def shows_texts() -> bool:
    """Return whether spans may hold texts of users."""
    return _state.texts


def find_trace() -> tuple[str, str] | None:
    """Return the ids of the present trace and span in hexadecimal, or None outside of any."""
    if (trace := sys.modules.get("opentelemetry.trace")) is None:
        return None
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def span(
    operation: str, subject: str, attributes: Mapping[str, Any]
) -> AbstractContextManager[Span | None]:
    """Provide the span of an operation of generative AI; None where nothing is traced.

    Args:
        operation: Its name in the conventions.
        subject: The model or the corpus; the span's name ends with it.
        attributes: Further ones; None is left out. No texts of users.
    """
    tracer = _state.tracer
    if tracer is None:
        return NOTHING
    return _span(tracer, f"{operation} {subject}", {OPERATION_NAME: operation, **attributes})


def trace(operation: str, subject: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Wrap a function so that each of its calls is a span; see ``span``."""
    attributes = {CORPUS: subject}

    def wrap(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with span(operation, subject, attributes):
                return function(*args, **kwargs)

        return call

    return wrap


def span_exchange(
    engine: Engine, statements: Sequence[Sent]
) -> AbstractContextManager[Span | None]:
    """Provide the span of statements that travel in one round trip; None where nothing is traced.

    Settings of the transaction are no operation of their own.
    """
    tracer = _state.tracer
    if tracer is None:
        return NOTHING
    operations = [_describe(sql) for sql, _ in statements if sql != SETTINGS]
    attributes = _describe_server(engine)
    if len(operations) > 1:
        attributes[DB_BATCH_SIZE] = len(operations)
    summaries = {each.summary for each in operations}
    summary = summaries.pop() if len(summaries) == 1 else ""
    if len(operations) > 1:
        summary = f"BATCH {summary}".rstrip()
    attributes[DB_QUERY_SUMMARY] = summary
    attributes[DB_QUERY_TEXT] = "; ".join(each.text for each in operations)
    return _span(tracer, summary or DB_SYSTEM, attributes)


def watch_statements(engine: Engine) -> None:
    """Make a span for each statement of the engine while there is a tracer."""
    _engines.add(engine)
    if _state.tracer is not None:
        _listen(engine)


@contextmanager
def _span(tracer: Tracer, name: str, attributes: Mapping[str, Any]) -> Iterator[Span]:
    from opentelemetry.trace import SpanKind  # noqa: PLC0415 - as above

    given = {key: value for key, value in attributes.items() if value is not None}
    with tracer.start_as_current_span(
        name,
        kind=SpanKind.CLIENT,
        attributes=given,
        # Messages of errors may quote texts of users.
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield current
        except BaseException as error:
            _mark_failed(current, error)
            raise


def _mark_failed(current: Span, error: BaseException) -> None:
    """Note the kind of a failure, and nothing that its message says."""
    from opentelemetry.trace import StatusCode  # noqa: PLC0415 - as above

    kind = type(error).__name__
    if isinstance(error, DBAPIError) and (state := getattr(error.orig, "sqlstate", None)):
        current.set_attribute(DB_STATUS_CODE, state)
        kind = state
    current.set_attribute(ERROR_TYPE, kind)
    current.set_status(StatusCode.ERROR)


def _listen(engine: Engine) -> None:
    for name, listener in (
        ("before_cursor_execute", _begin),
        ("after_cursor_execute", _end),
        ("handle_error", _fail),
    ):
        if not event.contains(engine, name, listener):
            event.listen(engine, name, listener)


def _begin(
    connection: Any, _cursor: object, statement: str, _parameters: object, context: Any, many: bool
) -> None:
    if (tracer := _state.tracer) is None:
        return
    from opentelemetry.trace import SpanKind  # noqa: PLC0415 - as above

    described = _describe(statement)
    attributes = _describe_server(connection.engine) | {
        DB_QUERY_SUMMARY: described.summary,
        DB_QUERY_TEXT: described.text,
    }
    if many and len(context.compiled_parameters or ()) > 1:
        attributes[DB_BATCH_SIZE] = len(context.compiled_parameters)
        attributes[DB_QUERY_SUMMARY] = f"BATCH {described.summary}"
    name = attributes[DB_QUERY_SUMMARY]
    setattr(context, KEPT, tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes))


def _end(
    _connection: object,
    _cursor: object,
    _statement: str,
    _parameters: object,
    context: Any,
    _: bool,
) -> None:
    if (current := context.__dict__.pop(KEPT, None)) is not None:
        current.end()


def _fail(failure: Any) -> None:
    """End the span of a statement that failed."""
    context = failure.execution_context
    current = None if context is None else context.__dict__.pop(KEPT, None)
    if current is not None:
        _mark_failed(current, failure.sqlalchemy_exception or failure.original_exception)
        current.end()


def _describe_server(engine: Engine) -> dict[str, Any]:
    url = engine.url
    given = {DB_NAMESPACE: url.database, SERVER_ADDRESS: url.host, SERVER_PORT: url.port}
    known = {name: value for name, value in given.items() if value is not None}
    return {DB_SYSTEM_NAME: DB_SYSTEM, **known}


@lru_cache(maxsize=1024)
def _describe(sql: str) -> _Described:
    """Return a statement without its literals, and its operation with the tables it names."""
    text = LITERAL.sub(lambda found: found["kept"] or "?", sql)
    found = OPERATION.match(text)
    queries = set(NAMED_QUERY.findall(text))
    tables = [each for each in TABLE.findall(text) if each not in queries]
    operation = found[1].upper() if found else ""
    if operation == "WITH":
        writes = WRITES.search(text)
        operation = "SELECT" if writes is None else writes[1].split()[0]
    words = [operation, *dict.fromkeys(tables)]
    return _Described(" ".join(filter(None, words))[:LONGEST_SUMMARY] or DB_SYSTEM, text)
