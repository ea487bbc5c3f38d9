"""Two gateway processes behind one port, in front of the stack that runs: calls, a switch, a death, the end."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from pinrec_core.release import ServingState, serving_state, write_serving_state
from services.cli.switch import RemoteGateway, Switch
from services.common.probe import serves
from services.gateway.server import FULL
from services.proto.candidates_pb2 import GetCandidatesRequest, GetCandidatesResponse
from services.proto.candidates_pb2_grpc import CandidateServiceStub
from tests.conftest import FLAT, IVF_HNSW, descendants, eventually, is_alive, quiet_environment
from tests.ports import free_port, free_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

FIRST, SECOND = FLAT, IVF_HNSW
CONNECTIONS = 16
OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]
PATIENT_S = 60.0


@dataclass
class Gateway:
    """The processes and a number of connections to them."""

    releases: Path
    process: subprocess.Popen
    log: Path
    address: str
    metrics_ports: tuple[int, int]
    stubs: list[CandidateServiceStub] = field(default_factory=list)

    def ask(self, number: int) -> GetCandidatesResponse:
        """Call i, over the connection that is its turn."""
        return asked(self.stubs[number % len(self.stubs)], number)

    def ask_anew(self) -> GetCandidatesResponse:
        """A call over a new connection."""
        with grpc.insecure_channel(self.address, OPTIONS) as channel:
            return asked(CandidateServiceStub(channel))

    def metrics(self, name: str) -> list[float | None]:
        """A series of each process, None where it does not answer or has none."""
        return [self._metric(port, name) for port in self.metrics_ports]

    def _metric(self, port: int, name: str) -> float | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
                found = re.search(rf"^{re.escape(name)} (\S+)$", page.read().decode(), re.MULTILINE)
        except OSError:
            return None
        return float(found[1]) if found else None


def asked(stub: CandidateServiceStub, number: int = 0) -> GetCandidatesResponse:
    request = GetCandidatesRequest(
        user_id=1 + number % 100, surface="home", budget={"save": 1.0, "click": 1.0}, num_candidates=10
    )
    return stub.GetCandidates(request, timeout=PATIENT_S)


def is_full(answer: GetCandidatesResponse) -> bool:
    return len(answer.candidates) == 10 and not answer.degraded


@pytest.fixture(scope="module")
def gateway(live, tmp_path_factory) -> Iterator[Gateway]:
    """Of releases of its own, both of which the stack holds open; at the end SIGTERM: exit code 0, nobody is left."""
    folder = tmp_path_factory.mktemp("processes")
    shutil.copytree(live.trained.releases, folder / "releases")
    write_serving_state(folder / "releases", ServingState(FIRST, (FIRST, SECOND)))
    port = free_port()
    metrics = free_run(2)
    command = [
        *(sys.executable, "-m", "services.gateway.server", "--processes", "2"),
        *("--releases", str(folder / "releases"), "--triton", live.triton),
        *("--listen", f"127.0.0.1:{port}", "--metrics-port", str(metrics)),
    ]
    log = folder / "gateway.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, env=quiet_environment(), stdout=file, stderr=file)
    started = Gateway(folder / "releases", process, log, f"127.0.0.1:{port}", (metrics, metrics + 1))
    try:
        assert eventually(lambda: serves(started.address, FULL) or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        with ExitStack() as held:
            for _ in range(CONNECTIONS):
                channel = held.enter_context(grpc.insecure_channel(started.address, OPTIONS))
                started.stubs.append(CandidateServiceStub(channel))
            yield started
        children = descendants(process.pid)
        assert len(children) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0, log.read_text()
        assert not [pid for pid in children if is_alive(pid)]
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()


OK = 'pinrec_gateway_request_seconds_count{code="OK"}'


def test_both_answer_and_neither_knows_of_a_failure(gateway):
    """The kernel deals out connections: sixteen all to one of two, once in 32,768 runs."""
    assert eventually(lambda: None not in gateway.metrics("pinrec_gateway_ready"))
    replies = [gateway.ask(number) for number in range(8 * CONNECTIONS)]
    assert all(map(is_full, replies))
    counts = gateway.metrics(OK)
    assert all(counts), counts
    assert sum(counts) == len(replies)


def test_a_switch_flips_both_and_no_request_fails_or_is_mixed(gateway):
    stop, seen = threading.Event(), Counter()

    def caller(first: int) -> None:
        number = first
        while not stop.is_set():
            answer = gateway.ask(number)
            seen[answer.release, answer.degraded] += 1
            number += 4

    said = []
    switch = Switch(gateway.releases, [RemoteGateway(gateway.address)], PATIENT_S, said.append)
    with ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(caller, first) for first in range(4)]
        try:
            assert eventually(lambda: seen[FIRST, False] > 20 or any(one.done() for one in callers))
            for number in (SECOND, FIRST):
                state = switch.to(number)
                assert state == serving_state(gateway.releases)
                assert (state.active, state.open) == (number, (number,))
                assert gateway.metrics("pinrec_gateway_active_release") == [number, number]
                assert {gateway.ask(one).release for one in range(2 * CONNECTIONS)} == {number}
        finally:
            stop.set()
        for one in callers:
            one.result()
    assert set(seen) == {(FIRST, False), (SECOND, False)}
    assert gateway.metrics("pinrec_gateway_mixed_release_total") == [0, 0]
    assert gateway.metrics("pinrec_gateway_release_switches_total") == [2, 2]
    assert sum("golden requests passed" in line for line in said) == 2


def answers(gateway: Gateway, number: int) -> bool:
    """Whether a connection works; one to a process that died fails a call once."""
    try:
        return is_full(gateway.ask(number))
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return False
        raise


def test_one_that_is_killed_leaves_the_other_serving_and_comes_back(gateway):
    before = descendants(gateway.process.pid)
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    # Its first thread may be gone while others still hold the port.
    assert eventually(lambda: "process 0 ended by itself with -9" in gateway.log.read_text())
    for number in range(2 * CONNECTIONS):  # all find the one that is left, or the new one once it can answer
        assert is_full(gateway.ask_anew())
        assert eventually(lambda number=number: answers(gateway, number)), "a broken connection is made anew"
    assert eventually(lambda: gateway.metrics("pinrec_gateway_ready") == [1, 1])
    after = descendants(gateway.process.pid)
    assert len(after) == 2
    assert before[1] in after
    status = RemoteGateway(gateway.address).status()
    assert (status.admitted, dict(status.in_flight)) == (serving_state(gateway.releases).active, {})


def test_both_take_connections_again_once_they_are_back(gateway):
    counts = gateway.metrics(OK)

    def grown() -> bool:
        assert is_full(gateway.ask_anew())
        return all((now or 0) > (then or 0) for now, then in zip(gateway.metrics(OK), counts, strict=True))

    assert eventually(grown)
