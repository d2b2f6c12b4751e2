"""The worker: claims jobs, has them done, and ends them; docs/explanation/jobs.md says why so."""

from __future__ import annotations

import logging
import math
import os
import random
import secrets
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count, groupby
from types import FrameType
from typing import Any, Final
from uuid import uuid4

from sqlalchemy.exc import SQLAlchemyError

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import (
    DatabaseExhausted,
    DatabaseNotReady,
    DatabaseReadOnly,
    DatabaseUnavailable,
    DataLayerError,
    EmbeddingError,
    LeaseLost,
    LoginRefused,
    NotPermitted,
    SettingsError,
    TextsRefused,
    TransactionConflict,
    UnknownKind,
)
from pgcorpus.db.models.jobs import CHANNEL
from pgcorpus.db.repositories.jobs import ClaimedJob
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.jobs.circuit import Circuit
from pgcorpus.services.jobs.handler import Finish, Handler, Outcome
from pgcorpus.services.jobs.handlers import all_handlers

logger = logging.getLogger(__name__)

LEASE_SECONDS: Final = 60.0
"""The time after which the jobs of a dead worker are taken back."""

HEARTBEATS_PER_LEASE: Final = 3
POLL_SECONDS: Final = 5.0
LISTEN_SECONDS: Final = 0.5

LEAVE_SECONDS: Final = 0.4
"""The longest wait, once the worker stops, for threads that have nothing in hand: they may be
waiting for a database that is away."""

LONGEST_PAUSE_SECONDS: Final = 15.0

MAX_COLLISIONS: Final = 5
"""Transactions that end the same batch and meet others in their way; then it is halved."""

MAX_SECONDS_IN_HAND: Final = 600.0
"""Seconds after which a batch counts as hung, and its lease is no longer extended. The hosted
embedder gives up sooner by itself: 300 seconds for a request, its retries included."""

NO_FAULT_OF_THE_JOB: Final = (EmbeddingError, DatabaseNotReady, NotPermitted, SettingsError)
"""Failures that lie neither with a job nor with the connection (``TextsRefused`` is the text's)."""

OUTAGES: Final = (DatabaseUnavailable, DatabaseReadOnly, DatabaseExhausted)
"""Failures of the server, which pass: they are waited out."""

PUT_OFF_PAUSES: Final = 2
"""The lane's pauses after which a job that was put off is due: the next probe is another job, and
one that the other side cannot bear does not keep the lane shut."""


@dataclass(frozen=True, slots=True)
class BatchReport:
    """The report of one batch that ended.

    Attributes:
        name: The kind of its jobs, and their corpus.
        counts: How the jobs ended → how many.
        seconds: From the claim to the end.
    """

    name: str
    counts: Counter[str]
    seconds: float


@dataclass(slots=True)
class WorkerReport:
    """The counts of a worker's run.

    Attributes:
        counts: How jobs ended (completed, released, put_off, retried, failed) → how many.
        seconds: From start to stop.
        hung: Whether it stopped because every thread has a batch that does not end. These threads
            cannot be ended: leave the process by ``os._exit``.
    """

    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    hung: bool = False

    @property
    def succeeded(self) -> bool:
        """True if every job was done, at the first attempt."""
        return not (
            self.hung or any(self.counts[each] for each in ("failed", "retried", "put_off"))
        )


def _pauses() -> Iterator[float]:
    """Yield the seconds to wait after each failure in a row, with jitter."""
    for failures in count():
        longest = min(0.2 * 2 ** min(failures, 10), LONGEST_PAUSE_SECONDS)
        yield longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def _choose_lane() -> str:
    """Choose a lane to begin with: not always the same, or a timer would serve the first alone."""
    return random.choice(("", f"tenant:{uuid4()}", f"user:{uuid4()}"))  # noqa: S311 - no secret


@dataclass(slots=True)
class _Lane:
    """A handler, with the state of claiming its jobs.

    Attributes:
        handler: Does them.
        after: The scope whose turn was last, "" for what has none.
    """

    handler: Handler
    after: str = field(default_factory=_choose_lane)
    circuit: Circuit = field(default_factory=Circuit)
    _pauses: Iterator[float] = field(default_factory=_pauses)
    _error: str | None = None
    _rests_until: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.handler.kind} {self.handler.corpus}".rstrip()

    @property
    def rests(self) -> bool:
        """True if an error keeps the handler from being tried for now."""
        return time.monotonic() < self._rests_until

    def rest(self, error: Exception) -> None:
        """Pause the handler, longer each time; an error that is no outage is logged once."""
        said = f"{type(error).__name__}: {error}"
        if said != self._error and not isinstance(error, OUTAGES):
            known = isinstance(error, DataLayerError | SQLAlchemyError)
            logger.error(
                "%s: its jobs cannot be taken or ended, others are: %s",
                self.name,
                said,
                exc_info=None if known else error,
            )
        self._error = said
        self._rests_until = time.monotonic() + next(self._pauses)

    def stop(self) -> None:
        """Claim no more jobs for the handler."""
        self._rests_until = math.inf

    def recover(self) -> None:
        """Forget the errors before."""
        self._error, self._pauses = None, _pauses()


@dataclass(slots=True)
class _Slot:
    """A thread of the worker, and its batch.

    Its id is its own: a batch that was given up for hung and comes back cannot be taken for the
    batch of another thread.
    """

    worker_id: str
    in_hand: Sequence[int] = ()
    since: float = 0.0
    hung: bool = False
    outage: DataLayerError | None = None
    thread: threading.Thread | None = None

    @property
    def seconds(self) -> float:
        """The time in seconds since the batch, or its present part, began."""
        return time.monotonic() - self.since if self.in_hand else 0.0


class _Bell:
    """Wakes waiting threads; a thread that was busy while it rang does not miss it."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self.rings = 0

    def ring(self) -> None:
        with self._condition:
            self.rings += 1
            self._condition.notify_all()

    def wait(self, heard: int, timeout_seconds: float) -> None:
        """Wait until it has rung more often than *heard*."""
        with self._condition:
            self._condition.wait_for(lambda: self.rings > heard, timeout_seconds)


class _Outage:
    """Reports an outage of the database once, however many threads notice, and its end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: float | None = None
        self._exhausted = False

    def begin(self, reason: object) -> None:
        """Note that the database is away, or has no room."""
        with self._lock:
            self._exhausted = isinstance(reason, DatabaseExhausted)
            if self._since is None:
                self._since = time.monotonic()
                logger.warning("the database is away: %s", str(reason).splitlines()[0])

    def end(self, asked: float, *, stored: bool = False) -> None:
        """Note that the database did what it was asked.

        A request from before the outage proves nothing; and only the results of a batch prove that
        a disk has room again.
        """
        if self._since is None or (self._exhausted and not stored):
            return
        with self._lock:
            if self._since is not None and asked > self._since:
                seconds = time.monotonic() - self._since
                self._since = None
                logger.warning("the database is back, after %.1f s", seconds)


class Worker:
    """Works off the queue until it is stopped.

    Any number of workers may run, on any number of machines. One that is killed loses nothing: its
    jobs become pending again when their lease expires, and at most the batches in its hands are
    repeated.

    Args:
        database: Whose queue.
        handlers: What is done; by default all there are.
        kinds: Only jobs of these kinds.
        concurrency: Batches that are done at once, each by a thread.
        lease_seconds: After which time without a sign of life a worker counts as dead.
        poll_seconds: How often the queue is looked at, where no notification comes. Retries, and
            jobs that were put off, are found this way.
        max_seconds_in_hand: After which time a batch counts as hung.
        on_batch: Called after each batch, by the thread that did it.

    Raises:
        UnknownKind: One of the kinds has no handler; the message lists those that have.
    """

    def __init__(
        self,
        database: Database,
        handlers: Sequence[Handler] | None = None,
        *,
        kinds: Collection[str] | None = None,
        concurrency: int = 2,
        lease_seconds: float = LEASE_SECONDS,
        poll_seconds: float = POLL_SECONDS,
        max_seconds_in_hand: float = MAX_SECONDS_IN_HAND,
        on_batch: Callable[[BatchReport], None] | None = None,
    ) -> None:
        handlers = all_handlers(database) if handlers is None else handlers
        known = {handler.kind for handler in handlers}
        if unknown := sorted(set(kinds or ()) - known):
            raise UnknownKind(
                f"no handler does jobs of the kind {unknown[0]!r}; known: "
                f"{', '.join(sorted(known))}"
            )
        self._database = database
        self._outage = _Outage()
        database.on_wait = self._outage.begin
        self._lanes = [_Lane(each) for each in handlers if not kinds or each.kind in kinds]
        self._lease_seconds = lease_seconds
        self._poll_seconds = poll_seconds
        self._max_seconds_in_hand = max_seconds_in_hand
        self._on_batch = on_batch or (lambda _report: None)
        name = f"{socket.gethostname()[:60]}:{os.getpid()}:{secrets.token_hex(3)}"
        self._slots = [_Slot(f"{name}:{number}") for number in range(concurrency)]
        self._bell = _Bell()
        self._stopping = threading.Event()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._report = WorkerReport()
        self._errors: list[Exception] = []

    @property
    def stopping(self) -> bool:
        """True if the worker was told to stop."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Finish the batches in hand, give back what is not begun, and let ``run`` return."""
        self._stopping.set()
        self._bell.ring()

    def run(self, *, once: bool = False) -> WorkerReport:
        """Work until ``stop`` is called, or until every thread hangs.

        Args:
            once: Stop when nothing more is due.

        Raises:
            DatabaseNotReady: The schema is missing or old.
            LoginRefused: The database refuses the login at the start.
            DatabaseReadOnly: It is a standby at the start.
            DatabaseUnavailable: With *once*, the database does not answer. A worker that runs on
                waits for it, from the start.
        """
        started = time.monotonic()
        opening = self._start(self._open, once)
        while opening.is_alive() and not self.stopping:
            opening.join(0.1)
        if self._errors:
            raise self._errors[0]
        for slot in self._slots:
            slot.thread = self._start(self._work, slot, once)
        others = [self._start(self._beat)]
        if not once and self._database.has_sessions:
            others.append(self._start(self._listen))
        elif not once:
            logger.info(
                "looking for jobs every %.0f s: a transaction pooler passes no notifications on; "
                "set DATABASE_ADMIN_URL to hear of them at once",
                self._poll_seconds,
            )
        try:
            self._attend()
        finally:
            self._over.set()
            self.stop()
        leave = time.monotonic() + LEAVE_SECONDS
        for thread in others:
            thread.join(max(0.0, leave - time.monotonic()))
        if self._errors:
            raise self._errors[0]
        self._report.seconds = time.monotonic() - started
        return self._report

    def _attend(self) -> None:
        """Wait until the threads have ended, or those that have not are hung or have nothing."""
        leave = 0.0
        while alive := [slot for slot in self._slots if _alive(slot)]:
            if all(slot.hung for slot in alive):
                self._report.hung = True
                return
            if not self.stopping or any(slot.in_hand for slot in alive):
                leave = time.monotonic() + LEAVE_SECONDS
            elif time.monotonic() > leave:
                return
            self._over.wait(0.1)

    def _start(self, target: Callable[..., None], *args: Any) -> threading.Thread:
        def guard() -> None:
            try:
                target(*args)
            except Exception as error:  # noqa: BLE001 - a fault of ours, which run() raises
                self._errors.append(error)
                self.stop()

        # A daemon: a call that hangs must not keep the process from ending.
        thread = threading.Thread(target=guard, daemon=True)
        thread.start()
        return thread

    def _open(self, once: bool) -> None:
        """Wait for the database, and take back the jobs of dead workers."""
        pauses = _pauses()
        while not self.stopping:
            try:
                self._follow_clock()
                self._reap()
            except OUTAGES as error:
                if once or isinstance(error, LoginRefused | DatabaseReadOnly):  # a mistake
                    raise
                self._outage.begin(error)
                self._stopping.wait(next(pauses))
            else:
                return

    def _work(self, slot: _Slot, once: bool) -> None:
        """Take batches of all lanes in turn, in one thread."""
        pauses = _pauses()
        while not self.stopping:
            heard = self._bell.rings
            try:
                busy = [self._take_or_rest(slot, lane, once) for lane in self._lanes]
            except DatabaseUnavailable as error:
                if once:
                    raise
                self._trouble("the queue cannot be reached, trying again: %s", error)
                self._stopping.wait(next(pauses))
                continue
            pauses = _pauses()
            if any(busy):
                continue
            if once:
                return
            # Not all at the same moment, in all the workers that there are.
            jitter = random.uniform(0.5, 1.0)  # noqa: S311 - no secret
            self._bell.wait(heard, self._poll_seconds * jitter)

    def _take_or_rest(self, slot: _Slot, lane: _Lane, once: bool) -> bool:
        """Do a batch of the lane; an error of its own keeps no other lane from its jobs.

        Says whether there was a batch. A worker that works *once* does not come back to the lane,
        and raises the error when the others are done.
        """
        if lane.rests:
            return False
        try:
            busy = self._take(slot, lane)
        except DatabaseUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the other lanes go on
            if isinstance(error, OUTAGES):
                self._outage.begin(error)
            lane.rest(error)
            if once:
                lane.stop()
                self._errors.append(error)
            return False
        lane.recover()
        return busy

    def _take(self, slot: _Slot, lane: _Lane) -> bool:
        """Claim a batch of the lane's jobs and do it; return whether there was one."""
        limit = 0 if self.stopping else lane.circuit.admits(lane.handler.batch_size)
        if not limit:
            return False
        slot.outage = None
        try:
            jobs = self._claim(slot, lane, limit)
            if jobs:
                self._do_batch(slot, lane, jobs)
        finally:
            lane.circuit.pass_on()
        if slot.outage is not None:  # what it gave back would be claimed again at once
            raise slot.outage
        return bool(jobs)

    def _claim(self, slot: _Slot, lane: _Lane, limit: int) -> Sequence[ClaimedJob]:
        handler = lane.handler
        with self._database.unit_of_work() as work:
            jobs = work.jobs.claim(
                handler.kind,
                corpus=handler.corpus,
                worker_id=slot.worker_id,
                limit=limit,
                lease_seconds=self._lease_seconds,
                after=lane.after,
            )
            if self._over.is_set():  # no one waits for this thread any more
                return []
            asked = time.monotonic()
            work.commit()
        self._outage.end(asked)
        if jobs:
            # Each scope comes up first in the order of turns.
            *_, last = dict.fromkeys(job.scope for job in jobs)
            lane.after = "" if last is None else str(last)
        return jobs

    def _do_batch(self, slot: _Slot, lane: _Lane, jobs: Sequence[ClaimedJob]) -> None:
        """Do a batch while the heartbeat renews its lease, and report it."""
        began = slot.since = time.monotonic()
        slot.in_hand = [job.id for job in jobs]
        counts: Counter[str] = Counter()
        try:
            self._do(slot, lane, jobs, counts)
        except LeaseLost:
            logger.warning("%s: a batch took too long and is in other hands by now", lane.name)
        finally:
            slot.in_hand, slot.hung = (), False
            self._tell(BatchReport(lane.name, counts, time.monotonic() - began))

    def _do(
        self, slot: _Slot, lane: _Lane, jobs: Sequence[ClaimedJob], counts: Counter[str]
    ) -> None:
        """Do a batch; one that fails is halved until the failing job is alone."""
        ids = [job.id for job in jobs]
        if (self.stopping or slot.outage) and counts:  # it ends with what was begun of it
            self._release(slot, ids, counts)
            return
        slot.since = time.monotonic()  # halves that are done one after the other do not hang
        try:
            finish = lane.handler.handle(jobs)
            ended: Counter[str] = Counter()
            self._commit(slot, partial(self._end, slot, jobs, finish), ended)
            counts.update(ended)
        except LeaseLost:
            raise
        except OUTAGES as error:
            self._outage.begin(error)
            slot.outage = error
            self._release(slot, ids, counts)
            return
        except Exception as error:  # noqa: BLE001 - a handler may raise anything
            failure = error
        else:
            if ended.keys() != {"released"}:  # else nothing was asked
                lane.circuit.note_success()
            return
        if isinstance(failure, NO_FAULT_OF_THE_JOB) and not isinstance(failure, TextsRefused):
            if len(jobs) > 1 and not (lane.circuit.proven or self.stopping):
                # The provider, or one of the texts? Any of them alone may tell; not always the
                # same, or a worker that is started again and again could stumble forever.
                alone = ids.pop(random.randrange(len(ids)))  # noqa: S311 - no secret
                self._do(slot, lane, [job for job in jobs if job.id == alone], counts)
            self._put_off(slot, lane, ids, str(failure), counts)
            return
        lane.circuit.note_success()  # the service has answered: the fault lies with the jobs
        if len(jobs) > 1:
            middle = len(jobs) // 2
            self._do(slot, lane, jobs[:middle], counts)
            self._do(slot, lane, jobs[middle:], counts)
        else:
            self._blame(slot, jobs[0], failure, counts)

    def _end(
        self, slot: _Slot, jobs: Sequence[ClaimedJob], finish: Finish, work: UnitOfWork
    ) -> Counter[str]:
        """Keep the results and end the jobs, in one transaction."""
        counts: Counter[str] = Counter()
        outcomes = sorted(zip(jobs, finish(work), strict=True), key=lambda pair: _order(pair[1]))
        for outcome, pairs in groupby(outcomes, key=lambda pair: pair[1]):
            ids = [job.id for job, _ in pairs]
            counts[outcome.ending] += len(ids)
            match outcome.ending:
                case "completed":
                    work.jobs.complete(ids, worker_id=slot.worker_id, note=outcome.reason)
                case "released":
                    work.jobs.release(
                        ids,
                        worker_id=slot.worker_id,
                        reason=outcome.reason,
                        delay_seconds=outcome.delay_seconds,
                    )
                case _:
                    final = outcome.ending == "failed"
                    counts += self._fail(slot, ids, outcome.reason or "", work, final=final)
                    counts[outcome.ending] -= len(ids)
        return +counts

    def _fail(
        self, slot: _Slot, ids: Sequence[int], error: str, work: UnitOfWork, *, final: bool = False
    ) -> Counter[str]:
        given_up = work.jobs.fail(ids, worker_id=slot.worker_id, error=error, final=final)
        return Counter(failed=len(given_up), retried=len(ids) - len(given_up))

    def _blame(self, slot: _Slot, job: ClaimedJob, error: Exception, counts: Counter[str]) -> None:
        """Fail a job that failed alone.

        A text that was refused is refused again; all else may pass.
        """
        refused = isinstance(error, TextsRefused)
        known = isinstance(error, DataLayerError)
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        logger.warning(
            "%s job %d failed: %s", job.kind, job.id, reason, exc_info=None if known else error
        )
        fail = partial(self._fail, slot, [job.id], reason, final=refused)
        self._commit(slot, fail, counts)

    def _put_off(
        self, slot: _Slot, lane: _Lane, ids: Sequence[int], reason: str, counts: Counter[str]
    ) -> None:
        """Put jobs off that cannot be done for now, and try the lane less often.

        It counts as an attempt only where the lane had an answer just before, in this process: then
        a text may be to blame that the other side cannot bear, and that would come back forever.
        What fails without that (probes, and all that a fresh process tries) counts for nothing: an
        outage would use up the attempts, one for each process.
        """
        suspect, pause = lane.circuit.note_failure()
        logger.warning("%s: again in %.0f s: %s", lane.name, pause, reason)

        def give_back(work: UnitOfWork) -> Counter[str]:
            if suspect:
                return self._fail(slot, ids, reason, work)
            work.jobs.release(
                ids,
                worker_id=slot.worker_id,
                reason=reason,
                delay_seconds=pause * PUT_OFF_PAUSES,
            )
            return Counter(put_off=len(ids))

        self._commit(slot, give_back, counts)

    def _release(self, slot: _Slot, ids: Sequence[int], counts: Counter[str]) -> None:
        """Give jobs back as they were."""

        def release(work: UnitOfWork) -> Counter[str]:
            work.jobs.release(ids, worker_id=slot.worker_id)
            return Counter(released=len(ids))

        self._commit(slot, release, counts, stored=False)

    def _commit(
        self,
        slot: _Slot,
        end: Callable[[UnitOfWork], Counter[str]],
        counts: Counter[str],
        *,
        stored: bool = True,
    ) -> None:
        """Run the transaction that ends jobs, again while the database is away or others collide.

        Where the connection is lost while it commits, it is unknown whether it did. The next try
        tells: jobs that were ended are no longer the worker's.
        """
        pauses = _pauses()
        for attempt in count(1):
            try:
                with self._database.unit_of_work() as work:
                    ended = end(work)
                    asked = time.monotonic()
                    work.commit()
            except (*OUTAGES, TransactionConflict) as error:
                away = isinstance(error, OUTAGES)
                if self.stopping or slot.hung or (attempt > MAX_COLLISIONS and not away):
                    raise
                self._trouble("a batch could not be ended, trying again: %s", error)
                self._stopping.wait(next(pauses))
            else:
                counts.update(+ended)
                self._outage.end(asked, stored=stored)
                return

    def _tell(self, report: BatchReport) -> None:
        with self._lock:
            self._report.counts.update(report.counts)
        jobs = report.counts.total()
        logger.info(
            "%s: %d jobs in %.2f s (%.0f/s): %s",
            report.name,
            jobs,
            report.seconds,
            jobs / (report.seconds or 1),
            ", ".join(f"{number} {ending}" for ending, number in report.counts.items()),
        )
        self._on_batch(report)

    def _beat(self) -> None:
        """Extend the leases of running jobs, and take back the jobs of dead workers."""
        while not self._over.wait(self._lease_seconds / HEARTBEATS_PER_LEASE):
            try:
                for slot in self._slots:
                    if slot.seconds > self._max_seconds_in_hand and not slot.hung:
                        slot.hung = True
                        logger.error("a batch has been in hand for %.0f s: hung", slot.seconds)
                    if slot.in_hand and not slot.hung:
                        self._extend(slot)
                self._reap()
            except (DataLayerError, SQLAlchemyError) as error:
                self._trouble("no sign of life could be given: %s", error)

    def _extend(self, slot: _Slot) -> None:
        with self._database.unit_of_work() as work:
            work.jobs.extend(
                slot.in_hand, worker_id=slot.worker_id, lease_seconds=self._lease_seconds
            )
            work.commit()

    def _follow_clock(self) -> None:
        with self._database.unit_of_work() as work:
            moved = work.jobs.follow_clock()
            work.commit()
        if moved:
            logger.warning("the server's clock was set back: %d jobs were moved with it", moved)

    def _reap(self) -> None:
        with self._database.unit_of_work() as work:
            reaped = work.jobs.reap()
            asked = time.monotonic()
            work.commit()
        self._outage.end(asked)
        if reaped.returned or reaped.failed:
            logger.warning(
                "%d jobs that no living worker had are pending again, %d failed",
                reaped.returned,
                reaped.failed,
            )
            self._bell.ring()

    def _trouble(self, message: str, error: Exception) -> None:
        """Log an error; of an outage, which all threads meet, only its beginning."""
        if isinstance(error, OUTAGES):
            self._outage.begin(error)
        else:
            logger.warning(message, error)

    def _listen(self) -> None:
        """Wake the threads when jobs are enqueued; without a connection they poll."""
        pauses = _pauses()
        while not self.stopping:
            try:
                with self._database.listening(CHANNEL) as wait:
                    self._bell.ring()  # for jobs enqueued while no connection listened
                    while not self.stopping:
                        if wait(LISTEN_SECONDS):
                            self._bell.ring()
                        pauses = _pauses()
            except (DataLayerError, SQLAlchemyError) as error:
                self._trouble("not listening for a moment: %s", error)
                self._stopping.wait(next(pauses))


@contextmanager
def stop_at_signals(worker: Worker) -> Iterator[None]:
    """Stop the worker at SIGTERM and SIGINT; the second signal ends the process at once.

    What is in hand then is taken up by others when its lease has expired. For the main thread only.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        if worker.stopping:
            os._exit(128 + number)  # as shells have it; threads may hang, and are not waited for
        worker.stop()

    before = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _alive(slot: _Slot) -> bool:
    return slot.thread is not None and slot.thread.is_alive()


def _order(outcome: Outcome) -> tuple[str, str, float]:
    return outcome.ending, outcome.reason or "", outcome.delay_seconds
