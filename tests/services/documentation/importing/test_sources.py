"""Sources of documents: files, folders, zips and patterns, none of them trusted."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from pgcorpus.db.errors import ImportFailed
from pgcorpus.services.documentation.importing import sources
from pgcorpus.services.documentation.importing.sources import Root, find_roots


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are given as users give them, relative to where they are."""
    monkeypatch.chdir(tmp_path)


def write(*names: str) -> None:
    """Write files whose content is their name."""
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def find(*paths: str | Path) -> list[Root]:
    """The roots at paths, whose zips are closed again."""
    with ExitStack() as zips:
        return find_roots([Path(each) for each in paths], zips)


def paths_of(*paths: str | Path) -> list[str]:
    """The paths that documents have in the collection."""
    return [source.path for root in find(*paths) for source in root.sources]


def errors_of(*paths: str | Path) -> dict[str, str]:
    """Path → why there is nothing to read."""
    found = (source for root in find(*paths) for source in root.sources)
    return {source.path: source.error for source in found if source.error is not None}


def test_the_path_of_a_document_is_that_of_its_file() -> None:
    """The folder may be named, or the file alone."""
    write("wiki/guide/start.md", "wiki/a.rst")

    assert paths_of("wiki") == ["wiki/a.rst", "wiki/guide/start.md"]
    assert paths_of("wiki/guide/start.md") == ["wiki/guide/start.md"]
    assert paths_of("wiki/") == paths_of("./wiki") == paths_of("wiki")
    assert paths_of(Path("wiki").resolve()) == paths_of("wiki")
    assert paths_of(Path("wiki/guide/start.md").resolve()) == ["start.md"]


def test_the_working_directory_goes_by_its_name(tmp_path: Path) -> None:
    """As it does from elsewhere."""
    write("a.md")

    (root,) = find(".")

    assert root.prefix == f"{tmp_path.name}/"
    assert [source.path for source in root.sources] == [f"{tmp_path.name}/a.md"]


def test_only_folders_and_zips_have_a_prefix() -> None:
    """Nothing is gone because a single file is not named."""
    write("wiki/a.md")
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("a.md", "text")

    assert [root.prefix for root in find("wiki", "wiki/a.md", "a.zip")] == ["wiki/", None, "a.zip/"]


def test_files_of_other_formats_are_counted() -> None:
    """In folders and zips, by suffix; a file that is named is taken, whatever it is."""
    write("wiki/a.md", "wiki/a.PNG", "wiki/b.png", "wiki/Makefile")
    with zipfile.ZipFile("wiki/a.zip", "w") as archive:
        archive.writestr("c.png", "text")

    (root,) = find("wiki")

    assert root.others == Counter({".png": 3, "without a suffix": 1})
    assert [source.path for source in root.sources] == ["wiki/a.md"]
    assert paths_of("wiki/a.PNG") == ["wiki/a.PNG"]


@pytest.mark.parametrize("name", [".git", ".venv", "node_modules", "__pycache__"])
def test_hidden_folders_and_installed_packages_are_passed_over(name: str) -> None:
    """They are told, and not looked into; named themselves, they are taken."""
    write(f"wiki/{name}/deep/b.md", "wiki/a.md")
    Path(f"wiki/{name}/broken").symlink_to("nowhere")

    (root,) = find("wiki")

    assert [source.path for source in root.sources] == ["wiki/a.md"]
    assert [each for each, _ in root.skipped] == [f"wiki/{name}"]
    assert paths_of(f"wiki/{name}/deep") == [f"wiki/{name}/deep/b.md"]
    assert paths_of("wiki/**/*.md") == ["wiki/a.md"]


def test_a_pattern_finds_files_at_any_depth() -> None:
    """It prunes nothing; files of other formats that it matches are counted."""
    write("wiki/a.md", "wiki/sub/b.md", "wiki/sub/c.png", "wiki/d.txt")

    assert paths_of("wiki/**/*.md") == ["wiki/a.md", "wiki/sub/b.md"]
    assert paths_of("wiki/[a-b].md") == ["wiki/a.md"]
    assert paths_of(Path("wiki/*.md").absolute()) == ["a.md"]
    found = find("wiki/sub/*")
    assert [root.prefix for root in found] == [None, None]
    assert found[-1].others == Counter({".png": 1})


def test_a_file_that_is_called_like_a_pattern_is_that_file() -> None:
    """Brackets are no rarity in names of files."""
    write("notes [1].md")

    assert paths_of("notes [1].md") == ["notes [1].md"]


def test_what_is_not_there_is_told() -> None:
    """A path, a pattern, an empty folder."""
    Path("empty").mkdir()

    assert errors_of("nothing.md", "no/*.md", "empty") == {
        "nothing.md": "there is no such file or folder",
        "no/*.md": "no file matches the pattern",
        "empty": "the folder holds no readable files",
    }


def test_links_are_followed_and_loops_told() -> None:
    """A link that leads back, one that leads nowhere, a pipe: each with its reason."""
    write("wiki/a.md", "elsewhere/b.md")
    Path("wiki/loop").symlink_to(".")
    Path("wiki/linked").symlink_to("../elsewhere")
    Path("wiki/broken.md").symlink_to("nowhere.md")
    os.mkfifo("wiki/pipe.md")

    found = errors_of("wiki")

    assert found == {
        "wiki/loop": "a link to a folder that it stands in",
        "wiki/broken.md": "there is no such file or folder",
        "wiki/pipe.md": "neither a file nor a folder",
    }
    assert {"wiki/a.md", "wiki/linked/b.md"} < set(paths_of("wiki"))


def test_names_of_any_bytes_have_paths_that_can_be_stored() -> None:
    """Linux asks nothing of a name but that it has no slash and no NUL."""
    Path("wiki").mkdir()
    Path(os.fsdecode(b"wiki/caf\xe9.md")).write_text("x")

    (path,) = paths_of("wiki")

    assert path.encode() == "wiki/caf\ufffd.md".encode()


def test_members_of_a_zip_have_its_path_before_theirs() -> None:
    """Only those of known formats; those that are refused have their reason."""
    with zipfile.ZipFile("all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("guide/a.md", "# A")
        archive.writestr("../escape.md", "x")
        archive.writestr("bomb.md", " " * 50 * 1024**2)
        archive.writestr("cat.png", "x")
        archive.writestr(".git/b.md", "x")

    with ExitStack() as zips:
        (root,) = find_roots([Path("all.zip")], zips)
        content = {source.path: source.read() for source in root.sources if not source.error}

    assert content == {"all.zip/guide/a.md": b"# A"}
    refused = {source.path: source.error or "" for source in root.sources if source.error}
    assert "leads out of the zip" in refused["all.zip/../escape.md"]
    assert "zip bombs" in refused["all.zip/bomb.md"]
    assert [name for name, _ in root.skipped] == ["all.zip/.git/b.md"]


def test_a_damaged_zip_is_told_and_nothing_of_it_read() -> None:
    """As a file in a folder, too."""
    Path("wiki").mkdir()
    Path("wiki/a.zip").write_bytes(b"PK\x03\x04 and no more")

    assert "the zip is damaged" in errors_of("wiki")["wiki/a.zip"]


def test_a_file_beyond_the_limit_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size may say so, or it grows meanwhile."""
    monkeypatch.setattr(sources, "MAX_DOCUMENT_BYTES", 1024)
    write("a.md")
    (root,) = find("a.md")
    with Path("a.md").open("w") as file:
        file.write("x" * 2000)

    with pytest.raises(ImportFailed, match="divide it"):
        root.sources[0].read()
    (grown,) = find("a.md")
    with pytest.raises(ImportFailed, match="divide it"):
        grown.sources[0].read()
