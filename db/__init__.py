"""Everything that knows a table."""

from pgcorpus.db.engine import Database
from pgcorpus.db.settings import Settings
from pgcorpus.db.uow import AsyncUnitOfWork, UnitOfWork

__all__ = ["AsyncUnitOfWork", "Database", "Settings", "UnitOfWork"]
