"""Output head O of Eq. 1: an MLP (or one layer) on (hidden state, Phi), L2-normalized.

Phi = (outcome, target offset, surface of the target) as the variant says: `uc` has neither outcome nor offset, `oc` no
offset. The surface is ours, not the paper's (`surface_in_conditioning`).
"""

from __future__ import annotations

from torch import Tensor, nn

from pinrec_core.config import ModelConfig
from pinrec_core.model.item_embedder import l2_normalize
from pinrec_core.model.mlp import mlp, skipped_mlp, start_as_sum, start_at_zero


class OutputHead(nn.Module):
    """Conditioned hidden states -> embeddings in the items' space."""

    def __init__(self, config: ModelConfig, num_outcomes: int, num_surfaces: int, max_offset: int) -> None:
        super().__init__()
        width = config.hidden_dim
        self.outcome = nn.Embedding(num_outcomes, width) if config.variant != "uc" else None
        self.target_offset = nn.Embedding(max_offset, width) if config.variant == "mt_oc" else None
        self.surface = nn.Embedding(num_surfaces + 1, width) if config.surface_in_conditioning else None
        self.hidden: nn.Module = nn.Identity()
        self.mlp: nn.Module
        self.skip: nn.Module | None = None
        if config.head_layers == 1:
            self.mlp = skipped_mlp(config.skips, width, width, config.embedding_dim, 1)
            return
        # A first layer on [hidden; Phi] is the sum of a layer on hidden and one on Phi; kept apart, the former runs
        # once for all outcomes and offsets of a position, and the latter folds into the conditioning embeddings.
        self.hidden = nn.Linear(width, width)
        rest = mlp(width, width, config.embedding_dim, config.head_layers - 1)
        self.mlp = nn.Sequential(nn.ReLU(), nn.LayerNorm(width), rest)
        if config.skips:
            self.skip = start_as_sum(nn.Linear(width, config.embedding_dim))
            start_at_zero(rest)

    def forward(self, hidden: Tensor, outcome: Tensor, target_offset: Tensor, surface: Tensor) -> Tensor:
        """Eq. 1: unit-length embeddings [..., D].

        hidden [..., width]; outcome index, target_offset (from 1), surface code int64 [...]; leading shapes broadcast.
        """
        return self.given(hidden, self.condition(outcome, target_offset, surface))

    def condition(self, outcome: Tensor, target_offset: Tensor, surface: Tensor) -> Tensor | None:
        """Phi's share of the first layer, [..., width]: the same for every hidden state; None if Phi is empty."""
        embedded = (
            (self.outcome, outcome),
            (self.target_offset, target_offset - 1),
            (self.surface, surface),
        )
        parts = [embedding(code) for embedding, code in embedded if embedding is not None]
        return sum(parts[1:], parts[0]) if parts else None

    def given(self, hidden: Tensor, condition: Tensor | None) -> Tensor:
        """Hidden [..., width] under a `condition` [..., width], which broadcast -> unit-length embeddings [..., D]."""
        x = self.hidden(hidden)
        y = self.mlp(x if condition is None else x + condition)
        return l2_normalize(y if self.skip is None else y + self.skip(hidden))
