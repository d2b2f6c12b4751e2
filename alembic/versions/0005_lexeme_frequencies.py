"""How rare a word is, read from the statistics that ANALYZE keeps."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


# SECURITY DEFINER: whoever may search may know how rare the words of the own question are, also
# where row security hides the statistics of the table. It answers only a role that may read the
# column, and only of a tsvector. Inside the function current_user is its owner, so the caller is
# asked for as the role that was SET, else as whoever logged in. The search_path is pinned, or a
# caller could shadow what the function names. A lexeme that the statistics do not list is rarer
# than every listed one, so it gets half the smallest listed frequency. Without statistics, or the
# right to read the column, every frequency is null.
def upgrade() -> None:
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


def downgrade() -> None:
    op.execute("DROP FUNCTION lexeme_frequencies(regclass, name, text[])")
