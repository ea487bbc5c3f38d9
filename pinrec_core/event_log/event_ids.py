"""Ids of events that came without one, the same in every process: in the log's reader and in the store of appends.

An event id of 0 means "not given". The derived id is a 64-bit hash of (user_id, item_id, item_type, action, surface,
timestamp_ms) and of the occurrence number among equal rows: of one landing day of a log (`event_log/landing.py`), or of
one call for an append. So a retried append, a row that lands again on another day and the log that later holds the same
event agree. `text` is left out, since a search query's item_id is already
the hash of its text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@lru_cache(maxsize=4_096)
def name_hash(name: str) -> int:
    """Stable uint64 of an action's or surface's name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def derived_event_ids(
    keys: Iterable[NDArray[np.generic]], days: NDArray[np.int32] | None = None
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Ids of rows that came without one: uint64 [n], never 0; and how many earlier rows equal each: int64 [n].

    keys: the integer columns [n] user_id, item_id, item_type, hash of action, hash of surface, timestamp_ms, in this
    order; read one by one, so that a generator holds one at a time. Equal rows are told apart by their occurrence,
    which counts within each of the landing `days` int32 [n].
    """
    hashes = _row_hashes(keys)
    earlier = _earlier_equals(hashes if days is None else _mix(hashes + days.astype(np.uint64) * _GOLDEN))
    return _numbered(hashes, earlier), earlier


def numbered_event_ids(keys: Iterable[NDArray[np.generic]], earlier: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The ids uint64 [n] that `derived_event_ids` gives where `earlier` int64 [n] equal rows came before."""
    return _numbered(_row_hashes(keys), earlier)


def _row_hashes(keys: Iterable[NDArray[np.generic]]) -> NDArray[np.uint64]:
    hashes = np.zeros(1, dtype=np.uint64)
    for key in keys:
        hashes = _mix(hashes + _GOLDEN + key.astype(np.uint64, copy=False))
    return hashes


def _numbered(hashes: NDArray[np.uint64], earlier: NDArray[np.int64]) -> NDArray[np.uint64]:
    ids = _mix(hashes + earlier.view(np.uint64) * _GOLDEN)
    ids[ids == 0] = 1
    return ids


def _earlier_equals(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """How many earlier rows have the same hash, int64 [n]."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    again = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1  # places in the order, in runs that go on from a first row
    is_second = np.diff(again, prepend=-1) != 1
    first = np.maximum.accumulate(np.where(is_second, again - 1, 0))
    earlier = np.zeros(len(hashes), dtype=np.int64)
    earlier[order[again]] = again - first
    return earlier


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finalizer of splitmix64, in place: spreads every input bit over the whole word."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values
