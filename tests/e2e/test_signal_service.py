"""The real signal service as its own process: what it acknowledges and answers, how it dies and comes back."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent import futures

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pinrec_core.codec import quantize
from pinrec_core.config import config_from_dict
from pinrec_core.errors import InvalidRelease, ReleaseNotOpen
from pinrec_core.messages import FetchSignalsInput, Status
from pinrec_core.release import ItemTable, ReleaseFacts, ServingState, open_release, publish, write_serving_state
from pinrec_core.schema import ItemType, Vocabulary
from pinrec_core.signals.batch_view import BatchView, compile_batch_view
from pinrec_core.signals.events import Event
from pinrec_core.signals.fetch import SignalFetcher
from pinrec_core.signals.realtime import MemoryHistoryStore
from pinrec_core.text_encoder import TextEncoder, query_item_id
from services.proto import signals_pb2
from services.proto.signals_pb2_grpc import SignalServiceStub
from services.signals.client import RemoteSignals

pytestmark = pytest.mark.e2e

T0 = 1_700_000_000_000
DIM, NUM_ITEMS = 8, 50
START_TIMEOUT_S = 60
LISTENING = re.compile(r"listening on port (\d+), metrics on (\d+)")
VOCABULARY = Vocabulary(("save", "click"), ("save", "click", "search"), ("home", "search"), ("search",))


def write_release(folder):
    rng = np.random.default_rng(0)
    content, scale = quantize(rng.standard_normal((NUM_ITEMS, DIM)))
    ItemTable(np.arange(NUM_ITEMS), np.zeros(NUM_ITEMS, np.uint8), content, scale).save(folder / "items")
    TextEncoder.fit(["red bicycle", "blue sky", "green kitchen"], dim=DIM).save(folder / "text_encoder")
    config = config_from_dict({"model": {"max_history": 12}})
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    (folder / "vocabulary.json").write_text(json.dumps(VOCABULARY.to_dict()))


def publish_one(root):
    return publish(root, ReleaseFacts("e", "e", watermark_ms=T0, dataset="hand"), write_release)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder with releases/ (release 1 active) and the batch view of a log of 40 users."""
    root = tmp_path_factory.mktemp("world")
    write_serving_state(root / "releases", ServingState(active=publish_one(root / "releases"), open=(1,)))
    rng = np.random.default_rng(1)
    size = 400
    log = {
        "user_id": rng.integers(-20, 20, size),
        "item_id": rng.integers(0, NUM_ITEMS + 5, size),
        "item_type": ["pin"] * size,
        "action": rng.choice(["save", "click", "poke"], size),
        "surface": rng.choice(["home", "search", "attic"], size),
        "timestamp_ms": T0 - rng.integers(0, 10**10, size),
    }
    (root / "log").mkdir()
    pq.write_table(pa.table(log), root / "log" / "events.parquet")
    compile_batch_view(root / "log", root / "view")
    return root


class Service:
    """One server process on a free port; its log is drained by a thread."""

    def __init__(self, world, data, metrics_port=0):
        command = [sys.executable, "-m", "services.signals.server", "--releases", str(world / "releases")]
        command += ["--data", str(data), "--batch-view", str(world / "view"), "--listen", "localhost:0"]
        command += ["--metrics-port", str(metrics_port)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.log = []
        port = self._port()
        self._reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr))
        self._reader.start()
        self.address = f"localhost:{port}"
        self.channel = grpc.insecure_channel(self.address)
        self.stub = SignalServiceStub(self.channel)
        self.wait_until_serving()

    def _port(self):
        for line in self.process.stderr:
            self.log.append(line)
            if found := LISTENING.search(line):
                return found[1]
        raise AssertionError("".join(self.log))

    def health(self):
        request = health_pb2.HealthCheckRequest(service="pinrec.v1.SignalService")
        return health_pb2_grpc.HealthStub(self.channel).Check(request, timeout=5).status

    def wait_until_serving(self):
        give_up = time.monotonic() + START_TIMEOUT_S
        while self.health() != health_pb2.HealthCheckResponse.SERVING:
            assert time.monotonic() < give_up, "".join(self.log)
            time.sleep(0.02)

    def append(self, *events):
        rows = [
            signals_pb2.Event(**{**event._asdict(), "item_type": ItemType(event.item_type).name.lower()})
            for event in events
        ]
        return self.stub.AppendEvents(signals_pb2.AppendEventsRequest(events=rows), timeout=10).acknowledged

    def history(self, user_id, **fields):
        request = signals_pb2.HistoryRequest(user_id=user_id, request_time_ms=T0 + 10**6, **fields)
        message = signals_pb2.GetHistoriesRequest(release=1, requests=[request])
        return self.stub.GetHistories(message, timeout=10).histories[0]

    def items(self, user_id):
        return np.frombuffer(self.history(user_id).item_ids, "<i8").tolist()

    def end(self, how=signal.SIGTERM):
        self.channel.close()
        self.process.send_signal(how)
        code = self.process.wait(timeout=30)
        self._reader.join()
        self.process.stderr.close()
        return code


@pytest.fixture(scope="module")
def service(world, tmp_path_factory):
    running = Service(world, tmp_path_factory.mktemp("data") / "rocks")
    yield running
    assert running.end() == 0


@pytest.fixture(scope="module")
def remote(service):
    opened = RemoteSignals(service.address, DIM)
    yield opened
    opened.close()


def saved(user_id, item_id, timestamp_ms, **changes):
    return Event(user_id, item_id, ItemType.PIN, "save", "home", timestamp_ms)._replace(**changes)


def ask(user_id, search_query="", release=1, remaining_ms=20_000):
    return FetchSignalsInput(user_id, 2, search_query, T0 + 10**6, release, remaining_ms)


def test_an_acknowledged_event_is_in_the_next_history(service):
    for step in range(20):
        assert service.append(saved(1_000, step, T0 + step)) == 1
        assert service.items(1_000) == list(range(step + 1))[-12:]


def test_repeats_are_acknowledged_and_counted_once(service):
    events = [saved(1_001, 1, T0 + 1), saved(1_001, 2, T0 + 2, event_id=7)]
    assert [service.append(*events), service.append(*events), service.append(events[1])] == [2, 2, 1]
    assert service.items(1_001) == [1, 2]


def test_a_search_query_of_the_request_is_last_and_not_stored(service):
    service.append(saved(1_002, 1, T0 + 1))
    asked = service.history(1_002, search_query="Red bicycle", surface=2)
    assert np.frombuffer(asked.item_ids, "<i8").tolist() == [1, query_item_id("red bicycle")]
    assert asked.history_length == 1
    assert service.items(1_002) == [1]


def test_wrong_events_are_refused_whole(service):
    with pytest.raises(grpc.RpcError) as refusal:
        service.append(saved(1_003, 1, T0), saved(1_003, 1, T0 // 1_000))
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.value.details().startswith("events[1].timestamp_ms has value 1700000000; allowed: Unix milliseconds")
    assert dict(refusal.value.trailing_metadata())["pinrec-code"] == "INVALID_ARGUMENT"
    assert service.items(1_003) == []


def test_a_release_that_nobody_listed_is_not_open(service, remote):
    with pytest.raises(grpc.RpcError) as refusal:
        service.stub.GetHistories(signals_pb2.GetHistoriesRequest(release=9), timeout=10)
    assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
    assert refusal.value.details() == "release 9 is not open; open: [1]"
    fine, error = remote.run([ask(3), ask(3, release=9)])
    assert fine.status == Status.OK
    assert isinstance(error, ReleaseNotOpen)
    assert (error.release, str(error)) == (9, "release 9 is not open; open: [1]")


def test_status_tells_releases_and_watermark(service, world):
    status = service.stub.GetStatus(signals_pb2.GetStatusRequest(), timeout=10)
    assert list(status.open_releases) == [1]
    assert status.watermark_ms == BatchView.open(world / "view").watermark_ms


def test_the_remote_stage_agrees_with_the_local_one_tensor_for_tensor(service, remote, world):
    rng = np.random.default_rng(2)
    events = [
        saved(int(user), int(rng.integers(0, 60)), T0 - 1_000 + i, action=str(rng.choice(["save", "poke"])))
        for i, user in enumerate(rng.integers(-25, 25, 300))
    ]
    query = query_item_id("blue sky")
    events += [
        Event(u, query, ItemType.SEARCH_QUERY, "search", "search", T0 + u, text="Blue sky") for u in range(-5, 5)
    ]
    events.append(saved(26, -5, T0 + 1))  # one seen item, of an id below zero
    service.append(*events)
    store = MemoryHistoryStore()
    store.append(events)
    local = SignalFetcher(open_release(world / "releases", 1), BatchView.open(world / "view"), store)
    requests = [ask(user, text) for user in range(-27, 27) for text in ("", "green kitchen", "unheard of")]
    statuses = set()
    for theirs, mine in zip(remote.run(requests), local.run(requests), strict=True):
        statuses.add(mine.status)
        for name, value in mine.__dict__.items():
            other = theirs.__dict__[name]
            if name != "deadline_ns":
                assert np.array_equal(value, other), name
                assert getattr(value, "dtype", None) == getattr(other, "dtype", None), name
                assert np.shape(value) == np.shape(other), name
    assert statuses == {Status.OK, Status.COLD_START}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_restart_keeps_every_acknowledged_event(world, tmp_path, how):
    service = Service(world, tmp_path / "rocks")
    acknowledged = []

    def append_until_it_dies(user_id):
        for step in range(1_000_000):
            try:
                service.append(saved(user_id, step, T0 + step))
            except grpc.RpcError:
                return
            acknowledged.append((user_id, step))

    with futures.ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(append_until_it_dies, user_id) for user_id in (2_000, 2_001, 2_002)]
        while len(acknowledged) < 60 and not any(writer.done() for writer in writers):
            time.sleep(0.001)
        service.process.send_signal(how)
        service.process.wait(timeout=30)
    service.end(how)
    assert len(acknowledged) >= 60
    service = Service(world, tmp_path / "rocks")
    for user_id in (2_000, 2_001, 2_002):
        steps = [step for user, step in acknowledged if user == user_id]
        seen = np.frombuffer(service.history(user_id).seen_item_ids, "<i8").tolist()
        assert seen[: len(steps)] == steps  # at most the one in flight comes on top
        assert len(seen) - len(steps) in (0, 1)
    assert service.end() == 0


def test_the_remote_stage_degrades_while_the_service_is_away(world, tmp_path):
    service = Service(world, tmp_path / "rocks")
    remote = RemoteSignals(service.address, DIM)
    assert remote.run([ask(3)])[0].status == Status.OK
    service.end(signal.SIGKILL)
    (signals,) = remote.run([ask(3)])
    assert signals.status == Status.COLD_START | Status.SIGNALS_UNAVAILABLE
    assert signals.content.shape == (1, DIM)
    remote.close()


def test_a_release_listed_later_opens_and_a_broken_one_says_why(world, tmp_path):
    root = tmp_path / "world"
    (root / "releases").mkdir(parents=True)
    (root / "view").symlink_to(world / "view")
    service = Service(root, tmp_path / "rocks")  # nothing to open yet: events are taken all the same
    assert service.append(saved(1, 5, T0 + 1)) == 1
    with pytest.raises(grpc.RpcError, match="release 1 is not open"):
        service.history(1)
    publish_one(root / "releases")
    publish_one(root / "releases")
    (root / "releases" / "2" / "items" / "scale.npy").write_bytes(b"")
    write_serving_state(root / "releases", ServingState(active=1, open=(1, 2)))
    give_up = time.monotonic() + START_TIMEOUT_S
    while not service.stub.GetStatus(signals_pb2.GetStatusRequest(), timeout=10).open_releases:
        assert time.monotonic() < give_up
        time.sleep(0.02)
    assert service.items(1)[-1] == 5
    with pytest.raises(grpc.RpcError) as refusal:
        service.stub.GetHistories(signals_pb2.GetHistoriesRequest(release=2), timeout=10)
    assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert re.match(r"release 2: file items/scale.npy has 0 bytes", refusal.value.details())
    assert dict(refusal.value.trailing_metadata())["pinrec-code"] == InvalidRelease.code
    assert service.end() == 0


def test_metrics_count_what_was_appended_and_answered(world, tmp_path):
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    service = Service(world, tmp_path / "rocks", metrics_port=port)
    service.append(saved(1_000, 1, T0 + 1), saved(1_000, 2, T0 + 2))
    service.items(1_000)
    service.items(1_001)
    with urllib.request.urlopen(f"http://localhost:{port}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(values["pinrec_signals_events_appended_total"]) == 2
    assert float(values["pinrec_signals_histories_total"]) == 2
    assert float(values["pinrec_signals_cold_histories_total"]) == 1
    assert float(values["pinrec_signals_realtime_events_total"]) == 2
    assert float(values["pinrec_signals_watermark_ms"]) == BatchView.open(world / "view").watermark_ms
    assert float(values['pinrec_rpc_seconds_count{code="OK",method="GetHistories"}']) == 2
    assert service.end() == 0


def test_a_second_server_on_the_same_data_ends_with_one_line(world, tmp_path):
    data = tmp_path / "rocks"
    first = Service(world, data)
    command = [sys.executable, "-m", "services.signals.server", "--releases", str(world / "releases")]
    second = subprocess.run(
        [*command, "--data", str(data), "--listen", "localhost:0"], capture_output=True, text=True, timeout=60
    )
    assert second.returncode == 1
    assert second.stderr.splitlines()[-1] == "Error: realtime view cannot be opened: another process owns it"
    assert first.end() == 0
