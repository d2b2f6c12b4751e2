"""Documents from code: added, read, changed and deleted, for everybody or for a tenant."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import InvalidCursor, InvalidValue, MissingReference, NotFound, NotPermitted
from pgcorpus.db.scope import Scope
from pgcorpus.services.documentation.chunker import ChunkerConfig
from pgcorpus.services.documentation.service import AsyncDocumentService, DocumentService
from pgcorpus.services.jobs.worker import Worker
from pgcorpus.services.search.service import SearchService
from tests.logins import logged_in
from tests.services.memory.setting import ObedientEmbedder

GUIDE = "# Guide\n\nRead me first.\n\n## Install\n\nRun it.\n\n## Use\n\nAsk it.\n"
CHUNKS = "SELECT id FROM chunks"
VECTORS = "SELECT chunk_id FROM documentation_embeddings"
PENDING = "SELECT id FROM jobs WHERE status = 'pending' AND kind = 'embed'"


@dataclass
class Desk:
    """A database, and who keeps documents in it.

    Attributes:
        owner: The owner of the tables, who writes for everybody.
        application: A login of the application.
        ours: A tenant.
        theirs: Another.
        embedder: What both services ask.
        service: As the owner.
        own: As the application.
    """

    owner: Database
    application: Database
    ours: Scope
    theirs: Scope
    embedder: ObedientEmbedder
    service: DocumentService
    own: DocumentService

    def rows(self, statement: str, scope: Scope | None = None) -> set[Any]:
        """Return what a statement of the test's own gives."""
        with self.owner.unit_of_work() as work:
            if scope is not None:
                work.enter(scope)
            return set(work.session.scalars(text(statement)))


@pytest.fixture
def desk(database: Database) -> Iterator[Desk]:
    """Nothing is stored yet; documents use the offline model."""
    with database.unit_of_work() as work:
        ours, theirs = (work.tenancy.create_tenant(name).id for name in ("Ours", "Theirs"))
        work.models.use_model("documentation", "hashing")
        work.commit()
    embedder = ObedientEmbedder()
    with logged_in(database, "rag_read_write") as application:
        yield Desk(
            owner=database,
            application=application,
            ours=Scope.tenant(ours),
            theirs=Scope.tenant(theirs),
            embedder=embedder,
            service=DocumentService(database, embedder),
            own=DocumentService(application, embedder),
        )


def paths(service: DocumentService, scope: Scope | None = None, **more: Any) -> list[str]:
    """The paths of all documents that a scope reads."""
    return [each.path for each in service.list_documents(scope=scope, **more).items]


# Texts


def test_texts_are_found_from_the_next_question_on(desk: Desk) -> None:
    """Their vectors are stored at once, and no job is left."""
    ids = desk.service.add_texts(
        ["Prices rise when goods are scarce.", "Cats sleep."], metadatas=[{"topic": "prices"}, {}]
    )

    search = SearchService(desk.owner, embedder=desk.embedder)
    found = search.search("goods are scarce", corpus="documentation")

    assert len(set(ids)) == 2
    assert found.hits[0].metadata["path"] == ids[0]
    assert found.hits[0].metadata["metadata"] == {"topic": "prices"}
    assert found.hits[0].ranks.keys() == {"vector", "text"}
    assert desk.rows(PENDING) == set()


def test_a_text_whose_id_is_stored_replaces_the_one_before(desk: Desk) -> None:
    """And the same again changes nothing."""
    desk.service.add_texts(["One.", "Two."], ids=["a", "b"])
    kept = desk.rows(VECTORS)
    asked = len(desk.embedder.asked)

    desk.service.add_texts(["One.", "Three."], ids=["a", "b"])

    assert [desk.service.get(each).chunks[0].text for each in "ab"] == ["One.", "Three."]
    assert desk.embedder.asked[asked:] == ["Three."]
    assert len(desk.rows(VECTORS)) == 2
    assert len(desk.rows(VECTORS) & kept) == 1


def test_no_texts_are_no_work(desk: Desk) -> None:
    """Nobody is asked, and nothing is stored."""
    assert desk.service.add_texts([]) == []
    assert desk.embedder.asked == []


def test_a_long_text_is_cut_and_its_chunks_have_its_metadata(desk: Desk) -> None:
    """Its id is that of the document."""
    config = ChunkerConfig(max_tokens=32, overlap_tokens=0)
    service = DocumentService(desk.owner, desk.embedder, config=config)

    (name,) = service.add_texts(["Some words here. " * 40], metadatas=[{"n": 1}])

    chunks = service.get(name).chunks
    assert len(chunks) > 4
    assert all(each.metadata == {"n": 1} for each in chunks)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"texts": ["  \n"]}, "has no text"),
        ({"texts": ["a\0b"]}, "NUL"),
        ({"texts": ["half \ud83d of one"]}, "not UTF-8"),
        ({"texts": ["b"], "ids": ["x" * 3000]}, "the path has 3000 bytes; at most 2000"),
        ({"texts": ["b"], "ids": [" "]}, "the path is blank"),
        ({"texts": ["b"], "ids": ["a\0"]}, "cannot be stored"),
        ({"texts": ["b"], "ids": ["\ud83d"]}, "cannot be stored"),
        ({"texts": ["b"], "ids": []}, "1 texts were given with 0 ids"),
        ({"texts": ["b"], "metadatas": [{}, {}]}, "and 2 metadata"),
        ({"texts": ["b", "c"], "ids": ["x", "x"]}, "the id 'x' is given twice"),
        ({"texts": ["b"], "metadatas": [{"n": math.nan}]}, "metadata.n is nan"),
        ({"texts": ["b"], "metadatas": [{"n": [math.inf]}]}, r"metadata.n\[0\] is inf"),
        ({"texts": ["b"], "metadatas": [{"b": b"x"}]}, "metadata.b is of the type bytes"),
        ({"texts": ["b"], "metadatas": [{1: "x"}]}, "has the key 1, which is no text"),
        ({"texts": ["b"], "metadatas": [{"s": "a\0"}]}, "metadata.s holds a NUL"),
        ({"texts": ["b"], "metadatas": [{"s\ud83d": 1}]}, "has a key with a NUL or half"),
        ({"texts": ["b"], "metadatas": [["x"]]}, "metadata must be an object, not list"),
        ({"texts": ["b"], "metadatas": [{"s": "x" * 70_000}]}, "characters as JSON"),
        ({"texts": ["b"], "metadatas": [{"n": 10**5000}]}, "too long"),
        ({"texts": ["b"], "collection": ""}, "the collection is blank"),
        ({"texts": ["b"], "collection": "x" * 300}, "the collection has 300 bytes"),
    ],
)
def test_what_cannot_be_stored_is_told_and_nothing_is_half_written(
    desk: Desk, given: Mapping[str, Any], reason: str
) -> None:
    """A good text beside it does not go in either."""
    good = {name: ["good", *each] for name, each in given.items() if name == "texts"}
    if given.get("ids"):
        good["ids"] = ["good", *given["ids"]]
    if "metadatas" in given and len(given["metadatas"]) == 1:
        good["metadatas"] = [{}, *given["metadatas"]]

    with pytest.raises(InvalidValue, match=reason):
        desk.service.add_texts(**given)
    if len(good) == len(given):
        with pytest.raises(InvalidValue, match=reason):
            desk.service.add_texts(**good)

    assert desk.rows(CHUNKS) == desk.rows(PENDING) == set()


def test_metadata_that_is_nested_without_end_is_refused(desk: Desk) -> None:
    """It exhausts no stack."""
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    own: dict[str, Any] = {}
    own["itself"] = own

    for metadata in (deep, own):
        with pytest.raises(InvalidValue, match="nested deeper than 50 levels"):
            desk.service.add_texts(["text"], metadatas=[metadata])
    while deep:  # or freeing it would exhaust the stack of older Pythons
        deep = deep["a"]


# Vectors, at once or by the worker


def test_a_worker_makes_the_vectors_where_none_are_asked_for_at_once(desk: Desk) -> None:
    """Nobody is asked before that."""
    added = desk.service.add_document(GUIDE, path="guide.md", embed=False)

    assert (added.chunks, added.embedded, added.note) == (3, 0, None)
    assert desk.embedder.asked == []
    assert len(desk.rows(PENDING)) == 3
    Worker(desk.owner, kinds=["embed"]).run(once=True)
    assert len(desk.rows(VECTORS)) == 3
    assert desk.rows(PENDING) == set()


def test_an_embedder_that_fails_leaves_the_document_and_says_so(desk: Desk) -> None:
    """Its jobs stay for a worker."""
    desk.embedder.silent = True

    added = desk.service.add_document(GUIDE, path="guide.md")

    assert (added.chunks, added.embedded) == (3, 0)
    assert "did not answer" in (added.note or "")
    assert len(desk.service.get("guide.md").chunks) == 3
    assert len(desk.rows(PENDING)) == 3


def test_a_refused_chunk_leaves_the_others_their_vectors(desk: Desk) -> None:
    """The note says why it has none."""
    desk.embedder.refused = ("Run it",)

    added = desk.service.add_document(GUIDE, path="guide.md")

    assert (added.chunks, added.embedded) == (3, 2)
    assert "too long for the model" in (added.note or "")


# Documents


def test_a_document_has_its_headings_anchors_and_address(desk: Desk) -> None:
    """Front matter is metadata, beside what the caller gives."""
    added = desk.service.add_document(
        "---\ntitle: The guide\nauthor: Ann\n---\n" + GUIDE,
        path="wiki/guide.md",
        metadata={"author": "Bob", "team": 7},
        source_url="https://example.org/guide",
    )

    document = desk.service.get("wiki/guide.md")
    assert document.id == added.id
    assert (document.title, document.source_url) == ("The guide", "https://example.org/guide")
    assert document.metadata == {"title": "The guide", "author": "Bob", "team": 7}
    assert document.is_shared
    assert [(each.heading_path, each.anchor) for each in document.chunks] == [
        (("Guide",), "guide"),
        (("Guide", "Install"), "install"),
        (("Guide", "Use"), "use"),
    ]


def test_the_suffix_says_the_format_and_bytes_are_a_file(desk: Desk) -> None:
    """Without one, a document is Markdown."""
    desk.service.add_document(b"<h1>Page</h1><p>Words.</p>", path="a.html")
    desk.service.add_document("# Heading\n\nWords.", path="b")

    assert desk.service.get("a.html").content_type == "text/html"
    assert desk.service.get("b").chunks[0].heading_path == ("Heading",)
    with pytest.raises(InvalidValue, match=r"'c.pdf' cannot be read"):
        desk.service.add_document(b"no PDF", path="c.pdf")
    with pytest.raises(InvalidValue, match="no known format"):
        desk.service.add_document(b"x", path="d.xyz")


def test_an_edited_document_embeds_its_changed_chunks_alone(desk: Desk) -> None:
    """Added again or updated, it is the same document."""
    first = desk.service.add_document(GUIDE, path="guide.md")
    asked = len(desk.embedder.asked)

    second = desk.service.add_document(GUIDE.replace("Run it.", "Run."), path="guide.md")
    third = desk.service.update("guide.md", content=GUIDE.replace("Ask it.", "Ask."))

    assert first.id == second.id == third.id
    assert third.embedded == third.chunks == 3
    assert sorted(desk.embedder.asked[asked:]) == [
        "Guide > Install\nRun it.",
        "Guide > Install\nRun.",
        "Guide > Use\nAsk.",
    ]


def test_what_is_not_updated_stays(desk: Desk) -> None:
    """Title, metadata and content are changed one by one; chunks follow."""
    desk.service.add_document(GUIDE, path="guide.md", metadata={"a": 1}, title="Mine")
    asked = len(desk.embedder.asked)

    desk.service.update("guide.md", metadata={"b": 2})
    desk.service.update("guide.md", title="Ours")

    document = desk.service.get("guide.md")
    assert (document.title, document.metadata) == ("Ours", {"b": 2})
    assert [each.metadata for each in document.chunks] == [{"b": 2}] * 3
    assert len(desk.embedder.asked) == asked
    with pytest.raises(NotFound, match=r"no document 'other\.md'"):
        desk.service.update("other.md", title="x")
    with pytest.raises(InvalidValue, match="is nan"):
        desk.service.update("guide.md", metadata={"b": math.nan})


def test_new_content_says_more_of_itself_than_what_was_stored(desk: Desk) -> None:
    """Its front matter counts; what that does not say stays."""
    desk.service.add_document("---\nstatus: draft\n---\nText.", path="a.md", metadata={"team": 7})

    desk.service.update("a.md", content="---\nstatus: final\n---\nText.")

    assert desk.service.get("a.md").metadata == {"status": "final", "team": 7}


def test_an_updated_text_stays_a_plain_text(desk: Desk) -> None:
    """A line that begins with a hash is no heading of one."""
    desk.service.add_texts(["# one"], ids=["a"])

    desk.service.update("a", content="# two\n\nand more")

    assert [each.text for each in desk.service.get("a").chunks] == ["# two\n\nand more"]


# Whose they are


def test_a_tenant_that_is_not_there_is_named_as_the_cause(desk: Desk) -> None:
    """It is told where tenants are listed; nothing is added."""
    nobody = Scope.tenant(uuid4())

    with pytest.raises(MissingReference, match="no such tenant; see: pgcorpus tenants list"):
        desk.own.add_texts(["a kettle"], scope=nobody)

    assert not desk.own.list_documents(scope=nobody).items


def test_a_tenant_reads_shared_documents_and_its_own_first(desk: Desk) -> None:
    """At the same path; nobody reads another tenant's."""
    desk.service.add_document("Of all.", path="a.md")
    desk.own.add_document("Ours.", path="a.md", scope=desk.ours)
    desk.own.add_document("More.", path="b.md", scope=desk.ours)

    assert desk.own.get("a.md", scope=desk.ours).chunks[0].text == "Ours."
    assert desk.own.get("a.md", scope=desk.theirs).chunks[0].text == "Of all."
    assert desk.own.get("a.md").is_shared
    assert paths(desk.own, desk.ours) == ["a.md", "a.md", "b.md"]
    assert paths(desk.own, desk.theirs) == ["a.md"]
    with pytest.raises(NotFound):
        desk.own.get("b.md", scope=desk.theirs)


def test_only_administrators_write_for_everybody(desk: Desk) -> None:
    """Adding, changing and deleting are refused, with what to do."""
    desk.service.add_document("Of all.", path="a.md")

    for write in (
        lambda: desk.own.add_texts(["x"]),
        lambda: desk.own.add_document("x", path="a.md"),
        lambda: desk.own.update("a.md", title="x"),
        lambda: desk.own.delete(["a.md"]),
    ):
        with pytest.raises(NotPermitted, match=r"rag_admin .* pgcorpus roles create-user"):
            write()
    with pytest.raises(NotFound):
        desk.own.update("a.md", title="x", scope=desk.ours)
    assert desk.own.delete(["a.md"], scope=desk.ours) == 0
    assert desk.service.get("a.md").title is None


# Deleting


def test_documents_are_deleted_by_id_path_filter_and_metadata(desk: Desk) -> None:
    """With their chunks and vectors; what is not there is passed over."""
    desk.service.add_texts(
        ["One.", "Two.", "Three.", "Four."],
        ids=["1", "2", "3", "4"],
        metadatas=[{"n": 1}, {"n": 2}, {"n": 3}, {"n": 4}],
    )
    desk.service.add_document(GUIDE, path="wiki/guide.md")
    desk.service.add_document(GUIDE, path="wiki/other.html")

    assert desk.service.delete(["1", "not there"]) == 1
    assert desk.service.delete(["wiki/other.html"]) == 1
    assert desk.service.delete(filters={"metadata": {"n": {"$gte": 3}}}) == 2
    assert paths(desk.service) == ["2", "wiki/guide.md"]
    assert desk.service.delete(filters={"path_prefix": "wiki/"}) == 1
    assert desk.service.delete(["2"]) == 1
    assert desk.rows(CHUNKS) == desk.rows(VECTORS) == set()
    with pytest.raises(InvalidValue, match="say what to delete"):
        desk.service.delete()


def test_deleting_stays_within_its_collection(desk: Desk) -> None:
    """By id and by filter."""
    for collection in ("one", "two"):
        desk.service.add_texts(["x"], ids=["a"], metadatas=[{"n": 1}], collection=collection)

    assert desk.service.delete(["a"], collection="one") == 1
    assert desk.service.delete(filters={"metadata": {"n": 1}}, collection="one") == 0
    assert [each.collection for each in desk.service.list_documents().items] == ["two"]


# Lists


def test_a_list_goes_on_where_it_stopped_whatever_is_added_meanwhile(desk: Desk) -> None:
    """No document is seen twice, and none that was there is left out."""
    desk.service.add_texts(["x"] * 5, ids=[f"{n}" for n in range(0, 10, 2)], embed=False)
    seen: list[str] = []
    cursor = None

    for added in ("1", "9", "3", "5"):
        page = desk.service.list_documents(limit=2, cursor=cursor)
        seen += [each.path for each in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
        desk.service.add_texts(["x"], ids=[added], embed=False)

    assert len(seen) == len(set(seen))
    assert set(seen) >= {"0", "2", "4", "6", "8"}
    assert seen == sorted(seen)


def test_a_cursor_of_another_list_is_refused(desk: Desk) -> None:
    """Of another collection, or made up."""
    desk.service.add_texts(["x"] * 3, ids=list("abc"), embed=False)
    cursor = desk.service.list_documents(limit=1).next_cursor

    for wrong in (
        {"cursor": cursor, "collection": "default"},
        {"cursor": "made up"},
        {"cursor": cursor, "path_prefix": "a"},
    ):
        with pytest.raises(InvalidCursor):
            desk.service.list_documents(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidValue):
        desk.service.list_documents(limit=0)


def test_a_list_is_narrowed_by_collection_and_path(desk: Desk) -> None:
    """A percent sign is no wildcard."""
    desk.service.add_texts(["x"] * 3, ids=["a/1", "a%/2", "b"], collection="one", embed=False)
    desk.service.add_texts(["x"], ids=["a/3"], collection="two", embed=False)

    assert paths(desk.service, path_prefix="a/") == ["a/1", "a/3"]
    assert paths(desk.service, path_prefix="a%") == ["a%/2"]
    assert paths(desk.service, collection="two") == ["a/3"]


# asyncio


def test_documents_are_kept_in_an_event_loop(desk: Desk) -> None:
    """The same methods, awaited; several at once."""

    async def run() -> list[str]:
        own = Database(desk.application.settings)
        service = AsyncDocumentService(own, desk.embedder)
        try:
            await asyncio.gather(
                *(
                    service.add_document(f"# {n}\n\nText.", path=f"{n}.md", scope=desk.ours)
                    for n in range(4)
                )
            )
            await service.add_texts(["x"], ids=["4"], scope=desk.ours)
            await service.update("4", content="y", scope=desk.ours)
            await service.delete(["0.md"], scope=desk.ours)
            page = await service.list_documents(scope=desk.ours)
            assert (await service.get("4", scope=desk.ours)).chunks[0].text == "y"
            return [each.path for each in page.items]
        finally:
            await own.aclose()

    assert asyncio.run(run()) == ["1.md", "2.md", "3.md", "4"]
    assert len(desk.rows(VECTORS, desk.ours)) == 4
