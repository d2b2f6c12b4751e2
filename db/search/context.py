"""The surroundings of hits: the passages before and after each, where a corpus has an order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    ARRAY,
    CTE,
    ColumnElement,
    Integer,
    Select,
    any_,
    bindparam,
    cast,
    func,
    lateral,
    literal_column,
    null,
    select,
    true,
    union_all,
)
from sqlalchemy.dialects.postgresql import distinct_on

from pgcorpus.db.errors import InvalidSearch
from pgcorpus.db.search.corpus import Corpus, Order


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One passage among its neighbours.

    Attributes:
        id: The passage's key.
        within: What it is a part of.
        place: Where in it.
        branch: In which alternative, 0 where the corpus has none.
        role: Who says it, or None.
        time: When, or None.
        title: Of what it is a part of, or None.
        heading: Its own title, where that is another.
        citation: Where it stands, ready to be cited, or None.
        content: Of the passage.
        is_hit: Whether it was found, and not only stands beside what was.
        is_cut: Whether the end of the content was left out.
    """

    id: Any
    within: Any
    place: int
    branch: int
    role: str | None
    time: datetime | None
    title: str | None
    content: str
    is_hit: bool
    heading: str | None = None
    citation: str | None = None
    is_cut: bool = False


Window = Mapping[int, Turn]
"""The turns of a hit and around it: place → turn, in their order, one turn at each place."""


def order_of(corpus: Corpus) -> Order:
    """Return the order in which the corpus's passages follow one another.

    Raises:
        InvalidSearch: They do not.
    """
    if corpus.order is None:
        raise InvalidSearch(
            f"{corpus.name} has no context: its passages do not follow one another; search without"
        )
    return corpus.order


@lru_cache(maxsize=64)
def surroundings(corpus: Corpus) -> Select[Any]:
    """Build the statement that reads the passages around hits.

    Parameters: ``hits`` (keys), ``before`` and ``after`` (how many passages on either side).

    Every step is a short scan of the index on (within, branch, place), whatever the planner thinks
    of the number of rows: LATERAL with LIMIT or OFFSET asks for each row by itself.

    Returns:
        One row for each passage, by place: ``hits`` (those in whose window it is), ``id``,
        ``within``, ``place``, ``branch``, ``role``, ``time``, ``title``, ``heading``, ``citation``,
        ``content``. A hit that is gone, or hidden by row security, is in no row.
    """
    order, passages = order_of(corpus), corpus.passages
    branch = literal_column("0", Integer) if order.branch is None else order.branch
    keys = any_(bindparam("hits", type_=ARRAY(corpus.key.type)))
    paths = select(
        corpus.key.label("hit"),
        order.within.label("within"),
        order.place.label("place"),
        branch.label("branch"),
        true().label("own"),
        *(() if corpus.scope is None else (corpus.scope.label("scope"),)),
    ).where(corpus.key == keys, *corpus.in_scope(corpus.passages))
    path = _paths(paths, corpus, order)
    near = _near(corpus, path, order)
    distance = func.row_number().over(
        partition_by=(near.c.hit, near.c.before), order_by=near.c.place.desc()
    )
    placed = select(near, distance.label("distance")).subquery("placed")
    once = (placed.c.id, placed.c.place, placed.c.branch)
    chosen = (
        select(func.array_agg(placed.c.hit).label("hits"), *once)
        .where(~placed.c.before | (placed.c.distance <= bindparam("before", type_=Integer())))
        .group_by(*once)  # windows overlap, and a text is sent once
        .subquery("chosen")
    )
    hits = corpus.hits.where(*corpus.in_scope(passages)).subquery("hits")
    shown = lateral(
        select(
            passages.c[order.within.key].label("within"),
            _or_null(order.speaker).label("role"),
            _or_null(order.time).label("time"),
            hits.c[order.title].label("title"),
            _or_null(hits.c.title if order.title != "title" else None).label("heading"),
            _or_null(None if order.citation is None else hits.c[order.citation]).label("citation"),
            hits.c.content,
        )
        .join_from(passages, hits, hits.c.id == corpus.key)
        .where(*corpus.in_scope(passages), corpus.key == chosen.c.id)
        .correlate(chosen)
        .offset(literal_column("0", Integer))
    )
    return (
        select(*chosen.c, *shown.c)
        .join_from(chosen, shown, true())
        .order_by(chosen.c.place, chosen.c.id)
    )


def _paths(start: Select[Any], corpus: Corpus, order: Order) -> CTE:
    """Follow each hit's branch down to every branch below it that may hold its past."""
    path = start.cte("path", recursive=order.branch is not None)
    if order.branch is None:
        return path
    lower = lateral(
        select(order.branch.label("branch"))
        .where(*_is_within(path, corpus, order), order.branch < path.c.branch)
        .correlate(path)
        .order_by(order.branch.desc())
        .limit(literal_column("1", Integer))
    )
    lower_path = {"branch": lower.c.branch, "own": (~true()).label("own")}
    descended = select(*(lower_path.get(each.key, each) for each in path.c))
    return path.union_all(descended.join_from(path, lower, true()))


def _is_within(path: CTE, corpus: Corpus, order: Order) -> list[ColumnElement[bool]]:
    """Restrict the passages to those that are parts of the same as a hit, and so of its scope.

    It is one scope: among several, an index would not have the passages in their order.
    """
    within = [order.within == path.c.within]
    return within if corpus.scope is None else [corpus.scope == path.c.scope, *within]


def _near(corpus: Corpus, path: CTE, order: Order) -> Any:
    """Read the passages near a hit.

    These are the passages before it on each branch of its path, and those after it on its own.

    As many as asked for of every branch are enough: at a place that several branches have, the
    greatest of them is the path's.
    """
    of_branch = _is_within(path, corpus, order)
    if order.branch is not None:
        of_branch.append(order.branch == path.c.branch)
    columns = (corpus.key.label("id"), order.place.label("place"))
    before = (
        select(*columns)
        .where(*of_branch, order.place < path.c.place)
        .correlate(path)
        .order_by(order.place.desc())
        .limit(bindparam("before", type_=Integer()))
    )
    after = (
        select(*columns)
        .where(*of_branch, order.place >= path.c.place, path.c.own)
        .correlate(path)
        .order_by(order.place)
        .limit(bindparam("after", type_=Integer()) + 1)
    )
    each = lateral(union_all(before.subquery().select(), after.subquery().select()))
    return (
        select(
            path.c.hit,
            path.c.branch,
            each.c.id,
            each.c.place,
            (each.c.place < path.c.place).label("before"),
        )
        .join_from(path, each, true())
        .ext(distinct_on(path.c.hit, each.c.place))
        .order_by(path.c.hit, each.c.place, path.c.branch.desc())
        .subquery("near")
    )


def _or_null(column: ColumnElement[Any] | None) -> ColumnElement[Any]:
    return cast(null(), Integer) if column is None else column
