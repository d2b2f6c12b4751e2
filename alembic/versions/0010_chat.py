"""The chat archive: conversations, messages and their vectors; views over conversations."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

VECTOR_INDEXES = {
    "text-embedding-3-large": 3072,
    "text-embedding-3-small": 1536,
    "bge-m3": 1024,
    "all-MiniLM-L6-v2": 384,
    "hashing": 384,
}

COMMENTS = {
    "conversations": {
        "created_at": "when it began, by its source",
        "source_id": "its identifier where it came from",
        "source_type": "chatgpt, claude, openwebui, ...; native: written here",
        "source_updated_at": "when it last changed there: an older export is not news",
        "record_hash": "SHA-256 of the conversation as imported, to know it again",
        "imported_from": "path of the file that last wrote this row",
    },
    "messages": {
        "metadata": "what the source says beside the text: parts without text, model, its own ids",
        "created_at": "when it was said",
        "version": "counts changes of the content, from 1",
        "language": "text search configuration of this message",
        "message_search": "the words a search reads, of the first 100,000 characters",
        "branch": "0: the conversation as it stands; others were abandoned, numbered depth first "
        "and the deepest fork first, so that the turn before is of the greatest branch not above "
        "this one",
        "position": "distance from the first turn, from 0; given by a trigger where it is null",
    },
    "message_embeddings": {
        "model_name": "which model made the vector",
        "embedding": "compared by cosine distance",
        "dimensions": "length of the vector",
        "content_hash": "SHA-256 of the text that was embedded",
    },
}

# As for the words of the knowledge corpus: 2,000 lists some 13,000 lexemes.
SEARCH_STATISTICS = 2000


def upgrade() -> None:
    op.execute("""
        CREATE TABLE conversations (
            id uuid CONSTRAINT pk_conversations PRIMARY KEY DEFAULT gen_random_uuid(),
            title text NOT NULL DEFAULT '',
            created_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now(),
            source_id varchar(255),
            source_type varchar(50) NOT NULL DEFAULT 'native',
            source_updated_at timestamptz,
            is_saved boolean NOT NULL DEFAULT false,
            record_hash bytea,
            imported_from text,
            CONSTRAINT uq_conversations_source_type_source_id UNIQUE (source_type, source_id),
            CONSTRAINT non_empty_source_type CHECK (length(trim(source_type)) > 0),
            CONSTRAINT readable_times CHECK (
                created_at BETWEEN to_timestamp(-62104060800) AND to_timestamp(253370764800) AND
                updated_at BETWEEN to_timestamp(-62104060800) AND to_timestamp(253370764800) AND
                source_updated_at BETWEEN to_timestamp(-62104060800) AND to_timestamp(253370764800))
        )
    """)
    op.create_index("idx_conversations_created_at", "conversations", ["created_at", "id"])
    op.create_index("idx_conversations_updated_at", "conversations", ["updated_at", "id"])
    op.execute("CREATE INDEX idx_conversations_saved ON conversations (id) WHERE is_saved")

    # The limit of a tsvector is 1 MiB: 100,000 characters stay below it, whatever they are.
    op.execute("""
        CREATE TABLE messages (
            id uuid CONSTRAINT pk_messages PRIMARY KEY DEFAULT gen_random_uuid(),
            conversation_id uuid NOT NULL CONSTRAINT fk_messages_conversation_id
                REFERENCES conversations (id) ON DELETE CASCADE,
            branch integer NOT NULL DEFAULT 0,
            position integer NOT NULL,
            role varchar(20) NOT NULL,
            content text NOT NULL,
            metadata jsonb NOT NULL DEFAULT '{}',
            created_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now(),
            version integer NOT NULL DEFAULT 1,
            language regconfig NOT NULL DEFAULT 'english',
            message_search tsvector NOT NULL
                GENERATED ALWAYS AS (to_tsvector(language, left(content, 100000))) STORED,
            CONSTRAINT uq_messages_conversation_id_branch_position
                UNIQUE (conversation_id, branch, position) DEFERRABLE,
            CONSTRAINT non_empty_message CHECK (content ~ '\\S'),
            CONSTRAINT valid_role CHECK (role IN ('user', 'assistant', 'system', 'tool')),
            CONSTRAINT valid_position CHECK (branch >= 0 AND position >= 0),
            CONSTRAINT valid_version CHECK (version > 0),
            CONSTRAINT readable_times CHECK (
                created_at BETWEEN to_timestamp(-62104060800) AND to_timestamp(253370764800) AND
                updated_at BETWEEN to_timestamp(-62104060800) AND to_timestamp(253370764800))
        )
    """)
    op.execute(
        f"ALTER TABLE messages ALTER COLUMN message_search SET STATISTICS {SEARCH_STATISTICS}"
    )
    op.create_index(
        "idx_messages_conversation_created", "messages", ["conversation_id", "created_at"]
    )
    op.create_index("idx_messages_role", "messages", ["role"])
    op.create_index("idx_messages_created_at", "messages", ["created_at", "id"])
    op.execute("CREATE INDEX idx_messages_search ON messages USING gin (message_search)")
    op.execute(
        "CREATE INDEX idx_messages_content_trgm ON messages USING gin (content gin_trgm_ops)"
    )

    op.execute("""
        CREATE TABLE message_embeddings (
            id uuid CONSTRAINT pk_message_embeddings PRIMARY KEY DEFAULT gen_random_uuid(),
            message_id uuid NOT NULL CONSTRAINT fk_message_embeddings_message_id
                REFERENCES messages (id) ON DELETE CASCADE,
            model_name varchar(100) NOT NULL,
            embedding vector NOT NULL,
            dimensions integer NOT NULL GENERATED ALWAYS AS (vector_dims(embedding)) STORED,
            content_hash bytea NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT uq_message_embeddings_message_id_model_name UNIQUE (message_id, model_name),
            CONSTRAINT valid_model_name
                FOREIGN KEY (model_name) REFERENCES embedding_models (name),
            CONSTRAINT valid_embedding_dimensions
                FOREIGN KEY (model_name, dimensions) REFERENCES embedding_models (name, dimensions),
            CONSTRAINT nonzero_embedding CHECK (vector_norm(embedding) > 0)
        )
    """)
    op.execute("ALTER TABLE message_embeddings ALTER COLUMN embedding SET STATISTICS 0")
    for model, dimensions in VECTOR_INDEXES.items():
        slug = "".join(c if c.isalnum() else "_" for c in model.lower())
        op.execute(f"""
            CREATE INDEX message_embeddings_hnsw_{slug} ON message_embeddings
            USING hnsw ((embedding::halfvec({dimensions})) halfvec_cosine_ops)
            WITH (m = 16, ef_construction = 64) WHERE model_name = '{model}'
        """)
    op.create_index("idx_message_embeddings_model", "message_embeddings", ["model_name"])

    for table, columns in COMMENTS.items():
        for column, comment in columns.items():
            op.execute(f"COMMENT ON COLUMN {table}.{column} IS '{comment}'")
    for table in ("conversations", "messages", "message_embeddings"):
        op.execute(f"""
            CREATE TRIGGER set_updated_at BEFORE UPDATE ON {table}
            FOR EACH ROW EXECUTE FUNCTION set_updated_at()
        """)
    _version()
    _position()
    _outbox()
    _views()


def _version() -> None:
    op.execute("""
        CREATE FUNCTION increment_version() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NEW.version = OLD.version + 1;
            RETURN NEW;
        END $$
    """)
    op.execute("""
        CREATE TRIGGER increment_version BEFORE UPDATE ON messages FOR EACH ROW
        WHEN (OLD.content IS DISTINCT FROM NEW.content) EXECUTE FUNCTION increment_version()
    """)


def _position() -> None:
    """The conversation is locked, or two who append at once would get the same place."""
    op.execute("""
        CREATE FUNCTION append_message() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            EXECUTE 'SELECT FROM ' || quote_ident(TG_TABLE_SCHEMA) || '.conversations'
                || ' WHERE id = $1 FOR NO KEY UPDATE' USING NEW.conversation_id;
            EXECUTE 'SELECT coalesce(max(position) + 1, 0) FROM '
                || quote_ident(TG_TABLE_SCHEMA) || '.messages'
                || ' WHERE conversation_id = $1 AND branch = $2'
                INTO NEW.position USING NEW.conversation_id, NEW.branch;
            RETURN NEW;
        END $$
    """)
    op.execute("""
        CREATE TRIGGER append_message BEFORE INSERT ON messages FOR EACH ROW
        WHEN (NEW.position IS NULL) EXECUTE FUNCTION append_message()
    """)


def _outbox() -> None:
    op.execute("""
        CREATE TRIGGER enqueue_embedding_of_new AFTER INSERT ON messages
        REFERENCING NEW TABLE AS current
        FOR EACH STATEMENT EXECUTE FUNCTION enqueue_embedding('chat', 'content')
    """)
    op.execute("""
        CREATE TRIGGER enqueue_embedding_of_changed AFTER UPDATE ON messages
        REFERENCING OLD TABLE AS former NEW TABLE AS current
        FOR EACH STATEMENT EXECUTE FUNCTION enqueue_embedding('chat', 'content')
    """)


def _views() -> None:
    """Each row is made from indexes for its conversation alone: a page reads what it shows."""
    op.execute("""
        CREATE VIEW conversation_summaries WITH (security_invoker = true) AS
        SELECT conversations.id, title, source_type, source_id, is_saved,
               conversations.created_at, conversations.updated_at,
               message_count, first_message_at, last_message_at, coalesce(preview, '') AS preview
        FROM conversations
        CROSS JOIN LATERAL (
            SELECT count(*) AS message_count, min(messages.created_at) AS first_message_at,
                   max(messages.created_at) AS last_message_at
            FROM messages WHERE conversation_id = conversations.id AND branch = 0
        ) AS spoken
        LEFT JOIN LATERAL (
            SELECT left(content, 200) AS preview
            FROM messages WHERE conversation_id = conversations.id AND branch = 0
            ORDER BY (role IN ('user', 'assistant')) DESC, position LIMIT 1
        ) AS beginning ON true
    """)
    corpora = (
        ("knowledge", "framework_documents", "chunk_embeddings", "document_id",
         "title || E'\\n' || content"),
        ("chat", "messages", "message_embeddings", "message_id", "content"),
    )  # fmt: skip
    parts = (
        f"""
        SELECT corpus, active_model AS model_name, total, embedded,
               CASE total WHEN 0 THEN 100 ELSE round(100.0 * embedded / total, 1) END AS percent,
               stale
        FROM corpus_settings CROSS JOIN LATERAL (
            SELECT count(*) AS total, count(*) FILTER (WHERE fresh) AS embedded,
                   count(*) FILTER (WHERE NOT fresh) AS stale
            FROM (
                SELECT content_hash = sha256(convert_to({embedded}, 'UTF8')) AS fresh
                FROM {passages} AS passage LEFT JOIN {vectors} AS vector
                    ON {item} = passage.id AND model_name = active_model
            ) AS compared
        ) AS counted
        WHERE corpus = '{corpus}'
        """
        for corpus, passages, vectors, item, embedded in corpora
    )
    op.execute(f"CREATE VIEW embedding_coverage AS {' UNION ALL '.join(parts)}")


def downgrade() -> None:
    op.execute("DROP VIEW embedding_coverage")
    op.execute("DROP VIEW conversation_summaries")
    for table in ("message_embeddings", "messages", "conversations"):
        op.execute(f"DROP TABLE {table}")
    op.execute("DROP FUNCTION append_message")
    op.execute("DROP FUNCTION increment_version")
