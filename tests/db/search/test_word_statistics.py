"""Frequencies of words, as an owner without superuser rights and its readers are told them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, create_engine, text

from pgcorpus.db.engine import Database
from pgcorpus.services.search.service import SearchService
from tests import factories
from tests.conftest import Databases
from tests.logins import logged_in

STATISTICS = text("""
    SELECT * FROM lexeme_statistics('framework_documents', 'search_vector', 'language', :known)
""")


def statistics(database: Database, known: str | None = None) -> Row[Any]:
    """Return the statistics that a new transaction is told."""
    with database.engine.begin() as connection:
        return connection.execute(STATISTICS, {"known": known}).one()


def store(database: Database, *contents: str) -> None:
    """Store passages, and let ANALYZE count their words."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        for content in contents * 5:
            factories.FrameworkDocumentFactory(content=content)
        work.commit()
    with database.engine.begin() as connection:
        connection.execute(text("ANALYZE framework_documents"))


def test_an_owner_and_a_reader_are_told_how_rare_words_are(database: Database) -> None:
    """Without pg_statistic, which superusers alone may read."""
    store(database, "an anchor of prices", "a refund of prices")

    with logged_in(database, "rag_read_only") as reader:
        for login in (database, reader):
            page = SearchService(login).search("refund", corpus="knowledge", mode="text")
            assert len(page.hits) == 5
            assert page.legs[0].reason is None
            assert "refund" in statistics(login).elements


def test_what_is_known_is_not_told_again_until_an_analyze_changes_it(
    database: Database, databases: Databases
) -> None:
    """Nor is it wrong after a reset, which forgets when the last ANALYZE was."""
    store(database, "an anchor of prices")
    first = statistics(database)
    assert statistics(database, first.version).elements is None

    store(database, "a refund of prices")
    second = statistics(database, first.version)
    assert "refund" in second.elements

    administrator = databases.superuser_of(database.url)
    engine = create_engine(administrator)
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_stat_reset()"))
    engine.dispose()
    store(database, "a margin of prices")
    assert "margin" in statistics(database, second.version).elements


def test_where_the_statistics_are_closed_words_weigh_the_same(
    database: Database, databases: Databases
) -> None:
    """The search answers, and its page says so."""
    store(database, "an anchor of prices", "a refund of prices")
    engine = create_engine(databases.superuser_of(database.url))
    with engine.begin() as connection:
        connection.execute(text("REVOKE SELECT ON pg_stats FROM PUBLIC"))
    engine.dispose()

    page = SearchService(database).search("refund", corpus="knowledge", mode="text")

    assert len(page.hits) == 5
    assert page.legs[0].reason is not None
    assert page.legs[0].reason.startswith("no statistics of words that this role may read")
