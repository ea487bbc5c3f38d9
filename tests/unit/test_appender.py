"""Group commit: what waits is written together, each request succeeds or fails for what is its own."""

import asyncio
import threading

import pytest

from pinrec_core.errors import InvalidRequest, Overloaded, Unavailable
from pinrec_core.signals.realtime import MemoryHistoryStore
from services.proto.signals_pb2 import AppendEventsRequest, Event
from services.signals import appender
from services.signals.appender import Appender

NOW = 1_700_000_000_000


class SlowStore(MemoryHistoryStore):
    """Each write waits until it is told to go on; remembers how many events each one had."""

    def __init__(self):
        super().__init__()
        self.go_on = threading.Semaphore(0)
        self.writes = []
        self.failing = False

    def append(self, events):
        self.writes.append([event.item_id for event in events])
        self.go_on.acquire()
        if self.failing:
            raise Unavailable("no space left")
        return super().append(events)


def request(*items, **changes):
    event = {"user_id": 7, "item_type": "pin", "action": "save", "surface": "home", "timestamp_ms": NOW}
    return AppendEventsRequest(events=[Event(**{**event, **changes}, item_id=item) for item in items])


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


@pytest.fixture
def store():
    return SlowStore()


@pytest.fixture
async def appending(store):
    made = Appender(store)
    yield made
    store.go_on.release(100)
    await made.close()


async def begun(appending, *requests):
    """Appends that came while the first one was being written: tasks, all waiting."""
    tasks = [asyncio.create_task(appending.append(requests[0]))]
    await until(lambda: appending._store.writes)
    tasks += [asyncio.create_task(appending.append(one)) for one in requests[1:]]
    await until(lambda: len(appending._waiting) == len(requests) - 1)
    return tasks


async def test_what_waits_for_a_write_goes_into_the_next_one(appending, store):
    tasks = await begun(appending, request(1), request(2, 3), request(4))
    store.go_on.release()
    assert await tasks[0] == 1
    assert not tasks[1].done()
    store.go_on.release()
    assert await asyncio.gather(*tasks) == [1, 2, 1]
    assert store.writes == [[1], [2, 3, 4]]


async def test_a_wrong_request_fails_alone_and_whole(appending, store):
    store.go_on.release(2)
    good, wrong = await asyncio.gather(
        appending.append(request(1)), appending.append(request(2, 3, timestamp_ms=5)), return_exceptions=True
    )
    assert good == 1
    assert isinstance(wrong, InvalidRequest)
    assert wrong.message.startswith("events[0].timestamp_ms has value 5; ")
    assert store.writes == [[1]]


async def test_a_failed_write_fails_all_that_it_held_and_nobody_else(appending, store):
    tasks = await begun(appending, request(1), request(2), request(3))
    store.go_on.release()
    await tasks[0]
    store.failing = True
    store.go_on.release()
    for task in tasks[1:]:
        with pytest.raises(Unavailable, match="no space left"):
            await task
    store.failing = False
    store.go_on.release()
    assert await appending.append(request(4)) == 1
    assert store.writes == [[1], [2, 3], [4]]


async def test_who_hangs_up_takes_nothing_away_from_the_others(appending, store):
    tasks = await begun(appending, request(1), request(2), request(3))
    tasks[1].cancel()
    store.go_on.release(2)
    assert await tasks[2] == 1
    assert store.writes[1] == [2, 3]  # an append whose caller left may be stored all the same


async def test_equal_rows_of_two_requests_are_one_event_and_those_of_one_are_two(appending, store):
    tasks = await begun(appending, request(1), request(5), request(5), request(6, 6))
    store.go_on.release(2)
    await asyncio.gather(*tasks)
    found = store.read([7], 0, 10)
    assert sorted(found.item_ids.tolist()) == [1, 5, 6, 6]


async def test_above_the_limit_refused_at_once_or_waiting_if_asked(appending, store, monkeypatch):
    monkeypatch.setattr(appender, "MAX_PENDING_EVENTS", 3)
    first = asyncio.create_task(appending.append(request(1, 2)))
    await until(lambda: store.writes)
    with pytest.raises(Overloaded, match="2 events wait to be written; at most 3"):
        await appending.append(request(3, 4))
    patient = asyncio.create_task(appending.append(request(3, 4), wait_for_room=True))
    store.go_on.release(2)
    assert await asyncio.gather(first, patient) == [2, 2]
    assert store.writes == [[1, 2], [3, 4]]
