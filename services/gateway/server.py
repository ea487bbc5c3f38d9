"""The gateway: what a ranking service calls. Validate, admit, resolve the budget, call the ensemble, reply.

    python -m services.gateway.server --releases DIR --triton HOST:PORT --listen HOST:PORT --metrics-port N

Neither torch nor faiss is imported here: the gateway knows a release's vocabulary and limits, nothing of its model.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click
import uvloop
from prometheus_client import CollectorRegistry

from services.common.logs import configure_logging
from services.common.metrics import GatewayMetrics, process_registry
from services.common.one_line import one_line_errors
from services.common.server import GrpcServer, ServerOptions, server_options
from services.common.tracing import open_tracing
from services.gateway.admission import Admission
from services.gateway.calls import Breaker, EnsembleCalls
from services.gateway.in_flight import InFlight
from services.gateway.loop_lag import LoopLag
from services.gateway.releases import RELEASE_SERVICE, ReleaseServicer
from services.gateway.servicer import CandidateServicer
from services.gateway.triton_client import Ensemble
from services.gateway.watch import ReleaseWatch
from services.proto import candidates_pb2_grpc, releases_pb2_grpc

SERVICE = "pinrec.v1.CandidateService"

FULL = f"{SERVICE}/full"
"""Health of full answers: SERVING only while the stages answer."""

MAX_REQUEST_BYTES = 8 << 20
"""A batch of 256 requests that each exclude 2,000 items takes 5 MB."""


class Gateway:
    """The process: a server, a client of Triton and the watch that decides when the first is SERVING."""

    def __init__(
        self,
        releases: Path,
        triton: str,
        options: ServerOptions,
        canary_s: float,
        registry: CollectorRegistry,
        fallback: bool = True,
    ) -> None:
        metrics = GatewayMetrics(registry)
        in_flight = InFlight(metrics.in_flight)
        self.server = GrpcServer(
            [SERVICE, RELEASE_SERVICE], options, registry, open_tracing("gateway"), MAX_REQUEST_BYTES
        )
        self.ensemble = Ensemble(triton, self.server.tracing)
        breaker = Breaker(metrics)
        self.watch = ReleaseWatch(releases, self.ensemble, breaker, metrics, self._set_health, canary_s, fallback)
        calls = EnsembleCalls(self.ensemble, breaker, metrics)
        self.lag = LoopLag(metrics.loop_lag)
        admission = Admission(in_flight, metrics, lag_s=lambda: self.lag.seconds)
        servicer = CandidateServicer(self.watch, admission, breaker, calls, metrics)
        self.server.edge.turn_away = servicer.turn_away
        candidates_pb2_grpc.add_CandidateServiceServicer_to_server(servicer, self.server.server)
        releases_pb2_grpc.add_ReleaseServiceServicer_to_server(
            ReleaseServicer(releases, self.ensemble, self.watch, in_flight, metrics), self.server.server
        )

    async def _set_health(self, *, serving: bool, full: bool) -> None:
        await self.server.set_serving(serving)
        await self.server.set_serving(full, FULL)

    async def run(self) -> None:
        """Serve until SIGTERM, then drain. The watch never ends by itself: an error in it ends the process."""
        await self.server.start()
        running = (self.watch.run(), self.lag.run(), self.server.run_until_stopped())
        tasks = [asyncio.create_task(one) for one in running]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await self.ensemble.close()
        for task in done:
            task.result()


@click.command(name="gateway")
@click.option(
    "--releases",
    required=True,
    envvar="PINREC_RELEASES",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with serving.json and the numbered releases.",
)
@click.option("--triton", default="localhost:8001", show_default=True, metavar="HOST:PORT", help="gRPC port of Triton.")
@click.option("--canary-seconds", "canary_s", default=5.0, show_default=True, help="Time between canary requests.")
@click.option(
    "--fallback/--no-fallback",
    default=True,
    show_default=True,
    help="Answer from the release's popular lists, marked as degraded, while the stages do not.",
)
@server_options(listen="localhost:8500", metrics_port=9500)
def main(releases: Path, triton: str, canary_s: float, fallback: bool, **options: Any) -> None:
    """Serve pinrec.v1.CandidateService in front of a Triton with the `pinrec` ensemble.

    Health is SERVING once a canary request came back from the whole ensemble for the release that serving.json names,
    and with --no-fallback only while they do; that of pinrec.v1.CandidateService/full always means the latter. SIGTERM
    drains: health NOT_SERVING, calls in flight are answered, then the process ends.
    """
    configure_logging("gateway", options["log_format"])
    gateway_options = ServerOptions(**options)

    async def serve() -> None:
        gateway = Gateway(releases, triton, gateway_options, canary_s, process_registry(), fallback)
        await gateway.run()

    with one_line_errors():
        uvloop.run(serve())


if __name__ == "__main__":
    main()
