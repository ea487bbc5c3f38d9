"""`pinrec up` with the real processes: it serves, stops cleanly, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from services.proto.candidates_pb2 import GetCandidatesRequest
from services.proto.candidates_pb2_grpc import CandidateServiceStub
from services.triton.tools import locate
from tests.ports import free_ports

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

PORTS = (
    *("gateway", "gateway-metrics", "signals", "signals-metrics", "items", "items-metrics"),
    *("triton-grpc", "triton-http", "triton-metrics", "triton-health"),
)


@dataclass
class Up:
    """A running `pinrec up` and what it has printed so far."""

    process: subprocess.Popen
    log: Path
    gateway: str

    def text(self) -> str:
        return self.log.read_text()

    def pids(self) -> list[int]:
        """Every process that it started, and their children."""
        found, waiting = [], [self.process.pid]
        while waiting:
            children = [pid for pid in running() if parent_of(pid) == waiting[0]]
            waiting = waiting[1:] + children
            found += children
        return found


def running() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def stat_of(pid: int) -> list[str]:
    """State and parent of a process; nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return []


def parent_of(pid: int) -> int:
    return int((stat_of(pid) or ["", "0"])[1])


def alive(pid: int) -> bool:
    return (stat_of(pid) or ["Z"])[0] != "Z"


def eventually(condition) -> bool:
    """Poll for two minutes: the test's own time limit, not a speed that is asserted."""
    return any(condition() or time.sleep(0.1) for _ in range(1200))


@contextmanager
def started(world, folder: Path) -> Iterator[Up]:
    """`pinrec up` once it says that the stack is up."""
    locate()
    ports = free_ports(len(PORTS))
    command = [sys.executable, "-m", "services.cli.main", "up", "--releases", str(world.releases)]
    command += ["--signals-data", str(folder / "signals"), "--batch-view", str(world.batch_view)]
    for name, port in zip(PORTS, ports, strict=True):
        command += [f"--{name}-port", str(port)]
    log = folder / "up.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    up = Up(process, log, f"127.0.0.1:{ports[0]}")
    try:
        assert eventually(lambda: "The stack is up" in up.text() or process.poll() is not None)
        assert process.poll() is None, up.text()[-5_000:]
        yield up
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()


def candidates(address: str) -> list[int]:
    request = GetCandidatesRequest(user_id=1, surface="home", budget={"save": 0.7, "click": 0.3}, num_candidates=10)
    with grpc.insecure_channel(address) as channel:
        reply = CandidateServiceStub(channel).GetCandidates(request, timeout=30)
    return [candidate.item_id for candidate in reply.candidates]


def test_up_serves_and_ctrl_c_stops_all(world, tmp_path):
    with started(world, tmp_path) as up:
        assert len(set(candidates(up.gateway))) == 10
        pids = up.pids()
        assert len(pids) >= 4 + 4, "signals, items, Triton and its four stages, gateway"
        os.killpg(up.process.pid, signal.SIGINT)  # what a terminal does
        assert up.process.wait() == 0
    text = up.text()
    assert text.splitlines()[-1] == "all stopped"
    assert re.findall(r"^(\w+) +\| stopping$", text, re.MULTILINE) == ["gateway", "triton", "items", "signals"]
    assert "Traceback" not in text
    assert not [pid for pid in pids if alive(pid)]


def test_a_process_that_dies_brings_the_others_down(world, tmp_path):
    with started(world, tmp_path) as up:
        pids = up.pids()
        gateway = [pid for pid in pids if b"services.gateway.server" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(gateway[0], signal.SIGKILL)
        assert up.process.wait() == 1
    end = up.text().splitlines()
    said = [place for place, line in enumerate(end) if line.startswith("Error: ")]
    assert end[said[0]] == "Error: gateway ended by itself with signal SIGKILL; its last lines:"
    assert any("admitting requests for release 1" in line for line in end[said[0] + 1 :])
    assert not [pid for pid in pids if alive(pid)]


def test_killing_up_itself_leaves_no_orphan(world, tmp_path):
    with started(world, tmp_path) as up:
        pids = up.pids()
        up.process.kill()
        up.process.wait()
        assert eventually(lambda: not [pid for pid in pids if alive(pid)])
