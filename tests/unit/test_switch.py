"""A switch of releases: each step as a valid serving.json, whatever fails or dies in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pinrec_core.config import Config
from pinrec_core.errors import InvalidRelease, ReleaseRefused, ReleasesLocked, Unavailable
from pinrec_core.release import (
    ReleaseFacts,
    ServingState,
    activation_lock,
    publish,
    serving_state,
    write_serving_state,
)
from pinrec_core.schema import Vocabulary
from services.cli.switch import Switch
from services.proto.releases_pb2 import GetReleaseStatusResponse, TryReleaseResponse

ROOT = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path) -> Path:
    """Three releases; 1 is served."""

    def write(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(Config().to_dict()))
        (folder / "vocabulary.json").write_text(json.dumps(Vocabulary(("save",), ("save",), ("home",)).to_dict()))

    for _ in range(3):
        publish(tmp_path, ReleaseFacts("f", "f", 0, "toy"), write)
    write_serving_state(tmp_path, ServingState(1, (1,)))
    return tmp_path


class FollowingGateway:
    """Follows serving.json some looks late, and keeps requests of the old release for some looks more."""

    address = "gateway:1"

    def __init__(self, root, flip_after=0, drain_after=0, problem=""):
        self._root = root
        self._flip_after = flip_after
        self._drain_after = drain_after
        self._problem = problem
        self._admitted = serving_state(root).active
        self.looks = 0
        self.seen = []

    def status(self):
        state = serving_state(self._root)
        self.seen.append((state.active, state.open))
        in_flight = {}
        if state.active != self._admitted:
            self.looks += 1
            in_flight = {self._admitted: 2}
            if self.looks > self._flip_after + self._drain_after:
                self._admitted, in_flight = state.active, {state.active: 3}
        admitted = state.active if self.looks > self._flip_after else self._admitted
        return GetReleaseStatusResponse(admitted=admitted, ready=True, in_flight=in_flight)

    def try_release(self, number, timeout_s):
        state = serving_state(self._root)
        self.seen.append((state.active, state.open))
        return TryReleaseResponse(problem=self._problem, num_requests=8, mean_overlap=1.0)


class DividedGateway(FollowingGateway):
    """One of its processes is always behind."""

    def status(self):
        return GetReleaseStatusResponse(admitted=0 if serving_state(self._root).active == 2 else 1, ready=True)


def go(root, number, *gateways, wait_s=60.0):
    said = []
    state = Switch(root, gateways, wait_s, said.append).to(number)
    return state, said


def test_every_step_is_a_valid_state_and_the_old_release_closes_last(root):
    gateway = FollowingGateway(root, flip_after=1, drain_after=1)
    state, said = go(root, 2, gateway)
    assert state == serving_state(root) == ServingState(2, (2,), previous=1)
    assert gateway.seen == [(1, (1,)), (1, (1, 2)), *[(2, (1, 2))] * 3]
    assert [line.partition(":")[0] for line in said] == [
        "release 2 is whole", "gateway", "release 2 is active", "closed",
    ]  # fmt: skip


def test_all_gateways_are_waited_for(root):
    quick, slow = FollowingGateway(root), FollowingGateway(root, flip_after=2)
    go(root, 2, quick, slow)
    assert slow.looks == 3


def test_a_failed_try_leaves_the_old_release_and_says_why(root):
    good, bad = FollowingGateway(root), FollowingGateway(root, problem="0.310 of the expected items came back")
    with pytest.raises(ReleaseRefused) as refused:
        go(root, 2, good, bad)
    assert refused.value.message == (
        "release 2: refused by gateway:1: 0.310 of the expected items came back; release 1 stays active"
    )
    assert serving_state(root) == ServingState(1, (1,))


def test_a_gateway_that_dies_in_a_try_leaves_the_old_release(root):
    gateway = FollowingGateway(root)
    gateway.try_release = lambda number, timeout_s: (_ for _ in ()).throw(Unavailable("no answer from gateway:1"))
    with pytest.raises(ReleaseRefused, match="no answer from gateway:1; release 1 stays active"):
        go(root, 2, gateway)
    assert serving_state(root) == ServingState(1, (1,))


def test_an_interrupted_try_is_taken_back(root):
    gateway = FollowingGateway(root)
    gateway.try_release = lambda number, timeout_s: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        go(root, 2, gateway)
    assert serving_state(root) == ServingState(1, (1,))


def test_a_damaged_release_is_refused_before_any_gateway_is_asked(root):
    (root / "2" / "vocabulary.json").write_text("{}")
    gateway = FollowingGateway(root)
    with pytest.raises(InvalidRelease, match="vocabulary"):
        go(root, 2, gateway)
    assert (gateway.seen, serving_state(root)) == ([], ServingState(1, (1,)))


def test_a_gateway_that_does_not_follow_keeps_both_open_until_the_same_command_again(root):
    stuck = FollowingGateway(root, flip_after=10**9)
    with pytest.raises(Unavailable, match=r"still admits requests for release 1.*`pinrec release activate 2` again"):
        go(root, 2, stuck, wait_s=0.0)
    assert serving_state(root) == ServingState(2, (1, 2), previous=1)
    state, said = go(root, 2, FollowingGateway(root))
    assert state == ServingState(2, (2,), previous=1)
    assert said[1:] == ["closed: 1", "release 2 is active already"]


def test_another_release_waits_until_an_interrupted_switch_is_through(root):
    """Dropping 1 for 3 while a gateway still admits for 1 would fail its requests."""
    write_serving_state(root, ServingState(1, (1,)))
    gateway = FollowingGateway(root, flip_after=1)
    write_serving_state(root, ServingState(2, (1, 2), previous=1))
    state, _ = go(root, 3, gateway)
    assert state == ServingState(3, (3,), previous=2)
    assert gateway.seen[:4] == [(2, (1, 2)), (2, (1, 2)), (2, (2, 3)), (3, (2, 3))]


def test_two_switches_at_once_are_refused(root):
    with activation_lock(root), pytest.raises(ReleasesLocked):
        go(root, 2, FollowingGateway(root))


KILLED = """
import os, signal, sys
from pathlib import Path
from services.cli.switch import Switch
from tests.unit.test_switch import FollowingGateway

root, step = Path(sys.argv[1]), int(sys.argv[2])
gateway = FollowingGateway(root, flip_after=1)

def dies(call):
    def maybe(*arguments):
        if len(gateway.seen) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments)
    return maybe

gateway.status, gateway.try_release = dies(gateway.status), dies(gateway.try_release)
Switch(root, [gateway], 60.0, print).to(2)
"""


@pytest.mark.parametrize(
    ("step", "left"),
    [
        (0, ServingState(1, (1,))),
        (1, ServingState(1, (1, 2))),
        (2, ServingState(2, (1, 2), previous=1)),
        (3, ServingState(2, (1, 2), previous=1)),
    ],
    ids=["verified", "opened beside", "flipped", "draining"],
)
def test_killed_at_each_step_it_leaves_a_state_that_serves_and_that_a_rerun_completes(root, step, left):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(root), str(step)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert serving_state(root) == left
    state, _ = go(root, 2, FollowingGateway(root))
    assert state == serving_state(root) == ServingState(2, (2,), previous=1)


def test_the_old_release_stays_open_while_a_process_of_a_gateway_does_not_follow(root):
    with pytest.raises(Unavailable, match="gateway:1: not every process admits requests for release 2 yet"):
        go(root, 2, DividedGateway(root), wait_s=0.0)
    assert serving_state(root) == ServingState(2, (1, 2), 1)
