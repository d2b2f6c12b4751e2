"""The ground of every corpus: extensions, models, statistics of words, the log of searches.

An extension that was there before is not ours to drop: those made here are marked by a comment.
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

EXTENSIONS = ("vector", "pg_trgm", "pgcrypto")
MARK = "made by pgcorpus"
REMEDY = "; ".join(f"CREATE EXTENSION IF NOT EXISTS {name}" for name in EXTENSIONS)

COMMENTS = {
    "embedding_models": {
        "provider": "provider that makes the vectors",
        "dimensions": "length of every vector of this model",
        "index_kind": "kind of its HNSW index: halfvec, or binary (one bit per dimension)",
        "retired_at": "time of a corpus's last change to another model; its searches may still run",
        "cosine_spread": "standard deviation of the cosine between two passages; null until it is "
        "measured",
        "languages": "text search configurations that it knows; null for all",
    },
    "corpus_settings": {
        "active_model": "model that searches use",
        "previous_model": "the model before, to roll back to",
    },
    "query_performance_log": {
        "query_type": "vector_search, text_search, fuzzy_search or hybrid_search",
        "duration": "milliseconds, embedding the question included",
        "degraded": "true if a leg did not answer",
    },
}


def upgrade() -> None:
    _extensions()
    op.execute("""
        CREATE FUNCTION set_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NEW.updated_at = now();
            RETURN NEW;
        END $$
    """)
    op.execute("""
        CREATE FUNCTION text_hash(value text) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE
        RETURN sha256(convert_to(value, 'UTF8'))
    """)
    op.execute("""
        COMMENT ON FUNCTION text_hash(text) IS
            'SHA-256 of a text, for indexes that must not be asked for what others have'
    """)
    _models()
    _lexeme_statistics()
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
    for table, comments in COMMENTS.items():
        op.comment_columns_v1(table, comments)


def _extensions() -> None:
    """Make all that any revision needs, so that an administrator is asked once."""
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


def _models() -> None:
    """Create the registry of embedding models, and say which of them each corpus uses."""
    op.execute("""
        CREATE TABLE embedding_models (
            name varchar(100) CONSTRAINT pk_embedding_models PRIMARY KEY,
            dimensions integer NOT NULL,
            provider varchar(50) NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            index_kind varchar(20) NOT NULL DEFAULT 'halfvec',
            retired_at timestamptz,
            cosine_spread real,
            languages text[],
            CONSTRAINT uq_embedding_models_name_dimensions UNIQUE (name, dimensions),
            CONSTRAINT valid_dimensions CHECK (dimensions BETWEEN 1 AND 16000),
            CONSTRAINT valid_model_format CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._:/-]*$'),
            CONSTRAINT valid_index_kind CHECK (
                index_kind = 'binary' OR (index_kind = 'halfvec' AND dimensions <= 4000)),
            CONSTRAINT valid_cosine_spread CHECK (cosine_spread > 0),
            CONSTRAINT valid_languages CHECK (
                cardinality(languages) > 0 AND array_position(languages, NULL) IS NULL)
        )
    """)
    op.execute("""
        INSERT INTO embedding_models (name, dimensions, provider, cosine_spread, languages) VALUES
            ('text-embedding-3-large', 3072, 'openai', NULL, NULL),
            ('text-embedding-3-small', 1536, 'openai', NULL, NULL),
            ('bge-m3', 1024, 'openai', NULL, NULL),
            ('all-MiniLM-L6-v2', 384, 'local', 0.13, '{english}'),
            ('hashing', 384, 'hashing', NULL, NULL)
    """)
    op.execute("""
        CREATE TABLE corpus_settings (
            corpus varchar(50) CONSTRAINT pk_corpus_settings PRIMARY KEY,
            active_model varchar(100) NOT NULL
                CONSTRAINT fk_corpus_settings_active_model REFERENCES embedding_models (name),
            created_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now(),
            previous_model varchar(100) CONSTRAINT fk_corpus_settings_previous_model
                REFERENCES embedding_models (name) ON DELETE SET NULL
        )
    """)
    op.keep_updated_at_v1("corpus_settings")
    op.execute("""
        INSERT INTO corpus_settings (corpus, active_model) VALUES
            ('knowledge', 'text-embedding-3-large'),
            ('documentation', 'text-embedding-3-small'),
            ('memory', 'bge-m3'),
            ('chat', 'all-MiniLM-L6-v2')
    """)


def _lexeme_statistics() -> None:
    """Tell how rare words are, from the statistics that ANALYZE keeps.

    They are an array of up to 20,000 lexemes that PostgreSQL gives out as a whole, which took 6 ms
    for each question: a reader keeps it, and names the version it has. The version is made of what
    an ANALYZE changes and of what is cheap to read: when it was, which a crash, a reset or a
    standby does not know, and lengths as they are stored, which take no decompression; what is
    short enough to be stored in the row is hashed.

    Everything is read from pg_stats, for on a hosted server the owner is no superuser and may not
    read pg_statistic. SECURITY DEFINER: whoever may read the column may know how common its words
    are. Inside the function current_user is its owner, so the caller is asked for as the role that
    was SET, else as whoever logged in. The search_path is pinned, or a caller could shadow what the
    function names. Of a table with rows of many scopes nothing is told: ANALYZE counts the words of
    all of them. Of an index on those of its rows that are everybody's it counts these alone, and
    the index may stand for its table. Always one row; without statistics, or the right to read them
    or the column, of nulls.
    """
    op.execute("""
        CREATE FUNCTION lexeme_statistics(
            relation regclass, words name, language name, known_version text
        ) RETURNS TABLE (
            version text, languages text[], all_languages boolean,
            elements text[], frequencies double precision[]
        )
        LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp ROWS 1
        AS $$
        DECLARE
            asker CONSTANT name := coalesce(nullif(current_setting('role'), 'none'), session_user);
            in_row CONSTANT integer := 2000;
            home name;
            called name;
            readable name[];
            analyzed oid;
            languages_differ real;
        BEGIN
            -- Looked up before: pg_stats is a view that no join reaches by an index.
            SELECT nspname, relname, coalesce(indrelid, attrelid), array_agg(attname)
            INTO home, called, analyzed, readable
            FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
            JOIN pg_namespace ON pg_namespace.oid = relnamespace
            LEFT JOIN pg_index ON indexrelid = attrelid
            WHERE attrelid = relation AND NOT relforcerowsecurity
                AND (indexrelid IS NULL
                    OR pg_get_expr(indpred, indrelid) = '(scope = ''shared''::text)')
                AND (attname = words AND (atttypid = 'tsvector'::regtype OR indexrelid IS NOT NULL)
                    OR attname = language AND atttypid = 'regconfig'::regtype)
                AND CASE WHEN indexrelid IS NULL
                    THEN has_column_privilege(asker, attrelid, attnum, 'select')
                    ELSE has_table_privilege(asker, indrelid, 'select') END
            GROUP BY nspname, relname, coalesce(indrelid, attrelid);
            IF called IS NULL OR NOT has_table_privilege('pg_stats', 'select') THEN
                RETURN NEXT;
                RETURN;
            END IF;
            SELECT most_common_vals::text::text[], n_distinct INTO languages, languages_differ
            FROM pg_stats WHERE schemaname = home AND tablename = called
                AND attname = language AND attname = ANY (readable) AND NOT inherited;
            -- a value that the sample held once is not listed
            all_languages := languages_differ = cardinality(languages);
            SELECT concat_ws('-', extract(epoch FROM pg_stat_get_last_analyze_time(analyzed)),
                extract(epoch FROM pg_stat_get_last_autoanalyze_time(analyzed)),
                null_frac, avg_width, pg_column_size(most_common_elems),
                pg_column_size(most_common_elem_freqs),
                CASE WHEN pg_column_size(most_common_elems) < in_row
                    AND pg_column_size(most_common_elem_freqs) < in_row
                    THEN md5(concat(most_common_elems, most_common_elem_freqs)) END)
            INTO version
            FROM pg_stats WHERE schemaname = home AND tablename = called
                AND attname = words AND attname = ANY (readable) AND NOT inherited;
            IF version IS DISTINCT FROM known_version THEN
                SELECT most_common_elems::text::text[], most_common_elem_freqs
                INTO elements, frequencies
                FROM pg_stats WHERE schemaname = home AND tablename = called
                    AND attname = words AND attname = ANY (readable) AND NOT inherited;
            END IF;
            RETURN NEXT;
        END
        $$
    """)


def downgrade() -> None:
    op.execute("DROP TABLE query_performance_log")
    op.execute("DROP FUNCTION lexeme_statistics(regclass, name, name, text)")
    op.execute("DROP TABLE corpus_settings")
    op.execute("DROP TABLE embedding_models")
    op.execute("DROP FUNCTION text_hash")
    op.execute("DROP FUNCTION set_updated_at")
    for name in reversed(EXTENSIONS):
        op.execute(f"""
            DO $$ BEGIN
                IF (SELECT obj_description(oid, 'pg_extension') FROM pg_extension
                    WHERE extname = '{name}') = '{MARK}' THEN
                    DROP EXTENSION {name};
                END IF;
            END $$
        """)
