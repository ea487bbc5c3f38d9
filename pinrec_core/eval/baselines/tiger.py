"""TIGER (Rajput et al., arXiv 2305.05065): the next item generated code by code, its semantic id found by beam search.

Codes come from a residual quantizer (Faiss) over the items' content, or over item vectors that a SASRec has learned
where items have no content. Two departures keep it small enough for a CPU: a token of the history is the sum of its
item's code embeddings instead of one token a code, and a decoder of one layer spells the codes out from the history's
last state instead of a cross-attending one. Beam search may only spell codes that some item has.
Letters: B runs, T events, R rows (positions with a target), L levels, U users, W beams, N pins, D width.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pinrec_core import codec
from pinrec_core.config import ModelConfig
from pinrec_core.data.batches import content_rows
from pinrec_core.data.dataset import Dataset
from pinrec_core.errors import InvalidData
from pinrec_core.eval.baselines.base import Sequences, Validate, latest_targets, pad
from pinrec_core.eval.baselines.config import BaselineConfig
from pinrec_core.eval.baselines.sasrec import SASRec
from pinrec_core.eval.baselines.semantic_ids import Trie, residual_codes, tell_apart
from pinrec_core.eval.baselines.trainer import fit_sequences
from pinrec_core.eval.heldout import Corpus, HeldOut
from pinrec_core.eval.measure import Scorer
from pinrec_core.model.decoder import Decoder

_ENOUGH_CONTENT = 0.5
"""Share of the pins that have content, from which on it is quantized."""


class TigerModel(nn.Module):
    """A decoder over items, and a small one over the codes of the next."""

    def __init__(self, config: BaselineConfig, codes: NDArray[np.int64]) -> None:
        """`codes`: int64 [N, L], no two rows alike."""
        super().__init__()
        self.register_buffer("codes", torch.from_numpy(codes), persistent=False)
        self.trie = Trie.of(codes)
        trunk = ModelConfig(
            num_layers=config.num_layers, num_heads=config.num_heads, hidden_dim=config.dim, dropout=config.dropout
        )
        self.history = Decoder(trunk, config.max_history)
        self.speller = Decoder(replace(trunk, num_layers=1), codes.shape[1])
        self.read = nn.ModuleList([nn.Embedding(size, config.dim) for size in self.trie.sizes()])
        self.written = nn.ModuleList([nn.Embedding(size, config.dim) for size in self.trie.sizes()])
        self.logits = nn.ModuleList([nn.Linear(config.dim, size) for size in self.trie.sizes()])
        for table in (*self.read, *self.written):
            nn.init.normal_(table.weight, std=0.02)

    def states(self, columns: Tensor) -> Tensor:
        """int64 [B, T], right-padded -> [B, T, D]."""
        assert isinstance(self.codes, Tensor)
        codes = self.codes[columns]  # [B, T, L]
        tokens = torch.stack([table(codes[..., level]) for level, table in enumerate(self.read)]).sum(dim=0)
        return self.history(tokens, torch.arange(columns.size(1), device=columns.device))  # type: ignore[no-any-return]

    def spell(self, states: Tensor, spelled: Tensor) -> Tensor:
        """States [R, D] and the codes so far int64 [R, l] -> hidden states [R, l + 1, D], the last of level l."""
        tokens = [states, *(self.written[level](spelled[:, level]) for level in range(spelled.size(1)))]
        return self.speller(  # type: ignore[no-any-return]
            torch.stack(tokens, dim=1), torch.arange(len(tokens), device=states.device)
        )

    def loss(self, columns: Tensor, lengths: Tensor, generator: torch.Generator) -> Tensor:
        """Cross-entropy of each next item's codes, mean over rows and levels: scalar."""
        assert isinstance(self.codes, Tensor)
        real = torch.arange(1, columns.size(1), device=columns.device) < lengths[:, None]  # [B, T - 1]
        codes = self.codes[columns[:, 1:][real]]  # [R, L]
        hidden = self.spell(self.states(columns[:, :-1])[real], codes[:, :-1])  # [R, L, D]
        losses = [F.cross_entropy(head(hidden[:, level]), codes[:, level]) for level, head in enumerate(self.logits)]
        return torch.stack(losses).mean()

    def search(self, states: Tensor, beams: int) -> tuple[Tensor, Tensor]:
        """States [U, D] -> columns of the most likely items int64 [U, W], and their log-probabilities, descending.

        At each level the probability is divided among the codes that some item has. W is at most `beams`; -1 and -inf
        where fewer are found.
        """
        users = len(states)
        spelled = torch.zeros(users, 1, 0, dtype=torch.int64, device=states.device)  # [U, W, l]
        node = torch.zeros(users, 1, dtype=torch.int64, device=states.device)  # [U, W]
        total = torch.zeros(users, 1, device=states.device)
        for level, table in enumerate(self.trie.children):
            width, size = node.size(1), table.size(1)
            hidden = self.spell(states.repeat_interleave(width, dim=0), spelled.flatten(0, 1))[:, -1]
            after = table.to(states.device)[node.clamp_min(0)].long()  # [U, W, size]
            logits = self.logits[level](hidden).view(users, width, size).masked_fill(after < 0, -torch.inf)
            scores = (total[..., None] + logits.log_softmax(dim=-1)).flatten(1)  # [U, W size]
            total, best = scores.topk(min(beams, width * size), dim=1)
            spelled = torch.cat([spelled[torch.arange(users)[:, None], best // size], (best % size)[..., None]], dim=2)
            node = after.flatten(1).gather(1, best)
        return node.masked_fill(total == -torch.inf, -1), total


class Tiger:
    """Scores the items that beam search finds by their log-probability, all others by -inf."""

    name = "tiger"

    def __init__(self, config: BaselineConfig) -> None:
        self.config = config

    def fit(
        self,
        dataset: Dataset,
        train_rows: NDArray[np.int64],
        train_until_ms: int | None = None,
        progress: bool = False,
        validate: Validate | None = None,
    ) -> None:
        """See `Baseline.fit`. Also raises InvalidData if the corpus has fewer items than a codebook codes."""
        torch.manual_seed(self.config.seed)
        self._dataset, self._corpus = dataset, Corpus.of(dataset)
        if len(self._corpus.ids) < self.config.codes:
            raise InvalidData(f"{dataset.name} has {len(self._corpus.ids)} pins; allowed: at least {self.config.codes}")
        sequences = Sequences.of_training(dataset, self._corpus, train_rows, train_until_ms)
        self._counts = sequences.counts(len(self._corpus.ids)).to(self.config.device)
        vectors = self._vectors(dataset, train_rows, train_until_ms, progress)
        codes = tell_apart(residual_codes(vectors, self.config.codebooks, self.config.codes))
        self._model = TigerModel(self.config, codes).to(self.config.device)
        look = None if validate is None else lambda: validate(self.scorer())
        fit_sequences(self._model, sequences, self.config, progress, look)

    def _vectors(
        self, dataset: Dataset, train_rows: NDArray[np.int64], train_until_ms: int | None, progress: bool
    ) -> NDArray[np.float32]:
        """What is quantized: float32 [N, D]."""
        content = codec.dequantize(*content_rows(dataset.items, self._corpus.ids))
        share = float(content.any(axis=1).mean())
        source = self.config.semantic_source
        if source == "content" and not share:
            raise InvalidData(f"{dataset.name} has no item content; allowed for semantic_source: 'sasrec' or 'auto'")
        if source == "content" or (source == "auto" and share >= _ENOUGH_CONTENT):
            return content
        teacher = SASRec(self.config)
        teacher.fit(dataset, train_rows, train_until_ms, progress)
        return teacher.vectors().cpu().numpy()

    def scorer(self, dataset: Dataset | None = None) -> Scorer:
        """See `Baseline.scorer`. A user without target events is scored by the items' counts."""
        source = self._dataset if dataset is None else dataset

        @torch.no_grad()
        def score(users: list[HeldOut]) -> Tensor:
            columns, lengths = pad(latest_targets(source, self._corpus, users, self.config.max_history))
            last = (lengths - 1).clamp_min(0)
            states = self._model.states(columns.to(self.config.device))[torch.arange(len(users)), last]  # [U, D]
            found, likely = self._model.search(states, self.config.beams)  # [U, W]
            scores = torch.full((len(users), len(self._corpus.ids) + 1), -torch.inf, device=states.device)
            scores.scatter_(1, torch.where(found < 0, len(self._corpus.ids), found), likely)
            scores = scores[:, :-1]  # what no item is had a column of its own
            scores[lengths == 0] = self._counts
            return scores[:, None].contiguous()

        return score
