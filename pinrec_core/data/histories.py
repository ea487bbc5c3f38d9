"""Histories: every user's events, oldest first, in one set of flat arrays; and the split of users by a stable hash."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pinrec_core.config import DataConfig


@dataclass(frozen=True)
class Histories:
    """Compressed rows: the events of user row u lie at `offsets[u]:offsets[u + 1]`, oldest first.

    user_ids int64 [U] ascending, offsets int64 [U + 1]; item_ids int64 [E], item_types uint8 [E], actions int32 [E] and
    surfaces int32 [E] (vocabulary codes, 0 = unknown), timestamps_ms int64 [E].
    """

    user_ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    item_ids: NDArray[np.int64]
    item_types: NDArray[np.uint8]
    actions: NDArray[np.int32]
    surfaces: NDArray[np.int32]
    timestamps_ms: NDArray[np.int64]

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.user_ids)

    @property
    def num_events(self) -> int:
        """E."""
        return len(self.item_ids)

    def slice_of(self, row: int) -> slice:
        """Where the events of user row `row` lie."""
        return slice(int(self.offsets[row]), int(self.offsets[row + 1]))

    def row_of(self, user_id: int) -> int:
        """Row of a user, -1 if the log does not know them."""
        at = int(np.searchsorted(self.user_ids, user_id))
        return at if at < len(self.user_ids) and self.user_ids[at] == user_id else -1

    def count_by_user(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """int64 [U]: how many of each user's events a mask [E] chooses."""
        before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(chosen, dtype=np.int64)])
        counts: NDArray[np.int64] = before[self.offsets[1:]] - before[self.offsets[:-1]]
        return counts


@dataclass(frozen=True)
class Split:
    """Disjoint user rows, int64, ascending: of training, early stopping and testing (section 5.1)."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def split_users(user_ids: NDArray[np.int64], config: DataConfig) -> Split:
    """Split by a hash of (seed, user id): a user's side never depends on who else is in the log.

    user_ids: int64 [U]. The shares are met in expectation; a handful of users may leave a side empty.
    """
    draw = _uniform(user_ids, config.split_seed)
    is_test = draw < config.test_share
    is_validation = ~is_test & (draw < config.test_share + config.validation_share)
    return Split(
        train=np.flatnonzero(~is_test & ~is_validation),
        validation=np.flatnonzero(is_validation),
        test=np.flatnonzero(is_test),
    )


def _uniform(user_ids: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each id: two rounds of splitmix64 over the seed and the id."""
    state = _mix(np.array([seed], dtype=np.int64).view(np.uint64)) + user_ids.view(np.uint64)
    return (_mix(state) >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
