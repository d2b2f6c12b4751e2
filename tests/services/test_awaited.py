"""Services under asyncio: the synchronous methods, awaited, and cancelled wherever they wait."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Generator,
    Iterator,
    Sequence,
)
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import EmbedderUnavailable, InvalidValue
from pgcorpus.db.repositories.memory.nodes import Exchange
from pgcorpus.db.search.corpora import KNOWLEDGE
from pgcorpus.db.search.page import Hit, SearchPage
from pgcorpus.services.documentation.service import AsyncDocumentService, DocumentService
from pgcorpus.services.memory.service import AsyncMemoryService, MemoryService
from pgcorpus.services.search.service import AsyncSearchService, SearchService
from tests import factories
from tests.db.search.shelves import SHELVES
from tests.services.memory.setting import ObedientEmbedder, Setting, setting
from tests.services.search.test_service import PASSAGES, AxisEmbedder

__all__ = ["setting"]

PATIENCE_SECONDS = 30.0

# psycopg leaves a generator of a pipeline behind when it is interrupted twice and closes the
# connection; collected, the generator complains that the connection is gone. It is collected before
# the test ends, or a later test would be told of it.
twice_interrupted = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

FACES = [
    (SearchService, AsyncSearchService),
    (MemoryService, AsyncMemoryService),
    (DocumentService, AsyncDocumentService),
]

SPOKEN: ContextVar[str] = ContextVar("spoken", default="")


@asynccontextmanager
async def open_database(database: Database, **settings: Any) -> Any:
    """Open the database with a pool of its own, for one event loop."""
    own = Database(replace(database.settings, metrics_enabled=False, **settings))
    try:
        yield own
    finally:
        await own.aclose()


@pytest.fixture
def filled(database: Database) -> Database:
    """Three passages with their vectors."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        SHELVES[0].fill(work, PASSAGES)
        work.commit()
    return database


# The faces


@pytest.mark.parametrize(("service", "face"), FACES)
def test_every_method_has_its_face_with_the_same_signature_and_docstring(
    service: type, face: type
) -> None:
    """An editor tells of the awaited method what it tells of the other."""
    methods = {
        name: method
        for name, method in vars(service).items()
        if inspect.isfunction(method) and not name.startswith("_")
    }

    assert len(methods) > 2
    for name, method in methods.items():
        awaited = getattr(face, name)
        assert inspect.iscoroutinefunction(awaited), name
        assert inspect.signature(awaited) == inspect.signature(method)
        assert inspect.getdoc(awaited) == inspect.getdoc(method)


# Synchronous code in an event loop


def test_units_of_work_of_synchronous_code_are_awaited(filled: Database) -> None:
    """On the pool for asyncio: the other is not even made, and the loop goes on meanwhile."""

    def count_slowly(database: Database) -> int:
        with database.unit_of_work() as work:
            work.session.execute(text("SELECT pg_sleep(0.2)"))
            return work.searches.count(KNOWLEDGE)

    def fail(database: Database) -> None:
        with database.unit_of_work() as work:
            factories.bind(work.session)
            factories.FrameworkDocumentFactory(section=None)

    async def run() -> tuple[list[int], int]:
        async with open_database(filled) as database:
            ended: list[int] = []

            async def one() -> None:
                ended.append(await database.run(count_slowly, database))

            tasks = [asyncio.create_task(one()) for _ in range(2)]
            ticks = 0
            while not all(task.done() for task in tasks):
                await asyncio.sleep(0.001)
                ticks += 1
            await asyncio.gather(*tasks)
            with pytest.raises(InvalidValue, match="section must have a value"):
                await database.run(fail, database)
            assert "engine" not in vars(database)
            return ended, ticks

    ended, ticks = asyncio.run(run())

    assert ended == [len(PASSAGES)] * 2
    assert ticks > 1


def test_what_takes_long_is_called_in_another_thread(filled: Database) -> None:
    """Within an event loop; elsewhere at once. What it raises is raised."""

    def fail() -> None:
        raise EmbedderUnavailable("no answer")

    async def within() -> tuple[int, int]:
        here = threading.get_ident()
        there = await filled.run(filled.call, threading.get_ident)
        with pytest.raises(EmbedderUnavailable, match="no answer"):
            await filled.run(filled.call, fail)
        return here, there

    here, there = asyncio.run(within())

    assert here != there
    assert filled.call(threading.get_ident) == threading.get_ident()


def test_callers_functions_and_context_variables_are_as_without_asyncio(setting: Setting) -> None:
    """The iterable and the callback are called by the task itself, in its own context."""
    told: list[tuple[int, str, bool]] = []

    def ask() -> Iterator[Exchange]:
        for n in range(150):
            yield Exchange(human=f"{SPOKEN.get()} {n}", conversation_id="c")

    def progress(done: int) -> None:
        told.append((done, SPOKEN.get(), asyncio.current_task() is not None))
        SPOKEN.set(f"after {done}")

    async def remember() -> tuple[int, str]:
        async with open_database(setting.application) as database:
            SPOKEN.set("before")
            service = AsyncMemoryService(database, ObedientEmbedder())
            kept = await service.remember_many(
                ask(), scope=setting.ours, on_progress=progress, duplicates="keep"
            )
            return len(kept), SPOKEN.get()

    assert asyncio.run(remember()) == (150, "after 50")
    assert told == [(100, "before", True), (50, "after 100", True)]


# The event loop is not blocked


class WaitingEmbedder(AxisEmbedder):
    """Answers when it is allowed to, and remembers by which threads it was asked."""

    def __init__(self) -> None:
        self.allowed = threading.Event()
        self.asked = threading.Semaphore(0)
        self.threads: set[int] = set()

    def embed_question(self, text: str) -> np.ndarray:
        """Axis 0, later."""
        self.threads.add(threading.get_ident())
        self.asked.release()
        assert self.allowed.wait(PATIENCE_SECONDS), "the event loop was blocked"
        return super().embed_question(text)


def test_a_slow_model_and_a_slow_reranker_leave_the_loop_alone(filled: Database) -> None:
    """A hundred searches wait for them; who allows them to answer is a task of the same loop."""
    embedder, reranked, rerankers = WaitingEmbedder(), threading.Event(), set()

    def rerank(_question: str, hits: Sequence[Hit]) -> list[float]:
        rerankers.add(threading.get_ident())
        assert reranked.wait(PATIENCE_SECONDS), "the event loop was blocked"
        return [0.0] * len(hits)

    async def search() -> list[SearchPage]:
        async with open_database(filled) as database:
            service = AsyncSearchService(database, embedder=embedder)
            tasks = [
                asyncio.create_task(service.search("price", corpus="knowledge", rerank=rerank))
                for _ in range(100)
            ]
            await asyncio.to_thread(embedder.asked.acquire)
            embedder.allowed.set()
            while not rerankers:  # noqa: ASYNC110 - a set tells nobody
                await asyncio.sleep(0.001)
            reranked.set()
            pages = await asyncio.gather(*tasks)
            assert "engine" not in vars(database)  # whose connections would block
            return pages

    pages = asyncio.run(search())

    assert all(len(page.hits) == len(PASSAGES) and not page.degraded for page in pages)
    assert threading.get_ident() not in embedder.threads | rerankers


# Cancelled wherever it waits


@dataclass
class Interrupted:
    """Awaits a coroutine, and cancels its task in its nth wait.

    Attributes:
        coroutine: Which.
        places: In which of its waits, counted from 1.
        waits: How often it has waited.
    """

    coroutine: Coroutine[Any, Any, object]
    places: Collection[int]
    waits: int = 0

    def __await__(self) -> Generator[Any, Any, object]:
        step: Callable[[], Any] = partial(self.coroutine.send, None)
        while True:
            try:
                awaited = step()
            except StopIteration as end:
                return end.value
            self.waits += 1
            if self.waits in self.places and (task := asyncio.current_task()) is not None:
                task.cancel()
            try:
                step = partial(self.coroutine.send, (yield awaited))
            except BaseException as error:  # noqa: BLE001 - all that a task throws into a coroutine
                step = partial(self.coroutine.throw, error)


Call = Callable[[], Coroutine[Any, Any, object]]


async def cancel_everywhere(
    database: Database, call: Call, check: Callable[[], Awaitable[object]], *, again: bool
) -> int:
    """Cancel a call in each of its waits, and look after each whether the pool is whole.

    Args:
        database: With a pool of one connection.
        call: Begins the call anew.
        check: Uses the one connection.
        again: Cancel it in the wait after that, too: while it gives its connection back.

    Returns:
        In how many waits it was cancelled.
    """

    async def whole(interrupted: Interrupted) -> object:
        return await interrupted

    for place in count(1):
        interrupted = Interrupted(call(), {place, place + again})
        task = asyncio.create_task(whole(interrupted))
        await asyncio.wait([task])
        assert database.async_engine.pool.checkedout() == 0, place  # type: ignore[attr-defined]
        assert database._places._connecting == 0, place
        await check()
        if interrupted.waits < place:
            task.result()
            gc.collect()
            return place - 1
        assert task.cancelled(), place
    raise AssertionError


@twice_interrupted
@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("cold", [False, True], ids=["connected", "connecting"])
def test_a_search_that_is_cancelled_leaves_the_pool_whole(
    filled: Database, cold: bool, again: bool
) -> None:
    """In whichever await: of the model, a connection, either of two exchanges."""

    async def cancel() -> int:
        one = {"pool_size": 1, "max_overflow": 0, "pool_timeout_seconds": 5}
        async with open_database(filled, **one) as database:
            service = AsyncSearchService(database, embedder=AxisEmbedder())

            async def search() -> SearchPage:
                if cold:
                    await database.async_engine.dispose()
                    service._service._chosen.clear()
                return await service.search("price", corpus="knowledge")

            async def check() -> None:
                page = await service.search("refund price", corpus="knowledge")
                assert len(page.hits) == len(PASSAGES)
                assert not page.degraded

            await check()
            return await cancel_everywhere(database, search, check, again=again)

    assert asyncio.run(cancel()) >= 2  # an answer that is there already is not waited for


@twice_interrupted
@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_a_memory_that_is_cancelled_leaves_the_pool_whole(setting: Setting, again: bool) -> None:
    """Remembering, telling and forgetting; what another scope then sees is its own."""

    async def cancel() -> list[int]:
        one = {"pool_size": 1, "max_overflow": 0, "pool_timeout_seconds": 5}
        async with open_database(setting.application, **one) as database:
            service = AsyncMemoryService(database, ObedientEmbedder())
            ours, theirs = setting.ours, setting.theirs

            async def check() -> None:
                recalled = await service.recall("which word?", scope=theirs, touch=False)
                assert [memory.human for memory in recalled.memories] == ["The word is teapot."]

            await service.remember("The word is teapot.", scope=theirs, conversation_id="t")
            calls: list[Call] = [
                lambda: service.remember("The word is kettle.", scope=ours, conversation_id="c"),
                lambda: service.store_episode("c", scope=ours, title="About kettles"),
                lambda: service.context("which word?", scope=ours),
                lambda: service.forget(scope=ours, everything=True),
            ]
            counted = [
                await cancel_everywhere(database, call, check, again=again)
                for call in (calls[:1] if again else calls)
            ]
            await service.flush()
            return counted

    assert all(waits > 3 for waits in asyncio.run(cancel()))
