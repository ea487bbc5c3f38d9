"""The signal service: owns the realtime view and the batch view, appends events, answers histories.

    python -m services.signals.server --releases DIR --data DIR --batch-view DIR --listen HOST:PORT --metrics-port N

Stores and numpy block, so they run in threads beside the event loop: appends in those of the `Appender`, reads in a
pool of their own, which must not wait behind them.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click
import uvloop
from prometheus_client import CollectorRegistry

from pinrec_core.errors import PinrecError
from pinrec_core.signals.batch_views import BatchViews
from pinrec_core.signals.fetch import DEFAULT_OVERLAP_MS
from pinrec_core.signals.realtime import open_store
from services.common.logs import configure_logging
from services.common.metrics import SignalsMetrics, process_registry
from services.common.server import GrpcServer, ServerOptions, server_options
from services.common.tracing import open_tracing
from services.proto import signals_pb2_grpc
from services.signals.backups import Backups
from services.signals.releases import SignalReleases
from services.signals.servicer import SignalServicer
from services.signals.store import TendedStore

SERVICE = "pinrec.v1.SignalService"

RETENTION_HOURS = 48.0
"""How long a late or rolled-back batch view may take to be made good without a gap."""

MAX_REQUEST_BYTES = 8 << 20
"""10,000 events take about 1 MB, with a search query of 512 characters each 6 MB."""

_TEND_EVERY_S = 2.0
_MS_PER_HOUR = 3_600_000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SignalsOptions:
    """What the service opens. `data` is what `open_store` takes: a folder, or an address of a Redis-protocol store."""

    releases: Path
    data: str
    batch_view: Path | None = None
    batch_view_cache: Path | None = None
    backups: Path | None = None
    items: str = ""
    retention_hours: float = RETENTION_HOURS
    expire_every_s: float = 3_600.0


class SignalService:
    """The process: a server, the stores it owns, and the releases whose content rows it joins."""

    def __init__(self, options: SignalsOptions, server: ServerOptions, registry: CollectorRegistry) -> None:
        """Opens both views. What cannot be opened now is tried again while the service runs with what it has.

        Raises InvalidConfig or InvalidData where waiting does not help.
        """
        self._options = options
        self._metrics = SignalsMetrics(registry)
        self.store = TendedStore(lambda: open_store(options.data))
        self.store.tend()
        self.views = BatchViews(options.batch_view, options.batch_view_cache)
        self.releases = SignalReleases(options.releases, self.views, self.store, options.items)
        self.server = GrpcServer([SERVICE], server, registry, open_tracing("signals"), MAX_REQUEST_BYTES)
        backups = Backups(self.store, options.backups)
        self.servicer = SignalServicer(
            self.store, self.views, self.releases, backups, self._metrics, self.server.tracing
        )
        signals_pb2_grpc.add_SignalServiceServicer_to_server(self.servicer, self.server.server)
        self._metrics.watermark_ms.set_function(lambda: self.views.current().watermark_ms)
        self._metrics.batch_view_version.set_function(lambda: self.views.current().version)
        self._metrics.store_problem.set_function(lambda: bool(self.store.problem))

    async def start(self) -> None:
        """Take events at once, even while no release can be opened; SERVING when each is open or refused."""
        await self.server.start()
        self._chores = [asyncio.create_task(chore) for chore in (self._tend_store(), self._expire_old_events())]
        await asyncio.to_thread(self.views.wait)
        log.info("releases open: %s", await self.releases.settle())
        await self.server.set_serving(True)

    async def close(self) -> None:
        """Wait for what is being done, then close what was opened; the server has been stopped before."""
        for chore in self._chores:
            chore.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)
        await self.servicer.close()
        self.views.close()
        self.store.close()

    async def run(self) -> None:
        """Serve until SIGTERM, drain, close the stores."""
        try:
            await self.start()
            await self.server.run_until_stopped()
        finally:
            await self.close()

    async def _tend_store(self) -> None:
        while True:
            await asyncio.sleep(_TEND_EVERY_S)
            with suppress(PinrecError):  # the store has logged it
                await asyncio.to_thread(self.store.tend)

    async def _expire_old_events(self) -> None:
        while True:
            await asyncio.sleep(self._options.expire_every_s)
            before_ms = self.views.current().watermark_ms - int(self._options.retention_hours * _MS_PER_HOUR)
            if before_ms <= 0:  # no batch view, or one whose times only give an order
                continue
            with suppress(PinrecError):
                expired = await asyncio.to_thread(self.store.expire, before_ms)
                self._metrics.expired_events.inc(expired)
                log.info("%d events older than %d ms dropped", expired, before_ms)


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
    metavar="DIR|redis://HOST:PORT/DB",
    help="The realtime view: a folder (RocksDB), made if missing, which one process at a time owns; or a server that "
    "speaks the Redis protocol and writes before it answers (Kvrocks; Redis with appendfsync always).",
)
@click.option(
    "--batch-view",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of batch views, whose current version is followed; without one, histories hold appended events only.",
)
@click.option(
    "--batch-view-cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where versions are compiled to; in --batch-view if not given.",
)
@click.option(
    "--backups",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the copies that `pinrec signals backup` asks for; without one it is refused.",
)
@click.option(
    "--items",
    default="",
    envvar="PINREC_ITEMS",
    show_envvar=True,
    metavar="HOST:PORT",
    help="Item service, whose added items have their content in histories too; without one they have none.",
)
@click.option(
    "--retention-hours",
    default=RETENTION_HOURS,
    show_default=True,
    type=click.FloatRange(min=DEFAULT_OVERLAP_MS / _MS_PER_HOUR),
    help="Events older than the batch view's end by more than this are dropped from the realtime view.",
)
@click.option(
    "--expire-every",
    "expire_every_s",
    default=3_600.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds between looks for such events.",
)
@server_options(listen="localhost:8600", metrics_port=9600)
def main(**options: Any) -> None:
    """Serve pinrec.v1.SignalService: append user events, answer merged histories.

    An acknowledged event is on disk and in every later history of its user, unless it is older than the batch view's
    watermark by more than a day: such an event waits for the next batch view. While the realtime view cannot be opened
    or read, appends are refused and histories come from the batch view alone, marked. SIGTERM drains: health
    NOT_SERVING, calls in flight are answered, then the process ends.
    """
    configure_logging("signals", options["log_format"])
    own = {field.name: options.pop(field.name) for field in fields(SignalsOptions)}

    async def serve() -> None:
        await SignalService(SignalsOptions(**own), ServerOptions(**options), process_registry()).run()

    try:
        uvloop.run(serve())
    except PinrecError as error:
        raise click.ClickException(error.message) from error


if __name__ == "__main__":
    main()
