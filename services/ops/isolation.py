"""The proof of isolation: all scoped tables and searches of a live database, attacked.

All of it happens in one transaction that is rolled back. docs/explanation/isolation.md tells what
is tried, and why; what is inferred of rows that are never shown is in services/ops/inference.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from time import monotonic
from typing import Any, Final, Literal

from psycopg.errors import InsufficientPrivilege
from sqlalchemy.exc import DBAPIError

from pgcorpus.db.choices import APPLICATION_ROLE
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import (
    MissingScope,
    NotFound,
    NotPermitted,
    UnsafeRole,
    translate,
)
from pgcorpus.db.rehearsal import Rehearsal, rehearsal
from pgcorpus.db.repositories.operations.guards import GuardRepository
from pgcorpus.db.repositories.operations.inference import InferenceRepository, Timing
from pgcorpus.db.repositories.operations.isolation import (
    ATTACKS,
    NOBODY,
    REMOVALS,
    SAID,
    SOURCE,
    UNTRIED,
    WRITES,
    Attempt,
    Guarded,
    Intruder,
    Party,
    everybody,
    party,
)
from pgcorpus.db.scope import Scope, refuse_unsafe
from pgcorpus.db.search.corpora import list_corpora
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.search.page import SearchPage
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.choices import ISOLATION_TIME_LIMIT_SECONDS, MODES
from pgcorpus.services.embedding.hashing import HashingEmbedder
from pgcorpus.services.ops.inference import Inference, Inferred, find_in_time
from pgcorpus.services.search.service import SearchService

SHARED_TABLES: Final = frozenset(everybody().keys)
"""Tables with rows that all may read, and administrators write."""


STATEMENT_SECONDS: Final = 10.0
"""Seconds after which a statement is ended; on an idle server none of ours needs a second."""

MOST_HITS: Final = 20
"""The hits that are asked for: more than all parties have passages, which say the same."""

MOST_SHARES: Final = 6
"""A step may take the time of so many, if it is there: what it leaves is for those that follow."""

Status = Literal["ok", "failure"]
Verdict = Literal["isolated", "failed", "incomplete"]
Tell = Callable[[str, int, int], None]
"""Reports the work that is done: its name, how much of it is done, and of how much."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """The attacks of one kind on one target.

    Attributes:
        target: A table, a view, a function, or a corpus.
        kind: Of statement, or of search.
        tried: How often.
        refused: How often the database, or the builder, answered with an error.
        crossed: How many rows were reached, or written, that are others'; of what is inferred, how
            many probes could be told apart.
        by: Who came through first, or None.
        untried: For how many time did not suffice: of these nothing is known.
    """

    target: str
    kind: str
    tried: int
    refused: int
    crossed: int
    by: str | None = None
    untried: int = 0


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A guard of isolation, and whether it stands.

    Attributes:
        layer: ``role``, ``table``, ``policy``, ``view``, ``function``, ``statistics``, ``index``,
            ``rows``, ``search``, ``inference`` or ``time``.
        subject: What was looked at.
        status: ``failure`` where it is missing.
        detail: What was found.
        remedy: SQL that mends it, or None.
    """

    layer: str
    subject: str
    status: Status
    detail: str
    remedy: str | None = None


@dataclass(frozen=True, kw_only=True)
class IsolationReport:
    """The report of all attacks and guards.

    Attributes:
        role: Who attacked.
        attacks: By target and kind.
        layers: The guards.
    """

    role: str
    attacks: tuple[Tried, ...]
    layers: tuple[Layer, ...]

    @property
    def tried(self) -> int:
        """The number of all attacks."""
        return sum(each.tried for each in self.attacks)

    @property
    def crossed(self) -> int:
        """The number of rows of others that were read or written."""
        return sum(each.crossed for each in self.attacks)

    @property
    def untried(self) -> int:
        """The number of attacks that were left out for lack of time."""
        return sum(each.untried for each in self.attacks)

    @property
    def verdict(self) -> Verdict:
        """``failed`` if a row crossed or a guard is missing, else whether all was tried."""
        if self.crossed or any(each.status != "ok" for each in self.layers):
            return "failed"
        return "incomplete" if self.untried else "isolated"

    @property
    def isolated(self) -> bool:
        """True if no row crossed, every guard stands, and nothing was left out."""
        return self.verdict == "isolated"

    def as_json(self) -> dict[str, Any]:
        """Return the report as the command line prints it."""
        return {
            "isolated": self.isolated,
            "verdict": self.verdict,
            "role": self.role,
            "tried": self.tried,
            "crossed": self.crossed,
            "untried": self.untried,
            "attacks": [asdict(each) for each in self.attacks],
            "layers": [asdict(each) for each in self.layers],
        }


@dataclass(frozen=True)
class _Parties:
    """The parties of the rehearsal; the last two must not be reached.

    What is everybody's must be read, and not written.
    """

    ours: Party
    stranger: Party
    theirs: Party
    person: Party
    everybody: Party

    @property
    def all(self) -> tuple[Party, ...]:
        return self.ours, self.stranger, self.theirs, self.person

    @property
    def victims(self) -> tuple[Party, Party]:
        return self.theirs, self.person

    def intruders(self) -> Iterator[Intruder]:
        """Yield everyone who tries, with the identities that they claim."""
        tenant, user = "app.tenant_id", "app.user_id"
        their_id, person_id = str(self.theirs.tenant_id), str(self.person.user_id)
        yield NOBODY
        yield _as_they_are(self.ours)
        yield _as_they_are(self.stranger)
        yield Intruder("a tenant's user as a person", {user: str(self.theirs.user_id)})
        yield Intruder("a tenant's id as a person's", {user: their_id})
        yield Intruder("a person's id as a tenant's", {tenant: person_id})
        own_id = str(self.ours.tenant_id)
        yield Intruder("own tenant and another's user", {tenant: own_id, user: person_id})
        yield Intruder("upper case", {tenant: their_id.upper()})
        yield Intruder("braces", {tenant: f"{{{their_id}}}"})
        yield Intruder("spaces", {tenant: " ", user: f" {person_id} "})
        yield Intruder("the whole scope", {tenant: str(self.theirs.scope)})
        yield Intruder("a pattern", {tenant: "%", user: "%"})
        yield Intruder("a fragment of SQL", {tenant: f"{their_id}' OR true --", user: "' OR true"})
        yield Intruder("another identity", {"app.identity": f"rehearsal:{self.ours.user_id}"})


class IsolationService:
    """Proves on a live database that no row crosses from one scope into another.

    Args:
        database: As a superuser, or as a login that may become ``rag_admin`` and the application's
            role. Nothing is kept.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def verify(
        self,
        role: str = APPLICATION_ROLE,
        tell: Tell | None = None,
        *,
        seconds: float = ISOLATION_TIME_LIMIT_SECONDS,
    ) -> IsolationReport:
        """Attack every scoped table and every search.

        Args:
            role: Who attacks: the group that applications are in, or the login of one.
            tell: Called with what is being done, for a progress bar.
            seconds: After which nothing further is tried, and the rest counted as untried.

        Raises:
            NotFound: There is no such role.
            NotPermitted: The login may not do what is needed.
            DatabaseNotReady: The schema is missing or older than this release.
            DatabaseUnavailable: The database did not answer.
        """
        with rehearsal(self._database) as rehearsed, rehearsed.unit_of_work() as work:
            work.isolation.limit_statements(STATEMENT_SECONDS)
            if not work.isolation.has_role(role):
                raise NotFound(f"there is no role {role!r}; see: pgcorpus roles show")
            return _Verification(rehearsed, work, role, seconds, tell or (lambda *_: None)).report()


class _Verification:
    """One run, as one role."""

    def __init__(
        self, rehearsed: Rehearsal, work: UnitOfWork, role: str, seconds: float, tell: Tell
    ) -> None:
        self._rehearsed = rehearsed
        self._work = work
        self._isolation = InferenceRepository(work.session)
        self._role = role
        self._tell = tell
        self._embedder = HashingEmbedder()
        self._parties = _Parties(
            ours=party("another tenant", tenant=True),
            stranger=party("another person", tenant=False),
            theirs=party("a tenant", tenant=True),
            person=party("a person", tenant=False),
            everybody=everybody(),
        )
        self._tables = self._isolation.list_guarded()
        self._corpora = [each for each in list_corpora() if each.scope is not None]
        self._layers: list[Layer] = []
        self._attacks: list[Tried] = []
        self._ends = monotonic() + seconds
        self._begun = 0
        # Guards, what three are told before and after, secrets and functions; statements, time and
        # probes of each table; each mode of search of each corpus, and its time.
        self._steps = 9 + 3 * len(self._attackable) + 2 * len(MODES) * len(self._corpora)

    def report(self) -> IsolationReport:
        """Run everything that there is time for, and return the report."""
        self._begin("guards")
        self._look_at_guards()
        try:
            self._compare_answers()
        except DBAPIError as error:
            if isinstance(error.orig, InsufficientPrivilege):
                raise NotPermitted(
                    "rows of two tenants are written, and taken back: log in as a superuser, or as "
                    f"a member of rag_admin ({error.orig.diag.message_primary})"
                ) from error
            why = str(translate(error) or error.orig)
            self._fail("rows", "rehearsal", f"rows of two tenants could not be written: {why}")
        else:
            for table in self._attackable:
                self._begin(f"{table.name}: statements")
                if self._note_rows(table):
                    self._attack(table)
            self._search()
            self._infer()
        self._tell("done", self._steps, self._steps)
        return IsolationReport(
            role=self._role, attacks=tuple(self._attacks), layers=tuple(self._layers)
        )

    def _begin(self, name: str) -> None:
        """Tell of a step, and give it its share of the time that is left."""
        self._tell(name, self._begun, self._steps)
        share = min(1.0, MOST_SHARES / max(1, self._steps - self._begun))
        now = monotonic()
        self._isolation.until = now + share * (self._ends - now)
        self._begun += 1

    @property
    def _attackable(self) -> list[Guarded]:
        return [table for table in self._tables if table.key is not None]

    def _note_rows(self, table: Guarded) -> bool:
        """Note everybody's rows of a table; return whether there was time for it."""
        parties = (*self._parties.all, self._parties.everybody)
        if self._isolation.is_late() or not all(
            self._isolation.note_rows(who, table) for who in parties
        ):
            self._leave(table.name, "statements")
            return False
        return True

    def _leave(self, target: str, *kinds: str) -> None:
        """Count kinds of attacks on a target that are left out whole, one for each."""
        for kind in kinds:
            self._count(target, kind, [("", UNTRIED)])

    # The guards.

    def _look_at_guards(self) -> None:
        self._isolation.as_application(self._role)
        try:
            refuse_unsafe(self._work.session.connection())
        except UnsafeRole as error:
            self._fail("role", self._role, str(error))
        else:
            self._pass("role", self._role, "owns no table, and row security binds it")
        for table in self._tables:
            self._look_at_table(table)
        guarded = [table.name for table in self._tables]
        for view in self._isolation.list_views(guarded):
            if view.as_invoker:
                self._pass("view", view.name, "asks with the rights of who reads it")
            else:
                self._fail(
                    "view",
                    view.name,
                    "asks with the rights of its owner",
                    f"ALTER VIEW {view.name} SET (security_invoker = true);",
                )
        for function in self._isolation.list_functions():
            if function.as_owner and not function.pinned:
                self._fail(
                    "function",
                    function.name,
                    "runs with the rights of its owner, in the search_path of the caller",
                    f"ALTER FUNCTION {function.name} SET search_path = pg_catalog, pg_temp;",
                )
            elif function.as_owner:
                self._pass(
                    "function", function.name, "runs as its owner, in a search_path of its own"
                )

        self._look_at_inference(guarded)

    def _look_at_inference(self, tables: Sequence[str]) -> None:
        """Look for anything that gives rows, or their numbers, to logins that may not see them."""
        guards = GuardRepository(self._work.session)
        for name in guards.list_leakproof():
            self._fail(
                "function",
                name,
                "is marked LEAKPROOF, and PostgreSQL did not ship it so: it is given rows before "
                "policies are asked",
                f"ALTER FUNCTION {name} NOT LEAKPROOF;",
            )
        for name in guards.list_taking_expressions(self._role):
            self._fail(
                "function",
                name,
                "runs as its owner, and evaluates an expression of the caller's: an error could "
                "depend on rows of others; let it take lexemes, words or numbers",
                f"REVOKE EXECUTE ON FUNCTION {name} FROM PUBLIC, {self._role};",
            )
        for policy in guards.list_bypasses(tables):
            subject = f"{policy.name} on {policy.table}"
            if policy.faults:
                self._fail(
                    "policy",
                    subject,
                    f"shows rows of all scopes to {policy.role}: {'; '.join(policy.faults)}",
                    f"DROP POLICY {policy.name} ON {policy.table};",
                )
            else:
                self._pass(
                    "policy", subject, f"is for {policy.role}, which no login has or may become"
                )
        for sampled in guards.list_sampled(tables):
            self._fail(
                "statistics",
                f"{sampled.table}.{sampled.column}",
                "has samples in the statistics, and EXPLAIN tells its estimates to every role",
                sampled.remedy,
            )
        for name in guards.list_shared_graphs(tables):
            self._fail(
                "index",
                name,
                "holds vectors of all scopes: EXPLAIN ANALYZE tells how many of others' are nearer",
                f"DROP INDEX {name};",
            )
        for name in guards.list_watches(self._role):
            self._fail(
                "role",
                self._role,
                f"is a member of {name}, and sees statements of others, or files of the server",
                f"REVOKE {name} FROM {self._role};",
            )

    def _look_at_table(self, table: Guarded) -> None:
        if table.fault is not None:
            self._fail("table", table.name, table.fault, table.remedy)
        elif table.key is None:
            self._fail("table", table.name, "has no primary key of one column: it was not attacked")
        else:
            how = "forced" if table.forced else "enabled; its owner works for all"
            self._pass("table", table.name, f"row security is {how}")

    # The attacks.

    def _compare_answers(self) -> None:
        """Check that writes of others change no answer to any question that can be asked.

        So counts, sums and statistics are found out as well as rows. What answers differently each
        time it is asked (a random key, the time) is not compared.
        """
        (vector,) = self._embedder.embed_documents([SAID])
        own, shared = (self._parties.ours, self._parties.stranger), self._parties.everybody
        watchers = [NOBODY, *map(_as_they_are, own)]
        for each in (shared, *own):
            self._isolation.populate(each, vector, shared)
        look = partial(
            self._isolation.look_around,
            role=self._role,
            parties=self._parties.all,
            shared=shared,
        )
        before = []
        for who in watchers:
            self._begin(f"what {who.name} is told before others write")
            before.append(look(who))
        for each in self._parties.victims:
            self._isolation.populate(each, vector, shared)
        attempts: dict[str, list[tuple[str, Attempt]]] = {}
        for who, answers in zip(watchers, before, strict=True):
            self._begin(f"what {who.name} is told after others have written")
            now = look(who)
            changed = {asked for asked, answer in answers.items() if now[asked] != answer}
            again = look(who, only=changed)
            for asked, answer in answers.items():
                last = again.get(asked, answer)
                if UNTRIED in {answer, now[asked], last}:
                    told = UNTRIED
                elif asked in changed and last != now[asked]:
                    continue
                else:
                    told = Attempt(int(asked in changed), now[asked].refusal)
                attempts.setdefault(asked.partition("()")[0], []).append((who.name, told))
        for target, compared in sorted(attempts.items()):
            self._count(target, "told the same", compared)
        for name in self._isolation.list_open(self._role):
            self._fail(
                "table",
                name,
                f"is written to with each memory, and {self._role} may read it",
                f"REVOKE SELECT ON {name} FROM {self._role};",  # noqa: S608 - shown, not run
            )

    def _attack(self, table: Guarded) -> None:
        """Run every kind of statement on a table, as every intruder."""
        isolation, role = self._isolation, self._role
        victims = [each for each in self._parties.victims if each.keys[table.name]]
        own = (self._parties.ours, self._parties.stranger)
        if not victims or not any(each.keys[table.name] for each in own):
            self._fail("rows", table.name, "no row of it was written: it was not attacked")
            return
        kinds: dict[str, Callable[[Intruder], Iterable[Attempt]]] = {
            kind: lambda who, kind=kind: [  # type: ignore[misc]
                isolation.try_statement(kind, table, who, role, victims)
            ]
            for kind in ATTACKS
        }
        kinds |= {
            "INSERT": lambda who: [isolation.try_insert(table, who, role, v) for v in victims],
            "prepared": lambda who: [isolation.try_prepared(table, who, role, v) for v in victims],
            "function": lambda who: [isolation.try_listening(table, who, role, victims)],
            "COPY TO": lambda who: [isolation.try_copy(table, who, role, victims)],
            "COPY FROM": lambda who: [isolation.try_copy_from(table, who, role)],
        }
        for kind, attempts in kinds.items():
            self._count(
                table.name,
                kind,
                ((w.name, each) for w in self._parties.intruders() for each in attempts(w)),
            )
        given = (
            (who.name, attempt)
            for who in own
            for victim in victims
            for attempt in isolation.try_giving(table, who, role, victim)
        )
        self._count(table.name, "give away", given)
        referring = (
            (who.name, attempt)
            for who in own
            for victim in victims
            for attempt in isolation.try_referring(table, who, role, victim)
        )
        self._count(table.name, "refer", referring)
        self._count(table.name, "TRUNCATE", [(role, isolation.try_truncate(table, role))])
        if table.name in SHARED_TABLES:
            self._attack_shared(table)
        if isolation.is_closed(table.name, role):  # not even own rows are shown
            return
        for who in own:
            for kind in ("SELECT", "at its place") if who.keys[table.name] else ():
                seen = isolation.try_statement(kind, table, _as_they_are(who), role, [who])
                if not seen.untried and seen.rows != len(who.keys[table.name]):
                    self._fail(
                        "rows",
                        table.name,
                        f"{who.name} does not see own rows ({kind}): nothing proven",
                    )

    def _attack_shared(self, table: Guarded) -> None:
        """Try to write rows that are everybody's to read, and an administrator's to write.

        Vectors of shared passages are written by workers; nobody else removes them.
        """
        isolation, role, shared = self._isolation, self._role, self._parties.everybody
        ours = self._parties.ours
        askers = (NOBODY, _as_they_are(ours), _as_they_are(self._parties.stranger))
        vectors = {each.vectors.name for each in list_corpora() if each.shared_words is not None}
        of_worker = table.name in vectors
        for kind in REMOVALS if of_worker else WRITES:
            if kind == "INSERT":
                made = [(w.name, isolation.try_insert(table, w, role, shared)) for w in askers]
            else:
                made = [
                    (w.name, isolation.try_statement(kind, table, w, role, [shared]))
                    for w in askers
                ]
            self._count(table.name, f"{kind} of shared", made)
        taken = [(ours.name, each) for each in isolation.try_taking(table, ours, role, shared)]
        self._count(table.name, "take shared", taken)
        if not of_worker:
            given = [(ours.name, each) for each in isolation.try_giving(table, ours, role, shared)]
            self._count(table.name, "share", given)

    def _search(self) -> None:
        """Run every mode of search in every scoped corpus, with and without filters."""
        search = SearchService(self._rehearsed, embedder=self._embedder)
        self._isolation.as_application(self._role)
        for corpus in self._corpora:
            for mode in MODES:
                self._begin(f"{corpus.name}: {mode} search")
                ask = partial(search.search, SAID, corpus=corpus.name, mode=mode, limit=MOST_HITS)
                attempts = [
                    each
                    for filters in ({}, {"source": SOURCE})
                    for each in self._search_corpus(corpus, mode, partial(ask, filters=filters))
                ]
                self._count(corpus.name, f"{mode} search", attempts)
            if corpus.order is not None:
                self._count(corpus.name, "context", self._look_around_hits(corpus))

    def _search_corpus(
        self, corpus: Corpus, mode: str, ask: Callable[..., SearchPage]
    ) -> Iterator[tuple[str, Attempt]]:
        """Search as nobody and as owners of rows, who must find all that they may read."""
        table, parties = corpus.passages.name, self._parties
        shared = set(parties.everybody.keys.get(table, ()))
        if corpus.needs_scope:
            yield NOBODY.name, _search_unscoped(ask)
        askers: list[tuple[str, Scope | None, set[Any]]] = [
            (who.name, who.scope, set(who.keys.get(table, ())))
            for who in (parties.ours, parties.stranger)
        ]
        if not corpus.needs_scope:
            askers.append((NOBODY.name, None, set()))
        for name, scope, own in askers:
            page = None if self._isolation.is_late() else find_in_time(partial(ask, scope=scope))
            if page is None:
                yield name, UNTRIED
                continue
            hits = {hit.id for hit in page.hits}
            yield name, Attempt(len(hits & self._list_others(table, own)))
            if not hits >= own | shared:
                self._fail(
                    "search",
                    f"{corpus.name}, {mode}",
                    f"{name} does not find what is shared or own: nothing was proven",
                )

    def _look_around_hits(self, corpus: Corpus) -> Iterator[tuple[str, Attempt]]:
        """Ask for what stands around others' passages."""
        table = corpus.passages.name
        look = partial(self._work.searches.surroundings, corpus, before=9, after=9)
        if not corpus.needs_scope:
            yield NOBODY.name, Attempt(len(look(list(self._list_others(table, set())))))
        for who in (self._parties.ours, self._parties.stranger):
            assert who.scope is not None  # noqa: S101 - only what is everybody's has none
            others = self._list_others(table, set(who.keys.get(table, ())))
            self._work.enter(who.scope)
            yield who.name, Attempt(len(look(list(others))))
        self._work.leave()

    def _list_others(self, table: str, own: set[Any]) -> set[Any]:
        """Return the keys of the parties' rows that are neither *own* nor everybody's."""
        return {key for who in self._parties.all for key in who.keys.get(table, ())} - own

    def _infer(self) -> None:
        """Plant secrets in rows of a victim, and try to infer them, as others."""
        ours, victim = self._parties.ours, self._parties.theirs
        tables = [
            each
            for each in self._tables
            if each.key is not None and ours.keys.get(each.name) and victim.keys.get(each.name)
        ]
        inference = Inference(self._isolation, self._role, ours, victim, tables)
        self._begin("planting secrets")
        if self._isolation.is_late():
            names = [each.name for each in self._attackable]
            for target in ("functions", *names, *(each.name for each in self._corpora)):
                self._leave(target, "inference")
            return
        planted = {each.name: inference.secrets[each.name] for each in tables}
        # First: a probe of a key leaves a dead row with the secret in the asker's own scope, and an
        # index that leads to one takes its time.
        timings: dict[str, list[Timing | None]] = {}
        for table in tables:
            self._begin(f"{table.name}: inference by time")
            if self._isolation.is_late():
                timings[table.name] = [None]
                continue
            timings[table.name] = list(inference.time(table))
        for table in tables:
            self._begin(f"{table.name}: inference")
            if self._isolation.is_late():
                self._leave(table.name, "inference")
                continue
            for told in inference.probe(table):
                self._note_told(told)
        self._begin("functions")
        self._note_told(inference.call_functions())
        search = SearchService(self._rehearsed, embedder=self._embedder)
        self._isolation.as_application(self._role)
        for corpus in (each for each in self._corpora if each.passages.name in planted):
            timings[corpus.name] = list(self._time_searches(inference, search, corpus))
        for target, timed in timings.items():
            self._note_time(target, timed)

    def _time_searches(
        self, inference: Inference, search: SearchService, corpus: Corpus
    ) -> Iterator[Timing | None]:
        """Time every mode of search for a word of others, and see that it changes no page."""
        for mode in MODES:
            self._begin(f"{corpus.name}: {mode} search by time")
            yield inference.time_search(search, corpus, mode)
            alike = inference.find_alike(search, corpus, mode)
            if alike is None:
                self._count(corpus.name, f"{mode} search", [(self._parties.ours.name, UNTRIED)])
            elif not alike:
                self._fail(
                    "inference",
                    f"{corpus.name}, {mode}",
                    "what others hold changes which own or shared rows are found",
                )

    def _note_told(self, told: Inferred) -> None:
        if told.tried or told.untried:
            self._attacks.append(
                Tried(
                    target=told.target,
                    kind=told.kind,
                    tried=told.tried,
                    refused=told.refused,
                    crossed=len(told.found),
                    by=told.by if told.found else None,
                    untried=told.untried,
                )
            )
        if told.found:
            more = f" (and {len(told.found) - 1} more)" if len(told.found) > 1 else ""
            self._fail(
                "inference", told.target, f"{told.kind}, as {told.by}: {told.found[0]}{more}"
            )

    def _note_time(self, target: str, asked: Sequence[Timing | None]) -> None:
        timings = [each for each in asked if each is not None]
        telling = [each for each in timings if each.tells]
        self._attacks.append(
            Tried(
                target=target,
                kind="by time",
                tried=len(timings),
                refused=0,
                crossed=len(telling),
                by=self._parties.ours.name if telling else None,
                untried=len(asked) - len(timings),
            )
        )
        if not timings:
            return
        most = max(telling or timings, key=lambda each: abs(each.z))
        put = self._fail if telling else self._pass
        put(
            "time",
            target,
            f"{most.name}: {most.difference_ms:+.3f} ms with a match in another scope, of "
            f"{most.miss_ms:.3f} ms; noise {most.noise_ms:.3f} ms, z {most.z:.1f}",
        )

    # What came of it.

    def _count(self, target: str, kind: str, attempts: Iterable[tuple[str, Attempt]]) -> None:
        made = list(attempts)
        untried = sum(each.untried for _, each in made)
        if made:
            self._attacks.append(
                Tried(
                    target=target,
                    kind=kind,
                    tried=len(made) - untried,
                    refused=sum(each.refusal is not None for _, each in made),
                    crossed=sum(each.rows for _, each in made),
                    by=next((name for name, each in made if each.rows), None),
                    untried=untried,
                )
            )

    def _pass(self, layer: str, subject: str, detail: str) -> None:
        self._layers.append(Layer(layer=layer, subject=subject, status="ok", detail=detail))

    def _fail(self, layer: str, subject: str, detail: str, remedy: str | None = None) -> None:
        self._layers.append(
            Layer(layer=layer, subject=subject, status="failure", detail=detail, remedy=remedy)
        )


def _as_they_are(who: Party) -> Intruder:
    return Intruder(who.name, who.settings)


def _search_unscoped(search: Callable[..., SearchPage]) -> Attempt:
    """Return a search without a scope, which the builder must refuse."""
    try:
        return Attempt(rows=max(1, len(search().hits)))
    except MissingScope:
        return Attempt(refusal=MissingScope.__name__)
