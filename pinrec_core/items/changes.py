"""What changed among the items, in the vectors of one release: what the item service tells those who follow it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ItemChanges:
    """Items in their newest state, each once; of a deleted item the rows are zeros.

    item_ids int64 [n], deleted bool [n], vectors float32 [n, D] L2-normalized, content int8 [n, D_sem] with scale
    float32 [n].
    """

    item_ids: NDArray[np.int64]
    deleted: NDArray[np.bool_]
    vectors: NDArray[np.float32]
    content: NDArray[np.int8]
    scale: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.item_ids)

    def part(self, start: int, end: int) -> ItemChanges:
        """Rows `start` to `end`."""
        return ItemChanges(**{name: rows[start:end] for name, rows in vars(self).items()})
