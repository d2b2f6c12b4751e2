"""Fair lanes of jobs, and the tokens that a tenant may spend in a day and has spent."""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

ANY_SCOPE = "(tenant|user):[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"

COMMENTS = {
    "token_ceilings": {
        "scope": "scope that it holds for; default: every scope without a row of its own",
        "tokens_per_day": "the most tokens that embedding its texts may take from midnight UTC on",
    },
    "embedding_usage": {
        "scope": "scope whose texts were embedded; shared: those that are everybody's",
        "day": "day in UTC on which the tokens were asked for",
        "reserved_tokens": "bound of the calls under way, and of those whose process died",
        "spent_tokens": "tokens that the provider counted, and the bound where it did not answer",
        "full_at": "ceiling under which the next job did not fit any more; null if all did",
    },
}

# Administrators read and write all; so does the owner, as whom a small installation works.
POLICIES = {"own_scope": "USING ({in_scope} OR {owner}) WITH CHECK ({owner})"}

SPENDERS = {"tenants": "tenant", "users": "user"}

# What waits for the next day under a ceiling is not late; who may not read ceilings is not told.
# The answer is that of the beginning of the transaction.
DECLARED = """
            closed text[];"""
CLOSED = """
                        IF has_table_privilege('@home.token_ceilings', 'SELECT') THEN
                            SELECT array_agg(usage.scope) INTO closed
                            FROM embedding_usage AS usage
                            WHERE day = (now() AT TIME ZONE 'UTC')::date AND full_at >= coalesce(
                                (SELECT tokens_per_day FROM token_ceilings AS own
                                 WHERE own.scope = usage.scope),
                                (SELECT tokens_per_day FROM token_ceilings AS every
                                 WHERE every.scope = 'default'));
                        END IF;"""
DUE = """
                                AND NOT (kind = 'embed'
                                         AND coalesce(scope = ANY (closed), false))"""

# As revision 0009 has it, but for what begins with @ and is not @home.
HEALTH = """
        CREATE OR REPLACE FUNCTION system_health_check(only_components text[] DEFAULT NULL)
        RETURNS TABLE (component text, status text, details text)
        LANGUAGE plpgsql STABLE SET search_path = pg_catalog, @home, pg_temp AS $$
        DECLARE
            components CONSTANT text[] := ARRAY[
                'pgvector_extension', 'embedding_completeness', 'vector_index_health',
                'invalid_indexes', 'replication_lag', 'queue_age', 'embedding_staleness', 'disk',
                'connections', 'transaction_id_age', 'last_backup', 'audit_chain'];
            hours_between_backups CONSTANT integer := 26;
            hours_between_seals CONSTANT integer := 26;
            most_compared CONSTANT integer := 200000;
            checked_seals CONSTANT integer := 1000;
            is_administrator CONSTANT boolean :=
                has_table_privilege('@home.query_performance_log', 'SELECT');
            found record;
            each record;
            version integer[];
            seconds double precision;
            share double precision;
            backed_up timestamptz;@declared
        BEGIN
            FOREACH component IN ARRAY coalesce(only_components, components) LOOP
                status := 'HEALTHY';
                details := NULL;
                BEGIN
                    CASE component
                    WHEN 'pgvector_extension' THEN
                        SELECT extversion INTO details FROM pg_extension WHERE extname = 'vector';
                        version := string_to_array(substring(details FROM '^[0-9]+(?:\\.[0-9]+)*'),
                                                   '.')::integer[];
                        IF version IS NULL THEN
                            status := 'CRITICAL';
                            details := 'the extension vector is missing';
                        ELSIF version < '{0,8}' THEN
                            status := 'CRITICAL';
                            details := concat('pgvector ', details, ': 0.8 or newer is needed');
                        ELSIF version < '{0,8,4}' THEN
                            status := 'WARNING';
                            details := concat(
                                'pgvector ', details,
                                ': before 0.8.4 a VACUUM could damage HNSW indexes, whose ',
                                'searches then miss vectors');
                        ELSE
                            details := concat('pgvector ', details);
                        END IF;

                    WHEN 'embedding_completeness' THEN
                        -- Of scoped corpora row security shows nothing here.
                        FOR each IN
                            SELECT corpus, active_model, counted.*
                            FROM corpus_settings CROSS JOIN LATERAL (
                                SELECT (SELECT count(*) FROM framework_documents) AS passages,
                                       (SELECT count(*) FROM chunk_embeddings
                                        WHERE model_name = active_model) AS vectors,
                                       EXISTS (SELECT FROM chunk_embeddings) AS any_vectors
                                WHERE corpus = 'knowledge'
                                UNION ALL
                                SELECT (SELECT count(*) FROM chunks),
                                       (SELECT count(*) FROM documentation_embeddings
                                        WHERE model_name = active_model),
                                       EXISTS (SELECT FROM documentation_embeddings)
                                WHERE corpus = 'documentation'
                                UNION ALL
                                SELECT (SELECT count(*) FROM messages),
                                       (SELECT count(*) FROM message_embeddings
                                        WHERE model_name = active_model),
                                       EXISTS (SELECT FROM message_embeddings)
                                WHERE corpus = 'chat'
                            ) AS counted ORDER BY corpus
                        LOOP
                            IF each.passages <> each.vectors THEN
                                status := 'WARNING';
                            END IF;
                            details := concat_ws('; ', details, concat(
                                each.corpus, ': Documents: ', each.passages, ', Embeddings: ',
                                each.vectors) || CASE
                                WHEN each.vectors = 0 AND each.any_vectors
                                THEN concat(
                                    ' (of the active model ', each.active_model,
                                    ', others have some)') ELSE '' END);
                        END LOOP;

                    WHEN 'vector_index_health' THEN
                        FOR each IN
                            SELECT corpus, active_model, EXISTS (
                                SELECT FROM pg_index
                                JOIN pg_class ON pg_class.oid = indexrelid
                                JOIN pg_am ON pg_am.oid = relam
                                WHERE indrelid = vectors AND amname IN ('hnsw', 'ivfflat')
                                    AND indisvalid AND indisready AND (indpred IS NULL OR position(
                                        quote_literal(active_model)
                                        IN pg_get_expr(indpred, indrelid)) > 0)) AS indexed
                            FROM corpus_settings JOIN (VALUES
                                ('knowledge', 'chunk_embeddings'::regclass),
                                ('documentation', 'documentation_embeddings'::regclass),
                                ('chat', 'message_embeddings'::regclass)
                            ) AS searched (name, vectors) ON name = corpus
                            ORDER BY corpus
                        LOOP
                            IF NOT each.indexed THEN
                                status := 'CRITICAL';
                                details := concat_ws('; ', details, concat(
                                    each.corpus, ' has no usable index of the vectors of ',
                                    each.active_model));
                            END IF;
                        END LOOP;
                        details := coalesce(details,
                            'the active model of each corpus has its vector index');

                    WHEN 'invalid_indexes' THEN
                        SELECT string_agg(indexrelid::regclass::text, ', ' ORDER BY 1)
                        INTO details
                        FROM pg_index JOIN pg_class ON pg_class.oid = indrelid
                        WHERE relnamespace = '@home'::regnamespace
                            AND NOT (indisvalid AND indisready)
                            -- a build or a VACUUM holds the table so
                            AND NOT EXISTS (
                                SELECT FROM pg_locks JOIN pg_database ON pg_database.oid = database
                                WHERE datname = current_database() AND relation = indrelid
                                    AND mode = 'ShareUpdateExclusiveLock');
                        IF details IS NOT NULL THEN
                            status := 'WARNING';
                            details := concat('invalid, as a build failed: ', details);
                        ELSE
                            details := 'no index is invalid';
                        END IF;

                    WHEN 'replication_lag' THEN
                        IF pg_is_in_recovery() THEN
                            IF NOT EXISTS (SELECT FROM pg_stat_wal_receiver) THEN
                                status := 'WARNING';
                                details := 'a standby that receives nothing from a primary now';
                            END IF;
                            seconds := CASE
                                WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0
                                ELSE extract(epoch FROM now()
                                             - pg_last_xact_replay_timestamp()) END;
                            details := concat_ws('; ', details, concat(
                                'replayed up to ', round(coalesce(seconds, 0)::numeric),
                                ' s ago'));
                        ELSE
                            SELECT count(*) AS standbys, count(*) FILTER (WHERE state IS NULL)
                                       AS hidden,
                                   max(extract(epoch FROM replay_lag)) AS lag
                            INTO found FROM pg_stat_replication;
                            SELECT string_agg(slot_name::text, ', ' ORDER BY slot_name) INTO details
                            FROM pg_replication_slots
                            WHERE NOT active AND restart_lsn IS NOT NULL
                                AND pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)
                                    > 1024::bigint * 1024 * 1024;
                            IF details IS NOT NULL THEN
                                status := 'WARNING';
                                details := concat(
                                    'slots that nobody reads keep more than 1 GB of WAL: ',
                                    details);
                            ELSIF found.hidden > 0 THEN
                                RAISE insufficient_privilege USING MESSAGE = concat(
                                    'standbys: ', found.standbys,
                                    ', whose lag only members of pg_monitor see');
                            END IF;
                            seconds := found.lag;
                            details := concat_ws('; ', details, CASE found.standbys
                                WHEN 0 THEN 'no standby is connected'
                                ELSE concat(
                                    'standbys: ', found.standbys, ', the last ',
                                    round(coalesce(seconds, 0)::numeric, 1), ' s behind') END);
                        END IF;
                        IF seconds > 600 THEN
                            status := 'CRITICAL';
                        ELSIF seconds > 60 THEN
                            status := 'WARNING';
                        END IF;

                    WHEN 'queue_age' THEN@closed
                        SELECT count(*) FILTER (WHERE jobs.status = 'pending') AS due,
                               count(*) FILTER (WHERE jobs.status = 'failed') AS failed,
                               extract(epoch FROM now() - min(not_before) FILTER (
                                   WHERE jobs.status = 'pending' AND kind = 'embed')) AS embed,
                               extract(epoch FROM now() - min(not_before) FILTER (
                                   WHERE jobs.status = 'pending' AND kind <> 'embed')) AS other
                        INTO found FROM jobs
                        WHERE jobs.status = 'failed'
                            OR jobs.status = 'pending' AND not_before <= now()@due;
                        IF found.embed > 3600 THEN
                            status := 'CRITICAL';
                        ELSIF found.embed > 900 OR found.other > 86400 OR found.failed > 0 THEN
                            status := 'WARNING';
                        END IF;
                        details := concat(
                            found.due, ' jobs are due, the oldest for ',
                            round(greatest(found.embed, found.other, 0)), ' s; ', found.failed,
                            ' have failed for good');

                    WHEN 'embedding_staleness' THEN
                        SELECT sum(greatest(reltuples, 0)) AS passages INTO found FROM pg_class
                        WHERE oid IN ('framework_documents'::regclass, 'chunks'::regclass,
                                      'messages'::regclass);
                        IF found.passages > most_compared THEN
                            status := 'UNKNOWN';
                            details := concat(
                                'about ', found.passages::bigint,
                                ' passages are too many to be compared with their vectors at each ',
                                'check');
                        ELSE
                            SELECT string_agg(concat(corpus, ': ', stale, ' of ', total), '; '
                                              ORDER BY corpus) FILTER (WHERE stale > 0)
                            INTO details FROM embedding_coverage;
                            IF details IS NOT NULL THEN
                                status := 'WARNING';
                                details := concat(
                                    'vectors of texts that have changed since: ', details);
                            ELSE
                                details := 'every vector is of the present text';
                            END IF;
                        END IF;

                    WHEN 'disk' THEN
                        status := 'UNKNOWN';
                        details := concat_ws(
                            '; ',
                            -- Others' writes change it: not told to who may not see them.
                            CASE WHEN is_administrator THEN concat(
                                'the database takes ',
                                pg_size_pretty(pg_database_size(current_database()))) END,
                            'a server tells no client how much of its disk is free');

                    WHEN 'connections' THEN
                        SELECT count(*) AS used, current_setting('max_connections')::integer
                                   - current_setting('superuser_reserved_connections')::integer
                                   - coalesce(current_setting('reserved_connections', true), '0')
                                       ::integer AS allowed
                        INTO found FROM pg_stat_activity WHERE datid IS NOT NULL;
                        share := found.used::double precision / found.allowed;
                        details := concat(
                            found.used, ' of ', found.allowed,
                            ' connections of the server are in use');
                        FOR each IN
                            SELECT 'database' AS whose, datconnlimit AS most, (
                                SELECT count(*) FROM pg_stat_activity
                                WHERE datid = pg_database.oid) AS used
                            FROM pg_database
                            WHERE datname = current_database() AND datconnlimit > 0
                            UNION ALL
                            SELECT 'role', rolconnlimit, (
                                SELECT count(*) FROM pg_stat_activity
                                WHERE usesysid = pg_roles.oid)
                            FROM pg_roles
                            WHERE rolname = session_user AND rolconnlimit > 0
                        LOOP
                            share := greatest(share, each.used::double precision / each.most);
                            details := concat(
                                details, '; ', each.used, ' of ', each.most, ' of the ',
                                each.whose);
                        END LOOP;
                        IF share > 0.9 THEN
                            status := 'CRITICAL';
                        ELSIF share > 0.8 THEN
                            status := 'WARNING';
                        END IF;

                    WHEN 'transaction_id_age' THEN
                        SELECT datname, age(datfrozenxid) AS xids, mxid_age(datminmxid) AS mxids,
                               least(2 * current_setting('autovacuum_freeze_max_age')::bigint,
                                     current_setting('vacuum_failsafe_age')::bigint) AS old,
                               least(2 * current_setting('autovacuum_multixact_freeze_max_age')
                                         ::bigint,
                                     current_setting('vacuum_multixact_failsafe_age')::bigint)
                                   AS old_mxids,
                               current_setting('vacuum_failsafe_age')::bigint AS oldest,
                               current_setting('vacuum_multixact_failsafe_age')::bigint
                                   AS oldest_mxids
                        INTO found FROM pg_database
                        ORDER BY greatest(age(datfrozenxid), mxid_age(datminmxid)) DESC LIMIT 1;
                        IF found.xids > found.oldest OR found.mxids > found.oldest_mxids THEN
                            status := 'CRITICAL';
                        ELSIF found.xids > found.old OR found.mxids > found.old_mxids THEN
                            status := 'WARNING';
                        END IF;
                        details := concat_ws(
                            '; ',
                            CASE WHEN is_administrator OR status <> 'HEALTHY' THEN concat(
                                'the oldest transaction of ', found.datname, ' is ', found.xids,
                                ' transactions ago, its oldest multixact ', found.mxids) END,
                            'writes stop at 2 billion');

                    WHEN 'last_backup' THEN
                        IF to_regclass('@home.backup_log') IS NULL THEN
                            status := 'UNKNOWN';
                            details := 'no log of backups is kept here';
                        ELSE
                            EXECUTE 'SELECT max(finished_at) FROM @home.backup_log '
                                'WHERE status IN (''complete'', ''verified'')' INTO backed_up;
                            seconds := extract(epoch FROM now() - backed_up);
                            IF backed_up IS NULL THEN
                                status := 'WARNING';
                                details := 'there is no good backup';
                            ELSE
                                details := concat(
                                    'the last good backup ended ',
                                    round((seconds / 3600)::numeric, 1), ' h ago');
                                IF seconds > 7 * 86400 THEN
                                    status := 'CRITICAL';
                                ELSIF seconds > hours_between_backups * 3600 THEN
                                    status := 'WARNING';
                                END IF;
                            END IF;
                        END IF;

                    WHEN 'audit_chain' THEN
                        SELECT count(*) AS seals, max(last_position) AS last_position,
                               min(number) FILTER (WHERE broken) AS broken
                        INTO found
                        FROM (
                            SELECT number, last_position, hash <> sha256(convert_to(
                                jsonb_build_array(
                                    number, extract(epoch FROM sealed_at) * 1000000, sealed_by,
                                    kind, last_position, oldest_transaction, next_transaction,
                                    months, encode(previous, 'hex'))::text, 'UTF8'))
                                OR row_number() OVER chain > 1 AND (
                                    previous IS DISTINCT FROM lag(hash) OVER chain
                                    OR number <> lag(number) OVER chain + 1)
                                OR number = 1 AND previous IS NOT NULL AS broken
                            FROM (
                                SELECT * FROM audit_seals ORDER BY number DESC LIMIT checked_seals
                            ) AS last_seals
                            WINDOW chain AS (ORDER BY number)
                        ) AS compared;
                        IF found.broken IS NOT NULL THEN
                            status := 'CRITICAL';
                            details := concat(
                                'the chain of seals is broken at seal ', found.broken);
                        ELSIF EXISTS (
                            SELECT FROM security_audit_log
                            WHERE position > coalesce(found.last_position, 0)
                                AND timestamp < now() - make_interval(hours => hours_between_seals)
                        ) THEN
                            status := 'WARNING';
                            details := concat(
                                'entries older than ', hours_between_seals, ' h are not sealed');
                        ELSE
                            details := CASE found.seals WHEN 0 THEN 'nothing is sealed yet'
                                ELSE concat('the last ', found.seals, ' seals form a chain') END;
                        END IF;
                        IF to_regclass('@home.security_audit_log_' || to_char(
                            (now() AT TIME ZONE 'UTC') + interval '1 month', 'YYYY_MM')) IS NULL
                        THEN
                            status := CASE status WHEN 'HEALTHY' THEN 'WARNING' ELSE status END;
                            details := details || '; there is no partition for the next month';
                        END IF;

                    ELSE
                        RAISE invalid_parameter_value USING MESSAGE = concat(
                            'there is no component ', component, '; known: ',
                            array_to_string(components, ', '));
                    END CASE;
                EXCEPTION WHEN insufficient_privilege THEN
                    status := 'UNKNOWN';
                    details := concat('the login may not see this: ', SQLERRM);
                WHEN undefined_table OR undefined_column THEN
                    status := 'UNKNOWN';
                    details := concat('the schema is not that of this function: ', SQLERRM);
                END;
                RETURN NEXT;
            END LOOP;
        END $$
    """


def make_health(*, declared: str = "", closed: str = "", due: str = "") -> None:
    """Make the function that names its schema, wherever that is."""
    function = HEALTH.replace("@declared", declared).replace("@closed", closed)
    function = function.replace("@due", due)
    op.execute(f"""
        DO $make$ BEGIN
            EXECUTE replace($function${function}$function$,
                '@home', quote_ident(current_schema()));
        END $make$
    """)


def upgrade() -> None:
    # A claim jumps from lane to lane of a kind and corpus: a lane is what one scope waits for.
    op.execute("DROP INDEX idx_jobs_pending")
    op.execute("""
        CREATE INDEX idx_jobs_pending ON jobs (
            kind, coalesce(payload ->> 'corpus', ''), coalesce(scope, ''), priority DESC, id)
        WHERE status = 'pending'
    """)
    # EXPLAIN tells its estimates, also of what row security hides.
    op.execute("ALTER INDEX idx_jobs_pending ALTER COLUMN 3 SET STATISTICS 0")
    op.execute(f"""
        CREATE TABLE token_ceilings (
            id uuid NOT NULL DEFAULT gen_random_uuid()
                CONSTRAINT pk_token_ceilings PRIMARY KEY,
            scope text NOT NULL CONSTRAINT uq_token_ceilings_scope UNIQUE,
            tokens_per_day bigint NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT valid_scope CHECK (scope ~ '^(default|{ANY_SCOPE})$'),
            CONSTRAINT valid_tokens_per_day CHECK (
                tokens_per_day = 0 OR tokens_per_day BETWEEN 25000 AND 1000000000000)
        )
    """)
    op.execute(f"""
        CREATE TABLE embedding_usage (
            id uuid NOT NULL DEFAULT gen_random_uuid()
                CONSTRAINT pk_embedding_usage PRIMARY KEY,
            scope text NOT NULL,
            day date NOT NULL,
            reserved_tokens bigint NOT NULL DEFAULT 0,
            spent_tokens bigint NOT NULL DEFAULT 0,
            full_at bigint,
            CONSTRAINT uq_embedding_usage_scope_day UNIQUE (scope, day),
            CONSTRAINT valid_scope CHECK (scope ~ '^(shared|{ANY_SCOPE})$'),
            CONSTRAINT non_negative_tokens CHECK (reserved_tokens >= 0 AND spent_tokens >= 0)
        )
    """)
    # Two updates for each batch, and neither changes what is indexed.
    op.execute("ALTER TABLE embedding_usage SET (fillfactor = 70)")
    op.execute("CREATE INDEX idx_embedding_usage_day ON embedding_usage (day)")
    op.keep_updated_at_v1("token_ceilings")
    for table, comments in COMMENTS.items():
        op.comment_columns_v1(table, comments)
        op.isolate_v1(table, policies=POLICIES, administered=True)
        # A service writes neither and locks neither, as a worker waits for these rows; and reads
        # neither, as plans would tell it how many others there are.
        op.execute(f"REVOKE ALL ON {table} FROM rag_read_only, rag_read_write")
    # How much others spend is no one's to know, neither from estimates.
    op.sample_columns_v1(0, "token_ceilings", "scope", "tokens_per_day")
    op.sample_columns_v1(
        0, "embedding_usage", "scope", "reserved_tokens", "spent_tokens", "full_at"
    )
    op.audit_v1("token_ceilings")
    # Whoever erases a tenant or a user may neither read nor write what they spent.
    op.execute("""
        CREATE FUNCTION forget_usage() RETURNS trigger LANGUAGE plpgsql
        SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
        DECLARE
            schema CONSTANT text := quote_ident(TG_TABLE_SCHEMA);
            spender CONSTANT text := TG_ARGV[0] || ':' || OLD.id;
        BEGIN
            EXECUTE 'DELETE FROM ' || schema || '.token_ceilings WHERE scope = $1' USING spender;
            EXECUTE 'DELETE FROM ' || schema || '.embedding_usage WHERE scope = $1' USING spender;
            RETURN NULL;
        END $$
    """)
    op.execute("""
        COMMENT ON FUNCTION forget_usage() IS
            'erases the ceiling and the used tokens of a tenant or user who is erased'
    """)
    op.execute("REVOKE EXECUTE ON FUNCTION forget_usage() FROM PUBLIC")
    for table, kind in SPENDERS.items():
        op.execute(f"""
            CREATE TRIGGER forget_usage AFTER DELETE ON {table}
            FOR EACH ROW EXECUTE FUNCTION forget_usage('{kind}')
        """)
    # What a service asks: whether to leave the vectors of its scope to workers. It answers for the
    # scope of the transaction, and the body is bound to the tables here.
    op.execute("""
        CREATE FUNCTION scope_has_ceiling() RETURNS boolean LANGUAGE sql STABLE
        SECURITY DEFINER SET search_path = pg_catalog, pg_temp
        BEGIN ATOMIC
            SELECT EXISTS (
                SELECT FROM token_ceilings WHERE scope = 'default' OR scope = app_scope());
        END
    """)
    op.execute("""
        COMMENT ON FUNCTION scope_has_ceiling() IS
            'whether a ceiling of tokens holds for the scope of the transaction'
    """)
    op.execute("REVOKE EXECUTE ON FUNCTION scope_has_ceiling() FROM PUBLIC")
    op.execute("""
        GRANT EXECUTE ON FUNCTION scope_has_ceiling() TO rag_read_only, rag_read_write, rag_admin
    """)
    make_health(declared=DECLARED, closed=CLOSED, due=DUE)


def downgrade() -> None:
    make_health()
    op.stop_auditing_v1("token_ceilings")
    op.execute("DROP FUNCTION scope_has_ceiling")
    for table in SPENDERS:
        op.execute(f"DROP TRIGGER forget_usage ON {table}")
    op.execute("DROP FUNCTION forget_usage")
    op.execute("DROP TABLE embedding_usage")
    op.execute("DROP TABLE token_ceilings")
    op.execute("DROP INDEX idx_jobs_pending")
    op.execute("""
        CREATE INDEX idx_jobs_pending
        ON jobs (kind, coalesce(payload ->> 'corpus', ''), priority DESC, id)
        WHERE status = 'pending'
    """)
