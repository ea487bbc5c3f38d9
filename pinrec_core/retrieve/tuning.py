"""How many cells to probe, and how to find them: the cheapest that reaches a recall, measured on real vectors.

No Faiss object is made here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SCORE_TOLERANCE = 1e-6
_CELLS_A_STEP = 100
_GOOD_ENOUGH = 0.002
"""Where the codes keep the target out of reach, recall this close to the best is not worth more cells."""


def choose_nprobe(recall: Callable[[int], float], nlist: int, target: float) -> tuple[int, float]:
    """The first of 1 to 8, 10, 12, 14, 16, 20, ... nlist whose `recall(nprobe)` reaches `target`, and that recall.

    If none does, the smallest whose recall is within 0.002 of the best.
    """
    measured: list[tuple[int, float]] = []
    for nprobe in _grid(nlist):
        measured.append((nprobe, recall(nprobe)))
        if measured[-1][1] >= target:
            return measured[-1]
    best = max(reached for _, reached in measured)
    return next(pair for pair in measured if pair[1] >= best - _GOOD_ENOUGH)


def choose_ef_search(recall: Callable[[int], float], nprobe: int, nlist: int, target: float) -> int:
    """The first ef_search of 1, 1.5, 2, 3 and 4 times nprobe whose `recall(ef_search)` reaches `target`.

    0, products with all centroids, if none does before those products are cheaper: for 12 queries of width 64, a step
    of the graph (one of ef_search) costs as much as 100 centroids (`benchmarks/serving/retrieval.py`).
    """
    for ef_search in (nprobe, -(-3 * nprobe // 2), 2 * nprobe, 3 * nprobe, 4 * nprobe):
        if _CELLS_A_STEP * ef_search > nlist:
            return 0
        if recall(ef_search) >= target:
            return ef_search
    return 0


def exact_kth_scores(exact: Any, queries: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """Score of the k-th nearest item of each query by the exact Faiss index: [Q, D] -> [Q]."""
    scores: NDArray[np.float32] = exact.search(np.ascontiguousarray(queries), k)[0]
    return scores[:, -1]


def measure_recall(
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    found: NDArray[np.int64],
    kth_scores: NDArray[np.float32],
) -> float:
    """Share of the found rows [Q, k] in the exact top k, judged by score: equal vectors stand for each other."""
    scores = np.stack([vectors[rows] @ query for rows, query in zip(found, queries, strict=True)])
    return float((scores >= kth_scores[:, None] - _SCORE_TOLERANCE).mean())


def _grid(nlist: int) -> Iterator[int]:
    """Four steps an octave."""
    nprobe = 1
    while nprobe < nlist:
        yield nprobe
        nprobe += max(1, 1 << nprobe.bit_length() >> 3)
    yield nlist
