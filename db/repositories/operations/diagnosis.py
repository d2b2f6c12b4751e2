"""The state of a live database: its catalogue, its statistics and the plans of searches.

What mends a fault is written here too, for it is SQL: ``pgcorpus.services.ops.doctor`` decides what
is one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from sqlalchemy import Column, Index, Table, func, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex
from sqlalchemy.sql.visitors import iterate

from pgcorpus.db.base import Base
from pgcorpus.db.choices import APPLICATION_ROLE, GROUPS
from pgcorpus.db.models.audit import list_audited
from pgcorpus.db.models.embeddings import EmbeddingModel
from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.repositories.models import ModelRepository
from pgcorpus.db.repositories.search import SearchRepository
from pgcorpus.db.repositories.vector_indexes import IndexState, VectorIndexRepository, index_of
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.answer import Statement
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.search.estimates import ANALYSED_ROWS

DISABLED_COST: Final = 1e10
"""``disable_cost``: what PostgreSQL before 18 adds to a node that a setting forbids."""

SERVER: Final = text("""
    SELECT current_setting('server_version_num')::integer / 10000 AS postgresql,
           (SELECT extversion FROM pg_extension WHERE extname = 'vector') AS pgvector,
           (SELECT default_version FROM pg_available_extensions WHERE name = 'vector')
               AS available_pgvector,
           datname AS database, datctype AS ctype
    FROM pg_database WHERE datname = current_database()
""")

ROLE: Final = text("""
    SELECT rolname AS name, rolsuper AS superuser, rolbypassrls AS bypasses_security,
           ARRAY(SELECT relname::text FROM pg_class
                 WHERE oid = ANY (CAST(CAST(:tables AS text[]) AS regclass[]))
                   AND pg_has_role(relowner, 'USAGE') ORDER BY 1) AS owns
    FROM pg_roles WHERE rolname = current_user
""")

TABLES: Final = text(f"""
    SELECT pg_class.relname::text AS name, ({ANALYSED_ROWS})::bigint AS rows,
           coalesce(n_mod_since_analyze, 0) AS changed,
           coalesce(last_analyze, last_autoanalyze) IS NOT NULL
               -- a crash or a reset forgets when, but not what
               OR EXISTS (SELECT FROM pg_stats
                          WHERE (pg_stats.schemaname, tablename)
                              = (nspname, pg_class.relname))
               -- nor does a standby know when, and columns that a role may not read show nothing
               OR (pg_is_in_recovery() AND reltuples >= 0) AS analysed
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    LEFT JOIN pg_stat_all_tables ON relid = pg_class.oid
    WHERE pg_class.oid = ANY (CAST(CAST(:tables AS text[]) AS regclass[]))
    ORDER BY 1
""")  # noqa: S608 - a constant

INDEXES: Final = text("""
    SELECT pg_class.relname::text AS name, indexrelid::regclass::text AS identifier,
           indrelid::regclass::text AS table,
           substring(pg_get_indexdef(indexrelid) FROM ' USING (.*)') AS definition,
           indisvalid AND indisready AS valid,
           indisunique OR EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
               AS constrains,
           -- what others build is not shown to every role, but their locks are
           EXISTS (SELECT FROM pg_locks JOIN pg_database ON pg_database.oid = database
                   WHERE datname = current_database() AND relation = indrelid
                     AND mode = 'ShareUpdateExclusiveLock') AS building,
           coalesce(idx_scan, 0) AS scans
    FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
    LEFT JOIN pg_stat_all_indexes USING (indexrelid)
    WHERE pg_index.indrelid = ANY (CAST(CAST(:tables AS text[]) AS regclass[]))
    ORDER BY 1
""")

COUNTED_SINCE: Final = text("""
    SELECT greatest(coalesce(stats_reset, pg_postmaster_start_time()),
                    (SELECT min(created_at) FROM embedding_models))
    FROM pg_stat_database WHERE datname = current_database()
""")
"""The registry's first row is as old as the schema."""

COMMON_VALUES: Final = text("""
    SELECT most_common_vals::text::text[] AS common, most_common_freqs AS shares,
           histogram_bounds::text::text[] AS others
    FROM pg_stats
    WHERE (schemaname, tablename) = (
              SELECT nspname, relname FROM pg_class
              JOIN pg_namespace ON pg_namespace.oid = relnamespace
              WHERE pg_class.oid = CAST(:table AS regclass))
      AND attname = :column AND NOT inherited
""")

AUDIT_EVENTS: Final = ("INSERT", "UPDATE", "DELETE", "TRUNCATE")
DDL_EVENTS: Final = ("ddl_command_end", "sql_drop")

UNRECORDED: Final = text("""
    SELECT audited, event, tgname IS NOT NULL AS disabled
    FROM unnest(CAST(:tables AS text[])) AS audited
    CROSS JOIN unnest(CAST(:events AS text[])) AS event
    LEFT JOIN pg_trigger ON tgrelid = to_regclass(audited)
        AND tgfoid = to_regproc('audit_rows') AND tgname = 'audit_' || lower(event)
    WHERE tgname IS NULL OR tgenabled = 'D' ORDER BY 1, 2
""")

DDL_UNRECORDED: Final = text("""
    SELECT event, evtname IS NOT NULL AS disabled FROM unnest(CAST(:events AS text[])) AS event
    LEFT JOIN pg_event_trigger ON evtname = 'pgcorpus_audit_' || event
    WHERE evtname IS NULL OR evtenabled = 'D' ORDER BY 1
""")

OWNER: Final = text("""
    SELECT owner.rolname AS name, owner.rolsuper AS superuser,
           owner.rolcreaterole AS makes_roles,
           has_database_privilege(owner.oid, current_database(), 'CREATE') AS makes_schemas,
           has_table_privilege(owner.oid, 'pg_catalog.pg_stats', 'SELECT') AS reads_statistics,
           ARRAY(SELECT needed.rolname::text FROM pg_roles AS needed
                 WHERE needed.rolname = ANY (CAST(:groups AS text[])
                                             || ('rag_search_' || current_database())::name::text)
                   AND NOT pg_has_role(owner.oid, needed.oid, 'MEMBER WITH ADMIN OPTION')
                   -- before PostgreSQL 16 whoever may make roles may give any
                   AND NOT (owner.rolcreaterole
                            AND current_setting('server_version_num')::integer < 160000)
                 ORDER BY 1) AS kept_from,
           current_database() AS database
    FROM pg_roles AS owner
    WHERE owner.oid = (SELECT relowner FROM pg_class WHERE oid = to_regclass(:table))
""")

AHEAD: Final = text("""
    SELECT to_regclass('security_audit_log_' || to_char(
        (now() AT TIME ZONE 'UTC') + interval '1 month', 'YYYY_MM')) IS NOT NULL
""")

NeededState = IndexState | Literal["building"]


class Server(NamedTuple):
    """The versions and locale of the server.

    Attributes:
        postgresql: Major version.
        pgvector: Installed version, such as ``0.8.1``, or None.
        available_pgvector: The newest that the server has files of, or None.
        database: Name of the database.
        ctype: Its LC_CTYPE.
    """

    postgresql: int
    pgvector: str | None
    available_pgvector: str | None
    database: str
    ctype: str

    @property
    def pgvector_remedy(self) -> str:
        """The command that brings pgvector up to date."""
        if self.pgvector is None:
            return _by_administrator("CREATE EXTENSION vector;")
        if self.pgvector == self.available_pgvector:
            return (
                f"-- install the newer postgresql-{self.postgresql}-pgvector on the server, then:\n"
                "ALTER EXTENSION vector UPDATE;"
            )
        return "ALTER EXTENSION vector UPDATE;"

    @property
    def ctype_remedy(self) -> str:
        """The command that makes a database that knows letters.

        An existing one cannot be changed.
        """
        copy = f"{self.database}_utf8"
        return (
            f"CREATE DATABASE {_quote(copy)} TEMPLATE template0 ENCODING 'UTF8'"
            " LOCALE 'C.UTF-8';\n"
            f"-- then: pg_dump {self.database} | psql {copy}, and let DATABASE_URL name {copy}"
        )


class Role(NamedTuple):
    """The role that is connected.

    Attributes:
        name: Of the role.
        superuser: Whether nothing is forbidden to it.
        bypasses_security: Whether row security does not bind it.
        owns: Tables of the project that it owns, itself or as a member of their owner.
    """

    name: str
    superuser: bool
    bypasses_security: bool
    owns: Sequence[str]

    @property
    def remedy(self) -> str:
        """The SQL that gives the application a role of the right kind."""
        if not self.superuser and not self.owns:
            return _by_administrator(f"ALTER ROLE {_quote(self.name)} NOBYPASSRLS;")
        return f"pgcorpus roles create-user NAME --role {APPLICATION_ROLE}"


class Owner(NamedTuple):
    """The owner of the schema, and the rights that it lacks without being a superuser.

    Attributes:
        name: Of the role.
        superuser: Whether nothing is forbidden to it.
        makes_roles: Whether it may make roles.
        makes_schemas: Whether it may make schemas in the database.
        reads_statistics: Whether it may read the planner's statistics of its own tables.
        kept_from: Roles of pgcorpus that it may not give to others.
        database: Name of the database.
    """

    name: str
    superuser: bool
    makes_roles: bool
    makes_schemas: bool
    reads_statistics: bool
    kept_from: Sequence[str]
    database: str

    @property
    def role_remedy(self) -> str:
        """The SQL that lets the owner make roles."""
        return _by_administrator(f"ALTER ROLE {_quote(self.name)} CREATEROLE;")

    @property
    def schema_remedy(self) -> str:
        """The SQL that lets the owner make schemas in the database."""
        granted = f"CREATE ON DATABASE {_quote(self.database)}"
        return _by_administrator(f"GRANT {granted} TO {_quote(self.name)};")

    @property
    def statistics_remedy(self) -> str:
        """The SQL that opens the statistics to the owner.

        Of others' tables the view shows nothing.
        """
        return _by_administrator(f"GRANT SELECT ON pg_catalog.pg_stats TO {_quote(self.name)};")

    def group_remedy(self, group: str) -> str:
        """Return SQL that lets the owner give a role to others."""
        granted = f"{_quote(group)} TO {_quote(self.name)}"
        return _by_administrator(f"GRANT {granted} WITH ADMIN OPTION;")


class TableStatistics(NamedTuple):
    """The planner's statistics of a table, and how old they are.

    Attributes:
        name: Of the table.
        rows: How many there were at the last ANALYZE or VACUUM, about.
        changed: Rows inserted, updated or deleted since the last ANALYZE.
        analysed: Whether there was one.
    """

    name: str
    rows: int
    changed: int
    analysed: bool

    @property
    def remedy(self) -> str:
        """The SQL that renews the statistics."""
        return f"ANALYZE {_quote(self.name)};"


class Unrecorded(NamedTuple):
    """A kind of change without an entry in the audit log.

    Attributes:
        table: Of which table; None for changes of the schema.
        event: On what a trigger should fire.
        disabled: Whether the trigger is there, and switched off; else it is gone.
    """

    table: str | None
    event: str
    disabled: bool

    @property
    def remedy(self) -> str | None:
        """The SQL that lets the log record it again, where that can be said."""
        if self.table is None:
            name = f"pgcorpus_audit_{self.event}"
            if self.disabled:
                return _by_administrator(f"ALTER EVENT TRIGGER {name} ENABLE;")
            return _by_administrator(
                "-- It runs in every session that changes the schema, and its owner may write it\n"
                "-- anew: only where the owner may have what they have, a superuser's rights too.\n"
                f"CREATE EVENT TRIGGER {name} ON {self.event} EXECUTE FUNCTION audit_ddl();"
            )
        if self.disabled:
            return f"ALTER TABLE {_quote(self.table)} ENABLE TRIGGER audit_{self.event.lower()};"
        return None


class StoredIndex(NamedTuple):
    """An index as the database has it.

    Attributes:
        name: As plans show it.
        identifier: As SQL takes it, quoted where needed.
        table: Of which table.
        definition: From the access method on, as ``pg_get_indexdef`` writes it.
        valid: Whether searches may use it.
        constrains: Whether it keeps rows unique.
        building: Whether its table is locked as by a build at this moment; a VACUUM locks it so,
            too.
        scans: How often it was used.
    """

    name: str
    identifier: str
    table: str
    definition: str
    valid: bool
    constrains: bool
    building: bool
    scans: int

    @property
    def rebuild(self) -> str:
        """The SQL that rebuilds it while others read and write."""
        return f"REINDEX INDEX CONCURRENTLY {self.identifier};"

    @property
    def drop(self) -> str:
        """The SQL that drops it while others read and write."""
        return f"DROP INDEX CONCURRENTLY {self.identifier};"


@dataclass(frozen=True)
class NeededIndex:
    """An index that a leg of searches needs, and the indexes that the database has in its place.

    Attributes:
        leg: Which leg.
        name: As the project calls it.
        state: ``mismatched``: there is one of another kind, operator class or length.
        wanted: Its definition, from the access method on.
        found: Those there are on the same, usable ones alone if there is any.
        create: What makes it while others read and write.
    """

    leg: str
    name: str
    state: NeededState
    wanted: str
    found: Sequence[StoredIndex]
    create: str

    @property
    def create_at_once(self) -> str:
        """The SQL that makes it within a transaction, while others only read."""
        return self.create.replace(" CONCURRENTLY", "", 1)

    def is_restored(self, stored: StoredIndex) -> bool:
        """Return whether ``create`` would make this very index, by name and storage parameters."""
        return (stored.name, _storage(stored.definition)) == (self.name, _storage(self.wanted))

    @property
    def serving(self) -> frozenset[str]:
        """The names of the indexes that a plan may use for it."""
        return frozenset(each.name for each in self.found if self.state == "ready")

    @property
    def remedy(self) -> str | None:
        """The SQL that makes it ready."""
        match self.state:
            case "missing":
                return self.create
            case "invalid":
                return self.found[0].rebuild
            case "mismatched":
                return "\n".join([*(each.drop for each in self.found), self.create])
            case _:
                return None


class Example(NamedTuple):
    """A value of a filter that passages have.

    Attributes:
        name: The filter's.
        value: As text.
        share: Of the rows, how many have it; 0 for one too rare to be listed.
    """

    name: str
    value: str
    share: float


@dataclass(frozen=True)
class Plan:
    """The plan by which PostgreSQL would run a search.

    Attributes:
        cost: In units of the planner.
        indexes: Names of the indexes it uses.
        scanned: Names of the tables it reads from end to end.
        settings: The planner's settings that are not the defaults.
    """

    cost: float
    indexes: frozenset[str]
    scanned: frozenset[str]
    settings: Mapping[str, str]


MOST_CONNECTIONS: Final = text("""
    SELECT least(
        CAST(current_setting('max_connections') AS int)
            - CAST(current_setting('superuser_reserved_connections') AS int)
            - CAST(coalesce(current_setting('reserved_connections', true), '0') AS int),
        (SELECT nullif(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user),
        (SELECT nullif(datconnlimit, -1) FROM pg_database WHERE datname = current_database()))
""")


class DiagnosisRepository(Repository):
    """Examines a database, and changes nothing."""

    def count_connections(self) -> int:
        """Return how many connections the role may have, beside those of others."""
        return int(self.session.scalar(MOST_CONNECTIONS) or 0)

    def has_pooler(self) -> bool:
        """Return whether a pooler stands between.

        It tells its clients a process of its own making.
        """
        driver: Any = self.session.connection().connection.driver_connection
        told: int = driver.info.backend_pid
        return told != self.session.scalar(select(func.pg_backend_pid()))

    def begin(self) -> None:
        """Make the transaction read-only; must come first in it."""
        self.session.execute(text("SET TRANSACTION READ ONLY"))

    def get_server(self) -> Server:
        """Return the versions and locale of the server."""
        return Server(*self.session.execute(SERVER).one())

    def get_role(self) -> Role:
        """Return the role that is connected, with the rights that it should not have."""
        tables = sorted(Base.metadata.tables)
        with self.as_login():
            return Role(*self.session.execute(ROLE, {"tables": tables}).one())

    def get_owner(self) -> Owner:
        """Return the owner of the schema, and what it may do."""
        found = {"groups": [*GROUPS], "table": EmbeddingModel.__tablename__}
        return Owner(*self.session.execute(OWNER, found).one())

    def list_unrecorded(self) -> list[Unrecorded]:
        """List the kinds of change that have no entry in the audit log."""
        rows = self.session.execute(
            UNRECORDED, {"tables": list_audited(), "events": [*AUDIT_EVENTS]}
        )
        ddl = self.session.execute(DDL_UNRECORDED, {"events": [*DDL_EVENTS]})
        return [*(Unrecorded(*row) for row in rows), *(Unrecorded(None, *row) for row in ddl)]

    def has_partition_ahead(self) -> bool:
        """Return whether the audit log has a partition for the next month."""
        return bool(self.session.scalar(AHEAD))

    def list_missing_tables(self) -> list[str]:
        """List the tables of the project that the database lacks."""
        missing = text(
            "SELECT name FROM unnest(CAST(:tables AS text[])) AS name"
            " WHERE to_regclass(name) IS NULL ORDER BY 1"
        )
        return list(self.session.scalars(missing, {"tables": list(Base.metadata.tables)}))

    def list_statistics(self, corpus: Corpus) -> list[TableStatistics]:
        """List the planner's statistics of each table that searches of the corpus read."""
        found = self.session.execute(TABLES, {"tables": _names(tables_of(corpus))})
        return [TableStatistics(*row) for row in found]

    def list_indexes(self, corpus: Corpus) -> list[StoredIndex]:
        """List every index of the tables that searches of the corpus read."""
        found = self.session.execute(INDEXES, {"tables": _names(tables_of(corpus))})
        return [StoredIndex(*row) for row in found]

    def list_owned_names(self, corpus: Corpus) -> set[str]:
        """Names of the indexes that the schema declares, and of those of registered models."""
        models = ModelRepository(self.session).list_models()
        declared = {str(index.name) for table in tables_of(corpus) for index in table.indexes}
        return declared | {str(index_of(corpus, model).name) for model in models}

    def list_needed(
        self, corpus: Corpus, models: Collection[EmbeddingModel]
    ) -> Iterator[NeededIndex]:
        """Yield the indexes that searches of the corpus need.

        Args:
            corpus: What is searched.
            models: Whose vectors are compared.
        """
        stored = self.list_indexes(corpus)
        for leg, index in _list_declared(corpus):
            needed = _find_needed(leg, index, stored)
            if corpus.scope is not None:
                # Of an expression an index keeps samples, which are of all scopes; those of the
                # words that everybody may read tell how rare each is.
                kept = 2000 if needed.name == corpus.shared_words else 0
                sampled = f"ALTER INDEX {needed.name} ALTER COLUMN 1 SET STATISTICS {kept};"
                needed = replace(needed, create=f"{needed.create}\n{sampled}")
            yield needed
        if corpus.needs_scope:
            return  # a vector index is a large scope's own
        indexes = VectorIndexRepository(self.session)
        of_name = {each.identifier: each for each in stored}
        for model in models:
            found = indexes.list_indexes(corpus, model)
            best = [e for e in found if e.usable] or [e for e in found if e.matching] or found
            state = indexes.index_state(corpus, model)
            yield _describe_state(
                "vector", index_of(corpus, model), state, [of_name[each.name] for each in best]
            )

    def get_counting_start(self) -> datetime:
        """Return the time since when uses of the indexes have been counted, at the latest."""
        since: datetime = self.session.execute(COUNTED_SINCE).scalar_one()
        return since

    def sample_vector(self, corpus: Corpus, model_name: str) -> np.ndarray | None:
        """Return a stored vector of the model, float32 of shape ``(dimensions,)``, or None."""
        of_model = corpus.vectors.c.model_name == model_name
        found: np.ndarray | None = self.session.scalar(
            select(corpus.vectors.c.embedding).where(of_model).limit(1)
        )
        return found

    def sample_words(self, corpus: Corpus) -> list[str]:
        """Return the lexemes of a stored passage, the longest first.

        The list is empty where no passage has any.
        """
        lexemes = func.tsvector_to_array(corpus.words)
        found = self.session.scalar(select(lexemes).where(func.length(corpus.words) > 0).limit(1))
        return sorted(found or [], key=len, reverse=True)

    def find_scope(self, corpus: Corpus) -> Scope | None:
        """Return a scope with passages of the corpus, as far as the role may see them."""
        for table in (corpus.vectors, corpus.passages):  # those of who has vectors tell more
            scope = self.session.scalar(select(table.c.scope).limit(1))
            if scope is not None:
                return Scope.parse(scope)
        return None

    def list_examples(self, corpus: Corpus) -> list[Example]:
        """List values of the text filters, from the planner's statistics; the broadest first."""
        examples = []
        for name, each in corpus.filters.items():
            column: Any = each.column
            if not isinstance(column, Column) or not isinstance(column.table, Table):
                continue  # of an expression there are no statistics
            if column.type.python_type is not str:
                continue  # how other types are written is a setting's business
            row = self.session.execute(
                COMMON_VALUES, {"table": column.table.name, "column": column.name}
            ).first()
            if row is None:
                continue
            examples += [
                Example(name, value, share)
                for value, share in zip(row.common or (), row.shares or (), strict=True)
            ]
            if row.others:
                examples.append(Example(name, row.others[len(row.others) // 2], 0.0))
        return sorted(examples, key=lambda example: -example.share)

    def plan(self, statement: Statement, **settings: str) -> Plan:
        """Plan a search without running it.

        Args:
            statement: As ``SearchRepository.prepare`` made it.
            settings: Of the planner, for this plan alone.
        """
        asked = replace(statement, settings={**statement.settings, **settings})
        with self.session.begin_nested() as savepoint:
            explained = SearchRepository(self.session).explain(asked, analyze=False)
            savepoint.rollback()  # the settings with it
        nodes = list(_nodes(explained["Plan"]))
        return Plan(
            cost=explained["Plan"]["Total Cost"] % DISABLED_COST,
            indexes=frozenset(node["Index Name"] for node in nodes if "Index Name" in node),
            scanned=frozenset(
                node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"
            ),
            settings=explained.get("Settings", {}),
        )


def tables_of(corpus: Corpus) -> list[Table]:
    """Return the tables that searches of the corpus read.

    These are the passages, their vectors, and the tables of filters.
    """
    beside = [corpus.hits, *(f.through for f in corpus.filters.values() if f.through is not None)]
    found = {corpus.passages, corpus.vectors}
    for clause in beside:
        found |= {each.table for each in iterate(clause) if hasattr(each, "table")}
    return sorted((each for each in found if isinstance(each, Table)), key=lambda table: table.name)


def setting_remedy(role: str, database: str, settings: Mapping[str, str]) -> str:
    """Build the SQL that changes settings of a role.

    It holds from the next connection on, whatever the server's files say.
    """
    return "\n".join(
        f"ALTER ROLE {_quote(role)} IN DATABASE {_quote(database)} SET {name} = {value};"
        for name, value in settings.items()
    )


def vacuum_remedy(table: str) -> str:
    """Build the SQL that sorts new rows into the indexes of a table, and renews its statistics."""
    return f"VACUUM (ANALYZE) {_quote(table)};"


def _list_declared(corpus: Corpus) -> Iterator[tuple[str, Index]]:
    """Yield the indexes of passages that the text and the fuzzy leg need, from the models."""
    for index in sorted(corpus.passages.indexes, key=lambda index: str(index.name)):
        name, options = str(index.name), index.dialect_options["postgresql"]
        of_words = name == corpus.shared_words or name.endswith("_scope_words")
        of_trigrams = name.endswith(("_scope_trigrams", "_shared_trigrams"))
        if of_words or list(index.columns) == [corpus.words]:
            yield "text", index
        elif of_trigrams or "gin_trgm_ops" in options["ops"].values():
            yield "fuzzy", index


def _find_needed(leg: str, index: Index, stored: Sequence[StoredIndex]) -> NeededIndex:
    """Find the stored indexes that serve as an index on passages."""
    wanted = _definition(index)
    form, key = _form(wanted), _form(wanted.removeprefix("gin"))
    for operator_class in index.dialect_options["postgresql"]["ops"].values():
        key = key.removesuffix(operator_class)
    same = [each for each in stored if _form(each.definition) == form]
    if ready := [each for each in same if each.valid]:
        return _describe_state(leg, index, "ready", ready)
    if same:
        return _describe_state(leg, index, "invalid", same)
    if alike := [e for e in stored if e.name == index.name or key in _form(e.definition)]:
        return _describe_state(leg, index, "mismatched", alike)
    return _describe_state(leg, index, "missing", [])


def _describe_state(
    leg: str, index: Index, state: IndexState, found: Sequence[StoredIndex]
) -> NeededIndex:
    building = state == "invalid" and any(each.building for each in found)
    return NeededIndex(
        leg=leg,
        name=str(index.name),
        state="building" if building else state,
        wanted=_definition(index),
        found=found,
        create=f"{_write_create(index)};",
    )


def _write_create(index: Index) -> str:
    statement = str(CreateIndex(index).compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
    return re.sub("^CREATE INDEX (?!CONCURRENTLY)", "CREATE INDEX CONCURRENTLY ", statement)


def _definition(index: Index) -> str:
    return _write_create(index).partition(" USING ")[2]


def _form(definition: str) -> str:
    """Return a definition without storage parameters, and without what PostgreSQL adds to it."""
    return re.sub(r" WITH \([^)]*\)|::text|[()\s]", "", definition)


def _storage(definition: str) -> set[str]:
    """Return the storage parameters of a definition."""
    found = re.search(r" WITH \(([^)]*)\)", definition)
    return set(re.sub(r"['\s]", "", found[1]).split(",")) if found else set()


def _nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def _names(tables: Sequence[Table]) -> list[str]:
    return [table.name for table in tables]


def _by_administrator(statement: str) -> str:
    """Return a statement that the owner of the schema may not run, unless it is a superuser."""
    return f"-- as an administrator, in this database:\n{statement}"


def _quote(identifier: str) -> str:
    preparer = postgresql.dialect().identifier_preparer  # type: ignore[no-untyped-call]
    return str(preparer.quote(identifier))
