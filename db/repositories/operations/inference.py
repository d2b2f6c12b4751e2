"""Attacks on row security by inference: what can be told of a row that is never shown.

A secret is planted in a row of another scope. Each probe is asked twice, once about the secret and
once about a value that no row has; a role that may not see the row must get the same answer: the
same rows, the same error, the same plan, in the same time. What an index finds is asked of the
index, all else of the place alone where the row stands: no probe reads a whole table.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, Final, NamedTuple
from uuid import uuid4

import numpy as np
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from pgcorpus.db.repositories.operations.isolation import (
    MODEL,
    SCOPE_COLUMNS,
    Guarded,
    Intruder,
    IsolationRepository,
    Party,
)
from pgcorpus.db.repositories.operations.probes import (
    INTEGERS,
    KINDS,
    MOMENTS,
    Column,
    Early,
    Index,
    Probe,
    Secret,
    literal,
    quote,
)

PLANNED: Final[Mapping[str, Mapping[str, str]]] = {
    "as planned": {},
    "by indexes": {"enable_seqscan": "off", "enable_bitmapscan": "off"},
    "by bitmaps": {"enable_seqscan": "off", "enable_indexscan": "off"},
}
"""Settings with which a caller chooses the plan."""

ROUND_SECONDS: Final = 1.0
"""Seconds after which a call begins no further probe, so that the statement timeout is for one."""

CONDITIONS_OF_INDEX: Final = ("Index Cond", "Order By")
"""Parts of a plan that say what an index is asked."""

TOLD: Final = (
    "Node Type",
    "Index Name",
    "Plan Rows",
    "Startup Cost",
    "Total Cost",
    "Actual Rows",
    "Actual Loops",
    "Rows Removed by Filter",
    "Rows Removed by Index Recheck",
    "Rows Removed by Join Filter",
    "Heap Fetches",
    "Index Searches",
    "Exact Heap Blocks",
    "Lossy Heap Blocks",
)
"""Parts of a plan that are compared, beside the pages that were read."""

ASKING: Final = """
    CREATE FUNCTION pg_temp.ask(statements text[], seconds double precision)
    RETURNS TABLE (number integer, answer text, took_ms double precision)
    LANGUAGE plpgsql AS $ask$
    DECLARE
        until CONSTANT timestamptz := clock_timestamp() + seconds * interval '1 second';
        began timestamptz;
        line record;
        detail text;
        said text;
        counted bigint;
    BEGIN
        FOR place IN 1..cardinality(statements) LOOP
            EXIT WHEN place > 1 AND clock_timestamp() > until;
            number := place;
            said := '';
            began := clock_timestamp();
            BEGIN
                IF statements[place] ~ '^(SELECT|EXPLAIN)' THEN
                    FOR line IN EXECUTE statements[place] LOOP
                        said := said || CAST(line AS text);
                    END LOOP;
                ELSE
                    EXECUTE statements[place];
                    GET DIAGNOSTICS counted = ROW_COUNT;
                    said := counted || ' rows';
                END IF;
                took_ms := extract(epoch FROM clock_timestamp() - began) * 1000;
                RAISE SQLSTATE 'RB000';  -- and take it back
            EXCEPTION
                WHEN SQLSTATE 'RB000' THEN
                    answer := said;
                WHEN query_canceled THEN  -- and the timeout does not start again in here
                    answer := NULL;
                    RETURN NEXT;
                    RETURN;
                WHEN OTHERS THEN
                    took_ms := extract(epoch FROM clock_timestamp() - began) * 1000;
                    GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
                    answer := concat_ws(' ', 'ERROR', SQLSTATE, SQLERRM, detail);
            END;
            RETURN NEXT;
        END LOOP;
    END $ask$
"""
"""Asks with the rights of the caller, one statement after the other, each taken back. The answer of
one that the statement timeout ended is null, and the last."""

COLUMNS: Final = text("""
    SELECT attname::text AS name, format_type(atttypid, NULL) AS type,
           attgenerated <> '' OR attidentity <> '' AS derived,
           EXISTS (SELECT FROM pg_constraint
                   WHERE conrelid = attrelid AND contype IN ('f', 'p') AND attnum = ANY (conkey))
           OR attname = ANY (CAST(:scope_columns AS text[]))
               AND (attname = 'scope' OR atttypid = 'uuid'::regtype) AS refers
    FROM pg_attribute
    WHERE attrelid = CAST(:table AS regclass) AND attnum > 0 AND NOT attisdropped
    ORDER BY attnum
""")

INDEXES: Final = text("""
    SELECT indexrelid::regclass::text AS name, amname::text AS method, indisunique AS is_unique,
           pg_get_expr(indpred, indrelid) AS predicate,
           ARRAY(SELECT pg_get_indexdef(indexrelid, place, false)
                 FROM generate_series(1, indnkeyatts) AS place ORDER BY place) AS keys,
           ARRAY(SELECT format_type(atttypid, NULL) FROM pg_attribute
                 WHERE attrelid = indexrelid AND attnum <= indnkeyatts ORDER BY attnum) AS types,
           ARRAY(SELECT indkey[place] = 0 FROM generate_series(0, indnkeyatts - 1) AS place
                 ORDER BY place) AS computed
    FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam
    WHERE indrelid = CAST(:table AS regclass) AND indisvalid
    ORDER BY 1
""")

EARLY: Final = text("""
    SELECT p.oid::regproc::text AS name, xmin::text = '1' AS shipped,
           ARRAY(SELECT format_type(each, NULL)
                 FROM unnest(proargtypes) WITH ORDINALITY AS of (each, place)
                 ORDER BY place) AS arguments
    FROM pg_proc AS p
    WHERE proleakproof AND prokind = 'f' AND pronargs BETWEEN 1 AND 2
        AND prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype, 'internal'::regtype)
        AND NOT 'internal'::regtype = ANY (proargtypes)
    ORDER BY p.oid
""")
"""Functions that PostgreSQL may give rows to before it asks the policy: the LEAKPROOF ones. Those
that initdb wrote have the transaction 1; one that was marked later has another."""


class Answer(NamedTuple):
    """The answer of a statement, or its error, and its duration."""

    said: str
    took_ms: float


class Timing(NamedTuple):
    """The duration of a probe with, and without, a match in another scope, interleaved.

    Attributes:
        name: Of the probe.
        times: How often each was asked.
        hit_ms: The median with a match.
        miss_ms: The median without.
        noise_ms: Half the distance between the quartiles, of both together.
        z: Of the rank test of Mann and Whitney.
    """

    name: str
    times: int
    hit_ms: float
    miss_ms: float
    noise_ms: float
    z: float

    @property
    def difference_ms(self) -> float:
        """The median with a match, less that without."""
        return self.hit_ms - self.miss_ms

    @property
    def tells(self) -> bool:
        """True if the difference is beyond a clear margin.

        It must be no chance, more than the noise, and more than a twentieth of a millisecond and a
        tenth of the time: what a machine under load does to one of two statements in turn is less.
        """
        apart = abs(self.difference_ms)
        return abs(self.z) > 5 and apart > max(0.05, 3 * self.noise_ms, 0.1 * self.miss_ms)  # noqa: PLR2004 - from the docstring


def compare_times(name: str, hits: Sequence[float], misses: Sequence[float]) -> Timing:
    """Compare two samples of durations by their medians, and by ranks."""
    both = np.concatenate([hits, misses])
    order = np.argsort(both, kind="stable")
    ranks = np.empty(len(both))
    ranks[order] = np.arange(1, len(both) + 1)
    for value in np.unique(both):  # equal durations share their rank
        same = both == value
        ranks[same] = ranks[same].mean()
    n, m = len(hits), len(misses)
    u = ranks[:n].sum() - n * (n + 1) / 2
    z = (u - n * m / 2) / np.sqrt(n * m * (n + m + 1) / 12)
    spread = [np.subtract(*np.percentile(each, [75, 25])) / 2 for each in (hits, misses)]
    return Timing(
        name,
        n,
        float(np.median(hits)),
        float(np.median(misses)),
        float(max(spread)),
        float(z),
    )


class InferenceRepository(IsolationRepository):
    """Plants secrets, and asks about them as a role that may not see them. It never commits."""

    _can_ask = False

    def list_early(self) -> list[Early]:
        """List the functions that may run before the policy."""
        return [Early(*row) for row in self.session.execute(EARLY)]

    def list_columns(self, table: str) -> list[Column]:
        """List the columns of a table."""
        named = {"table": quote(table), "scope_columns": list(SCOPE_COLUMNS)}
        return [Column(*row) for row in self.session.execute(COLUMNS, named)]

    def list_indexes(self, table: str) -> list[Index]:
        """List the indexes of a table."""
        return [Index(*row) for row in self.session.execute(INDEXES, {"table": quote(table)})]

    def plant(self, victim: Party, table: Guarded) -> list[Secret]:
        """Write a secret into every column of a victim's row that takes one.

        Returns:
            One for each column, and for each expression that an index computes.
        """
        self.as_operator(victim.scope)
        name, of_row = quote(table.name), _of_row(victim, table)
        chance = random.Random(uuid4().int)  # noqa: S311 - told apart, not kept
        words: dict[str, tuple[str, str]] = {}
        values: dict[str, Any] = {}
        for column in self.list_columns(table.name):
            if column.derived or column.refers:
                continue
            stem = f"zebra{uuid4().hex[:12]}"
            # Of both words equally few passages have trigrams: a search for either takes as long.
            held, missed = f"{stem}7q", f"{stem}8q"
            for value in _values(column.type, held, chance):
                written = text(
                    f"UPDATE {name} SET {quote(column.name)} = CAST(:value AS {column.type})"  # noqa: S608 - names of the catalog
                    f" WHERE {table.row}"
                )
                with self.session.connection().begin_nested() as savepoint:
                    try:
                        self.session.connection().execute(written, {"value": value, **of_row})
                    except DBAPIError:
                        savepoint.rollback()
                        continue
                words[column.name] = (held, missed)
                values[column.name] = value
                break
        return list(self._read_planted(victim, table, words, values))

    def locate(self, victim: Party, table: Guarded, secrets: Sequence[Secret]) -> list[Secret]:
        """Return the secrets of a table with the place of their row, which writing it changes."""
        self.as_operator(victim.scope)
        find = text(f"SELECT CAST(ctid AS text) FROM {quote(table.name)} WHERE {table.row}")  # noqa: S608 - names of the catalog
        place = self.session.connection().scalar(find, _of_row(victim, table))
        return [replace(each, at=f"ctid = {literal(place)}") for each in secrets]

    def _read_planted(
        self,
        victim: Party,
        table: Guarded,
        words: Mapping[str, tuple[str, str]],
        values: Mapping[str, Any],
    ) -> Iterator[Secret]:
        """Find which columns and expressions hold what was planted."""
        name = quote(table.name)
        asked = {
            quote(column.name): (column.type, column.name in values or column.derived)
            for column in self.list_columns(table.name)
            if not column.refers
        }
        for index in self.list_indexes(table.name):
            for expression, kind, computed in zip(
                index.keys, index.types, index.computed, strict=True
            ):
                if computed:
                    asked[f"({expression})"] = (kind, True)
        for expression, (kind, planted) in asked.items():
            if not planted or kind not in KINDS:
                continue
            held = self.session.connection().scalar(
                text(
                    f"SELECT CAST({expression} AS text) FROM {name}"  # noqa: S608 - of the catalog
                    f" WHERE {table.row}"
                ),
                _of_row(victim, table),
            )
            if held is None:
                continue
            word, wrong = next((pair for pair in words.values() if pair[0] in held), ("", ""))
            other = held.replace(word, wrong) if word else _neighbour(held, kind)
            if other == held:
                continue
            yield Secret(
                table=name,
                column=expression,
                type=kind,
                hit=literal(held, kind),
                miss=literal(other, kind),
                word=word,
                wrong=wrong,
            )

    def plant_vectors(
        self, ours: Party, victim: Party, table: Guarded
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Write vectors such that a victim's is nearer to one question than ours, not to another.

        Returns:
            The question with a foreign vector beside it, and that without; None where the table
            holds no vectors.
        """
        if not any(each.type == "vector" for each in self.list_columns(table.name)):
            return None
        random_ = np.random.default_rng(uuid4().int)
        self.as_operator(victim.scope)
        length = self.session.connection().scalar(
            text("SELECT dimensions FROM embedding_models WHERE name = :model"), {"model": MODEL}
        )
        near, far = (each / np.linalg.norm(each) for each in random_.normal(size=(2, length)))
        for who, vector in ((victim, near), (ours, near + far)):
            self.as_operator(who.scope)
            self.session.connection().execute(
                text(
                    f"UPDATE {quote(table.name)} SET embedding = CAST(:vector AS vector)"  # noqa: S608 - names of the catalog
                    f" WHERE {table.row}"
                ),
                {"vector": _vector(vector), **_of_row(who, table)},
            )
        return near, far

    def ask(
        self,
        statements: Sequence[str],
        who: Intruder,
        role: str,
        settings: Mapping[str, str] | None = None,
    ) -> list[Answer | None]:
        """Run statements as an intruder, each rolled back.

        Args:
            statements: What is asked.
            who: In whose name.
            role: As which role.
            settings: That the caller has set.

        Returns:
            An answer for each, or None where time did not suffice.
        """
        intruder = Intruder(who.name, {**who.settings, **(settings or {})})
        answers: list[Answer | None] = []
        while len(answers) < len(statements) and not self.is_late():
            answers += self._ask_some(statements[len(answers) :], intruder, role)
        return answers + [None] * (len(statements) - len(answers))

    def _ask_some(self, statements: Sequence[str], who: Intruder, role: str) -> list[Answer | None]:
        """Run as many of some statements as a round has time for, and at least one."""
        if not self._can_ask:
            self.as_operator_of_nobody()
            self.session.connection().exec_driver_sql(ASKING)
            self._can_ask = True
        asked = text("SELECT answer, took_ms FROM pg_temp.ask(:statements, :seconds)")
        seconds = min(ROUND_SECONDS, max(0.0, self.until - monotonic()))
        with self._savepoint(who, role) as connection:
            found = connection.execute(
                asked, {"statements": list(statements), "seconds": seconds}
            ).all()
        return [None if row.answer is None else Answer(*row) for row in found]

    def find_indexed(
        self,
        table: str,
        questions: Sequence[tuple[str, str]],
        who: Intruder,
        role: str,
        settings: Mapping[str, str] | None = None,
    ) -> set[tuple[str, str]]:
        """Find the conditions that an index is asked for.

        Args:
            table: Quoted.
            questions: Conditions for the hit, and for the miss.
            who: In whose name.
            role: As which role.
            settings: That the caller has set.

        Returns:
            Those whose two plans differ in what they ask of an index; all others read rows one by
            one, for both the same.
        """
        form = f"EXPLAIN (COSTS OFF, FORMAT JSON) SELECT FROM {table} WHERE "
        statements = [form + each for pair in questions for each in pair]
        answers = self.ask(statements, who, role, settings)
        asked = [None if each is None else _read_index_conditions(each.said) for each in answers]
        pairs = zip(questions, asked[::2], asked[1::2], strict=True)
        return {pair for pair, hit, miss in pairs if None not in {hit, miss} and hit != miss}

    def compare(
        self,
        probes: Sequence[Probe],
        who: Intruder,
        role: str,
        settings: Mapping[str, str] | None = None,
    ) -> tuple[list[tuple[Probe, str | None]], int]:
        """Run probes as an intruder, and find those whose answers differ.

        One that differs is asked twice more, so that chance is not taken for an answer.

        Returns:
            Probe → what the answers to the hit and the miss were, or None where they are the same,
            without those for which time did not suffice; and how many answers were errors.
        """
        statements = [each for probe in probes for each in (probe.miss, probe.hit)]
        answers = self.ask(statements, who, role, settings)
        pairs = zip(probes, answers[::2], answers[1::2], strict=True)
        asked = [(probe, miss, hit) for probe, miss, hit in pairs if miss and hit]
        told: dict[int, str] = {}
        late: set[int] = set()
        refused, differing = 0, []
        for number, (probe, *both) in enumerate(asked):
            miss, hit = (_reveal(probe, each.said) for each in both)
            refused += hit.startswith("ERROR")
            if miss != hit:
                differing.append(number)
        again = self.ask(
            [each for n in differing for each in (asked[n][0].miss, asked[n][0].hit) * 2],
            who,
            role,
            settings,
        )
        for place, number in enumerate(differing):
            repeated = again[4 * place : 4 * place + 4]
            said = [_reveal(asked[number][0], each.said) for each in repeated if each]
            misses, hits = set(said[::2]), set(said[1::2])
            if None in repeated:
                late.add(number)
            elif len(misses) == len(hits) == 1 and not misses & hits:
                told[number] = _difference(hits.pop(), misses.pop())
        compared = [
            (probe, told.get(number))
            for number, (probe, *_) in enumerate(asked)
            if number not in late
        ]
        return compared, refused

    def time(self, probe: Probe, who: Intruder, role: str, *, times: int) -> Timing | None:
        """Ask a probe many times, the hit and the miss in turn; None where time did not suffice."""
        statements = [probe.hit, probe.miss, probe.miss, probe.hit] * (times // 2 + 1)
        answers = [each for each in self.ask(statements, who, role)[4:] if each is not None]
        if len(answers) < len(statements) - 4:
            return None
        hits = [a.took_ms for n, a in enumerate(answers) if n % 4 in {0, 3}]
        misses = [a.took_ms for n, a in enumerate(answers) if n % 4 in {1, 2}]
        return compare_times(probe.name, hits, misses)

    def read_row(self, who: Party, table: Guarded) -> dict[str, Any]:
        """Return the row of a victim that secrets are in, as JSON."""
        self.as_operator(who.scope)
        read = text(
            f"SELECT to_jsonb(t) FROM {quote(table.name)} AS t"  # noqa: S608 - of the catalog
            f" WHERE {table.row}"
        )
        return dict(self.session.connection().scalar(read, _of_row(who, table)) or {})

    @contextmanager
    def without_row(self, who: Party, table: Guarded, role: str) -> Iterator[None]:
        """Take the row away that secrets are in, and let *role* work meanwhile."""
        with self._savepoint() as connection:
            self.as_operator(who.scope)
            taken = text(f"DELETE FROM {quote(table.name)} WHERE {table.row}")  # noqa: S608 - names of the catalog
            connection.execute(taken, _of_row(who, table))
            self.as_application(role)
            yield

    def write_literals(self, row: Mapping[str, Any], table: Guarded) -> dict[str, str]:
        """Write the values of a row as SQL: quoted column → value."""
        types = {each.name: each.type for each in self.list_columns(table.name)}
        return {
            quote(name): literal(str(value), types[name])
            for name, value in row.items()
            if value is not None and not isinstance(value, list | dict)
        }

    def as_operator_of_nobody(self) -> None:
        """Become the login again, without a scope."""
        self._become(self._settings(Intruder("", {}), "none"))


def _values(kind: str, word: str, chance: random.Random) -> list[Any]:
    """List what could be planted in a column; the first that its constraints take is."""
    number = chance.randrange(10**8, 2 * 10**9)
    moment = datetime(2100, 1, 1, tzinfo=UTC) + timedelta(microseconds=chance.randrange(10**13))
    values: dict[str, list[Any]] = {
        "text": [word],
        "character varying": [word, f"{word}@example.com"],
        "jsonb": [
            json.dumps({"domains": [word], word: []}),
            json.dumps([{"role": "user", "content": word}]),
        ],
        "json": [json.dumps({"said": word})],
        "text[]": [[word]],
        "bytea": [word.encode()],
        "double precision": [chance.random() * 10**6, chance.random()],
    }
    if kind in INTEGERS:
        return [number]
    return [moment] if kind in MOMENTS else values.get(kind, [])


def _neighbour(held: str, kind: str) -> str:
    """Return a value that is nearly the same; the same where there is none."""
    if kind in INTEGERS:
        return str(int(held) - 1)
    if kind in MOMENTS:
        return held.replace("2100-", "2101-")
    if kind == "double precision":
        return repr(float(held) / 2)
    return held


def _vector(vector: np.ndarray) -> str:
    return str(vector.astype(float).tolist())


def _difference(hit: str, miss: str) -> str:
    """Say in which figure two answers differ first."""
    parts = zip(hit.split(", "), miss.split(", "), strict=False)
    ours, others = next(((a, b) for a, b in parts if a != b), (hit, miss))
    return f"{ours[:120] or 'nothing'} instead of {others[:120] or 'nothing'}"


def _of_row(who: Party, table: Guarded) -> dict[str, Any]:
    """Name the row of a party that secrets are in: see ``Guarded.row``."""
    return {"key": who.keys[table.name][0], "scope": who.scope_name}


def _reveal(probe: Probe, answer: str) -> str:
    """Return the part of an answer that can tell; of a plan, its figures."""
    told = []
    for node in _read_plan(answer) or ():
        told.append([f"{name} {node[name]}" for name in TOLD if name in node])
        if "Shared Hit Blocks" in node:
            told[-1].append(f"pages {node['Shared Hit Blocks'] + node['Shared Read Blocks']}")
    return "; ".join(", ".join(each) for each in told) or probe.secret.alike(answer)


def _read_index_conditions(answer: str) -> tuple[str, ...]:
    """List what a plan asks of its indexes."""
    return tuple(
        str(node[part])
        for node in _read_plan(answer) or ()
        for part in CONDITIONS_OF_INDEX
        if part in node
    )


def _read_plan(answer: str) -> list[dict[str, Any]] | None:
    """Return the nodes of a plan, the outermost first; None where the answer is none."""
    if '""Plan"":' not in answer:
        return None
    written = answer.removeprefix('("').removesuffix('")')  # a row, as PostgreSQL writes it
    written = written.replace('""', '"').replace("\\\\", "\\")
    nodes = [json.loads(written)[0]["Plan"]]
    for node in nodes:
        nodes += node.get("Plans", [])
    return nodes
