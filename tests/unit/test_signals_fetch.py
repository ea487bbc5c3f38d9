import json
import time
from bisect import bisect_left

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinrec_core.codec import dequantize, quantize
from pinrec_core.config import config_from_dict
from pinrec_core.items.changes import ItemChanges
from pinrec_core.items.fresh import FreshItems
from pinrec_core.messages import FetchSignalsInput, Status
from pinrec_core.release import ItemTable, Release
from pinrec_core.schema import MAX_SEEN_ITEMS, ItemType, Vocabulary
from pinrec_core.signals.batch_view import BatchView
from pinrec_core.signals.compiled_view import ViewArrays
from pinrec_core.signals.empty import empty_signals
from pinrec_core.signals.events import Event, with_event_ids
from pinrec_core.signals.fetch import FixedView, SignalFetcher
from pinrec_core.signals.item_rows import ItemRows
from pinrec_core.signals.query_content import QueryContent
from pinrec_core.signals.realtime import MemoryHistoryStore, RocksHistoryStore
from pinrec_core.text_encoder import TextEncoder, query_item_id

HOME, SEARCH = 1, 2
"""Surface codes of the release."""
SAVE, CLICK, SEARCHED = 1, 2, 3
"""Action codes of the release."""
VOCABULARY = Vocabulary(("save", "click"), ("save", "click", "search"), ("home", "search"), ("search",))

T0 = 1_700_000_000_000
DAY = 86_400_000
USER, QUERIES_USER, NOBODY = 7, 8, 99
CAKE = query_item_id("chocolate cake")
KNOWN_QUERY = query_item_id("red bicycle")
LOG = [
    (USER, 10, "pin", "click", "home", T0 - 3 * DAY, None),
    (USER, 20, "pin", "save", "home", T0 - 2 * DAY, None),
    (USER, 30, "pin", "poke", "attic", T0, None),  # the vocabulary has neither
    (QUERIES_USER, CAKE, "search_query", "search", "search", T0 - 5, "Chocolate  CAKE"),
    (QUERIES_USER, KNOWN_QUERY, "search_query", "search", "search", T0 - 4, "red bicycle"),
    (QUERIES_USER, 999, "pin", "save", "home", T0 - 2, None),  # an item newer than the release
]
TEXTLESS = Event(QUERIES_USER, 4_040, ItemType.SEARCH_QUERY, "search", "search", T0 - 3)
"""A search query whose text nobody kept: a log must have it, an older store may not."""
CONTENT = np.array([[1, 0, 0, 0], [0, 2, 0, 0], [0, 0, -4, 0], [1, 2, 3, 4]], np.float32)


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder.fit(["chocolate cake", "red bicycle", "blue sky", "green kitchen"], dim=4)


@pytest.fixture(scope="module")
def release(tmp_path_factory, encoder):
    """Items 10, 20, 30 and one search query; histories of at most 4 events."""
    path = tmp_path_factory.mktemp("release")
    ids = np.array([10, 20, 30, KNOWN_QUERY], np.int64)
    order = np.argsort(ids)
    content, scale = quantize(CONTENT[order])
    types = np.array([0, 0, 0, 1], np.uint8)[order]
    ItemTable(ids[order], types, content, scale).save(path / "items")
    encoder.save(path / "text_encoder")
    return Release(path, 3, {}, config_from_dict({"model": {"max_history": 4}}), VOCABULARY)


def view_of(log, version=1):
    """A batch view of rows as in LOG, whose codes of names are its own."""
    rows = sorted(log, key=lambda row: (row[0], row[5]))
    events = [Event(*row[:2], ItemType[row[2].upper()], *row[3:6]) for row in rows]
    users, actions, surfaces = (sorted({row[column] for row in rows}) for column in (0, 3, 4))
    texts = {row[1]: row[6].encode() for row in rows if row[6]}
    bounds = [bisect_left(rows, user, key=lambda row: row[0]) for user in [*users, 2**63]]
    ids = sorted(texts)
    arrays = ViewArrays(
        user_ids=np.array(users, np.int64),
        starts=np.array(bounds[:-1], np.int64),
        ends=np.array(bounds[1:], np.int64),
        item_ids=np.array([event.item_id for event in events], np.int64),
        item_types=np.array([event.item_type for event in events], np.uint8),
        actions=np.array([actions.index(event.action) for event in events], np.int32),
        surfaces=np.array([surfaces.index(event.surface) for event in events], np.int32),
        timestamps_ms=np.array([event.timestamp_ms for event in events], np.int64),
        event_ids=np.array([event.event_id for event in with_event_ids(events)], np.uint64),
        text_ids=np.array(ids, np.int64),
        text_offsets=np.cumsum([0, *(len(texts[one]) for one in ids)]),
        text_bytes=np.frombuffer(b"".join(texts[one] for one in ids), np.uint8),
    )
    return BatchView(version, max(row[5] for row in rows), tuple(actions), tuple(surfaces), arrays)


@pytest.fixture(scope="module")
def views():
    return FixedView(view_of(LOG))


@pytest.fixture
def store():
    return MemoryHistoryStore()


@pytest.fixture
def fetcher(release, views, store):
    return SignalFetcher(release, views, store)


def ask(user_id, search_query="", surface=HOME, remaining_ms=1_000):
    return FetchSignalsInput(user_id, surface, search_query, T0 + DAY, 3, remaining_ms)


def saved(user_id, item_id, timestamp_ms, **changes):
    return Event(user_id, item_id, ItemType.PIN, "save", "home", timestamp_ms)._replace(**changes)


def test_a_history_of_the_batch_view_in_the_release_s_codes(fetcher):
    (signals,) = fetcher.run([ask(USER)])
    assert signals.item_ids.tolist() == [10, 20, 30]
    assert signals.actions.tolist() == [CLICK, SAVE, 0]
    assert signals.surfaces.tolist() == [HOME, HOME, 0]
    assert signals.item_types.tolist() == [0, 0, 0]
    assert signals.timestamps_ms.tolist() == [T0 - 3 * DAY, T0 - 2 * DAY, T0]
    assert dequantize(signals.content, signals.content_scale) == pytest.approx(CONTENT[:3], abs=0.02)
    assert signals.seen_item_ids.tolist() == [10, 20, 30]
    assert (signals.sequence_length, signals.history_length, signals.realtime_events) == (3, 3, 0)
    assert signals.status == Status.OK


def test_dtypes_are_the_contract_s(fetcher, store):
    store.append([saved(USER, 10, T0 + 1)])
    for request in (ask(USER), ask(USER, "cake"), ask(NOBODY)):
        (signals,) = fetcher.run([request])
        assert signals.content.dtype == np.int8
        assert signals.content_scale.dtype == np.float32
        assert signals.item_ids.dtype == signals.timestamps_ms.dtype == signals.seen_item_ids.dtype == np.int64
        assert signals.item_types.dtype == np.uint8
        assert signals.actions.dtype == signals.surfaces.dtype == np.int32
        assert all(type(signals.__dict__[name]) is int for name in ("sequence_length", "history_length", "status"))
        assert type(signals.realtime_events) is int


def test_an_appended_event_is_in_the_next_history(fetcher, store):
    store.append([saved(USER, 20, T0 + 5, action="click", surface="search")])
    (signals,) = fetcher.run([ask(USER)])
    assert signals.item_ids.tolist() == [10, 20, 30, 20]
    assert (signals.actions[-1], signals.surfaces[-1]) == (CLICK, SEARCH)
    assert (signals.history_length, signals.realtime_events) == (4, 1)
    assert np.array_equal(signals.content[3], signals.content[1])


def test_an_event_in_both_views_counts_once(fetcher, store):
    store.append([saved(USER, 30, T0, action="poke", surface="attic"), saved(USER, 20, T0 + 5)])
    (signals,) = fetcher.run([ask(USER)])
    assert signals.item_ids.tolist() == [10, 20, 30, 20]
    assert signals.realtime_events == 1


def test_late_events_within_the_overlap_are_found_and_older_ones_are_the_batch_view_s(release, views, store):
    store.append([saved(USER, 11, T0 - 1_000), saved(USER, 12, T0 - 1_001)])
    (signals,) = SignalFetcher(release, views, store, overlap_ms=1_000).run([ask(USER)])
    assert signals.item_ids.tolist() == [10, 20, 11, 30]
    assert signals.realtime_events == 1


def test_truncation_keeps_the_newest_and_seen_items_come_from_before_it(fetcher, store):
    store.append([saved(USER, 40 + i, T0 + 1 + i) for i in range(3)])
    (signals,) = fetcher.run([ask(USER)])
    assert signals.item_ids.tolist() == [30, 40, 41, 42]
    assert signals.seen_item_ids.tolist() == [10, 20, 30, 40, 41, 42]
    assert (signals.history_length, signals.realtime_events) == (4, 3)


def test_the_request_s_search_query_comes_last_and_is_not_stored(fetcher, store):
    store.append([saved(USER, 40, T0 + 1)])
    with_query, without = fetcher.run([ask(USER, "Red   Bicycle", SEARCH), ask(USER)])
    assert with_query.item_ids.tolist() == [20, 30, 40, KNOWN_QUERY]
    assert with_query.item_types.tolist() == [0, 0, 0, ItemType.SEARCH_QUERY]
    assert (with_query.actions[-1], with_query.surfaces[-1]) == (SEARCHED, SEARCH)
    assert with_query.timestamps_ms[-1] == T0 + DAY
    assert (with_query.sequence_length, with_query.history_length, with_query.realtime_events) == (4, 3, 1)
    assert with_query.seen_item_ids.tolist() == [10, 20, 30, 40]
    assert dequantize(with_query.content, with_query.content_scale)[-1] == pytest.approx(CONTENT[3], abs=0.02)
    assert without.item_ids.tolist() == [10, 20, 30, 40]


def test_a_search_query_without_words_is_none(fetcher):
    (signals,) = fetcher.run([ask(USER, " ?! ")])
    assert signals.item_ids.tolist() == [10, 20, 30]


def test_content_of_search_queries_that_the_release_lacks_comes_from_its_text_encoder(fetcher, store, encoder):
    blue = query_item_id("blue sky")
    typed = Event(QUERIES_USER, blue, ItemType.SEARCH_QUERY, "search", "search", T0 + 1, text="Blue sky")
    store.append([TEXTLESS, typed])
    for _ in range(2):  # the second time from memory
        (signals,) = fetcher.run([ask(QUERIES_USER, "green kitchen", SEARCH)])
        content, scale = quantize(encoder.encode(["Blue sky", "green kitchen"]))
        assert signals.item_ids.tolist() == [4_040, 999, blue, query_item_id("green kitchen")]
        assert np.array_equal(signals.content[2:], content)
        assert np.array_equal(signals.content_scale[2:], scale)
        assert not signals.content[:2].any()  # no text, and a pin that the release does not know
        assert not signals.content_scale[:2].any()


def test_texts_of_logged_search_queries_come_from_the_batch_view(fetcher, store, encoder):
    store.append([TEXTLESS])
    (signals,) = fetcher.run([ask(QUERIES_USER)])
    content, scale = quantize(encoder.encode(["chocolate cake"]))
    assert signals.item_ids.tolist() == [CAKE, KNOWN_QUERY, 4_040, 999]
    assert np.array_equal(signals.content[0], content[0])
    assert signals.content_scale[0] == scale[0]
    assert dequantize(signals.content, signals.content_scale)[1] == pytest.approx(CONTENT[3], abs=0.02)
    assert signals.seen_item_ids.tolist() == [999]


def test_a_user_whom_nobody_has_seen_gets_one_void_row(fetcher):
    (signals,) = fetcher.run([ask(NOBODY)])
    assert signals.content.shape == (1, 4)
    assert not signals.content.any()
    assert signals.item_ids.tolist() == [0]
    assert signals.seen_item_ids.tolist() == [-1]
    assert (signals.sequence_length, signals.history_length, signals.realtime_events) == (0, 0, 0)
    assert signals.status == Status.COLD_START


def test_a_search_query_alone_is_still_a_cold_start(fetcher):
    (signals,) = fetcher.run([ask(NOBODY, "red bicycle", SEARCH)])
    assert signals.item_ids.tolist() == [KNOWN_QUERY]
    assert (signals.sequence_length, signals.history_length) == (1, 0)
    assert signals.status == Status.COLD_START


def test_a_batch_equals_its_requests_alone(fetcher, store):
    store.append([saved(USER, 20, T0 + 5), saved(QUERIES_USER, 10, T0 + 6)])
    requests = [ask(USER), ask(NOBODY), ask(QUERIES_USER, "blue sky"), ask(NOBODY, "cake"), ask(USER, "cake")]
    for request, together in zip(requests, fetcher.run(requests), strict=True):
        (alone,) = fetcher.run([request])
        for name, value in alone.__dict__.items():
            if name != "deadline_ns":
                assert np.array_equal(value, together.__dict__[name]), name
    assert fetcher.run([]) == []


def test_the_deadline_counts_from_arrival(fetcher):
    before = time.monotonic_ns()
    short, long = fetcher.run([ask(USER, remaining_ms=10), ask(USER, remaining_ms=1_000)])
    assert before + 10_000_000 <= short.deadline_ns <= time.monotonic_ns() + 10_000_000
    assert long.deadline_ns - short.deadline_ns == 990_000_000


def test_without_a_batch_view_every_realtime_event_counts(release, store):
    store.append([saved(USER, 10, 1), saved(USER, 20, T0)])
    (signals,) = SignalFetcher(release, FixedView(BatchView.empty()), store).run([ask(USER)])
    assert signals.item_ids.tolist() == [10, 20]
    assert signals.realtime_events == 2


def test_a_history_of_one_position_gives_way_to_the_search_query(release, views, store):
    config = config_from_dict({"model": {"max_history": 1}})
    short = Release(release.path, 3, {}, config, VOCABULARY)
    (signals,) = SignalFetcher(short, views, store).run([ask(USER, "red bicycle", SEARCH)])
    assert signals.item_ids.tolist() == [KNOWN_QUERY]
    assert (signals.history_length, signals.realtime_events) == (0, 0)
    assert signals.seen_item_ids.tolist() == [10, 20, 30]


def test_degraded_signals_are_void():
    signals = empty_signals(4, Status.COLD_START | Status.SIGNALS_UNAVAILABLE, 5)
    assert (signals.status, signals.deadline_ns, signals.sequence_length) == (3, 5, 0)
    assert signals.content.shape == (1, 4)


def test_query_content_is_the_encoder_s_in_any_batch(encoder):
    content = QueryContent(encoder)
    first = content.of(["red bicycle"])
    codes, scale = content.of(["blue sky", "red bicycle", "", "blue sky"])
    expected_codes, expected_scale = quantize(encoder.encode(["blue sky", "red bicycle", "", "blue sky"]))
    assert np.array_equal(codes, expected_codes)
    assert np.array_equal(scale, expected_scale)
    assert np.array_equal(codes[1], first[0][0])


def test_query_content_forgets_the_least_recently_used(encoder, monkeypatch):
    monkeypatch.setattr("pinrec_core.signals.query_content._KEPT_TEXTS", 2)
    encoded = []
    monkeypatch.setattr(TextEncoder, "encode", lambda self, texts: encoded.extend(texts) or np.ones((len(texts), 4)))
    content = QueryContent(encoder)
    for text in ("a", "b", "a", "c", "a", "b"):
        content.of([text])
    assert encoded == ["a", "b", "c", "b"]


def test_the_vocabulary_is_the_release_s_own(release, views, store):
    other = Vocabulary.from_dict(json.loads(json.dumps({**VOCABULARY.to_dict(), "actions": ["poke", "save"]})))
    view = SignalFetcher(Release(release.path, 4, {}, release.config, other), views, store)
    (signals,) = view.run([ask(USER)])
    assert signals.actions.tolist() == [0, 2, 1]


class Swapped:
    """Views whose current one a test changes."""

    def __init__(self, view):
        self.view = view

    def current(self):
        return self.view


def test_a_new_batch_view_is_in_the_next_call(release, store):
    followed = Swapped(BatchView.empty())
    fetcher = SignalFetcher(release, followed, store)
    store.append([saved(USER, 20, T0 + 5)])
    assert fetcher.run([ask(USER)])[0].item_ids.tolist() == [20]
    followed.view = view_of(LOG)
    (signals,) = fetcher.run([ask(USER)])
    assert signals.item_ids.tolist() == [10, 20, 30, 20]
    assert signals.actions.tolist() == [CLICK, SAVE, 0, SAVE]
    followed.view = view_of([*LOG, (USER, 20, "pin", "save", "home", T0 + 5, None)], version=2)
    (signals,) = fetcher.run([ask(USER)])
    assert signals.item_ids.tolist() == [10, 20, 30, 20]
    assert (signals.history_length, signals.realtime_events) == (4, 0)


def test_what_a_newer_view_has_long_held_is_read_from_it_alone(release, views, store):
    store.append([saved(USER, 40, T0 - 2 * DAY + 1)])
    assert SignalFetcher(release, FixedView(BatchView.empty()), store).run([ask(USER)])[0].item_ids.tolist() == [40]
    assert SignalFetcher(release, views, store).run([ask(USER)])[0].item_ids.tolist() == [10, 20, 30]


def test_events_of_equal_time_are_in_the_order_of_their_ids(fetcher, store):
    batch_id = with_event_ids([Event(USER, 30, ItemType.PIN, "poke", "attic", T0)])[0].event_id
    store.append([saved(USER, 41, T0, event_id=batch_id - 1), saved(USER, 42, T0, event_id=batch_id + 1)])
    (signals,) = fetcher.run([ask(USER)])
    assert signals.item_ids.tolist() == [20, 41, 30, 42]


def test_a_realtime_view_that_cannot_be_read_leaves_the_batch_view_s_history(release, views, tmp_path):
    store = RocksHistoryStore(tmp_path / "realtime")
    fetcher = SignalFetcher(release, views, store)
    store.append([saved(USER, 20, T0 + 5)])
    assert fetcher.run([ask(USER)])[0].status == Status.OK
    store.close()
    known, nobody = fetcher.run([ask(USER), ask(NOBODY)])
    assert known.item_ids.tolist() == [10, 20, 30]
    assert (known.history_length, known.realtime_events) == (3, 0)
    assert known.status == Status.REALTIME_UNAVAILABLE
    assert nobody.status == Status.REALTIME_UNAVAILABLE | Status.COLD_START


def test_content_of_items_newer_than_the_release_is_the_fresh_items_(release, views, store):
    fresh = FreshItems(content_dim=4)
    fetcher = SignalFetcher(release, views, store, fresh)
    store.append([saved(USER, 40, T0 + 1), saved(USER, 41, T0 + 2)])
    before = fetcher.run([ask(USER)])[0]
    assert before.content_scale.tolist()[2:] == [0, 0]
    content, scale = quantize(np.array([[0, 0, 1, 1], [4, 0, 0, 4]], np.float32))
    ids, none_deleted = np.array([30, 40], np.int64), np.zeros(2, dtype=bool)
    fresh.apply(ItemChanges(ids, none_deleted, np.zeros((2, 1), np.float32), content, scale))
    after = fetcher.run([ask(USER)])[0]
    assert after.item_ids.tolist() == [20, 30, 40, 41]
    assert np.array_equal(after.content[1:3], content), "a replaced item and an added one"
    assert np.array_equal(after.content_scale[1:3], scale)
    assert np.array_equal(after.content[0], before.content[0])
    assert after.content_scale[3] == 0


def test_seen_items_are_the_newest_pins_up_to_a_limit(release, store):
    fetcher = SignalFetcher(release, FixedView(BatchView.empty()), store)
    store.append([saved(USER, item_id, T0 + item_id) for item_id in range(MAX_SEEN_ITEMS + 3)])
    (signals,) = fetcher.run([ask(USER)])
    assert signals.seen_item_ids.tolist() == list(range(3, MAX_SEEN_ITEMS + 3))
    assert signals.item_ids.tolist() == list(range(MAX_SEEN_ITEMS - 1, MAX_SEEN_ITEMS + 3))


@given(st.lists(st.integers(-(2**63), 2**63 - 1), unique=True), st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_item_rows_are_those_of_the_table(ids, others):
    check_rows(np.array(sorted(ids), np.int64), np.array([*others, *ids], np.int64))


@pytest.mark.parametrize("step", [1, 7, 2**16, 2**40])
def test_item_rows_of_ids_at_equal_distances(step):
    ids = np.arange(-2_000, 2_000) * step
    check_rows(ids, np.concatenate([ids, ids + 1, ids[::-1]]))


def check_rows(ids, asked):
    rows = len(ids)
    table = ItemTable(ids, np.zeros(rows, np.uint8), np.zeros((rows, 1), np.int8), np.zeros(rows, np.float32))
    found = ItemRows(ids).of(asked)
    assert found.tolist() == table.rows(asked).tolist()
    assert found.dtype == np.int64
