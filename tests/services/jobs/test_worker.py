"""The worker and its handlers: what becomes of jobs when things go well, and when they do not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import event, func, select, text, update

from pgcorpus import EmbeddingService, Worker
from pgcorpus.db import repositories
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DatabaseExhausted, EmbedderUnavailable, TextsRefused, UnknownKind
from pgcorpus.db.models import ArchivedQueryPerformance, Job, Message, QueryPerformance
from pgcorpus.db.repositories.jobs import ClaimedJob
from pgcorpus.db.search.corpora import CHAT, KNOWLEDGE
from pgcorpus.db.search.page import SearchPage
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.embedding.hashing import HashingEmbedder
from pgcorpus.services.jobs import circuit
from pgcorpus.services.jobs.circuit import Circuit
from pgcorpus.services.jobs.handler import COMPLETED, Finish, Outcome
from pgcorpus.services.jobs.handlers import EmbedHandler, LogFlushHandler, MaintenanceHandler
from pgcorpus.services.jobs.worker import _Outage
from pgcorpus.services.search.log import SearchLog
from tests import factories
from tests.prove.effects import EffectHandler, count_effects, enqueue_effects


class Doing:
    """A handler that calls a function with the numbers in the payloads of its jobs."""

    kind = "test"
    corpus = ""
    batch_size = 8

    def __init__(self, do: Callable[[list[int]], Sequence[Outcome] | None]) -> None:
        self._do = do
        self.calls: list[list[int]] = []

    def handle(self, jobs: Sequence[ClaimedJob]) -> Finish:
        """Call it; without outcomes, all is done."""
        numbers = [job.payload["n"] for job in jobs]
        self.calls.append(numbers)
        outcomes = self._do(numbers)
        return lambda _work: outcomes or [COMPLETED] * len(jobs)


@pytest.fixture
def jobs(database: Database) -> list[int]:
    """Eight jobs, numbered from 0."""
    with database.unit_of_work() as work:
        ids = [work.jobs.enqueue("test", {"n": n}) for n in range(8)]
        work.commit()
    return ids


def rows(database: Database, kind: str) -> list[Job]:
    """All jobs of a kind, in order."""
    with database.unit_of_work() as work:
        return list(work.session.scalars(select(Job).where(Job.kind == kind).order_by(Job.id)))


def fill(database: Database, *contents: str) -> list[UUID]:
    """Messages with these contents, committed."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        conversation = factories.ConversationFactory()
        ids = [
            factories.MessageFactory(conversation=conversation, content=content).id
            for content in contents
        ]
        work.commit()
    return ids


def count_embedded(database: Database) -> int:
    """Count the messages with a vector of their present text."""
    with database.unit_of_work() as work:
        return work.embeddings.coverage(CHAT, "hashing").embedded


def test_a_run_does_what_is_due_and_ends(database: Database, jobs: list[int]) -> None:
    """In batches of at most the handler's size; reports add up."""
    doing = Doing(lambda _numbers: None)
    doing.batch_size = 5

    report = Worker(database, [doing], concurrency=1).run(once=True)

    assert doing.calls == [[0, 1, 2, 3, 4], [5, 6, 7]]
    assert (report.counts, report.succeeded) == ({"completed": 8}, True)
    assert {job.status for job in rows(database, "test")} == {"completed"}


def test_results_without_room_are_not_made_again_at_once(
    database: Database, jobs: list[int]
) -> None:
    """A hosted model would be paid for each time; no job loses an attempt."""

    def do(_numbers: list[int]) -> None:
        raise DatabaseExhausted("no space left on the server's disk")

    doing = Doing(do)
    worker = Worker(database, [doing], concurrency=1, poll_seconds=0.1)
    thread = threading.Thread(target=worker.run)
    thread.start()
    time.sleep(1.5)
    worker.stop()
    thread.join()

    assert 1 <= len(doing.calls) < 8
    assert {(job.status, job.attempts) for job in rows(database, "test")} == {("pending", 0)}


def test_a_job_to_blame_is_found_by_halving_and_the_others_are_done(
    database: Database, jobs: list[int]
) -> None:
    """Whatever the exception: it never ends the worker, and is kept beside the job."""

    def do(numbers: list[int]) -> None:
        if 5 in numbers:
            raise RuntimeError("five is bad")

    report = Worker(database, [Doing(do)], concurrency=1).run(once=True)

    assert report.counts == {"completed": 7, "retried": 1}
    assert not report.succeeded
    bad = rows(database, "test")[5]
    assert (bad.status, bad.attempts, bad.last_error) == (
        "pending", 1, "RuntimeError: five is bad",
    )  # fmt: skip


def test_each_job_can_end_in_its_own_way(database: Database, jobs: list[int]) -> None:
    """A handler knows more than that a batch failed."""

    def do(numbers: list[int]) -> list[Outcome]:
        ends = [Outcome("failed", "hopeless"), Outcome("retried", "later")]
        return [*ends, *[COMPLETED] * (len(numbers) - 2)]

    report = Worker(database, [Doing(do)], concurrency=1).run(once=True)

    assert report.counts == {"failed": 1, "retried": 1, "completed": 6}
    assert [job.last_error for job in rows(database, "test")][:3] == ["hopeless", "later", None]
    assert [job.status for job in rows(database, "test")][:2] == ["failed", "pending"]


def until_completed(database: Database, worker: Worker, *, but: int = 0) -> None:
    """Let a worker run until all test jobs but so many are completed."""
    thread = threading.Thread(target=worker.run)
    thread.start()
    while sum(job.status != "completed" for job in rows(database, "test")) > but:
        thread.join(0.1)
    worker.stop()
    thread.join()


def test_an_outage_uses_up_no_attempts_and_is_not_hammered(
    database: Database, jobs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probes of one job are sent, and all is done, once each, when the provider is back."""
    monkeypatch.setattr(circuit, "FIRST_PAUSE_SECONDS", 0.1)
    answers = iter([False] * 3)

    def do(_numbers: list[int]) -> None:
        if not next(answers, True):
            raise EmbedderUnavailable("busy")

    doing = Doing(do)
    doing.batch_size = 2
    until_completed(database, Worker(database, [doing], concurrency=1, poll_seconds=0.1))

    assert [len(call) for call in doing.calls[:4]] == [2, 1, 1, 1]
    assert {job.attempts for job in rows(database, "test")} == {1}


def test_no_number_of_fresh_processes_uses_up_attempts_in_an_outage(
    database: Database, jobs: list[int]
) -> None:
    """Such as of a timer, or a service that restarts: none has seen the provider answer."""

    def do(_numbers: list[int]) -> None:
        raise EmbedderUnavailable("busy")

    for _ in range(6):
        with database.unit_of_work() as work:
            # What was put off is due: the hours between the runs.
            work.session.execute(update(Job).values(not_before=func.now()))
            work.commit()
        report = Worker(database, [Doing(do)], concurrency=1).run(once=True)
        assert report.counts == {"put_off": 8}

    assert {(job.status, job.attempts) for job in rows(database, "test")} == {("pending", 0)}


def test_a_text_that_nobody_answers_to_holds_up_no_other_and_fails_alone(
    database: Database, jobs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others prove that the provider is there: only then does it look like the text's fault."""
    monkeypatch.setattr(circuit, "FIRST_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(repositories.jobs, "BACKOFF_SECONDS", 0.1)
    with database.unit_of_work() as work:
        work.session.execute(update(Job).where(Job.kind == "test").values(max_attempts=99))
        work.commit()

    def do(numbers: list[int]) -> None:
        if 0 in numbers:
            raise EmbedderUnavailable("timed out")

    doing = Doing(do)
    until_completed(database, Worker(database, [doing], concurrency=1, poll_seconds=0.1), but=1)

    bad, *others = rows(database, "test")
    assert (bad.status, bad.last_error) == ("pending", "timed out")
    assert {job.status for job in others} == {"completed"}
    with database.unit_of_work() as work:
        work.session.execute(update(Job).where(Job.kind == "test").values(max_attempts=1))
        ids = [work.jobs.enqueue("test", {"n": n}, priority=9) for n in range(1, 3)]
        work.jobs.requeue(ids=[bad.id])
        work.commit()
    doing.batch_size = 1
    report = Worker(database, [doing], concurrency=1).run(once=True)

    assert report.counts == {"completed": len(ids), "failed": 1}
    assert rows(database, "test")[0].status == "failed"


def test_a_text_that_nobody_answers_to_stops_no_timer(database: Database, jobs: list[int]) -> None:
    """Every run is a fresh process, and meets the text first; the others are done nevertheless."""

    def do(numbers: list[int]) -> None:
        if 0 in numbers:
            raise EmbedderUnavailable("timed out")

    while sum(job.status == "completed" for job in rows(database, "test")) < 7:
        Worker(database, [Doing(do)], concurrency=1).run(once=True)
        with database.unit_of_work() as work:
            work.session.execute(update(Job).values(not_before=func.now()))
            work.commit()

    assert rows(database, "test")[0].status == "pending"


def test_a_probe_that_fails_by_its_own_fault_opens_the_lane(
    database: Database,
    jobs: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The provider has answered: the other jobs need not wait for a minute."""
    monkeypatch.setattr(circuit, "FIRST_PAUSE_SECONDS", 0.1)
    busy = EmbedderUnavailable("busy")
    answers = iter([busy, busy, RuntimeError("bad")])

    def do(_numbers: list[int]) -> None:
        if error := next(answers, None):
            raise error

    doing = Doing(do)
    doing.batch_size = 4
    until_completed(database, Worker(database, [doing], concurrency=1, poll_seconds=0.1), but=1)

    assert [len(call) for call in doing.calls[:3]] == [4, 1, 1]
    assert len(doing.calls[3]) >= 3
    # Told by the log: the job is tried again in seconds, and may be completed by now.
    told = [each.getMessage() for each in caplog.records]
    assert sum("failed: RuntimeError: bad" in each for each in told) == 1


def test_a_circuit_lets_single_probes_through_until_one_succeeds() -> None:
    """Then everything; a probe that found nothing to do leaves it to the next."""
    one = Circuit()
    assert one.admits(8) == 8
    assert one.note_failure()[0] is False
    one._closed_until = 0.0

    assert (one.admits(8), one.admits(8)) == (1, 0)
    one.pass_on()
    assert (one.admits(8), one.admits(8)) == (1, 0)
    suspect, pause = one.note_failure()
    assert (suspect, 1 <= pause <= 2) == (False, True)
    one.pass_on()
    assert one.admits(8) == 0
    one.note_success()
    assert (one.admits(8), one.admits(8)) == (8, 8)
    assert [one.note_failure()[0], one.note_failure()[0]] == [True, False]


def test_only_the_thread_that_probes_lets_another_probe() -> None:
    """One that began before the outage and ends meanwhile does not."""
    one = Circuit()
    one.note_failure()
    one._closed_until = 0.0
    assert one.admits(8) == 1

    thread = threading.Thread(target=one.pass_on)
    thread.start()
    thread.join()

    assert one.admits(8) == 0


def test_once_ends_where_nobody_answers_and_says_that_not_all_is_done(
    database: Database, jobs: list[int]
) -> None:
    """The jobs that were put off are still there."""

    def do(_numbers: list[int]) -> None:
        raise EmbedderUnavailable("busy")

    report = Worker(database, [Doing(do)], concurrency=1).run(once=True)

    assert report.counts == {"put_off": 8}
    assert not report.succeeded
    assert {job.last_error for job in rows(database, "test")} == {"busy"}


def test_a_kind_without_a_handler_is_not_claimed(database: Database, jobs: list[int]) -> None:
    """And to ask for one is a mistake that is told."""
    Worker(database, [EffectHandler()], concurrency=1).run(once=True)
    assert {job.status for job in rows(database, "test")} == {"pending"}

    with pytest.raises(UnknownKind, match="'cook'; known: embed, log_flush, maintenance"):
        Worker(database, kinds={"cook"})


def test_only_the_kinds_asked_for_are_done(database: Database) -> None:
    """The rest is for others."""
    fill(database, "a text")
    Worker(database, kinds={"maintenance"}).run(once=True)

    assert [job.status for job in rows(database, "embed")] == ["pending"]
    assert rows(database, "maintenance")[0].started_at is not None
    assert rows(database, "log_flush")[0].started_at is None


def test_a_notification_wakes_the_worker(database: Database) -> None:
    """It polls once an hour here, so that nothing else can."""
    enqueue_effects(database, 0)
    done = threading.Event()
    worker = Worker(
        database, [EffectHandler()], poll_seconds=3600, on_batch=lambda _report: done.set()
    )
    thread = threading.Thread(target=worker.run)
    thread.start()
    listens = text(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
        " AND datname = current_database()"
    )
    with database.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        while not connection.scalar(listens):
            thread.join(0.05)

    enqueue_effects(database, 1)
    woken = done.wait(30)
    worker.stop()
    thread.join()

    assert woken
    assert count_effects(database) == (1, 1)


def test_a_worker_that_is_stopped_finishes_what_it_has_begun(
    database: Database, jobs: list[int]
) -> None:
    """The batch in hand is done, the next is not begun."""
    doing = Doing(lambda _numbers: worker.stop())
    doing.batch_size = 3
    worker = Worker(database, [doing], concurrency=1)
    report = worker.run()

    assert report.counts == {"completed": 3}
    assert [job.status for job in rows(database, "test")] == ["completed"] * 3 + ["pending"] * 5


def test_a_halved_batch_is_given_back_from_where_it_was_stopped(
    database: Database, jobs: list[int]
) -> None:
    """Without counting the attempt of those that were not begun alone."""

    def do(numbers: list[int]) -> None:
        if len(numbers) == 8:
            raise RuntimeError("too many")
        worker.stop()

    worker = Worker(database, [Doing(do)], concurrency=1)
    report = worker.run()

    assert report.counts == {"completed": 4, "released": 4}
    assert [(job.status, job.attempts) for job in rows(database, "test")[4:]] == [
        ("pending", 0)
    ] * 4


def test_a_heartbeat_keeps_a_long_batch_from_others(database: Database, jobs: list[int]) -> None:
    """It takes several leases, and is done once."""
    beaten = threading.Event()
    extended = 0

    def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        nonlocal extended
        extended += statement.startswith("UPDATE jobs SET lease_expires_at")
        if extended >= 6:
            beaten.set()

    event.listen(database.engine, "before_cursor_execute", count)

    def do(_numbers: list[int]) -> None:
        assert beaten.wait(30)

    doing = Doing(do)
    worker = Worker(database, [doing], concurrency=2, lease_seconds=0.5)
    report = worker.run(once=True)

    assert report.counts == {"completed": 8}
    assert len(doing.calls) == 1


def test_a_batch_that_hangs_is_given_up_and_done_by_another(
    database: Database, jobs: list[int]
) -> None:
    """Nothing of it is kept if it comes back after all; a worker that only hangs says so."""
    released = threading.Event()

    def hang(_numbers: list[int]) -> list[Outcome]:
        released.wait(60)
        return [Outcome("failed", "too late")] * 8

    hanging = Worker(
        database, [Doing(hang)], concurrency=1, lease_seconds=0.5, max_seconds_in_hand=0.5
    )
    report = hanging.run()
    assert report.hung
    assert not report.succeeded

    other = Doing(lambda _numbers: None)
    rescuer = Worker(database, [other], concurrency=1, lease_seconds=0.5, poll_seconds=0.1)
    rescuer._on_batch = lambda _report: None
    thread = threading.Thread(target=rescuer.run)
    thread.start()
    while any(job.status != "completed" for job in rows(database, "test")):
        thread.join(0.1)
    rescuer.stop()
    thread.join()
    released.set()
    slot = hanging._slots[0].thread
    assert slot is not None
    slot.join()

    assert {job.status for job in rows(database, "test")} == {"completed"}
    assert {job.attempts for job in rows(database, "test")} == {2}


def test_a_connection_lost_while_a_batch_ends_loses_nothing(
    database: Database, jobs: list[int]
) -> None:
    """The end is tried again, the work is not repeated."""

    def do(_numbers: list[int]) -> None:
        with database.engine.connect() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    " AND usename = current_user"  # a pooler is there as a superuser
                )
            )

    broken = iter([True])

    class Breaking(Doing):
        def handle(self, jobs: Sequence[ClaimedJob]) -> Finish:
            finish = super().handle(jobs)

            def breaking(work: UnitOfWork) -> Sequence[Outcome]:
                if next(broken, False):
                    do([])
                    work.session.execute(text("SELECT 1"))
                return finish(work)

            return breaking

    doing = Breaking(lambda _numbers: None)
    report = Worker(database, [doing], concurrency=1).run(once=True)

    assert report.counts == {"completed": 8}
    assert len(doing.calls) == 1


def test_messages_are_embedded_as_they_are_written(database: Database) -> None:
    """By the outbox and a worker, with the model that searches use."""
    ids = fill(database, *(f"text {n}" for n in range(100)))
    with database.unit_of_work() as work:
        work.session.execute(text("DELETE FROM messages WHERE id = :id"), {"id": ids[0]})
        work.commit()

    report = Worker(database, kinds={"embed"}).run(once=True)

    assert report.counts == {"completed": 100}
    assert count_embedded(database) == 99


def test_every_corpus_has_its_jobs_done(database: Database) -> None:
    """Each by a handler of its own, so that one without a provider does not hold up the other."""
    fill(database, "a text")
    with database.unit_of_work() as work:
        factories.bind(work.session)
        factories.FrameworkDocumentFactory()
        work.commit()

    report = Worker(database, kinds={"embed"}).run(once=True)

    assert report.counts == {"completed": 2}
    with database.unit_of_work() as work:
        assert work.embeddings.coverage(KNOWLEDGE, "hashing").embedded == 1


class Refusing(HashingEmbedder):
    """Refuses one text."""

    def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        """All or nothing."""
        if "bad" in texts:
            raise TextsRefused("bad is refused")
        return super().embed_documents(texts)


def test_a_text_that_is_refused_is_a_dead_letter_at_once(database: Database) -> None:
    """The other 499 are embedded; edited, it is tried again."""
    fill(database, *("bad" if n == 321 else f"text {n}" for n in range(500)))
    handler = EmbedHandler(database, CHAT, embedder=Refusing())

    report = Worker(database, [handler]).run(once=True)

    assert report.counts == {"completed": 499, "failed": 1}
    (dead,) = [job for job in rows(database, "embed") if job.status == "failed"]
    assert (dead.attempts, dead.last_error) == (1, "bad is refused")

    with database.unit_of_work() as work:
        work.session.execute(update(Message).where(Message.content == "bad").values(content="good"))
        work.commit()
    assert Worker(database, [handler]).run(once=True).counts == {"completed": 1}
    assert count_embedded(database) == 500


def test_a_text_edited_while_it_is_embedded_gets_the_vector_of_the_new(database: Database) -> None:
    """The stale vector is not stored; its job gives way to the one that the edit enqueued."""
    fill(database, "old", "other")
    stored: list[int] = []

    class Edited(HashingEmbedder):
        def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
            stored.append(count_embedded(database))
            if "old" in texts:
                with database.engine.begin() as connection:
                    edit = update(Message).where(Message.content == "old").values(content="new")
                    connection.execute(edit)
            return super().embed_documents(texts)

    handler = EmbedHandler(database, CHAT, embedder=Edited())
    Worker(database, [handler], concurrency=1).run(once=True)

    assert stored == [0, 1]
    assert count_embedded(database) == 2
    assert {job.status for job in rows(database, "embed")} == {"completed"}


def test_a_model_switched_while_a_batch_is_embedded_is_made_good(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors of the model before are not stored, and the jobs are done with the new one."""
    fill(database, "a text")
    with database.unit_of_work() as work:
        work.models.add_model("second", dimensions=384, provider="hashing")
        work.models.use_model("chat", "hashing")
        work.commit()
    embed = HashingEmbedder.embed_documents

    def switching(self: HashingEmbedder, texts: Sequence[str]) -> np.ndarray:
        if self.model_name == "hashing":
            with database.unit_of_work() as work:
                work.models.use_model("chat", "second")
                work.commit()
        return embed(self, texts)

    monkeypatch.setattr(HashingEmbedder, "embed_documents", switching)
    Worker(database, kinds={"embed"}, concurrency=1).run(once=True)

    assert count_embedded(database) == 0
    with database.unit_of_work() as work:
        assert work.embeddings.coverage(CHAT, "second").embedded == 1


def test_a_payload_that_names_no_passage_fails_alone(database: Database) -> None:
    """Somebody enqueued it by hand."""
    fill(database, "a text")
    with database.unit_of_work() as work:
        work.jobs.enqueue("embed", {"corpus": "chat", "item": "nonsense"})
        work.jobs.enqueue("embed", {"corpus": "chat"})
        work.commit()

    report = Worker(database, kinds={"embed"}).run(once=True)

    assert report.counts == {"completed": 1, "failed": 2}


def read_spread(database: Database, model: str) -> float | None:
    """Return the spread of a model's cosines, if it is known."""
    with database.unit_of_work() as work:
        return work.models.get_model(model).cosine_spread


def test_the_spread_of_vectors_that_a_worker_makes_is_measured(database: Database) -> None:
    """As that of vectors from an embed or an import."""
    fill(database, *(f"message {n} of {n % 7}" for n in range(64)))

    Worker(database, [EmbedHandler(database, CHAT, embedder=HashingEmbedder())]).run(once=True)

    assert (read_spread(database, "hashing") or 0) > 0


def test_maintenance_measures_what_others_stored(database: Database) -> None:
    """A service that may not write to the registry, or one text at a time; any model."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        ids = [each.id for each in factories.FrameworkDocumentFactory.create_batch(64)]
        vectors = np.random.default_rng(1).normal(size=(64, 1536))
        work.embeddings.store(KNOWLEDGE, "text-embedding-3-small", ids, vectors)
        work.commit()

    Worker(database, [MaintenanceHandler(database)], concurrency=1).run(once=True)

    assert read_spread(database, "text-embedding-3-small") == pytest.approx(1536**-0.5, rel=0.1)


def test_embedding_by_hand_settles_the_jobs(database: Database) -> None:
    """But not where another model than the corpus's is filled."""
    fill(database, "one", "two")
    with database.unit_of_work() as work:
        work.models.add_model("second", dimensions=8, provider="hashing")
        work.commit()

    EmbeddingService(database).embed("chat", model="second")
    assert [job.status for job in rows(database, "embed")] == ["pending", "pending"]
    EmbeddingService(database).embed("chat")
    assert [job.status for job in rows(database, "embed")] == ["completed", "completed"]


def test_maintenance_purges_reaps_and_renews_statistics(database: Database) -> None:
    """And becomes pending for an hour later."""
    fill(database, *(f"text {n}" for n in range(20)))
    Worker(database, kinds={"embed"}).run(once=True)
    with database.engine.begin() as connection:
        connection.execute(
            text("UPDATE jobs SET finished_at = now() - interval '8 days' WHERE kind = 'embed'")
        )
        connection.execute(
            text(
                "INSERT INTO messages (conversation_id, position, role, content)"
                " SELECT conversation_id, n, 'user', 'text' FROM"
                " (SELECT conversation_id FROM messages LIMIT 1) AS one,"
                " generate_series(100, 2000) AS n"
            )
        )
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
    analyzed = select(func.count()).select_from(
        text("pg_stat_user_tables WHERE relname = 'messages' AND last_analyze IS NOT NULL")
    )

    report = Worker(database, [MaintenanceHandler(database)], concurrency=1).run(once=True)

    assert report.counts == {"completed": 1}
    assert [job.status for job in rows(database, "embed")] == ["pending"] * 1901
    assert rows(database, "maintenance")[0].not_before > rows(database, "embed")[0].not_before
    with database.engine.connect() as connection:
        assert connection.scalar(analyzed) == 1


def test_old_timings_of_searches_are_archived_and_buffered_ones_written(database: Database) -> None:
    """Archived after 30 days, and deleted after a year."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        for days in (1, 31, 366):
            factories.QueryPerformanceFactory(
                timestamp=func.now() - text(f"interval '{days} days'")
            )
        work.commit()
    log = SearchLog(database)
    log._buffer.append(
        {"query_type": "text_search", "corpus": "chat", "duration": 1.0, "hits": 0,
         "degraded": False}
    )  # fmt: skip

    Worker(database, [LogFlushHandler(database, log)], concurrency=1).run(once=True)

    with database.unit_of_work() as work:
        kinds = work.session.scalars(select(QueryPerformance.query_type).order_by("id")).all()
        archived = work.session.scalars(select(ArchivedQueryPerformance.query_type)).all()
    assert kinds == ["hybrid_search", "text_search"]
    assert archived == ["hybrid_search"]


def test_a_database_that_is_closed_writes_what_was_noted_first(database: Database) -> None:
    """A process that closes its database and ends loses no timing."""
    log = SearchLog(database)
    page = SearchPage(
        corpus="chat", mode="text", fusion="calibrated", question="tea", degraded=False, legs=(),
        hits=(),
    )  # fmt: skip
    log.note(page, 1.0)

    database.close()

    with database.unit_of_work() as work:
        kinds = work.session.scalars(select(QueryPerformance.query_type)).all()
    assert kinds == ["text_search"]


def test_what_was_done_before_an_outage_does_not_end_it(caplog: pytest.LogCaptureFixture) -> None:
    """A thread that hears late of its commit says nothing of the database of now."""
    outage = _Outage()
    before = time.monotonic()

    outage.begin("it restarts")
    outage.end(before)
    outage.begin("it restarts")
    outage.end(time.monotonic())

    away, back = caplog.messages
    assert away == "the database is away: it restarts"
    assert back.startswith("the database is back, after")
