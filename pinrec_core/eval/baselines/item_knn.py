"""Item-kNN: items that the same training users engaged with, by cosine (Deshpande and Karypis, TOIS 2004).

Letters: U users, N pins, K neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pinrec_core.data.dataset import Dataset
from pinrec_core.eval.baselines.base import Sequences, Validate, latest_targets
from pinrec_core.eval.baselines.config import BaselineConfig
from pinrec_core.eval.heldout import Corpus, HeldOut
from pinrec_core.eval.measure import Scorer

_ROWS_AT_ONCE = 2_048
"""Rows of the item x item product held at a time."""

_POPULARITY_WEIGHT = 1e-6
"""Orders by popularity what no neighbour speaks for; below any cosine that counts."""


class ItemKNN:
    """A candidate's score is the sum of its cosines with the user's distinct items."""

    name = "item_knn"

    def __init__(self, config: BaselineConfig) -> None:
        self.config = config

    def fit(
        self,
        dataset: Dataset,
        train_rows: NDArray[np.int64],
        train_until_ms: int | None = None,
        progress: bool = False,
        validate: Validate | None = None,
    ) -> None:
        """See `Baseline.fit`: counted, nothing is validated."""
        from scipy import sparse

        self._dataset, self._corpus = dataset, Corpus.of(dataset)
        sequences = Sequences.of_training(dataset, self._corpus, train_rows, train_until_ms)
        shape = (len(sequences), len(self._corpus.ids))
        ones = np.ones(len(sequences.columns), dtype=np.float32)
        engaged = sparse.csr_matrix((ones, (sequences.users(), sequences.columns)), shape=shape)  # [U, N]
        engaged.data[:] = 1.0  # repeats were summed
        users_of = np.asarray(engaged.sum(axis=0)).ravel()  # [N]
        self._popularity = (users_of / max(1.0, users_of.max())).astype(np.float32)
        self._similarity = similarities(engaged, self.config.neighbours, self.config.shrinkage)

    def scorer(self, dataset: Dataset | None = None) -> Scorer:
        """See `Baseline.scorer`."""
        from scipy import sparse

        source = self._dataset if dataset is None else dataset

        def score(users: list[HeldOut]) -> Tensor:
            rows = [np.unique(row) for row in latest_targets(source, self._corpus, users)]
            offsets = np.cumsum([0, *map(len, rows)])
            columns = np.concatenate(rows) if rows else np.empty(0, np.int64)
            shape = (len(users), len(self._corpus.ids))
            history = sparse.csr_matrix((np.ones(len(columns), np.float32), columns, offsets), shape=shape)
            scores = (history @ self._similarity).toarray() + _POPULARITY_WEIGHT * self._popularity
            return torch.from_numpy(scores.astype(np.float32))[:, None]

        return score


def similarities(engaged: Any, neighbours: int, shrinkage: float) -> Any:
    """Shrunk cosine of the columns, the best `neighbours` of each: scipy CSR [U, N] of ones -> CSR float32 [N, N].

    common / (sqrt(n_i n_j) + shrinkage), with `common` the users of both and n the users of one; 0 on the diagonal.
    """
    from scipy import sparse

    root = np.sqrt(np.asarray(engaged.sum(axis=0)).ravel())  # [N]
    by_item = engaged.T.tocsr()
    parts = []
    for start in range(0, by_item.shape[0], _ROWS_AT_ONCE):
        common = (by_item[start : start + _ROWS_AT_ONCE] @ engaged).tocoo()
        row, column = common.row, common.col
        value = common.data / (root[start + row] * root[column] + shrinkage)
        value[start + row == column] = 0.0
        order = np.lexsort((column, -value, row))
        row, column, value = row[order], column[order], value[order]
        rank = np.arange(len(row)) - np.searchsorted(row, row)  # place within its row, best first
        kept = (rank < neighbours) & (value > 0)
        parts.append(sparse.csr_matrix((value[kept].astype(np.float32), (row[kept], column[kept])), shape=common.shape))
    return sparse.vstack(parts).tocsr()
