"""`pinrec.v1.ReleaseService`: how this gateway stands to releases, and the try of one before it is activated."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import numpy as np

from pinrec_core.errors import InvalidRequest, Overloaded, PinrecError, ReleaseNotOpen
from pinrec_core.messages import Status
from pinrec_core.release import Release, open_release, serving_state
from pinrec_core.release.golden import GoldenRequest, read_golden
from services.common.metrics import GatewayMetrics
from services.gateway.in_flight import InFlight
from services.gateway.triton_client import Ensemble
from services.gateway.watch import ReleaseWatch
from services.proto import releases_pb2_grpc
from services.proto.releases_pb2 import (
    GetReleaseStatusRequest,
    GetReleaseStatusResponse,
    TryReleaseRequest,
    TryReleaseResponse,
)

RELEASE_SERVICE = "pinrec.v1.ReleaseService"

PAUSES = 3
"""After a golden request, in times that it took: three quarters of the time belong to those who wait."""

_LOOK_S = 0.25
"""Time between looks at whether every stage has opened a release that is to be tried."""


@dataclass(frozen=True)
class Trial:
    """What one golden request brought back."""

    overlap: float
    elapsed_ms: float


class ReleaseServicer(releases_pb2_grpc.ReleaseServiceServicer):  # type: ignore[misc]
    """What `pinrec release activate` asks before and after it flips."""

    def __init__(
        self, root: Path, ensemble: Ensemble, watch: ReleaseWatch, in_flight: InFlight, metrics: GatewayMetrics
    ) -> None:
        self._root = root
        self._ensemble = ensemble
        self._watch = watch
        self._in_flight = in_flight
        self._metrics = metrics
        self._trying = False

    async def GetReleaseStatus(  # noqa: N802  the name in the proto
        self, request: GetReleaseStatusRequest, context: grpc.aio.ServicerContext
    ) -> GetReleaseStatusResponse:
        """Which release requests are admitted for, and which ones are in flight: in all processes of this gateway."""
        return GetReleaseStatusResponse(
            admitted=self._in_flight.group.admitted,
            ready=self._watch.is_ready,
            in_flight=self._in_flight.by_release(),
        )

    async def TryRelease(  # noqa: N802  the name in the proto
        self, request: TryReleaseRequest, context: grpc.aio.ServicerContext
    ) -> TryReleaseResponse:
        """Wait until every stage holds the release, then send its golden requests, one at a time.

        The caller's deadline bounds the wait. Raises InvalidRequest for a release that serving.json does not list.
        """
        with self._alone():
            release = await asyncio.to_thread(self._open, request.release)
            answer = await self._try(release, await asyncio.to_thread(read_golden, release))
        self._metrics.release_tries.labels("failed" if answer.problem else "passed").inc()
        return answer

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One try at a time: golden requests are not admitted like others, so they must not pile up."""
        if self._trying:
            raise Overloaded("another release is being tried here; try again later")
        self._trying = True
        try:
            yield
        finally:
            self._trying = False

    def _open(self, number: int) -> Release:
        listed = serving_state(self._root).open
        if number not in listed:
            raise InvalidRequest("release", number, f"one that serving.json lists as open: {list(listed)}")
        return open_release(self._root, number, verify=False)

    async def _try(self, release: Release, golden: Sequence[GoldenRequest]) -> TryReleaseResponse:
        trials: list[Trial] = []
        try:
            await self._until_open(release, golden[0])
            for request in golden:
                trials.append(await self._ask(release, request))
                await asyncio.sleep(PAUSES * trials[-1].elapsed_ms / 1000)
        except PinrecError as error:
            at = f"golden request {len(trials) + 1} of {len(golden)}: {error.message}"
            return TryReleaseResponse(problem=at, num_requests=len(golden))
        return judged(release, trials)

    async def _until_open(self, release: Release, request: GoldenRequest) -> None:
        """Ask until no stage says that the release is not open; the first answer of a cold release is not measured."""
        while True:
            try:
                await self._ask(release, request)
                return
            except ReleaseNotOpen:
                await asyncio.to_thread(self._open, release.number)  # raises once serving.json has dropped it
                await asyncio.sleep(_LOOK_S)

    async def _ask(self, release: Release, request: GoldenRequest) -> Trial:
        """One golden request within the deadline that clients have by default. Raises PinrecError."""
        limit_ms = release.config.serve.default_deadline_ms
        start = time.monotonic()
        with self._in_flight.one(release.number):
            answer = await self._ensemble.infer(
                request.to_request(release.number, limit_ms), limit_ms / 1000, request_id="golden"
            )
        elapsed_ms = (time.monotonic() - start) * 1000
        if any(echo != release.number for echo in answer.stage_releases.values()):
            self._metrics.mixed_release.inc()
            raise PinrecError(f"stages answered for releases {answer.stage_releases}")
        if Status.SIGNALS_UNAVAILABLE in Status(answer.output.status):
            raise PinrecError("the signal service did not answer")
        item_ids = answer.output.candidate_ids
        newer = item_ids[release.items.rows(item_ids) < 0]
        return Trial(request.overlap(item_ids.tolist(), newer.tolist()), elapsed_ms)


def judged(release: Release, trials: Sequence[Trial]) -> TryReleaseResponse:
    """Hold the trials to the bounds of the release's own configuration."""
    bounds = release.config.serve
    overlaps = [trial.overlap for trial in trials]
    mean, least = float(np.mean(overlaps)), min(overlaps)
    p50, p99 = np.percentile([trial.elapsed_ms for trial in trials], [50, 99])
    problem = ""
    if mean < bounds.golden_overlap:
        problem = f"{mean:.3f} of the expected items came back; allowed: at least {bounds.golden_overlap}"
    elif p99 > bounds.golden_p99_ms:
        problem = f"the p99 of golden requests is {p99:.1f} ms; allowed: at most {bounds.golden_p99_ms}"
    return TryReleaseResponse(
        problem=problem, num_requests=len(trials), mean_overlap=mean, min_overlap=least, p50_ms=p50, p99_ms=p99
    )
