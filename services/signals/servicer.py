"""`pinrec.v1.SignalService` over the appender, the store and the open releases."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager

import grpc.aio

from pinrec_core.errors import PinrecError
from pinrec_core.messages import FetchSignalsInput, Signals, Status
from pinrec_core.schema import FIRST_WALL_CLOCK_MS
from pinrec_core.signals.batch_views import BatchViews
from pinrec_core.signals.fetch import SignalFetcher
from services.common.metrics import SignalsMetrics
from services.common.server import add_trailers
from services.common.streams import in_order
from services.common.tracing import NO_TRACING, Tracing
from services.proto import signals_pb2_grpc
from services.proto.signals_pb2 import (
    AppendEventsRequest,
    AppendEventsResponse,
    BackupRequest,
    BackupResponse,
    GetHistoriesRequest,
    GetHistoriesResponse,
    GetStatusRequest,
    GetStatusResponse,
    History,
)
from services.signals.appender import Appender
from services.signals.backups import Backups
from services.signals.releases import SignalReleases
from services.signals.store import TendedStore
from services.signals.validate import inputs_of
from services.signals.wire import CODE_METADATA, pack_history

STREAM_IN_FLIGHT = 16
"""Requests of one stream that are worked on at once; the sender's next ones wait in the network."""

_READ_THREADS = 2


class SignalServicer(signals_pb2_grpc.SignalServiceServicer):  # type: ignore[misc]
    """Every error leaves as a PinrecError and becomes a status in the edge interceptor."""

    def __init__(
        self,
        store: TendedStore,
        views: BatchViews,
        releases: SignalReleases,
        backups: Backups,
        metrics: SignalsMetrics,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self._store = store
        self._views = views
        self._releases = releases
        self._backups = backups
        self._metrics = metrics
        self._tracing = tracing
        self._appender = Appender(store)
        self._reads = ThreadPoolExecutor(_READ_THREADS, "read")

    async def AppendEvents(  # noqa: N802  the name in the proto
        self, request: AppendEventsRequest, context: grpc.aio.ServicerContext
    ) -> AppendEventsResponse:
        """Acknowledges events once they are durable."""
        with _code_in_trailers(context):
            return await self._append(request, wait_for_room=False)

    async def AppendEventsStream(  # noqa: N802  the name in the proto
        self, requests: AsyncIterator[AppendEventsRequest], context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[AppendEventsResponse, None]:
        """Acknowledges each request in order; the first that fails ends the stream with its error."""

        async def append(request: AppendEventsRequest) -> AppendEventsResponse:
            return await self._append(request, wait_for_room=True)

        with _code_in_trailers(context):
            async with aclosing(in_order(requests, append, STREAM_IN_FLIGHT)) as answers:
                async for answer in answers:
                    yield answer

    async def _append(self, request: AppendEventsRequest, wait_for_room: bool) -> AppendEventsResponse:
        start = time.perf_counter()
        try:
            stored = await self._appender.append(request, wait_for_room)
        except PinrecError as error:
            self._metrics.events.labels(error.code).inc(len(request.events))
            raise
        self._metrics.events.labels("OK").inc(stored)
        self._metrics.append_events.observe(stored)
        self._metrics.append_seconds.observe(time.perf_counter() - start)
        last_ms = request.events[-1].timestamp_ms
        if last_ms >= FIRST_WALL_CLOCK_MS:  # a smaller one tells the order only
            self._metrics.event_lag_seconds.observe(max(time.time() - last_ms / 1_000, 0.0))
        return AppendEventsResponse(acknowledged=stored)

    async def GetHistories(  # noqa: N802  the name in the proto
        self, request: GetHistoriesRequest, context: grpc.aio.ServicerContext
    ) -> GetHistoriesResponse:
        """Merged histories with the content rows of the request's release."""
        start_ns = time.time_ns()
        with _code_in_trailers(context):
            fetcher = self._releases.get(request.release)
            inputs = inputs_of(request, fetcher.release.vocabulary.surfaces)
            loop = asyncio.get_running_loop()
            found, histories = await loop.run_in_executor(self._reads, _found_and_packed, fetcher, inputs)
        self._count(inputs, found)
        for one, signals in zip(request.requests, found, strict=True):
            self._tracing.record(
                "GetHistories",
                one.trace_parent,
                start_ns,
                batch_size=len(found),
                history_length=signals.history_length,
                realtime_events=signals.realtime_events,
            )
        return GetHistoriesResponse(histories=histories)

    async def GetStatus(  # noqa: N802  the name in the proto
        self, request: GetStatusRequest, context: grpc.aio.ServicerContext
    ) -> GetStatusResponse:
        """What is open here; asking makes the service open what serving.json newly lists."""
        view = self._views.current()
        return GetStatusResponse(
            open_releases=self._releases.open_numbers(),
            watermark_ms=view.watermark_ms,
            batch_view_version=view.version,
            realtime_problem=self._store.problem,
        )

    async def Backup(  # noqa: N802  the name in the proto
        self, request: BackupRequest, context: grpc.aio.ServicerContext
    ) -> BackupResponse:
        """A consistent copy of the realtime view on this service's own disk."""
        with _code_in_trailers(context):
            size, taken_ms = await asyncio.to_thread(self._backups.make, request.name)
        return BackupResponse(bytes=size, taken_ms=taken_ms)

    async def close(self) -> None:
        """Wait for what is being written and read."""
        await self._appender.close()
        await asyncio.to_thread(self._reads.shutdown)

    def _count(self, inputs: Sequence[FetchSignalsInput], found: Sequence[Signals]) -> None:
        metrics = self._metrics
        metrics.histories.inc(len(found))
        metrics.cold_histories.inc(sum(one.history_length == 0 for one in found))
        metrics.degraded_histories.inc(sum(bool(one.status & Status.REALTIME_UNAVAILABLE) for one in found))
        metrics.realtime_events.inc(sum(one.realtime_events for one in found))
        for request, one in zip(inputs, found, strict=True):
            newest_ms = int(one.timestamps_ms[one.history_length - 1]) if one.history_length else 0
            if newest_ms >= FIRST_WALL_CLOCK_MS:  # a smaller one tells the order only
                metrics.history_age_seconds.observe(max(request.request_time_ms - newest_ms, 0) / 1_000)


def _found_and_packed(
    fetcher: SignalFetcher, inputs: Sequence[FetchSignalsInput]
) -> tuple[list[Signals], list[History]]:
    found = fetcher.run(inputs)
    return found, [pack_history(signals) for signals in found]


@contextmanager
def _code_in_trailers(context: grpc.aio.ServicerContext) -> Iterator[None]:
    """Tell the client our own word for an error: UNAVAILABLE alone does not say that a release is not open."""
    try:
        yield
    except PinrecError as error:
        add_trailers(context, (CODE_METADATA, error.code))
        raise
