"""What every baseline is, and how it sees the log: a user's target events as columns of the corpus.

Letters: U users, T target events of a history, N pins of the corpus, E target events of all training users.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pinrec_core.data.dataset import Dataset
from pinrec_core.errors import InvalidData
from pinrec_core.eval.heldout import Corpus, HeldOut
from pinrec_core.eval.measure import Scorer
from pinrec_core.eval.protocols import Parts

Validate = Callable[[Scorer], float]
"""How good a scorer is on held-out users; more is better."""


class Baseline(Protocol):
    """A model that is fitted to training users and then scores the corpus for held-out ones."""

    name: str

    def fit(
        self,
        dataset: Dataset,
        train_rows: NDArray[np.int64],
        train_until_ms: int | None = None,
        progress: bool = False,
        validate: Validate | None = None,
    ) -> None:
        """Learn from the target events of `train_rows` (int64, rows of the histories) before `train_until_ms`.

        What is trained in epochs keeps, with `validate`, the best weights it saw and stops by
        `BaselineConfig.patience`; the others ignore it. Raises InvalidData if there is nothing to learn from.
        """

    def scorer(self, dataset: Dataset | None = None) -> Scorer:
        """Scores of every pin: float32 [U, J, N], J = 1 for one-vector models.

        `dataset` is where the held-out users' events lie, by default what `fit` was given; its pins must be the same.
        """


@dataclass(frozen=True)
class Sequences:
    """Target events of users: those of the i-th lie at `offsets[i]:offsets[i + 1]`, oldest first.

    columns int64 [E], places in the corpus; offsets int64 [U + 1].
    """

    columns: NDArray[np.int64]
    offsets: NDArray[np.int64]

    @classmethod
    def of_training(
        cls, dataset: Dataset, corpus: Corpus, train_rows: NDArray[np.int64], train_until_ms: int | None
    ) -> Sequences:
        """Those of `train_rows`, before `train_until_ms`. Raises InvalidData if there are none."""
        h = dataset.histories
        chosen = training_targets(dataset, train_rows, train_until_ms)
        counts = h.count_by_user(chosen)[np.sort(train_rows)]
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])
        return cls(corpus.columns(h.item_ids[chosen]), offsets)

    def __len__(self) -> int:
        """U."""
        return len(self.offsets) - 1

    def counts(self, num_items: int) -> Tensor:
        """How many events each of the corpus' pins has: float32 [N]."""
        return torch.from_numpy(np.bincount(self.columns, minlength=num_items).astype(np.float32))

    def users(self) -> NDArray[np.int64]:
        """Row of each event's user: int64 [E]."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))


def training_targets(dataset: Dataset, train_rows: NDArray[np.int64], train_until_ms: int | None) -> NDArray[np.bool_]:
    """Which events are target events of `train_rows` before `train_until_ms`: bool [events of the histories].

    Raises InvalidData if there are none.
    """
    h = dataset.histories
    is_trained = np.zeros(h.num_users, dtype=bool)
    is_trained[train_rows] = True
    chosen = np.repeat(is_trained, np.diff(h.offsets)) & (dataset.target_outcomes >= 0)
    if train_until_ms is not None:
        chosen &= h.timestamps_ms < train_until_ms
    if not chosen.any():
        until = "" if train_until_ms is None else f" before {train_until_ms} ms"
        raise InvalidData(f"{dataset.name}: the training users have no target events{until}")
    return chosen


def before(dataset: Dataset, until_ms: int | None) -> Dataset:
    """`dataset` without its events from `until_ms` on; the rows of users stay. None = all of it."""
    if until_ms is None:
        return dataset
    early = dataset.histories.timestamps_ms < until_ms
    nobody = np.empty(0, dtype=np.int64)
    return Parts(nobody, [], [], until_ms, early).training_data(dataset)


def latest_targets(
    dataset: Dataset, corpus: Corpus, users: list[HeldOut], longest: int | None = None
) -> list[NDArray[np.int64]]:
    """Corpus columns of each user's last `longest` target events before the request, oldest first; may be empty."""
    found = []
    for user in users:
        at = slice(user.start, user.stop)
        columns = corpus.columns(dataset.histories.item_ids[at][dataset.target_outcomes[at] >= 0])
        found.append(columns if longest is None else columns[max(0, len(columns) - longest) :])
    return found


def pad(rows: list[NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
    """Right-pad with column 0: int64 [U, T], and lengths int64 [U]; T is at least 1."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    padded = np.zeros((len(rows), max(1, int(lengths.max(initial=0)))), dtype=np.int64)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(padded), torch.from_numpy(lengths)
