"""The tables, one module per corpus."""

from db.models.embeddings import SEEDED_MODELS, CorpusSetting, EmbeddingModel
from db.models.imports import ImportFile, ImportReject, ImportRun, ImportTransformation
from db.models.knowledge import (
    ChunkEmbedding,
    DocumentConcept,
    FrameworkDocument,
    FrameworkMetadata,
    KeyConcept,
    SourceLines,
)
from db.models.operations import QueryPerformance

__all__ = [
    "SEEDED_MODELS",
    "ChunkEmbedding",
    "CorpusSetting",
    "DocumentConcept",
    "EmbeddingModel",
    "FrameworkDocument",
    "FrameworkMetadata",
    "ImportFile",
    "ImportReject",
    "ImportRun",
    "ImportTransformation",
    "KeyConcept",
    "QueryPerformance",
    "SourceLines",
]
