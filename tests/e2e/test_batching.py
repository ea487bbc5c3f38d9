"""Batches form: requests of different users, histories and budgets go through a stage together."""

from __future__ import annotations

import asyncio
import time

import grpc.aio
import pytest
from tritonclient.grpc.service_pb2 import ModelInferResponse

from benchmarks.chaos.fleet import running
from benchmarks.serving.triton_counts import mean_batches, read_counts
from benchmarks.serving.wire import METHOD, ensemble_request
from pinrec_core.release import Release, open_release
from services.gateway.resolve import resolve
from services.proto.candidates_pb2 import GetCandidatesRequest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

CALLERS, CALLS = 32, 640
PATIENT_MS = 60_000


def request_of(number: int, release: Release) -> bytes:
    """Call i to the ensemble: users with longer and shorter histories, one or two outcomes, with and without ids."""
    asked = GetCandidatesRequest(
        user_id=1 + number % 100,
        surface=("home", "related")[number % 2],
        budget=dict([("save", 0.4), ("click", 0.6)][: 1 + number % 2]),
        num_candidates=8 + number % 5,
        exclude_item_ids=range(number % 4),
    )
    return ensemble_request(resolve(asked, release, "r", int(time.time() * 1000), PATIENT_MS))


async def asked_at_once(triton: str, requests: list[bytes]) -> list[list[bytes]]:
    """Answers of each of `CALLERS` callers, who share the requests out and ask again as soon as they are answered."""
    async with grpc.aio.insecure_channel(triton) as channel:
        infer = channel.unary_unary(METHOD)

        async def caller(first: int) -> list[bytes]:
            return [await infer(request, timeout=PATIENT_MS / 1000) for request in requests[first::CALLERS]]

        return await asyncio.gather(*map(caller, range(CALLERS)))


def test_stages_work_on_more_than_four_requests_at_once_at_concurrency_32(chaos_world, tmp_path):
    """By Triton's own counts, requests by executions. The gateway is left out: here it takes as long as the model."""
    release = open_release(chaos_world.releases, 1)
    requests = [request_of(number, release) for number in range(CALLS)]
    with running(chaos_world, tmp_path / "stack") as fleet:
        stack = fleet.stack
        port = f"{stack.host}:{stack.triton_metrics_port}"
        before = read_counts(port)
        answers = asyncio.run(asked_at_once(f"{stack.host}:{stack.triton_grpc_port}", requests))
        sizes = mean_batches(before, read_counts(port))
    assert sizes["generate"] > 4, sizes
    assert min(sizes[stage] for stage in ("fetch_signals", "embed_items", "retrieve")) > 1, sizes
    for first, mine in enumerate(answers):
        for place, answer in enumerate(mine):
            [ids] = [out for out in ModelInferResponse.FromString(answer).outputs if out.name == "candidate_ids"]
            assert list(ids.shape) == [1, 8 + (first + place * CALLERS) % 5]
