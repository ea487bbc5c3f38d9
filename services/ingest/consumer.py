"""Events from Kafka into the signal service: exactly once in its store.

An offset is committed only after the service has made the events durable, so a crash anywhere makes some messages come
again, and the store takes a repeated event as the same one. The position in Kafka is the only state: what could not be
appended is read again from there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import grpc
from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition

from pinrec_core.errors import InvalidConfig, InvalidRequest, Unavailable
from pinrec_core.serving.reconnect import QUICK_RECONNECT
from pinrec_core.signals.events import Event
from services.common.client import open_channel
from services.common.metrics import IngestMetrics
from services.common.outage import Outage
from services.ingest.messages import read_event
from services.proto import signals_pb2
from services.proto.signals_pb2_grpc import SignalServiceStub

_OURS = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "earliest",  # a group without an offset starts where nothing is left out
}
"""Settings that the promise rests on."""

_NETWORK_S = 10.0
"""Of one call to the signal service or to Kafka."""

_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.1, 2.0
"""Between tries, doubling; far below `max.poll.interval.ms`, after which Kafka takes a consumer for dead."""

_LAG_EVERY_S = 2.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IngestOptions:
    """Where events come from and go to. `form` is a key of `messages.READERS`; `dead_letter` empty = no such topic."""

    brokers: str
    topic: str
    group: str
    signals: str
    form: str = "proto"
    dead_letter: str = ""
    batch_size: int = 500
    linger_s: float = 0.05
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DeadLetter:
    """A message that can never be accepted, and why."""

    message: Message
    reason: str


class EventConsumer:
    """One member of a consumer group. `run` in one thread, `stop` from any."""

    def __init__(self, options: IngestOptions, metrics: IngestMetrics) -> None:
        """Raises InvalidConfig for a setting that Kafka's client does not know, or that is not the user's to choose."""
        self._options = options
        self._metrics = metrics
        self._stopped = threading.Event()
        kafka = {**_checked(options.settings), "bootstrap.servers": options.brokers}
        try:
            self._consumer = Consumer({**kafka, **_OURS, "group.id": options.group}, logger=log)
            self._producer = Producer(kafka, logger=log) if options.dead_letter else None
        except KafkaException as error:
            raise InvalidConfig(f"Kafka's client refuses the settings: {error.args[0].str()}") from error
        self._channel = open_channel(options.signals, QUICK_RECONNECT)
        self._stub = SignalServiceStub(self._channel)
        self._signals = Outage(f"appending to {options.signals}", log)
        self._kafka = Outage(f"Kafka at {options.brokers}", log)
        self._pause_s = _FIRST_PAUSE_S
        self._next_lag_s = 0.0

    def run(self) -> None:
        """Consume until `stop`; what was begun is finished, and the group told."""
        self._consumer.subscribe([self._options.topic])
        try:
            while not self._stopped.is_set():
                self._step()
                self._measure_lag()
        finally:
            self._consumer.close()
            self._channel.close()

    def stop(self) -> None:
        """End `run` after its current batch."""
        self._stopped.set()

    def _step(self) -> None:
        messages = self._whole(self._consumer.consume(self._options.batch_size, self._options.linger_s))
        if not messages:
            return
        events, dead = self._read(messages)
        try:
            self._append(events)
            self._bury(dead)
        except Unavailable as error:
            self._metrics.failures.inc()
            self._signals.failed(error.message)
            self._go_back(messages)
            self._stopped.wait(self._pause_s)
            self._pause_s = min(2 * self._pause_s, _LAST_PAUSE_S)
            return
        self._signals.ended()
        self._pause_s = _FIRST_PAUSE_S
        self._metrics.events.inc(len(messages) - len(dead))
        self._metrics.dead_letters.inc(len(dead))
        self._commit(messages)

    def _whole(self, found: Iterable[Message]) -> list[Message]:
        """Messages that hold something; the others tell that brokers are away or a topic is missing."""
        messages = []
        for message in found:
            if message.error() is None:
                messages.append(message)
            else:
                self._kafka.failed(message.error().str())
        if messages:
            self._kafka.ended()
        return messages

    def _read(self, messages: Sequence[Message]) -> tuple[list[signals_pb2.Event], list[DeadLetter]]:
        events: dict[Event, signals_pb2.Event] = {}
        dead: list[DeadLetter] = []
        for message in messages:
            try:
                same, event = read_event(message.value(), self._options.form)
                events.setdefault(same, event)
            except InvalidRequest as error:
                dead.append(DeadLetter(message, error.message))
        return list(events.values()), dead

    def _append(self, events: Sequence[signals_pb2.Event]) -> None:
        if not events:
            return
        try:
            self._stub.AppendEvents(signals_pb2.AppendEventsRequest(events=events), timeout=_NETWORK_S)
        except grpc.RpcError as error:
            raise Unavailable(f"{error.code().name} {error.details()}") from error

    def _bury(self, dead: Sequence[DeadLetter]) -> None:
        """Send dead letters to their topic and wait until they are there. Raises Unavailable."""
        if not dead:
            return
        log.warning("%d messages can never be accepted; the first, %s: %s", len(dead), _place(dead[0]), dead[0].reason)
        if self._producer is None:
            return
        failures: list[str] = []
        for letter in dead:
            self._producer.produce(
                self._options.dead_letter,
                letter.message.value(),
                letter.message.key(),
                headers={"pinrec-reason": letter.reason, "pinrec-source": _place(letter)},
                on_delivery=lambda error, _: failures.append(error.str()) if error else None,
            )
        left = self._producer.flush(_NETWORK_S)
        if left or failures:
            raise Unavailable(f"dead letters not delivered: {failures[0] if failures else f'{left} on their way'}")

    def _go_back(self, messages: Sequence[Message]) -> None:
        """Read these messages again next."""
        for message in reversed(messages):  # the first of each partition wins
            try:
                self._consumer.seek(TopicPartition(message.topic(), message.partition(), message.offset()))
            except KafkaException as error:  # the partition is another member's now, which reads them
                log.info("partition %d: %s", message.partition(), error.args[0].str())

    def _commit(self, messages: Sequence[Message]) -> None:
        """Where it fails the messages come again, to this consumer or another, and count once."""
        ends = {message.partition(): message.offset() + 1 for message in messages}
        places = [TopicPartition(self._options.topic, partition, offset) for partition, offset in ends.items()]
        try:
            self._consumer.commit(offsets=places, asynchronous=False)
        except KafkaException as error:
            self._kafka.failed(f"offsets not committed: {error.args[0].str()}")

    def _measure_lag(self) -> None:
        """Messages of this member's partitions that are not committed yet, about every two seconds.

        The ends are those that the last fetch told: asking for them would wait behind a fetch in flight.
        """
        if time.monotonic() < self._next_lag_s:
            return
        self._next_lag_s = time.monotonic() + _LAG_EVERY_S
        try:
            places = self._consumer.committed(self._consumer.assignment(), _NETWORK_S)
        except KafkaException as error:
            self._kafka.failed(f"lag not known: {error.args[0].str()}")
            return
        self._metrics.lag.clear()  # partitions come and go
        for place in places:
            first, end = self._consumer.get_watermark_offsets(place, cached=True)
            if end >= 0:  # else nothing has been fetched yet
                self._metrics.lag.labels(place.partition).set(end - max(place.offset, first, 0))


def _checked(settings: Mapping[str, str]) -> Mapping[str, str]:
    for key in settings:
        if key in _OURS or key in ("bootstrap.servers", "group.id"):
            raise InvalidConfig(
                f"--set or --settings has key {key!r}; allowed: librdkafka's settings but those that this consumer sets"
            )
    return settings


def _place(letter: DeadLetter) -> str:
    return f"{letter.message.topic()}/{letter.message.partition()}/{letter.message.offset()}"
