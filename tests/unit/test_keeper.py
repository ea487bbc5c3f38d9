"""Triton's keeper: what the watchdog does about each way to be lost, health over HTTP, and the process itself."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from pinrec_core.errors import Unavailable
from services.common.metrics import KeeperMetrics
from services.triton.client import TritonClient
from services.triton.health import HealthServer
from services.triton.watchdog import GIVE_UP_S, Watchdog, stage_processes
from tests.ports import free_port

STAGES = ["fetch_signals", "embed_items", "generate", "retrieve"]


class Server:
    """A tritonserver as its client sees it: `live`, with some stages `dead`, some `stuck`, and loads that may fail."""

    def __init__(self):
        self.live, self.loads_fail = True, False
        self.dead, self.stuck = set(), set()
        self.loaded, self.killed = [], []

    def is_live(self):
        return self.live

    def canary(self, release):
        if not self.live or self.dead or self.stuck:
            raise Unavailable("lost")

    def ping(self, stage):
        if not self.live or stage in self.dead | self.stuck:
            raise Unavailable(f"{stage} does not answer")

    def load_again(self, stage, models):
        if self.loads_fail:
            raise Unavailable(f"{stage} cannot be loaded again")
        self.loaded.append(stage)
        self.dead.discard(stage)
        self.stuck.discard(stage)


class Watched:
    def __init__(self, root, models=("pinrec",)):
        self.now_s, self.server, self.registry = 0.0, Server(), CollectorRegistry()
        release = root / "1"
        release.mkdir(parents=True)
        facts = {
            "item_embedder": "e",
            "index_item_embedder": "e",
            "watermark_ms": 0,
            "dataset": "",
            "items_sequence": 0,
        }
        vocabulary = {"positive_actions": ["save"], "actions": ["save"], "surfaces": ["home"], "search_surfaces": []}
        for name, values in (
            ("manifest", {"format": 1, "release": 1, "files": {}, **facts}),
            ("config", {}),
            ("vocabulary", vocabulary),
        ):
            (release / f"{name}.json").write_text(json.dumps(values))
        (root / "serving.json").write_text('{"active": 1, "open": [1]}')
        self.child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        self.dog = Watchdog(self.server, root, models, KeeperMetrics(self.registry), self._pids, lambda: self.now_s)

    def _pids(self, stage):
        return [self.child.pid] if stage in self.server.stuck else []

    def step(self, seconds=1.0):
        self.now_s += seconds
        self.dog.step()

    def count(self, name, **labels):
        return self.registry.get_sample_value(f"pinrec_keeper_{name}", labels) or 0.0


@pytest.fixture
def watched(tmp_path):
    made = Watched(tmp_path / "releases")
    yield made
    made.child.kill()
    made.child.wait()


def test_it_is_ready_once_a_canary_came_back(watched):
    assert watched.dog.problem == "starting"
    watched.server.live = False
    watched.step(300)  # loading: whoever started the container bounds that
    assert (watched.dog.problem, watched.dog.gave_up) == ("starting", False)
    watched.server.live = True
    watched.step()
    assert (watched.dog.problem, watched.count("ready")) == ("", 1)
    assert watched.count("canaries_total", result="answered") == 1


@pytest.mark.parametrize("stage", STAGES)
def test_a_dead_stage_is_loaded_again_in_the_same_step(watched, stage):
    watched.step()
    watched.server.dead = {stage}
    watched.step()
    assert (watched.server.loaded, watched.dog.problem, watched.dog.gave_up) == ([stage], "", False)
    assert watched.count("repairs_total", stage=stage, result="repaired") == 1
    assert watched.count("canaries_total", result="lost") == 1


def test_a_stage_that_lives_is_given_a_second_chance_then_killed_and_loaded_again(watched):
    watched.step()
    watched.server.stuck = {"generate"}
    watched.step()
    assert (watched.server.loaded, watched.dog.problem) == ([], "")
    watched.step()
    assert (watched.server.loaded, watched.dog.problem) == (["generate"], "")
    assert watched.child.wait() == -signal.SIGKILL


def test_a_stage_that_cannot_be_loaded_ends_the_watch(watched):
    watched.step()
    watched.server.dead, watched.server.loads_fail = {"retrieve"}, True
    watched.dog.run(threading.Event())  # returns: there is nothing left to do
    assert watched.dog.gave_up
    assert watched.count("repairs_total", stage="retrieve", result="failed") == 1
    assert watched.count("ready") == 0


def test_lost_canaries_with_every_stage_alive_are_told_and_nothing_is_touched(watched, tmp_path):
    watched.step()
    (tmp_path / "releases" / "serving.json").write_text('{"active": 7, "open": [7]}')
    watched.step()
    assert watched.dog.problem == "", "one lost canary is a hiccup"
    watched.step()
    assert watched.dog.problem == "canaries are lost: release 7 does not exist; there are: 1"
    assert (watched.server.loaded, watched.dog.gave_up) == ([], False)


def test_a_server_that_no_longer_answers_is_given_up(watched):
    watched.step()
    watched.server.live = False
    watched.step(GIVE_UP_S)
    assert (watched.dog.problem, watched.dog.gave_up) == ("the server does not answer", False)
    watched.step()
    assert watched.dog.gave_up


def test_a_memory_host_watches_only_what_it_serves(tmp_path):
    watched = Watched(tmp_path / "releases", ("embed_items", "retrieve"))
    watched.server.dead = {"generate"}  # of another host
    watched.step()
    assert watched.dog.problem == ""
    watched.server.dead = {"retrieve"}
    watched.step()
    assert watched.server.loaded == ["retrieve"]
    watched.child.kill()
    watched.child.wait()


def test_processes_of_a_stage_are_found_by_their_model(tmp_path):
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()', sys.argv[1], 'x'])"
    command = [sys.executable, "-c", code, str(tmp_path / "generate" / "1" / "model.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as server:
        deadline = time.monotonic() + 60
        while not (found := stage_processes(server.pid, "generate")) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(found) == 1
        assert stage_processes(server.pid, "retrieve") == []
        server.communicate(b"\n")


def get(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_health_over_http_says_why():
    registry, problems = CollectorRegistry(), {"alive": "", "ready": "starting"}
    KeeperMetrics(registry).ready.set(1)
    health = HealthServer("127.0.0.1", 0, lambda: problems["alive"], lambda: problems["ready"], registry)
    assert get(health.port, "/livez") == (200, "ok\n")
    assert get(health.port, "/readyz") == (503, "starting\n")
    problems.update(alive="gave up", ready="")
    assert get(health.port, "/livez") == (503, "gave up\n")
    assert get(health.port, "/readyz?verbose") == (200, "ok\n")
    assert "pinrec_keeper_ready 1.0" in get(health.port, "/metrics")[1]
    assert get(health.port, "/etc/passwd") == (404, "not found\n")
    health.close()


FAKE_SERVER = """#!/bin/sh
[ "$1" = --help ] && exit 0
echo "started as $*"
trap 'echo asked to end; exit 0' TERM
while :; do sleep 0.1; done
"""


@pytest.fixture
def keep(tmp_path):
    """Starts the keeper of a program that never answers; its process, its health port and its log."""
    server = tmp_path / "bin" / "tritonserver"
    server.parent.mkdir()
    server.write_text(FAKE_SERVER)
    server.chmod(0o755)
    (tmp_path / "backends" / "python").mkdir(parents=True)
    port = free_port()
    line = [sys.executable, "-m", "services.triton", "serve", "--releases", str(tmp_path), "--health-port", str(port)]
    log = tmp_path / "keeper.log"
    environment = {**os.environ, "PINREC_TRITON": str(server), "PYTHONUNBUFFERED": "1"}
    with (
        log.open("w") as file,
        subprocess.Popen(
            [*line, "--grpc-port", "1", "--linger", "0.5"], env=environment, stdout=file, stderr=file
        ) as process,
    ):
        deadline = time.monotonic() + 60
        while "started as" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        yield process, port, log
        process.kill()


def test_sigterm_lingers_not_ready_then_asks_the_server_to_end(keep):
    process, port, log = keep
    assert get(port, "/readyz") == (503, "starting\n")
    assert get(port, "/livez") == (200, "ok\n")
    process.send_signal(signal.SIGTERM)
    while get(port, "/readyz")[1] == "starting\n":
        time.sleep(0.01)
    assert get(port, "/readyz") == (503, "draining\n")
    assert "asked to end" not in log.read_text()
    assert process.wait(timeout=60) == 0
    assert "asked to end" in log.read_text()


def test_a_server_that_ends_by_itself_ends_its_keeper(keep):
    process, _, log = keep
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    assert process.wait(timeout=60) == 1
    assert "the server ended by itself with -9" in log.read_text()


def test_the_keeper_finds_its_server_as_soon_as_that_listens(monkeypatch):
    """By default gRPC waits longer after each failed attempt; the server listens once every model is loaded."""
    opened = {}
    monkeypatch.setattr(
        "services.triton.client.triton.InferenceServerClient", lambda address, **options: opened.update(options)
    )
    TritonClient("localhost:8001", "key")
    assert dict(opened["channel_args"])["grpc.max_reconnect_backoff_ms"] <= 1_000


def test_repairs_are_counted_from_zero(tmp_path):
    """Else the first one would make a series of its own, in which nothing ever increased: no alert."""

    def counted(*models):
        registry = CollectorRegistry()
        Watchdog(Server(), tmp_path, models, KeeperMetrics(registry), lambda stage: [])
        labels = [{"stage": stage, "result": result} for stage in STAGES for result in ("repaired", "failed")]
        return [registry.get_sample_value("pinrec_keeper_repairs_total", one) for one in labels]

    assert counted("pinrec") == [0] * 8
    assert counted("retrieve") == [None] * 6 + [0] * 2
