"""Joining the batch view and the realtime view of one user. Pure numpy.

Letters: n rows of one user.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pinrec_core.schema import MAX_SEEN_ITEMS, ItemType

_DTYPES = (np.int64, np.uint8, np.int32, np.int32, np.int64, np.uint64)


class HistoryRows(NamedTuple):
    """Events of one user as columns [n], oldest first. Codes of actions and surfaces mean what their owner says."""

    item_ids: NDArray[np.int64]
    item_types: NDArray[np.uint8]
    actions: NDArray[np.int32]
    surfaces: NDArray[np.int32]
    timestamps_ms: NDArray[np.int64]
    event_ids: NDArray[np.uint64]


def merge(batch: HistoryRows, realtime: HistoryRows) -> tuple[HistoryRows, NDArray[np.bool_]]:
    """Both views as one history, oldest first, each event once.

    Both come oldest first with the same codes. A realtime event whose id the batch view holds, or an earlier realtime
    event has, is left out. Events of equal time keep their order, batch before realtime. Returns the rows, and bool
    [n]: which of them only the realtime view has.
    """
    fresh = _fresh(batch.event_ids, realtime.event_ids)
    num_batch = len(batch.event_ids)
    if not len(fresh):
        return batch, np.zeros(num_batch, dtype=bool)
    joined = concatenate(batch, take(realtime, fresh))
    order = np.argsort(joined.timestamps_ms, kind="stable")
    return take(joined, order), order >= num_batch


def take(rows: HistoryRows, places: NDArray[np.int64] | slice) -> HistoryRows:
    """The rows at `places`, in that order."""
    return HistoryRows._make(column[places] for column in rows)


def concatenate(first: HistoryRows, second: HistoryRows) -> HistoryRows:
    """The rows of `first`, then those of `second`."""
    columns: Iterator[tuple[NDArray[Any], NDArray[Any]]] = zip(first, second, strict=True)
    return HistoryRows._make(np.concatenate(pair) for pair in columns)


def history_rows(events: Sequence[tuple[int, int, int, int, int, int]]) -> HistoryRows:
    """Rows from tuples in the order of the columns (none gives empty columns)."""
    columns = list(zip(*events, strict=True)) or [()] * len(_DTYPES)
    return HistoryRows._make(np.array(column, dtype) for column, dtype in zip(columns, _DTYPES, strict=True))


def newest(rows: HistoryRows, count: int) -> HistoryRows:
    """The last `count` rows (all, if there are fewer)."""
    start = max(len(rows.item_ids) - count, 0)
    return take(rows, slice(start, None))


def seen_items(rows: HistoryRows) -> NDArray[np.int64]:
    """Pins of a history, newest kept: int64 [S], 1 <= S <= MAX_SEEN_ITEMS; one -1 if there is none."""
    pins = rows.item_ids[rows.item_types == ItemType.PIN][-MAX_SEEN_ITEMS:]
    return pins if len(pins) else np.full(1, -1, dtype=np.int64)


def _fresh(batch_ids: NDArray[np.uint64], realtime_ids: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Places of the realtime ids that neither the batch view nor an earlier realtime row has, ascending."""
    if not len(realtime_ids):
        return np.zeros(0, dtype=np.int64)
    _, first = np.unique(realtime_ids, return_index=True)
    first.sort()
    return first[~np.isin(realtime_ids[first], batch_ids)]
