"""The reader of source code, as text."""

from __future__ import annotations

from typing import Final

from pgcorpus.services.documentation.reading.document import ReadDocument
from pgcorpus.services.documentation.reading.plain import split_text

CONTENT_TYPES: Final = {
    ".bash": "text/x-sh",
    ".c": "text/x-c",
    ".cc": "text/x-c++",
    ".cfg": "text/x-ini",
    ".clj": "text/x-clojure",
    ".cpp": "text/x-c++",
    ".cs": "text/x-csharp",
    ".css": "text/css",
    ".dart": "text/x-dart",
    ".ex": "text/x-elixir",
    ".exs": "text/x-elixir",
    ".go": "text/x-go",
    ".h": "text/x-c",
    ".hpp": "text/x-c++",
    ".hs": "text/x-haskell",
    ".ini": "text/x-ini",
    ".java": "text/x-java",
    ".jl": "text/x-julia",
    ".js": "text/javascript",
    ".jsx": "text/javascript",
    ".kt": "text/x-kotlin",
    ".lua": "text/x-lua",
    ".mjs": "text/javascript",
    ".php": "text/x-php",
    ".pl": "text/x-perl",
    ".proto": "text/x-protobuf",
    ".ps1": "text/x-powershell",
    ".py": "text/x-python",
    ".pyi": "text/x-python",
    ".r": "text/x-r",
    ".rb": "text/x-ruby",
    ".rs": "text/x-rust",
    ".scala": "text/x-scala",
    ".scss": "text/x-scss",
    ".sh": "text/x-sh",
    ".sql": "application/sql",
    ".swift": "text/x-swift",
    ".tf": "text/x-terraform",
    ".toml": "application/toml",
    ".ts": "text/typescript",
    ".tsx": "text/typescript",
    ".vue": "text/x-vue",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".zig": "text/x-zig",
    ".zsh": "text/x-sh",
}
"""The content type of source code by the suffix of its file. Data (JSON, CSV, XML) is not here:
it is no prose, and a folder may hold gigabytes of it."""


def read_source(text: str, *, suffix: str = "") -> ReadDocument:
    """Read source code: a block is a piece of the top level, such as a function with its body.

    Comments that look like headings of Markdown are none.

    Args:
        text: With line feeds between lines.
        suffix: Of the file's name, in lower case, for the content type.

    Raises:
        Unreadable: It has too many pieces.
    """
    return split_text(
        text,
        kind="code",
        begins=_begins,
        content_type=CONTENT_TYPES.get(suffix, "text/plain"),
    )


def _begins(line: str) -> bool:
    # What is indented, or closes a bracket, belongs to the lines above.
    return line[0] not in " \t)]}"
