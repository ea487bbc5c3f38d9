"""Who is trained on, who is measured, and on which of their events: fixed once, so that every model is treated alike.

`Parts.training_data` is all that training may see. Users are divided by `split_users`, a hash of (seed, user id).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pinrec_core.config import Config, DataConfig
from pinrec_core.data.dataset import Dataset
from pinrec_core.data.histories import Histories, Split, split_users
from pinrec_core.errors import InvalidConfig
from pinrec_core.eval.heldout import NUM_TARGETS, HeldOut, held_out
from pinrec_core.release import ItemTable
from pinrec_core.schema import ItemType

KUAIRAND_CUT_MS = 1_651_334_400_000
"""1 May 2022, 0:00 in Beijing, where KuaiRand's days are counted."""
_LEAST_TRAINED = 2
"""Target events of a training user: one to learn from and one before it."""


@dataclass(frozen=True)
class Parts:
    """A data set divided. Rows are those of the data set's histories, places those of its events."""

    train_rows: NDArray[np.int64]
    """Ascending: users of whom something is trained on."""
    validation: list[HeldOut]
    test: list[HeldOut]
    train_until_ms: int | None
    """Training sees no event of this time or later; None = a user's own events are the limit."""
    train_events: NDArray[np.bool_]
    """bool [E]: what training may see."""

    def training_data(self, dataset: Dataset) -> Dataset:
        """`dataset` with no other events: the rows stay (some users have no event left), places of events do not."""
        h, kept = dataset.histories, self.train_events
        before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(kept, dtype=np.int64)])
        histories = Histories(
            user_ids=h.user_ids,
            offsets=before[h.offsets],
            item_ids=h.item_ids[kept],
            item_types=h.item_types[kept],
            actions=h.actions[kept],
            surfaces=h.surfaces[kept],
            timestamps_ms=h.timestamps_ms[kept],
        )
        return replace(dataset, histories=histories)


def engaged_only(dataset: Dataset) -> Dataset:
    """`dataset` without the pins that no event has: the corpus of the comparisons on KuaiRand."""
    items = dataset.items
    engaged = np.isin(items.ids, dataset.histories.item_ids) | (items.types != ItemType.PIN)
    return replace(
        dataset,
        items=ItemTable(items.ids[engaged], items.types[engaged], items.content[engaged], items.scale[engaged]),
    )


def as_configured(dataset: Dataset, config: Config, num_targets: int = NUM_TARGETS) -> Parts:
    """As `pinrec train` and `pinrec evaluate` divide: users apart by `config.data`, last targets held out."""
    split = dataset.split(config)
    return Parts(
        train_rows=split.train,
        validation=held_out(dataset, split.validation, num_targets),
        test=held_out(dataset, split.test, num_targets),
        train_until_ms=None,
        train_events=_events_of(dataset, split.train),
    )


def disjoint_users(
    dataset: Dataset,
    seed: int,
    min_engagements: int = 12,
    num_targets: int = NUM_TARGETS,
    shares: tuple[float, float, float] = (0.7, 0.1, 0.2),
) -> Parts:
    """The paper's: users apart, each measured one's last `num_targets` engagements are the targets.

    Users with fewer than `min_engagements` are left out altogether. shares: training, validation, test; raises
    InvalidConfig if they do not sum to 1.
    """
    enough = dataset.histories.count_by_user(dataset.target_outcomes >= 0) >= min_engagements
    split = _split(dataset, seed, shares)
    rows = split.train[enough[split.train]]
    return Parts(
        train_rows=rows,
        validation=held_out(dataset, split.validation[enough[split.validation]], num_targets),
        test=held_out(dataset, split.test[enough[split.test]], num_targets),
        train_until_ms=None,
        train_events=_events_of(dataset, rows),
    )


def disjoint_in_time(
    dataset: Dataset,
    cut_ms: int,
    num_targets: int = 4,
    shares: tuple[float, float, float] = (0.6, 0.1, 0.3),
    seed: int = 0,
) -> Parts:
    """Users apart and time apart: trained before `cut_ms`, measured on the first `num_targets` engagements after it.

    Only users with as many after it, and with an event before, are measured. shares: training, validation, test; raises
    InvalidConfig if they do not sum to 1.
    """
    split = _split(dataset, seed, shares)
    before = dataset.histories.timestamps_ms < cut_ms
    trained = dataset.histories.count_by_user(before & (dataset.target_outcomes >= 0)) >= _LEAST_TRAINED
    rows = split.train[trained[split.train]]
    return Parts(
        train_rows=rows,
        validation=_first_after(dataset, split.validation, cut_ms, num_targets),
        test=_first_after(dataset, split.test, cut_ms, num_targets),
        train_until_ms=cut_ms,
        train_events=_events_of(dataset, rows) & before,
    )


def leave_one_out(dataset: Dataset, validation_every: int = 1) -> Parts:
    """Sequential recommendation's: a user's last engagement is the test, the one before it the validation.

    All users are trained on what comes before these two, so that none is measured on what was trained; users with fewer
    than three engagements are left out. With `validation_every` above 1 only every so many-th user validates, and of
    the others the last engagement but one is trained.
    """
    h = dataset.histories
    seen = np.zeros(h.num_events, dtype=np.bool_)
    rows: list[int] = []
    validation, test = [], []
    for row in range(h.num_users):
        at = h.slice_of(row)
        places = at.start + np.flatnonzero(dataset.target_outcomes[at] >= 0)
        if len(places) >= 3:
            validates = len(rows) % validation_every == 0
            if validates:
                validation.append(HeldOut(at.start, int(places[-2]), places[-2:-1]))
            rows.append(row)
            test.append(HeldOut(at.start, int(places[-1]), places[-1:]))
            seen[at.start : places[-2 if validates else -1]] = True
    return Parts(np.array(rows, dtype=np.int64), validation, test, None, seen)


def _split(dataset: Dataset, seed: int, shares: tuple[float, float, float]) -> Split:
    if min(shares) < 0 or abs(sum(shares) - 1.0) > 1e-9:
        raise InvalidConfig(f"shares has value {shares}; allowed: three that are not negative and sum to 1")
    _, validation, test = shares
    config = DataConfig(test_share=test, validation_share=validation, split_seed=seed)
    return split_users(dataset.histories.user_ids, config)


def _events_of(dataset: Dataset, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool [E]: events of the users in `rows`."""
    chosen = np.zeros(dataset.histories.num_users, dtype=np.bool_)
    chosen[rows] = True
    return np.repeat(chosen, np.diff(dataset.histories.offsets))


def _first_after(dataset: Dataset, rows: NDArray[np.int64], cut_ms: int, num_targets: int) -> list[HeldOut]:
    h = dataset.histories
    users = []
    for row in rows:
        at = h.slice_of(int(row))
        late = (dataset.target_outcomes[at] >= 0) & (h.timestamps_ms[at] >= cut_ms)
        targets = at.start + np.flatnonzero(late)[:num_targets]
        if len(targets) == num_targets and targets[0] > at.start:
            users.append(HeldOut(at.start, int(targets[0]), targets))
    return users
