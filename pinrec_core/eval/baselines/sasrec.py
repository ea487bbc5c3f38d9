"""SASRec (Kang and McAuley, arXiv 1808.09781): a causal transformer over item ids that predicts the next one.

Ours has the project's own decoder (GPT-2 blocks, or HSTU's: Zhai et al., arXiv 2402.17152), the input table as output
table, and a softmax loss instead of the paper's one binary negative, which is what makes it strong (Klenitskiy and
Vasilev, arXiv 2309.07602).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from pinrec_core.config import ModelConfig
from pinrec_core.data.dataset import Dataset
from pinrec_core.eval.baselines.config import BaselineConfig
from pinrec_core.eval.baselines.next_item import NextItemBaseline, NextItemModel
from pinrec_core.eval.heldout import Corpus
from pinrec_core.model.decoder import Decoder

Block = Literal["gpt2", "hstu"]


class SASRecModel(NextItemModel):
    """One table of item vectors under and over a decoder."""

    def __init__(self, config: BaselineConfig, num_items: int, block: Block = "gpt2") -> None:
        super().__init__(num_items, config.num_negatives)
        self.items = nn.Embedding(num_items, config.dim)
        decoder = ModelConfig(
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            hidden_dim=config.dim,
            dropout=config.dropout,
            block=block,
        )
        self.longest = config.max_history
        self.decoder = Decoder(decoder, config.max_history)
        nn.init.normal_(self.items.weight, std=0.02)

    def queries(self, columns: Tensor, lengths: Tensor) -> Tensor:
        """int64 [B, T], lengths int64 [B] -> [B, T, D].

        Positions count back from a sequence's end, as the paper's padding on the left has it: the last event of a user
        is where the last events of all others were trained.
        """
        back = lengths[:, None] - torch.arange(columns.size(1), device=columns.device)  # 1 = last, < 1 = padding
        positions = (self.longest - back).clamp(0, self.longest - 1)  # [B, T]
        return self.decoder(self.items(columns), positions)  # type: ignore[no-any-return]

    def item_vectors(self, columns: Tensor) -> Tensor:
        """int64 [n] -> [n, D]."""
        return self.items(columns)  # type: ignore[no-any-return]


class SASRec(NextItemBaseline):
    """GPT-2 blocks."""

    name = "sasrec"
    block: Block = "gpt2"

    def build(self, dataset: Dataset, corpus: Corpus) -> SASRecModel:
        """See `NextItemBaseline.build`."""
        return SASRecModel(self.config, len(corpus.ids), self.block)


class HSTU(SASRec):
    """HSTU blocks under the same training."""

    name = "hstu"
    block: Block = "hstu"
