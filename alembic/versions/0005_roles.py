"""The groups rag_read_only, rag_read_write and rag_admin, and what each of them may do."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

MARK = "made by pgcorpus"
ROLES = ("rag_read_only", "rag_read_write", "rag_admin")

TABLES = (
    "framework_documents",
    "chunk_embeddings",
    "framework_metadata",
    "key_concepts",
    "document_concepts",
    "source_lines",
    "import_runs",
    "import_files",
    "import_transformations",
    "import_rejects",
    "query_performance_log",
    "conversations",
    "messages",
    "message_embeddings",
)
SETTINGS = ("embedding_models", "corpus_settings")  # an application reads them, however it is used
ONLY_READ = ("pgcorpus_version", "conversation_summaries")
SEQUENCES = ("import_transformations_id_seq", "query_performance_log_id_seq", "jobs_id_seq")

READ = "SELECT"
WRITE = "SELECT, INSERT, UPDATE, DELETE"
# Not TRIGGER and not REFERENCES: a trigger of an administrator's would run with the rights of
# whoever writes next, be it the owner, and a foreign key tells what it may not read.
ADMINISTER = f"{WRITE}, TRUNCATE, MAINTAIN"
# What a job is stays what it was enqueued as; a worker writes what becomes of it.
WORK_OFF = (
    "SELECT, INSERT, DELETE, UPDATE (status,priority,attempts,not_before,repeat_every,worker_id,"
    "lease_expires_at,started_at,finished_at,last_error,created_at)"
)

# Kind of object → names → what each of the ROLES may do. Bulk loads go through temporary tables.
RIGHTS = {
    "DATABASE": (("",), ("CONNECT", "CONNECT, TEMPORARY", "CONNECT, TEMPORARY")),
    "SCHEMA": (("",), ("USAGE", "USAGE", "USAGE")),
    "TABLE": (TABLES, (READ, WRITE, ADMINISTER)),
    "TABLE of jobs": (("jobs",), (READ, WORK_OFF, ADMINISTER)),
    "TABLE of settings": (SETTINGS, (READ, READ, ADMINISTER)),
    "TABLE only read": (ONLY_READ, (READ, READ, READ)),
    "SEQUENCE": (SEQUENCES, (READ, "USAGE, SELECT", "USAGE, SELECT, UPDATE")),
    # Those of revisions to come, made by whoever runs this one.
    "TABLES": (("",), (READ, WRITE, ADMINISTER)),
    "SEQUENCES": (("",), (READ, "USAGE, SELECT", "USAGE, SELECT, UPDATE")),
}


def _list_rights() -> str:
    """Write the RIGHTS as rows of (prefix, target, role, privileges), in the words of a GRANT."""
    rows = []
    for kind, (names, rights) in RIGHTS.items():
        for name in names:
            match kind.split()[0]:
                case "DATABASE":
                    target = "'', database"
                case "SCHEMA":
                    target = "'', 'SCHEMA ' || schema"
                case "TABLES" | "SEQUENCES" as new:
                    target = f"defaults, '{new}'"
                case existing:
                    target = f"'', '{existing} ' || schema || '.{name}'"
            rows += [
                f"({target}, '{role}', '{privileges}')"
                for role, privileges in zip(ROLES, rights, strict=True)
            ]
    return ",\n                    ".join(rows)


# The database is this one and the schema that in which the tables are made. Before PostgreSQL 17
# there is no MAINTAIN. "owner" is whose new tables the groups may use: in a downgrade whoever ran
# the upgrade, which need not be the same.
DECLARATIONS = """
    database CONSTANT text := 'DATABASE ' || quote_ident(current_database());
    schema CONSTANT text := quote_ident(current_schema());
    me CONSTANT regrole := quote_ident(current_user);
    owner CONSTANT regrole := coalesce((
        SELECT defaclrole FROM pg_default_acl, aclexplode(defaclacl)
        WHERE defaclnamespace = schema::regnamespace AND grantee = ANY (
            SELECT oid FROM pg_roles WHERE rolname = ANY (groups))
        GROUP BY defaclrole HAVING count(DISTINCT grantee) = cardinality(groups)
        ORDER BY defaclrole <> me LIMIT 1), me);
    defaults CONSTANT text := 'ALTER DEFAULT PRIVILEGES FOR ROLE ' || owner
        || ' IN SCHEMA ' || schema || ' ';
    given record;
"""
GROUPS = f"groups CONSTANT text[] := '{{{','.join(ROLES)}}}';"
WANTED = f"""
            WITH rights (prefix, target, role, privileges) AS (
                VALUES
                    {_list_rights()}
            ), wanted AS (
                SELECT prefix, target, role, privilege
                FROM rights, unnest(string_to_array(privileges, ', ')) AS privilege
                WHERE privilege <> 'MAINTAIN'
                    OR current_setting('server_version_num')::integer >= 170000
            )"""
HELD = """, held AS (
                SELECT prefix, target, rolname AS role, privilege_type AS privilege
                FROM (
                    SELECT '' AS prefix, database AS target, datacl AS acl FROM pg_database
                    WHERE datname = current_database()
                    UNION ALL
                    SELECT '', 'SCHEMA ' || schema, nspacl FROM pg_namespace
                    WHERE nspname = current_schema()
                    UNION ALL
                    SELECT '', CASE relkind WHEN 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END
                           || schema || '.' || quote_ident(relname), relacl
                    FROM pg_class WHERE relnamespace = schema::regnamespace
                    UNION ALL
                    SELECT defaults, CASE defaclobjtype WHEN 'S' THEN 'SEQUENCES' ELSE 'TABLES' END,
                           defaclacl
                    FROM pg_default_acl
                    WHERE defaclnamespace = schema::regnamespace
                        AND defaclrole = owner AND defaclobjtype IN ('r', 'S')
                ) AS secured, aclexplode(acl) JOIN pg_roles ON pg_roles.oid = grantee
            )"""

# What a group of that name was given before, by others, a downgrade must leave to it: it is noted
# in a table that there is only where there is something to note.
FORMER = """
    CREATE TABLE IF NOT EXISTS former_privileges (
        prefix text NOT NULL, target text NOT NULL, role text NOT NULL, privilege text NOT NULL)
"""

MARKED = f"""EXISTS (
                    SELECT FROM pg_roles WHERE rolname = made
                        AND shobj_description(oid, 'pg_authid') = '{MARK}')"""

CURE = "; ".join(f"CREATE ROLE {role} NOLOGIN" for role in ROLES)


# Roles are of the whole server, whose other databases may be upgraded or downgraded at the same
# moment: made or dropped by one of them in between, they are looked at again. From its first grant
# on a role cannot be dropped. All lock them in the same order, or two could wait for each other.
def upgrade() -> None:
    op.execute(f"""
        DO $$
        DECLARE
            {GROUPS}
            {DECLARATIONS}
            made text;
        BEGIN
            FOR attempt IN 1..10 LOOP
                BEGIN
                    FOREACH made IN ARRAY groups LOOP
                        CONTINUE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = made);
                        IF NOT (SELECT rolsuper OR rolcreaterole FROM pg_roles
                                WHERE rolname = current_user) THEN
                            RAISE insufficient_privilege USING MESSAGE = current_user
                                || ' may not make the roles of pgcorpus. A superuser makes them,'
                                || ' once for the whole server, with: {CURE}';
                        END IF;
                        EXECUTE 'CREATE ROLE ' || made
                            || ' NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS';
                        EXECUTE 'COMMENT ON ROLE ' || made || ' IS ''{MARK}''';
                    END LOOP;
                    FOR given IN {WANTED}{HELD}
                        SELECT wanted.*, held.privilege IS NOT NULL AS before
                        FROM wanted LEFT JOIN held USING (prefix, target, role, privilege)
                        ORDER BY target, array_position(groups, role)
                    LOOP
                        IF given.before THEN
                            {FORMER};
                            INSERT INTO former_privileges VALUES
                                (given.prefix, given.target, given.role, given.privilege);
                        ELSE
                            EXECUTE given.prefix || 'GRANT ' || given.privilege
                                || ' ON ' || given.target || ' TO ' || given.role;
                        END IF;
                    END LOOP;
                    EXIT;
                EXCEPTION WHEN duplicate_object OR unique_violation  -- made meanwhile
                        OR undefined_object OR internal_error THEN  -- dropped, or being changed
                    IF attempt = 10 THEN
                        RAISE;
                    END IF;
                END;
            END LOOP;
            -- To who may not grant them PostgreSQL only gives a warning.
            FOREACH made IN ARRAY groups LOOP
                IF NOT (has_database_privilege(made, current_database(), 'CONNECT')
                        AND has_schema_privilege(made, current_schema(), 'USAGE')) THEN
                    RAISE insufficient_privilege USING MESSAGE = current_user
                        || ' may not let ' || made || ' into the database';
                END IF;
            END LOOP;
        END $$
    """)


# Dropped are those that pgcorpus made, when nobody is a member of them and nothing in any database
# refers to them. PostgreSQL 16 makes whoever creates a role a member that cannot use it.
def downgrade() -> None:
    op.execute(f"""
        DO $$
        DECLARE
            {GROUPS}
            {DECLARATIONS}
            made text;
            reason text;
            detail text;
        BEGIN
            -- A comment locks its role for all databases of the server until the transaction ends.
            -- Two downgrades at once would each find the rights that the other is about to take
            -- back, and leave the role to it.
            FOREACH made IN ARRAY groups LOOP
                CONTINUE WHEN NOT {MARKED};
                BEGIN
                    EXECUTE 'COMMENT ON ROLE ' || made || ' IS ''{MARK}''';
                EXCEPTION WHEN insufficient_privilege OR undefined_object THEN
                    NULL;  -- not to be dropped, or dropped
                END;
            END LOOP;

            {FORMER};
            FOR given IN {WANTED}
                SELECT * FROM wanted WHERE role = ANY (SELECT rolname FROM pg_roles)
                EXCEPT SELECT * FROM former_privileges
            LOOP
                EXECUTE given.prefix || 'REVOKE ' || given.privilege
                    || ' ON ' || given.target || ' FROM ' || given.role;
            END LOOP;
            DROP TABLE former_privileges;

            FOREACH made IN ARRAY groups LOOP
                CONTINUE WHEN NOT {MARKED};
                BEGIN
                    IF EXISTS (
                        SELECT FROM pg_auth_members AS membership
                        WHERE made::regrole IN (member, roleid) AND NOT to_jsonb(membership)
                            @> '{{"inherit_option": false, "set_option": false}}'
                    ) THEN
                        RAISE dependent_objects_still_exist USING MESSAGE = 'it has members';
                    END IF;
                    EXECUTE 'DROP ROLE ' || made;
                EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN
                    GET STACKED DIAGNOSTICS
                        reason = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
                    RAISE NOTICE USING DETAIL = detail,
                        MESSAGE = 'the role ' || made || ' stays: ' || reason;
                END;
            END LOOP;
        END $$
    """)
