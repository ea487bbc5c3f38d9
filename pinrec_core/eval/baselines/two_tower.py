"""Two towers: a user is the mean of what they engaged with, an item its id and content, both through an MLP.

Letters: B runs, T events, N pins, D width, D_sem content.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pinrec_core import codec
from pinrec_core.data.batches import content_rows
from pinrec_core.data.dataset import Dataset
from pinrec_core.eval.baselines.config import BaselineConfig
from pinrec_core.eval.baselines.next_item import NextItemBaseline, NextItemModel
from pinrec_core.eval.heldout import Corpus
from pinrec_core.model.item_embedder import l2_normalize
from pinrec_core.model.mlp import mlp

_LOGIT_SCALE = 20.0
"""Where the learned scale of the cosine begins."""


class TwoTowerModel(NextItemModel):
    """Cosine of the two towers, scaled."""

    def __init__(self, config: BaselineConfig, content: Tensor) -> None:
        """`content`: float32 [N, D_sem], the content rows of the corpus."""
        super().__init__(len(content), config.num_negatives)
        self.register_buffer("content", content, persistent=False)
        self.ids = nn.Embedding(len(content), config.dim)
        self.history_ids = nn.Embedding(len(content), config.dim)
        width = config.dim + content.size(1)
        self.item_tower = mlp(width, config.dim, config.dim, 2)
        self.user_tower = mlp(width, 2 * config.dim, config.dim, 2)
        self.dropout = nn.Dropout(config.dropout)
        self.log_scale = nn.Parameter(torch.tensor(math.log(_LOGIT_SCALE)))
        for table in (self.ids, self.history_ids):
            nn.init.normal_(table.weight, std=1 / math.sqrt(config.dim))

    def queries(self, columns: Tensor, lengths: Tensor) -> Tensor:
        """int64 [B, T] -> [B, T, D]: the user tower on the mean over the events so far."""
        events = self.dropout(self._features(self.history_ids, columns))  # [B, T, D + D_sem]
        counts = torch.arange(1, columns.size(1) + 1, device=columns.device)
        mean = events.cumsum(dim=1) / counts[:, None]
        return self.log_scale.exp() * l2_normalize(self.user_tower(mean))

    def item_vectors(self, columns: Tensor) -> Tensor:
        """int64 [n] -> [n, D], unit length."""
        return l2_normalize(self.item_tower(self._features(self.ids, columns)))

    def _features(self, ids: nn.Embedding, columns: Tensor) -> Tensor:
        assert isinstance(self.content, Tensor)
        return torch.cat([ids(columns), self.content[columns]], dim=-1)


class TwoTower(NextItemBaseline):
    """Order-free: the mean forgets it."""

    name = "two_tower"

    def build(self, dataset: Dataset, corpus: Corpus) -> TwoTowerModel:
        """See `NextItemBaseline.build`."""
        content = codec.dequantize(*content_rows(dataset.items, corpus.ids))
        return TwoTowerModel(self.config, torch.from_numpy(content))
