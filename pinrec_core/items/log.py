"""The item log: which items were added and deleted after the event log that a release was made from.

RocksDB in raw mode, two rows an item and one of counts, written together:

    "s" sequence         -> the item in its newest state (format below)
    "i" item_id + bias   -> its sequence, and whether it is deleted
    "n"                  -> last sequence, items added, items deleted

Only an item's newest state is kept, so the log grows with the items, not with the changes. A sequence number is the
Unix time in microseconds where the clock has gone on, else the next number: a log begun anew, or restored from an older
copy, therefore gives no number twice, and whoever asks for later changes gets them all.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rocksdict import AccessType, Options, Rdict, WriteBatch, WriteOptions

from pinrec_core.errors import InvalidData, Unavailable

VERSION = 1
_BIAS = 1 << 63
"""Added to a signed integer, so that its unsigned big-endian bytes sort as the integer does."""
_ROW = struct.Struct("<BqBII")
"""version | item_id | deleted | bytes of text | bytes of title; then text, title (UTF-8), embedding (float32)."""
_STATE = struct.Struct("<QB")
_COUNTS = struct.Struct("<QQQ")
_COUNTS_KEY = b"n"


@dataclass(frozen=True, eq=False)
class Item:
    """One item's state. Its content is `embedding` float32 [D_sem], or is made from `text` if that is empty."""

    item_id: int
    text: str = ""
    title: str = ""
    embedding: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    deleted: bool = False
    sequence: int = 0
    """Number of the change that made this state; the log gives it."""


@dataclass(frozen=True)
class LogCounts:
    """Last sequence number (0 = no change yet), and how many items' newest state is added or deleted."""

    sequence: int = 0
    num_added: int = 0
    num_deleted: int = 0


class ItemLog:
    """Durable: `put` returns after the sync. Thread-safe; one process owns the folder, others may open it read-only.

    A log opened with `read_only` shows what was acknowledged when it was opened.
    """

    def __init__(
        self, folder: Path, read_only: bool = False, now_us: Callable[[], int] = lambda: time.time_ns() // 1_000
    ) -> None:
        """Open or create the log. Raises Unavailable if another process owns it or its files are damaged."""
        options = Options(raw_mode=True)
        options.create_if_missing(not read_only)
        if not read_only:
            folder.parent.mkdir(parents=True, exist_ok=True)
        access = AccessType.read_only() if read_only else AccessType.read_write()
        try:
            self._db = Rdict(str(folder), options, access_type=access)
            counts = self._db.get(_COUNTS_KEY)
        except Exception as error:  # rocksdict raises nothing narrower
            raise Unavailable(f"item log cannot be opened: {_reason(error)}") from error
        self._counts = LogCounts(*_COUNTS.unpack(counts)) if counts else LogCounts()
        self._now_us = now_us
        self._lock = threading.Lock()
        self._synced = WriteOptions()
        self._synced.sync = True

    @property
    def counts(self) -> LogCounts:
        """Of what is durable."""
        return self._counts

    def put(self, items: Sequence[Item]) -> int:
        """Make items' states durable, all or none; of several states of an item the last counts.

        Returns the sequence number of the last change. Raises Unavailable if they could not be written.
        """
        newest = list({item.item_id: item for item in items}.values())
        with self._lock:
            if newest:
                self._write(newest)
            return self._counts.sequence

    def changes(self, after: int, limit: int) -> list[Item]:
        """The oldest `limit` of the states with a sequence number above `after`, oldest first. Raises Unavailable."""
        try:
            found = self._db.iter()
            found.seek(_sequence_key(after + 1))
            rows: list[tuple[bytes, bytes]] = []
            while found.valid() and len(rows) < limit and found.key()[:1] == b"s":
                rows.append((found.key(), found.value()))
                found.next()
            found.status()  # raises if the scan ended on damage rather than at its bound
        except Exception as error:  # rocksdict raises nothing narrower
            raise Unavailable(f"items could not be read: {_reason(error)}") from error
        return [_decode(key, row) for key, row in rows]

    def close(self) -> None:
        """Release the folder."""
        self._db.close()

    def _write(self, items: Sequence[Item]) -> None:
        batch = WriteBatch(raw_mode=True)
        sequence, live = self._counts.sequence, [self._counts.num_added, self._counts.num_deleted]
        try:
            before = self._db.get([_item_key(item.item_id) for item in items])
            for item, state in zip(items, before, strict=True):
                if state is not None:
                    replaced, was_deleted = _STATE.unpack(state)
                    batch.delete(_sequence_key(replaced))
                    live[was_deleted] -= 1
                sequence = max(sequence + 1, self._now_us())
                batch.put(_sequence_key(sequence), _encode(item))
                batch.put(_item_key(item.item_id), _STATE.pack(sequence, item.deleted))
                live[item.deleted] += 1
            batch.put(_COUNTS_KEY, _COUNTS.pack(sequence, *live))
            self._db.write(batch, self._synced)
        except Exception as error:  # rocksdict raises nothing narrower
            raise Unavailable(f"items could not be written: {_reason(error)}") from error
        self._counts = LogCounts(sequence, *live)


def read_items(folder: Path) -> list[Item]:
    """Every item of a log, which its service may own and write meanwhile: what was acknowledged before the call.

    Raises Unavailable.
    """
    log = ItemLog(folder, read_only=True)
    try:
        return log.changes(0, log.counts.num_added + log.counts.num_deleted)
    finally:
        log.close()


def _item_key(item_id: int) -> bytes:
    return b"i" + (item_id + _BIAS).to_bytes(8, "big")


def _sequence_key(sequence: int) -> bytes:
    return b"s" + sequence.to_bytes(8, "big")


def _encode(item: Item) -> bytes:
    text, title = item.text.encode(), item.title.encode()
    head = _ROW.pack(VERSION, item.item_id, item.deleted, len(text), len(title))
    return head + text + title + item.embedding.astype("<f4").tobytes()


def _decode(key: bytes, row: bytes) -> Item:
    version, item_id, deleted, text_bytes, title_bytes = _ROW.unpack_from(row)
    if version != VERSION:
        raise InvalidData(f"item log has a row of version {version}; allowed: {VERSION}")
    text_end = _ROW.size + text_bytes
    title_end = text_end + title_bytes
    return Item(
        item_id=item_id,
        text=row[_ROW.size : text_end].decode(),
        title=row[text_end:title_end].decode(),
        embedding=np.frombuffer(row[title_end:], "<f4").astype(np.float32),
        deleted=bool(deleted),
        sequence=int.from_bytes(key[1:], "big"),
    )


def _reason(error: Exception) -> str:
    """The kind of a RocksDB error ("IO error", "Corruption"), without the paths that its message names."""
    if "/LOCK: " in str(error):
        return "another process owns it"
    return str(error).partition(":")[0]
