"""Clients that append events and remember what was acknowledged: the witnesses of fault tests."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import grpc
import numpy as np

from services.proto.signals_pb2 import AppendEventsRequest, Event, GetHistoriesRequest, HistoryRequest
from services.proto.signals_pb2_grpc import SignalServiceStub

EVENTS_A_USER = 1_500
"""Fewer than what a history tells as seen, so that every event of a user can be asked for."""
BATCH = 10
_RECONNECT_QUICKLY = [("grpc.max_reconnect_backoff_ms", 200), ("grpc.initial_reconnect_backoff_ms", 50)]
_TIMEOUT_S = 5.0


def event_of(user_id: int, place: int, start_ms: int) -> Event:
    """The `place`-th event of a user; the same call makes the same event."""
    return Event(
        user_id=user_id,
        item_id=1_000_000 + place,
        item_type="pin",
        action="save",
        surface="home",
        timestamp_ms=start_ms + place,
        event_id=user_id * EVENTS_A_USER + place + 1,
    )


def histories(stub: SignalServiceStub, release: int, user_ids: list[int]) -> list[list[int]]:
    """Places of every stored event of each user, oldest first."""
    request = GetHistoriesRequest(release=release, requests=[HistoryRequest(user_id=user) for user in user_ids])
    answers = stub.GetHistories(request, timeout=30).histories
    return [(np.frombuffer(one.seen_item_ids, "<i8") - 1_000_000).tolist() for one in answers]


@dataclass
class Writer:
    """Appends in small batches, repeating each until it is acknowledged, and reads its own writes."""

    address: str
    first_user: int
    start_ms: int
    release: int
    acknowledged: dict[int, int] = field(default_factory=dict)
    """How many events of each user, from place 0 on."""
    pause_s: float = 0.0
    """Between two appends."""
    repeats: int = 0
    last_failed_s: float = 0.0
    """When an append failed last, in seconds of `time.monotonic`."""
    reads: int = 0
    misses: int = 0
    """Reads right after an acknowledgement that did not hold what was acknowledged."""
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Until `stop`."""
        with grpc.insecure_channel(self.address, options=_RECONNECT_QUICKLY) as channel:
            stub = SignalServiceStub(channel)
            user, place = self.first_user, 0
            while not self.stop.is_set():
                if self._append(stub, user, place):
                    place += BATCH
                    self.acknowledged[user] = place
                    if place % (20 * BATCH) == 0:
                        self._read_own(stub, user, place)
                if place + BATCH > EVENTS_A_USER:
                    user, place = user + 1, 0
                time.sleep(self.pause_s)

    def _append(self, stub: SignalServiceStub, user: int, place: int) -> bool:
        request = AppendEventsRequest(events=[event_of(user, place + i, self.start_ms) for i in range(BATCH)])
        try:
            stub.AppendEvents(request, timeout=_TIMEOUT_S)
        except grpc.RpcError:
            self.repeats += 1
            self.last_failed_s = time.monotonic()
            time.sleep(0.02)
            return False
        return True

    def _read_own(self, stub: SignalServiceStub, user: int, place: int) -> None:
        try:
            found = histories(stub, self.release, [user])[0]
        except grpc.RpcError:
            return
        self.reads += 1
        self.misses += found[:place] != list(range(place))
