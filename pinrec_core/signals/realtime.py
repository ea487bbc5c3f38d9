"""The realtime view: acknowledged events that the batch view may not hold yet (paper, section 4.4.1).

`HistoryStore` is the interface, with a twin in memory (tests, a laptop) and RocksDB (production on one machine). One
process owns a store; others ask the signal service, so that a read sees every acknowledged write.
"""

from __future__ import annotations

import struct
import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from rocksdict import Options, Rdict, ReadOptions, SliceTransform, WriteBatch, WriteOptions

from pinrec_core.errors import Unavailable
from pinrec_core.signals.events import Event, decode_row, encode_row, with_event_ids

_MAX_INT64 = (1 << 63) - 1
_MAX_EVENT_ID = (1 << 64) - 1
_BIAS = 1 << 63
"""Added to a signed integer, so that its unsigned big-endian bytes sort as the integer does."""

_KEY = struct.Struct(">QQQ")
"""user_id + bias | newest first: 2^63 - 1 - timestamp_ms | event_id."""

_USER_BYTES = 8


class HistoryStore(Protocol):
    """Events by user.

    Whoever implements this keeps three promises, which `tests/conformance/test_history_store.py` holds it to: `append`
    returns after the events are as safe as the store makes them, every later `read` holds them, and appending an event
    again (same user, time and event id) changes nothing.
    """

    def append(self, events: Sequence[Event]) -> int:
        """Store events, all or none; an event id of 0 is replaced by the derived one.

        Returns how many are stored now, repeats included. Raises Unavailable if they could not be made safe.
        """
        ...

    def read(self, user_ids: Sequence[int], since_ms: int, limit: int) -> list[list[Event]]:
        """For each user the newest `limit` events with timestamp_ms >= since_ms, newest first (ties: by event id)."""
        ...

    def close(self) -> None:
        """Release what the store holds; it cannot be used afterwards."""
        ...


class MemoryHistoryStore:
    """The plain twin: nothing survives the process."""

    def __init__(self) -> None:
        self._events: defaultdict[int, dict[tuple[int, int], Event]] = defaultdict(dict)
        self._lock = threading.Lock()

    def append(self, events: Sequence[Event]) -> int:
        """See `HistoryStore`."""
        with self._lock:
            for event in with_event_ids(events):
                self._events[event.user_id][-event.timestamp_ms, event.event_id] = event
        return len(events)

    def read(self, user_ids: Sequence[int], since_ms: int, limit: int) -> list[list[Event]]:
        """See `HistoryStore`."""
        with self._lock:
            return [self._newest(user_id, since_ms, limit) for user_id in user_ids]

    def close(self) -> None:
        """See `HistoryStore`."""
        self._events.clear()

    def _newest(self, user_id: int, since_ms: int, limit: int) -> list[Event]:
        events = sorted(self._events.get(user_id, {}).items())
        return [event for _, event in events if event.timestamp_ms >= since_ms][:limit]


class RocksHistoryStore:
    """RocksDB in raw mode, one row an event, synced to disk before `append` returns.

    Keys sort by user, then newest first, so that a read is one short scan; a repeated append writes the same key.
    Thread-safe: RocksDB joins concurrent writes into one sync.
    """

    def __init__(self, folder: Path) -> None:
        """Open or create the store. Raises Unavailable if another process owns it or its files are damaged."""
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_prefix_extractor(SliceTransform.create_fixed_prefix(_USER_BYTES))
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = Rdict(str(folder), options)
        except Exception as error:  # rocksdict raises nothing narrower
            raise Unavailable(f"realtime view cannot be opened: {_reason(error)}") from error
        self._synced = WriteOptions()
        self._synced.sync = True

    def append(self, events: Sequence[Event]) -> int:
        """See `HistoryStore`. One atomic write batch, one sync."""
        batch = WriteBatch(raw_mode=True)
        for event in with_event_ids(events):
            batch.put(_key(event.user_id, event.timestamp_ms, event.event_id), encode_row(event))
        try:
            self._db.write(batch, self._synced)
        except Exception as error:  # rocksdict raises nothing narrower
            raise Unavailable(f"events could not be written: {_reason(error)}") from error
        return len(events)

    def read(self, user_ids: Sequence[int], since_ms: int, limit: int) -> list[list[Event]]:
        """See `HistoryStore`. Raises Unavailable on damaged files, InvalidData on a row of an unknown version."""
        try:
            rows = [self._scan(user_id, since_ms, limit) for user_id in user_ids]
        except Exception as error:  # rocksdict raises nothing narrower
            raise Unavailable(f"events could not be read: {_reason(error)}") from error
        return [[_event(key, row) for key, row in rows_of_user] for rows_of_user in rows]

    def close(self) -> None:
        """See `HistoryStore`."""
        self._db.close()

    def _scan(self, user_id: int, since_ms: int, limit: int) -> list[tuple[bytes, bytes]]:
        """Keys and rows of one user, newest first."""
        bounds = ReadOptions()
        bounds.set_iterate_upper_bound(_key(user_id, since_ms, _MAX_EVENT_ID) + b"\x00")
        found = self._db.iter(bounds)
        found.seek(_key(user_id, _MAX_INT64, 0))
        rows: list[tuple[bytes, bytes]] = []
        while found.valid() and len(rows) < limit:
            rows.append((found.key(), found.value()))
            found.next()
        found.status()  # raises if the scan ended on damage rather than at its bound
        return rows


def _key(user_id: int, timestamp_ms: int, event_id: int) -> bytes:
    return _KEY.pack(user_id + _BIAS, _MAX_INT64 - timestamp_ms, event_id)


def _event(key: bytes, row: bytes) -> Event:
    user, newest_first, event_id = _KEY.unpack(key)
    return decode_row(user - _BIAS, _MAX_INT64 - newest_first, event_id, row)


def _reason(error: Exception) -> str:
    """The kind of a RocksDB error ("IO error", "Corruption"), without the paths that its message names."""
    if "/LOCK: " in str(error):
        return "another process owns it"
    return str(error).partition(":")[0]
