"""Memories: single exchanges, which are added, merged, touched and erased.

Everything is within the scope of the unit of work; without one nothing is read or written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    DateTime,
    Integer,
    Select,
    String,
    Text,
    Uuid,
    and_,
    any_,
    cast,
    column,
    delete,
    func,
    literal,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.orm import aliased

from pgcorpus.db.base import Base, in_utc, lock_key
from pgcorpus.db.choices import (
    NATIVE,
    TAGS,
    Complexity,
    ConversationMode,
    EmotionalValence,
    IntentType,
    Urgency,
)
from pgcorpus.db.errors import MEANINGS, InvalidValue, NotFound
from pgcorpus.db.models.jobs import Job
from pgcorpus.db.models.memory import (
    COMPLEXITIES,
    CONVERSATION_MODES,
    EMOTIONAL_VALENCES,
    INTENT_TYPES,
    MAX_DEPTH,
    URGENCIES,
    MemoryNode,
    memory_id,
)
from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.repositories.jobs import embed_key
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.corpora import EPISODES, MEMORY
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.text import storable

CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "intent_type": INTENT_TYPES,
    "complexity": COMPLEXITIES,
    "emotional_valence": EMOTIONAL_VALENCES,
    "urgency": URGENCIES,
    "conversation_mode": CONVERSATION_MODES,
}
FLAGS: Final = ("action_required", "has_code", "has_error")
OPTIONAL: Final = (
    *("technical_depth", "cluster_id", "cluster_label", "cluster_confidence", "language"),
    *CHOICES,
)
"""Fields that a memory may leave out: the column's default is taken."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """An exchange to remember: the human's words, and the answer.

    Attributes:
        human: What the human said.
        assistant: What was answered, or ``""``.
        conversation_id: Where it was said.
        sequence_index: Which exchange of the conversation, from 0; None is the next one.
        source: Whose assistant: ``anthropic``, ``openai``, ...; ``native`` is here.
        created_at: When it was said, by default now. A time without a zone is in UTC.
        intent_type: What the human wanted; by default a statement.
        complexity: By default simple.
        technical_depth: 0 (the default) to 10.
        emotional_valence: By default neutral.
        urgency: By default low.
        conversation_mode: By default chat.
        action_required: True if there is something to do.
        has_code: Whether there is code in it.
        has_error: Whether there is an error message in it.
        tags: ``domains``, ``topics``, ``entities``, ``processes`` → names.
        cluster_id: -1 is noise, of no cluster; None is not yet clustered.
        cluster_label: What the cluster is about.
        cluster_confidence: 0 to 1.
        language: Text search configuration; by default english.

    Raises:
        InvalidValue: The table would refuse it; the message names the field.
    """

    human: str
    assistant: str = ""
    conversation_id: str
    sequence_index: int | None = None
    source: str = NATIVE
    created_at: datetime | None = None
    intent_type: IntentType | None = None
    complexity: Complexity | None = None
    technical_depth: int | None = None
    emotional_valence: EmotionalValence | None = None
    urgency: Urgency | None = None
    conversation_mode: ConversationMode | None = None
    action_required: bool = False
    has_code: bool = False
    has_error: bool = False
    tags: Mapping[str, Sequence[str]] = field(default_factory=dict)
    cluster_id: int | None = None
    cluster_label: str | None = None
    cluster_confidence: float | None = None
    language: str | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, str) and not storable(value):
                raise InvalidValue(f"{each.name} holds a character that no text can hold")
        refuse_too_long(
            MemoryNode,
            conversation_id=self.conversation_id,
            source=self.source,
            cluster_label=self.cluster_label,
        )
        if not (self.human.strip() or self.assistant.strip()):
            raise _build_error("non_empty_node")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in (None, *choices):
                raise _build_error(f"valid_{name}")
        for name, low, high in (
            ("sequence_index", 0, 2**31 - 1),
            ("technical_depth", 0, MAX_DEPTH),
            ("cluster_id", -1, 2**31 - 1),
            ("cluster_confidence", 0, 1),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise _build_error(f"valid_{name}")
        _refuse_wrong_tags(self.tags)

    @property
    def text(self) -> str:
        """The text that is embedded, as ``corpora.MEMORY.text`` has it."""
        return f"{self.human}\n{self.assistant}"

    @property
    def id(self) -> str:
        """Its id, which only an exchange with a place in a conversation has."""
        if self.sequence_index is None:
            raise InvalidValue(MEANINGS["valid_sequence_index"], constraint="valid_sequence_index")
        return memory_id(self.conversation_id, self.sequence_index, self.human)

    def has_words_of(self, node: MemoryNode) -> bool:
        """Return whether a memory has the same words, to the letter."""
        return (self.human, self.assistant) == (node.human_content, node.assistant_content)

    @property
    def columns(self) -> dict[str, Any]:
        """The values of a row's columns, except its scope."""
        given = {
            "human_content": self.human,
            "assistant_content": self.assistant,
            "tags": {name: list(names) for name, names in self.tags.items()},
            "created_at": in_utc(self.created_at),
            **{name: getattr(self, name) for name in (*OPTIONAL, *FLAGS)},
            **{name: getattr(self, name) for name in ("conversation_id", "sequence_index")},
            "source": self.source,
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Forgotten:
    """The counts of one step of an erasure, or of a dry run.

    Attributes:
        ids: Of the memories or episodes.
        vectors: Theirs.
        jobs: Those that would have made such, and those that did.
        told_by: Ids of episodes that were made of these memories, and may still quote them.
    """

    ids: tuple[str, ...] = ()
    vectors: int = 0
    jobs: int = 0
    told_by: tuple[str, ...] = ()


class MemoryRepository(Repository):
    """The memories of one scope, and the erasure of memories and episodes."""

    @property
    def owner(self) -> Scope:
        """The scope that owns the memories.

        Raises:
            MissingScope: The unit of work has no scope.
        """
        return self.get_scope(MEMORY)

    def take_turns(self) -> None:
        """Wait for other writers of the scope, and keep others waiting until the transaction ends.

        Who looks whether something is remembered already, and remembers it if not, must not be
        joined by another who does the same, or who forgets what was just found.
        """
        key = lock_key(f"taking turns in the memory of {self.owner}")
        self.session.execute(select(func.pg_advisory_xact_lock(key)))

    def get(self, memory_id: str) -> MemoryNode:
        """Return the memory of that id.

        Raises:
            NotFound: There is none in this scope.
        """
        node = self.find(memory_id)
        if node is None:
            raise NotFound(f"there is no memory {memory_id} in this scope")
        return node

    def find(self, memory_id: str) -> MemoryNode | None:
        """Return the memory of that id, or None."""
        return self.session.scalar(self._nodes().where(MemoryNode.id == memory_id))

    def get_by_key(self, key: UUID) -> MemoryNode:
        """Return the memory of that key.

        Raises:
            NotFound: There is none in this scope.
        """
        node = self.session.scalar(self._nodes().where(MemoryNode.key == key))
        if node is None:
            raise NotFound(f"there is no memory with the key {key} in this scope")
        return node

    def tally_links(self) -> tuple[int, list[str]]:
        """Count the memories that were linked to another, and find those linked to no original.

        An original is in the same scope, and no duplicate itself.

        Returns:
            The number of links, and the ids of the memories whose link is broken, in order.
        """
        original = aliased(MemoryNode)
        linked = (
            select(MemoryNode.id, original.id)
            .outerjoin(
                original,
                and_(
                    original.scope == MemoryNode.scope,
                    original.id == MemoryNode.duplicate_of,
                    original.duplicate_of.is_(None),
                ),
            )
            .where(*self._in_scope(), MemoryNode.duplicate_of.is_not(None))
            .order_by(MemoryNode.id)
        )
        links = self.session.execute(linked).all()
        return len(links), [linked for linked, found in links if found is None]

    def is_own(self, node: MemoryNode) -> bool:
        """Return whether the writer in this scope wrote the memory, too: the same user, or none."""
        return node.user_id == self.owner.user_id

    def find_said(self, exchange: Exchange) -> MemoryNode | None:
        """Return the memory with the same words, or None.

        Of several one of the same user, then the original.
        """
        return self.session.scalar(
            self._nodes()
            .where(
                MemoryNode.human_hash == func.hashtextextended(exchange.human, 0, type_=BigInteger),
                MemoryNode.human_content == exchange.human,
                MemoryNode.assistant_content == exchange.assistant,
            )
            .order_by(
                MemoryNode.user_id.is_distinct_from(self.owner.user_id),
                MemoryNode.duplicate_of.is_not(None),
                MemoryNode.created_at,
                MemoryNode.key,
            )
            .limit(1)
        )

    def next_index(self, conversation_id: str) -> int:
        """Return the place after the last exchange of a conversation; take turns before."""
        last = select(func.max(MemoryNode.sequence_index)).where(
            *self._in_scope(), MemoryNode.conversation_id == conversation_id
        )
        found = self.session.scalar(last)
        return 0 if found is None else found + 1

    def list_conversation(self, conversation_id: str) -> Sequence[MemoryNode]:
        """List the memories of a conversation, in their order."""
        of_it = self._nodes().where(MemoryNode.conversation_id == conversation_id)
        return self.session.scalars(
            of_it.order_by(MemoryNode.sequence_index, MemoryNode.created_at, MemoryNode.key)
        ).all()

    def list_memories(self, ids: Sequence[str]) -> Sequence[MemoryNode]:
        """List the memories that exist, in the order of *ids*."""
        found = self.session.scalars(self._nodes().where(_among(MemoryNode.id, ids))).all()
        place = {each: number for number, each in enumerate(ids)}
        return sorted(found, key=lambda node: place[node.id])

    def add(self, exchange: Exchange, *, duplicate_of: str | None = None) -> MemoryNode | None:
        """Remember an exchange; the outbox enqueues its embedding.

        Args:
            exchange: With its place in the conversation.
            duplicate_of: Id of the memory that says the same.

        Returns:
            The memory, or None where there is one of this id.

        Raises:
            IntegrityError: The unit of work turns it into ``MissingReference`` where there is no
                such tenant or user, else into ``InvalidValue``.
        """
        owner = self.owner
        added = insert(MemoryNode).values(
            id=exchange.id,
            user_id=owner.user_id,
            tenant_id=owner.tenant_id,
            scope=str(owner),
            duplicate_of=duplicate_of,
            **exchange.columns,
        )
        return self.session.scalar(
            added.on_conflict_do_nothing(index_elements=["scope", "id"]).returning(MemoryNode)
        )

    def merge(self, node: MemoryNode, exchange: Exchange) -> bool:
        """Merge an exchange with the same words into a memory.

        It keeps its id, place and time, takes the tags and flags of the exchange to its own, and
        counts as recalled. It takes the text, and what was said of that, unless the text is the
        shorter one: then it would lose something.

        Returns:
            Whether it took the text; its vector is then of the text before.

        Raises:
            InvalidValue: Another user wrote it; it would outlive the erasure of this one.
        """
        if not self.is_own(node):
            raise InvalidValue(
                f"another user wrote the memory {node.id}, so nothing is merged into it"
            )
        node.tags = {
            name: list(dict.fromkeys([*node.tags.get(name, ()), *exchange.tags.get(name, ())]))
            for name in TAGS
            if name in node.tags or name in exchange.tags
        }
        for name in FLAGS:
            setattr(node, name, getattr(node, name) or getattr(exchange, name))
        stored = f"{node.human_content}\n{node.assistant_content}"
        replaced = exchange.text != stored and len(exchange.text) >= len(stored)
        if replaced:
            node.human_content, node.assistant_content = exchange.human, exchange.assistant
            for name in OPTIONAL:
                if (value := getattr(exchange, name)) is not None:
                    setattr(node, name, value)
        self.session.flush()
        self.touch(MEMORY, {node.key: 1}, datetime.now(UTC))
        return replaced

    def touch(self, corpus: Corpus, recalled: Mapping[UUID, int], moment: datetime) -> int:
        """Note that memories or episodes were recalled.

        Neither text nor an indexed column changes: the rows are rewritten in their pages, and no
        index is (HOT), as long as a page has room.

        Args:
            corpus: ``MEMORY`` or ``EPISODES``.
            recalled: Key → how often.
            moment: When, at last.

        Returns:
            How many there still are.
        """
        table = corpus.passages
        keys = literal(list(recalled), ARRAY(Uuid()))
        # In the order of their keys, so that two who touch the same wait and do not deadlock; and
        # in a statement of its own: one that locks and updates loses rows that changed meanwhile.
        locked = select(corpus.key).where(*self._in_scope(corpus), corpus.key == any_(keys))
        self.session.execute(locked.order_by(corpus.key).with_for_update(key_share=True)).close()
        given = (
            func.unnest(keys, literal(list(recalled.values()), ARRAY(Integer())))
            .table_valued(column("key", Uuid()), column("times", Integer()))
            .render_derived("given")
        )
        touched = (
            update(table)
            .where(*self._in_scope(corpus), corpus.key == given.c.key)
            .values(
                access_count=table.c.access_count + given.c.times,
                last_accessed=func.greatest(
                    table.c.last_accessed, literal(moment, DateTime(timezone=True))
                ),
            )
            .returning(corpus.key)
        )
        return len(self.session.execute(touched).all())

    def list_keys(self, corpus: Corpus, ids: Sequence[str]) -> dict[str, UUID]:
        """Map ids to keys, of the memories or episodes that exist."""
        table = corpus.passages
        found = select(table.c.id, corpus.key).where(
            *self._in_scope(corpus), _among(table.c.id, ids)
        )
        return {row.id: row.key for row in self.session.execute(found)}

    def count(
        self, corpus: Corpus, filters: Mapping[str, Any], *, user_id: UUID | None = None
    ) -> int:
        """Count the memories or episodes that ``forget`` would find."""
        which, values = self._which(corpus, filters, user_id)
        counted = select(func.count()).select_from(corpus.passages).where(*which)
        return self.session.scalar(counted, values) or 0

    def list_telling(
        self, filters: Mapping[str, Any], *, user_id: UUID | None = None
    ) -> Sequence[str]:
        """List the ids of episodes that were made of memories which ``forget`` would find.

        Args:
            filters: Of the memories.
            user_id: Only memories that this user wrote, and episodes that other users wrote.
        """
        which, values = self._which(MEMORY, filters, user_id)
        table = EPISODES.passages
        ids = func.array(select(MemoryNode.id).where(*which).scalar_subquery(), type_=ARRAY(Text()))
        telling = select(table.c.id).where(
            *self._in_scope(EPISODES),
            table.c.memory_node_ids.bool_op("&&")(cast(ids, ARRAY(Text()))),
        )
        if user_id is not None:
            telling = telling.where(table.c.user_id.is_distinct_from(user_id))
        return self.session.scalars(telling.order_by(table.c.id), values).all()

    def forget(
        self,
        corpus: Corpus,
        filters: Mapping[str, Any],
        *,
        limit: int,
        user_id: UUID | None = None,
    ) -> Forgotten:
        """Erase memories or episodes, with their vectors, their jobs, and references to them.

        Filters that the corpus has by default do not hold here: what nobody is shown is erased,
        too.

        Args:
            corpus: ``MEMORY`` or ``EPISODES``.
            filters: As ``Corpus.parse_filters`` takes them; an empty mapping is everything.
            limit: At most this many: call it again until it finds nothing.
            user_id: Only what this user of the tenant wrote.

        Raises:
            UnknownFilter: The corpus has no filter of that name.
            InvalidFilter: A filter's value is of the wrong kind.
        """
        self.take_turns()
        which, values = self._which(corpus, filters, user_id)
        chosen = select(corpus.key).where(*which).order_by(corpus.key).limit(limit)
        keys = self.session.scalars(chosen.with_for_update(of=corpus.passages), values).all()
        if not keys:
            return Forgotten()
        vectors = self._count(
            and_(*corpus.of_scope(corpus.vectors, self.scope), corpus.item.in_(keys)),
            corpus.vectors,
        )
        jobs = self._count(
            _among(Job.dedupe_key, [embed_key(corpus, self.scope, key) for key in keys])
            & (Job.scope == str(self.owner)),
            Job.__table__,
        )
        # The trigger forget_traces takes the jobs away, and foreign keys the vectors.
        table = corpus.passages
        erased = (
            delete(table)
            .where(*corpus.of_scope(table, self.scope), corpus.key.in_(keys))
            .returning(table.c.id)
        )
        ids = tuple(self.session.scalars(erased))
        told_by = self._forget_references(corpus, ids)
        self.session.expire_all()
        return Forgotten(ids, vectors, jobs, told_by)

    def _forget_references(self, corpus: Corpus, ids: Sequence[str]) -> tuple[str, ...]:
        """Remove erased ids from the rows that refer to them; return the episodes that did."""
        gone = literal(list(ids), ARRAY(Text()))
        if corpus is MEMORY:
            nodes = MEMORY.passages
            linked = update(nodes).where(*self._in_scope(), _among(nodes.c.duplicate_of, ids))
            self.session.execute(linked.values(duplicate_of=None))
        name = "memory_node_ids" if corpus is MEMORY else "related_episode_ids"
        table = EPISODES.passages
        refers = table.c[name]
        each = (
            func.unnest(refers)
            .table_valued(column("id", Text()), with_ordinality="place", name="each")
            .render_derived()
        )
        left = select(each.c.id).where(each.c.id != func.all(gone)).order_by(each.c.place)
        changed = self.session.scalars(
            update(table)
            .where(*self._in_scope(EPISODES), refers.bool_op("&&")(gone))
            .values({name: func.array(left.scalar_subquery(), type_=ARRAY(Text()))})
            .returning(table.c.id)
        )
        return tuple(sorted(changed)) if corpus is MEMORY else ()

    def _which(
        self, corpus: Corpus, filters: Mapping[str, Any], user_id: UUID | None
    ) -> tuple[list[ColumnElement[bool]], dict[str, Any]]:
        own = self._in_scope(corpus)
        conditions, values = corpus.parse_filters(filters)
        asked = [corpus.holds(each) for each in conditions if each.name in filters]
        if user_id is not None:
            asked.append(corpus.passages.c.user_id == user_id)
        return [*own, *asked], values

    def _count(self, condition: ColumnElement[bool], table: Any) -> int:
        counted = select(func.count()).select_from(table).where(condition)
        return self.session.scalar(counted) or 0

    def _nodes(self) -> Select[MemoryNode]:
        nodes: Select[MemoryNode] = select(MemoryNode).where(*self._in_scope())
        return nodes

    def _in_scope(self, corpus: Corpus = MEMORY) -> tuple[ColumnElement[bool], ...]:
        """Restrict *corpus* to the scope, for roles that pass over row security, too."""
        corpus.refuse_without(self.scope)
        return corpus.of_scope(corpus.passages, self.scope)


def refuse_too_long(table: type[Base], **values: str | None) -> None:
    """Raise for strings that are longer than their columns.

    Raises:
        InvalidValue: One is; it is named, with its limit.
    """
    for name, value in values.items():
        kind = table.__table__.c[name].type
        most = kind.length if isinstance(kind, String) else None
        if value is not None and most is not None and len(value) > most:
            raise InvalidValue(
                f"{name} is too long: {len(value)} characters, and {most} are the most"
            )


def _among(column: Any, values: Sequence[str]) -> ColumnElement[bool]:
    """Compare with one parameter for any number of values."""
    condition: ColumnElement[bool] = column == any_(literal(list(values), ARRAY(Text())))
    return condition


def _build_error(constraint: str) -> InvalidValue:
    return InvalidValue(MEANINGS[constraint], constraint=constraint)


def _refuse_wrong_tags(tags: Mapping[str, Sequence[str]]) -> None:
    if unknown := tags.keys() - set(TAGS):
        raise InvalidValue(
            f"there are no tags {', '.join(sorted(map(str, unknown)))}; known: {', '.join(TAGS)}",
            constraint="valid_tags",
        )
    for names in tags.values():
        if isinstance(names, str) or not all(
            isinstance(name, str) and storable(name) for name in names
        ):
            raise _build_error("valid_tags")
