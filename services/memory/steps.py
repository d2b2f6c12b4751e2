"""What a memory service does, step by step, whoever waits: a thread, or an event loop.

An operation is a generator. It yields what has to be waited for and is sent the answer, so that it
is written once for both services.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from pgcorpus.db.scope import Scope
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.search.request import SearchOptions

T = TypeVar("T")


@dataclass(frozen=True)
class Transact:
    """A transaction within a scope; it is committed when *function* returns."""

    scope: Scope
    actor: str | None
    function: Callable[[UnitOfWork], Any]


@dataclass(frozen=True)
class Compute:
    """What takes long and needs no transaction: a model that is asked."""

    function: Callable[[], Any]


@dataclass(frozen=True)
class Search:
    """A search; the answer is its page."""

    question: str
    corpus: str
    options: SearchOptions


Step = Transact | Compute | Search
Steps = Generator[Step, Any, T]
