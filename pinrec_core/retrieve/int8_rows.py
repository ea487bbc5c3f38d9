"""All items as INT8 rows: they rank what coarser codes have found, and are searched whole where those fall short.

Letters: n queries, m found rows of each, N items, D.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pinrec_core import codec
from pinrec_core.errors import InvalidRelease

FILES = ("rows.npy", "row_scale.npy")
_AT_ONCE = 65_536
"""Rows of one product with the queries."""
_GATHERED = 1 << 22
"""Numbers that are taken out of the rows at once: 16 MB as float32."""

Ranked = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Scores and rows [n, k], descending; row -1 and score -inf where there are fewer."""


class Int8Rows:
    """codes: int8 [N, D]; scale: float32 [N]; either may be mapped from a file."""

    def __init__(self, codes: NDArray[np.int8], scale: NDArray[np.float32]) -> None:
        self._codes, self._scale = np.asarray(codes), np.asarray(scale)  # a memmap's own indexing is slow

    @classmethod
    def of(cls, vectors: NDArray[np.float32]) -> Int8Rows:
        """Of float32 vectors [N, D]."""
        return cls(*codec.quantize(vectors))

    @classmethod
    def open(cls, folder: Path, num_items: int, dim: int) -> Int8Rows:
        """Memory-map what `save` wrote. Raises InvalidRelease if it is not N rows of D."""
        try:
            codes, scale = (np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in FILES)
        except (OSError, ValueError) as error:
            raise InvalidRelease(f"index: {' or '.join(FILES)} cannot be opened: {type(error).__name__}") from error
        found = (codes.dtype, codes.shape, scale.dtype, scale.shape)
        if found != (np.int8, (num_items, dim), np.float32, (num_items,)):
            raise InvalidRelease(
                f"index: {FILES[0]} is {codes.dtype} {list(codes.shape)}, {FILES[1]} {scale.dtype} "
                f"{list(scale.shape)}; allowed: int8 [{num_items}, {dim}], float32 [{num_items}]"
            )
        return cls(codes, scale)

    def save(self, folder: Path) -> None:
        """Write the files of `FILES`."""
        np.save(folder / FILES[0], self._codes, allow_pickle=False)
        np.save(folder / FILES[1], self._scale, allow_pickle=False)

    def best(self, queries: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> Ranked:
        """The k best of these rows of each query: [n, D], [n, m] (-1 = none), k <= m."""
        scores = np.empty(rows.shape, np.float32)
        step = max(1, _GATHERED // (rows.shape[1] * queries.shape[1]))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            taken = np.maximum(rows[part], 0)
            products = np.einsum("nmd,nd->nm", self._codes[taken].astype(np.float32), queries[part])
            scores[part] = products * self._scale[taken]
        return _first(np.where(rows < 0, -np.inf, scores), rows, k)

    def best_of_all(self, queries: NDArray[np.float32], k: int, shown: NDArray[np.uint8] | None) -> Ranked:
        """The k best of all rows, or of those whose bit in `shown` is set: [n, D] -> [n, k], k <= N."""
        scores, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        for start in range(0, len(self._codes), _AT_ONCE):
            these = np.arange(start, min(start + _AT_ONCE, len(self._codes)))
            products = queries @ self._codes[these].astype(np.float32).T * self._scale[these]  # [n, rows at once]
            found = np.broadcast_to(these, products.shape)
            if shown is not None:
                hidden = (shown[these >> 3] >> (these & 7).astype(np.uint8) & 1) == 0
                products[:, hidden], found = -np.inf, np.where(hidden, -1, found)
            scores, rows = np.hstack([scores, products]), np.hstack([rows, found])
            scores, rows = _first(scores, rows, min(k, scores.shape[1]))
        return scores, rows


def _first(scores: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> Ranked:
    """The k largest of each list, descending."""
    if k < scores.shape[1] // 4:
        few = np.argpartition(scores, -k, axis=1)[:, -k:]
        scores, rows = np.take_along_axis(scores, few, axis=1), np.take_along_axis(rows, few, axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
