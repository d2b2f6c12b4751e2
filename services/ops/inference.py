"""Attacks by inference: rows that are never shown may be told by errors, plans, keys or time."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final
from uuid import uuid4

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
    Early,
    Probe,
    Secret,
    build_calls,
    build_conditions,
    build_early,
    build_explains,
    build_inserts,
    build_nearest,
    build_timings,
    quote,
)
from pgcorpus.db.search.page import SearchPage
from pgcorpus.services.search.service import MODES, SearchService

PROBING_SECONDS: Final = 15.0
"""Seconds after which no further probe is begun: tables of millions of rows, or a server under
load, would take long otherwise. Some three seconds are needed."""

TIMING_SECONDS: Final = 4.0
SEARCHING_SECONDS: Final = 6.0

TIMES: Final = 20
"""The number of times that a statement, or a search, is timed with a match, and without."""

ENOUGH_TIMES: Final = 16
"""The least number of times: with fewer the rank test could not be sure."""

CONFIRMATIONS: Final = 3
"""The number of times that a timing that tells is repeated before it is believed."""

CONFIRMING_SECONDS: Final = 30.0
"""Seconds for one repetition, after which it is left: some tenths of a second are needed."""

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
    _secrets: dict[str, list[Secret]] = field(default_factory=dict)

    @property
    def asker(self) -> Intruder:
        """A login with rows of its own."""
        return Intruder(self.ours.name, self.ours.settings)

    def secrets(self, table: Guarded) -> list[Secret]:
        """Plant the secrets of a table, once."""
        if table.name not in self._secrets:
            self._secrets[table.name] = self.repository.plant(self.victim, table)
        return self._secrets[table.name]

    def probe(self) -> Iterator[Inferred]:
        """Ask about every column of every table, every key, every function."""
        until = time.monotonic() + PROBING_SECONDS
        for table in self.tables:
            self.secrets(table)
        early_ = self.repository.list_early()
        for number, table in enumerate(self.tables):
            for kind, who, settings, probes in self._probes(table, early_):
                seconds = max(0.0, until - time.monotonic()) / (len(self.tables) - number)
                yield self._ask(table.name, kind, who, probes, seconds=seconds, settings=settings)
        seconds = max(1.0, until - time.monotonic())
        yield self._ask(
            "functions", "by calls", self.asker, list(self._calls()), seconds=seconds, settings={}
        )

    def _probes(
        self, table: Guarded, functions: Sequence[Early]
    ) -> Iterator[tuple[str, Intruder, Mapping[str, str], list[Probe]]]:
        repository, secrets = self.repository, self.secrets(table)
        failing = [p for s in secrets for p in build_conditions(s, quote(table.column))]
        running = [p for s in secrets for p in build_early(s, functions)]
        yield "by errors", NOBODY, {}, failing
        yield "by errors", self.asker, {}, [p for p in failing if "before" in p.name]
        yield "by what runs early", NOBODY, {}, running
        indexes = repository.list_indexes(table.name)
        theirs = repository.read_row(self.victim, table)
        explain = partial(
            build_explains, victim=repository.write_literals(theirs, table), indexes=indexes
        )
        yield "by EXPLAIN", self.asker, {}, [p for s in secrets for p in explain(s, run=False)]
        for name, settings in PLANNED.items():
            plans = [p for s in secrets for p in explain(s, run=True)]
            yield f"by EXPLAIN ANALYZE {name}", self.asker, settings, plans
        own = repository.read_row(self.ours, table)
        columns = [c for c in repository.list_columns(table.name) if c.name in table.columns]
        unique = [each for each in indexes if each.is_unique and not any(each.computed)]
        made = {key for each in unique for key in each.keys} - {*SCOPE_COLUMNS, "model_name"}
        fresh = [_fresh(columns, made), _fresh(columns, made)]
        keys = [
            build_inserts(quote(table.name), columns, index, row=own, theirs=theirs, fresh=fresh)
            for index in unique
            if not all(_is_known(key, columns) for key in index.keys)
        ]
        yield "by keys", self.asker, {}, keys
        questions = repository.plant_vectors(self.ours, self.victim, table)
        if questions is not None:
            near, far = (str(each.astype(float).tolist()) for each in questions)
            graphs = list(build_nearest(quote(table.name), indexes, MODEL, near, far))
            yield (
                "by near vectors",
                self.asker,
                {"enable_seqscan": "off", "enable_sort": "off"},
                graphs,
            )

    def _calls(self) -> Iterator[Probe]:
        """Give functions that run as their owner a word that only a foreign row holds."""
        words = [s for each in self._secrets.values() for s in each if s.type == "tsvector"]
        for function in self.repository.list_functions():
            for secret in words if function.as_owner else ():
                yield from build_calls(secret, function.name, function.arguments)

    def _ask(
        self,
        target: str,
        kind: str,
        who: Intruder,
        probes: Sequence[Probe],
        *,
        seconds: float,
        settings: Mapping[str, str],
    ) -> Inferred:
        compared, refused = self.repository.compare(
            probes, who, self.role, seconds=seconds, settings=settings
        )
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

    def time(
        self, times: int = TIMES, seconds: float | None = None
    ) -> Iterator[tuple[str, Timing | None]]:
        """Time conditions on every column, with a match in a foreign row and without.

        Args:
            times: How often each is asked.
            seconds: For all of them; else ``TIMING_SECONDS``.

        Yields:
            The table, and the timing of one probe, or None where time did not suffice.
        """
        until = time.monotonic() + (TIMING_SECONDS if seconds is None else seconds)
        for number, table in enumerate(self.tables):
            probes = [probe for secret in self.secrets(table) for probe in build_timings(secret)]
            share = (until - time.monotonic()) / (len(self.tables) - number)
            ends = time.monotonic() + share
            for probe in probes:
                rest = ends - time.monotonic()
                ask = partial(self.repository.time, probe, self.asker, self.role, times=times)
                timing = ask(seconds=rest) if rest > 0 else None
                yield table.name, confirm(timing, partial(ask, seconds=CONFIRMING_SECONDS))

    def time_searches(
        self,
        search: SearchService,
        corpora: Mapping[str, str],
        times: int = TIMES,
        seconds: float | None = None,
    ) -> Iterator[tuple[str, Timing | None, bool]]:
        """Time every search for a word that a foreign row holds, and for one that none does.

        Args:
            search: As the role that asks.
            corpora: Corpus → the table of its passages.
            times: How often each is asked.
            seconds: For all of them; else ``SEARCHING_SECONDS``.

        Yields:
            The corpus, the timing of a mode, or None where time did not suffice, and whether what
            was found is the same.
        """
        until = time.monotonic() + (SEARCHING_SECONDS if seconds is None else seconds)
        asked = [(corpus, mode) for corpus in corpora for mode in MODES]
        for number, (corpus, mode) in enumerate(asked):
            words = next(s.words for s in self._secrets[corpora[corpus]] if s.type == "tsvector")
            search_for = partial(
                search.search, corpus=corpus, mode=mode, scope=self.ours.scope, limit=10
            )
            alike = _find_alike(search_for, words)
            ask = partial(_time_search, mode, search_for, words, times)
            timing = ask((until - time.monotonic()) / (len(asked) - number))
            yield corpus, confirm(timing, partial(ask, CONFIRMING_SECONDS)), alike


def confirm(timing: Timing | None, ask: Callable[[], Timing | None]) -> Timing | None:
    """Return a timing that tells only if it does so each time that it is asked again.

    A machine with other work slows down one of two statements now and then; it does not do so to
    the same one in every repetition.

    Args:
        timing: The first, if there is one.
        ask: Times the same once more; None where time did not suffice.

    Returns:
        The first that tells nothing or the opposite, or the last one.
    """
    if timing is None or not timing.tells:
        return timing
    for _ in range(CONFIRMATIONS):
        again = ask()
        if again is None:
            break
        if again.difference_ms * timing.difference_ms < 0:
            return again._replace(z=0.0)
        if not again.tells:
            return again
        timing = again
    return timing


def _find_alike(search: Callable[[str], SearchPage], words: tuple[str, str]) -> bool:
    """Return whether a word that a foreign row holds finds what one finds that none does."""
    pages = [search(SAID.format(word)) for word in words]
    hit, miss = ({(each.id, len(each.scores)) for each in page.hits} for page in pages)
    return hit == miss


def _time_search(
    mode: str,
    search: Callable[[str], SearchPage],
    words: tuple[str, str],
    times: int,
    seconds: float,
) -> Timing | None:
    """Time searches for a word that a foreign row holds, and for one that none does, in turn.

    Returns:
        The timing; None where time did not suffice for ``ENOUGH_TIMES``, or for all *times*.
    """
    until = time.monotonic() + seconds
    durations: tuple[list[float], list[float]] = ([], [])
    for turn in range(times):
        for which in (0, 1) if turn % 2 else (1, 0):
            began = time.perf_counter()
            search(SAID.format(words[which]))
            durations[which].append((time.perf_counter() - began) * 1000)
        if time.monotonic() > until:
            break
    enough = len(durations[0]) >= min(times, ENOUGH_TIMES)
    return compare_times(f"{mode} search", *durations) if enough else None


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
