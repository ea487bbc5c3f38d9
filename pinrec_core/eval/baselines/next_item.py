"""Baselines that predict the next item with one vector: their loss, their training and their scores.

Letters: B runs, T events, R rows (positions with a target), C negatives, N pins, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pinrec_core.data.dataset import Dataset
from pinrec_core.eval.baselines.base import Sequences, Validate, latest_targets, pad
from pinrec_core.eval.baselines.config import BaselineConfig
from pinrec_core.eval.baselines.trainer import fit_sequences
from pinrec_core.eval.heldout import Corpus, HeldOut
from pinrec_core.eval.measure import Scorer


class NextItemModel(nn.Module, ABC):
    """A query after each event, and a vector of each item; their inner product is the logit."""

    def __init__(self, num_items: int, num_negatives: int) -> None:
        super().__init__()
        self.num_items = num_items
        self.num_negatives = num_negatives

    @abstractmethod
    def queries(self, columns: Tensor, lengths: Tensor) -> Tensor:
        """int64 [B, T], right-padded, and lengths int64 [B] -> [B, T, D]; a query sees the events up to its own."""

    @abstractmethod
    def item_vectors(self, columns: Tensor) -> Tensor:
        """int64 [n] -> [n, D]."""

    def loss(self, columns: Tensor, lengths: Tensor, generator: torch.Generator) -> Tensor:
        """Cross-entropy of each next item against uniform negatives, or against all N: scalar."""
        real = torch.arange(1, columns.size(1), device=columns.device) < lengths[:, None]  # [B, T - 1]
        queries = self.queries(columns[:, :-1], lengths - 1)[real]  # [R, D]
        targets = columns[:, 1:][real]  # [R]
        if not 0 < self.num_negatives < self.num_items:
            every = torch.arange(self.num_items, device=columns.device)
            return F.cross_entropy(queries @ self.item_vectors(every).T, targets)
        drawn = torch.randperm(self.num_items, generator=generator)[: self.num_negatives].to(columns.device)  # [C]
        distinct, own = targets.unique(return_inverse=True)
        return sampled_loss(queries, self.item_vectors(distinct)[own], targets, self.item_vectors(drawn), drawn)


def sampled_loss(queries: Tensor, own: Tensor, targets: Tensor, negatives: Tensor, drawn: Tensor) -> Tensor:
    """Mean of -log(e^s / (e^s + sum over negatives of e^s_n)); a negative that is the row's target is left out.

    queries and own (the targets' vectors) [R, D]; targets int64 [R]; negatives [C, D] of the items drawn, int64 [C].
    """
    positive = (queries * own).sum(dim=1, keepdim=True)  # [R, 1]
    logits = (queries @ negatives.T).masked_fill(targets[:, None] == drawn, -torch.inf)  # [R, C]
    return (torch.logsumexp(torch.cat([positive, logits], dim=1), dim=1) - positive.squeeze(1)).mean()


class NextItemBaseline(ABC):
    """Fits a `NextItemModel` and scores with its query after the last event.

    A user without target events gets the items' counts among the training users instead.
    """

    name: str

    def __init__(self, config: BaselineConfig) -> None:
        self.config = config

    @abstractmethod
    def build(self, dataset: Dataset, corpus: Corpus) -> NextItemModel:
        """The untrained model."""

    def fit(
        self,
        dataset: Dataset,
        train_rows: NDArray[np.int64],
        train_until_ms: int | None = None,
        progress: bool = False,
        validate: Validate | None = None,
    ) -> None:
        """See `Baseline.fit`. Seeds torch's global generator."""
        torch.manual_seed(self.config.seed)
        self._dataset, self._corpus = dataset, Corpus.of(dataset)
        sequences = Sequences.of_training(dataset, self._corpus, train_rows, train_until_ms)
        self._counts = sequences.counts(len(self._corpus.ids)).to(self.config.device)
        self._model = self.build(dataset, self._corpus).to(self.config.device)
        look = None if validate is None else lambda: validate(self.scorer())
        fit_sequences(self._model, sequences, self.config, progress, look)

    @torch.no_grad()
    def scorer(self, dataset: Dataset | None = None) -> Scorer:
        """See `Baseline.scorer`; the vectors are those of the present weights."""
        source = self._dataset if dataset is None else dataset
        return OneVectorScorer(self._model, self.config, source, self._corpus, self.vectors(), self._counts)

    @torch.no_grad()
    def vectors(self) -> Tensor:
        """Of every pin of the corpus: float32 [N, D]."""
        every = torch.arange(len(self._corpus.ids), device=self.config.device)
        return torch.cat([self._model.item_vectors(part) for part in every.split(16_384)])


class OneVectorScorer:
    """One query a user: a `VectorScorer`.

    A user without target events is scored by the items' counts: a last component that holds them is 0 in all other
    queries, and the only one that is not in theirs.
    """

    def __init__(
        self,
        model: NextItemModel,
        config: BaselineConfig,
        dataset: Dataset,
        corpus: Corpus,
        vectors: Tensor,
        counts: Tensor,
    ) -> None:
        """`vectors` float32 [N, D], `counts` float32 [N]."""
        self._model = model
        self._config = config
        self._dataset = dataset
        self._corpus = corpus
        self.vectors = torch.cat([vectors, counts[:, None]], dim=1)  # [N, D + 1]

    @torch.no_grad()
    def generate(self, users: list[HeldOut]) -> tuple[Tensor, Tensor]:
        """Queries float32 [U, 1, D + 1], and bool [U, 1]: all true."""
        columns, lengths = pad(latest_targets(self._dataset, self._corpus, users, self._config.max_history))
        last = (lengths - 1).clamp_min(0)
        of_events = self._model.queries(columns.to(self._config.device), lengths.to(self._config.device))  # [U, T, D]
        queries = of_events[torch.arange(len(users)), last]  # [U, D]
        is_new = (lengths == 0).to(queries)[:, None]  # [U, 1]
        queries = torch.cat([queries * (1 - is_new), is_new], dim=1)
        return queries[:, None], torch.ones(len(users), 1, dtype=torch.bool, device=queries.device)

    @torch.no_grad()
    def __call__(self, users: list[HeldOut]) -> Tensor:
        """The same as scores: [U, 1, N]."""
        return self.generate(users)[0] @ self.vectors.T
