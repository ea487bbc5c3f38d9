import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pinrec_core.signals.merge import OwnedRows, concatenate, history_rows, merge, merge_users, take

PIN, SEARCH_QUERY = 0, 1


def rows(*events):
    """History rows from (item_id, timestamp_ms, event_id), all saves on surface 1."""
    return history_rows([(item_id, PIN, 1, 1, timestamp_ms, event_id) for item_id, timestamp_ms, event_id in events])


def test_realtime_events_join_in_time_order_and_are_marked():
    merged, is_realtime = merge(rows((1, 10, 101), (2, 30, 102)), rows((3, 20, 103), (4, 40, 104)))
    assert merged.item_ids.tolist() == [1, 3, 2, 4]
    assert merged.timestamps_ms.tolist() == [10, 20, 30, 40]
    assert is_realtime.tolist() == [False, True, False, True]


def test_an_event_that_both_views_hold_counts_once_as_a_batch_event():
    merged, is_realtime = merge(rows((1, 10, 101), (2, 30, 102)), rows((2, 30, 102), (3, 31, 103)))
    assert merged.item_ids.tolist() == [1, 2, 3]
    assert is_realtime.tolist() == [False, False, True]


def test_an_id_repeated_with_another_time_keeps_its_earliest_realtime_row():
    merged, _ = merge(rows((1, 10, 101)), rows((2, 20, 102), (3, 25, 103), (2, 30, 102)))
    assert merged.item_ids.tolist() == [1, 2, 3]


def test_events_of_equal_time_are_in_the_order_of_their_ids_whichever_view_holds_them():
    merged, is_realtime = merge(rows((5, 10, 1), (4, 10, 4)), rows((9, 10, 2), (8, 10, 2**64 - 1)))
    assert merged.item_ids.tolist() == [5, 9, 4, 8]
    assert is_realtime.tolist() == [False, True, False, True]


def test_the_same_item_twice_is_two_events():
    merged, _ = merge(rows((1, 10, 101)), rows((1, 20, 102)))
    assert merged.item_ids.tolist() == [1, 1]


def test_either_view_may_be_empty():
    some = rows((1, 10, 101))
    merged, is_realtime = merge(some, rows())
    assert (merged.item_ids.tolist(), is_realtime.tolist()) == ([1], [False])
    merged, is_realtime = merge(rows(), some)
    assert (merged.item_ids.tolist(), is_realtime.tolist()) == ([1], [True])
    merged, is_realtime = merge(rows(), rows())
    assert (merged.item_ids.tolist(), is_realtime.tolist()) == ([], [])


def test_merging_keeps_every_dtype_and_large_ids_exact():
    merged, _ = merge(rows((2**63 - 1, 10, 2**64 - 1)), rows((-(2**63), 20, 2**64 - 2)))
    assert [column.dtype for column in merged] == [np.int64, np.uint8, np.int32, np.int32, np.int64, np.uint64]
    assert merged.item_ids.tolist() == [2**63 - 1, -(2**63)]
    assert merged.event_ids.tolist() == [2**64 - 1, 2**64 - 2]


def test_merge_agrees_with_a_dictionary_by_event_id():
    rng = np.random.default_rng(0)
    events = [(int(i), int(rng.integers(0, 50)), i + 1) for i in range(200)]
    in_batch, in_realtime = rng.random(200) < 0.7, rng.random(200) < 0.6
    batch = sorted((e for e, keep in zip(events, in_batch, strict=True) if keep), key=lambda e: e[1])
    realtime = sorted((e for e, keep in zip(events, in_realtime, strict=True) if keep), key=lambda e: e[1])
    merged, is_realtime = merge(rows(*batch), rows(*realtime))
    expected = {e[2]: (e, False) for e in batch} | {e[2]: (e, True) for e in realtime if e not in batch}
    expected = sorted(expected.values(), key=lambda pair: (pair[0][1], pair[0][2]))
    assert merged.item_ids.tolist() == [event[0] for event, _ in expected]
    assert is_realtime.tolist() == [fresh for _, fresh in expected]


def test_take_and_concatenate_keep_columns_together():
    joined = concatenate(rows((1, 10, 101)), rows((2, 20, 102)))
    flipped = take(joined, np.array([1, 0]))
    assert flipped.item_ids.tolist() == [2, 1]
    assert flipped.event_ids.tolist() == [102, 101]


IDS = st.integers(0, 12)
EVENTS = st.lists(st.tuples(IDS, st.integers(0, 8), IDS), max_size=12)
"""Few items, times and ids, so that they meet."""


@given(st.lists(st.tuples(EVENTS, EVENTS), min_size=1, max_size=6))
def test_merging_all_users_at_once_is_merging_each(users):
    batches = [in_order(once_each(batch)) for batch, _ in users]
    realtimes = [in_order(realtime) for _, realtime in users]
    together, is_realtime = merge_users(owned(batches), owned(realtimes))
    expected = [merge(batch, realtime) for batch, realtime in zip(batches, realtimes, strict=True)]
    assert together.owners.tolist() == [user for user, (one, _) in enumerate(expected) for _ in one.item_ids]
    for name, column in together.rows._asdict().items():
        alone = np.concatenate([getattr(one, name) for one, _ in expected])
        assert column.tolist() == alone.tolist(), name
        assert column.dtype == alone.dtype, name
    assert is_realtime.tolist() == np.concatenate([fresh for _, fresh in expected]).tolist()


def in_order(events):
    """Rows as a view holds them."""
    return rows(*sorted(events, key=lambda event: (event[1], event[2])))


def once_each(events):
    """The batch view has each id of a user once."""
    return list({event[2]: event for event in events}.values())


def owned(of_users):
    joined = of_users[0]
    for more in of_users[1:]:
        joined = concatenate(joined, more)
    lengths = [len(one.item_ids) for one in of_users]
    return OwnedRows(joined, np.repeat(np.arange(len(lengths), dtype=np.uint16), lengths))
