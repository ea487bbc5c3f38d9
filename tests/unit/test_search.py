"""The retrieve stage on releases of a few items: hand-worked requests, and a slow twin that ranks the whole corpus."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import faiss
import numpy as np
import pytest

from pinrec_core.config import Config, ModelConfig, RetrieveConfig
from pinrec_core.errors import InvalidRelease, InvalidRequest
from pinrec_core.generate.budget import allocate, normalize
from pinrec_core.generate.compress import allocate_to_embeddings
from pinrec_core.items.changes import ItemChanges
from pinrec_core.messages import RetrieveInput
from pinrec_core.release import ReleaseFacts, open_release, publish
from pinrec_core.retrieve.build import build_index
from pinrec_core.retrieve.index import FlatIndex
from pinrec_core.retrieve.live_index import LiveIndex
from pinrec_core.retrieve.placement import Listing, Settlement, arrange, fill
from pinrec_core.retrieve.search import Retriever
from pinrec_core.schema import Vocabulary

SURFACES, OUTCOMES = ("home", "search"), ("save", "click", "open")
FACTS = ReleaseFacts(item_embedder="a", index_item_embedder="a", watermark_ms=0, dataset="circle")
NO_ITEMS = np.array([-1], dtype=np.int64)


def publish_release(root, ids, vectors, popular, retrieve=None, dim=None):
    """A release that holds only what the stage reads."""
    retrieve = retrieve or RetrieveConfig(kind="flat")
    config = Config(model=ModelConfig(embedding_dim=dim or vectors.shape[1]), retrieve=retrieve)
    vocabulary = Vocabulary(positive_actions=OUTCOMES, actions=OUTCOMES, surfaces=SURFACES)

    def write(folder):
        (folder / "config.json").write_text(json.dumps(config.to_dict()))
        (folder / "vocabulary.json").write_text(json.dumps(vocabulary.to_dict()))
        (folder / "popular").mkdir()
        np.save(folder / "popular" / "ids.npy", popular)
        build_index(ids, vectors, retrieve, folder / "index")

    return open_release(root, publish(root, FACTS, write))


def at(*degrees):
    """Unit vectors of the plane."""
    angles = np.radians(np.array(degrees, dtype=np.float64))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def circle_popular():
    """Row 0 (all surfaces): the three lists start at 30, 20, 10; home adds its own for `save` only."""
    popular = np.full((3, 3, 4), -1, dtype=np.int64)
    popular[0] = [[30, 31, 32, 33], [20, 21, 22, 23], [10, 11, 30, -1]]
    popular[1, 0, :2] = [12, 30]
    return popular


@pytest.fixture(scope="module")
def circle(tmp_path_factory):
    """Item i (0 to 35) stands at 10 i degrees: neighbours of an angle can be read off."""
    root = tmp_path_factory.mktemp("circle")
    return Retriever.open(publish_release(root, np.arange(36), at(*range(0, 360, 10)), circle_popular()))


def ask(degrees, allocation, outcome, counts=None, **changes):
    if counts is None:
        counts = np.bincount(outcome, weights=allocation, minlength=3)
    values = {
        "embeddings": at(*degrees).reshape(-1, 2),
        "allocation": np.array(allocation, dtype=np.int32),
        "outcome": np.array(outcome, dtype=np.int32),
        "counts": np.array(counts, dtype=np.int32),
        "surface": 1,
        "exclude_item_ids": NO_ITEMS,
        "seen_item_ids": NO_ITEMS,
        "include_seen": False,
        "release": 1,
        "deadline_ns": 0,
        "remaining_ms": 0,
        **changes,
    }
    return RetrieveInput(**values)


def answer(retriever, request):
    """(item id, outcome, source) of each place."""
    [found] = retriever.run([request])
    return list(
        zip(found.candidate_ids.tolist(), found.candidate_outcomes.tolist(), found.source.tolist(), strict=True)
    )


def test_nearest_items_with_score_outcome_and_source(circle):
    [found] = circle.run([ask([102], [3], [1])])
    assert found.candidate_ids.tolist() == [10, 11, 9]
    np.testing.assert_allclose(found.scores, np.cos(np.radians([2, 8, 12])), rtol=1e-6)
    assert found.candidate_outcomes.tolist() == [1, 1, 1]
    assert found.source.tolist() == [0, 0, 0]
    dtypes = [found.candidate_ids.dtype, found.scores.dtype, found.candidate_outcomes.dtype, found.source.dtype]
    assert dtypes == [np.int64, np.float32, np.int32, np.int32]


def test_two_embeddings_of_an_outcome_share_a_neighbourhood(circle):
    # 101 degrees: 10 11 9 12 8; 109: 11 10 12 9 13. Each keeps its nearest (rank 0 before 1) and refills at rank 2.
    assert sorted(answer(circle, ask([101, 109], [2, 2], [0, 0]))) == [(9, 0, 0), (10, 0, 0), (11, 0, 1), (12, 0, 1)]


def test_the_same_item_at_the_same_rank_goes_to_the_larger_count(circle):
    # both outcomes look from 101 degrees: 10 11 9 12 8 13
    found = answer(circle, ask([101, 101], [1, 2], [0, 1]))
    assert sorted(found) == [(9, 0, 0), (10, 1, 1), (11, 1, 1)]


def test_zero_allocation_is_not_searched(circle):
    assert answer(circle, ask([0, 180], [0, 1], [0, 0])) == [(18, 0, 1)]


def test_excluded_and_seen_items_are_dropped_and_the_list_stays_full(circle):
    request = ask([102], [3], [0], exclude_item_ids=np.array([10, 9]), seen_item_ids=np.array([11, -1]))
    assert [item for item, *_ in answer(circle, request)] == [12, 8, 13]
    shown = replace(request, include_seen=True)
    assert [item for item, *_ in answer(circle, shown)] == [11, 12, 8]


def test_a_neighbourhood_that_is_all_seen_is_left_behind(circle):
    """The first lists hold seen items only: the search goes on to the other side of the circle instead of filling."""
    seen = np.setdiff1d(np.arange(36), [0, 1, 35])
    found = answer(circle, ask([182, 178], [2, 1], [0, 1], seen_item_ids=seen))
    # from 182 degrees: 35 (168 away), 1 (172), 0 (178); from 178: 1 (168), 35 (172), 0 (178)
    assert found == [(35, 0, 0), (1, 1, 1), (0, 0, 0)]


def test_counts_hold_until_the_corpus_ends(circle):
    found = answer(circle, ask([10, 20, 30], [12, 12, 12], [0, 1, 2]))
    assert sorted(item for item, *_ in found) == list(range(36))
    assert np.bincount([outcome for _, outcome, _ in found]).tolist() == [12, 12, 12]


def test_fewer_only_where_the_corpus_minus_the_filters_is_smaller(circle):
    found = answer(circle, ask([10, 20], [20, 10], [0, 1], exclude_item_ids=np.arange(10)))
    assert sorted(item for item, *_ in found) == list(range(10, 36))


def test_without_embeddings_all_is_filled_from_popular(circle):
    request = ask([], [], [], counts=[3, 1, 1])
    [found] = circle.run([request])
    # home's own list for `save` is 12, 30; then that of all surfaces: 31. click: 20. open: 10.
    by_outcome = [found.candidate_ids[found.candidate_outcomes == outcome].tolist() for outcome in range(3)]
    assert by_outcome == [[12, 30, 31], [20], [10]]
    assert found.source.tolist() == [-1] * 5
    assert found.scores.tolist() == [0.0] * 5


def test_fill_skips_excluded_seen_and_returned(circle):
    request = ask([202], [1], [1], counts=[1, 1, 2], surface=2, exclude_item_ids=np.array([30, 10]))
    # click finds 20 by search. open (larger) fills first: 10 and 30 are excluded, so only 11. save: 31.
    assert sorted(answer(circle, request)) == [(11, 2, -1), (20, 1, 0), (31, 0, -1)]
    seen = replace(request, seen_item_ids=np.array([31]))
    assert sorted(answer(circle, seen)) == [(11, 2, -1), (20, 1, 0), (32, 0, -1)]
    assert sorted(answer(circle, replace(seen, include_seen=True))) == [(11, 2, -1), (20, 1, 0), (31, 0, -1)]


def test_an_unknown_surface_fills_from_all_surfaces(circle):
    assert [item for item, *_ in answer(circle, ask([], [], [], counts=[2, 0, 0], surface=0))] == [30, 31]


def test_nothing_asked_nothing_found(circle):
    assert answer(circle, ask([], [], [], counts=[0, 0, 0])) == []
    assert answer(circle, ask([5], [0], [0], counts=[0, 0, 0])) == []
    assert circle.run([]) == []


def test_outcomes_are_interleaved_and_scores_descend(circle):
    [found] = circle.run([ask([0, 120, 240], [4, 2, 2], [0, 1, 1])])
    assert found.candidate_outcomes.tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    for outcome in (0, 1):
        assert (np.diff(found.scores[found.candidate_outcomes == outcome]) <= 0).all()


BAD = {
    "counts": ({"counts": np.array([1, 1], dtype=np.int32)}, r"counts has value \[1, 1\]; allowed: 3 numbers"),
    "negative": ({"counts": np.array([-1, 1, 0], dtype=np.int32)}, "counts has value"),
    "surface": ({"surface": 3}, "surface has value 3; allowed: codes 0 to 2"),
    "shape": ({"embeddings": np.zeros((1, 3), np.float32)}, r"embeddings has value \(1, 3\); allowed: shape \[1, 2\]"),
    "rows": ({"embeddings": np.zeros((2, 2), np.float32)}, r"embeddings has value \(2, 2\); allowed: shape \[1, 2\]"),
    "nan": ({"embeddings": np.full((1, 2), np.nan, np.float32)}, "embeddings has value 'NaN or infinity'"),
    "outcome": ({"outcome": np.array([3], dtype=np.int32)}, r"outcome has value \[3\]; allowed: 1 numbers, 0 to 2"),
    "too much": ({"allocation": np.array([3], dtype=np.int32)}, r"allocation has value \[3\]; .* \[2, 0, 0\]"),
    "below 0": ({"allocation": np.array([-1], dtype=np.int32)}, "allocation has value"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_fails_alone(circle, case):
    changes, says = BAD[case]
    good = ask([52], [2], [0])
    first, bad, last = circle.run([good, replace(good, **changes), good])
    assert isinstance(bad, InvalidRequest)
    with pytest.raises(InvalidRequest, match=says):
        raise bad
    assert first.candidate_ids.tolist() == last.candidate_ids.tolist() == [5, 4] or {5} < {
        *first.candidate_ids.tolist()
    }


def test_new_items_are_served_and_deleted_ones_neither_found_nor_filled_in(tmp_path):
    retriever = Retriever.open(publish_release(tmp_path, np.arange(36), at(*range(0, 360, 10)), circle_popular()))
    vectors = np.concatenate([at(104), np.zeros((3, 2), np.float32)])
    no_content = np.zeros((4, 1), np.int8), np.zeros(4, np.float32)
    retriever.index.apply(
        ItemChanges(np.array([500, 10, 12, 30]), np.array([False, True, True, True]), vectors, *no_content)
    )
    assert answer(retriever, ask([103], [4], [0])) == [(500, 0, 0), (11, 0, 0), (9, 0, 0), (8, 0, 0)]
    # Nothing was generated: of home's list 12 and 30 are gone, so that of all surfaces follows: 31, 32.
    assert answer(retriever, ask([], [], [], counts=[2, 0, 0])) == [(31, 0, -1), (32, 0, -1)]


class RecordedIndex(LiveIndex):
    """Keeps what it was asked."""

    def __init__(self, vectors):
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        super().__init__(FlatIndex(index, np.arange(len(vectors))))
        self.asked = []

    def search(self, queries, ks):
        self.asked.append(list(ks))
        return super().search(queries, ks)


def test_one_search_for_the_batch_and_another_only_where_a_list_ended():
    index = RecordedIndex(at(*range(0, 360, 10)))
    retriever = Retriever(index, circle_popular(), overfetch_factor=2.0)
    plain, crowded = ask([0, 90], [3, 2], [0, 1]), ask([180, 0], [2, 1], [0, 1], seen_item_ids=np.arange(14, 23))
    retriever.run([plain, crowded])
    # First twice the allocation, at most the 5 that plain wants. Then the embedding at 180, whose list was all seen,
    # asks for four times as many, at most the 3 wanted + 9 filtered.
    assert index.asked == [[5, 4, 4, 2], [12]]


class StingyIndex(RecordedIndex):
    """An engine that finds two items a query, however many there are."""

    def search(self, queries, ks):
        return super().search(queries, np.minimum(ks, 2))


def test_what_the_index_does_not_find_is_refilled_from_siblings_then_popular():
    retriever = Retriever(StingyIndex(at(*range(0, 360, 10))), circle_popular(), overfetch_factor=2.0)
    # at 2 degrees only 0 and 1; at 92 degrees 9, whose leftover 10 comes next; then home's first popular pin
    found = answer(retriever, ask([2, 92], [4, 1], [0, 0]))
    assert found == [(0, 0, 0), (9, 0, 1), (1, 0, 0), (10, 0, 1), (12, 0, -1)]


def test_more_is_not_asked_than_could_be_needed():
    index = RecordedIndex(at(*range(0, 360, 10)))
    Retriever(index, circle_popular(), overfetch_factor=9.0).run([ask([0], [3], [0]), ask([0], [30], [0])])
    assert index.asked == [[3, 30]]  # one embedding, nothing filtered: no overfetch at all


# On a larger world: the slow twin, batches, both kinds of index

DIM, NUM_ITEMS = 8, 600


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(NUM_ITEMS, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = rng.permutation(NUM_ITEMS) * 5 - 1_000
    popular = np.stack([rng.permutation(ids)[:100] for _ in range(9)]).reshape(3, 3, 100)
    return ids, vectors.astype(np.float32), popular


@pytest.fixture(scope="module", params=["flat", "ivf_hnsw"])
def release(request, world, tmp_path_factory):
    retrieve = RetrieveConfig(kind=request.param, codes="float32", overfetch_factor=1.5)
    return publish_release(tmp_path_factory.mktemp("world"), *world, retrieve)


@pytest.fixture(scope="module")
def retriever(release):
    return Retriever.open(release, num_threads=1)


def random_request(rng, world):
    """Outcomes that look at overlapping neighbourhoods, with much of them filtered out."""
    ids, vectors, _ = world
    counts = allocate(normalize(rng.integers(0, 5, size=3) + np.array([1, 0, 0])), int(rng.integers(1, 120)))
    outcomes = np.repeat(np.flatnonzero(counts), rng.integers(1, 5))
    merged = rng.integers(1, 6, size=len(outcomes))
    allocation = np.zeros(len(outcomes), dtype=np.int32)
    for outcome in np.unique(outcomes):
        allocation[outcomes == outcome] = allocate_to_embeddings(merged[outcomes == outcome], int(counts[outcome]))
    center = rng.normal(size=DIM)
    embeddings = center + 0.4 * rng.normal(size=(len(outcomes), DIM))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    near = ids[np.argsort(-(vectors @ center))]
    return ask(
        [], allocation, outcomes, counts,
        embeddings=embeddings.astype(np.float32),
        surface=int(rng.integers(3)),
        exclude_item_ids=rng.choice(near[:200], size=int(rng.integers(1, 60)), replace=False),
        seen_item_ids=rng.choice(near[:100], size=int(rng.integers(1, 90)), replace=False),
        include_seen=bool(rng.integers(2)),
    )  # fmt: skip


def slow_answer(world, request):
    """Every embedding ranks the whole corpus, so that no list can end early."""
    ids, vectors, popular = world
    blocked = {*request.exclude_item_ids.tolist()} | (
        set() if request.include_seen else {*request.seen_item_ids.tolist()}
    )
    listings = []
    for embedding, allocation, outcome in zip(request.embeddings, request.allocation, request.outcome, strict=True):
        scores = vectors @ embedding
        order = [row for row in np.argsort(-scores) if int(ids[row]) not in blocked]
        listings.append(Listing(int(outcome), int(allocation), ids[order].tolist(), scores[order].tolist()))
    counts = request.counts.tolist()
    placed = Settlement(listings, counts).placed
    lists = [[*popular[request.surface, a].tolist(), *popular[0, a].tolist()] for a in range(3)]
    return [
        (item.item_id, item.outcome, item.source) for item in arrange(placed + fill(placed, counts, lists, blocked))
    ]


def test_overfetching_equals_ranking_the_whole_corpus(world, tmp_path):
    rng = np.random.default_rng(1)
    exact = Retriever.open(publish_release(tmp_path, *world, RetrieveConfig(kind="flat", overfetch_factor=1.0)))
    for _ in range(60):
        request = random_request(rng, world)
        assert answer(exact, request) == slow_answer(world, request)


def test_counts_and_allocations_hold_for_any_budget(world, retriever):
    rng = np.random.default_rng(2)
    requests = [random_request(rng, world) for _ in range(60)]
    for request, found in zip(requests, retriever.run(requests), strict=True):
        assert np.bincount(found.candidate_outcomes, minlength=3).tolist() == request.counts.tolist()
        assert np.bincount(found.source, minlength=len(request.allocation)).tolist() == request.allocation.tolist()
        assert len(np.unique(found.candidate_ids)) == len(found.candidate_ids)
        assert not np.isin(found.candidate_ids, request.exclude_item_ids).any()
        assert request.include_seen or not np.isin(found.candidate_ids, request.seen_item_ids).any()
        assert (request.outcome[found.source] == found.candidate_outcomes).all()


def test_a_batch_equals_single_requests(world, retriever):
    rng = np.random.default_rng(3)
    requests = [random_request(rng, world) for _ in range(25)]
    for request, found in zip(requests, retriever.run(requests), strict=True):
        [alone] = retriever.run([request])
        assert found.candidate_ids.tolist() == alone.candidate_ids.tolist()
        assert found.source.tolist() == alone.source.tolist()


def test_threads_may_share_a_retriever(world, retriever):
    rng = np.random.default_rng(4)
    requests = [random_request(rng, world) for _ in range(16)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda request: answer(retriever, request), requests))
    assert together == [answer(retriever, request) for request in requests]


def test_another_embedding_size_is_refused(world, tmp_path):
    with pytest.raises(InvalidRelease, match=r"index: vectors have 8 dimensions; model.embedding_dim: 12"):
        Retriever.open(publish_release(tmp_path, *world, dim=12))


@pytest.mark.parametrize("popular", [np.zeros((2, 3, 4), np.int64), np.zeros((3, 2, 4), np.int64), np.zeros((3, 3, 4))])
def test_popular_lists_of_another_vocabulary_are_refused(world, tmp_path, popular):
    with pytest.raises(InvalidRelease, match=r"popular: .*; allowed: int64 \[3, 3, 'P'\]"):
        Retriever.open(publish_release(tmp_path, *world[:2], popular))


def test_a_release_without_an_index_is_refused(world, tmp_path):
    release = publish_release(tmp_path, *world)
    (release.path / "index" / "index.faiss").unlink()
    with pytest.raises(InvalidRelease, match=r"index\.faiss"):
        Retriever.open(release)


def test_torch_is_never_imported():
    """Torch and Faiss in one process load two OpenMP runtimes."""
    code = "import sys, pinrec_core.retrieve.search as s, pinrec_core.generate.budget, pinrec_core.generate.compress"
    check = f"{code}; sys.exit('torch' in sys.modules or 'faiss' not in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
