"""PinnerFormer (Pancha et al., arXiv 2205.04507): one user embedding that is near what the user engages with later on.

Its dense all-action loss trains every position on one of the positives that follow within a horizon, drawn anew each
step. The paper's horizon is 28 days; ours counts target events. Two readings are offered: positives among the next
`horizon` targets, and the next target alone, whose embedding is the first one of an unconditioned variant. Network,
features, negatives, logQ and number of steps are those of the PinRec run that it is compared with.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from pinrec_core.config import Config
from pinrec_core.data.batches import BatchStream
from pinrec_core.data.dataset import Dataset
from pinrec_core.data.targets import TargetPlan
from pinrec_core.eval.baselines.base import Validate, before
from pinrec_core.eval.baselines.config import BaselineConfig
from pinrec_core.eval.baselines.trainer import BestWeights
from pinrec_core.eval.evaluate import RolloutScorer
from pinrec_core.eval.heldout import Corpus, HeldOut
from pinrec_core.eval.measure import Scorer
from pinrec_core.model.pinrec import PinRec
from pinrec_core.train.loop import Trainer


class PinnerFormer:
    """Positives among the next `BaselineConfig.horizon` targets; trained as `BaselineConfig.pinrec` says."""

    name = "pinnerformer"

    def __init__(self, config: BaselineConfig) -> None:
        self.config = one_embedding(config.pinrec)
        self.horizon = config.horizon
        self.device = torch.device(config.device)

    def fit(
        self,
        dataset: Dataset,
        train_rows: NDArray[np.int64],
        train_until_ms: int | None = None,
        progress: bool = False,
        validate: Validate | None = None,
    ) -> None:
        """See `Baseline.fit`; validates every `train.eval_every` steps. Seeds torch's global generator."""
        self._dataset = unconditioned(before(dataset, train_until_ms))
        has_targets = self._dataset.histories.count_by_user(self._dataset.target_outcomes >= 0) > 0
        stream = HorizonStream(self._dataset, train_rows[has_targets[train_rows]], self.config, self.horizon)
        trainer = Trainer(self.config, self._dataset, stream, self.device)
        self._model = trainer.model
        train = self.config.train
        best = BestWeights(self._model, None if validate is None else lambda: validate(self.scorer()), train.patience)
        for step in tqdm(range(train.max_steps), desc="train", unit=" steps", disable=not progress, leave=False):
            trainer.step(step)
            if ((step + 1) % train.eval_every == 0 or step + 1 == train.max_steps) and best.look():
                break
        best.restore()
        self._model.eval()

    def scorer(self, dataset: Dataset | None = None) -> Scorer:
        """See `Baseline.scorer`: a `VectorScorer` of the embedding after a user's last event, at the request's surface.

        The weights are those of when it was made.
        """
        source = self._dataset if dataset is None else unconditioned(dataset)
        return FirstEmbedding(self._model.eval(), source)


class PinnerFormerNext(PinnerFormer):
    """The next target alone."""

    name = "pinnerformer_next"

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(replace(config, horizon=1))


class HorizonStream(BatchStream):
    """Batches that give each position one target, uniform among the next `horizon`."""

    def __init__(self, dataset: Dataset, user_rows: NDArray[np.int64], config: Config, horizon: int) -> None:
        """See `BatchStream`."""
        super().__init__(dataset, user_rows, config)
        self._plan = TargetPlan(
            max_offset=horizon,
            window_size=1,
            offsets_per_position=1,
            next_share=0.0,
            same_outcome=False,
            position_share=config.targets.position_share,
        )


class FirstEmbedding:
    """One query a user: what a model generates first. A `VectorScorer`."""

    @torch.no_grad()
    def __init__(self, model: PinRec, dataset: Dataset) -> None:
        self._rollout = RolloutScorer(model, dataset, Corpus.of(dataset), num_targets=1)
        self.vectors = self._rollout.vectors

    @torch.no_grad()
    def generate(self, users: list[HeldOut]) -> tuple[Tensor, Tensor]:
        """Queries float32 [U, 1, D], and bool [U, 1]: all true."""
        return self._rollout.generate(users)

    @torch.no_grad()
    def __call__(self, users: list[HeldOut]) -> Tensor:
        """The same as scores: [U, 1, N]."""
        return self._rollout(users)


def one_embedding(config: Config) -> Config:
    """`config` for a model without conditioning that emits one embedding a step."""
    return replace(
        config,
        model=replace(config.model, variant="uc"),
        generate=replace(config.generate, num_steps=1, offsets_per_step=1),
    )


def unconditioned(dataset: Dataset) -> Dataset:
    """`dataset` with the vocabulary of a model that knows one outcome."""
    return replace(dataset, vocabulary=replace(dataset.vocabulary, unconditioned=True))
