"""Memories, episodes and vectors from files into one scope: all or told why not."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from sqlalchemy import delete, func, select, text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DatabaseNotReady, ImportFailed, MissingScope, NotFound, UnknownModel
from pgcorpus.db.models import (
    EpisodeEmbedding,
    EpisodicMemory,
    ImportFile,
    ImportReject,
    ImportRun,
    ImportTransformation,
    Job,
    MemoryEmbedding,
    MemoryNode,
    memory_id,
)
from pgcorpus.db.repositories import vector_indexes
from pgcorpus.db.repositories.embeddings import EmbeddingRepository
from pgcorpus.db.repositories.memory.imports import MemoryImportRepository
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.ask import Ask
from pgcorpus.db.search.corpora import MEMORY
from pgcorpus.db.search.legs import AskedModel
from pgcorpus.db.search.question import Question
from pgcorpus.services.importers.importer import Importer
from pgcorpus.services.memory.importing import importer as module
from pgcorpus.services.memory.importing.importer import MemoryImporter
from pgcorpus.services.memory.importing.report import MemoryReport
from tests.logins import logged_in

DIMENSIONS = 1024


def a_node(number: int = 0, **fields: object) -> dict[str, Any]:
    """A memory as the system before had it."""
    human = f"How is price number {number} set?"
    return {
        "id": memory_id("talk", number, human),
        "conversation_id": "talk",
        "sequence_index": number,
        "human_content": human,
        "assistant_content": f"By what it is worth, {number} times.",
        "source": "anthropic",
        "created_at": "2025-03-04T05:06:07Z",
        "intent_type": "question",
        "cluster_id": -1,
    } | fields


def an_episode(number: int = 0, **fields: object) -> dict[str, Any]:
    """An episode as the system before had it."""
    return {
        "id": f"ep_{number}",
        "title": f"Prices {number}",
        "messages": [{"role": "user", "content": "How is a price set?"}],
        "message_count": 1,
        "source": "anthropic",
        "created_at": 1_741_000_000,
        "updated_at": 1_741_000_600_000,
        "llm_tags": {"summary": "Prices were set.", "domains": ["pricing"]},
    } | fields


def vectors(count: int, seed: int = 0) -> np.ndarray:
    """Distinct vectors of the model of the system before."""
    return np.random.default_rng(seed).standard_normal((count, DIMENSIONS), dtype=np.float32)


class Folder:
    """A data folder, as the system before wrote it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for part in ("corpus", "vectors"):
            (path / part).mkdir(parents=True)

    def nodes(self, nodes: object, rows: np.ndarray | None = None) -> Folder:
        """Write memories, and their vectors."""
        (self.path / "corpus" / "nodes.json").write_text(json.dumps(nodes))
        if rows is not None:
            np.save(self.path / "vectors" / "nodes.npy", rows)
        return self

    def episodes(self, episodes: object, rows: np.ndarray | None = None) -> Folder:
        """Write episodes, and their vectors."""
        (self.path / "corpus" / "episodes.json").write_text(json.dumps(episodes))
        if rows is not None:
            np.save(self.path / "vectors" / "episodes.npy", rows)
        return self


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """An empty one."""
    return Folder(tmp_path / "data")


@pytest.fixture
def tenant(database: Database) -> Scope:
    """A tenant's scope."""
    return a_tenant(database, "acme")


def a_tenant(database: Database, slug: str) -> Scope:
    """Add a tenant."""
    with database.unit_of_work() as work:
        tenant = work.tenancy.create_tenant(slug)
        work.commit()
    return Scope.tenant(tenant.id)


def import_folder(database: Database, scope: Scope, folder: Folder, **options: Any) -> MemoryReport:
    """Import a folder."""
    return MemoryImporter(database, scope, **options).run([folder.path])


def stop_after_a_batch(database: Database, scope: Scope, folder: Folder) -> None:
    """Import the folder, and be interrupted when the first batch is kept."""

    def stop(done: int, total: int) -> None:
        if done > total / 2:  # the first half is looking through the files
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        MemoryImporter(database, scope).run([folder.path], progress=stop)


def rows(database: Database, model: type[Any]) -> Sequence[Any]:
    """Everybody's rows of a table: those of a scope are read in it."""
    with database.unit_of_work() as work:
        if model not in {MemoryNode, MemoryEmbedding}:
            return work.session.scalars(select(model)).all()
        found: list[Any] = []
        for scope in work.tenancy.list_scopes():
            work.enter(scope)
            found += work.session.scalars(select(model))
            work.session.expunge_all()  # the next scope would have them read again
        return found


def pending(database: Database) -> int:
    """Count the passages that wait to be embedded."""
    with database.unit_of_work() as work:
        waiting = select(func.count()).where(Job.status == "pending", Job.kind == "embed")
        return work.session.scalar(waiting) or 0


def counts(report: MemoryReport) -> tuple[int, int, int, int]:
    """Added, updated, unchanged, rejected."""
    added, updated, unchanged, rejected = (
        report.total(each) for each in ("added", "updated", "unchanged", "rejected")
    )
    return added, updated, unchanged, rejected


def test_memories_episodes_and_vectors_come_in_together(
    database: Database, tenant: Scope, folder: Folder
) -> None:
    """Each vector at its own text, and nothing is left to embed."""
    made, of_episodes = vectors(3), vectors(2, seed=1)
    folder.nodes([a_node(n) for n in range(3)], made)
    folder.episodes([an_episode(n) for n in range(2)], of_episodes)

    report = import_folder(database, tenant, folder)

    assert (counts(report), report.embedded, pending(database)) == ((5, 0, 0, 0), 5, 0)
    nodes = {node.key: node for node in rows(database, MemoryNode)}
    assert {str(node.scope) for node in nodes.values()} == {str(tenant)}
    for stored in rows(database, MemoryEmbedding):
        node = nodes[stored.node_key]
        said = f"{node.human_content}\n{node.assistant_content}"
        assert (stored.model_name, stored.scope) == ("bge-m3", str(tenant))
        assert stored.content_hash == sha256(said.encode()).digest()
    with database.unit_of_work() as work:
        work.enter(tenant)
        found = work.session.execute(
            select(MemoryNode.sequence_index, MemoryEmbedding.embedding).join(
                MemoryEmbedding, MemoryEmbedding.node_key == MemoryNode.key
            )
        )
        for index, embedding in found:
            assert np.array_equal(embedding, made[index])
        titles = select(EpisodicMemory.title, EpisodeEmbedding.embedding).join(
            EpisodeEmbedding, EpisodeEmbedding.episode_key == EpisodicMemory.key
        )
        for title, embedding in work.session.execute(titles):
            assert np.array_equal(embedding, of_episodes[int(title.split()[1])])


def test_every_field_is_stored(database: Database, tenant: Scope, folder: Folder) -> None:
    """Under its own name."""
    given = a_node(
        complexity="complex",
        technical_depth=7,
        emotional_valence="positive",
        urgency="high",
        conversation_mode="debug",
        action_required=True,
        has_code=True,
        has_error=True,
        tags={"domains": ["a"], "topics": ["b"], "entities": ["c"], "processes": ["d"], "x": 1},
        cluster_id=4,
        cluster_label="prices",
        cluster_confidence=0.5,
        access_count=9,
        last_accessed="2025-05-05T00:00:00+00:00",
    )

    report = import_folder(database, tenant, folder.nodes([given]))

    (node,) = rows(database, MemoryNode)
    assert report.total("transformed") == 0
    for name, value in given.items():
        stored = getattr(node, name)
        assert (stored.isoformat()[:10] if "ed_at" in name or "accessed" in name else stored) == (
            value[:10] if name in {"created_at", "last_accessed"} else value
        )


def test_a_users_memories_are_the_users(database: Database, folder: Folder) -> None:
    """Stamped with whom the call names, whatever the file says."""
    with database.unit_of_work() as work:
        user = work.tenancy.create_user(auth_provider="test", external_id="ann")
        work.commit()
    folder.nodes([a_node(user_id=str(uuid4()), tenant_id=str(uuid4()))])

    report = import_folder(database, Scope.user(user.id), folder)

    (node,) = rows(database, MemoryNode)
    assert (node.user_id, node.tenant_id) == (user.id, None)
    assert not report.statistics.unknown_fields


def test_a_second_import_changes_nothing(database: Database, tenant: Scope, folder: Folder) -> None:
    """The report says why; no row is written to."""
    folder.nodes([a_node(n, technical_depth=11) for n in range(3)], vectors(3))
    folder.episodes([an_episode()])
    import_folder(database, tenant, folder)
    versions = select(func.array_agg(text("xmin::text ORDER BY key"))).select_from(MemoryNode)
    with database.unit_of_work() as work:
        work.enter(tenant)
        before = work.session.scalar(versions)

    again = import_folder(database, tenant, folder)

    with database.unit_of_work() as work:
        work.enter(tenant)
        assert work.session.scalar(versions) == before
    assert (counts(again), again.embedded, again.total("transformed")) == ((0, 0, 4, 0), 0, 0)
    assert again.statistics.left_alone == {"stored already": 4}


def test_what_is_stored_otherwise_is_left_as_it_is(
    database: Database, tenant: Scope, folder: Folder
) -> None:
    """By default; a vector of another text does not go in with it."""
    import_folder(database, tenant, folder.nodes([a_node()]))
    folder.nodes([a_node(assistant_content="By chance.")], vectors(1))

    report = import_folder(database, tenant, folder)

    assert (counts(report), report.embedded) == ((0, 0, 1, 0), 0)
    assert dict(report.left_out) == {"the stored text is not the one it came with": 1}
    assert "--on-conflict update" in next(iter(report.statistics.left_alone))
    assert rows(database, MemoryNode)[0].assistant_content == "By what it is worth, 0 times."


def test_what_is_stored_otherwise_is_rejected_where_that_is_asked(
    database: Database, tenant: Scope, folder: Folder
) -> None:
    """In the order of the file, with the option that decides; what is the same is left alone."""
    import_folder(database, tenant, folder.nodes([a_node(0), a_node(1)]))
    other = a_node(0, assistant_content="By chance.")
    folder.nodes([other, {"id": "mem_silent"}, a_node(1)], vectors(3))

    report = import_folder(database, tenant, folder, on_conflict="reject")

    assert (counts(report), report.embedded) == ((0, 0, 1, 2), 1)
    assert [each.locator for each in report.rejects] == ["$[0]", "$[1]"]
    assert "--on-conflict update" in report.rejects[0].reason
    assert rows(database, MemoryNode)[0].assistant_content == "By what it is worth, 0 times."


def test_update_makes_it_what_the_file_says(
    database: Database, tenant: Scope, folder: Folder
) -> None:
    """Content, heuristics and the vector of a changed text; not how often it was recalled."""
    first = vectors(2)
    import_folder(database, tenant, folder.nodes([a_node(0), a_node(1)], first))
    with database.unit_of_work() as work:
        work.enter(tenant)
        work.session.execute(text("UPDATE memory_nodes SET access_count = 7"))
        work.commit()
    changed = a_node(0, assistant_content="By chance.", urgency="high", access_count=1)
    second = vectors(2, seed=1)
    folder.nodes([changed, a_node(1)], second)

    report = import_folder(database, tenant, folder, on_conflict="update")

    assert (counts(report), report.embedded, pending(database)) == ((0, 1, 1, 0), 1, 0)
    with database.unit_of_work() as work:
        work.enter(tenant)
        stored = work.session.execute(
            select(MemoryNode, MemoryEmbedding.embedding)
            .join(MemoryEmbedding, MemoryEmbedding.node_key == MemoryNode.key)
            .order_by(MemoryNode.sequence_index)
        ).all()
    (node, embedding), (_, kept) = stored
    assert (node.assistant_content, node.urgency, node.access_count) == ("By chance.", "high", 7)
    assert np.array_equal(embedding, second[0])
    assert np.array_equal(kept, first[1])


def test_update_keeps_the_time_that_the_file_does_not_say(
    database: Database, tenant: Scope, folder: Folder
) -> None:
    """A missing time is that of the first import, and stays it."""
    node = a_node()
    del node["created_at"]
    import_folder(database, tenant, folder.nodes([node]))
    before = rows(database, MemoryNode)[0].created_at

    report = import_folder(
        database, tenant, folder.nodes([node | {"urgency": "high"}]), on_conflict="update"
    )

    assert report.total("updated") == 1
    assert rows(database, MemoryNode)[0].created_at == before


def test_vectors_that_come_later_find_their_memories(
    database: Database, tenant: Scope, folder: Folder
) -> None:
    """And end the jobs that waited for them."""
    import_folder(database, tenant, folder.nodes([a_node(n) for n in range(3)]))
    before = pending(database)

    report = import_folder(
        database, tenant, folder.nodes([a_node(n) for n in range(3)], vectors(3))
    )

    assert (before, pending(database)) == (3, 0)
    assert (counts(report), report.embedded) == ((0, 0, 3, 0), 3)


@pytest.mark.parametrize(
    ("number", "reason", "bulk"),
    [
        (0.0, "is all zeros and has no direction", 1000),
        (np.nan, "holds NaN or infinity", 1000),
        (0.0, "is all zeros and has no direction", 3),
    ],
)
def test_a_vector_that_cannot_be_compared_is_left_to_a_worker(  # noqa: PLR0917 - pytest's
    database: Database,
    tenant: Scope,
    folder: Folder,
    monkeypatch: pytest.MonkeyPatch,
    number: float,
    reason: str,
    bulk: int,
) -> None:
    """The embedders of old wrote zeros wherever a batch failed: its memory goes in all the same."""
    monkeypatch.setattr(module, "BULK", bulk)
    rows_ = vectors(4)
    rows_[1] = number
    folder.nodes([a_node(n) for n in range(4)], rows_)

    report = import_folder(database, tenant, folder)
    again = import_folder(database, tenant, folder)

    assert (counts(report), report.embedded, report.failed) == ((4, 0, 0, 0), 3, False)
    assert report.left_out == again.left_out == {f"one {reason}": 1}
    (told,) = rows(database, ImportTransformation)
    assert (told.locator, told.item, told.field) == ("$[1]", a_node(1)["id"], "embedding")
    assert (told.original, told.stored, told.rule) == (reason, None, "empty")
    keys = {node.id: node.key for node in rows(database, MemoryNode)}
    (job,) = [
        each for each in rows(database, Job) if (each.status, each.kind) == ("pending", "embed")
    ]
    assert job.payload["item"] == str(keys[a_node(1)["id"]])


def test_vectors_of_another_model_leave_the_jobs(
    database: Database, tenant: Scope, folder: Folder
) -> None:
    """The passages still lack the model that workers embed with."""
    folder.nodes([a_node()], np.ones((1, 384), np.float32))

    report = import_folder(database, tenant, folder, embeddings_model="hashing")

    assert (report.embedded, pending(database)) == (1, 1)


@pytest.mark.parametrize("what", ["nodes", "episodes"])
def test_the_spread_of_imported_vectors_is_measured(
    database: Database, tenant: Scope, folder: Folder, what: str
) -> None:
    """Nobody has to run embed first: there is nothing to embed."""
    made = {"nodes": a_node, "episodes": an_episode}[what]
    getattr(folder, what)([made(n) for n in range(64)], vectors(64))

    import_folder(database, tenant, folder)

    with database.unit_of_work() as work:
        spread = work.models.get_model("bge-m3").cosine_spread
    assert spread == pytest.approx(1 / np.sqrt(DIMENSIONS), rel=0.1)


def test_the_same_id_in_two_tenants_is_two_memories(
    database: Database, tenant: Scope, folder: Folder
) -> None:
    """Neither hears of the other's."""
    other = a_tenant(database, "other")
    folder.nodes([a_node()], vectors(1))

    first, second = (import_folder(database, scope, folder) for scope in (tenant, other))

    assert counts(first) == counts(second) == (1, 0, 0, 0)
    assert second.embedded == 1
    assert {node.scope for node in rows(database, MemoryNode)} == {str(tenant), str(other)}


def test_an_operator_whom_row_security_binds_imports_as_well(
    database: Database, tenant: Scope, folder: Folder
) -> None:
    """A member of rag_admin is neither owner nor superuser."""
    with logged_in(database, "rag_admin") as operator:
        report = import_folder(operator, tenant, folder.nodes([a_node()], vectors(1)))
        again = import_folder(operator, tenant, folder, on_conflict="update")
    assert (counts(report), report.embedded, pending(database)) == ((1, 0, 0, 0), 1, 0)
    assert counts(again) == (0, 0, 1, 0)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda nodes: {"nodes": nodes, "version": {"x": 1}},
        lambda nodes: {node["id"]: node for node in nodes},
        lambda nodes: {node["id"]: {k: v for k, v in node.items() if k != "id"} for node in nodes},
    ],
)
def test_a_file_is_a_list_or_an_object_of_memories(
    database: Database, tenant: Scope, folder: Folder, wrapped: Callable[[Any], Any]
) -> None:
    """Vectors are in the order of the file."""
    nodes = [a_node(n) for n in range(3)]

    report = import_folder(database, tenant, folder.nodes(wrapped(nodes), vectors(3)))

    assert (counts(report), report.embedded) == ((3, 0, 0, 0), 3)
    assert {node.id for node in rows(database, MemoryNode)} == {node["id"] for node in nodes}


def test_an_id_that_is_missing_is_made_and_one_that_is_given_is_kept(
    database: Database, tenant: Scope, folder: Folder
) -> None:
    """By the formula of the system before; a given one need not match it."""
    nameless = a_node(0)
    del nameless["id"]

    import_folder(database, tenant, folder.nodes([nameless, a_node(1, id="mem_odd")]))

    assert {node.id for node in rows(database, MemoryNode)} == {
        memory_id("talk", 0, nameless["human_content"]),
        "mem_odd",
    }


def test_the_same_memory_twice_in_a_file_goes_in_once(
    database: Database, tenant: Scope, folder: Folder
) -> None:
    """Told as such; another memory under the same id is rejected, without its words."""
    folder.nodes([a_node(0), a_node(1), a_node(0), a_node(0, assistant_content="secret words")])

    report = import_folder(database, tenant, folder)

    assert counts(report) == (2, 0, 1, 1)
    assert report.statistics.left_alone == {"twice in the file": 1}
    assert [(each.locator, each.reason) for each in report.rejects] == [
        ("$[3]", "$[0] has the same id, and differs")
    ]


def test_what_no_rule_makes_valid_is_rejected_without_its_content(
    database: Database, tenant: Scope, folder: Folder
) -> None:
    """The others go in; the reject has where, which and why, and is gone when it is mended."""
    bad = a_node(1, human_content=" ", assistant_content="", cluster_label="secret words")
    folder.nodes([a_node(0), bad, "secret words", a_node(2)], vectors(4))

    report = import_folder(database, tenant, folder)

    assert (counts(report), report.embedded, report.failed) == ((2, 0, 0, 2), 2, True)
    rejects = sorted(rows(database, ImportReject), key=lambda each: each.locator)
    assert [each.locator for each in rejects] == ["$[1]", "$[2]"]
    assert [each.payload for each in rejects] == [{"id": bad["id"]}, {"id": None}]
    assert "secret" not in "".join(each.reason for each in rejects)

    folder.nodes([a_node(0), a_node(1), a_node(3), a_node(2)], vectors(4))
    import_folder(database, tenant, folder)
    assert rows(database, ImportReject) == []


def test_changes_are_recorded_without_what_was_said(
    database: Database, tenant: Scope, folder: Folder
) -> None:
    """It stands in the row; of what was replaced the history alone has the original."""
    given = a_node(
        technical_depth=15,
        intent_type="secret words",
        cluster_label="secret words " * 30,
        tags="secret words, more",
        cluster_confidence=1.5,
        assistant_content=["secret words"],
        human_content="How\0much?",
        last_accessed="the day before",
    )

    report = import_folder(database, tenant, folder.nodes([given]))

    told = rows(database, ImportTransformation)
    assert report.total("transformed") == 1
    assert {(each.field, each.rule) for each in told} == {
        ("technical_depth", "range"),
        ("intent_type", "choice"),
        ("cluster_label", "cut"),
        ("tags", "tags"),
        ("cluster_confidence", "range"),
        ("assistant_content", "text"),
        ("human_content", "characters"),
        ("last_accessed", "time"),
    }
    values = {each.field: (each.original, each.stored) for each in told}
    assert values["technical_depth"] == (15, 10)
    assert values["intent_type"] == ("secret words", "statement")
    assert values["cluster_label"] == (given["cluster_label"], None)
    assert values["last_accessed"] == ("the day before", None)
    assert values["assistant_content"] == values["human_content"] == (None, None)


def test_strict_rejects_what_would_have_to_be_changed(
    database: Database, tenant: Scope, folder: Folder
) -> None:
    """The reason names the field and the rule, not the value."""
    report = import_folder(
        database, tenant, folder.nodes([a_node(intent_type="secret words")]), strict=True
    )

    assert [each.reason for each in report.rejects] == [
        "intent_type would be changed (rule choice)"
    ]


def test_fields_that_have_no_column_are_kept_and_counted(
    database: Database, tenant: Scope, folder: Folder
) -> None:
    """Whatever the system before knew of a memory; whose it is, the call decides."""
    more = {"mood": {"of": "the day\0", "n": [1, None]}, "extra": "x"}
    folder.nodes([a_node(n, **more, tenant_id=str(uuid4())) for n in range(3)])
    folder.episodes([an_episode(0, weather="fair")])

    report = import_folder(database, tenant, folder)
    again = import_folder(database, tenant, folder, on_conflict="update")

    assert report.statistics.unknown_fields == {"mood": 3, "extra": 3, "weather": 1}
    kept = {"mood": {"of": "the day", "n": [1, None]}, "extra": "x"}
    assert [node.extra for node in rows(database, MemoryNode)] == [kept] * 3
    assert [each.extra for each in in_scope(database, tenant, EpisodicMemory)] == [
        {"weather": "fair"}
    ]
    assert counts(again) == (0, 0, 4, 0)


def in_scope(database: Database, scope: Scope, model: type[Any]) -> Sequence[Any]:
    """All rows of a table that a scope has."""
    with database.unit_of_work() as work:
        work.enter(scope)
        found = work.session.scalars(select(model)).all()
        work.session.expunge_all()
        return found


def test_statistics_say_what_the_memories_are(
    database: Database, tenant: Scope, folder: Folder
) -> None:
    """By source, intent and cluster, noise among them."""
    nodes = [a_node(0), a_node(1, source="openai", cluster_id=3), a_node(2, cluster_id=None)]

    report = import_folder(database, tenant, folder.nodes(nodes))

    found = report.as_json()
    assert found["nodes_by_source"] == {"anthropic": 2, "openai": 1}
    assert found["nodes_by_intent"] == {"question": 3}
    assert found["nodes_by_cluster"] == {"-1": 1, "3": 1, "none": 1}


def test_a_dry_run_reports_and_writes_nothing(
    database: Database, tenant: Scope, folder: Folder
) -> None:
    """The report is that of a real run."""
    folder.nodes([a_node(0), a_node(0, urgency="high"), a_node(1)], vectors(3))

    dry = import_folder(database, tenant, folder, dry_run=True)
    left = rows(database, MemoryNode)
    real = import_folder(database, tenant, folder)

    assert left == []
    shown = [each.as_json() | {"duration_s": 0} for each in (dry, real)]
    assert shown[0] == shown[1]


def test_one_memory_that_the_database_refuses_does_not_stop_the_others(
    database: Database, tenant: Scope, folder: Folder
) -> None:
    """Whatever somebody has forbidden in their own database."""
    with database.engine.begin() as connection:
        connection.execute(
            text("ALTER TABLE memory_nodes ADD CONSTRAINT not_twelve CHECK (sequence_index <> 12)")
        )

    report = import_folder(
        database, tenant, folder.nodes([a_node(n) for n in range(20)], vectors(20))
    )

    assert (counts(report), report.embedded) == ((19, 0, 0, 1), 19)
    assert [each.locator for each in report.rejects] == ["$[12]"]


def test_a_run_that_is_stopped_is_finished_by_the_next(
    database: Database, tenant: Scope, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole batches are kept, with their vectors."""
    monkeypatch.setattr(module, "BATCH", 4)
    folder.nodes([a_node(n) for n in range(10)], vectors(10))

    stop_after_a_batch(database, tenant, folder)
    kept = len(rows(database, MemoryNode))
    with_vectors = len(rows(database, MemoryEmbedding))
    report = import_folder(database, tenant, folder)

    assert (kept, with_vectors) == (4, 4)
    assert (counts(report), report.embedded) == ((6, 0, 4, 0), 6)


def test_a_first_load_is_made_without_indexes_and_has_them_afterwards(
    database: Database, tenant: Scope, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vector index among them, and valid."""
    monkeypatch.setattr(module, "BULK", 3)
    monkeypatch.setattr(module, "BATCH", 2)
    before = indexes(database)
    seen: list[set[str]] = []
    store = EmbeddingRepository.store

    def watch(self: EmbeddingRepository, *args: Any) -> int:
        names = "SELECT indexname FROM pg_indexes WHERE tablename = 'memory_nodes'"
        seen.append(set(self.session.scalars(text(names))))
        return store(self, *args)

    monkeypatch.setattr(EmbeddingRepository, "store", watch)
    built = []
    folder.nodes([a_node(n) for n in range(5)], vectors(5))

    report = MemoryImporter(database, tenant).run(
        [folder.path], on_build=lambda: built.append(True)
    )

    assert (counts(report), report.embedded, built) == ((5, 0, 0, 0), 5, [True])
    assert all("idx_memory_nodes_scope_words" not in names for names in seen)
    assert len(seen) == 3
    assert indexes(database) == before
    assert pending(database) == 0


def test_a_first_load_that_is_stopped_is_finished_by_the_next(
    database: Database, tenant: Scope, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept rows are found meanwhile, without indexes; these are built by the one that ends."""
    monkeypatch.setattr(module, "BULK", 3)
    monkeypatch.setattr(module, "BATCH", 4)
    before, sampled = indexes(database), targets(database)
    folder.nodes([a_node(n) for n in range(10)], vectors(10))

    stop_after_a_batch(database, tenant, folder)
    kept, left = len(rows(database, MemoryNode)), indexes(database)
    question = Ask(
        question=Question.parse("price number"),
        legs={"vector": 1.0, "text": 1.0, "fuzzy": 1.0},
        model=AskedModel("bge-m3", 1024),
        vector=vectors(10)[1],
        filters={"noise": True},
    )
    with database.unit_of_work() as work:
        work.enter(tenant)
        answer = work.searches.answer(MEMORY, question)
    report = import_folder(database, tenant, folder)

    assert kept == 4
    assert {each for each in before if each not in left} == {
        each for each in before if " gin " in each
    }
    assert answer.candidates == {"vector": 4, "text": 4, "fuzzy": 4}
    assert (counts(report), report.embedded) == ((6, 0, 4, 0), 6)
    assert (indexes(database), targets(database)) == (before, sampled)


def test_indexes_that_were_made_otherwise_stay_and_hide_none(
    database: Database, tenant: Scope, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its pending list an index would come back as the usual one."""
    monkeypatch.setattr(module, "BULK", 3)
    with database.engine.begin() as connection:
        connection.exec_driver_sql("""
            DROP INDEX idx_memory_nodes_scope_words;
            CREATE INDEX idx_memory_nodes_scope_words ON memory_nodes
            USING gin (scope_keys(scope, tsvector_to_array(memory_search)))
            WITH (fastupdate = off);
            CREATE INDEX of_one ON memory_nodes USING gin (memory_search) WHERE scope = 'tenant:x'
        """)
    before = indexes(database)

    import_folder(database, tenant, folder.nodes([a_node(n) for n in range(5)], vectors(5)))

    assert indexes(database) == before


def test_a_first_load_needs_one_connection_of_the_pool(
    database: Database, tenant: Scope, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock that keeps others out is held by one outside of it."""
    monkeypatch.setattr(module, "BULK", 3)
    folder.nodes([a_node(n) for n in range(5)], vectors(5))
    narrow = Database(replace(database.settings, pool_size=1, max_overflow=0))

    try:
        report = import_folder(narrow, tenant, folder)
    finally:
        narrow.close()

    assert counts(report) == (5, 0, 0, 0)


def test_a_load_beside_the_first_waits_until_its_indexes_are_built(
    database: Database, tenant: Scope, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would build them under the rows that are still to come; later ones do not wait."""
    monkeypatch.setattr(module, "BULK", 3)
    other = a_tenant(database, "other")
    folder.nodes([a_node(n) for n in range(5)], vectors(5))
    order: list[str] = []
    beside: list[Thread] = []

    def load() -> None:
        import_folder(database, other, folder)
        order.append("other")

    def begin(done: int, total: int) -> None:
        if done > total / 2 and not beside:  # it has been kept
            beside.append(Thread(target=load))
            beside[0].start()
            beside[0].join(timeout=1)

    MemoryImporter(database, tenant).run(
        [folder.path], progress=begin, on_build=lambda: order.append("first")
    )
    beside[0].join()

    assert order == ["first", "other"]
    assert len(rows(database, MemoryNode)) == 10


def test_a_scope_that_became_large_is_given_a_vector_index(
    database: Database, tenant: Scope, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its own, at the end of the import that made it large; the next builds none."""
    monkeypatch.setattr(module, "BULK", 3)
    monkeypatch.setattr(vector_indexes, "LEAST_INDEXED", 4)
    before = indexes(database)

    import_folder(database, tenant, folder.nodes([a_node(n) for n in range(5)], vectors(5)))
    (built,) = set(indexes(database)) - set(before)
    import_folder(database, tenant, folder)

    assert f"(scope = '{tenant}'::text)" in built
    assert "USING hnsw" in built
    assert len(indexes(database)) == len(before) + 1


def test_who_owns_nothing_leaves_the_indexes_to_the_owner(
    database: Database, tenant: Scope, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An application can neither drop nor build them; its import goes in all the same."""
    monkeypatch.setattr(module, "BULK", 3)
    before = indexes(database)
    folder.nodes([a_node(n) for n in range(5)], vectors(5))

    with logged_in(database, "rag_admin") as administrator:
        first = import_folder(administrator, tenant, folder)
        kept = indexes(database)
        with database.engine.begin() as connection:
            connection.execute(text("DROP INDEX idx_memory_nodes_scope_words"))
        second = import_folder(administrator, tenant, folder)

    assert (counts(first), counts(second)) == ((5, 0, 0, 0), (0, 0, 5, 0))
    assert kept == before
    assert len(indexes(database)) == len(before) - 1


def test_who_builds_what_another_left_renews_the_statistics_as_well(
    database: Database, tenant: Scope, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that stored all was stopped before it came to them."""
    monkeypatch.setattr(module, "BULK", 3)
    import_folder(database, tenant, folder.nodes([a_node(n) for n in range(5)], vectors(5)))
    renewed: list[None] = []
    monkeypatch.setattr(MemoryImportRepository, "analyze", lambda _: renewed.append(None))

    import_folder(database, tenant, folder)
    nothing_left = len(renewed)
    with database.engine.begin() as connection:
        connection.execute(text("DROP INDEX idx_memory_nodes_scope_words"))
    import_folder(database, tenant, folder)

    assert (nothing_left, len(renewed)) == (0, 1)


def targets(database: Database) -> list[tuple[str, int]]:
    """Return the statistics targets of indexes on memories: what they sample, or do not."""
    found = text(
        "SELECT attrelid::regclass::text, attstattarget FROM pg_attribute"
        " JOIN pg_index ON indexrelid = attrelid JOIN pg_class ON pg_class.oid = indrelid"
        " WHERE attstattarget >= 0 AND (relname LIKE 'memory_%' OR relname LIKE 'episod%')"
        " ORDER BY 1"
    )
    with database.unit_of_work() as work:
        return [(name, target) for name, target in work.session.execute(found)]


def test_the_import_of_a_second_tenant_never_drops_an_index(
    database: Database, tenant: Scope, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row security shows it an empty table; the first one's searches go on."""
    monkeypatch.setattr(module, "BULK", 1)
    import_folder(database, tenant, folder.nodes([a_node(n) for n in range(3)], vectors(3)))
    other = a_tenant(database, "other")
    loads: list[bool] = []
    is_first = MemoryImportRepository.is_first

    def watch(self: MemoryImportRepository) -> bool:
        self.session.execute(text("SET LOCAL ROLE rag_read_write"))  # whom row security binds
        loads.append(is_first(self))
        return loads[-1]

    monkeypatch.setattr(MemoryImportRepository, "is_first", watch)

    report = import_folder(database, other, folder)

    assert (loads, counts(report)) == ([False], (3, 0, 0, 0))


def indexes(database: Database) -> list[str]:
    """The definitions of all indexes on the tables of memories, valid ones."""
    with database.unit_of_work() as work:
        found = text(
            "SELECT pg_get_indexdef(indexrelid) FROM pg_index"
            " WHERE indisvalid AND indrelid IN ('memory_nodes'::regclass,"
            " 'memory_embeddings'::regclass, 'episodic_memories'::regclass,"
            " 'episode_embeddings'::regclass) ORDER BY 1"
        )
        return list(work.session.scalars(found))


def test_nobody_is_imported_for_whom_nobody_knows(database: Database, folder: Folder) -> None:
    """Nor for a user whose memories are the tenant's; the error says whose."""
    folder.nodes([a_node()])
    tenant = a_tenant(database, "acme").tenant_id
    assert tenant is not None
    with database.unit_of_work() as work:
        user = work.tenancy.create_user(auth_provider="test", external_id="ann", tenant_id=tenant)
        work.commit()

    for scope in (Scope.tenant(uuid4()), Scope.user(uuid4())):
        with pytest.raises(NotFound, match=r"pgcorpus (users|tenants) list"):
            import_folder(database, scope, folder)
    with pytest.raises(MissingScope, match=f"--tenant-id {tenant}"):
        import_folder(database, Scope.user(user.id), folder)
    with pytest.raises(NotFound, match="has no user"):
        import_folder(database, Scope.tenant(tenant, user_id=uuid4()), folder)


def test_memories_of_a_tenant_may_be_somebodys_of_it(database: Database, folder: Folder) -> None:
    """They are erased with who wrote them."""
    tenant = a_tenant(database, "acme").tenant_id
    assert tenant is not None
    with database.unit_of_work() as work:
        user = work.tenancy.create_user(auth_provider="test", external_id="ann", tenant_id=tenant)
        work.commit()

    import_folder(database, Scope.tenant(tenant, user_id=user.id), folder.nodes([a_node()]))

    (node,) = rows(database, MemoryNode)
    assert (node.tenant_id, node.user_id) == (tenant, user.id)


def test_a_model_must_be_registered(database: Database, tenant: Scope, folder: Folder) -> None:
    """The error lists those that are."""
    with pytest.raises(UnknownModel, match="bge-m3"):
        import_folder(database, tenant, folder.nodes([a_node()]), embeddings_model="nothing")


def test_without_the_schema_the_error_names_the_table_and_the_cure(
    empty: Database, folder: Folder
) -> None:
    """In the words of the system before."""
    with pytest.raises(
        DatabaseNotReady, match=r"memory_nodes table does not exist; .* pgcorpus db upgrade"
    ):
        import_folder(empty, Scope.user(UUID(int=1)), folder.nodes([a_node()]))


def test_counts_that_differ_are_refused_before_anything_is_written(
    database: Database, tenant: Scope, folder: Folder
) -> None:
    """Both numbers are told."""
    with pytest.raises(ImportFailed, match=r"Node count mismatch: 2 in .*, but 3 vectors"):
        import_folder(database, tenant, folder.nodes([a_node(0), a_node(1)], vectors(3)))
    folder.nodes([a_node(0)], vectors(1)).episodes([], vectors(1))
    with pytest.raises(ImportFailed, match=r"Episode count mismatch: 0 in .*, but 1 vectors"):
        import_folder(database, tenant, folder)
    assert rows(database, MemoryNode) == []


def test_a_folder_must_have_something_to_import(
    database: Database, tenant: Scope, folder: Folder, tmp_path: Path
) -> None:
    """Vectors without what they are of are no corpus."""
    with pytest.raises(ImportFailed, match=r"neither corpus/nodes.json nor corpus/episodes.json"):
        import_folder(database, tenant, folder)
    np.save(folder.path / "vectors" / "nodes.npy", vectors(1))
    with pytest.raises(ImportFailed, match="vectors of what is not there"):
        import_folder(database, tenant, folder)
    with pytest.raises(ImportFailed, match="there is no folder"):
        MemoryImporter(database, tenant).run([tmp_path / "nowhere"])


@pytest.mark.parametrize("damaged", ["", "[{", '{"a" 1}', "nodes", "[1] 2"])
def test_a_file_that_is_no_json_is_refused_whole(
    database: Database, tenant: Scope, folder: Folder, damaged: str
) -> None:
    """Before anything is written, with its name."""
    (folder.path / "corpus" / "nodes.json").write_text(damaged)

    with pytest.raises(ImportFailed, match=r"nodes\.json"):
        import_folder(database, tenant, folder)


def test_empty_files_are_no_error(database: Database, tenant: Scope, folder: Folder) -> None:
    """Nobody has remembered anything yet."""
    folder.nodes([], np.empty((0, DIMENSIONS), np.float32))

    assert counts(import_folder(database, tenant, folder)) == (0, 0, 0, 0)


def test_files_stay_untouched(database: Database, tenant: Scope, folder: Folder) -> None:
    """To the byte."""
    folder.nodes([a_node(technical_depth=99)], vectors(1))
    files = sorted(path for path in folder.path.rglob("*") if path.is_file())
    before = [path.read_bytes() for path in files]

    import_folder(database, tenant, folder)

    assert [path.read_bytes() for path in files] == before


def test_what_an_import_notes_is_the_scopes(
    database: Database, tenant: Scope, folder: Folder
) -> None:
    """Runs, files, changes and rejects: another tenant learns nothing of them."""
    import_folder(database, tenant, folder.nodes([a_node(technical_depth=11), 5]))

    for model in (ImportRun, ImportFile, ImportTransformation, ImportReject):
        assert {each.scope for each in rows(database, model)} == {str(tenant)}


def test_what_an_import_noted_of_a_memory_is_erased_with_it(
    database: Database, tenant: Scope, folder: Folder
) -> None:
    """By its id."""
    kept, gone = a_node(0, technical_depth=11), a_node(1, technical_depth=11)
    import_folder(database, tenant, folder.nodes([kept, gone]))

    with database.unit_of_work() as work:
        work.enter(tenant)
        work.session.execute(delete(MemoryNode).where(MemoryNode.id == gone["id"]))
        work.commit()

    assert [each.item for each in rows(database, ImportTransformation)] == [kept["id"]]


def test_a_memory_importer_keeps_nothing_to_try_again() -> None:
    """A refused record is not in the database, so there is no retry."""
    assert issubclass(MemoryImporter, Importer)
    assert not hasattr(MemoryImporter, "retry")
