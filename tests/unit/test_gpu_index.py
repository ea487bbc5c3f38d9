"""The index on a GPU: its parts that need none, and against the CPU's where there is one."""

import faiss
import numpy as np
import pytest

from pinrec_core.config import RetrieveConfig
from pinrec_core.errors import InvalidConfig
from pinrec_core.retrieve.build import build_index
from pinrec_core.retrieve.gpu_index import MOST_ON_GPU, first_shown, with_flat_quantizer
from pinrec_core.retrieve.index import open_index, search_all_cells

DIM, NUM_ITEMS = 16, 4_000


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def queries():
    return unit(np.random.default_rng(1).normal(size=(20, DIM)))


@pytest.fixture(scope="module", params=["sq8", "fp16", "float32"])
def folder(request, tmp_path_factory):
    vectors = unit(np.random.default_rng(0).normal(size=(NUM_ITEMS, DIM)))
    folder = tmp_path_factory.mktemp("index") / "index"
    build_index(np.arange(NUM_ITEMS) * 7, vectors, RetrieveConfig(kind="ivf_hnsw", codes=request.param), folder)
    return folder


def test_exact_centroids_over_the_same_cells_find_the_same(folder, queries):
    """What is copied to a GPU, searched on the CPU."""
    index = open_index(folder)
    twin = with_flat_quantizer(index.faiss, index.centroids)
    everywhere = faiss.SearchParametersIVF(nprobe=index.faiss.nlist)
    scores, rows = twin.search(queries, 30, params=everywhere)
    expected_scores, expected = search_all_cells(index.faiss, index.centroids, queries, 30)
    assert rows.tolist() == expected.tolist()
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)


def test_the_first_that_are_shown():
    shown = np.array([0b0000_0101, 0b0000_0001], np.uint8)  # rows 0, 2 and 8
    rows = np.array([[2, 1, 8, 0], [1, 8, 3, -1]])
    scores = np.array([[9, 8, 7, 6], [9, 8, 7, 0]], np.float32)
    first_scores, first_rows = first_shown(scores, rows, shown, 2)
    assert first_rows.tolist() == [[2, 8], [8, -1]]
    assert first_scores[0].tolist() == [9, 7]
    assert first_scores[1, 0] == 8


@pytest.mark.parametrize("device", ["cuda", "cuda:x", "cuda:-1", "cuda:4096", "gpu:0"])
def test_a_device_that_faiss_does_not_see_is_refused(folder, device):
    with pytest.raises(InvalidConfig, match=rf"device has value '{device}'; allowed: cpu, or cuda:N below the \d+"):
        open_index(folder, device=device)


def test_an_exact_index_stays_on_the_cpu(tmp_path):
    build_index(np.arange(9), np.eye(9, dtype=np.float32), RetrieveConfig(kind="flat"), tmp_path / "index")
    [(ids, _)] = open_index(tmp_path / "index", device="cuda:0").search(np.eye(9)[3:4], [1])
    assert ids.tolist() == [3]


@pytest.mark.gpu
@pytest.mark.skipif(not faiss.get_num_gpus(), reason="this build of Faiss sees no GPU")
@pytest.mark.parametrize("num_hidden", [0, 500, NUM_ITEMS - 10])
def test_the_gpu_finds_what_the_cpu_finds(folder, queries, num_hidden):
    cpu, gpu = open_index(folder), open_index(folder, device="cuda:0")
    hidden = np.arange(num_hidden) * 7
    cpu.hide(hidden)
    gpu.hide(hidden)
    for k in (1, 30, MOST_ON_GPU, NUM_ITEMS):
        for ours, theirs in zip(gpu.search(queries, [k] * 20), cpu.search(queries, [k] * 20), strict=True):
            k_found = min(k, NUM_ITEMS - num_hidden)
            assert len(ours[0]) == len(np.unique(ours[0])) == k_found
            assert not np.isin(ours[0], hidden).any()
            # The graph may miss a cell that the GPU probes, never more than a few of these lists' items.
            assert len(np.intersect1d(ours[0], theirs[0])) >= 0.95 * k_found
            np.testing.assert_allclose(ours[1][:1], theirs[1][:1], atol=1e-2)
