"""Learning from clicks on documentation: read, fitted, and applied as a version."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import Misuse
from pgcorpus.db.repositories.rankings import StoredRanking
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.corpora import DOCUMENTATION
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.corpus import Progress
from pgcorpus.services.embedding.choice import choose
from pgcorpus.services.learning.impressions import Impression, Shown
from pgcorpus.services.learning.learn import learn
from pgcorpus.services.learning.replay import Ranking
from pgcorpus.services.learning.report import LearningReport
from pgcorpus.services.search.request import WEIGHTS_OF
from pgcorpus.services.search.service import stretch

MAX_IMPRESSIONS: Final = 100_000
"""The latest pages that are learned from: a minute and 1 GB."""

LEAST_DWELL_SECONDS: Final = 2.0
"""A click whose user was back sooner does not count: the passage was not what was looked for."""

LEARNED_LEGS: Final = ("vector", "text")

MODE: Final = "hybrid"
FUSION: Final = "calibrated"


@dataclass
class _Page:
    """A page as it was shown, and what was clicked of it."""

    impression: Impression
    created_at: datetime
    clicked: set[str] = field(default_factory=set)


class ClickLearner:
    """Learns from the clicks of one scope how to rank its documentation.

    Args:
        database: Where pages, clicks and documents are.
        scope: The tenant; None: searches without a scope, whose ranking everybody shares.
    """

    def __init__(self, database: Database, scope: Scope | None = None) -> None:
        self._database = database
        self._scope = scope

    def learn(
        self,
        *,
        since: datetime | None = None,
        apply: bool = False,
        progress: Progress | None = None,
    ) -> LearningReport:
        """Learn from what was recorded, and apply it if asked.

        Args:
            since: Only from pages that were shown from then on.
            apply: Store what was learned as the next version, which searches then use; nothing is
                stored where nothing was learned.
            progress: Called with the rows read, and how many there are.

        Raises:
            Misuse: scipy is not installed.
            NotPermitted: It is applied for everybody, and the role is no administrator.
        """
        with self._database.unit_of_work(self._scope) as work:
            work.feedback.lift_timeout()
            reader = _Reader(work, progress or (lambda _done, _total: None))
            impressions = reader.read(since)
            choice = choose(work, DOCUMENTATION, self._database.settings)
            active = work.rankings.find_active(DOCUMENTATION)
            boosts = {} if active is None else work.rankings.list_boosts(DOCUMENTATION, active)
        factor = stretch(choice)
        today = _normalise(WEIGHTS_OF[FUSION] if active is None else active.weights)
        learned = learn(
            impressions,
            Ranking(
                weights={**today, "vector": today["vector"] * factor},
                boosts={str(key): boost for key, boost in boosts.items()},
            ),
        )
        weights = learned.ranking.weights
        report = LearningReport(
            corpus=DOCUMENTATION.name,
            scope=DOCUMENTATION.name_scope(self._scope),
            learned=learned,
            today=today,
            today_version=None if active is None else f"version {active.version}, {active.scope}",
            weights=_normalise({**weights, "vector": weights["vector"] / factor}),
            boosts=len(learned.ranking.boosts),
            pages=reader.pages,
            is_limited=reader.is_limited,
            left_out=reader.left_out,
        )
        if apply and learned.is_new:
            report = replace(report, applied=self._apply(report).version)
        return report

    def roll_back(self) -> tuple[StoredRanking, StoredRanking | None] | None:
        """Take back the version that the scope's searches use.

        Returns:
            It, and the version before, which is used again, or None where none was; None alone
            where the scope has no active version.

        Raises:
            NotPermitted: It is everybody's, and the role is no administrator.
        """
        with self._database.unit_of_work(self._scope) as work:
            taken_back = work.rankings.roll_back(DOCUMENTATION)
            work.commit()
        return taken_back

    def list_versions(self) -> Sequence[StoredRanking]:
        """List the versions of the scope, the newest first."""
        with self._database.unit_of_work(self._scope) as work:
            return work.rankings.list_versions(DOCUMENTATION)

    def _apply(self, report: LearningReport) -> StoredRanking:
        learned = report.learned
        estimate = {} if learned.estimate is None else learned.estimate._asdict()
        counted = ("impressions", "clicks", "voices")
        with self._database.unit_of_work(self._scope) as work:
            stored = work.rankings.apply(
                DOCUMENTATION,
                weights=report.weights,
                boosts={UUID(key): boost for key, boost in learned.ranking.boosts.items()},
                estimate=estimate | {each: getattr(learned, each) for each in counted},
            )
            work.commit()
        return stored


class _Reader:
    """Reads impressions: pages, and then the clicks on them.

    Attributes:
        pages: How many pages were recorded.
        is_limited: Whether there were more than are read.
        left_out: Reason → pages or clicks that say nothing.
    """

    def __init__(self, work: UnitOfWork, progress: Progress) -> None:
        self._feedback = work.feedback
        self._progress = progress
        self._done = self._total = 0
        self._asked: dict[tuple[str, str], list[_Page]] = defaultdict(list)
        self.pages = 0
        self.is_limited = False
        self.left_out: Counter[str] = Counter()

    def read(self, since: datetime | None) -> list[Impression]:
        """Read the latest impressions."""
        self.pages = self._feedback.count_pages(since=since)
        clicks = self._feedback.count_clicks(since=since)
        self._total = min(self.pages, MAX_IMPRESSIONS) + clicks
        read = 0
        for row in self._feedback.read_latest_pages(
            fusion=FUSION, mode=MODE, since=since, limit=MAX_IMPRESSIONS
        ):
            read += 1
            self._keep_page(row)
            self._advance()
        self.is_limited = read == MAX_IMPRESSIONS
        if read < MAX_IMPRESSIONS and self.pages > read:
            self.left_out[f"pages that are not {MODE} and {FUSION}, or empty"] = self.pages - read
        if self.is_limited:  # earlier clicks are on pages that were not read
            since = min(page.created_at for pages in self._asked.values() for page in pages)
        for row in self._feedback.read_clicks(since=since):
            self._keep_click(row)
            self._advance()
        self._progress(self._total, self._total)
        return [
            replace(page.impression, clicked=frozenset(page.clicked))
            for pages in self._asked.values()
            for page in pages
        ]

    def _keep_page(self, row: Row[Any]) -> None:
        try:
            impression = _read_impression(row)
        except (AttributeError, KeyError, TypeError, ValueError, Misuse):
            self.left_out["pages that cannot be read"] += 1
        else:
            page = _Page(impression, row.created_at)
            self._asked[row.session_id, row.query].append(page)

    def _keep_click(self, row: Row[Any]) -> None:
        """Keep a click for the page that it was on, or count why it does not count."""
        if row.dwell_time is not None and row.dwell_time < LEAST_DWELL_SECONDS:
            self.left_out[f"clicks left within {LEAST_DWELL_SECONDS:g} s"] += 1
            return
        passage = str(row.chunk_id)
        showing = [
            page
            for page in self._asked.get((row.session_id, row.query), ())
            if any(each.passage == passage for each in page.impression.shown)
        ]
        if not showing:
            self.left_out["clicks on what no page of theirs showed"] += 1
            return
        # The newest comes first. Clocks differ: where all pages are later, it is the first.
        before = (page for page in showing if page.created_at <= row.created_at)
        next(before, showing[-1]).clicked.add(passage)

    def _advance(self) -> None:
        self._done += 1
        if self._done % 1000 == 0:  # the end is told once
            self._progress(min(self._done, self._total - 1), self._total)


def _read_impression(row: Row[Any]) -> Impression:
    """Read a page as it was recorded; fuzzy stands in for text.

    Raises:
        AttributeError, KeyError, TypeError, ValueError, Misuse: It is not as pages are recorded.
    """
    shown = tuple(
        Shown(str(UUID(each["id"])), int(each["position"]), _read_scores(each["scores"]))
        for each in row.shown
    )
    voice = f"session {row.session_id}" if row.user_id is None else f"user {row.user_id}"
    weights = {_name(leg): float(weight) for leg, weight in row.weights.items()}
    return Impression(
        session=row.session_id, voice=voice, query=row.query, weights=weights, shown=shown
    )


def _read_scores(scores: Mapping[str, Any]) -> dict[str, float]:
    read = {_name(leg): float(score) for leg, score in scores.items()}
    if not all(0 <= score <= 1 for score in read.values()):
        raise ValueError(scores)
    return read


def _name(leg: str) -> str:
    return "text" if leg == "fuzzy" else leg


def _normalise(weights: Mapping[str, float]) -> dict[str, float]:
    """Return the weights of the learned legs with the sum 1."""
    total = sum(weights[leg] for leg in LEARNED_LEGS)
    return {leg: weights[leg] / total for leg in LEARNED_LEGS}
