import numpy as np
import pytest

from pinrec_core.config import config_from_dict
from pinrec_core.data.targets import TargetPlan, sample_targets

NEXT = TargetPlan(max_offset=1, window_size=1, offsets_per_position=1, next_share=1.0, same_outcome=True)


def sample(outcomes, plan, surfaces=None, trains_start=None, seed=0):
    outcomes = np.array(outcomes, dtype=np.int32)
    surfaces = np.ones_like(outcomes) if surfaces is None else np.array(surfaces, dtype=np.int32)
    trains_start = np.ones(len(outcomes), dtype=bool) if trains_start is None else np.array(trains_start)
    return sample_targets(outcomes, surfaces, trains_start, plan, np.random.default_rng(seed))


def rows_of(targets, sequence, position):
    """Rows of one position."""
    return np.flatnonzero((targets.sequence == sequence) & (targets.position == position))


def window(targets, sequence, position, place=0):
    """The valid targets of a position's row; none if it is not trained."""
    rows = rows_of(targets, sequence, position)
    return targets.events[rows[place]][targets.mask[rows[place]]].tolist() if len(rows) else []


def trained(targets, sequence):
    """Positions that have a row."""
    return sorted(set(targets.position[targets.sequence == sequence].tolist()))


def test_next_target_skips_context_events():
    # events: 0 save(1), 1 search query, 2 click(0), 3 no outcome, 4 save(1); positions 0..5
    targets = sample([[1, -1, 0, -1, 1]], NEXT, surfaces=[[3, 9, 4, 9, 5]])
    assert [window(targets, 0, t) for t in range(6)] == [[0], [2], [2], [4], [4], []]
    assert trained(targets, 0) == [0, 1, 2, 3, 4]
    assert targets.outcome.tolist() == [1, 0, 0, 1, 1]
    assert targets.surface.tolist() == [3, 4, 4, 5, 5]
    assert (targets.offset == 1).all()


def test_padding_makes_no_targets():
    targets = sample([[0, 0, -1, -1], [-1, -1, -1, -1]], NEXT)
    assert trained(targets, 0) == [0, 1]
    assert trained(targets, 1) == []


def test_start_token_is_left_out_where_the_chunk_does_not_begin_the_history():
    targets = sample([[0, 0], [0, 0]], NEXT, trains_start=[True, False])
    assert [trained(targets, 0), trained(targets, 1)] == [[0, 1], [1]]


def test_window_holds_exactly_window_size_targets_from_the_offset_on():
    plan = TargetPlan(max_offset=1, window_size=3, offsets_per_position=1, next_share=1.0, same_outcome=False)
    targets = sample([[0, -1, 1, 0, 1]], plan)
    assert window(targets, 0, 0) == [0, 2, 3]  # three targets, not four: half-open
    assert window(targets, 0, 1) == [2, 3, 4]
    assert window(targets, 0, 3) == [3, 4]  # the sequence ends
    assert window(targets, 0, 5) == []


def test_same_outcome_keeps_only_targets_like_the_one_at_the_offset():
    plan = TargetPlan(max_offset=1, window_size=3, offsets_per_position=1, next_share=1.0, same_outcome=True)
    targets = sample([[0, -1, 1, 0, 1]], plan)
    assert window(targets, 0, 0) == [0, 3]
    assert window(targets, 0, 1) == [2, 4]
    assert targets.outcome[:2].tolist() == [0, 1]


def test_offsets_count_target_events():
    plan = TargetPlan(max_offset=4, window_size=1, offsets_per_position=64, next_share=0.25, same_outcome=True)
    targets = sample([[0, -1, 1, -1, 0]], plan)
    offsets = targets.offset[rows_of(targets, 0, 0)].tolist()
    where = {offset: window(targets, 0, 0, place) for place, offset in enumerate(offsets)}
    assert where == {1: [0], 2: [2], 3: [4]}  # never 4: three targets are left
    assert set(targets.offset[rows_of(targets, 0, 3)].tolist()) == {1}  # one is left
    assert trained(targets, 0) == [0, 1, 2, 3, 4]


def test_offset_distribution_has_the_next_share_on_one_and_is_uniform_otherwise():
    plan = TargetPlan(max_offset=4, window_size=1, offsets_per_position=40_000, next_share=0.2, same_outcome=True)
    targets = sample([[0] * 6], plan)
    share = np.bincount(targets.offset[rows_of(targets, 0, 0)], minlength=5)[1:] / 40_000
    np.testing.assert_allclose(share, [0.2 + 0.8 / 4, 0.2, 0.2, 0.2], atol=0.01)


@pytest.mark.parametrize("variant", ["uc", "oc"])
def test_single_token_variants_predict_the_next_target_only(variant):
    config = config_from_dict({"model": {"variant": variant}, "generate": {"offsets_per_step": 1}})
    assert TargetPlan.of(config) == NEXT


def test_multi_token_variant_follows_the_configuration():
    config = config_from_dict(
        {"targets": {"max_offset": 6, "window_size": 2, "offsets_per_position": 3, "window_pick": "similarity"}}
    )
    plan = TargetPlan.of(config)
    assert (plan.max_offset, plan.window_size, plan.offsets_per_position) == (6, 2, 3)


def test_the_draw_depends_on_the_generator_only():
    plan = TargetPlan(max_offset=4, window_size=2, offsets_per_position=2, next_share=0.5, same_outcome=True)
    one, same, other = (sample([[0, 1] * 20], plan, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.events, same.events)
    assert one.offset.tolist() != other.offset.tolist()


def test_one_to_one_gives_each_target_of_the_window_a_row_in_its_outcomes_group():
    plan = TargetPlan(4, 3, 1, 1.0, same_outcome=True, one_to_one=True)
    # Targets 0 save(1), 2 click(0), 3 save(1), 4 save(1); from position 0 the window holds 0, 2 and 3.
    targets = sample([[1, -1, 0, 1, 1]], plan, surfaces=[[5, 9, 6, 7, 8]])
    rows = rows_of(targets, 0, 0)
    assert targets.outcome[rows].tolist() == [1, 1, 0]
    assert targets.offset[rows].tolist() == [1, 2, 1]
    assert targets.surface[rows].tolist() == [5, 5, 6]  # one a group: the request's
    assert [window(targets, 0, 0, place) for place in range(3)] == [[0, 3], [0, 3], [2]]
    assert np.unique(targets.group[rows], return_counts=True)[1].tolist() == [2, 1]
    assert trained(targets, 0) == [0, 1, 2, 3, 4]
    assert (np.diff(targets.group) >= 0).all()
    sizes = np.bincount(targets.group)
    np.testing.assert_array_equal(targets.mask.sum(axis=1), sizes[targets.group])


def test_one_to_one_over_all_outcomes_makes_one_group_a_position():
    plan = TargetPlan(4, 3, 1, 1.0, same_outcome=False, one_to_one=True)
    targets = sample([[1, 0, 1]], plan)
    rows = rows_of(targets, 0, 0)
    assert targets.offset[rows].tolist() == [1, 2, 3]
    assert targets.outcome[rows].tolist() == [1, 0, 1]
    assert [window(targets, 0, 0, place) for place in range(3)] == [[0, 1, 2]] * 3
    assert len(set(targets.group[rows].tolist())) == 1


def test_a_share_of_the_positions_is_trained():
    plan = TargetPlan(1, 1, 1, 1.0, same_outcome=True, position_share=0.25)
    targets = sample(np.zeros((100, 100)), plan)
    assert len(targets.sequence) / 10_000 == pytest.approx(0.25, abs=0.02)
