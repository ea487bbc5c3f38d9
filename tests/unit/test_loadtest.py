"""The load test: what it asks for, and that it reports what it was answered."""

import json
import random
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from loadtest.open_loop import Bursts, Call, arrivals
from loadtest.plan import LimitsPlan, TrafficPlan, read_plan
from loadtest.run import capacity_rps, closed_row, judged
from loadtest.traffic import FIRST_NEW_USER, Traffic
from pinrec_core.config import Config
from pinrec_core.errors import InvalidConfig, InvalidRelease, Unavailable
from pinrec_core.release import ReleaseFacts, ServingState, publish, write_serving_state
from pinrec_core.schema import Vocabulary
from services.proto import candidates_pb2_grpc
from services.proto.candidates_pb2 import GetCandidatesResponse

LOADTEST = Path(__file__).resolve().parents[2] / "loadtest"
PLAN = TrafficPlan(
    users="3-4",
    new_users=0.0,
    surfaces={"home": 3.0, "search": 1.0},
    budgets=("save=1", "save=0.5,click=0.5"),
    num_candidates=(7, 9),
)


def drawn(traffic, count=400):
    return [traffic.draw(random.Random(seed)) for seed in range(count)]


def test_requests_are_drawn_from_the_profile(tmp_path):
    requests = drawn(Traffic.of(PLAN, tmp_path))
    assert {r.user_id for r in requests} == {3, 4}
    assert {tuple(sorted(r.budget.items())) for r in requests} == {(("save", 1.0),), (("click", 0.5), ("save", 0.5))}
    assert {r.num_candidates for r in requests} == {7, 9}
    home = sum(r.surface == "home" for r in requests)
    assert 260 < home < 340, "three of four"


def test_a_share_of_users_is_new_and_some_requests_exclude(tmp_path):
    requests = drawn(Traffic.of(replace(PLAN, new_users=0.5, excluded=2), tmp_path))
    new = [r for r in requests if r.user_id >= FIRST_NEW_USER]
    assert 150 < len(new) < 250
    assert len({r.user_id for r in new}) == len(new)
    assert {len(r.exclude_item_ids) for r in requests} == {0, 2}


@pytest.fixture
def releases(tmp_path):
    """An active release of which only the vocabulary matters."""

    def write(folder):
        vocabulary = Vocabulary(("save", "click"), ("save", "click"), ("home", "search"), ("search",))
        (folder / "vocabulary.json").write_text(json.dumps(vocabulary.to_dict()))
        (folder / "config.json").write_text(json.dumps(Config().to_dict()))

    publish(tmp_path, ReleaseFacts("e", "e", 0, "hand"), write)
    write_serving_state(tmp_path, ServingState(1, (1,)))
    return tmp_path


def test_what_is_not_said_comes_from_the_active_release(releases):
    found = Traffic.of(TrafficPlan(search_queries=("boots",)), releases)
    assert found.surfaces == {"home": 1.0, "search": 1.0}
    assert found.budgets == [{"save": 1.0}, {"click": 1.0}, {"save": 1.0, "click": 1.0}]
    assert found.user_ids == range(1, 1001)
    assert {(r.surface, r.search_query) for r in drawn(found)} == {("home", ""), ("search", "boots")}


def test_users_come_from_a_file(tmp_path):
    (tmp_path / "users.txt").write_text("5\n-9\n")
    assert Traffic.of(replace(PLAN, users=str(tmp_path / "users.txt")), tmp_path).user_ids == [5, -9]


@pytest.mark.parametrize(("text", "what"), [("", "which holds none"), ("5\nx", "where invalid literal")])
def test_a_file_of_users_holds_ids(tmp_path, text, what):
    (tmp_path / "users.txt").write_text(text)
    with pytest.raises(InvalidConfig, match=rf"traffic\.users has value .*users.txt', {what}.*one id a line"):
        Traffic.of(replace(PLAN, users=str(tmp_path / "users.txt")), tmp_path)


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(InvalidConfig, match=r"traffic\.users has value '9-3'"):
        Traffic.of(replace(PLAN, users="9-3"), tmp_path)
    with pytest.raises(InvalidRelease, match=r"serving\.json is missing"):
        Traffic.of(TrafficPlan(), tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[traffic]\nuser = '1-2'", "unknown key 'traffic.user'"),
        ("[arrivals]\nrate = 'fast'", "arrivals.rate has value 'fast'; allowed: float"),
        ("[arrivals]\nburst_times = -1", "arrivals.burst_times has value -1.0; allowed: 0 or more"),
        ("[arrivals]\nseconds = 0", "arrivals.seconds has value 0.0; allowed: more than 0"),
        ("[arrivals]\nrate = nan", "arrivals.rate has value nan; allowed: 0 or more"),
        ("[arrivals]\nrate = inf", "arrivals.rate has value inf; allowed: 0 or more"),
        ("[arrivals]\nshare_of_capacity = 0", "arrivals.share_of_capacity has value 0.0; allowed: more than 0"),
        ("[closed]\nusers = 0", "closed.users has value 0; allowed: more than 0"),
        ("[limits]\nfailed = 2", "limits.failed has value 2.0; allowed: 0 to 1"),
        ("[traffic]\nnum_candidates = []", "traffic.num_candidates has value []; allowed: one number or more"),
        ("[traffic]\nnum_candidates = [5, 0]", "traffic.num_candidates has value [5, 0]; allowed: one number or more"),
        ("[traffic.surfaces]\nhome = -1", "traffic.surfaces.home has value -1.0; allowed: 0 or more"),
        ("[traffic.surfaces]\nhome = 0", "traffic.surfaces has value {'home': 0.0}; allowed: a weight above 0 for one"),
        ("[arrivals]\nburst_s = 10", "arrivals.burst_s has value 10.0; allowed: less than burst_every_s"),
        ("[traffic]\nnew_users = 2", "traffic.new_users has value 2.0; allowed: 0 to 1"),
        ("[traffic]\nnum_candidates = ['many']", "num_candidates has value ['many']; allowed: a list of integers"),
        ("[traffic.surfaces]\nhome = 'much'", "traffic.surfaces.home has value 'much'; allowed: float"),
        ("traffic = 1", "traffic has value 1; allowed: a table [traffic]"),
        ("[", "is not TOML"),
    ],
)
def test_a_wrong_profile_is_refused(tmp_path, text, message):
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(InvalidConfig, match=re.escape(message)):
        read_plan(tmp_path / "p.toml")


@pytest.mark.parametrize("path", sorted((LOADTEST / "profiles").glob("*.toml")), ids=lambda path: path.stem)
def test_the_profiles_are_read(path):
    assert read_plan(path).arrivals.seconds > 0


def test_arrivals_are_as_many_as_the_rate_says_and_more_in_bursts():
    """10 a second for 1,000 s, three times as many in the last 2 of every 10 s: 8 x 10 and 2 x 30 in each ten."""
    times = arrivals(10.0, 1_000.0, bursts=Bursts(times=3.0, every_s=10.0, seconds=2.0))
    in_burst = times % 10 >= 8
    assert (np.diff(times) > 0).all()
    assert times[-1] < 1_000
    assert abs((~in_burst).sum() - 8_000) < 4 * 8_000**0.5
    assert abs(in_burst.sum() - 6_000) < 4 * 6_000**0.5
    assert abs(len(arrivals(10.0, 1_000.0)) - 10_000) < 4 * 100


def call(code=grpc.StatusCode.OK, latency_s=0.1, answer=""):
    return Call(0.0, latency_s, 0.001, code, answer if code is grpc.StatusCode.OK else None)


def test_limits_are_held_one_by_one():
    """Of 100 calls 2 failed, 3 refused and 5 degraded; the 95 answered ones took 0.1 s, two of them 0.9 s."""
    calls = [call(grpc.StatusCode.INTERNAL)] * 2 + [call(grpc.StatusCode.RESOURCE_EXHAUSTED)] * 3
    calls += [call(answer="signals_unavailable")] * 5 + [call()] * 88 + [call(latency_s=0.9)] * 2
    fine = LimitsPlan(p50_ms=100.1, p99_ms=901, failed=0.02, refused=0.03, degraded=0.05)
    assert [row.met for row in judged(calls, 10, fine)] == [True] * 5
    tight = LimitsPlan(p50_ms=99, p99_ms=500, failed=0.01, refused=0.02, degraded=0.04)
    assert [row.met for row in judged(calls, 10, tight)] == [False] * 5


class Gateway(candidates_pb2_grpc.CandidateServiceServicer):
    """The far end of the load."""

    def __init__(self, code):
        self.code, self.calls = code, 0

    def GetCandidates(self, request, context):  # noqa: N802
        self.calls += 1
        if self.code is not grpc.StatusCode.OK and self.calls % 2:
            context.abort(self.code, "as told")
        return GetCandidatesResponse(request_id="r")


@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL])
def test_locust_counts_calls_and_fails_with_them(code, tmp_path):
    """Every second call is refused, which is told, or fails, which fails the run."""
    servicer, server = Gateway(code), grpc.server(ThreadPoolExecutor(2))
    candidates_pb2_grpc.add_CandidateServiceServicer_to_server(servicer, server)
    address = f"localhost:{server.add_insecure_port('localhost:0')}"
    server.start()
    profile = tmp_path / "p.toml"
    profile.write_text('[traffic]\nsurfaces = {home = 1}\nbudgets = ["save=1"]\n[closed]\nusers = 2\nseconds = 3\n')
    row = closed_row(address, read_plan(profile), profile, tmp_path)
    server.stop(0).wait()
    refused = code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert servicer.calls >= 2
    assert "locust, 2 users" in row.what
    assert row.met is refused
    assert row.measured.startswith("0; ") is refused
    assert row.measured.endswith(", 0 refused") is not refused


async def test_a_gateway_that_answers_nobody_has_no_capacity(monkeypatch):
    """Its words say why: a token of another scope, a budget that the release does not know, nobody at the address."""
    monkeypatch.setattr("loadtest.run.CAPACITY_S", 0.05)
    metadata = grpc.aio.Metadata()

    async def refused(number):
        raise grpc.aio.AioRpcError(grpc.StatusCode.PERMISSION_DENIED, metadata, metadata, "it needs scope read")

    with pytest.raises(Unavailable, match=r"none of \d+ calls was answered; PERMISSION_DENIED: it needs scope read"):
        await capacity_rps(refused)
