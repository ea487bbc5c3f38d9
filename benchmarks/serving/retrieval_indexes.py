"""Who searches: our index in each of its codes, Faiss without us, exact search, other libraries. One library a process.

A `build_` function leaves an index in a folder and says what it took; an `open_` function opens it for a contender,
whose answers are rows of the vectors, int64 [12, k].
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.contenders import Task
from benchmarks.serving.retrieval_inputs import Inputs, K
from pinrec_core.retrieve.tuning import measure_recall

THREADS = len(os.sched_getaffinity(0))
"""Of every contender."""
LINKS, EF_BUILD = 16, 200
"""Of the peers' graphs: what hnswlib's own documentation begins with, and what usearch rounds to."""
_EFS = (100, 112, 128, 160, 200, 256, 320, 400, 512, 640, 800)

Facts = dict[str, Any]


def build_ours(inputs: Inputs, folder: Path, codes: str, target: float) -> Facts:
    """As an export does."""
    from pinrec_core.config import RetrieveConfig
    from pinrec_core.retrieve.build import build_index

    config = RetrieveConfig(kind="ivf_hnsw", codes=codes, recall_target=target)  # type: ignore[arg-type]
    vectors = np.array(inputs.vectors)
    started = time.perf_counter()
    facts = build_index(np.arange(len(vectors)), vectors, config, folder / "index", inputs.tuning)
    return {**facts, "build_s": time.perf_counter() - started, "bytes": _bytes_of(folder / "index")}


def open_ours(inputs: Inputs, folder: Path) -> Task:
    """Opened as the retrieve stage opens it."""
    from pinrec_core.retrieve.index import open_index

    return _our_task(open_index(folder / "index"), inputs)


def open_with_cells(inputs: Inputs, folder: Path, steps: int) -> Task:
    """The same, with the cells found by so many steps of the graph for each of them, or by products (0)."""
    from pinrec_core.retrieve.index import IvfHnswIndex, open_index

    nprobe = json.loads((folder / "index" / "index.json").read_text())["nprobe"]
    index = IvfHnswIndex(open_index(folder / "index").faiss, np.arange(len(inputs.vectors)), nprobe, steps * nprobe)
    return _our_task(index, inputs)


def _our_task(index: Any, inputs: Inputs) -> Task:
    requests = inputs.requests
    ks = [_k(inputs.vectors)] * requests.shape[1]
    return lambda i: np.stack([ids for ids, _ in index.search(requests[i % len(requests)], ks)])


def open_plain(inputs: Inputs, folder: Path) -> Task:
    """The same index read into memory, asked with Faiss's own call."""
    import faiss

    index = faiss.read_index(str(folder / "index" / "index.faiss"))
    facts = json.loads((folder / "index" / "index.json").read_text())
    index.nprobe = facts["nprobe"]
    faiss.downcast_index(index.quantizer).hnsw.efSearch = facts["ef_search"] or 2 * facts["nprobe"]
    return _faiss_task(index, inputs)


def open_exact(inputs: Inputs, folder: Path, by_products: bool) -> Task:
    """Every item's product. `by_products`: as one matrix product, which Faiss itself does from 20 queries on."""
    import faiss

    if by_products:
        faiss.cvar.distance_compute_blas_threshold = 1
    index = faiss.IndexFlatIP(inputs.vectors.shape[1])
    index.add(np.array(inputs.vectors))
    return _faiss_task(index, inputs)


def _faiss_task(index: Any, inputs: Inputs) -> Task:
    requests, k = inputs.requests, _k(inputs.vectors)
    return lambda i: index.search(requests[i % len(requests)], k)[1]


def build_hnswlib(inputs: Inputs, folder: Path, target: float) -> Facts:
    """Graph of hnswlib, with the smallest ef that reaches the target."""
    import hnswlib

    vectors = np.array(inputs.vectors)
    started = time.perf_counter()
    index = hnswlib.Index(space="ip", dim=vectors.shape[1])
    index.init_index(max_elements=len(vectors), ef_construction=EF_BUILD, M=LINKS, random_seed=0)
    index.add_items(vectors, np.arange(len(vectors)), num_threads=THREADS)
    seconds = time.perf_counter() - started
    index.save_index(str(folder / "index.bin"))

    def search(ef: int) -> NDArray[np.int64]:
        index.set_ef(ef)
        return index.knn_query(inputs.tuning, k=_k(vectors), num_threads=THREADS)[0].astype(np.int64)

    return {**_smallest_ef(search, inputs, target), "build_s": seconds, "bytes": _bytes_of(folder)}


def open_hnswlib(inputs: Inputs, folder: Path) -> Task:
    """Opened with that ef."""
    import hnswlib

    index = hnswlib.Index(space="ip", dim=inputs.vectors.shape[1])
    index.load_index(str(folder / "index.bin"))
    index.set_ef(_facts(folder)["ef_search"])
    requests, k = inputs.requests, _k(inputs.vectors)
    return lambda i: index.knn_query(requests[i % len(requests)], k=k, num_threads=THREADS)[0].astype(np.int64)


def build_usearch(inputs: Inputs, folder: Path, target: float, dtype: str) -> Facts:
    """Graph of usearch in one of its dtypes, with the smallest expansion that reaches the target."""
    from usearch.index import Index

    vectors = np.array(inputs.vectors)
    started = time.perf_counter()
    index = Index(ndim=vectors.shape[1], metric="ip", dtype=dtype, connectivity=LINKS, expansion_add=EF_BUILD)
    index.add(np.arange(len(vectors)), vectors, threads=THREADS)
    seconds = time.perf_counter() - started
    index.save(str(folder / "index.usearch"))

    def search(ef: int) -> NDArray[np.int64]:
        index.expansion_search = ef
        return _keys(index.search(inputs.tuning, _k(vectors), threads=THREADS))

    return {**_smallest_ef(search, inputs, target), "build_s": seconds, "bytes": _bytes_of(folder)}


def open_usearch(inputs: Inputs, folder: Path) -> Task:
    """Opened with that expansion."""
    from usearch.index import Index

    index = Index.restore(str(folder / "index.usearch"))
    index.expansion_search = _facts(folder)["ef_search"]
    requests, k = inputs.requests, _k(inputs.vectors)
    return lambda i: _keys(index.search(requests[i % len(requests)], k, threads=THREADS))


def _keys(matches: Any) -> NDArray[np.int64]:
    return np.asarray(matches.keys).astype(np.int64)


def _smallest_ef(search: Callable[[int], NDArray[np.int64]], inputs: Inputs, target: float) -> Facts:
    """On the queries that our own index is tuned on."""
    for ef in _EFS:
        reached = measure_recall(inputs.vectors, inputs.tuning, search(ef), inputs.kth_tuning)
        if reached >= target:
            break
    return {"ef_search": ef, "recall": round(reached, 4)}


def built(build: Callable[..., Facts], inputs: Inputs, folder: Path, *args: Any) -> Facts:
    """What `build` said when it filled the folder, now or in an earlier run on the same vectors."""
    made_of = [inputs.vectors_path.stat().st_size, inputs.vectors_path.stat().st_mtime_ns]
    if not (folder / "facts.json").exists() or _facts(folder)["made_of"] != made_of:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        facts = build(inputs, folder, *args)
        (folder / "facts.json").write_text(json.dumps({**facts, "made_of": made_of}, indent=1))
    return _facts(folder)


def _facts(folder: Path) -> Facts:
    facts: Facts = json.loads((folder / "facts.json").read_text())
    return facts


def _k(vectors: NDArray[np.float32]) -> int:
    return min(K, len(vectors))


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
