"""The job queue: enqueuing, claiming, leases, retries and dead letters.

Why it is made this way: docs/explanation/jobs.md.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, Final, Literal, get_args

from psycopg.errors import LockNotAvailable
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Double,
    Executable,
    Result,
    Row,
    Select,
    Text,
    TextClause,
    any_,
    case,
    cast,
    delete,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
    text,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import InstrumentedAttribute, aliased

from pgcorpus.db.base import set_local
from pgcorpus.db.choices import JobStatus
from pgcorpus.db.errors import LeaseLost, MissingScope, NotFound
from pgcorpus.db.models.embeddings import CorpusSetting
from pgcorpus.db.models.jobs import Job
from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.repositories.embeddings import text_hash
from pgcorpus.db.repositories.usage import IS_FULL, MAY_READ, TODAY
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.corpus import Corpus

STATUSES: Final[Mapping[JobStatus, ColumnElement[str]]] = {
    status: literal_column(f"'{status}'") for status in get_args(JobStatus)
}
PENDING: Final = STATUSES["pending"]
RUNNING: Final = STATUSES["running"]
CORPUS: Final[ColumnElement[str]] = literal_column("coalesce(payload ->> 'corpus', '')")
"""Literals, not parameters: only with these can a prepared plan use the partial indexes, and the
index of pending jobs by corpus."""

GIVEN_BACK: Final[ColumnElement[datetime]] = literal_column("to_timestamp(0)")
"""The lease of a job that its worker ended, but that could not become pending yet."""

EMBED: Final = "embed"
"""The kind of the jobs that the outbox enqueues; their payload names corpus and item."""

BACKOFF_SECONDS: Final = 10.0
LONGEST_BACKOFF_SECONDS: Final = 900.0
"""A job that failed n times waits for a random part of 10 · 2^(n-1) seconds, of 15 minutes at most:
full jitter, so that what failed together does not come back together (Brooker, "Exponential Backoff
And Jitter", 2015)."""

SHRINKAGE: Final = 8
"""Factor by which a job's batch shrinks with each attempt begun in vain. One that kills or hangs
its worker is alone at its fifth attempt in batches of up to 4,096, at its fourth in 512: the others
get through, and it fails alone."""

AHEAD: Final = timedelta(seconds=10)
"""The least distance by which a job's last change lies in the future if the clock was set back."""

LOCK_TIMEOUT: Final = "500ms"
"""The longest wait of a job that becomes pending again for a transaction that enqueued its like."""

MAX_ERROR_CHARACTERS: Final = 2000

MAX_ATTEMPTS: Final = 1_000_000
"""The bound of the constraint ``valid_attempts``: a count that ran over would abort the claim of
all."""

NO_CORPUS: Final = "its payload names no corpus of corpus_settings under 'corpus'"

SUPERSEDED: Final = "superseded: a newer job has the same key"

LANE: Final = """
        status = 'pending' AND kind = CAST(:kind AS text)
        AND coalesce(payload ->> 'corpus', '') = CAST(:corpus AS text)
"""
"""The condition for the pending jobs of a kind and corpus, for the statement below."""

ORDER: Final = "kind, coalesce(payload ->> 'corpus', ''), coalesce(scope, '')"
"""The columns of the index before those that a lane is ordered by. Under row security PostgreSQL
does not take it for granted that they are one value only, and would sort all jobs of the corpus."""

CLAIM: Final = f"""
    WITH RECURSIVE ring (lane, wrapped, turn) AS (
        SELECT CAST(:after AS text), false, 0
        UNION ALL
        SELECT next.lane, next.wrapped, turn + 1
        FROM ring CROSS JOIN LATERAL (
            (SELECT coalesce(scope, '') AS lane, ring.wrapped
             FROM jobs
             WHERE {LANE} AND coalesce(scope, '') > ring.lane
                 AND (NOT ring.wrapped OR coalesce(scope, '') <= CAST(:after AS text))
             ORDER BY {ORDER} LIMIT 1)
            UNION ALL
            (SELECT coalesce(scope, ''), true
             FROM jobs
             WHERE {LANE} AND NOT ring.wrapped AND coalesce(scope, '') <= CAST(:after AS text)
             ORDER BY {ORDER} LIMIT 1)
            ORDER BY wrapped LIMIT 1
        ) AS next
    ), open AS MATERIALIZED (
        SELECT lane, turn
        FROM ring CROSS JOIN LATERAL (
            SELECT FROM jobs
            WHERE {LANE} AND coalesce(scope, '') = lane AND not_before <= statement_timestamp()
            ORDER BY {ORDER}, priority DESC, id LIMIT 1 FOR UPDATE SKIP LOCKED
        ) AS first
        WHERE turn > 0 AND (@is_full) IS NOT TRUE
        LIMIT :limit
    ), share AS MATERIALIZED (
        SELECT ceil(CAST(:limit AS float8) / greatest(count(*), 1))::bigint AS jobs FROM open
    ), equal AS MATERIALIZED (
        SELECT lane, turn, due.*
        FROM open CROSS JOIN LATERAL (
            SELECT id, priority, attempts FROM jobs
            WHERE {LANE} AND coalesce(scope, '') = lane AND not_before <= statement_timestamp()
            ORDER BY {ORDER}, priority DESC, id
            LIMIT (SELECT jobs FROM share) FOR UPDATE SKIP LOCKED
        ) AS due
    ), longer AS MATERIALIZED (
        SELECT lane, turn,
               ceil((CAST(:limit AS float8) - (SELECT count(*) FROM equal))
                    / count(*) OVER ())::bigint AS more
        FROM equal GROUP BY lane, turn
        HAVING count(*) = (SELECT jobs FROM share)
            AND (SELECT count(*) FROM equal) < :limit
    ), filling AS MATERIALIZED (
        SELECT lane, turn, due.*
        FROM longer CROSS JOIN LATERAL (
            SELECT id, priority, attempts FROM jobs
            WHERE {LANE} AND coalesce(scope, '') = lane AND not_before <= statement_timestamp()
            ORDER BY {ORDER}, priority DESC, id
            LIMIT (SELECT jobs FROM share) + more FOR UPDATE SKIP LOCKED
        ) AS due
    ), due AS (
        SELECT turn, id, attempts,
               row_number() OVER (PARTITION BY turn ORDER BY priority DESC, id) AS place_in_lane
        FROM (SELECT * FROM equal UNION SELECT * FROM filling) AS found
    ), batch AS (
        SELECT id, row_number() OVER turns AS place,
               sum(power(:shrinkage, least(attempts, 20))) OVER turns AS cost
        FROM due WINDOW turns AS (ORDER BY place_in_lane, turn)
    )
    UPDATE jobs SET
        status = 'running',
        worker_id = :worker_id,
        attempts = least(attempts, :most_attempts - 1) + 1,
        started_at = clock_timestamp(),
        lease_expires_at = clock_timestamp() + make_interval(secs => :lease_seconds)
    FROM batch
    WHERE jobs.id = batch.id AND (place = 1 OR cost <= :limit)
    RETURNING place, jobs.id, kind, CAST(payload AS text) AS payload, attempts, scope
"""  # noqa: S608 - constants of ours
"""A claim. It jumps by the index from lane to lane, from the one behind the last on, until as many
have a job to give as the batch has places. The lanes' jobs themselves are not read for that: it
costs the same for a lane of one job and of a million."""

CLAIMS: Final = {
    # A scalar: as a join it would be asked for all lanes before the first is taken.
    True: text(
        CLAIM.replace(
            "@is_full",
            f"SELECT {IS_FULL} FROM embedding_usage AS usage"  # noqa: S608 - constants of ours
            f" WHERE scope = lane AND day = {TODAY}",
        )
    ),
    False: text(CLAIM.replace("@is_full", "false")),
}
"""The claim, by whether ceilings hold for it."""

CLOSED: Final = {
    True: f"SELECT scope FROM embedding_usage AS usage WHERE day = {TODAY} AND {IS_FULL}",  # noqa: S608 - as above
    False: "SELECT CAST(NULL AS text) WHERE false",
}
"""The scopes that wait for the next day, by whether the login may read ceilings."""

LANES: Final = f"""
    closed (scope) AS MATERIALIZED (@closed), lanes AS MATERIALIZED (
        SELECT kind, scope, count(*) AS jobs,
               count(*) FILTER (WHERE not_before <= statement_timestamp()) AS due,
               min(not_before) FILTER (WHERE not_before <= statement_timestamp()) AS since,
               count(*) FILTER (WHERE last_error IS NOT NULL) AS retrying,
               kind = '{EMBED}' AND coalesce(scope IN (SELECT scope FROM closed), false) AS is_full
        FROM jobs WHERE status = 'pending' GROUP BY kind, scope
    )
"""  # noqa: S608 - constants of ours
"""The pending jobs of each kind and scope, for the statements below."""

LONGEST: Final = f"""
    WITH {LANES}
    SELECT scope, sum(due)::bigint AS due,
           extract(epoch FROM statement_timestamp() - min(since))::float8 AS oldest_due_seconds,
           bool_or(is_full) AS is_full
    FROM lanes WHERE due > 0 GROUP BY scope
    ORDER BY due DESC, scope NULLS FIRST LIMIT :limit
"""  # noqa: S608 - constants of ours

STATISTICS: Final = f"""
    WITH {LANES}, pending AS (
        SELECT kind, sum(jobs)::bigint AS jobs, sum(due) FILTER (WHERE NOT is_full) AS due,
               min(since) FILTER (WHERE NOT is_full) AS since, sum(retrying) AS retrying
        FROM lanes GROUP BY kind
    ), waiting AS (
        SELECT sum(due) FILTER (WHERE NOT is_full) AS due FROM lanes GROUP BY scope
    ), completed AS (
        SELECT kind, count(*) AS jobs,
               count(*) FILTER (
                   WHERE finished_at > statement_timestamp() - interval '1 min') AS in_minute
        FROM jobs
        WHERE status = 'completed' AND finished_at > statement_timestamp() - interval '1 hour'
        GROUP BY kind
    ), depth AS (
        SELECT kind, 'pending' AS status, jobs FROM pending
        UNION ALL
        SELECT kind, 'running', count(*) FROM jobs WHERE status = 'running' GROUP BY kind
        UNION ALL
        SELECT kind, 'completed', jobs FROM completed
        UNION ALL
        SELECT kind, 'failed', count(*) FROM jobs WHERE status = 'failed' GROUP BY kind
    )
    SELECT (SELECT coalesce(jsonb_object_agg(kind, counts), '{{}}') FROM (
                SELECT kind, jsonb_object_agg(status, jobs) AS counts FROM depth GROUP BY kind
            ) AS by_kind) AS depth,
           (SELECT coalesce(sum(due), 0)::bigint FROM pending) AS due,
           (SELECT extract(epoch FROM statement_timestamp() - min(since))::float8
            FROM pending) AS oldest_due_seconds,
           (SELECT coalesce(sum(retrying), 0)::bigint FROM pending) AS retrying,
           (SELECT coalesce(sum(in_minute), 0)::bigint FROM completed) AS completed_in_minute,
           (SELECT coalesce(sum(jobs), 0)::bigint FROM completed) AS completed_in_hour,
           (SELECT count(*) FROM jobs
            WHERE status = 'failed'
              AND finished_at > statement_timestamp() - interval '1 hour') AS failed_in_hour,
           (SELECT count(*) FROM waiting WHERE due > 0) AS lanes,
           (SELECT coalesce(max(due), 0)::bigint FROM waiting) AS largest_lane,
           (SELECT coalesce(sum(due) FILTER (WHERE is_full), 0)::bigint
            FROM lanes) AS over_ceiling
"""  # noqa: S608 - constants of ours
"""One pass over what is pending, and none over what was completed long ago."""


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job that a worker holds the lease of.

    Attributes:
        id: Its key.
        kind: Which handler does it.
        payload: What the handler needs to know.
        attempts: How often it was begun, this time included.
        scope: Whose row it is about, or None.
    """

    id: int
    kind: str
    payload: Mapping[str, Any]
    attempts: int
    scope: Scope | None = None


@dataclass(frozen=True, slots=True)
class Reaped:
    """The counts of jobs taken back from dead workers.

    Attributes:
        returned: Jobs that are pending again, or superseded by a newer one.
        failed: Jobs that were begun too often.
    """

    returned: int
    failed: int


@dataclass(frozen=True, slots=True)
class QueueStats:
    """The state of the queue at one moment.

    Attributes:
        depth: Kind → status → number of jobs; of completed ones those of the last hour.
        due: Pending jobs that may be begun now: neither put off nor over a ceiling.
        oldest_due_seconds: For how long the first of them might have been begun, or None.
        retrying: Pending jobs that failed before or were put off.
        completed_in_minute: Jobs completed within the last minute; periodic jobs are not counted.
        completed_in_hour: The same for the last hour.
        failed_in_hour: Jobs given up within the last hour.
        lanes: Scopes that have due jobs; the jobs without a scope are one more.
        largest_lane: Due jobs of the scope that has the most.
        over_ceiling: Jobs that wait for the next day, as the tokens of their scope are spent.
    """

    depth: Mapping[str, Mapping[str, int]]
    due: int
    oldest_due_seconds: float | None
    retrying: int
    completed_in_minute: int
    completed_in_hour: int
    failed_in_hour: int
    lanes: int
    largest_lane: int
    over_ceiling: int

    def total(self, status: JobStatus) -> int:
        """Return the number of jobs of a status, of all kinds."""
        return sum(counts.get(status, 0) for counts in self.depth.values())


@dataclass(frozen=True, slots=True)
class LaneStats:
    """The jobs that a scope waits for.

    Attributes:
        scope: The scope as the database writes it, or None for the jobs without one.
        due: Pending jobs that are not put off.
        oldest_due_seconds: For how long the first of them has been waiting.
        is_full: Whether they wait for the next day, as the tokens of the scope are spent.
    """

    scope: str | None
    due: int
    oldest_due_seconds: float
    is_full: bool


class JobRepository(Repository):
    """The queue. Only the worker that holds a job's lease may end it."""

    def enqueue(
        self,
        kind: str,
        payload: Mapping[str, Any] | None = None,
        *,
        dedupe_key: str | None = None,
        priority: int = 0,
        delay_seconds: float = 0.0,
        max_attempts: int = 5,
        repeat_every_seconds: float | None = None,
    ) -> int:
        """Enqueue a job; it is there for workers when the transaction commits.

        Args:
            kind: Which handler does it.
            payload: JSON object for the handler: keys, never texts.
            dedupe_key: Where a job of this kind with this key is pending already, that one stands
                for this: it keeps its payload, and takes the higher priority and the earlier time
                of the two. It holds nothing secret: plans can tell it to logins that may not see
                the job.
            priority: The higher the sooner, among jobs of its kind.
            delay_seconds: How long it may not be begun.
            max_attempts: How often it is begun before it is given up.
            repeat_every_seconds: Makes it periodic: ended, it is pending again, due after this.

        Returns:
            Its id, or that of the job that stands for it.
        """
        new = insert(Job).values(
            kind=kind,
            payload=dict(payload or {}),
            dedupe_key=dedupe_key,
            priority=priority,
            not_before=_later(delay_seconds),
            max_attempts=max_attempts,
            repeat_every=None
            if repeat_every_seconds is None
            else timedelta(seconds=repeat_every_seconds),
        )
        enqueued = new.on_conflict_do_update(
            index_elements=[Job.dedupe_key, Job.kind, Job.scope],
            index_where=(Job.status == PENDING) & Job.dedupe_key.is_not(None),
            set_={
                "priority": func.greatest(Job.priority, new.excluded.priority),
                "not_before": func.least(Job.not_before, new.excluded.not_before),
            },
        ).returning(Job.id)
        return self.session.execute(enqueued).scalar_one()

    def claim(
        self,
        kind: str,
        *,
        worker_id: str,
        limit: int,
        lease_seconds: float,
        corpus: str = "",
        after: str = "",
    ) -> list[ClaimedJob]:
        """Claim the next jobs that are due; commit at once, so that others see them taken.

        Scopes take turns, and so do the jobs without one: each gives an equal share of the batch,
        as far as it has as many. What is left is filled up from those that have more. A scope whose
        tokens of the day are spent is passed over.

        Jobs that are locked (by another claim, or by a writer whose text is not committed yet) are
        passed over. Jobs that were begun before come in smaller batches, see ``SHRINKAGE``. One
        that cannot be read fails with the reason, and keeps none of the others waiting.

        Args:
            kind: Of which kind.
            worker_id: The worker; no other can end the jobs while the lease lasts.
            limit: At most this many.
            lease_seconds: For how long they are the worker's unless it extends the lease.
            corpus: Of which corpus: what the payload has under ``corpus``, "" where that is none.
            after: The lane whose turn was last: a scope, "" for the jobs without one, or any text
                between two. Where more lanes wait than the batch has jobs, it begins behind it.

        Returns:
            The jobs: the first of each lane in the order of turns, then the second of each, and so
            on. Within a lane the most urgent come first; equals in the order in which they were
            enqueued.
        """
        begun = self.session.execute(
            CLAIMS[kind == EMBED and bool(self.session.scalar(MAY_READ))],
            {
                "kind": kind,
                "corpus": corpus,
                "after": after,
                "limit": limit,
                "worker_id": worker_id,
                "lease_seconds": lease_seconds,
                "shrinkage": SHRINKAGE,
                "most_attempts": MAX_ATTEMPTS,
            },
        ).all()
        claimed = []
        for row in sorted(begun, key=attrgetter("place")):
            try:
                claimed.append(_read(row))
            except (ValueError, RecursionError, MissingScope) as error:
                self._end([row.id], worker_id, "failed", _storable(f"cannot be read: {error}"))
        return claimed

    def extend(self, ids: Sequence[int], *, worker_id: str, lease_seconds: float) -> int:
        """Extend the leases of jobs.

        Args:
            ids: Jobs that the worker claimed; those that it has ended are passed over.
            worker_id: Who.
            lease_seconds: For how long they are the worker's from now on.

        Returns:
            How many it still has in hand.
        """
        extended = self._run(
            update(Job)
            .where(_among(ids), _in_hand(worker_id))
            .values(lease_expires_at=_later(lease_seconds))
            .returning(Job.id)
        )
        return len(extended.all())

    def complete(self, ids: Sequence[int], *, worker_id: str, note: str | None = None) -> None:
        """Complete jobs. A periodic one becomes pending again.

        Args:
            ids: Jobs that the worker has in hand.
            worker_id: Who.
            note: Kept beside them as ``last_error``, where something is to be said.

        Raises:
            LeaseLost: At least one is no longer the worker's; roll back what was done for them.
        """
        self._end(ids, worker_id, "completed", None if note is None else _storable(note))

    def fail(
        self, ids: Sequence[int], *, worker_id: str, error: str, final: bool = False
    ) -> list[int]:
        """Fail jobs: they are tried again later, or become dead letters after the last attempt.

        Args:
            ids: Jobs that the worker has in hand.
            worker_id: Who.
            error: Why.
            final: Give them up whatever attempts are left.

        Returns:
            Those that were given up.

        Raises:
            LeaseLost: At least one is no longer the worker's.
        """
        self._check(ids, worker_id)
        spent = true() if final else Job.attempts >= Job.max_attempts
        given_up = self.session.scalars(select(Job.id).where(_among(ids), spent)).all()
        self._end(given_up, worker_id, "failed", _storable(error))
        self._return(
            [each for each in ids if each not in set(given_up)],
            not_before=func.clock_timestamp() + _backoff(),
            last_error=_storable(error),
        )
        return list(given_up)

    def release(
        self,
        ids: Sequence[int],
        *,
        worker_id: str,
        reason: str | None = None,
        delay_seconds: float = 0.0,
    ) -> None:
        """Release jobs without counting the attempt, which failed for no fault of theirs.

        Args:
            ids: Jobs that the worker has in hand.
            worker_id: Who.
            reason: Kept as ``last_error``; without one that stays as it is.
            delay_seconds: How long they may not be begun again.

        Raises:
            LeaseLost: At least one is no longer the worker's.
        """
        self._check(ids, worker_id)
        self._return(
            ids,
            attempts=func.greatest(Job.attempts - 1, 0),
            not_before=_later(delay_seconds),
            last_error=Job.last_error if reason is None else _storable(reason),
        )

    def reap(self) -> Reaped:
        """Take back the jobs of workers that no longer extend their leases: dead, or hung.

        Also those that were given back while their like was being enqueued: they are as they were
        left, and count as no worker's death.
        """
        expired = self.session.execute(
            select(
                Job.id,
                (Job.lease_expires_at == GIVEN_BACK).label("given_back"),
                (Job.attempts >= Job.max_attempts).label("spent"),
            )
            .where(Job.status == RUNNING, Job.lease_expires_at < func.statement_timestamp())
            .order_by(Job.id)
            .with_for_update(skip_locked=True)
        ).all()
        self._return([row.id for row in expired if row.given_back])
        dead = [row for row in expired if not row.given_back]
        given_up = [row.id for row in dead if row.spent]
        returned = [row.id for row in dead if not row.spent]
        died = func.concat("the worker that had it died or hung: ", Job.worker_id)
        times = func.concat("each of its ", Job.attempts, " workers died or hung, the last: ")
        self._end(given_up, None, "failed", func.concat(times, Job.worker_id))
        self._return(returned, not_before=func.clock_timestamp(), last_error=died)
        return Reaped(len(expired) - len(given_up), len(given_up))

    def follow_clock(self) -> int:
        """Move the times of jobs that were changed when the server's clock was ahead.

        Otherwise they would wait until the clock is there again: pending jobs to be due, and those
        of a dead worker for the end of their lease.

        Returns:
            How many.
        """
        now = func.statement_timestamp()
        ahead = Job.updated_at - now

        def move(time: InstrumentedAttribute[Any]) -> ColumnElement[datetime]:
            return case((time > now, time - ahead), else_=time)

        changed = (
            select(Job.id)
            .where(Job.status.in_((PENDING, RUNNING)), Job.updated_at > now + AHEAD)
            .order_by(Job.id)
            .with_for_update(skip_locked=True)
        )
        moved = self._run(
            update(Job)
            .where(Job.id.in_(changed))
            .values(not_before=move(Job.not_before), lease_expires_at=move(Job.lease_expires_at))
            .returning(Job.id)
        )
        return len(moved.all())

    def fail_unknown_corpora(self) -> int:
        """Fail the pending embedding jobs of corpora that the database does not know.

        Every other would stay pending: a process that lacks a corpus leaves its jobs to others.

        Returns:
            How many.
        """
        unknown = (
            select(Job.id)
            .where(Job.status == PENDING, Job.kind == EMBED)
            .where(CORPUS.not_in(select(CorpusSetting.corpus)))
            .with_for_update(of=Job, skip_locked=True)
        )
        ids = self.session.scalars(unknown).all()
        self._end(ids, None, "failed", NO_CORPUS)
        return len(ids)

    def settle(self, corpus: Corpus, model_name: str, item_ids: Collection[Any]) -> int:
        """Complete the pending jobs of passages whose vectors another process has just stored.

        In two steps, each a statement with a snapshot of its own. The first locks the jobs, and
        passes over those that a writer with an uncommitted text has locked. What the second reads
        is then the text that the jobs are for: who changed it before has committed, and is seen;
        who changes it later waits for the lock, finds no pending job, and enqueues another. In a
        single statement the texts would be read as of before the locks, and a change committed in
        between would lose its job.

        Args:
            corpus: Whose passages.
            model_name: The model that the corpus is embedded with.
            item_ids: Keys of passages.

        Returns:
            How many jobs were completed.

        Raises:
            MissingScope: The corpus has a scope, and the unit of work has none.
        """
        corpus.refuse_without(self.scope)
        keys = {embed_key(corpus, self.scope, item): item for item in item_ids}
        locked = self.session.execute(
            select(Job.id, Job.dedupe_key)
            .where(
                Job.status == PENDING,
                Job.kind == EMBED,
                Job.dedupe_key == any_(_array(keys, Text())),
                _of(self.scope if corpus.scope is not None else None),
            )
            .order_by(Job.id)
            .with_for_update(skip_locked=True)
        ).all()
        items = [keys[row.dedupe_key] for row in locked]
        fresh = set(
            self.session.scalars(
                select(corpus.key)
                .join_from(corpus.passages, corpus.vectors, corpus.vector_join)
                .where(
                    *corpus.of_scope(corpus.passages, self.scope),
                    corpus.key == any_(_array(items, corpus.key.type)),
                    corpus.vectors.c.model_name == model_name,
                    corpus.vectors.c.content_hash == text_hash(corpus),
                )
            )
        )
        done = [row.id for row in locked if keys[row.dedupe_key] in fresh]
        self._end(done, None, "completed", None)
        return len(done)

    def get(self, job_id: int) -> Job:
        """Return a job.

        Raises:
            NotFound: There is none with this id.
        """
        job = self.session.get(Job, job_id, populate_existing=True)
        if job is None:
            raise NotFound(f"there is no job {job_id}; see: pgcorpus jobs list")
        return job

    def list_jobs(
        self,
        *,
        status: JobStatus | None = None,
        kind: str | None = None,
        limit: int = 50,
    ) -> Sequence[Job]:
        """List jobs, the newest first; failed ones by the time of failure, the last first.

        Args:
            status: Only those of this status.
            kind: Only those of this kind.
            limit: At most this many.
        """
        order = [Job.finished_at.desc()] if status == "failed" else []
        jobs: Select[Job] = select(Job).order_by(*order, Job.id.desc()).limit(limit)
        if status is not None:
            jobs = jobs.where(Job.status == STATUSES[status])
        if kind is not None:
            jobs = jobs.where(Job.kind == kind)
        return self.session.scalars(jobs.execution_options(populate_existing=True)).all()

    def requeue(
        self, *, ids: Collection[int] | None = None, kind: str | None = None
    ) -> Sequence[int]:
        """Make jobs due now, with all their attempts: dead letters, and those put off.

        One whose key is pending anew is superseded by that and called completed.

        Args:
            ids: Only these; None is all.
            kind: Only of this kind.

        Returns:
            The ids of the jobs that were given up or put off, in order.
        """
        given_up = Job.status == STATUSES["failed"]
        put_off = (Job.status == PENDING) & (Job.not_before > func.statement_timestamp())
        # Only who names a job can mean one that is put off: a periodic job always is.
        which = given_up if ids is None else _among(ids) & (given_up | put_off)
        chosen = select(Job.id, Job.status).where(which).order_by(Job.id).with_for_update()
        if kind is not None:
            chosen = chosen.where(Job.kind == kind)
        rows = self.session.execute(chosen).all()
        anew = {"not_before": func.clock_timestamp(), "attempts": 0}
        waiting = [row.id for row in rows if row.status == "pending"]
        self._run(update(Job).where(_among(waiting)).values(anew))
        self._return([row.id for row in rows if row.status == "failed"], finished_at=None, **anew)
        return [row.id for row in rows]

    def purge(
        self,
        *,
        older_than_seconds: float,
        status: Literal["completed", "failed"] = "completed",
        limit: int = 10_000,
    ) -> int:
        """Delete some of the jobs that ended long ago.

        Args:
            older_than_seconds: How long ago at least.
            status: Completed, or failed.
            limit: At most this many: call it again until it says 0.

        Returns:
            How many were deleted.
        """
        ended = _later(-older_than_seconds, func.statement_timestamp())
        some = (
            select(Job.id)
            .where(Job.status == STATUSES[status], Job.finished_at < ended)
            .order_by(Job.finished_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        deleted = self._run(delete(Job).where(Job.id.in_(some)).returning(Job.id))
        return len(deleted.all())

    def stats(self) -> QueueStats:
        """Measure depth, age, rate and failures."""
        return QueueStats(**self.session.execute(self._with_closed(STATISTICS)).mappings().one())

    def list_longest_lanes(self, *, limit: int = 10) -> list[LaneStats]:
        """List the scopes with the most due jobs.

        Args:
            limit: At most this many.
        """
        rows = self.session.execute(self._with_closed(LONGEST), {"limit": limit}).mappings()
        return [LaneStats(**row) for row in rows]

    def _with_closed(self, statement: str) -> TextClause:
        """Insert the scopes that wait for the next day, as far as the login may know them."""
        may_read = bool(self.session.scalar(MAY_READ))
        return text(statement.replace("@closed", CLOSED[may_read]))

    def _run(self, statement: Executable) -> Result[Any]:
        """Execute a change of many jobs without looking for them in the session."""
        return self.session.execute(statement, execution_options={"synchronize_session": False})

    def _check(self, ids: Sequence[int], worker_id: str) -> None:
        """Lock jobs whose lease the worker holds, or raise ``LeaseLost``."""
        owned = select(Job.id).where(_among(ids), _in_hand(worker_id)).with_for_update()
        if len(self.session.scalars(owned).all()) < len(ids):
            raise LeaseLost

    def _end(
        self,
        ids: Sequence[int],
        worker_id: str | None,
        status: JobStatus,
        note: str | ColumnElement[str] | None,
    ) -> None:
        """End jobs of the worker, or locked ones where it is None; repeat the periodic ones."""
        if not ids:
            return
        guard = true() if worker_id is None else _in_hand(worker_id)
        ended = self._run(
            update(Job)
            .where(_among(ids), guard)
            .values(
                status=status,
                lease_expires_at=None,
                finished_at=func.clock_timestamp(),
                last_error=note,
            )
            .returning(Job.id, Job.repeat_every)
        ).all()
        if len(ended) < len(ids):
            raise LeaseLost
        self._return(
            [row.id for row in ended if row.repeat_every is not None],
            not_before=func.clock_timestamp() + Job.repeat_every,
            attempts=0,
        )

    def _return(self, ids: Sequence[int], **values: Any) -> None:
        """Make locked jobs pending again, except those whose key is pending anew.

        These are superseded, and completed.

        A job whose like was enqueued by a transaction that has not ended cannot be judged yet. It
        is given back with all values but the status, for the next ``reap``.
        """
        if not ids:
            return
        try:
            with self.session.begin_nested():
                self.session.execute(set_local({"lock_timeout": LOCK_TIMEOUT}))
                superseded = self._supersede(ids)
                self._run(
                    update(Job)
                    .where(_among([each for each in ids if each not in superseded]))
                    .values({"status": "pending", "lease_expires_at": None, **values})
                )
        except (IntegrityError, OperationalError) as error:
            committed = isinstance(error, IntegrityError)  # a moment ago: now it can be seen
            if not committed and not isinstance(error.orig, LockNotAvailable):
                raise
            middle = len(ids) // 2
            if middle:
                self._return(ids[:middle], **values)
                self._return(ids[middle:], **values)
            elif committed:
                self._return(ids, **values)
            else:
                given_back = {"status": "running", "lease_expires_at": GIVEN_BACK}
                self._run(update(Job).where(_among(ids)).values({**values, **given_back}))

    def _supersede(self, ids: Sequence[int]) -> set[int]:
        """Complete those of the jobs whose key a pending or a newer one among them has."""
        newer = aliased(Job)
        has_heir = exists().where(
            newer.dedupe_key == Job.dedupe_key,
            newer.kind == Job.kind,
            newer.scope.is_not_distinct_from(Job.scope),
            or_(
                newer.status == PENDING,
                (newer.id == any_(_array(ids, BigInteger()))) & (newer.id > Job.id),
            ),
        )
        rows = self._run(
            update(Job)
            .where(_among(ids), has_heir)
            .values(
                status="completed",
                lease_expires_at=None,
                finished_at=func.clock_timestamp(),
                last_error=SUPERSEDED,
            )
            .returning(Job.id, Job.dedupe_key, Job.kind, Job.scope, Job.repeat_every)
        ).all()
        for row in rows:
            if row.repeat_every is not None:  # what is periodic stays so
                heir = update(Job).where(
                    Job.dedupe_key == row.dedupe_key,
                    Job.kind == row.kind,
                    Job.scope.is_not_distinct_from(row.scope),
                    Job.status == PENDING,
                )
                self._run(heir.values(repeat_every=row.repeat_every))
        return {row.id for row in rows}


def embed_key(corpus: Corpus, scope: Scope | None, item: object) -> str:
    """Return the key under which the outbox enqueues a passage."""
    whose = () if scope is None or corpus.scope is None else (str(scope),)
    return ":".join((EMBED, corpus.name, *whose, str(item)))


def _read(row: Row[Any]) -> ClaimedJob:
    """Read the row of a claimed job.

    Raises:
        MissingScope: Its scope is none.
        ValueError: Its payload is no JSON object, or holds a number that Python does not read.
        RecursionError: Its payload is nested too deeply.
    """
    payload = json.loads(row.payload)
    if not isinstance(payload, dict):
        raise ValueError("its payload is no JSON object")  # noqa: TRY004 - of a row, not a caller's
    scope = None if row.scope is None else Scope.parse(row.scope)
    return ClaimedJob(row.id, row.kind, payload, row.attempts, scope)


def _of(scope: Scope | None) -> ColumnElement[bool]:
    """Restrict to the jobs of a scope, or to those of none: an index finds either."""
    return Job.scope.is_(None) if scope is None else Job.scope == str(scope)


def _storable(error: str) -> str:
    """Return the beginning of an error, without what a text column cannot hold."""
    error = error[:MAX_ERROR_CHARACTERS].replace("\0", " ")
    return error.encode("utf-8", "replace").decode()


def _among(ids: Collection[int]) -> ColumnElement[bool]:
    return Job.id == any_(_array(ids, BigInteger()))


def _array(values: Collection[Any], kind: Any) -> ColumnElement[Any]:
    """Build one parameter for any number of values.

    The statement, and its plan, are the same for all batches.
    """
    return literal(list(values), ARRAY(kind))


def _in_hand(worker_id: str) -> ColumnElement[bool]:
    return (
        (Job.status == RUNNING)
        & (Job.worker_id == worker_id)
        & (Job.lease_expires_at != GIVEN_BACK)
    )


def _later(seconds: float, now: ColumnElement[Any] | None = None) -> ColumnElement[Any]:
    """Add seconds to now, by the clock of the database."""
    return (func.clock_timestamp() if now is None else now) + timedelta(seconds=seconds)


def _backoff() -> ColumnElement[Any]:
    longest = func.least(
        LONGEST_BACKOFF_SECONDS,
        BACKOFF_SECONDS * func.power(2.0, func.least(Job.attempts - 1, 20)),
    )
    return cast(func.random() * longest, Double) * literal(timedelta(seconds=1))
