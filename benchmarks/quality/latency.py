"""Figure 5's latency: the generate stage, prefill included, for one request, by embeddings a step.

One outcome's embeddings after 128 events, batch 1: 96 in all, as the claim is put, and 16, as recall is read. The
weights are random: they do not change the time.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from pinrec_core.config import Config, load_config
from pinrec_core.generate.rollout import Branches, rollout
from pinrec_core.model.inputs import SequenceInputs
from pinrec_core.model.pinrec import PinRec
from pinrec_core.schema import Vocabulary

TOTALS, HISTORY = (96, 16), 128
OFFSETS = (1, 2, 4, 8, 16)
_CONTENT_DIM = 64
_NOW_MS = 1_700_000_000_000


@dataclass(frozen=True)
class Latency:
    """Times of one plan, in milliseconds."""

    total: int
    offsets_per_step: int
    times_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """Half of the requests took longer."""
        return statistics.median(self.times_ms)


def measure_latency(config_path: Path, repeats: int) -> list[Latency]:
    """Every plan in turn, `repeats` rounds, so that a busy machine slows all of them alike."""
    plans = {(total, offsets): _model(config_path, total, offsets) for total in TOTALS for offsets in OFFSETS}
    inputs, branches = _request()
    times: dict[tuple[int, int], list[float]] = {plan: [] for plan in plans}
    for round_ in range(repeats + 1):
        for plan, model in plans.items():
            started = time.perf_counter()
            with torch.inference_mode():
                rollout(model, inputs, branches, model.config.generate)
            if round_:  # the first one warms up
                times[plan].append(1_000 * (time.perf_counter() - started))
    return [Latency(total, offsets, tuple(measured)) for (total, offsets), measured in times.items()]


def _model(config_path: Path, total: int, offsets: int) -> PinRec:
    """The configuration's network, with room for the history and the plan."""
    config: Config = load_config(config_path)
    config = replace(
        config,
        model=replace(config.model, variant="mt_oc", max_history=HISTORY),
        targets=replace(config.targets, max_offset=max(OFFSETS), window_size=max(OFFSETS)),
        generate=replace(config.generate, offsets_per_step=offsets, num_steps=total // offsets, feed="block"),
    )
    return PinRec(config, Vocabulary(("like", "click"), ("like", "click"), ("home",)), _CONTENT_DIM).eval()


def _request() -> tuple[SequenceInputs, Branches]:
    """One user with a full history, one outcome."""
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(0, 1 << 40, (1, HISTORY)))
    ones = torch.ones_like(ids)
    inputs = SequenceInputs(
        content=torch.from_numpy(rng.normal(size=(1, HISTORY, _CONTENT_DIM)).astype(np.float32)),
        item_types=torch.zeros_like(ids),
        actions=ones,
        surfaces=ones,
        timestamps_ms=_NOW_MS + 60_000 * torch.arange(HISTORY)[None],
        lengths=torch.tensor([HISTORY]),
        item_ids=ids,
    )
    now = torch.tensor([_NOW_MS + 60_000 * HISTORY])
    return inputs, Branches(torch.tensor([[0]]), torch.tensor([[1]]), torch.tensor([1]), now)
