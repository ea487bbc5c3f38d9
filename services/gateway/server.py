"""The gateway: what a ranking service calls. Validate, admit, resolve the budget, call the ensemble, reply.

    python -m services.gateway.server --releases DIR --triton HOST:PORT --listen HOST:PORT --metrics-port N

Neither torch nor faiss is imported here: the gateway knows a release's vocabulary and limits, nothing of its model.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import grpc
import grpc.aio
from prometheus_client import CollectorRegistry

from pinrec_core.errors import DeadlineExceeded, InvalidRequest, Overloaded, PinrecError
from pinrec_core.release import Release
from services.common.errors import status_of
from services.common.logs import configure_logging, note_call
from services.common.metrics import GatewayMetrics, process_registry
from services.common.one_line import one_line_errors
from services.common.server import GrpcServer, ServerOptions, server_options
from services.common.tracing import open_tracing
from services.gateway.in_flight import InFlight
from services.gateway.releases import RELEASE_SERVICE, ReleaseServicer
from services.gateway.reply import build_reply, observe_reply
from services.gateway.resolve import resolve
from services.gateway.triton_client import Ensemble, EnsembleAnswer
from services.gateway.watch import ReleaseWatch
from services.proto import candidates_pb2_grpc, releases_pb2_grpc
from services.proto.candidates_pb2 import (
    BatchGetCandidatesRequest,
    BatchGetCandidatesResponse,
    GetCandidatesRequest,
    GetCandidatesResponse,
)

SERVICE = "pinrec.v1.CandidateService"

log = logging.getLogger(__name__)


class CandidateServicer(candidates_pb2_grpc.CandidateServiceServicer):  # type: ignore[misc]
    """`pinrec.v1.CandidateService`; what is raised becomes a status in the edge interceptor."""

    def __init__(self, ensemble: Ensemble, watch: ReleaseWatch, in_flight: InFlight, metrics: GatewayMetrics) -> None:
        self._ensemble = ensemble
        self._watch = watch
        self._in_flight = in_flight
        self._metrics = metrics

    async def GetCandidates(  # noqa: N802  the name in the proto
        self, request: GetCandidatesRequest, context: grpc.aio.ServicerContext
    ) -> GetCandidatesResponse:
        """Candidates of one user."""
        return await self.answer(request, _deadline_of(context))

    async def BatchGetCandidates(  # noqa: N802  the name in the proto
        self, request: BatchGetCandidatesRequest, context: grpc.aio.ServicerContext
    ) -> BatchGetCandidatesResponse:
        """Candidates of many users: each request is one of its own to the ensemble and fails or succeeds alone.

        At most half of the gateway's places are taken at a time, so that one batch does not shed itself.
        """
        limits = self._watch.active().config.serve
        if len(request.requests) > limits.max_batch:
            raise InvalidRequest("requests", f"{len(request.requests)} requests", f"at most {limits.max_batch}")
        deadline = _deadline_of(context)
        places = asyncio.Semaphore(max(1, limits.max_in_flight // 2))

        async def result(one: GetCandidatesRequest) -> BatchGetCandidatesResponse.Result:
            async with places:
                return await self._result(one, deadline)

        return BatchGetCandidatesResponse(results=await asyncio.gather(*map(result, request.requests)))

    async def _result(self, request: GetCandidatesRequest, deadline: float) -> BatchGetCandidatesResponse.Result:
        try:
            return BatchGetCandidatesResponse.Result(response=await self.answer(request, deadline))
        except Exception as error:  # the edge of one request within the batch
            code, message = status_of(error)
            failure = BatchGetCandidatesResponse.Error(code=code.value[0], message=message)
            return BatchGetCandidatesResponse.Result(error=failure)

    async def answer(self, request: GetCandidatesRequest, deadline: float = math.inf) -> GetCandidatesResponse:
        """One user's request, observed. `deadline`: the caller's, in `time.monotonic` seconds. Raises PinrecError."""
        start, code = time.monotonic(), grpc.StatusCode.CANCELLED
        try:
            reply = await self._answer(request, start, deadline)
            code = grpc.StatusCode.OK
            return reply
        except PinrecError as error:
            code = status_of(error)[0]
            raise
        except Exception:
            code = grpc.StatusCode.INTERNAL
            raise
        finally:
            self._metrics.request_seconds.labels(code.name).observe(time.monotonic() - start)

    async def _answer(self, request: GetCandidatesRequest, start: float, deadline: float) -> GetCandidatesResponse:
        release = self._watch.active()
        deadline = min(deadline, start + release.config.serve.default_deadline_ms / 1000)
        request_id = request.request_id or uuid.uuid4().hex
        note_call(request_id=request_id)
        stage_request = resolve(request, release, request_id, int(time.time() * 1000), _remaining_ms(deadline))
        with self._admitted(release):
            called = time.monotonic()
            answer = await self._ensemble.infer(stage_request, deadline - called, request_id)
            ensemble_s = time.monotonic() - called
        self._check_one_release(answer, release)
        reply = build_reply(answer.output, request, release, request_id)
        _time_stages(reply, answer, ensemble_s, time.monotonic() - start)
        observe_reply(reply, self._metrics)
        return reply

    @contextmanager
    def _admitted(self, release: Release) -> Iterator[None]:
        """A place among the requests in flight, or Overloaded at once: nothing waits for a place."""
        limit = release.config.serve.max_in_flight
        if self._in_flight.total >= limit:
            self._metrics.shed.labels("places", "INTERACTIVE").inc()
            raise Overloaded(f"{limit} requests are in flight, which is the limit; try again later")
        with self._in_flight.one(release.number):
            yield

    def _check_one_release(self, answer: EnsembleAnswer, release: Release) -> None:
        """A request belongs to one release, which each stage echoes. Raises PinrecError if any differs."""
        if any(echo != release.number for echo in answer.stage_releases.values()):
            self._metrics.mixed_release.inc()
            raise PinrecError(f"stages answered for releases {answer.stage_releases}; admitted for {release.number}")


def _deadline_of(context: grpc.aio.ServicerContext) -> float:
    """The client's gRPC deadline in seconds of `time.monotonic`; infinite if it set none."""
    remaining = context.time_remaining()
    return math.inf if remaining is None else time.monotonic() + remaining


def _remaining_ms(deadline: float) -> int:
    remaining_ms = int((deadline - time.monotonic()) * 1000)
    if remaining_ms <= 0:
        raise DeadlineExceeded("the deadline passed before the request was admitted")
    return remaining_ms


def _time_stages(reply: GetCandidatesResponse, answer: EnsembleAnswer, ensemble_s: float, total_s: float) -> None:
    """Milliseconds of each stage's own work; `triton`: its queues and transport; `gateway`: this process's own."""
    stages = {stage: us / 1000 for stage, us in answer.stage_us.items()}
    ensemble_ms, total_ms = ensemble_s * 1000, total_s * 1000
    own = {"triton": max(0.0, ensemble_ms - sum(stages.values())), "gateway": total_ms - ensemble_ms, "total": total_ms}
    for name, milliseconds in {**stages, **own}.items():
        reply.stage_latency_ms[name] = milliseconds


class Gateway:
    """The process: a server, a client of Triton and the watch that decides when the first is SERVING."""

    def __init__(
        self, releases: Path, triton: str, options: ServerOptions, canary_s: float, registry: CollectorRegistry
    ) -> None:
        metrics = GatewayMetrics(registry)
        in_flight = InFlight(metrics.in_flight)
        self.server = GrpcServer([SERVICE, RELEASE_SERVICE], options, registry, open_tracing("gateway"))
        self.ensemble = Ensemble(triton, self.server.tracing)
        self.watch = ReleaseWatch(releases, self.ensemble, metrics, self.server.set_serving, canary_s)
        candidates_pb2_grpc.add_CandidateServiceServicer_to_server(
            CandidateServicer(self.ensemble, self.watch, in_flight, metrics), self.server.server
        )
        releases_pb2_grpc.add_ReleaseServiceServicer_to_server(
            ReleaseServicer(releases, self.ensemble, self.watch, in_flight, metrics), self.server.server
        )

    async def run(self) -> None:
        """Serve until SIGTERM, then drain. The watch never ends by itself: an error in it ends the process."""
        await self.server.start()
        tasks = [asyncio.create_task(self.watch.run()), asyncio.create_task(self.server.run_until_stopped())]
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
@server_options(listen="localhost:8500", metrics_port=9500)
def main(releases: Path, triton: str, canary_s: float, **options: Any) -> None:
    """Serve pinrec.v1.CandidateService in front of a Triton with the `pinrec` ensemble.

    Health is SERVING while canary requests come back from the whole ensemble for the release that serving.json names.
    SIGTERM drains: health NOT_SERVING, calls in flight are answered, then the process ends.
    """
    configure_logging("gateway", options["log_format"])
    gateway_options = ServerOptions(**options)

    async def serve() -> None:
        await Gateway(releases, triton, gateway_options, canary_s, process_registry()).run()

    with one_line_errors():
        asyncio.run(serve())


if __name__ == "__main__":
    main()
