"""First stage of the serving path: the history of a request's user, ready for the model (paper, section 4.4.1).

All users of a call go through each step together. Letters: U users, R rows of all of them, T <= model.max_history rows
of one, D_sem content, S seen items.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pinrec_core.errors import Unavailable
from pinrec_core.messages import FetchSignalsInput, Signals, Status
from pinrec_core.release import ItemTable, Release
from pinrec_core.schema import MAX_SEEN_ITEMS, SEARCH_ACTION, ItemType, Vocabulary
from pinrec_core.signals.batch_view import BatchView
from pinrec_core.signals.empty import empty_signals
from pinrec_core.signals.item_rows import ItemRows
from pinrec_core.signals.merge import HistoryRows, OwnedRows, concatenate, history_rows, merge_users, take
from pinrec_core.signals.query_content import QueryContent
from pinrec_core.signals.realtime import HistoryStore, StoredEvents
from pinrec_core.signals.realtime.rows import no_events
from pinrec_core.text_encoder import normalize_text, query_item_id

DEFAULT_OVERLAP_MS = 24 * 3_600_000
"""How far before the watermark realtime events are still read: a day for events that missed the daily log."""


class Views(Protocol):
    """Where the batch view of the day comes from."""

    def current(self) -> BatchView:
        """The newest whole one, at once."""
        ...


@dataclass(frozen=True)
class FixedView:
    """One batch view for good."""

    view: BatchView

    def current(self) -> BatchView:
        """See `Views`."""
        return self.view


class FreshContent(Protocol):
    """Content rows of items that are newer than the release (`items/fresh.py`)."""

    @property
    def knows_any(self) -> bool:
        """Whether there is anything to ask for."""
        ...

    def content_of(
        self, item_ids: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int8], NDArray[np.float32]]:
        """Of n ids: known bool [n], content int8 [n, D_sem], scale float32 [n]."""
        ...


class SignalFetcher:
    """Batch view + realtime view of a release's users, joined with the release's content rows. Thread-safe.

    Actions and surfaces that the release's vocabulary lacks get code 0. An item of which neither the release nor
    `fresh_items` knows has a zero content row of scale 0 (a pin still has its hashed id embedding), except a search
    query whose text is known: the release's text encoder makes its content. While the realtime view cannot be read, the
    batch view answers alone, marked `Status.REALTIME_UNAVAILABLE`.
    """

    def __init__(
        self,
        release: Release,
        views: Views,
        store: HistoryStore,
        fresh_items: FreshContent | None = None,
        overlap_ms: int = DEFAULT_OVERLAP_MS,
    ) -> None:
        self.release = release
        self._views = views
        self._store = store
        self._fresh_items = fresh_items
        self._overlap_ms = overlap_ms
        self._max_history = release.config.model.max_history
        self._items = _unmapped(release.items)
        self._item_rows = ItemRows(self._items.ids)
        self._query_content = QueryContent(release.text_encoder)
        self._coded = _CodedView.of(views.current(), release.vocabulary)

    def run(self, batch: Sequence[FetchSignalsInput]) -> list[Signals]:
        """Signals of each request, in order. `deadline_ns` counts `remaining_ms` from this call's start."""
        if not batch:
            return []
        arrival_ns = time.monotonic_ns()
        view = self._current_view()
        user_ids = [request.user_id for request in batch]
        realtime, status = self._read_realtime(user_ids, max(view.batch_view.watermark_ms - self._overlap_ms, 0))
        merged, is_realtime = merge_users(view.rows_of(user_ids), self._realtime_rows(realtime))
        histories = self._with_queries(merged, is_realtime, batch)
        content, scale = self._content(histories.rows, lambda: _texts(realtime, batch), view.batch_view)
        deadlines_ns = [arrival_ns + request.remaining_ms * 1_000_000 for request in batch]
        return _signals(histories, content, scale, status, deadlines_ns)

    def _current_view(self) -> _CodedView:
        """The view of this moment: read once a call, so that a call never mixes two."""
        view, coded = self._views.current(), self._coded
        if coded.batch_view is not view:
            self._coded = coded = _CodedView.of(view, self.release.vocabulary)
        return coded

    def _read_realtime(self, user_ids: Sequence[int], since_ms: int) -> tuple[StoredEvents, Status]:
        """What the batch view may lack."""
        try:
            return self._store.read(user_ids, since_ms, MAX_SEEN_ITEMS + self._max_history), Status.OK
        except Unavailable:
            return no_events(len(user_ids)), Status.REALTIME_UNAVAILABLE

    def _realtime_rows(self, events: StoredEvents) -> OwnedRows:
        """Events in the release's codes, each user's oldest first."""
        vocabulary = self.release.vocabulary
        actions = _codes([words.action for words in events.distinct_wordings], vocabulary.action_code)
        surfaces = _codes([words.surface for words in events.distinct_wordings], vocabulary.surface_code)
        newest_first = HistoryRows(
            events.item_ids,
            events.item_types,
            actions[events.wordings],
            surfaces[events.wordings],
            events.timestamps_ms,
            events.event_ids,
        )
        return OwnedRows(
            take(newest_first, slice(None, None, -1)), _owners(events.offsets[1:] - events.offsets[:-1])[::-1]
        )

    def _with_queries(
        self, merged: OwnedRows, is_realtime: NDArray[np.bool_], batch: Sequence[FetchSignalsInput]
    ) -> _Histories:
        """The newest rows of each user that fit, and behind them the request's own search query if it has words."""
        asked = [place for place, request in enumerate(batch) if normalize_text(request.search_query)]
        room = np.full(len(batch), self._max_history)
        room[asked] -= 1
        lengths = np.bincount(merged.owners, minlength=len(batch))
        rows, owners = merged
        if (lengths > room).any():
            age = np.cumsum(lengths)[owners] - np.arange(len(owners))  # 1 = a user's newest
            kept = np.flatnonzero(age <= room[owners])
            rows, owners, is_realtime = take(rows, kept), owners[kept], is_realtime[kept]
        num_realtime = np.bincount(owners[is_realtime], minlength=len(batch))
        if asked:
            rows = concatenate(rows, self._query_rows([batch[place] for place in asked]))
            owners = np.concatenate([owners, np.array(asked, np.uint16)])
            order = np.argsort(owners, kind="stable")
            rows, owners = take(rows, order), owners[order]
        is_pin = merged.rows.item_types == ItemType.PIN
        return _Histories(
            rows=rows,
            lengths=np.bincount(owners, minlength=len(batch)).tolist(),
            num_stored=np.minimum(lengths, room).tolist(),
            num_realtime=num_realtime.tolist(),
            seen=merged.rows.item_ids[is_pin],
            num_seen=np.bincount(merged.owners[is_pin], minlength=len(batch)).tolist(),
        )

    def _query_rows(self, requests: Sequence[FetchSignalsInput]) -> HistoryRows:
        """The requests' own search queries as rows; they are no stored events and have no id."""
        action = self.release.vocabulary.action_code(SEARCH_ACTION)
        return history_rows(
            [
                (query_item_id(r.search_query), ItemType.SEARCH_QUERY, action, r.surface, r.request_time_ms, 0)
                for r in requests
            ]
        )

    def _content(
        self, rows: HistoryRows, known_texts: Callable[[], dict[int, str]], batch_view: BatchView
    ) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Content int8 [R, D_sem] and scale float32 [R] of all rows."""
        places = self._item_rows.of(rows.item_ids)
        content = np.take(self._items.content, places, axis=0, mode="clip")
        scale = np.take(self._items.scale, places, mode="clip")
        unknown = places < 0
        if self._fresh_items is not None and self._fresh_items.knows_any:
            fresh, fresh_content, fresh_scale = self._fresh_items.content_of(rows.item_ids)
            content[fresh], scale[fresh] = fresh_content[fresh], fresh_scale[fresh]
            unknown &= ~fresh
        if unknown.any():
            content[unknown], scale[unknown] = 0, 0
            queries = np.flatnonzero(unknown & (rows.item_types == ItemType.SEARCH_QUERY))
            if len(queries):
                texts, asked = known_texts(), rows.item_ids[queries].tolist()
                words = [texts.get(item_id) or batch_view.search_query(item_id) for item_id in asked]
                content[queries], scale[queries] = self._query_content.of(words)
        return content, scale


@dataclass(frozen=True)
class _CodedView:
    """A batch view and the release's codes of its names."""

    batch_view: BatchView
    actions: NDArray[np.int32]
    surfaces: NDArray[np.int32]

    @classmethod
    def of(cls, view: BatchView, vocabulary: Vocabulary) -> _CodedView:
        return cls(view, _codes(view.actions, vocabulary.action_code), _codes(view.surfaces, vocabulary.surface_code))

    def rows_of(self, user_ids: Sequence[int]) -> OwnedRows:
        """Every row of each user in the release's codes."""
        starts, ends = self.batch_view.spans(np.array(user_ids, dtype=np.int64))
        spans = [slice(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
        columns = self.batch_view.columns
        if len(spans) == 1:
            rows = take(columns, spans[0])  # views of the mapped arrays, not copies
        else:
            rows = HistoryRows._make(np.concatenate([column[span] for span in spans]) for column in columns)
        coded = rows._replace(actions=self.actions[rows.actions], surfaces=self.surfaces[rows.surfaces])
        return OwnedRows(coded, _owners(ends - starts))


@dataclass(frozen=True)
class _Histories:
    """Rows of all users as the model will see them, one user after another, and what is told beside them."""

    rows: HistoryRows
    """Stored events, then the request's search query if there is one."""
    lengths: list[int]
    num_stored: list[int]
    num_realtime: list[int]
    seen: NDArray[np.int64]
    """Pins before truncation, one user after another, `num_seen` of each."""
    num_seen: list[int]


def _signals(
    histories: _Histories,
    content: NDArray[np.int8],
    scale: NDArray[np.float32],
    status: Status,
    deadlines_ns: Sequence[int],
) -> list[Signals]:
    """Each user's part of everything."""
    rows = histories.rows
    signals = []
    end = seen_end = 0
    for user, deadline_ns in enumerate(deadlines_ns):
        span = slice(end, end := end + histories.lengths[user])
        seen = histories.seen[seen_end : (seen_end := seen_end + histories.num_seen[user])][-MAX_SEEN_ITEMS:]
        num_stored = histories.num_stored[user]
        one_status = int(status if num_stored else status | Status.COLD_START)
        if span.start == span.stop:
            signals.append(empty_signals(content.shape[1], Status(one_status), deadline_ns))
            continue
        signals.append(
            Signals(
                content=content[span],
                content_scale=scale[span],
                item_ids=rows.item_ids[span],
                item_types=rows.item_types[span],
                actions=rows.actions[span],
                surfaces=rows.surfaces[span],
                timestamps_ms=rows.timestamps_ms[span],
                sequence_length=histories.lengths[user],
                history_length=num_stored,
                seen_item_ids=seen if len(seen) else _NOTHING_SEEN,
                realtime_events=histories.num_realtime[user],
                status=one_status,
                deadline_ns=deadline_ns,
            )
        )
    return signals


_NOTHING_SEEN = np.full(1, -1, dtype=np.int64)


def _texts(events: StoredEvents, batch: Sequence[FetchSignalsInput]) -> dict[int, str]:
    """Search queries of the realtime view and the requests, by item id."""
    is_query = events.item_types == ItemType.SEARCH_QUERY
    queries = zip(events.item_ids[is_query].tolist(), events.wordings[is_query].tolist(), strict=True)
    texts = {item_id: events.distinct_wordings[wording].text for item_id, wording in queries}
    return texts | {query_item_id(request.search_query): request.search_query for request in batch}


def _owners(lengths: NDArray[np.int64]) -> NDArray[np.uint16]:
    """Of rows that lie user by user: whose each is."""
    return np.repeat(np.arange(len(lengths), dtype=np.uint16), lengths)


def _codes(names: Sequence[str], code_of: Callable[[str], int]) -> NDArray[np.int32]:
    """int32 [len(names)]: the release's code of each name."""
    return np.array([code_of(name) for name in names], dtype=np.int32)


def _unmapped(items: ItemTable) -> ItemTable:
    """The same pages as plain arrays, whose indexing is faster than memmap's."""
    return ItemTable(np.asarray(items.ids), np.asarray(items.types), np.asarray(items.content), np.asarray(items.scale))
