"""Intervals against what statistics says, and against cases worked by hand."""

import math

import numpy as np
import pytest

from pinrec_core.eval.bootstrap import Interval, interval, ratio_interval, ratio_of_ratios


def coins(probability, users, seed):
    return (np.random.default_rng(seed).random(users) < probability).astype(np.float32)


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation():
    values = coins(0.3, 2_000, seed=1)
    found = interval(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.mean == pytest.approx(half, rel=0.15)
    assert found.mean - found.low == pytest.approx(half, rel=0.15)


def test_nineteen_of_twenty_intervals_hold_the_truth():
    holds = [not interval(coins(0.4, 200, seed), draws=200).clear_of(0.4) for seed in range(200)]
    assert 0.90 <= np.mean(holds) <= 0.99


def test_without_spread_the_interval_is_a_point():
    assert interval(np.full(10, 0.25)) == Interval(0.25, 0.25, 0.25)
    assert ratio_interval(np.full(10, 0.5), np.full(10, 0.25)) == Interval(2.0, 2.0, 2.0)


def test_seeds_that_differ_widen_the_interval():
    users = np.full((3, 500), 0.5)
    apart = users + np.array([[-0.1], [0.0], [0.1]])
    assert interval(users) == Interval(0.5, 0.5, 0.5)
    found = interval(apart)
    assert found.mean == pytest.approx(0.5)
    assert found.low < 0.45 < 0.55 < found.high


def test_a_paired_ratio_is_narrower_than_the_spread_of_its_parts():
    base = coins(0.3, 1_000, seed=2) + 0.1
    found = ratio_interval(1.1 * base, base)
    assert found.mean == pytest.approx(1.1)
    assert found.low == pytest.approx(1.1)
    assert found.high == pytest.approx(1.1)
    assert found.clear_of(1.0)
    shuffled = np.random.default_rng(0).permutation(base)
    assert ratio_interval(1.1 * shuffled, base).high > 1.15


def test_two_readings_of_the_same_models_draw_their_seeds_together():
    base = np.stack([rate * np.ones(200) for rate in (0.2, 0.5, 0.8)])  # seeds differ far more than the readings do
    assert ratio_interval(1.1 * base, base).high > 1.5
    found = ratio_interval(1.1 * base, base, same_models=True)
    assert (found.mean, found.low, found.high) == pytest.approx((1.1, 1.1, 1.1))
    with pytest.raises(ValueError, match="a has 3 seeds and b 2"):
        ratio_interval(base, base[:2], same_models=True)


def test_weights_count_targets_instead_of_users():
    share, number = np.array([0.5, 1.0, 0.0]), np.array([4.0, 1.0, 0.0])
    assert interval(share, number).mean == pytest.approx(3 / 5)
    ratio = ratio_interval(share, np.array([0.25, 0.0, 1.0]), number, np.array([4.0, 1.0, 0.0]))
    assert ratio.mean == pytest.approx((3 / 5) / (1 / 5))


def test_a_draw_without_weight_is_left_out():
    found = interval(np.array([1.0, 0.5]), np.array([1.0, 0.0]))  # a quarter of the draws hold only the second user
    assert (found.low, found.high) == (1.0, 1.0)


def test_the_same_seed_gives_the_same_interval():
    values = coins(0.5, 100, seed=3)
    assert interval(values, seed=1) == interval(values, seed=1)
    assert interval(values, seed=1) != interval(values, seed=2)


def test_nobody_has_no_figure():
    found = interval(np.empty(0))
    assert math.isnan(found.mean)
    assert math.isnan(found.low)


def test_other_users_are_refused():
    with pytest.raises(ValueError, match="a has 3 users and b 2"):
        ratio_interval(np.ones(3), np.ones(2))


def test_a_ratio_less_one_is_a_gain():
    assert Interval(1.1, 1.0, 1.5).minus(1).low == 0.0


def test_a_ratio_of_ratios_by_hand():
    """(.6 / .3) / (.4 / .4) = 2 of two models on the same users, each part weighted; nothing varies, so no width."""
    one, two = np.ones((2, 5)), np.ones((2, 5)) * 2
    a = ((0.6 * one, two), (0.3 * one, one))
    b = ((0.4 * one[:1], one[:1]), (0.4 * one[:1], one[:1]))
    found = ratio_of_ratios(a, b)
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))


def test_a_ratio_of_ratios_does_not_see_what_both_parts_share():
    """A model that is twice as good in both parts has no other ratio."""
    rng = np.random.default_rng(0)
    hits, weights = rng.random((3, 200)), np.ones((3, 200))
    rest = rng.random((3, 200))
    found = ratio_of_ratios(((2 * hits, weights), (2 * rest, weights)), ((hits, weights), (rest, weights)))
    assert found.mean == pytest.approx(1.0)
    assert found.low < 1.0 < found.high
