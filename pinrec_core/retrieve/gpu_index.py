"""The IVF index on a GPU, for the GPU build of Faiss (extra `gpu`). What a GPU cannot do, the mapped CPU index does."""

from __future__ import annotations

import threading
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from pinrec_core.errors import InvalidConfig
from pinrec_core.retrieve.index import IvfHnswIndex

MOST_ON_GPU = 2_048
"""Of k and of nprobe: what one selection of Faiss's GPU code holds."""


class GpuIvfIndex(IvfHnswIndex):
    """Cells and codes of the CPU index on a GPU, whose centroids are searched exactly: there is no graph on a GPU.

    Faiss's GPU code takes no selector: while items are hidden it is asked for twice as many, and lists that are still
    too short come from the CPU index, as do those of more than 2,048 items or cells. One thread searches at a time.
    """

    def __init__(
        self,
        index: Any,
        ids: NDArray[np.int64],
        nprobe: int,
        ef_search: int,
        num_threads: int = 0,
        device: str = "cuda:0",
    ) -> None:
        super().__init__(index, ids, nprobe, ef_search, num_threads)
        number = gpu_number(device)
        self._twin = with_flat_quantizer(index, self.centroids)
        self._resources = faiss.StandardGpuResources()
        self._on_gpu = faiss.index_cpu_to_gpu(self._resources, number, self._twin)
        self._turn = threading.Lock()  # GPU resources are not thread-safe

    def _nearest_rows(
        self, queries: NDArray[np.float32], k: int, selector: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        asked, nprobe = k if selector is None else 2 * k, self.num_probes(k)
        if max(asked, nprobe) > MOST_ON_GPU:
            return super()._nearest_rows(queries, k, selector)
        with self._turn:
            scores, rows = self._on_gpu.search(queries, asked, params=faiss.SearchParametersIVF(nprobe=nprobe))
        scores, rows = first_shown(scores, rows, self._shown, k)
        short = np.flatnonzero(rows[:, -1] < 0)
        if len(short):
            scores[short], rows[short] = super()._nearest_rows(queries[short], k, selector)
        return scores, rows


def gpu_number(device: str) -> int:
    """The number in "cuda:1". Raises InvalidConfig if it is none, or Faiss does not see that GPU."""
    kind, _, number = device.partition(":")
    if kind != "cuda" or not number.isdecimal() or int(number) >= faiss.get_num_gpus():
        seen = f"cuda:N below the {faiss.get_num_gpus()} GPUs that this build of Faiss sees"
        raise InvalidConfig(f"device has value {device!r}; allowed: cpu, or {seen}")
    return int(number)


def with_flat_quantizer(index: Any, centroids: NDArray[np.float32]) -> Any:
    """An IVF index over the same cells and codes (borrowed from `index`) that finds its cells exactly."""
    dim, nlist, metric = index.d, index.nlist, faiss.METRIC_INNER_PRODUCT
    quantizer = faiss.IndexFlatIP(dim)
    quantizer.add(centroids)
    if isinstance(index, faiss.IndexIVFScalarQuantizer):
        twin = faiss.IndexIVFScalarQuantizer(quantizer, dim, nlist, index.sq.qtype, metric, index.by_residual)
        twin.sq = index.sq
    else:
        twin = faiss.IndexIVFFlat(quantizer, dim, nlist, metric)
    twin.replace_invlists(index.invlists, False)
    twin.is_trained, twin.ntotal = True, index.ntotal
    return twin


def first_shown(
    scores: NDArray[np.float32], rows: NDArray[np.int64], shown: NDArray[np.uint8], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The first k of each list [n, m >= k] whose bit in `shown` is set, row -1 where there are fewer: [n, k]."""
    if rows.shape[1] == k:
        return scores, rows
    kept = (rows >= 0) & (shown[rows >> 3] >> (rows & 7).astype(np.uint8) & 1).astype(bool)
    order = np.argsort(~kept, axis=1, kind="stable")[:, :k]
    rows = np.where(np.take_along_axis(kept, order, axis=1), np.take_along_axis(rows, order, axis=1), -1)
    return np.take_along_axis(scores, order, axis=1), rows
