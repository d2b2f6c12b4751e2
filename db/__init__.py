"""Everything that knows a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pgcorpus

if TYPE_CHECKING:
    from pgcorpus.db.engine import Database
    from pgcorpus.db.settings import Settings
    from pgcorpus.db.uow import AsyncUnitOfWork, UnitOfWork

__all__ = ["AsyncUnitOfWork", "Database", "Settings", "UnitOfWork"]


def __getattr__(name: str) -> object:
    """Import a name when it is first used, as ``pgcorpus`` does: help of commands needs none."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(pgcorpus, name)
