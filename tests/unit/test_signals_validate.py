import pytest

from pinrec_core.errors import InvalidRequest
from pinrec_core.messages import FetchSignalsInput
from pinrec_core.schema import ItemType
from pinrec_core.signals.events import Event
from pinrec_core.text_encoder import query_item_id
from services.proto import signals_pb2
from services.signals import validate
from services.signals.validate import (
    FIRST_TIMESTAMP_MS,
    MAX_AHEAD_MS,
    MAX_EVENTS,
    MAX_HISTORIES,
    MAX_NAME_CHARS,
    MAX_TEXT_CHARS,
    events_of,
    inputs_of,
)

NOW = 1_700_000_000_000
SAVE = {"user_id": 7, "item_id": 10, "item_type": "pin", "action": "save", "surface": "home", "timestamp_ms": NOW}
TYPED = {**SAVE, "item_id": 0, "item_type": "search_query", "action": "search", "text": "Red  Bicycle"}


def events(*rows):
    return events_of(signals_pb2.AppendEventsRequest(events=[signals_pb2.Event(**row) for row in rows]))


def histories(*rows, surfaces=("home", "search")):
    requests = [signals_pb2.HistoryRequest(**row) for row in rows]
    return inputs_of(signals_pb2.GetHistoriesRequest(release=3, requests=requests), surfaces)


def test_events_come_out_as_given():
    pin, typed = events({**SAVE, "event_id": 2**64 - 1}, TYPED)
    assert pin == Event(7, 10, ItemType.PIN, "save", "home", NOW, 2**64 - 1, "")
    query_id = query_item_id("red bicycle")
    assert typed == Event(7, query_id, ItemType.SEARCH_QUERY, "search", "home", NOW, 0, "Red  Bicycle")


def test_ids_of_zero_and_below_are_ids():
    (event,) = events({**SAVE, "user_id": -1, "item_id": 0})
    assert (event.user_id, event.item_id) == (-1, 0)


def test_a_search_query_may_repeat_the_hash_of_its_text():
    (event,) = events({**TYPED, "item_id": query_item_id("red bicycle")})
    assert event.item_id == query_item_id("red bicycle")


def test_the_first_and_the_last_allowed_time(monkeypatch):
    monkeypatch.setattr(validate.time, "time_ns", lambda: NOW * 1_000_000)
    for allowed in (FIRST_TIMESTAMP_MS, NOW + MAX_AHEAD_MS):
        assert events({**SAVE, "timestamp_ms": allowed})[0].timestamp_ms == allowed
    said = r"timestamp_ms has value 1700086400001; allowed: .* to 1700086400000, a day ahead of this service's clock"
    with pytest.raises(InvalidRequest, match=said):
        events({**SAVE, "timestamp_ms": NOW + MAX_AHEAD_MS + 1})


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**SAVE, "item_type": ""}, r"item_type has value ''; allowed: one of \['pin', 'search_query'\]"),
        ({**SAVE, "item_type": "board"}, "item_type has value 'board'"),
        ({**SAVE, "action": ""}, "action has value ''; allowed: a name that is not empty"),
        ({**SAVE, "surface": ""}, "surface has value ''"),
        ({**SAVE, "action": "x" * (MAX_NAME_CHARS + 1)}, "action has value 'xxxxx.*; allowed: at most 128 characters"),
        ({**SAVE, "action": "search"}, "action has value 'search'; allowed: any but search, which belongs"),
        ({**TYPED, "action": "save"}, "action has value 'save'; allowed: search"),
        ({**SAVE, "timestamp_ms": 0}, "timestamp_ms has value 0; allowed: Unix milliseconds from 100000000000"),
        ({**SAVE, "timestamp_ms": -NOW}, "timestamp_ms has value -1700000000000"),
        ({**SAVE, "timestamp_ms": NOW // 1_000}, "timestamp_ms has value 1700000000;"),
        ({**SAVE, "timestamp_ms": NOW * 1_000}, "timestamp_ms has value 1700000000000000;"),
        ({**TYPED, "text": ""}, "text has value ''; allowed: the words of the search query"),
        ({**TYPED, "text": " ?! "}, r"text has value ' \?! '; allowed: the words"),
        ({**TYPED, "item_id": 5}, "item_id has value 5; allowed: 0 or the hash of the text"),
        ({**TYPED, "text": "x" * (MAX_TEXT_CHARS + 1)}, "text has value .*; allowed: at most 512 characters"),
    ],
)
def test_a_wrong_field_is_named_with_its_place(row, said):
    with pytest.raises(InvalidRequest, match=rf"^events\[1\]\.{said}"):
        events(SAVE, row)


def test_a_batch_holds_one_to_the_limit():
    with pytest.raises(InvalidRequest, match="events has value '0 events'; allowed: 1 to 10000"):
        events()
    assert len(events(*[SAVE] * MAX_EVENTS)) == MAX_EVENTS
    with pytest.raises(InvalidRequest, match="10001 events"):
        events(*[SAVE] * (MAX_EVENTS + 1))


def test_history_requests_become_the_stage_s_inputs():
    found = histories({"user_id": 7, "surface": 2, "search_query": "red", "request_time_ms": NOW}, {"user_id": -1})
    assert found == [FetchSignalsInput(7, 2, "red", NOW, 3, 0), FetchSignalsInput(-1, 0, "", 0, 3, 0)]
    assert histories() == []


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"surface": 3}, r"requests\[0\].surface has value 3; allowed: codes 0 to 2"),
        ({"surface": -1}, r"requests\[0\].surface has value -1"),
        ({"search_query": "x" * (MAX_TEXT_CHARS + 1)}, r"requests\[0\].search_query"),
    ],
)
def test_a_wrong_history_request_is_named(row, said):
    with pytest.raises(InvalidRequest, match=said):
        histories(row)


def test_too_many_histories_are_refused():
    with pytest.raises(InvalidRequest, match=f"at most {MAX_HISTORIES}"):
        histories(*[{"user_id": 1}] * (MAX_HISTORIES + 1))
