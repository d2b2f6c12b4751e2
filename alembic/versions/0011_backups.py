"""Backups: their log, and the role that reads the rows of every scope while one is made."""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

MARK = "made by pgcorpus"

COMMENTS = {
    "kind": "full: the whole database",
    "finished_at": "time of its end, of a failure too",
    "location": "name of its folder, below the folder of backups",
    "bytes": "size of all its files",
    "rows": "number of rows of all tables",
    "error": "reason of a failure",
    "verified_at": "time of the last verification that found no difference",
    "encrypted": "true if its files are encrypted",
}

# The guard of revision 0006, asked before any condition of a caller, lets the reader of backups
# pass: its own policy shows it all rows.
ASKED = "current_setting('app.identity', true)"
KNOWN_FIRST = (
    "((SELECT CASE WHEN app_scope() IS NOT NULL THEN jsonb_build_object(app_scope(), true) END))"
    "[scope] IS NOT NULL"
    f" OR ((SELECT CASE WHEN {ASKED} IS NOT NULL THEN jsonb_build_object({ASKED}, true) END))"
    "[identity] IS NOT NULL"
    " OR (SELECT pg_has_role('rag_admin', 'USAGE'))"
)
IS_READER = "(SELECT starts_with(current_user::text, 'rag_backup_'))"


def upgrade() -> None:
    _log()
    op.execute(f"ALTER POLICY known_first ON users USING ({KNOWN_FIRST} OR {IS_READER})")
    _reader()


def _log() -> None:
    op.execute("""
        CREATE TABLE backup_log (
            id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_backup_log PRIMARY KEY,
            kind text NOT NULL DEFAULT 'full',
            started_at timestamptz NOT NULL DEFAULT now(),
            finished_at timestamptz,
            location text NOT NULL,
            bytes bigint,
            rows bigint,
            status text NOT NULL DEFAULT 'running',
            error text,
            verified_at timestamptz,
            encrypted boolean NOT NULL DEFAULT false,
            CONSTRAINT valid_kind CHECK (kind IN ('full')),
            CONSTRAINT valid_status CHECK (
                status IN ('running', 'complete', 'verified', 'failed')),
            CONSTRAINT finished_unless_running CHECK (
                (status = 'running') = (finished_at IS NULL)),
            CONSTRAINT non_negative_sizes CHECK (bytes >= 0 AND rows >= 0)
        )
    """)
    op.execute("CREATE INDEX idx_backup_log_finished_at ON backup_log (finished_at)")
    op.comment_columns_v1("backup_log", COMMENTS)
    # What the default privileges gave: a service reads how old the last good backup is, and
    # cannot claim one.
    op.execute("""
        REVOKE INSERT, UPDATE, DELETE ON backup_log FROM rag_read_write
    """)
    op.execute("REVOKE ALL ON SEQUENCE backup_log_id_seq FROM rag_read_only, rag_read_write")


def _reader() -> None:
    """Create the function that lets the role of backups read all that is to be backed up.

    Every backup calls it first. So the first one makes the role, tables that an application adds
    later get its policy, and a copy of the database gets a role of its own. Nobody is a member of
    the role but while a backup is made.
    """
    op.execute(f"""
        CREATE FUNCTION let_backups_read() RETURNS SETOF text LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp SET lock_timeout = '10s' AS $$
        DECLARE
            reader CONSTANT name := 'rag_backup_' || current_database();
            given record;
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = reader) THEN
                IF NOT (SELECT rolsuper OR rolcreaterole FROM pg_roles
                        WHERE rolname = current_user) THEN
                    RAISE insufficient_privilege USING MESSAGE = current_user
                        || ' may not make the role ' || reader || '. A superuser makes it, with:'
                        || ' CREATE ROLE ' || quote_ident(reader) || ' NOLOGIN NOINHERIT; GRANT '
                        || quote_ident(reader) || ' TO ' || quote_ident(current_user)
                        || ' WITH ADMIN OPTION';
                END IF;
                EXECUTE 'CREATE ROLE ' || quote_ident(reader) || ' NOLOGIN NOSUPERUSER NOCREATEDB'
                    || ' NOCREATEROLE NOBYPASSRLS NOINHERIT';
                EXECUTE 'COMMENT ON ROLE ' || quote_ident(reader) || ' IS ''{MARK}''';
            ELSIF (SELECT rolcanlogin OR rolsuper OR rolbypassrls OR rolcreaterole FROM pg_roles
                   WHERE rolname = reader) THEN
                RAISE insufficient_privilege USING MESSAGE = 'the role ' || reader
                    || ' must neither log in nor have rights of its own: take them from it';
            END IF;
            -- A copy of a database has the policies and grants of the original's role.
            FOR given IN
                SELECT pg_class.oid::regclass::text AS name, relkind, rolname
                FROM pg_class, aclexplode(relacl) JOIN pg_roles ON pg_roles.oid = grantee
                WHERE starts_with(rolname, 'rag_backup_') AND rolname <> reader
                    AND pg_has_role(relowner, 'USAGE')
            LOOP
                EXECUTE 'REVOKE SELECT ON '
                    || CASE given.relkind WHEN 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END
                    || given.name || ' FROM ' || quote_ident(given.rolname);
            END LOOP;
            FOR given IN
                SELECT polrelid::regclass::text AS name FROM pg_policy
                JOIN pg_class ON pg_class.oid = polrelid
                WHERE polname = 'backup' AND pg_has_role(relowner, 'USAGE')
                    AND NOT polroles @> ARRAY[quote_ident(reader)::regrole::oid]
            LOOP
                EXECUTE 'ALTER POLICY backup ON ' || given.name || ' TO ' || quote_ident(reader);
            END LOOP;
            FOR given IN
                SELECT pg_class.oid::regclass::text AS name, relkind, nspname,
                       relrowsecurity AND NOT EXISTS (
                           SELECT FROM pg_policy
                           WHERE polrelid = pg_class.oid AND polname = 'backup') AS hidden,
                       NOT CASE WHEN relkind = 'S'
                           THEN has_sequence_privilege(reader, pg_class.oid, 'SELECT')
                           ELSE has_table_privilege(reader, pg_class.oid, 'SELECT') END AS closed,
                       NOT has_schema_privilege(reader, relnamespace, 'USAGE') AS outside
                FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
                WHERE relkind IN ('r', 'p', 'S', 'v', 'm') AND relpersistence = 'p'
                    AND nspname <> 'information_schema' AND nspname !~ '^(pg_|pgcorpus_eval_)'
                    AND pg_has_role(relowner, 'USAGE')
                    AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass
                                    AND objid = pg_class.oid AND deptype = 'e')
                ORDER BY 1
            LOOP
                IF given.outside THEN
                    EXECUTE 'GRANT USAGE ON SCHEMA ' || quote_ident(given.nspname)
                        || ' TO ' || quote_ident(reader);
                END IF;
                IF given.closed THEN
                    EXECUTE 'GRANT SELECT ON '
                        || CASE given.relkind WHEN 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END
                        || given.name || ' TO ' || quote_ident(reader);
                END IF;
                IF given.hidden THEN
                    EXECUTE 'CREATE POLICY backup ON ' || given.name || ' FOR SELECT TO '
                        || quote_ident(reader) || ' USING (true)';
                END IF;
                IF given.closed OR given.hidden THEN
                    RETURN NEXT given.name;
                END IF;
            END LOOP;
        END $$
    """)
    op.execute("REVOKE EXECUTE ON FUNCTION let_backups_read FROM PUBLIC")
    op.execute("""
        COMMENT ON FUNCTION let_backups_read() IS
            'lets the role of backups read every table of this login; gives those it could not'
    """)


def downgrade() -> None:
    op.execute("DROP FUNCTION let_backups_read")
    op.execute(f"""
        DO $$
        DECLARE
            reader regrole;
            given record;
            reason text;
        BEGIN
            FOR given IN
                SELECT polrelid::regclass AS name, polroles[1]::regrole AS role
                FROM pg_policy WHERE polname = 'backup' AND polrelid IN (
                    SELECT oid FROM pg_class WHERE pg_has_role(relowner, 'USAGE'))
            LOOP
                reader := given.role;
                EXECUTE 'DROP POLICY backup ON ' || given.name;
            END LOOP;
            FOR given IN
                SELECT pg_class.oid::regclass AS name, relkind FROM pg_class, aclexplode(relacl)
                WHERE grantee = reader
            LOOP
                EXECUTE 'REVOKE ALL ON ' || CASE given.relkind WHEN 'S' THEN 'SEQUENCE '
                    ELSE 'TABLE ' END || given.name || ' FROM ' || reader;
            END LOOP;
            FOR given IN
                SELECT pg_namespace.oid::regnamespace AS name
                FROM pg_namespace, aclexplode(nspacl) WHERE grantee = reader
            LOOP
                EXECUTE 'REVOKE ALL ON SCHEMA ' || given.name || ' FROM ' || reader;
            END LOOP;
            IF shobj_description(reader, 'pg_authid') = '{MARK}' THEN
                BEGIN
                    EXECUTE 'DROP ROLE ' || reader;
                EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN
                    GET STACKED DIAGNOSTICS reason = MESSAGE_TEXT;
                    RAISE NOTICE USING MESSAGE = 'the role ' || reader || ' stays: ' || reason;
                END;
            END IF;
        END $$
    """)
    op.execute(f"ALTER POLICY known_first ON users USING ({KNOWN_FIRST})")
    op.execute("DROP TABLE backup_log")
