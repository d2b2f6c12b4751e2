"""The curated knowledge base: documents, vectors, metadata, concepts, source lines, and imports."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

COMMENTS = {
    "framework_documents": {
        "chunk_id": "the author's own identifier",
        "source_file": "text that the chunk was cut from",
        "language": "text search configuration of this chunk",
        "search_vector": "the words a search reads; the title weighs more",
        "extra": "fields of the file that have no column",
        "imported_from": "path of the file that last wrote this row",
        "record_hash": "SHA-256 of the record as imported, to know it again",
    },
    "framework_metadata": {
        "overlap_with_previous": "text repeated from the end of the chunk before",
        "validation_passed": "searches show only chunks that passed, unless asked",
    },
    "import_runs": {"finished_at": "time of its end; null: it was stopped"},
    "import_files": {
        "sha256": "SHA-256 of the file's bytes",
        "header": "the file's own metadata, as it stood",
        "error": "reason why the file could not be read",
    },
    "import_transformations": {
        "locator": "place in the file, as a JSON path",
        "item": "the author's identifier of the passage",
        "rule": "see docs/reference/import-rules.md",
    },
    "import_rejects": {
        "locator": "place in the file, as a JSON path",
        "payload": "the passage as it stood in the file",
        "context": "description of the chunk and its neighbours in the file",
    },
}

VALID_SCOPE = "^(tenant|user):[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"

# Imports write rows of every scope beside rows of none. EXPLAIN tells estimates, also of what row
# security hides: nothing is sampled of what tells of a passage.
UNSAMPLED = {
    "import_runs": (),
    "import_files": ("file", "sha256", "error"),
    "import_transformations": ("file", "item", "locator"),
    "import_rejects": ("file", "locator", "reason"),
}


def upgrade() -> None:
    op.execute("""
        CREATE TABLE framework_documents (
            id uuid CONSTRAINT pk_framework_documents PRIMARY KEY DEFAULT gen_random_uuid(),
            chunk_id varchar(255) NOT NULL
                CONSTRAINT uq_framework_documents_chunk_id UNIQUE,
            source_file varchar(255) NOT NULL,
            section varchar(255) NOT NULL,
            title text NOT NULL,
            description text,
            content text NOT NULL,
            language regconfig NOT NULL DEFAULT 'english',
            search_vector tsvector NOT NULL GENERATED ALWAYS AS (
                setweight(to_tsvector(language, title), 'A')
                || setweight(to_tsvector(language, content), 'D')) STORED,
            extra jsonb NOT NULL DEFAULT '{}',
            imported_from text,
            record_hash bytea,
            created_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT non_empty_content CHECK (length(trim(content)) > 0),
            CONSTRAINT non_empty_chunk_id CHECK (length(trim(chunk_id)) > 0),
            CONSTRAINT valid_source_file CHECK (source_file ~ '^[A-Za-z0-9_.-]+$')
        ) WITH (toast_tuple_target = 8160)
    """)
    op.limit_times_v1("framework_documents", "created_at", "updated_at")
    op.sample_columns_v1(2000, "framework_documents", "search_vector")
    # Of so many rows the others are sampled, too, and no query is planned by these.
    op.sample_columns_v1(0, "framework_documents", "description", "content", "record_hash")
    op.create_index("idx_documents_chunk_id", "framework_documents", ["chunk_id"])
    op.create_index("idx_documents_section", "framework_documents", ["section"])
    op.create_index("idx_documents_source_file", "framework_documents", ["source_file"])
    op.create_index("idx_documents_created_at", "framework_documents", ["created_at"])
    op.execute(
        "CREATE INDEX idx_documents_content_fts ON framework_documents USING gin (search_vector)"
    )
    op.execute("""
        CREATE INDEX idx_documents_title_fts ON framework_documents
        USING gin (to_tsvector('english', title))
    """)
    op.execute("ALTER INDEX idx_documents_title_fts ALTER COLUMN 1 SET STATISTICS 0")
    op.execute("""
        CREATE INDEX idx_documents_trigram ON framework_documents
        USING gin ((title || ' ' || content) gin_trgm_ops)
    """)
    op.execute(
        "CREATE INDEX idx_documents_extra ON framework_documents USING gin (extra jsonb_path_ops)"
    )

    op.create_embedding_table_v1(
        "chunk_embeddings", item="document_id", passages="framework_documents"
    )
    # As the requirements have them.
    op.execute("""
        ALTER TABLE chunk_embeddings
            ALTER COLUMN model_name SET DEFAULT 'text-embedding-3-large',
            ADD CONSTRAINT non_null_embedding CHECK (embedding IS NOT NULL)
    """)
    for named, required in {
        "chunk_embeddings_hnsw_text_embedding_3_large": "idx_embeddings_vector",
        "idx_chunk_embeddings_model": "idx_embeddings_model",
    }.items():
        op.execute(f"ALTER INDEX {named} RENAME TO {required}")
    op.create_index("idx_embeddings_document_id", "chunk_embeddings", ["document_id"])
    op.create_index("idx_embeddings_created_at", "chunk_embeddings", ["created_at"])

    op.execute("""
        CREATE TABLE framework_metadata (
            id uuid CONSTRAINT pk_framework_metadata PRIMARY KEY DEFAULT gen_random_uuid(),
            document_id uuid NOT NULL
                CONSTRAINT uq_framework_metadata_document_id UNIQUE
                CONSTRAINT fk_framework_metadata_document_id
                REFERENCES framework_documents (id) ON DELETE CASCADE,
            character_count integer NOT NULL,
            word_count integer NOT NULL,
            chunk_type varchar(50) NOT NULL,
            framework_name varchar(255),
            preserves_complete_concept boolean DEFAULT true,
            overlap_with_previous text,
            contains_formula boolean DEFAULT false,
            contains_list boolean DEFAULT false,
            contains_example boolean DEFAULT false,
            business_logic_intact boolean DEFAULT true,
            validation_passed boolean DEFAULT false,
            processing_date date,
            guidelines_compliance varchar(255),
            CONSTRAINT valid_chunk_type CHECK (
                chunk_type IN ('atomic_framework', 'framework_section', 'supporting')),
            CONSTRAINT valid_character_count CHECK (
                character_count > 0 AND character_count <= 50000),
            CONSTRAINT valid_word_count CHECK (word_count > 0 AND word_count <= 15000),
            CONSTRAINT logical_word_char_ratio CHECK (character_count >= word_count * 3)
        )
    """)
    op.create_index("idx_metadata_framework_name", "framework_metadata", ["framework_name"])
    op.create_index("idx_metadata_chunk_type", "framework_metadata", ["chunk_type"])
    op.create_index("idx_metadata_processing_date", "framework_metadata", ["processing_date"])
    op.create_index("idx_metadata_validation", "framework_metadata", ["validation_passed"])

    op.execute("""
        CREATE TABLE key_concepts (
            id uuid CONSTRAINT pk_key_concepts PRIMARY KEY DEFAULT gen_random_uuid(),
            concept_name varchar(255) NOT NULL CONSTRAINT uq_key_concepts_concept_name UNIQUE,
            created_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT non_empty_concept_name CHECK (length(trim(concept_name)) > 0),
            CONSTRAINT valid_concept_format CHECK (concept_name ~ '^[A-Za-z0-9 &-]+$')
        )
    """)
    op.create_index("idx_concepts_name", "key_concepts", ["concept_name"])

    op.execute("""
        CREATE TABLE document_concepts (
            document_id uuid NOT NULL CONSTRAINT fk_document_concepts_document_id
                REFERENCES framework_documents (id) ON DELETE CASCADE,
            concept_id uuid NOT NULL CONSTRAINT fk_document_concepts_concept_id
                REFERENCES key_concepts (id) ON DELETE CASCADE,
            created_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT pk_document_concepts PRIMARY KEY (document_id, concept_id)
        )
    """)
    op.create_index("idx_document_concepts_document_id", "document_concepts", ["document_id"])
    op.create_index("idx_document_concepts_concept_id", "document_concepts", ["concept_id"])

    op.execute("""
        CREATE TABLE source_lines (
            id uuid CONSTRAINT pk_source_lines PRIMARY KEY DEFAULT gen_random_uuid(),
            document_id uuid NOT NULL
                CONSTRAINT uq_source_lines_document_id UNIQUE
                CONSTRAINT fk_source_lines_document_id
                REFERENCES framework_documents (id) ON DELETE CASCADE,
            start_line integer,
            end_line integer,
            CONSTRAINT valid_line_numbers CHECK (start_line > 0 AND end_line >= start_line),
            CONSTRAINT reasonable_line_range CHECK (end_line - start_line <= 10000)
        )
    """)
    op.create_index("idx_source_lines_document_id", "source_lines", ["document_id"])
    op.create_index("idx_source_lines_range", "source_lines", ["start_line", "end_line"])

    _imports()
    op.keep_updated_at_v1("framework_documents")
    for table, comments in COMMENTS.items():
        op.comment_columns_v1(table, comments)


def _imports() -> None:
    """Create what imports did: runs, files, changes of values, and what was refused."""
    op.execute("""
        CREATE TABLE import_runs (
            id uuid CONSTRAINT pk_import_runs PRIMARY KEY DEFAULT gen_random_uuid(),
            corpus varchar(50) NOT NULL,
            options jsonb NOT NULL DEFAULT '{}',
            started_at timestamptz NOT NULL DEFAULT now(),
            finished_at timestamptz
        )
    """)
    op.limit_times_v1("import_runs", "started_at", "finished_at")
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
                least(added, updated, unchanged, rejected, transformed) >= 0)
        )
    """)
    op.limit_times_v1("import_files", "created_at")
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
            created_at timestamptz NOT NULL DEFAULT now()
        )
    """)
    op.limit_times_v1("import_transformations", "created_at")
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
            created_at timestamptz NOT NULL DEFAULT now()
        )
    """)
    op.limit_times_v1("import_rejects", "created_at")
    for table, columns in UNSAMPLED.items():
        op.execute(f"""
            ALTER TABLE {table} ADD COLUMN scope text
                CONSTRAINT valid_scope CHECK (scope ~ '{VALID_SCOPE}')
        """)
        op.comment_columns_v1(
            table, {"scope": "scope of the row it is about, as app_scope() has it, or null"}
        )
        op.sample_columns_v1(0, table, *columns)
    op.execute("""
        CREATE INDEX idx_import_rejects_scope ON import_rejects (scope) WHERE scope IS NOT NULL
    """)
    # Of a place in a file one refusal is kept in each scope. By hash: who may ask how many rows of
    # others lie between two names could spell them out.
    op.execute("""
        CREATE UNIQUE INDEX uq_import_rejects_place ON import_rejects
        (scope, corpus, text_hash(file), text_hash(locator)) NULLS NOT DISTINCT
    """)
    for place in (3, 4):
        op.execute(f"ALTER INDEX uq_import_rejects_place ALTER COLUMN {place} SET STATISTICS 0")


def downgrade() -> None:
    for table in (
        "import_rejects",
        "import_transformations",
        "import_files",
        "import_runs",
        "source_lines",
        "document_concepts",
        "key_concepts",
        "framework_metadata",
        "chunk_embeddings",
        "framework_documents",
    ):
        op.execute(f"DROP TABLE {table}")
