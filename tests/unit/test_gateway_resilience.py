"""While the stages do not answer, answer late or are too many to serve: fallback, breaker, retries, batches, health."""

import asyncio
import re
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import grpc.aio
import pytest

from services.gateway import admission, servicer
from services.gateway.server import FULL, SERVICE
from services.proto.candidates_pb2 import BatchGetCandidatesRequest, GetCandidatesRequest
from services.proto.candidates_pb2_grpc import CandidateServiceStub
from tests.gateway_peer import ask, failure_of, running

BATCH = GetCandidatesRequest.BATCH
POPULAR = [[list(range(1, 20)), list(range(20, 39))]] * 3
DOWN = (grpc.StatusCode.UNAVAILABLE, "Server is stopping")
DEAD = (grpc.StatusCode.INTERNAL, "Stub process 'generate_0_0' is not healthy.")


def assert_popular(reply):
    assert (reply.degraded, reply.degraded_reason, reply.cold_start) == (True, "stages_unavailable", False)
    assert [c.outcome for c in reply.candidates].count("save") == 7
    assert all(c.filled and c.score == 0 for c in reply.candidates)
    assert set(reply.stage_latency_ms) == {"gateway", "total"}


@pytest.mark.parametrize("error", [DOWN, DEAD])
async def test_popular_lists_answer_while_the_stages_do_not(tmp_path, error):
    async with running(tmp_path, popular=POPULAR) as stack:
        await stack.gateway.watch.step()
        stack.peer.error = error
        reply = await stack.client.GetCandidates(ask(request_id="r1", exclude_item_ids=[1, 21], explain=True))
        assert_popular(reply)
        assert [c.item_id for c in reply.candidates if c.outcome == "save"] == [2, 3, 4, 5, 6, 7, 8]
        assert [c.item_id for c in reply.candidates if c.outcome == "click"] == [20, 22, 23]
        assert (reply.release, reply.request_id, reply.history_length) == (1, "r1", 0)
        assert stack.count("degraded_total", reason="stages_unavailable") == 1
        assert stack.count("request_seconds_count", code="OK") == 1
        code, _ = await failure_of(stack.client.GetCandidates(ask(surface="nowhere")))
        assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_without_fallback_the_caller_is_told(tmp_path):
    async with running(tmp_path, popular=POPULAR, fallback=False) as stack:
        await stack.gateway.watch.step()
        stack.peer.error = DOWN
        code, details = await failure_of(stack.client.GetCandidates(ask()))
        assert (code, details) == (grpc.StatusCode.UNAVAILABLE, "the serving stages do not answer")


async def test_an_answer_that_does_not_come_is_replaced_before_the_deadline(tmp_path, monkeypatch):
    monkeypatch.setattr(servicer, "LONGEST_RESERVE_S", 1.0)  # more than a busy machine loses on the way back
    async with running(tmp_path, popular=POPULAR) as stack:
        await stack.gateway.watch.step()
        stack.peer.release_me.clear()
        assert_popular(await stack.client.GetCandidates(ask(), timeout=5.0))
        assert 0 < stack.peer.requests[0].remaining_ms <= 4_700, "a tenth is kept for the other answer"


async def test_a_bug_in_a_stage_is_not_hidden_by_an_answer(tmp_path):
    async with running(tmp_path, popular=POPULAR) as stack:
        await stack.gateway.watch.step()
        stack.peer.error = (grpc.StatusCode.INTERNAL, "Traceback /opt/model.py")
        code, _ = await failure_of(stack.client.GetCandidates(ask()))
        assert code is grpc.StatusCode.INTERNAL


async def test_after_five_failures_nothing_is_sent_until_a_canary_comes_back(tmp_path):
    async with running(tmp_path, canary_s=0.0, popular=POPULAR) as stack:
        await stack.gateway.watch.step()
        stack.peer.error = DOWN
        for _ in range(10):
            assert_popular(await stack.client.GetCandidates(ask()))
        assert len(stack.peer.requests) == 5, "some of them sent twice"
        assert stack.count("ready") == 0
        await stack.gateway.watch.step()
        assert (await stack.is_serving(), await stack.is_serving(FULL)) == (True, False)
        stack.peer.error = None
        assert (await stack.client.GetCandidates(ask())).degraded, "a request is no canary"
        await stack.gateway.watch.step()
        assert (await stack.is_serving(), await stack.is_serving(FULL)) == (True, True)
        assert not (await stack.client.GetCandidates(ask())).degraded
        assert stack.count("ready") == 1


async def test_lost_canaries_open_the_breaker_too(tmp_path):
    async with running(tmp_path, canary_s=0.0, popular=POPULAR) as stack:
        await stack.gateway.watch.step()
        stack.peer.error = DEAD
        await stack.gateway.watch.step()
        assert await stack.is_serving(FULL)
        await stack.gateway.watch.step()
        assert (await stack.is_serving(SERVICE), await stack.is_serving(FULL)) == (True, False)
        assert_popular(await stack.client.GetCandidates(ask()))
        assert stack.peer.requests == []


async def test_an_unanswered_request_is_sent_once_more(tmp_path):
    async with running(tmp_path, popular=POPULAR) as stack:
        await stack.gateway.watch.step()
        stack.peer.error, stack.peer.failures = DOWN, 1
        reply = await stack.client.GetCandidates(ask(), timeout=10)
        assert not reply.degraded
        first, second = stack.peer.requests
        assert second.remaining_ms <= first.remaining_ms
        assert stack.count("retries_total", result="answered") == 1
        stack.peer.failures = 2
        assert_popular(await stack.client.GetCandidates(ask(), timeout=10))
        assert stack.count("retries_total", result="failed") == 1


async def test_retries_end_with_their_budget(tmp_path):
    async with running(tmp_path, popular=POPULAR) as stack:
        await stack.gateway.watch.step()
        stack.peer.error, answered = DOWN, 0
        for _ in range(20):
            stack.peer.failures = 1
            answered += not (await stack.client.GetCandidates(ask(), timeout=10)).degraded
        # Ten were saved, and ten answers pay for one more.
        assert answered == stack.count("retries_total", result="answered") == 11
        assert stack.count("retries_total", result="refused") == 4, "the fifth failure in a row opens the breaker"


async def test_a_batch_leaves_places_to_interactive_requests(tmp_path):
    async with running(tmp_path, max_in_flight=4) as stack:
        await stack.gateway.watch.step()
        stack.peer.release_me.clear()
        batch = stack.client.BatchGetCandidates(BatchGetCandidatesRequest(requests=[ask()] * 6))
        while len(stack.peer.requests) < 2:
            await asyncio.sleep(0.001)
        code, details = await failure_of(stack.client.GetCandidates(ask(priority=BATCH)))
        assert (code, details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "all 2 places are taken; try again later")
        interactive = [stack.client.GetCandidates(ask()) for _ in range(2)]
        while len(stack.peer.requests) < 4:
            await asyncio.sleep(0.001)
        assert stack.count("in_flight") == 4
        stack.peer.release_me.set()
        assert [len((await one).candidates) for one in interactive] == [10, 10]
        assert [len(result.response.candidates) for result in (await batch).results] == [10] * 6
        assert stack.count("shed_total", reason="places", priority="BATCH") == 1


async def test_a_starved_batch_is_told_so_when_its_time_is_up(tmp_path, monkeypatch):
    monkeypatch.setattr(admission, "STALLED_S", 60.0)  # the stages are slow, not gone
    async with running(tmp_path, max_in_flight=2, default_deadline_ms=1_500) as stack:
        await stack.gateway.watch.step()
        stack.peer.release_me.clear()
        with_places = [stack.client.GetCandidates(ask()) for _ in range(2)]
        while len(stack.peer.requests) < 2:
            await asyncio.sleep(0.001)
        held = stack.gateway.watch.active()
        assert held.number == 1
        reply = await stack.client.BatchGetCandidates(BatchGetCandidatesRequest(requests=[ask()] * 2))
        assert {result.error.code for result in reply.results} <= {
            grpc.StatusCode.RESOURCE_EXHAUSTED.value[0],
            grpc.StatusCode.DEADLINE_EXCEEDED.value[0],
        }
        stack.peer.release_me.set()
        await asyncio.gather(*with_places, return_exceptions=True)


def documented_service_config():
    """The channel option that the clients' page recommends for several gateways."""
    page = Path(__file__).parents[2] / "docs" / "ranking-client.md"
    return re.search(r"^```json\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)[1]


async def test_gateways_are_replaced_one_by_one_and_no_call_fails(tmp_path):
    """What a rolling update does, to callers whose channel is set up as the clients' page says."""
    async with AsyncExitStack() as stacks:
        started = [await stacks.enter_async_context(running(tmp_path / name, linger_s=0.3)) for name in "ab"]
        ports = [stack.gateway.server.port for stack in started]
        target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
        option = ("grpc.service_config", documented_service_config())
        reconnect = ("grpc.max_reconnect_backoff_ms", 200), ("grpc.initial_reconnect_backoff_ms", 100)
        channel = await stacks.enter_async_context(grpc.aio.insecure_channel(target, [option, *reconnect]))
        client, stop, answered = CandidateServiceStub(channel), asyncio.Event(), Counter()

        async def caller():
            while not stop.is_set():
                answered[len((await client.GetCandidates(ask())).candidates) == 10] += 1

        async def used(stack):
            while not stack.peer.requests:
                await asyncio.sleep(0.01)

        for stack in started:
            await stack.gateway.watch.step()
        callers = [asyncio.create_task(caller()) for _ in range(8)]
        for name, old in zip("cd", started, strict=True):
            await used(old)
            await old.gateway.server.drain()
            new = await stacks.enter_async_context(running(tmp_path / name, port=old.gateway.server.port))
            await new.gateway.watch.step()
            await used(new)
        stop.set()
        await asyncio.gather(*callers)  # raises what any call raised
        assert answered[True] >= 4  # each of the four gateways was waited for until it had one
        assert not answered[False]
