"""How many cells to probe: the fewest that reach a recall, measured on real vectors. No Faiss object is made here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SCORE_TOLERANCE = 1e-6
_GOOD_ENOUGH = 0.002
"""Where the codes keep the target out of reach, recall this close to the best is not worth more cells."""


def choose_nprobe(recall: Callable[[int], float], nlist: int, target: float) -> tuple[int, float]:
    """The first nprobe of 1, 2, 3, 4, 6, 8, 12, ... nlist whose `recall(nprobe)` reaches `target`, and that recall.

    If none does, the smallest whose recall is within 0.002 of the best.
    """
    measured: list[tuple[int, float]] = []
    for nprobe in _grid(nlist):
        measured.append((nprobe, recall(nprobe)))
        if measured[-1][1] >= target:
            return measured[-1]
    best = max(reached for _, reached in measured)
    return next(pair for pair in measured if pair[1] >= best - _GOOD_ENOUGH)


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
    step = 1
    while step < nlist:
        yield step
        if step > 1 and step * 3 // 2 < nlist:
            yield step * 3 // 2
        step *= 2
    yield nlist
