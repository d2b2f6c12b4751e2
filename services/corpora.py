"""The services of every corpus, in the order of the command line's help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pgcorpus.services.chat.corpus import CHAT_SERVICES
from pgcorpus.services.corpus import CorpusServices
from pgcorpus.services.documentation.corpus import DOCUMENTATION_SERVICES
from pgcorpus.services.knowledge.corpus import KNOWLEDGE_SERVICES
from pgcorpus.services.memory.corpus import MEMORY_SERVICES

SERVICES: Final[Mapping[str, CorpusServices]] = {
    each.name: each
    for each in (KNOWLEDGE_SERVICES, DOCUMENTATION_SERVICES, CHAT_SERVICES, MEMORY_SERVICES)
}
