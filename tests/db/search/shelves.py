"""Passages that tests put into each corpus: the one place that knows their tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import numpy as np
from sqlalchemy import text

from pgcorpus.db.models import KeyConcept, Tenant, User
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.corpora import CHAT, DOCUMENTATION, EPISODES, KNOWLEDGE, MEMORY
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.uow import UnitOfWork
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
        own_name: A filter of which every made passage has a value of its own.
        changed: A passage's columns with another text.
        find_scope: Returns the scope of the passages, or None where they have none.
        variant: Which of the corpus's passages, in the names of tests.
        grouped: The name by which hits are grouped, and its column of the passages.
    """

    corpus: Corpus
    make: Callable[[Passage], Any]
    filters: dict[str, Any]
    own_name: str
    changed: dict[str, Any]
    find_scope: Callable[[], Scope | None] = lambda: None
    variant: str = ""
    grouped: tuple[str, str] = ("conversation", "conversation_id")

    @property
    def name(self) -> str:
        """The corpus, and which of its passages."""
        return f"{self.corpus.name}{self.variant}"

    def fill(self, work: UnitOfWork, passages: Sequence[Passage]) -> list[Any]:
        """Insert passages and their vectors; the keys, in the same order.

        Where passages are somebody's, the unit of work is within the scope from then on.
        """
        if (scope := self.find_scope()) is not None:
            work.enter(scope)
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


def _somebody() -> User:
    """Make the user of the memories: without a tenant, whom a service may sign in."""
    session = factories.UserFactory._meta.sqlalchemy_session
    session.execute(text("SELECT set_config('app.identity', 'shelf:somebody', true)"))
    somebody = User(id=UUID(int=1), auth_provider="shelf", external_id="somebody")
    user = session.merge(somebody)
    session.flush()
    return user


def _scope_of_somebody() -> Scope:
    return Scope.user(_somebody().id)


def _tenant() -> Tenant:
    """Return the tenant whose own documents are made."""
    session = factories.TenantFactory._meta.sqlalchemy_session
    with factories.in_scope(session, Scope.tenant(OWNER)):
        if (tenant := session.get(Tenant, OWNER)) is not None:
            return tenant
    session.execute(text("SET LOCAL ROLE rag_admin"))
    tenant = factories.TenantFactory(id=OWNER)
    session.execute(text("RESET ROLE"))
    return tenant


OWNER = UUID(int=7)


def _make_chunk(passage: Passage, tenant: Tenant | None) -> UUID:
    return factories.ChunkFactory(
        document__tenant=tenant,
        document__source_url="https://example.org/guide",
        document__captured_at=datetime(2025, 1, 1, tzinfo=UTC),
        document__language="en",
        heading=passage.title,
        heading_path=[passage.title],
        text=passage.content,
        language=passage.language,
    ).id


TAGGED = {"domains": ["pricing"], "topics": ["anchors"], "entities": ["Ada"], "processes": ["sale"]}


def _memory(passage: Passage) -> UUID:
    return factories.MemoryNodeFactory(
        user=_somebody(),
        human_content=passage.title,
        assistant_content=passage.content,
        language=passage.language,
        conversation_id=f"talk {uuid4()}",
        cluster_id=3,
        cluster_label="prices",
        tags=TAGGED,
    ).key


def _episode(passage: Passage) -> UUID:
    return factories.EpisodicMemoryFactory(
        user=_somebody(),
        title=passage.title,
        messages=[{"content": passage.content}],
        language=passage.language,
        llm_tags={"domains": ["pricing"], "key_entities": ["Ada"], "outcome": "sold"},
        dominant_intent="question",
        urgency_max="low",
    ).key


DOCUMENTS = Shelf(
    corpus=DOCUMENTATION,
    make=lambda passage: _make_chunk(passage, None),
    filters={
        "captured_at": {"gte": "2020-01-01"},
        "chunk_id": {"gte": "chunk-"},
        "collection": "default",
        "content_type": "text/markdown",
        "language": "en",
        "path": {"gte": "guide/"},
        "path_prefix": "guide/",
        "source": "https://example.org/guide",
    },
    own_name="chunk_id",
    grouped=("document", "document_id"),
    changed={"text": "Quite another text."},
)

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
        own_name="chunk_id",
        grouped=("section", "section"),
        changed={"content": "Quite another text."},
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
        own_name="conversation",
        changed={"content": "Quite another text."},
    ),
    Shelf(
        corpus=MEMORY,
        make=_memory,
        filters={
            "action_required": False,
            "cluster_id": 3,
            "cluster_label": "prices",
            "complexity": "simple",
            "conversation": {"gte": "0"},
            "conversation_mode": "chat",
            "date": {"gte": "2020-01-01"},
            "domain": "pricing",
            "emotional_valence": "neutral",
            "entity": "Ada",
            "has_code": False,
            "has_error": False,
            "intent_type": "statement",
            "memory_id": {"gte": "mem_"},
            "noise": False,
            "process": "sale",
            "source": "anthropic",
            "technical_depth": 0,
            "topic": "anchors",
            "urgency": "low",
        },
        own_name="conversation",
        changed={"assistant_content": "Quite another text."},
        find_scope=_scope_of_somebody,
    ),
    Shelf(
        corpus=EPISODES,
        make=_episode,
        filters={
            "date": {"gte": "2020-01-01"},
            "domain": "pricing",
            "dominant_intent": "question",
            "entity": "Ada",
            "episode_id": {"gte": "ep_"},
            "has_code": False,
            "has_errors": False,
            "outcome": "sold",
            "source": "anthropic",
            "urgency_max": "low",
        },
        own_name="episode_id",
        grouped=("source", "source"),
        changed={"messages": [{"content": "Quite another text."}]},
        find_scope=_scope_of_somebody,
    ),
    DOCUMENTS,
    replace(
        DOCUMENTS,
        make=lambda passage: _make_chunk(passage, _tenant()),
        find_scope=lambda: Scope.tenant(_tenant().id),
        variant=" of a tenant",
    ),
)
