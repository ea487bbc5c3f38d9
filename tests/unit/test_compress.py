import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinrec_core.generate.compress import allocate_to_embeddings, compress

RIGHT, UP = [1.0, 0.0], [0.0, 1.0]


def run(rows, threshold):
    kept, merged = compress(np.array(rows, dtype=np.float32), threshold)
    return kept.tolist(), merged.tolist()


def plain_compress(embeddings, threshold):
    """The rule as it reads: one embedding after the other."""
    kept, merged = [], []
    for row, embedding in enumerate(embeddings):
        best, best_cosine = None, threshold
        for place, earlier in enumerate(kept):
            other = embeddings[earlier]
            norms = np.linalg.norm(embedding) * np.linalg.norm(other)
            cosine = float(embedding @ other / norms) if norms else 0.0
            if cosine > best_cosine:
                best, best_cosine = place, cosine
        if best is None:
            kept.append(row)
            merged.append(1)
        else:
            merged[best] += 1
    return kept, merged


def test_copies_merge_and_others_stay():
    assert run([RIGHT, UP, RIGHT, RIGHT], 0.9) == ([0, 1], [3, 1])


def test_the_threshold_itself_does_not_merge():
    rows = [RIGHT, [0.6, 0.8]]  # cosine 0.6
    assert run(rows, np.float32(0.6)) == ([0, 1], [1, 1])
    assert run(rows, 0.59) == ([0], [2])


def test_joins_the_most_similar_kept_embedding():
    # cosines of the third: 0.6 with RIGHT, 0.8 with UP
    assert run([RIGHT, UP, [0.6, 0.8]], 0.5) == ([0, 1], [1, 2])


def test_a_tie_goes_to_the_earliest():
    assert run([RIGHT, UP, [1.0, 1.0]], 0.5) == ([0, 1], [2, 1])
    assert run([UP, RIGHT, [1.0, 1.0]], 0.5) == ([0, 1], [2, 1])


def test_the_kept_vector_does_not_move():
    # 0, 20 and 40 degrees, threshold cos(25): the second joins the first, the third is 40 degrees from it and stays,
    # though it is within 20 degrees of the second and of the mean of both.
    rows = [[np.cos(a), np.sin(a)] for a in np.radians([0, 20, 40])]
    assert run(rows, np.cos(np.radians(25))) == ([0, 2], [2, 1])


def test_an_embedding_may_not_join_a_later_one():
    # 0, 20, 35 degrees, threshold cos(30): the second is nearer to the third, but comes before it
    rows = [[np.cos(a), np.sin(a)] for a in np.radians([0, 20, 35])]
    assert run(rows, np.cos(np.radians(30))) == ([0, 2], [2, 1])


@pytest.mark.parametrize("threshold", [1.0, 1.5])
def test_one_or_more_never_merges(threshold):
    rows = np.random.default_rng(0).normal(size=(1, 64)).repeat(20, axis=0)
    assert run(rows, threshold) == (list(range(20)), [1] * 20)


def test_length_does_not_matter_and_zero_rows_stay():
    assert run([RIGHT, [7.0, 0.0], [0.0, 0.0], [0.0, 0.0]], 0.9) == ([0, 2, 3], [2, 1, 1])


def test_nothing_in_nothing_out():
    kept, merged = compress(np.zeros((0, 8), dtype=np.float32), 0.9)
    assert kept.dtype == merged.dtype == np.int64
    assert len(kept) == len(merged) == 0


@given(st.integers(0, 2**32 - 1), st.integers(1, 192), st.floats(-0.2, 0.99))
def test_equals_the_plain_twin(seed, num_embeddings, threshold):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(6, 16))
    rows = centers[rng.integers(6, size=num_embeddings)] + rng.normal(size=(num_embeddings, 16)) * rng.uniform(0.1, 1)
    kept, merged = compress(rows.astype(np.float32), threshold)
    assert (kept.tolist(), merged.tolist()) == plain_compress(rows.astype(np.float32), threshold)
    assert merged.sum() == num_embeddings
    assert kept[0] == 0


@pytest.mark.parametrize(
    ("merged", "count", "allocation"),
    [
        ([3, 1], 8, [6, 2]),
        ([2, 1], 4, [3, 1]),  # 2.67 1.33: the place goes to .67
        ([1, 3], 2, [1, 1]),  # 0.5 1.5: a tie goes to the earliest, not to the larger
        ([1, 1, 1], 2, [1, 1, 0]),
        ([5, 1], 1, [1, 0]),
        ([4], 9, [9]),
        ([2, 2], 0, [0, 0]),
    ],
)
def test_allocate_to_embeddings_by_hand(merged, count, allocation):
    assert allocate_to_embeddings(np.array(merged), count).tolist() == allocation


@given(st.lists(st.integers(1, 50), min_size=1, max_size=64), st.integers(0, 1_000))
def test_allocation_is_exact_and_within_one_of_the_quota(merged, count):
    allocation = allocate_to_embeddings(np.array(merged), count)
    assert allocation.sum() == count
    for places, weight in zip(allocation.tolist(), merged, strict=True):
        assert abs(places * sum(merged) - weight * count) < sum(merged)
