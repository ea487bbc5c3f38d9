"""Held-out users, the corpus that is ranked for them, and what was trained on.

Letters: U users, Z targets a user, J embeddings a user, N pins of the corpus.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pinrec_core.data.dataset import Dataset
from pinrec_core.eval.ranking import Seen
from pinrec_core.generate.budget import normalize
from pinrec_core.schema import ItemType

NUM_TARGETS = 8
"""Delta of the protocol."""


@dataclass(frozen=True)
class Corpus:
    """The index: every pin. ids int64 [N] ascending."""

    ids: NDArray[np.int64]

    @classmethod
    def of(cls, dataset: Dataset) -> Corpus:
        """All pins of a data set."""
        return cls(np.asarray(dataset.items.ids[dataset.items.types == ItemType.PIN]))

    def columns(self, item_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Place of each id, -1 where it is no pin of the corpus: int64 [n] -> int64 [n]."""
        at = np.minimum(np.searchsorted(self.ids, item_ids), len(self.ids) - 1)
        return np.where(self.ids[at] == item_ids, at, -1)


@dataclass(frozen=True)
class HeldOut:
    """One user's request and what came after it."""

    start: int
    """First event of the user."""
    stop: int
    """End of the history: the first target's place among the events."""
    targets: NDArray[np.int64]
    """int64 [Z]: places of the target events."""


def held_out(dataset: Dataset, user_rows: NDArray[np.int64], num_targets: int) -> list[HeldOut]:
    """Split each user's events; users with one target event or none are left out.

    Fewer than `num_targets` + 1 target events: all but the first are targets, so that a history is left.
    """
    users = []
    for row in user_rows:
        at = dataset.histories.slice_of(int(row))
        places = at.start + np.flatnonzero(dataset.target_outcomes[at] >= 0)
        if len(places) >= 2:
            targets = places[-min(num_targets, len(places) - 1) :]
            users.append(HeldOut(at.start, int(targets[0]), targets))
    return users


def target_columns(dataset: Dataset, corpus: Corpus, users: list[HeldOut], width: int) -> tuple[Tensor, Tensor]:
    """Corpus columns of each user's targets: int64 [U, Z], -1 where there is none or it is not in the corpus.

    And bool [U, Z]: which targets exist.
    """
    columns = np.full((len(users), width), -1, dtype=np.int64)
    valid = np.arange(width) < np.array([len(user.targets) for user in users])[:, None]
    places = np.concatenate([user.targets for user in users])
    columns[valid] = corpus.columns(dataset.histories.item_ids[places])
    return torch.from_numpy(columns), torch.from_numpy(valid)


def seen_columns(dataset: Dataset, corpus: Corpus, users: list[HeldOut]) -> Seen:
    """Each user's earlier items, where the corpus holds them."""
    lengths = np.array([user.stop - user.start for user in users])
    rows = np.repeat(np.arange(len(users)), lengths)
    places = np.concatenate([np.arange(user.start, user.stop) for user in users])
    columns = corpus.columns(dataset.histories.item_ids[places])
    held = columns >= 0
    return Seen(torch.from_numpy(rows[held]), torch.from_numpy(columns[held]))


def drop_seen_items(scores: Tensor, dataset: Dataset, corpus: Corpus, users: list[HeldOut]) -> None:
    """Set the scores [U, J, N] of each user's earlier items to -inf, in place."""
    seen = seen_columns(dataset, corpus, users).to(scores.device)
    scores[seen.rows, :, seen.columns] = -torch.inf


def batches_of(users: list[HeldOut], size: int) -> Iterator[list[HeldOut]]:
    """Runs of at most `size` users."""
    for start in range(0, len(users), size):
        yield users[start : start + size]


def train_frequency(
    dataset: Dataset, corpus: Corpus, train_rows: NDArray[np.int64], until_ms: int | None = None
) -> NDArray[np.int64]:
    """Target events of each pin among the training users (int64 rows), before `until_ms` if given: int64 [N]."""
    h = dataset.histories
    is_trained = np.zeros(h.num_users, dtype=bool)
    is_trained[train_rows] = True
    chosen = np.repeat(is_trained, np.diff(h.offsets)) & (dataset.target_outcomes >= 0)
    if until_ms is not None:
        chosen &= h.timestamps_ms < until_ms
    columns = corpus.columns(h.item_ids[chosen])
    return np.bincount(columns[columns >= 0], minlength=len(corpus.ids))


def outcome_mix(training: Dataset) -> NDArray[np.float64]:
    """Share of each outcome among the target events: float64 [A] that sums to 1 (equal shares without events)."""
    outcomes = training.target_outcomes
    counts = np.bincount(outcomes[outcomes >= 0], minlength=len(training.vocabulary.outcomes))
    return normalize(np.maximum(counts, not counts.any()).astype(np.float64))
