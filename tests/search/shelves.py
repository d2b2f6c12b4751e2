"""How tests put passages into each corpus: the one place that knows their tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np

from db.models import KeyConcept
from db.search.corpora import CHAT, KNOWLEDGE
from db.search.corpus import Corpus
from db.uow import UnitOfWork
from tests import factories

MODEL = "hashing"
DIMENSIONS = 384


@dataclass(frozen=True)
class Passage:
    """A passage as a test thinks of it."""

    title: str
    content: str
    vector: np.ndarray | None = None
    language: str = "english"


@dataclass(frozen=True)
class Shelf:
    """One corpus, and how to fill it.

    Attributes:
        corpus: What is searched.
        make: Inserts a passage, and returns its key.
        filters: For every filter of the corpus, a value that every made passage has.
    """

    corpus: Corpus
    make: Callable[[Passage], Any]
    filters: dict[str, Any]

    def fill(self, work: UnitOfWork, passages: Sequence[Passage]) -> list[Any]:
        """Insert passages and their vectors; the keys, in the same order."""
        keys = [self.make(passage) for passage in passages]
        placed = [
            (k, p.vector) for k, p in zip(keys, passages, strict=True) if p.vector is not None
        ]
        if placed:
            work.embeddings.store(
                self.corpus, MODEL, [key for key, _ in placed], np.stack([v for _, v in placed])
            )
        return keys


def _knowledge(passage: Passage) -> UUID:
    document = factories.FrameworkDocumentFactory(
        title=passage.title,
        content=passage.content,
        language=passage.language,
        details__chunk_type="supporting",
    )
    session = factories.KeyConceptFactory._meta.sqlalchemy_session
    concept = session.merge(KeyConcept(id=UUID(int=1), concept_name="anchoring"))
    session.flush()
    factories.DocumentConceptFactory(document=document, concept=concept)
    return document.id


def _chat(passage: Passage) -> UUID:
    return factories.MessageFactory(
        conversation__title=passage.title,
        conversation__source_type="chatgpt",
        conversation__is_saved=True,
        content=passage.content,
        language=passage.language,
    ).id


SHELVES = (
    Shelf(
        corpus=KNOWLEDGE,
        make=_knowledge,
        filters={
            "chunk_type": "supporting",
            "concept": "anchoring",
            "created_at": {"gte": "2020-01-01"},
            "framework_name": "Pricing",
            "section": "Pricing",
            "source_file": "pricing.md",
            "validation_passed": True,
            "chunk_id": {"gte": "chunk_"},
        },
    ),
    Shelf(
        corpus=CHAT,
        make=_chat,
        filters={
            "branch": 0,
            "conversation": {"gte": "00000000-0000-0000-0000-000000000000"},
            "date": {"gte": "2020-01-01"},
            "role": "user",
            "saved": True,
            "source_type": "chatgpt",
        },
    ),
)
