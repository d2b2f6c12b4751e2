"""The performance log: what each leg did, an archive, a dashboard; and the function of health.

The log tells which tenant-scoped corpora are searched, when, and what for where questions are kept:
from here on it is read by administrators alone, and others add to it.
"""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

GROUPS = "rag_read_only, rag_read_write, rag_admin"

ADDED = {
    "fusion": "varchar(20)",
    "candidates": "integer",
    "legs": "jsonb",
    "options": "jsonb",
    "question": "text",
}
COMMENTS = {
    "fusion": "fusion of the legs; null in rows of before revision 0009",
    "candidates": "passages that the legs found, in all",
    "legs": "leg to its status, candidates and milliseconds",
    "options": "limit, offset, language, group_by, names of filters; never a value of a filter",
    "question": "text of the question; null unless METRICS_QUESTIONS keeps it",
}
ARCHIVE_COMMENTS = COMMENTS | {
    "query_type": "vector_search, text_search, fuzzy_search or hybrid_search",
    "duration": "milliseconds, embedding the question included",
    "degraded": "true if a leg did not answer",
}
VALID = """duration BETWEEN 0 AND 1e12 AND jsonb_typeof(legs) = 'object'
    AND jsonb_typeof(options) = 'object' AND length(question) <= 2000"""
UNREADABLE = """NOT (timestamp BETWEEN to_timestamp(-62104060800) AND to_timestamp(253370764800)
    AND duration BETWEEN 0 AND 1e12)"""
COLUMNS = (
    "id, timestamp, query_type, corpus, duration, hits, degraded, fusion, candidates, legs, "
    "options, question"
)


def upgrade() -> None:
    _log()
    _archive()
    _dashboard()
    _health()


def make(function: str) -> None:
    """Make a function that names its schema, wherever that is."""
    op.execute(f"""
        DO $make$ BEGIN
            EXECUTE replace($function${function}$function$,
                '@home', quote_ident(current_schema()));
        END $make$
    """)


def _log() -> None:
    columns = ", ".join(f"ADD COLUMN {name} {kind}" for name, kind in ADDED.items())
    op.execute(f"ALTER TABLE query_performance_log {columns}")
    op.comment_columns_v1("query_performance_log", COMMENTS)
    # Whoever may add a row must not be able to stop an administrator from reading the others.
    op.execute(f"DELETE FROM query_performance_log WHERE {UNREADABLE}")
    op.limit_times_v1("query_performance_log", "timestamp")
    op.execute(f"""
        ALTER TABLE query_performance_log ADD CONSTRAINT valid_search_details CHECK ({VALID})
    """)
    op.execute("REVOKE ALL ON query_performance_log FROM rag_read_only, rag_read_write")
    op.execute("GRANT INSERT ON query_performance_log TO rag_read_write")


def _archive() -> None:
    """Move old rows to a table of their own, and delete those that are older still.

    SECURITY DEFINER: a worker maintains the log that it may not read. It says how many days are
    kept, and nothing shorter than the limit: a service that was broken into cannot hide what it
    asked today.
    """
    op.execute(f"""
        CREATE TABLE query_performance_archive (
            id bigint CONSTRAINT pk_query_performance_archive PRIMARY KEY,
            timestamp timestamptz NOT NULL,
            query_type varchar(50) NOT NULL,
            corpus varchar(50) NOT NULL,
            duration double precision NOT NULL,
            hits integer NOT NULL,
            degraded boolean NOT NULL,
            fusion varchar(20),
            candidates integer,
            legs jsonb,
            options jsonb,
            question text,
            CONSTRAINT valid_search_details CHECK ({VALID})
        )
    """)
    op.limit_times_v1("query_performance_archive", "timestamp")
    op.create_index(
        "idx_query_performance_archive_timestamp", "query_performance_archive", ["timestamp"]
    )
    op.comment_columns_v1("query_performance_archive", ARCHIVE_COMMENTS)
    op.execute("REVOKE ALL ON query_performance_archive FROM rag_read_only, rag_read_write")
    make(f"""
        CREATE FUNCTION archive_searches(older_than interval, most integer) RETURNS integer
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
        DECLARE
            moved integer;
        BEGIN
            IF older_than IS NULL OR older_than < interval '1 day' THEN
                RAISE invalid_parameter_value USING MESSAGE =
                    'searches of the last day stay in query_performance_log';
            END IF;
            WITH old AS (
                DELETE FROM @home.query_performance_log WHERE id IN (
                    SELECT id FROM @home.query_performance_log
                    WHERE timestamp < now() - older_than
                    ORDER BY timestamp LIMIT most FOR UPDATE SKIP LOCKED)
                RETURNING {COLUMNS})
            INSERT INTO @home.query_performance_archive ({COLUMNS}) SELECT {COLUMNS} FROM old;
            GET DIAGNOSTICS moved = ROW_COUNT;
            RETURN moved;
        END $$
    """)
    make("""
        CREATE FUNCTION delete_archived_searches(older_than interval, most integer)
        RETURNS integer
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
        DECLARE
            deleted integer;
        BEGIN
            IF older_than IS NULL OR older_than < interval '30 days' THEN
                RAISE invalid_parameter_value USING MESSAGE =
                    'searches of the last 30 days stay in query_performance_archive';
            END IF;
            DELETE FROM @home.query_performance_archive WHERE id IN (
                SELECT id FROM @home.query_performance_archive
                WHERE timestamp < now() - older_than
                ORDER BY timestamp LIMIT most FOR UPDATE SKIP LOCKED);
            GET DIAGNOSTICS deleted = ROW_COUNT;
            RETURN deleted;
        END $$
    """)
    for function in ("archive_searches", "delete_archived_searches"):
        op.execute(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {function} TO rag_read_write, rag_admin")


def _dashboard() -> None:
    """Create the seed's dashboard; its third metric is of pg_stat_activity and the settings."""
    op.execute("""
        CREATE VIEW performance_dashboard WITH (security_invoker = true) AS
        WITH recent AS (
            SELECT type, count(duration) AS searches, avg(duration) AS mean,
                   percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY duration)
                       AS percentiles
            FROM unnest(ARRAY['vector_search', 'hybrid_search', 'text_search', 'fuzzy_search'])
                WITH ORDINALITY AS known (type, place)
            LEFT JOIN query_performance_log
                ON query_type = type AND timestamp > now() - interval '1 hour'
            GROUP BY type, place ORDER BY place
        )
        SELECT type || '_' || measure AS metric, measured AS value, unit
        FROM recent CROSS JOIN LATERAL (VALUES
            ('avg_time', mean, 'ms'),
            ('p50_time', percentiles[1], 'ms'),
            ('p95_time', percentiles[2], 'ms'),
            ('p99_time', percentiles[3], 'ms'),
            ('count', searches::double precision, 'searches')
        ) AS measures (measure, measured, unit)
        UNION ALL
        SELECT 'connection_pool_utilization',
               100.0::double precision * count(*) / current_setting('max_connections')::integer,
               chr(37)  -- a percent sign would be doubled in offline SQL
        FROM pg_stat_activity WHERE datid IS NOT NULL
    """)
    op.execute(f"REVOKE ALL ON performance_dashboard FROM {GROUPS}")
    op.execute("GRANT SELECT ON performance_dashboard TO rag_admin")


# Limits are those of docs/reference/health.md, each with its source.
def _health() -> None:
    """Create the seed's function, with its three components and more.

    It has its caller's rights. A component that the caller may not see, or that is not there, is
    UNKNOWN, with the reason. Ages are those at the beginning of the transaction: within one the
    answer stays the same, or verify-isolation would take the time for what others have written.
    """
    make("""
        CREATE FUNCTION system_health_check(only_components text[] DEFAULT NULL)
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
            backed_up timestamptz;
            closed text[];
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

                    WHEN 'queue_age' THEN
                        -- What waits for the next day under a ceiling is not late. Revision 0012
                        -- makes ceilings; who may not read them is not told.
                        IF has_table_privilege(to_regclass('@home.token_ceilings'), 'SELECT') THEN
                            SELECT array_agg(usage.scope) INTO closed
                            FROM embedding_usage AS usage
                            WHERE day = (now() AT TIME ZONE 'UTC')::date AND full_at >= coalesce(
                                (SELECT tokens_per_day FROM token_ceilings AS own
                                 WHERE own.scope = usage.scope),
                                (SELECT tokens_per_day FROM token_ceilings AS every
                                 WHERE every.scope = 'default'));
                        END IF;
                        SELECT count(*) FILTER (WHERE jobs.status = 'pending') AS due,
                               count(*) FILTER (WHERE jobs.status = 'failed') AS failed,
                               extract(epoch FROM now() - min(not_before) FILTER (
                                   WHERE jobs.status = 'pending' AND kind = 'embed')) AS embed,
                               extract(epoch FROM now() - min(not_before) FILTER (
                                   WHERE jobs.status = 'pending' AND kind <> 'embed')) AS other
                        INTO found FROM jobs
                        WHERE jobs.status = 'failed'
                            OR jobs.status = 'pending' AND not_before <= now()
                                AND NOT (kind = 'embed'
                                         AND coalesce(scope = ANY (closed), false));
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
    """)


def downgrade() -> None:
    op.execute("DROP FUNCTION system_health_check")
    op.execute("DROP VIEW performance_dashboard")
    op.execute("DROP FUNCTION delete_archived_searches")
    op.execute("DROP FUNCTION archive_searches")
    op.execute("DROP TABLE query_performance_archive")
    op.execute("ALTER TABLE query_performance_log DROP CONSTRAINT valid_search_details")
    op.stop_limiting_times_v1("query_performance_log")
    columns = ", ".join(f"DROP COLUMN {name}" for name in reversed(ADDED))
    op.execute(f"ALTER TABLE query_performance_log {columns}")
    # In the order of before, which a dump shows; what administrators hold depends on the server.
    op.execute("""
        DO $$
        DECLARE
            held CONSTANT text := (
                SELECT string_agg(privilege_type, ', ') FROM pg_class, aclexplode(relacl)
                WHERE pg_class.oid = 'query_performance_log'::regclass
                    AND grantee = 'rag_admin'::regrole);
        BEGIN
            REVOKE ALL ON query_performance_log FROM rag_read_write, rag_admin;
            GRANT SELECT ON query_performance_log TO rag_read_only;
            GRANT SELECT, INSERT, UPDATE, DELETE ON query_performance_log TO rag_read_write;
            EXECUTE 'GRANT ' || held || ' ON query_performance_log TO rag_admin';
        END $$
    """)
