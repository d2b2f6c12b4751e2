"""Times of probes with, and without, a match in another scope: a table.

``python -m tests.prove.timing`` loads memories of many tenants, plants secrets in rows of one more,
and asks for each as another: for the secret and for a word that nobody has, in turn, many times.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from pgcorpus.db.choices import APPLICATION_ROLE
from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.migrations import upgrade
from pgcorpus.db.rehearsal import rehearsal
from pgcorpus.db.repositories.operations.inference import InferenceRepository, Timing
from pgcorpus.db.repositories.operations.isolation import SAID, everybody, party
from pgcorpus.db.search.corpora import get_corpus
from pgcorpus.services.choices import MODES
from pgcorpus.services.embedding.hashing import HashingEmbedder
from pgcorpus.services.ops.inference import Inference
from pgcorpus.services.search.service import SearchService
from tests.conftest import settings_for
from tests.prove.isolation import Population, fill

CORPORA: Final = ("memory", "episodes", "documentation")


def measure(
    database: Database, *, times: int, searches: int, role: str = APPLICATION_ROLE
) -> Iterator[tuple[str, Timing]]:
    """Time every condition on every column, and every search; nothing is kept.

    Args:
        database: As who may verify isolation.
        times: How often each condition is asked, with a match and without.
        searches: The same of each search.
        role: Who asks.

    Yields:
        A table or a corpus, and the timing of one probe.
    """
    embedder = HashingEmbedder()
    (vector,) = embedder.embed_documents([SAID])
    with rehearsal(database) as rehearsed, rehearsed.unit_of_work() as work:
        repository = InferenceRepository(work.session)
        repository.lift_timeout()
        ours, victim = party("another tenant", tenant=True), party("a tenant", tenant=True)
        tables = [table for table in repository.list_guarded() if table.key is not None]
        shared = everybody()
        repository.populate(shared, vector, shared)
        for who in (ours, victim):
            repository.populate(who, vector, shared)
            for table in tables:
                repository.note_rows(who, table)
        tables = [t for t in tables if ours.keys[t.name] and victim.keys[t.name]]
        inference = Inference(repository, role, ours, victim, tables)
        for table in tables:
            yield from ((table.name, each) for each in inference.time(table, times) if each)
        search = SearchService(rehearsed, embedder=embedder)
        repository.as_application(role)
        for corpus, mode in product(CORPORA, MODES):
            timing = inference.time_search(search, get_corpus(corpus), mode, searches)
            if timing is not None:
                yield corpus, timing


def show(measured: Sequence[tuple[str, Timing]]) -> None:
    """Print one line for each probe."""
    columns = ("of", "probe", "times", "match ms", "none ms", "difference", "noise ms", "z", "")
    table = Table(
        *columns, title="With a match in another scope, and without", title_justify="left"
    )
    for target, each in measured:
        table.add_row(
            target,
            each.name,
            str(each.times),
            f"{each.hit_ms:.4f}",
            f"{each.miss_ms:.4f}",
            f"{each.difference_ms:+.4f}",
            f"{each.noise_ms:.4f}",
            f"{each.z:+.1f}",
            "TELLS" if each.tells else "",
        )
    Console(width=140).print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Load, measure, print; 0 where no difference is beyond the margin."""
    parser = argparse.ArgumentParser(prog="python -m tests.prove.timing", description=__doc__)
    parser.add_argument("--memories", type=int, default=20_000)
    parser.add_argument("--tenants", type=int, default=100)
    parser.add_argument("--times", type=int, default=1000, help="probes of each condition")
    parser.add_argument("--searches", type=int, default=200, help="repetitions of each search")
    given = parser.parse_args(arguments)
    home = Path(tempfile.mkdtemp(prefix="pgcorpus-prove-"))
    home.chmod(0o755)  # PostgreSQL runs as another account when this runs as root
    server = EmbeddedServer(home, settings={"fsync": "off"})
    try:
        owner = Database(settings_for(server.start()))
        upgrade(owner)
        if given.memories:
            fill(owner, Population(given.memories, given.tenants), quiet=False)
        measured = list(measure(owner, times=given.times, searches=given.searches))
        owner.close()
    finally:
        server.destroy()
    show(measured)
    return 1 if any(timing.tells for _, timing in measured) else 0


if __name__ == "__main__":
    sys.exit(main())
