"""A corpus as a value: where its passages, words and vectors are, and how searches are filtered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    Column,
    ColumnElement,
    Select,
    Table,
    Text,
    and_,
    any_,
    bindparam,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
)

from pgcorpus.db.base import SHARED
from pgcorpus.db.choices import METADATA
from pgcorpus.db.errors import InvalidFilter, MissingScope, Misuse, UnknownFilter
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.metadata import HELD, Json, Tree, list_held, match_metadata, parse_metadata
from pgcorpus.db.text import storable


@dataclass(frozen=True, kw_only=True)
class Filter:
    """A column that a caller may narrow a search by.

    Attributes:
        column: The column that is compared.
        through: How its table belongs to the passage, or None for a column of the passage itself.
        choices: The only values it has, or None where it may have any.
        prefix: Whether a value stands for all that begin with it.
    """

    column: ColumnElement[Any]
    through: ColumnElement[bool] | None = None
    choices: tuple[str, ...] | None = None
    prefix: bool = False


@dataclass(frozen=True)
class Condition:
    """One filter's comparison without its values, as a statement is built from it.

    Attributes:
        name: The filter's.
        comparison: ``equal``, ``any`` (of a list), ``null``, ``any_or_null``, the bounds of a
            range, joined by commas, or ``tree``.
        tree: What is asked of free metadata.
        indexed: Whether an index of the scope finds what it keeps: the parameter ``HELD``.
    """

    name: str
    comparison: str
    tree: Tree | None = None
    indexed: bool = False


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order in which a corpus's passages follow one another, as columns of the passages' table.

    An index on (``within``, ``branch``, ``place``) makes neighbours cheap to find.

    Attributes:
        within: What the passages are parts of, as turns are of a conversation.
        place: A whole number that grows from each passage to the next.
        branch: Where there are alternatives, a whole number: what stands before a passage of branch
            b is, at each place, of the greatest branch not above b; what follows it is of b.
        speaker: Who says it.
        time: When it was said.
        title: The column of the corpus's ``hits`` with the title of what they are parts of. The
            title of a hit is that of a passage then, as a heading.
        citation: The column of the corpus's ``hits`` that tells where a passage stands.
        unit: The word for one passage, in notes.
    """

    within: Column[Any]
    place: Column[Any]
    branch: Column[Any] | None = None
    speaker: Column[Any] | None = None
    time: Column[Any] | None = None
    title: str = "title"
    citation: str | None = None
    unit: str = "turn"


@dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """A corpus: the tables and columns that a search reads. All ranking SQL is built from it.

    Attributes:
        name: Stable, lower case; it is logged and shown.
        passages: The table with one row per passage.
        key: Its primary key, with ``scope`` before it where there is one.
        text: What is embedded of a passage, and hashed to notice a change.
        words: The ``tsvector`` column, whose trigger or expression keeps it in step.
        language: The column with the text search configuration of each passage.
        shown: The expression that the trigram index is on.
        vectors: The embedding table.
        item: The column of ``vectors`` that names the passage.
        filters: What a caller may narrow by, under the caller's names.
        defaults: Filters that hold unless the caller names them.
        hits: A SELECT with one row per passage: ``id``, ``title``, ``content``; every further
            column is metadata of the hit. It runs only for the passages that won.
        scope: The column with a passage's scope, or None where all are public; ``vectors`` has a
            column of the same name. Such a corpus is searched only within a scope, unless it has
            shared passages.
        shared_words: Where passages of the scope ``shared`` are everybody's, the name of the index
            on their words, of which ANALYZE keeps how rare they are. A search without a scope reads
            those passages, one within a scope reads them and its own.
        boosts: The table of what learned rankings add to scores, or None where they weigh the legs
            alone.
            It has the columns ``scope`` and ``ranking_id`` of the ranking, ``passage_scope`` and
            that of the name of ``item`` for the passage, and ``boost``.
        boost: A passage's weight whatever the question, in [0, 1], or None; it has the parameter
            ``half_life_days``.
        order: The order of the passages, or None where each stands alone.
        labels: Columns of ``hits`` by which a person tells a passage from others, as an author's
            identifier or a citation; without any, its key.
        metadata_column: The JSONB column of the passages whose keys a caller may narrow by with the
            filter ``metadata``, or None. A GIN index of ``jsonb_path_ops`` serves equality; where
            there is a scope, the function that ``search_in_scope_v1`` makes.
    """

    name: str
    passages: Table
    key: Column[Any]
    text: ColumnElement[str]
    words: Column[Any]
    language: Column[Any]
    shown: ColumnElement[str]
    vectors: Table
    item: Column[Any]
    filters: Mapping[str, Filter]
    hits: Select[Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    scope: Column[Any] | None = None
    shared_words: str | None = None
    boosts: Table | None = None
    boost: ColumnElement[float] | None = None
    order: Order | None = None
    labels: tuple[str, ...] = ("id",)
    metadata_column: Column[Any] | None = None

    @property
    def metadata(self) -> tuple[str, ...]:
        """The names of a hit's columns beside id, title and content; hits are grouped by them."""
        return tuple(str(each.key) for each in self.hits.selected_columns if each.key not in SHOWN)

    def parse_filters(
        self, asked: Mapping[str, Any]
    ) -> tuple[tuple[Condition, ...], dict[str, Any]]:
        """Parse filters into conditions and their values, the corpus's defaults included.

        Args:
            asked: Filter name → a value (equality), a list (any of them), None (no value), or a
                mapping with ``gte``, ``gt``, ``lte`` or ``lt`` (a range). Text is read as the
                column's type: ``"true"``, ``"2025-01-31"``. Where the corpus has free metadata,
                ``metadata`` → what ``parse_metadata`` takes.

        Returns:
            The conditions, and the values of their parameters by name.

        Raises:
            UnknownFilter: The corpus has no filter of that name.
            InvalidFilter: A value is not of the column's type, or none of its choices; or the
                filter on free metadata is not one.
        """
        known = self.filters.keys() | ({METADATA} if self.metadata_column is not None else set())
        if unknown := asked.keys() - known:
            raise UnknownFilter(
                f"{self.name} has no filter {', '.join(sorted(map(str, unknown)))}; "
                f"known: {', '.join(sorted(known))}"
            )
        conditions: list[Condition] = []
        values: dict[str, Any] = {}
        for name, value in sorted({**self.defaults, **asked}.items()):
            if name not in self.filters:
                tree, values_of_tree = parse_metadata(value)
                if tree is None:
                    continue
                held = None if self.scope is None else list_held(tree, values_of_tree)
                conditions.append(Condition(name, "tree", tree, indexed=held is not None))
                values |= values_of_tree
                if held is not None:
                    values[HELD] = f"[{', '.join(held)}]"
                continue
            comparison, compared = _split_comparison(name, self.filters[name], value)
            conditions.append(Condition(name, comparison))
            values |= {f"{name}_{bound}": limit for bound, limit in compared.items()}
        return tuple(conditions), values

    def holds(self, condition: Condition) -> ColumnElement[bool]:
        """Build a condition as SQL, with a parameter for each value."""
        if condition.tree is not None and self.metadata_column is not None:
            return match_metadata(self.metadata_column, condition.tree)
        of = self.filters[condition.name]
        if of.through is None:
            return _compare(of, condition)
        # No value is also no row: a passage without a concept has none.
        none = ~exists().where(and_(of.through, of.column.is_not(None)))
        if condition.comparison == "null":
            return none
        some = Condition(condition.name, condition.comparison.removesuffix("_or_null"))
        held = exists().where(and_(of.through, _compare(of, some)))
        return or_(held, none) if some != condition else held

    def list_held(self, at_most: ColumnElement[int]) -> ColumnElement[Any]:
        """Build the array of addresses of passages that may meet an indexed condition.

        Each has all values that the condition demands, though some of them may be in other places.

        Args:
            at_most: Of those that have the same values, so many are found; null for all.
        """
        function = getattr(func, f"{self.passages.name}_with_metadata")
        found = function(bindparam(HELD, type_=Json()), at_most).column_valued("address")
        held = select(found).cte("with_metadata").prefix_with("MATERIALIZED")
        addresses: ColumnElement[Any] = func.array(select(held).scalar_subquery())
        return addresses

    def is_among(self, addresses: ColumnElement[Any]) -> ColumnElement[bool]:
        """Restrict the passages to an array of addresses."""
        address: ColumnElement[Any] = literal_column(f"{self.passages.name}.ctid")
        return address == any_(addresses)

    @property
    def items(self) -> tuple[Column[Any], ...]:
        """The columns of ``vectors`` that name the passage; a scope is the first of them."""
        return (self.item,) if self.scope is None else (self.vectors.c[self.scope.key], self.item)

    @property
    def vector_join(self) -> ColumnElement[bool]:
        """The join of a vector to its passage, which is of the same scope."""
        keys = (self.key,) if self.scope is None else (self.scope, self.key)
        return and_(*(item == key for item, key in zip(self.items, keys, strict=True)))

    @property
    def needs_scope(self) -> bool:
        """True if it can be searched only within a scope: no passage is everybody's."""
        return self.scope is not None and self.shared_words is None

    def is_scoped(self, scope: Scope | None) -> bool:
        """Return whether a search reads passages of a scope, beside those that are shared."""
        return self.needs_scope or (self.scope is not None and scope is not None)

    def get_boosts(self) -> Table:
        """Return the table of boosts.

        Raises:
            Misuse: There is none.
        """
        if self.boosts is None:
            raise Misuse(f"passages of {self.name} are not boosted: it has no table of boosts")
        return self.boosts

    def in_scope(self, table: Table) -> tuple[ColumnElement[bool], ...]:
        """Restrict *table*, of passages or vectors, to what a search within the scope reads.

        Row security enforces it again; here it also binds roles that pass over row security. The
        planner sees a value, and so how large the scope is, which ``app_scope()`` does not tell it.
        The values of the parameters are ``bind_scope``'s.

        Args:
            table: The corpus's passages or vectors.
        """
        if self.scope is None:
            return ()
        scope = table.c[self.scope.key]
        if self.needs_scope:
            return (scope == bindparam("scope", type_=Text),)
        return (scope == any_(bindparam("scopes", type_=ARRAY(Text))),)

    def split_scope(self, table: Table) -> list[tuple[ColumnElement[bool], ...]]:
        """Return ``in_scope`` in parts that each have an index of vectors, or none."""
        if self.scope is None:
            return [()]
        scope = table.c[self.scope.key]
        own = scope == bindparam("scope", type_=Text)
        # A literal, or the planner cannot see that the partial index serves.
        shared = scope == literal_column(f"'{SHARED}'", Text)
        return [(own,)] if self.needs_scope else [(shared,), (own,)]

    def bind_scope(self, scope: Scope | None) -> dict[str, Any]:
        """Return the values of the parameters that ``in_scope`` and ``split_scope`` build.

        ``scopes`` are also those whose learned ranking a search may use.
        """
        own = [] if scope is None else [str(scope)]
        return {"scope": own[0] if own else None, "scopes": [SHARED, *own]}

    def of_scope(self, table: Table, scope: Scope | None) -> tuple[ColumnElement[bool], ...]:
        """Restrict *table* to the rows of one scope: what is written and maintained together.

        Args:
            table: The corpus's passages or vectors.
            scope: Whose; None: where passages may be everybody's, those.
        """
        if self.scope is None:
            return ()
        return (table.c[self.scope.key] == literal(self.name_scope(scope), Text),)

    def name_scope(self, scope: Scope | None) -> str:
        """Return the scope as its column has it.

        Raises:
            MissingScope: There is none, and no passage is everybody's.
        """
        self.refuse_without(scope)
        return SHARED if scope is None else str(scope)

    def refuse_without(self, scope: Scope | None) -> None:
        """Raise if the corpus is searched only within a scope and none is given.

        Raises:
            MissingScope: *scope* is None, and no passage is everybody's.
        """
        if self.needs_scope and scope is None:
            raise MissingScope(
                f"{self.name} is searched only within a scope, and none was given; name a tenant "
                "or a user"
            )

    def is_direct(self, condition: Condition) -> bool:
        """Return whether a condition is on a column of the passages' own table."""
        return condition.tree is not None or self.filters[condition.name].through is None


SHOWN: Final = frozenset(("id", "title", "content"))
"""Columns that every hit shows."""


COMPARISONS: Final = {"gte": "__ge__", "gt": "__gt__", "lte": "__le__", "lt": "__lt__"}


BOUNDS: Final = ", ".join(COMPARISONS)


def _split_comparison(
    name: str,
    of: Filter,
    value: Any,
) -> tuple[str, dict[str, Any]]:
    """Split a filter's value into the comparison and the values of its parameters."""
    if value is None:
        return "null", {}
    if isinstance(value, Mapping):
        if of.column.type.python_type is bool:
            raise InvalidFilter(f"{name}: true and false have no range")
        if not value or value.keys() - COMPARISONS.keys():
            given = sorted(map(str, value))
            raise InvalidFilter(f"{name}: a range has the bounds {BOUNDS}, not {given}")
        bounds = {bound: _as(name, of.column, limit) for bound, limit in sorted(value.items())}
        return ",".join(bounds), bounds
    if isinstance(value, (list, tuple, set, frozenset)):
        present = [_read_choice(name, of, each) for each in value if each is not None]
        return ("any_or_null" if len(present) < len(value) else "any"), {"any": present}
    return "equal", {"equal": _read_choice(name, of, value)}


def _read_choice(name: str, of: Filter, value: Any) -> Any:
    """Convert a value to the column's Python type, and check it against the filter's choices."""
    converted = _as(name, of.column, value)
    if of.choices is not None and converted not in of.choices:
        raise InvalidFilter(f"{name}: {value!r} is none of {', '.join(of.choices)}")
    return converted


def _compare(of: Filter, condition: Condition) -> ColumnElement[bool]:
    column = of.column

    def parameter(bound: str, several: bool = False) -> ColumnElement[Any]:
        kind = ARRAY(column.type) if several else column.type
        return bindparam(f"{condition.name}_{bound}", type_=kind)

    match condition.comparison:
        case "null":
            return column.is_(None)
        case "equal" if of.prefix:
            return func.starts_with(column, parameter("equal"))
        case "equal":
            return column == parameter("equal")
        case "any":
            return _is_any(of, parameter("any", several=True))
        case "any_or_null":
            return or_(_is_any(of, parameter("any", several=True)), column.is_(None))
        case bounds:
            return and_(*(getattr(column, COMPARISONS[b])(parameter(b)) for b in bounds.split(",")))


def _is_any(of: Filter, values: ColumnElement[Any]) -> ColumnElement[bool]:
    if not of.prefix:
        return of.column == any_(values)
    value = func.unnest(values).column_valued("value")
    return exists(select(value).where(func.starts_with(of.column, value)))


def _as(name: str, column: ColumnElement[Any], value: Any) -> Any:
    """Convert a value to the column's Python type; text is read, nothing else is guessed."""
    kind = column.type.python_type
    try:
        converted = _read(kind, value) if isinstance(value, str) else value
    except ValueError:
        converted = value
    if kind is datetime and type(converted) is date:
        converted = datetime.combine(converted, time.min)
    if isinstance(converted, datetime) and converted.tzinfo is None:
        converted = converted.replace(tzinfo=UTC)
    if not isinstance(converted, kind) or (kind is not bool and isinstance(converted, bool)):
        raise InvalidFilter(f"{name}: {value!r} is not a {kind.__name__}")
    if isinstance(converted, str) and not storable(converted):
        raise InvalidFilter(f"{name}: {value!r} holds a character that no text can hold")
    return converted


def _read(kind: type, value: str) -> Any:
    if kind is bool:
        return {"true": True, "false": False}[value.lower()] if value.lower() in BOOLEANS else value
    if kind in (datetime, date):
        return kind.fromisoformat(value)
    return kind(value)


BOOLEANS: Final = ("true", "false")
