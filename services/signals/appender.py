"""Appends on their way to the disk: checked in one thread, written by another, as many as wait with one sync."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

from pinrec_core.errors import Overloaded
from pinrec_core.signals.events import Event, with_event_ids
from pinrec_core.signals.realtime import HistoryStore
from services.proto.signals_pb2 import AppendEventsRequest
from services.signals.validate import MAX_EVENTS, events_of

MAX_PENDING_EVENTS = 5 * MAX_EVENTS
"""Events that may be on their way together: what two cores make durable in about two seconds."""


class Appender:
    """Group commit for one event loop: while a write is being synced, the appends that come form the next one.

    A sync costs the same for one event and for thousands, so the more wait the cheaper each becomes. The appends of a
    group succeed or fail together where the store fails; what is wrong with one request fails that request alone.
    """

    def __init__(self, store: HistoryStore) -> None:
        self._store = store
        self._checks = ThreadPoolExecutor(1, "check-events")
        self._writes = ThreadPoolExecutor(1, "write-events")
        self._pending = 0
        self._room = asyncio.Condition()
        self._waiting: list[tuple[Sequence[Event], asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def append(self, request: AppendEventsRequest, wait_for_room: bool = False) -> int:
        """Make the events of a request durable; how many they are.

        Raises InvalidRequest naming the first wrong event (then none is stored), Unavailable where the store fails,
        and Overloaded above MAX_PENDING_EVENTS, unless the caller rather waits.
        """
        count = len(request.events)
        async with self._room:
            if wait_for_room:
                await self._room.wait_for(lambda: self._has_room(count))
            elif not self._has_room(count):
                raise Overloaded(f"{self._pending} events wait to be written; at most {MAX_PENDING_EVENTS}")
            self._pending += count
        try:
            events = await asyncio.get_running_loop().run_in_executor(self._checks, _checked, request)
            await self._written(events)
        finally:
            await self._leave(count)
        return count

    async def close(self) -> None:
        """Wait for what is being written. The store stays open."""
        if self._writer is not None:
            await self._writer
        self._checks.shutdown()
        self._writes.shutdown()

    def _has_room(self, count: int) -> bool:
        """A request too large for any room goes through alone: the check will say what is wrong with it."""
        return self._pending + count <= MAX_PENDING_EVENTS or not self._pending

    async def _leave(self, count: int) -> None:
        async with self._room:
            self._pending -= count
            self._room.notify_all()

    async def _written(self, events: Sequence[Event]) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((events, done))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_waiting())
        await done

    async def _write_waiting(self) -> None:
        """Write until nobody waits: all that wait now as one group, then those that came meanwhile."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            group, self._waiting = self._waiting, []
            events = list(chain.from_iterable(events for events, _ in group))
            write = loop.run_in_executor(self._writes, self._store.append, events)
            (outcome,) = await asyncio.gather(write, return_exceptions=True)
            for _, done in group:
                if done.done():  # the caller hung up
                    continue
                if isinstance(outcome, BaseException):
                    done.set_exception(outcome)
                else:
                    done.set_result(None)


def _checked(request: AppendEventsRequest) -> list[Event]:
    """Occurrence numbers of equal rows without ids count within one request, so ids are given before groups form."""
    return with_event_ids(events_of(request))
