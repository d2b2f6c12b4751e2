"""What imports did: runs, files, every change made to a value, and what was refused."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

COMMENTS = {
    "import_runs": {"finished_at": "null: it was stopped"},
    "import_files": {
        "sha256": "of the file''s bytes",
        "header": "the file''s own metadata, as it stood",
        "error": "why the file could not be read",
    },
    "import_transformations": {
        "locator": "where in the file, as a JSON path",
        "item": "the author''s identifier of the passage",
        "rule": "see docs/reference/import-rules.md",
    },
    "import_rejects": {
        "locator": "where in the file, as a JSON path",
        "payload": "the passage as it stood in the file",
        "context": "what the file says of this and its neighbours",
    },
}


def upgrade() -> None:
    op.execute("""
        CREATE TABLE import_runs (
            id uuid CONSTRAINT pk_import_runs PRIMARY KEY DEFAULT gen_random_uuid(),
            corpus varchar(50) NOT NULL,
            options jsonb NOT NULL DEFAULT '{}',
            started_at timestamptz NOT NULL DEFAULT now(),
            finished_at timestamptz,
            CONSTRAINT readable_times CHECK (
                started_at BETWEEN to_timestamp(-62104060800) AND to_timestamp(253370764800) AND
                finished_at BETWEEN to_timestamp(-62104060800) AND to_timestamp(253370764800))
        )
    """)
    op.execute("""
        CREATE TABLE import_files (
            id uuid CONSTRAINT pk_import_files PRIMARY KEY DEFAULT gen_random_uuid(),
            run_id uuid NOT NULL CONSTRAINT fk_import_files_run_id
                REFERENCES import_runs (id) ON DELETE CASCADE,
            file text NOT NULL,
            sha256 bytea,
            header json,
            error text,
            added integer NOT NULL DEFAULT 0,
            updated integer NOT NULL DEFAULT 0,
            unchanged integer NOT NULL DEFAULT 0,
            rejected integer NOT NULL DEFAULT 0,
            transformed integer NOT NULL DEFAULT 0,
            created_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT valid_counts CHECK (
                least(added, updated, unchanged, rejected, transformed) >= 0),
            CONSTRAINT readable_times CHECK (
                created_at BETWEEN to_timestamp(-62104060800) AND to_timestamp(253370764800))
        )
    """)
    op.create_index("ix_import_files_run_id", "import_files", ["run_id"])
    # json and not jsonb: an original may hold what jsonb cannot, such as a NUL character.
    op.execute("""
        CREATE TABLE import_transformations (
            id bigint GENERATED ALWAYS AS IDENTITY
                CONSTRAINT pk_import_transformations PRIMARY KEY,
            run_id uuid NOT NULL CONSTRAINT fk_import_transformations_run_id
                REFERENCES import_runs (id) ON DELETE CASCADE,
            file text NOT NULL,
            locator text NOT NULL,
            item text NOT NULL,
            field text NOT NULL,
            original json,
            stored json,
            rule varchar(50) NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT readable_times CHECK (
                created_at BETWEEN to_timestamp(-62104060800) AND to_timestamp(253370764800))
        )
    """)
    op.create_index("ix_import_transformations_run_id", "import_transformations", ["run_id"])
    # By hash: an index in an order could be asked how many rows of others lie between two values.
    op.create_index(
        "ix_import_transformations_item",
        "import_transformations",
        ["item"],
        postgresql_using="hash",
    )
    op.execute("""
        CREATE TABLE import_rejects (
            id uuid CONSTRAINT pk_import_rejects PRIMARY KEY DEFAULT gen_random_uuid(),
            run_id uuid NOT NULL CONSTRAINT fk_import_rejects_run_id
                REFERENCES import_runs (id) ON DELETE CASCADE,
            corpus varchar(50) NOT NULL,
            file text NOT NULL,
            locator text NOT NULL,
            reason text NOT NULL,
            payload json NOT NULL,
            context json,
            created_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT uq_import_rejects_corpus_file_locator UNIQUE (corpus, file, locator),
            CONSTRAINT readable_times CHECK (
                created_at BETWEEN to_timestamp(-62104060800) AND to_timestamp(253370764800))
        )
    """)
    for table, columns in COMMENTS.items():
        for column, comment in columns.items():
            op.execute(f"COMMENT ON COLUMN {table}.{column} IS '{comment}'")


def downgrade() -> None:
    for table in ("import_rejects", "import_transformations", "import_files", "import_runs"):
        op.execute(f"DROP TABLE {table}")
