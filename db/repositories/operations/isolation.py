"""Attacks on row security: what an application could try to read or to change in other scopes.

What is tried here is tried in a transaction that is rolled back (``pgcorpus.db.rehearsal``), each
attempt in a savepoint of its own.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice, product
from typing import Any, Final, NamedTuple
from uuid import UUID, uuid4

import numpy as np
import psycopg
from psycopg.errors import InsufficientPrivilege, QueryCanceled
from psycopg.types.json import Jsonb
from sqlalchemy import Connection, func, select, text
from sqlalchemy.exc import DBAPIError

from pgcorpus.db.base import SHARED, set_local
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
from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.repositories.operations.probes import quote
from pgcorpus.db.scope import SETTINGS, Scope

MODEL: Final = "hashing"
"""The model of the rows' vectors: it needs no network."""

LAST_VERSION: Final = 2**31 - 1
"""The number of a learned ranking that no database has reached."""

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
    "whole table": "SELECT FROM {table} AS t WHERE CAST(t AS text) LIKE ANY (:marks)",
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
           coalesce(view.reloptions @> ARRAY['security_invoker=true'], false) AS as_invoker
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
    "text": (None, "", "'", "%' OR true --", "{", "(" * 1000, "x" * 1_000_000),
    "character varying": (None, "'", "x" * 1_000_000),
    "text[]": (None, [], [None], ["'", "(", "%"], ["x"] * 100_000),
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
    """A view that reads guarded tables, and whether with the rights of the asking role."""

    name: str
    as_invoker: bool


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
    """

    name: str
    scope: Scope | None
    user_id: UUID
    keys: dict[str, list[Any]]
    rows: dict[str, Any] = field(default_factory=dict)

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
    """

    rows: int = 0
    refusal: str | None = None
    said: str | None = None


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
    """Examines the guards of scoped tables, and attacks them. It never commits."""

    def list_guarded(self) -> list[Guarded]:
        """List every scoped table: those with row security, and those with a column of a scope."""
        found = self.session.execute(GUARDED, {"scope_columns": list(SCOPE_COLUMNS)})
        return [Guarded(*row) for row in found]

    def list_views(self, tables: Sequence[str]) -> list[View]:
        """List the views that read one of these tables, directly or by way of another view."""
        return [View(*row) for row in self.session.execute(REACHABLE, {"tables": list(tables)})]

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
                version=LAST_VERSION,
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

    def note_rows(self, who: Party, table: Guarded) -> None:
        """Note a party's rows of a table, those that triggers wrote included."""
        self.as_operator(who.scope)
        key = quote(table.key or "")
        whose = {
            "scope": who.scope_name,
            "tenant_id": who.tenant_id,
            "user_id": who.user_id,
            "keys": who.keys.get(table.name, []),
        }
        conditions = [f"{column} = :{column}" for column in table.scope_columns]
        if table.name in who.keys:  # whatever its columns and policies say
            conditions = [f"{key} = ANY (:keys)"]
        found = self.session.execute(
            text(
                f"SELECT {key} AS key, to_jsonb(t) AS row FROM {quote(table.name)} AS t"  # noqa: S608 - names of the catalog
                f" WHERE {' OR '.join(conditions) or 'false'}"
            ),
            whose,
        ).all()
        who.keys[table.name] = [row.key for row in found]
        if found:
            who.rows[table.name] = found[0].row

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
            "marks": [f"%{mark}%" for victim in victims for mark in victim.marks],
            "rows": [Jsonb(v.rows[table.name]) for v in victims if table.name in v.rows],
        }
        return self._attempt(statement, values, who, role)

    def try_insert(self, table: Guarded, who: Intruder, role: str, victim: Party) -> Attempt:
        """Try to write a row of a victim: one it had, after it was taken away."""
        columns = ", ".join(map(quote, table.columns))
        name, key = quote(table.name), quote(table.key or "")
        with self._savepoint() as connection:
            self.as_operator(victim.scope)
            own = text(f"DELETE FROM {name} WHERE {key} = :key")  # noqa: S608 - names of the catalog
            connection.execute(own, {"key": victim.keys[table.name][0]})
            return self._attempt(
                f"INSERT INTO {name} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns}"  # noqa: S608 - names of the catalog
                f" FROM jsonb_populate_record(NULL::{name}, CAST(:row AS jsonb))",
                {"row": Jsonb(victim.rows[table.name])},
                who,
                role,
            )

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
            yield self._attempt(
                f"UPDATE {quote(table.name)} SET {changes} WHERE {quote(table.key or '')}"  # noqa: S608 - names of the catalog
                " = ANY (:keys)",
                {**new, "keys": list(keys)},
                Intruder(who.name, who.settings),
                role,
            )

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
                yield self._attempt(
                    f"UPDATE {quote(table.name)} SET {changes} WHERE {quote(table.key or '')}"  # noqa: S608 - names of the catalog
                    " = ANY (:own_keys)",
                    {**{name: values[name] for name in names}, "own_keys": who.keys[table.name]},
                    Intruder(who.name, who.settings),
                    role,
                )

    def try_copy(self, table: Guarded, who: Intruder, role: str, marks: Sequence[str]) -> Attempt:
        """Try COPY TO, and count the lines of others."""
        with self._savepoint(who, role) as connection:
            driver: Any = connection.connection.driver_connection
            try:
                with driver.cursor().copy(f"COPY {quote(table.name)} TO STDOUT") as copy:
                    lines = b"".join(copy).decode().splitlines()
            except psycopg.Error as error:
                return Attempt(refusal=error.sqlstate)
        return Attempt(rows=sum(any(mark in line for mark in marks) for line in lines))

    def try_copy_from(self, table: Guarded, who: Intruder, role: str) -> Attempt:
        """Try COPY FROM, which would bypass the policies."""
        with self._savepoint(who, role) as connection:
            driver: Any = connection.connection.driver_connection
            try:
                with driver.cursor().copy(f"COPY {quote(table.name)} FROM STDIN"):
                    pass
            except psycopg.Error as error:
                return Attempt(refusal=error.sqlstate)
        return Attempt(rows=1)

    def try_truncate(self, table: Guarded, role: str) -> Attempt:
        """Return whether the role may TRUNCATE; it is not tried, which would lock the table."""
        may = select(func.has_table_privilege(role, quote(table.name), "TRUNCATE"))
        return Attempt(rows=1) if self.session.scalar(may) else Attempt(refusal="42501")

    def try_listening(
        self, table: Guarded, who: Intruder, role: str, marks: Sequence[str]
    ) -> Attempt:
        """Try to have a function of one's own see the rows of others."""
        with self._savepoint(who, role) as connection:
            try:
                connection.exec_driver_sql(LISTENER)
                connection.execute(set_local({"app.heard": ""}))
                connection.exec_driver_sql(
                    f"SELECT FROM {quote(table.name)} AS t WHERE pg_temp.overhear(CAST(t AS text))"
                )
            except DBAPIError as error:
                return Attempt(refusal=_sqlstate(error))
            heard = connection.scalar(select(func.current_setting("app.heard"))) or ""
        return Attempt(rows=sum(mark in heard for mark in marks))

    def try_prepared(self, table: Guarded, who: Intruder, role: str, victim: Party) -> Attempt:
        """Try a statement that was prepared, and run, within the scope of a victim."""
        keys = victim.keys[table.name]
        statement = (
            f"SELECT FROM {quote(table.name)} WHERE {quote(table.key or '')}"
            f" = ANY ('{{{','.join(map(str, keys))}}}')"
        )
        name = f"rehearsal_{uuid4().hex}"
        with self._savepoint(Intruder(victim.name, victim.settings), role) as connection:
            try:
                connection.exec_driver_sql(f"PREPARE {name} AS {statement}")
                connection.exec_driver_sql(f"EXECUTE {name}")
                self._become(self._settings(who, role))
                found = connection.exec_driver_sql(f"EXECUTE {name}").rowcount
                connection.exec_driver_sql(f"DEALLOCATE {name}")
            except DBAPIError as error:
                return Attempt(refusal=_sqlstate(error))
        return Attempt(rows=found)

    def look_around(
        self,
        who: Intruder,
        role: str,
        parties: Sequence[Party],
        only: Container[str] | None = None,
    ) -> dict[str, Attempt]:
        """Read all that views, functions, statistics and whole tables show to a login.

        Compared before and after others have written, it must be the same.

        Args:
            who: Who looks.
            role: As which role.
            parties: Whose keys and scopes functions are called with.
            only: What is asked, of what is asked otherwise.

        Returns:
            What was asked → the answer, condensed, or its refusal. Calls of a function are told
            apart by what follows its ``()``.
        """
        guarded = [table.name for table in self.list_guarded()]
        asked: dict[str, tuple[str, dict[str, Any]]] = {}
        for name in (*guarded, *(view.name for view in self.list_views(guarded))):
            asked[name] = (_condense(quote(name)), {})
        for name, statement in STATISTICS.items():
            asked[name] = (statement, {"tables": guarded})
        for function in self.list_functions():
            for number, arguments in enumerate(_calls(function, guarded, parties)):
                call = ", ".join(f"CAST(:a{n} AS {t})" for n, t in enumerate(function.arguments))
                values = {f"a{n}": value for n, value in enumerate(arguments)}
                statement = _condense(f"{function.name}({call})")
                asked[f"{function.name}() {number}"] = (statement, values)
        return {
            name: self._attempt(statement, values, who, role, read=True)
            for name, (statement, values) in asked.items()
            if only is None or name in only
        }

    def _attempt(
        self,
        statement: str,
        values: Mapping[str, Any],
        who: Intruder,
        role: str,
        *,
        read: bool = False,
    ) -> Attempt:
        """Run a statement as an intruder, and roll it back."""
        with self._savepoint(who, role) as connection:
            try:
                result = connection.execute(text(statement), dict(values))
            except DBAPIError as error:
                if error.connection_invalidated or isinstance(error.orig, QueryCanceled):
                    raise
                return Attempt(refusal=_sqlstate(error), said=str(error.orig) if read else None)
            return Attempt(said=str(result.scalar())) if read else Attempt(rows=result.rowcount)

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


def _condense(source: str) -> str:
    """Select the number of rows of a table or function, and a checksum over them."""
    return (
        "SELECT count(*) || ' rows, ' || coalesce(sum(CAST(hashtextextended(CAST(r AS text), 0)"  # noqa: S608 - names of the catalog
        f" AS numeric)), 0) FROM {source} AS r"
    )


def _sqlstate(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or "unknown"
