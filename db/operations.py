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
        )
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
        yield from isolate_v1(table)
        return
    yield f"CREATE INDEX idx_{table}_model ON {table} (model_name)"
    for model, dimensions in models.items():
        slug = "".join(c if c.isalnum() and c.isascii() else "_" for c in model.lower())
        yield f"""
            CREATE INDEX {table}_hnsw_{slug} ON {table}
            USING hnsw ((embedding::halfvec({dimensions})) halfvec_cosine_ops)
            WITH (m = 16, ef_construction = 64) WHERE model_name = '{model}'
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
            is then the first column of their primary key.
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


@operation
def isolate_v1(
    table: str, *, policies: Mapping[str, str] = _OWN_SCOPE, administered: bool = False
) -> Iterator[str]:
    """Show and take rows of the transaction's scope alone, by row security, from the owner too.

    Args:
        table: A table with the column ``scope``, a text as ``app_scope()`` gives it.
        policies: Name → rule, where ``own_scope`` alone will not do. Of several that are not
            RESTRICTIVE one is enough. A rule may say ``{in_scope}``: the row is of the
            transaction's scope, asked before any condition of the caller; an equality beside it
            lets an index serve. ``{owner}``: the owner of the table asks.
        administered: Whether members of ``rag_admin`` see and write the rows of all scopes.
    """
    yield f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"
    yield f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY"
    if administered:
        yield f"CREATE POLICY administration ON {table} TO rag_admin USING (true)"
    for name, rule in policies.items():
        condition = rule.replace("{in_scope}", _IN_SCOPE).replace("{owner}", _OWNER)
        yield f"CREATE POLICY {name} ON {table} {condition.replace('{table}', table)}"


@operation
def stop_isolating_v1(
    table: str, *, policies: Collection[str] = ("own_scope",), administered: bool = False
) -> Iterator[str]:
    """Take back ``isolate_v1``: every role that may read the table then sees all rows.

    Args:
        table: The table.
        policies: The names of its policies.
        administered: As it was isolated.
    """
    for name in (*policies, *(["administration"] if administered else [])):
        yield f"DROP POLICY {name} ON {table}"
    yield f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY"
    yield f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY"
