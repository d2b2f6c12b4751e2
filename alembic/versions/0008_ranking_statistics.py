"""What ranking needs to know: statistics of words, read once, and how far cosines spread."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


# The statistics are an array of up to 20,000 lexemes that PostgreSQL gives out as a whole, which
# took 6 ms for each question. A reader keeps it, and names the version it has. Everything is read
# from pg_stats, for on a hosted server the owner is no superuser and may not read pg_statistic. The
# version is made of what an ANALYZE changes and of what is cheap to read: when it was, which a
# crash, a reset or a standby does not know, and lengths as they are stored, which take no
# decompression; what is short enough to be stored in the row is hashed. As before: SECURITY
# DEFINER, for whoever may read the column may know how common its words are; inside the function
# current_user is its owner, so the caller is asked for as the role that was SET, else as whoever
# logged in; the search_path is pinned, or a caller could shadow what the function names. Of a table
# with rows of many scopes nothing is told: ANALYZE counts the words of all of them. Always one row;
# without statistics, or the right to read them or the column, of nulls.
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
        LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp ROWS 1
        AS $$
        DECLARE
            asker CONSTANT name := coalesce(nullif(current_setting('role'), 'none'), session_user);
            in_row CONSTANT integer := 2000;
            home name;
            called name;
            readable name[];
            languages_differ real;
        BEGIN
            -- Looked up before: pg_stats is a view that no join reaches by an index.
            SELECT nspname, relname, array_agg(attname) INTO home, called, readable
            FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
            JOIN pg_namespace ON pg_namespace.oid = relnamespace
            WHERE attrelid = relation AND NOT relforcerowsecurity
                AND (attname = words AND atttypid = 'tsvector'::regtype
                    OR attname = language AND atttypid = 'regconfig'::regtype)
                AND has_column_privilege(asker, attrelid, attnum, 'select')
            GROUP BY nspname, relname;
            IF called IS NULL OR NOT has_table_privilege('pg_stats', 'select') THEN
                RETURN NEXT;
                RETURN;
            END IF;
            SELECT most_common_vals::text::text[], n_distinct INTO languages, languages_differ
            FROM pg_stats WHERE schemaname = home AND tablename = called
                AND attname = language AND attname = ANY (readable) AND NOT inherited;
            -- a value that the sample held once is not listed
            all_languages := languages_differ = cardinality(languages);
            SELECT concat_ws('-', extract(epoch FROM pg_stat_get_last_analyze_time(relation)),
                extract(epoch FROM pg_stat_get_last_autoanalyze_time(relation)),
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
