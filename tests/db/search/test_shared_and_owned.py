"""One ranking of what all may read and of one's own, by the indexes of both, as an application."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID, uuid4

import numpy as np
import pytest
from sqlalchemy import URL, text

from pgcorpus.db.engine import Database
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.answer import Answer
from pgcorpus.db.search.ask import Ask
from pgcorpus.db.search.corpora import DOCUMENTATION
from pgcorpus.db.search.known import FEW
from pgcorpus.db.search.legs import AskedModel
from pgcorpus.db.search.prelude import compile_prelude
from pgcorpus.db.search.question import Question
from tests.conftest import Databases
from tests.db.search.crowd import VOCABULARY, WORD
from tests.logins import logged_in

SHARED, LARGE, SMALL = 12_000, 6_000, 300
"""Chunks that all may read, of a tenant with many, and of one with few."""

MODEL: Final = AskedModel("documents", 64)
GRAPHS: Final = {"shared": "documents_hnsw_shared", "own": "documents_hnsw_of_large"}
LEGS: Final = {"vector": {"vector": 1.0}, "text": {"text": 1.0}, "fuzzy": {"fuzzy": 1.0}}
HYBRID: Final = {"vector": 0.3, "text": 0.7}
RARE: Final = 3_000
"""The number of a word that some passages hold."""

FILL: Final = """
    WITH document AS (
        INSERT INTO documents (tenant_id, scope, path)
        VALUES (:tenant, :scope, 'crowd.md') RETURNING id
    ), chunk AS (
        INSERT INTO chunks
            (tenant_id, scope, document_id, chunk_id, position, text, language, metadata)
        SELECT CAST(:tenant AS uuid), CAST(:scope AS text), document.id, n, n, said, 'simple',
            jsonb_build_object('owner', CAST(:scope AS text), 'share', n % 100, 'number', n,
                'half', n % 2 = 0, 'source', jsonb_build_object('page', n % 150),
                'tags', jsonb_build_array(n % 2, 't' || n % 100))
        FROM document, unnest(CAST(:said AS text[])) WITH ORDINALITY AS each (said, n)
        RETURNING id, position
    )
    SELECT id FROM chunk ORDER BY position
"""
VECTORS: Final = """
    INSERT INTO documentation_embeddings (scope, chunk_id, model_name, embedding, content_hash)
    SELECT :scope, id, :model, CAST(vector AS vector), ''
    FROM unnest(CAST(:ids AS uuid[]), CAST(:vectors AS text[])) AS each (id, vector)
"""
GRAPH: Final = """
    CREATE INDEX {name} ON documentation_embeddings
    USING hnsw ((embedding::halfvec(64)) halfvec_cosine_ops)
    WITH (m = 16, ef_construction = 64) WHERE model_name = 'documents' AND scope = '{scope}'
"""


@dataclass(frozen=True)
class Shelf:
    """Chunks of all and of two tenants, as an application's login reads them.

    Attributes:
        owner: Whose the database is.
        application: The login.
        large: The tenant with many chunks.
        small: The tenant with few.
        keys: Scope, None where they are everybody's → keys of its chunks.
        vectors: The same → float32 of shape ``(chunks, 64)``, each row of unit length.
        said: The same → the texts.
    """

    owner: Database
    application: Database
    large: Scope
    small: Scope
    keys: Mapping[Scope | None, list[UUID]]
    vectors: Mapping[Scope | None, np.ndarray]
    said: Mapping[Scope | None, list[str]]

    def readable(self, scope: Scope | None) -> tuple[Scope | None, ...]:
        """Return whose chunks a search reads."""
        return (None,) if scope is None else (None, scope)

    def search(self, asked: Ask, scope: Scope | None) -> Answer:
        """Search within the scope."""
        with self.application.unit_of_work(scope) as work:
            return work.searches.answer(DOCUMENTATION, asked)

    def explain(self, asked: Ask, scope: Scope | None) -> str:
        """Return the plan of a search, as JSON."""
        with self.application.unit_of_work(scope) as work:
            statement = work.searches.prepare(DOCUMENTATION, asked)
            return json.dumps(work.searches.explain(statement, analyze=False))


@pytest.fixture(scope="module")
def shelf(databases: Databases, hosted: URL) -> Iterator[Shelf]:
    """The chunks, with their indexes, analysed."""
    random = np.random.default_rng(11)
    with databases.opened(hosted.database or "", owner=hosted) as owner:
        large, small = Scope.tenant(uuid4()), Scope.tenant(uuid4())
        sizes: dict[Scope | None, int] = {None: SHARED, large: LARGE, small: SMALL}
        keys: dict[Scope | None, list[UUID]] = {}
        vectors: dict[Scope | None, np.ndarray] = {}
        said: dict[Scope | None, list[str]] = {}
        with owner.unit_of_work() as work:
            work.embeddings.lift_timeout()
            work.models.add_model(MODEL.name, dimensions=64, provider="hashing")
            for each in (large, small):
                work.tenancy.create_tenant("T", slug=str(each.tenant_id), tenant_id=each.tenant_id)
            work.commit()
        for scope, size in sizes.items():
            words = (VOCABULARY ** random.random((size, 20))).astype(int) - 1
            said[scope] = [" ".join(WORD[n] for n in row) for row in words]
            drawn = random.normal(size=(size, 8)).repeat(8, axis=1).astype(np.float32)
            vectors[scope] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
            with owner.engine.begin() as connection:
                for name, value in (scope.settings if scope else {}).items():
                    connection.execute(
                        text("SELECT set_config(:n, :v, true)"), {"n": name, "v": value}
                    )
                whose = {"scope": "shared" if scope is None else str(scope)}
                tenant = None if scope is None else scope.tenant_id
                rows = connection.scalars(
                    text(FILL), {**whose, "tenant": tenant, "said": said[scope]}
                )
                keys[scope] = list(rows)
                as_text = [str(each.tolist()) for each in vectors[scope]]
                connection.execute(
                    text(VECTORS),
                    {**whose, "model": MODEL.name, "ids": keys[scope], "vectors": as_text},
                )
        with owner.engine.begin() as connection:
            connection.execute(text("SET LOCAL max_parallel_maintenance_workers = 0"))
            for name, of in ((GRAPHS["shared"], "shared"), (GRAPHS["own"], str(large))):
                connection.exec_driver_sql(GRAPH.format(name=name, scope=of))
            for part in ("shared", "scope"):  # as autovacuum does in a moment
                connection.execute(
                    text(f"SELECT gin_clean_pending_list('idx_chunks_{part}_metadata')")
                )
            connection.execute(text("ANALYZE"))
        with logged_in(owner, "rag_read_write") as application:
            yield Shelf(owner, application, large, small, keys, vectors, said)


@pytest.fixture(params=["nobody", "large", "small"])
def scope(request: pytest.FixtureRequest, shelf: Shelf) -> Scope | None:
    """The scope of the search, or none."""
    return {"nobody": None, "large": shelf.large, "small": shelf.small}[request.param]


def ask(words: str, legs: Mapping[str, float], limit: int = 10) -> Ask:
    """Build a question."""
    vector = np.random.default_rng(5).normal(size=8).repeat(8).astype(np.float32)
    question = Question.parse(words)
    return Ask(question=question, legs=legs, model=MODEL, vector=vector, limit=limit)


def list_nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every node of a plan."""
    nodes = [plan]
    for node in nodes:
        nodes += node.get("Plans", [])
    return nodes


def find_scans(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the nodes that read chunks."""
    return [each for each in nodes if each.get("Relation Name") == "chunks"]


@pytest.mark.parametrize("legs", [*LEGS.values(), HYBRID], ids=[*LEGS, "hybrid"])
def test_no_search_reads_a_whole_table(
    shelf: Shelf, scope: Scope | None, legs: Mapping[str, float]
) -> None:
    """Each leg has its index for what is shared and for what is own, under row security."""
    typo = "x" if "fuzzy" in legs else ""
    plan = shelf.explain(ask(f"{WORD[RARE]} {WORD[40]}{typo}", legs), scope)

    nodes = list_nodes(json.loads(plan)["Plan"])
    assert "Seq Scan" not in {each["Node Type"] for each in find_scans(nodes)}
    if "vector" in legs:
        assert GRAPHS["shared"] in plan
        assert (GRAPHS["own"] in plan) == (scope == shelf.large)
    if "text" in legs:
        assert "chunks_with_words" in plan
    if "fuzzy" in legs:
        assert "chunks_alike" in plan


NARROWED: Final[Mapping[str, tuple[dict[str, Any], Callable[[int], bool]]]] = {
    "equal": ({"share": 7}, lambda n: n % 100 == 7),
    "nested": ({"source.page": 7.0}, lambda n: n % 150 == 7),
    "any": ({"share": {"$in": [7, 9, "7"]}}, lambda n: n % 100 in {7, 9}),
    "contains": ({"tags": {"$contains": ["t7", 1]}}, lambda n: n % 100 == 7),
    "and": ({"share": 7, "number": {"$lt": 250}}, lambda n: n in {7, 107, 207}),
    "broad and narrow": ({"half": True, "source.page": 4}, lambda n: n % 150 == 4),
    "or": ({"$or": [{"share": 7}, {"number": 1}]}, lambda n: n % 100 == 7 or n == 1),
    "none": ({"share": 100}, lambda _: False),
}
"""Filters on metadata, and the numbers of the chunks that meet each."""


@pytest.mark.parametrize("legs", [*LEGS.values(), HYBRID], ids=[*LEGS, "hybrid"])
@pytest.mark.parametrize("narrowed", NARROWED)
def test_an_index_serves_equality_and_containment_of_metadata(
    shelf: Shelf, scope: Scope | None, legs: Mapping[str, float], narrowed: str
) -> None:
    """Passages are counted by it; no leg reads others, and the vectors find all that are kept."""
    metadata, meets = NARROWED[narrowed]
    asked = replace(ask(WORD[0], legs, limit=500), filters={"metadata": metadata})
    kept = {
        key for of in shelf.readable(scope) for n, key in enumerate(shelf.keys[of], 1) if meets(n)
    }
    with shelf.application.unit_of_work(scope) as work:
        statement = work.searches.prepare(DOCUMENTATION, asked)
        plan = json.dumps(work.searches.explain(statement, analyze=False))
        prelude = compile_prelude(
            DOCUMENTATION, statement.shape.conditions, demanding=False, by_words=False, scoped=False
        )
        values = {"known_version": None, "known_languages": [], "languages": [], "words": ""}
        values |= {**statement.values, "few": FEW, "counted": True}
        explained = work.session.connection().exec_driver_sql(
            f"EXPLAIN (ANALYZE, FORMAT JSON) {prelude}", values
        )
        counting = list_nodes(explained.scalar_one()[0]["Plan"])

    assert statement.kept == len(kept)
    read = find_scans(list_nodes(json.loads(plan)["Plan"]))
    assert "Tid Scan" in {each["Node Type"] for each in read}
    assert "Seq Scan" not in {each["Node Type"] for each in read}
    run = [e for e in find_scans(counting) if e["Actual Loops"] and "@>" in e.get("Filter", "")]
    assert [each["Node Type"] for each in run] == ["Tid Scan"]
    found = {hit.id for hit in shelf.search(asked, scope).hits}
    assert found <= kept
    if "vector" in legs:
        assert found == kept


def test_a_broad_filter_is_not_looked_up(shelf: Shelf) -> None:
    """Counting ends where too much is found, and the other indexes find the best."""
    asked = replace(ask(WORD[40], HYBRID), filters={"metadata": {"half": True}})
    for scope in (None, shelf.large):
        with shelf.application.unit_of_work(scope) as work:
            statement = work.searches.prepare(DOCUMENTATION, asked)

        assert statement.kept is None
        assert "chunks_with_metadata" not in statement.sql
        assert len(shelf.search(asked, scope).hits) == 10


def test_what_too_many_have_does_not_hide_what_few_meet(shelf: Shelf) -> None:
    """Of the value alone the index gives too many; what else is asked is then asked of all."""
    metadata = {"half": True, "number": {"$lte": 20}}
    asked = replace(ask("x", LEGS["vector"], limit=100), filters={"metadata": metadata})
    for scope, kept in ((None, 10), (shelf.large, 20), (shelf.small, 20)):
        answer = shelf.search(asked, scope)

        assert answer.kept == len(answer.hits) == kept


def test_what_others_have_costs_a_look_up_nothing(shelf: Shelf) -> None:
    """As many pages are read for a value of 6,000 foreign passages as for one that none has."""
    pages = {}
    for name, value in {"theirs": str(shelf.large), "nobody's": "tenant:of nobody"}.items():
        with shelf.application.unit_of_work(shelf.small) as work:
            call = text("""
                EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON)
                SELECT chunks_with_metadata(jsonb_build_object('owner', CAST(:v AS text)), NULL)
            """)
            for _ in range(3):  # the first ones read the catalogue, too
                plan = work.session.scalar(call, {"v": value})[0]["Plan"]
        pages[name] = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
        assert plan["Actual Rows"] == 0

    assert pages["theirs"] == pages["nobody's"]
    assert pages["theirs"] < 20


def test_the_nearest_of_both_are_found(shelf: Shelf, scope: Scope | None) -> None:
    """The ten of one order by cosine, shared and own, and none of others."""
    asked = ask("x", LEGS["vector"])
    assert asked.vector is not None
    question = asked.vector / np.linalg.norm(asked.vector)
    cosines = {
        key: float(cosine)
        for of in shelf.readable(scope)
        for key, cosine in zip(shelf.keys[of], shelf.vectors[of] @ question, strict=True)
    }
    nearest = sorted(cosines, key=lambda key: -cosines[key])[:10]

    found = shelf.search(asked, scope).hits

    assert len(found) == 10
    assert {hit.id for hit in found} <= cosines.keys()
    assert len({hit.id for hit in found} & set(nearest)) >= 9
    assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)


@pytest.mark.parametrize("leg", ["text", "fuzzy"])
def test_words_are_found_in_what_is_shared_and_own(
    shelf: Shelf, scope: Scope | None, leg: str
) -> None:
    """All that hold a rare word, and nothing of others."""
    word = WORD[RARE]
    holding = {
        key
        for of in shelf.readable(scope)
        for key, said in zip(shelf.keys[of], shelf.said[of], strict=True)
        if word in said.split()
    }
    readable = {key for of in shelf.readable(scope) for key in shelf.keys[of]}

    found = {hit.id for hit in shelf.search(ask(word, LEGS[leg], limit=100), scope).hits}

    assert found >= holding
    assert found <= readable
    if leg == "text":
        assert found == holding


def test_a_search_leaves_others_the_languages_that_they_are_read_in(shelf: Shelf) -> None:
    """Neither one within a scope, nor one in a language of its own, is how the next one reads."""
    asked = ask(WORD[RARE], LEGS["text"])
    in_german = replace(asked, language="german")
    scopes = (shelf.small, None, shelf.large)
    alone = []
    for scope in scopes:
        with logged_in(shelf.owner, "rag_read_write") as fresh, fresh.unit_of_work(scope) as work:
            alone.append(work.searches.answer(DOCUMENTATION, asked).hits)

    with logged_in(shelf.owner, "rag_read_write") as fresh:
        for each in (asked, in_german, asked):
            found = []
            for scope in scopes:
                with fresh.unit_of_work(scope) as work:
                    found.append(work.searches.answer(DOCUMENTATION, each).hits)

    assert all(alone)
    assert [[hit.id for hit in hits] for hits in found] == [
        [hit.id for hit in hits] for hits in alone
    ]


def test_one_measure_of_rarity_ranks_shared_and_own_passages(shelf: Shelf) -> None:
    """Here words are as frequent in both; the statistics of the shared index tell how frequent."""
    words = {n: WORD[n] for n in (0, 40, 400)}

    def frequency(scope: Scope | None, word: str) -> float:
        of = [said.split() for each in shelf.readable(scope) for said in shelf.said[each]]
        return sum(word in said for said in of) / len(of)

    for scope in (None, shelf.large, shelf.small):
        with shelf.application.unit_of_work(scope) as work:
            statement = work.searches.prepare(
                DOCUMENTATION, ask(" ".join(words.values()), LEGS["text"])
            )
            weights = {
                name: value
                for name, value in statement.values.items()
                if name.startswith("weight_") and value
            }
        rarities = sorted(np.log(1 / frequency(scope, word)) for word in words.values())
        ordered = sorted(weights.values())
        assert len(ordered) == 3
        shares = np.array(rarities) / sum(rarities)
        assert np.allclose(np.array(ordered) / sum(ordered), shares, atol=0.08)


def test_a_scope_learns_no_word_of_others(shelf: Shelf) -> None:
    """Statistics are of shared passages alone: a word that only one tenant says has none."""
    told = text("""
        SELECT elements FROM lexeme_statistics(
            'chunks_text_gin_idx', 'tsvector_to_array', 'language', NULL)
    """)
    shared = {word for said in shelf.said[None] for word in said.split()}
    with shelf.application.unit_of_work(shelf.small) as work:
        elements = work.session.scalar(told)

    assert elements
    assert set(elements) <= shared
