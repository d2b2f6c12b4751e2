"""Everything that knows a table."""

from db.engine import Database
from db.settings import Settings
from db.uow import AsyncUnitOfWork, UnitOfWork

__all__ = ["AsyncUnitOfWork", "Database", "Settings", "UnitOfWork"]
