import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pinrec_core.train.count_min import CountMinSketch

int64s = st.integers(min_value=-(2**63), max_value=2**63 - 1)


def test_a_small_set_is_counted_exactly():
    sketch = CountMinSketch(width=1024, depth=4, seed=1)
    sketch.add(np.array([7, -3, 7, 2**62, 7]))
    sketch.add(np.array([-3]))
    assert sketch.total == 6
    assert sketch.estimate(np.array([7, -3, 2**62, 99])).tolist() == [3, 2, 1, 0]


def test_log_q_is_the_log_of_the_share():
    sketch = CountMinSketch(width=1024, depth=4)
    sketch.add(np.array([1, 1, 1, 2]))
    log_q = sketch.log_q(np.array([1, 2, 3]))
    assert log_q.dtype == np.float32
    np.testing.assert_allclose(log_q, [np.log(0.75), np.log(0.25), -np.inf], rtol=1e-6)


def test_an_empty_sketch_and_no_ids():
    sketch = CountMinSketch(width=8, depth=2)
    sketch.add(np.array([], dtype=np.int64))
    assert sketch.total == 0
    assert sketch.frequency(np.array([5])).tolist() == [0.0]
    assert sketch.estimate(np.array([], dtype=np.int64)).shape == (0,)


@settings(max_examples=50, deadline=None)
@given(ids=st.lists(int64s, min_size=1, max_size=200), width=st.integers(1, 40), seed=st.integers(0, 5))
def test_estimates_are_never_too_low_however_narrow_the_sketch(ids, width, seed):
    sketch = CountMinSketch(width=width, depth=3, seed=seed)
    sketch.add(np.array(ids, dtype=np.int64))
    unique, counts = np.unique(np.array(ids, dtype=np.int64), return_counts=True)
    estimates = sketch.estimate(unique)
    assert (estimates >= counts).all()
    assert (estimates <= len(ids)).all()


def test_depth_takes_away_most_of_the_error_of_one_row():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 2000, size=20_000)
    unique, counts = np.unique(ids, return_counts=True)
    errors = []
    for depth in (1, 4):
        sketch = CountMinSketch(width=4096, depth=depth, seed=3)
        sketch.add(ids)
        errors.append(int((sketch.estimate(unique) - counts).sum()))
    assert errors[1] < errors[0] / 5


def test_the_same_seed_hashes_alike_and_another_differently():
    ids = np.arange(100)
    one, same, other = (CountMinSketch(width=16, depth=2, seed=seed) for seed in (1, 1, 2))
    for sketch in (one, same, other):
        sketch.add(ids[:50])
    assert one.estimate(ids).tolist() == same.estimate(ids).tolist()
    assert one.estimate(ids).tolist() != other.estimate(ids).tolist()
