"""From generated embeddings to what is searched: compression, allocation, step and offset, by hand."""

import numpy as np

from pinrec_core.config import GenerateConfig
from pinrec_core.generate.generator import select

PLAN = GenerateConfig(num_steps=2, offsets_per_step=2, compression_threshold=0.9)
X, Y, Z = np.eye(3, dtype=np.float32)


def test_select_by_hand():
    """Outcome 2: x x y x -> x stands for 3, y for 1; count 8 -> 6 and 2. Outcome 0: four directions, count 3."""
    near = (X + 0.1 * Y) / np.linalg.norm(X + 0.1 * Y)
    embeddings = np.stack([np.stack([X, near, Y, X]), np.stack([X, Y, Z, -X])])
    generated = select(embeddings, np.array([2, 0]), np.array([3, 0, 8], np.int32), PLAN)
    assert generated.outcome.tolist() == [2, 2, 0, 0, 0]
    assert generated.allocation.tolist() == [6, 2, 1, 1, 1]
    assert generated.step.tolist() == [0, 1, 0, 0, 1]
    assert generated.target_offset.tolist() == [1, 1, 1, 2, 1]
    assert generated.num_generated == 8
    assert generated.num_kept == 6
    np.testing.assert_array_equal(generated.embeddings, np.stack([X, Y, X, Y, Z]))


def test_select_without_outcomes_is_empty():
    generated = select(np.zeros((1, 4, 3), np.float32), np.array([], np.int64), np.zeros(3, np.int32), PLAN)
    assert generated.embeddings.shape == (0, 3)
    assert generated.num_kept == 0
