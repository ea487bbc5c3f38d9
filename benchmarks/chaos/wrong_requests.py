"""Requests with one field or several that are extreme, and what the documentation says must be answered to each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from hypothesis import strategies as st

from pinrec_core.config import ServeConfig
from pinrec_core.schema import Vocabulary
from pinrec_core.text_encoder import normalize_text, query_item_id
from services.proto.candidates_pb2 import GetCandidatesRequest
from services.proto.signals_pb2 import AppendEventsRequest, Event, GetHistoriesRequest, HistoryRequest

OK, INVALID, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAVAILABLE
DAY_MS = 86_400_000
FIRST_USER = 30_000_000
"""Users of accepted events: nobody's whom another test looks at."""
_INT64 = st.integers(-(2**63), 2**63 - 1)
_TEXT = st.text(st.characters(codec="utf-8"), max_size=40)


def _long(length: int) -> st.SearchStrategy[str]:
    return st.sampled_from(["x" * length, "x" * (length + 1), "é" * length, "é" * (length + 1)])


def changed(
    message: type[Any], base: dict[str, Any], fields: dict[str, st.SearchStrategy[Any]]
) -> st.SearchStrategy[Any]:
    """`base` with one to three of `fields` drawn anew."""
    names = st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=3, unique=True)
    drawn = names.flatmap(lambda chosen: st.fixed_dictionaries({name: fields[name] for name in chosen}))
    return drawn.map(lambda changes: message(**{**base, **changes}))


def candidate_requests(vocabulary: Vocabulary) -> st.SearchStrategy[GetCandidatesRequest]:
    """Of GetCandidates."""
    outcomes = st.sampled_from([*vocabulary.outcomes, "", "Save", "save "]) | _TEXT
    weights = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 3.4e38, math.nan, math.inf])
    fields = {
        "user_id": _INT64,
        "surface": st.sampled_from(["", "Home", "home\0", *vocabulary.surfaces]) | _TEXT,
        "budget": st.dictionaries(outcomes, weights, max_size=4),
        "num_candidates": st.sampled_from([0, 1, 1_000, 1_001, 2**32 - 1]),
        "search_query": st.sampled_from([" ", "\n\t", "boots"]) | _long(512) | _TEXT,
        "exclude_item_ids": st.lists(_INT64, max_size=3) | st.sampled_from([[7] * 2_000, [7] * 2_001]),
        "request_id": _long(128) | _TEXT,
    }
    base = {
        "user_id": 1,
        "surface": vocabulary.surfaces[0],
        "budget": {vocabulary.outcomes[0]: 1.0},
        "num_candidates": 5,
    }
    return changed(GetCandidatesRequest, base, fields)


def candidates_code(vocabulary: Vocabulary, limits: ServeConfig) -> Callable[[GetCandidatesRequest], grpc.StatusCode]:
    """What GetCandidates must answer, by docs/ranking-client.md."""

    def code(request: GetCandidatesRequest) -> grpc.StatusCode:
        query = request.search_query.strip()
        weights = list(request.budget.values())
        fine = (
            request.surface in vocabulary.surfaces
            and set(request.budget) <= set(vocabulary.outcomes)
            and all(math.isfinite(weight) and weight >= 0 for weight in weights)
            and any(weight > 0 for weight in weights)
            and 1 <= request.num_candidates <= limits.max_candidates
            and len(query) <= 512
            and (not query or request.surface in vocabulary.search_surfaces)
            and len(request.exclude_item_ids) <= limits.max_excluded
            and len(request.request_id) <= 128
        )
        return OK if fine else INVALID

    return code


def append_requests() -> st.SearchStrategy[AppendEventsRequest]:
    """Of AppendEvents."""
    base = {"user_id": FIRST_USER, "item_id": 1, "item_type": "pin", "action": "save", "surface": "home"}
    fields = {
        "user_id": st.integers(FIRST_USER, FIRST_USER + 100),
        "item_id": _INT64,
        "item_type": st.sampled_from(["", "PIN", "search_query"]) | _TEXT,
        "action": st.sampled_from(["", "search"]) | _long(128) | _TEXT,
        "surface": st.just("") | _long(128) | _TEXT,
        "timestamp_ms": _INT64 | st.sampled_from([0, -1, 99_999_999_999, 100_000_000_000, 2**63 - 1]),
        "event_id": st.sampled_from([0, 1, 2**64 - 1]),
        "text": st.sampled_from(["!?", " "]) | _long(512) | _TEXT,
    }
    events = changed(Event, {**base, "timestamp_ms": int(time.time() * 1000) - DAY_MS}, fields)
    return st.lists(events, max_size=3).map(lambda several: AppendEventsRequest(events=several))


def append_code(request: AppendEventsRequest) -> grpc.StatusCode:
    """What AppendEvents must answer, by services/proto/signals.proto."""
    return OK if len(request.events) >= 1 and all(map(_is_fine, request.events)) else INVALID


def _is_fine(event: Event) -> bool:
    is_query = event.item_type == "search_query"
    words = normalize_text(event.text)
    return (
        event.item_type in ("pin", "search_query")
        and 1 <= len(event.action) <= 128
        and 1 <= len(event.surface) <= 128
        and (event.action == "search") == is_query
        and 100_000_000_000 <= event.timestamp_ms <= int(time.time() * 1000) + DAY_MS
        and len(event.text) <= 512
        and (not is_query or (bool(words) and event.item_id in (0, query_item_id(event.text))))
    )


def history_requests(open_release: int) -> st.SearchStrategy[GetHistoriesRequest]:
    """Of GetHistories."""
    fields = {
        "user_id": _INT64,
        "surface": st.sampled_from([-1, 0, 1, 3, 4, 2**31 - 1, -(2**31)]),
        "search_query": _long(512) | _TEXT,
        "request_time_ms": _INT64,
    }
    one = changed(HistoryRequest, {"user_id": 1, "surface": 1}, fields)
    several = st.lists(one, max_size=3) | st.sampled_from([[HistoryRequest()] * 256, [HistoryRequest()] * 257])
    releases = st.sampled_from([open_release] * 3 + [0, 77, 2**64 - 1])
    return st.builds(lambda number, requests: GetHistoriesRequest(release=number, requests=requests), releases, several)


def histories_code(open_release: int, surfaces: Sequence[str]) -> Callable[[GetHistoriesRequest], grpc.StatusCode]:
    """What GetHistories must answer while one release is open."""

    def code(request: GetHistoriesRequest) -> grpc.StatusCode:
        if request.release != open_release:
            return UNAVAILABLE
        fine = len(request.requests) <= 256 and all(
            0 <= one.surface <= len(surfaces) and len(one.search_query) <= 512 for one in request.requests
        )
        return OK if fine else INVALID

    return code
