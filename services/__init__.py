"""Everything a caller does. Owns units of work, writes no SQL."""

from services.embedding.embed import EmbeddingService
from services.export.chat import ChatExporter
from services.importers.chat.importer import ChatImporter
from services.importers.knowledge import KnowledgeImporter
from services.jobs.worker import Worker
from services.ops.validate import ValidationService
from services.search import AsyncSearchService, SearchService

__all__ = [
    "AsyncSearchService",
    "ChatExporter",
    "ChatImporter",
    "EmbeddingService",
    "KnowledgeImporter",
    "SearchService",
    "ValidationService",
    "Worker",
]
