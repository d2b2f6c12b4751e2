"""The archive of conversations: messages."""

from __future__ import annotations

from typing import Final

from sqlalchemy import select

from pgcorpus.db.base import table_of
from pgcorpus.db.models.chat import ROLES, Conversation, Message, MessageEmbedding
from pgcorpus.db.search.corpus import Corpus, Filter, Order

_messages = table_of(Message)
_conversations = table_of(Conversation)
_message_vectors = table_of(MessageEmbedding)

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
    labels=("role", "date", "conversation"),
    metadata_column=_messages.c.metadata,
)
