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


def downgrade() -> None:
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
