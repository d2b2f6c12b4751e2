"""From one embedding model to another, while searches run and processes are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, text

import pgcorpus
from pgcorpus.db import migrations
from pgcorpus.db.choices import HALFVEC_MAX_DIMENSIONS
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import (
    AlreadyExists,
    DatabaseUnavailable,
    EmbedderUnavailable,
    InvalidValue,
    ModelInUse,
    ModelNotReady,
    NotFound,
    TransactionConflict,
    UnknownModel,
)
from pgcorpus.db.repositories.vector_indexes import IndexState
from pgcorpus.db.search.corpora import KNOWLEDGE
from pgcorpus.services.embedding.choice import choose
from pgcorpus.services.embedding.embed import EmbeddingService
from pgcorpus.services.embedding.hashing import HashingEmbedder
from pgcorpus.services.ops import switch
from pgcorpus.services.ops.switch import ModelSwitch
from pgcorpus.services.ops.verify import ModelVerifier
from pgcorpus.services.search.service import SearchService
from tests.command import PGCORPUS, Command
from tests.pooler import variables_of

PROJECT = Path(pgcorpus.__file__).parents[1]
PATIENCE_SECONDS = 60
PASSAGES = 120
OLD, NEW = ("old", 96), ("new", 64)
QUESTIONS = [f"w{n} w{n * 7 % 50} w{n * 3 % 50}" for n in range(8)]

FILL = (
    """
    INSERT INTO framework_documents (chunk_id, source_file, section, title, content)
    SELECT 'c' || n, 'f.md', 's', 'Title ' || n,
           string_agg('w' || (hashint8(n * 40 + k) & 63), ' ')
    FROM generate_series(1, :passages) n, generate_series(1, 20) k GROUP BY n
    """,
    """
    INSERT INTO framework_metadata
        (document_id, character_count, word_count, chunk_type, validation_passed)
    SELECT id, 300, 20, 'supporting', true FROM framework_documents
    """,
)

WAITING = text(
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


def run(database: Database, *statements: str, **values: object) -> None:
    """Run statements in one transaction."""
    with database.engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement), values)


def fill(database: Database, passages: int = PASSAGES) -> None:
    """Passages without vectors, by plain SQL."""
    run(database, *FILL, passages=passages)


@pytest.fixture
def filled(database: Database) -> Database:
    """Passages, searched by the old model."""
    fill(database)
    add(database, *OLD)
    ModelSwitch(database).backfill("old")
    ModelSwitch(database).use("knowledge", "old")
    return database


@pytest.fixture
def both(filled: Database) -> Database:
    """The old model is in use, and the new one is ready."""
    add(filled, *NEW)
    ModelSwitch(filled).backfill("new")
    return filled


def add(database: Database, name: str, dimensions: int) -> None:
    """Add a model that makes its vectors by hashing."""
    ModelSwitch(database).add(name, dimensions=dimensions, provider="hashing")


def find_used(database: Database) -> tuple[str | None, str | None]:
    """Return the model in use, and the one before."""
    with database.unit_of_work() as work:
        active = work.models.find_active_model("knowledge")
        return active and active.name, work.models.find_previous_model("knowledge")


def state(database: Database, name: str) -> IndexState:
    """Return the state of a model's index."""
    with database.unit_of_work() as work:
        return work.vector_indexes.index_state(KNOWLEDGE, work.models.get_model(name))


def count(database: Database, name: str) -> int:
    """Count the vectors of a model."""
    with database.unit_of_work() as work:
        return work.embeddings.count_vectors(KNOWLEDGE, name)


def wait_until(happened: Callable[[], bool]) -> None:
    """Come back as soon as it has happened."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def waiting(database: Database) -> int:
    """Count the connections that wait for a lock."""
    with database.engine.connect() as connection:
        return connection.scalar(WAITING) or 0


def locks(database: Database) -> int:
    """Count the advisory locks that are held."""
    held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    with database.engine.connect() as connection:
        return connection.scalar(text(held)) or 0


@contextmanager
def in_background(*tasks: Callable[[], object]) -> Iterator[list[BaseException]]:
    """Threads that are joined at the end; what they raised."""
    errors: list[BaseException] = []

    def guard(task: Callable[[], object]) -> None:
        try:
            task()
        except BaseException as error:  # noqa: BLE001 - told to the test
            errors.append(error)

    threads = [threading.Thread(target=guard, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    try:
        yield errors
    finally:
        for thread in threads:
            thread.join(PATIENCE_SECONDS)


def ids(service: SearchService, question: str) -> tuple[object, ...]:
    """The hits of a page that is whole."""
    page = service.search(question, corpus="knowledge", mode="vector")
    assert not page.degraded, page.legs
    return tuple(hit.id for hit in page.hits)


def test_searches_in_flight_see_one_whole_model_after_another(filled: Database) -> None:
    """Add, backfill, verify, use, rollback, use, drop: each page is the one model's or the other's.

    Three threads search all the while. A page that mixes two models, or has part of one, would be
    none of those that each model gives alone.
    """
    stop = threading.Event()
    pages: list[tuple[str, tuple[object, ...]]] = []
    searches: Counter[int] = Counter()

    def search(thread: int) -> None:
        service = SearchService(filled)
        while not stop.is_set():
            pages.extend((question, ids(service, question)) for question in QUESTIONS)
            searches[thread] += 1

    def settle() -> None:
        """Every thread has begun and ended searches since."""
        before = Counter(searches)
        wait_until(lambda: errors != [] or all(searches[n] >= before[n] + 2 for n in range(3)))

    def expect(name: str, dimensions: int) -> dict[str, tuple[object, ...]]:
        service = SearchService(filled, embedder=HashingEmbedder(name, dimensions))
        return {question: ids(service, question) for question in QUESTIONS}

    service = ModelSwitch(filled)
    with in_background(*(lambda n=n: search(n) for n in range(3))) as errors:
        try:
            settle()
            by_old = expect(*OLD)
            add(filled, *NEW)
            settle()
            service.backfill("new")
            by_new = expect(*NEW)
            (finding,) = ModelVerifier(filled).verify("new", questions=QUESTIONS)
            settle()
            before = len(pages)
            service.use("knowledge", "new")
            settle()
            service.rollback("knowledge")
            settle()
            service.use("knowledge", "new")
            settle()  # whoever chose the old model has its answer: no need for the grace
            during = len(pages)
            service.drop("old", grace_seconds=0)
            settle()
        finally:
            stop.set()

    assert errors == []
    assert finding.problems == ()
    assert all(len(hits) == 10 for _, hits in pages)
    assert {q for q in QUESTIONS if by_old[q] != by_new[q]} == set(QUESTIONS)
    assert all(hits == by_old[question] for question, hits in pages[: before - 1])
    assert all(hits in (by_old[question], by_new[question]) for question, hits in pages)
    assert all(hits == by_new[question] for question, hits in pages[during:])


def test_a_drop_waits_for_searches_that_chose_the_model_before(
    both: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its question is being embedded while the model goes out of use: the page is whole."""
    chosen, released = threading.Event(), threading.Event()
    embed = HashingEmbedder.embed_question
    pages: list[tuple[object, ...]] = []

    def slowly(embedder: HashingEmbedder, question: str) -> np.ndarray:
        chosen.set()
        assert released.wait(PATIENCE_SECONDS)
        return embed(embedder, question)

    ModelSwitch(both).use("knowledge", "new")
    monkeypatch.setattr(HashingEmbedder, "embed_question", slowly)
    searching = threading.Thread(target=lambda: pages.append(ids(SearchService(both), "w1 w2")))
    searching.start()
    assert chosen.wait(PATIENCE_SECONDS)
    ModelSwitch(both).rollback("knowledge")

    def answer_then_let_time_pass(left: float) -> None:
        assert 0 < left <= switch.GRACE_SECONDS
        assert count(both, "new") == PASSAGES
        released.set()
        searching.join(PATIENCE_SECONDS)
        run(both, "UPDATE embedding_models SET retired_at = retired_at - interval '1 hour'")

    dropped = ModelSwitch(both).drop("new", on_wait=answer_then_let_time_pass)

    assert [len(page) for page in pages] == [10]
    assert dropped.vectors == PASSAGES


def test_a_model_that_was_never_used_is_dropped_at_once(both: Database) -> None:
    """Its vectors in batches, its indexes, its row."""
    waits: list[float] = []
    progress: list[int] = []

    dropped = ModelSwitch(both).drop("new", on_wait=waits.append, on_progress=progress.append)

    assert (waits, sum(progress), dropped.vectors, dropped.registered) == ([], 120, 120, False)
    assert count(both, "new") == 0
    with pytest.raises(UnknownModel):
        state(both, "new")
    assert migrations.drift(both) == []
    with both.engine.connect() as connection:
        left = connection.scalar(
            text("SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%''new''%'")
        )
    assert left == 0


def test_a_model_that_searches_use_is_not_dropped(
    both: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor one that stands in for the active one; and nothing of it is deleted."""
    with pytest.raises(ModelInUse, match="searches of knowledge use old"):
        ModelSwitch(both).drop("old")
    ModelSwitch(both).use("knowledge", "text-embedding-3-large", force=True)
    with pytest.raises(ModelInUse, match="use hashing"):  # there is no key
        ModelSwitch(both).drop("hashing")

    assert count(both, "old") == PASSAGES


def test_of_a_seeded_model_only_the_vectors_are_dropped(filled: Database) -> None:
    """Its row and its index are the revisions': the schema does not drift."""
    ModelSwitch(filled).backfill("hashing")
    for corpus in ("documentation", "chat", "memory", "episodes"):  # else hashing stands in there
        ModelSwitch(filled).use(corpus, "old")

    dropped = ModelSwitch(filled).drop("hashing")

    assert (dropped.vectors, dropped.registered) == (PASSAGES, True)
    assert state(filled, "hashing") == "ready"
    assert migrations.drift(filled) == []


def test_nobody_rolls_back_to_a_dropped_model(both: Database) -> None:
    """The previous model is forgotten, and the error says what to do instead."""
    service = ModelSwitch(both)
    service.use("knowledge", "new")
    service.drop("old", grace_seconds=0)

    with pytest.raises(NotFound, match=r"no earlier model.*pgcorpus models use knowledge NAME"):
        service.rollback("knowledge")
    assert find_used(both) == ("new", None)


def test_a_drop_that_was_killed_is_finished_by_the_next(
    both: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then the model, half gone, is not taken into use."""
    service = ModelSwitch(both)
    monkeypatch.setattr(switch, "DELETED_AT_ONCE", 50)

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        service.drop("new", on_progress=stop)
    assert count(both, "new") == PASSAGES - 50
    with pytest.raises(ModelNotReady, match=r"70 of 120.*its index is missing"):
        service.use("knowledge", "new")

    assert service.drop("new").vectors == 70


def test_a_model_is_dropped_by_nobody_while_it_is_filled(both: Database) -> None:
    """And not used by anybody while it is dropped."""
    refused: list[str] = []

    class Filling(HashingEmbedder):
        def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
            with pytest.raises(TransactionConflict) as conflict:
                ModelSwitch(both).drop("new")
            refused.append(str(conflict.value))
            return super().embed_documents(texts)

    def use(_: int) -> None:
        with pytest.raises(TransactionConflict) as conflict:
            ModelSwitch(both).use("knowledge", "new")
        refused.append(str(conflict.value))

    run(both, "UPDATE framework_documents SET content = 'New.' WHERE chunk_id = 'c1'")
    ModelSwitch(both, embedder=Filling(*NEW)).backfill("new")
    ModelSwitch(both).drop("new", on_start=use)

    assert refused == [
        "another process is embedding knowledge with new; wait until it has ended",
        "another process is indexing or dropping new; wait until it has ended",
    ]


def test_a_model_that_lacks_a_vector_is_not_taken_into_use(both: Database) -> None:
    """Missing or stale: nothing changes, the error names the cure, and the cure works."""
    service = ModelSwitch(both)
    run(
        both,
        "UPDATE framework_documents SET content = 'New.' WHERE chunk_id = 'c1'",
        "DELETE FROM chunk_embeddings e USING framework_documents d"
        " WHERE document_id = d.id AND chunk_id = 'c2' AND model_name = 'new'",
    )

    with pytest.raises(
        ModelNotReady,
        match=r"118 of 120 passages of knowledge \(1 more are of older texts\); mend it with: "
        "pgcorpus models backfill new --corpus knowledge",
    ):
        service.use("knowledge", "new")
    assert find_used(both)[0] == "old"
    (done,) = service.backfill("new", among=["knowledge"])
    switched = service.use("knowledge", "new")

    assert (done.report.embedded, done.report.stale, done.index) == (2, 1, "kept")
    assert (switched.coverage.embedded, switched.coverage.total) == (120, 120)


def test_force_takes_a_model_as_it_is(filled: Database) -> None:
    """Whoever says so knows what is missing."""
    add(filled, *NEW)

    switched = ModelSwitch(filled).use("knowledge", "new", force=True)

    assert (switched.coverage.embedded, find_used(filled)) == (0, ("new", "old"))


def test_rolling_back_twice_is_where_one_was(both: Database) -> None:
    """And using a model twice does not forget the one before."""
    service = ModelSwitch(both)
    service.use("knowledge", "new")
    service.use("knowledge", "new")
    assert find_used(both) == ("new", "old")

    assert service.rollback("knowledge").model == "old"
    assert find_used(both) == ("old", "new")
    assert service.rollback("knowledge").model == "new"


def test_two_switches_at_once_are_one_after_the_other(both: Database) -> None:
    """Both succeed: the last is in use, and the other can be rolled back to."""
    service = ModelSwitch(both)
    ModelSwitch(both).backfill("hashing")
    tasks = [lambda name=name: service.use("knowledge", name) for name in ("new", "hashing")]
    with both.engine.begin() as blocker:
        blocker.execute(text("SELECT FROM corpus_settings FOR UPDATE"))
        with in_background(*tasks) as errors:
            wait_until(lambda: waiting(both) == 2)
            blocker.rollback()

    assert errors == []
    assert set(find_used(both)) == {"new", "hashing"}


def test_a_model_is_added_once(database: Database) -> None:
    """The second time is told so, whether it asks for the same or for something else."""
    add(database, "m", 8)

    with pytest.raises(AlreadyExists, match="there is a model 'm' already; see"):
        add(database, "m", 8)
    with pytest.raises(AlreadyExists, match="already, with 8 dimensions"):
        add(database, "m", 9)
    assert state(database, "m") == "ready"
    assert migrations.drift(database) == []


def test_a_model_registered_without_its_index_is_completed(database: Database) -> None:
    """As a kill between the two leaves it."""
    with database.unit_of_work() as work:
        work.models.add_model("m", dimensions=8, provider="hashing")
        work.commit()
    assert state(database, "m") == "missing"

    add(database, "m", 8)

    assert state(database, "m") == "ready"


@pytest.mark.parametrize("name", ["my/model:latest", "a/:b", "x" * 100, "My.Model"])
def test_any_name_of_a_model_gets_an_index_that_is_found(database: Database, name: str) -> None:
    """Names are literals of a condition: none of their signs is read as something else."""
    add(database, name, 8)

    assert state(database, name) == "ready"


@pytest.mark.parametrize("mend", ["add", "backfill"])
def test_an_index_whose_build_was_cut_off_is_built_anew(filled: Database, mend: str) -> None:
    """The build waits for an old snapshot; its connection is ended; an invalid index is left."""
    with filled.engine.connect() as old:
        old = old.execution_options(isolation_level="REPEATABLE READ")  # noqa: PLW2901
        old.execute(text("SELECT count(*) FROM chunk_embeddings"))
        with in_background(lambda: add(filled, *NEW)) as errors:
            wait_until(lambda: waiting(filled) == 1)
            run(
                filled,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE query LIKE 'CREATE INDEX CONCURRENTLY%' AND pid <> pg_backend_pid()",
            )
    assert [type(error) for error in errors] == [DatabaseUnavailable]
    assert state(filled, "new") == "invalid"

    if mend == "add":
        add(filled, *NEW)
    done = ModelSwitch(filled).backfill("new")

    assert [each.index for each in done] == ["built" if mend == "backfill" else "kept"]
    assert state(filled, "new") == "ready"
    ModelSwitch(filled).use("knowledge", "new")


def test_searches_and_writes_go_on_while_an_index_is_built(filled: Database) -> None:
    """The build hangs on an old snapshot, and everybody else does not hang on the build."""
    phases: list[str] = []
    with filled.engine.connect() as old:
        old = old.execution_options(isolation_level="REPEATABLE READ")  # noqa: PLW2901
        old.execute(text("SELECT count(*) FROM chunk_embeddings"))

        def build() -> None:
            ModelSwitch(filled).add(
                "new",
                dimensions=64,
                provider="hashing",
                on_build=lambda _, phase, share: phases.append(phase) if 0 <= share <= 1 else None,
            )

        with in_background(build) as errors:
            wait_until(lambda: waiting(filled) == 1 and phases != [])
            run(filled, "UPDATE framework_documents SET content = 'New.' WHERE chunk_id = 'c1'")
            (done,) = ModelSwitch(filled).backfill("old")
            hits = ids(SearchService(filled), "w1 w2")
            with pytest.raises(TransactionConflict, match="indexing or dropping new"):
                add(filled, *NEW)
            old.rollback()

    assert errors == []
    assert (done.report.embedded, len(hits)) == (1, 10)
    assert any("waiting" in phase for phase in phases)
    assert state(filled, "new") == "ready"


def test_a_first_backfill_of_a_large_corpus_builds_the_index_after_it(
    filled: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of a model in use, whose searches need the index, nor the second time."""
    monkeypatch.setattr(switch, "BULK_PASSAGES", 100)
    add(filled, *NEW)
    states: list[IndexState] = []

    class Watching(HashingEmbedder):
        def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
            states.append(state(filled, self.model_name))
            return super().embed_documents(texts)

    (first,) = ModelSwitch(filled, embedder=Watching(*NEW)).backfill("new")
    run(filled, "UPDATE framework_documents SET content = 'New.' WHERE chunk_id = 'c1'")
    (second,) = ModelSwitch(filled, embedder=Watching(*NEW)).backfill("new")
    run(filled, "DELETE FROM chunk_embeddings WHERE model_name = 'old'")
    (in_use,) = ModelSwitch(filled, embedder=Watching(*OLD)).backfill("old")

    assert states == ["missing", "ready", "ready"]
    assert [first.index, second.index, in_use.index] == ["built", "kept", "kept"]
    assert state(filled, "new") == "ready"


def test_a_backfill_by_a_provider_that_is_not_at_hand_changes_nothing(filled: Database) -> None:
    """The index is still there, and the error names the key."""
    with pytest.raises(EmbedderUnavailable, match="OPENAI_API_KEY"):
        ModelSwitch(filled).backfill("bge-m3")

    assert state(filled, "bge-m3") == "ready"


KILLED_HALFWAY = """
import os, signal
from pgcorpus.db.engine import Database
from pgcorpus.services.ops import switch
from pgcorpus.services.embedding.embed import EmbeddingService
from pgcorpus.services.embedding.hashing import HashingEmbedder

class Killed(HashingEmbedder):
    batches = 0
    def embed_documents(self, texts):
        self.batches += 1
        if self.batches == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().embed_documents(texts)

switch.BULK_PASSAGES = 100
embedder = Killed("new", 64)
embedder.batch_size = 20
switch.ModelSwitch(Database.from_env(), embedder=embedder).backfill("new")
"""


def environment(database: Database) -> dict[str, str]:
    """Return the environment of a process that works on the database."""
    own = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), "COLUMNS": "160"}
    return own | variables_of(database.settings)


def test_a_backfill_killed_halfway_goes_on_where_it_was(filled: Database, tmp_path: Path) -> None:
    """Three batches are there, nothing is embedded twice, and the index is built at the end."""
    add(filled, *NEW)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_HALFWAY],
        check=False,
        env=environment(filled),
        cwd=tmp_path,
        timeout=PATIENCE_SECONDS,
    )
    assert (killed.returncode, count(filled, "new")) == (-signal.SIGKILL, 60)
    wait_until(lambda: locks(filled) == 0)  # the server notices the end of the process
    assert state(filled, "new") == "missing"

    (done,) = ModelSwitch(filled).backfill("new")

    assert (done.report.embedded, done.index) == (60, "built")
    assert state(filled, "new") == "ready"


def test_the_index_of_a_model_too_long_for_halfvec_is_binary(database: Database) -> None:
    """By default; asked for halfvec, it is refused before anything is written."""
    too_long = HALFVEC_MAX_DIMENSIONS + 96
    with pytest.raises(InvalidValue, match="at most 4000 dimensions, not 4096"):
        ModelSwitch(database).add(
            "long", dimensions=too_long, provider="hashing", index_kind="halfvec"
        )

    add(database, "long", too_long)

    assert state(database, "long") == "ready"
    with database.unit_of_work() as work:
        choice = choose(work, KNOWLEDGE, database.settings, "long")
    assert (choice.index_kind, choice.dimensions) == ("binary", too_long)


def test_the_planner_uses_a_binary_index(filled: Database) -> None:
    """The query repeats expression and literal."""
    ModelSwitch(filled).add("bits", dimensions=128, provider="hashing", index_kind="binary")
    ModelSwitch(filled).backfill("bits")
    asked = str(HashingEmbedder("bits", 128).embed_question("w1 w2").tolist())
    with filled.engine.connect() as connection:
        connection.execute(text("SET LOCAL enable_sort = off"))
        plan = "\n".join(
            connection.scalars(
                text(
                    "EXPLAIN SELECT document_id FROM chunk_embeddings WHERE model_name = 'bits'"
                    " ORDER BY binary_quantize(embedding)::bit(128)"
                    " <~> binary_quantize(CAST(:asked AS vector))::bit(128) LIMIT 10"
                ),
                {"asked": asked},
            )
        )

    assert "Index Scan using chunk_embeddings_hnsw_bits" in plan


def test_a_whole_model_is_verified(both: Database) -> None:
    """Every vector, a ready index, all of the exact hits; and how many answers will change."""
    add(both, "twin", OLD[1])
    ModelSwitch(both).backfill("twin")
    progress: list[int] = []

    (twin,) = ModelVerifier(both).verify("twin", on_progress=progress.append)
    (new,) = ModelVerifier(both).verify("new", questions=QUESTIONS)
    (old,) = ModelVerifier(both).verify("old", questions=QUESTIONS)

    assert [each.problems for each in (twin, new, old)] == [(), (), ()]
    assert [each.recall for each in (twin, new, old)] == [1.0, 1.0, 1.0]
    assert (twin.overlap, twin.compared_with, twin.questions_from) == (1.0, "old", "passages")
    assert (twin.questions, sum(progress)) == (100, 100)
    assert 0 < (new.overlap or 0) < 1
    assert (new.questions, new.questions_from) == (len(QUESTIONS), "file")
    assert (old.overlap, old.compared_with) == (None, None)  # it is the one in use


def test_verification_is_not_logged_as_searches(both: Database) -> None:
    """Nobody asked these questions."""
    ModelVerifier(both).verify("new", questions=QUESTIONS)

    with both.engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM query_performance_log")) == 0


def test_an_index_that_misses_passages_fails_the_verification(
    database: Database, superuser: Engine
) -> None:
    """It claims to be valid; only a comparison with an exact scan shows that it is not."""
    fill(database, passages=2_500)  # fewer, or shorter vectors, are compared one by one
    add(database, "long", 3_000)
    readiness = (
        "UPDATE pg_index SET indisready = {} FROM pg_class"
        " WHERE indexrelid = oid AND relname LIKE 'chunk_embeddings_hnsw_long%'"
    )
    with superuser.begin() as connection:  # and so nothing goes into it
        connection.execute(text(readiness.format("false")))
    EmbeddingService(database).embed("knowledge", model="long")
    with superuser.begin() as connection:
        connection.execute(text(readiness.format("true")))
    name = database.url.database
    run(database, "ANALYZE", f'ALTER DATABASE "{name}" SET enable_sort = off')
    database.close()

    (found,) = ModelVerifier(database).verify("long", questions=QUESTIONS)

    assert (found.index, found.coverage.embedded) == ("ready", 2_500)
    assert found.recall is not None
    assert found.recall < 0.5
    assert f"REINDEX INDEX CONCURRENTLY {found.index_name}" in found.problems[0]


@pytest.fixture
def models(filled: Database, tmp_path: Path) -> Command:
    """Runs ``pgcorpus models`` on the filled database, with nobody at the keyboard."""

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PGCORPUS, "models", *arguments],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment(filled),
            cwd=tmp_path,
            timeout=PATIENCE_SECONDS,
        )

    return command


def test_a_script_switches_a_model_by_commands_alone(models: Command, tmp_path: Path) -> None:
    """JSON alone on stdout, the shapes that the reference names, and exit code 0."""
    (tmp_path / "questions.txt").write_text('w1 w2\n\n"w3" -w4\n')
    commands = {
        "add": ["new", "--dimensions", "64", "--provider", "hashing", "--index", "binary"],
        "backfill": ["new", "--corpus", "knowledge"],
        "verify": ["new", "--questions", "questions.txt"],
        "use": ["knowledge", "new"],
        "rollback": ["knowledge"],
        "list": [],
        "drop": ["new", "--yes", "--force"],
    }
    done = {name: models(name, *arguments, "--json") for name, arguments in commands.items()}

    assert {name: each.returncode for name, each in done.items() if each.returncode} == {}
    said = {name: json.loads(each.stdout) for name, each in done.items()}
    (filling,), (finding,) = said["backfill"]["corpora"], said["verify"]["corpora"]
    assert said["backfill"]["model"] == "new"
    told = {"corpus", "embedded", "stale", "failed", "waiting", "duration_s", "index"}
    assert filling.keys() == told
    assert (filling["embedded"], filling["index"]) == (PASSAGES, "kept")
    assert (said["verify"]["model"], said["verify"]["passed"]) == ("new", True)
    assert finding.keys() == {
        "corpus", "total", "embedded", "missing", "stale", "index", "questions", "questions_from",
        "compared_with", "overlap@10", "recall@10", "problems",
    }  # fmt: skip
    assert (finding["index"]["kind"], finding["index"]["state"]) == ("binary", "ready")
    assert (finding["questions"], finding["compared_with"]) == (2, "old")
    assert said["use"] == {"corpus": "knowledge", "model": "new", "embedded": 120, "total": 120}
    assert said["rollback"] == said["use"] | {"model": "old"}
    listed = {each["name"]: each for each in said["list"]}
    assert (listed["old"]["active_for"], listed["new"]["previous_for"]) == (
        ["knowledge"], ["knowledge"],
    )  # fmt: skip
    assert said["drop"] == {"model": "new", "vectors": PASSAGES, "registered": False}


def test_a_person_is_told_what_to_do_next(models: Command) -> None:
    """Every step names the one after it, and says what stood in for questions."""
    added = models("add", "long", "--dimensions", "5000", "--provider", "hashing")
    lacking = models("verify", "long")
    filled = models("backfill", "long")
    verified = models("verify", "long")

    assert "binary: halfvec holds at most 4000 dimensions" in added.stderr
    assert "pgcorpus models backfill long" in added.stderr
    assert lacking.returncode == 1
    assert "120 of 120 passages have no vector; mend it with: pgcorpus" in lacking.stderr
    assert "pgcorpus models verify long" in filled.stderr
    assert (filled.returncode, verified.returncode) == (0, 0)
    assert "no saved questions were given" in verified.stderr
    assert "120 of 120" in verified.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["drop", "old", "--yes"], 1, "pgcorpus models use knowledge NAME"),
        (["drop", "text-embedding-3-small", "--yes"], 1, "pgcorpus models use documentation NAME"),
        (["drop", "gpt", "--yes"], 2, "known:"),
        (["use", "knowledge", "hashing"], 1, "pgcorpus models backfill hashing"),
        (["use", "recipes", "hashing"], 2, "known: chat, documentation, episodes"),
        (["backfill", "gpt"], 2, "known:"),
        (["backfill", "hashing", "--corpus", "recipes"], 2, "known: chat, documentation"),
        (["backfill", "bge-m3"], 1, "OPENAI_API_KEY"),
        (["verify", "old", "--questions", "nowhere.txt"], 2, "nowhere.txt"),
        (["verify", "old", "--questions", os.devnull], 2, "no question"),
        (["add", "m", "--dimensions", "4001", "--provider", "hashing", "--index", "halfvec"], 2,
         "use binary"),
        (["add", "m", "--dimensions", "4", "--provider", "nobody"], 2, "known: openai"),
        (["add", "two words", "--dimensions", "4", "--provider", "hashing"], 2, "letters"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_step_out_of_turn_is_refused_in_a_sentence(
    models: Command, arguments: list[str], code: int, says: str
) -> None:
    """The cause and the cure on stderr, the right exit code, never a trace."""
    result = models(*arguments)

    assert says.lower() in " ".join(result.stderr.split()).lower()
    assert (result.returncode, result.stdout) == (code, "")
    assert "Traceback" not in result.stderr


def test_a_model_is_dropped_only_by_who_says_so(models: Command) -> None:
    """There is no terminal to ask at."""
    assert models("add", "spare", "--dimensions", "8", "--provider", "hashing").returncode == 0

    result = models("drop", "spare")

    assert "--yes" in result.stderr
    assert (result.returncode, result.stdout) == (2, "")


def test_ctrl_c_ends_an_index_build_with_a_sentence(filled: Database, tmp_path: Path) -> None:
    """The server ends it too, and the same command goes on."""
    command = ["models", "add", "new", "--dimensions", "64", "--provider", "hashing"]
    with filled.engine.connect() as old:
        old = old.execution_options(isolation_level="REPEATABLE READ")  # noqa: PLW2901
        old.execute(text("SELECT count(*) FROM chunk_embeddings"))
        process = subprocess.Popen(
            [PGCORPUS, *command],
            env=environment(filled),
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_until(lambda: process.poll() is not None or waiting(filled) == 1)
            process.send_signal(signal.SIGINT)
            _, complaint = process.communicate(timeout=PATIENCE_SECONDS)
        finally:
            process.kill()
            process.communicate()
    wait_until(lambda: locks(filled) == 0)

    assert process.returncode == 130, complaint
    assert "stopped" in complaint
    assert "Traceback" not in complaint
    assert state(filled, "new") == "invalid"
    add(filled, *NEW)
    assert state(filled, "new") == "ready"
