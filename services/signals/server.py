"""The signal service: owns the realtime view and the batch view, appends events, answers histories.

    python -m services.signals.server --releases DIR --data DIR --batch-view DIR --listen HOST:PORT --metrics-port N

RocksDB and numpy block, so they run in threads beside the event loop: one pool for appends, which wait for the disk,
and one for reads, which must not wait behind them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import grpc.aio
from prometheus_client import CollectorRegistry

from pinrec_core.errors import PinrecError
from pinrec_core.messages import FetchSignalsInput
from pinrec_core.signals.batch_view import BatchView
from pinrec_core.signals.fetch import SignalFetcher
from pinrec_core.signals.realtime import HistoryStore, RocksHistoryStore
from services.common.metrics import SignalsMetrics, process_registry
from services.common.server import GrpcServer, ServerOptions, configure_logging, server_options
from services.proto import signals_pb2_grpc
from services.proto.signals_pb2 import (
    AppendEventsRequest,
    AppendEventsResponse,
    GetHistoriesRequest,
    GetHistoriesResponse,
    GetStatusRequest,
    GetStatusResponse,
    History,
)
from services.signals.releases import SignalReleases
from services.signals.validate import events_of, inputs_of
from services.signals.wire import CODE_METADATA, pack_history

SERVICE = "pinrec.v1.SignalService"

_APPEND_THREADS = 8
"""Appends that may wait for the disk together; RocksDB syncs those that wait with one write."""

_READ_THREADS = 2

log = logging.getLogger(__name__)

T = TypeVar("T")


class SignalServicer(signals_pb2_grpc.SignalServiceServicer):  # type: ignore[misc]
    """`pinrec.v1.SignalService`; every error leaves as a PinrecError and becomes a status in the edge interceptor."""

    def __init__(
        self, store: HistoryStore, batch_view: BatchView, releases: SignalReleases, metrics: SignalsMetrics
    ) -> None:
        self._store = store
        self._watermark_ms = batch_view.watermark_ms
        self._releases = releases
        self._metrics = metrics
        self._appends = ThreadPoolExecutor(_APPEND_THREADS, "append")
        self._reads = ThreadPoolExecutor(_READ_THREADS, "read")
        metrics.watermark_ms.set(batch_view.watermark_ms)

    async def AppendEvents(  # noqa: N802  the name in the proto
        self, request: AppendEventsRequest, context: grpc.aio.ServicerContext
    ) -> AppendEventsResponse:
        """Acknowledges events once they are durable."""
        with _code_in_trailers(context):
            stored = await _run_in(self._appends, self._append, request)
        self._metrics.events_appended.inc(stored)
        return AppendEventsResponse(acknowledged=stored)

    def _append(self, request: AppendEventsRequest) -> int:
        return self._store.append(events_of(request))

    async def GetHistories(  # noqa: N802  the name in the proto
        self, request: GetHistoriesRequest, context: grpc.aio.ServicerContext
    ) -> GetHistoriesResponse:
        """Merged histories with the content rows of the request's release."""
        with _code_in_trailers(context):
            fetcher = self._releases.get(request.release)
            inputs = inputs_of(request, fetcher.release.vocabulary.surfaces)
            histories = await _run_in(self._reads, _packed_histories, fetcher, inputs)
        self._metrics.histories.inc(len(histories))
        self._metrics.cold_histories.inc(sum(history.history_length == 0 for history in histories))
        self._metrics.realtime_events.inc(sum(history.realtime_events for history in histories))
        return GetHistoriesResponse(histories=histories)

    async def GetStatus(  # noqa: N802  the name in the proto
        self, request: GetStatusRequest, context: grpc.aio.ServicerContext
    ) -> GetStatusResponse:
        """Which releases are open here, of those that serving.json lists; asking makes the service open new ones."""
        return GetStatusResponse(open_releases=self._releases.open_numbers(), watermark_ms=self._watermark_ms)

    def close(self) -> None:
        """Wait for what is being written and read, then close the store."""
        self._appends.shutdown()
        self._reads.shutdown()
        self._store.close()


def _packed_histories(fetcher: SignalFetcher, inputs: Sequence[FetchSignalsInput]) -> list[History]:
    return [pack_history(signals) for signals in fetcher.run(inputs)]


async def _run_in(pool: Executor, work: Callable[..., T], *arguments: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, work, *arguments)


@contextmanager
def _code_in_trailers(context: grpc.aio.ServicerContext) -> Iterator[None]:
    """Tell the client our own word for an error: UNAVAILABLE alone does not say that a release is not open."""
    try:
        yield
    except PinrecError as error:
        context.set_trailing_metadata(((CODE_METADATA, error.code),))
        raise


class SignalService:
    """The process: a server, the stores it owns, and the releases whose content rows it joins."""

    def __init__(
        self, releases: Path, data: Path, batch_view: Path | None, options: ServerOptions, registry: CollectorRegistry
    ) -> None:
        """Opens both views. Raises InvalidData (batch view) or Unavailable (RocksDB)."""
        view = BatchView.open(batch_view) if batch_view is not None else BatchView.empty()
        store = RocksHistoryStore(data)
        self.releases = SignalReleases(releases, view, store)
        self.server = GrpcServer([SERVICE], options, registry)
        self.servicer = SignalServicer(store, view, self.releases, SignalsMetrics(registry))
        signals_pb2_grpc.add_SignalServiceServicer_to_server(self.servicer, self.server.server)

    async def run(self) -> None:
        """Serve until SIGTERM, drain, close the stores. Events are taken even while no release can be opened."""
        try:
            await self.server.start()
            opened = await self.releases.settle()
            log.info("releases open: %s", opened)
            await self.server.set_serving(True)
            await self.server.run_until_stopped()
        finally:
            await asyncio.to_thread(self.servicer.close)


@click.command(name="signals")
@click.option(
    "--releases",
    required=True,
    envvar="PINREC_RELEASES",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with serving.json and the numbered releases.",
)
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the realtime view (RocksDB), made if missing; one process at a time owns it.",
)
@click.option(
    "--batch-view",
    type=click.Path(path_type=Path, file_okay=False),
    help="Compiled batch view; without one, histories hold appended events only.",
)
@server_options(listen="localhost:8600", metrics_port=9600)
def main(releases: Path, data: Path, batch_view: Path | None, **options: Any) -> None:
    """Serve pinrec.v1.SignalService: append user events, answer merged histories.

    An acknowledged event is on disk and in every later history of its user, unless it is older than the batch view's
    watermark by more than a day: such an event waits for the next batch view. SIGTERM drains: health NOT_SERVING, calls
    in flight are answered, then the process ends.
    """
    configure_logging()

    async def serve() -> None:
        await SignalService(releases, data, batch_view, ServerOptions(**options), process_registry()).run()

    try:
        asyncio.run(serve())
    except PinrecError as error:
        raise click.ClickException(error.message) from error


if __name__ == "__main__":
    main()
