"""The names that the knowledge seeds give are the names that the database has."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

# knowledge-engineering-spec.md and knowledge-migration-plan.md, in their order:
# column → its type and, where the seeds say so, NOT NULL.
COLUMNS = {
    "framework_documents": {
        "id": "uuid not null",
        "chunk_id": "character varying(255) not null",
        "source_file": "character varying(255) not null",
        "section": "character varying(255) not null",
        "title": "text not null",
        "description": "text",
        "content": "text not null",
        "created_at": "timestamp with time zone",
        "updated_at": "timestamp with time zone",
    },
    "chunk_embeddings": {
        "id": "uuid not null",
        "document_id": "uuid",
        "embedding": "vector",  # without a length, which is the model's
        "model_name": "character varying(100) not null",
        "created_at": "timestamp with time zone",
    },
    "framework_metadata": {
        "id": "uuid not null",
        "document_id": "uuid",
        "character_count": "integer not null",
        "word_count": "integer not null",
        "chunk_type": "character varying(50) not null",
        "framework_name": "character varying(255)",
        "preserves_complete_concept": "boolean",
        "overlap_with_previous": "text",
        "contains_formula": "boolean",
        "contains_list": "boolean",
        "contains_example": "boolean",
        "business_logic_intact": "boolean",
        "validation_passed": "boolean",
        "processing_date": "date",
        "guidelines_compliance": "character varying(255)",
    },
    "key_concepts": {
        "id": "uuid not null",
        "concept_name": "character varying(255) not null",
        "created_at": "timestamp with time zone",
    },
    "document_concepts": {
        "document_id": "uuid not null",
        "concept_id": "uuid not null",
        "created_at": "timestamp with time zone",
    },
    "source_lines": {
        "id": "uuid not null",
        "document_id": "uuid",
        "start_line": "integer",
        "end_line": "integer",
    },
}

DEFAULTS = {
    ("chunk_embeddings", "model_name"): "'text-embedding-3-large'::character varying",
    ("framework_metadata", "preserves_complete_concept"): "true",
    ("framework_metadata", "contains_formula"): "false",
    ("framework_metadata", "contains_list"): "false",
    ("framework_metadata", "contains_example"): "false",
    ("framework_metadata", "business_logic_intact"): "true",
    ("framework_metadata", "validation_passed"): "false",
    **{(table, "id"): "gen_random_uuid()" for table, columns in COLUMNS.items() if "id" in columns},
    **{
        (table, name): "now()"
        for table, columns in COLUMNS.items()
        for name in ("created_at", "updated_at")
        if name in columns
    },
}

# name → (table, the condition it holds rows to). Where the two seeds differ, both conditions hold.
CHECKS = {
    "non_empty_content": ("framework_documents", "length(TRIM(BOTH FROM content)) > 0"),
    "non_empty_chunk_id": ("framework_documents", "length(TRIM(BOTH FROM chunk_id)) > 0"),
    "valid_source_file": ("framework_documents", "source_file)::text ~ '^[A-Za-z0-9_.-]+$'"),
    "non_null_embedding": ("chunk_embeddings", "embedding IS NOT NULL"),
    "valid_chunk_type": ("framework_metadata", "'atomic_framework'"),
    "valid_character_count": ("framework_metadata", "character_count <= 50000"),
    "valid_word_count": ("framework_metadata", "word_count <= 15000"),
    "logical_word_char_ratio": ("framework_metadata", "character_count >= (word_count * 3)"),
    "non_empty_concept_name": ("key_concepts", "length(TRIM(BOTH FROM concept_name)) > 0"),
    "valid_concept_format": ("key_concepts", "concept_name)::text ~ '^[A-Za-z0-9 &-]+$'"),
    "valid_line_numbers": ("source_lines", "end_line >= start_line"),
    "reasonable_line_range": ("source_lines", "(end_line - start_line) <= 10000"),
}

# The seeds compare with a fixed list and a fixed length; here both are the registry's.
REGISTRY = {
    "valid_model_name": "FOREIGN KEY (model_name) REFERENCES embedding_models(name)",
    "valid_embedding_dimensions": "FOREIGN KEY (model_name, dimensions)"
    " REFERENCES embedding_models(name, dimensions)",
}

CASCADES = {
    ("chunk_embeddings", "document_id", "framework_documents"),
    ("framework_metadata", "document_id", "framework_documents"),
    ("document_concepts", "document_id", "framework_documents"),
    ("document_concepts", "concept_id", "key_concepts"),
    ("source_lines", "document_id", "framework_documents"),
}

UNIQUE = {("framework_documents", "chunk_id"), ("key_concepts", "concept_name")}

# name → (table, how it is built)
INDEXES = {
    "idx_documents_chunk_id": ("framework_documents", "btree (chunk_id)"),
    "idx_documents_section": ("framework_documents", "btree (section)"),
    "idx_documents_source_file": ("framework_documents", "btree (source_file)"),
    "idx_documents_created_at": ("framework_documents", "btree (created_at)"),
    # On the weighted column, not on the text: docs/decisions/0004-imports.md says why.
    "idx_documents_content_fts": ("framework_documents", "gin (search_vector)"),
    "idx_documents_title_fts": (
        "framework_documents",
        "gin (to_tsvector('english'::regconfig, title))",
    ),
    # The seeds' IVFFlat cannot hold 3,072 dimensions.
    "idx_embeddings_vector": (
        "chunk_embeddings",
        "hnsw (((embedding)::halfvec(3072)) halfvec_cosine_ops)",
    ),
    "idx_embeddings_document_id": ("chunk_embeddings", "btree (document_id)"),
    "idx_embeddings_model": ("chunk_embeddings", "btree (model_name)"),
    "idx_embeddings_created_at": ("chunk_embeddings", "btree (created_at)"),
    "idx_metadata_framework_name": ("framework_metadata", "btree (framework_name)"),
    "idx_metadata_chunk_type": ("framework_metadata", "btree (chunk_type)"),
    "idx_metadata_processing_date": ("framework_metadata", "btree (processing_date)"),
    "idx_metadata_validation": ("framework_metadata", "btree (validation_passed)"),
    "idx_concepts_name": ("key_concepts", "btree (concept_name)"),
    "idx_document_concepts_document_id": ("document_concepts", "btree (document_id)"),
    "idx_document_concepts_concept_id": ("document_concepts", "btree (concept_id)"),
    "idx_source_lines_document_id": ("source_lines", "btree (document_id)"),
    "idx_source_lines_range": ("source_lines", "btree (start_line, end_line)"),
}


def constraints(session: Session) -> dict[tuple[str, str], str]:
    """(table, name) → definition."""
    found = session.execute(
        text(
            "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)"
            " FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND conrelid <> 0"
        )
    )
    return {(table, name): definition for table, name, definition in found}


@pytest.mark.parametrize("table", COLUMNS)
def test_a_table_has_the_seeds_columns(session: Session, table: str) -> None:
    """By name and type, and nothing the seeds require may be missing from a row."""
    found = session.execute(
        text(
            "SELECT attname, format_type(atttypid, atttypmod), attnotnull, "
            " pg_get_expr(adbin, adrelid)"
            " FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum"
            " WHERE attrelid = CAST(:table AS regclass) AND attnum > 0 AND NOT attisdropped"
        ),
        {"table": table},
    )
    built = {name: (kind, required, default) for name, kind, required, default in found}

    for name, column in COLUMNS[table].items():
        kind, required, default = built[name]
        assert kind == column.removesuffix(" not null")
        assert required or not column.endswith(" not null")
        assert default == DEFAULTS.get((table, name))


def test_the_seeds_checks_hold(session: Session) -> None:
    """Every CHECK is on its table under its name, with its condition."""
    built = constraints(session)

    for name, (table, condition) in CHECKS.items():
        assert condition in built[table, name]
        assert built[table, name].startswith("CHECK")


def test_the_registry_rules_models_and_lengths(session: Session) -> None:
    """Two names of the seeds are foreign keys, so that a new model is a row."""
    built = constraints(session)

    for name, definition in REGISTRY.items():
        assert built["chunk_embeddings", name] == definition


def test_what_belongs_to_a_chunk_goes_with_it(session: Session) -> None:
    """ON DELETE CASCADE wherever the seeds have it."""
    definitions = {(table, definition) for (table, _), definition in constraints(session).items()}

    for table, column, parent in CASCADES:
        cascade = f"FOREIGN KEY ({column}) REFERENCES {parent}(id) ON DELETE CASCADE"
        assert (table, cascade) in definitions
    for table, column in UNIQUE:
        assert (table, f"UNIQUE ({column})") in definitions


def test_the_seeds_indexes_exist(session: Session) -> None:
    """Under their names, on their tables, of their kind."""
    found = session.execute(
        text("SELECT indexname, tablename, indexdef FROM pg_indexes WHERE schemaname = 'public'")
    )
    built = {name: (table, definition) for name, table, definition in found}

    for name, (table, how) in INDEXES.items():
        assert built[name][0] == table
        assert f"USING {how}" in built[name][1]
