"""Docstrings and names of functions in plain words, as far as a machine can tell."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

import pgcorpus

ROOT = Path(pgcorpus.__file__).parents[1]

RELATIVE: Final = frozenset(
    "How That Those What When Where Whether Which Who Whom Whose Why".split()  # noqa: SIM905
)
"""Begin a clause whose subject stands elsewhere; no docstring opens with one."""

NOT_VERBS: Final = frozenset(
    "A All An As At By Each Every For From In Its Nobody None, None. Of On One Only Some Somebody "  # noqa: SIM905
    "Something The There These This Two With".split()
)
"""Open no docstring of a function, which says what to do. Properties are named as nouns."""

FRAGMENTS: Final = RELATIVE | frozenset(
    "After As Behind Between Beyond By Called From However In Of Past Sent So Some Stands Their "  # noqa: SIM905
    "Till To Under Until Whatever Whomever Written".split()
)
"""Open no description of a constant, an attribute or a column: its noun stands elsewhere."""

IRREGULAR: Final = frozenset(
    "begun bound bought broken brought built caught chosen done drawn driven felt forgotten found "  # noqa: SIM905
    "given gone got grown heard held hidden kept known laid led left lent lost made meant met paid "
    "said seen sent shown sold spent spoken stood sworn taken taught thought thrown told "
    "understood unknown won written".split()
)
"""Participles of irregular verbs, of which a few are no other word."""

NO_PARTICIPLES: Final = frozenset(("bed", "embed", "exceed", "feed", "need", "proceed", "seed"))
"""Words in *-ed* that are verbs in the imperative."""

MANAGER: Final = "A context manager, read after ``with`` as contextlib's ``closing`` is."
REPORTED: Final = "A property of a report, called as its key in JSON is."
EXCEPTIONS: Final = {
    "Answer.kept": "A figure of the prelude, a field ``kept`` of Prelude and of Statement.",
    "Context.truncated": REPORTED,
    "ImportReport.failed": REPORTED,
    "ChatReport.stored": "As of ImportReport.",
    "ImportReport.stored": "A sum over files, called as the counts that it adds up.",
    "IsolationReport.crossed": REPORTED,
    "IsolationReport.isolated": REPORTED,
    "IsolationReport.tried": REPORTED,
    "IsolationReport.untried": REPORTED,
    "MemoryContext.degraded": REPORTED,
    "ValidationReport.passed": REPORTED,
    "awaited": "A decorator, read beside a name as an adjective: ``recall = awaited(…)``.",
    "MemoryService.related_episodes": "An adjective: the episodes related to one.",
    "WorkerReport.succeeded": "Beside ``counts``, whose keys are statuses of jobs.",
    "Databases.opened": MANAGER,
    "Pair.opened": MANAGER,
    "logged_in": MANAGER,
    "settled": MANAGER,
}
"""Qualified names of functions that are called by participles, each with the reason."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


def list_modules(*tops: str) -> list[Path]:
    """Return the modules in these folders of the repository."""
    return sorted(path for top in tops for path in ROOT.glob(f"{top}/**/*.py"))


MODULES: Final = (*list_modules("db", "services", "alembic"), ROOT / "pgcorpus" / "__init__.py")
TESTS: Final = list_modules("tests")


def list_definitions(node: ast.AST, within: str = "") -> Iterator[tuple[str, Definition]]:
    """Yield the classes and functions below *node* with their qualified names."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            name = f"{within}{child.name}"
            yield name, child
            yield from list_definitions(child, f"{name}.")
        else:
            yield from list_definitions(child, within)


def is_value(function: Function) -> bool:
    """Return whether a function is read as an attribute, or as the argument that a fixture is."""
    names = {
        ast.unparse(each).partition("(")[0].rpartition(".")[2] for each in function.decorator_list
    }
    return not names.isdisjoint({"cached_property", "fixture", "made_once", "property", "setter"})


def acts(node: ast.AST) -> bool:
    """Return whether a definition is a function that does something, and not a test or a value."""
    return isinstance(node, Function) and not node.name.startswith("test_") and not is_value(node)


def is_participle(name: str) -> bool:
    """Return whether the first word of a name says what was done rather than what to do."""
    word = name.strip("_").split("_")[0].lower()
    return word in IRREGULAR or (
        len(word) > len("red") and word.endswith("ed") and word not in NO_PARTICIPLES
    )


def find_unclear_docstrings(tree: ast.Module, *, of_tests: bool = False) -> Iterator[str]:
    """Yield the line and the beginning of each docstring that opens with a word it may not.

    Args:
        tree: The module.
        of_tests: Let helpers be described by what they give: "A zip of members."
    """
    definitions: list[tuple[str, ast.Module | Definition]] = [("module", tree)]
    definitions += list_definitions(tree)
    for name, node in definitions:
        words = (ast.get_docstring(node) or "").split(maxsplit=8)
        if not words:
            continue
        if words[0] in RELATIVE or (
            acts(node)
            and not of_tests
            and (words[0] in NOT_VERBS or (words[0].endswith("ed") and is_participle(words[0])))
        ):
            line = 1 if isinstance(node, ast.Module) else node.lineno
            yield f"{line}: {name}: {' '.join(words[:8])} …"


def describe_attributes(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the name and the docstring of each constant and attribute that has one."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for assigned, described in pairwise(body if isinstance(body, list) else ()):
            match assigned, described:
                case (
                    ast.Assign(targets=[target]) | ast.AnnAssign(target=target),
                    ast.Expr(ast.Constant(str() as text)),
                ):
                    yield assigned.lineno, ast.unparse(target), text


def list_comments(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the name and the text of each column comment, of a model or a revision."""
    for node in ast.walk(tree):
        match node:
            case ast.keyword("comment", ast.Constant(str() as text)):
                yield node.lineno, "comment", text
            case ast.Assign([ast.Name(("COMMENTS" | "OF_SCOPED") as name)], comments):
                for each in ast.walk(comments):
                    if isinstance(each, ast.Dict):
                        for key, value in zip(each.keys, each.values, strict=True):
                            match value:
                                case ast.Constant(str() as text):
                                    column = ast.unparse(key) if key else name
                                    yield value.lineno, f"{name}[{column}]", text


def list_help_texts(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the name and the text of each help text of an option or a command."""
    for node in ast.walk(tree):
        match node:
            case ast.keyword("help", ast.Constant(str() as text)):
                yield node.lineno, "help", text


def find_fragments(tree: ast.Module) -> Iterator[str]:
    """Yield the line and the beginning of each description that lacks its noun."""
    for source in (describe_attributes, list_comments, list_help_texts):
        for line, name, text in source(tree):
            words = text.split(maxsplit=8)
            if words and words[0].capitalize() in FRAGMENTS:
                yield f"{line}: {name}: {' '.join(words[:8])} …"


def find_participles(tree: ast.Module) -> Iterator[str]:
    """Yield the line and the name of each function that is called by a participle."""
    for name, node in list_definitions(tree):
        if acts(node) and is_participle(node.name) and name not in EXCEPTIONS:
            yield f"{node.lineno}: {name}"


@pytest.mark.parametrize("path", [*MODULES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_open_with_a_verb_or_name_their_subject(path: Path) -> None:
    """A first line is a sentence that a stranger understands alone: "Return …", "A page of …"."""
    tree = ast.parse(path.read_text())
    unclear = [f"{path}:{each}" for each in find_unclear_docstrings(tree, of_tests=path in TESTS)]

    assert not unclear, "\n" + "\n".join(unclear)


@pytest.mark.parametrize("path", [*MODULES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_constants_columns_and_options_are_described_by_a_noun_or_a_verb(path: Path) -> None:
    """A description is read alone: in an editor, in psql, in ``--help``."""
    fragments = [f"{path}:{each}" for each in find_fragments(ast.parse(path.read_text()))]

    assert not fragments, "\n" + "\n".join(fragments)


@pytest.mark.parametrize("path", [*MODULES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_called_by_what_they_do(path: Path) -> None:
    """``count_kept``, not ``counted``; and a property that is true or false is ``is_…``."""
    participles = [f"{path}:{each}" for each in find_participles(ast.parse(path.read_text()))]

    assert not participles, "\n" + "\n".join(participles)


def test_every_exception_is_a_function_and_has_a_reason() -> None:
    """One that was renamed needs none any more."""
    trees = [ast.parse(path.read_text()) for path in (*MODULES, *TESTS)]
    names = {name for tree in trees for name, _ in list_definitions(tree)}

    assert not [name for name, reason in EXCEPTIONS.items() if name not in names or not reason]


def test_the_rules_know_what_they_forbid() -> None:
    """A rule that finds nothing would go unnoticed."""
    tree = ast.parse(
        '"""What is here."""\n'
        'def counted():\n    """How many."""\n'
        'def told():\n    """The words."""\n'
        "class Report:\n"
        '    """A report."""\n'
        '    @property\n    def total(self):\n        """The sum."""\n'
        '    def embed(self):\n        """Embed the texts."""\n'
    )

    assert [re.split(": ", each)[1] for each in find_unclear_docstrings(tree)] == [
        "module",
        "counted",
        "told",
    ]
    described = ast.parse(
        'LIMIT = 3\n"""How many."""\n'
        'LIMIT = 3\n"""The most."""\n'
        'COMMENTS = {"jobs": {"kind": "of its handler", "key": "the key"}}\n'
        'column(comment="what it is")\n'
        'Option(help="Whose they are.")\n'
    )
    assert [each.split(":")[0] for each in find_fragments(described)] == ["1", "5", "6", "7"]
    assert list(find_participles(tree)) == ["2: counted", "4: told"]
