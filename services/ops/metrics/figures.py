"""Figures of the whole database, read from it when they are scraped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final, NamedTuple

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import (
    DatabaseUnavailable,
    DataLayerError,
    NotPermitted,
    StatementTimeout,
)
from pgcorpus.db.search.corpora import list_corpora
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.audit import AuditService
from pgcorpus.services.choices import MODES
from pgcorpus.services.embedding.choice import choose
from pgcorpus.services.embedding.embed import count_covered
from pgcorpus.services.ops.metrics.refreshed import Reading, Refreshed

logger = logging.getLogger(__name__)

PREFIX: Final = "pgcorpus_"

KEEP_SECONDS: Final = 5.0
"""The time for which quick figures are kept: several Prometheus servers may scrape."""

SLOW_KEEP_SECONDS: Final = 60.0
"""The time for which figures are kept that need whole tables."""

TIMEOUT_MS: Final = 2000
"""Longest duration of a statement for a quick figure: Prometheus waits 10 s by default."""

SLOW_TIMEOUT_MS: Final = 30_000

WAIT_SECONDS: Final = 5.0
"""Longest wait of a scrape for the quick figures; then the database counts as down."""

SLOW_WAIT_SECONDS: Final = 2.0
"""Longest wait of a scrape for the others; what was read before is told then."""

RECENT_SECONDS: Final = 300.0

KNOWN_KINDS: Final = ("embed", "log_flush", "maintenance")
OTHER_KINDS: Final = "other"
QUANTILES: Final = ("0.5", "0.95", "0.99")
PASSAGE_STATES: Final = ("embedded", "stale", "missing")

Families = list[Metric]


class Part(NamedTuple):
    """Some figures that are read together.

    Attributes:
        families: The metrics.
        complete: Whether the login sees all that they count.
        note: What it does not see, and why.
    """

    families: Families
    complete: bool = True
    note: str = ""


class Parts(NamedTuple):
    """The parts that were read in one go, by name."""

    parts: dict[str, Part]


class DatabaseFigures(Collector):
    """Collects the figures of a database, as far as the login may read them.

    Each part is read by itself: one that is refused, or too slow, is left out, and
    ``pgcorpus_figures_complete`` says so. The quick ones are one short transaction.

    Args:
        database: Connections of its own, so that a pool that is used up is seen from outside.
        kinds: Kinds of jobs of an application that are told by name, beside ours.
    """

    def __init__(self, database: Database, kinds: Sequence[str] = ()) -> None:
        self._database = database
        self._kinds = [*KNOWN_KINDS, *kinds]
        self._noted: dict[str, str] = {}
        self._quick = Refreshed("the database", self._read_quick, KEEP_SECONDS)
        self._slow = {
            name: Refreshed(name, partial(self._read_slow, name, read), SLOW_KEEP_SECONDS)
            for name, read in {
                "embedding_coverage": self._read_coverage,
                "audit_chain": self._read_chain,
            }.items()
        }

    def describe(self) -> Iterable[Metric]:
        """Return nothing: a registry asks no database when a collector is registered."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, within a few seconds whatever the database does."""
        quick = self._quick.get(WAIT_SECONDS)
        up = quick is not None and quick.value is not None and not self._quick.is_late
        yield GaugeMetricFamily(
            f"{PREFIX}up", "1 if the database answered, 0 if not", value=float(up)
        )
        if not up or quick is None or quick.value is None:
            return
        readings: dict[str, Reading[Parts] | None] = {"database": quick}
        readings |= {name: each.get(SLOW_WAIT_SECONDS) for name, each in self._slow.items()}
        complete = _gauge(
            "figures_complete",
            "1 if the login of the scrape may read all that these figures count, 0 if some or all "
            "are left out",
            ["figures"],
        )
        read_at = _gauge(
            "figures_read_timestamp_seconds", "Moment at which figures were read", ["figures"]
        )
        seconds = _gauge(
            "figures_read_duration_seconds", "Time that reading figures took", ["figures"]
        )
        for name, reading in readings.items():
            if reading is None:
                continue
            read_at.add_metric([name], reading.read_at)
            seconds.add_metric([name], reading.seconds)
            parts = {} if reading.value is None else reading.value.parts
            for part_name, part in parts.items():
                complete.add_metric([part_name], float(part.complete))
                yield from part.families
            if reading.value is None:
                complete.add_metric([name], 0.0)
        yield from (complete, read_at, seconds)

    def _read_quick(self) -> Parts:
        """Read what takes milliseconds, in one transaction."""
        parts: dict[str, Part] = {}
        with self._database.unit_of_work() as work:
            work.monitoring.begin(TIMEOUT_MS)
            readers: dict[str, Callable[[UnitOfWork], Part]] = {
                "server": _read_server,
                "queue": partial(_read_queue, kinds=self._kinds),
                "tokens": _read_tokens,
                "vector_indexes": partial(_read_indexes, database=self._database),
                "recent_searches": _read_searches,
                "backup": _read_backups,
                "audit": _read_audit,
            }
            for name, read in readers.items():
                parts[name] = self._note(name, _read_apart(work, read))
        return Parts(parts)

    def _read_slow(self, name: str, read: Callable[[], Part]) -> Parts:
        return Parts({name: self._note(name, read())})

    def _read_coverage(self) -> Part:
        """Compare each passage with its vector."""
        states = _gauge(
            "embedding_passages",
            "Passages by the state of their vector of the corpus's model",
            ["corpus", "model", "state"],
        )
        hidden: list[str] = []
        with self._database.unit_of_work() as work:
            work.monitoring.begin(SLOW_TIMEOUT_MS)
            for corpus in list_corpora():
                try:
                    with work.savepoint():
                        choice = choose(work, corpus, self._database.settings)
                        coverage = count_covered(work, corpus, choice.name)
                except (DatabaseUnavailable, StatementTimeout):
                    raise
                except DataLayerError as error:
                    hidden.append(f"{corpus.name}: {error}")
                    continue
                counts = (coverage.embedded, coverage.stale, coverage.missing)
                for state, count in zip(PASSAGE_STATES, counts, strict=True):
                    states.add_metric([corpus.name, choice.name, state], count)
        return Part([states], complete=not hidden, note="; ".join(hidden))

    def _read_chain(self) -> Part:
        """Compute each seal of the audit log, and compare it with what is stored."""
        try:
            tampering = AuditService(self._database).verify_chain()
        except NotPermitted as error:
            return Part([], complete=False, note=str(error))
        intact = _gauge(
            "audit_chain_intact",
            "1 if each seal of the audit log is there and as it was made, 0 if not",
        )
        intact.add_metric([], float(not tampering))
        return Part([intact])

    def _note(self, name: str, part: Part) -> Part:
        """Log once what is left out."""
        if part.note and self._noted.get(name) != part.note:
            logger.info("figures of %s are left out: %s", name, part.note)
        self._noted[name] = part.note
        return part


def _read_apart(work: UnitOfWork, read: Callable[[UnitOfWork], Part]) -> Part:
    """Read a part so that its failure is its own; an outage is that of all."""
    try:
        with work.savepoint():
            return read(work)
    except DatabaseUnavailable:
        raise
    except DataLayerError as error:
        return Part([], complete=False, note=str(error))


def _read_server(work: UnitOfWork) -> Part:
    figures = work.monitoring.get_server()
    return Part(
        [
            _value("server_connections", "Connections to the server", figures.connections),
            _value(
                "server_connections_max",
                "Connections that the server allows to roles that are no superusers",
                figures.most_connections,
            ),
            _value("database_size_bytes", "Size of the database on disk", figures.size_bytes),
            _value(
                "database_frozen_transactions",
                "Transactions since the oldest that is not frozen; at 2 billion writes stop",
                figures.frozen_age,
            ),
            _value("database_standby", "1 if the server is a standby", figures.is_standby),
        ]
    )


def _read_queue(work: UnitOfWork, *, kinds: Sequence[str]) -> Part:
    figures = work.jobs.stats()
    jobs = _gauge(
        "jobs", "Jobs by kind and status; completed ones of the last hour", ["kind", "status"]
    )
    shown = {(kind, status): 0 for kind in kinds for status in ("pending", "running", "failed")}
    for kind, statuses in figures.depth.items():
        # Whoever may enqueue chooses the kind, and each value of a label is a series for ever.
        known = kind if kind in kinds else OTHER_KINDS
        for status, count in statuses.items():
            shown[known, status] = shown.get((known, status), 0) + count
    for labels, count in shown.items():
        jobs.add_metric(labels, count)
    try:
        work.tenancy.require_administrator()
        hidden = ""
    except NotPermitted as error:
        hidden = f"jobs of tenants are not counted: {error}"
    return Part(
        [
            jobs,
            _value("jobs_due", "Pending jobs that may be begun now", figures.due),
            _value(
                "jobs_oldest_due_age_seconds",
                "Time for which the first due job has been waiting; 0 if none is due",
                figures.oldest_due_seconds or 0.0,
            ),
            _value(
                "jobs_lanes",
                "Tenants, and users without one, that have due jobs; jobs of none count as one",
                figures.lanes,
            ),
            _value(
                "jobs_largest_lane",
                "Due jobs of the tenant or user that has the most",
                figures.largest_lane,
            ),
            _value(
                "jobs_over_ceiling",
                "Jobs that wait for the next day, as the tokens of their tenant are spent",
                figures.over_ceiling,
            ),
            _value(
                "jobs_retrying",
                "Pending jobs that failed before or were put off",
                figures.retrying,
            ),
        ],
        complete=not hidden,
        note=hidden,
    )


def _read_tokens(work: UnitOfWork) -> Part:
    work.tenancy.require_administrator()
    figures = work.usage.get_figures()
    return Part(
        [
            _value(
                "embedding_today_tokens",
                "Tokens that workers and commands spent on passages since midnight UTC",
                figures.spent_tokens,
            ),
            _value(
                "embedding_today_reserved_tokens",
                "Bound of the tokens of calls under way, and of those whose process died",
                figures.reserved_tokens,
            ),
            _value(
                "embedding_scopes_at_ceiling",
                "Tenants, and users without one, that have spent their tokens of the day",
                figures.full_scopes,
            ),
        ]
    )


def _read_indexes(work: UnitOfWork, *, database: Database) -> Part:
    usable = _gauge(
        "vector_index_usable",
        "1 if searches of the corpus can use an index of its model, or need none; 0 if not",
        ["corpus", "model"],
    )
    hidden: list[str] = []
    for corpus in list_corpora():
        try:
            with work.savepoint():
                choice = choose(work, corpus, database.settings)
                state = work.vector_indexes.index_state(corpus, work.models.get_model(choice.name))
        except DatabaseUnavailable:
            raise
        except DataLayerError as error:
            hidden.append(f"{corpus.name}: {error}")
        else:
            usable.add_metric([corpus.name, choice.name], float(state == "ready"))
    return Part([usable], complete=not hidden, note="; ".join(hidden))


def _read_searches(work: UnitOfWork) -> Part:
    searches = _gauge(
        "recent_searches",
        "Searches of the last 5 minutes that are in query_performance_log",
        ["corpus", "mode"],
    )
    degraded = _gauge("recent_searches_degraded", "Degraded ones of these", ["corpus", "mode"])
    seconds = _gauge(
        "recent_search_duration_seconds",
        "Duration at a quantile of these",
        ["corpus", "mode", "quantile"],
    )
    corpora = [corpus.name for corpus in list_corpora()]
    for each in work.monitoring.list_searches(corpora, MODES, seconds=RECENT_SECONDS):
        labels = [each.corpus, each.mode]
        searches.add_metric(labels, each.searches)
        degraded.add_metric(labels, each.degraded)
        for quantile, value in zip(QUANTILES, each.seconds, strict=True):
            seconds.add_metric([*labels, quantile], value)
    return Part([searches, degraded, seconds])


def _read_backups(work: UnitOfWork) -> Part:
    figures = work.monitoring.get_backups()
    return Part(
        [
            _moment(
                "backup_last_success_timestamp_seconds",
                "End of the last backup that was completed; 0 if there is none",
                figures.succeeded_at,
            ),
            _moment(
                "backup_last_verified_timestamp_seconds",
                "End of the last backup that was verified; 0 if there is none",
                figures.verified_at,
            ),
            _value(
                "backup_last_failed", "1 if the last backup that ended has failed", figures.failed
            ),
        ]
    )


def _read_audit(work: UnitOfWork) -> Part:
    unrecorded = work.diagnosis.list_unrecorded()
    families: Families = [
        _value(
            "audit_unrecorded_changes",
            "Kinds of change of rows that have no trigger, so that the audit log misses them",
            sum(each.table is not None for each in unrecorded),
        )
    ]
    if not work.monitoring.may_read("audit_seals"):
        note = "the last seal is read by members of rag_admin only"
        return Part(families, complete=False, note=note)
    last = work.monitoring.get_last_seal()
    families += [
        _value("audit_seals", "Number of the last seal of the audit log", last.number or 0),
        _moment(
            "audit_last_seal_timestamp_seconds",
            "Time of the last seal of the audit log; 0 if there is none",
            last.sealed_at,
        ),
        _value(
            "audit_oldest_unsealed_age_seconds",
            "Age of the oldest entry of the audit log that no seal covers; 0 if all are sealed",
            last.unsealed_seconds,
        ),
    ]
    return Part(families)


def _gauge(name: str, documentation: str, labels: Sequence[str] = ()) -> Any:
    return GaugeMetricFamily(f"{PREFIX}{name}", documentation, labels=list(labels))


def _value(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}{name}", documentation, value=float(value))


def _moment(name: str, documentation: str, moment: datetime | None) -> Metric:
    return _value(name, documentation, 0.0 if moment is None else moment.timestamp())
