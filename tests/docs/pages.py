"""The code of the pages of docs/, as tests run it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

DOCS: Final = Path(__file__).parents[2] / "docs"


def read_page(name: str) -> str:
    """Return the text of a page, such as ``how-to/fastapi.md``."""
    return (DOCS / name).read_text()


def list_blocks(name: str, language: str) -> list[str]:
    """Return the blocks of code of a page that are written in *language*."""
    return re.findall(rf"```{language}\n(.*?)```", read_page(name), re.DOTALL)


def list_commands(name: str) -> list[str]:
    """Return the commands of a page's console blocks, without their comments."""
    lines = "".join(list_blocks(name, "console")).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+# .*", "", line[2:]) for line in lines if line.startswith("$ ")]
