"""Choices that callers of services have: words, and the bounds of numbers.

They are apart for the same reason as ``pgcorpus.db.choices``.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

Mode = Literal["vector", "text", "fuzzy", "hybrid"]
MODES: Final = get_args(Mode)

MAX_LIMIT: Final = 1000
MAX_OFFSET: Final = 10_000

MAX_GROUP_SIZE: Final = 100

MAX_RRF_K: Final = 10_000
"""Greatest constant of ``rrf``: the thousandth place then counts for nine tenths of the first."""

MAX_HALF_LIFE_DAYS: Final = 100_000

MAX_NEIGHBOURS: Final = 1000
"""Turns on one side of a hit."""

MAX_CONTEXT_TOKENS: Final = 100_000_000

PROVIDERS: Final = ("openai", "hashing", "local")

LEAST_RECALL: Final = 0.95
"""Recall@10 of searches by vectors that a model must reach to be taken into use, and below which
its graph is built anew."""

OnConflict = Literal["reject", "keep", "update"]
"""The decision on a passage whose identifier is stored with another text."""

ChatFormat = Literal["auto", "chatgpt", "claude", "openwebui", "chroma", "pgcorpus"]
"""The format of files with chats; auto tells it from the content of each conversation."""

ExportFormat = Literal["markdown", "json", "openwebui"]
"""The format that a conversation is exported in."""

MIN_CHUNK_TOKENS: Final = 8
MAX_CHUNK_TOKENS: Final = 8192
"""Bounds of ``max_tokens``: providers of embeddings accept no longer text."""

CHUNK_TOKENS: Final = 512
OVERLAP_TOKENS: Final = 64
"""Tokens of a chunk of a document, and of what it repeats from the one before, by default."""

LOADINGS: Final = ("documentation", "scratch")
"""Ways to cut a collection: as files are, or only where an embedder takes no more."""

ISOLATION_TIME_LIMIT_SECONDS: Final = 160.0
"""Seconds after which nothing further is tried. About sixty are needed on an idle server nearby."""

Handling = Literal["keep", "merge", "link", "refuse"]
"""The treatment of an exchange that says what a memory says."""

LIKENESS: Final = 0.95
"""Cosine from which on two memories say the same."""

BOOST: Final = 0.2
"""The share of its score by which a memory that is fresh and often recalled may rise."""

MEMORY_MODEL: Final = "bge-m3"
"""The model of the vectors that memories of old come with."""
