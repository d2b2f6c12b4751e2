"""The audit log: its entries, the seals over them, and whether both are unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Final, NamedTuple

from psycopg import sql
from sqlalchemy import LargeBinary, Select, func, literal_column, select, text

from pgcorpus.db.base import set_local
from pgcorpus.db.models.audit import AuditSeal, SecurityAuditLog
from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.search.estimates import ROWS

SEAL_BATCH: Final = 1000
"""Entries under one seal: what was tampered with is found as closely as this."""

LOCK_TIMEOUT: Final = "5s"
"""Dropping a month locks the log, and filling one may: rather than keep every writer waiting, both
give up."""

# The same expressions as in the functions of revision 0007: changing either breaks every seal.
ENTRY: Final = """
    jsonb_build_array(
        position, id, extract(epoch FROM timestamp) * 1000000, user_name, actor, action, table_name,
        record_id, old_values, new_values, ip_address, application_name, transaction_id)
"""
SEAL: Final = """
    jsonb_build_array(
        number, extract(epoch FROM sealed_at) * 1000000, sealed_by, kind, last_position,
        oldest_transaction, next_transaction, months, encode(previous, 'hex'))
"""

DIGESTS: Final = f"""
    SELECT month, seal, count(*) AS rows,
           encode(sha256(string_agg(
               sha256(convert_to({ENTRY}::text, 'UTF8')), '' ORDER BY position)), 'hex') AS sha256,
           min(position) AS first_position, max(position) AS last_position,
           min(timestamp) AS earliest, max(timestamp) AS latest
    FROM (
        SELECT entries.*, to_char(timestamp AT TIME ZONE 'UTC', 'YYYY-MM') AS month, (
            SELECT number FROM audit_seals
            WHERE audit_seals.last_position >= position AND NOT (
                transaction_id >= oldest_transaction AND transaction_id < next_transaction)
            ORDER BY audit_seals.last_position, number LIMIT 1) AS seal
        FROM {{partition}} AS entries
    ) AS sealed
    GROUP BY month, seal
"""  # noqa: S608 - of this file's own constants

PARTITIONS: Final = text(rf"""
    SELECT relname::text AS name, ({ROWS})::bigint AS rows,
           to_date(substring(relname FROM '\d{{4}}_\d\d$'), 'YYYY_MM') AS month
    FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = CAST('security_audit_log' AS regclass) ORDER BY relname
""")  # noqa: S608 - a constant


class Partition(NamedTuple):
    """A part of the log.

    Attributes:
        name: Of the table.
        rows: How many entries there are, as the planner believes.
        month: The first day of its month, or None for what belongs to no other partition.
    """

    name: str
    rows: int
    month: date | None


class Digest(NamedTuple):
    """The entries of a month that one seal covers, as they are now.

    Attributes:
        month: As ``2026-11``.
        seal: Its number, or None for entries that are not sealed yet.
        rows: How many there are.
        sha256: Over them, in hexadecimal.
        first_position: Of the first of them.
        last_position: Of the last.
        earliest: The first time among them.
        latest: The last.
    """

    month: str
    seal: int | None
    rows: int
    sha256: str
    first_position: int
    last_position: int
    earliest: datetime
    latest: datetime


class StoredSeal(NamedTuple):
    """A seal, and the hash that it should have."""

    seal: AuditSeal
    computed: bytes


class AuditRepository(Repository):
    """Reads the log, and calls the functions that seal it; entries come from triggers alone."""

    def list_entries(
        self,
        *,
        table: str | None = None,
        record: str | None = None,
        actor: str | None = None,
        login: str | None = None,
        since: datetime | None = None,
        limit: int = 100,
    ) -> Sequence[SecurityAuditLog]:
        """List entries, the newest first.

        Args:
            table: Only those of this table.
            record: Only those of this key; the last column of a key of several is enough, such as
                a memory's id.
            actor: Only those for this actor.
            login: Only those by this login. It has no index: a *since* helps.
            since: Only those written then or later.
            limit: At most this many.
        """
        log = SecurityAuditLog
        # Of few entries: "+ 0" keeps the planner from reading back in time until it has found them.
        when = log.timestamp if record is None else log.timestamp + timedelta()
        entries: Select[SecurityAuditLog] = (
            select(log).order_by(when.desc(), log.position.desc()).limit(limit)
        )
        if table is not None:
            entries = entries.where(log.table_name == table)
        if record is not None:
            *others, last = record.split(",")
            # As the index has it; the rest of the key is compared where it is given.
            entries = entries.where(func.split_part(log.record_id, ",", text("-1")) == last)
            if others:
                entries = entries.where(log.record_id == record)
        if actor is not None:
            entries = entries.where(log.actor == actor)
        if login is not None:
            entries = entries.where(log.user_name == login)
        if since is not None:
            entries = entries.where(log.timestamp >= since)
        return self.session.scalars(entries).all()

    def make_partitions(self) -> Sequence[str]:
        """Make the partitions of this month, of the next two and of any that entries have passed.

        Returns:
            The names of those that were made.

        Raises:
            TransactionConflict: Others write into what is to be moved; try again later.
        """
        self._hurry()
        return self.session.scalars(text("SELECT audit_make_partitions()")).all()

    def record_roles(self) -> int:
        """Record what has changed about the server's roles since the last time.

        Returns:
            How many entries were written.
        """
        return int(self.session.scalar(text("SELECT audit_record_roles()")) or 0)

    def seal(self, *, batch: int = SEAL_BATCH) -> Sequence[AuditSeal]:
        """Seal the entries of all transactions that have ended.

        It must be the first thing a transaction writes: the number of the transaction is what
        tells entries in flight from entries of another cluster.

        Args:
            batch: At most so many entries under one seal, but those that were in flight before.

        Returns:
            The seals that were made, in order.
        """
        self.lift_timeout()
        made: Select[AuditSeal] = select(AuditSeal).from_statement(  # type: ignore[assignment]
            text("SELECT * FROM audit_seal(:batch)").bindparams(batch=batch)
        )
        return self.session.scalars(made).all()

    def sign(self, number: int, signature: bytes) -> None:
        """Keep the signature of a seal that has none."""
        signed = text("SELECT audit_sign(:number, :signature)")
        self.session.execute(signed, {"number": number, "signature": signature})

    def find_last_seal(self) -> AuditSeal | None:
        """Return the newest seal, or None before the first."""
        return self.session.scalar(select(AuditSeal).order_by(AuditSeal.number.desc()).limit(1))

    def begin_verification(self) -> None:
        """Make the transaction one snapshot without a timeout; must come first in it."""
        # The first statement of a transaction may be that which steps down from a superuser.
        self.session.connection(
            execution_options={"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        )
        self.lift_timeout()

    def list_seals(self) -> list[StoredSeal]:
        """Return all seals in order, each with the hash that it should have."""
        computed = literal_column(f"sha256(convert_to({SEAL}::text, 'UTF8'))", LargeBinary())
        found = self.session.execute(select(AuditSeal, computed).order_by(AuditSeal.number))
        return [StoredSeal(*row) for row in found]

    def list_partitions(self) -> list[Partition]:
        """Return the parts of the log."""
        return [Partition(*row) for row in self.session.execute(PARTITIONS)]

    def digest(self, partition: Partition) -> list[Digest]:
        """Read a part of the log from end to end."""
        named = sql.SQL(DIGESTS).format(partition=sql.Identifier(partition.name))
        found = self.session.connection().exec_driver_sql(named.as_string())
        return [Digest(*row) for row in found]

    def drop_month(self, month: date) -> AuditSeal:
        """Drop the entries of a month, and seal that they were dropped; for the log's owner alone.

        Raises:
            NotPermitted: The role does not own the log.
            TransactionConflict: Others kept it locked.
        """
        self._hurry()
        dropped: Select[AuditSeal] = select(AuditSeal).from_statement(  # type: ignore[assignment]
            text("SELECT * FROM audit_drop_month(:month)").bindparams(month=month)
        )
        with self.as_login():
            return self.session.scalars(dropped).one()

    def _hurry(self) -> None:
        self.session.execute(set_local({"lock_timeout": LOCK_TIMEOUT}))
