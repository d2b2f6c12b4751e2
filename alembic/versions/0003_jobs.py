"""The job queue, and the outbox: a write and the job that embeds it are one transaction."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

COMMENTS = {
    "kind": "kind of its handler",
    "payload": "arguments of the handler: keys, never texts",
    "status": "failed: it is tried again only if it is requeued",
    "priority": "jobs of higher priority are claimed sooner",
    "dedupe_key": "key of which at most one job of a kind and scope is pending",
    "attempts": "number of attempts begun",
    "not_before": "time from which it may be begun, again after a failure",
    "repeat_every": "interval of a periodic job: done, it is pending again after this time",
    "worker_id": "worker that has it, or had it last",
    "lease_expires_at": "time until which its worker is believed to be alive",
    "started_at": "time of the last attempt",
    "last_error": "reason of the last failure",
    "scope": "scope of the row it is about, as app_scope() has it, or null",
}

# Every role that enqueues writes rows that a worker reads for all: none may be such that the worker
# cannot read, count up or index it.
TIMES = ("not_before", "lease_expires_at", "started_at", "finished_at", "created_at", "updated_at")


def upgrade() -> None:
    op.execute("""
        CREATE TABLE jobs (
            id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_jobs PRIMARY KEY,
            kind varchar(50) NOT NULL,
            payload jsonb NOT NULL DEFAULT '{}',
            status varchar(20) NOT NULL DEFAULT 'pending',
            priority smallint NOT NULL DEFAULT 0,
            dedupe_key text COLLATE "C",
            attempts integer NOT NULL DEFAULT 0,
            max_attempts integer NOT NULL DEFAULT 5,
            not_before timestamptz NOT NULL DEFAULT now(),
            repeat_every interval,
            worker_id varchar(100),
            lease_expires_at timestamptz,
            started_at timestamptz,
            finished_at timestamptz,
            last_error text,
            created_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now(),
            scope text,
            CONSTRAINT valid_job_status CHECK (
                status IN ('pending', 'running', 'completed', 'failed')),
            CONSTRAINT valid_attempts CHECK (
                attempts BETWEEN 0 AND 1000000 AND max_attempts BETWEEN 1 AND 1000000),
            CONSTRAINT valid_lease CHECK (
                (status = 'running') = (lease_expires_at IS NOT NULL)
                AND (status <> 'running' OR worker_id IS NOT NULL)),
            CONSTRAINT valid_repetition CHECK (
                repeat_every > interval '0' AND repeat_every <= interval '10 years'),
            CONSTRAINT valid_dedupe_key CHECK (octet_length(dedupe_key) <= 1000),
            CONSTRAINT valid_payload CHECK (
                jsonb_typeof(payload) = 'object' AND octet_length(payload::text) <= 4000
                AND coalesce(octet_length(payload ->> 'corpus'), 0) <= 200
                AND NOT jsonb_path_exists(payload, '$.**{20}')),
            CONSTRAINT valid_scope CHECK (
                scope ~ '^(tenant|user):[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$')
        )
    """)
    op.limit_times_v1("jobs", *TIMES)
    # Every job is updated at least twice: at the usual 20 % the claims would wade through what is
    # left of the last hours.
    op.execute("ALTER TABLE jobs SET (autovacuum_vacuum_scale_factor = 0.02)")
    op.comment_columns_v1("jobs", COMMENTS)
    # EXPLAIN tells estimates, also of what row security hides.
    op.sample_columns_v1(0, "jobs", "payload", "dedupe_key", "last_error")
    # Of a kind and a scope: a job of another can neither stand for this one nor keep it out.
    op.execute("""
        CREATE UNIQUE INDEX uq_jobs_pending_dedupe_key ON jobs (dedupe_key, kind, scope)
        NULLS NOT DISTINCT WHERE status = 'pending' AND dedupe_key IS NOT NULL
    """)
    # What is claimed next: the partial indexes stay as small as the backlog, however many are done.
    # By corpus too, or a claim for one would wade through the backlog of another.
    op.execute("""
        CREATE INDEX idx_jobs_pending
        ON jobs (kind, coalesce(payload ->> 'corpus', ''), priority DESC, id)
        WHERE status = 'pending'
    """)
    op.execute("""
        CREATE INDEX idx_jobs_running ON jobs (lease_expires_at) WHERE status = 'running'
    """)
    op.execute("""
        CREATE INDEX idx_jobs_completed ON jobs (finished_at) WHERE status = 'completed'
    """)
    op.execute("CREATE INDEX idx_jobs_failed ON jobs (finished_at, id) WHERE status = 'failed'")
    op.execute("CREATE INDEX idx_jobs_scope ON jobs (scope, dedupe_key) WHERE scope IS NOT NULL")
    op.keep_updated_at_v1("jobs")

    # Heard when the transaction commits; the same message is sent once per transaction.
    op.execute("""
        CREATE FUNCTION announce_jobs() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF EXISTS (SELECT FROM enqueued) THEN
                PERFORM pg_notify('pgcorpus_jobs', '');
            END IF;
            RETURN NULL;
        END $$
    """)
    op.execute("""
        CREATE TRIGGER announce_jobs AFTER INSERT ON jobs REFERENCING NEW TABLE AS enqueued
        FOR EACH STATEMENT EXECUTE FUNCTION announce_jobs()
    """)

    # A job that is pending already is written to nevertheless: that locks it until this transaction
    # ends, so that no worker takes it, reads the text of before, and calls it done. What failed is
    # forgotten: it says nothing about the new text. So is all else that a caller may have written
    # into it: whatever was planted under the key, the passage is embedded. Passages of a scope are
    # enqueued in it, and those that are everybody's in none: no transaction touches a job of
    # another. SECURITY DEFINER: who may write texts
    # needs no right on jobs, with which they could forge and complete them. The search_path is
    # pinned, or a caller could shadow what the function names; the schema of the jobs is the
    # table's own. The arguments: corpus, what is embedded, the key, and "scope" or nothing.
    op.execute("""
        CREATE FUNCTION enqueue_embedding() RETURNS trigger LANGUAGE plpgsql
        SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
        DECLARE
            key CONSTANT text := TG_ARGV[2];
            scope CONSTANT text :=
                coalesce('nullif(current.' || TG_ARGV[3] || ', ''shared'')', 'NULL::text');
            identity CONSTANT text := concat_ws(', ', TG_ARGV[3], key);
            changed text := 'current';
        BEGIN
            IF TG_OP = 'UPDATE' THEN
                changed := 'current LEFT JOIN former USING (' || identity || ') WHERE ROW('
                    || regexp_replace(TG_ARGV[1], '(\\w+)', 'current.\\1', 'g')
                    || ') IS DISTINCT FROM ROW('
                    || regexp_replace(TG_ARGV[1], '(\\w+)', 'former.\\1', 'g') || ')';
            END IF;
            EXECUTE 'INSERT INTO ' || quote_ident(TG_TABLE_SCHEMA) || '.jobs'
                || ' (kind, payload, dedupe_key, scope) SELECT ''embed'','
                || ' jsonb_build_object(''corpus'', $1, ''item'', ' || key || '),'
                || ' concat_ws('':'', ''embed'', $1, ' || scope || ', ' || key || '), ' || scope
                || ' FROM ' || changed || ' ORDER BY ' || key
                || ' ON CONFLICT (dedupe_key, kind, scope)'
                || ' WHERE status = ''pending'' AND dedupe_key IS NOT NULL'
                || ' DO UPDATE SET payload = excluded.payload, priority = excluded.priority,'
                || ' attempts = 0, max_attempts = excluded.max_attempts, repeat_every = NULL,'
                || ' not_before = now(), last_error = NULL'
                USING TG_ARGV[0];
            RETURN NULL;
        END $$
    """)
    # A trigger fires without this right, and cannot be made without it: nobody else attaches the
    # function to a table of their own, whose jobs would then be written with its owner's rights.
    op.execute("REVOKE EXECUTE ON FUNCTION enqueue_embedding() FROM PUBLIC")
    op.enqueue_embeddings_v1("framework_documents", corpus="knowledge", embedded="title, content")
    # What was written before there were triggers, and has no vector of its present text.
    op.execute("""
        INSERT INTO jobs (kind, payload, dedupe_key)
        SELECT 'embed', jsonb_build_object('corpus', corpus, 'item', id),
               concat_ws(':', 'embed', corpus, id)
        FROM framework_documents JOIN corpus_settings ON corpus = 'knowledge'
        WHERE NOT EXISTS (
            SELECT FROM chunk_embeddings
            WHERE document_id = framework_documents.id AND model_name = active_model
              AND content_hash = sha256(convert_to(title || E'\\n' || content, 'UTF8'))
        )
        ORDER BY framework_documents.created_at, framework_documents.id
    """)

    # Asked by every search by vectors. It takes the rights of the caller, and is a body of its own:
    # who may not read jobs is told nothing, where the table in the statement would refuse it. Keys
    # that are none are passed over, or a planted row would break the searches of all.
    op.execute("""
        CREATE FUNCTION passages_to_embed(corpus text, most integer) RETURNS SETOF text
        LANGUAGE plpgsql STABLE PARALLEL SAFE ROWS 20 AS $$
        BEGIN
            IF has_table_privilege('jobs', 'SELECT') THEN
                RETURN QUERY
                    -- The first by the index, and then those that are keys.
                    SELECT item FROM (
                        SELECT substr(dedupe_key, length(corpus) + 8) AS item FROM jobs
                        WHERE status = 'pending' AND kind = 'embed'
                            AND dedupe_key >= 'embed:' || corpus || ':'
                            AND dedupe_key < 'embed:' || corpus || ';'
                        ORDER BY dedupe_key LIMIT most
                    ) AS first
                    WHERE item ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$';
            END IF;
        END $$
    """)

    op.execute("""
        INSERT INTO jobs (kind, dedupe_key, repeat_every) VALUES
            ('maintenance', 'maintenance', interval '1 hour'),
            ('log_flush', 'log_flush', interval '1 minute')
    """)


def downgrade() -> None:
    op.stop_enqueuing_embeddings_v1("framework_documents")
    op.execute("DROP FUNCTION enqueue_embedding")
    op.execute("DROP FUNCTION passages_to_embed")
    op.execute("DROP TABLE jobs")
    op.execute("DROP FUNCTION announce_jobs")
