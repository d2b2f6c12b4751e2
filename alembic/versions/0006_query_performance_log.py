"""How long searches take."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

COMMENTS = {
    "query_type": "vector_search, text_search, fuzzy_search or hybrid_search",
    "duration": "milliseconds, embedding the question included",
    "degraded": "whether a leg did not answer",
}


def upgrade() -> None:
    op.execute("""
        CREATE TABLE query_performance_log (
            id bigint GENERATED ALWAYS AS IDENTITY
                CONSTRAINT pk_query_performance_log PRIMARY KEY,
            timestamp timestamptz NOT NULL DEFAULT now(),
            query_type varchar(50) NOT NULL,
            corpus varchar(50) NOT NULL,
            duration double precision NOT NULL,
            hits integer NOT NULL,
            degraded boolean NOT NULL
        )
    """)
    op.create_index("idx_query_performance_log_timestamp", "query_performance_log", ["timestamp"])
    for column, comment in COMMENTS.items():
        op.execute(f"COMMENT ON COLUMN query_performance_log.{column} IS '{comment}'")


def downgrade() -> None:
    op.execute("DROP TABLE query_performance_log")
