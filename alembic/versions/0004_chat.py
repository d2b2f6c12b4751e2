"""The chat archive: conversations, messages and their vectors; a view over conversations."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

COMMENTS = {
    "conversations": {
        "created_at": "time of its beginning, by its source",
        "source_id": "identifier in its source",
        "source_type": "chatgpt, claude, openwebui, ...; native for a conversation written here",
        "source_updated_at": "time of its last change in the source: an older export is not news",
        "record_hash": "SHA-256 of the conversation as imported, to know it again",
        "imported_from": "path of the file that last wrote this row",
    },
    "messages": {
        "metadata": "details of the source beside the text: parts without text, model, its own ids",
        "created_at": "time when it was said",
        "version": "number of the version of the content, from 1",
        "language": "text search configuration of this message",
        "message_search": "the words a search reads, of the first 100,000 characters",
        "branch": "0: the conversation as it stands; others were abandoned, numbered depth first "
        "and the deepest fork first, so that the turn before is of the greatest branch not above "
        "this one",
        "position": "distance from the first turn, from 0; given by a trigger where it is null",
    },
}


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
            CONSTRAINT non_empty_source_type CHECK (length(trim(source_type)) > 0)
        )
    """)
    op.limit_times_v1("conversations", "created_at", "updated_at", "source_updated_at")
    op.create_index("idx_conversations_created_at", "conversations", ["created_at", "id"])
    op.create_index("idx_conversations_updated_at", "conversations", ["updated_at", "id"])
    op.create_index("idx_conversations_source_id", "conversations", ["source_id"])
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
            CONSTRAINT valid_version CHECK (version > 0)
        ) WITH (toast_tuple_target = 8160)
    """)
    op.limit_times_v1("messages", "created_at", "updated_at")
    op.sample_columns_v1(2000, "messages", "message_search")
    op.create_index(
        "idx_messages_conversation_created", "messages", ["conversation_id", "created_at"]
    )
    op.create_index("idx_messages_role", "messages", ["role"])
    op.create_index("idx_messages_created_at", "messages", ["created_at", "id"])
    op.execute("CREATE INDEX idx_messages_search ON messages USING gin (message_search)")
    op.execute(
        "CREATE INDEX idx_messages_content_trgm ON messages USING gin (content gin_trgm_ops)"
    )
    op.execute("CREATE INDEX idx_messages_metadata ON messages USING gin (metadata jsonb_path_ops)")

    for table, comments in COMMENTS.items():
        op.comment_columns_v1(table, comments)
        op.keep_updated_at_v1(table)
    op.create_embedding_table_v1("message_embeddings", item="message_id", passages="messages")
    _version()
    _position()
    op.enqueue_embeddings_v1("messages", corpus="chat", embedded="content")
    _summaries()


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
    """Lock the conversation: two who append at once would get the same place."""
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


def _summaries() -> None:
    """Make each row from indexes for its conversation alone: a page reads only what it shows."""
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


def downgrade() -> None:
    op.execute("DROP VIEW conversation_summaries")
    for table in ("message_embeddings", "messages", "conversations"):
        op.execute(f"DROP TABLE {table}")
    op.execute("DROP FUNCTION append_message")
    op.execute("DROP FUNCTION increment_version")
