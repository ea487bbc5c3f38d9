"""The interface of the realtime view's stores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pinrec_core.signals.events import Event
from pinrec_core.signals.realtime.rows import StoredEvents


class HistoryStore(Protocol):
    """Events by user. Thread-safe.

    Whoever implements this keeps these promises, which `tests/conformance/test_history_store.py` holds it to: `append`
    returns after the events are as safe as the store makes them, every later `read` holds them, and appending an event
    again (same user, time and event id) adds nothing.
    """

    def append(self, events: Sequence[Event]) -> int:
        """Store events, all or none; an event id of 0 is replaced by the derived one.

        Returns how many are stored now, repeats included. Raises Unavailable if they could not be made safe; whether
        they are there is then unknown, and appending them again is right in any case.
        """
        ...

    def read(self, user_ids: Sequence[int], since_ms: int, limit: int) -> StoredEvents:
        """For each user the newest `limit` events with timestamp_ms >= since_ms, newest first (ties: larger id first).

        Raises Unavailable if they cannot be read.
        """
        ...

    def expire(self, before_ms: int) -> int:
        """Drop every user's events with timestamp_ms < before_ms, in small pieces beside readers and writers.

        Returns how many were dropped. Raises Unavailable if the store fails on the way; a later call goes on.
        """
        ...

    def close(self) -> None:
        """Release what the store holds; it cannot be used afterwards."""
        ...
