import pytest
import torch

from pinrec_core.eval.metrics import (
    proportion_unique,
    target_hits,
    target_recall_at_k,
    unique_within_user,
    unordered_recall_at_k,
)


def hits_of(scores, target_scores, k):
    return target_hits(scores.topk(min(k + 1, scores.size(-1)), dim=-1).values, target_scores, k)


def brute_force_recall(embeddings, targets, index, k):
    """Eq. 6, symbol by symbol: lists of vectors, one entry a user."""
    total = 0
    for user_embeddings, user_targets in zip(embeddings, targets, strict=True):
        best = min(sum(1 for n in index if float(e @ n) >= float(e @ t)) for e in user_embeddings for t in user_targets)
        total += best <= k
    return total / len(embeddings)


def integer_world(seed, users=12, per_user=3, num_targets=2, items=40, dim=3):
    """Small integer vectors: dot products are exact and ties abound."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randint(-2, 3, shape, generator=generator).double()

    index = draw(items, dim)
    target_rows = torch.randint(0, items, (users, num_targets), generator=generator)
    return draw(users, per_user, dim), target_rows, index


@pytest.mark.parametrize("k", [1, 2, 5, 39, 40, 100])
@pytest.mark.parametrize("seed", range(5))
def test_equals_the_brute_force_count_of_equation_6_with_ties(seed, k):
    embeddings, target_rows, index = integer_world(seed)
    scores = embeddings @ index.T  # [U, J, N]
    target_scores = scores.gather(2, target_rows[:, None].expand(-1, scores.size(1), -1))
    valid = torch.ones_like(target_rows, dtype=torch.bool)
    found = unordered_recall_at_k(hits_of(scores, target_scores, k), valid).mean()
    assert float(found) == pytest.approx(brute_force_recall(embeddings, index[target_rows], index, k))


@pytest.mark.parametrize("k", [0, 1, 3])
def test_a_target_outside_the_index_may_have_k_items_before_it(k):
    embeddings, target_rows, index = integer_world(7)
    outside = index[target_rows] + 0.5  # vectors that are no item of the index
    scores = embeddings @ index.T
    hits = hits_of(scores, torch.einsum("ujd,uzd->ujz", embeddings, outside), k)
    valid = torch.ones_like(target_rows, dtype=torch.bool)
    found = unordered_recall_at_k(hits, valid).mean()
    assert float(found) == pytest.approx(brute_force_recall(embeddings, outside, index, k))


def test_rank_k_is_a_hit_and_rank_k_plus_one_is_not():
    scores = torch.tensor([[[0.9, 0.8, 0.7, 0.6]]])
    hits = hits_of(scores, torch.tensor([[[0.9, 0.8, 0.7]]]), k=2)
    assert hits.tolist() == [[[True, True, False]]]


def test_ties_count_against_the_target():
    scores = torch.tensor([[[0.5, 0.5, 0.5, 0.1]]])  # the target is one of three that tie: its rank is 3
    target = torch.tensor([[[0.5]]])
    assert not bool(hits_of(scores, target, k=2))
    assert bool(hits_of(scores, target, k=3))


def test_dropped_items_do_not_count_and_a_dropped_target_is_never_hit():
    scores = torch.tensor([[[-torch.inf, 0.8, 0.7]]])
    assert hits_of(scores, torch.tensor([[[0.7, -torch.inf]]]), k=2).tolist() == [[[True, False]]]
    assert hits_of(scores, torch.tensor([[[0.7, -torch.inf]]]), k=3).tolist() == [[[True, False]]]


def test_any_hit_and_share_of_targets_by_hand():
    # user 0: two embeddings, three targets of which two exist; user 1: none hit
    hits = torch.tensor([[[True, False, True], [True, False, False]], [[False] * 3, [False] * 3]])
    valid = torch.tensor([[True, True, False], [True, True, True]])
    assert unordered_recall_at_k(hits, valid).tolist() == [1.0, 0.0]
    assert target_recall_at_k(hits, valid).tolist() == [0.5, 0.0]


def test_a_hit_on_a_target_that_does_not_exist_is_none():
    hits = torch.tensor([[[False, True]]])
    valid = torch.tensor([[True, False]])
    assert unordered_recall_at_k(hits, valid).tolist() == [0.0]
    assert target_recall_at_k(hits, valid).tolist() == [0.0]


def test_proportion_unique_over_everybody_and_within_a_user():
    retrieved = torch.tensor([[1, 2, 2, 3], [3, 3, 3, -1]])
    assert proportion_unique(retrieved) == pytest.approx(3 / 7)
    assert unique_within_user(retrieved).tolist() == pytest.approx([3 / 4, 1 / 3])
    assert proportion_unique(torch.tensor([-1, -1])) == 0.0
