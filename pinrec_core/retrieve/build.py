"""Building the item index: cells, codes, the graph, and how far to search for a recall (paper, section 4.4.4)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from pinrec_core.config import RetrieveConfig
from pinrec_core.errors import InvalidConfig, InvalidData
from pinrec_core.retrieve.index import FORMAT, IvfHnswIndex, RerankedIvfIndex
from pinrec_core.retrieve.int8_rows import Int8Rows
from pinrec_core.retrieve.tuning import choose_ef_search, choose_nprobe, exact_kth_scores, measure_recall

FLAT_BELOW = 20_000
"""`auto`: corpora smaller than this are searched exactly."""
POINTS_PER_CELL = 64
"""k-means gets this many vectors a cell (Faiss asks for 39 to 256), and no corpus gets more cells than that allows."""
RECALL_AT = 100
NUM_TUNING_QUERIES = 256
_MARGIN = 0.003
"""What the tuning aims at above the target: the recall of so many other queries is that much lower now and then."""
_HNSW_LINKS = 32
_ADDED_AT_ONCE = 65_536
_CODES = {"sq8": "QT_8bit", "fp16": "QT_fp16"}
_FEWEST_TO_TRAIN = 16
"""Vectors that Faiss wants for a table of 4-bit codes."""


def build_index(
    ids: NDArray[np.int64],
    vectors: NDArray[np.float32],
    config: RetrieveConfig,
    folder: Path,
    queries: NDArray[np.float32] | None = None,
) -> dict[str, Any]:
    """Build the index of a corpus and write it into the new `folder`.

    ids: int64 [N], distinct. vectors: float32 [N, D], L2-normalized. queries: float32 [Q, D], generated embeddings to
    choose nprobe and ef_search on; without them, corpus vectors that k-means did not see (it sees all of a corpus below
    1,024), which are easier to find than generated embeddings. Returns the facts for the manifest, as in index.json:
    kind, codes, num_items, dim, nlist, nprobe, ef_search (0 = no graph), recall (at `recall_at`, against exact search),
    recall_target. Raises InvalidData if vectors or queries are empty, not finite or do not fit; InvalidConfig if
    retrieve.nlist does not fit the corpus.
    """
    _check_corpus(ids, vectors)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity, which the next line refuses
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    _check_finite(ids, vectors)
    if queries is not None and (not len(queries) or queries.shape[1:] != vectors.shape[1:]):
        raise InvalidData(f"index: queries {list(queries.shape)}; allowed: [Q, {vectors.shape[1]}] with Q > 0")
    flat = config.kind == "flat" or (config.kind == "auto" and len(ids) < FLAT_BELOW)
    int8_rows = Int8Rows.of(vectors) if config.codes == "pq4" and not flat else None
    index, search_facts = _build_flat(vectors) if flat else _build_ivf_hnsw(vectors, config, queries, int8_rows)
    facts = {
        "format": FORMAT,
        "num_items": len(ids),
        "dim": vectors.shape[1],
        "recall_target": config.recall_target,
        **search_facts,
    }
    folder.mkdir(parents=True)
    faiss.write_index(index, str(folder / "index.faiss"))
    np.save(folder / "ids.npy", np.asarray(ids, dtype=np.int64), allow_pickle=False)
    if int8_rows is not None:
        int8_rows.save(folder)
    (folder / "index.json").write_text(json.dumps(facts, indent=1, sort_keys=True))
    return facts


def _check_corpus(ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
    if not len(ids) or vectors.ndim != 2 or len(vectors) != len(ids):
        raise InvalidData(f"index: {len(ids)} ids and vectors {list(vectors.shape)}; allowed: [N], [N, D] with N > 0")
    if len(np.unique(ids)) != len(ids):
        raise InvalidData(f"index: {len(ids) - len(np.unique(ids))} of {len(ids)} item ids are duplicates")


def _check_finite(ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        raise InvalidData(f"index: {bad.sum()} vectors hold NaN or infinity; first item ids {ids[bad][:5].tolist()}")


def _build_flat(vectors: NDArray[np.float32]) -> tuple[Any, dict[str, Any]]:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    exact = {"recall": 1.0, "recall_at": min(RECALL_AT, len(vectors))}
    return index, {"kind": "flat", "codes": "float32", "nlist": 0, "nprobe": 0, "ef_search": 0, **exact}


def _build_ivf_hnsw(
    vectors: NDArray[np.float32],
    config: RetrieveConfig,
    queries: NDArray[np.float32] | None,
    int8_rows: Int8Rows | None,
) -> tuple[Any, dict[str, Any]]:
    shuffled = np.random.default_rng(0).permutation(len(vectors))
    held_out = shuffled[:NUM_TUNING_QUERIES]
    nlist = _num_cells(len(vectors), config)
    unseen = shuffled[NUM_TUNING_QUERIES:] if len(vectors) >= 4 * NUM_TUNING_QUERIES else shuffled
    sample = unseen[: POINTS_PER_CELL * nlist]
    index = _in_cells(vectors, vectors[np.sort(sample)], nlist, config.codes)
    queries = vectors[held_out] if queries is None else queries[:NUM_TUNING_QUERIES]
    facts = {"kind": "ivf_hnsw", "codes": config.codes, "nlist": nlist}
    return index, {**facts, **_tune(index, vectors, queries, config, int8_rows)}


def _num_cells(num_items: int, config: RetrieveConfig) -> int:
    """The power of two nearest to 4 sqrt(N), so that finding cells and scanning them cost about the same."""
    if config.nlist > num_items:
        raise InvalidConfig(f"retrieve.nlist has value {config.nlist}; allowed: at most the {num_items} items")
    by_size = 1 << round(np.log2(4 * np.sqrt(num_items)))
    return config.nlist or max(1, min(by_size, num_items // POINTS_PER_CELL))


def _in_cells(vectors: NDArray[np.float32], sample: NDArray[np.float32], nlist: int, codes: str) -> Any:
    """An IVF index of all vectors. Centroids, codes and the cell of each vector are found exactly, by products of
    matrices: several times as fast as a walk of the graph for each vector. The graph over the centroids comes last.
    """
    exact = faiss.IndexFlatIP(vectors.shape[1])
    index = _empty(exact, nlist, codes)
    index.cp.min_points_per_centroid = 1  # fewer than 39 is the caller's choice, not a line on stderr
    index.train(np.resize(sample, (max(len(sample), _FEWEST_TO_TRAIN), index.d)))  # repeats itself where it is short
    for start in range(0, len(vectors), _ADDED_AT_ONCE):
        index.add(vectors[start : start + _ADDED_AT_ONCE])
    # The metric is said again: a graph left to its default would compare by L2.
    graph = faiss.IndexHNSWFlat(index.d, _HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.add(exact.reconstruct_n(0, nlist))
    graph.hnsw.efSearch = 2 * _HNSW_LINKS  # while items that are added later look for their cells
    index.quantizer, index.own_fields = graph, True
    graph.this.disown()
    return index


def _empty(quantizer: Any, nlist: int, codes: str) -> Any:
    """An untrained IVF index that borrows its quantizer."""
    dim, metric = quantizer.d, faiss.METRIC_INNER_PRODUCT
    if codes == "float32":
        return faiss.IndexIVFFlat(quantizer, dim, nlist, metric)
    if codes == "pq4":
        index = faiss.IndexIVFPQFastScan(quantizer, dim, nlist, dim, 4, metric)  # 16 values for each dimension
        index.by_residual = True  # of what a vector differs by from its centroid
        index.pq.cp.min_points_per_centroid = 1
        return index
    return faiss.IndexIVFScalarQuantizer(quantizer, dim, nlist, getattr(faiss.ScalarQuantizer, _CODES[codes]), metric)


def _tune(
    index: Any,
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    config: RetrieveConfig,
    int8_rows: Int8Rows | None,
) -> dict[str, Any]:
    """Choose nprobe and ef_search by the recall of the class that serves them."""
    k = min(RECALL_AT, len(vectors))
    kth_scores = exact_kth_scores(_build_flat(vectors)[0], queries, k)
    rows = np.arange(len(vectors))

    def recall(nprobe: int, ef_search: int = 0) -> float:
        probes = nprobe, ef_search
        served = (
            IvfHnswIndex(index, rows, *probes)
            if int8_rows is None
            else RerankedIvfIndex(index, rows, int8_rows, *probes)
        )
        found = np.stack([hits[0] for hits in served.search(queries, [k] * len(queries))])
        return measure_recall(vectors, queries, found, kth_scores)

    fixed, target = min(config.nprobe, index.nlist), min(config.recall_target + _MARGIN, 1.0)
    nprobe, reached = (fixed, recall(fixed)) if fixed else choose_nprobe(recall, index.nlist, target)
    enough = min(reached, target)
    ef_search = config.ef_search or choose_ef_search(lambda ef: recall(nprobe, ef), nprobe, index.nlist, enough)
    reached = recall(nprobe, ef_search)
    return {"nprobe": nprobe, "ef_search": ef_search, "recall": round(reached, 4), "recall_at": k}
