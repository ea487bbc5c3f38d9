"""Histories between the signal service and the stage that asks it: little-endian bytes, valid rows only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pinrec_core.messages import Signals, Status
from pinrec_core.signals.empty import empty_signals
from services.proto.signals_pb2 import History

CODE_METADATA = "pinrec-code"
"""Trailing metadata that tells our typed errors apart where two share a gRPC status (`PinrecError.code`)."""

_ROW_DTYPES = {
    "content_scale": "<f4",
    "item_ids": "<i8",
    "item_types": "u1",
    "actions": "<i4",
    "surfaces": "<i4",
    "timestamps_ms": "<i8",
}
"""Columns [T] of a history; `content` int8 [T, D_sem] and `seen_item_ids` int64 [S] have lengths of their own."""


def pack_history(signals: Signals) -> History:
    """The service's answer for one user."""
    valid = signals.sequence_length
    has_seen = signals.seen_item_ids.tolist() != [-1]
    return History(
        content=signals.content[:valid].tobytes(),
        seen_item_ids=signals.seen_item_ids.astype("<i8").tobytes() if has_seen else b"",
        history_length=signals.history_length,
        realtime_events=signals.realtime_events,
        status=signals.status,
        **{name: getattr(signals, name)[:valid].astype(dtype).tobytes() for name, dtype in _ROW_DTYPES.items()},
    )


def unpack_history(history: History, content_dim: int, deadline_ns: int) -> Signals:
    """The stage's output out of the service's answer; `content_dim` is the release's D_sem."""
    if not history.item_ids:
        return empty_signals(content_dim, Status(history.status) | Status.COLD_START, deadline_ns)
    rows = {name: _array(getattr(history, name), dtype) for name, dtype in _ROW_DTYPES.items()}
    seen = _array(history.seen_item_ids, "<i8")
    return Signals(
        content=_array(history.content, "i1").reshape(-1, content_dim),
        sequence_length=len(rows["item_ids"]),
        history_length=history.history_length,
        seen_item_ids=seen if len(seen) else np.full(1, -1, np.int64),
        realtime_events=history.realtime_events,
        status=history.status,
        deadline_ns=deadline_ns,
        **rows,
    )


def _array(data: bytes, dtype: str) -> NDArray[Any]:
    """A writable array of the bytes, in this machine's byte order."""
    return np.frombuffer(data, dtype).astype(np.dtype(dtype).newbyteorder("="))
