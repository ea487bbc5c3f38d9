"""Hashing of ids, the ID embedding's trained and served forms."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pinrec_core.config import ModelConfig
from pinrec_core.messages import EmbedItemsInput
from pinrec_core.model.id_embedding import HashIdEmbedding, IdEmbedder, export_id_embedding, hash_rows

CONFIG = ModelConfig(num_hashes=2, hash_rows=101, hash_dim=4, id_dim=6)
MASK = (1 << 64) - 1


def splitmix64(item_id: int, seed: int) -> int:
    """The reference in Python's big integers: no sign, no wrap-around to think about."""
    x = (item_id + seed * 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def test_hash_rows_match_the_reference_on_edge_ids():
    ids = [0, 1, -1, 42, 2**31, -(2**31) - 5, 2**53 + 1, 2**63 - 1, -(2**63)]
    rows = hash_rows(torch.tensor(ids), 3, 1_000_003).tolist()
    expected = [[j * 1_000_003 + (splitmix64(i, j + 1) & (MASK >> 1)) % 1_000_003 for j in range(3)] for i in ids]
    assert rows == expected


def test_golden_rows():
    """Pinned: a release's tables are useless to a reader that hashes differently."""
    assert hash_rows(torch.tensor([1, 2**62 + 3]), 2, 1_000).tolist() == [[657, 1711], [917, 1596]]


def test_hashes_spread_and_are_independent():
    rows = hash_rows(torch.arange(20_000), 2, 100)
    counts = torch.bincount(rows[:, 0], minlength=100)
    assert counts.min() > 140  # 200 expected a row; 5 standard deviations are 70
    assert counts.max() < 270
    both_collide = (rows[0] == rows[1:]).all(dim=1).sum()
    assert both_collide < 10  # 20,000 / 100^2 = 2 expected


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize(("codes", "error"), [("fp16", 2e-3), ("int8", 2e-2)])
def test_served_equals_trained(tmp_path, num_shards, codes, error):
    torch.manual_seed(0)
    trained = HashIdEmbedding(CONFIG).eval()
    export_id_embedding(trained, tmp_path, num_shards, codes)
    ids = np.array([5, -7, 2**60, 5])
    served = IdEmbedder.load(tmp_path).embed(ids)
    assert served.dtype == np.float16
    assert served.shape == (4, 6)
    with torch.inference_mode():
        np.testing.assert_allclose(served, trained(torch.from_numpy(ids)).numpy(), atol=error)
    assert (served[0] == served[3]).all()


def test_a_batch_equals_its_requests_one_by_one(tmp_path):
    trained = HashIdEmbedding(CONFIG).eval()
    export_id_embedding(trained, tmp_path)
    embedder = IdEmbedder.open(SimpleNamespace(path=tmp_path))
    requests = [EmbedItemsInput(np.arange(n, dtype=np.int64), release=1, deadline_ns=0, remaining_ms=1) for n in (3, 1)]
    together = embedder.run(requests)
    for request, answer in zip(requests, together, strict=True):
        assert np.array_equal(answer.id_emb, embedder.run([request])[0].id_emb)
