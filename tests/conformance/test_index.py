"""One behaviour for every index: exact, IVF-HNSW in each of its codes, and each kind with changes since its build."""

import json
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest

from pinrec_core.config import RetrieveConfig
from pinrec_core.errors import InvalidConfig, InvalidData, InvalidRelease, InvalidRequest
from pinrec_core.items.changes import ItemChanges
from pinrec_core.retrieve.build import build_index
from pinrec_core.retrieve.index import open_index
from pinrec_core.retrieve.live_index import LiveIndex
from pinrec_core.retrieve.tuning import choose_ef_search, choose_nprobe, measure_recall

DIM = 16
CONFIGS = {
    "flat": RetrieveConfig(kind="flat"),
    "ivf_hnsw-pq4": RetrieveConfig(kind="ivf_hnsw", codes="pq4"),
    "ivf_hnsw-sq8": RetrieveConfig(kind="ivf_hnsw", codes="sq8"),
    "ivf_hnsw-fp16": RetrieveConfig(kind="ivf_hnsw", codes="fp16"),
    "ivf_hnsw-float32": RetrieveConfig(kind="ivf_hnsw", codes="float32"),
    "ivf_hnsw-graph": RetrieveConfig(kind="ivf_hnsw", codes="sq8", ef_search=64),
}


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def near_items(vectors, num_queries, seed):
    """Queries beside items, as generated embeddings are."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(vectors), size=num_queries)
    return unit(vectors[rows] + 0.2 * rng.normal(size=(num_queries, DIM)))


def world(num_items, seed=0):
    """Clustered unit vectors under ids that are not row numbers and do not fit int32."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(20, DIM))
    vectors = unit(centers[rng.integers(20, size=num_items)] + 0.5 * rng.normal(size=(num_items, DIM)))
    ids = rng.permutation(num_items).astype(np.int64) * 3 + 2**40
    return ids, vectors


LIVE = ("live-flat", "live-ivf_hnsw-pq4", "live-ivf_hnsw-sq8")


def replaced(folder, ids, vectors, **options):
    """The same corpus, but every second item was replaced by itself since the build, and a few came and went."""
    index = LiveIndex(open_index(folder, **options))
    half, gone = slice(None, None, 2), np.arange(7, dtype=np.int64)
    index.apply(changes(gone - 2**62, unit(np.ones((7, vectors.shape[1])))))
    index.apply(changes(ids[half], vectors[half]))
    index.apply(changes(gone - 2**62, deleted=True))
    return index


def changes(ids, vectors=None, deleted=False):
    """Items added with `vectors` float32 [n, D], or deleted."""
    rows = np.zeros((len(ids), 1), np.float32) if vectors is None else np.asarray(vectors, np.float32)
    no_content = np.zeros((len(ids), 1), np.int8), np.zeros(len(ids), np.float32)
    return ItemChanges(np.asarray(ids, np.int64), np.full(len(ids), deleted), rows, *no_content)


@pytest.fixture(scope="module", params=[*CONFIGS, *LIVE])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def config(kind):
    return CONFIGS[kind.removeprefix("live-")]


@pytest.fixture(scope="module")
def opened(kind):
    """Opens the index folder of (ids, vectors)."""
    return replaced if kind in LIVE else lambda folder, ids, vectors, **options: open_index(folder, **options)


@pytest.fixture(scope="module")
def corpus():
    return world(3_000)


@pytest.fixture(scope="module")
def built(config, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("release") / "index"
    return build_index(*corpus, config, folder, queries=near_items(corpus[1], 200, seed=1)), folder


@pytest.fixture(scope="module")
def index(built, corpus, opened):
    return opened(built[1], *corpus)


@pytest.fixture(scope="module")
def queries(corpus):
    return near_items(corpus[1], 40, seed=2)


def oracle(corpus, query, k):
    ids, vectors = corpus
    return ids[np.argsort(-(vectors @ query), kind="stable")[:k]]


def test_knows_its_size(index, built):
    facts, _ = built
    assert (index.dim, index.num_items) == (DIM, 3_000)
    assert (facts["dim"], facts["num_items"]) == (DIM, 3_000)


def test_known_neighbours(config, opened, tmp_path):
    # On the axes of the plane, at 0, 90, 270 and 180 degrees: that is their order for a query at 30 degrees.
    ids = np.array([2, 1, 4, -3], dtype=np.int64)
    vectors = np.array([[0, 1], [1, 0], [-1, 0], [0, -1]], dtype=np.float32)
    build_index(ids, vectors, config, tmp_path / "index")
    [(found, scores)] = opened(tmp_path / "index", ids, vectors).search(np.array([[0.866, 0.5]]), [4])
    assert found.tolist() == [1, 2, -3, 4]
    assert found.dtype == np.int64
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, [0.866, 0.5, -0.5, -0.866], atol=0.01)


def test_compares_by_inner_product_not_by_distance(config, opened, tmp_path):
    ids = np.arange(3, dtype=np.int64)
    vectors = np.array([[1, 0], [0, 1], [5, 5]], dtype=np.float32)  # the farthest has the largest product
    build_index(ids, vectors, config, tmp_path / "index")
    [(found, scores)] = opened(tmp_path / "index", ids, vectors).search(np.array([[1.0, 0.1]]), [1])
    assert found.tolist() == [2]
    np.testing.assert_allclose(scores, [5.5], atol=0.1)


def test_recall_against_the_oracle(index, corpus, queries):
    found = index.search(queries, [50] * len(queries))
    overlap = [
        len(np.intersect1d(ids, oracle(corpus, query, 50))) / 50 for (ids, _), query in zip(found, queries, strict=True)
    ]
    assert np.mean(overlap) > 0.95


def test_the_recall_target_holds_for_queries_that_it_was_not_tuned_on(index, built, corpus):
    queries = near_items(corpus[1], 500, seed=4)
    found = index.search(queries, [100] * len(queries))
    overlap = [
        len(np.intersect1d(ids, oracle(corpus, query, 100))) for (ids, _), query in zip(found, queries, strict=True)
    ]
    assert np.mean(overlap) / 100 >= built[0]["recall_target"] - 0.005  # two samples of 200 and 500 differ by less


def test_scores_descend_and_are_the_inner_products(index, corpus, queries):
    ids, vectors = corpus
    by_id = dict(zip(ids.tolist(), vectors, strict=True))
    for query, (found, scores) in zip(queries, index.search(queries, [30] * len(queries)), strict=True):
        assert (np.diff(scores) <= 0).all()
        np.testing.assert_allclose(scores, [by_id[i] @ query for i in found.tolist()], atol=0.02)


def test_a_batch_of_mixed_k_equals_single_searches(index, queries):
    ks = np.random.default_rng(2).integers(1, 200, size=len(queries))
    batch = index.search(queries, ks)
    for query, k, (ids, scores) in zip(queries, ks, batch, strict=True):
        [(alone, alone_scores)] = index.search(query[None], [k])
        assert len(ids) == k
        assert ids.tolist() == alone.tolist()
        np.testing.assert_allclose(scores, alone_scores, atol=1e-6)


@pytest.mark.parametrize("k", [2_999, 3_000, 3_001, 1_000_000, 2**63 - 1])
def test_a_k_beyond_the_corpus_returns_all_of_it_once(index, corpus, queries, k):
    for found, scores in index.search(queries[:3], [k] * 3):
        assert len(found) == min(k, 3_000)
        assert len(np.unique(found)) == len(found)
        assert np.isin(found, corpus[0]).all()
        assert scores.min() >= -1.1


def test_a_query_beside_almost_empty_cells_still_gets_k_items(config, opened, tmp_path):
    """Eight items alone on their axes and a crowd elsewhere: the cells nearest to a loner hold a few items only."""
    crowd = unit(np.eye(DIM)[9] + 0.1 * np.random.default_rng(0).normal(size=(392, DIM)))
    vectors = np.concatenate([np.eye(DIM, dtype=np.float32)[:8], crowd])
    config = replace(config, nlist=10, nprobe=1)
    build_index(np.arange(400), vectors, config, tmp_path / "index")
    index = opened(tmp_path / "index", np.arange(400), vectors)
    for axis in range(8):
        [(found, scores)] = index.search(vectors[axis : axis + 1], [30])
        assert found[0] == axis
        assert len(np.unique(found)) == 30
        np.testing.assert_allclose(scores, vectors[found] @ vectors[axis], atol=0.01)


def test_equal_vectors_are_all_found(config, opened, tmp_path):
    ids, vectors = world(400)
    vectors[:30] = vectors[0]
    build_index(ids, vectors, config, tmp_path / "index")
    [(found, _)] = opened(tmp_path / "index", ids, vectors).search(vectors[:1], [30])
    assert sorted(found.tolist()) == sorted(ids[:30].tolist())


def test_no_queries_no_results(index):
    assert index.search(np.zeros((0, DIM), dtype=np.float32), []) == []


def test_one_thread_gives_the_same(built, corpus, opened, index, queries):
    alone = opened(built[1], *corpus, num_threads=1).search(queries, [20] * len(queries))
    for (ids, _), (other, _) in zip(alone, index.search(queries, [20] * len(queries)), strict=True):
        assert ids.tolist() == other.tolist()


@pytest.mark.parametrize(
    ("queries", "ks", "says"),
    [
        (np.zeros((1, DIM + 1)), [1], r"embeddings has value \(1, 17\); allowed: shape \[n, 16\]"),
        (np.zeros(DIM), [1], "embeddings has value"),
        (np.full((1, DIM), np.nan), [1], "embeddings has value 'NaN or infinity'"),
        (np.full((1, DIM), np.inf), [1], "embeddings has value 'NaN or infinity'"),
        (np.full((1, DIM), 1e300), [1], "embeddings has value 'NaN or infinity'"),
        (np.zeros((1, DIM)), [0], r"k has value \[0\]; allowed: 1 numbers of at least 1"),
        (np.zeros((1, DIM)), [-5], "k has value"),
        (np.zeros((2, DIM)), [1], "k has value"),
    ],
)
def test_refuses_what_would_abort_faiss(index, queries, ks, says):
    with pytest.raises(InvalidRequest, match=says):
        index.search(queries, ks)


def test_facts_are_what_was_written(built, config):
    facts, folder = built
    assert json.loads((folder / "index.json").read_text()) == facts
    assert facts["kind"] == config.kind
    assert facts["codes"] == ("float32" if config.kind == "flat" else config.codes)
    assert facts["recall"] >= config.recall_target
    assert facts["recall_at"] == 100
    rows = ["row_scale.npy", "rows.npy"] if facts["codes"] == "pq4" else []
    assert sorted(p.name for p in folder.iterdir()) == ["ids.npy", "index.faiss", "index.json", *rows]


def drop(folder: Path, name: str) -> None:
    (folder / name).unlink()


def truncate(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:100])


def garble(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\x93garbage" * 50)


@pytest.mark.parametrize("name", ["index.faiss", "ids.npy", "index.json"])
@pytest.mark.parametrize("damage", [drop, truncate, garble])
def test_a_damaged_folder_is_refused_without_its_path(config, tmp_path, name, damage):
    build_index(*world(200), config, tmp_path / "index")
    damage(tmp_path / "index", name)
    with pytest.raises(InvalidRelease) as caught:
        open_index(tmp_path / "index")
    assert str(tmp_path) not in str(caught.value)
    assert "index" in str(caught.value)


def test_ids_of_another_corpus_are_refused(config, tmp_path):
    build_index(*world(200), config, tmp_path / "index")
    np.save(tmp_path / "index" / "ids.npy", np.arange(199))
    with pytest.raises(InvalidRelease, match=r"ids.npy is int64 \[199\]; allowed: int64 \[200\]"):
        open_index(tmp_path / "index")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("dim", 17, "index.faiss holds .*'dim': 16.*; index.json: .*'dim': 17"),
        ("num_items", 5, "index.faiss holds"),
        ("kind", "other", "index.faiss holds"),
        ("format", 2, "not of format 1"),
        ("nprobe", "4", "index.json has nprobe '4'; allowed: an integer"),
    ],
)
def test_facts_that_do_not_fit_are_refused(config, tmp_path, key, value, says):
    facts = build_index(*world(200), config, tmp_path / "index")
    (tmp_path / "index" / "index.json").write_text(json.dumps({**facts, key: value}))
    with pytest.raises(InvalidRelease, match=says):
        open_index(tmp_path / "index")


@pytest.mark.parametrize("name", ["rows.npy", "row_scale.npy"])
def test_int8_rows_that_do_not_fit_are_refused(tmp_path, name):
    build_index(*world(200), CONFIGS["ivf_hnsw-pq4"], tmp_path / "index")
    for damage in (lambda folder, name: np.save(folder / name, np.zeros((199, 16), np.int8)), truncate, garble, drop):
        damage(tmp_path / "index", name)
        with pytest.raises(InvalidRelease, match=r"index: .*rows\.npy"):
            open_index(tmp_path / "index")


def test_four_bit_codes_are_not_for_a_gpu(tmp_path):
    build_index(*world(200), CONFIGS["ivf_hnsw-pq4"], tmp_path / "index")
    with pytest.raises(InvalidConfig, match=r"retrieve\.codes has value 'pq4'; allowed on cuda:0: sq8, fp16, float32"):
        open_index(tmp_path / "index", device="cuda:0")


def test_an_index_by_distance_is_refused(config, tmp_path):
    facts = build_index(*world(200), config, tmp_path / "index")
    by_distance = faiss.IndexFlatL2(DIM)
    by_distance.add(world(200)[1])
    faiss.write_index(by_distance, str(tmp_path / "index" / "index.faiss"))
    (tmp_path / "index" / "index.json").write_text(json.dumps({**facts, "kind": "flat"}))
    with pytest.raises(InvalidRelease, match="does not compare by inner product"):
        open_index(tmp_path / "index")


@pytest.mark.parametrize(
    ("ids", "vectors", "says"),
    [
        ([], np.zeros((0, 4)), "0 ids"),
        ([1, 2], np.zeros((3, 4)), r"2 ids and vectors \[3, 4\]"),
        ([1, 2], np.zeros(2), r"2 ids and vectors \[2\]"),
        ([7, 7, 8], np.zeros((3, 4)), "1 of 3 item ids are duplicates"),
        ([7, 8, 9], np.array([[0, 0], [np.nan, 0], [0, np.inf]]), r"2 vectors hold NaN or infinity.*\[8, 9\]"),
    ],
)
def test_build_refuses_a_bad_corpus(config, tmp_path, ids, vectors, says):
    with pytest.raises(InvalidData, match=says):
        build_index(np.array(ids, dtype=np.int64), vectors.astype(np.float32), config, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_auto_chooses_by_size(tmp_path, monkeypatch):
    assert build_index(*world(300), RetrieveConfig(), tmp_path / "small")["kind"] == "flat"
    monkeypatch.setattr("pinrec_core.retrieve.build.FLAT_BELOW", 300)
    large = build_index(*world(300), RetrieveConfig(), tmp_path / "large")
    assert (large["kind"], large["nlist"]) == ("ivf_hnsw", 4)


def test_sizes_and_probes_can_be_said(tmp_path):
    config = RetrieveConfig(kind="ivf_hnsw", nlist=10, nprobe=3, ef_search=40)
    facts = build_index(*world(400), config, tmp_path / "index")
    assert [facts[key] for key in ("nlist", "nprobe", "ef_search")] == [10, 3, 40]
    assert 0 < facts["recall"] <= 1
    with pytest.raises(InvalidConfig, match="nlist has value 401; allowed: at most the 400 items"):
        build_index(*world(400), RetrieveConfig(kind="ivf_hnsw", nlist=401), tmp_path / "other")


def test_a_large_k_probes_more_cells(tmp_path):
    build_index(*world(4_000), RetrieveConfig(kind="ivf_hnsw", nlist=40, nprobe=3, ef_search=20), tmp_path / "index")
    index = open_index(tmp_path / "index")
    # 100 items a cell: 256 items need cells that hold 512
    assert {k: index.num_probes(k) for k in (16, 256, 4_000)} == {16: 3, 256: 6, 4_000: 40}


def test_probes_are_tuned_on_the_queries_given(corpus, tmp_path):
    """Queries far from every item need more cells than items themselves do."""
    config = RetrieveConfig(kind="ivf_hnsw", codes="float32", recall_target=0.99)
    near = build_index(*corpus, config, tmp_path / "near")
    far = unit(np.random.default_rng(3).normal(size=(200, DIM)))
    assert build_index(*corpus, config, tmp_path / "far", queries=far)["nprobe"] > near["nprobe"]


def test_the_fewest_cells_that_reach_the_target_are_probed():
    tried = []

    def recall(nprobe):
        tried.append(nprobe)
        return 1 - 0.5 / nprobe

    assert choose_nprobe(recall, 64, 0.96) == (14, pytest.approx(1 - 0.5 / 14))
    assert tried == [*range(1, 9), 10, 12, 14]
    assert choose_nprobe(lambda nprobe: nprobe / 50, 50, 0.98) == (50, 1.0)  # after 48 comes all


def test_the_graph_is_asked_as_little_as_reaches_the_target_where_it_is_cheaper_than_products():
    tried = []

    def recall(ef_search):
        tried.append(ef_search)
        return ef_search / 20

    assert choose_ef_search(recall, 7, nlist=4_096, target=0.7) == 14
    assert tried == [7, 11, 14]
    assert choose_ef_search(recall, 7, nlist=1_399, target=0.7) == 0  # a step of the graph is worth 100 cells
    assert choose_ef_search(recall, 7, nlist=4_096, target=1.5) == 0  # not reached by 4 x 7 steps


def test_few_of_many_cells_are_found_by_the_graph(tmp_path):
    """1,000 cells of 4 items: the build measures that a few steps of the graph find the nearest ones."""
    ids, vectors = world(4_000)
    config = RetrieveConfig(kind="ivf_hnsw", nlist=1_000, nprobe=4)
    facts = build_index(ids, vectors, config, tmp_path / "index", near_items(vectors, 100, seed=1))
    assert 4 <= facts["ef_search"] <= 10
    by_graph = open_index(tmp_path / "index")
    (tmp_path / "index" / "index.json").write_text(json.dumps({**facts, "ef_search": 0}))
    by_products = open_index(tmp_path / "index")
    queries = near_items(vectors, 100, seed=2)
    for (found, _), (expected, _) in zip(
        by_graph.search(queries, [5] * 100), by_products.search(queries, [5] * 100), strict=True
    ):
        assert len(np.intersect1d(found, expected)) >= 3


def test_an_unreachable_target_takes_the_smallest_near_the_best():
    reached = {1: 0.5, 2: 0.9, 3: 0.948, 4: 0.949, 5: 0.949, 6: 0.9495, 7: 0.9495, 8: 0.95}
    assert choose_nprobe(reached.__getitem__, 8, 0.98) == (3, 0.948)


def test_recall_counts_equal_vectors_as_each_other():
    vectors = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    query = np.array([[1, 0]], dtype=np.float32)
    kth = np.array([1.0], dtype=np.float32)  # of the exact top 1
    assert measure_recall(vectors, query, np.array([[1]]), kth) == 1.0
    assert measure_recall(vectors, query, np.array([[2]]), kth) == 0.0
