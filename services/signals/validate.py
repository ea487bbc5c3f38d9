"""What AppendEvents and GetHistories accept; the first wrong field is named with its value and what is allowed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache

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

MAX_AHEAD_MS = 24 * 3_600_000
"""How far ahead of this service's clock an event may be.

Clocks differ by minutes, and a wrong time zone by hours. What lies further ahead was stamped by a broken clock, or in
microseconds, and would be the newest event of its user's history for as long as the clock is wrong.
"""


def events_of(request: signals_pb2.AppendEventsRequest) -> list[Event]:
    """The events of a request. A search query gets the id of its text. Raises InvalidRequest."""
    if not 1 <= len(request.events) <= MAX_EVENTS:
        raise InvalidRequest("events", f"{len(request.events)} events", f"1 to {MAX_EVENTS}")
    made: list[Event] = []
    latest_ms = _latest_ms()
    try:
        for event in request.events:
            made.append(_event_of(event, latest_ms))
    except InvalidRequest as error:
        raise error.within(f"events[{len(made)}]") from None
    return made


def event_of(event: signals_pb2.Event) -> Event:
    """One event as it will be stored. Raises InvalidRequest."""
    return _event_of(event, _latest_ms())


def _latest_ms() -> int:
    return time.time_ns() // 1_000_000 + MAX_AHEAD_MS


def _event_of(event: signals_pb2.Event, latest_ms: int) -> Event:
    item_type, action, surface = _checked_names(event.item_type, event.action, event.surface)
    timestamp_ms, text = event.timestamp_ms, event.text
    if not FIRST_TIMESTAMP_MS <= timestamp_ms <= latest_ms:
        allowed = f"Unix milliseconds from {FIRST_TIMESTAMP_MS} to {latest_ms}, a day ahead of this service's clock"
        raise InvalidRequest("timestamp_ms", timestamp_ms, allowed)
    if text:
        _check_length(text, "text", MAX_TEXT_CHARS)
    item_id = _query_id(event) if item_type == ItemType.SEARCH_QUERY else event.item_id
    return Event(event.user_id, item_id, item_type, action, surface, timestamp_ms, event.event_id, text)


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


@lru_cache(maxsize=4_096)
def _checked_names(item_type: str, action: str, surface: str) -> tuple[ItemType, str, str]:
    """The three words of an event: few in a stream of millions, so each combination is checked once and kept."""
    if item_type not in ITEM_TYPE_NAMES:
        raise InvalidRequest("item_type", item_type, f"one of {list(ITEM_TYPE_NAMES)}")
    for field, name in (("action", action), ("surface", surface)):
        if not name:
            raise InvalidRequest(field, "", "a name that is not empty")
        _check_length(name, field, MAX_NAME_CHARS)
    is_query = item_type == ITEM_TYPE_NAMES[ItemType.SEARCH_QUERY]
    if is_query != (action == SEARCH_ACTION):
        allowed = SEARCH_ACTION if is_query else f"any but {SEARCH_ACTION}, which belongs to search queries"
        raise InvalidRequest("action", action, allowed)
    return (ItemType.SEARCH_QUERY if is_query else ItemType.PIN), action, surface


def _query_id(event: signals_pb2.Event) -> int:
    if not normalize_text(event.text):
        raise InvalidRequest("text", event.text, "the words of the search query")
    item_id = query_item_id(event.text)
    if event.item_id not in (0, item_id):
        raise InvalidRequest("item_id", event.item_id, f"0 or the hash of the text, {item_id}")
    return item_id


def _check_length(text: str, field: str, most: int) -> None:
    if len(text) > most:
        raise InvalidRequest(field, f"{text[:20]}...", f"at most {most} characters")
