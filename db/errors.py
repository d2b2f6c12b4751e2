"""Everything this layer raises.

* DataLayerError
  x SettingsError              a variable has a value that cannot be used
  x DatabaseUnavailable        no connection within the retry time
  x DatabaseNotReady           connected, but a requirement or the schema is missing
  x EmbeddedServerError        the embedded PostgreSQL could not be started or stopped
  x StatementTimeout         a statement was cancelled, or took longer than it may
  x TransactionConflict      another transaction was in the way; run the unit of work again
  x NotPermitted             the database role has no right to do this
  x UnsafeRole               the database role passes over row security
  x ConcurrentUse            two tasks use one unit of work
  x RoleInUse                something needs the login that is to be dropped
  x NotFound
  x InvalidReference           what a person gave names no conversation
  x InvalidCursor              a page is asked for that no page of this list led to
  x ConstraintViolated
    + AlreadyExists            unique
    + MissingReference         foreign key
    + InvalidValue             check, not null, a value PostgreSQL cannot store
  x SearchError
    + EmptyQuestion  UnknownCorpus  UnknownFilter  InvalidFilter  MissingScope  InvalidSearch
    + WrongDimensions
  x EmbeddingError
    + EmbedderUnavailable      the provider did not answer; the call may be repeated
    + TextsRefused             one of the texts cannot be embedded; the others can
    + UnknownModel             not in the registry, or its provider is not installed
    + ModelNotReady            it lacks vectors or an index, and is not taken into use
    + ModelInUse               searches need it, and it is not dropped
  x JobError
    + LeaseLost                the job is in other hands by now
    + UnknownKind              no handler does jobs of this kind
  x AuditError
    + LogTampered              the audit log or its seals are not as they were sealed
    + LogNotSealed             entries must be sealed, or seals signed, first
  x ImportFailed               a file that cannot be read as what it should be

Each class's docstring is the first sentence of its message unless one is given.
Errors of the database are told apart by SQLSTATE and constraint name, never by their prose.
"""

from __future__ import annotations

import psycopg
from psycopg.errors import (
    CheckViolation,
    DataError,
    DeadlockDetected,
    ExclusionViolation,
    ForeignKeyViolation,
    InsufficientPrivilege,
    LockNotAvailable,
    NotNullViolation,
    ProgramLimitExceeded,
    QueryCanceled,
    SerializationFailure,
    StatementTooComplex,
    UndefinedColumn,
    UndefinedFunction,
    UndefinedTable,
    UniqueViolation,
)
from sqlalchemy.exc import DBAPIError


class DataLayerError(Exception):
    """The data layer could not do what was asked."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip().splitlines()[0])


class SettingsError(DataLayerError):
    """A setting has a value that cannot be used."""


class DatabaseUnavailable(DataLayerError):
    """The database did not accept a connection."""


class DatabaseNotReady(DataLayerError):
    """The database lacks something this project needs."""


class EmbeddedServerError(DataLayerError):
    """The embedded PostgreSQL could not be started or stopped."""


class StatementTimeout(DataLayerError):
    """The statement was cancelled, or took longer than DB_STATEMENT_TIMEOUT_MS allows."""


class TransactionConflict(DataLayerError):
    """Another transaction was in the way; nothing was kept, run the unit of work again."""


class NotPermitted(DataLayerError):
    """The database role has no right to do this."""


class UnsafeRole(DataLayerError):
    """The database role passes over row security, so one tenant could see what is another's."""


class ConcurrentUse(DataLayerError):
    """Two tasks use one unit of work at the same time; open one for each."""


class RoleInUse(DataLayerError):
    """Something on the server needs the role."""


class NotFound(DataLayerError):
    """There is no such row."""


class InvalidReference(DataLayerError):
    """The reference is of no kind that names a row."""


class InvalidCursor(DataLayerError):
    """The cursor is of no page of this list, order and filters; begin again without one."""


class ConstraintViolated(DataLayerError):
    """The database refused a row.

    Attributes:
        constraint: Name of the violated constraint, or None where PostgreSQL gives none.
    """

    def __init__(self, message: str | None = None, *, constraint: str | None = None) -> None:
        super().__init__(message)
        self.constraint = constraint


class AlreadyExists(ConstraintViolated):
    """A row with the same key exists."""


class MissingReference(ConstraintViolated):
    """The row refers to one that does not exist."""


class InvalidValue(ConstraintViolated):
    """A value lies outside what the column allows."""


class SearchError(DataLayerError):
    """The search could not be run as asked."""


class EmptyQuestion(SearchError):
    """The question holds nothing to search for."""


class UnknownCorpus(SearchError):
    """There is no corpus of that name."""


class UnknownFilter(SearchError):
    """The corpus has no filter of that name."""


class InvalidFilter(SearchError):
    """A filter's value is of the wrong kind."""


class MissingScope(SearchError):
    """What is a tenant's or a user's is read and written only within their scope."""


class InvalidSearch(SearchError):
    """An argument of the search is not allowed."""


class WrongDimensions(SearchError):
    """The question's vector is not as long as the model's vectors."""


class EmbeddingError(DataLayerError):
    """Texts could not be embedded."""


class EmbedderUnavailable(EmbeddingError):
    """The embedder did not answer; nothing was embedded, and the call may be repeated."""


class TextsRefused(EmbeddingError):
    """At least one of the texts cannot be embedded; without it the others can."""


class UnknownModel(EmbeddingError):
    """The model is not in the registry, or its provider is not installed."""


class ModelNotReady(EmbeddingError):
    """The model lacks vectors or an index."""


class ModelInUse(EmbeddingError):
    """Searches use the model."""


class JobError(DataLayerError):
    """A job could not be worked on as asked."""


class LeaseLost(JobError):
    """The job is no longer this worker's; what was done for it must not be kept."""


class UnknownKind(JobError):
    """No handler does jobs of this kind."""


class AuditError(DataLayerError):
    """The audit log could not be dealt with as asked."""


class LogTampered(AuditError):
    """The audit log or its seals are not as they were sealed; see pgcorpus audit verify."""


class LogNotSealed(AuditError):
    """Entries of the audit log are not sealed yet."""


class ImportFailed(DataLayerError):
    """A file cannot be read as what it should be."""


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
    "fk_users_tenant_id": "there is no such tenant; see: pgcorpus tenants list",
    "fk_memory_nodes_tenant_id": "there is no such tenant; see: pgcorpus tenants list",
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
    "valid_tags": "domains, topics, entities and processes must be lists",
    "valid_cluster_id": "cluster_id must be -1 (noise) or more",
    "valid_cluster_confidence": "cluster_confidence must be between 0 and 1",
    "fk_episodic_memories_tenant_id": "there is no such tenant; see: pgcorpus tenants list",
    "fk_episodic_memories_scope_user_id": "there is no such user, or not in this tenant; see: "
    "pgcorpus users list",
    "uq_episodic_memories_scope_id": "there is an episode with this id already",
    "valid_messages": "messages must be a list",
    "valid_repetition": "a job is repeated after some time, not at once, and within ten years",
    "valid_dedupe_key": "a dedupe_key has at most 1000 bytes",
    "valid_payload": "a job's payload is a JSON object of at most 4000 bytes and less than 20 "
    "levels: keys, never texts",
    "valid_scope": "a scope is tenant: or user: and a UUID in lower case",
    "readable_times": "times lie between the years 2 and 9998; infinity is none",
}


def translate(error: DBAPIError) -> DataLayerError | None:  # noqa: C901, PLR0911 - a table
    """Turn a driver's error into this layer's, by SQLSTATE.

    Args:
        error: What SQLAlchemy raised.

    Returns:
        The error to raise in its place, or None where this layer has nothing better to say.
    """
    cause = error.orig
    if not isinstance(cause, psycopg.Error):
        return None
    constraint = cause.diag.constraint_name
    where = f"{cause.diag.table_name}: " if cause.diag.table_name else ""
    said = MEANINGS.get(constraint or "")
    match cause:
        case UniqueViolation() | ExclusionViolation():
            return AlreadyExists(
                f"{where}{said or f'a row with the same key exists ({constraint})'}",
                constraint=constraint,
            )
        case ForeignKeyViolation():
            return MissingReference(
                f"{where}{said or f'the row refers to one that does not exist ({constraint})'}",
                constraint=constraint,
            )
        case NotNullViolation():
            return InvalidValue(f"{where}{cause.diag.column_name} must have a value")
        case CheckViolation():
            return InvalidValue(
                f"{where}{said or f'the value breaks the rule {constraint}'}", constraint=constraint
            )
        # Classes 22 and 54: too long, out of range, NaN in a vector, a NUL byte; too many, too deep
        case DataError() | ProgramLimitExceeded() | StatementTooComplex():
            return InvalidValue(f"{where}{cause.diag.message_primary or cause}")
        case UndefinedTable() | UndefinedColumn() | UndefinedFunction():
            return DatabaseNotReady(
                "the schema is missing or older than this release; make it with: "
                "pgcorpus db upgrade"
            )
        case QueryCanceled():
            return StatementTimeout()  # nothing but prose tells who cancelled it
        case DeadlockDetected() | SerializationFailure() | LockNotAvailable():
            return TransactionConflict()
        case InsufficientPrivilege():
            return NotPermitted(f"{NotPermitted.__doc__} ({cause.diag.message_primary})")
        case psycopg.OperationalError() if cause.sqlstate is None or error.connection_invalidated:
            return DatabaseUnavailable("the connection to the database was lost")
        case _:
            return None
