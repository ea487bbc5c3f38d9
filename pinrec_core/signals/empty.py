"""The signals of a user about whom nothing is known. numpy only: the client of the service imports no store."""

from __future__ import annotations

import numpy as np

from pinrec_core.messages import Signals, Status


def empty_signals(content_dim: int, status: Status, deadline_ns: int) -> Signals:
    """No history at all: one row of zeros that `sequence_length` 0 declares void."""
    return Signals(
        content=np.zeros((1, content_dim), np.int8),
        content_scale=np.zeros(1, np.float32),
        item_ids=np.zeros(1, np.int64),
        item_types=np.zeros(1, np.uint8),
        actions=np.zeros(1, np.int32),
        surfaces=np.zeros(1, np.int32),
        timestamps_ms=np.zeros(1, np.int64),
        sequence_length=0,
        history_length=0,
        seen_item_ids=np.full(1, -1, np.int64),
        realtime_events=0,
        status=int(status),
        deadline_ns=deadline_ns,
    )
