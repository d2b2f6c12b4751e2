"""Attacks on row security: what an application could try to read or to change in other scopes.

What is tried here is tried in a transaction that is rolled back (``pgcorpus.db.rehearsal``), each
attempt in a savepoint of its own. No attempt reads a whole table, however large it is: the rows of
the rehearsal are asked for by their keys, their scopes, or the places where they stand.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import partial
from itertools import cycle, islice, product
from time import monotonic
from typing import Any, Final, NamedTuple
from uuid import UUID, uuid4

import numpy as np
import psycopg
from psycopg import sql
from psycopg.errors import InsufficientPrivilege, QueryCanceled
from psycopg.types.json import Jsonb
from sqlalchemy import Connection, func, select, text
from sqlalchemy.exc import DBAPIError

from pgcorpus.db.base import SHARED, set_local
from pgcorpus.db.choices import LEAST_CEILING
from pgcorpus.db.errors import NotPermitted
from pgcorpus.db.models.documentation import (
    Chunk,
    ChunkBoost,
    ClickFeedback,
    Document,
    DocumentationEmbedding,
    LearnedRanking,
    SearchSession,
)
from pgcorpus.db.models.imports import ImportFile, ImportReject, ImportRun, ImportTransformation
from pgcorpus.db.models.memory import (
    EpisodeEmbedding,
    EpisodicMemory,
    MemoryEmbedding,
    MemoryNode,
    Tenant,
    User,
)
from pgcorpus.db.models.usage import EmbeddingUsage, TokenCeiling
from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.repositories.operations.probes import quote
from pgcorpus.db.scope import SETTINGS, Scope

MODEL: Final = "hashing"
"""The model of the rows' vectors: it needs no network."""

LAST_VERSIONS: Final = range(2**30, 2**31)
"""The numbers of learned rankings that no database has reached: one of them is taken, for whoever
wrote the same one would wait for another rehearsal at the same moment."""

SAID: Final = "isolation rehearsal of a price"
"""The text of the memories of all parties: each would find the others' if it could."""

SOURCE: Final = "rehearsal"

MEMORIES: Final = 3

CHOSEN: Final = frozenset(("app.identity", *SETTINGS))
"""Settings that say who is asking."""

SCOPE_COLUMNS: Final = ("scope", "tenant_id", "user_id")
"""Columns that say whose a row is; the last two where they are UUIDs."""

ATTACKS: Final[Mapping[str, str]] = {
    "SELECT": "SELECT FROM {table} WHERE {key} = ANY (:keys)",
    "at its place": (
        "SELECT FROM {table} AS t WHERE ctid = ANY (CAST(:places AS tid[]))"
        " AND CAST(t AS text) LIKE ANY (:marks)"
    ),
    "FOR UPDATE": "SELECT FROM {table} WHERE {key} = ANY (:keys) FOR UPDATE",
    "UPDATE": "UPDATE {table} SET {column} = {column} WHERE {key} = ANY (:keys)",
    "DELETE": "DELETE FROM {table} WHERE {key} = ANY (:keys) RETURNING 1",
    "MERGE": (
        "MERGE INTO {table} AS t USING (SELECT unnest(CAST(:keys AS {type}[])) AS k) AS s"
        " ON t.{key} = s.k WHEN MATCHED THEN UPDATE SET {column} = t.{column}"
    ),
    "MERGE DELETE": (
        "MERGE INTO {table} AS t USING (SELECT unnest(CAST(:keys AS {type}[])) AS k) AS s"
        " ON t.{key} = s.k WHEN MATCHED THEN DELETE"
    ),
    "CREATE AS": "CREATE TEMPORARY TABLE stolen AS SELECT * FROM {table} WHERE {key} = ANY (:keys)",
    "ON CONFLICT": (
        "INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns}"
        " FROM unnest(CAST(:rows AS jsonb[])) AS r, jsonb_populate_record(NULL::{table}, r)"
        " ON CONFLICT ({identity}) DO UPDATE SET {column} = excluded.{column}"
    ),
}
"""Kind → statement; the rows that it gives or writes are those of other scopes that it reached."""

WRITES: Final = ("FOR UPDATE", "UPDATE", "DELETE", "MERGE", "MERGE DELETE", "ON CONFLICT", "INSERT")
"""Kinds that only administrators may do to rows that are everybody's."""

REMOVALS: Final = ("DELETE", "MERGE DELETE")
"""Kinds of these that not even a worker may do, who writes vectors of shared passages."""

REACHABLE: Final = text("""
    WITH RECURSIVE reading AS (
        SELECT ev_class AS reader, refobjid AS read FROM pg_rewrite
        JOIN pg_depend ON classid = 'pg_rewrite'::regclass AND objid = pg_rewrite.oid
            AND refclassid = 'pg_class'::regclass AND refobjid <> ev_class
        UNION
        SELECT reading.reader, refobjid FROM reading
        JOIN pg_rewrite ON ev_class = reading.read
        JOIN pg_depend ON classid = 'pg_rewrite'::regclass AND objid = pg_rewrite.oid
            AND refclassid = 'pg_class'::regclass AND refobjid <> ev_class
    )
    SELECT DISTINCT view.relname::text AS name,
           coalesce(view.reloptions @> ARRAY['security_invoker=true'], false) AS as_invoker,
           ARRAY(SELECT attname::text FROM pg_attribute
                 WHERE attrelid = view.oid AND attname = ANY (CAST(:scope_columns AS text[]))
                     AND (attname = 'scope' OR atttypid = 'uuid'::regtype)) AS scope_columns
    FROM reading JOIN pg_class AS view ON view.oid = reader
    JOIN pg_class AS guarded ON guarded.oid = read
    WHERE view.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
        AND view.relkind IN ('v', 'm') AND guarded.relname = ANY (:tables)
    ORDER BY 1
""")

GUARDED: Final = text("""
    SELECT relname::text AS name, relrowsecurity AS enabled, relforcerowsecurity AS forced,
           own.key, own.identity,
           ARRAY(SELECT attname::text FROM pg_attribute
                 WHERE attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
                     AND attgenerated = '' ORDER BY attnum) AS columns,
           ARRAY(SELECT attname::text FROM pg_attribute
                 WHERE attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
                     AND attname = ANY (CAST(:scope_columns AS text[]))
                     AND (attname = 'scope' OR atttypid = 'uuid'::regtype)) AS scope_columns,
           own.type,
           (SELECT attname::text FROM pg_attribute
            WHERE attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
                AND attgenerated = '' AND attidentity = '' ORDER BY attname = 'created_at' DESC
            LIMIT 1) AS column,
           ARRAY(SELECT polname::text FROM pg_policy
                 WHERE polrelid = pg_class.oid AND 0 = ANY (polroles) AND polpermissive
                     -- a program that signs a user in knows the identity, and not yet the scope
                     AND concat(pg_get_expr(polqual, polrelid),
                                pg_get_expr(polwithcheck, polrelid)) NOT LIKE '%app.identity%'
                     AND NOT EXISTS (
                         SELECT FROM pg_depend WHERE classid = 'pg_policy'::regclass
                             AND objid = pg_policy.oid AND refclassid = 'pg_proc'::regclass
                             AND refobjid = to_regproc('app_scope'))) AS strange
    FROM pg_class LEFT JOIN LATERAL (
        -- without the scope, where that is a part of it
        SELECT max(attname::text) FILTER (WHERE tells) AS key,
               max(format_type(atttypid, atttypmod)) FILTER (WHERE tells) AS type,
               array_agg(attname::text) AS identity
        FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY (indkey),
        LATERAL (SELECT indnkeyatts = 1 OR attname <> ALL (CAST(:scope_columns AS text[])))
            AS each (tells)
        WHERE indrelid = pg_class.oid AND indisprimary
        HAVING count(*) FILTER (WHERE tells) = 1
    ) AS own ON true
    WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
        AND relkind IN ('r', 'p', 'm', 'f') AND NOT relispartition
        AND (relrowsecurity OR relforcerowsecurity OR EXISTS (
            SELECT FROM pg_attribute WHERE attrelid = pg_class.oid AND NOT attisdropped
                AND attname = ANY (CAST(:scope_columns AS text[]))))
    ORDER BY 1
""")

REFERENCES: Final = text("""
    SELECT relname::text AS referred,
           ARRAY(SELECT attname::text FROM unnest(conkey) WITH ORDINALITY AS of (number, place)
                 JOIN pg_attribute ON attrelid = conrelid AND attnum = number
                 ORDER BY place) AS columns,
           ARRAY(SELECT attname::text FROM unnest(confkey) WITH ORDINALITY AS of (number, place)
                 JOIN pg_attribute ON attrelid = confrelid AND attnum = number
                 ORDER BY place) AS keys
    FROM pg_constraint JOIN pg_class AS referred ON referred.oid = confrelid
    WHERE contype = 'f' AND conrelid = CAST(:table AS regclass) AND relrowsecurity
        AND cardinality(conkey) > 1
    ORDER BY conname
""")
"""Foreign keys to guarded tables. One of a single column only tells that a UUID is there."""

FUNCTIONS: Final = text("""
    SELECT p.oid::regproc::text AS name, prosecdef AS as_owner,
           coalesce(array_to_string(proconfig, ',') LIKE '%search_path=%', false) AS pinned,
           ARRAY(SELECT format_type(each, NULL)
                 FROM unnest(proargtypes) WITH ORDINALITY AS of (each, place)
                 ORDER BY place) AS arguments
    FROM pg_proc AS p
    WHERE pronamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
        AND prokind = 'f' AND prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype)
        AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass
                        AND objid = p.oid AND deptype = 'e')
    ORDER BY 1
""")

LISTENER: Final = """
    CREATE FUNCTION pg_temp.overhear(said text) RETURNS boolean LANGUAGE plpgsql
    COST 0.0000001 AS $$
    BEGIN
        PERFORM set_config('app.heard', current_setting('app.heard', true) || said, true);
        RETURN true;
    END $$
"""
"""The body of a leaky function: it takes note of all it is given, and claims to cost nothing."""

STATISTICS: Final = {
    "pg_stats": "SELECT count(*) FROM pg_stats WHERE tablename = ANY (:tables)",
    "pg_stats_ext": "SELECT count(*) FROM pg_stats_ext WHERE tablename = ANY (:tables)",
}

MOST_CALLS: Final = 12
"""Ways to call a function that are tried."""

INDEXES: Final = ["chunks_text_gin_idx", "idx_chunks_scope_words", "idx_chunks_scope_trigrams"]
"""Indexes whose statistics a function could be asked for."""


HOSTILE: Final[Mapping[str, Sequence[Any]]] = {
    "text": (None, "", "'", "%' OR true --", "{", "(" * 1000, "x" * 100_000),
    "character varying": (None, "'", "x" * 100_000),
    "text[]": (None, [], [None], ["'", "(", "%"], ["x"] * 10_000),
    "integer": (None, -1, 2_147_483_647),
    "bigint": (None, -1, 9_223_372_036_854_775_807),
    "jsonb": (None, "[]", '{"a": ' * 500 + "1" + "}" * 500),
    "regclass": (None, "pg_class"),
    "name": (None, "'"),
}
"""Type → arguments that a function may stumble over; of others NULL."""

WRITTEN: Final = text("""
    SELECT DISTINCT coalesce(parent.relname, own.relname)::text
    FROM pg_stat_xact_user_tables AS written JOIN pg_class AS own ON own.oid = relid
    LEFT JOIN pg_inherits ON inhrelid = own.oid AND own.relispartition
    LEFT JOIN pg_class AS parent ON parent.oid = inhparent
    WHERE n_tup_ins + n_tup_upd > 0 AND own.relnamespace NOT IN (
            SELECT oid FROM pg_namespace WHERE nspname LIKE 'pg\\_%')
        AND NOT own.relrowsecurity
        AND has_table_privilege(CAST(:role AS name), coalesce(parent.oid, own.oid), 'SELECT')
    ORDER BY 1
""")


class Guarded(NamedTuple):
    """A scoped table.

    Attributes:
        name: Of the table.
        enabled: Whether row security holds.
        forced: Whether it holds for the owner, too.
        key: What tells its rows apart: its primary key, where that is one column beside the scope.
        identity: All columns of the primary key.
        columns: Those that can be written.
        scope_columns: Those that say whose a row is.
        type: Of the key.
        column: One that a harmless UPDATE writes.
        strange: Policies for all roles that do not ask for the scope.
    """

    name: str
    enabled: bool
    forced: bool
    key: str | None
    identity: Sequence[str] | None
    columns: Sequence[str]
    scope_columns: Sequence[str]
    type: str | None
    column: str
    strange: Sequence[str]

    @property
    def row(self) -> str:
        """The condition for the row ``:key`` of ``:scope``, which its primary key serves."""
        scope = "scope = :scope AND " if "scope" in self.scope_columns else ""
        return f"{scope}{quote(self.key or '')} = :key"

    @property
    def fault(self) -> str | None:
        """The guard that is missing, or None."""
        if not self.enabled:
            return "says whose its rows are, and has no row security"
        if not self.forced:
            return "has row security that does not hold for its owner"
        if self.strange:
            named = ", ".join(self.strange)
            return f"has policies for all roles that do not ask for the scope: {named}"
        return None

    @property
    def remedy(self) -> str:
        """The SQL that restores the guard; a policy on its scope is for its author."""
        name = quote(self.name)
        force = f"ALTER TABLE {name} FORCE ROW LEVEL SECURITY;"
        if not self.enabled:
            return f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY;\n{force}"
        if not self.forced:
            return force
        return "\n".join(f"DROP POLICY {quote(each)} ON {name};" for each in self.strange)


class View(NamedTuple):
    """A view that reads guarded tables.

    Attributes:
        name: Of the view.
        as_invoker: Whether it reads with the rights of the asking role.
        scope_columns: Those that say whose a row is.
    """

    name: str
    as_invoker: bool
    scope_columns: Sequence[str]


class Function(NamedTuple):
    """A function of the schema.

    Attributes:
        name: Of the function.
        as_owner: Whether it runs with its owner's rights.
        pinned: Whether it has a search path of its own.
        arguments: Their types.
    """

    name: str
    as_owner: bool
    pinned: bool
    arguments: Sequence[str]


@dataclass
class Party:
    """An owner of rows in the rehearsal.

    Attributes:
        name: As reports call them.
        scope: Whose rows they are; None of those that are everybody's.
        user_id: Of a user of the scope.
        keys: Table → primary keys of their rows.
        rows: Table → one of them whole, as JSON.
        places: Table → where they stand (``ctid``).
    """

    name: str
    scope: Scope | None
    user_id: UUID
    keys: dict[str, list[Any]]
    rows: dict[str, Any] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)

    @property
    def tenant_id(self) -> UUID | None:
        """The tenant whose rows they are, or None."""
        return None if self.scope is None else self.scope.tenant_id

    @property
    def scope_name(self) -> str:
        """The scope as its column has it."""
        return SHARED if self.scope is None else str(self.scope)

    @property
    def settings(self) -> Mapping[str, str]:
        """The settings by which the party says who it is."""
        return {} if self.scope is None else self.scope.settings

    @property
    def marks(self) -> list[str]:
        """The words that the text of each of the party's rows holds."""
        return [str(self.tenant_id or self.user_id), str(self.user_id)]


@dataclass(frozen=True)
class Intruder:
    """A party that tries to reach the rows of others.

    Attributes:
        name: As reports call them.
        settings: What they say who they are.
    """

    name: str
    settings: Mapping[str, str]


NOBODY: Final = Intruder("nobody", {})


class Attempt(NamedTuple):
    """The result of an attack.

    Attributes:
        rows: Given or written.
        refusal: SQLSTATE of the error, or None.
        said: What was given, where it is compared.
        untried: Whether time did not suffice for an answer.
    """

    rows: int = 0
    refusal: str | None = None
    said: str | None = None
    untried: bool = False


UNTRIED: Final = Attempt(untried=True)


def everybody() -> Party:
    """Make the party of the rows that all may read, without any yet."""
    return Party("everybody", None, uuid4(), _keys_of_documentation())


def _keys_of_documentation() -> dict[str, list[Any]]:
    tables = (Document, Chunk, DocumentationEmbedding)
    return {each.__tablename__: [uuid4()] for each in tables}


def party(name: str, *, tenant: bool) -> Party:
    """Make a new party, without any rows yet; a single user has no documents."""
    user_id = uuid4()
    scope = Scope.tenant(uuid4()) if tenant else Scope.user(user_id)
    keys: dict[str, list[Any]] = {
        **(_keys_of_documentation() if tenant else {}),
        "tenants": [scope.tenant_id] if tenant else [],
        "users": [user_id],
        "memory_nodes": [uuid4() for _ in range(MEMORIES)],
        "episodic_memories": [uuid4()],
        "memory_embeddings": [uuid4() for _ in range(MEMORIES)],
        "episode_embeddings": [uuid4()],
    }
    return Party(name, scope, user_id, keys)


class IsolationRepository(Repository):
    """Examines the guards of scoped tables, and attacks them. It never commits.

    Attributes:
        until: The moment, of ``time.monotonic``, after which nothing is tried any more.
    """

    until: float = float("inf")

    def is_late(self) -> bool:
        """Return whether the time is over."""
        return monotonic() > self.until

    def limit_statements(self, seconds: float) -> None:
        """End each statement of the transaction after *seconds*, whatever the settings say."""
        self.lift_timeout()
        limit = set_local({"statement_timeout": str(round(seconds * 1000))})
        self.session.connection().execute(limit)

    def list_guarded(self) -> list[Guarded]:
        """List every scoped table: those with row security, and those with a column of a scope."""
        found = self.session.execute(GUARDED, {"scope_columns": list(SCOPE_COLUMNS)})
        return [Guarded(*row) for row in found]

    def is_closed(self, table: str, role: str) -> bool:
        """Return whether a role has no right to read a table, whoever's the rows are."""
        right = func.has_any_column_privilege(role, quote(table), "SELECT")
        return not self.session.scalar(select(right))

    def list_views(self, tables: Sequence[str]) -> list[View]:
        """List the views that read one of these tables, directly or by way of another view."""
        reading = {"tables": list(tables), "scope_columns": list(SCOPE_COLUMNS)}
        return [View(*row) for row in self.session.execute(REACHABLE, reading)]

    def list_functions(self) -> list[Function]:
        """List the functions of the schema that are no triggers."""
        return [Function(*row) for row in self.session.execute(FUNCTIONS)]

    def has_role(self, name: str) -> bool:
        """Return whether the server has a role of that name."""
        found = self.session.scalar(select(func.to_regrole(quote(name))))
        return found is not None

    def populate(self, who: Party, vector: np.ndarray, shared: Party) -> None:
        """Write rows of a party into every table that it may have rows in.

        Args:
            who: Whose; their keys and rows are noted there.
            vector: Of ``SAID``, float32 of shape ``(dimensions,)`` of ``MODEL``.
            shared: Whose chunk the party opens, beside its own.
        """
        session, scope = self.session, who.scope
        self.as_operator(scope)
        if who.tenant_id is not None:
            slug = f"rehearsal-{who.tenant_id}"
            session.add(Tenant(id=who.tenant_id, name=SAID, slug=slug))
            session.flush()
        if "documents" in who.keys:
            self._write_documents(who, vector, opened=[who] if who is shared else [shared, who])
        if scope is None:
            return
        external_id = str(who.user_id)
        session.add(
            User(
                id=who.user_id,
                tenant_id=scope.tenant_id,
                auth_provider="rehearsal",
                external_id=external_id,
                email=f"{external_id}@example.com",
            )
        )
        session.flush()
        owned = {
            "tenant_id": scope.tenant_id,
            "user_id": who.user_id,
            "scope": str(scope),
            "source": SOURCE,
        }
        nodes = [
            MemoryNode(
                key=key,
                id=f"mem_{number}",
                conversation_id="rehearsal",
                sequence_index=number,
                human_content=f"{SAID} {who.user_id}",
                **owned,
            )
            for number, key in enumerate(who.keys["memory_nodes"])
        ]
        episode = EpisodicMemory(
            key=who.keys["episodic_memories"][0],
            id="ep_0",
            title=f"{SAID} {who.user_id}",
            messages=[],
            message_count=0,
            **owned,
        )
        session.add_all([*nodes, episode])
        session.flush()
        of_vector = {
            "scope": str(scope),
            "model_name": MODEL,
            "embedding": vector,
            "content_hash": b"",
        }
        for table, column, model in (
            ("memory_nodes", "node_key", MemoryEmbedding),
            ("episodic_memories", "episode_key", EpisodeEmbedding),
        ):
            keys = zip(who.keys[model.__tablename__], who.keys[table], strict=True)
            session.add_all(model(id=id_, **{column: key}, **of_vector) for id_, key in keys)
        run = ImportRun(id=uuid4(), corpus="memory", scope=str(scope))
        session.add(run)
        session.flush()
        of_run = {"run_id": run.id, "file": SAID, "scope": str(scope)}
        place = {"locator": "$", **of_run}
        session.add_all(
            [
                ImportFile(**of_run),
                ImportTransformation(item=external_id, field="", rule="", **place),
                ImportReject(corpus="memory", reason=SAID, payload={"id": external_id}, **place),
            ]
        )
        day = date.min + timedelta(days=random.randrange(1_000_000))  # noqa: S311 - no secret
        session.add_all(
            [
                EmbeddingUsage(scope=str(scope), day=day, spent_tokens=1),
                TokenCeiling(scope=str(scope), tokens_per_day=LEAST_CEILING),
            ]
        )
        session.flush()
        session.expunge_all()

    def _write_documents(self, who: Party, vector: np.ndarray, opened: Sequence[Party]) -> None:
        """Write a document of a party with a chunk, its vector, and what was searched and opened.

        Args:
            who: Whose.
            vector: Of the chunk.
            opened: Whose chunks were opened.
        """
        session = self.session
        owned = {"tenant_id": who.tenant_id, "scope": who.scope_name}
        (document,), (chunk,) = who.keys["documents"], who.keys["chunks"]
        name = f"{SAID} {who.user_id}"
        said = {"title": name, "source_url": SOURCE, "details": {"said": name}}
        session.add(Document(id=document, path=name, **said, **owned))
        session.flush()
        session.add(
            Chunk(
                id=chunk,
                document_id=document,
                chunk_id=name,
                position=0,
                text=name,
                heading_path=[SAID],
                details={"said": name},
                **owned,
            )
        )
        session.flush()
        session.add(
            DocumentationEmbedding(
                id=who.keys["documentation_embeddings"][0],
                chunk_id=chunk,
                scope=who.scope_name,
                model_name=MODEL,
                embedding=vector,
                content_hash=b"",
            )
        )
        for each in opened:
            click = {"chunk_scope": each.scope_name, "chunk_id": each.keys["chunks"][0]}
            session.add(ClickFeedback(query=name, position=1, session_id=name, **click, **owned))
        session.add(SearchSession(session_id=name, query=name, **owned))
        ranking = uuid4()
        session.add(
            LearnedRanking(
                id=ranking,
                corpus="documentation",
                version=random.choice(LAST_VERSIONS),  # noqa: S311 - no secret
                weights={},
                estimate={"said": name},
                is_active=False,
                **owned,
            )
        )
        session.flush()
        session.add_all(
            ChunkBoost(
                ranking_id=ranking,
                passage_scope=each.scope_name,
                chunk_id=each.keys["chunks"][0],
                boost=0.0,
                **owned,
            )
            for each in opened
        )
        session.flush()
        session.expunge_all()

    def list_open(self, role: str) -> list[str]:
        """List the tables written in this transaction whose rows of all scopes a role may read."""
        return list(self.session.scalars(WRITTEN, {"role": role}))

    def note_rows(self, who: Party, table: Guarded) -> bool:
        """Note a party's rows of a table, those that triggers wrote included.

        Returns:
            Whether they could be looked for within the time of a statement.
        """
        self.as_operator(who.scope)
        key = quote(table.key or "")
        whose = {**_name_owners([who]), "keys": who.keys.get(table.name, [])}
        conditions = _list_owners(table.scope_columns)
        if table.name in who.keys:  # whatever its columns and policies say
            conditions = [f"{key} = ANY (:keys)"]
        find = text(
            f"SELECT {key} AS key, CAST(ctid AS text) AS place, to_jsonb(t) AS row"  # noqa: S608 - names of the catalog
            f" FROM {quote(table.name)} AS t WHERE {' OR '.join(conditions) or 'false'}"
        )
        with self._savepoint() as connection:
            try:
                found = connection.execute(find, whose).all()
            except DBAPIError as error:
                if isinstance(error.orig, QueryCanceled):
                    return False
                raise
        who.keys[table.name] = [row.key for row in found]
        who.places[table.name] = [row.place for row in found]
        if found:
            who.rows[table.name] = found[0].row
        return True

    def as_operator(self, scope: Scope | None) -> None:
        """Become the login again, within a scope or without one."""
        settings = dict.fromkeys(SETTINGS, "") if scope is None else scope.settings
        self._become({"role": "none", **settings})

    def as_application(self, role: str) -> None:
        """Become a role of the application, without a scope."""
        self._become(self._settings(NOBODY, role))

    def try_statement(
        self, kind: str, table: Guarded, who: Intruder, role: str, victims: Sequence[Party]
    ) -> Attempt:
        """Try one statement of ``ATTACKS`` on the rows of others."""
        statement = ATTACKS[kind].format(
            table=quote(table.name),
            key=quote(table.key or ""),
            identity=", ".join(map(quote, table.identity or ())),
            type=table.type,
            column=quote(table.column),
            columns=", ".join(map(quote, table.columns)),
        )
        values = {
            "keys": [key for victim in victims for key in victim.keys[table.name]],
            "places": [place for victim in victims for place in victim.places[table.name]],
            "marks": [f"%{mark}%" for victim in victims for mark in victim.marks],
            "rows": [Jsonb(v.rows[table.name]) for v in victims if table.name in v.rows],
        }
        return self._attempt(who, role, partial(_count_rows, statement, values))

    def try_insert(self, table: Guarded, who: Intruder, role: str, victim: Party) -> Attempt:
        """Try to write a row of a victim: one it had, after it was taken away."""
        columns, name = ", ".join(map(quote, table.columns)), quote(table.name)
        insert = partial(
            _count_rows,
            f"INSERT INTO {name} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns}"  # noqa: S608 - names of the catalog
            f" FROM jsonb_populate_record(NULL::{name}, CAST(:row AS jsonb))",
            {"row": Jsonb(victim.rows[table.name])},
        )
        if self.is_late():
            return UNTRIED
        with self._savepoint() as connection:
            self.as_operator(victim.scope)
            own = text(f"DELETE FROM {name} WHERE {table.row}")  # noqa: S608 - names of the catalog
            taken = {"key": victim.keys[table.name][0], "scope": victim.scope_name}
            connection.execute(own, taken)
            return self._attempt(who, role, insert)

    def try_giving(self, table: Guarded, who: Party, role: str, victim: Party) -> Iterator[Attempt]:
        """Try to make one's own rows a victim's, by each column that could say so and by all."""
        yield from self._try_moving(table, who.keys[table.name], victim, who, role)

    def try_taking(self, table: Guarded, who: Party, role: str, victim: Party) -> Iterator[Attempt]:
        """Try to make a victim's rows one's own, likewise."""
        yield from self._try_moving(table, victim.keys[table.name], who, who, role)

    def _try_moving(
        self, table: Guarded, keys: Sequence[Any], to: Party, who: Party, role: str
    ) -> Iterator[Attempt]:
        """Try, as *who*, to make rows those of *to*."""
        new = {"scope": to.scope_name, "tenant_id": to.tenant_id, "user_id": to.user_id}
        given = [name for name in table.scope_columns if name in table.columns]
        said = [name for name in given if new[name] is not None]
        for names in ([given] if said else []) + [[name] for name in said if len(given) > 1]:
            changes = ", ".join(f"{name} = :{name}" for name in names)
            statement = (
                f"UPDATE {quote(table.name)} SET {changes} WHERE {quote(table.key or '')}"  # noqa: S608 - names of the catalog
                " = ANY (:keys)"
            )
            move = partial(_count_rows, statement, {**new, "keys": list(keys)})
            yield self._attempt(Intruder(who.name, who.settings), role, move)

    def try_referring(
        self, table: Guarded, who: Party, role: str, victim: Party
    ) -> Iterator[Attempt]:
        """Try to make one's own rows refer to a victim's, with and without naming its scope."""
        for referred, columns, keys in self.session.execute(
            REFERENCES, {"table": quote(table.name)}
        ).all():
            row = victim.rows.get(referred)
            if row is None:
                continue
            values = {column: row[key] for column, key in zip(columns, keys, strict=True)}
            unscoped = [each for each in columns if each not in SCOPE_COLUMNS]
            for names in {tuple(columns), tuple(unscoped)} - {()}:
                changes = ", ".join(f"{quote(name)} = :{name}" for name in names)
                statement = (
                    f"UPDATE {quote(table.name)} SET {changes} WHERE {quote(table.key or '')}"  # noqa: S608 - names of the catalog
                    " = ANY (:own_keys)"
                )
                given = {**{name: values[name] for name in names}, "own_keys": who.keys[table.name]}
                refer = partial(_count_rows, statement, given)
                yield self._attempt(Intruder(who.name, who.settings), role, refer)

    def try_copy(
        self, table: Guarded, who: Intruder, role: str, victims: Sequence[Party]
    ) -> Attempt:
        """Try COPY TO, and count the lines of others.

        ``COPY table TO`` is made a COPY of a query by PostgreSQL, where row security holds. So this
        is one from the first, of the places where others' rows stand.
        """
        places = [place for victim in victims for place in victim.places[table.name]]
        marks = [mark for victim in victims for mark in victim.marks]
        copy_out = sql.SQL("COPY (SELECT * FROM {} WHERE ctid = ANY ({}::tid[])) TO STDOUT").format(
            sql.Identifier(table.name), sql.Literal(places)
        )

        def copy(connection: Connection) -> Attempt:
            driver: Any = connection.connection.driver_connection
            with driver.cursor().copy(copy_out) as copied:
                lines = b"".join(copied).decode().splitlines()
            return Attempt(rows=sum(any(mark in line for mark in marks) for line in lines))

        return self._attempt(who, role, copy)

    def try_copy_from(self, table: Guarded, who: Intruder, role: str) -> Attempt:
        """Try COPY FROM, which would bypass the policies."""

        def copy(connection: Connection) -> Attempt:
            driver: Any = connection.connection.driver_connection
            with driver.cursor().copy(f"COPY {quote(table.name)} FROM STDIN"):
                pass
            return Attempt(rows=1)

        return self._attempt(who, role, copy)

    def try_truncate(self, table: Guarded, role: str) -> Attempt:
        """Return whether the role may TRUNCATE; it is not tried, which would lock the table."""
        may = select(func.has_table_privilege(role, quote(table.name), "TRUNCATE"))
        return Attempt(rows=1) if self.session.scalar(may) else Attempt(refusal="42501")

    def try_listening(
        self, table: Guarded, who: Intruder, role: str, victims: Sequence[Party]
    ) -> Attempt:
        """Try to have a function of one's own see the rows of others."""
        places = [place for victim in victims for place in victim.places[table.name]]
        marks = [mark for victim in victims for mark in victim.marks]
        overhear = text(
            f"SELECT FROM {quote(table.name)} AS t WHERE ctid = ANY (CAST(:places AS tid[]))"
            " AND pg_temp.overhear(CAST(t AS text))"
        )

        def listen(connection: Connection) -> Attempt:
            connection.exec_driver_sql(LISTENER)
            connection.execute(set_local({"app.heard": ""}))
            connection.execute(overhear, {"places": places})
            heard = connection.scalar(select(func.current_setting("app.heard"))) or ""
            return Attempt(rows=sum(mark in heard for mark in marks))

        return self._attempt(who, role, listen)

    def try_prepared(self, table: Guarded, who: Intruder, role: str, victim: Party) -> Attempt:
        """Try a statement that was prepared, and run, within the scope of a victim."""
        keys = victim.keys[table.name]
        statement = (
            f"SELECT FROM {quote(table.name)} WHERE {quote(table.key or '')}"
            f" = ANY ('{{{','.join(map(str, keys))}}}')"
        )
        name = f"rehearsal_{uuid4().hex}"

        def execute(connection: Connection) -> Attempt:
            connection.exec_driver_sql(f"PREPARE {name} AS {statement}")
            connection.exec_driver_sql(f"EXECUTE {name}")
            self._become(self._settings(who, role))
            found = connection.exec_driver_sql(f"EXECUTE {name}").rowcount
            connection.exec_driver_sql(f"DEALLOCATE {name}")
            return Attempt(rows=found)

        return self._attempt(Intruder(victim.name, victim.settings), role, execute)

    def look_around(
        self,
        who: Intruder,
        role: str,
        parties: Sequence[Party],
        shared: Party,
        only: Container[str] | None = None,
    ) -> dict[str, Attempt]:
        """Read all that tables, views, functions and statistics show to a login of the parties.

        Compared before and after others have written, it must be the same. Of a table or view that
        says whose its rows are, those of the parties are read; of any other view, all.

        Args:
            who: Who looks.
            role: As which role.
            parties: Whose rows are read, and whose keys and scopes functions are called with.
            shared: Whose rows everybody reads.
            only: What is asked, of what is asked otherwise.

        Returns:
            What was asked → the answer, condensed, or its refusal. Calls of a function are told
            apart by what follows its ``()``.
        """
        tables = self.list_guarded()
        guarded = [table.name for table in tables]
        owners = _name_owners(parties)
        asked: dict[str, tuple[str, dict[str, Any]]] = {}
        for table in tables:
            keys = [key for who in (*parties, shared) for key in who.keys.get(table.name, ())]
            by_key = [f"{quote(table.key)} = ANY (:keys)"] if table.key and keys else []
            source = _select_any(table.name, [*_list_owners(table.scope_columns), *by_key])
            asked[table.name] = (_condense(source), {**owners, "keys": keys})
        for view in self.list_views(guarded):
            source = _select_any(view.name, _list_owners(view.scope_columns))
            asked[view.name] = (_condense(source), owners)
        for name, statement in STATISTICS.items():
            asked[name] = (statement, {"tables": guarded})
        for function in self.list_functions():
            for number, arguments in enumerate(_calls(function, guarded, parties)):
                call = ", ".join(f"CAST(:a{n} AS {t})" for n, t in enumerate(function.arguments))
                values = {f"a{n}": value for n, value in enumerate(arguments)}
                statement = _condense(f"{function.name}({call})")
                asked[f"{function.name}() {number}"] = (statement, values)
        return {
            name: self._attempt(who, role, partial(_read, statement, values))
            for name, (statement, values) in asked.items()
            if only is None or name in only
        }

    def _attempt(self, who: Intruder, role: str, act: Callable[[Connection], Attempt]) -> Attempt:
        """Act as an intruder, and roll it back; once the time is over, leave it."""
        if self.is_late():
            return UNTRIED
        with self._savepoint(who, role) as connection:
            try:
                return act(connection)
            except (DBAPIError, psycopg.Error) as error:
                cause = error.orig if isinstance(error, DBAPIError) else error
                if isinstance(cause, QueryCanceled):
                    return UNTRIED
                if isinstance(error, DBAPIError) and error.connection_invalidated:
                    raise
                refusal = getattr(cause, "sqlstate", None) or "unknown"
                return Attempt(refusal=refusal, said=str(cause))

    def _savepoint(self, who: Intruder | None = None, role: str | None = None) -> _Savepoint:
        return _Savepoint(self, None if who is None else self._settings(who, role or "none"))

    @staticmethod
    def _settings(who: Intruder, role: str) -> dict[str, str]:
        return {**dict.fromkeys(CHOSEN, ""), **who.settings, "role": role}

    def _become(self, settings: Mapping[str, str]) -> None:
        """Set the scope and role of the transaction.

        The role is set last: it may lack the right to set the others.
        """
        ordered = sorted(settings.items(), key=lambda each: each[0] == "role")
        becoming = set_local(dict(ordered))
        try:
            self.session.connection().execute(becoming)
        except DBAPIError as error:
            if isinstance(error.orig, InsufficientPrivilege):
                role = settings["role"]
                raise NotPermitted(
                    f"the login must be able to become {role} to verify it; allow it with: "
                    f"GRANT {quote(role)} TO the login that verifies, or verify as a superuser"
                ) from error
            raise


class _Savepoint:
    """A savepoint that is always rolled back, with the scope and role within it."""

    def __init__(self, repository: IsolationRepository, settings: Mapping[str, str] | None) -> None:
        self._repository = repository
        self._settings = settings

    def __enter__(self) -> Connection:
        connection = self._repository.session.connection()
        self._savepoint = connection.begin_nested()
        if self._settings is not None:
            self._repository._become(self._settings)  # noqa: SLF001 - the other half of this class
        return connection

    def __exit__(self, *_: object) -> None:
        self._savepoint.rollback()


def _calls(
    function: Function, tables: Sequence[str], parties: Sequence[Party]
) -> Iterator[tuple[Any, ...]]:
    """Yield arguments with which a function could be made to tell of others."""
    tables_of_keys = ("memory_nodes", "chunks")
    keys = [str(k) for each in parties for of in tables_of_keys for k in each.keys.get(of, [])[:1]]
    texts = [str(each.scope) for each in parties] + keys + ["memory", "documentation", "chunks"]
    values: dict[str, list[Any]] = {
        "uuid": [each.user_id for each in parties] + keys,
        "integer": [1000],
        "bigint": [1000],
        "regclass": [name for name in tables if "mem" in name or "chunk" in name] + INDEXES,
        "name": ["memory_search", "chunk_search", "tsvector_to_array", "language"],
        "jsonb": ["{}"],
        "boolean": [True],
    }
    choices = [
        texts if kind in {"text", "character varying"} else values.get(kind, [None])
        for kind in function.arguments
    ]
    yield from islice(product(*choices), MOST_CALLS)
    # each value of each argument at least once
    yield from islice(zip(*map(cycle, choices), strict=False), max(map(len, choices), default=0))
    usual = tuple(values[0] for values in choices)
    for place, kind in enumerate(function.arguments):
        for hostile in HOSTILE.get(kind, (None,)):
            yield (*usual[:place], hostile, *usual[place + 1 :])


def _count_rows(statement: str, values: Mapping[str, Any], connection: Connection) -> Attempt:
    """Run a statement, and count the rows that it gives or writes."""
    return Attempt(rows=connection.execute(text(statement), dict(values)).rowcount)


def _read(statement: str, values: Mapping[str, Any], connection: Connection) -> Attempt:
    """Run a statement, and return what it says."""
    return Attempt(said=str(connection.execute(text(statement), dict(values)).scalar()))


def _list_owners(columns: Sequence[str]) -> list[str]:
    """List the conditions that a row is of one of some owners: ``scope`` tells all, if it is there.

    Args:
        columns: Those of ``SCOPE_COLUMNS`` that a table or view has.
    """
    telling = ["scope"] if "scope" in columns else columns
    return [f"{column} = ANY (:{column}s)" for column in telling]


def _name_owners(parties: Sequence[Party]) -> dict[str, list[Any]]:
    """Return the values of the conditions for some owners."""
    return {
        "scopes": [each.scope_name for each in parties],
        "tenant_ids": [each.tenant_id for each in parties if each.tenant_id is not None],
        "user_ids": [each.user_id for each in parties],
    }


def _select_any(name: str, conditions: Sequence[str]) -> str:
    """Select the rows that meet one of some conditions, each by its own index; all without one."""
    chosen = [f"SELECT * FROM {quote(name)} WHERE {each}" for each in conditions]  # noqa: S608 - names of the catalog
    return f"({' UNION ALL '.join(chosen)})" if chosen else quote(name)


def _condense(source: str) -> str:
    """Select the number of rows of a table or function, and a checksum over them."""
    return (
        "SELECT count(*) || ' rows, ' || coalesce(sum(CAST(hashtextextended(CAST(r AS text), 0)"  # noqa: S608 - names of the catalog
        f" AS numeric)), 0) FROM {source} AS r"
    )
