"""Offline evaluation on held-out users: free-running generation against the whole corpus (paper, section 5.1).

A user's last `num_targets` target events are the targets; all that came before the first of them is the history. Every
variant is compared with as many embeddings as the user has targets: `uc` rolls out that many steps; `oc` and `mt_oc`
divide them over outcomes, by default by the targets' own actions (the paper's conditioning on true outcomes), each
outcome's first ones counting. Nothing is teacher-forced. Items that the user has seen are dropped for all alike, so a
target seen before counts as missed.
Letters: U users, J embeddings a user, Z targets a user, N pins of the corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from pinrec_core import codec
from pinrec_core.config import GenerateConfig
from pinrec_core.data.batches import content_rows, event_rows
from pinrec_core.data.dataset import Dataset
from pinrec_core.errors import InvalidConfig
from pinrec_core.eval import metrics
from pinrec_core.eval.ranking import Ranking, Seen, rank_scores, rank_vectors
from pinrec_core.eval.results import UNKNOWN_FREQUENCY, UserResults
from pinrec_core.generate.budget import allocate, normalize
from pinrec_core.generate.rollout import Branches, rollout
from pinrec_core.model.inputs import collate
from pinrec_core.model.pinrec import PinRec
from pinrec_core.schema import ItemType

NUM_TARGETS = 8
"""Delta of the protocol."""
TRUE_OUTCOMES, PAST_OUTCOMES = "true", "past"
"""Ways of conditioning beside the name of an outcome."""

_MAX_USERS, _MAX_SCORES = 128, 1 << 26
"""Users and scores (U x J x N, 256 MiB) held at a time."""


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


@dataclass(frozen=True)
class Reading:
    """One way to measure a model."""

    k: int = 10
    """Items that each embedding retrieves."""
    num_targets: int = NUM_TARGETS
    """Most targets that a user has; as many embeddings as the user's own are generated."""
    drop_seen: bool = True
    """Whether items that the user has seen are left out for everybody."""
    conditioning: str = TRUE_OUTCOMES
    """How embeddings are divided over outcomes: see `Requests`."""


def evaluate(
    model: PinRec,
    dataset: Dataset,
    user_rows: NDArray[np.int64],
    k: int = 10,
    num_targets: int = NUM_TARGETS,
    drop_seen: bool = True,
    progress: bool = False,
) -> dict[str, float]:
    """Metrics of `model` on `user_rows` (int64, rows of the histories), top k of each embedding.

    See `UserResults.summary` for their names. The model is left in the mode it was in.
    """
    users = held_out(dataset, user_rows, num_targets)
    reading = Reading(k, num_targets, drop_seen)
    return evaluate_users(model, dataset, users, reading, progress=progress).summary()


def evaluate_users(
    model: PinRec,
    dataset: Dataset,
    users: list[HeldOut],
    reading: Reading,
    training: Dataset | None = None,
    progress: bool = False,
) -> UserResults:
    """What `model`, as it is configured to generate, finds for `users`, whose places are those of `dataset`.

    `training`: what it was trained on, for the training mix and to tell cold items. The model is left in the mode it
    was in. Raises InvalidConfig for a conditioning that the model does not know.
    """
    corpus = Corpus.of(dataset)
    counts = None if training is None else train_frequency(training, corpus, np.arange(training.histories.num_users))
    mix = None if training is None else outcome_mix(training)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        scorer = RolloutScorer(model, dataset, corpus, reading.num_targets, reading.conditioning, mix)
        results = measure_users(
            scorer, dataset, corpus, users, reading.k, reading.num_targets, reading.drop_seen, progress, counts
        )
    model.train(was_training)
    return results


def outcome_mix(training: Dataset) -> NDArray[np.float64]:
    """Share of each outcome among the target events: float64 [A] that sums to 1 (equal shares without events)."""
    outcomes = training.target_outcomes
    counts = np.bincount(outcomes[outcomes >= 0], minlength=len(training.vocabulary.outcomes))
    return normalize(np.maximum(counts, not counts.any()).astype(np.float64))


class RolloutScorer:
    """Scores the corpus under a model's free-running rollout, as many embeddings as a user has targets."""

    def __init__(
        self,
        model: PinRec,
        dataset: Dataset,
        corpus: Corpus,
        num_targets: int,
        conditioning: str = TRUE_OUTCOMES,
        training_mix: NDArray[np.float64] | None = None,
    ) -> None:
        """See `Requests` for the last two."""
        self._requests = Requests(model, dataset, conditioning, training_mix)
        self._num_targets = num_targets
        plan = model.config.generate
        self._plan = replace(plan, num_steps=-(-num_targets // plan.offsets_per_step))
        self.vectors = item_vectors(model, dataset, corpus)

    def __call__(self, users: list[HeldOut]) -> Tensor:
        """[U, J, N]."""
        embeddings, real = self.generate(users)
        scores = embeddings @ self.vectors.T
        return scores.masked_fill(~real[..., None], -torch.inf)

    def generate(self, users: list[HeldOut]) -> tuple[Tensor, Tensor]:
        """Each outcome's first embeddings: float32 [U, J, D] and bool [U, J], which of them a user has."""
        embeddings, outcomes, counts = self._requests.roll_out(users, self._plan)
        wanted = np.take_along_axis(counts, outcomes, axis=1)  # [U, A']
        taken = torch.from_numpy(np.arange(self._num_targets) < wanted[..., None]).to(embeddings.device)  # [U, A', J]
        return _left_align(embeddings[:, :, : self._num_targets].flatten(1, 2), taken.flatten(1), self._num_targets)


class Requests:
    """Held-out users as serving would meet them: their history, then a rollout for outcomes that share the targets.

    conditioning: how a user's budget, as many embeddings as targets, is divided. `true`: as the targets' own outcomes
    are (the paper, section 5.1). `past`: as the target events of the user's history are, by largest remainder; without
    any as `training_mix` says. The name of an outcome: all on it (Figure 4).
    """

    def __init__(
        self,
        model: PinRec,
        dataset: Dataset,
        conditioning: str = TRUE_OUTCOMES,
        training_mix: NDArray[np.float64] | None = None,
    ) -> None:
        """training_mix: float64 [A], sums to 1; equal shares if left out. Raises InvalidConfig."""
        outcomes = dataset.vocabulary.outcomes
        allowed = (TRUE_OUTCOMES, PAST_OUTCOMES, *outcomes)
        if conditioning not in allowed:
            raise InvalidConfig(f"conditioning has value {conditioning!r}; allowed: one of {list(allowed)}")
        self._model = model
        self._dataset = dataset
        self._device = model.start_token.device
        self._conditioning = conditioning
        self._training_mix = np.full(len(outcomes), 1 / len(outcomes)) if training_mix is None else training_mix

    def roll_out(
        self, users: list[HeldOut], plan: GenerateConfig
    ) -> tuple[Tensor, NDArray[np.int64], NDArray[np.int64]]:
        """Embeddings float32 [U, A', M, D] of the outcomes int64 [U, A'], and budgets int64 [U, A] in embeddings.

        A' is the most outcomes any of the users has; a user's own stand first.
        """
        h, items = self._dataset.histories, self._dataset.items
        longest = _longest_history(self._model, plan)
        inputs = collate([event_rows(h, items, max(u.start, u.stop - longest), u.stop) for u in users])
        counts = np.stack([self._budget(user) for user in users])
        width = int((counts > 0).sum(axis=1).max())
        outcomes = np.argsort(-counts, axis=1, kind="stable")[:, :width]
        first = np.array([u.stop for u in users])
        branches = Branches(
            outcomes=self._tensor(outcomes),
            actions=self._tensor(self._dataset.vocabulary.action_of_outcome[outcomes]),
            surface=self._tensor(h.surfaces[first]),
            request_time_ms=self._tensor(h.timestamps_ms[first]),
        )
        return rollout(self._model, inputs.to(self._device), branches, plan), outcomes, counts

    def _budget(self, user: HeldOut) -> NDArray[np.int64]:
        """Embeddings of each outcome: int64 [A], as many as the user has targets."""
        if self._conditioning == TRUE_OUTCOMES:
            return self._outcome_counts(user.targets)
        if self._conditioning == PAST_OUTCOMES:
            past = self._outcome_counts(np.arange(user.start, user.stop))
            return allocate(normalize(past.astype(np.float64)) if past.any() else self._training_mix, len(user.targets))
        counts = np.zeros(len(self._training_mix), dtype=np.int64)
        counts[self._dataset.vocabulary.outcome_index(self._conditioning)] = len(user.targets)
        return counts

    def _outcome_counts(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The multiset of the outcomes of events: int64 [A]; those that are no target do not count."""
        outcomes = self._dataset.target_outcomes[places]
        return np.bincount(outcomes[outcomes >= 0], minlength=len(self._training_mix))

    def _tensor(self, array: NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(array.astype(np.int64)).to(self._device)


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
        )

    def _frequency(self, columns: NDArray[np.int64]) -> NDArray[np.int64]:
        if self._train_counts is None:
            return np.full(len(columns), UNKNOWN_FREQUENCY, dtype=np.int64)
        return np.where(columns >= 0, self._train_counts[columns], 0)


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


def _joined(parts: list[Tensor], dtype: Any) -> NDArray[Any]:
    return torch.cat(parts).numpy().astype(dtype) if parts else np.empty(0, dtype)


def item_vectors(model: PinRec, dataset: Dataset, corpus: Corpus, rows_at_once: int = 16_384) -> Tensor:
    """Embeddings of the corpus: float32 [N, D] on the model's device."""
    device = model.start_token.device
    parts = []
    for ids in np.split(corpus.ids, range(rows_at_once, len(corpus.ids), rows_at_once)):
        content = torch.from_numpy(codec.dequantize(*content_rows(dataset.items, ids))).to(device)
        item_ids = torch.from_numpy(ids).to(device)
        parts.append(model.item_vectors(item_ids, content, torch.zeros_like(item_ids)))  # item type 0: pins
    return torch.cat(parts)


def _longest_history(model: PinRec, plan: GenerateConfig) -> int:
    """Events that fit beside what a rollout of `plan` feeds back, at most `max_history`.

    A comparison rolls out as many embeddings as there are targets, which may be more than serving does.
    """
    config = model.config
    return min(config.model.max_history, config.max_positions - 1 - (plan.num_steps - 1) * plan.num_fed)


def _left_align(values: Tensor, taken: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The taken rows of each user first, in order: [U, n, D], bool [U, n] -> [U, width, D], bool [U, width]."""
    order = taken.logical_not().long().argsort(dim=1, stable=True)[:, :width]
    return values.gather(1, order[..., None].expand(-1, -1, values.size(-1))), taken.gather(1, order)


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


def users_at_once(num_queries: int, corpus: Corpus) -> int:
    """Users whose scores under `num_queries` queries each are held together."""
    return max(1, min(_MAX_USERS, _MAX_SCORES // (num_queries * len(corpus.ids))))


def batches_of(users: list[HeldOut], size: int) -> Iterator[list[HeldOut]]:
    """Runs of at most `size` users."""
    for start in range(0, len(users), size):
        yield users[start : start + size]
