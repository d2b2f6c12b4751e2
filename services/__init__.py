"""Everything a caller does. Owns units of work, writes no SQL."""

from services.embedding.embed import EmbeddingService
from services.export.chat import ChatExporter
from services.importers.chat.importer import ChatImporter
from services.importers.knowledge import KnowledgeImporter
from services.importers.memory.importer import MemoryImporter
from services.jobs.worker import Worker
from services.memory.service import AsyncMemoryService, MemoryService
from services.ops.validate import ValidationService
from services.search import AsyncSearchService, SearchService

__all__ = [
    "AsyncMemoryService",
    "AsyncSearchService",
    "ChatExporter",
    "ChatImporter",
    "EmbeddingService",
    "KnowledgeImporter",
    "MemoryImporter",
    "MemoryService",
    "SearchService",
    "ValidationService",
    "Worker",
]
