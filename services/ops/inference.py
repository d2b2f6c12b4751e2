"""Attacks by inference: rows that are never shown may be told by errors, plans, keys or time."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Final
from uuid import uuid4

from pgcorpus.db.errors import StatementTimeout
from pgcorpus.db.repositories.operations.inference import (
    PLANNED,
    InferenceRepository,
    Timing,
    compare_times,
)
from pgcorpus.db.repositories.operations.isolation import (
    MODEL,
    NOBODY,
    SCOPE_COLUMNS,
    Guarded,
    Intruder,
    Party,
)
from pgcorpus.db.repositories.operations.probes import (
    Column,
    Probe,
    Secret,
    build_analyses,
    build_calls,
    build_conditions,
    build_early,
    build_explains,
    build_inserts,
    build_nearest,
    build_timings,
    list_questions,
    quote,
)
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.search.page import SearchPage
from pgcorpus.services.choices import Mode
from pgcorpus.services.search.service import SearchService

TIMES: Final = 20
"""The number of times that a statement, or a search, is timed with a match, and without."""

CONFIRMATIONS: Final = 3
"""The number of times that a timing that tells is repeated before it is believed."""

KNOWN: Final = frozenset(("uuid", "bigint", "integer"))
"""Types of keys that are numbered, or random: that one is taken is told to who knows it already."""

KNOWN_TEXTS: Final = ("scope", "dedupe_key", "external_id", "auth_provider", "model_name", "corpus")
"""Columns of keys that hold such, or a category."""

ACCEPTED: Final = frozenset(
    (
        ("jobs", "kind"),
        ("users", "auth_provider"),
        ("import_rejects", "corpus"),
        ("import_transformations", "item"),
        ("jobs", "dedupe_key"),
    )
)
"""Columns of which ``EXPLAIN ANALYZE``, and nothing else, may tell that a value is there.

Categories, by which indexes are ordered. An id of a passage, to who knows it: its index is by hash.
And keys of pending jobs, which are UUIDs and open nothing."""

ACCEPTED_KIND: Final = "by EXPLAIN ANALYZE"
"""Beginnings of the kinds of attack by which ``ACCEPTED`` columns may be told."""

SAID: Final = "price {}"
"""A question that finds own rows, and a word that only a row of others' holds."""


@dataclass(frozen=True, kw_only=True)
class Inferred:
    """The result of the probes of one kind on one target.

    Attributes:
        target: A table, a corpus, or ``functions``.
        kind: How it was tried.
        by: Who asked.
        tried: Pairs that were asked.
        refused: How many were answered with an error.
        found: Which could be told apart, and how.
        untried: For how many time did not suffice.
    """

    target: str
    kind: str
    by: str
    tried: int
    refused: int = 0
    found: tuple[str, ...] = ()
    untried: int = 0


@dataclass
class Inference:
    """Tries as one role to infer the rows of others.

    Args:
        repository: Of the transaction.
        role: Who asks.
        ours: The scope to attack from, beside none.
        victim: Whose rows the secrets are planted in.
        tables: Those that are attacked; both have rows in each.
    """

    repository: InferenceRepository
    role: str
    ours: Party
    victim: Party
    tables: Sequence[Guarded]

    @property
    def asker(self) -> Intruder:
        """A login with rows of its own."""
        return Intruder(self.ours.name, self.ours.settings)

    @cached_property
    def secrets(self) -> dict[str, list[Secret]]:
        """The secrets of each table.

        All are planted before any is located: a trigger may write to a row of another table.
        """
        locate = partial(self.repository.locate, self.victim)
        planted = [(each, self.repository.plant(self.victim, each)) for each in self.tables]
        return {table.name: locate(table, secrets) for table, secrets in planted}

    def probe(self, table: Guarded) -> Iterator[Inferred]:
        """Ask about every column and every key of a table."""
        yield from self._probe_errors(table)
        yield from self._probe_plans(table)
        yield from self._probe_keys(table)
        yield from self._probe_vectors(table)

    def _probe_errors(self, table: Guarded) -> Iterator[Inferred]:
        secrets, column = self.secrets[table.name], quote(table.column)
        indexed = self._find_indexed(table, {s: _list_plain(s) for s in secrets})
        failing = [p for s in secrets for p in build_conditions(s, column, indexed)]
        yield self._ask(table.name, "by errors", NOBODY, failing)
        first = [p for p in failing if "before" in p.name]
        yield self._ask(table.name, "by errors", self.asker, first)
        functions = self.repository.list_early()
        early = [p for s in secrets for p in build_early(s, functions)]
        yield self._ask(table.name, "by what runs early", NOBODY, early)

    def _probe_plans(self, table: Guarded) -> Iterator[Inferred]:
        indexes = self.repository.list_indexes(table.name)
        row = self.repository.read_row(self.victim, table)
        theirs = self.repository.write_literals(row, table)
        questions = {s: list_questions(s, theirs, indexes) for s in self.secrets[table.name]}
        plans = [p for s, asked in questions.items() for p in build_explains(s, asked)]
        yield self._ask(table.name, "by EXPLAIN", self.asker, plans)
        for name, settings in PLANNED.items():
            indexed = self._find_indexed(table, questions, settings)
            run = [p for s, asked in questions.items() for p in build_analyses(s, asked, indexed)]
            kind = f"{ACCEPTED_KIND} {name}"
            yield self._ask(table.name, kind, self.asker, run, settings)

    def _probe_keys(self, table: Guarded) -> Iterator[Inferred]:
        theirs = self.repository.read_row(self.victim, table)
        own = self.repository.read_row(self.ours, table)
        columns = self.repository.list_columns(table.name)
        columns = [each for each in columns if each.name in table.columns]
        indexes = self.repository.list_indexes(table.name)
        unique = [each for each in indexes if each.is_unique and not any(each.computed)]
        made = {key for each in unique for key in each.keys} - {*SCOPE_COLUMNS, "model_name"}
        fresh = [_fresh(columns, made), _fresh(columns, made)]
        keys = [
            build_inserts(quote(table.name), columns, index, row=own, theirs=theirs, fresh=fresh)
            for index in unique
            if not all(_is_known(key, columns) for key in index.keys)
        ]
        yield self._ask(table.name, "by keys", self.asker, keys)

    def _probe_vectors(self, table: Guarded) -> Iterator[Inferred]:
        questions = self.repository.plant_vectors(self.ours, self.victim, table)
        if questions is None:
            return
        near, far = (str(each.astype(float).tolist()) for each in questions)
        indexes = self.repository.list_indexes(table.name)
        graphs = list(build_nearest(quote(table.name), indexes, MODEL, near, far))
        settings = {"enable_seqscan": "off", "enable_sort": "off"}
        yield self._ask(table.name, "by near vectors", self.asker, graphs, settings)

    def call_functions(self) -> Inferred:
        """Ask every function that runs as its owner."""
        return self._ask("functions", "by calls", self.asker, list(self._calls()))

    def _find_indexed(
        self,
        table: Guarded,
        questions: Mapping[Secret, Mapping[str, tuple[str, str]]],
        settings: Mapping[str, str] | None = None,
    ) -> set[tuple[str, str]]:
        """Find the questions that an index is asked for; others are asked of the row's place."""
        asked = [pair for each in questions.values() for pair in each.values()]
        return self.repository.find_indexed(
            quote(table.name), asked, self.asker, self.role, settings
        )

    def _calls(self) -> Iterator[Probe]:
        """Give functions that run as their owner what only a foreign row holds: words, JSON."""
        held = [s for e in self.secrets.values() for s in e if s.type in {"tsvector", "jsonb"}]
        for function in self.repository.list_functions():
            for secret in held if function.as_owner else ():
                yield from build_calls(secret, function.name, function.arguments)

    def _ask(
        self,
        target: str,
        kind: str,
        who: Intruder,
        probes: Sequence[Probe],
        settings: Mapping[str, str] | None = None,
    ) -> Inferred:
        compared, refused = self.repository.compare(probes, who, self.role, settings)
        return Inferred(
            target=target,
            kind=kind,
            by=who.name,
            tried=len(compared),
            refused=refused,
            found=tuple(
                f"{probe.secret.column}, {probe.name}: {told}"
                for probe, told in compared
                if told is not None
                and not (
                    kind.startswith(ACCEPTED_KIND) and (target, probe.secret.column) in ACCEPTED
                )
            ),
            untried=len(probes) - len(compared),
        )

    # Time.

    def time(self, table: Guarded, times: int = TIMES) -> Iterator[Timing | None]:
        """Time conditions on every column, with a match in a foreign row and without.

        Args:
            table: Whose columns.
            times: How often each is asked.

        Yields:
            The timing of one probe, or None where time did not suffice.
        """
        secrets = self.secrets[table.name]
        indexed = self._find_indexed(table, {s: _list_plain(s) for s in secrets})
        for probe in (p for s in secrets for p in build_timings(s, indexed)):
            ask = partial(self.repository.time, probe, self.asker, self.role, times=times)
            yield confirm(ask(), ask)

    def time_search(
        self, search: SearchService, corpus: Corpus, mode: Mode, times: int = TIMES
    ) -> Timing | None:
        """Time a search for a word that a foreign row holds, and for one that none does.

        Args:
            search: As the role that asks.
            corpus: What is searched; its passages are of one of the tables.
            mode: How.
            times: How often each is asked.

        Returns:
            The timing, or None where time did not suffice.
        """
        asked = [partial(self._search, search, corpus, mode, w) for w in self._words(corpus)]
        ask = partial(self._time_in_turn, f"{mode} search", asked, times)
        return confirm(ask(), ask)

    def find_alike(self, search: SearchService, corpus: Corpus, mode: Mode) -> bool | None:
        """Return whether a search for a word finds the same while a foreign row holds the word.

        None where time did not suffice.
        """
        if self.repository.is_late():
            return None
        table = next(each for each in self.tables if each.name == corpus.passages.name)
        ask = partial(self._search, search, corpus, mode, self._words(corpus)[0])
        held = ask()
        with self.repository.without_row(self.victim, table, self.role):
            missed = ask()
        if held is None or missed is None:
            return None
        first, second = ({(h.id, len(h.scores)) for h in page.hits} for page in (held, missed))
        return first == second

    def _search(
        self, search: SearchService, corpus: Corpus, mode: Mode, word: str
    ) -> SearchPage | None:
        ask = partial(search.search, SAID.format(word), corpus=corpus.name, mode=mode, limit=10)
        return find_in_time(partial(ask, scope=self.ours.scope))

    def _words(self, corpus: Corpus) -> tuple[str, str]:
        """Return a word that a foreign passage holds, and one that none does."""
        secrets = self.secrets[corpus.passages.name]
        return next(each.words for each in secrets if each.type == "tsvector")

    def _time_in_turn(
        self, name: str, asked: Sequence[Callable[[], object | None]], times: int
    ) -> Timing | None:
        """Time what is asked about a match, and about none, in turn; None is no answer in time."""
        durations: tuple[list[float], list[float]] = ([], [])
        for turn in range(times):
            for which in (0, 1) if turn % 2 else (1, 0):
                began = time.perf_counter()
                if self.repository.is_late() or asked[which]() is None:
                    return None
                durations[which].append((time.perf_counter() - began) * 1000)
        return compare_times(name, *durations)


def confirm(timing: Timing | None, ask: Callable[[], Timing | None]) -> Timing | None:
    """Return a timing that tells only if it does so each time that it is asked again.

    A machine with other work slows down one of two statements now and then; it does not do so to
    the same one in every repetition.

    Args:
        timing: The first, if there is one.
        ask: Times the same once more; None where time did not suffice.

    Returns:
        The first that tells nothing or the opposite, or the last one; None where time did not
        suffice to be sure.
    """
    if timing is None or not timing.tells:
        return timing
    for _ in range(CONFIRMATIONS):
        again = ask()
        if again is None:
            return None
        if again.difference_ms * timing.difference_ms < 0:
            return again._replace(z=0.0)
        if not again.tells:
            return again
        timing = again
    return timing


def find_in_time(search: Callable[[], SearchPage]) -> SearchPage | None:
    """Return the page of a search, or None if it took longer than a statement may."""
    try:
        page = search()
    except StatementTimeout:
        return None
    return None if any(leg.status == "timed_out" for leg in page.legs) else page


def _list_plain(secret: Secret) -> dict[str, tuple[str, str]]:
    """List the conditions on a secret's column alone: name → for the hit, for the miss."""
    return {**secret.conditions(), **{f"cheap {n}": q for n, q in secret.cheap().items()}}


def _fresh(columns: Sequence[Column], keys: Collection[str]) -> dict[str, object]:
    """Return values that no row has, of the columns that keys are made of."""
    word = f"fresh{uuid4().hex[:12]}"
    values: dict[str, Callable[[], object]] = {
        "uuid": lambda: str(uuid4()),
        "text": lambda: word,
        "character varying": lambda: word,
        "bigint": lambda: uuid4().int % 10**15 + 10**15,
    }
    return {
        each.name: values[each.type]()
        for each in columns
        if quote(each.name) in keys and each.type in values
    }


def _is_known(key: str, columns: Sequence[Column]) -> bool:
    """Return whether the reader of this column of a key knows its value already."""
    kinds = {quote(each.name): each.type for each in columns}
    return kinds.get(key, "uuid") in KNOWN or key in KNOWN_TEXTS
