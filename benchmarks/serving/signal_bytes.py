"""What the signal service's two views take for each byte of their rows.

A row is an event's own fields, as narrow as they go: item, time and event id of eight bytes each, one byte each for
item type, action and surface. Whose it is, is said once a user, in eight bytes.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

EVENT_BYTES = 8 + 8 + 8 + 1 + 1 + 1
USER_BYTES = 8
_CALL = 1_000


def batch_view_bytes(dest: Path) -> dict[str, Any]:
    """The compiled arrays of the current version, which the service maps, and its Parquet files."""
    from pinrec_core.signals.batch_view import COMPILED, open_batch_view

    view = open_batch_view(dest)
    events, users = len(view.columns.item_ids), view.num_users
    texts = sum(getattr(view.arrays, name).nbytes for name in ("text_ids", "text_offsets", "text_bytes"))
    arrays = sum(path.stat().st_size for path in (dest / COMPILED / str(view.version)).glob("*.npy"))
    parquet = sum(path.stat().st_size for path in (dest / str(view.version)).rglob("*.parquet"))
    return {
        "events": events,
        "users": users,
        "rows": EVENT_BYTES * events + USER_BYTES * users + texts,
        "mapped": arrays,
        "parquet": parquet,
    }


def realtime_bytes(dest: Path, folder: Path, most_events: int) -> dict[str, Any]:
    """RocksDB with the newest events of the batch view's users, as the service appends them."""
    from pinrec_core.schema import ItemType
    from pinrec_core.signals.batch_view import open_batch_view
    from pinrec_core.signals.events import Event
    from pinrec_core.signals.realtime import RocksHistoryStore

    view = open_batch_view(dest)
    columns, owners = view.columns, np.empty(len(view.columns.item_ids), np.int64)
    for user, start, end in zip(view.arrays.user_ids, view.arrays.starts, view.arrays.ends, strict=True):
        owners[start:end] = user
    newest = np.argsort(-columns.timestamps_ms, kind="stable")[:most_events][::-1]
    shutil.rmtree(folder, ignore_errors=True)
    store, texts = RocksHistoryStore(folder), 0
    for start in range(0, len(newest), _CALL):
        events = []
        for row in newest[start : start + _CALL].tolist():
            kind, item_id = ItemType(int(columns.item_types[row])), int(columns.item_ids[row])
            text = view.search_query(item_id) if kind == ItemType.SEARCH_QUERY else ""
            texts += len(text.encode())
            words = view.actions[columns.actions[row]], view.surfaces[columns.surfaces[row]]
            times = int(columns.timestamps_ms[row]), int(columns.event_ids[row])
            events.append(Event(int(owners[row]), item_id, kind, *words, *times, text))
        store.append(events)
    before_flush = _bytes_of_rows(folder)
    store.close()
    users = len(np.unique(owners[newest]))
    return {
        "events": len(newest),
        "users": users,
        "rows": EVENT_BYTES * len(newest) + USER_BYTES * users + texts,
        "disk_before_flush": before_flush,
        "disk": _bytes_of_rows(folder),
    }


def _bytes_of_rows(folder: Path) -> int:
    """Files of RocksDB that hold rows: sorted tables, and the log of what is not in one yet."""
    return sum(path.stat().st_size for suffix in ("sst", "log") for path in folder.glob(f"*.{suffix}"))
