"""Checks that agents' memories are whole, in every scope."""

from __future__ import annotations

from collections.abc import Iterator

from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.corpus import Check, check_passages, name_offenders
from pgcorpus.services.embedding.choice import Choice


def check_memories(
    work: UnitOfWork, corpus: Corpus, choice: Choice, expected: int | None
) -> Iterator[Check]:
    """Yield the answers of all checks, in the order of docs/reference/validation.md.

    Raises:
        NotPermitted: Row security hides from the role which scopes there are.
    """
    yield from check_passages(work, corpus, choice, expected)
    total, broken = 0, []
    for _ in work.scopes_of(corpus):
        links, ids = work.memory.tally_links()
        total += links
        broken += ids
    detail = name_offenders(broken)
    yield Check("links_to_originals", not broken, total, total - len(broken), detail)
