"""The Kafka consumer as its own process, between librdkafka's mock cluster and the real signal service."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter

import pytest

pytest.importorskip("confluent_kafka", reason="pip install 'pinrec[kafka]'")
from confluent_kafka import Consumer, Producer, TopicPartition

from pinrec_core.signals.realtime import RocksHistoryStore
from services.proto.signals_pb2 import Event
from tests.ports import free_port

pytestmark = pytest.mark.e2e

T0 = 1_700_000_000_000
GROUP, PARTITIONS = "pinrec", 4  # the mock cluster's own number
USERS = 10


def eventually(condition):
    """Poll for a minute: the test's own time limit, not a speed that is asserted."""
    return any(condition() or time.sleep(0.05) for _ in range(1_200))


class Cluster:
    """A mock cluster inside a producer; others reach it at `address`."""

    def __init__(self):
        self.producer = Producer({"bootstrap.servers": "none", "test.mock.num.brokers": 1})
        (broker,) = self.producer.list_topics(timeout=10).brokers.values()
        self.address = f"{broker.host}:{broker.port}"
        self.watcher = self.client(GROUP)  # asks only, and is no member

    def send(self, topic, values):
        for number, value in enumerate(values):
            self.producer.produce(topic, value, partition=number % PARTITIONS)
        assert self.producer.flush(30) == 0

    def client(self, group):
        return Consumer({"bootstrap.servers": self.address, "group.id": group, "auto.offset.reset": "earliest"})

    def uncommitted(self, topic):
        """Messages of a topic that the group has not committed."""
        places = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
        ends = [self.watcher.get_watermark_offsets(place, 10)[1] for place in places]
        done = [max(place.offset, 0) for place in self.watcher.committed(places, 10)]
        return sum(ends) - sum(done)

    def messages(self, topic, count):
        client = self.client("test")
        client.subscribe([topic])
        found = []
        assert eventually(lambda: found.extend(client.consume(count, 0.1)) or len(found) >= count)
        client.close()
        return found


@pytest.fixture(scope="module")
def cluster():
    made = Cluster()
    yield made
    made.watcher.close()


@pytest.fixture
def processes():
    """Starts modules as processes with their log in a file; none is left at the end."""
    started = []

    def start(log, module, *options):
        with log.open("a") as file:
            started.append(subprocess.Popen([sys.executable, "-m", module, *map(str, options)], stderr=file))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


class Signals:
    """The signal service on one port, started as often as the test likes."""

    def __init__(self, folder, start):
        self.folder, self.port = folder, free_port()
        self.address = f"localhost:{self.port}"
        self._start, self._log = start, folder / "signals.log"
        (folder / "releases").mkdir()

    def start(self):
        options = ["--releases", self.folder / "releases", "--data", self.folder / "rocks"]
        listening = self.log().count("listening on port")
        options += ["--listen", self.address, "--metrics-port", 0]
        self.process = self._start(self._log, "services.signals.server", *options)
        assert eventually(lambda: self.log().count("listening on port") > listening), self.log()

    def end(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        return self.process.wait(30)

    def log(self):
        return self._log.read_text() if self._log.exists() else ""

    def stored(self):
        """How often each item of a user is in the store; the service must not run."""
        store = RocksHistoryStore(self.folder / "rocks")
        found = store.read(list(range(USERS)), 0, 100_000)
        store.close()
        owners = [user for user in range(USERS) for _ in range(found.offsets[user + 1] - found.offsets[user])]
        return Counter(zip(owners, found.item_ids.tolist(), strict=True))


@pytest.fixture
def signals(tmp_path, processes):
    return Signals(tmp_path, processes)


@pytest.fixture
def consume(tmp_path, processes, cluster, signals):
    """Starts a consumer of a topic."""

    def start(topic, *options):
        where = ["--brokers", cluster.address, "--topic", topic, "--group", GROUP, "--signals", signals.address]
        where += ["--metrics-port", 0]
        quick = ["--set", "session.timeout.ms=6000", "--set", "heartbeat.interval.ms=200"]
        return processes(
            tmp_path / "ingest.log", "services.ingest.kafka", *where, *quick, "--metrics-port", 0, *options
        )

    return start


def event(number, **changes):
    row = {"user_id": number % USERS, "item_id": number, "item_type": "pin", "action": "save", "surface": "home"}
    return Event(**{**row, "timestamp_ms": T0 + number, **changes})


def events(numbers):
    return [event(number).SerializeToString() for number in numbers]


def once(numbers):
    return Counter((number % USERS, number) for number in numbers)


def test_nothing_is_lost_or_doubled_when_the_service_and_the_consumer_are_killed(cluster, signals, consume):
    topic, numbers = "killed", range(6_000)
    cluster.send(topic, events(numbers))
    signals.start()
    consumer = consume(topic, "--batch", 20)
    assert eventually(lambda: cluster.uncommitted(topic) < 5_800)
    signals.end(signal.SIGKILL)
    signals.start()
    left = cluster.uncommitted(topic)
    assert left > 0
    assert eventually(lambda: cluster.uncommitted(topic) < left)
    consumer.kill()
    consumer.wait()
    cluster.send(topic, events(range(6_000, 6_100)))
    consumer = consume(topic, "--batch", 20)
    assert eventually(lambda: cluster.uncommitted(topic) == 0)
    consumer.send_signal(signal.SIGTERM)
    assert consumer.wait(30) == 0
    assert signals.end() == 0
    assert signals.stored() == once(range(6_100))


def test_a_service_that_is_away_is_waited_for_and_told_once(cluster, signals, consume, tmp_path):
    topic, metrics_port = "away", free_port()
    cluster.send(topic, events(range(50)))
    consumer = consume(topic, "--metrics-port", metrics_port)

    def metric(name):
        with urllib.request.urlopen(f"http://localhost:{metrics_port}/metrics", timeout=10) as page:
            lines = [line for line in page.read().decode().splitlines() if line.startswith(name)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    log = tmp_path / "ingest.log"
    assert eventually(lambda: "fails: UNAVAILABLE" in log.read_text())
    assert eventually(lambda: metric("pinrec_ingest_failures_total") >= 3)
    assert eventually(lambda: metric("pinrec_ingest_lag") == 50)
    assert cluster.uncommitted(topic) == 50
    signals.start()
    assert eventually(lambda: cluster.uncommitted(topic) == 0)
    assert eventually(lambda: metric("pinrec_ingest_lag") == 0)
    assert metric("pinrec_ingest_events_total") == 50
    consumer.send_signal(signal.SIGTERM)
    assert consumer.wait(30) == 0
    assert signals.end() == 0
    assert signals.stored() == once(range(50))
    told = re.findall("appending to .* fails: .*", log.read_text())
    assert len(told) == len(set(told)), "each reason once"


def test_json_and_letters_that_nobody_can_deliver(cluster, signals, consume, tmp_path):
    topic = "json"
    good = {
        "userId": "3",
        "itemId": "7",
        "itemType": "pin",
        "action": "save",
        "surface": "home",
        "timestampMs": str(T0),
    }
    bad = [
        b"\xff{",
        b"[]",
        json.dumps({**good, "timestampMs": "5"}).encode(),
        json.dumps({**good, "colour": 1}).encode(),
    ]
    signals.start()
    cluster.send(topic, [json.dumps(good).encode(), *bad, json.dumps({**good, "itemId": "8"}).encode()])
    consumer = consume(topic, "--format", "json", "--dead-letter", "graves")
    assert eventually(lambda: cluster.uncommitted(topic) == 0)
    consumer.send_signal(signal.SIGTERM)
    assert consumer.wait(30) == 0
    assert signals.end() == 0
    assert signals.stored() == Counter([(3, 7), (3, 8)])
    letters = {letter.value(): dict(letter.headers()) for letter in cluster.messages("graves", len(bad))}
    assert set(letters) == set(bad)
    assert letters[bad[2]]["pinrec-reason"].startswith(b"timestamp_ms has value 5; allowed: Unix milliseconds")
    assert re.fullmatch(rb"json/\d/\d", letters[bad[2]]["pinrec-source"])
    assert "messages can never be accepted; the first, json/" in (tmp_path / "ingest.log").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--set", "enable.auto.commit=true"],
            "Error: --set or --settings has key 'enable.auto.commit'; allowed: ",
        ),
        (["--set", "colour=blue"], "Error: Kafka's client refuses the settings: No such configuration property"),
    ],
)
def test_settings_that_cannot_be(consume, tmp_path, options, said):
    assert consume("any", *options).wait(60) == 1
    assert (tmp_path / "ingest.log").read_text().splitlines()[-1].startswith(said)
