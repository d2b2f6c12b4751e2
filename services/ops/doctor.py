"""The checks of a live database: whether it plans searches as it should, and the SQL that mends it.

docs/reference/doctor.md has every check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from itertools import islice
from typing import Any, Final, Literal

from sqlalchemy.exc import DBAPIError

from pgcorpus.db.choices import GROUPS
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import (
    DatabaseNotReady,
    DatabaseUnavailable,
    DataLayerError,
    NotPermitted,
)
from pgcorpus.db.migrations import OLDEST_PGVECTOR, OLDEST_POSTGRESQL
from pgcorpus.db.repositories.operations.diagnosis import (
    Example,
    NeededIndex,
    Owner,
    Plan,
    Role,
    Server,
    StoredIndex,
    TableStatistics,
    setting_remedy,
    vacuum_remedy,
)
from pgcorpus.db.repositories.vector_indexes import CountedScope
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.answer import Statement
from pgcorpus.db.search.ask import Ask
from pgcorpus.db.search.corpora import list_corpora
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.search.legs import AskedModel
from pgcorpus.db.search.question import Question
from pgcorpus.db.settings import Settings
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.embedding.choice import list_in_use
from pgcorpus.services.ops.health import examine_component
from pgcorpus.services.search.service import LEGS_OF

Status = Literal["ok", "warning", "failure"]

MANY_CHANGES: Final = 1000
STALE_SHARE: Final = 0.2
"""Statistics are stale when more than this share of the rows has changed, and more than
``MANY_CHANGES``. Autovacuum renews them from half of this on (autovacuum_analyze_scale_factor)."""

MANY_ROWS: Final = 10_000
UNUSED_AFTER: Final = timedelta(days=7)
"""An index of a table with more than ``MANY_ROWS`` that no search used in this time is unused."""

COMPARABLE: Final = 1.1
"""A plan with the index that costs up to this many times the chosen one should have been chosen:
estimates are not more exact than that."""

OF_HEALTH: Final = (
    "pgvector_extension",
    "replication_lag",
    "queue_age",
    "connections",
    "transaction_id_age",
    "last_backup",
    "audit_chain",
)
"""Components of ``system_health_check`` that the other checks do not cover."""

STATUS_OF: Final[Mapping[str, Status]] = {
    "ok": "ok",
    "unknown": "ok",
    "warning": "warning",
    "critical": "failure",
}

ASCII_CTYPES: Final = ("C", "POSIX")
WORDS_ASKED: Final = 2

SCOPES_LOOKED_AT: Final = 50
"""Scopes without vectors that are looked at for one that has passages."""

BY_INDEX: Final = {"enable_seqscan": "off", "enable_sort": "off"}
SWITCHES: Final = {"enable_bitmapscan": "on", "enable_indexscan": "on"}
SOLID_STATE: Final = {"random_page_cost": "1.1"}
"""The cost of a random read on solid-state disks; the default of 4 is for turning ones."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check.

    Attributes:
        check: Stable, for scripts.
        corpus: Of which corpus, or None for the whole database.
        subject: What was looked at: a table, an index, a search, a role.
        status: ``failure`` where searches are slow, wrong or unsafe; ``warning`` where they may be.
        detail: What was found.
        remedy: SQL, or a command, that mends it; None where nothing is to be mended.
    """

    check: str
    corpus: str | None = None
    subject: str
    status: Status
    detail: str
    remedy: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """The findings of all checks, in a fixed order."""

    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """True if no check failed; warnings do not count."""
        return all(finding.status != "failure" for finding in self.findings)

    @property
    def remedies(self) -> tuple[str, ...]:
        """The statements that mend what was found, once each, those of failures first."""
        grave = sorted(self.findings, key=lambda finding: finding.status != "failure")
        return tuple(dict.fromkeys(finding.remedy for finding in grave if finding.remedy))

    def as_json(self) -> dict[str, Any]:
        """Return the diagnosis as the command line prints it."""
        return {"healthy": self.healthy, "findings": [asdict(each) for each in self.findings]}


Check = Callable[[], Iterator[Finding]]
ListLarge = Callable[[], list[CountedScope]]


class DoctorService:
    """Examines a database; it runs no search, and writes nothing.

    Args:
        database: Which.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def examine(self) -> Diagnosis:
        """Run every check of the database, and of every corpus.

        Raises:
            DatabaseUnavailable: It did not answer.
        """
        embedded = self._database.settings.database_url is None
        with self._database.unit_of_work() as work, work.diagnosis.as_login():
            work.diagnosis.begin()
            server = work.diagnosis.get_server()
            findings = [_postgresql(server), _pgvector(server), _ctype(server)]
            findings.append(_connections(work, self._database.settings))
            findings += _schema(work)
            if findings[-1].status == "ok":
                findings += _guard(work, "role", None, partial(_role, work, embedded))
                findings += _guard(work, "owner", None, partial(_owner, work))
                findings += _guard(work, "row_security", None, partial(_row_security, work))
                findings += _guard(work, "audit", None, partial(_audit, work))
                findings += _guard(work, "health", None, partial(_health, work))
                for corpus in list_corpora():
                    findings += self._examine_corpus(work, server, corpus)
        findings += self._standbys()
        return Diagnosis(tuple(findings))

    def _standbys(self) -> Iterator[Finding]:
        """Find standbys of ``DATABASE_READ_URLS`` that searches do not read from."""
        if not self._database.settings.read_urls:
            return
        self._database.standbys.look()
        for standby in self._database.standbys.all:
            found = partial(Finding, check="standby", subject=standby.name)
            limit = f"up to {self._database.settings.read_max_lag_seconds} s (DB_READ_MAX_LAG)"
            if standby.problem is not None:
                yield found(
                    status="warning",
                    detail=f"searches do not read from it: {standby.problem}",
                    remedy="correct DATABASE_READ_URLS, or start the standby",
                )
            elif behind := standby.tell_bytes_behind():
                yield found(
                    status="ok",
                    detail=f"{behind:,} bytes behind the primary now; searches read from it with a "
                    f"lag of {limit}",
                )
            else:
                yield found(status="ok", detail="has replayed all that the primary has written")

    def _examine_corpus(
        self, work: UnitOfWork, server: Server, corpus: Corpus
    ) -> Iterator[Finding]:
        list_large = cache(partial(work.vector_indexes.list_large_scopes, corpus))
        checks: dict[str, Check] = {
            "corpus": partial(_passages, work, corpus),
            "statistics": partial(_statistics, work, corpus),
            "index": partial(self._indexes, work, corpus),
            "scope_index": partial(self._scopes, work, corpus, list_large),
            "unused_index": partial(_find_unused, work, corpus),
            "plan": partial(self._plans, work, server, corpus),
        }
        scope: Scope | None = None
        if corpus.needs_scope:
            # Scopes are counted, which may take too long: plans are then explained without a scope.
            with suppress(DBAPIError), work.session.begin_nested():
                scope = _find_scope(work, corpus, list_large)
        if scope is not None:
            work.enter(scope)
        for name, check in checks.items():
            yield from _guard(work, name, corpus, check)
        work.leave()

    def _indexes(self, work: UnitOfWork, corpus: Corpus) -> Iterator[Finding]:
        needed = list(
            work.diagnosis.list_needed(corpus, list_in_use(work, corpus, self._database.settings))
        )
        yield from (_check_index(corpus, index) for index in needed)
        told = {stored.name for index in needed for stored in index.found}
        owned = work.diagnosis.list_owned_names(corpus)
        for stored in work.diagnosis.list_indexes(corpus):
            if not stored.valid and stored.name not in told:
                yield _invalid(corpus, stored, owned=stored.name in owned)

    def _scopes(self, work: UnitOfWork, corpus: Corpus, list_large: ListLarge) -> Iterator[Finding]:
        """Find large scopes that have no vector index."""
        if corpus.scope is None:
            return
        found = partial(Finding, check="scope_index", corpus=corpus.name)
        if not work.vector_indexes.may_list_large_scopes(corpus):
            yield found(
                subject=corpus.vectors.name,
                status="ok",
                detail="not looked at: only the owner of the schema and members of rag_admin are "
                "told the sizes of scopes",
            )
            return
        large = [
            each
            for model in list_in_use(work, corpus, self._database.settings)
            for each in work.vector_indexes.list_unindexed_scopes(corpus, model, list_large())
        ]
        for each in large:
            yield found(
                subject=str(each.scope),
                status="warning",
                detail=f"{each.vectors:,} vectors of {each.model.name} are compared one by one; "
                f"with the index {each.index} searches of the scope are faster",
                remedy=each.remedy,
            )
        if not large:
            yield found(
                subject=corpus.vectors.name,
                status="ok",
                detail="every scope that needs a vector index has one",
            )

    def _plans(self, work: UnitOfWork, server: Server, corpus: Corpus) -> Iterator[Finding]:
        if work.searches.is_empty(corpus):
            return
        models = list_in_use(work, corpus, self._database.settings)
        vectors = {model: work.diagnosis.sample_vector(corpus, model.name) for model in models}
        model = next((model for model, vector in vectors.items() if vector is not None), models[0])
        vector = vectors[model]
        if vector is None:
            lacking = work.models.find_active_model(corpus.name) or model
            yield Finding(
                check="plan",
                corpus=corpus.name,
                subject="vector",
                status="warning",
                detail=f"there are no vectors of the model {lacking.name!r}: searches have no "
                "vector leg",
                remedy=f"pgcorpus embed --corpus {corpus.name}",
            )
        examples = work.diagnosis.list_examples(corpus)
        words = [word for word in work.diagnosis.sample_words(corpus) if word.isalnum()]
        question = " ".join(islice(words, WORDS_ASKED)) or corpus.name
        asked = Ask(question=Question.parse(question), legs={}, vector=vector)
        # Trigrams look for what is spelt as no passage has it.
        misspelt = replace(asked, question=Question.parse(question.split()[0] + "qx"))
        compared = AskedModel(model.name, model.dimensions, model.index_kind)
        guard = _PlanGuard(work, server, corpus, list(work.diagnosis.list_needed(corpus, [model])))
        for mode, legs in LEGS_OF.items():
            if vector is None and "vector" in legs:
                continue
            for narrowing in _narrowings(examples):
                ask = replace(
                    misspelt if "fuzzy" in legs else asked,
                    legs=dict.fromkeys(legs, 1.0),
                    model=compared if "vector" in legs else None,
                    filters=narrowing,
                )
                subject = ", ".join([mode, *(f"{n}={v}" for n, v in narrowing.items())])
                yield guard.check(subject, ask)


class _PlanGuard:
    """Judges how searches of a corpus are planned."""

    def __init__(
        self, work: UnitOfWork, server: Server, corpus: Corpus, needed: list[NeededIndex]
    ) -> None:
        self._work = work
        self._corpus = corpus
        self._database = server.database
        self._needed = needed
        self._large = {corpus.passages.name, corpus.vectors.name}

    def check(self, subject: str, ask: Ask) -> Finding:
        """Check that each leg of a search uses its index, or has a good reason not to."""
        statement = self._work.searches.prepare(self._corpus, ask)
        told = partial(Finding, check="plan", corpus=self._corpus.name, subject=subject)
        if statement.kept is not None:
            what = "passage is" if statement.kept == 1 else "passages are"
            return told(status="ok", detail=f"{statement.kept} {what} compared one by one")
        legs = statement.shape.legs  # a question of stop words alone has no text leg
        plan = self._work.diagnosis.plan(statement)
        if self._is_good(plan, legs):
            return told(status="ok", detail=f"uses {', '.join(self._list_used(plan, legs))}")
        scanned = sorted(plan.scanned & self._large)
        where = f"reads all of {' and '.join(scanned)}" if scanned else "sorts instead"
        unready = [each for each in self._needed if each.leg in legs and each.state != "ready"]
        if unready:
            return told(
                status="failure",
                detail=f"{where}: " + "; ".join(f"{e.name} is {e.state}" for e in unready),
                remedy="\n".join(each.remedy for each in unready if each.remedy) or None,
            )
        if ask.filters and not scanned:
            return told(status="ok", detail="uses the index of a filter")
        return self._weigh(told, statement, plan, where)

    def _weigh(
        self, told: Callable[..., Finding], statement: Statement, plan: Plan, where: str
    ) -> Finding:
        """Explain why the planner leaves an index that is ready, and whether it is right."""
        legs = statement.shape.legs
        by_index = self._work.diagnosis.plan(statement, **BY_INDEX, **SWITCHES)
        comparable = self._is_good(by_index, legs) and by_index.cost <= COMPARABLE * plan.cost
        detail = f"{where}: costs {plan.cost:,.0f}, with the index {by_index.cost:,.0f}"
        if settings := self._settings_that_help(statement, plan):
            role = self._work.diagnosis.get_role().name
            named = ", ".join(f"{name} = {value}" for name, value in settings.items())
            return told(
                # On disks that turn, the planner may be right.
                status="failure" if comparable or settings.keys() & SWITCHES else "warning",
                detail=f"{detail}; it is used with {named}",
                remedy=setting_remedy(role, self._database, settings),
            )
        if not comparable:
            return told(status="ok", detail=f"{detail}, so the planner is right")
        # A bulk load leaves rows in the pending list of a GIN index, which each search then reads.
        return told(
            status="warning",
            detail=f"{detail}; pending entries of the index, or old statistics, may be the cause",
            remedy="\n".join(map(vacuum_remedy, sorted(plan.scanned & self._large))) or None,
        )

    def _list_used(self, plan: Plan, legs: tuple[str, ...]) -> list[str]:
        serving = {name for each in self._needed if each.leg in legs for name in each.serving}
        return sorted(plan.indexes & serving)

    def _is_good(self, plan: Plan, legs: tuple[str, ...]) -> bool:
        """Return whether every leg uses its own index, and no large table is read to its end."""
        served = (each.serving & plan.indexes for each in self._needed if each.leg in legs)
        return all(served) and not plan.scanned & self._large

    def _settings_that_help(self, statement: Statement, plan: Plan) -> dict[str, str]:
        """Find by trying the planner's settings under which every leg uses its index."""
        for settings in (SWITCHES, SOLID_STATE, SWITCHES | SOLID_STATE):
            if self._is_good(
                self._work.diagnosis.plan(statement, **settings), statement.shape.legs
            ):
                switched_off = {n for n, value in plan.settings.items() if value == "off"}
                return {
                    name: value
                    for name, value in settings.items()
                    if name in SOLID_STATE or name in switched_off
                }
        return {}


def _find_scope(work: UnitOfWork, corpus: Corpus, list_large: ListLarge) -> Scope | None:
    """Return a scope with passages to explain searches with, or None where none is visible."""
    scope = work.diagnosis.find_scope(corpus)  # a superuser is shown rows of all
    if scope is None and work.vector_indexes.may_list_large_scopes(corpus):
        scope = next((each.scope for each in list_large()), None)
    if scope is None:
        with suppress(NotPermitted):
            for each in islice(work.scopes_of(corpus), SCOPES_LOOKED_AT):
                if work.diagnosis.find_scope(corpus) is not None:
                    return each
            work.leave()
    return scope


def _narrowings(examples: list[Example]) -> Iterator[dict[str, str]]:
    """Yield no filter, the broadest one, and the narrowest one, as far as values are known."""
    yield {}
    for example in dict.fromkeys([*examples[:1], *examples[-1:]]):
        yield {example.name: example.value}


def _guard(work: UnitOfWork, name: str, corpus: Corpus | None, check: Check) -> Iterator[Finding]:
    """Yield the findings of a check; when the database refuses it, a finding that says so."""
    try:
        with work.savepoint():
            found = list(check())
    except DatabaseUnavailable:
        raise
    except DataLayerError as error:
        found = [
            Finding(
                check=name,
                corpus=corpus.name if corpus else None,
                subject="this check",
                status="failure",
                detail=f"the check failed: {error}",
                remedy="pgcorpus db upgrade" if isinstance(error, DatabaseNotReady) else None,
            )
        ]
    yield from found


def _postgresql(server: Server) -> Finding:
    found = partial(Finding, check="postgresql", subject=f"PostgreSQL {server.postgresql}")
    if server.postgresql >= OLDEST_POSTGRESQL:
        return found(status="ok", detail=f"{OLDEST_POSTGRESQL} or newer is needed")
    return found(
        status="failure",
        detail=f"{OLDEST_POSTGRESQL} or newer is needed",
        remedy=f"-- bring the server to PostgreSQL {OLDEST_POSTGRESQL} or newer with pg_upgrade",
    )


def _pgvector(server: Server) -> Finding:
    oldest = ".".join(map(str, OLDEST_PGVECTOR))
    found = partial(Finding, check="pgvector", subject=f"pgvector {server.pgvector or 'missing'}")
    version = tuple(int(part) for part in (server.pgvector or "0").split(".")[:2])
    if version >= OLDEST_PGVECTOR:
        return found(status="ok", detail=f"{oldest} or newer is needed")
    return found(
        status="failure",
        detail=f"{oldest} or newer is needed: older ones end a filtered search too early",
        remedy=server.pgvector_remedy,
    )


def _ctype(server: Server) -> Finding:
    found = partial(Finding, check="ctype", subject=f"LC_CTYPE {server.ctype}")
    if server.ctype not in ASCII_CTYPES:
        return found(status="ok", detail="trigrams know letters beyond ASCII")
    return found(
        status="warning",
        detail="trigrams know no letters beyond ASCII: fuzzy searches miss typos in accented "
        "words, and do not read Chinese, Thai and the like",
        remedy=server.ctype_remedy,
    )


def _connections(work: UnitOfWork, settings: Settings) -> Finding:
    """Check that the server has the connections that all processes may open."""
    found = partial(Finding, check="connections", subject="max_connections")
    if settings.is_pooled:
        return found(status="ok", detail="the transaction pooler's pool size limits them")
    if work.diagnosis.has_pooler():
        return found(
            status="warning",
            detail="a pooler stands before the server, and DB_POOLER is none: if it lends "
            "connections for a transaction only, statements fail and settings reach others",
            remedy="DB_POOLER=transaction  # and DATABASE_ADMIN_URL: the server's own address",
        )
    limit, each = work.diagnosis.count_connections(), settings.pool_size + settings.max_overflow
    detail = (
        f"DB_PROCESSES={settings.processes} may open {settings.processes * each:,} connections "
        f"(DB_POOL_SIZE + DB_MAX_OVERFLOW = {each} each); the server allows {limit:,}"
    )
    if settings.processes * each <= limit:
        return found(status="ok", detail=detail)
    share = limit // settings.processes
    kept = min(settings.pool_size, share)
    return found(
        status="warning",
        detail=f"{detail}: under load some are refused",
        remedy=f"DB_POOL_SIZE={kept} DB_MAX_OVERFLOW={share - kept}"
        if share
        else "DB_POOLER=transaction  # with a transaction pooler before the server",
    )


def _schema(work: UnitOfWork) -> list[Finding]:
    missing = work.diagnosis.list_missing_tables()
    if not missing:
        return [Finding(check="schema", subject="tables", status="ok", detail="all tables exist")]
    return [
        Finding(
            check="schema",
            subject="tables",
            status="failure",
            detail="the schema was not made, or is older than this release: it lacks "
            + ", ".join(missing),
            remedy="pgcorpus db upgrade",
        )
    ]


def _role(work: UnitOfWork, embedded: bool) -> Iterator[Finding]:
    role: Role = work.diagnosis.get_role()
    faults = []
    if role.superuser:
        faults.append("is a superuser")
    elif role.owns:
        owned = len(role.owns)
        faults.append(f"owns {role.owns[0]}" + (f" and {owned - 1} more" if owned > 1 else ""))
    if role.bypasses_security:
        faults.append("has BYPASSRLS")
    found = partial(Finding, check="role", subject=role.name)
    if not faults:
        yield found(status="ok", detail="bound by grants and row security")
    elif embedded:
        yield found(
            status="warning",
            detail=f"{' and '.join(faults)}: right for the embedded server, which is for "
            "development",
        )
    else:
        yield found(
            status="failure",
            detail=f"{' and '.join(faults)}: row security and grants do not bind it",
            remedy=role.remedy,
        )


def _owner(work: UnitOfWork) -> Iterator[Finding]:
    """Report the rights that an owner of the schema without superuser rights lacks."""
    owner = work.diagnosis.get_owner()
    found = partial(Finding, check="owner", subject=owner.name)
    lost = [] if owner.superuser else list(_list_lost_rights(owner))
    for detail, remedy in lost:
        yield found(status="warning", detail=detail, remedy=remedy)
    if owner.superuser:
        yield found(status="ok", detail="a superuser: it may do everything")
    elif not lost:
        yield found(status="ok", detail="no superuser, and nothing of pgcorpus needs one")


def _list_lost_rights(owner: Owner) -> Iterator[tuple[str, str]]:
    """Yield each right that an owner lacks, with what is lost, and the SQL that grants it."""
    if not owner.makes_roles:
        refused = "pgcorpus roles create-user and pgcorpus eval are refused"
        yield f"may not make roles: {refused}", owner.role_remedy
    if not owner.makes_schemas:
        yield "may not make schemas in the database: pgcorpus eval is refused", owner.schema_remedy
    if not owner.reads_statistics:
        lost = "all words of a question weigh the same"
        yield f"may not read pg_stats: {lost}", owner.statistics_remedy
    for role in owner.kept_from:
        command = f"roles create-user --role {role}" if role in GROUPS else "eval"
        refused = f"may not give {role} to others: pgcorpus {command} is refused"
        yield refused, owner.group_remedy(role)


def _row_security(work: UnitOfWork) -> Iterator[Finding]:
    """Check that every scoped table has row security, for its owner, too."""
    for table in work.isolation.list_guarded():
        yield Finding(
            check="row_security",
            subject=table.name,
            status="failure" if table.fault else "ok",
            detail=table.fault or "shows a scope its own rows",
            remedy=table.remedy if table.fault else None,
        )


def _audit(work: UnitOfWork) -> Iterator[Finding]:
    """Check for changes that go unrecorded, and for the partition of the next month."""
    unrecorded = work.diagnosis.list_unrecorded()
    for each in unrecorded:
        state = "is switched off" if each.disabled else "is missing"
        if each.table is None:
            yield Finding(
                check="audit",
                subject=each.event,
                status="warning",
                detail=f"its event trigger {state}: changes of the schema and of rights are not "
                "recorded; only a superuser makes it, or whom a hosted server lets",
                remedy=each.remedy,
            )
        else:
            yield Finding(
                check="audit",
                subject=each.table,
                status="failure",
                detail=f"the trigger audit_{each.event.lower()} {state}: {each.event} is not "
                "recorded" + ("" if each.disabled else "; it is in alembic/versions/0007_audit.py"),
                remedy=each.remedy,
            )
    if not work.diagnosis.has_partition_ahead():
        yield Finding(
            check="audit",
            subject="security_audit_log",
            status="warning",
            detail="there is no partition for the next month: maintenance has not run for long",
            remedy="pgcorpus worker --once --kinds maintenance",
        )
    elif not unrecorded:
        yield Finding(
            check="audit", subject="security_audit_log", status="ok", detail="records everything"
        )


def _health(work: UnitOfWork) -> Iterator[Finding]:
    """Report what ``pgcorpus health`` finds, and no other check here looks at."""
    for name in OF_HEALTH:
        found = examine_component(work, name)
        yield Finding(
            check="health",
            subject=name,
            status=STATUS_OF[found.status],
            detail=found.detail,
            remedy=found.remedy,
        )


def _passages(work: UnitOfWork, corpus: Corpus) -> Iterator[Finding]:
    filled = not work.searches.is_empty(corpus)
    yield Finding(
        check="corpus",
        corpus=corpus.name,
        subject=corpus.passages.name,
        status="ok",
        detail="has passages" if filled else "empty: there is nothing to explain",
    )


def _statistics(work: UnitOfWork, corpus: Corpus) -> Iterator[Finding]:
    filled = not work.searches.is_empty(corpus)
    for table in work.diagnosis.list_statistics(corpus):
        ranks = filled and table.name == corpus.passages.name
        yield _table_statistics(corpus, table, ranks=ranks)


def _table_statistics(corpus: Corpus, table: TableStatistics, *, ranks: bool) -> Finding:
    """Check that the planner knows a table.

    Args:
        corpus: Whose searches read it.
        table: What is known.
        ranks: Whether how rare a word is, is read from it: then a few rows matter, too.
    """
    found = partial(Finding, check="statistics", corpus=corpus.name, subject=table.name)
    if not table.analysed and (ranks or max(table.rows, table.changed) > MANY_CHANGES):
        why = "no word's rarity is known" if ranks else "the planner guesses"
        return found(status="failure", detail=f"never analysed: {why}", remedy=table.remedy)
    if table.changed > max(MANY_CHANGES, STALE_SHARE * table.rows):
        return found(
            status="failure",
            detail=f"{table.changed:,} of {table.rows:,} rows have changed since the last ANALYZE",
            remedy=table.remedy,
        )
    return found(status="ok", detail="up to date")


def _check_index(corpus: Corpus, index: NeededIndex) -> Finding:
    found = partial(Finding, check="index", corpus=corpus.name, subject=index.name)
    names = ", ".join(stored.identifier for stored in index.found)
    match index.state:
        case "ready":
            return found(status="ok", detail=f"serves the {index.leg} leg")
        case "building":
            return found(status="warning", detail="is being built: searches do not use it yet")
        case "missing":
            detail = f"missing: the {index.leg} leg has no index"
        case "invalid":
            detail = f"{names} is invalid: a build failed, and the {index.leg} leg does not use it"
        case "mismatched":
            detail = f"{names} is {index.found[0].definition}, but searches need {index.wanted}"
    return found(status="failure", detail=detail, remedy=index.remedy)


def _invalid(corpus: Corpus, index: StoredIndex, *, owned: bool) -> Finding:
    found = partial(Finding, check="index", corpus=corpus.name, subject=index.name)
    if index.building:
        return found(status="warning", detail="is being built: searches do not use it yet")
    return found(
        status="failure",
        detail="invalid: a build failed, and every write still keeps it up",
        remedy=index.rebuild if owned else index.drop,
    )


def _find_unused(work: UnitOfWork, corpus: Corpus) -> Iterator[Finding]:
    """Find indexes that cost every write and serve no search.

    Soon after statistics were reset, nothing is known of them.
    """
    found = partial(Finding, check="unused_index", corpus=corpus.name)
    since = work.diagnosis.get_counting_start()
    if datetime.now(UTC) - since < UNUSED_AFTER:
        yield found(
            subject="indexes",
            status="ok",
            detail=f"too early to tell: uses are counted since {since:%Y-%m-%d %H:%M}",
        )
        return
    large = {t.name for t in work.diagnosis.list_statistics(corpus) if t.rows > MANY_ROWS}
    owned = work.diagnosis.list_owned_names(corpus)
    unused = [
        index
        for index in work.diagnosis.list_indexes(corpus)
        if index.table in large and index.valid and not index.constrains and not index.scans
    ]
    for index in unused:
        if index.name in owned:
            # Not to be dropped: it belongs to a revision, and serves a filter, a mode or a model
            # that nobody happened to ask for.
            yield found(
                subject=index.name,
                status="warning",
                detail=f"part of the schema, and not used since {since:%Y-%m-%d}",
            )
        else:
            yield found(
                subject=index.name,
                status="failure",
                detail=f"not part of the schema, and not used since {since:%Y-%m-%d}",
                remedy=index.drop,
            )
    if not unused:
        yield found(subject="indexes", status="ok", detail="all that could be judged are used")
