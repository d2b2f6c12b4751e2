"""Plans of the statements that repositories' methods send."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import event

from pgcorpus.db.uow import UnitOfWork


def plan_of(work: UnitOfWork, method: Callable[[], object]) -> dict[str, Any]:
    """Call the method, and explain the last statement that it sent.

    Returns:
        The plan's uppermost node, with what it took.
    """
    sent: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, *message: object) -> None:
        sent.append((str(message[0]), message[1]))

    connection = work.session.connection()
    event.listen(connection, "before_cursor_execute", note)
    try:
        method()
    finally:
        event.remove(connection, "before_cursor_execute", note)
    statement, values = sent[-1]
    explained = connection.exec_driver_sql(
        f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", values
    ).scalar_one()
    plan: dict[str, Any] = explained[0]["Plan"]
    return plan


def scans(plan: dict[str, Any], table: str) -> bool:
    """Return whether the plan reads a whole table."""
    nodes = [plan]
    for node in nodes:
        nodes += node.get("Plans", [])
    return any((n["Node Type"], n.get("Relation Name")) == ("Seq Scan", table) for n in nodes)
