"""The registry of embedding models, and which of them each corpus uses."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE FUNCTION set_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NEW.updated_at = now();
            RETURN NEW;
        END $$
    """)
    op.execute("""
        CREATE TABLE embedding_models (
            name varchar(100) CONSTRAINT pk_embedding_models PRIMARY KEY,
            dimensions integer NOT NULL,
            provider varchar(50) NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT uq_embedding_models_name_dimensions UNIQUE (name, dimensions),
            CONSTRAINT valid_dimensions CHECK (dimensions BETWEEN 1 AND 16000),
            CONSTRAINT valid_model_format CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._:/-]*$')
        )
    """)
    op.execute("COMMENT ON COLUMN embedding_models.provider IS 'who makes the vectors'")
    op.execute(
        "COMMENT ON COLUMN embedding_models.dimensions IS 'length of every vector of this model'"
    )
    op.execute("""
        INSERT INTO embedding_models (name, dimensions, provider) VALUES
            ('text-embedding-3-large', 3072, 'openai'),
            ('text-embedding-3-small', 1536, 'openai'),
            ('bge-m3', 1024, 'openai'),
            ('all-MiniLM-L6-v2', 384, 'local'),
            ('hashing', 384, 'hashing')
    """)
    op.execute("""
        CREATE TABLE corpus_settings (
            corpus varchar(50) CONSTRAINT pk_corpus_settings PRIMARY KEY,
            active_model varchar(100) NOT NULL
                CONSTRAINT fk_corpus_settings_active_model REFERENCES embedding_models (name),
            created_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now()
        )
    """)
    op.execute("COMMENT ON COLUMN corpus_settings.active_model IS 'the model searches use'")
    op.execute("""
        CREATE TRIGGER set_updated_at BEFORE UPDATE ON corpus_settings
        FOR EACH ROW EXECUTE FUNCTION set_updated_at()
    """)
    op.execute("""
        INSERT INTO corpus_settings (corpus, active_model) VALUES
            ('knowledge', 'text-embedding-3-large'),
            ('documentation', 'text-embedding-3-small'),
            ('memory', 'bge-m3'),
            ('chat', 'all-MiniLM-L6-v2')
    """)


def downgrade() -> None:
    op.execute("DROP TABLE corpus_settings")
    op.execute("DROP TABLE embedding_models")
    op.execute("DROP FUNCTION set_updated_at()")
