"""Items -> one L2-normalized space: an MLP an item type (paper, section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pinrec_core.config import ModelConfig
from pinrec_core.model.mlp import skipped_mlp
from pinrec_core.schema import ItemType


def l2_normalize(x: Tensor) -> Tensor:
    """Unit length along the last axis, computed in float32 whatever the input's dtype."""
    return nn.functional.normalize(x.float(), dim=-1).to(x.dtype)


class ItemEmbedder(nn.Module):
    """Pins: content and ID embedding, concatenated; search queries: content only."""

    def __init__(self, config: ModelConfig, content_dim: int) -> None:
        super().__init__()
        self.use_content = config.use_content
        self.use_ids = config.use_ids
        pin_dim = content_dim * config.use_content + config.id_dim * config.use_ids
        sizes = max(config.embedding_dim, config.hidden_dim), config.embedding_dim, config.embedder_layers
        self.pin = skipped_mlp(config.skips, pin_dim, *sizes)
        self.search_query = skipped_mlp(config.skips, content_dim, *sizes)

    def forward(self, content: Tensor, item_types: Tensor, id_emb: Tensor) -> Tensor:
        """Content [..., D_sem], item_types [...], id_emb [..., D_id] -> item_emb [..., D], L2-normalized."""
        used = ((content, self.use_content), (id_emb, self.use_ids))
        pins = self.pin(torch.cat([part for part, is_used in used if is_used], dim=-1))
        queries = self.search_query(content)
        is_query = (item_types == int(ItemType.SEARCH_QUERY)).unsqueeze(-1)
        return l2_normalize(torch.where(is_query, queries, pins))
