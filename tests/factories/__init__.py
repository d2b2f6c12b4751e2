"""Rows for tests: valid, distinct, and flushed, so that the database has had its say."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import factory
import numpy as np
from sqlalchemy import text
from sqlalchemy.orm import Session

from pgcorpus.db import models
from pgcorpus.db.base import SHARED
from pgcorpus.db.scope import Scope

SCOPED = (
    models.MemoryNode,
    models.EpisodicMemory,
    models.MemoryEmbedding,
    models.EpisodeEmbedding,
    models.Document,
    models.Chunk,
    models.DocumentationEmbedding,
    models.ClickFeedback,
    models.SearchSession,
    models.LearnedRanking,
    models.ChunkBoost,
)
"""Rows that nobody writes but in their scope, not even the owner of the table."""

SCOPE_NOW = text(
    "SELECT coalesce(current_setting('app.tenant_id', true), '') AS tenant_id,"
    " coalesce(current_setting('app.user_id', true), '') AS user_id"
)


SET_SCOPE = text(
    "SELECT set_config('app.tenant_id', :tenant_id, true),"
    " set_config('app.user_id', :user_id, true)"
)


@contextmanager
def in_scope(session: Session, scope: Scope | str) -> Iterator[None]:
    """Work within a scope for a while, and then within that of before, if there was one."""
    before = session.execute(SCOPE_NOW).one()
    if scope == SHARED:
        session.execute(SET_SCOPE, {"tenant_id": "", "user_id": ""})
    else:
        settings = (Scope.parse(scope) if isinstance(scope, str) else scope).settings
        session.execute(SET_SCOPE, {name[4:]: value for name, value in settings.items()})
    yield
    session.execute(SET_SCOPE, before._asdict())


class _Factory(factory.alchemy.SQLAlchemyModelFactory):
    class Meta:
        abstract = True
        sqlalchemy_session_persistence = "flush"

    @classmethod
    def _save(
        cls, model_class: type[Any], session: Session, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if model_class not in SCOPED:
            return super()._save(model_class, session, args, kwargs)
        scope = kwargs.get("scope") or (
            f"tenant:{kwargs['tenant_id']}" if kwargs["tenant_id"] else f"user:{kwargs['user_id']}"
        )
        with in_scope(session, scope):
            return super()._save(model_class, session, args, kwargs)


class EmbeddingModelFactory(_Factory):
    """A registered model of short vectors."""

    class Meta:
        model = models.EmbeddingModel

    name = factory.Sequence(lambda n: f"test-model-{n}")
    dimensions = 4
    provider = "hashing"


class CorpusSettingFactory(_Factory):
    """A corpus that nobody has configured yet."""

    class Meta:
        model = models.CorpusSetting

    corpus = factory.Sequence(lambda n: f"corpus-{n}")
    active_model = "hashing"


class FrameworkMetadataFactory(_Factory):
    """Metadata of a chunk; counts are those of its document's content."""

    class Meta:
        model = models.FrameworkMetadata

    class Params:
        document = factory.SubFactory("tests.factories.FrameworkDocumentFactory", details=False)

    document_id = factory.LazyAttribute(lambda row: row.document.id)
    character_count = factory.LazyAttribute(lambda row: len(row.document.content))
    word_count = factory.LazyAttribute(lambda row: len(row.document.content.split()))
    chunk_type = "supporting"
    framework_name = "Pricing"
    validation_passed = True


class FrameworkDocumentFactory(_Factory):
    """A chunk with its metadata. ``details__chunk_type="..."`` and so on reach the metadata."""

    class Meta:
        model = models.FrameworkDocument

    chunk_id = factory.Sequence(lambda n: f"chunk_{n}")
    source_file = "pricing.md"
    section = "Pricing"
    title = factory.Sequence(lambda n: f"Title {n}")
    content = factory.Sequence(lambda n: f"Content number {n} explains a pricing idea.")

    @factory.post_generation
    def details(
        self, create: bool, extracted: object, **fields: object
    ) -> models.FrameworkMetadata | None:
        """The metadata row; ``details=False`` leaves it out."""
        if not create or extracted is False:
            return None
        return FrameworkMetadataFactory(document=self, **fields)


class ChunkEmbeddingFactory(_Factory):
    """A vector of the hashing model for the present text of a chunk."""

    class Meta:
        model = models.ChunkEmbedding

    class Params:
        document = factory.SubFactory(FrameworkDocumentFactory)

    document_id = factory.LazyAttribute(lambda row: row.document.id)
    model_name = "hashing"
    embedding = factory.Sequence(lambda n: axis(n % 384, length=384))
    content_hash = factory.LazyAttribute(
        lambda row: hashlib.sha256(
            f"{row.document.title}\n{row.document.content}".encode()
        ).digest()
    )


class KeyConceptFactory(_Factory):
    """A concept."""

    class Meta:
        model = models.KeyConcept

    concept_name = factory.Sequence(lambda n: f"concept {n}")


class DocumentConceptFactory(_Factory):
    """A chunk that explains a concept."""

    class Meta:
        model = models.DocumentConcept

    class Params:
        document = factory.SubFactory(FrameworkDocumentFactory)
        concept = factory.SubFactory(KeyConceptFactory)

    document_id = factory.LazyAttribute(lambda row: row.document.id)
    concept_id = factory.LazyAttribute(lambda row: row.concept.id)


class SourceLinesFactory(_Factory):
    """The lines that a chunk was cut from."""

    class Meta:
        model = models.SourceLines

    class Params:
        document = factory.SubFactory(FrameworkDocumentFactory)

    document_id = factory.LazyAttribute(lambda row: row.document.id)
    start_line = factory.Sequence(lambda n: n * 10 + 1)
    end_line = factory.LazyAttribute(lambda row: row.start_line + 9)


class ImportRunFactory(_Factory):
    """A call of the knowledge importer."""

    class Meta:
        model = models.ImportRun

    corpus = "knowledge"


class ImportFileFactory(_Factory):
    """A file with one chunk that was added."""

    class Meta:
        model = models.ImportFile

    class Params:
        run = factory.SubFactory(ImportRunFactory)

    run_id = factory.LazyAttribute(lambda row: row.run.id)
    file = factory.Sequence(lambda n: f"file_{n}.json")
    added = 1


class ImportTransformationFactory(_Factory):
    """A count that was put right."""

    class Meta:
        model = models.ImportTransformation

    class Params:
        run = factory.SubFactory(ImportRunFactory)

    run_id = factory.LazyAttribute(lambda row: row.run.id)
    file = "file.json"
    locator = "$"
    item = factory.Sequence(lambda n: f"chunk_{n}")
    field = "word_count"
    original = 1
    stored = 2
    rule = "recounted"


class ImportRejectFactory(_Factory):
    """A chunk without text."""

    class Meta:
        model = models.ImportReject

    class Params:
        run = factory.SubFactory(ImportRunFactory)

    run_id = factory.LazyAttribute(lambda row: row.run.id)
    corpus = "knowledge"
    file = factory.Sequence(lambda n: f"file_{n}.json")
    locator = "$"
    reason = "the chunk has no text"
    payload = factory.LazyFunction(dict)


class QueryPerformanceFactory(_Factory):
    """A quick search."""

    class Meta:
        model = models.QueryPerformance

    query_type = "hybrid_search"
    corpus = "knowledge"
    duration = 12.5
    hits = 10
    degraded = False


class BackupLogFactory(_Factory):
    """A backup that was made."""

    class Meta:
        model = models.BackupLog

    location = factory.Sequence(lambda n: f"pgcorpus_20261130T0{n:05}Z")
    status = "complete"
    finished_at = factory.LazyFunction(lambda: datetime.now(UTC))
    bytes = 1_000_000
    rows = 1_000


class ArchivedQueryPerformanceFactory(_Factory):
    """A quick search of long ago."""

    class Meta:
        model = models.ArchivedQueryPerformance

    id = factory.Sequence(lambda n: n + 1)
    timestamp = datetime(2020, 1, 1, tzinfo=UTC)
    query_type = "hybrid_search"
    corpus = "knowledge"
    duration = 12.5
    hits = 10
    degraded = False


class MaintenanceLogFactory(_Factory):
    """A table that was vacuumed."""

    class Meta:
        model = models.MaintenanceLog

    operation = "vacuum"
    subject = "framework_documents"
    status = "completed"
    duration = 12.5


class TokenCeilingFactory(_Factory):
    """A ceiling of a tenant."""

    class Meta:
        model = models.TokenCeiling

    scope = factory.LazyFunction(lambda: f"tenant:{uuid4()}")
    tokens_per_day = 1_000_000


class EmbeddingUsageFactory(_Factory):
    """The tokens of a tenant on one day."""

    class Meta:
        model = models.EmbeddingUsage

    scope = factory.LazyFunction(lambda: f"tenant:{uuid4()}")
    day = factory.LazyFunction(lambda: datetime.now(UTC).date())
    spent_tokens = 1_000


class ConversationFactory(_Factory):
    """A conversation that was written here."""

    class Meta:
        model = models.Conversation

    title = factory.Sequence(lambda n: f"Conversation {n}")


class MessageFactory(_Factory):
    """A user's message at the end of its conversation. ``conversation__title="..."`` and so on."""

    class Meta:
        model = models.Message

    class Params:
        conversation = factory.SubFactory(ConversationFactory)

    conversation_id = factory.LazyAttribute(lambda row: row.conversation.id)
    role = "user"
    content = factory.Sequence(lambda n: f"Message number {n} asks about prices.")


class MessageEmbeddingFactory(_Factory):
    """A vector of the hashing model for the present text of a message."""

    class Meta:
        model = models.MessageEmbedding

    class Params:
        message = factory.SubFactory(MessageFactory)

    message_id = factory.LazyAttribute(lambda row: row.message.id)
    model_name = "hashing"
    embedding = factory.Sequence(lambda n: axis(n % 384, length=384))
    content_hash = factory.LazyAttribute(
        lambda row: hashlib.sha256(row.message.content.encode()).digest()
    )


class TenantFactory(_Factory):
    """An enterprise."""

    class Meta:
        model = models.Tenant

    name = factory.Sequence(lambda n: f"Tenant {n}")
    slug = factory.Sequence(lambda n: f"tenant-{n}")


class UserFactory(_Factory):
    """Somebody on their own; ``tenant=`` makes them somebody of an enterprise."""

    class Meta:
        model = models.User

    class Params:
        tenant = None

    tenant_id = factory.LazyAttribute(lambda row: row.tenant.id if row.tenant else None)
    auth_provider = "test"
    external_id = factory.LazyFunction(lambda: uuid4().hex)


class _ScopedFactory(_Factory):
    """A tenant's, unless a ``user`` is given."""

    class Meta:
        abstract = True

    class Params:
        user = None
        tenant = factory.Maybe("user", None, factory.SubFactory(TenantFactory))

    user_id = factory.LazyAttribute(lambda row: row.user.id if row.user else None)
    tenant_id = factory.LazyAttribute(lambda row: row.tenant.id if row.tenant else None)
    source = "anthropic"


class _OwnedFactory(_Factory):
    """Everybody's, unless a ``tenant`` is given."""

    class Meta:
        abstract = True

    class Params:
        tenant = None

    tenant_id = factory.LazyAttribute(lambda row: row.tenant.id if row.tenant else None)
    scope = factory.LazyAttribute(lambda row: f"tenant:{row.tenant.id}" if row.tenant else SHARED)


class DocumentFactory(_OwnedFactory):
    """A document that everybody may read; ``tenant=`` makes it a tenant's."""

    class Meta:
        model = models.Document

    path = factory.Sequence(lambda n: f"guide/page-{n}.md")


class ChunkFactory(_Factory):
    """The first chunk of a document."""

    class Meta:
        model = models.Chunk

    class Params:
        document = factory.SubFactory(DocumentFactory)

    document_id = factory.LazyAttribute(lambda row: row.document.id)
    tenant_id = factory.LazyAttribute(lambda row: row.document.tenant_id)
    scope = factory.LazyAttribute(lambda row: row.document.scope)
    collection = factory.LazyAttribute(lambda row: row.document.collection)
    chunk_id = factory.Sequence(lambda n: f"chunk-{n}")
    position = factory.Sequence(lambda n: n)
    text = factory.Sequence(lambda n: f"Section number {n} explains an idea.")


class DocumentationEmbeddingFactory(_Factory):
    """A vector of the hashing model for a chunk."""

    class Meta:
        model = models.DocumentationEmbedding

    class Params:
        chunk = factory.SubFactory(ChunkFactory)

    chunk_id = factory.LazyAttribute(lambda row: row.chunk.id)
    scope = factory.LazyAttribute(lambda row: row.chunk.scope)
    model_name = "hashing"
    embedding = factory.Sequence(lambda n: axis(n % 384, length=384))
    content_hash = b"of the text"


class ClickFeedbackFactory(_OwnedFactory):
    """A chunk that was opened, by a user of ``tenant`` or of none."""

    class Meta:
        model = models.ClickFeedback

    class Params:
        chunk = factory.SubFactory(ChunkFactory)

    query = "How is a price set?"
    chunk_scope = factory.LazyAttribute(lambda row: row.chunk.scope)
    chunk_id = factory.LazyAttribute(lambda row: row.chunk.id)
    position = 1


class SearchSessionFactory(_OwnedFactory):
    """A page of results that was shown, to a user of ``tenant`` or of none."""

    class Meta:
        model = models.SearchSession

    session_id = factory.Sequence(lambda n: f"visit-{n}")


class LearnedRankingFactory(_OwnedFactory):
    """A first version that everybody shares, of weights alone."""

    class Meta:
        model = models.LearnedRanking

    corpus = "documentation"
    version = factory.Sequence(lambda n: n + 1)
    weights = factory.LazyFunction(lambda: {"vector": 0.6, "text": 0.4})
    estimate = factory.LazyFunction(dict)
    is_active = False


class ChunkBoostFactory(_OwnedFactory):
    """The boost of a chunk that everybody may read."""

    class Meta:
        model = models.ChunkBoost

    class Params:
        ranking = factory.SubFactory(LearnedRankingFactory)
        chunk = factory.SubFactory(ChunkFactory)

    ranking_id = factory.LazyAttribute(lambda row: row.ranking.id)
    passage_scope = factory.LazyAttribute(lambda row: row.chunk.scope)
    chunk_id = factory.LazyAttribute(lambda row: row.chunk.id)
    boost = 0.05


class MemoryNodeFactory(_ScopedFactory):
    """One exchange of a conversation."""

    class Meta:
        model = models.MemoryNode

    conversation_id = "conversation"
    sequence_index = factory.Sequence(lambda n: n)
    human_content = factory.Sequence(lambda n: f"How is price number {n} set?")
    assistant_content = "By what it is worth."
    id = factory.LazyAttribute(
        lambda row: models.memory_id(row.conversation_id, row.sequence_index, row.human_content)
    )


class EpisodicMemoryFactory(_ScopedFactory):
    """A conversation of one exchange."""

    class Meta:
        model = models.EpisodicMemory

    id = factory.Sequence(lambda n: f"ep_{n:016x}")
    title = factory.Sequence(lambda n: f"Episode {n}")
    messages = factory.LazyFunction(
        lambda: [
            {"role": "user", "content": "How is a price set?"},
            {"role": "assistant", "content": "By what it is worth."},
        ]
    )
    message_count = factory.LazyAttribute(lambda row: len(row.messages))


class MemoryEmbeddingFactory(_Factory):
    """A vector of the hashing model for a memory."""

    class Meta:
        model = models.MemoryEmbedding

    class Params:
        node = factory.SubFactory(MemoryNodeFactory)

    node_key = factory.LazyAttribute(lambda row: row.node.key)
    scope = factory.LazyAttribute(lambda row: row.node.scope)
    model_name = "hashing"
    embedding = factory.Sequence(lambda n: axis(n % 384, length=384))
    content_hash = b"of the text"


class EpisodeEmbeddingFactory(_Factory):
    """A vector of the hashing model for an episode."""

    class Meta:
        model = models.EpisodeEmbedding

    class Params:
        episode = factory.SubFactory(EpisodicMemoryFactory)

    episode_key = factory.LazyAttribute(lambda row: row.episode.key)
    scope = factory.LazyAttribute(lambda row: row.episode.scope)
    model_name = "hashing"
    embedding = factory.Sequence(lambda n: axis(n % 384, length=384))
    content_hash = b"of the text"


class JobFactory(_Factory):
    """A job that no handler knows."""

    class Meta:
        model = models.Job

    kind = "test"


class SecurityAuditLogFactory(_Factory):
    """An entry that no trigger wrote; those of the other factories write their own."""

    class Meta:
        model = models.SecurityAuditLog

    user_name = "postgres"
    action = "INSERT"
    transaction_id = 1


class AuditSealFactory(_Factory):
    """The first seal, over nothing."""

    class Meta:
        model = models.AuditSeal

    number = factory.Sequence(lambda n: n + 1)
    sealed_by = "postgres"
    kind = "rows"
    last_position = 0
    oldest_transaction = 1
    next_transaction = 1
    months = factory.LazyFunction(dict)
    hash = b"not made by audit_seal()"


ALL = [
    each
    for kind in (_Factory, _ScopedFactory, _OwnedFactory)
    for each in kind.__subclasses__()
    if not each._meta.abstract
]


def bind(session: Session) -> None:
    """Make every factory write through *session*."""
    for each in ALL:
        each._meta.sqlalchemy_session = session


def axis(index: int, *, lean: float = 0.0, length: int = 4) -> np.ndarray:
    """A unit vector along axis *index*, leaning towards axis 0 by *lean* (its cosine).

    Distances in tests are arithmetic: ``axis(0) @ axis(i, lean=x) == x``.
    """
    vector = np.zeros(length, dtype=np.float32)
    vector[index] = np.sqrt(1 - lean**2)
    vector[0] += lean
    return vector
