"""The audit log: written by triggers, append-only, partitioned by month, sealed in batches."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

GROUPS = "rag_read_only, rag_read_write, rag_admin"

COMMENTS = {
    "security_audit_log": {
        "position": "counts entries; those of a transaction that was rolled back are missing",
        "timestamp": "time of the entry, which is not the time of the commit",
        "user_name": "login, whatever role was SET; (unknown) for a role that had changed",
        "actor": "user it was done for, as the application says in app.actor: a claim, not a proof",
        "action": "INSERT, UPDATE, DELETE, TRUNCATE, or the command of a change of the schema",
        "record_id": "the key of the row, its columns separated by commas; else the object",
        "old_values": "row before, of an UPDATE what changed; secrets and vectors as keyed hashes",
        "new_values": "row after, of an UPDATE what changed; secrets and vectors as keyed hashes",
        "transaction_id": "transaction id with its epoch, of the cluster that wrote it",
    },
    "audit_seals": {
        "number": "counts seals, without a gap",
        "sealed_by": "login",
        "kind": "rows: a batch was sealed; retention: months were dropped",
        "last_position": "entries up to here are sealed, but those in flight",
        "oldest_transaction": "entries from this one on may have been in flight",
        "next_transaction": "transaction id from which entries are of another cluster",
        "months": "month to the number of its entries and the SHA-256 over them",
        "previous": "the hash of the seal before",
        "hash": "SHA-256 of the seal, the hash before included",
        "signature": "HMAC-SHA256 of the hash with PGCORPUS_AUDIT_KEY, which no database knows",
    },
    "audit_state": {
        "inner_block": "the key of the hashes in the log, combined with 0x36 (HMAC-SHA256)",
        "outer_block": "the key, combined with 0x5c",
        "upkeep": "true only while entries are moved out of the default partition",
        "roles": "the roles of the server, as they were when last looked at",
    },
}

VECTORS = {"hashed": "content_hash"}
AUDITED = {
    "framework_documents": {},
    "framework_metadata": {},
    "key_concepts": {},
    "document_concepts": {"key": "document_id,concept_id"},
    "source_lines": {},
    "chunk_embeddings": VECTORS,
    "conversations": {"hashed": "title,record_hash"},
    "messages": {"hashed": "content,metadata"},
    "message_embeddings": VECTORS,
    "embedding_models": {"key": "name"},
    "corpus_settings": {"key": "corpus"},
    "tenants": {"hashed": "settings"},
    "users": {"hashed": "external_id,email,display_name"},
    "memory_nodes": {
        "key": "scope,id",
        "hashed": "conversation_id,human_content,assistant_content,tags,cluster_label,extra",
        "left_out": "access_count,last_accessed,scope",
    },
    "episodic_memories": {
        "key": "scope,id",
        "hashed": "title,messages,llm_tags,emotional_arc,extra",
        "left_out": "access_count,last_accessed,scope",
    },
    "memory_embeddings": VECTORS | {"key": "scope,id"},
    "episode_embeddings": VECTORS | {"key": "scope,id"},
    # Or the owner could excuse themselves, and leave no trace of it.
    "audit_state": {"key": "only_row", "hashed": "inner_block,outer_block,roles"},
}

DDL_EVENTS = ("ddl_command_end", "sql_drop")

# The text of an entry that its hash is made of, the same on every server and in every time zone.
ENTRY = """
    jsonb_build_array(
        position, id, extract(epoch FROM timestamp) * 1000000, user_name, actor, action, table_name,
        record_id, old_values, new_values, ip_address, application_name, transaction_id)
"""


def upgrade() -> None:
    _tables()
    _entries_of_rows()
    _entries_of_the_schema()
    _entries_of_roles()
    _append_only()
    _partitions()
    _seals()
    _encryption()
    for table, comments in COMMENTS.items():
        op.comment_columns_v1(table, comments)
    op.execute("SELECT audit_record_roles()")
    for table, audited in AUDITED.items():
        op.audit_v1(table, **audited)
    _event_triggers()


def make(function: str) -> None:
    """Make a function that names its schema, and that of pgcrypto, wherever they are.

    Its search_path is pinned: a caller cannot shadow what it names.
    """
    op.execute(f"""
        DO $make$ BEGIN
            EXECUTE replace(replace($function${function}$function$,
                '@home', quote_ident(current_schema())),
                '@pgcrypto', (SELECT extnamespace::regnamespace::text FROM pg_extension
                              WHERE extname = 'pgcrypto'));
        END $make$
    """)


def _tables() -> None:
    # The key of the hashes, and what was seen last of the roles: nobody reads it but the owner.
    op.execute("""
        CREATE TABLE audit_state (
            only_row boolean DEFAULT true CONSTRAINT pk_audit_state PRIMARY KEY,
            inner_block bytea NOT NULL,
            outer_block bytea NOT NULL,
            upkeep boolean NOT NULL DEFAULT false,
            roles jsonb,
            CONSTRAINT single_row CHECK (only_row)
        )
    """)
    op.execute("""
        WITH random AS MATERIALIZED (
            SELECT sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))
                || decode(repeat('00', 32), 'hex') AS key
        )
        INSERT INTO audit_state (inner_block, outer_block)
        SELECT string_agg(set_byte(decode('00', 'hex'), 0, get_byte(key, n) # 54), '' ORDER BY n),
               string_agg(set_byte(decode('00', 'hex'), 0, get_byte(key, n) # 92), '' ORDER BY n)
        FROM random, generate_series(0, 63) AS n
    """)
    op.execute("""
        CREATE TABLE security_audit_log (
            position bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
            id uuid NOT NULL DEFAULT gen_random_uuid(),
            timestamp timestamptz NOT NULL DEFAULT clock_timestamp(),
            user_name text NOT NULL,
            actor text,
            action text NOT NULL,
            table_name text,
            record_id text,
            old_values jsonb,
            new_values jsonb,
            ip_address inet,
            application_name text,
            transaction_id bigint NOT NULL,
            CONSTRAINT pk_security_audit_log PRIMARY KEY (timestamp, id)
        ) PARTITION BY RANGE (timestamp)
    """)
    op.execute("""
        CREATE INDEX idx_security_audit_log_position ON security_audit_log (position)
    """)
    op.execute("""
        CREATE INDEX idx_security_audit_log_transaction ON security_audit_log
        USING brin (transaction_id)
    """)
    # By the last column of the key: of a memory that is its id, without the scope before it.
    op.execute("""
        CREATE INDEX idx_security_audit_log_record ON security_audit_log
        (split_part(record_id, ',', -1))
    """)
    op.execute("""
        CREATE INDEX idx_security_audit_log_table ON security_audit_log (table_name, timestamp)
    """)
    op.execute("""
        CREATE INDEX idx_security_audit_log_actor ON security_audit_log (actor, timestamp)
        WHERE actor IS NOT NULL
    """)
    op.execute("""
        CREATE TABLE audit_seals (
            number bigint CONSTRAINT pk_audit_seals PRIMARY KEY,
            sealed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
            sealed_by text NOT NULL,
            kind text NOT NULL,
            last_position bigint NOT NULL,
            oldest_transaction bigint NOT NULL,
            next_transaction bigint NOT NULL,
            months jsonb NOT NULL,
            previous bytea,
            hash bytea NOT NULL,
            signature bytea,
            CONSTRAINT valid_seal_kind CHECK (kind IN ('rows', 'retention'))
        )
    """)
    op.execute("""
        CREATE INDEX idx_audit_seals_last_position ON audit_seals (last_position, number)
    """)
    # What the default privileges gave. Entries come from triggers alone.
    op.execute(f"REVOKE ALL ON audit_state, security_audit_log, audit_seals FROM {GROUPS}")
    op.execute(f"REVOKE ALL ON SEQUENCE security_audit_log_position_seq FROM {GROUPS}")
    op.execute("GRANT SELECT ON security_audit_log, audit_seals TO rag_admin")


def _entries_of_rows() -> None:
    """Record each statement by one INSERT, whatever wrote: the ORM, COPY, psql or a cascade.

    Columns are read from the catalogue, so that one that a later revision adds is recorded, too.
    Changes are told by the image of a value, which every type has. A row whose key was changed
    is two: one without its new, one without its old values.
    """
    make("""
        CREATE FUNCTION audit_rows() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
        DECLARE
            key CONSTANT text := TG_ARGV[0];
            hashed CONSTANT text[] := string_to_array(TG_ARGV[1], ',');
            left_out CONSTANT text[] := string_to_array(TG_ARGV[2], ',');
            shown text;
            unchanged text;
            state record;
            entries text;
        BEGIN
            IF TG_OP = 'DELETE' THEN
                PERFORM FROM former LIMIT 1;
            ELSIF TG_OP <> 'TRUNCATE' THEN
                PERFORM FROM current LIMIT 1;
            END IF;
            IF TG_OP <> 'TRUNCATE' AND NOT FOUND THEN
                RETURN NULL;
            END IF;

            SELECT string_agg(
                       CASE WHEN bytes IS NULL THEN 'r.' || quote_ident(attname)
                       ELSE '''hmac-sha256:'' || encode(sha256($9 || sha256($8 || ' || bytes
                            || ')), ''hex'') AS ' || quote_ident(attname) END, ', '),
                   string_agg('CASE WHEN record_image_eq(ROW(former.' || quote_ident(attname)
                       || '), ROW(current.' || quote_ident(attname) || ')) THEN '
                       || quote_literal(attname) || ' END', ', ')
            INTO shown, unchanged
            FROM (
                SELECT attname, attnum, CASE
                    WHEN typname IN ('vector', 'halfvec', 'sparsevec')
                        THEN typsend || '(r.' || quote_ident(attname) || ')'
                    WHEN attname <> ALL (hashed) THEN NULL
                    WHEN typname = 'bytea' THEN 'r.' || quote_ident(attname)
                    ELSE 'convert_to(r.' || quote_ident(attname) || '::text, ''UTF8'')' END AS bytes
                FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
                WHERE attrelid = TG_RELID AND attnum > 0 AND NOT attisdropped
                    AND attgenerated = '' AND typname <> 'tsvector' AND attname <> ALL (left_out)
                ORDER BY attnum
            ) AS recorded;
            SELECT inner_block, outer_block INTO state FROM @home.audit_state;

            -- Values of either side, as an expression over "r".
            shown := '(SELECT to_jsonb(shown) FROM (SELECT ' || shown || ') AS shown)';
            entries := CASE TG_OP
                WHEN 'INSERT' THEN
                    'concat_ws('','', ' || key || '), NULL, ' || shown || ' FROM current AS r'
                WHEN 'DELETE' THEN
                    'concat_ws('','', ' || key || '), ' || shown || ', NULL FROM former AS r'
                WHEN 'UPDATE' THEN
                    'concat_ws('','', ' || key || '),'
                    || ' CASE WHEN former IS DISTINCT FROM NULL THEN before - same END,'
                    || ' CASE WHEN current IS DISTINCT FROM NULL THEN after - same END'
                    || ' FROM former FULL JOIN current USING (' || key || ') CROSS JOIN'
                    || ' LATERAL (SELECT ARRAY[' || unchanged || '] AS same) AS compared CROSS JOIN'
                    || ' LATERAL (SELECT ' || shown || ' AS before FROM (SELECT former.*) AS r)'
                    || ' AS old CROSS JOIN'
                    || ' LATERAL (SELECT ' || shown || ' AS after FROM (SELECT current.*) AS r)'
                    || ' AS new WHERE array_position(same, NULL) IS NOT NULL'
                ELSE 'NULL, NULL, NULL'  -- TRUNCATE
            END;
            EXECUTE 'INSERT INTO @home.security_audit_log (user_name, actor, action, table_name,'
                || ' transaction_id, ip_address, application_name, record_id, old_values,'
                || ' new_values) SELECT $1, $2, $3, $4, $5, $6, $7, ' || entries
            USING session_user::text, nullif(current_setting('app.actor', true), ''), TG_OP,
                TG_TABLE_NAME::text, pg_current_xact_id()::text::bigint, inet_client_addr(),
                nullif(current_setting('application_name'), ''),
                state.inner_block, state.outer_block;
            RETURN NULL;
        END $$
    """)
    # A trigger fires without this right, and cannot be made without it: nobody else attaches the
    # function to a table of their own, and writes entries that never happened.
    op.execute("REVOKE EXECUTE ON FUNCTION audit_rows() FROM PUBLIC")


def _entries_of_the_schema() -> None:
    """Changes of the schema, and of rights on it; not of temporary objects.

    The statement is kept only where it is the change itself, alone, and names no secret: what else
    a client sends may hold the texts of users. The function must never keep the owner from changing
    the schema, whatever has become of the log.
    """
    make("""
        CREATE FUNCTION audit_ddl() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp AS $$
        DECLARE
            query CONSTANT text := btrim(current_query(), E' \\n\\t;');
            statement CONSTANT text := CASE
                WHEN starts_with(upper(query), split_part(TG_TAG, ' ', 1))
                    AND query !~* ';|password|secret|token|credential' THEN left(query, 2000) END;
            changed record;
        BEGIN
            FOR changed IN EXECUTE CASE TG_EVENT WHEN 'sql_drop' THEN
                'SELECT object_type AS kind, object_identity AS identity,'
                || ' CASE WHEN object_type IN (''table'', ''view'', ''materialized view'')'
                || ' OR cardinality(address_names) = 3 THEN address_names[2] END::name AS relation'
                || ' FROM pg_event_trigger_dropped_objects()'
                || ' WHERE NOT is_temporary AND (original OR object_type = ''table'')'
            ELSE
                'SELECT object_type AS kind, object_identity AS identity, ('
                || ' SELECT relname FROM pg_class WHERE oid = CASE classid'
                || ' WHEN ''pg_class''::regclass THEN coalesce('
                || ' (SELECT indrelid FROM pg_index WHERE indexrelid = objid), objid)'
                || ' WHEN ''pg_trigger''::regclass THEN'
                || ' (SELECT tgrelid FROM pg_trigger WHERE pg_trigger.oid = objid)'
                || ' WHEN ''pg_policy''::regclass THEN'
                || ' (SELECT polrelid FROM pg_policy WHERE pg_policy.oid = objid) END'
                || ' ) AS relation FROM pg_event_trigger_ddl_commands()'
                || ' WHERE NOT in_extension AND schema_name IS DISTINCT FROM ''pg_temp'''
            END LOOP
                INSERT INTO @home.security_audit_log (
                    user_name, actor, action, table_name, record_id, new_values, transaction_id,
                    ip_address, application_name)
                VALUES (
                    session_user, nullif(current_setting('app.actor', true), ''), TG_TAG,
                    changed.relation, changed.identity,
                    jsonb_strip_nulls(
                        jsonb_build_object('object', changed.kind, 'statement', statement)),
                    pg_current_xact_id()::text::bigint, inet_client_addr(),
                    nullif(current_setting('application_name'), ''));
            END LOOP;
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING USING
                MESSAGE = 'this change is not in security_audit_log: ' || SQLERRM;
        END $$
    """)
    op.execute("REVOKE EXECUTE ON FUNCTION audit_ddl() FROM PUBLIC")


def _event_triggers() -> None:
    """Make event triggers where the server allows it; elsewhere pgcorpus doctor tells."""
    for event in DDL_EVENTS:
        op.execute(f"""
            DO $$ BEGIN
                CREATE EVENT TRIGGER pgcorpus_audit_{event} ON {event}
                EXECUTE FUNCTION audit_ddl();
            EXCEPTION WHEN insufficient_privilege THEN
                RAISE NOTICE USING MESSAGE =
                    'changes of the schema are not recorded: ' || SQLERRM;
            END $$
        """)


def _entries_of_roles() -> None:
    """Roles are of the whole server, where nothing fires: what is different from the last look."""
    make("""
        CREATE FUNCTION audit_record_roles() RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
        DECLARE
            before jsonb;
            found jsonb;
            recorded integer;
        BEGIN
            SELECT roles INTO before FROM @home.audit_state FOR UPDATE;
            SELECT jsonb_object_agg(rolname, to_jsonb(role) - 'rolname' - 'oid' - 'rolpassword'
                || jsonb_build_object('member_of', (
                    SELECT coalesce(jsonb_agg(DISTINCT roleid::regrole::text
                        || CASE WHEN admin_option THEN ' WITH ADMIN' ELSE '' END), '[]')
                    FROM pg_auth_members WHERE member = role.oid)))
            INTO found FROM pg_roles AS role WHERE rolname !~ '^pg_';

            INSERT INTO @home.security_audit_log (
                user_name, action, table_name, record_id, old_values, new_values, transaction_id)
            SELECT '(unknown)', CASE WHEN former IS NULL THEN 'CREATE ROLE'
                       WHEN current IS NULL THEN 'DROP ROLE' ELSE 'ALTER ROLE' END,
                   'pg_roles', name, former - same, current - same,
                   pg_current_xact_id()::text::bigint
            FROM jsonb_each(before) AS old (name, former)
            FULL JOIN jsonb_each(found) AS new (name, current) USING (name)
            CROSS JOIN LATERAL (
                SELECT ARRAY(SELECT key FROM jsonb_each(former) AS each (key, value)
                             WHERE value = current -> key) AS same) AS compared
            WHERE before IS NOT NULL AND former IS DISTINCT FROM current;
            GET DIAGNOSTICS recorded = ROW_COUNT;
            IF before IS DISTINCT FROM found THEN
                UPDATE @home.audit_state SET roles = found;
            END IF;
            RETURN recorded;
        END $$
    """)
    _for_administrators("audit_record_roles()")


def _append_only() -> None:
    """Also for the owner, until the owner disables these triggers: no seal fits then.

    Nothing is excused but what empties the default partition, and to begin it is an entry.
    """
    make("""
        CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp AS $$
        BEGIN
            IF TG_LEVEL = 'ROW' AND TG_OP = 'DELETE'
                AND TG_TABLE_NAME = 'security_audit_log_default'
                AND (SELECT upkeep FROM @home.audit_state)
            THEN
                RETURN OLD;
            END IF;
            RAISE insufficient_privilege USING
                MESSAGE = TG_TABLE_NAME || ' is only appended to',
                HINT = 'Old months are dropped by: pgcorpus audit retain';
        END $$
    """)
    # Every partition gets its own copy of a trigger for rows, but not of one for statements.
    op.execute("""
        CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON security_audit_log
        FOR EACH ROW EXECUTE FUNCTION audit_refuse()
    """)
    op.execute("""
        CREATE TRIGGER no_truncate BEFORE TRUNCATE ON security_audit_log
        FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()
    """)
    # A seal is signed after it was made.
    op.execute("""
        CREATE TRIGGER append_only BEFORE UPDATE ON audit_seals FOR EACH ROW
        WHEN (OLD.signature IS NOT NULL
              OR to_jsonb(OLD) - 'signature' <> to_jsonb(NEW) - 'signature')
        EXECUTE FUNCTION audit_refuse()
    """)
    op.execute("""
        CREATE TRIGGER no_delete BEFORE DELETE OR TRUNCATE ON audit_seals
        FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()
    """)


def _partitions() -> None:
    """Keep a partition for each month in UTC: this, the next two, and any with entries.

    It is filled before it is attached, from the default partition, which takes what fits no other.
    From the move to the attachment nothing is recorded: it would be an entry that fits no other.
    """
    make(f"""
        CREATE FUNCTION audit_make_partitions() RETURNS SETOF text LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
        DECLARE
            month timestamptz;
            made text;
        BEGIN
            FOR month IN
                SELECT date_trunc('month', timestamp) FROM @home.security_audit_log_default
                WHERE isfinite(timestamp)
                UNION SELECT date_trunc('month', now()) + make_interval(months => ahead)
                FROM generate_series(0, 2) AS ahead
                ORDER BY 1
            LOOP
                made := 'security_audit_log_' || to_char(month, 'YYYY_MM');
                CONTINUE WHEN to_regclass('@home.' || made) IS NOT NULL;
                EXECUTE 'CREATE TABLE @home.' || made || ' (LIKE @home.security_audit_log)';
                EXECUTE 'REVOKE ALL ON @home.' || made || ' FROM {GROUPS}';
                EXECUTE 'GRANT SELECT ON @home.' || made || ' TO rag_admin';
                EXECUTE 'CREATE TRIGGER no_truncate BEFORE TRUNCATE ON @home.' || made
                    || ' FOR EACH STATEMENT EXECUTE FUNCTION @home.audit_refuse()';
                IF EXISTS (SELECT FROM @home.security_audit_log_default
                           WHERE date_trunc('month', timestamp) = month) THEN
                    UPDATE @home.audit_state SET upkeep = true;
                END IF;
                EXECUTE 'WITH moved AS (DELETE FROM @home.security_audit_log_default'
                    || ' WHERE date_trunc(''month'', timestamp) = $1 RETURNING *)'
                    || ' INSERT INTO @home.' || made || ' SELECT * FROM moved' USING month;
                EXECUTE 'ALTER TABLE @home.security_audit_log ATTACH PARTITION @home.' || made
                    || ' FOR VALUES FROM (' || quote_literal(month)
                    || ') TO (' || quote_literal(month + interval '1 month') || ')';
                UPDATE @home.audit_state SET upkeep = false WHERE upkeep;
                RETURN NEXT made;
            END LOOP;
        END $$
    """)
    _for_administrators("audit_make_partitions()")
    op.execute("""
        CREATE TABLE security_audit_log_default PARTITION OF security_audit_log DEFAULT
    """)
    op.execute(f"REVOKE ALL ON security_audit_log_default FROM {GROUPS}")
    op.execute("GRANT SELECT ON security_audit_log_default TO rag_admin")
    op.execute("""
        CREATE TRIGGER no_truncate BEFORE TRUNCATE ON security_audit_log_default
        FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()
    """)
    op.execute("SELECT audit_make_partitions()")


def _seals() -> None:
    """Batches of entries, sealed in a chain; docs/explanation/audit.md says why it holds.

    Sealed is position <= last_position, unless its transaction was in flight: then it is not below
    oldest_transaction, but below next_transaction. That is the transaction that seals, and it must
    get its number after the last position was read: whoever wrote an entry so low had a number
    before. A higher one can only have been restored from another cluster, and is sealed as well.
    """
    make("""
        CREATE FUNCTION audit_append_seal(
            kind text, last_position bigint, oldest bigint, next bigint, months jsonb
        ) RETURNS @home.audit_seals LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp AS $$
        DECLARE
            seal @home.audit_seals;
        BEGIN
            SELECT number, hash INTO seal.number, seal.previous
            FROM @home.audit_seals ORDER BY number DESC LIMIT 1;
            seal.number := coalesce(seal.number, 0) + 1;
            seal.sealed_at := clock_timestamp();
            seal.sealed_by := session_user;
            seal.kind := kind;
            seal.last_position := last_position;
            seal.oldest_transaction := oldest;
            seal.next_transaction := next;
            seal.months := months;
            seal.hash := sha256(convert_to(jsonb_build_array(
                seal.number, extract(epoch FROM seal.sealed_at) * 1000000, seal.sealed_by,
                seal.kind, seal.last_position, seal.oldest_transaction, seal.next_transaction,
                seal.months, encode(seal.previous, 'hex'))::text, 'UTF8'));
            INSERT INTO @home.audit_seals SELECT (seal).*;
            RETURN seal;
        END $$
    """)
    op.execute("REVOKE EXECUTE ON FUNCTION audit_append_seal FROM PUBLIC")
    make(f"""
        CREATE FUNCTION audit_seal(batch integer) RETURNS SETOF @home.audit_seals
        LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
        DECLARE
            top bigint;
            oldest bigint;
            next bigint;
            sealed_to bigint;
            upto bigint;
            were_in_flight boolean;
            before @home.audit_seals;
            found jsonb;
        BEGIN
            IF batch IS NULL OR batch < 1 THEN
                RAISE invalid_parameter_value USING MESSAGE =
                    'a seal covers at least one position: the batch is 1 or more, not '
                    || coalesce(batch::text, 'null');
            END IF;
            IF current_setting('transaction_isolation') <> 'read committed'
                OR pg_current_xact_id_if_assigned() IS NOT NULL THEN
                RAISE active_sql_transaction USING MESSAGE =
                    'seals are made in a transaction of their own, which is READ COMMITTED';
            END IF;
            LOCK TABLE @home.audit_seals IN SHARE ROW EXCLUSIVE MODE;  -- one at a time
            top := coalesce(pg_sequence_last_value(
                pg_get_serial_sequence('@home.security_audit_log', 'position')::regclass), 0);
            next := pg_current_xact_id()::text::bigint;
            SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint INTO oldest;
            SELECT * INTO before FROM @home.audit_seals ORDER BY number DESC LIMIT 1;
            were_in_flight := before.oldest_transaction < before.next_transaction;
            upto := coalesce(before.last_position, 0);
            LOOP
                sealed_to := upto;
                SELECT least(top, min(position) + batch - 1) INTO upto FROM @home.security_audit_log
                WHERE position > sealed_to AND position <= top
                    AND NOT (transaction_id >= oldest AND transaction_id < next);
                SELECT jsonb_object_agg(
                    month, jsonb_build_object('rows', entries, 'sha256', digest))
                INTO found
                FROM (
                    SELECT to_char(timestamp, 'YYYY-MM') AS month, count(*) AS entries,
                           encode(sha256(string_agg(
                               sha256(convert_to({ENTRY}::text, 'UTF8')), '' ORDER BY position)),
                               'hex') AS digest
                    FROM (
                        SELECT * FROM @home.security_audit_log
                        WHERE position > sealed_to AND position <= upto
                        UNION ALL
                        SELECT * FROM @home.security_audit_log  -- in flight at the seal before
                        WHERE were_in_flight AND position <= sealed_to
                            AND transaction_id >= before.oldest_transaction
                            AND transaction_id < before.next_transaction
                            AND NOT EXISTS (
                                SELECT FROM @home.audit_seals WHERE last_position >= position
                                AND NOT (transaction_id >= oldest_transaction
                                         AND transaction_id < next_transaction))
                    ) AS candidates
                    WHERE NOT (transaction_id >= oldest AND transaction_id < next)
                    GROUP BY 1
                ) AS digested;
                IF found IS NOT NULL THEN
                    before := @home.audit_append_seal('rows', upto, oldest, next, found);
                    RETURN NEXT before;
                END IF;
                were_in_flight := false;
                EXIT WHEN upto >= top;
            END LOOP;
        END $$
    """)
    _for_administrators("audit_seal(integer)")
    make("""
        CREATE FUNCTION audit_sign(sealed bigint, signed bytea) RETURNS void LANGUAGE sql
        SECURITY DEFINER SET search_path = pg_catalog, pg_temp
        BEGIN ATOMIC
            UPDATE @home.audit_seals SET signature = signed
            WHERE number = sealed AND signature IS NULL;
        END
    """)
    _for_administrators("audit_sign(bigint, bytea)")
    # Not SECURITY DEFINER: only the owner of the log drops any of it.
    make("""
        CREATE FUNCTION audit_drop_month(month date) RETURNS @home.audit_seals LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp AS $$
        DECLARE
            dropped CONSTANT text := '@home.security_audit_log_' || to_char(month, 'YYYY_MM');
            before @home.audit_seals;
            entries bigint;
        BEGIN
            LOCK TABLE @home.audit_seals IN SHARE ROW EXCLUSIVE MODE;
            SELECT * INTO STRICT before FROM @home.audit_seals ORDER BY number DESC LIMIT 1;
            EXECUTE 'SELECT count(*) FROM ' || dropped INTO entries;
            EXECUTE 'DROP TABLE ' || dropped;
            RETURN @home.audit_append_seal('retention', before.last_position,
                before.oldest_transaction, before.next_transaction, jsonb_build_object(
                    to_char(month, 'YYYY-MM'), jsonb_build_object('rows', entries)));
        END $$
    """)
    op.execute("REVOKE EXECUTE ON FUNCTION audit_drop_month FROM PUBLIC")


def _encryption() -> None:
    """AES-256 with an integrity check, in OpenPGP; docs/decisions/0010-audit.md says why."""
    make("""
        CREATE FUNCTION encrypt_sensitive_data(data text, key text) RETURNS text LANGUAGE sql
        VOLATILE STRICT PARALLEL SAFE
        BEGIN ATOMIC
            SELECT encode(@pgcrypto.pgp_sym_encrypt(data, key,
                'cipher-algo=aes256, compress-algo=0, disable-mdc=0, s2k-mode=3,'
                ' s2k-digest-algo=sha256, s2k-count=4194304'), 'base64');
        END
    """)
    make("""
        CREATE FUNCTION decrypt_sensitive_data(data text, key text) RETURNS text LANGUAGE sql
        IMMUTABLE STRICT PARALLEL SAFE
        BEGIN ATOMIC
            SELECT @pgcrypto.pgp_sym_decrypt(decode(data, 'base64'), key);
        END
    """)


def _for_administrators(function: str) -> None:
    op.execute(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION {function} TO rag_admin")


def downgrade() -> None:
    for event in reversed(DDL_EVENTS):
        op.execute(f"DROP EVENT TRIGGER IF EXISTS pgcorpus_audit_{event}")
    for table in reversed(AUDITED):
        op.stop_auditing_v1(table)
    for function in (
        "decrypt_sensitive_data", "encrypt_sensitive_data", "audit_drop_month", "audit_sign",
        "audit_seal", "audit_append_seal", "audit_make_partitions", "audit_record_roles",
        "audit_ddl", "audit_rows",
    ):  # fmt: skip
        op.execute(f"DROP FUNCTION {function}")
    op.execute("DROP TABLE audit_seals")
    op.execute("DROP TABLE security_audit_log")
    op.execute("DROP TABLE audit_state")
    op.execute("DROP FUNCTION audit_refuse")
