"""Choices that callers of the data layer have: words, and the bounds of numbers.

They are apart from what needs them: the command line offers them in its help, and imports nothing
else of this layer for that.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

APPLICATION_ROLE: Final = "rag_read_write"
ADMINISTRATORS_ROLE: Final = "rag_admin"

Group = Literal["rag_read_only", "rag_read_write", "rag_admin"]
GROUPS: Final[tuple[Group, ...]] = get_args(Group)

IndexKind = Literal["halfvec", "binary"]
"""The kind of an HNSW index: it keeps half-precision numbers, or the sign of each as one bit."""

HALFVEC_MAX_DIMENSIONS: Final = 4000
"""pgvector's HNSW indexes a ``halfvec`` of at most this many dimensions (its README, "HNSW")."""

Fusion = Literal["calibrated", "weighted", "rrf"]
FUSIONS: Final[tuple[Fusion, ...]] = get_args(Fusion)

RRF_K: Final = 60
"""Reciprocal rank fusion's constant (Cormack, Clarke and Büttcher, SIGIR 2009)."""

METADATA: Final = "metadata"
"""The name of the filter on free metadata, among the filters of a corpus."""

MAX_PAGE: Final = 1000
"""Rows of a page; a longer list is read page by page."""

ConversationOrder = Literal["created", "updated"]
"""The order of a list, newest first: by beginning, or by last change."""

DEFAULT_COLLECTION: Final = "default"
"""The collection of documents that are given none."""

JobStatus = Literal["pending", "running", "completed", "failed"]

IntentType = Literal["question", "request", "statement", "complaint", "celebration"]
Complexity = Literal["simple", "moderate", "complex"]
EmotionalValence = Literal["positive", "neutral", "negative"]
Urgency = Literal["low", "medium", "high"]
ConversationMode = Literal["chat", "debug", "brainstorm", "review"]

TAGS: Final = ("domains", "topics", "entities", "processes")
"""Keys of a memory's tags: a list of names each."""

NATIVE: Final = "native"
"""The source of a memory that was said here, and of a conversation that was written here."""

LEAST_CEILING: Final = 25_000
"""The least ceiling but 0: the longest text that is sent takes no more, so that each fits on some
day."""

MOST_TOKENS: Final = 1_000_000_000_000
"""The highest ceiling."""
