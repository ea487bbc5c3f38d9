"""Offline evaluation on held-out users: free-running generation against the whole corpus (paper, section 5.1).

A user's last `num_targets` target events are the targets; all that came before the first of them is the history. Every
variant is compared with as many embeddings as the user has targets: `uc` rolls out that many steps; `oc` and `mt_oc`
divide them over outcomes, by default by the targets' own actions (the paper's conditioning on true outcomes), each
outcome's first ones counting. Nothing is teacher-forced. Items that the user has seen are dropped for all alike, so a
target seen before counts as missed.
Letters: U users, J embeddings a user, Z targets a user, N pins of the corpus.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pinrec_core import codec
from pinrec_core.config import GenerateConfig
from pinrec_core.data.batches import content_rows, event_rows
from pinrec_core.data.dataset import Dataset
from pinrec_core.errors import InvalidConfig
from pinrec_core.eval.heldout import (
    NUM_TARGETS,
    Corpus,
    HeldOut,
    batches_of,
    drop_seen_items,
    held_out,
    outcome_mix,
    target_columns,
    train_frequency,
)
from pinrec_core.eval.measure import Scorer, VectorScorer, measure, measure_users, users_at_once
from pinrec_core.eval.results import UserResults
from pinrec_core.generate.budget import allocate, normalize
from pinrec_core.generate.rollout import Branches, rollout
from pinrec_core.model.inputs import collate
from pinrec_core.model.pinrec import PinRec

__all__ = [
    "NUM_TARGETS", "PAST_OUTCOMES", "TRUE_OUTCOMES", "Corpus", "HeldOut", "Reading", "Requests", "RolloutScorer",
    "Scorer", "VectorScorer", "batches_of", "drop_seen_items", "evaluate", "evaluate_users", "held_out",
    "item_vectors", "measure", "measure_users", "outcome_mix", "target_columns", "train_frequency", "users_at_once",
]  # fmt: skip
"""An evaluation's words in one place: what is measured (heldout), how (measure), and a model of ours."""

TRUE_OUTCOMES, PAST_OUTCOMES = "true", "past"
"""Ways of conditioning beside the name of an outcome."""


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
        embeddings = rollout(self._model, inputs.to(self._device, self._model.start_token.dtype), branches, plan)
        return embeddings.float(), outcomes, counts

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


def item_vectors(model: PinRec, dataset: Dataset, corpus: Corpus, rows_at_once: int = 16_384) -> Tensor:
    """Embeddings of the corpus: float32 [N, D] on the model's device, computed in its precision."""
    like = model.start_token
    device = like.device
    parts = []
    for ids in np.split(corpus.ids, range(rows_at_once, len(corpus.ids), rows_at_once)):
        content = torch.from_numpy(codec.dequantize(*content_rows(dataset.items, ids))).to(device, like.dtype)
        item_ids = torch.from_numpy(ids).to(device)
        parts.append(model.item_vectors(item_ids, content, torch.zeros_like(item_ids)).float())  # item type 0: pins
    return torch.cat(parts)


def _longest_history(model: PinRec, plan: GenerateConfig) -> int:
    """Events that fit beside what a rollout of `plan` feeds back, at most `max_history`.

    A comparison rolls out as many embeddings as there are targets, which may be more than serving does. Raises
    InvalidConfig if the positions that were trained do not even hold what is fed back.
    """
    fed = (plan.num_steps - 1) * plan.num_fed
    room = model.decoder.positions.num_embeddings - 1 - fed  # what was trained, not what the model's plan now asks for
    if room < 0:
        raise InvalidConfig(
            f"generate has value {plan.num_steps} steps, {fed} tokens fed back; allowed: at most {room + fed}, the "
            "positions of the model beside the start token"
        )
    return min(model.config.model.max_history, room)


def _left_align(values: Tensor, taken: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The taken rows of each user first, in order: [U, n, D], bool [U, n] -> [U, width, D], bool [U, width]."""
    order = taken.logical_not().long().argsort(dim=1, stable=True)[:, :width]
    return values.gather(1, order[..., None].expand(-1, -1, values.size(-1))), taken.gather(1, order)
