"""The statements of maintenance, each outside of a transaction, and the log of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from psycopg import sql
from sqlalchemy import delete, func, insert, select, text, update

from pgcorpus.db.base import lock_key
from pgcorpus.db.errors import NotPermitted
from pgcorpus.db.models.operations import MaintenanceLog, MaintenanceStatus
from pgcorpus.db.repositories.base import INDEX_BUILD_MEMORY, Repository
from pgcorpus.db.repositories.operations.performance import list_tables

MAINTAINING: Final = "maintaining the database"

LOCK_TIMEOUT: Final = "10s"
"""The longest wait for a table that others build an index on, vacuum or change."""

REBUILD_LOCK_TIMEOUT: Final = "1h"
"""The longest wait of a rebuild for transactions that began before it, a backup for example. What
was built is lost then, so it is long."""

CHECK_CLIENT: Final = "10s"
"""The time after which the server ends a statement whose client was killed. A rebuild would go on
for hours otherwise, and keep the next run out."""

MAINTAINED_BY_OTHERS_FROM: Final = 17
"""The PostgreSQL version from which the right MAINTAIN lets more roles than the owner do this."""

TABLES: Final = text("""
    SELECT nspname::text AS schema, relname::text AS name, pg_get_userbyid(relowner)::text AS owner,
           pg_has_role(relowner, 'USAGE') OR CASE
               WHEN current_setting('server_version_num')::integer >= 170000
               THEN has_table_privilege(pg_class.oid, 'MAINTAIN') ELSE false END AS permitted,
           bytes.of_table, bytes.of_indexes, bytes.out_of_line, bytes.live, bytes.dead
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    -- A partitioned table is as large as its partitions.
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(pg_relation_size(part.oid)), 0)::bigint AS of_table,
               coalesce(sum(pg_indexes_size(part.oid)), 0)::bigint AS of_indexes,
               coalesce(sum(pg_total_relation_size(nullif(part.reltoastrelid, 0))), 0)::bigint
                   AS out_of_line,
               coalesce(sum(n_live_tup), 0)::bigint AS live,
               coalesce(sum(n_dead_tup), 0)::bigint AS dead
        FROM pg_class AS part LEFT JOIN pg_stat_all_tables AS counted ON counted.relid = part.oid
        WHERE part.oid = pg_class.oid
           OR part.oid IN (SELECT tree.relid FROM pg_partition_tree(pg_class.oid) AS tree)
    ) AS bytes
    WHERE pg_class.oid = ANY (CAST(CAST(:tables AS text[]) AS regclass[])) AND relkind IN ('r', 'p')
    ORDER BY 2
""")

INDEXES: Final = text("""
    SELECT of_schema.nspname::text AS schema, index.relname::text AS name,
           owned.relname::text AS table,
           coalesce(CAST(pg_partition_root(indrelid) AS oid), indrelid)::regclass::text AS whole,
           amname::text AS method,
           indisvalid AND indisready AS valid, indexrelid::bigint AS oid,
           pg_relation_size(indexrelid) AS bytes, greatest(index.reltuples, 0)::float8 AS entries,
           coalesce((SELECT option_value::integer FROM pg_options_to_table(index.reloptions)
                     WHERE option_name = 'm'), 16) AS links,
           keys.width, keys.dimensions, keys.type, coalesce(idx_scan, 0) AS scans,
           pg_get_expr(indpred, indrelid) AS condition
    FROM pg_index
    JOIN pg_class AS index ON index.oid = indexrelid
    JOIN pg_class AS owned ON owned.oid = indrelid
    JOIN pg_namespace AS of_schema ON of_schema.oid = index.relnamespace
    JOIN pg_am ON pg_am.oid = index.relam
    LEFT JOIN pg_stat_all_indexes USING (indexrelid)
    -- Widths of types without one are known from ANALYZE, where row security does not hide it.
    CROSS JOIN LATERAL (
        SELECT CASE WHEN count(*) = count(known) THEN sum(known)::float8 END AS width,
               max(atttypmod) AS dimensions, max(typname)::text AS type
        FROM (
            SELECT key.atttypmod, typname,
                   CASE WHEN key.attlen > 0 THEN key.attlen ELSE coalesce((
                       SELECT avg_width FROM pg_stats
                       WHERE schemaname = of_schema.nspname AND NOT inherited
                         AND (tablename, attname) = (owned.relname, of_table.attname)
                   ), (
                       SELECT avg_width FROM pg_stats
                       WHERE schemaname = of_schema.nspname AND NOT inherited
                         AND (tablename, attname) = (index.relname, key.attname)
                   )) END AS known
            FROM pg_attribute AS key JOIN pg_type ON pg_type.oid = key.atttypid
            LEFT JOIN pg_attribute AS of_table ON of_table.attrelid = indrelid
                AND of_table.attnum = indkey[key.attnum - 1] AND of_table.attnum > 0
            WHERE key.attrelid = indexrelid
        ) AS each
    ) AS keys
    WHERE indrelid IN (
            SELECT relid FROM unnest(CAST(CAST(:tables AS text[]) AS regclass[])) AS root,
                pg_partition_tree(root)
            UNION SELECT unnest(CAST(CAST(:tables AS text[]) AS regclass[])))
      AND index.relkind = 'i' AND coalesce(indexrelid = CAST(:oid AS oid), true)
    ORDER BY 2
""")

IN_USE: Final = text("""
    SELECT EXISTS (
        SELECT FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
        WHERE datname = current_database() AND granted AND pid <> pg_backend_pid()
          AND relation = to_regclass(format('%I.%I', CAST(:schema AS text), CAST(:name AS text)))
          AND mode NOT IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock'))
""")
"""Locks of readers and writers of rows are no obstacle."""

PROGRESS: Final = text("""
    SELECT phase, coalesce(blocks_done::float8 / nullif(blocks_total, 0), 0)
    FROM pg_stat_progress_create_index WHERE relid = to_regclass(:table)
    UNION ALL
    SELECT phase, coalesce(heap_blks_scanned::float8 / nullif(heap_blks_total, 0), 0)
    FROM pg_stat_progress_vacuum WHERE relid = to_regclass(:table)
    LIMIT 1
""")

NEWER_EXTENSIONS: Final = text("""
    SELECT name::text, installed_version AS installed, default_version AS available
    FROM pg_available_extensions
    WHERE installed_version IS NOT NULL AND EXISTS (
        SELECT FROM pg_extension_update_paths(name)
        WHERE (source, target) = (installed_version, default_version) AND path IS NOT NULL)
    ORDER BY 1
""")

PREPARE: Final = text("""
    SELECT set_config('lock_timeout', :lock_timeout, false),
           set_config('client_connection_check_interval', :check_client, false),
           set_config('idle_session_timeout', '0', false),
           set_config('maintenance_work_mem', greatest(
               (SELECT setting::bigint FROM pg_settings WHERE name = 'maintenance_work_mem'),
               :kilobytes)::text, false),
           set_config('max_parallel_maintenance_workers', :processes, false)
""")
"""For the session, which is one of maintenance's own and ends with it."""

ALONE: Final = "0"
"""Processes beside the one that builds a graph of vectors: several would share it in ``/dev/shm``,
and would take the processors that searches need meanwhile."""


class TableState(NamedTuple):
    """A table, its size, and whether the login may maintain it.

    Attributes:
        schema: Of the table.
        name: Without its schema.
        owner: Of the table.
        permitted: Whether the login owns it or has the right MAINTAIN.
        bytes: Of its rows.
        index_bytes: Of its indexes.
        toast_bytes: Of what is stored out of line.
        live_rows: As the statistics have it.
        dead_rows: Versions of rows that VACUUM has not removed.
    """

    schema: str
    name: str
    owner: str
    permitted: bool
    bytes: int
    index_bytes: int
    toast_bytes: int
    live_rows: int
    dead_rows: int


class IndexState(NamedTuple):
    """An index as the catalog and the statistics have it.

    Attributes:
        schema: Of the index, and of its table.
        name: Without its schema.
        table: That it is on.
        whole: The table that this one is a partition of, or itself; quoted where need be.
        method: Such as btree, gin or hnsw.
        valid: False after a build that failed or was stopped, and while one runs.
        oid: The key in the catalog.
        bytes: Its size.
        entries: Rows in it, at the last ANALYZE.
        links: ``m`` of an HNSW graph.
        key_bytes: Mean width of its key, or None where it is not known.
        dimensions: Of the vectors in it; -1 where the type has none.
        type: Of the key, such as halfvec or bit.
        scans: How often it was used.
        condition: Of a partial index, or None.
    """

    schema: str
    name: str
    table: str
    whole: str
    method: str
    valid: bool
    oid: int
    bytes: int
    entries: float
    links: int
    key_bytes: float | None
    dimensions: int
    type: str
    scans: int
    condition: str | None


class NewerExtension(NamedTuple):
    """An extension that the server has a newer version of.

    Attributes:
        name: The extension's.
        installed: Version in this database.
        available: Version on the server.
    """

    name: str
    installed: str
    available: str


class MaintenanceRepository(Repository):
    """Maintains tables and indexes, and keeps the log of it; outside of a transaction."""

    def alone(self) -> AbstractContextManager[None]:
        """Keep other runs of maintenance out; see ``lock_connection``."""
        return self.lock_connection(
            lock_key(MAINTAINING),
            f"another process is {MAINTAINING}; wait until it has ended. See what it does with: "
            "pgcorpus maintenance log",
        )

    def list_tables(self) -> list[TableState]:
        """Return our tables, and those of an application's corpora, by name."""
        found = self.session.execute(TABLES, {"tables": sorted(list_tables())})
        return [TableState(*row) for row in found]

    def refuse_without_rights(self) -> None:
        """Raise unless the login may maintain some of the tables, and write the log.

        Raises:
            NotPermitted: It may not. The message names who may.
            DatabaseNotReady: There is no log yet.
        """
        version = self.session.scalar(
            text("SELECT current_setting('server_version_num')::integer / 10000")
        )
        login, writes = self.session.execute(
            text("SELECT session_user::text, has_table_privilege('maintenance_log', 'INSERT')")
        ).one()
        tables = self.list_tables()
        if writes and any(each.permitted for each in tables):
            return
        owners = ", ".join(sorted({each.owner for each in tables}))
        also = (
            ", or with a login made by: pgcorpus roles create-user NAME --role rag_admin"
            if version >= MAINTAINED_BY_OTHERS_FROM
            else f" (before PostgreSQL {MAINTAINED_BY_OTHERS_FROM} nobody else may)"
        )
        raise NotPermitted(
            f"{login} may not maintain the tables. Run maintenance as their owner, {owners}{also}"
        )

    def list_indexes(self) -> list[IndexState]:
        """Return the indexes of these tables and of their partitions, by name."""
        found = self.session.execute(INDEXES, {"tables": sorted(list_tables()), "oid": None})
        return [IndexState(*row) for row in found]

    def find_index(self, oid: int) -> IndexState | None:
        """Return an index as it is now, or None if it is gone."""
        found = self.session.execute(INDEXES, {"tables": sorted(list_tables()), "oid": oid})
        row = found.one_or_none()
        return None if row is None else IndexState(*row)

    def is_in_use(self, schema: str, table: str) -> bool:
        """Return whether others build an index on a table, vacuum or change it.

        Who waits for such a lock may hold a snapshot, for which the build would wait in turn: that
        is a deadlock, and the build of hours might be what it ends.
        """
        return bool(self.session.scalar(IN_USE, {"schema": schema, "name": table}))

    def prepare(
        self, *, lock_timeout: str = LOCK_TIMEOUT, kilobytes: int = 0, processes: str = "2"
    ) -> None:
        """Set the limits of the statements that follow, for this session.

        Args:
            lock_timeout: The longest wait for a lock.
            kilobytes: Least ``maintenance_work_mem``.
            processes: Beside the one that builds an index.
        """
        self.session.execute(
            PREPARE,
            {
                "lock_timeout": lock_timeout,
                "check_client": CHECK_CLIENT,
                "kilobytes": max(kilobytes, 64 * 1024),
                "processes": processes,
            },
        ).close()

    def analyze(self, table: TableState) -> None:
        """Renew the statistics of a table."""
        self._run("ANALYZE {}", table.schema, table.name)

    def vacuum(self, table: TableState, *, full: bool = False) -> None:
        """Make the space of dead rows usable again.

        Args:
            table: The table.
            full: Write the table anew and give the space back. Nobody reads it meanwhile.
        """
        self._run("VACUUM (FULL) {}" if full else "VACUUM {}", table.schema, table.name)

    def reindex(self, index: IndexState, *, kilobytes: int = 0) -> None:
        """Build an index anew while others read and write.

        A rebuild that fails leaves an invalid index beside it: see ``list_leftovers``.

        Args:
            index: The index.
            kilobytes: Least ``maintenance_work_mem`` of the build.
        """
        graph = index.method == "hnsw"
        self.prepare(
            lock_timeout=REBUILD_LOCK_TIMEOUT,
            kilobytes=kilobytes or int(INDEX_BUILD_MEMORY.removesuffix("MB")) * 1024,
            **({"processes": ALONE} if graph else {}),
        )
        try:
            self._run("REINDEX INDEX CONCURRENTLY {}", index.schema, index.name)
        finally:
            if not self.session.connection().invalidated:
                self.prepare()

    def drop_index(self, index: IndexState) -> None:
        """Drop an index while others read and write; one that is gone is no error."""
        self._run("DROP INDEX CONCURRENTLY IF EXISTS {}", index.schema, index.name)

    def find_progress(self, table: str) -> tuple[str, float] | None:
        """Return phase and share done, in [0, 1], of what builds or vacuums a table.

        None where nothing does.
        """
        row = self.session.execute(PROGRESS, {"table": table}).first()
        return None if row is None else (row[0], row[1])

    def list_newer_extensions(self) -> list[NewerExtension]:
        """Return the extensions of this database that the server has newer versions of."""
        return [NewerExtension(*row) for row in self.session.execute(NEWER_EXTENSIONS)]

    def list_cron_statements(self) -> list[str]:
        """Return the statements that have pg_cron do what a single statement can.

        Run again they replace those of before. The first has the specification's name and time.
        """
        tables = [
            sql.Identifier(each.schema, each.name) for each in self.list_tables() if each.permitted
        ]
        schema = self.session.scalar(select(func.current_schema()))
        home = sql.Identifier(str(schema))
        jobs = {
            ("update-stats", "0 2 * * *"): sql.SQL("SELECT {}.update_vector_statistics()").format(
                home
            ),
            ("pgcorpus-partitions", "0 1 * * *"): sql.SQL(
                "SELECT {}.audit_make_partitions()"
            ).format(home),
            ("pgcorpus-vacuum", "0 3 * * 0"): sql.SQL("VACUUM {}").format(
                sql.SQL(", ").join(tables)
            ),
        }
        return [
            sql.SQL("SELECT cron.schedule({}, {}, {});")
            .format(name, when, command.as_string())
            .as_string()
            for (name, when), command in jobs.items()
        ]

    # The log.

    def begin(self, run: UUID, operation: str, subject: str | None) -> int:
        """Log that a step begins; return the key of its entry."""
        new = insert(MaintenanceLog).values(run=run, operation=operation, subject=subject)
        return self.session.execute(new.returning(MaintenanceLog.id)).scalar_one()

    def end(
        self,
        entry: int,
        status: MaintenanceStatus,
        *,
        duration_ms: float | None = None,
        detail: Mapping[str, Any] | None = None,
        error: str | None = None,
    ) -> None:
        """Log how a step ended."""
        self.session.execute(
            update(MaintenanceLog)
            .where(MaintenanceLog.id == entry)
            .values(status=status, duration=duration_ms, detail=dict(detail or {}), error=error),
            execution_options={"synchronize_session": False},
        )

    def mark_interrupted(self) -> list[str]:
        """Mark the steps of runs that did not end; only a run that is alone may.

        Returns:
            Operation and subject of each.
        """
        marked = self.session.execute(
            update(MaintenanceLog)
            .where(MaintenanceLog.status == "running")
            .values(status="interrupted")
            .returning(MaintenanceLog.operation, MaintenanceLog.subject),
            execution_options={"synchronize_session": False},
        )
        return [" ".join(filter(None, row)) for row in marked]

    def list_entries(
        self, *, operation: str | None = None, limit: int = 50
    ) -> Sequence[MaintenanceLog]:
        """List the steps, the newest first."""
        entries = select(MaintenanceLog).order_by(
            MaintenanceLog.timestamp.desc(), MaintenanceLog.id.desc()
        )
        if operation is not None:
            entries = entries.where(MaintenanceLog.operation == operation)
        return self.session.scalars(entries.limit(limit)).all()

    def find_last(self, operation: str, subject: str) -> Mapping[str, Any] | None:
        """Return the detail of the last time that a step was done, or None."""
        return self.session.scalar(
            select(MaintenanceLog.detail)
            .where(
                MaintenanceLog.operation == operation,
                MaintenanceLog.subject == subject,
                MaintenanceLog.status == "completed",
            )
            .order_by(MaintenanceLog.timestamp.desc())
            .limit(1)
        )

    def delete_entries(self, *, older_than_seconds: float, limit: int = 10_000) -> int:
        """Delete some of the old entries; return how many.

        Args:
            older_than_seconds: How long ago the steps began, at least.
            limit: At most this many: call it again until it says 0.
        """
        some = (
            select(MaintenanceLog.id)
            .where(MaintenanceLog.timestamp < func.now() - timedelta(seconds=older_than_seconds))
            .order_by(MaintenanceLog.timestamp)
            .limit(limit)
        )
        deleted = self.session.execute(
            delete(MaintenanceLog).where(MaintenanceLog.id.in_(some)).returning(MaintenanceLog.id),
            execution_options={"synchronize_session": False},
        )
        return len(deleted.all())

    def _run(self, statement: str, schema: str, name: str) -> None:
        """Run a statement about one table or index."""
        built = sql.SQL(statement).format(sql.Identifier(schema, name)).as_string()
        # The driver would read a percent sign of a name as a parameter.
        self.session.connection().exec_driver_sql(built.replace("%", "%%"))
