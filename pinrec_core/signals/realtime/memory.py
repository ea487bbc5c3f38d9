"""The realtime view in memory: the plain twin of the durable stores, for tests and a laptop."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from pinrec_core.signals.events import Event, with_event_ids
from pinrec_core.signals.realtime.rows import StoredEvents, encode_row, stored_events


class MemoryHistoryStore:
    """A dictionary a user, by (timestamp_ms, event_id). Nothing survives the process."""

    def __init__(self) -> None:
        self._rows: defaultdict[int, dict[tuple[int, int], bytes]] = defaultdict(dict)
        self._lock = threading.Lock()

    def append(self, events: Sequence[Event]) -> int:
        """See `HistoryStore`."""
        rows = [((event.timestamp_ms, event.event_id), encode_row(event)) for event in with_event_ids(events)]
        with self._lock:
            for event, (key, row) in zip(events, rows, strict=True):
                self._rows[event.user_id][key] = row
        return len(events)

    def read(self, user_ids: Sequence[int], since_ms: int, limit: int) -> StoredEvents:
        """See `HistoryStore`."""
        with self._lock:
            found = [self._newest(user_id, since_ms, limit) for user_id in user_ids]
        rows = [row for of_user in found for row in of_user]
        return stored_events(
            [len(of_user) for of_user in found],
            np.array([timestamp_ms for (timestamp_ms, _), _ in rows], dtype=np.int64),
            np.array([event_id for (_, event_id), _ in rows], dtype=np.uint64),
            [row for _, row in rows],
        )

    def expire(self, before_ms: int) -> int:
        """See `HistoryStore`. The lock is held for one user at a time."""
        with self._lock:
            user_ids = list(self._rows)
        return sum(self._expire(user_id, before_ms) for user_id in user_ids)

    def close(self) -> None:
        """See `HistoryStore`."""
        self._rows.clear()

    def _newest(self, user_id: int, since_ms: int, limit: int) -> list[tuple[tuple[int, int], bytes]]:
        rows = sorted(self._rows.get(user_id, {}).items(), reverse=True)
        return [row for row in rows if row[0][0] >= since_ms][:limit]

    def _expire(self, user_id: int, before_ms: int) -> int:
        with self._lock:
            rows = self._rows.pop(user_id, {})
            kept = {key: row for key, row in rows.items() if key[0] >= before_ms}
            if kept:
                self._rows[user_id] = kept
            return len(rows) - len(kept)
