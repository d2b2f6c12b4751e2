"""The least statements for the same hits, by bare psycopg: ``python -m tests.benchmarks.lean``.

The ranking, its values (words, weights, settings) and the columns of a hit are this project's. Left
out is all that ``SearchService`` asks and reports beside them: places, times, scores of the legs,
the states of model and vectors, the default filter.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import Double, Select, bindparam, except_, func, literal_column, select, union_all

from pgcorpus.db.search.ask import FIRST_DEPTH
from pgcorpus.db.search.corpora import KNOWLEDGE
from pgcorpus.db.search.driver import in_drivers_words
from pgcorpus.db.search.legs import AskedModel, Narrowing, SearchLeg, TextLeg, VectorLeg
from tests.benchmarks.contender import HITS, serve
from tests.benchmarks.floor import Floor, Search
from tests.benchmarks.ours import MODEL


class Lean(Floor):
    """Searches as ``Floor`` does, with statements of its own."""

    def restate(self, mode: str, search: Search) -> Search:
        """Replace the ranking; its values stay."""
        _, values = search.ranking
        words = sum(name.startswith("word_") for name in values or {})
        return Search(search.settings, (compile_lean(mode, self.job.dimensions, words), values))


@lru_cache
def compile_lean(mode: str, dimensions: int, words: int) -> str:
    """Compile the statement of a mode.

    Args:
        mode: vector, text or hybrid.
        dimensions: Length of the vectors.
        words: For how many words the text leg has room.
    """
    vector, text = VectorLeg(KNOWLEDGE, AskedModel(MODEL, dimensions)), TextLeg(KNOWLEDGE, words)
    match mode:
        case "vector":
            scored = vector.find(FIRST_DEPTH, Narrowing()).subquery("scored")
        case "text":
            scored = text.find(HITS, Narrowing()).subquery("scored")
        case _:
            scored = _fuse(vector, text).subquery("scored")
    best = (
        select(scored)
        .order_by(scored.c.score.desc(), scored.c.passage_id)
        .limit(literal_column(str(HITS)))
        .subquery("best")
    )
    hits = KNOWLEDGE.hits.subquery("hits")
    shown = select(best.c.score, hits).join_from(best, hits, hits.c.id == best.c.passage_id)
    return in_drivers_words(shown.order_by(best.c.score.desc(), hits.c.id))


def _fuse(*legs: SearchLeg) -> Select[Any]:
    """Add the weighted scores that both legs give to the candidates of both."""
    found = [leg.find(FIRST_DEPTH, Narrowing()).cte(f"{leg.name}_found") for leg in legs]
    parts: list[Select[Any]] = []
    for leg, own, other in zip(legs, found, reversed(found), strict=True):
        missing = except_(select(other.c.passage_id), select(own.c.passage_id)).subquery()
        completed = leg.score_passages(select(missing.c.passage_id)).subquery()
        weight = bindparam(f"leg_{leg.name}", type_=Double())
        parts += [
            select(scored.c.passage_id, (weight * scored.c.score).label("gain"))
            for scored in (own, completed)
        ]
    gains = union_all(*parts).subquery("gains")
    fused = select(gains.c.passage_id, func.sum(gains.c.gain).label("score"))
    return fused.group_by(gains.c.passage_id)


if __name__ == "__main__":
    serve(Lean)
