from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinrec_core.errors import InvalidRequest
from pinrec_core.generate.budget import allocate, allocate_stochastic, normalize, seed_of

WEIGHTS = st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any)
TOTALS = st.integers(0, 1_000)


def split(weights, total):
    return allocate(normalize(np.array(weights, dtype=np.float64)), total).tolist()


def slow_split(weights, total):
    """The rule in exact fractions, one place at a time."""
    quotas = [Fraction(w * total, sum(weights)) for w in weights]
    counts = [q.numerator // q.denominator for q in quotas]
    waiting = list(range(len(weights)))
    while sum(counts) < total:
        winner = waiting[0]
        for rival in waiting[1:]:
            ahead = (quotas[rival] % 1, weights[rival]) > (quotas[winner] % 1, weights[winner])
            winner = rival if ahead else winner
        counts[winner] += 1
        waiting.remove(winner)
    return counts


def test_normalize_sums_to_one():
    assert normalize(np.array([1.0, 3.0])).tolist() == [0.25, 0.75]
    assert normalize(np.array([0.0, 5.0], dtype=np.float32)).tolist() == [0.0, 1.0]


def test_normalize_survives_huge_and_tiny_weights():
    assert normalize(np.array([1e308, 1e308])).tolist() == [0.5, 0.5]
    assert normalize(np.array([5e-324, 5e-324])).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -0.1], [np.nan, 1.0], [np.inf, 1.0], []])
def test_normalize_refuses(weights):
    with pytest.raises(InvalidRequest, match=r"budget has value .* allowed: finite weights"):
        normalize(np.array(weights))


@pytest.mark.parametrize(
    ("weights", "total", "counts"),
    [
        ([40, 10, 40, 5, 5], 100, [40, 10, 40, 5, 5]),  # exact quotas
        ([50, 30, 20], 9, [4, 3, 2]),  # 4.5 2.7 1.8: the places go to .8 and .7
        ([30, 70], 5, [1, 4]),  # 1.5 3.5: a tie goes to the larger share
        ([70, 30], 5, [4, 1]),  # whatever the order
        ([1, 1, 1], 10, [4, 3, 3]),  # equal shares: the earlier outcome
        ([1, 1, 1, 1], 2, [1, 1, 0, 0]),
        ([43, 57], 50, [21, 29]),  # 21.5 and 28.499999999999996: a tie on paper
        ([0, 1], 7, [0, 7]),
        ([3, 0, 0], 1, [1, 0, 0]),
        ([5], 12, [12]),
        ([2, 1], 0, [0, 0]),
    ],
)
def test_allocate_by_hand(weights, total, counts):
    assert split(weights, total) == counts
    assert slow_split(weights, total) == counts


def test_a_thousand_random_budgets_equal_exact_fractions():
    rng = np.random.default_rng(0)
    for _ in range(1_000):
        weights = rng.integers(0, 30, size=rng.integers(1, 9)).tolist()
        weights[rng.integers(len(weights))] += 1
        total = int(rng.integers(0, 400))
        assert split(weights, total) == slow_split(weights, total), (weights, total)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=8).filter(any), TOTALS)
def test_allocate_sums_exactly_and_stays_within_one_of_the_quota(weights, total):
    counts = np.array(split(weights, total))
    quotas = normalize(np.array(weights)) * total
    assert counts.sum() == total
    assert np.abs(counts - quotas).max() < 1 + 1e-6
    assert not counts[np.array(weights) == 0].any()


@given(WEIGHTS, TOTALS)
def test_a_larger_share_never_gets_less(weights, total):
    counts = split(weights, total)
    for i, j in np.ndindex(len(weights), len(weights)):
        if weights[i] > weights[j]:
            assert counts[i] >= counts[j]


@given(WEIGHTS, TOTALS, st.data())
def test_raising_a_weight_never_costs_its_outcome(weights, total, data):
    raised = data.draw(st.integers(0, len(weights) - 1))
    more = [w + 3 * (i == raised) for i, w in enumerate(weights)]
    assert split(more, total)[raised] >= split(weights, total)[raised]


@given(st.lists(st.integers(0, 60), min_size=1, max_size=8, unique=True).filter(any), TOTALS, st.randoms())
def test_distinct_shares_permute_with_their_counts(weights, total, random):
    order = list(range(len(weights)))
    random.shuffle(order)
    assert split([weights[i] for i in order], total) == [split(weights, total)[i] for i in order]


@given(WEIGHTS, TOTALS, st.integers(0, 2**64 - 1))
@settings(max_examples=50)
def test_stochastic_sums_exactly_and_repeats_with_its_seed(weights, total, seed):
    shares = normalize(np.array(weights, dtype=np.float64))
    counts = allocate_stochastic(shares, total, seed)
    assert counts.dtype == np.int64
    assert counts.sum() == total
    assert not counts[shares == 0].any()
    assert counts.tolist() == allocate_stochastic(shares, total, seed).tolist()


def test_stochastic_follows_the_shares_on_average():
    shares = np.array([0.6, 0.3, 0.0, 0.1])
    draws = np.array([allocate_stochastic(shares, 50, seed) for seed in range(2_000)])
    # standard error of a mean count is at most sqrt(50 * .25 / 2000) = 0.08
    np.testing.assert_allclose(draws.mean(axis=0), shares * 50, atol=0.4)
    assert len(np.unique(draws, axis=0)) > 100


def test_seed_is_stable():
    assert seed_of("request-1") == 0x6478032A4D7C81FA
    assert seed_of("") == 0xB4B2797457A0A6E4
    assert len({seed_of(f"request-{i}") for i in range(1_000)}) == 1_000


def test_allocate_holds_its_caller_to_shares():
    with pytest.raises(AssertionError):
        allocate(np.array([0.5, 0.6]), 10)
    with pytest.raises(AssertionError):
        allocate(np.array([1.0]), -1)
