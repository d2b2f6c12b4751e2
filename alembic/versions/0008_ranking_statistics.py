"""What ranking needs to know: statistics of words, read once, and how far cosines spread."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


# The statistics are an array of up to 20,000 lexemes that PostgreSQL gives out as a whole, which
# took 6 ms for each question. A reader keeps it, and names the version it has: the row of
# pg_statistic, which every ANALYZE writes anew. As before: SECURITY DEFINER, for whoever may read
# the column may know how common its words are, also where row security hides the statistics of the
# table; inside the function current_user is its owner, so the caller is asked for as the role that
# was SET, else as whoever logged in; the search_path is pinned, or a caller could shadow what the
# function names. Always one row; without statistics, or the right to read the column, of nulls.
def upgrade() -> None:
    op.execute("""
        ALTER TABLE embedding_models ADD COLUMN cosine_spread real,
            ADD CONSTRAINT valid_cosine_spread CHECK (cosine_spread > 0)
    """)
    op.execute("""
        COMMENT ON COLUMN embedding_models.cosine_spread IS
            'standard deviation of the cosine between two passages; null until it is measured'
    """)
    op.execute("UPDATE embedding_models SET cosine_spread = 0.13 WHERE name = 'all-MiniLM-L6-v2'")
    # No query is planned by how vectors are distributed, and reading them takes most of an ANALYZE.
    op.execute("ALTER TABLE chunk_embeddings ALTER COLUMN embedding SET STATISTICS 0")
    op.execute("DROP FUNCTION lexeme_frequencies(regclass, name, text[])")
    op.execute("""
        CREATE FUNCTION lexeme_statistics(
            relation regclass, words name, language name, known_version text
        ) RETURNS TABLE (
            version text, languages text[], all_languages boolean,
            elements text[], frequencies double precision[]
        )
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
        AS $$
            WITH readable AS (
                SELECT of.attname, of.attnum, atttypid, nspname, relname
                FROM pg_attribute AS of JOIN pg_class ON pg_class.oid = attrelid
                JOIN pg_namespace ON pg_namespace.oid = relnamespace
                WHERE attrelid = relation AND has_column_privilege(
                    coalesce(nullif(current_setting('role'), 'none'), session_user)::name,
                    attrelid, attnum, 'select')
            ), stored AS (
                SELECT concat_ws('-', pg_statistic.xmin, pg_statistic.ctid) AS version,
                       nspname, relname, attname
                FROM pg_statistic JOIN readable ON attname = words AND staattnum = attnum
                WHERE starelid = relation AND NOT stainherit AND atttypid = 'tsvector'::regtype
            ), of_words AS (
                SELECT version, most_common_elems::text::text[] AS elements, most_common_elem_freqs
                FROM stored JOIN pg_stats
                    ON (pg_stats.schemaname, pg_stats.tablename, pg_stats.attname)
                        = (nspname, relname, stored.attname)
                WHERE version IS DISTINCT FROM known_version AND NOT inherited
            ), of_language AS (
                SELECT most_common_vals::text::text[] AS languages, n_distinct
                FROM readable JOIN pg_stats
                    ON (pg_stats.schemaname, pg_stats.tablename, pg_stats.attname)
                        = (nspname, relname, readable.attname)
                WHERE readable.attname = language AND atttypid = 'regconfig'::regtype
                    AND NOT inherited
            )
            SELECT (SELECT stored.version FROM stored),
                   (SELECT of_language.languages FROM of_language),
                   -- a value that the sample held once is not listed
                   (SELECT n_distinct = cardinality(of_language.languages) FROM of_language),
                   of_words.elements, of_words.most_common_elem_freqs::double precision[]
            FROM (VALUES (1)) AS always LEFT JOIN of_words ON true
        $$
    """)


def downgrade() -> None:
    op.execute("ALTER TABLE embedding_models DROP COLUMN cosine_spread")
    op.execute("ALTER TABLE chunk_embeddings ALTER COLUMN embedding SET STATISTICS -1")
    op.execute("DROP FUNCTION lexeme_statistics(regclass, name, name, text)")
    op.execute("""
        CREATE FUNCTION lexeme_frequencies(relation regclass, attribute name, lexemes text[])
        RETURNS TABLE (lexeme text, frequency double precision)
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
        AS $$
            WITH known AS (
                SELECT most_common_elems::text::text[] AS elements,
                       most_common_elem_freqs AS frequencies
                FROM pg_attribute AS of JOIN pg_class ON pg_class.oid = of.attrelid
                JOIN pg_namespace ON pg_namespace.oid = relnamespace
                JOIN pg_stats ON (schemaname, tablename, pg_stats.attname)
                    = (nspname, relname, of.attname)
                WHERE of.attrelid = relation AND of.attname = attribute
                    AND of.atttypid = 'tsvector'::regtype
                    AND has_column_privilege(
                        coalesce(nullif(current_setting('role'), 'none'), session_user)::name,
                        of.attrelid, of.attnum, 'select')
            ), listed AS (
                SELECT element, frequencies[place] AS frequency
                FROM known, unnest(elements) WITH ORDINALITY AS each (element, place)
                WHERE element = ANY (lexemes)
            )
            SELECT asked.lexeme,
                   coalesce(listed.frequency,
                            -- the smallest frequency follows those of the elements
                            known.frequencies[cardinality(known.elements) + 1] / 2)
            FROM unnest(lexemes) AS asked (lexeme)
            LEFT JOIN known ON true
            LEFT JOIN listed ON listed.element = asked.lexeme
        $$
    """)
