"""Turns that answer one another are numbered, and whatever their links say, none is lost."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from pgcorpus.db.repositories.chat.imports import MessageRecord
from pgcorpus.services.chat.importing.rules import ConversationDraft
from pgcorpus.services.chat.importing.tree import Fields, Node, Turn, messages

FIELDS = Fields("nodes", "parent", "children", "current")


def node(
    id_: str, parent: str | None = None, *children: str, silent: bool = False, listed: bool = True
) -> Node:
    """A node; a silent one has no turn."""
    turn = None if silent else Turn("user", f"I am {id_}")
    return Node(id_, parent, turn, children if listed else None)


def number_turns(
    nodes: Sequence[Node], current: object = None
) -> tuple[dict[str, tuple[int, int]], list[tuple[str, object, object, str]]]:
    """Return each turn's branch and position, and what was repaired."""
    draft = ConversationDraft()
    found = messages(draft, nodes, current, FIELDS)
    return (
        {each.source_id: (each.branch, each.position) for each in found},
        [(each.field, each.original, each.stored, each.rule) for each in draft.changes],
    )


def before(record: MessageRecord, records: Sequence[MessageRecord], position: int) -> str | None:
    """The turn before, as the numbering promises: of that position, the greatest branch <= b."""
    standing = [
        each for each in records if each.position == position and each.branch <= record.branch
    ]
    return max(standing, key=lambda each: each.branch).source_id if standing else None


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[Node], str | None]:
    """A tree of 1 to 30 nodes, some of them silent, and one of them or none as the current."""
    size = draw(st.integers(1, 30))
    parents = [None, *(draw(st.integers(0, n - 1)) for n in range(1, size))]
    nodes = [
        node(
            str(n),
            None if parent is None else str(parent),
            *(str(child) for child in range(n + 1, size) if parents[child] == n),
            silent=draw(st.integers(0, 4)) == 0,
        )
        for n, parent in enumerate(parents)
    ]
    current = draw(st.none() | st.sampled_from([each.id for each in nodes]))
    return draw(st.permutations(nodes)), current


@given(trees())
def test_the_turn_before_has_the_position_before_and_the_greatest_branch_not_above(
    tree: tuple[list[Node], str | None],
) -> None:
    """For every turn, at every distance, whatever the tree: rows alone tell who answered whom."""
    nodes, current = tree
    known = {each.id: each for each in nodes}
    records = messages(ConversationDraft(strict=current is None), nodes, current, FIELDS)

    for record in records:
        above = known[record.source_id].parent
        for position in reversed(range(record.position)):
            while above is not None and known[above].turn is None:
                above = known[above].parent
            assert before(record, records, position) == above
            above = known[above].parent if above is not None else None
        while above is not None and known[above].turn is None:
            above = known[above].parent
        assert above is None


@given(trees())
def test_the_conversation_is_the_path_to_the_current_turn(
    tree: tuple[list[Node], str | None],
) -> None:
    """Branch 0 ends with the current turn, or with the nearest above it that says something."""
    nodes, current = tree
    known = {each.id: each for each in nodes}
    while current is not None and known[current].turn is None:
        current = known[current].parent

    main = [
        each for each in messages(ConversationDraft(), nodes, current, FIELDS) if each.branch == 0
    ]

    if current is not None:
        assert main[-1].source_id == current
    assert [each.position for each in main] == list(range(len(main)))


@given(
    st.lists(
        st.tuples(
            st.none() | st.integers(0, 12),
            st.lists(st.integers(0, 12), max_size=4),
            st.booleans(),
            st.booleans(),
        ),
        max_size=10,
    ),
    st.none() | st.integers(0, 12),
)
def test_every_turn_gets_one_place_whatever_the_links_say(
    links: list[tuple[int | None, list[int], bool, bool]], current: int | None
) -> None:
    """Cycles, unknown parents, lists that lie: each turn stands once, and branches have no gaps."""
    nodes = [
        node(
            str(n),
            None if parent is None else str(parent),
            *map(str, children),
            silent=silent,
            listed=listed,
        )
        for n, (parent, children, silent, listed) in enumerate(links)
    ]

    records = messages(
        ConversationDraft(), nodes, None if current is None else str(current), FIELDS
    )

    places = [(each.branch, each.position) for each in records]
    assert places == sorted(set(places))
    assert sorted(each.source_id for each in records) == sorted(
        each.id for each in nodes if each.turn
    )
    for branch in {each.branch for each in records}:
        positions = [each.position for each in records if each.branch == branch]
        assert positions == list(range(positions[0], positions[0] + len(positions)))
        first = next(each for each in records if each.branch == branch)
        assert positions[0] == 0 or before(first, records, positions[0] - 1) is not None
    assert {each.branch for each in records} == set(range(len({b for b, _ in places})))


def test_the_deepest_fork_is_numbered_first() -> None:
    """And at one fork the answers in their order; within a branch the first answer goes on."""
    found, changes = number_turns(
        [
            node("a", None, "b", "x", "y"),
            node("b", "a", "c", "z"),
            node("c", "b"),
            node("x", "a", "x1", "x2"),
            node("y", "a"),
            node("z", "b"),
            node("x1", "x"),
            node("x2", "x"),
        ],
        "c",
    )

    assert found == {
        "a": (0, 0),
        "b": (0, 1),
        "c": (0, 2),
        "z": (1, 2),
        "x": (2, 1),
        "x1": (2, 2),
        "x2": (3, 2),
        "y": (4, 1),
    }
    assert changes == []


def test_what_follows_the_current_turn_is_a_branch() -> None:
    """The conversation ends where it stands, and the rest is kept."""
    found, _ = number_turns([node("a", None, "b"), node("b", "a", "c"), node("c", "b")], "b")

    assert found == {"a": (0, 0), "b": (0, 1), "c": (1, 2)}


def test_a_silent_node_gives_its_answers_to_the_turn_above_it() -> None:
    """In its place among that turn's answers."""
    found, changes = number_turns(
        [
            node("root", None, "a", silent=True),
            node("a", "root", "b", "s", "e"),
            node("b", "a"),
            node("s", "a", "c", "d", silent=True),
            node("c", "s"),
            node("d", "s"),
            node("e", "a"),
        ],
        "b",
    )

    assert found == {"a": (0, 0), "b": (0, 1), "c": (1, 1), "d": (2, 1), "e": (3, 1)}
    assert changes == []


def test_a_turn_without_its_parent_begins_a_branch() -> None:
    """With all that follows it."""
    found, changes = number_turns([node("a"), node("b", "gone", "c"), node("c", "b")], "a")

    assert found == {"a": (0, 0), "b": (1, 0), "c": (1, 1)}
    assert changes == [("nodes.b.parent", "gone", None, "orphan")]


def test_a_turn_without_its_parent_goes_to_the_node_that_lists_it() -> None:
    """The link downwards is the only one left."""
    found, changes = number_turns([node("a", None, "b"), node("b", "gone")], "b")

    assert found == {"a": (0, 0), "b": (0, 1)}
    assert changes == [("nodes.b.parent", "gone", "a", "orphan")]


def test_a_turn_that_names_no_parent_goes_to_the_node_that_lists_it() -> None:
    """It is recorded: the source says two things."""
    found, changes = number_turns([node("a", None, "b"), node("b")], "b")

    assert found == {"a": (0, 0), "b": (0, 1)}
    assert changes == [("nodes.b.parent", None, "a", "links")]


def test_a_cycle_is_opened_at_its_first_turn() -> None:
    """Nothing of it is lost."""
    found, changes = number_turns([node("b", "c", "c"), node("c", "b", "b")], "c")

    assert found == {"b": (0, 0), "c": (0, 1)}
    assert ("nodes.b.parent", "c", None, "cycle") in changes


def test_a_turn_that_answers_itself_begins_the_conversation() -> None:
    """The smallest cycle."""
    found, changes = number_turns([node("a", "a", listed=False)], "a")

    assert found == {"a": (0, 0)}
    assert changes == [("nodes.a.parent", "a", None, "cycle")]


def test_a_cycle_is_opened_where_only_a_list_of_children_closes_it() -> None:
    """A link that a turn states itself is worth more."""
    found, _ = number_turns([node("c", "b", "a"), node("a", None, "b"), node("b", "a", "c")], "c")

    assert found == {"a": (0, 0), "b": (0, 1), "c": (0, 2)}


def test_a_list_of_children_that_disagrees_with_their_parents_loses() -> None:
    """A child in a stranger's list stays with its parent; a forgotten one comes last."""
    found, changes = number_turns(
        [node("a", None, "c", "ghost", "c"), node("b", "a", "c"), node("c", "a")], "c"
    )

    assert found == {"a": (0, 0), "c": (0, 1), "b": (1, 1)}
    assert changes == [
        ("nodes.a.children", ["c", "ghost", "c"], ["c", "b"], "links"),
        ("nodes.b.children", ["c"], [], "links"),
    ]


def test_of_several_beginnings_the_current_turns_is_the_conversations() -> None:
    """The others begin branches."""
    found, changes = number_turns([node("a", None, "b"), node("b", "a"), node("z")], "z")

    assert found == {"z": (0, 0), "a": (1, 0), "b": (1, 1)}
    assert changes == [("nodes", ["a", "z"], "z", "roots")]


def test_an_unknown_current_turn_gives_way_to_the_newest_leaf() -> None:
    """Of leaves without times the last one of the source."""
    tree = [node("a", None, "b", "c"), node("b", "a"), node("c", "a")]

    for current in ("gone", 7, None):
        found, changes = number_turns(tree, current)
        assert found == {"a": (0, 0), "c": (0, 1), "b": (1, 1)}
        assert changes == [("current", current, "c", "current")]


def test_a_current_node_without_a_turn_stands_for_the_turn_above() -> None:
    """ChatGPT may end with a node that says nothing."""
    found, changes = number_turns([node("a", None, "s"), node("s", "a", silent=True)], "s")

    assert found == {"a": (0, 0)}
    assert changes == []


def test_a_chain_of_100_000_turns_is_numbered() -> None:
    """And as many branches: no recursion, and nothing that grows with the square."""
    size = 100_000
    chain = [node(str(n), str(n - 1) if n else None, listed=False) for n in range(size)]
    side = [node(f"{n}x", str(n), silent=n % 2 == 1, listed=False) for n in range(size)]

    records = messages(ConversationDraft(), [*chain, *side], str(size - 1), FIELDS)

    assert len(records) == size + size // 2
    assert (records[size - 1].branch, records[size - 1].position) == (0, size - 1)
    assert (records[-1].source_id, records[-1].branch) == ("0x", size // 2)


def test_nodes_that_say_nothing_make_no_messages() -> None:
    """Nor does a tree without nodes."""
    assert number_turns([node("a", silent=True)], "a") == ({}, [])
    assert number_turns([]) == ({}, [])
