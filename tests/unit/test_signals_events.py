import subprocess
import sys

import numpy as np
import pytest

from pinrec_core.errors import Unavailable
from pinrec_core.event_log.event_ids import derived_event_ids, name_hash
from pinrec_core.schema import ItemType
from pinrec_core.signals.events import Event, with_event_ids
from pinrec_core.signals.realtime.rows import Wording, encode_row, stored_events

SAVE = Event(7, 101, ItemType.PIN, "save", "home", 1_700_000_000_000)
GOLDEN_ID = 17482186822661794
"""Stores hold it already: a change of the hash would double every event that a log repeats."""


def columns(*events: Event):
    return (
        np.array([event.user_id for event in events], np.int64),
        np.array([event.item_id for event in events], np.int64),
        np.array([event.item_type for event in events], np.uint8),
        np.array([name_hash(event.action) for event in events], np.uint64),
        np.array([name_hash(event.surface) for event in events], np.uint64),
        np.array([event.timestamp_ms for event in events], np.int64),
    )


@pytest.mark.parametrize(
    "event",
    [
        SAVE._replace(event_id=5),
        Event(-3, -(2**63), ItemType.SEARCH_QUERY, "search", "søk", 0, 2**64 - 1, "grüne Küche 🌿"),
        Event(2**63 - 1, 2**63 - 1, ItemType.PIN, "", "", 2**63 - 1, 1, ""),
    ],
)
def test_a_row_round_trips(event):
    found = stored(encode_row(event))
    assert (found.item_ids.tolist(), found.item_types.tolist()) == ([event.item_id], [event.item_type])
    assert found.distinct_wordings == [Wording(event.action, event.surface, event.text)]


def test_row_bytes_are_what_older_stores_hold():
    row = encode_row(Event(7, 258, ItemType.SEARCH_QUERY, "search", "home", 9, 4, "é"))
    assert row == b"\x02\x01\x02\x01\0\0\0\0\0\0\x06\0\x04\0\x02\0\0\0searchhome\xc3\xa9"


def test_equal_wordings_are_said_once():
    rows = [
        encode_row(SAVE._replace(item_id=i, surface=surface)) for i, surface in enumerate(["home", "search", "home"])
    ]
    found = stored_events([2, 0, 1], np.array([3, 2, 9]), np.array([1, 2, 3], np.uint64), rows)
    assert found.offsets.tolist() == [0, 2, 2, 3]
    assert found.item_ids.tolist() == [0, 1, 2]
    assert found.wordings.tolist() == [0, 1, 0]
    assert found.distinct_wordings == [Wording("save", "home", ""), Wording("save", "search", "")]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b"\x07" + encode_row(SAVE)[1:], "row version 7; known: 2"),
        (b"\x01" + encode_row(SAVE)[1:], "row version 1; known: 2"),
        (b"", "a row is cut"),
        (encode_row(SAVE)[:9], "a row is cut"),
        (encode_row(SAVE)[:12], "a row is cut"),
        (encode_row(SAVE)[:-1], "a row is cut"),
        (encode_row(SAVE)[:-1] + b"\xff", "a row is cut"),
    ],
)
def test_a_row_that_cannot_be_read_says_why(row, said):
    with pytest.raises(Unavailable, match=said):
        stored(row)


def stored(row):
    return stored_events([1], np.array([9]), np.array([4], np.uint64), [row])


def test_derived_ids_are_the_same_in_every_process():
    code = (
        "from pinrec_core.signals.events import *;"
        "print(with_event_ids([Event(7, 101, ItemType.PIN, 'save', 'home', 1_700_000_000_000)])[0].event_id)"
    )
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(elsewhere.stdout) == with_event_ids([SAVE])[0].event_id == GOLDEN_ID


def test_every_field_of_a_row_changes_its_id():
    changed = [
        SAVE,
        SAVE._replace(user_id=8),
        SAVE._replace(item_id=102),
        SAVE._replace(item_type=ItemType.SEARCH_QUERY),
        SAVE._replace(action="click"),
        SAVE._replace(surface="search"),
        SAVE._replace(timestamp_ms=SAVE.timestamp_ms + 1),
        SAVE._replace(user_id=101, item_id=7),
    ]
    assert len({event.event_id for event in with_event_ids(changed)}) == len(changed)


def test_equal_rows_are_told_apart_by_occurrence_and_a_retry_gives_the_same_ids():
    first = with_event_ids([SAVE, SAVE._replace(item_id=5), SAVE])
    assert len({event.event_id for event in first}) == 3
    assert with_event_ids([SAVE, SAVE]) == [first[0], first[2]]
    assert 0 not in {event.event_id for event in first}


def test_given_ids_stay_and_do_not_count_as_occurrences():
    given = SAVE._replace(event_id=99)
    assert with_event_ids([given, SAVE]) == [given, with_event_ids([SAVE])[0]]
    assert with_event_ids([given]) == [given]
    assert with_event_ids([]) == []


def test_columns_and_events_give_the_same_ids():
    events = [SAVE, SAVE, SAVE._replace(user_id=-1), SAVE._replace(item_id=-(2**63))]
    ids, earlier_equals = derived_event_ids(columns(*events))
    assert ids.tolist() == [event.event_id for event in with_event_ids(events)]
    assert earlier_equals.tolist() == [0, 1, 0, 0]


def test_no_rows_have_no_ids():
    assert [len(column) for column in derived_event_ids(columns())] == [0, 0]
