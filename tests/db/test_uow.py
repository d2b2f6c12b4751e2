"""Units of work: what is not committed never was, whatever goes wrong, with and without asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import URL, Engine, create_engine, func, select, text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import (
    AlreadyExists,
    ConstraintViolated,
    DatabaseNotReady,
    DatabaseUnavailable,
    InvalidValue,
    MissingReference,
)
from pgcorpus.db.models import FrameworkDocument
from pgcorpus.db.uow import AsyncUnitOfWork, UnitOfWork
from tests import factories


def add(work: UnitOfWork, **values: Any) -> FrameworkDocument:
    """Write one chunk and flush it."""
    factories.bind(work.session)
    return factories.FrameworkDocumentFactory(**values)


def count(work: UnitOfWork) -> int:
    """Count the chunks."""
    return work.session.scalar(select(func.count()).select_from(FrameworkDocument)) or 0


def count_kept(database: Database) -> int:
    """Count the chunks that are committed."""
    with database.unit_of_work() as work:
        return count(work)


def process(work: UnitOfWork) -> int:
    """The server's process that serves the unit of work."""
    return work.session.scalar(select(func.pg_backend_pid())) or 0


@pytest.fixture
def bystander(administrator: URL) -> Iterator[Engine]:
    """Somebody else on the server."""
    engine = create_engine(administrator, isolation_level="AUTOCOMMIT")
    yield engine
    engine.dispose()


def end(bystander: Engine, pid: int) -> None:
    """End a connection from the server's side, and come back when it has ended."""
    with bystander.connect() as connection:
        terminated = text("SELECT pg_terminate_backend(:pid, 10000)")
        assert connection.scalar(terminated, {"pid": pid})


def test_leaving_without_commit_keeps_nothing(database: Database) -> None:
    """Forgetting to commit is noticed at once, not when half of it is there."""
    with database.unit_of_work() as work:
        add(work)
        assert count(work) == 1

    assert count_kept(database) == 0


def test_an_exception_keeps_nothing(database: Database) -> None:
    """It passes through as it is."""

    def fail() -> None:
        with database.unit_of_work() as work:
            add(work)
            raise KeyError("own")

    with pytest.raises(KeyError, match="own"):
        fail()
    assert count_kept(database) == 0


def test_commit_keeps_what_was_done_until_then(database: Database) -> None:
    """Later changes are of another transaction, and rollback forgets them."""
    with database.unit_of_work() as work:
        add(work)
        work.commit()
        add(work)
        work.rollback()
        add(work)

    assert count_kept(database) == 1


def test_a_unit_of_work_gives_its_connection_back(database: Database) -> None:
    """After success and after failure."""
    for values in ({}, {"section": None}):
        try:
            with database.unit_of_work() as work:
                add(work, **values)
        except InvalidValue:
            pass
        assert database.engine.pool.checkedout() == 0


def of_vector(**values: Any) -> Callable[[UnitOfWork], object]:
    """Write one vector."""

    def write(work: UnitOfWork) -> object:
        factories.bind(work.session)
        return factories.ChunkEmbeddingFactory(**values)

    return write


def of_vector_without_index(work: UnitOfWork) -> None:
    """Write a vector of 3 dimensions for a model of 4."""
    factories.bind(work.session)
    model = factories.EmbeddingModelFactory(dimensions=4)
    factories.ChunkEmbeddingFactory(model_name=model.name, embedding=factories.axis(0, length=3))


def of_chunk(**values: Any) -> Callable[[UnitOfWork], object]:
    """Write one chunk."""
    return lambda work: add(work, **values)


def of_lines(**values: Any) -> Callable[[UnitOfWork], object]:
    """Write the source lines of one chunk."""

    def write(work: UnitOfWork) -> object:
        factories.bind(work.session)
        return factories.SourceLinesFactory(**values)

    return write


def of_concept(**values: Any) -> Callable[[UnitOfWork], object]:
    """Write one concept."""

    def write(work: UnitOfWork) -> object:
        factories.bind(work.session)
        return factories.KeyConceptFactory(**values)

    return write


def twice(work: UnitOfWork) -> None:
    """Write two chunks of one identifier."""
    add(work, chunk_id="same")
    add(work, chunk_id="same")


NAN = np.full(384, np.nan, dtype=np.float32)
INFINITE = np.full(384, np.inf, dtype=np.float32)
ZEROS = np.zeros(384, dtype=np.float32)

# what is written → (the error, the constraint it names, what it says)
REFUSALS: dict[str, tuple[Callable[[UnitOfWork], object], type[ConstraintViolated], Any, str]] = {
    "a second row of one key": (
        twice,
        AlreadyExists,
        "uq_framework_documents_chunk_id",
        "framework_documents: a row with the same key exists",
    ),
    "an unknown model": (
        of_vector(model_name="unheard-of"),
        MissingReference,
        "valid_model_name",
        "the model is not in the registry; see: pgcorpus models list",
    ),
    "a short vector": (
        of_vector(embedding=factories.axis(0)),
        InvalidValue,
        None,
        "expected 384 dimensions, not 4",
    ),
    "a short vector of a model without an index": (
        of_vector_without_index,
        MissingReference,
        "valid_embedding_dimensions",
        "chunk_embeddings: the vector is not as long as the vectors of its model",
    ),
    "a vector of zeros": (
        of_vector(embedding=ZEROS),
        InvalidValue,
        "nonzero_embedding",
        "a vector of zeros has no direction",
    ),
    "a vector with NaN": (of_vector(embedding=NAN), InvalidValue, None, "NaN not allowed"),
    "a vector with infinity": (
        of_vector(embedding=INFINITE),
        InvalidValue,
        None,
        "infinite value not allowed",
    ),
    "no section": (of_chunk(section=None), InvalidValue, None, "section must have a value"),
    "a long section": (of_chunk(section="x" * 256), InvalidValue, None, "too long"),
    "a NUL byte": (of_chunk(title="\0"), InvalidValue, None, "NUL"),
    "no content": (
        of_chunk(content="  ", details=False),
        InvalidValue,
        "non_empty_content",
        "framework_documents: the value breaks the rule non_empty_content",
    ),
    "a file with a space": (
        of_chunk(source_file="my notes.md"),
        InvalidValue,
        "valid_source_file",
        "source_file may hold letters, digits, '_', '.' and '-' only",
    ),
    "an unknown kind": (
        of_chunk(details__chunk_type="poem"),
        InvalidValue,
        "valid_chunk_type",
        "chunk_type must be atomic_framework, framework_section or supporting",
    ),
    "too many characters": (
        of_chunk(details__character_count=50_001),
        InvalidValue,
        "valid_character_count",
        "between 1 and 50000",
    ),
    "no words": (
        of_chunk(details__word_count=0),
        InvalidValue,
        "valid_word_count",
        "between 1 and 15000",
    ),
    "short words": (
        of_chunk(details__word_count=10, details__character_count=29),
        InvalidValue,
        "logical_word_char_ratio",
        "three characters on average",
    ),
    "a number too large": (
        of_chunk(details__word_count=2**31),
        InvalidValue,
        None,
        "out of range",
    ),
    "a concept with an underscore": (
        of_concept(concept_name="price_anchor"),
        InvalidValue,
        "valid_concept_format",
        "a concept may hold letters",
    ),
    "lines backwards": (
        of_lines(start_line=9, end_line=8),
        InvalidValue,
        "valid_line_numbers",
        "the last is not before the first",
    ),
    "a whole library": (
        of_lines(start_line=1, end_line=10_002),
        InvalidValue,
        "reasonable_line_range",
        "at most 10000",
    ),
}


@pytest.mark.parametrize("refused", REFUSALS)
def test_what_the_database_refuses_is_an_error_of_this_layer(
    shared: Database, refused: str
) -> None:
    """With the constraint's name for code and a sentence for people; the cause stays attached."""
    write, error, constraint, said = REFUSALS[refused]

    with pytest.raises(error) as raised, shared.unit_of_work() as work:
        write(work)

    assert type(raised.value) is error
    assert raised.value.constraint == constraint
    assert said in str(raised.value)
    assert raised.value.__cause__ is not None


def test_a_database_without_the_schema_says_how_to_make_it(empty: Database) -> None:
    """A missing table is a missing upgrade."""
    with pytest.raises(DatabaseNotReady, match="pgcorpus db upgrade"), empty.unit_of_work() as work:
        count(work)


def test_a_connection_lost_in_the_middle_keeps_nothing(
    database: Database, bystander: Engine
) -> None:
    """The caller learns it from the next statement, and the next unit of work is well."""

    def lose() -> None:
        with database.unit_of_work() as work:
            add(work)
            end(bystander, process(work))
            add(work)

    with pytest.raises(DatabaseUnavailable, match="connection to the database was lost"):
        lose()
    assert count_kept(database) == 0


def test_a_connection_lost_before_the_commit_keeps_nothing(
    database: Database, bystander: Engine
) -> None:
    """A commit that did not reach the server is no commit."""

    def lose() -> None:
        with database.unit_of_work() as work:
            add(work)
            end(bystander, process(work))
            work.commit()

    with pytest.raises(DatabaseUnavailable):
        lose()
    assert count_kept(database) == 0


def test_a_connection_lost_before_leaving_is_rolled_back_already(
    database: Database, bystander: Engine
) -> None:
    """Nothing was to be kept: there is nothing to complain about, and the own error stays."""
    with database.unit_of_work() as work:
        add(work)
        end(bystander, process(work))

    def fail() -> None:
        with database.unit_of_work() as work:
            end(bystander, process(work))
            raise KeyError("own")

    with pytest.raises(KeyError, match="own"):
        fail()
    assert count_kept(database) == 0
    assert database.engine.pool.checkedout() == 0


def test_a_connection_lost_in_the_pool_is_replaced(database: Database, bystander: Engine) -> None:
    """It is asked before it is used; the caller notices nothing."""
    with database.unit_of_work() as work:
        first = process(work)
    end(bystander, first)

    with database.unit_of_work() as work:
        assert process(work) != first


def test_an_exhausted_pool_is_an_unavailable_database(shared: Database) -> None:
    """The message names the variables that mend it."""
    settings = replace(shared.settings, pool_size=1, max_overflow=0, pool_timeout_seconds=0)
    narrow = Database(settings)
    with narrow.unit_of_work() as work:
        process(work)
        with (
            pytest.raises(DatabaseUnavailable, match="raise DB_POOL_SIZE or DB_MAX_OVERFLOW"),
            narrow.unit_of_work() as second,
        ):
            process(second)
    narrow.close()


def test_many_threads_share_few_connections(database: Database) -> None:
    """Sixty callers, two connections: each waits its turn and none is lost."""
    narrow = Database(replace(database.settings, pool_size=2, max_overflow=0))

    def write(number: int) -> None:
        with narrow.unit_of_work() as work:
            work.session.add(
                FrameworkDocument(
                    chunk_id=str(number), source_file="f", section="s", title="t", content="c"
                )
            )
            work.commit()

    with ThreadPoolExecutor(60) as pool:
        list(pool.map(write, range(60)))

    assert narrow.engine.pool.checkedin() <= 2
    narrow.close()
    assert count_kept(database) == 60


# The same with asyncio: one code path, so the functions above serve here, too.


def run(database: Database, use: Callable[[AsyncUnitOfWork], Awaitable[object]]) -> None:
    """Use a unit of work in an event loop of its own, which leaves no connection checked out."""

    async def whole() -> None:
        try:
            async with database.async_unit_of_work() as work:
                await use(work)
        finally:
            assert count_checked_out(database) == 0
            await database.aclose()
            del database.async_engine, database._async_sessions  # they belong to this loop

    asyncio.run(whole())


def count_checked_out(database: Database) -> int:
    """Count the connections of the pool for asyncio that are in use."""
    return database.async_engine.pool.checkedout()  # type: ignore[attr-defined]


def test_asyncio_keeps_what_was_committed_and_nothing_else(database: Database) -> None:
    """Commit, then more, then rollback, then more."""

    async def use(work: AsyncUnitOfWork) -> None:
        await work.run(add)
        await work.commit()
        await work.run(add)
        await work.rollback()
        await work.run(add)
        assert await work.run(count) == 2

    run(database, use)

    assert count_kept(database) == 1


def test_asyncio_raises_this_layer_s_errors(database: Database) -> None:
    """Of the database, and of the caller."""
    with pytest.raises(InvalidValue, match="section must have a value"):
        run(database, lambda work: work.run(add, section=None))

    async def own(work: AsyncUnitOfWork) -> None:
        await work.run(add)
        raise KeyError("own")

    with pytest.raises(KeyError, match="own"):
        run(database, own)
    assert count_kept(database) == 0


def test_asyncio_survives_a_lost_connection(database: Database, bystander: Engine) -> None:
    """As the other one does."""

    async def use(work: AsyncUnitOfWork) -> None:
        await work.run(add)
        end(bystander, await work.run(process))
        await work.run(add)

    async def leave(work: AsyncUnitOfWork) -> None:
        await work.run(add)
        end(bystander, await work.run(process))

    with pytest.raises(DatabaseUnavailable, match="connection to the database was lost"):
        run(database, use)
    run(database, leave)
    assert count_kept(database) == 0


def test_a_cancelled_task_keeps_nothing(database: Database, bystander: Engine) -> None:
    """In the middle of a statement: it is rolled back, and its connection is free."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active' AND datname = :database"
    )

    def sleeping() -> bool:
        with bystander.connect() as connection:
            return bool(connection.scalar(waiting, {"database": database.url.database}))

    async def until(happened: Callable[[], bool]) -> None:
        while not happened():  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.01)

    async def use(work: AsyncUnitOfWork) -> None:
        await work.run(add)
        await work.run(lambda work: work.session.execute(text("SELECT pg_sleep(3600)")))

    async def cancel() -> None:
        async def whole() -> None:
            async with database.async_unit_of_work() as work:
                await use(work)

        task = asyncio.create_task(whole())
        await until(sleeping)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert count_checked_out(database) == 0
        await until(lambda: not sleeping())  # the server ends the statement when it hears of it
        async with database.async_unit_of_work() as work:
            assert await work.run(count) == 0
        await database.aclose()

    asyncio.run(cancel())
    assert count_kept(database) == 0
