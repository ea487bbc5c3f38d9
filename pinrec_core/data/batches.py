"""Training batches: a pure function of (seed, step), so that a run resumes exactly by its step number alone.

A training sequence has serving's form: the start token, then at most `max_positions - 1` events, search queries among
them, so that every logged query makes the prefix that a search request makes. A longer history gives one random run of
events a visit. Such a run, where it does not begin at the user's first event, leaves position 0 out: what follows the
start token alone is trained as cold start only. Serving cuts histories the same way, so the start token learns to stand
before a cut history too. Users with histories of like length share a batch, which spares most of the padding.
With several training processes each takes a shard of the users: all draw the whole batch's random numbers, targets and
candidates, which are cheap, and look up contents only for their own users and their own part of the candidates.
Letters: B batch, T events, R rows (a position with what it is conditioned on), W window, C candidates (distinct
targets and random negatives).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pinrec_core import codec
from pinrec_core.config import Config
from pinrec_core.data.dataset import Dataset
from pinrec_core.data.histories import Histories
from pinrec_core.data.targets import TargetPlan, Targets, sample_targets
from pinrec_core.errors import InvalidData
from pinrec_core.model.inputs import SequenceInputs, collate
from pinrec_core.release import ItemTable
from pinrec_core.schema import UNKNOWN_CODE, ItemType

_EPOCH_STREAM, _STEP_STREAM = 0, 1
"""Keep the random numbers of an epoch's order and of a step apart."""
_BATCHES_SORTED = 16
"""Batches whose users are sorted by length together; few enough that batches stay random."""


class Shard(NamedTuple):
    """Which part of a batch one of several training processes takes."""

    rank: int
    size: int

    def bounds(self, total: int) -> tuple[int, int]:
        """Start and stop of this part of `total` things: equal runs, the last ones shorter or empty."""
        run = -(-total // self.size)
        return min(total, self.rank * run), min(total, (self.rank + 1) * run)


WHOLE = Shard(0, 1)


@dataclass(frozen=True)
class EventRows:
    """A run of one user's events, oldest first, in the form that `model.inputs.collate` takes: n events."""

    content: NDArray[np.int8]
    content_scale: NDArray[np.float32]
    item_ids: NDArray[np.int64]
    item_types: NDArray[np.uint8]
    actions: NDArray[np.int32]
    surfaces: NDArray[np.int32]
    timestamps_ms: NDArray[np.int64]


def event_rows(histories: Histories, items: ItemTable, start: int, stop: int) -> EventRows:
    """Events [start, stop) of the histories, with their items' content; an item that the table lacks has none."""
    at = slice(start, stop)
    content, scale = content_rows(items, histories.item_ids[at])
    return EventRows(
        content,
        scale,
        histories.item_ids[at],
        histories.item_types[at],
        histories.actions[at],
        histories.surfaces[at],
        histories.timestamps_ms[at],
    )


def content_rows(items: ItemTable, item_ids: NDArray[np.int64]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Content int8 [n, D_sem] and scale float32 [n] of each id; zero where the table lacks it, as at serving."""
    rows = items.rows(item_ids)
    content, scale = items.content[rows], items.scale[rows]
    content[rows < 0], scale[rows < 0] = 0, 0
    return content, scale


@dataclass(frozen=True)
class TrainingBatch:
    """Tensors of one step; inputs and rows are those of the shard, candidates those of the whole batch."""

    inputs: SequenceInputs
    position: Tensor
    """int64 [R]: row of hidden_states flattened to [B (T+1), width]"""
    outcome: Tensor
    """int64 [R]"""
    target_offset: Tensor
    """int64 [R], 1-based"""
    surface: Tensor
    """int64 [R], surface code of the target at t'"""
    group: Tensor
    """int64 [R], ascending; rows of a group share their targets"""
    targets: Tensor
    """int64 [R, W], columns of the candidates"""
    mask: Tensor
    """bool [R, W]"""
    candidate_ids: Tensor
    """int64 [C], pins, each once"""
    own_candidates: tuple[int, int]
    """Start and stop of the candidates that the shard embeds; all of them where the batch is whole."""
    candidate_content: Tensor
    """float32 [stop - start, D_sem]: content of the shard's own candidates"""
    negative: Tensor
    """bool [C]: whether a candidate serves as a negative (without in-batch negatives: the random ones)"""
    num_draws: int
    """Target events of the whole batch: in-batch negatives with their repeats; 0 without in-batch negatives."""
    num_rows: int
    """Rows of the whole batch: what the loss is averaged over."""

    def to(self, device: torch.device) -> TrainingBatch:
        """Move every tensor to a device."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor | SequenceInputs)
        }
        return replace(self, **moved)


class BatchStream:
    """Endless seeded batches over the training users; every epoch visits each of them once, in a shuffled order."""

    def __init__(self, dataset: Dataset, user_rows: NDArray[np.int64], config: Config) -> None:
        """`user_rows`: int64, rows of the histories, each with a target event. Raises InvalidData if there are none."""
        self._dataset = dataset
        self._train = config.train
        self._plan = TargetPlan.of(config)
        self._longest = config.max_positions - 1
        self._users = user_rows
        self._lengths = np.minimum(np.diff(dataset.histories.offsets), self._longest)
        self._pins = dataset.items.ids[dataset.items.types == ItemType.PIN]
        if not len(self._users):
            raise InvalidData(
                f"{dataset.name}: no training user has data.min_history = {config.data.min_history} engagements "
                f"with an outcome of {list(dataset.vocabulary.positive_actions)}"
            )
        self._order = (-1, self._users)

    @property
    def random_share(self) -> float:
        """Random negatives of a batch / pins."""
        return self._num_random / len(self._pins)

    @property
    def _num_random(self) -> int:
        return min(self._train.random_negatives, len(self._pins))

    def target_ids(self) -> NDArray[np.int64]:
        """Item ids of every target event of the training users, for the count-min sketch."""
        is_user = np.zeros(self._dataset.histories.num_users, dtype=bool)
        is_user[self._users] = True
        of_user = np.repeat(is_user, np.diff(self._dataset.histories.offsets))
        return self._dataset.histories.item_ids[of_user & (self._dataset.target_outcomes >= 0)]

    def batch(self, step: int, shard: Shard = WHOLE) -> TrainingBatch:
        """The batch of a step (from 0), or a shard of it: the same for the same seed, data and configuration."""
        rng = np.random.default_rng([self._train.seed, _STEP_STREAM, step])
        bounds = [self._chunk(user, rng) for user in self._users_of(step)]
        histories = self._dataset.histories
        outcomes = _pad([self._dataset.target_outcomes[start:stop] for start, stop, _ in bounds], fill=-1)
        surfaces = _pad([histories.surfaces[start:stop] for start, stop, _ in bounds], fill=UNKNOWN_CODE)
        item_ids = _pad([histories.item_ids[start:stop] for start, stop, _ in bounds], fill=0)
        is_first = np.array([first for _, _, first in bounds])
        targets = sample_targets(outcomes, surfaces, is_first, self._plan, rng)
        hidden = [rng.random((2, stop - start)) < self._train.action_dropout for start, stop, _ in bounds]
        drawn = rng.choice(self._pins, size=self._num_random, replace=False, shuffle=False)
        first, last = shard.bounds(len(bounds))
        rows = [event_rows(histories, self._dataset.items, start, stop) for start, stop, _ in bounds[first:last]]
        inputs = collate([_hide_codes(row, mask) for row, mask in zip(rows, hidden[first:last], strict=True)])
        return self._assemble(inputs, targets, item_ids, drawn, shard)

    def _users_of(self, step: int) -> list[int]:
        """Rows of the step's users: the endless sequence of shuffled epochs, cut into batches."""
        first = step * self._train.batch_size
        return [self._user_at(place) for place in range(first, first + self._train.batch_size)]

    def _user_at(self, place: int) -> int:
        epoch, within = divmod(place, len(self._users))
        if self._order[0] != epoch:
            self._order = (epoch, self._order_of(epoch))
        return int(self._order[1][within])

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        """An epoch's users: shuffled, then like lengths together and their batches shuffled, block by block."""
        rng = np.random.default_rng([self._train.seed, _EPOCH_STREAM, epoch])
        order, size = rng.permutation(self._users), self._train.batch_size
        begun = min(len(order), -epoch * len(order) % size)  # these end the batch that the epoch before began
        parts = [order[:begun]]
        for start in range(begun, len(order), _BATCHES_SORTED * size):
            block = order[start : start + _BATCHES_SORTED * size]
            block = block[np.argsort(self._lengths[block], kind="stable")]
            whole = len(block) // size
            parts += [block[at * size : (at + 1) * size] for at in rng.permutation(whole)]
            parts.append(block[whole * size :])  # of the epoch's last block: the begin of a batch
        return np.concatenate(parts)

    def _chunk(self, user: int, rng: np.random.Generator) -> tuple[int, int, bool]:
        """Event range of a user's sequence, and whether it begins at the first event."""
        at = self._dataset.histories.slice_of(user)
        spare = max(0, at.stop - at.start - self._longest)
        start = at.start + int(rng.integers(0, spare + 1))
        return start, min(at.stop, start + self._longest), start == at.start

    def _assemble(
        self,
        inputs: SequenceInputs,
        targets: Targets,
        item_ids: NDArray[np.int64],
        drawn: NDArray[np.int64],
        shard: Shard,
    ) -> TrainingBatch:
        """Look up the candidates of the whole batch, and keep the rows of the shard's users."""
        sequence = targets.sequence[:, None]
        target_ids = item_ids[sequence, targets.events]  # [R, W]
        candidates = np.union1d(target_ids[targets.mask], drawn)
        in_batch = self._train.in_batch_negatives
        is_drawn = np.zeros(item_ids.shape, dtype=bool)
        is_drawn[np.broadcast_to(sequence, targets.events.shape)[targets.mask], targets.events[targets.mask]] = True
        start, stop = shard.bounds(len(candidates))
        content, scale = content_rows(self._dataset.items, candidates[start:stop])
        first, last = shard.bounds(len(item_ids))
        own = (targets.sequence >= first) & (targets.sequence < last)
        mask = targets.mask[own]
        tokens = 1 + inputs.item_types.size(1)
        return TrainingBatch(
            inputs=inputs,
            position=torch.from_numpy((targets.sequence[own] - first) * tokens + targets.position[own]),
            outcome=torch.from_numpy(targets.outcome[own]),
            target_offset=torch.from_numpy(targets.offset[own]),
            surface=torch.from_numpy(targets.surface[own]),
            group=torch.from_numpy(targets.group[own]),
            targets=torch.from_numpy(np.where(mask, np.searchsorted(candidates, target_ids[own]), 0)),
            mask=torch.from_numpy(mask),
            candidate_ids=torch.from_numpy(candidates),
            own_candidates=(start, stop),
            candidate_content=torch.from_numpy(codec.dequantize(content, scale)),
            negative=torch.from_numpy(np.isin(candidates, drawn) | in_batch),
            num_draws=int(is_drawn.sum()) if in_batch else 0,
            num_rows=len(targets.sequence),
        )


def _hide_codes(row: EventRows, hidden: NDArray[np.bool_]) -> EventRows:
    """Mask actions and, independently, surfaces (bool [2, n]): codes of what a vocabulary lacks must be trained too."""
    return replace(
        row,
        actions=np.where(hidden[0], UNKNOWN_CODE, row.actions),
        surfaces=np.where(hidden[1], UNKNOWN_CODE, row.surfaces),
    )


def _pad(arrays: list[NDArray[Any]], fill: int) -> NDArray[Any]:
    """Right-pad 1-D arrays: [B, T]."""
    out = np.full((len(arrays), max(map(len, arrays))), fill, dtype=arrays[0].dtype)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return out
