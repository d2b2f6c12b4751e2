"""The vectors of a legacy store, which are kept rather than made again."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from uuid import UUID

from pgcorpus.db.repositories.chat.imports import ConversationRecord, message_id
from pgcorpus.db.repositories.embeddings import find_fault
from pgcorpus.db.search.corpora import CHAT
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.importers.stream import StoredVectors

OTHER_TEXT = "their text is not that of exactly one message"


class Unusable(Exception):
    """The vectors cannot be stored; the message says why. It does not leave the importer."""


def store_vectors(
    work: UnitOfWork,
    vectors: StoredVectors,
    record: ConversationRecord,
    conversation_id: UUID,
    *,
    model_name: str | None,
) -> tuple[int, Counter[str]]:
    """Keep the vectors of texts that are a message's, word for word.

    Args:
        work: The unit of work; not committed.
        vectors: What came along with the conversation.
        record: The conversation.
        conversation_id: Its key.
        model_name: The model that made them; None: what the store says.

    Returns:
        How many were stored, and how many were left out by reason.
    """
    try:
        name = _usable_for(work, vectors, model_name or vectors.model_name)
    except Unusable as error:
        return 0, Counter({str(error): len(vectors.texts)})
    messages: dict[str, list[str]] = defaultdict(list)
    for message in record.messages:
        messages[message.content].append(message.source_id)
    ids = {
        row: message_id(conversation_id, messages[text][0])
        for row, text in enumerate(vectors.texts)
        if len(messages[text]) == 1
    }
    hashes = [hashlib.sha256(vectors.texts[row].encode()).digest() for row in ids]
    stored = 0
    if ids:
        rows = vectors.rows[list(ids)]
        stored = work.embeddings.store(CHAT, name, list(ids.values()), rows, hashes)
    return stored, Counter({OTHER_TEXT: len(vectors.texts) - stored})


def _usable_for(work: UnitOfWork, vectors: StoredVectors, name: str | None) -> str:
    """Return the model under which the vectors can be stored.

    Raises:
        Unusable: There is none.
    """
    dimensions = vectors.rows.shape[1]
    if name is None:
        raise Unusable(
            f"nothing says which model made vectors of {dimensions} dimensions; name it with "
            "--embeddings-model"
        )
    model = work.models.find_model(name)
    if model is None:
        raise Unusable(f"{name} is not registered; do it with: pgcorpus models add {name}")
    if model.dimensions != dimensions:
        raise Unusable(f"they have {dimensions} dimensions, and {name} has {model.dimensions}")
    if fault := find_fault(vectors.rows, model.index_kind):
        raise Unusable(f"one of the same conversation {fault.reason}")
    return name
