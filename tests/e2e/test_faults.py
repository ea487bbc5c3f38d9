"""Processes that are killed and come back: nothing acknowledged is lost or doubled, nothing stays behind.

The processes are started one by one here; `pinrec up`, which lets one death end all, has its own tests.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import grpc
import numpy as np
import pytest

from benchmarks.chaos.parts import Part, commands_of
from pinrec_core.data.synthetic import FIRST_ITEM_ID
from pinrec_core.release import (
    ReleaseFacts,
    ServingState,
    open_release,
    publish,
    serving_state,
    write_serving_state,
)
from pinrec_core.release.golden import read_golden, write_golden
from services.cli.up import Stack, processes
from services.common.probe import answers, serves
from services.gateway.server import FULL
from services.proto import signals_pb2
from services.proto.candidates_pb2 import GetCandidatesRequest, GetCandidatesResponse
from services.proto.candidates_pb2_grpc import CandidateServiceStub
from services.proto.signals_pb2_grpc import SignalServiceStub

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

PATIENT_S = 60.0
NUM_WRITERS = 3
RECONNECT_QUICKLY = [("grpc.max_reconnect_backoff_ms", 500), ("grpc.initial_reconnect_backoff_ms", 100)]


def eventually(condition: Callable[[], bool]) -> bool:
    """Poll for two minutes: the test's own time limit, not a speed that is asserted."""
    return any(condition() or time.sleep(0.05) for _ in range(2_400))


@dataclass(frozen=True)
class Parts:
    """The processes, and a client of the services that one asks."""

    stack: Stack
    signals: Part
    triton: Part
    gateway: Part
    candidate_stub: CandidateServiceStub
    signal_stub: SignalServiceStub

    def ask(
        self, user_id: int, timeout: float = PATIENT_S, wait_for_ready: bool = True, **changes
    ) -> GetCandidatesResponse:
        """Waits for a gateway that was started again: until its pause is over, a channel fails calls by itself."""
        fields = {"surface": "home", "budget": {"save": 1.0, "click": 1.0}, "num_candidates": 10}
        request = GetCandidatesRequest(user_id=user_id, **{**fields, **changes})
        return self.candidate_stub.GetCandidates(request, timeout=timeout, wait_for_ready=wait_for_ready)

    def is_answered_for_in_time(self, user_id: int) -> bool:
        """Whether popular items came within a second; on a busy machine the gateway's reserve may not be enough."""
        try:
            assert_popular(self.ask(user_id, timeout=1.0))
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
            return False
        return True

    def failure(self, user_id: int = 1) -> grpc.RpcError:
        with pytest.raises(grpc.RpcError) as raised:
            self.ask(user_id, wait_for_ready=False)
        return raised.value

    def append(self, user_id: int, item: int, now_ms: int) -> None:
        """One event, whose id makes a repeated delivery the same event."""
        event = signals_pb2.Event(
            user_id=user_id,
            item_id=FIRST_ITEM_ID + item,
            item_type="pin",
            action="save",
            surface="home",
            timestamp_ms=now_ms + item,
            event_id=item + 1,
        )
        reply = self.signal_stub.AppendEvents(
            signals_pb2.AppendEventsRequest(events=[event]), timeout=10, wait_for_ready=True
        )
        assert reply.acknowledged == 1

    def stored(self, user_id: int) -> list[int]:
        """Items of every stored event of a user, oldest first."""
        message = signals_pb2.GetHistoriesRequest(release=1, requests=[signals_pb2.HistoryRequest(user_id=user_id)])
        history = self.signal_stub.GetHistories(message, timeout=10, wait_for_ready=True).histories[0]
        return (np.frombuffer(history.seen_item_ids, "<i8") - FIRST_ITEM_ID).tolist()

    def is_serving(self) -> bool:
        return serves(f"{self.stack.host}:{self.stack.gateway_port}")

    def answers_in_full(self) -> bool:
        return serves(f"{self.stack.host}:{self.stack.gateway_port}", FULL)


@pytest.fixture(scope="module")
def parts(trained, on_free_ports, tmp_path_factory) -> Iterator[Parts]:
    """Everything running, on releases of its own. At the end SIGTERM to each: exit code 0, and no process is left."""
    folder = tmp_path_factory.mktemp("faults")
    shutil.copytree(trained.releases, folder / "releases")
    write_serving_state(folder / "releases", ServingState(1, (1,)))
    stack = on_free_ports(folder / "releases", folder / "signals", trained.batch_view)
    signals, items, triton, gateway = started = [Part(each, folder / f"{each.name}.log") for each in processes(stack)]
    try:
        for part in started:
            part.start()
        with ExitStack() as channels:
            to_gateway, to_signals = (
                channels.enter_context(grpc.insecure_channel(f"{stack.host}:{port}", RECONNECT_QUICKLY))
                for port in (stack.gateway_port, stack.signals_port)
            )
            stubs = CandidateServiceStub(to_gateway), SignalServiceStub(to_signals)
            yield Parts(stack, signals, triton, gateway, *stubs)
        codes = {part.process.name: part.end(signal.SIGTERM) for part in (gateway, triton, items, signals)}
        assert codes == {"gateway": 0, "triton": 0, "items": 0, "signals": 0}
        assert not commands_of([session for part in started for session in part.sessions])
    finally:
        for pid in commands_of([session for part in started for session in part.sessions]):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def now_ms(trained) -> int:
    return trained.dataset.watermark_ms + 1_000


def test_a_killed_gateway_comes_back_and_nothing_is_lost(parts, now_ms):
    user = 5_000_001
    parts.append(user, 0, now_ms)
    before = parts.ask(user)
    assert parts.gateway.end(signal.SIGKILL) == -signal.SIGKILL
    assert parts.failure(user).code() is grpc.StatusCode.UNAVAILABLE
    parts.append(user, 1, now_ms)
    parts.gateway.start()
    after = parts.ask(user)
    assert (before.realtime_events, after.realtime_events) == (1, 2)
    assert len(after.candidates) == 10
    assert len(parts.gateway.living()) == 1


def outcome_of(call: Callable[[], GetCandidatesResponse]) -> grpc.StatusCode:
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("how", "exit_code", "failures"),
    [
        (signal.SIGKILL, -signal.SIGKILL, {grpc.StatusCode.UNAVAILABLE}),
        # gRPC's core answers CANCELLED to calls that arrive as the server closes, before it has accepted them.
        (signal.SIGTERM, 0, {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}),
    ],
)
def test_a_gateway_that_ends_under_load_fails_calls_and_hangs_none(parts, how, exit_code, failures):
    codes: Counter[grpc.StatusCode] = Counter()
    stop = threading.Event()

    def client(user: int) -> None:
        while not stop.is_set():
            codes[outcome_of(lambda: parts.ask(user))] += 1

    def answered(more: int) -> bool:
        target = codes[grpc.StatusCode.OK] + more
        return eventually(lambda: codes[grpc.StatusCode.OK] >= target)

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(client, user) for user in range(1, 9)]
        try:
            assert answered(50)
            assert parts.gateway.end(how) == exit_code
            parts.gateway.start()
            assert answered(50)
        finally:
            stop.set()
        for each in clients:
            each.result(timeout=PATIENT_S)
    assert set(codes) <= {grpc.StatusCode.OK, *failures}
    assert "Traceback" not in parts.gateway.log.read_text()


class Writers:
    """Threads that append events 0, 1, 2, ... of a user each, and send again what was not acknowledged."""

    def __init__(self, parts: Parts, first_user: int, now_ms: int) -> None:
        self._parts = parts
        self._now_ms = now_ms
        self._stop = threading.Event()
        self.acknowledged = {first_user + place: 0 for place in range(NUM_WRITERS)}
        self.failed = 0
        self._pool = ThreadPoolExecutor(NUM_WRITERS)
        self._running = [self._pool.submit(self._write, user) for user in self.acknowledged]

    def _write(self, user: int) -> None:
        while not self._stop.is_set():
            try:
                self._parts.append(user, self.acknowledged[user], self._now_ms)
                self.acknowledged[user] += 1
            except grpc.RpcError:
                self.failed += 1
                time.sleep(0.02)

    @property
    def total(self) -> int:
        return sum(self.acknowledged.values())

    def wait_for(self, more: int) -> None:
        """Until so many more events are acknowledged."""
        target = self.total + more
        assert eventually(lambda: self.total >= target)

    def __enter__(self) -> Writers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for each in self._running:
            each.result(timeout=PATIENT_S)
        self._pool.shutdown()


def test_a_killed_signal_service_degrades_answers_and_loses_no_event(parts, now_ms):
    with Writers(parts, 6_000_001, now_ms) as writers:
        users = list(writers.acknowledged)
        writers.wait_for(60)
        assert not parts.ask(users[0]).degraded
        for _ in range(2):
            assert parts.signals.end(signal.SIGKILL) == -signal.SIGKILL
            for user in (*users, 3):
                reply = parts.ask(user)
                assert (reply.degraded, reply.degraded_reason) == (True, "signals_unavailable")
                assert (reply.cold_start, reply.history_length, len(reply.candidates)) == (True, 0, 10)
            assert parts.is_serving()
            parts.signals.start()
            writers.wait_for(60)
    assert writers.failed
    for user, acknowledged in writers.acknowledged.items():
        stored = parts.stored(user)
        assert stored[:acknowledged] == list(range(acknowledged)), "every acknowledged event, once, in order"
        assert stored[acknowledged:] in ([], [acknowledged]), "at most the one whose acknowledgement was lost"
    assert eventually(lambda: not parts.ask(users[0]).degraded)
    reply = parts.ask(users[0])
    assert reply.realtime_events == min(writers.acknowledged[users[0]], 20)
    assert not parts.ask(3).cold_start
    assert len(parts.signals.living()) == 1


class Clients:
    """Threads that ask without a pause; every call must be answered, and each keeps the releases that did."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(4)
        self._running = [self._pool.submit(self._ask, user) for user in range(1, 5)]

    def _ask(self, user: int) -> list[int]:
        served = []
        while not self._stop.is_set():
            served.append(self._parts.ask(user).release)
        return served

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()

    def turns(self) -> list[list[int]]:
        """Which releases answered each client, runs of the same one joined."""
        return [[number for number, _ in groupby(each.result())] for each in self._running]


def release_verb(parts: Parts, *words: str) -> list[str]:
    """Command line of `pinrec release`, asking the gateway of `parts`."""
    stack = parts.stack
    where = ["--releases", str(stack.releases), "--gateway", f"{stack.host}:{stack.gateway_port}"]
    return [sys.executable, "-m", "services.cli.main", "release", *words, *where]


def release(parts: Parts, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(release_verb(parts, *words), capture_output=True, text=True, check=False)


def test_a_release_is_activated_and_rolled_back_while_clients_ask(parts):
    """No client meets an error, none a release that is not open, and each switch is one turn."""
    with Clients(parts) as clients:
        activated = release(parts, "activate", "2")
        assert (activated.returncode, activated.stderr) == (0, "")
        assert "1.000 of the expected items came back" in activated.stdout
        assert serving_state(parts.stack.releases) == ServingState(2, (2,), previous=1)
        assert release(parts, "rollback").returncode == 0
        assert serving_state(parts.stack.releases) == ServingState(1, (1,), previous=2)
    assert clients.turns() == [[1, 2, 1]] * 4


def published_otherwise(releases: Path) -> int:
    """Publish release 2 again, with golden requests that expect an item which no model gives."""

    def write(folder: Path) -> None:
        shutil.copytree(releases / "2", folder, dirs_exist_ok=True, ignore=lambda *_: ["manifest.json", "golden"])
        golden = read_golden(open_release(releases, 2))
        write_golden(folder, [replace(request, expected_item_ids=(-1,)) for request in golden])

    return publish(releases, ReleaseFacts("f", "f", 0, "forged"), write)


def test_a_release_that_answers_otherwise_is_refused_and_clients_notice_nothing(parts):
    before = serving_state(parts.stack.releases)
    number = published_otherwise(parts.stack.releases)
    with Clients(parts) as clients:
        refused = release(parts, "activate", str(number))
    assert (refused.returncode, clients.turns()) == (1, [[1]] * 4)
    assert "0.000 of the expected items came back; allowed: at least 0.9; release 1 stays active" in refused.stderr
    assert serving_state(parts.stack.releases) == before


def test_a_switch_whose_command_and_gateway_are_killed_is_completed_by_the_same_command(parts):
    releases = parts.stack.releases
    with subprocess.Popen(release_verb(parts, "activate", "2"), stdout=subprocess.DEVNULL) as command:
        assert eventually(lambda: serving_state(releases).open == (1, 2))
        command.kill()
    assert serving_state(releases).open == (1, 2)
    assert parts.ask(1).release == serving_state(releases).active
    parts.gateway.end(signal.SIGKILL)
    refused = release(parts, "activate", "2", "--wait", "0")
    assert (refused.returncode, "is unavailable" in refused.stderr) == (1, True)
    parts.gateway.start()
    assert release(parts, "activate", "2").returncode == 0
    assert (parts.ask(1).release, serving_state(releases).open) == (2, (2,))
    assert release(parts, "rollback").returncode == 0
    assert parts.ask(1).release == 1


def items_of(reply: GetCandidatesResponse) -> list[int]:
    return [candidate.item_id for candidate in reply.candidates]


def assert_popular(reply: GetCandidatesResponse) -> None:
    """An answer without the stages: ten items, marked, split as the budget says."""
    assert (reply.degraded, reply.degraded_reason) == (True, "stages_unavailable")
    assert Counter(candidate.outcome for candidate in reply.candidates) == {"save": 5, "click": 5}
    assert len(set(items_of(reply))) == 10
    assert all(candidate.filled for candidate in reply.candidates)


def test_a_dead_stage_is_answered_for_from_popular_lists_and_loaded_again(parts):
    before = parts.ask(3)
    stages = parts.triton.stages()
    assert set(stages) == {"fetch_signals", "embed_items", "generate", "retrieve"}
    os.kill(stages["retrieve"], signal.SIGKILL)
    degraded = parts.ask(3)
    assert_popular(degraded)
    assert not set(items_of(parts.ask(3, exclude_item_ids=items_of(degraded)))) & set(items_of(degraded))
    assert parts.is_serving(), "marked answers are answers"
    assert eventually(lambda: not parts.ask(3).degraded)
    assert items_of(parts.ask(3)) == items_of(before)
    repaired = parts.triton.stages()
    assert {name for name, pid in repaired.items() if pid != stages[name]} == {"retrieve"}
    assert eventually(lambda: answers(f"http://{parts.stack.host}:{parts.stack.triton_health_port}/readyz"))


def test_a_frozen_triton_is_answered_for_within_the_callers_deadline(parts):
    before = parts.ask(3)
    (server,) = (pid for pid, words in parts.triton.living().items() if "/bin/tritonserver " in words)
    os.kill(server, signal.SIGSTOP)
    try:
        assert eventually(lambda: all(parts.is_answered_for_in_time(3) for _ in range(3)))
    finally:
        os.kill(server, signal.SIGCONT)
    assert eventually(lambda: parts.answers_in_full())
    assert items_of(parts.ask(3)) == items_of(before)


def test_a_dead_triton_is_answered_for_until_it_is_back(parts):
    before = parts.ask(3)
    assert parts.triton.end(signal.SIGKILL) == -signal.SIGKILL
    assert_popular(parts.ask(3))
    assert eventually(lambda: not parts.triton.living()), "neither server nor stage outlives the keeper"
    assert eventually(lambda: not parts.answers_in_full())
    assert parts.is_serving()
    parts.triton.start()
    assert eventually(lambda: parts.answers_in_full())
    assert items_of(parts.ask(3)) == items_of(before)
