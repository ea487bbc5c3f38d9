"""The least that a model must beat: the same most engaged pins for everybody, without those the user has seen."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pinrec_core.data.dataset import Dataset
from pinrec_core.eval.evaluate import NUM_TARGETS, Corpus, HeldOut, held_out, measure


def evaluate_popularity(
    dataset: Dataset,
    train_rows: NDArray[np.int64],
    user_rows: NDArray[np.int64],
    list_length: int,
    num_targets: int = NUM_TARGETS,
    drop_seen: bool = True,
) -> dict[str, float]:
    """Metrics (see `evaluate`) of one list of the `list_length` most engaged pins of the training users.

    With k x num_targets it holds as many items as the embeddings of a model can retrieve at best.
    """
    corpus = Corpus.of(dataset)
    counts = _target_counts(dataset, corpus, train_rows)

    def score(users: list[HeldOut]) -> Tensor:
        return counts.expand(len(users), 1, -1).clone()

    users = held_out(dataset, user_rows, num_targets)
    return measure(score, dataset, corpus, users, list_length, num_targets, drop_seen, progress=False)


def _target_counts(dataset: Dataset, corpus: Corpus, train_rows: NDArray[np.int64]) -> Tensor:
    """Target events of each pin among the training users: float32 [N]."""
    is_trained = np.zeros(dataset.histories.num_users, dtype=bool)
    is_trained[train_rows] = True
    chosen = np.repeat(is_trained, np.diff(dataset.histories.offsets)) & (dataset.target_outcomes >= 0)
    columns = corpus.columns(dataset.histories.item_ids[chosen])
    return torch.from_numpy(np.bincount(columns, minlength=len(corpus.ids)).astype(np.float32))
