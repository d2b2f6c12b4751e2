"""Names of chunks that stay when a chunk moves within its document."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from hashlib import blake2b

from pgcorpus.db.repositories.documentation.documents import ChunkRecord
from pgcorpus.services.documentation.chunk import Chunk


def chunk_ids(path: str, chunks: Iterable[Chunk | ChunkRecord]) -> tuple[str, ...]:
    """Name the chunks of the document at *path*.

    A name is made of the path, the heading path and the text, and of no position: a section that
    is inserted, edited or moved changes the names of its own chunks alone. Of chunks that say the
    same under the same headings, the second has ``-1`` appended, the third ``-2``.

    Returns:
        In the order of *chunks*: 16 hexadecimal digits of the path, a hyphen, and 32 of the
        content, which a document at another path has, too. Unique within a collection, at most
        64 characters, safe in a URL.
    """
    prefix = name_prefix(path)
    seen: Counter[str] = Counter()
    names = []
    for chunk in chunks:
        name = f"{prefix}-{_digest([chunk.heading_path, chunk.text], 16)}"
        names.append(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return tuple(names)


def name_prefix(path: str) -> str:
    """Return what the names of all chunks of the document at *path* begin with."""
    return _digest(path, 8)


def name_content(chunk_id: str) -> str:
    """Return the part of a name that says what the chunk says, wherever its document is."""
    return chunk_id.partition("-")[2]


def _digest(value: object, size: int) -> str:
    """Return *size* bytes of the hash of a value of JSON, in hexadecimal digits."""
    return blake2b(json.dumps(value).encode(), digest_size=size).hexdigest()
