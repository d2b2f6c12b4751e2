"""Everything a caller does. Owns units of work, writes no SQL."""

from services.embedding.embed import EmbeddingService
from services.importers.knowledge import KnowledgeImporter
from services.ops.validate import ValidationService
from services.search import AsyncSearchService, SearchService

__all__ = [
    "AsyncSearchService",
    "EmbeddingService",
    "KnowledgeImporter",
    "SearchService",
    "ValidationService",
]
