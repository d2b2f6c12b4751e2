"""Errors: the drawing is the hierarchy, and every sentence belongs to a constraint."""

from __future__ import annotations

import re

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from pgcorpus.db import errors
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import MEANINGS, DataLayerError, translate


def all_errors(kind: type[DataLayerError] = DataLayerError) -> set[type[DataLayerError]]:
    """The errors that the module defines."""
    below = [each for each in kind.__subclasses__() if each.__module__ == errors.__name__]
    return {kind}.union(*map(all_errors, below))


ERRORS = sorted(all_errors(), key=lambda kind: kind.__name__)


def test_the_drawing_shows_every_error_under_its_parent() -> None:
    """``*``, ``x`` and ``+`` are the levels."""
    drawn = set()
    parents: list[type[DataLayerError]] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"(?P<indent> *)[*x+] (?P<names>[A-Z]\w+(?:  [A-Z]\w+)*)", line):
            level = len(found["indent"]) // 2
            kinds = [getattr(errors, name) for name in found["names"].split()]
            for kind in kinds:
                assert level == 0 or kind.__base__ is parents[level - 1]
            parents[level:] = kinds[:1]
            drawn.update(kinds)

    assert drawn == set(ERRORS)


def test_the_drawing_says_of_each_misuse_that_it_is_one() -> None:
    """The command line ends with exit code 2 for these, and with 1 for all others."""
    drawing = errors.__doc__ or ""
    below = drawing[drawing.index("x Misuse") : drawing.index("x DatabaseUnavailable")]
    beside = drawing[drawing.index("+ EmptyQuestion") : drawing.index("+ WrongDimensions")]
    marked = re.findall(r"\+ (\w+) +a Misuse, too", drawing)

    names = {*re.findall(r"[A-Z]\w+", below + beside), *marked}
    assert names == {kind.__name__ for kind in ERRORS if issubclass(kind, errors.Misuse)}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_the_docstring_is_the_message_unless_one_is_given(error: type[DataLayerError]) -> None:
    """So that no error is silent."""
    assert str(error()) == (error.__doc__ or "").splitlines()[0]
    assert len(str(error())) > 10
    assert str(error("because")) == "because"


def test_every_sentence_belongs_to_a_constraint(session: Session) -> None:
    """A renamed constraint, or unique index, would leave its sentence behind."""
    named = text("""
        SELECT conname FROM pg_constraint WHERE connamespace = 'public'::regnamespace
        UNION SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
        WHERE indisunique AND relnamespace = 'public'::regnamespace
    """)
    constraints = set(session.scalars(named))

    assert set(MEANINGS) <= constraints


def test_what_is_not_known_is_not_translated() -> None:
    """A mistake in a statement keeps the driver's own words."""
    mistake = DBAPIError("SELEC", None, psycopg.errors.SyntaxError("at or near"))

    assert translate(mistake) is None
    assert translate(DBAPIError("SELECT", None, ValueError())) is None


def test_a_slow_statement_is_a_timeout(session: Session) -> None:
    """Named after the setting that ends it."""
    session.execute(text("SET LOCAL statement_timeout = 20"))
    with pytest.raises(DBAPIError) as raised:
        session.execute(text("SELECT pg_sleep(5)"))

    error = translate(raised.value)
    assert isinstance(error, errors.StatementTimeout)
    assert "DB_STATEMENT_TIMEOUT_MS" in str(error)


def test_a_row_that_another_holds_is_a_conflict(database: Database) -> None:
    """Waiting for a lock that does not come is told from being broken."""

    def wait() -> None:
        with database.unit_of_work() as work:
            work.session.execute(text("SET LOCAL lock_timeout = 20"))
            work.session.execute(text("SELECT FROM framework_documents"))

    with database.unit_of_work() as holder:
        holder.session.execute(text("LOCK TABLE framework_documents"))
        with pytest.raises(errors.TransactionConflict):
            wait()


def test_a_missing_right_is_named(session: Session) -> None:
    """With what it is missing on."""
    session.execute(text("CREATE ROLE without_rights; GRANT without_rights TO CURRENT_USER"))
    session.execute(text("SET LOCAL ROLE without_rights"))
    with pytest.raises(DBAPIError) as raised:
        session.execute(text("SELECT FROM framework_documents"))

    error = translate(raised.value)
    assert isinstance(error, errors.NotPermitted)
    assert "framework_documents" in str(error)
