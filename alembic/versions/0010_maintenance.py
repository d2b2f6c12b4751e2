"""The log of maintenance, and the seed's function for a scheduler inside of the database."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

OTHERS = "rag_read_only, rag_read_write"

COMMENTS = {
    "run": "the run of pgcorpus maintenance that the step was a part of",
    "operation": "kind of the step, such as reindex",
    "subject": "table or index that it was done to; null for the whole database",
    "timestamp": "time at which the step began",
    "status": "skipped: there was nothing to do; interrupted: its process ended before the step",
    "duration": "milliseconds; null while the step runs, and where it was interrupted",
    "detail": "findings, and what was done",
    "error": "reason of a failure",
    "login": "login that did it",
}


def upgrade() -> None:
    op.execute("""
        CREATE TABLE maintenance_log (
            id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_maintenance_log PRIMARY KEY,
            run uuid NOT NULL DEFAULT gen_random_uuid(),
            operation varchar(50) NOT NULL,
            subject text,
            timestamp timestamptz NOT NULL DEFAULT clock_timestamp(),
            status varchar(20) NOT NULL DEFAULT 'running',
            duration double precision,
            detail jsonb NOT NULL DEFAULT '{}',
            error text,
            login text NOT NULL DEFAULT session_user,
            CONSTRAINT valid_maintenance_status CHECK (
                status IN ('running', 'completed', 'skipped', 'failed', 'interrupted'))
        )
    """)
    op.limit_times_v1("maintenance_log", "timestamp")
    op.comment_columns_v1("maintenance_log", COMMENTS)
    op.execute("CREATE INDEX idx_maintenance_log_timestamp ON maintenance_log (timestamp)")
    op.execute("""
        CREATE INDEX idx_maintenance_log_subject ON maintenance_log (operation, subject, timestamp)
    """)
    # Not for other logins: the size of an index of one scope tells how much a tenant has.
    op.execute(f"REVOKE ALL ON maintenance_log FROM {OTHERS}")
    op.execute(f"REVOKE ALL ON SEQUENCE maintenance_log_id_seq FROM {OTHERS}")

    # For pg_cron. It has the rights of its caller, and passes over tables that need others. The
    # tables are those of this schema, wherever it is.
    op.execute("""
        DO $make$ BEGIN
            EXECUTE replace($function$
                CREATE FUNCTION update_vector_statistics() RETURNS void LANGUAGE plpgsql
                SET search_path = pg_catalog, pg_temp AS $$
                DECLARE
                    began CONSTANT timestamptz := clock_timestamp();
                    analysed regclass;
                    tables integer := 0;
                BEGIN
                    FOR analysed IN
                        SELECT oid FROM pg_class
                        WHERE relnamespace = '@home'::regnamespace AND relkind IN ('r', 'p')
                            AND NOT relispartition
                            AND (pg_has_role(relowner, 'USAGE') OR CASE
                                WHEN current_setting('server_version_num')::integer >= 170000
                                THEN has_table_privilege(oid, 'MAINTAIN') ELSE false END)
                        ORDER BY relname
                    LOOP
                        EXECUTE 'ANALYZE ' || analysed;
                        tables := tables + 1;
                    END LOOP;
                    INSERT INTO @home.maintenance_log
                        (operation, timestamp, status, duration, detail)
                    VALUES ('statistics_update', began, 'completed',
                            extract(epoch FROM clock_timestamp() - began) * 1000,
                            jsonb_build_object('tables', tables));
                END $$
            $function$, '@home', quote_ident(current_schema()));
        END $make$
    """)
    op.execute("REVOKE EXECUTE ON FUNCTION update_vector_statistics() FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION update_vector_statistics() TO rag_admin")

    # A load leaves words in the pending lists of GIN indexes, which each search then reads, until
    # autovacuum comes. Only the owner of an index may sort them in, and an import is no owner. How
    # many there were is not told: they are of all scopes.
    op.execute("""
        DO $make$ BEGIN
            EXECUTE replace($function$
                CREATE FUNCTION merge_pending_entries(tables text[]) RETURNS void LANGUAGE sql
                SECURITY DEFINER SET search_path = pg_catalog, pg_temp
                BEGIN ATOMIC
                    SELECT count(gin_clean_pending_list(index.oid))
                    FROM pg_class AS index
                    JOIN pg_am ON pg_am.oid = index.relam AND amname = 'gin'
                    JOIN pg_index ON indexrelid = index.oid AND indisvalid
                    JOIN pg_class AS indexed ON indexed.oid = indrelid
                    WHERE indexed.relnamespace = '@home'::regnamespace
                        AND indexed.relname = ANY (tables)
                        AND pg_has_role(indexed.relowner, 'USAGE');
                END
            $function$, '@home', quote_ident(current_schema()));
        END $make$
    """)
    op.execute("""
        COMMENT ON FUNCTION merge_pending_entries IS
            'sorts what was written last into the GIN indexes of these tables, whosever it is'
    """)
    op.execute("REVOKE EXECUTE ON FUNCTION merge_pending_entries(text[]) FROM PUBLIC")
    op.execute("""
        GRANT EXECUTE ON FUNCTION merge_pending_entries(text[]) TO rag_read_write, rag_admin
    """)


def downgrade() -> None:
    op.execute("DROP FUNCTION merge_pending_entries")
    op.execute("DROP FUNCTION update_vector_statistics")
    op.execute("DROP TABLE maintenance_log")
