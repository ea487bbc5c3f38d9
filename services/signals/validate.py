"""What AppendEvents and GetHistories accept; the first wrong field is named with its value and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence

from pinrec_core.errors import InvalidRequest
from pinrec_core.messages import FetchSignalsInput
from pinrec_core.schema import ITEM_TYPE_NAMES, SEARCH_ACTION, ItemType
from pinrec_core.signals.events import Event
from pinrec_core.text_encoder import normalize_text, query_item_id
from services.proto import signals_pb2

MAX_EVENTS = 10_000
"""Most events in one AppendEvents."""

MAX_HISTORIES = 256
"""Most users in one GetHistories."""

MAX_NAME_CHARS = 128
MAX_TEXT_CHARS = 512

FIRST_TIMESTAMP_MS = 100_000_000_000
"""3 March 1973. A smaller number is a time in seconds, or none at all."""

LAST_TIMESTAMP_MS = 100_000_000_000_000
"""The year 5138. A larger number is a time in microseconds or nanoseconds."""


def events_of(request: signals_pb2.AppendEventsRequest) -> list[Event]:
    """The events of a request. A search query gets the id of its text. Raises InvalidRequest."""
    if not 1 <= len(request.events) <= MAX_EVENTS:
        raise InvalidRequest("events", f"{len(request.events)} events", f"1 to {MAX_EVENTS}")
    return [_event(event, f"events[{place}]") for place, event in enumerate(request.events)]


def inputs_of(request: signals_pb2.GetHistoriesRequest, surfaces: Sequence[str]) -> list[FetchSignalsInput]:
    """The stage's inputs; `surfaces` are the release's. Raises InvalidRequest. Deadlines stay with the caller."""
    if len(request.requests) > MAX_HISTORIES:
        raise InvalidRequest("requests", f"{len(request.requests)} requests", f"at most {MAX_HISTORIES}")
    for place, one in enumerate(request.requests):
        if not 0 <= one.surface <= len(surfaces):
            raise InvalidRequest(f"requests[{place}].surface", one.surface, f"codes 0 to {len(surfaces)}")
        _check_length(one.search_query, f"requests[{place}].search_query", MAX_TEXT_CHARS)
    return [
        FetchSignalsInput(one.user_id, one.surface, one.search_query, one.request_time_ms, request.release, 0)
        for one in request.requests
    ]


def _event(event: signals_pb2.Event, field: str) -> Event:
    if event.item_type not in ITEM_TYPE_NAMES:
        raise InvalidRequest(f"{field}.item_type", event.item_type, f"one of {list(ITEM_TYPE_NAMES)}")
    for name in ("action", "surface"):
        if not getattr(event, name):
            raise InvalidRequest(f"{field}.{name}", "", "a name that is not empty")
        _check_length(getattr(event, name), f"{field}.{name}", MAX_NAME_CHARS)
    is_query = event.item_type == ITEM_TYPE_NAMES[ItemType.SEARCH_QUERY]
    if is_query != (event.action == SEARCH_ACTION):
        allowed = SEARCH_ACTION if is_query else f"any but {SEARCH_ACTION}, which belongs to search queries"
        raise InvalidRequest(f"{field}.action", event.action, allowed)
    _check_length(event.text, f"{field}.text", MAX_TEXT_CHARS)
    if not FIRST_TIMESTAMP_MS <= event.timestamp_ms < LAST_TIMESTAMP_MS:
        allowed = f"Unix milliseconds from {FIRST_TIMESTAMP_MS} to {LAST_TIMESTAMP_MS}"
        raise InvalidRequest(f"{field}.timestamp_ms", event.timestamp_ms, allowed)
    item_type = ItemType.SEARCH_QUERY if is_query else ItemType.PIN
    item_id = _query_id(event, field) if is_query else event.item_id
    return Event(
        event.user_id, item_id, item_type, event.action, event.surface, event.timestamp_ms, event.event_id, event.text
    )


def _query_id(event: signals_pb2.Event, field: str) -> int:
    if not normalize_text(event.text):
        raise InvalidRequest(f"{field}.text", event.text, "the words of the search query")
    item_id = query_item_id(event.text)
    if event.item_id not in (0, item_id):
        raise InvalidRequest(f"{field}.item_id", event.item_id, f"0 or the hash of the text, {item_id}")
    return item_id


def _check_length(text: str, field: str, most: int) -> None:
    if len(text) > most:
        raise InvalidRequest(field, f"{text[:20]}...", f"at most {most} characters")
