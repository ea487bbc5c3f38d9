"""The whole stack as a ranking service meets it: counts, read-your-write, errors, health, reflection, metrics, load."""

from __future__ import annotations

import json
import math
import os
import random
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import grpc
import numpy as np
import pytest
from click.testing import CliRunner
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from pinrec_core.data.synthetic import FIRST_ITEM_ID
from pinrec_core.schema import ItemType
from pinrec_core.signals.events import Event
from services.cli.main import main
from services.proto.candidates_pb2 import BatchGetCandidatesRequest, GetCandidatesRequest, GetCandidatesResponse

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
OUTCOMES = ("share", "save", "comment", "click")
NUM_ITEMS = 300
PATIENT_S = 60.0


def ask(live, **changes) -> GetCandidatesResponse:
    return live.candidates.GetCandidates(asked(**changes), timeout=PATIENT_S)


def asked(**changes) -> GetCandidatesRequest:
    fields = {"user_id": 11, "surface": "home", "budget": {"save": 0.7, "click": 0.3}, "num_candidates": 10}
    return GetCandidatesRequest(**{**fields, **changes})


def ids(reply: GetCandidatesResponse) -> list[int]:
    return [candidate.item_id for candidate in reply.candidates]


def largest_remainder(weights: dict[str, float], total: int) -> dict[str, int]:
    """Exact: the weights are the decimals that were typed; ties to the larger share, then to the earlier outcome."""
    typed = {outcome: Fraction(str(np.float32(weights.get(outcome, 0)))) for outcome in OUTCOMES}
    quotas = {outcome: weight * total / sum(typed.values()) for outcome, weight in typed.items()}
    counts = {outcome: math.floor(quota) for outcome, quota in quotas.items()}
    by_remainder = sorted(OUTCOMES, key=lambda o: (counts[o] - quotas[o], -quotas[o], OUTCOMES.index(o)))
    for outcome in by_remainder[: total - sum(counts.values())]:
        counts[outcome] += 1
    return {outcome: count for outcome, count in counts.items() if count}


def random_budget(rng: random.Random) -> dict[str, float]:
    """Any weights, or round ones, whose quotas tie."""
    chosen = rng.sample(OUTCOMES, rng.randint(1, len(OUTCOMES)))
    kind = rng.randrange(4)
    weights = {
        0: lambda: rng.random(),
        1: lambda: rng.randint(0, 8) / 8,
        2: lambda: rng.randint(0, 100) / 100,
        3: lambda: 10 ** rng.uniform(-6, 6),
    }
    budget = {outcome: weights[kind]() for outcome in chosen}
    return budget if any(budget.values()) else {chosen[0]: 1.0}


def test_largest_remainder_by_hand():
    assert largest_remainder({"save": 0.57, "click": 0.43}, 50) == {"save": 29, "click": 21}  # 28.5 and 21.5
    assert largest_remainder({"click": 1, "share": 1}, 5) == {"share": 3, "click": 2}
    assert largest_remainder({"share": 0.4, "save": 0.35, "comment": 0.25}, 5) == {"share": 2, "save": 2, "comment": 1}


def test_counts_are_the_budgets_largest_remainders(live):
    """1,000 budgets and sizes; every fill-up would count for its outcome, so the counts hold whatever was found."""
    rng = random.Random(0)
    requests = [
        asked(
            user_id=rng.randint(1, 250), budget=random_budget(rng), num_candidates=rng.randint(1, 60), include_seen=True
        )
        for _ in range(1_000)
    ]
    for first in range(0, 1_000, 250):
        batch = BatchGetCandidatesRequest(requests=requests[first : first + 250])
        results = live.candidates.BatchGetCandidates(batch, timeout=4 * PATIENT_S).results
        assert len(results) == 250
        for request, result in zip(batch.requests, results, strict=True):
            reply = result.response
            served = Counter(candidate.outcome for candidate in reply.candidates)
            assert served == largest_remainder(request.budget, request.num_candidates), (request, result.error)
            assert len(set(ids(reply))) == len(reply.candidates)


def pin(user_id: int, item_id: int, timestamp_ms: int) -> Event:
    return Event(user_id, item_id, ItemType.PIN, "save", "home", timestamp_ms)


@pytest.mark.parametrize("known", [True, False])
def test_an_acknowledged_event_is_in_the_next_request(live, known):
    user = live.log_user() if known else live.new_user()
    everything = {"user_id": user, "num_candidates": NUM_ITEMS, "budget": {"save": 1.0}}
    corpus = set(range(FIRST_ITEM_ID, FIRST_ITEM_ID + NUM_ITEMS))
    first = ask(live, **everything)
    assert (first.cold_start, first.realtime_events) == (not known, 0)
    seen = corpus - set(ids(first))
    assert bool(seen) is known
    now, longest = int(time.time() * 1000), live.trained.config.model.max_history
    reply = first
    for step in range(1, 6):
        best = reply.candidates[0].item_id
        live.append([pin(user, best, now + step)])
        seen.add(best)
        reply = ask(live, **everything)
        assert reply.realtime_events == step
        assert reply.history_length == min(first.history_length + step, longest)
        assert (reply.cold_start, reply.degraded) == (False, False)
        assert set(ids(reply)) == corpus - seen
    again = ask(live, **everything, include_seen=True)
    assert set(ids(again)) == corpus


def test_new_events_change_what_is_recommended(live):
    """Not only that the seen are gone: with all items allowed, another history ranks them otherwise."""
    user = live.new_user()
    request = {"user_id": user, "num_candidates": 40, "include_seen": True}
    before = ask(live, **request)
    live.append([pin(user, FIRST_ITEM_ID + item, int(time.time() * 1000) + item) for item in range(12)])
    after = ask(live, **request)
    assert ids(before) != ids(after)


def test_the_verbs_append_ask_and_show(live):
    user, item = live.new_user(), FIRST_ITEM_ID + 5
    signals = f"{live.stack.host}:{live.stack.signals_port}"

    def run(*words: object) -> str:
        result = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    words = ("--user", user, "--item", item, "--action", "save", "--surface", "home", "--signals", signals)
    assert "1 event of user" in run("events", "append", *words)
    shown = run("events", "history", "--user", user, "--releases", live.stack.releases, "--signals", signals)
    assert str(item) in shown
    budget = ("--budget", "save=0.5,share=0.5", "-n", 9)
    reply = json.loads(
        run("recommend", "--user", user, "--surface", "home", *budget, "--address", live.gateway, "--json")
    )
    assert (reply["realtime_events"], len(reply["candidates"])) == (1, 9)


BAD_REQUESTS = {
    "surface": ({"surface": "attic"}, "surface has value 'attic'; allowed: one of ['home', 'related', 'search']"),
    "no surface": ({"surface": ""}, "surface has value ''; allowed: one of ['home', 'related', 'search']"),
    "outcome": ({"budget": {"buy": 1.0}}, f"budget has value 'buy'; allowed: outcomes {list(OUTCOMES)}"),
    "search is no outcome": ({"budget": {"search": 1.0}}, "budget has value 'search'; allowed: outcomes"),
    "no budget": ({"budget": {}}, f"budget has value {{}}; allowed: a weight above 0 for one of {list(OUTCOMES)}"),
    "all zero": ({"budget": {"save": 0.0}}, "budget has value {'save': 0.0}; allowed: a weight above 0 for one of"),
    "negative": ({"budget": {"save": -1.0, "click": 1.0}}, "budget[save] has value -1.0; allowed: a finite weight, 0"),
    "NaN": ({"budget": {"save": math.nan}}, "budget[save] has value nan; allowed: a finite weight, 0 or more"),
    "infinite": ({"budget": {"save": math.inf}}, "budget[save] has value inf; allowed: a finite weight, 0 or more"),
    "none wanted": ({"num_candidates": 0}, "num_candidates has value 0; allowed: 1 to 1000"),
    "too many wanted": ({"num_candidates": 1_001}, "num_candidates has value 1001; allowed: 1 to 1000"),
    "query elsewhere": (
        {"search_query": "cats"},
        "search_query has value 'cats'; allowed: none on surface 'home'; surfaces that take one: ['search']",
    ),
    "long query": (
        {"surface": "search", "search_query": "x" * 513},
        f"search_query has value '{'x' * 40}... (513 characters)'; allowed: at most 512 characters",
    ),
    "too many excluded": (
        {"exclude_item_ids": range(2_001)},
        "exclude_item_ids has value '2001 ids'; allowed: at most 2000 ids",
    ),
    "long request id": ({"request_id": "x" * 129}, "request_id has value"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_bad_request_is_told_what_is_allowed(live, changes, message):
    with pytest.raises(grpc.RpcError) as refusal:
        ask(live, **changes)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.value.details().startswith(message)
    assert not any(word in refusal.value.details() for word in ("Traceback", ".py", "/"))


def test_bad_requests_of_a_batch_fail_alone(live):
    requests = [asked(), *(asked(**changes) for changes, _ in BAD_REQUESTS.values()), asked()]
    results = live.candidates.BatchGetCandidates(BatchGetCandidatesRequest(requests=requests), timeout=60).results
    assert len(results[0].response.candidates) == len(results[-1].response.candidates) == 10
    for result, (_, message) in zip(results[1:-1], BAD_REQUESTS.values(), strict=True):
        assert result.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert result.error.message.startswith(message)
    with pytest.raises(grpc.RpcError, match=r"requests has value '257 requests'; allowed: at most 256"):
        live.candidates.BatchGetCandidates(BatchGetCandidatesRequest(requests=[asked()] * 257), timeout=60)


def test_a_bad_event_is_told_what_is_allowed(live):
    with pytest.raises(grpc.RpcError) as refusal:
        live.append([pin(1, 2, 1_700_000_000)])
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.value.details().startswith("events[0].timestamp_ms has value 1700000000; allowed: Unix milliseconds")


def test_deadlines_too_short_are_exceeded_and_hold_no_place(live):
    for timeout_s in (0.0, 0.001, 0.002):
        calls = [live.candidates.GetCandidates.future(asked(), timeout=timeout_s) for _ in range(50)]
        # On a slow machine one may be in the ensemble for that long, and the next is refused for want of time.
        late = {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert {call.code() for call in calls} <= late
    assert len(ask(live).candidates) == 10
    calls = [live.candidates.GetCandidates.future(asked(num_candidates=200), timeout=0.05) for _ in range(100)]
    # More calls than places: on a machine that takes them in all at once, some are refused as one too many.
    answers = {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert {call.code() for call in calls} <= answers
    port = live.stack.gateway_metrics_port
    assert eventually(lambda: metrics(live, port)["pinrec_gateway_in_flight"] == 0)


def eventually(condition) -> bool:
    """Poll for two minutes: the test's own time limit, not a speed that is asserted."""
    return any(condition() or time.sleep(0.1) for _ in range(1_200))


def test_more_than_the_places_in_flight_is_refused_at_once_and_the_rest_answered(live):
    requests = [asked(user_id=user, num_candidates=1_000) for user in range(300)]
    calls = [live.candidates.GetCandidates.future(request, timeout=PATIENT_S) for request in requests]
    assert {call.code() for call in calls} == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    answered = [call.result() for call in calls if call.code() is grpc.StatusCode.OK]
    assert not any(reply.degraded for reply in answered)
    refused = next(call for call in calls if call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert re.fullmatch(r"all \d+ places are taken; try again later", refused.details())
    assert int(dict(refused.trailing_metadata())["grpc-retry-pushback-ms"]) >= 10
    assert len(ask(live).candidates) == 10


def test_an_unknown_user_is_a_cold_start(live):
    for user in (live.new_user(), 0, -(2**63), 2**63 - 1):
        reply = ask(live, user_id=user, explain=True)
        assert (reply.cold_start, reply.history_length, reply.degraded) == (True, 0, False)
        assert len(reply.candidates) == 10
        assert all(candidate.HasField("why") for candidate in reply.candidates)
    assert not ask(live, user_id=12).cold_start


def test_a_reply_says_where_it_comes_from(live):
    reply = ask(live, request_id="mine", explain=True)
    assert (reply.request_id, reply.release, reply.degraded_reason) == ("mine", 1, "")
    stages = {"fetch_signals", "embed_items", "generate", "retrieve", "triton", "gateway", "total"}
    assert set(reply.stage_latency_ms) == stages
    assert sum(ms for stage, ms in reply.stage_latency_ms.items() if stage != "total") == pytest.approx(
        reply.stage_latency_ms["total"], rel=0.01
    )
    assert reply.embeddings_generated == 2 * 2 * 4  # outcomes x steps x offsets
    assert 0 < reply.embeddings_kept <= reply.embeddings_generated


def test_health_is_serving(live):
    health = health_pb2_grpc.HealthStub(live.channel)
    for service in ("", "pinrec.v1.CandidateService"):
        status = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status
        assert status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as unknown:
        health.Check(health_pb2.HealthCheckRequest(service="other"), timeout=10)
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_generic_client_finds_and_calls_the_service_by_reflection(live):
    database = ProtoReflectionDescriptorDatabase(live.channel)
    ours = {"pinrec.v1.CandidateService", "pinrec.v1.ReleaseService"}
    known = {*ours, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert set(database.get_services()) == known
    pool = descriptor_pool.DescriptorPool(database)
    method = pool.FindServiceByName("pinrec.v1.CandidateService").FindMethodByName("GetCandidates")
    request, reply = (message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type))
    call = live.channel.unary_unary(
        "/pinrec.v1.CandidateService/GetCandidates", request.SerializeToString, reply.FromString
    )
    text = '{"userId": "11", "surface": "home", "budget": {"save": 0.7}, "numCandidates": 3}'
    assert len(call(json_format.Parse(text, request()), timeout=PATIENT_S).candidates) == 3


def metrics(live, port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{live.stack.host}:{port}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def test_metrics_count_what_clients_got(live):
    def read() -> Counter:
        names = {
            "ok": 'pinrec_gateway_request_seconds_count{code="OK"}',
            "bad": 'pinrec_gateway_request_seconds_count{code="INVALID_ARGUMENT"}',
            "saves": 'pinrec_gateway_candidates_total{outcome="save"}',
            "cold": "pinrec_gateway_cold_start_total",
            "generate": 'pinrec_gateway_stage_seconds_count{stage="generate"}',
        }
        found = metrics(live, live.stack.gateway_metrics_port)
        return Counter({short: found.get(name, 0.0) for short, name in names.items()})

    before = read()
    ask(live)
    ask(live, user_id=live.new_user())
    with pytest.raises(grpc.RpcError):
        ask(live, num_candidates=0)
    after = read()
    assert after - before == Counter(ok=2, bad=1, saves=14, cold=1, generate=2)
    signals = metrics(live, live.stack.signals_metrics_port)
    assert signals["pinrec_signals_watermark_ms"] == live.trained.dataset.watermark_ms
    triton = metrics(live, live.stack.triton_metrics_port)
    assert triton['nv_inference_request_success{model="pinrec",version="1"}'] > 0


def test_clients_at_once_get_what_each_gets_alone(live):
    """No answer is another user's: filters of each request hold in any batch."""
    users = range(1, 61)
    excluded = {user: [FIRST_ITEM_ID + (user * 7 + place) % NUM_ITEMS for place in range(50)] for user in users}

    def one(user: int) -> GetCandidatesResponse:
        request = {"user_id": user, "exclude_item_ids": excluded[user], "num_candidates": 50, "request_id": f"r{user}"}
        while True:
            try:
                return ask(live, **request)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                time.sleep(int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) / 1_000)

    alone = {user: one(user) for user in users}
    with ThreadPoolExecutor(20) as pool:
        together = dict(zip(users, pool.map(one, users), strict=True))
    for user in users:
        assert together[user].request_id == f"r{user}"
        assert together[user].history_length == alone[user].history_length
        assert not set(ids(together[user])) & set(excluded[user])
        assert len(set(ids(together[user])) & set(ids(alone[user]))) >= 0.99 * 50


def test_locust_runs_without_a_failure(live, tmp_path):
    command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless", "-u", "4", "-r", "4"]
    command += ["-t", "5s", "--host", live.gateway, "--csv", str(tmp_path / "load"), "--only-summary"]
    environment = {**os.environ, "PINREC_RELEASES": str(live.stack.releases), "PINREC_LOAD_USERS": "1-400"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-3_000:]
    header, *rows = (line.split(",") for line in (tmp_path / "load_stats.csv").read_text().splitlines())
    total = dict(zip(header, rows[-1], strict=True))
    assert total["Name"] == "Aggregated"
    assert int(total["Request Count"]) > 20
    assert int(total["Failure Count"]) == 0
