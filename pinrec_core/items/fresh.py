"""Content rows of items that came after a release: what histories need of them."""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pinrec_core.items.changes import ItemChanges

_LEAST_ROWS = 1_024


class _Snapshot(NamedTuple):
    """What a reader sees: `ids` int64 [n] sorted, `rows` int64 [n] their rows of the arrays behind."""

    ids: NDArray[np.int64]
    rows: NDArray[np.int64]
    content: NDArray[np.int8]
    scale: NDArray[np.float32]


class FreshItems:
    """INT8 content of added and replaced items, by id. Readers take no lock; one writer at a time changes it.

    A row is written before the snapshot that shows it, and never written again, so that a reader's snapshot stays true.
    """

    def __init__(self, content_dim: int) -> None:
        none = np.empty(0, np.int64)
        rows = np.zeros((_LEAST_ROWS, content_dim), np.int8)
        self._now = _Snapshot(none, none, rows, np.zeros(_LEAST_ROWS, np.float32))
        self._used = 0
        self._lock = threading.Lock()

    @property
    def knows_any(self) -> bool:
        """Whether there is any item to ask for."""
        return len(self._now.ids) > 0

    def content_of(
        self, item_ids: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int8], NDArray[np.float32]]:
        """Int64 [n] -> known bool [n], content int8 [n, D_sem], scale float32 [n]; zeros where an item is not known."""
        now = self._now
        if not len(now.ids):
            known = np.zeros(len(item_ids), dtype=bool)
            return known, np.zeros((len(item_ids), now.content.shape[1]), np.int8), np.zeros(len(item_ids), np.float32)
        at = np.minimum(np.searchsorted(now.ids, item_ids), len(now.ids) - 1)
        known = now.ids[at] == item_ids
        rows = now.rows[at]
        content, scale = now.content[rows], now.scale[rows]
        content[~known], scale[~known] = 0, 0
        return known, content, scale

    def apply(self, changes: ItemChanges) -> None:
        """Take up changes: an item's newest content, or that it was deleted (a release may still know its row)."""
        added = np.flatnonzero(~changes.deleted)
        with self._lock:
            now = self._now
            kept = ~np.isin(now.ids, changes.item_ids)
            ids, rows, content, scale = now.ids[kept], now.rows[kept], now.content, now.scale
            if self._used + len(added) > len(content):
                content, scale = _with_room(content[rows], scale[rows], len(added))
                rows = np.arange(len(rows))
                self._used = len(rows)
            new = np.arange(self._used, self._used + len(added))
            content[new], scale[new] = changes.content[added], changes.scale[added]
            self._used += len(added)
            ids, rows = np.concatenate([ids, changes.item_ids[added]]), np.concatenate([rows, new])
            order = np.argsort(ids, kind="stable")
            self._now = _Snapshot(ids[order], rows[order], content, scale)


def _with_room(
    content: NDArray[np.int8], scale: NDArray[np.float32], more: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The rows at the head of new arrays with twice the room that they and `more` of them need."""
    room = max(_LEAST_ROWS, 2 * (len(content) + more)) - len(content)
    return np.pad(content, ((0, room), (0, 0))), np.pad(scale, (0, room))
