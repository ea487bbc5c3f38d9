"""The realtime view on RocksDB: production on one machine."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Checkpoint,
    DbClosedError,
    DBRecoveryMode,
    Options,
    Rdict,
    RdictIter,
    ReadOptions,
    SliceTransform,
    WriteBatch,
    WriteOptions,
)

from pinrec_core.errors import InvalidData, Unavailable
from pinrec_core.release.files import sync
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

_REOPEN_EVERY_S = 1.0
"""How often a store that could not write is opened anew, while someone appends."""


class RocksHistoryStore:
    """RocksDB in raw mode, one row an event, synced to disk before `append` returns.

    Keys sort by user, then newest first, so that a read is one short scan; a repeated append writes the same key.
    RocksDB joins concurrent writes into one sync. After a failed write (a full disk) it refuses all others until it is
    opened anew: an append does that, at most once a second, and reads go on meanwhile from the same files.
    """

    def __init__(self, folder: Path) -> None:
        """Open or create the store.

        Raises Unavailable if another process owns it or its files are damaged, InvalidData if it is of another version.
        """
        self._path = str(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _unavailable("realtime view cannot be opened"):
            self._db = Rdict(self._path, _options())
            version = _row_version(self._db)
        self._synced = WriteOptions()
        self._synced.sync = True
        self._problem = ""
        """Why the last write failed; empty if it did not."""
        self._next_reopening_s = 0.0
        self._reopening = threading.Lock()
        if version not in (None, ROW_VERSION):
            self.close()
            raise InvalidData(
                f"realtime view holds rows of version {version}; this code reads {ROW_VERSION}: keep that folder until "
                "a batch view holds its events, and start with an empty one"
            )

    def append(self, events: Sequence[Event]) -> int:
        """See `HistoryStore`. One atomic write batch, one sync."""
        batch = WriteBatch(raw_mode=True)
        for event in with_event_ids(events):
            batch.put(_key(event.user_id, event.timestamp_ms, event.event_id), encode_row(event))
        self._write(batch, self._synced)
        return len(events)

    def read(self, user_ids: Sequence[int], since_ms: int, limit: int) -> StoredEvents:
        """See `HistoryStore`."""
        db = self._db
        try:
            return _read(db, user_ids, since_ms, limit)
        except Unavailable:
            with self._reopening:  # that closes the one and puts another in its place
                replaced = self._db is not db
            if not replaced:
                raise
        return _read(self._db, user_ids, since_ms, limit)

    def expire(self, before_ms: int) -> int:
        """See `HistoryStore`. Not synced: what a crash brings back, the next call drops again."""
        dropped, start = 0, bytes(_KEY.size)
        while start:
            with _unavailable("old events could not be dropped"):
                old, start = _old_keys(self._db, before_ms, start)
            batch = WriteBatch(raw_mode=True)
            for key in old:
                batch.delete(key)
            self._write(batch, WriteOptions())
            dropped += len(old)
        return dropped

    def backup(self, folder: Path) -> None:
        """Copy the store as of now into a new `folder`, beside readers and writers: each acknowledged event is in it.

        Files that never change are shared by hard links where both are on one file system. Written beside `folder` and
        renamed. Raises Unavailable if it cannot be written or the name is taken.
        """
        staging = folder.with_name(f".{folder.name}-{time.time_ns()}")
        with _unavailable("backup could not be made"):
            try:
                folder.parent.mkdir(parents=True, exist_ok=True)
                Checkpoint(self._db).create_checkpoint(str(staging))
                os.rename(staging, folder)
                sync(folder.parent)
            finally:
                shutil.rmtree(staging, ignore_errors=True)

    def close(self) -> None:
        """See `HistoryStore`."""
        with suppress(Exception):  # of a store that could not write: what it acknowledged is in its log
            self._db.close()

    def _write(self, batch: WriteBatch, options: WriteOptions) -> None:
        if self._problem:
            self._reopen()
        db = self._db
        try:
            db.write(batch, options)
        except DbClosedError as error:
            raise Unavailable("events could not be written: the store is closed") from error
        except Exception as error:  # rocksdict raises nothing narrower
            refusal = Unavailable(f"events could not be written: {_reason(error)}")
            if db is self._db:
                self._problem = refusal.message
            raise refusal from error

    def _reopen(self) -> None:
        """Open the store anew after a failed write. Raises Unavailable if it is too early, or still impossible."""
        with self._reopening:
            if not self._problem:  # another thread was faster
                return
            if time.monotonic() < self._next_reopening_s:
                raise Unavailable(self._problem)
            self._next_reopening_s = time.monotonic() + _REOPEN_EVERY_S
            with _unavailable("events could not be written"):
                failed, self._db = self._db, _open_to_read(self._path)
                with suppress(Exception):  # says again why it failed
                    failed.close()
                readable, self._db = self._db, Rdict(self._path, _options())
                readable.close()
            self._problem = ""


def restore_store(backup: Path, folder: Path) -> int:
    """Make `folder` a copy of what `backup` wrote, while no process owns it; every row is read as a check.

    Written beside `folder` and renamed. Returns how many events it holds. Raises InvalidData if `backup` is none or
    `folder` holds anything, and Unavailable if the backup is damaged or the copy cannot be written.
    """
    if not (backup / "CURRENT").is_file():
        raise InvalidData(f"{backup.name!r} is no backup of a realtime view: name the folder that the backup made")
    if folder.exists() and any(folder.iterdir()):
        raise InvalidData(f"{folder.name!r} is not empty: stop the service that owns it and name an empty folder")
    with _unavailable("backup cannot be restored"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            shutil.copytree(backup, staging, dirs_exist_ok=True)
            num_events = _count_rows(staging)
            for path in (*staging.iterdir(), staging):
                sync(path)
            os.rename(staging, folder)
            sync(folder.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return num_events


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    # A write cut off by a crash may end the log; damage before its end would hide acknowledged events behind it.
    options.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
    options.set_prefix_extractor(SliceTransform.create_fixed_prefix(_USER_BYTES))
    table = BlockBasedOptions()
    table.set_bloom_filter(_BLOOM_BITS, block_based=False)
    options.set_block_based_table_factory(table)
    return options


def _open_to_read(path: str) -> Rdict:
    """The files as they are, whoever else has them open; the log of what was acknowledged is read into memory."""
    return Rdict(path, _options(), access_type=AccessType.read_only(error_if_log_file_exist=False))


def _read(db: Rdict, user_ids: Sequence[int], since_ms: int, limit: int) -> StoredEvents:
    lengths: list[int] = []
    keys: list[bytes] = []
    rows: list[bytes] = []
    with _unavailable("events could not be read"):
        for user_id in user_ids:
            before = len(keys)
            _scan(db, user_id, since_ms, limit, keys, rows)
            lengths.append(len(keys) - before)
    parts = np.frombuffer(b"".join(keys), ">u8").reshape(-1, 3).astype(np.uint64)
    timestamps_ms = (np.uint64(_MAX_INT64) - parts[:, 1]).view(np.int64)
    return stored_events(lengths, timestamps_ms, ~parts[:, 2], rows)


def _scan(db: Rdict, user_id: int, since_ms: int, limit: int, keys: list[bytes], rows: list[bytes]) -> None:
    """Add the keys and rows of one user, newest first."""
    bounds = ReadOptions()
    bounds.set_iterate_upper_bound(_key(user_id, since_ms, 0) + b"\x00")
    found = db.iter(bounds)
    found.seek(_key(user_id, _MAX_INT64, _MAX_UINT64))
    for _ in range(limit):
        if not found.valid():
            found.status()  # raises if the scan ended on damage rather than at its bound
            return
        keys.append(found.key())
        rows.append(found.value())
        found.next()


def _old_keys(db: Rdict, before_ms: int, start: bytes) -> tuple[list[bytes], bytes]:
    """Keys of old events from `start` on, jumping from user to user; and where to go on, empty at the end."""
    found = _from(db, start)
    old: list[bytes] = []
    for _ in range(_PIECE):
        if not found.valid():
            break
        key = found.key()
        user, newest_first, _ = _KEY.unpack(key)
        if newest_first > _MAX_INT64 - before_ms:
            old.append(key)
            found.next()
        else:
            found.seek(_key(user - _BIAS, before_ms - 1, _MAX_UINT64))
    if found.valid():
        return old, found.key()
    found.status()
    return old, b""


def _count_rows(folder: Path) -> int:
    """Events in a store that nobody has open. Raises what rocksdict raises, or InvalidData for another version."""
    store = RocksHistoryStore(folder)
    try:
        found = _from(store._db, b"")
        count = 0
        while found.valid():
            count += 1
            found.next()
        found.status()
        return count
    finally:
        store.close()


def _row_version(db: Rdict) -> int | None:
    """Version of the store's rows (one code wrote them all); None if there is none."""
    found = _from(db, b"")
    if found.valid():
        return int(found.value()[0])
    found.status()
    return None


def _from(db: Rdict, start: bytes) -> RdictIter:
    """RocksDB's iterator over the rows of all users from `start` on."""
    across_users = ReadOptions()
    across_users.set_total_order_seek(True)
    found = db.iter(across_users)
    found.seek(start)
    return found


def _key(user_id: int, timestamp_ms: int, event_id: int) -> bytes:
    return _KEY.pack(user_id + _BIAS, _MAX_INT64 - timestamp_ms, _MAX_UINT64 - event_id)


@contextmanager
def _unavailable(what: str) -> Iterator[None]:
    """What RocksDB and the file system raise, as ours."""
    try:
        yield
    except (InvalidData, Unavailable):
        raise
    except Exception as error:  # rocksdict raises nothing narrower
        raise Unavailable(f"{what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What RocksDB or the file system says, without the paths that it names."""
    said = str(error)
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if "/LOCK: " in said:
        return "another process owns it"
    kind, detail = said.partition(":")[0], said.rpartition(": ")[2]
    return kind if "/" in detail else f"{kind}: {detail}"
