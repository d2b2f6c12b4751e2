"""Turns of an event loop: greenlets that are ready together do not keep it from all others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Generator
from typing import Any, Final, Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")

TURN_SECONDS: Final = 0.005
"""Seconds that greenlets may compute before the loop comes to what else is ready: a timer, a
socket, a request. One that is then still to go on waits for the loop's next turn."""

_begun: WeakKeyDictionary[asyncio.AbstractEventLoop, float] = WeakKeyDictionary()
"""Loops whose turn has begun → when the first greenlet went on in it."""


class InTurn(Generic[T]):
    """Awaits a coroutine, and lets others have the loop before it goes on computing.

    A hundred searches may have their rows at the same time. Each needs a millisecond to make hits
    of them, and the loop would run them all before it looks at a clock.

    Args:
        coroutine: Computes between its awaits.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, T]:
        resume, value = self._coroutine.send, None
        error: BaseException | None = None
        while True:
            try:
                while _is_over():
                    yield  # the loop runs this again in its next turn
            except BaseException as cancelled:  # noqa: BLE001 - what a task throws in
                error = cancelled
            try:
                awaited = resume(value) if error is None else self._coroutine.throw(error)
            except StopIteration as end:
                result: T = end.value
                return result
            value, error = None, None
            try:
                value = yield awaited
            except BaseException as thrown:  # noqa: BLE001 - what a task throws in
                error = thrown


def _is_over() -> bool:
    """Return whether the greenlets of this turn have computed long enough."""
    loop = asyncio.get_running_loop()
    begun = _begun.get(loop)
    if begun is None:
        _begun[loop] = time.perf_counter()
        loop.call_soon(_begun.pop, loop, None)  # at the beginning of the next turn
        return False
    return time.perf_counter() - begun > TURN_SECONDS
