"""No statement on memories or documents looks up by a key alone: it names the scope."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from pgcorpus import SearchService, Worker
from pgcorpus.db.choices import FUSIONS
from pgcorpus.db.engine import Database
from pgcorpus.db.models.documentation import (
    Chunk,
    ClickFeedback,
    Document,
    DocumentationEmbedding,
    SearchSession,
)
from pgcorpus.db.models.memory import EpisodeEmbedding, EpisodicMemory, MemoryEmbedding, MemoryNode
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.context import surroundings
from pgcorpus.db.search.corpora import DOCUMENTATION, EPISODES, MEMORY
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.search.driver import in_drivers_words
from pgcorpus.db.search.estimates import explain_matching
from pgcorpus.db.search.legs import AskedModel
from pgcorpus.db.search.prelude import compile_prelude
from pgcorpus.db.search.ranking import Shape, compile_search
from pgcorpus.services.documentation.importing.importer import DocumentationImporter
from pgcorpus.services.documentation.service import DocumentService
from pgcorpus.services.embedding.embed import EmbeddingService
from pgcorpus.services.embedding.hashing import HashingEmbedder
from pgcorpus.services.memory.importing.importer import MemoryImporter
from pgcorpus.services.ops.switch import ModelSwitch
from tests.logins import logged_in
from tests.services.memory.importing.test_importer import Folder, a_node, an_episode
from tests.services.memory.setting import Setting, setting

__all__ = ["setting"]

TABLES = [
    model.__tablename__
    for model in (
        *(MemoryNode, EpisodicMemory, MemoryEmbedding, EpisodeEmbedding),
        *(Document, Chunk, DocumentationEmbedding, ClickFeedback, SearchSession),
    )
]
REFERENCE = re.compile(
    rf"(?:\b(?P<how>FROM|JOIN|UPDATE|USING|INTO)|,) (?P<table>{'|'.join(TABLES)})"
    r"(?: AS (?P<alias>\w+))?(?![\w.])"
)

OF_ALL_SCOPES = {
    "statistics of the planner": "ANALYZE memory_nodes, ",
    "how much there is before an import": r"SELECT \S+ \+ \(SELECT count\(\*\) AS count_1 FROM ",
    "how much a model has embedded": r"SELECT count\(\*\) AS count_1, count\(\*\) FILTER \(WHERE ",
    "whether a model has vectors": r"SELECT \S+ AS anon_1 FROM \w+_embeddings WHERE ",
    "nearest by all vectors": r"SELECT greatest\(\S+ - CAST\(\w+_embeddings\.embedding <=> ",
    "texts to compare two models by": r"SELECT \S+ \|\| E'\\n' \|\| \S+ AS anon_1 FROM ",
    "vectors of a model that goes": r"DELETE FROM \w+_embeddings WHERE \S+model_name = ",
}
"""Statements of administrators over all scopes at once → their beginnings."""

SPREAD = r"WITH sample AS \(SELECT \w+_embeddings\.embedding AS embedding, "
"""The beginning of an administrator's look at how far a model's cosines spread, who needs no scope
where passages are shared."""


def faults(statement: str) -> list[str]:
    """Return what a statement asks of scoped tables without naming the scope.

    Each place where a table is read or written needs a condition of its own, which compares the
    table's scope; a table of vectors may be joined by it. A conflict begins with it.
    """
    words = " ".join(statement.split())
    places: dict[str, int] = {}
    found = []
    for reference in REFERENCE.finditer(words):
        name = reference["alias"] or reference["table"]
        if reference["how"] != "INTO":
            places[name] = places.get(name, 0) + 1
            continue
        inserted = words[reference.end() :]
        if not re.match(r"(?: AS \w+)? \((?:\w+, )*scope[,)]", inserted):
            found.append(f"INSERT INTO {name} without its scope")
        if re.search(r"ON CONFLICT \((?!scope, )", inserted):
            found.append(f"ON CONFLICT of {name} without the scope")
    for name, read in places.items():
        asked = len(re.findall(rf"\b{name}\.scope = ", words))
        if asked < read:
            found.append(f"{name} is named {read} times, and its scope {asked} times")
    return found


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Collect what is sent to the database, by the driver itself or through it."""
    sent: set[str] = set()

    def listen(kind: Any, name: str) -> None:
        run = getattr(kind, name)

        def note(self: Any, query: Any, *given: Any, **named: Any) -> Any:
            sent.add(query.decode() if isinstance(query, bytes) else str(query))
            return run(self, query, *given, **named)

        monkeypatch.setattr(kind, name, note)

    for name in ("execute", "executemany", "copy"):
        listen(psycopg.Cursor, name)
    return sent


def test_a_statement_without_a_scope_is_noticed() -> None:
    """A check that cannot fail would be worth nothing."""
    by_key = "SELECT memory_nodes.id FROM memory_nodes WHERE memory_nodes.key = %(key)s"
    scoped = by_key + " AND memory_nodes.scope = %(scope)s"

    assert faults(by_key)
    assert faults(scoped) == []
    assert faults(scoped + f" UNION {by_key}")
    assert faults(
        "SELECT 1 FROM memory_embeddings JOIN memory_nodes ON node_key = key"
        " WHERE memory_nodes.scope = 'x'"
    )
    assert faults(
        "INSERT INTO memory_nodes (key, scope) VALUES (1, 2) ON CONFLICT (key) DO NOTHING"
    )
    assert faults("INSERT INTO memory_nodes (key) VALUES (1)")
    assert faults("DELETE FROM episodic_memories USING staged WHERE staged.key = key")


@pytest.mark.parametrize(
    "corpus", [MEMORY, EPISODES, DOCUMENTATION], ids=lambda corpus: corpus.name
)
def test_every_search_names_the_scope(corpus: Corpus) -> None:
    """Whatever legs it has, however they are joined, and by whatever it is narrowed."""
    filters = {name: "docs/" if each.prefix else None for name, each in corpus.filters.items()}
    conditions, _ = corpus.parse_filters(filters)
    legs = [("vector",), ("text",), ("fuzzy",), ("vector", "text", "fuzzy")]
    made = []
    for which, fusion, kept, few, whole in product(
        legs, FUSIONS, ((), conditions), (False, True), (False, True)
    ):
        shape = Shape(
            corpus=corpus,
            legs=which,
            fusion=fusion,
            model=AskedModel("hashing", 384),
            words=2,
            conditions=kept,
            demanding=few,
            few=few,
            whole=whole,
            boosted=not few and corpus.boost is not None,
        )
        made.append(compile_search(shape))
    for kept, demanding in product(((), conditions), (False, True)):
        made.append(explain_matching(corpus, kept, demanding))
        made += (
            compile_prelude(corpus, kept, demanding=demanding, by_words=by_words, scoped=scoped)
            for by_words, scoped in product((False, True), {True, corpus.needs_scope})
        )
    if corpus.order is not None:
        made.append(in_drivers_words(surroundings(corpus)))

    assert {fault: each for each in made for fault in faults(each)} == {}


def test_every_operation_names_the_scope(
    setting: Setting, statements: set[str], tmp_path: Path
) -> None:
    """Remember, recall, tell, import, embed, switch models, forget, and delete the tenant."""
    service, scope = setting.service, setting.ours
    said = service.remember("How is a price set?", scope=scope, conversation_id="c")
    service.remember("How is a price set?", "By value.", scope=scope, conversation_id="d")
    for duplicates in ("keep", "link", "merge"):
        service.remember(
            "How is a price set?", scope=scope, conversation_id="c", duplicates=duplicates
        )
    service.recall("price", scope=scope)
    service.context("price", scope=scope)
    service.touch([said.id], scope=scope)
    service.get(said.id, scope=scope)
    episode = service.store_episode("c", scope=scope)
    service.recall_episodes("price", scope=scope)
    service.episodes(scope=scope)
    service.related_episodes(episode.id, scope=scope)
    service.episodes_of(said.id, scope=scope)
    folder = Folder(tmp_path / "data")
    folder.nodes([a_node(n) for n in range(3)], np.eye(3, 1024, dtype=np.float32))
    folder.episodes([an_episode()])
    for on_conflict in ("skip", "update"):
        MemoryImporter(setting.owner, scope, on_conflict=on_conflict).run([folder.path])
    Worker(setting.owner, kinds={"embed"}).run(once=True)
    for corpus in ("memory", "episodes"):
        EmbeddingService(setting.owner, embedder=HashingEmbedder("hashing", 384)).embed(corpus)
    service.forget(scope=scope, filters={"conversation": "c"})
    service.forget(scope=scope, everything=True)
    model, owner = "hashing", setting.owner
    with owner.unit_of_work() as work:
        for corpus in (MEMORY, EPISODES):
            work.embeddings.coverage(corpus, model)
            work.embeddings.has_vectors(corpus, model)
            work.embeddings.list_nearest(corpus, model, np.ones(384, np.float32), limit=1)
            work.embeddings.sample_texts(corpus, limit=1)
            work.embeddings.delete_vectors(corpus, model, limit=1)
    ModelSwitch(owner, embedder=HashingEmbedder(model, 384)).backfill(model)
    with owner.unit_of_work() as work:
        assert scope.tenant_id is not None
        work.tenancy.delete_tenant(scope.tenant_id)

    sent = {" ".join(each.split()) for each in statements}
    wrong = {each for each in sent if faults(each)}
    known = {
        what: {each for each in wrong if re.match(beginning, each)}
        for what, beginning in OF_ALL_SCOPES.items()
    }
    assert len([each for each in sent if REFERENCE.search(each)]) > 50
    assert wrong - set().union(*known.values()) == set()
    assert not [what for what, found in known.items() if not found]
    for each in wrong:  # even these join within a scope
        joined = re.findall(rf" JOIN (?:{'|'.join(TABLES)}) ON (\w+)\.scope = (\w+)\.scope", each)
        assert len(joined) == len(re.findall(rf" JOIN (?:{'|'.join(TABLES)}) ", each))


@pytest.mark.parametrize("shared", [False, True])
def test_every_operation_on_documents_names_the_scope(
    setting: Setting, statements: set[str], tmp_path: Path, shared: bool
) -> None:
    """Add, import, move, read, list, change, embed, search and delete, of a tenant and of all."""
    scope = None if shared else setting.ours
    with setting.owner.unit_of_work() as work:
        work.models.use_model("documentation", "hashing")
        work.commit()
    with logged_in(setting.owner, "rag_admin" if shared else "rag_read_write") as database:
        work_with_documents(database, scope, tmp_path)

    sent = {" ".join(each.split()) for each in statements}
    of_documents = [each for each in sent if REFERENCE.search(each)]
    assert len(of_documents) > 15
    known = [*OF_ALL_SCOPES.values(), "ANALYZE documents, ", SPREAD]
    wrong = {each for each in of_documents if faults(each)}
    assert {w for w in wrong if not any(re.match(beginning, w) for beginning in known)} == set()


def work_with_documents(database: Database, scope: Scope | None, tmp_path: Path) -> None:
    """Do with documents of the scope whatever there is to do."""
    embedder = HashingEmbedder("hashing", 384)
    service = DocumentService(database, embedder)
    service.add_texts(["How a price is set."], ids=["price"], scope=scope)
    service.add_document("# Price\n\nBy value.", path="price.md", scope=scope, embed=False)
    service.update("price.md", content="# Price\n\nBy cost.", scope=scope)
    service.get("price.md", scope=scope)
    service.list_documents(path_prefix="p", scope=scope)
    page = tmp_path / "docs" / "a.md"
    page.parent.mkdir()
    page.write_text("# Offers\n\nWhat is offered.")
    DocumentationImporter(database, scope).run([page.parent])
    page.rename(page.with_name("b.md"))
    DocumentationImporter(database, scope, prune=True).run([page.parent])
    Worker(database, kinds={"embed"}).run(once=True)
    search = SearchService(database, embedder=embedder)
    for filters in ({}, {"collection": "default"}, {"path_prefix": "p"}):
        found = search.search("price", corpus="documentation", scope=scope, filters=filters)
        assert bool(found.hits) or "collection" not in filters
    service.delete(["price.md"], scope=scope)
    service.delete(filters={"collection": "default"}, scope=scope)
