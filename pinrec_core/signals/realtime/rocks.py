"""The realtime view on RocksDB: production on one machine."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from rocksdict import BlockBasedOptions, Options, Rdict, ReadOptions, SliceTransform, WriteBatch, WriteOptions

from pinrec_core.errors import InvalidData, Unavailable
from pinrec_core.signals.events import Event, with_event_ids
from pinrec_core.signals.realtime.rows import ROW_VERSION, StoredEvents, encode_row, stored_events

_MAX_INT64 = (1 << 63) - 1
_MAX_UINT64 = (1 << 64) - 1
_BIAS = 1 << 63
"""Added to a signed integer, so that its unsigned big-endian bytes sort as the integer does."""

_KEY = struct.Struct(">QQQ")
"""user_id + bias | newest first: 2^63 - 1 - timestamp_ms | larger id first: 2^64 - 1 - event_id."""

_USER_BYTES = 8

_BLOOM_BITS = 10
"""Of a user's prefix, in each file: 1 in 100 files that lack the user is opened for nothing."""

_PIECE = 1_000
"""Events (and users) that one step of `expire` looks at: about a millisecond."""


class RocksHistoryStore:
    """RocksDB in raw mode, one row an event, synced to disk before `append` returns.

    Keys sort by user, then newest first, so that a read is one short scan; a repeated append writes the same key.
    RocksDB joins concurrent writes into one sync.
    """

    def __init__(self, folder: Path) -> None:
        """Open or create the store.

        Raises Unavailable if another process owns it or its files are damaged, InvalidData if it is of another version.
        """
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = Rdict(str(folder), _options())
        except Exception as error:  # rocksdict raises nothing narrower
            raise Unavailable(f"realtime view cannot be opened: {_reason(error)}") from error
        self._synced = WriteOptions()
        self._synced.sync = True
        self._check_version()

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

    def read(self, user_ids: Sequence[int], since_ms: int, limit: int) -> StoredEvents:
        """See `HistoryStore`."""
        try:
            found = [self._scan(user_id, since_ms, limit) for user_id in user_ids]
        except Exception as error:  # rocksdict raises nothing narrower
            raise Unavailable(f"events could not be read: {_reason(error)}") from error
        lengths = [len(of_user) for of_user in found]
        rows = [row for of_user in found for row in of_user]
        keys = np.frombuffer(b"".join([key for key, _ in rows]), ">u8").reshape(-1, 3).astype(np.uint64)
        timestamps_ms = (np.uint64(_MAX_INT64) - keys[:, 1]).view(np.int64)
        return stored_events(lengths, timestamps_ms, ~keys[:, 2], [row for _, row in rows])

    def expire(self, before_ms: int) -> int:
        """See `HistoryStore`. Not synced: what a crash brings back, the next call drops again."""
        dropped, start = 0, bytes(_KEY.size)
        try:
            while start:
                old, start = self._old_keys(before_ms, start)
                batch = WriteBatch(raw_mode=True)
                for key in old:
                    batch.delete(key)
                self._db.write(batch)
                dropped += len(old)
        except Exception as error:  # rocksdict raises nothing narrower
            raise Unavailable(f"old events could not be dropped: {_reason(error)}") from error
        return dropped

    def close(self) -> None:
        """See `HistoryStore`."""
        self._db.close()

    def _scan(self, user_id: int, since_ms: int, limit: int) -> list[tuple[bytes, bytes]]:
        """Keys and rows of one user, newest first."""
        bounds = ReadOptions()
        bounds.set_iterate_upper_bound(_key(user_id, since_ms, 0) + b"\x00")
        return list(islice(self._db.items(from_key=_key(user_id, _MAX_INT64, _MAX_UINT64), read_opt=bounds), limit))

    def _old_keys(self, before_ms: int, start: bytes) -> tuple[list[bytes], bytes]:
        """Keys of old events from `start` on, jumping from user to user; and where to go on, empty at the end."""
        across_users = ReadOptions()
        across_users.set_total_order_seek(True)
        found = self._db.iter(across_users)
        found.seek(start)
        old: list[bytes] = []
        for _ in range(_PIECE):
            if not found.valid():
                found.status()  # raises if damage ended it
                return old, b""
            key = found.key()
            user, newest_first, _ = _KEY.unpack(key)
            if newest_first > _MAX_INT64 - before_ms:
                old.append(key)
                found.next()
            else:
                found.seek(_key(user - _BIAS, before_ms - 1, _MAX_UINT64))
        return old, found.key() if found.valid() else b""

    def _check_version(self) -> None:
        for row in islice(self._db.values(), 1):
            if row[0] != ROW_VERSION:
                self.close()
                raise InvalidData(
                    f"realtime view holds rows of version {row[0]}; this code reads {ROW_VERSION}: keep that folder "
                    "until a batch view holds its events, and start with an empty one"
                )


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_prefix_extractor(SliceTransform.create_fixed_prefix(_USER_BYTES))
    table = BlockBasedOptions()
    table.set_bloom_filter(_BLOOM_BITS, block_based=False)
    options.set_block_based_table_factory(table)
    return options


def _key(user_id: int, timestamp_ms: int, event_id: int) -> bytes:
    return _KEY.pack(user_id + _BIAS, _MAX_INT64 - timestamp_ms, _MAX_UINT64 - event_id)


def _reason(error: Exception) -> str:
    """The kind of a RocksDB error ("IO error", "Corruption"), without the paths that its message names."""
    if "/LOCK: " in str(error):
        return "another process owns it"
    return str(error).partition(":")[0]
