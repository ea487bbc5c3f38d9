"""Batches form: requests of different users, histories and budgets go through a stage together."""

from __future__ import annotations

import asyncio
import time

import grpc.aio
import pytest
from tritonclient.grpc.service_pb2 import ModelInferResponse

from benchmarks.serving.triton_counts import mean_batches, read_counts
from benchmarks.serving.wire import METHOD, ensemble_request
from services.gateway.resolve import resolve
from services.proto.candidates_pb2 import GetCandidatesRequest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

CALLERS, CALLS = 32, 1_280
FLAT = 1
PATIENT_MS = 60_000


def request_of(number: int, release) -> bytes:
    """Call i to the ensemble: users with longer and shorter histories, two to four outcomes, with and without ids."""
    budget = dict(list({"save": 0.4, "click": 0.3, "share": 0.2, "comment": 0.1}.items())[: 2 + number % 3])
    asked = GetCandidatesRequest(
        user_id=1 + number % 100,
        surface=("home", "related")[number % 2],
        budget=budget,
        num_candidates=8 + number % 5,
        exclude_item_ids=range(number % 4),
    )
    return ensemble_request(resolve(asked, release, "r", int(time.time() * 1000), PATIENT_MS))


async def test_stages_work_on_more_than_four_requests_at_once_at_concurrency_32(live):
    """By Triton's own counts, requests by executions. The gateway is left out: here it takes as long as the model."""
    port = f"{live.stack.host}:{live.stack.triton_metrics_port}"
    release = live.trained.release(FLAT)
    requests = [request_of(number, release) for number in range(CALLS)]
    before = read_counts(port)
    async with grpc.aio.insecure_channel(live.triton) as channel:
        infer = channel.unary_unary(METHOD)

        async def caller(first: int) -> list[bytes]:
            return [await infer(requests[number], timeout=PATIENT_MS / 1000) for number in range(first, CALLS, CALLERS)]

        answers = await asyncio.gather(*map(caller, range(CALLERS)))
    sizes = mean_batches(before, read_counts(port))
    assert sizes["generate"] > 4, sizes
    assert min(sizes[stage] for stage in ("fetch_signals", "embed_items", "retrieve")) > 1, sizes
    for first, mine in enumerate(answers):
        for place, answer in enumerate(mine):
            [ids] = [out for out in ModelInferResponse.FromString(answer).outputs if out.name == "candidate_ids"]
            assert list(ids.shape) == [1, 8 + (first + place * CALLERS) % 5]
