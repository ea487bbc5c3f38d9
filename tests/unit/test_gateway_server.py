"""The gateway against a peer that speaks Triton's protocol: admission, deadlines, replies, batches, health, drain."""

import asyncio

import grpc
import grpc.aio
import numpy as np
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2

from pinrec_core.errors import DeadlineExceeded, ReleaseNotOpen
from pinrec_core.messages import Status
from pinrec_core.release import ServingState, write_serving_state
from pinrec_core.serving.error_words import error_text
from services.gateway.server import SERVICE
from services.proto.candidates_pb2 import BatchGetCandidatesRequest
from tests.gateway_peer import ask, failure_of, running, write_release


@pytest_asyncio.fixture
async def stack(tmp_path):
    async with running(tmp_path) as started:
        await started.gateway.watch.step()
        yield started


async def test_reply_names_what_the_stages_answered_in_codes(stack):
    reply = await stack.client.GetCandidates(ask(request_id="r1", explain=True))
    assert [c.outcome for c in reply.candidates] == ["save"] * 7 + ["click"] * 3
    assert [c.item_id for c in reply.candidates] == list(range(100, 110))
    assert reply.candidates[0].score == pytest.approx(0.9)
    assert (reply.candidates[0].why.step, reply.candidates[0].why.target_offset) == (2, 3)
    assert [c.filled for c in reply.candidates] == [False] * 9 + [True]
    assert not reply.candidates[9].HasField("why")
    assert (reply.release, reply.history_length, reply.realtime_events, reply.request_id) == (1, 7, 2, "r1")
    assert (reply.embeddings_generated, reply.embeddings_kept) == (12, 4)
    assert (reply.cold_start, reply.degraded, reply.degraded_reason) == (False, False, "")


async def test_stages_are_sent_the_resolved_request(stack):
    await stack.client.GetCandidates(
        ask(surface="search", search_query=" space opera ", exclude_item_ids=[9, -3, 9], include_seen=True), timeout=5
    )
    (asked,) = stack.peer.requests
    assert (asked.user_id, asked.surface, asked.search_query, asked.release) == (5, 2, "space opera", 1)
    assert asked.counts.tolist() == [7, 3]
    assert asked.exclude_item_ids.tolist() == [-3, 9]
    assert asked.include_seen
    assert 0 < asked.remaining_ms <= 5_200, "the client's deadline, which gRPC may round up; not default_deadline_ms"


async def test_why_is_left_out_unless_asked_for(stack):
    reply = await stack.client.GetCandidates(ask())
    assert not any(c.HasField("why") for c in reply.candidates)


async def test_times_of_all_stages_add_up(stack):
    reply = await stack.client.GetCandidates(ask())
    times = dict(reply.stage_latency_ms)
    assert {name: times.pop(name) for name in ("fetch_signals", "embed_items", "generate", "retrieve")} == {
        "fetch_signals": 1.5,
        "embed_items": 1.5,
        "generate": 1.5,
        "retrieve": 1.5,
    }
    assert set(times) == {"triton", "gateway", "total"}
    assert times["gateway"] > 0
    if times["triton"] > 0:  # else the peer's made-up 6 ms were longer than the call
        assert times["total"] == pytest.approx(6.0 + times["triton"] + times["gateway"], abs=0.01)


async def test_cold_start_and_degraded_answers_are_marked(stack):
    stack.peer.changed = {"status": int(Status.COLD_START)}
    cold = await stack.client.GetCandidates(ask())
    assert (cold.cold_start, cold.degraded) == (True, False)
    stack.peer.changed = {"status": int(Status.COLD_START | Status.SIGNALS_UNAVAILABLE)}
    degraded = await stack.client.GetCandidates(ask())
    assert (degraded.degraded, degraded.degraded_reason) == (True, "signals_unavailable")
    assert stack.count("cold_start_total") == 2
    assert stack.count("degraded_total", reason="signals_unavailable") == 1


async def test_metrics_count_what_was_served(stack):
    await stack.client.GetCandidates(ask())
    await failure_of(stack.client.GetCandidates(ask(surface="nowhere")))
    assert stack.count("request_seconds_count", code="OK") == 1
    assert stack.count("request_seconds_count", code="INVALID_ARGUMENT") == 1
    assert stack.count("candidates_total", outcome="save") == 7
    assert stack.count("filled_total", outcome="save") == 0
    assert stack.count("filled_total", outcome="click") == 1
    assert stack.count("compression_ratio_sum") == 3.0
    assert stack.count("stage_seconds_count", stage="generate") == 1
    assert stack.count("stage_seconds_count", stage="gateway") == 1
    assert stack.count("in_flight") == 0
    assert stack.count("canary_total", code="OK") == 1


async def test_a_bad_field_is_named_to_the_client(stack):
    code, details = await failure_of(stack.client.GetCandidates(ask(surface="nowhere")))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details == "surface has value 'nowhere'; allowed: one of ['home', 'search']"
    assert stack.peer.requests == []


async def test_requests_above_the_limit_are_refused_at_once(tmp_path):
    async with running(tmp_path, max_in_flight=2) as stack:
        await stack.gateway.watch.step()
        stack.peer.release_me.clear()
        held = [stack.client.GetCandidates(ask()) for _ in range(2)]
        while len(stack.peer.requests) < 2:
            await asyncio.sleep(0.001)
        refused = stack.client.GetCandidates(ask())
        code, details = await failure_of(refused)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details == "all 2 places are taken; try again later"
        assert int(dict(tuple(await refused.trailing_metadata()))["grpc-retry-pushback-ms"]) >= 10
        assert stack.count("shed_total", reason="places", priority="INTERACTIVE") == 1
        assert stack.count("request_seconds_count", code="RESOURCE_EXHAUSTED") == 1
        labels = {"method": "GetCandidates", "code": "RESOURCE_EXHAUSTED"}
        assert stack.registry.get_sample_value("pinrec_rpc_seconds_count", labels) == 1
        assert stack.count("in_flight") == 2
        stack.peer.release_me.set()
        assert [len((await call).candidates) for call in held] == [10, 10]
        assert len((await stack.client.GetCandidates(ask())).candidates) == 10


async def test_a_cancelled_call_gives_its_place_back(tmp_path):
    async with running(tmp_path, max_in_flight=1) as stack:
        await stack.gateway.watch.step()
        stack.peer.release_me.clear()
        call = stack.client.GetCandidates(ask())
        while not stack.peer.requests:
            await asyncio.sleep(0.001)
        call.cancel()
        while stack.count("in_flight"):
            await asyncio.sleep(0.001)
        stack.peer.release_me.set()
        assert len((await stack.client.GetCandidates(ask())).candidates) == 10


async def test_the_default_deadline_bounds_a_call_without_one(tmp_path):
    async with running(tmp_path, default_deadline_ms=600) as stack:
        await stack.gateway.watch.step()
        stack.peer.release_me.clear()
        code, _ = await failure_of(stack.client.GetCandidates(ask()))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert 0 < stack.peer.requests[0].remaining_ms <= 600
        assert stack.count("request_seconds_count", code="DEADLINE_EXCEEDED") == 1


@pytest.mark.parametrize(
    ("triton_status", "text", "code", "details"),
    [
        ("INTERNAL", error_text(DeadlineExceeded("late in generate")), "DEADLINE_EXCEEDED", "late in generate"),
        ("INTERNAL", error_text(ReleaseNotOpen(1, (2,))), "UNAVAILABLE", "release 1 is not open; open: [2]"),
        ("NOT_FOUND", "unknown model: pinrec, /models/pinrec", "UNAVAILABLE", "the serving stages do not answer"),
        ("UNAVAILABLE", "Server is stopping", "UNAVAILABLE", "the serving stages do not answer"),
        ("INTERNAL", "Stub process 'x' is not healthy.", "UNAVAILABLE", "the serving stages do not answer"),
        ("INTERNAL", "Traceback /opt/model.py", "INTERNAL", "internal error of a serving stage"),
    ],
)
async def test_errors_behind_the_gateway_reach_the_client_in_our_words(stack, triton_status, text, code, details):
    stack.peer.error = (grpc.StatusCode[triton_status], f"in ensemble 'pinrec', {text}")
    assert await failure_of(stack.client.GetCandidates(ask())) == (grpc.StatusCode[code], details)


async def test_a_stage_that_worked_for_another_release_is_an_error(stack):
    stack.peer.changed = {"generate_release": 2}
    code, details = await failure_of(stack.client.GetCandidates(ask()))
    assert code is grpc.StatusCode.INTERNAL
    assert "'generate': 2" in details
    assert stack.count("mixed_release_total") == 1


async def test_a_bug_is_hidden_from_the_client(stack):
    stack.peer.changed = {"source": np.full(10, 99)}  # no embedding 99 to explain with
    code, details = await failure_of(stack.client.GetCandidates(ask(explain=True)))
    assert (code, details) == (grpc.StatusCode.INTERNAL, "internal error")
    assert stack.count("request_seconds_count", code="INTERNAL") == 1


async def test_batch_answers_in_order_and_each_request_alone(stack):
    requests = [ask(num_candidates=n, request_id=str(n)) for n in (1, 2, 0, 4)]
    reply = await stack.client.BatchGetCandidates(BatchGetCandidatesRequest(requests=requests))
    kinds = [result.WhichOneof("result") for result in reply.results]
    assert kinds == ["response", "response", "error", "response"]
    assert [reply.results[i].response.request_id for i in (0, 1, 3)] == ["1", "2", "4"]
    assert [len(reply.results[i].response.candidates) for i in (0, 1, 3)] == [1, 2, 4]
    assert reply.results[2].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert reply.results[2].error.message == "num_candidates has value 0; allowed: 1 to 1000"


async def test_a_batch_larger_than_the_places_does_not_shed_itself(tmp_path):
    async with running(tmp_path, max_in_flight=4, max_batch=20) as stack:
        await stack.gateway.watch.step()
        reply = await stack.client.BatchGetCandidates(BatchGetCandidatesRequest(requests=[ask()] * 20))
        assert [len(result.response.candidates) for result in reply.results] == [10] * 20
        code, details = await failure_of(
            stack.client.BatchGetCandidates(BatchGetCandidatesRequest(requests=[ask()] * 21))
        )
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert details == "requests has value '21 requests'; allowed: at most 20"


async def test_nothing_is_admitted_before_the_first_canary(tmp_path):
    async with running(tmp_path) as stack:
        assert not await stack.is_serving()
        code, _ = await failure_of(stack.client.GetCandidates(ask()))
        assert code is grpc.StatusCode.UNAVAILABLE
        stack.peer.error = (grpc.StatusCode.UNAVAILABLE, "loading")
        await stack.gateway.watch.step()
        assert not await stack.is_serving()
        stack.peer.error = None
        await stack.gateway.watch.step()
        assert await stack.is_serving()
        assert stack.count("active_release") == 1


async def test_an_activated_release_is_admitted_once_all_stages_hold_it(stack):
    write_release(stack.root, 2)
    write_serving_state(stack.root, ServingState(active=2, open=(1, 2)))
    await stack.gateway.watch.step()  # the stages have not opened it yet
    assert (await stack.client.GetCandidates(ask())).release == 1
    assert await stack.is_serving()
    stack.peer.open.add(2)
    await stack.gateway.watch.step()
    assert (await stack.client.GetCandidates(ask())).release == 2


async def test_a_broken_serving_state_changes_nothing(stack, caplog):
    (stack.root / "serving.json").write_text("{")
    await stack.gateway.watch.step()
    write_serving_state(stack.root, ServingState(active=3, open=(1, 3)))
    await stack.gateway.watch.step()
    assert (await stack.client.GetCandidates(ask())).release == 1
    messages = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert messages == [
        "serving.json is not followed: serving state: serving.json is not readable JSON",
        "serving.json is not followed: release 3 does not exist; there are: 1",
    ]


async def test_two_lost_canaries_end_serving_and_one_brings_it_back(tmp_path):
    async with running(tmp_path, canary_s=0.0) as stack:
        await stack.gateway.watch.step()
        stack.peer.error = (grpc.StatusCode.INTERNAL, "Stub process 'generate' is not healthy.")
        await stack.gateway.watch.step()
        assert await stack.is_serving()
        await stack.gateway.watch.step()
        assert not await stack.is_serving()
        assert (stack.count("ready"), stack.count("canary_total", code="UNAVAILABLE")) == (0, 2)
        code, _ = await failure_of(stack.client.GetCandidates(ask()))
        assert (code, stack.peer.requests) == (grpc.StatusCode.UNAVAILABLE, [])
        stack.peer.error = None
        await stack.gateway.watch.step()
        assert await stack.is_serving()
        assert stack.count("ready") == 1


async def test_drain_answers_what_is_in_flight_and_takes_nothing_new(stack):
    stack.peer.release_me.clear()
    call = stack.client.GetCandidates(ask())
    while not stack.peer.requests:
        await asyncio.sleep(0.001)
    watching = stack.health.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
    assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
    drain = asyncio.create_task(stack.gateway.server.drain())
    assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watching.cancel()
    code, _ = await failure_of(stack.client.GetCandidates(ask()))
    # A call that reaches a closing port before gRPC has told its channel so ends as CANCELLED; no handler saw it.
    assert code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert len(stack.peer.requests) == 1
    assert not drain.done()
    stack.peer.release_me.set()
    assert len((await call).candidates) == 10
    await drain
