"""Everything this layer raises.

* DataLayerError
  x Misuse                     no other try can mend it: exit code 2 on the command line
    + SettingsError            a variable has a value that cannot be used
    + InvalidReference         what a person gave names no conversation
    + InvalidCursor            a page is asked for that no page of this list led to
    + InvalidCorpus            an application's corpus cannot be registered
  x DatabaseUnavailable        no connection within the retry time, or one that was lost
    + LoginRefused             the server answers, and refuses for good: login, database, TLS
    + TooManyConnections       the server, the database or the role has no connection left
  x DatabaseNotReady           connected, but a requirement or the schema is missing
  x EmbeddedServerError        the embedded PostgreSQL could not be started or stopped
  x DatabaseReadOnly           a standby, or a transaction that may not write
  x DatabaseExhausted          no disk, memory or other resource left; nothing was kept
  x StatementRefused           a refusal that this layer has no better words for
  x StatementTimeout         a statement was cancelled, or took longer than it may
  x TransactionConflict      another transaction was in the way; run the unit of work again
  x NotPermitted             the database role has no right to do this
  x UnsafeRole               the database role passes over row security
  x ConcurrentUse            two tasks use one unit of work
  x RoleInUse                something needs the login that is to be dropped
  x NotFound
  x ConstraintViolated
    + AlreadyExists            unique
    + MissingReference         foreign key
    + InvalidValue             check, not null, a value PostgreSQL cannot store
  x SearchError
    + EmptyQuestion  UnknownCorpus  UnknownFilter  InvalidFilter  MissingScope  InvalidSearch,
      each a Misuse, too
    + WrongDimensions
  x EmbeddingError
    + EmbedderUnavailable      the provider did not answer; the call may be repeated
    + TextsRefused             one of the texts cannot be embedded; the others can
    + UnknownModel             a Misuse, too: not in the registry, or its provider not installed
    + ModelNotReady            it lacks vectors or an index, and is not taken into use
    + ModelInUse               searches need it, and it is not dropped
  x JobError
    + LeaseLost                the job is in other hands by now
    + UnknownKind              a Misuse, too: no handler does jobs of this kind
  x AuditError
    + LogTampered              the audit log or its seals are not as they were sealed
    + LogNotSealed             entries must be sealed, or seals signed, first
  x ImportFailed               a file that cannot be read as what it should be
  x BackupError
    + ProgramFailed            pg_dump or pg_restore is missing, does not fit, or failed
    + RowsMissing              a backup lacks rows, or row security may hide some; it is not kept
    + BackupDamaged            a file of a backup is truncated, altered or foreign
    + NotRestored              the database cannot be restored into, or not by this login

The first line of a class's docstring is its message unless one is given. Its remedy, in a paragraph
of its own, stands in docs/reference/errors.md, too.
Errors of the database are told apart by SQLSTATE and constraint name, never by their prose.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import psycopg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout


class DataLayerError(Exception):
    """The data layer could not do what was asked.

    Remedy: Catch it where any failure of the data layer is handled alike; its message names the
    cause, and most classes below it the command that mends it.
    """

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip().splitlines()[0])


class Misuse(DataLayerError):
    """A call that cannot succeed, however often it is tried.

    Remedy: Change the call as the message says; the same call fails again.
    """


class SettingsError(Misuse):
    """A setting has a value that cannot be used.

    Remedy: Set the variable that the message names to one of the values that it allows;
    ``docs/reference/settings.md`` lists all.
    """


class DatabaseUnavailable(DataLayerError):
    """The database did not accept a connection.

    Remedy: Check that the server runs and that ``DATABASE_URL`` names it, then repeat the unit
    of work; nothing was kept, unless the connection was lost during the commit. If every
    connection of the pool was in use, end units of work sooner or raise ``DB_POOL_SIZE``.
    """


class LoginRefused(DatabaseUnavailable):
    """The server answers and refuses the connection; trying again does not help.

    Remedy: Mend what the server names: the login, its password, the database or the TLS
    settings in ``DATABASE_URL`` and ``SSL_MODE``.
    """


class TooManyConnections(DatabaseUnavailable):
    """The server, the database or the role has no connection left.

    Remedy: Lower ``DB_POOL_SIZE``, ``DB_MAX_OVERFLOW`` or ``DB_PROCESSES``, put a pooler in
    between, or raise the limit that the message names; ``pgcorpus doctor`` compares them.
    """


class DatabaseReadOnly(DataLayerError):
    """The database is read-only; nothing was written.

    Remedy: Name the primary in ``DATABASE_URL``; after a failover, repeat once there is one.
    """


class DatabaseExhausted(DataLayerError):
    """The server has run out of disk, memory or another resource; nothing was kept.

    Remedy: Free disk or memory on the server as the message says, then repeat.
    """


class StatementRefused(DataLayerError):
    """The database refused a statement.

    Remedy: Look the SQLSTATE up in PostgreSQL's manual; the server's log has the statement.
    """


class DatabaseNotReady(DataLayerError):
    """The database lacks something this project needs.

    Remedy: Run ``pgcorpus db upgrade``. If the server lacks an extension or a version, the
    message has the command that mends it.
    """


class EmbeddedServerError(DataLayerError):
    """The embedded PostgreSQL could not be started or stopped.

    Remedy: Follow the message, and see ``pgcorpus server status``; or set ``DATABASE_URL`` to a
    server of your own.
    """


class StatementTimeout(DataLayerError):
    """The statement was cancelled, or took longer than DB_STATEMENT_TIMEOUT_MS allows.

    Remedy: Ask for less at once, look for a missing index with ``pgcorpus doctor``, or raise
    ``DB_STATEMENT_TIMEOUT_MS``.
    """


class TransactionConflict(DataLayerError):
    """Another transaction was in the way; nothing was kept, run the unit of work again.

    Remedy: Run the whole unit of work again, from its beginning.
    """


class NotPermitted(DataLayerError):
    """The database role has no right to do this.

    Remedy: Log in as a member of the group that may: ``pgcorpus roles show`` lists the rights,
    and ``pgcorpus roles create-user`` makes the login.
    """


class UnsafeRole(DataLayerError):
    """The database role bypasses row security, so one tenant could see rows of another.

    Remedy: Log in as a member of ``rag_read_write``; make one with ``pgcorpus roles create-user
    NAME --role rag_read_write``.
    """


class ConcurrentUse(DataLayerError):
    """Two tasks use one unit of work at the same time; open one for each.

    Remedy: Open a unit of work in each task or thread.
    """


class RoleInUse(DataLayerError):
    """Something on the server needs the role.

    Remedy: Hand over what belongs to the role as the message says (``REASSIGN OWNED``, ``DROP
    OWNED``, ``REVOKE``), and drop it again.
    """


class NotFound(DataLayerError):
    """There is no such row.

    Remedy: Check the id, and the scope: rows of another scope are not found either. The lists
    of the command line show what there is.
    """


class InvalidReference(Misuse):
    """The reference is of no kind that names a row.

    Remedy: Give the id, or ``SOURCE_TYPE:SOURCE_ID``; ``pgcorpus chat list`` shows them.
    """


class InvalidCorpus(Misuse):
    """An application's corpus cannot be registered.

    Remedy: Change the corpus as the message says before it is registered;
    ``docs/how-to/add-a-corpus.md`` shows a whole one.
    """


class InvalidCursor(Misuse):
    """The cursor is of no page of this list, order and filters; begin again without one.

    Remedy: Begin again without a cursor, and keep order and filters from page to page.
    """


class ConstraintViolated(DataLayerError):
    """The database refused a row.

    Remedy: Change the row as the message says; ``constraint`` names the rule, and
    ``docs/reference/schema.md`` has its definition.

    Attributes:
        constraint: Name of the violated constraint, or None where PostgreSQL gives none.
    """

    def __init__(self, message: str | None = None, *, constraint: str | None = None) -> None:
        super().__init__(message)
        self.constraint = constraint


class AlreadyExists(ConstraintViolated):
    """A row with the same key exists.

    Remedy: Change the existing row instead, or give the new one another key.
    """


class MissingReference(ConstraintViolated):
    """The row refers to one that does not exist.

    Remedy: Write the row that is referred to first, or correct the key.
    """


class InvalidValue(ConstraintViolated):
    """A value lies outside what the column allows.

    Remedy: Give a value that the message allows.
    """


class SearchError(DataLayerError):
    """The search could not be run as asked.

    Remedy: Change the search as the message says, or repeat it if the message asks for that.
    """


class EmptyQuestion(SearchError, Misuse):
    """The question holds nothing to search for.

    Remedy: Ask with at least one word, phrase or vector.
    """


class UnknownCorpus(SearchError, Misuse):
    """There is no corpus of that name.

    Remedy: Give one of the corpora that the message lists; an application's corpus is
    registered first.
    """


class UnknownFilter(SearchError, Misuse):
    """The corpus has no filter of that name.

    Remedy: Give one of the filters that the message lists; see ``pgcorpus filters CORPUS``.
    """


class InvalidFilter(SearchError, Misuse):
    """A filter's value is of the wrong kind.

    Remedy: Give a value of the kind that the message names; see ``pgcorpus filters CORPUS``.
    """


class MissingScope(SearchError, Misuse):
    """A tenant's or a user's rows are read and written only within their scope.

    Remedy: Give the scope of a tenant or a user: ``Scope.tenant(...)`` or ``Scope.user(...)``,
    ``--tenant-id`` or ``--user-id``.
    """


class InvalidSearch(SearchError, Misuse):
    """An argument of the search is not allowed.

    Remedy: Change the argument as the message says.
    """


class WrongDimensions(SearchError):
    """The question's vector is not as long as the model's vectors.

    Remedy: Embed the question with the corpus's active model; see ``pgcorpus models list``.
    """


class EmbeddingError(DataLayerError):
    """Texts could not be embedded.

    Remedy: Change the model or its options as the message says.
    """


class EmbedderUnavailable(EmbeddingError):
    """The embedder did not answer; nothing was embedded, and the call may be repeated.

    Remedy: Check ``OPENAI_API_KEY``, ``OPENAI_BASE_URL`` and the provider's status, and repeat;
    what was embedded before is kept.
    """


class TextsRefused(EmbeddingError):
    """At least one of the texts cannot be embedded; without it the others can.

    Remedy: Leave out or mend the text that the message names.
    """


class UnknownModel(EmbeddingError, Misuse):
    """The model is not in the registry, or its provider is not installed.

    Remedy: Register the model with ``pgcorpus models add NAME``, or install the extra that the
    message names.
    """


class ModelNotReady(EmbeddingError):
    """The model lacks vectors or an index.

    Remedy: Make the vectors and the index with ``pgcorpus models backfill NAME``.
    """


class ModelInUse(EmbeddingError):
    """Searches use the model.

    Remedy: Give the corpora that the message lists another model with ``pgcorpus models use
    CORPUS NAME``, and drop this one then.
    """


class JobError(DataLayerError):
    """A job could not be worked on as asked.

    Remedy: See the job with ``pgcorpus jobs show ID``.
    """


class LeaseLost(JobError):
    """The job is no longer this worker's; what was done for it must not be kept.

    Remedy: Leave the transaction without a commit; another worker does the job.
    """


class UnknownKind(JobError, Misuse):
    """No handler does jobs of this kind.

    Remedy: Register a handler for the kind, or name one of those that the message lists.
    """


class BackupError(DataLayerError):
    """The database could not be backed up or restored.

    Remedy: Name a folder that can be written to, on a disk with space, with ``--to`` or
    ``BACKUP_DIR``.
    """


class ProgramFailed(BackupError):
    """A program of PostgreSQL is missing, does not fit the server, or failed.

    Remedy: Install PostgreSQL's programs of the server's version or a newer one, or name their
    folder in ``PGCORPUS_PROGRAMS``.
    """


class RowsMissing(BackupError):
    """The backup would lack rows; it was not kept.

    Remedy: Back up as the owner, or drop the policy that hides rows, as the message says.
    """


class BackupDamaged(BackupError):
    """The backup is not as it was made.

    Remedy: Restore another backup: ``pgcorpus backup list`` shows those that are whole. An
    encrypted one needs the ``BACKUP_KEY`` it was made with.
    """


class NotRestored(BackupError):
    """The backup was not restored.

    Remedy: Follow the message: an empty database or another name, the roles that are missing,
    or a server of the same version.
    """


class AuditError(DataLayerError):
    """The audit log could not be dealt with as asked.

    Remedy: See ``pgcorpus audit verify``.
    """


class LogTampered(AuditError):
    """The audit log or its seals are not as they were sealed; see pgcorpus audit verify.

    Remedy: Find out who changed it: ``pgcorpus audit verify`` lists each place. Nothing makes
    the log whole again but a backup.
    """


class LogNotSealed(AuditError):
    """Entries of the audit log are not sealed yet.

    Remedy: Seal the entries with ``pgcorpus audit seal``.
    """


class ImportFailed(DataLayerError):
    """A file cannot be read as what it should be.

    Remedy: Mend the file that the message names, or name another one.
    """


# Constraints whose names do not explain themselves to a caller.
MEANINGS = {
    "valid_source_file": "source_file may hold letters, digits, '_', '.' and '-' only",
    "valid_chunk_type": "chunk_type must be atomic_framework, framework_section or supporting",
    "valid_character_count": "character_count must be between 1 and 50000",
    "valid_word_count": "word_count must be between 1 and 15000",
    "logical_word_char_ratio": "a word must have three characters on average, spaces included",
    "valid_concept_format": "a concept may hold letters, digits, spaces, '&' and '-' only",
    "valid_line_numbers": "lines count from 1, and the last is not before the first",
    "reasonable_line_range": "a chunk spans at most 10000 source lines",
    "valid_embedding_dimensions": "the vector is not as long as the vectors of its model",
    "valid_model_format": "a model's name may hold letters, digits and . _ : / - only, and begins "
    "with a letter or digit",
    "valid_model_name": "the model is not in the registry; see: pgcorpus models list",
    "valid_index_kind": "a halfvec index holds at most 4000 dimensions; use the kind binary",
    "valid_languages": "a model knows one text search configuration at least, or all",
    "nonzero_embedding": "a vector of zeros has no direction and cannot be compared",
    "non_empty_source_type": "a conversation has a source; those written here have native",
    "uq_conversations_source_type_source_id": "a conversation with this source_id is stored "
    "already",
    "non_empty_message": "a message says something: its content must not be empty or white space "
    "alone",
    "valid_role": "role must be user, assistant, system or tool",
    "valid_position": "branches and positions count from 0",
    "valid_version": "versions count from 1",
    "uq_messages_conversation_id_branch_position": "there is a message at this position already",
    "fk_messages_conversation_id": "there is no such conversation",
    "valid_job_status": "a job's status must be pending, running, completed or failed",
    "valid_attempts": "attempts count from 0, and at least one is allowed; 1000000 are the most",
    "valid_lease": "a job has a worker and a lease while it is running, and only then",
    "uq_tenants_slug": "there is a tenant with this slug already",
    "non_empty_tenant_name": "a tenant has a name",
    "valid_slug": "a slug has lower-case letters, digits and single hyphens between them only",
    "uq_users_auth_provider_external_id": "the auth_provider has a user with this external_id "
    "already",
    "non_empty_identity": "a user has an auth_provider and an external_id there",
    "valid_auth_provider": "an auth_provider has no colon, which divides it from the external_id",
    "valid_email": "an email address has one @ and no spaces",
    **dict.fromkeys(
        (
            "fk_users_tenant_id",
            "fk_documents_tenant_id",
            "fk_click_feedback_tenant_id",
            "fk_search_sessions_tenant_id",
            "fk_learned_rankings_tenant_id",
            "fk_memory_nodes_tenant_id",
            "fk_episodic_memories_tenant_id",
        ),
        "there is no such tenant; see: pgcorpus tenants list",
    ),
    "fk_memory_nodes_scope_user_id": "there is no such user, or not in this tenant; see: "
    "pgcorpus users list",
    "uq_memory_nodes_scope_id": "there is a memory with this id already",
    "user_or_tenant": "a memory is a user's or a tenant's",
    "non_empty_node": "a memory has what was said or what was answered",
    "valid_sequence_index": "exchanges of a conversation count from 0",
    "valid_intent_type": "intent_type must be question, request, statement, complaint or "
    "celebration",
    "valid_complexity": "complexity must be simple, moderate or complex",
    "valid_technical_depth": "technical_depth must be between 0 and 10",
    "valid_emotional_valence": "emotional_valence must be positive, neutral or negative",
    "valid_urgency": "urgency must be low, medium or high",
    "valid_conversation_mode": "conversation_mode must be chat, debug, brainstorm or review",
    "valid_extra": "extra must be an object",
    "valid_tags": "domains, topics, entities and processes must be lists",
    "valid_cluster_id": "cluster_id must be -1 (noise) or more",
    "valid_cluster_confidence": "cluster_confidence must be between 0 and 1",
    "fk_episodic_memories_scope_user_id": "there is no such user, or not in this tenant; see: "
    "pgcorpus users list",
    "uq_episodic_memories_scope_id": "there is an episode with this id already",
    "valid_messages": "messages must be a list",
    "valid_repetition": "a job is repeated after some time, not at once, and within ten years",
    "valid_dedupe_key": "a dedupe_key has at most 1000 bytes",
    "valid_payload": "a job's payload is a JSON object of at most 4000 bytes and less than 20 "
    "levels: keys, never texts",
    "scope_of_owner": "a row's scope is its tenant's, or without a tenant its user's",
    "valid_scope": "a scope is tenant: or user: and a UUID in lower case",
    "valid_search_details": "a search took 0 to 1e12 ms; its legs and options are JSON objects, "
    "and of its question at most 2000 characters are kept",
    "readable_times": "times lie between the years 2 and 9998; infinity is none",
}


class NoAnswer(psycopg.OperationalError):
    """The server said nothing for longer than a statement may take."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the database gave no answer for {seconds:.0f} s (DB_STATEMENT_TIMEOUT_MS, and some "
            "more), so the connection was given up; a commit that was under way may have been "
            "kept or not: check before you repeat it"
        )


LOST: Final = "the connection to the database was lost"
CONFLICT: Final = str(TransactionConflict())
NO_SCHEMA: Final = (
    "the schema is missing or older than this release; make it with: pgcorpus db upgrade"
)

READ_ONLY: Final = (
    "it is a standby, or default_transaction_read_only is on; name the primary in DATABASE_URL to "
    "write"
)

UNPREPARED: Final = (
    "a statement was prepared on another connection than it ran on, as behind a transaction "
    "pooler; set DB_POOLER=transaction"
)

STATES: Final[Mapping[str, tuple[type[DataLayerError], str]]] = {
    # The connection, which is gone.
    "08": (DatabaseUnavailable, f"{LOST}: {{primary}}"),
    "25P03": (
        DatabaseUnavailable,
        (
            f"{LOST}: the server ended it, as the transaction was idle for longer than "
            "idle_in_transaction_session_timeout; end units of work sooner"
        ),
    ),
    "57P01": (
        DatabaseUnavailable,
        f"{LOST}: the server is shutting down, or an administrator ended the connection",
    ),
    "57P02": (DatabaseUnavailable, f"{LOST}: a process of the server crashed, it is recovering"),
    "57P03": (DatabaseUnavailable, "the server is starting up, shutting down or recovering"),
    "57P04": (DatabaseUnavailable, f"{LOST}: the database was dropped"),
    "57P05": (
        DatabaseUnavailable,
        f"{LOST}: the server ended it, as it was idle for longer than idle_session_timeout",
    ),
    "28": (LoginRefused, "{primary}"),
    "3D": (LoginRefused, "{primary}"),
    # The server, which cannot for now.
    "53300": (TooManyConnections, "{primary}"),
    "53100": (
        DatabaseExhausted,
        (
            "no space left on the server's disk, and nothing was kept ({primary}); free some "
            "there, or enlarge it"
        ),
    ),
    "53200": (
        DatabaseExhausted,
        (
            "the server is out of memory, and nothing was kept ({primary}); lower work_mem, "
            "maintenance_work_mem or the number of connections, or give it more"
        ),
    ),
    "53": (
        DatabaseExhausted,
        "the server has run out of a resource, and nothing was kept ({primary})",
    ),
    "58": (DatabaseExhausted, "the server met an error of its system ({primary}); see its log"),
    "25006": (DatabaseReadOnly, f"the database is read-only ({{primary}}): {READ_ONLY}"),
    # Others, who were in the way.
    "40": (TransactionConflict, CONFLICT),
    "55P03": (TransactionConflict, CONFLICT),
    "55006": (TransactionConflict, f"{{primary}}. {CONFLICT}"),
    "57014": (StatementTimeout, str(StatementTimeout())),  # prose alone tells who did it
    "25P04": (
        StatementTimeout,
        f"{LOST}: the server ended it, as the transaction took longer than transaction_timeout",
    ),
    # A pooler, which gave the next transaction another session.
    "26000": (SettingsError, UNPREPARED),
    "42P05": (SettingsError, UNPREPARED),
    # What was asked.
    "42501": (
        NotPermitted,
        (
            "the login has no right to do this ({primary}); only the owner of the schema has all "
            "rights; see those of each group with: pgcorpus roles show"
        ),
    ),
    "42P01": (DatabaseNotReady, NO_SCHEMA),
    "42703": (DatabaseNotReady, NO_SCHEMA),
    "42883": (DatabaseNotReady, NO_SCHEMA),
    # What was asked to be kept; MEANINGS has better words for some constraints.
    "23505": (AlreadyExists, "a row with the same key exists ({constraint})"),
    "23P01": (AlreadyExists, "a row with the same key exists ({constraint})"),
    "23503": (MissingReference, "the row refers to one that does not exist ({constraint})"),
    "23502": (InvalidValue, "{column} must have a value"),
    "23514": (InvalidValue, "the value breaks the rule {constraint}"),
    "22": (InvalidValue, "{primary}"),  # too long, out of range, NaN in a vector, a NUL byte
    "54": (InvalidValue, "{primary}"),  # too many, too deep
}
"""SQLSTATE, or its class → what is raised, and its message. The whole state is looked up first."""


def translate(error: BaseException | None) -> DataLayerError | None:
    """Turn a driver's error into this layer's, by SQLSTATE.

    Args:
        error: What SQLAlchemy raised, or psycopg itself (COPY, LISTEN).

    Returns:
        The error to raise in its place, or None where this layer has nothing better to say.
    """
    cause = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(cause, psycopg.Error):
        return None
    if isinstance(cause, NoAnswer):
        return DatabaseUnavailable(str(cause))
    # A value that psycopg cannot send has no SQLSTATE: the server has not seen it.
    state = cause.sqlstate or ("22" if isinstance(cause, psycopg.DataError) else "")
    if kind := STATES.get(state) or STATES.get(state[:2]):
        return _build_error(*kind, cause)
    lost = isinstance(error, DBAPIError) and error.connection_invalidated
    if lost or (not state and isinstance(cause, psycopg.OperationalError)):
        return DatabaseUnavailable(LOST)
    return None


def _build_error(kind: type[DataLayerError], message: str, cause: psycopg.Error) -> DataLayerError:
    """Build an error from the server's fields and the message of its SQLSTATE."""
    constraint = cause.diag.constraint_name
    told = MEANINGS.get(constraint or "") or message.format(
        primary=cause.diag.message_primary or cause,
        constraint=constraint,
        column=cause.diag.column_name,
    )
    if issubclass(kind, ConstraintViolated):
        where = f"{cause.diag.table_name}: " if cause.diag.table_name else ""
        return kind(f"{where}{told}", constraint=constraint)
    return kind(told)


def raise_translated(error: BaseException | None) -> None:
    """Raise this layer's error for one of the driver's; return for any other."""
    if (better := translate(error)) is not None:
        raise better from error
    if isinstance(error, UnicodeEncodeError):
        raise InvalidValue(
            f"a text holds half of a surrogate pair ({error.object[error.start]!a}), which no text "
            "in the database has"
        ) from error
    if isinstance(error, PoolTimeout):
        raise DatabaseUnavailable(
            "every connection of the pool stayed in use for DB_POOL_TIMEOUT; end units of work "
            "sooner, or raise DB_POOL_SIZE or DB_MAX_OVERFLOW"
        ) from error
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, psycopg.Error):
        told = cause.diag.message_primary or cause
        raise StatementRefused(
            f"the database refused a statement: {told} (SQLSTATE {cause.sqlstate or 'none'})"
        ) from error


@contextmanager
def translate_errors() -> Iterator[None]:
    """Translate the driver's errors that leave the block into this layer's."""
    try:
        yield
    except Exception as error:
        raise_translated(error)
        raise
