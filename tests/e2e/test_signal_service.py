"""The real signal service as its own process: what it acknowledges and answers, how it dies and comes back."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent import futures
from typing import ClassVar

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pinrec_core.batch_job.job import build_batch_view
from pinrec_core.codec import quantize
from pinrec_core.config import config_from_dict
from pinrec_core.errors import InvalidRelease, ReleaseNotOpen
from pinrec_core.messages import FetchSignalsInput, Status
from pinrec_core.release import ItemTable, ReleaseFacts, ServingState, open_release, publish, write_serving_state
from pinrec_core.schema import ItemType, Vocabulary
from pinrec_core.signals.batch_view import open_batch_view
from pinrec_core.signals.events import Event
from pinrec_core.signals.fetch import FixedView, SignalFetcher
from pinrec_core.signals.realtime import MemoryHistoryStore, RocksHistoryStore
from pinrec_core.text_encoder import TextEncoder, query_item_id
from services.cli.events import shown_time
from services.cli.main import main
from services.proto import signals_pb2
from services.proto.signals_pb2_grpc import SignalServiceStub
from services.signals.client import RemoteSignals
from tests.ports import free_port

pytestmark = pytest.mark.e2e

T0 = 1_700_000_000_000
HOUR = 3_600_000
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
    build_batch_view(root / "log", root / "view")
    return root


class Service:
    """One server process on a free port; its log is drained by a thread."""

    started: ClassVar = []

    def __init__(self, world, data, *options, metrics_port=0):
        command = [sys.executable, "-m", "services.signals.server", "--releases", str(world / "releases")]
        command += ["--data", str(data), "--batch-view", str(world / "view"), "--listen", "localhost:0"]
        command += ["--metrics-port", str(metrics_port), *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.started.append(self.process)
        self.log = []
        port = self._port()
        self._reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True)
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

    @staticmethod
    def request(events):
        rows = [
            signals_pb2.Event(**{**event._asdict(), "item_type": ItemType(event.item_type).name.lower()})
            for event in events
        ]
        return signals_pb2.AppendEventsRequest(events=rows)

    def append(self, *events):
        return self.stub.AppendEvents(self.request(events), timeout=10).acknowledged

    def streamed(self, *requests):
        """How many events each request of one stream had acknowledged."""
        return [reply.acknowledged for reply in self.stub.AppendEventsStream(map(self.request, requests), timeout=30)]

    def status(self):
        return self.stub.GetStatus(signals_pb2.GetStatusRequest(), timeout=10)

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


@pytest.fixture(scope="module", autouse=True)
def none_is_left_over():
    """A failing test does not end its service."""
    yield
    for process in Service.started:
        process.kill()


def metrics_at(port):
    with urllib.request.urlopen(f"http://localhost:{port}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


@pytest.fixture(scope="module")
def service(world, tmp_path_factory):
    running = Service(world, tmp_path_factory.mktemp("data") / "rocks")
    yield running
    assert running.end() == 0


@pytest.fixture(scope="module")
def remote(service, world):
    opened = RemoteSignals(service.address, open_release(world / "releases", 1))
    yield opened
    opened.close()


def eventually(condition):
    """Poll for a minute: the test's own time limit, not a speed that is asserted."""
    return any(condition() or time.sleep(0.05) for _ in range(1_200))


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
    assert status.watermark_ms == open_batch_view(world / "view").watermark_ms


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
    local = SignalFetcher(open_release(world / "releases", 1), FixedView(open_batch_view(world / "view")), store)
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
    remote = RemoteSignals(service.address, open_release(world / "releases", 1))
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
    port = free_port()
    service = Service(world, tmp_path / "rocks", metrics_port=port)
    service.append(saved(1_000, 1, T0 + 1), saved(1_000, 2, T0 + 2))
    with pytest.raises(grpc.RpcError):
        service.append(saved(1_000, 1, 5))
    assert service.streamed([saved(1_002, 1, T0)], [saved(1_002, 2, T0)] * 2) == [1, 2]
    service.items(1_000)
    service.items(1_001)
    values = metrics_at(port)
    assert values['pinrec_signals_events_total{code="OK"}'] == 5
    assert values['pinrec_signals_events_total{code="INVALID_ARGUMENT"}'] == 1
    assert values["pinrec_signals_append_seconds_count"] == 3
    assert values['pinrec_signals_append_events_bucket{le="1.0"}'] == 1
    assert values["pinrec_signals_event_lag_seconds_count"] == 3
    assert values["pinrec_signals_event_lag_seconds_sum"] > 3 * (time.time() - T0 / 1_000 - 60)
    assert values["pinrec_signals_histories_total"] == 2
    assert values["pinrec_signals_cold_histories_total"] == 1
    assert values["pinrec_signals_degraded_histories_total"] == 0
    assert values["pinrec_signals_realtime_events_total"] == 2
    assert values["pinrec_signals_history_age_seconds_count"] == 1
    assert values["pinrec_signals_history_age_seconds_sum"] == (10**6 - 2) / 1_000
    assert values["pinrec_signals_watermark_ms"] == open_batch_view(world / "view").watermark_ms
    assert values["pinrec_signals_batch_view_version"] == 1
    assert values["pinrec_signals_store_problem"] == 0
    assert values['pinrec_rpc_seconds_count{code="OK",method="GetHistories"}'] == 2
    assert values['pinrec_rpc_streams_total{code="OK",method="AppendEventsStream"}'] == 1
    assert service.end() == 0


def test_a_stream_acknowledges_in_order_and_ends_with_its_first_wrong_request(service):
    many = [[saved(1_010, step, T0 + step)] for step in range(100)]
    assert service.streamed(*many) == [1] * 100
    assert service.items(1_010) == list(range(100))[-12:]
    call = service.stub.AppendEventsStream(
        map(service.request, [[saved(1_011, 1, T0)], [saved(1_011, 2, T0), saved(1_011, 3, 7)], [saved(1_011, 4, T0)]])
    )
    assert next(call).acknowledged == 1
    with pytest.raises(grpc.RpcError) as refusal:
        next(call)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.value.details().startswith("events[1].timestamp_ms has value 7; ")
    assert dict(refusal.value.trailing_metadata())["pinrec-code"] == "INVALID_ARGUMENT"
    assert set(service.items(1_011)) in ({1}, {1, 4})  # the one after it may have been begun


def test_without_its_store_a_service_answers_from_the_batch_view_and_takes_over_later(world, tmp_path):
    """The second of two services on one folder: as a store that is damaged or away."""
    first = Service(world, tmp_path / "rocks")
    first.append(saved(1, 5, T0 + 1))
    stored = first.history(1)
    port = free_port()
    second = Service(world, tmp_path / "rocks", metrics_port=port)
    with pytest.raises(grpc.RpcError) as refusal:
        second.append(saved(1, 6, T0 + 2))
    assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
    assert refusal.value.details() == "realtime view cannot be opened: another process owns it"
    degraded = second.history(1)
    assert degraded.status == Status.REALTIME_UNAVAILABLE
    assert (stored.realtime_events, degraded.realtime_events) == (1, 0)
    nobody = second.history(1_000)
    assert nobody.status == Status.REALTIME_UNAVAILABLE | Status.COLD_START
    assert second.status().realtime_problem == "realtime view cannot be opened: another process owns it"
    values = metrics_at(port)
    assert values["pinrec_signals_store_problem"] == 1
    assert values["pinrec_signals_degraded_histories_total"] == 2
    assert first.end() == 0
    assert eventually(lambda: not second.status().realtime_problem)
    assert second.items(1)[-1] == 5
    assert second.append(saved(1, 6, T0 + 2)) == 1
    assert second.history(1).status == Status.OK
    assert second.end() == 0
    assert sum("fails: realtime view cannot be opened" in line for line in second.log) == 1


def test_a_new_batch_view_is_taken_up_and_old_events_are_dropped(world, tmp_path):
    root = tmp_path / "world"
    (root / "log").mkdir(parents=True)
    (root / "releases").symlink_to(world / "releases")
    event = {"item_id": [3], "item_type": ["pin"], "action": ["save"], "surface": ["home"]}
    pq.write_table(pa.table({"user_id": [1], **event, "timestamp_ms": [T0]}), root / "log" / "events.parquet")
    build_batch_view(root / "log", root / "view")
    port = free_port()
    service = Service(root, tmp_path / "rocks", "--expire-every", "0.2", metrics_port=port)
    assert (service.status().batch_view_version, service.status().watermark_ms) == (1, T0)
    service.append(saved(1, 4, T0 + 1), saved(1, 5, T0 + 49 * HOUR), saved(2, 6, T0 + 2))
    assert service.items(1) == [3, 4, 5]
    later = {"user_id": [1, 1], "timestamp_ms": [T0, T0 + 49 * HOUR]}
    twice = {name: values * 2 for name, values in event.items()}
    pq.write_table(pa.table({**later, **twice, "item_id": [3, 5]}), root / "log" / "events.parquet")
    build_batch_view(root / "log", root / "view")
    assert eventually(lambda: service.status().batch_view_version == 2)
    assert service.items(1) == [3, 5]
    assert eventually(lambda: metrics_at(port)["pinrec_signals_expired_events_total"] == 2)  # of both users
    assert service.end() == 0
    store = RocksHistoryStore(tmp_path / "rocks")
    assert store.read([1, 2], 0, 10).item_ids.tolist() == [5]
    store.close()


def test_backups_are_made_beside_traffic_by_the_command_line(world, tmp_path):
    service = Service(world, tmp_path / "rocks", "--backups", str(tmp_path / "copies"))
    service.append(saved(1, 5, T0 + 1))

    def pinrec(*words):
        return CliRunner().invoke(main, ["signals", *map(str, words)])

    told = pinrec("status", "--signals", service.address).output.splitlines()
    watermark = shown_time(open_batch_view(world / "view").watermark_ms)
    assert told == [
        "releases open    1",
        f"batch view       version 1, events until {watermark}",
        "realtime view    works",
    ]
    assert pinrec("backup", "../away", "--signals", service.address).exit_code == 1
    made = pinrec("backup", "monday", "--signals", service.address)
    assert re.fullmatch(r"backup monday: [\d.]+ MB, with every event acknowledged before .* UTC\n", made.output)
    service.append(saved(1, 6, T0 + 2))
    busy = pinrec("restore", tmp_path / "copies" / "monday", tmp_path / "rocks")
    assert busy.exit_code == 1
    assert service.end() == 0
    assert pinrec("restore", tmp_path / "copies" / "monday", tmp_path / "again").exit_code == 0
    again = Service(world, tmp_path / "again")
    assert again.items(1)[-1] == 5
    refused = pinrec("backup", "tuesday", "--signals", again.address)
    assert "this signal service makes no backups: start it with --backups FOLDER" in refused.stderr
    assert again.end() == 0
