"""Compression: similar generated embeddings become one, which then fetches for all of them (paper, section 4.4.3).

Called once an outcome, never across outcomes. numpy only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def compress(embeddings: NDArray[np.float32], threshold: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Merge each embedding, in generation order, into the most similar kept one above `threshold`.

    embeddings: float32 [M, D] of one outcome, in generation order. threshold: cosine; 1 or more never merges.
    Returns `kept` int64 [K], ascending rows of `embeddings`, and `merged` int64 [K], how many embeddings each stands
    for, itself included (sum M). Ties go to the earliest kept one. A kept vector does not move.
    """
    cosines = _cosines(embeddings)
    kept = _kept_rows(cosines, threshold)
    # A row may only join one kept before it; a kept row's best such neighbour is itself.
    candidates = np.where(kept[:, None] <= np.arange(len(cosines)), cosines[kept], -np.inf)
    candidates[np.arange(len(kept)), kept] = np.inf
    owner = candidates.argmax(axis=0) if len(kept) else kept
    return kept, np.bincount(owner, minlength=len(kept)).astype(np.int64)


def allocate_to_embeddings(merged: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Split an outcome's `count` over its kept embeddings by merge counts (section 4.4.3).

    merged: int64 [K], positive, K >= 1. Returns int64 [K] that sums to `count`: largest remainder in exact integers,
    ties to the earliest. An embedding that gets 0 is not searched.
    """
    weights = np.asarray(merged, dtype=np.int64)
    assert count >= 0
    assert len(weights)
    assert (weights > 0).all()
    counts, remainders = np.divmod(weights * count, weights.sum())
    counts[np.argsort(-remainders, kind="stable")[: count - counts.sum()]] += 1
    return counts


def _cosines(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [M, D] -> [M, M]. Capped at 1, since rounding must not lift a copy above a threshold of 1."""
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    units = embeddings / np.where(norms > 0, norms, np.float32(1.0))
    return np.minimum(units @ units.T, np.float32(1.0))


def _kept_rows(cosines: NDArray[np.float32], threshold: float) -> NDArray[np.int64]:
    """Rows that no earlier kept row is similar to: one pass a kept row instead of one a row."""
    free = np.ones(len(cosines), dtype=bool)
    kept: list[int] = []
    while free.any():
        row = int(free.argmax())
        kept.append(row)
        free &= cosines[row] <= threshold
        free[row] = False
    return np.array(kept, dtype=np.int64)
