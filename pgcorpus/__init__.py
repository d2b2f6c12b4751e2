"""One PostgreSQL database for everything an AI backend retrieves.

The names below are the public interface. Each is imported when it is first used, so that
``import pgcorpus`` and ``pgcorpus --help`` are quick.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgcorpus.db import errors, migrations
    from pgcorpus.db.engine import Database
    from pgcorpus.db.scope import Scope
    from pgcorpus.db.search.corpora import register
    from pgcorpus.db.search.corpus import Corpus, Filter, Order
    from pgcorpus.db.settings import Settings
    from pgcorpus.db.uow import AsyncUnitOfWork, UnitOfWork
    from pgcorpus.services import samples
    from pgcorpus.services.chat.api import ChatApi
    from pgcorpus.services.chat.exporting.exporter import ChatExporter
    from pgcorpus.services.chat.importing.importer import ChatImporter
    from pgcorpus.services.documentation.importing.importer import DocumentationImporter
    from pgcorpus.services.documentation.service import AsyncDocumentService, DocumentService
    from pgcorpus.services.embedding.embed import EmbeddingService
    from pgcorpus.services.jobs.worker import Worker
    from pgcorpus.services.knowledge.importer import KnowledgeImporter
    from pgcorpus.services.memory.importing.importer import MemoryImporter
    from pgcorpus.services.memory.service import AsyncMemoryService, MemoryService
    from pgcorpus.services.ops.metrics.app import Metrics
    from pgcorpus.services.ops.validation import ValidationService
    from pgcorpus.services.search.service import AsyncSearchService, SearchService

__all__ = [
    "AsyncDocumentService",
    "AsyncMemoryService",
    "AsyncSearchService",
    "AsyncUnitOfWork",
    "ChatApi",
    "ChatExporter",
    "ChatImporter",
    "Corpus",
    "Database",
    "DocumentService",
    "DocumentationImporter",
    "EmbeddingService",
    "Filter",
    "KnowledgeImporter",
    "MemoryImporter",
    "MemoryService",
    "Metrics",
    "Order",
    "Scope",
    "SearchService",
    "Settings",
    "UnitOfWork",
    "ValidationService",
    "Worker",
    "errors",
    "migrations",
    "register",
    "samples",
]

_MODULES = {
    "AsyncDocumentService": "services.documentation.service",
    "AsyncMemoryService": "services.memory.service",
    "AsyncSearchService": "services.search.service",
    "AsyncUnitOfWork": "db.uow",
    "ChatApi": "services.chat.api",
    "ChatExporter": "services.chat.exporting.exporter",
    "ChatImporter": "services.chat.importing.importer",
    "Corpus": "db.search.corpus",
    "Database": "db.engine",
    "DocumentService": "services.documentation.service",
    "DocumentationImporter": "services.documentation.importing.importer",
    "EmbeddingService": "services.embedding.embed",
    "Filter": "db.search.corpus",
    "KnowledgeImporter": "services.knowledge.importer",
    "MemoryImporter": "services.memory.importing.importer",
    "MemoryService": "services.memory.service",
    "Metrics": "services.ops.metrics.app",
    "Order": "db.search.corpus",
    "Scope": "db.scope",
    "SearchService": "services.search.service",
    "Settings": "db.settings",
    "UnitOfWork": "db.uow",
    "ValidationService": "services.ops.validation",
    "Worker": "services.jobs.worker",
    "errors": "db",
    "migrations": "db",
    "register": "db.search.corpora",
    "samples": "services",
}
"""Public name → the module that defines it, below this package."""

# A checkout without symbolic links (Windows, an archive) has db and services beside this folder.
if not (Path(__file__).parent / "db").is_dir():
    __path__.append(str(Path(__file__).parents[1]))


def __getattr__(name: str) -> object:
    """Import a public name from its module."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"{__name__}.{_MODULES[name]}")
    value = getattr(home, name, None)
    return import_module(f"{home.__name__}.{name}") if value is None else value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
