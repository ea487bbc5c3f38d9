"""The causal decoder: GPT-2's blocks (paper, section 4.2), or HSTU's (Zhai et al., arXiv 2402.17152) as an option.

GPT-2: pre-LayerNorm, multi-head softmax attention, a GELU MLP. HSTU: one sublayer, whose attention weighs each token by
a SiLU of its own instead of a softmax over all, with a bias by distance, and whose result gates a fourth projection.
Letters: B batch, L tokens of this call, S slots attended to, H heads, D_head = width / H.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pinrec_core.config import ModelConfig
from pinrec_core.model.kv_cache import KVCache, LayerCache

_INIT_STD = 0.02


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.hidden_dim, 3 * config.hidden_dim)
        self.out = nn.Linear(config.hidden_dim, config.hidden_dim)

    def forward(self, x: Tensor, mask: Tensor | None, cache: LayerCache | None, start: int) -> Tensor:
        """[B, L, width] -> [B, L, width].

        Without `mask` attention is causal among the L tokens. With one (bool [B, 1, L, S]) they attend to the
        cache's first S = start + L slots.
        """
        q, k, v = self._heads(self.qkv(x), 3)
        if cache is not None:
            written = cache.write(start, k, v)  # [B, H, S, D_head]
            k, v = written if start else (k, v)  # the cache may be in another precision
        dropout = self.dropout if self.training else 0.0
        # Right padding needs no mask: a real token never attends to a later pad.
        y = F.scaled_dot_product_attention(
            q.to(k.dtype), k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None
        )
        return self.out(y.transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]

    def of_one(self, x: Tensor, at: Tensor, cache: LayerCache | None) -> Tensor:
        """`forward` at one place of each row, `at` int64 [B]: [B, L, width] -> [B, 1, width]; fills the cache."""
        q, k, v = self._heads(self.qkv(x), 3)
        if cache is not None:
            cache.write(0, k, v)
        q = q.take_along_dim(at[:, None, None, None], dim=2)  # [B, H, 1, D_head]
        seen = (torch.arange(x.size(1), device=x.device) <= at[:, None])[:, None, None]  # [B, 1, 1, L]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.out(y.transpose(1, 2).reshape(x.size(0), 1, -1))  # type: ignore[no-any-return]

    def _heads(self, projected: Tensor, parts: int) -> Tensor:
        """[B, L, parts x width] -> [parts, B, H, L, D_head]."""
        batch, length, _ = projected.shape
        return projected.view(batch, length, parts, self.num_heads, -1).permute(2, 0, 3, 1, 4)


class Block(nn.Module):
    """One decoder layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_dim)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_dim)
        self.mlp = nn.Sequential(
            nn.Linear(config.hidden_dim, 4 * config.hidden_dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * config.hidden_dim, config.hidden_dim),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None, cache: LayerCache | None, start: int) -> Tensor:
        """[B, L, width] -> [B, L, width]."""
        x = x + self.dropout(self.attention(self.attention_norm(x), mask, cache, start))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))  # type: ignore[no-any-return]

    def of_one(self, x: Tensor, at: Tensor, cache: LayerCache | None) -> Tensor:
        """`forward` at one place of each row, `at` int64 [B]: [B, L, width] -> [B, 1, width]; for inference."""
        token = _one_of_each(x, at) + self.attention.of_one(self.attention_norm(x), at, cache)
        return token + self.mlp(self.mlp_norm(token))  # type: ignore[no-any-return]


class HstuBlock(nn.Module):
    """One HSTU layer: U, V, Q, K = SiLU(f1(norm(x))); x + f2(norm(A V) * U), A = SiLU(Q K^T + bias) / tokens seen.

    The bias is one number a head and distance in positions; the reference's second bias, by time, is left out, since
    our tokens carry their time. What is divided by cancels in the norm that follows (it keeps half precision in range).
    """

    def __init__(self, config: ModelConfig, max_positions: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.norm = nn.LayerNorm(config.hidden_dim)
        self.uvqk = nn.Linear(config.hidden_dim, 4 * config.hidden_dim)
        self.distance = nn.Embedding(max_positions, config.num_heads)
        self.attended_norm = nn.LayerNorm(config.hidden_dim)
        self.out = nn.Linear(config.hidden_dim, config.hidden_dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, visible: Tensor, distance: Tensor, cache: LayerCache | None, start: int) -> Tensor:
        """[B, L, width] -> [B, L, width].

        visible bool [B or 1, 1, L, S]: which of the S = start + L slots each token sees; distance int64 [B or 1, L, S]:
        positions from each slot to each token, 0 or more where it is seen.
        """
        batch, length, width = x.shape
        projected = F.silu(self.uvqk(self.norm(x))).view(batch, length, 4, self.num_heads, width // self.num_heads)
        u, v, q, k = projected.permute(2, 0, 3, 1, 4)  # each [B, H, L, D_head]
        if cache is not None:
            k, v = cache.write(start, k, v)  # [B, H, S, D_head]
        scores = q @ k.transpose(2, 3) / math.sqrt(q.size(-1)) + self.distance(distance).permute(0, 3, 1, 2)
        weights = F.silu(scores) * visible / visible.sum(dim=3, keepdim=True)  # [B, H, L, S]
        attended = self.attended_norm((weights @ v).transpose(1, 2).reshape(batch, length, width))
        gated = attended * u.transpose(1, 2).reshape(batch, length, width)
        return x + self.dropout(self.out(gated))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Learned positions, `num_layers` blocks of `model.block`, a final LayerNorm."""

    def __init__(self, config: ModelConfig, max_positions: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.head_dim = config.hidden_dim // config.num_heads
        self.positions = nn.Embedding(max_positions, config.hidden_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.is_hstu = config.block == "hstu"
        self.blocks = nn.ModuleList(
            [HstuBlock(config, max_positions) if self.is_hstu else Block(config) for _ in range(config.num_layers)]
        )
        self.norm = nn.LayerNorm(config.hidden_dim)
        self.apply(_init_gpt2)
        for name, parameter in self.named_parameters():
            if name.endswith(("out.weight", "mlp.2.weight")):  # residual projections, scaled by depth as in GPT-2
                nn.init.normal_(parameter, std=_INIT_STD / math.sqrt(2 * config.num_layers))

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        start: int = 0,
    ) -> Tensor:
        """Tokens [B, L, width] at `positions` (int64 [L] or [B, L]) -> hidden states [B, L, width].

        `start` is the first cache slot that the L tokens take; see `Attention.forward` for `mask`.
        """
        x = self.dropout(tokens + self.positions(positions))
        seen = self._seen(positions, mask, cache, start) if self.is_hstu else (mask,)
        for index, block in enumerate(self.blocks):
            x = block(x, *seen, cache.layers[index] if cache else None, start)
        return self.norm(x)  # type: ignore[no-any-return]

    def prefill(self, tokens: Tensor, last: Tensor, cache: KVCache | None = None) -> Tensor:
        """Hidden state after token `last` (int64 [B]) of each row: [B, L, width] -> [B, width]; fills the cache.

        `forward` at that place, for inference. Nothing reads what the last block makes of the other tokens, so it stops
        at their K and V: three quarters of a block's weights are spared them.
        """
        positions = torch.arange(tokens.size(1), device=tokens.device)
        if self.is_hstu:
            return _one_of_each(self(tokens, positions, cache=cache), last)[:, 0]
        x = tokens + self.positions(positions)
        for index, block in enumerate(self.blocks[:-1]):
            x = block(x, None, cache.layers[index] if cache else None, 0)
        final: Block = self.blocks[-1]  # type: ignore[assignment]
        token = final.of_one(x, last, cache.layers[-1] if cache else None)
        return self.norm(token)[:, 0]  # type: ignore[no-any-return]

    def _seen(self, positions: Tensor, mask: Tensor | None, cache: KVCache | None, start: int) -> tuple[Tensor, Tensor]:
        """What an `HstuBlock` takes of the mask and of the distances between slots, once for all blocks."""
        own = positions.view(-1, positions.size(-1))  # [B or 1, L]
        slots = own if cache is None else cache.write_positions(start, own)  # [B or 1, S]
        distance = (own[:, :, None] - slots[:, None]).clamp_min(0)  # [B or 1, L, S]
        if mask is None:
            length = own.size(1)
            mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=positions.device).tril()
        return mask, distance

    def new_cache(self, batch: int, slots: int, like: Tensor) -> KVCache:
        """An empty cache for `slots` tokens a user."""
        return KVCache.empty(len(self.blocks), (batch, self.num_heads, slots, self.head_dim), like)


def _one_of_each(x: Tensor, at: Tensor) -> Tensor:
    """Row `at[b]` of each x[b]: [B, L, width], int64 [B] -> [B, 1, width]."""
    return x.gather(1, at[:, None, None].expand(-1, 1, x.size(-1)))


def _init_gpt2(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=_INIT_STD)
    if isinstance(module, nn.Linear):
        torch.nn.init.zeros_(module.bias)
