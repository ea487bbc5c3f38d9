"""INT8 rows of items: which of those found are best, and the best of all, by hand and against float32."""

import numpy as np

from pinrec_core.retrieve.int8_rows import Int8Rows

VECTORS = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.6, 0.8]], np.float32)


def test_the_best_of_some_rows_by_hand():
    """Products with [1, 0] are 1, 0, -1 and 0.6."""
    rows = Int8Rows.of(VECTORS)
    queries = np.array([[1, 0], [1, 0]], np.float32)
    scores, best = rows.best(queries, np.array([[2, 3, 1], [0, -1, 2]]), 2)
    assert best.tolist() == [[3, 1], [0, 2]]
    np.testing.assert_allclose(scores, [[0.6, 0.0], [1.0, -1.0]], atol=0.01)
    scores, best = rows.best(queries[:1], np.array([[-1, 1, -1]]), 2)
    assert best.tolist() == [[1, -1]]
    assert scores[0, 1] == -np.inf


def test_the_best_of_all_by_hand():
    rows = Int8Rows.of(VECTORS)
    query = np.array([[1, 0]], np.float32)
    assert rows.best_of_all(query, 3, None)[1].tolist() == [[0, 3, 1]]
    shown = np.array([0b1110], np.uint8)  # row 0 is hidden
    scores, best = rows.best_of_all(query, 4, shown)
    assert best.tolist() == [[3, 1, 2, -1]]
    assert scores[0, 3] == -np.inf


def test_many_rows_are_as_exact_search_among_what_they_hold(monkeypatch):
    """Pieces smaller than the corpus, and a partition before the sort."""
    monkeypatch.setattr("pinrec_core.retrieve.int8_rows._AT_ONCE", 100)
    monkeypatch.setattr("pinrec_core.retrieve.int8_rows._GATHERED", 1_000)
    rng = np.random.default_rng(0)
    vectors, queries = (rng.normal(size=(n, 8)).astype(np.float32) for n in (777, 20))
    rows = Int8Rows.of(vectors)
    products = queries @ (rows._codes.astype(np.float32) * rows._scale[:, None]).T
    expected = np.argsort(-products, axis=1)[:, :10]
    scores, best = rows.best_of_all(queries, 10, None)
    assert best.tolist() == expected.tolist()
    np.testing.assert_allclose(scores, np.take_along_axis(products, expected, axis=1), atol=1e-4)
    everything = np.tile(np.arange(777), (20, 1))
    assert rows.best(queries, everything, 10)[1].tolist() == expected.tolist()
