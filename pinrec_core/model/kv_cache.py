"""Static K and V of one batch: the prefix once a user, then the tokens of all outcome branches.

Slots, the same for every user of the batch: [0, P) the padded prefix, then one block of fed tokens a decode step.
Which slots a token may attend to is the mask's business (`generate/rollout.py`), so no slot depends on a length.
"""

from __future__ import annotations

import torch
from torch import Tensor


class LayerCache:
    """K and V of one decoder layer: [B, H, S, D_head]."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys
        self.values = values

    def write(self, start: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store [B, H, n, D_head] at slots [start, start + n); returns all K and V up to there."""
        end = start + keys.size(2)
        self.keys[:, :, start:end] = keys
        self.values[:, :, start:end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCache:
    """One `LayerCache` a layer, allocated once for prefix and all decode steps."""

    def __init__(self, num_layers: int, shape: tuple[int, int, int, int], like: Tensor) -> None:
        """`shape` is [B, H, S, D_head]; dtype and device are those of `like`."""
        self.layers = [
            LayerCache(*(torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in range(2)))
            for _ in range(num_layers)
        ]
        self.positions = torch.zeros(shape[0], shape[2], dtype=torch.int64, device=like.device)
        """int64 [B, S]: position of the token in each slot; for blocks whose attention depends on distances."""

    def write_positions(self, start: int, positions: Tensor) -> Tensor:
        """Store int64 [B or 1, n] at slots [start, start + n); returns those of all slots up to there, [B, end]."""
        end = start + positions.size(1)
        self.positions[:, start:end] = positions
        return self.positions[:, :end]
