"""The extensions: vectors and trigrams.

An extension that was there before is not ours to drop: those made here are marked by a comment.
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

EXTENSIONS = ("vector", "pg_trgm")
MARK = "made by pgcorpus"

# All that any revision needs, so that an administrator is asked once.
REMEDY = "; ".join(f"CREATE EXTENSION IF NOT EXISTS {name}" for name in (*EXTENSIONS, "pgcrypto"))


def upgrade() -> None:
    for name in EXTENSIONS:
        op.execute(f"""
            DO $$ BEGIN
                IF NOT EXISTS (SELECT FROM pg_extension WHERE extname = '{name}') THEN
                    CREATE EXTENSION {name};
                    COMMENT ON EXTENSION {name} IS '{MARK}';
                END IF;
            EXCEPTION WHEN insufficient_privilege THEN
                RAISE insufficient_privilege USING
                    MESSAGE = current_user || ' may not make the extension {name}',
                    HINT = 'An administrator makes what pgcorpus needs, once in the database '
                        || quote_ident(current_database()) || ', with: {REMEDY}';
            END $$
        """)


def downgrade() -> None:
    for name in reversed(EXTENSIONS):
        op.execute(f"""
            DO $$ BEGIN
                IF (SELECT obj_description(oid, 'pg_extension') FROM pg_extension
                    WHERE extname = '{name}') = '{MARK}' THEN
                    DROP EXTENSION {name};
                END IF;
            END $$
        """)
