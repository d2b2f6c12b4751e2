"""A small BERT with random weights, in the files of a real one, and a slow reference for it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

MARKS: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS: Final = ("the", "price", "of", "a", "kettle", "##s", "##le", "boil", "water", "in", "!", "?")


def write_bert(
    folder: Path, *, hidden: int = 32, layers: int = 2, heads: int = 4, longest: int = 12
) -> Path:
    """Write the files of a model.

    Args:
        folder: Where; made here.
        hidden: Length of the vectors.
        layers: How many.
        heads: Of each layer; they divide *hidden*.
        longest: Word pieces of a text, at most.
    """
    folder.mkdir()
    random = np.random.default_rng(7)
    config = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    shapes = {
        "embeddings.word_embeddings.weight": (len(MARKS + WORDS), hidden),
        "embeddings.position_embeddings.weight": (40, hidden),
        "embeddings.token_type_embeddings.weight": (2, hidden),
        **_norm("embeddings.LayerNorm", hidden),
    }
    for n in range(layers):
        layer = f"encoder.layer.{n}"
        for part in ("query", "key", "value"):
            shapes |= _dense(f"{layer}.attention.self.{part}", hidden, hidden)
        shapes |= _dense(f"{layer}.attention.output.dense", hidden, hidden)
        shapes |= _norm(f"{layer}.attention.output.LayerNorm", hidden)
        shapes |= _dense(f"{layer}.intermediate.dense", 4 * hidden, hidden)
        shapes |= _dense(f"{layer}.output.dense", hidden, 4 * hidden)
        shapes |= _norm(f"{layer}.output.LayerNorm", hidden)
    weights = {
        name: random.normal(scale=0.3, size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest}))
    tokenizer = Tokenizer(
        WordPiece({piece: n for n, piece in enumerate(MARKS + WORDS)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    # As the real one, which would cut and fill every text to 5.
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=5)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def compute_slowly(folder: Path, pieces: list[int]) -> np.ndarray:
    """Compute the vector of a text from its word pieces, number by number in float64."""
    config: Mapping[str, Any] = json.loads((folder / "config.json").read_text())
    weights = {
        name: array.astype(np.float64)
        for name, array in load_file(folder / "model.safetensors").items()
    }
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    size = hidden // heads

    def dense(name: str, row: np.ndarray) -> np.ndarray:
        return np.asarray(weights[f"{name}.weight"] @ row + weights[f"{name}.bias"])

    def norm(name: str, row: np.ndarray) -> np.ndarray:
        scaled = (row - row.mean()) / math.sqrt(row.var() + config["layer_norm_eps"])
        return np.asarray(scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"])

    rows = [
        norm(
            "embeddings.LayerNorm",
            weights["embeddings.word_embeddings.weight"][piece]
            + weights["embeddings.position_embeddings.weight"][place]
            + weights["embeddings.token_type_embeddings.weight"][0],
        )
        for place, piece in enumerate(pieces)
    ]
    for n in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{n}"
        query, key, value = (
            [dense(f"{layer}.attention.self.{part}", row) for row in rows]
            for part in ("query", "key", "value")
        )
        attended = []
        for asked in query:
            parts = []
            for head in range(heads):
                own = slice(head * size, (head + 1) * size)
                shares = [math.exp(asked[own] @ each[own] / math.sqrt(size)) for each in key]
                parts.append(
                    sum(share * each[own] for share, each in zip(shares, value, strict=True))
                    / sum(shares)
                )
            attended.append(np.concatenate(parts))
        rows = [
            norm(
                f"{layer}.attention.output.LayerNorm",
                row + dense(f"{layer}.attention.output.dense", each),
            )
            for row, each in zip(rows, attended, strict=True)
        ]
        for place, row in enumerate(rows):
            inner = [
                x / 2 * (1 + math.erf(x / math.sqrt(2)))
                for x in dense(f"{layer}.intermediate.dense", row)
            ]
            rows[place] = norm(
                f"{layer}.output.LayerNorm",
                row + dense(f"{layer}.output.dense", np.array(inner)),
            )
    mean = np.mean(rows, axis=0)
    return np.asarray(mean / np.linalg.norm(mean))


def _dense(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}
