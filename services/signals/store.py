"""The realtime view of a service that outlives its store's troubles."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pinrec_core.errors import NotSetUp, PinrecError, Unavailable
from pinrec_core.signals.events import Event
from pinrec_core.signals.realtime import HistoryStore, RocksHistoryStore, StoredEvents
from services.common.outage import Outage

log = logging.getLogger(__name__)


class TendedStore:
    """A `HistoryStore` that may not be open yet and may fail: Unavailable to each caller, one line in the log.

    Thread-safe, except that one thread calls `tend` now and then.
    """

    def __init__(self, open_store: Callable[[], HistoryStore]) -> None:
        self._open_store = open_store
        self._store: HistoryStore | None = None
        self._opening, self._writing, self._reading = (Outage("realtime view", log) for _ in range(3))

    @property
    def problem(self) -> str:
        """Why the realtime view cannot be read or written now; empty if the last calls went well."""
        return self._opening.reason or self._writing.reason or self._reading.reason

    def tend(self) -> None:
        """Open the store if it is not open. Raises InvalidConfig and InvalidData, which waiting does not mend."""
        if self._store is not None:
            return
        try:
            self._store = self._open_store()
        except PinrecError as error:
            self._opening.failed(error.message)
            if not isinstance(error, Unavailable):
                raise
        else:
            self._opening.ended()

    def append(self, events: Sequence[Event]) -> int:
        """See `HistoryStore`."""
        with self._calling(self._writing) as store:
            return store.append(events)

    def read(self, user_ids: Sequence[int], since_ms: int, limit: int) -> StoredEvents:
        """See `HistoryStore`."""
        with self._calling(self._reading) as store:
            return store.read(user_ids, since_ms, limit)

    def expire(self, before_ms: int) -> int:
        """See `HistoryStore`."""
        with self._calling(self._writing) as store:
            return store.expire(before_ms)

    def backup(self, folder: Path) -> None:
        """A consistent copy in a new `folder`. Raises NotSetUp where the store's own server makes the copies."""
        with self._calling(self._writing) as store:
            if not isinstance(store, RocksHistoryStore):
                raise NotSetUp(
                    "the realtime view lies in a store of its own: back it up there (Redis: BGSAVE or its append-only "
                    "files; Kvrocks: BGSAVE)"
                )
            store.backup(folder)

    def close(self) -> None:
        """See `HistoryStore`."""
        if self._store is not None:
            self._store.close()

    @contextmanager
    def _calling(self, outage: Outage) -> Iterator[HistoryStore]:
        if self._store is None:
            raise Unavailable(self._opening.reason or "the realtime view is not open yet")
        try:
            yield self._store
        except Unavailable as error:
            outage.failed(error.message)
            raise
        outage.ended()
