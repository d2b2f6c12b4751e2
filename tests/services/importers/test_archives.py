"""Zips, read without trust: nothing is unpacked to disk, and nothing without bounds."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from pgcorpus.db.errors import ImportFailed
from pgcorpus.services.importers import archives
from pgcorpus.services.importers.archives import Member, list_members, open_archive
from pgcorpus.services.importers.files import Found


def write_zip(path: Path, members: Mapping[str, bytes]) -> Found:
    """A zip of members."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return Found(path, path.stat().st_size)


def members(found: Found) -> dict[str, Member]:
    """Path → member."""
    with open_archive(found) as archive:
        return {each.path: each for each in list_members(archive)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of the zip."""
    return tmp_path / "all.zip"


def test_members_are_listed_with_their_lengths_and_beginnings(path: Path) -> None:
    """Folders are none; the content is read from the open zip."""
    found = write_zip(path, {"a/": b"", "a/b.md": b"x" * 1000})

    with open_archive(found) as archive:
        (member,) = list_members(archive)
        with member.open() as file:
            assert file.read() == b"x" * 1000

    assert (member.path, member.length) == ("a/b.md", 1000)
    assert member.head == b"x" * archives.PEEKED_BYTES
    assert member.packed_bytes < 100


@pytest.mark.parametrize("name", ["../a.md", "a/../../b.md", "/etc/a.md", "C:\\a.md", "..\\a.md"])
def test_a_path_that_leads_out_of_the_zip_is_refused(path: Path, name: str) -> None:
    """With slashes of both kinds."""
    found = write_zip(path, {name: b"x", "good.md": b"y"})

    listed = members(found)

    assert listed["good.md"].error is None
    (refused,) = (each for each in listed.values() if each.path != "good.md")
    assert refused.error == "its path leads out of the zip"


def test_a_bomb_is_refused_and_its_neighbours_are_not(path: Path) -> None:
    """A short text may be packed as well as it likes."""
    found = write_zip(
        path, {"bomb.md": bytes(30 * 1024**2), "small.md": b" " * 100_000, "a.md": b"text"}
    )

    listed = members(found)

    assert "as zip bombs do" in (listed["bomb.md"].error or "")
    assert listed["small.md"].error is listed["a.md"].error is None


def test_all_members_together_are_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many that are small are a bomb, too."""
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 2500)
    found = write_zip(path, {f"{n}.md": b"x" * 1000 for n in range(4)})

    refused = [each.path for each in members(found).values() if each.error]

    assert refused == ["2.md", "3.md"]


def test_links_and_zips_within_are_left_alone(path: Path) -> None:
    """A link could lead anywhere, and a zip to another without end."""
    inner = path.with_name("inner.zip")
    write_zip(inner, {"a.md": b"x"})
    write_zip(path, {"inner.zip": inner.read_bytes()})
    link = zipfile.ZipInfo("link.md")
    link.create_system = 3
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")

    listed = members(Found(path))

    assert listed["link.md"].skipped == "it is a link"
    assert listed["inner.zip"].skipped == "a zip within a zip is not opened"


def test_encrypted_members_are_told_after_the_others(path: Path) -> None:
    """The others have been listed by then."""
    write_zip(path, {"secret.md": b"x", "open.md": b"y"})
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + offset] |= 1
    path.write_bytes(content)
    listed: list[str] = []

    with (
        pytest.raises(ImportFailed, match=r"1 of its members are encrypted, secret\.md"),
        open_archive(Found(path)) as archive,
    ):
        listed.extend(each.path for each in list_members(archive))

    assert listed == ["open.md"]


@pytest.mark.parametrize("keep", [10, 60])
def test_a_damaged_zip_is_told(path: Path, keep: int) -> None:
    """Wherever it ends."""
    write_zip(path, {"a.md": b"x" * 1000})
    path.write_bytes(path.read_bytes()[:keep])

    with pytest.raises(ImportFailed, match="the zip is damaged"), open_archive(Found(path)):
        pass


def test_a_damaged_member_is_told_alone(path: Path) -> None:
    """Its neighbours are read."""
    write_zip(path, {"bad.md": b"some words " * 20, "good.md": b"y"})
    content = bytearray(path.read_bytes())
    start = content.index(b"bad.md") + len(b"bad.md")
    content[start : start + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)

    listed = members(Found(path))

    assert "it cannot be read" in (listed["bad.md"].error or "")
    assert listed["good.md"].error is None
