"""The use of embedders by this process: calls, texts, tokens, seconds and failures."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from pgcorpus.db.tracing import DIMENSIONS, EMBEDDINGS, INPUT_TOKENS, PROVIDER_NAME, REQUEST_MODEL
from pgcorpus.db.tracing import span as make_span
from pgcorpus.services.embedding.embedder import Embedder

Purpose = Literal["documents", "question"]

OTHER_PROVIDER: Final = "other"
"""The provider of an application's own embedder that names none."""


class Use(NamedTuple):
    """A model, and what it was used for."""

    model: str
    purpose: Purpose


@dataclass(slots=True)
class Usage:
    """The totals of one use since the process began.

    Attributes:
        calls: Calls that were answered.
        texts: Texts of these.
        tokens: Tokens that the provider counted in all its answers; 0 where it counts none.
        seconds: Duration of the calls that were answered.
        failures: Kind of error → calls that failed with it.
    """

    calls: int = 0
    texts: int = 0
    tokens: int = 0
    seconds: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)


class _Call:
    """One call of an embedder, whose requests may be made by several threads."""

    def __init__(self) -> None:
        self.tokens = 0


class Meter:
    """The tokens that calls within ``meter_calls`` have spent.

    Attributes:
        tokens: Tokens that the provider counted, and the bound of requests that it counted none
            for.
        is_limited: Whether they were reserved for one request of each text.
    """

    def __init__(self, *, is_limited: bool) -> None:
        self.tokens = 0
        self.is_limited = is_limited


_lock: Final = threading.Lock()
_totals: Final[dict[Use, Usage]] = {}
_call: Final[ContextVar[_Call | None]] = ContextVar("embedding_call", default=None)
_meter: Final[ContextVar[Meter | None]] = ContextVar("embedding_meter", default=None)


def embed_documents(embedder: Embedder, texts: Sequence[str]) -> np.ndarray:
    """Call ``embedder.embed_documents``, and count it; see ``Embedder``."""
    with _counting(embedder, "documents", len(texts)):
        return embedder.embed_documents(texts)


def embed_question(embedder: Embedder, text: str) -> np.ndarray:
    """Call ``embedder.embed_question``, and count it; see ``Embedder``."""
    with _counting(embedder, "question", 1):
        return embedder.embed_question(text)


def note_tokens(tokens: int) -> None:
    """Add the tokens of one answer to the present call, from whatever thread of it."""
    call = _call.get()
    if call is not None:
        with _lock:
            call.tokens += tokens


@contextmanager
def meter_calls(*, is_limited: bool) -> Iterator[Meter]:
    """Count what calls spend, in whatever threads of them.

    Args:
        is_limited: Whether tokens were reserved for one request of each text: a request that was
            not answered may have been counted, and is not repeated.
    """
    meter = Meter(is_limited=is_limited)
    token = _meter.set(meter)
    try:
        yield meter
    finally:
        _meter.reset(token)


def charge(tokens: int) -> None:
    """Count tokens of an answer as spent."""
    meter = _meter.get()
    if meter is not None:
        with _lock:
            meter.tokens += tokens


def charge_unanswered(most_tokens: int) -> bool:
    """Count a request without an answer as spent: the provider may have done it.

    Args:
        most_tokens: What it may have taken.

    Returns:
        Whether it may be repeated: not where its tokens were reserved but once.
    """
    charge(most_tokens)
    meter = _meter.get()
    return meter is None or not meter.is_limited


def list_usage() -> dict[Use, Usage]:
    """Return a copy of the totals of this process."""
    with _lock:
        return deepcopy(_totals)


@contextmanager
def _counting(embedder: Embedder, purpose: Purpose, texts: int) -> Iterator[None]:
    model = embedder.model_name
    attributes: dict[str, Any] = {
        PROVIDER_NAME: getattr(embedder, "provider", OTHER_PROVIDER),
        REQUEST_MODEL: model,
        DIMENSIONS: embedder.dimensions,
    }
    call = _Call()
    token = _call.set(call)
    started = time.perf_counter()
    failure: str | None = None
    try:
        with make_span(EMBEDDINGS, model, attributes) as span:
            try:
                yield
            finally:
                if span is not None and call.tokens:
                    span.set_attribute(INPUT_TOKENS, call.tokens)
    except Exception as error:
        failure = type(error).__name__
        raise
    finally:
        _call.reset(token)
        seconds = time.perf_counter() - started
        with _lock:
            usage = _totals.setdefault(Use(model, purpose), Usage())
            usage.tokens += call.tokens  # what was spent before a failure was spent
            if failure is None:
                usage.calls += 1
                usage.texts += texts
                usage.seconds += seconds
            else:
                usage.failures[failure] += 1
