"""The corpora. A new one is a model, a revision, a constant here, a line in the contract test."""

from __future__ import annotations

from typing import Final, cast

from sqlalchemy import Table, and_, func, literal_column, select
from sqlalchemy.dialects.postgresql import ARRAY, TEXT

from db.base import Base
from db.errors import UnknownCorpus
from db.models.chat import ROLES, Conversation, Message, MessageEmbedding
from db.models.knowledge import (
    CHUNK_TYPES,
    ChunkEmbedding,
    DocumentConcept,
    FrameworkDocument,
    FrameworkMetadata,
    KeyConcept,
    SourceLines,
)
from db.search.corpus import Corpus, Filter, Order


def _table(model: type[Base]) -> Table:
    return cast("Table", model.__table__)


_documents = _table(FrameworkDocument)
_details = _table(FrameworkMetadata)
_links = _table(DocumentConcept)
_concepts = _table(KeyConcept)
_lines = _table(SourceLines)
_vectors = _table(ChunkEmbedding)

_of_document = _details.c.document_id == _documents.c.id

KNOWLEDGE: Final = Corpus(
    name="knowledge",
    passages=_documents,
    key=_documents.c.id,
    text=_documents.c.title + literal_column("E'\\n'") + _documents.c.content,
    words=_documents.c.search_vector,
    language=_documents.c.language,
    shown=_documents.c.title + literal_column("' '") + _documents.c.content,
    vectors=_vectors,
    item=_vectors.c.document_id,
    filters={
        "chunk_id": Filter(column=_documents.c.chunk_id),
        "section": Filter(column=_documents.c.section),
        "source_file": Filter(column=_documents.c.source_file),
        "created_at": Filter(column=_documents.c.created_at),
        "chunk_type": Filter(
            column=_details.c.chunk_type, through=_of_document, choices=CHUNK_TYPES
        ),
        "framework_name": Filter(column=_details.c.framework_name, through=_of_document),
        "validation_passed": Filter(column=_details.c.validation_passed, through=_of_document),
        "concept": Filter(
            column=_concepts.c.concept_name,
            through=and_(
                _links.c.document_id == _documents.c.id, _links.c.concept_id == _concepts.c.id
            ),
        ),
    },
    defaults={"validation_passed": True},
    hits=select(
        _documents.c.id,
        _documents.c.title,
        _documents.c.content,
        _documents.c.chunk_id,
        _documents.c.source_file,
        _documents.c.section,
        _documents.c.description,
        _documents.c.created_at,
        _details.c.chunk_type,
        _details.c.framework_name,
        _details.c.validation_passed,
        _lines.c.start_line,
        _lines.c.end_line,
        func.array(
            select(_concepts.c.concept_name)
            .join_from(_links, _concepts, _links.c.concept_id == _concepts.c.id)
            .where(_links.c.document_id == _documents.c.id)
            .order_by(_concepts.c.concept_name)
            .correlate(_documents)
            .scalar_subquery(),
            type_=ARRAY(TEXT),
        ).label("concepts"),
    )
    .select_from(_documents)
    .outerjoin(_details, _of_document)
    .outerjoin(_lines, _lines.c.document_id == _documents.c.id),
)

_messages = _table(Message)
_conversations = _table(Conversation)
_message_vectors = _table(MessageEmbedding)

_of_message = _conversations.c.id == _messages.c.conversation_id

CHAT: Final = Corpus(
    name="chat",
    passages=_messages,
    key=_messages.c.id,
    text=_messages.c.content,
    words=_messages.c.message_search,
    language=_messages.c.language,
    shown=_messages.c.content,
    vectors=_message_vectors,
    item=_message_vectors.c.message_id,
    filters={
        "branch": Filter(column=_messages.c.branch),
        "conversation": Filter(column=_messages.c.conversation_id),
        "date": Filter(column=_messages.c.created_at),
        "role": Filter(column=_messages.c.role, choices=ROLES),
        "saved": Filter(column=_conversations.c.is_saved, through=_of_message),
        "source_type": Filter(column=_conversations.c.source_type, through=_of_message),
    },
    # What was abandoned repeats what stands.
    defaults={"branch": 0},
    hits=select(
        _messages.c.id,
        _conversations.c.title,
        _messages.c.content,
        _messages.c.conversation_id.label("conversation"),
        _messages.c.branch,
        _messages.c.position,
        _messages.c.role,
        _messages.c.created_at.label("date"),
        _conversations.c.source_type,
        _conversations.c.is_saved.label("saved"),
    ).join_from(_messages, _conversations, _of_message),
    order=Order(
        within=_messages.c.conversation_id,
        branch=_messages.c.branch,
        place=_messages.c.position,
        speaker=_messages.c.role,
        time=_messages.c.created_at,
    ),
)

CORPORA: Final = {corpus.name: corpus for corpus in (KNOWLEDGE, CHAT)}


def named(name: str) -> Corpus:
    """The corpus of that name.

    Raises:
        UnknownCorpus: There is none; the message lists those there are.
    """
    try:
        return CORPORA[name]
    except (KeyError, TypeError):  # or no name at all
        raise UnknownCorpus(
            f"there is no corpus {name!r}; known: {', '.join(sorted(CORPORA))}"
        ) from None
