"""The least that a model must beat: the same most engaged pins for everybody, without those the user has seen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pinrec_core.data.dataset import Dataset
from pinrec_core.eval.baselines.base import Sequences, Validate
from pinrec_core.eval.baselines.config import BaselineConfig
from pinrec_core.eval.heldout import NUM_TARGETS, Corpus, HeldOut, held_out
from pinrec_core.eval.measure import Scorer, measure


class Popularity:
    """A pin's score is how many target events the training users have of it."""

    name = "popularity"

    def __init__(self, config: BaselineConfig | None = None) -> None:
        """Nothing to configure; the argument is there because every baseline has one."""

    def fit(
        self,
        dataset: Dataset,
        train_rows: NDArray[np.int64],
        train_until_ms: int | None = None,
        progress: bool = False,
        validate: Validate | None = None,
    ) -> None:
        """See `Baseline.fit`: counted, nothing is validated."""
        corpus = Corpus.of(dataset)
        self._counts = Sequences.of_training(dataset, corpus, train_rows, train_until_ms).counts(len(corpus.ids))

    def scorer(self, dataset: Dataset | None = None) -> Scorer:
        """See `Baseline.scorer`."""

        def score(users: list[HeldOut]) -> Tensor:
            return self._counts.expand(len(users), 1, -1).clone()

        return score


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
    popularity = Popularity()
    popularity.fit(dataset, train_rows)
    users = held_out(dataset, user_rows, num_targets)
    scorer = popularity.scorer()
    return measure(scorer, dataset, Corpus.of(dataset), users, list_length, num_targets, drop_seen, progress=False)
