"""Kinds of vector indexes, and the way back after a switch of the model."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

COMMENTS = {
    "embedding_models": {
        "index_kind": "what its HNSW index holds: halfvec, or binary (one bit per dimension)",
        "retired_at": "when a corpus last changed from it to another; its searches may still run",
    },
    "corpus_settings": {"previous_model": "the model before, to roll back to"},
}


def upgrade() -> None:
    op.execute("""
        ALTER TABLE embedding_models
            ADD COLUMN index_kind varchar(20) NOT NULL DEFAULT 'halfvec',
            ADD COLUMN retired_at timestamptz
    """)
    # These were searched without an index: a halfvec of so many dimensions cannot have one.
    op.execute("UPDATE embedding_models SET index_kind = 'binary' WHERE dimensions > 4000")
    op.execute("""
        ALTER TABLE embedding_models ADD CONSTRAINT valid_index_kind CHECK (
            index_kind = 'binary' OR (index_kind = 'halfvec' AND dimensions <= 4000))
    """)
    op.execute("""
        ALTER TABLE corpus_settings ADD COLUMN previous_model varchar(100)
            CONSTRAINT fk_corpus_settings_previous_model
            REFERENCES embedding_models (name) ON DELETE SET NULL
    """)
    for table, columns in COMMENTS.items():
        for column, comment in columns.items():
            op.execute(f"COMMENT ON COLUMN {table}.{column} IS '{comment}'")


def downgrade() -> None:
    op.execute("ALTER TABLE corpus_settings DROP COLUMN previous_model")
    op.execute("ALTER TABLE embedding_models DROP COLUMN index_kind, DROP COLUMN retired_at")
