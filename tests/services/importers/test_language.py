"""Languages: found from texts, and what chunks get that name none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pgcorpus.db.engine import Database
from pgcorpus.services.importers.language import NAMES, configuration_of
from pgcorpus.services.knowledge.chunks import Context
from pgcorpus.services.knowledge.importer import KnowledgeImporter
from pgcorpus.services.knowledge.rules import normalise

TEXTS = {
    "english": "The price of a thing is what somebody gives up in order to get it.",
    "german": "Der Preis einer Sache ist das, was jemand aufgibt, um sie zu bekommen.",
    "spanish": "El precio de una cosa es aquello a lo que alguien renuncia para obtenerla.",
    "norwegian": "Prisen på en ting er det som noen gir fra seg for å få den, sier de.",
    "russian": "Цена вещи — это то, от чего кто-то отказывается, чтобы её получить.",
    "greek": "Η τιμή ενός πράγματος είναι αυτό που δίνει κάποιος για να το αποκτήσει.",  # noqa: RUF001 - it is Greek
    "hindi": "किसी वस्तु का मूल्य वह है जो कोई उसे पाने के लिए छोड़ देता है।",
    "estonian": "Asja hind on see, millest keegi loobub, et seda endale saada, ütlevad nad.",
}


@pytest.mark.parametrize(("name", "text"), TEXTS.items())
def test_a_text_is_stemmed_in_its_own_language(name: str, text: str) -> None:
    """By PostgreSQL's name for it."""
    assert configuration_of(text) == name
    assert name in NAMES


@pytest.mark.parametrize(
    "text",
    [
        "物品的价格是人们为了得到它而放弃的东西。",
        "ราคาของสิ่งของคือสิ่งที่ยอมสละเพื่อให้ได้มา",
        "",
        "12.50 + 7 %",
    ],
)
def test_what_postgresql_cannot_stem_is_simple(text: str) -> None:
    """Languages that it has no stemmer for, and texts in none."""
    assert configuration_of(text) == "simple"


def test_a_server_is_not_asked_for_what_it_does_not_have_yet() -> None:
    """PostgreSQL has stemmed Estonian since 18."""
    assert configuration_of(TEXTS["estonian"], postgresql=17) == "simple"
    assert configuration_of(TEXTS["german"], postgresql=15) == "german"


def languages(database: Database) -> dict[str, str]:
    """chunk_id → what it is stored in."""
    with database.unit_of_work() as work:
        records = work.knowledge.list_records(["named", *TEXTS])
    return {chunk_id: record.language for chunk_id, record in records.items()}


def test_chunks_that_name_no_language_get_the_one_that_is_asked_for(
    database: Database, tmp_path: Path
) -> None:
    """English as ever, a named one, or each its own; one that names its language keeps it."""
    file = tmp_path / "chunks.json"
    chunks = [{"chunk_id": name, "text": text} for name, text in TEXTS.items()]
    file.write_text(
        json.dumps([*chunks, {"chunk_id": "named", "text": TEXTS["german"], "language": "fr"}])
    )

    KnowledgeImporter(database).run([file])
    as_ever = languages(database)
    KnowledgeImporter(database, language="dutch").run([file])
    named = languages(database)
    report = KnowledgeImporter(database, language="auto").run([file])
    found = languages(database)
    again = KnowledgeImporter(database, language="auto").run([file])

    assert as_ever == dict.fromkeys(TEXTS, "english") | {"named": "french"}
    assert named == dict.fromkeys(TEXTS, "dutch") | {"named": "french"}
    assert found == {name: name for name in TEXTS} | {"named": "french"}
    assert (report.total("updated"), report.total("unchanged")) == (len(TEXTS), 1)
    assert again.total("unchanged") == len(TEXTS) + 1


def test_a_record_is_known_again_whatever_language_english_was_asked_for_by() -> None:
    """The default leaves the hash as it was before there was a choice."""
    chunk = {"chunk_id": "a", "text": TEXTS["german"]}
    hashes = {
        name: normalise(chunk, Context(), language=name).record_hash
        for name in ("english", "german")
    }

    assert normalise(chunk, Context()).record_hash == hashes["english"] != hashes["german"]
    assert normalise(chunk, Context(), language=configuration_of).record_hash == hashes["german"]
