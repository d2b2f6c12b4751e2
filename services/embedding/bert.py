"""The BERT encoder in NumPy: sentence embeddings without PyTorch.

PyTorch brings gigabytes of libraries for graphics cards, and the local model has six layers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

PIECES_AT_ONCE: Final = 4096
"""Word pieces, padding included, that are computed together: their attention takes 50 MB."""

HIDDEN: Final = np.float32(-1e9)
"""Number that is added to the attention to a padded place: ``exp`` makes 0 of it."""

ALONE: Final = 1 << 18
"""Multiplications up to which OpenBLAS takes one thread for a product (its interface/gemm.c). There
are hundreds of small ones, and on a machine with other work two threads would wait for each other
longer than they compute."""

ERF_P: Final = 0.3275911
ERF_A: Final = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
"""Abramowitz and Stegun 1964, 7.1.26: erf with an error of at most 1.5e-7. NumPy has none."""


@dataclass(frozen=True)
class _Layer:
    """The weights of a layer; each matrix as it is multiplied from the right."""

    attention: tuple[np.ndarray, np.ndarray]  # query, key and value beside each other
    attended: tuple[np.ndarray, np.ndarray]
    attended_norm: tuple[np.ndarray, np.ndarray]
    inner: tuple[np.ndarray, np.ndarray]
    outer: tuple[np.ndarray, np.ndarray]
    outer_norm: tuple[np.ndarray, np.ndarray]


class Bert:
    """A BERT whose sentence embedding is the mean of its last layer.

    Args:
        config: ``config.json`` of the model.
        weights: Name → float32 array, with the names of Hugging Face's ``BertModel``.
        tokenizer: Gives the word pieces; its own limits and padding are taken from it.
        max_pieces: Word pieces of a text, its two marks included; what is beyond is ignored.

    Raises:
        ValueError: The model is no BERT with GELU and absolute positions, which is all that is
            computed here.
        KeyError: A weight is missing.

    Source:
        Devlin et al. 2019, "BERT"; Reimers and Gurevych 2019, "Sentence-BERT", for the mean.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        weights: Mapping[str, np.ndarray],
        tokenizer: Tokenizer,
        max_pieces: int,
    ) -> None:
        shape = [
            config.get("model_type"),
            config.get("hidden_act"),
            config.get("position_embedding_type", "absolute"),
        ]
        if shape != ["bert", "gelu", "absolute"]:
            raise ValueError(f"no BERT with GELU and absolute positions, but {shape}")
        self.dimensions = int(config["hidden_size"])
        self._heads = int(config["num_attention_heads"])
        self._epsilon = np.float32(config["layer_norm_eps"])
        self._pad = int(config.get("pad_token_id", 0))
        self._words = weights["embeddings.word_embeddings.weight"]
        # No text is the second of a pair: its type is always the first.
        self._places = (
            weights["embeddings.position_embeddings.weight"]
            + weights["embeddings.token_type_embeddings.weight"][0]
        )
        self._norm = _norm(weights, "embeddings.LayerNorm")
        self._layers = [
            _layer(weights, f"encoder.layer.{n}") for n in range(int(config["num_hidden_layers"]))
        ]
        tokenizer.no_padding()
        tokenizer.enable_truncation(min(max_pieces, len(self._places)))
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load the model of a folder that sentence-transformers wrote.

        Args:
            folder: Holds ``config.json``, ``sentence_bert_config.json``, ``tokenizer.json`` and
                ``model.safetensors``.

        Raises:
            OSError: A file cannot be read.
            ValueError: A file is not what its name says, or the model is no BERT as above.
            KeyError: A weight or a setting is missing.
        """
        config, sentence = (
            json.loads((folder / name).read_text())
            for name in ("config.json", "sentence_bert_config.json")
        )
        weights = {
            name.removeprefix("bert."): array.astype(np.float32, copy=False)
            for name, array in load_file(folder / "model.safetensors").items()
        }
        tokenizer = Tokenizer.from_str((folder / "tokenizer.json").read_text())
        return cls(config, weights, tokenizer, int(sentence["max_seq_length"]))

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Turn *texts* into vectors, one per text, in the same order.

        Args:
            texts: Any texts without lone surrogates.

        Returns:
            float32 of shape ``(len(texts), dimensions)``, not of unit length.
        """
        pieces = [each.ids for each in self._tokenizer.encode_batch(list(texts))]
        vectors = np.empty((len(pieces), self.dimensions), dtype=np.float32)
        for places in _batches([len(each) for each in pieces]):
            vectors[places] = self._encode([pieces[place] for place in places])
        return vectors

    def _encode(self, pieces: Sequence[Sequence[int]]) -> np.ndarray:
        """Compute the vectors of texts that are padded to the length of the longest."""
        length = max(map(len, pieces))
        ids = np.full((len(pieces), length), self._pad)
        for row, each in zip(ids, pieces, strict=True):
            row[: len(each)] = each
        given = np.arange(length) < np.array([[len(each)] for each in pieces])
        bias = np.where(given, np.float32(0), HIDDEN)[:, None, None, :]
        state = _normalise(self._words[ids] + self._places[:length], self._norm, self._epsilon)
        for layer in self._layers:
            state = self._compute(layer, state, bias)
        total = np.einsum("tlh,tl->th", state, given.astype(np.float32))
        mean: np.ndarray = total / given.sum(axis=1, keepdims=True, dtype=np.float32)
        return mean

    def _compute(self, layer: _Layer, state: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """Compute a layer; *state* has the shape ``(texts, length, dimensions)``."""
        texts, length, size = state.shape
        split = (texts, length, 3, self._heads, size // self._heads)
        # Each has the shape (texts, heads, length, part of a head), and is in one piece, without
        # which NumPy multiplies no faster than Python.
        query, key, value = (
            np.ascontiguousarray(part)
            for part in _apply(state, layer.attention).reshape(split).transpose(2, 0, 3, 1, 4)
        )
        query *= np.float32(1 / math.sqrt(split[-1]))
        key = key.transpose(0, 1, 3, 2)
        attended = np.empty_like(query)
        step = max(1, ALONE // (length * split[-1]))
        for rows in (slice(start, start + step) for start in range(0, length, step)):
            scores = query[:, :, rows] @ key
            scores += bias
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=-1, keepdims=True)
            attended[:, :, rows] = scores @ value
        attended = attended.transpose(0, 2, 1, 3).reshape(state.shape)
        state = _normalise(
            state + _apply(attended, layer.attended), layer.attended_norm, self._epsilon
        )
        inner = _activate(_apply(state, layer.inner))
        return _normalise(state + _apply(inner, layer.outer), layer.outer_norm, self._epsilon)


def _layer(weights: Mapping[str, np.ndarray], name: str) -> _Layer:
    parts = [_matrix(weights, f"{name}.attention.self.{part}") for part in _ATTENTION]
    return _Layer(
        attention=(
            np.concatenate([matrix for matrix, _ in parts], axis=1),
            np.concatenate([bias for _, bias in parts]),
        ),
        attended=_matrix(weights, f"{name}.attention.output.dense"),
        attended_norm=_norm(weights, f"{name}.attention.output.LayerNorm"),
        inner=_matrix(weights, f"{name}.intermediate.dense"),
        outer=_matrix(weights, f"{name}.output.dense"),
        outer_norm=_norm(weights, f"{name}.output.LayerNorm"),
    )


_ATTENTION: Final = ("query", "key", "value")


def _matrix(weights: Mapping[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    return np.ascontiguousarray(weights[f"{name}.weight"].T), weights[f"{name}.bias"]


def _norm(weights: Mapping[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def _apply(state: np.ndarray, linear: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    matrix, bias = linear
    # One product of two matrices: NumPy would make one for each text.
    rows: np.ndarray = state.reshape(-1, state.shape[-1]) @ matrix
    rows += bias
    return rows.reshape(*state.shape[:-1], -1)


def _normalise(
    given: np.ndarray, norm: tuple[np.ndarray, np.ndarray], epsilon: np.float32
) -> np.ndarray:
    """Scale each row to mean 0 and variance 1, then by the weights of the layer."""
    weight, bias = norm
    state: np.ndarray = given - given.mean(axis=-1, keepdims=True)
    variance = np.einsum("...i,...i->...", state, state)[..., None] / np.float32(state.shape[-1])
    state /= np.sqrt(variance + epsilon)
    state *= weight
    state += bias
    return state


def _activate(state: np.ndarray) -> np.ndarray:
    """Apply GELU: each number times the share of the normal distribution that is below it."""
    scaled = np.abs(state) * np.float32(math.sqrt(0.5))
    part = 1 / (1 + np.float32(ERF_P) * scaled)
    series = np.zeros_like(part)
    for factor in ERF_A:
        series += np.float32(factor)
        series *= part
    scaled *= scaled
    np.negative(scaled, out=scaled)
    series *= np.exp(scaled, out=scaled)  # 1 - erf of the magnitude
    share: np.ndarray = np.where(state < 0, series, 2 - series)
    share *= state
    share *= np.float32(0.5)
    return share


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the places of texts that are computed together: of like length, longest first."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if batch and lengths[batch[0]] * (len(batch) + 1) > PIECES_AT_ONCE:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
