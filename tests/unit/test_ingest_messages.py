"""What a Kafka message says, and which messages are the same event."""

import pytest

from pinrec_core.errors import InvalidRequest
from services.ingest.messages import read_event
from services.proto.signals_pb2 import Event

SAVED = {"user_id": 7, "item_id": 10, "item_type": "pin", "action": "save", "surface": "home"}
NOW = 1_700_000_000_000


def proto(**changes):
    return Event(**{**SAVED, "timestamp_ms": NOW, **changes}).SerializeToString()


def test_both_formats_say_the_same():
    text = (
        b'{"userId": 7, "item_id": "10", "itemType": "pin", "action": "save", "surface": "home", "timestampMs": %d}'
        % NOW
    )
    assert read_event(text, "json") == read_event(proto(), "proto")


def test_equal_rows_are_one_event_and_different_ids_are_not():
    same, _ = read_event(proto(), "proto")
    assert read_event(proto(), "proto")[0] == same
    assert read_event(proto(event_id=1), "proto")[0] != read_event(proto(event_id=2), "proto")[0]
    assert read_event(proto(surface="search"), "proto")[0] != same


def test_a_search_query_is_the_same_however_it_is_typed():
    query = {"item_id": 0, "item_type": "search_query", "action": "search"}
    first, sent = read_event(proto(**query, text="Red  Bicycle"), "proto")
    assert first == read_event(proto(**query, text="red bicycle"), "proto")[0]
    assert sent.text == "Red  Bicycle"


@pytest.mark.parametrize(
    ("value", "form", "said"),
    [
        (None, "proto", "a message without a value has none"),
        (b"\xff\xff", "proto", "allowed: a serialized pinrec.v1.Event"),
        (b"{", "json", "allowed: pinrec.v1.Event as JSON"),
        (b"\xff", "json", "allowed: pinrec.v1.Event as JSON"),
        (proto(timestamp_ms=5), "proto", "timestamp_ms has value 5"),
        (b"", "proto", "item_type has value ''"),
    ],
)
def test_what_can_never_be_accepted_is_named(value, form, said):
    with pytest.raises(InvalidRequest, match=said):
        read_event(value, form)
