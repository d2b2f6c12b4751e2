"""Agent memory: tenants, users, memories, episodes, their vectors, and row security over them."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# Who may see a row, in one text column: what is compared with app_scope(). It is written and not
# generated, for a generated column can neither distribute rows nor identify them to a subscriber.
SCOPE = "coalesce('tenant:' || tenant_id::text, 'user:' || user_id::text)"

# A program that signs a user in knows the identity and not yet the scope. A policy asks for it
# first as isolate_v1 asks for the scope, and for the same reason.
ASKED = "current_setting('app.identity', true)"
KNOWN = (
    f"((SELECT CASE WHEN {ASKED} IS NOT NULL THEN jsonb_build_object({ASKED}, true) END))"
    "[identity] IS NOT NULL"
)
IDENTITY = f"text_hash(identity) = text_hash((SELECT {ASKED}))"


# Nothing is sampled of what users say or are called. Row security does not bind the planner, and
# EXPLAIN tells its estimates: by how many rows are "above" a text, others' texts could be guessed.
UNSAMPLED = {
    "tenants": ("name", "slug", "settings"),
    "users": ("external_id", "identity", "email", "display_name"),
    "memory_nodes": (
        "id", "conversation_id", "source", "human_content", "human_hash", "assistant_content",
        "tags", "cluster_label", "duplicate_of", "extra", "memory_search",
    ),
    "episodic_memories": (
        "id", "source", "title", "messages", "llm_tags", "content", "emotional_arc",
        "memory_node_ids", "related_episode_ids", "extra", "episode_search",
    ),
}  # fmt: skip

# Passages that are searched, their vectors, where their words are, and what trigrams are looked for
# in.
SEARCHED = (
    ("memory_nodes", "memory_embeddings", "memory_search",
     "human_content || ' ' || assistant_content"),
    ("episodic_memories", "episode_embeddings", "episode_search", "title || ' ' || content"),
)  # fmt: skip

# Beside rows of no scope they have rows of every scope.
SHARED = ("jobs", "import_runs", "import_files", "import_transformations", "import_rejects")

# Every role may read the queue. What the database does for itself (maintenance, which seals the
# audit log, and log_flush) administrators alone take, end and delete, and passages are enqueued by
# triggers alone: whoever writes a row of another kind can steer nothing with it.
OWN = "scope IS NULL OR {in_scope}"
POLICIES_OF_TENANTS = {
    "own_scope": "FOR SELECT USING ({in_scope} AND scope = (SELECT app_scope()))",
    "sign_up": "FOR INSERT WITH CHECK (scope = (SELECT app_scope()) AND {owner})",
}
POLICIES_OF_SHARED = {"own_scope": f"USING ({OWN} OR {{owner}})"}
POLICIES_OF_JOBS = {
    "own_scope": f"FOR SELECT USING ({OWN} OR {{owner}})",
    "enqueue_in_scope": f"FOR INSERT WITH CHECK ({{owner}} OR (({OWN}) AND status = 'pending'"
    " AND kind NOT IN ('maintenance', 'log_flush', 'embed')))",
    "update_in_scope": f"FOR UPDATE USING ({{owner}} OR (({OWN})"
    " AND kind NOT IN ('maintenance', 'log_flush')))",
    "delete_in_scope": f"FOR DELETE USING ({{owner}} OR (({OWN})"
    " AND kind NOT IN ('maintenance', 'log_flush')))",
}

COVERED = (
    {
        "corpus": "knowledge",
        "passages": "framework_documents",
        "vectors": "chunk_embeddings",
        "item": "document_id",
        "embedded": "title || E'\\n' || content",
    },
    {
        "corpus": "chat",
        "passages": "messages",
        "vectors": "message_embeddings",
        "item": "message_id",
        "embedded": "content",
    },
    {
        "corpus": "memory",
        "passages": "memory_nodes",
        "vectors": "memory_embeddings",
        "item": "node_key",
        "embedded": "human_content || E'\\n' || assistant_content",
        "key": "key",
        "scoped": True,
    },
    {
        "corpus": "episodes",
        "passages": "episodic_memories",
        "vectors": "episode_embeddings",
        "item": "episode_key",
        "embedded": "title || E'\\n' || content",
        "key": "key",
        "scoped": True,
    },
)

OF_SCOPED = {
    "user_id": "user whose personal memory it is, or who wrote it",
    "tenant_id": "tenant whose memory it is",
    "scope": "scope that sees it, as app_scope() has it",
}
COMMENTS = {
    "tenants": {
        "slug": "short name for addresses and files",
        "scope": "scope that sees it, as app_scope() has it",
    },
    "users": {
        "tenant_id": "the enterprise, or null for a user on their own",
        "external_id": "the user's key at the auth_provider",
        "identity": "identity of the user: auth_provider:external_id",
        "scope": "scope whose memories the user sees, as app_scope() has it",
    },
    "memory_nodes": OF_SCOPED
    | {
        "id": "mem_ and 16 hex digits of the SHA-256 of conversation_id:sequence_index:the "
        "first 100 characters of human_content; one of each within a scope",
        "conversation_id": "conversation in which it was said",
        "sequence_index": "number of the exchange in the conversation, from 0",
        "human_content": "words of the human",
        "assistant_content": "words of the assistant",
        "source": "provider of the assistant: anthropic, openai, grok, gemini, ...",
        "created_at": "time when it was said",
        "intent_type": "intent of the human",
        "technical_depth": "0 (none) to 10",
        "tags": "domains, topics, entities, processes: a list of names each",
        "cluster_id": "-1: noise, of no cluster; null: not yet clustered",
        "cluster_confidence": "0 to 1",
        "access_count": "number of recalls",
        "last_accessed": "time of the last recall",
        "duplicate_of": "id of the memory that says the same, where it was linked",
        "extra": "fields of the file that have no column",
        "language": "text search configuration of this memory",
        "human_hash": "finds the same human_content; an index on the expression would "
        "not serve under row security",
        "memory_search": "the words a search reads; what the human said counts like a title",
    },
    "episodic_memories": OF_SCOPED
    | {
        "id": "ep_...; one of each within a scope",
        "messages": "turns in their order: role and content each",
        "source": "the assistant, as of memory_nodes",
        "created_at": "time of its beginning",
        "updated_at": "time of its end",
        "llm_tags": "summary, primary_intent, outcome, interruption_reason, key_entities, "
        "emotional_arc, domains, time_context: what a model said of it",
        "avg_complexity": "mean over its memories: simple 1, moderate 2, complex 3",
        "avg_technical_depth": "0 to 10",
        "emotional_arc": "course of the mood",
        "memory_node_ids": "the memories it is made of",
        "access_count": "number of recalls",
        "last_accessed": "time of the last recall",
        "extra": "fields of the file that have no column",
        "language": "text search configuration of this episode",
        "content": "the summary and what was said, as a search reads it",
        "episode_search": "the words a search reads, of the first 90,000 characters",
    },
    "memory_embeddings": {"scope": "scope of its memory"},
    "episode_embeddings": {"scope": "scope of its episode"},
}


def upgrade() -> None:
    _scope()
    _people()
    _nodes()
    _episodes()
    for table, item, passages in (
        ("memory_embeddings", "node_key", "memory_nodes"),
        ("episode_embeddings", "episode_key", "episodic_memories"),
    ):
        op.create_embedding_table_v1(table, item=item, passages=passages, key="key", scoped=True)
    for table, comments in COMMENTS.items():
        op.comment_columns_v1(table, comments)
    for table, columns in UNSAMPLED.items():
        op.sample_columns_v1(0, table, *columns)
    _row_security()
    for table, vectors, words, shown in SEARCHED:
        op.search_in_scope_v1(table, words=words, shown=shown, vectors=vectors)
    _outbox()
    _views()
    op.execute("INSERT INTO corpus_settings (corpus, active_model) VALUES ('episodes', 'bge-m3')")


def _scope() -> None:
    """Create the function that gives the scope of a transaction, and those on scopes."""
    op.execute("""
        CREATE FUNCTION app_scope() RETURNS text LANGUAGE sql STABLE PARALLEL SAFE
        RETURN coalesce('tenant:' || nullif(current_setting('app.tenant_id', true), ''),
                        'user:' || nullif(current_setting('app.user_id', true), ''))
    """)
    op.execute("""
        COMMENT ON FUNCTION app_scope() IS
            'whose rows this transaction sees: of app.tenant_id, else of app.user_id, else nobody'
    """)
    op.execute("""
        CREATE FUNCTION scope_keys(scope text, terms text[]) RETURNS bytea[]
        LANGUAGE sql IMMUTABLE PARALLEL SAFE
        RETURN ARRAY(
            SELECT int8send(hashtextextended(scope, 0)) || convert_to(term, 'UTF8')
            FROM unnest(terms) AS term)
    """)
    op.execute("""
        COMMENT ON FUNCTION scope_keys(text, text[]) IS
            'terms as an index has them that finds those of one scope and passes over no other'
    """)


def _people() -> None:
    """Slugs and identities are unique by hash.

    EXPLAIN ANALYZE tells how many rows of others an index gives for a condition that is known not
    to leak, by which names could be spelled out. A hash is not known to be so.
    """
    op.execute("""
        CREATE TABLE tenants (
            id uuid CONSTRAINT pk_tenants PRIMARY KEY DEFAULT gen_random_uuid(),
            name varchar(255) NOT NULL,
            slug varchar(100) NOT NULL,
            scope text NOT NULL GENERATED ALWAYS AS ('tenant:' || id::text) STORED,
            settings jsonb NOT NULL DEFAULT '{}',
            created_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT non_empty_tenant_name CHECK (name ~ '\\S'),
            CONSTRAINT valid_slug CHECK (slug ~ '^[a-z0-9]+(-[a-z0-9]+)*$'),
            CONSTRAINT valid_settings CHECK (jsonb_typeof(settings) = 'object')
        )
    """)
    op.limit_times_v1("tenants", "created_at")
    op.execute("""
        CREATE TABLE users (
            id uuid CONSTRAINT pk_users PRIMARY KEY DEFAULT gen_random_uuid(),
            tenant_id uuid CONSTRAINT fk_users_tenant_id
                REFERENCES tenants (id) ON DELETE CASCADE,
            auth_provider varchar(50) NOT NULL,
            external_id varchar(255) NOT NULL,
            email varchar(320),
            display_name varchar(255),
            created_at timestamptz NOT NULL DEFAULT now(),
            scope text NOT NULL GENERATED ALWAYS AS
                (coalesce('tenant:' || tenant_id::text, 'user:' || id::text)) STORED,
            identity text NOT NULL GENERATED ALWAYS AS
                (auth_provider || ':' || external_id) STORED,
            CONSTRAINT uq_users_scope_id UNIQUE (scope, id),
            CONSTRAINT non_empty_identity CHECK (auth_provider ~ '\\S' AND external_id ~ '\\S'),
            CONSTRAINT valid_auth_provider CHECK (auth_provider !~ ':'),
            CONSTRAINT valid_email CHECK (email ~ '^[^@[:space:]]+@[^@[:space:]]+$')
        )
    """)
    op.limit_times_v1("users", "created_at")
    op.create_index("idx_users_tenant_id", "users", ["tenant_id"])
    for name, hashed in {
        "uq_tenants_slug": "tenants (text_hash(slug))",
        "uq_users_auth_provider_external_id": "users (text_hash(identity))",
    }.items():
        op.execute(f"CREATE UNIQUE INDEX {name} ON {hashed}")
        op.execute(f"ALTER INDEX {name} ALTER COLUMN 1 SET STATISTICS 0")


def _nodes() -> None:
    """Create memories. Their key is a surrogate: the same id may be in two scopes."""
    op.execute(f"""
        CREATE TABLE memory_nodes (
            key uuid NOT NULL DEFAULT gen_random_uuid(),
            id varchar(255) NOT NULL,
            user_id uuid,
            tenant_id uuid CONSTRAINT fk_memory_nodes_tenant_id
                REFERENCES tenants (id) ON DELETE CASCADE,
            scope text NOT NULL DEFAULT app_scope(),
            conversation_id varchar(255) NOT NULL,
            sequence_index integer NOT NULL,
            human_content text NOT NULL,
            assistant_content text NOT NULL DEFAULT '',
            source varchar(50) NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            intent_type varchar(20) NOT NULL DEFAULT 'statement',
            complexity varchar(20) NOT NULL DEFAULT 'simple',
            technical_depth smallint NOT NULL DEFAULT 0,
            emotional_valence varchar(20) NOT NULL DEFAULT 'neutral',
            urgency varchar(20) NOT NULL DEFAULT 'low',
            conversation_mode varchar(20) NOT NULL DEFAULT 'chat',
            action_required boolean NOT NULL DEFAULT false,
            has_code boolean NOT NULL DEFAULT false,
            has_error boolean NOT NULL DEFAULT false,
            tags jsonb NOT NULL DEFAULT '{{}}',
            cluster_id integer,
            cluster_label varchar(255),
            cluster_confidence double precision,
            access_count integer NOT NULL DEFAULT 0,
            last_accessed timestamptz,
            duplicate_of varchar(255),
            extra jsonb NOT NULL DEFAULT '{{}}',
            language regconfig NOT NULL DEFAULT 'english',
            human_hash bigint NOT NULL GENERATED ALWAYS AS
                (hashtextextended(human_content, 0)) STORED,
            memory_search tsvector NOT NULL GENERATED ALWAYS AS (
                setweight(to_tsvector(language, left(human_content, 30000)), 'A')
                || to_tsvector(language, left(assistant_content, 70000))) STORED,
            CONSTRAINT pk_memory_nodes PRIMARY KEY (scope, key),
            CONSTRAINT uq_memory_nodes_scope_id UNIQUE (scope, id),
            CONSTRAINT fk_memory_nodes_scope_user_id
                FOREIGN KEY (scope, user_id) REFERENCES users (scope, id) ON DELETE CASCADE,
            CONSTRAINT scope_of_owner CHECK (scope = {SCOPE}),
            CONSTRAINT user_or_tenant CHECK (user_id IS NOT NULL OR tenant_id IS NOT NULL),
            CONSTRAINT non_empty_node CHECK (human_content ~ '\\S' OR assistant_content ~ '\\S'),
            CONSTRAINT valid_sequence_index CHECK (sequence_index >= 0),
            CONSTRAINT valid_intent_type CHECK (intent_type IN (
                'question', 'request', 'statement', 'complaint', 'celebration')),
            CONSTRAINT valid_complexity CHECK (complexity IN ('simple', 'moderate', 'complex')),
            CONSTRAINT valid_technical_depth CHECK (technical_depth BETWEEN 0 AND 10),
            CONSTRAINT valid_emotional_valence CHECK (emotional_valence IN (
                'positive', 'neutral', 'negative')),
            CONSTRAINT valid_urgency CHECK (urgency IN ('low', 'medium', 'high')),
            CONSTRAINT valid_conversation_mode CHECK (conversation_mode IN (
                'chat', 'debug', 'brainstorm', 'review')),
            CONSTRAINT valid_tags CHECK ({_lists("tags", "domains topics entities processes")}),
            CONSTRAINT valid_extra CHECK (jsonb_typeof(extra) = 'object'),
            CONSTRAINT valid_cluster_id CHECK (cluster_id >= -1),
            CONSTRAINT valid_cluster_confidence CHECK (cluster_confidence BETWEEN 0 AND 1),
            CONSTRAINT valid_access_count CHECK (access_count >= 0)
        ) WITH (fillfactor = 85, toast_tuple_target = 8160)
    """)
    op.limit_times_v1("memory_nodes", "created_at", "last_accessed")
    for name, columns in {
        "scope_user": ["scope", "user_id", "created_at"],
        "tenant": ["tenant_id"],
        "scope_created": ["scope", "created_at", "key"],
        "scope_conversation": ["scope", "conversation_id", "sequence_index"],
        "scope_cluster": ["scope", "cluster_id"],
        "scope_said": ["scope", "human_hash"],
    }.items():
        op.create_index(f"idx_memory_nodes_{name}", "memory_nodes", columns)


def _episodes() -> None:
    # Turns without a role or a content are read as what they are: nothing.
    op.execute("""
        CREATE FUNCTION episode_text(llm_tags jsonb, messages jsonb) RETURNS text
        LANGUAGE sql IMMUTABLE PARALLEL SAFE
        RETURN concat_ws(E'\\n', llm_tags ->> 'summary', (
            SELECT string_agg(
                CASE jsonb_typeof(turn)
                    WHEN 'object' THEN concat_ws(': ', turn ->> 'role', turn ->> 'content')
                    ELSE turn #>> '{}'
                END, E'\\n' ORDER BY place)
            FROM jsonb_array_elements(messages) WITH ORDINALITY AS each (turn, place)))
    """)
    op.execute(f"""
        CREATE TABLE episodic_memories (
            key uuid NOT NULL DEFAULT gen_random_uuid(),
            id varchar(255) NOT NULL,
            user_id uuid,
            tenant_id uuid CONSTRAINT fk_episodic_memories_tenant_id
                REFERENCES tenants (id) ON DELETE CASCADE,
            scope text NOT NULL DEFAULT app_scope(),
            title text NOT NULL DEFAULT '',
            messages jsonb NOT NULL,
            message_count integer NOT NULL,
            source varchar(50) NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now(),
            duration_minutes double precision,
            llm_tags jsonb NOT NULL DEFAULT '{{}}',
            dominant_intent varchar(20),
            avg_complexity double precision,
            avg_technical_depth double precision,
            emotional_arc text,
            has_code boolean NOT NULL DEFAULT false,
            has_errors boolean NOT NULL DEFAULT false,
            urgency_max varchar(20),
            memory_node_ids text[] NOT NULL DEFAULT '{{}}',
            related_episode_ids text[] NOT NULL DEFAULT '{{}}',
            access_count integer NOT NULL DEFAULT 0,
            last_accessed timestamptz,
            extra jsonb NOT NULL DEFAULT '{{}}',
            language regconfig NOT NULL DEFAULT 'english',
            content text NOT NULL GENERATED ALWAYS AS (episode_text(llm_tags, messages)) STORED,
            episode_search tsvector NOT NULL GENERATED ALWAYS AS (
                setweight(to_tsvector(language, left(title, 10000)), 'A')
                || to_tsvector(language, left(episode_text(llm_tags, messages), 90000))) STORED,
            CONSTRAINT pk_episodic_memories PRIMARY KEY (scope, key),
            CONSTRAINT uq_episodic_memories_scope_id UNIQUE (scope, id),
            CONSTRAINT fk_episodic_memories_scope_user_id
                FOREIGN KEY (scope, user_id) REFERENCES users (scope, id) ON DELETE CASCADE,
            CONSTRAINT scope_of_owner CHECK (scope = {SCOPE}),
            CONSTRAINT user_or_tenant CHECK (user_id IS NOT NULL OR tenant_id IS NOT NULL),
            CONSTRAINT valid_messages CHECK (jsonb_typeof(messages) = 'array'),
            CONSTRAINT valid_message_count CHECK (message_count >= 0),
            CONSTRAINT valid_duration CHECK (duration_minutes >= 0),
            CONSTRAINT valid_llm_tags CHECK ({_lists("llm_tags", "key_entities domains")}),
            CONSTRAINT valid_extra CHECK (jsonb_typeof(extra) = 'object'),
            CONSTRAINT valid_dominant_intent CHECK (dominant_intent IN (
                'question', 'request', 'statement', 'complaint', 'celebration')),
            CONSTRAINT valid_avg_technical_depth CHECK (avg_technical_depth BETWEEN 0 AND 10),
            CONSTRAINT valid_urgency_max CHECK (urgency_max IN ('low', 'medium', 'high')),
            CONSTRAINT valid_access_count CHECK (access_count >= 0)
        ) WITH (fillfactor = 85, toast_tuple_target = 8160)
    """)
    op.limit_times_v1("episodic_memories", "created_at", "updated_at", "last_accessed")
    for name, columns in {
        "scope_user": ["scope", "user_id", "created_at"],
        "tenant": ["tenant_id"],
        "scope_created": ["scope", "created_at", "key"],
    }.items():
        op.create_index(f"idx_episodic_memories_{name}", "episodic_memories", columns)


def _lists(column: str, names: str) -> str:
    """Write the check that keys of a JSON object are lists, where they are there."""
    return " AND ".join(
        [f"jsonb_typeof({column}) = 'object'"]
        + [
            f"coalesce(jsonb_typeof({column} -> '{name}'), 'array') = 'array'"
            for name in names.split()
        ]
    )


def _row_security() -> None:
    """Isolate scopes, for the owner too. Without a scope app_scope() is null: no row is anybody's.

    Rows of a scope in tables that all share are seen in that scope, and by those who work for all
    of them. The owner is one of those: triggers write into the queue in its name, also where a
    tenant is deleted with all that is its own. Whoever becomes the owner later is meant, too.
    """
    for table in ("memory_nodes", "episodic_memories"):  # their vectors are isolated with them
        op.isolate_v1(table)
    # A slug that is taken would tell of another tenant: administrators alone choose one. A service
    # makes tenants with sign_up_tenant(), in the owner's name.
    op.isolate_v1("tenants", policies=POLICIES_OF_TENANTS, administered=True)
    _sign_up()
    # Who is new has no tenant yet.
    op.isolate_v1(
        "users",
        policies={
            "own_scope": "USING (scope = (SELECT app_scope()))",
            "own_identity": f"FOR SELECT USING ({IDENTITY})",
            "new_identity": f"FOR INSERT WITH CHECK (tenant_id IS NULL AND {IDENTITY})",
            # Of several policies one is enough: together they would cost more than a comparison.
            "known_first": f"AS RESTRICTIVE USING ({{in_scope}} OR {KNOWN}"
            " OR (SELECT pg_has_role('rag_admin', 'USAGE')))",
        },
        administered=True,
    )
    for table in SHARED:
        op.isolate_v1(table, policies=_policies(table), administered=True)


def _sign_up() -> None:
    """Create the function by which a service makes a tenant, and nothing else.

    It takes a name and chooses the key and the slug, so that nothing of other tenants can be asked
    with it: neither may be one that is taken. The body is bound to the tables here, and no
    search_path changes what it means. It enters the scope of the new tenant, which is all that the
    owner may add.
    """
    op.execute("""
        CREATE FUNCTION sign_up_tenant(name text) RETURNS uuid LANGUAGE sql VOLATILE
        SECURITY DEFINER SET search_path = pg_catalog, pg_temp
        BEGIN ATOMIC
            WITH random AS MATERIALIZED (
                SELECT gen_random_uuid() AS id
            ), chosen AS MATERIALIZED (
                SELECT id, set_config('app.tenant_id', id::text, true) FROM random
            ), made AS (
                INSERT INTO tenants (id, name, slug)
                SELECT id, sign_up_tenant.name, concat_ws('-',
                    nullif(btrim(left(regexp_replace(lower(sign_up_tenant.name COLLATE "C"),
                        '[^a-z0-9]+', '-', 'g'), 60), '-'), ''),
                    replace(id::text, '-', ''))
                FROM chosen
            )
            SELECT id FROM chosen;
        END
    """)
    op.execute("""
        COMMENT ON FUNCTION sign_up_tenant(text) IS
            'makes a tenant of that name, enters its scope, and returns its key'
    """)
    op.execute("REVOKE EXECUTE ON FUNCTION sign_up_tenant(text) FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION sign_up_tenant(text) TO rag_read_write, rag_admin")


def _policies(table: str) -> dict[str, str]:
    return POLICIES_OF_JOBS if table == "jobs" else POLICIES_OF_SHARED


def _outbox() -> None:
    # A job is about what is forgotten: it goes with it, whatever its state, and so does what
    # imports noted of it.
    op.execute("""
        CREATE FUNCTION forget_traces() RETURNS trigger LANGUAGE plpgsql
        SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
        DECLARE
            schema CONSTANT text := quote_ident(TG_TABLE_SCHEMA);
        BEGIN
            EXECUTE 'DELETE FROM ' || schema || '.jobs USING former'
                || ' WHERE jobs.scope = former.scope AND kind = ''embed'''
                || ' AND dedupe_key = concat_ws('':'', ''embed'', $1, former.scope, former.key)'
                USING TG_ARGV[0];
            EXECUTE 'DELETE FROM ' || schema || '.import_transformations AS told USING former'
                || ' WHERE told.scope = former.scope AND told.item = former.id';
            EXECUTE 'DELETE FROM ' || schema || '.import_rejects AS refused USING former'
                || ' WHERE refused.scope = former.scope AND refused.payload ->> ''id'' = former.id';
            RETURN NULL;
        END $$
    """)
    op.execute("REVOKE EXECUTE ON FUNCTION forget_traces FROM PUBLIC")
    for table, corpus, embedded in (
        ("memory_nodes", "memory", "human_content, assistant_content"),
        ("episodic_memories", "episodes", "title, content"),
    ):
        op.enqueue_embeddings_v1(table, corpus=corpus, embedded=embedded, key="key", scoped=True)
        op.execute(f"""
            CREATE TRIGGER forget_traces AFTER DELETE ON {table} REFERENCING OLD TABLE AS former
            FOR EACH STATEMENT EXECUTE FUNCTION forget_traces('{corpus}')
        """)


def _views() -> None:
    """Create views with the rights and the scope of the caller, not of their owner."""
    op.execute("""
        CREATE VIEW memory_nodes_with_embedding WITH (security_invoker = true) AS
        SELECT memory_nodes.*, model_name, embedding
        FROM memory_nodes
        JOIN corpus_settings ON corpus = 'memory'
        LEFT JOIN memory_embeddings ON memory_embeddings.scope = memory_nodes.scope
            AND node_key = key AND model_name = active_model
    """)
    op.create_coverage_v1(*COVERED)


def downgrade() -> None:
    op.drop_coverage_v1()
    op.execute("DROP VIEW memory_nodes_with_embedding")
    for table, vectors, _, _ in reversed(SEARCHED):
        op.stop_searching_in_scope_v1(table, vectors=vectors)
    for table in ("episode_embeddings", "memory_embeddings", "episodic_memories", "memory_nodes"):
        op.execute(f"DROP TABLE {table}")
    op.execute("DROP FUNCTION episode_text")
    op.execute("DROP FUNCTION sign_up_tenant")
    for table in ("users", "tenants"):
        op.execute(f"DROP TABLE {table}")
    op.execute("DROP FUNCTION forget_traces")
    for table in SHARED:
        op.stop_isolating_v1(table, policies=_policies(table), administered=True)
        op.execute(f"DELETE FROM {table} WHERE scope IS NOT NULL")
    op.execute("DROP FUNCTION app_scope")
    op.execute("DROP FUNCTION scope_keys")
    op.execute("DELETE FROM corpus_settings WHERE corpus = 'episodes'")
