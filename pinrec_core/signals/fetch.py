"""First stage of the serving path: the history of a request's user, ready for the model (paper, section 4.4.1).

Letters: n rows of one user, R rows of a whole batch of users, T <= model.max_history, D_sem content, S seen items.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pinrec_core.messages import FetchSignalsInput, Signals, Status
from pinrec_core.release import ItemTable, Release
from pinrec_core.schema import MAX_SEEN_ITEMS, SEARCH_ACTION, ItemType
from pinrec_core.signals.batch_view import BatchView
from pinrec_core.signals.empty import empty_signals
from pinrec_core.signals.events import Event
from pinrec_core.signals.merge import HistoryRows, concatenate, history_rows, merge, newest, seen_items
from pinrec_core.signals.query_content import QueryContent
from pinrec_core.signals.realtime import HistoryStore
from pinrec_core.text_encoder import normalize_text, query_item_id

DEFAULT_OVERLAP_MS = 24 * 3_600_000
"""How far before the watermark realtime events are still read: a day for events that missed the daily log."""


@dataclass(frozen=True)
class _History:
    """One user's rows as the model will see them, and what is told beside them."""

    rows: HistoryRows
    """Stored events, then the request's search query if there is one: T rows."""
    num_stored: int
    num_realtime: int
    seen_item_ids: NDArray[np.int64]
    texts: dict[int, str]
    """Search queries of the request and the realtime view, by item id."""


class SignalFetcher:
    """Batch view + realtime view of a release's users, joined with the release's content rows. Thread-safe.

    Actions and surfaces that the release's vocabulary lacks get code 0. An item that the release does not know has a
    zero content row of scale 0 (a pin still has its hashed id embedding), except a search query whose text is known:
    the release's text encoder makes its content.
    """

    def __init__(
        self,
        release: Release,
        batch_view: BatchView | None,
        realtime_view: HistoryStore,
        overlap_ms: int = DEFAULT_OVERLAP_MS,
    ) -> None:
        self.release = release
        self._batch_view = batch_view if batch_view is not None else BatchView.empty()
        self._realtime_view = realtime_view
        self._since_ms = max(self._batch_view.watermark_ms - overlap_ms, 0)
        self._max_history = release.config.model.max_history
        vocabulary = release.vocabulary
        self._action_codes = _codes(self._batch_view.actions, vocabulary.action_code)
        self._surface_codes = _codes(self._batch_view.surfaces, vocabulary.surface_code)
        self._items = _unmapped(release.items)
        self._query_content = QueryContent(release.text_encoder)

    def run(self, batch: Sequence[FetchSignalsInput]) -> list[Signals]:
        """Signals of each request, in order. `deadline_ns` counts `remaining_ms` from this call's start."""
        if not batch:
            return []
        arrival_ns = time.monotonic_ns()
        limit = MAX_SEEN_ITEMS + self._max_history
        events = self._realtime_view.read([request.user_id for request in batch], self._since_ms, limit)
        histories = [self._history(request, newer) for request, newer in zip(batch, events, strict=True)]
        contents = self._join_content(histories)
        return [
            _signals(history, content, scale, arrival_ns + request.remaining_ms * 1_000_000)
            for history, (content, scale), request in zip(histories, contents, batch, strict=True)
        ]

    def _history(self, request: FetchSignalsInput, events: Sequence[Event]) -> _History:
        stored = self._batch_view.read(request.user_id)
        stored = stored._replace(
            actions=self._action_codes[stored.actions], surfaces=self._surface_codes[stored.surfaces]
        )
        merged, is_realtime = merge(stored, self._realtime_rows(events))
        texts = {event.item_id: event.text for event in events if event.text}
        query = request.search_query if normalize_text(request.search_query) else ""
        kept = newest(merged, self._max_history - bool(query))
        num_stored = len(kept.item_ids)
        if query:
            texts[query_item_id(query)] = query
            kept = concatenate(kept, self._query_row(query, request))
        num_realtime = int(is_realtime[len(is_realtime) - num_stored :].sum())
        return _History(kept, num_stored, num_realtime, seen_items(merged), texts)

    def _realtime_rows(self, events: Sequence[Event]) -> HistoryRows:
        """Events in the release's codes, oldest first (ties by event id)."""
        action_code, surface_code = self.release.vocabulary.action_code, self.release.vocabulary.surface_code
        ordered = sorted(events, key=lambda event: (event.timestamp_ms, event.event_id))
        return history_rows(
            [
                (e.item_id, e.item_type, action_code(e.action), surface_code(e.surface), e.timestamp_ms, e.event_id)
                for e in ordered
            ]
        )

    def _query_row(self, query: str, request: FetchSignalsInput) -> HistoryRows:
        """The request's own search query as a row; it is no stored event and has no id."""
        action = self.release.vocabulary.action_code(SEARCH_ACTION)
        row = (query_item_id(query), ItemType.SEARCH_QUERY, action, request.surface, request.request_time_ms, 0)
        return history_rows([row])

    def _join_content(self, histories: Sequence[_History]) -> list[tuple[NDArray[np.int8], NDArray[np.float32]]]:
        """Content int8 [T, D_sem] and scale float32 [T] of each history, looked up for all users at once."""
        ends = np.cumsum([len(history.rows.item_ids) for history in histories])
        item_ids = np.concatenate([history.rows.item_ids for history in histories])  # [R]
        places = self._items.rows(item_ids)
        content = np.take(self._items.content, places, axis=0, mode="clip")
        scale = np.take(self._items.scale, places, mode="clip")
        unknown = places < 0
        if unknown.any():
            content[unknown], scale[unknown] = 0, 0
            item_types = np.concatenate([history.rows.item_types for history in histories])
            queries = np.flatnonzero(unknown & (item_types == ItemType.SEARCH_QUERY))
            if len(queries):
                texts = self._texts(histories, np.searchsorted(ends, queries, side="right"), item_ids[queries])
                content[queries], scale[queries] = self._query_content.of(texts)
        return list(zip(np.split(content, ends[:-1]), np.split(scale, ends[:-1]), strict=True))

    def _texts(
        self, histories: Sequence[_History], owners: NDArray[np.int64], item_ids: NDArray[np.int64]
    ) -> list[str]:
        """Text of each search query, "" where nobody kept it."""
        return [
            histories[owner].texts.get(item_id) or self._batch_view.search_query(item_id)
            for owner, item_id in zip(owners.tolist(), item_ids.tolist(), strict=True)
        ]


def _signals(history: _History, content: NDArray[np.int8], scale: NDArray[np.float32], deadline_ns: int) -> Signals:
    rows = history.rows
    if not len(rows.item_ids):
        return empty_signals(content.shape[1], Status.COLD_START, deadline_ns)
    return Signals(
        content=content,
        content_scale=scale,
        item_ids=rows.item_ids,
        item_types=rows.item_types,
        actions=rows.actions,
        surfaces=rows.surfaces,
        timestamps_ms=rows.timestamps_ms,
        sequence_length=len(rows.item_ids),
        history_length=history.num_stored,
        seen_item_ids=history.seen_item_ids,
        realtime_events=history.num_realtime,
        status=int(Status.OK if history.num_stored else Status.COLD_START),
        deadline_ns=deadline_ns,
    )


def _codes(names: Sequence[str], code_of: Callable[[str], int]) -> NDArray[np.int32]:
    """int32 [len(names)]: the release's code of each of the batch view's names."""
    return np.array([code_of(name) for name in names], dtype=np.int32)


def _unmapped(items: ItemTable) -> ItemTable:
    """The same pages as plain arrays, whose indexing is faster than memmap's."""
    return ItemTable(np.asarray(items.ids), np.asarray(items.types), np.asarray(items.content), np.asarray(items.scale))
