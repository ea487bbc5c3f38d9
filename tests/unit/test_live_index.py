"""A release's index with changes: by hand on a circle, against an index built anew, beside a writing thread."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinrec_core.config import RetrieveConfig
from pinrec_core.items.changes import ItemChanges
from pinrec_core.retrieve.build import build_index
from pinrec_core.retrieve.index import open_index
from pinrec_core.retrieve.live_index import LiveIndex

KINDS = {
    "flat": RetrieveConfig(kind="flat"),
    "ivf_hnsw": RetrieveConfig(kind="ivf_hnsw", codes="float32", nlist=6, nprobe=6),
}
NEW, NEWER = 1_000, -1_000


def at(*degrees):
    """Unit vectors of the plane."""
    angles = np.radians(np.array(degrees, dtype=np.float64))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def added(ids, vectors):
    return ItemChanges(np.array(ids, np.int64), np.zeros(len(ids), bool), vectors, *no_content(ids))


def deleted(*ids):
    return ItemChanges(np.array(ids, np.int64), np.ones(len(ids), bool), at(*[0] * len(ids)), *no_content(ids))


def no_content(ids):
    return np.zeros((len(ids), 1), np.int8), np.zeros(len(ids), np.float32)


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    """Item i (0 to 35) stands at 10 i degrees."""
    folder = tmp_path_factory.mktemp("circle") / "index"
    build_index(np.arange(36)[::-1], at(*range(0, 360, 10))[::-1], KINDS[request.param], folder)
    return folder


@pytest.fixture
def circle(folder):
    return LiveIndex(open_index(folder))


def nearest(index, degrees, k):
    [(ids, _)] = index.search(at(degrees), [k])
    return ids.tolist()


def test_new_items_are_found_between_the_others(circle):
    circle.apply(added([NEW, NEWER], at(102, 108)))
    assert circle.num_items == 38
    assert nearest(circle, 103, 5) == [NEW, 10, NEWER, 11, 9]


def test_a_replaced_item_is_found_once_where_it_is_now(circle):
    circle.apply(added([10], at(201)))
    assert circle.num_items == 36
    assert nearest(circle, 102, 3) == [11, 9, 12]
    assert nearest(circle, 202, 3) == [10, 20, 21]
    circle.apply(added([10], at(102)))
    assert nearest(circle, 103, 2) == [10, 11]
    assert nearest(circle, 202, 2) == [20, 21]


def test_deleted_items_leave_the_list_full(circle):
    circle.apply(added([NEW], at(102)))
    circle.apply(deleted(10, NEW, 11, 77))
    assert circle.num_items == 34
    assert nearest(circle, 102, 4) == [9, 12, 8, 13]
    assert [circle.is_deleted(item) for item in (10, NEW, 77, 9)] == [True, True, True, False]
    assert len(nearest(circle, 102, 50)) == 34
    circle.apply(deleted(10, 11))  # once more
    assert circle.num_items == 34


def test_a_deleted_item_that_is_added_again_is_back(circle):
    circle.apply(deleted(10))
    circle.apply(added([10], at(100)))
    assert not circle.is_deleted(10)
    assert nearest(circle, 102, 2) == [10, 11]
    assert circle.num_items == 36


def test_all_of_the_main_index_may_go(circle):
    circle.apply(deleted(*range(36)))
    assert circle.num_items == 0
    assert nearest(circle, 0, 5) == []
    circle.apply(added([NEW, NEWER], at(90, 270)))
    assert nearest(circle, 80, 5) == [NEW, NEWER]
    assert nearest(circle, 280, 1) == [NEWER]


def test_scores_are_the_inner_products(circle):
    circle.apply(added([NEW], at(97)))
    [(ids, scores)] = circle.search(at(95), [3])
    assert ids.tolist() == [NEW, 10, 9] or ids.tolist() == [NEW, 9, 10]
    np.testing.assert_allclose(scores, np.cos(np.radians([2, 5, 5])), atol=1e-5)


STEPS = st.lists(
    st.dictionaries(st.integers(0, 45), st.none() | st.integers(0, 359), min_size=1, max_size=8), max_size=10
)


@settings(max_examples=40, deadline=None)
@given(steps=STEPS, degrees=st.integers(0, 359), k=st.integers(1, 60))
def test_any_changes_give_what_a_new_index_gives(folder, steps, degrees, k):
    index, angles = LiveIndex(open_index(folder)), {item: 10 * item for item in range(36)}
    for step in steps:
        kept = {item: angle for item, angle in step.items() if angle is not None}
        index.apply(added(list(kept), at(*kept.values())))
        index.apply(deleted(*(item for item, angle in step.items() if angle is None)))
        angles = {item: angle for item, angle in (angles | step).items() if angle is not None}
    products = {item: float((at(angle) @ at(degrees).T)[0, 0]) for item, angle in angles.items()}
    [(ids, scores)] = index.search(at(degrees), [k])
    assert len(ids) == len(set(ids.tolist())) == min(k, len(angles))
    np.testing.assert_allclose(scores, sorted(products.values(), reverse=True)[:k], atol=1e-5)
    np.testing.assert_allclose(scores, [products[item] for item in ids.tolist()], atol=1e-5)


def test_searches_beside_a_writer_are_whole(circle):
    """Item 10 goes back and forth between 100 and 280 degrees: every search has it once, in one of the two places."""
    done = threading.Event()

    def write():
        for turn in range(200):
            circle.apply(added([10, *range(2_000, 2_064)], at(100 if turn % 2 else 280, *range(64))))
            circle.apply(deleted(*range(2_000, 2_064)))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        [(ids, scores)] = circle.search(at(100), [100])
        found = ids.tolist()
        assert len(set(found)) == len(found)
        assert found.count(10) == 1
        assert abs(scores[found.index(10)]) == pytest.approx(1, abs=1e-5)
    writer.join()
    assert circle.num_items == 36
