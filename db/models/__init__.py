"""The tables, one module per corpus."""

from pgcorpus.db.models.audit import AuditSeal, SecurityAuditLog
from pgcorpus.db.models.chat import Conversation, Message, MessageEmbedding
from pgcorpus.db.models.documentation import (
    Chunk,
    ChunkBoost,
    ClickFeedback,
    Document,
    DocumentationEmbedding,
    LearnedRanking,
    SearchSession,
)
from pgcorpus.db.models.embeddings import SEEDED_MODELS, CorpusSetting, EmbeddingModel
from pgcorpus.db.models.imports import ImportFile, ImportReject, ImportRun, ImportTransformation
from pgcorpus.db.models.jobs import Job
from pgcorpus.db.models.knowledge import (
    ChunkEmbedding,
    DocumentConcept,
    FrameworkDocument,
    FrameworkMetadata,
    KeyConcept,
    SourceLines,
)
from pgcorpus.db.models.memory import (
    EpisodeEmbedding,
    EpisodicMemory,
    MemoryEmbedding,
    MemoryNode,
    Tenant,
    User,
    memory_id,
)
from pgcorpus.db.models.operations import (
    ArchivedQueryPerformance,
    BackupLog,
    MaintenanceLog,
    QueryPerformance,
)
from pgcorpus.db.models.usage import EmbeddingUsage, TokenCeiling

__all__ = [
    "SEEDED_MODELS",
    "ArchivedQueryPerformance",
    "AuditSeal",
    "BackupLog",
    "Chunk",
    "ChunkBoost",
    "ChunkEmbedding",
    "ClickFeedback",
    "Conversation",
    "CorpusSetting",
    "Document",
    "DocumentConcept",
    "DocumentationEmbedding",
    "EmbeddingModel",
    "EmbeddingUsage",
    "EpisodeEmbedding",
    "EpisodicMemory",
    "FrameworkDocument",
    "FrameworkMetadata",
    "ImportFile",
    "ImportReject",
    "ImportRun",
    "ImportTransformation",
    "Job",
    "KeyConcept",
    "LearnedRanking",
    "MaintenanceLog",
    "MemoryEmbedding",
    "MemoryNode",
    "Message",
    "MessageEmbedding",
    "QueryPerformance",
    "SearchSession",
    "SecurityAuditLog",
    "SourceLines",
    "Tenant",
    "TokenCeiling",
    "User",
    "memory_id",
]
