"""Who is trained on and who is measured: by hand, and never the same."""

import numpy as np
import pytest

from pinrec_core.config import config_from_dict
from pinrec_core.data.dataset import Dataset
from pinrec_core.data.histories import Histories
from pinrec_core.errors import InvalidConfig
from pinrec_core.eval.evaluate import Corpus
from pinrec_core.eval.protocols import (
    Parts,
    as_configured,
    disjoint_in_time,
    disjoint_users,
    engaged_only,
    leave_one_out,
)
from pinrec_core.release import ItemTable
from pinrec_core.schema import Vocabulary
from pinrec_core.text_encoder import TextEncoder

SAVE, VIEW = 1, 2
NUM_ITEMS = 50


def dataset_of(*users):
    """Each user: a list of (item id, action code, time)."""
    events = np.array([event for user in users for event in user], dtype=np.int64)
    return Dataset(
        name="by hand",
        vocabulary=Vocabulary(("save",), ("save", "view"), ("home",)),
        histories=Histories(
            user_ids=100 + np.arange(len(users), dtype=np.int64),
            offsets=np.cumsum([0] + [len(user) for user in users]).astype(np.int64),
            item_ids=events[:, 0],
            item_types=np.zeros(len(events), dtype=np.uint8),
            actions=events[:, 1].astype(np.int32),
            surfaces=np.ones(len(events), dtype=np.int32),
            timestamps_ms=events[:, 2],
        ),
        items=ItemTable(
            np.arange(NUM_ITEMS, dtype=np.int64),
            np.zeros(NUM_ITEMS, np.uint8),
            np.ones((NUM_ITEMS, 2), np.int8),
            np.ones(NUM_ITEMS, np.float32),
        ),
        titles={},
        text_encoder=TextEncoder.fit(["a b", "c d"], 2),
        watermark_ms=0,
    )


def crowd(users=200, events=14):
    """User u engages at times 0, 10, 20, ..."""
    return dataset_of(*[[((u + e) % NUM_ITEMS, SAVE, 10 * e) for e in range(events)] for u in range(users)])


def owner(dataset, place):
    return int(np.searchsorted(dataset.histories.offsets, place, side="right")) - 1


def measured(dataset, parts: Parts):
    return {owner(dataset, user.start) for user in parts.validation + parts.test}


@pytest.mark.parametrize(
    "make",
    [
        lambda dataset: disjoint_users(dataset, seed=3),
        lambda dataset: disjoint_in_time(dataset, cut_ms=100),
        lambda dataset: as_configured(
            dataset, config_from_dict({"data": {"test_share": 0.3, "validation_share": 0.1}})
        ),
    ],
)
def test_evaluation_users_never_occur_in_training(make):
    dataset = crowd()
    parts = make(dataset)
    assert not measured(dataset, parts) & set(parts.train_rows.tolist())
    assert len(parts.train_rows) > 80
    assert len(parts.test) > len(parts.validation) > 0
    training = parts.training_data(dataset).histories
    assert not any(len(range(*training.slice_of(row).indices(10**9))) for row in measured(dataset, parts))
    assert training.num_events == int(parts.train_events.sum())
    assert all(not parts.train_events[user.start : user.targets[-1] + 1].any() for user in parts.test)


def test_shares_are_met_and_the_seed_divides_anew():
    dataset = crowd(users=2_000, events=12)
    parts = disjoint_users(dataset, seed=0)
    assert len(parts.train_rows) / 2_000 == pytest.approx(0.7, abs=0.03)
    assert len(parts.validation) / 2_000 == pytest.approx(0.1, abs=0.03)
    assert len(parts.test) / 2_000 == pytest.approx(0.2, abs=0.03)
    assert parts.train_rows.tolist() == disjoint_users(dataset, seed=0).train_rows.tolist()
    assert parts.train_rows.tolist() != disjoint_users(dataset, seed=1).train_rows.tolist()


def test_all_last_targets_are_held_out_and_users_with_few_engagements_left_out():
    few = [(e, SAVE, e) for e in range(11)] + [(40, VIEW, 20)]
    enough = [(e, SAVE, e) for e in range(12)] + [(40, VIEW, 20)]
    parts = disjoint_users(dataset_of(few, enough), seed=0, shares=(0.0, 0.0, 1.0))
    assert [(u.start, u.stop, u.targets.tolist()) for u in parts.test] == [(12, 16, list(range(16, 24)))]
    assert disjoint_users(dataset_of(few, enough), seed=0, shares=(1.0, 0.0, 0.0)).train_rows.tolist() == [1]


def test_time_is_cut_for_training_and_for_the_measured():
    early_only = [(0, SAVE, 1), (1, SAVE, 2)]
    two_late = [(0, SAVE, 1), (1, VIEW, 10), (2, SAVE, 11), (3, VIEW, 12), (4, SAVE, 13), (5, SAVE, 14)]
    late_only = [(0, SAVE, 11), (1, SAVE, 12)]
    one_late = [(0, SAVE, 1), (1, SAVE, 11)]
    dataset = dataset_of(early_only, two_late, late_only, one_late)
    parts = disjoint_in_time(dataset, cut_ms=10, num_targets=2, shares=(0.0, 0.0, 1.0))
    # The view at the cut is history: it comes before the first target.
    assert [(u.start, u.stop, u.targets.tolist()) for u in parts.test] == [(2, 4, [4, 6])]
    parts = disjoint_in_time(dataset, cut_ms=10, num_targets=2, shares=(1.0, 0.0, 0.0))
    assert parts.train_rows.tolist() == [0], "the others have fewer than two saves before the cut"
    assert parts.training_data(dataset).histories.timestamps_ms.tolist() == [1, 2]
    assert parts.train_until_ms == 10


def test_leave_one_out_by_hand():
    dataset = dataset_of(
        [(1, SAVE, 1), (2, SAVE, 2), (9, VIEW, 3), (3, SAVE, 4), (4, SAVE, 5)],
        [(1, SAVE, 1), (2, SAVE, 2)],
        [(5, SAVE, 1), (6, SAVE, 1), (7, SAVE, 1)],
    )
    parts = leave_one_out(dataset)
    assert parts.train_rows.tolist() == [0, 2]
    assert [(u.start, u.stop, u.targets.tolist()) for u in parts.validation] == [(0, 3, [3]), (7, 8, [8])]
    assert [(u.start, u.stop, u.targets.tolist()) for u in parts.test] == [(0, 4, [4]), (7, 9, [9])]
    training = parts.training_data(dataset).histories
    assert training.item_ids.tolist() == [1, 2, 9, 5]
    assert training.offsets.tolist() == [0, 3, 3, 4]
    held = {int(p) for u in parts.validation + parts.test for p in u.targets}
    assert not parts.train_events[list(held)].any()


def test_leave_one_out_where_every_second_user_validates():
    """The first and third of three: of the second, who does not, all but the last engagement is trained."""
    dataset = dataset_of(*[[(10 * u + i, SAVE, i) for i in range(4)] for u in range(3)])
    parts = leave_one_out(dataset, validation_every=2)
    assert [(u.start, u.stop, u.targets.tolist()) for u in parts.validation] == [(0, 2, [2]), (8, 10, [10])]
    assert [u.targets.tolist() for u in parts.test] == [[3], [7], [11]]
    assert parts.training_data(dataset).histories.item_ids.tolist() == [0, 1, 10, 11, 12, 20, 21]


def test_pins_without_an_event_leave_the_corpus():
    dataset = dataset_of([(3, SAVE, 1), (7, VIEW, 2)])
    assert Corpus.of(engaged_only(dataset)).ids.tolist() == [3, 7]


@pytest.mark.parametrize("shares", [(0.5, 0.1, 0.1), (1.2, -0.1, -0.1)])
def test_shares_must_sum_to_one(shares):
    with pytest.raises(InvalidConfig, match="shares has value"):
        disjoint_users(crowd(5), 0, shares=shares)
