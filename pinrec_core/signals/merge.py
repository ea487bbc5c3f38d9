"""Joining the batch view and the realtime view. Pure numpy.

Everywhere a history is in the order of (timestamp_ms, event_id), so that it is the same whichever view holds an event.
Letters: n rows of one user or, with their owners, of several.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_NEVER_MS = np.iinfo(np.int64).max
_DTYPES = (np.int64, np.uint8, np.int32, np.int32, np.int64, np.uint64)


class HistoryRows(NamedTuple):
    """Events of one user as columns [n], oldest first. Codes of actions and surfaces mean what their owner says."""

    item_ids: NDArray[np.int64]
    item_types: NDArray[np.uint8]
    actions: NDArray[np.int32]
    surfaces: NDArray[np.int32]
    timestamps_ms: NDArray[np.int64]
    event_ids: NDArray[np.uint64]


class OwnedRows(NamedTuple):
    """Rows of several users together; `owners` uint16 [n] says whose each is, by place in the call."""

    rows: HistoryRows
    owners: NDArray[np.uint16]


def merge(batch: HistoryRows, realtime: HistoryRows) -> tuple[HistoryRows, NDArray[np.bool_]]:
    """Both views of one user as one history, oldest first, each event once: the plain twin of `merge_users`.

    Both come oldest first, events of equal time by event id, with the same codes. A realtime event whose id the batch
    view holds, or an earlier realtime event has, is left out. Returns the rows in the same order, and bool [n]: which
    of them only the realtime view has.
    """
    _, first = np.unique(realtime.event_ids, return_index=True)
    first.sort()
    fresh = first[~np.isin(realtime.event_ids[first], batch.event_ids)]
    joined = concatenate(batch, take(realtime, fresh))
    order = np.lexsort((joined.event_ids, joined.timestamps_ms))
    return take(joined, order), order >= len(batch.event_ids)


def merge_users(batch: OwnedRows, realtime: OwnedRows) -> tuple[OwnedRows, NDArray[np.bool_]]:
    """`merge` for each user, all at once: the batch view's owners ascend, and those of the result do.

    What the batch view has from before a user's oldest realtime event stays where it is; only the rest is sorted.
    """
    fresh = _fresh(batch, realtime)
    if not len(fresh):
        return batch, np.zeros(len(batch.owners), dtype=bool)
    newer = OwnedRows(take(realtime.rows, fresh), realtime.owners[fresh])
    joined, owners = concatenate(batch.rows, newer.rows), np.concatenate([batch.owners, newer.owners])
    oldest_ms = np.full(int(owners.max()) + 1, _NEVER_MS)
    np.minimum.at(oldest_ms, newer.owners, newer.rows.timestamps_ms)
    is_mixed = joined.timestamps_ms >= oldest_ms[owners]
    mixed = np.flatnonzero(is_mixed)
    mixed = mixed[np.lexsort((joined.event_ids[mixed], joined.timestamps_ms[mixed]))]
    order = np.concatenate([np.flatnonzero(~is_mixed), mixed])
    order = order[np.argsort(owners[order], kind="stable")]  # 16 bits: a radix sort
    return OwnedRows(take(joined, order), owners[order]), order >= len(batch.owners)


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


def _fresh(batch: OwnedRows, realtime: OwnedRows) -> NDArray[np.int64]:
    """Places of the realtime rows whose id neither the batch view nor an earlier realtime row of the user has."""
    if not len(realtime.owners):
        return np.zeros(0, dtype=np.int64)
    may_be_wanted = np.zeros(1 << 16, dtype=bool)
    may_be_wanted[realtime.rows.event_ids.astype(np.uint16)] = True
    held = np.flatnonzero(may_be_wanted[batch.rows.event_ids.astype(np.uint16)])  # few, and all that could be
    owners = np.concatenate([batch.owners[held], realtime.owners])
    event_ids = np.concatenate([batch.rows.event_ids[held], realtime.rows.event_ids])
    order = np.lexsort((event_ids, owners))  # stable: of equal ones the batch view's first, then the oldest
    owners, event_ids = owners[order], event_ids[order]
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (owners[1:] != owners[:-1]) | (event_ids[1:] != event_ids[:-1])
    return np.sort(order[is_first & (order >= len(held))]) - len(held)
