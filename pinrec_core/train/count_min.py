"""Count-min sketch: how often an item is drawn as an in-batch negative, in bounded memory (paper, section 4.3).

Letters: n ids, d depth (rows, one hash each), w width (counters a row).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


class CountMinSketch:
    """Counts of int64 ids that are never too low, and exact while fewer ids collide than the sketch has rows."""

    def __init__(self, width: int, depth: int, seed: int = 0) -> None:
        self._counters = np.zeros((depth, width), dtype=np.int64)
        self._salts = np.random.default_rng(seed).integers(0, 2**64, size=(depth, 1), dtype=np.uint64)
        self.total = 0
        """How many ids were added, repeats included."""

    def add(self, ids: NDArray[np.int64]) -> None:
        """Count each of `ids` [n] once; repeats count again."""
        width = self._counters.shape[1]
        for counters, columns in zip(self._counters, self._columns(ids), strict=True):
            counters += np.bincount(columns, minlength=width)
        self.total += len(ids)

    def estimate(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count of each id, too high where it collides in every row, never too low: int64 [n] -> int64 [n]."""
        columns = self._columns(ids)
        counts: NDArray[np.int64] = np.take_along_axis(self._counters, columns, axis=1).min(axis=0)
        return counts

    def frequency(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Q(i), an id's share of everything added: [n] in [0, 1], 0 for an id never added (collisions aside)."""
        return self.estimate(ids) / max(self.total, 1)

    def log_q(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """log Q(i): float32 [n], -inf for an id never added (collisions aside)."""
        with np.errstate(divide="ignore"):
            return np.log(self.frequency(ids)).astype(np.float32)

    def _columns(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Counter of each id in each row: splitmix64's finalizer of the salted id, int64 [d, n]."""
        x = np.asarray(ids, dtype=np.int64).view(np.uint64)[None] ^ self._salts  # [d, n]
        x = (x ^ (x >> np.uint64(30))) * _MIX_1
        x = (x ^ (x >> np.uint64(27))) * _MIX_2
        x = x ^ (x >> np.uint64(31))
        return (x % np.uint64(self._counters.shape[1])).astype(np.int64)
