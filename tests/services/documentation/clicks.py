"""A world of known truth in the tables: chunks, the pages that users saw, and their clicks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from sqlalchemy import insert, text

from pgcorpus.db.base import table_of
from pgcorpus.db.engine import Database
from pgcorpus.db.models import ClickFeedback, SearchSession
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.corpora import DOCUMENTATION
from pgcorpus.services.learning.impressions import Impression
from pgcorpus.services.learning.replay import Ranking
from tests.services.learning.simulation import World

BEGIN = datetime(2025, 6, 1, tzinfo=UTC)

CHUNKS = text("""
    WITH document AS (
        INSERT INTO documents (tenant_id, path)
        SELECT CAST(:tenant_id AS uuid), 'world.md' RETURNING id, scope, tenant_id
    )
    INSERT INTO chunks (id, tenant_id, document_id, chunk_id, position, text)
    SELECT key, tenant_id, document.id, 'world-' || n, n, 'Passage ' || n || ' of the world.'
    FROM document, unnest(CAST(:keys AS uuid[])) WITH ORDINALITY AS each (key, n)
""")


def make_chunks(database: Database, world: World, scope: Scope | None = None) -> list[UUID]:
    """Make a chunk for each passage of a world; return their keys in the order of its numbers."""
    keys = [uuid4() for _ in world.quality]
    with database.unit_of_work() as work:
        if scope is not None:
            work.enter(scope)
        tenant_id = None if scope is None else scope.tenant_id
        work.session.execute(CHUNKS, {"keys": keys, "tenant_id": tenant_id})
        work.commit()
    return keys


def record(
    database: Database,
    impressions: Iterable[Impression],
    keys: Sequence[UUID],
    scope: Scope | None = None,
) -> None:
    """Store pages, and the clicks on them a minute later, as a service would have."""
    tenant_id = None if scope is None else scope.tenant_id
    owner = {"scope": str(scope or "shared"), "tenant_id": tenant_id}
    pages, clicks = [], []
    for n, each in enumerate(impressions):
        moment = BEGIN + timedelta(minutes=5 * n)
        positions = {shown.passage: shown.position for shown in each.shown}
        asked = {"session_id": each.session, "query": each.query, **owner}
        legs = list(each.weights)
        pages.append(
            {
                **asked,
                "mode": "hybrid" if len(legs) > 1 else legs[0],
                "fusion": "calibrated",
                "weights": each.weights,
                "shown": [
                    {
                        "id": str(keys[shown.passage]),
                        "position": shown.position,
                        "scores": dict(shown.scores),
                    }
                    for shown in each.shown
                ],
                "created_at": moment,
            }
        )
        clicks += [
            {
                **asked,
                "chunk_scope": owner["scope"],
                "chunk_id": keys[passage],
                "position": positions[passage],
                "created_at": moment + timedelta(minutes=1),
            }
            for passage in each.clicked
        ]
    with database.unit_of_work() as work:
        if scope is not None:
            work.enter(scope)
        for table, rows in ((SearchSession, pages), (ClickFeedback, clicks)):
            if rows:
                work.session.execute(insert(table_of(table)), rows)
        work.commit()


def read_ranking(database: Database, keys: Sequence[UUID], scope: Scope | None = None) -> Ranking:
    """Read the ranking that searches use, its passages by the world's numbers."""
    with database.unit_of_work() as work:
        if scope is not None:
            work.enter(scope)
        active = work.rankings.find_active(DOCUMENTATION)
        assert active is not None
        boosts = work.rankings.list_boosts(DOCUMENTATION, active)
    numbers = {key: number for number, key in enumerate(keys)}
    return Ranking(
        weights=active.weights, boosts={numbers[key]: boost for key, boost in boosts.items()}
    )
