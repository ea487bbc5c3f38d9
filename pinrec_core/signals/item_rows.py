"""Where items lie in a release's item table, for the thousands of ids that one call of many users asks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_SPREAD = 0x9E3779B97F4A7C15
"""2^64 / golden ratio, odd: the top bits of a product with it, or with a power of it, depend on all bits of an id."""


class _Level(NamedTuple):
    """One hash table; an id may be in the slot of the top bits of its product with `factor`, or in a later level."""

    factor: np.uint64
    shift: np.uint64
    rows: NDArray[np.int32]
    """By slot; -1 = no id of this level or a later one has this slot."""

    def slots(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        return ((ids.view(np.uint64) * self.factor) >> self.shift).view(np.int64)


class ItemRows:
    """`ItemTable.rows` by hash instead of binary search: two far reads an id instead of twenty.

    Of the ids that meet in a slot one stays and the others go on to the next level, a table of their own. 10 to 20
    bytes an item, made in memory at opening. Letters: N items, n ids asked.
    """

    def __init__(self, ids: NDArray[np.int64]) -> None:
        """Ids int64 [N], each once, N < 2^31."""
        self._ids = ids
        self._levels: list[_Level] = []
        rows = np.arange(len(ids), dtype=np.int32)
        while len(rows) or not self._levels:
            bits = max(2 * len(rows) - 1, 1).bit_length()  # at most half full
            factor = np.uint64(pow(_SPREAD, len(self._levels) + 1, 1 << 64))
            level = _Level(factor, np.uint64(64 - bits), np.full(1 << bits, -1, dtype=np.int32))
            slots = level.slots(ids[rows])
            level.rows[slots] = rows
            self._levels.append(level)
            rows = rows[level.rows[slots] != rows]

    def of(self, item_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row of each id, -1 where the table lacks it: int64 [n] -> int64 [n]."""
        found = np.full(len(item_ids), -1, dtype=np.int64)
        if not len(self._ids):
            return found
        ids, asked = item_ids, np.arange(len(item_ids))
        for level in self._levels:
            rows = level.rows[level.slots(ids)]
            is_it = (self._ids[rows] == ids) & (rows >= 0)
            found[asked[is_it]] = rows[is_it]
            other = np.flatnonzero(~is_it & (rows >= 0))
            if not len(other):
                break
            ids, asked = ids[other], asked[other]
        return found
