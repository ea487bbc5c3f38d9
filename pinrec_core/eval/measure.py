"""Measures any scorer on held-out users, in bounded memory: `UserResults`.

Letters: U users, J embeddings a user, Z targets a user, N pins of the corpus, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from pinrec_core.data.dataset import Dataset
from pinrec_core.eval import metrics
from pinrec_core.eval.heldout import NUM_TARGETS, Corpus, HeldOut, batches_of, seen_columns, target_columns
from pinrec_core.eval.ranking import Ranking, Seen, rank_scores, rank_vectors
from pinrec_core.eval.results import UNKNOWN_FREQUENCY, UserResults

_MAX_USERS, _MAX_SCORES = 128, 1 << 26
"""Users and scores (U x J x N, 256 MiB) held at a time."""


Scorer = Callable[[list[HeldOut]], Tensor]
"""Scores of every pin under each of a user's J queries: float32 [U, J, N], -inf for a query that a user lacks."""


@runtime_checkable
class VectorScorer(Protocol):
    """A scorer whose scores are dot products, so that the corpus can be searched chunk by chunk."""

    vectors: Tensor
    """float32 [N, D], one row a pin of the corpus."""

    def generate(self, users: list[HeldOut]) -> tuple[Tensor, Tensor]:
        """Queries float32 [U, J, D] and bool [U, J], which of them a user has."""
        ...

    def __call__(self, users: list[HeldOut]) -> Tensor:
        """The same as scores, [U, J, N]."""
        ...


def measure(
    scorer: Scorer,
    dataset: Dataset,
    corpus: Corpus,
    users: list[HeldOut],
    k: int,
    num_targets: int,
    drop_seen: bool,
    progress: bool,
) -> dict[str, float]:
    """Averages of `measure_users`, see `UserResults.summary`."""
    return measure_users(scorer, dataset, corpus, users, k, num_targets, drop_seen, progress).summary()


def measure_users(
    scorer: Scorer,
    dataset: Dataset,
    corpus: Corpus,
    users: list[HeldOut],
    k: int,
    num_targets: int = NUM_TARGETS,
    drop_seen: bool = True,
    progress: bool = False,
    train_counts: NDArray[np.int64] | None = None,
) -> UserResults:
    """Rank each user's corpus under each query, top k of each, batch by batch in bounded memory.

    A `VectorScorer` is searched chunk by chunk of the corpus, any other is asked for all scores. `num_targets`: the
    most targets that a user has. `train_counts`: int64 [N] (`train_frequency`), to tell cold items apart.
    """
    searched = isinstance(scorer, VectorScorer)
    size = _MAX_USERS if searched else users_at_once(num_targets, corpus)
    tally = Tally(dataset, corpus, train_counts)
    with tqdm(total=len(users), desc="evaluate", unit=" users", disable=not progress, leave=False) as bar:
        for batch in batches_of(users, size):
            targets, valid = target_columns(dataset, corpus, batch, num_targets)
            seen = seen_columns(dataset, corpus, batch) if drop_seen else Seen.nothing()
            if isinstance(scorer, VectorScorer):
                found = rank_vectors(*scorer.generate(batch), scorer.vectors, targets, seen, k)
            else:
                found = rank_scores(scorer(batch), targets, seen, k)
            tally.add(batch, found, targets, valid)
            bar.update(len(batch))
    return tally.results()


def users_at_once(num_queries: int, corpus: Corpus) -> int:
    """Users whose scores under `num_queries` queries each are held together."""
    return max(1, min(_MAX_USERS, _MAX_SCORES // (num_queries * len(corpus.ids))))


class Tally:
    """Gathers what each batch found."""

    def __init__(self, dataset: Dataset, corpus: Corpus, train_counts: NDArray[np.int64] | None = None) -> None:
        self._dataset = dataset
        self._train_counts = train_counts
        self._retrieved = np.zeros(len(corpus.ids), dtype=np.int64)
        self._users: list[HeldOut] = []
        self._any_hit: list[Tensor] = []
        self._share: list[Tensor] = []
        self._unique: list[Tensor] = []
        self._target_hit: list[Tensor] = []
        self._target_column: list[Tensor] = []

    def add(self, users: list[HeldOut], found: Ranking, targets: Tensor, valid: Tensor) -> None:
        """Targets int64 [U, Z] and valid bool [U, Z] as `target_columns` gave them."""
        hits, retrieved = found.hits, found.retrieved.flatten(1)  # [U, J, Z], [U, J k]
        self._users += users
        self._any_hit.append(metrics.unordered_recall_at_k(hits, valid))
        self._share.append(metrics.target_recall_at_k(hits, valid))
        self._unique.append(metrics.unique_within_user(retrieved))
        self._target_hit.append(hits.any(dim=1)[valid])
        self._target_column.append(targets[valid])
        self._retrieved += np.bincount(retrieved[retrieved >= 0].numpy(), minlength=len(self._retrieved))

    def results(self) -> UserResults:
        """Everything so far."""
        h, vocabulary = self._dataset.histories, self._dataset.vocabulary
        num_targets = np.array([len(user.targets) for user in self._users], dtype=np.int64)
        starts = np.array([user.start for user in self._users], dtype=np.int64)
        stops = np.array([user.stop for user in self._users], dtype=np.int64)
        first = np.array([user.targets[0] for user in self._users], dtype=np.int64)
        places = np.concatenate([np.empty(0, np.int64), *(user.targets for user in self._users)])
        outcome_of = {vocabulary.action_code(name): at for at, name in enumerate(vocabulary.positive_actions)}
        return UserResults(
            user_ids=h.user_ids[np.searchsorted(h.offsets, starts, side="right") - 1],
            any_hit=_joined(self._any_hit, np.float32),
            target_share=_joined(self._share, np.float32),
            num_targets=num_targets,
            unique_within=_joined(self._unique, np.float32),
            surface=h.surfaces[first],
            history_length=stops - starts,
            target_user=np.repeat(np.arange(len(self._users)), num_targets),
            target_outcome=np.array([outcome_of[code] for code in h.actions[places].tolist()], dtype=np.int32),
            target_hit=_joined(self._target_hit, np.bool_),
            target_frequency=self._frequency(_joined(self._target_column, np.int64)),
            surfaces=vocabulary.surfaces,
            outcomes=vocabulary.positive_actions,
            num_retrieved=int(self._retrieved.sum()),
            num_distinct=int((self._retrieved > 0).sum()),
            corpus_size=len(self._retrieved),
            target_surface=h.surfaces[places],
        )

    def _frequency(self, columns: NDArray[np.int64]) -> NDArray[np.int64]:
        if self._train_counts is None:
            return np.full(len(columns), UNKNOWN_FREQUENCY, dtype=np.int64)
        return np.where(columns >= 0, self._train_counts[columns], 0)


def _joined(parts: list[Tensor], dtype: Any) -> NDArray[Any]:
    return torch.cat(parts).numpy().astype(dtype) if parts else np.empty(0, dtype)
