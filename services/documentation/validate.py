"""Checks that documents are whole, those that everybody may read and those of every tenant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.corpus import Check, check_passages, name_offenders
from pgcorpus.services.documentation.chunker import CHUNKER_VERSION
from pgcorpus.services.embedding.choice import Choice


def check_documents(
    work: UnitOfWork, corpus: Corpus, choice: Choice, expected: int | None
) -> Iterator[Check]:
    """Yield the answers of all checks, in the order of docs/reference/validation.md.

    Raises:
        NotPermitted: Row security hides from the role which scopes there are.
    """
    yield from check_passages(work, corpus, choice, expected)
    documents = 0
    disordered: list[str] = []
    strayed: list[str] = []
    versions: Counter[str | None] = Counter()
    for _ in work.scopes_of(corpus):
        tally = work.documentation.tally()
        documents += tally.documents
        disordered += tally.disordered
        strayed += tally.strayed
        versions.update(tally.versions)
    chunks = versions.total()
    found = documents - len(disordered)
    detail = name_offenders(disordered)
    yield Check("chunks_in_order", not disordered, documents, found, detail)
    detail = name_offenders(strayed)
    yield Check("chunks_of_documents", not strayed, chunks, chunks - len(strayed), detail)
    current = versions[CHUNKER_VERSION]
    yield Check("current_chunker", True, chunks, current, _name_versions(versions))


def _name_versions(versions: Counter[str | None]) -> str | None:
    """Name the versions of the chunker that other chunks were cut by."""
    stale = {version: count for version, count in versions.items() if version != CHUNKER_VERSION}
    if not stale:
        return None
    told = ", ".join(f"{count} by {version or 'none'}" for version, count in sorted(
        stale.items(), key=str))  # fmt: skip
    return f"cut by other chunkers: {told}; importing their files again cuts them anew"
