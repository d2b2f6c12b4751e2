"""Probes of row security: pairs of statements whose answers must be the same."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy.dialects.postgresql import dialect

from pgcorpus.db.base import SHARED

TEXTS: Final = frozenset(("text", "character varying"))
INTEGERS: Final = frozenset(("integer", "bigint"))
MOMENTS: Final = frozenset(("timestamp with time zone", "timestamp without time zone", "date"))
KINDS: Final = (
    TEXTS
    | INTEGERS
    | MOMENTS
    | {"tsvector", "jsonb", "json", "text[]", "double precision", "bytea"}
)
"""Types of columns that take a secret."""


NOTS: Final = 9
DEEP: Final = f"""(
    WITH RECURSIVE nested (n, q) AS (
        SELECT 0, CAST('{"!(" * NOTS}x{")" * NOTS}' AS tsquery)
        UNION ALL
        SELECT n + 1, ts_rewrite(q, CAST('x' AS tsquery), q) FROM nested WHERE n < 11)
    SELECT CAST('{{w}}' AS tsquery) <-> q FROM nested WHERE n = 11)"""  # noqa: S608 - nothing of others
"""A query of 18,433 nested NOTs: it can be built, but where the word is there it cannot be
evaluated ("stack depth limit exceeded")."""


class Column(NamedTuple):
    """A column of a scoped table.

    Attributes:
        name: Of the column.
        type: Without its length.
        derived: Generated, or numbered by the server.
        refers: A key, or a column of the scope: what it holds is no secret to who has it.
    """

    name: str
    type: str
    derived: bool
    refers: bool


class Index(NamedTuple):
    """An index of a scoped table: its keys as SQL, and which of them are computed."""

    name: str
    method: str
    is_unique: bool
    predicate: str | None
    keys: Sequence[str]
    types: Sequence[str]
    computed: Sequence[bool]


class Early(NamedTuple):
    """A function that may run before the policy."""

    name: str
    shipped: bool
    arguments: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Secret:
    """A value in a row of another scope.

    Attributes:
        table: Quoted.
        column: SQL: a column, or what an index computes.
        type: Of the column.
        hit: The value as SQL.
        miss: One that no row has, of the same length.
        word: What the value holds, where it is a text; else empty.
        wrong: The same of the miss.
        at: The condition for the place where the row stands.
    """

    table: str
    column: str
    type: str
    hit: str
    miss: str
    word: str = ""
    wrong: str = ""
    at: str = "true"

    def conditions(self) -> dict[str, tuple[str, str]]:
        """Return how a caller can ask for it: name → condition for the hit, for the miss."""
        forms: dict[str, str]
        if self.type in TEXTS:
            forms = {
                "range": '{c} COLLATE "C" >= {v} AND {c} COLLATE "C" < {v} || \'~\'',
                "equal": "{c} = {v}",
                "above": "{c} >= {v} AND {c} <= {v} || '~'",
                "like": "{c} LIKE '%{w}%'",
                "similar": "'{w}' <% {c}",
            }
        elif self.type == "tsvector":
            forms = {"words": "{c} @@ CAST('{w}' AS tsquery)"}
        elif self.type == "jsonb":
            forms = {
                "contains": "{c} @> {v}",
                "equal": "{c} = {v}",
                "path": "{c} @? '$.** ? (@ == \"{w}\")'",
            }
        elif self.type == "json":
            forms = {"like": "CAST({c} AS text) LIKE '%{w}%'"}
        elif self.type == "text[]":
            forms = {"contains": "{c} @> {v}", "equal": "{c} = {v}"}
        else:
            forms = {"equal": "{c} = {v}", "range": "{c} >= {v} AND {c} <= {v}"}
        return self._fill(forms)

    def cheap(self) -> dict[str, tuple[str, str]]:
        """Return conditions that PostgreSQL takes for cheaper than a policy, and asks first.

        A comparison with an array of one value is half as dear as one with the value; whether an
        element is null costs nothing.
        """
        forms = {
            "one of one": "{c} = ANY (ARRAY[{v}])",
            "equal": "{c} = {v}",
        }
        if self.type == "jsonb":
            forms = {"key": "{c}['{w}'] IS NOT NULL"}
        elif self.type in {"json", "tsvector", "text[]"}:
            forms = {}
        return self._fill(forms)

    def find_place(self, question: tuple[str, str], indexed: Collection[tuple[str, str]]) -> str:
        """Return the condition of where a question is asked: anywhere, if an index finds it.

        Args:
            question: Conditions for the hit, and for the miss.
            indexed: Those that an index is asked for.
        """
        return "true" if question in indexed else self.at

    def _fill(self, forms: Mapping[str, str]) -> dict[str, tuple[str, str]]:
        return {
            name: (
                form.format(c=self.column, v=self.hit, w=self.word),
                form.format(c=self.column, v=self.miss, w=self.wrong),
            )
            for name, form in forms.items()
        }

    @property
    def words(self) -> tuple[str, str]:
        """The words of the hit and of the miss."""
        return self.word, self.wrong

    def alike(self, answer: str) -> str:
        """Return an answer without the signs by which hit and miss could be told apart."""
        for value in (self.hit, self.miss, self.word, self.wrong):
            answer = answer.replace(value.strip("'"), "?") if value else answer
        return answer


class Probe(NamedTuple):
    """Two statements whose answers must be alike for a login that may not see the row."""

    name: str
    secret: Secret
    hit: str
    miss: str


USUAL: Final = {
    "text": "'english'",
    "character varying": "'english'",
    "text[]": "ARRAY['x']",
    "tsquery": "CAST('x' AS tsquery)",
    "name": "CAST('memory_search' AS name)",
    "regclass": "CAST('memory_nodes' AS regclass)",
    "regconfig": "CAST('english' AS regconfig)",
    "integer": "100",
    "bigint": "CAST(100 AS bigint)",
    "real": "CAST(0.6 AS real)",
    "double precision": "CAST(0.1 AS double precision)",
    "boolean": "true",
    "jsonb": "CAST('{{}}' AS jsonb)",
}
"""Type → an argument with which a function does what it is for; of others NULL."""

FUSE: Final = "(SELECT 1 / (SELECT 0) = 1)"
"""A query without a column: PostgreSQL runs it when a row first asks for it, and holds nothing that
asks for it for a function that is given a row."""

CONDITIONAL: Final = {
    "division by zero": "SELECT FROM {t} WHERE {at} AND {q} AND {zero}",
    "its place": "SELECT FROM {t} WHERE {place} AND {q} AND {zero}",
    "CASE": "SELECT FROM {t} WHERE {place} AND CASE WHEN {q} THEN 1 / (SELECT 0) ELSE 1 END = 1",
    "ORDER BY": "SELECT FROM {t} WHERE {place} ORDER BY CASE WHEN {q} THEN 1 / (SELECT 0) END",
    "HAVING": ("SELECT count(*) FROM {t} WHERE {place} HAVING bool_or({q}) AND 1 / (SELECT 0) = 1"),
    "FILTER": ("SELECT count(*) FILTER (WHERE 1 / (SELECT 0) = 1) FROM {t} WHERE {at} AND {q}"),
    "cast": "SELECT FROM {t} WHERE {at} AND {q} AND CAST('no date ' || {x} AS date) IS NULL",
    "regular expression": "SELECT FROM {t} WHERE {at} AND {q} AND 'x' ~ ('(' || {x})",
    "out of memory": (
        "SELECT FROM {t} WHERE {at} AND {q} AND repeat({x} || 'x', 2000000000) = 'x'"
    ),
    "LATERAL": (
        "SELECT FROM {t} AS r, LATERAL (SELECT 1 / (length(CAST(r AS text)) * 0) AS b) AS l"
        " WHERE {at} AND {q} AND b = 1"
    ),
    "semi-join": "SELECT WHERE EXISTS (SELECT FROM {t} WHERE {at} AND {q} AND {zero})",
    "cursor": (
        "SELECT query_to_xml('SELECT 1 / (SELECT 0) FROM {t} WHERE ' || {quoted}, true, true, '')"
    ),
    "UPDATE": "UPDATE {t} SET {own} = {own} WHERE {at} AND {q} AND {zero}",
    "DELETE": "DELETE FROM {t} WHERE {at} AND {q} AND {zero}",
    "FOR UPDATE": "SELECT FROM {t} WHERE {at} AND {q} AND {zero} FOR UPDATE",
}
"""Statements that fail for a row that meets a condition, and for no other: the row is asked."""

HOSTILE: Final = {
    "text": "(SELECT repeat('x', 1000))",
    "character varying": "CAST((SELECT repeat('x', 1000)) AS varchar)",
    "name": "CAST('x' AS name)",
    "tsquery": DEEP,
    "text[]": "ARRAY['x', NULL]",
    "integer": "2147483647",
    "smallint": "CAST(32767 AS smallint)",
    "bigint": "9223372036854775807",
    "double precision": "CAST('NaN' AS double precision)",
    "timestamp with time zone": "CAST('infinity' AS timestamptz)",
    "jsonb": "CAST('[]' AS jsonb)",
    "jsonpath": "CAST('$.** ? (@ like_regex \"{w}\")' AS jsonpath)",
}
"""Type → an argument that a function may stumble over; of others NULL."""


def build_conditions(
    secret: Secret, column: str, indexed: Collection[tuple[str, str]]
) -> Iterator[Probe]:
    """Build statements that fail only if a row holds the secret.

    Args:
        secret: What is asked for.
        column: One that a harmless UPDATE writes, quoted.
        indexed: Conditions that an index is asked for.
    """
    question = next(iter(secret.conditions().values()))
    at = secret.find_place(question, indexed)
    whole = f"CAST({secret.column} AS text)"
    for name, form in CONDITIONAL.items():
        yield Probe(
            name,
            secret,
            *(
                form.format(
                    t=secret.table,
                    q=q,
                    at=at,
                    place=secret.at,
                    x=whole,
                    zero=f"1 / (length({whole}) * 0) = 1",
                    own=column,
                    quoted=literal(f"{at} AND {q}"),
                )
                for q in question
            ),
        )
    for name, conditions in secret.cheap().items():
        form = f"SELECT FROM {secret.table} WHERE {secret.at} AND CASE WHEN {{}} THEN {FUSE} END"
        yield Probe(f"CASE before the policy, {name}", secret, *map(form.format, conditions))
        yield Probe(
            f"a query before the policy, {name}",
            secret,
            *(
                "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF, FORMAT JSON) "
                + form.format(q).replace(FUSE, "(SELECT true)")
                for q in conditions
            ),
        )
    if secret.type == "tsvector":
        form = f"SELECT FROM {secret.table} WHERE {secret.at} AND {secret.column} @@ {DEEP}"
        yield Probe("stack depth", secret, *(form.format(w=w) for w in secret.words))


def build_early(secret: Secret, functions: Sequence[Early]) -> Iterator[Probe]:
    """Build statements that give the secret's row to functions which may run before the policy.

    Functions that PostgreSQL ships so are asked together, each other one alone.
    """
    hit, miss = next(iter(secret.conditions().values()))
    together = []
    for function in functions:
        for place, kind in enumerate(function.arguments):
            if kind != secret.type and not (kind == "text" and secret.type in TEXTS):
                continue
            given = [HOSTILE.get(each, f"CAST(NULL AS {each})") for each in function.arguments]
            given[place] = secret.column
            call = f"{function.name}({', '.join(given)}) IS NOT NULL"
            if function.shipped:
                together.append(call.replace("{w}", "x"))
            else:
                form = f"SELECT FROM {secret.table} WHERE {secret.at} AND {{q}} AND {{f}}"
                yield Probe(
                    function.name,
                    secret,
                    *(
                        form.format(q=q, f=call.replace("{w}", w))
                        for q, w in zip((hit, miss), secret.words, strict=True)
                    ),
                )
    if together:
        called = " AND ".join(together)
        form = f"SELECT FROM {secret.table} WHERE {secret.at} AND {{}} AND {called}"
        yield Probe("shipped functions", secret, form.format(hit), form.format(miss))


def build_explains(secret: Secret, questions: Mapping[str, tuple[str, str]]) -> Iterator[Probe]:
    """Build EXPLAIN of every way to ask for the secret.

    Args:
        secret: What is asked for.
        questions: Name → condition for the hit, for the miss.
    """
    for name, conditions in questions.items():
        form = f"EXPLAIN (FORMAT JSON) SELECT FROM {secret.table} WHERE "
        hit, miss = (form + q for q in conditions)
        yield Probe(name, secret, hit, miss)


def build_analyses(
    secret: Secret,
    questions: Mapping[str, tuple[str, str]],
    indexed: Collection[tuple[str, str]],
) -> Iterator[Probe]:
    """Build EXPLAIN ANALYZE of the same.

    Args:
        secret: What is asked for.
        questions: Name → condition for the hit, for the miss.
        indexed: Conditions that an index is asked for.
    """
    for name, conditions in questions.items():
        form = (
            "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, SUMMARY OFF, FORMAT JSON)"
            f" SELECT FROM {secret.table} WHERE {secret.find_place(conditions, indexed)} AND "
        )
        hit, miss = (form + q for q in conditions)
        yield Probe(name, secret, hit, miss)


def build_nearest(
    table: str, indexes: Sequence[Index], model: str, near: str, far: str
) -> Iterator[Probe]:
    """Build EXPLAIN ANALYZE of the nearest vector, by every index of vectors of a model.

    An index of what everybody reads is left out: it has no foreign vector, and its graph is walked
    otherwise for each question.

    Args:
        table: Quoted.
        indexes: Of the table.
        model: Whose vectors were planted.
        near: A question that a foreign vector is nearest to.
        far: One that none is near.
    """
    secret = Secret(table=table, column="embedding", type="vector", hit=near, miss=far)
    for index in indexes:
        rows = index.predicate or f"'{model}'"
        if index.method not in {"hnsw", "ivfflat"} or f"scope = '{SHARED}'" in rows:
            continue
        if f"'{model}'" in rows:
            form = (
                "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF, FORMAT JSON)"
                f" SELECT FROM {table} WHERE {index.predicate or 'true'}"
                f" ORDER BY {index.keys[0]} <=> CAST('{{}}' AS {index.types[0]}) LIMIT 1"
            )
            yield Probe(index.name, secret, form.format(near), form.format(far))


def build_inserts(
    table: str,
    columns: Sequence[Column],
    index: Index,
    *,
    row: Mapping[str, Any],
    theirs: Mapping[str, Any],
    fresh: Sequence[Mapping[str, Any]],
) -> Probe:
    """Build INSERTs of an own row with the key of another's row, and with one that no row has.

    Args:
        table: Quoted.
        columns: Of the table.
        index: A unique one, of columns alone.
        row: One of one's own, as JSON.
        theirs: The other's.
        fresh: Two rows of values that no row has.
    """
    written = ", ".join(quote(each.name) for each in columns if each.name in row)
    keys = [key.strip('"') for key in index.keys]
    given = [
        {
            **row,
            **fresh[0],
            **{key: values[key] for key in keys if key != "scope" and key in values},
        }
        for values in (theirs, {**theirs, **fresh[1]})
    ]
    form = (
        f"INSERT INTO {table} ({written}) OVERRIDING SYSTEM VALUE SELECT {written}"  # noqa: S608 - names of the catalog
        f" FROM jsonb_populate_record(CAST(NULL AS {table}), CAST({{}} AS jsonb))"
    )
    hit, miss = (literal(json.dumps(each)) for each in given)
    named = Secret(table=table, column=", ".join(keys), type="key", hit=hit, miss=miss)
    return Probe(index.name, named, form.format(hit), form.format(miss))


def build_calls(secret: Secret, name: str, arguments: Sequence[str]) -> Iterator[Probe]:
    """Build calls of a function that are given the secret, in each argument that may take it.

    Args:
        secret: Its word is given; of JSON all of it, to arguments that are JSON alone.
        name: Of the function.
        arguments: Their types.
    """
    is_whole = secret.type == "jsonb"
    documents = [secret.hit, secret.miss]
    if not is_whole:
        documents = [f"jsonb_build_object('{w}', '{w}')" for w in secret.words]
    hit, miss = ({"w": w, "v": v} for w, v in zip(secret.words, documents, strict=True))
    forms = {
        "text": "'{w}'",
        "character varying": "'{w}'",
        "text[]": "ARRAY['{w}']",
        "tsquery": DEEP,
        "jsonb": "{v}",
        "jsonpath": "CAST('$.** ? (@ == \"{w}\")' AS jsonpath)",
    }
    for place, kind in enumerate(arguments):
        if kind in forms and (kind == "jsonb" or not is_whole):
            given = [USUAL.get(each, f"CAST(NULL AS {each})") for each in arguments]
            given[place] = forms[kind]
            call = f"SELECT * FROM {name}({', '.join(given)})"  # noqa: S608 - of the catalog
            if kind == "tsquery":
                simple = call.replace(DEEP, "CAST('{w}' AS tsquery)")
                yield Probe(f"{name}()", secret, simple.format(**hit), simple.format(**miss))
            yield Probe(f"{name}()", secret, call.format(**hit), call.format(**miss))


def build_timings(secret: Secret, indexed: Collection[tuple[str, str]]) -> Iterator[Probe]:
    """Build statements that may take longer, or less, where a row holds the secret."""
    first = next(iter(secret.conditions().items()))
    for name, conditions in (first, *secret.cheap().items()):
        place = secret.find_place(conditions, indexed)
        counted = f"SELECT count(*) FROM {secret.table} WHERE {place} AND "  # noqa: S608 - of the catalog
        hit, miss = (counted + q for q in conditions)
        yield Probe(f"{secret.column} {name}", secret, hit, miss)


def list_questions(
    secret: Secret, victim: Mapping[str, str], indexes: Sequence[Index]
) -> dict[str, tuple[str, str]]:
    """List every way to ask for a secret: name → condition for the hit, for the miss.

    Args:
        secret: What is asked for.
        victim: Column → what the row holds that the secret is in, as SQL.
        indexes: Of the table. Where one has further columns, these are asked for, too.
    """
    questions = secret.conditions()
    equal = questions.get("equal") or next(iter(questions.values()))
    for index in indexes:
        keys = [
            f"({key})" if made else key
            for key, made in zip(index.keys, index.computed, strict=True)
        ]
        if secret.column not in keys:
            continue
        others = [
            f"{key} = {victim[key]}" for key in keys if key in victim and key != secret.column
        ]
        others += [index.predicate] if index.predicate else []
        if others:
            hit, miss = (" AND ".join([q, *others]) for q in equal)
            questions[index.name] = (hit, miss)
    return questions


def quote(identifier: str) -> str:
    """Quote a name where it needs it."""
    return str(dialect().identifier_preparer.quote(identifier))  # type: ignore[no-untyped-call]


def literal(value: str, kind: str = "") -> str:
    """Write a value as SQL."""
    written = "'" + value.replace("'", "''") + "'"
    if "\\" in value:
        written = "E" + written.replace("\\", "\\\\")
    return f"CAST({written} AS {kind})" if kind else written
