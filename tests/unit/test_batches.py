"""Batches from logs small enough to follow by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pinrec_core.codec import quantize
from pinrec_core.config import Config, config_from_dict
from pinrec_core.data.batches import BatchStream, event_rows
from pinrec_core.data.dataset import Dataset
from pinrec_core.data.histories import Histories
from pinrec_core.errors import InvalidData
from pinrec_core.release import ItemTable
from pinrec_core.schema import ItemType, Vocabulary
from pinrec_core.text_encoder import TextEncoder

SAVE, CLICK, VIEW, SEARCH = 1, 2, 3, 4
VOCABULARY = Vocabulary(("save", "click"), ("save", "click", "view", "search"), ("home", "search"), ("search",))
QUERY_ID = 500
BIG = 2**60  # ids that float or int32 would garble


def dataset_of(*users):
    """Each user: a list of (item id, action code)."""
    events = [event for user in users for event in user]
    item_ids = np.array([item for item, _ in events], dtype=np.int64)
    ids = np.unique(np.append(item_ids, [BIG + 90, BIG + 91]))
    types = np.where(ids == QUERY_ID, ItemType.SEARCH_QUERY, ItemType.PIN).astype(np.uint8)
    content, scale = quantize(np.random.default_rng(0).normal(size=(len(ids), 4)))
    return Dataset(
        name="by hand",
        vocabulary=VOCABULARY,
        histories=Histories(
            user_ids=np.arange(len(users), dtype=np.int64),
            offsets=np.cumsum([0] + [len(user) for user in users]).astype(np.int64),
            item_ids=item_ids,
            item_types=np.where(item_ids == QUERY_ID, ItemType.SEARCH_QUERY, ItemType.PIN).astype(np.uint8),
            actions=np.array([action for _, action in events], dtype=np.int32),
            surfaces=np.ones(len(events), dtype=np.int32),
            timestamps_ms=1_700_000_000_000 + np.arange(len(events), dtype=np.int64) * 1000,
        ),
        items=ItemTable(ids, types, content, scale),
        titles={},
        text_encoder=TextEncoder.fit(["a b", "c d"], 4),
        watermark_ms=0,
    )


def config_of(**train):
    train = {"batch_size": 2, "random_negatives": 1, "action_dropout": 0.0, **train}
    return config_from_dict(
        {"model": {"variant": "oc", "max_history": 4}, "generate": {"num_steps": 1, "offsets_per_step": 1},
         "train": train}
    )  # fmt: skip


TWO_USERS = (
    [(BIG + 1, SAVE), (QUERY_ID, SEARCH), (BIG + 2, CLICK), (BIG + 3, VIEW)],
    [(BIG + 2, CLICK), (BIG + 1, SAVE)],
)


def stream_of(*users, **train):
    return BatchStream(dataset_of(*users), np.arange(len(users)), config_of(**train))


def in_order(batch):
    """Valid pairs as (length of the user's sequence, position, target id, outcome, surface), sorted."""
    width = batch.inputs.lengths.max() + 1
    return sorted(
        (
            int(batch.inputs.lengths[p // width]),
            int(p % width),
            int(batch.candidate_ids[t[0]]),
            int(o),
            int(s),
        )
        for p, t, o, s in zip(batch.position, batch.targets, batch.outcome, batch.surface, strict=True)
    )


def test_every_prefix_predicts_the_next_target_event():
    assert in_order(stream_of(*TWO_USERS).batch(0)) == [
        (2, 0, BIG + 2, 1, 1),
        (2, 1, BIG + 1, 0, 1),
        (4, 0, BIG + 1, 0, 1),
        (4, 1, BIG + 2, 1, 1),  # after the save, before the query
        (4, 2, BIG + 2, 1, 1),  # after the query: what a search request looks like
    ]


def test_candidates_are_distinct_targets_and_random_pins_never_queries():
    batch = stream_of(*TWO_USERS, random_negatives=100).batch(0)
    pins = [BIG + 1, BIG + 2, BIG + 3, BIG + 90, BIG + 91]
    assert batch.candidate_ids.tolist() == pins
    assert batch.negative.all()
    assert batch.num_draws == 4  # two targets a user; BIG + 1 and BIG + 2 are drawn twice each
    assert stream_of(*TWO_USERS, random_negatives=2).random_share == pytest.approx(2 / 5)


def test_without_in_batch_negatives_only_random_pins_are_negatives():
    batch = stream_of(*TWO_USERS, in_batch_negatives=False).batch(0)
    assert int(batch.negative.sum()) == 1
    assert batch.num_draws == 0
    assert {BIG + 1, BIG + 2} <= set(batch.candidate_ids.tolist())


def test_candidate_content_is_what_serving_dequantizes():
    dataset = dataset_of(*TWO_USERS)
    batch = BatchStream(dataset, np.arange(2), config_of()).batch(0)
    row = dataset.items.rows(np.array([BIG + 2]))[0]
    expected = dataset.items.content[row].astype(np.float32) * dataset.items.scale[row]
    column = batch.candidate_ids.tolist().index(BIG + 2)
    np.testing.assert_array_equal(batch.candidate_content[column].numpy(), expected)


def test_an_item_that_the_table_lacks_has_no_content():
    dataset = dataset_of(*TWO_USERS)
    kept = dataset.items.ids != BIG + 3
    items = ItemTable(*(getattr(dataset.items, name)[kept] for name in ("ids", "types", "content", "scale")))
    rows = event_rows(dataset.histories, items, 0, 4)
    assert rows.content_scale[3] == 0.0
    assert (rows.content_scale[:3] > 0).all()


def test_a_long_history_gives_runs_and_trains_the_start_token_at_its_beginning_only():
    user = [(BIG + i, SAVE) for i in range(10)]
    stream = stream_of(user, batch_size=1)
    starts = set()
    for step in range(60):
        batch = stream.batch(step)
        assert batch.inputs.lengths.tolist() == [4]
        first = int(batch.inputs.item_ids[0, 0]) - BIG
        assert batch.inputs.item_ids[0].tolist() == [BIG + first + i for i in range(4)]
        assert (0 in batch.position.tolist()) == (first == 0)
        starts.add(first)
    assert starts == set(range(7))


def test_a_batch_is_a_function_of_seed_and_step():
    users = [[(BIG + i + j, SAVE) for j in range(8)] for i in range(5)]
    forward, backward, other = stream_of(*users), stream_of(*users), stream_of(*users, seed=1)
    batches = [forward.batch(step) for step in range(6)]
    again = [backward.batch(step) for step in reversed(range(6))][::-1]
    for one, same in zip(batches, again, strict=True):
        assert torch.equal(one.inputs.item_ids, same.inputs.item_ids)
        assert torch.equal(one.candidate_ids, same.candidate_ids)
    assert any(not torch.equal(batches[step].candidate_ids, other.batch(step).candidate_ids) for step in range(6))


def test_every_epoch_visits_every_user_once():
    users = [[(BIG + 100 * i, SAVE), (BIG + 100 * i + 1, SAVE)] for i in range(6)]
    stream = stream_of(*users)
    orders = []
    for epoch in range(3):
        seen = [int(i) for step in range(3) for i in stream.batch(3 * epoch + step).inputs.item_ids[:, 0]]
        assert sorted(seen) == [BIG + 100 * i for i in range(6)]
        orders.append(tuple(seen))
    assert len(set(orders)) > 1


def test_users_of_like_length_share_a_batch_in_every_epoch():
    users = [[(BIG + i, SAVE) for i in range(1 + row % 4)] for row in range(30)]  # not a multiple of the batch
    stream = stream_of(*users, batch_size=4)
    steps = range(30)  # four epochs
    spread = [np.ptp(stream.batch(step).inputs.lengths.numpy()) for step in steps]
    assert np.mean(spread) < 1  # at random: 2 and more
    firsts = [int(stream.batch(step).inputs.lengths[0]) for step in steps]
    assert firsts != sorted(firsts)  # batches are shuffled


def test_action_dropout_masks_inputs_but_not_targets():
    batch = stream_of(*TWO_USERS, action_dropout=1.0).batch(0)
    assert not batch.inputs.actions.any()
    assert not batch.inputs.surfaces.any()
    assert sorted(batch.outcome.tolist()) == [0, 0, 1, 1, 1]
    assert set(batch.surface.tolist()) == {1}


def test_windows_share_the_candidates():
    config = config_from_dict(
        {"model": {"max_history": 8}, "targets": {"max_offset": 2, "window_size": 2, "offsets_per_position": 1,
                                                 "same_outcome": False, "window_pick": "similarity"},
         "generate": {"num_steps": 1, "offsets_per_step": 1}, "train": {"batch_size": 1, "random_negatives": 1}}
    )  # fmt: skip
    user = [(BIG + i, SAVE) for i in range(4)]
    batch = BatchStream(dataset_of(user), np.arange(1), config).batch(0)
    for position, offset, targets, mask in zip(
        batch.position, batch.target_offset, batch.targets, batch.mask, strict=True
    ):
        first = int(position) + int(offset) - 1
        expected = [BIG + i for i in (first, first + 1) if i < 4]
        assert batch.candidate_ids[targets[mask]].tolist() == expected


def test_target_ids_are_the_training_users_own():
    stream = BatchStream(dataset_of(*TWO_USERS), np.array([0]), config_of())
    assert sorted(stream.target_ids().tolist()) == [BIG + 1, BIG + 2]
    assert dataset_of(*TWO_USERS).target_outcomes.tolist() == [0, -1, 1, -1, 1, 0]


def test_nobody_to_train_on_is_an_error_that_says_what_is_needed():
    with pytest.raises(InvalidData, match=r"no training user has data.min_history = 2 .*\['save', 'click'\]"):
        BatchStream(dataset_of(*TWO_USERS), np.array([], dtype=np.int64), replace(Config()))
