"""The steps of each operation: what is done to which table or index, and when it is not."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import Misuse
from pgcorpus.db.models.embeddings import EmbeddingModel
from pgcorpus.db.repositories.operations.maintenance import IndexState, TableState
from pgcorpus.db.repositories.vector_indexes import build_memory_kb
from pgcorpus.db.search.corpora import list_corpora
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.jobs.handlers import (
    ARCHIVED_SEARCHES_KEPT,
    COMPLETED_KEPT_SECONDS,
    DAY_SECONDS,
    SEARCHES_KEPT,
    delete_all,
)
from pgcorpus.services.ops.maintenance.report import OPERATIONS, Operation, Outcome
from pgcorpus.services.ops.maintenance.worth import describe, find_reason, sort_by_waste
from pgcorpus.services.ops.verify import measure_recall

LEFTOVER: Final = re.compile(r"_cc(new|old)\d*$")
"""Names that REINDEX CONCURRENTLY gives to what it builds, and to what it is about to drop."""

LOG_KEPT_SECONDS: Final = 366 * DAY_SECONDS

RETENTION: Final[Mapping[str, Callable[[UnitOfWork], int]]] = {
    "query_performance_log": lambda work: work.performance.archive(older_than=SEARCHES_KEPT),
    "query_performance_archive": lambda work: work.performance.delete_archived(
        older_than=ARCHIVED_SEARCHES_KEPT
    ),
    "jobs": lambda work: work.jobs.purge(older_than_seconds=COMPLETED_KEPT_SECONDS),
    "maintenance_log": lambda work: work.maintenance.delete_entries(
        older_than_seconds=LOG_KEPT_SECONDS
    ),
}
"""Table → deletes, or archives, some of its old rows and returns how many; it is called until it
returns 0, each time in a transaction of its own."""

WEEKLY: Final[tuple[Operation, ...]] = tuple(
    each for each in OPERATIONS if each != "extension_updates"
)
MONTHLY: Final = OPERATIONS

BUSY_SECONDS: Final = 30.0
"""The longest wait for a table that others build an index on, vacuum or change."""

POLL_SECONDS: Final = 0.5

BUSY: Final = "others build an index on {table}, vacuum or change it"
NOT_PERMITTED: Final = "it belongs to {owner}, and the login has no right to maintain it"


@dataclass(frozen=True)
class Step:
    """One step: something that is done to a table, an index or the whole database.

    Attributes:
        operation: Its kind.
        subject: Table or index, or None.
        table: The table whose progress the server reports meanwhile, or None.
        do: Does it, on a connection without a transaction.
    """

    operation: Operation
    subject: str | None
    table: str | None
    do: Callable[[UnitOfWork], Outcome]


@dataclass(frozen=True)
class Request:
    """A request for maintenance.

    Attributes:
        operations: What is done, in the order of ``OPERATIONS``.
        only: One table or index, or None for all. A named index is built anew whatever it is worth.
        full: VACUUM FULL, of one table; nobody reads it meanwhile.
        all_indexes: Judge indexes of all kinds, and not those of vectors alone.
    """

    operations: Sequence[Operation]
    only: str | None = None
    full: bool = False
    all_indexes: bool = True


@dataclass(frozen=True)
class Catalog:
    """The tables and indexes that there are when a run begins.

    Attributes:
        database: Whose.
        request: What is to be done.
        tables: All that are maintained.
        indexes: All of these tables.
    """

    database: Database
    request: Request
    tables: Sequence[TableState]
    indexes: Sequence[IndexState]


def plan(database: Database, work: UnitOfWork, request: Request) -> list[Step]:
    """Return the steps of a request, as the database is now.

    Raises:
        Misuse: There is no table or index of that name.
    """
    catalog = Catalog(
        database, request, work.maintenance.list_tables(), work.maintenance.list_indexes()
    )
    steps = [
        step
        for operation in OPERATIONS
        if operation in request.operations
        for step in PLANS[operation](catalog)
    ]
    if request.only is not None:
        steps = [step for step in steps if step.subject == request.only]
        if not steps:
            raise Misuse(
                f"{request.operations[0]} is not done to {request.only!r}: it is no table or index "
                "of pgcorpus. See their names with: pgcorpus maintenance now bloat_report"
            )
    return steps


def _plan_leftovers(_catalog: Catalog) -> Iterator[Step]:
    yield Step("leftover_indexes", None, None, _drop_leftovers)


def _plan_partitions(catalog: Catalog) -> Iterator[Step]:
    yield Step("partitions", None, None, partial(_make_partitions, catalog.database))


def _plan_statistics(catalog: Catalog) -> Iterator[Step]:
    for table in catalog.tables:
        do = _if_possible(table.schema, table.name, table, partial(_analyze, table))
        yield Step("statistics_update", table.name, table.name, do)


def _plan_reindex(catalog: Catalog) -> Iterator[Step]:
    """Yield a step for each index that may be worth a rebuild, or was named."""
    database, request = catalog.database, catalog.request
    tables = {each.name: each for each in catalog.tables}
    searched = dict(_list_searched(database))
    for index in catalog.indexes:
        judged = index.method == "hnsw" or request.all_indexes or index.name == request.only
        if judged and not LEFTOVER.search(index.name):
            rebuild = partial(
                _reindex, database, index, searched.get(index.name), request.only is not None
            )
            owned = tables.get(index.whole)
            do = _if_possible(index.schema, index.table, owned, rebuild)
            yield Step("reindex", index.name, index.table, do)


def _plan_retention(catalog: Catalog) -> Iterator[Step]:
    for name in RETENTION:
        yield Step("retention", name, None, partial(_delete_old, catalog.database, name))


def _plan_vacuum(catalog: Catalog) -> Iterator[Step]:
    for table in catalog.tables:
        vacuum = partial(_vacuum, table, catalog.request.full)
        do = _if_possible(table.schema, table.name, table, vacuum)
        yield Step("vacuum", table.name, table.name, do)


def _plan_report(_catalog: Catalog) -> Iterator[Step]:
    yield Step("bloat_report", None, None, _report_bloat)


def _plan_updates(_catalog: Catalog) -> Iterator[Step]:
    yield Step("extension_updates", None, None, _offer_updates)


PLANS: Final[Mapping[Operation, Callable[[Catalog], Iterator[Step]]]] = {
    "leftover_indexes": _plan_leftovers,
    "partitions": _plan_partitions,
    "statistics_update": _plan_statistics,
    "reindex": _plan_reindex,
    "retention": _plan_retention,
    "vacuum": _plan_vacuum,
    "bloat_report": _plan_report,
    "extension_updates": _plan_updates,
}


def _if_possible(
    schema: str, name: str, table: TableState | None, do: Callable[[UnitOfWork], Outcome]
) -> Callable[[UnitOfWork], Outcome]:
    """Return what does something to a table, where the login may and others leave it free."""

    def attempt(work: UnitOfWork) -> Outcome:
        if table is not None and not table.permitted:
            return Outcome("skipped", {"reason": NOT_PERMITTED.format(owner=table.owner)})
        if _stays_in_use(work, schema, name):
            return Outcome("skipped", {"reason": BUSY.format(table=name)})
        return do(work)

    return attempt


def _stays_in_use(work: UnitOfWork, schema: str, table: str) -> bool:
    """Wait a while for others who build an index or vacuum; return whether they still do."""
    until = time.monotonic() + BUSY_SECONDS
    while busy := work.maintenance.is_in_use(schema, table):
        if time.monotonic() > until:
            break
        time.sleep(POLL_SECONDS)
    return busy


def _drop_leftovers(work: UnitOfWork) -> Outcome:
    """Drop what rebuilds left that failed, or whose process was killed."""
    dropped, left = drop_leftovers(work)
    detail = {"dropped": dropped} | ({"in_use": left} if left else {})
    return Outcome("completed" if dropped else "skipped", detail)


def drop_leftovers(work: UnitOfWork) -> tuple[list[str], list[str]]:
    """Drop the invalid indexes that rebuilds left.

    Returns:
        The names of those that were dropped, and of those that others may be building just now.
    """
    dropped: list[str] = []
    left: list[str] = []
    for index in work.maintenance.list_indexes():
        if index.valid or not LEFTOVER.search(index.name):
            continue
        if _stays_in_use(work, index.schema, index.table):
            left.append(index.name)
        else:
            work.maintenance.drop_index(index)
            dropped.append(index.name)
    return dropped, left


def _make_partitions(database: Database, _work: UnitOfWork) -> Outcome:
    """Make the partitions of the audit log that are needed next, as the worker does each hour."""
    with database.unit_of_work() as work:
        made = list(work.audit.make_partitions())
        work.commit()
    return Outcome("completed" if made else "skipped", {"made": made})


def _analyze(table: TableState, work: UnitOfWork) -> Outcome:
    work.maintenance.analyze(table)
    return Outcome("completed", {})


def _vacuum(table: TableState, full: bool, work: UnitOfWork) -> Outcome:
    """Vacuum a table. PostgreSQL does little where little is dead, and knows better than counts."""
    work.maintenance.vacuum(table, full=full)
    after = next(each for each in work.maintenance.list_tables() if each.name == table.name)
    return Outcome(
        "completed",
        {"dead_rows": table.dead_rows, "bytes_before": table.bytes, "bytes_after": after.bytes},
    )


def _reindex(
    database: Database,
    index: IndexState,
    searched: tuple[Corpus, EmbeddingModel] | None,
    asked_for: bool,
    work: UnitOfWork,
) -> Outcome:
    """Build an index anew where that is worth its while, or it was asked for by name."""
    now = work.maintenance.find_index(index.oid)
    if now is None:
        return Outcome("skipped", {"reason": "it is gone"})
    recall = _measure(database, now, searched)
    reason = find_reason(
        now, recall=recall, rebuilt=work.maintenance.find_last("reindex", now.name)
    )
    if reason is None and asked_for:
        reason = "it was asked for"
    found = describe(now, recall)
    if reason is None:
        return Outcome("skipped", found)
    kilobytes = 0
    if searched is not None:
        kilobytes = build_memory_kb(searched[1], round(now.entries))
    work.maintenance.reindex(now, kilobytes=kilobytes)
    after = next(each for each in work.maintenance.list_indexes() if each.name == now.name)
    found |= {"reason": reason, "bytes_after": after.bytes}
    if searched is not None:
        found |= {"recall_after": _measure(database, after, searched)}
    return Outcome("completed", found)


def _measure(
    database: Database, index: IndexState, searched: tuple[Corpus, EmbeddingModel] | None
) -> float | None:
    return measure_recall(database, *searched) if searched is not None and index.valid else None


def _list_searched(database: Database) -> Iterator[tuple[str, tuple[Corpus, EmbeddingModel]]]:
    """Yield the indexes that searches without a scope use, each with its corpus and model."""
    with database.unit_of_work() as work:
        for corpus in list_corpora():
            model = work.models.find_active_model(corpus.name)
            if model is None or corpus.needs_scope:
                continue
            for index in work.vector_indexes.list_indexes(corpus, model):
                if index.usable and (index.shared or corpus.scope is None):
                    yield index.name.strip('"'), (corpus, model)


def _delete_old(database: Database, table: str, _work: UnitOfWork) -> Outcome:
    deleted = delete_all(database, RETENTION[table])
    return Outcome("completed" if deleted else "skipped", {"rows": deleted})


def _report_bloat(work: UnitOfWork) -> Outcome:
    """List tables and indexes with their sizes, and what of these is of no use."""
    tables = sorted(work.maintenance.list_tables(), key=lambda each: -each.bytes)
    return Outcome(
        "completed",
        {
            "tables": [
                {
                    "table": each.name,
                    "bytes": each.bytes,
                    "index_bytes": each.index_bytes,
                    "toast_bytes": each.toast_bytes,
                    "live_rows": each.live_rows,
                    "dead_rows": each.dead_rows,
                }
                for each in tables
            ],
            "indexes": [
                {"index": each.name, "valid": each.valid, "scans": each.scans, **describe(each)}
                for each in sort_by_waste(work.maintenance.list_indexes())
            ],
        },
    )


def _offer_updates(work: UnitOfWork) -> Outcome:
    """List the extensions of which the server has a newer version; an administrator decides."""
    offered: list[dict[str, Any]] = [
        each._asdict() | {"statement": f"ALTER EXTENSION {each.name} UPDATE;"}
        for each in work.maintenance.list_newer_extensions()
    ]
    return Outcome("completed" if offered else "skipped", {"offered": offered})
