"""The one featurization: padding, dequantization, time features."""

from types import SimpleNamespace

import numpy as np
import torch

from pinrec_core.model.inputs import NUM_TIME_FEATURES, collate, previous_timestamps, time_features

DAY_MS = 86_400_000
MONDAY_2024 = 1_704_067_200_000  # 2024-01-01T00:00Z


def rows(n, first=0):
    return SimpleNamespace(
        content=np.full((n, 2), 127, np.int8),
        content_scale=np.arange(1, n + 1, dtype=np.float32) / 127,
        item_ids=np.arange(n) + 2**60,
        item_types=np.ones(n, np.uint8),
        actions=np.full(n, 2, np.int32),
        surfaces=np.full(n, 1, np.int32),
        timestamps_ms=MONDAY_2024 + np.arange(n) + first,
    )


def test_collate_pads_right_and_dequantizes():
    inputs = collate([rows(1), rows(3)])
    assert inputs.lengths.tolist() == [1, 3]
    assert inputs.content[:, :, 0].tolist() == [[1, 0, 0], [1, 2, 3]]
    assert inputs.item_ids.tolist() == [[2**60, 0, 0], [2**60, 2**60 + 1, 2**60 + 2]]
    assert inputs.actions.tolist() == [[2, 0, 0], [2, 2, 2]]
    assert inputs.id_emb is None
    assert inputs.last_timestamps_ms.tolist() == [MONDAY_2024, MONDAY_2024 + 2]


def test_lengths_cut_the_padding_of_transport():
    inputs = collate([rows(1)], lengths=[0])
    assert inputs.content.shape == (1, 0, 2)
    assert inputs.last_timestamps_ms.tolist() == [0]


def test_time_features_by_hand():
    """A quarter into the day: the day's phase is pi/2, so sin 1 and cos 0."""
    now = torch.tensor([MONDAY_2024 + DAY_MS // 4])
    features = time_features(now, now - 1_000)[0]
    assert features.shape == (NUM_TIME_FEATURES,)
    torch.testing.assert_close(features[:2], torch.tensor([1.0, 0.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(features[-2], torch.log(torch.tensor(2.0)) / 20)
    assert features[-1] == 1


def test_a_millisecond_of_this_century_is_not_lost():
    now = torch.tensor([MONDAY_2024, MONDAY_2024 + 60_000])
    day = time_features(now, now)[:, 0]
    assert day[1] > day[0]


def test_masked_times_have_no_features_and_no_gap():
    masked = torch.tensor([7])
    assert time_features(masked, torch.tensor([6])).abs().sum() == 0
    after_masked = time_features(torch.tensor([MONDAY_2024]), masked)[0]
    assert after_masked[-2] == 0
    assert after_masked[-1] == 1


def test_previous_timestamps():
    assert previous_timestamps(torch.tensor([[5, 6, 7]])).tolist() == [[0, 5, 6]]
