"""The service of maintenance: one run at a time, each step logged, while searches go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final
from uuid import UUID, uuid4

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DatabaseUnavailable, DataLayerError, translate_errors
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.ops.maintenance.report import MaintenanceReport, StepReport
from pgcorpus.services.ops.maintenance.steps import Request, Step, drop_leftovers, plan

POLL_SECONDS: Final = 0.5

OnStep = Callable[[int, int, Step, tuple[str, float] | None], None]
"""Reports the number of steps done, that of all, the present one and what the server says of it:
the phase, and the share of it that is done."""


class MaintenanceService:
    """Does maintenance, and keeps ``maintenance_log``.

    No step keeps readers or writers out, but VACUUM FULL. A step that fails keeps no other from
    being done. A run that is stopped or killed can be run again: the next one says which step did
    not end, and drops what a rebuild left.

    Args:
        database: What is maintained. Behind a transaction pooler it needs ``DATABASE_ADMIN_URL``.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def run(self, request: Request, *, on_step: OnStep | None = None) -> MaintenanceReport:
        """Do the steps of a request, one at a time.

        Args:
            request: What is to be done.
            on_step: See ``OnStep``; called now and then, by two threads.

        Raises:
            NotPermitted: The login may maintain none of the tables.
            TransactionConflict: Another process does maintenance.
            DatabaseReadOnly: The database is a standby.
            Misuse: There is no table or index of the name that was asked for.
        """
        with self._database.autocommitting() as work:
            work.maintenance.refuse_without_rights()
            work.operations.require_writable()
            with work.maintenance.alone():
                work.maintenance.prepare()
                interrupted = work.maintenance.mark_interrupted()
                steps = plan(self._database, work, request)
                run = uuid4()
                reports = []
                for done, step in enumerate(steps):
                    with self._watch(done, len(steps), step, on_step):
                        reports.append(self._do(work, run, step))
        return MaintenanceReport(run, interrupted, reports)

    def _do(self, work: UnitOfWork, run: UUID, step: Step) -> StepReport:
        """Do a step between two entries of the log."""
        entry = work.maintenance.begin(run, step.operation, step.subject)
        began = time.monotonic()
        try:
            with translate_errors():
                outcome = step.do(work)
        except DatabaseUnavailable:
            raise
        except DataLayerError as error:
            duration_ms = (time.monotonic() - began) * 1000
            work.maintenance.end(entry, "failed", duration_ms=duration_ms, error=str(error))
            if step.operation == "reindex":
                with suppress(DataLayerError), translate_errors():
                    drop_leftovers(work)
            return StepReport(step.operation, step.subject, "failed", duration_ms, error=str(error))
        except BaseException:  # Ctrl-C: the connection is lost with it, and its lock
            with suppress(DataLayerError), self._database.autocommitting() as other:
                other.maintenance.end(entry, "interrupted")
            raise
        duration_ms = (time.monotonic() - began) * 1000
        work.maintenance.end(entry, outcome.status, duration_ms=duration_ms, detail=outcome.detail)
        return StepReport(step.operation, step.subject, outcome.status, duration_ms, outcome.detail)

    @contextmanager
    def _watch(self, done: int, total: int, step: Step, on_step: OnStep | None) -> Iterator[None]:
        """Report a step, and from another connection how far the server is with it."""
        if on_step is None:
            yield
            return
        on_step(done, total, step, None)
        ended = threading.Event()

        def watch(table: str) -> None:
            with suppress(DataLayerError):  # the step itself will say what is wrong
                while not ended.wait(POLL_SECONDS):
                    with self._database.unit_of_work() as work:
                        found = work.maintenance.find_progress(table)
                    on_step(done, total, step, found)

        watcher = threading.Thread(target=watch, args=(step.table,), name="maintenance")
        if step.table is not None:
            watcher.start()
        try:
            yield
        finally:
            ended.set()
            if watcher.ident is not None:
                watcher.join()
