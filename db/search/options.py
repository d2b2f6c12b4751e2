"""The options of a search that reach its statement, as one value from the caller on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from pgcorpus.db.choices import RRF_K, Fusion

HALF_LIFE_DAYS: Final = 30.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a search, beside its question and its legs.

    Attributes:
        fusion: How legs are joined.
        limit: Hits, at most.
        offset: Hits that are passed over.
        filters: As ``Corpus.parse_filters`` takes them.
        language: Text search configuration that reads the question, or None for those of the
            passages.
        min_similarity: Cosine, 0 to 1, below which the vector leg drops a passage.
        rrf_k: Constant of ``rrf``: the greater, the less the first places count for.
        boost: Share of its score, 0 to 1, by which a passage's freshness and use may raise it,
            where the corpus has such a boost.
        half_life_days: Days after which the freshness in the boost is halved.
        group_by: A column of the hits' metadata, or None. With one, ``limit`` and ``offset`` count
            its values, each ranked by its best hit.
        group_size: Hits of each value, at most.
        learned: Whether the ranking that clicks taught is used, where one is active.
    """

    fusion: Fusion = "calibrated"
    limit: int = 10
    offset: int = 0
    filters: Mapping[str, Any] = field(default_factory=dict)
    language: str | None = None
    min_similarity: float = 0.0
    rrf_k: int = RRF_K
    boost: float = 0.0
    half_life_days: float = HALF_LIFE_DAYS
    group_by: str | None = None
    group_size: int = 1
    learned: bool = False

    @property
    def end(self) -> int:
        """The number of hits, or groups, up to the end of the page."""
        return self.limit + self.offset

    @property
    def options(self) -> dict[str, Any]:
        """The options by name, to be handed on."""
        return {each.name: getattr(self, each.name) for each in fields(Options)}
