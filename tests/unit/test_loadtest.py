"""The load test: what it asks for, and that it reports what it was answered."""

import json
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from pinrec_core.config import Config
from pinrec_core.errors import InvalidConfig, InvalidRelease
from pinrec_core.release import ReleaseFacts, ServingState, publish, write_serving_state
from pinrec_core.schema import Vocabulary
from services.proto import candidates_pb2_grpc
from services.proto.candidates_pb2 import GetCandidatesResponse

LOADTEST = Path(__file__).resolve().parents[2] / "loadtest"
ENV = {
    "PINREC_LOAD_USERS": "3-4",
    "PINREC_LOAD_SURFACES": "home",
    "PINREC_LOAD_BUDGETS": "save=1;save=0.5,click=0.5",
    "PINREC_LOAD_CANDIDATES": "7",
}


@pytest.fixture
def traffic(monkeypatch):
    """`Traffic.from_env`, imported as locust does: from the folder of the locustfile."""
    monkeypatch.syspath_prepend(LOADTEST)
    import traffic

    return traffic.Traffic.from_env


def test_requests_are_drawn_from_the_environment(traffic):
    drawn = [traffic(ENV).draw(random.Random(seed)) for seed in range(50)]
    assert {r.user_id for r in drawn} == {3, 4}
    assert {r.surface for r in drawn} == {"home"}
    assert {tuple(sorted(r.budget.items())) for r in drawn} == {(("save", 1.0),), (("click", 0.5), ("save", 0.5))}
    assert {r.num_candidates for r in drawn} == {7}


def test_what_is_not_said_comes_from_the_active_release(traffic, tmp_path):
    def write(folder):
        vocabulary = Vocabulary(("save", "click"), ("save", "click"), ("home", "related"))
        (folder / "vocabulary.json").write_text(json.dumps(vocabulary.to_dict()))
        (folder / "config.json").write_text(json.dumps(Config().to_dict()))

    publish(tmp_path, ReleaseFacts("e", "e", 0, "hand"), write)
    write_serving_state(tmp_path, ServingState(1, (1,)))
    found = traffic({"PINREC_RELEASES": str(tmp_path)})
    assert found.surfaces == ["home", "related"]
    assert found.budgets == [{"save": 1.0}, {"click": 1.0}, {"save": 1.0, "click": 1.0}]
    assert found.user_ids == range(1, 1001)


def test_users_come_from_a_file(traffic, tmp_path):
    (tmp_path / "users.txt").write_text("5\n-9\n")
    assert traffic({**ENV, "PINREC_LOAD_USERS": str(tmp_path / "users.txt")}).user_ids == [5, -9]


def test_what_is_wrong_is_named(traffic, tmp_path):
    with pytest.raises(InvalidConfig, match="PINREC_LOAD_USERS has value '9-3'"):
        traffic({**ENV, "PINREC_LOAD_USERS": "9-3"})
    with pytest.raises(InvalidRelease, match=r"serving\.json is missing"):
        traffic({"PINREC_RELEASES": str(tmp_path)})


class Gateway(candidates_pb2_grpc.CandidateServiceServicer):
    """The far end of the load."""

    def __init__(self, healthy):
        self.healthy, self.calls = healthy, 0

    def GetCandidates(self, request, context):  # noqa: N802
        self.calls += 1
        if not self.healthy:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        return GetCandidatesResponse(request_id="r")


@pytest.mark.parametrize("healthy", [True, False])
def test_locust_counts_calls_and_fails_with_them(healthy):
    servicer, server = Gateway(healthy), grpc.server(ThreadPoolExecutor(2))
    candidates_pb2_grpc.add_CandidateServiceServicer_to_server(servicer, server)
    address = f"localhost:{server.add_insecure_port('localhost:0')}"
    server.start()
    command = [sys.executable, "-m", "locust", "-f", LOADTEST / "locustfile.py", "--headless", "--only-summary"]
    command += ["-u", "2", "-r", "2", "-t", "1s", "--host", address, "--json"]
    done = subprocess.run(command, env={**os.environ, **ENV}, capture_output=True, text=True)
    server.stop(0).wait()
    (stats,) = json.loads(done.stdout)
    assert (stats["name"], stats["method"]) == ("GetCandidates", "grpc")
    assert 0 < stats["num_requests"] <= servicer.calls
    assert stats["num_failures"] == (0 if healthy else stats["num_requests"])
    assert done.returncode == (0 if healthy else 1), done.stderr
    assert healthy or "RESOURCE_EXHAUSTED: full" in done.stderr
