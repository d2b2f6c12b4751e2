"""Checks that the chat archive is whole."""

from __future__ import annotations

from collections.abc import Iterator

from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.corpus import Check, check_passages, name_offenders
from pgcorpus.services.embedding.choice import Choice


def check_messages(
    work: UnitOfWork, corpus: Corpus, choice: Choice, expected: int | None
) -> Iterator[Check]:
    """Yield the answers of all checks, in the order of docs/reference/validation.md."""
    yield from check_passages(work, corpus, choice, expected)
    total, broken = work.messages.tally_branches()
    detail = name_offenders(broken)
    yield Check("turns_in_order", not broken, total, total - len(broken), detail)
