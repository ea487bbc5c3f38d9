"""Histories -> the decoder's inputs: the only featurization; training and serving both call it.

Letters: B batch, T longest history of the batch, D_sem content, D_id id embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pinrec_core import codec
from pinrec_core.schema import FIRST_WALL_CLOCK_MS

_DAY_MS = 86_400_000
PERIODS_MS = (_DAY_MS, 7 * _DAY_MS, 28 * _DAY_MS, 365 * _DAY_MS)
NUM_TIME_FEATURES = 2 * len(PERIODS_MS) + 2
_LOG_GAP_SCALE = 20.0
"""Brings log(1 + gap in seconds) of a year (17.3) near 1."""


class History(Protocol):
    """One user's rows, oldest first, numpy: n events."""

    content: NDArray[np.int8]  # [n, D_sem]
    content_scale: NDArray[np.float32]  # [n]
    item_types: NDArray[np.uint8]  # [n]
    actions: NDArray[np.int32]  # [n]
    surfaces: NDArray[np.int32]  # [n]
    timestamps_ms: NDArray[np.int64]  # [n]


@dataclass(frozen=True)
class SequenceInputs:
    """A right-padded batch. `id_emb` is given by the ID service at serving; training computes it from `item_ids`."""

    content: Tensor
    """float32 [B, T, D_sem]"""
    item_types: Tensor
    """int64 [B, T]"""
    actions: Tensor
    """int64 [B, T], vocabulary codes"""
    surfaces: Tensor
    """int64 [B, T], vocabulary codes"""
    timestamps_ms: Tensor
    """int64 [B, T]"""
    lengths: Tensor
    """int64 [B], valid rows"""
    item_ids: Tensor | None = None
    """int64 [B, T]"""
    id_emb: Tensor | None = None
    """float32 [B, T, D_id]"""

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> SequenceInputs:
        """Move to a device; `dtype` applies to the float tensors."""
        moved: dict[str, Any] = {}
        for name, value in vars(self).items():
            if value is not None:
                moved[name] = value.to(device, dtype if value.is_floating_point() else None, non_blocking=True)
        return replace(self, **moved)

    @property
    def last_timestamps_ms(self) -> Tensor:
        """int64 [B]: time of each user's last event, 0 for an empty history."""
        if self.timestamps_ms.size(1) == 0:
            return torch.zeros_like(self.lengths)
        last = self.timestamps_ms.gather(1, (self.lengths - 1).clamp_min(0)[:, None]).squeeze(1)
        return torch.where(self.lengths > 0, last, torch.zeros_like(last))


def collate(histories: Sequence[Any], lengths: Sequence[int] | None = None) -> SequenceInputs:
    """Pad `histories` (see `History`; optional `item_ids` [n] and `id_emb` [n, D_id]) to the longest of them.

    `lengths` gives the valid rows where an array holds more (the padding of an empty history in transport).
    """
    valid = [len(h.item_types) for h in histories] if lengths is None else list(lengths)

    def pad(name: str, dtype: type) -> NDArray[Any]:
        first = getattr(histories[0], name)
        out = np.zeros((len(histories), max(valid), *first.shape[1:]), dtype=dtype)
        for row, (history, n) in enumerate(zip(histories, valid, strict=True)):
            out[row, :n] = getattr(history, name)[:n]
        return out

    content = pad("content", np.int8)  # [B, T, D_sem]
    scale = pad("content_scale", np.float32)  # [B, T]
    dequantized = codec.dequantize(content.reshape(-1, content.shape[-1]), scale.reshape(-1)).reshape(content.shape)
    has_ids = hasattr(histories[0], "item_ids")
    has_id_emb = hasattr(histories[0], "id_emb")
    return SequenceInputs(
        content=torch.from_numpy(dequantized),
        item_types=torch.from_numpy(pad("item_types", np.int64)),
        actions=torch.from_numpy(pad("actions", np.int64)),
        surfaces=torch.from_numpy(pad("surfaces", np.int64)),
        timestamps_ms=torch.from_numpy(pad("timestamps_ms", np.int64)),
        lengths=torch.tensor(valid, dtype=torch.int64),
        item_ids=torch.from_numpy(pad("item_ids", np.int64)) if has_ids else None,
        id_emb=torch.from_numpy(pad("id_emb", np.float32)) if has_id_emb else None,
    )


def time_features(timestamps_ms: Tensor, previous_ms: Tensor) -> Tensor:
    """Phases of the raw timestamp and the gap to the event before: int64 [...], [...] -> float32 [..., F].

    sin and cos over a day, a week, four weeks and a year, log gap, and whether the time is known at all
    (a timestamp below `FIRST_WALL_CLOCK_MS` gives the order only: all its features are 0). The modulo is taken in
    int64, before any float, so that milliseconds of this century lose nothing.
    """
    known = timestamps_ms >= FIRST_WALL_CLOCK_MS
    phases = [(timestamps_ms % period).float() * (2 * math.pi / period) for period in PERIODS_MS]
    gap_s = (timestamps_ms - previous_ms).clamp_min(0).float() / 1_000
    gap_s = torch.where(previous_ms >= FIRST_WALL_CLOCK_MS, gap_s, torch.zeros_like(gap_s))
    columns = [f(p) for p in phases for f in (torch.sin, torch.cos)]
    columns += [torch.log1p(gap_s) / _LOG_GAP_SCALE, torch.ones_like(gap_s)]
    return torch.stack(columns, dim=-1) * known.unsqueeze(-1)


def previous_timestamps(timestamps_ms: Tensor) -> Tensor:
    """int64 [B, T] -> int64 [B, T]: the time of the event before, 0 before the first."""
    previous = torch.zeros_like(timestamps_ms)
    previous[:, 1:] = timestamps_ms[:, :-1]
    return previous
