"""The tree of turns that answer one another, numbered as branches and positions.

Branch 0 is the path from the first turn to the current one. Each path that was abandoned is a
branch with a number of its own, given depth first and the deepest fork first: so the turn before
one of branch ``b`` at position ``p``, at any position ``q < p``, is the turn of position ``q`` with
the greatest branch ``<= b``. Within a branch the first answer to a turn goes on, the others fork.

Whatever the links say, nothing is lost: every turn gets one place. All is linear in the turns, and
as deep as it likes: no function here calls itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from pgcorpus.db.models.chat import Role
from pgcorpus.db.repositories.chat.imports import MessageRecord
from pgcorpus.services.chat.importing.rules import ConversationDraft
from pgcorpus.services.importers.draft import Rule

_NEVER: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Turn:
    """The words of one node of the tree.

    Attributes:
        role: Who spoke.
        content: Not blank.
        created_at: When, or None.
        details: See ``MessageRecord.details``.
    """

    role: Role
    content: str
    created_at: datetime | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Node:
    """A place in the tree as its source has it.

    Attributes:
        id: Its identifier, unique in the tree.
        parent: The node it answers, or None; perhaps unknown.
        turn: What it says, or None for one that only holds others together.
        children: Identifiers of its answers in order, perhaps wrong; None where its source does
            not list them.
        hidden: What it holds that its source does not show, or None. It is kept beside the turn
            that follows or, at the end, that it follows.
    """

    id: str
    parent: str | None
    turn: Turn | None
    children: Sequence[str] | None = None
    hidden: dict[str, Any] | None = None


class Fields(NamedTuple):
    """The names of a format's links, for the history.

    Attributes:
        nodes: The path of the nodes.
        parent: A node's link upwards.
        children: A node's links downwards.
        current: The path of the link to the last turn; None where the format has none.
    """

    nodes: str
    parent: str
    children: str
    current: str | None


Links = dict[str | None, list[str]]
"""A node → its answers in order; None → the first turns."""


def messages(
    draft: ConversationDraft,
    nodes: Sequence[Node],
    current: Any,
    fields: Fields,
) -> list[MessageRecord]:
    """Give every turn its branch and position.

    Args:
        draft: Where repairs are recorded.
        nodes: In the order of the source, which orders answers that no list orders.
        current: The last turn of the conversation as it stands, any JSON; when it is unknown, the
            newest turn that nobody answered is.
        fields: Names for the history.

    Returns:
        By branch and position. Empty when no node has a turn.

    Raises:
        Unacceptable: The draft is strict, and links must be repaired.
    """
    known = {node.id: node for node in nodes}
    parents = _parents(draft, nodes, known, fields)
    children = _children(draft, nodes, parents, fields)
    answers, before = _without_silent(known, parents, children)
    tip = current if isinstance(current, str) and current in known else None
    if tip is not None and known[tip].turn is None:
        tip = before[tip]
    if tip is None:
        tip = _newest(known, answers)
        if tip is None:
            return []
        if fields.current is not None:
            draft.change(fields.current, current, tip, Rule.CURRENT)
    main = list(_upwards(tip, before))[::-1]
    _tell_roots(draft, nodes, parents, tip, fields)
    beside = _list_hidden(known, children, before)
    return [
        _record(known[at], branch, start + depth, beside.get(at, ()))
        for branch, (start, path) in enumerate(_paths(answers, main))
        for depth, at in enumerate(path)
    ]


def _parents(
    draft: ConversationDraft, nodes: Sequence[Node], known: Mapping[str, Node], fields: Fields
) -> dict[str, str | None]:
    """Return each node's parent.

    The node's own word counts before its parent's list of children.
    """
    claims: dict[str, str] = {}
    for node in nodes:
        for child in node.children or ():
            claims.setdefault(child, node.id)
    parents: dict[str, str | None] = {}
    adopted = set()
    for node in nodes:
        parents[node.id] = node.parent
        if node.parent not in known:
            claimed = claims.get(node.id)
            parents[node.id] = claimed
            if node.parent is not None:
                draft.change(_field(fields, node.id), node.parent, claimed, Rule.ORPHAN)
            elif claimed is not None:
                draft.change(_field(fields, node.id), None, claimed, Rule.LINKS)
            if claimed is not None:
                adopted.add(node.id)
    _open_cycles(draft, parents, adopted, fields)
    return parents


def _open_cycles(
    draft: ConversationDraft, parents: dict[str, str | None], adopted: set[str], fields: Fields
) -> None:
    """Cut one link of every cycle: one that only a list of children claims, if there is any."""
    rooted: set[str] = set()
    for start in parents:
        way: dict[str, int] = {}
        at: str | None = start
        while at is not None and at not in rooted and at not in way:
            way[at] = len(way)
            at = parents[at]
        if at is not None and at in way:
            cycle = list(way)[way[at] :]
            cut = next((each for each in cycle if each in adopted), at)
            draft.change(_field(fields, cut), parents[cut], None, Rule.CYCLE)
            parents[cut] = None
        rooted.update(way)


def _children(
    draft: ConversationDraft,
    nodes: Sequence[Node],
    parents: Mapping[str, str | None],
    fields: Fields,
) -> Links:
    """Return each node's children: those that it lists in its order, then those that it forgot."""
    children: Links = {None: []} | {node.id: [] for node in nodes}
    for child, parent in parents.items():
        children[parent].append(child)
    for node in nodes:
        actual = children[node.id]
        if node.children is None or list(node.children) == actual:
            continue
        remaining = dict.fromkeys(actual)
        listed = [each for each in dict.fromkeys(node.children) if each in remaining]
        ordered = list(dict.fromkeys([*listed, *actual]))
        if sorted(node.children) != sorted(actual):
            name = f"{fields.nodes}.{node.id}.{fields.children}"
            draft.change(name, list(node.children), ordered, Rule.LINKS)
        children[node.id] = ordered
    return children


def _without_silent(
    known: Mapping[str, Node], parents: Mapping[str, str | None], children: Links
) -> tuple[Links, dict[str, str | None]]:
    """Return the tree of turns alone: answers to a node without a turn answer the turn above it.

    Returns:
        Each turn's answers, and for each node the nearest turn above it.
    """
    answers: Links = {}
    before: dict[str, str | None] = {}
    stack = children[None][::-1]
    while stack:
        at = stack.pop()
        above = parents[at]
        if above is not None and known[above].turn is None:
            above = before[above]
        before[at] = above
        if known[at].turn is not None:
            answers.setdefault(above, []).append(at)
        stack += reversed(children[at])
    return answers, before


def _list_hidden(
    known: Mapping[str, Node], children: Links, before: Mapping[str, str | None]
) -> dict[str, list[dict[str, Any]]]:
    """Return for each turn what is hidden beside it.

    What is hidden goes with the first turn below it, or else with the one above.
    """
    order: list[str] = []
    stack = children[None][::-1]
    while stack:
        at = stack.pop()
        order.append(at)
        stack += reversed(children[at])
    below: dict[str, str] = {}
    for at in reversed(order):
        for child in children[at]:
            found = child if known[child].turn is not None else below.get(child)
            if found is not None:
                below[at] = found
                break
    beside: dict[str, list[dict[str, Any]]] = {}
    for at in order:
        hidden = known[at].hidden
        place = below.get(at, before[at])
        if hidden is not None and place is not None:
            beside.setdefault(place, []).append(hidden)
    return beside


def _newest(known: Mapping[str, Node], answers: Links) -> str | None:
    """Return the newest turn without an answer.

    Of several, it is the last in the order of the source.
    """
    newest: str | None = None
    latest = _NEVER
    for at, node in known.items():
        if node.turn is not None and at not in answers:
            moment = node.turn.created_at or _NEVER
            if moment >= latest:
                newest, latest = at, moment
    return newest


def _tell_roots(
    draft: ConversationDraft,
    nodes: Sequence[Node],
    parents: Mapping[str, str | None],
    tip: str,
    fields: Fields,
) -> None:
    """Record that the source has several beginnings; repaired links are recorded already."""
    roots = [
        node.id
        for node in nodes
        if node.parent is None and parents[node.id] is None and (node.turn or node.children)
    ]
    if len(roots) > 1:
        *_, main = _upwards(tip, parents)
        draft.change(fields.nodes, roots, main, Rule.ROOTS)


def _paths(answers: Links, main: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the branches in the order of their numbers.

    A branch is its first position, and its turns.
    """
    yield 0, main
    stack = _forks(answers, [None, *main], -1)
    while stack:
        position, at = stack.pop()
        path = [at]
        while following := answers.get(path[-1]):
            path.append(following[0])
        yield position, path
        stack += _forks(answers, path, position)


def _forks(answers: Links, path: Sequence[str | None], start: int) -> list[tuple[int, str]]:
    """Return the places where branches leave a path from *start*.

    They are a stack, the deepest on top.
    """
    forks: list[tuple[int, str]] = []
    for depth, at in enumerate(path):
        on_path = path[depth + 1] if depth + 1 < len(path) else None
        forks += [
            (start + depth + 1, child)
            for child in reversed(answers.get(at, ()))
            if child != on_path
        ]
    return forks


def _upwards(start: str, above: Mapping[str, str | None]) -> Iterator[str]:
    at: str | None = start
    while at is not None:
        yield at
        at = above[at]


def _record(
    node: Node, branch: int, position: int, hidden: Sequence[dict[str, Any]]
) -> MessageRecord:
    turn = node.turn
    assert turn is not None  # noqa: S101 - silent nodes have no place
    details = turn.details if node.parent is None else turn.details | {"parent_id": node.parent}
    if hidden:
        details = details | {"context": list(hidden)}
    return MessageRecord(
        node.id, branch, position, turn.role, turn.content, turn.created_at, details
    )


def _field(fields: Fields, node: str) -> str:
    return f"{fields.nodes}.{node}.{fields.parent}"
