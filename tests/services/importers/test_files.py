"""Files are found and read without trust."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgcorpus.db.errors import ImportFailed
from pgcorpus.services.importers.files import (
    MAX_DEPTH,
    find_files,
    inexact_numbers,
    printable,
    read_json,
)
from pgcorpus.services.knowledge.chunks import Context, layout_of

CHUNK = {"chunk_id": "a", "content": "some text"}


def test_a_folder_gives_its_json_files_by_name(tmp_path: Path) -> None:
    """Subfolders are included, other files are not."""
    for name in ("b.json", "a.JSON", "c.txt", "sub/d.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("[]")

    found = list(find_files([tmp_path]))

    assert [each.path.relative_to(tmp_path).as_posix() for each in found] == [
        "a.JSON",
        "b.json",
        "sub/d.json",
    ]
    assert all(each.error is None and each.size_bytes == 2 for each in found)


def test_a_file_reached_twice_is_found_once(tmp_path: Path) -> None:
    """By its folder, by its name and by another name for it."""
    file = tmp_path / "a.json"
    file.write_text("[]")

    assert len(list(find_files([tmp_path, file, tmp_path / "." / "a.json", file]))) == 1


def test_paths_without_files_are_found_with_their_error(tmp_path: Path) -> None:
    """A folder without files, a path that is not there, a pipe, and a name no system allows."""
    os.mkfifo(tmp_path / "pipe")
    empty = tmp_path / "empty"
    empty.mkdir()
    paths = [empty, tmp_path / "missing.json", tmp_path / "pipe", Path("a\0b")]

    errors = [each.error for each in find_files(paths)]

    assert errors[:3] == [
        "the folder holds no .json files",
        "there is no such file or folder",
        "neither a file nor a folder",
    ]
    assert errors[3] is not None
    assert printable(Path("a\0b")) == "a\ufffdb"


def test_what_cannot_be_read_in_a_folder_is_found_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken links, links in a circle, pipes and closed subfolders; a linked folder is read."""
    (tmp_path / "all" / "sub" / "closed.d").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.json").write_text("[]")
    folder = tmp_path / "all"
    (folder / "1-gone.json").symlink_to("nowhere")
    (folder / "2-gone").symlink_to("nowhere")
    (folder / "3-circle.json").symlink_to("3-circle.json")
    os.mkfifo(folder / "4-pipe.json")
    (folder / "5-linked").symlink_to("../other")
    (folder / "sub" / "up").symlink_to("..")
    (folder / "notes.txt").symlink_to("nowhere")
    look = Path.iterdir

    def look_unless_closed(path: Path) -> Iterator[Path]:  # root may look everywhere
        if path.name == "closed.d":
            raise PermissionError(errno.EACCES, "Permission denied")
        return look(path)

    monkeypatch.setattr(Path, "iterdir", look_unless_closed)

    found = {each.path.relative_to(folder).as_posix(): each.error for each in find_files([folder])}

    assert found == {
        "1-gone.json": "there is no such file or folder",
        "2-gone": "there is no such file or folder",
        "3-circle.json": "it cannot be read: Too many levels of symbolic links",
        "4-pipe.json": "neither a file nor a folder",
        "5-linked/a.json": None,
        "sub/closed.d": "it cannot be read: Permission denied",
        "sub/up": "a link to a folder that it stands in",
    }


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    """Nobody might ever write into it."""
    os.mkfifo(tmp_path / "pipe.json")

    with pytest.raises(ImportFailed, match="a pipe or a device"):
        read_json(tmp_path / "pipe.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a": 1} x', "not JSON"),
        (b"\xff\xfe", "not UTF-8: byte 0xff at offset 0"),
        (b'["\xc3("]', "not UTF-8: byte 0xc3 at offset 2"),
        (b"[NaN]", "NaN is not a JSON value"),
        (b"[-Infinity]", "-Infinity is not a JSON value"),
        (b"[1e999]", "out of range"),
        (b"[" + b"9" * 5000 + b"]", "too many digits"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' stands twice"),
        (b"[" * 101 + b"]" * 101, "nested deeper than 100"),
        (b"[" * 100_000 + b"]" * 100_000, "nested deeper than 100"),
        (b'["a\nb"]', "not JSON"),
    ],
)
def test_what_is_not_strict_json_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """The message says what is wrong and where."""
    file = tmp_path / "a.json"
    file.write_bytes(content)

    with pytest.raises(ImportFailed, match=message):
        read_json(file)


@pytest.mark.parametrize(
    "digits",
    ["12345678901234567890.123456789", "0.12345678901234567890123", "1e-400", f"1e-{'9' * 30}"],
)
def test_a_number_that_no_double_is_equal_to_keeps_its_digits(tmp_path: Path, digits: str) -> None:
    """Numbers that survive are plain floats, however they are written."""
    file = tmp_path / "a.json"
    file.write_text(f'{{"a": {{"b": [1, 0.1, 1.50, 1E2, -0.0, 5e-324, 1e300, {digits}]}}}}')

    document = read_json(file).document

    ((path, number),) = inexact_numbers(document)
    assert (path, number.digits, number) == ("a.b[7]", digits, float(digits))


def test_a_file_of_a_gigabyte_is_refused_unread(tmp_path: Path) -> None:
    """Its length is looked at before its content."""
    file = tmp_path / "huge.json"
    with file.open("wb") as huge:
        huge.truncate(1024**3)

    with pytest.raises(ImportFailed, match=r"1,024 MiB; at most 256"):
        read_json(file)


def test_a_file_that_is_gone_is_refused(tmp_path: Path) -> None:
    """It may vanish between being found and being read."""
    with pytest.raises(ImportFailed, match="cannot be read: No such file"):
        read_json(tmp_path / "gone.json")


def test_good_json_is_read_with_its_hash(tmp_path: Path) -> None:
    """A byte order mark is passed over, and the deepest allowed nesting is allowed."""
    file = tmp_path / "a.json"
    content = b"\xef\xbb\xbf" + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    file.write_bytes(content)

    loaded = read_json(file)

    assert json.dumps(loaded.document) == "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert loaded.sha256 == hashlib.sha256(content).digest()


def test_frameworks_are_taken_apart() -> None:
    """Each chunk knows its framework; everything else is the header."""
    layout = layout_of(
        {
            "metadata": {"source_file": "a.md", "language": "", "total": 1},
            "frameworks": {'odd "name"': {"description": "d", "chunks": [CHUNK, 5], "more": [1]}},
        }
    )

    assert [place.locator for place in layout.places] == [
        '$.frameworks["odd \\"name\\""].chunks[0]',
        '$.frameworks["odd \\"name\\""].chunks[1]',
    ]
    assert layout.places[0].context == Context('odd "name"', "d", {"source_file": "a.md"})
    assert layout.header == {
        "metadata": {"source_file": "a.md", "language": "", "total": 1},
        "frameworks": {'odd "name"': {"description": "d", "more": [1]}},
    }


def test_a_list_inside_an_object_is_taken_apart() -> None:
    """The processing metadata is the header, and speaks for every chunk."""
    layout = layout_of(
        {"chunks": [CHUNK], "processing_metadata": {"processing_date": "2025-10-06"}}
    )

    (place,) = layout.places
    assert (place.locator, place.raw) == ("$.chunks[0]", CHUNK)
    assert place.context.defaults == {"processing_date": "2025-10-06"}
    assert layout.header == {"processing_metadata": {"processing_date": "2025-10-06"}}


def test_a_bare_list_is_taken_apart() -> None:
    """There is no header."""
    assert [place.locator for place in layout_of([CHUNK, CHUNK]).places] == ["$[0]", "$[1]"]
    assert layout_of([]) == (None, [])


@pytest.mark.parametrize("chunk", [CHUNK, {"text": "no identifier"}, CHUNK | {"chunks": "three"}])
def test_one_chunk_is_a_file(chunk: dict[str, Any]) -> None:
    """An identifier makes it one, whatever other fields are called."""
    assert layout_of(chunk).places == [("$", Context(), chunk)]


@pytest.mark.parametrize(
    "document",
    [
        None,
        5,
        "text",
        {},
        {"title": "a"},
        {"frameworks": [CHUNK]},
        {"frameworks": {"a": {}}},
        {"frameworks": {"a": [CHUNK]}},
        {"frameworks": {"a": {"chunks": {}}}},
        {"chunks": CHUNK},
        CHUNK | {"chunks": [CHUNK]},
        CHUNK | {"frameworks": {"a": {"chunks": [CHUNK]}}},
    ],
)
def test_another_shape_is_refused(document: Any) -> None:
    """Guessing would lose what was guessed wrong."""
    with pytest.raises(ImportFailed):
        layout_of(document)
