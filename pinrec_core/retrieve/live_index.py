"""A release's index with the changes since: one search over the mapped main index and a side index in memory.

The main index is never written. An item that was added or replaced lives in the side index, whose cells are those of
the main one. An item that was replaced or deleted is hidden inside the search of the main index, so lists stay full.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import faiss
import numpy as np
from numpy.typing import NDArray

from pinrec_core.items.changes import ItemChanges
from pinrec_core.retrieve.index import Hits, Index, IvfHnswIndex, MainIndex, search_all_cells

_PIECE = 64
"""Items taken up under one hold of the lock: a search waits for less than a millisecond."""


class LiveIndex(Index):
    """`main` with changes. A search sees a change wholly or not at all: an item that is replaced is found once."""

    def __init__(self, main: MainIndex) -> None:
        self._main = main
        self._side = SideIndex(main)
        self._deleted: set[int] = set()
        self._lock = threading.Lock()

    @property
    def dim(self) -> int:
        """D of the queries."""
        return self._main.dim

    @property
    def num_items(self) -> int:
        """N: items that can be found now."""
        return self._main.num_items + self._side.num_items

    def is_deleted(self, item_id: int) -> bool:
        """Whether an item must not be shown, wherever it comes from."""
        return item_id in self._deleted

    def search(self, queries: NDArray[np.floating], ks: Sequence[int] | NDArray[np.integer]) -> list[Hits]:
        """See `Index`."""
        with self._lock:
            return super().search(queries, ks)

    def apply(self, changes: ItemChanges) -> None:
        """Take up changes, in small pieces between searches."""
        for start in range(0, len(changes), _PIECE):
            piece = changes.part(start, start + _PIECE)
            added = ~piece.deleted
            vectors = np.ascontiguousarray(piece.vectors[added])
            cells = self._side.cells_of(vectors)  # the costly part needs no lock
            with self._lock:
                self._main.hide(piece.item_ids)
                self._side.remove(piece.item_ids)
                self._side.add(piece.item_ids[added], vectors, cells)
                self._deleted.difference_update(piece.item_ids[added].tolist())
                self._deleted.update(piece.item_ids[piece.deleted].tolist())

    def nearest(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """See `Index`."""
        if not self._side.num_items:
            return self._main.nearest(queries, k)
        in_main = min(k, self._main.num_items)
        # Together they must give k: where the main index is too small for that, the side index gives all it has.
        found = [self._main.nearest(queries, in_main)] if in_main else []
        found.append(self._side.nearest(queries, min(k, self._side.num_items), whole=in_main < k))
        scores, item_ids = (np.hstack(parts) for parts in zip(*found, strict=True))
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, best, axis=1), np.take_along_axis(item_ids, best, axis=1)


class SideIndex:
    """Exact vectors in the main index's cells (one cell beside a flat one), under item ids. Not thread-safe."""

    def __init__(self, main: MainIndex) -> None:
        self._main = main
        dim, metric = main.dim, faiss.METRIC_INNER_PRODUCT
        if isinstance(main, IvfHnswIndex):
            quantizer, self._centroids = main.faiss.quantizer, main.centroids
        else:
            quantizer, self._centroids = faiss.IndexFlatIP(dim), np.zeros((1, dim), np.float32)
            quantizer.add(self._centroids)
        self._index = faiss.IndexIVFFlat(quantizer, dim, len(self._centroids), metric)
        self._index.set_direct_map_type(faiss.DirectMap.Hashtable)  # an item is removed without a scan

    @property
    def num_items(self) -> int:
        """How many items it holds."""
        return int(self._index.ntotal)

    def cells_of(self, vectors: NDArray[np.float32]) -> NDArray[np.int64]:
        """The cell of each vector: float32 [n, D] -> int64 [n]."""
        if not len(vectors):
            return np.empty(0, np.int64)
        _, cells = self._index.quantizer.search(vectors, 1)
        return np.ascontiguousarray(cells[:, 0])

    def add(self, item_ids: NDArray[np.int64], vectors: NDArray[np.float32], cells: NDArray[np.int64]) -> None:
        """Add items that it does not hold."""
        if len(item_ids):
            arrays = (vectors, np.ascontiguousarray(item_ids), cells)
            self._index.add_core(len(item_ids), *(faiss.swig_ptr(array) for array in arrays))

    def remove(self, item_ids: NDArray[np.int64]) -> None:
        """Forget items; ids that it does not hold are fine."""
        self._index.remove_ids(faiss.IDSelectorArray(item_ids))

    def nearest(
        self, queries: NDArray[np.float32], k: int, whole: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and item ids [n, k]. Missing ones have the lowest score there is; with `whole` none is missing."""
        if whole or not isinstance(self._main, IvfHnswIndex):
            return search_all_cells(self._index, self._centroids, queries, k)
        return self._main.search_near(self._index, queries, k)
