"""Calls of embedders that keep within the ceilings of the scopes whose texts they embed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DataLayerError
from pgcorpus.db.repositories.usage import Allowance, Verdict
from pgcorpus.db.scope import Scope
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.embedding.embedder import Embedder
from pgcorpus.services.embedding.usage import embed_documents, meter_calls

logger = logging.getLogger(__name__)

CALLS_AT_ONCE: Final = 4
"""Calls of scopes with a ceiling that are under way together."""

Texts = Mapping[Scope | None, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors of texts of several scopes, as far as their ceilings allowed them.

    Attributes:
        vectors: Scope → float32 of shape ``(granted texts, dimensions)``, of its first texts.
        verdicts: Scope → of each text whether it was embedded, or why not.
        settle: Counts what was spent; call it in the transaction that stores the vectors, after
            all else that it writes, and without a scope.
    """

    vectors: Mapping[Scope | None, np.ndarray]
    verdicts: Mapping[Scope | None, Sequence[Verdict]]
    settle: Callable[[UnitOfWork], None]


def counts_tokens(embedder: Embedder) -> bool:
    """Return whether an embedder bounds the tokens of texts, so that ceilings hold for it."""
    return hasattr(embedder, "count_most_tokens")


def embed_within(database: Database, embedder: Embedder, texts: Texts) -> Embedded:
    """Embed the texts of scopes, each within its ceiling of tokens for the day.

    Tokens are reserved before the call, by a bound that no text exceeds, and what is not spent is
    given back after it. An embedder without ``count_most_tokens(texts)`` spends nothing.

    A provider counts the tokens of a request as a whole: texts of a scope with a ceiling are never
    in one with those of others.

    Args:
        database: Where the ceilings are.
        embedder: Makes the vectors.
        texts: Scope → its texts; None is what is everybody's, over which there is no ceiling.

    Raises:
        EmbeddingError: A call failed; what was spent is counted.
    """
    if not counts_tokens(embedder):
        every = list(texts)
        return Embedded(
            _split(texts, every, _embed(embedder, texts, every)),
            {scope: ["granted"] * len(of) for scope, of in texts.items()},
            lambda _work: None,
        )
    bounding: Any = embedder
    bounds: dict[Scope | None, list[int]] = {
        scope: bounding.count_most_tokens(of) for scope, of in texts.items()
    }
    allowances = _reserve(database, {key: of for key, of in bounds.items() if key is not None})
    limited = [scope for scope, each in allowances.items() if each.day is not None]
    granted: dict[Scope | None, Sequence[str]] = {
        scope: of if scope is None else of[: allowances[scope].granted]
        for scope, of in texts.items()
    }
    together = [scope for scope in texts if scope is None or scope not in limited]
    groups: list[list[Scope | None]] = [[each] for each in limited if granted[each]]
    if any(granted[scope] for scope in together):
        groups.append(together)
    spent: dict[Scope | None, int] = dict.fromkeys(texts, 0)

    def call(group: list[Scope | None]) -> np.ndarray:
        alone = group[0] in limited
        with meter_calls(is_limited=alone) as meter:
            try:
                return _embed(embedder, granted, group)
            finally:
                weights = [sum(bounds[scope][: len(granted[scope])]) for scope in group]
                spent.update(zip(group, _divide(meter.tokens, weights), strict=True))

    def settle(work: UnitOfWork) -> None:
        work.usage.settle(spent, allowances)

    try:
        made = _call_all(call, groups)
    except BaseException:
        _settle_alone(database, settle)
        raise
    empty = np.empty((0, embedder.dimensions), dtype=np.float32)
    vectors: dict[Scope | None, np.ndarray] = dict.fromkeys(texts, empty)
    for group, rows in zip(groups, made, strict=True):
        vectors |= _split(granted, group, rows)
    verdicts: dict[Scope | None, Sequence[Verdict]] = {
        scope: ["granted"] * len(of) if scope is None else allowances[scope].verdicts
        for scope, of in texts.items()
    }
    return Embedded(vectors, verdicts, settle)


def _reserve(database: Database, bounds: Mapping[Scope, Sequence[int]]) -> dict[Scope, Allowance]:
    if not bounds:
        return {}
    with database.unit_of_work() as work:
        allowances = work.usage.reserve(bounds)
        work.commit()
    return allowances


def _settle_alone(database: Database, settle: Callable[[UnitOfWork], None]) -> None:
    """Count what a failed call has spent; where that fails, what was reserved counts as spent."""
    try:
        with database.unit_of_work() as work:
            settle(work)
            work.commit()
    except DataLayerError as error:
        logger.warning("the tokens of a call that failed stay reserved: %s", error)


def _call_all(
    call: Callable[[list[Scope | None]], np.ndarray], groups: Sequence[list[Scope | None]]
) -> list[np.ndarray]:
    """Call for each group; if some fail, raise the first error when all have ended."""
    if len(groups) <= 1:
        return [call(group) for group in groups]
    with ThreadPoolExecutor(min(CALLS_AT_ONCE, len(groups)), "embedding") as pool:
        # Each in a context of its own: for the ids of the trace, and the tokens.
        calls = [pool.submit(copy_context().run, partial(call, group)) for group in groups]
    return [each.result() for each in calls]


def _embed(embedder: Embedder, texts: Texts, group: Sequence[Scope | None]) -> np.ndarray:
    joined = [text for scope in group for text in texts[scope]]
    if not joined:
        return np.empty((0, embedder.dimensions), dtype=np.float32)
    return embed_documents(embedder, joined)


def _split(
    texts: Texts, group: Sequence[Scope | None], vectors: np.ndarray
) -> dict[Scope | None, np.ndarray]:
    """Return the vectors of each scope of a group."""
    ends = np.cumsum([len(texts[scope]) for scope in group])
    return dict(zip(group, np.split(vectors, ends[:-1]) if group else [], strict=True))


def _divide(tokens: int, weights: Sequence[int]) -> list[int]:
    """Divide tokens by weights, so that the parts add up to them."""
    total = sum(weights) or 1
    ends = [tokens * int(end) // total for end in np.cumsum(weights)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
