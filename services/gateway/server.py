"""The gateway: what a ranking service calls. Validate, admit, resolve the budget, call the ensemble, reply.

    python -m services.gateway.server --releases DIR --triton HOST:PORT --listen HOST:PORT --metrics-port N

Neither torch nor faiss is imported here: the gateway knows a release's vocabulary and limits, nothing of its model.
"""

from __future__ import annotations

import asyncio
import sys
import time
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
from services.gateway.group import Group, Table
from services.gateway.in_flight import InFlight
from services.gateway.loop_lag import LoopLag
from services.gateway.processes import Processes
from services.gateway.releases import RELEASE_SERVICE, ReleaseServicer
from services.gateway.servicer import CandidateServicer
from services.gateway.triton_client import Ensemble
from services.gateway.watch import ReleaseWatch
from services.proto import candidates_pb2_grpc, releases_pb2_grpc

SERVICE = "pinrec.v1.CandidateService"

FULL = f"{SERVICE}/full"
"""Health of full answers: SERVING only while the stages answer."""

UNREADY_S = 2.0
"""One of several processes takes connections when it can answer; or after so long, while no other takes any."""

_LOOK_S = 0.02

MAX_REQUEST_BYTES = 8 << 20
"""A batch of 256 requests that each exclude 2,000 items takes 5 MB."""


class Gateway:
    """The process: a server, a client of Triton and the watch that decides when the first is SERVING.

    `group`: the processes that share its port, none without it.
    """

    def __init__(
        self,
        releases: Path,
        triton: str,
        options: ServerOptions,
        canary_s: float,
        registry: CollectorRegistry,
        fallback: bool = True,
        group: Group | None = None,
    ) -> None:
        metrics = GatewayMetrics(registry)
        self.group = group or Group.alone()
        in_flight = InFlight(metrics.in_flight, self.group)
        self.server = GrpcServer(
            [SERVICE, RELEASE_SERVICE], options, registry, open_tracing("gateway"), MAX_REQUEST_BYTES
        )
        self.ensemble = Ensemble(triton, self.server.tracing)
        breaker = Breaker(metrics)
        self.watch = ReleaseWatch(
            releases, self.ensemble, breaker, metrics, self._set_health, self.group, canary_s, fallback
        )
        calls = EnsembleCalls(self.ensemble, breaker, metrics)
        self.lag = LoopLag(metrics.loop_lag, self.group)
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
        await self.server.stand_by()
        if self.group.size == 1:  # asked for its health at once
            await self._listen()
        running = (self.watch.run(), self.lag.run(), self._serve())
        tasks = [asyncio.create_task(one) for one in running]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await self.ensemble.close()
        for task in done:
            task.result()

    async def _serve(self) -> None:
        if self.group.size > 1:
            await self._until_needed()
            await self._listen()
        await self.server.run_until_stopped()

    async def _listen(self) -> None:
        await self.server.listen()
        self.group.listen()

    async def _until_needed(self) -> None:
        """One of several leaves calls to those who can answer, if there are any, until it can."""
        start = time.monotonic()
        while not self.watch.admitted:
            if time.monotonic() - start > UNREADY_S and not self.group.others_listen:
                return
            await asyncio.sleep(_LOOK_S)


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
@click.option(
    "--processes",
    default=1,
    show_default=True,
    type=click.IntRange(1, 256),
    help="How many share the port, one a core (SO_REUSEPORT); the next numbers after the metrics port are the others'.",
)
@click.option("--member", type=(click.Path(path_type=Path), int), hidden=True)
@server_options(listen="localhost:8500", metrics_port=9500)
def main(
    releases: Path,
    triton: str,
    canary_s: float,
    fallback: bool,
    processes: int,
    member: tuple[Path, int] | None,
    **options: Any,
) -> None:
    """Serve pinrec.v1.CandidateService in front of a Triton with the `pinrec` ensemble.

    Health is SERVING once a canary request came back from the whole ensemble for the release that serving.json names,
    and with --no-fallback only while they do; that of pinrec.v1.CandidateService/full always means the latter. SIGTERM
    drains: health NOT_SERVING, calls in flight are answered, then the process ends.

    With --processes each of them is such a gateway. This one starts them, starts again what dies or hangs, and drains
    all on SIGTERM.
    """
    configure_logging("gateway" if member is None else f"gateway.{member[1]}", options["log_format"])
    with one_line_errors():
        if processes > 1 and member is None:
            sys.exit(Processes(processes, ServerOptions(**options), sys.argv[1:]).run())
        group = None if member is None else Group(Table.open(member[0]), member[1])
        gateway_options = ServerOptions(**options, shared_port=group is not None)

        async def serve() -> None:
            gateway = Gateway(releases, triton, gateway_options, canary_s, process_registry(), fallback, group)
            await gateway.run()

        uvloop.run(serve())


if __name__ == "__main__":
    main()
