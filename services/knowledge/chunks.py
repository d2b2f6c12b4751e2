"""The shapes of files of chunks, and where the chunks are in each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple

from pgcorpus.db.errors import ImportFailed

INHERITED: Final = ("source_file", "processing_date", "language")
"""Fields that a file may say once, in its own metadata, for all its chunks."""


@dataclass(frozen=True)
class Context:
    """The statements of a file on its chunks, outside of them.

    Attributes:
        framework: Name of the framework that it stands under, or None.
        description: That framework's, or None.
        defaults: Those of ``INHERITED`` that the file's own metadata has.
    """

    framework: str | None = None
    description: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the context, to be kept beside a rejected chunk."""
        return asdict(self)


class Place(NamedTuple):
    """A chunk where it stands in its file.

    Attributes:
        locator: Where in the file, as a JSON path.
        context: What the file says of it.
        raw: The chunk as it stands: any JSON value, though only objects can be chunks.
    """

    locator: str
    context: Context
    raw: Any


class Layout(NamedTuple):
    """A file's chunks, and the statements on all of them.

    Attributes:
        header: All that the file says beside its chunks, or None.
        places: Its chunks, in order.
    """

    header: dict[str, Any] | None
    places: list[Place]


def layout_of(document: Any) -> Layout:
    """Find the chunks of a file.

    Args:
        document: The file's JSON value, in one of these shapes: an object with ``frameworks`` that
            hold ``chunks``; an object with ``chunks``; a list of chunks; one chunk.

    Raises:
        ImportFailed: It has none of these shapes, or is a chunk and holds chunks at once.
    """
    match document:
        case list():
            return Layout(
                None, [Place(f"$[{i}]", Context(), raw) for i, raw in enumerate(document)]
            )
        case {"chunk_id": _, "chunks": list()} | {"chunk_id": _, "frameworks": dict()}:
            raise ImportFailed(
                "the file is one chunk, by its 'chunk_id', and holds chunks, by its 'chunks' or "
                "'frameworks': it must be one or the other"
            )
        case {"chunk_id": _}:
            return Layout(None, [Place("$", Context(), document)])
        case {"frameworks": _} | {"chunks": _}:
            places = list(_places(document))
            return Layout(_header(document), places)
        case {"content": _} | {"text": _}:
            return Layout(None, [Place("$", Context(), document)])
        case _:
            raise ImportFailed(
                "the file has none of the known shapes: an object with 'frameworks', an object "
                "with 'chunks', a list of chunks, or one chunk with a 'chunk_id'"
            )


def _places(document: dict[str, Any]) -> Iterator[Place]:
    defaults = _defaults(document)
    frameworks = document.get("frameworks", {})
    if not isinstance(frameworks, dict):
        raise ImportFailed("'frameworks' is not an object")
    for name, framework in frameworks.items():
        where = f"$.frameworks[{json.dumps(name)}]"
        if not isinstance(framework, dict) or not isinstance(framework.get("chunks"), list):
            raise ImportFailed(f"{where} is not an object with a list of 'chunks'")
        said = framework.get("description")
        context = Context(name, said if isinstance(said, str) else None, defaults)
        for index, raw in enumerate(framework["chunks"]):
            yield Place(f"{where}.chunks[{index}]", context, raw)
    chunks = document.get("chunks", [])
    if not isinstance(chunks, list):
        raise ImportFailed("'chunks' is not a list")
    for index, raw in enumerate(chunks):
        yield Place(f"$.chunks[{index}]", Context(defaults=defaults), raw)


def _defaults(document: dict[str, Any]) -> dict[str, Any]:
    """Return the texts in the file's metadata that hold for all chunks."""
    return {
        name: own[name]
        for key in ("processing_metadata", "metadata")
        if isinstance(own := document.get(key), dict)
        for name in INHERITED
        if isinstance(own.get(name), str) and own[name].strip()
    }


def _header(document: dict[str, Any]) -> dict[str, Any]:
    header = {key: value for key, value in document.items() if key not in {"chunks", "frameworks"}}
    if "frameworks" in document:
        header["frameworks"] = {
            name: {key: value for key, value in framework.items() if key != "chunks"}
            for name, framework in document["frameworks"].items()
        }
    return header
