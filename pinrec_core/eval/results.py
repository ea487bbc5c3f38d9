"""What an evaluation found, user by user and target by target: from it come averages, buckets and intervals.

Letters: U users, Z targets of all users together.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pinrec_core.errors import InvalidData

HISTORY_STARTS = (0, 5, 20, 50)
"""First length, in events, of each bucket of users; those of the first one are cold."""
FREQUENCY_STARTS = (0, 1, 5, 20, 100)
"""First number of training engagements of each bucket of items; those of the first one are cold."""
UNKNOWN_FREQUENCY = -1
"""Stands where nobody said what was trained on."""


@dataclass(frozen=True)
class UserResults:
    """One evaluation of one model; users in the order in which they were given.

    Codes of surfaces are the vocabulary's (1-based, 0 = unknown); an outcome is its place in `outcomes`.
    """

    user_ids: NDArray[np.int64]
    """[U]"""
    any_hit: NDArray[np.float32]
    """[U]: Eq. 6's indicator, 1 if any embedding has any target within its top k."""
    target_share: NDArray[np.float32]
    """[U]: share of the user's targets that some embedding has, the reading of section 5.1's text."""
    num_targets: NDArray[np.int64]
    """[U]"""
    unique_within: NDArray[np.float32]
    """[U]: distinct items among all that the user's embeddings retrieved."""
    surface: NDArray[np.int32]
    """[U]: code of the first target's surface."""
    history_length: NDArray[np.int64]
    """[U]: events before the first target."""
    target_user: NDArray[np.int64]
    """[Z]: place of the target's user in the arrays above, ascending."""
    target_outcome: NDArray[np.int32]
    """[Z]: the action that the target was engaged with, also where the model is unconditioned."""
    target_hit: NDArray[np.bool_]
    """[Z]"""
    target_frequency: NDArray[np.int64]
    """[Z]: engagements of training users with the target's item; -1 where not known."""
    surfaces: tuple[str, ...]
    outcomes: tuple[str, ...]
    num_retrieved: int
    """Places in all users' lists together."""
    num_distinct: int
    """Items in them."""
    corpus_size: int
    target_surface: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    """[Z]: code of the target's surface; empty where not known."""

    def save(self, path: Path) -> None:
        """Write an npz file."""
        arrays: dict[str, Any] = {one.name: np.asarray(getattr(self, one.name)) for one in fields(self)}
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> UserResults:
        """Inverse of `save`. Raises InvalidData naming what the file lacks."""
        with np.load(path, allow_pickle=False) as stored:
            known = [one.name for one in fields(cls) if one.name in stored or one.default_factory is MISSING]
            missing = [name for name in known if name not in stored]
            if missing:
                raise InvalidData(f"{path.name} lacks {missing}; allowed: what UserResults.save wrote")
            values: dict[str, Any] = {name: stored[name] for name in known}
        for name in ("surfaces", "outcomes"):
            values[name] = tuple(str(word) for word in values[name])
        for name in ("num_retrieved", "num_distinct", "corpus_size"):
            values[name] = int(values[name])
        return cls(**values)

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.user_ids)

    @property
    def proportion_unique(self) -> float:
        """Distinct items among all retrieved, over all users; 0 if nothing is."""
        return self.num_distinct / max(1, self.num_retrieved)

    @property
    def coverage(self) -> float:
        """Share of the corpus that anybody gets."""
        return self.num_distinct / max(1, self.corpus_size)

    def summary(self) -> dict[str, float]:
        """Averages over users, and over targets by outcome; without users only their number and zero recalls.

        `unordered_recall` (Eq. 6), `target_recall` (share of targets), `proportion_unique`, `unique_within_user`,
        `coverage`; `unordered_recall/<surface>`, `target_recall/<outcome>`, `unordered_recall/history=<events>` and,
        where training counts are known, `target_recall/item_count=<training engagements>`.
        """
        if not self.num_users:
            return {"users": 0.0, "unordered_recall": 0.0, "target_recall": 0.0}
        return {
            "users": float(self.num_users),
            "unordered_recall": float(self.any_hit.mean()),
            "target_recall": float(self.target_share.mean()),
            "proportion_unique": self.proportion_unique,
            "unique_within_user": float(self.unique_within.mean()),
            "coverage": self.coverage,
            **{f"unordered_recall/{name}": float(self.any_hit[of].mean()) for name, of in self.by_surface().items()},
            **{f"target_recall/{name}": float(self.target_hit[of].mean()) for name, of in self.by_outcome().items()},
            **{
                f"unordered_recall/history={name}": float(self.any_hit[of].mean())
                for name, of in self.by_history().items()
            },
            **{
                f"target_recall/item_count={name}": float(self.target_hit[of].mean())
                for name, of in self.by_frequency().items()
            },
        }

    def by_surface(self) -> dict[str, NDArray[np.bool_]]:
        """Surface -> its users, bool [U]; only surfaces that have any."""
        return _present((name, self.surface == code) for code, name in enumerate(self.surfaces, start=1))

    def by_target_surface(self) -> dict[str, NDArray[np.bool_]]:
        """Surface -> the targets on it, bool [Z]; only surfaces that have any; empty where it is not known."""
        if not len(self.target_surface):
            return {}
        return _present((name, self.target_surface == code) for code, name in enumerate(self.surfaces, start=1))

    def by_outcome(self) -> dict[str, NDArray[np.bool_]]:
        """Outcome -> its targets, bool [Z]; only outcomes that have any."""
        return _present((name, self.target_outcome == place) for place, name in enumerate(self.outcomes))

    def by_history(self) -> dict[str, NDArray[np.bool_]]:
        """Bucket of history lengths such as `5-19` -> its users, bool [U]; only buckets that have any."""
        return _buckets(self.history_length, HISTORY_STARTS)

    def by_frequency(self) -> dict[str, NDArray[np.bool_]]:
        """Bucket of training engagements such as `1-4` -> its targets, bool [Z]; empty where they are not known."""
        return _buckets(self.target_frequency, FREQUENCY_STARTS)

    def per_user(self, targets: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Of the chosen targets, bool [Z]: each user's share of hits and their number, float32 [U] each.

        The mean of the shares weighted by the numbers is the recall over these targets, for `bootstrap` to resample.
        """
        numbers = np.bincount(self.target_user[targets], minlength=self.num_users)
        hits = np.bincount(self.target_user[targets & self.target_hit], minlength=self.num_users)
        return (hits / np.maximum(1, numbers)).astype(np.float32), numbers.astype(np.float32)

    def any_hit_of(self, targets: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Eq. 6 among the chosen targets, bool [Z]: whether each user has a hit, and has any of them, bool [U] each."""
        has = np.bincount(self.target_user[targets], minlength=self.num_users) > 0
        hit = np.bincount(self.target_user[targets & self.target_hit], minlength=self.num_users) > 0
        return hit, has


def _present(masks: Any) -> dict[str, NDArray[np.bool_]]:
    return {name: mask for name, mask in masks if mask.any()}


def _buckets(values: NDArray[np.int64], starts: tuple[int, ...]) -> dict[str, NDArray[np.bool_]]:
    """Masks of the buckets that hold any value; values below the first start are in none."""
    found = {}
    for start, stop in zip(starts, (*starts[1:], None), strict=True):
        inside = (values >= start) if stop is None else (values >= start) & (values < stop)
        last = None if stop is None else stop - 1
        label = f"{start}+" if last is None else str(start) if last == start else f"{start}-{last}"
        if inside.any():
            found[label] = inside
    return found
