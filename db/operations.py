"""Alembic operations for revisions, ours and those of applications with a corpus of their own.

Importing this module in ``env.py`` registers them: ``op.create_embedding_table_v1(...)``. Each
takes plain data and no models, since the models of next year must not change what a revision did,
and each has an operation that takes it back. Names of tables and columns are plain: lower case,
without quotes. An application's revisions run after ``pgcorpus db upgrade``, which makes the
functions and roles that operations name.

Each is frozen by its suffix: once released, its statements stay as they are, and what they should
have been is ``_v2``. A checksum guards them (``tests/migrations/test_operations.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, ParamSpec

from alembic.operations import MigrateOperation, Operations
from sqlalchemy import text

P = ParamSpec("P")
Operation = Callable[P, Iterator[str]]

OPERATIONS: Final[dict[str, Operation[...]]] = {}
"""Every operation by its name."""

_GROUPS: Final = "rag_read_only, rag_read_write, rag_admin"


@dataclass
class Statements(MigrateOperation):
    """Statements that Alembic runs one after the other, or prints."""

    statements: Iterator[str]


@Operations.implementation_for(Statements)
def _run(operations: Operations, asked: Statements) -> None:
    for statement in asked.statements:
        # Not a parameter: a colon is a cast, or stands in a comment.
        operations.execute(text(statement.replace(":", r"\:")))


def operation(function: Operation[P]) -> Operation[P]:
    """Register *function* under its own name: ``op.<name>(...)`` runs the statements it yields."""
    name = function.__name__

    def invoke(
        cls: type[Statements],
        operations: Operations,
        *arguments: Any,
        **named: Any,
    ) -> None:
        operations.invoke(cls(function(*arguments, **named)))

    invoke.__name__, invoke.__doc__ = name, function.__doc__
    setattr(Statements, name, classmethod(invoke))
    Operations.register_operation(name)(Statements)
    OPERATIONS[name] = function
    return function


# ----------------------------------------------------------------------------------- columns


@operation
def comment_columns_v1(table: str, comments: Mapping[str, str | None]) -> Iterator[str]:
    """Say what columns hold, where their names do not.

    Args:
        table: Their table.
        comments: Column → what it holds, or None to take the comment back.
    """
    for column, comment in comments.items():
        quoted = "NULL" if comment is None else "'" + comment.replace("'", "''") + "'"
        yield f"COMMENT ON COLUMN {table}.{column} IS {quoted}"


@operation
def limit_times_v1(table: str, *columns: str) -> Iterator[str]:
    """Refuse times that a reader in Python could not read, by the constraint ``readable_times``.

    Args:
        table: The table.
        columns: Its columns of type ``timestamptz``. They hold years 2 to 9998 alone, so that the
            time is readable in every time zone.
    """
    readable = " AND ".join(
        f"{column} BETWEEN to_timestamp(-62104060800) AND to_timestamp(253370764800)"
        for column in columns
    )
    yield f"ALTER TABLE {table} ADD CONSTRAINT readable_times CHECK ({readable})"


@operation
def stop_limiting_times_v1(table: str) -> Iterator[str]:
    """Take back ``limit_times_v1``.

    Args:
        table: The table.
    """
    yield f"ALTER TABLE {table} DROP CONSTRAINT readable_times"


@operation
def keep_updated_at_v1(table: str) -> Iterator[str]:
    """Set ``updated_at`` to the time of the transaction whenever a row changes.

    Args:
        table: A table with the column ``updated_at``.
    """
    yield f"""
        CREATE TRIGGER set_updated_at BEFORE UPDATE ON {table}
        FOR EACH ROW EXECUTE FUNCTION set_updated_at()
    """


@operation
def stop_keeping_updated_at_v1(table: str) -> Iterator[str]:
    """Take back ``keep_updated_at_v1``.

    Args:
        table: The table.
    """
    yield f"DROP TRIGGER set_updated_at ON {table}"


@operation
def sample_columns_v1(target: int, table: str, *columns: str) -> Iterator[str]:
    """Set how many values of a column ANALYZE keeps.

    Args:
        target: The statistics target. 0: nothing is sampled, and EXPLAIN can tell nothing of what
            the rows of other scopes hold. 2000: of a ``tsvector`` some 13,000 words are kept, by
            whose rarity a search ranks. -1: the default again.
        table: The table.
        columns: Its columns.
    """
    for column in columns:
        yield f"ALTER TABLE {table} ALTER COLUMN {column} SET STATISTICS {target}"


# -------------------------------------------------------------------------------- embeddings

MODELS_V1: Final[Mapping[str, int]] = MappingProxyType(
    {
        "text-embedding-3-large": 3072,
        "text-embedding-3-small": 1536,
        "bge-m3": 1024,
        "all-MiniLM-L6-v2": 384,
        "hashing": 384,
    }
)
"""The models that the first revision registers → length of their vectors."""


@operation
def create_embedding_table_v1(
    table: str,
    *,
    item: str,
    passages: str,
    key: str = "id",
    scoped: bool = False,
    shared: bool = False,
    models: Mapping[str, int] = MODELS_V1,
) -> Iterator[str]:
    """Create the table that holds the vectors of a corpus, one for each passage and model.

    A vector's length is its model's, by a foreign key to the registry. Vectors go with their
    passage. The indexes of vectors are called ``<table>_hnsw_<model>``.

    Args:
        table: Name of the new table.
        item: Name of its column that tells the passage.
        passages: The table of the passages.
        key: The passages' key, a ``uuid``: their primary key, or with a scope the second column of
            it or of a unique constraint.
        scoped: Whether each passage is a tenant's or a user's, as its column ``scope`` says. The
            vectors then have it, too, as the first column of each key, so that no key spans two
            scopes; row security, as of ``isolate_v1``; and no index of vectors: how many of others'
            an index passes over would tell how near they are. A large scope gets one of its own.
        shared: Whether passages of the scope ``shared`` are everybody's. Their vectors have
            indexes, and are written by whoever may write to the table: a worker need not be an
            administrator. Only administrators delete them.
        models: Registered models that are given an HNSW index of ``halfvec`` → length of their
            vectors, at most 4,000.
    """
    whose, mark = ("scope, ", "scope_") if scoped else ("", "")
    yield f"""
        CREATE TABLE {table} (
            id uuid NOT NULL DEFAULT gen_random_uuid(),
            {item} uuid NOT NULL,
            {"scope text NOT NULL," if scoped else ""}
            model_name varchar(100) NOT NULL,
            embedding vector NOT NULL,
            dimensions integer NOT NULL GENERATED ALWAYS AS (vector_dims(embedding)) STORED,
            content_hash bytea NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT pk_{table} PRIMARY KEY ({whose}id),
            CONSTRAINT uq_{table}_{mark}{item}_model_name UNIQUE ({whose}{item}, model_name),
            CONSTRAINT fk_{table}_{mark}{item} FOREIGN KEY ({whose}{item})
                REFERENCES {passages} ({whose}{key}) ON DELETE CASCADE,
            CONSTRAINT valid_model_name
                FOREIGN KEY (model_name) REFERENCES embedding_models (name),
            CONSTRAINT valid_embedding_dimensions
                FOREIGN KEY (model_name, dimensions) REFERENCES embedding_models (name, dimensions),
            CONSTRAINT nonzero_embedding CHECK (vector_norm(embedding) > 0)
        ) WITH (toast_tuple_target = 8160)
    """
    yield from comment_columns_v1(
        table,
        {
            "model_name": "model that made the vector",
            "embedding": "compared by cosine distance",
            "dimensions": "length of the vector",
            "content_hash": "SHA-256 of the text that was embedded",
        },
    )
    # No query is planned by how vectors are distributed, and reading them takes most of an ANALYZE.
    yield from sample_columns_v1(0, table, "embedding")
    yield from keep_updated_at_v1(table)
    if scoped:
        yield from sample_columns_v1(0, table, "content_hash")
        yield from sample_columns_v1(2000, table, "scope")
        yield f"CREATE INDEX idx_{table}_scope ON {table} (scope, model_name)"
        yield from isolate_v1(table, policies=_VECTORS_OF_SHARED if shared else _OWN_SCOPE)
        if not shared:
            return
        # Whoever may move a vector to a passage of their own has taken it from the shared one.
        yield f"REVOKE UPDATE ON {table} FROM rag_read_write"
        yield f"GRANT UPDATE (embedding, content_hash, created_at) ON {table} TO rag_read_write"
    else:
        yield f"CREATE INDEX idx_{table}_model ON {table} (model_name)"
    of_shared = " AND scope = 'shared'" if shared else ""
    for model, dimensions in models.items():
        slug = "".join(c if c.isalnum() and c.isascii() else "_" for c in model.lower())
        yield f"""
            CREATE INDEX {table}_hnsw_{slug} ON {table}
            USING hnsw ((embedding::halfvec({dimensions})) halfvec_cosine_ops)
            WITH (m = 16, ef_construction = 64) WHERE model_name = '{model}'{of_shared}
        """


@operation
def drop_embedding_table_v1(table: str) -> Iterator[str]:
    """Take back ``create_embedding_table_v1``, with all vectors.

    Args:
        table: The table of vectors.
    """
    yield f"DROP TABLE {table}"


@operation
def enqueue_embeddings_v1(
    table: str, *, corpus: str, embedded: str, key: str = "id", scoped: bool = False
) -> Iterator[str]:
    """Enqueue a job for each passage that is new or whose text has changed.

    The job is in the same transaction as the passage, whoever writes it. A statement makes one
    INSERT of jobs. Passages that the table holds already are enqueued by ``pgcorpus models
    backfill``.

    Args:
        table: The table of the passages.
        corpus: The name of the corpus.
        embedded: The columns whose text is embedded, separated by commas.
        key: The passages' key, a ``uuid``.
        scoped: Whether each passage is a tenant's or a user's, as its column ``scope`` says, which
            is then the first column of their primary key. A job of a passage that is everybody's
            has no scope.
    """
    arguments = ", ".join(f"'{each}'" for each in (corpus, embedded, key))
    if scoped:
        arguments += ", 'scope'"
    enqueue = f"EXECUTE FUNCTION enqueue_embedding({arguments})"
    yield f"""
        CREATE TRIGGER enqueue_embedding_of_new AFTER INSERT ON {table}
        REFERENCING NEW TABLE AS current FOR EACH STATEMENT {enqueue}
    """
    yield f"""
        CREATE TRIGGER enqueue_embedding_of_changed AFTER UPDATE ON {table}
        REFERENCING OLD TABLE AS former NEW TABLE AS current FOR EACH STATEMENT {enqueue}
    """


@operation
def stop_enqueuing_embeddings_v1(table: str) -> Iterator[str]:
    """Take back ``enqueue_embeddings_v1``. Jobs that are in the queue stay there.

    Args:
        table: The table of the passages.
    """
    for written in ("new", "changed"):
        yield f"DROP TRIGGER enqueue_embedding_of_{written} ON {table}"


@dataclass(frozen=True)
class _Covered:
    """A corpus in the view ``embedding_coverage``.

    Attributes:
        corpus: Its name.
        passages: Its table of passages.
        vectors: Its table of vectors.
        item: The column of vectors that tells the passage.
        embedded: The expression of what is embedded of a passage.
        key: The passages' key.
        scoped: Whether both tables have a ``scope``.
    """

    corpus: str
    passages: str
    vectors: str
    item: str
    embedded: str
    key: str = "id"
    scoped: bool = False

    def select(self) -> str:
        """Write the SELECT that counts the passages with vectors of the active model."""
        scopes = "vector.scope = passage.scope AND " if self.scoped else ""
        return f"""
            SELECT corpus, active_model AS model_name, total, embedded,
                   CASE total WHEN 0 THEN 100 ELSE round(100.0 * embedded / total, 1) END
                       AS percent,
                   stale
            FROM corpus_settings CROSS JOIN LATERAL (
                SELECT count(*) AS total, count(*) FILTER (WHERE fresh) AS embedded,
                       count(*) FILTER (WHERE NOT fresh) AS stale
                FROM (
                    SELECT content_hash = sha256(convert_to({self.embedded}, 'UTF8')) AS fresh
                    FROM {self.passages} AS passage LEFT JOIN {self.vectors} AS vector
                        ON {scopes}vector.{self.item} = passage.{self.key}
                            AND model_name = active_model
                ) AS compared
            ) AS counted
            WHERE corpus = '{self.corpus}'
        """


@operation
def create_coverage_v1(*covered: Mapping[str, Any]) -> Iterator[str]:
    """Create the view ``embedding_coverage``: passages and vectors of each corpus.

    Args:
        covered: Each corpus that it has: ``corpus``, its name; ``passages`` and ``vectors``, its
            tables; ``item``, the column of vectors that tells the passage; ``embedded``, the
            expression of what is embedded; ``key`` of the passages, where that is not ``id``;
            ``scoped``, where both tables have a ``scope``.
    """
    parts = " UNION ALL ".join(_Covered(**each).select() for each in covered)
    yield f"CREATE VIEW embedding_coverage WITH (security_invoker = true) AS {parts}"
    yield f"REVOKE ALL ON embedding_coverage FROM {_GROUPS}"
    yield f"GRANT SELECT ON embedding_coverage TO {_GROUPS}"


@operation
def drop_coverage_v1() -> Iterator[str]:
    """Take back ``create_coverage_v1``."""
    yield "DROP VIEW embedding_coverage"


# ------------------------------------------------------------------------- safety: audit, scopes


@operation
def audit_v1(
    table: str, *, key: str = "id", hashed: str = "", left_out: str = "updated_at"
) -> Iterator[str]:
    """Record every change of a row in ``security_audit_log``, one INSERT for each statement.

    Args:
        table: The table.
        key: The columns that tell its rows apart, separated by commas, without spaces.
        hashed: Columns of which the log holds only a keyed hash, separated so, too: the texts of
            users and what identifies them. Vectors always are.
        left_out: Columns of which the log holds nothing, since they follow from others or say
            nothing.
    """
    for event, transition in {
        "INSERT": "REFERENCING NEW TABLE AS current",
        "UPDATE": "REFERENCING OLD TABLE AS former NEW TABLE AS current",
        "DELETE": "REFERENCING OLD TABLE AS former",
        "TRUNCATE": "",
    }.items():
        yield f"""
            CREATE TRIGGER audit_{event.lower()} AFTER {event} ON {table} {transition}
            FOR EACH STATEMENT EXECUTE FUNCTION audit_rows('{key}', '{hashed}', '{left_out}')
        """


@operation
def stop_auditing_v1(table: str) -> Iterator[str]:
    """Take back ``audit_v1``. What was recorded stays in the log.

    Args:
        table: The table.
    """
    for event in ("truncate", "delete", "update", "insert"):
        yield f"DROP TRIGGER audit_{event} ON {table}"


# The planner asks conditions that are known not to leak before a policy where they are cheaper, and
# counts a query that reads no column among them, which may well fail. It also moves an equality
# behind them all. So a policy begins with a look-up by subscript, which costs nothing and stays in
# its place, and has the equality beside it for the index. app_scope() is asked once for each
# statement and not for each row.
_IN_SCOPE: Final = (
    "((SELECT CASE WHEN app_scope() IS NOT NULL THEN jsonb_build_object(app_scope(), true) END))"
    "[scope] IS NOT NULL"
)
_OWNER: Final = (
    "(SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = '{table}'::regclass)"
)
_OWN_SCOPE: Final = MappingProxyType(
    {
        "own_scope": "USING ({in_scope} AND scope = (SELECT app_scope()))"
        " WITH CHECK (scope = (SELECT app_scope()))"
    }
)


_READABLE: Final = (
    "((SELECT CASE WHEN app_scope() IS NULL THEN jsonb_build_object('shared', true)"
    " ELSE jsonb_build_object('shared', true, app_scope(), true) END))[scope] IS NOT NULL"
)
_ADMINISTRATOR: Final = f"((SELECT pg_has_role('rag_admin', 'USAGE')) OR {_OWNER})"
_WRITABLE: Final = "(scope = (SELECT app_scope()) OR (scope = 'shared' AND {administrator}))"
_MARKS: Final = MappingProxyType(
    {
        "in_scope": _IN_SCOPE,
        "readable": _READABLE,
        "administrator": _ADMINISTRATOR,
        "owner": _OWNER,
    }
)
_SHARED_OR_OWN: Final = MappingProxyType(
    {
        "shared_or_own": "FOR SELECT USING"
        " ({readable} AND scope = ANY (ARRAY['shared', (SELECT app_scope())]))",
        "write_own": f"FOR INSERT WITH CHECK {_WRITABLE}",
        "update_own": f"FOR UPDATE USING ({{readable}} AND {_WRITABLE}) WITH CHECK {_WRITABLE}",
        "delete_own": f"FOR DELETE USING ({{readable}} AND {_WRITABLE})",
    }
)

_VECTORS_OF_SHARED: Final = MappingProxyType(
    {
        **_SHARED_OR_OWN,
        "write_own": "FOR INSERT WITH CHECK (scope = 'shared' OR scope = (SELECT app_scope()))",
        "update_own": "FOR UPDATE USING"
        " ({readable} AND scope = ANY (ARRAY['shared', (SELECT app_scope())]))",
    }
)


@operation
def isolate_v1(
    table: str,
    *,
    policies: Mapping[str, str] = _OWN_SCOPE,
    shared: bool = False,
    administered: bool = False,
) -> Iterator[str]:
    """Show and take rows of the transaction's scope alone, by row security, from the owner too.

    Args:
        table: A table with the column ``scope``, a text as ``app_scope()`` gives it.
        policies: Name → rule, where ``own_scope`` alone will not do. Of several that are not
            RESTRICTIVE one is enough. A rule may say ``{in_scope}``: the row is of the
            transaction's scope, asked before any condition of the caller; an equality beside it
            lets an index serve. ``{readable}``: the row is of that scope or ``shared``, likewise.
            ``{owner}``: the owner of the table asks. ``{administrator}``: the owner, or a member of
            ``rag_admin``.
        shared: Whether rows of the scope ``shared`` are everybody's to read, and administrators' to
            write; without a scope, a transaction then reads those. There are no other policies.
        administered: Whether members of ``rag_admin`` see and write the rows of all scopes.
    """
    yield f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"
    yield f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY"
    if administered:
        yield f"CREATE POLICY administration ON {table} TO rag_admin USING (true)"
    for name, rule in (_SHARED_OR_OWN if shared else policies).items():
        condition = rule
        for mark, meaning in _MARKS.items():
            condition = condition.replace(f"{{{mark}}}", meaning)
        yield f"CREATE POLICY {name} ON {table} {condition.replace('{table}', table)}"


@operation
def stop_isolating_v1(
    table: str,
    *,
    policies: Collection[str] = ("own_scope",),
    shared: bool = False,
    administered: bool = False,
) -> Iterator[str]:
    """Take back ``isolate_v1``: every role that may read the table then sees all rows.

    Args:
        table: The table.
        policies: The names of its policies.
        shared: As it was isolated; its policies are then named by that.
        administered: As it was isolated.
    """
    for name in (
        *(_SHARED_OR_OWN if shared else policies),
        *(["administration"] if administered else []),
    ):
        yield f"DROP POLICY {name} ON {table}"
    yield f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY"
    yield f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY"


# ------------------------------------------------------------------------- searches within a scope

_SEARCHER: Final = "('rag_search_' || current_database())::name"
_MADE: Final = "made by pgcorpus"

# How much searches are asked at once, by any role: words, pairs of words, groups of trigrams,
# characters of what is compared by trigrams, and metadata.
_MOST_WORDS: Final = 64
_MOST_PAIRS: Final = 200
_MOST_GROUPS: Final = 3
_MOST_CHARACTERS: Final = 300
_MOST_HELD: Final = 1000

# With little memory a bitmap keeps pages alone, and all rows of a page are asked again, those of
# others too. 256 MB are enough for some four million pages.
_AS_SEARCHER: Final = """
            RETURNS SETOF tid LANGUAGE sql STABLE PARALLEL SAFE SECURITY DEFINER
            SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
            SET max_parallel_workers_per_gather = 0 SET work_mem = '256MB'
"""


@dataclass(frozen=True)
class _Part:
    """The passages that have an index together: a transaction's own, or those that are shared.

    Attributes:
        name: In the names of its indexes.
        indexed: Its rows, as the indexes' WHERE; empty for all.
        condition: Its rows, as a search asks for them.
    """

    name: str
    indexed: str
    condition: str

    def keys(self, terms: str) -> str:
        """Write what is indexed of a row's terms."""
        return terms if self.name == "shared" else f"scope_keys(scope, {terms})"

    def ask(self, terms: str, scope: str = "(SELECT app_scope())") -> str:
        """Write what is looked for in it."""
        return terms if self.name == "shared" else f"scope_keys({scope}, {terms})"


# Not the bare column: an index on the scope would be read for all that it has.
_OWN: Final = _Part("scope", "", "scope || '' = (SELECT app_scope())")
_OTHERS: Final = _Part(
    "scope", "WHERE scope <> 'shared'", f"scope <> 'shared' AND {_OWN.condition}"
)
_SHARED: Final = _Part("shared", "WHERE scope = 'shared'", "scope = 'shared'")


@operation
def search_in_scope_v1(
    passages: str,
    *,
    words: str,
    shown: str,
    vectors: str,
    metadata: str | None = None,
    shared: bool = False,
) -> Iterator[str]:
    """Let indexes find words and trigrams under row security, of the scope alone.

    A condition of the caller's is asked only of rows that the policy lets through. What an index
    is asked before is asked in functions that take data and no expressions, owned by a role that
    nobody logs in as: ``<passages>_with_words``, ``<passages>_alike``, with free metadata
    ``<passages>_with_metadata`` and, for those who build indexes of vectors,
    ``<vectors>_large_scopes``. Their indexes are of words and trigrams together with the scope:
    what others have is not even passed over.

    Args:
        passages: A table that ``isolate_v1`` isolates.
        words: Its ``tsvector`` column.
        shown: The expression whose trigrams a search compares.
        vectors: Its table of vectors, made by ``create_embedding_table_v1``.
        metadata: Its ``jsonb`` column of free metadata, by which searches are narrowed, if any.
        shared: Whether passages of the scope ``shared`` are everybody's. Their words have an index
            of their own, of which ANALYZE keeps how rare they are: of nobody else's.
    """
    yield from sample_columns_v1(2000, passages, "scope")  # the size of each of many is known
    terms, trigrams = f"tsvector_to_array({words})", f"show_trgm({shown})"
    indexes = {"words": terms, "trigrams": trigrams}
    if metadata is not None:
        indexes["metadata"] = f"metadata_terms({metadata})"
    parts = (_SHARED, _OTHERS) if shared else (_OWN,)
    for part in parts:
        for kind, indexed in indexes.items():
            index = f"idx_{passages}_{part.name}_{kind}"
            keys = part.keys(indexed)
            yield f"CREATE INDEX {index} ON {passages} USING gin (({keys})) {part.indexed}"
            # Of an expression that is indexed a sample is kept as of a column.
            kept = 2000 if part is _SHARED and kind == "words" else 0
            yield f"ALTER INDEX {index} ALTER COLUMN 1 SET STATISTICS {kept}"
    yield from _become_searcher(passages, vectors)
    found = " UNION ".join(_find_words(passages, terms, part) for part in parts)
    yield from _create_search_function(
        f"{passages}_with_words(any_of text[], one text[], other text[])",
        f"{_AS_SEARCHER} BEGIN ATOMIC {found}; END",
        "addresses of the passages of the scope that hold any of some words, or both of a pair",
        to=_GROUPS,
    )
    found = " UNION ALL ".join(_find_alike(passages, trigrams, shown, part) for part in parts)
    yield from _create_search_function(
        f"{passages}_alike(words text, halves text[], threshold real, at_most integer)",
        f"{_AS_SEARCHER} BEGIN ATOMIC {_ASKED_TRIGRAMS} {found}; END",
        "addresses of the passages of the scope in which something is at least as alike",
        to=_GROUPS,
    )
    if metadata is not None:
        found = " UNION ALL ".join(
            _find_holding(passages, indexes["metadata"], part) for part in parts
        )
        yield from _create_search_function(
            f"{passages}_with_metadata(any_of jsonb, at_most integer)",
            f"{_AS_SEARCHER} BEGIN ATOMIC {found}; END",
            "addresses of the passages of the scope whose metadata have all values of one of some",
            to=_GROUPS,
        )
    yield from _create_search_function(
        f"{vectors}_large_scopes(more_than bigint)",
        f"""
            RETURNS TABLE (scope text, model_name text, vectors bigint)
            LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
            BEGIN ATOMIC
                SELECT each.scope, each.model_name, count(*) AS vectors
                FROM {vectors} AS each {_OTHERS.indexed if shared else ""}
                GROUP BY each.scope, each.model_name HAVING count(*) > more_than;
            END
        """,
        "how many vectors the largest scopes have, for those who build their indexes",
        to="rag_admin",
    )
    yield from _be_oneself_again()


@operation
def stop_searching_in_scope_v1(
    passages: str, *, vectors: str, metadata: bool = False, shared: bool = False
) -> Iterator[str]:
    """Take back ``search_in_scope_v1``.

    The role that searches ran as goes, too, where it has nothing left to do in any database, and
    was made by the operation.

    Args:
        passages: The table of the passages.
        vectors: Its table of vectors.
        metadata: Whether it was given a column of metadata.
        shared: As it was given.
    """
    parts = (_SHARED, _OTHERS) if shared else (_OWN,)
    kinds = ("words", "trigrams", "metadata") if metadata else ("words", "trigrams")
    indexes = [f"idx_{passages}_{part.name}_{kind}" for part in parts for kind in kinds]
    functions = [f"{passages}_with_words", f"{passages}_alike", f"{vectors}_large_scopes"]
    functions += [f"{passages}_with_metadata"] if metadata else []
    yield f"""
        DO $$
        DECLARE
            searcher CONSTANT regrole := (
                SELECT proowner FROM pg_proc WHERE oid = '{passages}_alike'::regproc);
            reason text;
        BEGIN
            DROP FUNCTION {", ".join(functions)};
            DROP POLICY search ON {passages};
            DROP POLICY search ON {vectors};
            DROP INDEX {", ".join(indexes)};
            EXECUTE 'REVOKE ALL ON {passages}, {vectors} FROM ' || searcher;
            IF EXISTS (SELECT FROM pg_proc WHERE proowner = searcher) THEN
                RETURN;  -- another corpus is searched as this role
            END IF;
            EXECUTE 'REVOKE ALL ON SCHEMA ' || quote_ident(current_schema())
                || ' FROM ' || searcher;
            IF shobj_description(searcher, 'pg_authid') = '{_MADE}' THEN
                BEGIN
                    EXECUTE 'DROP ROLE ' || searcher;
                EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN
                    GET STACKED DIAGNOSTICS reason = MESSAGE_TEXT;
                    RAISE NOTICE USING MESSAGE =
                        'the role ' || searcher || ' stays: ' || reason;
                END;
            END IF;
        END $$
    """
    yield from sample_columns_v1(-1, passages, "scope")


def _find_words(passages: str, terms: str, part: _Part) -> str:
    """Write the SELECT of a part's passages that hold any of some words, or both of a pair."""
    keys, asked = part.keys(terms), f"{passages}_with_words"  # a column may be called as they are
    any_of = f"{asked}.any_of[1:{_MOST_WORDS}]"
    return f"""
                SELECT ctid FROM {passages}
                WHERE {part.condition}
                    AND {keys} && (SELECT {part.ask(any_of, "app_scope()")})
                UNION
                SELECT found.ctid
                FROM (SELECT pair.one, array_agg(pair.other) AS others
                      FROM unnest({asked}.one[1:{_MOST_PAIRS}], {asked}.other[1:{_MOST_PAIRS}])
                          AS pair (one, other)
                      GROUP BY pair.one) AS pairs
                CROSS JOIN LATERAL (
                    SELECT ctid FROM {passages}
                    WHERE {part.condition}
                        AND {keys} && {part.ask("ARRAY[pairs.one]")}
                        AND {keys} && {part.ask("pairs.others")}
                ) AS found
    """


def _find_holding(passages: str, terms: str, part: _Part) -> str:
    """Write the SELECT of a part's passages that have all terms of one of some metadata.

    Metadata without a term find nothing: an index would be read for all that it has.
    """
    asked = f"{passages}_with_metadata"
    return f"""
                SELECT DISTINCT found.ctid
                FROM (SELECT metadata_terms(value) AS terms
                      FROM jsonb_path_query({asked}.any_of, '$[*]') AS value
                      LIMIT {_MOST_HELD}) AS held
                CROSS JOIN LATERAL (
                    SELECT ctid FROM {passages}
                    WHERE {part.condition}
                        AND {part.keys(terms)} @> {part.ask("held.terms", "app_scope()")}
                    LIMIT {asked}.at_most
                ) AS found
                WHERE held.terms <> '{{}}'
    """


# A text as alike as asked has most of the trigrams. So of each group of them that is larger than
# what may be missing it has at least one.
_ASKED_TRIGRAMS: Final = f"""
                WITH counted AS (
                    SELECT trigram,
                           row_number() OVER (ORDER BY starts_with(trigram, '  '), trigram) - 1
                               AS place,
                           count(*) OVER () - ceil(threshold * count(*) OVER () - 0.001) + 1
                               AS size,
                           count(*) OVER () AS trigrams
                    FROM unnest(show_trgm(left(words, {_MOST_CHARACTERS}))) AS trigram
                ), asked AS (
                    SELECT trigram, place,
                           least(greatest(floor(trigrams / size), 1), {_MOST_GROUPS})::integer
                               AS groups,
                           size * least(greatest(floor(trigrams / size), 1), {_MOST_GROUPS}) AS used
                    FROM counted
                )
"""


def _find_alike(passages: str, trigrams: str, shown: str, part: _Part) -> str:
    """Write the SELECT of a part's passages in which something is at least as alike."""

    def ask(group: int) -> str:
        of_group = f"place < used AND mod(place, groups) = mod({group}, groups)"
        asked = f"coalesce(array_agg(trigram) FILTER (WHERE {of_group}), '{{}}')"
        return f"(SELECT {part.ask(asked, 'app_scope()')} FROM asked)"

    groups = " AND ".join(f"{part.keys(trigrams)} && {ask(n)}" for n in range(_MOST_GROUPS))
    given = f"{passages}_alike"
    words, one, other = (
        f"left({given}.{each}, {_MOST_CHARACTERS})" for each in ("words", "halves[1]", "halves[2]")
    )
    # A half is looked for in a tenth of the time of a comparison, and first only within CASE.
    return f"""
                (SELECT ctid FROM {passages}
                WHERE {part.condition} AND {groups}
                    AND CASE
                        WHEN {given}.halves = '{{}}'
                            OR strpos(lower({shown}), lower({one})) > 0
                            OR strpos(lower({shown}), lower({other})) > 0
                        THEN word_similarity({words}, {shown}) >= {given}.threshold
                        ELSE false
                    END
                LIMIT {given}.at_most)
    """


def _become_searcher(passages: str, vectors: str) -> Iterator[str]:
    """Make the role that searches run as, let it read both tables, and go on as it."""
    yield f"""
        DO $$
        DECLARE
            searcher CONSTANT text := quote_ident({_SEARCHER});
            schema CONSTANT text := quote_ident(current_schema());
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {_SEARCHER}) THEN
                IF NOT (SELECT rolsuper OR rolcreaterole FROM pg_roles
                        WHERE rolname = current_user) THEN
                    RAISE insufficient_privilege USING MESSAGE = current_user
                        || ' may not make the role ' || searcher || '. A superuser makes it, with:'
                        || ' CREATE ROLE ' || searcher || ' NOLOGIN; GRANT ' || searcher
                        || ' TO ' || quote_ident(current_user);
                END IF;
                EXECUTE 'CREATE ROLE ' || searcher || ' NOLOGIN NOSUPERUSER NOCREATEDB'
                    || ' NOCREATEROLE NOBYPASSRLS NOINHERIT';
                EXECUTE 'COMMENT ON ROLE ' || searcher || ' IS ''{_MADE}''';
            ELSIF (SELECT rolcanlogin OR rolsuper OR rolbypassrls FROM pg_roles
                   WHERE rolname = {_SEARCHER}) THEN
                RAISE insufficient_privilege USING MESSAGE = 'the role ' || searcher
                    || ' must neither log in nor pass over row security: take that from it';
            END IF;
            EXECUTE 'GRANT USAGE, CREATE ON SCHEMA ' || schema || ' TO ' || searcher;
            EXECUTE 'GRANT SELECT ON {passages}, {vectors} TO ' || searcher;
            EXECUTE 'CREATE POLICY search ON {passages} FOR SELECT TO ' || searcher
                || ' USING (true)';
            EXECUTE 'CREATE POLICY search ON {vectors} FOR SELECT TO ' || searcher
                || ' USING (true)';
        END $$
    """
    yield f"""
        DO $$
        DECLARE
            searcher CONSTANT name := {_SEARCHER};
            old CONSTANT boolean := current_setting('server_version_num')::integer < 160000;
            may CONSTANT boolean :=
                pg_has_role(searcher, CASE WHEN old THEN 'MEMBER' ELSE 'SET' END);
            options CONSTANT text :=
                CASE WHEN old THEN '' ELSE 'WITH INHERIT FALSE, SET TRUE' END;
        BEGIN
            -- A superuser may, and who was made a member by one.
            PERFORM set_config('pgcorpus.became_member', (NOT may)::text, true);
            IF NOT may THEN
                EXECUTE 'GRANT ' || quote_ident(searcher) || ' TO CURRENT_USER ' || options;
            END IF;
            PERFORM set_config('pgcorpus.former_role', current_setting('role'), true),
                    set_config('pgcorpus.owner', current_user, true),
                    set_config('role', searcher, true);
        END $$
    """


def _create_search_function(signature: str, body: str, comment: str, *, to: str) -> Iterator[str]:
    """Create a function that runs as the role of searches."""
    name = signature.partition("(")[0]
    yield f"CREATE FUNCTION {signature} {body}"
    yield f"COMMENT ON FUNCTION {name} IS '{comment}'"
    yield f"REVOKE EXECUTE ON FUNCTION {name} FROM PUBLIC"
    yield f"GRANT EXECUTE ON FUNCTION {name} TO {to}"
    yield f"""
        DO $$ BEGIN
            EXECUTE 'GRANT EXECUTE ON FUNCTION {name} TO '
                || quote_ident(current_setting('pgcorpus.owner'));
        END $$
    """


def _be_oneself_again() -> Iterator[str]:
    """Go on as the role that ran the revision before."""
    yield f"""
        DO $$
        DECLARE
            searcher CONSTANT name := {_SEARCHER};
        BEGIN
            PERFORM set_config('role', current_setting('pgcorpus.former_role'), true);
            EXECUTE 'REVOKE CREATE ON SCHEMA ' || quote_ident(current_schema())
                || ' FROM ' || quote_ident(searcher);
            IF current_setting('pgcorpus.became_member')::boolean THEN
                EXECUTE 'REVOKE ' || quote_ident(searcher) || ' FROM CURRENT_USER';
            END IF;
        END $$
    """
