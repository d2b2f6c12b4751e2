"""The answer of the database to a search, read from the rows of its statement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from pgcorpus.db.search.corpus import SHOWN
from pgcorpus.db.search.likeness import Look, stop_early
from pgcorpus.db.search.page import Hit
from pgcorpus.db.search.prelude import ActiveRanking
from pgcorpus.db.search.ranking import Shape, compile_search
from pgcorpus.db.search.words import LookUp

RANKING: Final = SHOWN | {
    "active",
    "index_kind",
    "cosine_spread",
    "awaited",
    "dropped",
    "group_total",
    "active_ranking",
    "asked_place",
    "passage_id",
    "score",
    "learned_gain",
    "group_place",
    "group_found",
    *(
        f"{leg}_{column}"
        for leg in ("vector", "text", "fuzzy")
        for column in ("candidates", "ended", "place", "score")
    ),
}
"""Columns of the statement that are no metadata of a hit."""


@dataclass(frozen=True, kw_only=True)
class Statement:
    """The statement of a search, with all that it depends on.

    Attributes:
        shape: What it is made of.
        values: Its parameters.
        settings: Those of the transaction it runs in.
        looks: How the fuzzy leg looks for a word by its trigrams, in the order in which it is
            tried; the parameters have the first.
        look_up: The words that the text and the fuzzy leg look up, or None without these.
        kept: How many passages meet filters and demands, or None when they are not few.
        known: Whether there are statistics of the corpus's words.
        counted: Whether the passages were counted, so that ``kept`` tells.
        ranking: The learned ranking that it ranks by, or None.
        foreign: Languages that the question is read in, where the model knows none of them.
    """

    shape: Shape
    values: Mapping[str, Any]
    settings: Mapping[str, str]
    looks: tuple[Look, ...]
    look_up: LookUp | None
    kept: int | None
    known: bool
    counted: bool
    ranking: ActiveRanking | None = None
    foreign: tuple[str, ...] = ()

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the legs that run."""
        return {leg: self.values[f"leg_{leg}"] for leg in self.shape.legs}

    @property
    def sql(self) -> str:
        """The statement as the driver takes it."""
        return compile_search(self.shape)

    def is_weighed_by(self, report: Mapping[str, Any]) -> bool:
        """Return whether the active learned ranking, of an answer's first row, is this one's."""
        active = report["active_ranking"]
        used = None if self.ranking is None else self.ranking.id
        return used == (None if active is None else str(active))

    @property
    def stops_early(self) -> bool:
        """True if the fuzzy leg looks for nothing less alike, as too many passages are searched."""
        return stop_early(self.looks)


class ModelState(NamedTuple):
    """The state of a model that a search relies on; when it has changed, the search runs again."""

    active: str | None
    index_kind: str | None
    cosine_spread: float | None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer of the database.

    Attributes:
        hits: Best first.
        candidates: Leg → how many passages it found.
        durations_ms: Leg → its share of the statement's time; legs that found none are absent.
        model: Of the vector leg, in the snapshot of the search; None without that leg.
        awaited: Whether vectors of the model are still to be made, so that the vector leg cannot
            find all passages.
        dropped: How many candidates of the vector leg were less similar than was asked for.
        statement: What was run.
        groups: How many groups the candidates are of; 0 where they are not grouped.
        outdated: Whether another learned ranking is active than the one that weighed the hits.
        refused: How many candidates did not meet the conditions that were asked of the hits alone.
        found: Hit's id → how many candidates are of its group; empty where they are not grouped.
    """

    hits: tuple[Hit, ...]
    candidates: Mapping[str, int]
    durations_ms: Mapping[str, float]
    model: ModelState | None
    awaited: bool
    dropped: int
    statement: Statement
    groups: int = 0
    outdated: bool = False
    refused: int = 0
    found: Mapping[Any, int] = field(default_factory=dict)

    @property
    def is_full(self) -> bool:
        """True if a leg found as many passages as it was asked for: there may be more."""
        return any(found >= self.statement.shape.depth for found in self.candidates.values())

    @property
    def compared(self) -> str:
        """The words of the question that the fuzzy leg compared by trigrams; empty for none."""
        values = self.statement.values
        return str(values["fuzzy_question"]) if values["fuzzy_weight"] else ""

    @property
    def words_asked(self) -> int:
        """The number of lexemes that the text leg looked up."""
        return len(self.statement.look_up.words) if self.statement.look_up else 0

    @property
    def words_known(self) -> int:
        """The number of lexemes whose rarity is known; 0 before the first ANALYZE."""
        return self.words_asked if self.statement.known else 0

    @property
    def kept(self) -> int | None:
        """The number of passages that meet filters and demands, or None when they are not few."""
        return self.statement.kept

    @classmethod
    def of(cls, statement: Statement, rows: Sequence[Mapping[str, Any]]) -> Answer:
        """Read the rows of a statement: at least one, or none where no leg was left to run."""
        shape = statement.shape
        report: Mapping[str, Any] = rows[0] if rows else {}
        candidates = {leg: report.get(f"{leg}_candidates") or 0 for leg in shape.legs}
        read = _HitReader(statement, [*report])
        hits = [row for row in rows if row["id"] is not None]
        state = ModelState(*map(report.get, ModelState._fields))
        return cls(
            hits=tuple(map(read, hits)),
            candidates=candidates,
            durations_ms=_durations({leg: report.get(f"{leg}_ended") for leg in shape.legs}),
            model=None if state.index_kind is None else state,
            awaited=report.get("awaited", False),
            dropped=report.get("dropped", 0),
            statement=statement,
            groups=report.get("group_total") or 0,
            outdated=shape.weighed and bool(rows) and not statement.is_weighed_by(report),
            refused=_count_refused(statement, candidates, hits) if shape.late else 0,
            found={row["id"]: row["group_found"] for row in hits} if shape.group_by else {},
        )


def _count_refused(
    statement: Statement, candidates: Mapping[str, int], hits: Sequence[Mapping[str, Any]]
) -> int:
    """Count the candidates that were refused before the page was full, or all were asked."""
    limit: int = statement.values["page_limit"]
    offset: int = statement.values["page_offset"]
    if len(hits) == limit:
        return int(hits[-1]["asked_place"]) - offset - limit
    return max(0, max(candidates.values(), default=0) - offset - len(hits))


class _HitReader:
    """Makes hits of the rows of a statement."""

    def __init__(self, statement: Statement, columns: Sequence[str]) -> None:
        shape = statement.shape
        self._metadata = [each for each in columns if each not in RANKING]
        self._corpus = shape.corpus.name
        self._boosted, self._learned = shape.boosted, shape.learned
        self._rrf_k = statement.values["rrf_k"] if shape.fusion == "rrf" else None
        self._legs = [
            (leg, f"{leg}_place", f"{leg}_score", weight)
            for leg, weight in statement.weights.items()
        ]

    def __call__(self, row: Mapping[str, Any]) -> Hit:
        ranks: dict[str, int] = {}
        scores: dict[str, float] = {}
        contributions: dict[str, float] = {}
        for leg, place_of, score_of, weight in self._legs:
            if (score := row[score_of]) is None:
                continue
            scores[leg], place = score, row[place_of]
            if place is not None:
                ranks[leg] = place
            contributions[leg] = (
                weight * score if self._rrf_k is None else weight / (self._rrf_k + place)
            )
        if self._learned and row["learned_gain"]:
            contributions["learned"] = row["learned_gain"]
        if self._boosted:
            contributions["boost"] = row["score"] - sum(contributions.values())
        return Hit(
            id=row["id"],
            corpus=self._corpus,
            score=row["score"],
            title=row["title"],
            content=row["content"],
            ranks=ranks,
            scores=scores,
            contributions=contributions,
            metadata={key: row[key] for key in self._metadata},
        )


def _durations(ended: Mapping[str, float | None]) -> dict[str, float]:
    """Return each leg's own duration: legs run one after another, and each notes its end."""
    before, durations = 0.0, {}
    known = [(moment, leg) for leg, moment in ended.items() if moment is not None]
    for moment, leg in sorted(known):
        durations[leg] = round(moment - before, 3)
        before = moment
    return durations
