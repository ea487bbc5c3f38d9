"""What every HistoryStore promises, run by each implementation."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from redis import Redis

from pinrec_core.errors import Unavailable
from pinrec_core.schema import ItemType
from pinrec_core.signals.events import Event, with_event_ids
from pinrec_core.signals.realtime import MemoryHistoryStore, RocksHistoryStore, open_store

ALL = 1_000
"""A limit that no test reaches."""


def pin(user_id, item_id, timestamp_ms, event_id=0, text=""):
    return Event(user_id, item_id, ItemType.PIN, "save", "home", timestamp_ms, event_id, text)


@pytest.fixture(scope="module")
def redis_url(start_redis):
    return start_redis()


@pytest.fixture(params=["memory", "rocks", "redis"])
def store(request, tmp_path):
    """An empty store of each kind."""
    if request.param == "memory":
        opened = MemoryHistoryStore()
    elif request.param == "rocks":
        opened = open_store(str(tmp_path / "realtime"))
    else:
        url = request.getfixturevalue("redis_url")
        opened = open_store(url)
        with Redis.from_url(url) as client:
            client.flushall()
    yield opened
    opened.close()


def read(store, user_ids, since_ms=0, limit=ALL):
    """What a store reads, as events of each user."""
    found = store.read(user_ids, since_ms, limit)
    assert len(found.offsets) == len(user_ids) + 1
    spans = zip(user_ids, found.offsets[:-1].tolist(), found.offsets[1:].tolist(), strict=True)
    return [[event_at(found, user_id, row) for row in range(start, end)] for user_id, start, end in spans]


def event_at(found, user_id, row):
    words = found.distinct_wordings[found.wordings[row]]
    item_type = ItemType(int(found.item_types[row]))
    ids = int(found.item_ids[row]), item_type, words.action, words.surface
    return Event(user_id, *ids, int(found.timestamps_ms[row]), int(found.event_ids[row]), words.text)


def items(store, user_id, since_ms=0, limit=ALL):
    return [event.item_id for event in read(store, [user_id], since_ms, limit)[0]]


def test_an_appended_event_is_read_back_whole(store):
    event = Event(1, 5, ItemType.SEARCH_QUERY, "search", "søk", 1_000, 77, "grüne Küche 🌿")
    assert store.append([event]) == 1
    assert read(store, [1]) == [[event]]


def test_events_come_newest_first_in_any_order_of_arrival(store):
    store.append([pin(1, 10, 1_000), pin(1, 30, 3_000)])
    store.append([pin(1, 20, 2_000), pin(1, 40, 4_000), pin(1, 5, 500)])
    assert items(store, 1) == [40, 30, 20, 10, 5]


def test_since_is_inclusive(store):
    store.append([pin(1, 10, 1_000, 2**64 - 1), pin(1, 20, 2_000, 2**64 - 1), pin(1, 30, 3_000, 2**64 - 1)])
    assert items(store, 1, since_ms=2_000) == [30, 20]
    assert items(store, 1, since_ms=2_001) == [30]
    assert items(store, 1, since_ms=3_001) == []


def test_limit_keeps_the_newest(store):
    store.append([pin(1, 10, 1_000), pin(1, 20, 2_000), pin(1, 30, 3_000)])
    assert items(store, 1, limit=2) == [30, 20]
    assert items(store, 1, since_ms=3_000, limit=2) == [30]


def test_a_repeated_append_changes_nothing_and_is_acknowledged(store):
    events = [pin(1, 10, 1_000), pin(1, 20, 2_000, event_id=9)]
    assert store.append(events) == 2
    before = read(store, [1])
    assert store.append(events) == 2
    assert read(store, [1]) == before
    assert len(before[0]) == 2


def test_equal_rows_of_one_append_are_two_events(store):
    assert store.append([pin(1, 10, 1_000), pin(1, 10, 1_000)]) == 2
    assert items(store, 1) == [10, 10]


def test_events_of_equal_time_are_ordered_by_id(store):
    store.append([pin(1, 30, 1_000, 3), pin(1, 10, 1_000, 1), pin(1, 90, 1_000, 2**64 - 1)])
    assert items(store, 1) == [90, 30, 10]
    assert items(store, 1, limit=2) == [90, 30]


def test_an_id_appended_again_with_other_contents_stays_one_event(store):
    store.append([pin(1, 10, 1_000, 5), pin(1, 20, 2_000, 5)])
    store.append([pin(1, 11, 1_000, 5)])
    found = items(store, 1)
    assert found in ([20, 10], [20, 11])  # which contents stay is not promised


def test_columns_have_the_dtypes_of_a_history(store):
    store.append([pin(1, 10, 1_000)])
    for user_ids in ([1, 2], [2], []):
        found = store.read(user_ids, 0, ALL)
        dtypes = [column.dtype for column in found[:-1]]
        assert dtypes == [np.int64, np.int64, np.uint8, np.int64, np.uint64, np.int32]


def test_derived_ids_are_stored(store):
    store.append([pin(1, 10, 1_000)])
    assert read(store, [1]) == [with_event_ids([pin(1, 10, 1_000)])]


def test_neighbouring_users_do_not_mix_even_below_zero(store):
    users = [-(2**63), -2, -1, 0, 1, 2, 255, 256, 2**63 - 1]
    store.append([pin(user_id, place, 1_000 + place) for place, user_id in enumerate(users)])
    found = read(store, users)
    assert [[event.item_id for event in events] for events in found] == [[place] for place in range(len(users))]
    assert [events[0].user_id for events in found] == users


def test_times_before_1970_sort_as_times(store):
    store.append([pin(1, 10, -5), pin(1, 20, 5), pin(1, 15, 0)])
    assert items(store, 1, since_ms=-10) == [20, 15, 10]
    assert items(store, 1, since_ms=0) == [20, 15]


def test_users_are_answered_in_the_order_asked(store):
    store.append([pin(1, 10, 1_000), pin(2, 20, 1_000)])
    assert [[event.item_id for event in events] for events in read(store, [2, 3, 1, 2])] == [
        [20], [], [10], [20],
    ]  # fmt: skip
    assert read(store, []) == []


def test_an_empty_append_is_acknowledged(store):
    assert store.append([]) == 0


def test_appends_from_many_threads_are_all_there(store):
    with ThreadPoolExecutor(4) as pool:
        appended = list(pool.map(lambda i: store.append([pin(i % 3, i, 1_000 + i)]), range(60)))
    assert appended == [1] * 60
    assert sorted(items(store, 0) + items(store, 1) + items(store, 2)) == list(range(60))


@pytest.fixture
def reopen(tmp_path):
    """Opens the same RocksDB again and again."""
    return lambda: RocksHistoryStore(tmp_path / "realtime")


def test_expiring_drops_what_is_older_of_every_user(store):
    users = [-(2**63), -1, 0, 1, 2**63 - 1]
    store.append([pin(user_id, item_id, 1_000 * item_id) for user_id in users for item_id in (1, 2, 3)])
    store.append([pin(7, 9, 999), pin(8, 9, 3_000)])
    assert store.expire(2_000) == 6
    assert [items(store, user_id) for user_id in [*users, 7, 8]] == [[3, 2]] * 5 + [[], [9]]
    assert store.expire(2_000) == 0
    assert store.expire(3_001) == 11
    assert read(store, [*users, 7, 8]) == [[]] * 7


def test_expiring_goes_on_where_a_piece_ends(store, monkeypatch):
    for module in ("rocks", "redis"):
        monkeypatch.setattr(f"pinrec_core.signals.realtime.{module}._PIECE", 3)
    store.append([pin(user_id, item_id, 1_000 * item_id) for user_id in range(5) for item_id in range(1, 6)])
    assert store.expire(3_000) == 10
    assert [items(store, user_id) for user_id in range(5)] == [[5, 4, 3]] * 5


def test_expiring_beside_readers_and_writers_loses_nothing_newer(store):
    old, new = [pin(u, 1, 1_000) for u in range(40)], [pin(u, 2, 9_000) for u in range(40)]
    store.append(old)
    with ThreadPoolExecutor(3) as pool:
        written = pool.map(lambda event: store.append([event]), new)
        dropped = [pool.submit(store.expire, 5_000) for _ in range(3)]
        reads = list(pool.map(lambda _: read(store, range(40)), range(5)))
        assert sum(written) == 40
        assert sum(future.result() for future in dropped) >= 40
    assert {event.item_id for found in reads for of_user in found for event in of_user} <= {1, 2}
    assert [items(store, user_id) for user_id in range(40)] == [[2]] * 40


def test_reopening_keeps_events(reopen):
    store = reopen()
    store.append([pin(1, 10, 1_000), pin(1, 20, 2_000)])
    store.close()
    store = reopen()
    assert items(store, 1) == [20, 10]
    store.close()


_KILLED_AFTER_ACKNOWLEDGING = """
import sys
from pathlib import Path
from pinrec_core.schema import ItemType
from pinrec_core.signals.events import Event
from pinrec_core.signals.realtime import RocksHistoryStore
store = RocksHistoryStore(Path(sys.argv[1]) / "realtime")
for i in range(1_000_000):
    store.append([Event(1, i, ItemType.PIN, "save", "home", 1_000 + i)])
    print(i, flush=True)
"""


def test_kill_9_keeps_every_acknowledged_event(reopen, tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", _KILLED_AFTER_ACKNOWLEDGING, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        while (line := writer.stdout.readline()) and int(line) < 50:
            pass
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged = max([50, *(int(line) for line in writer.stdout.read().splitlines())])
    store = reopen()
    kept = items(store, 1, limit=acknowledged + 10)
    store.close()
    assert sorted(kept)[: acknowledged + 1] == list(range(acknowledged + 1))
    assert len(kept) - len(set(kept)) == 0


def test_a_second_owner_is_refused_without_naming_a_path(reopen, tmp_path):
    store = reopen()
    with pytest.raises(Unavailable, match="realtime view cannot be opened: another process owns it") as refusal:
        reopen()
    store.close()
    assert str(tmp_path) not in str(refusal.value)


def test_a_closed_store_says_so(reopen):
    store = reopen()
    store.close()
    with pytest.raises(Unavailable, match="could not be written"):
        store.append([pin(1, 10, 1_000)])
    with pytest.raises(Unavailable, match="could not be read"):
        read(store, [1])
