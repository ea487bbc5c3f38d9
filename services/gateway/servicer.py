"""`pinrec.v1.CandidateService`: a request's way through the gateway."""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Mapping

import grpc
import grpc.aio

from pinrec_core.errors import DeadlineExceeded, InvalidRequest, Overloaded, PinrecError, ReleaseNotOpen, Unavailable
from pinrec_core.release import Release
from services.common.errors import status_of
from services.common.logs import note_call
from services.common.metrics import GatewayMetrics
from services.gateway.admission import BATCH, Admission
from services.gateway.calls import Breaker, EnsembleCalls
from services.gateway.reply import build_reply, observe_candidates, observe_reply
from services.gateway.resolve import resolve
from services.gateway.triton_client import EnsembleAnswer
from services.gateway.watch import ReleaseWatch
from services.proto import candidates_pb2_grpc
from services.proto.candidates_pb2 import (
    BatchGetCandidatesRequest,
    BatchGetCandidatesResponse,
    GetCandidatesRequest,
    GetCandidatesResponse,
)

GET_CANDIDATES = "/pinrec.v1.CandidateService/GetCandidates"

RESERVE = 0.1
LONGEST_RESERVE_S = 0.05
"""Share of its time that a request's answer without the stages is made in, if they take all the rest."""


class CandidateServicer(candidates_pb2_grpc.CandidateServiceServicer):  # type: ignore[misc]
    """What is raised becomes a status in the edge interceptor."""

    def __init__(
        self,
        watch: ReleaseWatch,
        admission: Admission,
        breaker: Breaker,
        calls: EnsembleCalls,
        metrics: GatewayMetrics,
    ) -> None:
        self._watch = watch
        self._admission = admission
        self._breaker = breaker
        self._calls = calls
        self._metrics = metrics

    async def GetCandidates(  # noqa: N802  the name in the proto
        self, request: GetCandidatesRequest, context: grpc.aio.ServicerContext
    ) -> GetCandidatesResponse:
        """Candidates of one user."""
        return await self.answer(request, _deadline_of(context))

    def turn_away(self, method: str) -> Overloaded | None:
        """The refusal of a call that just came in and is unread, if there is no place for it."""
        if method != GET_CANDIDATES or not self._watch.is_ready:  # popular lists need no place
            return None
        refusal = self._admission.turn_away(self._watch.active())
        if refusal is not None:
            self._metrics.request_seconds.labels(grpc.StatusCode.RESOURCE_EXHAUSTED.name).observe(0.0)
        return refusal

    async def BatchGetCandidates(  # noqa: N802  the name in the proto
        self, request: BatchGetCandidatesRequest, context: grpc.aio.ServicerContext
    ) -> BatchGetCandidatesResponse:
        """Candidates of many users: each request is one of its own to the ensemble and fails or succeeds alone.

        All have the priority BATCH, and wait for a place while there is time.
        """
        release = self._watch.active()
        limits = release.config.serve
        if len(request.requests) > limits.max_batch:
            raise InvalidRequest("requests", f"{len(request.requests)} requests", f"at most {limits.max_batch}")
        deadline = _deadline_of(context)
        results = [BatchGetCandidatesResponse.Result()] * len(request.requests)
        waiting = iter(enumerate(request.requests))

        async def work() -> None:
            for place, one in waiting:
                await self._admission.room_for_batch(release, _bounded(deadline, time.monotonic(), release))
                one.priority = BATCH
                results[place] = await self._result(one, deadline)

        workers = min(self._admission.places(release, BATCH), len(results))
        await asyncio.gather(*(work() for _ in range(workers)))
        return BatchGetCandidatesResponse(results=results)

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
        """The path: one release, a place among those at work, the stages; or popular lists if they do not answer."""
        release, popular = self._watch.active(), self._watch.popular
        deadline = _bounded(deadline, start, release)
        request_id = request.request_id and _noted_id(request)  # one is made up only for who is let in
        try:
            self._breaker.check()
            with self._admission.place(release, request.priority, deadline):
                request_id = request_id or _noted_id(request)
                resolved = resolve(request, release, request_id, _now_ms(), _remaining_ms(deadline))
                called = time.monotonic()
                reserve_s = min(RESERVE * (deadline - called), LONGEST_RESERVE_S) if popular is not None else 0.0
                answer = await self._calls.infer(resolved, deadline - reserve_s, request_id)
                ensemble_s = time.monotonic() - called
        except (Unavailable, ReleaseNotOpen, DeadlineExceeded) as error:
            if isinstance(error, DeadlineExceeded) and self._admission.is_stalled:
                self._breaker.failed()
            if popular is None or time.monotonic() >= deadline:
                raise
            request_id = request_id or _noted_id(request)
            resolved = resolve(request, release, request_id, _now_ms(), _remaining_ms(deadline))
            output = popular.answer(resolved)
            reply = build_reply(output, request, release, request_id)
            _note_times(reply, {}, 0.0, time.monotonic() - start)
        else:
            self._check_one_release(answer, release)
            output = answer.output
            reply = build_reply(output, request, release, request_id)
            _note_times(reply, _stage_times(answer, ensemble_s), ensemble_s, time.monotonic() - start)
        observe_candidates(output, release.vocabulary.outcomes, self._metrics)
        observe_reply(reply, self._metrics)
        return reply

    def _check_one_release(self, answer: EnsembleAnswer, release: Release) -> None:
        """A request belongs to one release, which each stage echoes. Raises PinrecError if any differs."""
        if any(echo != release.number for echo in answer.stage_releases.values()):
            self._metrics.mixed_release.inc()
            raise PinrecError(f"stages answered for releases {answer.stage_releases}; admitted for {release.number}")


def _deadline_of(context: grpc.aio.ServicerContext) -> float:
    """The client's gRPC deadline in seconds of `time.monotonic`; infinite if it set none."""
    remaining = context.time_remaining()
    return math.inf if remaining is None else time.monotonic() + remaining


def _noted_id(request: GetCandidatesRequest) -> str:
    """The request's id, made up if it has none, which this call's log lines hold from now on."""
    request_id = request.request_id or uuid.uuid4().hex
    note_call(request_id=request_id)
    return str(request_id)


def _bounded(deadline: float, start: float, release: Release) -> float:
    """The deadline, or that of a request which began at `start` and brought none if it is earlier."""
    return min(deadline, start + release.config.serve.default_deadline_ms / 1000)


def _now_ms() -> int:
    return int(time.time() * 1000)


def _remaining_ms(deadline: float) -> int:
    remaining_ms = int((deadline - time.monotonic()) * 1000)
    if remaining_ms <= 0:
        raise DeadlineExceeded("the deadline passed before the request was admitted")
    return remaining_ms


def _stage_times(answer: EnsembleAnswer, ensemble_s: float) -> dict[str, float]:
    """Seconds of each stage's own work; `triton`: its queues and transport."""
    stages = {stage: us / 1_000_000 for stage, us in answer.stage_us.items()}
    return {**stages, "triton": max(0.0, ensemble_s - sum(stages.values()))}


def _note_times(reply: GetCandidatesResponse, stages: Mapping[str, float], ensemble_s: float, total_s: float) -> None:
    """Milliseconds of each stage; `gateway`: this process's own."""
    for name, seconds in {**stages, "gateway": total_s - ensemble_s, "total": total_s}.items():
        reply.stage_latency_ms[name] = seconds * 1000
