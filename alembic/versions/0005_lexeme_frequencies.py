"""How rare a word is, read from the statistics that ANALYZE keeps."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


# SECURITY DEFINER: whoever may search may know how rare the words of the own question are, without
# a right to read the statistics of the table. The search_path is pinned, or a caller could shadow
# what the function names. A lexeme that the statistics do not list is rarer than every listed one,
# so it gets half the smallest listed frequency. Without statistics every frequency is null.
def upgrade() -> None:
    op.execute("""
        CREATE FUNCTION lexeme_frequencies(relation regclass, attribute name, lexemes text[])
        RETURNS TABLE (lexeme text, frequency double precision)
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
        AS $$
            WITH known AS (
                SELECT most_common_elems::text::text[] AS elements,
                       most_common_elem_freqs AS frequencies
                FROM pg_stats JOIN pg_class ON relname = tablename
                    AND relnamespace = schemaname::regnamespace
                WHERE pg_class.oid = relation AND attname = attribute
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
