"""The corpora. A new one is a model, a revision, a constant here, a line in the contract test."""

from __future__ import annotations

from typing import Final

from pgcorpus.db.errors import UnknownCorpus
from pgcorpus.db.search.corpora.chat import CHAT
from pgcorpus.db.search.corpora.knowledge import KNOWLEDGE
from pgcorpus.db.search.corpora.memory import EPISODES, MEMORY
from pgcorpus.db.search.corpus import Corpus

__all__ = ["CHAT", "CORPORA", "EPISODES", "KNOWLEDGE", "MEMORY", "get_corpus"]

CORPORA: Final = {corpus.name: corpus for corpus in (KNOWLEDGE, CHAT, MEMORY, EPISODES)}


def get_corpus(name: str) -> Corpus:
    """Return the corpus of that name.

    Raises:
        UnknownCorpus: There is none; the message lists those there are.
    """
    try:
        return CORPORA[name]
    except (KeyError, TypeError):  # or no name at all
        raise UnknownCorpus(
            f"there is no corpus {name!r}; known: {', '.join(sorted(CORPORA))}"
        ) from None
