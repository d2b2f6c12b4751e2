"""Statements compiled once by SQLAlchemy, and run by psycopg as they are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Protocol

import psycopg
from sqlalchemy import BindParameter, Dialect, Select
from sqlalchemy.dialects.postgresql import psycopg as of_psycopg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

from pgcorpus.db.search.pipeline import Driver, Rows, exchange

Sent = tuple[str, Mapping[str, Any] | None]
"""A statement in psycopg's words, with its parameters."""


class Exchange(Protocol):
    """Sends statements together, and returns the rows of each. It raises ``DBAPIError``."""

    def __call__(  # noqa: D102 - above
        self, statements: Sequence[Sent], settings: Mapping[str, str] | None = ...
    ) -> list[Rows]: ...


SETTINGS: Final = (
    "SELECT count(set_config(key, value, true)) FROM json_each_text(%(settings)s::json)"
)

PLACEHOLDER: Final = re.compile(r"%(?:\((\w+)\)s|(%))")


class _Compiler(of_psycopg.PGCompiler_psycopg):
    """Writes constants into the statement; only parameters without a value are left open."""

    def visit_bindparam(self, bindparam: BindParameter[Any], *args: Any, **options: Any) -> Any:
        if not bindparam.required:
            options["literal_binds"] = True
        return super().visit_bindparam(bindparam, *args, **options)  # type: ignore[no-untyped-call]


DIALECT: Final = of_psycopg.dialect()  # type: ignore[no-untyped-call]
DIALECT.statement_compiler = _Compiler


def in_drivers_words(statement: Select[Any]) -> str:
    """Compile a statement for psycopg, with ``%(name)s`` for each parameter."""
    return str(statement.compile(dialect=DIALECT))


def make_settings(settings: Mapping[str, str] | None) -> list[Sent]:
    """Return the statement that makes settings for the transaction, if there are any."""
    return [(SETTINGS, {"settings": json.dumps(settings)})] if settings else []


def send(driver: Driver, statements: Sequence[Sent]) -> list[Rows]:
    """Send statements together, in one round trip; within ``Database.run`` it is awaited.

    Each is prepared: the second search of its kind neither parses nor plans it.

    Returns:
        The rows of each.

    Raises:
        psycopg.Error: One failed, and those after it were not run.
    """
    if isinstance(driver, psycopg.AsyncConnection):
        return await_only(_send_async(driver, statements))
    with driver.lock:
        return driver.wait(exchange(driver, [_number(each) for each in statements]))


async def _send_async(
    driver: psycopg.AsyncConnection[Any], statements: Sequence[Sent]
) -> list[Rows]:
    async with driver.lock:
        return await driver.wait(exchange(driver, [_number(each) for each in statements]))


def _number(statement: Sent) -> tuple[str, list[Any]]:
    """Return a statement with ``$1`` for its first parameter, and the values in this order."""
    sql, values = statement
    numbered, names = _number_parameters(sql)
    return numbered, [values[name] for name in names] if values is not None else []


@lru_cache(maxsize=2048)
def _number_parameters(sql: str) -> tuple[str, tuple[str, ...]]:
    """Number the parameters of a statement, which psycopg would do anew for each long one."""
    numbers: dict[str, int] = {}

    def number(found: re.Match[str]) -> str:
        return "%" if found[2] else f"${numbers.setdefault(found[1], len(numbers) + 1)}"

    numbered = PLACEHOLDER.sub(number, sql)
    return numbered, tuple(numbers)


def as_sqlalchemy(
    error: psycopg.Error, statement: str, dialect: Dialect, *, gone: bool
) -> DBAPIError:
    """Return the driver's error as SQLAlchemy raises it."""
    made = DBAPIError.instance(
        statement, None, error, psycopg.Error, connection_invalidated=gone, dialect=dialect
    )
    assert isinstance(made, DBAPIError)  # noqa: S101 - of an error of the driver it is
    return made
