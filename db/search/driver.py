"""Statements compiled once by SQLAlchemy, and run by psycopg as they are."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import BindParameter, Select
from sqlalchemy.dialects.postgresql import psycopg


class _Compiler(psycopg.PGCompiler_psycopg):
    """Writes constants into the statement; only parameters without a value are left open."""

    def visit_bindparam(self, bindparam: BindParameter[Any], *args: Any, **options: Any) -> Any:
        if not bindparam.required:
            options["literal_binds"] = True
        return super().visit_bindparam(bindparam, *args, **options)  # type: ignore[no-untyped-call]


DIALECT: Final = psycopg.dialect()  # type: ignore[no-untyped-call]
DIALECT.statement_compiler = _Compiler


def in_drivers_words(statement: Select[Any]) -> str:
    """Compile a statement for psycopg, with ``%(name)s`` for each parameter."""
    return str(statement.compile(dialect=DIALECT))
