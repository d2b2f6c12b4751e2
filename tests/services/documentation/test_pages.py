"""The code on the pages about documents runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pgcorpus.db.engine import Database
from tests.pooler import variables_of

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "import-documents.md"


def test_the_page_on_importing_documents_is_right(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the offline model, as without any key."""
    for name, value in variables_of(database.settings).items():
        monkeypatch.setenv(name, value)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, object] = {}

    exec(code, names)  # noqa: S102 - our own page

    names["database"].close()  # type: ignore[attr-defined]
    assert capsys.readouterr().out.splitlines() == [
        "2 chunks, 2 with vectors",
        "guide.md#freezing https://example.org/guide#freezing",
        "['guide.md', 'rye']",
        "1 deleted",
        "2 deleted",
    ]
