"""Services for asyncio: the synchronous methods, awaited. Nothing is written twice."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from pgcorpus.db.engine import Database

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


class Awaited(Generic[S]):
    """The asyncio face of a service; its methods are made by ``awaited``.

    Args:
        database: Of the service.
        service: Does the work, by ``Database.run``: its statements are awaited, and what it hands
            to ``Database.call`` runs in another thread.
    """

    def __init__(self, database: Database, service: S) -> None:
        self._database = database
        self._service = service


def awaited(
    method: Callable[Concatenate[S, P], T],
) -> Callable[Concatenate[Awaited[S], P], Coroutine[Any, Any, T]]:
    """Wrap *method* so that its database work is awaited; signature and docstring stay."""

    @wraps(method)
    async def call(self: Awaited[S], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._database.run(method, self._service, *args, **kwargs)

    return call
