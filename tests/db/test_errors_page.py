"""The page docs/reference/errors.md: every error, its cause and its remedy."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from inspect import getdoc
from typing import Final

import pytest

from pgcorpus.db import errors
from pgcorpus.db.errors import MEANINGS, STATES, DataLayerError, Misuse
from tests.db.test_errors import ERRORS
from tests.pages import ROOT, check_page, write_code, write_table, write_words

Kind = type[DataLayerError]


def find_errors_elsewhere() -> Iterator[Kind]:
    """Yield the errors of the data layer that other modules define."""
    known = {kind.__name__ for kind in ERRORS}
    for path in sorted(each for top in ("db", "services") for each in ROOT.glob(f"{top}/**/*.py")):
        module = ".".join(("pgcorpus", *path.relative_to(ROOT).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.ClassDef)
                and module != errors.__name__
                and not known.isdisjoint(map(ast.unparse, node.bases))
            ):
                yield getattr(import_module(module), node.name)


ALL: Final = (*ERRORS, *find_errors_elsewhere())


def read_docstring(kind: Kind) -> tuple[str, str]:
    """Return the cause and the remedy of an error."""
    cause, *others = (getdoc(kind) or "").split("\n\n")
    (remedy,) = (each for each in others if each.startswith("Remedy: "))
    return cause, " ".join(remedy.removeprefix("Remedy: ").split())


def write_remedy(remedy: str) -> str:
    """Write a remedy as Markdown, with links to other pages."""
    linked = re.sub(
        r"``docs/((?:[\w-]+/)*)([\w-]+)\.md``",
        lambda found: f"[{found[2].replace('-', ' ')}](../{found[1]}{found[2]}.md)",
        remedy,
    )
    return linked.replace("../reference/", "").replace("``", "`")


def describe_error(kind: Kind) -> str:
    """Return the section of an error."""
    cause, remedy = read_docstring(kind)
    bases = " and ".join(f"[{base.__name__}](#{base.__name__.lower()})" for base in kind.__bases__)
    code = 2 if issubclass(kind, Misuse) else 1
    kin = f" Kind of {bases}." if kind is not DataLayerError else ""
    module = "" if kind.__module__ == errors.__name__ else f" Defined in `{kind.__module__}`."
    return f"""### {kind.__name__}

{write_words(cause)}

**Remedy:** {write_remedy(remedy)}

Exit code {code}.{kin}{module}"""


def describe_errors() -> str:
    """Return the page."""
    states = write_table(
        ("SQLSTATE", "error", "message"),
        (
            (f"`{state}`", f"[{kind.__name__}](#{kind.__name__.lower()})", write_words(message))
            for state, (kind, message) in STATES.items()
        ),
    )
    meanings = write_table(
        ("constraint", "message"),
        ((write_code(name), write_words(meaning)) for name, meaning in MEANINGS.items()),
    )
    sections = "\n\n".join(map(describe_error, ALL))
    drawing = re.search(r"^\* .*?(?=\n\n)", errors.__doc__ or "", re.DOTALL | re.MULTILINE)
    assert drawing
    return f"""# Errors

Everything that the units of work, the services and the command line raise for a cause outside of
the program. All are in `pgcorpus.errors` but those that name another module; their messages name
what happened, why, and what mends it. No error of the driver or of SQLAlchemy leaves them. A
program catches the class, never the words: messages may change. The command line prints the message
after `error: ` and ends with the exit code.

```text
{drawing[0]}
```

## Each error

{sections}

## By SQLSTATE

PostgreSQL's codes, and classes of codes, and the error that each becomes. `{{primary}}` stands for
the server's own message, `{{constraint}}` and `{{column}}` for a name. Another code is a
[StatementRefused](#statementrefused) that names it.

{states}

## By constraint

Rows that the database refuses are told by the name of the constraint: [schema](schema.md) has the
definitions. Another constraint is told by its name alone.

{meanings}
"""


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_has_a_remedy(kind: Kind) -> None:
    """A class's own, and not that of the class above."""
    assert "__doc__" in vars(kind)

    cause, remedy = read_docstring(kind)

    assert re.fullmatch(r"[A-Z][^\n]+\.", cause)
    assert re.fullmatch(r"[A-Z].+\.", remedy)


def test_the_page_of_the_errors_is_current() -> None:
    """A new error gets its section there."""
    assert len(ALL) > len(ERRORS)

    check_page("errors.md", __file__, describe_errors())
