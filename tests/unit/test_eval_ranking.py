"""The chunked search of the corpus against the plain ranking of all scores, ties included."""

import pytest
import torch

from pinrec_core.eval import ranking
from pinrec_core.eval.ranking import Seen, rank_scores, rank_vectors

USERS, QUERIES, ITEMS, DIM = 6, 3, 300, 4


def world(seed, integers):
    """Queries, which exist, vectors, targets (some missing) and seen pairs. Integers make ties abound, and exact."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        if integers:
            return torch.randint(-2, 3, shape, generator=generator).float()
        return torch.randn(shape, generator=generator)

    real = torch.rand((USERS, QUERIES), generator=generator) < 0.8
    targets = torch.randint(-1, ITEMS, (USERS, 2), generator=generator)
    pairs = torch.randint(0, USERS, (40,), generator=generator), torch.randint(0, ITEMS, (40,), generator=generator)
    return draw(USERS, QUERIES, DIM), real, draw(ITEMS, DIM), targets, Seen(*pairs)


def plain(queries, real, vectors, targets, seen, k):
    scores = (queries @ vectors.T).masked_fill(~real[..., None], -torch.inf)
    return scores, rank_scores(scores, targets, seen, k)  # scores: with what was seen at -inf


@pytest.mark.parametrize("integers", [True, False])
@pytest.mark.parametrize("items_at_once", [1, 64, 128, 299, 1000])
@pytest.mark.parametrize("k", [1, 5, 299, 300, 400])
def test_chunks_find_what_all_scores_at_once_find(k, items_at_once, integers):
    for seed in range(3):
        given = world(seed, integers)
        scores, expected = plain(*given, k)
        found = rank_vectors(*given, k, items_at_once)
        assert torch.equal(found.hits, expected.hits)
        assert torch.equal(found.retrieved < 0, expected.retrieved < 0)
        # Items that tie may change places; their scores may not.
        at = scores.gather(2, found.retrieved.clamp_min(0)), scores.gather(2, expected.retrieved.clamp_min(0))
        torch.testing.assert_close(*at, atol=1e-5, rtol=0)
        for row in found.retrieved.flatten(0, 1):
            assert len(set(row[row >= 0].tolist())) == int((row >= 0).sum()), "an item is retrieved once"
        if not integers:
            assert torch.equal(found.retrieved, expected.retrieved)


def test_hits_are_the_brute_force_count_of_equation_6_with_ties():
    queries, real, vectors, targets, _ = world(3, integers=True)
    found = rank_vectors(queries, real, vectors, targets, Seen.nothing(), 20, items_at_once=128)
    assert found.hits.any()
    for u in range(USERS):
        for j in range(QUERIES):
            for z, target in enumerate(targets[u].tolist()):
                scores = vectors @ queries[u, j]
                counted = target >= 0 and int((scores >= scores[target]).sum()) <= 20
                assert bool(found.hits[u, j, z]) == (counted and bool(real[u, j]))


def test_a_target_that_was_seen_or_is_not_in_the_corpus_is_never_hit():
    vectors = torch.eye(3)
    queries = torch.tensor([[[1.0, 0.5, 0.0]]])
    seen = Seen(torch.tensor([0]), torch.tensor([0]))
    found = rank_vectors(queries, torch.ones(1, 1, dtype=torch.bool), vectors, torch.tensor([[0, 1, -1]]), seen, 3)
    assert found.hits.tolist() == [[[False, True, False]]]
    assert found.retrieved.tolist() == [[[1, 2, -1]]]


@pytest.mark.parametrize("width", [1, 63, 64, 640, 1280, 1281])
@pytest.mark.parametrize("count", [1, 7, 11])
def test_the_largest_of_blocks_are_the_largest_of_all(width, count):
    scores = torch.randn(5, width, generator=torch.Generator().manual_seed(width))
    values, places = ranking._largest(scores, count)
    expected = scores.topk(min(count, width), dim=1)
    assert torch.equal(values, expected.values)
    assert torch.equal(places, expected.indices)


def test_more_queries_make_smaller_chunks():
    assert ranking.chunk_size(1_024) == ranking.ITEMS_AT_ONCE
    assert ranking.chunk_size(16_384) == 4_096  # 256 MiB of float32
    assert ranking.chunk_size(10**9) == 64


def test_many_largest_in_one_block_are_all_found():
    scores = torch.zeros(1, 1280)
    scores[0, 64:75] = torch.arange(11, 0, -1)
    values, places = ranking._largest(scores, 10)
    assert values[0].tolist() == list(range(11, 1, -1))
    assert places[0].tolist() == list(range(64, 74))
