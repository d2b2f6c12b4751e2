"""Objects that a lower role plants, and a higher one must not run with its rights."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from pgcorpus.db.engine import Database
from tests import factories
from tests.logins import logged_in

GUARDED = """
    SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace
        AND relkind IN ('r', 'p', 'v') AND ({rights})
"""


def test_an_administrator_plants_no_code(database: Database) -> None:
    """A function it can make, in its temporary schema; but a superuser who writes never calls it.

    It became one by a trigger on chats.
    """
    with (
        logged_in(database, "rag_admin") as administrator,
        administrator.engine.connect() as connection,
    ):
        me = connection.scalar(text("SELECT current_user"))
        connection.execute(
            text(
                "CREATE FUNCTION pg_temp.climb() RETURNS trigger LANGUAGE plpgsql AS $$"
                f" BEGIN ALTER ROLE {me} SUPERUSER; RETURN NEW; END $$"
            )
        )
        for planted in (
            (
                "CREATE TRIGGER climb BEFORE INSERT ON conversations"
                " FOR EACH ROW EXECUTE FUNCTION pg_temp.climb()"
            ),
            "CREATE RULE climb AS ON INSERT TO conversations DO ALSO SELECT pg_temp.climb()",
            "ALTER TABLE conversations ALTER title SET DEFAULT 'x'",
            "CREATE FUNCTION public.lower(varchar) RETURNS text LANGUAGE sql AS 'SELECT $1'",
            (
                "CREATE OPERATOR public.= (LEFTARG = varchar, RIGHTARG = varchar,"
                " FUNCTION = pg_catalog.texteq)"
            ),
            (
                "CREATE OR REPLACE FUNCTION set_updated_at() RETURNS trigger LANGUAGE plpgsql"
                " AS $$ BEGIN RETURN NEW; END $$"
            ),
            "ALTER FUNCTION set_updated_at() OWNER TO CURRENT_USER",
            "CREATE TABLE public.probe (id uuid REFERENCES conversations)",
        ):
            with pytest.raises(ProgrammingError) as refused, connection.begin_nested():
                connection.execute(text(planted))
            assert refused.value.orig.sqlstate == "42501", planted  # type: ignore[union-attr]
        assert not connection.scalar(
            text(
                GUARDED.format(
                    rights="has_table_privilege(pg_class.oid, 'TRIGGER')"
                    " OR has_table_privilege(pg_class.oid, 'REFERENCES')"
                )
            )
        )


@pytest.mark.superuser  # as the only login of the embedded server
def test_what_fires_on_a_write_of_the_embedded_server_has_no_superusers_rights(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its only login is a superuser; its units of work write as the administrators' role."""
    with database.engine.begin() as connection:
        connection.exec_driver_sql("""
            CREATE TABLE noted (who text, superuser text);
            GRANT INSERT ON noted TO PUBLIC;
            CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                INSERT INTO noted VALUES (current_user, current_setting('is_superuser'));
                RETURN NULL;
            END $$;
            CREATE TRIGGER note AFTER INSERT ON conversations
                FOR EACH STATEMENT EXECUTE FUNCTION note();
            CREATE TRIGGER note AFTER INSERT ON framework_documents
                FOR EACH STATEMENT EXECUTE FUNCTION note();
        """)
    embedded = Database(replace(database.settings, database_url=None))
    monkeypatch.setitem(embedded.__dict__, "url", database.url)
    with embedded.unit_of_work() as work:
        factories.bind(work.session)
        factories.ConversationFactory()
        work.commit()
        factories.FrameworkDocumentFactory()
        work.rollback()
        with work.session.begin_nested() as savepoint:
            savepoint.rollback()
        factories.FrameworkDocumentFactory()
        work.commit()
    embedded.close()

    with database.engine.connect() as connection:
        noted = connection.execute(text("SELECT * FROM noted")).all()
    assert [tuple(each) for each in noted] == [("rag_admin", "off")] * 2
