"""How long the stack is looked at, by size, and names that the parts of its benchmark share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from pinrec_core.serving.contract import STAGES

STAGE_NAMES = tuple(stage.name for stage in STAGES)
CORES = len(os.sched_getaffinity(0))
CALLERS = (1, 4, 16, 32, 48, 64)
MANY = 32
"""Callers whose batches, CPU and memory are looked at."""


@dataclass(frozen=True)
class Plan:
    """How long everything is looked at. Seconds are of one turn."""

    scale: str
    lone_rounds: int
    lone_s: float
    cold_calls: int
    loop_rounds: int
    batch_s: float
    loop_s: float
    open_rounds: int
    open_s: float
    callers: Sequence[int] = CALLERS


PLANS = {
    "full": Plan("100k", 7, 1.5, 15, loop_rounds=3, batch_s=0.5, loop_s=4, open_rounds=2, open_s=20),
    "small": Plan("10k", 3, 1.0, 10, loop_rounds=2, batch_s=0.3, loop_s=2, open_rounds=1, open_s=10),
    "smoke": Plan(
        "smoke", 2, 0.2, 2, loop_rounds=1, batch_s=0.05, loop_s=0.5, open_rounds=1, open_s=1, callers=(1, 32)
    ),
}
