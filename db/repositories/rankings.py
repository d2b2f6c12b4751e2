"""Learned rankings, in versions, of which one is active in each scope of a corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Double,
    Select,
    Text,
    Uuid,
    any_,
    column,
    exists,
    func,
    literal,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from pgcorpus.db.base import SHARED, table_of
from pgcorpus.db.errors import Misuse, NotPermitted
from pgcorpus.db.models.documentation import LearnedRanking
from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.search.corpus import Corpus

_rankings = table_of(LearnedRanking)


class StoredRanking(NamedTuple):
    """A version of a learned ranking.

    Attributes:
        id: Its key.
        corpus: Whose passages it ranks.
        scope: ``shared``, or the scope that learned it.
        version: Number within corpus and scope, from 1.
        replaced: The version that was active before, or None.
        weights: Leg → weight; their sum is 1.
        estimate: What it was expected to change: ``before``, ``change``, ``low``, ``high``, and the
            ``impressions``, ``clicks`` and ``voices``, or ``questions``, that taught it.
        boosts: How many passages it boosts.
        is_active: Whether searches use it.
        created_by: The user or login that applied it.
        created_at: When.
    """

    id: UUID
    corpus: str
    scope: str
    version: int
    replaced: int | None
    weights: Mapping[str, float]
    estimate: Mapping[str, Any]
    boosts: int
    is_active: bool
    created_by: str
    created_at: datetime


class RankingRepository(Repository):
    """Learned rankings of the scope, or without one those that everybody shares."""

    def find_active(self, corpus: Corpus) -> StoredRanking | None:
        """Find the ranking that searches within the scope use: its own, else the shared one."""
        scopes = corpus.bind_scope(self.scope)["scopes"]
        found = (
            self._select(corpus)
            .where(_rankings.c.scope == any_(literal(scopes, ARRAY(Text()))), _rankings.c.is_active)
            .order_by(_rankings.c.scope == SHARED)
            .limit(1)
        )
        row = self.session.execute(found).first()
        return None if row is None else StoredRanking(*row)

    def list_versions(self, corpus: Corpus) -> Sequence[StoredRanking]:
        """List the versions of the one scope, the newest first."""
        listed = self._select(corpus).where(_rankings.c.scope == corpus.name_scope(self.scope))
        rows = self.session.execute(listed.order_by(_rankings.c.version.desc()))
        return [StoredRanking(*row) for row in rows]

    def list_boosts(self, corpus: Corpus, ranking: StoredRanking) -> dict[UUID, float]:
        """Return passage → boost of a ranking; none where the corpus has no boosts."""
        if corpus.boosts is None:
            return {}
        boosts = corpus.boosts
        listed = select(boosts.c[corpus.item.key], boosts.c.boost).where(
            boosts.c.scope == ranking.scope, boosts.c.ranking_id == ranking.id
        )
        return {row[0]: row[1] for row in self.session.execute(listed)}

    def apply(
        self,
        corpus: Corpus,
        *,
        weights: Mapping[str, float],
        boosts: Mapping[UUID, float],
        estimate: Mapping[str, Any],
    ) -> StoredRanking:
        """Store a ranking as the next version of the scope, and make it the active one.

        Boosts of passages that are gone are left out.

        Raises:
            Misuse: There are boosts, and the corpus has none; or the scope is a single user's.
            NotPermitted: It would be everybody's, and the role is no administrator.
            AlreadyExists: Another transaction applied one at the same time.
        """
        if self.scope is not None and self.scope.tenant_id is None:
            raise Misuse("a single user has no learned ranking; a tenant has, or everybody")
        versions = self.list_versions(corpus)
        active = next((each for each in versions if each.is_active), None)
        self._activate(corpus, None)
        ranking = LearnedRanking(
            scope=corpus.name_scope(self.scope),
            tenant_id=None if self.scope is None else self.scope.tenant_id,
            corpus=corpus.name,
            version=versions[0].version + 1 if versions else 1,
            replaced=None if active is None else active.version,
            weights=dict(weights),
            estimate=dict(estimate),
            is_active=True,
        )
        self.session.add(ranking)
        self.session.flush()
        if boosts:
            self._store_boosts(corpus, ranking, boosts)
        return self.list_versions(corpus)[0]

    def roll_back(self, corpus: Corpus) -> tuple[StoredRanking, StoredRanking | None] | None:
        """Take the active version of the scope back; the one that it replaced is active again.

        Returns:
            Both, the second None where none was active before; or None where none is active.

        Raises:
            NotPermitted: It is everybody's, and the role is no administrator.
        """
        versions = {each.version: each for each in self.list_versions(corpus)}
        active = next((each for each in versions.values() if each.is_active), None)
        if active is None:
            return None
        before = versions.get(active.replaced or 0)
        self._activate(corpus, before)
        return active, before

    def _store_boosts(
        self, corpus: Corpus, ranking: LearnedRanking, boosts: Mapping[UUID, float]
    ) -> None:
        table, passages = corpus.get_boosts(), corpus.passages
        given = (
            func.unnest(
                literal([*boosts], ARRAY(Uuid())), literal([*boosts.values()], ARRAY(Double()))
            )
            .table_valued(column("passage", Uuid), column("boost", Double))
            .render_derived("given")
        )
        assert corpus.scope is not None  # noqa: S101 - what is boosted has one
        scope = passages.c[corpus.scope.key]
        readable = corpus.bind_scope(self.scope)["scopes"]
        rows = (
            select(
                literal(ranking.tenant_id, Uuid()),
                literal(ranking.scope, Text()),
                literal(ranking.id, Uuid()),
                scope,
                corpus.key,
                given.c.boost,
            )
            .join_from(given, passages, corpus.key == given.c.passage)
            .where(scope == any_(literal(readable, ARRAY(Text()))))
        )
        names = ["tenant_id", "scope", "ranking_id", "passage_scope", corpus.item.key, "boost"]
        # Of a shared passage and an own one of the same key one is enough.
        self.session.execute(insert(table).from_select(names, rows).on_conflict_do_nothing())

    def _activate(self, corpus: Corpus, ranking: StoredRanking | None) -> None:
        """Make a version of the scope the active one, or none.

        Raises:
            NotPermitted: The rows are everybody's, and the role is no administrator.
        """
        scope = corpus.name_scope(self.scope)
        of_scope = (_rankings.c.scope == scope, _rankings.c.corpus == corpus.name)
        active = exists().where(*of_scope, _rankings.c.is_active)
        self.session.execute(
            update(_rankings).where(*of_scope, _rankings.c.is_active).values(is_active=False)
        )
        if self.session.scalar(select(active)):  # row security passes over what it refuses
            raise NotPermitted(
                f"only a member of rag_admin changes the shared ranking of {corpus.name}; "
                "log in as one, or name a tenant"
            )
        if ranking is not None:
            self.session.execute(
                update(_rankings)
                .where(_rankings.c.scope == scope, _rankings.c.id == ranking.id)
                .values(is_active=True)
            )

    def _select(self, corpus: Corpus) -> Select[Any]:
        counted: ColumnElement[int] = literal(0)
        if (boosts := corpus.boosts) is not None:
            counted = (
                select(func.count())
                .where(boosts.c.scope == _rankings.c.scope, boosts.c.ranking_id == _rankings.c.id)
                .scalar_subquery()
            )
        shown = [
            counted.label(each) if each == "boosts" else _rankings.c[each]
            for each in StoredRanking._fields
        ]
        return select(*shown).where(_rankings.c.corpus == corpus.name)
