"""The one small training loop of the baselines: seeded epochs over sequences of target events.

A sequence longer than the model takes is cut into runs that overlap by one event, so that every target is trained once
an epoch. Runs of like length share a batch, which spares most of the padding.
Letters: B runs a batch, T events.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from pinrec_core.eval.baselines.base import Sequences, pad
from pinrec_core.eval.baselines.config import BaselineConfig

_BATCHES_SORTED = 16
"""Batches whose runs are sorted by length together; few enough that batches stay random."""

_WARMUP_SHARE, _FINAL_RATE = 0.05, 0.05
"""Of the steps; of the learning rate, where the cosine ends."""


class SequenceModel(Protocol):
    """A module with a loss."""

    def loss(self, columns: Tensor, lengths: Tensor, generator: torch.Generator) -> Tensor:
        """Mean over the trained rows: columns int64 [B, T], right-padded; lengths int64 [B], each at least 2."""


def fit_sequences(
    model: Any,
    sequences: Sequences,
    config: BaselineConfig,
    progress: bool = False,
    validate: Callable[[], float] | None = None,
) -> None:
    """Train `model`, a module and a `SequenceModel`, in place; it ends in evaluation mode.

    `validate` is called every `eval_every` epochs and at the end: the weights it likes best are kept.
    """
    runs = cut_runs(sequences, config.max_history + 1)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True
    )
    generator = torch.Generator().manual_seed(config.seed)
    total = config.epochs * -(-len(runs) // config.batch_size)
    keeper = BestWeights(model, validate, config.patience)
    step = 0
    with tqdm(total=total, desc="train", unit=" steps", disable=not progress, leave=False) as bar:
        for epoch in range(config.epochs):
            model.train()
            for batch in shuffled_batches(runs, config.batch_size, np.random.default_rng([config.seed, epoch])):
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate * rate(step, total)
                columns, lengths = (part.to(config.device) for part in pad(batch))
                loss = model.loss(columns, lengths, generator)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                step += 1
                bar.update()
            bar.set_postfix(epoch=epoch + 1, loss=f"{float(loss.detach()):.3f}", best=keeper.best)
            last = epoch + 1 == config.epochs
            if ((epoch + 1) % config.eval_every == 0 or last) and keeper.look():
                break
    keeper.restore()
    model.eval()


def cut_runs(sequences: Sequences, longest: int) -> list[NDArray[np.int64]]:
    """Runs of 2 to `longest` events that overlap by one; the oldest run of a user may be the shorter one."""
    runs = []
    for start, stop in zip(sequences.offsets[:-1], sequences.offsets[1:], strict=True):
        end = int(stop)
        while end - start >= 2:
            begin = max(int(start), end - longest)
            runs.append(sequences.columns[begin:end])
            end = begin + 1
    return runs


def shuffled_batches(
    runs: list[NDArray[np.int64]], size: int, rng: np.random.Generator
) -> Iterator[list[NDArray[np.int64]]]:
    """Every run once, in random batches of runs of like length."""
    order = rng.permutation(len(runs))
    lengths = np.array([len(run) for run in runs], dtype=np.int64)
    for block in np.split(order, range(size * _BATCHES_SORTED, len(order), size * _BATCHES_SORTED)):
        block = block[np.argsort(lengths[block], kind="stable")]
        starts = np.arange(0, len(block), size)
        for start in rng.permutation(starts):
            yield [runs[row] for row in block[start : start + size]]


def rate(step: int, total: int) -> float:
    """Linear warm-up, then a cosine down: the share of the learning rate at `step` (from 0) of `total`."""
    warmup = max(1, round(_WARMUP_SHARE * total))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return _FINAL_RATE + (1 - _FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * done))


class BestWeights:
    """Keeps the weights that validation likes best, and says when to stop."""

    def __init__(self, model: Any, validate: Callable[[], float] | None, patience: int) -> None:
        self._model = model
        self._validate = validate
        self._patience = patience
        self._state: dict[str, Tensor] | None = None
        self._worse = 0
        self.best = -math.inf

    def look(self) -> bool:
        """Validate; whether to stop."""
        if self._validate is None:
            return False
        self._model.eval()
        found = self._validate()
        if found > self.best:
            self.best, self._worse = found, 0
            self._state = copy.deepcopy(self._model.state_dict())
            return False
        self._worse += 1
        return 0 < self._patience <= self._worse

    def restore(self) -> None:
        """Put the best weights back, where there was a validation."""
        if self._state is not None:
            self._model.load_state_dict(self._state)
