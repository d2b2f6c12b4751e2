"""The curated knowledge base: documents, vectors, metadata, concepts and source lines."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# model → (dimensions, name of its index)
VECTOR_INDEXES = {
    "text-embedding-3-large": (3072, "idx_embeddings_vector"),
    "text-embedding-3-small": (1536, "chunk_embeddings_hnsw_text_embedding_3_small"),
    "bge-m3": (1024, "chunk_embeddings_hnsw_bge_m3"),
    "all-MiniLM-L6-v2": (384, "chunk_embeddings_hnsw_all_minilm_l6_v2"),
    "hashing": (384, "chunk_embeddings_hnsw_hashing"),
}

COMMENTS = {
    "framework_documents": {
        "chunk_id": "the author''s own identifier",
        "source_file": "the text it was cut from",
        "language": "text search configuration of this chunk",
        "search_vector": "the words a search reads; the title weighs more",
        "extra": "fields of the file that have no column",
        "imported_from": "path of the file that last wrote this row",
        "record_hash": "SHA-256 of the record as imported, to know it again",
    },
    "chunk_embeddings": {
        "model_name": "which model made the vector",
        "embedding": "compared by cosine distance",
        "dimensions": "length of the vector",
        "content_hash": "SHA-256 of the text that was embedded",
    },
    "framework_metadata": {
        "overlap_with_previous": "text repeated from the end of the chunk before",
        "validation_passed": "searches show only what passed, unless asked",
    },
}

# The most distinct elements a tsvector's statistics may list; ranking reads how rare a word is
# from them. 2,000 lists some 13,000 lexemes.
SEARCH_STATISTICS = 2000


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
            CONSTRAINT valid_source_file CHECK (source_file ~ '^[A-Za-z0-9_.-]+$'),
            CONSTRAINT readable_times CHECK (
                created_at BETWEEN to_timestamp(-62104060800) AND to_timestamp(253370764800) AND
                updated_at BETWEEN to_timestamp(-62104060800) AND to_timestamp(253370764800))
        )
    """)
    op.execute(
        "ALTER TABLE framework_documents"
        f" ALTER COLUMN search_vector SET STATISTICS {SEARCH_STATISTICS}"
    )
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
    op.execute("""
        CREATE INDEX idx_documents_trigram ON framework_documents
        USING gin ((title || ' ' || content) gin_trgm_ops)
    """)

    op.execute("""
        CREATE TABLE chunk_embeddings (
            id uuid CONSTRAINT pk_chunk_embeddings PRIMARY KEY DEFAULT gen_random_uuid(),
            document_id uuid NOT NULL CONSTRAINT fk_chunk_embeddings_document_id
                REFERENCES framework_documents (id) ON DELETE CASCADE,
            model_name varchar(100) NOT NULL DEFAULT 'text-embedding-3-large',
            embedding vector NOT NULL,
            dimensions integer NOT NULL GENERATED ALWAYS AS (vector_dims(embedding)) STORED,
            content_hash bytea NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT uq_chunk_embeddings_document_id_model_name UNIQUE (document_id, model_name),
            CONSTRAINT valid_model_name
                FOREIGN KEY (model_name) REFERENCES embedding_models (name),
            CONSTRAINT valid_embedding_dimensions
                FOREIGN KEY (model_name, dimensions) REFERENCES embedding_models (name, dimensions),
            CONSTRAINT non_null_embedding CHECK (embedding IS NOT NULL),
            CONSTRAINT nonzero_embedding CHECK (vector_norm(embedding) > 0)
        )
    """)
    for model, (dimensions, index) in VECTOR_INDEXES.items():
        op.execute(f"""
            CREATE INDEX {index} ON chunk_embeddings
            USING hnsw ((embedding::halfvec({dimensions})) halfvec_cosine_ops)
            WITH (m = 16, ef_construction = 64) WHERE model_name = '{model}'
        """)
    op.create_index("idx_embeddings_document_id", "chunk_embeddings", ["document_id"])
    op.create_index("idx_embeddings_model", "chunk_embeddings", ["model_name"])
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

    for table, columns in COMMENTS.items():
        for column, comment in columns.items():
            op.execute(f"COMMENT ON COLUMN {table}.{column} IS '{comment}'")
    for table in ("framework_documents", "chunk_embeddings"):
        op.execute(f"""
            CREATE TRIGGER set_updated_at BEFORE UPDATE ON {table}
            FOR EACH ROW EXECUTE FUNCTION set_updated_at()
        """)


def downgrade() -> None:
    for table in (
        "source_lines",
        "document_concepts",
        "key_concepts",
        "framework_metadata",
        "chunk_embeddings",
        "framework_documents",
    ):
        op.execute(f"DROP TABLE {table}")
