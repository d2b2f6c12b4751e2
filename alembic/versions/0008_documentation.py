"""Documentation and one's own documents: chunks, vectors, clicks; shared by all or a tenant's."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# Whose a row is: everybody's, or a tenant's. It is written and not generated, see 0006.
OWNER = """
            tenant_id uuid CONSTRAINT fk_{table}_tenant_id
                REFERENCES tenants (id) ON DELETE CASCADE,
            scope text NOT NULL DEFAULT coalesce(app_scope(), 'shared'),
            CONSTRAINT pk_{table} PRIMARY KEY (scope, id),
            CONSTRAINT scope_of_owner
                CHECK (scope = coalesce('tenant:' || tenant_id::text, 'shared'))
"""

# What users asked and opened is seen within their scope; what was asked without one, without one.
ASKED_IN = "coalesce(app_scope(), 'shared')"
POLICIES_OF_FEEDBACK = {
    "own_scope": f"USING (((SELECT jsonb_build_object({ASKED_IN}, true)))[scope] IS NOT NULL"
    f" AND scope = (SELECT {ASKED_IN})) WITH CHECK (scope = (SELECT {ASKED_IN}))"
}
FEEDBACK = ("click_feedback", "search_sessions")
LEARNED = ("learned_rankings", "chunk_boosts")

# See 0006: nothing is sampled of what documents say.
UNSAMPLED = {
    "documents": (
        "collection", "path", "title", "source_url", "hash", "content_type", "language", "etag",
        "last_modified", "metadata",
    ),
    "chunks": (
        "collection", "chunk_id", "heading", "anchor", "heading_path", "text", "url", "hash",
        "metadata", "chunker_version", "chunker_config", "lineage_id", "chunk_search",
    ),
    # Of passages that are everybody's neither: how often others have opened one is theirs.
    "click_feedback": (
        "query", "chunk_scope", "chunk_id", "session_id", "user_id", "dwell_time", "metadata",
    ),
    "search_sessions": (
        "session_id", "user_id", "query", "mode", "fusion", "weights", "shown", "metadata",
    ),
    "learned_rankings": ("weights", "estimate", "created_by"),
    "chunk_boosts": ("passage_scope", "chunk_id", "boost"),
}  # fmt: skip

CHUNKS = {
    "corpus": "documentation",
    "passages": "chunks",
    "vectors": "documentation_embeddings",
    "item": "chunk_id",
    "embedded": "chunk_text(heading_path, text)",
    "scoped": True,
}
COVERED_BEFORE = (
    {
        "corpus": "knowledge",
        "passages": "framework_documents",
        "vectors": "chunk_embeddings",
        "item": "document_id",
        "embedded": "title || E'\\n' || content",
    },
    {
        "corpus": "chat",
        "passages": "messages",
        "vectors": "message_embeddings",
        "item": "message_id",
        "embedded": "content",
    },
    {
        "corpus": "memory",
        "passages": "memory_nodes",
        "vectors": "memory_embeddings",
        "item": "node_key",
        "embedded": "human_content || E'\\n' || assistant_content",
        "key": "key",
        "scoped": True,
    },
    {
        "corpus": "episodes",
        "passages": "episodic_memories",
        "vectors": "episode_embeddings",
        "item": "episode_key",
        "embedded": "title || E'\\n' || content",
        "key": "key",
        "scoped": True,
    },
)

# The names that the seed gives to indexes that operations make under names of their own.
NAMES = {
    "idx_chunks_shared_words": "chunks_text_gin_idx",
    "documentation_embeddings_hnsw_text_embedding_3_small": "chunks_embedding_idx",
}

AUDITED = {
    # A hash that needs no key tells who guesses what was hashed.
    "documents": {"hashed": "path,title,source_url,hash,etag,metadata"},
    "chunks": {"hashed": "chunk_id,heading,anchor,heading_path,text,url,hash,metadata"},
    "documentation_embeddings": {"hashed": "content_hash"},
    "learned_rankings": {},
    "chunk_boosts": {},
}

OF_OWNER = {
    "tenant_id": "tenant whose own it is, or null where it is everybody's",
    "scope": "shared, or the scope that sees it, as app_scope() has it",
}
COMMENTS = {
    "documents": OF_OWNER
    | {
        "collection": "set of documents that are kept and searched together",
        "path": "path within the collection; one of each within a scope",
        "captured_at": "time when the source was read",
        "hash": "SHA-256 of the file, in hex: an unchanged one is not read again",
        "content_type": "such as text/markdown",
        "language": "language as the source names it",
        "last_modified": "time of the last change, as the web server told it",
        "last_crawled": "time of the last visit",
        "metadata": "front matter and what the caller gave",
    },
    "chunks": OF_OWNER
    | {
        "collection": "collection of its document",
        "chunk_id": "identifier that survives moves within the document; one of each within a "
        "collection of a scope",
        "position": "number in the order of the document, from 0",
        "heading": "heading that it stands under",
        "anchor": "fragment of the heading, as GitHub makes it",
        "heading_path": "headings from the highest level down to its own; searched like a title",
        "language": "text search configuration of this chunk",
        "token_count": "length in tokens, as the chunker counts them",
        "hash": "SHA-256 of the text, in hex",
        "start_offset": "characters before it in the text of the document",
        "end_offset": "characters up to its end",
        "page": "number of the page on which it begins, from 1",
        "metadata": "metadata of its document, and its own",
        "chunker_version": "version of the chunker that cut it",
        "chunker_config": "limits that it was cut by",
        "processing_timestamp": "time when it was cut",
        "lineage_id": "run of the import that wrote it",
        "chunk_search": "the words a search reads; headings count like a title",
    },
    "documentation_embeddings": {"scope": "scope of its chunk"},
    "click_feedback": OF_OWNER
    | {
        "chunk_scope": "scope of the chunk, which is shared or of the same scope",
        "position": "place on the page of results, from 1",
        "dwell_time": "seconds",
    },
    "search_sessions": OF_OWNER
    | {
        "session_id": "identifier of the visit; one visit may search many times",
        "fusion": "fusion of the legs, such as calibrated",
        "weights": "weight of each leg",
        "shown": "chunks on the page: id, position from 1, score of each leg",
    },
    "learned_rankings": OF_OWNER
    | {
        "version": "number within corpus and scope, from 1",
        "replaced": "version that was active before, and is again after a rollback; null: none was",
        "weights": "weight of each leg; their sum is 1",
        "estimate": "expected change (before, change, low, high), and how much taught it",
        "is_active": "searches use it; one of a corpus and scope",
        "created_by": "user it was done for, or else the login",
    },
    "chunk_boosts": OF_OWNER
    | {
        "passage_scope": "scope of the chunk, which is shared or of the same scope",
        "boost": "added to a score in [0, 1]",
    },
}


def upgrade() -> None:
    _tables()
    _feedback()
    _rankings()
    op.create_embedding_table_v1(
        "documentation_embeddings", item="chunk_id", passages="chunks", scoped=True, shared=True
    )
    for table in ("documents", "chunks", *LEARNED):
        op.isolate_v1(table, shared=True)
    for table in FEEDBACK:
        op.isolate_v1(table, policies=POLICIES_OF_FEEDBACK, administered=True)
    op.search_in_scope_v1(
        "chunks",
        words="chunk_search",
        shown="chunk_text(heading_path, text)",
        vectors="documentation_embeddings",
        metadata="metadata",
        shared=True,
    )
    for name, of_seed in NAMES.items():
        op.execute(f"ALTER INDEX {name} RENAME TO {of_seed}")
    for table, columns in UNSAMPLED.items():
        op.sample_columns_v1(0, table, *columns)
    for table, comments in COMMENTS.items():
        op.comment_columns_v1(table, comments)
    op.enqueue_embeddings_v1(
        "chunks", corpus="documentation", embedded="heading_path, text", scoped=True
    )
    for table, audited in AUDITED.items():
        op.audit_v1(table, key="scope,id", left_out="updated_at,scope", **audited)
    op.drop_coverage_v1()
    op.create_coverage_v1(*COVERED_BEFORE, CHUNKS)
    op.execute("""
        CREATE VIEW chunks_with_embedding WITH (security_invoker = true) AS
        SELECT chunks.*, model_name, embedding
        FROM chunks
        JOIN corpus_settings ON corpus = 'documentation'
        LEFT JOIN documentation_embeddings ON documentation_embeddings.scope = chunks.scope
            AND documentation_embeddings.chunk_id = chunks.id AND model_name = active_model
    """)


def _tables() -> None:
    op.execute(f"""
        CREATE TABLE documents (
            id uuid NOT NULL DEFAULT gen_random_uuid(),
            {OWNER.format(table="documents").strip()},
            collection varchar(255) NOT NULL DEFAULT 'default',
            path text NOT NULL,
            title text,
            source_url text,
            captured_at timestamptz,
            hash text,
            content_type varchar(255) NOT NULL DEFAULT 'text/markdown',
            language varchar(100),
            word_count integer,
            etag text,
            last_modified text,
            last_crawled timestamptz,
            metadata jsonb NOT NULL DEFAULT '{{}}',
            created_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT uq_documents_scope_collection_path UNIQUE (scope, collection, path),
            CONSTRAINT non_empty_collection CHECK (collection ~ '\\S'),
            CONSTRAINT valid_path CHECK (path ~ '\\S' AND octet_length(path) <= 2000),
            CONSTRAINT valid_word_count CHECK (word_count >= 0),
            CONSTRAINT valid_metadata CHECK (jsonb_typeof(metadata) = 'object')
        )
    """)
    op.limit_times_v1("documents", "captured_at", "last_crawled", "created_at", "updated_at")
    op.create_index("idx_documentation_tenant", "documents", ["tenant_id"])
    op.keep_updated_at_v1("documents")
    # They are indexed, and so must not depend on the setting of anybody.
    op.execute("""
        CREATE FUNCTION heading_text(heading_path text[]) RETURNS text
        LANGUAGE sql IMMUTABLE PARALLEL SAFE
        RETURN array_to_string(heading_path, ' > ')
    """)
    op.execute("""
        CREATE FUNCTION chunk_text(heading_path text[], text text) RETURNS text
        LANGUAGE sql IMMUTABLE PARALLEL SAFE
        RETURN concat_ws(E'\\n', nullif(array_to_string(heading_path, ' > '), ''), text)
    """)
    # Equal values have the same hash, as 1 and 1.0. Where in the object a key stands is left to be
    # compared. The depth is bounded, for the stack. The time of jsonb_path_query would grow with
    # the square of what it finds.
    op.execute("""
        CREATE FUNCTION metadata_terms(metadata jsonb) RETURNS text[]
        LANGUAGE sql IMMUTABLE PARALLEL SAFE COST 1000
        RETURN ARRAY(
            SELECT jsonb_hash_extended(jsonb_build_array(pair -> 'key', value), 0)::text
            FROM jsonb_array_elements(jsonb_path_query_array(
                    metadata, 'strict $.**{0 to 63} ? (@.type() == "object").keyvalue()'))
                AS pairs (pair)
            CROSS JOIN LATERAL jsonb_array_elements(
                    jsonb_path_query_array(pair, '$.value[*]')) AS held (value)
            WHERE jsonb_typeof(value) NOT IN ('object', 'array'))
    """)
    op.execute("""
        COMMENT ON FUNCTION metadata_terms(jsonb) IS
            'hashes of keys with their values, or the elements of these: what holds an object has'
            ' all of its own'
    """)
    op.execute(f"""
        CREATE TABLE chunks (
            id uuid NOT NULL DEFAULT gen_random_uuid(),
            {OWNER.format(table="chunks").strip()},
            document_id uuid NOT NULL,
            collection varchar(255) NOT NULL DEFAULT 'default',
            chunk_id varchar(255) NOT NULL,
            position integer NOT NULL,
            heading text,
            anchor text,
            heading_path text[] NOT NULL DEFAULT '{{}}',
            text text NOT NULL,
            url text,
            language regconfig NOT NULL DEFAULT 'english',
            token_count integer,
            hash text,
            start_offset integer,
            end_offset integer,
            page integer,
            metadata jsonb NOT NULL DEFAULT '{{}}',
            chunker_version varchar(50),
            chunker_config jsonb NOT NULL DEFAULT '{{}}',
            processing_timestamp timestamptz,
            lineage_id varchar(255),
            created_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now(),
            chunk_search tsvector NOT NULL GENERATED ALWAYS AS (
                setweight(to_tsvector(language, left(heading_text(heading_path), 10000)), 'A')
                || to_tsvector(language, left(text, 90000))) STORED,
            CONSTRAINT uq_chunks_scope_collection_chunk_id UNIQUE (scope, collection, chunk_id),
            CONSTRAINT fk_chunks_scope_document_id FOREIGN KEY (scope, document_id)
                REFERENCES documents (scope, id) ON DELETE CASCADE,
            CONSTRAINT non_empty_chunk CHECK (text ~ '\\S'),
            CONSTRAINT non_empty_chunk_id CHECK (chunk_id ~ '\\S'),
            CONSTRAINT valid_position CHECK (position >= 0),
            CONSTRAINT valid_token_count CHECK (token_count >= 0),
            CONSTRAINT valid_offsets CHECK (start_offset >= 0 AND end_offset >= start_offset),
            CONSTRAINT valid_page CHECK (page >= 1),
            CONSTRAINT valid_metadata CHECK (jsonb_typeof(metadata) = 'object'),
            CONSTRAINT valid_chunker_config CHECK (jsonb_typeof(chunker_config) = 'object')
        ) WITH (toast_tuple_target = 8160)
    """)
    op.limit_times_v1("chunks", "processing_timestamp", "created_at", "updated_at")
    op.create_index("chunks_document_id_idx", "chunks", ["scope", "document_id", "position"])
    op.create_index("idx_chunks_tenant", "chunks", ["tenant_id"])
    op.create_index("idx_chunks_scope_collection", "chunks", ["scope", "collection"])
    op.keep_updated_at_v1("chunks")


def _feedback() -> None:
    op.execute(f"""
        CREATE TABLE click_feedback (
            id uuid NOT NULL DEFAULT gen_random_uuid(),
            {OWNER.format(table="click_feedback").strip()},
            query text NOT NULL,
            chunk_scope text NOT NULL,
            chunk_id uuid NOT NULL,
            position integer NOT NULL,
            session_id varchar(255),
            user_id varchar(255),
            dwell_time double precision,
            clicked boolean NOT NULL DEFAULT true,
            metadata jsonb NOT NULL DEFAULT '{{}}',
            created_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT fk_click_feedback_chunk_scope_chunk_id FOREIGN KEY (chunk_scope, chunk_id)
                REFERENCES chunks (scope, id) ON DELETE CASCADE,
            CONSTRAINT readable_chunk CHECK (chunk_scope IN ('shared', scope)),
            CONSTRAINT valid_position CHECK (position >= 1),
            CONSTRAINT valid_dwell_time CHECK (dwell_time >= 0 AND dwell_time < 'Infinity'),
            CONSTRAINT valid_metadata CHECK (jsonb_typeof(metadata) = 'object')
        )
    """)
    op.limit_times_v1("click_feedback", "created_at")
    op.create_index("idx_click_feedback_tenant", "click_feedback", ["tenant_id"])
    # For those that go with their chunk. With the scope, or EXPLAIN ANALYZE would count by how many
    # clicks of others on a shared chunk the policy has removed.
    op.create_index(
        "idx_click_feedback_chunk", "click_feedback", ["chunk_scope", "chunk_id", "scope"]
    )
    # Of the first words: an index takes no more of a text than a third of a page.
    op.execute("CREATE INDEX click_feedback_query_idx ON click_feedback (scope, left(query, 200))")
    op.execute("ALTER INDEX click_feedback_query_idx ALTER COLUMN 2 SET STATISTICS 0")
    op.create_index("click_feedback_session_idx", "click_feedback", ["scope", "session_id"])
    op.create_index("idx_click_feedback_created", "click_feedback", ["scope", "created_at"])
    op.execute(f"""
        CREATE TABLE search_sessions (
            id uuid NOT NULL DEFAULT gen_random_uuid(),
            {OWNER.format(table="search_sessions").strip()},
            session_id varchar(255) NOT NULL,
            user_id varchar(255),
            query text,
            mode varchar(20),
            fusion varchar(20),
            weights jsonb NOT NULL DEFAULT '{{}}',
            shown jsonb NOT NULL DEFAULT '[]',
            metadata jsonb NOT NULL DEFAULT '{{}}',
            created_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT valid_weights CHECK (jsonb_typeof(weights) = 'object'),
            CONSTRAINT valid_shown CHECK (jsonb_typeof(shown) = 'array'),
            CONSTRAINT valid_metadata CHECK (jsonb_typeof(metadata) = 'object')
        )
    """)
    op.limit_times_v1("search_sessions", "created_at")
    op.create_index("idx_search_sessions_tenant", "search_sessions", ["tenant_id"])
    op.create_index("idx_search_sessions_session", "search_sessions", ["scope", "session_id"])
    op.create_index("idx_search_sessions_created", "search_sessions", ["scope", "created_at"])


def _rankings() -> None:
    op.execute(f"""
        CREATE TABLE learned_rankings (
            id uuid NOT NULL DEFAULT gen_random_uuid(),
            {OWNER.format(table="learned_rankings").strip()},
            corpus varchar(50) NOT NULL,
            version integer NOT NULL,
            replaced integer,
            weights jsonb NOT NULL,
            estimate jsonb NOT NULL,
            is_active boolean NOT NULL,
            created_by text NOT NULL
                DEFAULT coalesce(nullif(current_setting('app.actor', true), ''), session_user),
            created_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT uq_learned_rankings_scope_corpus_version UNIQUE (scope, corpus, version),
            CONSTRAINT valid_version CHECK (version >= 1),
            CONSTRAINT valid_replaced CHECK (replaced >= 1 AND replaced < version),
            CONSTRAINT valid_weights CHECK (jsonb_typeof(weights) = 'object'),
            CONSTRAINT valid_estimate CHECK (jsonb_typeof(estimate) = 'object')
        )
    """)
    op.limit_times_v1("learned_rankings", "created_at")
    op.create_index("idx_learned_rankings_tenant", "learned_rankings", ["tenant_id"])
    op.execute(
        "CREATE UNIQUE INDEX idx_learned_rankings_active ON learned_rankings (scope, corpus)"
        " WHERE is_active"
    )
    op.execute(f"""
        CREATE TABLE chunk_boosts (
            id uuid NOT NULL DEFAULT gen_random_uuid(),
            {OWNER.format(table="chunk_boosts").strip()},
            ranking_id uuid NOT NULL,
            passage_scope text NOT NULL,
            chunk_id uuid NOT NULL,
            boost real NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT uq_chunk_boosts_scope_ranking_id_chunk_id
                UNIQUE (scope, ranking_id, chunk_id),
            CONSTRAINT fk_chunk_boosts_scope_ranking_id FOREIGN KEY (scope, ranking_id)
                REFERENCES learned_rankings (scope, id) ON DELETE CASCADE,
            CONSTRAINT fk_chunk_boosts_passage_scope_chunk_id FOREIGN KEY (passage_scope, chunk_id)
                REFERENCES chunks (scope, id) ON DELETE CASCADE,
            CONSTRAINT readable_passage CHECK (passage_scope IN ('shared', scope)),
            CONSTRAINT bounded_boost CHECK (boost BETWEEN -0.05::real AND 0.05::real)
        )
    """)
    op.limit_times_v1("chunk_boosts", "created_at")
    op.create_index("idx_chunk_boosts_tenant", "chunk_boosts", ["tenant_id"])
    op.create_index(
        "idx_chunk_boosts_chunk", "chunk_boosts", ["passage_scope", "chunk_id", "scope"]
    )


def downgrade() -> None:
    op.execute("DROP VIEW chunks_with_embedding")
    op.drop_coverage_v1()
    op.create_coverage_v1(*COVERED_BEFORE)
    for name, of_seed in NAMES.items():
        op.execute(f"ALTER INDEX {of_seed} RENAME TO {name}")
    op.stop_searching_in_scope_v1(
        "chunks", vectors="documentation_embeddings", metadata=True, shared=True
    )
    op.drop_embedding_table_v1("documentation_embeddings")
    for table in (*reversed(LEARNED), *FEEDBACK, "chunks", "documents"):
        op.execute(f"DROP TABLE {table}")
    op.execute("DROP FUNCTION metadata_terms")
    op.execute("DROP FUNCTION chunk_text")
    op.execute("DROP FUNCTION heading_text")
