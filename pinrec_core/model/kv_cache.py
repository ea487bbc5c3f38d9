"""Static K and V of one batch: the prefix once a user, then the tokens of all outcome branches.

Slots, the same for every user of the batch: [0, P) the padded prefix, then one block of fed tokens a decode step.
Which slots a token may attend to is the mask's business (`generate/rollout.py`), so no slot depends on a length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerCache:
    """K and V of one decoder layer."""

    keys: Tensor
    """[B, H, S, D_head]"""
    values: Tensor
    """[B, H, S, D_head]"""

    def write(self, start: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store [B, H, n, D_head] at slots [start, start + n); returns all K and V up to there."""
        end = start + keys.size(2)
        self.keys[:, :, start:end] = keys
        self.values[:, :, start:end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]


@dataclass(frozen=True)
class KVCache:
    """One `LayerCache` a layer, allocated once for prefix and all decode steps."""

    layers: tuple[LayerCache, ...]
    positions: Tensor
    """int64 [B, S]: position of the token in each slot; for blocks whose attention depends on distances."""

    @classmethod
    def empty(cls, num_layers: int, shape: tuple[int, int, int, int], like: Tensor) -> KVCache:
        """`shape` is [B, H, S, D_head]; dtype and device are those of `like`. A slot holds anything until written."""

        def slots() -> Tensor:
            return torch.empty(shape, dtype=like.dtype, device=like.device)

        layers = tuple(LayerCache(slots(), slots()) for _ in range(num_layers))
        return cls(layers, torch.empty(shape[0], shape[2], dtype=torch.int64, device=like.device))

    def zero(self, start: int = 0) -> KVCache:
        """Itself, with zeros from slot `start` on: what is masked must still be a number, since 0 x NaN is NaN."""
        for layer in self.layers:
            layer.keys[:, :, start:].zero_()
            layer.values[:, :, start:].zero_()
        self.positions[:, start:].zero_()
        return self

    def rows(self, batch: int) -> KVCache:
        """The cache of the first `batch` users, in the same memory."""
        layers = tuple(LayerCache(layer.keys[:batch], layer.values[:batch]) for layer in self.layers)
        return KVCache(layers, self.positions[:batch])

    def write_positions(self, start: int, positions: Tensor) -> Tensor:
        """Store int64 [B or 1, n] at slots [start, start + n); returns those of all slots up to there, [B, end]."""
        end = start + positions.size(1)
        self.positions[:, start:end] = positions
        return self.positions[:, :end]
