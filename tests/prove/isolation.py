"""A crowd of tenants of very different size: what each of them finds, and how soon.

``python -m tests.prove.isolation`` loads a million memories of a thousand tenants, one of which has
half of them, and searches as the application's role does: every tenant must get its k hits, with
the same recall as if it were alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sqlalchemy import text

from pgcorpus.db.choices import APPLICATION_ROLE
from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.migrations import upgrade
from pgcorpus.db.repositories.base import REBUILT
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.ask import Ask
from pgcorpus.db.search.corpora import MEMORY
from pgcorpus.db.search.legs import AskedModel
from pgcorpus.db.search.question import Question
from tests.conftest import Databases, settings_for
from tests.db.search.crowd import VOCABULARY, WORD
from tests.logins import logged_in

MODEL: Final = AskedModel("all-MiniLM-L6-v2", 384)
CENTRES: Final = 300
TOPICS: Final = 12
"""Directions in which the passages of one centre differ most."""

SPREAD: Final = (0.75, 0.35)
"""Length of a passage's difference from its centre: along the topics, and in any direction."""

WORDS: Final = (12, 30)
"""Least and most words of a memory."""

HITS: Final = 10
WARMING: Final = 5
"""Questions before those that are timed."""

SERVER: Final = {"fsync": "off", "shared_buffers": "6GB"}
"""Memory for all that searches read."""

LEAST_RECALL: Final = 0.95
MOST_MS: Final = 50.0
"""Bounds of the requirement: recall@10 and the 95th percentile, for small and large tenants
alike."""

LEGS: Final[Mapping[str, Mapping[str, float]]] = {
    "vector": {"vector": 1.0},
    "text": {"text": 1.0},
    "hybrid": {"vector": 0.3, "text": 0.7},
}

TABLES: Final = ("memory_nodes", "memory_embeddings")
NODES: Final = """
    COPY memory_nodes (key, id, tenant_id, scope, conversation_id, sequence_index, human_content,
                       assistant_content, source, language) FROM STDIN (FORMAT BINARY)
"""
NODE_TYPES: Final = (
    "uuid",
    "varchar",
    "uuid",
    "text",
    "varchar",
    "int4",
    *["text"] * 2,
    "varchar",
    "oid",
)
VECTORS: Final = """
    COPY memory_embeddings (node_key, scope, model_name, embedding, content_hash)
    FROM STDIN (FORMAT BINARY)
"""

LOAD: Final = {
    "session_replication_role": "replica",  # no outbox, and foreign keys that hold by construction
    "synchronous_commit": "off",
}


def sizes_of(memories: int, tenants: int) -> np.ndarray:
    """Memories of each tenant: the first has half of all, the others by Zipf's law.

    Of a million in a thousand tenants the second has 38,548 and the last 77.

    Returns:
        int of shape ``(tenants,)``, falling.
    """
    share = 1 / np.arange(2, tenants + 1)
    others = np.floor(share * (memories / 2) / share.sum()).astype(int)
    return np.concatenate([[memories - others.sum()], others])


class Texts(NamedTuple):
    """Texts of a tenant's memories.

    Attributes:
        words: int16 of shape ``(size, max(WORDS))``: numbers of words, -1 after the last.
        vectors: float32 of shape ``(size, dimensions)``, each row of unit length.
    """

    words: np.ndarray
    vectors: np.ndarray


@dataclass(frozen=True)
class Population:
    """The tenants and what they remember, made anew whenever it is asked for: seeds are numbers.

    Attributes:
        memories: How many, of all tenants.
        tenants: How many.
        model: Whose vectors they are given.
    """

    memories: int
    tenants: int
    model: AskedModel = MODEL

    @property
    def sizes(self) -> np.ndarray:
        """Memories of each tenant."""
        return sizes_of(self.memories, self.tenants)

    @staticmethod
    def tenant_id(tenant: int) -> UUID:
        """The key of a tenant."""
        return UUID(int=(1 << 127) + tenant)

    def keys(self, tenant: int) -> list[UUID]:
        """The keys of a tenant's memories."""
        drawn = np.random.default_rng((3, tenant)).bytes(16 * int(self.sizes[tenant]))
        return [UUID(bytes=drawn[at : at + 16]) for at in range(0, len(drawn), 16)]

    def texts(self, tenant: int) -> Texts:
        """Return the texts of a tenant's memories."""
        random = np.random.default_rng((5, tenant))
        size = int(self.sizes[tenant])
        words = (VOCABULARY ** random.random((size, WORDS[1]))).astype(np.int16) - 1
        words[np.arange(WORDS[1]) >= random.integers(WORDS[0], WORDS[1] + 1, (size, 1))] = -1
        return Texts(words, _vectors(self.model.dimensions, tenant, size, random))

    def questions(self, tenant: int, count: int) -> Texts:
        """Return a tenant's questions: near its memories, with two words, one of them frequent."""
        random = np.random.default_rng((7, tenant))
        frequent = random.integers(5, 60, count)
        rare = (VOCABULARY ** random.uniform(0.5, 1, count)).astype(int) - 1
        return Texts(
            np.stack([frequent, rare], axis=1),
            _vectors(self.model.dimensions, tenant, count, random),
        )


@lru_cache(maxsize=2)
def _centres(dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres, and the directions in which the passages of each differ most."""
    random = np.random.default_rng(1)
    centres = random.normal(size=(CENTRES, dimensions)).astype(np.float32)
    topics = random.normal(size=(CENTRES, TOPICS, dimensions)).astype(np.float32)
    return (
        centres / np.linalg.norm(centres, axis=1, keepdims=True),
        topics / np.sqrt(TOPICS * dimensions),
    )


def _vectors(dimensions: int, tenant: int, count: int, random: np.random.Generator) -> np.ndarray:
    """Vectors of a tenant, who speaks of some things more than of others."""
    centres, topics = _centres(dimensions)
    likes = np.random.default_rng((2, tenant)).dirichlet(np.full(CENTRES, 0.1))
    of = random.choice(CENTRES, count, p=likes)
    vectors = np.empty((count, dimensions), np.float32)
    for centre in np.unique(of):
        (at,) = np.nonzero(of == centre)
        along = random.normal(size=(len(at), TOPICS)).astype(np.float32) @ topics[centre]
        anyhow = random.normal(size=(len(at), dimensions)).astype(np.float32)
        anyhow *= SPREAD[1] / np.sqrt(dimensions)
        vectors[at] = centres[centre] + SPREAD[0] * along + anyhow
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def fill(database: Database, population: Population, *, quiet: bool = True) -> None:
    """Load the population into a new database, as its superuser, and index it at the end.

    With ``statement_timeout_ms=0``: an index takes minutes.

    Rows lie as if all tenants had spoken at the same time: none has pages of its own.
    """
    sizes = population.sizes
    tenant_of = np.repeat(np.arange(population.tenants), sizes)
    number_of = np.arange(population.memories) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    order = np.random.default_rng(4).permutation(population.memories)
    texts = [population.texts(tenant) for tenant in range(population.tenants)]
    keys = [population.keys(tenant) for tenant in range(population.tenants)]
    ids = [population.tenant_id(tenant) for tenant in range(population.tenants)]

    def rows(what: str) -> Iterator[tuple[int, int]]:
        for at in track(order, what, console=Console(stderr=True, quiet=quiet)):
            yield int(tenant_of[at]), int(number_of[at])

    with database.engine.begin() as connection:
        for name, value in LOAD.items():
            connection.execute(
                text("SELECT set_config(:name, :value, true)").bindparams(name=name, value=value)
            )
        connection.execute(
            text("INSERT INTO tenants (id, name, slug) VALUES (:id, :slug, :slug)"),
            [{"id": key, "slug": f"tenant-{tenant}"} for tenant, key in enumerate(ids)],
        )
        simple = connection.scalar(text("SELECT 'simple'::regconfig::oid"))
        rebuilt = connection.execute(REBUILT, {"tables": list(TABLES)}).all()
        for each in rebuilt:
            connection.exec_driver_sql(each.leave)
        driver: Any = connection.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy(NODES) as copy:
            copy.set_types(NODE_TYPES)
            for tenant, number in rows("memories"):
                said = [WORD[word] for word in texts[tenant].words[number] if word >= 0]
                half = len(said) // 2
                copy.write_row(
                    (
                        keys[tenant][number],
                        f"mem_{number:016x}",
                        ids[tenant],
                        str(Scope.tenant(ids[tenant])),
                        f"c{number // 20}",
                        number % 20,
                        " ".join(said[:half]),
                        " ".join(said[half:]),
                        "openai",
                        simple,
                    )
                )
        with driver.cursor() as cursor, cursor.copy(VECTORS) as copy:
            copy.set_types(("uuid", "text", "varchar", "vector", "bytea"))
            for tenant, number in rows("vectors"):
                scope = str(Scope.tenant(ids[tenant]))
                vector = texts[tenant].vectors[number]
                copy.write_row((keys[tenant][number], scope, population.model.name, vector, b""))
        connection.execute(text("SET LOCAL maintenance_work_mem = '4GB'"))
        for each in track(rebuilt, "indexes", console=Console(stderr=True, quiet=quiet)):
            connection.exec_driver_sql(each.build)
        connection.execute(
            text("UPDATE corpus_settings SET active_model = :model WHERE corpus = 'memory'"),
            {"model": population.model.name},
        )
    with database.schema_engine().connect() as connection:
        outside = connection.execution_options(isolation_level="AUTOCOMMIT")
        outside.execute(text("VACUUM (ANALYZE)"))


def index_large_scopes(owner: Database, population: Population) -> list[str]:
    """Build what ``pgcorpus doctor`` asks for scopes that are large.

    Returns:
        What was run.
    """
    with owner.autocommitting() as work:
        model = next(m for m in work.models.list_models() if m.name == population.model.name)
        large = work.vector_indexes.list_unindexed_scopes(MEMORY, model)
        for each in large:
            work.vector_indexes.build_scope_index(each)
    return [each.remedy for each in large]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The figures of a tenant's searches.

    Attributes:
        tenant: Which, the largest is 0.
        memories: How many it has.
        mode: Which legs were asked.
        questions: How many were asked.
        full: Questions that got all the hits there are, up to ``HITS``.
        recall: Of the ten nearest in the tenant, the share that was found; None without vectors.
        p50_ms: Half of the searches took no longer, from asking the pool for a connection on.
        p95_ms: Nearly all of them.
        plan: How the candidates are found.
    """

    tenant: int
    memories: int
    mode: str
    questions: int
    full: int
    recall: float | None
    p50_ms: float
    p95_ms: float
    plan: str

    @property
    def holds(self) -> bool:
        """True if it is as promised: all hits, the nearest among them, and soon."""
        near = self.recall is None or self.recall >= LEAST_RECALL
        return near and self.p95_ms <= MOST_MS and self.full == self.questions


def measure(
    database: Database, population: Population, tenant: int, mode: str, *, questions: int = 50
) -> Measured:
    """Ask a tenant's questions, each in a unit of work of its own.

    Args:
        database: As the application logs in.
        population: What is in it.
        tenant: Who asks.
        mode: A key of ``LEGS``.
        questions: How many.
    """
    scope = Scope.tenant(population.tenant_id(tenant))
    asked, said = population.questions(tenant, questions), population.texts(tenant)
    keys = population.keys(tenant)
    found, times, statement = [], [], None
    for number in range(-WARMING, questions):
        words = " ".join(WORD[word] for word in asked.words[number % questions])
        ask = Ask(
            question=Question.parse(words),
            legs=LEGS[mode],
            model=population.model if "vector" in LEGS[mode] else None,
            vector=asked.vectors[number % questions],
            limit=HITS,
        )
        began = time.perf_counter()
        with database.unit_of_work(scope) as work:
            answer = work.searches.answer(MEMORY, ask)
            work.commit()
        if number >= 0:
            times.append((time.perf_counter() - began) * 1000)
            found.append([hit.id for hit in answer.hits])
            statement = answer.statement
    assert statement is not None
    full, recalls = 0, []
    for number, hits in enumerate(found):
        holding = np.isin(said.words, asked.words[number]).any(axis=1).sum()
        there = len(keys) if "vector" in LEGS[mode] else int(holding)
        full += len(hits) == min(HITS, there)
        if mode == "vector":
            nearest = np.argsort(-(said.vectors @ asked.vectors[number]))[:HITS]
            recalls.append(len({keys[at] for at in nearest} & set(hits)) / min(HITS, len(keys)))
    with database.unit_of_work(scope) as work:
        plan = plan_of(work.searches.explain(statement, analyze=False)["Plan"])
    p50, p95 = np.percentile(times, [50, 95])
    return Measured(
        tenant=tenant,
        memories=len(keys),
        mode=mode,
        questions=questions,
        full=full,
        recall=float(np.mean(recalls)) if recalls else None,
        p50_ms=round(float(p50), 2),
        p95_ms=round(float(p95), 2),
        plan=plan,
    )


def plan_of(node: Mapping[str, Any]) -> str:
    """The scans of the passages and vectors in a plan, in its order."""
    used = []
    nodes = [node]
    while nodes:
        each = nodes.pop(0)
        if "Index Name" in each:
            used.append(each["Index Name"])
        elif each["Node Type"] == "Function Scan":
            used.append(each["Function Name"])
        elif each["Node Type"] == "Seq Scan":
            used.append(f"all of {each['Relation Name']}")
        nodes += each.get("Plans", [])
    ours = ("memory_", "idx_memory_", "all of memory_")  # keys only fetch what was found
    return ", ".join(dict.fromkeys(each for each in used if each.startswith(ours)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Load, search as tenants of every size, print what was found; 0 where all is as promised."""
    parser = argparse.ArgumentParser(prog="python -m tests.prove.isolation", description=__doc__)
    parser.add_argument("--memories", type=int, default=1_000_000)
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--questions", type=int, default=200, help="questions of each tenant")
    parser.add_argument("--superuser", action="store_true", help="upgrade as one; else as an owner")
    given = parser.parse_args(arguments)
    population = Population(given.memories, given.tenants)
    home = Path(tempfile.mkdtemp(prefix="pgcorpus-prove-"))
    home.chmod(0o755)  # PostgreSQL runs as another account when this runs as root
    server = EmbeddedServer(home, settings=SERVER)
    try:
        databases = Databases(server.start().set(database="postgres"))
        url = databases.make(owner=None if given.superuser else databases.make_owner())
        databases.make_extensions(url)
        owner = Database(settings_for(url))
        superuser = Database(
            replace(settings_for(databases.superuser_of(url)), statement_timeout_ms=0)
        )
        upgrade(owner)
        fill(superuser, population, quiet=False)
        for remedy in index_large_scopes(owner, population):
            sys.stderr.write(f"{remedy}\n")
        with logged_in(superuser, APPLICATION_ROLE) as application:
            measured = [
                measure(application, population, tenant, mode, questions=given.questions)
                for mode in LEGS
                for tenant in sample_tenants(given.tenants)
            ]
        for each in (owner, superuser, databases):
            each.close()
    finally:
        server.destroy()
    show(measured)
    return 0 if all(each.holds for each in measured) else 1


def sample_tenants(tenants: int) -> list[int]:
    """Sample tenants from the largest to the smallest."""
    places = (0, 1, 2, 5, 10, 12, 20, 50, 100, 300, 600, tenants - 1)
    return [tenant for tenant in places if tenant < tenants]


def show(measured: list[Measured]) -> None:
    """One line for each tenant and mode."""
    columns = ("mode", "tenant", "memories", "all hits", "recall@10", "p50 ms", "p95 ms", "plan")
    table = Table(*columns, title="What tenants find", title_justify="left")
    for each in measured:
        table.add_row(
            each.mode,
            str(each.tenant + 1),
            f"{each.memories:,}",
            f"{each.full} of {each.questions}",
            "" if each.recall is None else f"{each.recall:.3f}",
            f"{each.p50_ms:.1f}",
            f"{each.p95_ms:.1f}",
            each.plan,
        )
    Console(width=150).print(table)


if __name__ == "__main__":
    sys.exit(main())
