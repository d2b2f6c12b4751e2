"""The reader of PDF, in a process of its own that the system bounds.

A hostile PDF can keep a parser busy for hours or make it ask for all memory, and no limit inside of
the parser covers every such way. So it works in a child, with a limit of time and of memory.
"""

from __future__ import annotations

import io
import json
import os
import re
import resource
import subprocess
import sys
from typing import Any, Final

from pgcorpus.services.documentation.reading.document import ReadDocument, Unreadable
from pgcorpus.services.documentation.reading.extraction import Extraction
from pgcorpus.services.documentation.reading.extras import require_extra

MAX_SECONDS: Final = 120
"""pypdf reads 20 to 100 pages in a second: enough for a book."""

MAX_MEMORY_BYTES: Final = 2 * 1024**3
"""Address space of the child, of which Python and its libraries take some 0.3 GiB."""

MAX_PAGES: Final = 5_000
"""The longest manuals have that many."""

MAX_OUTPUT_CHARACTERS: Final = 64 * 1024**2
"""Text of all pages."""

_LIGATURES: Final = str.maketrans(
    {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"}
)
"""Letters drawn as one, which no search would find."""

_HYPHENATED: Final = re.compile(r"(?<=[^\W\d_]{2})[-\u00ad]\n(?=[a-zà-öø-ÿ]{2})")
_LEADERS: Final = re.compile(r"(?:\. ?){5,}")
"""Dots that lead to the number of a page in a table of contents."""

_FIELDS: Final = {
    "/Title": "title",
    "/Author": "author",
    "/Subject": "subject",
    "/Keywords": "keywords",
}


def read_pdf(content: bytes) -> ReadDocument:
    """Read the text layer of a PDF; blocks are paragraphs, as far as it marks them, with pages.

    Words that were divided at the end of a line are put together.

    Raises:
        Unreadable: The extra ``documents`` is missing; the file is damaged, encrypted with a
            password, without text (a scan), has more than ``MAX_PAGES``, or takes more than
            ``MAX_SECONDS`` or ``MAX_MEMORY_BYTES``.
    """
    with require_extra():
        import pypdf as _  # noqa: F401, PLC0415
    found = _ask_child(content)
    if "unreadable" in found:
        raise Unreadable(found["unreadable"])
    extraction = Extraction()
    for number, text in enumerate(found["pages"], 1):
        clean = _LEADERS.sub("… ", _HYPHENATED.sub("", text.translate(_LIGATURES)))
        for paragraph in re.split(r"\n[ \t]*\n", clean):
            lines = (" ".join(line.split()) for line in paragraph.split("\n"))
            extraction.add("paragraph", "\n".join(filter(None, lines)), page=number)
    if not extraction.has_blocks:
        raise Unreadable("it has no text layer: it may be a scan, which needs to be recognized")
    metadata = {**found["metadata"], "pages": len(found["pages"])}
    return extraction.finish("application/pdf", title=metadata.get("title"), metadata=metadata)


def _ask_child(content: bytes) -> dict[str, Any]:
    path = os.pathsep.join(filter(None, sys.path))
    try:
        done = subprocess.run(  # noqa: S603 - this module, with nothing of the file's in the command
            [sys.executable, "-P", "-m", __name__],
            input=content,
            capture_output=True,
            timeout=MAX_SECONDS,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired as error:
        raise Unreadable(f"it takes more than {MAX_SECONDS} seconds to read") from error
    if done.returncode:
        raise Unreadable("it cannot be read: its parser gave up, for lack of memory or of time")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def extract(content: bytes) -> dict[str, Any]:
    """Return the text of each page and the metadata of a PDF, or why it is unreadable.

    Only the child calls it: nothing bounds it here but the count of pages.
    """
    import pypdf  # noqa: PLC0415

    try:
        reader = pypdf.PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            return {"unreadable": "it is encrypted: save it without its password"}
        if len(reader.pages) > MAX_PAGES:
            return {"unreadable": f"it has more than {MAX_PAGES:,} pages: split it"}
        pages, left = [], MAX_OUTPUT_CHARACTERS
        for page in reader.pages:
            text = page.extract_text()
            left -= len(text)
            if left < 0:
                return {"unreadable": f"it has more than {MAX_OUTPUT_CHARACTERS:,} characters"}
            pages.append(text)
        return {"pages": pages, "metadata": _read_metadata(reader)}
    except pypdf.errors.DependencyError:
        return {"unreadable": "it is encrypted: save it without its encryption"}
    except Exception as error:  # noqa: BLE001 - a damaged file can make pypdf raise anything
        return {"unreadable": f"it is damaged, or no PDF: {type(error).__name__}"}


def _read_metadata(reader: Any) -> dict[str, str]:
    try:
        found = reader.metadata
        if found is None:
            return {}
        texts = {name: str(found[key]).strip() for key, name in _FIELDS.items() if key in found}
        if created := found.creation_date:
            texts["created"] = created.isoformat()
    except Exception:  # noqa: BLE001 - metadata is often damaged where the pages are not
        return {}
    return {name: text[:1_000] for name, text in texts.items() if text}


def main() -> None:
    """Read a PDF from standard input, and write what ``extract`` returns to standard output."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer = json.dumps(extract(sys.stdin.buffer.read()))
    sys.stdout.write(answer)


if __name__ == "__main__":
    main()
