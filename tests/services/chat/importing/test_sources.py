"""Sources of conversations: files of every shape, zips of every kind, folders."""

from __future__ import annotations

import io
import json
import stat
import struct
import tracemalloc
import zipfile
from itertools import chain
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import ImportFailed
from pgcorpus.services.chat.importing.candidates import Batch, Reading, batches
from pgcorpus.services.chat.importing.importer import ChatImporter
from pgcorpus.services.chat.importing.sources import _open_elements
from pgcorpus.services.importers import stream
from pgcorpus.services.importers.importer import ahead
from pgcorpus.services.importers.report import ImportReport
from pgcorpus.services.importers.stream import Element, elements
from tests.factories import exports

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def split(content: bytes) -> tuple[list[tuple[str, Any]], str | None]:
    """Locators and values of a file, or why there is none; and the error that ends it."""
    found: list[tuple[str, Any]] = []
    try:
        found.extend((each.locator, _read(each)) for each in elements(io.BytesIO(content)))
    except ImportFailed as error:
        return found, str(error)
    return found, None


def _read(element: Element) -> Any:
    try:
        return element.read()[0]
    except ImportFailed as error:
        return str(error)


def test_the_lists_of_several_providers_in_one_file_are_read(
    database: Database, tmp_path: Path
) -> None:
    """Whatever else stands beside them."""
    file = tmp_path / "all.json"
    lists = {"chatgpt": list(exports.chatgpt(2)), "claude": list(exports.claude(3))}
    file.write_text(json.dumps({"exported": "2026-01-01", "users": [{"id": 1}]} | lists))

    report = ChatImporter(database).run([file])

    assert (counts(report), report.failed) == ((5, 0, 0, 0), False)


def test_the_layout_of_2026_is_read(database: Database, tmp_path: Path) -> None:
    """Numbered files beside a manifest that names them, and a folder for each project.

    As a folder and as a zip. What holds no conversations is named, a document among it, too.
    """
    talks = list(exports.chatgpt(5))
    members = {
        "export_manifest.json": {
            "version": 1,
            "files": [{"name": f"conversations-00{n}.json", "count": 2} for n in range(2)],
            "conversations": [{"id": each["conversation_id"]} for each in talks],
        },
        "conversations-000.json": talks[:2],
        "conversations-001.json": talks[2:4],
        "projects/Prices/conversations-000.json": talks[4:],
    }
    folder = tmp_path / "export"
    for name, content in members.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    (folder / "projects" / "Prices" / "notes.docx").write_bytes(b"PK")
    (folder / "file-abc.png").write_bytes(b"\x89PNG")
    zipped = zip_members(
        tmp_path / "export.zip", {name: json.dumps(each) for name, each in members.items()}
    )

    first = ChatImporter(database).run([folder])
    second = ChatImporter(database).run([zipped])

    assert (counts(first), first.failed) == ((5, 0, 0, 0), False)
    assert (counts(second), second.failed) == ((0, 0, 5, 0), False)
    assert {Path(each.file).name for each in first.skipped} == {
        "export_manifest.json", "notes.docx", "file-abc.png",
    }  # fmt: skip
    assert {Path(each.file).name for each in second.skipped} == {"export_manifest.json"}


def counts(report: ImportReport) -> tuple[int, ...]:
    """Conversations that were added, updated, left unchanged, rejected."""
    return tuple(report.total(name) for name in ("added", "updated", "unchanged", "rejected"))


def zip_members(path: Path, members: dict[str, str | bytes]) -> Path:
    """Write a zip of members."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("content", "locators"),
    [
        (b'[{"a": 1}, {"a": "]"}]', ["$[0]", "$[1]"]),
        (b' \n[ {"a" : [ "x\\"]" ] } ] \n', ["$[0]"]),
        (b'\xef\xbb\xbf[{"a": 1}]', ["$[0]"]),
        (b"[]", []),
        (b'[1, "a", null, -1.5e3]', ["$[0]", "$[1]", "$[2]", "$[3]"]),
        (b'{"a": [1]}', ["$"]),
        (b'{"a": 1}\n{"a": 2}\n', ["$[0]", "$[1]"]),
        (b'{"x": {"chats": [9]}, "conversations" : [{"a": 1}, 2], "y": []}',
         ["$.conversations[0]", "$.conversations[1]"]),
        (b'{"chats": [1], "data": [2]}', ["$.chats[0]", "$.data[0]"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("chunk", [1, 2, 7, 1024])
def test_a_file_is_split_whatever_holds_its_conversations(
    monkeypatch: pytest.MonkeyPatch, content: bytes, locators: list[str], chunk: int
) -> None:
    """A list, an object with one, JSON lines, one alone; wherever a read happens to end."""
    monkeypatch.setattr(stream, "CHUNK", chunk)

    found, error = split(content)

    assert [locator for locator, _ in found] == locators
    assert error is None


@given(st.lists(JSON, max_size=6), st.integers(1, 40), st.sampled_from([None, 2]), st.booleans())
@settings(deadline=None)
def test_splitting_gives_what_json_gives(
    values: list[Any], chunk: int, indent: int | None, escaped: bool
) -> None:
    """Any list of any values, however it is laid out and read."""
    content = json.dumps(values, indent=indent, ensure_ascii=escaped)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "CHUNK", chunk)
        found, error = split(content.encode(errors="replace"))

    assert error is None
    expected = json.loads(content.encode(errors="replace"))
    assert [value for _, value in found] == expected


@pytest.mark.parametrize(
    ("content", "found", "error"),
    [
        (b"", 0, "empty"),
        (b"hello", 0, "'[' or '{' expected at byte 0"),
        (b'"text"', 0, "expected at byte 0"),
        (b'[{"a": 1}, {"a": 2', 1, "ends at byte 18, in the middle of what begins at byte 11"),
        (b'[{"a": "b', 0, "ends at byte 9, in the middle of what begins at byte 1"),
        (b'[{"a": 1} {"a": 2}]', 1, "',' or ']' expected at byte 10"),
        (b'[{"a": 1},]', 1, "a value expected at byte 10"),
        (b'[{"a": 1}', 1, "the file ends at byte 9"),
        (b'[{"a": 1}] and more', 1, "its end expected at byte 11"),
        (b'{"a": 1} and more', 1, "its end expected at byte 9"),
        (b"\xff\xfe[\x00", 0, "expected at byte 0"),
    ],
)
def test_a_broken_file_gives_what_stands_before_and_the_offset(
    content: bytes, found: int, error: str
) -> None:
    """Truncated, garbled, another thing altogether."""
    values, told = split(content)

    assert len(values) == found
    assert error in (told or "")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"a": tru}', "not JSON"),
        (b'{"a": 1]', "not JSON"),
        (b'{"a": 1, "a": 2}', "the key 'a' stands twice"),
        (b"[" * 200 + b"]" * 200, "deeper than 100"),
        (b'{"a": ' * 100_000 + b"1" + b"}" * 100_000, "deeper than 100"),
        (b'{"a": ' + b"1" * 5000 + b"}", "too many digits"),
    ],
)
def test_a_broken_value_is_told_alone(bad: bytes, reason: str) -> None:
    """Its neighbours are read, whatever it is; nothing exhausts the stack."""
    found, error = split(b'[{"a": 0}, ' + bad + b', {"a": 3}]')

    assert error is None
    assert found[0] == ("$[0]", {"a": 0})
    assert found[2] == ("$[2]", {"a": 3})
    assert reason in found[1][1]


@pytest.mark.parametrize("long", [b'{"a": "%s"}', b'[["%s", {"b": []}], "]"]'])
def test_a_value_that_is_too_long_is_skipped_unread(
    monkeypatch: pytest.MonkeyPatch, long: bytes
) -> None:
    """It is not in memory as a whole; the next one is read."""
    monkeypatch.setattr(stream, "MAX_BYTES", 100)
    monkeypatch.setattr(stream, "CHUNK", 64)

    found = list(elements(io.BytesIO(b"[" + long % (b"x\\\\" * 1000) + b', {"a": 1}]')))

    assert [element.text for element in found] == [None, b'{"a": 1}']
    assert "MiB" in (found[0].fault or "")


@pytest.mark.parametrize(
    "said", ['caf\u00e9 \\ "quoted"\n' * 40, "word " * 40 + "\U0001f4b6", "\u4ef7\U0001f4b6" * 99]
)
@pytest.mark.parametrize("piece", [1, 2, 3, 64])
def test_a_long_value_says_what_it_says_in_every_script(
    monkeypatch: pytest.MonkeyPatch, said: str, piece: int
) -> None:
    """However it is decoded to take little memory, and wherever a piece of it ends."""
    monkeypatch.setattr(stream, "CHUNK", 64)
    monkeypatch.setattr(stream, "PIECE", piece + 3)  # a character at least
    value = {"text": said, said: [said]}

    found, error = split(json.dumps([value, value], ensure_ascii=False).encode())

    assert ([each for _, each in found], error) == ([value, value], None)


class _Repeated(io.RawIOBase):
    """A list of the same value, for ever and ever."""

    def __init__(self, value: bytes, times: int) -> None:
        self._left = b"[", *[value + b","] * times, b"0]"
        self._number = 0

    def tell(self) -> int:
        return 0

    def read(self, size: int = -1) -> bytes:
        part = b""
        while len(part) < size and self._number < len(self._left):
            part += self._left[self._number]
            self._number += 1
        return part


def test_memory_is_of_the_longest_value_and_not_of_the_file() -> None:
    """Fifty times a conversation of 1 MB takes no more than some of them."""
    value = json.dumps({"text": "word " * 200_000}).encode()
    tracemalloc.start()
    sizes = {each.size_bytes for each in elements(_Repeated(value, 50))}
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert sizes == {len(value), 1}
    assert peak_bytes < 10 * len(value)


class _Spoken(io.RawIOBase):
    """A list of long conversations, made as it is read."""

    def __init__(self, conversations: int, size_bytes: int) -> None:
        begun = (
            ("[,"[number > 0] + json.dumps(_long(number, size_bytes))).encode()
            for number in range(conversations)
        )
        self._parts = chain(begun, [b"]"])
        self._left = b""

    def tell(self) -> int:
        return 0

    def read(self, size: int = -1) -> bytes:
        if not self._left:
            self._left = next(self._parts, b"")
        part, self._left = self._left[:size], self._left[size:]
        return part


def _long(number: int, size_bytes: int) -> dict[str, Any]:
    said = "\U0001f4b6" + "word " * (size_bytes // 40)
    messages = [{"uuid": f"m{n}", "sender": "human", "text": f"{n} {said}"} for n in range(8)]
    return {"uuid": f"c{number}", "name": "", "chat_messages": messages}


def test_long_conversations_in_a_row_take_the_memory_of_one() -> None:
    """Each has been imported, and is forgotten, before the next is read.

    With an emoji in each text one takes four bytes a character, beside its JSON and what is read.
    """
    size_bytes = 8 * 1024**2
    reading = Reading("auto", strict=False, language="english")
    tracemalloc.start()

    def one() -> IO[bytes]:
        return _Spoken(4, size_bytes)

    taken = 0
    with _open_elements(one) as found:
        for batch in ahead(batches(map(reading.candidate, found)), alone=Batch.is_long):
            taken += len(batch.candidates)
            batch.candidates.clear()
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert taken == 4
    assert peak_bytes < 8 * size_bytes


def test_a_conversation_far_behind_strangers_is_found(database: Database, tmp_path: Path) -> None:
    """However many there are; what comes before it is rejected, as what comes after it is."""
    file = tmp_path / "log.json"
    file.write_text(json.dumps([{"id": n} for n in range(500)] + [*exports.claude(1), 5]))

    report = ChatImporter(database).run([file])

    assert counts(report) == (1, 0, 0, 501)


@pytest.mark.parametrize("name", stream.HOLDERS)
def test_a_conversation_may_have_a_list_of_any_name(
    database: Database, tmp_path: Path, name: str
) -> None:
    """Before or behind its messages: a list that holds no conversations is none of them."""
    (conversation,) = exports.claude(1)
    files = [tmp_path / "before.json", tmp_path / "behind.json"]
    files[0].write_text(json.dumps({name: [], **conversation, "uuid": "c1"}))
    files[1].write_text(json.dumps({**conversation, "uuid": "c2", name: [{"id": 1}]}))

    report = ChatImporter(database).run(files)

    assert counts(report) == (2, 0, 0, 0)


@pytest.mark.parametrize("content", ["[]", '{"conversations": []}', '[{"id": 1}]'])
def test_a_file_that_is_named_and_holds_nothing_is_an_error(
    database: Database, tmp_path: Path, content: str
) -> None:
    """Alone, or in a folder where nothing else does; beside conversations it is skipped."""
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "empty.json"
    file.write_text(content)

    named, inside = (ChatImporter(database).run([path]) for path in (file, tmp_path))
    (tmp_path / "c.json").write_text(json.dumps(list(exports.claude(1))))
    beside = ChatImporter(database).run([tmp_path])

    assert [each.file for each in named.files if each.error] == [str(file)]
    assert [each.file for each in inside.files if each.error] == [str(tmp_path)]
    assert "holds no conversations" in (inside.files[-1].error or "")
    assert (beside.failed, [each.file for each in beside.skipped]) == (False, [str(file)])


def test_conversations_before_the_break_are_imported(database: Database, tmp_path: Path) -> None:
    """And the file is reported with its error."""
    file = tmp_path / "cut.json"
    file.write_text(json.dumps(list(exports.claude(5)))[:-200])

    report = ChatImporter(database).run([file])

    assert counts(report) == (4, 0, 0, 0)
    assert "in the middle of what begins at byte" in (report.files[0].error or "")
    assert report.failed


def test_a_file_of_no_known_format_says_which_are_known(database: Database, tmp_path: Path) -> None:
    """By its content; what it is called says nothing."""
    (tmp_path / "conversations.json").write_text('[{"id": 1}, {"id": 2}]')
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "chats.txt").write_text(json.dumps(list(exports.claude(1))))
    names = ("conversations.json", "notes.txt", "chats.txt")

    report = ChatImporter(database).run([tmp_path / name for name in names])

    assert "chatgpt, claude, openwebui, chroma, pgcorpus" in (report.files[0].error or "")
    assert "not JSON" in (report.files[1].error or "")
    assert (report.files[2].error, report.files[2].counts["added"]) == (None, 1)


def test_strangers_among_conversations_are_rejected_and_kept(
    database: Database, tmp_path: Path
) -> None:
    """Before and after the first that is known; NUL and half surrogates in them, too."""
    file = tmp_path / "mixed.json"
    stranger = {"text": "\0\ud800"}
    file.write_text(json.dumps([stranger, *exports.claude(1), 5, stranger]))

    report = ChatImporter(database).run([file])

    assert counts(report) == (1, 0, 0, 3)
    with database.unit_of_work() as work:
        kept = [each.payload for each in work.imports.list_rejects("chat")]
    assert kept == [stranger, 5, stranger]


def test_what_json_cannot_hold_is_kept_as_text(database: Database, tmp_path: Path) -> None:
    """A reject can be looked at, and mended by its owner."""
    file = tmp_path / "mixed.json"
    file.write_text(json.dumps(list(exports.claude(1)))[:-1] + ', {"a": tru}]')

    ChatImporter(database).run([file])
    again = ChatImporter(database).retry()

    assert counts(again) == (0, 0, 0, 1)
    with database.unit_of_work() as work:
        assert [each.payload for each in work.imports.list_rejects("chat")] == ['{"a": tru}']


def test_a_folder_gives_its_exports_and_skips_what_lies_beside(
    database: Database, tmp_path: Path
) -> None:
    """An unpacked export: the account's file is no error, and nothing is passed over in silence."""
    (tmp_path / "conversations.json").write_text(json.dumps(list(exports.chatgpt(2))))
    (tmp_path / "user.json").write_text('{"id": "user-1", "email": "a@example.org"}')
    (tmp_path / "cat.png").write_bytes(b"\x89PNG")
    zip_members(tmp_path / "more.zip", {"conversations.json": json.dumps(list(exports.claude(2)))})

    report = ChatImporter(database).run([tmp_path])

    assert not report.failed
    assert counts(report) == (4, 0, 0, 0)
    assert [Path(each.file).name for each in report.skipped] == ["user.json", "cat.png"]


def test_a_zip_is_read_as_its_provider_sent_it(database: Database, tmp_path: Path) -> None:
    """Numbered files of conversations among others; what is none is skipped, with the reason."""
    parts = {
        f"conversations-00{n}.json": json.dumps(list(exports.chatgpt(3, seed=n))) for n in (0, 1)
    }
    others = {"user.json": '{"id": 1}', "cat.png": b"\x89PNG", "old.zip": b"PK\x03\x04", "no": ""}
    file = zip_members(tmp_path / "export.zip", parts | others | {"folder/": ""})

    report = ChatImporter(database).run([file])

    assert not report.failed
    assert [(each.file, each.counts["added"]) for each in report.files] == [
        (f"{file}/{name}", 3) for name in parts
    ]
    assert {Path(each.file).name: each.reason for each in report.skipped} == {
        "user.json": "it holds no conversations; known formats: chatgpt, claude, openwebui, "
        "chroma, pgcorpus",
        "cat.png": "it is not JSON",
        "old.zip": "a zip within a zip is not opened",
        "no": "it is not JSON",
    }


def test_a_zip_without_conversations_is_an_error(database: Database, tmp_path: Path) -> None:
    """A caller that names it expects some."""
    file = zip_members(tmp_path / "photos.zip", {"cat.png": b"\x89PNG"})

    report = ChatImporter(database).run([file])

    assert "holds no conversations" in (report.files[0].error or "")


@pytest.mark.parametrize("name", ["../c.json", "/c.json", "a/../../c.json", "C:\\c.json", "..\\c"])
def test_a_path_out_of_the_zip_is_refused(database: Database, tmp_path: Path, name: str) -> None:
    """Although nothing is unpacked: who packs such a thing means harm."""
    file = zip_members(tmp_path / "evil.zip", {name: json.dumps(list(exports.claude(1)))})

    report = ChatImporter(database).run([file])

    assert counts(report) == (0, 0, 0, 0)
    assert [each.error for each in report.files] == ["its path leads out of the zip"]


def test_a_zip_bomb_is_refused_unread(database: Database, tmp_path: Path) -> None:
    """A thousand times its size."""
    bomb = b'[{"chat_messages": "' + b"0" * 20_000_000 + b'"}]'
    file = zip_members(tmp_path / "bomb.zip", {"conversations.json": bomb})

    report = ChatImporter(database).run([file])

    assert "200 times its size" in (report.files[0].error or "")


def test_a_zip_may_not_unpack_to_more_than_its_limit(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However harmless each member is; those before go in."""
    parts = {f"{n}.json": json.dumps(list(exports.claude(3, seed=n))) for n in (0, 1)}
    monkeypatch.setattr(
        "pgcorpus.services.importers.archives.MAX_UNPACKED_BYTES", len(parts["0.json"]) + 1
    )

    report = ChatImporter(database).run([zip_members(tmp_path / "long.zip", parts)])

    assert counts(report) == (3, 0, 0, 0)
    assert [bool(each.error) for each in report.files] == [False, True]


def test_a_link_in_a_zip_is_not_followed(database: Database, tmp_path: Path) -> None:
    """It is skipped, as what is no JSON."""
    link = zipfile.ZipInfo("conversations.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    file = zip_members(tmp_path / "link.zip", {"c.json": json.dumps(list(exports.claude(1)))})
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(link, "/etc/passwd")

    report = ChatImporter(database).run([file])

    assert counts(report) == (1, 0, 0, 0)
    assert [each.reason for each in report.skipped] == ["it is a link"]


def test_an_encrypted_zip_is_an_error_that_helps(database: Database, tmp_path: Path) -> None:
    """Not a stack trace from the depths of zipfile."""
    file = zip_members(tmp_path / "secret.zip", {"conversations.json": "[]"})
    content = bytearray(file.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        struct.pack_into("<H", content, content.index(signature) + flags, 1)
    file.write_bytes(content)

    report = ChatImporter(database).run([file])

    assert "encrypted" in (report.files[0].error or "")
    assert "unpack it, and import the folder" in (report.files[0].error or "")


@pytest.mark.parametrize("cut", ["middle", "end"])
def test_a_damaged_zip_gives_what_can_be_read(database: Database, tmp_path: Path, cut: str) -> None:
    """Bytes that changed on the way, or a download that ended early."""
    file = zip_members(tmp_path / "cut.zip", {"c.json": json.dumps(list(exports.claude(200)))})
    content = file.read_bytes()
    half = len(content) // 2
    file.write_bytes(content[:half] + (b"" if cut == "end" else bytes(99) + content[half + 99 :]))

    report = ChatImporter(database).run([file])

    assert report.files[0].error is not None
    assert (counts(report)[0] > 0) == (cut == "middle")
