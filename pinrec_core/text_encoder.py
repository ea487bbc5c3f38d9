"""Text to content vectors: hashed word and character n-grams, weighted by rarity, times a fitted projection.

The projection is a randomized SVD of the texts' features (`fit`), or a ridge regression from them to given embeddings
(`fit_to`), so that search queries live in the space of items that brought their own. numpy only; saved as
two `.npy` files and one JSON file: no pickle on the load path.

Letters: n texts, G n-grams of all texts, F features (hash buckets), K rank of the SVD, dim = D_sem.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pinrec_core.errors import InvalidRelease

_FORMAT = 1
_NUM_FEATURES = 1 << 15
_CHAR_SIZES = (3, 4)
_CHAR_WEIGHT = 0.3
"""A word should outweigh each of the several character n-grams that it contains."""
_MAX_FIT_TEXTS = 50_000
"""Texts that a fit looks at (a seeded sample of more); enough for a projection to a few hundred columns."""
_TEXTS_PER_CHUNK = 4_096
_ROWS_PER_SUM = 32
"""Rows of a sparse product summed at once: their terms stay in the processor's cache."""
_RIDGE = 1.0
"""Penalty of the regression; a text's features have unit length, so this is worth about one text."""
_RIDGE_ITERATIONS = 10
_OVERSAMPLING = 10
_POWER_ITERATIONS = 2
_NOT_WORDS = re.compile(r"[\W_]+")

_BASE = np.uint64(0x9E3779B97F4A7C15)
_BASE_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))


def normalize_text(text: str) -> str:
    """Compatibility form, case folded, runs of anything but letters and digits turned into one space, trimmed."""
    return _NOT_WORDS.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def query_item_id(text: str) -> int:
    """Item id of a search query: the signed 64-bit BLAKE2b hash of its normalized text, the same in every process."""
    digest = hashlib.blake2b(normalize_text(text).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


@dataclass(frozen=True)
class TextEncoder:
    """A fitted encoder: `idf` float32 [F] weighs the features, `projection` float32 [F, dim] maps them to content."""

    idf: NDArray[np.float32]
    projection: NDArray[np.float32]

    @property
    def dim(self) -> int:
        """D_sem: width of the vectors."""
        return int(self.projection.shape[1])

    @classmethod
    def fit(cls, texts: Sequence[str], dim: int, seed: int = 0) -> TextEncoder:
        """Fit idf weights and a rank-`dim` SVD on `texts`.

        Directions are scaled by the inverse root of their singular value: halfway between plain latent semantic
        analysis, which the commonest words dominate, and full whitening, which amplifies noise. Fewer distinct texts
        than `dim` leave the last columns zero.
        """
        sample = _sample(texts, seed)
        idf = _fit_idf(sample)
        directions, singular = _svd(_features(sample, idf), dim, seed)
        return cls(idf, _pad_columns(directions * _inverse(np.sqrt(singular)), dim))

    @classmethod
    def fit_to(cls, texts: Sequence[str], embeddings: NDArray[np.floating], seed: int = 0) -> TextEncoder:
        """Fit so that `encode(texts)` points where `embeddings` float [n, dim] do: ridge regression."""
        chosen = _sample_rows(len(texts), seed)
        sample = [texts[i] for i in chosen]
        idf = _fit_idf(sample)
        targets = _normalized(np.asarray(embeddings, dtype=np.float32)[chosen])
        return cls(idf, _ridge(_features(sample, idf), targets))

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of `texts`: float32 [n, dim], L2-normalized; a text without a known n-gram gives a zero row."""
        rows = [np.zeros((0, self.dim), dtype=np.float32)]
        for start in range(0, len(texts), _TEXTS_PER_CHUNK):
            rows.append(_features(texts[start : start + _TEXTS_PER_CHUNK], self.idf).times(self.projection))
        return _normalized(np.concatenate(rows))

    def save(self, folder: Path) -> None:
        """Write the encoder into `folder` (made if missing)."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "idf.npy", self.idf, allow_pickle=False)
        np.save(folder / "projection.npy", self.projection, allow_pickle=False)
        (folder / "text_encoder.json").write_text(json.dumps({"format": _FORMAT, "dim": self.dim}))

    @classmethod
    def load(cls, folder: Path) -> TextEncoder:
        """Read what `save` wrote. Raises InvalidRelease saying which file is wrong."""
        try:
            facts = json.loads((folder / "text_encoder.json").read_text())
            idf = np.load(folder / "idf.npy", allow_pickle=False)
            projection = np.load(folder / "projection.npy", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InvalidRelease(f"text encoder cannot be opened: {type(error).__name__}") from error
        if not isinstance(facts, dict) or facts.get("format") != _FORMAT:
            raise InvalidRelease(f"text encoder: text_encoder.json must say format {_FORMAT}")
        if idf.shape != (_NUM_FEATURES,) or projection.shape != (_NUM_FEATURES, facts.get("dim")):
            raise InvalidRelease(
                f"text encoder: idf.npy {idf.shape} and projection.npy {projection.shape} must be "
                f"({_NUM_FEATURES},) and ({_NUM_FEATURES}, {facts.get('dim')})"
            )
        return cls(idf.astype(np.float32), projection.astype(np.float32))


@dataclass(frozen=True)
class _Features:
    """A sparse matrix [n, F] by rows: `columns` and `values` of row i lie at `offsets[i]:offsets[i + 1]`."""

    offsets: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: NDArray[np.float32]

    def times(self, dense: NDArray[np.float32]) -> NDArray[np.float32]:
        """This [n, F] times `dense` [F, K] -> float32 [n, K], in bounded memory."""
        return _sum_rows(self.offsets, self.columns, self.values, dense)

    def transposed(self, num_features: int) -> _Features:
        """The [F, n] matrix, by rows."""
        order = np.argsort(self.columns, kind="stable")
        rows = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        offsets = np.searchsorted(self.columns[order], np.arange(num_features + 1))
        return _Features(offsets.astype(np.int64), rows[order], self.values[order])


def _sum_rows(
    offsets: NDArray[np.int64], columns: NDArray[np.int64], values: NDArray[np.float32], dense: NDArray[np.float32]
) -> NDArray[np.float32]:
    result = np.zeros((len(offsets) - 1, dense.shape[1]), dtype=np.float32)
    for first in range(0, len(result), _ROWS_PER_SUM):
        bounds = offsets[first : first + _ROWS_PER_SUM + 1]
        filled = np.flatnonzero(np.diff(bounds))
        if not len(filled):
            continue
        span = slice(bounds[0], bounds[-1])
        terms = np.take(dense, columns[span], axis=0)
        terms *= values[span, None]
        result[first + filled] = np.add.reduceat(terms, bounds[filled] - bounds[0], axis=0)
    return result


def _fit_idf(texts: Sequence[str]) -> NDArray[np.float32]:
    """Rarity of each feature, float32 [F]: log((1 + n) / (1 + texts that hold it)), plus 1."""
    document_count = np.zeros(_NUM_FEATURES, dtype=np.int64)
    for _, columns, _ in _counts(texts):
        document_count += np.bincount(columns, minlength=_NUM_FEATURES)
    return (np.log((1 + len(texts)) / (1 + document_count)) + 1).astype(np.float32)


def _features(texts: Sequence[str], idf: NDArray[np.float32]) -> _Features:
    """Weighted n-gram counts, each row of unit length."""
    lengths = np.zeros(len(texts), dtype=np.int64)
    all_columns, all_values = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.float32)]
    for rows, columns, counts in _counts(texts):
        values = np.log1p(counts) * idf[columns]
        squares = np.bincount(rows, weights=np.square(values), minlength=len(texts))
        all_values.append((values / np.sqrt(squares[rows])).astype(np.float32))
        all_columns.append(columns)
        lengths += np.bincount(rows, minlength=len(texts))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return _Features(offsets, np.concatenate(all_columns), np.concatenate(all_values))


def _counts(texts: Sequence[str]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]:
    """Chunks of (text row [c], feature [c], weighted count [c]), ascending by text and feature."""
    for start in range(0, len(texts), _TEXTS_PER_CHUNK):
        rows, hashes, weights = _ngrams(texts[start : start + _TEXTS_PER_CHUNK])
        cells = rows * _NUM_FEATURES + (hashes % np.uint64(_NUM_FEATURES)).astype(np.int64)
        unique, inverse = np.unique(cells, return_inverse=True)
        counts = np.bincount(inverse, weights=weights, minlength=len(unique)).astype(np.float64)
        yield start + unique // _NUM_FEATURES, unique % _NUM_FEATURES, counts


def _ngrams(texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.float64]]:
    """All words, word pairs and character n-grams of a chunk: text row [G], hash [G], weight [G].

    All texts lie in one array of code points, each word followed by a space, so that every n-gram is a span of it and
    a prefix sum of `code * base^position` gives the hash of any span at once.
    """
    padded = [f" {text} " if (text := normalize_text(raw)) else "" for raw in texts]
    codes = np.frombuffer("".join(padded).encode("utf-32-le"), dtype=np.uint32)
    row_of_code = np.repeat(np.arange(len(padded)), [len(text) for text in padded])
    powers = np.full(len(codes) + 1, _BASE, dtype=np.uint64)
    inverses = np.full(len(codes) + 1, _BASE_INVERSE, dtype=np.uint64)
    powers[0] = inverses[0] = 1
    powers, inverses = np.cumprod(powers, dtype=np.uint64), np.cumprod(inverses, dtype=np.uint64)
    prefix = np.concatenate([np.zeros(1, np.uint64), np.cumsum(_mix(codes.astype(np.uint64)) * powers[:-1])])

    # Numbers and ids have no spelling: two that share digits are not alike, so their characters are left out.
    digits_before = np.concatenate([[0], np.cumsum((codes >= ord("0")) & (codes <= ord("9")))])
    starts, ends = _words(codes == ord(" "), row_of_code)
    paired = np.flatnonzero(row_of_code[starts[1:]] == row_of_code[starts[:-1]])
    spans = [(starts, ends, 1.0), (starts[paired], ends[paired + 1], 1.0)]
    for size in _CHAR_SIZES:
        first = np.arange(max(len(codes) - size + 1, 0))
        first = first[row_of_code[first] == row_of_code[first + size - 1]]
        first = first[digits_before[first] == digits_before[first + size]]
        spans.append((first, first + size, _CHAR_WEIGHT))

    hashes = [
        _mix((prefix[end] - prefix[start]) * inverses[start] + np.uint64(kind)) for kind, (start, end, _) in
        enumerate(spans, start=1)
    ]  # fmt: skip
    rows = [row_of_code[start] for start, _, _ in spans]
    weights = [np.full(len(start), weight) for start, _, weight in spans]
    return np.concatenate(rows), np.concatenate(hashes), np.concatenate(weights)


def _words(is_space: NDArray[np.bool_], row_of_code: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Start and end (exclusive) of each word; every text begins and ends with a space."""
    spaces = np.flatnonzero(is_space)
    inside = np.flatnonzero(row_of_code[spaces[1:]] == row_of_code[spaces[:-1]])
    return spaces[inside] + 1, spaces[inside + 1]


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finalizer of splitmix64: spreads every input bit over the whole word."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _svd(features: _Features, rank: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Randomized SVD (Halko et al. 2011): right singular vectors [F, K] and singular values [K], K <= rank."""
    flipped = features.transposed(_NUM_FEATURES)
    probe = np.random.default_rng(seed).standard_normal((_NUM_FEATURES, rank + _OVERSAMPLING), dtype=np.float32)
    basis = _orthogonal(features.times(probe))
    for _ in range(_POWER_ITERATIONS):
        basis = _orthogonal(features.times(_orthogonal(flipped.times(basis))))
    _, singular, right = np.linalg.svd(flipped.times(basis).T, full_matrices=False)
    kept = singular[:rank] > 1e-6 * max(float(singular.max(initial=0.0)), 1e-12)
    return np.ascontiguousarray(right[:rank][kept].T), singular[:rank][kept]


def _ridge(features: _Features, targets: NDArray[np.float32]) -> NDArray[np.float32]:
    """W float32 [F, dim] that minimizes |X W - targets|^2 + penalty |W|^2: conjugate gradients, all columns at once."""
    flipped = features.transposed(_NUM_FEATURES)
    weights = np.zeros((_NUM_FEATURES, targets.shape[1]), dtype=np.float32)
    residual = flipped.times(targets)
    direction = residual.copy()
    energy = np.square(residual).sum(axis=0)
    for _ in range(_RIDGE_ITERATIONS):
        image = flipped.times(features.times(direction)) + _RIDGE * direction
        step = energy / np.maximum((direction * image).sum(axis=0), np.float32(1e-30))
        weights += step * direction
        residual -= step * image
        new_energy = np.square(residual).sum(axis=0)
        direction = residual + new_energy / np.maximum(energy, np.float32(1e-30)) * direction
        energy = new_energy
    return weights


def _orthogonal(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    q: NDArray[np.float32] = np.linalg.qr(matrix)[0]
    return q


def _inverse(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return (1.0 / np.maximum(values, 1e-12)).astype(np.float32)


def _pad_columns(matrix: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    return np.pad(matrix, ((0, 0), (0, width - matrix.shape[1]))).astype(np.float32)


def _normalized(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of unit length; zero rows stay zero."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(norms > 1e-12, rows / np.maximum(norms, np.float32(1e-12)), np.float32(0)).astype(np.float32)


def _sample_rows(count: int, seed: int) -> NDArray[np.int64]:
    if count <= _MAX_FIT_TEXTS:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, _MAX_FIT_TEXTS, replace=False))


def _sample(texts: Sequence[str], seed: int) -> list[str]:
    return [texts[i] for i in _sample_rows(len(texts), seed)]
